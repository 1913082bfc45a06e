//! Walking through all users at Clerk, with several pages in parallel.
//!
//! A window is an interval of time, walked in the order of sign-up. When more requests can be made, the window with the
//! most remaining users is divided in two. A request names the millisecond from which users are wanted; users of that
//! millisecond that were already seen are skipped. If more users signed up in one millisecond than fit on a page, the
//! walk continues by offsets. These pages overlap by one user, which shows whether a user was deleted meanwhile. A user
//! on several pages is visited once. A walk that makes no progress ends with an error.
//!
//! However large users are, the pages in progress share [`BUDGET`]. A page is requested once there is room for it in
//! the budget. Its size follows the recent size of users, and at most the reserved bytes are read. A page that would be
//! longer is requested again in smaller pages.
//!
//! This module decides nothing about users: a [`Visit`] imports them.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::catch_up::{CatchUp, CatchUpError, Counts, falls_short, incomplete};
use crate::{
    clerk::{
        api::{Api, ApiError, Filters, List, PAGE, Shown},
        event::{Found, Reading},
    },
    model::ClerkId,
};

/// The maximum number of pages fetched in parallel. If a page takes a third of a second, this many are enough for 90
/// requests a second.
const SIDE_BY_SIDE: usize = 32;

/// Bytes of answers that are fetched or imported at the same time.
const BUDGET: usize = 40 << 20;

/// The target size of a page in bytes, if users are so large that a full page exceeds it.
const PAGE_BYTES: usize = 4 << 20;

/// The assumed size of a user in bytes before any was seen, chosen so that the first page is a full one.
const FIRST_WEIGHT: usize = PAGE_BYTES / PAGE;

/// The smallest assumed size of a user, in bytes.
const LEAST_WEIGHT: usize = 1 << 10;

/// The minimum number of users on a page: when a walk goes by offsets, the first one repeats the last user of the page
/// before.
const LEAST_LIMIT: usize = 2;

/// How often a walk by offsets restarts because a user was deleted meanwhile.
const RESTARTS: u32 = 100;

/// Users or organizations that were created in an interval of time, and how far they were walked. Stored in
/// `sync_runs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// The first millisecond.
    start: i64,
    /// The millisecond after the last one; `None`: the window also holds all later sign-ups.
    end: Option<i64>,
    /// The last user that was imported.
    last: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    created_at: i64,
    id: String,
}

impl Window {
    /// All users.
    pub(super) fn everybody() -> Self {
        Self::since(i64::MIN + 1)
    }

    /// Objects that were created in this millisecond or later.
    pub(super) fn since(start: i64) -> Self {
        Self { start, end: None, last: None }
    }

    pub(super) fn holds(&self, created_at: i64) -> bool {
        created_at >= self.start && self.end.is_none_or(|end| created_at < end)
    }
}

/// Receives the objects that a walk shows, and the progress of the walk. The default implementation does nothing.
#[async_trait]
pub(super) trait Visit: Send + Sync + 'static {
    /// Process the objects of one page that were not seen before.
    async fn visit(&self, _found: Vec<Found>) -> Result<Counts, CatchUpError> {
        Ok(Counts::default())
    }

    /// Receive the number of objects at Clerk, before any of them is visited.
    async fn expect(&self, _counted: Option<u64>) -> Result<(), CatchUpError> {
        Ok(())
    }

    /// Receive the number of owners whose objects will be requested, before any of them is. `None` if Clerk does not count
    /// them.
    async fn expect_owners(&self, _counted: Option<u64>) -> Result<(), CatchUpError> {
        Ok(())
    }

    /// Note that one more owner was asked.
    async fn asked(&self) {}

    /// Receive the windows that are left to walk, and the result of a page that was completed. These windows do not
    /// contain the visited objects.
    async fn reached(&self, _left: Vec<Window>, _counts: Counts) -> Result<(), CatchUpError> {
        Ok(())
    }
}

/// The objects seen in a run, stored as two hashes each, so that no two objects are confused.
#[derive(Default)]
pub(super) struct Seen {
    hashers: [RandomState; 2],
    /// A tree: unlike a hash table, it is never in memory twice while it grows.
    ids: Mutex<BTreeSet<[u64; 2]>>,
    /// How many were seen before, in a continued run.
    before: u64,
}

impl Seen {
    /// An empty set for a run that has seen this many before.
    pub(super) fn after(before: u64) -> Self {
        Self { before, ..Self::default() }
    }

    /// Keep only the objects that are seen for the first time, and remember them.
    pub(super) fn first_time(&self, mut users: Vec<Found>) -> Vec<Found> {
        let mut ids = self.ids();
        users.retain(|found| ids.insert(self.hashes(&found.clerk_id)));
        users
    }

