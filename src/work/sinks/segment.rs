//! Segment, and servers that understand its HTTP API: `identify` when a user is created or updated, and a regulation that
//! suppresses and deletes the user when the user is erased.
//!
//! Source: <https://www.twilio.com/docs/segment/connections/sources/catalog/libraries/server/http-api>,
//! <https://docs.segmentapis.com/tag/Deletion-and-Suppression>,
//! <https://www.rudderstack.com/docs/api/user-suppression-api>.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    Again, InMemory, Memory, Outbound, Refusal, Sink,
    outbound::{Answer, under, with_json, within},
};
use crate::{
    entity::USER,
    model::{Happened, Message, MessageType, rfc3339},
};

/// The version of Segment's Public API that we use; it is also the content type.
const PUBLIC_API: HeaderValue = HeaderValue::from_static("application/vnd.segment.v1+json");

/// The longest accepted wait of a rate limit.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// A source in Segment, and the API that erases from its workspace.
pub struct Segment {
    pub outbound: Outbound,
    /// Where the tracking API is, without `/v1`.
    pub url: Url,
    pub write_key: SecretString,
    pub regulations: Regulations,
    pub timeout: Duration,
}

/// The API that takes erasure requests.
pub struct Regulations {
    /// Without `/regulations`.
    pub url: Url,
    pub token: SecretString,
    pub dialect: Dialect,
}

/// The form of an erasure request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Segment's Public API.
    Segment,
    /// `RudderStack`'s user suppression API; it applies to all destinations if the list is empty.
    RudderStack { destinations: Vec<String> },
}

#[async_trait]
impl Sink for Segment {
    async fn deliver(&self, message: &Message, _: &str, _: &dyn Memory) -> Result<(), Refusal> {
        within(self.timeout, async {
            match message.kind.what {
                Happened::Created | Happened::Updated => self.identify(message).await,
                Happened::Deleted => self.erase(message).await,
            }
        })
        .await
    }

    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        let memory = InMemory::default();
        self.deliver(message, body, &memory).await?;
        let deletion = Message { kind: MessageType::deleted(message.kind.entity), ..message.clone() };
        self.deliver(&deletion, body, &memory).await?;
        Ok(Vec::new())
    }
}

impl Segment {
    async fn identify(&self, message: &Message) -> Result<(), Refusal> {
        let call = identify(message, self.outbound.now()).ok_or_else(nobody)?;
        let request = self
            .outbound
            .client()
            .post(under(&self.url, &["v1", "identify"]))
            .basic_auth(self.write_key.expose_secret(), Some(""));
        self.outbound.post(with_json(request, &call), false).await
    }

    async fn erase(&self, message: &Message) -> Result<(), Refusal> {
        let clerk_id = message.clerk_id().ok_or_else(nobody)?;
        let (path, content_type, regulation) = match &self.regulations.dialect {
            Dialect::Segment => (
                ["regulations"].as_slice(),
                PUBLIC_API,
                json!({
                    "regulationType": "SUPPRESS_WITH_DELETE",
                    "subjectType": "USER_ID",
                    "subjectIds": [clerk_id.as_str()],
                }),
            ),
            Dialect::RudderStack { destinations } => {
                let mut regulation = json!({
                    "regulationType": "suppress_with_delete",
                    "users": [{ "userId": clerk_id.as_str() }],
                });
                if !destinations.is_empty() {
                    regulation["destinationIds"] = json!(destinations);
                }
                (["v2", "regulations"].as_slice(), HeaderValue::from_static("application/json"), regulation)
            }
        };
        let request = self
            .outbound
            .client()
            .post(under(&self.regulations.url, path))
            .bearer_auth(self.regulations.token.expose_secret())
            .header(CONTENT_TYPE, content_type)
            .body(regulation.to_string());
        let answer = self.outbound.send(request).await?;
        if answer.status.is_success() || already_asked_for(&answer) {
            return Ok(());
        }
        let mut refusal = answer.refusal();
        if refusal.again == Again::Later(None) && answer.status == StatusCode::TOO_MANY_REQUESTS {
            refusal.again = Again::Later(until_next(&answer));
        }
        Err(refusal)
    }
}

/// The errors of Segment's Public API.
fn errors(answer: &Answer) -> Vec<Value> {
    let body: Value = answer.json().unwrap_or_default();
    body["errors"].as_array().cloned().unwrap_or_default()
}

/// Whether the request was refused because an earlier one exists, which is the result that we want.
fn already_asked_for(answer: &Answer) -> bool {
    let says_so =
        |error: &Value| error["message"].as_str().is_some_and(|text| text.contains("already exists"));
    matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::CONFLICT)
        && errors(answer).iter().any(says_so)
}

