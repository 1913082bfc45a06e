//! What the whole program promises, tested from outside.

mod journeys;
mod proxy;
mod service;
