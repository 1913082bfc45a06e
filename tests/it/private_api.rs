//! The private API as other programs use it, from the token to the last page.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use chrono::{TimeDelta, Utc};
use clerk_sync::{clerk::sample, entity};
use serde_json::{Value, json};

use crate::{
    proxy::{Mode, Proxy},
    service::{
        Answer, Client, Host, Keeper, Post, Service, deletion, eventually, milliseconds, on_each_keeper,
        post, user,
    },
};

const TOKEN: &str = "t0ken-of-the-house";

on_each_keeper!(
    only_the_token_opens_the_private_api,
    a_user_is_shown_as_the_row_is_and_not_after_a_deletion,
    users_are_walked_through_in_pages,
    users_are_found_by_their_address,
    signups_are_counted_by_day_week_and_month,
    signups_at_odd_times_neither_hide_others_nor_last_for_ever,
    what_cannot_be_asked_is_refused_with_what_is_allowed,
    organizations_and_memberships_are_found_from_either_side,
    the_description_is_what_the_service_does,
);

fn serve(host: &mut Host) -> Service {
    host.set("ADMIN_TOKEN", TOKEN);
    host.serve()
}

fn ask(service: &Service, path: &str) -> Answer {
    service.get_api(path, Some(&format!("Bearer {TOKEN}")))
}

fn asked(service: &Service, path: &str) -> Value {
    let answer = ask(service, path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "no-store");
    answer.json()
}

fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.word().as_str()), (status, code), "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "no-store");
}

fn applied(service: &Service, event: &Value) {
    let answer = service.post(&post(event));
    assert_eq!((answer.status, answer.word().as_str()), (200, "applied"), "{answer:?}");
}

fn organization(id: &str, name: &str) -> Value {
    about(
        "organization.created",
        &json!({ "id": id, "object": "organization", "name": name, "slug": "engines" }),
    )
}

fn membership(id: &str, organization: &str, user: &str) -> Value {
    let data = json!({
        "id": id, "object": "organization_membership", "role": "org:admin", "permissions": ["org:read"],
        "organization": { "id": organization, "name": "as it was" },
        "public_user_data": { "user_id": user, "first_name": "Ada", "identifier": "ada@example.com" },
    });
    about("organizationMembership.created", &data)
}

fn about(event_type: &str, data: &Value) -> Value {
    let (mut data, at) = (data.clone(), milliseconds() - 5000);
    data["created_at"] = at.into();
    data["updated_at"] = at.into();
    json!({ "data": data, "object": "event", "timestamp": at, "type": event_type })
}

fn ids(page: &Value) -> Vec<&str> {
    let users = page["users"].as_array().expect("users");
    users.iter().map(|user| user["clerk_id"].as_str().expect("an id")).collect()
}

fn only_the_token_opens_the_private_api(host: &mut Host) {
    let service = serve(host);
    let paths =
        ["/v1/users", "/v1/users/user_1", "/v1/signups", "/v1/openapi.json", "/v1/nothing", "/v1", "/v1/"];
    for path in paths {
        let longer = format!("Bearer {TOKEN}x");
        for authorization in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer wrong"),
            Some(TOKEN),
            Some(&*longer),
        ] {
            let answer = service.get_api(path, authorization);
            assert_refused(&answer, 401, "unauthorized");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        let open = ask(&service, path);
        assert!([200, 404].contains(&open.status), "{path}: {open:?}");
    }
    for path in ["/v1", "/v1/", "/v1/nothing", "/v1/users/", "/v1/users/user_1/more"] {
        assert_refused(&ask(&service, path), 404, "not_found");
    }
    // Without the token, the answer does not reveal which methods exist.
    for (authorization, status, code) in [
        ("", 401, "unauthorized"),
        ("authorization: bearer t0ken-of-the-house\r\n", 405, "method_not_allowed"),
    ] {
        let mut client = Client::connect(service.private).expect("a connection");
        let request =
            format!("POST /v1/users HTTP/1.1\r\nhost: test\r\n{authorization}content-length: 0\r\n\r\n");
        client.send(request.as_bytes()).expect("sent");
        assert_refused(&client.answer().expect("an answer"), status, code);
    }
    // The other paths of this listener need no token, and the public listener has no such paths.
    assert_eq!(service.get_private("/metrics").status, 200);
    assert_eq!(service.get("/v1/users").status, 404);
    service.stop();
}

