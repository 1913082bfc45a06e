//! Backfill and reconcile with the real program, against a fake of Clerk's Backend API that misbehaves as Clerk might.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use chrono::{SecondsFormat, TimeDelta, Utc};
use clerk_sync::{
    clerk::sample,
    entity::{self, USER},
    model::Entity,
};
use fake_clerk::{Behaviour, Bursts, Canned, Fake, Options, Script, Users};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::service::{
    Finished, Host, Keeper, Post, Until, deletion, eventually, load, milliseconds, on_each_keeper, post,
    signal, user,
};

on_each_keeper!(
    a_backfill_takes_everybody_in_and_a_second_one_changes_nothing,
    a_backfill_revives_nobody_and_overwrites_nothing_newer,
    whoever_the_database_refuses_is_left_out_and_the_reason_told_once,
    nobody_is_skipped_whether_a_time_includes_its_millisecond_or_not,
    a_backfill_that_is_killed_again_and_again_goes_on_where_it_was,
    owners_who_were_asked_before_a_kill_are_not_asked_again,
    kinds_that_were_taken_in_before_a_kill_are_passed_over,
    a_backfill_that_is_under_way_is_left_alone,
    reconcile_reports_every_kind_of_drift_and_mends_it,
    whom_the_application_marked_or_inserted_is_erased_too_once_clerk_does_not_know_them,
    a_time_that_moved_alone_at_clerk_is_no_drift,
    a_clerk_that_shows_half_of_its_users_deletes_nobody,
    a_clerk_of_another_instance_deletes_nobody,
    users_of_another_instance_come_in_only_if_that_is_said,
    a_dry_run_makes_no_database,
    a_thousand_who_ask_for_one_user_make_one_request,
    organizations_and_memberships_are_taken_in_and_compared_like_users,
    organizations_that_are_switched_off_at_clerk_are_nothing_to_do,
    memberships_that_leave_during_a_walk_hide_no_others,
    every_kind_is_taken_in_and_compared,
    the_parts_of_users_are_compared_with_them,
    billing_that_is_switched_off_is_not_asked_about_for_every_owner,
    what_no_owner_has_is_switched_off,
    what_is_switched_off_for_some_owners_is_gone_for_none,
    memberships_are_compared_after_a_role_has_changed,
);

const KEY: &str = "sk_test_dGhlLWtleS1vZi10aGUtdGVzdHM";

/// A fake Clerk, and the runtime that serves it.
pub(crate) struct Clerk {
    pub(crate) fake: Fake,
    _runtime: Runtime,
}

impl Clerk {
    /// Start a fake with this many users, and point the host at it.
    pub(crate) fn of(host: &mut Host, users: usize) -> Self {
        Self::start(host, Options { users, ..Options::default() })
    }

    pub(crate) fn start(host: &mut Host, options: Options) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options { key: KEY.to_owned(), ..options };
        let fake = runtime.block_on(Fake::start(options, Arc::new(Utc::now))).unwrap();
        host.set("CLERK_API_URL", &fake.url());
        host.set("CLERK_SECRET_KEY", KEY);
        Self { fake, _runtime: runtime }
    }

    pub(crate) fn users(&self) -> Users {
        self.fake.users()
    }

    fn ids(&self) -> BTreeSet<String> {
        self.users().ids().into_iter().collect()
    }
}

/// A Clerk instance with exactly these users, given as sign-up time and id. Its `created_at_after` includes the given
/// millisecond, and a page holds at most `most` users.
fn listing(users: &[(i64, String)], most: usize) -> Script {
    // Clerk-sync would read small numbers as seconds.
    let moment = |at: i64| if at < 100_000_000_000 { at + 1_700_000_000_000 } else { at };
    let mut users: Vec<_> = users.iter().map(|(at, id)| (moment(*at), id.clone())).collect();
    users.sort();
    let shown = |(at, id): &(i64, String)| json!({ "id": id, "created_at": at, "updated_at": at });
    Script::new(move |path, query| {
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<i64>().ok())
        };
        let after = parameter("created_at_after").unwrap_or(i64::MIN);
        let (offset, limit) = (parameter("offset").unwrap_or(0), parameter("limit").unwrap_or(10));
        let listed = users.iter().filter(|(at, _)| *at >= after);
        match path.strip_prefix("/v1/users")? {
            "" => {
                let limit = usize::try_from(limit).unwrap().min(most);
                let page: Vec<_> =
                    listed.skip(usize::try_from(offset).unwrap()).take(limit).map(shown).collect();
                Some(Canned::new(200, Value::from(page).to_string()))
            }
            "/count" => Some(Canned::new(200, json!({ "total_count": listed.count() }).to_string())),
            id => match users.iter().find(|user| user.1 == id[1..]) {
                Some(user) => Some(Canned::new(200, shown(user).to_string())),
                None => Some(Canned::new(404, r#"{"errors":[{"code":"resource_not_found"}]}"#)),
            },
        }
    })
}

fn behaving(script: Script) -> Behaviour {
    Behaviour { script, ..Behaviour::default() }
}

fn backfill(host: &Host, more: &[&str]) -> (Finished, Value) {
    let rate: &[&str] = if more.contains(&"--rate") { &[] } else { &["--rate", "1000"] };
    let arguments: Vec<&str> = ["backfill", "--json"].iter().chain(rate).chain(more).copied().collect();
    let finished = host.run(&arguments);
    let summary = serde_json::from_str(&finished.stdout).unwrap_or_default();
    (finished, summary)
}

fn reconcile(host: &Host, more: &[&str]) -> (Finished, Value) {
    let arguments: Vec<&str> =
        ["reconcile", "--rate", "1000", "--json"].iter().chain(more).copied().collect();
    let finished = host.run(&arguments);
    let report = serde_json::from_str(&finished.stdout).unwrap_or_default();
    (finished, report)
}

/// Ids of the live users in the database.
fn here(host: &Host) -> BTreeSet<String> {
    host.sql("SELECT clerk_id FROM users WHERE deleted_at IS NULL").into_iter().flatten().collect()
}

