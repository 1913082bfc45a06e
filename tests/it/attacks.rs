//! Senders that are malicious, or behave as if they were.

use std::{
    collections::HashSet,
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    proxy::{Mode, Proxy},
    service::{
        Client, Host, Keeper, OTHER_SECRET, Post, Service, Until, alone, eventually, get, load, measured,
        milliseconds, on_each_keeper, post, unique, user,
    },
};

on_each_keeper!(
    not_one_of_400_forgeries_is_believed,
    a_delivery_repeated_thousands_of_times_has_one_effect,
    thousands_of_slow_connections_are_closed_while_genuine_requests_pass,
);

fn created() -> Post {
    post(&user("user.created", &unique("user_"), milliseconds(), "Ada"))
}

fn host() -> Host {
    Host::with(Keeper::Sqlite).expect("SQLite is always there")
}

fn random(below: usize) -> usize {
    rand::random_range(0..below)
}

/// The text with one letter or digit changed.
fn spoil(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_alphanumeric()).collect();
    let at = places[random(places.len())];
    bytes[at] = match bytes[at] {
        b'z' => b'a',
        b'Z' => b'A',
        b'9' => b'0',
        byte => byte + 1,
    };
    String::from_utf8(bytes).expect("ASCII")
}

fn forgery(kind: usize) -> Vec<u8> {
    let genuine = created();
    let (signature, head, body) = (genuine.signature(), genuine.head(), &genuine.body);
    let signed = |signature: &str| head.replace(&genuine.signature(), signature);
    let text = match kind % 16 {
        0 => head.clone() + &spoil(body),
        1 => head.replace(&genuine.id, &unique("msg_")) + body,
        2 => head.replace(&genuine.timestamp.to_string(), &(genuine.timestamp - 1).to_string()) + body,
        3 => signed(&format!("v1,{}", spoil(&signature[3..]))) + body,
        4 => Post { secret: OTHER_SECRET, ..genuine.clone() }.head() + body,
        5 => signed(&signature.replace("v1,", "v1a,")) + body,
        6 => signed(&signature[3..]) + body,
        7 => signed(&signature[..signature.len() - 2]) + body,
        8 => signed(&created().signature()) + body,
        9 => signed("v1,") + body,
        10 => signed(&"v1,AAAA ".repeat(500)) + body,
        // The genuine signature after more entries than any sender includes.
        11 => signed(&format!("{}{signature}", "v1,AAAA ".repeat(200))) + body,
        12 => {
            let rebuilt = body.replacen(':', ": ", 1);
            head.replace(
                &format!("content-length: {}", body.len()),
                &format!("content-length: {}", rebuilt.len()),
            ) + &rebuilt
        }
        // Move the boundary between the signed parts.
        13 => {
            let id = format!("{}.{}", genuine.id, genuine.timestamp);
            head.replace(&genuine.id, &id) + body
        }
        14 => {
            Post {
                timestamp: genuine.timestamp - 301 - i64::try_from(random(1000)).unwrap_or(0),
                ..genuine.clone()
            }
            .head()
                + body
        }
        _ => head.replace("svix-signature", "webhook-signature") + body,
    };
    text.into_bytes()
}

fn not_one_of_400_forgeries_is_believed(host: &mut Host) {
    let service = host.serve();
    for kind in 0..400 {
        let forged = forgery(kind);
        let answer = service.ask(&forged);
        assert_eq!(answer.status, 400, "{kind}: {answer:?}\n{}", String::from_utf8_lossy(&forged));
    }
    for table in ["users", "processed_webhooks", "webhook_queue", "audit_log", "entity_versions"] {
        assert_eq!(host.count(table), 0, "{table}");
    }
    assert_eq!(service.post(&created()).word(), "applied");
    service.stop();
}