#[test]
fn a_token_of_their_own_closes_the_metrics_and_opens_nothing_else() {
    let mut host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    host.set("METRICS_TOKEN", "m3trics-of-the-house");
    let service = serve(&mut host);
    let answer = service.get_private("/metrics");
    assert_eq!((answer.status, answer.word().as_str()), (401, "unauthorized"), "{answer:?}");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert!(answer.body.contains("METRICS_TOKEN"), "{answer:?}");
    assert_eq!(service.get_api("/metrics", Some("Bearer wrong")).status, 401);
    let theirs = Some("Bearer m3trics-of-the-house");
    assert!(service.get_api("/metrics", theirs).body.contains("clerk_sync_rejections_total"));
    assert_eq!(ask(&service, "/metrics").status, 200, "the token for users is also valid for metrics");
    assert_eq!(service.get_api("/v1/users", theirs).status, 401);
    assert_eq!(service.get_private("/readyz").status, 200, "probes need no token");
    service.stop();
}

#[test]
fn without_a_token_nobody_is_let_in_and_the_answer_says_what_to_set() {
    let host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let service = host.serve();
    for authorization in [None, Some("Bearer "), Some("Bearer x")] {
        let answer = service.get_api("/v1/users", authorization);
        assert_refused(&answer, 401, "unauthorized");
        assert!(answer.body.contains("set ADMIN_TOKEN"), "{answer:?}");
    }
    service.stop();
}

