//! Erasures: with a receipt, at once or after the grace period, from every table, and permanently even if a backup is
//! restored.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    entity::{USER, user},
    model::{Field, FieldSet, MessageType, Outcome, Receipt, Selection},
    store::{Claimed, Old, Patience, schema::TABLES},
    sync::{
        Clock,
        erasure::{self, Fate, Replayed},
        frontier::BEGINNING,
        minimize::minimize,
    },
    work::{
        Retention,
        outbox::ending::Ending,
        retention::{Keep, PRUNE},
        worker::Worker,
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    application::{order, orders, refuse_name, resist, resist_no_longer},
    catching_up::Clerk,
    outbox::{lease, standing, subscribe},
    service::{self, Host, deletion, eventually, load, milliseconds, post, user},
    world::{Event, Keeper, World, after, at, clerk_id, plain, run, time},
};

use Outcome::{Applied, Parked, Stale, Unchanged};

macro_rules! on_each_store {
    ($($test:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $test() { super::run(super::Keeper::Postgres, super::$test); })+
        }
        mod sqlite {
            $(#[test] fn $test() { super::run(super::Keeper::Sqlite, super::$test); })+
        }
        mod mariadb {
            $(#[test] fn $test() { super::run(super::Keeper::Mariadb, super::$test); })+
        }
        mod mysql {
            $(#[test] fn $test() { super::run(super::Keeper::Mysql, super::$test); })+
        }
        mod mongodb {
            $(#[test] fn $test() {
                if $crate::secantus::applies(stringify!($test)) {
                    super::run(super::Keeper::Mongodb, super::$test);
                }
            })+
        }
    };
}

on_each_store! {
    // Receipts.
    an_erasure_leaves_a_receipt_and_that_of_a_stranger_none,
    a_row_that_resists_leaves_an_open_receipt_until_it_goes,
    a_row_that_resists_and_that_the_application_removes_itself_is_done,
    an_erasure_by_hand_whose_row_resists_is_tried_again_without_end,
    a_receipt_keeps_the_older_request_and_once_completed_stays_so,
    open_receipts_are_listed_the_oldest_first_and_counted_by_destination,

    // During the grace period.
    while_it_is_held_back_the_row_is_marked_and_updates_go_on,
    while_it_is_held_back_sinks_hear_what_they_heard_before_and_nothing_of_the_mark,
    a_deletion_that_is_taken_back_leaves_the_user_whole,
    a_mark_of_the_application_is_neither_taken_away_nor_the_time_of_a_request,
    when_the_time_is_over_nothing_is_left,
    an_erasure_that_is_held_back_can_be_had_at_once,
    a_second_deletion_waits_with_the_first,
    there_is_nobody_to_hold_back_of_whom_there_is_no_row,
    created_and_deleted_in_one_batch_is_held_back_as_well,
    a_row_that_the_application_removed_comes_back_marked,
    a_mark_that_the_application_refuses_holds_nothing_up,
    a_row_that_a_trigger_keeps_without_a_word_is_no_erasure,
    whoever_resists_looks_deleted,
    a_deletion_that_comes_again_takes_what_was_left,
    nothing_is_kept_of_whom_we_erased_however_broken_the_body,
    an_erasure_and_who_takes_it_back_cannot_pass_each_other,

    // Copies.
    nothing_remains_of_many_who_were_erased,
    a_list_of_erased_users_revives_nobody,
    columns_that_left_the_allow_list_are_cleared_and_no_others,
    whom_the_application_protects_is_left_alone_and_counted,
    dead_deliveries_are_forgotten_after_their_time_and_no_others,
    a_file_is_rewritten_only_after_an_erasure_and_only_if_it_is_not_too_large,
    after_an_erasure_the_file_is_rewritten_once_a_day,
}

fn clock(world: &World) -> Clock {
    let now = world.now;
    Arc::new(move || now)
}

async fn erase(world: &World, id: &str) -> Fate {
    erasure::erase(&*world.store, &clerk_id(id), &world.rules, &clock(world)).await.unwrap()
}

async fn erase_now(world: &World, id: &str) -> Fate {
    erasure::erase_now(&*world.store, &clerk_id(id), &world.rules, &clock(world)).await.unwrap()
}

async fn cancel(world: &World, id: &str) -> Fate {
    erasure::cancel(&*world.store, &clerk_id(id), &world.rules, &clock(world)).await.unwrap()
}

async fn release_due(world: &World) -> u64 {
    erasure::release_due(&*world.store, &world.rules, &clock(world)).await.unwrap()
}

/// This database's receipt for the user, if it exists.
async fn receipt(world: &World, id: &str) -> Option<Receipt> {
    let mut receipts = world.store.receipts_of(&clerk_id(id)).await.unwrap();
    assert!(receipts.len() <= 1, "{receipts:?}");
    receipts.pop()
}

async fn held_until(world: &World, id: &str) -> Option<DateTime<Utc>> {
    let known = world.store.known(&[clerk_id(id)], &Selection::default()).await.unwrap();
    known.registers[&clerk_id(id)].held_until
}

async fn is_deleted(world: &World, id: &str) -> bool {
    let known = world.store.known(&[clerk_id(id)], &Selection::default()).await.unwrap();
    known.registers[&clerk_id(id)].deleted
}

async fn an_erasure_leaves_a_receipt_and_that_of_a_stranger_none(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    world.pass(TimeDelta::days(2));
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    let expected = Receipt {
        clerk_id: clerk_id("user_1"),
        destination: "database".to_owned(),
        requested_at: after(1000),
        completed_at: Some(world.now),
        attempts: 1,
        last_error: None,
    };
    assert_eq!(receipt(&world, "user_1").await, Some(expected));
    assert_eq!(world.deliver(&Event::deleted("user_2", 1000)).await, Applied);
    assert_eq!(receipt(&world, "user_2").await, None);
    assert!(is_deleted(&world, "user_2").await);
    // A second deletion changes nothing.
    let before = receipt(&world, "user_1").await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 2000)).await, Stale);
    assert_eq!(receipt(&world, "user_1").await, before);
}

async fn a_row_that_resists_leaves_an_open_receipt_until_it_goes(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Parked);
    let open = receipt(&world, "user_1").await.unwrap();
    assert_eq!((open.completed_at, open.attempts, open.requested_at), (None, 1, after(1000)));
    assert!(
        open.last_error
            .as_deref()
            .is_some_and(|error| error.starts_with("a constraint or trigger refused the change"))
    );
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.drain().await[0].1, Parked);
    assert_eq!(receipt(&world, "user_1").await.unwrap().attempts, 2);
    resist_no_longer(&world).await;
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.drain().await[0].1, Applied);
    let done = receipt(&world, "user_1").await.unwrap();
    assert_eq!((done.completed_at, done.attempts, done.last_error), (Some(world.now), 3, None));
    assert_eq!(done.requested_at, after(1000));
}

async fn a_row_that_resists_and_that_the_application_removes_itself_is_done(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Parked);
    resist_no_longer(&world).await;
    world.sql("DELETE FROM users").await;
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.drain().await[0].1, Stale);
    assert_eq!(receipt(&world, "user_1").await.unwrap().completed_at, Some(world.now));
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn an_erasure_by_hand_whose_row_resists_is_tried_again_without_end(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    assert_eq!(erase(&world, "user_1").await, Fate::Resists);
    assert_eq!(erase(&world, "user_1").await, Fate::Resists, "a second request adds no second delivery");
    let parked = world.parked().await;
    assert!(plain(&parked["svix_id"]).starts_with("erase_"));
    assert_eq!((&parked["state"], &parked["event_type"]), (&json!("pending"), &json!("user.deleted")));
    assert!(is_deleted(&world, "user_1").await);
    for _ in 0..20 {
        world.pass(TimeDelta::hours(2));
        assert_eq!(world.drain().await.len(), 1);
    }
    resist_no_longer(&world).await;
    world.pass(TimeDelta::hours(2));
    assert_eq!(world.drain().await[0].1, Applied);
    assert!(world.user("user_1").await.is_none_or(|user| user.is_anonymized()));
    assert_eq!(receipt(&world, "user_1").await.unwrap().completed_at, Some(world.now));
    assert_eq!(erase(&world, "user_1").await, Fate::Gone);
    assert_eq!(erase(&world, "user_2").await, Fate::Unknown);
    assert_eq!(world.deliver(&Event::created("user_2")).await, Stale);
}

