//! `outbox`: the messages for other systems, as an operator sees and tends them. What they say is shown only on demand.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Failure, clock, confirm, count, open, say, sinks::no_sink, terminal::table};
use crate::{
    config::Settings,
    http,
    model::{Source, rfc3339},
    store::{MessageFilter, MessageState, Store, StoredMessage},
    sync::reveal::reveal,
    work::outbox::{Selection, Tally, discard, known_sinks, retry},
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
    #[arg(long, value_name = "ID", value_parser = number)]
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
    #[arg(value_name = "ID", value_parser = number)]
    id: i64,

    /// Also what it says, which is personal data; the audit trail tells of it
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
    #[arg(value_name = "ID", value_parser = number)]
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
        let (config, store) = open(settings, self.action.only_looks()).await?;
        let sinks: Vec<String> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        let result = self.action.run(&*store, &sinks, clock()()).await;
        store.close().await;
        result
    }
}

impl Action {
    fn only_looks(&self) -> bool {
        match self {
            Self::Ls(_) => true,
            Self::Show(show) => !show.reveal,
            Self::Retry(Retry { dry_run, .. }) | Self::Discard(Discard { dry_run, .. }) => *dry_run,
            Self::Pause(_) | Self::Resume(_) => false,
        }
    }

    /// `sinks` are those that are configured.
    async fn run(self, store: &dyn Store, sinks: &[String], now: DateTime<Utc>) -> Result<(), Failure> {
        match self {
            Self::Ls(ls) => ls.run(store, sinks).await,
            Self::Show(show) => show.run(store, now).await,
            Self::Retry(Retry { which, dry_run }) => {
                let tally = retry(store, &which.selection(), dry_run, now).await?;
                let left = "left: not dead, or later news of their users were delivered since";
                report(&tally, dry_run, ("would be tried again", "due again"), left);
                which.all_done(&tally, dry_run, store, sinks).await
            }
            Self::Discard(discard) => discard.run(store, sinks, now).await,
            Self::Pause(Name { sink }) => {
                check_sink(store, sinks, &sink).await?;
                store.set_paused(&sink, Some(now)).await?;
                say!("{sink} is paused: its messages wait until `clerk-sync outbox resume {sink}`");
                Ok(())
            }
            Self::Resume(Name { sink }) => {
                if !store.set_paused(&sink, None).await? {
                    check_sink(store, sinks, &sink).await?;
                    return Err(Failure::failed(format!("{sink} is not paused")));
                }
                say!("{sink} goes on");
                Ok(())
            }
        }
    }
}

/// Refuse a name that is no sink's: a typing error must not leave the real one running, nor look like an answer.
async fn check_sink(store: &dyn Store, configured: &[String], name: &str) -> Result<(), Failure> {
    // Of one that is configured no more there may be messages; to count them can take long.
    if configured.iter().any(|sink| sink == name) {
        return Ok(());
    }
    let known = known_sinks(store, configured).await?;
    if known.contains(name) { Ok(()) } else { Err(no_sink(name, known.iter().map(String::as_str))) }
}

