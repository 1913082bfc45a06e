//! What was left behind, which no alarm tells of where there is none: deliveries and messages that are dead or held up, and
//! erasures that somebody has not confirmed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::timeout;

use super::report::Finding;
use crate::{
    cli::{count, length},
    model::Receipt,
    store::{OpenErasures, QueueDepth, Result as Stored, SinkDepth, Store},
};

const QUEUE: &str = "queue";
const OUTBOX: &str = "outbox";
const ERASURES: &str = "erasures";

/// For counting all of it, which takes long where much is left.
const PATIENCE: Duration = Duration::from_secs(15);

/// For how long a delivery may have been due, as for the alarm `ClerkSyncQueueLate`.
const DELIVERED_WITHIN: TimeDelta = TimeDelta::minutes(5);

/// How old a message may be that still waits, as for `ClerkSyncMessagesLate`.
const TOLD_WITHIN: TimeDelta = TimeDelta::hours(6);

/// How long an erasure may go without being confirmed, as for `ClerkSyncErasureSlow`.
const CONFIRMED_WITHIN: TimeDelta = TimeDelta::days(7);

/// To be asked only of a store whose tables are those of this version.
pub(super) async fn check(store: &dyn Store, now: DateTime<Utc>) -> Vec<Finding> {
    let looked = timeout(PATIENCE, look(store, now)).await;
    looked.unwrap_or_else(|_| skipped("there is too much to count it in time"))
}

/// None of it could be looked at, for this reason.
pub(super) fn skipped(why: &str) -> Vec<Finding> {
    [QUEUE, OUTBOX, ERASURES].map(|check| Finding::skip(check, why)).into()
}

async fn look(store: &dyn Store, now: DateTime<Utc>) -> Vec<Finding> {
    let mut findings = vec![match store.queue_depth().await {
        Ok(depth) => queue(&depth, now),
        Err(error) => Finding::skip(QUEUE, error.to_string()),
    }];
    findings.extend(match sinks(store).await {
        Ok((depths, paused)) => outbox(&depths, &paused, now),
        Err(error) => vec![Finding::skip(OUTBOX, error.to_string())],
    });
    findings.push(match store.open_erasures().await {
        Ok(open) => erasures(&open, now),
        Err(error) => Finding::skip(ERASURES, error.to_string()),
    });
    findings
}

type Paused = Vec<(String, DateTime<Utc>)>;

async fn sinks(store: &dyn Store) -> Stored<(Vec<SinkDepth>, Paused)> {
    Ok((store.outbox_depth().await?, store.paused_sinks().await?))
}

fn queue(depth: &QueueDepth, now: DateTime<Utc>) -> Finding {
    let waiting = match depth.pending {
        0 => "nothing waits".to_owned(),
        pending => count(pending, "delivery waits", "deliveries wait"),
    };
    if depth.dead > 0 {
        return Finding::warn(
            QUEUE,
            format!(
                "{} dead, and not applied; {waiting}",
                count(depth.dead, "delivery is", "deliveries are")
            ),
            "`clerk-sync queue ls --state dead` says why; mend that, then `clerk-sync queue retry --all`",
        );
    }
    match depth.first_due.map(|due| now - due).filter(|late| *late > DELIVERED_WITHIN) {
        Some(late) => Finding::warn(
            QUEUE,
            format!("{waiting}, the first due for {}", length(late)),
            "`clerk-sync queue ls` says what is in the way; if it says nothing, nobody works: `clerk-sync serve` or \
             `clerk-sync worker`",
        ),
        None => Finding::ok(QUEUE, waiting),
    }
}

fn outbox(depths: &[SinkDepth], paused: &Paused, now: DateTime<Utc>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = depths.iter().filter_map(|sink| of_sink(sink, paused, now)).collect();
    // Of a sink that nothing waits for nothing else is known.
    for (sink, since) in paused.iter().filter(|(name, _)| depths.iter().all(|depth| depth.sink != *name)) {
        findings.push(is_paused(sink, now - *since, &messages(0)));
    }
    if findings.is_empty() {
        let pending = depths.iter().map(|depth| depth.pending).sum();
        findings.push(Finding::ok(OUTBOX, messages(pending)));
    }
    findings
}