fn a_user_is_shown_as_the_row_is_and_not_after_a_deletion(host: &mut Host) {
    host.set(
        "SYNC_FIELDS",
        "email,email_verified,first_name,last_name,image_url,username,phone_number,external_id,public_metadata,\
         unsafe_metadata,private_metadata,banned,locked,last_sign_in_at,last_active_at",
    );
    let service = serve(host);
    // 2026-11-16T08:00:00.000Z: the milliseconds are written even if they are zero.
    let at = 1_794_816_000_000;
    let mut event = user("user.created", "user_1", at, "Ada");
    event["data"]["username"] = json!("ada");
    event["data"]["public_metadata"] = json!({ "plan": ["pro", 1.5, null] });
    event["data"]["banned"] = json!(false);
    event["data"]["last_sign_in_at"] = json!(at + 7);
    applied(&service, &event);
    host.sql(r#"UPDATE users SET preferences = '{"theme":"dark"}'"#);

    let mut shown = asked(&service, "/v1/users/user_1");
    let synced_at = shown["synced_at"].take();
    assert!(synced_at.as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{synced_at}");
    let id: i64 = host.value("SELECT id FROM users").parse().expect("a number");
    let expected = json!({
        "id": id,
        "clerk_id": "user_1",
        "email": "user_1@example.com",
        "email_verified": false,
        "first_name": "Ada",
        "last_name": "Lovelace",
        "image_url": "https://img.clerk.com/it",
        "username": "ada",
        "phone_number": null,
        "external_id": null,
        "public_metadata": { "plan": ["pro", 1.5, null] },
        "unsafe_metadata": null,
        "private_metadata": null,
        "banned": false,
        "locked": null,
        "last_sign_in_at": "2026-11-16T08:00:00.007Z",
        "last_active_at": null,
        "preferences": { "theme": "dark" },
        "created_at": "2026-11-16T08:00:00.000Z",
        "updated_at": "2026-11-16T08:00:00.000Z",
        "synced_at": null,
        "deleted_at": null,
    });
    assert_eq!(shown, expected);

    for id in ["user_2", "USER_1", "%00", "user_1%00", "%FF", "a%2Fb", &"x".repeat(300)] {
        assert_refused(&ask(&service, &format!("/v1/users/{id}")), 404, "user_not_found");
    }
    // Not found, whether the row still exists or not.
    host.sql("CREATE TABLE orders (id bigint, user_id bigint REFERENCES users (id))");
    host.sql(&format!("INSERT INTO orders VALUES (1, {id})"));
    applied(&service, &deletion("user_1", milliseconds()));
    assert_eq!(host.count("users"), 1, "anonymised");
    assert_refused(&ask(&service, "/v1/users/user_1"), 404, "user_not_found");
    assert_eq!(asked(&service, "/v1/users"), json!({ "users": [], "next": null }));
    service.stop();
}

fn users_are_walked_through_in_pages(host: &mut Host) {
    let service = serve(host);
    let names: Vec<String> = (0..7).map(|n| format!("user_{n}")).collect();
    for name in &names {
        applied(&service, &user("user.created", name, milliseconds() - 5000, "Ada"));
    }
    assert_eq!(ids(&asked(&service, "/v1/users")), names);
    assert_eq!(asked(&service, "/v1/users")["next"], Value::Null);
    assert_eq!(asked(&service, "/v1/users?limit=7")["next"], Value::Null, "a full page can be the last page");

    let mut met: Vec<String> = Vec::new();
    let mut path = "/v1/users?limit=3".to_owned();
    for expected in [3, 3, 1] {
        let page = asked(&service, &path);
        met.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        assert_eq!(ids(&page).len(), expected);
        path = match page["next"].as_str() {
            Some(next) => format!("/v1/users?limit=3&after={next}"),
            None => break,
        };
    }
    assert_eq!(met, names);
    service.stop();
}

fn users_are_found_by_their_address(host: &mut Host) {
    let service = serve(host);
    for name in ["user_1", "user_2", "user+3"] {
        applied(&service, &user("user.created", name, milliseconds() - 5000, "Ada"));
    }
    let found = asked(&service, "/v1/users?email=USER_2%40example.com");
    assert_eq!(ids(&found), ["user_2"]);
    assert_eq!(ids(&asked(&service, "/v1/users?email=user_2@example.com&limit=1")), ["user_2"]);
    assert_eq!(ids(&asked(&service, "/v1/users?email=user%2B3@example.com")), ["user+3"]);
    assert!(ids(&asked(&service, "/v1/users?email=nobody@example.com")).is_empty());
    // An unencoded plus means a space, which no address contains: an error helps more than an empty list.
    let answer = ask(&service, "/v1/users?email=user+3@example.com");
    assert_refused(&answer, 400, "invalid_parameter");
    assert!(answer.body.contains("%2B") && !answer.body.contains("example.com"), "{answer:?}");
    service.stop();
}

#[test]
fn callers_that_hang_up_leave_no_transaction_behind() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let service = serve(&mut host);
    applied(&service, &user("user.created", "user_1", milliseconds() - 5000, "Ada"));
    let mut other = host.connect();
    other.run("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").expect("locked");
    for path in ["/v1/users", "/v1/signups", "/v1/users/user_1"] {
        let mut client = Client::connect(service.private).expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
        client.send(request.as_bytes()).expect("sent");
    }
    // A client that waits gets an answer in time.
    assert_refused(&ask(&service, "/v1/users"), 503, "database_unavailable");
    other.run("ROLLBACK").expect("unlocked");
    assert_eq!(ids(&asked(&service, "/v1/users")), ["user_1"]);
    let left = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name = '{}' AND state <> 'idle'",
        host.schema
    );
    eventually("no session is in a transaction", || host.sql(&left).is_empty());
    service.stop();
}

fn signups_are_counted_by_day_week_and_month(host: &mut Host) {
    let service = serve(host);
    let nothing = json!({ "bucket": "week", "signups": [], "total": 0 });
    assert_eq!(asked(&service, "/v1/signups"), nothing);
    // 2026-11-15 is a Sunday.
    for (name, time) in [
        ("user_1", "2026-11-15T23:59:59.999Z"),
        ("user_2", "2026-11-16T00:00:00Z"),
        ("user_3", "2026-11-17T00:00:00Z"),
        ("user_4", "2026-12-01T00:00:00Z"),
    ] {
        let at = chrono::DateTime::parse_from_rfc3339(time).expect("a time").timestamp_millis();
        applied(&service, &user("user.created", name, at, "Ada"));
    }
    let week = json!({
        "bucket": "week",
        "signups": [
            { "start": "2026-11-09", "count": 1 },
            { "start": "2026-11-16", "count": 2 },
            { "start": "2026-11-30", "count": 1 },
        ],
        "total": 4,
    });
    assert_eq!(asked(&service, "/v1/signups"), week);
    assert_eq!(asked(&service, "/v1/signups?bucket=week"), week);
    let month = asked(&service, "/v1/signups?bucket=month");
    assert_eq!(
        month["signups"],
        json!([{ "start": "2026-11-01", "count": 3 }, { "start": "2026-12-01", "count": 1 }])
    );
    let days = asked(&service, "/v1/signups?bucket=day&from=2026-11-16&to=2026-11-17T01:00:00%2B01:00");
    assert_eq!(
        days,
        json!({ "bucket": "day", "signups": [{ "start": "2026-11-16", "count": 1 }], "total": 1 })
    );
    service.stop();
}

