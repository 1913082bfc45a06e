//! `queue`: lists, shows, retries and discards deliveries that are pending or dead.

use clap::{Args, Subcommand};

use super::{
    Failure, clock, count, open,
    operator::{Choice, Discard, Retry},
    say,
    terminal::table,
    user_id,
};
use crate::{
    config::Settings,
    http,
    model::{ClerkId, Source, SvixId, rfc3339},
    store::{QueueFilter, QueueState, Queued, Store},
    sync::{
        operator::{Tally, Which},
        reveal::reveal_delivery,
    },
};

/// Rows read per query.
const PORTION: u32 = 500;

/// List deliveries that are pending or dead, retry them, or discard them
#[derive(Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List deliveries, in the order of their ids
    Ls {
        /// Only deliveries in this state: pending or dead
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<QueueState>,

        /// Only events of this type, for example user.updated
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,

        /// Only deliveries about this user
        #[arg(long, value_name = "USER_ID", value_parser = user_id)]
        user: Option<ClerkId>,

        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one delivery; its contents only with --reveal
    Show {
        /// The delivery's id, as `queue ls` shows it
        #[arg(value_name = "SVIX_ID", value_parser = id)]
        svix_id: SvixId,

        /// Also show the body, which is personal data; the audit trail records this
        #[arg(long)]
        reveal: bool,
    },
    /// Retry deliveries now: dead ones, and those whose next attempt is later
    Retry(Retry<Selection>),
    /// Permanently remove deliveries: those given by id, or dead ones
    Discard(Discard<Selection>),
}

/// Which deliveries to act on.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Selection {
    /// These deliveries, by their ids
    #[arg(value_name = "SVIX_ID", value_parser = id)]
    svix_ids: Vec<SvixId>,

    /// Those of this event type, for example user.updated
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,

    /// All of them
    #[arg(long)]
    all: bool,
}

impl Choice for Selection {
    type Entry = Queued;

    fn which(&self) -> Which<SvixId> {
        match &self.event_type {
            Some(event_type) => Which::Of(event_type.clone()),
            None if self.all => Which::All,
            None => Which::These(self.svix_ids.clone()),
        }
    }
}

impl Queue {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let only_looks = match &self.action {
            Action::Ls { .. } => true,
            Action::Show { reveal, .. } => !reveal,
            Action::Retry(Retry { dry_run, .. }) | Action::Discard(Discard { dry_run, .. }) => *dry_run,
        };
        let (_, store) = open(settings, only_looks).await?;
        let result = self.action.run(&*store).await;
        store.close().await;
        result
    }
}

impl Action {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        match self {
            Self::Ls { state, event_type, user, limit, json } => {
                let mut filter = QueueFilter { state, event_type, clerk_id: user, ..QueueFilter::default() };
                let mut found = Vec::new();
                // In portions small enough for the database's time limit.
                while found.len() < limit as usize {
                    let portion = PORTION.min(limit - u32::try_from(found.len()).unwrap_or(limit));
                    let more = store.queued(&filter, portion).await?;
                    let is_last = more.len() < portion as usize;
                    found.extend(more);
                    if is_last {
                        break;
                    }
                    filter.after = found.last().map(|last| last.svix_id.clone());
                }
                if json {
                    say!("{}", serde_json::to_string_pretty(&found).unwrap_or_default());
                } else {
                    list(&found);
                    if found.len() == limit as usize {
                        say!(
                            "There may be more: use a larger --limit, or narrow the list with --state, --type or --user"
                        );
                    }
                }
                Ok(())
            }
            Self::Show { svix_id, reveal } => {
                let parked = store.parked(&svix_id).await?.ok_or_else(|| missing(&[svix_id]))?;
                if reveal {
                    reveal_delivery(store, &parked, Source::Cli, clock()()).await?;
                }
                say!("{}", http::parked_as_json(&parked, reveal));
                Ok(())
            }
            Self::Retry(retry) => {
                finished(&retry.run(store, "would be retried", "due again, for the next worker").await?)
            }
            Self::Discard(discard) => {
                let question =
                    |number| format!("Permanently remove {}?", count(number, "delivery", "deliveries"));
                finished(&discard.run(store, question, "would be removed", "removed").await?)
            }
        }
    }
}

fn list(found: &[Queued]) {
    if found.is_empty() {
        say!("no deliveries");
        return;
    }
    let row = |one: &Queued| {
        [
            one.svix_id.to_string(),
            one.state.name().to_owned(),
            one.event_type.clone().unwrap_or_default(),
            one.clerk_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            one.attempts.to_string(),
            one.next_attempt_at.map(rfc3339).unwrap_or_default(),
            rfc3339(one.received_at),
            one.last_error.clone(),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    table(["ID", "STATE", "TYPE", "USER", "ATTEMPTS", "NEXT", "RECEIVED", "ERROR"], &rows);
}

/// Fail if a delivery could not be processed.
fn finished(done: &Tally<SvixId>) -> Result<(), Failure> {
    if done.deletions > 0 {
        return Err(Failure::failed(format!(
            "{}: an object that Clerk has deleted must not stay here. Fix the cause, which `clerk-sync queue ls` shows; the \
             deletion then succeeds automatically",
            count(done.deletions, "deletion of a user was kept", "deletions of users were kept")
        )));
    }
    if done.missing.is_empty() { Ok(()) } else { Err(missing(&done.missing)) }
}

fn missing(ids: &[SvixId]) -> Failure {
    let ids: Vec<&str> = ids.iter().map(SvixId::as_str).collect();
    Failure::failed(format!("not in the queue (already processed, or never received): {}", ids.join(", ")))
}

fn state(text: &str) -> Result<QueueState, &'static str> {
    QueueState::named(text).ok_or("allowed: pending, dead")
}

fn id(text: &str) -> Result<SvixId, &'static str> {
    SvixId::new(text).ok_or("expected an id of 1 to 255 visible characters")
}
