//! The program from the users' side: requests and answers, rows, the log, metrics, commands and their exit codes.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    net::TcpListener,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use chrono::Utc;
use clerk_sync::{clerk::sample, config::Settings};
use serde_json::{Value, json};
use url::Url;

use crate::{
    proxy::{Mode, Proxy},
    receivers::{Receiver, reply},
    service::{
        Answer, Client, Host, INSTANCE, Keeper, OTHER_SECRET, Post, SECRET, Service, deletion, eventually,
        free_port, milliseconds, on_each_keeper, post, skip, unique, user,
    },
};

on_each_keeper!(
    a_signed_request_becomes_a_row_an_audit_line_and_a_number,
    every_status_is_told_exactly,
    a_deletion_takes_the_row_or_anonymises_it_where_business_data_stands_in_the_way,
    what_the_application_refuses_is_parked_and_later_applied,
    what_happened_to_a_user_is_told_in_its_order,
    what_is_known_of_an_id_is_said_of_every_kind,
    without_migrations_it_is_alive_but_not_ready,
    migrations_are_listed_applied_once_and_listed_again,
    one_connection_is_enough,
    a_table_with_our_name_that_is_not_ours_is_refused_with_an_explanation,
    nothing_personal_reaches_the_log_the_metrics_or_the_errors,
    what_looks_or_removes_makes_nothing,
    what_cannot_be_taken_back_is_asked_about_first,
    with_a_prefix_an_application_can_have_tables_of_the_same_names,
    a_view_of_the_application_is_never_replaced,
);

fn with_a_prefix_an_application_can_have_tables_of_the_same_names(host: &mut Host) {
    if host.keeper == Keeper::Postgres {
        // On PostgreSQL the tables have their own schema.
        return;
    }
    host.sql("CREATE TABLE users (id bigint PRIMARY KEY, plan varchar(20))");
    host.sql("CREATE TABLE roles (id bigint PRIMARY KEY)");
    host.sql("INSERT INTO users (id, plan) VALUES (1, 'pro')");
    host.set("SYNC_ENTITIES", "all");
    host.set("TABLE_PREFIX", "clerk_");
    let service = host.serve();
    let at = milliseconds() - 5000;
    applied(&service, &user("user.created", "user_1", at, "Ada"));
    applied(&service, &user("user.updated", "user_1", at + 10, "Augusta"));
    applied(&service, &user("user.created", "user_2", at, "Grace"));
    applied(&service, &deletion("user_2", at + 20));
    let body = sample::body("role.created", "user_1", Utc::now()).expect("a sample");
    assert_eq!(service.post(&Post::new(body)).word(), "applied");
    assert_eq!(host.sql("SELECT clerk_id, first_name FROM clerk_users"), [["user_1", "Augusta"]]);
    assert_eq!(host.count("clerk_roles"), 1);
    assert_eq!(host.sql("SELECT signups FROM clerk_signups_by_week"), [["1"]]);
    assert_eq!(host.count("clerk_processed_webhooks"), 5);
    service.stop();
    for command in [
        &["doctor"][..],
        &["migrate", "status"],
        &["stats"],
        &["audit", "verify"],
        &["audit", "user_1"],
        &["prune"],
    ] {
        let finished = host.run(command);
        assert_eq!(finished.code, Some(0), "{command:?}: {finished:?}");
    }
    assert_eq!(host.sql("SELECT id, plan FROM users"), [["1", "pro"]]);
    // Other tables with the prefix are refused like any other foreign table.
    host.sql("CREATE TABLE other_users (id bigint PRIMARY KEY)");
    host.set("TABLE_PREFIX", "other_");
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("other_users"), "{refused:?}");
    host.set("TABLE_PREFIX", "9-");
    assert_eq!(host.run(&["migrate"]).code, Some(78));
}

fn a_view_of_the_application_is_never_replaced(host: &mut Host) {
    if host.keeper == Keeper::Postgres {
        host.sql(&format!("CREATE SCHEMA {}", host.schema));
    }
    host.sql("CREATE VIEW organization_members AS SELECT 7 AS theirs");
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("organization_members"), "{refused:?}");
    assert_eq!(host.sql("SELECT theirs FROM organization_members"), [["7"]]);
}

fn applied(service: &Service, event: &Value) -> Post {
    let delivery = post(event);
    let answer = service.post(&delivery);
    assert_eq!((answer.status, answer.word().as_str()), (200, "applied"), "{}", service.log());
    delivery
}

