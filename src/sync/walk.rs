//! Walking through all objects of a kind at Clerk by offsets, several pages side by side: the only way through lists that know
//! no time.
//!
//! Pages overlap by one object. Where an object in front of a page leaves while it is on its way, everything behind moves up, and
//! the last object of a page is no longer the first of the next: then the walk begins anew, and passes over what it has seen.
//!
//! Where Clerk has no list of all, the owners are walked through, and each is asked for what they have.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    catch_up::{CatchUp, CatchUpError, Counts, falls_short, incomplete},
    scan::{Left, Scan, Seen, Visit, Window},
};
use crate::{
    clerk::{
        api::{Api, ApiError, Filters, PAGE},
        event::{Found, Page, Reading},
    },
    entity::USER,
    model::{Entity, FieldSet, OfEach, Selection, Source},
};

/// Pages that are on their way at the same time, at most.
const SIDE_BY_SIDE: usize = 16;

/// Bytes of answers that are on their way at the same time, as far as the pages so far tell.
const BUDGET: usize = 40 << 20;

/// How often a walk begins anew because objects left meanwhile.
const PASSES: u32 = 20;

/// What a walk needs.
pub(super) struct Walk {
    api: Arc<Api>,
    reading: Reading,
    seen: Arc<Seen>,
}

/// What came of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// Every object was shown.
    Whole,
    /// The objects of some owners were not shown, because the feature is switched off for them.
    Partly,
    /// The feature is switched off at Clerk: there is nothing to see, and nothing is gone for that.
    SwitchedOff,
}

impl CatchUp {
    /// Show a visitor all objects of a kind, of users those that `filters` name; those in `seen` are passed over. Goes on with
    /// what an interrupted walk has `left`.
    pub(super) async fn walk(
        &self,
        (source, entity, filters): (Source, &'static Entity, Filters),
        left: Option<Left>,
        seen: &Arc<Seen>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let reading = self.reading(source, entity);
        if entity.of_each.is_empty() {
            return self.through((reading, filters), left, seen, visitor).await;
        }
        visitor.expect(None).await?;
        let (mut is_whole, mut has_any) = (true, false);
        for of in entity.of_each {
            let asking = Asking {
                api: Arc::clone(&self.api),
                of,
                reading: reading.clone(),
                requests: Semaphore::new(SIDE_BY_SIDE),
            };
            let owners = Arc::new(Owners {
                asking: Arc::new(asking),
                seen: Arc::clone(seen),
                visitor: Arc::clone(visitor),
                has_any: AtomicBool::new(false),
            });
            let visit: Arc<dyn Visit> = Arc::<Owners>::clone(&owners);
            // Only who they are.
            let (fields, inside) = (FieldSet::default(), Selection::default());
            let ids = Reading { source, entity: of.owner, fields, inside };
            let walked = self.through((ids, Filters::default()), None, &Arc::default(), &visit).await;
            is_whole &= match walked {
                Err(CatchUpError::Api(error)) if error.is_of_a_feature_switched_off() => false,
                walked => walked? == Walked::Whole,
            };
            has_any |= owners.has_any.load(Ordering::Relaxed);
        }
        Ok(match (has_any, is_whole) {
            // Nobody has anything: the feature is probably switched off, and nothing must be deleted.
            (false, _) => Walked::SwitchedOff,
            (true, true) => Walked::Whole,
            (true, false) => Walked::Partly,
        })
    }

    /// The same through a list of all.
    async fn through(
        &self,
        (reading, filters): (Reading, Filters),
        left: Option<Left>,
        seen: &Arc<Seen>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let seen = Arc::clone(seen);
        if *reading.entity != USER {
            return Walk::new(self, reading, seen).run(visitor).await;
        }
        Scan::new(self, filters, reading, seen).run(left, visitor).await?;
        Ok(Walked::Whole)
    }
}

/// Shows what each owner has to another visitor.
struct Owners {
    asking: Arc<Asking>,
    seen: Arc<Seen>,
    visitor: Arc<dyn Visit>,
    /// Whether one of them has anything.
    has_any: AtomicBool,
}

/// Asks for what an owner has.
struct Asking {
    api: Arc<Api>,
    of: &'static OfEach,
    reading: Reading,
    /// Several pages of owners are visited side by side.
    requests: Semaphore,
}

impl Asking {
    async fn ask(&self, owner: Found) -> Result<Vec<Found>, CatchUpError> {
        let _request = self.requests.acquire().await.map_err(|_| CatchUpError::Abandoned)?;
        Ok(self.api.of_owner(self.of, &owner.clerk_id, &self.reading).await?)
    }
}

impl Owners {
    async fn show(&self, found: Vec<Found>) -> Result<Counts, CatchUpError> {
        if !found.is_empty() {
            self.has_any.store(true, Ordering::Relaxed);
        }
        let fresh = self.seen.first_time(found);
        if fresh.is_empty() { Ok(Counts::default()) } else { self.visitor.visit(fresh).await }
    }
}

#[async_trait]
impl Visit for Owners {
    async fn visit(&self, owners: Vec<Found>) -> Result<Counts, CatchUpError> {
        let (mut counts, mut all) = (Counts::default(), Vec::new());
        let (mut owners, mut asked) = (owners.into_iter(), JoinSet::new());
        loop {
            while asked.len() < SIDE_BY_SIDE
                && let Some(owner) = owners.next()
            {
                let asking = Arc::clone(&self.asking);
                asked.spawn(async move { asking.ask(owner).await });
            }
            let Some(answer) = asked.join_next().await else { break };
            all.extend(answer.map_err(|_| CatchUpError::Abandoned)??);
            // Of one page of owners there can be any number.
            if all.len() >= PAGE {
                counts.add(self.show(mem::take(&mut all)).await?);
            }
        }
        counts.add(self.show(all).await?);
        Ok(counts)
    }