impl Ls {
    async fn run(self, store: &dyn Store, sinks: &[String]) -> Result<(), Failure> {
        let filter = MessageFilter { sink: self.sink, state: self.state, after: self.after, ids: None };
        let messages = store.messages(&filter, self.limit).await?;
        if let Some(sink) = filter.sink.as_deref().filter(|_| messages.is_empty()) {
            check_sink(store, sinks, sink).await?;
        }
        if self.json {
            for message in messages {
                say!("{}", http::message_as_json(message));
            }
            return Ok(());
        }
        for (sink, since) in store.paused_sinks().await? {
            say!("{sink} is paused since {}", rfc3339(since));
        }
        if messages.is_empty() {
            say!("no messages");
            return Ok(());
        }
        let row = |message: &StoredMessage| {
            let next = match (message.next_attempt_at, message.state) {
                (Some(_), _) if message.taken => "under way".to_owned(),
                (Some(at), _) => rfc3339(at),
                (None, MessageState::Pending) => "after an older one".to_owned(),
                (None, _) => String::new(),
            };
            [
                message.id.to_string(),
                message.state.name().to_owned(),
                message.sink.clone(),
                message.kind.name(),
                message.clerk_id.to_string(),
                message.attempts.to_string(),
                next,
                message.last_error.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = messages.iter().map(row).collect();
        table(["ID", "STATE", "SINK", "TYPE", "USER", "ATTEMPTS", "NEXT", "ERROR"], &rows);
        if messages.len() == self.limit as usize
            && let Some(last) = messages.last()
        {
            say!("There may be more: say a larger --limit, or --after {}", last.id);
        }
        Ok(())
    }
}

impl Show {
    async fn run(self, store: &dyn Store, now: DateTime<Utc>) -> Result<(), Failure> {
        let this = MessageFilter { ids: Some(vec![self.id]), ..MessageFilter::default() };
        let found = store.messages(&this, 1).await?.pop();
        let message = found.ok_or_else(|| Failure::failed(format!("there is no message {}", self.id)))?;
        if self.reveal {
            reveal(store, &message.clerk_id, None, Source::Cli, now).await?;
        }
        let mut shown = http::message_as_json(message);
        if self.reveal {
            let body = store.message_body(self.id).await?;
            let body = body.map(|body| serde_json::from_str(&body).unwrap_or(Value::String(body)));
            shown["payload"] = body.unwrap_or_default();
        }
        say!("{}", serde_json::to_string_pretty(&shown).unwrap_or_default());
        Ok(())
    }
}

impl Discard {
    async fn run(self, store: &dyn Store, sinks: &[String], now: DateTime<Utc>) -> Result<(), Failure> {
        let selection = self.which.selection();
        if !self.dry_run && !self.yes {
            let Tally { found, deletions, .. } = discard(store, &selection, true, now).await?;
            if found > deletions {
                confirm(&format!("Give up {} for good?", count(found - deletions, "message", "messages")))?;
            }
        }
        let tally = discard(store, &selection, self.dry_run, now).await?;
        let left = "left: deletions, on their way, or finished already";
        report(&tally, self.dry_run, ("would be given up", "given up"), left);
        if tally.deletions > 0 {
            return Err(Failure::failed(format!(
                "{}: whoever was told of a user has to hear that they are gone. Mend the sink, and that goes by itself; \
                 `clerk-sync erase report` shows what is not confirmed",
                count(tally.deletions, "deletion stays", "deletions stay")
            )));
        }
        self.which.all_done(&tally, self.dry_run, store, sinks).await
    }
}

impl Which {
    /// Whatever is named must be there, and done.
    async fn all_done(
        &self,
        tally: &Tally,
        dry_run: bool,
        store: &dyn Store,
        sinks: &[String],
    ) -> Result<(), Failure> {
        if let Some(sink) = self.sink.as_deref().filter(|_| tally.found == 0) {
            return check_sink(store, sinks, sink).await;
        }
        let named: BTreeSet<i64> = self.ids.iter().copied().collect();
        if named.is_empty() {
            return Ok(());
        }
        let missing = (named.len() as u64).saturating_sub(tally.found);
        if missing > 0 {
            return Err(Failure::failed(format!(
                "{} not in the outbox",
                count(missing, "of those named is", "of those named are")
            )));
        }
        if tally.done < tally.found && !dry_run {
            return Err(Failure::failed(format!(
                "{} left alone: see `clerk-sync outbox show`",
                count(tally.found - tally.done, "of those named was", "of those named were")
            )));
        }
        Ok(())
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
        say!("{:>9}  {would}", tally.found - tally.deletions);
        return;
    }
    say!("{:>9}  {did}", tally.done);
    if tally.found > tally.done {
        say!("{:>9}  {left}", tally.found - tally.done);
    }
}

fn number(text: &str) -> Result<i64, &'static str> {
    text.parse().map_err(|_| "the number of a message is allowed, as `clerk-sync outbox ls` shows it")
}

fn state(text: &str) -> Result<MessageState, &'static str> {
    MessageState::named(text).ok_or("allowed are pending, dead, delivered and discarded")
}
