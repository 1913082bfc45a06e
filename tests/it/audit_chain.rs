//! The sealed audit trail: lines stay as they were written, and changes to them are detected.
//!
//! The attacker in these tests is the administrator of the database, whom no trigger can stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta};
use clerk_sync::{
    entity::user,
    model::{AuditAction, AuditEntry, Mark, Source},
    store::{Patience, Store},
    sync::{
        Clock,
        chain::{self, Sealed, Verification},
    },
    work::{Sealing, worker::Worker},
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    application::{order, orders},
    promises::promises,
    world::{Event, Keeper, NOW, World, at, clerk_id, run},
};

promises! {
    an_empty_trail_is_whole,
    every_line_is_sealed_once_in_portions,
    a_line_that_was_changed_is_found,
    a_line_that_was_removed_is_found,
    a_line_that_was_slipped_in_is_found,
    lines_in_another_order_are_found,
    a_seal_that_was_changed_removed_or_replaced_is_found,
    an_end_that_was_cut_off_is_found_by_a_seal_that_was_kept,
    an_erasure_leaves_the_chain_whole,
    a_line_that_appears_before_others_is_sealed_after_all,
    an_id_that_was_never_used_holds_nothing_up,
    writers_that_overtake_each_other_leave_a_whole_chain,
    leaders_that_do_not_know_of_each_other_make_one_chain,
    the_loop_seals_by_itself_and_tells_when_the_end_is_gone,
    seals_only_come_to_the_others,
}

const LIMIT: u32 = 5000;

async fn seal(world: &World) -> Sealed {
    chain::seal(&*world.store, LIMIT, world.now).await.unwrap().expect("no other process seals")
}

async fn seal_all(world: &World) {
    while seal(world).await.more {}
}

async fn verify(world: &World) -> Verification {
    verify_with(world, &[]).await
}

async fn verify_with(world: &World, kept: &[Mark]) -> Verification {
    chain::verify(&*world.store, kept, |_| {}).await.unwrap()
}

/// The faults as text.
async fn faults(world: &World) -> Vec<String> {
    verify(world).await.faults.iter().map(ToString::to_string).collect()
}

/// Insert lines with these ids.
async fn write(world: &World, ids: impl IntoIterator<Item = i64>) {
    let rows: Vec<String> = ids
        .into_iter()
        .map(|id| {
            let fields = if world.keeper == Keeper::Postgres { "{email,username}" } else { r#"["email","username"]"# };
            format!(
                "({id}, '2026-01-01T00:00:00.{millis:03}Z', 'USER_UPDATED', 'user_{id}', 'msg_{id}', 'webhook', '{fields}',
                  '2025-12-31T00:00:00.000Z')",
                millis = id.rem_euclid(1000),
            )
        })
        .collect();
    let rows = rows.join(", ");
    let columns = "id, at, action, clerk_id, svix_id, source, changed_fields, event_at";
    world
        .sql_of(
            &format!(
                "INSERT INTO audit_log ({columns}) OVERRIDING SYSTEM VALUE VALUES {rows};
                 SELECT setval(pg_get_serial_sequence('audit_log', 'id'), greatest(max(id), 1)) FROM audit_log"
            ),
            &format!("INSERT INTO audit_log ({columns}) VALUES {rows}"),
            // Without this mode, id 0 would be replaced by the next number.
            &format!(
                "SET SESSION sql_mode = @@sql_mode || ',NO_AUTO_VALUE_ON_ZERO'; INSERT INTO audit_log ({columns}) VALUES {rows};
                 SET SESSION sql_mode = replace(@@sql_mode, ',NO_AUTO_VALUE_ON_ZERO', '')"
            ),
        )
        .await;
}

/// Disable the triggers.
async fn become_administrator(world: &World) {
    let without_triggers = "DROP TRIGGER audit_log_no_update; DROP TRIGGER audit_log_no_delete;
                            DROP TRIGGER audit_seals_no_update; DROP TRIGGER audit_seals_no_delete";
    world
        .sql_of(
            "ALTER TABLE audit_log DISABLE TRIGGER USER; ALTER TABLE audit_seals DISABLE TRIGGER USER",
            without_triggers,
            without_triggers,
        )
        .await;
}

