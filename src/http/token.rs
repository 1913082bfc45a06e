//! Authentication: `Authorization: Bearer …`, compared in constant time.
//!
//! Both sides are hashed first, so that not even the length of the token can be measured. The token itself is not kept after
//! the start, and presented tokens are never logged.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::{Instant, sleep};

use crate::http::{App, address::peer, error::Problem};

/// The delay of answers to an address that guesses.
const DELAY: Duration = Duration::from_secs(1);

/// The SHA-256 of the token.
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether this is the token, in constant time.
    pub(super) fn is(&self, presented: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        presented.ct_eq(&self.0).into()
    }
}

/// Require the token.
pub(super) async fn require(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(token) = &app.api.token else { return Err(Problem::TokenNotSet) };
    check(&app, &[token], request.headers(), peer(request.extensions())).await?;
    Ok(next.run(request).await)
}

/// Whether the request has one of these tokens. Guessing is delayed across all endpoints.
pub(super) async fn check(
    app: &App,
    tokens: &[&Token],
    headers: &HeaderMap,
    address: IpAddr,
) -> Result<(), Problem> {
    // A request without a token is not a guess.
    let Some(presented) = presented(headers) else { return Err(Problem::Unauthorized) };
    if tokens.iter().any(|token| token.is(presented)) {
        return Ok(());
    }
    app.api.attempts.failed(address, Instant::now());
    // Delayed instead of refused, because a program with the right token may have the same address.
    if app.api.attempts.wait(address, Instant::now()).is_some() {
        sleep(DELAY).await;
    }
    Err(Problem::Unauthorized)
}

/// The token of a single `Authorization` header. The name of the scheme is case-insensitive (RFC 9110, 11.1).
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (line, None) = (lines.next()?.as_bytes(), lines.next()) else { return None };
    let (scheme, token) = line.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented_in(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::AUTHORIZATION, line.parse().expect("header"));
        }
        presented(&headers).map(|token| String::from_utf8_lossy(token).into_owned())
    }

    #[test]
    fn a_token_is_presented_by_one_bearer_header() {
        for line in ["Bearer t0ken", "bearer t0ken", "BEARER   t0ken "] {
            assert_eq!(presented_in(&[line]).as_deref(), Some("t0ken"), "{line}");
        }
        for lines in [&[][..], &["Basic t0ken"], &["t0ken"], &["Bearer"], &["Bearer t0ken", "Bearer t0ken"]] {
            assert_eq!(presented_in(lines), None, "{lines:?}");
        }
    }

    #[test]
    fn only_the_token_itself_is_the_token() {
        let token = Token::new("t0ken");
        assert!(token.is(b"t0ken"));
        for other in ["", "t0ke", "t0kenn", "T0KEN", "t0ken\0"] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
    }
}
