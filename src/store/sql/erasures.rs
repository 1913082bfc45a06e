//! [`Erasures`] in SQL, and the receipts that a transaction writes.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{
    Database, Purpose, Row, Session, batch, ledger,
    objects::{self, Statements},
    only, retention, statements, values,
};
use crate::{
    entity::USER,
    model::{ClerkId, Entity, FieldSet, Receipt, Selection},
    store::{AuditLine, Erasures, Known, Minimized, OpenErasures, Result, StoreError, Tombstone, Trouble},
};

statements! {
    AUDIT_TRAIL = "SELECT id, at, action, svix_id, source,
               {postgres array_to_json(changed_fields)::text}{sqlite changed_fields}, event_at
        FROM audit_log
        WHERE clerk_id = $1 AND id > $2
        ORDER BY id
        LIMIT $3";

    HELD_DUE = "SELECT clerk_id FROM entity_versions
        WHERE kind = 'user' AND held_until IS NOT NULL AND held_until <= $1 AND clerk_id > $2
        ORDER BY clerk_id
        LIMIT $3";

    TOMBSTONES = "SELECT e.clerk_id, e.event_at, e.held_until FROM entity_versions AS e
        WHERE e.kind = 'user' AND e.clerk_id > $1
          AND (e.held_until IS NOT NULL OR e.deleted AND coalesce(
              -- What is not done yet counts as done now.
              (SELECT coalesce(r.completed_at >= $2, true) FROM erasure_receipts AS r
               WHERE r.clerk_id = e.clerk_id AND r.destination = 'database'),
              -- Of whom nothing was here: when we were told, as long as that is known.
              (SELECT p.processed_at >= $2 FROM processed_webhooks AS p WHERE p.svix_id = e.tie),
              e.event_at >= $3
          ))
        ORDER BY e.clerk_id
        LIMIT $4";

    RECEIPTS_OF = "SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error FROM erasure_receipts
        WHERE clerk_id = $1
        ORDER BY destination";

    OPEN_RECEIPTS = "SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error FROM erasure_receipts
        WHERE completed_at IS NULL AND requested_at < coalesce($1, {postgres 'infinity'}{sqlite '~'})
          AND (requested_at, clerk_id, destination) > (coalesce($2, {postgres '-infinity'}{sqlite ''}), $3, $4)
        ORDER BY requested_at, clerk_id, destination
        LIMIT $5";

    OPEN_ERASURES = "SELECT destination, count(*), min(requested_at) FROM erasure_receipts
        WHERE completed_at IS NULL
        GROUP BY destination";

    WRITE_RECEIPTS = "INSERT INTO erasure_receipts AS r
            (clerk_id, destination, requested_at, completed_at, attempts, last_error)
        SELECT n.clerk_id, n.destination, n.requested_at, n.completed_at, n.attempts, n.last_error
        FROM {batch $1 AS n: clerk_id text, destination text, requested_at time, completed_at time, attempts bigint, last_error text}
        WHERE true
        ON CONFLICT (clerk_id, destination) DO UPDATE
        SET requested_at = {postgres least}{sqlite min}(r.requested_at, excluded.requested_at),
            completed_at = coalesce(r.completed_at, excluded.completed_at),
            attempts = r.attempts + excluded.attempts,
            -- What is done has no error.
            last_error = CASE WHEN r.completed_at IS NULL THEN excluded.last_error END";

    CLOSE_RECEIPTS = "UPDATE erasure_receipts SET completed_at = $3, last_error = NULL
        WHERE clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}} AND destination = $2
          AND completed_at IS NULL";
}

#[async_trait]
impl<D: Database> Erasures for D {
    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known> {
        let mut session = self.session(Purpose::Read).await?;
        let registers = ledger::known_registers(&mut *session, ids).await?;
        let users = objects::load(&mut *session, ids, selection).await?;
        session.commit().await?;
        Ok(Known { registers, users })
    }

    async fn standing(
        &self,
        entity: &'static Entity,
        untouched_since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        // Where nearly everybody was touched it looks through the whole table.
        let rows = self
            .fetch(
                Purpose::Scan,
                &Statements::of(entity, FieldSet::default()).standing,
                values![from(after), untouched_since, limit],
            )
            .await?;
        rows.iter().map(|row| row.id_of(entity, 0)).collect()
    }

    async fn count_standing(&self, entity: &'static Entity) -> Result<u64> {
        // Of a large table this takes longer than a webhook may.
        let rows = self
            .fetch(Purpose::Scan, &Statements::of(entity, FieldSet::default()).count_standing, values![])
            .await?;
        only(&rows)?.get(0)
    }

    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>> {
        let rows =
            self.fetch(Purpose::Read, &AUDIT_TRAIL, values![id, after.unwrap_or(i64::MIN), limit]).await?;
        rows.iter().map(audit_line).collect()
    }

