//! The rules: what becomes of a delivery. Nothing here speaks SQL or HTTP.
//!
//! [`plan`] decides, in pure code; [`mod@apply`] carries a plan out in one transaction, and finds the one delivery that
//! spoils it for the others; [`committer`] gathers what is waiting. Nothing but `apply` writes a user.

pub mod adopt;
pub mod apply;
pub mod committer;
pub mod plan;

use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use adopt::{Tally, adopt};
pub use apply::apply;
pub use committer::{Committer, Lanes, Limits, Refusal};

use crate::model::{DeletionPolicy, FieldSet};

/// Tells the time. Only `cli` knows where it comes from.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// What the operator decided.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The allow-list.
    pub fields: FieldSet,
    pub deletion: DeletionPolicy,
}