async fn a_receipt_keeps_the_older_request_and_once_completed_stays_so(world: World) {
    let receipt = |requested, completed_at, error: Option<&str>| Receipt {
        clerk_id: clerk_id("user_1"),
        destination: "crm".to_owned(),
        requested_at: after(requested),
        completed_at,
        attempts: 1,
        last_error: error.map(ToOwned::to_owned),
    };
    let write = async |receipts: &[Receipt]| {
        let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
        transaction.receipts(receipts).await.unwrap();
        transaction.commit().await.unwrap();
    };
    write(&[receipt(20, None, Some("status 500"))]).await;
    write(&[receipt(10, None, Some("status 429"))]).await;
    let stored = || async { world.store.receipts_of(&clerk_id("user_1")).await.unwrap() };
    assert_eq!(stored().await, [Receipt { attempts: 2, ..receipt(10, None, Some("status 429")) }]);
    write(&[receipt(30, Some(after(40)), None)]).await;
    write(&[
        receipt(50, Some(after(60)), None),
        Receipt { destination: "mail".to_owned(), ..receipt(5, None, None) },
    ])
    .await;
    assert_eq!(
        stored().await,
        [
            Receipt { attempts: 4, ..receipt(10, Some(after(40)), None) },
            Receipt { destination: "mail".to_owned(), ..receipt(5, None, None) },
        ]
    );
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    let ids = [clerk_id("user_1"), clerk_id("user_2")];
    for destination in ["crm", "mail"] {
        transaction.close_receipts(&ids, destination, after(70)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let closed: Vec<_> = stored().await.into_iter().map(|receipt| receipt.completed_at).collect();
    assert_eq!(closed, [Some(after(40)), Some(after(70))]);
    assert_eq!(world.count("erasure_receipts").await, 2);
}

async fn open_receipts_are_listed_the_oldest_first_and_counted_by_destination(world: World) {
    let mut receipts = Vec::new();
    for number in 0..25 {
        for destination in ["crm", "database"] {
            let is_open = destination == "crm" || number % 5 == 0;
            receipts.push(Receipt {
                clerk_id: clerk_id(&format!("user_{number:02}")),
                destination: destination.to_owned(),
                // Two receipts for each time.
                requested_at: after(100 - number / 2),
                completed_at: (!is_open).then(|| after(200)),
                attempts: 1,
                last_error: None,
            });
        }
    }
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    transaction.receipts(&receipts).await.unwrap();
    transaction.commit().await.unwrap();
    receipts.retain(|receipt| receipt.completed_at.is_none());
    receipts
        .sort_by_key(|receipt| (receipt.requested_at, receipt.clerk_id.clone(), receipt.destination.clone()));
    let mut listed: Vec<Receipt> = Vec::new();
    loop {
        let page = world.store.open_receipts(None, listed.last(), 7).await.unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, receipts);
    let overdue = world.store.open_receipts(Some(after(95)), None, 100).await.unwrap();
    receipts.retain(|receipt| receipt.requested_at < after(95));
    assert_eq!(overdue, receipts);
    let mut open = world.store.open_erasures().await.unwrap();
    open.sort_by(|a, b| a.destination.cmp(&b.destination));
    let open: Vec<_> = open.into_iter().map(|open| (open.destination, open.receipts, open.oldest)).collect();
    assert_eq!(open, [("crm".to_owned(), 25, after(88)), ("database".to_owned(), 5, after(90))]);
}

async fn while_it_is_held_back_the_row_is_marked_and_updates_go_on(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::created("user_1")).await;
    let whole = world.user("user_1").await.unwrap();
    let deleted = Event::deleted("user_1", 5000);
    assert_eq!(world.deliver(&deleted).await, Applied);
    let mut marked = whole.clone();
    marked.deleted_at = Some(world.now);
    assert_eq!(world.user("user_1").await, Some(marked), "nothing else changes");
    assert!(!is_deleted(&world, "user_1").await);
    assert_eq!(held_until(&world, "user_1").await, Some(world.now + TimeDelta::days(7)));
    assert_eq!(receipt(&world, "user_1").await, None);
    assert_eq!(world.audit().await, ["USER_CREATED user_1", "USER_DELETION_HELD user_1"]);
    assert_eq!(world.count("audit_actors").await, 1, "a deletion stores no actor");
    let row = world.store.row(&clerk_id("user_1")).await.unwrap().unwrap();
    assert!(row.standing().is_none(), "readers do not see the user");
    assert!(world.store.rows(&USER, &clerk_sync::store::RowFilter::default(), 10).await.unwrap().is_empty());

    // An event from before the deletion may arrive after it; an event older than the row stays stale.
    let marked_at = world.now;
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.deliver(&Event::updated("user_1", 4000).set("first_name", "Augusta")).await, Applied);
    assert_eq!(world.deliver(&Event::updated("user_1", 3000).set("first_name", "Late")).await, Stale);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Augusta");
    assert_eq!(world.user("user_1").await.unwrap().deleted_at, Some(marked_at));
    assert_eq!(release_due(&world).await, 0);
}

async fn while_it_is_held_back_sinks_hear_what_they_heard_before_and_nothing_of_the_mark(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.rules.grace = TimeDelta::days(7);
    let people = ["user_1", "user_2"];
    for id in people {
        world.deliver(&Event::created(id)).await;
        world.deliver(&Event::deleted(id, 5000)).await;
        world.deliver(&Event::updated(id, 4000).set("first_name", "Augusta")).await;
        world.deliver(&Event::updated(id, 3000).set("first_name", "Late")).await;
    }
    let told = |id: &str, kinds: &[&str]| -> Vec<String> {
        kinds.iter().map(|kind| format!("user.{kind} {id} pending")).collect()
    };
    let both: Vec<String> = people.iter().flat_map(|id| told(id, &["created", "updated"])).collect();
    assert_eq!(standing(&world, "crm").await, both);

    // Before the cancellation the sink received nothing about the mark, so nothing must be withdrawn.
    world.pass(TimeDelta::days(1));
    assert_eq!(cancel(&world, "user_1").await, Fate::Kept);
    assert_eq!(standing(&world, "crm").await, both);
    world.pass(TimeDelta::days(6));
    assert_eq!(release_due(&world).await, 1);
    // Undelivered messages are withdrawn, and the deletion is sent.
    let end = [told("user_1", &["created", "updated"]), told("user_2", &["deleted"])].concat();
    assert_eq!(standing(&world, "crm").await, end);
}

