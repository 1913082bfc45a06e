//! The dashboard of the real program as the operator sees it, page by page, and the requests that it refuses.

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::json;

use crate::{
    catching_up::Clerk,
    proxy::{Mode, Proxy},
    service::{
        Answer, Client, Host, INSTANCE, Keeper, OTHER_SECRET, Post, SECRET, Service, deletion, eventually,
        milliseconds, on_each_keeper, post, user,
    },
};

const TOKEN: &str = "t0ken-of-the-house";

on_each_keeper!(
    nobody_sees_anything_before_signing_in,
    the_overview_says_whether_the_data_is_right,
    the_overview_tells_an_hour_without_a_webhook,
    the_overview_tells_a_rotated_secret,
    the_overview_tells_drift,
    a_user_is_masked_until_that_is_written_down,
    every_page_says_that_migrations_are_pending,
    dead_letters_are_shown_retried_and_discarded,
    sinks_are_paused_and_resumed,
    the_newest_deliveries_are_listed,
    an_id_that_looks_like_a_path_has_a_page,
    names_of_people_are_never_code,
    objects_of_every_kind_have_pages_that_lead_to_each_other,
    more_than_a_page_of_what_belongs_to_an_object_is_walked_through,
    what_is_private_of_an_organization_is_masked_until_that_is_written_down,
    names_of_organizations_are_never_code,
    where_only_users_are_synced_nothing_else_is_in_the_menu,
);

/// A signed-in browser.
struct Browser<'a> {
    service: &'a Service,
    cookie: String,
}

impl<'a> Browser<'a> {
    fn sign_in(service: &'a Service) -> Self {
        let answer = ask(service, "POST", "/sign-in", "", &format!("token={TOKEN}"));
        assert_eq!((answer.status, answer.headers["location"].as_str()), (303, "/"), "{answer:?}");
        let cookie = &answer.headers["set-cookie"];
        for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
            assert!(cookie.contains(part), "{cookie}");
        }
        Self { service, cookie: format!("cookie: {}\r\n", cookie.split(';').next().expect("a pair")) }
    }

    fn see(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(answer.headers["content-security-policy"].starts_with("default-src 'none'"));
        assert!(!answer.body.contains("style=\""), "the policy forbids it: {path}");
        answer.body
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.service, "GET", path, &self.cookie, "")
    }

    /// Press a button of a page.
    fn press(&self, page: &str, path: &str, action: &str) -> Answer {
        self.send(path, &format!("action={action}&csrf={}", csrf(page)))
    }

    /// Press a button of a page, and follow the redirect.
    fn pressed(&self, page: &str, path: &str, action: &str) -> String {
        let answer = self.press(page, path, action);
        assert_eq!(answer.status, 303, "{path}, {action}: {answer:?}");
        self.see(&answer.headers["location"])
    }

    fn send(&self, path: &str, form: &str) -> Answer {
        ask(self.service, "POST", path, &self.cookie, form)
    }
}

fn csrf(page: &str) -> &str {
    let (_, after) = page.split_once("name=\"csrf\" value=\"").expect("a form");
    after.split('"').next().expect("a value")
}

fn ask(service: &Service, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut client = Client::connect(service.private).expect("a connection");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}content-type: application/x-www-form-urlencoded\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(request.as_bytes()).expect("sent");
    client.answer().expect("an answer")
}

fn serve(host: &mut Host) -> Service {
    host.set("ADMIN_TOKEN", TOKEN);
    host.serve()
}

fn applied(service: &Service, post: &Post) {
    assert_eq!(service.post(post).word(), "applied");
}

fn ada(id: &str) -> Post {
    post(&user("user.created", id, milliseconds(), "Ada"))
}

