//! Backfill and reconcile, by the real program against a fake of Clerk's Backend API that misbehaves as Clerk might.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use chrono::{SecondsFormat, TimeDelta, Utc};
use clerk_sync::clerk::fake::{Behaviour, Bursts, DeletedCursor, Fake, Options, Users};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::service::{
    Finished, Host, Keeper, Post, deletion, eventually, load, milliseconds, on_each_keeper, post, user,
};

on_each_keeper!(
    a_backfill_takes_everybody_in_and_a_second_one_changes_nothing,
    a_backfill_revives_nobody_and_overwrites_nothing_newer,
    a_server_that_ignores_the_cursor_is_noticed_and_nobody_is_skipped,
    a_backfill_that_is_killed_again_and_again_goes_on_where_it_was,
    a_backfill_that_is_under_way_is_left_alone,
    reconcile_reports_every_kind_of_drift_and_mends_it,
    a_clerk_that_shows_half_of_its_users_deletes_nobody,
    a_dry_run_makes_no_database,
    a_thousand_who_ask_for_one_user_make_one_request,
);

const KEY: &str = "sk_test_dGhlLWtleS1vZi10aGUtdGVzdHM";

/// A fake Clerk, and the runtime that serves it.
struct Clerk {
    fake: Fake,
    _runtime: Runtime,
}

impl Clerk {
    /// With so many users, and known to the host.
    fn of(host: &mut Host, users: usize) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options { users, key: KEY.to_owned(), port: 0 };
        let fake = runtime.block_on(Fake::start(options, Arc::new(Utc::now))).unwrap();
        host.set("CLERK_API_URL", &fake.url());
        host.set("CLERK_SECRET_KEY", KEY);
        Self { fake, _runtime: runtime }
    }

    fn users(&self) -> Users {
        self.fake.users()
    }

    fn ids(&self) -> BTreeSet<String> {
        self.users().ids().into_iter().collect()
    }
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

/// Ids of the users who are here.
fn here(host: &Host) -> BTreeSet<String> {
    host.sql("SELECT clerk_id FROM users WHERE deleted_at IS NULL").into_iter().flatten().collect()
}

fn first_names(host: &Host) -> BTreeMap<String, String> {
    let rows = host.sql("SELECT clerk_id, coalesce(first_name, '') FROM users WHERE deleted_at IS NULL");
    rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// What the fake says of their names, as it can be stored.
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
    // One is deleted by a webhook that the API does not know of yet, one is newer.
    assert_eq!(service.post(&post(&deletion(&ids[3], milliseconds()))).word(), "applied");
    let newer = user("user.updated", &ids[5], milliseconds(), "Newer");
    assert_eq!(service.post(&post(&newer)).word(), "applied");

    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((&summary["applied"], &summary["stale"]), (&698.into(), &2.into()), "{summary}");
    assert!(!here(host).contains(&ids[3]));
    assert_eq!(first_names(host)[&ids[5]], "Newer");
}

