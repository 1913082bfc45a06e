//! Messages that notify other systems of a change of an object.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{ClerkId, Entity, FieldSet, Selection};

/// The type of a message: a kind, and what happened to the *row* of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageType {
    pub entity: &'static Entity,
    pub what: Happened,
}

/// See [`MessageType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Happened {
    Created,
    Updated,
    /// The object must be erased. Such a message is never given up.
    Deleted,
}

impl MessageType {
    /// The types of messages about this kind.
    pub fn of(entity: &'static Entity) -> [Self; 3] {
        [Happened::Created, Happened::Updated, Happened::Deleted].map(|what| Self { entity, what })
    }

    /// An object was created.
    pub fn created(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Created }
    }

    /// An object was updated.
    pub fn updated(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Updated }
    }

    /// An object must be erased.
    pub fn deleted(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Deleted }
    }

    /// Whether the receiver must erase the object.
    pub fn is_deletion(self) -> bool {
        self.what == Happened::Deleted
    }

    /// The public name, in `outbox.type`, in the configuration and in the message.
    pub fn name(self) -> String {
        self.to_string()
    }

    /// The type with this public name, if it belongs to one of these kinds.
    pub fn named<'a>(entities: impl IntoIterator<Item = &'a &'static Entity>, name: &str) -> Option<Self> {
        entities.into_iter().copied().flat_map(Self::of).find(|kind| kind.name() == name)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.entity.kind, self.what)
    }
}

impl Serialize for MessageType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One message for one sink: the JSON of `outbox.payload`, which docs/messages.md describes.
#[derive(Clone, PartialEq, Serialize)]
pub struct Message {
    /// The same at every attempt, so that a receiver can recognise a repeat.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: MessageType,
    /// The version of the form; currently [`VERSION`](Self::VERSION).
    pub version: u32,
    /// When it happened at Clerk.
    pub timestamp: DateTime<Utc>,
    /// `clerk_id` and, unless the object is deleted, `created_at`, `updated_at` and the fields that the sink may receive.
    pub data: Map<String, Value>,
    /// In an update, the names of the fields that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_fields: Vec<String>,
}

/// A message without its type.
#[derive(Deserialize)]
struct Said {
    id: String,
    version: u32,
    timestamp: DateTime<Utc>,
    data: Map<String, Value>,
    #[serde(default)]
    changed_fields: Vec<String>,
}

impl Message {
    /// The version of the form that this program writes.
    pub const VERSION: u32 = 1;

    /// Parses a stored message of this type.
    ///
    /// # Errors
    /// The text is not a message.
    pub fn read(kind: MessageType, text: &str) -> serde_json::Result<Self> {
        let Said { id, version, timestamp, data, changed_fields } = serde_json::from_str(text)?;
        Ok(Self { id, kind, version, timestamp, data, changed_fields })
    }

    /// Clerk's id of the object.
    pub fn clerk_id(&self) -> Option<ClerkId> {
        self.text("clerk_id").and_then(|id| ClerkId::new(self.kind.entity, id))
    }

    /// Removes the fields that are not in this set. Returns whether there were any.
    pub fn keep_only(&mut self, fields: FieldSet) -> bool {
        let allowed = |name: &str| self.kind.entity.named(name).is_none_or(|field| fields.contains(field));
        let before = self.data.len();
        self.data.retain(|name, _| allowed(name));
        self.changed_fields.retain(|name| allowed(name));
        self.data.len() < before
    }

    /// A text member of `data`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.data.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} {}, redacted)", self.id, self.kind)
    }
}

/// The messages and fields that one sink receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The sink's name.
    pub sink: String,
    /// The events that the sink receives. It also receives the deletion of every user that it was ever sent.
    pub events: Vec<MessageType>,
    /// For each kind, the fields of the allow-list that it may receive.
    pub fields: Selection,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, Holds};

    static PERSON: Entity = Entity {
        kind: "person",
        table: "people",
        id_prefix: "user_",
        events: ["person.created", "person.updated", "person.deleted"],
        also: &[],
        path: None,
        query: &[],
        within: None,
        of_each: &[],
        has_one: false,
        columns: &[Column::new("email", Holds::Text), Column::new("name", Holds::Text)],
        nested: &[],
        secrets: &[],
        follows: &[],
        has_preferences: false,
        unique: &[],
    };

    #[test]
    fn what_a_sink_may_not_have_any_more_is_left_out() {
        let text = r#"{"id":"msg_1","type":"user.updated","version":1,"timestamp":"2026-01-01T00:00:00Z",
            "data":{"clerk_id":"user_1","created_at":"2026-01-01T00:00:00Z","email":"ada@example.com","name":"Ada"},
            "changed_fields":["email","name"]}"#;
        let mut message = Message::read(MessageType::updated(&PERSON), text).expect("a message");
        let before = message.clone();
        assert!(!message.keep_only(FieldSet::ALL));
        assert_eq!(message, before);
        assert!(message.keep_only(FieldSet::from_iter([PERSON.field("name")])));
        assert_eq!(message.data.keys().collect::<Vec<_>>(), ["clerk_id", "created_at", "name"]);
        assert_eq!(message.changed_fields, ["name"]);
    }
}
