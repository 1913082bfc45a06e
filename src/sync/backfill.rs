//! Backfill: import all objects of a kind from Clerk, under the same rules as webhooks.
//!
//! A backfill can run while webhooks arrive. An object from the API is treated like an event: any newer version wins, and
//! deleted objects stay deleted. Progress is saved page by page. An interrupted run continues where it stopped, and only
//! requests the pages again that were in progress.

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
    catch_up::{Asked, CatchUp, CatchUpError, Counts, HEARTBEAT, Ledger, RESUMABLE},
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

/// The objects to import: all of a kind, or, for users, those that at least one list names and that meet the other two
/// conditions.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub entity: &'static Entity,
    /// Pairs of an API filter and its values. Each list is requested separately, and must have at least one value.
    pub lists: Vec<(&'static str, Vec<String>)>,
    /// Clerk's search over names, addresses and numbers.
    pub query: Option<String>,
    /// Only users who signed up after this time, in Unix milliseconds.
    pub created_after: Option<i64>,
}

impl Wanted {
    /// All objects of this kind.
    pub fn all(entity: &'static Entity) -> Self {
        Self { entity, lists: Vec::new(), query: None, created_after: None }
    }

    /// Identifies the runs that do the same work: the same objects of the same instance into the same fields. It is a
    /// digest because the parameters may contain e-mail addresses.
    fn digest(&self, context: &CatchUp) -> String {
        let Self { entity, lists, query, created_after } = self;
        let (instance, fields) = (context.api.identity(), context.rules.fields(entity));
        let kind = parameters(entity);
        // Kinds without owners add nothing, so that runs begun by older versions can continue.
        let owners: String = entity.of_each.iter().map(|of| of.path).collect();
        let mut text = format!("{lists:?}{query:?}{created_after:?}{instance:?}{fields:?}{kind}{owners}");
        // Nested objects are imported together with the objects that contain them.
        let inside = entity.nested.iter().map(|nested| nested.entity);
        for inside in inside.filter(|inside| context.rules.selection.has(inside)) {
            _ = write!(text, "{}{:?}", inside.kind, context.rules.fields(inside));
        }
        hex::encode(Sha256::digest(text))
    }

    /// Whether only some of the objects are wanted.
    pub fn is_narrowed(&self) -> bool {
        !(self.lists.is_empty() && self.query.is_none() && self.created_after.is_none())
    }

    /// Whether all users are wanted.
    fn is_everybody(&self) -> bool {
        *self.entity == USER && !self.is_narrowed()
    }

    /// The parts to walk. Lists are divided into as many values per request as Clerk allows.
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

/// The progress and the results of a run so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Index of the part that is being walked.
    batch: usize,
    /// The windows that are left of this part; `None` before it begins.
    windows: Option<Vec<Window>>,
    pub counts: Counts,
    /// Number of users, according to Clerk.
    pub expected: Option<u64>,
    /// The owners on completed pages who were asked for their objects.
    #[serde(default)]
    asked: u64,
    /// The same on the pages in progress. A continued run asks these owners again.
    #[serde(skip)]
    under_way: u64,
    /// How many owners will have been asked at the end of this part.
    #[serde(default)]
    owners: Option<u64>,
    #[serde(default)]
    done: Done,
}

impl Progress {
    /// The owners who were asked for their objects, if this is a run for a kind that Clerk does not list.
    pub fn asked(&self) -> Asked {
        Asked { owners: self.asked + self.under_way, of: self.owners }
    }
}

/// What a complete run has done.
#[derive(Clone, Debug)]
pub struct Summary {
    pub counts: Counts,
    /// Whether the run continued an interrupted one.
    pub resumed: bool,
    /// Whether the feature is switched off at Clerk, so that there was nothing to import.
    pub switched_off: bool,
    /// After a change of the instance: the users of the previous instance that may still be stored.
    pub left_behind: Option<LeftBehind>,
}

/// The users of the previous Clerk instance.
#[derive(Clone, Debug)]
pub struct LeftBehind {
    /// The previous instance.
    pub instance: String,
    /// The users that a reconcile run would erase; `None` unless this run saw all users at Clerk.
    pub users: Option<Vec<ClerkId>>,
}

/// The runs that were completed before this one when kinds are imported one after the other, by their digests. The list
/// is saved with every run, so that nothing is imported twice after an interruption.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Done(Vec<String>);

impl Done {
    /// The runs that were completed before the run of one of these kinds was interrupted. `None` if no run was
    /// interrupted within the last day, or if the run was active within `quiet_for`. Also `None` if the run was to import
    /// its kind alone and that kind is not the first of these.
    ///
    /// # Errors
    /// If the database cannot be read.
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

    /// Whether these objects were already imported.
    pub fn has(&self, context: &CatchUp, wanted: &Wanted) -> bool {
        self.0.contains(&wanted.digest(context))
    }
}

/// Import all wanted objects and add the run to `done`. `tell` receives the progress; `restart` starts from scratch.
///
/// # Errors
/// If Clerk or the database fails for longer than the retries last. Everything imported until then stays.
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
    // A list of another kind without owners is always requested from its beginning.
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
            // If no owner has any objects, the feature is probably switched off.
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
        // For other kinds, the run over the users has reported this.
        _ => None,
    };
    Ok(Summary { counts: ledger.progress.counts.clone(), resumed, switched_off, left_behind })
}

/// The values of one filter, such as addresses, that no user at Clerk has. No two users share a value.
///
/// # Errors
/// If Clerk cannot be asked.
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
            // No user has some of the values, or one user has several.
            let (left, right) = part.split_at(part.len() / 2);
            parts.extend([left, right]);
        }
    }
    nobodys.sort();
    Ok(nobodys)
}

struct Visitor {
    context: CatchUp,
    /// Limits the concurrent transactions to what the database handles well.
    writers: Semaphore,
    ledger: Mutex<Ledger<Progress>>,
    /// Several lists can name the same user.
    seen: Arc<Seen>,
}

impl Visitor {
    /// Save the run regularly as a sign of life, even while Clerk is slow. Returns only when another process has taken
    /// over the run or it cannot be saved.
    async fn beat(&self) -> Result<Infallible, CatchUpError> {
        loop {
            sleep(HEARTBEAT).await;
            self.ledger.lock().await.save().await?;
        }
    }

    /// Walk one of the parts.
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
            // The saved progress cannot be used: the next run starts from scratch.
            ledger.progress = Progress { done: mem::take(&mut ledger.progress.done), ..Progress::default() };
            ledger.save().await?;
        }
        let walked = walked?;
        let progress = &mut ledger.progress;
        progress.batch = batch + 1;
        progress.windows = None;
        // If the feature is switched off, the walk has ended within a page.
        progress.asked += mem::take(&mut progress.under_way);
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

    async fn expect_owners(&self, counted: Option<u64>) -> Result<(), CatchUpError> {
        let mut ledger = self.ledger.lock().await;
        let before = ledger.progress.asked().owners;
        ledger.progress.owners = counted.map(|counted| before + counted);
        ledger.save().await
    }

    async fn asked(&self) {
        let mut ledger = self.ledger.lock().await;
        ledger.progress.under_way += 1;
        ledger.show();
    }

    /// Windows and counts are saved together: a continued run visits the unsaved objects again, and counts them again.
    async fn reached(&self, left: Vec<Window>, counts: Counts) -> Result<(), CatchUpError> {
        let mut ledger = self.ledger.lock().await;
        ledger.progress.asked += counts.owners;
        ledger.progress.under_way -= counts.owners;
        ledger.progress.counts.add(counts);
        ledger.progress.windows = Some(left);
        ledger.save().await
    }
}
