//! The durable queue: what every backend promises about waiting deliveries, and how workers process them.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    entity::{ORGANIZATION, USER, user},
    model::{FieldSet, Outcome, Processing, SvixId},
    store::{Deed, ErrorKind, Old, Parked as Kept, Patience, QueueFilter, QueueState, Queued as Waiting},
    sync::{
        Clock, Committer, Drained, Limits, Pace,
        drain::BATCH,
        frontier::{BEGINNING, Frontier},
        operator::{Tally, Which, act},
        retry::Retry,
    },
    work::{Queue, worker::Worker},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    application::{allow_names, refuse_name, resist, resist_no_longer},
    promises::promises,
    world::{Event, Keeper, NOW, World, at, clerk_id, plain, run, tally, time},
};

use Outcome::{Applied, Duplicate, Ignored, Parked, Queued, Stale};

promises! {
    // Storing.
    what_is_stored_is_answered_queued_and_nobodys_row_is_touched,
    what_is_not_about_users_is_recorded_at_once_and_what_nobody_can_use_is_parked,
    what_was_worked_on_is_a_duplicate_and_what_waits_stays_as_it_is,
    a_dead_delivery_that_comes_again_is_revived,
    a_repeat_inside_a_batch_is_queued_once,

    // Claiming.
    what_somebody_works_on_is_free_at_once_when_they_die,
    two_workers_share_what_waits_and_do_nothing_twice,
    a_claim_is_bounded_in_number_and_in_bytes,
    what_is_put_off_is_not_due_before_its_time,
    what_was_put_off_while_the_clock_was_a_day_ahead_is_due_now,
    what_comes_late_behind_the_frontier_is_found_once_a_look_from_the_beginning_is_due,
    a_worker_finds_what_comes_late_though_nobody_calls_it,
    what_is_retried_is_found_wherever_the_frontier_is,

    // Processing.
    one_in_a_hundred_is_poison_and_the_others_are_applied,
    a_field_that_can_never_be_stored_is_left_out_and_the_rest_applied,
    a_failing_delivery_is_dead_after_its_last_attempt_and_applied_by_a_retry_once_it_may,
    later_news_of_the_same_user_pass_by_a_poisoned_one,
    a_deletion_in_the_queue_never_dies,
    a_locked_user_holds_up_nobody_else,
    the_signature_may_be_old_by_the_time_it_is_worked_on,
    what_was_unusable_stays_unusable_and_dead,
    an_erasure_takes_along_what_waits_of_its_user,
    nothing_of_what_was_worked_on_remains_in_the_queue,

    // Committer and upkeep.
    workers_are_called_by_the_committer_and_finish_at_the_shutdown,
    the_length_of_the_queue_is_told_by_state_and_since_when_it_is_due,
    the_queue_is_listed_by_state_and_type_in_pages,
    a_thousand_deliveries_are_retried_and_discarded_by_their_ids,
    a_retry_hurries_the_dead_and_those_put_off_and_no_others,
    a_discarded_delivery_never_comes_back_and_a_deletion_is_never_discarded,
    only_old_dead_deliveries_are_forgotten,
    a_dead_delivery_is_kept_from_when_it_died,
}

fn svix_id(event: &Event) -> SvixId {
    SvixId::new(event.svix_id.as_str()).unwrap()
}

fn created(count: usize) -> Vec<Event> {
    (0..count).map(|number| Event::created(&format!("user_{number:04}"))).collect()
}

async fn outcome(world: &World, event: &Event) -> String {
    world.value(&format!("SELECT outcome FROM processed_webhooks WHERE svix_id = '{}'", event.svix_id)).await
}

async fn what_is_stored_is_answered_queued_and_nobodys_row_is_touched(world: World) {
    let event = Event::created("user_1");
    assert_eq!(world.enqueue(std::slice::from_ref(&event)).await, [Queued]);
    let row = world.parked().await;
    assert_eq!(plain(&row["svix_id"]), event.svix_id);
    assert_eq!(row["event_type"], "user.created");
    assert_eq!(row["clerk_id"], "user_1");
    assert_eq!(row["state"], "pending");
    assert_eq!(plain(&row["attempts"]), "0");
    assert_eq!(time(&row["received_at"]), world.now);
    assert_eq!(time(&row["next_attempt_at"]), world.now);
    let kept = world.store.parked(&svix_id(&event)).await.unwrap().unwrap();
    assert_eq!(kept.payload, event.body());
    for table in ["users", "entity_versions", "processed_webhooks", "audit_log"] {
        assert_eq!(world.count(table).await, 0, "{table}");
    }
    assert_eq!(world.drain().await, [(event.svix_id.clone(), Applied)]);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Ada");
    assert_eq!(world.audit().await, ["USER_CREATED user_1"]);
    assert_eq!(outcome(&world, &event).await, "applied");
}