fn nobody_sees_anything_before_signing_in(host: &mut Host) {
    let service = serve(host);
    applied(&service, &ada("user_1"));
    let paths = [
        "/",
        "/users",
        "/users/user_1",
        "/organizations",
        "/organizations/org_1",
        "/organization_memberships",
        "/organization_memberships/orgmem_1",
        "/sign-ups",
        "/deliveries",
        "/queue",
        "/queue/msg_1",
        "/sinks",
        "/sinks/crm",
        "/users/..%2fmetrics",
    ];
    for nowhere in [
        "/nothing",
        "/users/../metrics",
        "/%2e%2e/etc/passwd",
        "/.env",
        "/clerk-sync.db",
        "/assets/",
        "/assets/../x",
    ] {
        assert_eq!(ask(&service, "GET", nowhere, "", "").status, 404, "{nowhere}");
    }
    let forged = "cookie: clerk-sync-session=AAAAAGsDQ1qDJarpgZYzmWoucgn0W2XM2aqXlUBC_6FEUDFB19UAvJdybpdHTyV3wyU4T2rR3r4\r\n";
    for path in paths {
        for cookie in ["", "cookie: clerk-sync-session=\r\n", forged] {
            let answer = ask(&service, "GET", path, cookie, "");
            assert_eq!((answer.status, answer.headers["location"].as_str()), (303, "/sign-in"), "{path}");
            assert!(answer.body.is_empty(), "{path}");
            let answer = ask(&service, "POST", path, cookie, "action=retry");
            assert_eq!(answer.status, 401, "{path}");
        }
    }
    // The token itself is only for programs; people sign in with a cookie.
    assert_eq!(service.get_api("/", Some(&format!("Bearer {TOKEN}"))).status, 303);
    let browser = Browser::sign_in(&service);
    assert_eq!(ask(&service, "GET", "/v1/users", &browser.cookie, "").status, 401);

    // An action needs a form that was created for this session and is sent from one of our pages.
    let page = browser.see("/sinks");
    let other = Browser::sign_in(&service);
    for form in [
        "action=retry".to_owned(),
        "action=retry&csrf=".to_owned(),
        format!("action=retry&csrf={}", csrf(&other.see("/"))),
    ] {
        assert_eq!(browser.send("/queue", &form).status, 403, "{form}");
    }
    let foreign = format!("{}sec-fetch-site: cross-site\r\n", browser.cookie);
    let form = format!("action=retry&csrf={}", csrf(&page));
    assert_eq!(ask(&service, "POST", "/queue", &foreign, &form).status, 403);
    assert_eq!(browser.send("/queue", &form).status, 303);

    // Nothing from the request's path gets into a header.
    let split = ask(&service, "GET", "/users/user_1%0d%0aset-cookie:%20x=y", &browser.cookie, "");
    assert!(!split.headers.contains_key("set-cookie"), "{split:?}");
    assert_eq!(browser.get("/nothing").status, 404);

    assert_eq!(browser.press(&page, "/sign-out", "sign-out").headers["location"], "/sign-in");
    assert_eq!(browser.get("/").status, 303, "the session has ended");
    assert_eq!(other.get("/").status, 200);
    service.stop();
}

#[test]
fn whoever_guesses_the_token_has_to_wait() {
    let mut host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let service = serve(&mut host);
    let mut statuses = Vec::new();
    for guess in 0..12 {
        statuses.push(ask(&service, "POST", "/sign-in", "", &format!("token=guess-{guess}")).status);
    }
    assert_eq!(statuses[..10], [401; 10]);
    let refused = ask(&service, "POST", "/sign-in", "", &format!("token={TOKEN}"));
    assert_eq!(refused.status, 429, "{statuses:?}");
    assert!(refused.headers["retry-after"].parse::<u64>().expect("seconds") <= 7);
    // Programs that have the token are not slowed down by a guesser at the same address.
    assert_eq!(service.get_api("/v1/users", Some(&format!("Bearer {TOKEN}"))).status, 200);
    service.stop();
}

#[test]
fn without_a_token_the_page_says_what_to_set() {
    let host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let service = host.serve();
    assert_eq!(service.get_private("/").status, 303);
    let page = service.get_private("/sign-in");
    assert!(page.body.contains("ADMIN_TOKEN") && !page.body.contains("<form"), "{page:?}");
    assert!(page.body.contains("<title>Sign in · clerk-sync</title>"), "{page:?}");
    assert_eq!(ask(&service, "POST", "/sign-in", "", "token=").status, 401);
    assert_eq!(ask(&service, "POST", "/queue", "", "action=retry").status, 401);
    service.stop();
}

fn the_overview_says_whether_the_data_is_right(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    assert!(browser.see("/").contains("No webhook has arrived yet"));

    applied(&service, &ada("user_1"));
    eventually("all is well", || browser.see("/").contains("Your data is right"));
    assert!(browser.see("/").contains("Webhooks in the last hour"));
    // The activity is written shortly afterwards.
    eventually("drawn", || browser.see("/").contains("<svg"));
    eventually("counted", || browser.see("/").contains("<dt>Users</dt><dd>1</dd>"));
    for range in ["/?range=day", "/?range=week"] {
        assert!(browser.see(range).contains("<svg"), "{range}");
    }

    host.refuse_first_name("Bad");
    let bad = post(&user("user.created", "user_3", milliseconds(), "Bad"));
    assert_eq!(service.post(&bad).word(), "parked");
    host.sql("UPDATE webhook_queue SET state = 'dead', next_attempt_at = NULL");
    eventually("dead", || browser.see("/").contains("1 delivery could not be applied"));
    service.stop();
}