/// Insert ten lines under two seals, with gaps between the ids: 1-4, 7-8 | 9, 11-13.
async fn ten_lines(world: &World) -> Vec<Mark> {
    become_administrator(world).await;
    let mut marks = Vec::new();
    for ids in [vec![1, 2, 3, 4, 7, 8], vec![9, 11, 12, 13]] {
        write(world, ids).await;
        marks.push(seal(world).await.newest.unwrap().mark());
    }
    assert_eq!(world.column("SELECT gaps FROM audit_seals ORDER BY number").await, ["5-6", "10"]);
    world.sql("CREATE TABLE kept_log AS SELECT * FROM audit_log").await;
    world.sql("CREATE TABLE kept_seals AS SELECT * FROM audit_seals").await;
    let report = verify(world).await;
    assert!(report.is_whole() && report.seals == 2 && report.lines == 10, "{report:?}");
    marks
}

async fn restore(world: &World) {
    for (table, kept) in [("audit_log", "kept_log"), ("audit_seals", "kept_seals")] {
        let restored = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {kept}");
        world
            .sql_of(
                &format!(
                    "DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {kept}"
                ),
                &restored,
                &restored,
            )
            .await;
    }
}

/// Assert that each of these attacks is detected and reported with these messages.
async fn are_found(world: &World, attacks: &[(&str, &[&str])]) {
    for (attack, expected) in attacks {
        world.sql(attack).await;
        assert_eq!(faults(world).await, *expected, "{attack}");
        restore(world).await;
        assert!(verify(world).await.is_whole(), "after {attack} was undone");
    }
}

async fn an_empty_trail_is_whole(world: World) {
    let report = verify(&world).await;
    assert!(report.is_whole() && report == Verification::default(), "{report:?}");
    let sealed = seal(&world).await;
    assert_eq!(sealed, Sealed { before: None, newest: None, more: false });
    assert_eq!(world.count("audit_seals").await, 0);
    let kept = "7:".to_owned() + &"a".repeat(64);
    let report = verify_with(&world, &[kept.parse().unwrap()]).await;
    assert_eq!(
        report.faults[0].to_string(),
        "seal 7 was kept elsewhere and is not here: the newest seals were cut off"
    );
}

async fn every_line_is_sealed_once_in_portions(world: World) {
    write(&world, 1..=1234).await;
    let report = verify(&world).await;
    assert_eq!((report.lines, report.unsealed.lines), (0, 1234));
    assert_eq!(report.unsealed.since, Some(at(NOW)), "line 1000 is the oldest");
    let mut portions = 0;
    while chain::seal(&*world.store, 500, world.now).await.unwrap().unwrap().more {
        portions += 1;
    }
    assert_eq!(portions, 2);
    let report = verify(&world).await;
    assert_eq!((report.lines, report.seals, report.unsealed.lines), (1234, 13, 0), "{report:?}");
    assert!(report.is_whole());
    let marks = world.column("SELECT number || ':' || hash AS mark FROM audit_seals ORDER BY number").await;
    let marks: Vec<Mark> = marks.iter().map(|mark| mark.parse().unwrap()).collect();
    assert_eq!(report.newest.as_ref(), marks.last());
    assert!(verify_with(&world, &marks).await.is_whole());
    // Lines that the service writes are sealed like any other line.
    world.deliver_all(&["user_a", "user_b"].map(Event::created)).await;
    assert_eq!(verify(&world).await.unsealed.lines, 2);
    let before = world.dump().await;
    assert!(verify(&world).await.is_whole());
    assert_eq!(world.dump().await, before, "verifying changes nothing");
}