    async fn reached(&self, _left: Vec<Window>, counts: Counts) -> Result<(), CatchUpError> {
        self.visitor.reached(Vec::new(), counts).await
    }
}

/// A page: the ids of its first and its last entry, and how many there are.
struct Edges {
    first: Option<String>,
    last: Option<String>,
    entries: usize,
}

enum Done {
    Fetched(usize, Result<(Page, usize), ApiError>),
    Visited(Result<Counts, CatchUpError>),
}

impl Walk {
    /// Through objects of the kind that `reading` names; those in `seen` are passed over.
    pub(super) fn new(context: &CatchUp, reading: Reading, seen: Arc<Seen>) -> Self {
        Self { api: Arc::clone(&context.api), reading, seen }
    }

    /// Walk until everything was seen that was there from beginning to end.
    ///
    /// # Errors
    /// If Clerk fails, if its list changes at every pass, or if it counts far more than it shows.
    pub(super) async fn run(&self, visitor: &Arc<dyn Visit>) -> Result<Walked, CatchUpError> {
        for _ in 0..PASSES {
            let first = match self.api.objects(0, &self.reading).await {
                Err(error) if error.is_of_a_feature_switched_off() => return Ok(Walked::SwitchedOff),
                first => first?,
            };
            visitor.expect(Some(first.0.total)).await?;
            let Some((seen, counted)) = self.pass(first, visitor).await? else { continue };
            return if falls_short(seen, counted) {
                Err(incomplete(self.reading.entity, seen, counted))
            } else {
                Ok(Walked::Whole)
            };
        }
        Err(self.api.unintelligible("lists that change with every request").into())
    }

    /// One time through, from the first page on; how many entries were seen and how many there are, if nothing moved meanwhile.
    async fn pass(
        &self,
        first: (Page, usize),
        visitor: &Arc<dyn Visit>,
    ) -> Result<Option<(u64, u64)>, CatchUpError> {
        let mut edges: BTreeMap<usize, Edges> = BTreeMap::new();
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let (mut total, mut next, mut side_by_side) = (first.0.total, 1, 1);
        tasks.spawn(async move { Done::Fetched(0, Ok(first)) });
        while let Some(done) = tasks.join_next().await {
            match done.map_err(|_| CatchUpError::Abandoned)? {
                Done::Fetched(index, page) => {
                    let (Page { found, total: now, entries, first, last }, bytes) = page?;
                    // Behind an empty page there is nothing, whatever is counted.
                    let is_empty = entries == 0 && index > 0;
                    total = if is_empty { now.min(offset(index) as u64) } else { now };
                    side_by_side = (BUDGET / (bytes + bytes / 2 + 1)).clamp(1, SIDE_BY_SIDE);
                    edges.insert(index, Edges { first, last, entries });
                    let fresh = self.seen.first_time(found);
                    if !fresh.is_empty() {
                        let visitor = Arc::clone(visitor);
                        tasks.spawn(async move { Done::Visited(visitor.visit(fresh).await) });
                    }
                }
                Done::Visited(counts) => visitor.reached(Vec::new(), counts?).await?,
            }
            while tasks.len() < side_by_side && offset(next) < usize::try_from(total).unwrap_or(usize::MAX) {
                let (api, reading, index) = (Arc::clone(&self.api), self.reading.clone(), next);
                tasks.spawn(async move { Done::Fetched(index, api.objects(offset(index), &reading).await) });
                next += 1;
            }
        }
        let pages: Vec<&Edges> = edges.values().collect();
        let whole = pages.windows(2).all(|pair| pair[0].last.is_some() && pair[0].last == pair[1].first);
        if !whole {
            return Ok(None);
        }
        // Each page but the first begins with the last entry of the one before.
        let overlaps = pages.len().saturating_sub(1);
        let seen = pages.iter().map(|page| page.entries).sum::<usize>().saturating_sub(overlaps);
        Ok(Some((seen as u64, total)))
    }
}

fn offset(page: usize) -> usize {
    page * (PAGE - 1)
}
