//! `stats`: counts of everything, and a small chart of sign-ups by week. It prints only numbers, and no personal data.

use std::io::stdout;

use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Utc};
use clap::Args;
use indicatif::BinaryBytes;
use rustix::termios::tcgetwinsize;
use serde_json::{Map, Value, json};

use super::{Failure, clock, length, on_store, say, terminal::table};
use crate::{
    config::Settings,
    http::grouped_by,
    model::rfc3339,
    store::{Bucket, Count, SinkDepth, Statistics, Store, StoreError},
    stream::{Depth, Options, Stream, StreamError},
    work::backlog::Backlog,
};

/// The end of the help.
const NOTE: &str = "A number after ~ is an estimate: the rows of a large table are not counted.";

/// Weeks in the chart, including the current one.
const WEEKS: u64 = 12;

/// The width of the report where no terminal reports its width.
const USUAL_WIDTH: usize = 80;

const LONGEST_BAR: usize = 60;

/// Print statistics: users, sign-ups by week, events, pending work
#[derive(Args)]
#[command(after_help = NOTE)]
pub(super) struct Stats {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that is printed.
struct Overview {
    statistics: Statistics,
    /// Every week, including weeks without sign-ups; `None` if counting them takes too long.
    weeks: Option<Vec<(NaiveDate, u64)>>,
    backlog: Backlog,
    /// The depth of the stream, if there is one. The rest is printed even if its server cannot be reached.
    stream: Option<Result<Depth, StreamError>>,
}

impl Stats {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        on_store(settings, true, async |config, store| {
            let now = clock()();
            let report = Overview::of(store, config.stream.as_ref(), now).await?;
            if self.json {
                say!("{:#}", report.as_json(&config.database.place()));
            } else {
                report.print(&config.database.place(), now);
            }
            Ok(())
        })
        .await
    }
}

impl Overview {
    async fn of(store: &dyn Store, stream: Option<&Options>, now: DateTime<Utc>) -> Result<Self, StoreError> {
        let first = monday(now.date_naive()) - Days::new(7 * (WEEKS - 1));
        let from = first.and_hms_opt(0, 0, 0).map(|at| at.and_utc());
        let weeks = match store.signups(Bucket::Week, from, None).await {
            Ok(counted) => Some(filled(first, &counted)),
            Err(error) if error.took_too_long() => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            weeks,
            statistics: store.statistics(now - TimeDelta::days(1)).await?,
            backlog: Backlog::look(store).await?,
            stream: match stream {
                Some(options) => Some(depth(options).await),
                None => None,
            },
        })
    }

    fn erasures_open(&self) -> u64 {
        self.backlog.erasures.iter().map(|open| open.receipts).sum()
    }

    fn print(&self, place: &str, now: DateTime<Utc>) {
        let Self { statistics, weeks, backlog: Backlog { queue, sinks, .. }, stream } = self;
        say!("{place}, {}", BinaryBytes(statistics.bytes));
        say!();
        say!("Users      {} current, {} erased", told(statistics.standing), grouped(statistics.erased));
        let events = match &statistics.outcomes {
            None => "not counted (too many)".to_owned(),
            Some(outcomes) if outcomes.is_empty() => "none".to_owned(),
            Some(outcomes) => {
                let each = |(outcome, count): &(String, u64)| format!("{} {outcome}", grouped(*count));
                outcomes.iter().map(each).collect::<Vec<_>>().join(", ")
            }
        };
        say!("Events     {events} in the last 24 hours; {}", last(statistics.last_event, now));
        if let Some(stream) = stream {
            say!("Stream     {}", waiting(stream, now));
        }
        say!("Queue      {} pending, {} dead", grouped(queue.pending), grouped(queue.dead));
        if sinks.is_empty() {
            say!("Outbox     0 pending, 0 dead");
        }
        for (place, sink) in sinks.iter().enumerate() {
            let word = if place == 0 { "Outbox" } else { "" };
            let SinkDepth { sink, pending, dead, .. } = sink;
            say!("{word:<9}  {sink}: {} pending, {} dead", grouped(*pending), grouped(*dead));
        }
        say!("Erasures   {} not confirmed everywhere", grouped(self.erasures_open()));
        say!();
        match weeks {
            None => say!("Sign-ups are not counted: there are too many users."),
            Some(weeks) => {
                say!("Sign-ups by week, from Monday in UTC");
                for line in chart(weeks, terminal_width()) {
                    say!("{line}");
                }
            }
        }
        say!();
        let rows: Vec<_> =
            statistics.tables.iter().map(|(name, count)| [(*name).to_owned(), told(*count)]).collect();
        table(["TABLE", "ROWS"], &rows);
    }

    fn as_json(&self, place: &str) -> Value {
        let Self { statistics, weeks, backlog: Backlog { queue, sinks, .. }, stream } = self;
        let stream = stream.as_ref().map(|stream| match stream {
            Ok(Depth { entries, pending, oldest }) => {
                json!({ "length": entries, "pending": pending, "oldest_at": oldest.map(rfc3339) })
            }
            Err(error) => json!({ "error": error.to_string() }),
        });
        let count = |count: Count| json!({ "rows": count.rows, "estimated": count.estimated });
        let week =
            |(week, signups): &(NaiveDate, u64)| json!({ "week": week.to_string(), "signups": signups });
        let sink =
            |depth: &SinkDepth| json!({ "sink": depth.sink, "pending": depth.pending, "dead": depth.dead });
        let outcomes = statistics.outcomes.as_ref().map(|outcomes| {
            outcomes.iter().map(|(name, count)| (name.clone(), json!(count))).collect::<Map<_, _>>()
        });
        let tables: Map<String, Value> =
            statistics.tables.iter().map(|(name, rows)| ((*name).to_owned(), count(*rows))).collect();
        json!({
            "database": place,
            "bytes": statistics.bytes,
            "users": { "standing": count(statistics.standing), "erased": statistics.erased },
            "events_24h": outcomes,
            "last_event_at": statistics.last_event.map(rfc3339),
            "stream": stream,
            "queue": { "pending": queue.pending, "dead": queue.dead },
            "outbox": sinks.iter().map(sink).collect::<Vec<_>>(),
            "erasures_open": self.erasures_open(),
            "signups_by_week": weeks.as_ref().map(|weeks| weeks.iter().map(week).collect::<Vec<_>>()),
            "tables": tables,
        })
    }
}

