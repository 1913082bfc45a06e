//! The rules: what becomes of a delivery. Nothing here speaks SQL or HTTP.
//!
//! [`plan`] decides, in pure code; [`mod@apply`] carries a plan out in one transaction, and finds the one delivery that
//! spoils it for the others; [`committer`] gathers what is waiting; [`backfill`] takes in what Clerk's Backend API shows,
//! [`ensure`] one user of it, and [`reconcile`] mends what differs from it. [`erasure`] asks for erasures that no webhook
//! asks for, and [`minimize`] clears what is no longer synced.
//! Nothing but `apply` writes a user.

pub mod adopt;
pub mod apply;
pub mod backfill;
pub mod catch_up;
pub mod committer;
pub mod ensure;
pub mod erasure;
pub mod minimize;
pub mod plan;
pub mod reconcile;
pub mod retry;
mod scan;

pub use adopt::{Tally, adopt};
pub use apply::apply;
pub use committer::{Committer, Lanes, Limits, Refusal};

use chrono::TimeDelta;

pub use crate::clerk::Clock;
use crate::model::{DeletionPolicy, FieldSet};

/// What the operator decided.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The allow-list.
    pub fields: FieldSet,
    pub deletion: DeletionPolicy,
    /// For how long the erasure of a user whom Clerk deleted is held back; zero: not at all.
    pub grace: TimeDelta,
}
