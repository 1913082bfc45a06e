//! Tests over real sockets: what a sender sees, including slow, rude and greedy senders.
#![expect(clippy::disallowed_methods, reason = "a real socket has a real clock behind it")]

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, sync::Notify, task::JoinHandle};

use super::*;
use crate::{
    clerk::signature::Secret,
    entity::{self, USER},
    model::{DeletionPolicy, FieldSet, Idle, Selection},
    store::{
        Count, Database, ErrorKind, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener,
        Migration, MigrationStatus, Readiness, Result as Stored, Space, Statistics, Store, StoreError,
        sql::{Dialect, Purpose, Row as SqlRow, SqlDatabase, SqlTransaction, Statement, Value as Sql},
    },
    sync::{Limits, Rules, instance::Pin},
    telemetry::{self, LogFormat, tests::logged},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const GRACE: Duration = Duration::from_secs(5);

/// A store that only reports its readiness. `None`: it never answers. Queries about users fail in several ways.
struct FakeStore {
    ready: Mutex<Option<Stored<Readiness>>>,
    asked: AtomicUsize,
}

impl FakeStore {
    fn new(ready: Option<Stored<Readiness>>) -> Arc<Self> {
        Arc::new(Self { ready: Mutex::new(ready), asked: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Database for FakeStore {
    fn writers(&self) -> usize {
        1
    }
    async fn migrate(&self) -> Stored<Vec<Migration>> {
        unreachable!()
    }
    async fn migration_status(&self) -> Stored<Vec<MigrationStatus>> {
        unreachable!()
    }
    async fn ready(&self) -> Stored<Readiness> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let ready = self.ready.lock().expect("not poisoned").clone();
        match ready {
            Some(ready) => ready,
            None => std::future::pending().await,
        }
    }
    fn bell(&self) -> Arc<Notify> {
        Arc::default()
    }
    async fn listen(&self) -> Stored<Option<Box<dyn Listener>>> {
        Ok(None)
    }
    async fn space(&self) -> Stored<Space> {
        Err(StoreError::new(ErrorKind::Unavailable))
    }
    async fn estimate_standing(&self) -> Stored<Count> {
        unreachable!()
    }
    async fn foreign_table(&self, _: &str) -> Stored<ForeignTable> {
        unreachable!()
    }
    async fn foreign_rows(&self, _: &ForeignReading, _: Option<&str>, _: u32) -> Stored<Vec<ForeignRow>> {
        unreachable!()
    }
    async fn inspect(&self) -> Stored<Inspection> {
        unreachable!()
    }
    async fn statistics(&self, _: DateTime<Utc>) -> Stored<Statistics> {
        unreachable!()
    }
    async fn close(&self) {}
}

#[async_trait]
impl SqlDatabase for FakeStore {
    async fn session(&self, _: Purpose) -> Stored<Box<dyn SqlTransaction>> {
        Err(StoreError::new(ErrorKind::Unavailable))
    }

    async fn fetch(&self, _: Purpose, statement: &Statement, _: &[Sql<'_>]) -> Stored<Vec<SqlRow>> {
        let statement = statement.sql(Dialect::Postgres);
        if statement.contains("ORDER BY u.id LIMIT") {
            std::future::pending::<()>().await;
        }
        assert!(!statement.contains("RECURSIVE"), "jane@example.com");
        Err(StoreError::new(ErrorKind::Unavailable))
    }
}

/// A committer whose store is never available.
fn committer(store: &Arc<dyn Store>) -> Committer {
    static LANES: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("runtime"));
    let _inside = LANES.enter();
    let rules = Rules::new(FieldSet::ALL, DeletionPolicy::Auto);
    let clock: Clock = Arc::new(Utc::now);
    let (committer, lanes) = Committer::start(store, None, &rules, Limits::default(), &clock);
    // The lanes run as long as the tests.
    std::mem::forget(lanes);
    committer
}

fn gate(pin: Pin) -> Arc<Gate> {
    Arc::new(Gate::new(pin, FakeStore::new(None), Arc::new(Utc::now)))
}

fn app(store: Arc<FakeStore>) -> App {
    App {
        verifier: Verifier::new(vec![Secret::parse(SECRET).expect("secret")], 300),
        committer: committer(&(Arc::clone(&store) as Arc<dyn Store>)),
        probe: Probe::new(Arc::clone(&store) as Arc<dyn Store>, Idle::Normal),
        gauges: Arc::new(Gauges::new(
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::new(Utc::now),
            Idle::Quiet,
            &[],
        )),
        api: Api::new(store, entity::ALL, Some("t0ken"), None),
        scrapers: Scrapers::default(),
        bodies: Bodies::new(1_048_576),
        answers: Answers::default(),
        resends: Resends::default(),
        sinks: Vec::new(),
        dashboard: Dashboard::new(Some("t0ken")),
        addresses: Addresses::default(),
        selection: Selection::of(&USER, FieldSet::ALL),
        gate: gate(Pin::FirstSeen),
        stream: None,
        clock: Arc::new(Utc::now),
        answer_within: ANSWER_WITHIN,
        shutdown: CancellationToken::new(),
    }
}

fn ready_app() -> App {
    app(FakeStore::new(Some(Ok(Readiness::Ready))))
}

/// A running listener that ends with the test.
struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    runtime: Runtime,
}

impl Server {
    fn start(routes: Routes, limits: ConnectionLimits, grace: Duration) -> Self {
        let runtime = Runtime::new().expect("runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("free port");
        let address = listener.local_addr().expect("address");
        let shutdown = CancellationToken::new();
        let serving = runtime.spawn(serve(listener, routes, limits, shutdown.clone(), grace));
        Self { address, shutdown, serving, runtime }
    }

    fn of(app: App) -> Self {
        Self::start(public_routes(Arc::new(app)), ConnectionLimits::default(), GRACE)
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("connect");
        // Longer than any answer takes, even while a request is held because the database is unavailable.
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("timeout");
        Client(stream)
    }

    fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request.as_bytes());
        client.answer().expect("an answer")
    }

    /// Shut down; returns how long it took.
    fn stop(self) -> Duration {
        let started = Instant::now();
        self.shutdown.cancel();
        self.runtime.block_on(self.serving).expect("no panic");
        started.elapsed()
    }
}

struct Client(TcpStream);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("a JSON body");
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        assert!(self.headers.contains_key("x-request-id"), "{self:?}");
        body["error"]["code"].as_str().expect("a code").to_owned()
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("write");
    }

    /// The next answer; `None` if the connection ends without one.
    fn answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.0.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Ok(_) => return None,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("status");
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().expect("length"));
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("body");
        Some(Answer { status, headers, body: String::from_utf8(body).expect("text") })
    }

    fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// The log output of work on this thread.
