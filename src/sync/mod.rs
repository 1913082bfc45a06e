//! The rules: what becomes of a delivery. Nothing here speaks SQL or HTTP.
//!
//! [`plan`] decides, in pure code; [`mod@apply`] carries a plan out in one transaction, and finds the one delivery that
//! spoils it for the others; [`committer`] gathers what is waiting. [`mod@enqueue`] keeps deliveries for later, and
//! [`mod@drain`] applies them then; [`queue`] is what an operator can do with those that wait. [`backfill`] takes in what
//! Clerk's Backend API shows, [`ensure`] one user of it, and [`reconcile`] mends what differs from it.
//! Nothing but `apply` writes a user.

pub mod adopt;
pub mod apply;
pub mod backfill;
pub mod catch_up;
pub mod committer;
pub mod drain;
pub mod enqueue;
pub mod ensure;
pub mod plan;
pub mod queue;
pub mod reconcile;
pub mod retry;
mod scan;

pub use adopt::{Tally, adopt};
pub use apply::apply;
pub use committer::{Committer, Lanes, Limits, Refusal};
pub use drain::{Drained, drain};
pub use enqueue::enqueue;

use self::retry::Retry;
pub use crate::clerk::Clock;
use crate::model::{DeletionPolicy, FieldSet, Processing};

/// What the operator decided.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The allow-list.
    pub fields: FieldSet,
    pub deletion: DeletionPolicy,
    /// Whether webhooks are applied at once, or stored first.
    pub processing: Processing,
    /// When a delivery that is kept is tried again.
    pub retry: Retry,
}

impl Rules {
    /// Everything else as it is if the operator says nothing.
    pub fn new(fields: FieldSet, deletion: DeletionPolicy) -> Self {
        Self { fields, deletion, processing: Processing::default(), retry: Retry::default() }
    }
}
