//! Is my data right? What is known, judged, the worst first.

use chrono::{DateTime, TimeDelta, Utc};

use super::page::{ago, count, length};
use crate::{
    store::{Activity, SinkDepth},
    sync::reconcile::Summary,
    work::backlog::{Backlog, WATCHING},
};

/// After so long without a word we wonder.
const SILENCE: TimeDelta = TimeDelta::hours(1);

/// A delivery or message that has been due for so long is held up.
pub(super) const HELD_UP: TimeDelta = WATCHING.message;

/// What the database says.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// When the newest delivery was processed.
    pub(super) last_event: Option<DateTime<Utc>>,
    /// What was answered in the last hour, minute by minute.
    pub(super) hour: Vec<Activity>,
    pub(super) backlog: Backlog,
    /// When the last reconcile came to its end, and what it found.
    pub(super) reconciled: Option<(DateTime<Utc>, Summary)>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// The data is wrong, or about to become so.
    Wrong,
    /// The data may be right; somebody should look.
    Doubtful,
}

/// Something that somebody should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) what: String,
    /// What to do about it.
    pub(super) remedy: &'static str,
    /// The page on which it can be seen, and what to call the link to it.
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

/// All that is not as it should be, the worst first.
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

/// Whether deliveries were believed and taken in. What failed may never have been looked at.
fn is_believed(activity: &Activity) -> bool {
    !matches!(activity.outcome.as_str(), "rejected" | "failed")
}

/// When the last webhook was believed and taken in.
pub(super) fn last_believed(hour: &[Activity]) -> Option<DateTime<Utc>> {
    hour.iter().filter(|activity| is_believed(activity)).map(|activity| activity.latest).max()
}

/// How many webhooks these are, and when the last of them came; `None` if there are none.
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
        if nothing_since { "and none was believed since" } else { "while others are believed" }
    );
    let (level, remedy) = match (nothing_since, is_signature) {
        (true, true) => (
            Level::Wrong,
            "Compare `CLERK_WEBHOOK_SIGNING_SECRET` with the signing secret of the endpoint in the Clerk Dashboard: after a \
             rotation it needs the new one, best beside the old one. Svix sends again for 28 hours.",
        ),
        (false, true) => (
            Level::Doubtful,
            "Somebody else knows the address, or one of two endpoints in the Clerk Dashboard has a secret that is not in \
             `CLERK_WEBHOOK_SIGNING_SECRET`.",
        ),
        (true, false) => (
            Level::Wrong,
            "Their signatures were made at a time that is far from ours: set this machine's clock. Svix sends again for 28 hours.",
        ),
        (false, false) => (
            Level::Doubtful,
            "They were signed long before they came: something on the way holds them back, or somebody repeats old ones.",
        ),
    };
    Some(Finding::new(level, what, remedy).seen_at("/#webhooks", "See what was answered"))
}

/// Genuine or not, what was refused for a setting of ours.
fn refusals(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    for (reason, level, remedy) in [
        (
            "wrong_instance",
            Level::Wrong,
            "They are signed with our secret and of another instance of Clerk than the users here. `clerk-sync doctor` names \
             both; the runbook (ClerkSyncOtherInstance) says what to do.",
        ),
        (
            "body_too_large",
            Level::Doubtful,
            "If they are Clerk's, raise `WEBHOOK_MAX_BODY_BYTES`: users with large metadata are missing their changes.",
        ),
        (
            "address_not_allowed",
            Level::Doubtful,
            "If they are Clerk's, mend `WEBHOOK_ALLOWED_IPS` and `TRUSTED_PROXIES`: `svix` allows Svix's own addresses.",
        ),
    ] {
        if let Some((all, last)) = sum(facts.hour.iter().filter(|activity| activity.reason == reason)) {
            let what = format!(
                "{} in the last hour ({reason}), the last {}",
                count(all, "webhook was refused", "webhooks were refused"),
                ago(now, last)
            );
            let finding = Finding::new(level, what, remedy);
            return Some(finding.seen_at("/#webhooks", "See what was answered"));
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
            if nothing_since { ", and none was taken in since" } else { "" }
        ),
        "Nothing is lost: Svix sends them again for 28 hours. The log says why; most often the database is away, full or \
         locked.",
    );
    Some(finding.seen_at("/#webhooks", "See what was answered"))
}

