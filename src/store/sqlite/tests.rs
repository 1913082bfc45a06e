//! Requirements that only this backend has. The promises that all backends keep are in `tests/it/promises.rs`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::*;
use crate::store::sql::{Dialect, objects::Statements, queue};
use crate::{
    entity::{USER, user},
    model::{
        Actor, AuditAction, AuditEntry, ClerkId, FieldSet, Object, Outcome, Profile, Register, Selection,
        Source, SvixId, Value, Version,
    },
    store::{Advance, Looks, Notes, Old, Parked, QueueDepth, Record, RowFate, Store, Transaction, Way},
    telemetry::TraceContext,
};

struct World {
    folder: TempDir,
    store: Sqlite,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder, &[]).await;
        store.migrate().await.expect("migrated");
        Self { folder, store }
    }

    /// A connection of another program.
    async fn stranger(&self) -> SqliteConnection {
        let file =
            SqliteConnectOptions::new().filename(self.folder.path().join("test.db")).create_if_missing(true);
        SqliteConnection::connect_with(&file).await.expect("a connection")
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut self.stranger().await).await.expect("run");
    }

    async fn begin(&self) -> Box<dyn Transaction> {
        self.store.begin(Patience::Normal).await.expect("begun")
    }

    async fn insert(&self, users: &[Object]) {
        let mut transaction = self.begin().await;
        transaction.insert(users, &all()).await.expect("inserted");
        transaction.commit().await.expect("committed");
    }

    async fn user(&self, id: &str) -> Option<Object> {
        self.store.row(&clerk_id(id)).await.expect("read").map(|row| row.object)
    }

    /// Whether these bytes are anywhere in the file or the log.
    fn remembers(&self, needle: &str) -> bool {
        ["test.db", "test.db-wal"].iter().any(|name| {
            let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
            bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
        })
    }
}

async fn open(folder: &TempDir, anonymize_columns: &[&str]) -> Sqlite {
    Sqlite::open(options(folder, anonymize_columns)).await.expect("opened")
}

fn options(folder: &TempDir, anonymize_columns: &[&str]) -> Options {
    Options {
        path: folder.path().join("test.db"),
        anonymize_columns: anonymize_columns.iter().map(|&name| name.to_owned()).collect(),
        kinds: crate::entity::ALL,
        unique_email: false,
        max_connections: 4,
    }
}

/// Users with all of their fields.
fn all() -> Selection {
    Selection::of(&USER, FieldSet::ALL)
}

fn clerk_id(id: &str) -> ClerkId {
    ClerkId::new(&USER, id).expect("an id")
}

fn svix_id(id: &str) -> SvixId {
    SvixId::new(id).expect("an id")
}

fn at(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_763_758_647_123 + milliseconds).expect("a time")
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn user(id: &str) -> Object {
    let mut profile = Profile::default();
    profile.set(user::EMAIL, text(&format!("{id}@example.com")));
    Object {
        clerk_id: clerk_id(id),
        profile,
        created_at: Some(at(0)),
        updated_at: at(1),
        synced_at: at(2),
        deleted_at: None,
    }
}

