//! The wire formats of Clerk and Svix, independent of how clerk-sync stores data.
//!
//! `signature` turns headers and raw bytes into [`Verified`](signature::Verified), the only input that `event` parses. `api`
//! reads objects from the Backend API. `addresses` lists the addresses that Svix sends from, and `sample` writes events like
//! Clerk's for experiments.

pub mod addresses;
pub mod api;
pub mod event;
pub mod sample;
pub mod signature;
mod text;
mod time;

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// Returns the current time. Only `cli` knows its source.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;