fn the_overview_tells_an_hour_without_a_webhook(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &ada("user_1"));
    // The activity is written shortly after the answer.
    eventually("counted", || host.count("activity") > 0);
    host.sql("DELETE FROM activity");
    host.sql(&format!("UPDATE processed_webhooks SET processed_at = '{}'", minutes_ago(61)));
    eventually("silence", || browser.see("/").contains("Not sure.</strong> No webhook for 1 h 1 min"));
    applied(&service, &ada("user_2"));
    eventually("well again", || browser.see("/").contains("Your data is right"));
    service.stop();
}

fn the_overview_tells_a_rotated_secret(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &ada("user_1"));
    let rotated = Post { secret: OTHER_SECRET, ..ada("user_2") };
    assert_eq!(service.post(&rotated).word(), "invalid_signature");
    eventually("refused", || {
        let page = browser.see("/");
        page.contains("No.</strong> 1 webhook was refused in the last hour because of the signature")
            && page.contains("and none was accepted since")
    });
    assert!(browser.see("/").contains("CLERK_WEBHOOK_SIGNING_SECRET"));
    eventually("written down", || host.count("activity WHERE outcome = 'rejected'") > 0);
    service.stop();

    host.set("CLERK_WEBHOOK_SIGNING_SECRET", &format!("{OTHER_SECRET},{SECRET}"));
    let service = serve(host);
    applied(&service, &rotated);
    let browser = Browser::sign_in(&service);
    eventually("believed again", || browser.see("/").contains("while others are accepted"));
    service.stop();
}

fn the_overview_tells_drift(host: &mut Host) {
    let clerk = Clerk::of(host, 3);
    host.run(&["backfill"]).succeeded();
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    let sign_in = json!({"type": "session.created", "object": "event", "data": {"id": "sess_1"}});
    assert_eq!(service.post(&post(&sign_in)).word(), "ignored");
    eventually("all is well", || browser.see("/").contains("Your data is right"));
    host.sql(&format!("DELETE FROM users WHERE clerk_id = '{}'", clerk.users().ids()[0]));
    host.run(&["reconcile"]);
    eventually("drift", || {
        browser.see("/").contains("Not sure.</strong> 1 user differed from Clerk at the last reconcile")
    });
    assert!(browser.see("/").contains("(1 missing); all were fixed"));
    service.stop();
}

/// The time this many minutes ago, in a format that every backend accepts.
fn minutes_ago(minutes: i64) -> String {
    (Utc::now() - TimeDelta::minutes(minutes)).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Whether every page that reads the database reports that it is unreachable, and what to do.
fn is_gone(browser: &Browser<'_>) -> bool {
    if !browser.see("/").contains("The database cannot be reached") {
        return false;
    }
    for path in [
        "/users/user_1",
        "/organizations",
        "/sign-ups",
        "/deliveries",
        "/queue",
        "/queue/msg_1",
        "/sinks",
        "/sinks/crm",
    ] {
        let answer = browser.get(path);
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8", "{path}");
        assert!(answer.headers.contains_key("retry-after"), "{path}");
        for said in ["The database cannot be reached", "clerk-sync doctor", "aria-label=\"Pages\""] {
            assert!(answer.body.contains(said), "{path}: {answer:?}");
        }
    }
    true
}

fn every_page_says_that_migrations_are_pending(host: &mut Host) {
    host.set("ADMIN_TOKEN", TOKEN);
    let service = host.begin(&["--no-migrate"]);
    let browser = Browser::sign_in(&service);
    let overview = browser.see("/");
    for said in ["Unknown.</strong> The tables belong to another version", "<code>clerk-sync migrate</code>"]
    {
        assert!(overview.contains(said), "{said}: {overview}");
    }
    for path in ["/users/user_1", "/sign-ups", "/deliveries", "/queue", "/queue/msg_1", "/sinks"] {
        let answer = browser.get(path);
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        for said in ["The tables belong to another version", "<code>clerk-sync migrate</code>"] {
            assert!(answer.body.contains(said), "{path}: {answer:?}");
        }
    }
    // Programs get the documented error code.
    let answer = service.get_api("/v1/users", Some(&format!("Bearer {TOKEN}")));
    assert_eq!((answer.status, answer.word().as_str()), (503, "database_unavailable"));
    assert!(answer.body.contains("run `clerk-sync migrate`"), "{answer:?}");
    host.run(&["migrate"]).succeeded();
    eventually("migrated", || browser.see("/").contains("No webhook has arrived yet"));
    assert_eq!(browser.get("/sinks").status, 200);
    service.stop();
}

#[test]
fn every_page_says_that_the_file_of_the_database_is_gone() {
    let mut host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let service = serve(&mut host);
    let browser = Browser::sign_in(&service);
    assert!(browser.see("/").contains("Is my data right?"));
    std::fs::rename(host.path("users.db"), host.path("moved.db")).expect("moved");
    eventually("gone", || is_gone(&browser));
    std::fs::rename(host.path("moved.db"), host.path("users.db")).expect("moved back");
    eventually("back", || !browser.see("/").contains("The database cannot be reached"));
    service.stop();
}

#[test]
fn every_page_says_that_the_server_of_the_database_is_gone() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::ZERO);
    host.reach_server_at(proxy.address);
    let service = serve(&mut host);
    let browser = Browser::sign_in(&service);
    assert!(browser.see("/").contains("Is my data right?"));
    proxy.set(Mode::Refuse);
    host.sql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}'",
        host.schema
    ));
    eventually("gone", || is_gone(&browser));
    proxy.set(Mode::Pass);
    eventually("back", || !browser.see("/").contains("The database cannot be reached"));
    service.stop();
}