async fn a_deletion_that_is_taken_back_leaves_the_user_whole(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::created("user_1")).await;
    assert_eq!(cancel(&world, "user_1").await, Fate::NotHeld);
    let unreadable = json!({
        "type": "user.updated", "data": { "id": "user_1", "first_name": ["x"] },
        "event_attributes": { "http_request": { "client_ip": "198.51.100.77", "user_agent": "Loom/9" } },
    });
    assert_eq!(world.deliver(&Event::raw(unreadable.to_string())).await, Parked);
    let tables = ["users", "audit_actors", "webhook_queue", "entity_versions"];
    let look = async |world: &World| -> Vec<String> {
        let lines = world.dump().await;
        lines.into_iter().filter(|line| tables.iter().any(|table| line.starts_with(table))).collect()
    };
    let whole = look(&world).await;
    let until = world.now + TimeDelta::days(7);
    assert_eq!(erase(&world, "user_1").await, Fate::Held(until));
    assert_ne!(look(&world).await, whole);
    world.pass(TimeDelta::days(6));
    assert_eq!(release_due(&world).await, 0);
    assert_eq!(cancel(&world, "user_1").await, Fate::Kept);
    assert_eq!(look(&world).await, whole);
    assert_eq!(cancel(&world, "user_1").await, Fate::NotHeld);
    let trail = ["USER_CREATED user_1", "USER_DELETION_HELD user_1", "USER_DELETION_CANCELLED user_1"];
    assert_eq!(world.audit().await, trail);
    world.pass(TimeDelta::days(6));
    assert_eq!(release_due(&world).await, 0);
    assert_eq!(world.deliver(&Event::updated("user_1", 6000).set("first_name", "Augusta")).await, Applied);
    // The user can be deleted again.
    assert_eq!(world.deliver(&Event::deleted("user_1", 7000)).await, Applied);
    assert_eq!(held_until(&world, "user_1").await, Some(world.now + TimeDelta::days(7)));
}

async fn a_mark_of_the_application_is_neither_taken_away_nor_the_time_of_a_request(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver_all(&["user_1", "user_2", "user_3"].map(Event::created)).await;
    let mark = "2020-01-01T00:00:00.000Z";
    let marked = async |world: &World, id: &str| {
        world.user(id).await.unwrap().deleted_at.map(|at| at.timestamp_millis())
    };
    let set = async |world: &World, id: &str| {
        world.sql(&format!("UPDATE users SET deleted_at = '{mark}' WHERE clerk_id = '{id}'")).await;
        Some(time(&mark.into()).timestamp_millis())
    };
    // The application's mark, set before the deletion or during the grace period.
    let theirs = set(&world, "user_1").await;
    let asked = world.now;
    world.deliver_all(&["user_1", "user_2", "user_3"].map(|id| Event::deleted(id, 1000))).await;
    set(&world, "user_2").await;
    assert_eq!(marked(&world, "user_1").await, theirs);
    for id in ["user_1", "user_2"] {
        assert_eq!(cancel(&world, id).await, Fate::Kept);
        assert_eq!(marked(&world, id).await, theirs, "{id}");
    }
    // A second deletion is a new request with its own time.
    world.pass(TimeDelta::days(1));
    world.deliver(&Event::deleted("user_1", 2000)).await;
    world.pass(TimeDelta::days(7));
    assert_eq!(release_due(&world).await, 2);
    assert_eq!(receipt(&world, "user_1").await.unwrap().requested_at, asked + TimeDelta::days(1));
    assert_eq!(receipt(&world, "user_3").await.unwrap().requested_at, asked);
}

async fn when_the_time_is_over_nothing_is_left(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    orders(&world, "").await;
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2"), Event::created("user_3")]).await;
    order(&world, 1, "user_2").await;
    world.deliver(&Event::updated("user_1", 100).set("first_name", json!(["Ada"]))).await;
    let asked = world.now;
    world.deliver_all(&[Event::deleted("user_1", 1000), Event::deleted("user_2", 1000)]).await;
    world.pass(TimeDelta::days(1));
    world.deliver(&Event::deleted("user_3", 1000)).await;
    world.pass(TimeDelta::days(6) - TimeDelta::milliseconds(1));
    assert_eq!(release_due(&world).await, 0);
    world.pass(TimeDelta::milliseconds(1));
    assert_eq!(release_due(&world).await, 2);
    assert_eq!(release_due(&world).await, 0);
    assert!(world.user("user_1").await.is_none());
    let kept = world.user("user_2").await.map(|user| user.is_anonymized());
    assert_eq!(kept, world.refuses_deletions().then_some(true));
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.value("SELECT count(*) FROM audit_log WHERE source = 'retention'").await, "2");
    for id in ["user_1", "user_2"] {
        assert!(is_deleted(&world, id).await);
        assert_eq!(held_until(&world, id).await, None);
        let receipt = receipt(&world, id).await.unwrap();
        assert_eq!((receipt.requested_at, receipt.completed_at), (asked, Some(world.now)));
    }
    assert!(!is_deleted(&world, "user_3").await, "the grace period of user_3 lasts another day");
    assert_eq!(world.deliver(&Event::updated("user_1", 9000)).await, Stale);
    assert_eq!(cancel(&world, "user_1").await, Fate::Gone);
}

async fn an_erasure_that_is_held_back_can_be_had_at_once(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::created("user_1")).await;
    assert_eq!(erase_now(&world, "user_1").await, Fate::NotHeld);
    assert!(world.user("user_1").await.is_some());
    world.deliver(&Event::deleted("user_1", 1000)).await;
    assert_eq!(erase_now(&world, "user_1").await, Fate::Erased);
    assert_eq!(erase_now(&world, "user_1").await, Fate::Gone);
    assert!(world.user("user_1").await.is_none());
    assert_eq!(receipt(&world, "user_1").await.unwrap().completed_at, Some(world.now));
    assert_eq!(erase_now(&world, "user_2").await, Fate::NotHeld);
}

async fn a_second_deletion_waits_with_the_first(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::created("user_1")).await;
    let until = world.now + world.rules.grace;
    let twice = [Event::deleted("user_1", 1000), Event::deleted("user_1", 1001)];
    assert_eq!(world.deliver_all(&twice).await, [Applied, Stale]);
    world.pass(TimeDelta::days(1));
    assert_eq!(world.deliver(&Event::deleted("user_1", 1002)).await, Stale);
    assert_eq!(erase(&world, "user_1").await, Fate::Held(until));
    // Changing the grace period to zero does not change that.
    world.rules.grace = TimeDelta::zero();
    assert_eq!(world.deliver(&Event::deleted("user_1", 1003)).await, Stale);
    assert_eq!(held_until(&world, "user_1").await, Some(until));
    assert_eq!(world.count("audit_log").await, 2);
}

async fn there_is_nobody_to_hold_back_of_whom_there_is_no_row(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert!(is_deleted(&world, "user_1").await);
    assert_eq!(world.deliver(&Event::created("user_1")).await, Stale);
    assert_eq!(world.count("audit_log").await + world.count("erasure_receipts").await, 0);
}

async fn created_and_deleted_in_one_batch_is_held_back_as_well(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    let batch = [Event::created("user_1"), Event::deleted("user_1", 1000), Event::updated("user_1", 500)];
    assert_eq!(world.deliver_all(&batch).await, [Applied, Applied, Unchanged]);
    assert_eq!(world.user("user_1").await.unwrap().deleted_at, Some(world.now));
    assert!(held_until(&world, "user_1").await.is_some());
}

async fn a_row_that_the_application_removed_comes_back_marked(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver_all(&[Event::created("user_1"), Event::deleted("user_1", 1000)]).await;
    world.sql("DELETE FROM users").await;
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Applied);
    assert_eq!(world.user("user_1").await.unwrap().deleted_at, Some(world.now));
    world.pass(TimeDelta::days(8));
    assert_eq!(release_due(&world).await, 1);
    assert!(world.user("user_1").await.is_none());
}

