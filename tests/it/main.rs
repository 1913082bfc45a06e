//! What the whole program promises, tested from outside.

mod attacks;
mod journeys;
mod outages;
mod proxy;
mod service;