fn full_user(id: &str) -> Object {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let mut user = user(id);
    let values = [
        text("ada@example.com"),
        Value::Bool(true),
        text("Ada \"\\ \u{1F600}\u{1}\n"),
        text("null"),
        text("123"),
        text("{\"a\":1}"),
        text("+1"),
        text(""),
        Value::Json(r#"{"n":12345678901234567890123.0e5,"s":"\u0000 \\u0000"}"#.to_owned()),
        Value::Json(deep),
        Value::Json("null".to_owned()),
        Value::Bool(false),
        Value::Bool(true),
        Value::Time(at(3)),
        Value::Time(at(877)),
    ];
    for (field, value) in USER.fields().zip(values) {
        user.profile.set(field, value);
    }
    user
}

fn parked(id: &str, user: Option<&str>, payload: &[u8], next: Option<DateTime<Utc>>) -> Parked {
    Parked {
        svix_id: svix_id(id),
        event_type: Some("user.updated".to_owned()),
        clerk_id: user.map(clerk_id),
        payload: Bytes::copy_from_slice(payload),
        attempts: 3,
        next_attempt_at: next,
        received_at: at(0),
        dead_at: next.is_none().then_some(at(0)),
        last_error: "23503".to_owned(),
        trace: TraceContext::default(),
    }
}

fn step(id: &str, version: i64, tie: &str, deleted: bool, new: bool) -> Advance {
    let version = Version { version, event_at: version, tie: tie.to_owned() };
    Advance { clerk_id: clerk_id(id), register: Register { deleted, ..Register::at(version) }, new }
}

fn entry(id: &str, actor: Option<&str>) -> AuditEntry {
    AuditEntry {
        at: at(0),
        action: AuditAction::Created,
        clerk_id: clerk_id(id),
        svix_id: Some(svix_id("msg_1")),
        source: Source::Webhook,
        changed_fields: vec![user::EMAIL, USER.field("banned")],
        event_at: at(5),
        actor: actor.map(|ip| Actor { ip: Some(ip.to_owned()), user_agent: None }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_processes_can_open_and_migrate_a_fresh_file_at_once() {
    for _ in 0..5 {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let starts: Vec<_> = (0..10)
            .map(|_| {
                let folder = Arc::clone(&folder);
                tokio::spawn(async move {
                    let store = open(&folder, &[]).await;
                    let applied = store.migrate().await.expect("migrated");
                    assert_eq!(store.ready().await, Ok(crate::store::Readiness::Ready));
                    store.close().await;
                    applied.len()
                })
            })
            .collect();
        let mut applied = 0;
        for start in starts {
            applied += start.await.expect("no panic");
        }
        assert_eq!(
            applied,
            crate::store::migration::SQLITE.len(),
            "each migration is applied by one of them"
        );
    }
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_the_next_one_begins() {
    let world = World::new().await;
    for _ in 0..3 {
        let mut transaction = world.begin().await;
        transaction.insert(&[user("user_1")], &all()).await.expect("inserted");
        drop(transaction);
    }
    world.insert(&[user("user_2")]).await;
    assert_eq!(world.user("user_1").await, None);
    assert!(world.user("user_2").await.is_some());
}

#[tokio::test]
async fn a_transaction_that_is_rolled_back_leaves_nothing() {
    let world = World::new().await;
    let mut transaction = world.begin().await;
    transaction.insert(&[user("user_1")], &all()).await.expect("inserted");
    transaction.rollback().await;
    assert_eq!(world.user("user_1").await, None);
}

#[tokio::test]
async fn a_task_cancelled_anywhere_leaves_nothing_and_the_next_one_begins() {
    let world = World::new().await;
    for microseconds in (0..3000).step_by(150) {
        let work = async {
            let mut transaction = world.begin().await;
            transaction.insert(&[user("user_1")], &all()).await.expect("inserted");
            transaction.erase(&[clerk_id("user_2")], &[Way::Delete], at(9)).await.expect("deleted");
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(Duration::from_micros(microseconds), work).await;
    }
    world.insert(&[user("user_2")]).await;
    assert_eq!(world.user("user_1").await, None);
}

#[tokio::test]
async fn a_deferred_foreign_key_refuses_at_commit_and_the_next_transaction_works() {
    let world = World::new().await;
    world.insert(&[user("user_1")]).await;
    world
        .run(
            "CREATE TABLE orders (user_id INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO orders SELECT id FROM users;",
        )
        .await;
    let mut transaction = world.begin().await;
    let fates = transaction.erase(&[clerk_id("user_1")], &[Way::Delete], at(9)).await;
    assert_eq!(fates, Ok(HashMap::from([(clerk_id("user_1"), RowFate::Deleted)])));
    let error = transaction.commit().await.expect_err("refused");
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Refused, Some("787")));
    assert!(world.user("user_1").await.is_some());
    world.insert(&[user("user_2")]).await;
}

#[tokio::test]
async fn a_refused_delete_holds_up_nobody_else_and_leaves_the_transaction_usable() {
    let world = World::new().await;
    world.insert(&[user("user_1"), user("user_2")]).await;
    world
        .run(
            "CREATE TABLE orders (user_id INTEGER REFERENCES users (id));
             INSERT INTO orders SELECT id FROM users WHERE clerk_id = 'user_2';",
        )
        .await;
    let both = [clerk_id("user_1"), clerk_id("user_2")];
    let mut transaction = world.begin().await;
    transaction.insert(&[user("user_3")], &all()).await.expect("inserted");
    let fates = transaction.erase(&both, &[Way::Delete], at(8)).await.expect("as far as allowed");
    assert_eq!(fates[&both[0]], RowFate::Deleted);
    let RowFate::Stands(refusal) = &fates[&both[1]] else { panic!("it stands: {fates:?}") };
    assert_eq!((refusal.kind, refusal.code.as_deref()), (ErrorKind::Refused, Some("787")));
    let anonymized = Ok(HashMap::from([(both[1].clone(), RowFate::Anonymized)]));
    for time in [9, 10] {
        let fates = transaction.erase(&both, &[Way::Anonymize], at(time)).await;
        assert_eq!(fates, anonymized);
    }
    transaction.commit().await.expect("committed");
    assert_eq!(world.user("user_1").await, None);
    assert_eq!(world.user("user_2").await.expect("kept").deleted_at, Some(at(8)), "marked then");
    assert!(world.user("user_3").await.is_some());
}

#[tokio::test]
async fn a_trigger_that_refuses_is_a_refusal_and_its_words_are_not_repeated() {
    let world = World::new().await;
    world.insert(&[user("user_1")]).await;
    world
        .run(
            "CREATE TRIGGER keep BEFORE DELETE ON users
             BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: secret'); END;",
        )
        .await;
    let mut transaction = world.begin().await;
    let mut fates = transaction.erase(&[clerk_id("user_1")], &[Way::Delete], at(9)).await.expect("told");
    let Some(RowFate::Stands(error)) = fates.remove(&clerk_id("user_1")) else { panic!("it stands") };
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Refused, Some("1811")));
    assert_eq!(error.place, None);
    transaction.insert(&[user("user_2")], &all()).await.expect("inserted");
    transaction.commit().await.expect("committed");
    assert!(world.user("user_2").await.is_some());
}

#[tokio::test]
async fn after_a_trigger_rolled_everything_back_nothing_more_is_written() {
    let world = World::new().await;
    world.insert(&[user("user_1")]).await;
    world.run("CREATE TRIGGER keep BEFORE DELETE ON users BEGIN SELECT RAISE(ROLLBACK, 'no'); END;").await;
    let mut transaction = world.begin().await;
    transaction.insert(&[user("user_2")], &all()).await.expect("inserted");
    assert_eq!(
        transaction.erase(&[clerk_id("user_1")], &[Way::Delete], at(9)).await.expect_err("refused").kind,
        ErrorKind::Refused
    );
    assert_eq!(
        transaction.insert(&[user("user_3")], &all()).await.expect_err("over").kind,
        ErrorKind::Refused
    );
    assert_eq!(transaction.commit().await.expect_err("over").kind, ErrorKind::Refused);
    assert_eq!((world.user("user_2").await, world.user("user_3").await), (None, None));
    world.insert(&[user("user_4")]).await;
}

#[tokio::test]
async fn somebody_elses_lock_makes_the_database_unavailable_in_time_but_readable() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut stranger).await.expect("locked");
    let start = Instant::now();
    let error = world.store.begin(Patience::Short).await.map(|_| ()).expect_err("locked");
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Unavailable, Some("5")));
    assert!(start.elapsed() < Duration::from_secs(1));
    let start = Instant::now();
    let error = world.store.begin(Patience::Normal).await.map(|_| ()).expect_err("locked");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!((Duration::from_secs(2)..Duration::from_millis(3800)).contains(&start.elapsed()));
    assert_eq!(world.store.ready().await, Ok(crate::store::Readiness::Ready));
    assert_eq!(world.store.migrate().await.expect("nothing to do"), []);
    sqlx::raw_sql("ROLLBACK").execute(&mut stranger).await.expect("unlocked");
    world.insert(&[user("user_1")]).await;
}

