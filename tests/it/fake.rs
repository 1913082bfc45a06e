//! The fake over real HTTP, as a client would use it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::DateTime;
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verifier},
    },
    http_client,
    model::{Content, FieldSet, News, Selection},
};
use fake_clerk::{Behaviour, Bursts, Clock, DeletedCursor, Event, Fake, Options};
use reqwest::{Client, StatusCode, header::HeaderMap};
use serde_json::Value;
use url::form_urlencoded;

use crate::service::SECRET;

/// The first time of the clock: 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600_000;

/// A fake, a client that has its key, and its clock.
struct World {
    fake: Fake,
    client: Client,
    now: Arc<AtomicI64>,
}

/// A response from the fake.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["errors"][0]["code"].as_str().unwrap_or("no code")
    }

    fn list(&self) -> &[Value] {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body.as_array().unwrap()
    }

    fn ids(&self) -> Vec<String> {
        self.list().iter().map(id_of).collect()
    }
}

impl World {
    async fn with(users: usize) -> Self {
        let now = Arc::new(AtomicI64::new(NOW));
        let time = Arc::clone(&now);
        let clock: Clock =
            Arc::new(move || DateTime::from_timestamp_millis(time.load(Ordering::Relaxed)).unwrap());
        let fake = Fake::start(Options { users, ..Options::default() }, clock).await.unwrap();
        Self { fake, client: http_client::builder().build().unwrap(), now }
    }

    fn pass(&self, time: Duration) {
        self.now.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn behave(&self, behaviour: Behaviour) {
        self.fake.behave(behaviour);
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, Some(&format!("Bearer {}", self.fake.key()))).await
    }

    async fn get_with(&self, path: &str, authorization: Option<&str>) -> Answer {
        let mut request = self.client.get(format!("{}{path}", self.fake.url()));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        assert_eq!(headers["content-type"], "application/json");
        let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        Answer { status, headers, body }
    }

    async fn code(&self, path: &str) -> (u16, String) {
        let answer = self.get(path).await;
        (answer.status.as_u16(), answer.code().to_owned())
    }

    async fn count(&self, query: &str) -> u64 {
        let answer = self.get(&format!("/v1/users/count?{query}")).await;
        assert_eq!(answer.body["object"], "total_count", "{}", answer.body);
        answer.body["total_count"].as_u64().unwrap()
    }

    /// All users, 500 at a time, without the cursor.
    async fn everybody(&self) -> Vec<Value> {
        let mut users = Vec::new();
        for offset in (0..).step_by(500) {
            let page = self.get(&format!("/v1/users?limit=500&order_by=created_at&offset={offset}")).await;
            users.extend(page.list().to_vec());
            if page.list().len() < 500 {
                return users;
            }
        }
        unreachable!()
    }
}

fn id_of(user: &Value) -> String {
    user["id"].as_str().unwrap().to_owned()
}

fn number(user: &Value, name: &str) -> i64 {
    user[name].as_i64().unwrap()
}

/// The entry that `primary_email_address_id` names, if it exists.
fn primary_email(user: &Value) -> Option<&Value> {
    let emails = user["email_addresses"].as_array().unwrap();
    emails.iter().find(|email| email["id"] == user["primary_email_address_id"])
}

