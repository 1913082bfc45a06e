//! Walking through all users at Clerk, several pages side by side.
//!
//! A window is a stretch of time, walked in the order of sign-up. When there is room for more requests, the window with most
//! users left is cut in two. A request says from which millisecond on users are wanted, and what was seen of that millisecond
//! is passed over. Where more users signed up in one millisecond than fit on a page, offsets that overlap by a user show
//! whether a user left meanwhile. A user whom several pages show is seen once. A walk that makes no progress ends with an
//! error.
//!
//! However large users are, the pages on their way share [`BUDGET`]: a page is asked for once there is room for it, is as large
//! as users have lately been, and is not read further than its room. What would be longer is asked for again in smaller pages.
//!
//! Nothing is decided about users here: a [`Visit`] takes them in.

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

/// Pages that are fetched at the same time, at most. So many keep 90 requests a second busy that take a third of a second.
const SIDE_BY_SIDE: usize = 32;

/// Bytes of answers that are fetched or taken in at the same time.
const BUDGET: usize = 40 << 20;

/// As large as a page is wanted, in bytes, where users are so large that it cannot be whole.
const PAGE_BYTES: usize = 4 << 20;

/// As large as a user is taken to be before any was seen, in bytes: so that the first page is a whole one.
const FIRST_WEIGHT: usize = PAGE_BYTES / PAGE;

/// No user is taken to be smaller than this, in bytes.
const LEAST_WEIGHT: usize = 1 << 10;

/// Users of a page, at least: one of them is that of the page before where a walk goes by offsets.
const LEAST_LIMIT: usize = 2;

/// How often a walk by offsets begins again because somebody left meanwhile.
const RESTARTS: u32 = 100;

/// Users who signed up in a stretch of time, or organizations of that time, and how far they were walked through. Kept in `sync_runs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// The first millisecond.
    start: i64,
    /// The millisecond behind the last; none: whoever signs up from then on is in it too.
    end: Option<i64>,
    /// The last user that was taken in.
    last: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    created_at: i64,
    id: String,
}

impl Window {
    /// Everybody.
    pub(super) fn everybody() -> Self {
        Self::since(i64::MIN + 1)
    }

    /// Those that were created in this millisecond or later.
    pub(super) fn since(start: i64) -> Self {
        Self { start, end: None, last: None }
    }

    pub(super) fn holds(&self, created_at: i64) -> bool {
        created_at >= self.start && self.end.is_none_or(|end| created_at < end)
    }
}

/// What is done with objects that a walk shows, and with how far it has come. By default nothing.
#[async_trait]
pub(super) trait Visit: Send + Sync + 'static {
    /// Take in objects of one page, which were not seen before.
    async fn visit(&self, _found: Vec<Found>) -> Result<Counts, CatchUpError> {
        Ok(Counts::default())
    }

    /// So many there are at Clerk, before any of them is visited.
    async fn expect(&self, _counted: Option<u64>) -> Result<(), CatchUpError> {
        Ok(())
    }

    /// What is left to walk, and what became of a page that no longer is: who was visited is in none of these windows.
    async fn reached(&self, _left: Vec<Window>, _counts: Counts) -> Result<(), CatchUpError> {
        Ok(())
    }
}

/// Who was seen in a run, by two hashes, which no two users share.
#[derive(Default)]
pub(super) struct Seen {
    hashers: [RandomState; 2],
    /// A tree, which unlike a table never stands twice in memory while it grows.
    ids: Mutex<BTreeSet<[u64; 2]>>,
    /// How many were seen before, in a run that goes on.
    before: u64,
}

impl Seen {
    /// So many were seen before.
    pub(super) fn after(before: u64) -> Self {
        Self { before, ..Self::default() }
    }

    /// Those who are seen for the first time.
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

    /// How many there are.
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

/// What an interrupted walk has left, and how many users Clerk counted at its beginning.
pub(super) struct Left {
    pub(super) windows: Vec<Window>,
    pub(super) counted: Option<u64>,
}

/// What a walk needs.
#[derive(Clone)]
pub(super) struct Scan {
    api: Arc<Api>,
    filters: Arc<Filters>,
    reading: Reading,
    seen: Arc<Seen>,
    side_by_side: usize,
    /// The present, in unix milliseconds: where an open window is taken to end when it is cut.
    now: i64,
}

/// Room for a page, given back when its users are taken in.
type Room = OwnedSemaphorePermit;

/// What a task has done with a track.
enum Done {
    Fetched(usize, Step, Room, Result<Shown, ApiError>),
    Visited(usize, Result<Counts, CatchUpError>),
}

impl Scan {
    /// Of users that `filters` name, read as `reading` says, so many pages at a time at most; those in `seen` are passed over.
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

    /// Walk through the windows that an interrupted run has left, or through everybody. On an error what was visited has been
    /// reported as reached.
    ///
    /// # Errors
    /// If Clerk fails, or if it showed clearly fewer users than it counts, more than can have left meanwhile.
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

