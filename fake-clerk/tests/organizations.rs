//! Organizations and memberships over real HTTP, as a client sees them.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::DateTime;
use fake_clerk::{Behaviour, Bursts, Clock, Fake, Options};
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// The time of the clock: 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600_000;

/// All paths that concern organizations.
const PATHS: [&str; 5] = [
    "/v1/organizations",
    "/v1/organizations/org_1",
    "/v1/organizations/org_1/memberships",
    "/v1/organization_memberships",
    "/v1/users/user_1/organization_memberships",
];

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> (u16, &str) {
        (self.status, self.body["errors"][0]["code"].as_str().unwrap_or("no code"))
    }

    fn data(&self) -> &[Value] {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.body.as_object().unwrap().len(), 2);
        self.body["data"].as_array().unwrap()
    }

    fn ids(&self) -> Vec<&str> {
        self.data().iter().map(|entry| text(entry, "/id")).collect()
    }

    fn total(&self) -> usize {
        self.data();
        usize::try_from(self.body["total_count"].as_u64().unwrap()).unwrap()
    }
}

async fn fake(users: usize, organizations: usize, members: usize) -> Fake {
    let clock: Clock = Arc::new(|| DateTime::from_timestamp_millis(NOW).unwrap());
    let options = Options { users, organizations, members, ..Options::default() };
    Fake::start(options, clock).await.unwrap()
}

async fn get(fake: &Fake, path: &str) -> Answer {
    get_with(fake, path, fake.key()).await
}

async fn get_with(fake: &Fake, path: &str, key: &str) -> Answer {
    let stream = TcpStream::connect(fake.url().strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "fake").header("authorization", format!("Bearer {key}"));
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, body: serde_json::from_slice(&body).unwrap() }
}

/// All entries of a list, oldest first, in pages of `limit`.
async fn walk(fake: &Fake, path: &str, limit: usize) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let page =
            get(fake, &format!("{path}?limit={limit}&offset={}&order_by=%2Bcreated_at", all.len())).await;
        all.extend(page.data().to_vec());
        if page.data().len() < limit {
            assert_eq!(page.total(), all.len());
            return all;
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap()
}

fn texts<'a>(values: &'a [Value], pointer: &str) -> Vec<&'a str> {
    values.iter().map(|value| text(value, pointer)).collect()
}

fn organization(id: &str, created_at: i64) -> Value {
    json!({ "object": "organization", "id": id, "name": "A given one", "created_at": created_at })
}

fn membership(id: &str, organization: &str, user: &str, created_at: i64) -> Value {
    json!({
        "object": "organization_membership",
        "id": id,
        "role": "org:admin",
        "organization": { "id": organization },
        "public_user_data": { "user_id": user },
        "created_at": created_at,
    })
}

#[tokio::test]
async fn every_list_is_walked_by_offset_in_the_order_of_creation() {
    let fake = fake(40, 120, 5).await;
    for (path, count, known) in [
        ("/v1/organizations", 120, fake.organizations().ids()),
        ("/v1/organization_memberships", 600, fake.organizations().membership_ids()),
    ] {
        let all = walk(&fake, path, 37).await;
        assert_eq!((all.len(), texts(&all, "/id")), (count, known.iter().map(String::as_str).collect()));
        let place = |entry: &Value| (entry["created_at"].as_i64(), text(entry, "/id").to_owned());
        assert!(all.is_sorted_by_key(place), "{path}");
        let times: HashSet<Option<i64>> = all.iter().map(|entry| entry["created_at"].as_i64()).collect();
        assert!(times.len() < all.len(), "some share a millisecond");
        assert!(times.iter().all(|at| at.unwrap() < NOW));
        let mut newest = texts(&all, "/id");
        newest.reverse();
        assert_eq!(get(&fake, path).await.ids(), newest[..10], "by default ten, the newest first");
        let page = get(&fake, &format!("{path}?order_by=-created_at&limit=20&offset=50")).await;
        assert_eq!((page.ids(), page.total()), (newest[50..70].to_vec(), count));
        let beyond = get(&fake, &format!("{path}?offset=5000")).await;
        assert_eq!((beyond.data().len(), beyond.total()), (0, count));
    }
}

