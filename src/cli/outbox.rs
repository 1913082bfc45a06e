//! `outbox`: the messages for other systems, as an operator sees and tends them. What they say is shown only on demand.

use std::io::{IsTerminal, Write, stdin, stdout};

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, clock, open_store, resolve, say, service::init_log};
use crate::{
    config::Settings,
    store::{MessageFilter, MessageState, Readiness, Store, StoredMessage},
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
        let config = resolve(settings)?;
        init_log(&config)?;
        let store = open_store(&config).await?;
        if store.ready().await? != Readiness::Ready {
            return Err(Failure::failed("migrations are pending: run `clerk-sync migrate` first"));
        }
        let result = self.action.run(&*store, clock()()).await;
        store.close().await;
        result
    }
}

impl Action {
    async fn run(self, store: &dyn Store, now: DateTime<Utc>) -> Result<(), Failure> {
        match self {
            Self::Ls(ls) => ls.run(store).await,
            Self::Show(show) => show.run(store).await,
            Self::Retry(Retry { which, dry_run }) => {
                let tally = retry(store, &which.selection(), dry_run, now).await?;
                let left = "left: not dead, or later news of their users were delivered since";
                report(&tally, dry_run, ("would be tried again", "due again"), left);
                Ok(())
            }
            Self::Discard(discard) => discard.run(store, now).await,
            Self::Pause(Name { sink }) => {
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

impl Ls {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let filter = MessageFilter { sink: self.sink, state: self.state, after: self.after };
        let messages = store.messages(&filter, self.limit).await?;
        if self.json {
            for message in &messages {
                say!("{}", as_json(message));
            }
            return Ok(());
        }
        for (sink, since) in store.paused_sinks().await? {
            say!("{sink} is paused since {}", time(since));
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
                (Some(at), _) => time(at),
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
        let mut shown = as_json(&message);
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
        Ok(())
    }
}

impl Which {
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

/// Ask whoever sits there; nobody there is no consent.
fn confirm(question: &str) -> Result<(), Failure> {
    if !stdin().is_terminal() {
        return Err(Failure { code: 2, message: format!("{question} Say --yes, for nobody can be asked") });
    }
    let _ = write!(stdout(), "{question} [y/N] ");
    let _ = stdout().flush();
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { Err(Failure::failed("nothing was done")) }
}

fn as_json(message: &StoredMessage) -> Value {
    json!({
        "id": message.id,
        "message_id": message.message_id,
        "sink": message.sink,
        "clerk_id": message.clerk_id.as_str(),
        "type": message.kind.name(),
        "state": message.state.name(),
        "attempts": message.attempts,
        "next_attempt_at": message.next_attempt_at.map(time),
        "under_way": message.taken,
        "created_at": time(message.created_at),
        "finished_at": message.finished_at.map(time),
        "last_error": message.last_error,
    })
}

fn state(text: &str) -> Result<MessageState, &'static str> {
    MessageState::named(text).ok_or("allowed are pending, dead, delivered and discarded")
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