    /// How many users there are, if Clerk says. The walk does not rely on it.
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
        // Bytes that are left, and bytes of a user as they have lately been.
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
                        // Users are larger than they were: the same once more, with fewer of them and more room for each.
                        Err(ApiError::TooLong { most, .. }) if most < BUDGET => {
                            weight = weight.max(most / step.limit * 2).min(BUDGET);
                            Vec::new()
                        }
                        page => {
                            let Shown { users, bytes } = page?;
                            if let Some(each) = bytes.checked_div(users.len()) {
                                // At once that they are larger, and bit by bit that they are smaller.
                                weight = each.max(weight - weight / 4).clamp(LEAST_WEIGHT, BUDGET);
                            }
                            // What it did not need is for others.
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

    /// A track that waits, or one cut from the busiest.
    fn next(&self, tracks: &mut Vec<Track>) -> Option<usize> {
        if let Some(waiting) = tracks.iter().position(|track| !track.busy && !track.finished) {
            return Some(waiting);
        }
        let longest = tracks.iter_mut().max_by_key(|track| track.users_left(self.now))?;
        // Less than two pages are fetched sooner than cut.
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

/// What is left of windows. The last page of one is left until it is taken in.
fn left(tracks: &[Track]) -> Vec<Window> {
    let left = tracks.iter().filter(|track| track.busy || !track.finished);
    left.map(|track| track.window.clone()).collect()
}

/// Room for one more page of so many users, if there is any. While nothing is on its way there is.
fn room(budget: &Arc<Semaphore>, weight: usize) -> Option<(usize, Room)> {
    let limit = (PAGE_BYTES / weight).clamp(LEAST_LIMIT, PAGE);
    // Half as much again as they have been.
    let bytes = (limit * weight + limit * weight / 2).min(BUDGET);
    let room = Arc::clone(budget).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
    Some((limit, room))
}

/// A request of a track.
struct Step {
    /// Exclusive; one millisecond early, in case it is not.
    from: i64,
    offset: usize,
    limit: usize,
}

/// A window on its way.
struct Track {
    window: Window,
    busy: bool,
    finished: bool,
    /// Where the window will be when the page in hand is taken in.
    ahead: Option<Place>,
    /// Who was seen of the millisecond at which the window stands.
    seen: HashSet<String>,
    offset: usize,
    /// Who was seen since the offset was 0.
    walked: HashSet<String>,
    /// Who must come first at this offset.
    seam: Option<String>,
    restarts: u32,
    /// So many users in so many milliseconds, on the page before.
    density: (usize, i64),
}

impl Track {
    fn new(window: Window) -> Self {
        Self {
            // A run that goes on begins there.
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

    /// The page in hand is taken in.
    fn arrive(&mut self) {
        self.busy = false;
        if let Some(place) = self.ahead.take() {
            self.window.last = Some(place);
        }
    }

    fn position(&self) -> Option<i64> {
        self.ahead.as_ref().or(self.window.last.as_ref()).map(|place| place.created_at)
    }

    /// How many users are probably left.
    fn users_left(&self, now: i64) -> i128 {
        let (users, span) = self.density;
        let Some(position) = self.position().filter(|_| !self.finished) else { return 0 };
        i128::from((self.window.end.unwrap_or(now) - position).max(0)) * users as i128 / i128::from(span)
    }

    /// Leave the later half of what is left to somebody else.
    fn cut(&mut self, now: i64) -> Option<Window> {
        let position = self.position()?;
        let middle = position + (self.window.end.unwrap_or(now) - position) / 2;
        // Behind the millisecond that we stand at.
        if middle <= position {
            return None;
        }
        let later = Window { start: middle, end: self.window.end, last: None };
        self.window.end = Some(middle);
        Some(later)
    }

    /// Understand a page; gives those on it who were not seen before, or what is not Clerk's way about it. The walk began
    /// at `now`.
    fn take(&mut self, step: &Step, page: Vec<Found>, now: i64) -> Result<Vec<Found>, &'static str> {
        if page.iter().any(|found| found.created_at < step.from) {
            return Err("users who signed up before created_at_after");
        }
        let full = page.len() >= step.limit;
        let past_the_end =
            page.iter().any(|found| self.window.end.is_some_and(|end| found.created_at >= end));
        if step.offset > 0 && page.first().map(|found| found.clerk_id.as_str()) != self.seam.as_deref() {
            // Somebody before us is gone, so somebody may have moved over the seam: through this millisecond again.
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
            // Behind a short page there is probably nobody, and nothing to cut off.
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

        // A page may be short because the server shows fewer at once than it is asked for: only one with nobody new is the
        // last, or the last one of those that are overlapped by offsets. Nobody new is also who signed up since the walk
        // began, or it would follow new sign-ups for ever.
        let is_last = fresh.iter().all(|found| found.created_at > now) || step.offset > 0;
        self.finished = past_the_end || (!full && is_last);
        let moved = self.ahead.as_ref().is_some_and(|place| Some(place.created_at) != stand);
        // A whole page of the one millisecond that we stand at, or of the one before it if `created_at_after` includes it.
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
        // Another window may tell of its progress now, and then the process be killed.
        assert_eq!(left(&tracks), [window]);
        tracks[0].arrive();
        assert_eq!(left(&tracks), []);
    }
}
