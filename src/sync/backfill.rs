//! All objects of a kind at Clerk, taken in through the same rules as webhooks.
//!
//! It can run while webhooks arrive: a user as the API shows it is one more piece of news, which loses against anything
//! newer and never revives anybody. What it has done is remembered page by page, so that an interrupted run goes on where
//! it was and asks again only for the pages that were on their way.

use std::{convert::Infallible, fmt::Write as _, mem, sync::Arc};

use async_trait::async_trait;
use chrono::TimeDelta;
use metrics::counter;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    time::sleep,
};

use super::{
    catch_up::{CatchUp, CatchUpError, Counts, HEARTBEAT, Ledger, RESUMABLE},
    reconcile::{parameters, strangers},
    scan::{Left, Seen, Visit, Window},
    walk::{Part, Walked},
};
use crate::{
    clerk::{
        api::{FILTER_VALUES, Filters, Persistence},
        event::Found,
    },
    entity::USER,
    model::{ClerkId, Entity, Source},
    store::{self, Run, RunKind},
    telemetry,
};

/// What is to be taken in: all of a kind; of users, everybody whom any of the lists names, as far as the other two admit them.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub entity: &'static Entity,
    /// Each of these lists is asked for on its own, by the name of the filter as the API has it; all must name somebody.
    pub lists: Vec<(&'static str, Vec<String>)>,
    /// Clerk's search over names, addresses and numbers.
    pub query: Option<String>,
    /// Signed up after this, in unix milliseconds.
    pub created_after: Option<i64>,
}

impl Wanted {
    /// All objects of this kind.
    pub fn all(entity: &'static Entity) -> Self {
        Self { entity, lists: Vec::new(), query: None, created_after: None }
    }

    /// What identifies a run for the same: of the same users of the same instance into the same fields. A digest, because
    /// it may hold addresses.
    fn digest(&self, context: &CatchUp) -> String {
        let Self { entity, lists, query, created_after } = self;
        let (instance, fields) = (context.api.identity(), context.rules.fields(entity));
        let kind = parameters(entity);
        // Kinds without owners add nothing, so that their runs of older versions go on.
        let owners: String = entity.of_each.iter().map(|of| of.path).collect();
        let mut text = format!("{lists:?}{query:?}{created_after:?}{instance:?}{fields:?}{kind}{owners}");
        // What stands inside of the objects is taken in with them.
        let inside = entity.nested.iter().map(|nested| nested.entity);
        for inside in inside.filter(|inside| context.rules.selection.has(inside)) {
            _ = write!(text, "{}{:?}", inside.kind, context.rules.fields(inside));
        }
        hex::encode(Sha256::digest(text))
    }

    /// Whether it is only some of them.
    pub fn is_narrowed(&self) -> bool {
        !(self.lists.is_empty() && self.query.is_none() && self.created_after.is_none())
    }

    /// Whether it is all users there are.
    fn is_everybody(&self) -> bool {
        *self.entity == USER && !self.is_narrowed()
    }

    /// What is walked through: of lists as many values at once as Clerk allows.
    fn parts(&self) -> Vec<Part> {
        let all = |values: Vec<(&'static str, String)>| Filters {
            values: values.into_iter().chain(self.query.clone().map(|query| ("query", query))).collect(),
            created_after: self.created_after,
        };
        if self.lists.is_empty() {
            return if self.is_narrowed() {
                vec![Part::List(all(Vec::new()))]
            } else {
                Part::all(self.entity)
            };
        }
        let batches = self.lists.iter().flat_map(|(name, values)| {
            values
                .chunks(FILTER_VALUES)
                .map(|chunk| chunk.iter().map(|value| (*name, value.clone())).collect())
        });
        batches.map(all).map(Part::List).collect()
    }
}

/// How far a run is, and what it has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which of the parts is walked.
    batch: usize,
    /// What is left of it; none before it has begun.
    windows: Option<Vec<Window>>,
    pub counts: Counts,
    /// How many users Clerk said there are.
    pub expected: Option<u64>,
    #[serde(default)]
    done: Done,
}

