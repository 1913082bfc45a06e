//! The messages to sinks, built in pure code.
//!
//! A message is about the row, not about the event that changed it, and shows the row as it was after the change. A
//! sink receives only the fields on its own list, and gets an update only if one of those fields changed.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Rules;
use crate::{
    model::{
        AuditAction, Change, ClerkId, Delivery, Field, FieldSet, Happened, Message, MessageType, Object,
        Subscription, Version, rfc3339,
    },
    store::Outgoing,
};

/// The messages to all sinks about a row that was just inserted or updated.
pub(super) fn of_row(
    user: &Object,
    action: AuditAction,
    changed: &[Field],
    (delivery, version): (&Delivery, &Version),
    rules: &Rules,
    now: DateTime<Utc>,
) -> Vec<Outgoing> {
    let entity = user.clerk_id.entity();
    let kind = match action {
        AuditAction::Created => MessageType::created(entity),
        AuditAction::Updated => MessageType::updated(entity),
        AuditAction::Deleted
        | AuditAction::Anonymized
        | AuditAction::DeletionHeld
        | AuditAction::DeletionCancelled
        | AuditAction::Revealed => return Vec::new(),
    };
    let is_update = kind.what == Happened::Updated;
    let told = |subscription: &Subscription| {
        if !subscription.events.contains(&kind) {
            return None;
        }
        let fields: FieldSet = subscription
            .fields
            .fields(entity)
            .of(entity)
            .filter(|field| rules.fields(entity).contains(*field) && !field.is_raw())
            .collect();
        let changed: Vec<String> = changed
            .iter()
            .filter(|field| is_update && fields.contains(**field))
            .map(|field| field.name().to_owned())
            .collect();
        if is_update && changed.is_empty() {
            return None;
        }
        let subject = (subscription.sink.as_str(), &user.clerk_id, kind);
        Some(message(subject, snapshot(user, fields), changed, (delivery, version), now))
    };
    rules.subscriptions.iter().filter_map(told).collect()
}

/// The message to a sink about an erasure, either of the changed object or of one that is erased with it. Contains only
/// the id.
pub(super) fn of_deletion(
    sink: &str,
    clerk_id: &ClerkId,
    delivery: &Delivery,
    change: &Change,
    now: DateTime<Utc>,
) -> Outgoing {
    let subject = (sink, clerk_id, MessageType::deleted(clerk_id.entity()));
    let data = Map::from_iter([("clerk_id".to_owned(), Value::from(clerk_id.as_str()))]);
    message(subject, data, Vec::new(), (delivery, &change.version), now)
}

/// A message to a sink about an object, caused by a delivery.
fn message(
    (sink, clerk_id, kind): (&str, &ClerkId, MessageType),
    data: Map<String, Value>,
    changed_fields: Vec<String>,
    (delivery, version): (&Delivery, &Version),
    now: DateTime<Utc>,
) -> Outgoing {
    let message_id = message_id(sink, clerk_id, version, kind);
    let message = Message {
        id: message_id.clone(),
        kind,
        version: Message::VERSION,
        timestamp: delivery.event_at,
        data,
        changed_fields,
    };
    Outgoing {
        // Contains only text, booleans, and JSON that was just parsed, so it can be serialised.
        payload: serde_json::to_string(&message).unwrap_or_default(),
        message_id,
        sink: sink.to_owned(),
        clerk_id: clerk_id.clone(),
        kind,
        created_at: now,
        trace: delivery.trace.clone(),
    }
}

fn snapshot(user: &Object, fields: FieldSet) -> Map<String, Value> {
    let time = |time: DateTime<Utc>| Value::from(rfc3339(time));
    let mut data = Map::from_iter([
        ("clerk_id".to_owned(), Value::from(user.clerk_id.as_str())),
        ("created_at".to_owned(), user.created_at.map_or(Value::Null, time)),
        ("updated_at".to_owned(), time(user.updated_at)),
    ]);
    for field in fields.of(user.clerk_id.entity()) {
        if let Some(value) = user.profile[field].to_json() {
            data.insert(field.name().to_owned(), value);
        }
    }
    data
}