fn a_delivery_repeated_thousands_of_times_has_one_effect(host: &mut Host) {
    let _alone = alone();
    let service = host.serve();
    let (repeats, connections) = (load(1_000, 10_000), 64);
    let bytes = created().bytes();
    let (applied, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut client = service.client();
                while done.fetch_add(1, SeqCst) < repeats {
                    client.send(&bytes).expect("sent");
                    let answer = client.answer().expect("an answer");
                    match (answer.status, answer.word().as_str()) {
                        (200, "applied") => _ = applied.fetch_add(1, SeqCst),
                        (200, "duplicate") => {}
                        _ => panic!("{answer:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(applied.into_inner(), 1);
    assert_eq!(["users", "audit_log", "processed_webhooks"].map(|table| host.count(table)), [1, 1, 1]);
    service.stop();
}

/// How a connection keeps a server waiting.
#[derive(Clone, Copy, Debug)]
enum Slowness {
    Silent,
    TrickledHead,
    TrickledBody,
}

impl Slowness {
    const ALL: [Self; 3] = [Self::Silent, Self::TrickledHead, Self::TrickledBody];

    /// Whether the server closes the connection in time.
    fn is_closed_within(self, service: &Service, patience: Duration) -> bool {
        let Ok(mut client) = Client::connect(service.public) else { return false };
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        match self {
            Self::Silent => {}
            Self::TrickledHead => _ = client.send(b"POST /webhooks/clerk HTTP/1.1\r\nx: "),
            Self::TrickledBody => _ = client.send(created().head().as_bytes()),
        }
        if matches!(self, Self::TrickledHead | Self::TrickledBody) {
            while !left().is_zero() {
                _ = client.send(b"x");
                if client.is_closed_within(left().min(Duration::from_millis(700))) {
                    return true;
                }
            }
        }
        client.is_closed_within(left())
    }
}

fn thousands_of_slow_connections_are_closed_while_genuine_requests_pass(host: &mut Host) {
    let _alone = alone();
    _ = rlimit::increase_nofile_limit(8192);
    let service = host.serve();
    let count = load(200, 1_000);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let genuine = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            let mut passed = 0;
            while !done.load(SeqCst) {
                let started = Instant::now();
                assert_eq!(service.post(&created()).word(), "applied");
                slowest = slowest.max(started.elapsed());
                passed += 1;
                thread::sleep(Duration::from_millis(50));
            }
            (passed, slowest)
        });
        let attack: Vec<_> = (0..count)
            .map(|index| {
                let slowness = Slowness::ALL[index % Slowness::ALL.len()];
                let service = &service;
                let connection =
                    move || (slowness, slowness.is_closed_within(service, Duration::from_secs(10)));
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, connection)
                    .expect("a thread")
            })
            .collect();
        let until = Until(&done);
        let results: Vec<_> =
            attack.into_iter().map(|connection| connection.join().expect("no panic")).collect();
        drop(until);
        let (passed, slowest) = genuine.join().expect("no panic");
        let open: Vec<_> = results.iter().filter(|(_, closed)| !closed).collect();
        assert!(open.is_empty(), "{} are still open after 10 s: {open:?}", open.len());
        assert!(
            passed > 20 && slowest < Duration::from_secs(3),
            "{passed} passed, the slowest in {slowest:?}"
        );
    });
    service.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let host = host();
    let service = host.serve();
    let posts: Vec<Post> = (0..50).map(|_| created()).collect();
    let mut bytes = Vec::new();
    for post in &posts {
        bytes.extend(post.bytes());
        bytes.extend(get("/livez"));
    }
    let mut client = service.client();
    client.send(&bytes).expect("sent");
    for post in &posts {
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.json()["id"], json!(post.id));
        assert_eq!(client.answer().expect("an answer").json()["status"], "alive");
    }
    assert_eq!(host.count("users"), 50);
}

#[test]
fn a_body_without_length_counts_as_none() {
    let host = host();
    let service = host.serve();
    let delivery = created();
    let bytes = format!("{}\r\n{}", delivery.head_without_length(), delivery.body);
    let mut client = service.client();
    client.send(bytes.as_bytes()).expect("sent");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.word().as_str()), (400, "invalid_signature"));
    // The bytes that follow are not read as another request.
    assert!(client.is_closed_within(Duration::from_secs(9)));
    assert_eq!(host.count("users"), 0);
}

