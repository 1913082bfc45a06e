//! Accepting first and processing later with the real program: `serve` and `worker` next to each other, whichever of them is
//! killed, and how an operator can handle waiting deliveries.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::service::{
    Answer, Client, Host, Keeper, Post, Service, Until, alone, deletion, eventually, load, measured,
    milliseconds, on_each_keeper, post, unique, user,
};

const TOKEN: &str = "t0ken-of-the-house";

on_each_keeper!(
    what_is_accepted_is_answered_queued_and_applied_a_moment_later,
    a_service_that_only_receives_leaves_the_work_to_workers,
    what_waits_is_listed_shown_tried_again_and_taken_out,
    the_same_can_be_done_over_http,
    a_delivery_that_was_parked_inline_is_tried_again_by_the_service_itself,
);

pub(crate) fn created(id: &str) -> Post {
    post(&user("user.created", id, milliseconds(), "Ada"))
}

pub(crate) fn queued(service: &Service, post: &Post) {
    let answer = service.post(post);
    assert_eq!((answer.status, answer.word().as_str()), (200, "queued"), "{answer:?}\n{}", service.log());
}

fn what_is_accepted_is_answered_queued_and_applied_a_moment_later(host: &mut Host) {
    host.set("PROCESSING", "queue");
    let service = host.serve();
    let delivery = created("user_1");
    let answer = service.post(&delivery);
    assert_eq!(answer.json(), json!({ "status": "queued", "event": "user.created", "id": delivery.id }));
    eventually("applied", || host.count("users") == 1 && host.count("webhook_queue") == 0);
    let outcome = format!("SELECT outcome FROM processed_webhooks WHERE svix_id = '{}'", delivery.id);
    assert_eq!(host.value(&outcome), "applied");
    assert_eq!(service.post(&delivery).word(), "duplicate");
    let stale = post(&user("user.updated", "user_1", 1000, "Late"));
    queued(&service, &stale);
    eventually("worked on", || host.count("processed_webhooks") == 2);
    queued(&service, &post(&deletion("user_1", milliseconds())));
    eventually("deleted", || host.count("users") == 0 && host.count("webhook_queue") == 0);
    for (name, expected) in [
        (r#"clerk_sync_webhooks_total{event="user.created",outcome="queued",kind="user"}"#, 1.0),
        (r#"clerk_sync_queue_processed_total{outcome="applied",kind="user"}"#, 2.0),
        (r#"clerk_sync_queue_processed_total{outcome="stale",kind="user"}"#, 1.0),
        (r#"clerk_sync_queue_processed_total{outcome="parked",kind="user"}"#, 0.0),
    ] {
        assert_eq!(service.metric(name), Some(expected), "{name}");
    }
    eventually("counted", || service.metric("clerk_sync_queue_oldest_seconds") == Some(0.0));
    assert!(service.lines_about(&delivery.id).iter().any(|line| line["outcome"] == "applied"));
    service.stop();
}

fn a_service_that_only_receives_leaves_the_work_to_workers(host: &mut Host) {
    host.set("PROCESSING", "queue");
    let service = host.serve_with(&["--no-worker"]);
    for number in 0..20 {
        queued(&service, &created(&format!("user_{number}")));
    }
    eventually("counted", || {
        service.metric(r#"clerk_sync_queue_depth{state="pending"}"#) == Some(20.0)
            && service.metric("clerk_sync_queue_oldest_seconds").is_some_and(|age| age > 0.0)
    });
    assert_eq!((host.count("users"), host.count("webhook_queue")), (0, 20));
    // A worker verifies no signatures, so it needs no secret.
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    let mut worker = host.work();
    eventually("applied", || host.count("users") == 20 && host.count("webhook_queue") == 0);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(worker.get_private(path).status, 200, "{path}");
    }
    assert_eq!(worker.get_private("/webhooks/clerk").status, 404);
    worker.terminate();
    assert_eq!(worker.wait(Duration::from_secs(20)).code(), Some(0), "{}", worker.log());
    queued(&service, &created("user_late"));
    assert_eq!(host.count("webhook_queue"), 1);
    let worker = host.work();
    eventually("applied", || host.count("users") == 21);
    worker.stop();
    service.stop();
}

/// Start a service without workers, with three deliveries: a pending one, a deletion, and a dead letter.
fn with_three(host: &mut Host) -> (Service, [Post; 3]) {
    host.set("PROCESSING", "queue");
    host.set("ADMIN_TOKEN", TOKEN);
    let service = host.serve_with(&["--no-worker"]);
    let waiting = created("user_1");
    let deletion = post(&deletion("user_2", milliseconds()));
    queued(&service, &waiting);
    queued(&service, &deletion);
    let dead = Post::new(r#"{"type":"user.created","data":{"id":7,"name":"Lovelace"}}"#);
    assert_eq!(service.post(&dead).word(), "parked");
    (service, [waiting, deletion, dead])
}

fn what_waits_is_listed_shown_tried_again_and_taken_out(host: &mut Host) {
    let (service, [waiting, deletion, dead]) = with_three(host);
    let run = |arguments: &[&str]| host.run(&[&["queue"], arguments].concat());
    let ids = |listed: &str| -> HashSet<String> {
        let listed: Value = serde_json::from_str(listed).expect("JSON");
        let id = |entry: &Value| entry["svix_id"].as_str().expect("an id").to_owned();
        listed.as_array().expect("a list").iter().map(id).collect()
    };
    let table = run(&["ls"]).succeeded();
    assert_eq!(table.lines().count(), 4, "{table}");
    for word in
        ["ID ", "STATE", "USER", "pending", "dead", "user.deleted", &waiting.id, "`data.id` is not a string"]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
    let all = [&waiting, &deletion, &dead].map(|post| post.id.clone());
    assert_eq!(ids(&run(&["ls", "--json"]).succeeded()), all.into_iter().collect());
    assert_eq!(ids(&run(&["ls", "--json", "--limit", "2"]).succeeded()).len(), 2);
    assert_eq!(ids(&run(&["ls", "--json", "--state", "dead"]).succeeded()), [dead.id.clone()].into());
    let of_type = run(&["ls", "--json", "--type", "user.deleted"]).succeeded();
    assert_eq!(ids(&of_type), [deletion.id.clone()].into());

    let hidden = run(&["show", &waiting.id]).succeeded();
    assert!(hidden.contains(&waiting.id) && !hidden.contains("Lovelace"), "{hidden}");
    let revealed = run(&["show", &waiting.id, "--reveal"]).succeeded();
    let revealed: Value = serde_json::from_str(&revealed).expect("JSON");
    assert_eq!(revealed["payload"], waiting.body);
    run(&["show", &dead.id, "--reveal"]).succeeded();
    assert_eq!(
        host.sql(
            "SELECT svix_id, clerk_id, source FROM audit_log WHERE action = 'USER_REVEALED' ORDER BY id"
        ),
        [[waiting.id.as_str(), "user_1", "cli"], [&dead.id, "unknown", "cli"]]
    );
    let unknown = run(&["show", "msg_none"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("not in the queue"), "{unknown:?}");

    assert!(run(&["retry", "--all", "--dry-run"]).succeeded().contains("1  would be retried"));
    assert_eq!(host.count("webhook_queue WHERE state = 'dead'"), 1);
    assert!(run(&["retry", &dead.id]).succeeded().contains("1  due again"));
    assert_eq!(host.count("webhook_queue WHERE state = 'dead'"), 0);
    assert_eq!(run(&["retry"]).code, Some(2), "the command requires a selection");
    assert_eq!(
        run(&["retry", &dead.id, "--all"]).code,
        Some(2),
        "the command accepts only one kind of selection"
    );
    assert_eq!(run(&["retry", "msg_none"]).code, Some(1));

    let asked = run(&["discard", &waiting.id, &dead.id]);
    assert_eq!(asked.code, Some(2), "{asked:?}");
    assert!(asked.stderr.contains("--yes"), "{asked:?}");
    assert!(run(&["discard", &waiting.id, "--dry-run"]).succeeded().contains("1  would be removed"));
    assert_eq!(host.count("webhook_queue"), 3);
    assert!(run(&["discard", &waiting.id, &dead.id, "--yes"]).succeeded().contains("2  removed"));
    let refused = run(&["discard", &deletion.id, "--yes"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("1 deletion of a user was kept"), "{refused:?}");
    assert_eq!(host.count("webhook_queue"), 1);
    assert_eq!(host.count("processed_webhooks WHERE outcome = 'discarded'"), 2);
    assert_eq!(service.post(&waiting).word(), "duplicate");
    service.stop();
}

fn the_same_can_be_done_over_http(host: &mut Host) {
    let (service, [waiting, deletion, dead]) = with_three(host);
    let authorization = format!("Bearer {TOKEN}");
    let get = |path: &str| service.get_api(path, Some(&authorization));
    let tell = |path: &str, body: &Value| -> Answer {
        service.tell_api("POST", path, Some(&authorization), &body.to_string())
    };
    assert_eq!(service.get_api("/v1/queue", None).status, 401);
    assert_eq!(service.tell_api("POST", "/v1/queue/discard", None, r#"{"all":true}"#).status, 401);

    let first = get("/v1/queue?limit=2").json();
    assert_eq!(first["entries"].as_array().map(Vec::len), Some(2));
    let next = first["next"].as_str().expect("more");
    let second = get(&format!("/v1/queue?limit=2&after={next}")).json();
    assert_eq!((second["entries"].as_array().map(Vec::len), &second["next"]), (Some(1), &Value::Null));
    let listed = get("/v1/queue?state=dead").json();
    assert_eq!(listed["entries"][0]["svix_id"], dead.id);
    assert_eq!(listed["entries"][0]["attempts"], 1);
    assert_eq!(listed["entries"][0]["kind"], "user");
    assert!(listed["entries"][0]["last_error"].as_str().is_some_and(|error| !error.contains("Lovelace")));
    assert_eq!(get("/v1/queue?type=user.deleted").json()["entries"][0]["svix_id"], deletion.id);
    for path in ["/v1/queue?state=alive", "/v1/queue?limit=0", "/v1/queue?x=1", "/v1/queue/x?reveal=yes"] {
        let answer = get(path);
        assert_eq!((answer.status, answer.word().as_str()), (400, "invalid_parameter"), "{path}");
    }

    let path = format!("/v1/queue/{}", waiting.id);
    let hidden = get(&path);
    assert_eq!(hidden.json()["payload"], Value::Null);
    assert!(!hidden.body.contains("Lovelace"));
    let revealed = "SELECT svix_id, clerk_id, source FROM audit_log WHERE action = 'USER_REVEALED'";
    assert_eq!(host.sql(revealed), [[""; 3]; 0]);
    assert_eq!(get(&format!("{path}?reveal=true")).json()["payload"], waiting.body);
    assert_eq!(host.sql(revealed), [[waiting.id.as_str(), "user_1", "api"]]);
    if host.keeper == Keeper::Sqlite {
        // If the audit line cannot be written, the payload is not shown.
        host.sql("CREATE TRIGGER deaf BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'deaf'); END");
        let refused = get(&format!("{path}?reveal=true"));
        assert_eq!((refused.status, refused.word().as_str()), (503, "database_unavailable"));
        host.sql("DROP TRIGGER deaf");
    }
    let missing = get("/v1/queue/msg_none");
    assert_eq!((missing.status, missing.word().as_str()), (404, "delivery_not_found"));

    for body in [
        json!({}),
        json!({ "all": true, "type": "user.created" }),
        json!({ "ids": [] }),
        json!({ "ids": ["with space"] }),
        json!({ "all": true, "force": true }),
        json!([]),
    ] {
        let answer = tell("/v1/queue/discard", &body);
        assert_eq!((answer.status, answer.word().as_str()), (400, "invalid_body"), "{body}");
    }
    let report = |deliveries: u64, kept: u64, missing: &[&str], dry_run: bool| json!({ "deliveries": deliveries, "deletions_kept": kept, "missing": missing, "dry_run": dry_run });
    let would = tell("/v1/queue/retry", &json!({ "all": true, "dry_run": true }));
    assert_eq!(would.json(), report(1, 0, &[], true));
    assert_eq!(tell("/v1/queue/retry", &json!({ "type": "user.created" })).json(), report(1, 0, &[], false));
    assert_eq!(host.count("webhook_queue WHERE state = 'pending'"), 3);
    let ids = json!({ "ids": [waiting.id, deletion.id, "msg_none"] });
    assert_eq!(tell("/v1/queue/discard", &ids).json(), report(1, 1, &["msg_none"], false));
    assert_eq!(host.count("webhook_queue"), 2);
    service.stop();
}

fn a_delivery_that_was_parked_inline_is_tried_again_by_the_service_itself(host: &mut Host) {
    let service = host.serve();
    host.refuse_first_name("Bad");
    let bad = post(&user("user.created", "user_1", milliseconds(), "Bad"));
    assert_eq!(service.post(&bad).word(), "parked");
    host.allow_first_names();
    eventually("applied", || host.count("users") == 1 && host.count("webhook_queue") == 0);
    assert_eq!(service.post(&bad).word(), "duplicate");
    service.stop();
}

#[test]
fn one_in_a_hundred_is_poison_the_others_are_applied_and_it_is_too_once_it_is_mended() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    host.set("PROCESSING", "queue");
    host.set("QUEUE_MAX_ATTEMPTS", "2");
    let service = host.serve();
    host.refuse_first_name("Bad");
    let count = load(2000, 20_000);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = service.client();
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    if number >= count {
                        return;
                    }
                    let name = if number % 100 == 50 { "Bad" } else { "Ada" };
                    let event = user("user.created", &format!("user_{number}"), milliseconds(), name);
                    let answer = client.post(&post(&event)).expect("an answer");
                    assert_eq!((answer.status, answer.word().as_str()), (200, "queued"));
                }
            });
        }
    });
    let poison = count / 100;
    eventually("everything is worked on", || host.count("webhook_queue WHERE state = 'pending'") == 0);
    assert_eq!(host.count("users"), count - poison);
    let reasons = host.sql("SELECT DISTINCT state, attempts, last_error FROM webhook_queue");
    let reason = "a constraint or trigger refused the change (P0001): function";
    assert!(
        matches!(&reasons[..], [row] if row[..2] == ["dead", "2"] && row[2].starts_with(reason)),
        "{reasons:?}"
    );
    assert_eq!(host.count("webhook_queue"), poison);
    host.allow_first_names();
    let retried = host.run(&["queue", "retry", "--all"]).succeeded();
    assert!(retried.contains(&format!("{poison}  due again")), "{retried}");
    eventually("applied", || host.count("users") == count && host.count("webhook_queue") == 0);
    service.stop();
}

#[test]
fn a_statement_that_the_database_refuses_kills_no_delivery() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    host.set("PROCESSING", "queue");
    host.set("QUEUE_MAX_ATTEMPTS", "1");
    let service = host.serve();
    // One of our tables is missing.
    host.sql("ALTER TABLE audit_log RENAME TO elsewhere");
    let delivery = post(&user("user.created", "user_1", milliseconds(), "Ada"));
    assert_eq!(service.post(&delivery).word(), "queued");
    eventually("it is tried", || host.count("webhook_queue WHERE attempts > 1") == 1);
    assert_eq!(host.count("webhook_queue WHERE state = 'pending'"), 1);
    host.sql("ALTER TABLE elsewhere RENAME TO audit_log");
    eventually("applied", || host.count("users") == 1 && host.count("webhook_queue") == 0);
    service.stop();
}

#[test]
fn a_deletion_that_takes_longer_than_a_statement_may_is_done_all_the_same() {
    let Some(host) = Host::with(Keeper::Postgres) else { return };
    let service = host.serve();
    let send = |event: &Value| service.post(&post(event)).word();
    assert_eq!(send(&user("user.created", "user_1", milliseconds(), "Ada")), "applied");
    // A slow trigger stands in for many rows that are deleted along with it.
    host.sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_sleep(4);
             RETURN OLD;
         END $$;
         CREATE TRIGGER dawdle BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION dawdle()",
    );
    assert_eq!(send(&deletion("user_1", milliseconds())), "parked");
    assert_eq!(send(&user("user.updated", "user_1", milliseconds() + 1000, "Ada")), "stale");
    eventually("gone", || host.count("users") == 0 && host.count("webhook_queue") == 0);
    assert_eq!(host.count("erasure_receipts WHERE completed_at IS NOT NULL"), 1);
    service.stop();
}

