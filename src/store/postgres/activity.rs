//! What was answered: counts by the minute, and the newest deliveries.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{Postgres, count, get, sql, transaction::svix_id};
use crate::{
    model::SvixId,
    store::{Activity, DeliveryFilter, LOOKED_THROUGH, Processed, Result},
};

pub(super) async fn deliveries(
    store: &Postgres,
    filter: &DeliveryFilter,
    limit: u32,
) -> Result<Vec<Processed>> {
    let (at, id) = filter.before.as_ref().map(|(at, id)| (*at, id.as_str())).unzip();
    let filtered = filter.event_type.is_some() || filter.outcome.is_some();
    let mut session = store.session(&store.begin_page).await?;
    let rows = session
        .rows(
            sql("SELECT svix_id, event_type, outcome, clerk_id, event_at, processed_at FROM (
                     SELECT * FROM processed_webhooks
                     WHERE processed_at <= coalesce($1, 'infinity')
                       AND ($1 IS NULL OR (processed_at, svix_id) < ($1, $2))
                     ORDER BY processed_at DESC, svix_id DESC
                     LIMIT $3
                 ) AS newest
                 WHERE ($4::text IS NULL OR event_type = $4) AND ($5::text IS NULL OR outcome = $5)
                 LIMIT $6")
            .bind(at)
            .bind(id)
            .bind(i64::from(if filtered { LOOKED_THROUGH } else { limit }))
            .bind(filter.event_type.as_deref())
            .bind(filter.outcome.as_deref())
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(processed_row).collect()
}

pub(super) async fn processed(store: &Postgres, ids: &[SvixId]) -> Result<Vec<Processed>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT p.svix_id, p.event_type, p.outcome, p.clerk_id, p.event_at, p.processed_at
                 FROM unnest($1::text[]) AS n (svix_id)
                 CROSS JOIN LATERAL (SELECT * FROM processed_webhooks WHERE svix_id = n.svix_id) AS p")
            .bind(ids.iter().map(SvixId::as_str).collect::<Vec<_>>()),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(processed_row).collect()
}

fn processed_row(row: &PgRow) -> Result<Processed> {
    Ok(Processed {
        svix_id: svix_id(row, 0)?,
        event_type: get(row, 1)?,
        outcome: get(row, 2)?,
        clerk_id: get(row, 3)?,
        event_at: get(row, 4)?,
        processed_at: get(row, 5)?,
    })
}

pub(super) async fn add(store: &Postgres, counted: &[Activity]) -> Result<()> {
    let within = |index: usize| -> Vec<i64> {
        counted.iter().map(|activity| activity.within[index].cast_signed()).collect()
    };
    let texts = |of: fn(&Activity) -> &str| -> Vec<&str> { counted.iter().map(of).collect() };
    let mut session = store.session(&store.begin_unhurried).await?;
    session
        .execute(
            sql("INSERT INTO activity AS a
                 SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[],
                     $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[]) AS n
                 -- Every replica takes the rows in one order.
                 ORDER BY 1, 2, 3, 4
                 ON CONFLICT (at, event, outcome, reason) DO UPDATE SET
                     latest = greatest(a.latest, excluded.latest),
                     count = a.count + excluded.count,
                     within_5ms = a.within_5ms + excluded.within_5ms,
                     within_25ms = a.within_25ms + excluded.within_25ms,
                     within_100ms = a.within_100ms + excluded.within_100ms,
                     within_500ms = a.within_500ms + excluded.within_500ms,
                     within_2s = a.within_2s + excluded.within_2s,
                     within_10s = a.within_10s + excluded.within_10s")
            .bind(counted.iter().map(|activity| activity.at).collect::<Vec<_>>())
            .bind(texts(|activity| &activity.event))
            .bind(texts(|activity| &activity.outcome))
            .bind(texts(|activity| &activity.reason))
            .bind(counted.iter().map(|activity| activity.latest).collect::<Vec<_>>())
            .bind(counted.iter().map(|activity| activity.count.cast_signed()).collect::<Vec<_>>())
            .bind(within(0))
            .bind(within(1))
            .bind(within(2))
            .bind(within(3))
            .bind(within(4))
            .bind(within(5)),
        )
        .await?;
    session.commit().await
}

pub(super) async fn since(store: &Postgres, since: DateTime<Utc>, seconds: u32) -> Result<Vec<Activity>> {
    let mut session = store.session(&store.begin_count).await?;
    let rows = session
        .rows(
            sql("SELECT to_timestamp(floor(extract(epoch FROM at) / $2) * $2), event, outcome, reason, max(latest),
                        sum(count)::bigint, sum(within_5ms)::bigint, sum(within_25ms)::bigint, sum(within_100ms)::bigint,
                        sum(within_500ms)::bigint, sum(within_2s)::bigint, sum(within_10s)::bigint
                 FROM activity WHERE at >= $1
                 GROUP BY 1, 2, 3, 4
                 ORDER BY 1, 2, 3, 4")
            .bind(since)
            .bind(i64::from(seconds)),
        )
        .await?;
    session.commit().await?;
    rows.iter()
        .map(|row| {
            let mut within = [0; 6];
            for (index, within) in within.iter_mut().enumerate() {
                *within = count(row, index + 6)?;
            }
            Ok(Activity {
                at: get(row, 0)?,
                event: get(row, 1)?,
                outcome: get(row, 2)?,
                reason: get(row, 3)?,
                latest: get(row, 4)?,
                count: count(row, 5)?,
                within,
            })
        })
        .collect()
}