fn first_names(host: &Host) -> BTreeMap<String, String> {
    let rows = host.sql("SELECT clerk_id, coalesce(first_name, '') FROM users WHERE deleted_at IS NULL");
    rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// The users' first names at the fake, in the form in which they are stored.
fn names_at(clerk: &Clerk) -> BTreeMap<String, String> {
    let users = clerk.users();
    let name = |id: &String| {
        let user = users.get(id).expect("a user");
        user["first_name"].as_str().unwrap_or_default().replace('\0', "\u{fffd}")
    };
    clerk.ids().into_iter().map(|id| (id.clone(), name(&id))).collect()
}

fn a_backfill_takes_everybody_in_and_a_second_one_changes_nothing(host: &mut Host) {
    let clerk = Clerk::of(host, 3217);
    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((&summary["seen"], &summary["applied"]), (&3217.into(), &3217.into()), "{summary}");
    assert_eq!(first_names(host), names_at(&clerk));
    assert_eq!(host.count("audit_log WHERE source = 'backfill' AND action = 'USER_CREATED'"), 3217);
    assert_eq!(host.count("entity_versions WHERE tie = ''"), 3217);
    assert_eq!(host.count("sync_runs WHERE kind = 'backfill' AND finished_at IS NOT NULL"), 1);

    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(summary["unchanged"], 3217, "{summary}");
    assert_eq!(host.count("audit_log"), 3217);
    assert!(!finished.stderr.contains(KEY) && !finished.stdout.contains(KEY));
}

fn a_backfill_revives_nobody_and_overwrites_nothing_newer(host: &mut Host) {
    let clerk = Clerk::of(host, 700);
    let service = host.serve();
    let ids = clerk.users().ids();
    // A webhook deletes one user before the API does, and another webhook is newer than the API.
    assert_eq!(service.post(&post(&deletion(&ids[3], milliseconds()))).word(), "applied");
    let newer = user("user.updated", &ids[5], milliseconds(), "Newer");
    assert_eq!(service.post(&post(&newer)).word(), "applied");

    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((&summary["applied"], &summary["stale"]), (&698.into(), &2.into()), "{summary}");
    assert!(!here(host).contains(&ids[3]));
    assert_eq!(first_names(host)[&ids[5]], "Newer");
}

fn whoever_the_database_refuses_is_left_out_and_the_reason_told_once(host: &mut Host) {
    let clerk = Clerk::of(host, 30);
    let ids = clerk.users().ids();
    host.run(&["migrate"]).succeeded();
    let names = names_at(&clerk);
    host.refuse_first_name(&names[&ids[0]]);
    let refused = names.values().filter(|name| **name == names[&ids[0]]).count();
    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!((&summary["left_out"], &summary["applied"]), (&refused.into(), &(30 - refused).into()));
    assert!(
        finished.stderr.contains(&format!("{}: a constraint or trigger refused the change (", ids[0])),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.matches("refused the change").count(), refused, "{finished:?}");
}

fn nobody_is_skipped_whether_a_time_includes_its_millisecond_or_not(host: &mut Host) {
    let clerk = Clerk::of(host, 4000);
    for inclusive_times in [false, true] {
        clerk.fake.behave(Behaviour { inclusive_times, ..Behaviour::default() });
        let (finished, summary) = backfill(host, &["--restart"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(summary["seen"], 4000, "{summary}");
        assert_eq!(here(host), clerk.ids());
    }
}

/// Start a backfill, and kill it when the condition holds. Returns false if the backfill ended before.
fn is_killed(host: &Host, more: &[&str], once: impl Fn() -> bool) -> bool {
    let mut child = host.command(&[&["backfill"], more].concat()).spawn().unwrap();
    eventually("time to kill the backfill", || once() || child.try_wait().unwrap().is_some());
    if child.try_wait().unwrap().is_some() {
        return false;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    host.bury();
    age_the_unfinished_run(host);
    true
}

/// Otherwise the next backfill waits some seconds to ensure that no process is working on the run.
fn age_the_unfinished_run(host: &Host) {
    let a_while_ago = (Utc::now() - TimeDelta::minutes(1)).to_rfc3339_opts(SecondsFormat::Millis, true);
    host.sql(&format!("UPDATE sync_runs SET updated_at = '{a_while_ago}' WHERE finished_at IS NULL"));
}

fn a_backfill_that_is_killed_again_and_again_goes_on_where_it_was(host: &mut Host) {
    let clerk = Clerk::of(host, load(20_000, 100_000));
    let pages = load(20_000, 100_000) / 500;
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(60), ..Behaviour::default() });
    let mut kills = 0;
    for _ in 0..20 {
        let before = clerk.fake.requests_to("/v1/users").max(1);
        if !is_killed(host, &["--rate", "60"], || clerk.fake.requests_to("/v1/users") >= before + 6) {
            break;
        }
        kills += 1;
    }
    assert!(kills > 3);
    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(summary["resumed"], true, "{summary}");
    assert_eq!(here(host), clerk.ids());
    // Pages that are read again are not counted twice, except for users with the same sign-up millisecond as the last one.
    let counted = summary["seen"].as_u64().unwrap();
    let users = load(20_000, 100_000) as u64;
    assert!((users..users + 50).contains(&counted), "{summary}");
    // Every window ends with a partial page, and each kill costs the pages under way.
    let asked = clerk.fake.requests_to("/v1/users");
    assert!(asked <= pages + 3 * 32 + kills * 33, "{asked} requests for {pages} pages and {kills} kills");
}

fn owners_who_were_asked_before_a_kill_are_not_asked_again(host: &mut Host) {
    // Killed after each imported page. Two pages under way may be imported in either order.
    const MOST_KILLS: usize = 30;
    host.set("SYNC_ENTITIES", "user,organization,subscription");
    let clerk = Clerk::start(host, Options { users: 1700, organizations: 1200, ..Options::default() });
    let (lists, users) = (clerk.fake.lists(), clerk.users().ids());
    let organizations = clerk.fake.organizations();
    let paths = |kind: &str, ids: &[String]| -> Vec<String> {
        ids.iter().map(|id| format!("{kind}/{id}/billing/subscription")).collect()
    };
    let owners = [paths("users", &users), paths("organizations", &organizations.ids())].concat();
    for path in owners.iter().step_by(7) {
        let mut subscription = sample_of(&entity::SUBSCRIPTION, &users[0]);
        subscription["id"] = path.replace('/', "_").into();
        subscription.as_object_mut().expect("an object").remove("payer");
        lists.put_one(path, Some(subscription));
    }
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(5), ..Behaviour::default() });
    host.run(&["migrate"]).succeeded();
    let seen = || {
        let runs = host.sql("SELECT progress FROM sync_runs WHERE finished_at IS NULL");
        let progress = runs.first().map(|run| serde_json::from_str::<Value>(&run[0]).expect("JSON"));
        progress.map_or(0, |progress| progress["counts"]["seen"].as_u64().expect("a number"))
    };
    let of_subscriptions = ["--entity", "subscription", "--rate", "400"];
    let mut kills = 0;
    for _ in 0..MOST_KILLS {
        let before = seen();
        if !is_killed(host, &of_subscriptions, || seen() > before) {
            break;
        }
        kills += 1;
        // An organization without a subscription is removed, and those after it move up in the list.
        let leaver = organizations.ids().into_iter().find(|id| {
            let place = owners.iter().position(|path| path.contains(id.as_str()));
            place.is_some_and(|place| place % 7 > 0)
        });
        organizations.remove(&leaver.expect("one of many")).expect("it was there");
    }
    assert!((4..MOST_KILLS).contains(&kills), "{kills} kills");
    assert_eq!(backfill(host, &["--entity", "subscription"]).0.code, Some(0));
    assert_eq!(live(host, "subscriptions"), owners.iter().step_by(7).count());
    let asked = subscriptions_asked_for(&clerk);
    // A kill costs at most the two pages of owners under way.
    assert!(asked <= owners.len() + kills * 1000, "{asked} of {}, {kills} kills", owners.len());
}

fn kinds_that_were_taken_in_before_a_kill_are_passed_over(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,subscription");
    let clerk = Clerk::start(host, Options { users: 300, organizations: 3, ..Options::default() });
    let asked = || subscriptions_asked_for(&clerk);
    assert!(is_killed(host, &["--rate", "100"], || asked() > 0));
    let kinds = |finished: &Finished| of_kinds(finished).into_keys().collect::<Vec<_>>();
    let (finished, _) = backfill(host, &[]);
    assert_eq!((finished.code, kinds(&finished)), (Some(0), vec!["subscription".to_owned()]), "{finished:?}");
    assert_eq!((live(host, "users"), live(host, "organizations")), (300, 3));
    // The finished run leaves nothing to resume.
    assert_eq!(kinds(&backfill(host, &[]).0), ["organization", "subscription", "user"]);
    // With `--restart`, or with other columns, no finished kind is skipped.
    let before = asked();
    assert!(is_killed(host, &["--rate", "100"], || asked() > before));
    host.set("SYNC_FIELDS", "email,username");
    assert_eq!(kinds(&backfill(host, &[]).0), ["subscription", "user"]);
    assert_eq!(kinds(&backfill(host, &["--restart"]).0), ["organization", "subscription", "user"]);
    assert_eq!(kinds(&backfill(host, &[]).0), ["organization", "subscription", "user"]);
}

