//! A name for every request: `x-request-id`, taken from the caller if it is sane, else made here, always returned.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over, in bytes.
const MAX_BYTES: usize = 128;

/// The request's name, for logs.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    fn sane(value: &HeaderValue) -> Option<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
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

/// Name a request and its answer.
pub(super) async fn carry(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(HEADER).and_then(RequestId::sane).unwrap_or_else(RequestId::random);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if response.status().as_u16() == 500 {
        tracing::error!(request_id = id.as_str(), "a handler panicked");
    }
    response.headers_mut().insert(HEADER, id.0);
    response
}