fn messages(waiting: u64) -> String {
    match waiting {
        0 => "no message waits".to_owned(),
        waiting => count(waiting, "message waits", "messages wait"),
    }
}

/// What is wrong with the messages for one sink, if anything is.
fn of_sink(depth: &SinkDepth, paused: &Paused, now: DateTime<Utc>) -> Option<Finding> {
    let SinkDepth { sink, pending, dead, oldest } = depth;
    let waiting = messages(*pending);
    let paused = paused.iter().find(|(name, _)| name == sink).map(|(_, since)| now - *since);
    if *dead > 0 {
        let dead = count(*dead, "message was", "messages were");
        let (paused, resume) = match paused {
            Some(since) => (
                format!("; it has been paused for {}", length(since)),
                format!(" and `clerk-sync outbox resume {sink}`"),
            ),
            None => Default::default(),
        };
        return Some(Finding::warn(
            OUTBOX,
            format!("{sink}: {dead} given up; {waiting}{paused}"),
            format!(
                "`clerk-sync outbox ls --sink {sink} --state dead` says why; mend that, then `clerk-sync outbox retry \
                 --sink {sink}`{resume}"
            ),
        ));
    }
    if let Some(since) = paused {
        return Some(is_paused(sink, since, &waiting));
    }
    let late = oldest.map(|oldest| now - oldest).filter(|late| *late > TOLD_WITHIN)?;
    Some(Finding::warn(
        OUTBOX,
        format!("{sink}: {waiting}, the oldest for {}", length(late)),
        format!(
            "`clerk-sync outbox ls --sink {sink} --state pending` says what is in the way, and `clerk-sync sinks` whether \
             there still is such a sink"
        ),
    ))
}

fn is_paused(sink: &str, since: TimeDelta, waiting: &str) -> Finding {
    Finding::warn(
        OUTBOX,
        format!("{sink} has been paused for {}; {waiting}", length(since)),
        format!("`clerk-sync outbox resume {sink}`, once it may be told again"),
    )
}

fn erasures(open: &[OpenErasures], now: DateTime<Utc>) -> Finding {
    let Some(oldest) = open.iter().map(|of| of.oldest).min() else {
        return Finding::ok(ERASURES, "every erasure is confirmed everywhere");
    };
    let each: Vec<String> = open.iter().map(|of| format!("{} by {}", of.receipts, of.destination)).collect();
    let age = now - oldest;
    let found =
        format!("not confirmed yet: {}; the oldest was asked for {} ago", each.join(", "), length(age));
    // What our own database refuses does not come right by waiting.
    let is_stuck = open.iter().any(|of| of.destination == Receipt::DATABASE);
    if !is_stuck && age <= CONFIRMED_WITHIN {
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
            assert_eq!(told(&queue(&depth, NOW)), expected);
        }
    }

    #[test]
    fn every_sink_that_is_behind_paused_or_has_refused_something_is_told() {
        let one = |depth: SinkDepth, paused: &Paused| {
            let findings = outbox(&[depth], paused, NOW);
            assert_eq!(findings.len(), 1, "{findings:?}");
            told(&findings[0])
        };
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
        assert_eq!(
            told(&outbox(&[], &paused, NOW)[0]),
            "warn outbox: crm has been paused for 3 days; no message waits"
        );
        assert_eq!(told(&outbox(&[], &vec![], NOW)[0]), "ok outbox: no message waits");
    }

    #[test]
    fn an_erasure_is_told_and_a_warning_once_it_is_late_or_our_own_database_refuses_it() {
        let open = |destination: &str, days| OpenErasures {
            destination: destination.to_owned(),
            receipts: 2,
            oldest: NOW - TimeDelta::days(days),
        };
        assert_eq!(told(&erasures(&[], NOW)), "ok erasures: every erasure is confirmed everywhere");
        assert_eq!(
            told(&erasures(&[open("crm", 2), open("news", 3)], NOW)),
            "ok erasures: not confirmed yet: 2 by crm, 2 by news; the oldest was asked for 3 days ago"
        );
        for late in [open("crm", 8), open("database", 0)] {
            assert!(told(&erasures(&[late], NOW)).starts_with("warn erasures: "));
        }
    }
}
