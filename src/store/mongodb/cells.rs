//! Values of documents, read and written.

use chrono::{DateTime, Utc};
use mongodb::bson::{self, Binary, Bson, Document, spec::BinarySubtype};

use crate::{
    model::{ClerkId, Entity, Kinds, SvixId},
    store::{ErrorKind, Result, StoreError},
};

/// What can be read of a value; `None` if it is something else.
pub(super) trait Readable: Sized {
    fn read(value: &Bson) -> Option<Self>;
}

impl Readable for String {
    fn read(value: &Bson) -> Option<Self> {
        value.as_str().map(ToOwned::to_owned)
    }
}

impl Readable for i64 {
    fn read(value: &Bson) -> Option<Self> {
        match value {
            Bson::Int32(number) => Some((*number).into()),
            Bson::Int64(number) => Some(*number),
            // A shell writes every number so.
            #[expect(clippy::cast_possible_truncation, reason = "it has no fraction")]
            Bson::Double(number) if number.fract() == 0.0 => Some(*number as Self),
            _ => None,
        }
    }
}

impl Readable for u64 {
    fn read(value: &Bson) -> Option<Self> {
        i64::read(value)?.try_into().ok()
    }
}

impl Readable for u32 {
    fn read(value: &Bson) -> Option<Self> {
        i64::read(value)?.try_into().ok()
    }
}

impl Readable for bool {
    fn read(value: &Bson) -> Option<Self> {
        value.as_bool()
    }
}

impl Readable for DateTime<Utc> {
    fn read(value: &Bson) -> Option<Self> {
        DateTime::from_timestamp_millis(value.as_datetime()?.timestamp_millis())
    }
}

impl Readable for Vec<u8> {
    fn read(value: &Bson) -> Option<Self> {
        match value {
            Bson::Binary(binary) => Some(binary.bytes.clone()),
            _ => None,
        }
    }
}

impl Readable for SvixId {
    fn read(value: &Bson) -> Option<Self> {
        Self::new(value.as_str()?)
    }
}

/// The kind of this name.
pub(super) fn named(kinds: Kinds, kind: &str) -> Option<&'static Entity> {
    kinds.iter().copied().find(|entity| entity.kind == kind)
}

/// Reading a document.
pub(super) trait Cells {
    /// What stands in a field; `None` if that is nothing, or cannot be read.
    fn maybe<T: Readable>(&self, name: &str) -> Option<T>;

    /// What must stand in a field.
    fn need<T: Readable>(&self, name: &str) -> Result<T>;

    /// The object that a row is about, by `kind` and `clerk_id`.
    fn about(&self, kinds: Kinds) -> Result<ClerkId>;

    /// The object of this kind whose id stands in a field.
    fn id_of(&self, entity: &'static Entity, name: &str) -> Result<ClerkId>;
}

impl Cells for Document {
    fn maybe<T: Readable>(&self, name: &str) -> Option<T> {
        T::read(self.get(name)?)
    }

    fn need<T: Readable>(&self, name: &str) -> Result<T> {
        self.maybe(name).ok_or_else(|| unreadable(name))
    }

    fn about(&self, kinds: Kinds) -> Result<ClerkId> {
        let entity = self.maybe::<String>("kind").and_then(|kind| named(kinds, &kind));
        self.id_of(entity.ok_or_else(|| unreadable("kind"))?, "clerk_id")
    }

    fn id_of(&self, entity: &'static Entity, name: &str) -> Result<ClerkId> {
        let id = self.maybe::<String>(name).and_then(|id| ClerkId::new(entity, id));
        id.ok_or_else(|| unreadable(name))
    }
}

pub(super) fn unreadable(name: &str) -> StoreError {
    StoreError { place: Some(format!("field {name} cannot be read")), ..StoreError::new(ErrorKind::Broken) }
}

/// A time, as it is kept: in milliseconds.
pub(super) fn time(time: DateTime<Utc>) -> Bson {
    Bson::DateTime(bson::DateTime::from_millis(time.timestamp_millis()))
}

/// The same, or nothing.
pub(super) fn maybe_time(at: Option<DateTime<Utc>>) -> Bson {
    at.map_or(Bson::Null, time)
}

/// Bytes.
pub(super) fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

/// The key of what there is one of for each object: an id alone may be of several kinds.
pub(super) fn key(id: &ClerkId) -> String {
    format!("{}/{}", id.entity().kind, id.as_str())
}

/// The keys of several.
pub(super) fn keys(ids: &[ClerkId]) -> Vec<String> {
    ids.iter().map(key).collect()
}

/// Ids as they stand in documents.
pub(super) fn plain(ids: &[ClerkId]) -> Vec<&str> {
    ids.iter().map(ClerkId::as_str).collect()
}