/// The same id for the same change, on every replica and at every attempt.
fn message_id(sink: &str, clerk_id: &ClerkId, version: &Version, kind: MessageType) -> String {
    let Version { version, event_at, tie } = version;
    // No id contains a NUL.
    let text = format!("{sink}\0{clerk_id}\0{version}\0{event_at}\0{tie}\0{kind}");
    format!("msg_{}", hex::encode(&Sha256::digest(text)[..16]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::entity::{USER, user};
    use crate::model::Selection;
    use bytes::Bytes;

    use super::*;
    use crate::{
        model::{ClerkId, Content, DeletionPolicy, Inside, News, Profile, Source, SvixId},
        telemetry::TraceContext,
    };

    fn at(milliseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(milliseconds).expect("in range")
    }

    fn change(tie: &str) -> Change {
        Change {
            clerk_id: ClerkId::new(&USER, "user_1").expect("valid"),
            version: Version { version: 1, event_at: 2, tie: tie.to_owned() },
            news: News::Delete,
            actor: None,
        }
    }

    fn delivery(change: &Change) -> Delivery {
        Delivery {
            svix_id: SvixId::new("msg_1"),
            event_type: None,
            clerk_id: Some(change.clerk_id.clone()),
            event_at: at(2),
            received_at: at(3),
            source: Source::Webhook,
            payload: Bytes::new(),
            content: Content::Change(change.clone()),
            nested: Inside::default(),
            whole: Vec::new(),
            parts_digest: None,
            trace: TraceContext::default(),
        }
    }

    fn user() -> Object {
        let mut profile = Profile::default();
        for (field, value) in [
            (user::EMAIL, crate::model::Value::Text("ada@example.com".to_owned())),
            (user::FIRST_NAME, crate::model::Value::Text("Ada".to_owned())),
            (USER.field("banned"), crate::model::Value::Bool(false)),
            (USER.field("public_metadata"), crate::model::Value::Json("{\"n\": 1.50}".to_owned())),
            (
                USER.field("unsafe_metadata"),
                crate::model::Value::Json(format!("{}{}", "[".repeat(500), "]".repeat(500))),
            ),
        ] {
            profile.set(field, value);
        }
        Object {
            clerk_id: ClerkId::new(&USER, "user_1").expect("valid"),
            profile,
            created_at: Some(at(0)),
            updated_at: at(1),
            synced_at: at(3),
            deleted_at: None,
        }
    }

    fn rules(events: &[MessageType], fields: FieldSet) -> Rules {
        let subscription = Subscription {
            sink: "crm".to_owned(),
            events: events.to_vec(),
            fields: Selection::of(&USER, fields),
        };
        Rules { subscriptions: Arc::new([subscription]), ..Rules::new(FieldSet::ALL, DeletionPolicy::Auto) }
    }

    fn id_of(sink: &str, tie: &str, kind: MessageType) -> String {
        let change = change(tie);
        message_id(sink, &change.clerk_id, &change.version, kind)
    }

    fn told(rules: &Rules, action: AuditAction, changed: &[Field]) -> Vec<Value> {
        let change = change("msg_1");
        let told = of_row(&user(), action, changed, (&delivery(&change), &change.version), rules, at(4));
        told.iter().map(|message| serde_json::from_str(&message.payload).expect("JSON")).collect()
    }

    #[test]
    fn a_sink_sees_the_fields_that_it_may_have_and_no_others() {
        let fields =
            [user::FIRST_NAME, user::LAST_NAME, USER.field("public_metadata"), USER.field("unsafe_metadata")];
        let rules = rules(&MessageType::of(&USER), fields.into_iter().collect());
        let messages = told(&rules, AuditAction::Created, &USER.fields().collect::<Vec<_>>());
        let [message] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(message["type"], "user.created");
        assert_eq!(message["version"], 1);
        assert_eq!(message["timestamp"], "1970-01-01T00:00:00.002Z");
        let expected = serde_json::json!({
            "clerk_id": "user_1",
            "created_at": "1970-01-01T00:00:00.000Z",
            "updated_at": "1970-01-01T00:00:00.001Z",
            "first_name": "Ada",
            "last_name": null,
            // JSON that is nested too deep for parsers is left out.
            "public_metadata": serde_json::from_str::<Value>("{\"n\": 1.50}").expect("JSON"),
        });
        assert_eq!(message["data"], expected);
        assert!(message.get("changed_fields").is_none());
    }

    #[test]
    fn an_update_of_what_a_sink_may_not_see_is_not_told() {
        let rules = rules(&MessageType::of(&USER), [user::FIRST_NAME].into_iter().collect());
        assert!(told(&rules, AuditAction::Updated, &[user::EMAIL]).is_empty());
        let messages = told(&rules, AuditAction::Updated, &[user::EMAIL, user::FIRST_NAME]);
        assert_eq!(messages[0]["changed_fields"], serde_json::json!(["first_name"]));
    }

    #[test]
    fn a_sink_hears_only_of_the_events_that_it_wants() {
        let rules = rules(&[MessageType::updated(&USER)], FieldSet::ALL);
        assert!(told(&rules, AuditAction::Created, &[user::FIRST_NAME]).is_empty());
        assert_eq!(told(&rules, AuditAction::Updated, &[user::FIRST_NAME]).len(), 1);
    }

    #[test]
    fn a_field_that_left_the_allow_list_is_not_told() {
        let mut rules = rules(&MessageType::of(&USER), FieldSet::ALL);
        rules.selection = Selection::of(&USER, [user::FIRST_NAME].into_iter().collect());
        let messages = told(&rules, AuditAction::Created, &[user::FIRST_NAME]);
        assert!(messages[0]["data"].get("email").is_none());
    }

    #[test]
    fn a_deletion_says_whom_and_nothing_else() {
        let change = change("msg_1");
        let told = of_deletion("crm", &change.clerk_id, &delivery(&change), &change, at(4));
        let message: Value = serde_json::from_str(&told.payload).expect("JSON");
        assert_eq!(message["data"], serde_json::json!({ "clerk_id": "user_1" }));
    }

    #[test]
    fn a_message_has_the_same_id_whoever_writes_it_and_no_two_have_one() {
        let ids = [
            id_of("crm", "msg_1", MessageType::updated(&USER)),
            id_of("crm", "msg_2", MessageType::updated(&USER)),
            id_of("crm", "msg_1", MessageType::deleted(&USER)),
            id_of("mail", "msg_1", MessageType::updated(&USER)),
        ];
        assert_eq!(ids[0], id_of("crm", "msg_1", MessageType::updated(&USER)));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.len() == 36 && id.starts_with("msg_")));
    }
}