fn logged_by(work: impl AsyncFnOnce()) -> Vec<Value> {
    let log = logged(LogFormat::Json, "info", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(work());
    });
    log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

fn signed(body: &str, more_headers: &str) -> String {
    let now = Utc::now();
    let signature = Secret::parse(SECRET).expect("secret").sign("msg_1", now, body.as_bytes());
    format!(
        "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nsvix-id: msg_1\r\nsvix-timestamp: {}\r\nsvix-signature: \
         {signature}\r\n{more_headers}content-length: {}\r\n\r\n{body}",
        now.timestamp(),
        body.len()
    )
}

#[test]
fn slow_and_silent_peers_are_closed_after_five_seconds_and_those_between_two_requests_are_kept() {
    let server = Server::of(ready_app());
    let closed_after = |mut client: Client, trickle: bool| {
        let started = Instant::now();
        client.0.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
        while !client.is_closed() {
            assert!(started.elapsed() < Duration::from_millis(6500), "still open");
            if trickle {
                _ = client.0.write(b"x");
            }
        }
        assert!(started.elapsed() > Duration::from_secs(4), "closed too early");
    };
    let kept = || {
        let mut client = server.connect();
        client.send(get("/livez").as_bytes());
        assert_eq!(client.answer().expect("an answer").status, 200);
        client
    };
    thread::scope(|scope| {
        let silent = server.connect();
        scope.spawn(|| closed_after(silent, false));
        let mut slow = server.connect();
        slow.send(b"GET /livez HTTP/1.1\r\nhost: ");
        scope.spawn(|| closed_after(slow, true));
        let mut slow_later = kept();
        slow_later.send(b"GET /livez HTTP/1.1\r\nhost: ");
        scope.spawn(|| closed_after(slow_later, true));
        let mut idle = kept();
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(6500));
            idle.send(get("/livez").as_bytes());
            assert_eq!(idle.answer().expect("an answer after the silence").status, 200);
        });
    });
}

