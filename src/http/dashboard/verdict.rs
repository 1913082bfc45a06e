//! Judges whether the data is right. The worst finding comes first.

use chrono::{DateTime, TimeDelta, Utc};

use super::page::{ago, count, length};
use crate::{
    store::{Activity, SinkDepth},
    sync::reconcile::Summary,
    work::backlog::{Backlog, WATCHING},
};

/// A silence longer than this is reported.
const SILENCE: TimeDelta = TimeDelta::hours(1);

/// A delivery or message that has been due for longer than this is reported as delayed.
pub(super) const HELD_UP: TimeDelta = WATCHING.message;

/// What the database knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// When the newest delivery was processed.
    pub(super) last_event: Option<DateTime<Utc>>,
    /// The answers of the last hour, by minute.
    pub(super) hour: Vec<Activity>,
    pub(super) backlog: Backlog,
    /// When the last reconcile finished, and its result.
    pub(super) reconciled: Option<(DateTime<Utc>, Summary)>,
}

/// The severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// The data is wrong, or about to become so.
    Wrong,
    /// The data may be right; the operator should check.
    Doubtful,
}

/// A problem that the operator should know about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) what: String,
    /// What to do about it.
    pub(super) remedy: &'static str,
    /// The page with the details, and the text of the link to it.
    pub(super) link: Option<(String, &'static str)>,
}

impl Finding {
    fn new(level: Level, what: String, remedy: &'static str) -> Self {
        Self { level, what, remedy, link: None }
    }

    fn seen_at(self, to: impl Into<String>, text: &'static str) -> Self {
        Self { link: Some((to.into(), text)), ..self }
    }
}

/// All problems, the worst first.
pub(super) fn findings(facts: &Facts, now: DateTime<Utc>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = [
        signatures(facts, now),
        refusals(facts, now),
        failures(facts, now),
        dead(facts),
        held_up(facts, now),
        silence(facts, now),
        drift(facts, now),
        erasures(facts, now),
    ]
    .into_iter()
    .flatten()
    .chain(facts.backlog.held_up(now, WATCHING).iter().map(|(depth, paused)| of_sink(depth, *paused, now)))
    .collect();
    findings.sort_by_key(|finding| finding.level);
    findings
}

/// Whether deliveries were verified and accepted. A failed one may not have been verified.
fn is_believed(activity: &Activity) -> bool {
    !matches!(activity.outcome.as_str(), "rejected" | "failed")
}

/// When the last webhook was verified and accepted.
pub(super) fn last_believed(hour: &[Activity]) -> Option<DateTime<Utc>> {
    hour.iter().filter(|activity| is_believed(activity)).map(|activity| activity.latest).max()
}

/// The number of these webhooks, and the time of the last one; `None` if there are none.
fn sum<'a>(of: impl Iterator<Item = &'a Activity>) -> Option<(u64, DateTime<Utc>)> {
    of.map(|activity| (activity.count, activity.latest))
        .reduce(|(all, last), (count, at)| (all + count, last.max(at)))
}

fn signatures(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let refused = facts
        .hour
        .iter()
        .filter(|of| ["invalid_signature", "timestamp_out_of_tolerance"].contains(&&*of.reason));
    let (all, last) = sum(refused)?;
    let is_signature = facts.hour.iter().any(|activity| activity.reason == "invalid_signature");
    let nothing_since = last_believed(&facts.hour).is_none_or(|believed| believed < last);
    let what = format!(
        "{} in the last hour because of the {}, the last {}, {}",
        count(all, "webhook was refused", "webhooks were refused"),
        if is_signature { "signature" } else { "time" },
        ago(now, last),
        if nothing_since { "and none was accepted since" } else { "while others are accepted" }
    );
    let (level, remedy) = match (nothing_since, is_signature) {
        (true, true) => (
            Level::Wrong,
            "Compare `CLERK_WEBHOOK_SIGNING_SECRET` with the signing secret of the endpoint in the Clerk Dashboard: after a \
             rotation, set the new secret, preferably alongside the old one. Svix retries for 28 hours.",
        ),
        (false, true) => (
            Level::Doubtful,
            "Another sender knows the address, or one of two endpoints in the Clerk Dashboard has a secret that is missing in \
             `CLERK_WEBHOOK_SIGNING_SECRET`.",
        ),
        (true, false) => (
            Level::Wrong,
            "Their timestamps differ too much from this machine's time: set its clock. Svix retries for 28 hours.",
        ),
        (false, false) => (
            Level::Doubtful,
            "They were signed long before they arrived: something on the way delays them, or old webhooks are being replayed.",
        ),
    };
    Some(Finding::new(level, what, remedy).seen_at("/#webhooks", "See the answers"))
}

