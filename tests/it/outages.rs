//! Crashes, locks and unavailable databases: nothing that was acknowledged is lost, nothing is applied twice, every
//! request is answered, and the service recovers completely once the fault is over.

use std::{
    collections::{HashMap, HashSet},
    env,
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    proxy::{Mode, Proxy},
    service::{
        Answer, Client, Host, Keeper, Post, Service, Until, alone, deletion, eventually, free_port, is_root,
        is_there, load, measured, milliseconds, on_each_keeper, post, skip, unique, unprivileged, user,
    },
};

on_each_keeper!(
    killed_under_load_it_loses_nothing_and_does_nothing_twice,
    asked_to_stop_under_load_it_answers_or_refuses_and_ends_with_0,
    a_short_outage_costs_about_as_long_as_it_takes,
    a_database_that_stays_locked_keeps_nobody_waiting_and_is_forgotten_afterwards,
    asked_to_stop_while_it_holds_deliveries_it_answers_them_and_ends,
);

/// The time within which every request is answered.
const ANSWERED: Duration = Duration::from_secs(10);

/// The number of concurrent senders.
const SENDERS: usize = 16;

pub(crate) fn created() -> Post {
    post(&user("user.created", &unique("user_"), milliseconds(), "Ada"))
}

pub(crate) fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.word().as_str()), (503, "database_unavailable"), "{answer:?}");
    assert!(answer.headers["retry-after"].parse::<u32>().is_ok_and(|seconds| seconds > 0), "{answer:?}");
}

/// The answers that senders received.
#[derive(Default)]
pub(crate) struct Told {
    /// Deliveries that were answered 200, with their user and the status in the answer.
    pub(crate) acknowledged: Vec<(String, String, String)>,
    /// Users whose deletion was answered 200.
    deleted: Vec<String>,
    pub(crate) refused: usize,
    unanswered: usize,
    /// Deliveries that were refused because the sender's clock and the service's differ.
    pub(crate) untimely: usize,
    slowest: Duration,
}

/// Senders that never stop, and repeat deliveries that were not acknowledged, as Svix does.
struct Load<'a> {
    /// The current address of the service; `None` between two runs of it.
    address: &'a Mutex<Option<SocketAddr>>,
    ended: &'a AtomicBool,
    told: Mutex<Told>,
}

impl<'a> Load<'a> {
    fn on(address: &'a Mutex<Option<SocketAddr>>, ended: &'a AtomicBool) -> Self {
        Self { address, ended, told: Mutex::default() }
    }

    /// Send the deliveries of one user after another. Each user has two or four deliveries.
    fn send(&self) {
        let mut client = None;
        for number in 0.. {
            let id = unique("user_");
            let at = milliseconds();
            let mut story =
                vec![user("user.created", &id, at, "Ada"), user("user.updated", &id, at + 1, "Augusta")];
            if number % 3 == 0 {
                story.push(deletion(&id, at + 2));
                story.push(user("user.updated", &id, at + 3, "Late"));
            }
            for event in &story {
                if !self.deliver(&mut client, post(event), &id, event["type"] == "user.deleted") {
                    return;
                }
            }
        }
    }

