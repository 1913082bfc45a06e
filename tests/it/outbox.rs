//! Messages for other systems: what every backend promises about them, and what arrives at a sink that is slow, broken or
//! unreachable for a while.

use std::{
    collections::{BTreeMap, HashSet},
    future::pending,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    entity::{USER, user},
    model::{FieldSet, Message, MessageType, Outcome, Source, Subscription},
    store::{Claimed, Deed, Elsewhere, Lease, MessageFilter, MessageState, Old, StoredMessage},
    sync::{
        Clock,
        frontier::BEGINNING,
        operator::{Tally, Which, act},
    },
    work::{
        outbox::{DeliverySettings, Destination, Dispatcher, Outbox, ending::Ending},
        sinks::{Again, Memory, Refusal, Sink},
        worker::{Task, Turn},
    },
};
use serde_json::{Value as Json, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    application::{refuse_name, resist},
    queue::knowing,
    service::{Host, on_each_keeper},
    world::{Event, Keeper, World, after, at, plain, run, time},
};

macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        mod postgres {
            use super::*;
            $(#[test] fn $promise() { run(Keeper::Postgres, super::$promise); })+
        }
        mod sqlite {
            use super::*;
            $(#[test] fn $promise() { run(Keeper::Sqlite, super::$promise); })+
        }
        mod mariadb {
            use super::*;
            $(#[test] fn $promise() { run(Keeper::Mariadb, super::$promise); })+
        }
        mod mysql {
            use super::*;
            $(#[test] fn $promise() { run(Keeper::Mysql, super::$promise); })+
        }
        mod mongodb {
            use super::*;
            $(#[test] fn $promise() {
                if $crate::secantus::applies(stringify!($promise)) {
                    run(Keeper::Mongodb, super::$promise);
                }
            })+
        }
    };
}

promises! {
    // Written.
    a_change_of_the_row_is_told_once_to_every_sink,
    what_changes_nothing_is_told_to_nobody,
    what_is_rolled_back_is_told_to_nobody,
    several_changes_in_one_batch_are_told_step_by_step,
    what_was_found_by_looking_is_told_only_if_somebody_asks_for_it,
    a_sink_that_wants_no_deletions_hears_only_of_those_whom_it_was_told_of,

    // Claimed.
    of_one_user_only_the_oldest_message_is_handed_out,
    a_message_belongs_to_one_until_the_lease_ends,
    many_at_once_get_each_message_once,
    several_are_handed_out_together_and_end_each_in_its_own_way,
    what_was_not_begun_is_as_if_nobody_had_taken_it,
    a_late_answer_changes_nothing,
    a_message_that_is_tried_again_keeps_its_place,
    after_a_dead_message_the_later_ones_go_on,
    a_paused_sink_is_handed_nothing,
    whoever_adds_a_message_while_the_last_one_is_finished_does_not_strand_it,

    // Erased.
    an_erasure_takes_back_what_was_not_told_and_tells_who_ever_heard,
    a_deletion_goes_after_what_is_on_its_way,
    a_deletion_goes_once_whoever_delivered_before_it_is_dead,
    an_erasure_that_is_tried_again_lets_the_deletion_go,
    a_deletion_is_told_once_however_often_it_is_tried,
    a_deletion_is_told_also_if_the_row_cannot_be_erased,
    a_receipt_says_how_far_the_erasure_has_come,
    who_was_created_and_deleted_in_one_batch_was_never_told_of,
    nothing_of_an_erased_user_remains_in_the_outbox,

    // Managed by the operator.
    dead_messages_are_tried_again_in_their_order,
    a_dead_message_that_later_news_overtook_stays_dead,
    a_dead_message_never_comes_back_behind_one_that_is_claimed_at_the_same_time,
    what_is_given_up_is_forgotten_and_lets_the_next_one_go,
    a_deletion_is_never_given_up,
    messages_are_listed_without_what_they_say,
    messages_are_counted_by_sink,
    old_messages_are_forgotten_and_no_others,

    // Delivered by a dispatcher.
    a_message_that_comes_late_behind_the_frontier_is_delivered_once_a_look_from_the_beginning_is_due,
    a_message_from_while_the_clock_was_a_day_ahead_is_due_now,
    a_sink_that_will_never_take_a_message_does_not_hold_up_the_next_one,
    a_deletion_is_tried_for_ever,
    after_its_attempts_a_message_is_dead,
    an_outage_of_an_hour_costs_no_message,
    a_sink_that_asks_for_time_gets_it,
    a_sink_that_panics_or_hangs_is_a_sink_that_fails,
    a_rate_is_kept,
    a_sink_that_becomes_slow_holds_up_nothing_that_it_has_not_begun,
    what_a_dead_process_had_claimed_is_delivered_by_another,
    a_shutdown_finishes_what_is_under_way_and_begins_nothing,
    a_sink_in_trouble_holds_up_no_other_and_gets_everything_in_order_afterwards,

    // Pointed at another address.
    a_sink_that_is_pointed_elsewhere_confirms_no_erasure_where_it_was,
    a_sink_that_is_the_same_system_at_another_address_confirms_erasures_again,
    who_was_told_of_before_addresses_were_kept_counts_as_told_of_where_the_sink_was,
    a_message_that_died_today_is_kept_however_old_it_is,
}

mod commands {
    use super::*;
    on_each_keeper!(an_operator_sees_and_tends_the_outbox);
    use super::an_operator_sees_and_tends_the_outbox;
}

/// Subscribe these sinks to everything.
pub(crate) fn subscribe(world: &mut World, sinks: &[&str]) {
    let subscription = |sink: &&str| subscription(sink, FieldSet::ALL);
    world.rules.subscriptions = sinks.iter().map(subscription).collect();
}

fn subscription(sink: &str, fields: FieldSet) -> Subscription {
    Subscription {
        sink: sink.to_owned(),
        events: MessageType::of(&USER).to_vec(),
        fields: clerk_sync::model::Selection::of(&USER, fields),
    }
}

pub(crate) fn lease(world: &World) -> Lease {
    let token = format!("{:032x}", rand::random::<u128>());
    Lease { token, now: world.now, until: world.now + TimeDelta::seconds(30), address: "here".to_owned() }
}

async fn claim(world: &World, sink: &str) -> Option<Claimed> {
    world.store.claim_messages(sink, BEGINNING..=world.now, &lease(world), 1).await.unwrap().pop()
}

/// Claim a message that must be due.
async fn claimed(world: &World, sink: &str) -> Claimed {
    claim(world, sink).await.expect("a message is due")
}

async fn finish(world: &World, claimed: &Claimed, ending: Ending) -> bool {
    world.finish(&[(claimed.clone(), ending)]).await.unwrap() == 1
}

fn dead() -> Ending {
    Ending::Dead { attempts: 1, error: "status 400".to_owned() }
}

fn again(world: &World, seconds: i64) -> Ending {
    let at = world.now + TimeDelta::seconds(seconds);
    Ending::Again { attempts: 1, at, error: "status 500".to_owned() }
}

/// Deliver all due messages. Returns their types and users.
async fn drain(world: &World, sink: &str) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(message) = claim(world, sink).await {
        told.push(format!("{} {}", message.kind, message.clerk_id));
        assert!(finish(world, &message, Ending::Delivered).await);
    }
    told
}

/// The messages of a sink: type, user and state.
pub(crate) async fn standing(world: &World, sink: &str) -> Vec<String> {
    world
        .column(&format!(
            "SELECT type || ' ' || clerk_id || ' ' || state AS line FROM outbox WHERE sink = '{sink}' ORDER BY id"
        ))
        .await
}

fn named(id: &str, after: i64, name: &str) -> Event {
    Event::updated(id, after).set("first_name", name)
}