async fn what_is_not_about_users_is_recorded_at_once_and_what_nobody_can_use_is_parked(mut world: World) {
    let session = Event::about("session.created", serde_json::json!({ "id": "sess_1" }), 0);
    let batch = [session.clone(), Event::raw("unusable"), Event::created("user_1")];
    assert_eq!(world.enqueue(&batch).await, [Ignored, Parked, Queued]);
    assert_eq!(outcome(&world, &session).await, "ignored");
    assert_eq!(world.enqueue(&batch).await, [Duplicate, Parked, Queued]);
    assert_eq!(world.value("SELECT state FROM webhook_queue WHERE clerk_id IS NULL").await, "dead");
    // The event's type gives the kind.
    let nameless = |event_type| Event::about(event_type, serde_json::json!({ "id": null }), 0);
    let nameless = [nameless("user.created"), nameless("organization.created")];
    world.rules.selection = world.rules.selection.with(&ORGANIZATION, FieldSet::ALL);
    assert_eq!(world.enqueue(&nameless).await, [Parked, Parked]);
    let kinds = world
        .column("SELECT coalesce(kind, '-') AS kind FROM webhook_queue WHERE clerk_id IS NULL ORDER BY 1");
    assert_eq!(kinds.await, ["-", "organization", "user"]);
    world
        .sql("DELETE FROM webhook_queue WHERE kind = 'organization' OR kind = 'user' AND state = 'dead'")
        .await;
    // Nothing about a deleted user is kept.
    world.drain().await;
    world.enqueue(&[Event::deleted("user_1", 1000)]).await;
    world.drain().await;
    let unusable = Event::raw(r#"{"data":{"id":"user_1","first_name":"Ada"}}"#);
    assert_eq!(world.enqueue(&[unusable]).await, [Stale]);
    assert_eq!(world.count("webhook_queue").await, 1, "only the delivery that names no user is left");
}

async fn what_was_worked_on_is_a_duplicate_and_what_waits_stays_as_it_is(mut world: World) {
    let (one, two) = (Event::created("user_1"), Event::created("user_2"));
    world.enqueue(std::slice::from_ref(&one)).await;
    world.drain().await;
    world.enqueue(std::slice::from_ref(&two)).await;
    let before = world.dump().await;
    world.pass(TimeDelta::minutes(1));
    assert_eq!(world.enqueue(&[two.clone(), one.clone()]).await, [Queued, Duplicate]);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.drain().await, [(two.svix_id, Applied)]);
}

async fn a_dead_delivery_that_comes_again_is_revived(mut world: World) {
    refuse_name(&world, "Bad").await;
    world.rules.retry.max_attempts = 1;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.enqueue(std::slice::from_ref(&event)).await;
    assert_eq!(world.drain().await, [(event.svix_id.clone(), Parked)]);
    assert_eq!(world.parked().await["state"], "dead");
    allow_names(&world).await;
    world.pass(TimeDelta::days(1));
    assert_eq!(world.drain().await, [], "workers leave dead letters alone");
    assert_eq!(world.enqueue(&[event.clone(), Event::created("user_2")]).await, [Queued, Queued]);
    let query = format!("SELECT state, attempts FROM webhook_queue WHERE svix_id = '{}'", event.svix_id);
    let revived = &world.rows(&query).await[0];
    assert_eq!((&revived["state"], plain(&revived["attempts"])), (&"pending".into(), "0".to_owned()));
    assert_eq!(world.drain().await.len(), 2);
    assert_eq!(outcome(&world, &event).await, "applied");
}

async fn a_repeat_inside_a_batch_is_queued_once(world: World) {
    let event = Event::created("user_1");
    assert_eq!(world.enqueue(&[event.clone(), event.clone(), event.clone()]).await, [Queued; 3]);
    assert_eq!(world.count("webhook_queue").await, 1);
    assert_eq!(world.drain().await, [(event.svix_id, Applied)]);
}

async fn what_somebody_works_on_is_free_at_once_when_they_die(world: World) {
    let events = created(5);
    world.enqueue(&events).await;
    let mut working = world.store.begin(Patience::Normal).await.unwrap();
    assert_eq!(working.claim(BEGINNING..=world.now, 3, u64::MAX).await.unwrap().len(), 3);
    if world.locks_rows() {
        // Other workers skip the claimed deliveries instead of waiting for them.
        let other = world.open().await;
        let mut others = other.begin(Patience::Short).await.unwrap();
        let ids: Vec<SvixId> = events.iter().map(svix_id).collect();
        assert_eq!(others.claim(BEGINNING..=world.now, 100, u64::MAX).await.unwrap().len(), 2);
        others.rollback().await;
        let mut others = other.begin(Patience::Short).await.unwrap();
        assert_eq!(others.claim_these(&ids, world.now).await.unwrap().len(), 2);
        others.rollback().await;
    }
    // As if the process had died.
    drop(working);
    world.wait_until_idle().await;
    let done = world.drain().await;
    assert_eq!(done.len(), 5);
    assert!(done.iter().all(|(_, outcome)| *outcome == Applied), "{done:?}");
}

async fn two_workers_share_what_waits_and_do_nothing_twice(world: World) {
    for part in created(1500).chunks(300) {
        world.enqueue(part).await;
    }
    let world = Arc::new(world);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let world = Arc::clone(&world);
        workers.spawn(async move {
            let store = world.open().await;
            let mut done = Vec::new();
            while world.count("webhook_queue").await > 0 {
                let drained = world.drain_once(&*store).await;
                // A writer may have to wait too long for another one.
                assert!(drained.trouble.is_none_or(|error| error.kind == ErrorKind::Unavailable));
                done.extend(drained.deliveries.into_iter().map(|worked| worked.svix_id));
            }
            done
        });
    }
    let done = tally(workers.join_all().await.concat());
    assert_eq!(done.len(), 1500);
    assert!(done.values().all(|times| *times == 1));
    assert_eq!(world.count("users").await, 1500);
    assert_eq!(world.count("audit_log").await, 1500);
}