#[test]
fn what_went_wrong_is_told_on_a_page() {
    let mut host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let service = serve(&mut host);
    let browser = Browser::sign_in(&service);
    let page = browser.see("/");
    let is_page = |answer: &Answer, status: u16, said: &str| {
        assert_eq!(
            (answer.status, answer.headers["content-type"].as_str()),
            (status, "text/html; charset=utf-8")
        );
        assert!(answer.body.contains(said), "{said}: {answer:?}");
    };
    is_page(&browser.get("/nothing"), 404, "This page does not exist");
    is_page(&browser.get("/sinks/other"), 404, "This sink does not exist");
    is_page(&browser.send("/queue", "action=retry&csrf=other"), 403, "Nothing was done");
    is_page(&browser.press(&page, "/deliveries", "retry"), 405, "The request failed");
    let signed_out = ask(&service, "POST", "/queue", "", "action=retry");
    is_page(&signed_out, 401, "You are no longer signed in");
    service.stop();
}

fn a_user_is_masked_until_that_is_written_down(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &ada("user_1"));
    let email = host.value("SELECT email FROM users");

    let search = browser.see("/users");
    let sought: String = url::form_urlencoded::byte_serialize(email.as_bytes()).collect();
    let found = browser.send("/users", &format!("sought={sought}&csrf={}", csrf(&search)));
    assert_eq!(found.status, 200);
    assert!(found.body.contains("/users/user_1") && !found.body.contains(&email), "{found:?}");
    let by_id = browser.send("/users", &format!("sought=user_1&csrf={}", csrf(&search)));
    assert_eq!(by_id.headers["location"], "/users/user_1");
    for nobody in ["nobody%40example.com", "..%2F..", "user_1%0d%0ax:y"] {
        let answer = browser.send("/users", &format!("sought={nobody}&csrf={}", csrf(&search)));
        assert_eq!(answer.status, 200, "{nobody}");
        assert!(answer.body.contains("role=\"alert\""), "{nobody}: {answer:?}");
    }
    assert_eq!(browser.get("/users/user_2").status, 404);

    let page = browser.see("/users/user_1");
    for personal in [email.as_str(), ">Ada<"] {
        assert!(!page.contains(personal), "{personal}: {page}");
    }
    assert!(page.contains("USER_CREATED") && page.contains("•••"), "{page}");
    assert_eq!(host.count("audit_log"), 1);

    let revealed = browser.press(&page, "/users/user_1", "reveal");
    assert!(revealed.body.contains(&email) && revealed.body.contains("Ada"), "{revealed:?}");
    assert_eq!(
        host.value(
            "SELECT action || ' ' || source || ' ' || clerk_id FROM audit_log ORDER BY id DESC LIMIT 1"
        ),
        "USER_REVEALED dashboard user_1"
    );
    assert!(!browser.see("/users/user_1").contains(&email), "the reveal lasts for one page");
    // Revealing an unknown user shows nothing and writes no audit line.
    browser.press(&page, "/users/user_9", "reveal");
    assert_eq!(host.count("audit_log"), 2);

    applied(&service, &post(&deletion("user_1", milliseconds() + 1000)));
    let page = browser.see("/users/user_1");
    assert!(
        page.contains("There is no row: the user is deleted.") && page.contains("USER_HARD_DELETED"),
        "{page}"
    );
    // A user that was never here has only a tombstone, which prevents a later import.
    applied(&service, &post(&deletion("user_5", milliseconds())));
    let page = browser.see("/users/user_5");
    for said in
        ["the deletion arrived before any other event", "Deleted before any person with this id was stored"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
    assert!(!page.contains("Nothing has happened yet"), "{page}");
    assert!(!service.log().contains(&email));
    service.stop();
}