/// Two receivers and two workers, one of which is killed again and again.
#[test]
fn whoever_is_killed_nothing_accepted_is_missing_and_nothing_applied_twice() {
    const RECEIVERS: usize = 2;
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let _alone = alone();
    host.set("PROCESSING", "queue");
    host.run(&["migrate"]).succeeded();
    let start = |place: usize| if place < RECEIVERS { host.serve() } else { host.work() };
    let mut processes: Vec<Service> = (0..4).map(start).collect();
    let address = |process: &Service| Some(process.public);
    let receivers: Mutex<Vec<Option<SocketAddr>>> =
        Mutex::new(processes[..RECEIVERS].iter().map(address).collect());
    let (accepted, ended) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let kills = load(8, 60);
    // The full run sends 1,000 events per second.
    let (senders, pause) = (16, Duration::from_millis(load(4, 16) as u64));
    thread::scope(|scope| {
        for sender in 0..senders {
            let (receivers, accepted, ended) = (&receivers, &accepted, &ended);
            scope.spawn(move || send(sender, receivers, accepted, ended, pause));
        }
        let _until = Until(&ended);
        for kill in 0..kills {
            let began = Instant::now();
            let before = accepted.lock().expect("not poisoned").len();
            eventually("more is accepted", || accepted.lock().expect("not poisoned").len() > before + 50);
            let place = (rand::random::<u32>() as usize + kill) % processes.len();
            if place < RECEIVERS {
                receivers.lock().expect("not poisoned")[place] = None;
            }
            processes.remove(place).kill();
            processes.insert(place, start(place));
            if place < RECEIVERS {
                receivers.lock().expect("not poisoned")[place] = address(&processes[place]);
            }
            thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
        }
    });
    let began = Instant::now();
    eventually("the queue is empty", || host.count("webhook_queue") == 0);
    assert!(began.elapsed() < Duration::from_secs(30), "a delivery was stuck");
    let worked_on: HashSet<String> =
        host.sql("SELECT svix_id FROM processed_webhooks").concat().into_iter().collect();
    let accepted = accepted.into_inner().expect("not poisoned");
    assert!(accepted.len() > 50 * kills, "{}", accepted.len());
    for id in &accepted {
        assert!(worked_on.contains(id), "{id} was accepted, but is missing");
    }
    let audited: Vec<String> = host.sql("SELECT svix_id FROM audit_log").concat();
    let once: HashSet<&String> = audited.iter().collect();
    assert_eq!(audited.len(), once.len(), "a delivery was applied twice");
    assert_eq!(host.count("processed_webhooks WHERE outcome = 'applied'"), audited.len());
    assert_eq!(host.count("users"), host.count("audit_log WHERE action = 'USER_CREATED'"));
    measured(&format!("{} accepted: 0 missing, 0 twice", accepted.len()));
    for process in processes {
        process.stop();
    }
}

/// Send created and updated events to the receivers, each one until it is accepted.
fn send(
    sender: usize,
    receivers: &Mutex<Vec<Option<SocketAddr>>>,
    accepted: &Mutex<Vec<String>>,
    ended: &AtomicBool,
    pause: Duration,
) {
    let mut client: Option<Client> = None;
    for turn in sender.. {
        let (id, at) = (unique("user_"), milliseconds());
        for event in [user("user.created", &id, at, "Ada"), user("user.updated", &id, at + 1, "Augusta")] {
            let mut post = post(&event);
            loop {
                if ended.load(SeqCst) {
                    return;
                }
                if client.is_none() {
                    let address = {
                        let receivers = receivers.lock().expect("not poisoned");
                        receivers[turn % receivers.len()].or(receivers.iter().flatten().next().copied())
                    };
                    client = address.and_then(|address| Client::connect(address).ok());
                }
                let Some(connection) = &mut client else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                post.timestamp = milliseconds() / 1000;
                match connection.post(&post) {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => {
                        assert_eq!(answer.status, 503, "{answer:?}");
                        client = None;
                    }
                    Err(_) => client = None,
                }
            }
            accepted.lock().expect("not poisoned").push(post.id);
            thread::sleep(pause);
        }
    }
}