#[test]
fn proxies_that_close_after_a_minute_of_silence_close_first() {
    assert_eq!(ConnectionLimits::default().idle_within, Duration::from_secs(75));
    let limits = ConnectionLimits { idle_within: Duration::from_secs(2), ..ConnectionLimits::default() };
    let server = Server::start(public_routes(Arc::new(ready_app())), limits, GRACE);
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(get("/livez").as_bytes());
        assert_eq!(client.answer().expect("an answer").status, 200);
        thread::sleep(Duration::from_millis(700));
    }
    let started = Instant::now();
    assert!(client.is_closed(), "the silence does not end");
    assert!(started.elapsed() > Duration::from_millis(500), "counted from before the last answer");
}

#[test]
fn a_trickled_body_is_answered_408_and_closed() {
    let mut app = ready_app();
    app.bodies.within = Duration::from_secs(1);
    let server = Server::of(app);
    let mut client = server.connect();
    let started = Instant::now();
    client.send(signed("", "").replace("content-length: 0", "content-length: 1000").as_bytes());
    let mut trickle = client.0.try_clone().expect("clone");
    thread::scope(|scope| {
        scope.spawn(move || {
            while trickle.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.code().as_str()), (408, "body_timeout"));
        assert_eq!(answer.headers["connection"], "close");
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(client.is_closed());
    });
    assert!(started.elapsed() < Duration::from_secs(5), "the trickle was endured for too long");
}

#[test]
fn a_sender_that_writes_everything_before_it_reads_sees_413() {
    let server = Server::of(ready_app());
    let body = vec![b'x'; 3 * 1024 * 1024];
    let mut announced = server.connect();
    announced.send(
        format!("POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len())
            .as_bytes(),
    );
    announced.send(&body);
    let mut chunked = server.connect();
    chunked.send(signed("", "").replace("content-length: 0", "transfer-encoding: chunked").as_bytes());
    chunked.send(b"300000\r\n");
    chunked.send(&body);
    chunked.send(b"\r\n0\r\n\r\n");
    for mut client in [announced, chunked] {
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
        assert!(client.is_closed());
    }
}

#[test]
fn a_sender_that_asks_first_is_told_at_once_that_its_body_is_too_large() {
    let server = Server::of(ready_app());
    let started = Instant::now();
    let answer = server.ask(
        "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 3000000\r\n\r\n",
    );
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert!(started.elapsed() < Duration::from_secs(1));
    let answer =
        server.ask(&signed("", "expect: 100-continue\r\n").replace("content-length: 0", "content-length: 3"));
    assert_eq!(answer.status, 100);
}

#[test]
fn what_its_head_gives_away_is_answered_before_the_body_and_closes_the_connection() {
    let server = Server::of(ready_app());
    let unsigned = "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n".to_owned();
    let head = signed("", "").replace("content-length: 0", "content-length: 9");
    let changed = |what: &str| {
        let now = Utc::now().timestamp();
        let before =
            head.split("svix-timestamp: ").nth(1).and_then(|rest| rest.split('\r').next()).expect("one");
        head.replace(
            &format!("svix-timestamp: {before}"),
            &format!(
                "svix-timestamp: {}",
                match what {
                    "late" => (now - 301).to_string(),
                    other => other.to_owned(),
                }
            ),
        )
    };
    let cases = [
        (unsigned, "missing_headers"),
        (changed("yesterday"), "invalid_timestamp"),
        (changed("late"), "timestamp_out_of_tolerance"),
    ];
    for (head, code) in cases {
        // The body never arrives.
        let mut client = server.connect();
        let started = Instant::now();
        client.send(head.as_bytes());
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.code().as_str()), (400, code));
        assert_eq!(answer.headers["connection"], "close", "{code}");
        assert!(started.elapsed() < Duration::from_secs(3), "{code}");
        assert!(client.is_closed());
    }
}