    /// Repeat a delivery until it is acknowledged; returns `false` if the load ends first.
    fn deliver(&self, client: &mut Option<Client>, mut post: Post, user: &str, deletion: bool) -> bool {
        while !self.ended.load(SeqCst) {
            if client.is_none() {
                let address = *self.address.lock().expect("not poisoned");
                *client = address.and_then(|address| Client::connect(address).ok());
            }
            let Some(connection) = client else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            post.timestamp = milliseconds() / 1000;
            let started = Instant::now();
            let answer = connection.post(&post);
            let mut told = self.told.lock().expect("not poisoned");
            told.slowest = told.slowest.max(started.elapsed());
            match answer {
                Ok(answer) if answer.status == 200 => {
                    told.acknowledged.push((post.id, user.to_owned(), answer.word()));
                    if deletion {
                        told.deleted.push(user.to_owned());
                    }
                    return true;
                }
                Ok(answer) if answer.status == 400 => {
                    assert_eq!(answer.word(), "timestamp_out_of_tolerance", "{answer:?}");
                    told.untimely += 1;
                    drop(told);
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(answer) => {
                    assert_eq!(answer.status, 503, "{answer:?}");
                    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
                    told.refused += 1;
                    drop(told);
                    thread::sleep(Duration::from_millis(20));
                    if answer.headers.get("connection").is_some_and(|value| value == "close") {
                        *client = None;
                    }
                }
                Err(_) => {
                    told.unanswered += 1;
                    *client = None;
                }
            }
        }
        false
    }

    /// Check that the database matches the answers that senders received.
    fn check(self, host: &Host) -> Told {
        let told = self.told.into_inner().expect("not poisoned");
        eventually("the queue is empty", || host.count("webhook_queue") == 0);
        let processed: HashMap<String, String> = host
            .sql("SELECT svix_id, outcome FROM processed_webhooks")
            .into_iter()
            .map(|row| (row[0].clone(), row[1].clone()))
            .collect();
        let audited: Vec<String> = host.sql("SELECT svix_id FROM audit_log").concat();
        let once: HashSet<&String> = audited.iter().collect();
        assert_eq!(audited.len(), once.len(), "a delivery was applied twice");
        let erased: HashSet<&String> = told.deleted.iter().collect();
        for (id, user, word) in &told.acknowledged {
            let outcome = processed.get(id);
            let waited = ["queued", "parked"].contains(&word.as_str());
            // A deletion overtakes what waits in the queue for its user: it removes that, or finds nothing to tell of.
            let is_overtaken = waited && erased.contains(user);
            if is_overtaken && outcome.is_none() {
                continue;
            }
            assert!(outcome.is_some(), "{id} was acknowledged as {word}, but is missing");
            let agrees = waited || word == "duplicate" || outcome == Some(word);
            assert!(agrees, "{id}: {word}, {outcome:?}");
            let is_applied = outcome.is_some_and(|outcome| outcome == "applied");
            assert!(once.contains(id) == is_applied || is_overtaken, "{id}: {word}, {outcome:?}");
        }
        let alive: HashSet<String> = host.sql("SELECT clerk_id FROM users").concat().into_iter().collect();
        for id in &told.deleted {
            assert!(!alive.contains(id), "{id} was deleted, but is still there");
        }
        let untimely = match told.untimely {
            0 => String::new(),
            untimely => format!("{untimely} outside of the tolerance, "),
        };
        measured(&format!(
            "{} acknowledged: 0 missing, 0 twice; {} deleted: 0 alive; {untimely}{} refused, {} unanswered, all sent again",
            told.acknowledged.len(),
            told.deleted.len(),
            told.refused,
            told.unanswered,
        ));
        told
    }
}

/// Put load on a service whose clock is right, until `disturb` returns.
pub(crate) fn under_load(
    host: &Host,
    service: Service,
    disturb: impl FnOnce(&Mutex<Option<SocketAddr>>, Service),
) -> Told {
    let told = under_load_at_any_time(host, service, disturb);
    assert_eq!(told.untimely, 0, "the clocks are right");
    told
}

/// The same for a service whose clock may be wrong.
pub(crate) fn under_load_at_any_time(
    host: &Host,
    service: Service,
    disturb: impl FnOnce(&Mutex<Option<SocketAddr>>, Service),
) -> Told {
    let address = Mutex::new(Some(service.public));
    let ended = AtomicBool::new(false);
    let load = Load::on(&address, &ended);
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| load.send());
        }
        let _until = Until(&ended);
        disturb(&address, service);
    });
    load.check(host)
}

/// Wait until `more` further deliveries are processed.
pub(crate) fn wait_for_work(host: &Host, more: usize) {
    let before = host.count("processed_webhooks");
    eventually("work continues", || host.count("processed_webhooks") >= before + more);
}

fn killed_under_load_it_loses_nothing_and_does_nothing_twice(host: &mut Host) {
    let _alone = alone();
    let (times, between) = (load(5, 200), load(100, 1_500));
    let told = under_load(host, host.serve(), |address, mut service| {
        for _ in 0..times {
            wait_for_work(host, between);
            *address.lock().expect("not poisoned") = None;
            service.kill();
            // `serve` waits until the service is ready.
            service = host.serve();
            *address.lock().expect("not poisoned") = Some(service.public);
        }
        wait_for_work(host, 100);
        service.stop();
    });
    assert!(told.acknowledged.len() > between * times, "{}", told.acknowledged.len());
    assert!(told.unanswered > 0, "the service was not killed under load");
}

