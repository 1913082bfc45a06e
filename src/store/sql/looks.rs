//! What people and programs read: rows, what is known about people and their erasures, and deliveries. Reads take no locks.

use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, Utc};

use super::{Purpose, Row, SqlDatabase, batch, ledger, objects::Statements, only, queue, statements, values};
use crate::{
    entity::{PARTS, USER},
    model::{ClerkId, Entity, FieldSet, Receipt, Selection, SvixId},
    store::{
        self, AuditLine, Bucket, DeliveryFilter, ErrorKind, Known, LOOKED_THROUGH, Looks, OpenErasures,
        Parked, Processed, QueueDepth, QueueFilter, QueueState, Queued, Result, RowFilter, StoreError,
        Tombstone,
    },
};

macro_rules! queued {
    ($from:literal) => {
        concat!(
            "SELECT q.svix_id, q.event_type, q.kind, q.clerk_id, q.state, q.attempts, q.next_attempt_at, q.received_at,
               q.last_error, octet_length(q.payload)
        FROM ",
            $from,
            " AND q.svix_id > $1 AND ($2 IS NULL OR q.event_type = $2) AND ($3 IS NULL OR q.state = $3)
          AND ($4 IS NULL OR q.clerk_id = $4)
        ORDER BY q.svix_id
        LIMIT $5"
        )
    };
}

/// Audit lines about one object, with the columns in the order in which [`audit_line`] reads them.
macro_rules! lines_of {
    () => {
        "SELECT id, at, action, svix_id, source,
               {postgres array_to_json(changed_fields)::text}{sqlite|mysql changed_fields}, event_at, kind
        FROM audit_log
        WHERE clerk_id = $1"
    };
}

