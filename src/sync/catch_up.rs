//! Shared by backfill, reconcile and ensure: the source and target of users, and the errors.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep},
};

use super::{
    Clock, Rules, apply,
    instance::{BELIEVED, Pin},
};
use crate::{
    clerk::{
        api::{Api, ApiError, Persistence},
        event::{Found, Reading},
    },
    model::{ClerkId, Content, Delivery, Entity, Outcome, Source},
    store::{self, ErrorKind, Origin, Run, RunKind, Store, StoreError, token},
};

/// How long one page may take in the database.
const PAGE_TIME: Duration = Duration::from_mins(1);

/// How often a page is tried again while the database is unavailable.
const PAGE_ATTEMPTS: u32 = 6;

/// An interrupted run can be continued only if it is younger than this: the pages that it walked first have changed since
/// then.
pub(super) const RESUMABLE: TimeDelta = TimeDelta::days(1);

/// A process that works on a run updates it this often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);

/// A run without an update for this long is abandoned, whatever its timestamps say.
const SILENCE: Duration = Duration::from_secs(6);

/// A run whose last update is older than this is not watched at all: clocks do not differ by that much.
const ALIVE: TimeDelta = TimeDelta::seconds(30);

/// How long runs are remembered.
const REMEMBERED: TimeDelta = TimeDelta::days(7);

/// How many users that could not be imported are named.
const NAMED: usize = 20;

/// The source and the target of users.
#[derive(Clone)]
pub struct CatchUp {
    pub store: Arc<dyn Store>,
    pub api: Arc<Api>,
    pub rules: Rules,
    pub clock: Clock,
    pub instance: Instance,
}

/// The Clerk instance that users may come from: the one that they came from so far.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// `CLERK_INSTANCE_ID`.
    pub pin: Pin,
    /// Whether users may come from another instance from now on.
    pub may_change: bool,
}

/// Why a run ended early. What it has done stays, and a later run can continue from there.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "Clerk counts {counted} {what} but listed only {seen}, so its list is incomplete; nothing was deleted: try again later"
    )]
    Incomplete { what: &'static str, seen: u64, counted: u64 },
    #[error(
        "CLERK_SECRET_KEY belongs to instance {of_key}, but CLERK_INSTANCE_ID is {pinned}: nothing was imported; correct one \
         of the two"
    )]
    NotThePinnedInstance { of_key: String, pinned: String },
    #[error(
        "CLERK_SECRET_KEY belongs to instance {of_key}, but the users of this database come from {known}: nothing was \
         imported; use a key of {known}, or, if users are to come from {of_key} from now on, run backfill or reconcile with \
         `--change-instance`"
    )]
    OtherInstance { of_key: String, known: String },
    #[error("another process has taken over this run")]
    TakenOver,
    #[error(
        "another process is at work on the same run; wait until it ends, or start a second run alongside it with --restart"
    )]
    UnderWay,
    #[error("the run was stopped")]
    Abandoned,
}

/// What happened to the users so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Users that Clerk returned.
    pub seen: u64,
    /// Written because they were missing in the database or differed.
    pub applied: u64,
    /// Identical in the database and at Clerk.
    pub unchanged: u64,
    /// Newer in the database, or deleted.
    pub stale: u64,
    pub left_out: u64,
    /// Some of the users that were left out, with the reasons.
    pub reasons: Vec<LeftOut>,
    /// Of a kind that Clerk does not list: the owners on this page, who were asked for their objects.
    #[serde(skip)]
    pub(super) owners: u64,
}

/// How many owners were asked for their objects, of a kind that Clerk does not list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub owners: u64,
    /// How many will have been asked at the end of the list of owners that is being walked; `None` if Clerk does not count them.
    pub of: Option<u64>,
}

impl Asked {
    /// The text for the operator: `30 of 1000 owners asked`.
    pub fn text(&self) -> String {
        match self.of {
            Some(of) => format!("{} of {of} owners asked", self.owners),
            None => format!("{} owners asked", self.owners),
        }
    }
}

/// A user that could not be imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub clerk_id: String,
    /// Contains no personal data.
    pub reason: String,
}

impl Counts {
    pub(super) fn leave_out(&mut self, clerk_id: &str, reason: String) {
        self.left_out += 1;
        if self.reasons.len() < NAMED {
            self.reasons.push(LeftOut { clerk_id: clerk_id.to_owned(), reason });
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.seen += other.seen;
        self.applied += other.applied;
        self.unchanged += other.unchanged;
        self.stale += other.stale;
        self.left_out += other.left_out;
        self.reasons.extend(other.reasons);
        self.reasons.truncate(NAMED);
    }
}

/// Whether only an event determined the instance, and events of the key's instance arrive as well.
fn is_disputed(origin: &Origin, of_key: &str) -> bool {
    !origin.confirmed && origin.refused.as_ref().is_some_and(|(refused, _)| refused == of_key)
}

impl CatchUp {
    pub(super) fn reading(&self, source: Source, entity: &'static Entity) -> Reading {
        Reading { source, entity, fields: self.rules.fields(entity), inside: self.rules.selection.clone() }
    }

