//! `sinks`: lists the systems that receive changes, and tests whether they can be reached.

use std::sync::Arc;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use url::Url;

use super::{Failure, clock, count, on_store, random_id, resolve, say, why_no_connection};
use crate::{
    config::{Config, Needs, Settings, SinkConfig, SinkKind},
    entity::USER,
    model::{Field, Message, MessageType},
    work::{
        outbox::{DeliverySettings, Destination},
        sinks::{
            Outbound, Sink,
            mailchimp::Mailchimp,
            segment::{Dialect, Regulations, Segment},
            webhook::Webhook,
        },
    },
};

/// List the systems that receive changes, or test one
#[derive(Args)]
pub(super) struct Sinks {
    #[command(subcommand)]
    command: Option<SinksCommand>,
}

#[derive(Subcommand)]
enum SinksCommand {
    /// Send a test message, and one with a wrong signature if messages are signed; exits with 0 if the test message was accepted,
    /// 1 if it was refused, 69 without an answer
    Test {
        /// The sink's name in clerk-sync.toml
        name: String,
    },
    /// Declare that a sink with a new address is the same system as before, or that the system at the old address holds no users.
    /// Users sent to the old address count as sent to the new one, and their erasures as done once the new one confirms them
    Moved {
        /// The sink's name in clerk-sync.toml
        name: String,

        /// Only print how many users were sent to another address
        #[arg(long)]
        dry_run: bool,
    },
}

impl Sinks {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        match self.command {
            None => list(settings),
            Some(SinksCommand::Test { name }) => test(settings, &name).await,
            Some(SinksCommand::Moved { name, dry_run }) => moved(settings, &name, dry_run).await,
        }
    }
}

fn list(settings: &Settings) -> Result<(), Failure> {
    let config = resolve(settings)?;
    let Some(file) = &config.config_file else {
        say!("There are no sinks: there is no clerk-sync.toml, and CONFIG_FILE (--config) is not set.");
        return Ok(());
    };
    say!("{} names {}", file.display(), count(config.sinks.len() as u64, "sink", "sinks"));
    // Listing sinks needs no secrets; delivering to them does.
    let mistakes = settings.diagnose(Needs { sink_secrets: true, ..Needs::default() }).mistakes;
    for sink in &config.sinks {
        let events: Vec<String> = sink.events.iter().map(|event| event.name()).collect();
        let fields: Vec<&str> = sink.fields.fields(&USER).of(&USER).map(Field::name).collect();
        say!();
        say!("{}", sink.name);
        say!("  kind     {}", sink.kind.name());
        say!("  host     {}", sink.host());
        say!("  events   {}", events.join(", "));
        say!("  fields   {}", fields.join(", "));
        for (key, mistake) in mistakes.iter().filter_map(|of| Some((of.key_of_sink(&sink.name)?, of))) {
            say!("  wrong    {key}: {}", mistake.explanation);
        }
    }
    if !config.sinks.is_empty() {
        say!();
        say!(
            "`clerk-sync doctor` checks whether they answer, `clerk-sync sinks test NAME` sends a test message."
        );
    }
    Ok(())
}

async fn test(settings: &Settings, name: &str) -> Result<(), Failure> {
    let sink = configured(settings, name)?;
    let outbound = outbound()?;
    let message = sample(&sink, Utc::now());
    let body = serde_json::to_string(&message).context("the message cannot be serialised")?;
    let began = Instant::now();
    let answer = open(&sink, &outbound)?.test(&message, &body).await;
    let took = began.elapsed().as_millis();
    let host = sink.host();
    let refusal = match answer {
        Ok(doubts) => {
            say!("{name} accepted the test message in {took} ms");
            for doubt in doubts {
                say!("warning: {doubt}");
            }
            return Ok(());
        }
        Err(refusal) => refusal,
    };
    let told = format!("{name} at {host} after {took} ms: {refusal}");
    if refusal.is_unreachable() {
        // With several addresses, the error does not say which one was not reached.
        let mut why = String::new();
        for url in urls(&sink) {
            why.extend(why_not_reached(url).await.map(|why| format!(", {why}")));
        }
        return Err(Failure::unreachable(format!("{told}{why}\n  → {}", to_reach(&sink, host))));
    }
    Err(Failure::failed(format!(
        "{told}\n  → fix it at {host}, or correct its settings in clerk-sync.toml; docs/sinks.md explains each answer. Messages \
         that it did not accept: `clerk-sync outbox ls --sink {name}`"
    )))
}

async fn moved(settings: &Settings, name: &str, dry_run: bool) -> Result<(), Failure> {
    // The address may depend on the sink's secrets.
    let address = configured(settings, name)?.address();
    on_store(settings, dry_run, async |_, store| {
        let users = count(store.told_elsewhere(name, &address).await?.users, "user", "users");
        let mut same = "";
        if !dry_run {
            store.point_sink(name, &address, true, clock()()).await?;
            same = ", and now counts as the same system";
        }
        say!("{name} received {users} at another address{same}");
        Ok(())
    })
    .await
}

