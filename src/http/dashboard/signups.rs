//! `GET /sign-ups`: the number of sign-ups by day, week and month.

use std::sync::Arc;

use axum::extract::RawQuery;
use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, Utc, Weekday};
use maud::html;

use super::{
    Answer,
    chart::{Bar, Chart},
    page::{ago, page},
    session::Visit,
};
use crate::{http::v1::read, store::Bucket};

/// The buckets, and how many of each are shown.
pub(super) const BUCKETS: [(Bucket, &str, u32); 3] =
    [(Bucket::Day, "day", 30), (Bucket::Week, "week", 26), (Bucket::Month, "month", 24)];

/// The numbers, and when they were counted.
pub(super) struct SignUps {
    counted: Vec<(NaiveDate, u64)>,
    at: DateTime<Utc>,
}

pub(super) async fn show(Visit { app, session }: Visit, RawQuery(query): RawQuery) -> Answer {
    let asked = query.as_deref().and_then(|query| query.strip_prefix("by="));
    let place = BUCKETS.iter().position(|(_, name, _)| Some(*name) == asked).unwrap_or_default();
    let (bucket, name, number) = BUCKETS[place];
    let now = (app.clock)();
    let days = buckets(bucket, now.date_naive(), number);
    let from = days.first().map(|day| day.and_time(NaiveTime::MIN).and_utc());
    let reader = Arc::clone(&app);
    let reading = async move {
        let counted = read(&reader, async move |store| store.signups(bucket, from, None).await).await?;
        Ok(Arc::new(SignUps { counted, at: now }))
    };
    let signups = app.dashboard.signups[place].take(reading).await?;
    let bars = days.iter().map(|day| {
        let signups =
            signups.counted.iter().find(|(other, _)| other == day).map_or(0, |(_, signups)| *signups);
        let label = day.format(if bucket == Bucket::Month { "%b %Y" } else { "%d %b" }).to_string();
        Bar { label, tick: tick(bucket, *day), heights: vec![signups] }
    });
    let title = format!("Sign-ups in the last {number} {name}s");
    let chart = Chart { title: &title, series: &["sign-ups"], bars: bars.collect() };
    let content = html! {
        nav.tabs aria-label="Group by" {
            @for (_, other, _) in BUCKETS {
                a href={ "/sign-ups?by=" (other) } aria-current=[(other == name).then_some("true")] { "By " (other) }
            }
        }
        (chart.draw())
        p.note { "By Clerk's sign-up time, in UTC. Users deleted since do not count, unless their rows are kept anonymised. "
            "Counted " (ago(now, signups.at)) "." }
    };
    Ok(page(&app, &session, "/sign-ups", "Sign-ups", &content))
}

/// The label below the bar that begins on this day; most bars have none.
fn tick(bucket: Bucket, day: NaiveDate) -> Option<String> {
    let (is_shown, format) = match bucket {
        Bucket::Day => (day.weekday() == Weekday::Mon, "%d %b"),
        Bucket::Week => (day.day() <= 7, "%b"),
        Bucket::Month => (day.month() % 6 == 1, "%b %Y"),
    };
    is_shown.then(|| day.format(format).to_string())
}

/// The first days of the last buckets, from left to right.
fn buckets(bucket: Bucket, today: NaiveDate, number: u32) -> Vec<NaiveDate> {
    let back = |steps: u32| match bucket {
        Bucket::Day => today.checked_sub_days(Days::new(steps.into())),
        Bucket::Week => {
            let monday = today.checked_sub_days(Days::new(today.weekday().num_days_from_monday().into()));
            monday?.checked_sub_days(Days::new(7 * u64::from(steps)))
        }
        Bucket::Month => today.with_day(1)?.checked_sub_months(Months::new(steps)),
    };
    (0..number).rev().filter_map(back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_end_with_the_one_of_today() {
        let today = NaiveDate::from_ymd_opt(2026, 3, 1).expect("a Sunday");
        let days = |bucket| buckets(bucket, today, 2).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(days(Bucket::Day), ["2026-02-28", "2026-03-01"]);
        assert_eq!(days(Bucket::Week), ["2026-02-16", "2026-02-23"]);
        assert_eq!(days(Bucket::Month), ["2026-02-01", "2026-03-01"]);
    }
}