/// Segment's Public API gives the wait in the body, not in `Retry-After`.
fn until_next(answer: &Answer) -> Option<Duration> {
    let wait = errors(answer).iter().find_map(|error| error["data"]["msBeforeNext"].as_u64())?;
    Some(Duration::from_millis(wait).min(LONGEST_WAIT))
}

/// The `identify` call of a message; `None` if the message names no user.
fn identify(message: &Message, now: DateTime<Utc>) -> Option<Value> {
    Some(json!({
        "userId": message.clerk_id()?.as_str(),
        "messageId": message.id,
        "timestamp": rfc3339(message.timestamp),
        "sentAt": rfc3339(now),
        "traits": traits(&message.data),
        "context": { "library": { "name": "clerk-sync", "version": env!("CARGO_PKG_VERSION") } },
    }))
}

/// The message's fields of the user, under Segment's own names where they exist. A null stays a null, which clears the trait.
fn traits(data: &Map<String, Value>) -> Map<String, Value> {
    data.iter()
        .filter_map(|(name, value)| {
            let name = match name.as_str() {
                "created_at" | "updated_at" | "test" => trait_of(name),
                name => trait_of(USER.named(name)?.name()),
            };
            Some((name, value.clone()))
        })
        .collect()
}

/// Segment's name for a column.
fn trait_of(name: &str) -> String {
    match name {
        "image_url" => "avatar".to_owned(),
        "phone_number" => "phone".to_owned(),
        name => {
            let mut words = name.split('_');
            let first = words.next().unwrap_or_default().to_owned();
            words.fold(first, |text, word| text + &word[..1].to_uppercase() + &word[1..])
        }
    }
}

fn nobody() -> Refusal {
    Refusal::never("the message names no user")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Field;

    fn time(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("in range")
    }

    fn message(data: &Value) -> Message {
        Message {
            id: "msg_1".to_owned(),
            kind: MessageType::updated(&USER),
            version: Message::VERSION,
            timestamp: time(1_700_000_000_123),
            data: data.as_object().expect("an object").clone(),
            changed_fields: Vec::new(),
        }
    }

    #[test]
    fn a_user_becomes_an_identify_call_in_segments_words() {
        let message = message(&json!({
            "clerk_id": "user_1", "email": "ada@example.com", "first_name": "Ada", "last_name": null,
            "image_url": "https://img.example/1", "phone_number": "+441234", "username": "ada",
            "created_at": "2023-11-14T22:13:20.000Z", "updated_at": "2023-11-14T22:13:20.123Z",
            "public_metadata": { "plan": "pro" }, "something_new": 1,
        }));
        let call = identify(&message, time(1_700_000_001_000)).expect("a user");
        assert_eq!(
            call,
            json!({
                "userId": "user_1", "messageId": "msg_1",
                "timestamp": "2023-11-14T22:13:20.123Z", "sentAt": "2023-11-14T22:13:21.000Z",
                "traits": {
                    "email": "ada@example.com", "firstName": "Ada", "lastName": null,
                    "avatar": "https://img.example/1", "phone": "+441234", "username": "ada",
                    "createdAt": "2023-11-14T22:13:20.000Z", "updatedAt": "2023-11-14T22:13:20.123Z",
                    "publicMetadata": { "plan": "pro" },
                },
                "context": { "library": { "name": "clerk-sync", "version": env!("CARGO_PKG_VERSION") } },
            })
        );
    }

    #[test]
    fn no_two_fields_become_the_same_trait() {
        let names = USER.fields().map(Field::name).chain(["created_at", "updated_at", "test"]);
        let mut traits: Vec<String> = names.map(trait_of).collect();
        traits.sort_unstable();
        let count = traits.len();
        traits.dedup();
        assert_eq!(traits.len(), count);
    }

    #[test]
    fn a_message_about_nobody_is_no_call() {
        assert_eq!(identify(&message(&json!({ "email": "ada@example.com" })), time(0)), None);
    }

    #[test]
    fn an_address_may_have_a_path_of_its_own() {
        for base in ["https://events.example/rudder", "https://events.example/rudder/"] {
            let url = under(&base.parse().expect("a URL"), &["v1", "identify"]);
            assert_eq!(url.as_str(), "https://events.example/rudder/v1/identify");
        }
        let url = under(&"https://api.segment.io".parse().expect("a URL"), &["v1", "identify"]);
        assert_eq!(url.as_str(), "https://api.segment.io/v1/identify");
    }
}