/// What a complete run has done.
#[derive(Clone, Debug)]
pub struct Summary {
    pub counts: Counts,
    /// Whether it went on with one that was interrupted.
    pub resumed: bool,
    /// Whether the feature is switched off at Clerk, so that there was nothing to take in.
    pub switched_off: bool,
    /// Of whom the database may hold users since users come from another instance, if they may.
    pub left_behind: Option<LeftBehind>,
}

/// Users of the instance that users came from before.
#[derive(Clone, Debug)]
pub struct LeftBehind {
    /// That instance.
    pub instance: String,
    /// Those that a comparison would erase, if all who are at Clerk were seen in this run.
    pub users: Option<Vec<ClerkId>>,
}

/// What was taken in by the runs before this one, where kinds are taken in one after the other: by what identifies those runs. It is
/// kept with every run, so that after an interruption nothing is taken in twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Done(Vec<String>);

impl Done {
    /// What was taken in before the run of one of these kinds was interrupted. `None` if no run of the last day was, if the run showed
    /// a sign of life within `quiet_for`, or if it was to take in its kind alone and that is not the first of these.
    ///
    /// # Errors
    /// If the database cannot say.
    pub async fn before_interruption(
        context: &CatchUp,
        kinds: &[&'static Entity],
        quiet_for: TimeDelta,
    ) -> store::Result<Option<Self>> {
        for entity in kinds {
            let digest = Wanted::all(entity).digest(context);
            let run = context.store.unfinished_run(RunKind::Backfill, &digest).await?;
            let quiet = |run: &Run| (context.clock)() - run.updated_at;
            if let Some(run) = run.filter(|run| quiet(run) >= quiet_for && quiet(run) < RESUMABLE) {
                let progress: Progress = serde_json::from_str(&run.progress).unwrap_or_default();
                if !progress.done.0.is_empty() || kinds.first() == Some(entity) {
                    return Ok(Some(progress.done));
                }
            }
        }
        Ok(None)
    }

    /// Whether this was taken in.
    pub fn has(&self, context: &CatchUp, wanted: &Wanted) -> bool {
        self.0.contains(&wanted.digest(context))
    }
}

/// Take in all users that are wanted, after what is `done`. `tell` hears how far it has come; `restart` begins anew.
///
/// # Errors
/// If Clerk or the database fails for longer than we are patient. What was done stays.
pub async fn backfill(
    context: &CatchUp,
    wanted: &Wanted,
    done: &mut Done,
    restart: bool,
    tell: watch::Sender<Progress>,
) -> Result<Summary, CatchUpError> {
    let previous = context.check_instance(Persistence::BACKGROUND, false).await?;
    let began = (context.clock)();
    let parameters = (wanted.digest(context), wanted.is_everybody());
    // Such a list is asked for again from its beginning anyway.
    let restart = restart || *wanted.entity != USER && wanted.entity.of_each.is_empty();
    let fresh = Progress { done: done.clone(), ..Progress::default() };
    let (ledger, resumed) =
        Ledger::open(context, RunKind::Backfill, parameters, restart, fresh, tell).await?;
    let (first, seen) = (ledger.progress.batch, Seen::after(ledger.progress.counts.seen));
    let visitor = Arc::new(Visitor {
        context: context.clone(),
        writers: Semaphore::new(context.store.writers()),
        ledger: Mutex::new(ledger),
        seen: Arc::new(seen),
    });
    let walk = async {
        let mut switched_off = false;
        for (batch, part) in wanted.parts().into_iter().enumerate().skip(first) {
            switched_off = visitor.walk(batch, wanted.entity, part).await? == Walked::SwitchedOff;
        }
        if !wanted.entity.of_each.is_empty() {
            // Nobody has anything.
            switched_off = visitor.seen.len() == 0;
        }
        Ok::<_, CatchUpError>(switched_off)
    };
    let switched_off = tokio::select! {
        walked = walk => walked?,
        lost = visitor.beat() => match lost? {},
    };
    let mut ledger = visitor.ledger.lock().await;
    ledger.finish().await?;
    done.0.push(wanted.digest(context));
    let left_behind = match previous {
        Some(instance) if *wanted.entity == USER => {
            let saw_all = wanted.is_everybody() && !resumed;
            let users = if saw_all {
                Some(strangers(&*context.store, wanted.entity, began, &visitor.seen).await?)
            } else {
                None
            };
            Some(LeftBehind { instance, users })
        }
        // Of other kinds the users have told it.
        _ => None,
    };
    Ok(Summary { counts: ledger.progress.counts.clone(), resumed, switched_off, left_behind })
}

/// Those of these values of one filter, such as addresses, that no user at Clerk has. No two users share one.
///
/// # Errors
/// If Clerk cannot say.
pub async fn nobodys(
    context: &CatchUp,
    filter: &'static str,
    values: &[String],
) -> Result<Vec<String>, CatchUpError> {
    let mut nobodys = Vec::new();
    let mut parts: Vec<&[String]> = values.chunks(FILTER_VALUES).collect();
    while let Some(part) = parts.pop() {
        let values = part.iter().map(|value| (filter, value.clone())).collect();
        let users = context.api.count(&Filters { values, created_after: None }).await?;
        if users == 0 {
            nobodys.extend_from_slice(part);
        } else if users < part.len() as u64 {
            // Nobody has some of them, or somebody has several.
            let (left, right) = part.split_at(part.len() / 2);
            parts.extend([left, right]);
        }
    }
    nobodys.sort();
    Ok(nobodys)
}

struct Visitor {
    context: CatchUp,
    /// As many transactions at once as the database likes.
    writers: Semaphore,
    ledger: Mutex<Ledger<Progress>>,
    /// Several lists can name one user.
    seen: Arc<Seen>,
}

impl Visitor {
    /// Say again and again that somebody is at work, also while Clerk is slow. Ends when the run is not ours any more.
    async fn beat(&self) -> Result<Infallible, CatchUpError> {
        loop {
            sleep(HEARTBEAT).await;
            self.ledger.lock().await.save().await?;
        }
    }

