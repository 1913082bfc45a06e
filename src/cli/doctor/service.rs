//! The running service: whether it has the same webhook secrets as this configuration.
//!
//! The service gets a signed event of a type that it answers and never records, so the answer is the only effect.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{configuration::Given, report::Finding};
use crate::{
    clerk::event,
    cli::{
        Failure, clock,
        healthcheck::reachable,
        post::{Answer, Poster},
        random_id,
    },
};

const CHECK: &str = "webhook secret";

/// `url` is the URL of the service, if the operator gave one.
pub(super) async fn check(given: &Given, url: Option<String>) -> Vec<Finding> {
    let config = &given.config;
    let secrets = &config.signing_secrets;
    if given.is_mistaken("CLERK_WEBHOOK_SIGNING_SECRET") && secrets.is_empty() {
        return vec![Finding::skip(CHECK, "there is no valid secret")];
    }
    let named = url.is_some();
    let Some(url) = url.or_else(|| usual_url(given)) else {
        return vec![Finding::skip(CHECK, "the address of the service is unknown: pass it with --url")];
    };
    let mut findings = Vec::new();
    for (place, secret) in secrets.iter().enumerate() {
        let which = match secrets.len() {
            1 => "the secret".to_owned(),
            several => format!("secret {} of {several}", place + 1),
        };
        let now = clock()();
        let sent = async {
            let poster = Poster::new(url.clone(), secret.clone())?;
            poster.post(&random_id("msg_"), &probe(now), now).await
        };
        match sent.await {
            Ok(answer) => findings.push(judge(&which, &answer)),
            Err(failure) => {
                let found = failure.message.split(": is clerk-sync").next().unwrap_or_default();
                return vec![if named {
                    let remedy = "start the service there, or correct --url";
                    // An invalid URL is an ordinary failure of this check.
                    let is_away = failure.code == Failure::UNREACHABLE;
                    let code = if is_away { failure.code } else { Failure::FAILED };
                    Finding::fail(CHECK, code, found, remedy)
                } else {
                    let remedy = "start it with `clerk-sync serve`, or pass its URL with --url";
                    Finding::warn(CHECK, format!("not tested, {found}"), remedy)
                }];
            }
        }
    }
    findings
}

/// The URL of the service that this configuration starts.
fn usual_url(given: &Given) -> Option<String> {
    let mistaken = ["HOST", "PORT"].iter().any(|variable| given.is_mistaken(variable));
    let listen = given.config.listen;
    (!mistaken && listen.port() != 0).then(|| {
        let address = SocketAddr::new(reachable(listen.ip()), listen.port());
        format!("http://{address}/webhooks/clerk")
    })
}

fn probe(now: DateTime<Utc>) -> String {
    let milliseconds = now.timestamp_millis();
    json!({ "type": event::PROBE, "object": "event", "timestamp": milliseconds, "data": {} }).to_string()
}

fn judge(which: &str, answer: &Answer) -> Finding {
    let status = answer.status.as_u16();
    let (found, remedy) = match (status, answer.word.as_str()) {
        (200, "ignored" | "duplicate") => {
            return Finding::ok(CHECK, format!("the running service accepts signatures of {which}"));
        }
        (403, "address_not_allowed") => {
            let why = "WEBHOOK_ALLOWED_IPS of the running service does not include this machine";
            return Finding::skip(CHECK, why);
        }
        (400, "invalid_signature") => (
            format!("the running service refuses signatures of {which}: invalid_signature"),
            "the running service has another CLERK_WEBHOOK_SIGNING_SECRET: restart it with this one, or correct this one with \
             the secret in Clerk's Dashboard (Webhooks, your endpoint, Signing Secret)",
        ),
        (400, word @ "timestamp_out_of_tolerance") => (
            format!("the running service refuses this machine's time as too far off: {word}"),
            "set the clocks of both machines by NTP: `timedatectl set-ntp true`",
        ),
        (429 | 500.., word) => {
            (format!("the running service answers {status} {word}"), "check its log, and /readyz")
        }
        (_, word) => (
            format!("the answer is not that of a service of this version: {status} {word}"),
            "check that PORT is that of clerk-sync, or pass the URL of the service with --url",
        ),
    };
    Finding::fail(CHECK, Failure::FAILED, found, remedy)
}