#[tokio::test]
async fn every_field_comes_back_as_it_was_written() {
    let world = World::new().await;
    let written = full_user("user_1");
    world.insert(&[user("USER_1"), written.clone()]).await;
    assert_eq!(world.user("user_1").await, Some(written.clone()));
    assert_eq!(world.user("USER_1").await, Some(user("USER_1")));
    assert_eq!(world.user("User_1").await, None);

    let mut stranger = world.stranger().await;
    let row = sqlx::query("SELECT * FROM users WHERE clerk_id = 'user_1'").fetch_one(&mut stranger).await;
    let row = row.expect("a row");
    assert_eq!(row.get::<String, _>("updated_at"), "2025-11-21T20:57:27.124Z");
    assert_eq!(row.get::<String, _>("preferences"), "{}");
    assert_eq!(row.get::<i64, _>("email_verified"), 1);

    let mut transaction = world.begin().await;
    let some = Selection::of(&USER, [user::EMAIL].into_iter().collect());
    let loaded = transaction.load(&[clerk_id("user_1")], &some).await.expect("loaded");
    let profile = &loaded[&clerk_id("user_1")].profile;
    assert_eq!(
        (&profile[user::EMAIL], &profile[USER.field("public_metadata")]),
        (&text("ada@example.com"), &Value::Null)
    );
}

