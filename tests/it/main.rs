//! All integration tests, in one binary.
//!
//! Each test runs on every supported database. [`world`] supports tests of the library, and [`service`] supports tests
//! of the real program.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]
#![expect(clippy::disallowed_methods, reason = "the real program uses the real clock")]

mod application;
mod cable;
mod mirror;
mod secantus;
mod world;

mod promises;
mod queue;
mod unique_email;

mod convergence;
mod crashes;
mod dashboard;
mod mixed;

mod documentation;
mod documentation_of_tables;
mod house;
mod kinds;
mod memberships;
mod oracles;
mod outbox;
mod packaging;
mod permissions;

mod proxy;
mod receivers;
mod service;

mod adopting;
mod all_of_clerk;
mod attacks;
mod audit_chain;
mod catching_up;
mod clocks;
mod disks;
mod doctor;
mod erasure;
mod failovers;
mod fake;
mod fan_out;
mod hidden;
mod idle;
mod instances;
mod journeys;
mod openapi;
mod outages;
mod private_api;
#[cfg(feature = "sentry")]
mod reports;
mod service_manager;
mod sinks;
mod stream;
mod traces;
mod upgrades;
mod workers;