fn dead_letters_are_shown_retried_and_discarded(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    host.refuse_first_name("Bad");
    let letters =
        ["user_1", "user_2", "user_3"].map(|id| post(&user("user.created", id, milliseconds(), "Bad")));
    for letter in &letters {
        assert_eq!(service.post(letter).word(), "parked");
    }
    host.sql("UPDATE webhook_queue SET state = 'dead', next_attempt_at = NULL");
    let list = browser.see("/queue");
    let [one, two, three] = letters.each_ref().map(|letter| format!("/queue/{}", letter.id));
    for path in [&one, &two, &three] {
        assert!(list.contains(&format!("href=\"{path}\"")), "{list}");
    }

    let user = browser.see("/users/user_1");
    assert!(user.contains("Not applied yet") && user.contains(&format!("href=\"{one}\"")), "{user}");
    assert!(user.contains("There is no row yet") && user.contains("There is no version register"), "{user}");
    let page = browser.see(&one);
    assert!(page.contains("constraint or trigger refused the change") && !page.contains("Bad"), "{page}");
    let revealed = browser.press(&page, &one, "reveal").body;
    assert!(revealed.contains("Bad"), "{revealed}");
    assert_eq!(host.value("SELECT action || ' ' || clerk_id FROM audit_log"), "USER_REVEALED user_1");

    let told = browser.pressed(&page, &one, "discard");
    assert!(told.contains("role=\"status\">1 delivery was discarded."), "{told}");
    assert!(told.contains("Dead letters · clerk-sync") && !told.contains(&one), "{told}");
    // A page that is loaded later, for example from a bookmark, does not repeat the message.
    let long_ago = format!("/queue?done=discarded&number=1&at={}", milliseconds() / 1000 - 60);
    assert!(!browser.see(&long_ago).contains("was discarded"));
    assert_eq!(browser.get(&one).status, 404);
    assert_eq!(host.value("SELECT outcome FROM processed_webhooks"), "discarded");

    host.allow_first_names();
    let told = browser.pressed(&page, &two, "retry");
    assert!(told.contains("1 delivery is retried now."), "{told}");
    eventually("retried", || host.count("users") == 1);
    let told = browser.pressed(&page, &two, "retry");
    assert!(told.contains("Nothing to retry"), "{told}");
    let told = browser.pressed(&page, "/queue", "retry");
    assert!(told.contains("1 delivery is retried now."), "{told}");
    eventually("all retried", || host.count("users") == 2);
    assert_eq!(browser.press(&page, "/queue", "explode").status, 404);
    service.stop();
}

fn sinks_are_paused_and_resumed(host: &mut Host) {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    host.set("CRM_SECRET", secret);
    let config = host.write(
        "clerk-sync.toml",
        "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:9/hook\"\nsigning_secret_env = \"CRM_SECRET\"\n",
    );
    host.set("CONFIG_FILE", &config);
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &ada("user_1"));
    let list = browser.see("/sinks");
    assert!(list.contains("href=\"/sinks/crm\"") && list.contains(">on<"), "{list}");
    let page = browser.see("/sinks/crm?state=pending");
    assert!(page.contains("/users/user_1") && !page.contains(secret), "{page}");

    let told = browser.pressed(&page, "/sinks/crm", "pause");
    assert!(told.contains("crm · clerk-sync") && told.contains("Paused. Messages wait"), "{told}");
    assert_eq!(host.value("SELECT sink FROM outbox_paused"), "crm");
    assert!(browser.see("/sinks").contains(">paused<"));
    assert!(
        browser
            .pressed(&page, "/sinks/crm", "resume")
            .contains("Resumed. Waiting messages are delivered again.")
    );
    assert_eq!(host.count("outbox_paused"), 0);
    host.sql(&format!("UPDATE outbox SET created_at = '{}'", minutes_ago(10)));
    eventually("behind", || {
        browser.see("/").contains("Sink crm is behind: 1 pending message, the oldest for 10 min")
    });
    host.sql(
        "UPDATE outbox SET state = 'dead', finished_at = created_at, next_attempt_at = NULL, lease = NULL",
    );
    eventually("told", || browser.see("/").contains("Sink crm did not accept 1 message"));
    assert!(browser.pressed(&page, "/sinks/crm", "discard").contains("1 message was discarded."));
    assert_eq!(host.value("SELECT state FROM outbox"), "discarded");
    assert!(browser.pressed(&page, "/sinks/crm", "retry").contains("no message is dead"));
    assert_eq!(browser.get("/sinks/other").status, 404);
    assert_eq!(browser.press(&page, "/sinks/other", "pause").status, 404);
    service.stop();
}

