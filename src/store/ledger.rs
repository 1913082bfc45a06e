//! What a transaction does with synced objects: registers, rows, receipts, messages and the audit trail.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Address, Advance, Outgoing, Record, Result, Session};
use crate::model::{
    AuditEntry, ClerkId, Entity, Kinds, Object, Outcome, Receipt, Register, Selection, SvixId, Version,
};

/// What a batch finds.
pub struct Opened {
    /// The deliveries that were not recorded before.
    pub recorded: HashSet<SvixId>,
    /// Locked.
    pub registers: HashMap<ClerkId, Register>,
    /// The rows of objects with news, locked.
    pub objects: HashMap<ClerkId, Object>,
}

/// What a batch writes.
pub struct Closing<'a> {
    pub registers: &'a [Advance],
    /// Of one kind, as the updates.
    pub inserts: &'a [Object],
    pub updates: &'a [Object],
    pub audit: &'a [AuditEntry],
    /// Those that were recorded too early.
    pub outcomes: &'a [(SvixId, Outcome)],
}

/// What a transaction does with synced objects, and with what belongs to a change of them. Ids are given sorted and each at
/// most once; empty slices cost nothing. Rows leave by [`Session::erase`].
#[async_trait]
pub trait Ledger: Session {
    /// [Record](super::Inbox::record) deliveries, lock and read the registers of objects of one kind, and load the rows of those for
    /// which this version is news, in one statement; `None`, with nothing done, where a database takes one step after another. An error
    /// does not say which step it was.
    async fn open(
        &mut self,
        records: &[Record<'_>],
        entity: &'static Entity,
        about: &[(ClerkId, Version)],
        selection: &Selection,
    ) -> Result<Option<Opened>>;

    /// Do [`advance`](Self::advance), [`insert`](Self::insert), [`update`](Self::update), [`audit`](Self::audit) and
    /// [`settle`](super::Inbox::settle) in one statement, after [`open`](Self::open) has opened.
    async fn close(
        &mut self,
        entity: &'static Entity,
        closing: &Closing<'_>,
        selection: &Selection,
    ) -> Result<()>;

    /// Lock and read the version register of these objects, as far as there is one.
    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Lock and read the registers of these objects, making a blank one where there is none.
    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Write registers that are newer than what is stored. [`ErrorKind::Raced`](super::ErrorKind::Raced) if an entity appeared since
    /// [`registers`](Self::registers) read; whether a blank one of [`hold`](Self::hold) counts is the keeper's choice.
    async fn advance(&mut self, registers: &[Advance]) -> Result<()>;

    /// Which live users have these addresses, as the database compares them without regard to case. Each address comes at
    /// least once.
    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>>;

    /// Take their addresses from these users, so that others can be given them in the next statements.
    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()>;

    /// Load the rows of these objects, with the columns that are selected, those that say where an object belongs, and those that
    /// [tell](Entity::telling) whether one was anonymised.
    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, Object>>;

    /// Up to `limit` objects of all kinds that go with these parents and have no tombstone, sorted. One that goes with several
    /// of them may come once for each.
    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>>;

    /// Up to `limit` objects of these kinds that go with these parents and have no tombstone, sorted.
    async fn parts(&mut self, parents: &[ClerkId], kinds: Kinds, limit: u32) -> Result<Vec<ClerkId>>;

    /// Mark the rows of all objects that go with these parents as deleted. It does not matter if the application lets us.
    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()>;

    /// The live objects of a kind that have one of these values in the columns of which no two may have the same, in the order
    /// of [`Entity::unique`].
    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>>;

    /// Insert rows with the selected columns. [`ErrorKind::Raced`](super::ErrorKind::Raced) if one is there already.
    async fn insert(&mut self, objects: &[Object], selection: &Selection) -> Result<()>;

    /// Update the selected columns of rows, and nothing else. [`ErrorKind::Raced`](super::ErrorKind::Raced) if one is gone.
    async fn update(&mut self, objects: &[Object], selection: &Selection) -> Result<()>;

    /// Write receipts, each user and destination once. `attempts` are those that are new. Of one that stands already the
    /// older request counts, and once completed it stays so.
    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()>;

    /// Complete the receipts of these users and this destination, as far as there are any that are open.
    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()>;

    /// Keep messages for other systems, in this order, and remember which sinks are told of which users. The registers
    /// of these users are locked.
    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()>;

    /// Remove every message of these users but deletions. Of those on their way only what they say is removed: they
    /// still go before whatever is enqueued from now on. Returns which sinks were ever told of whom, and wait for no
    /// deletion yet. The registers of these users are locked.
    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>>;

    /// Append to the audit trail.
    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()>;
}
