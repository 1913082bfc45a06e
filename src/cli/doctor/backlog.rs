//! Leftover work, which only an alarm would report otherwise: deliveries and messages that are dead or delayed, and
//! unconfirmed erasures.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::timeout;

use super::report::{Finding, or_ok};
use crate::{
    cli::{count, length},
    store::{Result, SinkDepth, Store},
    work::backlog::{ALARM, Backlog},
};

const QUEUE: &str = "queue";
const OUTBOX: &str = "outbox";
const ERASURES: &str = "erasures";

/// The time limit for counting, which is slow when there is much to count.
const PATIENCE: Duration = Duration::from_secs(15);

/// Call this only on a store with the tables of this version.
pub(super) async fn check(store: &dyn Store, now: DateTime<Utc>) -> Vec<Finding> {
    // Each count is separate, so that one that takes too long does not hide the others.
    let (waiting, sinks, paused, erasing) = tokio::join!(
        within(store.queue_depth()),
        within(store.outbox_depth()),
        within(store.paused_sinks()),
        within(store.open_erasures()),
    );
    let nothing = Backlog::default;
    let queue = judged(QUEUE, waiting, |depth| vec![queue(&Backlog { queue: depth, ..nothing() }, now)]);
    let sinks = sinks.and_then(|sinks| Ok((sinks, paused?)));
    let outbox =
        judged(OUTBOX, sinks, |(sinks, paused)| outbox(&Backlog { sinks, paused, ..nothing() }, now));
    let erasures =
        judged(ERASURES, erasing, |open| vec![erasures(&Backlog { erasures: open, ..nothing() }, now)]);
    [queue, outbox, erasures].concat()
}

/// The finding, or why there is none.
fn judged<T>(
    check: &'static str,
    counted: std::result::Result<T, String>,
    judge: impl FnOnce(T) -> Vec<Finding>,
) -> Vec<Finding> {
    counted.map_or_else(|why| vec![Finding::skip(check, &why)], judge)
}

async fn within<T>(counting: impl Future<Output = Result<T>>) -> std::result::Result<T, String> {
    let counted = timeout(PATIENCE, counting).await;
    counted
        .map_err(|_| "there are too many rows to count in time".to_owned())?
        .map_err(|error| error.to_string())
}

/// These checks were skipped for this reason.
pub(super) fn skipped(why: &str) -> Vec<Finding> {
    [QUEUE, OUTBOX, ERASURES].map(|check| Finding::skip(check, why)).into()
}

fn outbox(backlog: &Backlog, now: DateTime<Utc>) -> Vec<Finding> {
    let waiting = messages(backlog.sinks.iter().map(|depth| depth.pending).sum());
    let held_up = backlog.held_up(now, ALARM);
    let held_up = held_up.iter().map(|(depth, paused)| of_sink(depth, *paused, now)).collect();
    or_ok(held_up, OUTBOX, waiting)
}

fn queue(backlog: &Backlog, now: DateTime<Utc>) -> Finding {
    let waiting = match backlog.queue.pending {
        0 => "no pending deliveries".to_owned(),
        pending => count(pending, "pending delivery", "pending deliveries"),
    };
    match (backlog.queue.dead, backlog.late(now, ALARM)) {
        (0, None) => Finding::ok(QUEUE, waiting),
        (0, Some(late)) => Finding::warn(
            QUEUE,
            format!("{waiting}, the first overdue by {}", length(late)),
            "`clerk-sync queue ls` shows the cause; if it shows none, no worker is running: start `clerk-sync serve` or \
             `clerk-sync worker`",
        ),
        (dead, _) => Finding::warn(
            QUEUE,
            format!("{}, not applied; {waiting}", count(dead, "dead delivery", "dead deliveries")),
            "`clerk-sync queue ls --state dead` shows why; fix the cause, then run `clerk-sync queue retry --all`",
        ),
    }
}

fn messages(waiting: u64) -> String {
    match waiting {
        0 => "no pending messages".to_owned(),
        waiting => count(waiting, "pending message", "pending messages"),
    }
}

fn of_sink(depth: &SinkDepth, paused: Option<TimeDelta>, now: DateTime<Utc>) -> Finding {
    let SinkDepth { sink, pending, dead, oldest } = depth;
    let waiting = messages(*pending);
    let resume = format!("`clerk-sync outbox resume {sink}`");
    let (found, remedy) = match paused.map(length) {
        Some(paused) if *dead == 0 => (
            format!("{sink} has been paused for {paused}; {waiting}"),
            format!("run {resume} once it may receive messages again"),
        ),
        None if *dead == 0 => (
            format!("{sink}: {waiting}, the oldest for {}", length(now - oldest.unwrap_or(now))),
            format!(
                "`clerk-sync outbox ls --sink {sink} --state pending` shows the cause, and `clerk-sync sinks` whether the \
                 sink is still configured"
            ),
        ),
        paused => {
            let dead = count(*dead, "dead message", "dead messages");
            let is_paused = paused.as_ref().map(|paused| format!("; it has been paused for {paused}"));
            let resume = paused.map(|_| format!(" and {resume}"));
            (
                format!("{sink}: {dead}; {waiting}{}", is_paused.unwrap_or_default()),
                format!(
                    "`clerk-sync outbox ls --sink {sink} --state dead` shows why; fix the cause, then run `clerk-sync outbox \
                     retry --sink {sink}`{}",
                    resume.unwrap_or_default()
                ),
            )
        }
    };
    Finding::warn(OUTBOX, found, remedy)
}

