//! Two PostgreSQL features that an administrator may add to our tables: row level security, which hides rows silently, and
//! rules, with which PostgreSQL refuses our statements.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    doctor::Role,
    proxy::{Mode, Proxy},
    service::{Host, Keeper, Post, Service, alone, deletion, eventually, milliseconds, post, user},
};

/// Create this user through a webhook.
fn arrive(service: &Service, id: &str) {
    let event = user("user.created", id, milliseconds() - 60_000, "Ada");
    assert_eq!(service.post(&post(&event)).word(), "applied", "{}", service.log());
}

fn leave(id: &str) -> Post {
    post(&deletion(id, milliseconds()))
}

/// A service whose database user neither owns the tables nor bypasses row level security.
fn host() -> Option<Host> {
    let host = Host::with(Keeper::Postgres)?;
    host.run(&["migrate"]).succeeded();
    Some(host)
}

fn grant(host: &Host) -> Role<'_> {
    let (role, schema) = (Role::new(host), &host.schema);
    host.sql(&format!("GRANT USAGE ON SCHEMA {schema} TO {}", role.name));
    host.sql(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {}",
        role.name
    ));
    role
}

/// This database's receipts: the user, whether it is complete, and the last error.
fn receipts(host: &Host) -> Vec<Vec<String>> {
    host.sql(
        "SELECT clerk_id, completed_at IS NOT NULL, coalesce(last_error, '') FROM erasure_receipts ORDER BY clerk_id",
    )
}

#[test]
fn an_erasure_is_not_confirmed_while_row_level_security_may_hide_the_row() {
    let Some(host) = host() else { return };
    let role = grant(&host);
    let service = host.serve_with(&["--database-url", &role.url]);
    for id in ["user_1", "user_2"] {
        arrive(&service, id);
    }
    eventually("ready", || service.status("/readyz") == Some(200));
    host.sql("ALTER TABLE users ENABLE ROW LEVEL SECURITY");
    eventually("not ready", || service.status("/readyz") == Some(503));
    assert_eq!(service.get("/readyz").json()["error"]["code"], "row_level_security");
    assert_eq!(service.post(&leave("user_1")).word(), "parked");
    let erased = host.run(&["--database-url", &role.url, "erase", "user_2", "--yes"]);
    assert_eq!(erased.code, Some(1), "{erased:?}");
    assert!(
        erased.stderr.contains("row level security") && erased.stderr.contains("BYPASSRLS"),
        "{erased:?}"
    );
    assert!(!erased.stdout.contains("erased"), "{erased:?}");
    assert_eq!(host.count("users"), 2);
    // A retry does not change that.
    let retry = &["--database-url", &role.url, "queue", "retry", "--all"];
    host.run(retry);
    let erased = host.run(&["--database-url", &role.url, "erase", "user_2", "--yes"]);
    assert_eq!(erased.code, Some(1), "{erased:?}");
    for receipt in receipts(&host) {
        assert!(receipt[1] != "true" && receipt[1] != "t", "{receipt:?}");
        assert!(receipt[2].contains("row level security may hide rows of"), "{receipt:?}");
    }
    // After row level security is switched off, both erasures succeed.
    host.sql("ALTER TABLE users DISABLE ROW LEVEL SECURITY");
    eventually("both users are erased", || {
        host.run(retry);
        host.count("users") == 0 && host.count("webhook_queue") == 0
    });
    assert_eq!(host.count("erasure_receipts WHERE completed_at IS NULL"), 0);
    eventually("ready again", || service.status("/readyz") == Some(200));
    service.stop();
}

#[test]
fn a_start_says_which_rows_may_be_hidden_and_each_remedy_mends_it() {
    let Some(host) = host() else { return };
    let role = grant(&host);
    let table = |name: &str| format!("{}.{name}", host.schema);
    // Every table counts, because an erasure cannot reach hidden rows.
    for name in ["users", "webhook_queue", "audit_actors"] {
        host.sql(&format!("ALTER TABLE {} ENABLE ROW LEVEL SECURITY", table(name)));
    }
    // A policy for some rows does not cover all rows.
    host.sql(&format!("CREATE POLICY few ON users TO {} USING (email LIKE '%@example.com')", role.name));
    let service = host.begin(&["--database-url", &role.url]);
    eventually("said", || service.lines().iter().any(|line| line["level"] == "ERROR"));
    let said: Vec<String> = service
        .lines()
        .iter()
        .filter(|line| line["level"] == "ERROR")
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect();
    for name in ["users", "webhook_queue", "audit_actors"] {
        assert!(said.iter().any(|line| line.contains(&table(name))), "{said:?}");
    }
    assert_eq!(service.status("/readyz"), Some(503));
    let report = role.doctor();
    assert_eq!(report.code, 78, "{report:#?}");
    let findings = report.of("row level security");
    assert_eq!(findings.len(), 3, "{report:#?}");
    for finding in findings {
        assert_eq!(finding["status"], "fail");
        let remedy = finding["remedy"].as_str().unwrap();
        let (policy, _) = remedy.split_once(" or, for every table at once, ").unwrap();
        host.sql(policy);
    }
    let report = role.doctor();
    assert_eq!((report.code, report.status("row level security")), (0, "ok"), "{report:#?}");
    eventually("ready", || service.status("/readyz") == Some(200));
    // A policy that refers to no column can simply be evaluated.
    host.sql("DROP POLICY clerk_sync ON users");
    host.sql(&format!(
        "CREATE POLICY ours ON users USING (current_user = '{0}') WITH CHECK (current_user = '{0}')",
        role.name
    ));
    assert_eq!(role.doctor().status("row level security"), "ok");
    arrive(&service, "user_1");
    assert_eq!(service.post(&leave("user_1")).word(), "applied");
    // No other policy can make up for a restrictive one.
    host.sql("CREATE POLICY never ON users AS RESTRICTIVE USING (deleted_at IS NULL)");
    let report = role.doctor();
    assert!(report.remedy("row level security", "fail", &table("users")).contains("drop policy never"));
    host.sql(&format!("ALTER ROLE {} BYPASSRLS", role.name));
    assert_eq!(role.doctor().status("row level security"), "ok");
    service.stop();
}