/// Webhooks, genuine or not, that were refused because of a setting.
fn refusals(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    for (reason, level, remedy) in [
        (
            "wrong_instance",
            Level::Wrong,
            "They are signed with this service's secret, but belong to another Clerk instance than the users here. `clerk-sync \
             doctor` names both; the runbook (ClerkSyncOtherInstance) describes what to do.",
        ),
        (
            "body_too_large",
            Level::Doubtful,
            "If they are Clerk's, raise `WEBHOOK_MAX_BODY_BYTES`: changes of users with large metadata are missing.",
        ),
        (
            "address_not_allowed",
            Level::Doubtful,
            "If they are Clerk's, correct `WEBHOOK_ALLOWED_IPS` and `TRUSTED_PROXIES`: `svix` allows Svix's own addresses.",
        ),
    ] {
        if let Some((all, last)) = sum(facts.hour.iter().filter(|activity| activity.reason == reason)) {
            let what = format!(
                "{} in the last hour ({reason}), the last {}",
                count(all, "webhook was refused", "webhooks were refused"),
                ago(now, last)
            );
            let finding = Finding::new(level, what, remedy);
            return Some(finding.seen_at("/#webhooks", "See the answers"));
        }
    }
    None
}

fn failures(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let lately = now - TimeDelta::minutes(10);
    let failed = facts.hour.iter().filter(|of| of.outcome == "failed" && of.latest >= lately);
    let (all, last) = sum(failed)?;
    let nothing_since = last_believed(&facts.hour).is_none_or(|believed| believed < last);
    let finding = Finding::new(
        if nothing_since { Level::Wrong } else { Level::Doubtful },
        format!(
            "{} in the last ten minutes{}",
            count(all, "webhook was answered 503", "webhooks were answered 503"),
            if nothing_since { ", and none was accepted since" } else { "" }
        ),
        "Nothing is lost: Svix sends them again for 28 hours. The log shows why; most often the database is unavailable, full or \
         locked.",
    );
    Some(finding.seen_at("/#webhooks", "See the answers"))
}

fn dead(facts: &Facts) -> Option<Finding> {
    let dead = facts.backlog.queue.dead;
    (dead > 0).then(|| {
        let what = count(
            dead,
            "delivery could not be applied and is not retried",
            "deliveries could not be applied and are not retried",
        );
        Finding::new(Level::Wrong, what, "Each shows its error. Fix the cause, then retry them.")
            .seen_at("/queue?state=dead", "See the dead letters")
    })
}

fn held_up(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let late = facts.backlog.late(now, WATCHING)?;
    let finding = Finding::new(
        Level::Wrong,
        format!("Deliveries have waited to be applied for {}", length(late)),
        "Is a worker running (`serve` without `--no-worker`, or `clerk-sync worker`)? If so, its log shows what prevents \
         progress.",
    );
    Some(finding.seen_at("/queue?state=pending", "See the pending deliveries"))
}

fn silence(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let (what, remedy) = match facts.last_event {
        None => (
            "No webhook has arrived yet".to_owned(),
            "Add the endpoint in the Clerk Dashboard, or send a sample: `clerk-sync send user.created`.",
        ),
        Some(last) if now - last > SILENCE => (
            format!("No webhook for {}", length(now - last)),
            "Perhaps there were no changes. If that is unlikely: does the Clerk Dashboard show failing deliveries, or a disabled \
             endpoint? `clerk-sync reconcile --dry-run` shows whether anything was missed.",
        ),
        Some(_) => return None,
    };
    Some(Finding::new(Level::Doubtful, what, remedy).seen_at("/deliveries", "See the newest deliveries"))
}

fn drift(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let (at, summary) = facts.reconciled.as_ref()?;
    let differed = summary.differed();
    if differed == 0 {
        return None;
    }
    let kinds: Vec<String> =
        summary.drift.iter().map(|(kind, users)| format!("{users} {}", kind.replace('_', " "))).collect();
    let (kinds, when) = (kinds.join(", "), ago(now, *at));
    let users = count(differed, "user differed", "users differed");
    Some(if summary.mended < differed {
        Finding::new(
            Level::Wrong,
            format!("{users} from Clerk at the last reconcile, {when} ({kinds}), and not all could be fixed"),
            "`clerk-sync reconcile --dry-run` lists them with the reasons.",
        )
    } else {
        Finding::new(
            Level::Doubtful,
            format!("{users} from Clerk at the last reconcile, {when} ({kinds}); all were fixed"),
            "Webhooks were lost, or the table was edited by hand. Check the endpoint's failures in the Clerk Dashboard.",
        )
    })
}

