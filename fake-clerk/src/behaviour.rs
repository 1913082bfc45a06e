//! The misbehaviour of a fake that a client must cope with.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::StatusCode;

use super::{id::hash, refusal::Refusal, user::fraction};

/// The period over which Clerk counts requests.
const WINDOW: Duration = Duration::from_secs(10);

/// How a fake behaves. The default has no faults, limits or delays.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent switch")]
pub struct Behaviour {
    /// The shortest time to an answer.
    pub latency: Duration,
    /// The share of requests that get 500, 503 or 504, from 0 to 1. The same requests in the same order fail again.
    pub failures: f64,
    /// The most requests with a valid key in any 10 s; the others get 429, with the whole seconds until the next allowed request
    /// in `Retry-After`. Refused requests do not count. Clerk's limit is 1000, and 100 for development instances.
    pub rate_limit: Option<u32>,
    /// Periods in which every request gets 429.
    pub bursts_of_429: Option<Bursts>,
    /// Act as a server that does not know `starting_after` and ignores it like any unknown parameter.
    pub ignore_cursor: bool,
    /// Lists show only this share of all objects, from 0 to 1, and always the same objects. `GET /users/{id}` and `GET
    /// /organizations/{id}` still find all objects.
    pub only: Option<f64>,
    /// With `only`: `GET /users/count` and every `total_count` count only listed objects. Otherwise they count all.
    pub count_only_listed: bool,
    /// How the fake treats a cursor whose user has been deleted; Clerk's behaviour is unknown.
    pub deleted_cursor: DeletedCursor,
    /// Whether `…_after` and `…_before` include the exact millisecond; Clerk's behaviour is unknown.
    pub inclusive_times: bool,
    /// Act as an instance without organizations: all requests about them get 403.
    pub organizations_off: bool,
    /// Act as an instance without billing: all requests about it get 403. Clerk does not document this answer.
    pub billing_off: bool,
    /// Close every connection at its next request, without an answer.
    pub down: bool,
    /// Accept every request and never answer.
    pub hang: bool,
    /// Answers that Clerk never gives.
    pub script: Script,
}

/// Answers that replace the fake's own, chosen by the path and the raw query string; `None` leaves a request to the fake.
#[derive(Clone, Default)]
pub struct Script(Option<Arc<Answering>>);

type Answering = dyn Fn(&str, &str) -> Option<Canned> + Send + Sync;

/// An answer from a script.
#[derive(Clone, Debug)]
pub struct Canned {
    pub status: u16,
    /// They replace the fake's headers of the same name.
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

    /// The scripted answer to a request, if there is one.
    pub fn answer(&self, path: &str, query: &str) -> Option<Canned> {
        self.0.as_ref()?(path, query)
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Script(..)" } else { "Script(none)" })
    }
}

/// Periods of 429: the first starts `every` after the behaviour began, and so on.
#[derive(Clone, Copy, Debug)]
pub struct Bursts {
    /// The time from the start of one to the start of the next.
    pub every: Duration,
    /// The length of each.
    pub lasting: Duration,
    /// The value of `Retry-After`, in seconds.
    pub retry_after: u32,
}

/// How `starting_after` treats the id of a deleted user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletedCursor {
    /// 422 `form_resource_not_found`, as for an id that never existed.
    #[default]
    NotFound422,
    /// An empty page.
    EmptyPage,
    /// The page that would follow if the user still existed.
    GoOn,
}

/// A behaviour and the time when it began.
pub(super) struct Conduct {
    pub(super) behaviour: Behaviour,
    since: Instant,
    /// The times of accepted requests in the last [`WINDOW`].
    recent: VecDeque<Instant>,
}

impl Conduct {
    pub(super) fn new(now: Instant) -> Self {
        Self { behaviour: Behaviour::default(), since: now, recent: VecDeque::new() }
    }

    /// Switch to this behaviour. Requests accepted before stay counted.
    pub(super) fn change(&mut self, behaviour: Behaviour, now: Instant) {
        self.behaviour = behaviour;
        self.since = now;
    }

    /// The failure, if any, of the request with this number, from any client.
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
