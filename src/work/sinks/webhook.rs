//! Any HTTP endpoint: posts the stored message, signed according to Standard Webhooks, so that libraries that verify Svix's
//! deliveries also verify clerk-sync's.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::time::Duration;

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{RequestBuilder, StatusCode, header::CONTENT_TYPE};
use url::Url;

use super::{Memory, Outbound, Refusal, Sink};
use crate::{clerk::signature::Secret, model::Message};

/// An HTTP endpoint that receives posts.
pub struct Webhook {
    pub outbound: Outbound,
    pub url: Url,
    /// Each request is signed with all of them: while the receiver rotates secrets, both the old and the new one verify.
    pub secrets: Vec<Secret>,
    pub timeout: Duration,
}

#[async_trait]
impl Sink for Webhook {
    async fn deliver(&self, message: &Message, body: &str, _: &dyn Memory) -> Result<(), Refusal> {
        self.outbound.post(self.request(&message.id, body, &self.secrets), true).await
    }

    /// Sends the message twice: correctly signed, and signed with a random secret.
    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        let answer = self.outbound.send(self.request(&message.id, body, &self.secrets)).await?.taken()?;
        let mut doubts = Vec::new();
        // 202 and 204 need no body.
        if answer.is_empty() && ![StatusCode::ACCEPTED, StatusCode::NO_CONTENT].contains(&answer.status) {
            doubts.push(format!(
                "it answered {} with an empty body, like a proxy that accepts everything: check that the message arrived",
                answer.status
            ));
        }
        // A different id: receivers may skip an id that they have seen before they verify the signature.
        let stranger = Message { id: format!("{}f", message.id), ..message.clone() };
        let body = serde_json::to_string(&stranger).unwrap_or_default();
        let wrong = Secret::parse(&format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 24]>())));
        let wrong: Vec<Secret> = wrong.into_iter().collect();
        let request = self.request(&stranger.id, &body, &wrong);
        if self.outbound.send(request).await.is_ok_and(|answer| answer.status.is_success()) {
            doubts.push(
                "it also accepted a message with a wrong signature, so it does not verify signatures, and anyone can send it \
                 forged users: see docs/sinks.md"
                    .to_owned(),
            );
        }
        Ok(doubts)
    }
}

impl Webhook {
    fn request(&self, id: &str, body: &str, secrets: &[Secret]) -> RequestBuilder {
        // The time of this attempt: receivers refuse timestamps older than five minutes.
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
