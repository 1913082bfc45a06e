//! Clerk's Backend API: reads single objects and pages of lists, within its rate limits.
//!
//! Every request waits for its turn and has a deadline. It is retried, with full jitter, when the connection fails or Clerk
//! answers 429 or 5xx; any other refusal is final. A 429 makes all requests wait as long as Clerk asks. This module knows nothing
//! of the database, and the key never appears in an error or a log.
//!
//! Source: Clerk's Backend API spec 2026-05-12, requested in the version of [`VERSION`].

use std::{
    collections::HashSet,
    num::NonZeroU32,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use metrics::counter;
use reqwest::{Client, Response, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Mutex as AsyncMutex, OnceCell},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use url::Url;

use super::{
    Clock,
    event::{self, Found, Moment, Page, Reading},
};
use crate::{
    http_client,
    model::{ClerkId, OfEach},
    telemetry::{self, Span},
};

/// The API version that we request.
pub const VERSION: &str = "2025-11-10";

/// The maximum number of users on a page from Clerk.
pub const PAGE: usize = 500;

/// The maximum number of values of one filter in a request.
pub const FILTER_VALUES: usize = 100;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The maximum number of attempts while Clerk has never answered.
const FIRST_ATTEMPTS: u32 = 6;

/// The longest wait between two attempts, unless Clerk asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// The longest accepted `Retry-After`.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// Clerk's code for an object that it does not have.
const NOT_FOUND: &str = "resource_not_found";

/// The longest answer that we read, in bytes, unless a list sets a lower limit.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The longest error body that we read, in bytes.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// The longest code or trace id from Clerk in an error, in bytes.
const MAX_WORD_BYTES: usize = 64;

/// A `Date` further behind our clock is ignored: it comes from a cache or a wrong clock.
const OLDEST_DATE: TimeDelta = TimeDelta::hours(1);

/// Requests per second that leave a tenth of Clerk's limit to the application. Clerk allows 1,000 in 10 s in production, 100 in
/// development.
pub fn usual_rate(key: &SecretString) -> NonZeroU32 {
    const PRODUCTION: NonZeroU32 = NonZeroU32::new(90).unwrap();
    const DEVELOPMENT: NonZeroU32 = NonZeroU32::new(9).unwrap();
    if key.expose_secret().starts_with("sk_live_") { PRODUCTION } else { DEVELOPMENT }
}

/// How long a call keeps trying when Clerk does not answer properly.
#[derive(Clone, Copy, Debug)]
pub struct Persistence {
    /// The limit of attempts that fail because of the connection or 5xx.
    pub attempts: u32,
    /// The time limit of one attempt.
    pub attempt_within: Duration,
    /// The time limit of all attempts, including waits; it also applies to 429, which does not count as an attempt.
    pub within: Duration,
    /// Whether the call queues behind others like it, so that a call outside the queue has only one rival for the next turn.
    pub in_line: bool,
}

impl Persistence {
    /// For work that no user waits for: late is better than never.
    pub const BACKGROUND: Self = Self {
        attempts: u32::MAX,
        attempt_within: Duration::from_secs(30),
        within: Duration::from_mins(5),
        in_line: true,
    };
    /// For a page that a user waits for.
    pub const INTERACTIVE: Self = Self {
        attempts: 3,
        attempt_within: Duration::from_secs(4),
        within: Duration::from_secs(8),
        in_line: false,
    };
}

/// Selects the users of a list. Empty filters do not restrict it.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Pairs of a filter name in the API, such as `email_address`, and a value.
    pub values: Vec<(&'static str, String)>,
    /// Only users that signed up after this time, in Unix milliseconds.
    pub created_after: Option<i64>,
}

impl Filters {
    /// The query parameters, restricted to users that also signed up after `created_after`.
    fn query(&self, created_after: Option<i64>) -> Vec<(&'static str, String)> {
        let created_after = created_after.max(self.created_after);
        let after = created_after.map(|after| ("created_at_after", after.to_string()));
        self.values.iter().cloned().chain(after).collect()
    }
}

/// One page of a list in order of sign-up.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    pub filters: &'a Filters,
    /// Only users that signed up after this time, in Unix milliseconds. Clerk does not document whether the bound itself is
    /// included.
    pub created_after: Option<i64>,
    pub offset: usize,
    pub limit: usize,
    /// The longest answer that we read, in bytes.
    pub most_bytes: usize,
}

