//! `outbox`: lists and manages the messages for other systems. Their contents are shown only on request.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use serde_json::Value;

use super::{
    Failure, clock, count, open,
    operator::{Choice, Discard, Retry},
    say,
    sinks::no_sink,
    terminal::table,
};
use crate::{
    config::Settings,
    model::{Source, rfc3339},
    store::{MessageFilter, MessageState, Store, StoredMessage},
    sync::{
        operator::{Tally, Which, known_sinks},
        reveal,
    },
};

/// Messages for other systems: list, show, retry, discard; pause and resume a sink
#[derive(Args)]
pub(super) struct Outbox {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List messages, oldest first
    Ls {
        /// Only for this sink
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,

        /// Only in this state: pending, dead, delivered or discarded
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<MessageState>,

        /// Only messages after this one
        #[arg(long, value_name = "ID", value_parser = number)]
        after: Option<i64>,

        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,

        /// Print one JSON object per message, one per line
        #[arg(long)]
        json: bool,
    },
    /// Show one message
    Show {
        /// The message's number, as `outbox ls` shows it
        #[arg(value_name = "ID", value_parser = number)]
        id: i64,

        /// Also show the contents, which are personal data; the audit trail records this
        #[arg(long)]
        reveal: bool,
    },
    /// Retry dead messages, unless a later message about the same user was delivered since
    Retry(Retry<Selection>),
    /// Discard messages and delete their contents; deletions are never discarded
    Discard(Discard<Selection>),
    /// Stop delivering to a sink; its messages wait
    Pause {
        /// The sink's name
        #[arg(value_name = "SINK", value_parser = NonEmptyStringValueParser::new())]
        sink: String,
    },
    /// Deliver to a sink again
    Resume {
        /// The sink's name
        #[arg(value_name = "SINK", value_parser = NonEmptyStringValueParser::new())]
        sink: String,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Selection {
    /// These messages, by their numbers
    #[arg(value_name = "ID", value_parser = number)]
    ids: Vec<i64>,

    /// All dead messages for this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// All dead messages
    #[arg(long)]
    all: bool,
}

impl Outbox {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let only_looks = match &self.action {
            Action::Ls { .. } => true,
            Action::Show { reveal, .. } => !reveal,
            Action::Retry(Retry { dry_run, .. }) | Action::Discard(Discard { dry_run, .. }) => *dry_run,
            Action::Pause { .. } | Action::Resume { .. } => false,
        };
        let (config, store) = open(settings, only_looks).await?;
        let sinks: Vec<String> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        let result = self.action.run(&*store, &sinks).await;
        store.close().await;
        result
    }
}

impl Action {
    /// `sinks` are the configured ones.
    async fn run(self, store: &dyn Store, sinks: &[String]) -> Result<(), Failure> {
        match self {
            Self::Ls { sink, state, after, limit, json } => {
                let filter = MessageFilter { sink, state, after, ids: None };
                let messages = store.messages(&filter, limit).await?;
                if let Some(sink) = filter.sink.as_deref().filter(|_| messages.is_empty()) {
                    check_sink(store, sinks, sink).await?;
                }
                if json {
                    for message in messages {
                        say!("{}", serde_json::to_value(message).unwrap_or_default());
                    }
                    return Ok(());
                }
                for (sink, since) in store.paused_sinks().await? {
                    say!("{sink} has been paused since {}", rfc3339(since));
                }
                list(&messages);
                if let Some(last) = messages.last().filter(|_| messages.len() == limit as usize) {
                    say!("There may be more: use a larger --limit, or --after {}", last.id);
                }
            }
            Self::Show { id, reveal } => {
                let this = MessageFilter { ids: Some(vec![id]), ..MessageFilter::default() };
                let found = store.messages(&this, 1).await?.pop();
                let message = found.ok_or_else(|| Failure::failed(format!("there is no message {id}")))?;
                let mut shown = serde_json::to_value(&message).unwrap_or_default();
                if reveal {
                    reveal::reveal(store, &message.clerk_id, None, Source::Cli, clock()()).await?;
                    let body = store.message_body(id).await?;
                    let body = body.map(|body| serde_json::from_str(&body).unwrap_or(Value::String(body)));
                    shown["payload"] = body.unwrap_or_default();
                }
                say!("{}", serde_json::to_string_pretty(&shown).unwrap_or_default());
            }
            Self::Retry(retry) => {
                let tally = retry.run(store, "would be retried", "due again").await?;
                let why = "not dead, or a later message about the same user was delivered since";
                return retry.choice.finished(&tally, retry.dry_run, why, store, sinks).await;
            }
            Self::Discard(discard) => {
                let question =
                    |number| format!("Discard {} permanently?", count(number, "message", "messages"));
                let tally = discard.run(store, question, "would be discarded", "discarded").await?;
                let why = "deletions, being delivered, or already finished";
                return discard.choice.finished(&tally, discard.dry_run, why, store, sinks).await;
            }
            Self::Pause { sink } => {
                check_sink(store, sinks, &sink).await?;
                store.set_paused(&sink, Some(clock()())).await?;
                say!("{sink} is paused: its messages wait until `clerk-sync outbox resume {sink}`");
            }
            Self::Resume { sink } => {
                if !store.set_paused(&sink, None).await? {
                    check_sink(store, sinks, &sink).await?;
                    return Err(Failure::failed(format!("{sink} is not paused")));
                }
                say!("{sink} is resumed");
            }
        }
        Ok(())
    }
}

/// Refuse an unknown sink: with a typing error the real sink would keep running, or the answer would be misleading.
async fn check_sink(store: &dyn Store, configured: &[String], name: &str) -> Result<(), Failure> {
    // A sink that is no longer configured may still have messages; counting them can be slow.
    if configured.iter().any(|sink| sink == name) {
        return Ok(());
    }
    let known = known_sinks(store, configured).await?;
    if known.contains(name) { Ok(()) } else { Err(no_sink(name, known.iter().map(String::as_str))) }
}

fn list(messages: &[StoredMessage]) {
    if messages.is_empty() {
        say!("no messages");
        return;
    }
    let row = |message: &StoredMessage| {
        let next = match (message.next_attempt_at, message.state) {
            (Some(_), _) if message.taken => "being delivered".to_owned(),
            (Some(at), _) => rfc3339(at),
            (None, MessageState::Pending) => "after an older message".to_owned(),
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
}

impl Choice for Selection {
    type Entry = StoredMessage;

    fn which(&self) -> Which<i64> {
        match &self.sink {
            Some(sink) => Which::Of(sink.clone()),
            None if self.all => Which::All,
            None => Which::These(self.ids.clone()),
        }
    }
}

impl Selection {
    /// Fail unless all selected messages were found and processed. `why` explains why some may have been skipped.
    async fn finished(
        &self,
        tally: &Tally<i64>,
        dry_run: bool,
        why: &str,
        store: &dyn Store,
        sinks: &[String],
    ) -> Result<(), Failure> {
        let (left, missing) = (tally.found - tally.done, tally.missing.len() as u64);
        if left > 0 && !dry_run {
            say!("{left:>9}  skipped: {why}");
        }
        if let Some(sink) = self.sink.as_deref().filter(|_| tally.found == 0) {
            return check_sink(store, sinks, sink).await;
        }
        Err(Failure::failed(if tally.deletions > 0 {
            format!(
                "{}: a system that received a user must receive the deletion. Fix the sink, and the deletion is then delivered \
                 automatically; `clerk-sync erase report` lists unconfirmed erasures",
                count(tally.deletions, "deletion was kept", "deletions were kept")
            )
        } else if missing > 0 {
            format!(
                "{} not in the outbox",
                count(missing, "of the given messages is", "of the given messages are")
            )
        } else if left > 0 && !dry_run && !self.ids.is_empty() {
            let left = count(left, "of the given messages was", "of the given messages were");
            format!("{left} skipped: see `clerk-sync outbox show`")
        } else {
            return Ok(());
        }))
    }
}

fn number(text: &str) -> Result<i64, &'static str> {
    text.parse().map_err(|_| "expected the number of a message, as `clerk-sync outbox ls` shows it")
}

fn state(text: &str) -> Result<MessageState, &'static str> {
    MessageState::named(text).ok_or("allowed: pending, dead, delivered, discarded")
}
