//! clerk-sync mirrors Clerk into a database: it verifies webhooks, and applies each exactly once and in the right order.
//!
//! The modules, in the order in which data passes through them. A module imports only modules to its left (a test enforces this):
//!
//! `model < entity < clerk < store < stream < sync < work < http < cli`, and the leaves `config`, `http_client` and `telemetry`.

pub mod model;

pub mod entity;

pub mod clerk;

pub mod store;

pub mod stream;

pub mod sync;

pub mod work;

pub mod http;

pub mod cli;

pub mod config;
pub mod http_client;
pub mod telemetry;
