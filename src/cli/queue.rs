//! `queue`: deliveries that wait or are dead. To look at them, to try them again, to take them out.

use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{Failure, clock, confirm, count, open, say, terminal::table, user_id};
use crate::{
    config::Settings,
    http,
    model::{ClerkId, Source, SvixId, rfc3339},
    store::{QueueFilter, QueueState, Queued, Store},
    sync::{
        queue::{self, Done, Which},
        reveal::reveal_delivery,
    },
};

/// Look at deliveries that wait or are dead, try them again, or take them out
#[derive(Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List deliveries, in the order of their ids
    Ls(List),
    /// Show one delivery; what it says of somebody only with --reveal
    Show(Show),
    /// Try deliveries again at once: the dead, and those that would be tried only later
    Retry(Retry),
    /// Take deliveries out for ever: those named, or the dead among the others
    Discard(Discard),
}

#[derive(Args)]
struct List {
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
}

#[derive(Args)]
struct Show {
    /// The delivery's id, as `queue ls` shows it
    #[arg(value_name = "SVIX_ID", value_parser = id)]
    svix_id: SvixId,

    /// Show the body as well, which is personal data; the audit trail tells of it
    #[arg(long)]
    reveal: bool,
}

/// Which deliveries are meant.
#[derive(Args)]
#[group(id = "which", required = true, multiple = false)]
struct Selection {
    /// These
    #[arg(value_name = "SVIX_ID", value_parser = id, group = "which")]
    svix_ids: Vec<SvixId>,

    /// Those of this type of event, such as user.updated
    #[arg(long = "type", value_name = "TYPE", group = "which")]
    event_type: Option<String>,

    /// All of them
    #[arg(long, group = "which")]
    all: bool,
}

#[derive(Args)]
struct Retry {
    #[command(flatten)]
    selection: Selection,

    /// Only say how many
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Discard {
    #[command(flatten)]
    selection: Selection,

    /// Only say how many
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Queue {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let only_looks = match &self.action {
            Action::Ls(_) => true,
            Action::Show(show) => !show.reveal,
            Action::Retry(Retry { dry_run, .. }) | Action::Discard(Discard { dry_run, .. }) => *dry_run,
        };
        let (_, store) = open(settings, only_looks).await?;
        let result = match self.action {
            Action::Ls(list) => list.run(&*store).await,
            Action::Show(show) => show.run(&*store).await,
            Action::Retry(retry) => retry.run(&*store).await,
            Action::Discard(discard) => discard.run(&store).await,
        };
        store.close().await;
        result
    }
}

impl List {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let mut filter = QueueFilter {
            state: self.state,
            event_type: self.event_type,
            clerk_id: self.user,
            ..QueueFilter::default()
        };
        let mut found: Vec<Queued> = Vec::new();
        while let Some(left) = self.limit.checked_sub(found.len().try_into().unwrap_or(u32::MAX))
            && left > 0
        {
            let page = store.queued(&filter, left.min(500)).await?;
            let Some(last) = page.last() else { break };
            filter.after = Some(last.svix_id.clone());
            found.extend(page);
        }
        if self.json {
            say!("{}", http::queue_as_json(&found));
            return Ok(());
        }
        if found.is_empty() {
            say!("no deliveries");
            return Ok(());
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
        if found.len() == self.limit as usize {
            say!("There may be more: say a larger --limit, or narrow it by --state, --type or --user");
        }
        Ok(())
    }
}

impl Show {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let parked = store.parked(&self.svix_id).await?;
        let parked = parked.ok_or_else(|| missing(std::slice::from_ref(&self.svix_id)))?;
        if self.reveal {
            reveal_delivery(store, &parked, Source::Cli, clock()()).await?;
        }
        say!("{}", http::parked_as_json(&parked, self.reveal));
        Ok(())
    }
}

impl Selection {
    fn which(self) -> Which {
        match self {
            Self { all: true, .. } => Which::All,
            Self { event_type: Some(event_type), .. } => Which::Type(event_type),
            Self { svix_ids, .. } => Which::These(svix_ids),
        }
    }
}

impl Retry {
    async fn run(self, store: &dyn Store) -> Result<(), Failure> {
        let done = queue::retry(store, &self.selection.which(), clock()(), self.dry_run).await?;
        let what = if self.dry_run { "would be tried again" } else { "due again, for whoever works" };
        say!("{:>9}  {what}", done.deliveries);
        finished(&done)
    }
}

impl Discard {
    async fn run(self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        let which = self.selection.which();
        let would = queue::discard(&**store, &which, clock()(), true).await?;
        if self.dry_run {
            say!("{:>9}  would be taken out", would.deliveries);
            return finished(&would);
        }
        if would.deliveries > 0 && !self.yes {
            confirm(&format!("Take {} out for ever?", count(would.deliveries, "delivery", "deliveries")))?;
        }
        let done = queue::discard(&**store, &which, clock()(), false).await?;
        say!("{:>9}  taken out", done.deliveries);
        finished(&done)
    }
}

/// What could not be done is a failure.
fn finished(done: &Done) -> Result<(), Failure> {
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