fn erasures(backlog: &Backlog, now: DateTime<Utc>) -> Finding {
    let open = &backlog.erasures;
    let Some(oldest) = open.iter().map(|of| of.oldest).min() else {
        return Finding::ok(ERASURES, "every erasure is confirmed everywhere");
    };
    let each: Vec<String> = open.iter().map(|of| format!("{} by {}", of.receipts, of.destination)).collect();
    let age = length(now - oldest);
    let found = format!("not confirmed yet: {}; the oldest was requested {age} ago", each.join(", "));
    if backlog.overdue(now, ALARM).is_empty() && !backlog.is_refused() {
        return Finding::ok(ERASURES, found);
    }
    Finding::warn(
        ERASURES,
        found,
        "`clerk-sync erase report` lists them with the causes; docs/runbook.md describes the next steps under \"An erasure that \
         is not confirmed\"",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{OpenErasures, QueueDepth};

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn told(finding: &Finding) -> String {
        let json = finding.as_json();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {}", text("status"), text("check"), text("found"))
    }

    fn sink(pending: u64, dead: u64, age: TimeDelta) -> SinkDepth {
        SinkDepth { sink: "crm".to_owned(), pending, dead, oldest: (pending > 0).then_some(NOW - age) }
    }

    #[test]
    fn a_queue_is_well_unless_something_is_dead_or_has_been_due_for_long() {
        let depth = |pending, dead, minutes| QueueDepth {
            pending,
            dead,
            first_due: (pending > 0).then(|| NOW - TimeDelta::minutes(minutes)),
        };
        for (depth, expected) in [
            (depth(0, 0, 0), "ok queue: no pending deliveries"),
            (depth(1, 0, 4), "ok queue: 1 pending delivery"),
            (depth(2, 0, -60), "ok queue: 2 pending deliveries"),
            (depth(2, 0, 6), "warn queue: 2 pending deliveries, the first overdue by 6 min"),
            (depth(0, 1, 0), "warn queue: 1 dead delivery, not applied; no pending deliveries"),
        ] {
            let backlog = Backlog { queue: depth, ..Backlog::default() };
            assert_eq!(told(&queue(&backlog, NOW)), expected);
        }
    }

    #[test]
    fn every_sink_that_is_behind_paused_or_has_refused_something_is_told() {
        let outbox = |sinks: Vec<SinkDepth>, paused: &Vec<(String, DateTime<Utc>)>| {
            let backlog = Backlog { sinks, paused: paused.clone(), ..Backlog::default() };
            let findings = super::outbox(&backlog, NOW);
            assert_eq!(findings.len(), 1, "{findings:?}");
            told(&findings[0])
        };
        let one = |depth: SinkDepth, paused: &_| outbox(vec![depth], paused);
        let hours = TimeDelta::hours;
        assert_eq!(one(sink(3, 0, hours(5)), &vec![]), "ok outbox: 3 pending messages");
        assert_eq!(
            one(sink(1, 0, hours(7)), &vec![]),
            "warn outbox: crm: 1 pending message, the oldest for 7 h"
        );
        assert_eq!(
            one(sink(0, 2, hours(0)), &vec![]),
            "warn outbox: crm: 2 dead messages; no pending messages"
        );
        let paused = vec![("crm".to_owned(), NOW - TimeDelta::days(3))];
        assert_eq!(
            one(sink(1, 0, hours(1)), &paused),
            "warn outbox: crm has been paused for 3 days; 1 pending message"
        );
        assert_eq!(
            one(sink(1, 1, hours(1)), &paused),
            "warn outbox: crm: 1 dead message; 1 pending message; it has been paused for 3 days"
        );
        assert_eq!(
            outbox(vec![], &paused),
            "warn outbox: crm has been paused for 3 days; no pending messages"
        );
        assert_eq!(outbox(vec![], &vec![]), "ok outbox: no pending messages");
    }

    #[test]
    fn an_erasure_is_told_and_a_warning_once_it_is_late_or_our_own_database_refuses_it() {
        let open = |destination: &str, days| OpenErasures {
            destination: destination.to_owned(),
            receipts: 2,
            oldest: NOW - TimeDelta::days(days),
        };
        let erasures = |open| told(&super::erasures(&Backlog { erasures: open, ..Backlog::default() }, NOW));
        assert_eq!(erasures(vec![]), "ok erasures: every erasure is confirmed everywhere");
        assert_eq!(
            erasures(vec![open("crm", 2), open("news", 3)]),
            "ok erasures: not confirmed yet: 2 by crm, 2 by news; the oldest was requested 3 days ago"
        );
        for late in [open("crm", 8), open("database", 0)] {
            assert!(erasures(vec![late]).starts_with("warn erasures: "));
        }
    }
}