#[tokio::test]
async fn an_id_with_a_nul_is_another_id() {
    let world = World::new().await;
    world.insert(&[user("user_1"), user("user_1\0")]).await;
    let mut transaction = world.begin().await;
    let odd = clerk_id("user_1\0");
    let fates = transaction.erase(std::slice::from_ref(&odd), &[Way::Delete], at(9)).await;
    assert_eq!(fates, Ok(HashMap::from([(odd, RowFate::Deleted)])));
    transaction.commit().await.expect("committed");
    assert_eq!(world.user("user_1").await, Some(user("user_1")));
}

#[tokio::test]
async fn an_update_writes_only_what_is_allowed() {
    let world = World::new().await;
    world.insert(&[full_user("user_1")]).await;
    world
        .run("ALTER TABLE users ADD COLUMN theirs TEXT; UPDATE users SET theirs = 'x', preferences = '[1]';")
        .await;
    let mut news = user("user_1");
    news.profile.set(user::EMAIL, text("new@example.com"));
    news.profile.set(USER.field("username"), text("new"));
    news.created_at = None;
    news.updated_at = at(100);
    news.synced_at = at(101);
    let allowed = Selection::of(&USER, [user::EMAIL, USER.field("banned")].into_iter().collect());
    let mut transaction = world.begin().await;
    transaction.update(&[news], &allowed).await.expect("updated");
    transaction.commit().await.expect("committed");

    let mut expected = full_user("user_1");
    expected.profile.set(user::EMAIL, text("new@example.com"));
    expected.profile.set(USER.field("banned"), Value::Null);
    expected.updated_at = at(100);
    expected.synced_at = at(101);
    assert_eq!(world.user("user_1").await, Some(expected));
    let row =
        sqlx::query("SELECT theirs, preferences FROM users").fetch_one(&mut world.stranger().await).await;
    let row = row.expect("a row");
    assert_eq!((row.get::<String, _>(0), row.get::<String, _>(1)), ("x".to_owned(), "[1]".to_owned()));
}

#[tokio::test]
async fn rows_that_appear_or_vanish_are_a_race() {
    let world = World::new().await;
    world.insert(&[user("user_1")]).await;
    let mut transaction = world.begin().await;
    let error =
        transaction.insert(&[user("user_0"), user("user_1")], &all()).await.expect_err("there already");
    assert_eq!(error.kind, ErrorKind::Raced);
    assert_eq!(transaction.commit().await.expect_err("over").kind, ErrorKind::Raced);
    let mut transaction = world.begin().await;
    let error = transaction.update(&[user("user_9")], &all()).await.expect_err("gone");
    assert_eq!(error.kind, ErrorKind::Raced);
    transaction.rollback().await;
    assert_eq!(world.user("user_0").await, None);
}

#[tokio::test]
async fn a_register_only_moves_forward_until_the_tombstone() {
    let world = World::new().await;
    let id = clerk_id("user_1");
    let steps = [
        (step("user_1", 5, "b", false, true), true),
        (step("user_1", 6, "b", false, true), false),
        (step("user_1", 5, "b", false, false), false),
        (step("user_1", 5, "a", false, false), false),
        (step("user_1", 5, "c", false, false), true),
        (step("user_1", i64::MAX, "c", false, false), true),
        (step("user_1", i64::MIN, "", true, false), true),
        (step("user_1", i64::MAX, "d", true, false), false),
    ];
    for (advance, moves) in steps {
        let mut transaction = world.begin().await;
        let result = transaction.advance(std::slice::from_ref(&advance)).await;
        assert_eq!(result.map_err(|error| error.kind), if moves { Ok(()) } else { Err(ErrorKind::Raced) });
        if moves {
            let registers = transaction.registers(std::slice::from_ref(&id)).await.expect("read");
            assert_eq!(registers[&id], advance.register);
            transaction.commit().await.expect("committed");
        }
    }
}

