//! The HTTP client, as every part of the program makes it.
//!
//! It says who we are, follows no redirect, because what we send is for the address that the operator named, and speaks TLS
//! by ring, as our connections to PostgreSQL do: the other provider takes a quarter of a build.

use reqwest::{Client, ClientBuilder, Response, redirect};
use rustls::crypto::ring;

/// A client to be told its deadlines.
pub fn builder() -> ClientBuilder {
    use_ring();
    Client::builder()
        .user_agent(concat!("clerk-sync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
}

/// Let TLS be done by ring, where nothing else is chosen.
pub fn use_ring() {
    // An error says that there is one already, which is all that is needed.
    _ = ring::default_provider().install_default();
}

/// The beginning of an answer's body: at most so many bytes, and less if the connection breaks.
pub async fn beginning(mut response: Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < most
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(most - body.len())]);
    }
    body
}