fn a_backfill_that_is_under_way_is_left_alone(host: &mut Host) {
    let clerk = Clerk::of(host, 4000);
    let mut first = host.command(&["backfill", "--rate", "1"]).spawn().unwrap();
    eventually("the first backfill reads pages", || clerk.fake.requests_to("/v1/users") >= 2);
    let (second, _) = backfill(host, &[]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("at work on the same run"), "{second:?}");
    // After an interrupt, the first backfill reports its progress, and another backfill continues it.
    assert!(first.try_wait().unwrap().is_none(), "the first backfill still runs");
    signal(&first, Signal::INT);
    let first = first.wait_with_output().unwrap();
    let said = String::from_utf8(first.stderr).unwrap();
    assert_eq!(first.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted at ") && said.contains(" of 4000 users"), "{said}");
    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((&summary["resumed"], &summary["seen"]), (&true.into(), &4000.into()), "{summary}");
    assert_eq!(here(host), clerk.ids());
}

fn reconcile_reports_every_kind_of_drift_and_mends_it(host: &mut Host) {
    let clerk = Clerk::of(host, 1200);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let users = clerk.users();
    let ids = users.ids();
    // Missing: neither the user nor the webhook ever arrived.
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", ids[0]));
    host.sql(&format!("DELETE FROM entity_versions WHERE clerk_id = '{}'", ids[0]));
    // Missing: the application removed the row.
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", ids[1]));
    // Stale: the webhook was lost. The seventh user has a name, which changes.
    users.update(&ids[6]).unwrap();
    // Different, with an equal version.
    host.sql(&format!("UPDATE users SET first_name = 'Tampered' WHERE clerk_id = '{}'", ids[3]));
    // Deleted at Clerk, but not here.
    users.delete(&ids[4]).unwrap();
    // Erased here, but alive at Clerk.
    let service = host.serve();
    assert_eq!(service.post(&post(&deletion(&ids[5], milliseconds()))).word(), "applied");
    service.stop();

    // Clerk's `Date` header has a resolution of one second: a change that the API shows within the same second is not newer.
    thread::sleep(Duration::from_millis(1100));
    let before = host.sql("SELECT * FROM users ORDER BY clerk_id");
    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let drift = |report: &Value| {
        ["missing", "stale", "different", "not_at_clerk", "erased_here"].map(|kind| {
            let mut ids: Vec<String> = serde_json::from_value(report[kind]["ids"].clone()).unwrap();
            ids.sort();
            ids
        })
    };
    let mut missing = vec![ids[0].clone(), ids[1].clone()];
    missing.sort();
    let planted =
        [missing, vec![ids[6].clone()], vec![ids[3].clone()], vec![ids[4].clone()], vec![ids[5].clone()]];
    assert_eq!(drift(&report), planted, "{report}");
    assert_eq!(host.sql("SELECT * FROM users ORDER BY clerk_id"), before);
    assert_eq!(host.count("sync_runs WHERE kind = 'reconcile'"), 0);

    let (finished, report) = reconcile(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(drift(&report), planted, "{report}");
    assert_eq!((&report["mended"], &report["deleted"]), (&4.into(), &1.into()), "{report}");
    let mut alive = names_at(&clerk);
    alive.remove(&ids[5]);
    assert_eq!(first_names(host), alive);
    let lines =
        |action: &str| host.count(&format!("audit_log WHERE source = 'reconcile' AND action = '{action}'"));
    assert_eq!((lines("USER_CREATED"), lines("USER_HARD_DELETED")), (2, 1));
    assert!(lines("USER_UPDATED") > 0);

    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!(report["erased_here"]["users"], 1, "{report}");
    assert_eq!(finished.code, Some(1), "still different from Clerk: {finished:?}");
}

fn whom_the_application_marked_or_inserted_is_erased_too_once_clerk_does_not_know_them(host: &mut Host) {
    let clerk = Clerk::of(host, 20);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let ids = clerk.users().ids();
    for id in &ids[..2] {
        host.sql(&format!(
            "UPDATE users SET deleted_at = '2020-01-01T00:00:00.000Z' WHERE clerk_id = '{id}'"
        ));
    }
    host.sql("INSERT INTO users (clerk_id, email) VALUES ('user_byhand', 'eve@example.com')");
    clerk.users().delete(&ids[0]).unwrap();
    thread::sleep(Duration::from_millis(1100));
    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!((finished.code, &report["not_at_clerk"]["users"]), (Some(1), &2.into()), "{report}");
    let (finished, report) = reconcile(host, &[]);
    assert_eq!((finished.code, &report["deleted"]), (Some(0), &2.into()), "{report}");
    // A user that Clerk still has keeps the mark that the application set.
    assert_eq!(host.sql("SELECT clerk_id FROM users WHERE deleted_at IS NOT NULL"), [[ids[1].clone()]]);
    assert_eq!(host.count("users"), 19);
    assert_eq!(reconcile(host, &["--dry-run"]).0.code, Some(0));
}

fn a_time_that_moved_alone_at_clerk_is_no_drift(host: &mut Host) {
    host.set("SYNC_FIELDS", "email,first_name,locked,last_active_at");
    let clerk = Clerk::of(host, 0);
    let began = milliseconds() - 10_000_000;
    // How far `updated_at` and `last_active_at` have moved, and whether the user is locked.
    let moved = Arc::new(Mutex::new([(0, 0, false); 6]));
    let shown = Arc::clone(&moved);
    clerk.fake.behave(behaving(Script::new(move |path, _| {
        let moved = *shown.lock().unwrap();
        let users = moved.iter().enumerate().map(|(number, (updated, active, locked))| {
            json!({
                "id": format!("user_{number}"), "first_name": "Ada", "locked": locked, "created_at": began,
                "updated_at": began + updated, "last_active_at": began + active,
            })
        });
        match path.strip_prefix("/v1/users")? {
            "" => Some(Canned::new(200, users.collect::<Value>().to_string())),
            "/count" => Some(Canned::new(200, json!({ "total_count": users.count() }).to_string())),
            _ => None,
        }
    })));
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!((finished.code, &report["touched"]), (Some(0), &0.into()), "{report}");
    let lines = host.count("audit_log");

    let signed_in = |number: usize, at: i64| moved.lock().unwrap()[number] = (at, at, false);
    signed_in(0, 5000);
    moved.lock().unwrap()[1] = (5000, 0, false);
    moved.lock().unwrap()[2] = (0, 5000, false);
    // Clerk's `Date` header has a resolution of one second: a change that the API shows within the same second is not newer.
    thread::sleep(Duration::from_millis(1100));
    for arguments in [&["--dry-run"][..], &[]] {
        let (finished, report) = reconcile(host, arguments);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!((&report["touched"], &report["mended"]), (&3.into(), &0.into()), "{report}");
        for kind in ["missing", "stale", "different", "not_at_clerk", "erased_here", "held_here"] {
            assert_eq!(report[kind]["users"], 0, "{report}");
        }
    }
    // The times were written nevertheless, without an audit line.
    let (_, report) = reconcile(host, &["--dry-run"]);
    assert_eq!(report["touched"], 0, "{report}");
    assert_eq!(host.count("audit_log"), lines);
    // A difference in a synced field is drift, even if times move with it.
    moved.lock().unwrap()[3] = (0, 0, true);
    moved.lock().unwrap()[4] = (7000, 7000, true);
    thread::sleep(Duration::from_millis(1100));
    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(
        (&report["different"]["users"], &report["stale"]["users"]),
        (&1.into(), &1.into()),
        "{report}"
    );
    let (_, report) = reconcile(host, &[]);
    assert_eq!((&report["mended"], &report["touched"]), (&2.into(), &0.into()), "{report}");
    assert_eq!(host.count("audit_log"), lines + 2);
    assert_eq!(host.count(&format!("users WHERE locked = {}", host.truth())), 2);
}

fn a_dry_run_makes_no_database(host: &mut Host) {
    let _clerk = Clerk::of(host, 10);
    let (finished, _) = reconcile(host, &["--dry-run"]);
    // The exit code differs from that of drift, so that an alert on drift does not fire.
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert!(finished.stderr.contains("`clerk-sync migrate`"), "{finished:?}");
    assert!(host.keeper != Keeper::Sqlite || !std::path::Path::new(&host.path("users.db")).exists());
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    assert_eq!(host.count("users"), 10);
}

fn a_clerk_that_shows_half_of_its_users_deletes_nobody(host: &mut Host) {
    let clerk = Clerk::of(host, 1500);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    // The count contradicts the list, which no option overrides.
    clerk.fake.behave(Behaviour { only: Some(0.5), ..Behaviour::default() });
    let (finished, _) = reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("Clerk counts 1500 users"), "{finished:?}");
    assert_eq!(here(host), clerk.ids());

    clerk.fake.behave(Behaviour { only: Some(0.5), count_only_listed: true, ..Behaviour::default() });
    let (finished, report) = reconcile(host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(report["deleted"], 0, "{report}");
    assert!(report["withheld"].as_u64().unwrap() > 500, "{report}");
    // Not even with the option: Clerk knows each of these users when asked.
    let (finished, report) = reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(report["deleted"], 0, "{report}");
    assert_eq!(here(host), clerk.ids());
}

fn a_clerk_of_another_instance_deletes_nobody(host: &mut Host) {
    let clerk = Clerk::of(host, 40);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let ids = clerk.ids();
    let instance = |users: &[(i64, String)]| behaving(listing(users, 500));
    let others: Vec<_> = (0..60_i64).map(|number| (1000 + number, format!("user_other{number}"))).collect();
    let half: Vec<_> = ids.iter().take(19).map(|id| (1, id.clone())).collect();
    for (users, reason) in
        [(&[][..], "other_instance"), (&others[..], "other_instance"), (&half, "most_of_them")]
    {
        clerk.fake.behave(instance(users));
        let (finished, report) = reconcile(host, &["--dry-run"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert_eq!(report["doubt"], reason, "{report}");
        let (finished, report) = reconcile(host, &[]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains("to another instance"), "{finished:?}");
        assert_eq!((&report["doubt"], &report["deleted"]), (&reason.into(), &0.into()), "{report}");
        assert!(here(host).is_superset(&ids));
        host.sql("DELETE FROM users WHERE clerk_id LIKE 'user_other%'");
    }
    let (finished, report) = reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(report["deleted"], 21, "{report}");
}

fn users_of_another_instance_come_in_only_if_that_is_said(host: &mut Host) {
    let clerk = Clerk::of(host, 5);
    // A proxy in front of Clerk may block the question for the instance.
    clerk.fake.behave(behaving(Script::new(|path, _| {
        (path == "/v1/instance").then(|| Canned::new(404, "not here"))
    })));
    let (finished, _) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("continuing without the check"), "{finished:?}");
    clerk.fake.behave(Behaviour::default());
    assert_eq!(reconcile(host, &[]).0.code, Some(0));
    let ours = clerk.ids();
    assert_eq!(here(host), ours);

    let options = Options { users: 4, instance: "ins_other".to_owned(), ..Options::default() };
    let other = Clerk::start(host, options);
    let theirs = other.users().ids();
    for command in [
        &["backfill"][..],
        &["backfill", "--user-id", &theirs[1]],
        &["reconcile"],
        &["reconcile", "--dry-run"],
        &["ensure", &theirs[1]],
    ] {
        let refused = host.run(command);
        assert_eq!(refused.code, Some(78), "{command:?}: {refused:?}");
        assert!(refused.stderr.contains("CLERK_SECRET_KEY belongs to instance ins_other"), "{refused:?}");
    }
    host.set("ADMIN_TOKEN", "t0ken");
    host.set("RECONCILE_INTERVAL", "1s");
    let service = host.serve();
    eventually("a failure", || service.metric("clerk_sync_catch_up_failures_total") > Some(0.0));
    let answer = service.ask_api("POST", &format!("/v1/users/{}/ensure", theirs[1]), Some("Bearer t0ken"));
    assert_eq!(answer.word(), "clerk_refused");
    service.stop();
    assert_eq!((here(host), other.fake.requests_to("/v1/users")), (ours.clone(), 0));

    host.set("CLERK_INSTANCE_ID", "ins_2fakefakefakefakefakefakefa");
    let (refused, _) = backfill(host, &["--change-instance"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("CLERK_INSTANCE_ID is ins_2fake"), "{refused:?}");
    host.unset("CLERK_INSTANCE_ID");
    assert_eq!(backfill(host, &["--change-instance"]).0.code, Some(0));
    assert_eq!(backfill(host, &[]).0.code, Some(0), "the new instance is remembered");
    assert_eq!(here(host), ours.into_iter().chain(theirs).collect());
}

fn a_thousand_who_ask_for_one_user_make_one_request(host: &mut Host) {
    let clerk = Clerk::of(host, 10);
    host.set("ADMIN_TOKEN", "t0ken");
    let service = host.serve();
    let users = clerk.users();
    let ensure = |id: &str| service.ask_api("POST", &format!("/v1/users/{id}/ensure"), Some("Bearer t0ken"));
    let id = users.ids()[2].clone();
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(300), ..Behaviour::default() });
    let callers = load(200, 1000);
    let answers: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(|| ensure(&id))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, answer.json()["clerk_id"].as_str()), (200, Some(&*id)), "{answer:?}");
    }
    assert_eq!(clerk.fake.requests_to(&format!("/v1/users/{id}")), 1);
    assert_eq!((host.count("users"), host.count("audit_log WHERE source = 'api'")), (1, 1));

    clerk.fake.behave(Behaviour::default());
    assert_eq!(ensure("user_nobody").word(), "user_not_found");
    // A user that was erased here is not found, whatever Clerk says.
    service.post(&post(&deletion(&id, milliseconds())));
    assert_eq!(ensure(&id).word(), "user_not_found");
    assert_eq!(service.ask_api("POST", &format!("/v1/users/{id}/ensure"), None).status, 401);

    let other = users.ids()[4].clone();
    let shown = host.run(&["ensure", &other]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["clerk_id"], *other);
    assert_eq!(host.run(&["ensure", "user_nobody"]).code, Some(1));
    clerk.fake.behave(Behaviour { down: true, ..Behaviour::default() });
    assert_eq!(ensure(&users.ids()[6]).word(), "clerk_unavailable");
    assert_eq!(ensure(&other).status, 200, "a user in the database needs no request to Clerk");
    assert_eq!(host.run(&["ensure", &users.ids()[6]]).code, Some(69));
}