fn dead(facts: &Facts) -> Option<Finding> {
    let dead = facts.backlog.queue.dead;
    (dead > 0).then(|| {
        let what = count(
            dead,
            "delivery could not be applied and is not tried again",
            "deliveries could not be applied and are not tried again",
        );
        Finding::new(Level::Wrong, what, "Each says why. Mend the cause, then retry them.")
            .seen_at("/queue?state=dead", "See the dead letters")
    })
}

fn held_up(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let late = facts.backlog.late(now, WATCHING)?;
    let finding = Finding::new(
        Level::Wrong,
        format!("Deliveries have waited to be applied for {}", length(late)),
        "Is a worker running (`serve` without `--no-worker`, or `clerk-sync worker`), and does the log say why it gets \
         nowhere?",
    );
    Some(finding.seen_at("/queue?state=pending", "See what waits"))
}

fn silence(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let (what, remedy) = match facts.last_event {
        None => (
            "No webhook has come yet".to_owned(),
            "Add the endpoint in the Clerk Dashboard, or send a sample: `clerk-sync send user.created`.",
        ),
        Some(last) if now - last > SILENCE => (
            format!("No webhook for {}", length(now - last)),
            "Perhaps nobody signed in. If that is unlikely: does the Clerk Dashboard show failing deliveries, or the endpoint \
             as disabled? `clerk-sync reconcile --dry-run` shows whether anything was missed.",
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
            format!(
                "{users} from Clerk at the last reconcile, {when} ({kinds}), and not all could be mended"
            ),
            "`clerk-sync reconcile --dry-run` names them and says why.",
        )
    } else {
        Finding::new(
            Level::Doubtful,
            format!("{users} from Clerk at the last reconcile, {when} ({kinds}); all of it was mended"),
            "Webhooks got lost, or somebody edited the table. Look at the endpoint's failures in the Clerk Dashboard.",
        )
    })
}

fn erasures(facts: &Facts, now: DateTime<Utc>) -> Option<Finding> {
    let overdue = facts.backlog.overdue(now, WATCHING);
    let names: Vec<&str> = overdue.iter().map(|open| open.destination.as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            Level::Wrong,
            format!("Erasures are not confirmed after 30 days by {}", names.join(", ")),
            "`clerk-sync erase report --overdue` names them.",
        )
    })
}

fn of_sink(depth: &SinkDepth, paused: Option<TimeDelta>, now: DateTime<Utc>) -> Finding {
    let SinkDepth { sink, pending, dead, oldest } = depth;
    let waiting = count(*pending, "message waits", "messages wait");
    let (level, what, remedy) = if *dead > 0 {
        let dead = count(*dead, "message, which was given up", "messages, which were given up");
        let remedy = "Each says why. Mend the cause, then retry them.";
        (Level::Wrong, format!("Sink {sink} did not take {dead}"), remedy)
    } else if paused.is_some() {
        (Level::Doubtful, format!("Sink {sink} is paused; {waiting}"), "Resume it when it is ready.")
    } else {
        (
            Level::Wrong,
            format!(
                "Sink {sink} is behind: {waiting}, the oldest for {}",
                length(now - oldest.unwrap_or(now))
            ),
            "Is it down? Its messages and the log say what it answers; they go out by themselves once it is back.",
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
        assert_eq!(what, "No webhook has come yet");
    }

    #[test]
    fn after_a_rotated_secret_it_is_said_that_nothing_is_believed() {
        let mut facts = well();
        facts.hour.push(answered(1, "rejected", "invalid_signature"));
        let (level, what) = only(&facts);
        assert_eq!(level, Level::Wrong);
        assert_eq!(
            what,
            "2 webhooks were refused in the last hour because of the signature, the last 1 min ago, and none was believed since"
        );
        facts.hour.push(answered(0, "applied", ""));
        assert_eq!(only(&facts).0, Level::Doubtful);
        // A clock that is wrong is no wrong secret.
        let facts = Facts { hour: vec![answered(1, "rejected", "timestamp_out_of_tolerance")], ..well() };
        let finding = findings(&facts, now()).remove(0);
        assert!(
            finding.what.contains("because of the time") && finding.remedy.contains("clock"),
            "{finding:?}"
        );
        // What any passer-by can have says nothing.
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
        // What was never looked at proves no signature.
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
        assert_eq!(only(&with(sink(3, 0, 2))).1, "Sink crm is behind: 3 messages wait, the oldest for 2 min");
        assert!(only(&with(sink(3, 1, 2))).1.contains("given up"));
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
