//! Walking through all objects of a kind at Clerk by offsets, with several pages in parallel. This is the only way
//! through lists that cannot be filtered by time.
//!
//! Pages overlap by one object. If an object before a page is deleted while the page is in progress, all later objects
//! move up. The last object of a page is then no longer the first of the next, and the walk starts from scratch. It skips
//! the objects that it has seen.
//!
//! If Clerk has no list of all objects, the walk goes through the owners and asks for the objects of each. This takes
//! one request per owner, so an interrupted walk through owners continues where it stopped. Owners are listed in the
//! order of their creation. An interrupted walk still has to visit the owners created after the last one whose objects
//! were imported. It walks the pages in progress again, so at most two pages are in progress at a time. If Clerk answers
//! about one owner that the feature is switched off, no further owner of that kind is asked.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};

use super::{
    catch_up::{CatchUp, CatchUpError, Counts, falls_short, incomplete},
    scan::{Left, Scan, Seen, Visit, Window},
};
use crate::{
    clerk::{
        api::{Api, ApiError, Filters, PAGE},
        event::{Found, Page, Reading, UNSAID},
    },
    entity::USER,
    model::{Entity, FieldSet, OfEach, Selection, Source},
};

/// The maximum number of pages in progress.
const SIDE_BY_SIDE: usize = 16;

/// The same for owners: one page is ready before the owners of the other have all been asked.
const PAGES_OF_OWNERS: usize = 2;

/// The number of owners whose objects are requested in parallel. If a request takes a third of a second, this many are
/// enough for 90 requests a second.
const ASKED: usize = 32;

/// Bytes of answers in progress, estimated from the pages so far.
const BUDGET: usize = 40 << 20;

/// How often a walk starts from scratch because objects were deleted meanwhile.
const PASSES: u32 = 20;

/// Everything that a walk needs.
pub(super) struct Walk {
    api: Arc<Api>,
    reading: Reading,
    seen: Arc<Seen>,
    side_by_side: usize,
}

/// A list that is walked from the beginning to the end.
#[derive(Debug)]
pub(super) enum Part {
    /// A list of all objects; for users, of those that the filters select.
    List(Filters),
    /// The objects of each of these owners.
    Of(&'static OfEach),
}

impl Part {
    /// The parts that together show all objects of a kind.
    pub(super) fn all(entity: &Entity) -> Vec<Self> {
        match entity.of_each {
            [] => vec![Self::List(Filters::default())],
            of_each => of_each.iter().map(Self::Of).collect(),
        }
    }
}

/// The result of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// Every object was shown.
    Whole,
    /// The objects of some owners were not shown, because the feature is switched off for them.
    Partly,
    /// The feature is switched off at Clerk: nothing is shown, but that does not mean that the objects were deleted.
    SwitchedOff,
}

