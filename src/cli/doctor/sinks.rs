//! The sinks: whether they can be reached. Each gets a `HEAD` request without secrets, and no message:
//! `clerk-sync sinks test` sends one.

use std::{future::ready, time::Duration};

use tokio::time::timeout;
use url::Url;

use super::{configuration::Given, report::Finding};
use crate::{
    cli::{
        Failure, count,
        sinks::{to_reach, urls, why_not_reached},
    },
    config::SinkConfig,
    http_client,
    store::Store,
};

const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(given: &Given) -> Vec<Finding> {
    // All at once, so that one that hangs does not delay the others.
    let mut asked = Vec::new();
    for sink in &given.config.sinks {
        let urls = urls(sink);
        let why_not = if is_mistaken(given, sink) {
            "the configuration does not give its address"
        } else if urls.is_empty() {
            "its address depends on its key, which is not set"
        } else {
            asked.extend(urls.into_iter().map(|url| tokio::spawn(reach(sink.clone(), url.clone()))));
            continue;
        };
        asked.push(tokio::spawn(ready(Finding::skip(&name(sink), why_not))));
    }
    let mut findings = Vec::new();
    for answer in asked {
        findings.extend(answer.await);
    }
    findings
}

/// Whether the configuration holds only a placeholder for its address.
fn is_mistaken(given: &Given, sink: &SinkConfig) -> bool {
    let mut keys = given.mistakes.iter().filter_map(|mistake| mistake.key_of_sink(&sink.name));
    keys.any(|key| key.ends_with("url"))
}

/// Findings for sinks that received users at another address, where the configuration gives their present one.
pub(super) async fn told_elsewhere(store: &dyn Store, given: &Given) -> Vec<Finding> {
    let is_mistaken =
        |sink: &&SinkConfig| given.mistakes.iter().any(|mistake| mistake.key_of_sink(&sink.name).is_some());
    let mut findings = Vec::new();
    for sink in given.config.sinks.iter().filter(|sink| !is_mistaken(sink)) {
        let told = match timeout(PATIENCE, store.told_elsewhere(&sink.name, &sink.address())).await {
            Ok(Ok(told)) if told.users > 0 => told,
            _ => continue,
        };
        let moved = if told.moved { ", the last one that it used" } else { "" };
        findings.push(Finding::warn(
            &name(sink),
            format!(
                "it received {} at another address{moved}, where clerk-sync no longer erases them",
                count(told.users, "user", "users")
            ),
            format!(
                "restore the old address, and give the new system another name; or if it is the same system, run \
                 `clerk-sync sinks moved {}`",
                sink.name
            ),
        ));
    }
    findings
}

fn name(sink: &SinkConfig) -> String {
    format!("sink {}", sink.name)
}

async fn reach(sink: SinkConfig, url: Url) -> Finding {
    let Ok(client) = http_client::builder().connect_timeout(PATIENCE).timeout(PATIENCE).build() else {
        return Finding::skip(&name(&sink), "the HTTP client cannot be created");
    };
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let test = format!("`clerk-sync sinks test {}`", sink.name);
    match client.head(url.clone()).send().await {
        // Any other status comes from an endpoint that expects a message; this check does not test whether it accepts one.
        Ok(answer) if answer.status().is_server_error() => Finding::warn(
            &name(&sink),
            format!("{host} is reachable, and answers {}", answer.status()),
            format!("{test} sends a test message; messages wait meanwhile"),
        ),
        Ok(_) => Finding::ok(&name(&sink), format!("{host} is reachable")),
        Err(error) => {
            let why = if error.is_timeout() {
                format!("no answer in time from {host}, port {port}")
            } else {
                why_not_reached(&url).await.unwrap_or_else(|| {
                    let scheme = url.scheme();
                    format!(
                        "{host}, port {port}, accepts connections but does not speak {scheme} as expected"
                    )
                })
            };
            Finding::fail(&name(&sink), Failure::UNREACHABLE, why, to_reach(&sink, host))
        }
    }
}