async fn a_line_that_was_changed_is_found(world: World) {
    ten_lines(&world).await;
    let changed: &[&str] = &["changed, or in another order: one or more of lines 1-8, under seal 1"];
    are_found(
        &world,
        &[
            ("UPDATE audit_log SET action = 'USER_CREATED' WHERE id = 3", changed),
            ("UPDATE audit_log SET at = '2026-01-01T00:00:00.004Z' WHERE id = 3", changed),
            ("UPDATE audit_log SET event_at = '2025-12-31T00:00:00.001Z' WHERE id = 3", changed),
            ("UPDATE audit_log SET clerk_id = 'user_2' WHERE id = 3", changed),
            ("UPDATE audit_log SET svix_id = NULL WHERE id = 3", changed),
            ("UPDATE audit_log SET svix_id = '' WHERE id = 3", changed),
            ("UPDATE audit_log SET source = 'cli' WHERE id = 3", changed),
            // Characters move from one value to the next one.
            ("UPDATE audit_log SET clerk_id = 'user_3m', svix_id = 'sg_3' WHERE id = 3", changed),
            (
                "UPDATE audit_log SET source = 'cli' WHERE id > 8",
                &["changed, or in another order: one or more of lines 9-13, under seal 2"],
            ),
        ],
    )
    .await;
    let of_this_keeper: &[(&str, &[&str])] = match world.keeper {
        Keeper::Postgres => &[
            ("UPDATE audit_log SET changed_fields = '{email}' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '{\"email,username\"}' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '{email,NULL}' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '{{email,username}}' WHERE id = 8", changed),
            ("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE id = 1", changed),
            ("UPDATE audit_log SET at = 'infinity' WHERE id = 1", changed),
        ],
        Keeper::Sqlite => &[
            ("UPDATE audit_log SET changed_fields = '[\"email\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '[\"email\", \"username\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = 'nothing' WHERE id = 8", changed),
            // The same bytes as a BLOB, which a query for the user would no longer find.
            ("UPDATE audit_log SET clerk_id = CAST(clerk_id AS BLOB) WHERE id = 8", changed),
            ("UPDATE audit_log SET at = replace(at, 'T', ' ') WHERE id = 1", changed),
            ("UPDATE audit_log SET at = 'yesterday' WHERE id = 1", changed),
        ],
        Keeper::Mongodb => &[
            ("UPDATE audit_log SET changed_fields = '[\"email\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '[\"username\", \"email\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = 'nothing' WHERE id = 8", changed),
            ("UPDATE audit_log SET clerk_id = CAST(clerk_id AS BLOB) WHERE id = 8", changed),
            ("UPDATE audit_log SET at = 'yesterday' WHERE id = 1", changed),
        ],
        Keeper::Mariadb | Keeper::Mysql => &[
            ("UPDATE audit_log SET changed_fields = '[\"email\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = '[\"email\", \"username\"]' WHERE id = 8", changed),
            ("UPDATE audit_log SET changed_fields = 'nothing' WHERE id = 8", changed),
            ("UPDATE audit_log SET clerk_id = clerk_id || ' ' WHERE id = 8", changed),
            ("UPDATE audit_log SET clerk_id = upper(clerk_id) WHERE id = 8", changed),
            ("UPDATE audit_log SET at = at + INTERVAL 1000 MICROSECOND WHERE id = 1", changed),
            // A date that does not exist.
            ("UPDATE audit_log SET at = '0000-00-00' WHERE id = 1", changed),
        ],
    };
    are_found(&world, of_this_keeper).await;
}

async fn a_line_that_was_removed_is_found(world: World) {
    ten_lines(&world).await;
    are_found(
        &world,
        &[
            ("DELETE FROM audit_log WHERE id = 1", &["missing: line 1, under seal 1"]),
            ("DELETE FROM audit_log WHERE id = 3", &["missing: line 3, under seal 1"]),
            ("DELETE FROM audit_log WHERE id = 8", &["missing: line 8, under seal 1"]),
            ("DELETE FROM audit_log WHERE id = 9", &["missing: line 9, under seal 2"]),
            ("DELETE FROM audit_log WHERE id = 13", &["missing: line 13, under seal 2"]),
            (
                "DELETE FROM audit_log WHERE id IN (2, 3, 4, 7, 11, 12)",
                &["missing: lines 2-4 7, under seal 1", "missing: lines 11-12, under seal 2"],
            ),
            (
                "DELETE FROM audit_log",
                &["missing: lines 1-4 7-8, under seal 1", "missing: lines 9 11-13, under seal 2"],
            ),
        ],
    )
    .await;
}