fn the_newest_deliveries_are_listed(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    assert!(browser.see("/deliveries").contains("There are none"));
    for n in 0..55 {
        applied(&service, &ada(&format!("user_{n}")));
    }
    applied(&service, &post(&deletion("user_7", milliseconds() + 1000)));
    let page = browser.see("/deliveries");
    assert_eq!(page.matches("href=\"/users/user_").count(), 50);
    let (_, next) = page.split_once("href=\"/deliveries?").expect("older ones");
    let next = next.split('"').next().expect("a link").replace("&amp;", "&");
    let older = browser.see(&format!("/deliveries?{next}"));
    assert_eq!(older.matches("href=\"/users/user_").count(), 6);
    let deletions = browser.see("/deliveries?type=user.deleted&outcome=applied");
    assert_eq!(deletions.matches("href=\"/users/user_").count(), 1);
    assert!(browser.see("/deliveries?outcome=stale").contains("There are none"));
    // Events about other objects are recorded too, whatever their type.
    for event_type in ["organization.created", "user.invented"] {
        let event = json!({"type": event_type, "object": "event", "data": {"id": "other_1"}});
        assert_eq!(service.post(&post(&event)).word(), "ignored");
        let found = browser.see(&format!("/deliveries?type=+{event_type}+&outcome=ignored"));
        assert_eq!(found.matches(&format!("data-label=\"Type\">{event_type}</td>")).count(), 1, "{found}");
        assert!(found.contains(&format!("value=\"{event_type}\" list=\"types\"")), "{found}");
    }
    let page = browser.see("/deliveries?outcome=odd");
    for offered in ["applied", "unchanged", "stale", "ignored", "discarded"] {
        assert!(page.contains(&format!("<option value=\"{offered}\">")), "{offered}: {page}");
    }
    assert!(page.contains("<option value=\"session.created\">"), "{page}");
    assert!(page.contains("<option value=\"odd\" selected>odd"), "{page}");

    let signups = browser.see("/sign-ups");
    assert!(signups.contains("<svg") && signups.contains("Sign-ups in the last 30 days"), "{signups}");
    for by in ["/sign-ups?by=week", "/sign-ups?by=month"] {
        assert!(browser.see(by).contains("<svg"));
    }
    service.stop();
}

/// The path that a browser requests for this link.
fn followed(page: &str, folder: &str, id: &str) -> String {
    let base = url::Url::parse("http://127.0.0.1/").expect("a URL");
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let path = links.map(|link| base.join(link).expect("a link").path().to_owned());
    let mut path = path.filter(|path| path.starts_with(folder) && path.replace("%7E", "~").ends_with(id));
    path.next().unwrap_or_else(|| panic!("no link to {folder}{id}: {page}"))
}

fn an_id_that_looks_like_a_path_has_a_page(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    host.refuse_first_name("Bad");
    for id in [".", "..", "~", "~user"] {
        let letter = post(&user("user.created", id, milliseconds(), "Bad"));
        assert_eq!(service.post(&letter).word(), "parked");
        let letter = browser.see(&format!("/queue/{}", letter.id));
        let page = browser.see(&followed(&letter, "/users/", id));
        assert!(page.contains(&format!("<h1>{id}</h1>")) && page.contains("Not applied yet"), "{page}");
    }
    for (number, id) in [".", ".."].into_iter().enumerate() {
        host.sql(&format!(
            "UPDATE webhook_queue SET svix_id = '{id}', state = 'dead', next_attempt_at = NULL WHERE clerk_id = '{id}'"
        ));
        let list = browser.see("/queue");
        let path = followed(&list, "/queue/", id);
        let page = browser.see(&path);
        assert!(page.contains(&format!("<h1>{id}</h1>")), "{page}");
        browser.pressed(&page, &path, "discard");
        assert_eq!(host.count("processed_webhooks WHERE outcome = 'discarded'"), number + 1);
    }
    service.stop();
}

