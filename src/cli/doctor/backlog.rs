//! What was left behind, which no alarm tells of where there is none: deliveries and messages that are dead or held up, and
//! erasures that somebody has not confirmed.

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

/// For counting all of it, which takes long where much is left.
const PATIENCE: Duration = Duration::from_secs(15);

/// To be asked only of a store whose tables are those of this version.
pub(super) async fn check(store: &dyn Store, now: DateTime<Utc>) -> Vec<Finding> {
    // Each by itself: where one takes too long the others are told.
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

/// What is found, or why it could not be looked at.
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
        .map_err(|_| "there is too much to count it in time".to_owned())?
        .map_err(|error| error.to_string())
}

/// None of it could be looked at, for this reason.
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
        0 => "nothing waits".to_owned(),
        pending => count(pending, "delivery waits", "deliveries wait"),
    };
    match (backlog.queue.dead, backlog.late(now, ALARM)) {
        (0, None) => Finding::ok(QUEUE, waiting),
        (0, Some(late)) => Finding::warn(
            QUEUE,
            format!("{waiting}, the first due for {}", length(late)),
            "`clerk-sync queue ls` says what is in the way; if it says nothing, nobody works: `clerk-sync serve` or \
             `clerk-sync worker`",
        ),
        (dead, _) => Finding::warn(
            QUEUE,
            format!("{} dead, and not applied; {waiting}", count(dead, "delivery is", "deliveries are")),
            "`clerk-sync queue ls --state dead` says why; mend that, then `clerk-sync queue retry --all`",
        ),
    }
}

fn messages(waiting: u64) -> String {
    match waiting {
        0 => "no message waits".to_owned(),
        waiting => count(waiting, "message waits", "messages wait"),
    }
}

fn of_sink(depth: &SinkDepth, paused: Option<TimeDelta>, now: DateTime<Utc>) -> Finding {
    let SinkDepth { sink, pending, dead, oldest } = depth;
    let waiting = messages(*pending);
    let resume = format!("`clerk-sync outbox resume {sink}`");
    let (found, remedy) = match paused.map(length) {
        Some(paused) if *dead == 0 => (
            format!("{sink} has been paused for {paused}; {waiting}"),
            format!("{resume}, once it may be told again"),
        ),
        None if *dead == 0 => (
            format!("{sink}: {waiting}, the oldest for {}", length(now - oldest.unwrap_or(now))),
            format!(
                "`clerk-sync outbox ls --sink {sink} --state pending` says what is in the way, and `clerk-sync sinks` \
                 whether there still is such a sink"
            ),
        ),
        paused => {
            let dead = count(*dead, "message was", "messages were");
            let is_paused = paused.as_ref().map(|paused| format!("; it has been paused for {paused}"));
            let resume = paused.map(|_| format!(" and {resume}"));
            (
                format!("{sink}: {dead} given up; {waiting}{}", is_paused.unwrap_or_default()),
                format!(
                    "`clerk-sync outbox ls --sink {sink} --state dead` says why; mend that, then `clerk-sync outbox \
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
    let found = format!("not confirmed yet: {}; the oldest was asked for {age} ago", each.join(", "));
    if backlog.overdue(now, ALARM).is_empty() && !backlog.is_refused() {
        return Finding::ok(ERASURES, found);
    }
    Finding::warn(
        ERASURES,
        found,
        "`clerk-sync erase report` names them and says why; what then, says docs/runbook.md under \"An erasure that is not \
         confirmed\"",
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
            (depth(0, 0, 0), "ok queue: nothing waits"),
            (depth(1, 0, 4), "ok queue: 1 delivery waits"),
            (depth(2, 0, -60), "ok queue: 2 deliveries wait"),
            (depth(2, 0, 6), "warn queue: 2 deliveries wait, the first due for 6 min"),
            (depth(0, 1, 0), "warn queue: 1 delivery is dead, and not applied; nothing waits"),
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
        assert_eq!(one(sink(3, 0, hours(5)), &vec![]), "ok outbox: 3 messages wait");
        assert_eq!(
            one(sink(1, 0, hours(7)), &vec![]),
            "warn outbox: crm: 1 message waits, the oldest for 7 h"
        );
        assert_eq!(
            one(sink(0, 2, hours(0)), &vec![]),
            "warn outbox: crm: 2 messages were given up; no message waits"
        );
        let paused = vec![("crm".to_owned(), NOW - TimeDelta::days(3))];
        assert_eq!(
            one(sink(1, 0, hours(1)), &paused),
            "warn outbox: crm has been paused for 3 days; 1 message waits"
        );
        assert_eq!(
            one(sink(1, 1, hours(1)), &paused),
            "warn outbox: crm: 1 message was given up; 1 message waits; it has been paused for 3 days"
        );
        assert_eq!(outbox(vec![], &paused), "warn outbox: crm has been paused for 3 days; no message waits");
        assert_eq!(outbox(vec![], &vec![]), "ok outbox: no message waits");
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
            "ok erasures: not confirmed yet: 2 by crm, 2 by news; the oldest was asked for 3 days ago"
        );
        for late in [open("crm", 8), open("database", 0)] {
            assert!(erasures(vec![late]).starts_with("warn erasures: "));
        }
    }
}