#[test]
fn a_head_that_is_too_large_is_answered_431() {
    let server = Server::of(ready_app());
    let filler = "x".repeat(200_000);
    let answer = server.ask(&format!("GET /livez HTTP/1.1\r\nhost: test\r\nfiller: {filler}\r\n\r\n"));
    assert_eq!(answer.status, 431);
}

#[test]
fn what_is_not_there_is_said_in_json() {
    let server = Server::of(ready_app());
    let answer = server.ask(&get("/nowhere"));
    assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"));
    let answer = server.ask(&get("/metrics"));
    assert_eq!(answer.status, 404);
    for path in ["/webhooks/clerk", "/api/webhooks/clerk"] {
        let answer = server.ask(&get(path));
        assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
        assert_eq!(answer.headers["allow"], "POST");
    }
    let answer = server.ask("DELETE /livez HTTP/1.1\r\nhost: test\r\n\r\n");
    assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, "GET,HEAD"));
}

#[test]
fn a_request_keeps_its_name_if_that_is_sane() {
    let server = Server::of(ready_app());
    let named = |name: &str| {
        let answer =
            server.ask(&format!("GET /livez HTTP/1.1\r\nhost: test\r\nx-request-id: {name}\r\n\r\n"));
        answer.headers["x-request-id"].clone()
    };
    assert_eq!(named("abc-1.2_3"), "abc-1.2_3");
    for strange in ["<script>", "", "a b", &"x".repeat(129)] {
        let made = named(strange);
        assert_eq!(made.len(), 32, "{made}");
    }
    assert_ne!(named(""), named(""));
}

#[test]
fn a_webhook_is_refused_for_the_first_reason_that_applies() {
    let body = r#"{"type":"user.deleted","data":{"id":"user_1"},"instance_id":"ins_other"}"#;
    let ask = |change: &dyn Fn(&mut App), request: &str| {
        let mut app = ready_app();
        change(&mut app);
        let answer = Server::of(app).ask(request);
        (answer.status, answer.code())
    };
    let closed = |app: &mut App| {
        app.addresses.allowed = Some(vec!["203.0.113.0/24".parse().expect("net")]);
        app.addresses.trusted_proxies = vec!["127.0.0.0/8".parse().expect("net")];
    };
    assert_eq!(ask(&closed, &signed(body, "")), (403, "address_not_allowed".to_owned()));
    let forwarded = "x-forwarded-for: 203.0.113.9, 198.51.100.1\r\n";
    assert_eq!(ask(&closed, &signed(body, forwarded)), (403, "address_not_allowed".to_owned()));
    let unsigned = "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nx-forwarded-for: 203.0.113.9\r\n\
                    content-length: 2\r\n\r\n{}";
    assert_eq!(ask(&closed, unsigned), (400, "missing_headers".to_owned()));
    let forged = signed(body, "").replace("user_1", "user_2");
    assert_eq!(ask(&|_| {}, &forged), (400, "invalid_signature".to_owned()));
    let pinned = |app: &mut App| app.gate = gate(Pin::of(Some("ins_ours")));
    assert_eq!(ask(&pinned, &signed(body, "")), (403, "wrong_instance".to_owned()));
}

#[test]
fn a_webhook_that_cannot_be_committed_now_is_asked_for_again() {
    let mut app = ready_app();
    app.gate = gate(Pin::of(Some("ins_ours")));
    let server = Server::of(app);
    for body in [r#"{"type":"user.deleted","data":{"id":"user_1"}}"#, "not even JSON"] {
        let answer = server.ask(&signed(body, ""));
        assert_eq!(answer.status, 503);
        assert!(["overloaded", "database_unavailable"].contains(&answer.code().as_str()));
        assert!(answer.headers["retry-after"].parse::<u32>().expect("seconds") <= 5);
    }
}