/// The users on a page.
#[derive(Clone, Debug)]
pub struct Shown {
    pub users: Vec<Found>,
    /// The length of the answer in bytes.
    pub bytes: usize,
}

/// Clerk's Backend API.
pub struct Api {
    client: Client,
    /// Ends with `/v1/`.
    base: Url,
    key: SecretString,
    limiter: DefaultDirectRateLimiter,
    /// Held by the first call in the queue.
    line: AsyncMutex<()>,
    /// Whether Clerk has ever answered. If not, an address or the network is probably wrong, and waiting does not help.
    answered: AtomicBool,
    /// No request is sent before this time, at Clerk's request.
    paused_until: Mutex<Instant>,
    /// The id of the instance, once Clerk has reported it.
    instance: OnceCell<String>,
    clock: Clock,
}

/// Why a request to Clerk failed. No error contains the key or personal data.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// No attempt received a usable answer.
    #[error("Clerk's API at {place} cannot be reached: {why}")]
    Unreachable { place: String, why: String },
    #[error(
        "Clerk's API at {place} refuses CLERK_SECRET_KEY: {refusal}; take a valid one from Clerk's Dashboard (API keys)"
    )]
    KeyRefused { place: String, refusal: Refusal },
    #[error("Clerk's API at {place} refused the request: {refusal}")]
    Refused { place: String, refusal: Refusal },
    #[error("Clerk's API at {place} sent an answer that clerk-sync does not understand: {what}")]
    Unintelligible { place: String, what: String },
    #[error("Clerk's API at {place} sent an answer that is too long: more than {} MiB", most >> 20)]
    TooLong { place: String, most: usize },
}

impl ApiError {
    /// Whether Clerk reports that it does not know the object. A proxy, or a Clerk without this instance, also answers 404, but
    /// that says nothing about the object.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.status == 404 && refusal.code == NOT_FOUND)
    }

    /// Whether Clerk reports that a feature is switched off or not part of the plan. Then there are no objects to request, and
    /// none are gone.
    pub fn is_of_a_feature_switched_off(&self) -> bool {
        let Self::Refused { refusal, .. } = self else { return false };
        let is_said = ["not_enabled", "disabled", "feature", "not_supported"]
            .iter()
            .any(|word| refusal.code.contains(word));
        match refusal.status {
            402 | 410 => true,
            404 => refusal.code == NOT_FOUND || is_said,
            400 | 403 | 422 => is_said,
            _ => false,
        }
    }
}

/// An error from Clerk without its message, because the message may quote parts of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// Empty if Clerk sent none.
    pub code: String,
    trace_id: Option<String>,
}

impl Refusal {
    /// The meaning of the code, where that helps.
    fn meaning(&self) -> &'static str {
        match self.code.as_str() {
            "authorization_header_format_invalid" => ": the key has the wrong format",
            "clerk_key_invalid" => ": no such key exists",
            "instance_not_found" => ": the instance of the key does not exist",
            "too_many_requests" => ": too many requests",
            "internal_clerk_error" => ": an internal error at Clerk",
            _ if (300..400).contains(&self.status) => ": it redirects elsewhere; check CLERK_API_URL",
            _ => "",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        f.write_str(self.meaning())?;
        self.trace_id.as_ref().map_or(Ok(()), |trace_id| write!(f, " (clerk_trace_id {trace_id})"))
    }
}

/// A body, and the moment at which its contents were true.
type Answer = (Vec<u8>, Moment);