#[tokio::test]
async fn a_blank_register_is_held_and_gives_way_to_any_news() {
    let world = World::new().await;
    let mut transaction = world.begin().await;
    let ids = [clerk_id("user_1")];
    let held = transaction.hold(&ids).await.expect("held");
    assert_eq!((held[&ids[0]].version.version, held[&ids[0]].deleted), (i64::MIN, false));
    assert_eq!(transaction.hold(&ids).await.expect("held"), held);
    transaction.advance(&[step("user_1", 1, "a", false, true)]).await.expect("advanced");
    assert_eq!(transaction.hold(&ids).await.expect("held")[&ids[0]].version.version, 1);
}

#[tokio::test]
async fn a_delivery_is_recorded_once_and_leaves_the_queue() {
    let world = World::new().await;
    let (one, two) = (svix_id("msg_1"), svix_id("msg_2"));
    let record = |svix_id| Record {
        svix_id,
        event_type: Some("user.created"),
        outcome: Outcome::Applied,
        clerk_id: None,
        event_at: at(0),
        processed_at: at(1),
    };
    let mut transaction = world.begin().await;
    transaction.park(&[parked("msg_1", None, b"x", Some(at(5)))]).await.expect("parked");
    let waiting = transaction.waiting(&[one.clone(), two.clone()]).await.expect("read");
    assert_eq!(
        waiting.into_iter().map(|(id, waiting)| (id, waiting.attempts)).collect::<Vec<_>>(),
        [(one.clone(), 3)]
    );
    let fresh = transaction.record(&[record(&one)]).await.expect("recorded");
    assert!(fresh.contains(&one));
    assert!(transaction.waiting(std::slice::from_ref(&one)).await.expect("read").is_empty());
    let fresh = transaction.record(&[record(&one), record(&two)]).await.expect("recorded");
    assert_eq!(fresh.into_iter().collect::<Vec<_>>(), vec![two.clone()]);
    transaction.settle(&[(one.clone(), Outcome::Unchanged)]).await.expect("settled");
    // Parking removes the record.
    transaction.park(&[parked("msg_2", None, b"x", None)]).await.expect("parked");
    transaction.commit().await.expect("committed");

    let rows = sqlx::query("SELECT svix_id, outcome FROM processed_webhooks");
    let rows = rows.fetch_all(&mut world.stranger().await).await.expect("read");
    let rows: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("msg_1".to_owned(), "unchanged".to_owned())]);
    assert_eq!(world.store.queue_depth().await, Ok(QueueDepth { pending: 0, dead: 1, first_due: None }));
    assert_eq!(world.store.prune(Old::Processed, at(1), 10).await, Ok(0));
    assert_eq!(world.store.prune(Old::Processed, at(2), 10).await, Ok(1));
}

