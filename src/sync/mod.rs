//! The rules: what becomes of a delivery. Nothing here speaks SQL or HTTP.

mod committer;

pub use committer::{Committer, Refusal};
