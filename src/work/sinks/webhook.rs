//! Any HTTP endpoint: the message as it is stored, signed by Standard Webhooks, so that the libraries that verify
//! Svix's deliveries verify ours.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::CONTENT_TYPE;
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
        // The time is that of the attempt: receivers refuse what is older than five minutes.
        let now = self.outbound.now();
        let signatures: Vec<String> =
            self.secrets.iter().map(|secret| secret.sign(&message.id, now, body.as_bytes())).collect();
        let request = self
            .outbound
            .client()
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", now.timestamp().to_string())
            .header("webhook-signature", signatures.join(" "))
            .timeout(self.timeout)
            .body(body.to_owned());
        self.outbound.post_traced(request).await?.taken()?;
        Ok(())
    }
}
