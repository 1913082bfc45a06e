//! The systems that are told: whether they can be reached. They are sent a `HEAD` without any secret, and no message:
//! `clerk-sync sinks test` does that.

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
    // All at once: one that hangs does not hold up the others.
    let mut asked = Vec::new();
    for sink in &given.config.sinks {
        let urls = urls(sink);
        let why_not = if is_mistaken(given, sink) {
            "the configuration does not say where it is"
        } else if urls.is_empty() {
            "where it is follows from its key, which is not there"
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

/// Whether the configuration has only a stand-in for its address.
fn is_mistaken(given: &Given, sink: &SinkConfig) -> bool {
    let mut keys = given.mistakes.iter().filter_map(|mistake| mistake.key_of_sink(&sink.name));
    keys.any(|key| key.ends_with("url"))
}

/// What is known of sinks that were told of users at another address, as far as the configuration says where they are.
pub(super) async fn told_elsewhere(store: &dyn Store, given: &Given) -> Vec<Finding> {
    let is_mistaken =
        |sink: &&SinkConfig| given.mistakes.iter().any(|mistake| mistake.key_of_sink(&sink.name).is_some());
    let mut findings = Vec::new();
    for sink in given.config.sinks.iter().filter(|sink| !is_mistaken(sink)) {
        let told = match timeout(PATIENCE, store.told_elsewhere(&sink.name, &sink.address())).await {
            Ok(Ok(told)) if told.users > 0 => told,
            _ => continue,
        };
        let moved = if told.moved { ", which it was last used at" } else { "" };
        findings.push(Finding::warn(
            &name(sink),
            format!(
                "it was told of {} at another address{moved}; there nobody erases them",
                count(told.users, "user", "users")
            ),
            format!(
                "point it back, and give the new system a name of its own; or if it is the same system, \
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
        return Finding::skip(&name(&sink), "the HTTP client cannot be made");
    };
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let test = format!("`clerk-sync sinks test {}`", sink.name);
    match client.head(url.clone()).send().await {
        // Any other status is that of an endpoint that wants a message: whether it takes one is another question.
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
                    format!("{host}, port {port}, takes connections and does not speak {scheme} as expected")
                })
            };
            Finding::fail(&name(&sink), Failure::UNREACHABLE, why, to_reach(&sink, host))
        }
    }
}