fn asked_to_stop_under_load_it_answers_or_refuses_and_ends_with_0(host: &mut Host) {
    let _alone = alone();
    for _ in 0..load(2, 10) {
        let service = host.serve();
        // Requests that are under way when the service is asked to stop.
        let mut waiting: Vec<(Client, Post)> = Vec::new();
        under_load(host, service, |address, mut service| {
            wait_for_work(host, 100);
            for _ in 0..20 {
                let (mut client, post) = (service.client(), created());
                client.send(&post.bytes()).expect("sent");
                waiting.push((client, post));
            }
            service.terminate();
            *address.lock().expect("not poisoned") = None;
            let status = service.wait(Duration::from_secs(20));
            assert_eq!(status.code(), Some(0), "{}", service.log());
            // The reader of the log may be slightly behind.
            eventually("stopped", || service.lines().iter().any(|line| line["message"] == "stopped"));
        });
        for (mut client, post) in waiting {
            // A connection that was not accepted yet is closed without an answer.
            if let Ok(answer) = client.answer() {
                assert!([200, 503].contains(&answer.status), "{answer:?}");
                let found = host.count(&format!("processed_webhooks WHERE svix_id = '{}'", post.id));
                assert!(answer.status != 200 || found == 1, "acknowledged, but missing");
            }
        }
    }
}

#[test]
fn all_its_sessions_cut_under_load_it_loses_nothing() {
    let Some(host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let told = under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(5, 20) {
            wait_for_work(&host, 100);
            host.sql(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}'",
                host.schema
            ));
            assert_eq!(service.status("/livez"), Some(200));
        }
        wait_for_work(&host, 100);
        eventually("ready", || service.status("/readyz") == Some(200));
        service.stop();
    });
    assert!(told.slowest < ANSWERED, "{:?}", told.slowest);
}

/// Lock the users; returns a function that releases the lock.
fn lock(host: &Host) -> impl FnOnce() + use<> {
    let mut connection = host.connect();
    connection
        .run(match host.keeper {
            Keeper::Postgres => "BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE",
            Keeper::Sqlite => "BEGIN IMMEDIATE",
            // A collection cannot be locked.
            Keeper::Mongodb => "SELECT 1",
            Keeper::Mariadb | Keeper::Mysql => "LOCK TABLES users WRITE",
        })
        .expect("locked");
    let unlock = if host.keeper.is_mysql() { "UNLOCK TABLES" } else { "ROLLBACK" };
    move || _ = connection.run(unlock).expect("unlocked")
}

/// The duration of a failover, a restart or another session's long transaction: shorter than a sender waits.
const SHORT: Duration = Duration::from_secs(5);

/// Send at the beginning of an outage: once it is over, every sender is answered 200.
fn assert_costs_as_long_as_it_takes(service: &Service, over: impl FnOnce() + Send) {
    let began = Instant::now();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..20).map(|_| scope.spawn(|| service.post(&created()))).collect();
        thread::sleep(SHORT);
        over();
        for sender in senders {
            assert_eq!(sender.join().expect("an answer").word(), "applied");
        }
    });
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
}

fn a_short_outage_costs_about_as_long_as_it_takes(host: &mut Host) {
    let _alone = alone();
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    assert_costs_as_long_as_it_takes(&service, lock(host));
    assert_eq!(host.count("users"), 21);
    service.stop();
}

#[test]
fn a_server_that_is_away_for_seconds_costs_seconds() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let service = host.serve();
    for mode in [Mode::Refuse, Mode::Silent] {
        assert_eq!(service.post(&created()).word(), "applied");
        proxy.set(mode);
        if matches!(mode, Mode::Refuse) {
            proxy.cut();
        }
        assert_costs_as_long_as_it_takes(&service, || proxy.set(Mode::Pass));
    }
    assert_eq!(host.count("users"), 42);
    service.stop();
}

fn a_database_that_stays_locked_keeps_nobody_waiting_and_is_forgotten_afterwards(host: &mut Host) {
    let _alone = alone();
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    let unlock = lock(host);
    let locked_until = Instant::now() + Duration::from_secs(load(12, 15) as u64);
    let senders = load(60, 300);
    let kept = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..senders {
            scope.spawn(|| {
                // Start no request so late that the lock may be released before its answer.
                while Instant::now() + ANSWERED < locked_until {
                    let started = Instant::now();
                    let answer = service.post(&created());
                    match host.keeper {
                        // In the other databases only the users' table is locked.
                        Keeper::Sqlite => assert_unavailable(&answer),
                        _ => assert_eq!(answer.word(), "parked"),
                    }
                    kept.fetch_add(usize::from(answer.status == 200), SeqCst);
                    assert!(started.elapsed() < ANSWERED, "answered only after {:?}", started.elapsed());
                }
            });
        }
        while Instant::now() < locked_until {
            let started = Instant::now();
            assert_eq!(service.status("/livez"), Some(200));
            assert!(started.elapsed() < Duration::from_secs(1), "alive only after {:?}", started.elapsed());
            thread::sleep(Duration::from_millis(200));
        }
    });
    unlock();
    eventually("the service recovers", || service.post(&created()).word() == "applied");
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(service.post(&created()).word(), "applied");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    eventually("the parked deliveries are applied", || host.count("webhook_queue") == 0);
    assert!(host.count("users") >= 21 + kept.load(SeqCst));
    assert_eq!(service.status("/readyz"), Some(200));
    service.stop();
}