#[tokio::test]
async fn a_page_is_a_bare_array_of_complete_users() {
    let world = World::with(50).await;
    let answer = world.get("/v1/users").await;
    assert_eq!(answer.list().len(), 10);
    for user in answer.list() {
        for name in ["external_id", "username", "first_name", "last_name", "locale"] {
            assert!(user[name].is_string() || user[name].is_null(), "{name}");
        }
        for name in ["id", "object", "image_url", "profile_image_url"] {
            assert!(user[name].is_string(), "{name}");
        }
        for name in [
            "has_image",
            "password_enabled",
            "two_factor_enabled",
            "totp_enabled",
            "backup_code_enabled",
            "banned",
            "locked",
            "delete_self_enabled",
            "create_organization_enabled",
            "deprovisioned",
        ] {
            assert!(user[name].is_boolean(), "{name}");
        }
        for name in [
            "email_addresses",
            "phone_numbers",
            "web3_wallets",
            "passkeys",
            "external_accounts",
            "saml_accounts",
            "enterprise_accounts",
            "organization_memberships",
        ] {
            assert!(user[name].is_array(), "{name}");
        }
        let members = user.as_object().unwrap();
        for name in [
            "primary_email_address_id",
            "primary_phone_number_id",
            "primary_web3_wallet_id",
            "public_metadata",
            "private_metadata",
            "unsafe_metadata",
            "last_sign_in_at",
            "last_active_at",
            "legal_accepted_at",
            "mfa_enabled_at",
            "mfa_disabled_at",
            "password_last_updated_at",
            "lockout_expires_in_seconds",
            "verification_attempts_remaining",
            "create_organizations_limit",
        ] {
            assert!(members.contains_key(name), "{name}");
        }
        assert!(number(user, "created_at") < number(user, "updated_at"));
        assert!(number(user, "updated_at") <= NOW);
    }
}

#[tokio::test]
async fn there_are_users_of_every_kind() {
    let world = World::with(400).await;
    let users = world.everybody().await;
    assert_eq!(users.len(), 400);
    let has = |test: &dyn Fn(&Value) -> bool| users.iter().filter(|user| test(user)).count();
    let count = |user: &Value, list: &str| user[list].as_array().unwrap().len();
    let verified =
        |user: &Value| primary_email(user).is_some_and(|email| email["verification"]["status"] == "verified");
    assert!(has(&verified) > 300, "most are ordinary");
    assert!(has(&|user| count(user, "email_addresses") == 2 && id_of_first(user) != primary_id(user)) > 50);
    assert!(has(&|user| primary_email(user).is_some() && !verified(user)) > 0, "unverified");
    assert!(has(&|user| primary_id(user).is_string() && count(user, "email_addresses") == 0) > 0, "dangling");
    let only = |user: &Value, id: &str, list: &str| {
        primary_id(user).is_null() && user[id].is_string() && count(user, list) == 1
    };
    assert!(has(&|user| only(user, "primary_phone_number_id", "phone_numbers")) > 0);
    assert!(has(&|user| only(user, "primary_web3_wallet_id", "web3_wallets")) > 0);
    assert!(has(&|user| primary_id(user).is_null() && user["username"].is_string()) > 0);
    assert!(has(&|user| user["first_name"].is_null()) > 0);
    assert!(has(&|user| user["private_metadata"].is_null()) > 0);
    assert!(has(&|user| !user["public_metadata"].to_string().is_ascii()) > 0);
    assert!(has(&|user| user["unsafe_metadata"]["note"] == "a\0b") > 0);
    assert!(has(&|user| user["banned"] == true) > 0);
    assert!(has(&|user| user["last_sign_in_at"].is_null()) > 0);
    let mut addresses: BTreeMap<&str, usize> = BTreeMap::new();
    for user in &users {
        if let Some(email) = primary_email(user) {
            *addresses.entry(email["email_address"].as_str().unwrap()).or_default() += 1;
        }
    }
    assert!(addresses.values().any(|users| *users == 2), "two users with one address");
    let times: HashSet<i64> = users.iter().map(|user| number(user, "created_at")).collect();
    assert!(times.len() < users.len(), "some share a millisecond");
    let late = users.iter().filter(|user| number(user, "created_at") > NOW - 365 * 86_400_000).count();
    assert!(late > 250 && late < 400, "more and more sign up: {late}");
}

fn primary_id(user: &Value) -> &Value {
    &user["primary_email_address_id"]
}

fn id_of_first(user: &Value) -> &Value {
    &user["email_addresses"][0]["id"]
}

#[tokio::test]
async fn the_same_numbers_are_the_same_users() {
    let (one, other) = (World::with(60).await, World::with(60).await);
    assert_eq!(one.everybody().await, other.everybody().await);
}

