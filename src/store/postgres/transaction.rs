//! The verbs of a transaction, one statement each, for all rows of a batch at once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{
    Session,
    removal::{self, Removal},
    sequences::Sequences,
    sight,
};
use crate::{
    model::{AuditEntry, ClerkId, Entity, Outcome, Receipt, Register, Selection, SvixId, User},
    store::{
        Address, Advance, Outgoing, Parked, Record, Result, RowFate, StoreError, Transaction, Waiting, Way,
        sql::{
            erasures, ledger, objects,
            objects::{Write, by_kind},
            outbox, queue,
        },
    },
};

/// A transaction of PostgreSQL.
pub(super) struct PostgresTransaction {
    session: Session,
    removal: Arc<Removal>,
    sequences: Arc<Sequences>,
}

impl PostgresTransaction {
    pub(super) fn new(session: Session, removal: Arc<Removal>, sequences: Arc<Sequences>) -> Self {
        Self { session, removal, sequences }
    }
}

#[async_trait]
impl Transaction for PostgresTransaction {
    async fn claim(&mut self, now: DateTime<Utc>, limit: u32, bytes: u64) -> Result<Vec<Parked>> {
        queue::claim(&mut self.session, now, limit, bytes).await
    }

    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>> {
        queue::claim_these(&mut self.session, ids, now).await
    }

    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>> {
        queue::enqueue(&mut self.session, queued).await
    }

    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
        queue::revive(&mut self.session, ids, now).await
    }

    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()> {
        queue::postpone(&mut self.session, ids, until).await
    }

    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>> {
        queue::record(&mut self.session, records).await
    }

    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
        queue::settle(&mut self.session, outcomes).await
    }

    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        ledger::registers(&mut self.session, ids).await
    }

    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        ledger::hold(&mut self.session, ids).await
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        ledger::advance(&mut self.session, registers).await
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        ledger::addresses(&mut self.session, addresses).await
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        ledger::release_addresses(&mut self.session, ids).await
    }

    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, User>> {
        objects::load(&mut self.session, ids, selection).await
    }

    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>> {
        objects::children(&mut self.session, parents, limit).await
    }

    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()> {
        objects::mark_children(&mut self.session, parents, at).await
    }

    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>> {
        objects::rivals(&mut self.session, entity, keys).await
    }

    async fn insert(&mut self, objects: &[User], selection: &Selection) -> Result<()> {
        for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
            let inserted =
                objects::write(&mut self.session, objects, selection.fields(entity), Write::Insert).await;
            self.sequences.checked(&mut self.session, entity.table, inserted).await?;
        }
        Ok(())
    }

    async fn update(&mut self, objects: &[User], selection: &Selection) -> Result<()> {
        for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
            objects::write(&mut self.session, objects, selection.fields(entity), Write::Update).await?;
        }
        Ok(())
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        let hidden = sight::hidden(&mut self.session).await?;
        Ok((!hidden.is_empty()).then(|| sight::explained(&hidden)))
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let Some(entity) = ids.first().map(ClerkId::entity) else { return Ok(HashMap::new()) };
        removal::erase(&mut self.session, &self.removal, entity, ids, ways, at).await
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        removal::mark(&mut self.session, marks).await
    }

    async fn unmark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        removal::unmark(&mut self.session, marks).await
    }

    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()> {
        erasures::write_receipts(&mut self.session, receipts).await
    }

    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()> {
        erasures::close_receipts(&mut self.session, ids, destination, at).await
    }

    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()> {
        queue::forget(&mut self.session, ids, deliveries).await
    }

    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>> {
        queue::unattributed(&mut self.session, ids).await
    }

    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>> {
        queue::waiting(&mut self.session, ids).await
    }

    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        queue::park(&mut self.session, parked).await
    }

    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()> {
        let told = outbox::tell(&mut self.session, messages).await;
        self.sequences.checked(&mut self.session, "outbox", told).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        outbox::recall(&mut self.session, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let lines = ledger::audit(&mut self.session, entries).await;
        let lines = self.sequences.checked(&mut self.session, "audit_log", lines).await?;
        ledger::attribute(&mut self.session, entries, &lines).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.session.commit().await
    }

    async fn rollback(self: Box<Self>) {
        self.session.rollback().await;
    }
}