fn asked_to_stop_while_it_holds_deliveries_it_answers_them_and_ends(host: &mut Host) {
    let _alone = alone();
    let mut service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    let unlock = lock(host);
    thread::scope(|scope| {
        let sender = scope.spawn(|| service.client().post(&created()).expect("an answer"));
        eventually("the delivery is held", || service.log().contains("are held and tried again"));
        let asked = Instant::now();
        service.terminate();
        let answer = sender.join().expect("an answer");
        match host.keeper {
            Keeper::Sqlite => assert_eq!((answer.status, answer.word().as_str()), (503, "shutting_down")),
            _ => assert_eq!(answer.word(), "parked"),
        }
        assert!(asked.elapsed() < Duration::from_secs(5), "answered only after {:?}", asked.elapsed());
    });
    let status = service.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{}", service.log());
    unlock();
}

#[test]
fn who_is_locked_waits_alone() {
    let Some(host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let service = host.serve();
    let at = milliseconds();
    assert_eq!(service.post(&post(&user("user.created", "user_locked", at, "Ada"))).word(), "applied");
    let mut idle = host.connect();
    idle.run("BEGIN; SELECT 1 FROM users WHERE clerk_id = 'user_locked' FOR UPDATE").expect("locked");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut passed = 0;
                    while !done.load(SeqCst) {
                        let started = Instant::now();
                        assert_eq!(service.post(&created()).word(), "applied");
                        assert!(started.elapsed() < ANSWERED);
                        passed += 1;
                    }
                    passed
                })
            })
            .collect();
        let until = Until(&done);
        for later in 1..=load(2, 10) {
            let later = i64::try_from(later).expect("few");
            let started = Instant::now();
            let answer = service.post(&post(&user("user.updated", "user_locked", at + later, "Augusta")));
            assert_eq!(answer.word(), "parked");
            assert!(started.elapsed() < ANSWERED);
        }
        drop(until);
        for other in others {
            assert!(other.join().expect("no panic") > 0);
        }
    });
    idle.run("ROLLBACK").expect("unlocked");
    eventually("the update is there", || {
        host.value("SELECT first_name FROM users WHERE clerk_id = 'user_locked'") == "Augusta"
    });
    let answer = service.post(&post(&user("user.updated", "user_locked", at + 100, "Ada")));
    assert_eq!(answer.word(), "applied");
    service.stop();
}

#[test]
fn a_database_that_may_only_be_read_is_answered_503_until_it_may_be_written() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let own = host.use_own_database();
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    own.run_beside(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", own.name));
    // The setting applies only to new sessions, so close the existing ones.
    own.run_beside(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}'",
        host.schema
    ));
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                let started = Instant::now();
                assert_unavailable(&service.post(&created()));
                assert!(started.elapsed() < ANSWERED, "answered only after {:?}", started.elapsed());
            });
        }
        assert_eq!(service.status("/livez"), Some(200));
        eventually("not ready", || service.status("/readyz") == Some(503));
        assert!(service.get("/readyz").body.contains("only be read"), "{}", service.get("/readyz").body);
    });
    let health = host.run(&["healthcheck", "--admin-port", &service.private.port().to_string()]);
    assert!(health.code == Some(1) && health.stderr.contains("only be read"), "{health:?}");
    let doctor = host.run(&["doctor"]).stdout;
    assert!(doctor.lines().any(|line| line.starts_with("fail") && line.contains("only be read")), "{doctor}");
    // Do not close the existing sessions: clerk-sync must notice the change by itself.
    own.run_beside(&format!("ALTER DATABASE {} RESET default_transaction_read_only", own.name));
    eventually("ready", || service.status("/readyz") == Some(200));
    assert_eq!(service.post(&created()).word(), "applied");
    service.stop();
}

