//! Every test that needs more than one room, in one binary.
//!
//! Each test runs on every database that keeps users: see [`world`].

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod application;
mod world;

mod promises;

mod convergence;
mod crashes;

mod house;
mod oracles;