async fn a_line_that_was_slipped_in_is_found(world: World) {
    ten_lines(&world).await;
    for (id, expected) in [
        (-5, "inserted later: line -5, among the lines of seal 1"),
        (0, "inserted later: line 0, among the lines of seal 1"),
        (5, "inserted later: line 5, among the lines of seal 1"),
        (10, "inserted later: line 10, among the lines of seal 2"),
    ] {
        write(&world, [id]).await;
        // The line is not mistaken for a late one and sealed.
        seal(&world).await;
        assert_eq!(faults(&world).await, [expected]);
        restore(&world).await;
    }
    // A line is replaced by another one.
    world.sql("DELETE FROM audit_log WHERE id = 7").await;
    write(&world, [6]).await;
    assert_eq!(
        faults(&world).await,
        ["missing: line 7, under seal 1", "inserted later: line 6, among the lines of seal 1"]
    );
    restore(&world).await;
    // A line at the end is a normal new line: a writer may append there.
    write(&world, [14]).await;
    assert_eq!(verify(&world).await.unsealed.lines, 1);
}

async fn lines_in_another_order_are_found(world: World) {
    ten_lines(&world).await;
    let first: &str = "changed, or in another order: one or more of lines 1-8, under seal 1";
    let second: &str = "changed, or in another order: one or more of lines 9-13, under seal 2";
    let swap_ids = |one: i64, other: i64| {
        format!(
            "UPDATE audit_log SET id = 99 WHERE id = {one}; UPDATE audit_log SET id = {one} WHERE id = {other};
             UPDATE audit_log SET id = {other} WHERE id = 99"
        )
    };
    let swap_contents = |one: i64, other: i64| {
        let names = ["at", "action", "clerk_id", "svix_id", "source", "changed_fields", "event_at"];
        let columns = names.join(", ");
        match world.keeper {
            Keeper::Postgres | Keeper::Sqlite | Keeper::Mongodb => format!(
                "UPDATE audit_log SET ({columns}) = (SELECT {columns} FROM kept_log WHERE id = {other}) WHERE id = {one};
                 UPDATE audit_log SET ({columns}) = (SELECT {columns} FROM kept_log WHERE id = {one}) WHERE id = {other}"
            ),
            Keeper::Mariadb | Keeper::Mysql => format!(
                "UPDATE audit_log AS l JOIN kept_log AS k ON k.id = CASE l.id WHEN {one} THEN {other} ELSE {one} END
                 SET {} WHERE l.id IN ({one}, {other})",
                names.map(|name| format!("l.{name} = k.{name}")).join(", ")
            ),
        }
    };
    let attacks = [
        (generated_always(&world, &swap_ids(2, 3)), vec![first]),
        (generated_always(&world, &swap_ids(8, 9)), vec![first, second]),
        (swap_contents(2, 3), vec![first]),
        (swap_contents(1, 13), vec![first, second]),
    ];
    for (attack, expected) in &attacks {
        are_found(&world, &[(attack.as_str(), expected.as_slice())]).await;
    }
}

/// An identity column can only be changed after its identity is dropped.
fn generated_always(world: &World, attack: &str) -> String {
    match world.keeper {
        Keeper::Postgres => {
            format!("ALTER TABLE audit_log ALTER COLUMN id DROP IDENTITY IF EXISTS; {attack}")
        }
        Keeper::Sqlite | Keeper::Mariadb | Keeper::Mysql | Keeper::Mongodb => attack.to_owned(),
    }
}

