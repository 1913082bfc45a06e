//! [`Inbox`] in SQL.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Database, Purpose, Row, batch, only, queue, retention, statements, values};
use crate::{
    model::SvixId,
    store::{
        DeliveryFilter, Inbox, LOOKED_THROUGH, Old, Parked, Processed, QueueDepth, QueueFilter, QueueState,
        Queued, Result, StoreError, Trouble,
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

statements! {
    FIRST_DUE = "SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1";

    DEPTH = "SELECT
            -- Each in an index of its own.
            (SELECT count(*) FROM webhook_queue WHERE state = 'pending'),
            (SELECT count(*) FROM webhook_queue WHERE state = 'dead'),
            (SELECT min(next_attempt_at) FROM webhook_queue WHERE state = 'pending')";

    QUEUED = queued!("webhook_queue AS q WHERE true");

    // Few among many: they have an index of their own, which only this text allows to use.
    DEAD = queued!("webhook_queue AS q WHERE q.state = 'dead'");

    OF_USER = queued!("webhook_queue AS q{sqlite  INDEXED BY webhook_queue_clerk_id} WHERE q.clerk_id = $4");

    THESE = queued!("{batch $6 AS n: id text} {lookup webhook_queue AS q WHERE q.svix_id = n.id} WHERE true");

    PARKED = "SELECT svix_id, event_type, kind, clerk_id, payload, attempts, next_attempt_at, received_at, last_error,
               trace_context, dead_at
        FROM webhook_queue WHERE svix_id = $1";

    NEWEST = "SELECT p.svix_id, p.event_type, p.outcome, p.kind, p.clerk_id, p.event_at, p.processed_at
        FROM (
            SELECT * FROM processed_webhooks
            WHERE processed_at <= coalesce($1, {postgres 'infinity'}{sqlite '~'})
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
impl<D: Database> Inbox for D {
    async fn first_due(&self) -> Result<Option<DateTime<Utc>>> {
        let rows = self.fetch(Purpose::Read, &FIRST_DUE, values![]).await?;
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
        if let Some(ids) = ids {
            values.push(batch(ids).text(SvixId::as_str).into());
        }
        let rows = self.fetch(purpose, statement, &values).await?;
        rows.iter().map(queued).collect()
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
        let rows = self.fetch(purpose, statement, &values).await?;
        rows.iter().map(processed).collect()
    }

    async fn count_old(&self, kind: Old, before: DateTime<Utc>) -> Result<u64> {
        retention::count(self, kind, before).await
    }

    async fn prune(&self, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64> {
        retention::prune(self, kind, before, limit).await
    }
}

fn queued(row: &Row) -> Result<Queued> {
    let state: String = row.get(4)?;
    Ok(Queued {
        svix_id: row.get(0)?,
        event_type: row.maybe(1)?,
        clerk_id: row.maybe_id(2)?,
        state: QueueState::named(&state).ok_or_else(|| StoreError::new(Trouble::Broken))?,
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
