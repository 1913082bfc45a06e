//! Walking through all users at Clerk, several pages side by side.
//!
//! The time since the first sign-up is cut into windows. Each is walked in the order of sign-up with Clerk's cursor; when
//! there is room for more requests, the window with most left to do is cut in two. A user is never skipped: every request
//! also says from which millisecond on, so that a cursor that is refused, ignored or gone with its user does no harm; a
//! page that seems to be the last one is looked behind once more without a cursor; and where a whole page signed up in one
//! millisecond, offsets that overlap by a user show whether anybody left meanwhile. A user whom several pages show is seen
//! once. It never loops: a walk that makes no progress ends with an error.
//!
//! However large users are, the pages on their way share [`BUDGET`]: a page is asked for once there is room for it, is as large
//! as users have lately been, and is not read further than its room. What would be longer is asked for again in smaller pages.
//!
//! Nothing is decided about users here: a [`Visit`] takes them in.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::catch_up::{CatchUp, Counts, Trouble};
use crate::{
    clerk::{
        api::{Api, ApiError, Filters, List, MAX_ANSWER_BYTES, PAGE, Shown},
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

/// As large as a user is taken to be before any was seen, in bytes: larger than Clerk allows metadata to be.
const FIRST_WEIGHT: usize = 32 << 10;

/// No user is taken to be smaller than this, in bytes.
const LEAST_WEIGHT: usize = 1 << 10;

/// Users of a page, at least: one of them is that of the page before where a walk goes by offsets.
const LEAST_LIMIT: usize = 2;

/// So many cursors refused in a row are not about users who are gone.
const REFUSED_CURSORS: u32 = 64;

/// How often a walk by offsets begins again because somebody left meanwhile.
const RESTARTS: u32 = 100;

/// Users who signed up in a stretch of time, and how far they were walked through. Kept in `sync_runs`.
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
        Self { start: i64::MIN + 1, end: None, last: None }
    }

    /// As many windows of one length from this millisecond to that one; the last one stays open.
    pub(super) fn cut(from: i64, to: i64, count: usize) -> Vec<Self> {
        let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
        let length = (to.saturating_sub(from) / count).max(1);
        let edge = |number: i64| from.saturating_add(length.saturating_mul(number));
        (0..count)
            .map(|number| Self {
                start: if number == 0 { i64::MIN + 1 } else { edge(number) },
                end: (number + 1 < count).then(|| edge(number + 1)),
                last: None,
            })
            .collect()
    }

    fn holds(&self, created_at: i64) -> bool {
        created_at >= self.start && self.end.is_none_or(|end| created_at < end)
    }
}

/// Who takes users in.
#[async_trait]
pub(super) trait Visit: Send + Sync + 'static {
    /// Take in users of one page, who were not seen before.
    async fn visit(&self, users: Vec<Found>) -> Result<Counts, Trouble>;

    /// So many there are at Clerk, before any of them is visited.
    async fn expect(&self, _counted: u64) -> Result<(), Trouble> {
        Ok(())
    }

    /// What is left to walk, and what became of a page that no longer is: who was visited is in none of these windows.
    async fn reached(&self, left: Vec<Window>, counts: Counts) -> Result<(), Trouble>;
}

/// Who was seen in a run, by two hashes, which no two users share.
#[derive(Default)]
pub(super) struct Seen {
    hashers: [RandomState; 2],
    /// A tree, which unlike a table never stands twice in memory while it grows.
    ids: Mutex<BTreeSet<[u64; 2]>>,
}

impl Seen {
    /// Those who are seen for the first time.
    pub(super) fn first_time(&self, mut users: Vec<Found>) -> Vec<Found> {
        let mut ids = self.ids();
        users.retain(|found| ids.insert(self.hashes(&found.clerk_id)));
        users
    }

    pub(super) fn contains(&self, id: &ClerkId) -> bool {
        self.ids().contains(&self.hashes(id))
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.ids().len() as u64
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<[u64; 2]>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hashes(&self, id: &ClerkId) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(id))
    }
}

/// What a walk needs.
#[derive(Clone)]
pub(super) struct Scan {
    api: Arc<Api>,
    filters: Arc<Filters>,
    reading: Reading,
    seen: Arc<Seen>,
    /// The present, in unix milliseconds: where an open window is taken to end when it is cut.
    now: i64,
    /// Whether the server has shown that it does not know the cursor.
    ignores_cursor: Arc<AtomicBool>,
    /// How often it has refused one since it took one.
    refused_cursors: Arc<AtomicU32>,
    /// Bytes that are left of [`BUDGET`].
    room: Arc<Semaphore>,
    /// Bytes of a user, as they have lately been.
    weight: Arc<AtomicUsize>,
}

/// Room for a page, given back when its users are taken in.
type Room = OwnedSemaphorePermit;

/// What a task has done with a track.
enum Done {
    Fetched(usize, Step, Room, Result<Shown, ApiError>),
    Visited(usize, Result<Counts, Trouble>),
}