/// The printed line of each kind.
fn of_kinds(finished: &Finished) -> BTreeMap<String, Value> {
    let lines = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| (line["entity"].as_str().expect("a kind").to_owned(), line)).collect()
}

fn live(host: &Host, table: &str) -> usize {
    host.count(&format!("{table} WHERE deleted_at IS NULL"))
}

fn organizations_and_memberships_are_taken_in_and_compared_like_users(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,organization_membership");
    let clerk =
        Clerk::start(host, Options { users: 700, organizations: 601, members: 3, ..Options::default() });
    let (finished, _) = backfill(host, &["--entity", "organization"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((live(host, "organizations"), live(host, "organization_memberships")), (601, 0));
    let (finished, _) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let told = of_kinds(&finished);
    assert_eq!(told["organization"]["unchanged"], 601, "{told:?}");
    assert_eq!(told["organization_membership"]["applied"], 1803, "{told:?}");
    assert_eq!(told["user"]["applied"], 700, "{told:?}");
    assert_eq!(live(host, "organization_memberships"), 1803);
    let (finished, _) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");

    // Drift: an organization deleted with its members, a deleted membership, a new one, a changed role, and a tampered row.
    let organizations = clerk.fake.organizations();
    let (ids, members) = (organizations.ids(), organizations.membership_ids());
    let of_first = host.count(&format!("organization_memberships WHERE organization_id = '{}'", ids[0]));
    organizations.remove(&ids[0]).expect("it was there");
    let other = |id: &&String| {
        let membership = organizations.membership(id);
        membership.is_some_and(|membership| membership["organization"]["id"] != ids[0])
    };
    let others: Vec<&String> = members.iter().filter(other).collect();
    organizations.remove_membership(others[0]).expect("it was there");
    let mut changed = organizations.membership(others[1]).expect("it is there");
    changed["role"] = "org:owner".into();
    changed["updated_at"] = milliseconds().into();
    organizations.put_membership(changed);
    host.sql(&format!("UPDATE organizations SET name = 'Tampered' WHERE clerk_id = '{}'", ids[7]));
    host.sql(&format!("DELETE FROM organization_memberships WHERE clerk_id = '{}'", others[2]));
    thread::sleep(Duration::from_millis(1100));

    let (finished, _) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let drift = of_kinds(&finished);
    assert_eq!(drift["organization"]["not_at_clerk"]["ids"], json!([ids[0]]), "{drift:?}");
    assert_eq!(drift["organization"]["different"]["ids"], json!([ids[7]]), "{drift:?}");
    let of_members = &drift["organization_membership"];
    assert_eq!(of_members["not_at_clerk"]["users"], of_first + 1, "{of_members}");
    assert_eq!(of_members["stale"]["ids"], json!([others[1]]), "{of_members}");
    assert_eq!(of_members["missing"]["ids"], json!([others[2]]), "{of_members}");
    let (finished, _) = reconcile(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(live(host, "organizations"), 600);
    assert_eq!(live(host, "organization_memberships"), 1803 - of_first - 1);
    let role = format!("SELECT role FROM organization_memberships WHERE clerk_id = '{}'", others[1]);
    assert_eq!(host.sql(&role), [["org:owner".to_owned()]]);
    assert_eq!(reconcile(host, &["--dry-run"]).0.code, Some(0));

    // An organization that is not in the database is fetched.
    host.sql(&format!("DELETE FROM organizations WHERE clerk_id = '{}'", ids[9]));
    let shown = host.run(&["ensure", &ids[9]]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap()["clerk_id"], *ids[9]);
    assert_eq!(host.run(&["ensure", "org_nowhere"]).code, Some(1));
    // Options for users are refused for other kinds.
    assert_eq!(backfill(host, &["--entity", "organization", "--email", "ada@example.com"]).0.code, Some(2));
    host.set("SYNC_ENTITIES", "user");
    assert_eq!(backfill(host, &["--entity", "organization"]).0.code, Some(2));
    assert_eq!(host.run(&["ensure", &ids[9]]).code, Some(2));
}

fn organizations_that_are_switched_off_at_clerk_are_nothing_to_do(host: &mut Host) {
    host.set("SYNC_ENTITIES", "all");
    let clerk = Clerk::start(host, Options { users: 20, organizations: 5, members: 4, ..Options::default() });
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    clerk.fake.behave(Behaviour { organizations_off: true, ..Behaviour::default() });
    for finished in [backfill(host, &[]).0, reconcile(host, &[]).0] {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let told = of_kinds(&finished);
        assert_eq!(
            (&told["organization"]["switched_off"], &told["user"]["seen"]),
            (&true.into(), &20.into())
        );
    }
    assert_eq!((live(host, "organizations"), live(host, "organization_memberships")), (5, 20));
    let finished = host.run(&["backfill", "--entity", "organization"]);
    assert!(finished.stdout.contains("switched off at Clerk"), "{finished:?}");
}

fn memberships_that_leave_during_a_walk_hide_no_others(host: &mut Host) {
    host.set("SYNC_ENTITIES", "all");
    let clerk =
        Clerk::start(host, Options { users: 100, organizations: 100, members: 60, ..Options::default() });
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(30), ..Behaviour::default() });
    let organizations = clerk.fake.organizations();
    let ids = organizations.membership_ids();
    let leaving = {
        let (organizations, ids) = (organizations.clone(), ids.clone());
        thread::spawn(move || {
            for id in ids.iter().step_by(40) {
                organizations.remove_membership(id);
                thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let (finished, _) = backfill(host, &["--entity", "organization_membership"]);
    leaving.join().unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let here: BTreeSet<String> =
        host.sql("SELECT clerk_id FROM organization_memberships").into_iter().flatten().collect();
    let missing: Vec<String> =
        organizations.membership_ids().into_iter().filter(|id| !here.contains(id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing", missing.len(), ids.len());
}

/// An object of this user's, as the Backend API shows it.
fn sample_of(entity: &Entity, user_id: &str) -> Value {
    let body = sample::body(entity.events[0], user_id, Utc::now()).expect("a sample");
    serde_json::from_str::<Value>(&body).expect("JSON")["data"].take()
}

/// List objects of these kinds for these users, and a subscription of this organization, as the Backend API does.
fn put_every_kind(clerk: &Clerk, listed: &[&'static Entity], users: &[String], organization: &str) {
    let lists = clerk.fake.lists();
    for (first, user) in users.iter().enumerate() {
        for entity in listed {
            let object = sample_of(entity, user);
            match (entity.path, &entity.within, entity.of_each) {
                // The API omits the payer, and has another name for the items.
                (None, None, _) => {
                    let mut subscription = object;
                    subscription.as_object_mut().expect("an object").remove("payer");
                    let mut item = sample_of(&entity::SUBSCRIPTION_ITEM, user);
                    item["id"] = format!("csub_item_inside_{user}").into();
                    item.as_object_mut()
                        .expect("an object")
                        .retain(|name, _| !["payer", "subscription_id"].contains(&name.as_str()));
                    lists.put("billing/subscription_items", item.clone());
                    subscription["subscription_items"] = json!([item]);
                    lists.put_one(&format!("users/{user}/billing/subscription"), Some(subscription.clone()));
                    if first == 0 {
                        subscription["id"] = "csub_of_organization".into();
                        subscription["subscription_items"][0]["id"] = "csub_item_of_organization".into();
                        lists
                            .put("billing/subscription_items", subscription["subscription_items"][0].clone());
                        let path = format!("organizations/{organization}/billing/subscription");
                        lists.put_one(&path, Some(subscription));
                    }
                }
                (Some(path), Some(_), _) => {
                    let mut attempt = object;
                    let payer = attempt.as_object_mut().expect("an object").remove("payer");
                    let groups =
                        json!([{ "timestamp": 1, "items": [attempt] }, { "timestamp": 2, "items": [] }]);
                    lists
                        .put(path, json!({ "id": format!("stmt_{user}"), "payer": payer, "groups": groups }));
                }
                (path, ..) => lists.put(path.expect("a list"), object),
            }
        }
    }
}

fn every_kind_is_taken_in_and_compared(host: &mut Host) {
    host.set("SYNC_ENTITIES", "all,session");
    host.set("SYNC_RAW", "subscription,payment_attempt,plan");
    let clerk = Clerk::start(host, Options { users: 30, organizations: 4, members: 2, ..Options::default() });
    let (lists, users) = (clerk.fake.lists(), clerk.users().ids());
    let organization = &clerk.fake.organizations().ids()[0];
    let listed: Vec<&'static Entity> = entity::ALL
        .iter()
        .copied()
        .filter(|entity| {
            entity.is_listed()
                && ![USER.kind, "organization", "organization_membership"].contains(&entity.kind)
        })
        .collect();
    put_every_kind(&clerk, &listed, &users[..3], organization);
    let (finished, _) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let told = of_kinds(&finished);
    for entity in &listed {
        // The organization's subscription with its item.
        let more = match entity.kind {
            "subscription" => 1,
            "subscription_item" => 4,
            _ => 0,
        };
        assert_eq!(live(host, entity.table), 3 + more, "{}: {told:?}", entity.kind);
    }
    for (table, column) in [
        ("subscriptions", "user_id"),
        ("subscription_items", "user_id"),
        ("payment_attempts", "statement_id"),
    ] {
        let owned = host.count(&format!("{table} WHERE {column} IS NOT NULL"));
        assert_eq!(owned, if table == "subscription_items" { 6 } else { 3 }, "{table}");
    }
    assert_eq!(host.count("subscriptions WHERE CAST(raw AS char(10000)) LIKE '%\"subscription_items\"%'"), 4);
    assert_eq!(host.count("plans WHERE raw IS NOT NULL"), 3);
    assert_eq!(host.count("roles WHERE raw IS NOT NULL"), 0);
    let of_organization = format!(" WHERE organization_id = '{organization}'");
    assert_eq!(host.count(&format!("subscriptions{of_organization}")), 1);
    assert_eq!(
        host.count(&format!(
            "subscription_items{of_organization} AND subscription_id = 'csub_of_organization'"
        )),
        1
    );
    let (finished, _) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");

    // For each kind, one object is missing here, and another one is deleted at Clerk.
    for entity in &listed {
        let id = |user: &String| sample_of(entity, user)["id"].as_str().expect("an id").to_owned();
        host.sql(&format!("DELETE FROM {} WHERE clerk_id = '{}'", entity.table, id(&users[1])));
        let is_gone = match (entity.path, entity.of_each) {
            (None, _) => {
                lists.put_one(&format!("users/{}/billing/subscription", users[2]), None);
                true
            }
            (Some(path), _) => lists.remove(path, &id(&users[2])).is_some(),
        };
        assert_eq!(is_gone, entity.is_listed_whole(), "{}", entity.kind);
    }
    thread::sleep(Duration::from_millis(1100));
    let (finished, _) = reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let drift = of_kinds(&finished);
    for entity in &listed {
        let of_kind = &drift[entity.kind];
        assert_eq!(of_kind["missing"]["users"], 1, "{}: {of_kind}", entity.kind);
        let gone = of_kind["deleted"].as_u64().expect("a number");
        assert_eq!(gone > 0, entity.is_listed_whole(), "{}: {of_kind}", entity.kind);
    }
    assert_eq!(reconcile(host, &["--dry-run"]).0.code, Some(0));
}

fn the_parts_of_users_are_compared_with_them(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,user_email_address");
    let _clerk = Clerk::of(host, 30);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let rows =
        || host.sql("SELECT clerk_id, user_id, email_address FROM user_email_addresses ORDER BY clerk_id");
    let before = rows();
    host.sql(&format!("DELETE FROM user_email_addresses WHERE clerk_id = '{}'", before[0][0]));
    host.sql(&format!(
        "UPDATE user_email_addresses SET email_address = 'eve@example.com' WHERE clerk_id = '{}'",
        before[1][0]
    ));
    host.sql(&format!(
        "INSERT INTO user_email_addresses (clerk_id, user_id, email_address)
         VALUES ('idn_nobodys', '{}', 'mallory@example.com')",
        before[2][1]
    ));
    // An address that is assigned to the wrong user here.
    host.sql(&format!(
        "UPDATE user_email_addresses SET user_id = '{}' WHERE clerk_id = '{}'",
        before[4][1], before[3][0]
    ));
    // Clerk's `Date` header has a resolution of one second: a change that the API shows within the same second is not newer.
    thread::sleep(Duration::from_millis(1100));
    let (finished, report) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(report["missing"]["ids"], json!([before[0][0]]), "{report}");
    assert_eq!(report["not_at_clerk"]["ids"], json!(["idn_nobodys"]), "{report}");
    let different: BTreeSet<&str> =
        report["different"]["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(different, BTreeSet::from([&*before[1][0], &*before[3][0]]), "{report}");
    let (finished, report) = reconcile(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((&report["mended"], &report["deleted"]), (&json!(3), &json!(1)), "{report}");
    assert_eq!(rows(), before);
    // A mass deletion is withheld until the operator allows it.
    for number in 0..60 {
        host.sql(&format!(
            "INSERT INTO user_email_addresses (clerk_id, user_id, email_address)
             VALUES ('idn_many{number}', '{}', 'mallory@example.com')",
            before[2][1]
        ));
    }
    let (_, report) = reconcile(host, &[]);
    assert_eq!((&report["withheld"], &report["deleted"]), (&json!(60), &json!(0)), "{report}");
    assert_eq!(rows().len(), before.len() + 60);
    reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(rows(), before);
    assert_eq!(reconcile(host, &["--dry-run"]).0.code, Some(0));
}

fn billing_that_is_switched_off_is_not_asked_about_for_every_owner(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,subscription");
    let clerk = Clerk::start(host, Options { users: 700, organizations: 200, ..Options::default() });
    clerk.fake.behave(Behaviour { billing_off: true, ..Behaviour::default() });
    let asked = || subscriptions_asked_for(&clerk);
    for finished in [backfill(host, &[]).0, reconcile(host, &[]).0] {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let told = of_kinds(&finished);
        assert_eq!(
            (&told["subscription"]["switched_off"], &told["user"]["seen"]),
            (&true.into(), &700.into())
        );
    }
    // Only requests that were sent before the first answer: for users and for organizations, in each of the two runs.
    assert!(asked() <= 4 * 32, "{}", asked());
    let finished = host.run(&["backfill", "--entity", "subscription"]);
    assert!(finished.stdout.contains("switched off at Clerk"), "{finished:?}");
    // That one owner has no subscription does not mean that the feature is switched off.
    clerk.fake.behave(Behaviour::default());
    let last = clerk.users().ids().pop().expect("many users");
    let subscription = sample_of(&entity::SUBSCRIPTION, &last);
    clerk.fake.lists().put_one(&format!("users/{last}/billing/subscription"), Some(subscription));
    let before = asked();
    let (finished, summary) = backfill(host, &["--entity", "subscription"]);
    assert_eq!((finished.code, &summary["seen"]), (Some(0), &1.into()), "{finished:?}");
    assert_eq!((asked() - before, live(host, "subscriptions")), (900, 1));
}

/// The number of requests for the subscription of a user or an organization.
fn subscriptions_asked_for(clerk: &Clerk) -> usize {
    clerk.fake.requests().iter().filter(|request| request.path.ends_with("/subscription")).count()
}

fn what_no_owner_has_is_switched_off(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,subscription");
    let clerk = Clerk::start(host, Options { users: 30, ..Options::default() });
    let (lists, users) = (clerk.fake.lists(), clerk.users().ids());
    let path = format!("users/{}/billing/subscription", users[0]);
    lists.put_one(&path, Some(sample_of(&entity::SUBSCRIPTION, &users[0])));
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    assert_eq!(live(host, "subscriptions"), 1);
    lists.put_one(&path, None);
    let (finished, report) = reconcile(host, &["--entity", "subscription", "--allow-mass-delete"]);
    assert_eq!((finished.code, &report["switched_off"]), (Some(0), &true.into()), "{finished:?}");
    assert_eq!(live(host, "subscriptions"), 1);
}

fn what_is_switched_off_for_some_owners_is_gone_for_none(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,subscription");
    let clerk = Clerk::start(host, Options { users: 30, organizations: 3, ..Options::default() });
    let (lists, users) = (clerk.fake.lists(), clerk.users().ids());
    let organization = &clerk.fake.organizations().ids()[0];
    let subscription = |id: &str| {
        let mut subscription = sample_of(&entity::SUBSCRIPTION, &users[0]);
        subscription["id"] = id.into();
        subscription.as_object_mut().expect("an object").remove("payer");
        Some(subscription)
    };
    lists.put_one(&format!("users/{}/billing/subscription", users[0]), subscription("csub_1"));
    lists.put_one(&format!("organizations/{organization}/billing/subscription"), subscription("csub_2"));
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    assert_eq!(
        host.sql("SELECT clerk_id FROM subscriptions WHERE organization_id IS NOT NULL"),
        [["csub_2"]]
    );
    clerk.fake.behave(behaving(Script::new(|path, _| {
        let is_of_organization = path.starts_with("/v1/organizations/") && path.ends_with("/subscription");
        is_of_organization.then(|| Canned::new(403, r#"{"errors":[{"code":"billing_not_enabled"}]}"#))
    })));
    thread::sleep(Duration::from_millis(1100));
    let (finished, report) = reconcile(host, &["--entity", "subscription", "--allow-mass-delete"]);
    assert_eq!((finished.code, &report["deleted"]), (Some(0), &0.into()), "{finished:?}");
    assert_eq!(live(host, "subscriptions"), 2);
    // An answer that is not an object must not count as a deletion.
    clerk.fake.behave(behaving(Script::new(|path, _| {
        path.ends_with("/subscription").then(|| Canned::new(200, r#"{"data":null}"#))
    })));
    let (finished, _) = reconcile(host, &["--entity", "subscription", "--allow-mass-delete"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(live(host, "subscriptions"), 2);
}

fn memberships_are_compared_after_a_role_has_changed(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,organization_membership,role");
    let clerk = Clerk::start(host, Options { users: 5, organizations: 1, members: 2, ..Options::default() });
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    let service = host.serve();
    let organizations = clerk.fake.organizations();
    // Clerk sends no events for the memberships.
    let mut changed = organizations.membership(&organizations.membership_ids()[0]).expect("it is there");
    changed["role"] = "org:billing".into();
    changed["updated_at"] = milliseconds().into();
    organizations.put_membership(changed);
    let body = sample::body("role.updated", "user_of_role", Utc::now()).expect("a sample");
    assert_eq!(service.post(&Post::new(body)).word(), "applied");
    eventually("the other role", || host.count("organization_memberships WHERE role = 'org:billing'") == 1);
    let asked = || clerk.fake.requests_to("/v1/organization_memberships");
    let before = asked();
    thread::sleep(Duration::from_secs(6));
    assert_eq!(asked(), before, "the memberships are compared once");
}

/// A host on PostgreSQL if available, otherwise on SQLite, for tests that do not depend on the backend.
fn any_host() -> Host {
    Host::with(Keeper::Postgres).or_else(|| Host::with(Keeper::Sqlite)).expect("SQLite is always there")
}

#[test]
fn a_run_through_owners_says_how_many_were_asked_and_counts_nobody_twice() {
    let mut host = any_host();
    host.set("SYNC_ENTITIES", "user,organization,subscription");
    let clerk = Clerk::start(&mut host, Options { users: 90, organizations: 10, ..Options::default() });
    host.run(&["migrate"]).succeeded();
    for command in ["backfill", "reconcile"] {
        let before = subscriptions_asked_for(&clerk);
        let run = host.command(&[command, "--entity", "subscription", "--rate", "10"]).spawn().unwrap();
        // A log line comes every five seconds.
        eventually("most of the users are asked", || subscriptions_asked_for(&clerk) >= before + 60);
        signal(&run, Signal::INT);
        let run = run.wait_with_output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(130), "{said}");
        assert_eq!(said.matches(" of 90 owners asked").count(), 2, "{said}");
        assert!(said.contains(&format!("{command}: ")) && said.contains("interrupted with "), "{said}");
    }
    age_the_unfinished_run(&host);
    let (finished, summary) = backfill(&host, &["--entity", "subscription"]);
    assert_eq!((finished.code, &summary["resumed"]), (Some(0), &true.into()), "{finished:?}");
    let runs = host.sql("SELECT progress FROM sync_runs WHERE finished_at IS NOT NULL");
    let progress: Value = serde_json::from_str(&runs[0][0]).unwrap();
    assert_eq!((&progress["asked"], &progress["owners"]), (&100.into(), &100.into()), "{progress}");
}

#[test]
fn nobody_is_gone_on_the_word_of_a_server_that_is_not_clerk() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 40);
    assert_eq!(backfill(&host, &[]).0.code, Some(0));
    let ids = clerk.ids();
    host.set("ADMIN_TOKEN", "t0ken");
    let service = host.serve();
    let shown: Vec<_> = ids.iter().skip(10).map(|id| (1, id.clone())).collect();
    for body in ["<html>404</html>", r#"{"errors":[{"code":"instance_not_found"}]}"#, "{}", ""] {
        let script = listing(&shown, 500);
        let missing = ids.iter().take(10).cloned().collect::<Vec<_>>();
        let odd = Script::new(move |path, query| match path.strip_prefix("/v1/users/") {
            // For one of the ten it answers as Clerk would.
            Some(id) if id == missing[0] => {
                Some(Canned::new(404, r#"{"errors":[{"code":"resource_not_found"}]}"#))
            }
            Some(id) if id != "count" => Some(Canned::new(404, body)),
            _ => script.answer(path, query),
        });
        clerk.fake.behave(behaving(odd));
        let (finished, _) = reconcile(&host, &[]);
        assert_eq!(finished.code, Some(1), "{body}: {finished:?}");
        assert!(finished.stderr.contains("refused the request: 404"), "{finished:?}");
        assert_eq!(here(&host), ids, "{body}");
        let answer = service.ask_api("POST", "/v1/users/user_unknown/ensure", Some("Bearer t0ken"));
        assert_eq!(answer.word(), "clerk_refused", "{body}");
    }
}

#[test]
fn a_walk_ends_however_many_signed_up_in_one_millisecond() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    // In the future, so that the first windows cover one millisecond each. The second window begins after a crowd, and its first
    // page contains only users of the millisecond before it.
    let at = milliseconds() + 600_000;
    let crowd = |at: i64, name: &str, count: usize| -> Vec<(i64, String)> {
        (0..count).map(|number| (at, format!("user_{name}{number:04}"))).collect()
    };
    let users = [crowd(at, "a", 1500), crowd(at + 1, "b", 600)].concat();
    clerk.fake.behave(behaving(listing(&users, 500)));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(here(&host), users.into_iter().map(|(_, id)| id).collect());
}

#[test]
fn a_server_that_shows_one_user_again_and_again_is_told() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    // In the future, so that no window ends before it.
    let at = milliseconds() + 600_000;
    clerk.fake.behave(behaving(Script::new(move |path, query| {
        let user = json!({ "id": "user_same", "created_at": at, "updated_at": 1000 });
        match path {
            "/v1/users" => {
                let users = vec![user; if query.contains("limit=500") { 500 } else { 1 }];
                Some(Canned::new(200, Value::from(users).to_string()))
            }
            _ => Some(Canned::new(200, r#"{"total_count":500}"#)),
        }
    })));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("the same users at every offset"), "{finished:?}");
}

#[test]
fn a_user_whose_id_is_unusable_is_left_out_by_name_and_nobody_else_with_them() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    let usable = |number: i64| (1000 + number, format!("user_{number:04}"));
    let odd = [(1100, "x".repeat(300)), (1499, String::new())];
    let users: Vec<_> = (0..1200).map(usable).chain(odd).collect();
    clerk.fake.behave(behaving(listing(&users, 500)));
    let ids: BTreeSet<String> = (0..1200).map(|number| usable(number).1).collect();
    let (finished, summary) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!((&summary["seen"], &summary["applied"]), (&1202.into(), &1200.into()), "{summary}");
    assert!(finished.stderr.contains("2 users were left out"), "{finished:?}");
    assert!(finished.stderr.contains("(no id): its id is not one of 1 to 255 bytes"), "{finished:?}");
    assert_eq!(here(&host), ids);

    host.sql("DELETE FROM users WHERE clerk_id = 'user_0700'");
    let (finished, report) = reconcile(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!((&report["mended"], &report["left_out"]["left_out"]), (&1.into(), &2.into()), "{report}");
    assert_eq!(here(&host), ids);
}

#[test]
fn a_user_who_is_shown_several_times_counts_once() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    let once: Vec<_> = (0..600_i64).map(|number| (1000 + number, format!("user_{number:04}"))).collect();
    let counted = |counted: u64| {
        let lists = listing(&[once.clone(), once.clone()].concat(), 500);
        behaving(Script::new(move |path, query| match path {
            "/v1/users/count" => Some(Canned::new(200, json!({ "total_count": counted }).to_string())),
            _ => lists.answer(path, query),
        }))
    };
    clerk.fake.behave(counted(600));
    let (finished, summary) = backfill(&host, &[]);
    assert_eq!((finished.code, &summary["seen"]), (Some(0), &600.into()), "{finished:?}");
    let (finished, report) = reconcile(&host, &[]);
    assert_eq!((finished.code, &report["seen"]), (Some(0), &600.into()), "{finished:?}");
    // Repeats do not make up for missing users.
    clerk.fake.behave(counted(1200));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("Clerk counts 1200 users but listed only 600"), "{finished:?}");
}

#[test]
fn a_list_that_is_shorter_than_clerk_counts_is_no_success() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    // A server with fewer users per page than requested.
    let users: Vec<_> = (0..1200_i64).map(|number| (1000 + number, format!("user_{number:04}"))).collect();
    clerk.fake.behave(behaving(listing(&users, 100)));
    let (finished, summary) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((summary["applied"].as_u64(), here(&host).len()), (Some(1200), 1200), "{summary}");

    let lists = listing(&users[..1100], 500);
    clerk.fake.behave(behaving(Script::new(move |path, query| match path {
        "/v1/users/count" => Some(Canned::new(200, r#"{"total_count":1200}"#)),
        _ => lists.answer(path, query),
    })));
    for _ in 0..2 {
        let (finished, _) = backfill(&host, &[]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains("Clerk counts 1200 users but listed only 1100"), "{finished:?}");
    }
    assert_eq!(host.count("sync_runs WHERE finished_at IS NULL"), 1);
}

#[test]
fn a_clerk_that_refuses_without_a_wait_is_not_pestered_and_failures_are_told_at_once() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    let refused = Canned { headers: vec![("retry-after", "0".to_owned())], ..Canned::new(429, "{}") };
    clerk.fake.behave(saying(refused));
    assert_eq!(host.run(&["ensure", "user_1"]).code, Some(69));
    // Nine requests per second for the eight seconds that a page may take would be seventy.
    let asked = clerk.fake.requests().len();
    assert!(asked < 30, "{asked} requests");

    let left = AtomicUsize::new(3);
    clerk.fake.behave(behaving(Script::new(move |_, _| {
        let fails = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        fails.then(|| Canned::new(503, r#"{"errors":[{"code":"internal_clerk_error"}]}"#))
    })));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let told = finished.stderr.matches("Clerk's API failed and will be retried").count();
    assert!(told == 1 && finished.stderr.contains("503 internal_clerk_error"), "{finished:?}");

    clerk.fake.behave(saying(Canned::new(400, "{}")));
    host.set("RECONCILE_INTERVAL", "1s");
    let service = host.serve();
    eventually("a failure", || service.metric("clerk_sync_catch_up_failures_total") > Some(0.0));
}

#[test]
fn drift_that_no_rule_mends_is_told_and_a_row_that_is_gone_comes_back() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 5);
    assert_eq!(backfill(&host, &[]).0.code, Some(0));
    let ids = clerk.users().ids();
    // The state after an event without an update time: the version here is newer than any that the API shows.
    host.sql("UPDATE entity_versions SET version = version + 1000, event_at = event_at - 60000");
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", ids[0]));
    host.sql(&format!("UPDATE users SET first_name = 'Tampered' WHERE clerk_id = '{}'", ids[1]));
    let (finished, report) = reconcile(&host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!((&report["missing"]["users"], &report["different"]["users"]), (&1.into(), &1.into()));
    let (finished, report) = reconcile(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("1 user could not be fixed"), "{finished:?}");
    assert_eq!((&report["mended"], &report["unmended"]), (&1.into(), &1.into()), "{report}");
    let mut expected = names_at(&clerk);
    expected.insert(ids[1].clone(), "Tampered".to_owned());
    assert_eq!(first_names(&host), expected);
}

/// A script that answers requests for users, except for their count.
fn saying(answer: Canned) -> Behaviour {
    behaving(Script::new(move |path, _| {
        (path.starts_with("/v1/users") && path != "/v1/users/count").then(|| answer.clone())
    }))
}

#[test]
fn an_answer_without_an_end_is_not_read_to_it() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    clerk.fake.behave(saying(Canned::new(200, " ".repeat((64 << 20) + 1))));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("more than 40 MiB"), "{finished:?}");

    let code = r#"{"errors":[{"code":"some_code"}]}"#;
    let long = format!("{code}{}", " ".repeat(64 << 10));
    for (body, told) in [(code.to_owned(), true), (long, false)] {
        clerk.fake.behave(saying(Canned::new(400, body)));
        let (finished, _) = backfill(&host, &[]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let told_where = format!("Clerk's API at {} refused the request: 400", clerk.fake.url());
        assert!(finished.stderr.contains(&told_where), "{finished:?}");
        assert_eq!(finished.stderr.contains("some_code"), told, "{finished:?}");
    }

    let users: Vec<_> = (0..501).map(|n| json!({ "id": format!("user_{n}"), "created_at": n })).collect();
    clerk.fake.behave(saying(Canned::new(200, Value::from(users).to_string())));
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let told =
        format!("Clerk's API at {} sent an answer that clerk-sync does not understand", clerk.fake.url());
    assert!(finished.stderr.contains(&told), "{finished:?}");
}

#[test]
fn an_old_date_of_an_answer_hides_nothing() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    let now = milliseconds();
    let user = |name: &str, updated_at: i64| {
        let user = json!({ "id": "user_1", "created_at": 1, "updated_at": updated_at, "first_name": name });
        let body = Value::from(vec![user]).to_string();
        let date = ("date", "Tue, 01 Feb 2000 00:00:00 GMT".to_owned());
        saying(Canned { headers: vec![date], ..Canned::new(200, body) })
    };
    for (name, at) in [("Ada", now - 20_000), ("Augusta", now - 10_000)] {
        clerk.fake.behave(user(name, at));
        assert_eq!(reconcile(&host, &[]).0.code, Some(0));
        assert_eq!(first_names(&host)["user_1"], name);
        let at_all =
            host.count(&format!("entity_versions WHERE version = {at} AND event_at > {now} - 60000"));
        assert_eq!(at_all, 1, "{name}");
    }
}

#[test]
fn no_id_is_asked_for_as_another() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 8);
    assert_eq!(backfill(&host, &[]).0.code, Some(0));
    let ids = clerk.ids();
    let odd = ["count", "..", ".", "user_1\tb", "user_1\n", "a/b", "a?b", "%2e%2e"];
    let service = host.serve();
    for id in odd {
        let event = user("user.created", id, milliseconds() - 1000, "Odd");
        assert_eq!(service.post(&post(&event)).word(), "applied", "{id:?}");
    }
    service.stop();
    let before = clerk.fake.requests().len();
    let (finished, report) = reconcile(&host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!((&report["deleted"], &report["left_out"]["left_out"]), (&0.into(), &8.into()), "{report}");
    assert!(!finished.stderr.contains('\t'), "{finished:?}");
    for id in &odd[..1] {
        host.sql(&format!("DELETE FROM users WHERE clerk_id = '{id}'"));
        assert_eq!(host.run(&["ensure", id]).code, Some(1));
    }
    let asked = clerk.fake.requests();
    let known = ["/v1/users/count", "/v1/instance"];
    let paths = asked[before..].iter().filter(|request| !known.contains(&request.path.as_str()));
    assert!(paths.clone().all(|request| request.path == "/v1/users"), "{:?}", paths.collect::<Vec<_>>());
    assert!(here(&host).is_superset(&ids));
}

#[test]
fn nothing_that_a_server_says_of_anybody_is_told() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    let (head, tail) = KEY.split_at(12);
    let refusal = |status: u16, code: &str, trace_id: &str| {
        let message = format!("ada@example.com {head}\u{7}{tail} \u{1b}[31m");
        let error = json!({ "code": code, "message": message, "long_message": message });
        let body = json!({ "errors": [error], "clerk_trace_id": trace_id });
        saying(Canned::new(status, body.to_string()))
    };
    for (status, code, trace_id, told) in [
        (400, "form_param_invalid", "trace-1_A", true),
        (401, "ada@example.com", "\u{1b}[31m", false),
        (422, KEY, KEY, false),
        (403, &format!("{head}\u{7}{tail}"), &format!("{head}\u{7}{tail}"), false),
    ] {
        clerk.fake.behave(refusal(status, code, trace_id));
        let (finished, _) = backfill(&host, &[]);
        assert_ne!(finished.code, Some(0), "{finished:?}");
        let stderr = &finished.stderr;
        assert!(stderr.contains(&status.to_string()), "{finished:?}");
        assert_eq!(stderr.contains(code) && stderr.contains(trace_id), told, "{finished:?}");
        for secret in ["example.com", tail, "\u{7}", "[31m"] {
            assert!(!stderr.contains(secret), "{secret:?}: {finished:?}");
        }
    }
}

#[test]
fn users_who_leave_during_a_backfill_hide_nobody_else() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 12_000);
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(30), ..Behaviour::default() });
    let service = host.serve();
    let users = clerk.users();
    let ids = users.ids();
    let signed_up = |id: &String| Some((users.get(id)?["created_at"].as_i64()?, id.clone()));
    let at: BTreeMap<i64, String> = ids.iter().filter_map(signed_up).collect();
    let gone = thread::scope(|scope| {
        let running = scope.spawn(|| backfill(&host, &["--rate", "40"]));
        // The last user of each page is deleted as soon as the page is shown, and others are deleted too.
        let mut gone = BTreeSet::new();
        let mut told = 0;
        while !running.is_finished() {
            for request in clerk.fake.requests().into_iter().skip(told) {
                told += 1;
                let after = request.query.split('&').find_map(|pair| pair.strip_prefix("created_at_after="));
                let last = after.and_then(|after| at.get(&(after.parse::<i64>().ok()? + 1)).cloned());
                let leaving = [last, Some(ids[told * 97 % ids.len()].clone())];
                for id in leaving.into_iter().flatten() {
                    if let Some(event) = users.delete(&id) {
                        service.post(&Post::new(event.body));
                        gone.insert(id);
                    }
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        let (finished, _) = running.join().unwrap();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        gone
    });
    assert!(gone.len() > 10);
    assert_eq!(here(&host), clerk.ids());
}

#[test]
fn a_backfill_beside_webhooks_ends_as_clerk_is() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, load(6_000, 60_000));
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(50), ..Behaviour::default() });
    let service = host.serve();
    let users = clerk.users();
    let ids = users.ids();
    let done = AtomicBool::new(false);
    let posters = load(4, 64);
    // Events per second, evenly spread.
    let rate = load(200, 500);
    let taken = AtomicUsize::new(0);
    let began = Instant::now();
    let post_until_done = |worker: usize| {
        let mut client = service.client();
        for step in (worker..).step_by(posters).take_while(|_| !done.load(SeqCst)) {
            let due = Duration::from_secs(step as u64) / u32::try_from(rate).unwrap();
            thread::sleep(due.saturating_sub(began.elapsed()));
            // Spread over the list, so that the backfill has read some of these users already.
            let id = &ids[step * 7919 % ids.len()];
            let event = match step % 10 {
                0 => users.delete(id),
                // More sign-ups than pages: a backfill that followed new sign-ups would never end.
                1 | 4 | 7 => Some(users.create()),
                _ => users.update(id),
            };
            if let Some(event) = event {
                let post = Post::new(event.body);
                // If a page of the backfill locks the user for long, the service answers 503, and Clerk sends the event again.
                eventually("taken", || client.post(&post).expect("an answer").status == 200);
                taken.fetch_add(1, SeqCst);
            }
        }
    };
    thread::scope(|scope| {
        let until = Until(&done);
        for worker in 0..posters {
            scope.spawn({
                let post_until_done = &post_until_done;
                move || post_until_done(worker)
            });
        }
        let (finished, _) = backfill(&host, &["--rate", "20"]);
        drop(until);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let (events, took) = (taken.load(SeqCst), began.elapsed());
        let reached = events as u128 * 1000 / took.as_millis();
        // Not with a macro: the test harness swallows a macro's output when a test passes.
        _ = writeln!(io::stderr(), "{events} events during a backfill of {took:.1?}, {reached} per second");
    });
    assert_eq!(first_names(&host), names_at(&clerk));
    assert!(host.count("audit_log WHERE source = 'webhook'") > 100);
    let unrevived = host.count(
        "entity_versions v JOIN users u ON u.clerk_id = v.clerk_id WHERE v.deleted AND u.deleted_at IS NULL",
    );
    assert_eq!(unrevived, 0);
}

#[test]
fn errors_and_rate_limits_of_clerk_slow_a_backfill_down_and_nothing_else() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 20_000);
    clerk.fake.behave(Behaviour {
        latency: Duration::from_millis(20),
        failures: 0.05,
        bursts_of_429: Some(Bursts {
            every: Duration::from_millis(700),
            lasting: Duration::from_millis(100),
            retry_after: 1,
        }),
        ..Behaviour::default()
    });
    let (finished, summary) = backfill(&host, &["--rate", "30"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(summary["seen"], 20_000, "{summary}");
    assert_eq!(here(&host), clerk.ids());
    let mut times: Vec<Instant> = clerk.fake.requests().into_iter().map(|request| request.at).collect();
    times.sort();
    let window = Duration::from_secs(1);
    let busiest =
        times.iter().map(|from| times.iter().filter(|at| (*from..*from + window).contains(*at)).count());
    // The rate of thirty, the three requests of the burst, and one for imprecise clocks.
    assert!(busiest.max().unwrap() <= 34);
}

#[test]
fn only_some_users_can_be_asked_for() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 900);
    let ids = clerk.users().ids();
    let file = host.write("ids.txt", &ids[100..350].join("\n"));
    let (finished, summary) = backfill(&host, &["--user-id", &format!("{},@{file}", ids[7])]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(summary["seen"], 251, "{summary}");
    let expected: BTreeSet<String> = ids[100..350].iter().chain([&ids[7]]).cloned().collect();
    assert_eq!(here(&host), expected);
    let (finished, _) = backfill(&host, &["--user-id", "user_nobody"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("does not know 1 of the 1 requested: user_nobody"), "{finished:?}");
    let (finished, _) = backfill(&host, &["--user-id", "user_1 user_2"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("without whitespace"), "{finished:?}");
    let long = "x".repeat(300);
    let file = host.write("long.txt", &long);
    for given in [long.clone(), format!("@{file}")] {
        let (finished, _) = backfill(&host, &["--user-id", &given]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        let told = finished.stderr.contains("it has 300 bytes, and an id has at most 255");
        assert!(told && !finished.stderr.contains(&long), "{finished:?}");
    }
    // Control characters do not reach the terminal.
    for finished in
        [backfill(&host, &["--user-id", "user_\u{1b}[2J"]).0, host.run(&["ensure", "user_\u{1b}[2J"])]
    {
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let told = finished.stderr.contains("does not know") && finished.stderr.contains("user_\\u001b[2J");
        assert!(told && !finished.stderr.contains('\u{1b}'), "{finished:?}");
    }
}

#[test]
fn somebody_who_is_here_and_whom_clerk_does_not_know_any_more_is_named() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 5);
    assert_eq!(backfill(&host, &[]).0.code, Some(0));
    let ids = clerk.users().ids();
    // The event is lost.
    clerk.users().delete(&ids[2]).unwrap();
    let (finished, _) = backfill(&host, &["--user-id", &format!("{},{}", ids[1], ids[2])]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let text = format!("Clerk does not know 1 of the 2 requested: {}", ids[2]);
    assert!(finished.stderr.contains(&text), "{finished:?}");
    assert!(finished.stderr.contains("still here") && finished.stderr.contains("reconcile"), "{finished:?}");
    assert_eq!(host.count("users"), 5, "a backfill erases no user");
    // For an id that is unknown here too, the message says no more.
    let (finished, _) = backfill(&host, &["--user-id", "user_nobody"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(!finished.stderr.contains("still here"), "{finished:?}");
}

#[test]
fn users_as_large_as_clerk_allows_take_no_more_memory_than_others() {
    const USERS: i64 = 3000;
    const BEGAN: i64 = 1_700_000_000_000;
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 0);
    let blob = "x".repeat(10_000);
    let limits = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&limits);
    clerk.fake.behave(behaving(Script::new(move |path, query| {
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<i64>().ok())
        };
        match path.strip_prefix("/v1/users")? {
            "" => {
                let limit = parameter("limit").unwrap_or(10);
                asked.lock().unwrap().push(limit);
                // One user signs up per second.
                let first = parameter("created_at_after").map_or(0, |after| (after - BEGAN + 999).div_euclid(1000));
                let first = first.max(0);
                let page = (first..USERS).take(usize::try_from(limit).unwrap()).map(|number| {
                    let at = BEGAN + number * 1000;
                    json!({
                        "id": format!("user_{number}"), "created_at": at, "updated_at": at, "public_metadata": { "k": blob },
                        "private_metadata": { "k": blob }, "unsafe_metadata": { "k": blob },
                    })
                });
                Some(Canned::new(200, page.collect::<Value>().to_string()))
            }
            "/count" => Some(Canned::new(200, json!({ "total_count": USERS }).to_string())),
            _ => None,
        }
    })));
    host.set("SYNC_FIELDS", "email,public_metadata,private_metadata,unsafe_metadata");
    let mut running = host.command(&["backfill", "--rate", "1000"]).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        // Only Linux reports the memory; elsewhere the page sizes suffice.
        let memory = std::fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap_or_default();
        let anonymous =
            memory.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next());
        peak = peak.max(anonymous.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default());
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    assert_eq!(host.count("users"), usize::try_from(USERS).unwrap());
    assert!(peak < 128 << 10, "{peak} kB");
    // About 4 MiB per page once the size of a user is known; before that, longer answers were cut off.
    let limits = limits.lock().unwrap();
    assert!(limits.iter().rev().take(limits.len() / 2).all(|limit| *limit < 200), "{limits:?}");
}

#[test]
fn several_lists_unite_count_nobody_twice_and_tell_which_addresses_nobody_has() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 500);
    let users = clerk.users();
    let ids = users.ids();
    let mut owners: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for id in &ids {
        for address in users.get(id).unwrap()["email_addresses"].as_array().unwrap() {
            owners.entry(address["email_address"].as_str().unwrap().to_owned()).or_default().push(id);
        }
    }
    // One unique address per user.
    let mut with_address: Vec<(&String, String)> = Vec::new();
    for (address, owners) in owners.into_iter().filter(|(_, owners)| owners.len() == 1) {
        if with_address.len() < 150 && with_address.iter().all(|(known, _)| *known != owners[0]) {
            with_address.push((owners[0], address));
        }
    }
    let mut lines = vec!["# who is meant".to_owned()];
    lines.extend(with_address.iter().map(|(_, address)| address.clone()));
    let file = host.write("addresses.txt", &lines.join("\n"));
    // One user that is also selected by address, and another one.
    let other = ids.iter().find(|id| with_address.iter().all(|(known, _)| known != id)).unwrap();
    let by_id = format!("{},{other}", with_address[3].0);
    let (finished, summary) = backfill(&host, &["--email", &format!("@{file}"), "--user-id", &by_id]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let expected: BTreeSet<String> = with_address.iter().map(|(id, _)| *id).chain([other]).cloned().collect();
    assert_eq!(summary["seen"], expected.len(), "{summary}");
    assert_eq!(here(&host), expected);

    let (finished, summary) =
        backfill(&host, &["--email", &format!("@{file},nobody@example.com,no.one@example.com")]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(summary["unchanged"], 150, "{summary}");
    let words = "Clerk does not know 2 of the 152 requested: number 151 of --email, number 152 of --email";
    assert!(finished.stderr.contains(words), "{finished:?}");
    // On a terminal, the message contains the address.
    let asked = ["backfill", "--rate", "1000", "--email", "nobody@example.com"];
    if let Some(told) = host.run_at_terminal(&asked, "") {
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stdout.contains("1 of the 1 requested: nobody@example.com"), "{told:?}");
    }
}

#[test]
fn a_time_at_which_nobody_can_have_signed_up_is_refused() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    let now = Utc::now();
    for (given, hint) in [
        (now.timestamp().to_string(), format!("write {}000", now.timestamp())),
        ("1999-12-31".to_owned(), "1999-12-31, and no user".to_owned()),
        ((now + TimeDelta::days(400)).to_rfc3339(), "no user can have signed up".to_owned()),
        ("yesterday".to_owned(), "RFC 3339".to_owned()),
    ] {
        let (refused, _) = backfill(&host, &["--created-after", &given]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(&hint), "{refused:?}");
    }
    assert_eq!(clerk.fake.requests().len(), 0);
    let (finished, summary) = backfill(&host, &["--created-after", "2010-01-01"]);
    assert_eq!((finished.code, &summary["seen"]), (Some(0), &3.into()), "{finished:?}");
    let (refused, _) = backfill(&host, &["--rate", "0"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("expected a whole number of at least 1"), "{refused:?}");
}

#[test]
fn a_wrong_key_and_a_clerk_that_is_away_are_told_apart() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    host.unset("CLERK_SECRET_KEY");
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert!(finished.stderr.contains("CLERK_SECRET_KEY"), "{finished:?}");

    host.set("CLERK_SECRET_KEY", "sk_test_d3Jvbmc");
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert!(
        finished.stderr.contains("clerk_key_invalid") && !finished.stderr.contains("d3Jvbmc"),
        "{finished:?}"
    );

    host.set("CLERK_SECRET_KEY", KEY);
    drop(clerk);
    let (finished, _) = backfill(&host, &[]);
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert!(finished.stderr.contains("cannot be reached") && !finished.stderr.contains(KEY), "{finished:?}");
}

