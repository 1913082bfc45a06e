//! The verbs of a transaction, one statement each, for all rows of a batch at once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{Session, get, removal, sequences::Sequences, sight};
use crate::{
    entity::USER,
    model::{AuditEntry, ClerkId, FieldSet, Holds, Outcome, Profile, Receipt, Register, SvixId, User, Value},
    store::{
        Address, Advance, Outgoing, Parked, Record, Result, RowFate, StoreError, Transaction, Trouble,
        Waiting, Way,
        sql::{erasures, ledger, objects, outbox, queue},
    },
};

/// A transaction of PostgreSQL.
pub(super) struct PostgresTransaction {
    session: Session,
    removal: Arc<removal::Statements>,
    sequences: Arc<Sequences>,
}

impl PostgresTransaction {
    pub(super) fn new(
        session: Session,
        removal: Arc<removal::Statements>,
        sequences: Arc<Sequences>,
    ) -> Self {
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

    async fn hold(&mut self, id: &ClerkId) -> Result<Register> {
        ledger::hold(&mut self.session, id).await
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

    async fn users(&mut self, ids: &[ClerkId], fields: FieldSet) -> Result<HashMap<ClerkId, User>> {
        objects::load(&mut self.session, &USER, ids, fields).await
    }

    async fn insert_users(&mut self, users: &[User], fields: FieldSet) -> Result<()> {
        let inserted = objects::insert(&mut self.session, users, fields).await;
        self.sequences.checked(&mut self.session, "users", inserted).await
    }

    async fn update_users(&mut self, users: &[User], fields: FieldSet) -> Result<()> {
        objects::update(&mut self.session, users, fields).await
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        let hidden = sight::hidden(&mut self.session).await?;
        Ok((!hidden.is_empty()).then(|| sight::explained(&hidden)))
    }

    async fn erase_users(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        removal::erase(&mut self.session, &self.removal, ids, ways, at).await
    }

    async fn mark_users(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        removal::mark(&mut self.session, marks).await
    }

    async fn unmark_users(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
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

pub(super) fn clerk_id(row: &PgRow, index: usize) -> Result<ClerkId> {
    ClerkId::new(&USER, get::<String>(row, index)?).ok_or_else(|| StoreError::new(Trouble::Broken))
}

/// Of the columns in the order of [`Transaction::users`].
pub(super) fn user(row: &PgRow) -> Result<User> {
    let mut profile = Profile::default();
    for (index, field) in USER.fields().enumerate() {
        let index = index + 1;
        let value = match field.holds {
            Holds::Bool => get::<Option<bool>>(row, index)?.map(Value::Bool),
            Holds::Json => get::<Option<String>>(row, index)?.map(Value::Json),
            Holds::Time => get::<Option<DateTime<Utc>>>(row, index)?.map(Value::Time),
            Holds::Text => get::<Option<String>>(row, index)?.map(Value::Text),
        };
        profile.set(field, value.unwrap_or_default());
    }
    Ok(User {
        clerk_id: clerk_id(row, 0)?,
        profile,
        created_at: get(row, 16)?,
        updated_at: get(row, 17)?,
        synced_at: get(row, 18)?,
        deleted_at: get(row, 19)?,
    })
}
