//! Clocks that jump under load: while a clock is wrong nothing is lost and nothing is applied twice, and when it is right
//! again, work goes on at once.
//!
//! Due times are written by the clock of a process. After a jump of a day nothing waits for such a time; after a smaller one,
//! retries that were planned meanwhile wait for as long as the clock was ahead, which is an hour at most. So these tests
//! plan retries only for jumps of a day.
//!
//! Only the wall clock of the program jumps, as when somebody sets it; the monotonic clock, which timers use, goes on. The
//! senders and the database keep the right time. `libfaketime` moves the clock: `TEST_FAKETIME` names its file for programs
//! with threads, otherwise Debian's place is tried. Without it these tests are skipped.

use std::{env, fs, net::SocketAddr, sync::Mutex};

use crate::{
    outages::{created, under_load_at_any_time, wait_for_work},
    receivers::{Fickle, Mood},
    service::{
        Host, Keeper, SECRET, Service, alone, eventually, is_there, load, milliseconds, post, skip, unique,
        user,
    },
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The jumps of a test, in seconds. Each is larger than the tolerance for timestamps, which is five minutes.
fn jumps() -> Vec<i64> {
    [DAY, -6 * MINUTE, HOUR, -DAY, -HOUR].repeat(2)[..load(1, 10)].to_vec()
}

/// Whether due times of such a jump are so far away that nothing waits for them.
fn is_far(seconds: i64) -> bool {
    seconds.abs() >= DAY
}

/// The wall clock of some processes.
struct WallClock {
    library: String,
    file: String,
}

impl WallClock {
    /// A clock that is right; `None` if the library is missing.
    fn new(host: &Host, name: &str) -> Option<Self> {
        if load(0, 1) == 0 {
            skip("TEST_LOAD=full", "each jump takes half a minute; scripts/prove lets the clocks jump");
            return None;
        }
        let place = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", env::consts::ARCH);
        let library = env::var("TEST_FAKETIME").unwrap_or(place);
        if !is_there(&library) {
            skip("libfaketime", &format!("{library} is missing; TEST_FAKETIME names another place"));
            return None;
        }
        let clock = Self { library, file: host.path(name) };
        clock.jump(0);
        Some(clock)
    }

    /// Processes that this host starts from now on have this clock.
    fn applies_to(&self, host: &mut Host) {
        host.set("LD_PRELOAD", &self.library);
        host.set("FAKETIME_TIMESTAMP_FILE", &self.file);
        // Every look at the clock reads the file, so a jump is complete at once.
        host.set("FAKETIME_NO_CACHE", "1");
        host.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        host.set("NO_FAKE_STAT", "1");
    }

    /// Set the clock to the right time plus these seconds.
    fn jump(&self, seconds: i64) {
        let next = format!("{}.next", self.file);
        fs::write(&next, format!("{seconds:+}")).expect("a file");
        fs::rename(next, &self.file).expect("renamed");
    }
}

/// Whether the service refuses a delivery because its clock and the sender's differ.
fn is_untimely(service: &Service) -> bool {
    let answer = service.post(&created());
    (answer.status, answer.word().as_str()) == (400, "timestamp_out_of_tolerance")
}

/// While the clock is wrong, the service acknowledges nothing.
fn assert_acknowledges_nothing(host: &Host, service: &Service) {
    let before = host.count("processed_webhooks") + host.count("webhook_queue");
    for _ in 0..20 {
        assert!(is_untimely(service), "acknowledged at a wrong time");
    }
    assert_eq!(host.count("processed_webhooks") + host.count("webhook_queue"), before);
}

/// A user whom the database refuses for now, so that the delivery waits for its next attempt.
struct Refused {
    id: String,
}

impl Refused {
    fn send(host: &Host, service: &Service) -> Self {
        host.refuse_first_name("Refused");
        let id = unique("user_refused_");
        let answer = service.post(&post(&user("user.created", &id, milliseconds(), "Refused")));
        assert_eq!(answer.status, 200, "{answer:?}");
        let refused = Self { id };
        eventually("it is tried", || refused.attempts(host) > 0);
        refused
    }

    fn attempts(&self, host: &Host) -> usize {
        let attempts =
            host.sql(&format!("SELECT attempts FROM webhook_queue WHERE clerk_id = '{}'", self.id));
        attempts.concat().first().map_or(0, |attempts| attempts.parse().expect("a number"))
    }

    /// Wait for another attempt.
    fn is_tried_again(&self, host: &Host) {
        let before = self.attempts(host);
        eventually("it is tried again", || self.attempts(host) > before);
    }

    fn is_applied(&self, host: &Host) {
        eventually("it is applied", || host.count(&format!("users WHERE clerk_id = '{}'", self.id)) == 1);
    }
}

/// Wait until more lines of the audit trail are sealed.
fn seals_go_on(host: &Host) {
    let before = host.count("audit_seals");
    eventually("more lines are sealed", || host.count("audit_seals") > before);
}

fn verifies(host: &Host) {
    host.run(&["audit", "verify"]).succeeded();
}

#[test]
fn a_service_on_postgresql_whose_clock_jumps_under_load_loses_nothing() {
    jumps_inline(Keeper::Postgres);
}

#[test]
fn a_service_on_sqlite_whose_clock_jumps_under_load_loses_nothing() {
    jumps_inline(Keeper::Sqlite);
}

fn jumps_inline(keeper: Keeper) {
    let Some(mut host) = Host::with(keeper) else { return };
    let Some(clock) = WallClock::new(&host, "clock") else { return };
    let _alone = alone();
    clock.applies_to(&mut host);
    // A service that starts with a clock one day ahead must not delete what is young, even if a clock one day behind dated it.
    host.set("PROCESSED_RETENTION_DAYS", "3");
    let told = under_load_at_any_time(&host, host.serve(), |address, mut service| {
        for seconds in jumps() {
            wait_for_work(&host, 100);
            let refused = is_far(seconds).then(|| Refused::send(&host, &service));
            clock.jump(seconds);
            eventually("the jump is noticed", || is_untimely(&service));
            service = replace(address, service, Service::stop, || host.serve());
            assert_acknowledges_nothing(&host, &service);
            if let Some(refused) = &refused {
                refused.is_tried_again(&host);
            }
            if refused.is_some() {
                host.allow_first_names();
            }
            clock.jump(0);
            wait_for_work(&host, 100);
            if let Some(refused) = refused {
                refused.is_applied(&host);
            }
            seals_go_on(&host);
            // It may hold leases by the wrong clock.
            service = replace(address, service, crash, || host.serve());
            wait_for_work(&host, 100);
            seals_go_on(&host);
        }
        service.stop();
    });
    assert!(told.untimely > 0, "the clock did not jump under load");
    verifies(&host);
}

/// Kill a process whose clock is not its own, and remove what `libfaketime` shares between processes.
fn crash(service: Service) {
    let id = service.id();
    service.kill();
    for kind in ["faketime_shm", "sem.faketime_sem"] {
        // The library may keep it elsewhere.
        _ = fs::remove_file(format!("/dev/shm/{kind}_{id}"));
    }
}

/// Put another process in the place of this one.
fn replace(
    address: &Mutex<Option<SocketAddr>>,
    service: Service,
    end: fn(Service),
    start: impl Fn() -> Service,
) -> Service {
    *address.lock().expect("not poisoned") = None;
    end(service);
    let service = start();
    *address.lock().expect("not poisoned") = Some(service.public);
    service
}

#[test]
fn a_worker_whose_clock_jumps_under_load_goes_on_and_so_do_the_messages() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(receiving) = WallClock::new(&host, "receiving") else { return };
    let Some(working) = WallClock::new(&host, "working") else { return };
    let _alone = alone();
    let sink = Fickle::open(SECRET);
    let file = format!(
        "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{}/hooks\"\nsigning_secret_env = \"CRM_SECRET\"\n",
        sink.url
    );
    host.write("clerk-sync.toml", &file);
    host.set("CRM_SECRET", SECRET);
    host.set("PROCESSING", "queue");
    host.set("PROCESSED_RETENTION_DAYS", "3");
    receiving.applies_to(&mut host);
    let service = host.serve_with(&["--no-worker"]);
    working.applies_to(&mut host);
    let mut worker = Some(host.work());
    let told = under_load_at_any_time(&host, service, |_, service| {
        for seconds in jumps() {
            wait_for_work(&host, 100);
            let refused = is_far(seconds).then(|| Refused::send(&host, &service));
            // First only the worker's clock is wrong.
            working.jump(seconds);
            let process = worker.take().expect("a worker");
            if let Some(refused) = &refused {
                sink.set(Mood::Answers(500));
                crash(process);
                worker = Some(host.work());
                refused.is_tried_again(&host);
                let heard = sink.heard().len();
                eventually("the sink is tried", || sink.heard().len() > heard);
            } else {
                process.stop();
                worker = Some(host.work());
            }
            // A worker whose clock is a little behind waits until it is right.
            if seconds > 0 || is_far(seconds) {
                wait_for_work(&host, 100);
            }
            // Then both are.
            receiving.jump(seconds);
            eventually("the jump is noticed", || is_untimely(&service));
            if seconds > 0 {
                eventually("the queue is empty", || host.count("webhook_queue WHERE attempts = 0") == 0);
                assert_acknowledges_nothing(&host, &service);
                let pending = "outbox WHERE state = 'pending'";
                eventually("messages are delivered", || is_far(seconds) || host.count(pending) == 0);
            }
            if refused.is_some() {
                host.allow_first_names();
            }
            receiving.jump(0);
            working.jump(0);
            sink.set(Mood::Takes);
            wait_for_work(&host, 100);
            if let Some(refused) = refused {
                refused.is_applied(&host);
            }
            seals_go_on(&host);
        }
        service.stop();
    });
    assert!(told.untimely > 0, "the clock did not jump under load");
    eventually("every message is delivered", || host.count("outbox WHERE state = 'pending'") == 0);
    assert_eq!(host.count("outbox WHERE state <> 'delivered'"), 0);
    worker.expect("a worker").stop();
    verifies(&host);
}