async fn a_seal_that_was_changed_removed_or_replaced_is_found(world: World) {
    ten_lines(&world).await;
    write(&world, [14]).await;
    seal(&world).await;
    world.sql("DELETE FROM kept_log; INSERT INTO kept_log SELECT * FROM audit_log").await;
    world.sql("DELETE FROM kept_seals; INSERT INTO kept_seals SELECT * FROM audit_seals").await;
    are_found(
        &world,
        &[
            (
                "UPDATE audit_seals SET sealed_at = '2026-01-01T00:00:00.001Z' WHERE number = 2",
                &["seal 2 was changed"],
            ),
            ("UPDATE audit_seals SET \"lines\" = 3 WHERE number = 2", &["seal 2 was changed"]),
            ("UPDATE audit_seals SET last_id = 12 WHERE number = 2", &["seal 2 was changed"]),
            ("UPDATE audit_seals SET first_id = 0 WHERE number = 1", &["seal 1 was changed"]),
            ("UPDATE audit_seals SET gaps = '5-7' WHERE number = 1", &["seal 1 was changed"]),
            ("UPDATE audit_seals SET content = hash WHERE number = 3", &["seal 3 was changed"]),
            ("DELETE FROM audit_seals WHERE number = 1", &["seal 1 is missing"]),
            ("DELETE FROM audit_seals WHERE number = 2", &["seal 2 is missing"]),
            ("DELETE FROM audit_seals WHERE number < 3", &["seals 1 to 2 are missing"]),
            (
                "UPDATE audit_seals SET hash = previous WHERE number = 2",
                &["seal 2 was changed", "seal 3 does not follow seal 2: one of them was replaced"],
            ),
        ],
    )
    .await;
    // A line is deleted and all seals are created again: the chain is consistent, but it differs from the kept seal.
    world.sql("DELETE FROM audit_seals; DELETE FROM audit_log WHERE id = 3").await;
    seal_all(&world).await;
    assert!(
        verify(&world).await.is_whole(),
        "only a kept seal detects a chain that was rewritten completely"
    );
    let mark = world.value("SELECT number || ':' || hash AS mark FROM kept_seals WHERE number = 1").await;
    let report = verify_with(&world, &[mark.parse().unwrap()]).await;
    assert_eq!((report.found, report.faults[0].kind), (1, "seal_not_as_kept"), "{report:?}");
    // A seal of the old chain replaces one of the new chain.
    world.sql("DELETE FROM audit_seals WHERE number = 1; INSERT INTO audit_seals SELECT * FROM kept_seals WHERE number = 2").await;
    assert!(!verify(&world).await.is_whole());
}

async fn an_end_that_was_cut_off_is_found_by_a_seal_that_was_kept(world: World) {
    let marks = ten_lines(&world).await;
    world.sql("DELETE FROM audit_log WHERE id > 8; DELETE FROM audit_seals WHERE number = 2").await;
    assert!(verify(&world).await.is_whole(), "the rest of the chain is consistent");
    assert!(verify_with(&world, &marks[..1]).await.is_whole());
    let report = verify_with(&world, &marks).await;
    assert_eq!(
        report.faults[0].to_string(),
        "seal 2 was kept elsewhere and is not here: the newest seals were cut off"
    );
    // Adding new lines and seals does not hide it.
    write(&world, [9]).await;
    seal(&world).await;
    let report = verify_with(&world, &marks).await;
    assert!(
        report.faults[0].to_string().starts_with("seal 2 differs from the one that was kept"),
        "{report:?}"
    );
}

async fn an_erasure_leaves_the_chain_whole(world: World) {
    orders(&world, "").await;
    world.deliver_all(&["user_1", "user_2", "user_3"].map(Event::created)).await;
    order(&world, 1, "user_2").await;
    assert_eq!(world.count("audit_actors").await, 3);
    seal(&world).await;
    world.deliver_all(&["user_1", "user_2"].map(|id| Event::deleted(id, 1000))).await;
    assert_eq!(world.count("audit_actors").await, 1);
    let report = verify(&world).await;
    assert!(report.is_whole() && report.unsealed.lines == 2, "{report:?}");
    seal(&world).await;
    world.store.compact(u64::MAX, None).await.unwrap();
    let report = verify(&world).await;
    assert_eq!((report.is_whole(), report.lines, report.unsealed.lines), (true, 5, 0));
}

/// Ids are assigned before the commit, so a line can become visible before a line with a lower id.
async fn a_line_that_appears_before_others_is_sealed_after_all(world: World) {
    let alone = world.keeper == Keeper::Sqlite;
    append(&*world.store, 1, true).await;
    let mut late = world.store.begin(Patience::Normal).await.unwrap();
    late.audit(&[entry()]).await.unwrap();
    if alone {
        // SQLite has one writer at a time, so no transaction can overtake.
        late.commit().await.unwrap();
    } else {
        append(&*world.store, 2, true).await;
        let before = Instant::now();
        let sealed = seal(&world).await;
        assert_eq!(sealed.newest.unwrap().last_id, 1, "lines after the open id are not sealed");
        assert!(before.elapsed() < Duration::from_secs(5));
        let report = verify(&world).await;
        assert_eq!((report.is_whole(), report.lines, report.unsealed.lines), (true, 1, 2));
        // Neither the writers nor the sealer wait for each other.
        append(&*world.store, 1, true).await;
        late.commit().await.unwrap();
    }
    seal(&world).await;
    let report = verify(&world).await;
    let lines = world.count("audit_log").await;
    assert_eq!((report.is_whole(), report.lines, report.unsealed.lines), (true, lines, 0), "{report:?}");
    assert_eq!(lines, if alone { 2 } else { 5 });
}