impl CatchUp {
    /// Show all objects of a kind to a visitor; those in `seen` are skipped.
    pub(super) async fn walk(
        &self,
        (source, entity): (Source, &'static Entity),
        seen: &Arc<Seen>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let mut walked = Vec::new();
        for part in Part::all(entity) {
            walked.push(self.walk_part((source, entity, part), None, seen, visitor).await?);
        }
        Ok(match walked[..] {
            [walked] if entity.of_each.is_empty() => walked,
            // No owner has any objects: the feature is probably switched off, and nothing may be deleted.
            _ if seen.len() == 0 => Walked::SwitchedOff,
            _ if walked.contains(&Walked::SwitchedOff) => Walked::Partly,
            _ => Walked::Whole,
        })
    }

    /// Walk one part. Continues with what an interrupted walk has `left`.
    pub(super) async fn walk_part(
        &self,
        (source, entity, part): (Source, &'static Entity, Part),
        left: Option<Left>,
        seen: &Arc<Seen>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let reading = self.reading(source, entity);
        let of = match part {
            Part::List(filters) => {
                return self.through((reading, filters, usize::MAX), left, seen, visitor).await;
            }
            Part::Of(of) => of,
        };
        let asking = Asking { api: Arc::clone(&self.api), of, reading, requests: Semaphore::new(ASKED) };
        let owners: Arc<dyn Visit> = Arc::new(Owners {
            asking: Arc::new(asking),
            seen: Arc::clone(seen),
            visitor: Arc::clone(visitor),
            line: Mutex::default(),
            // The interrupted walk has said it.
            is_count_told: AtomicBool::new(left.is_some()),
        });
        // Only the ids of the owners are needed.
        let (fields, inside) = (FieldSet::default(), Selection::default());
        let ids = Reading { source, entity: of.owner, fields, inside };
        let list = (ids, Filters::default(), PAGES_OF_OWNERS);
        match self.through(list, left, &Arc::default(), &owners).await {
            Err(CatchUpError::Api(error)) if error.is_of_a_feature_switched_off() => Ok(Walked::SwitchedOff),
            walked => walked,
        }
    }

    /// Walk a list, with at most `most` pages in parallel.
    async fn through(
        &self,
        (reading, filters, most): (Reading, Filters, usize),
        left: Option<Left>,
        seen: &Arc<Seen>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let seen = Arc::clone(seen);
        if *reading.entity != USER {
            return Walk::new(self, reading, seen, most).run(left, visitor).await;
        }
        Scan::new(self, filters, reading, seen, most).run(left, visitor).await?;
        Ok(Walked::Whole)
    }
}

/// Shows the objects of each owner to another visitor.
struct Owners {
    asking: Arc<Asking>,
    seen: Arc<Seen>,
    visitor: Arc<dyn Visit>,
    /// Held by the page whose owners are being asked, so that an interruption costs only that page.
    line: Mutex<()>,
    /// Whether the visitor knows the number of owners. A list of them that changes is walked more than once.
    is_count_told: AtomicBool,
}

/// Asks for the objects of an owner.
struct Asking {
    api: Arc<Api>,
    of: &'static OfEach,
    reading: Reading,
    /// Limits the parallel requests, also where the owners of two pages are processed at once.
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
        let fresh = self.seen.first_time(found);
        if fresh.is_empty() { Ok(Counts::default()) } else { self.visitor.visit(fresh).await }
    }
}

#[async_trait]
impl Visit for Owners {
    async fn visit(&self, owners: Vec<Found>) -> Result<Counts, CatchUpError> {
        let (mut counts, mut all) = (Counts::default(), Vec::new());
        let page = owners.len() as u64;
        let (mut owners, mut asked) = (owners.into_iter(), JoinSet::new());
        let mut first_in_line = Some(self.line.lock().await);
        loop {
            while asked.len() < ASKED
                && let Some(owner) = owners.next()
            {
                let asking = Arc::clone(&self.asking);
                asked.spawn(async move { asking.ask(owner).await });
            }
            if owners.len() == 0 {
                drop(first_in_line.take());
            }
            let Some(answer) = asked.join_next().await else { break };
            all.extend(answer.map_err(|_| CatchUpError::Abandoned)??);
            self.visitor.asked().await;
            // The owners of one page can have any number of objects.
            if all.len() >= PAGE {
                counts.add(self.show(mem::take(&mut all)).await?);
            }
        }
        counts.add(self.show(all).await?);
        Ok(Counts { owners: page, ..counts })
    }

    async fn expect(&self, counted: Option<u64>) -> Result<(), CatchUpError> {
        if self.is_count_told.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.visitor.expect_owners(counted).await
    }

    async fn reached(&self, left: Vec<Window>, counts: Counts) -> Result<(), CatchUpError> {
        self.visitor.reached(left, counts).await
    }
}

/// What is known about a page.
struct Edges {
    /// The ids of its first and last entry, and the number of entries.
    first: Option<String>,
    last: Option<String>,
    entries: usize,
    /// When its last object was created, if the objects are in the order of creation.
    until: Option<i64>,
    /// Whether all objects on it were visited.
    is_taken_in: bool,
}

impl Edges {
    /// Whether the next page follows directly and nothing moved: the two overlap by one entry.
    fn leads_to(&self, next: &Self) -> bool {
        self.last.is_some() && self.last == next.first
    }
}

enum Done {
    Fetched(usize, Result<(Page, usize), ApiError>),
    Visited(usize, Result<Counts, CatchUpError>),
}

impl Walk {
    /// A walk through the objects of the kind that `reading` names, with at most `most` pages in parallel; those in
    /// `seen` are skipped.
    pub(super) fn new(context: &CatchUp, reading: Reading, seen: Arc<Seen>, most: usize) -> Self {
        Self { api: Arc::clone(&context.api), reading, seen, side_by_side: SIDE_BY_SIDE.min(most) }
    }