    /// Remember these as well.
    pub(super) fn note<'a>(&self, ids: impl Iterator<Item = &'a ClerkId>) {
        self.ids().extend(ids.map(|id| self.hashes(id)));
    }

    pub(super) fn contains(&self, id: &ClerkId) -> bool {
        self.ids().contains(&self.hashes(id))
    }

    /// How many were seen.
    pub(super) fn len(&self) -> u64 {
        self.before + self.ids().len() as u64
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<[u64; 2]>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hashes(&self, id: &ClerkId) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(id))
    }
}

/// The rest of an interrupted walk, and how many users Clerk counted when it began.
pub(super) struct Left {
    pub(super) windows: Vec<Window>,
    pub(super) counted: Option<u64>,
}

/// Everything that a walk needs.
#[derive(Clone)]
pub(super) struct Scan {
    api: Arc<Api>,
    filters: Arc<Filters>,
    reading: Reading,
    seen: Arc<Seen>,
    side_by_side: usize,
    /// The present, in Unix milliseconds: the assumed end of an open window when it is divided.
    now: i64,
}

/// A share of the budget for one page, returned when its users are imported.
type Room = OwnedSemaphorePermit;

/// The result of a task for a track.
enum Done {
    Fetched(usize, Step, Room, Result<Shown, ApiError>),
    Visited(usize, Result<Counts, CatchUpError>),
}

impl Scan {
    /// A scan of the users that `filters` select, read as `reading` says, with at most `most` pages in parallel. Users
    /// in `seen` are skipped.
    pub(super) fn new(
        context: &CatchUp,
        filters: Filters,
        reading: Reading,
        seen: Arc<Seen>,
        most: usize,
    ) -> Self {
        Self {
            api: Arc::clone(&context.api),
            filters: Arc::new(filters),
            reading,
            seen,
            side_by_side: SIDE_BY_SIDE.min(most),
            now: (context.clock)().timestamp_millis(),
        }
    }

    /// Walk the windows that an interrupted run has left, or all users. On an error, all completed pages have been
    /// reported by `reached`.
    ///
    /// # Errors
    /// If Clerk fails, or if it showed clearly fewer users than it counts: more are missing than are likely to have been
    /// deleted meanwhile.
    pub(super) async fn run(&self, left: Option<Left>, visitor: &Arc<dyn Visit>) -> Result<(), CatchUpError> {
        let Left { windows, counted } = if let Some(left) = left {
            left
        } else {
            let counted = self.count().await?;
            visitor.expect(counted).await?;
            Left { windows: vec![Window::everybody()], counted }
        };
        self.walk(windows, visitor).await?;
        let Some(before) = counted.filter(|counted| falls_short(self.seen.len(), *counted)) else {
            return Ok(());
        };
        let counted = before.min(self.api.count(&self.filters).await?);
        let seen = self.seen.len();
        if falls_short(seen, counted) { Err(incomplete(self.reading.entity, seen, counted)) } else { Ok(()) }
    }

    /// The number of users, if Clerk reports it. The walk does not rely on it.
    async fn count(&self) -> Result<Option<u64>, CatchUpError> {
        if !self.filters.values.is_empty() {
            return Ok(None);
        }
        match self.api.count(&self.filters).await {
            Err(ApiError::Refused { .. } | ApiError::Unintelligible { .. }) => Ok(None),
            count => Ok(Some(count?)),
        }
    }

    async fn walk(&self, windows: Vec<Window>, visitor: &Arc<dyn Visit>) -> Result<(), CatchUpError> {
        let mut tracks: Vec<Track> = windows.into_iter().map(Track::new).collect();
        let mut tasks: JoinSet<Done> = JoinSet::new();
        // The bytes left in the budget, and the recent size of a user in bytes.
        let (budget, mut weight) = (Arc::new(Semaphore::new(BUDGET)), FIRST_WEIGHT);
        loop {
            while tasks.len() < self.side_by_side
                && let Some((limit, room)) = room(&budget, weight)
                && let Some(index) = self.next(&mut tracks)
            {
                tracks[index].busy = true;
                self.fetch(&mut tasks, index, &tracks[index], limit, room);
            }
            let Some(done) = tasks.join_next().await else { return Ok(()) };
            let done = done.map_err(|_| CatchUpError::Abandoned)?;
            let (index, counts) = match done {
                Done::Fetched(index, step, mut room, page) => {
                    let fresh = match page {
                        // Users are larger than before: request the page again, with fewer users and more bytes for
                        // each.
                        Err(ApiError::TooLong { most, .. }) if most < BUDGET => {
                            weight = weight.max(most / step.limit * 2).min(BUDGET);
                            Vec::new()
                        }
                        page => {
                            let Shown { users, bytes } = page?;
                            if let Some(each) = bytes.checked_div(users.len()) {
                                // Grow at once, but shrink gradually.
                                weight = each.max(weight - weight / 4).clamp(LEAST_WEIGHT, BUDGET);
                            }
                            // Return the bytes that the page did not need.
                            drop(room.split(room.num_permits().saturating_sub(bytes)));
                            let taken = tracks[index].take(&step, users, self.now);
                            self.seen.first_time(taken.map_err(|what| self.api.unintelligible(what))?)
                        }
                    };
                    if !fresh.is_empty() {
                        let visitor = Arc::clone(visitor);
                        tasks.spawn(async move {
                            let counts = visitor.visit(fresh).await;
                            drop(room);
                            Done::Visited(index, counts)
                        });
                        continue;
                    }
                    (index, Counts::default())
                }
                Done::Visited(index, result) => (index, result?),
            };
            tracks[index].arrive();
            visitor.reached(left(&tracks), counts).await?;
        }
    }