#[test]
fn of_several_replicas_one_reconciles_and_another_takes_over_when_it_dies() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let clerk = Clerk::of(&mut host, 600);
    host.set("RECONCILE_INTERVAL", "2s");
    let mut replicas: Vec<_> = (0..3).map(|_| host.serve()).collect();
    let runs = |host: &Host| host.count("sync_runs WHERE finished_at IS NOT NULL");
    eventually("two runs", || runs(&host) >= 2);
    assert_eq!(here(&host), clerk.ids());
    let leader = replicas
        .iter()
        .position(|service| service.lines().iter().any(|line| line["message"] == "reconcile finished"))
        .expect("a leader");
    replicas.remove(leader).kill();
    let before = runs(&host);
    let died = Instant::now();
    while runs(&host) <= before + 1 {
        assert!(died.elapsed() < Duration::from_mins(1), "no replica took over");
        thread::sleep(Duration::from_millis(100));
    }
    // Two runs never overlap.
    let overlapping = host.count(
        "sync_runs AS a JOIN sync_runs AS b ON a.id < b.id AND a.started_at < b.finished_at AND b.started_at < a.finished_at",
    );
    assert_eq!(overlapping, 0);
    let drift = replicas
        .iter()
        .filter_map(|service| service.metric("clerk_sync_reconcile_drift{kind=\"missing\",entity=\"user\"}"));
    assert!(drift.count() > 0);
}

#[test]
fn a_service_that_was_away_for_long_compares_at_the_start_and_fills_empty_tables_if_asked() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 40);
    let service = host.serve();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(here(&host).len(), 0, "catching up is off by default");
    service.stop();
    host.set("CATCH_UP_ON_EMPTY", "on");
    let service = host.serve();
    eventually("all users", || here(&host) == clerk.ids());
    service.stop();

    clerk.users().update(&clerk.users().ids()[0]).unwrap();
    host.set("CATCH_UP_AFTER", "1s");
    thread::sleep(Duration::from_millis(1100));
    let service = host.serve();
    eventually("the missed update", || first_names(&host) == names_at(&clerk));
    service.stop();
}
