//! clerk-sync keeps a database in step with Clerk: webhooks, verified, applied exactly once and in the right order.
//!
//! The rooms, in the order in which data meets them. A room imports only rooms to its left (a test holds it to that):
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