async fn a_mark_that_the_application_refuses_holds_nothing_up(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    world.deliver_all(&[Event::created("user_1").set("first_name", "Bad"), Event::created("user_2")]).await;
    refuse_name(&world, "Bad").await;
    let batch = [
        Event::deleted("user_1", 1000).set("external_id", "ext-7"),
        Event::updated("user_2", 1000).set("first_name", "Augusta"),
    ];
    assert_eq!(world.deliver_all(&batch).await, [Applied, Applied]);
    assert_eq!(held_until(&world, "user_1").await, Some(world.now + TimeDelta::days(7)));
    assert_eq!(world.count("webhook_queue").await, 0);
    world.pass(TimeDelta::days(8));
    assert_eq!(release_due(&world).await, 1);
    assert!(world.user("user_1").await.is_none());
}

/// The application's triggers skip statements that delete or change users. MariaDB and MySQL cannot skip statements: there the
/// triggers revert every change, and refuse a deletion.
async fn keep_without_a_word(world: &World) {
    let names = USER.fields().map(Field::name).chain(["clerk_id", "updated_at", "synced_at", "deleted_at"]);
    let taken_back = names.map(|name| format!("new.{name} = old.{name}")).collect::<Vec<_>>().join(", ");
    world
        .sql_of(
            "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER skip BEFORE DELETE OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION skip()",
            "CREATE TRIGGER skip_d BEFORE DELETE ON users BEGIN SELECT RAISE(IGNORE); END;
             CREATE TRIGGER skip_u BEFORE UPDATE ON users BEGIN SELECT RAISE(IGNORE); END",
            &format!(
                "CREATE TRIGGER skip_d BEFORE DELETE ON users FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'kept';
                 CREATE TRIGGER skip_u BEFORE UPDATE ON users FOR EACH ROW SET {taken_back}"
            ),
        )
        .await;
}

async fn a_row_that_a_trigger_keeps_without_a_word_is_no_erasure(mut world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    keep_without_a_word(&world).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Parked);
    assert_eq!(receipt(&world, "user_1").await.unwrap().completed_at, None);
    assert!(is_deleted(&world, "user_1").await);
    // A skipped update is the application's refusal, too, and not the effect of another process.
    if matches!(world.keeper, Keeper::Postgres | Keeper::Sqlite) {
        assert_eq!(world.deliver(&Event::updated("user_2", 1000).set("first_name", "Augusta")).await, Parked);
    }
    let both = "DROP TRIGGER skip_d; DROP TRIGGER skip_u";
    world.sql_of("DROP TRIGGER skip ON users", both, both).await;
    world.pass(TimeDelta::hours(1));
    assert!(world.drain().await.iter().all(|(_, outcome)| *outcome == Applied));
    assert!(world.user("user_1").await.is_none());
    assert_eq!(receipt(&world, "user_1").await.unwrap().completed_at, Some(world.now));
}

async fn whoever_resists_looks_deleted(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Parked);
    assert_eq!(world.count("users WHERE deleted_at IS NULL").await, 0);
}