#[test]
fn readiness_is_what_the_database_says_but_liveness_is_not() {
    let cases = [
        (Some(Ok(Readiness::Ready)), (200, None)),
        (Some(Ok(Readiness::SchemaNotCurrent)), (503, Some("schema_not_current"))),
        (Some(Ok(Readiness::ReadOnly)), (503, Some("database_unavailable"))),
        (Some(Err(StoreError::schema("a column is missing".to_owned()))), (503, Some("schema_not_current"))),
        (Some(Err(StoreError::new(ErrorKind::Unavailable))), (503, Some("database_unavailable"))),
        (None, (503, Some("database_unavailable"))),
    ];
    for (ready, (status, code)) in cases {
        let server = Server::of(app(FakeStore::new(ready)));
        let started = Instant::now();
        for path in ["/readyz", "/healthz"] {
            let answer = server.ask(&get(path));
            assert_eq!(answer.status, status);
            assert_eq!(code.map(|_| answer.code()).as_deref(), code);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "the second must share the first one's answer");
        assert_eq!(server.ask(&get("/livez")).status, 200);
    }
    let app = ready_app();
    app.shutdown.cancel();
    let answer = Server::of(app).ask(&get("/readyz"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "shutting_down"));
}

#[test]
fn the_log_says_once_why_the_database_cannot_be_used() {
    let closed_door = StoreError {
        code: Some("28P01".to_owned()),
        place: Some("the server refuses the user or the password of DATABASE_URL".to_owned()),
        ..StoreError::new(ErrorKind::Unavailable)
    };
    for (ready, cause) in
        [(Some(Err(closed_door)), "(28P01): the server refuses"), (None, "no answer within")]
    {
        let probe = Probe::new(FakeStore::new(ready), Idle::Normal);
        let lines = logged_by(async || {
            for _ in 0..2 {
                assert_eq!(probe.clone().ask().await, Some(Problem::DatabaseUnavailable));
                tokio::time::sleep(Duration::from_millis(300)).await; // its answer has expired
            }
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(
            (&lines[0]["message"], &lines[0]["reason"]),
            (&json!("not ready"), &json!("database_unavailable"))
        );
        assert!(lines[0]["error"].as_str().is_some_and(|error| error.contains(cause)), "{lines:?}");
    }
}

#[test]
fn many_probes_ask_the_database_seldom() {
    let store = FakeStore::new(Some(Ok(Readiness::Ready)));
    let server = Server::of(app(Arc::clone(&store)));
    let started = Instant::now();
    let mut client = server.connect();
    for _ in 0..50 {
        client.send(get("/readyz").as_bytes());
        assert_eq!(client.answer().expect("an answer").body, r#"{"status":"ready"}"#);
    }
    let most = 1 + started.elapsed().as_millis() / 250;
    assert!(store.asked.load(Ordering::SeqCst) as u128 <= most);
}

#[test]
fn the_private_listener_shows_metrics_and_no_webhooks() {
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let routes = private_routes(Arc::new(ready_app()), prometheus);
    let server = Server::start(routes, ConnectionLimits::default(), GRACE);
    let answer = server.ask(&get("/metrics"));
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "text/plain; version=0.0.4"));
    assert_eq!(server.ask(&get("/readyz")).status, 200);
    assert_eq!(server.ask(&signed("{}", "")).status, 404);
}

#[test]
fn metrics_ask_for_a_token_once_there_is_one_for_them() {
    let page = |scrapers: Scrapers, authorization: &str| {
        let prometheus = PrometheusBuilder::new().build_recorder().handle();
        let routes = private_routes(Arc::new(App { scrapers, ..ready_app() }), prometheus);
        let server = Server::start(routes, ConnectionLimits::default(), GRACE);
        server.ask(&format!("GET /metrics HTTP/1.1\r\nhost: test\r\n{authorization}\r\n"))
    };
    let closed = || Scrapers::new(Some("m3trics"));
    // The token of the private API gives access to more, so `/metrics` accepts it too.
    for authorization in ["authorization: Bearer m3trics\r\n", "authorization: Bearer t0ken\r\n"] {
        assert_eq!(page(closed(), authorization).status, 200, "{authorization}");
    }
    for authorization in ["", "authorization: Bearer m3tric\r\n", "authorization: Basic m3trics\r\n"] {
        let answer = page(closed(), authorization);
        assert_eq!((answer.status, answer.code().as_str()), (401, "unauthorized"), "{authorization}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    assert_eq!(page(Scrapers::new(None), "").status, 200);
}

#[test]
fn whoever_guesses_at_the_metrics_has_to_wait() {
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let app = App { scrapers: Scrapers::new(Some("m3trics")), ..ready_app() };
    let server = Server::start(private_routes(Arc::new(app), prometheus), ConnectionLimits::default(), GRACE);
    let show = |token| {
        let began = Instant::now();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\n\r\n");
        (server.ask(&request).status, began.elapsed() >= Duration::from_millis(900))
    };
    for _ in 0..30 {
        assert_eq!(show("t0kem").0, 401);
    }
    assert_eq!(show("t0kem"), (401, true));
    // A program with the right token may have the same address.
    assert_eq!(show("m3trics").0, 200);
}

#[test]
fn the_private_api_answers_whatever_the_database_does() {
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let app = App { answer_within: Duration::from_millis(300), ..ready_app() };
    let routes = private_routes(Arc::new(app), prometheus);
    let server = Server::start(routes, ConnectionLimits::default(), GRACE);
    let get = |path: &str| {
        server.ask(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer t0ken\r\n\r\n"))
    };
    let unreachable = get("/v1/users/user_1");
    assert_eq!((unreachable.status, unreachable.code().as_str()), (503, "database_unavailable"));
    assert!(unreachable.headers.contains_key("retry-after"));
    let started = Instant::now();
    let silent = get("/v1/users");
    assert_eq!((silent.status, silent.code().as_str()), (503, "database_unavailable"));
    assert!(started.elapsed() < Duration::from_secs(2));
    let broken = get("/v1/signups");
    assert_eq!((broken.status, broken.code().as_str()), (500, "internal_error"));
    assert!(!broken.body.contains("jane"));
}

#[test]
fn few_read_at_a_time_and_the_others_are_told_to_come_back() {
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let app = App { answer_within: Duration::from_millis(600), ..ready_app() };
    let routes = private_routes(Arc::new(app), prometheus);
    let server = Server::start(routes, ConnectionLimits::default(), GRACE);
    // This store never answers, so the requests stay open.
    let request = "GET /v1/users HTTP/1.1\r\nhost: test\r\nauthorization: Bearer t0ken\r\n\r\n";
    let mut clients: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(request.as_bytes());
    }
    let codes: Vec<String> =
        clients.iter_mut().map(|client| client.answer().expect("an answer").code()).collect();
    assert!(codes.iter().any(|code| code == "database_unavailable"), "{codes:?}");
    assert!(codes.iter().any(|code| code == "overloaded"), "{codes:?}");
}

#[test]
fn a_panic_is_answered_without_its_message_and_harms_nobody_else() {
    let routes = Router::new()
        .route("/panic", axum::routing::get(async || -> Response { panic!("jane@example.com") }))
        .route("/fine", axum::routing::get(async || "fine"));
    let server = Server::start(Routes::new(routes), ConnectionLimits::default(), GRACE);
    let mut client = server.connect();
    client.send(get("/panic").as_bytes());
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.code().as_str()), (500, "internal_error"));
    assert!(!format!("{answer:?}").contains("jane"));
    client.send(get("/fine").as_bytes());
    assert_eq!(client.answer().expect("an answer").body, "fine");
}

/// The log output while routes panic and answer a request with 500.
fn logged_by_panic(routes: Routes, request: axum::http::request::Builder) -> Vec<Value> {
    let before = std::panic::take_hook();
    telemetry::tell_panics();
    let lines = logged_by(async || {
        let answer = routes.answer(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(answer.status(), 500);
    });
    std::panic::set_hook(before);
    assert!(!format!("{lines:?}").contains("jane"), "{lines:?}");
    lines
}

#[test]
fn a_panic_is_reported_once_with_its_place_its_route_and_the_name_of_the_request() {
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let request = Request::get("/v1/signups").header("authorization", "Bearer t0ken");
    let lines = logged_by_panic(
        private_routes(Arc::new(ready_app()), prometheus),
        request.header("x-request-id", "named-1"),
    );
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["level"], &lines[0]["route"]), (&json!("ERROR"), &json!("/v1/signups")));
    assert_eq!(lines[0]["request_id"], "named-1");
    assert!(lines[0]["place"].as_str().is_some_and(|place| place.contains("src/http/tests.rs")), "{lines:?}");

    // The webhook still has its usual log line; that line does not mention the panic.
    let mut app = ready_app();
    let is_first = AtomicBool::new(true);
    app.clock = Arc::new(move || {
        assert!(!is_first.swap(false, Ordering::SeqCst), "jane@example.com");
        Utc::now()
    });
    let request = Request::post("/webhooks/clerk").header("x-request-id", "named-2");
    let peer: SocketAddr = "192.0.2.1:4444".parse().expect("an address");
    let lines =
        logged_by_panic(public_routes(Arc::new(app)), request.extension(axum::extract::ConnectInfo(peer)));
    let told: Vec<_> =
        lines.iter().map(|line| (&line["level"], &line["request_id"], &line["message"])).collect();
    let [report, webhook] = [("ERROR", "a task panicked: please report this"), ("WARN", "webhook")]
        .map(|(level, message)| (json!(level), json!("named-2"), json!(message)));
    assert_eq!(told, [(&report.0, &report.1, &report.2), (&webhook.0, &webhook.1, &webhook.2)]);
    assert_eq!(lines[0]["route"], "/webhooks/clerk");
}