#[tokio::test]
async fn what_is_due_is_claimed_once_and_byte_for_byte() {
    let world = World::new().await;
    let bytes = b"\x00\xff{\"id\":\"user_1\"}\x00";
    let mut transaction = world.begin().await;
    let mut again = parked("msg_1", Some("user_1"), bytes, Some(at(10)));
    transaction.park(std::slice::from_ref(&again)).await.expect("parked");
    again.received_at = at(99);
    again.attempts = 4;
    let others = [parked("msg_2", None, b"y", Some(at(11))), parked("msg_3", None, b"z", None)];
    transaction.park(std::slice::from_ref(&again)).await.expect("parked");
    transaction.park(&others).await.expect("parked");
    transaction.commit().await.expect("committed");

    assert_eq!(
        world.store.queue_depth().await,
        Ok(QueueDepth { pending: 2, dead: 1, first_due: Some(at(10)) })
    );
    assert_eq!(world.store.first_due(at(0)).await, Ok(Some(at(10))));
    let mut transaction = world.begin().await;
    assert!(transaction.claim(at(0)..=at(9), 10, 1000).await.expect("claimed").is_empty());
    let claimed = transaction.claim(at(0)..=at(50), 1, 1000).await.expect("claimed");
    assert_eq!(claimed.len(), 1);
    let one = &claimed[0];
    assert_eq!((&one.svix_id, &one.clerk_id), (&again.svix_id, &again.clerk_id));
    assert_eq!((&*one.payload, one.attempts, one.received_at), (&bytes[..], 4, at(0)));
    assert_eq!(one.next_attempt_at, Some(at(10)));
    assert_eq!(
        transaction.claim(at(0)..=at(50), 9, 1).await.expect("claimed").len(),
        1,
        "no more bytes than that"
    );
    assert_eq!(transaction.claim(at(0)..=at(50), 9, 1000).await.expect("claimed").len(), 2);
    let ids = ["msg_1", "msg_3"].map(svix_id);
    let these = transaction.claim_these(&ids, at(50)).await.expect("claimed");
    assert_eq!(these.len(), 1, "the dead are not claimed");
    transaction.rollback().await;
}

