//! How many users signed up.

use chrono::{DateTime, NaiveDate, Utc};

use super::{Session, count, get, sql};
use crate::store::{Bucket, Result};

/// Sign-ups by the first day of their bucket.
pub(super) async fn signups(
    session: &mut Session,
    bucket: Bucket,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
) -> Result<Vec<(NaiveDate, u64)>> {
    // Every bucket is counted by its bounds, which is a walk along the index: to compute the bucket of every row takes four
    // times as long. What nobody signed up in is leapt over.
    let query = sql("WITH RECURSIVE buckets (first, upto) AS (
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
         SELECT date_trunc($1, b.first AT TIME ZONE 'UTC')::date,
                (SELECT count(*) FROM users
                 WHERE created_at >= b.first AND created_at < least(b.upto, coalesce($3::timestamptz, 'infinity')))
         FROM buckets AS b
         ORDER BY 1")
    .bind(bucket.name())
    .bind(from)
    .bind(to);
    session.rows(query).await?.iter().map(|row| Ok((get(row, 0)?, count(row, 1)?))).collect()
}