    /// Through one of the parts.
    async fn walk(
        self: &Arc<Self>,
        batch: usize,
        entity: &'static Entity,
        part: Part,
    ) -> Result<Walked, CatchUpError> {
        let left = {
            let mut ledger = self.ledger.lock().await;
            ledger.progress.batch = batch;
            let Progress { windows, expected, .. } = &ledger.progress;
            windows.clone().map(|windows| Left { windows, counted: *expected })
        };
        let visitor: Arc<dyn Visit> = Arc::<Self>::clone(self);
        let what = (Source::Backfill, entity, part);
        let walked = self.context.walk_part(what, left, &self.seen, &visitor).await;
        let mut ledger = self.ledger.lock().await;
        if matches!(walked, Err(CatchUpError::Incomplete { .. })) {
            // There is nothing to go on with: the next run begins anew.
            ledger.progress = Progress { done: mem::take(&mut ledger.progress.done), ..Progress::default() };
            ledger.save().await?;
        }
        let walked = walked?;
        ledger.progress.batch = batch + 1;
        ledger.progress.windows = None;
        ledger.save().await?;
        Ok(walked)
    }
}

#[async_trait]
impl Visit for Visitor {
    async fn visit(&self, users: Vec<Found>) -> Result<Counts, CatchUpError> {
        let kind = users.first().map_or("", |found| found.clerk_id.entity().kind);
        let counts = self.context.take_in(users, &self.writers).await?;
        for (outcome, count) in [
            ("applied", counts.applied),
            ("unchanged", counts.unchanged),
            ("stale", counts.stale),
            ("left_out", counts.left_out),
        ] {
            counter!(telemetry::BACKFILL_USERS, "outcome" => outcome, "kind" => kind).increment(count);
        }
        Ok(counts)
    }

    async fn expect(&self, counted: Option<u64>) -> Result<(), CatchUpError> {
        let mut ledger = self.ledger.lock().await;
        ledger.progress.expected = counted;
        ledger.save().await
    }

    /// Both at once: a run that goes on counts again whom it visits again.
    async fn reached(&self, left: Vec<Window>, counts: Counts) -> Result<(), CatchUpError> {
        let mut ledger = self.ledger.lock().await;
        ledger.progress.counts.add(counts);
        ledger.progress.windows = Some(left);
        ledger.save().await
    }
}