async fn a_claim_is_bounded_in_number_and_in_bytes(world: World) {
    let large = "x".repeat(1_000_000);
    let events: Vec<Event> =
        (0..4).map(|n| Event::created(&format!("user_{n}")).set("ignored", large.as_str())).collect();
    world.enqueue(&events).await;
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    for (limit, bytes, claimed) in [(100, u64::MAX, 4), (3, u64::MAX, 3), (100, 1, 1), (100, 1_500_000, 2)] {
        assert_eq!(
            transaction.claim(BEGINNING..=world.now, limit, bytes).await.unwrap().len(),
            claimed,
            "{bytes}"
        );
    }
    let first = transaction.claim(BEGINNING..=world.now, 1, 1).await.unwrap().remove(0);
    assert_eq!(first.payload.len(), events[0].body().len());
    transaction.rollback().await;
    // More than one transaction processes.
    let many: Vec<Event> =
        (0..20).map(|n| Event::created(&format!("user_{n:02}")).set("ignored", large.as_str())).collect();
    world.enqueue(&many).await;
    assert_eq!(world.drain_once(&*world.store).await.deliveries.len(), 17, "16 MiB");
    assert_eq!(world.drain().await.len(), 7);
}

async fn what_is_put_off_is_not_due_before_its_time(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.enqueue(std::slice::from_ref(&event)).await;
    assert_eq!(world.drain().await, [(event.svix_id.clone(), Parked)]);
    let due = time(&world.parked().await["next_attempt_at"]);
    assert!(due > world.now && due <= world.now + TimeDelta::seconds(2), "{due}");
    allow_names(&world).await;
    world.now = due - TimeDelta::milliseconds(1);
    assert!(world.store.first_due(BEGINNING).await.unwrap().is_some_and(|due| due > world.now));
    assert_eq!(world.drain().await, []);
    world.now = due;
    assert!(world.store.first_due(BEGINNING).await.unwrap().is_some_and(|due| due <= world.now));
    assert_eq!(world.drain().await, [(event.svix_id, Applied)]);
}

async fn what_was_put_off_while_the_clock_was_a_day_ahead_is_due_now(mut world: World) {
    refuse_name(&world, "Bad").await;
    let bad = |user: &str| Event::created(user).set("first_name", "Bad");
    let (early, late) = (bad("user_1"), bad("user_2"));
    world.pass(TimeDelta::days(1));
    world.enqueue(std::slice::from_ref(&early)).await;
    assert_eq!(world.drain().await, [(early.svix_id.clone(), Parked)]);
    world.pass(-TimeDelta::days(1));
    world.enqueue(std::slice::from_ref(&late)).await;
    assert_eq!(world.drain().await.len(), 2);
    assert_eq!(world.column("SELECT attempts FROM webhook_queue ORDER BY clerk_id").await, ["2", "1"]);
    assert_eq!(world.drain().await, [], "both are put off as usual");
    allow_names(&world).await;
    world.pass(TimeDelta::minutes(1));
    assert_eq!(world.drain().await.len(), 2);
    assert_eq!(world.count("users").await, 2);
}

/// A frontier that a search of this duration has set to this time, where the first delivery or message is due.
pub(crate) fn knowing(first: DateTime<Utc>, took: Duration) -> Frontier {
    let (frontier, ended) = (Frontier::default(), Instant::now());
    let look = frontier.look(first, ended.checked_sub(took).unwrap());
    assert_eq!(frontier.learn(look, Ok(Some(first)), ended), Ok(Some(first)));
    frontier
}

/// Store two events; the second one is due an hour before the first.
async fn one_that_comes_late(world: &mut World) -> [Event; 2] {
    let events = ["user_1", "user_2"].map(Event::created);
    world.enqueue(&events[..1]).await;
    world.pass(-TimeDelta::hours(1));
    world.enqueue(&events[1..]).await;
    world.pass(TimeDelta::hours(1));
    events
}

