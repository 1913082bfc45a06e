//! Reading and writing values of documents.

use chrono::{DateTime, Utc};
use mongodb::bson::{self, Binary, Bson, Document, spec::BinarySubtype};

use crate::{
    model::{ClerkId, Entity, Kinds, SvixId},
    store::{ErrorKind, Result, StoreError},
};

/// A type that a value can be read as; `None` if the value has another type.
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
            // A shell writes every number as a double.
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

/// The kind with this name.
pub(super) fn named(kinds: Kinds, kind: &str) -> Option<&'static Entity> {
    kinds.iter().copied().find(|entity| entity.kind == kind)
}

/// Reads fields of a document.
pub(super) trait Cells {
    /// The value of a field; `None` if it is missing or cannot be read.
    fn maybe<T: Readable>(&self, name: &str) -> Option<T>;

    /// The value of a field that must have one.
    fn need<T: Readable>(&self, name: &str) -> Result<T>;

    /// The object that a row is about, from `kind` and `clerk_id`.
    fn about(&self, kinds: Kinds) -> Result<ClerkId>;

    /// The object of this kind whose id is in a field.
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

/// A time as it is stored, in milliseconds.
pub(super) fn time(time: DateTime<Utc>) -> Bson {
    Bson::DateTime(bson::DateTime::from_millis(time.timestamp_millis()))
}

/// A time, or null.
pub(super) fn maybe_time(at: Option<DateTime<Utc>>) -> Bson {
    at.map_or(Bson::Null, time)
}

/// A binary value.
pub(super) fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

/// The key of a document that exists once for each object. It includes the kind, because objects of several kinds may have the
/// same id.
pub(super) fn key(id: &ClerkId) -> String {
    format!("{}/{}", id.entity().kind, id.as_str())
}

/// The keys of several objects.
pub(super) fn keys(ids: &[ClerkId]) -> Vec<String> {
    ids.iter().map(key).collect()
}

/// Ids in the form that documents store.
pub(super) fn plain(ids: &[ClerkId]) -> Vec<&str> {
    ids.iter().map(ClerkId::as_str).collect()
}
