//! `outbox`: the messages for other systems, as an operator sees and tends them. What they say is shown only on demand.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Failure, clock, confirm, open, say};
use crate::{
    config::{Config, Settings},
    http,
    model::rfc3339,
    store::{MessageFilter, MessageState, Store},
    work::outbox::{Selection, Tally, discard, retry},
};

/// Messages for other systems: list, show, retry, discard; pause and resume a sink
#[derive(Args)]
pub(super) struct Outbox {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List messages, the oldest first
    Ls(Ls),
    /// Show one message
    Show(Show),
    /// Try dead messages again, unless later news of their users were delivered since
    Retry(Retry),
    /// Give up messages, and forget what they say; deletions are never given up
    Discard(Discard),
    /// Stop delivering to a sink; its messages wait
    Pause(Name),
    /// Deliver to a sink again
    Resume(Name),
}

#[derive(Args)]
struct Ls {
    /// Only for this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// Only in this state: pending, dead, delivered or discarded
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<MessageState>,

    /// Only after this message
    #[arg(long, value_name = "ID")]
    after: Option<i64>,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Print JSON, one message a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Show {
    /// The message's number, as `outbox ls` shows it
    #[arg(value_name = "ID")]
    id: i64,

    /// Also what it says: personal data
    #[arg(long)]
    reveal: bool,
}

#[derive(Args)]
struct Retry {
    #[command(flatten)]
    which: Which,

    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Discard {
    #[command(flatten)]
    which: Which,

    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// These messages, by their numbers
    #[arg(value_name = "ID")]
    ids: Vec<i64>,

    /// All dead ones for this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// All dead ones
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
struct Name {
    /// The sink's name
    #[arg(value_name = "SINK", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sink: String,
}

impl Outbox {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let (config, store) = open(settings, true).await?;
        let result = self.action.run(&*store, &config, clock()()).await;
        store.close().await;
        result
    }
}

impl Action {
    async fn run(self, store: &dyn Store, config: &Config, now: DateTime<Utc>) -> Result<(), Failure> {
        match self {
            Self::Ls(ls) => ls.run(store).await,
            Self::Show(show) => show.run(store).await,
            Self::Retry(Retry { which, dry_run }) => {
                let tally = retry(store, &which.selection(), dry_run, now).await?;
                let left = "left: not dead, or later news of their users were delivered since";
                report(&tally, dry_run, ("would be tried again", "due again"), left);
                which.all_found(&tally)
            }
            Self::Discard(discard) => discard.run(store, now).await,
            Self::Pause(Name { sink }) => {
                check_sink(store, config, &sink).await?;
                store.pause_sink(&sink, now).await?;
                say!("{sink} is paused: its messages wait until `clerk-sync outbox resume {sink}`");
                Ok(())
            }
            Self::Resume(Name { sink }) => {
                if !store.resume_sink(&sink).await? {
                    return Err(Failure::failed(format!("{sink} is not paused")));
                }
                say!("{sink} goes on");
                Ok(())
            }
        }
    }
}

/// A typing error must not leave the real one running.
async fn check_sink(store: &dyn Store, config: &Config, name: &str) -> Result<(), Failure> {
    let mut known: BTreeSet<String> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
    if known.contains(name) {
        return Ok(());
    }
    // Of one that is configured no more there may be messages; to count them can take long.
    known.extend(store.outbox_depth().await?.into_iter().map(|depth| depth.sink));
    if known.contains(name) {
        return Ok(());
    }
    let names = known.into_iter().collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "none".to_owned() } else { names };
    Err(Failure::usage(format!("there is no sink {name:?}; there are: {names}")))
}

impl Ls {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let filter = MessageFilter { sink: self.sink, state: self.state, after: self.after };
        let messages = store.messages(&filter, self.limit).await?;
        if self.json {
            for message in messages {
                say!("{}", http::message_as_json(message));
            }
            return Ok(());
        }
        for (sink, since) in store.paused_sinks().await? {
            say!("{sink} is paused since {}", rfc3339(since));
        }
        say!(
            "{:>8}  {:<9}  {:<16}  {:<12}  {:<32}  {:>8}  {:<24}  why",
            "id",
            "state",
            "sink",
            "type",
            "user",
            "attempts",
            "next"
        );
        for message in &messages {
            let next = match (message.next_attempt_at, message.state) {
                (Some(_), _) if message.taken => "under way".to_owned(),
                (Some(at), _) => rfc3339(at),
                (None, MessageState::Pending) => "after an older one".to_owned(),
                (None, _) => String::new(),
            };
            say!(
                "{:>8}  {:<9}  {:<16}  {:<12}  {:<32}  {:>8}  {next:<24}  {}",
                message.id,
                message.state.name(),
                message.sink,
                message.kind.name(),
                message.clerk_id.as_str(),
                message.attempts,
                message.last_error.as_deref().unwrap_or_default(),
            );
        }
        if messages.len() == self.limit as usize
            && let Some(last) = messages.last()
        {
            say!("There may be more: --after {}", last.id);
        }
        Ok(())
    }
}

impl Show {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let found = store.message(self.id).await?;
        let (message, payload) =
            found.ok_or_else(|| Failure::failed(format!("there is no message {}", self.id)))?;
        let mut shown = http::message_as_json(message);
        if self.reveal {
            let payload =
                payload.map(|payload| serde_json::from_str(&payload).unwrap_or(Value::String(payload)));
            shown["payload"] = payload.unwrap_or_default();
        }
        say!("{}", serde_json::to_string_pretty(&shown).unwrap_or_default());
        Ok(())
    }
}

impl Discard {
    async fn run(self, store: &dyn Store, now: DateTime<Utc>) -> Result<(), Failure> {
        let selection = self.which.selection();
        if !self.dry_run && !self.yes {
            let Tally { found, .. } = discard(store, &selection, true, now).await?;
            confirm(&format!("Give up {found} messages for good?"))?;
        }
        let tally = discard(store, &selection, self.dry_run, now).await?;
        let left = "left: deletions, on their way, or finished already";
        report(&tally, self.dry_run, ("would be given up", "given up"), left);
        self.which.all_found(&tally)
    }
}

impl Which {
    /// Whoever is named must be there.
    fn all_found(&self, tally: &Tally) -> Result<(), Failure> {
        let named: BTreeSet<i64> = self.ids.iter().copied().collect();
        let missing = (named.len() as u64).saturating_sub(tally.found);
        if missing == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!("{missing} of those named are not in the outbox")))
    }

    fn selection(&self) -> Selection {
        match &self.sink {
            Some(sink) => Selection::Sink(sink.clone()),
            None if self.all => Selection::All,
            None => Selection::Ids(self.ids.clone()),
        }
    }
}

fn report(tally: &Tally, dry_run: bool, (would, did): (&str, &str), left: &str) {
    if dry_run {
        say!("{:>9}  {would}", tally.found);
        return;
    }
    say!("{:>9}  {did}", tally.done);
    if tally.found > tally.done {
        say!("{:>9}  {left}", tally.found - tally.done);
    }
}

fn state(text: &str) -> Result<MessageState, &'static str> {
    MessageState::named(text).ok_or("allowed are pending, dead, delivered and discarded")
}