async fn a_change_of_the_row_is_told_once_to_every_sink(mut world: World) {
    let names: FieldSet = [user::FIRST_NAME, user::LAST_NAME].into_iter().collect();
    world.rules.subscriptions = Arc::new([subscription("crm", FieldSet::ALL), subscription("mail", names)]);
    let created = Event::created("user_1");
    world.deliver(&created).await;
    world.deliver(&created).await;
    world.deliver(&named("user_1", 1000, "Augusta")).await;
    // A field that this sink may not see.
    world.deliver(&named("user_1", 2000, "Augusta").set("username", "augusta")).await;

    let crm = ["user.created user_1", "user.updated user_1", "user.updated user_1"];
    assert_eq!(drain(&world, "crm").await, crm);
    let message = claimed(&world, "mail").await;
    let told: Json = serde_json::from_str(&message.payload).unwrap();
    assert_eq!(told["id"], message.message_id);
    assert_eq!(told["data"]["first_name"], "Ada");
    assert_eq!(told["data"]["clerk_id"], "user_1");
    assert_eq!(told["data"].as_object().unwrap().len(), 5, "{told}");
    assert_eq!(time(&told["timestamp"]), after(0));
    assert!(finish(&world, &message, Ending::Delivered).await);
    let told: Json = serde_json::from_str(&claimed(&world, "mail").await.payload).unwrap();
    assert_eq!(told["changed_fields"], json!(["first_name"]));
    assert_eq!(told["data"]["first_name"], "Augusta");
    assert_eq!(
        standing(&world, "mail").await,
        ["user.created user_1 delivered", "user.updated user_1 pending"]
    );
    let kept = world.column("SELECT payload FROM outbox WHERE state = 'delivered'").await;
    assert!(
        kept.iter().all(|payload| payload == "null"),
        "the payload of a delivered message is not kept: {kept:?}"
    );
}

async fn what_changes_nothing_is_told_to_nobody(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    subscribe(&mut world, &["crm"]);
    assert_eq!(world.deliver(&Event::updated("user_1", 1000)).await, Outcome::Unchanged);
    assert_eq!(world.deliver(&named("user_1", 500, "Late")).await, Outcome::Stale);
    assert_eq!(world.count("outbox").await, 0);
    assert_eq!(world.count("outbox_recipients").await, 0);
}

async fn what_is_rolled_back_is_told_to_nobody(mut world: World) {
    subscribe(&mut world, &["crm"]);
    refuse_name(&world, "Bad").await;
    let batch = [Event::created("user_1").set("first_name", "Bad"), Event::created("user_2")];
    assert_eq!(world.deliver_all(&batch).await, [Outcome::Parked, Outcome::Applied]);
    assert_eq!(standing(&world, "crm").await, ["user.created user_2 pending"]);
}

async fn several_changes_in_one_batch_are_told_step_by_step(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let batch = [Event::created("user_1"), named("user_1", 1, "B"), named("user_1", 2, "C")];
    world.deliver_all(&batch).await;
    let mut names = Vec::new();
    while let Some(message) = claim(&world, "crm").await {
        let told: Json = serde_json::from_str(&message.payload).unwrap();
        names.push(told["data"]["first_name"].as_str().unwrap().to_owned());
        finish(&world, &message, Ending::Delivered).await;
    }
    assert_eq!(names, ["Ada", "B", "C"]);
}

async fn what_was_found_by_looking_is_told_only_if_somebody_asks_for_it(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let from = |world: &World, event: &Event, source| {
        let mut delivery = world.delivery(event);
        delivery.source = source;
        [delivery]
    };
    for (id, source) in [("user_1", Source::Backfill), ("user_2", Source::Reconcile), ("user_3", Source::Cli)]
    {
        let found = from(&world, &Event::created(id), source);
        assert_eq!(world.apply(&*world.store, &found).await, [Ok(Outcome::Applied)]);
    }
    assert_eq!(world.count("outbox").await, 0);
    world.rules.emit = true;
    let found = from(&world, &named("user_1", 1, "B"), Source::Backfill);
    world.apply(&*world.store, &found).await;
    world.rules.emit = false;
    // An API caller asked for this user, so the sinks receive it without `emit`.
    let asked = from(&world, &Event::created("user_4"), Source::Api);
    world.apply(&*world.store, &asked).await;
    // A sink that received the user, or that wants all deletions, hears of a deletion.
    let gone = from(&world, &Event::deleted("user_1", 2), Source::Reconcile);
    world.apply(&*world.store, &gone).await;
    let gone = from(&world, &Event::deleted("user_2", 2), Source::Reconcile);
    world.apply(&*world.store, &gone).await;
    let told = ["user.created user_4", "user.deleted user_1", "user.deleted user_2"];
    assert_eq!(drain(&world, "crm").await, told);
}

async fn a_sink_that_wants_no_deletions_hears_only_of_those_whom_it_was_told_of(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let mut subscriptions = world.rules.subscriptions.to_vec();
    subscriptions[0].events = vec![MessageType::created(&USER)];
    world.deliver(&Event::created("user_1")).await;
    world.rules.subscriptions = subscriptions.into();
    let mut found = world.delivery(&Event::created("user_2"));
    found.source = Source::Backfill;
    world.apply(&*world.store, &[found]).await;
    world.deliver_all(&[Event::deleted("user_1", 2), Event::deleted("user_2", 2)]).await;
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
}

async fn of_one_user_only_the_oldest_message_is_handed_out(mut world: World) {
    subscribe(&mut world, &["crm", "mail"]);
    world.deliver(&Event::created("user_1")).await;
    world.deliver(&named("user_1", 1, "B")).await;
    world.deliver(&Event::created("user_2")).await;
    let first = claimed(&world, "crm").await;
    let second = claimed(&world, "crm").await;
    assert_eq!(
        (first.clerk_id.as_str(), second.clerk_id.as_str()),
        ("user_1", "user_2"),
        "messages of two users can be claimed together"
    );
    assert!(claim(&world, "crm").await.is_none(), "no message of a user overtakes an earlier one");
    // The other sink is not affected.
    assert_eq!(drain(&world, "mail").await.len(), 3);
    assert!(finish(&world, &first, Ending::Delivered).await);
    let third = claimed(&world, "crm").await;
    assert_eq!((third.clerk_id.as_str(), third.kind), ("user_1", MessageType::updated(&USER)));
}

async fn a_message_belongs_to_one_until_the_lease_ends(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    world.pass(TimeDelta::seconds(29));
    assert!(claim(&world, "crm").await.is_none());
    world.pass(TimeDelta::seconds(1));
    let second = claimed(&world, "crm").await;
    assert_eq!(
        (first.id, &first.message_id),
        (second.id, &second.message_id),
        "the holder's lease has ended"
    );
}

async fn many_at_once_get_each_message_once(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let users: Vec<Event> = (0..20).map(|n| Event::created(&format!("user_{n}"))).collect();
    world.deliver_all(&users).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (store, lease) = (Arc::clone(&world.store), lease(&world));
        claims.spawn(
            async move { store.claim_messages("crm", BEGINNING..=lease.now, &lease, 3).await.unwrap() },
        );
    }
    let got: Vec<i64> = claims.join_all().await.into_iter().flatten().map(|message| message.id).collect();
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len(), "{got:?}");
    let mut all = got.len();
    while claim(&world, "crm").await.is_some() {
        all += 1;
    }
    assert_eq!(all, 20);
}

async fn several_are_handed_out_together_and_end_each_in_its_own_way(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let users = ["user_1", "user_2", "user_3", "user_4", "user_5"];
    for user in users {
        world.deliver_all(&[Event::created(user), named(user, 1, "B")]).await;
    }
    let claimed = world.store.claim_messages("crm", BEGINNING..=world.now, &lease(&world), 4).await.unwrap();
    assert_eq!(claimed.iter().map(|message| message.clerk_id.as_str()).collect::<Vec<_>>(), users[..4]);
    world.deliver(&Event::deleted("user_4", 2)).await;
    let endings = [Ending::Delivered, again(&world, 60), dead(), again(&world, 60)];
    let mut ended: Vec<(Claimed, Ending)> = claimed.into_iter().zip(endings).collect();
    // A result under another holder's lease.
    let mut late = ended[1].clone();
    late.0.lease = "0".repeat(32);
    ended.insert(0, late);
    assert_eq!(world.finish(&ended).await, Ok(4));
    let told = ["user.updated user_1", "user.updated user_3", "user.deleted user_4", "user.created user_5"];
    let next = world.store.claim_messages("crm", BEGINNING..=world.now, &lease(&world), 10).await.unwrap();
    let mut next: Vec<String> =
        next.iter().map(|message| format!("{} {}", message.kind, message.clerk_id)).collect();
    next.sort_by_key(|line| line.split(' ').next_back().map(ToOwned::to_owned));
    assert_eq!(next, told);
    let receipts = "erasure_receipts WHERE destination = 'crm' AND attempts = 0";
    assert_eq!(world.count(receipts).await, 1);
}