fn a_server_that_ignores_the_cursor_is_noticed_and_nobody_is_skipped(host: &mut Host) {
    let clerk = Clerk::of(host, 4000);
    for inclusive_times in [false, true] {
        clerk.fake.behave(Behaviour { ignore_cursor: true, inclusive_times, ..Behaviour::default() });
        let (finished, summary) = backfill(host, &["--restart"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(summary["seen"], 4000, "{summary}");
        assert!(finished.stderr.contains("ignores starting_after"), "{finished:?}");
        assert_eq!(here(host), clerk.ids());
    }
}

fn a_backfill_that_is_killed_again_and_again_goes_on_where_it_was(host: &mut Host) {
    let clerk = Clerk::of(host, load(20_000, 100_000));
    let pages = load(20_000, 100_000) / 500;
    clerk.fake.behave(Behaviour { latency: Duration::from_millis(60), ..Behaviour::default() });
    let mut kills = 0;
    for _ in 0..20 {
        let before = clerk.fake.requests_to("/v1/users").max(1);
        let mut child = host.command(&["backfill", "--rate", "60"]).spawn().unwrap();
        eventually("some pages", || {
            clerk.fake.requests_to("/v1/users") >= before + 6 || child.try_wait().unwrap().is_some()
        });
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // As if it had been a while ago: otherwise the next one makes sure for some seconds that nobody is at work.
        let a_while_ago = (Utc::now() - TimeDelta::minutes(1)).to_rfc3339_opts(SecondsFormat::Millis, true);
        host.sql(&format!("UPDATE sync_runs SET updated_at = '{a_while_ago}' WHERE finished_at IS NULL"));
    }
    assert!(kills > 3);
    let (finished, summary) = backfill(host, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(summary["resumed"], true, "{summary}");
    assert_eq!(here(host), clerk.ids());
    // Every window ends with a page that is not full, and each kill costs the pages that were on their way.
    let asked = clerk.fake.requests_to("/v1/users");
    assert!(asked <= pages + 3 * 32 + kills * 33, "{asked} requests for {pages} pages and {kills} kills");
}

fn a_backfill_that_is_under_way_is_left_alone(host: &mut Host) {
    let clerk = Clerk::of(host, 4000);
    let mut first = host.command(&["backfill", "--rate", "1"]).spawn().unwrap();
    eventually("a beginning", || clerk.fake.requests_to("/v1/users") >= 2);
    let (second, _) = backfill(host, &[]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("at work on the same run"), "{second:?}");
    // Interrupted, the first one says where it is, and another one goes on with it.
    assert!(first.try_wait().unwrap().is_none(), "it still runs");
    let pid = first.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
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
    // Missing: as if neither the user nor the webhook had ever come.
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", ids[0]));
    host.sql(&format!("DELETE FROM entity_versions WHERE clerk_id = '{}'", ids[0]));
    // Missing: the application removed the row.
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", ids[1]));
    // Stale: the webhook was lost.
    users.update(&ids[2]).unwrap();
    // Different although of the same version.
    host.sql(&format!("UPDATE users SET first_name = 'Tampered' WHERE clerk_id = '{}'", ids[3]));
    // Here and not at Clerk.
    users.delete(&ids[4]).unwrap();
    // Erased here and alive at Clerk.
    let service = host.serve();
    assert_eq!(service.post(&post(&deletion(&ids[5], milliseconds()))).word(), "applied");
    service.stop();

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
        [missing, vec![ids[2].clone()], vec![ids[3].clone()], vec![ids[4].clone()], vec![ids[5].clone()]];
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

fn a_dry_run_makes_no_database(host: &mut Host) {
    let _clerk = Clerk::of(host, 10);
    let (finished, _) = reconcile(host, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("run `clerk-sync "), "{finished:?}");
    assert!(host.keeper != Keeper::Sqlite || !std::path::Path::new(&host.path("users.db")).exists());
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    assert_eq!(host.count("users"), 10);
}

fn a_clerk_that_shows_half_of_its_users_deletes_nobody(host: &mut Host) {
    let clerk = Clerk::of(host, 1500);
    assert_eq!(backfill(host, &[]).0.code, Some(0));
    clerk.fake.behave(Behaviour { only: Some(0.5), ..Behaviour::default() });
    let (finished, report) = reconcile(host, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(report["deleted"], 0, "{report}");
    assert!(report["withheld"].as_u64().unwrap() > 500, "{report}");
    // Not even if many may go: Clerk knows each of them when asked.
    let (finished, report) = reconcile(host, &["--allow-mass-delete"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(report["deleted"], 0, "{report}");
    assert_eq!(here(host), clerk.ids());
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
    // Deleted here, whatever Clerk says.
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
    assert_eq!(ensure(&other).status, 200, "whoever is here needs no Clerk");
    assert_eq!(host.run(&["ensure", &users.ids()[6]]).code, Some(69));
}

/// A host on PostgreSQL, for what no keeper has a say in; else on SQLite.
fn any_host() -> Host {
    Host::with(Keeper::Postgres).or_else(|| Host::with(Keeper::Sqlite)).expect("SQLite is always there")
}

#[test]
fn users_who_leave_during_a_backfill_hide_nobody_else() {
    for deleted_cursor in [DeletedCursor::NotFound422, DeletedCursor::EmptyPage, DeletedCursor::GoOn] {
        let mut host = any_host();
        let clerk = Clerk::of(&mut host, 12_000);
        clerk.fake.behave(Behaviour {
            deleted_cursor,
            latency: Duration::from_millis(30),
            ..Behaviour::default()
        });
        let service = host.serve();
        let users = clerk.users();
        let ids = users.ids();
        let gone = thread::scope(|scope| {
            let running = scope.spawn(|| backfill(&host, &["--rate", "40"]));
            // Whoever is the last of a page leaves as soon as the page was shown; and some more.
            let mut gone = BTreeSet::new();
            let mut told = 0;
            while !running.is_finished() {
                for request in clerk.fake.requests().into_iter().skip(told) {
                    told += 1;
                    let cursor =
                        request.query.split('&').find_map(|pair| pair.strip_prefix("starting_after="));
                    let leaving = [cursor.map(ToOwned::to_owned), Some(ids[told * 97 % ids.len()].clone())];
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
            assert_eq!(finished.code, Some(0), "{deleted_cursor:?}: {finished:?}");
            gone
        });
        assert!(gone.len() > 10);
        assert_eq!(here(&host), clerk.ids(), "{deleted_cursor:?}");
    }
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
    let post_until_done = |worker: usize| {
        let mut client = service.client();
        for step in (worker..).step_by(posters).take_while(|_| !done.load(SeqCst)) {
            // All over the list: seen by the backfill already, or not.
            let id = &ids[step * 7919 % ids.len()];
            let event = match step % 10 {
                0 => users.delete(id),
                1 => Some(users.create()),
                _ => users.update(id),
            };
            if let Some(event) = event {
                assert_eq!(client.post(&Post::new(event.body)).expect("an answer").status, 200);
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..posters {
            scope.spawn({
                let post_until_done = &post_until_done;
                move || post_until_done(worker)
            });
        }
        let (finished, _) = backfill(&host, &["--rate", "20"]);
        done.store(true, SeqCst);
        assert_eq!(finished.code, Some(0), "{finished:?}");
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
    // Thirty, with the three that may come at once, and one for clocks that differ.
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
    assert!(finished.stderr.contains("does not know 1 of the 1 asked for: user_nobody"), "{finished:?}");
    let (finished, _) = backfill(&host, &["--user-id", "user_1 user_2"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("without blanks"), "{finished:?}");
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
    // One address of each, that nobody else has.
    let mut with_address: Vec<(&String, String)> = Vec::new();
    for (address, owners) in owners.into_iter().filter(|(_, owners)| owners.len() == 1) {
        if with_address.len() < 150 && with_address.iter().all(|(known, _)| *known != owners[0]) {
            with_address.push((owners[0], address));
        }
    }
    let mut lines = vec!["# who is meant".to_owned()];
    lines.extend(with_address.iter().map(|(_, address)| address.clone()));
    let file = host.write("addresses.txt", &lines.join("\n"));
    // Named by an address too, and not.
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
    let words = "Clerk does not know 2 of the 152 asked for: no.one@example.com, nobody@example.com";
    assert!(finished.stderr.contains(words), "{finished:?}");
}

#[test]
fn a_time_at_which_nobody_can_have_signed_up_is_refused() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 3);
    let now = Utc::now();
    for (given, hint) in [
        (now.timestamp().to_string(), format!("write {}000", now.timestamp())),
        ("1999-12-31".to_owned(), "1999-12-31, when nobody".to_owned()),
        ((now + TimeDelta::days(400)).to_rfc3339(), "when nobody".to_owned()),
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
    assert!(refused.stderr.contains("a whole number from 1 on"), "{refused:?}");
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
        assert!(died.elapsed() < Duration::from_mins(1), "nobody took over");
        thread::sleep(Duration::from_millis(100));
    }
    // Never two at once.
    let overlapping = host.count(
        "sync_runs AS a JOIN sync_runs AS b ON a.id < b.id AND a.started_at < b.finished_at AND b.started_at < a.finished_at",
    );
    assert_eq!(overlapping, 0);
    let drift =
        replicas.iter().filter_map(|service| service.metric("clerk_sync_reconcile_drift{kind=\"missing\"}"));
    assert!(drift.count() > 0);
}

#[test]
fn a_service_that_was_away_for_long_compares_at_the_start_and_fills_empty_tables_if_asked() {
    let mut host = any_host();
    let clerk = Clerk::of(&mut host, 40);
    let service = host.serve();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(here(&host).len(), 0, "off by default");
    service.stop();
    host.set("CATCH_UP_ON_EMPTY", "on");
    let service = host.serve();
    eventually("everybody", || here(&host) == clerk.ids());
    service.stop();

    clerk.users().update(&clerk.users().ids()[0]).unwrap();
    host.set("CATCH_UP_AFTER", "1s");
    thread::sleep(Duration::from_millis(1100));
    let service = host.serve();
    eventually("what was missed", || first_names(&host) == names_at(&clerk));
    service.stop();
}
