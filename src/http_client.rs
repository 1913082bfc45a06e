//! The HTTP client, as every part of the program makes it.
//!
//! It says who we are, follows no redirect, because what we send is for the address that the operator named, and speaks TLS
//! by ring, as our connections to PostgreSQL do: the other provider takes a quarter of a build.

use reqwest::{Client, ClientBuilder, redirect};
use rustls::crypto::ring;

/// A client to be told its deadlines.
pub fn builder() -> ClientBuilder {
    // An error says that there is one already, which is all that is needed.
    _ = ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("clerk-sync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
}
