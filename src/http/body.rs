//! Reading bodies that are not verified yet.
//!
//! A body is read under a limit and a deadline, and all bodies in transit share one budget, so strangers cannot fill the
//! memory. Strangers cannot block others either. A body that arrives at once needs no share. Part of the budget is
//! reserved for small bodies. When the budget is exhausted, the sender with the largest share gives up a body. Memory is
//! allocated as bytes arrive, never because a header announces them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use super::{address, error::Problem};

/// The budget for all bodies in transit, in bytes, unless a single body may be larger.
const SHARED_BYTES: usize = 16 * 1024 * 1024;

/// The part of the budget that is reserved for small bodies.
const KEPT_FOR_SMALL: usize = 4 * 1024 * 1024;

/// The largest small body. Clerk's bodies have about 4 kB, and 350 kB at most.
const SMALL_BYTES: usize = 64 * 1024;

/// A body that takes longer can be given up for others of the same sender. On any network, Clerk's largest body is faster.
const SLOW: Duration = Duration::from_secs(1);

/// How often a body that waits for budget checks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Reads bodies within the budget.
#[derive(Debug)]
pub struct Bodies {
    max_bytes: usize,
    /// The time limit for a body, counted from the head.
    pub within: Duration,
    room: Mutex<Room>,
}

impl Bodies {
    /// A reader for bodies of at most `max_bytes` that arrive within 5 s of the head.
    pub fn new(max_bytes: usize) -> Self {
        Self::sharing(max_bytes, SHARED_BYTES, KEPT_FOR_SMALL)
    }

    fn sharing(max_bytes: usize, shared: usize, kept_for_small: usize) -> Self {
        let free = shared.max(max_bytes.saturating_add(kept_for_small));
        Self { max_bytes, within: Duration::from_secs(5), room: Mutex::new(Room::new(free, kept_for_small)) }
    }

    /// Refuse a body that announces too many bytes, before the client is asked for it.
    pub(super) fn admit(&self, body: &Body) -> Result<(), Problem> {
        let fits = body.size_hint().lower() <= self.max_bytes as u64;
        fits.then_some(()).ok_or(Problem::BodyTooLarge)
    }

    /// Read a body of this sender. Its head arrived at `head_at`.
    pub(super) async fn read(
        &self,
        mut body: Body,
        sender: IpAddr,
        head_at: Instant,
    ) -> Result<Bytes, Problem> {
        self.admit(&body)?;
        let until = head_at + self.within;
        let announced = body.size_hint().exact().and_then(|exact| exact.try_into().ok());
        let first = next(&mut body, until).await?.unwrap_or_default();
        if announced == Some(first.len()) {
            // Copied, because a chunk of one byte keeps its whole read buffer alive.
            return Ok(Bytes::copy_from_slice(&first));
        }
        let mut place = Place::take(&self.room, address::account(sender));
        let ceiling = announced.unwrap_or(self.max_bytes);
        let mut data = Some(first);
        while let Some(bytes) = data {
            if place.length + bytes.len() > self.max_bytes {
                return Err(Problem::BodyTooLarge);
            }
            place.add(&bytes, ceiling, until).await?;
            data = tokio::select! {
                biased;
                () = place.given_up.notified() => return Err(Problem::NoRoom),
                data = next(&mut body, until) => data?,
            };
        }
        place.finish()
    }
}

/// The next bytes of a body; `None` at the end.
async fn next(body: &mut Body, until: Instant) -> Result<Option<Bytes>, Problem> {
    loop {
        let frame = timeout_at(until, body.frame()).await.map_err(|_| Problem::BodyTimeout)?;
        let Some(frame) = frame else { return Ok(None) };
        if let Ok(data) = frame.map_err(|_| Problem::IncompleteBody)?.into_data() {
            return Ok(Some(data));
        }
    }
}