    /// A track that waits, or a new one divided from the track with the most users left.
    fn next(&self, tracks: &mut Vec<Track>) -> Option<usize> {
        if let Some(waiting) = tracks.iter().position(|track| !track.busy && !track.finished) {
            return Some(waiting);
        }
        let longest = tracks.iter_mut().max_by_key(|track| track.users_left(self.now))?;
        // Fetching fewer than two pages is faster than dividing them.
        if longest.users_left(self.now) < 2 * PAGE as i128 {
            return None;
        }
        let cut = longest.cut(self.now)?;
        tracks.push(Track::new(cut));
        Some(tracks.len() - 1)
    }

    fn fetch(&self, tasks: &mut JoinSet<Done>, index: usize, track: &Track, limit: usize, room: Room) {
        let scan = self.clone();
        let step = track.step(limit);
        tasks.spawn(async move {
            let list = List {
                filters: &scan.filters,
                created_after: (step.from > i64::MIN).then_some(step.from),
                offset: step.offset,
                limit: step.limit,
                most_bytes: room.num_permits(),
            };
            let page = scan.api.list(&list, &scan.reading).await;
            Done::Fetched(index, step, room, page)
        });
    }
}

/// The rest of the windows. The last page of a window belongs to the rest until it is imported.
fn left(tracks: &[Track]) -> Vec<Window> {
    let left = tracks.iter().filter(|track| track.busy || !track.finished);
    left.map(|track| track.window.clone()).collect()
}

/// Reserve bytes for one more page, if the budget has room. The first page always fits.
fn room(budget: &Arc<Semaphore>, weight: usize) -> Option<(usize, Room)> {
    let limit = (PAGE_BYTES / weight).clamp(LEAST_LIMIT, PAGE);
    // One and a half times the recent size.
    let bytes = (limit * weight + limit * weight / 2).min(BUDGET);
    let room = Arc::clone(budget).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
    Some((limit, room))
}

/// A request of a track.
struct Step {
    /// Exclusive; one millisecond early, in case the API includes it.
    from: i64,
    offset: usize,
    limit: usize,
}

/// A window that is being walked.
struct Track {
    window: Window,
    busy: bool,
    finished: bool,
    /// Where the window will be once the current page is imported.
    ahead: Option<Place>,
    /// The users seen in the current millisecond of the window.
    seen: HashSet<String>,
    offset: usize,
    /// The users seen since the offset was 0.
    walked: HashSet<String>,
    /// The user who must come first at this offset.
    seam: Option<String>,
    restarts: u32,
    /// The number of users on the previous page, and the number of milliseconds that they span.
    density: (usize, i64),
}

impl Track {
    fn new(window: Window) -> Self {
        Self {
            // A continued run starts there.
            seen: window.last.iter().map(|last| last.id.clone()).collect(),
            window,
            busy: false,
            finished: false,
            ahead: None,
            offset: 0,
            walked: HashSet::new(),
            seam: None,
            restarts: 0,
            density: (0, 1),
        }
    }

    fn step(&self, limit: usize) -> Step {
        let from = self.window.last.as_ref().map_or(self.window.start, |last| last.created_at) - 1;
        Step { from, offset: self.offset, limit }
    }

    /// Record that the current page is imported.
    fn arrive(&mut self) {
        self.busy = false;
        if let Some(place) = self.ahead.take() {
            self.window.last = Some(place);
        }
    }

    fn position(&self) -> Option<i64> {
        self.ahead.as_ref().or(self.window.last.as_ref()).map(|place| place.created_at)
    }

    /// An estimate of how many users are left.
    fn users_left(&self, now: i64) -> i128 {
        let (users, span) = self.density;
        let Some(position) = self.position().filter(|_| !self.finished) else { return 0 };
        i128::from((self.window.end.unwrap_or(now) - position).max(0)) * users as i128 / i128::from(span)
    }

