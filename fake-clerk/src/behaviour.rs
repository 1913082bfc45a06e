//! How a fake misbehaves: what a client has to live with.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::StatusCode;

use super::{id::hash, refusal::Refusal, user::fraction};

/// Clerk counts requests over this time.
const WINDOW: Duration = Duration::from_secs(10);

/// How a fake behaves. The default is a server without faults, limits or delays.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Behaviour {
    /// How long every answer takes at least.
    pub latency: Duration,
    /// The share of requests that are answered 500, 503 or 504, from 0 to 1. The same requests in the same order fail
    /// again.
    pub failures: f64,
    /// More requests with a valid key than this in any 10 s are answered 429, with the whole seconds until the next
    /// will do in `Retry-After`. Refused ones do not count. Clerk: 1000, and 100 for development instances.
    pub rate_limit: Option<u32>,
    /// Spells in which everything is answered 429.
    pub bursts_of_429: Option<Bursts>,
    /// Be a server that does not know `starting_after`, and ignores it like everything that it does not know.
    pub ignore_cursor: bool,
    /// Lists show only this share of what there is, from 0 to 1, always the same. `GET /users/{id}` still finds all, and
    /// so does `GET /organizations/{id}`.
    pub only: Option<f64>,
    /// With `only`: `GET /users/count` and every `total_count` count what lists show. Otherwise they count all.
    pub count_only_listed: bool,
    /// What becomes of a cursor whose user has been deleted; it is not known what Clerk does.
    pub deleted_cursor: DeletedCursor,
    /// Whether `…_after` and `…_before` include the very millisecond that they name; it is not known whether Clerk's do.
    pub inclusive_times: bool,
    /// Be an instance without organizations: whatever has to do with them is answered 403.
    pub organizations_off: bool,
    /// Close every connection at its next request, without an answer.
    pub down: bool,
    /// Accept every request and never answer.
    pub hang: bool,
    /// Answers that no Clerk gives.
    pub script: Script,
}

/// What is answered instead of what a fake would say, by the path and what stands behind the question mark; `None` leaves
/// a request to the fake.
#[derive(Clone, Default)]
pub struct Script(Option<Arc<Answering>>);

type Answering = dyn Fn(&str, &str) -> Option<Canned> + Send + Sync;

/// An answer of a script.
#[derive(Clone, Debug)]
pub struct Canned {
    pub status: u16,
    /// They replace those that a fake would send.
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Canned {
    /// With the usual headers.
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

impl Script {
    pub fn new(answering: impl Fn(&str, &str) -> Option<Canned> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(answering)))
    }

    /// What it says to a request.
    pub fn answer(&self, path: &str, query: &str) -> Option<Canned> {
        self.0.as_ref()?(path, query)
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Script(..)" } else { "Script(none)" })
    }
}

/// Spells of 429: the first one `every` after the behaviour began, and so on.
#[derive(Clone, Copy, Debug)]
pub struct Bursts {
    /// From the beginning of one to that of the next.
    pub every: Duration,
    /// Of one.
    pub lasting: Duration,
    /// What `Retry-After` says, in seconds.
    pub retry_after: u32,
}

/// What `starting_after` does with the id of a deleted user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletedCursor {
    /// 422 `form_resource_not_found`, as for an id that never was.
    #[default]
    NotFound422,
    /// A page of nobody.
    EmptyPage,
    /// The page that it would have been, had the user stayed.
    GoOn,
}

/// A behaviour since it began.
pub(super) struct Conduct {
    pub(super) behaviour: Behaviour,
    since: Instant,
    /// When requests were let through in the last [`WINDOW`].
    recent: VecDeque<Instant>,
}

impl Conduct {
    pub(super) fn new(now: Instant) -> Self {
        Self { behaviour: Behaviour::default(), since: now, recent: VecDeque::new() }
    }

    /// From now on. What has been let through stays counted.
    pub(super) fn change(&mut self, behaviour: Behaviour, now: Instant) {
        self.behaviour = behaviour;
        self.since = now;
    }

    /// Trouble that meets anybody, at the request of this number.
    pub(super) fn trouble(&self, request: usize, now: Instant) -> Result<(), Refusal> {
        if let Some(bursts) = self.behaviour.bursts_of_429
            && bursts.is_on(now.duration_since(self.since))
        {
            return Err(Refusal::too_many_requests(u64::from(bursts.retry_after)));
        }
        let bits = hash(request as u64, 30);
        if fraction(bits) < self.behaviour.failures {
            return Err(Refusal::broken(match bits % 3 {
                0 => StatusCode::INTERNAL_SERVER_ERROR,
                1 => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::GATEWAY_TIMEOUT,
            }));
        }
        Ok(())
    }

    /// Count a request, or refuse it.
    pub(super) fn limit(&mut self, now: Instant) -> Result<(), Refusal> {
        let Some(most) = self.behaviour.rate_limit else { return Ok(()) };
        while self.recent.front().is_some_and(|first| now.duration_since(*first) >= WINDOW) {
            self.recent.pop_front();
        }
        if u32::try_from(self.recent.len()).is_ok_and(|requests| requests < most) {
            self.recent.push_back(now);
            return Ok(());
        }
        let waited = self.recent.front().map_or(Duration::ZERO, |first| now.duration_since(*first));
        let wait = WINDOW.saturating_sub(waited);
        Err(Refusal::too_many_requests(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)))
    }
}

impl Bursts {
    fn is_on(self, elapsed: Duration) -> bool {
        let every = self.every.max(Duration::from_millis(1)).as_nanos();
        let elapsed = elapsed.as_nanos();
        elapsed >= every && elapsed % every < self.lasting.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ten_seconds_have_more_requests_than_the_limit() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut conduct = Conduct::new(start);
        conduct.change(Behaviour { rate_limit: Some(2), ..Behaviour::default() }, start);
        assert!(conduct.limit(at(0)).is_ok());
        assert!(conduct.limit(at(4000)).is_ok());
        assert_eq!(conduct.limit(at(4500)).expect_err("too many").retry_after, Some(6));
        assert_eq!(conduct.limit(at(9999)).expect_err("too many").retry_after, Some(1));
        assert!(conduct.limit(at(10_000)).is_ok());
        assert_eq!(conduct.limit(at(10_000)).expect_err("too many").retry_after, Some(4));
    }

    #[test]
    fn bursts_come_back() {
        let bursts =
            Bursts { every: Duration::from_secs(10), lasting: Duration::from_secs(2), retry_after: 1 };
        let on: Vec<u64> = (0..33).filter(|second| bursts.is_on(Duration::from_secs(*second))).collect();
        assert_eq!(on, [10, 11, 20, 21, 30, 31]);
    }
}