    /// Ensure, before anything is imported, that the key belongs to the right Clerk instance. The first run determines
    /// which one that is, unless it is a dry run. Returns the previous instance if its users may still be stored.
    pub(super) async fn check_instance(
        &self,
        persistence: Persistence,
        dry_run: bool,
    ) -> Result<Option<String>, CatchUpError> {
        let Instance { pin, may_change } = &self.instance;
        let origin = patiently(|| self.store.origin()).await?;
        if *pin == Pin::Any {
            return Ok(origin.and_then(|origin| origin.previous));
        }
        let of_key = match self.api.instance(persistence).await {
            Err(error @ (ApiError::Refused { .. } | ApiError::Unintelligible { .. }))
                if pin.only().is_none() && origin.is_none() =>
            {
                // For example, a proxy may let only requests about users through.
                tracing::warn!(%error, "cannot check which Clerk instance the users come from; continuing without the check");
                return Ok(None);
            }
            of_key => of_key?,
        };
        if let Some(pinned) = pin.only().filter(|pinned| *pinned != of_key) {
            return Err(CatchUpError::NotThePinnedInstance {
                of_key: of_key.to_owned(),
                pinned: pinned.to_owned(),
            });
        }
        let other = |known| CatchUpError::OtherInstance { of_key: of_key.to_owned(), known };
        match origin {
            Some(origin) if origin.instance == of_key => {
                if !dry_run && !origin.confirmed {
                    patiently(|| self.store.change_instance(of_key)).await?;
                }
                Ok(origin.previous)
            }
            // Events of two instances arrive, and so far only the first event decided which one is meant. The key
            // settles it.
            Some(origin) if !may_change && !is_disputed(&origin, of_key) => Err(other(origin.instance)),
            Some(origin) => {
                if !dry_run {
                    tracing::warn!(
                        known = origin.instance,
                        of_key,
                        "from now on the users of this database come from another Clerk instance"
                    );
                    patiently(|| self.store.change_instance(of_key)).await?;
                    // Until then another process may still accept events of the previous instance.
                    sleep(BELIEVED).await;
                }
                Ok(Some(origin.instance))
            }
            None if dry_run => Ok(None),
            None => {
                // An event may have determined the instance first.
                let known = patiently(|| self.store.claim_instance(of_key)).await?;
                if known != of_key {
                    return Err(other(known));
                }
                patiently(|| self.store.change_instance(of_key)).await?;
                Ok(None)
            }
        }
    }

