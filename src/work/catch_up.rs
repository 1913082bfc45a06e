//! Automatic backfill and reconcile: at the start after a long downtime, at an interval, and after changes that alter objects of
//! other kinds without an event.
//!
//! One replica does this while it holds a lease. If that replica dies, another one takes over within a minute or two. A run that
//! loses its lease is cancelled. Between runs, no replica holds the lease.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::counter;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{lease::Lease, time_between};
use crate::{
    model::Entity,
    store::{History, RunKind, StoreError},
    sync::{
        backfill::{Done, Progress, Wanted, backfill},
        catch_up::{CatchUp, CatchUpError},
        reconcile::{Compared, DriftKind, Options, parameters, reconcile},
        retry::Retry,
    },
    telemetry,
};

/// The lease's name.
const LEASE: &str = "catch-up";

/// How long the lease lasts without a renewal.
const LASTING: Duration = Duration::from_secs(30);

/// How often the holder renews the lease, and how soon other replicas ask for it again; their pauses grow up to `RARELY`.
const HEARTBEAT: Duration = Duration::from_secs(8);
const RARELY: Duration = Duration::from_mins(1);

/// How often we check whether a followed kind has changed.
const LOOK: Duration = Duration::from_secs(5);

/// The shortest time between the starts of two comparisons of one kind that such changes cause.
const CALM: TimeDelta = TimeDelta::minutes(1);

/// The longest wait after the first failed run; each further failure doubles it …
const FIRST_REST: TimeDelta = TimeDelta::minutes(1);

/// … up to this, or up to the interval if that is shorter.
const LONGEST_REST: Duration = Duration::from_hours(1);

/// A live run reports progress more often than this.
const QUIET: Duration = Duration::from_secs(15);

/// The work that is due.
enum Task {
    /// Import all kinds, except what is done already.
    Backfill(Done),
    Reconcile,
    /// Compare these kinds, because a kind that they follow has changed.
    Follow(Vec<&'static Entity>),
}

impl Task {
    fn name(&self) -> &'static str {
        match self {
            Self::Backfill(_) => RunKind::Backfill.name(),
            Self::Reconcile | Self::Follow(_) => RunKind::Reconcile.name(),
        }
    }
}

/// Runs backfill and reconcile when they are due.
pub struct CatchUpLoop {
    context: CatchUp,
    settings: CatchUpSettings,
    lease: Lease,
}

/// When backfill and reconcile are due.
pub struct CatchUpSettings {
    /// The time between the starts of two reconciles; `None`: reconcile only at the start.
    pub every: Option<Duration>,
    /// How old the last event must be for a reconcile at the start; `None`: never reconcile at the start.
    pub after: Option<Duration>,
    /// Whether to fill empty tables at the start.
    pub on_empty: bool,
    /// Whether to poll for changes of followed kinds.
    pub looks: bool,
    /// When this process started. Later events say nothing about the time before it.
    pub started_at: DateTime<Utc>,
}

impl CatchUpLoop {
    /// Create the loop. Nothing is sent to the database or to Clerk yet.
    pub fn new(context: CatchUp, settings: CatchUpSettings) -> Self {
        let lease = Lease::new(&context.store, LEASE, LASTING).extended_by(LONGEST_REST);
        Self { context, settings, lease }
    }