fn names_of_people_are_never_code(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    let name = "<script>alert(1)</script>\" onload='x'";
    let mut event = user("user.created", "user_1", milliseconds(), name);
    event["data"]["last_name"] = json!("</td><img src=x onerror=alert(2)>\u{202e}gnp.exe\u{2066}\u{200b}");
    applied(&service, &post(&event));
    let page = browser.see("/users/user_1");
    let revealed = browser.press(&page, "/users/user_1", "reveal").body;
    assert!(revealed.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{revealed}");
    for code in ["<script>alert", "<img src=x", "onload='x'\""] {
        assert!(!page.contains(code) && !revealed.contains(code), "{code}");
    }
    // Invisible characters, and characters that reverse the text, are shown as escapes.
    assert!(revealed.contains(r"\u202egnp.exe\u2066\u200b"), "{revealed}");
    assert!(!revealed.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{revealed}");
    // Types and ids come from outside too.
    let odd = post(&json!({"type": "<b>odd</b>", "object": "event", "data": {"id": "user_<i>"}}));
    assert_eq!(service.post(&odd).word(), "ignored");
    let deliveries = browser.see("/deliveries");
    assert!(!deliveries.contains("<b>odd") && !deliveries.contains("user_<i>"), "{deliveries}");
    service.stop();
}

/// Start a service that syncs every kind.
fn serve_all(host: &mut Host) -> Service {
    host.set("SYNC_ENTITIES", "all");
    serve(host)
}

fn event(event_type: &str, mut data: serde_json::Value) -> Post {
    let now = milliseconds();
    data["created_at"] = json!(now);
    data["updated_at"] = json!(now);
    post(&json!({
        "type": event_type, "object": "event", "data": data, "instance_id": INSTANCE, "timestamp": now,
    }))
}

fn organization(id: &str, name: &str) -> Post {
    let data = json!({
        "id": id, "object": "organization", "name": name, "slug": "acme", "max_allowed_memberships": 5,
        "public_metadata": { "plan": "gold" }, "private_metadata": { "contract": "ref-7731" },
    });
    event("organization.created", data)
}

fn membership(id: &str, organization: &str, user: &str) -> Post {
    let data = json!({
        "id": id, "object": "organization_membership", "role": "org:admin", "permissions": ["org:read"],
        "organization": { "id": organization, "object": "organization" },
        "public_user_data": { "user_id": user, "identifier": "ada@example.com" },
    });
    event("organizationMembership.created", data)
}

fn objects_of_every_kind_have_pages_that_lead_to_each_other(host: &mut Host) {
    let service = serve_all(host);
    let browser = Browser::sign_in(&service);
    assert!(browser.see("/organizations").contains("There are none."));
    for post in
        [ada("user_1"), organization("org_1", "Acme & Sons"), membership("orgmem_1", "org_1", "user_1")]
    {
        applied(&service, &post);
    }
    let links = |page: &str, to: &[&str]| {
        for path in to {
            assert!(page.contains(&format!("href=\"{path}\"")), "{path}: {page}");
        }
    };
    let list = browser.see("/organizations");
    links(&list, &["/organizations/org_1", "/organizations", "/organization_memberships"]);
    assert!(list.contains("Acme &amp; Sons") && !list.contains(">Next<"), "{list}");
    let memberships = browser.see("/organization_memberships");
    links(&memberships, &["/organization_memberships/orgmem_1", "/organizations/org_1", "/users/user_1"]);
    assert!(memberships.contains("org:admin"), "{memberships}");

    let page = browser.see("/organizations/org_1");
    for said in ["Acme &amp; Sons", "ORGANIZATION_CREATED", "organization.created", "<th scope=\"row\">slug"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
    links(&page, &["/organization_memberships/orgmem_1", "/users/user_1"]);
    let page = browser.see("/organization_memberships/orgmem_1");
    links(&page, &["/organizations/org_1", "/users/user_1"]);
    assert!(page.contains("org:read") && page.contains("ORGANIZATION_MEMBERSHIP_CREATED"), "{page}");
    let page = browser.see("/users/user_1");
    links(&page, &["/organization_memberships/orgmem_1", "/organizations/org_1"]);
    links(&browser.see("/deliveries"), &["/organizations/org_1", "/users/user_1"]);

    let found = browser.send("/organizations", &format!("sought=org_1&csrf={}", csrf(&list)));
    assert_eq!((found.status, found.headers["location"].as_str()), (303, "/organizations/org_1"));
    let nothing = browser.send("/organizations", &format!("sought=Acme%20Sons&csrf={}", csrf(&list)));
    assert!(nothing.body.contains("This is not a Clerk id (org_…)."), "{nothing:?}");
    assert_eq!(browser.send("/organizations", "sought=org_1&csrf=other").status, 403);
    for stranger in ["/organizations/org_2", "/organizations/nothing", "/organization_memberships/orgmem_2"] {
        let answer = browser.get(stranger);
        assert_eq!(answer.status, 404, "{stranger}");
        assert!(
            answer.body.contains("No such object: this id was never used here."),
            "{stranger}: {answer:?}"
        );
    }
    // A membership that arrived before its organization is found by the organization's id.
    applied(&service, &membership("orgmem_2", "org_2", "user_1"));
    links(&browser.see("/organizations/org_2"), &["/organization_memberships/orgmem_2"]);

    let gone = json!({ "id": "org_1", "object": "organization", "deleted": true });
    applied(&service, &event("organization.deleted", gone));
    let page = browser.see("/organizations/org_1");
    assert!(page.contains("There is no row: the organization is deleted."), "{page}");
    assert!(page.contains("<dt>Deleted permanently</dt><dd>yes</dd>"), "{page}");
    assert!(!page.contains("orgmem_1"), "the membership was deleted with its organization: {page}");
    let page = browser.see("/organization_memberships/orgmem_1");
    assert!(page.contains("There is no row: the membership is deleted."), "{page}");
    // A stale membership left nothing, so it has no page.
    assert_eq!(service.post(&membership("orgmem_3", "org_1", "user_1")).word(), "stale");
    let deliveries = browser.see("/deliveries");
    links(&deliveries, &["/organizations/org_1", "/organization_memberships/orgmem_1"]);
    assert!(deliveries.contains("orgmem_3") && !deliveries.contains("/orgmem_3"), "{deliveries}");
    service.stop();
}

fn more_than_a_page_of_what_belongs_to_an_object_is_walked_through(host: &mut Host) {
    let service = serve_all(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &organization("org_1", "Acme"));
    for n in 0..55 {
        applied(&service, &membership(&format!("orgmem_{n}"), "org_1", &format!("user_{n}")));
    }
    applied(&service, &membership("orgmem_other", "org_2", "user_1"));
    let members = |page: &str| page.matches("href=\"/organization_memberships/orgmem_").count();
    let next = |page: &str| {
        let (_, next) = page.split_once("href=\"/organization_memberships?").expect("a next page");
        let next = next.split('"').next().expect("a link").replace("&amp;", "&");
        format!("/organization_memberships?{next}")
    };
    let page = browser.see("/organizations/org_1");
    assert_eq!(members(&page), 50);
    let rest = browser.see(&next(&page));
    assert_eq!(members(&rest), 5, "{rest}");
    assert!(rest.contains("href=\"/organizations/org_1\"") && !rest.contains(">Next<"), "{rest}");
    let list = browser.see("/organization_memberships");
    assert_eq!((members(&list), members(&browser.see(&next(&list)))), (50, 6));
    for odd in ["?after=x", "?role=org:admin", "?organization_id=", "?organization_id=%00"] {
        browser.see(&format!("/organization_memberships{odd}"));
    }
    service.stop();
}

fn what_is_private_of_an_organization_is_masked_until_that_is_written_down(host: &mut Host) {
    host.set("SYNC_FIELDS_ORGANIZATION", "name,public_metadata,private_metadata");
    let service = serve_all(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &organization("org_1", "Acme"));
    let page = browser.see("/organizations/org_1");
    assert!(page.contains("gold") && page.contains("private_metadata"), "{page}");
    assert!(!page.contains("ref-7731"), "{page}");
    let revealed = browser.press(&page, "/organizations/org_1", "reveal").body;
    assert!(revealed.contains("ref-7731") && revealed.contains("ORGANIZATION_REVEALED"), "{revealed}");
    assert_eq!(host.count("audit_log WHERE action = 'ORGANIZATION_REVEALED' AND source = 'dashboard'"), 1);
    assert!(!browser.see("/organizations/org_1").contains("ref-7731"), "the reveal lasts for one page");
    service.stop();
}

fn names_of_organizations_are_never_code(host: &mut Host) {
    let service = serve_all(host);
    let browser = Browser::sign_in(&service);
    applied(
        &service,
        &organization("org_1", "<script>alert(1)</script></td><img src=x onerror=alert(2)>\u{202e}"),
    );
    applied(&service, &membership("orgmem_1", "org_<i>\"", "user_<b>"));
    for path in [
        "/organizations",
        "/organizations/org_1",
        "/organization_memberships",
        "/organization_memberships/orgmem_1",
    ] {
        let page = browser.see(path);
        for code in ["<script>alert", "<img src=x", "org_<i>", "user_<b>", "\u{202e}"] {
            assert!(!page.contains(code), "{path}: {code}");
        }
    }
    assert!(browser.see("/organizations").contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    let page = browser.see("/organization_memberships/orgmem_1");
    let organization = followed(&page, "/organizations/", "%22");
    assert!(browser.see(&organization).contains("href=\"/organization_memberships/orgmem_1\""));
    service.stop();
}

fn where_only_users_are_synced_nothing_else_is_in_the_menu(host: &mut Host) {
    let service = serve(host);
    let browser = Browser::sign_in(&service);
    applied(&service, &ada("user_1"));
    for path in ["/", "/users", "/users/user_1", "/deliveries"] {
        let page = browser.see(path);
        for other in ["href=\"/organization", "Organizations", "Memberships"] {
            assert!(!page.contains(other), "{path}: {page}");
        }
    }
    assert!(browser.see("/organizations").contains("does not include this kind"));
    service.stop();
}