statements! {
    // Each bucket is counted by its bounds, in one walk along the index: computing the bucket of every row takes four times as
    // long. Empty buckets are skipped. SQLite compares days and times as texts. A time in another format than clerk-sync's
    // comes from the application. A time with another zone, and the times after it, may be counted in the neighbouring bucket.
    SIGNUPS = "{mysql SELECT CAST(CASE $1
                   WHEN 'week' THEN date(created_at) - INTERVAL weekday(created_at) day
                   WHEN 'month' THEN date(created_at) - INTERVAL dayofmonth(created_at) - 1 day
                   ELSE date(created_at) END AS char) AS first, count(*)
         FROM users
         WHERE created_at >= coalesce($2, CAST('0001-01-01' AS datetime))
           AND created_at < coalesce($3, CAST('9999-12-31 23:59:59.999999' AS datetime(6)))
         GROUP BY 1
         ORDER BY 1}{postgres WITH RECURSIVE buckets (first, upto) AS (
             SELECT n.first, (date_trunc($1, n.first AT TIME ZONE 'UTC') + ('1 ' || $1)::interval) AT TIME ZONE 'UTC'
             FROM (SELECT min(created_at) AS first FROM users
                   WHERE created_at >= coalesce($2::timestamptz, '4713-01-02 BC')
                     AND created_at < coalesce($3::timestamptz, 'infinity')) AS n
             WHERE n.first IS NOT NULL
             UNION ALL
             SELECT n.first, (date_trunc($1, n.first AT TIME ZONE 'UTC') + ('1 ' || $1)::interval) AT TIME ZONE 'UTC'
             FROM buckets AS b
             CROSS JOIN LATERAL (SELECT min(created_at) AS first FROM users
                                 WHERE created_at >= b.upto AND created_at < coalesce($3::timestamptz, 'infinity')) AS n
             WHERE n.first IS NOT NULL
         )
         SELECT to_char(date_trunc($1, b.first AT TIME ZONE 'UTC'), 'YYYY-MM-DD'),
                (SELECT count(*) FROM users
                 WHERE created_at >= b.first AND created_at < least(b.upto, coalesce($3::timestamptz, 'infinity')))
         FROM buckets AS b
         ORDER BY 1}{sqlite WITH RECURSIVE
         -- The modifiers from a time to the first day of its bucket, and from there to the first day of the next one.
         m (start, back, next) AS (VALUES (
             CASE $1 WHEN 'week' THEN 'weekday 0' WHEN 'month' THEN 'start of month' ELSE '+0 days' END,
             CASE $1 WHEN 'week' THEN '-6 days' ELSE '+0 days' END,
             CASE $1 WHEN 'week' THEN '+7 days' WHEN 'month' THEN '+1 month' ELSE '+1 day' END
         )),
         firsts (first) AS (
             SELECT (SELECT min(created_at) FROM users
                     WHERE created_at >= coalesce($2, '') AND created_at < coalesce($3, '~'))
             UNION ALL
             SELECT (SELECT min(created_at) FROM users
                     WHERE created_at >= max(coalesce(date(f.first, m.start, m.back, m.next), ''), f.first || ' ')
                       AND created_at < coalesce($3, '~'))
             FROM firsts AS f CROSS JOIN m WHERE f.first IS NOT NULL
         )
         SELECT date(f.first, m.start, m.back),
                sum((SELECT count(*) FROM users
                     WHERE created_at >= f.first
                       -- A single bound, because a second one would be checked row by row.
                       AND created_at < min(max(coalesce(date(f.first, m.start, m.back, m.next), ''), f.first || ' '), coalesce($3, '~'))
                ))
         FROM firsts AS f CROSS JOIN m
         GROUP BY 1
         ORDER BY 1}";

    AUDIT_TRAIL = concat!(lines_of!(), " AND id > $2
        ORDER BY id
        LIMIT $3");

    // Avoid the order of the primary key: the planner would scan its index for a user with few lines.
    NEWEST_LINES = concat!(lines_of!(), "
        ORDER BY {postgres id + 0}{sqlite +id}{mysql id} DESC
        LIMIT $2");

    HELD_DUE = "SELECT clerk_id FROM entity_versions
        WHERE kind = 'user' AND held_until IS NOT NULL AND held_until <= $1 AND clerk_id > $2
        ORDER BY clerk_id
        LIMIT $3";

    TOMBSTONES = "SELECT e.clerk_id, e.event_at, e.held_until FROM entity_versions AS e
        WHERE e.kind = 'user' AND e.clerk_id > $1
          AND (e.held_until IS NOT NULL OR e.deleted AND coalesce(
              -- An erasure that is not complete counts as recent.
              (SELECT coalesce(r.completed_at >= $2, true) FROM erasure_receipts AS r
               WHERE r.clerk_id = e.clerk_id AND r.destination = 'database'),
              -- Nothing of this user was stored: the time of the webhook counts, as long as it is known.
              (SELECT p.processed_at >= $2 FROM processed_webhooks AS p WHERE p.svix_id = e.tie),
              e.event_at >= $3
          ))
        ORDER BY e.clerk_id
        LIMIT $4";

    RECEIPTS_OF = "SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error FROM erasure_receipts
        WHERE clerk_id = $1
        ORDER BY destination";

    OPEN_RECEIPTS = "SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error FROM erasure_receipts
        WHERE completed_at IS NULL AND requested_at < coalesce($1, {postgres 'infinity'}{sqlite '~'}{mysql CAST('9999-12-31' AS datetime)})
          AND (requested_at, clerk_id, destination) > (coalesce($2, {postgres '-infinity'}{sqlite ''}{mysql CAST('0001-01-01' AS datetime)}), $3, $4)
        ORDER BY requested_at, clerk_id, destination
        LIMIT $5";

    OPEN_ERASURES = "SELECT destination, count(*), min(requested_at) FROM erasure_receipts
        WHERE completed_at IS NULL
        GROUP BY destination";

    FIRST_DUE = "SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending' AND next_attempt_at >= $1
        ORDER BY next_attempt_at LIMIT 1";

    DEPTH = "SELECT
            -- Each count uses its own index.
            pending.deliveries, (SELECT count(*) FROM webhook_queue WHERE state = 'dead'), pending.first_due
        FROM (
            SELECT count(*) AS deliveries, min(next_attempt_at) AS first_due FROM webhook_queue WHERE state = 'pending'
        ) AS pending";

    QUEUED = queued!("webhook_queue AS q WHERE true");

    // Dead deliveries are few, and have their own index. Only this condition lets the database use it.
    DEAD = queued!("webhook_queue AS q WHERE q.state = 'dead'");

    OF_USER = queued!("webhook_queue AS q{sqlite  INDEXED BY webhook_queue_clerk_id} WHERE q.clerk_id = $4");

    THESE = queued!("{batch $6 AS n: id text} {lookup webhook_queue AS q WHERE q.svix_id = n.id} WHERE true");

    PARKED = "SELECT svix_id, event_type, kind, clerk_id, payload, attempts, next_attempt_at, received_at, last_error,
               trace_context, dead_at
        FROM webhook_queue WHERE svix_id = $1";

    NEWEST = "SELECT p.svix_id, p.event_type, p.outcome, p.kind, p.clerk_id, p.event_at, p.processed_at
        FROM (
            SELECT * FROM processed_webhooks
            WHERE processed_at <= coalesce($1, {postgres 'infinity'}{sqlite '~'}{mysql CAST('9999-12-31' AS datetime)})
              AND ($1 IS NULL OR (processed_at, svix_id) < ($1, $2))
            ORDER BY processed_at DESC, svix_id DESC
            LIMIT $6
        ) AS p
        WHERE ($3 IS NULL OR p.event_type = $3) AND ($4 IS NULL OR p.outcome = $4)
        LIMIT $5";

    PROCESSED = "SELECT p.svix_id, p.event_type, p.outcome, p.kind, p.clerk_id, p.event_at, p.processed_at
        FROM {batch $6 AS n: id text} {lookup processed_webhooks AS p WHERE p.svix_id = n.id}
        WHERE ($1 IS NULL OR (p.processed_at, p.svix_id) < ($1, $2))
          AND ($3 IS NULL OR p.event_type = $3) AND ($4 IS NULL OR p.outcome = $4)
        ORDER BY p.processed_at DESC, p.svix_id DESC
        LIMIT $5";
}

#[async_trait]
impl<D: SqlDatabase + ?Sized> Looks for D {
    async fn row(&self, id: &ClerkId) -> Result<Option<store::Row>> {
        let statements = Statements::of(id.entity(), FieldSet::ALL);
        let rows = self.fetch(Purpose::Read, &statements.one, values![id]).await?;
        rows.first().map(|row| statements.seen(row)).transpose()
    }

    async fn rows(&self, entity: &'static Entity, filter: &RowFilter, limit: u32) -> Result<Vec<store::Row>> {
        let statements = Statements::of(entity, FieldSet::ALL);
        let after = filter.after.unwrap_or(i64::MIN);
        let rows = match &filter.with {
            None => self.fetch(Purpose::Page, &statements.page, values![after, limit]).await?,
            Some((field, value)) => {
                let statement = statements.pages.iter().find(|(other, _)| other == field);
                let (_, statement) = statement.ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
                let purpose = if field.parent.is_some() { Purpose::Page } else { Purpose::Read };
                self.fetch(purpose, statement, values![after, limit, value]).await?
            }
        };
        rows.iter().map(|row| statements.seen(row)).collect()
    }

    async fn these(&self, entity: &'static Entity, ids: &[ClerkId]) -> Result<Vec<store::Row>> {
        let statements = Statements::of(entity, FieldSet::ALL);
        let ids = values![batch(ids).text(ClerkId::as_str)];
        let rows = self.fetch(Purpose::Read, &statements.these, ids).await?;
        rows.iter().map(|row| statements.seen(row)).collect()
    }

    async fn signups(
        &self,
        bucket: Bucket,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<(NaiveDate, u64)>> {
        let rows = self.fetch(Purpose::Count, &SIGNUPS, values![bucket.name(), from, to]).await?;
        let count = |row: &Row| {
            let day = row.maybe::<String>(0)?.and_then(|day| day.parse().ok());
            Ok(day.zip(row.maybe(1)?))
        };
        rows.iter().filter_map(|row| count(row).transpose()).collect()
    }

    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known> {
        let mut session = self.session(Purpose::Read).await?;
        let registers = ledger::known_registers(&mut *session, ids).await?;
        let objects = session.load(ids, selection).await?;
        session.commit().await?;
        Ok(Known { registers, objects })
    }

    async fn parts_of(&self, owners: &[ClerkId]) -> Result<Vec<ClerkId>> {
        let mut session = self.session(Purpose::Read).await?;
        let parts = session.parts(owners, PARTS, u32::MAX).await?;
        session.commit().await?;
        Ok(parts)
    }

    async fn standing(
        &self,
        entity: &'static Entity,
        untouched_since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        let statements = Statements::of(entity, FieldSet::default());
        // This reads the whole table if clerk-sync has written nearly all rows since.
        let values = values![from(after), untouched_since, limit];
        let rows = self.fetch(Purpose::Scan, &statements.standing, values).await?;
        rows.iter().map(|row| row.id_of(entity, 0)).collect()
    }

    async fn count_standing(&self, entity: &'static Entity) -> Result<u64> {
        let statements = Statements::of(entity, FieldSet::default());
        // On a large table this takes longer than a webhook is allowed to.
        only(&self.fetch(Purpose::Scan, &statements.count_standing, values![]).await?)?.get(0)
    }

    async fn last_written(&self, entity: &'static Entity) -> Result<Option<DateTime<Utc>>> {
        let statements = Statements::of(entity, FieldSet::default());
        let rows = self.fetch(Purpose::Count, &statements.newest, values![]).await?;
        rows.first().map(|row| row.get(0)).transpose()
    }

    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>> {
        let values = values![id, after.unwrap_or(i64::MIN), limit];
        self.fetch(Purpose::Read, &AUDIT_TRAIL, values).await?.iter().map(audit_line).collect()
    }

    async fn newest_lines(&self, id: &ClerkId, limit: u32) -> Result<Vec<AuditLine>> {
        let rows = self.fetch(Purpose::Read, &NEWEST_LINES, values![id, limit]).await?;
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
        // Databases limit how early a time can be.
        let since = since.max(DateTime::UNIX_EPOCH);
        // This reads the whole table if few users were erased.
        let values = values![from(after), since, since.timestamp_millis(), limit];
        self.fetch(Purpose::Scan, &TOMBSTONES, values).await?.iter().map(tombstone).collect()
    }

    async fn receipts_of(&self, id: &ClerkId) -> Result<Vec<Receipt>> {
        self.fetch(Purpose::Read, &RECEIPTS_OF, values![id]).await?.iter().map(receipt).collect()
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
        self.fetch(Purpose::Read, &OPEN_RECEIPTS, values).await?.iter().map(receipt).collect()
    }

    async fn open_erasures(&self) -> Result<Vec<OpenErasures>> {
        let rows = self.fetch(Purpose::Read, &OPEN_ERASURES, values![]).await?;
        let open = |row: &Row| {
            Ok(OpenErasures { destination: row.get(0)?, receipts: row.get(1)?, oldest: row.get(2)? })
        };
        rows.iter().map(open).collect()
    }

    async fn first_due(&self, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let rows = self.fetch(Purpose::Read, &FIRST_DUE, values![since]).await?;
        rows.first().map_or(Ok(None), |row| row.maybe(0))
    }

    async fn queue_depth(&self) -> Result<QueueDepth> {
        let rows = self.fetch(Purpose::Count, &DEPTH, values![]).await?;
        let row = only(&rows)?;
        Ok(QueueDepth { pending: row.get(0)?, dead: row.get(1)?, first_due: row.maybe(2)? })
    }

    async fn queued(&self, filter: &QueueFilter, limit: u32) -> Result<Vec<Queued>> {
        let QueueFilter { ids, state, event_type, clerk_id, after } = filter;
        let (statement, purpose) = match (ids, clerk_id, state) {
            (Some(_), ..) => (&THESE, Purpose::Read),
            (None, Some(_), _) => (&OF_USER, Purpose::Read),
            (None, None, Some(QueueState::Dead)) => (&DEAD, Purpose::Page),
            (None, None, _) => (&QUEUED, Purpose::Page),
        };
        let after = after.as_ref().map_or("", SvixId::as_str);
        let mut values =
            values![after, event_type, state.map(QueueState::name), clerk_id.as_ref(), limit].to_vec();
        values.extend(ids.as_ref().map(|ids| batch(ids).text(SvixId::as_str).into()));
        self.fetch(purpose, statement, &values).await?.iter().map(queued).collect()
    }

    async fn parked(&self, id: &SvixId) -> Result<Option<Parked>> {
        let rows = self.fetch(Purpose::Read, &PARKED, values![id]).await?;
        rows.first().map(queue::parked).transpose()
    }

    async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Processed>> {
        let DeliveryFilter { ids, event_type, outcome, before } = filter;
        let (statement, purpose, among) = match ids {
            Some(ids) => (&PROCESSED, Purpose::Read, batch(ids).text(SvixId::as_str).into()),
            None if event_type.is_some() || outcome.is_some() => {
                (&NEWEST, Purpose::Page, LOOKED_THROUGH.into())
            }
            None => (&NEWEST, Purpose::Page, limit.into()),
        };
        let (at, id) = before.as_ref().map(|(at, id)| (*at, id)).unzip();
        let mut values = values![at, id, event_type, outcome, limit].to_vec();
        values.push(among);
        self.fetch(purpose, statement, &values).await?.iter().map(processed).collect()
    }
}

/// The id after which a page begins.
fn from(after: Option<&ClerkId>) -> &str {
    after.map_or("", ClerkId::as_str)
}

fn audit_line(row: &Row) -> Result<AuditLine> {
    let changed_fields: String = row.maybe(5)?.unwrap_or_else(|| "[]".to_owned());
    let broken = |_| StoreError {
        place: Some("column changed_fields cannot be read".to_owned()),
        ..StoreError::new(ErrorKind::Broken)
    };
    Ok(AuditLine {
        id: row.get(0)?,
        at: row.get(1)?,
        action: row.get(2)?,
        kind: row.get(7)?,
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

fn queued(row: &Row) -> Result<Queued> {
    let state: String = row.get(4)?;
    Ok(Queued {
        svix_id: row.get(0)?,
        event_type: row.maybe(1)?,
        kind: row.maybe(2)?,
        clerk_id: row.maybe_id(2)?,
        state: QueueState::named(&state).ok_or_else(|| StoreError::new(ErrorKind::Broken))?,
        attempts: row.get(5)?,
        next_attempt_at: row.maybe(6)?,
        received_at: row.get(7)?,
        last_error: row.maybe(8)?.unwrap_or_default(),
        bytes: row.get(9)?,
    })
}

fn processed(row: &Row) -> Result<Processed> {
    Ok(Processed {
        svix_id: row.get(0)?,
        event_type: row.maybe(1)?,
        outcome: row.get(2)?,
        kind: row.maybe(3)?,
        clerk_id: row.maybe(4)?,
        event_at: row.get(5)?,
        processed_at: row.get(6)?,
    })
}