fn signups_at_odd_times_neither_hide_others_nor_last_for_ever(host: &mut Host) {
    let service = serve(host);
    applied(&service, &user("user.created", "user_1", milliseconds() - 5000, "Ada"));
    // Times that an application may have written, and the number of those that fall on a day.
    let (times, counted): (&[&str], u64) = match host.keeper {
        Keeper::Postgres => (&["-infinity", "infinity", "0001-01-01", "2026-02-01", "9999-12-31"], 3),
        Keeper::Mariadb | Keeper::Mysql => (&["0001-01-01", "2026-02-01", "9999-12-31"], 3),
        Keeper::Mongodb => (&["", "some day", "0001-01-01", "2026-02-01", "9999-12-31"], 3),
        Keeper::Sqlite => {
            // The impossible month is in a year of its own, because SQLite counts it with a December before it.
            (&["", "some day", "1999-99-01", "0001-01-01", "2026-02-01T00:30:00+02:00", "9999-12-31"], 3)
        }
    };
    for (index, time) in times.iter().enumerate() {
        host.sql(&format!("INSERT INTO users (clerk_id, created_at) VALUES ('odd_{index}', '{time}')"));
    }
    for bucket in ["day", "week", "month"] {
        let all = asked(&service, &format!("/v1/signups?bucket={bucket}"));
        assert_eq!(all["total"], counted + 1, "{all}");
        let recent = asked(&service, &format!("/v1/signups?bucket={bucket}&from=2026-11-01&to=9000-01-01"));
        assert_eq!(recent["total"], 1, "{recent}");
    }
    service.stop();
}

fn what_cannot_be_asked_is_refused_with_what_is_allowed(host: &mut Host) {
    let service = serve(host);
    for (path, told) in [
        ("/v1/users?limit=0", "limit: "),
        ("/v1/users?limit=501", "1 to 500"),
        ("/v1/users?limit=many", "limit: "),
        ("/v1/users?limit=", "limit: "),
        ("/v1/users?after=0x10", "after: "),
        ("/v1/users?after=9223372036854775808", "after: "),
        ("/v1/users?email=", "email: "),
        ("/v1/users?email=a%00b", "email: "),
        ("/v1/users?limit=1&limit=2", "email, after and limit"),
        ("/v1/users?page=2", "email, after and limit"),
        ("/v1/users?LIMIT=2", "email, after and limit"),
        ("/v1/signups?bucket=year", "day, week or month"),
        ("/v1/signups?from=yesterday", "from: "),
        ("/v1/signups?to=2026-02-30", "to: "),
        ("/v1/signups?bucket=day&email=a@example.com", "bucket, from and to"),
    ] {
        let answer = ask(&service, path);
        assert_refused(&answer, 400, "invalid_parameter");
        assert!(answer.body.contains(told), "{path}: {answer:?}");
    }
    service.stop();
}