/// The share of a body in transit. Dropping it always gives the share back.
struct Place<'a> {
    room: &'a Mutex<Room>,
    number: u64,
    /// The number of bytes that arrived.
    length: usize,
    /// The size of its share.
    capacity: usize,
    given_up: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn take(room: &'a Mutex<Room>, sender: IpAddr) -> Self {
        let given_up = Arc::new(Notify::new());
        let number = lock(room).enter(sender, &given_up);
        Self { room, number, length: 0, capacity: 0, given_up }
    }

    /// Store bytes that arrived, once there is budget for them. The whole body has at most `ceiling` bytes.
    async fn add(&mut self, data: &[u8], ceiling: usize, until: Instant) -> Result<(), Problem> {
        let needed = self.length + data.len();
        let capacity =
            if needed > self.capacity { (2 * self.length).min(ceiling).max(needed) } else { self.capacity };
        loop {
            let now = Instant::now();
            match lock(self.room).add(self.number, data, capacity, now) {
                Ok(()) => break,
                Err(Full::ForNow) if now < until => {}
                Err(_) => return Err(Problem::NoRoom),
            }
            sleep(LOOK_AGAIN).await;
        }
        (self.length, self.capacity) = (needed, capacity);
        Ok(())
    }

    /// The complete body. It is verified immediately, so it no longer needs its share.
    fn finish(self) -> Result<Bytes, Problem> {
        let body = lock(self.room).leave(self.number).ok_or(Problem::NoRoom)?;
        Ok(body.into())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.room).leave(self.number);
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All bodies in transit.
#[derive(Debug)]
struct Room {
    /// The free bytes of the budget.
    free: usize,
    kept_for_small: usize,
    next_number: u64,
    /// Oldest first.
    bodies: BTreeMap<u64, Unverified>,
    /// The number of bytes of each sender.
    taken: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Unverified {
    sender: IpAddr,
    since: Instant,
    capacity: usize,
    bytes: Vec<u8>,
    given_up: Arc<Notify>,
}

/// Why a body gets no share.
enum Full {
    /// There may be budget later.
    ForNow,
    /// The body was given up.
    GivenUp,
}

impl Room {
    fn new(free: usize, kept_for_small: usize) -> Self {
        Self { free, kept_for_small, next_number: 0, bodies: BTreeMap::new(), taken: HashMap::new() }
    }

    fn enter(&mut self, sender: IpAddr, given_up: &Arc<Notify>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let (since, given_up) = (Instant::now(), Arc::clone(given_up));
        self.bodies.insert(number, Unverified { sender, since, capacity: 0, bytes: Vec::new(), given_up });
        number
    }

    fn leave(&mut self, number: u64) -> Option<Vec<u8>> {
        let body = self.bodies.remove(&number)?;
        self.free += body.capacity;
        if let Some(taken) = self.taken.get_mut(&body.sender) {
            *taken -= body.capacity;
            if *taken == 0 {
                self.taken.remove(&body.sender);
            }
        }
        Some(body.bytes)
    }

