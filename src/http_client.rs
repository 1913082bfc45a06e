//! The HTTP client that all modules use.
//!
//! The client names clerk-sync as its user agent and follows no redirects, because requests are meant only for the
//! address that the operator configured. TLS uses ring, like the connections to PostgreSQL: the other provider takes a
//! quarter of a build.

use reqwest::{Client, ClientBuilder, Response, redirect};
use rustls::crypto::ring;

/// A client builder; the caller sets the deadlines.
pub fn builder() -> ClientBuilder {
    use_ring();
    Client::builder()
        .user_agent(concat!("clerk-sync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
}

/// Use ring for TLS, unless another provider is set.
pub fn use_ring() {
    // An error means that a provider is already set, which is sufficient.
    _ = ring::default_provider().install_default();
}

/// The beginning of an answer's body: at most this many bytes, and fewer if the connection breaks.
pub async fn beginning(mut response: Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < most
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(most - body.len())]);
    }
    body
}
