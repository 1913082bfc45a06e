//! `GET /v1/signups`: the number of sign-ups by day, week or month.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State},
};
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, query::Query, read};
use crate::{http::App, store::Bucket};

const PARAMETERS: [&str; 3] = ["bucket", "from", "to"];
const KNOWN: &str = "allowed parameters are bucket, from and to, each at most once";
const BUCKET: &str = "bucket: must be day, week or month";
const FROM: &str = "from: must be a date such as 2026-11-16, or a time in RFC 3339 with + written as %2B";
const TO: &str = "to: must be a date such as 2026-11-16, or a time in RFC 3339 with + written as %2B";

/// Sign-ups by time, in UTC.
#[derive(Serialize, ToSchema)]
pub(super) struct SignupNumbers {
    #[schema(example = "week")]
    bucket: &'static str,
    /// In the order of time; buckets without sign-ups are left out.
    signups: Vec<Count>,
    /// The total of all buckets.
    #[schema(example = 12)]
    total: u64,
}

/// The sign-ups of one day, week or month.
#[derive(Serialize, ToSchema)]
pub(super) struct Count {
    /// Its first day. Weeks begin on Monday.
    #[schema(example = "2026-11-16")]
    start: NaiveDate,
    #[schema(example = 12)]
    count: u64,
}

/// Sign-ups by day, week or month
///
/// By the time of the sign-up according to Clerk, in UTC. As in the view `signups_by_week`, anonymised users count, and
/// users without a row do not.
#[utoipa::path(
    get,
    path = "/v1/signups",
    operation_id = "count_signups",
    params(
        (
            "bucket" = Option<String>, Query, pattern = "^(day|week|month)$",
            description = "`day`, `week` or `month`; `week` by default"
        ),
        (
            "from" = Option<String>, Query, example = "2026-11-16",
            description = "Only from this time on: a date, which begins at midnight UTC, or a time in RFC 3339"
        ),
        ("to" = Option<String>, Query, example = "2026-11-30", description = "Only before this time, in the same formats"),
    ),
    responses((status = 200, description = "The numbers", body = SignupNumbers))
)]
pub(super) async fn count(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Answer<SignupNumbers> {
    let query = Query::read(query.as_deref(), &PARAMETERS, KNOWN)?;
    let bucket = query.value("bucket", Bucket::named, BUCKET)?.unwrap_or(Bucket::Week);
    let from = query.value("from", time, FROM)?;
    let to = query.value("to", time, TO)?;

    let counted = read(&app, async move |store| store.signups(bucket, from, to).await).await?;
    let total = counted.iter().map(|(_, count)| count).sum();
    let signups = counted.into_iter().map(|(start, count)| Count { start, count }).collect();
    Ok(Json(SignupNumbers { bucket: bucket.name(), signups, total }))
}

/// A date, or a time with its offset, with a year of four digits.
fn time(text: &str) -> Option<DateTime<Utc>> {
    let date = || text.parse().ok().map(|date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc());
    let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    date().or_else(time).filter(|time| (0..=9999).contains(&time.year()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_date_or_a_time() {
        let read = |text: &str| time(text).map(|time| time.to_rfc3339());
        assert_eq!(read("2026-11-16").as_deref(), Some("2026-11-16T00:00:00+00:00"));
        assert_eq!(read("2026-11-16T01:00:00+01:00").as_deref(), Some("2026-11-16T00:00:00+00:00"));
        for text in ["", "16.11.2026", "2026-11-31", "2026-11-16T00:00:00", "+12026-11-16", "1794787200"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
