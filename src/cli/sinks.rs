//! `sinks`: which other systems are told, and whether they can be.

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

/// List the systems that are told of changes, or try one out
#[derive(Args)]
pub(super) struct Sinks {
    #[command(subcommand)]
    command: Option<SinksCommand>,
}

#[derive(Subcommand)]
enum SinksCommand {
    /// Send a message that is marked as a test, and one with a wrong signature where messages are signed; exits with 0 if
    /// it was taken, 1 if it was refused, 69 without an answer
    Test {
        /// The sink's name in clerk-sync.toml
        name: String,
    },
    /// Say that a sink whose address has changed is the same system as before, or that nobody is left at its old one: users
    /// whom it was told of there count as told of at the new one, and their erasures as done once it confirms them
    Moved {
        /// The sink's name in clerk-sync.toml
        name: String,

        /// Only say of how many users it was told elsewhere
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
        say!(
            "No system is told: there is no clerk-sync.toml, and CONFIG_FILE (--config) names no other file."
        );
        return Ok(());
    };
    say!("{} names {}", file.display(), count(config.sinks.len() as u64, "sink", "sinks"));
    // To be listed they need no secrets; to be told they do.
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
            "`clerk-sync doctor` looks whether they answer, `clerk-sync sinks test NAME` sends a test message."
        );
    }
    Ok(())
}

async fn test(settings: &Settings, name: &str) -> Result<(), Failure> {
    let sink = configured(settings, name)?;
    let outbound = outbound()?;
    let message = sample(&sink, Utc::now());
    let body = serde_json::to_string(&message).context("a message cannot be written")?;
    let began = Instant::now();
    let answer = open(&sink, &outbound)?.test(&message, &body).await;
    let took = began.elapsed().as_millis();
    let host = sink.host();
    let refusal = match answer {
        Ok(doubts) => {
            say!("{name} took the test message in {took} ms");
            for doubt in doubts {
                say!("warning: {doubt}");
            }
            return Ok(());
        }
        Err(refusal) => refusal,
    };
    let told = format!("{name} at {host} after {took} ms: {refusal}");
    if refusal.is_unreachable() {
        // Of several addresses the message does not say which one was not reached.
        let mut why = String::new();
        for url in urls(&sink) {
            why.extend(why_not_reached(url).await.map(|why| format!(", {why}")));
        }
        return Err(Failure::unreachable(format!("{told}{why}\n  → {}", to_reach(&sink, host))));
    }
    Err(Failure::failed(format!(
        "{told}\n  → mend it at {host}, or its settings in clerk-sync.toml; docs/sinks.md says what each answer means. What it \
         did not take: `clerk-sync outbox ls --sink {name}`"
    )))
}

async fn moved(settings: &Settings, name: &str, dry_run: bool) -> Result<(), Failure> {
    // Which system it is may follow from its secrets.
    let address = configured(settings, name)?.address();
    on_store(settings, dry_run, async |_, store| {
        let users = count(store.told_elsewhere(name, &address).await?.users, "user", "users");
        let mut same = "";
        if !dry_run {
            store.point_sink(name, &address, true, clock()()).await?;
            same = ", and is now taken for the same system";
        }
        say!("{name} was told of {users} while it was at another address{same}");
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

/// Where a sink is spoken to.
pub(super) fn urls(sink: &SinkConfig) -> Vec<&Url> {
    match &sink.kind {
        SinkKind::Webhook(webhook) => vec![&webhook.url],
        SinkKind::Segment(segment) => vec![&segment.url, &segment.regulations.url],
        SinkKind::Mailchimp(mailchimp) => mailchimp.url.iter().collect(),
    }
}

/// Why nobody can connect to an address; `None` if one can.
pub(super) async fn why_not_reached(url: &Url) -> Option<String> {
    let host = url.host_str().unwrap_or_default();
    why_no_connection(host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or_default()).await
}

/// What to do about a sink that cannot be reached at this host.
pub(super) fn to_reach(sink: &SinkConfig, host: &str) -> String {
    let name = &sink.name;
    format!(
        "see that {host} runs and can be reached from here, or correct its url in clerk-sync.toml; then `clerk-sync sinks \
         test {name}`. Messages wait meanwhile: `clerk-sync outbox ls --sink {name}`"
    )
}

/// What to say of a name that is no sink's.
pub(super) fn no_sink<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known: Vec<&str> = known.collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Failure::usage(format!("there is no sink {name:?}; known: {known}"))
}

/// All sinks, ready to be spoken to.
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

/// The way out for all sinks of this process.
fn outbound() -> Result<Outbound, Failure> {
    Ok(Outbound::new(clock()).context("the HTTP client could not be made")?)
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

/// An invented user, with `"test": true` beside what the sink may know.
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
