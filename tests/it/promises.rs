//! The store contract and the rules as tests: each test is one promise, and every backend keeps it.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    entity::{USER, user},
    model::{
        Actor, AuditAction, AuditEntry, DeletionPolicy, Field, FieldSet, Object, Outcome, Profile, Register,
        Selection, Source, SvixId, Value, Version,
    },
    store::{
        Activity, Advance, Bucket, Count, DeliveryFilter, ErrorKind, ForeignColumn, ForeignReading, History,
        Old, Origin, Patience, Processed, Record, RowFate, RowFilter, Run, RunKind, Store, Transaction, Way,
    },
    sync::{Clock, Committer, Lanes, Limits, Refusal, apply},
    work::{
        Retention,
        retention::{Keep, PRUNE},
        worker::Worker,
    },
};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    application::{
        DEFERRED, allow_nameless, allow_names, erase, order, orders, pointing, refuse_name, refuse_nameless,
        resist, resist_no_longer,
    },
    outbox::subscribe,
    world::{Event, Keeper, NOW, SIGN_UP, World, after, at, clerk_id, emails, plain, run, tally, time},
};

use Outcome::{Applied, Duplicate, Ignored, Parked, Stale, Unchanged};

macro_rules! promises {
    ($($(#[$attribute:meta])* $promise:ident),+ $(,)?) => {
        mod postgres {
            use super::*;
            $(#[test] $(#[$attribute])* fn $promise() { run(Keeper::Postgres, super::$promise); })+
        }
        mod sqlite {
            use super::*;
            $(#[test] $(#[$attribute])* fn $promise() { run(Keeper::Sqlite, super::$promise); })+
        }
        mod mariadb {
            use super::*;
            $(#[test] $(#[$attribute])* fn $promise() { run(Keeper::Mariadb, super::$promise); })+
        }
        mod mysql {
            use super::*;
            $(#[test] $(#[$attribute])* fn $promise() { run(Keeper::Mysql, super::$promise); })+
        }
        mod mongodb {
            use super::*;
            $(#[test] $(#[$attribute])* fn $promise() {
                if $crate::secantus::applies(stringify!($promise)) {
                    run(Keeper::Mongodb, super::$promise);
                }
            })+
        }
    };
}

pub(crate) use promises;

promises! {
    // Applied once, in order.
    a_delivery_is_recorded_once,
    the_same_delivery_many_times_at_once_is_applied_once,
    events_of_one_user_at_once_end_with_the_newest,
    repeats_inside_a_batch_are_sorted_out,
    a_stale_version_writes_nothing,
    equal_times_are_decided_by_the_envelope_and_then_by_the_svix_id,
    a_time_that_cannot_be_true_counts_as_the_envelopes,
    an_envelope_in_seconds_is_understood,
    a_time_means_the_same_however_it_is_written,
    an_example_of_svix_that_is_sent_again_is_unchanged,
    a_tombstone_outlives_a_late_update,
    deletion_is_terminal_whatever_its_time,
    the_deletion_of_a_user_never_seen_leaves_a_tombstone_and_no_audit_line,
    what_is_not_synced_is_ignored_and_recorded,
    the_test_message_of_svix_is_ignored,

    a_restore_that_left_the_sequences_behind_keeps_nobody_out,

    // Contents of a row.
    every_field_comes_back_as_it_was_sent,
    milliseconds_survive,
    ids_differing_only_in_case_are_two_users,
    a_shared_email_never_overwrites_another_user,
    what_is_absent_keeps_what_is_stored,
    what_is_null_clears_what_is_stored,
    an_email_is_absent_only_if_nothing_is_said_of_it,
    a_primary_email_that_dangles_is_no_email,
    only_allow_listed_fields_are_written,
    the_applications_columns_are_never_touched,
    unchanged_moves_two_times_and_writes_no_audit_line,
    the_audit_trail_names_fields_and_never_values,
    actors_stand_beside_the_trail,
    nul_and_lone_surrogates_become_replacement_characters,
    odd_fields_that_are_not_synced_never_park_an_event,
    a_value_that_cannot_be_read_keeps_what_is_stored_and_the_rest_is_applied,

    // Parked.
    an_unusable_event_is_kept_dead_byte_for_byte,
    a_body_without_a_type_goes_with_whoever_it_names,
    metadata_that_no_database_can_hold_freezes_nobody,
    a_field_that_an_index_of_the_application_cannot_hold_freezes_nobody,
    what_the_application_refuses_is_kept_and_tried_again,
    what_the_application_has_broken_is_its_refusal_and_is_named,
    a_deletion_that_the_application_has_broken_is_tried_again_until_it_works,
    a_parked_delivery_keeps_the_time_when_it_first_came,
    what_is_parked_is_applied_once_the_application_allows_it,
    what_was_parked_and_recorded_at_once_leaves_the_queue_when_it_comes_again,
    a_row_that_the_application_marked_as_deleted_is_anonymised_all_the_same,
    after_fifteen_attempts_a_parked_delivery_is_dead,
    a_dead_delivery_can_still_be_delivered_again,
    parking_for_a_deleted_user_is_stale_and_keeps_nothing,
    a_parked_event_that_became_old_is_stale_and_leaves_the_queue,
    a_poisoned_delivery_in_a_batch_parks_alone,
    errors_carry_no_people,

    // Deletion.
    a_foreign_key_decides_between_deleting_and_anonymising,
    a_deferred_foreign_key_decides_as_well,
    a_trigger_that_refuses_decides_as_well,
    a_cascade_stays_the_applications_own_decision,
    what_is_refused_for_one_of_many_holds_up_none_of_them,
    a_trigger_that_brings_back_what_was_taken_out_is_no_erasure,
    a_trigger_that_changes_whose_row_it_is_parks_the_event,
    one_of_many_in_a_batch_is_anonymised_and_the_others_deleted,
    one_of_many_with_a_deferred_key_is_anonymised_and_the_others_deleted,
    the_policy_anonymize_always_keeps_the_row,
    the_policy_delete_never_anonymises,
    a_failing_deletion_is_kept_without_personal_data_and_never_dies,
    a_failing_deletion_succeeds_by_redelivery_once_it_may,
    a_failing_deletion_succeeds_by_the_retry_loop_once_it_may,
    a_deletion_that_only_the_commit_refuses_is_never_lost,
    a_user_who_can_be_neither_deleted_nor_anonymised_is_tried_again,
    one_of_many_deletions_that_fails_parks_alone,
    a_repeat_of_a_deletion_that_fails_is_parked_too,
    a_poisoned_update_beside_the_deletion_leaves_nothing,
    anonymize_columns_are_emptied,
    nothing_of_a_deleted_user_remains,
    nothing_of_an_anonymised_user_remains,
    created_and_deleted_in_one_batch_leaves_a_tombstone_only,

    // Read by others.
    a_row_is_given_with_its_number_and_what_the_application_keeps_in_it,
    a_walk_through_the_pages_meets_everybody_once_while_others_come_and_go,
    an_address_is_found_in_any_case_and_never_that_of_a_deleted_user,
    signups_are_counted_by_day_week_and_month_in_utc,
    signups_are_counted_from_a_time_on_and_before_another,

    // Catching up.
    a_lease_has_one_holder_until_it_ends,
    what_a_sink_remembers_of_a_user_is_its_own_and_goes_with_the_recipient,
    an_interrupted_run_is_found_again_and_belongs_to_who_took_it_last,
    the_instance_that_users_come_from_is_remembered,
    of_several_replicas_that_meet_a_first_event_all_know_the_same_instance,
    what_is_known_is_read_without_waiting_for_anybody,
    only_standing_users_that_nobody_touched_are_listed_in_the_order_of_their_ids,
    whom_the_application_marked_or_inserted_is_listed_and_whose_erasure_is_asked_for_is_not,
    the_number_of_many_users_is_known_at_once_and_about_right,
    the_time_without_us_is_told_by_webhooks_and_runs,

    // Committer and upkeep.
    what_is_handed_to_the_committer_is_answered_and_finished,
    the_upkeep_forgets_what_is_old,
    the_room_that_the_database_takes_up_is_known,

    // The backend itself.
    a_commit_is_all_or_nothing,
    a_transaction_that_loses_a_race_says_so,
    what_others_wrote_while_a_user_was_waited_for_is_seen,
    after_the_deadline_nothing_is_done,
    a_deletion_that_one_key_refuses_takes_nothing_along_by_another,
    a_row_that_was_anonymised_before_is_not_called_deleted_while_a_key_keeps_it,
    somebody_elses_lock_loses_nothing,
    what_is_locked_is_held_in_a_room_of_a_size_until_it_is_free,
    what_stays_locked_is_put_into_the_queue_if_it_can_be,
    the_audit_trail_only_grows,
    migrations_are_safe_when_ten_run_at_once,
    migrating_again_does_nothing,
    a_store_is_ready_once_it_is_migrated,
    a_database_of_every_version_before_is_brought_up_to_date,
    a_table_that_somebody_else_has_is_named_also_by_an_upgrade,
    tables_that_are_not_ours_are_refused_and_left_alone,
    a_column_of_another_type_is_refused,
    extra_columns_are_fine,
    signups_are_counted_by_week_from_monday_in_utc,
    old_processed_ids_are_forgotten_and_no_others,
    the_newest_deliveries_come_first,
    what_was_answered_is_counted_by_the_minute,
    what_a_table_of_an_application_holds_is_told,
    a_table_of_an_application_is_read_page_by_page_in_the_order_of_its_ids,
}

async fn a_lease_has_one_holder_until_it_ends(world: World) {
    let (long, short) = (Duration::from_mins(1), Duration::from_millis(200));
    let longest = 2 * long;
    let hold =
        async |holder: &str, lasting| world.store.hold_lease("it", holder, lasting, longest).await.unwrap();
    assert!(hold("one", long).await);
    assert!(!hold("two", long).await);
    assert!(hold("one", short).await, "kept");
    tokio::time::sleep(2 * short).await;
    assert!(hold("two", long).await, "the holder's lease has expired");
    assert!(!hold("one", long).await);
    world.store.release_lease("it", "one").await.unwrap();
    assert!(!hold("one", long).await, "only the holder can release it");
    world.store.release_lease("it", "two").await.unwrap();
    // It was taken while the clock was a day ahead.
    assert!(hold("one", Duration::from_hours(24)).await);
    assert!(hold("two", long).await, "no such lease lasts a day");
    assert!(!hold("one", long).await);
    let mut asking = JoinSet::new();
    for number in 0..10 {
        let store = Arc::clone(&world.store);
        asking.spawn(async move {
            store.hold_lease("other", &format!("replica {number}"), long, longest).await.unwrap()
        });
    }
    assert_eq!(asking.join_all().await.into_iter().filter(|held| *held).count(), 1);
}

async fn what_a_sink_remembers_of_a_user_is_its_own_and_goes_with_the_recipient(world: World) {
    let reference = async |sink: &str, id: &str| world.store.reference(sink, &clerk_id(id)).await.unwrap();
    let keep = async |sink: &str, id: &str, reference: &str| {
        world.store.keep_reference(sink, &clerk_id(id), reference).await.unwrap()
    };
    world
        .sql(
            "INSERT INTO outbox_recipients (clerk_id, sink) VALUES ('user_a', 'one'), ('user_a', 'two'), ('user_b', 'one')",
        )
        .await;
    assert_eq!(reference("one", "user_a").await, None);
    assert!(keep("one", "user_a", "first").await);
    assert!(keep("one", "user_a", "second").await);
    assert_eq!(reference("one", "user_a").await.as_deref(), Some("second"));
    assert_eq!(reference("two", "user_a").await, None);
    assert_eq!(reference("one", "user_b").await, None);

    world.sql("DELETE FROM outbox_recipients WHERE clerk_id = 'user_a' AND sink = 'one'").await;
    assert_eq!(reference("one", "user_a").await, None);
    assert!(
        !keep("one", "user_a", "too late").await,
        "keeping a reference must not make the user a recipient again"
    );
    assert_eq!(world.value("SELECT count(*) FROM outbox_recipients").await, "2");
}

async fn an_interrupted_run_is_found_again_and_belongs_to_who_took_it_last(world: World) {
    let store = &world.store;
    let run = |id: &str, owner: &str, started_at| Run {
        id: id.to_owned(),
        kind: RunKind::Backfill,
        owner: owner.to_owned(),
        parameters: "all".to_owned(),
        everybody: true,
        progress: "[]".to_owned(),
        started_at,
        updated_at: started_at,
        finished_at: None,
    };
    let older = run("1", "one", at(NOW - 60_000));
    let mut newer = run("2", "one", at(NOW));
    for run in [&older, &newer] {
        store.begin_run(run).await.unwrap();
    }
    assert_eq!(store.unfinished_run(RunKind::Backfill, "all").await.unwrap(), Some(newer.clone()));
    assert_eq!(store.unfinished_run(RunKind::Backfill, "some").await.unwrap(), None);
    assert_eq!(store.unfinished_run(RunKind::Reconcile, "all").await.unwrap(), None);

    newer.progress.replace_range(.., "[1]");
    assert!(store.save_run(&newer).await.unwrap());
    let taken = Run { owner: "two".to_owned(), ..newer.clone() };
    store.begin_run(&taken).await.unwrap();
    assert!(!store.save_run(&newer).await.unwrap(), "another process took the run over");
    assert_eq!(store.unfinished_run(RunKind::Backfill, "all").await.unwrap(), Some(taken.clone()));

    let finished = Run { finished_at: Some(at(NOW + 5)), ..taken };
    assert!(store.save_run(&finished).await.unwrap());
    assert_eq!(
        store.unfinished_run(RunKind::Backfill, "all").await.unwrap(),
        None,
        "the newer run has done what the older one left"
    );
    assert_eq!(store.last_finished(RunKind::Backfill, None).await.unwrap(), Some(finished.clone()));
    let of_some = Run { everybody: false, finished_at: Some(at(NOW + 9)), ..run("3", "one", at(NOW)) };
    store.begin_run(&of_some).await.unwrap();
    assert_eq!(
        store.last_finished(RunKind::Backfill, None).await.unwrap(),
        Some(finished.clone()),
        "a run over some users says nothing about the others"
    );
    assert_eq!(store.last_finished(RunKind::Reconcile, None).await.unwrap(), None);
    let old = Run { id: "4".to_owned(), parameters: "some".to_owned(), ..older };
    store.begin_run(&old).await.unwrap();
    assert_eq!(store.unfinished_run(RunKind::Backfill, "some").await.unwrap(), Some(old));
    store.prune_runs(at(NOW)).await.unwrap();
    assert_eq!(
        store.unfinished_run(RunKind::Backfill, "some").await.unwrap(),
        None,
        "the older run is pruned"
    );
    assert_eq!(store.last_finished(RunKind::Backfill, None).await.unwrap(), Some(finished.clone()));
}

async fn the_instance_that_users_come_from_is_remembered(world: World) {
    let store = &world.store;
    assert_eq!(store.origin().await.unwrap(), None);
    store.note_refused("ins_3", world.now).await.unwrap();
    let origin = |instance: &str, previous: Option<&str>, refused: Option<&str>| {
        let refused = refused.map(|id| (id.to_owned(), world.now));
        let (instance, previous) = (instance.to_owned(), previous.map(ToOwned::to_owned));
        Some(Origin { confirmed: instance == "ins_2", instance, previous, refused })
    };
    // The first instance is kept.
    for id in ["ins_1", "ins_2", "ins_1"] {
        assert_eq!(store.claim_instance(id).await.unwrap(), "ins_1");
    }
    assert_eq!(store.origin().await.unwrap(), origin("ins_1", None, None));
    store.note_refused("ins_1", world.now).await.unwrap();
    assert_eq!(
        store.origin().await.unwrap(),
        origin("ins_1", None, None),
        "the claimed instance is not noted as refused"
    );
    store.note_refused("ins_2", world.now).await.unwrap();
    assert_eq!(store.origin().await.unwrap(), origin("ins_1", None, Some("ins_2")));
    // Changing the instance replaces it.
    for id in ["ins_2", "ins_2"] {
        store.change_instance(id).await.unwrap();
        assert_eq!(store.origin().await.unwrap(), origin("ins_2", Some("ins_1"), None));
    }
    store.settle_instance().await.unwrap();
    assert_eq!(store.origin().await.unwrap(), origin("ins_2", None, None));
    assert_eq!(world.count("clerk_instance").await, 1);
}

async fn of_several_replicas_that_meet_a_first_event_all_know_the_same_instance(world: World) {
    for _ in 0..5 {
        let replicas = [world.open().await, world.open().await, world.open().await];
        let claims = replicas.iter().enumerate().map(|(number, replica)| {
            let replica = Arc::clone(replica);
            tokio::spawn(async move { replica.claim_instance(&format!("ins_{number}")).await.unwrap() })
        });
        let claims: Vec<_> = claims.collect();
        let mut known = BTreeSet::new();
        for claim in claims {
            known.insert(claim.await.unwrap());
        }
        assert_eq!(known.len(), 1, "{known:?}");
        world.sql("DELETE FROM clerk_instance").await;
    }
}

async fn what_is_known_is_read_without_waiting_for_anybody(world: World) {
    let event = Event::created("user_1");
    assert_eq!(world.deliver(&event).await, Applied);
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    transaction.registers(&[clerk_id("user_1")]).await.unwrap();
    let ids = [clerk_id("user_1"), clerk_id("user_2")];
    let known = world.store.known(&ids, &world.rules.selection).await.unwrap();
    assert_eq!((known.registers.len(), known.objects.len()), (1, 1));
    assert_eq!(known.objects[&ids[0]], world.user("user_1").await.unwrap());
    transaction.rollback().await;
}

async fn only_standing_users_that_nobody_touched_are_listed_in_the_order_of_their_ids(mut world: World) {
    for id in ["user_c", "user_a", "user_b", "user_d"] {
        assert_eq!(world.deliver(&Event::created(id)).await, Applied);
    }
    assert_eq!(world.deliver(&Event::deleted("user_d", 1)).await, Applied);
    let began = world.now + TimeDelta::seconds(1);
    world.now = began + TimeDelta::seconds(1);
    assert_eq!(world.deliver(&Event::created("user_e")).await, Applied);
    let first = world.store.standing(&USER, began, None, 2).await.unwrap();
    assert_eq!(first, [clerk_id("user_a"), clerk_id("user_b")]);
    let rest = world.store.standing(&USER, began, first.last(), 2).await.unwrap();
    assert_eq!(rest, [clerk_id("user_c")]);
    assert_eq!(world.store.count_standing(&USER).await.unwrap(), 4);
}

async fn whom_the_application_marked_or_inserted_is_listed_and_whose_erasure_is_asked_for_is_not(
    mut world: World,
) {
    world.deliver_all(&["user_erased", "user_held", "user_marked", "user_resists"].map(Event::created)).await;
    world
        .sql("UPDATE users SET deleted_at = '2020-01-01T00:00:00.000Z' WHERE clerk_id = 'user_marked'")
        .await;
    world.sql("INSERT INTO users (clerk_id, email) VALUES ('user_inserted', 'eve@example.com')").await;
    world.deliver(&Event::deleted("user_erased", 1000)).await;
    resist(&mut world, &["user_resists"]).await;
    assert_eq!(world.deliver(&Event::deleted("user_resists", 1000)).await, Parked);
    world.rules.grace = TimeDelta::days(7);
    world.deliver(&Event::deleted("user_held", 1000)).await;
    let listed = world.store.standing(&USER, world.now + TimeDelta::seconds(1), None, 10).await.unwrap();
    assert_eq!(listed, [clerk_id("user_inserted"), clerk_id("user_marked")]);
    assert_eq!(world.store.count_standing(&USER).await.unwrap(), 2);
}

async fn the_number_of_many_users_is_known_at_once_and_about_right(world: World) {
    assert_eq!(world.store.estimate_standing().await.unwrap(), Count { rows: 0, estimated: false });
    // A third of the users are deleted, and the table is not analysed.
    world
        .sql_of(
            "INSERT INTO users (clerk_id, first_name, deleted_at)
             SELECT 'user_' || i, repeat('x', 200), CASE WHEN i % 3 = 0 THEN now() END
             FROM generate_series(1, 60000) AS i",
            "INSERT INTO users (clerk_id, first_name, deleted_at)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
             SELECT 'user_' || i, 'x', CASE WHEN i % 3 = 0 THEN '2026-01-01T00:00:00.000Z' END FROM n",
            "INSERT INTO users (clerk_id, first_name, deleted_at)
             SELECT 'user_' || i, repeat('x', 200), CASE WHEN i % 3 = 0 THEN utc_timestamp(3) END
             FROM JSON_TABLE('[' || repeat('0,', 59999) || '0]', '$[*]' COLUMNS (i FOR ORDINALITY)) AS n",
        )
        .await;
    let estimate = world.store.estimate_standing().await.unwrap();
    assert_eq!(estimate.estimated, world.keeper != Keeper::Sqlite);
    assert!((39_000..=41_000).contains(&estimate.rows), "{estimate:?}");
}

async fn the_time_without_us_is_told_by_webhooks_and_runs(world: World) {
    let second = TimeDelta::seconds(1);
    let (before, after) = (world.now - second, world.now + second);
    assert_eq!(world.store.history(before, after).await.unwrap(), History::Empty);
    assert_eq!(world.deliver(&Event::created("user_1")).await, Applied);
    assert_eq!(world.store.history(before, after).await.unwrap(), History::Recent);
    assert_eq!(world.store.history(after, after + second).await.unwrap(), History::Silent);
    // A delivery after the start says nothing about the time before it.
    assert_eq!(world.store.history(before - second, before).await.unwrap(), History::Silent);
}

async fn a_delivery_is_recorded_once(world: World) {
    let event = Event::created("user_1");
    assert_eq!(world.deliver(&event).await, Applied);
    let before = world.dump().await;
    assert_eq!(world.deliver(&event).await, Duplicate);
    assert_eq!(world.dump().await, before);
    let recorded = &world.rows("SELECT * FROM processed_webhooks").await[0];
    assert_eq!(plain(&recorded["svix_id"]), event.svix_id);
    assert_eq!(recorded["event_type"], "user.created");
    assert_eq!(recorded["outcome"], "applied");
    assert_eq!(recorded["clerk_id"], "user_1");
    assert_eq!(time(&recorded["event_at"]), at(SIGN_UP));
    assert_eq!(time(&recorded["processed_at"]), world.now);
}

async fn the_same_delivery_many_times_at_once_is_applied_once(world: World) {
    let event = Event::created("user_1");
    let outcomes = at_once(world, vec![event; 8], async |world| {
        assert_eq!(world.count("users").await, 1);
        assert_eq!(world.count("audit_log").await, 1);
    })
    .await;
    assert_eq!(tally(outcomes), tally(["applied"].into_iter().chain(["duplicate"; 7])));
}

async fn events_of_one_user_at_once_end_with_the_newest(world: World) {
    let events =
        (1..=16).map(|n| Event::updated("user_1", n).set("first_name", format!("Ada {n}"))).collect();
    let outcomes = at_once(world, events, async |world| {
        assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Ada 16");
        assert_eq!(world.count("users").await, 1);
    })
    .await;
    assert!(outcomes.iter().all(|outcome| ["applied", "stale"].contains(outcome)), "{outcomes:?}");
}

/// Deliver all events at once, each in its own transaction, and check the end state.
async fn at_once(world: World, events: Vec<Event>, look: impl AsyncFnOnce(&World)) -> Vec<&'static str> {
    let world = Arc::new(world);
    let deliveries: Vec<_> = events
        .into_iter()
        .map(|event| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.deliver(&event).await.name() })
        })
        .collect();
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(delivery.await.unwrap());
    }
    look(&world).await;
    outcomes
}