/// A route that answers after `delay`.
fn slow_route(delay: Duration) -> Routes {
    let answer = async move || {
        tokio::time::sleep(delay).await;
        "done"
    };
    Routes::new(
        Router::new()
            .route("/slow", axum::routing::get(answer))
            .route("/", axum::routing::get(async || "quick")),
    )
}

#[test]
fn shutdown_waits_for_requests_and_not_for_idle_connections() {
    let delay = Duration::from_secs(1);
    let limits = ConnectionLimits { farewell: Duration::ZERO, ..ConnectionLimits::default() };
    let server = Server::start(slow_route(delay), limits, GRACE);
    let mut idle = server.connect();
    idle.send(get("/").as_bytes());
    assert_eq!(idle.answer().expect("an answer").body, "quick");
    let _silent = server.connect();
    let mut busy = server.connect();
    busy.send(get("/slow").as_bytes());
    thread::sleep(Duration::from_millis(300)); // by now the head has arrived
    let address = server.address;
    let took = server.stop();
    assert!(took < Duration::from_secs(2), "took {took:?}");
    let answer = busy.answer().expect("an answer");
    assert_eq!((answer.body.as_str(), answer.headers["connection"].as_str()), ("done", "close"));
    assert!(idle.is_closed());
    assert!(TcpStream::connect(address).is_err(), "still listening");
}