fn chunked(delivery: &Post, chunk: usize) -> Vec<u8> {
    let mut bytes =
        format!("{}transfer-encoding: chunked\r\n\r\n", delivery.head_without_length()).into_bytes();
    for part in delivery.body.as_bytes().chunks(chunk) {
        bytes.extend(format!("{:x}\r\n", part.len()).bytes());
        bytes.extend(part);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

#[test]
fn a_chunked_body_is_a_body() {
    let host = host();
    let service = host.serve();
    for chunk in [1, 7, 100_000] {
        assert_eq!(service.ask(&chunked(&created(), chunk)).word(), "applied");
    }
    let broken = String::from_utf8(chunked(&created(), 100)).expect("text").replacen(
        "\r\n\r\n64\r\n",
        "\r\n\r\nzz\r\n",
        1,
    );
    let answer = service.ask(broken.as_bytes());
    assert_eq!((answer.status, answer.word().as_str()), (400, "incomplete_body"));
    // The body ends before the announced length.
    let delivery = created();
    let mut client = service.client();
    client.send(&delivery.bytes()[..delivery.bytes().len() - 1]).expect("sent");
    client.stream().shutdown(std::net::Shutdown::Write).expect("shut down");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.word().as_str()), (400, "incomplete_body"));
    assert_eq!(host.count("users"), 3);
}

#[test]
fn who_asks_before_sending_a_body_is_told_to_go_on_or_not() {
    let host = host();
    let service = host.serve();
    let delivery = Post { more_headers: "expect: 100-continue\r\n".to_owned(), ..created() };
    let mut client = service.client();
    client.send(delivery.head().as_bytes()).expect("sent");
    assert_eq!(client.answer().expect("an answer").status, 100);
    client.send(delivery.body.as_bytes()).expect("sent");
    assert_eq!(client.answer().expect("an answer").word(), "applied");

    let large = Post { body: "x".repeat(2_000_000), ..delivery };
    let mut client = service.client();
    client.send(large.head().as_bytes()).expect("sent");
    assert_eq!(client.answer().expect("an answer").status, 413);
}

#[test]
fn what_is_not_http_harms_nobody() {
    let host = host();
    let service = host.serve();
    let garbage: [&[u8]; 9] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /webhooks/clerk HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /\x00\xff HTTP/1.1\r\nhost: \xff\r\n\r\n",
        b"* * *\r\n",
    ];
    for bytes in garbage {
        let mut client = service.client();
        _ = client.send(bytes);
        _ = client.stream().shutdown(std::net::Shutdown::Write);
        assert!(client.is_closed_within(Duration::from_secs(9)), "{}", String::from_utf8_lossy(bytes));
    }
    for _ in 0..200 {
        let mut bytes = vec![0; random(4000)];
        bytes.fill_with(rand::random);
        let mut client = service.client();
        _ = client.send(&bytes);
    }
    let large_heads = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let mut client = service.client();
    _ = client.send(large_heads.as_bytes());
    assert_eq!(client.answer().expect("an answer").status, 431);
    assert_eq!(service.post(&created()).word(), "applied");
    assert!(!service.log().contains("panicked"), "{}", service.log());
}

#[test]
fn unproven_bodies_share_a_budget_of_memory() {
    let host = host();
    let service = host.serve();
    let bytes = Post::new("x".repeat(1_000_000)).bytes();
    let overloaded = AtomicUsize::new(0);
    // Each connection sends all of its body except the last byte.
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let mut client = service.client();
                let answer = client.send(&bytes[..bytes.len() - 1]).and_then(|()| client.answer());
                let Ok(answer) = answer else { return };
                if answer.status == 503 {
                    assert_eq!(answer.word(), "overloaded");
                    assert_eq!(
                        (answer.headers["retry-after"].as_str(), answer.headers["connection"].as_str()),
                        ("1", "close")
                    );
                    overloaded.fetch_add(1, SeqCst);
                }
            });
        }
    });
    assert!(overloaded.load(SeqCst) >= 7, "{overloaded:?}");
    assert_eq!(service.post(&created()).word(), "applied");
}

/// A user with metadata of this size.
fn large(bytes: usize, more_headers: &str) -> Post {
    let mut event = user("user.created", &unique("user_"), milliseconds(), "Ada");
    event["data"]["public_metadata"] = json!({ "filler": "x".repeat(bytes) });
    Post { more_headers: more_headers.to_owned(), ..post(&event) }
}

/// Send genuine events while 24 attackers send large bodies and withhold the last byte.
fn genuine_events_among_strangers(service: &Service, head: &(dyn Fn() -> Post + Sync), more_headers: &str) {
    let _alone = alone();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let until = Until(&done);
        for _ in 0..24 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let bytes = head().bytes();
                    let mut client = service.client();
                    client.stream().set_read_timeout(Some(Duration::from_millis(1500))).expect("a timeout");
                    client.stream().set_write_timeout(Some(Duration::from_millis(1500))).expect("a timeout");
                    _ = client.send(&bytes[..bytes.len() - 1]);
                    _ = client.answer();
                    thread::sleep(Duration::from_millis(300));
                }
            });
        }
        thread::sleep(Duration::from_secs(1)); // until they hold the whole budget
        for size in [0, 20_000, 50_000, 300_000].repeat(4) {
            let event = large(size, more_headers);
            // In parts, as a network would deliver them.
            let bytes = event.bytes();
            let mut client = service.client();
            for part in bytes.chunks(100_000) {
                client.send(part).expect("sent");
            }
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.word().as_str()), (200, "applied"), "{size}");
        }
        drop(until);
    });
}