impl Scan {
    /// Of users that `filters` name, read as `reading` says; those in `seen` are passed over.
    pub(super) fn new(context: &CatchUp, filters: Filters, reading: Reading, seen: Arc<Seen>) -> Self {
        Self {
            api: Arc::clone(&context.api),
            filters: Arc::new(filters),
            reading,
            seen,
            now: (context.clock)().timestamp_millis(),
            ignores_cursor: Arc::default(),
            refused_cursors: Arc::default(),
            room: Arc::new(Semaphore::new(BUDGET)),
            weight: Arc::new(AtomicUsize::new(FIRST_WEIGHT)),
        }
    }

    /// The windows to begin with, and how many users there are, if that was asked.
    pub(super) async fn windows(&self) -> Result<(Vec<Window>, Option<u64>), Trouble> {
        if !self.filters.values.is_empty() {
            return Ok((vec![Window::everybody()], None));
        }
        // Only for the progress: the walk does not rely on it.
        let count = match self.api.count(&self.filters).await {
            Err(ApiError::Refused { .. } | ApiError::Unintelligible { .. }) => None,
            count => Some(count?),
        };
        let pages =
            count.map_or(SIDE_BY_SIDE, |count| usize::try_from(count).unwrap_or(usize::MAX).div_ceil(PAGE));
        let first = List {
            filters: &self.filters,
            created_after: None,
            starting_after: None,
            offset: 0,
            limit: 1,
            most_bytes: MAX_ANSWER_BYTES,
        };
        let first = self.api.list(&first, &self.reading).await?;
        self.assume(first.bytes.saturating_mul(2).clamp(LEAST_WEIGHT, FIRST_WEIGHT));
        let windows = match first.users.first() {
            Some(first) if pages > 1 => Window::cut(first.created_at, self.now, pages.min(SIDE_BY_SIDE)),
            _ => vec![Window::everybody()],
        };
        Ok((windows, count))
    }

