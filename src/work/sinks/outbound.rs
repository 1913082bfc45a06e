//! Shared by all sinks that use HTTP: one client, and one interpretation of answers.
//!
//! Redirects are never followed, because the data is meant only for the address that the operator configured. Only a bounded part
//! of an answer is read, and none of it reaches a log or an error, because it may repeat the data that we sent.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{self, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use url::Url;

use super::{Again, Refusal};
use crate::{
    http_client::{self, beginning},
    sync::Clock,
    telemetry::{Span, TRACEPARENT},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The maximum number of bytes read from an answer.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The longest accepted `Retry-After`.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(24);

/// How long we read the rest of an answer whose body we do not need.
const READ_ON: Duration = Duration::from_secs(1);

const TOO_LATE: &str = "no answer in time";
const NO_CONNECTION: &str = "no connection";
const BROKEN: &str = "the connection broke";

/// All reasons that mean no answer.
pub(super) const NO_ANSWER: [&str; 3] = [TOO_LATE, NO_CONNECTION, BROKEN];

/// The HTTP client, shared by all sinks of a process.
#[derive(Clone)]
pub struct Outbound {
    client: Client,
    clock: Clock,
}

impl Outbound {
    /// Create the client. Nothing is sent yet.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn new(clock: Clock) -> Result<Self, reqwest::Error> {
        let client = http_client::builder().connect_timeout(CONNECT_WITHIN).build()?;
        Ok(Self { client, clock })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Send a request and read the beginning of the answer, whatever its status.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Answer, Refusal> {
        let (mut answer, response) = self.begin(request, false).await?;
        // The status has arrived. If the rest does not, only callers that need the body notice.
        answer.body = beginning(response, LONGEST_ANSWER).await;
        Ok(answer)
    }

    /// Send a request for which only the answer's status counts. With `tells_trace`, for a receiver that belongs to the operator,
    /// the request carries its trace context.
    pub(super) async fn post(&self, request: RequestBuilder, tells_trace: bool) -> Result<(), Refusal> {
        let (answer, response) = self.begin(request, tells_trace).await?;
        // Read the rest anyway, so that the connection can be reused.
        tokio::spawn(timeout(READ_ON, beginning(response, LONGEST_ANSWER)));
        answer.taken().map(drop)
    }

    async fn begin(&self, request: RequestBuilder, tells_trace: bool) -> Result<(Answer, Response), Refusal> {
        let mut request = request.build().map_err(|error| no_answer(&error))?;
        let span = Span::client(request.method().as_str(), request.url(), None);
        if tells_trace
            && let Some(trace) = span.context().as_str()
            && let Ok(trace) = HeaderValue::from_str(trace)
        {
            request.headers_mut().insert(TRACEPARENT, trace);
        }
        let response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) => {
                let refusal = no_answer(&error);
                span.failed(&refusal.reason);
                return Err(refusal);
            }
        };
        let status = response.status();
        span.answer(status.as_u16());
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, self.now()));
        Ok((Answer { status, retry_after, body: Vec::new() }, response))
    }
}

/// The URL of an endpoint below a base URL, which may have a path of its own.
pub(super) fn under(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

pub(super) fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(header::CONTENT_TYPE, "application/json").body(body.to_string())
}

/// Limit the total time of the work.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(Refusal::later(TOO_LATE)))
}

/// An HTTP answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Answer {
    /// The answer itself if its status is a success, otherwise the refusal.
    pub(super) fn taken(self) -> Result<Self, Refusal> {
        if self.status.is_success() { Ok(self) } else { Err(self.refusal()) }
    }

    /// Whether the body is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Like [`taken`](Self::taken), with `None` for 404.
    pub(super) fn found(self) -> Result<Option<Self>, Refusal> {
        if self.status == StatusCode::NOT_FOUND { Ok(None) } else { self.taken().map(Some) }
    }

    /// Parse the body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|_| unintelligible())
    }

    /// Interpret a status other than success: an error in the message is permanent, any other error may pass.
    pub(super) fn refusal(&self) -> Refusal {
        let status = self.status;
        let again = match status.as_u16() {
            429 | 503 => Again::Later(self.retry_after),
            // These concern the sink as a whole: a key, an address, a temporary state. The operator can fix it.
            401 | 403 | 404 | 408 | 409 | 410 | 425 => Again::Later(None),
            400..=499 => Again::Never,
            _ => Again::Later(None),
        };
        let redirect = if status.is_redirection() { ", and redirects are not followed" } else { "" };
        Refusal { reason: format!("answered {status}{redirect}"), again }
    }
}

pub(super) fn unintelligible() -> Refusal {
    Refusal::later("sent an answer that clerk-sync does not understand")
}

/// `Retry-After`: seconds, or an HTTP date.
fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = DateTime::parse_from_rfc2822(text).ok()?;
        (at.to_utc() - now).to_std().unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// The HTTP client's errors quote the URL, so they are not passed on.
fn no_answer(error: &reqwest::Error) -> Refusal {
    if error.is_builder() {
        return Refusal::never("no request can be built from this message");
    }
    Refusal::later(if error.is_timeout() {
        TOO_LATE
    } else if error.is_connect() {
        NO_CONNECTION
    } else {
        BROKEN
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<Duration>) -> Answer {
        Answer { status: StatusCode::from_u16(status).expect("a status"), retry_after, body: Vec::new() }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = DateTime::from_timestamp(784_111_777, 0).expect("in range");
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_mins(1)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:40:37 GMT", now), Some(Duration::ZERO), "already over");
        assert_eq!(retry_after("99999999999", now), Some(LONGEST_RETRY_AFTER));
        for nonsense in ["", "soon", "-1", "1.5", "Sun, 99 Nov 1994"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
    }

    #[test]
    fn a_status_tells_what_is_wrong_with_the_message_from_what_may_pass() {
        for status in [400, 402, 405, 406, 413, 415, 422, 431, 451] {
            assert_eq!(answer(status, None).refusal().again, Again::Never, "{status}");
        }
        for status in [300, 301, 302, 307, 401, 403, 404, 408, 409, 410, 425, 500, 501, 502, 504, 507] {
            let wait = Some(Duration::from_secs(7));
            assert_eq!(answer(status, wait).refusal().again, Again::Later(None), "{status}");
        }
        for status in [429, 503] {
            assert_eq!(answer(status, None).refusal().again, Again::Later(None), "{status}");
            let wait = Some(Duration::from_secs(7));
            assert_eq!(answer(status, wait).refusal().again, Again::Later(wait), "{status}");
        }
        for status in [200, 201, 202, 204, 299] {
            assert!(answer(status, None).taken().is_ok(), "{status}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_our_words() {
        assert_eq!(answer(404, None).refusal().to_string(), "answered 404 Not Found");
        assert_eq!(
            answer(308, None).refusal().to_string(),
            "answered 308 Permanent Redirect, and redirects are not followed"
        );
        assert!(!answer(500, None).refusal().is_unreachable());
        assert!(Refusal::later(NO_CONNECTION).is_unreachable());
    }
}