#[test]
fn a_file_that_was_taken_away_is_not_made_again() {
    let Some(host) = Host::with(Keeper::Sqlite) else { return };
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    let (path, away) = (host.path("users.db"), host.path("away.db"));
    std::fs::rename(&path, &away).expect("renamed");
    assert_unavailable(&service.post(&created()));
    eventually("not ready", || service.status("/readyz") == Some(503));
    assert_eq!(service.status("/livez"), Some(200));
    assert!(!is_there(&path), "the file was created again");
    std::fs::rename(&away, &path).expect("renamed");
    eventually("the service recovers", || service.post(&created()).status == 200);
    assert_eq!(host.count("users"), 2);
}

#[test]
fn a_database_that_falls_silent_keeps_nobody_waiting() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let service = host.serve();
    for mode in [Mode::Silent, Mode::Refuse] {
        assert_eq!(service.post(&created()).word(), "applied");
        proxy.set(mode);
        if matches!(mode, Mode::Refuse) {
            // Close the open sessions too.
            host.sql(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}'",
                host.schema
            ));
        }
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let started = Instant::now();
                    assert_unavailable(&service.post(&created()));
                    assert!(started.elapsed() < ANSWERED, "{mode:?}: {:?}", started.elapsed());
                });
            }
            scope.spawn(|| {
                let started = Instant::now();
                assert_eq!(service.status("/livez"), Some(200));
                eventually("not ready", || service.status("/readyz") == Some(503));
                assert!(started.elapsed() < Duration::from_secs(5), "{mode:?}: {:?}", started.elapsed());
            });
        });
        proxy.set(Mode::Pass);
        eventually("the service recovers", || service.post(&created()).status == 200);
        eventually("ready", || service.status("/readyz") == Some(200));
    }
    service.stop();
}

#[test]
fn connections_that_lead_nowhere_any_more_are_left_for_new_ones() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let service = host.serve();
    // Open several connections; `forget` then makes all of them dead.
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(service.post(&created()).word(), "applied"));
        }
    });
    proxy.forget();
    let began = Instant::now();
    assert_eq!(service.post(&created()).word(), "applied");
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
    eventually("ready", || service.status("/readyz") == Some(200));
    service.stop();
}

#[test]
fn a_pooler_that_lets_nobody_in_at_the_start_is_waited_for_and_named() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let proxy = Proxy::to(host.postgres_address(), Mode::Unwelcome, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("XX000") && refused.stderr.contains("pooler"), "{refused:?}");
    assert!(!refused.stderr.contains("Tenant or user not found"), "{refused:?}");
    host.set("DATABASE_WAIT_SECONDS", "60");
    let service = thread::scope(|scope| {
        let starting = scope.spawn(|| host.serve());
        let before = proxy.connections();
        eventually("it keeps trying", || proxy.connections() > before + 2);
        proxy.set(Mode::Pass);
        starting.join().expect("it starts")
    });
    let waited = service.lines().into_iter().find(|line| line["message"] == "waiting for the database");
    assert!(waited.is_some_and(|line| line.to_string().contains("pooler")), "{}", service.log());
    assert_eq!(service.post(&created()).word(), "applied");
    service.stop();
}

/// `PgBouncer` in transaction mode, in front of the tests' server.
pub(crate) struct PgBouncer {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl PgBouncer {
    /// `None` if it is not installed.
    pub(crate) fn start(host: &Host) -> Option<Self> {
        Self::start_at(host, free_port())
    }

    /// Start it at this port of 127.0.0.1.
    pub(crate) fn start_at(host: &Host, port: u16) -> Option<Self> {
        let program = env::var("TEST_PGBOUNCER").unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned());
        if !is_there(&program) {
            assert!(
                env::var("CI").as_deref() != Ok("true"),
                "pgbouncer is required in CI: {program} is missing"
            );
            skip("pgbouncer", &format!("{program} is missing; TEST_PGBOUNCER names another place"));
            return None;
        }
        let (server, server_port) = host.postgres_address();
        let settings = host.postgres_credentials();
        let configuration = host.write(
            "pgbouncer.ini",
            &format!(
                "[databases]\n* = host={server} port={server_port} {settings}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 100\nadmin_users = postgres\n"
            ),
        );
        if is_root() {
            open_to_everybody(host);
        }
        let mut command = unprivileged(&program);
        command.arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("pgbouncer starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let bouncer = Self { child, address };
        eventually("pgbouncer listens", || std::net::TcpStream::connect(address).is_ok());
        Some(bouncer)
    }