async fn an_id_that_was_never_used_holds_nothing_up(world: World) {
    append(&*world.store, 1, true).await;
    append(&*world.store, 3, false).await;
    append(&*world.store, 1, true).await;
    let sealed = seal(&world).await.newest.unwrap();
    assert_eq!(sealed.lines, 2);
    if world.keeper != Keeper::Sqlite {
        assert_eq!((sealed.last_id, sealed.gaps.as_str()), (5, "2-4"));
    }
    assert!(verify(&world).await.is_whole());
}

async fn writers_that_overtake_each_other_leave_a_whole_chain(world: World) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut sealers = JoinSet::new();
    for _ in 0..2 {
        let (store, stop, now) = (world.open().await, Arc::clone(&stop), world.now);
        sealers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                chain::seal(&*store, 50, now).await.unwrap();
            }
        });
    }
    let mut writers = JoinSet::new();
    for writer in 0..4_u64 {
        let store = Arc::clone(&world.store);
        writers.spawn(async move {
            for turn in 0..15 {
                let mut transaction = store.begin(Patience::Normal).await.unwrap();
                transaction.audit(&vec![entry(); 1 + usize::try_from(writer).unwrap()]).await.unwrap();
                tokio::time::sleep(Duration::from_millis((writer * 7 + turn * 3) % 11)).await;
                if (turn + writer) % 5 == 0 {
                    transaction.rollback().await;
                } else {
                    transaction.commit().await.unwrap();
                }
            }
        });
    }
    // The chain is consistent at any time during the writes.
    while !writers.is_empty() {
        let report = verify(&world).await;
        assert!(report.is_whole(), "{report:?}");
        _ = tokio::time::timeout(Duration::from_millis(20), writers.join_next()).await;
    }
    stop.store(true, Ordering::SeqCst);
    sealers.join_all().await;
    seal_all(&world).await;
    let report = verify(&world).await;
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.lines, report.unsealed.lines), (world.count("audit_log").await, 0));
    assert_eq!(report.lines, 12 * (1 + 2 + 3 + 4), "a fifth was rolled back");
}

async fn leaders_that_do_not_know_of_each_other_make_one_chain(world: World) {
    write(&world, 1..=950).await;
    let mut leaders = JoinSet::new();
    for _ in 0..5 {
        let (store, now) = (world.open().await, world.now);
        leaders.spawn(async move {
            let mut lost = 0;
            loop {
                match chain::seal(&*store, 120, now).await.unwrap() {
                    None => lost += 1,
                    Some(Sealed { more: false, .. }) => return lost,
                    Some(_) => {}
                }
            }
        });
    }
    leaders.join_all().await;
    let report = verify(&world).await;
    assert_eq!((report.is_whole(), report.lines, report.unsealed.lines), (true, 950, 0), "{report:?}");
    assert_eq!(world.value("SELECT sum(\"lines\") AS n FROM audit_seals").await, "950");
    // A leader that read before another one wrote.
    write(&world, 951..=953).await;
    let late = world.store.to_seal(LIMIT).await.unwrap();
    seal(&world).await;
    let seals =
        clerk_sync::model::Seal::chain(late.newest.as_ref(), &late.lines, world.now + TimeDelta::days(1));
    assert!(!world.store.add_seals(&seals).await.unwrap(), "another leader has used the number");
    assert!(verify(&world).await.is_whole());
}