/// The sink of this name, with its secrets.
fn configured(settings: &Settings, name: &str) -> Result<SinkConfig, Failure> {
    let config = settings.resolve(Needs { sink_secrets: true, ..Needs::default() })?;
    let sink = config.sinks.iter().find(|sink| sink.name == name);
    let known = config.sinks.iter().map(|sink| sink.name.as_str());
    sink.cloned().ok_or_else(|| no_sink(name, known))
}

/// The URLs that a sink uses.
pub(super) fn urls(sink: &SinkConfig) -> Vec<&Url> {
    match &sink.kind {
        SinkKind::Webhook(webhook) => vec![&webhook.url],
        SinkKind::Segment(segment) => vec![&segment.url, &segment.regulations.url],
        SinkKind::Mailchimp(mailchimp) => mailchimp.url.iter().collect(),
    }
}

/// Why a connection to a URL fails; `None` if it succeeds.
pub(super) async fn why_not_reached(url: &Url) -> Option<String> {
    let host = url.host_str().unwrap_or_default();
    why_no_connection(host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or_default()).await
}

/// What to do about a sink that cannot be reached at this host.
pub(super) fn to_reach(sink: &SinkConfig, host: &str) -> String {
    let name = &sink.name;
    format!(
        "check that {host} runs and is reachable from here, or correct its url in clerk-sync.toml; then run `clerk-sync sinks \
         test {name}`. Messages wait meanwhile: `clerk-sync outbox ls --sink {name}`"
    )
}

/// The error for an unknown sink.
pub(super) fn no_sink<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known: Vec<&str> = known.collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Failure::usage(format!("there is no sink {name:?}; known: {known}"))
}

/// All sinks, ready for delivery.
pub(super) fn destinations(config: &Config) -> Result<Vec<Destination>, Failure> {
    if let Some(file) = &config.config_file {
        tracing::info!(file = %file.display(), sinks = config.sinks.len(), "configuration file read");
    }
    if config.sinks.is_empty() {
        return Ok(Vec::new());
    }
    let outbound = outbound()?;
    let destination = |sink: &SinkConfig| {
        Ok(Destination {
            subscription: sink.subscription(),
            settings: DeliverySettings {
                timeout: sink.timeout,
                concurrency: sink.concurrency,
                rate: sink.rate,
                attempts: sink.attempts,
            },
            sink: open(sink, &outbound)?,
            address: sink.address(),
        })
    };
    config.sinks.iter().map(destination).collect()
}

/// The outgoing HTTP client for all sinks of this process.
fn outbound() -> Result<Outbound, Failure> {
    Ok(Outbound::new(clock()).context("the HTTP client could not be created")?)
}

/// A sink as the dispatcher needs it.
fn open(sink: &SinkConfig, outbound: &Outbound) -> Result<Arc<dyn Sink>, Failure> {
    let (outbound, timeout) = (outbound.clone(), sink.timeout);
    Ok(match sink.kind.clone() {
        SinkKind::Webhook(webhook) => {
            Arc::new(Webhook { outbound, url: webhook.url, secrets: webhook.secrets, timeout })
        }
        SinkKind::Segment(segment) => {
            let regulations = segment.regulations;
            let dialect = match regulations.rudderstack {
                None => Dialect::Segment,
                Some(destinations) => Dialect::RudderStack { destinations },
            };
            Arc::new(Segment {
                outbound,
                url: segment.url,
                write_key: segment.write_key,
                regulations: Regulations { url: regulations.url, token: regulations.token, dialect },
                timeout,
            })
        }
        SinkKind::Mailchimp(mailchimp) => Arc::new(Mailchimp {
            outbound,
            url: mailchimp.url.context("the address of Mailchimp is not known")?,
            api_key: mailchimp.api_key,
            list_id: mailchimp.list_id,
            status_if_new: mailchimp.status_if_new,
            tags: mailchimp.tags,
            clerk_id_merge_field: mailchimp.clerk_id_merge_field,
            timeout,
        }),
    })
}

/// A made-up user, with `"test": true` alongside the fields that the sink may receive.
fn sample(sink: &SinkConfig, now: DateTime<Utc>) -> Message {
    let mut data = Map::new();
    data.insert("clerk_id".to_owned(), json!(random_id("user_test_")));
    data.insert("test".to_owned(), json!(true));
    data.insert("created_at".to_owned(), json!(now));
    data.insert("updated_at".to_owned(), json!(now));
    for field in sink.fields.fields(&USER).of(&USER) {
        let value = match field.name() {
            "email" => json!("test@clerk-sync.example"),
            "first_name" => json!("Test"),
            "last_name" => json!("clerk-sync"),
            _ => Value::Null,
        };
        data.insert(field.name().to_owned(), value);
    }
    Message {
        id: format!("msg_{:032x}", rand::random::<u128>()),
        kind: MessageType::created(&USER),
        version: Message::VERSION,
        timestamp: now,
        data,
        changed_fields: Vec::new(),
    }
}