    /// Kill the process without notice, as when a machine fails.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("it ends");
        assert!(std::net::TcpStream::connect(self.address).is_err(), "PgBouncer still listens");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // The process may have ended by itself.
        _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let started = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if started.elapsed() > Duration::from_secs(5) {
                _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn open_to_everybody(host: &Host) {
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(host.directory.path(), open).expect("permissions");
}

/// How often a webhook about an existing user waits for the server behind this proxy: the minimum of several updates.
fn turns_of_an_update(host: &Host, proxy: &Proxy) -> usize {
    let service = host.serve();
    let turns = (0..20).map(|number| {
        let before = proxy.turns();
        let update = user("user.updated", "user_1", milliseconds(), &format!("Ada {number}"));
        assert_eq!(service.post(&post(&update)).word(), "applied");
        // Wait until the writes that follow an answer are complete. One of the turns is the driver's test of the connection, which
        // returns to the pool at the time of the answer.
        thread::sleep(Duration::from_millis(100));
        proxy.turns() - before - 1
    });
    let least = turns.min().expect("some");
    service.stop();
    least
}

#[test]
fn a_webhook_waits_for_the_database_four_times_at_most() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let turns = turns_of_an_update(&host, &proxy);
    assert!(turns <= 4, "{turns}");
}

#[test]
fn a_webhook_waits_for_a_database_far_away_twice() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::from_millis(2));
    host.reach_server_at(proxy.address);
    let turns = turns_of_an_update(&host, &proxy);
    assert!(turns <= 2, "{turns}");
}

#[test]
fn behind_pgbouncer_it_waits_no_more_often() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(bouncer) = PgBouncer::start(&host) else { return };
    let proxy =
        Proxy::to((bouncer.address.ip().to_string(), bouncer.address.port()), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let turns = turns_of_an_update(&host, &proxy);
    assert!(turns <= 4, "{turns}");
}

/// Behind a pooler, values are written into the text of the statements.
#[test]
fn behind_pgbouncer_every_text_is_kept_as_it_came() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(bouncer) = PgBouncer::start(&host) else { return };
    host.reach_server_at(bouncer.address);
    host.set("SYNC_FIELDS", "first_name,last_name,public_metadata");
    let service = host.serve();
    let texts = [
        "O'Brien",
        "'); DROP TABLE users; --",
        "\\",
        "\\'",
        "\"",
        "{a,\"b\",NULL}",
        "$1 $2 {x}",
        "E'\\x41'",
        "NULL",
        "",
        "line\nline\ttab\r",
        "\u{1F600}\u{202E}",
        "$$ $body$ /* -- */ ;",
    ];
    for (number, text) in texts.iter().enumerate() {
        let mut event = user("user.created", &format!("user_{number}"), milliseconds(), text);
        event["data"]["last_name"] = Value::Null;
        event["data"]["public_metadata"] = json!({ *text: [text, { "deep": text }] });
        assert_eq!(service.post(&post(&event)).word(), "applied", "{text:?}");
    }
    for (number, text) in texts.iter().enumerate() {
        let row = host.value(&format!(
            "SELECT json_build_object('first', first_name, 'last', last_name, 'metadata', public_metadata)::text
             FROM users WHERE clerk_id = 'user_{number}'"
        ));
        let row: Value = serde_json::from_str(&row).expect("JSON");
        assert_eq!(row["first"], *text);
        assert_eq!(row["last"], Value::Null);
        assert_eq!(row["metadata"], json!({ *text: [text, { "deep": text }] }));
    }
    service.stop();
}

#[test]
fn behind_pgbouncer_in_transaction_mode_all_is_the_same() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(bouncer) = PgBouncer::start(&host) else { return };
    let _alone = alone();
    host.reach_server_at(bouncer.address);
    host.run(&["migrate"]).succeeded();
    let told = under_load(&host, host.serve(), |address, service| {
        wait_for_work(&host, 300);
        *address.lock().expect("not poisoned") = None;
        service.stop();
        let service = host.serve();
        *address.lock().expect("not poisoned") = Some(service.public);
        wait_for_work(&host, 300);
        *address.lock().expect("not poisoned") = None;
        service.kill();
        let service = host.serve();
        *address.lock().expect("not poisoned") = Some(service.public);
        wait_for_work(&host, 300);
        service.stop();
    });
    assert!(told.acknowledged.len() > 900, "{}", told.acknowledged.len());
    assert!(told.slowest < ANSWERED, "{:?}", told.slowest);
}
