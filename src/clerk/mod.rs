//! Their words: what Clerk and Svix put on the wire, and nothing about how we keep it.
//!
//! `signature` turns headers and raw bytes into [`Verified`](signature::Verified), the only thing that
//! `event` parses. `api` reads users from the Backend API. `addresses` says where it may come from, and `sample` writes what
//! Clerk would send, for trying things out.

pub mod addresses;
pub mod api;
pub mod event;
pub mod sample;
pub mod signature;
mod text;
mod time;

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// Tells the time. Only `cli` knows where it comes from.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;
