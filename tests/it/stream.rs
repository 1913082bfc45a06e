//! Webhooks in a stream: the real program with a real Valkey. Each test starts its own server, and may stop, kill or
//! misconfigure it.
//!
//! `TEST_VALKEY` names the program of a Valkey or Redis 7.2 or newer; otherwise `valkey-server` is taken from the path.
//! Without either, the tests are skipped with a printed line, unless `REQUIRE_STORES` names `valkey`.

use std::{
    collections::HashSet,
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::{
    disks::Disk,
    proxy::{Mode, Proxy},
    service::{
        Client, Host, Keeper, Post, Service, Until, alone, deletion, eventually, free_port, load, measured,
        milliseconds, on_each_keeper, post, skip, user,
    },
    workers::{created, queued},
};

/// A Valkey server of one test. Its directory is removed with the test.
struct Valkey {
    program: PathBuf,
    /// The disk of the directory, if it has its own. It is taken away before the directory is removed.
    disk: Option<Disk>,
    directory: tempfile::TempDir,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Valkey {
    /// Start a server that keeps confirmed entries; `None` if no program is available.
    fn start(options: &[&str]) -> Option<Self> {
        let valkey = Self::installed()?;
        valkey.begin(&[&["--appendonly", "yes"], options].concat());
        Some(valkey)
    }

    /// Start a server whose data has a disk of this size; `None` if the program is missing, or the disk.
    fn on_small_disk(megabytes: u32) -> Option<Self> {
        let mut valkey = Self::installed()?;
        valkey.disk = Some(Disk::over(valkey.directory.path(), megabytes)?);
        valkey.begin(&["--appendonly", "yes"]);
        Some(valkey)
    }

    fn installed() -> Option<Self> {
        let on_path = || {
            let path = env::var_os("PATH")?;
            env::split_paths(&path).map(|folder| folder.join("valkey-server")).find(|file| file.exists())
        };
        let Some(program) = env::var_os("TEST_VALKEY").map(PathBuf::from).or_else(on_path) else {
            skip("valkey", "there is no valkey-server, and TEST_VALKEY names none");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        Some(Self { program, disk: None, directory, port: free_port(), child: Mutex::default() })
    }

    /// Start the server with its stored data.
    fn begin(&self, options: &[&str]) {
        let child = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--dir"])
            .arg(self.directory.path())
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        *self.child.lock().expect("not poisoned") = Some(child);
        eventually("the server answers", || self.try_ask(&["PING"]).is_some_and(|answer| answer == "+PONG"));
    }

    fn kill(&self) {
        let mut child = self.child.lock().expect("not poisoned").take().expect("a server");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The first line of the answer to a command.
    fn ask(&self, words: &[&str]) -> String {
        self.try_ask(words).unwrap_or_else(|| panic!("{words:?} is answered"))
    }

    fn try_ask(&self, words: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "*{}\r\n", words.len()).ok()?;
        for word in words {
            write!(stream, "${}\r\n{word}\r\n", word.len()).ok()?;
        }
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    }

    /// The number of webhooks in the stream.
    fn entries(&self) -> usize {
        let answer = self.ask(&["XLEN", "clerk-sync:{webhooks}"]);
        answer.trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    /// Whether one of the server's files contains this text.
    fn keeps(&self, text: &str) -> bool {
        files(self.directory.path()).iter().any(|file| {
            let mut bytes = Vec::new();
            fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read");
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.lock().expect("not poisoned").take() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Start a server, and configure the service to use it.
fn with_stream(host: &mut Host, options: &[&str]) -> Option<Valkey> {
    let valkey = Valkey::start(options)?;
    host.set("PROCESSING", "queue");
    host.set("QUEUE_URL", &valkey.url());
    Some(valkey)
}

fn refused(service: &Service, post: &Post) {
    let answer = service.post(post);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "queue_unavailable", "{answer:?}");
}

/// Run a test on a host with PostgreSQL and a stream, if both are available.
fn on_postgres(options: &[&str], test: fn(&mut Host, &Valkey)) {
    if let Some(mut host) = Host::with(Keeper::Postgres)
        && let Some(valkey) = with_stream(&mut host, options)
    {
        test(&mut host, &valkey);
    }
}

on_each_keeper!(webhooks_go_through_the_stream_and_leave_it, what_cannot_be_applied_is_kept_in_the_database,);

fn webhooks_go_through_the_stream_and_leave_it(host: &mut Host) {
    let Some(valkey) = with_stream(host, &[]) else { return };
    let service = host.serve();
    let delivery = created("user_1");
    let answer = service.post(&delivery);
    assert_eq!(answer.json(), json!({ "status": "queued", "event": "user.created", "id": delivery.id }));
    eventually("applied", || host.count("users") == 1 && valkey.entries() == 0);
    let outcome = format!("SELECT outcome FROM processed_webhooks WHERE svix_id = '{}'", delivery.id);
    assert_eq!(host.value(&outcome), "applied");

    // A repeated delivery is not applied again; a late one changes nothing; an event of no synced kind is recorded.
    queued(&service, &delivery);
    let late = post(&user("user.updated", "user_1", 1000, "Late"));
    let other = Post::new(r#"{"type":"email.created","object":"event","data":{"id":"ema_1"}}"#);
    for post in [&late, &other] {
        queued(&service, post);
    }
    eventually("processed", || valkey.entries() == 0 && host.count("processed_webhooks") == 3);
    for (post, outcome) in [(&late, "stale"), (&other, "ignored"), (&delivery, "applied")] {
        let known = format!("SELECT outcome FROM processed_webhooks WHERE svix_id = '{}'", post.id);
        assert_eq!(host.value(&known), outcome);
    }
    assert_eq!(host.count("audit_log"), 1);

    queued(&service, &post(&deletion("user_1", milliseconds())));
    eventually("deleted", || host.count("users") == 0 && valkey.entries() == 0);
    queued(&service, &post(&user("user.updated", "user_1", milliseconds(), "Back")));
    eventually("processed", || valkey.entries() == 0 && host.count("processed_webhooks") == 5);
    assert_eq!((host.count("users"), host.count("webhook_queue")), (0, 0));
    for (name, expected) in [
        (r#"clerk_sync_webhooks_total{event="user.created",outcome="queued",kind="user"}"#, 2.0),
        (r#"clerk_sync_queue_processed_total{outcome="applied",kind="user"}"#, 2.0),
        (r#"clerk_sync_queue_processed_total{outcome="duplicate",kind="user"}"#, 1.0),
        (r#"clerk_sync_queue_processed_total{outcome="stale",kind="user"}"#, 2.0),
    ] {
        assert_eq!(service.metric(name), Some(expected), "{name}");
    }
    eventually("counted", || service.metric("clerk_sync_stream_depth") == Some(0.0));
    assert_eq!(service.metric("clerk_sync_stream_oldest_seconds"), Some(0.0));
    assert!(
        service.metric("clerk_sync_stream_confirm_duration_seconds_count").is_some_and(|count| count >= 5.0)
    );
    assert!(!service.log().contains("Lovelace"), "{}", service.log());
    service.stop();
}

fn what_cannot_be_applied_is_kept_in_the_database(host: &mut Host) {
    let Some(valkey) = with_stream(host, &[]) else { return };
    host.set("CLERK_INSTANCE_ID", crate::service::INSTANCE);
    let service = host.serve();
    host.refuse_first_name("Refused");
    let refused = post(&user("user.created", "user_1", milliseconds(), "Refused"));
    let unusable = Post::new(r#"{"type":"user.created","data":{"id":7,"name":"Lovelace"}}"#);
    for post in [&refused, &unusable, &created("user_2")] {
        queued(&service, post);
    }
    eventually("processed", || valkey.entries() == 0 && host.count("webhook_queue") == 2);
    let state =
        |post: &Post| host.value(&format!("SELECT state FROM webhook_queue WHERE svix_id = '{}'", post.id));
    assert_eq!((state(&refused).as_str(), state(&unusable).as_str()), ("pending", "dead"));
    assert_eq!(host.value("SELECT clerk_id FROM users"), "user_2");
    host.allow_first_names();
    eventually("tried again and applied", || host.count("users") == 2);
    service.stop();
}

#[test]
fn what_cannot_even_be_kept_stays_in_the_stream_until_it_can() {
    on_postgres(&[], |host, valkey| {
        let service = host.serve();
        host.refuse_first_name("Refused");
        host.sql(
            "CREATE FUNCTION hinder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$;
             CREATE TRIGGER hinder BEFORE INSERT ON webhook_queue FOR EACH ROW EXECUTE FUNCTION hinder()",
        );
        let refused = post(&user("user.created", "user_1", milliseconds(), "Refused"));
        queued(&service, &refused);
        queued(&service, &created("user_2"));
        eventually("the other one is applied", || host.count("users") == 1 && valkey.entries() == 1);
        // Until a transaction keeps the failed delivery, the stream is the only place that has it.
        assert_eq!((host.count("webhook_queue"), host.count("processed_webhooks")), (0, 1));
        service.kill();
        let service = host.serve();
        assert_eq!(valkey.entries(), 1);
        host.sql("DROP TRIGGER hinder ON webhook_queue");
        eventually("kept", || valkey.entries() == 0 && host.count("webhook_queue") == 1);
        assert_eq!(host.value("SELECT svix_id FROM webhook_queue"), refused.id);
        host.allow_first_names();
        eventually("tried again and applied", || host.count("users") == 2);
        service.stop();
    });
}

#[test]
fn what_waits_in_the_stream_is_counted_by_stats() {
    on_postgres(&[], |host, valkey| {
        let counted = |host: &Host| -> Value {
            serde_json::from_str(&host.run(&["stats", "--json"]).succeeded()).expect("JSON")
        };
        let receiver = host.serve_with(&["--no-worker"]);
        assert_eq!(counted(host)["stream"], json!({ "length": 0, "pending": 0, "oldest_at": null }));
        let before = milliseconds();
        for number in 0..3 {
            queued(&receiver, &created(&format!("user_{number}")));
        }
        let key = "clerk-sync:{webhooks}";
        valkey.ask(&["XREADGROUP", "GROUP", "clerk-sync", "workers", "COUNT", "2", "STREAMS", key, ">"]);
        let stats = counted(host);
        let stream = &stats["stream"];
        assert_eq!((&stream["length"], &stream["pending"]), (&json!(3), &json!(2)), "{stats:#}");
        let oldest: DateTime<Utc> = stream["oldest_at"].as_str().expect("a time").parse().expect("a time");
        assert!((before..=milliseconds()).contains(&oldest.timestamp_millis()), "{stats:#}");
        let text = host.run(&["stats"]).succeeded();
        let line = text.lines().find(|line| line.starts_with("Stream")).expect("a line");
        assert!(line.contains("3 waiting, 2 of them claimed by a worker, the oldest for "), "{line}");

        // The counts of the database are still printed.
        valkey.kill();
        let stats = counted(host);
        let error = stats["stream"]["error"].as_str().expect("an error");
        assert!(error.contains("connection refused"), "{error}");
        assert_eq!(stats["queue"], json!({ "pending": 0, "dead": 0 }));
        let text = host.run(&["stats"]).succeeded();
        assert!(text.contains("Stream     not counted: the server that QUEUE_URL names"), "{text}");
        receiver.stop();
    });
}

#[test]
fn a_receiver_needs_no_database_and_a_worker_applies_what_it_took_in() {
    on_postgres(&[], |host, valkey| {
        let address = host.postgres_address();
        let away = Proxy::to(address, Mode::Refuse, Duration::ZERO);
        let url = host.get("DATABASE_URL").to_owned();
        host.reach_server_at(away.address);
        let receiver = host.begin(&["--no-worker"]);
        eventually("ready", || receiver.status("/readyz") == Some(200));
        assert_eq!(
            receiver.get("/readyz").json(),
            json!({ "status": "ready", "database": "database_unavailable" })
        );
        for number in 0..20 {
            queued(&receiver, &created(&format!("user_{number}")));
        }
        assert_eq!(valkey.entries(), 20);
        // A worker needs the database, and gives up after waiting for it.
        host.set("DATABASE_WAIT_SECONDS", "1");
        let finished = host.run(&["worker"]);
        assert_eq!(finished.code, Some(69), "{}", finished.stderr);
        host.set("DATABASE_URL", &url);
        let worker = host.work();
        eventually("applied", || valkey.entries() == 0 && host.count("users") == 20);
        worker.stop();
        receiver.stop();
    });
}

#[test]
fn a_service_that_starts_without_its_database_applies_once_it_is_there() {
    on_postgres(&[], |host, valkey| {
        let proxy = Proxy::to(host.postgres_address(), Mode::Refuse, Duration::ZERO);
        host.reach_server_at(proxy.address);
        let service = host.begin(&[]);
        eventually("ready", || service.status("/readyz") == Some(200));
        queued(&service, &created("user_1"));
        assert_eq!(valkey.entries(), 1);
        proxy.set(Mode::Pass);
        eventually("applied", || valkey.entries() == 0 && host.count("users") == 1);
        eventually("ready, including the database", || {
            service.get("/readyz").json() == json!({ "status": "ready" })
        });
        service.stop();
    });
}

#[test]
fn of_another_instance_nothing_is_applied_also_if_only_the_worker_can_know() {
    on_postgres(&[], |host, valkey| {
        host.set("CLERK_INSTANCE_ID", "any");
        let receiver = host.serve_with(&["--no-worker"]);
        let mut stranger = user("user.created", "user_1", milliseconds(), "Ada");
        stranger["instance_id"] = json!("ins_2anotherinstanceanotherinsta");
        queued(&receiver, &post(&stranger));
        host.set("CLERK_INSTANCE_ID", crate::service::INSTANCE);
        let worker = host.work();
        eventually("processed", || valkey.entries() == 0 && host.count("webhook_queue") == 1);
        assert_eq!(
            (host.value("SELECT state FROM webhook_queue").as_str(), host.count("users")),
            ("dead", 0)
        );
        worker.stop();
        receiver.stop();
    });
}

#[test]
fn of_another_instance_nothing_comes_in_once_the_instance_is_known() {
    on_postgres(&[], |host, valkey| {
        let service = host.serve();
        let mut known = user("user.created", "user_1", milliseconds(), "Ada");
        known["instance_id"] = json!(crate::service::INSTANCE);
        queued(&service, &post(&known));
        eventually("applied", || valkey.entries() == 0 && host.count("users") == 1);
        let mut stranger = user("user.created", "user_2", milliseconds(), "Ada");
        stranger["instance_id"] = json!("ins_2anotherinstanceanotherinsta");
        let answer = service.post(&post(&stranger));
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (403, Some("wrong_instance")));
        service.stop();
    });
}

#[test]
fn an_account_needs_no_more_commands_than_the_documentation_names() {
    on_postgres(&[], |host, valkey| {
        let page =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/queue.md")).expect("a page");
        let rules =
            page.split('`').find(|code| code.starts_with("~clerk-sync:*")).expect("the rules of the account");
        let rules: Vec<&str> = rules.split_whitespace().collect();
        let user = [&["ACL", "SETUSER", "narrow", "on", ">s3cret"][..], &rules].concat();
        assert_eq!(valkey.ask(&user), "+OK");
        host.set("QUEUE_URL", &format!("redis://narrow:s3cret@127.0.0.1:{}", valkey.port));
        let service = host.serve();
        queued(&service, &created("user_1"));
        eventually("applied", || valkey.entries() == 0 && host.count("users") == 1);
        eventually("counted", || service.metric("clerk_sync_stream_depth") == Some(0.0));
        assert!(!service.log().contains("refuses"), "{}", service.log());
        service.stop();
        host.set("QUEUE_URL", &format!("redis://narrow:wrong@127.0.0.1:{}", valkey.port));
        let started = host.run(&["serve"]);
        assert_eq!(started.code, Some(78), "{}", started.stderr);
        assert!(!started.stderr.contains("wrong@"), "{}", started.stderr);
    });
}

#[test]
fn a_service_that_may_not_do_all_that_it_must_does_not_start() {
    const ALL: [&str; 10] = [
        "+xadd",
        "+xlen",
        "+xdel",
        "+xack",
        "+xrange",
        "+xpending",
        "+xreadgroup",
        "+xautoclaim",
        "+xgroup",
        "+waitaof",
    ];
    on_postgres(&[], |host, valkey| {
        host.set("QUEUE_URL", &format!("redis://narrow:s3cret@127.0.0.1:{}", valkey.port));
        for left_out in ALL {
            let mut user = vec!["ACL", "SETUSER", "narrow", "reset", "on", ">s3cret", "~*"];
            user.extend(["+set", "+info", "+multi", "+exec"]);
            user.extend(ALL.iter().filter(|command| **command != left_out));
            assert_eq!(valkey.ask(&user), "+OK");
            let started = host.run(&["serve"]);
            assert_eq!(started.code, Some(78), "{left_out}: {}", started.stderr);
            assert!(started.stderr.contains("NOPERM"), "{left_out}: {}", started.stderr);
        }
        // Another type of value is stored under the stream's key.
        host.set("QUEUE_URL", &valkey.url());
        valkey.ask(&["DEL", "clerk-sync:{webhooks}"]);
        let service = host.serve();
        valkey.ask(&["SET", "clerk-sync:{webhooks}", "something else"]);
        eventually("not ready", || service.status("/readyz") == Some(503));
        refused(&service, &created("user_1"));
        valkey.ask(&["DEL", "clerk-sync:{webhooks}"]);
        eventually("accepted", || service.post(&created("user_2")).status == 200);
        eventually("applied", || host.count("users") == 1);
        service.stop();
    });
}

#[test]
fn entries_that_nobody_can_read_hold_up_nothing() {
    on_postgres(&[], |host, valkey| {
        let receiver = host.serve_with(&["--no-worker"]);
        queued(&receiver, &created("user_1"));
        let many = "for i = 1, 20000 do redis.call('XADD', KEYS[1], '*', 'not', 'ours') end";
        valkey.ask(&["EVAL", many, "1", "clerk-sync:{webhooks}"]);
        queued(&receiver, &created("user_2"));
        let worker = host.work();
        eventually("applied", || host.count("users") == 2 && valkey.entries() == 20_000);
        let told = worker.log().lines().filter(|line| line.contains("cannot be read")).count();
        assert!((1..10).contains(&told), "logged {told} times");
        worker.stop();
        receiver.stop();
    });
}

#[test]
fn nothing_is_accepted_from_a_server_that_may_lose_it() {
    on_postgres(&[], |host, valkey| {
        let service = host.serve();
        queued(&service, &created("user_1"));
        for (setting, safe, unsafe_value, remedy) in [
            ("appendonly", "yes", "no", "appendonly yes"),
            ("maxmemory-policy", "noeviction", "allkeys-lru", "maxmemory-policy noeviction"),
        ] {
            assert_eq!(valkey.ask(&["CONFIG", "SET", setting, unsafe_value]), "+OK");
            refused(&service, &created("user_2"));
            eventually("not ready", || service.status("/readyz") == Some(503));
            let started = host.run(&["serve"]);
            assert_eq!(started.code, Some(78), "{}", started.stderr);
            assert!(started.stderr.contains(remedy), "{}", started.stderr);
            let doctor = host.run(&["doctor"]);
            assert!(doctor.stdout.contains(remedy), "{}", doctor.stdout);
            assert_eq!(valkey.ask(&["CONFIG", "SET", setting, safe]), "+OK");
            eventually("accepted", || service.post(&created("user_3")).status == 200);
        }
        service.stop();
        // With `trust`, the operator guarantees durability.
        assert_eq!(valkey.ask(&["CONFIG", "SET", "appendonly", "no"]), "+OK");
        host.set("QUEUE_DURABILITY", "trust");
        let service = host.serve();
        assert!(service.log().contains("QUEUE_DURABILITY=trust"), "{}", service.log());
        queued(&service, &created("user_4"));
        eventually("applied", || host.count("users WHERE clerk_id = 'user_4'") == 1);
        service.stop();
    });
}

#[test]
fn a_server_that_cannot_confirm_is_refused_at_the_start() {
    on_postgres(&["--rename-command", "WAITAOF", ""], |host, _| {
        let started = host.run(&["serve"]);
        assert_eq!(started.code, Some(78), "{}", started.stderr);
        assert!(started.stderr.contains("Redis 7.2 or Valkey 7.2"), "{}", started.stderr);
    });
}

#[test]
fn a_server_without_room_refuses_and_loses_nothing() {
    on_postgres(&["--maxmemory", "3mb"], |host, valkey| {
        let service = host.serve_with(&["--no-worker"]);
        let filler = "x".repeat(100_000);
        let mut accepted = 0;
        let refusal = loop {
            let mut event = user("user.created", &format!("user_{accepted}"), milliseconds(), "Ada");
            event["data"]["filler"] = json!(filler);
            let answer = service.post(&post(&event));
            if answer.status != 200 {
                break answer;
            }
            accepted += 1;
            assert!(accepted < 100, "the server never became full");
        };
        assert_eq!((refusal.status, refusal.json()["error"]["code"].as_str()), (503, Some("overloaded")));
        assert_eq!(valkey.entries(), accepted);
        let worker = host.work();
        eventually("applied", || valkey.entries() == 0 && host.count("users") == accepted);
        queued(&service, &created("user_late"));
        worker.stop();
        service.stop();
    });
}

#[test]
fn replicas_that_are_asked_for_must_confirm() {
    on_postgres(&[], |host, valkey| {
        host.set("QUEUE_REPLICAS", "1");
        host.set("DATABASE_WAIT_SECONDS", "1");
        let started = host.run(&["serve"]);
        assert_eq!(started.code, Some(69), "{}", started.stderr);
        assert!(started.stderr.contains("QUEUE_REPLICAS"), "{}", started.stderr);
        let Some(replica) = Valkey::start(&["--replicaof", "127.0.0.1", &valkey.port.to_string()]) else {
            return;
        };
        eventually("the replica has caught up", || {
            host.run(&["doctor"]).stdout.contains("confirmed entries are on disk")
        });
        let service = host.serve();
        queued(&service, &created("user_1"));
        replica.kill();
        refused(&service, &created("user_2"));
        service.stop();
    });
}

#[test]
fn sealed_bodies_are_read_by_nobody_without_the_key() {
    const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    on_postgres(&[], |host, valkey| {
        let plain = host.serve_with(&["--no-worker"]);
        queued(&plain, &post(&user("user.created", "user_plain", milliseconds(), "Plainname")));
        plain.stop();
        host.set("QUEUE_ENCRYPTION_KEY", ONE);
        let receiver = host.serve_with(&["--no-worker"]);
        queued(&receiver, &post(&user("user.created", "user_sealed", milliseconds(), "Sealedname")));
        receiver.stop();
        assert!(valkey.keeps("Plainname") && !valkey.keeps("Sealedname"));

        // With another key, the sealed entry stays and delays no other. With both keys, it is applied.
        host.set("QUEUE_ENCRYPTION_KEY", TWO);
        let worker = host.work();
        eventually("the plain one is applied", || host.count("users") == 1 && valkey.entries() == 1);
        assert!(worker.log().contains("QUEUE_ENCRYPTION_KEY"), "{}", worker.log());
        worker.stop();
        host.set("QUEUE_ENCRYPTION_KEY", &format!("{TWO},{ONE}"));
        let worker = host.work();
        eventually("applied", || host.count("users") == 2 && valkey.entries() == 0);
        worker.stop();
    });
}

#[test]
fn what_is_mistaken_in_the_settings_is_told() {
    let Some(mut host) = Host::with(Keeper::Sqlite) else { return };
    host.set("QUEUE_URL", "redis://127.0.0.1:1");
    let told = |host: &Host, what: &str| {
        let finished = host.run(&["serve"]);
        assert_eq!(finished.code, Some(78), "{}", finished.stderr);
        assert!(finished.stderr.contains(what), "{what}: {}", finished.stderr);
        assert!(!finished.stderr.contains("s3cret"), "{}", finished.stderr);
    };
    told(&host, "PROCESSING=queue");
    host.set("PROCESSING", "queue");
    for url in ["http://u:s3cret@h", "redis://u:s3cret@h:port", "s3cret"] {
        host.set("QUEUE_URL", url);
        told(&host, "QUEUE_URL");
    }
    host.set("QUEUE_URL", "redis://u:s3cret@127.0.0.1:1");
    for (variable, value) in
        [("QUEUE_ENCRYPTION_KEY", "s3cret"), ("QUEUE_DURABILITY", "perhaps"), ("QUEUE_REPLICAS", "-1")]
    {
        host.set(variable, value);
        told(&host, variable);
        host.unset(variable);
    }
    host.set("DATABASE_WAIT_SECONDS", "1");
    let finished = host.run(&["serve"]);
    assert_eq!(finished.code, Some(69), "{}", finished.stderr);
    assert!(finished.stderr.contains("connection refused") && !finished.stderr.contains("s3cret"));
}

/// The number of clients, and the time between two events of each. With `TEST_LOAD=full` they send 500 events a second,
/// as long as each is answered within 256 ms. Otherwise there are fewer clients.
fn clients() -> (usize, Duration) {
    (load(8, 128), Duration::from_millis(load(2, 256) as u64))
}

/// Send users from several clients until `stop` is set; each client sends one user per interval. Returns the ids of the
/// users whose creation was accepted, and the number of failures.
fn accepted_until(
    service: &Service,
    stop: &AtomicBool,
    (clients, every): (usize, Duration),
) -> (HashSet<String>, usize) {
    let (accepted, failed) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..clients {
            let (accepted, failed) = (&accepted, &failed);
            scope.spawn(move || {
                let (mut connection, mut next): (Option<Client>, _) = (None, Instant::now());
                for number in 0.. {
                    if stop.load(SeqCst) {
                        return;
                    }
                    let id = format!("user_{client}_{number}");
                    let post = created(&id);
                    let answer = connection
                        .take()
                        .map_or_else(|| Some(service.client()), Some)
                        .and_then(|mut client| client.post(&post).ok().map(|answer| (client, answer)));
                    match answer {
                        Some((client, answer)) if answer.status == 200 => {
                            accepted.lock().expect("not poisoned").insert(id);
                            connection = Some(client);
                        }
                        _ => _ = failed.fetch_add(1, SeqCst),
                    }
                    next += every;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
        }
    });
    (accepted.into_inner().expect("not poisoned"), failed.into_inner())
}

/// Assert that every accepted user exists and was written once. Prints their number.
fn all_are_there_once(host: &Host, valkey: &Valkey, accepted: &HashSet<String>) {
    eventually("the stream is empty", || valkey.entries() == 0);
    let there: HashSet<String> =
        host.sql("SELECT clerk_id FROM users").into_iter().map(|mut row| row.remove(0)).collect();
    let missing: Vec<&String> = accepted.difference(&there).collect();
    assert!(missing.is_empty(), "{} accepted are missing: {missing:?}", missing.len());
    assert_eq!(host.count("audit_log"), there.len(), "no user is written twice");
    let twice = "(SELECT clerk_id FROM processed_webhooks WHERE outcome = 'applied' GROUP BY clerk_id HAVING count(*) > 1) AS twice";
    assert_eq!(host.count(twice), 0);
    measured(&format!("{} accepted: 0 missing, 0 twice; {} users", accepted.len(), there.len()));
}

#[test]
fn while_the_database_is_away_every_webhook_is_accepted() {
    on_postgres(&[], |host, valkey| {
        let _alone = alone();
        let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
        host.reach_server_at(proxy.address);
        let service = host.serve();
        let stop = AtomicBool::new(false);
        let (accepted, failed) = thread::scope(|scope| {
            let sending = scope.spawn(|| accepted_until(&service, &stop, clients()));
            let _until = Until(&stop);
            eventually("applied", || host.count("users") > 20);
            proxy.set(Mode::Refuse);
            proxy.cut();
            let away = Duration::from_secs(load(8, 60) as u64);
            thread::sleep(away);
            let before = host.count("users");
            _ = writeln!(
                io::stderr(),
                "{} waited when the database came back after {away:?}",
                valkey.entries()
            );
            proxy.set(Mode::Pass);
            eventually("applied again", || host.count("users") > before);
            stop.store(true, SeqCst);
            sending.join().expect("the senders")
        });
        assert_eq!(failed, 0, "{} accepted", accepted.len());
        assert!(accepted.len() > load(100, 30_000), "{}", accepted.len());
        all_are_there_once(host, valkey, &accepted);
        service.stop();
    });
}

#[test]
fn workers_that_are_killed_under_load_lose_nothing_and_repeat_nothing() {
    on_postgres(&[], |host, valkey| {
        let _alone = alone();
        let receiver = host.serve_with(&["--no-worker"]);
        let stop = AtomicBool::new(false);
        let accepted = thread::scope(|scope| {
            let sending = scope.spawn(|| accepted_until(&receiver, &stop, clients()));
            let _until = Until(&stop);
            for kill in 0..load(6, 50) {
                let worker = host.work();
                thread::sleep(Duration::from_millis(150 + 37 * (kill as u64 % 7)));
                worker.kill();
            }
            assert!(host.count("users") > 0, "no worker lived long enough to apply anything");
            stop.store(true, SeqCst);
            sending.join().expect("the senders").0
        });
        let worker = host.work();
        all_are_there_once(host, valkey, &accepted);
        let reclaimed = worker.metric("clerk_sync_stream_reclaimed_total");
        assert!(reclaimed.is_some_and(|count| count > 0.0), "no worker was killed while it had entries");
        worker.stop();
        receiver.stop();
    });
}

#[test]
fn a_worker_that_dies_between_commit_and_acknowledgement_repeats_nothing() {
    on_postgres(&[], |host, valkey| {
        let receiver = host.serve_with(&["--no-worker"]);
        let proxy = Proxy::to(("127.0.0.1".to_owned(), valkey.port), Mode::Pass, Duration::ZERO);
        host.set("QUEUE_URL", &format!("redis://{}", proxy.address));
        let worker = host.work();
        let mut application = host.connect();
        application.run("BEGIN").expect("begun");
        application.run("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").expect("locked");
        queued(&receiver, &created("user_1"));
        let pending = "return redis.call('XPENDING', KEYS[1], 'clerk-sync')[1]";
        eventually("taken", || valkey.ask(&["EVAL", pending, "1", "clerk-sync:{webhooks}"]) == ":1");
        // From now on, nothing from this worker reaches the stream.
        proxy.set(Mode::Silent);
        application.run("COMMIT").expect("committed");
        eventually("applied", || host.count("users") == 1);
        assert_eq!(valkey.entries(), 1);
        worker.kill();
        host.set("QUEUE_URL", &valkey.url());
        let worker = host.work();
        all_are_there_once(host, valkey, &HashSet::from(["user_1".to_owned()]));
        assert_eq!(
            worker.metric(r#"clerk_sync_queue_processed_total{outcome="duplicate",kind="user"}"#),
            Some(1.0)
        );
        worker.stop();
        receiver.stop();
    });
}

#[test]
fn a_server_that_is_killed_or_cut_off_under_load_loses_nothing_that_was_accepted() {
    on_postgres(&["--appendfsync", "everysec"], |host, valkey| {
        let _alone = alone();
        let proxy = Proxy::to(("127.0.0.1".to_owned(), valkey.port), Mode::Pass, Duration::ZERO);
        host.set("QUEUE_URL", &format!("redis://{}", proxy.address));
        let service = host.serve();
        let stop = AtomicBool::new(false);
        let (accepted, failed) = thread::scope(|scope| {
            let sending = scope.spawn(|| accepted_until(&service, &stop, (16, Duration::ZERO)));
            let _until = Until(&stop);
            for _ in 0..load(3, 20) {
                thread::sleep(Duration::from_millis(700));
                valkey.kill();
                thread::sleep(Duration::from_millis(300));
                valkey.begin(&["--appendonly", "yes"]);
                eventually("accepted again", || service.post(&created("user_again")).status == 200);
                proxy.set(Mode::Refuse);
                proxy.cut();
                thread::sleep(Duration::from_millis(300));
                proxy.set(Mode::Pass);
                eventually("accepted again", || service.post(&created("user_again")).status == 200);
            }
            stop.store(true, SeqCst);
            sending.join().expect("the senders")
        });
        assert!(failed > 0 && accepted.len() > 50, "{failed} failed, {} accepted", accepted.len());
        all_are_there_once(host, valkey, &accepted);
        service.stop();
    });
}

#[test]
fn a_server_whose_disk_is_full_under_load_loses_nothing_that_was_accepted() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(valkey) = Valkey::on_small_disk(64) else { return };
    let disk = valkey.disk.as_ref().expect("it has its own");
    let _alone = alone();
    host.set("PROCESSING", "queue");
    host.set("QUEUE_URL", &valkey.url());
    let service = host.serve();
    let stop = AtomicBool::new(false);
    let (accepted, failed) = thread::scope(|scope| {
        let sending = scope.spawn(|| accepted_until(&service, &stop, (16, Duration::ZERO)));
        let _until = Until(&stop);
        for _ in 0..load(1, 10) {
            thread::sleep(Duration::from_millis(700));
            disk.fill();
            eventually("a full disk is noticed", || service.post(&created("user_again")).status == 503);
            refused(&service, &created("user_refused"));
            assert_eq!(service.status("/livez"), Some(200));
            eventually("not ready", || service.status("/readyz") == Some(503));
            disk.make_room();
            eventually("accepted again", || service.post(&created("user_again")).status == 200);
            eventually("ready", || service.status("/readyz") == Some(200));
        }
        stop.store(true, SeqCst);
        sending.join().expect("the senders")
    });
    assert!(failed > 0 && accepted.len() > 50, "{failed} failed, {} accepted", accepted.len());
    assert!(!service.log().contains("Lovelace"), "{}", service.log());
    all_are_there_once(&host, &valkey, &accepted);
    service.stop();
}

#[test]
fn a_service_that_is_asked_to_stop_leaves_nothing_half_done() {
    on_postgres(&[], |host, valkey| {
        let mut service = host.serve();
        for number in 0..200 {
            queued(&service, &created(&format!("user_{number}")));
        }
        service.terminate();
        assert_eq!(service.wait(Duration::from_secs(20)).code(), Some(0), "{}", service.log());
        let left = valkey.entries();
        assert_eq!(host.count("users") + left, 200, "applied webhooks have left the stream");
        let service = host.serve();
        eventually("applied", || valkey.entries() == 0 && host.count("users") == 200);
        service.stop();
    });
}
