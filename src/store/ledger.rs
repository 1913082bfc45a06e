//! Operations of a transaction on synced objects: registers, rows, receipts, messages and the audit trail.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Address, Advance, Outgoing, Record, Result, Session};
use crate::model::{
    AuditEntry, ClerkId, Entity, Kinds, Object, Outcome, Receipt, Register, Selection, SvixId, Version,
};

/// What [`Ledger::open`] read for a batch.
pub struct Opened {
    /// The deliveries that were not recorded before.
    pub recorded: HashSet<SvixId>,
    /// The version registers, locked.
    pub registers: HashMap<ClerkId, Register>,
    /// The rows of objects with newer versions, locked.
    pub objects: HashMap<ClerkId, Object>,
}

/// What [`Ledger::close`] writes for a batch.
pub struct Closing<'a> {
    pub registers: &'a [Advance],
    /// All inserts and updates are of one kind.
    pub inserts: &'a [Object],
    pub updates: &'a [Object],
    pub audit: &'a [AuditEntry],
    /// Corrected outcomes of deliveries that were recorded too early.
    pub outcomes: &'a [(SvixId, Outcome)],
}

/// Operations of a transaction on synced objects and on the records that belong to their changes. Ids must be sorted and
/// unique; empty slices cost nothing. Rows are removed by [`Session::erase`].
#[async_trait]
pub trait Ledger: Session {
    /// In one statement, [record](super::Inbox::record) deliveries, lock and read the version registers of objects of one
    /// kind, and load the rows of objects for which this version is new. Returns `None`, and does nothing, if the
    /// database runs these steps separately. An error does not say which step failed.
    async fn open(
        &mut self,
        records: &[Record<'_>],
        entity: &'static Entity,
        about: &[(ClerkId, Version)],
        selection: &Selection,
    ) -> Result<Option<Opened>>;

    /// In one statement, do [`advance`](Self::advance), [`insert`](Self::insert), [`update`](Self::update),
    /// [`audit`](Self::audit) and [`settle`](super::Inbox::settle). Only call it after [`open`](Self::open) returned a
    /// result.
    async fn close(
        &mut self,
        entity: &'static Entity,
        closing: &Closing<'_>,
        selection: &Selection,
    ) -> Result<()>;

    /// Lock and read the version registers of these objects, where they exist.
    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Lock and read the version registers of these objects, and create blank ones where they are missing.
    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Write registers that are newer than the stored ones. [`ErrorKind::Raced`](super::ErrorKind::Raced) if an entity appeared
    /// after [`registers`](Self::registers) read it. Each backend decides whether this includes an entity with a blank register
    /// of [`hold`](Self::hold).
    async fn advance(&mut self, registers: &[Advance]) -> Result<()>;

    /// The live users with these addresses, compared by the database without regard to case. Each address appears at least once
    /// in the result.
    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>>;

    /// Set the address of these users to NULL, so that later statements can assign it to others.
    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()>;

    /// Load the rows of these objects: the selected columns, those that say where an object belongs, and those that
    /// [show](Entity::telling) whether it was anonymised.
    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, Object>>;

    /// Up to `limit` objects of all kinds that belong to these parents and have no tombstone, sorted. An object that
    /// belongs to several of these parents may appear once for each.
    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>>;

    /// Up to `limit` objects of these kinds that belong to these parents and have no tombstone, sorted.
    async fn parts(&mut self, parents: &[ClerkId], kinds: Kinds, limit: u32) -> Result<Vec<ClerkId>>;

    /// Mark the rows of all objects that belong to these parents as deleted. A refusal by the application is ignored.
    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()>;

    /// The live objects of a kind that hold one of these keys in its unique columns. The values of a key are in the order of
    /// [`Entity::unique`].
    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>>;

    /// Insert rows with the selected columns. [`ErrorKind::Raced`](super::ErrorKind::Raced) if one already exists.
    async fn insert(&mut self, objects: &[Object], selection: &Selection) -> Result<()>;

    /// Update only the selected columns of rows. [`ErrorKind::Raced`](super::ErrorKind::Raced) if a row no longer exists.
    async fn update(&mut self, objects: &[Object], selection: &Selection) -> Result<()>;

    /// Write receipts, at most one for each user and destination. `attempts` counts only new attempts. If a receipt already
    /// exists, it keeps the earlier request time, and a completed one stays completed.
    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()>;

    /// Complete the open receipts of these users for this destination.
    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()>;

    /// Write messages to the outbox in this order, and record which sinks receive data about which users. The caller has locked
    /// the registers of these users.
    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()>;

    /// Remove every message about these users except deletions. A message that is being delivered only loses its payload,
    /// and keeps its place before later messages. Returns the sinks that were ever notified about each user and for which
    /// no deletion is waiting yet. The caller has locked the registers of these users.
    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>>;

    /// Append to the audit trail.
    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()>;
}