#[test]
fn a_request_that_crosses_the_shutdown_is_answered_and_told_that_the_connection_closes() {
    let server = Server::start(slow_route(Duration::ZERO), ConnectionLimits::default(), GRACE);
    let mut kept = server.connect();
    kept.send(get("/").as_bytes());
    let answer = kept.answer().expect("an answer");
    assert!(!answer.headers.contains_key("connection"), "{answer:?}");
    let mut fresh = server.connect();
    server.shutdown.cancel();
    thread::sleep(Duration::from_millis(500)); // by now the service has noticed it
    for client in [&mut kept, &mut fresh] {
        client.send(get("/").as_bytes());
        let answer = client.answer().expect("an answer while the service stops");
        assert_eq!((answer.body.as_str(), answer.headers["connection"].as_str()), ("quick", "close"));
        assert!(client.is_closed());
    }
    let took = server.stop();
    assert!(took < Duration::from_secs(2), "the shutdown waited for a peer: {took:?}");
}

#[test]
fn whoever_is_not_yet_accepted_when_the_service_stops_is_still_answered() {
    let runtime = Runtime::new().expect("runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("free port");
    let mut clients: Vec<Client> = (0..20)
        .map(|_| {
            let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
            stream.set_read_timeout(Some(Duration::from_secs(8))).expect("timeout");
            let mut client = Client(stream);
            client.send(get("/").as_bytes());
            client
        })
        .collect();
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let routes = slow_route(Duration::ZERO);
    runtime.block_on(serve(listener, routes, ConnectionLimits::default(), shutdown, GRACE));
    for client in &mut clients {
        assert_eq!(client.answer().expect("an answer").body, "quick");
    }
}

#[test]
fn shutdown_cuts_off_what_outlasts_the_grace_period() {
    let grace = Duration::from_millis(500);
    let server = Server::start(slow_route(Duration::from_mins(1)), ConnectionLimits::default(), grace);
    let mut stuck = server.connect();
    stuck.send(get("/slow").as_bytes());
    thread::sleep(Duration::from_millis(300)); // by now the head has arrived
    let took = server.stop();
    assert!((grace..Duration::from_secs(2)).contains(&took), "took {took:?}");
    assert!(stuck.answer().is_none());
}

#[test]
fn when_all_connections_are_taken_others_wait_their_turn() {
    let limits = ConnectionLimits { connections: 2, ..ConnectionLimits::default() };
    let server = Server::start(slow_route(Duration::from_secs(2)), limits, GRACE);
    let mut taken = [server.connect(), server.connect()];
    for client in &mut taken {
        client.send(get("/slow").as_bytes());
    }
    thread::sleep(Duration::from_millis(300)); // by now both are being answered
    let mut third = server.connect();
    third.send(get("/").as_bytes());
    third.0.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    assert!(third.0.peek(&mut [0]).is_err(), "answered though all connections are taken");
    for client in &mut taken {
        assert_eq!(client.answer().expect("an answer").body, "done");
    }
    third.0.set_read_timeout(Some(Duration::from_secs(4))).expect("timeout");
    assert_eq!(third.answer().expect("an answer").body, "quick");
}

#[test]
fn connections_that_only_wait_make_way_when_all_are_taken() {
    let limits = ConnectionLimits { connections: 4, ..ConnectionLimits::default() };
    let server = Server::start(public_routes(Arc::new(ready_app())), limits, GRACE);
    let ask = |client: &mut Client| {
        client.send(get("/livez").as_bytes());
        assert_eq!(client.answer().expect("an answer").status, 200);
    };
    let mut idle = server.connect();
    ask(&mut idle);
    let silent = server.connect();
    let mut slow = server.connect();
    slow.send(b"GET /livez HTTP/1.1\r\nhost: ");
    let mut young = server.connect();
    ask(&mut young);
    for mut oldest in [idle, silent, slow] {
        let started = Instant::now();
        let mut newcomer = server.connect();
        ask(&mut newcomer);
        assert!(started.elapsed() < Duration::from_secs(2), "it waited for a deadline");
        assert!(oldest.is_closed(), "another one was closed");
        ask(&mut young);
        thread::sleep(Duration::from_millis(20)); // later connections have waited for a shorter time
    }
}

#[test]
fn a_peer_that_never_reads_its_answer_is_closed() {
    let big = Router::new().route("/", axum::routing::get(async || vec![b'x'; 64 * 1024 * 1024]));
    let limits = ConnectionLimits {
        connections: 1,
        write_within: Duration::from_secs(1),
        ..ConnectionLimits::default()
    };
    let server = Server::start(Routes::new(big), limits, GRACE);
    let mut deaf = server.connect();
    deaf.send(get("/").as_bytes());
    let mut next = server.connect();
    next.send(get("/nowhere").as_bytes());
    let started = Instant::now();
    assert_eq!(next.answer().expect("an answer").status, 404);
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_sender_that_closes_its_half_still_gets_its_answer() {
    let server = Server::start(slow_route(Duration::from_millis(200)), ConnectionLimits::default(), GRACE);
    let mut client = server.connect();
    client.send(get("/slow").as_bytes());
    client.0.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert_eq!(client.answer().expect("an answer").body, "done");
}

#[test]
fn a_request_is_seen_through_although_its_sender_hangs_up() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let slow = async move || {
        count.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        count.fetch_add(1, Ordering::SeqCst);
    };
    let server = Server::start(
        Routes::new(Router::new().route("/", axum::routing::get(slow))),
        ConnectionLimits::default(),
        GRACE,
    );
    let wait_for = |count: usize| {
        let started = Instant::now();
        while seen.load(Ordering::SeqCst) < count {
            assert!(started.elapsed() < Duration::from_secs(5), "never reached {count}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let mut client = server.connect();
    client.send(get("/").as_bytes());
    wait_for(1);
    drop(client);
    wait_for(2);
}
