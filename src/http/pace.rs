//! Time limits of a connection, by its stage.
//!
//! A head has a short limit, whether it has begun or the connection is new. Silence after an answer has a longer one, because
//! proxies keep connections for their next request, and that request fails if the connection is being closed. While a request
//! is answered, other deadlines apply. When connections are scarce, those that only wait for a head are closed, the longest
//! wait first.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{address, head};

/// The limits for the peers of a listener.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Open connections; further ones wait to be accepted.
    pub connections: usize,
    /// For a whole head, from its first byte, or from the start of the connection for the first head.
    pub head_within: Duration,
    /// For silence between two requests.
    pub idle_within: Duration,
    /// The maximum size of a head that hyper reads, in bytes; at least 8,192.
    pub head_bytes: usize,
    /// How long a peer may leave an answer unread.
    pub write_within: Duration,
    /// How long the rest of a refused request is read and discarded, so that the peer sees the answer.
    pub linger: Duration,
    /// How long connections stay open after `shutdown`, so that a peer that reuses one learns from an answer that it closes.
    pub farewell: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head_within: Duration::from_secs(5),
            idle_within: Duration::from_secs(75),
            head_bytes: 2 * head::MAX_BYTES,
            write_within: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            farewell: Duration::from_secs(3),
        }
    }
}

/// The stage of one connection. Its socket, its service and the accept loop share it.
#[derive(Debug)]
pub(super) struct Pace {
    head_within: Duration,
    idle_within: Duration,
    /// The peer's address, or its /64 network.
    pub(super) account: IpAddr,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    stage: Stage,
    since: Instant,
    /// Another connection needs its place.
    displaced: bool,
    waker: Option<Waker>,
}

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No byte has arrived yet.
    Fresh,
    /// A head has begun.
    Head,
    /// A request is being read and answered.
    Request,
    /// The last request was answered, and the next has not begun.
    Idle,
}

impl Pace {
    pub(super) fn new(limits: &ConnectionLimits, peer: IpAddr) -> Self {
        let now = Now { stage: Stage::Fresh, since: Instant::now(), displaced: false, waker: None };
        let &ConnectionLimits { head_within, idle_within, .. } = limits;
        Self { head_within, idle_within, account: address::account(peer), now: Mutex::new(now) }
    }

    /// Note that bytes arrived.
    pub(super) fn heard(&self) {
        let mut now = self.lock();
        if matches!(now.stage, Stage::Fresh | Stage::Idle) {
            // A new connection has one deadline for its whole first head.
            if now.stage == Stage::Idle {
                now.since = Instant::now();
            }
            now.stage = Stage::Head;
        }
    }

    /// Note that a head is complete.
    pub(super) fn requested(&self) {
        self.lock().stage = Stage::Request;
    }

    /// Note that the answer is ready.
    pub(super) fn answered(&self) {
        let mut now = self.lock();
        (now.stage, now.since) = (Stage::Idle, Instant::now());
    }

    /// The stage, and its deadline; `None` if other deadlines apply. The connection is woken up if it is displaced.
    pub(super) fn look(&self, cx: &Context<'_>) -> (Stage, Option<Instant>) {
        let mut now = self.lock();
        if !now.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            now.waker = Some(cx.waker().clone());
        }
        let until = match now.stage {
            Stage::Request => None,
            _ if now.displaced => Some(now.since),
            Stage::Fresh | Stage::Head => Some(now.since + self.head_within),
            Stage::Idle => Some(now.since + self.idle_within),
        };
        (now.stage, until)
    }

    /// Since when the connection only waits for a head.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let now = self.lock();
        (now.stage != Stage::Request && !now.displaced).then_some(now.since)
    }

    pub(super) fn is_displaced(&self) -> bool {
        self.lock().displaced
    }

    /// Ask the connection to close. A request that arrives at the same time is still answered.
    pub(super) fn displace(&self) {
        let mut now = self.lock();
        now.displaced = true;
        if let Some(waker) = &now.waker {
            waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