#[tokio::test]
async fn memberships_are_the_same_from_every_side() {
    let fake = fake(20, 30, 6).await;
    let all = walk(&fake, "/v1/organization_memberships", 500).await;
    let mut pairs = HashSet::new();
    for entry in &all {
        let (organization, user) =
            (text(entry, "/organization/id"), text(entry, "/public_user_data/user_id"));
        assert!(pairs.insert((organization, user)), "no user is twice in one organization");
        let whole = get(&fake, &format!("/v1/organizations/{organization}")).await;
        assert_eq!(entry["organization"], whole.body);
        let user = get(&fake, &format!("/v1/users/{user}")).await.body;
        for name in ["first_name", "last_name", "image_url", "has_image", "username", "banned"] {
            assert_eq!(entry["public_user_data"][name], user[name], "{name}");
        }
    }
    for (pointer, parents, path) in [
        ("/organization/id", fake.organizations().ids(), "/v1/organizations/{}/memberships"),
        ("/public_user_data/user_id", fake.users().ids(), "/v1/users/{}/organization_memberships"),
    ] {
        for parent in parents {
            let expected: Vec<&Value> = all.iter().filter(|entry| text(entry, pointer) == parent).collect();
            let listed = walk(&fake, &path.replace("{}", &parent), 4).await;
            assert_eq!(listed.iter().collect::<Vec<_>>(), expected);
        }
    }
}