async fn depth(options: &Options) -> Result<Depth, StreamError> {
    Stream::new(options.clone())?.depth().await
}

/// The state of the stream.
fn waiting(stream: &Result<Depth, StreamError>, now: DateTime<Utc>) -> String {
    match stream {
        Ok(Depth { entries, pending, oldest }) => {
            let since = oldest.map(|oldest| format!(", the oldest for {}", length(now - oldest)));
            let (entries, pending) = (grouped(*entries), grouped(*pending));
            format!("{entries} waiting, {pending} of them claimed by a worker{}", since.unwrap_or_default())
        }
        Err(error) => format!("not counted: {error}"),
    }
}

/// How long ago the last event was.
fn last(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let Some(at) = at else { return "there has been none".to_owned() };
    format!("the last one {} ago", length(now - at))
}

/// The Monday of a day's week.
fn monday(day: NaiveDate) -> NaiveDate {
    day - Days::new(day.weekday().num_days_from_monday().into())
}

/// Every week from the first on, including weeks without sign-ups.
fn filled(first: NaiveDate, counted: &[(NaiveDate, u64)]) -> Vec<(NaiveDate, u64)> {
    let week = |number| {
        let week = first + Days::new(7 * number);
        let signups = counted.iter().find(|(start, _)| *start == week).map_or(0, |(_, signups)| *signups);
        (week, signups)
    };
    (0..WEEKS).map(week).collect()
}

fn terminal_width() -> usize {
    let width = tcgetwinsize(stdout()).ok().map(|size| usize::from(size.ws_col));
    width.filter(|columns| *columns > 0).unwrap_or(USUAL_WIDTH)
}

/// A bar for each week.
fn chart(weeks: &[(NaiveDate, u64)], width: usize) -> Vec<String> {
    let numbers: Vec<String> = weeks.iter().map(|(_, signups)| grouped(*signups)).collect();
    let number_width = numbers.iter().map(String::len).max().unwrap_or(0);
    let room = width.saturating_sub("2026-01-05".len() + number_width + 4).clamp(1, LONGEST_BAR);
    let most = weeks.iter().map(|(_, signups)| *signups).max().unwrap_or(0);
    let line = |((week, signups), number): (&(NaiveDate, u64), &String)| {
        let line = format!("{week}  {number:>number_width$}  {}", bar(*signups, most, room));
        line.trim_end().to_owned()
    };
    weeks.iter().zip(&numbers).map(line).collect()
}

/// A bar, to an eighth of a character. Any number above zero is visible.
fn bar(part: u64, most: u64, room: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let most = u128::from(most.max(1));
    let eighths = (u128::from(part) * room as u128 * 8 + most / 2) / most;
    let eighths = usize::try_from(eighths).unwrap_or(room * 8).max(usize::from(part > 0));
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

fn told(count: Count) -> String {
    format!("{}{}", if count.estimated { "~" } else { "" }, grouped(count.rows))
}

/// A number with separators.
fn grouped(number: u64) -> String {
    grouped_by(number, ',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().expect("a day")
    }

    #[test]
    fn a_chart_is_as_wide_as_the_terminal_and_shows_every_week_that_had_anybody() {
        let first = day("2026-01-05");
        let counted = [(first, 1200), (day("2026-01-12"), 600), (day("2026-01-26"), 1)];
        let weeks = filled(first, &counted);
        assert_eq!(weeks.len() as u64, WEEKS);
        let lines = chart(&weeks, 40);
        assert_eq!(lines[0], format!("2026-01-05  1,200  {}", "█".repeat(21)));
        assert_eq!(lines[1], format!("2026-01-12    600  {}▌", "█".repeat(10)));
        assert_eq!(lines[2], "2026-01-19      0");
        assert_eq!(lines[3], "2026-01-26      1  ▏");
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{lines:?}");
        // Without enough width it is a column of numbers.
        assert!(chart(&weeks, 5).iter().all(|line| line.chars().count() <= 20));
    }

    #[test]
    fn nobody_at_all_is_a_chart_without_bars() {
        let lines = chart(&filled(day("2026-01-05"), &[]), 80);
        assert!(lines.iter().all(|line| line.ends_with("  0")), "{lines:?}");
    }

    #[test]
    fn weeks_begin_on_monday_and_digits_can_be_counted() {
        assert_eq!(monday(day("2026-01-11")), day("2026-01-05"));
        assert_eq!(monday(day("2026-01-12")), day("2026-01-12"));
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn what_was_last_is_told_in_a_unit_that_fits() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(100);
        let ago = |time: TimeDelta| last(Some(now - time), now);
        assert_eq!(ago(TimeDelta::seconds(-3)), "the last one 0 s ago");
        assert_eq!(ago(TimeDelta::seconds(61)), "the last one 1 min ago");
        assert_eq!(ago(TimeDelta::hours(47)), "the last one 47 h ago");
        assert_eq!(ago(TimeDelta::days(3)), "the last one 3 days ago");
        assert_eq!(last(None, now), "there has been none");
    }
}