    /// Apply the users of a page through the rules, in one transaction unless some of them fail.
    pub(super) async fn take_in(
        &self,
        users: Vec<Found>,
        writers: &Semaphore,
    ) -> Result<Counts, CatchUpError> {
        let mut counts = Counts { seen: users.len() as u64, ..Counts::default() };
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(users.len());
        for found in users {
            match &found.delivery.content {
                Content::Unusable(reason) => counts.leave_out(found.clerk_id.as_str(), reason.clone()),
                _ => deliveries.push(found.delivery),
            }
        }
        let _writer = writers.acquire().await.map_err(|_| CatchUpError::Abandoned)?;
        for attempt in 1.. {
            let (now, deadline) = ((self.clock)(), Instant::now() + PAGE_TIME);
            let results = apply(&*self.store, &deliveries, &self.rules, now, deadline).await;
            let mut again = Vec::new();
            let mut last = None;
            for (delivery, result) in deliveries.into_iter().zip(results) {
                let id = delivery.clerk_id.as_ref().map_or("", ClerkId::as_str);
                match result {
                    Ok(Outcome::Applied) => counts.applied += 1,
                    Ok(Outcome::Unchanged) => counts.unchanged += 1,
                    Ok(Outcome::Parked) => counts.leave_out(
                        id,
                        "the database refuses it for now; it is retried until it succeeds".to_owned(),
                    ),
                    Ok(_) => counts.stale += 1,
                    Err(error) if error.is_about_the_data() => counts.leave_out(id, error.to_string()),
                    Err(error) => {
                        last = Some(error);
                        again.push(delivery);
                    }
                }
            }
            let Some(error) = last else { break };
            if is_hopeless(&error) || attempt >= PAGE_ATTEMPTS {
                return Err(error.into());
            }
            tracing::warn!(%error, users = again.len(), "users could not be written; they are tried again");
            sleep(Duration::from_secs(1) * attempt).await;
            deliveries = again;
        }
        Ok(counts)
    }
}

/// A run as stored in the database, and its progress.
pub(super) struct Ledger<P> {
    store: Arc<dyn Store>,
    clock: Clock,
    run: Run,
    pub(super) progress: P,
    tell: watch::Sender<P>,
}

impl<P: Serialize + DeserializeOwned + Clone> Ledger<P> {
    /// Start a run for these parameters, or continue an interrupted run for the same ones. Returns whether it continues
    /// a run.
    ///
    /// A run that another process is working on is left alone.
    pub(super) async fn open(
        context: &CatchUp,
        kind: RunKind,
        (parameters, everybody): (String, bool),
        restart: bool,
        fresh: P,
        tell: watch::Sender<P>,
    ) -> Result<(Self, bool), CatchUpError> {
        let now = (context.clock)();
        let found = if restart { None } else { context.store.unfinished_run(kind, &parameters).await? };
        if let Some(run) = found.as_ref().filter(|run| now - run.updated_at < ALIVE)
            && is_worked_on(context, run).await?
        {
            return Err(CatchUpError::UnderWay);
        }
        let found = found
            .filter(|run| now - run.updated_at < RESUMABLE)
            .and_then(|run| Some((serde_json::from_str(&run.progress).ok()?, run)));
        let goes_on = found.is_some();
        let (progress, run) = found.unwrap_or_else(|| {
            let run = Run {
                id: token(),
                kind,
                owner: String::new(),
                parameters,
                everybody,
                progress: serde_json::to_string(&fresh).unwrap_or_default(),
                started_at: now,
                updated_at: now,
                finished_at: None,
            };
            (fresh, run)
        });
        let run = Run { owner: token(), updated_at: now, ..run };
        context.store.prune_runs(now - REMEMBERED).await?;
        context.store.begin_run(&run).await?;
        tell.send_replace(progress.clone());
        let ledger = Self {
            store: Arc::clone(&context.store),
            clock: Arc::clone(&context.clock),
            run,
            progress,
            tell,
        };
        Ok((ledger, goes_on))
    }

    /// Show the progress without saving it.
    pub(super) fn show(&self) {
        self.tell.send_replace(self.progress.clone());
    }

    /// Save the progress.
    pub(super) async fn save(&mut self) -> Result<(), CatchUpError> {
        self.show();
        self.run.progress = serde_json::to_string(&self.progress).unwrap_or_default();
        self.run.updated_at = (self.clock)();
        let saved = patiently(|| self.store.save_run(&self.run)).await?;
        if saved { Ok(()) } else { Err(CatchUpError::TakenOver) }
    }

    pub(super) async fn finish(&mut self) -> Result<(), CatchUpError> {
        self.run.finished_at = Some((self.clock)());
        self.save().await
    }
}

/// Whether another process updates this run, or has just ended it. Watching for changes does not depend on any clock.
async fn is_worked_on(context: &CatchUp, run: &Run) -> Result<bool, CatchUpError> {
    tracing::info!(
        "a process worked on this run a moment ago: checking for a few seconds whether it still does"
    );
    let deadline = Instant::now() + SILENCE;
    while Instant::now() < deadline {
        sleep(HEARTBEAT / 4).await;
        let again = patiently(|| context.store.unfinished_run(run.kind, &run.parameters)).await?;
        if again.as_ref() != Some(run) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a retry cannot help.
fn is_hopeless(error: &StoreError) -> bool {
    matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema)
}

/// The error for a walk that saw too few objects of a kind.
pub(super) fn incomplete(entity: &Entity, seen: u64, counted: u64) -> CatchUpError {
    CatchUpError::Incomplete { what: entity.table, seen, counted }
}

/// Whether a walk saw clearly fewer objects than Clerk counts: more are missing than are likely to have been deleted in
/// the meantime.
pub(super) fn falls_short(seen: u64, counted: u64) -> bool {
    counted.saturating_sub(seen) > (counted / 100).max(10) || seen.saturating_mul(2) < counted
}

/// Ask the database again while it is briefly unavailable.
pub(super) async fn patiently<T, Answer>(ask: impl Fn() -> Answer) -> store::Result<T>
where
    Answer: Future<Output = store::Result<T>>,
{
    for attempt in 1..PAGE_ATTEMPTS {
        match ask().await {
            Err(error) if !is_hopeless(&error) => {
                tracing::warn!(%error, "the database could not answer; asking it again");
                sleep(Duration::from_secs(1) * attempt).await;
            }
            answer => return answer,
        }
    }
    ask().await
}