async fn repeats_inside_a_batch_are_sorted_out(world: World) {
    let (one, two) = (Event::created("user_1"), Event::created("user_2"));
    let update = Event::updated("user_1", 1000).set("first_name", "Augusta");
    let batch = [one.clone(), two.clone(), one.clone(), update.clone(), one, two, update];
    let outcomes = world.deliver_all(&batch).await;
    assert_eq!(outcomes, [Applied, Applied, Duplicate, Applied, Duplicate, Duplicate, Duplicate]);
    assert_eq!(world.audit().await.len(), 3);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Augusta");
}

async fn a_stale_version_writes_nothing(world: World) {
    world.deliver(&Event::created("user_1")).await;
    world.deliver(&Event::updated("user_1", 1000)).await;
    let before = without(&world.dump().await, "processed_webhooks");
    let late = Event::updated("user_1", 500).set("first_name", "Old");
    assert_eq!(world.deliver(&late).await, Stale);
    assert_eq!(world.deliver(&late).await, Duplicate);
    assert_eq!(without(&world.dump().await, "processed_webhooks"), before);
    let outcome = format!("SELECT outcome FROM processed_webhooks WHERE svix_id = '{}'", late.svix_id);
    assert_eq!(world.value(&outcome).await, "stale");
}

fn without(dump: &[String], table: &str) -> Vec<String> {
    dump.iter().filter(|line| !line.starts_with(table)).cloned().collect()
}

async fn equal_times_are_decided_by_the_envelope_and_then_by_the_svix_id(world: World) {
    let named = |svix_id: &str| Event::updated("user_1", 1000).set("first_name", svix_id).svix(svix_id);
    assert_eq!(world.deliver(&named("msg_m")).await, Applied);
    assert_eq!(world.deliver(&named("msg_a")).await, Stale);
    // The svix-ids are compared byte by byte, whatever the database's locale.
    assert_eq!(world.deliver(&named("msg_Z")).await, Stale);
    assert_eq!(world.deliver(&named("msg_z")).await, Applied);
    assert_eq!(world.deliver(&named("msg_z0")).await, Applied);
    let later_envelope = named("msg_0").envelope("timestamp", SIGN_UP + 1001);
    assert_eq!(world.deliver(&later_envelope).await, Applied);
    assert_eq!(world.deliver(&named("msg_zz")).await, Stale);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "msg_0");
}

async fn a_time_that_cannot_be_true_counts_as_the_envelopes(world: World) {
    let told = |value: serde_json::Value| Event::updated("user_1", 1000).set("updated_at", value);
    let odd = [
        told(json!(NOW + 86_400_001)),
        told(json!("2026-01-01")),
        told(json!(null)),
        told(json!(1.5)),
        told(json!({})),
        Event::updated("user_1", 1000).without("updated_at"),
    ];
    for (number, event) in odd.into_iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        let event =
            event.envelope("timestamp", SIGN_UP + 2000 + number).set("first_name", number.to_string());
        assert_eq!(world.deliver(&event).await, Applied, "{event:?}");
        assert_eq!(world.user("user_1").await.unwrap().updated_at, after(2000 + number));
    }
    // Clocks differ a little, so a time up to a day ahead is accepted.
    let ahead = told(json!(NOW + 86_400_000)).set("first_name", "Ahead");
    assert_eq!(world.deliver(&ahead).await, Applied);
    assert_eq!(world.user("user_1").await.unwrap().updated_at, at(NOW + 86_400_000));
}

async fn an_envelope_in_seconds_is_understood(world: World) {
    let event = Event::created("user_1").without("updated_at").envelope("timestamp", SIGN_UP / 1000);
    assert_eq!(world.deliver(&event).await, Applied);
    assert_eq!(world.user("user_1").await.unwrap().updated_at, at(SIGN_UP / 1000 * 1000));
}

async fn a_tombstone_outlives_a_late_update(world: World) {
    world.deliver(&Event::created("user_1")).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
    assert_eq!(world.deliver(&Event::created("user_1")).await, Stale);
    assert!(world.user("user_1").await.is_none());
    assert_eq!(world.audit().await, ["USER_CREATED user_1", "USER_HARD_DELETED user_1"]);
}

async fn deletion_is_terminal_whatever_its_time(world: World) {
    world.deliver(&Event::updated("user_1", 5000)).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1)).await, Applied);
    assert_eq!(world.deliver(&Event::deleted("user_1", 9000)).await, Stale);
    assert_eq!(world.deliver(&Event::updated("user_1", 9000)).await, Stale);
    assert!(world.user("user_1").await.is_none());
}

async fn the_deletion_of_a_user_never_seen_leaves_a_tombstone_and_no_audit_line(world: World) {
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert_eq!(world.deliver(&Event::created("user_1")).await, Stale);
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
    assert_eq!(world.deliver(&Event::deleted("user_1", 3000)).await, Stale);
    assert_eq!(world.count("users").await, 0);
    assert_eq!(world.count("audit_log").await, 0);
    assert!(is_tombstone(&world, "user_1").await);
}

async fn is_tombstone(world: &World, id: &str) -> bool {
    let query = format!("SELECT deleted FROM entity_versions WHERE kind = 'user' AND clerk_id = '{id}'");
    world.value(&query).await == "1"
}

async fn a_restore_that_left_the_sequences_behind_keeps_nobody_out(mut world: World) {
    subscribe(&mut world, &["crm"]);
    let old: Vec<Event> = (0..300).map(|number| Event::created(&format!("user_old_{number:03}"))).collect();
    assert!(world.deliver_all(&old).await.iter().all(|outcome| *outcome == Outcome::Applied));
    for table in ["users", "audit_log", "outbox"] {
        world
            .sql_of(
                &format!("SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1, false)"),
                &format!("DELETE FROM sqlite_sequence WHERE name = '{table}'"),
                // These servers never set the counter below an existing id.
                &format!("ALTER TABLE {table} AUTO_INCREMENT = 1"),
            )
            .await;
        if world.keeper == Keeper::Mongodb {
            world.mirror().forget_numbers(table).await;
        }
        let new = Event::created(&format!("user_new_{table}"));
        let change = Event::updated(&format!("user_old_{:03}", table.len()), 1000).set("first_name", "New");
        let deletion = Event::deleted(&format!("user_old_{:03}", 100 + table.len()), 1000);
        for event in [new, change, deletion] {
            assert_eq!(world.deliver(&event).await, Outcome::Applied, "{table}");
        }
    }
    assert_eq!(world.count("webhook_queue").await, 0);
    // A start repairs the counter as well.
    world
        .sql_of(
            "SELECT setval(pg_get_serial_sequence('users', 'id'), 1, false)",
            "DELETE FROM sqlite_sequence WHERE name = 'users'",
            "ALTER TABLE users AUTO_INCREMENT = 1",
        )
        .await;
    if world.keeper == Keeper::Mongodb {
        world.mirror().forget_numbers("users").await;
    }
    world.store.migrate().await.unwrap();
    assert_eq!(world.store.inspect().await.unwrap().sequences, []);
}

async fn what_is_not_synced_is_ignored_and_recorded(world: World) {
    let session = Event::about("session.created", json!({ "id": "sess_1", "user_id": "user_1" }), SIGN_UP);
    let unheard = Event::about("user.teleported", json!({ "id": "user_1" }), SIGN_UP);
    let nobody = Event::about("user.deleted", json!({ "deleted": true, "object": "user" }), SIGN_UP);
    let batch = [session.clone(), unheard, nobody, Event::created("user_1")];
    assert_eq!(world.deliver_all(&batch).await, [Ignored, Ignored, Ignored, Applied]);
    assert_eq!(world.deliver(&session).await, Duplicate);
    let outcomes = world.column("SELECT outcome FROM processed_webhooks").await;
    assert_eq!(
        tally(outcomes.iter().map(String::as_str)),
        tally(["ignored", "ignored", "ignored", "applied"])
    );
}

