//! The newest deliveries.

use sqlx::postgres::PgRow;

use super::{Postgres, get, sql, transaction::svix_id};
use crate::{
    model::SvixId,
    store::{DeliveryFilter, LOOKED_THROUGH, Processed, Result},
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
