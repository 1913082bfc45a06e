//! Any HTTP endpoint: the message as it is stored, signed by Standard Webhooks, so that the libraries that verify
//! Svix's deliveries verify ours.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::time::Duration;

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{RequestBuilder, StatusCode, header::CONTENT_TYPE};
use url::Url;

use super::{Memory, Outbound, Refusal, Sink};
use crate::{clerk::signature::Secret, model::Message};

/// An endpoint that is posted to.
pub struct Webhook {
    pub outbound: Outbound,
    pub url: Url,
    /// With each of them: while the receiver changes from one to the next, either one verifies.
    pub secrets: Vec<Secret>,
    pub timeout: Duration,
}

#[async_trait]
impl Sink for Webhook {
    async fn deliver(&self, message: &Message, body: &str, _: &dyn Memory) -> Result<(), Refusal> {
        self.outbound.post(self.request(&message.id, body, &self.secrets), true).await
    }

    /// The message twice: as it should be, and signed with a secret that nobody has.
    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        let answer = self.outbound.send(self.request(&message.id, body, &self.secrets)).await?.taken()?;
        let mut doubts = Vec::new();
        // 202 and 204 have nothing to say.
        if answer.is_empty() && ![StatusCode::ACCEPTED, StatusCode::NO_CONTENT].contains(&answer.status) {
            doubts.push(format!(
                "it answered {} with nothing in it, as a proxy does that takes everything: see that the message arrived",
                answer.status
            ));
        }
        // Not of the same id: receivers may pass over what they have seen before they verify it.
        let stranger = Message { id: format!("{}f", message.id), ..message.clone() };
        let body = serde_json::to_string(&stranger).unwrap_or_default();
        let wrong = Secret::parse(&format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 24]>())));
        let wrong: Vec<Secret> = wrong.into_iter().collect();
        let request = self.request(&stranger.id, &body, &wrong);
        if self.outbound.send(request).await.is_ok_and(|answer| answer.status.is_success()) {
            doubts.push(
                "it took a message with a wrong signature as well, so it does not verify them, and anybody can tell it of \
                 users: see docs/sinks.md"
                    .to_owned(),
            );
        }
        Ok(doubts)
    }
}

impl Webhook {
    fn request(&self, id: &str, body: &str, secrets: &[Secret]) -> RequestBuilder {
        // The time is that of the attempt: receivers refuse what is older than five minutes.
        let now = self.outbound.now();
        let signatures: Vec<String> =
            secrets.iter().map(|secret| secret.sign(id, now, body.as_bytes())).collect();
        self.outbound
            .client()
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", now.timestamp().to_string())
            .header("webhook-signature", signatures.join(" "))
            .timeout(self.timeout)
            .body(body.to_owned())
    }
}