#[test]
fn the_owner_is_not_hindered_by_row_level_security_unless_it_is_forced() {
    let Some(host) = Host::with(Keeper::Postgres) else { return };
    let role = Role::new(&host);
    host.sql(&format!("CREATE SCHEMA {} AUTHORIZATION {}", host.schema, role.name));
    let service = host.serve_with(&["--database-url", &role.url]);
    for id in ["user_1", "user_2"] {
        arrive(&service, id);
    }
    host.sql("ALTER TABLE users ENABLE ROW LEVEL SECURITY");
    assert_eq!(role.doctor().status("row level security"), "ok");
    assert_eq!(service.post(&leave("user_1")).word(), "applied");
    host.sql("ALTER TABLE users FORCE ROW LEVEL SECURITY");
    assert_eq!(role.doctor().status("row level security"), "fail");
    assert_eq!(service.post(&leave("user_2")).word(), "parked");
    assert_eq!(host.count("users"), 1);
    service.stop();
}

#[test]
fn a_rule_parks_what_it_refuses_and_doctor_names_it() {
    let Some(host) = host() else { return };
    let service = host.serve();
    arrive(&service, "user_1");
    host.sql(&format!("CREATE TABLE {}.copies (at timestamptz)", host.schema));
    host.sql(&format!(
        "CREATE RULE copy AS ON INSERT TO users DO ALSO INSERT INTO {}.copies VALUES (now())",
        host.schema
    ));
    let event = user("user.created", "user_2", milliseconds(), "Ada");
    assert_eq!(service.post(&post(&event)).word(), "parked", "{}", service.log());
    assert_eq!(service.post(&leave("user_1")).word(), "applied", "a deletion inserts no row");
    let report = crate::doctor::doctor(&host, &[]);
    let remedy = report.remedy("rules", "fail", &format!("rule copy on {}.users", host.schema)).to_owned();
    let (statement, _) = remedy.split_once(" Use a trigger").unwrap();
    host.sql(statement);
    assert_eq!(crate::doctor::doctor(&host, &[]).status("rules"), "ok");
    eventually("applied", || {
        host.run(&["queue", "retry", "--all"]);
        host.count("users") == 1 && host.count("webhook_queue") == 0
    });
    service.stop();
}

#[test]
fn hundreds_of_refused_deletions_over_a_slow_network_hold_up_nobody() {
    let Some(mut host) = host() else { return };
    let _alone = alone();
    host.sql(
        "INSERT INTO users (clerk_id, email, synced_at)
         SELECT 'user_' || n, n || '@example.com', now() FROM generate_series(1, 300) AS n",
    );
    host.sql(&format!(
        "CREATE TABLE {0}.orders (user_id bigint NOT NULL REFERENCES {0}.users (id))",
        host.schema
    ));
    host.sql(&format!("CREATE INDEX ON {}.orders (user_id)", host.schema));
    host.sql(&format!("INSERT INTO {}.orders SELECT id FROM users", host.schema));
    host.sql(
        "INSERT INTO webhook_queue (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at)
         SELECT 'msg_' || n, 'user.deleted', 'user_' || n,
                convert_to('{\"type\":\"user.deleted\",\"object\":\"event\",\"data\":{\"id\":\"user_' || n || '\",\"deleted\":true}}', 'UTF8'),
                'pending', 0, now(), now()
         FROM generate_series(1, 300) AS n",
    );
    host.set("PROCESSING", "queue");
    let proxy = Proxy::to(host.postgres_address(), Mode::Pass, Duration::from_millis(10));
    host.reach_server_at(proxy.address);
    let service = host.serve();
    let behind = post(&user("user.created", "user_behind", milliseconds(), "Ada"));
    assert_eq!(service.post(&behind).word(), "queued");
    for _ in 0..6 {
        if host.count("webhook_queue") == 0 {
            break;
        }
        thread::sleep(Duration::from_secs(5));
    }
    eventually("all of them", || host.count("webhook_queue") == 0);
    assert_eq!(host.count("users WHERE email LIKE '%@anonymized.local'"), 300);
    assert_eq!(host.count("users WHERE clerk_id = 'user_behind'"), 1);
    let stuck =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("the turn is over"));
    assert!(!service.lines().iter().any(stuck), "one turn processes everything");
    service.stop();
}