#[tokio::test]
async fn the_cursor_meets_everybody_who_stays_once_while_others_come_and_go() {
    let world = World::with(3000).await;
    for order in ["created_at", "-created_at", "%2Bcreated_at"] {
        let users = world.fake.users();
        let mut staying: HashSet<String> = users.ids().into_iter().collect();
        let mut met: HashMap<String, usize> = HashMap::new();
        let mut cursor = String::new();
        loop {
            let page = world.get(&format!("/v1/users?limit=100&order_by={order}{cursor}")).await.ids();
            for id in &page {
                *met.entry(id.clone()).or_default() += 1;
            }
            if page.len() < 100 {
                break;
            }
            cursor = format!("&starting_after={}", page[99]);
            world.pass(Duration::from_secs(1));
            users.create();
            users.update(&page[7]).unwrap();
            // Delete a listed user and another one that may not be listed yet, but never the last user of the page, which is the
            // next cursor.
            for id in [page[50].clone(), users.ids()[(met.len() * 7) % users.len()].clone()] {
                if id != page[99] && users.delete(&id).is_some() {
                    staying.remove(&id);
                }
            }
        }
        assert!(staying.len() > 2500, "most stay");
        assert!(met.values().all(|times| *times == 1), "no user is listed twice");
        assert!(staying.iter().all(|id| met.contains_key(id)), "no user is skipped");
    }
}

#[tokio::test]
async fn offsets_and_orders_list_everybody() {
    let world = World::with(230).await;
    let all: HashSet<String> = world.fake.users().ids().into_iter().collect();
    for key in [
        "created_at",
        "updated_at",
        "email_address",
        "web3wallet",
        "first_name",
        "last_name",
        "phone_number",
        "username",
        "last_active_at",
        "last_sign_in_at",
    ] {
        let mut listed = Vec::new();
        for offset in [0, 100, 200, 300] {
            listed.extend(
                world.get(&format!("/v1/users?limit=100&order_by={key}&offset={offset}")).await.ids(),
            );
        }
        assert_eq!(listed.len(), 230, "{key}");
        assert_eq!(listed.iter().cloned().collect::<HashSet<_>>(), all, "{key}");
        listed.reverse();
        let reversed = world.get(&format!("/v1/users?limit=500&order_by=-{key}")).await.ids();
        assert_eq!(reversed, listed, "{key}");
    }
    let users = world.get("/v1/users?limit=500&order_by=updated_at").await;
    assert!(users.list().is_sorted_by_key(|user| number(user, "updated_at")));
    let users = world.get("/v1/users?limit=500&order_by=created_at").await;
    assert!(users.list().is_sorted_by_key(|user| (number(user, "created_at"), id_of(user))));
    assert_eq!(users.ids(), world.fake.users().ids());
    let mut newest = users.ids();
    newest.reverse();
    assert_eq!(world.get("/v1/users?limit=500").await.ids(), newest, "the default order is newest first");
}