#[tokio::test]
async fn forgetting_removes_what_is_kept_beside_the_row() {
    let world = World::new().await;
    let mut transaction = world.begin().await;
    transaction
        .park(&[
            parked("msg_1", Some("user_1"), b"x", None),
            parked("msg_2", None, b"\xff\x00 user_1 \xff", None),
            parked("msg_3", None, b"user_2", None),
        ])
        .await
        .expect("parked");
    transaction.audit(&[entry("user_2", None), entry("user_1", Some("192.0.2.1"))]).await.expect("written");
    transaction.audit(&[entry("user_2", Some("192.0.2.2"))]).await.expect("written");
    let found = transaction.unattributed(&[clerk_id("user_0"), clerk_id("user_1")]).await.expect("found");
    assert_eq!(found, [(svix_id("msg_2"), Bytes::from_static(b"\xff\x00 user_1 \xff"))]);
    transaction.forget(&[clerk_id("user_1")], &[svix_id("msg_2")]).await.expect("forgotten");
    transaction.commit().await.expect("committed");

    assert_eq!(world.store.queue_depth().await, Ok(QueueDepth { pending: 0, dead: 1, first_due: None }));
    let rows = sqlx::query(
        "SELECT clerk_id, changed_fields, ip FROM audit_log LEFT JOIN audit_actors ON audit_id = id ORDER BY id",
    );
    let rows = rows.fetch_all(&mut world.stranger().await).await.expect("read");
    let actors: Vec<(String, Option<String>)> = rows.iter().map(|row| (row.get(0), row.get("ip"))).collect();
    let expected = [("user_2", None), ("user_1", None), ("user_2", Some("192.0.2.2"))];
    assert_eq!(actors, expected.map(|(id, ip)| (id.to_owned(), ip.map(str::to_owned))));
    assert_eq!(rows[0].get::<String, _>("changed_fields"), r#"["email","banned"]"#);
}

#[tokio::test]
async fn nothing_of_an_erased_user_remains_in_the_file_or_the_log() {
    let world = World::new().await;
    // Enough neighbours of changing sizes for pages to split and merge around the person.
    let mut person = user("user_000150");
    person.profile.set(user::EMAIL, text("needle-ada-needle@example.com"));
    person.profile.set(
        USER.field("public_metadata"),
        Value::Json(format!(r#"{{"x":"{}"}}"#, "needle-ada-needle".repeat(600))),
    );
    let mut kept = user("user_000250");
    kept.profile.set(user::FIRST_NAME, text("needle-bob-needle"));
    for batch in 0..10 {
        let users: Vec<Object> = (0..30)
            .map(|n| user(&format!("user_{:06}", batch * 30 + n)))
            .map(|user| if user.clerk_id == person.clerk_id { person.clone() } else { user })
            .map(|user| if user.clerk_id == kept.clerk_id { kept.clone() } else { user })
            .collect();
        world.insert(&users).await;
    }
    for round in 0..6_usize {
        let users: Vec<Object> = (0..300)
            .map(|n| {
                let mut user = if n == 150 { person.clone() } else { user(&format!("user_{n:06}")) };
                user.profile.set(user::LAST_NAME, text(&"w".repeat((n * 7 + round * 131) % 900)));
                user
            })
            .filter(|user| user.clerk_id != kept.clerk_id)
            .collect();
        let mut transaction = world.begin().await;
        transaction.update(&users, &all()).await.expect("updated");
        transaction.commit().await.expect("committed");
    }
    world
        .run(
            "CREATE TABLE orders (user_id INTEGER REFERENCES users (id));
             INSERT INTO orders SELECT id FROM users WHERE clerk_id = 'user_000250';",
        )
        .await;
    let mut transaction = world.begin().await;
    transaction
        .park(&[parked("msg_1", Some("user_000150"), b"needle-ada-needle", None)])
        .await
        .expect("parked");
    transaction.audit(&[entry("user_000150", Some("needle-ada-needle"))]).await.expect("written");
    transaction.commit().await.expect("committed");
    assert!(world.remembers("needle-ada-needle") && world.remembers("needle-bob-needle"));

    let mut transaction = world.begin().await;
    let (deleted, anonymized) = ([person.clerk_id], [kept.clerk_id]);
    transaction.erase(&deleted, &[Way::Delete], at(9)).await.expect("deleted");
    transaction.erase(&anonymized, &[Way::Anonymize], at(9)).await.expect("anonymised");
    transaction.forget(&deleted, &[]).await.expect("forgotten");
    transaction.commit().await.expect("committed");
    assert!(!world.remembers("needle-ada-needle"), "the deleted user remains");
    assert!(!world.remembers("needle-bob-needle"), "the anonymised user remains");
}

#[tokio::test]
async fn a_reader_that_needs_the_log_delays_its_emptying_only() {
    let world = World::new().await;
    world.insert(&[user("user_needle"), user("user_2")]).await;
    let mut reader = world.stranger().await;
    sqlx::raw_sql("BEGIN; SELECT * FROM users;").execute(&mut reader).await.expect("reading");
    let mut transaction = world.begin().await;
    transaction.erase(&[clerk_id("user_needle")], &[Way::Delete], at(9)).await.expect("deleted");
    let start = Instant::now();
    transaction.commit().await.expect("committed");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(world.remembers("user_needle@"));
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("done");
    world.insert(&[user("user_3")]).await;
    assert!(!world.remembers("user_needle@"));
}

#[tokio::test]
async fn an_anonymised_row_keeps_nothing_but_what_it_must() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder, &[r#"odd "name"#]).await;
    let error = store.migrate().await.expect_err("the column is not there yet");
    assert_eq!(error.kind, ErrorKind::Schema);
    let world = World { folder, store };
    world
        .run(r#"ALTER TABLE users ADD COLUMN "odd ""name" TEXT; ALTER TABLE users ADD COLUMN plan TEXT;"#)
        .await;
    world.store.migrate().await.expect("migrated");
    world.insert(&[full_user("user_1")]).await;
    world.run(r#"UPDATE users SET "odd ""name" = 'x', plan = 'gold', preferences = '{"a":1}';"#).await;
    let mut transaction = world.begin().await;
    transaction.erase(&[clerk_id("user_1")], &[Way::Anonymize], at(9)).await.expect("anonymised");
    transaction.commit().await.expect("committed");

    let mut expected = user("user_1");
    expected.profile.set(user::EMAIL, text("deleted-1@anonymized.local"));
    expected.profile.set(user::FIRST_NAME, text("Deleted"));
    expected.profile.set(user::LAST_NAME, text("User"));
    expected.deleted_at = Some(at(9));
    assert_eq!(world.user("user_1").await, Some(expected));
    let rest =
        sqlx::query(r#"SELECT preferences || '|' || plan || '|' || ("odd ""name" IS NULL) FROM users"#);
    let rest = rest.fetch_one(&mut world.stranger().await).await.expect("a row");
    assert_eq!(rest.get::<String, _>(0), "{}|gold|1");

    for (columns, reason) in [("email", "own"), ("nothing", "does not exist")] {
        let error = open(&world.folder, &[columns]).await.migrate().await.expect_err("refused");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn tables_that_are_not_ours_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder, &[]).await;
    let world = World { folder, store };
    world.run("CREATE TABLE users (id TEXT PRIMARY KEY, clerk_id TEXT, email TEXT);").await;
    let error = world.store.migrate().await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Schema);
    let explanation = error.to_string();
    for part in [
        "column id is of type TEXT",
        "column synced_at is missing",
        "ALTER TABLE users RENAME TO old_users",
        "migrate adopt --from old_users",
    ] {
        assert!(explanation.contains(part), "{explanation}");
    }
    let tables = sqlx::query("SELECT count(*) FROM sqlite_schema WHERE type = 'table'");
    let tables = tables.fetch_one(&mut world.stranger().await).await.expect("counted");
    assert_eq!(tables.get::<i64, _>(0), 1);
    assert_eq!(world.store.ready().await, Ok(crate::store::Readiness::SchemaNotCurrent));
    assert!(!world.store.migration_status().await.expect("read")[0].applied);
}

#[tokio::test]
async fn a_file_that_is_gone_or_cannot_be_opened_is_unavailable() {
    let world = World::new().await;
    std::fs::remove_file(world.folder.path().join("test.db")).expect("removed");
    assert_eq!(world.store.ready().await.expect_err("gone").kind, ErrorKind::Unavailable);
    assert_eq!(
        world.store.begin(Patience::Normal).await.map(|_| ()).expect_err("gone").kind,
        ErrorKind::Unavailable
    );
    let nowhere = Options { path: world.folder.path().join("no/where.db"), ..options(&world.folder, &[]) };
    let error = Sqlite::open(nowhere).await.map(|_| ()).expect_err("no folder");
    assert_eq!(error.kind, ErrorKind::Schema, "the directory is not created");
    assert!(error.to_string().contains("there is no directory"), "{error}");
    let folder = Options { path: world.folder.path().to_owned(), ..options(&world.folder, &[]) };
    let error = Sqlite::open(folder).await.map(|_| ()).expect_err("a folder");
    assert_eq!(error.kind, ErrorKind::Schema, "it cannot become a file");
}

#[tokio::test]
async fn pages_are_looked_up_however_large_the_table_is() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    for users in [0, 1, 5000] {
        sqlx::query(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
             INSERT OR IGNORE INTO users (clerk_id, email) SELECT 'user_' || n, 'e' || n FROM n WHERE n <= ?1",
        )
        .bind(users)
        .execute(&mut stranger)
        .await
        .expect("inserted");
        if users > 1 {
            sqlx::raw_sql("ANALYZE").execute(&mut stranger).await.expect("analysed");
        }
        let statements = Statements::of(&USER, FieldSet::ALL);
        for (statement, index) in [
            (&statements.page, "INTEGER PRIMARY KEY (rowid>?)"),
            (&statements.pages[0].1, "INDEX users_email (<expr>=?)"),
        ] {
            let statement = statement.sql(Dialect::Sqlite);
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
            let plan = plan.fetch_all(&mut stranger).await.expect("planned");
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert_eq!(plan[0], format!("SEARCH u USING {index}"), "{plan:?}");
        }
    }
}

#[tokio::test]
async fn updates_look_rows_up_however_large_the_table_is() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    for users in [0, 1, 5000] {
        for n in 0..users {
            sqlx::query("INSERT OR IGNORE INTO users (clerk_id) VALUES (?1)")
                .bind(format!("user_{n}"))
                .execute(&mut stranger)
                .await
                .expect("inserted");
            if n == 200 {
                sqlx::raw_sql("BEGIN").execute(&mut stranger).await.expect("begun");
            }
        }
        if users > 200 {
            sqlx::raw_sql("COMMIT; ANALYZE").execute(&mut stranger).await.expect("analysed");
        }
        let update = &Statements::of(&USER, FieldSet::ALL).update;
        for statement in [update, &queue::SETTLE].map(|statement| statement.sql(Dialect::Sqlite)) {
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
            let plan = plan.fetch_all(&mut stranger).await.expect("planned");
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            let scans = plan.iter().filter(|step| step.starts_with("SCAN ")).collect::<Vec<_>>();
            assert!(scans.len() == 1 && scans[0].starts_with("SCAN jsonb_each "), "{plan:?}");
            assert!(plan.iter().any(|step| step.starts_with("SEARCH ")), "{plan:?}");
        }
    }
}