fn erasures(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let overdue = facts.backlog.overdue(now, WATCHING);
    let names: Vec<&str> = overdue.iter().map(|open| open.destination.as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            Level::Wrong,
            format!("Erasures not confirmed after 30 days: {}", names.join(", ")),
            "`clerk-sync erase report --overdue` lists them.",
        )
    })
}

fn of_sink(depth: &SinkDepth, paused: Option<TimeDelta>, now: DateTime<Utc>) -> Finding {
    let SinkDepth { sink, pending, dead, oldest } = depth;
    let waiting = count(*pending, "pending message", "pending messages");
    let (level, what, remedy) = if *dead > 0 {
        let dead = count(*dead, "message, which is dead", "messages, which are dead");
        let remedy = "Each shows its error. Fix the cause, then retry them.";
        (Level::Wrong, format!("Sink {sink} did not accept {dead}"), remedy)
    } else if paused.is_some() {
        (Level::Doubtful, format!("Sink {sink} is paused; {waiting}"), "Resume it when it is ready.")
    } else {
        (
            Level::Wrong,
            format!(
                "Sink {sink} is behind: {waiting}, the oldest for {}",
                length(now - oldest.unwrap_or(now))
            ),
            "Is it down? Its messages and the log show its answers; the messages are delivered automatically once it is back.",
        )
    };
    Finding::new(level, what, remedy).seen_at(format!("/sinks/{sink}"), "See its messages")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{OpenErasures, QueueDepth, WITHIN};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).expect("a time")
    }

    fn minutes_ago(minutes: i64) -> DateTime<Utc> {
        now() - TimeDelta::minutes(minutes)
    }

    fn answered(minutes: i64, outcome: &str, reason: &str) -> Activity {
        Activity {
            at: minutes_ago(minutes),
            event: "user.created".to_owned(),
            outcome: outcome.to_owned(),
            reason: reason.to_owned(),
            latest: minutes_ago(minutes),
            count: 2,
            within: [2; WITHIN.len()],
        }
    }

    fn well() -> Facts {
        Facts {
            last_event: Some(minutes_ago(5)),
            hour: vec![answered(5, "applied", "")],
            reconciled: Some((minutes_ago(90), Summary { seen: 10, ..Summary::default() })),
            ..Facts::default()
        }
    }

    fn told(facts: &Facts) -> Vec<(Level, String)> {
        findings(facts, now()).into_iter().map(|finding| (finding.level, finding.what)).collect()
    }

    fn only(facts: &Facts) -> (Level, String) {
        let mut told = told(facts);
        assert_eq!(told.len(), 1, "{told:?}");
        told.remove(0)
    }

    #[test]
    fn nothing_is_said_where_all_is_well() {
        assert_eq!(told(&well()), []);
    }

    #[test]
    fn silence_is_noticed() {
        let silent = Facts { last_event: Some(minutes_ago(61)), hour: vec![], ..well() };
        assert_eq!(only(&silent), (Level::Doubtful, "No webhook for 1 h 1 min".to_owned()));
        let (_, what) = only(&Facts { last_event: None, hour: vec![], ..well() });
        assert_eq!(what, "No webhook has arrived yet");
    }

    #[test]
    fn after_a_rotated_secret_it_is_said_that_nothing_is_believed() {
        let mut facts = well();
        facts.hour.push(answered(1, "rejected", "invalid_signature"));
        let (level, what) = only(&facts);
        assert_eq!(level, Level::Wrong);
        assert_eq!(
            what,
            "2 webhooks were refused in the last hour because of the signature, the last 1 min ago, and none was accepted since"
        );
        facts.hour.push(answered(0, "applied", ""));
        assert_eq!(only(&facts).0, Level::Doubtful);
        // A wrong clock is not a wrong secret.
        let facts = Facts { hour: vec![answered(1, "rejected", "timestamp_out_of_tolerance")], ..well() };
        let finding = findings(&facts, now()).remove(0);
        assert!(
            finding.what.contains("because of the time") && finding.remedy.contains("clock"),
            "{finding:?}"
        );
        // Refusals that anyone can cause say nothing.
        let facts = Facts { hour: vec![answered(1, "rejected", "missing_headers")], ..well() };
        assert_eq!(told(&facts), []);
    }

    #[test]
    fn failures_are_worse_if_nothing_was_taken_in_since() {
        let mut facts = Facts {
            hour: vec![answered(6, "applied", ""), answered(5, "failed", "database_unavailable")],
            ..well()
        };
        assert_eq!(only(&facts).0, Level::Wrong);
        facts.hour.push(answered(4, "applied", ""));
        assert_eq!(only(&facts).0, Level::Doubtful);
        // A failed webhook may be unverified, so it proves no signature.
        let facts = Facts {
            hour: vec![answered(2, "rejected", "invalid_signature"), answered(1, "failed", "overloaded")],
            ..well()
        };
        assert_eq!(told(&facts).iter().filter(|(level, _)| *level == Level::Wrong).count(), 2);
    }

    #[test]
    fn what_a_setting_refuses_is_told() {
        for (reason, level) in [
            ("wrong_instance", Level::Wrong),
            ("body_too_large", Level::Doubtful),
            ("address_not_allowed", Level::Doubtful),
        ] {
            let mut facts = well();
            facts.hour.push(answered(2, "rejected", reason));
            let (found, what) = only(&facts);
            assert_eq!(found, level);
            assert!(what.contains(reason), "{what}");
        }
    }

    #[test]
    fn dead_letters_and_what_waits_too_long_are_told() {
        let with = |queue| Facts { backlog: Backlog { queue, ..Backlog::default() }, ..well() };
        let queue = QueueDepth { dead: 1, ..QueueDepth::default() };
        let (level, what) = only(&with(queue));
        assert_eq!(level, Level::Wrong);
        assert!(what.starts_with("1 delivery could not be applied"), "{what}");
        let waiting = |minutes| QueueDepth { pending: 7, dead: 0, first_due: Some(minutes_ago(minutes)) };
        assert_eq!(told(&with(waiting(0))), []);
        assert_eq!(only(&with(waiting(3))).0, Level::Wrong);
    }

    #[test]
    fn a_sink_that_is_down_is_told_and_one_that_is_busy_is_not() {
        let sink = |pending, dead, minutes| SinkDepth {
            sink: "crm".to_owned(),
            pending,
            dead,
            oldest: Some(minutes_ago(minutes)),
        };
        let facts = |backlog| Facts { backlog, ..well() };
        let with = |sink| facts(Backlog { sinks: vec![sink], ..Backlog::default() });
        assert_eq!(told(&with(sink(100, 0, 0))), []);
        assert_eq!(
            only(&with(sink(3, 0, 2))).1,
            "Sink crm is behind: 3 pending messages, the oldest for 2 min"
        );
        assert!(only(&with(sink(3, 1, 2))).1.contains("dead"));
        let paused = vec![("crm".to_owned(), minutes_ago(5))];
        let paused = Backlog { sinks: vec![sink(3, 0, 2)], paused, ..Backlog::default() };
        assert_eq!(only(&facts(paused)).0, Level::Doubtful);
    }

    #[test]
    fn drift_is_worse_if_it_is_still_there() {
        let found = |mended| {
            let drift = [("missing".to_owned(), 2), ("erased_here".to_owned(), 1)].into();
            Facts { reconciled: Some((minutes_ago(30), Summary { seen: 9, drift, mended })), ..well() }
        };
        let (level, what) = only(&found(2));
        assert_eq!(level, Level::Wrong);
        assert!(what.contains("3 users differed") && what.contains("1 erased here, 2 missing"), "{what}");
        assert_eq!(only(&found(3)).0, Level::Doubtful);
    }

    #[test]
    fn the_worst_comes_first() {
        let facts = Facts {
            last_event: Some(minutes_ago(90)),
            hour: vec![answered(3, "failed", "database_unavailable")],
            backlog: Backlog {
                queue: QueueDepth { dead: 1, ..QueueDepth::default() },
                erasures: vec![OpenErasures {
                    destination: "crm".to_owned(),
                    receipts: 1,
                    oldest: now() - TimeDelta::days(31),
                }],
                ..Backlog::default()
            },
            ..well()
        };
        let levels: Vec<Level> = told(&facts).into_iter().map(|(level, _)| level).collect();
        assert_eq!(levels, [Level::Wrong, Level::Wrong, Level::Wrong, Level::Doubtful]);
    }
}