async fn every_field_comes_back_as_it_was_sent(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let user = world.user("user_1").await.unwrap();
    let expected = [
        (user::EMAIL, text("ada@example.com")),
        (USER.field("email_verified"), Value::Bool(true)),
        (user::FIRST_NAME, text("Ada")),
        (user::LAST_NAME, text("Lovelace")),
        (user::IMAGE_URL, text("https://img.clerk.com/ada")),
        (USER.field("username"), text("ada")),
        (USER.field("phone_number"), text("+15555550100")),
        (USER.field("external_id"), text("ext-7")),
        (USER.field("public_metadata"), Value::Json(r#"{"plan":"pro"}"#.to_owned())),
        (USER.field("unsafe_metadata"), Value::Json(r#"{"theme":"dark"}"#.to_owned())),
        (USER.field("private_metadata"), Value::Json(r#"{"note":"likes engines"}"#.to_owned())),
        (USER.field("banned"), Value::Bool(false)),
        (USER.field("locked"), Value::Bool(true)),
        (USER.field("last_sign_in_at"), Value::Time(after(1))),
        (USER.field("last_active_at"), Value::Time(after(2))),
    ];
    for (field, value) in expected {
        assert_eq!(user.profile[field], value, "{}", field.name());
        if let (Value::Text(a), Value::Text(b)) = (&user.profile[field], &value) {
            assert_eq!(a, b);
        }
    }
    assert_eq!(user.created_at, Some(at(SIGN_UP)));
    assert_eq!(user.updated_at, at(SIGN_UP));
    assert_eq!(user.synced_at, world.now);
    assert_eq!(user.deleted_at, None);

    // Any string that Clerk accepts.
    let odd = "Zo\u{eb} \u{1f600} 'quoted\" \\ $1 ?1 {\"a\":1} \u{1}\n\u{fffd}";
    world.deliver(&Event::updated("user_1", 1000).set("first_name", odd).set("last_name", "")).await;
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), odd);
    assert_eq!(world.text("user_1", user::LAST_NAME).await.unwrap(), "");
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

async fn milliseconds_survive(world: World) {
    let event = Event::updated("user_1", 7)
        .envelope("timestamp", SIGN_UP + 9)
        .set("last_sign_in_at", SIGN_UP - 456)
        .set("last_active_at", -1);
    world.deliver(&event).await;
    let user = world.user("user_1").await.unwrap();
    assert_eq!(user.created_at, Some(at(SIGN_UP)));
    assert_eq!(user.updated_at, after(7));
    assert_eq!(user.profile[USER.field("last_sign_in_at")], Value::Time(after(-456)));
    assert_eq!(user.profile[USER.field("last_active_at")], Value::Time(at(-1)));
    let register = &world.rows("SELECT version, event_at, tie FROM entity_versions").await[0];
    assert_eq!(plain(&register["version"]), (SIGN_UP + 7).to_string());
    assert_eq!(plain(&register["event_at"]), (SIGN_UP + 9).to_string());
    assert_eq!(plain(&register["tie"]), event.svix_id);
    assert_eq!(time(&world.rows("SELECT event_at FROM audit_log").await[0]["event_at"]), after(9));
}

async fn ids_differing_only_in_case_are_two_users(world: World) {
    let (one, two) = (Event::created("user_Ab"), Event::created("user_aB").set("first_name", "Bea"));
    assert_eq!(world.deliver_all(&[one.clone(), two]).await, [Applied, Applied]);
    assert_eq!(world.text("user_aB", user::FIRST_NAME).await.unwrap(), "Bea");
    world.deliver(&Event::deleted("user_Ab", 1)).await;
    assert!(world.user("user_Ab").await.is_none());
    assert!(world.user("user_aB").await.is_some());
    assert!(world.user("USER_AB").await.is_none());
    // The svix-id is compared in the same way.
    let shouted = one.svix_id.to_uppercase();
    assert_eq!(world.deliver(&Event::created("user_2").svix(&shouted)).await, Applied);
}

async fn a_shared_email_never_overwrites_another_user(world: World) {
    world.deliver(&Event::created("user_1").email("shared@example.com")).await;
    let other = Event::created("user_2").email("shared@example.com").set("first_name", "Charles");
    assert_eq!(world.deliver(&other).await, Applied);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Ada");
    assert_eq!(world.text("user_2", user::FIRST_NAME).await.unwrap(), "Charles");
    world.deliver(&Event::deleted("user_1", 1)).await;
    assert_eq!(world.text("user_2", user::EMAIL).await.unwrap(), "shared@example.com");
}

async fn what_is_absent_keeps_what_is_stored(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let before = world.user("user_1").await.unwrap();
    assert_eq!(world.deliver(&Event::minimal("user_1", 1000)).await, Unchanged);
    let minimal = world.user("user_1").await.unwrap();
    assert_eq!(minimal, Object { updated_at: after(1000), ..before.clone() });
    let named = Event::minimal("user_1", 2000).set("first_name", "Augusta");
    assert_eq!(world.deliver(&named).await, Applied);
    let mut profile = before.profile.clone();
    profile.set(user::FIRST_NAME, text("Augusta"));
    assert_eq!(world.user("user_1").await.unwrap(), Object { profile, updated_at: after(2000), ..before });
}

async fn what_is_null_clears_what_is_stored(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let mut event = Event::minimal("user_1", 1000)
        .set("primary_email_address_id", json!(null))
        .set("primary_phone_number_id", json!(null));
    for field in USER.fields() {
        if !matches!(field.name(), "email" | "email_verified" | "phone_number") {
            event = event.set(field.name(), json!(null));
        }
    }
    assert_eq!(world.deliver(&event).await, Applied);
    assert_eq!(world.user("user_1").await.unwrap().profile, Profile::default());
    assert_eq!(world.value("SELECT count(*) AS n FROM users WHERE public_metadata IS NULL").await, "1");
}

async fn an_email_is_absent_only_if_nothing_is_said_of_it(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let no_list = Event::minimal("user_1", 1000).set("primary_email_address_id", "idn_1");
    assert_eq!(world.deliver(&no_list).await, Unchanged);
    let no_id = Event::minimal("user_1", 2000).set("email_addresses", emails("new@example.com"));
    assert_eq!(world.deliver(&no_id).await, Unchanged);
    assert_eq!(world.text("user_1", user::EMAIL).await.unwrap(), "ada@example.com");
    let none = Event::minimal("user_1", 3000).set("primary_email_address_id", json!(null));
    assert_eq!(world.deliver(&none).await, Applied);
    let user = world.user("user_1").await.unwrap();
    assert_eq!(user.profile[user::EMAIL], Value::Null);
    assert_eq!(user.profile[USER.field("email_verified")], Value::Null);
    assert_eq!(changed_fields(&world).await.last().unwrap(), "email,email_verified");
}

/// `changed_fields` of every audit line, in write order.
async fn changed_fields(world: &World) -> Vec<String> {
    let lines = world.rows("SELECT changed_fields FROM audit_log ORDER BY id").await;
    lines
        .iter()
        .map(|line| match &line["changed_fields"] {
            serde_json::Value::String(text) => serde_json::from_str::<Vec<String>>(text).unwrap().join(","),
            array => serde_json::from_value::<Vec<String>>(array.clone()).unwrap().join(","),
        })
        .collect()
}

async fn a_primary_email_that_dangles_is_no_email(world: World) {
    for (n, list) in
        [json!([]), json!(null), json!([{ "id": "idn_9", "email_address": "x@example.com" }]), json!([7])]
            .into_iter()
            .enumerate()
    {
        let id = format!("user_{n}");
        world.deliver(&Event::created(&id)).await;
        let event = Event::updated(&id, 1000).set("email_addresses", list);
        assert_eq!(world.deliver(&event).await, Applied);
        assert_eq!(world.text(&id, user::EMAIL).await, None);
    }
}

async fn only_allow_listed_fields_are_written(mut world: World) {
    world.rules.selection = Selection::of(&USER, [user::EMAIL, user::FIRST_NAME].into_iter().collect());
    world.deliver(&Event::created("user_1")).await;
    let profile = world.user("user_1").await.unwrap().profile;
    for field in USER.fields() {
        let allowed = [user::EMAIL, user::FIRST_NAME].contains(&field);
        assert_eq!(profile[field] != Value::Null, allowed, "{}", field.name());
    }
    assert_eq!(changed_fields(&world).await, ["email,first_name"]);

    // The application may fill a column that is not on the allow-list.
    world
        .sql("UPDATE users SET last_name = 'Own', banned = NOT false, public_metadata = '{\"own\":1}'")
        .await;
    let update = Event::updated("user_1", 1000).set("first_name", "Augusta").set("last_name", "Other");
    assert_eq!(world.deliver(&update).await, Applied);
    let profile = world.user("user_1").await.unwrap().profile;
    assert_eq!(profile[user::FIRST_NAME].text(), Some("Augusta"));
    assert_eq!(profile[user::LAST_NAME].text(), Some("Own"));
    assert_eq!(profile[USER.field("banned")], Value::Bool(true));
    assert_eq!(profile[USER.field("public_metadata")], Value::Json(r#"{"own":1}"#.to_owned()));
    assert_eq!(world.deliver(&Event::updated("user_1", 2000).set("first_name", "Augusta")).await, Unchanged);
}

async fn the_applications_columns_are_never_touched(world: World) {
    world.deliver(&Event::created("user_1")).await;
    world.sql("ALTER TABLE users ADD COLUMN score INTEGER DEFAULT 5; ALTER TABLE users ADD COLUMN nickname TEXT").await;
    world.sql(r#"UPDATE users SET score = 7, nickname = 'Countess', preferences = '{"lang":"en"}'"#).await;
    world.deliver(&Event::updated("user_1", 1000).set("first_name", "Augusta")).await;
    world.deliver(&Event::created("user_2")).await;
    let rows = world.rows("SELECT clerk_id, score, nickname, preferences FROM users ORDER BY clerk_id").await;
    assert_eq!(rows[0]["score"], 7);
    assert_eq!(rows[0]["nickname"], "Countess");
    assert!(rows[0]["preferences"].to_string().contains("lang"));
    // MongoDB does not fill in a default.
    if world.keeper != Keeper::Mongodb {
        assert_eq!(rows[1]["score"], 5);
    }
}

async fn unchanged_moves_two_times_and_writes_no_audit_line(mut world: World) {
    world
        .deliver(&Event::created("user_1").set("public_metadata", json!({ "a": 1, "b": [true, 2.5] })))
        .await;
    let before = world.user("user_1").await.unwrap();
    world.pass(TimeDelta::seconds(2));
    let same = Event::updated("user_1", 1000)
        .set("public_metadata", json!("MARK"))
        .replacing(r#""MARK""#, r#"{ "b" : [true, 25e-1], "a": 1.0 }"#);
    assert_eq!(world.deliver(&same).await, Unchanged);
    let moved = world.user("user_1").await.unwrap();
    assert_eq!(moved, Object { updated_at: after(1000), synced_at: world.now, ..before });
    assert_eq!(world.audit().await, ["USER_CREATED user_1"]);
    assert_eq!(
        world.value("SELECT outcome FROM processed_webhooks ORDER BY processed_at DESC LIMIT 1").await,
        "unchanged"
    );
    // The register moved too.
    assert_eq!(world.deliver(&Event::updated("user_1", 999).set("first_name", "Old")).await, Stale);
}

async fn the_audit_trail_names_fields_and_never_values(world: World) {
    // A new row counts as created whatever the event's type, and an existing row counts as updated.
    let first = Event::updated("user_1", 1000);
    let second = Event::created("user_1").after(2000).set("first_name", "Augusta").set("banned", true);
    world.deliver_all(&[first.clone(), second.clone()]).await;
    world.deliver(&Event::deleted("user_1", 3000)).await;
    assert_eq!(
        world.audit().await,
        ["USER_CREATED user_1", "USER_UPDATED user_1", "USER_HARD_DELETED user_1"]
    );
    let every_field = USER.selectable().map(Field::name).collect::<Vec<_>>().join(",");
    assert_eq!(changed_fields(&world).await, [every_field.as_str(), "first_name,banned", ""]);
    let line = &world.rows("SELECT * FROM audit_log ORDER BY id").await[1];
    assert_eq!(plain(&line["svix_id"]), second.svix_id);
    assert_eq!(line["source"], "webhook");
    assert_eq!(time(&line["event_at"]), after(2000));
    assert_eq!(time(&line["at"]), world.now);
}

async fn actors_stand_beside_the_trail(world: World) {
    let blank = json!({ "http_request": { "client_ip": "", "user_agent": "" } });
    let other = json!({ "http_request": { "client_ip": "203.0.113.9" } });
    world
        .deliver_all(&[
            Event::created("user_1"),
            Event::created("user_2").envelope("event_attributes", blank),
            Event::created("user_3").without_envelope("event_attributes"),
            Event::created("user_4").envelope("event_attributes", other),
        ])
        .await;
    let query = "SELECT l.clerk_id, a.ip, a.user_agent FROM audit_actors AS a JOIN audit_log AS l ON l.id = a.audit_id
                 ORDER BY l.clerk_id";
    let actors = world.rows(query).await;
    let told: Vec<[String; 3]> =
        actors.iter().map(|row| ["clerk_id", "ip", "user_agent"].map(|name| plain(&row[name]))).collect();
    assert_eq!(
        told,
        [["user_1", "203.0.113.7", "Engine/1.0"], ["user_4", "203.0.113.9", "null"]]
            .map(|row| row.map(String::from))
    );
    world.deliver(&Event::deleted("user_1", 1)).await;
    assert_eq!(world.column("SELECT ip FROM audit_actors").await, ["203.0.113.9"]);
    assert_eq!(world.count("audit_log").await, 5);
}

async fn nul_and_lone_surrogates_become_replacement_characters(world: World) {
    let event = Event::created("user_1")
        .set("public_metadata", json!({ "MARK": "MARK" }))
        .set("first_name", "AdaMARK")
        .replacing("MARK", r"\u0000x\ud800");
    assert_eq!(world.deliver(&event).await, Applied);
    let user = world.user("user_1").await.unwrap();
    assert_eq!(user.profile[user::FIRST_NAME].text(), Some("Ada\u{fffd}x\u{fffd}"));
    let json = "{\"\u{fffd}x\u{fffd}\":\"\u{fffd}x\u{fffd}\"}";
    assert_eq!(user.profile[USER.field("public_metadata")], Value::Json(json.to_owned()));
    assert_eq!(world.count("webhook_queue").await, 0);
    // The same for the actor's data.
    let odd = json!({ "http_request": { "client_ip": "203.0.113.8", "user_agent": "MARK" } });
    let event = Event::created("user_2").envelope("event_attributes", odd).replacing("MARK", r"\u0000\udc00");
    assert_eq!(world.deliver(&event).await, Applied);
}

async fn odd_fields_that_are_not_synced_never_park_an_event(mut world: World) {
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let odd = Event::created("user_1")
        .set("has_image", 5)
        .set("web3_wallets", "none")
        .set("locale", "DEEP")
        .set("two_factor_enabled", "HUGE")
        .envelope("event_attributes", json!([1]))
        .envelope("object", 7)
        .replacing(r#""DEEP""#, &deep)
        .replacing(r#""HUGE""#, "1e1000000");
    assert_eq!(world.deliver(&odd).await, Applied);
    world.rules.selection = Selection::of(&USER, [user::EMAIL].into_iter().collect());
    let odd = Event::created("user_2")
        .set("first_name", 7)
        .set("banned", "yes")
        .set("last_sign_in_at", "today")
        .set("public_metadata", "DEEP")
        .set("phone_numbers", 1)
        .replacing(r#""DEEP""#, &deep);
    assert_eq!(world.deliver(&odd).await, Applied);
    assert_eq!(world.text("user_2", user::EMAIL).await.unwrap(), "ada@example.com");
}

async fn an_unusable_event_is_kept_dead_byte_for_byte(world: World) {
    let bodies: [&[u8]; 7] = [
        b"\xff\xfe no text \x00 at all",
        b"",
        b"[]",
        br#"{"type":"user.created"}"#,
        br#"{"type":"user.created","data":{"id":""}}"#,
        br#"{"data":{"id":"user_1"}}"#,
        br#"{"type":"user.updated","data":{"id":"user_1","first_name":7}}"#,
    ];
    for body in bodies {
        let event = Event::raw(body);
        assert_eq!(world.deliver(&event).await, Parked);
        let due =
            world.rows(&format!("SELECT * FROM webhook_queue WHERE svix_id = '{}'", event.svix_id)).await;
        assert_eq!(due[0]["state"], "dead");
        assert_eq!(due[0]["next_attempt_at"], json!(null));
        assert_eq!(plain(&due[0]["attempts"]), "1");
        assert_eq!(time(&due[0]["received_at"]), world.now);
        assert_eq!(raw_payload(&world, &event.svix_id).await, body);
    }
    assert_eq!(world.count("processed_webhooks").await, 0);
    assert_eq!(world.store.queue_depth().await.unwrap().dead, 7);
    // The user of the other six is unknown.
    assert_eq!(world.value("SELECT count(*) AS n FROM webhook_queue WHERE clerk_id IS NULL").await, "6");
}

async fn a_body_without_a_type_goes_with_whoever_it_names(world: World) {
    let about_petra: [&[u8]; 5] = [
        br#"{"data":{"id":"sess_1","user":{"id":"user_petra","first_name":"Petra"}}}"#,
        br#"{"type":7,"data":{"id":"user_petra","first_name":"Petra"}}"#,
        br#"{"data":{"id":"user\u005fpetra","friends":["user_29w83sxmDNGwOuEthce5gg56FcC"]}}"#,
        br#"{"type":"user.updated","data":{"id":"user_petra","first_name":"Petra""#,
        b"\xff\xfe{\0\"\0u\0s\0e\0r\0_\0p\0e\0t\0r\0a\0\"\0",
    ];
    let about_others: [&[u8]; 2] =
        [br#"{"data":{"id":"user_petra2"}}"#, br#"{"data":{"name":"\u00e9","id":"user_paul"}}"#];
    let kept = about_petra.iter().chain(&about_others);
    for body in kept.clone() {
        assert_eq!(world.deliver(&Event::raw(*body)).await, Parked);
    }
    assert_eq!(world.deliver(&Event::deleted("user_petra", 0)).await, Applied);
    assert_eq!(world.count("webhook_queue").await, 2);
    // Deliveries after the erasure are not kept either.
    for body in &about_petra {
        let event = Event::raw(*body);
        assert_eq!(world.deliver(&event).await, Stale);
        assert_eq!(world.deliver(&event).await, Duplicate);
    }
    assert_eq!(world.count("webhook_queue").await, 2);
}

async fn the_test_message_of_svix_is_ignored(world: World) {
    for body in [r#"{"success": true}"#, r#"{"success":true}"#] {
        let event = Event::raw(body);
        assert_eq!(world.deliver(&event).await, Ignored);
        assert_eq!(world.deliver(&event).await, Duplicate);
    }
    assert_eq!(world.enqueue(&[Event::raw(r#"{"success": true}"#)]).await, [Ignored]);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn an_example_of_svix_that_is_sent_again_is_unchanged(world: World) {
    let example = Event::created("user_1");
    // Real svix-ids, which increase over time.
    let (first, second) = ("msg_3MkanVVRAIHyG2zuO8wXTnU7ihi", "msg_3MkanX7JQGI3OEvXy204Stx1i6t");
    assert_eq!(world.deliver(&example.clone().svix(first)).await, Applied);
    assert_eq!(world.deliver(&example.clone().svix(second)).await, Unchanged);
    assert_eq!(world.audit().await, ["USER_CREATED user_1"]);
}

async fn a_time_means_the_same_however_it_is_written(world: World) {
    let (signed_up, changed) = (1_716_883_200_000_i64, 1_716_883_260_000_i64);
    let written = [
        ("1716883200000", "1716883260000"),
        ("1716883200", "1716883260"),
        ("1716883200.0", "1716883260000.0"),
        ("1.7168832e12", "1.71688326E9"),
        (r#""2024-05-28T08:00:00Z""#, r#""2024-05-28T10:01:00.000+02:00""#),
    ];
    for (number, (created_at, updated_at)) in written.into_iter().enumerate() {
        let id = format!("user_{number}");
        let event = Event::created(&id)
            .set("created_at", "CREATED")
            .set("last_sign_in_at", "CREATED")
            .set("updated_at", "UPDATED")
            .envelope("timestamp", "UPDATED")
            .replacing(r#""CREATED""#, created_at)
            .replacing(r#""UPDATED""#, updated_at);
        assert_eq!(world.deliver(&event).await, Applied);
        let user = world.user(&id).await.unwrap();
        assert_eq!(user.created_at, Some(at(signed_up)), "{created_at}");
        assert_eq!(user.profile[USER.field("last_sign_in_at")], Value::Time(at(signed_up)), "{created_at}");
        assert_eq!(user.updated_at, at(changed), "{updated_at}");
        // Neither notation blocks a later event.
        let later = Event::updated(&id, 0)
            .set("updated_at", changed + 1)
            .envelope("timestamp", changed + 1)
            .set("first_name", "Later");
        assert_eq!(world.deliver(&later).await, Applied);
    }
}

async fn a_value_that_cannot_be_read_keeps_what_is_stored_and_the_rest_is_applied(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let before = world.user("user_1").await.unwrap();
    let odd = Event::updated("user_1", 1000)
        .set("created_at", "yesterday")
        .set("last_sign_in_at", json!({}))
        .set("last_active_at", 1.5)
        .set("last_name", 17)
        .set("banned", "yes")
        .set("email_addresses", "none")
        .set("first_name", "Augusta");
    assert_eq!(world.deliver(&odd).await, Applied);
    let after = world.user("user_1").await.unwrap();
    assert_eq!(after.profile[user::FIRST_NAME].text(), Some("Augusta"));
    assert_eq!(after.created_at, before.created_at);
    for field in USER.fields().filter(|field| *field != user::FIRST_NAME) {
        assert_eq!(after.profile[field], before.profile[field], "{field:?}");
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

/// The payload bytes in `webhook_queue`.
async fn raw_payload(world: &World, svix_id: &str) -> Vec<u8> {
    let encoded = match world.keeper {
        Keeper::Postgres => "encode(payload, 'hex')",
        Keeper::Sqlite | Keeper::Mariadb | Keeper::Mysql | Keeper::Mongodb => "hex(payload)",
    };
    let query = format!("SELECT {encoded} AS hex FROM webhook_queue WHERE svix_id = '{svix_id}'");
    let hex = world.value(&query).await;
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

async fn metadata_that_no_database_can_hold_freezes_nobody(world: World) {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    // Longer than an index entry can be.
    let incompressible: String = (0..2000).map(|_| rand::random::<u32>().to_string()).collect();
    let odd = [
        "1e400000".to_owned(),
        r#"{"a":[-1E-400000]}"#.to_owned(),
        r#"{"a":1e131000}"#.to_owned(),
        "9".repeat(200_000),
        nested(20_000),
        nested(500),
    ];
    world.deliver(&Event::created("user_1").set("unsafe_metadata", json!({ "kept": 1 }))).await;
    for (number, value) in odd.iter().enumerate() {
        let event = Event::updated("user_1", 1000 + i64::try_from(number).unwrap())
            .set("unsafe_metadata", "MARK")
            .set("public_metadata", json!({ "number": number }))
            .set("banned", number % 2 == 0)
            .replacing(r#""MARK""#, value);
        assert_eq!(world.deliver(&event).await, Applied);
        let user = world.user("user_1").await.unwrap();
        assert_eq!(user.profile[USER.field("unsafe_metadata")], Value::Json(r#"{"kept":1}"#.to_owned()));
        assert_eq!(
            user.profile[USER.field("public_metadata")],
            Value::Json(format!(r#"{{"number":{number}}}"#))
        );
        assert_eq!(user.profile[USER.field("banned")], Value::Bool(number % 2 == 0));
    }
    let fits = r#"{"a":1,"a":[1.7976931348623157e308,5e-324,12345678901234567890123],"nul":"\u0000"}"#;
    let event = Event::updated("user_1", 2000).set("unsafe_metadata", "MARK").replacing(r#""MARK""#, fits);
    assert_eq!(world.deliver(&event).await, Applied);
    assert_eq!(world.deliver(&event.again()).await, Unchanged);
    // The same for a new user, and for an address.
    let new = Event::created("user_2").email(&incompressible);
    assert_eq!(world.deliver(&new).await, Applied);
    assert_eq!(world.text("user_2", user::EMAIL).await, None);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn a_field_that_an_index_of_the_application_cannot_hold_freezes_nobody(world: World) {
    // MariaDB and MySQL index only a prefix of a long text, which always fits.
    let first_name = "CREATE INDEX app_first_name ON users (first_name)";
    world.sql_of(first_name, first_name, "CREATE INDEX app_first_name ON users (first_name(100))").await;
    let nick = "CREATE INDEX app_nick ON users ((unsafe_metadata ->> 'nick'))";
    world.sql_of(nick, "SELECT 1", "SELECT 1").await;
    let incompressible: String = (0..2000).map(|_| rand::random::<u32>().to_string()).collect();
    world.deliver(&Event::created("user_1").set("unsafe_metadata", json!({ "nick": "a" }))).await;
    let alone = Event::updated("user_1", 1000)
        .without("unsafe_metadata")
        .set("first_name", incompressible.as_str())
        .set("banned", true);
    assert_eq!(world.deliver(&alone).await, Applied);
    assert_eq!(world.user("user_1").await.unwrap().profile[USER.field("banned")], Value::Bool(true));
    let both = Event::updated("user_1", 2000)
        .set("first_name", incompressible.as_str())
        .set("unsafe_metadata", json!({ "nick": incompressible }))
        .set("locked", true);
    assert_eq!(world.deliver(&both).await, Applied);
    let user = world.user("user_1").await.unwrap();
    assert_eq!(user.profile[USER.field("locked")], Value::Bool(true));
    if world.keeper == Keeper::Postgres {
        assert_eq!(user.profile[user::FIRST_NAME].text(), Some("Ada"));
        assert_eq!(user.profile[USER.field("unsafe_metadata")], Value::Json(r#"{"nick":"a"}"#.to_owned()));
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn what_the_application_refuses_is_kept_and_tried_again(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    for attempts in 1..=8 {
        assert_eq!(world.deliver(&event).await, Parked);
        let parked = world.parked().await;
        assert_eq!(parked["state"], "pending");
        assert_eq!(plain(&parked["attempts"]), attempts.to_string());
        assert_is_put_off(&world, &parked, attempts);
        assert_eq!(parked["clerk_id"], "user_1");
        assert_eq!(parked["event_type"], "user.created");
        assert_eq!(raw_payload(&world, &event.svix_id).await, event.body());
        world.pass(TimeDelta::seconds(10));
    }
    assert_eq!(world.count("processed_webhooks").await, 0);
    assert_eq!(world.count("users").await + world.count("audit_log").await, 0);
}

/// A change that an application makes to the table `users`, after which every write of a row fails.
struct Broken {
    what: &'static str,
    make: &'static str,
    mend: &'static str,
    /// The error code, and the name of the broken object.
    named: [&'static str; 2],
}

/// A trigger function with its trigger on every change, and the statements that drop them.
macro_rules! trigger {
    ($what:literal, $body:literal, $named:expr) => {
        Broken {
            what: $what,
            make: concat!(
                "CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ",
                $body,
                " RETURN NULL; END $$; CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON users
                  FOR EACH ROW EXECUTE FUNCTION remember()"
            ),
            mend: "DROP TRIGGER remember ON users; DROP FUNCTION remember CASCADE",
            named: $named,
        }
    };
}

const BROKEN_IN_POSTGRES: [Broken; 10] = [
    trigger!("a table is gone", "INSERT INTO gone VALUES (1);", ["42P01", "function remember"]),
    trigger!("a column is gone", "INSERT INTO notes (nick) VALUES (1);", ["42703", "function remember"]),
    trigger!("a function is gone", "PERFORM gone(1);", ["42883", "function remember"]),
    trigger!("a right is missing", "RAISE insufficient_privilege;", ["42501", "function remember"]),
    trigger!("it divides by zero", "PERFORM 1 / (SELECT count(*) FROM notes);", ["22012", "function remember"]),
    trigger!("it times out on another server", "RAISE SQLSTATE '08001';", ["08001", "function remember"]),
    trigger!("it reports the error of a full server", "RAISE SQLSTATE '53300';", ["53300", "function remember"]),
    Broken {
        what: "a function in SQL reads a table that is gone",
        make: "CREATE TABLE gone (id bigint);
               CREATE FUNCTION known(text) RETURNS boolean LANGUAGE sql AS 'SELECT NOT EXISTS (SELECT FROM gone)';
               ALTER TABLE users ADD CONSTRAINT known CHECK (known(first_name)); DROP TABLE gone",
        mend: "ALTER TABLE users DROP CONSTRAINT known; DROP FUNCTION known",
        named: ["42P01", "function known"],
    },
    Broken {
        what: "a generated column divides by zero",
        make: "ALTER TABLE users ADD COLUMN n int GENERATED ALWAYS AS (1 / (length(first_name) - 7)) STORED",
        mend: "ALTER TABLE users DROP COLUMN n",
        named: ["22012", "table users"],
    },
    Broken {
        what: "only the commit calls it",
        make: "CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   INSERT INTO gone VALUES (1); RETURN NULL; END $$;
               CREATE CONSTRAINT TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON users DEFERRABLE INITIALLY DEFERRED
                   FOR EACH ROW EXECUTE FUNCTION remember()",
        mend: "DROP TRIGGER remember ON users; DROP FUNCTION remember",
        named: ["42P01", "function remember"],
    },
];

const BROKEN_IN_SQLITE: [Broken; 2] = [
    Broken {
        what: "a table is gone",
        make: "CREATE TRIGGER one AFTER INSERT ON users BEGIN INSERT INTO gone VALUES (1); END;
               CREATE TRIGGER two AFTER UPDATE ON users BEGIN INSERT INTO gone VALUES (1); END;
               CREATE TRIGGER three AFTER DELETE ON users BEGIN INSERT INTO gone VALUES (1); END",
        mend: "DROP TRIGGER one; DROP TRIGGER two; DROP TRIGGER three",
        named: ["(1)", "table users"],
    },
    Broken {
        what: "it reads invalid JSON",
        make: "CREATE TRIGGER one AFTER INSERT ON users BEGIN SELECT json_extract('{', '$.a'); END;
               CREATE TRIGGER two AFTER UPDATE ON users BEGIN SELECT json_extract('{', '$.a'); END;
               CREATE TRIGGER three AFTER DELETE ON users BEGIN SELECT json_extract('{', '$.a'); END",
        mend: "DROP TRIGGER one; DROP TRIGGER two; DROP TRIGGER three",
        named: ["(1)", "table users"],
    },
];

/// A trigger for each kind of change, and the statements that drop them.
macro_rules! triggers {
    ($what:literal, $body:literal, $named:expr) => {
        triggers!($what, "", $body, $named)
    };
    ($what:literal, $before:literal, $body:literal, $named:expr) => {
        Broken {
            what: $what,
            make: concat!(
                $before,
                "CREATE TRIGGER one AFTER INSERT ON users FOR EACH ROW ",
                $body,
                "; CREATE TRIGGER two AFTER UPDATE ON users FOR EACH ROW ",
                $body,
                "; CREATE TRIGGER three AFTER DELETE ON users FOR EACH ROW ",
                $body,
                "; SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_ALL_TABLES'"
            ),
            mend: "DROP TRIGGER one; DROP TRIGGER two; DROP TRIGGER three",
            named: $named,
        }
    };
}

const BROKEN_IN_MYSQL: [Broken; 7] = [
    triggers!("a table is gone", "INSERT INTO gone VALUES (1)", ["(1146)", "table users"]),
    triggers!("a column is gone", "INSERT INTO notes (nick) VALUES (1)", ["(1054)", "table users"]),
    triggers!("a function is gone", "INSERT INTO notes VALUES (gone(1))", ["(1305)", "table users"]),
    triggers!(
        "a right is missing",
        "SIGNAL SQLSTATE '42000' SET MYSQL_ERRNO = 1142,
         MESSAGE_TEXT = 'INSERT command denied to user ''Augusta''@''example.com'' for table ''notes'''",
        ["(1142)", "table notes"]
    ),
    triggers!(
        "it divides by zero",
        "SET SESSION sql_mode = @@sql_mode || ',ERROR_FOR_DIVISION_BY_ZERO'; ",
        "INSERT INTO notes VALUES (1 / 0)",
        ["(1365)", "table users"]
    ),
    triggers!(
        "it writes to the table that fired it",
        "UPDATE users SET username = NULL",
        ["(1442)", "table users"]
    ),
    Broken {
        what: "a generated column overflows",
        make: "ALTER TABLE users ADD COLUMN n tinyint GENERATED ALWAYS AS (CASE WHEN first_name = 'Augusta' THEN 700 END) STORED",
        mend: "ALTER TABLE users DROP COLUMN n",
        named: ["(1264)", "column n"],
    },
];

async fn broken(world: &World) -> &'static [Broken] {
    world.sql("CREATE TABLE notes (id BIGINT)").await;
    match world.keeper {
        Keeper::Postgres => &BROKEN_IN_POSTGRES,
        Keeper::Sqlite | Keeper::Mongodb => &BROKEN_IN_SQLITE,
        Keeper::Mariadb | Keeper::Mysql => &BROKEN_IN_MYSQL,
    }
}

/// Assert that the delivery waits and that its error names the broken object.
async fn assert_is_named(world: &World, event: &Event, broken: &Broken) {
    let query = format!("SELECT state, last_error FROM webhook_queue WHERE svix_id = '{}'", event.svix_id);
    let parked = &world.rows(&query).await[0];
    let (state, error) = (plain(&parked["state"]), plain(&parked["last_error"]));
    assert_eq!(state, "pending", "{}: {error}", broken.what);
    let [code, place] = broken.named;
    assert!(error.contains(code) && error.contains(place), "{}: {error}", broken.what);
    assert!(!error.contains("Augusta") && !error.contains("example.com"), "{error}");
}

async fn what_the_application_has_broken_is_its_refusal_and_is_named(mut world: World) {
    for broken in broken(&world).await {
        world.deliver(&Event::created("user_known")).await;
        world.sql(broken.make).await;
        let events = [Event::created("user_new"), Event::updated("user_known", 5)];
        let events = events.map(|event| event.set("first_name", "Augusta"));
        assert_eq!(world.deliver_all(&events).await, [Parked, Parked], "{}", broken.what);
        for event in &events {
            assert_is_named(&world, event, broken).await;
        }
        world.sql(broken.mend).await;
        world.pass(TimeDelta::hours(1));
        let applied = world.drain().await;
        assert!(
            applied.len() == 2 && applied.iter().all(|(_, outcome)| *outcome == Applied),
            "{}",
            broken.what
        );
        world.empty().await;
    }
}

async fn a_deletion_that_the_application_has_broken_is_tried_again_until_it_works(mut world: World) {
    // Deleting a row does not compute its generated columns.
    let broken = broken(&world).await.iter().filter(|broken| !broken.make.contains("ALTER TABLE"));
    for broken in broken {
        world.deliver(&Event::created("user_1")).await;
        world.sql(broken.make).await;
        let event = Event::deleted("user_1", 1000);
        assert_eq!(world.deliver(&event).await, Parked, "{}", broken.what);
        assert!(is_tombstone(&world, "user_1").await, "{}", broken.what);
        assert_is_named(&world, &event, broken).await;
        world.sql(broken.mend).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await, [(event.svix_id.clone(), Applied)], "{}", broken.what);
        assert_eq!(world.count("users").await, 0, "{}", broken.what);
        world.empty().await;
    }
}

/// The error does not name the privilege that a check or default lacks, so clerk-sync queries its own privileges.
#[test]
fn a_right_that_only_the_application_needs_is_its_refusal_and_one_that_we_need_is_not() {
    run(Keeper::Postgres, async |world: World| {
        let role = format!("{}_role", world.schema());
        let grants = format!(
            "CREATE ROLE {role}; GRANT ALL ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role};
             CREATE FUNCTION positive() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
             REVOKE EXECUTE ON FUNCTION positive FROM public;
             ALTER TABLE users ADD CONSTRAINT positive CHECK (positive())",
            schema = world.schema()
        );
        world.sql(&grants).await;
        let store = world.open_as(&role);
        let batch = [world.delivery(&Event::created("user_1"))];
        assert_eq!(world.apply(&*store, &batch).await, [Ok(Parked)]);
        let error = plain(&world.parked().await["last_error"]);
        assert!(error.contains("(42501): table users"), "{error}");

        world.sql(&format!("REVOKE UPDATE ON users FROM {role}")).await;
        let batch = [world.delivery(&Event::created("user_2"))];
        let refused = world.apply(&*store, &batch).await.remove(0).unwrap_err();
        assert_eq!((refused.kind, refused.code.as_deref()), (ErrorKind::Broken, Some("42501")));
        world.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    });
}

/// Assert that the wait is random, below a ceiling that doubles from 2 s up to an hour.
fn assert_is_put_off(world: &World, parked: &Map<String, Json>, attempts: u32) {
    let wait = time(&parked["next_attempt_at"]) - world.now;
    let ceiling = TimeDelta::seconds(2_i64.pow(attempts.min(11)).min(3600));
    let ceiling = if attempts > 11 { TimeDelta::hours(1) } else { ceiling };
    assert!(wait > TimeDelta::zero() && wait <= ceiling, "{attempts}: {wait}");
}

async fn a_parked_delivery_keeps_the_time_when_it_first_came(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    for _ in 0..2 {
        assert_eq!(world.deliver(&event).await, Parked);
        assert_eq!(time(&world.parked().await["received_at"]), at(NOW));
        world.pass(TimeDelta::hours(1));
    }
}

async fn what_is_parked_is_applied_once_the_application_allows_it(mut world: World) {
    refuse_name(&world, "Bad").await;
    let events = [
        Event::created("user_1").set("first_name", "Bad"),
        Event::created("user_2").set("first_name", "Bad"),
    ];
    assert_eq!(world.deliver_all(&events).await, [Parked, Parked]);
    allow_names(&world).await;
    // Svix redelivers the first one; our worker retries the other one.
    assert_eq!(world.deliver(&events[0]).await, Applied);
    assert_eq!(world.drain().await, [], "the retry is not due yet");
    world.pass(TimeDelta::seconds(2));
    assert_eq!(world.drain().await, [(events[1].svix_id.clone(), Applied)]);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.deliver_all(&events).await, [Duplicate, Duplicate]);
    assert_eq!(world.text("user_2", user::FIRST_NAME).await.unwrap(), "Bad");
}

async fn what_was_parked_and_recorded_at_once_leaves_the_queue_when_it_comes_again(world: World) {
    let event = Event::created("user_1");
    world.deliver(&event).await;
    // The state that two racing replicas leave behind.
    world
        .sql(&format!(
            "INSERT INTO webhook_queue (svix_id, payload, state, attempts, received_at)
             VALUES ('{}', '', 'dead', 1, '2026-01-01T00:00:00.000Z')",
            event.svix_id
        ))
        .await;
    assert_eq!(world.deliver(&event).await, Duplicate);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn a_row_that_the_application_marked_as_deleted_is_anonymised_all_the_same(mut world: World) {
    world.rules.deletion = DeletionPolicy::Anonymize;
    world.deliver(&Event::created("user_1").set("first_name", "Ada")).await;
    world.sql("UPDATE users SET deleted_at = '2026-01-01T00:00:00.000Z'").await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1)).await, Applied);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Deleted");
}

async fn after_fifteen_attempts_a_parked_delivery_is_dead(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.deliver(&event).await;
    for _ in 2..=15 {
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await, [(event.svix_id.clone(), Parked)]);
    }
    let parked = world.parked().await;
    assert_eq!(parked["state"], "dead");
    assert_eq!(plain(&parked["attempts"]), "15");
    assert_eq!(parked["next_attempt_at"], json!(null));
    world.pass(TimeDelta::days(30));
    assert_eq!(world.drain().await, []);
    assert_eq!(raw_payload(&world, &event.svix_id).await, event.body());
}

async fn a_dead_delivery_can_still_be_delivered_again(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::created("user_1").set("first_name", "Bad");
    world.deliver(&event).await;
    world.sql("UPDATE webhook_queue SET state = 'dead', attempts = 15, next_attempt_at = NULL").await;
    assert_eq!(world.deliver(&event).await, Parked);
    assert_eq!(world.parked().await["state"], "dead");
    allow_names(&world).await;
    world.pass(TimeDelta::days(1));
    assert_eq!(world.deliver(&event).await, Applied);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn parking_for_a_deleted_user_is_stale_and_keeps_nothing(world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::deleted("user_1", 1000)]).await;
    let unusable = Event::raw(r#"{"data":{"id":"user_1","first_name":"Ada"}}"#);
    assert_eq!(world.deliver(&unusable).await, Stale);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.deliver(&unusable).await, Duplicate);
    // The same for a user that was never here.
    world.deliver(&Event::deleted("user_2", 1000)).await;
    assert_eq!(world.deliver(&Event::raw(r#"{"type":"","data":{"id":"user_2"}}"#)).await, Stale);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn a_parked_event_that_became_old_is_stale_and_leaves_the_queue(mut world: World) {
    refuse_name(&world, "Bad").await;
    let event = Event::updated("user_1", 1000).set("first_name", "Bad");
    assert_eq!(world.deliver(&event).await, Parked);
    // Parking does not change the version register, so an older event still applies.
    assert_eq!(world.deliver(&Event::created("user_1")).await, Applied);
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Unchanged);
    world.pass(TimeDelta::seconds(2));
    assert_eq!(world.drain().await, [(event.svix_id.clone(), Stale)]);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Ada");
}

async fn a_poisoned_delivery_in_a_batch_parks_alone(world: World) {
    refuse_name(&world, "Bad").await;
    let mut batch: Vec<Event> = (0..64).map(|n| Event::created(&format!("user_{n:02}"))).collect();
    batch[37] = batch[37].clone().set("first_name", "Bad");
    // A repeat of a parked delivery is not processed either.
    batch.push(batch[37].clone());
    batch.push(Event::raw("unusable"));
    batch.push(batch[36].clone());
    let outcomes = world.deliver_all(&batch).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        let expected = match number {
            37 | 64 | 65 => Parked,
            66 => Duplicate,
            _ => Applied,
        };
        assert_eq!(*outcome, expected, "at {number}");
    }
    assert_eq!(world.count("users").await, 63);
    assert_eq!(world.count("audit_log").await, 63);
    assert_eq!(world.count("processed_webhooks").await, 63);
    assert_eq!(world.store.queue_depth().await.unwrap().pending, 1);
    assert_eq!(world.store.queue_depth().await.unwrap().dead, 1);
}

async fn errors_carry_no_people(world: World) {
    refuse_name(&world, "Bad").await;
    world.sql("CREATE UNIQUE INDEX one_email ON users (email)").await;
    world.deliver(&Event::created("user_1")).await;
    world.deliver(&Event::created("user_2").set("first_name", "Bad").email("bea@example.com")).await;
    world.deliver(&Event::created("user_3").email("ada@example.com")).await;
    let errors = world.column("SELECT last_error FROM webhook_queue").await;
    assert_eq!(errors.len(), 2);
    for error in errors {
        for person in ["ada", "bea", "example.com", "Bad"] {
            assert!(!error.contains(person), "{error}");
        }
    }
}

async fn assert_anonymised(world: &World, id: &str) {
    let row = &world.rows(&format!("SELECT * FROM users WHERE clerk_id = '{id}'")).await[0];
    assert_eq!(plain(&row["email"]), format!("deleted-{}@anonymized.local", plain(&row["id"])));
    assert_eq!(row["first_name"], "Deleted");
    assert_eq!(row["last_name"], "User");
    // A row that could not be erased at first keeps the earlier time.
    assert!(time(&row["deleted_at"]) <= world.now);
    assert_eq!(time(&row["created_at"]), at(SIGN_UP));
    assert!(row["preferences"] == json!({}) || row["preferences"] == "{}");
    for field in USER.fields() {
        if !matches!(field.name(), "email" | "first_name" | "last_name") {
            assert_eq!(row[field.name()], json!(null), "{}", field.name());
        }
    }
    assert!(is_tombstone(world, id).await);
}

async fn decides(world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    world.sql(r#"UPDATE users SET preferences = '{"lang":"en"}'"#).await;
    order(&world, 1, "user_1").await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert_eq!(world.deliver(&Event::deleted("user_2", 1000)).await, Applied);
    assert_anonymised(&world, "user_1").await;
    assert!(world.user("user_2").await.is_none());
    assert_eq!(world.audit().await[2..], ["USER_ANONYMIZED user_1", "USER_HARD_DELETED user_2"]);
    // No event restores the users, and a second deletion has nothing to do.
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
    assert_eq!(world.deliver(&Event::deleted("user_1", 3000)).await, Stale);
    assert_anonymised(&world, "user_1").await;
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.count("orders").await, 1);
}

async fn a_foreign_key_decides_between_deleting_and_anonymising(world: World) {
    orders(&world, "").await;
    decides(world).await;
}

async fn a_deferred_foreign_key_decides_as_well(world: World) {
    orders(&world, DEFERRED).await;
    decides(world).await;
}

async fn a_trigger_that_refuses_decides_as_well(world: World) {
    let orders =
        format!("CREATE TABLE orders (id INTEGER PRIMARY KEY, clerk_id {} NOT NULL)", world.id_type());
    world.sql(&orders).await;
    world
        .sql_of(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF EXISTS (SELECT FROM orders WHERE clerk_id = old.clerk_id) THEN
                     RAISE EXCEPTION 'has orders: %', old.email;
                 END IF;
                 RETURN old;
             END $$;
             CREATE TRIGGER keep BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION keep()",
            "CREATE TRIGGER keep BEFORE DELETE ON users
             WHEN EXISTS (SELECT 1 FROM orders WHERE clerk_id = old.clerk_id)
             BEGIN SELECT RAISE(ABORT, 'has orders'); END",
            "CREATE TRIGGER keep BEFORE DELETE ON users FOR EACH ROW
             IF EXISTS (SELECT 1 FROM orders WHERE clerk_id = old.clerk_id) THEN
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'has orders: ada@example.com';
             END IF",
        )
        .await;
    decides(world).await;
}

async fn a_cascade_stays_the_applications_own_decision(world: World) {
    orders(&world, "ON DELETE CASCADE").await;
    world.deliver(&Event::created("user_1")).await;
    order(&world, 1, "user_1").await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert_eq!(world.count("users").await + world.count("orders").await, 0);
}

async fn what_is_refused_for_one_of_many_holds_up_none_of_them(mut world: World) {
    // Three groups of three: users that can be deleted, users that can only be anonymised, and users that can be neither.
    let ids: Vec<String> = (0..9).map(|number| format!("user_{number}")).collect();
    world.deliver_all(&ids.iter().map(|id| Event::created(id)).collect::<Vec<_>>()).await;
    orders(&world, "").await;
    for (number, id) in ids.iter().enumerate().filter(|(number, _)| number % 3 > 0) {
        order(&world, u32::try_from(number).unwrap(), id).await;
    }
    world
        .sql_of(
            "CREATE FUNCTION resist() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE 'ada@example.com' USING ERRCODE = '42501'; END $$;
             CREATE TRIGGER resist BEFORE UPDATE ON users FOR EACH ROW
             WHEN (new.clerk_id IN ('user_2', 'user_5', 'user_8')) EXECUTE FUNCTION resist()",
            "CREATE TRIGGER resist BEFORE UPDATE ON users WHEN new.clerk_id IN ('user_2', 'user_5', 'user_8')
             BEGIN SELECT RAISE(ABORT, 'ada@example.com'); END",
            "CREATE TRIGGER resist BEFORE UPDATE ON users FOR EACH ROW
             IF new.clerk_id IN ('user_2', 'user_5', 'user_8') THEN
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'ada@example.com';
             END IF",
        )
        .await;
    let deletions: Vec<Event> = ids.iter().map(|id| Event::deleted(id, 1000)).collect();
    let expected = [Applied, Applied, Parked].repeat(3);
    assert_eq!(world.deliver_all(&deletions).await, expected);
    assert_eq!(world.count("users").await, 6);
    assert_eq!(
        world.count("users WHERE email LIKE '%@anonymized.local' AND deleted_at IS NOT NULL").await,
        3
    );
    assert_eq!(world.count("webhook_queue WHERE state = 'pending'").await, 3);
    assert_eq!(world.count("erasure_receipts WHERE completed_at IS NULL").await, 3);
    let reasons =
        world.column("SELECT DISTINCT last_error FROM erasure_receipts WHERE last_error IS NOT NULL").await;
    assert!(!reasons.iter().any(|reason| reason.contains("example.com")), "{reasons:?}");
    world.sql_of("DROP TRIGGER resist ON users", "DROP TRIGGER resist", "DROP TRIGGER resist").await;
    world.pass(TimeDelta::hours(1));
    assert!(world.drain().await.iter().all(|(_, outcome)| *outcome == Applied));
    assert_eq!(world.count("users WHERE email LIKE '%@anonymized.local'").await, 6);
}

async fn a_trigger_that_brings_back_what_was_taken_out_is_no_erasure(mut world: World) {
    world.rules.deletion = DeletionPolicy::Anonymize;
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    world
        .sql_of(
            "CREATE FUNCTION restore() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN new.email := old.email; new.clerk_id := 'kept-' || new.clerk_id; RETURN new; END $$;
             CREATE TRIGGER restore BEFORE UPDATE ON users FOR EACH ROW
             WHEN (old.clerk_id = 'user_1') EXECUTE FUNCTION restore()",
            "CREATE TRIGGER restore AFTER UPDATE ON users WHEN old.clerk_id = 'user_1' AND new.email <> old.email
             BEGIN UPDATE users SET email = old.email, clerk_id = 'kept-' || old.clerk_id WHERE id = old.id; END",
            "CREATE TRIGGER restore BEFORE UPDATE ON users FOR EACH ROW
             IF old.clerk_id = 'user_1' THEN
                 SET new.email = old.email, new.clerk_id = 'kept-' || new.clerk_id;
             END IF",
        )
        .await;
    let deletions = [Event::deleted("user_1", 1000), Event::deleted("user_2", 1000)];
    assert_eq!(world.deliver_all(&deletions).await, [Parked, Applied]);
    assert_eq!(world.count("users WHERE clerk_id = 'user_1' AND email LIKE '%@example.com'").await, 1);
    assert_eq!(world.audit().await[2..], ["USER_ANONYMIZED user_2"]);
    let open = world.store.open_receipts(None, None, 10).await.unwrap();
    assert_eq!((open.len(), open[0].clerk_id.as_str()), (1, "user_1"));
    world.sql_of("DROP TRIGGER restore ON users", "DROP TRIGGER restore", "DROP TRIGGER restore").await;
    world.pass(TimeDelta::hours(1));
    assert_eq!(world.drain().await[0].1, Applied);
    assert_eq!(world.count("users WHERE email LIKE '%@anonymized.local'").await, 2);
}

async fn a_trigger_that_changes_whose_row_it_is_parks_the_event(mut world: World) {
    world.deliver(&Event::created("user_old")).await;
    world
        .sql_of(
            "CREATE FUNCTION rename() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN new.clerk_id := upper(new.clerk_id); RETURN new; END $$;
             CREATE TRIGGER rename BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION rename()",
            "CREATE TRIGGER rename_i AFTER INSERT ON users
             BEGIN UPDATE users SET clerk_id = upper(clerk_id) WHERE id = new.id; END;
             CREATE TRIGGER rename_u AFTER UPDATE ON users WHEN new.clerk_id = old.clerk_id
             BEGIN UPDATE users SET clerk_id = upper(clerk_id) WHERE id = new.id; END",
            "CREATE TRIGGER rename_i BEFORE INSERT ON users FOR EACH ROW SET new.clerk_id = upper(new.clerk_id);
             CREATE TRIGGER rename_u BEFORE UPDATE ON users FOR EACH ROW SET new.clerk_id = upper(new.clerk_id)",
        )
        .await;
    let events = [Event::created("user_1"), Event::updated("user_old", 100).set("first_name", "Augusta")];
    assert_eq!(world.deliver_all(&events).await, [Parked, Parked]);
    assert_eq!(world.column("SELECT clerk_id FROM users").await, ["user_old"]);
    let reasons = world.column("SELECT DISTINCT last_error FROM webhook_queue").await;
    assert_eq!(
        reasons,
        [
            "a constraint or trigger refused the change: a trigger of the application changes column clerk_id of table users"
        ]
    );
    // A deletion must not report that the row was missing, either.
    assert_eq!(world.deliver(&Event::deleted("user_old", 1000)).await, Applied);
    assert_eq!(world.count("users").await, 0);
    let both = "DROP TRIGGER rename_i; DROP TRIGGER rename_u";
    world.sql_of("DROP TRIGGER rename ON users", both, both).await;
    world.pass(TimeDelta::hours(1));
    world.drain().await;
    assert_eq!(world.column("SELECT clerk_id FROM users").await, ["user_1"]);
}

async fn one_of_many(world: World) {
    let created: Vec<Event> = (0..32).map(|n| Event::created(&format!("user_{n:02}"))).collect();
    world.deliver_all(&created).await;
    order(&world, 1, "user_19").await;
    let mut batch: Vec<Event> = (0..32).map(|n| Event::deleted(&format!("user_{n:02}"), 1000)).collect();
    batch.push(Event::created("user_99"));
    assert!(world.deliver_all(&batch).await.iter().all(|outcome| *outcome == Applied));
    assert_eq!(world.column("SELECT clerk_id FROM users ORDER BY clerk_id").await, ["user_19", "user_99"]);
    assert_anonymised(&world, "user_19").await;
    let actions = world.column("SELECT action FROM audit_log").await;
    let actions = tally(actions.iter().map(String::as_str));
    assert_eq!(actions["USER_HARD_DELETED"], 31);
    assert_eq!(actions["USER_ANONYMIZED"], 1);
}

async fn one_of_many_in_a_batch_is_anonymised_and_the_others_deleted(world: World) {
    orders(&world, "").await;
    one_of_many(world).await;
}

async fn one_of_many_with_a_deferred_key_is_anonymised_and_the_others_deleted(world: World) {
    orders(&world, DEFERRED).await;
    one_of_many(world).await;
}

async fn the_policy_anonymize_always_keeps_the_row(mut world: World) {
    world.rules.deletion = DeletionPolicy::Anonymize;
    world.deliver(&Event::created("user_1")).await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Applied);
    assert_anonymised(&world, "user_1").await;
    assert_eq!(world.audit().await, ["USER_CREATED user_1", "USER_ANONYMIZED user_1"]);
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
}

async fn the_policy_delete_never_anonymises(mut world: World) {
    world.rules.deletion = DeletionPolicy::Delete;
    orders(&world, "").await;
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    order(&world, 1, "user_1").await;
    assert_eq!(world.deliver(&Event::deleted("user_1", 1000)).await, Parked);
    assert_eq!(world.deliver(&Event::deleted("user_2", 1000)).await, Applied);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Ada");
    assert!(world.user("user_2").await.is_none());
}

/// Deliver the deletion of `user_1`, which the database refuses.
async fn failing_deletion(world: &mut World) -> Event {
    world.deliver(&Event::created("user_1")).await;
    resist(world, &["user_1"]).await;
    let deletion = Event::deleted("user_1", 1000).set("slug", "ada-lovelace").set("external_id", "ext-7");
    assert_eq!(world.deliver(&deletion).await, Parked);
    deletion
}

async fn a_failing_deletion_is_kept_without_personal_data_and_never_dies(mut world: World) {
    let deletion = failing_deletion(&mut world).await;
    assert!(is_tombstone(&world, "user_1").await, "no event may restore the user");
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
    for attempt in 1..=20 {
        let parked = world.parked().await;
        assert_eq!(parked["svix_id"], deletion.svix_id);
        assert_eq!(parked["clerk_id"], "user_1");
        assert_eq!(parked["state"], "pending");
        assert_eq!(plain(&parked["attempts"]), attempt.to_string());
        assert_is_put_off(&world, &parked, attempt);
        let kept = format!("{} {}", plain(&parked["payload"]), plain(&parked["last_error"]));
        for personal in ["203.0.113.7", "Engine", "ada", "ext-7", "Ada"] {
            assert!(!kept.contains(personal), "{kept}");
        }
        world.pass(TimeDelta::hours(1));
        assert_eq!(world.drain().await, [(deletion.svix_id.clone(), Parked)]);
    }
    let recorded =
        format!("SELECT count(*) AS n FROM processed_webhooks WHERE svix_id = '{}'", deletion.svix_id);
    assert_eq!(world.value(&recorded).await, "0");
}

async fn a_failing_deletion_succeeds_by_redelivery_once_it_may(mut world: World) {
    let deletion = failing_deletion(&mut world).await;
    assert_eq!(world.deliver(&deletion).await, Parked);
    resist_no_longer(&world).await;
    assert_eq!(world.deliver(&deletion).await, Applied);
    assert_erased(&world).await;
    assert_eq!(world.deliver(&deletion).await, Duplicate);
    assert_eq!(world.deliver(&Event::deleted("user_1", 9000)).await, Stale);
}

async fn a_failing_deletion_succeeds_by_the_retry_loop_once_it_may(mut world: World) {
    let deletion = failing_deletion(&mut world).await;
    resist_no_longer(&world).await;
    world.pass(TimeDelta::seconds(2));
    assert_eq!(world.drain().await, [(deletion.svix_id.clone(), Applied)]);
    assert_erased(&world).await;
}

/// Assert that the user is now erased in the way that the policy prescribes.
async fn assert_erased(world: &World) {
    let (action, rows) = match world.rules.deletion {
        DeletionPolicy::Anonymize => ("USER_ANONYMIZED user_1", 1),
        DeletionPolicy::Auto | DeletionPolicy::Delete => ("USER_HARD_DELETED user_1", 0),
    };
    assert_eq!(world.count("users").await, rows);
    assert_eq!(world.count("users WHERE email LIKE '%@example.com'").await, 0);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.audit().await, ["USER_CREATED user_1", action]);
}

async fn a_deletion_that_only_the_commit_refuses_is_never_lost(mut world: World) {
    world.rules.deletion = DeletionPolicy::Delete;
    orders(&world, DEFERRED).await;
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    order(&world, 1, "user_1").await;
    let batch = [Event::deleted("user_1", 1000), Event::deleted("user_2", 1000)];
    assert_eq!(world.deliver_all(&batch).await, [Parked, Applied]);
    assert!(is_tombstone(&world, "user_1").await);
    assert_eq!(world.parked().await["state"], "pending");
    world.sql("DELETE FROM orders").await;
    world.pass(TimeDelta::seconds(2));
    assert_eq!(world.drain().await, [(batch[0].svix_id.clone(), Applied)]);
    assert_eq!(world.count("users").await, 0);
}

async fn a_user_who_can_be_neither_deleted_nor_anonymised_is_tried_again(mut world: World) {
    orders(&world, "").await;
    world.deliver(&Event::created("user_1")).await;
    order(&world, 1, "user_1").await;
    if !world.refuses_deletions() {
        world.rules.deletion = DeletionPolicy::Anonymize;
    }
    refuse_nameless(&world).await;
    let deletion = Event::deleted("user_1", 1000);
    assert_eq!(world.deliver(&deletion).await, Parked);
    assert!(is_tombstone(&world, "user_1").await);
    assert_eq!(world.parked().await["state"], "pending");
    assert_eq!(world.deliver(&Event::updated("user_1", 2000)).await, Stale);
    // A second message about the same deletion is tried too, and both leave the queue with the erasure.
    let again = deletion.again();
    assert_eq!(world.deliver(&again).await, Parked);
    allow_nameless(&world).await;
    world.pass(TimeDelta::hours(1));
    let outcomes = world.drain().await;
    assert!(outcomes.iter().any(|(_, outcome)| *outcome == Applied), "{outcomes:?}");
    assert_anonymised(&world, "user_1").await;
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn one_of_many_deletions_that_fails_parks_alone(mut world: World) {
    world.rules.deletion = DeletionPolicy::Delete;
    orders(&world, "").await;
    let created: Vec<Event> = (0..16).map(|n| Event::created(&format!("user_{n:02}"))).collect();
    world.deliver_all(&created).await;
    order(&world, 1, "user_07").await;
    let batch: Vec<Event> = (0..16).map(|n| Event::deleted(&format!("user_{n:02}"), 1000)).collect();
    let outcomes = world.deliver_all(&batch).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome, if number == 7 { Parked } else { Applied }, "at {number}");
    }
    assert_eq!(world.column("SELECT clerk_id FROM users").await, ["user_07"]);
    assert_eq!(world.parked().await["clerk_id"], "user_07");
    assert_eq!(world.value("SELECT count(*) AS n FROM entity_versions WHERE deleted").await, "16");
}

async fn a_repeat_of_a_deletion_that_fails_is_parked_too(mut world: World) {
    world.deliver(&Event::created("user_1")).await;
    resist(&mut world, &["user_1"]).await;
    let deletion = Event::deleted("user_1", 1000);
    // `duplicate` would claim that the deletion is done.
    assert_eq!(world.deliver_all(&[deletion.clone(), deletion.clone()]).await, [Parked, Parked]);
    assert_eq!(world.deliver(&deletion).await, Parked);
}

async fn a_poisoned_update_beside_the_deletion_leaves_nothing(world: World) {
    refuse_name(&world, "Bad").await;
    let batch = [
        Event::created("user_1"),
        Event::updated("user_1", 1000).set("first_name", "Bad"),
        Event::raw(r#"{"type":"","data":{"id":"user_1","last_name":"Lovelace"}}"#),
        Event::deleted("user_1", 2000),
        Event::updated("user_1", 3000).set("first_name", "Bad"),
    ];
    // Unusable events are processed after the others.
    assert_eq!(world.deliver_all(&batch).await, [Applied, Parked, Stale, Applied, Stale]);
    assert_eq!(world.count("users").await + world.count("webhook_queue").await, 0);
    assert_eq!(world.count("audit_actors").await, 0);
    assert_eq!(world.deliver(&batch[1]).await, Stale);
}

async fn anonymize_columns_are_emptied(mut world: World) {
    world.rules.deletion = DeletionPolicy::Anonymize;
    world
        .sql("ALTER TABLE users ADD COLUMN \"nick Name\" TEXT; ALTER TABLE users ADD COLUMN score INTEGER")
        .await;
    world.store = world.open_anonymizing(&["nick Name"]).await;
    world.store.migrate().await.unwrap();
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    world.sql("UPDATE users SET \"nick Name\" = 'Countess', score = 7").await;
    world.deliver(&Event::deleted("user_1", 1000)).await;
    assert_anonymised(&world, "user_1").await;
    let rows = world.rows("SELECT \"nick Name\" AS nick, score FROM users ORDER BY clerk_id").await;
    assert_eq!((&rows[0]["nick"], &rows[0]["score"]), (&json!(null), &json!(7)));
    assert_eq!((&rows[1]["nick"], &rows[1]["score"]), (&json!("Countess"), &json!(7)));
    // Columns that do not exist, and our own columns, are refused at the start.
    let refused: &[&str] = if world.keeper == Keeper::Mongodb { &["email"] } else { &["missing", "email"] };
    for name in refused.iter().copied() {
        let error = world.open_anonymizing(&[name]).await.migrate().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Schema);
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// Events that leave traces of a user in every table, followed by the deletion.
async fn erase_a_full_life(world: &World) {
    let attributes = json!({ "http_request": { "client_ip": "198.51.100.77", "user_agent": "Loom/9" } });
    world.deliver(&Event::created("user_1").envelope("event_attributes", attributes.clone())).await;
    let change = Event::updated("user_1", 1000).set("first_name", "Augusta").set("username", "countess");
    world.deliver(&change.envelope("event_attributes", attributes)).await;
    world.deliver(&Event::created("user_12").set("first_name", "Charles").email("charles@example.com")).await;
    refuse_name(world, "Bad").await;
    let parked = [
        // Refused by the application; unusable; for an unknown user, with the id at the end or in the middle.
        Event::updated("user_1", 2000).set("first_name", "Bad").set("last_name", "Byron"),
        Event::raw(r#"{"type":7,"data":{"id":"user_1","first_name":"Ada"}}"#),
        Event::raw(r#"{"data":{"id":"user_1","first_name":"Ada"}}"#),
        Event::raw("Ada Lovelace is user_1"),
        Event::raw(b"\xff\x00 user_1,Ada".to_vec()),
        // About other users, whose ids only contain this one.
        Event::raw(r#"{"data":{"id":"user_12","first_name":"Charles"}}"#),
        Event::raw(r#"{"data":{"id":"superuser_1","first_name":"Charles"}}"#),
    ];
    assert!(world.deliver_all(&parked).await.iter().all(|outcome| *outcome == Parked));
    assert_eq!(world.deliver(&Event::deleted("user_1", 4000)).await, Applied);
    let left = world.column("SELECT svix_id FROM webhook_queue ORDER BY svix_id").await;
    assert_eq!(left, [parked[5].svix_id.clone(), parked[6].svix_id.clone()]);
    assert_nothing_remains(world).await;
    // Late events restore nothing.
    for event in &parked[..2] {
        assert_eq!(world.deliver(event).await, Stale);
    }
    assert_nothing_remains(world).await;
    assert_eq!(world.text("user_12", user::FIRST_NAME).await.unwrap(), "Charles");
}

async fn assert_nothing_remains(world: &World) {
    let traces = [
        "Ada",
        "ada@",
        "Augusta",
        "countess",
        "Byron",
        "198.51.100.77",
        "Loom",
        "img.clerk.com/ada",
        "5550100",
        "engines",
    ];
    for line in world.dump().await {
        if line.contains("user_12") {
            continue;
        }
        for trace in traces {
            assert!(!line.contains(trace), "{trace} remains in {line}");
        }
    }
    for trace in ["198.51.100.77", "Augusta", "Byron", "countess"] {
        assert!(!world.files_contain(trace), "{trace} remains in the file");
    }
}

async fn nothing_of_a_deleted_user_remains(world: World) {
    erase_a_full_life(&world).await;
    assert!(world.user("user_1").await.is_none());
}

async fn nothing_of_an_anonymised_user_remains(mut world: World) {
    if !world.refuses_deletions() {
        world.rules.deletion = DeletionPolicy::Anonymize;
    }
    orders(&world, "").await;
    // A trigger inserts an order with each user, so the row must stay.
    world
        .sql_of(
            "CREATE FUNCTION buy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO orders VALUES (new.id, new.clerk_id); RETURN new;
             END $$;
             CREATE TRIGGER buy AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION buy()",
            "CREATE TRIGGER buy AFTER INSERT ON users
             BEGIN INSERT INTO orders VALUES (new.id, new.clerk_id); END",
            "CREATE TRIGGER buy AFTER INSERT ON users FOR EACH ROW INSERT INTO orders VALUES (new.id, new.clerk_id)",
        )
        .await;
    erase_a_full_life(&world).await;
    assert_anonymised(&world, "user_1").await;
}

async fn created_and_deleted_in_one_batch_leaves_a_tombstone_only(world: World) {
    let batch = [Event::created("user_1"), Event::updated("user_1", 1000), Event::deleted("user_1", 2000)];
    assert_eq!(world.deliver_all(&batch).await, [Applied, Unchanged, Applied]);
    assert_eq!(world.count("users").await, 0);
    assert_eq!(world.count("audit_actors").await, 0);
    assert_eq!(world.audit().await, ["USER_CREATED user_1", "USER_HARD_DELETED user_1"]);
    assert!(is_tombstone(&world, "user_1").await);
}

async fn a_row_is_given_with_its_number_and_what_the_application_keeps_in_it(world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    world.sql(r#"UPDATE users SET preferences = '{"theme": "dark"}' WHERE clerk_id = 'user_2'"#).await;
    let row = world.store.row(&clerk_id("user_2")).await.unwrap().unwrap();
    assert_eq!(row.id.to_string(), world.value("SELECT id FROM users WHERE clerk_id = 'user_2'").await);
    assert_eq!(Some(row.object), world.user("user_2").await);
    let preferences: serde_json::Value = serde_json::from_str(&row.preferences.unwrap()).unwrap();
    assert_eq!(preferences, json!({ "theme": "dark" }));
    assert_eq!(world.store.row(&clerk_id("user_1")).await.unwrap().unwrap().preferences.unwrap(), "{}");
    assert!(world.store.row(&clerk_id("USER_1")).await.unwrap().is_none());
    // An anonymised user's row still exists for callers that ask for it.
    orders(&world, "").await;
    order(&world, 1, "user_1").await;
    erase(&world, &[Event::deleted("user_1", 1000)], &[]).await;
    let row = world.store.row(&clerk_id("user_1")).await.unwrap().unwrap();
    assert!(row.object.is_anonymized());
}

async fn a_walk_through_the_pages_meets_everybody_once_while_others_come_and_go(world: World) {
    orders(&world, "").await;
    let names: Vec<String> = (0..23).map(|n| format!("user_{n:02}")).collect();
    world.deliver_all(&names.iter().map(|name| Event::created(name)).collect::<Vec<_>>()).await;
    // Erased before the walk: one row is anonymised, the other is deleted.
    order(&world, 1, "user_03").await;
    erase(&world, &[Event::deleted("user_03", 1000)], &[Event::deleted("user_04", 1000)]).await;

    let (mut met, mut ids, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let page = world.store.rows(&USER, &RowFilter { with: None, after }, 5).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        assert!(page.len() <= 5);
        ids.extend(page.iter().map(|row| row.id));
        met.extend(page.iter().map(|row| row.object.clerk_id.to_string()));
        // Create a user, update a user that was already listed, and delete another listed user.
        if met.len() <= 15 {
            let new = Event::created(&format!("new_{}", met.len()));
            let update = Event::updated(&met[0], 2000).set("first_name", format!("Ada {}", met.len()));
            world.deliver_all(&[new, update, Event::deleted(&met[met.len() - 1], 3000)]).await;
        }
    }
    let here: Vec<&String> =
        names.iter().filter(|name| !["user_03", "user_04"].contains(&&***name)).collect();
    let old: Vec<&String> = met.iter().filter(|name| name.starts_with("user_")).collect();
    assert_eq!(old, here, "each user once, in insertion order");
    assert!(ids.is_sorted());
    let all: Vec<_> = tally(met).into_values().collect();
    assert!(all.iter().all(|times| *times == 1), "{all:?}");
}

async fn an_address_is_found_in_any_case_and_never_that_of_a_deleted_user(world: World) {
    orders(&world, "").await;
    for (id, address) in [
        ("user_1", "Shared@Example.com"),
        ("user_2", "shared@example.com"),
        ("user_3", "shared@example.com"),
        ("user_4", "shared@example.com"),
        ("user_5", "other@example.com"),
    ] {
        world.deliver(&Event::created(id).email(address)).await;
    }
    order(&world, 1, "user_3").await;
    erase(&world, &[Event::deleted("user_3", 1000)], &[Event::deleted("user_4", 1000)]).await;
    let found = async |email: &str, after, limit| {
        let filter = RowFilter { with: Some((user::EMAIL, email.to_owned())), after };
        let rows = world.store.rows(&USER, &filter, limit).await.unwrap();
        rows.into_iter().map(|row| (row.id, row.object.clerk_id.to_string())).collect::<Vec<_>>()
    };
    let both = found("SHARED@example.COM", None, 10).await;
    assert_eq!(both.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["user_1", "user_2"]);
    assert_eq!(found("shared@example.com", None, 1).await, both[..1]);
    assert_eq!(found("shared@example.com", Some(both[0].0), 10).await, both[1..]);
    // Only whole addresses match, and patterns are not interpreted.
    for address in ["shared@example.co", "hared@example.com", "%", "shared_example.com", ""] {
        assert_eq!(found(address, None, 10).await, [], "{address}");
    }
    let anonymous = world.value("SELECT email FROM users WHERE clerk_id = 'user_3'").await;
    assert_eq!(found(&anonymous, None, 10).await, [], "the address of an anonymised user is not found");
}

/// Create users with these sign-up times, and one without a known time.
async fn sign_up(world: &World, times: &[&str]) {
    for (number, time) in times.iter().enumerate() {
        let time = utc(time).timestamp_millis();
        world.deliver(&Event::created(&format!("user_{number}")).set("created_at", time)).await;
    }
    world.deliver(&Event::minimal("user_99", 1)).await;
}

fn utc(time: &str) -> DateTime<Utc> {
    time.parse().unwrap()
}

async fn signups(world: &World, bucket: Bucket, from: Option<&str>, to: Option<&str>) -> Vec<String> {
    let counted = world.store.signups(bucket, from.map(utc), to.map(utc)).await.unwrap();
    counted.into_iter().map(|(start, count)| format!("{start} {count}")).collect()
}

async fn signups_are_counted_by_day_week_and_month_in_utc(world: World) {
    // 2026-01-05 is a Monday; the Monday before it is 2025-12-29.
    let times = [
        "2025-12-31T23:59:59.999Z",
        "2026-01-01T00:00:00.000Z",
        "2026-01-04T23:59:59.999Z",
        "2026-01-05T00:00:00.000Z",
        "2026-01-05T12:00:00.000Z",
        "2026-01-11T23:59:59.999Z",
        "2026-02-01T00:00:00.000Z",
    ];
    sign_up(&world, &times).await;
    assert_eq!(
        signups(&world, Bucket::Day, None, None).await,
        ["2025-12-31 1", "2026-01-01 1", "2026-01-04 1", "2026-01-05 2", "2026-01-11 1", "2026-02-01 1"]
    );
    let weeks = signups(&world, Bucket::Week, None, None).await;
    assert_eq!(weeks, ["2025-12-29 3", "2026-01-05 3", "2026-01-26 1"]);
    assert_eq!(
        signups(&world, Bucket::Month, None, None).await,
        ["2025-12-01 1", "2026-01-01 5", "2026-02-01 1"]
    );
    // As in the view, users that are anonymised by now are counted too.
    orders(&world, "").await;
    order(&world, 1, "user_0").await;
    erase(&world, &[Event::deleted("user_0", 1000)], &[Event::deleted("user_1", 1000)]).await;
    let view = world.rows("SELECT week, signups FROM signups_by_week ORDER BY week").await;
    let view: Vec<String> =
        view.iter().map(|row| format!("{} {}", plain(&row["week"]), plain(&row["signups"]))).collect();
    assert_eq!(signups(&world, Bucket::Week, None, None).await, view);
    assert_eq!(view[0], "2025-12-29 2");
}

async fn signups_are_counted_from_a_time_on_and_before_another(world: World) {
    let times = ["2026-01-05T00:00:00.000Z", "2026-01-05T00:00:00.001Z", "2026-01-06T00:00:00.000Z"];
    sign_up(&world, &times).await;
    let day = Bucket::Day;
    let (first, second, third) = (Some(times[0]), Some(times[1]), Some(times[2]));
    assert_eq!(signups(&world, day, first, None).await, ["2026-01-05 2", "2026-01-06 1"]);
    assert_eq!(signups(&world, day, second, third).await, ["2026-01-05 1"]);
    assert_eq!(signups(&world, day, None, second).await, ["2026-01-05 1"]);
    assert!(signups(&world, day, third, second).await.is_empty());
}

async fn what_is_handed_to_the_committer_is_answered_and_finished(world: World) {
    let now = world.now;
    let clock: Clock = Arc::new(move || now);
    let (committer, lanes) = Committer::start(&world.store, None, &world.rules, Limits::default(), &clock);
    let mut answers = Vec::new();
    for version in 0..10 {
        for user in 0..20 {
            let event = Event::updated(&format!("user_{user:02}"), version)
                .set("first_name", format!("Ada {version}"));
            answers.push(committer.submit(world.delivery(&event), Instant::now()).unwrap());
        }
    }
    // The callers of these requests are gone, but the requests are still processed.
    answers.truncate(100);
    lanes.finish().await;
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Ok(Applied), "a user's events stay in order");
    }
    assert_eq!(world.count("processed_webhooks").await, 200);
    assert_eq!(world.value("SELECT count(*) AS n FROM users WHERE first_name = 'Ada 9'").await, "20");
    let late = committer.submit(world.delivery(&Event::created("user_99")), Instant::now());
    assert_eq!(late.unwrap_err(), Refusal::ShuttingDown);
}

async fn the_upkeep_forgets_what_is_old(mut world: World) {
    assert_eq!(world.deliver(&Event::created("user_1")).await, Applied);
    assert_eq!(world.deliver(&Event::raw("unusable")).await, Parked);
    world.pass(TimeDelta::days(10));
    assert_eq!(world.deliver(&Event::created("user_2")).await, Applied);
    let recent = Event::raw("unusable as well");
    assert_eq!(world.deliver(&recent).await, Parked);
    let now = world.now + TimeDelta::days(21);
    let keep = Keep { processed: TimeDelta::days(30), dead: TimeDelta::days(30) };
    let rules = world.rules.clone();
    let retention = Retention::new(Arc::clone(&world.store), rules, Arc::new(move || now), keep, PRUNE);
    let retention = Worker::new(retention, 1, &Arc::default());
    let shutdown = CancellationToken::new();
    let forgetting = tokio::spawn(retention.run(shutdown.clone()));
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.count("webhook_queue").await > 1 || world.count("processed_webhooks").await > 1 {
        assert!(Instant::now() < deadline, "{:?}", world.dump().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shutdown.cancel();
    forgetting.await.unwrap();
    assert_eq!(world.value("SELECT clerk_id FROM processed_webhooks").await, "user_2");
    assert_eq!(world.value("SELECT svix_id FROM webhook_queue").await, recent.svix_id);
}

async fn the_room_that_the_database_takes_up_is_known(world: World) {
    let space = world.store.space().await.unwrap();
    assert!(space.taken > 10_000, "{space:?}");
    // The free space of a server's disk is unknown.
    assert_eq!(space.free.is_some_and(|free| free > 0), world.keeper == Keeper::Sqlite, "{space:?}");
}

/// Call every operation that writes, in one transaction.
async fn write_everything(transaction: &mut dyn Transaction, svix_id: &SvixId, version: i64) {
    let id = clerk_id("user_1");
    let record = Record {
        svix_id,
        event_type: Some("user.created"),
        outcome: Applied,
        clerk_id: Some(&id),
        event_at: at(SIGN_UP),
        processed_at: at(NOW),
    };
    assert_eq!(transaction.record(&[record]).await.unwrap().len(), 1);
    transaction.settle(&[(svix_id.clone(), Unchanged)]).await.unwrap();
    assert!(transaction.registers(std::slice::from_ref(&id)).await.unwrap().is_empty());
    transaction.advance(&[advance("user_1", version, true)]).await.unwrap();
    let user = Object {
        clerk_id: id.clone(),
        profile: Profile::default(),
        created_at: None,
        updated_at: at(SIGN_UP),
        synced_at: at(NOW),
        deleted_at: None,
    };
    transaction.insert(&[user], &Selection::of(&USER, FieldSet::ALL)).await.unwrap();
    let entry = AuditEntry {
        at: at(NOW),
        action: AuditAction::Created,
        clerk_id: id,
        svix_id: Some(svix_id.clone()),
        source: Source::Webhook,
        changed_fields: vec![user::EMAIL],
        event_at: at(SIGN_UP),
        actor: Some(Actor { ip: Some("203.0.113.7".to_owned()), user_agent: None }),
    };
    transaction.audit(&[entry]).await.unwrap();
}

fn advance(id: &str, version: i64, new: bool) -> Advance {
    let version = Version { version, event_at: version, tie: "msg_1".to_owned() };
    Advance { clerk_id: clerk_id(id), register: Register::at(version), new }
}

async fn a_commit_is_all_or_nothing(world: World) {
    let id = SvixId::new("msg_1").unwrap();
    let mut rolled_back = world.store.begin(Patience::Normal).await.unwrap();
    write_everything(&mut *rolled_back, &id, SIGN_UP).await;
    rolled_back.rollback().await;
    assert_eq!(world.dump().await, [""; 0]);

    let mut dropped = world.store.begin(Patience::Normal).await.unwrap();
    write_everything(&mut *dropped, &id, SIGN_UP).await;
    drop(dropped);
    assert_eq!(world.dump().await, [""; 0]);
    world.wait_until_idle().await;

    let mut committed = world.store.begin(Patience::Normal).await.unwrap();
    write_everything(&mut *committed, &id, SIGN_UP).await;
    assert_eq!(world.dump().await, [""; 0], "uncommitted changes are invisible");
    committed.commit().await.unwrap();
    assert_eq!(world.dump().await.len(), 5);
}

async fn a_transaction_that_loses_a_race_says_so(world: World) {
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    write_everything(&mut *transaction, &SvixId::new("msg_1").unwrap(), SIGN_UP).await;
    transaction.commit().await.unwrap();
    let before = world.dump().await;
    let user = world.user("user_1").await.unwrap();
    let ghost = Object { clerk_id: clerk_id("user_2"), ..user.clone() };
    for attempt in 0..4 {
        let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
        let lost = match attempt {
            0 => transaction.advance(&[advance("user_1", SIGN_UP + 1, true)]).await,
            1 => transaction.advance(&[advance("user_1", SIGN_UP - 1, false)]).await,
            2 => transaction.insert(std::slice::from_ref(&user), &world.rules.selection).await,
            _ => transaction.update(std::slice::from_ref(&ghost), &world.rules.selection).await,
        };
        assert_eq!(lost.unwrap_err().kind, ErrorKind::Raced, "attempt {attempt}");
        transaction.rollback().await;
    }
    assert_eq!(world.dump().await, before);
}

async fn after_the_deadline_nothing_is_done(world: World) {
    let batch = [world.delivery(&Event::created("user_1")), world.delivery(&Event::raw("unusable"))];
    let results =
        clerk_sync::sync::apply(&*world.store, &batch, &world.rules, world.now, Instant::now()).await;
    for result in results {
        assert_eq!(result.unwrap_err().kind, ErrorKind::Unavailable);
    }
    world.wait_until_idle().await;
    assert_eq!(world.dump().await, [""; 0]);
}

async fn a_deletion_that_one_key_refuses_takes_nothing_along_by_another(world: World) {
    world.deliver_all(&[Event::created("user_a"), Event::created("user_b")]).await;
    // Foreign keys are checked in the order of their creation.
    pointing(&world, "carts", "clerk_id", "users", "ON DELETE CASCADE").await;
    orders(&world, "").await;
    world.sql("INSERT INTO carts (id, clerk_id) VALUES (1, 'user_a'), (2, 'user_b')").await;
    order(&world, 1, "user_a").await;
    world.deliver_all(&[Event::deleted("user_a", 1000), Event::deleted("user_b", 1000)]).await;
    assert_eq!(world.column("SELECT clerk_id FROM users WHERE deleted_at IS NOT NULL").await, ["user_a"]);
    assert_eq!(
        world.column("SELECT clerk_id FROM carts").await,
        ["user_a"],
        "the cart of user_b is deleted with the user"
    );
    assert_eq!(world.count("orders").await, 1);
}

async fn a_row_that_was_anonymised_before_is_not_called_deleted_while_a_key_keeps_it(world: World) {
    orders(&world, "").await;
    world.deliver(&Event::created("user_a")).await;
    order(&world, 1, "user_a").await;
    assert_eq!(world.deliver(&Event::deleted("user_a", 1000)).await, Applied);
    let ids = [clerk_id("user_a")];
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    let fates = transaction.erase(&ids, &[Way::Delete, Way::Anonymize], world.now).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(!matches!(fates.get(&ids[0]), Some(RowFate::Deleted)), "{fates:?}");
    assert_eq!((world.count("users").await, world.count("orders").await), (1, 1));
    world.sql("DELETE FROM orders").await;
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    let fates = transaction.erase(&ids, &[Way::Delete, Way::Anonymize], world.now).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(matches!(fates.get(&ids[0]), Some(RowFate::Deleted)), "{fates:?}");
    assert_eq!(world.count("users").await, 0);
}

async fn somebody_elses_lock_loses_nothing(world: World) {
    world.deliver_all(&[Event::created("user_1"), Event::created("user_2")]).await;
    let other = world.open().await;
    let mut holder = other.begin(Patience::Normal).await.unwrap();
    holder.hold(&[clerk_id("user_1")]).await.unwrap();
    let batch: Vec<Event> =
        (1..=2).map(|n| Event::updated(&format!("user_{n}"), 1000).set("first_name", "Augusta")).collect();
    let results = world.try_deliver_all(&batch).await;
    if world.locks_rows() {
        // Only the locked user's event must wait.
        assert_eq!(results[0].as_ref().unwrap_err().kind, ErrorKind::Locked);
        assert_eq!(results[1], Ok(Applied));
    } else {
        assert!(results.iter().all(|result| result.as_ref().unwrap_err().kind == ErrorKind::Unavailable));
    }
    holder.rollback().await;
    let outcomes = world.deliver_all(&batch).await;
    assert_eq!(outcomes[0], Applied);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Augusta");
    assert_eq!(world.text("user_2", user::FIRST_NAME).await.unwrap(), "Augusta");
}

async fn what_others_wrote_while_a_user_was_waited_for_is_seen(world: World) {
    let (_other, mut holder) = locked(&world, "user_1").await;
    let selection = Selection::default().with(&USER, USER.fields().collect());
    let mut rows = holder.load(&[clerk_id("user_1")], &selection).await.unwrap();
    let mut row = rows.remove(&clerk_id("user_1")).unwrap();
    row.profile.set(user::FIRST_NAME, Value::Text("Augusta".to_owned()));
    holder.advance(&[advance("user_1", SIGN_UP + 1000, false)]).await.unwrap();
    holder.update(&[row], &selection).await.unwrap();

    // The event does not contain the first name.
    let next = Event::updated("user_1", 2000).without("first_name").set("last_name", "King");
    let (store, delivery) = (Arc::clone(&world.store), world.delivery(&next));
    let (rules, now) = (world.rules.clone(), world.now);
    let deadline = Instant::now() + Duration::from_secs(7);
    let applying = tokio::spawn(async move { apply(&*store, &[delivery], &rules, now, deadline).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    holder.commit().await.unwrap();
    assert_eq!(applying.await.unwrap(), [Ok(Applied)]);
    assert_eq!(world.text("user_1", user::FIRST_NAME).await.unwrap(), "Augusta");
    assert_eq!(world.text("user_1", user::LAST_NAME).await.unwrap(), "King");
    assert_eq!(
        world.column("SELECT action FROM audit_log ORDER BY id").await,
        ["USER_CREATED", "USER_UPDATED"]
    );
}

/// Lock this user from another process; on SQLite that locks the whole database.
async fn locked(world: &World, user: &str) -> (Arc<dyn Store>, Box<dyn Transaction>) {
    world.deliver(&Event::created(user)).await;
    let other = world.open().await;
    let mut holder = other.begin(Patience::Long).await.unwrap();
    holder.hold(&[clerk_id(user)]).await.unwrap();
    (other, holder)
}

fn committer(world: &World, limits: Limits) -> (Committer, Lanes) {
    let now = world.now;
    let clock: Clock = Arc::new(move || now);
    Committer::start(&world.store, None, &world.rules, limits, &clock)
}

async fn what_is_locked_is_held_in_a_room_of_a_size_until_it_is_free(world: World) {
    let (_other, holder) = locked(&world, "user_1").await;
    let limits = Limits { held: 3, patience: Duration::from_mins(1), ..Limits::default() };
    let (committer, lanes) = committer(&world, limits);
    let mut answers = Vec::new();
    for version in 1.. {
        let event = Event::updated("user_1", version).set("first_name", format!("Ada {version}"));
        match committer.submit(world.delivery(&event), Instant::now()) {
            Ok(answer) => answers.push(answer),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Overloaded);
                break;
            }
        }
        // The committer does not notice the lock before it holds the first request.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answers.len() >= 3, "{}", answers.len());
    holder.rollback().await;
    for answer in answers {
        let answer = answer.await.unwrap();
        assert!(matches!(answer, Ok(Applied | Stale) | Err(Refusal::Unavailable)), "{answer:?}");
    }
    let again = committer.submit(world.delivery(&Event::created("user_2")), Instant::now()).unwrap();
    assert_eq!(again.await.unwrap(), Ok(Applied));
    lanes.finish().await;
}

async fn what_stays_locked_is_put_into_the_queue_if_it_can_be(mut world: World) {
    let (_other, holder) = locked(&world, "user_1").await;
    let limits = Limits { patience: Duration::from_secs(4), ..Limits::default() };
    let (committer, lanes) = committer(&world, limits);
    let update = Event::updated("user_1", 1000).set("first_name", "Augusta");
    let submitted = [&update, &Event::deleted("user_1", 2000)]
        .map(|event| committer.submit(world.delivery(event), Instant::now()).unwrap());
    let [updated, deleted] = submitted;
    let answers = [updated.await.unwrap(), deleted.await.unwrap()];
    if world.locks_rows() {
        assert_eq!(answers, [Ok(Parked), Ok(Parked)]);
        let query = "SELECT event_type, state, attempts, last_error FROM webhook_queue ORDER BY event_type";
        let kept = world.rows(query).await;
        assert_eq!(kept.len(), 2);
        assert_eq!(
            (plain(&kept[0]["event_type"]), plain(&kept[1]["state"])),
            ("user.deleted".into(), "pending".into())
        );
        let error = plain(&kept[1]["last_error"]);
        // MySQL reports 3572 for an attempt that did not wait.
        let is_told = ["55P03", "1205", "3572", "112"]
            .iter()
            .any(|code| error.starts_with(&format!("another session holds a lock for too long ({code})")));
        assert!(is_told, "{error}");
    } else {
        assert_eq!(answers, [Err(Refusal::Unavailable), Err(Refusal::Unavailable)]);
    }
    holder.rollback().await;
    lanes.finish().await;
    world.pass(TimeDelta::seconds(8));
    let worked = world.drain().await.len();
    assert_eq!(worked, if world.locks_rows() { 2 } else { 0 });
    assert_eq!(world.count("users").await, u64::from(worked == 0));
}

async fn the_audit_trail_only_grows(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let before = world.dump().await;
    for statement in [
        "UPDATE audit_log SET action = 'NOTHING'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE id = 1",
    ] {
        assert!(world.try_sql(statement).await.is_err(), "{statement}");
    }
    if world.keeper == Keeper::Postgres {
        assert!(world.try_sql("TRUNCATE audit_log").await.is_err());
    }
    assert_eq!(world.dump().await, before);
}

async fn migrations_are_safe_when_ten_run_at_once(world: World) {
    let fresh = World::new(world.keeper).await.unwrap();
    let mut stores = Vec::new();
    for _ in 0..10 {
        stores.push(fresh.open().await);
    }
    let running: Vec<_> =
        stores.iter().cloned().map(|store| tokio::spawn(async move { store.migrate().await })).collect();
    let mut applied = 0;
    for migration in running {
        applied += migration.await.unwrap().unwrap().len();
    }
    let status = fresh.store.migration_status().await.unwrap();
    assert_eq!(applied, status.len(), "each exactly once");
    assert!(status.iter().all(|status| status.applied));
    assert_eq!(fresh.deliver(&Event::created("user_1")).await, Applied);
}

async fn migrating_again_does_nothing(world: World) {
    world.deliver(&Event::created("user_1")).await;
    let before = world.dump().await;
    assert_eq!(world.store.migrate().await.unwrap(), []);
    assert_eq!(world.open().await.migrate().await.unwrap(), []);
    assert_eq!(world.dump().await, before);
}

/// A database after the migrations up to this number.
async fn as_of(keeper: Keeper, version: i64) -> World {
    let world = bare(keeper).await;
    let text = world.id_type();
    let (number, time) = match keeper {
        Keeper::Postgres => ("BIGINT", "TEXT"),
        Keeper::Sqlite | Keeper::Mongodb => ("INTEGER", "TEXT"),
        Keeper::Mariadb | Keeper::Mysql => ("BIGINT", "datetime(3)"),
    };
    world
        .sql(&format!(
            "CREATE TABLE _clerk_sync_migrations (
                 version {number} PRIMARY KEY, name {text} NOT NULL, checksum {text} NOT NULL,
                 applied_at {time} NOT NULL DEFAULT '2026-01-01'
             )"
        ))
        .await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(world.dialect().family());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        let sql = fs::read_to_string(&file).unwrap();
        let (name, checksum) =
            (file.file_stem().unwrap().to_str().unwrap(), hex::encode(Sha256::digest(&sql)));
        let number: i64 = name[..4].parse().unwrap();
        if number > version {
            break;
        }
        world.sql(&sql.replace("{bin}", world.collation())).await;
        world
            .sql(&format!(
                "INSERT INTO _clerk_sync_migrations (version, name, checksum) VALUES ({number}, '{name}', '{checksum}')"
            ))
            .await;
    }
    world
}

async fn a_database_of_every_version_before_is_brought_up_to_date(world: World) {
    let all = world.store.migration_status().await.unwrap();
    let versions: Vec<i64> = all.iter().map(|status| status.migration.version).collect();
    for (applied_before, version) in (1..).zip(versions[..versions.len() - 1].iter().copied()) {
        let old = as_of(world.keeper, version).await;
        let time = "'2026-01-01T00:00:00.000Z'";
        old.sql(&format!(
            "INSERT INTO users (clerk_id, email, created_at, updated_at, synced_at)
                 VALUES ('user_1', 'ada@example.com', {time}, {time}, {time});
             INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
                 VALUES ('user', 'user_1', {SIGN_UP}, {SIGN_UP}, 'msg_1', 1 = 0), ('user', 'user_2', {SIGN_UP}, {SIGN_UP}, 'msg_2', 1 = 1);
             INSERT INTO processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at)
                 VALUES ('msg_1', 'user.created', 'applied', 'user_1', {time}, {time})"
        ))
        .await;
        if version >= 3 {
            old.sql(&format!(
                "INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, created_at)
                 VALUES ('msg_1_crm', 'crm', 'user_1', 'user.created', '{{}}', 'pending', {time})"
            ))
            .await;
        }
        let applied = old.store.migrate().await.unwrap_or_else(|error| panic!("from {version}: {error}"));
        assert_eq!(applied.len(), versions.len() - applied_before);
        assert_eq!(old.column("SELECT kind FROM processed_webhooks").await, ["user"], "from {version}");
        let waits = if version >= 3 { vec!["user user_1 {}"] } else { vec![] };
        let outbox = "SELECT kind || ' ' || clerk_id || ' ' || payload AS line FROM outbox";
        assert_eq!(old.column(outbox).await, waits, "from {version}");
        assert_eq!(old.text("user_1", user::EMAIL).await.as_deref(), Some("ada@example.com"));
        assert_eq!(old.deliver(&Event::updated("user_1", 1000)).await, Applied, "from {version}");
        assert_eq!(old.deliver(&Event::created("user_2")).await, Stale, "from {version}");
        assert_eq!(tables_of(&old).await, tables_of(&world).await, "from {version}");
    }
}

async fn a_table_that_somebody_else_has_is_named_also_by_an_upgrade(world: World) {
    // On MariaDB and MySQL, one migration creates all tables, so no earlier version exists.
    let old = as_of(world.keeper, 14).await;
    old.sql("CREATE TABLE organizations (id INTEGER PRIMARY KEY, title TEXT)").await;
    let error = old.store.migrate().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Schema);
    for part in ["organizations: column clerk_id is missing", "Nothing was changed"] {
        assert!(error.to_string().contains(part), "{part} is missing in: {error}");
    }
    assert!(!error.to_string().contains("table users"), "{error}");
}

async fn a_store_is_ready_once_it_is_migrated(world: World) {
    use clerk_sync::store::Readiness;
    assert_eq!(world.store.ready().await, Ok(Readiness::Ready));
    let fresh = World::new(world.keeper).await.unwrap();
    assert_eq!(fresh.store.ready().await, Ok(Readiness::SchemaNotCurrent));
    assert!(fresh.store.migration_status().await.unwrap().iter().all(|status| !status.applied));
    fresh.store.migrate().await.unwrap();
    assert_eq!(fresh.store.ready().await, Ok(Readiness::Ready));
}

/// A world with a schema, but without tables.
async fn bare(keeper: Keeper) -> World {
    let world = World::new(keeper).await.unwrap();
    if keeper == Keeper::Postgres {
        world.create_schema().await;
    }
    world
}

async fn tables_of(world: &World) -> Vec<String> {
    world
        .column(match world.keeper {
            Keeper::Postgres => {
                "SELECT table_name::text AS name FROM information_schema.tables WHERE table_schema = current_schema() ORDER BY 1"
            }
            Keeper::Sqlite | Keeper::Mongodb => "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1",
            Keeper::Mariadb | Keeper::Mysql => {
                "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = database() ORDER BY 1"
            }
        })
        .await
}

async fn tables_that_are_not_ours_are_refused_and_left_alone(world: World) {
    let bare = bare(world.keeper).await;
    let id = bare.id_type();
    bare.sql(&format!(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, clerk_id {id} NOT NULL UNIQUE, email TEXT)"
    ))
    .await;
    bare.sql("INSERT INTO users VALUES (1, 'user_1', 'ada@example.com')").await;
    let error = bare.store.migrate().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Schema);
    for part in ["users", "first_name", "Nothing was changed", "adopt"] {
        assert!(error.to_string().contains(part), "{part} is missing in: {error}");
    }
    assert_eq!(tables_of(&bare).await, ["users"]);
    assert_eq!(bare.count("users").await, 1);
}

async fn a_column_of_another_type_is_refused(world: World) {
    world
        .sql_of(
            "ALTER TABLE webhook_queue ALTER COLUMN event_type TYPE integer USING NULL",
            "ALTER TABLE webhook_queue DROP COLUMN event_type; ALTER TABLE webhook_queue ADD COLUMN event_type INTEGER",
            "ALTER TABLE webhook_queue MODIFY event_type INTEGER",
        )
        .await;
    let error = world.open().await.migrate().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Schema);
    for part in ["webhook_queue", "event_type"] {
        assert!(error.to_string().contains(part), "{part} is missing in: {error}");
    }
}

async fn extra_columns_are_fine(world: World) {
    world
        .sql(
            "ALTER TABLE users ADD COLUMN nickname TEXT; ALTER TABLE processed_webhooks ADD COLUMN note TEXT",
        )
        .await;
    world
        .sql("ALTER TABLE entity_versions ADD COLUMN note TEXT; ALTER TABLE audit_log ADD COLUMN note TEXT")
        .await;
    world
        .sql("ALTER TABLE audit_actors ADD COLUMN note TEXT; ALTER TABLE webhook_queue ADD COLUMN note TEXT")
        .await;
    assert_eq!(world.open().await.migrate().await, Ok(Vec::new()));
    assert_eq!(world.deliver(&Event::created("user_1")).await, Applied);
    assert_eq!(world.deliver(&Event::updated("user_1", 1).set("first_name", "Augusta")).await, Applied);
    assert_eq!(world.deliver(&Event::raw("unusable")).await, Parked);
    assert_eq!(world.deliver(&Event::deleted("user_1", 1)).await, Applied);
}

async fn signups_are_counted_by_week_from_monday_in_utc(world: World) {
    // 2026-01-05 is a Monday.
    const MONDAY: i64 = NOW + 4 * 86_400_000;
    for (number, at) in
        [MONDAY - 1, MONDAY, MONDAY + 7 * 86_400_000 - 1, MONDAY + 7 * 86_400_000].into_iter().enumerate()
    {
        world.deliver(&Event::created(&format!("user_{number}")).set("created_at", at)).await;
    }
    world.deliver(&Event::minimal("user_9", 1)).await;
    let weeks = world.rows("SELECT week, signups FROM signups_by_week ORDER BY week").await;
    let weeks: Vec<(String, String)> =
        weeks.iter().map(|row| (plain(&row["week"]), plain(&row["signups"]))).collect();
    let expected = [("2025-12-29", "1"), ("2026-01-05", "2"), ("2026-01-12", "1")];
    assert_eq!(weeks, expected.map(|(week, signups)| (week.to_owned(), signups.to_owned())));
}

async fn old_processed_ids_are_forgotten_and_no_others(mut world: World) {
    let old: Vec<Event> = (0..5).map(|n| Event::created(&format!("user_{n}"))).collect();
    world.deliver_all(&old).await;
    world.pass(TimeDelta::days(30));
    let new = Event::created("user_9");
    world.deliver(&new).await;
    let before = world.now - TimeDelta::days(29);
    assert_eq!(
        world.store.prune(Old::Processed, at(NOW), 100).await,
        Ok(0),
        "a row at the limit is not older than it"
    );
    assert_eq!(world.store.prune(Old::Processed, before, 3).await, Ok(3));
    assert_eq!(world.store.prune(Old::Processed, before, 3).await, Ok(2));
    assert_eq!(world.store.prune(Old::Processed, before, 3).await, Ok(0));
    assert_eq!(world.column("SELECT svix_id FROM processed_webhooks").await, [new.svix_id]);
    // The version register still detects the old delivery.
    assert_eq!(world.deliver(&old[0]).await, Stale);
}

async fn the_newest_deliveries_come_first(mut world: World) {
    let mut sent = Vec::new();
    for n in 0..3 {
        let [one, two] = ["a", "b"].map(|id| Event::created(&format!("user_{id}{n}")));
        world.deliver_all(&[one.clone(), two.clone()]).await;
        let mut ids = [one.svix_id, two.svix_id];
        ids.sort();
        sent.extend(ids);
        world.pass(TimeDelta::seconds(1));
    }
    let deletion = Event::deleted("user_a0", 5);
    world.deliver(&deletion).await;
    sent.push(deletion.svix_id.clone());
    sent.reverse();

    let newest = async |filter: DeliveryFilter, limit| world.store.deliveries(&filter, limit).await.unwrap();
    let ids = |found: &[Processed]| found.iter().map(|row| row.svix_id.to_string()).collect::<Vec<_>>();
    let mut walked = Vec::new();
    let mut before = None;
    loop {
        let page = newest(DeliveryFilter { before: before.clone(), ..DeliveryFilter::default() }, 2).await;
        let Some(last) = page.last() else { break };
        before = Some((last.processed_at, last.svix_id.clone()));
        walked.extend(ids(&page));
    }
    assert_eq!(walked, sent, "including deliveries that were processed at the same time");

    let event_type = Some("user.deleted".to_owned());
    let deletions = newest(DeliveryFilter { event_type, ..DeliveryFilter::default() }, 5).await;
    assert_eq!(ids(&deletions), sent[..1]);
    assert_eq!(deletions[0].clerk_id.as_deref(), Some("user_a0"));
    let outcome = Some("stale".to_owned());
    assert_eq!(newest(DeliveryFilter { outcome, ..DeliveryFilter::default() }, 5).await, []);

    let asked = [sent[0].as_str(), "msg_unknown"].map(|id| SvixId::new(id).unwrap());
    let these = DeliveryFilter { ids: Some(asked.to_vec()), ..DeliveryFilter::default() };
    assert_eq!(newest(these, 5).await, deletions);
}

async fn what_was_answered_is_counted_by_the_minute(world: World) {
    let counted = |minute: i64, outcome: &str, count| Activity {
        at: at(NOW + minute * 60_000),
        event: "user.created".to_owned(),
        outcome: outcome.to_owned(),
        reason: if outcome == "rejected" { "invalid_signature" } else { "" }.to_owned(),
        latest: at(NOW + minute * 60_000 + 1000 * i64::try_from(count).unwrap()),
        count,
        within: [count - 1, count, count, count, count, count],
    };
    let store = &world.store;
    store.add_activity(&[]).await.unwrap();
    store.add_activity(&[counted(0, "applied", 2), counted(1, "rejected", 3)]).await.unwrap();
    let other = world.open().await;
    other.add_activity(&[counted(1, "rejected", 1), counted(61, "applied", 5)]).await.unwrap();

    let since =
        async |minute: i64, seconds| store.activity(at(NOW + minute * 60_000), seconds).await.unwrap();
    let mut both = counted(1, "rejected", 4);
    both.latest = at(NOW + 60_000 + 3000);
    both.within[0] = 2;
    assert_eq!(since(0, 60).await, [counted(0, "applied", 2), both.clone(), counted(61, "applied", 5)]);
    assert_eq!(since(1, 60).await, [both.clone(), counted(61, "applied", 5)]);
    both.at = at(NOW);
    let late = Activity { latest: at(NOW + 61 * 60_000 + 5000), ..counted(60, "applied", 5) };
    assert_eq!(since(0, 3600).await, [counted(0, "applied", 2), both, late]);

    assert_eq!(store.count_old(Old::Activity, at(NOW + 60_000)).await, Ok(1));
    assert_eq!(store.prune(Old::Activity, at(NOW + 60_000), 10).await, Ok(1));
    assert_eq!(world.count("activity").await, 2);
}

/// Create a table as Prisma or Drizzle would, with some rows that have no Clerk id.
async fn with_tables_of_an_application(world: &World) {
    world
        .sql_of(
            r#"CREATE TABLE "User" (
                   id text PRIMARY KEY, "clerkId" varchar(255), bio text, "isDeleted" boolean, "createdAt" timestamp(3)
               );
               INSERT INTO "User" VALUES
               ('c1', 'user_b', '', true, '2025-12-31 00:00:00.123'), ('c2', 'user_B', NULL, false, NULL),
               ('c3', 'user_2d0000000000000000000000006', 'x', NULL, NULL), ('c4', NULL, NULL, NULL, NULL), ('c5', '', NULL, NULL, NULL)"#,
            r#"CREATE TABLE "User" (
                   id TEXT PRIMARY KEY, "clerkId" TEXT COLLATE NOCASE, bio TEXT, "isDeleted" INTEGER, "createdAt" DATETIME
               );
               INSERT INTO "User" VALUES
               ('c1', 'user_b', '', 1, '2025-12-31T00:00:00.123'), ('c2', 'user_B', NULL, 0, NULL),
               ('c3', 'user_2d0000000000000000000000006', 'x', NULL, NULL), ('c4', NULL, NULL, NULL, NULL), ('c5', '', NULL, NULL, NULL)"#,
            // The column compares without regard to case, which is the default of these servers.
            r#"CREATE TABLE "User" (
                   id varchar(191) PRIMARY KEY, "clerkId" varchar(255), bio text, "isDeleted" boolean, "createdAt" datetime(3)
               );
               INSERT INTO "User" VALUES
               ('c1', 'user_b', '', true, '2025-12-31 00:00:00.123'), ('c2', 'user_B', NULL, false, NULL),
               ('c3', 'user_2d0000000000000000000000006', 'x', NULL, NULL), ('c4', NULL, NULL, NULL, NULL), ('c5', '', NULL, NULL, NULL)"#,
        )
        .await;
}

fn name_of(world: &World, table: &str) -> String {
    match world.keeper {
        Keeper::Postgres => format!("{}.\"{table}\"", world.schema()),
        Keeper::Sqlite | Keeper::Mongodb => table.to_owned(),
        Keeper::Mariadb | Keeper::Mysql => format!("{}.`{table}`", world.schema()),
    }
}

async fn what_a_table_of_an_application_holds_is_told(world: World) {
    with_tables_of_an_application(&world).await;
    let table = world.store.foreign_table(&name_of(&world, "User")).await.unwrap();
    assert_eq!((table.rows, table.hides_rows), (5, false));
    let facts = |column: &ForeignColumn| (column.name.clone(), column.filled, column.like_ids, column.ids);
    let facts: Vec<_> = table.columns.iter().map(facts).collect();
    let expected = [
        ("id", 5, 0, 0),
        ("clerkId", 3, 3, 1),
        ("bio", 1, 0, 0),
        ("isDeleted", 3 - 1, 0, 0),
        ("createdAt", 1, 0, 0),
    ];
    assert_eq!(facts, expected.map(|(name, filled, like, ids)| (name.to_owned(), filled, like, ids)));
    let error = world.store.foreign_table(&name_of(&world, "nothing")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Schema);
    assert!(error.to_string().contains("no table"), "{error}");
}

async fn a_table_of_an_application_is_read_page_by_page_in_the_order_of_its_ids(world: World) {
    with_tables_of_an_application(&world).await;
    let mut reading = ForeignReading {
        table: name_of(&world, "User"),
        id: "clerkId".to_owned(),
        columns: vec!["bio".to_owned(), "createdAt".to_owned()],
        condition: Some("\"isDeleted\" AND 1 = 1 -- deleted users".to_owned()),
    };
    let rows = world.store.foreign_rows(&reading, None, 10).await.unwrap();
    let ids: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.meets_condition)).collect();
    // Byte order: upper case comes first. Rows without an id are left out.
    assert_eq!(ids, [("user_2d0000000000000000000000006", false), ("user_B", false), ("user_b", true)]);
    assert_eq!(serde_json::to_string(&rows[0].values).unwrap(), r#"{"bio":"x","createdAt":null}"#);
    let time = rows[2].values["createdAt"].as_str().unwrap().replace(' ', "T");
    assert_eq!(time.trim_end_matches('0'), "2025-12-31T00:00:00.123", "no time zone is added");
    let first = world.store.foreign_rows(&reading, None, 2).await.unwrap();
    let second = world.store.foreign_rows(&reading, Some(&first[1].id), 2).await.unwrap();
    assert_eq!((second.len(), second[0].id.as_str()), (1, "user_b"));
    assert!(world.store.foreign_rows(&reading, Some("user_b"), 2).await.unwrap().is_empty());
    reading.condition = Some("no_such_column = 1".to_owned());
    let error = world.store.foreign_rows(&reading, None, 10).await.unwrap_err();
    assert!(error.to_string().contains("--deleted-when"), "{error}");
}