#[tokio::test]
async fn everything_made_has_the_fields_of_clerks_spec() {
    let fake = fake(50, 20, 3).await;
    let has = |value: &Value, names: &[&str]| {
        for name in names {
            assert!(value.get(name).is_some(), "no {name}: {value}");
        }
    };
    let organization = "object id name slug has_image max_allowed_memberships admin_delete_enabled \
                        public_metadata created_at updated_at";
    let organization: Vec<&str> = organization.split_whitespace().collect();
    for entry in walk(&fake, "/v1/organization_memberships", 500).await {
        let names = "object id role permissions public_metadata created_at updated_at organization";
        has(&entry, &names.split_whitespace().collect::<Vec<_>>());
        has(&entry["organization"], &organization);
        let user = "user_id first_name last_name profile_image_url image_url has_image";
        has(&entry["public_user_data"], &user.split_whitespace().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn organizations_are_chosen_by_id() {
    let fake = fake(0, 300, 0).await;
    let ids = fake.organizations().ids();
    let path = "/v1/organizations?order_by=created_at&limit=500";
    let two = format!("organization_id={}&organization_id=%2B{}&organization_id=org_1", ids[9], ids[4]);
    let chosen = get(&fake, &format!("{path}&{two}")).await;
    assert_eq!((chosen.ids(), chosen.total()), (vec![ids[4].as_str(), &ids[9]], 2));
    let others = get(&fake, &format!("{path}&organization_id=-{}", ids[4])).await;
    assert_eq!(others.total(), 299);
    assert!(!others.ids().contains(&ids[4].as_str()));
    let most = ids[..100].iter().fold(path.to_owned(), |path, id| path + "&organization_id=" + id);
    assert_eq!(get(&fake, &most).await.ids(), ids[..100]);
    let more = get(&fake, &format!("{most}&organization_id={}", ids[100])).await;
    assert_eq!(more.code(), (422, "form_param_array_size_exceeded"));
    assert_eq!(get(&fake, &format!("{path}&organization_id=org_1")).await.total(), 0);
}

#[tokio::test]
async fn what_clerk_would_refuse_is_refused() {
    let fake = fake(1, 1, 1).await;
    let (organization, user) = (fake.organizations().ids().remove(0), fake.users().ids().remove(0));
    for path in [
        "/v1/organizations".to_owned(),
        "/v1/organization_memberships".to_owned(),
        format!("/v1/organizations/{organization}/memberships"),
        format!("/v1/users/{user}/organization_memberships"),
    ] {
        for (query, code) in [
            ("limit=0", (422, "form_param_value_invalid")),
            ("limit=501", (422, "form_param_value_invalid")),
            ("limit=ten", (422, "form_param_type_invalid")),
            ("offset=-1", (422, "form_param_type_invalid")),
            ("order_by=updated_at", (422, "form_param_value_invalid")),
            // An unencoded plus is a space.
            ("order_by=+created_at", (422, "form_param_value_invalid")),
            ("user_id=user_1", (501, "fake_is_incomplete")),
        ] {
            assert_eq!(get(&fake, &format!("{path}?{query}")).await.code(), code, "{path}?{query}");
        }
        assert_eq!(get(&fake, &format!("{path}?limit=500&offset=0&birthday=today")).await.total(), 1);
    }
    for path in ["/v1/organizations/org_1", "/v1/organizations/", "/v1/organizations/org_1/memberships"] {
        assert_eq!(get(&fake, path).await.code(), (404, "resource_not_found"), "{path}");
    }
    let nobody = get(&fake, "/v1/users/user_1/organization_memberships").await;
    assert_eq!(nobody.code(), (404, "resource_not_found"));
    for path in PATHS {
        assert_eq!(get_with(&fake, path, "sk_test_wrong").await.code(), (401, "clerk_key_invalid"));
    }
}

#[tokio::test]
async fn what_is_given_is_shown_among_what_was_made() {
    let fake = fake(3, 2, 2).await;
    let organizations = fake.organizations();
    let made = organizations.ids();
    let at = organizations.get(&made[1]).unwrap()["created_at"].as_i64().unwrap();
    // Before and after an organization of the same millisecond, by id.
    for id in ["org_zz", "org_0"] {
        organizations.put(organization(id, at));
    }
    organizations.put(json!({ "id": "org_timeless" }));
    assert_eq!(organizations.ids(), ["org_timeless", &made[0], "org_0", &made[1], "org_zz"]);
    assert_eq!(get(&fake, "/v1/organizations/org_0").await.body, organization("org_0", at));

    // A replaced organization has one place, which may differ from the old one.
    for id in [&made[0], "org_zz"] {
        organizations.put(organization(id, at + 1));
    }
    assert_eq!(organizations.ids(), ["org_timeless", "org_0", &made[1], &made[0], "org_zz"]);
    assert_eq!(organizations.get(&made[0]).unwrap()["name"], "A given one");
    let path = format!("/v1/organizations/{}/memberships", made[0]);
    let members = get(&fake, &path).await;
    assert!(members.data().iter().all(|entry| entry["organization"]["name"] == "A given one"));
    assert_eq!(members.total(), 2, "they stay");
    assert_eq!(get(&fake, "/v1/organizations").await.total(), 5);
}

#[tokio::test]
async fn given_memberships_have_the_organization_and_the_user_of_now() {
    let fake = fake(2, 0, 0).await;
    let (organizations, users) = (fake.organizations(), fake.users());
    let user = users.ids().remove(0);
    let given = membership("orgmem_1", "org_1", &user, 5);
    organizations.put_membership(given.clone());
    assert_eq!(organizations.membership("orgmem_1").unwrap()["organization"], given["organization"]);
    assert_eq!(get(&fake, "/v1/organizations/org_1/memberships").await.status, 404);
    organizations.put(organization("org_1", 4));
    users.update(&user).unwrap();
    let shown = get(&fake, "/v1/organizations/org_1/memberships").await;
    assert_eq!(shown.data()[0]["organization"], organization("org_1", 4));
    assert_eq!(
        shown.data()[0]["public_user_data"]["last_name"],
        users.get(&user).unwrap()["last_name"],
        "of now"
    );
    assert_eq!(shown.data()[0]["role"], "org:admin");

    // A replaced membership may have another user and another organization.
    let other = users.ids().remove(1);
    organizations.put_membership(membership("orgmem_1", "org_2", &other, 6));
    assert_eq!(get(&fake, "/v1/organizations/org_1/memberships").await.total(), 0);
    assert_eq!(get(&fake, &format!("/v1/users/{user}/organization_memberships")).await.total(), 0);
    assert_eq!(get(&fake, &format!("/v1/users/{other}/organization_memberships")).await.ids(), ["orgmem_1"]);

    // A membership with an unknown user is shown unchanged.
    let stranger = membership("orgmem_2", "org_3", "user_stranger", 7);
    organizations.put_membership(stranger.clone());
    assert_eq!(organizations.membership("orgmem_2"), Some(stranger.clone()));
    assert_eq!(organizations.remove_membership("orgmem_2"), Some(stranger));
    assert_eq!(organizations.remove_membership("orgmem_2"), None);
    assert_eq!(organizations.membership_ids(), ["orgmem_1"]);
}

#[tokio::test]
async fn memberships_go_with_their_organization_and_with_their_user() {
    let fake = fake(8, 6, 4).await;
    let (organizations, users) = (fake.organizations(), fake.users());
    let gone = organizations.ids().remove(2);
    assert_eq!(text(&organizations.remove(&gone).unwrap(), "/id"), gone);
    assert_eq!(organizations.remove(&gone), None);
    assert_eq!(get(&fake, &format!("/v1/organizations/{gone}/memberships")).await.status, 404);
    let left = walk(&fake, "/v1/organization_memberships", 500).await;
    assert_eq!(left.len(), 20);
    assert!(!texts(&left, "/organization/id").contains(&gone.as_str()));

    let user = text(&left[0], "/public_user_data/user_id");
    let theirs = texts(&left, "/public_user_data/user_id").iter().filter(|id| **id == user).count();
    users.delete(user).unwrap();
    assert_eq!(get(&fake, &format!("/v1/users/{user}/organization_memberships")).await.status, 404);
    let rest = walk(&fake, "/v1/organization_memberships", 500).await;
    assert_eq!(rest.len(), 20 - theirs);
    assert!(!texts(&rest, "/public_user_data/user_id").contains(&user));
    for id in organizations.ids() {
        let members = walk(&fake, &format!("/v1/organizations/{id}/memberships"), 500).await;
        assert!(!texts(&members, "/public_user_data/user_id").contains(&user));
    }

    // An organization that is added again has no members.
    organizations.put(organization(&gone, 3));
    assert_eq!(get(&fake, &format!("/v1/organizations/{gone}/memberships")).await.total(), 0);
    assert_eq!(organizations.ids()[0], gone);
}

#[tokio::test]
async fn an_instance_can_do_without_organizations() {
    let fake = fake(1, 1, 1).await;
    fake.behave(Behaviour { organizations_off: true, ..Behaviour::default() });
    for path in PATHS {
        assert_eq!(get(&fake, path).await.code(), (403, "organization_not_enabled_in_instance"), "{path}");
    }
    assert_eq!(get_with(&fake, PATHS[0], "sk_test_wrong").await.status, 401, "the key comes first");
    assert_eq!(get(&fake, "/v1/users").await.status, 200);
    fake.behave(Behaviour::default());
    assert_eq!(get(&fake, PATHS[0]).await.total(), 1);
}

#[tokio::test]
async fn an_instance_can_do_without_billing() {
    let fake = fake(1, 1, 1).await;
    fake.behave(Behaviour { billing_off: true, ..Behaviour::default() });
    for path in
        ["billing/plans", "users/user_1/billing/subscription", "organizations/org_1/billing/subscription"]
    {
        assert_eq!(get(&fake, &format!("/v1/{path}")).await.code(), (403, "billing_not_enabled"), "{path}");
    }
    assert_eq!(get(&fake, "/v1/users").await.status, 200);
    fake.behave(Behaviour::default());
    assert_eq!(get(&fake, "/v1/billing/plans").await.total(), 0);
}

#[tokio::test]
async fn faults_meet_organizations_too() {
    let fake = fake(100, 300, 2).await;
    for path in PATHS {
        fake.behave(Behaviour { failures: 1.0, ..Behaviour::default() });
        assert_eq!(get(&fake, path).await.code().1, "internal_clerk_error", "{path}");
        fake.behave(Behaviour { rate_limit: Some(0), ..Behaviour::default() });
        let refused = get(&fake, path).await;
        assert_eq!(refused.code(), (429, "too_many_requests"), "{path}");
        assert!(refused.headers.contains_key("retry-after"));
        let (every, lasting) = (Duration::from_millis(1), Duration::from_mins(1));
        let bursts_of_429 = Some(Bursts { every, lasting, retry_after: 7 });
        fake.behave(Behaviour { bursts_of_429, latency: 2 * every, ..Behaviour::default() });
        assert_eq!(get(&fake, path).await.headers["retry-after"], "7", "{path}");
    }
    for (path, count) in [("/v1/organizations", 300), ("/v1/organization_memberships", 600)] {
        fake.behave(Behaviour { only: Some(0.5), ..Behaviour::default() });
        let some = get(&fake, &format!("{path}?limit=500")).await;
        assert!((count / 3..count * 2 / 3).contains(&some.data().len()), "{}", some.data().len());
        assert_eq!(some.total(), count);
        fake.behave(Behaviour { only: Some(0.5), count_only_listed: true, ..Behaviour::default() });
        let counted = get(&fake, &format!("{path}?limit=500")).await;
        assert_eq!((counted.ids(), counted.total()), (some.ids(), some.data().len()));
    }
}

#[tokio::test]
async fn the_same_numbers_are_the_same_organizations_and_too_large_ones_are_refused() {
    let (one, other) = (fake(30, 20, 3).await, fake(30, 20, 3).await);
    let path = "/v1/organization_memberships";
    assert_eq!(walk(&one, path, 500).await, walk(&other, path, 500).await);
    for (users, organizations, members) in [(2, 1, 3), (70_000, 70_000, 70_000), (0, usize::MAX, 0)] {
        let clock: Clock = Arc::new(|| DateTime::UNIX_EPOCH);
        let options = Options { users, organizations, members, ..Options::default() };
        assert!(Fake::start(options, clock).await.is_err());
    }
}