    /// Run until shutdown. Failed runs are logged and retried.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.work()).await;
        self.lease.release().await;
    }

    async fn work(&self) {
        let every = self.settings.every;
        let mut due = self.wait_to_lead(true).await;
        let mut failures = 0;
        loop {
            let Some(task) = &mut due else {
                self.lease.release().await;
                if every.is_none() && self.followers().next().is_none() {
                    return;
                }
                self.wait_until_due().await;
                due = self.wait_to_lead(false).await;
                failures = 0;
                continue;
            };
            let rest = rest_after(failures, every, self.lease.holder());
            // Keep the lease, so that no other replica retries the run that has just failed.
            if !rest.is_zero() {
                _ = self.lease.hold_for(rest).await;
                sleep(rest).await;
            }
            tokio::select! {
                performed = self.perform(task) => match performed {
                    Ok(()) => due = None,
                    // The task stays due, even one that only the interval made due.
                    Err(error) => {
                        failures += 1;
                        counter!(telemetry::CATCH_UP_FAILURES).increment(1);
                        tracing::warn!(%error, task = task.name(), "catching up failed and will be retried");
                    }
                },
                () = self.lease.keep(HEARTBEAT) => {
                    tracing::warn!("lost the lease; another replica may be catching up");
                    due = self.wait_to_lead(true).await;
                    failures = 0;
                }
            }
        }
    }

    /// How long until the next reconcile is due.
    async fn left_of(&self, every: Duration) -> Duration {
        let last = self.context.store.last_finished(RunKind::Reconcile, None).await.ok().flatten();
        // Another replica's clock may have put it in the future.
        let ago = last.and_then(|run| run.finished_at).map(|last| time_between(last, (self.context.clock)()));
        ago.map_or(Duration::ZERO, |ago| every.saturating_sub(ago))
    }

    /// Wait until something is probably due.
    async fn wait_until_due(&self) {
        loop {
            let left = match self.settings.every {
                Some(every) => self.left_of(every).await,
                None => Duration::MAX,
            };
            let follows = self.followers().next().is_some();
            if left.is_zero() || follows && self.outdated().await.is_ok_and(|kinds| !kinds.is_empty()) {
                return;
            }
            sleep(if follows { left.min(LOOK) } else { left }).await;
        }
    }

    /// The kinds that follow a synced kind.
    fn followers(&self) -> impl Iterator<Item = &'static Entity> {
        let selection = &self.context.rules.selection;
        let follows = |entity: &&Entity| entity.follows.iter().any(|followed| selection.has(followed));
        selection.entities().filter(move |entity| self.settings.looks && follows(entity))
    }

    /// Followers to compare: those with a followed kind that was written after their last comparison began.
    async fn outdated(&self) -> Result<Vec<&'static Entity>, StoreError> {
        let selection = &self.context.rules.selection;
        let mut outdated = Vec::new();
        for entity in self.followers() {
            let run = self.context.store.last_finished(RunKind::Reconcile, Some(parameters(entity))).await?;
            let compared_at = run.map_or(self.settings.started_at, |run| run.started_at);
            if (self.context.clock)() - compared_at < CALM && compared_at != self.settings.started_at {
                continue;
            }
            for followed in entity.follows.iter().filter(|kind| selection.has(kind)) {
                let written_at = self.context.store.last_written(followed).await?;
                if written_at.is_some_and(|written_at| written_at > compared_at) {
                    outdated.push(entity);
                    break;
                }
            }
        }
        Ok(outdated)
    }

    /// Wait for the lease; returns the work that is due once this replica holds it.
    async fn wait_to_lead(&self, at_start: bool) -> Option<Task> {
        let mut pause = HEARTBEAT;
        loop {
            match self.lease.hold().await {
                Ok(true) => match self.due(at_start).await {
                    Ok(task) => return task,
                    Err(error) => tracing::debug!(%error, "could not determine whether catching up is due"),
                },
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "could not determine whether catching up is due"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RARELY);
        }
    }

    /// The work that is due: at the start, whatever the downtime requires; later, whatever the interval or a followed kind
    /// requires, unless another replica has done it meanwhile.
    async fn due(&self, at_start: bool) -> Result<Option<Task>, StoreError> {
        let CatchUpSettings { every, after, on_empty, started_at, .. } = self.settings;
        if !at_start {
            if let Some(every) = every
                && self.left_of(every).await.is_zero()
            {
                return Ok(Some(Task::Reconcile));
            }
            let outdated = self.outdated().await?;
            return Ok((!outdated.is_empty()).then_some(Task::Follow(outdated)));
        }
        let since = started_at - after.and_then(|after| TimeDelta::from_std(after).ok()).unwrap_or_default();
        if on_empty && let Some(done) = self.interrupted().await? {
            return Ok(Some(Task::Backfill(done)));
        }
        Ok(match self.context.store.history(since, started_at).await? {
            History::Empty if on_empty => Some(Task::Backfill(Done::default())),
            History::Silent if after.is_some() => {
                tracing::info!("the last event is old, so some may have been lost: comparing with Clerk");
                Some(Task::Reconcile)
            }
            _ => None,
        })
    }

    /// The progress of an interrupted backfill, unless another process is working on it.
    async fn interrupted(&self) -> Result<Option<Done>, StoreError> {
        let kinds = self.listed();
        if Done::before_interruption(&self.context, &kinds, TimeDelta::zero()).await?.is_none() {
            return Ok(None);
        }
        // This process may have restarted right after the interruption.
        sleep(QUIET).await;
        Done::before_interruption(&self.context, &kinds, TimeDelta::from_std(QUIET).unwrap_or_default()).await
    }

    /// The kinds that Clerk lists, in import order.
    fn listed(&self) -> Vec<&'static Entity> {
        let selection = &self.context.rules.selection;
        let mut listed: Vec<_> = selection.entities().filter(|entity| entity.is_listed()).collect();
        // Followers come after independent kinds; kinds that need a request per owner come last.
        listed.sort_by_key(|entity| (!entity.of_each.is_empty(), !entity.follows.is_empty()));
        listed
    }

    async fn perform(&self, task: &mut Task) -> Result<(), CatchUpError> {
        match task {
            Task::Backfill(done) => {
                for entity in self.listed() {
                    let wanted = Wanted::all(entity);
                    if !done.has(&self.context, &wanted) {
                        self.backfill(&wanted, done).await?;
                    }
                }
            }
            Task::Reconcile => {
                for entity in self.listed().into_iter().filter(|entity| entity.of_each.is_empty()) {
                    self.reconcile(entity, Options::default()).await?;
                }
            }
            Task::Follow(kinds) => {
                for entity in kinds {
                    tracing::info!(
                        kind = entity.kind,
                        "comparing with Clerk, because a kind that this one depends on has changed"
                    );
                    // A change of another kind deletes no objects of this kind, so this run deletes none either.
                    self.reconcile(entity, Options { only_mend: true, ..Options::default() }).await?;
                }
            }
        }
        Ok(())
    }

    async fn backfill(&self, wanted: &Wanted, done: &mut Done) -> Result<(), CatchUpError> {
        let entity = wanted.entity;
        tracing::info!(kind = entity.kind, "importing all objects from Clerk");
        let (tell, _) = watch::channel(Progress::default());
        let summary = backfill(&self.context, wanted, done, false, tell).await?;
        let counts = &summary.counts;
        tracing::info!(
            kind = entity.kind,
            seen = counts.seen,
            applied = counts.applied,
            left_out = counts.left_out,
            switched_off = summary.switched_off,
            "backfill finished"
        );
        Ok(())
    }

    async fn reconcile(&self, entity: &'static Entity, options: Options) -> Result<(), CatchUpError> {
        let (tell, _) = watch::channel(Compared::default());
        let report = reconcile(&self.context, entity, options, tell).await?;
        tracing::info!(
            kind = entity.kind,
            seen = report.seen,
            missing = report.of(DriftKind::Missing).users,
            stale = report.of(DriftKind::Stale).users,
            different = report.of(DriftKind::Different).users,
            not_at_clerk = report.of(DriftKind::NotAtClerk).users,
            erased_here = report.of(DriftKind::ErasedHere).users,
            held_here = report.of(DriftKind::HeldHere).users,
            touched = report.touched,
            mended = report.mended,
            deleted = report.deleted,
            switched_off = report.switched_off,
            "reconcile finished"
        );
        if let Some(doubt) = report.doubt {
            tracing::error!(
                kind = entity.kind,
                withheld = report.withheld,
                %doubt,
                "too many rows seem to be missing at Clerk, so none were deleted: run `clerk-sync reconcile --dry-run`"
            );
        }
        Ok(())
    }
}

/// The wait after this many failures in a row, at most `every`; zero without failures.
fn rest_after(failures: u32, every: Option<Duration>, holder: &str) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = every.map_or(LONGEST_REST, |every| every.min(LONGEST_REST));
    let longest = TimeDelta::from_std(longest).unwrap_or(FIRST_REST);
    let retry = Retry { max_attempts: u32::MAX, first: FIRST_REST, longest };
    retry.wait(failures, holder).to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_fails_again_and_again_is_tried_ever_more_rarely() {
        let longest = |failures, every| {
            let rests = (0..500).map(|replica| rest_after(failures, every, &format!("replica_{replica}")));
            rests.max().expect("some").as_secs().div_ceil(60)
        };
        let often = Some(Duration::from_mins(5));
        let rarely = Some(Duration::from_hours(24));
        for (failures, every, minutes) in
            [(0, None, 0), (1, None, 1), (2, None, 2), (5, rarely, 16), (50, rarely, 60), (50, often, 5)]
        {
            assert_eq!(longest(failures, every), minutes, "after {failures} failures");
        }
    }
}