async fn the_loop_seals_by_itself_and_tells_when_the_end_is_gone(world: World) {
    let now = world.now;
    let clock: Clock = Arc::new(move || now);
    let shutdown = CancellationToken::new();
    let bells = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let mut loops = JoinSet::new();
    for bell in &bells {
        let sealing = Sealing::new(world.open().await, Arc::clone(&clock));
        loops.spawn(Worker::new(sealing, 1, bell).run(shutdown.clone()));
    }
    let sealed = async |lines: u64| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while verify(&world).await.lines < lines {
            assert!(Instant::now() < deadline, "the lines were never sealed");
            for bell in &bells {
                bell.notify_one();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(world.count("leases").await, 0, "without lines to seal, nothing is written");
    // An old trail, sealed in portions.
    write(&world, 1..=12_345).await;
    sealed(12_345).await;
    assert_eq!(world.value("SELECT count(*) AS n FROM leases WHERE name = 'audit_seals'").await, "1");
    append(&*world.store, 2, true).await;
    let ending = Instant::now();
    shutdown.cancel();
    loops.join_all().await;
    assert!(ending.elapsed() < Duration::from_secs(5));
    let report = verify(&world).await;
    assert_eq!((report.is_whole(), report.lines), (true, 12_347), "the last lines are sealed at shutdown");
    assert_eq!(world.count("leases").await, 0, "the lease is released");
}

async fn seals_only_come_to_the_others(world: World) {
    write(&world, 1..=3).await;
    seal(&world).await;
    let before = world.dump().await;
    for statement in [
        "UPDATE audit_seals SET \"lines\" = 2",
        "DELETE FROM audit_seals",
        "DELETE FROM audit_seals WHERE number = 1",
    ] {
        assert!(world.try_sql(statement).await.is_err(), "{statement}");
    }
    if world.keeper == Keeper::Postgres {
        assert!(world.try_sql("TRUNCATE audit_seals").await.is_err());
    }
    assert_eq!(world.dump().await, before);
}

fn entry() -> AuditEntry {
    AuditEntry {
        at: at(NOW),
        action: AuditAction::Updated,
        clerk_id: clerk_id("user_1"),
        svix_id: None,
        source: Source::Webhook,
        changed_fields: vec![user::EMAIL],
        event_at: DateTime::UNIX_EPOCH,
        actor: None,
    }
}

async fn append(store: &dyn Store, lines: usize, commit: bool) {
    let mut transaction = store.begin(Patience::Normal).await.unwrap();
    transaction.audit(&vec![entry(); lines]).await.unwrap();
    if commit {
        transaction.commit().await.unwrap();
    } else {
        transaction.rollback().await;
    }
}

mod program {
    //! The same through the program.

    use std::ops::RangeInclusive;

    use serde_json::Value;

    use crate::service::{Host, Keeper, deletion, eventually, milliseconds, on_each_keeper, post, user};

    on_each_keeper!(
        the_service_seals_what_it_writes_and_verify_proves_it,
        whoever_is_left_seals_after_the_leader_died,
        a_worker_seals_as_well,
        a_database_that_is_away_is_no_proof,
    );

    /// Insert all lines at once. A line that the service writes gets a lower id, so the service must not write during
    /// their sealing.
    fn lines(host: &Host, ids: RangeInclusive<u64>) {
        let (overriding, fields) = match host.keeper {
            Keeper::Postgres => ("OVERRIDING SYSTEM VALUE ", "{}"),
            _ => ("", "[]"),
        };
        let at = "'2026-01-01T00:00:00.000Z'";
        let line = |id| format!("({id}, {at}, 'USER_CREATED', 'user_{id}', NULL, 'cli', '{fields}', {at})");
        let lines: Vec<String> = ids.map(line).collect();
        host.sql(&format!(
            "INSERT INTO audit_log (id, at, action, clerk_id, svix_id, source, changed_fields, event_at) {overriding}
             VALUES {}",
            lines.join(", ")
        ));
    }

    fn sealed(host: &Host) -> usize {
        host.value("SELECT coalesce(sum(\"lines\"), 0) FROM audit_seals").parse().unwrap()
    }

    fn verify(host: &Host, arguments: &[&str]) -> (Option<i32>, Value) {
        let arguments = [&["audit", "verify", "--json"], arguments].concat();
        let finished = host.run(&arguments);
        (finished.code, serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}")))
    }

    fn the_service_seals_what_it_writes_and_verify_proves_it(host: &mut Host) {
        let service = host.serve();
        service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada")));
        service.stop();
        assert_eq!(sealed(host), 1, "the remaining line is sealed at shutdown");
        let service = host.serve();
        service.post(&post(&user("user.created", "user_2", milliseconds(), "Eve")));
        service.post(&post(&deletion("user_1", milliseconds())));
        service.stop();
        assert_eq!(sealed(host), 3);
        let service = host.serve();
        let text = host.run(&["audit", "verify"]).succeeded();
        assert!(text.contains("3 lines under 2 seals, all match their seals"), "{text}");
        let (code, report) = verify(host, &[]);
        assert_eq!(
            (code, &report["whole"], &report["unsealed"]["lines"]),
            (Some(0), &true.into(), &0.into())
        );
        let kept = report["newest_seal"].as_str().unwrap().to_owned();
        assert!(text.contains(&kept), "{text}");
        assert_eq!(verify(host, &["--seal", &kept]).0, Some(0));
        assert_eq!(host.run(&["audit", "verify", "--seal", "12"]).code, Some(2));
        assert_eq!(
            host.run(&["audit", "user_1"]).succeeded().lines().count(),
            2,
            "the user's lines are listed as before"
        );
        assert_eq!(host.run(&["audit"]).code, Some(2));
        eventually("counted", || service.metric("clerk_sync_audit_unsealed_lines") == Some(0.0));
        service.stop();
        match host.keeper {
            Keeper::Postgres => host.sql("ALTER TABLE audit_log DISABLE TRIGGER USER"),
            _ => host.sql("DROP TRIGGER audit_log_no_update"),
        };
        host.sql("UPDATE audit_log SET source = 'cli' WHERE clerk_id = 'user_2'");
        let finished = host.run(&["audit", "verify"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stdout.contains("not all match their seals"), "{finished:?}");
        assert!(
            finished.stderr.contains("the audit trail does not match its seals: changed"),
            "{finished:?}"
        );
        let (code, report) = verify(host, &[]);
        assert_eq!(
            (code, &report["whole"], &report["faults"][0]["kind"]),
            (Some(1), &false.into(), &"line_changed".into())
        );
        // With all seals deleted the trail is consistent again, except for an operator that has kept a seal.
        match host.keeper {
            Keeper::Postgres => host.sql("SET session_replication_role = replica; DELETE FROM audit_seals"),
            _ => host.sql("DROP TRIGGER audit_seals_no_delete; DELETE FROM audit_seals"),
        };
        assert_eq!(verify(host, &[]).0, Some(0));
        let (code, report) = verify(host, &["--seal", &kept]);
        assert_eq!((code, &report["faults"][0]["kind"]), (Some(1), &"seal_not_as_kept".into()));
    }

    fn whoever_is_left_seals_after_the_leader_died(host: &mut Host) {
        let first = host.serve();
        lines(host, 1..=100);
        first.post(&post(&user("user.created", "user_a", milliseconds(), "Ada")));
        eventually("sealed", || sealed(host) >= 100);
        let second = host.serve();
        first.kill();
        lines(host, 1001..=1100);
        second.post(&post(&user("user.created", "user_b", milliseconds(), "Ada")));
        eventually("sealed by the other", || sealed(host) >= 200);
        assert_eq!(verify(host, &[]).0, Some(0));
        second.stop();
    }

    fn a_worker_seals_as_well(host: &mut Host) {
        host.run(&["migrate"]).succeeded();
        lines(host, 1..=100);
        let worker = host.work();
        eventually("sealed", || sealed(host) == 100);
        eventually("the report", || worker.log().contains("the audit trail is sealed"));
        worker.stop();
    }

    fn a_database_that_is_away_is_no_proof(host: &mut Host) {
        if host.keeper == Keeper::Sqlite {
            // SQLite has no server that could be unreachable.
            return;
        }
        host.run(&["migrate"]).succeeded();
        host.reach_server_at(([127, 0, 0, 1], 1).into());
        let finished = host.run(&["audit", "verify"]);
        assert_eq!(finished.code, Some(69), "{finished:?}");
    }
}