fn organizations_and_memberships_are_found_from_either_side(host: &mut Host) {
    host.set("SYNC_ENTITIES", "user,organization,organization_membership");
    let service = serve(host);
    for event in [
        user("user.created", "user_1", milliseconds() - 5000, "Ada"),
        user("user.created", "user_2", milliseconds() - 5000, "Grace"),
        organization("org_1", "Analytical Engines"),
        organization("org_2", "Compilers"),
        membership("orgmem_11", "org_1", "user_1"),
        membership("orgmem_12", "org_1", "user_2"),
        membership("orgmem_22", "org_2", "user_2"),
        // The organization of this membership is not known yet.
        membership("orgmem_32", "org_3", "user_2"),
    ] {
        applied(&service, &event);
    }
    let listed = asked(&service, "/v1/organizations");
    assert_eq!(listed["organizations"].as_array().map(Vec::len), Some(2));
    let one = asked(&service, "/v1/organizations/org_1");
    assert_eq!(
        (&one["name"], &one["slug"], &one["deleted_at"]),
        (&json!("Analytical Engines"), &json!("engines"), &Value::Null)
    );
    assert!(one.get("preferences").is_none(), "{one}");
    let one = asked(&service, "/v1/organization_memberships/orgmem_12");
    assert_eq!((&one["organization_id"], &one["user_id"]), (&json!("org_1"), &json!("user_2")));
    assert_eq!((&one["role"], &one["permissions"]), (&json!("org:admin"), &json!(["org:read"])));
    assert!(!one.to_string().contains("ada@example.com"));

    let members = asked(&service, "/v1/organizations/org_1/memberships?limit=1");
    assert_eq!(members["memberships"][0]["clerk_id"], "orgmem_11");
    let next = members["next"].as_str().expect("another page");
    let members = asked(&service, &format!("/v1/organizations/org_1/memberships?limit=1&after={next}"));
    assert_eq!(
        (&members["memberships"][0]["clerk_id"], &members["next"]),
        (&json!("orgmem_12"), &Value::Null)
    );
    let of_grace = asked(&service, "/v1/users/user_2/organizations");
    let names: Vec<_> =
        of_grace["organizations"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["Analytical Engines", "Compilers"], "{of_grace}");
    assert_eq!(of_grace["organizations"][1]["membership"]["clerk_id"], "orgmem_22");
    let of_grace = asked(&service, "/v1/users/user_2/organization_memberships");
    assert_eq!(of_grace["organization_memberships"][2]["clerk_id"], "orgmem_32");
    assert_eq!(asked(&service, "/v1/organizations/org_1/users")["users"][0]["first_name"], "Ada");

    for (path, code) in [
        ("/v1/organizations/org_9", "organization_not_found"),
        ("/v1/organizations/org_9/memberships", "organization_not_found"),
        ("/v1/organization_memberships/user_1", "organization_membership_not_found"),
        ("/v1/users/user_9/organizations", "user_not_found"),
    ] {
        assert_refused(&ask(&service, path), 404, code);
    }
    assert_refused(&ask(&service, "/v1/organizations?email=ada@example.com"), 400, "invalid_parameter");
    assert_eq!(service.ask_api("GET", "/v1/organizations", None).status, 401);

    // A deletion also deletes the memberships.
    applied(&service, &deletion("user_2", milliseconds()));
    let members = asked(&service, "/v1/organizations/org_1/memberships");
    assert_eq!(members["memberships"].as_array().map(Vec::len), Some(1), "{members}");
    let gone = json!({
        "data": { "id": "org_1", "object": "organization", "deleted": true }, "object": "event",
        "timestamp": milliseconds(), "type": "organization.deleted",
    });
    applied(&service, &gone);
    assert_refused(&ask(&service, "/v1/organizations/org_1"), 404, "organization_not_found");
    assert_eq!(asked(&service, "/v1/organization_memberships")["organization_memberships"], json!([]));
    assert_eq!(asked(&service, "/v1/users/user_1/organizations")["organizations"], json!([]));
    service.stop();
}