#[test]
fn strangers_who_withhold_the_end_of_unsigned_bodies_shut_out_nobody() {
    let host = host();
    let service = host.serve();
    let unsigned = || Post { family: "other", ..Post::new("x".repeat(1_000_000)) };
    genuine_events_among_strangers(&service, &unsigned, "");
    service.stop();
}

#[test]
fn strangers_who_withhold_the_end_of_bodies_with_a_plausible_head_shut_out_nobody() {
    let host = host();
    let service = host.serve();
    let forged = || Post { secret: OTHER_SECRET, ..Post::new("x".repeat(1_000_000)) };
    genuine_events_among_strangers(&service, &forged, "");
    service.stop();
}

#[test]
fn strangers_behind_the_same_trusted_proxy_shut_out_nobody() {
    let mut host = host();
    host.set("TRUSTED_PROXIES", "127.0.0.0/8");
    let service = host.serve();
    let forged = || Post {
        secret: OTHER_SECRET,
        more_headers: "x-forwarded-for: 203.0.113.9\r\n".to_owned(),
        ..Post::new("x".repeat(1_000_000))
    };
    genuine_events_among_strangers(&service, &forged, "x-forwarded-for: 198.51.100.7\r\n");
    service.stop();
}

#[test]
fn senders_that_hang_up_lose_nothing_and_leave_nothing_behind() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::from_millis(50));
    host.reach_server_at(proxy.address);
    let service = host.serve();
    let count = load(600, 10_000);
    let posts: Vec<Post> = (0..count).map(|_| created()).collect();
    let next = AtomicUsize::new(0);
    let acknowledged: Vec<&Post> = thread::scope(|scope| {
        let senders: Vec<_> = (0..64)
            .map(|_| {
                scope.spawn(|| {
                    let mut acknowledged = Vec::new();
                    while let Some(post) = posts.get(next.fetch_add(1, SeqCst)) {
                        let mut client = service.client();
                        let patience = Duration::from_millis(1 + random(150) as u64);
                        client.stream().set_read_timeout(Some(patience)).expect("a timeout");
                        if client.post(post).is_ok_and(|answer| answer.word() == "applied") {
                            acknowledged.push(post);
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        senders.into_iter().flat_map(|sender| sender.join().expect("no panic")).collect()
    });
    let audited: HashSet<String> = host.sql("SELECT svix_id FROM audit_log").concat().into_iter().collect();
    for post in &acknowledged {
        assert!(audited.contains(&post.id), "{} was acknowledged and is missing", post.id);
    }
    measured(&format!("{count} requests, {} acknowledged: 0 missing", acknowledged.len()));
    let sessions = format!("pg_stat_activity WHERE application_name = '{}'", host.schema);
    eventually("no session in a transaction", || {
        host.count(&format!("{sessions} AND state LIKE 'idle in transaction%'")) == 0
    });
    assert!(host.count(&sessions) <= 8);

    // Unacknowledged deliveries are sent again, as Svix would.
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut client = service.client();
                while let Some(post) = posts.get(next.fetch_add(1, SeqCst)) {
                    let answer = client.post(post).expect("an answer");
                    assert!(["applied", "duplicate"].contains(&answer.word().as_str()), "{answer:?}");
                }
            });
        }
    });
    assert_eq!(["users", "audit_log", "processed_webhooks"].map(|table| host.count(table)), [count; 3]);
    service.stop();
}

#[test]
fn a_sender_that_floods_heads_stays_alone() {
    let host = host();
    let service = host.serve();
    let flood = service.client();
    flood.stream().set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let flooding = vec![b'x'; 64 * 1024];
    let started = Instant::now();
    // An endless head: the server discards input only for a limited time.
    while flood.stream().write_all(&flooding).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10), "the server reads endlessly");
    }
    assert_eq!(service.post(&created()).word(), "applied");
}
