//! The data types: users, deliveries, versions, outcomes and others.
//!
//! Everything here is plain data with its own invariants: there is no I/O, no async code and no clock. Personal data
//! never appears in `Debug` output.

pub mod audit;
pub mod deletion;
pub mod delivery;
pub mod entity;
pub mod id;
pub mod idle;
pub mod message;
pub mod object;
pub mod outcome;
pub mod processing;
pub mod receipt;
pub mod seal;
pub mod time;
pub mod version;

pub use audit::{AuditAction, AuditEntry};
pub use deletion::DeletionPolicy;
pub use delivery::{Actor, Change, Content, Delivery, EraseIf, Inside, News, Source};
pub use entity::{
    Anonymized, Column, Entity, Field, FieldSet, Holds, Kinds, Meaning, Nested, OfEach, Place, Selection,
    Within,
};
pub use id::{ClerkId, MAX_ID_BYTES, SvixId};
pub use idle::Idle;
pub use message::{Happened, Message, MessageType, Subscription};
pub use object::{Object, Patch, Profile, Value};
pub use outcome::Outcome;
pub use processing::Processing;
pub use receipt::Receipt;
pub use seal::{LineHash, Mark, Seal};
pub use time::{as_rfc3339, rfc3339};
pub use version::{Register, Version};