#[tokio::test]
async fn what_clerk_would_refuse_is_refused() {
    let world = World::with(5).await;
    let id = world.fake.users().ids()[0].clone();
    let value = "form_param_value_invalid";
    let together = "form_conditional_param_disallowed";
    let many = "&email_address=a@example.com".repeat(101);
    for (query, code) in [
        ("limit=0".to_owned(), value),
        ("limit=501".to_owned(), value),
        ("limit=ten".to_owned(), "form_param_type_invalid"),
        ("offset=-1".to_owned(), "form_param_type_invalid"),
        ("order_by=birthday".to_owned(), value),
        // An unencoded plus means a space.
        ("order_by=+created_at".to_owned(), value),
        ("banned=perhaps".to_owned(), value),
        ("created_at_after=2026-01-01".to_owned(), "form_param_invalid_date"),
        (format!("starting_after={id}&offset=0"), together),
        (format!("starting_after={id}&order_by=updated_at"), together),
        ("starting_after=user_1".to_owned(), "form_resource_not_found"),
        (format!("limit=5{many}"), "form_param_array_size_exceeded"),
    ] {
        assert_eq!(world.code(&format!("/v1/users?{query}")).await, (422, code.to_owned()), "{query}");
    }
    let answer = world.get("/v1/users?limit=0").await;
    assert_eq!(answer.body["errors"][0]["meta"]["param_name"], "limit");
    assert!(answer.body["errors"][0]["long_message"].is_string());
    assert!(answer.body["errors"][0]["message"].is_string());
    assert_eq!(answer.body["clerk_trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(world.get("/v1/users?birthday=today&limit=500").await.list().len(), 5, "ignored");
    assert_eq!(world.get("/v1/users?organization_id=org_1").await.status, StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn only_the_key_opens() {
    let world = World::with(1).await;
    for path in ["/v1/users", "/v1/users/count", "/v1/users/user_1", "/v1/anything"] {
        let wrong = world.get_with(path, Some("Bearer sk_test_wrong")).await;
        assert_eq!((wrong.status.as_u16(), wrong.code()), (401, "clerk_key_invalid"));
        for odd in [None, Some("Basic abc"), Some("sk_test_fake")] {
            let answer = world.get_with(path, odd).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (401, "authorization_header_format_invalid"),
                "{odd:?}"
            );
        }
    }
}

#[tokio::test]
async fn one_user_is_found_by_id_and_nobody_else() {
    let world = World::with(20).await;
    let users = world.fake.users();
    let id = users.ids()[3].clone();
    let found = world.get(&format!("/v1/users/{id}")).await;
    assert_eq!(found.status, StatusCode::OK);
    assert_eq!(found.body, users.get(&id).unwrap());
    users.delete(&id).unwrap();
    let missing = (404, "resource_not_found".to_owned());
    assert_eq!(world.code(&format!("/v1/users/{id}")).await, missing);
    assert_eq!(users.get(&id), None);
    assert!(users.update(&id).is_none() && users.delete(&id).is_none());
    for path in ["/v1/users/user_1", "/v1/users/", "/v1/users/a/b", "/v1/clients", "/users", "/", "/v2/users"]
    {
        assert_eq!(world.code(path).await, missing, "{path}");
    }
    let posted = world.client.post(format!("{}/v1/users", world.fake.url())).bearer_auth(world.fake.key());
    assert_eq!(posted.send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn filters_find_whom_they_name() {
    let world = World::with(300).await;
    let users = world.everybody().await;
    let encode = |value: &str| -> String { form_urlencoded::byte_serialize(value.as_bytes()).collect() };
    for (name, values) in [
        ("user_id", users.iter().map(id_of).collect::<Vec<_>>()),
        ("external_id", texts(&users, "/external_id")),
        ("username", texts(&users, "/username")),
        ("email_address", texts(&users, "/email_addresses/0/email_address")),
        ("phone_number", texts(&users, "/phone_numbers/0/phone_number")),
        ("web3_wallet", texts(&users, "/web3_wallets/0/web3_wallet")),
    ] {
        let wanted = &values[..values.len().min(100)];
        let mut query = String::new();
        for value in wanted {
            query.extend(["&", name, "=", &encode(value)]);
        }
        let named = |user: &Value| {
            let user = user.to_string();
            wanted.iter().any(|value| user.contains(&format!("{value:?}")))
        };
        let expected: Vec<String> = users.iter().filter(|user| named(user)).map(id_of).collect();
        let found = world.get(&format!("/v1/users?limit=500&order_by=created_at{query}")).await;
        assert_eq!(found.ids(), expected, "{name}");
        assert!(!expected.is_empty(), "{name}");
        assert_eq!(world.count(&query).await, expected.len() as u64, "{name}");
    }
    let (first, second) = (id_of(&users[0]), id_of(&users[1]));
    let asked = format!("user_id=%2B{first}&user_id=-{second}&user_id=user_nobody");
    assert_eq!(world.get(&format!("/v1/users?{asked}")).await.ids(), [&*first]);
    assert_eq!(world.count(&format!("user_id=-{first}&user_id=-{second}")).await, 298);
    let banned = world.count("banned=true").await;
    assert!(banned > 0);
    assert_eq!(world.count("banned=false").await, 300 - banned);
    assert_eq!(world.count("query=SOMEONE.7%40example").await, 0, "7 has a telephone only");
    assert_eq!(world.count("query=SOMEONE.1%40example").await, 1);
    assert!(world.count("query=lovelace").await > 0);
    assert!(world.count("email_address_query=EXAMPLE.ORG").await > 50);
    assert_eq!(world.count("name_query=example.org").await, 0);
}

/// The texts at this path, for the users that have one.
fn texts(users: &[Value], pointer: &str) -> Vec<String> {
    users.iter().filter_map(|user| user.pointer(pointer)?.as_str().map(ToOwned::to_owned)).collect()
}

#[tokio::test]
async fn windows_of_time_leave_out_or_take_in_their_ends() {
    let world = World::with(300).await;
    let users = world.everybody().await;
    for inclusive in [false, true] {
        world.behave(Behaviour { inclusive_times: inclusive, ..Behaviour::default() });
        for name in ["created_at", "last_active_at", "last_sign_in_at"] {
            let mut times: Vec<i64> = users.iter().filter_map(|user| user[name].as_i64()).collect();
            times.sort_unstable();
            let (from, to) = (times[times.len() / 4], times[times.len() / 2]);
            let within = |at: i64| if inclusive { (from..=to).contains(&at) } else { from < at && at < to };
            let mut expected: Vec<String> =
                users.iter().filter(|user| user[name].as_i64().is_some_and(within)).map(id_of).collect();
            let window = format!("{name}_after={from}&{name}_before={to}");
            assert_eq!(world.count(&window).await, expected.len() as u64);
            let path = format!("/v1/users?limit=500&{window}");
            assert_eq!(world.get(&format!("{path}&order_by=created_at")).await.ids(), expected);
            expected.reverse();
            assert_eq!(world.get(&path).await.ids(), expected);
            // A page inside the window.
            let (third, rest) = (&expected[2], &expected[3..6]);
            let path = format!("/v1/users?limit=3&{window}&starting_after={third}");
            assert_eq!(world.get(&path).await.ids(), rest);
        }
    }
    let everything = format!("created_at_after={}&created_at_before={}", i64::MIN, i64::MAX);
    assert_eq!(world.count(&everything).await, 300);
    assert_eq!(world.count("created_at_after=10&created_at_before=5").await, 0);
}

#[tokio::test]
async fn the_count_follows_what_happens() {
    let world = World::with(10).await;
    let users = world.fake.users();
    assert_eq!((world.count("").await, users.len()), (10, 10));
    users.create();
    users.create();
    users.delete(&users.ids()[0]).unwrap();
    assert_eq!((world.count("").await, users.len(), users.ids().len()), (11, 11, 11));
    assert!(!users.is_empty() && World::with(0).await.fake.users().is_empty());
}

#[tokio::test]
async fn events_agree_with_the_backend_api() {
    let world = World::with(0).await;
    let users = world.fake.users();
    for _ in 0..120 {
        let created = users.create();
        let id = created.user_id.clone();
        let first = users.get(&id).unwrap();
        check(&created, "user.created", &first);
        assert_eq!(number(&first, "created_at"), NOW, "the time is that of the clock");
        assert!((15..=56).contains(&(number(&first, "updated_at") - NOW)));
        // The clock stands still, but the times increase.
        let updated = users.update(&id).unwrap();
        let second = users.get(&id).unwrap();
        check(&updated, "user.updated", &second);
        assert!(number(&second, "updated_at") > number(&first, "updated_at"));
        assert_ne!(first["public_metadata"], second["public_metadata"]);
        assert_eq!(first["created_at"], second["created_at"]);
        let deleted = users.delete(&id).unwrap();
        let event: Value = serde_json::from_str(&deleted.body).unwrap();
        assert_eq!((&event["type"], &event["data"]["id"]), (&"user.deleted".into(), &id.into()));
        assert!(event["data"].get("updated_at").is_none());
        assert!(number(&event, "timestamp") > number(&second, "updated_at"));
        assert!(matches!(understood(&deleted), News::Delete));
    }
    world.pass(Duration::from_hours(1));
    let id = users.create().user_id;
    world.pass(Duration::from_mins(1));
    users.update(&id).unwrap();
    assert_eq!(number(&users.get(&id).unwrap(), "updated_at"), NOW + 3_660_000);
}

/// Assert that the event contains this user as the Backend API shows it, and that clerk-sync can parse it.
fn check(event: &Event, event_type: &str, user: &Value) {
    let body: Value = serde_json::from_str(&event.body).unwrap();
    assert_eq!((&body["data"], &body["type"]), (user, &event_type.into()));
    let lag = number(&body, "timestamp") - number(user, "updated_at");
    assert!((17..=58).contains(&lag), "{lag} ms");
    assert!(matches!(understood(event), News::Upsert { .. }));
}

fn understood(event: &Event) -> News {
    let now = DateTime::from_timestamp_millis(NOW).unwrap();
    let secret = Secret::parse(SECRET).unwrap();
    let signature = secret.sign("msg_1", now, event.body.as_bytes());
    let seconds = now.timestamp().to_string();
    let headers =
        SignatureHeaders { id: b"msg_1", timestamp: seconds.as_bytes(), signature: signature.as_bytes() };
    let body = Bytes::from(event.body.clone());
    let ours = Verifier::new(vec![secret], 300);
    let verified = ours.expect(&headers, now).unwrap().verify(body).unwrap();
    match event::parse(&verified, &Selection::of(&clerk_sync::entity::USER, FieldSet::ALL), now)
        .delivery
        .content
    {
        Content::Change(change) => {
            assert_eq!(change.clerk_id.as_str(), event.user_id);
            change.news
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn too_many_requests_are_told_when_to_come_back() {
    let world = World::with(1).await;
    world.behave(Behaviour { rate_limit: Some(3), ..Behaviour::default() });
    for _ in 0..3 {
        assert_eq!(world.get("/v1/users").await.status, StatusCode::OK);
        assert_eq!(world.get_with("/v1/users", None).await.status, StatusCode::UNAUTHORIZED);
    }
    let refused = world.get("/v1/users").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "too_many_requests"));
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds));
    let burst = Bursts { every: Duration::from_millis(1), lasting: Duration::from_mins(1), retry_after: 7 };
    world.behave(Behaviour { bursts_of_429: Some(burst), ..Behaviour::default() });
    // The first burst begins 1 ms after the behaviour is set, and then lasts permanently.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let refused = world.get("/v1/users").await;
    assert_eq!((refused.status.as_u16(), refused.headers["retry-after"].to_str().unwrap()), (429, "7"));
}

#[tokio::test]
async fn a_share_of_the_requests_fails() {
    let world = World::with(1).await;
    world.behave(Behaviour { failures: 0.3, ..Behaviour::default() });
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for _ in 0..300 {
        let answer = world.get("/v1/users").await;
        *statuses.entry(answer.status.as_u16()).or_default() += 1;
        if answer.status.is_server_error() {
            assert_eq!(answer.code(), "internal_clerk_error");
        }
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 500, 503, 504]);
    assert!((170..250).contains(&statuses[&200]), "{statuses:?}");
}

#[tokio::test]
async fn a_server_without_the_cursor_gives_the_same_page_again() {
    let world = World::with(30).await;
    world.behave(Behaviour { ignore_cursor: true, ..Behaviour::default() });
    let page = world.get("/v1/users?limit=10&order_by=created_at").await.ids();
    let path = format!("/v1/users?limit=10&order_by=created_at&starting_after={}", page[9]);
    assert_eq!(world.get(&path).await.ids(), page);
    assert_eq!(world.get("/v1/users?starting_after=user_1&offset=0").await.list().len(), 10);
}

#[tokio::test]
async fn the_cursor_of_a_deleted_user_does_what_was_chosen() {
    let world = World::with(30).await;
    let ids = world.fake.users().ids();
    world.fake.users().delete(&ids[9]).unwrap();
    let path = format!("/v1/users?limit=3&order_by=created_at&starting_after={}", ids[9]);
    for (deleted_cursor, expected) in [
        (DeletedCursor::NotFound422, None),
        (DeletedCursor::EmptyPage, Some(&ids[..0])),
        (DeletedCursor::GoOn, Some(&ids[10..13])),
    ] {
        world.behave(Behaviour { deleted_cursor, ..Behaviour::default() });
        match expected {
            Some(ids) => assert_eq!(world.get(&path).await.ids(), ids, "{deleted_cursor:?}"),
            None => assert_eq!(world.code(&path).await, (422, "form_resource_not_found".to_owned())),
        }
    }
}

#[tokio::test]
async fn a_list_can_hide_half_of_the_users() {
    let world = World::with(400).await;
    world.behave(Behaviour { only: Some(0.5), ..Behaviour::default() });
    let listed: HashSet<String> = world.everybody().await.iter().map(id_of).collect();
    assert!((150..250).contains(&listed.len()), "{}", listed.len());
    assert_eq!(world.count("").await, 400);
    let hidden = world.fake.users().ids().into_iter().find(|id| !listed.contains(id)).unwrap();
    assert_eq!(world.get(&format!("/v1/users/{hidden}")).await.status, StatusCode::OK);
    world.behave(Behaviour { only: Some(0.5), count_only_listed: true, ..Behaviour::default() });
    assert_eq!(world.count("").await, listed.len() as u64);
}

#[tokio::test]
async fn answers_can_be_late_or_never_come() {
    let world = World::with(1).await;
    let latency = Duration::from_millis(80);
    world.behave(Behaviour { latency, ..Behaviour::default() });
    let begun = Instant::now();
    world.get("/v1/users").await;
    assert!(begun.elapsed() >= latency);

    world.behave(Behaviour { hang: true, ..Behaviour::default() });
    let url = format!("{}/v1/users", world.fake.url());
    let impatient = world.client.get(&url).timeout(Duration::from_millis(200)).send().await;
    assert!(impatient.unwrap_err().is_timeout());

    world.behave(Behaviour { down: true, ..Behaviour::default() });
    assert!(!world.client.get(&url).send().await.unwrap_err().is_timeout());

    world.behave(Behaviour::default());
    assert_eq!(world.get("/v1/users").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_fake_ends_when_it_is_dropped() {
    let World { fake, client, .. } = World::with(1).await;
    fake.behave(Behaviour { hang: true, ..Behaviour::default() });
    let url = format!("{}/v1/users", fake.url());
    let hanging = tokio::spawn(client.get(&url).send());
    while fake.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(fake);
    assert!(hanging.await.unwrap().is_err(), "the pending request is cut off");
    assert!(client.get(&url).send().await.unwrap_err().is_connect(), "the fake no longer listens");
}

#[tokio::test]
async fn every_request_is_written_down() {
    let world = World::with(3).await;
    world.get("/v1/users?limit=2&order_by=%2Bcreated_at").await;
    world.get("/v1/users/count").await;
    world.get("/v1/nothing").await;
    let requests = world.fake.requests();
    let written: Vec<_> = requests
        .iter()
        .map(|request| {
            (request.method.as_str(), request.path.as_str(), request.query.as_str(), request.status)
        })
        .collect();
    assert_eq!(
        written,
        [
            ("GET", "/v1/users", "limit=2&order_by=%2Bcreated_at", Some(200)),
            ("GET", "/v1/users/count", "", Some(200)),
            ("GET", "/v1/nothing", "", Some(404)),
        ]
    );
    assert!(requests.is_sorted_by_key(|request| request.at));
    assert_eq!(world.fake.requests_to("/v1/users"), 2);
    assert_eq!(world.fake.requests_to("/v1/users/count"), 1);
}

#[tokio::test]
async fn a_key_is_of_the_instance_that_its_events_name() {
    let world = World::with(1).await;
    let instance = world.get("/v1/instance").await;
    assert_eq!(
        (instance.status, &instance.body["environment_type"]),
        (StatusCode::OK, &"development".into())
    );
    let event: Value = serde_json::from_str(&world.fake.users().create().body).unwrap();
    assert_eq!((&instance.body["object"], &instance.body["id"]), (&"instance".into(), &event["instance_id"]));
    assert_eq!(
        world.get_with("/v1/instance", Some("Bearer sk_test_other")).await.code(),
        "clerk_key_invalid"
    );
}

/// Required and optional fields of an object in Clerk's Backend API spec 2026-05-12.
const USER: (&[&str], &[&str]) = (
    &[
        "id",
        "object",
        "username",
        "first_name",
        "last_name",
        "has_image",
        "primary_email_address_id",
        "primary_phone_number_id",
        "primary_web3_wallet_id",
        "password_enabled",
        "two_factor_enabled",
        "totp_enabled",
        "backup_code_enabled",
        "email_addresses",
        "phone_numbers",
        "web3_wallets",
        "passkeys",
        "external_accounts",
        "saml_accounts",
        "enterprise_accounts",
        "public_metadata",
        "external_id",
        "last_sign_in_at",
        "banned",
        "locked",
        "lockout_expires_in_seconds",
        "verification_attempts_remaining",
        "created_at",
        "updated_at",
        "delete_self_enabled",
        "create_organization_enabled",
        "last_active_at",
        "mfa_enabled_at",
        "mfa_disabled_at",
        "legal_accepted_at",
    ],
    &[
        "locale",
        "profile_image_url",
        "image_url",
        "private_metadata",
        "unsafe_metadata",
        "password_last_updated_at",
        "organization_memberships",
        "deprovisioned",
        "create_organizations_limit",
        "bypass_client_trust",
    ],
);
const EMAIL_ADDRESS: (&[&str], &[&str]) = (
    &["object", "email_address", "reserved", "verification", "linked_to", "created_at", "updated_at"],
    &["id", "matches_sso_connection"],
);
const PHONE_NUMBER: (&[&str], &[&str]) = (
    &["object", "phone_number", "reserved", "verification", "linked_to", "created_at", "updated_at"],
    &["id", "reserved_for_second_factor", "default_second_factor", "backup_codes"],
);
const WEB3_WALLET: (&[&str], &[&str]) =
    (&["object", "web3_wallet", "verification", "created_at", "updated_at"], &["id"]);
const VERIFICATION: (&[&str], &[&str]) =
    (&["status", "strategy", "attempts", "expire_at"], &["object", "nonce", "message", "verified_at_client"]);

fn assert_shape(value: &Value, (must, may): (&[&str], &[&str])) {
    let object = value.as_object().expect("an object");
    for name in must {
        assert!(object.contains_key(*name), "no {name}: {value}");
    }
    for name in object.keys() {
        assert!(must.contains(&name.as_str()) || may.contains(&name.as_str()), "{name}: {value}");
    }
}

#[tokio::test]
async fn everything_shown_has_the_fields_of_clerks_spec() {
    let world = World::with(250).await;
    let page = world.get("/v1/users?limit=500").await;
    for user in page.list() {
        assert_shape(user, USER);
        for (list, shape, verification) in [
            ("email_addresses", EMAIL_ADDRESS, "verification_otp"),
            ("phone_numbers", PHONE_NUMBER, "verification_otp"),
            ("web3_wallets", WEB3_WALLET, "verification_web3"),
        ] {
            for entry in user[list].as_array().unwrap() {
                assert_shape(entry, shape);
                assert_shape(&entry["verification"], VERIFICATION);
                assert_eq!(entry["verification"]["object"], verification);
            }
        }
    }
    let instance = world.get("/v1/instance").await.body;
    assert_shape(&instance, (&["object", "id", "environment_type", "allowed_origins", "workspace_id"], &[]));
    // An event shows the same fields of a user.
    let event: Value = serde_json::from_str(&world.fake.users().create().body).unwrap();
    assert_shape(&event["data"], USER);
}

#[tokio::test]
async fn the_date_is_that_of_the_clock() {
    let world = World::with(0).await;
    assert_eq!(world.get("/v1/users").await.headers["date"], "Thu, 01 Jan 2026 00:00:00 GMT");
    world.pass(Duration::from_secs(90));
    assert_eq!(world.get("/v1/users").await.headers["date"], "Thu, 01 Jan 2026 00:01:30 GMT");
}

#[tokio::test]
async fn more_users_than_there_are_numbers_are_refused() {
    let clock: Clock = Arc::new(|| DateTime::UNIX_EPOCH);
    let options = Options { users: 10_000_000, ..Options::default() };
    assert!(Fake::start(options, clock).await.is_err());
}