fn the_description_is_what_the_service_does(host: &mut Host) {
    let all: Vec<&str> = entity::ALL.iter().map(|entity| entity.kind).collect();
    host.set("SYNC_ENTITIES", &all.join(","));
    let service = serve(host);
    applied(&service, &user("user.created", "user_1", milliseconds() - 5000, "Ada"));
    // Ids of other kinds may look like ids of users.
    applied(&service, &organization("user_1", "Analytical Engines"));
    applied(&service, &membership("user_1", "user_1", "user_1"));
    let others = ["user", "organization", "organization_membership"];
    for entity in entity::ALL.iter().filter(|entity| !others.contains(&entity.kind)) {
        let at = Utc::now() - TimeDelta::seconds(5);
        let sample = sample::body(entity.events[0], "user_1", at).expect("a sample");
        let mut event: Value = serde_json::from_str(&sample).expect("JSON");
        event["data"]["id"] = "user_1".into();
        applied(&service, &event);
    }
    let unusable = Post::new("unusable");
    assert_eq!(service.post(&unusable).word(), "parked");
    host.sql(
        "INSERT INTO outbox (message_id, sink, clerk_id, type, state, created_at)
         VALUES ('msg_1', 'crm', 'user_1', 'user.created', 'dead', '2026-01-01T00:00:00.000Z')",
    );
    assert_eq!(asked(&service, "/v1/outbox")["messages"][0]["kind"], "user");
    let described = asked(&service, "/v1/openapi.json");
    assert!(described["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{described}");
    assert_eq!(described["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(described["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert_eq!(described["security"], json!([{ "bearer": [] }]));

    let paths = described["paths"].as_object().expect("paths");
    let documented: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(documented, routes().iter().map(String::as_str).collect());
    for (path, operations) in paths {
        let operations = operations.as_object().expect("operations");
        let (method, operation) = operations.iter().next().expect("one");
        assert_eq!(operations.len(), 1, "{path}");
        let method = method.to_uppercase();
        let has_body = operation["requestBody"].is_object();
        let body = if has_body { r#"{"all":true,"dry_run":true}"# } else { "" };
        let ask = |path: &str| service.tell_api(&method, path, Some(&format!("Bearer {TOKEN}")), body);
        let documents = |answer: &Answer| {
            let response = &operation["responses"][answer.status.to_string()];
            let schema = &response["content"]["application/json"]["schema"];
            assert!(schema.is_object(), "{path} {}: {response}", answer.status);
            let problems = mismatches(&answer.json(), schema, &described);
            assert!(problems.is_empty(), "{path} {}: {problems:?}", answer.status);
        };
        let known =
            path.replace("{clerk_id}", "user_1").replace("{svix_id}", &unusable.id).replace("{sink}", "crm");
        let answer = ask(&known);
        assert_eq!(answer.status, 200);
        documents(&answer);
        documents(&service.ask_api(&method, &known, None));
        if path.contains("{clerk_id}") {
            documents(&ask(&path.replace("{clerk_id}", "user_2")));
        }
        if path.contains("{svix_id}") {
            documents(&ask(&path.replace("{svix_id}", "msg_2")));
        }
        if path.contains("{sink}") {
            let unknown = ask(&path.replace("{sink}", "cmr"));
            assert_refused(&unknown, 404, "sink_not_found");
            documents(&unknown);
        }
        if path.starts_with("/v1/outbox") && has_body {
            let body = r#"{"sink":"cmr"}"#;
            let unknown = service.tell_api(&method, path, Some(&format!("Bearer {TOKEN}")), body);
            assert_refused(&unknown, 404, "sink_not_found");
            documents(&unknown);
        }
        if path == "/v1/outbox" {
            let unknown = ask("/v1/outbox?sink=cmr");
            assert_refused(&unknown, 404, "sink_not_found");
            documents(&unknown);
        }
        if has_body {
            documents(&service.tell_api(&method, &known, Some(&format!("Bearer {TOKEN}")), "{}"));
        }
        if operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == "query")) {
            documents(&ask(&format!("{known}?unknown=1")));
        }
    }
    service.stop();
}

/// Every route below `/v1`, from the router's source.
fn routes() -> Vec<String> {
    let screen = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/v1/mod.rs");
    let screen = fs::read_to_string(screen).expect("the routes");
    let routes: Vec<String> = screen
        .lines()
        .filter(|line| !line.contains("any(nothing)"))
        .filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next())
        .map(ToOwned::to_owned)
        .chain(entity::ALL.iter().flat_map(|entity| {
            let one = format!("/v1/{}/{{clerk_id}}", entity.table);
            let ensure = entity.has_one.then(|| format!("{one}/ensure"));
            [format!("/v1/{}", entity.table), one].into_iter().chain(ensure)
        }))
        .chain(
            [
                "/v1/organizations/{clerk_id}/domains",
                "/v1/organizations/{clerk_id}/enterprise_connections",
                "/v1/organizations/{clerk_id}/invitations",
                "/v1/organizations/{clerk_id}/memberships",
                "/v1/organizations/{clerk_id}/payment_attempts",
                "/v1/organizations/{clerk_id}/subscription_items",
                "/v1/organizations/{clerk_id}/subscriptions",
                "/v1/organizations/{clerk_id}/users",
                "/v1/users/{clerk_id}/email_addresses",
                "/v1/users/{clerk_id}/external_accounts",
                "/v1/users/{clerk_id}/organization_memberships",
                "/v1/users/{clerk_id}/organizations",
                "/v1/users/{clerk_id}/payment_attempts",
                "/v1/users/{clerk_id}/phone_numbers",
                "/v1/users/{clerk_id}/sessions",
                "/v1/users/{clerk_id}/subscription_items",
                "/v1/users/{clerk_id}/subscriptions",
                "/v1/users/{clerk_id}/web3_wallets",
            ]
            .map(ToOwned::to_owned),
        )
        .collect();
    assert!(routes.len() >= 4, "only {routes:?}");
    routes
}

/// The differences between a value and its schema: names, types and required fields.
fn mismatches(value: &Value, schema: &Value, all: &Value) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = all.pointer(name.trim_start_matches('#')).expect("a schema of that name");
        return mismatches(value, schema, all);
    }
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    let fits = match &schema["type"] {
        Value::Null => true,
        Value::Array(names) => names.iter().any(is),
        name => is(name),
    };
    let mut found = Vec::new();
    if !fits {
        found.push(format!("{value} is not of type {}", schema["type"]));
    }
    if let (Some(members), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        found.extend(
            required.filter(|name| !members.contains_key(*name)).map(|name| format!("{name} is missing")),
        );
        for (name, value) in members {
            match properties.get(name) {
                Some(schema) => found.extend(mismatches(value, schema, all)),
                None => found.push(format!("{name} is not documented")),
            }
        }
    }
    for item in value.as_array().into_iter().flatten() {
        found.extend(mismatches(item, &schema["items"], all));
    }
    found
}