async fn a_deletion_that_comes_again_takes_what_was_left(world: World) {
    world.deliver(&Event::created("user_1")).await;
    world.deliver(&Event::deleted("user_1", 1000)).await;
    let left = "INSERT INTO webhook_queue (svix_id, event_type, clerk_id, payload, state, attempts, received_at, last_error)
                VALUES ('msg_left', 'user.updated', 'user_1', 'ada@example.com', 'dead', 1, '2026-01-01T00:00:00.000Z', '')";
    world.sql(left).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 2000)).await, Stale);
    assert_eq!(world.count("webhook_queue").await, 0);
    world.sql(left).await;
    assert_eq!(erase(&world, "user_1").await, Fate::Gone);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn nothing_is_kept_of_whom_we_erased_however_broken_the_body(world: World) {
    let bodies: [Vec<u8>; 5] = [
        br#"{"data":{"id":"user_\u0032abc","email":"ada@example.com"},"object":"event"}"#.to_vec(),
        br#"{"type":"user.updated","data":[{"id":"user_2abc","email":"ada@example.com"}]}"#.to_vec(),
        br#"{"type":"user.updated","data":{"id":"user_2abc","email":"ada@exam"#.to_vec(),
        br#"[{"id":"user_2abc","email":"ada@example.com"}]"#.to_vec(),
        r#"{"id":"user_2abc","email":"ada@example.com"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect(),
    ];
    for body in &bodies {
        assert_eq!(world.deliver(&Event::raw(body.clone())).await, Parked);
    }
    assert_eq!(world.count("webhook_queue").await, 5);
    assert_eq!(world.deliver(&Event::deleted("user_2abc", 1000)).await, Applied);
    assert_eq!(world.count("webhook_queue").await, 0);
    for body in &bodies {
        assert_eq!(world.deliver(&Event::raw(body.clone())).await, Stale);
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn an_erasure_and_who_takes_it_back_cannot_pass_each_other(mut world: World) {
    world.rules.grace = TimeDelta::days(7);
    let ids: Vec<String> = (0..20).map(|number| format!("user_{number:02}")).collect();
    world.deliver_all(&ids.iter().map(|id| Event::created(id)).collect::<Vec<_>>()).await;
    world.deliver_all(&ids.iter().map(|id| Event::deleted(id, 1000)).collect::<Vec<_>>()).await;
    world.pass(TimeDelta::days(8));
    let (fates, released) = tokio::join!(
        async {
            let mut fates = Vec::new();
            for id in &ids {
                fates.push(cancel(&world, id).await);
            }
            fates
        },
        release_due(&world)
    );
    let mut kept = 0;
    for (id, fate) in ids.iter().zip(fates) {
        let row = world.user(id).await;
        match fate {
            Fate::Kept => {
                kept += 1;
                assert_eq!(row.unwrap().deleted_at, None);
                assert!(!is_deleted(&world, id).await);
                assert_eq!(receipt(&world, id).await, None);
            }
            Fate::Gone => {
                assert_eq!(row, None);
                assert!(receipt(&world, id).await.unwrap().completed_at.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kept + released, ids.len() as u64);
}

/// A user with searchable personal data.
fn person(number: usize) -> Event {
    Event::created(&format!("user_{number:05}"))
        .set("first_name", format!("Givenname{number}"))
        .set("last_name", format!("Familyname{number}"))
        .set("username", format!("nick{number}name"))
        .set("image_url", format!("https://img.clerk.com/face{number}"))
        .set("phone_numbers", json!([{ "id": "idn_2", "phone_number": format!("+1555777{number:05}") }]))
        .email(&format!("person{number}@secret.example"))
        .envelope(
            "event_attributes",
            json!({ "http_request": { "client_ip": format!("2001:db8::{number:x}"), "user_agent": "Loom/9" } }),
        )
}

const TRACES: [&str; 8] =
    ["Givenname", "Familyname", "nick", "clerk.com/face", "+1555777", "secret.example", "2001:db8", "Loom/9"];

async fn nothing_remains_of_many_who_were_erased(mut world: World) {
    let people = load(100, 10_000);
    subscribe(&mut world, &["crm", "mail"]);
    orders(&world, "").await;
    refuse_name(&world, "Bad").await;
    for start in (0..people).step_by(100) {
        let numbers = start..(start + 100).min(people);
        world.deliver_all(&numbers.clone().map(person).collect::<Vec<_>>()).await;
        // All messages of one sink are pending. Those of the other are under way, delivered, dead, or waiting for a
        // retry.
        let claimed =
            world.store.claim_messages("mail", BEGINNING..=world.now, &lease(&world), 100).await.unwrap();
        let error = || "status 500".to_owned();
        let ended: Vec<(Claimed, Ending)> = (claimed.into_iter().zip([0, 1, 2, 3].into_iter().cycle()))
            .filter_map(|(message, how)| match how {
                0 => None,
                1 => Some((message, Ending::Delivered)),
                2 => Some((message, Ending::Dead { attempts: 1, error: error() })),
                _ => Some((message, Ending::Again { attempts: 1, at: after(60_000), error: error() })),
            })
            .collect();
        assert_eq!(world.finish(&ended).await, Ok(ended.len() as u64));
        let (mut more, mut queued) = (Vec::new(), Vec::new());
        for number in numbers.clone() {
            // Pending, dead, and without a known user.
            let later = person(number).after(1000).again();
            match number % 4 {
                0 if number % 100 == 0 => more.push(later.set("first_name", "Bad")),
                0 => queued.push(later),
                1 => more.push(later.set("first_name", json!([format!("Givenname{number}")]))),
                2 => more.push(Event::raw(format!("user_{number:05} is person{number}@secret.example"))),
                _ => more.push(later.set("last_name", format!("Familyname{number}-Byron"))),
            }
        }
        // On a busy machine, a batch with refusals may exceed its deadline. Svix would deliver the rest again.
        while !more.is_empty() {
            let mut results = world.try_deliver_all(&more).await.into_iter();
            more.retain(|_| results.next().is_some_and(|result| result.is_err()));
        }
        world.enqueue(&queued).await;
        // Every third user has an order, and is therefore anonymised.
        let orders: Vec<String> = numbers
            .filter(|number| number % 3 == 0)
            .map(|number| format!("INSERT INTO orders (id, clerk_id) VALUES ({number}, 'user_{number:05}');"))
            .collect();
        world.sql(&orders.concat()).await;
    }
    for state in ["pending", "dead"] {
        let kept = world.count(&format!("webhook_queue WHERE state = '{state}'")).await;
        assert!(kept >= people as u64 / 4, "{kept} are {state}");
    }
    assert!(world.count("outbox WHERE payload IS NOT NULL").await > people as u64 * 3 / 2);
    let dump = world.dump().await.join("\n");
    for trace in TRACES {
        assert!(dump.contains(trace), "{trace} was never there");
    }
    if let Some(dump) = world.backup() {
        assert!(TRACES.iter().all(|trace| contains(&dump, trace)), "the search finds existing data");
    }
    // Half of the users are erased at once, the others after a grace period.
    let deletions: Vec<Event> =
        (0..people).map(|number| Event::deleted(&format!("user_{number:05}"), 5000)).collect();
    let (now, later) = deletions.split_at(people / 2);
    let deleted = async |world: &World, deletions: &[Event]| {
        for batch in deletions.chunks(100) {
            let outcomes = world.deliver_all(batch).await;
            let others: Vec<&Outcome> = outcomes.iter().filter(|outcome| **outcome != Applied).collect();
            assert!(others.is_empty(), "{others:?}");
        }
    };
    deleted(&world, now).await;
    world.rules.grace = TimeDelta::days(3);
    deleted(&world, later).await;
    world.pass(TimeDelta::days(3));
    assert_eq!(release_due(&world).await, later.len() as u64);

    let dump = world.dump().await;
    assert!(dump.len() > people);
    for trace in TRACES {
        let found = dump.iter().find(|line| line.contains(trace));
        assert_eq!(found, None, "{trace} remains");
    }
    if let Some(dump) = world.backup() {
        for trace in TRACES {
            assert!(!contains(&dump, trace), "{trace} remains in a backup");
        }
    }
    let receipts = "erasure_receipts WHERE destination = 'database' AND completed_at IS NOT NULL";
    assert_eq!(world.count(receipts).await, people as u64);
    world.store.compact(u64::MAX, None).await.unwrap();
    for trace in TRACES {
        assert!(!world.files_contain(trace), "{trace} remains in the file");
    }
    assert_eq!(world.dump().await, dump);

    // The report lists each sink until it has confirmed the deletion.
    world.pass(TimeDelta::days(31));
    for sink in ["crm", "mail"] {
        assert_eq!(overdue(&world, sink).await, people, "{sink}");
        take_deletions(&world, sink).await;
        assert_eq!(overdue(&world, sink).await, 0, "{sink}");
        let receipts = format!("erasure_receipts WHERE destination = '{sink}' AND completed_at IS NOT NULL");
        assert_eq!(world.count(&receipts).await, people as u64);
    }
    assert_eq!(world.count("outbox_recipients").await, 0);
}

/// Deliver all messages of this sink, which must be deletions.
async fn take_deletions(world: &World, sink: &str) {
    loop {
        let claimed =
            world.store.claim_messages(sink, BEGINNING..=world.now, &lease(world), 100).await.unwrap();
        if claimed.is_empty() {
            return;
        }
        assert!(claimed.iter().all(|message| message.kind == MessageType::deleted(&USER)));
        let ended: Vec<(Claimed, Ending)> =
            claimed.into_iter().map(|message| (message, Ending::Delivered)).collect();
        assert_eq!(world.finish(&ended).await, Ok(ended.len() as u64));
    }
}

/// The number of erasures that this sink has not confirmed within 30 days, from the report.
async fn overdue(world: &World, sink: &str) -> usize {
    let before = world.now - TimeDelta::days(30);
    let (mut count, mut last) = (0, None);
    loop {
        let page = world.store.open_receipts(Some(before), last.as_ref(), 1000).await.unwrap();
        if page.is_empty() {
            return count;
        }
        count += page.iter().filter(|receipt| receipt.destination == sink).count();
        last = page.last().cloned();
    }
}

/// Whether the dump contains the text, as text or in a binary column.
fn contains(dump: &str, trace: &str) -> bool {
    let hex = trace.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    dump.contains(trace) || dump.contains(&hex)
}

async fn a_list_of_erased_users_revives_nobody(mut world: World) {
    let ids = ["user_1", "user_2", "user_3", "user_4", "user_5"];
    world.deliver_all(&ids.map(Event::created)).await;
    world.deliver(&Event::deleted("user_1", 100)).await;
    world.pass(TimeDelta::hours(1));
    for table in TABLES.iter() {
        world.sql(&format!("CREATE TABLE backup_{0} AS SELECT * FROM {0}", table.name)).await;
    }
    // Since the backup: two users were erased, one is in its grace period, and one was never in the backup.
    world
        .deliver_all(&[
            Event::deleted("user_2", 200),
            Event::deleted("user_3", 300),
            Event::deleted("user_9", 1),
        ])
        .await;
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::deleted("user_4", 400)).await;
    let list = export(&world, DateTime::UNIX_EPOCH).await;
    assert_eq!(list.len(), 6);
    assert_eq!(list[5], r#"{"users":5}"#);
    assert_eq!(list[0], r#"{"clerk_id":"user_1","erased_at":"2025-12-31T00:00:00.223Z"}"#);
    // The time of the erasure here counts, not the time of the deletion at Clerk.
    let since = export(&world, world.now).await;
    let named = |id: &str| since.iter().any(|line| line.contains(id));
    assert!(["user_2", "user_3", "user_4", "user_9"].into_iter().all(named), "{since:?}");
    assert_eq!(since.len(), 5, "{since:?}");

    restore(&world).await;
    assert_eq!(world.count("users").await, 4, "the backup has restored the users");
    // A grace period that has begun is kept, whatever the settings at the time of the replay are.
    world.rules.grace = TimeDelta::zero();
    let read = erasure::read_list(&list.join("\n")).unwrap();
    let replay = async || erasure::replay(&*world.store, &read, &world.rules, &clock(&world)).await.unwrap();
    let expected = Replayed { erased: 2, held: 1, kept_out: 1, done_before: 1, resisting: 0 };
    assert_eq!(replay().await, expected);
    let standing: Vec<String> = world.column("SELECT clerk_id FROM users WHERE deleted_at IS NULL").await;
    assert_eq!(standing, ["user_5"]);
    assert_eq!(world.deliver(&Event::updated("user_9", 5000)).await, Stale);
    assert_eq!(receipt(&world, "user_2").await.unwrap().requested_at, after(200));
    let before = world.dump().await;
    let nothing = Replayed { done_before: 5, ..Replayed::default() };
    assert_eq!(replay().await, nothing);
    assert_eq!(world.dump().await, before);
    let again: BTreeSet<String> = export(&world, DateTime::UNIX_EPOCH).await.into_iter().collect();
    assert_eq!(again, list.into_iter().collect(), "the list of the restored database is the same");
}

async fn export(world: &World, since: DateTime<Utc>) -> Vec<String> {
    let mut lines = Vec::new();
    let written = erasure::export(&*world.store, since, |line| {
        lines.push(line);
        Ok::<_, clerk_sync::store::StoreError>(())
    });
    written.await.unwrap();
    lines
}

/// Restore every table from its copy.
async fn restore(world: &World) {
    world.empty().await;
    for table in TABLES.iter() {
        let columns =
            table.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let name = table.name;
        let restored = format!("INSERT INTO {name} ({columns}) SELECT {columns} FROM backup_{name}");
        world
            .sql_of(
                &format!("INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM backup_{name}"),
                &restored,
                &restored,
            )
            .await;
    }
}

async fn columns_that_left_the_allow_list_are_cleared_and_no_others(world: World) {
    orders(&world, "").await;
    world.deliver_all(&["user_1", "user_2", "user_3", "user_4"].map(Event::created)).await;
    world.deliver(&Event::updated("user_2", 1000).set("username", json!(null))).await;
    order(&world, 1, "user_3").await;
    crate::application::erase(&world, &[Event::deleted("user_3", 1000)], &[]).await;
    // A user that the application has marked is still a live user.
    let marked = "2026-01-01T00:00:00.000Z";
    world.sql(&format!("UPDATE users SET deleted_at = '{marked}' WHERE clerk_id = 'user_4'")).await;
    let keep: FieldSet =
        [user::FIRST_NAME, USER.field("banned"), USER.field("public_metadata")].into_iter().collect();
    let before = world.dump().await;
    let counted = minimize(&*world.store, &USER, keep, true).await.unwrap();
    assert_eq!(world.dump().await, before, "a dry run changes nothing");
    assert_eq!((counted.rows, counted.refused), (3, 0));
    let of = |name: &str| counted.columns.iter().find(|(column, _)| *column == name).map(|(_, count)| *count);
    assert_eq!(
        (of("email"), of("username"), of("locked"), of("first_name")),
        (Some(3), Some(2), Some(3), None)
    );
    assert_eq!(counted.columns.len(), USER.columns.len() - 3);

    let whole = world.user("user_1").await.unwrap();
    let anonymised = world.user("user_3").await.unwrap();
    assert_eq!(minimize(&*world.store, &USER, keep, false).await.unwrap(), counted);
    let mut expected = whole;
    for field in USER.fields().filter(|field| !keep.contains(*field)) {
        expected.profile.set(field, clerk_sync::model::Value::Null);
    }
    assert_eq!(world.user("user_1").await.unwrap(), expected, "neither times nor selected columns change");
    assert_eq!(world.user("user_3").await.unwrap(), anonymised);
    assert_eq!(world.text("user_4", user::EMAIL).await, None);
    let again = minimize(&*world.store, &USER, keep, false).await.unwrap();
    assert_eq!((again.rows, again.columns.iter().map(|(_, count)| count).sum::<u64>()), (0, 0));
    assert_eq!(world.count("audit_log").await, 6, "minimising writes no audit lines");
    assert!(!world.files_contain("+15555550100"), "the file no longer contains the phone number");
}

async fn whom_the_application_protects_is_left_alone_and_counted(world: World) {
    let people = (0..50).map(|n| {
        let event = Event::created(&format!("user_{n:02}"));
        if n % 20 == 7 { event.set("first_name", "Bad") } else { event }
    });
    world.deliver_all(&people.collect::<Vec<_>>()).await;
    refuse_name(&world, "Bad").await;
    let keep: FieldSet = [user::FIRST_NAME].into_iter().collect();
    let minimized = minimize(&*world.store, &USER, keep, false).await.unwrap();
    assert_eq!((minimized.rows, minimized.refused), (47, 3));
    assert_eq!(world.value("SELECT count(*) FROM users WHERE email IS NOT NULL").await, "3");
}

async fn dead_deliveries_are_forgotten_after_their_time_and_no_others(mut world: World) {
    refuse_name(&world, "Bad").await;
    let waiting = Event::created("user_1").set("first_name", "Bad");
    let dead: Vec<Event> = (0..5).map(|_| Event::raw("Ada Lovelace")).collect();
    world.deliver(&waiting).await;
    world.deliver_all(&dead[..4]).await;
    world.pass(TimeDelta::days(31));
    world.deliver(&dead[4]).await;
    let before = world.now - TimeDelta::days(30);
    let old = async |kind| world.store.count_old(kind, before).await.unwrap();
    assert_eq!(old(Old::Dead).await, 4);
    assert_eq!(world.store.prune(Old::Dead, before, 3).await.unwrap(), 3);
    assert_eq!(world.store.prune(Old::Dead, before, 3).await.unwrap(), 1);
    assert_eq!(old(Old::Dead).await, 0);
    let mut left = world.column("SELECT svix_id FROM webhook_queue").await;
    left.sort();
    assert_eq!(left, [waiting.svix_id.clone(), dead[4].svix_id.clone()]);
    // A pending delivery is not dead, however old it is.
    assert_eq!(world.store.prune(Old::Dead, world.now + TimeDelta::days(1), 10).await.unwrap(), 1);
    assert_eq!(time(&world.parked().await["received_at"]), at(crate::world::NOW));
}

async fn a_file_is_rewritten_only_after_an_erasure_and_only_if_it_is_not_too_large(world: World) {
    let is_file = world.keeper == Keeper::Sqlite;
    let compact = async |at_most, since| world.store.compact(at_most, since).await.unwrap();
    world.deliver(&Event::created("user_1")).await;
    assert!(!compact(u64::MAX, Some(DateTime::UNIX_EPOCH)).await, "no user was erased");
    world.deliver(&Event::deleted("user_1", 1000)).await;
    assert_eq!(compact(u64::MAX, Some(world.now)).await, is_file);
    assert!(
        !compact(u64::MAX, Some(world.now + TimeDelta::milliseconds(1))).await,
        "no user was erased since then"
    );
    assert!(!compact(10, None).await, "the file is larger than the limit");
    assert_eq!(compact(u64::MAX, None).await, is_file);
    assert_eq!(world.deliver(&Event::created("user_2")).await, Applied);
}

async fn after_an_erasure_the_file_is_rewritten_once_a_day(world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::deleted("user_1", 1000)]).await;
    let keep = Keep { processed: TimeDelta::days(30), dead: TimeDelta::days(30) };
    let rules = world.rules.clone();
    let retention = Retention::new(Arc::clone(&world.store), rules, clock(&world), keep, PRUNE);
    let retention = Worker::new(retention, 1, &Arc::default());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(retention.run(shutdown.clone()));
    let deadline = Instant::now() + Duration::from_secs(10);
    // The files of a server are not rewritten, so no lease records it.
    let leases = if world.keeper == Keeper::Sqlite { 2 } else { 1 };
    while world.count("leases").await != leases {
        assert!(Instant::now() < deadline, "{:?}", world.dump().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(world.count("leases WHERE name = 'retention'").await, 0, "the lease is released");
    if world.keeper == Keeper::Sqlite {
        let day = Duration::from_hours(24);
        let again = world.store.hold_lease("compaction", "another", Duration::from_secs(1), day);
        assert!(!again.await.unwrap(), "the file is rewritten only once a day");
    }
}

mod by_the_program {
    use super::*;
    use crate::service::on_each_keeper;

    on_each_keeper!(
        an_erasure_asks_first_and_says_what_it_did,
        an_erasure_that_resists_stands_in_the_report_until_it_is_done,
        what_is_held_back_is_taken_back_only_if_clerk_still_knows_the_user,
        the_service_erases_when_the_time_is_over,
        a_restored_backup_revives_nobody,
        what_is_kept_only_for_a_time_goes_by_command_and_by_itself,
    );

    fn json_of(host: &Host, arguments: &[&str]) -> Value {
        let finished = host.run(arguments);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
    }

    fn an_erasure_asks_first_and_says_what_it_did(host: &mut Host) {
        let service = host.serve();
        assert_eq!(
            service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada"))).word(),
            "applied"
        );
        let asked = host.run(&["erase", "user_1"]);
        assert_eq!(asked.code, Some(2), "{asked:?}");
        assert!(asked.stderr.contains("--yes"), "{asked:?}");
        assert_eq!(host.count("users"), 1);
        assert_eq!(json_of(host, &["erase", "status", "user_1", "--json"])["state"], "here");
        assert_eq!(host.run(&["erase"]).code, Some(2));
        assert_eq!(host.run(&["erase", "user_1", "status", "user_1"]).code, Some(2));

        let erased = host.run(&["erase", "user_1", "--yes"]).succeeded();
        assert!(erased.contains("user_1 is erased here"), "{erased}");
        assert_eq!(host.count("users"), 0);
        assert_eq!(host.count("audit_log WHERE source = 'cli' AND action = 'USER_HARD_DELETED'"), 1);
        assert!(host.run(&["erase", "user_1", "--yes"]).succeeded().contains("already erased"));
        let status = json_of(host, &["erase", "status", "user_1", "--json"]);
        assert_eq!(
            (&status["state"], &status["receipts"][0]["destination"]),
            (&json!("erased"), &json!("database"))
        );
        assert!(host.run(&["erase", "status", "user_1"]).succeeded().contains("database"));

        let stranger = host.run(&["erase", "user_2", "--yes"]).succeeded();
        assert!(stranger.contains("was not here") && stranger.contains("tombstone"), "{stranger}");
        assert_eq!(
            service.post(&post(&user("user.created", "user_2", milliseconds(), "Ada"))).word(),
            "stale"
        );
        assert_eq!(json_of(host, &["erase", "status", "user_3", "--json"])["state"], "unknown");
        assert_eq!(
            host.run(&["erase", "status", "user_3"]).code,
            Some(1),
            "the exit code is the same as that of `audit`"
        );
        assert_eq!(host.run(&["erase", "now", "user_3", "--yes"]).code, Some(1));
        assert_eq!(host.run(&["erase", "now", "user_3"]).code, Some(2));
    }

    fn an_erasure_that_resists_stands_in_the_report_until_it_is_done(host: &mut Host) {
        host.set("DELETION_POLICY", "delete");
        let service = host.serve();
        service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada")));
        let key = host.key_type();
        host.sql(&format!("CREATE TABLE orders (clerk_id {key} NOT NULL REFERENCES users (clerk_id))"));
        host.sql("INSERT INTO orders VALUES ('user_1')");
        assert_eq!(json_of(host, &["erase", "report", "--json"]), json!([]));
        let resisting = host.run(&["erase", "user_1", "--yes"]);
        assert_eq!(resisting.code, Some(1), "{resisting:?}");
        assert!(resisting.stderr.contains("retries until it succeeds"), "{resisting:?}");
        assert_eq!(json_of(host, &["erase", "status", "user_1", "--json"])["state"], "erasing");
        let report = json_of(host, &["erase", "report", "--json"]);
        assert_eq!((&report[0]["clerk_id"], &report[0]["completed_at"]), (&json!("user_1"), &Value::Null));
        assert_eq!(host.run(&["erase", "report"]).code, Some(0));
        let young = host.run(&["erase", "report", "--overdue"]);
        assert_eq!(young.code, Some(0), "{young:?}");
        assert!(young.stdout.contains("No erasure is overdue"), "{young:?}");
        let overdue = host.run(&["erase", "report", "--overdue", "--days", "0"]);
        assert_eq!(overdue.code, Some(1), "{overdue:?}");
        assert!(overdue.stdout.contains("user_1"), "{overdue:?}");
        eventually("the metric", || {
            service.metric("clerk_sync_erasures_open{destination=\"database\"}") == Some(1.0)
        });
        assert!(service.metric("clerk_sync_erasure_oldest_open_seconds").is_some_and(|age| age >= 0.0));

        host.sql("DELETE FROM orders");
        host.sql(&format!(
            "UPDATE webhook_queue SET next_attempt_at = '{}'",
            Utc::now().format("%Y-%m-%dT%H:%M:%S.%3fZ")
        ));
        eventually("the row goes", || host.count("users") == 0);
        assert_eq!(json_of(host, &["erase", "status", "user_1", "--json"])["state"], "erased");
        eventually("the metric", || {
            service.metric("clerk_sync_erasures_open{destination=\"database\"}") == Some(0.0)
        });
    }

    fn what_is_held_back_is_taken_back_only_if_clerk_still_knows_the_user(host: &mut Host) {
        let clerk = Clerk::of(host, 5);
        host.set("DELETION_GRACE_DAYS", "7");
        assert_eq!(host.run(&["backfill", "--rate", "1000"]).code, Some(0));
        let service = host.serve();
        let ids = clerk.users().ids();
        for id in &ids[..3] {
            assert_eq!(service.post(&post(&deletion(id, milliseconds()))).word(), "applied");
        }
        assert_eq!(host.count("users WHERE deleted_at IS NOT NULL"), 3);
        // All three users are alive at Clerk, so they are reported and left alone.
        let report = host.run(&["reconcile", "--rate", "1000", "--json"]);
        let report: Value = serde_json::from_str(&report.stdout).unwrap();
        assert_eq!((&report["held_here"]["users"], &report["mended"]), (&json!(3), &json!(0)), "{report}");
        assert_eq!(json_of(host, &["erase", "status", &ids[0], "--json"])["state"], "held");

        clerk.users().delete(&ids[1]).unwrap();
        let refused = host.run(&["erase", "cancel", &ids[1]]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("Clerk no longer knows"), "{refused:?}");
        assert_eq!(host.run(&["erase", "cancel", &ids[1], "--force"]).code, Some(1), "Clerk can be asked");
        let kept = host.run(&["erase", "cancel", &ids[0]]).succeeded();
        assert!(kept.contains("is kept"), "{kept}");
        let none = host.run(&["erase", "cancel", &ids[4]]);
        assert_eq!(none.code, Some(1), "{none:?}");

        host.unset("CLERK_SECRET_KEY");
        let unasked = host.run(&["erase", "cancel", &ids[2]]);
        assert_eq!(unasked.code, Some(1), "{unasked:?}");
        assert!(unasked.stderr.contains("CLERK_SECRET_KEY"), "{unasked:?}");
        assert_eq!(host.count("users WHERE deleted_at IS NOT NULL"), 2);
        assert_eq!(host.run(&["erase", "cancel", &ids[2], "--force"]).code, Some(0));
        assert_eq!(host.run(&["erase", "now", &ids[1], "--yes"]).code, Some(0));
        assert_eq!(host.count("users WHERE deleted_at IS NULL"), 4);
        assert_eq!(host.count("users"), 4);
    }

    fn the_service_erases_when_the_time_is_over(host: &mut Host) {
        host.set("DELETION_GRACE_DAYS", "30");
        let replicas = [host.serve(), host.serve()];
        for id in ["user_1", "user_2"] {
            replicas[0].post(&post(&user("user.created", id, milliseconds(), "Ada")));
            assert_eq!(replicas[1].post(&post(&deletion(id, milliseconds()))).word(), "applied");
        }
        assert_eq!(host.count("users"), 2);
        let over = Utc::now().format("%Y-%m-%dT%H:%M:%S.%3fZ");
        host.sql(&format!("UPDATE entity_versions SET held_until = '{over}' WHERE clerk_id = 'user_1'"));
        eventually("the first one goes", || host.count("users") == 1);
        assert_eq!(host.count("users WHERE clerk_id = 'user_2'"), 1);
        assert_eq!(host.count("audit_log WHERE source = 'retention'"), 1);
        assert_eq!(host.count("erasure_receipts WHERE completed_at IS NOT NULL"), 1);
    }

    /// Follow the steps in docs/runbook.md.
    fn a_restored_backup_revives_nobody(host: &mut Host) {
        let service = host.serve();
        for id in ["user_1", "user_2", "user_3"] {
            service.post(&post(&user("user.created", id, milliseconds(), "Ada")));
        }
        let names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
        match host.keeper {
            service::Keeper::Postgres
            | service::Keeper::Mariadb
            | service::Keeper::Mysql
            | service::Keeper::Mongodb => {
                for name in &names {
                    host.sql(&format!("CREATE TABLE backup_{name} AS SELECT * FROM {name}"));
                }
            }
            service::Keeper::Sqlite => {
                host.sql(&format!("VACUUM INTO '{}'", host.path("backup.db")));
            }
        }
        assert_eq!(service.post(&post(&deletion("user_1", milliseconds()))).word(), "applied");
        assert_eq!(host.run(&["erase", "user_2", "--yes"]).code, Some(0));
        let list = host.run(&["erase", "export"]).succeeded();
        assert_eq!(list.lines().count(), 3, "two users, and the line with the count: {list}");
        assert!(!list.contains("Ada") && !list.contains("example.com"), "{list}");
        let file = host.write("erased.jsonl", &list);
        service.stop();

        match host.keeper {
            service::Keeper::Postgres => {
                let mut connection = host.connect();
                connection.run("SET session_replication_role = replica").unwrap();
                for name in &names {
                    connection.run(&format!("DELETE FROM {name}")).unwrap();
                    let restored =
                        format!("INSERT INTO {name} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{name}");
                    connection.run(&restored).unwrap();
                }
            }
            service::Keeper::Mariadb | service::Keeper::Mysql => {
                for table in ["audit_log", "audit_seals"] {
                    host.sql(&format!("DROP TRIGGER {table}_no_delete"));
                }
                for name in &names {
                    host.sql(&format!("DELETE FROM {name}"));
                    let columns = host.value(&format!(
                        "SELECT group_concat('\"' || column_name || '\"') FROM information_schema.columns
                         WHERE table_schema = database() AND table_name = '{name}' AND extra NOT LIKE '%GENERATED%'"
                    ));
                    host.sql(&format!("INSERT INTO {name} ({columns}) SELECT {columns} FROM backup_{name}"));
                }
            }
            service::Keeper::Mongodb => {
                for name in &names {
                    host.sql(&format!("DELETE FROM {name}; INSERT INTO {name} SELECT * FROM backup_{name}"));
                }
            }
            service::Keeper::Sqlite => {
                for name in ["users.db-wal", "users.db-shm"] {
                    _ = std::fs::remove_file(host.path(name));
                }
                std::fs::copy(host.path("backup.db"), host.path("users.db")).unwrap();
            }
        }
        assert_eq!(host.count("users"), 3, "the backup has restored the users");
        for damaged in [format!("{list}user_3\n"), list[..list.len() / 2].to_owned(), String::new()] {
            let wrong = host.write("wrong.jsonl", &damaged);
            let refused = host.run(&["erase", "replay", &wrong]);
            assert_eq!(refused.code, Some(2), "{refused:?}");
            assert_eq!(host.count("users"), 3, "a damaged list changes nothing");
        }
        let replayed = json_of(host, &["erase", "replay", &file, "--json"]);
        assert_eq!(replayed["erased"], 2, "{replayed}");
        assert_eq!(host.sql("SELECT clerk_id FROM users"), [["user_3"]]);
        let again = json_of(host, &["erase", "replay", &file, "--json"]);
        assert_eq!((&again["done_before"], &again["erased"]), (&json!(2), &json!(0)), "{again}");
        let service = host.serve();
        assert_eq!(
            service.post(&post(&user("user.updated", "user_1", milliseconds(), "Ada"))).word(),
            "stale"
        );
        assert_eq!(host.count("users"), 1);
    }

    fn what_is_kept_only_for_a_time_goes_by_command_and_by_itself(host: &mut Host) {
        let service = host.serve();
        service.post(&post(&user("user.created", "user_1", milliseconds(), "Ada")));
        let odd = json!("Ada Lovelace");
        assert_eq!(service.post(&post(&odd)).word(), "parked");
        service.stop();
        let rows = |host: &Host| json_of(host, &["prune", "--dry-run", "--json"])["rows"].clone();
        let of = |each: u64| {
            json!({
                "processed_webhooks": each, "dead_deliveries": each, "delivered_messages": each, "dead_messages": each, "activity": 0,
            })
        };
        assert_eq!(rows(host), of(0));
        host.sql(
            "INSERT INTO outbox (message_id, sink, clerk_id, type, state, created_at, finished_at) VALUES
             ('msg_1', 'crm', 'user_1', 'user.created', 'delivered', '2020-01-01T00:00:00.000Z', NULL),
             ('msg_2', 'crm', 'user_1', 'user.updated', 'dead', '2020-01-01T00:00:00.000Z', NULL)",
        );
        let age = |host: &Host| {
            host.sql("UPDATE outbox SET finished_at = '2020-01-01T00:00:00.000Z'");
            host.sql("UPDATE processed_webhooks SET processed_at = '2020-01-01T00:00:00.000Z'");
            host.sql("UPDATE webhook_queue SET dead_at = '2020-01-01T00:00:00.000Z'");
        };
        age(host);
        assert_eq!(rows(host), of(1));
        assert_eq!(host.count("webhook_queue"), 1, "a dry run changes nothing");
        assert_eq!(host.run(&["prune"]).code, Some(0));
        let left = |host: &Host| {
            host.count("webhook_queue") + host.count("processed_webhooks") + host.count("outbox")
        };
        assert_eq!(left(host), 0);

        host.set("SYNC_FIELDS", "email");
        let counted = json_of(host, &["minimize", "--dry-run", "--json"]);
        assert_eq!(
            (&counted["users"], &counted["columns"]["last_name"], &counted["columns"]["email"]),
            (&json!(1), &json!(1), &Value::Null),
            "{counted}"
        );
        assert_eq!(host.value("SELECT last_name FROM users"), "Lovelace");
        assert_eq!(host.run(&["minimize", "--yes"]).code, Some(0));
        assert_eq!(host.value("SELECT coalesce(last_name, '') FROM users"), "");

        host.unset("SYNC_FIELDS");
        let service = host.serve();
        assert_eq!(service.post(&post(&odd)).word(), "parked");
        service.stop();
        age(host);
        let _service = host.serve();
        eventually("old rows go by themselves", || left(host) == 0);
    }
}