    fn add(&mut self, number: u64, data: &[u8], capacity: usize, now: Instant) -> Result<(), Full> {
        let body = self.bodies.get(&number).ok_or(Full::GivenUp)?;
        let (sender, more) = (body.sender, capacity - body.capacity);
        let kept = if capacity <= SMALL_BYTES { 0 } else { self.kept_for_small };
        while more > 0 && self.free < more + kept {
            self.make_way(number, sender, more, now)?;
        }
        self.free -= more;
        if more > 0 {
            *self.taken.entry(sender).or_default() += more;
        }
        let body = self.bodies.get_mut(&number).ok_or(Full::GivenUp)?;
        body.capacity = capacity;
        body.bytes.reserve_exact(capacity - body.bytes.len());
        body.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Give up the oldest body of the sender with the largest share. A sender that would have the largest share itself can only
    /// give up slow bodies, so a burst of genuine bodies waits instead of displacing itself.
    fn make_way(&mut self, number: u64, sender: IpAddr, more: usize, now: Instant) -> Result<(), Full> {
        let own = self.taken.get(&sender).copied().unwrap_or_default() + more;
        let others = self.taken.iter().filter(|(other, _)| **other != sender);
        let (greediest, most) =
            others.max_by_key(|(_, taken)| **taken).map_or((sender, 0), |(a, b)| (*a, *b));
        let from = if most >= own { greediest } else { sender };
        let may_be_young = most > own;
        let oldest = self
            .bodies
            .iter()
            .find(|(other, body)| **other != number && body.sender == from && body.capacity > 0);
        let (&oldest, body) = oldest.ok_or(Full::ForNow)?;
        if !may_be_young && now.saturating_duration_since(body.since) < SLOW {
            return Err(Full::ForNow);
        }
        body.given_up.notify_one();
        self.leave(oldest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;
    use tokio::task::JoinHandle;

    use super::*;

    /// A body without an announced length, which may never end.
    struct Chunks {
        chunks: VecDeque<Bytes>,
        ends: bool,
    }

    impl hyper::body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.chunks.pop_front() {
                None if !self.ends => Poll::Pending,
                chunk => Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
            }
        }
    }

    /// A body with this many bytes that never ends.
    fn endless(bytes: usize) -> Body {
        Body::new(Chunks { chunks: [Bytes::from(vec![b'x'; bytes])].into(), ends: false })
    }

    fn chunked(bytes: usize, chunk: usize) -> Body {
        let chunks: Vec<_> = vec![b'x'; bytes].chunks(chunk).map(Bytes::copy_from_slice).collect();
        Body::new(Chunks { chunks: chunks.into(), ends: true })
    }

    fn sender(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    fn bodies(shared: usize, kept_for_small: usize) -> Arc<Bodies> {
        let within = Duration::from_mins(5);
        Arc::new(Bodies { within, ..Bodies::sharing(100_000, shared, kept_for_small) })
    }

    /// A sender that sends this much of a body, and then nothing.
    async fn hold(bodies: &Arc<Bodies>, bytes: usize, sender: IpAddr) -> JoinHandle<Option<Problem>> {
        let bodies = Arc::clone(bodies);
        let held =
            tokio::spawn(async move { bodies.read(endless(bytes), sender, Instant::now()).await.err() });
        tokio::task::yield_now().await;
        held
    }

    #[tokio::test]
    async fn room_is_given_back_whatever_becomes_of_a_body() {
        let bodies = bodies(300_000, 0);
        assert_eq!(
            bodies.read(chunked(90_000, 10_000), sender(1), Instant::now()).await.map(|body| body.len()),
            Ok(90_000)
        );
        assert_eq!(
            bodies.read(chunked(100_001, 10_000), sender(1), Instant::now()).await.err(),
            Some(Problem::BodyTooLarge)
        );
        let long_ago = Instant::now().checked_sub(bodies.within).expect("the machine is older");
        assert_eq!(bodies.read(endless(90_000), sender(1), long_ago).await.err(), Some(Problem::BodyTimeout));
        let gone = hold(&bodies, 90_000, sender(1)).await;
        gone.abort();
        _ = gone.await;
        let room = lock(&bodies.room);
        assert_eq!((room.free, room.bodies.len(), room.taken.len()), (300_000, 0, 0));
    }

    #[tokio::test]
    async fn whoever_takes_the_most_makes_way_for_another_sender() {
        let bodies = bodies(300_000, 0);
        let greedy = [hold(&bodies, 100_000, sender(1)).await, hold(&bodies, 100_000, sender(1)).await];
        let modest = hold(&bodies, 90_000, sender(2)).await;
        let read = bodies.read(chunked(80_000, 10_000), sender(3), Instant::now()).await;
        assert_eq!(read.map(|body| body.len()), Ok(80_000));
        let [oldest, other] = greedy;
        assert_eq!(oldest.await.expect("no panic"), Some(Problem::NoRoom));
        assert!(!other.is_finished());
        assert!(!modest.is_finished());
    }

    #[tokio::test]
    async fn one_sender_waits_for_its_own_bodies_and_then_gives_up_the_slow_ones() {
        let bodies = bodies(200_000, 0);
        let slow = [hold(&bodies, 100_000, sender(1)).await, hold(&bodies, 100_000, sender(1)).await];
        let started = Instant::now();
        let read = bodies.read(chunked(50_000, 10_000), sender(1), started).await;
        assert_eq!(read.map(|body| body.len()), Ok(50_000));
        assert!(started.elapsed() >= SLOW);
        let [oldest, other] = slow;
        assert_eq!(oldest.await.expect("no panic"), Some(Problem::NoRoom));
        assert!(!other.is_finished());
    }

    #[tokio::test]
    async fn an_ipv6_network_is_one_sender() {
        let bodies = bodies(200_000, 0);
        let [one, two, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|address| address.parse().expect("an address"));
        let held = [hold(&bodies, 100_000, one).await, hold(&bodies, 100_000, two).await];
        let read = bodies.read(chunked(99_000, 10_000), other, Instant::now()).await;
        assert_eq!(read.map(|body| body.len()), Ok(99_000));
        let [oldest, youngest] = held;
        assert_eq!(oldest.await.expect("no panic"), Some(Problem::NoRoom));
        assert!(!youngest.is_finished());
    }

    #[tokio::test]
    async fn small_bodies_have_room_however_many_large_ones_there_are() {
        let bodies = bodies(300_000, 70_000);
        let mut large = Vec::new();
        for number in 1..=9 {
            large.push(hold(&bodies, 100_000, sender(number)).await);
        }
        for number in 1..=9 {
            let read = bodies.read(chunked(SMALL_BYTES, 10_000), sender(number), Instant::now()).await;
            assert_eq!(read.map(|body| body.len()), Ok(SMALL_BYTES));
        }
        // A body that arrives at once needs no share.
        let at_once = Body::from(vec![b'x'; 100_000]);
        assert_eq!(bodies.read(at_once, sender(1), Instant::now()).await.map(|body| body.len()), Ok(100_000));
    }

    #[tokio::test]
    async fn the_limit_is_exact_with_and_without_an_announced_length() {
        let bodies = Bodies::new(1000);
        for (size, expected) in [(0, Ok(0)), (1000, Ok(1000)), (1001, Err(Problem::BodyTooLarge))] {
            for body in [Body::from(vec![b'x'; size]), chunked(size, 300)] {
                let read = bodies.read(body, sender(1), Instant::now()).await.map(|body| body.len());
                assert_eq!(read, expected);
            }
        }
    }
}