async fn what_comes_late_behind_the_frontier_is_found_once_a_look_from_the_beginning_is_due(
    mut world: World,
) {
    let [first, late] = one_that_comes_late(&mut world).await;
    let frontier = knowing(world.now, Duration::from_millis(100));
    let worked = |drained: Drained| {
        assert_eq!(drained.trouble, None);
        drained.deliveries.into_iter().map(|worked| worked.svix_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(worked(world.drain_from(&*world.store, &frontier).await), [first.svix_id]);
    let owed = frontier.owed(Instant::now()).unwrap();
    assert!(owed <= Duration::from_secs(3), "{owed:?}");
    tokio::time::sleep(owed).await;
    assert_eq!(worked(world.drain_from(&*world.store, &frontier).await), [late.svix_id]);
}

async fn a_worker_finds_what_comes_late_though_nobody_calls_it(mut world: World) {
    one_that_comes_late(&mut world).await;
    let (now, frontier) = (world.now, knowing(world.now, Duration::from_millis(50)));
    let queue = Queue {
        store: Arc::clone(&world.store),
        rules: world.rules.clone(),
        clock: Arc::new(move || now),
        pace: Pace::new(BATCH),
        frontier,
    };
    let shutdown = CancellationToken::new();
    let worker = Worker::new(queue, 1, &Arc::default());
    let working = tokio::spawn(worker.run(shutdown.clone()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while world.user("user_2").await.is_none() {
        assert!(Instant::now() < deadline, "the worker never found the delivery");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    working.await.unwrap();
}

async fn what_is_retried_is_found_wherever_the_frontier_is(mut world: World) {
    refuse_name(&world, "Bad").await;
    world.rules.retry.max_attempts = 1;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.enqueue(std::slice::from_ref(&event)).await;
    assert_eq!(world.drain().await, [(event.svix_id.clone(), Parked)]);
    allow_names(&world).await;
    world.pass(TimeDelta::days(1));
    let frontier = knowing(world.now, Duration::from_secs(3));
    let tally =
        act::<Waiting>(&*world.store, &Which::These(vec![svix_id(&event)]), Deed::Retry, false, world.now)
            .await
            .unwrap();
    assert_eq!(tally.done, 1);
    let drained = world.drain_from(&*world.store, &frontier).await;
    assert_eq!(drained.deliveries.len(), 1, "{drained:?}");
}

/// Wait until the index of due times was searched this often. Returns the entries read so far, including those of deleted rows.
async fn entries_read(world: &World, searched: usize) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let told = format!(
            "SELECT idx_tup_read AS read, idx_scan AS searched FROM pg_stat_user_indexes
             WHERE indexrelname = 'webhook_queue_due' AND schemaname = '{}'",
            world.schema()
        );
        let told = world.rows(&told).await.remove(0);
        let number = |name: &str| plain(&told[name]).parse::<u64>().unwrap();
        if number("searched") == searched as u64 {
            return number("read");
        }
        assert!(Instant::now() < deadline, "searched {} times, not {searched}", number("searched"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn beside_an_old_snapshot_a_turn_reads_nothing_of_the_deliveries_that_are_gone() {
    const GONE: u64 = 5000;
    run(Keeper::Postgres, async |world: World| {
        let snapshot = world.old_snapshot().await;
        world
            .sql(&format!(
                "INSERT INTO webhook_queue (svix_id, payload, state, attempts, next_attempt_at, received_at)
                 SELECT 'msg_gone' || n, 'x', 'pending', 0, timestamptz '2026-01-01' - n * interval '1 s', now()
                 FROM generate_series(1, {GONE}) AS n;
                 DELETE FROM webhook_queue"
            ))
            .await;
        let (mut read, frontier) = (Vec::new(), Frontier::default());
        for number in 0..3 {
            world.enqueue(&[Event::created(&format!("user_{number}"))]).await;
            let store = world.open().await;
            let known = knowing(world.now, Duration::from_secs(3));
            let frontier = if number == 0 { &frontier } else { &known };
            assert_eq!(world.drain_from(&*store, frontier).await.deliveries.len(), 1);
            // A session reports its statistics when it ends.
            store.close().await;
            // After the search from the beginning there is one for entries beyond the horizon.
            read.push(entries_read(&world, 3 + 2 * number).await);
        }
        let [first, second, third] = read[..] else { panic!("{read:?}") };
        assert!(first >= GONE, "{first}: the search from the beginning reads all deleted entries");
        assert!(first < 2 * GONE, "{first}: the claim that follows does not");
        assert!(third - first < 200, "{first}, {second}, {third}: the other turns read none of them");
        drop(snapshot);
    });
}

async fn one_in_a_hundred_is_poison_and_the_others_are_applied(mut world: World) {
    refuse_name(&world, "Bad").await;
    world.rules.retry.max_attempts = 3;
    let mut events = created(1000);
    for number in (50..1000).step_by(100) {
        events[number] = events[number].clone().set("first_name", "Bad");
    }
    for part in events.chunks(400) {
        assert_eq!(world.enqueue(part).await, vec![Queued; part.len()]);
    }
    let first = tally(world.drain().await.into_iter().map(|(_, outcome)| outcome.name()));
    assert_eq!(first, tally(["applied"; 990].into_iter().chain(["parked"; 10])));
    assert_eq!(world.count("users").await, 990);
    for _ in 2..=3 {
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await.len(), 10);
    }
    let dead = world.rows("SELECT state, attempts, last_error FROM webhook_queue").await;
    assert_eq!(dead.len(), 10);
    for row in &dead {
        assert_eq!((plain(&row["state"]), plain(&row["attempts"])), ("dead".to_owned(), "3".to_owned()));
        assert!(
            plain(&row["last_error"]).starts_with("a constraint or trigger refused the change"),
            "{row:?}"
        );
    }
    allow_names(&world).await;
    let done = act::<Waiting>(&*world.store, &Which::All, Deed::Retry, false, world.now).await.unwrap();
    assert_eq!(done.done, 10);
    assert_eq!(world.drain().await.len(), 10);
    assert_eq!((world.count("users").await, world.count("webhook_queue").await), (1000, 0));
}

async fn a_field_that_can_never_be_stored_is_left_out_and_the_rest_applied(world: World) {
    let nick = "CREATE INDEX app_nick ON users ((unsafe_metadata ->> 'nick'))";
    world.sql_of(nick, "SELECT 1", "SELECT 1").await;
    // Longer than an index entry can be.
    let incompressible: String = (0..2000).map(|_| rand::random::<u32>().to_string()).collect();
    let odd = Event::created("user_1")
        .set("public_metadata", "MARK")
        .set("unsafe_metadata", serde_json::json!({ "nick": incompressible }))
        .replacing(r#""MARK""#, r#"{"a":1e1000000}"#);
    let batch = [Event::created("user_0"), odd, Event::created("user_2")];
    world.enqueue(&batch).await;
    let outcomes: Vec<Outcome> = world.drain().await.into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [Applied; 3]);
    assert_eq!((world.count("users").await, world.count("webhook_queue").await), (3, 0));
    let user = world.user("user_1").await.unwrap();
    assert_eq!(user.profile[USER.field("public_metadata")], clerk_sync::model::Value::Null);
    assert_eq!(
        user.profile[USER.field("unsafe_metadata")] == clerk_sync::model::Value::Null,
        world.keeper == Keeper::Postgres
    );
    assert_eq!(user.profile[user::FIRST_NAME].text(), Some("Ada"));
}

async fn a_failing_delivery_is_dead_after_its_last_attempt_and_applied_by_a_retry_once_it_may(
    mut world: World,
) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.enqueue(std::slice::from_ref(&event)).await;
    for attempt in 1..=15 {
        assert_eq!(world.drain().await, [(event.svix_id.clone(), Parked)]);
        let parked = world.parked().await;
        assert_eq!(plain(&parked["attempts"]), attempt.to_string());
        assert_eq!(parked["state"], if attempt < 15 { "pending" } else { "dead" });
        assert_eq!(time(&parked["received_at"]), at(NOW));
        world.pass(TimeDelta::hours(1));
    }
    allow_names(&world).await;
    assert_eq!(world.drain().await, []);
    act::<Waiting>(&*world.store, &Which::These(vec![svix_id(&event)]), Deed::Retry, false, world.now)
        .await
        .unwrap();
    assert_eq!(plain(&world.parked().await["attempts"]), "0", "all its attempts are available again");
    assert_eq!(world.drain().await, [(event.svix_id, Applied)]);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn later_news_of_the_same_user_pass_by_a_poisoned_one(mut world: World) {
    refuse_name(&world, "Bad").await;
    let batch = [
        Event::created("user_1"),
        Event::updated("user_1", 1000).set("first_name", "Bad"),
        Event::updated("user_1", 2000).set("first_name", "Augusta"),
    ];
    world.enqueue(&batch[..2]).await;
    assert_eq!(
        world.drain().await,
        [(batch[0].svix_id.clone(), Applied), (batch[1].svix_id.clone(), Parked)]
    );
    world.enqueue(&batch[2..]).await;
    assert_eq!(world.drain().await, [(batch[2].svix_id.clone(), Applied)]);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Augusta");
    assert_eq!(plain(&world.parked().await["svix_id"]), batch[1].svix_id);
    world.pass(TimeDelta::hours(1));
    assert_eq!(
        world.drain().await,
        [(batch[1].svix_id.clone(), Stale)],
        "it is superseded, and leaves the queue"
    );
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn a_deletion_in_the_queue_never_dies(mut world: World) {
    world.rules.retry.max_attempts = 2;
    world.enqueue(&[Event::created("user_1")]).await;
    world.drain().await;
    resist(&mut world, &["user_1"]).await;
    let deletion = Event::deleted("user_1", 1000).set("slug", "ada-lovelace");
    let later = Event::updated("user_1", 2000);
    world.enqueue(&[deletion.clone(), later.clone()]).await;
    assert_eq!(world.drain().await, [(deletion.svix_id.clone(), Parked), (later.svix_id, Stale)]);
    for attempt in 2..=20 {
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await, [(deletion.svix_id.clone(), Parked)]);
        let parked = world.parked().await;
        assert_eq!((&parked["state"], plain(&parked["attempts"])), (&"pending".into(), attempt.to_string()));
        assert!(!plain(&parked["payload"]).contains("lovelace"), "{parked:?}");
    }
    resist_no_longer(&world).await;
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.drain().await, [(deletion.svix_id, Applied)]);
    let standing = world.count("users WHERE email NOT LIKE '%@anonymized.local'").await;
    assert_eq!((standing, world.count("webhook_queue").await), (0, 0));
}

async fn a_locked_user_holds_up_nobody_else(mut world: World) {
    let users = created(40);
    world.enqueue(&users).await;
    world.drain().await;
    let updates: Vec<Event> =
        (0..40).map(|n| Event::updated(&format!("user_{n:04}"), 1000).set("first_name", "Augusta")).collect();
    world.enqueue(&updates).await;
    let other = world.open().await;
    let mut holder = other.begin(Patience::Normal).await.unwrap();
    holder.hold(&[clerk_id("user_0017")]).await.unwrap();
    let drained = world.drain_once(&*world.store).await;
    if world.locks_rows() {
        assert_eq!(drained.trouble, None);
        let failed: Vec<&str> = drained
            .deliveries
            .iter()
            .filter(|worked| worked.outcome != Applied)
            .map(|worked| worked.svix_id.as_str())
            .collect();
        assert_eq!((drained.deliveries.len(), &failed[..]), (40, &[updates[17].svix_id.as_str()][..]));
        let put_off = world.parked().await;
        assert_eq!((&put_off["state"], plain(&put_off["attempts"])), (&"pending".into(), "1".to_owned()));
        assert!(plain(&put_off["last_error"]).starts_with("another session holds a lock"), "{put_off:?}");
        // However often: who is locked does not die of it.
        world.rules.retry.max_attempts = 2;
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await, [(updates[17].svix_id.clone(), Parked)]);
        assert_eq!(world.parked().await["state"], "pending");
    } else {
        // SQLite has a single writer: nothing is processed, and no attempt is counted.
        assert_eq!(drained.trouble.unwrap().kind, ErrorKind::Unavailable);
        assert_eq!(world.value("SELECT max(attempts) AS n FROM webhook_queue").await, "0");
    }
    holder.rollback().await;
    world.pass(TimeDelta::hours(1));
    world.drain().await;
    assert_eq!(world.value("SELECT count(*) AS n FROM users WHERE first_name = 'Augusta'").await, "40");
}

async fn the_signature_may_be_old_by_the_time_it_is_worked_on(mut world: World) {
    // Its time is too far ahead to be accepted, and stays so: the result does not depend on the time of processing.
    let ahead = Event::created("user_1").set("updated_at", NOW + 2 * 86_400_000);
    world.enqueue(std::slice::from_ref(&ahead)).await;
    world.pass(TimeDelta::days(7));
    assert_eq!(world.drain().await, [(ahead.svix_id, Applied)]);
    let version = world.value("SELECT version FROM entity_versions").await;
    assert_eq!(version, world.value("SELECT event_at FROM entity_versions").await);
}

async fn what_was_unusable_stays_unusable_and_dead(mut world: World) {
    let batch = [Event::raw("unusable"), Event::created("user_1")];
    world.enqueue(&batch).await;
    world.pass(TimeDelta::hours(1));
    act::<Waiting>(&*world.store, &Which::All, Deed::Retry, false, world.now).await.unwrap();
    let outcomes = tally(world.drain().await.into_iter().map(|(id, outcome)| (id, outcome.name())));
    assert_eq!(
        outcomes,
        tally([(batch[0].svix_id.clone(), "parked"), (batch[1].svix_id.clone(), "applied")])
    );
    let parked = world.parked().await;
    assert_eq!((&parked["state"], plain(&parked["attempts"])), (&"dead".into(), "1".to_owned()));
    assert_eq!(world.count("processed_webhooks").await, 1);
}

async fn an_erasure_takes_along_what_waits_of_its_user(mut world: World) {
    refuse_name(&world, "Bad").await;
    world.rules.retry.max_attempts = 2;
    let bad = |after| Event::updated("user_1", after).set("first_name", "Bad");
    world.enqueue(&[Event::created("user_1"), bad(1000)]).await;
    world.drain().await;
    world.pass(TimeDelta::hours(1));
    world.drain().await;
    world.enqueue(&[bad(2000)]).await;
    world.drain().await;
    let states = world.column("SELECT state FROM webhook_queue ORDER BY state").await;
    assert_eq!(states, ["dead", "pending"]);
    let deletion = Event::deleted("user_1", 3000);
    world.enqueue(&[deletion.clone(), bad(4000)]).await;
    // The delivery after it in the same batch is stale by then.
    assert_eq!(world.drain().await[0], (deletion.svix_id, Applied));
    assert_eq!((world.count("users").await, world.count("webhook_queue").await), (0, 0));

    // A delivery that another worker has claimed is skipped: the erasure does not wait, and nothing of the user remains.
    if world.locks_rows() {
        world.enqueue(&[Event::created("user_2")]).await;
        world.drain().await;
        let held = Event::updated("user_2", 1000);
        world.enqueue(std::slice::from_ref(&held)).await;
        let other = world.open().await;
        let mut working = other.begin(Patience::Normal).await.unwrap();
        assert_eq!(working.claim(BEGINNING..=world.now, 1, 1).await.unwrap().len(), 1);
        world.enqueue(&[Event::deleted("user_2", 2000)]).await;
        let began = Instant::now();
        assert_eq!(world.drain().await.len(), 1);
        assert!(began.elapsed() < Duration::from_secs(1), "the erasure waited for {:?}", began.elapsed());
        working.rollback().await;
        assert_eq!(world.drain().await, [(held.svix_id, Stale)]);
        assert_eq!(world.count("webhook_queue").await, 0);
    }
}

async fn nothing_of_what_was_worked_on_remains_in_the_queue(world: World) {
    let secret = "+15555550199-not-to-be-kept";
    let event = Event::created("user_1").set("passkeys", secret);
    world.enqueue(std::slice::from_ref(&event)).await;
    if world.keeper == Keeper::Sqlite {
        assert!(world.files_contain(secret), "otherwise this test proves nothing");
    }
    assert_eq!(world.drain().await, [(event.svix_id, Applied)]);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert!(!world.dump().await.iter().any(|line| line.contains(secret)));
    assert!(!world.files_contain(secret));
}

async fn workers_are_called_by_the_committer_and_finish_at_the_shutdown(mut world: World) {
    world.rules.processing = Processing::Queue;
    let now = world.now;
    let clock: Clock = Arc::new(move || now);
    let (committer, lanes) = Committer::start(&world.store, None, &world.rules, Limits::default(), &clock);
    let queue = Queue {
        store: Arc::clone(&world.store),
        rules: world.rules.clone(),
        clock,
        pace: Pace::new(BATCH),
        frontier: Frontier::default(),
    };
    let worker = Worker::new(queue, world.store.writers(), &committer.bell());
    let shutdown = CancellationToken::new();
    let working = tokio::spawn(worker.run(shutdown.clone()));
    for number in 0..3 {
        let event = Event::created(&format!("user_{number}"));
        let answer = committer.submit(world.delivery(&event), Instant::now()).unwrap();
        assert_eq!(answer.await.unwrap(), Ok(Queued));
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.user(&format!("user_{number}")).await.is_none() {
            assert!(Instant::now() < deadline, "the worker never processed the delivery");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    shutdown.cancel();
    working.await.unwrap();
    let last = committer.submit(world.delivery(&Event::created("user_9")), Instant::now()).unwrap();
    assert_eq!(last.await.unwrap(), Ok(Queued));
    lanes.finish().await;
    assert_eq!(world.count("webhook_queue").await, 1, "no worker runs any more");
}

async fn the_length_of_the_queue_is_told_by_state_and_since_when_it_is_due(mut world: World) {
    let empty = world.store.queue_depth().await.unwrap();
    assert_eq!((empty.pending, empty.dead, empty.first_due), (0, 0, None));
    world.enqueue(&[Event::created("user_1"), Event::raw("unusable")]).await;
    world.pass(TimeDelta::minutes(5));
    world.enqueue(&[Event::created("user_2")]).await;
    let depth = world.store.queue_depth().await.unwrap();
    assert_eq!((depth.pending, depth.dead, depth.first_due), (2, 1, Some(at(NOW))));
}

async fn a_thousand_deliveries_are_retried_and_discarded_by_their_ids(mut world: World) {
    let events: Vec<Event> = (0..1000).map(|number| Event::raw(format!("unusable {number}"))).collect();
    world.enqueue(&events).await;
    let mut ids: Vec<SvixId> = events.iter().map(svix_id).collect();
    // An id that is given twice counts once, and an unknown id is reported.
    ids.push(ids[0].clone());
    ids.push(SvixId::new("msg_nowhere").unwrap());
    let which = Which::These(ids);
    let missing = vec![SvixId::new("msg_nowhere").unwrap()];
    let all = Tally { found: 1000, done: 1000, deletions: 0, missing };
    let counted = act::<Waiting>(&*world.store, &which, Deed::Retry, true, world.now).await.unwrap();
    assert_eq!(counted, Tally { done: 0, ..all.clone() });
    assert_eq!(counted.number(true), 1000);
    assert_eq!(world.store.queue_depth().await.unwrap().dead, 1000, "a dry run only counts");
    assert_eq!(act::<Waiting>(&*world.store, &which, Deed::Retry, false, world.now).await.unwrap(), all);
    assert_eq!(world.store.queue_depth().await.unwrap().pending, 1000);
    world.pass(TimeDelta::seconds(1));
    assert_eq!(act::<Waiting>(&*world.store, &which, Deed::Discard, false, world.now).await.unwrap(), all);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.count("processed_webhooks WHERE outcome = 'discarded'").await, 1000);
}

async fn the_queue_is_listed_by_state_and_type_in_pages(world: World) {
    let batch: Vec<Event> = vec![
        Event::created("user_1"),
        Event::raw("unusable"),
        Event::deleted("user_2", 0),
        Event::created("user_3"),
        Event::updated("user_4", 0).set("id", 4),
    ];
    world.enqueue(&batch).await;
    let list = async |filter: QueueFilter, limit| -> Vec<String> {
        let found = world.store.queued(&filter, limit).await.unwrap();
        found.into_iter().map(|one| one.svix_id.to_string()).collect()
    };
    let ids = |places: &[usize]| -> Vec<String> {
        places.iter().map(|place| batch[*place].svix_id.clone()).collect()
    };
    let all = QueueFilter::default;
    assert_eq!(list(all(), 10).await, ids(&[0, 1, 2, 3, 4]));
    assert_eq!(list(all(), 2).await, ids(&[0, 1]));
    assert_eq!(list(QueueFilter { after: Some(svix_id(&batch[1])), ..all() }, 2).await, ids(&[2, 3]));
    let dead = QueueFilter { state: Some(QueueState::Dead), ..all() };
    assert_eq!(list(dead.clone(), 10).await, ids(&[1, 4]));
    assert_eq!(list(QueueFilter { after: Some(svix_id(&batch[1])), ..dead.clone() }, 9).await, ids(&[4]));
    let pending = QueueFilter { state: Some(QueueState::Pending), ..all() };
    assert_eq!(list(pending.clone(), 10).await, ids(&[0, 2, 3]));
    let of = |name: &str| Some(name.to_owned());
    assert_eq!(list(QueueFilter { event_type: of("user.created"), ..pending }, 9).await, ids(&[0, 3]));
    assert_eq!(list(QueueFilter { event_type: of("user.updated"), ..dead }, 9).await, ids(&[4]));
    let user = Some(clerk_id("user_1"));
    assert_eq!(list(QueueFilter { clerk_id: user.clone(), ..all() }, 9).await, ids(&[0]));
    let dead = QueueFilter { clerk_id: user, state: Some(QueueState::Dead), ..all() };
    assert_eq!(list(dead, 9).await, Vec::<String>::new());
    let these = QueueFilter { ids: Some(vec![svix_id(&batch[3]), svix_id(&batch[0])]), ..all() };
    assert_eq!(list(these.clone(), 9).await, ids(&[0, 3]));
    assert_eq!(list(QueueFilter { after: Some(svix_id(&batch[0])), ..these }, 9).await, ids(&[3]));
    let one = world.store.queued(&all(), 1).await.unwrap().remove(0);
    assert_eq!(one.bytes, batch[0].body().len() as u64);
    assert_eq!((one.clerk_id, one.last_error.as_str()), (Some(clerk_id("user_1")), ""));
    assert!(world.store.parked(&SvixId::new("msg_none").unwrap()).await.unwrap().is_none());
}

async fn a_retry_hurries_the_dead_and_those_put_off_and_no_others(mut world: World) {
    refuse_name(&world, "Bad").await;
    let bad = |user: &str| Event::created(user).set("first_name", "Bad");
    // One delivery is dead, one is delayed, and one is due.
    world.rules.retry.max_attempts = 1;
    let dead = bad("user_1");
    world.enqueue(std::slice::from_ref(&dead)).await;
    world.drain().await;
    world.rules.retry = Retry { first: TimeDelta::hours(1), ..Retry::default() };
    let put_off = bad("user_2");
    world.enqueue(std::slice::from_ref(&put_off)).await;
    world.drain().await;
    let due = Event::created("user_3");
    world.enqueue(std::slice::from_ref(&due)).await;
    let tally = |found, done| Tally { found, done, deletions: 0, missing: Vec::new() };
    let which = Which::All;
    assert_eq!(act::<Waiting>(&*world.store, &which, Deed::Retry, true, world.now).await, Ok(tally(2, 0)));
    assert_eq!(world.store.queue_depth().await.unwrap().dead, 1, "a dry run changes nothing");
    let other = Which::Of("user.updated".to_owned());
    assert_eq!(act::<Waiting>(&*world.store, &other, Deed::Retry, false, world.now).await, Ok(tally(0, 0)));
    let unknown = SvixId::new("msg_none").unwrap();
    let named = Which::These(vec![svix_id(&due), unknown.clone()]);
    let missing = Tally { missing: vec![unknown], ..tally(0, 0) };
    assert_eq!(act::<Waiting>(&*world.store, &named, Deed::Retry, false, world.now).await, Ok(missing));
    let of_type = Which::Of("user.created".to_owned());
    assert_eq!(act::<Waiting>(&*world.store, &of_type, Deed::Retry, false, world.now).await, Ok(tally(2, 2)));
    let attempts = world.column("SELECT attempts FROM webhook_queue ORDER BY clerk_id").await;
    assert_eq!(attempts, ["0", "1", "0"], "the dead letter starts over");
    allow_names(&world).await;
    assert_eq!(world.drain().await.len(), 3);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn a_discarded_delivery_never_comes_back_and_a_deletion_is_never_discarded(mut world: World) {
    world.enqueue(&[Event::created("user_1")]).await;
    world.drain().await;
    resist(&mut world, &["user_1"]).await;
    let deletion = Event::deleted("user_1", 1000);
    let waiting = Event::created("user_2");
    let unusable = [Event::raw("unusable"), Event::about("user.deleted", 7, 0)];
    world.enqueue(&[deletion.clone(), unusable[0].clone(), unusable[1].clone()]).await;
    world.drain().await;
    world.enqueue(std::slice::from_ref(&waiting)).await;
    let all = act::<Waiting>(&*world.store, &Which::All, Deed::Discard, true, world.now).await.unwrap();
    assert_eq!((all.number(true), all.deletions), (2, 0), "only the dead letters count");
    assert_eq!(world.count("webhook_queue").await, 4);
    let all = act::<Waiting>(&*world.store, &Which::All, Deed::Discard, false, world.now).await.unwrap();
    assert_eq!((all.done, all.deletions), (2, 0));
    let named = Which::These([&deletion, &waiting, &unusable[0]].map(svix_id).to_vec());
    let named = act::<Waiting>(&*world.store, &named, Deed::Discard, false, world.now).await.unwrap();
    assert_eq!((named.done, named.deletions, named.missing), (1, 1, vec![svix_id(&unusable[0])]));
    assert_eq!(plain(&world.parked().await["svix_id"]), deletion.svix_id);
    for event in [&waiting, &unusable[0]] {
        assert_eq!(outcome(&world, event).await, "discarded");
    }
    assert_eq!(world.enqueue(std::slice::from_ref(&waiting)).await, [Duplicate]);
    assert_eq!(world.deliver(&waiting).await, Duplicate);
    assert!(world.user("user_2").await.is_none());
}

async fn only_old_dead_deliveries_are_forgotten(mut world: World) {
    world
        .enqueue(&[Event::created("user_1"), Event::raw("one"), Event::raw("two"), Event::raw("three")])
        .await;
    world.pass(TimeDelta::days(1));
    world.enqueue(&[Event::raw("four")]).await;
    let before = world.now;
    assert_eq!(world.store.prune(Old::Dead, before, 2).await, Ok(2));
    assert_eq!(world.store.prune(Old::Dead, before, 2).await, Ok(1));
    assert_eq!(world.store.prune(Old::Dead, before, 2).await, Ok(0));
    let left = world.column("SELECT state FROM webhook_queue ORDER BY received_at").await;
    assert_eq!(left, ["pending", "dead"]);
    if world.keeper == Keeper::Sqlite {
        assert!(!world.files_contain("three"));
    }
    let kept: Option<Kept> = world.store.parked(&SvixId::new("msg_none").unwrap()).await.unwrap();
    assert!(kept.is_none());
}

async fn a_dead_delivery_is_kept_from_when_it_died(mut world: World) {
    let event = Event::raw("one");
    world.enqueue(std::slice::from_ref(&event)).await;
    world.drain().await;
    let days = TimeDelta::days;
    world.pass(days(31));
    // Retried in vain, first by the operator, then by Svix.
    for again in 0..2 {
        if again == 0 {
            act::<Waiting>(&*world.store, &Which::All, Deed::Retry, false, world.now).await.unwrap();
        } else {
            world.enqueue(std::slice::from_ref(&event)).await;
        }
        world.drain().await;
        assert_eq!(world.column("SELECT state FROM webhook_queue").await, ["dead"]);
        assert_eq!(world.store.prune(Old::Dead, world.now - days(1), 10).await, Ok(0));
        world.pass(days(31));
    }
    assert_eq!(world.store.count_old(Old::Dead, world.now - days(30)).await, Ok(1));
    assert_eq!(world.store.prune(Old::Dead, world.now - days(30), 10).await, Ok(1));
}