async fn what_was_not_begun_is_as_if_nobody_had_taken_it(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    assert!(finish(&world, &first, again(&world, 5)).await);
    world.pass(TimeDelta::seconds(5));
    world.deliver(&Event::created("user_2")).await;
    let before = world.dump().await;
    let taken = world.store.claim_messages("crm", BEGINNING..=world.now, &lease(&world), 2).await.unwrap();
    let ended: Vec<(Claimed, Ending)> = taken.into_iter().map(|message| (message, Ending::Untried)).collect();
    assert_eq!(world.finish(&ended).await, Ok(2));
    let without_times = |dump: &[String]| -> Vec<String> {
        dump.iter()
            // Claiming has already recorded that the sink may receive the user.
            .filter(|line| !line.starts_with("outbox_recipients"))
            .map(|line| line.replace("2026", "").split("next_attempt_at").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(without_times(&world.dump().await), without_times(&before));
    let once_more = claimed(&world, "crm").await;
    assert_eq!((once_more.id, once_more.attempts), (first.id, 1), "it keeps its place");
    assert!(finish(&world, &once_more, Ending::Untried).await);
    // An untried deletion does not count as tried either.
    world.deliver(&Event::deleted("user_1", 2)).await;
    let taken = world.store.claim_messages("crm", BEGINNING..=world.now, &lease(&world), 2).await.unwrap();
    let kinds: Vec<MessageType> = taken.iter().map(|message| message.kind).collect();
    assert_eq!(kinds, [MessageType::created(&USER), MessageType::deleted(&USER)]);
    let ended: Vec<(Claimed, Ending)> = taken.into_iter().map(|message| (message, Ending::Untried)).collect();
    assert_eq!(world.finish(&ended).await, Ok(2));
    assert_eq!(world.count("erasure_receipts WHERE destination = 'crm' AND attempts = 0").await, 1);
    assert_eq!(drain(&world, "crm").await, ["user.created user_2", "user.deleted user_1"]);
}

async fn a_late_answer_changes_nothing(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let late = claimed(&world, "crm").await;
    world.pass(TimeDelta::seconds(31));
    let current = claimed(&world, "crm").await;
    let before = world.dump().await;
    for ending in [Ending::Delivered, dead(), again(&world, 1)] {
        assert!(!finish(&world, &late, ending).await);
    }
    assert_eq!(world.dump().await, before);
    assert!(finish(&world, &current, Ending::Delivered).await);
    assert!(!finish(&world, &current, dead()).await, "once");
    assert_eq!(
        standing(&world, "crm").await,
        ["user.created user_1 delivered", "user.updated user_1 pending"]
    );
}

async fn a_message_that_is_tried_again_keeps_its_place(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    assert!(finish(&world, &first, again(&world, 60)).await);
    world.deliver(&named("user_1", 2, "C")).await;
    assert!(claim(&world, "crm").await.is_none());
    let row = &world.rows("SELECT * FROM outbox ORDER BY id").await[0];
    assert_eq!((plain(&row["attempts"]).as_str(), plain(&row["last_error"]).as_str()), ("1", "status 500"));
    world.pass(TimeDelta::seconds(60));
    let second = claimed(&world, "crm").await;
    assert_eq!((second.id, second.attempts, &second.payload), (first.id, 1, &first.payload));
}

async fn after_a_dead_message_the_later_ones_go_on(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    assert!(finish(&world, &first, dead()).await);
    assert_eq!(drain(&world, "crm").await, ["user.updated user_1"]);
    assert_eq!(standing(&world, "crm").await, ["user.created user_1 dead", "user.updated user_1 delivered"]);
}

async fn a_paused_sink_is_handed_nothing(mut world: World) {
    subscribe(&mut world, &["crm", "mail"]);
    world.deliver(&Event::created("user_1")).await;
    assert!(world.store.set_paused("crm", Some(world.now)).await.unwrap());
    assert!(!world.store.set_paused("crm", Some(world.now + TimeDelta::seconds(5))).await.unwrap());
    assert!(claim(&world, "crm").await.is_none());
    assert!(claim(&world, "mail").await.is_some());
    assert_eq!(world.store.paused_sinks().await.unwrap(), [("crm".to_owned(), world.now)]);
    assert!(world.store.set_paused("crm", None).await.unwrap());
    assert!(!world.store.set_paused("crm", None).await.unwrap());
    assert!(claim(&world, "crm").await.is_some());
}

/// The writer assumes that the finisher frees its message, and the finisher does not see that message yet.
async fn whoever_adds_a_message_while_the_last_one_is_finished_does_not_strand_it(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let world = Arc::new(world);
    for round in 1..=30 {
        let last = claimed(&world, "crm").await;
        let (writing, finishing) = (Arc::clone(&world), Arc::clone(&world));
        let event = named("user_1", round, &format!("Ada {round}"));
        let write = tokio::spawn(async move { writing.deliver(&event).await });
        let end = tokio::spawn(async move { finish(&finishing, &last, Ending::Delivered).await });
        assert_eq!(write.await.unwrap(), Outcome::Applied);
        assert!(end.await.unwrap());
    }
    assert_eq!(drain(&world, "crm").await, ["user.updated user_1"]);
}

async fn an_erasure_takes_back_what_was_not_told_and_tells_who_ever_heard(mut world: World) {
    subscribe(&mut world, &["crm", "mail", "old"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B"), Event::created("user_2")]).await;
    let delivered = claimed(&world, "crm").await;
    finish(&world, &delivered, Ending::Delivered).await;
    let refused = claimed(&world, "mail").await;
    finish(&world, &refused, dead()).await;
    // A sink that is no longer configured received the user too, and so did one that wants no deletions.
    world.rules.subscriptions = world.rules.subscriptions[..2].iter().cloned().collect();
    world.deliver(&Event::deleted("user_1", 2)).await;
    for sink in ["crm", "mail", "old"] {
        let told = drain(&world, sink).await;
        assert_eq!(told, ["user.created user_2", "user.deleted user_1"], "{sink}");
    }
    assert_eq!(world.count("outbox").await, 6, "the delivered and the dead message are deleted too");
    let told = world.column("SELECT clerk_id || ' ' || sink AS line FROM outbox_recipients ORDER BY 1").await;
    assert_eq!(told, ["user_2 crm", "user_2 mail", "user_2 old"]);
}

async fn a_deletion_goes_after_what_is_on_its_way(mut world: World) {
    subscribe(&mut world, &["crm"]);
    for (id, ending) in [("user_1", Ending::Delivered), ("user_2", dead()), ("user_3", again(&world, 3600))] {
        world.deliver(&Event::created(id)).await;
        let under_way = claimed(&world, "crm").await;
        world.deliver(&Event::deleted(id, 1)).await;
        assert!(claim(&world, "crm").await.is_none(), "a message about the user is still under way");
        let kept = world.column("SELECT payload FROM outbox WHERE type <> 'user.deleted'").await;
        assert!(kept.iter().all(|payload| payload == "null"), "{kept:?}");
        assert!(finish(&world, &under_way, ending).await);
        assert_eq!(drain(&world, "crm").await, [format!("user.deleted {id}")]);
    }
    assert_eq!(
        world.value("SELECT count(*) AS n FROM outbox WHERE state IN ('pending', 'dead')").await,
        "0",
        "withdrawn messages are neither retried nor kept"
    );
}

async fn a_deletion_goes_once_whoever_delivered_before_it_is_dead(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let under_way = claimed(&world, "crm").await;
    world.deliver(&Event::deleted("user_1", 1)).await;
    world.pass(TimeDelta::seconds(29));
    assert!(claim(&world, "crm").await.is_none());
    world.pass(TimeDelta::seconds(1));
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
    assert!(!finish(&world, &under_way, Ending::Delivered).await);
    assert_eq!(standing(&world, "crm").await, ["user.deleted user_1 delivered"]);
}

async fn an_erasure_that_is_tried_again_lets_the_deletion_go(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    claimed(&world, "crm").await;
    let deletion = Event::deleted("user_1", 1);
    assert_eq!(world.deliver(&deletion).await, Outcome::Parked);
    // The process that claimed the message has died, and no dispatcher has looked since.
    world.pass(TimeDelta::minutes(1));
    assert_eq!(world.deliver(&deletion.again()).await, Outcome::Parked);
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
}

async fn a_deletion_is_told_once_however_often_it_is_tried(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    let deletion = Event::deleted("user_1", 1);
    assert_eq!(world.deliver(&deletion).await, Outcome::Parked);
    assert_eq!(world.deliver(&deletion).await, Outcome::Parked);
    assert_eq!(world.deliver(&deletion.again()).await, Outcome::Parked);
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.deliver(&deletion).await, Outcome::Parked, "the row still resists");
    assert!(drain(&world, "crm").await.is_empty(), "the sink has erased the user");
    let receipt = &world.rows("SELECT * FROM erasure_receipts WHERE destination = 'crm'").await[..];
    assert_eq!(receipt.len(), 1, "{receipt:?}");
    assert_eq!(time(&receipt[0]["completed_at"]), world.now - TimeDelta::hours(1));
}

async fn a_deletion_is_told_also_if_the_row_cannot_be_erased(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    assert_eq!(drain(&world, "crm").await.len(), 2);
    resist(&mut world, &["user_1"]).await;
    world.deliver_all(&[Event::deleted("user_1", 1), Event::deleted("user_2", 1)]).await;
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1", "user.deleted user_2"]);
}

async fn a_receipt_says_how_far_the_erasure_has_come(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    drain(&world, "crm").await;
    let requested = after(1);
    world.deliver(&Event::deleted("user_1", 1)).await;
    let receipt = async |world: &World| {
        let mut rows = world.rows("SELECT * FROM erasure_receipts WHERE destination = 'crm'").await;
        assert_eq!(rows.len(), 1);
        rows.remove(0)
    };
    let open = receipt(&world).await;
    assert_eq!((plain(&open["clerk_id"]).as_str(), plain(&open["destination"]).as_str()), ("user_1", "crm"));
    assert_eq!((time(&open["requested_at"]), plain(&open["completed_at"]).as_str()), (requested, "null"));
    let message = claimed(&world, "crm").await;
    finish(&world, &message, again(&world, 5)).await;
    let tried = receipt(&world).await;
    assert_eq!(
        (plain(&tried["attempts"]).as_str(), plain(&tried["last_error"]).as_str()),
        ("1", "status 500")
    );
    assert_eq!(plain(&tried["completed_at"]), "null");
    assert_eq!(world.count("outbox_recipients").await, 1);
    world.pass(TimeDelta::seconds(5));
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
    let done = receipt(&world).await;
    assert_eq!((time(&done["requested_at"]), time(&done["completed_at"])), (requested, world.now));
    assert_eq!((plain(&done["attempts"]).as_str(), plain(&done["last_error"]).as_str()), ("2", "null"));
    assert_eq!(world.count("outbox_recipients").await, 0);
}

async fn who_was_created_and_deleted_in_one_batch_was_never_told_of(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), Event::deleted("user_1", 1)]).await;
    assert_eq!(world.count("outbox").await, 0);
    assert_eq!(world.count("erasure_receipts WHERE destination = 'crm'").await, 0);
}

