//! `outbox`: the messages for other systems, as an operator sees and tends them. What they say is shown only on demand.

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
    /// List messages, the oldest first
    Ls {
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
    },
    /// Show one message
    Show {
        /// The message's number, as `outbox ls` shows it
        #[arg(value_name = "ID", value_parser = number)]
        id: i64,

        /// Also what it says, which is personal data; the audit trail tells of it
        #[arg(long)]
        reveal: bool,
    },
    /// Try dead messages again, unless later news of their users were delivered since
    Retry(Retry<Selection>),
    /// Give up messages, and forget what they say; deletions are never given up
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

    /// All dead ones for this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// All dead ones
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
    /// `sinks` are those that are configured.
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
                    say!("{sink} is paused since {}", rfc3339(since));
                }
                list(&messages);
                if let Some(last) = messages.last().filter(|_| messages.len() == limit as usize) {
                    say!("There may be more: say a larger --limit, or --after {}", last.id);
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
                let tally = retry.run(store, "would be tried again", "due again").await?;
                let why = "not dead, or later news of their users were delivered since";
                return retry.choice.finished(&tally, retry.dry_run, why, store, sinks).await;
            }
            Self::Discard(discard) => {
                let question = |number| format!("Give up {} for good?", count(number, "message", "messages"));
                let tally = discard.run(store, question, "would be given up", "given up").await?;
                let why = "deletions, on their way, or finished already";
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
                say!("{sink} goes on");
            }
        }
        Ok(())
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

fn list(messages: &[StoredMessage]) {
    if messages.is_empty() {
        say!("no messages");
        return;
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
    /// Whatever is named must be there, and done. `why` says of what is left alone why it may be.
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
            say!("{left:>9}  left: {why}");
        }
        if let Some(sink) = self.sink.as_deref().filter(|_| tally.found == 0) {
            return check_sink(store, sinks, sink).await;
        }
        Err(Failure::failed(if tally.deletions > 0 {
            format!(
                "{}: a system that was told of a user must be told of the deletion. Mend the sink; the deletion then goes out by itself; \
                 `clerk-sync erase report` shows what is not confirmed",
                count(tally.deletions, "deletion stays", "deletions stay")
            )
        } else if missing > 0 {
            format!("{} not in the outbox", count(missing, "of those named is", "of those named are"))
        } else if left > 0 && !dry_run && !self.ids.is_empty() {
            let left = count(left, "of those named was", "of those named were");
            format!("{left} left alone: see `clerk-sync outbox show`")
        } else {
            return Ok(());
        }))
    }
}

fn number(text: &str) -> Result<i64, &'static str> {
    text.parse().map_err(|_| "the number of a message is allowed, as `clerk-sync outbox ls` shows it")
}

fn state(text: &str) -> Result<MessageState, &'static str> {
    MessageState::named(text).ok_or("allowed are pending, dead, delivered and discarded")
}
