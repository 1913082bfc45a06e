//! What other systems are told of a change of a user.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ClerkId, Entity, FieldSet};

/// What happened to the *row*, as other systems see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageType {
    #[serde(rename = "user.created")]
    UserCreated,
    #[serde(rename = "user.updated")]
    UserUpdated,
    /// The person is to be erased. Never given up.
    #[serde(rename = "user.deleted")]
    UserDeleted,
}

impl MessageType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::UserCreated, Self::UserUpdated, Self::UserDeleted];

    /// The public name: in `outbox.type`, in the configuration, in the message.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserCreated => "user.created",
            Self::UserUpdated => "user.updated",
            Self::UserDeleted => "user.deleted",
        }
    }

    /// The type of this public name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One message for one sink: the JSON of `outbox.payload`, which docs/messages.md describes.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
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
    /// Of `user.updated`: the names of those among its fields that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed_fields: Vec<String>,
}

impl Message {
    /// The form of messages that this program writes.
    pub const VERSION: u32 = 1;

    /// The user it is about.
    pub fn clerk_id(&self, entity: &'static Entity) -> Option<ClerkId> {
        self.text("clerk_id").and_then(|id| ClerkId::new(entity, id))
    }

    /// Leave out the fields that are not among these; whether there were any.
    pub fn keep_only(&mut self, entity: &'static Entity, fields: FieldSet) -> bool {
        let allowed = |name: &str| entity.named(name).is_none_or(|field| fields.contains(field));
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
    /// Those of the allow-list that it may have.
    pub fields: FieldSet,
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
        columns: &[Column::new("email", Holds::Text), Column::new("name", Holds::Text)],
    };

    #[test]
    fn what_a_sink_may_not_have_any_more_is_left_out() {
        let text = r#"{"id":"msg_1","type":"user.updated","version":1,"timestamp":"2026-01-01T00:00:00Z",
            "data":{"clerk_id":"user_1","created_at":"2026-01-01T00:00:00Z","email":"ada@example.com","name":"Ada"},
            "changed_fields":["email","name"]}"#;
        let mut message: Message = serde_json::from_str(text).expect("a message");
        let before = message.clone();
        assert!(!message.keep_only(&PERSON, FieldSet::ALL));
        assert_eq!(message, before);
        assert!(message.keep_only(&PERSON, FieldSet::from_iter([PERSON.field("name")])));
        assert_eq!(message.data.keys().collect::<Vec<_>>(), ["clerk_id", "created_at", "name"]);
        assert_eq!(message.changed_fields, ["name"]);
    }
}