async fn nothing_of_an_erased_user_remains_in_the_outbox(mut world: World) {
    subscribe(&mut world, &["crm", "mail", "slow"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "Augusta")]).await;
    let refused = claimed(&world, "crm").await;
    finish(&world, &refused, dead()).await;
    let delivered = claimed(&world, "mail").await;
    finish(&world, &delivered, Ending::Delivered).await;
    let under_way = claimed(&world, "slow").await;
    world.deliver(&Event::deleted("user_1", 2)).await;
    let dump = world.dump().await;
    for word in ["Ada", "Augusta", "Lovelace", "ada@example.com", "+15555550100", "203.0.113.7"] {
        assert!(!dump.iter().any(|line| line.contains(word)), "{word} is in {dump:#?}");
        assert!(!world.files_contain(word), "{word} is in a file");
    }
    assert!(under_way.payload.contains("Lovelace"));
}

fn tally(found: u64, done: u64, deletions: u64) -> Tally<i64> {
    Tally { found, done, deletions, missing: Vec::new() }
}

async fn dead_messages_are_tried_again_in_their_order(mut world: World) {
    subscribe(&mut world, &["crm", "mail"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B"), named("user_1", 2, "C")]).await;
    world.deliver(&Event::created("user_2")).await;
    for _ in 0..2 {
        let message = claimed(&world, "crm").await;
        finish(&world, &message, dead()).await;
    }
    let states = ["dead", "dead", "pending", "pending"];
    assert_eq!(world.column("SELECT state FROM outbox WHERE sink = 'crm' ORDER BY id").await, states);
    let store = &*world.store;
    let one = Which::Of("crm".to_owned());
    assert_eq!(
        act::<StoredMessage>(store, &one, Deed::Retry, true, world.now).await.unwrap(),
        tally(2, 0, 0)
    );
    assert_eq!(
        act::<StoredMessage>(store, &one, Deed::Retry, false, world.now).await.unwrap(),
        tally(2, 2, 0)
    );
    assert_eq!(
        act::<StoredMessage>(store, &Which::All, Deed::Retry, false, world.now).await.unwrap(),
        tally(0, 0, 0)
    );
    let told = drain(&world, "crm").await;
    assert_eq!(told.iter().filter(|told| told.ends_with("user_1")).count(), 3);
    let of_one: Vec<&String> = told.iter().filter(|told| told.ends_with("user_1")).collect();
    assert_eq!(of_one, ["user.created user_1", "user.updated user_1", "user.updated user_1"]);
}

async fn a_dead_message_that_later_news_overtook_stays_dead(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    finish(&world, &first, dead()).await;
    let second = claimed(&world, "crm").await;
    let ids = Which::These(vec![first.id, first.id, 4711]);
    let overtaken = Tally { missing: vec![4711], ..tally(1, 0, 0) };
    let retried = act::<StoredMessage>(&*world.store, &ids, Deed::Retry, false, world.now).await.unwrap();
    assert_eq!(retried, overtaken, "the later message is under way");
    finish(&world, &second, Ending::Delivered).await;
    assert_eq!(
        act::<StoredMessage>(&*world.store, &ids, Deed::Retry, false, world.now).await.unwrap(),
        overtaken
    );
    assert_eq!(standing(&world, "crm").await, ["user.created user_1 dead", "user.updated user_1 delivered"]);
}

async fn a_dead_message_never_comes_back_behind_one_that_is_claimed_at_the_same_time(mut world: World) {
    subscribe(&mut world, &["crm"]);
    for round in 0..20 {
        let user = format!("user_{round}");
        world.deliver_all(&[Event::created(&user), named(&user, 1, "B")]).await;
        let first = claimed(&world, "crm").await;
        finish(&world, &first, dead()).await;
        let (store, lease, now, id) = (Arc::clone(&world.store), lease(&world), world.now, first.id);
        let retrying =
            tokio::spawn(async move { store.tend_messages(&[id], Deed::Retry, now).await.unwrap() });
        let claimed_meanwhile =
            world.store.claim_messages("crm", BEGINNING..=now, &lease, 1).await.unwrap().pop();
        let retried = retrying.await.unwrap() == 1;
        match claimed_meanwhile {
            Some(second) if second.id != first.id => assert!(!retried, "the later message is under way"),
            _ => assert!(retried),
        }
        world.pass(TimeDelta::minutes(1));
        let told = drain(&world, "crm").await;
        assert_eq!(told.len(), if retried { 2 } else { 1 });
        assert_eq!(told.last(), Some(&format!("user.updated {user}")));
    }
}

async fn what_is_given_up_is_forgotten_and_lets_the_next_one_go(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B"), Event::created("user_2")]).await;
    let under_way = claimed(&world, "crm").await;
    let ids: Vec<i64> = world
        .column("SELECT id FROM outbox ORDER BY id")
        .await
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    let all = Which::These(ids.clone());
    let given_up = act::<StoredMessage>(&*world.store, &all, Deed::Discard, false, world.now).await.unwrap();
    assert_eq!(given_up, tally(3, 2, 0), "a message under way stays");
    finish(&world, &under_way, again(&world, 5)).await;
    world.deliver(&named("user_1", 2, "C")).await;
    assert!(claim(&world, "crm").await.is_none());
    assert_eq!(
        act::<StoredMessage>(&*world.store, &all, Deed::Discard, false, world.now).await.unwrap(),
        tally(3, 1, 0)
    );
    assert_eq!(drain(&world, "crm").await, ["user.updated user_1"]);
    let kept = world.column("SELECT payload FROM outbox WHERE state = 'discarded'").await;
    assert_eq!(kept, ["null", "null", "null"]);
}

async fn a_deletion_is_never_given_up(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    drain(&world, "crm").await;
    world.deliver(&Event::deleted("user_1", 1)).await;
    let deletion = world.value("SELECT id FROM outbox WHERE type = 'user.deleted'").await.parse().unwrap();
    let given_up =
        act::<StoredMessage>(&*world.store, &Which::These(vec![deletion]), Deed::Discard, false, world.now)
            .await
            .unwrap();
    assert_eq!(given_up, tally(1, 0, 1));
    assert_eq!(drain(&world, "crm").await, ["user.deleted user_1"]);
}

async fn messages_are_listed_without_what_they_say(mut world: World) {
    subscribe(&mut world, &["crm", "mail"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let first = claimed(&world, "crm").await;
    finish(&world, &first, dead()).await;
    let list = async |sink: Option<&str>, state, after, limit| {
        let filter = MessageFilter { sink: sink.map(ToOwned::to_owned), state, after, ids: None };
        world.store.messages(&filter, limit).await.unwrap()
    };
    let all = list(None, None, None, 10).await;
    assert_eq!(all.len(), 4);
    assert!(all.is_sorted_by_key(|message| message.id));
    assert_eq!(list(None, None, Some(all[1].id), 1).await, all[2..3]);
    let dead = list(Some("crm"), Some(MessageState::Dead), None, 10).await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id, dead[0].last_error.as_deref()), (first.id, Some("status 400")));
    assert_eq!((dead[0].attempts, dead[0].finished_at), (1, Some(world.now)));
    assert!(list(Some("mail"), Some(MessageState::Dead), None, 10).await.is_empty());
    assert!(!format!("{all:?} {first:?}").contains("Ada"), "the log contains no personal data");
    let filter = MessageFilter { ids: Some(vec![4711, first.id]), ..MessageFilter::default() };
    assert_eq!(world.store.messages(&filter, 10).await.unwrap(), dead);
    assert_eq!(world.store.message_body(first.id).await.unwrap(), Some(first.payload));
    assert_eq!(world.store.message_body(4711).await.unwrap(), None);
}

async fn messages_are_counted_by_sink(mut world: World) {
    assert!(world.store.outbox_depth().await.unwrap().is_empty());
    subscribe(&mut world, &["crm", "mail"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let began = world.now;
    world.pass(TimeDelta::seconds(10));
    world.deliver(&Event::created("user_2")).await;
    let first = claimed(&world, "crm").await;
    finish(&world, &first, dead()).await;
    drain(&world, "mail").await;
    let [crm] = &world.store.outbox_depth().await.unwrap()[..] else {
        panic!("delivered messages must not be counted")
    };
    assert_eq!((crm.sink.as_str(), crm.pending, crm.dead, crm.oldest), ("crm", 2, 1, Some(began)));
}

async fn old_messages_are_forgotten_and_no_others(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let users: Vec<Event> = (0..6).map(|n| Event::created(&format!("user_{n}"))).collect();
    world.deliver_all(&users).await;
    for ending in [Ending::Delivered, Ending::Delivered, dead(), dead()] {
        let message = claimed(&world, "crm").await;
        finish(&world, &message, ending).await;
    }
    world.pass(TimeDelta::days(1));
    let message = claimed(&world, "crm").await;
    finish(&world, &message, Ending::Delivered).await;
    let (old, older) = (world.now - TimeDelta::hours(1), world.now - TimeDelta::days(2));
    let prune = async |kind, before, limit| world.store.prune(kind, before, limit).await.unwrap();
    assert_eq!(prune(Old::Told, older, 10).await, 0);
    assert_eq!(prune(Old::Told, old, 1).await, 1);
    assert_eq!(prune(Old::Told, old, 10).await, 1);
    assert_eq!(prune(Old::Untold, older, 10).await, 0);
    assert_eq!(prune(Old::Untold, old, 10).await, 2);
    let mut left = world.column("SELECT state FROM outbox").await;
    left.sort();
    assert_eq!(left, ["delivered", "pending"]);
}

/// How a sink treats a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Takes,
    Fails,
    /// It asks the dispatcher to wait this many seconds.
    Busy(u64),
    Refuses,
    Hangs,
    Panics,
    /// It takes this many milliseconds to answer.
    Slow(u64),
}

/// A sink that records the messages it received.
struct Recorder {
    mood: Mutex<Mood>,
    /// The accepted messages, including repeats.
    taken: Mutex<Vec<Message>>,
    tried: Mutex<Vec<String>>,
}

impl Recorder {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self { mood: Mutex::new(mood), taken: Mutex::default(), tried: Mutex::default() })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn tries(&self) -> usize {
        self.tried.lock().unwrap().len()
    }

    /// The messages of each user, without repeats: types and first names.
    fn heard(&self) -> BTreeMap<String, Vec<String>> {
        let mut seen = HashSet::new();
        let mut heard: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for message in self.taken.lock().unwrap().iter() {
            if seen.insert(message.id.clone()) {
                let name = message.text("first_name").unwrap_or_default();
                let of_user = heard.entry(message.clerk_id().unwrap().to_string()).or_default();
                of_user.push(format!("{} {name}", message.kind));
            }
        }
        heard
    }
}

#[async_trait]
impl Sink for Recorder {
    async fn deliver(&self, message: &Message, body: &str, _: &dyn Memory) -> Result<(), Refusal> {
        assert_eq!(&Message::read(message.kind, body).unwrap(), message);
        self.tried.lock().unwrap().push(message.id.clone());
        let mood = *self.mood.lock().unwrap();
        let refusal = |again| Err(Refusal { reason: format!("it {mood:?}"), again });
        match mood {
            Mood::Takes => {}
            Mood::Slow(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
            Mood::Fails => return refusal(Again::Later(None)),
            Mood::Busy(seconds) => return refusal(Again::Later(Some(Duration::from_secs(seconds)))),
            Mood::Refuses => return refusal(Again::Never),
            Mood::Hangs => pending().await,
            Mood::Panics => panic!("the sink panics"),
        }
        self.taken.lock().unwrap().push(message.clone());
        Ok(())
    }
}

/// A clock that a test moves by hand.
#[derive(Clone)]
struct Hand(Arc<AtomicI64>);

impl Hand {
    fn at(now: DateTime<Utc>) -> Self {
        Self(Arc::new(AtomicI64::new(now.timestamp_millis())))
    }

    fn clock(&self) -> Clock {
        let hand = self.clone();
        Arc::new(move || hand.now())
    }

    fn now(&self) -> DateTime<Utc> {
        at(self.0.load(Ordering::SeqCst))
    }

    fn pass(&self, time: TimeDelta) {
        self.0.fetch_add(time.num_milliseconds(), Ordering::SeqCst);
    }
}

fn destination(sink: &str, recorder: &Arc<Recorder>, settings: DeliverySettings) -> Destination {
    Destination {
        subscription: subscription(sink, FieldSet::ALL),
        settings,
        sink: Arc::clone(recorder) as Arc<dyn Sink>,
        address: "here".to_owned(),
    }
}

fn dispatcher(
    world: &World,
    recorder: &Arc<Recorder>,
    settings: DeliverySettings,
    hand: &Hand,
) -> Dispatcher {
    Dispatcher::new(Arc::clone(&world.store), destination("crm", recorder, settings), hand.clock())
}

async fn attempts(world: &World) -> String {
    world.value("SELECT attempts FROM outbox WHERE state = 'pending'").await
}

async fn a_message_that_comes_late_behind_the_frontier_is_delivered_once_a_look_from_the_beginning_is_due(
    mut world: World,
) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    world.pass(-TimeDelta::hours(1));
    world.deliver(&Event::created("user_2")).await;
    world.pass(TimeDelta::hours(1));
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    let mut dispatcher = dispatcher(&world, &recorder, DeliverySettings::default(), &hand);
    dispatcher.frontier = knowing(world.now, Duration::from_millis(100));
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(recorder.heard().keys().collect::<Vec<_>>(), ["user_1"]);
    let next = dispatcher.next().await.unwrap().unwrap();
    assert!(next <= Duration::from_secs(3), "{next:?}");
    tokio::time::sleep(next).await;
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert!(recorder.heard().contains_key("user_2"));
}

async fn a_message_from_while_the_clock_was_a_day_ahead_is_due_now(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.pass(TimeDelta::days(1));
    world.deliver(&Event::created("user_1")).await;
    world.pass(-TimeDelta::days(1));
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    let dispatcher = dispatcher(&world, &recorder, DeliverySettings::default(), &hand);
    assert_eq!(dispatcher.next().await, Ok(Some(Duration::ZERO)));
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(recorder.heard().keys().collect::<Vec<_>>(), ["user_1"]);
    assert_eq!(dispatcher.turn().await, Ok(Turn::Idle));
}

async fn a_sink_that_will_never_take_a_message_does_not_hold_up_the_next_one(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let (recorder, hand) = (Recorder::new(Mood::Refuses), Hand::at(world.now));
    let dispatcher = dispatcher(&world, &recorder, DeliverySettings::default(), &hand);
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    recorder.set(Mood::Takes);
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(dispatcher.turn().await, Ok(Turn::Idle));
    assert_eq!(standing(&world, "crm").await, ["user.created user_1 dead", "user.updated user_1 delivered"]);
}

async fn a_deletion_is_tried_for_ever(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    drain(&world, "crm").await;
    world.deliver(&Event::deleted("user_1", 1)).await;
    let (recorder, hand) = (Recorder::new(Mood::Refuses), Hand::at(world.now));
    let settings = DeliverySettings { attempts: 3, ..DeliverySettings::default() };
    let dispatcher = dispatcher(&world, &recorder, settings, &hand);
    for _ in 0..20 {
        assert_eq!(dispatcher.turn().await, Ok(Turn::More));
        assert_eq!(dispatcher.turn().await, Ok(Turn::Idle), "the retry is not due at once");
        hand.pass(TimeDelta::hours(1));
    }
    assert_eq!(recorder.tries(), 20);
    recorder.set(Mood::Takes);
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(recorder.heard()["user_1"], ["user.deleted "]);
}

async fn after_its_attempts_a_message_is_dead(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let (recorder, hand) = (Recorder::new(Mood::Fails), Hand::at(world.now));
    let settings = DeliverySettings { attempts: 3, ..DeliverySettings::default() };
    let dispatcher = dispatcher(&world, &recorder, settings, &hand);
    for _ in 0..3 {
        assert_eq!(standing(&world, "crm").await, ["user.created user_1 pending"]);
        assert_eq!(dispatcher.turn().await, Ok(Turn::More));
        hand.pass(TimeDelta::hours(1));
    }
    let row = &world.rows("SELECT * FROM outbox").await[0];
    assert_eq!((plain(&row["state"]).as_str(), plain(&row["attempts"]).as_str()), ("dead", "3"));
    assert_eq!(plain(&row["last_error"]), "it Fails");
    assert!(plain(&row["payload"]).contains("user_1"), "the payload is kept for a retry by hand");
}

async fn an_outage_of_an_hour_costs_no_message(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let (recorder, hand) = (Recorder::new(Mood::Fails), Hand::at(world.now));
    let settings = DeliverySettings { attempts: 6, ..DeliverySettings::default() };
    let dispatcher = dispatcher(&world, &recorder, settings, &hand);
    // The breaker waits by the real clock, which the test cannot move; its first waits are short.
    let deadline = Instant::now() + Duration::from_secs(25);
    while recorder.tries() < 8 {
        assert!(Instant::now() < deadline, "only {} tries", recorder.tries());
        let before = recorder.tries();
        dispatcher.turn().await.unwrap();
        if recorder.tries() > before {
            hand.pass(TimeDelta::minutes(2));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(attempts(&world).await, "5", "only the attempts before the breaker opened count");
    // A day later, the dispatcher assumes that this message may be the cause.
    hand.pass(TimeDelta::days(1));
    let deadline = Instant::now() + Duration::from_secs(25);
    while standing(&world, "crm").await == ["user.created user_1 pending"] {
        assert!(Instant::now() < deadline, "the message blocks the sink permanently");
        dispatcher.turn().await.unwrap();
        hand.pass(TimeDelta::hours(1));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(standing(&world, "crm").await, ["user.created user_1 dead"]);
}

async fn a_sink_that_asks_for_time_gets_it(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    let (recorder, hand) = (Recorder::new(Mood::Busy(1)), Hand::at(world.now));
    let dispatcher = dispatcher(&world, &recorder, DeliverySettings::default(), &hand);
    let asked = Instant::now();
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    recorder.set(Mood::Takes);
    assert_eq!(dispatcher.turn().await, Ok(Turn::Idle), "the other user's message waits too");
    let next = world.column("SELECT next_attempt_at FROM outbox WHERE attempts = 1").await;
    assert!(time(&next[0].as_str().into()) >= world.now + TimeDelta::seconds(1), "{next:?}");
    hand.pass(TimeDelta::seconds(5));
    while recorder.tries() < 3 {
        dispatcher.turn().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(asked.elapsed() < Duration::from_secs(20), "never delivered");
    }
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!(recorder.heard().len(), 2);
}

async fn a_sink_that_panics_or_hangs_is_a_sink_that_fails(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let (recorder, hand) = (Recorder::new(Mood::Panics), Hand::at(world.now));
    let settings = DeliverySettings { timeout: Duration::from_secs(2), ..DeliverySettings::default() };
    let dispatcher = dispatcher(&world, &recorder, settings, &hand);
    for (mood, tried, why) in
        [(Mood::Panics, "1", "a bug in clerk-sync: see the log"), (Mood::Hangs, "2", "no answer in time")]
    {
        recorder.set(mood);
        assert_eq!(dispatcher.turn().await, Ok(Turn::More));
        let row = &world.rows("SELECT attempts, last_error FROM outbox").await[0];
        assert_eq!((plain(&row["attempts"]).as_str(), plain(&row["last_error"]).as_str()), (tried, why));
        hand.pass(TimeDelta::hours(1));
    }
    recorder.set(Mood::Takes);
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(recorder.heard()["user_1"], ["user.created Ada"]);
}

async fn a_rate_is_kept(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let users: Vec<Event> = (0..15).map(|n| Event::created(&format!("user_{n}"))).collect();
    world.deliver_all(&users).await;
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    let settings = DeliverySettings { rate: NonZeroU32::new(10), ..DeliverySettings::default() };
    let dispatcher = dispatcher(&world, &recorder, settings, &hand);
    let began = Instant::now();
    while recorder.tries() < 15 {
        dispatcher.turn().await.unwrap();
    }
    // The first ten are sent at once.
    assert!(began.elapsed() > Duration::from_millis(400), "{:?}", began.elapsed());
}

async fn a_sink_that_becomes_slow_holds_up_nothing_that_it_has_not_begun(mut world: World) {
    const USERS: usize = 100;
    subscribe(&mut world, &["crm"]);
    let users: Vec<Event> = (0..USERS).map(|n| Event::created(&format!("user_{n:03}"))).collect();
    world.deliver_all(&users).await;
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    let dispatcher = Arc::new(dispatcher(&world, &recorder, DeliverySettings::default(), &hand));
    // The dispatcher learns that the sink is fast.
    let mut last = 0;
    while recorder.tries() - last < 2 {
        last = recorder.tries();
        assert!(last < USERS / 2, "the dispatcher never sent more than one message at once");
        assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    }
    let before = recorder.tries();
    recorder.set(Mood::Slow(3000));
    let working = Arc::clone(&dispatcher);
    let turn = tokio::spawn(async move { working.turn().await });
    let deadline = Instant::now() + Duration::from_secs(2);
    let taken = "SELECT count(*) AS n FROM outbox WHERE state = 'pending' AND lease IS NOT NULL";
    while recorder.tries() == before || world.value(taken).await != "1" {
        assert!(!turn.is_finished() && Instant::now() < deadline, "the other messages wait for the slow one");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(turn.await.unwrap(), Ok(Turn::More));
    assert_eq!(recorder.tries(), before + 1);
    assert_eq!(world.count("outbox WHERE state = 'delivered'").await, before as u64 + 1);
    // It sends one message at a time again.
    recorder.set(Mood::Takes);
    assert_eq!(dispatcher.turn().await, Ok(Turn::More));
    assert_eq!(recorder.tries(), before + 2);
}

async fn what_a_dead_process_had_claimed_is_delivered_by_another(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver_all(&[Event::created("user_1"), named("user_1", 1, "B")]).await;
    let (recorder, hand) = (Recorder::new(Mood::Hangs), Hand::at(world.now));
    let dying = Arc::new(dispatcher(&world, &recorder, DeliverySettings::default(), &hand));
    let turn = tokio::spawn(async move { dying.turn().await });
    while recorder.tries() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    turn.abort();
    recorder.set(Mood::Takes);
    let other = dispatcher(&world, &recorder, DeliverySettings::default(), &hand);
    assert_eq!(other.turn().await, Ok(Turn::Idle));
    hand.pass(TimeDelta::seconds(30));
    while other.turn().await.unwrap() == Turn::More {}
    assert_eq!(recorder.heard()["user_1"], ["user.created Ada", "user.updated B"]);
}

/// Start the dispatchers as the service does, until shutdown is requested.
fn start(world: &World, destinations: Vec<Destination>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let outbox = Outbox {
        store: Arc::clone(&world.store),
        destinations,
        bell: Arc::clone(&world.rules.bell),
        clock: Arc::new(Utc::now),
    };
    (shutdown.clone(), tokio::spawn(outbox.run(shutdown)))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_shutdown_finishes_what_is_under_way_and_begins_nothing(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let recorder = Recorder::new(Mood::Slow(300));
    let settings = DeliverySettings { concurrency: 2, ..DeliverySettings::default() };
    let (shutdown, running) = start(&world, vec![destination("crm", &recorder, settings)]);
    let users: Vec<Event> = (0..9).map(|n| Event::created(&format!("user_{n}"))).collect();
    world.deliver_all(&users).await;
    eventually("two are under way", || recorder.tries() == 2).await;
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!((recorder.tries(), recorder.heard().len()), (2, 2));
    let states = world.column("SELECT state FROM outbox ORDER BY state, id").await;
    assert_eq!(states.iter().filter(|state| *state == "delivered").count(), 2);
    assert_eq!(world.value("SELECT count(*) AS n FROM outbox WHERE lease IS NOT NULL").await, "0");
}

async fn a_sink_in_trouble_holds_up_no_other_and_gets_everything_in_order_afterwards(mut world: World) {
    const USERS: usize = 12;
    subscribe(&mut world, &["crm", "mail"]);
    let (good, bad) = (Recorder::new(Mood::Takes), Recorder::new(Mood::Hangs));
    let settings = DeliverySettings { timeout: Duration::from_millis(200), ..DeliverySettings::default() };
    let (shutdown, running) =
        start(&world, vec![destination("mail", &good, settings), destination("crm", &bad, settings)]);
    let mut told = 0;
    for step in 0..4 {
        bad.set([Mood::Hangs, Mood::Fails, Mood::Panics, Mood::Busy(1)][step]);
        let users = (0..USERS).map(|n| format!("user_{n}"));
        let events: Vec<Event> = match step {
            0 => users.map(|user| Event::created(&user)).collect(),
            _ => {
                users.map(|user| named(&user, i64::try_from(step).unwrap(), &format!("Ada {step}"))).collect()
            }
        };
        world.deliver_all(&events).await;
        told += USERS;
        eventually("the other sink has it all", || {
            good.heard().values().map(Vec::len).sum::<usize>() == told
        })
        .await;
    }
    assert!(bad.heard().is_empty());
    world.deliver(&Event::deleted("user_0", 9)).await;
    bad.set(Mood::Takes);
    let deleted = |sink: &Recorder| {
        sink.heard().get("user_0").is_some_and(|heard| heard.ends_with(&["user.deleted ".to_owned()]))
    };
    eventually("both sinks erase", || deleted(&good) && deleted(&bad)).await;
    let of_others = || {
        bad.heard().iter().filter(|(user, _)| *user != "user_0").map(|(_, heard)| heard.len()).sum::<usize>()
    };
    eventually("the sink has it all", || of_others() == told - 4).await;
    shutdown.cancel();
    running.await.unwrap();
    let mut life = vec!["user.created Ada".to_owned()];
    life.extend((1..4).map(|step| format!("user.updated Ada {step}")));
    for (user, heard) in bad.heard().into_iter().filter(|(user, _)| user != "user_0") {
        assert_eq!(heard, life, "{user}");
    }
}

/// How the command line shows, retries and discards messages.
fn an_operator_sees_and_tends_the_outbox(host: &mut Host) {
    host.run(&["migrate"]).succeeded();
    for (user, kind, state, sink) in [
        ("user_1", "user.created", "dead", "crm"),
        ("user_2", "user.created", "dead", "mail"),
        ("user_3", "user.created", "dead", "crm"),
        ("user_3", "user.updated", "delivered", "crm"),
        ("user_4", "user.deleted", "pending", "crm"),
    ] {
        let due = if state == "pending" { "'2026-01-01T00:00:00.000Z'" } else { "NULL" };
        host.sql(&format!(
            "INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, next_attempt_at, created_at, last_error)
             VALUES ('msg_{user}', '{sink}', '{user}', '{kind}', '{{\"name\":\"Ada\"}}', '{state}', {due},
                     '2026-01-01T00:00:00.000Z', 'status 400')"
        ));
    }
    let list = |more: &[&str]| -> Vec<Json> {
        let arguments: Vec<&str> = ["outbox", "ls", "--json"].iter().chain(more).copied().collect();
        let listed = host.run(&arguments).succeeded();
        assert!(!listed.contains("Ada"), "{listed}");
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(list(&[]).len(), 5);
    let dead = list(&["--sink", "crm", "--state", "dead"]);
    assert_eq!(
        (dead.len(), &dead[0]["clerk_id"], &dead[0]["last_error"]),
        (2, &json!("user_1"), &json!("status 400"))
    );
    let table = host.run(&["outbox", "ls", "--limit", "2"]).succeeded();
    assert!(table.contains("user_1") && table.contains("--after") && !table.contains("Ada"), "{table}");
    // The header has the queue's columns in the same order, plus the columns of the outbox.
    let header = |table: &str| table.lines().next().unwrap().split_whitespace().map(str::to_owned).collect();
    let header: Vec<String> = header(&table);
    assert_eq!(header, ["ID", "STATE", "SINK", "TYPE", "USER", "ATTEMPTS", "NEXT", "ERROR"]);
    assert_eq!(
        host.run(&["outbox", "ls", "--state", "delivered", "--sink", "mail"]).succeeded(),
        "no messages\n"
    );

    let id = dead[0]["id"].to_string();
    assert!(!host.run(&["outbox", "show", &id]).succeeded().contains("Ada"));
    assert!(host.run(&["outbox", "show", &id, "--reveal"]).succeeded().contains("Ada"));
    assert_eq!(host.run(&["outbox", "show", "4711"]).code, Some(1));

    // Without a selection, the command does nothing.
    assert_eq!(host.run(&["outbox", "retry"]).code, Some(2));
    let counted = host.run(&["outbox", "retry", "--all", "--dry-run"]).succeeded();
    assert_eq!(counted.trim(), "3  would be retried");
    let retried = host.run(&["outbox", "retry", "--sink", "crm"]).succeeded();
    let lines: Vec<&str> = retried.lines().map(str::trim).collect();
    assert_eq!(lines[0], "1  due again");
    assert!(lines[1].starts_with("1  skipped"), "later news of that user were delivered: {retried}");
    assert_eq!(list(&["--state", "dead"]).len(), 2);

    // Without a terminal, the command cannot ask for confirmation.
    assert_eq!(host.run(&["outbox", "discard", "--all"]).code, Some(2));
    assert_eq!(list(&["--state", "dead"]).len(), 2);
    host.run(&["outbox", "discard", "--all", "--yes"]).succeeded();
    assert_eq!(list(&["--state", "discarded"]).len(), 2);
    assert_eq!(host.value("SELECT count(*) FROM outbox WHERE state = 'discarded' AND payload IS NULL"), "2");
    let deletion = list(&["--state", "pending"]).pop().unwrap()["id"].to_string();
    for deletion in [[deletion.as_str(), "--yes"], ["--dry-run", &deletion]] {
        let refused = host.run(&[&["outbox", "discard"], &deletion[..]].concat());
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("1 deletion was kept"), "{refused:?}");
    }
    assert_eq!(list(&["--state", "pending"]).len(), 2);
    // The command fails if it cannot retry a message given by id.
    let left = host.run(&["outbox", "retry", &deletion]);
    assert_eq!(left.code, Some(1), "{left:?}");

    // A mistyped name is an error, and nothing else happens.
    for mistyped in [
        ["outbox", "ls", "--sink", "cmr"].as_slice(),
        &["outbox", "retry", "--sink", "cmr"],
        &["outbox", "discard", "--sink", "cmr", "--yes"],
        &["outbox", "pause", "cmr"],
        &["outbox", "resume", "cmr"],
    ] {
        let unknown = host.run(mistyped);
        assert_eq!(unknown.code, Some(2), "{unknown:?}");
        assert!(unknown.stderr.contains("there is no sink \"cmr\"; known: crm"), "{unknown:?}");
    }
    let revealed = "audit_log WHERE action = 'USER_REVEALED' AND source = 'cli' AND clerk_id = 'user_1'";
    assert_eq!(host.count(revealed), 1);

    // Control characters in an id do not reach the terminal.
    host.sql("UPDATE outbox SET clerk_id = 'user_\u{1b}[2J\u{9b}31m\n' WHERE clerk_id = 'user_2'");
    let shown = host.run(&["outbox", "ls"]).succeeded();
    assert!(
        shown.contains("user_\\u001b[2J\\u009b31m\\u000a") && !shown.contains(['\u{1b}', '\u{9b}']),
        "{shown}"
    );
    assert_eq!(list(&["--sink", "mail"])[0]["clerk_id"], "user_\u{1b}[2J\u{9b}31m\n");

    host.run(&["outbox", "pause", "crm"]).succeeded();
    assert!(host.run(&["outbox", "ls"]).succeeded().contains("crm has been paused since"));
    host.run(&["outbox", "resume", "crm"]).succeeded();
    assert_eq!(host.run(&["outbox", "resume", "crm"]).code, Some(1));
}

/// A dispatcher for the sink `crm` at this address.
fn pointed_at(address: &str, world: &World, recorder: &Arc<Recorder>, hand: &Hand) -> Dispatcher {
    let destination = destination("crm", recorder, DeliverySettings::default());
    let destination = Destination { address: address.to_owned(), ..destination };
    Dispatcher::new(Arc::clone(&world.store), destination, hand.clock())
}

async fn until_idle(dispatcher: &Dispatcher) {
    while dispatcher.turn().await.unwrap() == Turn::More {}
}

/// The state of this user's receipt at `crm`.
async fn confirmed(world: &World, user: &str) -> String {
    let receipt = format!(
        "SELECT CASE WHEN completed_at IS NULL THEN coalesce(last_error, 'not yet') ELSE 'done' END
         FROM erasure_receipts WHERE destination = 'crm' AND clerk_id = '{user}'"
    );
    world.value(&receipt).await
}

async fn a_sink_that_is_pointed_elsewhere_confirms_no_erasure_where_it_was(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    let at = |address| pointed_at(address, &world, &recorder, &hand);
    let elsewhere = async |address| world.store.told_elsewhere("crm", address).await.unwrap();
    world.deliver_all(&[Event::created("user_1"), Event::created("user_3")]).await;
    until_idle(&at("old")).await;
    assert_eq!(elsewhere("new").await, Elsewhere { moved: true, users: 2 });
    let new = at("new");
    world.deliver_all(&[Event::created("user_2"), named("user_3", 1, "B")]).await;
    until_idle(&new).await;
    assert_eq!(elsewhere("new").await, Elsewhere { moved: false, users: 2 });

    world.deliver_all(&["user_1", "user_2", "user_3"].map(|user| Event::deleted(user, 9))).await;
    until_idle(&new).await;
    let tries = recorder.tries();
    assert_eq!(confirmed(&world, "user_2").await, "done", "no other address received user_2");
    for user in ["user_1", "user_3"] {
        assert!(confirmed(&world, user).await.contains("but not at its previous one"), "{user}");
    }
    hand.pass(TimeDelta::hours(2));
    until_idle(&new).await;
    assert_eq!(recorder.tries(), tries, "the sink does not get a confirmed erasure again");

    // When it points back at the old address, the erasure is sent there at once.
    until_idle(&at("old")).await;
    assert_eq!(recorder.tries(), tries + 2);
    assert_eq!(
        (confirmed(&world, "user_1").await, confirmed(&world, "user_3").await),
        ("done".into(), "done".into())
    );
    assert_eq!(elsewhere("old").await, Elsewhere { moved: false, users: 0 });
}

async fn a_sink_that_is_the_same_system_at_another_address_confirms_erasures_again(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    until_idle(&pointed_at("old", &world, &recorder, &hand)).await;
    let new = pointed_at("new", &world, &recorder, &hand);
    world.deliver(&Event::deleted("user_1", 9)).await;
    until_idle(&new).await;
    assert_ne!(confirmed(&world, "user_1").await, "done");
    world.store.point_sink("crm", "new", true, world.now).await.unwrap();
    world.deliver(&Event::deleted("user_2", 9)).await;
    until_idle(&new).await;
    assert_eq!(confirmed(&world, "user_1").await, "done");
    assert_eq!(confirmed(&world, "user_2").await, "done");
}

async fn who_was_told_of_before_addresses_were_kept_counts_as_told_of_where_the_sink_was(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let (recorder, hand) = (Recorder::new(Mood::Takes), Hand::at(world.now));
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    until_idle(&pointed_at("old", &world, &recorder, &hand)).await;
    // The state that the version before addresses left.
    world.sql("UPDATE outbox_recipients SET addresses = NULL").await;
    world.sql("DELETE FROM outbox_sinks").await;
    world.deliver(&Event::deleted("user_1", 9)).await;
    until_idle(&pointed_at("old", &world, &recorder, &hand)).await;
    assert_eq!(confirmed(&world, "user_1").await, "done");
    world.deliver(&Event::deleted("user_2", 9)).await;
    until_idle(&pointed_at("new", &world, &recorder, &hand)).await;
    assert_ne!(confirmed(&world, "user_2").await, "done");
}

async fn a_message_that_died_today_is_kept_however_old_it_is(mut world: World) {
    subscribe(&mut world, &["crm"]);
    world.deliver(&Event::created("user_1")).await;
    let (recorder, hand) = (Recorder::new(Mood::Refuses), Hand::at(world.now));
    hand.pass(TimeDelta::days(40));
    assert_eq!(
        dispatcher(&world, &recorder, DeliverySettings::default(), &hand).turn().await,
        Ok(Turn::More)
    );
    assert_eq!(standing(&world, "crm").await, ["user.created user_1 dead"]);
    let old = world.now + TimeDelta::days(40);
    assert_eq!(world.store.prune(Old::Untold, old, 10).await, Ok(0));
    assert_eq!(world.store.prune(Old::Untold, old + TimeDelta::days(1), 10).await, Ok(1));
}