    /// Walk through these windows to their ends. On an error what was visited has been reported as reached.
    pub(super) async fn run(&self, windows: Vec<Window>, visitor: &Arc<dyn Visit>) -> Result<(), Trouble> {
        let mut tracks: Vec<Track> = windows.into_iter().map(Track::new).collect();
        let mut tasks: JoinSet<Done> = JoinSet::new();
        loop {
            while tasks.len() < SIDE_BY_SIDE
                && let Some((limit, room)) = self.room()
                && let Some(index) = self.next(&mut tracks)
            {
                tracks[index].busy = true;
                self.fetch(&mut tasks, index, &tracks[index], limit, room);
            }
            let Some(done) = tasks.join_next().await else { return Ok(()) };
            let done = done.map_err(|_| Trouble::Abandoned)?;
            let (index, counts) = match done {
                Done::Fetched(index, step, mut room, page) => {
                    if let Ok(Shown { users, bytes }) = &page {
                        self.weigh(users.len(), *bytes);
                        // What it did not need is for others.
                        drop(room.split(room.num_permits().saturating_sub(*bytes)));
                    }
                    let page = page.map(|shown| shown.users);
                    let fresh = self.seen.first_time(self.take(&mut tracks[index], &step, page)?);
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
            let left = tracks.iter().filter(|track| !track.finished).map(|track| track.window.clone());
            visitor.reached(left.collect(), counts).await?;
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

    /// Room for one more page of so many users, if there is any. While nothing is on its way there is.
    fn room(&self) -> Option<(usize, Room)> {
        let weight = self.weight.load(Ordering::Relaxed);
        let limit = (PAGE_BYTES / weight).clamp(LEAST_LIMIT, PAGE);
        // Half as much again as they have been.
        let bytes = (limit * weight + limit * weight / 2).min(BUDGET);
        let room = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
        Some((limit, room))
    }

    /// Learn from a page how large users are: at once that they are larger, and bit by bit that they are smaller.
    fn weigh(&self, users: usize, bytes: usize) {
        if let Some(each) = bytes.checked_div(users) {
            let before = self.weight.load(Ordering::Relaxed);
            self.assume(each.max(before - before / 4));
        }
    }

    fn assume(&self, weight: usize) {
        self.weight.store(weight.clamp(LEAST_WEIGHT, BUDGET), Ordering::Relaxed);
    }

    fn fetch(&self, tasks: &mut JoinSet<Done>, index: usize, track: &Track, limit: usize, room: Room) {
        let scan = self.clone();
        let step = track.step(self.ignores_cursor.load(Ordering::Relaxed), limit);
        tasks.spawn(async move {
            let list = List {
                filters: &scan.filters,
                created_after: (step.from > i64::MIN).then_some(step.from),
                starting_after: step.cursor.as_deref(),
                offset: step.offset,
                limit: step.limit,
                most_bytes: room.num_permits(),
            };
            let page = scan.api.list(&list, &scan.reading).await;
            Done::Fetched(index, step, room, page)
        });
    }

    /// Understand a page; gives those on it who were not seen before.
    fn take(
        &self,
        track: &mut Track,
        step: &Step,
        page: Result<Vec<Found>, ApiError>,
    ) -> Result<Vec<Found>, Trouble> {
        let page = match page {
            Err(ApiError::Refused { .. }) if step.cursor.is_some() => {
                // Perhaps the user that it names is gone; not so often, though.
                track.without_cursor = true;
                if self.refused_cursors.fetch_add(1, Ordering::Relaxed) + 1 == REFUSED_CURSORS {
                    self.do_without_cursor("refuses");
                }
                return Ok(Vec::new());
            }
            // Users are larger than they were: the same once more, with fewer of them and more room for each.
            Err(ApiError::TooLong { most, .. }) if most < BUDGET => {
                let before = self.weight.load(Ordering::Relaxed);
                self.assume(before.max((most / step.limit).saturating_mul(2)));
                return Ok(Vec::new());
            }
            page => page?,
        };
        if page.iter().any(|found| found.created_at < step.from) {
            return Err(self.unintelligible("users who signed up before created_at_after"));
        }
        if let Some(cursor) = &step.cursor {
            self.refused_cursors.store(0, Ordering::Relaxed);
            if page.iter().any(|found| found.clerk_id.as_str() == cursor) {
                self.do_without_cursor("ignores");
            }
        }
        let ignores_cursor = self.ignores_cursor.load(Ordering::Relaxed);
        track.take(step, page, ignores_cursor, self.now).map_err(|what| self.unintelligible(what))
    }

    fn unintelligible(&self, what: &str) -> Trouble {
        self.api.unintelligible(what).into()
    }

    fn do_without_cursor(&self, what: &str) {
        if !self.ignores_cursor.swap(true, Ordering::Relaxed) {
            tracing::warn!("Clerk's API {what} starting_after: we go on by time of sign-up and offset");
        }
    }
}

/// A request of a track.
struct Step {
    /// Exclusive; one millisecond early, in case it is not.
    from: i64,
    cursor: Option<String>,
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
    /// The next request has no cursor, to look behind an end or a cursor that is refused.
    without_cursor: bool,
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
            without_cursor: false,
            offset: 0,
            walked: HashSet::new(),
            seam: None,
            restarts: 0,
            density: (0, 1),
        }
    }

    fn step(&self, ignores_cursor: bool, limit: usize) -> Step {
        let from = self.window.last.as_ref().map_or(self.window.start, |last| last.created_at) - 1;
        let cursor = (!self.without_cursor && !ignores_cursor)
            .then(|| self.window.last.as_ref().map(|last| last.id.clone()))
            .flatten();
        Step { from, cursor, offset: self.offset, limit }
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
    fn take(
        &mut self,
        step: &Step,
        page: Vec<Found>,
        ignores_cursor: bool,
        now: i64,
    ) -> Result<Vec<Found>, &'static str> {
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
        let (first, last) = (page.first().cloned_place(), page.last().cloned_place());
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
        if let Some(place) = fresh.last().cloned_place() {
            if stand != Some(place.created_at) {
                self.seen.clear();
            }
            let same = fresh.iter().filter(|found| found.created_at == place.created_at);
            self.seen.extend(same.map(|found| found.clerk_id.as_str().to_owned()));
            self.ahead = Some(place);
        }

        let was_without_cursor = step.cursor.is_none() || ignores_cursor;
        self.without_cursor = false;
        // A page may be short because the server shows fewer at once than it is asked for: only one with nobody new is the
        // last, or the last one of those that are overlapped by offsets. Nobody new is also who signed up since the walk
        // began, or it would follow new sign-ups for ever.
        let is_last = fresh.iter().all(|found| found.created_at > now) || step.offset > 0;
        self.finished = past_the_end || (!full && was_without_cursor && is_last);
        if !full && !self.finished {
            // The end, or a cursor whose user is gone.
            self.without_cursor = true;
        }
        let moved = self.ahead.as_ref().is_some_and(|place| Some(place.created_at) != stand);
        if full && was_without_cursor && !moved && !self.finished {
            // A whole page of the one millisecond that we stand at, or of the one before it if `created_at_after`
            // includes it.
            self.offset += step.limit - 1;
            self.seam = last.map(|place| place.id);
            self.without_cursor = true;
        } else {
            self.offset = 0;
            self.seam = None;
            if full && fresh.is_empty() && !self.finished && !was_without_cursor {
                return Err("the same page again");
            }
        }
        Ok(fresh)
    }
}

trait ClonedPlace {
    fn cloned_place(&self) -> Option<Place>;
}

impl ClonedPlace for Option<&Found> {
    fn cloned_place(&self) -> Option<Place> {
        self.map(|found| Place { created_at: found.created_at, id: found.clerk_id.as_str().to_owned() })
    }
}
