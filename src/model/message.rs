//! What other systems are told of a change of an object.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{ClerkId, Entity, FieldSet, Selection};

/// What happened to the *row* of an object of a kind, as other systems see it.
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
    /// It is to be erased. Never given up.
    Deleted,
}

impl MessageType {
    /// The types of messages about this kind.
    pub fn of(entity: &'static Entity) -> [Self; 3] {
        [Happened::Created, Happened::Updated, Happened::Deleted].map(|what| Self { entity, what })
    }

    /// One came to be.
    pub fn created(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Created }
    }

    /// One changed.
    pub fn updated(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Updated }
    }

    /// One is to be erased.
    pub fn deleted(entity: &'static Entity) -> Self {
        Self { entity, what: Happened::Deleted }
    }

    /// Whether somebody or something is to be erased.
    pub fn is_deletion(self) -> bool {
        self.what == Happened::Deleted
    }

    /// The public name: in `outbox.type`, in the configuration, in the message.
    pub fn name(self) -> String {
        self.to_string()
    }

    /// The type of this public name, of one of these kinds.
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
    /// The same at every attempt, so that a receiver can tell a repeat.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: MessageType,
    /// Of this form; [`VERSION`](Self::VERSION) today.
    pub version: u32,
    /// When it happened at Clerk.
    pub timestamp: DateTime<Utc>,
    /// `clerk_id`, and unless the user is deleted `created_at`, `updated_at` and the fields that the sink may have.
    pub data: Map<String, Value>,
    /// Of an update: the names of those among its fields that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_fields: Vec<String>,
}

/// A message but for its type.
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
    /// The form of messages that this program writes.
    pub const VERSION: u32 = 1;

    /// A message of this type, as it was written.
    ///
    /// # Errors
    /// If the text is none.
    pub fn read(kind: MessageType, text: &str) -> serde_json::Result<Self> {
        let Said { id, version, timestamp, data, changed_fields } = serde_json::from_str(text)?;
        Ok(Self { id, kind, version, timestamp, data, changed_fields })
    }

    /// The object it is about.
    pub fn clerk_id(&self) -> Option<ClerkId> {
        self.text("clerk_id").and_then(|id| ClerkId::new(self.kind.entity, id))
    }

    /// Leave out the fields that are not among these; whether there were any.
    pub fn keep_only(&mut self, fields: FieldSet) -> bool {
        let allowed = |name: &str| self.kind.entity.named(name).is_none_or(|field| fields.contains(field));
        let before = self.data.len();
        self.data.retain(|name, _| allowed(name));
        self.changed_fields.retain(|name| allowed(name));
        self.data.len() < before
    }

    /// A member of `data` that is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.data.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} {}, redacted)", self.id, self.kind)
    }
}

/// What one sink is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The sink's name.
    pub sink: String,
    /// Deletions of users that it ever got reach it all the same.
    pub events: Vec<MessageType>,
    /// Those of the allow-list that it may have, of each kind.
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
