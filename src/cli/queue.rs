//! `queue`: deliveries that wait or are dead. To look at them, to try them again, to take them out.

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

/// How many rows of a list are asked for at once.
const PORTION: u32 = 500;

/// Look at deliveries that wait or are dead, try them again, or take them out
#[derive(Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List deliveries, in the order of their ids
    Ls {
        /// Only those in this state: pending or dead
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<QueueState>,

        /// Only events of this type, such as user.updated
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,

        /// Only deliveries about this user
        #[arg(long, value_name = "USER_ID", value_parser = user_id)]
        user: Option<ClerkId>,

        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one delivery; what it says of somebody only with --reveal
    Show {
        /// The delivery's id, as `queue ls` shows it
        #[arg(value_name = "SVIX_ID", value_parser = id)]
        svix_id: SvixId,

        /// Show the body as well, which is personal data; the audit trail tells of it
        #[arg(long)]
        reveal: bool,
    },
    /// Try deliveries again at once: the dead, and those that would be tried only later
    Retry(Retry<Selection>),
    /// Take deliveries out for ever: those named, or the dead among the others
    Discard(Discard<Selection>),
}

/// Which deliveries are meant.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Selection {
    /// These
    #[arg(value_name = "SVIX_ID", value_parser = id)]
    svix_ids: Vec<SvixId>,

    /// Those of this type of event, such as user.updated
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
                // In portions that the database gives in time.
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
                            "There may be more: say a larger --limit, or narrow it by --state, --type or --user"
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
                finished(&retry.run(store, "would be tried again", "due again, for the next worker").await?)
            }
            Self::Discard(discard) => {
                let question =
                    |number| format!("Take {} out for ever?", count(number, "delivery", "deliveries"));
                finished(&discard.run(store, question, "would be taken out", "taken out").await?)
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

/// What could not be done is a failure.
fn finished(done: &Tally<SvixId>) -> Result<(), Failure> {
    if done.deletions > 0 {
        return Err(Failure::failed(format!(
            "{}: what Clerk has deleted must not stay here. Mend the cause, which `clerk-sync queue ls` shows, and it succeeds \
             by itself",
            count(done.deletions, "deletion of a user stays", "deletions of users stay")
        )));
    }
    if done.missing.is_empty() { Ok(()) } else { Err(missing(&done.missing)) }
}

fn missing(ids: &[SvixId]) -> Failure {
    let ids: Vec<&str> = ids.iter().map(SvixId::as_str).collect();
    Failure::failed(format!("not in the queue, processed or never seen: {}", ids.join(", ")))
}

fn state(text: &str) -> Result<QueueState, &'static str> {
    QueueState::named(text).ok_or("pending or dead is allowed")
}

fn id(text: &str) -> Result<SvixId, &'static str> {
    SvixId::new(text).ok_or("an id of 1 to 255 visible characters is allowed")
}