    /// Split off the later half of the rest as a new window.
    fn cut(&mut self, now: i64) -> Option<Window> {
        let position = self.position()?;
        let middle = position + (self.window.end.unwrap_or(now) - position) / 2;
        // After the current millisecond.
        if middle <= position {
            return None;
        }
        let later = Window { start: middle, end: self.window.end, last: None };
        self.window.end = Some(middle);
        Some(later)
    }

    /// Process a page: returns the users that were not seen before, or what is wrong with the answer. The walk began at
    /// `now`.
    fn take(&mut self, step: &Step, page: Vec<Found>, now: i64) -> Result<Vec<Found>, &'static str> {
        if page.iter().any(|found| found.created_at < step.from) {
            return Err("users who signed up before created_at_after");
        }
        let full = page.len() >= step.limit;
        let past_the_end =
            page.iter().any(|found| self.window.end.is_some_and(|end| found.created_at >= end));
        if step.offset > 0 && page.first().map(|found| found.clerk_id.as_str()) != self.seam.as_deref() {
            // A user before the offset was deleted, so another may have moved across the boundary: walk this
            // millisecond again.
            self.restarts += 1;
            if self.restarts > RESTARTS {
                return Err("lists that change with every request");
            }
            self.offset = 0;
            self.seam = None;
            return Ok(Vec::new());
        }
        if step.offset == 0 {
            self.walked.clear();
        }
        let walked = self.walked.len();
        self.walked.extend(page.iter().map(|found| found.clerk_id.as_str().to_owned()));
        if step.offset > 0 && full && self.walked.len() == walked {
            return Err("the same users at every offset");
        }
        let (first, last) = (place_of(page.first()), place_of(page.last()));
        if let (Some(first), Some(last)) = (&first, &last) {
            // After a short page there are probably no more users to split off.
            let users = if full { page.len() } else { 0 };
            self.density = (users, (last.created_at - first.created_at + 1).max(1));
        }
        let stand = self.window.last.as_ref().map(|place| place.created_at);
        let fresh: Vec<Found> = page
            .into_iter()
            .filter(|found| self.window.holds(found.created_at))
            .filter(|found| {
                stand.is_none_or(|stand| found.created_at >= stand)
                    && !(stand == Some(found.created_at) && self.seen.contains(found.clerk_id.as_str()))
            })
            .collect();
        if let Some(place) = place_of(fresh.last()) {
            if stand != Some(place.created_at) {
                self.seen.clear();
            }
            let same = fresh.iter().filter(|found| found.created_at == place.created_at);
            self.seen.extend(same.map(|found| found.clerk_id.as_str().to_owned()));
            self.ahead = Some(place);
        }

        // A short page alone does not mean the end, because the server may return fewer users than requested. The last
        // page is one without new users, or the last of the pages that overlap by offsets. Users who signed up after
        // the walk began do not count as new, or the walk would follow new sign-ups without end.
        let is_last = fresh.iter().all(|found| found.created_at > now) || step.offset > 0;
        self.finished = past_the_end || (!full && is_last);
        let moved = self.ahead.as_ref().is_some_and(|place| Some(place.created_at) != stand);
        // A full page of only the current millisecond, or of the one before it if `created_at_after` includes it.
        let is_crowd = full && !moved && !self.finished;
        (self.offset, self.seam) =
            if is_crowd { (self.offset + step.limit - 1, last.map(|place| place.id)) } else { (0, None) };
        Ok(fresh)
    }
}

fn place_of(found: Option<&Found>) -> Option<Place> {
    found.map(|found| Place { created_at: found.created_at, id: found.clerk_id.as_str().to_owned() })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        entity::USER,
        model::{Content, Delivery, Source},
    };

    #[test]
    fn the_last_page_of_a_window_is_left_until_it_is_taken_in() {
        let found = |created_at| {
            let id = ClerkId::new(&USER, format!("user_{created_at}")).expect("an id");
            let at = DateTime::UNIX_EPOCH;
            let delivery = Delivery::without_webhook(id.clone(), Source::Backfill, at, at, Content::Ignored);
            Found { clerk_id: id, created_at, delivery, unread: Vec::new() }
        };
        let window = Window { end: Some(30), ..Window::since(10) };
        let mut tracks = [Track::new(window.clone())];
        tracks[0].busy = true;
        let step = tracks[0].step(PAGE);
        let fresh = tracks[0].take(&step, vec![found(10), found(20), found(30)], 100).expect("in order");
        assert_eq!(fresh.len(), 2);
        // Another window may report its progress now, and then the process may be killed.
        assert_eq!(left(&tracks), [window]);
        tracks[0].arrive();
        assert_eq!(left(&tracks), []);
    }
}