    /// Walk until every object was seen that existed during the whole walk, and show what an interrupted walk has
    /// `left`. All pages are requested again, because offsets do not show where that walk stopped.
    ///
    /// # Errors
    /// If Clerk fails, if its list changes during every pass, or if it counts far more objects than it shows.
    pub(super) async fn run(
        &self,
        left: Option<Left>,
        visitor: &Arc<dyn Visit>,
    ) -> Result<Walked, CatchUpError> {
        let left = left.map_or_else(|| vec![Window::everybody()], |left| left.windows);
        for _ in 0..PASSES {
            let first = match self.api.objects(0, &self.reading).await {
                Err(error) if error.is_of_a_feature_switched_off() => return Ok(Walked::SwitchedOff),
                first => first?,
            };
            visitor.expect(Some(first.0.total)).await?;
            let Some((seen, counted)) = self.pass(first, &left, visitor).await? else { continue };
            return if falls_short(seen, counted) {
                Err(incomplete(self.reading.entity, seen, counted))
            } else {
                Ok(Walked::Whole)
            };
        }
        Err(self.api.unintelligible("lists that change with every request").into())
    }

    /// One pass, starting with the first page. Returns the number of entries seen and the number of entries that exist;
    /// `None` if the list changed meanwhile.
    async fn pass(
        &self,
        first: (Page, usize),
        left: &[Window],
        visitor: &Arc<dyn Visit>,
    ) -> Result<Option<(u64, u64)>, CatchUpError> {
        let mut edges: BTreeMap<usize, Edges> = BTreeMap::new();
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let (mut total, mut next, mut side_by_side) = (first.0.total, 1, 1);
        tasks.spawn(async move { Done::Fetched(0, Ok(first)) });
        while let Some(done) = tasks.join_next().await {
            match done.map_err(|_| CatchUpError::Abandoned)? {
                Done::Fetched(index, page) => {
                    let (Page { mut found, total: now, entries, first, last }, bytes) = page?;
                    // Nothing follows an empty page, whatever the count says.
                    let is_empty = entries == 0 && index > 0;
                    total = if is_empty { now.min(offset(index) as u64) } else { now };
                    side_by_side = (BUDGET / (bytes + bytes / 2 + 1)).clamp(1, self.side_by_side);
                    let is_in_order = found.is_sorted_by_key(|found| found.created_at);
                    let until = found.last().filter(|_| is_in_order).map(|found| found.created_at);
                    // An object without a creation time may belong to the rest.
                    found.retain(|found| {
                        found.created_at == UNSAID || left.iter().any(|window| window.holds(found.created_at))
                    });
                    let fresh = self.seen.first_time(found);
                    edges.insert(index, Edges { first, last, entries, until, is_taken_in: fresh.is_empty() });
                    if !fresh.is_empty() {
                        let visitor = Arc::clone(visitor);
                        tasks.spawn(async move { Done::Visited(index, visitor.visit(fresh).await) });
                    }
                }
                Done::Visited(index, counts) => {
                    let counts = counts?;
                    edges.entry(index).and_modify(|page| page.is_taken_in = true);
                    visitor.reached(vec![still_left(&edges)], counts).await?;
                }
            }
            while tasks.len() < side_by_side && offset(next) < usize::try_from(total).unwrap_or(usize::MAX) {
                let (api, reading, index) = (Arc::clone(&self.api), self.reading.clone(), next);
                tasks.spawn(async move { Done::Fetched(index, api.objects(offset(index), &reading).await) });
                next += 1;
            }
        }
        let pages: Vec<&Edges> = edges.values().collect();
        if !pages.windows(2).all(|pair| pair[0].leads_to(pair[1])) {
            return Ok(None);
        }
        // Each page except the first begins with the last entry of the page before.
        let overlaps = pages.len().saturating_sub(1);
        let seen = pages.iter().map(|page| page.entries).sum::<usize>().saturating_sub(overlaps);
        Ok(Some((seen as u64, total)))
    }
}

/// The rest of a list: the objects created after the end of its first pages, up to the last page that follows directly on
/// the others and was imported.
fn still_left(pages: &BTreeMap<usize, Edges>) -> Window {
    let mut left = Window::everybody();
    let mut before: Option<&Edges> = None;
    for (place, (index, page)) in pages.iter().enumerate() {
        let follows = place == *index && before.is_none_or(|before| before.leads_to(page));
        let Some(until) = page.until.filter(|_| follows && page.is_taken_in) else { break };
        left = Window::since(until);
        before = Some(page);
    }
    left
}

fn offset(page: usize) -> usize {
    page * (PAGE - 1)
}
