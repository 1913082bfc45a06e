//! An idle service sends nothing to the database, and still notices every change at once, whichever process makes it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    receivers::{Receiver, reply},
    service::{
        Host, Keeper, OwnDatabase, SECRET, Service, eventually, milliseconds, on_each_keeper, post, unique,
        user,
    },
};

on_each_keeper!(
    what_another_process_leaves_is_picked_up_at_once,
    what_is_retried_by_a_command_is_picked_up_at_once,
    what_is_put_off_is_tried_again_when_its_time_has_come,
    a_message_that_another_process_wrote_is_delivered_at_once,
);

/// How long a serverless database must see no query before it may suspend.
const QUIET: Duration = Duration::from_secs(20);

fn created(name: &str) -> Value {
    user("user.created", &unique("user_"), milliseconds(), name)
}

/// The number of transactions in this database so far.
fn transactions(own: &OwnDatabase) -> u64 {
    let query =
        format!("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{}'", own.name);
    own.run_beside(&query)[0][0].parse().unwrap()
}

/// Wait until this stays the same for a while, or fail.
fn settled<T: PartialEq>(mut state: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut last = (state(), Instant::now());
    while last.1.elapsed() < QUIET {
        assert!(Instant::now() < deadline, "the state never settles");
        thread::sleep(Duration::from_millis(500));
        let now = state();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

#[test]
fn an_idle_service_asks_nothing_of_its_database() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let receiver = Receiver::start(|_| reply(200, ""));
    host.write("clerk-sync.toml", &sink(&receiver.url));
    host.set("CRM_SECRET", SECRET);
    let own = host.use_own_database();
    let services = [
        host.serve(),
        host.serve_with(&["--no-worker"]),
        host.work(),
        {
            host.set("PROCESSING", "queue");
            host.serve()
        },
        {
            host.set("IDLE", "quiet");
            host.serve()
        },
    ];
    settled(|| transactions(&own));
    // A probe does not query an idle database.
    let quiet = &services[4];
    let before = transactions(&own);
    for _ in 0..20 {
        assert_eq!(quiet.status("/readyz"), Some(200));
    }
    assert_eq!(transactions(&own), before);
    for service in services {
        service.stop();
    }
    drop(own);
}

#[test]
fn an_idle_service_leaves_the_file_alone() {
    let Some(host) = Host::with(Keeper::Sqlite) else { return };
    let service = host.serve();
    assert_eq!(service.post(&post(&created("Ada"))).word(), "applied");
    let state = || {
        ["users.db", "users.db-wal"].map(|name| {
            let found = fs::metadata(host.path(name)).expect("a file");
            (found.len(), found.modified().expect("a time"))
        })
    };
    settled(state);
    service.stop();
}

fn sink(url: &str) -> String {
    format!(
        "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{url}/\"\nsigning_secret_env = \"CRM_SECRET\"\nfields = [\"email\"]\n"
    )
}

/// Wait until every worker is idle.
fn idle() {
    thread::sleep(Duration::from_secs(6));
}

fn receiving_and_working(host: &mut Host) -> (Service, Service) {
    host.set("PROCESSING", "queue");
    let receiving = host.serve_with(&["--no-worker"]);
    let working = host.work();
    idle();
    (receiving, working)
}

fn what_another_process_leaves_is_picked_up_at_once(host: &mut Host) {
    let (receiving, working) = receiving_and_working(host);
    for name in ["Ada", "Eve", "Ann"] {
        assert_eq!(receiving.post(&post(&created(name))).word(), "queued");
        eventually("applied", || host.count(&format!("users WHERE first_name = '{name}'")) == 1);
    }
    receiving.stop();
    working.stop();
}

fn what_is_retried_by_a_command_is_picked_up_at_once(host: &mut Host) {
    host.run(&["migrate"]).succeeded();
    host.refuse_first_name("Bad");
    host.set("QUEUE_MAX_ATTEMPTS", "1");
    let service = host.serve();
    assert_eq!(service.post(&post(&created("Bad"))).word(), "parked");
    eventually("dead", || host.count("webhook_queue WHERE state = 'dead'") == 1);
    host.allow_first_names();
    idle();
    host.run(&["queue", "retry", "--all"]).succeeded();
    eventually("applied", || host.count("users WHERE first_name = 'Bad'") == 1);
    service.stop();
}

fn what_is_put_off_is_tried_again_when_its_time_has_come(host: &mut Host) {
    host.run(&["migrate"]).succeeded();
    host.refuse_first_name("Bad");
    let service = host.serve();
    assert_eq!(service.post(&post(&created("Bad"))).word(), "parked");
    eventually("three tries", || host.count("webhook_queue WHERE attempts >= 3") == 1);
    host.allow_first_names();
    eventually("applied", || host.count("users WHERE first_name = 'Bad'") == 1);
    service.stop();
}

fn a_message_that_another_process_wrote_is_delivered_at_once(host: &mut Host) {
    let receiver = Receiver::start(|_| reply(200, ""));
    host.write("clerk-sync.toml", &sink(&receiver.url));
    host.set("CRM_SECRET", SECRET);
    let receiving = host.serve_with(&["--no-worker"]);
    let working = host.work();
    idle();
    assert_eq!(receiving.post(&post(&created("Ada"))).word(), "applied");
    eventually("delivered", || host.count("outbox WHERE state = 'delivered'") == 1);
    receiving.stop();
    working.stop();
}