#[test]
fn a_thousand_ids_are_tended_also_where_the_database_is_far_away() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    host.run(&["migrate"]).succeeded();
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::from_millis(3));
    host.reach_server_at(proxy.address);
    host.set("ADMIN_TOKEN", TOKEN);
    host.set("PROCESSING", "queue");
    let service = host.serve_with(&["--no-worker"]);
    let tell = |path: &str, body: &Value| {
        let answer = service.tell_api("POST", path, Some(&format!("Bearer {TOKEN}")), &body.to_string());
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    };
    let ids: Vec<String> = (0..1000).map(|number| format!("msg_{number}")).collect();
    let numbers: Vec<i64> = (1..=1000).collect();
    for named in [true, false] {
        for verb in ["retry", "discard"] {
            host.sql("DELETE FROM webhook_queue");
            host.sql(
                "INSERT INTO webhook_queue (svix_id, event_type, payload, state, attempts, received_at)
                 SELECT 'msg_' || n, 'user.updated', 'x', 'dead', 15, now() FROM generate_series(0, 999) AS n",
            );
            host.sql("DELETE FROM processed_webhooks");
            let which = if named { json!({ "ids": ids }) } else { json!({ "all": true }) };
            assert_eq!(tell(&format!("/v1/queue/{verb}"), &which)["deliveries"], 1000, "{verb}");
            host.sql("DELETE FROM outbox");
            host.sql(
                "INSERT INTO outbox (id, message_id, sink, clerk_id, type, payload, state, created_at) OVERRIDING SYSTEM VALUE
                 SELECT n, 'msg_' || n, 'crm', 'user_' || n, 'user.updated', '{}', 'dead', now()
                 FROM generate_series(1, 1000) AS n",
            );
            let which = if named { json!({ "ids": numbers }) } else { json!({ "all": true }) };
            assert_eq!(tell(&format!("/v1/outbox/{verb}"), &which)["done"], 1000, "{verb}");
        }
    }
    service.stop();
}