/// How an attempt without an answer ended.
enum Failed {
    /// Clerk asks us to retry later.
    TooEarly { wait: Duration },
    /// A retry may succeed.
    Again { why: String, wait: Option<Duration> },
    /// No retry will succeed.
    Refused(ApiError),
}

impl Api {
    /// Create the client. Nothing is sent yet.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn new(url: &Url, key: SecretString, rate: NonZeroU32, clock: Clock) -> Result<Self, ApiError> {
        let base = base(url);
        let client = client(&base)?;
        // A burst of a tenth of a second's requests makes up for late timers.
        let burst = NonZeroU32::new(rate.get() / 10).unwrap_or(NonZeroU32::MIN);
        Ok(Self {
            client,
            base,
            key,
            limiter: RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)),
            line: AsyncMutex::default(),
            answered: AtomicBool::new(false),
            paused_until: Mutex::new(Instant::now()),
            instance: OnceCell::new(),
            clock,
        })
    }

    /// Identifies this instance of Clerk without revealing the key.
    pub fn identity(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.base.as_str())
            .chain_update(self.key.expose_secret())
            .finalize()
            .into()
    }

    /// The id of the key's instance, such as `ins_2fZ…`. Clerk is asked once.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn instance(&self, persistence: Persistence) -> Result<&str, ApiError> {
        let ask = async || {
            let (body, _) = self.get(self.url("instance", vec![]), persistence).await?;
            let id = member(&body, "/id").as_str().map(str::to_owned).filter(|id| self.is_word(id, in_ids));
            id.ok_or_else(|| self.unintelligible("an instance without a valid id"))
        };
        self.instance.get_or_try_init(ask).await.map(String::as_str)
    }

    /// A page of users in order of sign-up.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn list(&self, list: &List<'_>, reading: &Reading) -> Result<Shown, ApiError> {
        let mut query = list.filters.query(list.created_after);
        query.extend([("order_by", "+created_at".to_owned()), ("limit", list.limit.to_string())]);
        query.extend((list.offset > 0).then(|| ("offset", list.offset.to_string())));
        let url = self.url("users", query);
        let (body, moment) = self.get_within(url, Persistence::BACKGROUND, list.most_bytes).await?;
        let users = event::users(&body, reading, moment)
            .filter(|users| users.len() <= list.limit)
            .ok_or_else(|| self.unintelligible("not a list of users"))?;
        Ok(Shown { users, bytes: body.len() })
    }

    /// A page of objects of the kind that `reading` names, in order of creation, and the length of the answer in bytes.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn objects(&self, offset: usize, reading: &Reading) -> Result<(Page, usize), ApiError> {
        let mut query = vec![("limit", PAGE.to_string()), ("offset", offset.to_string())];
        query.extend(reading.entity.query.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let url = self.url(reading.entity.path.unwrap_or_default(), query);
        let (body, moment) = self.get(url, Persistence::BACKGROUND).await?;
        let page = event::objects(&body, reading, moment)
            .filter(|page| page.entries <= PAGE)
            .ok_or_else(|| self.unintelligible("not a list with a count"))?;
        Ok((page, body.len()))
    }

    /// One owner's objects of the kind that `reading` names; empty if Clerk knows none.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn of_owner(
        &self,
        of: &OfEach,
        owner: &ClerkId,
        reading: &Reading,
    ) -> Result<Vec<Found>, ApiError> {
        let (mut all, mut known) = (Vec::new(), HashSet::new());
        let path = of.path.replace("{}", owner.as_str());
        if !can_ask(owner) {
            return Ok(all);
        }
        loop {
            let mut query = Vec::new();
            if let Some(parameter) = of.parameter {
                query.extend(reading.entity.query.iter().map(|(name, value)| (*name, (*value).to_owned())));
                query.push((parameter, owner.to_string()));
                query.extend([("limit", PAGE.to_string()), ("offset", all.len().to_string())]);
            }
            let (body, moment) = match self.get(self.url(&path, query), Persistence::BACKGROUND).await {
                Err(error) if error.is_unknown() => return Ok(all),
                answer => answer?,
            };
            let is_one = of.parameter.is_none();
            let (page, total) = event::of_owner(&body, reading, moment, (of.column, owner))
                .filter(|(page, _)| if is_one { page.len() == 1 } else { page.len() <= PAGE })
                .ok_or_else(|| self.unintelligible("neither an object nor a list of objects"))?;
            let (shown, before) = (page.len(), all.len());
            all.extend(page.into_iter().filter(|found| known.insert(found.clerk_id.clone())));
            let is_last = total.map_or(shown < PAGE, |total| all.len() as u64 >= total);
            if is_one || is_last {
                return Ok(all);
            }
            if all.len() == before {
                return Err(self.unintelligible("the same objects at every offset"));
            }
        }
    }

    /// The number of users.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn count(&self, filters: &Filters) -> Result<u64, ApiError> {
        let (body, _) =
            self.get(self.url("users/count", filters.query(None)), Persistence::BACKGROUND).await?;
        member(&body, "/total_count").as_u64().ok_or_else(|| self.unintelligible("not a number of users"))
    }

    /// One object; `None` if Clerk does not know this id, or the id [cannot be requested](can_ask).
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn one(
        &self,
        id: &ClerkId,
        reading: &Reading,
        persistence: Persistence,
    ) -> Result<Option<Found>, ApiError> {
        if !can_ask(id) {
            return Ok(None);
        }
        let mut url = self.url(id.entity().path.unwrap_or_default(), vec![]);
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(id.as_str());
        }
        let (body, moment) = match self.get(url, persistence).await {
            Err(error) if error.is_unknown() => return Ok(None),
            answer => answer?,
        };
        let found = event::user(&body, reading, moment)
            .filter(|found| found.clerk_id == *id)
            .ok_or_else(|| self.unintelligible("not the requested object"))?;
        Ok(Some(found))
    }

    fn url(&self, path: &str, query: Vec<(&'static str, String)>) -> Url {
        let mut url = self.base.join(path).unwrap_or_else(|_| self.base.clone());
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Send a request until there is an answer or a final failure.
    async fn get(&self, url: Url, persistence: Persistence) -> Result<Answer, ApiError> {
        self.get_within(url, persistence, MAX_ANSWER_BYTES).await
    }

    /// Like [`get`](Self::get), with a limit on the length of the answer in bytes.
    async fn get_within(&self, url: Url, persistence: Persistence, most: usize) -> Result<Answer, ApiError> {
        let deadline = Instant::now() + persistence.within;
        let mut attempts = 0;
        let mut too_early = 0;
        loop {
            let turn = timeout_at(deadline, self.turn(deadline, persistence.in_line)).await;
            turn.unwrap_or(Err(()))
                .map_err(|()| self.unreachable("its rate limit requires too long a wait"))?;
            let (why, wait) =
                match self.attempt(url.clone(), persistence.attempt_within, attempts + too_early, most).await
                {
                    Ok(answer) => return Ok(answer),
                    Err(Failed::Refused(error)) => return Err(error),
                    Err(Failed::TooEarly { wait }) => {
                        too_early += 1;
                        // Clerk may ask for no wait and then refuse again.
                        self.pause(wait.max(full_jitter(too_early)));
                        continue;
                    }
                    Err(Failed::Again { why, wait }) => (why, wait),
                };
            attempts += 1;
            let wait = full_jitter(attempts).max(wait.unwrap_or_default());
            let allowed =
                if self.answered.load(Ordering::Relaxed) { persistence.attempts } else { FIRST_ATTEMPTS };
            if attempts >= allowed.min(persistence.attempts) || Instant::now() + wait >= deadline {
                return Err(self.unreachable(&why));
            }
            if attempts == 1 {
                tracing::warn!(why, attempts, "a request to Clerk's API failed and will be retried");
            } else {
                tracing::debug!(why, attempts, "a request to Clerk's API failed again and will be retried");
            }
            sleep(wait).await;
        }
    }

    /// Wait until a request may be sent.
    async fn turn(&self, deadline: Instant, in_line: bool) -> Result<(), ()> {
        let _first = if in_line { Some(self.line.lock().await) } else { None };
        loop {
            let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            if until > deadline {
                return Err(());
            }
            if until > Instant::now() {
                sleep_until(until).await;
            }
            self.limiter.until_ready().await;
            if *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now() {
                return Ok(());
            }
        }
    }

    /// Delay all requests.
    fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut paused_until = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        if *paused_until < Instant::now() {
            tracing::warn!(
                seconds = wait.as_secs(),
                "Clerk's rate limit is reached: waiting as long as Clerk asks"
            );
        }
        *paused_until = until.max(*paused_until);
    }

    /// Send a request; `before` is the number of earlier attempts.
    async fn attempt(&self, url: Url, within: Duration, before: u32, most: usize) -> Result<Answer, Failed> {
        let span = Span::client("GET", &url, Some(before));
        let sent_at = (self.clock)();
        let sent = self
            .client
            .get(url)
            .bearer_auth(self.key.expose_secret())
            .header("clerk-api-version", VERSION)
            .timeout(within)
            .send()
            .await;
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(error) => {
                span.failed(why_no_answer(&error));
                return Err(no_answer(&error));
            }
        };
        let status = answer.status();
        span.answer(status.as_u16());
        self.answered.store(true, Ordering::Relaxed);
        counter!(telemetry::API_REQUESTS, "status" => status.as_u16().to_string()).increment(1);
        let header =
            |name: header::HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let date = header(header::DATE).and_then(time);
        let retry_after =
            header(header::RETRY_AFTER).and_then(|value| retry_after(value, date.unwrap_or(sent_at)));
        // The contents are no newer than the earlier of the two clocks.
        let read_at =
            date.filter(|date| sent_at - *date <= OLDEST_DATE).map_or(sent_at, |at| at.min(sent_at));
        let body = body(&mut answer, if status == StatusCode::OK { most } else { MAX_ERROR_BYTES });
        let body = match body.await.map_err(|error| no_answer(&error))? {
            Some(body) => body,
            // The status reports the error.
            None if status != StatusCode::OK => Vec::new(),
            None => {
                return Err(Failed::Refused(ApiError::TooLong { place: place(&self.base), most }));
            }
        };
        match status {
            StatusCode::OK => Ok((body, Moment { read_at, now: sent_at })),
            StatusCode::TOO_MANY_REQUESTS => {
                Err(Failed::TooEarly { wait: retry_after.unwrap_or(Duration::from_secs(1)) })
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Err(Failed::Again { why: self.refusal(status, &body).to_string(), wait: retry_after })
            }
            status => {
                let (place, refusal) = (place(&self.base), self.refusal(status, &body));
                Err(Failed::Refused(match status {
                    StatusCode::UNAUTHORIZED => ApiError::KeyRefused { place, refusal },
                    _ => ApiError::Refused { place, refusal },
                }))
            }
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Refusal {
        let in_codes = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let word = |pointer, in_words: fn(u8) -> bool| {
            member(body, pointer).as_str().map(str::to_owned).filter(|word| self.is_word(word, in_words))
        };
        Refusal {
            status: status.as_u16(),
            code: word("/errors/0/code", in_codes).unwrap_or_default(),
            trace_id: word("/clerk_trace_id", in_ids),
        }
    }

    /// Whether the text is a single word without the key, in case a server echoes the key.
    fn is_word(&self, text: &str, in_words: impl Fn(u8) -> bool) -> bool {
        (1..=MAX_WORD_BYTES).contains(&text.len())
            && text.bytes().all(in_words)
            && !text.contains(self.key.expose_secret())
    }

    /// The error for an answer that is not in Clerk's format.
    pub fn unintelligible(&self, what: &str) -> ApiError {
        ApiError::Unintelligible { place: place(&self.base), what: what.to_owned() }
    }

    fn unreachable(&self, why: &str) -> ApiError {
        unreachable(&self.base, why)
    }
}

/// Clerk's time, and our time before and after the request.
#[derive(Clone, Copy, Debug)]
pub struct ClockReading {
    pub asked_at: DateTime<Utc>,
    /// To the second; `None` if the answer had no `Date`.
    pub theirs: Option<DateTime<Utc>>,
    pub answered_at: DateTime<Utc>,
}

/// Read Clerk's clock. Any answer will do, so no key is sent.
///
/// # Errors
/// [`ApiError::Unreachable`]
pub async fn read_clock(url: &Url, clock: &Clock, within: Duration) -> Result<ClockReading, ApiError> {
    let base = base(url);
    let target = base.join("instance").unwrap_or_else(|_| base.clone());
    let request = client(&base)?.get(target).header("clerk-api-version", VERSION).timeout(within);
    let asked_at = clock();
    let answer = request.send().await.map_err(|error| unreachable(&base, why_no_answer(&error)))?;
    let answered_at = clock();
    let date = answer.headers().get(header::DATE).and_then(|value| value.to_str().ok());
    Ok(ClockReading { asked_at, theirs: date.and_then(time), answered_at })
}

/// The base URL with the API version, whether or not the given URL has it.
fn base(url: &Url) -> Url {
    let mut base = url.clone();
    let path = base.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
    base.set_path(&format!("{path}/v1/"));
    base
}

fn client(base: &Url) -> Result<Client, ApiError> {
    http_client::builder()
        .connect_timeout(CONNECT_WITHIN)
        .build()
        .map_err(|_| unreachable(base, "the HTTP client cannot be created"))
}

/// The API's origin, so that a wrong `CLERK_API_URL` shows; any user and password in the URL are left out.
fn place(base: &Url) -> String {
    base.origin().ascii_serialization()
}

fn unreachable(base: &Url, why: &str) -> ApiError {
    ApiError::Unreachable { place: place(base), why: why.to_owned() }
}

/// Whether an id is safe in a path. Others would name another id or another route, such as `..` or `count`.
pub fn can_ask(id: &ClerkId) -> bool {
    id.as_str() != "count" && id.as_str().bytes().all(in_ids)
}

fn in_ids(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
}

/// A body; `None` if it is longer than this.
///
/// # Errors
/// If the connection ends before the body does.
pub async fn body(answer: &mut Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    // The stated length avoids repeated growth.
    let said = answer.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    if said > most {
        return Ok(None);
    }
    let mut body = Vec::with_capacity(said);
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The value at this place of a JSON body; null if there is none.
fn member(body: &[u8], pointer: &str) -> Value {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    body.and_then(|mut body| body.pointer_mut(pointer).map(Value::take)).unwrap_or_default()
}

/// A time in HTTP's format.
fn time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc2822(text.trim()).ok().map(|at| at.to_utc())
}

/// The wait that a `Retry-After` asks for, given in seconds or as a time.
fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let seconds = value.trim().parse().ok().map(Duration::from_secs);
    let until = || Some((time(value)? - now).to_std().unwrap_or_default());
    seconds.or_else(until).map(|wait| wait.min(LONGEST_RETRY_AFTER))
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api(redacted)")
    }
}

/// The HTTP client's errors quote the URL, which may contain an e-mail address.
fn no_answer(error: &reqwest::Error) -> Failed {
    counter!(telemetry::API_REQUESTS, "status" => "unreachable").increment(1);
    Failed::Again { why: why_no_answer(error).to_owned(), wait: None }
}

fn why_no_answer(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    }
}

/// A random wait between zero and a limit, so that requests that failed together do not return together. The limit starts at half
/// a second and doubles with every attempt, up to `LONGEST_WAIT`.
fn full_jitter(attempts: u32) -> Duration {
    let longest = Duration::from_millis(250).saturating_mul(1 << attempts.min(10)).min(LONGEST_WAIT);
    longest.mul_f64(rand::random())
}
