//! Posting signed events, as Svix would.

use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use reqwest::{Client, StatusCode};
use serde_json::Value;

use super::Failure;
use crate::{
    clerk::{api, signature::Secret},
    http_client,
};

/// As long as Svix waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// In bytes. The service's answers are much shorter: a longer one comes from another program.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// A client that posts signed events to one URL.
pub(super) struct Poster {
    client: Client,
    url: String,
    secret: Secret,
}

/// The response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The `status` of a success or the `code` of an error, if clerk-sync answered.
    pub(super) word: String,
    /// The message of an error.
    pub(super) message: String,
    /// Whether clerk-sync answered. Any server can answer 200.
    pub(super) is_ours: bool,
}

impl Poster {
    pub(super) fn new(url: String, secret: Secret) -> Result<Self, Failure> {
        let client = http_client::builder().timeout(PATIENCE).build();
        let client = client.context("the HTTP client could not be created")?;
        Ok(Self { client, url, secret })
    }

    /// Post a body under this id, signed now.
    pub(super) async fn post(
        &self,
        svix_id: &str,
        body: &str,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let signature = self.secret.sign(svix_id, now, body.as_bytes());
        self.post_signed(svix_id, body, now, &signature).await
    }

    /// Post a body with any signature.
    pub(super) async fn post_signed(
        &self,
        svix_id: &str,
        body: &str,
        now: DateTime<Utc>,
        signature: &str,
    ) -> Result<Answer, Failure> {
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("svix-id", svix_id)
            .header("svix-timestamp", now.timestamp().to_string())
            .header("svix-signature", signature)
            .body(body.to_owned());
        let mut answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let answered =
            api::body(&mut answer, LONGEST_ANSWER).await.map_err(|error| self.unreachable(&error))?;
        let json: Value = serde_json::from_slice(&answered.unwrap_or_default()).unwrap_or_default();
        let word = if status.is_success() {
            // clerk-sync's answer contains the id of the delivery.
            json["status"].as_str().filter(|_| json["id"] == svix_id)
        } else {
            json["error"]["code"].as_str()
        };
        let message = match word {
            Some(_) => json["error"]["message"].as_str().unwrap_or_default(),
            None => {
                "another program answers there, such as a proxy, and the event was not received: does --url point to clerk-sync?"
            }
        };
        Ok(Answer {
            status,
            word: word.unwrap_or("(not clerk-sync's answer)").to_owned(),
            message: message.to_owned(),
            is_ours: word.is_some(),
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_builder() {
            return Failure::usage("--url is not a URL that accepts POST");
        }
        let why = if error.is_timeout() { "no answer in time from" } else { "no connection to" };
        // A URL may contain a password: the part before the @ is not shown.
        let place = url::Url::parse(&self.url).ok().and_then(|url| {
            let (host, port) = (url.host_str()?, url.port_or_known_default()?);
            Some(format!("{}://{host}:{port}{}", url.scheme(), url.path()))
        });
        Failure::unreachable(format!(
            "{why} {}: is clerk-sync running there? Use --url for another address",
            place.unwrap_or_default()
        ))
    }
}