    async fn held_due(
        &self,
        now: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        let rows = self.fetch(Purpose::Read, &HELD_DUE, values![now, from(after), limit]).await?;
        rows.iter().map(|row| row.id_of(&USER, 0)).collect()
    }

    async fn tombstones(
        &self,
        since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<Tombstone>> {
        // No database has times without a beginning.
        let since = since.max(DateTime::UNIX_EPOCH);
        // Where nearly nobody was erased it looks through the whole table.
        let values = values![from(after), since, since.timestamp_millis(), limit];
        let rows = self.fetch(Purpose::Scan, &TOMBSTONES, values).await?;
        rows.iter().map(tombstone).collect()
    }

    async fn receipts_of(&self, id: &ClerkId) -> Result<Vec<Receipt>> {
        let rows = self.fetch(Purpose::Read, &RECEIPTS_OF, values![id]).await?;
        rows.iter().map(receipt).collect()
    }

    async fn open_receipts(
        &self,
        before: Option<DateTime<Utc>>,
        after: Option<&Receipt>,
        limit: u32,
    ) -> Result<Vec<Receipt>> {
        let values = values![
            before,
            after.map(|receipt| receipt.requested_at),
            from(after.map(|receipt| &receipt.clerk_id)),
            after.map_or("", |receipt| receipt.destination.as_str()),
            limit,
        ];
        let rows = self.fetch(Purpose::Read, &OPEN_RECEIPTS, values).await?;
        rows.iter().map(receipt).collect()
    }

    async fn open_erasures(&self) -> Result<Vec<OpenErasures>> {
        let rows = self.fetch(Purpose::Read, &OPEN_ERASURES, values![]).await?;
        let open = |row: &Row| {
            Ok(OpenErasures { destination: row.get(0)?, receipts: row.get(1)?, oldest: row.get(2)? })
        };
        rows.iter().map(open).collect()
    }

    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>> {
        retention::minimize(self, entity, keep, after, limit, dry_run).await
    }
}

/// The id behind which a page begins.
fn from(after: Option<&ClerkId>) -> &str {
    after.map_or("", ClerkId::as_str)
}

fn audit_line(row: &Row) -> Result<AuditLine> {
    let changed_fields: String = row.maybe(5)?.unwrap_or_else(|| "[]".to_owned());
    let broken = |_| StoreError {
        place: Some("column changed_fields cannot be read".to_owned()),
        ..StoreError::new(Trouble::Broken)
    };
    Ok(AuditLine {
        id: row.get(0)?,
        at: row.get(1)?,
        action: row.get(2)?,
        svix_id: row.maybe(3)?,
        source: row.get(4)?,
        changed_fields: serde_json::from_str(&changed_fields).map_err(broken)?,
        event_at: row.get(6)?,
    })
}

fn tombstone(row: &Row) -> Result<Tombstone> {
    let held_until = row.maybe(2)?;
    let erased_at = DateTime::from_timestamp_millis(row.get(1)?).unwrap_or_default();
    Ok(Tombstone {
        clerk_id: row.id_of(&USER, 0)?,
        erased_at: held_until.is_none().then_some(erased_at),
        held_until,
    })
}

fn receipt(row: &Row) -> Result<Receipt> {
    Ok(Receipt {
        clerk_id: row.id_of(&USER, 0)?,
        destination: row.get(1)?,
        requested_at: row.get(2)?,
        completed_at: row.maybe(3)?,
        attempts: row.get(4)?,
        last_error: row.maybe(5)?,
    })
}

/// See [`Transaction::receipts`](crate::store::Transaction::receipts).
pub(in crate::store) async fn write_receipts(session: &mut dyn Session, receipts: &[Receipt]) -> Result<()> {
    if receipts.is_empty() {
        return Ok(());
    }
    let rows = batch(receipts)
        .text(|receipt| receipt.clerk_id.as_str())
        .text(|receipt| receipt.destination.as_str())
        .time(|receipt| receipt.requested_at)
        .time(|receipt| receipt.completed_at)
        .int(|receipt| receipt.attempts.into())
        .text(|receipt| receipt.last_error.as_deref());
    session.execute(&WRITE_RECEIPTS, values![rows]).await?;
    Ok(())
}

/// See [`Transaction::close_receipts`](crate::store::Transaction::close_receipts).
pub(in crate::store) async fn close_receipts(
    session: &mut dyn Session,
    ids: &[ClerkId],
    destination: &str,
    at: DateTime<Utc>,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids = batch(ids).text(ClerkId::as_str);
    session.execute(&CLOSE_RECEIPTS, values![ids, destination, at]).await?;
    Ok(())
}