fn a_signed_request_becomes_a_row_an_audit_line_and_a_number(host: &mut Host) {
    let service = host.serve();
    let at = milliseconds() - 5000;
    let delivery = post(&user("user.created", "user_1", at, "Ada"));
    let answer = service.post(&delivery);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        answer.body,
        format!(r#"{{"status":"applied","event":"user.created","id":"{}"}}"#, delivery.id)
    );

    let row = host
        .sql("SELECT clerk_id, email, first_name, last_name, image_url, username, preferences FROM users");
    let image = "https://img.clerk.com/it";
    assert_eq!(row, [["user_1", "user_1@example.com", "Ada", "Lovelace", image, "NULL", "{}"]]);
    assert_eq!(
        host.sql("SELECT kind, clerk_id, version, event_at, tie FROM entity_versions"),
        [["user", "user_1", &at.to_string(), &(at + 20).to_string(), &delivery.id]]
    );
    let processed = host.sql("SELECT svix_id, event_type, outcome, clerk_id FROM processed_webhooks");
    assert_eq!(processed, [[delivery.id.as_str(), "user.created", "applied", "user_1"]]);
    let audit = host.sql("SELECT action, clerk_id, svix_id, source, changed_fields FROM audit_log");
    assert_eq!(audit.len(), 1);
    assert_eq!(audit[0][..4], ["USER_CREATED", "user_1", &delivery.id, "webhook"]);
    assert!(audit[0][4].contains("first_name") && !audit[0][4].contains("Ada"), "{audit:?}");
    assert_eq!(host.sql("SELECT ip, user_agent FROM audit_actors"), [["192.0.2.77", "Firefox"]]);
    assert_eq!(host.sql("SELECT signups FROM signups_by_week"), [["1"]]);

    let counted = r#"clerk_sync_webhooks_total{event="user.created",outcome="applied",kind="user"}"#;
    assert_eq!(service.metric(counted), Some(1.0));
    assert_eq!(service.metric(r#"clerk_sync_webhook_duration_seconds_count{outcome="applied"}"#), Some(1.0));
    assert_eq!(service.metric("clerk_sync_commit_batch_size_count"), Some(1.0));
    assert_eq!(service.metric("clerk_sync_commit_duration_seconds_count"), Some(1.0));
    assert!(service.metric("clerk_sync_last_event_timestamp_seconds").is_some_and(|at| at > 1e9));

    let lines = service.lines_about(&delivery.id);
    assert_eq!(lines.len(), 1, "one line per event: {lines:?}");
    assert_eq!((&lines[0]["event"], &lines[0]["outcome"]), (&json!("user.created"), &json!("applied")));
    assert!(lines[0]["duration_ms"].is_u64(), "{lines:?}");
    service.stop();
}

fn every_status_is_told_exactly(host: &mut Host) {
    let service = host.serve();
    let at = milliseconds() - 60_000;
    let created = user("user.created", "user_1", at, "Ada");
    let mut told: Vec<(Post, Value, &str)> = Vec::new();
    let mut tell = |delivery: Post, event: Value, status: &'static str| {
        let answer = service.post(&delivery);
        let expected = json!({ "status": status, "event": event, "id": delivery.id });
        assert_eq!((answer.status, answer.json()), (200, expected), "{}", service.log());
        told.push((delivery, event, status));
    };
    let twin = |prefix| Post { id: unique(prefix), ..post(&created) };
    let first = twin("msg_b");
    tell(first.clone(), json!("user.created"), "applied");
    tell(first, json!("user.created"), "duplicate");
    // Two events of the same millisecond are ordered by their svix-ids.
    tell(twin("msg_a"), json!("user.created"), "stale");
    tell(twin("msg_c"), json!("user.created"), "unchanged");
    tell(post(&user("user.updated", "user_1", at + 10, "Ada")), json!("user.updated"), "unchanged");
    tell(post(&user("user.updated", "user_1", at + 20, "Augusta")), json!("user.updated"), "applied");
    tell(post(&user("user.updated", "user_1", at + 15, "Late")), json!("user.updated"), "stale");
    tell(
        post(&json!({ "type": "session.created", "data": { "id": "sess_1" } })),
        json!("session.created"),
        "ignored",
    );
    tell(post(&json!({ "type": "brand.new", "data": null })), json!("brand.new"), "ignored");
    tell(
        post(&json!({ "type": "user.deleted", "data": { "deleted": true } })),
        json!("user.deleted"),
        "ignored",
    );
    tell(post(&json!({ "type": "user.created", "data": { "id": 7 } })), json!("user.created"), "parked");
    tell(Post::new("not JSON at all"), Value::Null, "parked");
    tell(Post::new(""), Value::Null, "parked");
    tell(post(&deletion("user_1", at + 5)), json!("user.deleted"), "applied");
    tell(post(&deletion("user_1", at + 30)), json!("user.deleted"), "stale");
    tell(post(&user("user.updated", "user_1", at + 50_000, "Back")), json!("user.updated"), "stale");
    tell(post(&deletion("user_never_seen", at)), json!("user.deleted"), "applied");

    for (delivery, event, status) in &told {
        let id = &delivery.id;
        let parked = host.count(&format!("webhook_queue WHERE svix_id = '{id}' AND state = 'dead'"));
        let processed = host.count(&format!("processed_webhooks WHERE svix_id = '{id}'"));
        assert_eq!(
            (parked, processed),
            if *status == "parked" { (1, 0) } else { (0, 1) },
            "{event} {status}"
        );
    }
    assert_eq!(host.count("users"), 0);
    let actions: Vec<String> = host.sql("SELECT action FROM audit_log ORDER BY id").concat();
    assert_eq!(actions, ["USER_CREATED", "USER_UPDATED", "USER_HARD_DELETED"]);
    assert_eq!(host.count("audit_actors"), 0, "an erasure deletes the user's actors");
    for (name, expected) in [
        (r#"clerk_sync_webhooks_total{event="user.updated",outcome="stale",kind="user"}"#, 2.0),
        (r#"clerk_sync_webhooks_total{event="user.updated",outcome="unchanged",kind="user"}"#, 1.0),
        (r#"clerk_sync_webhooks_total{event="user.created",outcome="duplicate",kind="user"}"#, 1.0),
        (r#"clerk_sync_webhooks_total{event="other",outcome="ignored",kind="other"}"#, 1.0),
        (r#"clerk_sync_webhooks_total{event="other",outcome="parked",kind="other"}"#, 2.0),
    ] {
        assert_eq!(service.metric(name), Some(expected), "{name}");
    }
    eventually("the queue's depth is shown", || {
        service.metric(r#"clerk_sync_queue_depth{state="dead"}"#) == Some(3.0)
    });
    service.stop();
}

fn a_deletion_takes_the_row_or_anonymises_it_where_business_data_stands_in_the_way(host: &mut Host) {
    let service = host.serve();
    let at = milliseconds() - 60_000;
    for id in ["user_free", "user_buyer"] {
        applied(&service, &user("user.created", id, at, "Ada"));
    }
    host.sql("CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users (id))");
    host.sql("INSERT INTO orders SELECT 1, id FROM users WHERE clerk_id = 'user_buyer'");
    let id = host.value("SELECT id FROM users WHERE clerk_id = 'user_buyer'");
    for id in ["user_free", "user_buyer"] {
        applied(&service, &deletion(id, at + 1000));
    }
    let rows = host.sql("SELECT clerk_id, email, first_name, last_name, image_url FROM users");
    let address = format!("deleted-{id}@anonymized.local");
    assert_eq!(rows, [["user_buyer", address.as_str(), "Deleted", "User", "NULL"]]);
    assert_eq!(host.count("users WHERE deleted_at IS NOT NULL"), 1);
    let actions: HashSet<String> = host.sql("SELECT action FROM audit_log").concat().into_iter().collect();
    assert_eq!(actions, ["USER_CREATED", "USER_HARD_DELETED", "USER_ANONYMIZED"].map(str::to_owned).into());
    service.stop();
}

fn what_the_application_refuses_is_parked_and_later_applied(host: &mut Host) {
    let service = host.serve();
    host.refuse_first_name("Mallory");
    let delivery = post(&user("user.created", "user_1", milliseconds(), "Mallory"));
    let answer = service.post(&delivery);
    let parked = json!({ "status": "parked", "event": "user.created", "id": delivery.id });
    assert_eq!((answer.status, answer.json()), (200, parked));
    assert_eq!(host.value("SELECT state FROM webhook_queue"), "pending");
    assert_eq!(host.count("users"), 0);
    host.allow_first_names();
    // The delivery arrives by Svix's "replay" or by our own retry, whichever comes first.
    assert_eq!(service.post(&delivery).word(), "applied");
    assert_eq!((host.count("users"), host.count("webhook_queue")), (1, 0));
    service.stop();
}

fn without_migrations_it_is_alive_but_not_ready(host: &mut Host) {
    let service = host.begin(&["--no-migrate"]);
    let said = service.log();
    assert!(
        said.contains("not ready until the migrations") && !said.contains(r#""message":"ready""#),
        "{said}"
    );
    assert_eq!(service.get("/livez").status, 200);
    for path in ["/readyz", "/healthz"] {
        let answer = service.get(path);
        assert_eq!((answer.status, answer.word().as_str()), (503, "schema_not_current"));
        assert!(answer.headers.contains_key("retry-after"));
    }
    let answer = service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada")));
    assert_eq!(answer.status, 503, "{answer:?}");
    host.run(&["migrate"]).succeeded();
    eventually("ready after the migrations", || service.status("/readyz") == Some(200));
    applied(&service, &user("user.created", "user_1", milliseconds(), "Ada"));
    service.stop();
}

fn what_happened_to_a_user_is_told_in_its_order(host: &mut Host) {
    let service = host.serve();
    let first = applied(&service, &user("user.created", "user_1", milliseconds() - 2000, "Ada"));
    applied(&service, &user("user.updated", "user_1", milliseconds() - 1000, "Augusta"));
    applied(&service, &deletion("user_1", milliseconds()));
    service.stop();
    let text = host.run(&["audit", "user_1"]).succeeded();
    let actions: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(actions, ["USER_CREATED", "USER_UPDATED", "USER_HARD_DELETED"], "{text}");
    assert!(!text.contains("Ada") && !text.contains("example.com"), "{text}");
    let lines = host.run(&["audit", "user_1", "--json"]).succeeded();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["svix_id"], first.id.as_str());
    assert_eq!(lines[1]["changed_fields"], json!(["first_name"]));
    assert_eq!(lines[1]["kind"], "user");
    // Unknown to `audit` and `erase status` at first; after the erasure, the tombstone counts as known.
    for known in [false, true] {
        for command in
            [["audit", "user_2"].as_slice(), &["erase", "status", "user_2"], &["audit", "user_2", "--json"]]
        {
            let told = host.run(command);
            assert_eq!(told.code, Some(i32::from(!known)), "{command:?}: {told:?}");
            let words = "user_2 is unknown here";
            assert_eq!(told.stderr.contains(words), !known, "{command:?}: {told:?}");
        }
        let stranger = host.run(&["erase", "user_2", "--yes"]).succeeded();
        assert!(known || stranger.contains("so this user cannot be added later"), "{stranger}");
    }
}

fn what_is_known_of_an_id_is_said_of_every_kind(host: &mut Host) {
    host.set("SYNC_ENTITIES", "all");
    let service = host.serve();
    let mut joined = user("organizationMembership.created", "orgmem_1", milliseconds(), "");
    joined["data"]["organization"] = json!({ "id": "org_1" });
    joined["data"]["public_user_data"] = json!({ "user_id": "user_1" });
    applied(&service, &joined);
    let mut closed = deletion("org_2", milliseconds());
    closed["type"] = "organization.deleted".into();
    applied(&service, &closed);
    service.stop();
    // A membership of a user or organization does not make that user or organization known.
    for unknown in [["audit", "user_1"].as_slice(), &["erase", "status", "user_1"], &["audit", "org_1"]] {
        let told = host.run(unknown);
        assert_eq!(told.code, Some(1), "{unknown:?}: {told:?}");
        assert!(told.stderr.contains("is unknown here"), "{unknown:?}: {told:?}");
    }
    assert!(host.run(&["audit", "orgmem_1"]).succeeded().contains("ORGANIZATION_MEMBERSHIP_CREATED"));
    let told = host.run(&["audit", "org_2"]);
    assert_eq!(told.code, Some(0), "a tombstone of any kind counts: {told:?}");
    assert!(!told.stderr.contains("erase status"), "`erase status` is for users only: {told:?}");
}

fn one_connection_is_enough(host: &mut Host) {
    host.set("DATABASE_MAX_CONNECTIONS", "1");
    host.run(&["migrate"]).succeeded();
    let service = host.serve();
    assert_eq!(service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada"))).word(), "applied");
    host.run(&["erase", "user_1", "--yes"]).succeeded();
    service.stop();
}

fn migrations_are_listed_applied_once_and_listed_again(host: &mut Host) {
    let first = match host.keeper {
        Keeper::Mariadb | Keeper::Mysql => "0017_tables",
        Keeper::Mongodb => "0001_collections",
        Keeper::Postgres | Keeper::Sqlite => "0001_users",
    };
    let listed = host.run(&["migrate", "status"]).succeeded();
    assert!(listed.contains(&format!("pending  {first}")) && !listed.contains("applied"), "{listed}");
    let applied = host.run(&["migrate"]).succeeded();
    assert!(applied.contains(&format!("applied  {first}")), "{applied}");
    assert!(host.run(&["migrate"]).succeeded().contains("nothing to do"));
    let listed = host.run(&["migrate", "status"]).succeeded();
    assert!(listed.contains(&format!("applied  {first}")) && !listed.contains("pending"), "{listed}");
}

/// As `pg_dump --data-only` would dump it: every table, including that of the migrations.
#[test]
fn a_dump_of_the_data_alone_is_restored_into_new_tables() {
    let Some(old) = Host::with(Keeper::Postgres) else { return };
    let Some(new) = Host::with(Keeper::Postgres) else { return };
    let service = old.serve();
    applied(&service, &user("user.created", "user_1", milliseconds() - 1000, "Ada"));
    service.stop();
    new.run(&["migrate"]).succeeded();
    let tables = old.sql(&format!("SELECT tablename FROM pg_tables WHERE schemaname = '{}'", old.schema));
    for table in tables.iter().flatten() {
        let (to, from) = (&new.schema, &old.schema);
        new.sql(&format!("INSERT INTO {to}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {from}.{table}"));
    }
    assert!(new.run(&["migrate"]).succeeded().contains("nothing to do"));
    let listed = new.run(&["migrate", "status"]).succeeded();
    assert!(!listed.contains("pending"), "{listed}");
    let service = new.serve();
    applied(&service, &user("user.updated", "user_1", milliseconds(), "Augusta"));
    service.stop();
}

/// drizzle-kit cannot read a file with a view on several lines.
#[test]
fn views_stand_on_one_line_in_sqlites_file() {
    let Some(host) = Host::with(Keeper::Sqlite) else { return };
    host.run(&["migrate"]).succeeded();
    for view in host.sql("SELECT sql FROM sqlite_master WHERE type = 'view'").iter().flatten() {
        assert!(view.contains(" AS SELECT ") && !view.contains('\n'), "{view}");
    }
}

fn a_table_with_our_name_that_is_not_ours_is_refused_with_an_explanation(host: &mut Host) {
    if host.keeper == Keeper::Postgres {
        host.sql(&format!("CREATE SCHEMA {}", host.schema));
    }
    host.sql("CREATE TABLE users (id integer PRIMARY KEY, clerk_id text, email integer)");
    for arguments in [&["serve"][..], &["migrate"]] {
        let refused = host.run(arguments);
        assert_eq!(refused.code, Some(78), "{refused:?}");
        for words in
            ["table users", "column first_name is missing", "column email is of type", "Nothing was changed"]
        {
            assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
        }
    }
    let listed = host.run(&["migrate", "status"]).succeeded();
    assert!(listed.contains("pending"), "{listed}");
}

fn nothing_personal_reaches_the_log_the_metrics_or_the_errors(host: &mut Host) {
    const SECRET_WITH_MARKER: &str = "whsec_TUFSS0VSTUFSS0VSTUFSS0VSTUFSS0VS";
    host.set("RUST_LOG", "trace,sqlx=trace,hyper=trace,tower=trace,h2=trace,tokio=trace");
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", SECRET_WITH_MARKER);
    host.set("CLERK_SECRET_KEY", "sk_test_MARKERkey");
    host.set("ADMIN_TOKEN", "MARKERtoken");
    host.set(
        "SYNC_FIELDS",
        "email,email_verified,first_name,last_name,image_url,username,phone_number,external_id,public_metadata,\
         unsafe_metadata,private_metadata,banned,locked,last_sign_in_at,last_active_at",
    );
    let service = host.serve();
    host.refuse_first_name("MARKERrefused");
    host.sql("CREATE UNIQUE INDEX once ON users (email)");
    let event = |id: &str, first_name: &str, email: &str, metadata: &str| {
        let mut event = user("user.created", id, milliseconds(), first_name);
        let data = &mut event["data"];
        data["last_name"] = json!("MARKERlast");
        data["email_addresses"][0]["email_address"] = json!(email);
        data["username"] = json!("MARKERname\u{0}");
        data["phone_numbers"] = json!([{ "id": "idn_2", "phone_number": "+49MARKER" }]);
        data["primary_phone_number_id"] = json!("idn_2");
        data["external_id"] = json!("MARKERexternal");
        data["image_url"] = json!("https://MARKER");
        data["private_metadata"] = json!({ "MARKERkey": "MARKERvalue" });
        event["event_attributes"]["http_request"] =
            json!({ "client_ip": "203.0.113.199", "user_agent": "MARKERagent" });
        event.to_string().replace("\"METADATA\"", metadata).replacen(
            "\"object\":\"user\"",
            &format!("\"public_metadata\":{metadata},\"object\":\"user\""),
            1,
        )
    };
    let deep = format!("{}\"MARKER\"{}", "[".repeat(20_000), "]".repeat(20_000));
    let bodies = [
        (event("user_1", "MARKERfirst", "MARKER@example.com", r#"{"MARKER":1}"#), "applied"),
        // The same address as that of another user, which an application's index refuses with a DETAIL.
        (event("user_2", "MARKERfirst", "MARKER@example.com", "{}"), "parked"),
        (event("user_3", "MARKERrefused", "MARKER3@example.com", "{}"), "parked"),
        (event("user_4", "MARKERfirst", "MARKER4@example.com", r#"{"MARKER":1e1000000}"#), "any"),
        (event("user_5", "MARKERfirst", "MARKER5@example.com", &deep), "any"),
        (event("user_6", "MARKERfirst", &format!("MARKER{}", "x".repeat(20_000)), "{}"), "any"),
        (r#"{"type":"user.created","data":{"id":["MARKER"],"first_name":"MARKER"}}"#.to_owned(), "parked"),
        (r#"{"type":"user.created","data":{"id":"user_7","first_name":["MARKER"]}}"#.to_owned(), "parked"),
        ("MARKER is no JSON".to_owned(), "parked"),
    ];
    let mut everything = String::new();
    for (body, expected) in bodies {
        let delivery = Post {
            secret: SECRET_WITH_MARKER,
            more_headers: "x-request-id: MARK=\"ER\r\nuser-agent: MARKERagent\r\ncookie: MARKER=1\r\n"
                .to_owned(),
            ..Post::new(body)
        };
        let answer = service.post(&delivery);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(expected == "any" || answer.word() == expected, "{expected}: {answer:?}");
        everything.push_str(&answer.body);
        let forged = Post { body: format!("{} MARKER", delivery.body), secret: OTHER_SECRET, ..delivery };
        let answer = service.post(&forged);
        assert_eq!(answer.word(), "invalid_signature");
        everything.push_str(&answer.body);
    }
    // Valid and invalid requests to the private API, before the user is deleted.
    let found = service.get_api("/v1/users?email=MARKER%40example.com", Some("Bearer MARKERtoken"));
    assert!(found.status == 200 && found.body.contains("MARKERfirst"), "{found:?}");
    for (path, authorization) in [
        ("/v1/users?email=MARKER%40example.com", None),
        ("/v1/users?email=MARKER%40example.com&limit=MARKER", Some("Bearer MARKERtoken")),
        ("/v1/users?MARKER=MARKER%40example.com", Some("Bearer MARKERtoken")),
        ("/v1/users/MARKER%40example.com", Some("Bearer MARKERtoken")),
        ("/v1/MARKER", Some("Bearer MARKERtoken")),
        ("/v1/users", Some("Bearer MARKERwrong")),
    ] {
        let refused = service.get_api(path, authorization);
        assert!((400..500).contains(&refused.status), "{refused:?}");
        everything.push_str(&refused.body);
    }
    let gone = Post { secret: SECRET_WITH_MARKER, ..post(&deletion("user_1", milliseconds())) };
    assert_eq!(service.post(&gone).word(), "applied");
    everything.push_str(&service.get_private("/metrics").body);
    everything.push_str(&service.get("/MARKER?MARKER=1").body);
    for row in host.sql("SELECT coalesce(last_error, '') FROM webhook_queue") {
        everything.push_str(&row[0]);
    }
    service.terminate();
    let mut service = service;
    assert_eq!(service.wait(Duration::from_secs(20)).code(), Some(0));
    let log = service.log();
    assert!(log.contains(r#""fields":"first_name""#), "the log names a field that cannot be read: {log}");
    assert!(log.contains("parked: kept in webhook_queue"), "{log}");
    everything.push_str(&log);
    for marker in ["MARKER", "TUFSS0VS", "203.0.113.199", "example.com", "xxxx"] {
        let place = everything.find(marker);
        assert!(
            place.is_none(),
            "{marker}: {}",
            place.map_or("", |at| &everything[at.saturating_sub(300)..])
        );
    }
    let about_errors = host.run(&["migrate", "status"]);
    assert!(!format!("{about_errors:?}").contains("MARKER"));
}

/// A host on SQLite, which is always available.
fn host() -> Host {
    Host::with(Keeper::Sqlite).expect("SQLite is always there")
}

fn created() -> Post {
    post(&user("user.created", &unique("user_"), milliseconds(), "Ada"))
}

/// Assert the status, code and shape of an error answer.
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.word().as_str()), (status, code), "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    let json = answer.json();
    let message = json["error"]["message"].as_str().expect("a message");
    assert!(!message.is_empty());
    assert_eq!(json, json!({ "error": { "code": code, "message": message } }));
}

#[test]
fn both_routes_and_both_header_families_are_the_same() {
    let host = host();
    let service = host.serve();
    for path in ["/webhooks/clerk", "/api/webhooks/clerk"] {
        for family in ["svix", "webhook"] {
            let delivery = Post { path, family, ..created() };
            assert_eq!(service.post(&delivery).word(), "applied", "{path} {family}");
            // The delivery with the other header names is a duplicate.
            let other = if family == "svix" { "webhook" } else { "svix" };
            assert_eq!(service.post(&Post { family: other, ..delivery }).word(), "duplicate");
        }
    }
    assert_eq!(host.count("users"), 4);
}

#[test]
fn the_configuration_is_shown_with_its_origins_and_without_secrets() {
    let mut host = host();
    host.set("CLERK_SECRET_KEY", "sk_live_hunter2");
    host.write(".env", "QUEUE_MAX_ATTEMPTS=7\nADMIN_TOKEN=hunter2\nPROCESSING=\n");
    let secret = host.write("secret", SECRET);
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    host.set("CLERK_WEBHOOK_SIGNING_SECRET_FILE", &secret);
    let text = host.run(&["config", "--sync-fields", "email,username"]).succeeded();
    let shown = host.run(&["config", "--json", "--sync-fields", "email,username"]).succeeded();
    assert!(!format!("{text}{shown}").contains("hunter2"), "{text}");
    let json: Value = serde_json::from_str(&shown).unwrap();
    for (variable, value, origin) in [
        ("SYNC_FIELDS", json!("email,username"), "command line (--sync-fields)"),
        ("CLERK_SECRET_KEY", json!("sk_live_…"), "environment"),
        ("CLERK_WEBHOOK_SIGNING_SECRET", json!("1 secret"), "file of CLERK_WEBHOOK_SIGNING_SECRET_FILE"),
        ("QUEUE_MAX_ATTEMPTS", json!("7"), ".env"),
        ("PROCESSING", json!("inline"), "default"),
        ("DELETION_GRACE_DAYS", json!("0"), "default"),
        ("CLERK_INSTANCE_ID", json!(null), "default"),
    ] {
        assert_eq!(json[variable], json!({ "value": value, "origin": origin }), "{variable}");
        assert!(text.lines().any(|line| line.starts_with(variable) && line.ends_with(origin)), "{text}");
    }
    let variables = Settings::variables().into_iter().filter(|name| !name.ends_with("_URL_FILE"));
    let plain: Vec<String> =
        variables.filter(|name| !name.ends_with("_FILE") || name == "CONFIG_FILE").collect();
    assert_eq!(json.as_object().unwrap().len(), plain.len(), "every variable is listed: {plain:?}");
    // An invalid value is not shown, and all others are.
    let refused = host.run(&["config", "--json", "--port", "x"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("PORT (--port): found \"x\""), "{refused:?}");
    let shown: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(shown["PORT"], json!({ "value": null, "origin": "command line (--port)" }));
    assert_eq!(shown["PROCESSING"]["value"], "inline");
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET_FILE");
    let refused = host.run(&["config"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    let line = refused.stdout.lines().find(|line| line.starts_with("CLERK_WEBHOOK_SIGNING_SECRET")).unwrap();
    assert!(line.contains("  (not set)  ") && line.ends_with("  default"), "{refused:?}");
    let words = "`clerk-sync serve` would refuse this:\n  CLERK_WEBHOOK_SIGNING_SECRET (--clerk-webhook-signing-secret): not set";
    assert!(refused.stderr.contains(words), "{refused:?}");
}

#[test]
fn health_can_be_asked_without_curl() {
    let mut host = host();
    host.set("ADMIN_PORT", "1");
    assert_eq!(host.run(&["healthcheck"]).code, Some(69));
    host.set("ADMIN_PORT", "0");
    let service = host.serve();
    let port = service.private.port().to_string();
    assert_eq!(host.run(&["healthcheck", "--admin-port", &port]).succeeded(), "ready\n");
    assert_eq!(host.run(&["healthcheck", "--live", "--admin-port", &port]).succeeded(), "alive\n");
    assert_eq!(host.run(&["healthcheck"]).code, Some(2), "only the service knows the chosen port");
}

#[test]
fn of_an_answer_that_never_ends_no_more_is_read_than_the_service_would_say() {
    let mut host = host();
    let long =
        format!(r#"{{"status":"applied","error":{{"message":"hunter2"}},"more":"{}"}}"#, "x".repeat(1 << 20));
    let receiver =
        Receiver::start(move |request| reply(if request.method == "GET" { 503 } else { 200 }, long.clone()));
    let sent = host.run(&["send", "user.created", "--url", &receiver.url]);
    assert_eq!(sent.code, Some(1), "{sent:?}");
    assert!(sent.stdout.contains("(not clerk-sync's answer)"), "{sent:?}");
    host.set("ADMIN_PORT", receiver.url.rsplit(':').next().unwrap());
    let asked = host.run(&["healthcheck"]);
    assert_eq!((asked.code, asked.stderr.as_str()), (Some(1), "clerk-sync: not ready: 503\n"));
}

#[test]
fn send_fails_where_something_else_answers_200() {
    let host = host();
    for (status, body) in [
        (200, ""),
        (200, "<html>It works!</html>"),
        (200, r#"{"status":"ok"}"#),
        (204, ""),
        (200, r#"{"status":"applied","event":"user.created","id":"msg_of_somebody_else"}"#),
        (404, "not found"),
    ] {
        let proxy = Receiver::start(move |_| reply(status, body.to_owned()));
        let sent = host.run(&["send", "user.created", "--url", &proxy.url, "--count", "2"]);
        assert_eq!(sent.code, Some(1), "{body}: {sent:?}");
        assert!(sent.stdout.contains("(not clerk-sync's answer)"), "{body}: {sent:?}");
        assert!(sent.stdout.contains("another program answers there"), "{body}: {sent:?}");
        assert!(sent.stderr.contains("2 were not accepted out of 2 sent"), "{body}: {sent:?}");
    }
}

#[test]
fn shells_and_man_get_what_they_need() {
    let host = host();
    for shell in ["bash", "zsh", "fish"] {
        let script = host.run(&["completions", shell]).succeeded();
        assert!(script.contains("reconcile") && script.contains("dry-run"), "{shell}");
    }
    assert!(host.run(&["man"]).succeeded().contains(".TH clerk-sync 1"));
    host.run(&["man", "--dir", &host.path("man")]).succeeded();
    assert!(std::fs::read_to_string(host.path("man/clerk-sync-queue-retry.1")).unwrap().contains("dry"));
}

#[test]
fn what_cannot_be_believed_is_answered_400_with_its_code() {
    let host = host();
    let service = host.serve();
    let good = String::from_utf8(created().bytes()).expect("text");
    let without = |name: &str| {
        let lines: Vec<&str> = good.split("\r\n").filter(|line| !line.starts_with(name)).collect();
        lines.join("\r\n")
    };
    for name in ["svix-id", "svix-timestamp", "svix-signature"] {
        assert_refused(&service.ask(without(name).as_bytes()), 400, "missing_headers");
        let blank = without(name).replacen("\r\nhost", &format!("\r\n{name}:  \r\nhost"), 1);
        assert_refused(&service.ask(blank.as_bytes()), 400, "missing_headers");
    }
    let mixed = good.replace("svix-id", "webhook-id");
    assert_refused(&service.ask(mixed.as_bytes()), 400, "missing_headers");

    let at = |timestamp: &str| {
        let lines: Vec<String> = good
            .split("\r\n")
            .map(|line| match line.strip_prefix("svix-timestamp: ") {
                Some(_) => format!("svix-timestamp: {timestamp}"),
                None => line.to_owned(),
            })
            .collect();
        service.ask(lines.join("\r\n").as_bytes())
    };
    for timestamp in ["soon", "1.5", "+1700000000", "-1", "0x10", "1e9", "99999999999999999999999"] {
        assert_refused(&at(timestamp), 400, "invalid_timestamp");
    }
    for (seconds, status) in [(-400, 400), (400, 400), (-290, 200), (290, 200)] {
        let delivery = Post { timestamp: Utc::now().timestamp() + seconds, ..created() };
        let answer = service.post(&delivery);
        if status == 400 {
            assert_refused(&answer, 400, "timestamp_out_of_tolerance");
        } else {
            assert_eq!(answer.word(), "applied");
        }
    }
    assert_refused(&service.post(&Post { secret: OTHER_SECRET, ..created() }), 400, "invalid_signature");
    let rejections = |reason: &str| {
        service.metric(&format!("clerk_sync_rejections_total{{reason=\"{reason}\"}}")).expect("a number")
    };
    let counts = ["missing_headers", "invalid_timestamp", "timestamp_out_of_tolerance", "invalid_signature"];
    assert_eq!(counts.map(rejections).map(|count| count.to_string()), ["7", "7", "2", "1"]);
    assert_eq!(
        service.metric(r#"clerk_sync_webhooks_total{event="other",outcome="rejected",kind="other"}"#),
        Some(17.0)
    );
}

#[test]
fn what_is_not_there_is_404_and_what_is_not_done_there_is_405_with_allow() {
    let host = host();
    let service = host.serve();
    for path in ["/", "/metrics", "/webhooks", "/webhooks/clerk/", "/v1/users", "/.env", "//webhooks/clerk"] {
        assert_refused(&service.get(path), 404, "not_found");
    }
    for path in ["/webhooks/clerk", "/api/webhooks/clerk"] {
        let answer = service.get(path);
        assert_refused(&answer, 405, "method_not_allowed");
        assert_eq!(answer.headers["allow"], "POST");
    }
    let answer = service.ask(b"POST /livez HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
    assert_refused(&answer, 405, "method_not_allowed");
    assert!(answer.headers["allow"].contains("GET"), "{answer:?}");
}

#[test]
fn what_is_too_large_is_413_and_the_sender_sees_it() {
    let mut host = host();
    host.set("WEBHOOK_MAX_BODY_BYTES", "2000");
    let service = host.serve();
    // The whole body is sent before the answer is read.
    let large = Post::new("x".repeat(3_000_000));
    assert_refused(&service.post(&large), 413, "body_too_large");
    let mut client = service.client();
    let head = format!("{}transfer-encoding: chunked\r\n\r\n", Post::new("").head_without_length());
    client.send(head.as_bytes()).expect("sent");
    for _ in 0..30 {
        client.send(format!("64\r\n{}\r\n", "x".repeat(100)).as_bytes()).expect("sent");
    }
    assert_refused(&client.answer().expect("an answer"), 413, "body_too_large");
    let exact = Post::new("x".repeat(2000));
    assert_eq!(service.post(&exact).word(), "parked");
    assert_eq!(service.metric(r#"clerk_sync_rejections_total{reason="body_too_large"}"#), Some(2.0));
}

#[test]
fn a_head_that_is_too_large_is_431_and_a_body_that_does_not_come_is_408() {
    let host = host();
    let service = host.serve();
    let mut client = service.client();
    client.send(created().head().as_bytes()).expect("sent");
    let started = Instant::now();
    let mut large = service.client();
    let head = format!("GET /livez HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    // The server may answer and close the connection before everything is sent.
    _ = large.send(head.as_bytes());
    assert_eq!(large.answer().expect("an answer").status, 431);
    assert_refused(&client.answer().expect("an answer"), 408, "body_timeout");
    let took = started.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
    assert!(client.is_closed_within(Duration::from_secs(5)));
}

#[test]
fn an_instance_pin_refuses_the_events_of_others() {
    let mut host = host();
    host.set("CLERK_INSTANCE_ID", INSTANCE);
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    let mut event = user("user.created", "user_other", milliseconds(), "Ada");
    event["instance_id"] = json!("ins_other");
    assert_refused(&service.post(&post(&event)), 403, "wrong_instance");
    event.as_object_mut().expect("an object").remove("instance_id");
    assert_eq!(service.post(&post(&event)).word(), "applied");
    assert_eq!(host.count("users"), 2);
}

#[test]
fn an_allow_list_knows_callers_by_their_trusted_proxies_only() {
    let forwarded = |by: &str| Post { more_headers: format!("x-forwarded-for: {by}\r\n"), ..created() };
    let mut host = host();
    host.set("WEBHOOK_ALLOWED_IPS", "svix");
    let service = host.serve();
    assert_refused(&service.post(&created()), 403, "address_not_allowed");
    // No proxy is trusted, so the header does not count.
    assert_refused(&service.post(&forwarded("52.215.16.239")), 403, "address_not_allowed");
    service.stop();
    host.set("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8");
    let service = host.serve();
    assert_eq!(service.post(&forwarded("52.215.16.239")).word(), "applied");
    assert_eq!(service.post(&forwarded("203.0.113.9, 52.215.16.239, 10.0.0.1")).word(), "applied");
    for by in ["52.215.16.239, 203.0.113.9", "203.0.113.9", "unknown", ""] {
        assert_refused(&service.post(&forwarded(by)), 403, "address_not_allowed");
    }
    assert_refused(&service.post(&created()), 403, "address_not_allowed");
    // Probes are allowed from any address.
    assert_eq!(service.get("/readyz").status, 200);
    service.stop();
    host.set("WEBHOOK_ALLOWED_IPS", "127.0.0.1,192.0.2.0/24");
    host.unset("TRUSTED_PROXIES");
    assert_eq!(host.serve().post(&created()).word(), "applied");
}

#[test]
fn secrets_are_rotated_by_naming_both() {
    let mut host = host();
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", &format!("{SECRET}, {OTHER_SECRET}"));
    let service = host.serve();
    let delivery = created();
    assert_eq!(service.post(&delivery).word(), "applied");
    // Two endpoints with the same URL deliver every event twice.
    assert_eq!(service.post(&Post { secret: OTHER_SECRET, ..delivery }).word(), "duplicate");
    assert_eq!(service.post(&Post { secret: OTHER_SECRET, ..created() }).word(), "applied");
    service.stop();
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", OTHER_SECRET);
    let service = host.serve();
    assert_refused(&service.post(&created()), 400, "invalid_signature");
    // Svix's own rotation sends several signatures in one header.
    let delivery = Post { secret: OTHER_SECRET, ..created() };
    let (head, good) = (delivery.head(), delivery.signature());
    let several = head.replace(&good, &format!("v1a,AAAA v1,{} nonsense {good}", "A".repeat(43) + "="));
    assert_eq!(service.ask(format!("{several}{}", delivery.body).as_bytes()).word(), "applied");
}

#[test]
fn probes_and_numbers_stand_on_their_listeners() {
    let host = host();
    let service = host.serve();
    assert_eq!(service.get("/livez").json(), json!({ "status": "alive" }));
    for path in ["/readyz", "/healthz"] {
        assert_eq!(service.get(path).json(), json!({ "status": "ready" }));
    }
    assert_eq!(service.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(service.get("/livez").headers.contains_key("x-request-id"));
    for path in ["/livez", "/readyz"] {
        assert_eq!(service.get_private(path).status, 200);
    }
    let metrics = service.get_private("/metrics");
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"), "{metrics:?}");
    for name in [
        "clerk_sync_rejections_total{reason=\"invalid_signature\"} 0",
        "clerk_sync_queue_depth{state=\"pending\"} 0",
        "clerk_sync_queue_depth{state=\"dead\"} 0",
        "clerk_sync_erasure_failures_total 0",
        "clerk_sync_catch_up_failures_total 0",
        "clerk_sync_webhooks_total{event=\"user.created\",outcome=\"failed\",kind=\"user\"} 0",
    ] {
        assert!(metrics.body.contains(name), "{name}: {}", metrics.body);
    }
    for path in ["/webhooks/clerk", "/version"] {
        assert_eq!(service.get_private(path).status, 404);
    }
}

#[test]
fn dev_tells_a_story_in_an_empty_directory_and_leaves() {
    let mut host = host();
    for name in [
        "DATABASE_URL",
        "DATABASE_SCHEMA",
        "CLERK_WEBHOOK_SIGNING_SECRET",
        "PORT",
        "ADMIN_PORT",
        "LOG_FORMAT",
    ] {
        host.unset(name);
    }
    let told = host.run(&["dev", "--sample", "--once"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let out = &told.stdout;
    let words =
        ["200 applied", "200 duplicate", "200 stale", "400 invalid_signature", "msg_", "whsec_", "Lovelace"];
    for word in words {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert!(!told.stderr.contains("whsec_"), "{told:?}");
    assert!(
        std::fs::metadata(host.path("clerk-sync.db")).is_ok(),
        "the database is created in this directory"
    );
    // A second run works on the existing database.
    host.run(&["dev", "--sample", "--once"]).succeeded();
}

#[test]
fn dev_never_touches_the_database_of_the_environment() {
    let mut host = host();
    let precious = host.path("precious.db");
    host.set("DATABASE_URL", &format!("sqlite://{precious}"));
    host.run(&["dev", "--sample", "--once"]).succeeded();
    host.unset("DATABASE_URL");
    host.write(".env", &format!("DATABASE_URL=sqlite://{precious}\n"));
    host.run(&["dev", "--sample", "--once"]).succeeded();
    host.write("url", &format!("sqlite://{precious}"));
    host.write(".env", "DATABASE_URL_FILE=url\n");
    host.run(&["dev", "--sample", "--once"]).succeeded();
    assert!(std::fs::metadata(&precious).is_err(), "the samples reached the precious database");
    let url = format!("sqlite://{precious}");
    host.run(&["dev", "--sample", "--once", "--database-url", &url]).succeeded();
    assert!(std::fs::metadata(&precious).is_ok());
}

#[test]
fn dev_says_what_it_ignores_and_makes_the_same_users_in_every_run() {
    let mut host = host();
    host.set("DATABASE_URL", &format!("sqlite://{}", host.path("precious.db")));
    let first = host.run(&["dev", "--fake-clerk", "30", "--once"]).succeeded();
    assert!(first.contains("DATABASE_URL of the environment or .env: ignored"), "{first}");
    assert!(first.contains("30 users, 30 of them written"), "{first}");
    // The fake has stopped by then.
    assert!(!first.contains("CLERK_API_URL="), "{first}");
    host.unset("DATABASE_URL");
    let second = host.run(&["dev", "--fake-clerk", "30", "--once"]).succeeded();
    assert!(second.contains("30 users, 0 of them written") && !second.contains("ignored"), "{second}");
    host.set("SYNC_ENTITIES", "user,subscription");
    let third = host.run(&["dev", "--fake-clerk", "30", "--once"]).succeeded();
    assert!(third.contains("subscriptions: switched off at Clerk"), "{third}");
    let service = Service::start(host.command(&["dev", "--fake-clerk", "0"]));
    eventually("the hint to press Ctrl-C", || service.out().contains("Ctrl-C"));
    let out = service.out();
    assert!(out.contains("reconcile --dry-run") && !out.contains(" ensure "), "{out}");
    service.stop();
}

#[test]
fn samples_stay_out_of_a_real_database_and_a_service_on_one_of_samples_says_so() {
    let host = host();
    let url = host.get("DATABASE_URL").to_owned();
    let story = ["dev", "--sample", "--once", "--database-url", &url];
    host.run(&story).succeeded();
    let service = host.serve();
    let warns =
        |line: &Value| line["level"] == "WARN" && line["message"].as_str().unwrap().contains("made-up users");
    assert!(service.lines().iter().any(warns), "{}", service.log());
    service.stop();
    // A real backfill has changed the instance.
    host.sql("UPDATE clerk_instance SET instance_id = 'ins_real'");
    let before = host.count("audit_log");
    let refused = host.run(&story);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("ins_real") && refused.stderr.contains("--database-url"), "{refused:?}");
    assert_eq!(host.count("audit_log"), before);
    let service = host.serve();
    assert!(!service.lines().iter().any(warns), "{}", service.log());
    service.stop();
}

#[test]
fn dev_stays_and_prints_a_curl_command_that_works() {
    let mut host = host();
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    let service = Service::start(host.command(&["dev"]));
    eventually("the hint to press Ctrl-C", || service.out().contains("Ctrl-C"));
    let out = service.out();
    let start = out.find("curl ").expect("a curl command");
    let command = out[start..].split("\n\n").next().expect("a paragraph");
    assert_eq!(curl(&host, command).word(), "applied");
    let reading = out.lines().find(|line| line.starts_with("curl -H")).expect("a command that reads");
    let read = curl(&host, reading).body;
    assert!(read.contains(r#"{"users":[{"id":1,"clerk_id":"user_"#), "{read}");
    assert!(!service.log().contains("Bearer"), "{}", service.log());
    service.stop();
}

#[test]
fn the_log_of_dev_begins_with_the_first_event() {
    let mut host = host();
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    let url = host.get("DATABASE_URL").to_owned();
    // More audit lines than one seal covers.
    let service = Service::start(host.command(&["dev", "--fake-clerk", "150", "--database-url", &url]));
    eventually("the hint to press Ctrl-C", || service.out().contains("Ctrl-C"));
    eventually("a seal", || host.count("audit_seals") > 0);
    let out = service.out();
    let start = out.find("curl -sS ").expect("a curl command");
    assert_eq!(curl(&host, out[start..].split("\n\n").next().expect("a paragraph")).word(), "applied");
    eventually("the event", || service.log().contains("user.created"));
    let lines = service.lines();
    assert_eq!(lines[0]["message"], "webhook", "{}", service.log());
    service.stop();
}

#[test]
fn dev_keeps_a_token_of_the_environment_to_itself() {
    let mut host = host();
    host.set("ADMIN_TOKEN", "hunter2");
    let service = Service::start(host.command(&["dev"]));
    eventually("the hint to press Ctrl-C", || service.out().contains("Ctrl-C"));
    assert!(service.out().contains("$ADMIN_TOKEN"), "{}", service.out());
    assert!(!service.out().contains("hunter2"), "{}", service.out());
    assert_eq!(service.get_api("/v1/users", Some("Bearer hunter2")).status, 200);
    service.stop();
}

/// Run a printed curl command, even if curl is not installed: a shell parses the command as it would for a user, and the test's
/// client sends the request.
fn curl(host: &Host, command: &str) -> Answer {
    let shown = Command::new("sh")
        .args(["-c", &format!("curl() {{ printf '%s\\0' \"$@\"; }}\n{command}")])
        .current_dir(host.directory.path())
        .output()
        .expect("a shell");
    let words = String::from_utf8(shown.stdout).expect("text");
    let (mut head, mut body, mut url) = (String::new(), None, None);
    let mut words = words.split_terminator('\0');
    while let Some(word) = words.next() {
        match word {
            "-sS" => {}
            "-H" => head = head + words.next().expect("a header") + "\r\n",
            "--data-raw" => body = words.next(),
            word => url = Some(Url::parse(word).unwrap_or_else(|error| panic!("{word}: {error}"))),
        }
    }
    let url = url.expect("an address");
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.unwrap_or_default();
    let address = url.socket_addrs(|| None).expect("an address")[0];
    let mut client = Client::connect(address).expect("a listener");
    let length = body.len();
    let head =
        format!("{method} {} HTTP/1.1\r\nhost: test\r\n{head}content-length: {length}\r\n\r\n", url.path());
    client.send(format!("{head}{body}").as_bytes()).expect("sent");
    client.answer().expect("an answer")
}

#[test]
fn samples_are_printed_signed_and_sent() {
    let host = host();
    let service = host.serve();
    let url = format!("http://{}/webhooks/clerk", service.public);
    for event_type in ["user.created", "user.updated", "user.deleted", "session.created"] {
        let body = host.run(&["sample", event_type]).succeeded();
        let event: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(event["type"], event_type);
    }
    // A user id with characters that are dangerous in a shell.
    let id = "user_it's $(touch owned) `touch owned`";
    let command = host.run(&["sample", "user.created", "--curl", "--url", &url, "--user-id", id]).succeeded();
    assert_eq!(curl(&host, &command).word(), "applied", "{command}");
    assert_eq!(curl(&host, &command).word(), "duplicate");
    assert_eq!(host.sql("SELECT clerk_id FROM users"), [[id]]);
    assert!(std::fs::metadata(host.path("owned")).is_err());

    let told = host.run(&["send", "user.created", "--url", &url, "--count", "3"]).succeeded();
    assert_eq!(told.matches("200  applied").count(), 3, "{told}");
    assert_eq!(host.count("users"), 4);
    for (event_type, id) in
        [("organization.created", "org_1"), ("organizationMembership.deleted", "orgmem_1")]
    {
        let told = host.run(&["send", event_type, "--url", &url, "--user-id", "user_1"]).succeeded();
        assert!(told.trim_end().ends_with(&format!("  {id}")), "the object of the event: {told}");
    }

    for nobodys in ["x".repeat(256), String::new()] {
        let refused = host.run(&["send", "user.created", "--url", &url, "--user-id", &nobodys]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("255"), "{refused:?}");
    }
    let refused =
        host.run(&["send", "user.created", "--url", &url, "--clerk-webhook-signing-secret", OTHER_SECRET]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("invalid_signature"), "{refused:?}");
    let nobody = host.run(&["send", "user.created", "--url", "http://u:hunter2@127.0.0.1:1/"]);
    assert_eq!(nobody.code, Some(69), "{nobody:?}");
    assert!(!nobody.stderr.contains("hunter2"), "{nobody:?}");
    assert!(nobody.stderr.contains("no connection to http://127.0.0.1:1/"), "{nobody:?}");
    assert!(nobody.stderr.contains("sent before: 0 of 1"), "{nobody:?}");
}

#[test]
fn sample_users_share_an_organization() {
    let mut host = host();
    host.set("SYNC_ENTITIES", "user,organization,organization_membership");
    let service = host.serve();
    let url = format!("http://{}/webhooks/clerk", service.public);
    let send = |event_type: &str, user_id: &str| {
        let sent = ["send", event_type, "--url", &url, "--user-id", user_id, "--organization-id", "org_1"];
        let told = host.run(&sent).succeeded();
        assert!(told.starts_with("200  applied"), "{told}");
    };
    for user_id in ["user_ada", "user_bob"] {
        host.run(&["send", "user.created", "--url", &url, "--user-id", user_id]).succeeded();
    }
    send("organization.created", "user_ada");
    send("organizationMembership.created", "user_ada");
    send("organizationMembership.created", "user_bob");
    let members = "SELECT organization_id, user_id FROM organization_memberships ORDER BY user_id";
    assert_eq!(host.sql(members), [["org_1", "user_ada"], ["org_1", "user_bob"]]);
    send("organizationMembership.deleted", "user_ada");
    assert_eq!(host.sql(members), [["org_1", "user_bob"]]);
    let refused = host.run(&["send", "user.created", "--url", &url, "--organization-id", "org_1"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--organization-id: user.created is about neither"), "{refused:?}");
}

#[test]
fn wrong_usage_is_2() {
    let host = host();
    for arguments in
        [&[][..], &["serf"], &["serve", "--wat"], &["sample", "user.renamed"], &["migrate", "adopt"]]
    {
        let finished = host.run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("--help"), "{finished:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        let told = host.run(arguments).succeeded();
        assert!(!told.contains(SECRET), "{told}");
    }
    assert!(host.run(&["--help"]).succeeded().contains("Exit codes:"));
    let no_text = host.command(&["erase"]).arg(OsStr::from_bytes(b"\xff")).output().expect("output");
    assert_eq!(no_text.status.code(), Some(2), "{no_text:?}");
    if Path::new("/dev/full").exists() {
        let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
        for command in [["sample", "user.created"], ["completions", "bash"], ["config", "--json"]] {
            let cut_off = host.command(&command).stdout(full()).output().expect("output");
            let told = String::from_utf8_lossy(&cut_off.stderr).into_owned();
            assert_eq!(cut_off.status.code(), Some(1), "{command:?}: {told}");
            assert!(told.contains("the output is incomplete: "), "{command:?}: {told}");
        }
    }
    // The usage line omits options that the environment sets.
    for command in ["sample", "send", "ensure"] {
        let wrong = host.run(&[command]).stderr;
        assert!(wrong.contains(&format!("Usage: clerk-sync {command} [OPTIONS] <")), "{wrong}");
    }
    let (short, long) = (host.run(&["serve", "-h"]).succeeded(), host.run(&["serve", "--help"]).succeeded());
    assert!(short.contains("--no-migrate") && !short.contains("--database-url"), "{short}");
    assert!(long.contains("--no-migrate") && long.contains("--database-url"), "{long}");
}

#[test]
fn the_next_migration_is_rendered_for_every_database() {
    let rendered = host().run(&["migrate", "render", "organization"]).succeeded();
    for part in ["migrations/postgres/", "migrations/sqlite/", "migrations/mysql/", "COLLATE {bin}"] {
        assert_eq!(rendered.matches(part).count(), 1, "{part}: {rendered}");
    }
}

#[test]
fn all_mistakes_of_the_configuration_are_told_at_once_without_secrets() {
    let mut host = host();
    let mistakes = [
        ("DATABASE_URL", "mssql://root:hunter2@db/shop"),
        ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_hunter2!!"),
        ("CLERK_SECRET_KEY", "hunter2"),
        ("PORT", "70000"),
        ("ADMIN_HOST", "0.0.0.0"),
        ("SYNC_FIELDS", "email,password"),
        ("DELETION_POLICY", "maybe"),
        ("ANONYMIZE_COLUMNS", "email"),
        ("WEBHOOK_TOLERANCE_SECONDS", "-1"),
        ("WEBHOOK_MAX_BODY_BYTES", "1"),
        ("WEBHOOK_ALLOWED_IPS", "everywhere"),
        ("TRUSTED_PROXIES", "300.0.0.1"),
        ("PROCESSING", "later"),
        ("QUEUE_MAX_ATTEMPTS", "0"),
        ("PROCESSED_RETENTION_DAYS", "0"),
        ("DEAD_RETENTION_DAYS", "0"),
        ("SHUTDOWN_GRACE_SECONDS", "soon"),
        ("LOG_FORMAT", "xml"),
    ];
    for (name, value) in mistakes {
        host.set(name, value);
    }
    let refused = host.run(&["serve"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    for (name, _) in mistakes {
        assert!(refused.stderr.contains(name), "{name}: {}", refused.stderr);
    }
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
}

#[test]
fn serve_without_a_secret_is_78_and_says_where_to_find_one() {
    let mut host = host();
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    let refused = host.run(&["serve"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("CLERK_WEBHOOK_SIGNING_SECRET") && refused.stderr.contains("Dashboard"));
    let refused = host.run(&["sample", "user.created", "--curl"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
}

#[test]
fn secrets_may_stand_in_files_and_variables_in_an_env_file() {
    let mut host = host();
    let url = host.get("DATABASE_URL").to_owned();
    for name in ["DATABASE_URL", "CLERK_WEBHOOK_SIGNING_SECRET", "PORT"] {
        host.unset(name);
    }
    host.write("secret", &format!("{SECRET}\n"));
    host.write("url", &format!("{url}\n"));
    host.write(
        ".env",
        "# comment\nCLERK_WEBHOOK_SIGNING_SECRET_FILE=./secret\nDATABASE_URL_FILE=./url\nPORT=0\nADMIN_PORT=wrong\n",
    );
    // The environment's ADMIN_PORT overrides the file's.
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    assert_eq!(host.count("users"), 1);
    service.stop();

    host.set("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
    let both = host.run(&["serve"]);
    assert_eq!(both.code, Some(78), "{both:?}");
    assert!(both.stderr.contains("CLERK_WEBHOOK_SIGNING_SECRET_FILE"), "{both:?}");
    host.write(".env", "PORT=0\nhunter2 hunter2\n");
    let broken = host.run(&["serve"]);
    assert_eq!(broken.code, Some(78), "{broken:?}");
    assert!(
        broken.stderr.contains(".env: line 2 cannot be understood") && !broken.stderr.contains("hunter2"),
        "{broken:?}"
    );
}

#[test]
fn with_a_broken_env_file_the_configuration_is_shown_and_nothing_else_is_done() {
    let mut host = host();
    host.write(".env", "hunter2 hunter2\nQUEUE_MAX_ATTEMPTS=7\nhunter2\nADMIN_TOKEN=hunter2 hunter2\n");
    let shown = host.run(&["config", "--json"]);
    assert_eq!(shown.code, Some(78), "{shown:?}");
    let json: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(json["QUEUE_MAX_ATTEMPTS"], json!({ "value": "7", "origin": ".env" }));
    assert_eq!(json["ADMIN_TOKEN"], json!({ "value": null, "origin": ".env" }));
    assert!(shown.stderr.contains(".env: lines 1 and 3 cannot be understood"), "{shown:?}");
    for command in [["migrate"].as_slice(), &["sample", "user.created"], &["stats"]] {
        let refused = host.run(command);
        assert_eq!(refused.code, Some(78), "{command:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && !refused.stderr.contains("hunter2"), "{refused:?}");
    }
    // Commands that need no configuration still work.
    host.run(&["completions", "bash"]).succeeded();
    // Below the directory of the file, the message contains its path.
    std::fs::create_dir(host.path("below")).unwrap();
    let mut command = host.command(&["migrate"]);
    let below = command.current_dir(host.path("below")).output().unwrap();
    let below = String::from_utf8_lossy(&below.stderr).into_owned();
    assert!(below.contains("/.env: lines 1 and 3 cannot be understood"), "{below}");
    // An earlier version created a database with the default name.
    host.write(".env", "DATABASE_URL=${POSTGRES_URL}\nPOSTGRES_URL=postgres://127.0.0.1/\n");
    host.unset("DATABASE_URL");
    let nothing = host.run(&["migrate"]);
    assert_eq!(nothing.code, Some(78), "{nothing:?}");
    assert!(
        nothing.stderr.contains("DATABASE_URL (--database-url): line 1 of .env results in an empty value"),
        "{nothing:?}"
    );
    host.write(".env", "");
    host.run(&["migrate"]).succeeded();
    // Mistyped names.
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    host.write(".env", &format!("DELETION_POLICIY=hunter2\nCLERK_WEBHOOK_SECRET={SECRET}\n"));
    let shown = host.run(&["config"]);
    assert_eq!(shown.code, Some(78), "{shown:?}");
    let warning =
        "DELETION_POLICIY: .env sets it, and clerk-sync has no such variable; did you mean DELETION_POLICY?";
    assert!(shown.stdout.contains(&format!("warning: {warning}")), "{shown:?}");
    let words = "CLERK_WEBHOOK_SECRET is set, but clerk-sync does not read it";
    assert!(shown.stderr.contains(words) && !shown.stderr.contains(SECRET), "{shown:?}");
    let logged = host.run(&["migrate"]);
    assert!(logged.stderr.contains(warning) && !logged.stderr.contains("hunter2"), "{logged:?}");
}

#[test]
fn what_is_wrong_with_a_command_line_is_told_without_the_variables_that_are_set() {
    let mut host = host();
    host.write(".env", "QUEUE_MAX_ATTEMPTS=7\nADMIN_TOKEN=hunter2\n");
    for (arguments, usage) in [
        (["erase"].as_slice(), "Usage: clerk-sync erase [OPTIONS] <USER_ID>\n"),
        (&["serve", "--wat"], "Usage: clerk-sync serve [OPTIONS]\n"),
        (&["ensure"], "Usage: clerk-sync ensure [OPTIONS] <ID>\n"),
        (&["send"], "Usage: clerk-sync send [OPTIONS] <TYPE>\n"),
        (&["queue", "show"], "Usage: clerk-sync queue show [OPTIONS] <SVIX_ID>\n"),
    ] {
        let refused = host.run(arguments);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(usage), "{refused:?}");
    }
    // The help still shows the variables.
    assert!(host.run(&["erase", "--help"]).succeeded().contains("[env: QUEUE_MAX_ATTEMPTS]"));
    let without = host.run(&[]);
    assert_eq!(without.code, Some(2), "{without:?}");
    host.set("SENTRY_ENVIRONMENT", "production");
    let shown = host.run(&["config"]).succeeded();
    let line = shown.lines().find(|line| line.starts_with("SENTRY_ENVIRONMENT")).unwrap();
    assert!(line.contains("(not used: SENTRY_DSN is not set)") && line.ends_with("environment"), "{shown}");
    let wrong = host.run(&["config", "--sentry-environment", "a/b"]);
    let line = wrong.stdout.lines().find(|line| line.starts_with("SENTRY_ENVIRONMENT")).unwrap();
    assert!(line.contains("(cannot be used)"), "{wrong:?}");
}

#[test]
fn flags_win_over_the_environment() {
    let mut host = host();
    host.set("CLERK_INSTANCE_ID", "ins_other");
    let service = host.serve_with(&["--clerk-instance-id", INSTANCE]);
    assert_eq!(service.post(&created()).word(), "applied");
}

#[test]
fn a_port_in_use_is_named() {
    let mut host = host();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (name, words) in [("PORT", "(HOST and PORT)"), ("ADMIN_PORT", "(ADMIN_HOST and ADMIN_PORT)")] {
        host.set(name, &port);
        let refused = host.run(&["serve"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(words) && refused.stderr.contains(&port), "{refused:?}");
        host.set(name, "0");
    }
}

#[test]
fn a_file_that_is_no_database_is_told_at_once_and_left_as_it_is() {
    let mut host = host();
    std::fs::create_dir(host.path("folder")).unwrap();
    for (name, why) in [("folder", "is a directory"), ("notes.txt", "is not a SQLite database")] {
        if name == "notes.txt" {
            host.write(name, "these are my notes");
        }
        host.set("DATABASE_URL", &format!("sqlite://{}", host.path(name)));
        for command in [["serve"].as_slice(), &["migrate"], &["queue", "ls"], &["erase", "user_1", "--yes"]] {
            let refused = host.run(command);
            assert_eq!(refused.code, Some(78), "{command:?}: {refused:?}");
            assert!(refused.stderr.contains(why), "{command:?}: {refused:?}");
        }
    }
    assert_eq!(std::fs::read_to_string(host.path("notes.txt")).unwrap(), "these are my notes");
}

#[test]
fn whoever_comes_while_the_file_is_locked_is_told_so() {
    let host = host();
    host.run(&["migrate"]).succeeded();
    let mut holder = host.connect();
    holder.run("BEGIN EXCLUSIVE").expect("locked");
    host.run(&["queue", "ls"]).succeeded();
    let refused = host.run(&["erase", "user_1", "--yes"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("another process has locked it"), "{refused:?}");
    holder.run("COMMIT").expect("free again");
    host.run(&["erase", "user_1", "--yes"]).succeeded();
}

#[test]
fn serve_waits_for_the_database_and_gives_up_with_69() {
    let mut host = host();
    host.set("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:1/shop");
    host.set("DATABASE_WAIT_SECONDS", "2");
    let started = Instant::now();
    let refused = host.run(&["serve"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(started.elapsed() >= Duration::from_secs(2) && started.elapsed() < Duration::from_secs(15));
    assert!(
        refused.stderr.contains("DATABASE_WAIT_SECONDS") && !refused.stderr.contains("hunter2"),
        "{refused:?}"
    );
    let words = "connection refused by 127.0.0.1, port 1";
    assert!(refused.stderr.contains(words), "{refused:?}");
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains(words), "{refused:?}");
    host.set("DATABASE_URL", "postgres://app:hunter2@db.invalid/shop");
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("there is no host db.invalid"), "{refused:?}");
    // An address from a network for documentation, to which no route exists.
    host.set("DATABASE_URL", "postgres://app:hunter2@[2001:db8::1]/shop");
    let refused = host.run(&["migrate"]);
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("only IPv6 addresses"), "{refused:?}");
}

#[test]
fn a_database_that_will_never_let_us_in_is_78_at_once() {
    let mut host = host();
    host.set("DATABASE_URL", &format!("sqlite://{}", host.path("no/such/folder/users.db")));
    for command in ["serve", "migrate"] {
        let refused = host.run(&[command]);
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!(refused.stderr.contains("there is no directory "), "{refused:?}");
    }
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let mut url = url::Url::parse(host.get("DATABASE_URL")).expect("a URL");
    url.set_path("no_such_database");
    let there = url.to_string();
    url.set_path("postgres");
    url.set_username("no_such_user").expect("a user");
    for (url, words) in
        [(there.as_str(), "does not exist"), (url.as_str(), "refuses the user or the password")]
    {
        host.set("DATABASE_URL", url);
        for command in ["serve", "migrate"] {
            let started = Instant::now();
            let refused = host.run(&[command]);
            assert_eq!(refused.code, Some(78), "{refused:?}");
            assert!(refused.stderr.contains(words), "{refused:?}");
            assert!(started.elapsed() < Duration::from_secs(20), "the command waited in vain");
        }
    }
}

#[test]
fn serve_is_ready_soon_after_its_database_has_come() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let proxy = Proxy::to(host.postgres_address(), Mode::Refuse, Duration::ZERO);
    host.reach_server_at(proxy.address);
    thread::scope(|scope| {
        let serving = scope.spawn(|| host.serve());
        eventually("two tries", || proxy.connections() > 1);
        proxy.set(Mode::Pass);
        let service = serving.join().expect("ready");
        assert_eq!(service.post(&created()).word(), "applied");
    });
}

#[test]
fn only_a_server_at_the_other_end_of_a_loopback_connection_is_spoken_to_without_tls() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    if host.get("DATABASE_URL").contains("sslmode") {
        return skip("sslmode", "TEST_POSTGRES_URL sets sslmode");
    }
    let encrypted = |host: &Host| {
        let service = host.serve();
        assert_eq!(service.post(&created()).word(), "applied");
        host.value(&format!(
            "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = '{0}' AND pid <> pg_backend_pid()",
            host.schema
        ))
    };
    if matches!(host.postgres_address().0.as_str(), "localhost" | "127.0.0.1" | "::1") {
        assert_eq!(encrypted(&host), "f");
    }
    // A proxy may be anywhere, and its connection to the server could be intercepted.
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    assert_eq!(
        encrypted(&host),
        host.value("SELECT CASE current_setting('ssl') WHEN 'on' THEN 't' ELSE 'f' END")
    );
}

#[test]
fn behind_a_translated_address_statements_stay_prepared_and_it_is_said_once() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let told = "statements stay prepared";
    let service = host.serve();
    assert_eq!(service.post(&created()).word(), "applied");
    assert!(!service.log().contains(told));
    service.stop();
    let doctor = |host: &Host| host.run(&["doctor"]).stdout;
    assert!(doctor(&host).contains("direct to the server: statements are prepared"));
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let service = host.serve();
    for _ in 0..5 {
        assert_eq!(service.post(&created()).word(), "applied");
    }
    assert_eq!(service.log().matches(told).count(), 1);
    service.stop();
    assert!(doctor(&host).contains("through a translated address, with dedicated sessions"));
}

#[test]
fn a_log_for_people_has_one_line_an_event_too() {
    let mut host = host();
    host.set("LOG_FORMAT", "pretty");
    host.set("PORT", &free_port().to_string());
    let mut command = host.command(&["dev"]);
    command.env_remove("LOG_FORMAT");
    let service = Service::start(command);
    let delivery = created();
    assert_eq!(service.post(&delivery).word(), "applied");
    eventually("the log line", || service.log().contains(&delivery.id));
    let log = service.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&delivery.id)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("user.created") && lines[0].contains("applied"), "{lines:?}");
}

#[test]
fn two_services_share_one_database() {
    let Some(host) = Host::with(Keeper::Postgres) else { return };
    // Both start at once, so both want to migrate.
    let services = thread::scope(|scope| {
        let starting = [scope.spawn(|| host.serve()), scope.spawn(|| host.serve())];
        starting.map(|starting| starting.join().expect("ready"))
    });
    let delivery = created();
    let mut words: Vec<String> = thread::scope(|scope| {
        let posting = [0, 1, 0, 1].map(|index: usize| (&services[index], &delivery));
        let posting = posting.map(|(service, delivery)| scope.spawn(|| service.post(delivery).word()));
        posting.map(|posting| posting.join().expect("an answer")).into()
    });
    words.sort();
    assert_eq!(words, ["applied", "duplicate", "duplicate", "duplicate"]);
    assert_eq!((host.count("users"), host.count("audit_log")), (1, 1));
}

fn what_looks_or_removes_makes_nothing(host: &mut Host) {
    let commands: [&[&str]; 14] = [
        &["erase", "user_1", "--yes"],
        &["erase", "now", "user_1", "--yes"],
        &["erase", "status", "user_1"],
        &["erase", "report"],
        &["erase", "export"],
        &["prune"],
        &["minimize", "--yes"],
        &["queue", "ls"],
        &["queue", "retry", "--all"],
        &["outbox", "ls"],
        &["outbox", "pause", "crm"],
        &["audit", "user_1"],
        &["audit", "verify"],
        &["stats"],
    ];
    for made in [false, true] {
        for command in commands {
            let refused = host.run(command);
            assert_eq!(refused.code, Some(78), "{command:?}: {refused:?}");
            assert!(refused.stdout.is_empty() && refused.stderr.contains("DATABASE_URL"), "{refused:?}");
            assert!(refused.stderr.contains("`clerk-sync migrate`"), "{refused:?}");
            match host.keeper {
                Keeper::Postgres => {
                    assert!(refused.stderr.contains(&host.schema), "{refused:?}");
                    let schemas =
                        format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{}'", host.schema);
                    assert_eq!(host.value(&schemas), usize::from(made).to_string(), "{command:?}");
                    assert_eq!(host.count(&format!("pg_tables WHERE schemaname = '{}'", host.schema)), 0);
                }
                Keeper::Sqlite => {
                    let size = std::fs::metadata(host.path("users.db")).map(|file| file.len()).ok();
                    assert_eq!(size, made.then_some(0), "{command:?}");
                }
                Keeper::Mongodb => {
                    let names = host.connect().collections();
                    assert_eq!(names, [""; 0], "{command:?}");
                }
                Keeper::Mariadb | Keeper::Mysql => {
                    let tables = format!("information_schema.tables WHERE table_schema = '{}'", host.schema);
                    assert_eq!(host.count(&tables), 0, "{command:?}");
                }
            }
        }
        // An empty schema or file is no better than none.
        match host.keeper {
            Keeper::Postgres if !made => _ = host.sql(&format!("CREATE SCHEMA {}", host.schema)),
            Keeper::Sqlite => _ = host.write("users.db", ""),
            _ => {}
        }
    }
}

fn what_cannot_be_taken_back_is_asked_about_first(host: &mut Host) {
    let service = host.serve();
    applied(&service, &user("user.created", "user_1", milliseconds(), "Ada"));
    let dead = Post::new(r#"{"type":"user.created","data":{"id":7}}"#);
    assert_eq!(service.post(&dead).word(), "parked");
    host.sql(
        "INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, created_at)
         VALUES ('msg_1', 'crm', 'user_2', 'user.created', '{}', 'dead', '2026-01-01T00:00:00.000Z')",
    );
    for (arguments, what, sure) in [
        (["queue", "discard", "--all"].as_slice(), "webhook_queue", "yes"),
        (&["outbox", "discard", "--all"], "outbox WHERE payload IS NOT NULL", "y"),
        (&["minimize", "--sync-fields", "email"], "users WHERE last_name IS NOT NULL", "yes"),
        (&["erase", "now", "user_1"], "users", "n"),
        (&["erase", "user_1"], "users", "Y"),
    ] {
        let nobody = host.run(arguments);
        assert_eq!(nobody.code, Some(2), "{nobody:?}");
        assert!(nobody.stderr.contains("--yes"), "{nobody:?}");
        for unsure in ["n", "", "no", "yesterday"] {
            let Some(asked) = host.run_at_terminal(arguments, &format!("{unsure}\n")) else { return };
            assert_eq!(asked.code, Some(1), "{unsure}: {asked:?}");
            assert!(asked.stdout.contains("[y/N]"), "{asked:?}");
            assert!(asked.stdout.contains("nothing was changed"), "{asked:?}");
        }
        assert_eq!(host.count(what), 1, "{arguments:?}");
        if sure != "n" {
            host.run_at_terminal(arguments, &format!("{sure}\n")).expect("a terminal").succeeded();
            assert_eq!(host.count(what), 0, "{arguments:?}");
        }
    }
    service.stop();
}
