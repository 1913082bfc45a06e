//! The request's name: `x-request-id`, taken from the caller if it is valid, else generated here, and always returned.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};

use crate::telemetry;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest accepted id, in bytes.
const MAX_BYTES: usize = 128;

/// The request's name, for logs.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The name for a request with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers.get(HEADER).and_then(Self::sane).unwrap_or_else(Self::random)
    }

    /// Set the name on the answer.
    pub(super) fn name(self, answer: &mut Response) {
        answer.headers_mut().insert(HEADER, self.0);
    }

    /// The work for this request at this route, as the report of a panic names it.
    pub(super) fn work(&self, route: &str) -> telemetry::Request {
        telemetry::Request { route: route.to_owned(), id: self.as_str().to_owned() }
    }

    fn sane(value: &HeaderValue) -> Option<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
        let sane = (1..=MAX_BYTES).contains(&value.len()) && value.as_bytes().iter().all(plain);
        sane.then(|| Self(value.clone()))
    }

    fn random() -> Self {
        let id = format!("{:032x}", rand::random::<u128>());
        Self(HeaderValue::try_from(id).expect("hexadecimal digits are a header value"))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}
