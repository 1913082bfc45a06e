//! A kind of object that only these tests declare: what holds for it holds for every kind. The objects are clubs and their
//! members' passes. A user that leaves a club and joins again gets another pass.

use std::{
    future::ready,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::get,
};
use chrono::TimeDelta;
use clerk_sync::{
    clerk::{api::Api, signature::Verifier},
    entity::{self, USER},
    http::{self, Addresses, App, Bodies, ConnectionLimits, Dashboard, Probe, Resends, Scrapers},
    http_client,
    model::{Column, Entity, FieldSet, Holds, Idle, MessageType, Outcome, Place, Selection, Subscription},
    store::{RowFilter, sql::ddl},
    sync::{
        Clock, Committer, Limits,
        backfill::{Done, Progress, Wanted, backfill},
        catch_up::{CatchUp, Instance},
        instance::{Gate, Pin},
        reconcile::{Compared, DriftKind, Options, reconcile},
    },
    work::{Gauges, activity::Answers},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use secrecy::SecretString;
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    promises::promises,
    receivers::axum_serve,
    world::{Event, Keeper, NOW, World, clerk_id, run},
};

use Outcome::{Applied, Duplicate, Ignored, Parked, Stale, Unchanged};

/// The token of the private API.
const TOKEN: &str = "t0ken";

pub(crate) static CLUB: Entity = Entity {
    kind: "club",
    table: "clubs",
    id_prefix: "club_",
    events: ["club.founded", "club.changed", "club.closed"],
    also: &[],
    path: Some("clubs"),
    query: &[("order_by", "+created_at")],
    within: None,
    of_each: &[],
    has_one: true,
    columns: &[
        Column::new("name", Holds::Text).by_default().kept(),
        Column::new("seats", Holds::Int).by_default().kept(),
        Column::new("open", Holds::Bool).kept(),
        Column::new("opens_at", Holds::Time).kept(),
        Column::new("rules", Holds::Json).kept(),
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};

pub(crate) static CLUB_PASS: Entity = Entity {
    kind: "club_pass",
    table: "club_passes",
    id_prefix: "pass_",
    events: ["clubPass.given", "clubPass.changed", "clubPass.taken"],
    also: &[],
    path: Some("club_passes"),
    query: &[("order_by", "+created_at")],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("club_id", Holds::Text).at(Place::Path(&["club", "id"])).by_default().parent(&CLUB),
        Column::new("user_id", Holds::Text)
            .at(Place::Path(&["holder", "user", "id"]))
            .by_default()
            .parent(&USER),
        Column::new("level", Holds::Text).by_default().kept(),
        Column::new("note", Holds::Json).by_default(),
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &["club_id", "user_id"],
};

pub(crate) static KINDS: &[&Entity] = &[&USER, &CLUB, &CLUB_PASS];

promises! {
    an_object_of_any_kind_is_applied_exactly_once_and_in_order,
    where_a_row_belongs_is_kept_whatever_the_allow_list_says,
    a_kind_that_is_not_selected_is_ignored,
    a_value_of_every_type_is_kept_and_cleared,
    a_parent_takes_its_children_with_it,
    a_parent_takes_children_of_a_kind_that_is_no_longer_synced,
    a_child_that_learns_of_its_parents_death_goes_too,
    children_come_in_any_order_with_their_parents,
    a_child_of_a_deleted_parent_is_stale,
    whoever_joins_again_has_another_pass_and_keeps_it,
    a_row_that_the_application_holds_on_to_is_marked,
    more_children_than_one_transaction_takes_follow_and_never_read_as_whole,
    other_systems_hear_of_every_kind,
    what_is_parked_of_a_kind_goes_with_it,
    rows_of_a_kind_are_walked_through_in_pages_and_found_by_their_parents,
    two_replicas_that_delete_a_parent_and_write_its_children_leave_none,
    migrations_make_what_the_declarations_say,
    a_kind_that_clerk_lists_is_taken_in_and_compared,
    programs_read_every_kind,
}

async fn with_kinds(world: &mut World) {
    world.know(KINDS).await;
    if world.keeper == Keeper::Mongodb {
        // Migrating creates the collections of the new kinds.
        world.store.migrate().await.unwrap();
    }
    for entity in &KINDS[1..] {
        world.sql(&ddl::create(entity, world.dialect())).await;
    }
    world.rules.selection =
        KINDS.iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
}

fn club(id: &str, name: &str, at: i64) -> Event {
    let data = json!({
        "id": id, "object": "club", "name": name, "seats": 12, "open": true, "opens_at": NOW + 5, "rules": { "shoes": ["clean"] },
        "created_at": NOW, "updated_at": NOW + at,
    });
    Event::about("club.changed", data, NOW + at)
}

fn closed(id: &str, at: i64) -> Event {
    Event::about("club.closed", json!({ "id": id, "object": "club", "deleted": true }), NOW + at)
}

/// An event about a pass that was given at `given`, with the state at `at`.
fn pass(id: &str, club: &str, user: &str, given: i64, at: i64) -> Event {
    Event::about("clubPass.changed", pass_data(id, club, user, given, at), NOW + at)
}

fn taken(id: &str, club: &str, user: &str, at: i64) -> Event {
    Event::about("clubPass.taken", pass_data(id, club, user, 0, at), NOW + at)
}

fn pass_data(id: &str, club: &str, user: &str, given: i64, at: i64) -> Json {
    json!({
        "id": id, "object": "club_pass", "level": "gold", "note": { "at": at }, "club": { "id": club, "name": "as it was" },
        "holder": { "user": { "id": user }, "identifier": "ada@example.com" },
        "created_at": NOW + given, "updated_at": NOW + at,
    })
}

/// The live passes: id, club and user.
async fn passes(world: &World) -> Vec<String> {
    world
        .column(
            "SELECT clerk_id || ' ' || club_id || ' ' || user_id AS line FROM club_passes
             WHERE deleted_at IS NULL ORDER BY clerk_id",
        )
        .await
}

async fn tombstones(world: &World) -> Vec<String> {
    world
        .column("SELECT kind || ' ' || clerk_id AS line FROM entity_versions WHERE deleted ORDER BY kind, clerk_id")
        .await
}

async fn an_object_of_any_kind_is_applied_exactly_once_and_in_order(mut world: World) {
    with_kinds(&mut world).await;
    let first = club("club_1", "Chess", 10);
    assert_eq!(world.deliver(&first).await, Applied);
    assert_eq!(world.deliver(&first).await, Duplicate);
    assert_eq!(world.deliver(&club("club_1", "Late", 5)).await, Stale);
    assert_eq!(world.deliver(&club("club_1", "Chess", 11)).await, Unchanged);
    assert_eq!(world.deliver(&club("club_1", "Go", 20)).await, Applied);
    // A user with the same id is a different object.
    assert_eq!(world.deliver(&Event::created("club_1")).await, Applied);
    assert_eq!(world.column("SELECT name FROM clubs").await, ["Go"]);
    assert_eq!(world.deliver(&closed("club_1", 1)).await, Applied);
    assert_eq!(world.deliver(&closed("club_1", 30)).await, Stale);
    assert_eq!(world.deliver(&club("club_1", "Ghost", 40)).await, Stale);
    assert_eq!(world.deliver(&closed("club_2", 30)).await, Applied, "a tombstone of an unknown club");
    assert_eq!(world.count("clubs").await, 0);
    assert!(world.user("club_1").await.is_some());
    assert_eq!(tombstones(&world).await, ["club club_1", "club club_2"]);
    let lines = world.column("SELECT action || ' ' || kind AS line FROM audit_log ORDER BY id").await;
    assert_eq!(lines, ["CLUB_CREATED club", "CLUB_UPDATED club", "USER_CREATED user", "CLUB_DELETED club"]);
    let kinds = world.column("SELECT DISTINCT kind FROM processed_webhooks ORDER BY kind").await;
    assert_eq!(kinds, ["club", "user"]);
    assert_eq!(world.count("erasure_receipts").await, 0, "no user was erased");
}

async fn where_a_row_belongs_is_kept_whatever_the_allow_list_says(mut world: World) {
    with_kinds(&mut world).await;
    world.rules.selection =
        world.rules.selection.clone().with(&CLUB_PASS, FieldSet::from_iter([CLUB_PASS.field("level")]));
    world.deliver_all(&[club("club_1", "Chess", 10), pass("pass_1", "club_1", "user_1", 0, 20)]).await;
    assert_eq!(passes(&world).await, ["pass_1 club_1 user_1"]);
    assert_eq!(world.count("club_passes WHERE note IS NULL").await, 1);
    world.deliver(&closed("club_1", 30)).await;
    assert_eq!(passes(&world).await, [""; 0]);
}

async fn a_kind_that_is_not_selected_is_ignored(mut world: World) {
    with_kinds(&mut world).await;
    world.rules.selection = Selection::of(&USER, FieldSet::ALL);
    assert_eq!(world.deliver(&club("club_1", "Chess", 10)).await, Ignored);
    assert_eq!(world.deliver(&closed("club_1", 10)).await, Ignored);
    assert_eq!(world.count("clubs").await + world.count("entity_versions").await, 0);
}

async fn a_value_of_every_type_is_kept_and_cleared(mut world: World) {
    with_kinds(&mut world).await;
    world.deliver(&club("club_1", "Chess", 10).set("seats", 9_007_199_254_740_993_i64)).await;
    let row = world.store.row(&clerk_id_of(&CLUB, "club_1")).await.unwrap().unwrap().object;
    let value = |name| row.profile[CLUB.field(name)].clone();
    assert_eq!(value("seats").int(), Some(9_007_199_254_740_993));
    assert_eq!(
        (value("open").bool(), value("opens_at").time().unwrap().timestamp_millis()),
        (Some(true), NOW + 5)
    );
    assert_eq!(
        serde_json::from_str::<Json>(value("rules").json().unwrap()).unwrap(),
        json!({ "shoes": ["clean"] })
    );
    // An absent field stays, null clears a field, and an unreadable value affects only its own field.
    let event = club("club_1", "Go", 20).set("seats", Json::Null).set("open", "perhaps").without("rules");
    assert_eq!(world.deliver(&event).await, Applied);
    let row = world.store.row(&clerk_id_of(&CLUB, "club_1")).await.unwrap().unwrap().object;
    assert_eq!(row.profile[CLUB.field("name")].text(), Some("Go"));
    assert_eq!(row.profile[CLUB.field("seats")].int(), None);
    assert_eq!(row.profile[CLUB.field("open")].bool(), Some(true));
    assert!(row.profile[CLUB.field("rules")].json().is_some());
}

fn clerk_id_of(entity: &'static Entity, id: &str) -> clerk_sync::model::ClerkId {
    clerk_sync::model::ClerkId::new(entity, id).unwrap()
}

async fn a_parent_takes_its_children_with_it(mut world: World) {
    with_kinds(&mut world).await;
    let all = [
        Event::created("user_1"),
        Event::created("user_2"),
        club("club_1", "Chess", 10),
        club("club_2", "Go", 10),
        pass("pass_11", "club_1", "user_1", 0, 20),
        pass("pass_12", "club_1", "user_2", 0, 20),
        pass("pass_21", "club_2", "user_1", 0, 20),
        pass("pass_22", "club_2", "user_2", 0, 20),
    ];
    assert_eq!(world.deliver_all(&all).await, [Applied; 8]);
    assert_eq!(world.deliver(&closed("club_1", 30)).await, Applied);
    assert_eq!(passes(&world).await, ["pass_21 club_2 user_1", "pass_22 club_2 user_2"]);
    assert_eq!(world.deliver(&Event::deleted("user_1", 40)).await, Applied);
    assert_eq!(passes(&world).await, ["pass_22 club_2 user_2"]);
    let dead = ["club club_1", "club_pass pass_11", "club_pass pass_12", "club_pass pass_21", "user user_1"];
    assert_eq!(tombstones(&world).await, dead);
    let at = world
        .column("SELECT DISTINCT event_at FROM entity_versions WHERE clerk_id IN ('club_1', 'pass_12')")
        .await;
    assert_eq!(at, [(NOW + 30).to_string()], "the time of the parent's event");
    // Later events about the passes are stale, and so are the passes' own deletions.
    let late = [pass("pass_11", "club_1", "user_1", 0, 90), taken("pass_12", "club_1", "user_2", 90)];
    assert_eq!(world.deliver_all(&late).await, [Stale, Stale]);
    assert_eq!(passes(&world).await.len(), 1);
    let lines = world
        .column("SELECT action FROM audit_log WHERE kind = 'club_pass' AND action LIKE '%DELETED'")
        .await;
    assert_eq!(lines, ["CLUB_PASS_DELETED"; 3]);
}

async fn a_parent_takes_children_of_a_kind_that_is_no_longer_synced(mut world: World) {
    with_kinds(&mut world).await;
    let all = [
        Event::created("user_1"),
        Event::created("user_2"),
        pass("pass_1", "club_1", "user_1", 0, 20),
        pass("pass_2", "club_1", "user_2", 0, 20),
    ];
    world.deliver_all(&all).await;
    world.rules.selection = Selection::of(&USER, FieldSet::ALL);
    assert_eq!(world.deliver(&Event::deleted("user_1", 30)).await, Applied);
    assert_eq!(passes(&world).await, ["pass_2 club_1 user_2"]);
    assert_eq!(tombstones(&world).await, ["club_pass pass_1", "user user_1"]);
    assert_eq!(world.count("club_passes").await, 1, "the pass of user_1 is gone with its data");
}

async fn a_child_that_learns_of_its_parents_death_goes_too(mut world: World) {
    with_kinds(&mut world).await;
    let given = pass("pass_1", "club_1", "user_1", 0, 20);
    assert_eq!(world.deliver_all(&[club("club_1", "Chess", 10), given]).await, [Applied, Applied]);
    world.sql("UPDATE club_passes SET user_id = NULL").await;
    world.deliver(&Event::deleted("user_1", 30)).await;
    assert_eq!(world.count("club_passes").await, 1, "the owner of the pass is unknown");
    assert_eq!(world.deliver(&pass("pass_1", "club_1", "user_1", 0, 40)).await, Stale);
    assert_eq!(world.count("club_passes").await, 0);
    assert_eq!(tombstones(&world).await, ["club_pass pass_1", "user user_1"]);
}

async fn children_come_in_any_order_with_their_parents(mut world: World) {
    with_kinds(&mut world).await;
    let events = [
        Event::created("user_1"),
        club("club_1", "Chess", 10),
        pass("pass_1", "club_1", "user_1", 15, 20),
        closed("club_1", 30),
        taken("pass_1", "club_1", "user_1", 31),
    ];
    for order in 0..120_usize {
        world.empty().await;
        world.sql("DELETE FROM clubs; DELETE FROM club_passes").await;
        let (mut left, mut number) = (events.to_vec(), order);
        let mut batch: Vec<Event> = Vec::new();
        for places in (1..=events.len()).rev() {
            batch.push(left.remove(number % places));
            number /= places;
        }
        // One by one, in pairs, and all at once.
        for part in batch.chunks([1, 2, 5][order % 3]) {
            world.deliver_all(part).await;
        }
        let dead = ["club club_1", "club_pass pass_1"];
        assert_eq!(tombstones(&world).await, dead, "order {order}");
        assert_eq!(world.count("clubs").await + world.count("club_passes").await, 0, "order {order}");
        assert!(world.user("user_1").await.is_some());
    }
}

async fn a_child_of_a_deleted_parent_is_stale(mut world: World) {
    with_kinds(&mut world).await;
    world.deliver_all(&[closed("club_1", 30), Event::deleted("user_9", 0)]).await;
    for (club, user) in [("club_1", "user_1"), ("club_2", "user_9")] {
        assert_eq!(world.deliver(&pass("pass_1", club, user, 0, 99)).await, Stale);
        // The same in one batch with the deletion, before or after it.
        let batch = [
            pass("pass_2", "club_3", user, 0, 99),
            closed("club_3", 1),
            pass("pass_3", "club_3", "user_1", 0, 99),
        ];
        world.deliver_all(&batch).await;
    }
    assert_eq!(passes(&world).await, [""; 0]);
}

async fn whoever_joins_again_has_another_pass_and_keeps_it(mut world: World) {
    with_kinds(&mut world).await;
    let events = [
        pass("pass_a", "club_1", "user_1", 10, 10),
        pass("pass_a", "club_1", "user_1", 10, 20),
        taken("pass_a", "club_1", "user_1", 30),
        pass("pass_b", "club_1", "user_1", 40, 40),
        pass("pass_b", "club_1", "user_1", 40, 50),
    ];
    for order in 0..120_usize {
        world.empty().await;
        world.sql("DELETE FROM club_passes").await;
        let (mut left, mut number) = (events.to_vec(), order);
        let mut batch: Vec<Event> = Vec::new();
        for places in (1..=events.len()).rev() {
            batch.push(left.remove(number % places));
            number /= places;
        }
        for part in batch.chunks([1, 5, 3][order % 3]) {
            let outcomes = world.deliver_all(part).await;
            assert!(!outcomes.contains(&Parked), "order {order}: {outcomes:?}");
            assert!(passes(&world).await.len() <= 1, "order {order}");
        }
        assert_eq!(passes(&world).await, ["pass_b club_1 user_1"], "order {order}");
        assert_eq!(tombstones(&world).await, ["club_pass pass_a"], "order {order}");
    }
}

async fn a_row_that_the_application_holds_on_to_is_marked(mut world: World) {
    with_kinds(&mut world).await;
    world
        .sql(&format!(
            "CREATE TABLE bookings (
                 club {id}, pass {id},
                 FOREIGN KEY (club) REFERENCES clubs (clerk_id), FOREIGN KEY (pass) REFERENCES club_passes (clerk_id)
             )",
            id = world.id_type()
        ))
        .await;
    let all = [
        club("club_1", "Chess", 10),
        pass("pass_1", "club_1", "user_1", 0, 20),
        pass("pass_2", "club_1", "user_2", 0, 20),
    ];
    world.deliver_all(&all).await;
    world.sql("INSERT INTO bookings VALUES ('club_1', 'pass_1')").await;
    assert_eq!(world.deliver(&closed("club_1", 30)).await, Applied);
    let kept =
        world.column("SELECT name || ' ' || seats AS line FROM clubs WHERE deleted_at IS NOT NULL").await;
    assert_eq!(kept, ["Chess 12"], "a club contains no personal data");
    let kept = world.rows("SELECT clerk_id, level, note, deleted_at FROM club_passes").await;
    assert_eq!((kept.len(), &kept[0]["clerk_id"], &kept[0]["note"]), (1, &json!("pass_1"), &Json::Null));
    assert!(!kept[0]["deleted_at"].is_null());
    assert_eq!(world.count("webhook_queue").await, 0, "a marked row counts as deleted");
    assert!(world.store.row(&clerk_id_of(&CLUB, "club_1")).await.unwrap().unwrap().standing().is_none());
    // A second deletion has nothing to do.
    assert_eq!(world.deliver(&closed("club_1", 40)).await, Stale);
    world.sql("DROP TABLE bookings").await;
}

async fn more_children_than_one_transaction_takes_follow_and_never_read_as_whole(mut world: World) {
    with_kinds(&mut world).await;
    world.deliver(&club("club_1", "Chess", 10)).await;
    for part in 0..14 {
        let passes = (0..512).map(|n| {
            let n = part * 512 + n;
            pass(&format!("pass_{n}"), "club_1", &format!("user_{n}"), 0, 20)
        });
        world.deliver_all(&passes.collect::<Vec<_>>()).await;
    }
    world.deliver(&pass("pass_x", "club_2", "user_1", 0, 20)).await;
    assert_eq!(passes(&world).await.len(), 14 * 512 + 1);
    assert_eq!(world.deliver(&closed("club_1", 30)).await, Applied);
    assert_eq!(passes(&world).await, ["pass_x club_2 user_1"], "all passes are marked at once");
    assert!(world.count("club_passes").await > 2000);
    assert_eq!(world.deliver(&pass("pass_9000", "club_1", "user_1", 0, 90)).await, Stale);
    world.drain().await;
    assert_eq!(world.count("club_passes").await, 1);
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(tombstones(&world).await.len(), 14 * 512 + 1);
}

async fn other_systems_hear_of_every_kind(mut world: World) {
    with_kinds(&mut world).await;
    let events = [&USER, &CLUB, &CLUB_PASS].into_iter().flat_map(MessageType::of).collect();
    world.rules.subscriptions =
        Arc::new([Subscription { sink: "crm".to_owned(), events, fields: world.rules.selection.clone() }]);
    world.deliver_all(&[club("club_1", "Chess", 10), pass("pass_1", "club_1", "user_1", 0, 20)]).await;
    world.deliver(&club("club_1", "Go", 20)).await;
    let told =
        world.column("SELECT type || ' ' || kind || ' ' || clerk_id AS line FROM outbox ORDER BY id").await;
    let expected =
        ["club.created club club_1", "club_pass.created club_pass pass_1", "club.updated club club_1"];
    assert_eq!(told, expected);
    let message: Json =
        serde_json::from_str(&world.value("SELECT payload FROM outbox WHERE type = 'club.updated'").await)
            .unwrap();
    assert_eq!((&message["data"]["name"], &message["changed_fields"]), (&json!("Go"), &json!(["name"])));
    world.deliver(&closed("club_1", 30)).await;
    let told = world.column("SELECT type || ' ' || clerk_id AS line FROM outbox ORDER BY 1").await;
    assert_eq!(
        told,
        ["club.deleted club_1", "club_pass.deleted pass_1"],
        "undelivered messages are withdrawn"
    );
}

async fn what_is_parked_of_a_kind_goes_with_it(mut world: World) {
    with_kinds(&mut world).await;
    world.enqueue(&[club("club_1", "Chess", 10), pass("pass_1", "club_1", "user_1", 0, 20)]).await;
    let waiting = world.column("SELECT kind || ' ' || clerk_id AS line FROM webhook_queue ORDER BY 1").await;
    assert_eq!(waiting, ["club club_1", "club_pass pass_1"]);
    world.deliver(&closed("club_1", 30)).await;
    let waiting = world.column("SELECT clerk_id FROM webhook_queue").await;
    assert_eq!(waiting, ["pass_1"], "the pass is stale, which only its processing will show");
    assert_eq!(world.drain().await.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>(), [Stale]);
    assert_eq!(world.count("club_passes").await, 0);
}

async fn rows_of_a_kind_are_walked_through_in_pages_and_found_by_their_parents(mut world: World) {
    with_kinds(&mut world).await;
    for n in 0..7 {
        let (club, user) = (format!("club_{}", n % 2), format!("user_{n}"));
        world.deliver(&pass(&format!("pass_{n}"), &club, &user, 0, 20)).await;
    }
    world.deliver(&taken("pass_2", "club_0", "user_2", 30)).await;
    let of_club = Some((CLUB_PASS.field("club_id"), "club_0".to_owned()));
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let filter = RowFilter { with: of_club.clone(), after };
        let page = world.store.rows(&CLUB_PASS, &filter, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        found.extend(page.iter().map(|row| row.object.clerk_id.to_string()));
    }
    assert_eq!(found, ["pass_0", "pass_4", "pass_6"]);
    assert_eq!(world.store.rows(&CLUB_PASS, &RowFilter::default(), 10).await.unwrap().len(), 6);
    let ids = [clerk_id_of(&CLUB_PASS, "pass_2"), clerk_id_of(&CLUB_PASS, "pass_3")];
    let these = world.store.these(&CLUB_PASS, &ids).await.unwrap();
    assert_eq!(these.iter().map(|row| row.object.clerk_id.as_str()).collect::<Vec<_>>(), ["pass_3"]);
    assert!(
        world.store.row(&clerk_id("pass_3")).await.unwrap().is_none(),
        "an id of this form belongs to a user"
    );
}

async fn two_replicas_that_delete_a_parent_and_write_its_children_leave_none(mut world: World) {
    with_kinds(&mut world).await;
    let other = world.open().await;
    for round in 0..40 {
        let club = format!("club_{round}");
        let id = |n: usize| format!("pass_{round}_{n}");
        let children: Vec<_> =
            (0..8).map(|n| world.delivery(&pass(&id(n), &club, &format!("user_{n}"), 0, 20))).collect();
        let deletion = [world.delivery(&closed(&club, 30))];
        let (written, deleted) =
            tokio::join!(world.apply(&*other, &children), world.apply(&*world.store, &deletion));
        assert!(written.into_iter().all(|outcome| matches!(outcome, Ok(Applied | Stale))), "round {round}");
        assert_eq!(deleted, [Ok(Applied)], "round {round}");
        assert_eq!(passes(&world).await, [""; 0], "round {round}");
    }
}

/// Columns with their types, and indexes, of the synced tables whose names begin with this prefix.
async fn tables(world: &World, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entity in entity::ALL.iter().filter(|entity| !entity.has_preferences) {
        let table = format!("{prefix}{}", entity.table);
        let query = match world.keeper {
            Keeper::Postgres => format!(
                "SELECT 'column ' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || is_identity AS line
                 FROM information_schema.columns WHERE table_schema = '{0}' AND table_name = '{table}'
                 UNION ALL SELECT regexp_replace(indexdef, '^.* USING ', '') || (indexdef LIKE '% UNIQUE %')
                 FROM pg_indexes WHERE schemaname = '{0}' AND tablename = '{table}'",
                world.schema()
            ),
            Keeper::Sqlite | Keeper::Mongodb => format!(
                "SELECT 'column ' || name || ' ' || type || ' ' || \"notnull\" || ' ' || pk AS line
                 FROM pragma_table_info('{table}')
                 UNION ALL SELECT substr(sql, instr(sql, '(')) || (sql LIKE '% UNIQUE %')
                 FROM sqlite_schema WHERE tbl_name = '{table}' AND type = 'index' AND sql IS NOT NULL"
            ),
            Keeper::Mariadb | Keeper::Mysql => format!(
                "SELECT 'column ' || column_name || ' ' || column_type || ' ' || is_nullable || ' ' || extra || ' '
                     || coalesce(collation_name, '-') || ' ' || coalesce(generation_expression, '-') AS line
                 FROM information_schema.columns WHERE table_schema = database() AND table_name = '{table}'
                 UNION ALL SELECT CASE WHEN non_unique THEN 'index ' ELSE 'unique ' END
                     || group_concat(column_name ORDER BY seq_in_index)
                 FROM information_schema.statistics WHERE table_schema = database() AND table_name = '{table}'
                 GROUP BY index_name, non_unique"
            ),
        };
        let mut lines = world.column(&query).await;
        lines.sort();
        assert!(lines.len() > 6, "{table}: {lines:?}");
        found.push(format!("{}: {lines:?}", entity.table));
    }
    found
}

async fn migrations_make_what_the_declarations_say(world: World) {
    let migrated = tables(&world, "").await;
    for entity in entity::ALL.iter().filter(|entity| !entity.has_preferences) {
        let sql = ddl::create(entity, world.dialect());
        world.sql(&sql.replace(entity.table, &format!("made_{}", entity.table))).await;
    }
    assert_eq!(
        tables(&world, "made_").await,
        migrated,
        "render the next one: `clerk-sync migrate render KIND`"
    );
}

/// A fake Clerk with one instance, which lists these clubs.
async fn clerk_with(clubs: Arc<Mutex<Vec<Json>>>) -> Url {
    let listed = Arc::clone(&clubs);
    let list = move |asked: Uri| {
        let asked = Url::parse(&format!("http://clerk{asked}")).unwrap();
        let offset = asked.query_pairs().find(|(name, _)| name == "offset").unwrap().1.parse().unwrap();
        let clubs = listed.lock().unwrap();
        let page: Vec<Json> = clubs.iter().skip(offset).cloned().collect();
        ready(axum::Json(json!({ "total_count": clubs.len(), "data": page })))
    };
    let one = move |Path(id): Path<String>| {
        let unknown = || {
            let error = json!({ "errors": [{ "code": "resource_not_found", "message": "not found" }] });
            (StatusCode::NOT_FOUND, axum::Json(error)).into_response()
        };
        let found = clubs.lock().unwrap().iter().find(|club| club["id"] == *id).cloned();
        ready(found.map_or_else(unknown, |club| axum::Json(club).into_response()))
    };
    let instance = || ready(axum::Json(json!({ "object": "instance", "id": "ins_1" })));
    let routes = Router::new()
        .route("/v1/instance", get(instance))
        .route("/v1/clubs", get(list))
        .route("/v1/clubs/{id}", get(one));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(axum_serve(listener, routes));
    url
}

async fn a_kind_that_clerk_lists_is_taken_in_and_compared(mut world: World) {
    with_kinds(&mut world).await;
    let shown = |id: &str, name: &str, at: i64| json!({ "id": id, "object": "club", "name": name, "seats": 12, "created_at": NOW, "updated_at": NOW + at });
    let clubs = Arc::new(Mutex::new(vec![shown("club_1", "Chess", 0), shown("club_2", "Rowing", 0)]));
    let url = clerk_with(Arc::clone(&clubs)).await;
    let now = world.now;
    let clock: Clock = Arc::new(move || now);
    let key = SecretString::from("sk_test_dGhlLWtleS1vZi10aGUtdGVzdHM");
    let mut context = CatchUp {
        store: Arc::clone(&world.store),
        api: Arc::new(Api::new(&url, key, NonZeroU32::new(1000).unwrap(), Arc::clone(&clock)).unwrap()),
        rules: world.rules.clone(),
        clock,
        instance: Instance::default(),
    };
    for written in [2, 0] {
        let tell = watch::channel(Progress::default()).0;
        let done = &mut Done::default();
        let summary = backfill(&context, &Wanted::all(&CLUB), done, false, tell).await.unwrap();
        assert_eq!(summary.counts.applied, written, "the second run finds nothing new");
    }
    let names =
        "SELECT clerk_id || ' ' || name AS line FROM clubs WHERE deleted_at IS NULL ORDER BY clerk_id";
    assert_eq!(world.column(names).await, ["club_1 Chess", "club_2 Rowing"]);
    world.deliver(&pass("pass_2", "club_2", "user_1", 0, 10)).await;

    *clubs.lock().unwrap() = vec![shown("club_1", "Chess and Go", 50), shown("club_3", "Sailing", 50)];
    context.clock = Arc::new(move || now + TimeDelta::hours(1));
    let compare = async |dry_run| {
        let options = Options { dry_run, allow_mass_delete: true, only_mend: false };
        reconcile(&context, &CLUB, options, watch::channel(Compared::default()).0).await.unwrap()
    };
    let before = world.dump().await;
    for dry_run in [true, false] {
        let report = compare(dry_run).await;
        let ids = |kind| report.of(kind).ids.clone();
        assert_eq!(ids(DriftKind::Missing), ["club_3"]);
        assert_eq!(ids(DriftKind::Stale), ["club_1"]);
        assert_eq!(ids(DriftKind::NotAtClerk), ["club_2"]);
        if dry_run {
            assert_eq!(world.dump().await, before, "a dry run changes nothing");
        }
    }
    assert_eq!(world.column(names).await, ["club_1 Chess and Go", "club_3 Sailing"]);
    assert_eq!(passes(&world).await, [""; 0], "its passes were deleted with it");
    assert!(!compare(true).await.has_drift());
}

/// Start a private listener on the store of this world.
async fn private_listener(world: &World) -> Url {
    let (store, now) = (Arc::clone(&world.store), world.now);
    let clock: Clock = Arc::new(move || now);
    let (committer, lanes) = Committer::start(&store, None, &world.rules, Limits::default(), &clock);
    let app = App {
        verifier: Verifier::new(Vec::new(), 300),
        committer,
        probe: Probe::new(Arc::clone(&store), Idle::Quiet),
        api: http::Api::new(Arc::clone(&store), KINDS, Some(TOKEN), None),
        dashboard: Dashboard::new(Some(TOKEN)),
        scrapers: Scrapers::default(),
        bodies: Bodies::new(1_048_576),
        answers: Answers::default(),
        gauges: Arc::new(Gauges::new(Arc::clone(&store), Arc::clone(&clock), Idle::Quiet, &[])),
        resends: Resends::default(),
        addresses: Addresses::default(),
        sinks: Vec::new(),
        selection: world.rules.selection.clone(),
        gate: Arc::new(Gate::new(Pin::Any, store, Arc::clone(&clock))),
        stream: None,
        clock,
        answer_within: http::ANSWER_WITHIN,
        shutdown: CancellationToken::new(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let routes = http::private_routes(Arc::new(app), PrometheusBuilder::new().build_recorder().handle());
    tokio::spawn(async move {
        let limits = ConnectionLimits::default();
        http::serve(listener, routes, limits, CancellationToken::new(), Duration::ZERO).await;
        drop(lanes);
    });
    url
}

async fn programs_read_every_kind(mut world: World) {
    with_kinds(&mut world).await;
    let all = [
        Event::created("user_1"),
        club("club_1", "Chess", 10),
        club("club_2", "Go", 10),
        pass("pass_1", "club_1", "user_1", 0, 20),
        pass("pass_2", "club_1", "user_2", 0, 20),
    ];
    world.deliver_all(&all).await;
    let url = private_listener(&world).await;
    let client = http_client::builder().build().unwrap();
    let ask = async |path: &str| {
        let answer = client.get(url.join(path).unwrap()).bearer_auth(TOKEN).send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_slice::<Json>(&answer.bytes().await.unwrap()).unwrap())
    };
    let (status, page) = ask("/v1/clubs?limit=1").await;
    assert_eq!((status, page["clubs"].as_array().unwrap().len()), (200, 1));
    let (_, rest) = ask(&format!("/v1/clubs?after={}", page["next"].as_str().unwrap())).await;
    assert_eq!((&rest["clubs"][0]["name"], &rest["next"]), (&json!("Go"), &Json::Null));
    let (_, one) = ask("/v1/clubs/club_1").await;
    assert_eq!((&one["seats"], &one["rules"]), (&json!(12), &json!({ "shoes": ["clean"] })));
    let (_, passes) = ask("/v1/clubs/club_1/passes").await;
    let ids: Vec<&Json> = passes["passes"].as_array().unwrap().iter().map(|pass| &pass["clerk_id"]).collect();
    assert_eq!(ids, ["pass_1", "pass_2"]);
    let (_, clubs) = ask("/v1/users/user_1/clubs").await;
    assert_eq!(clubs["clubs"][0]["name"], "Chess");
    assert_eq!(
        clubs["clubs"][0]["pass"]["level"], "gold",
        "each club is listed with the pass that links to it"
    );
    let (_, described) = ask("/v1/openapi.json").await;
    for path in ["/v1/clubs", "/v1/clubs/{clerk_id}", "/v1/clubs/{clerk_id}/passes", "/v1/club_passes"] {
        assert!(described["paths"][path]["get"].is_object(), "{path}");
    }

    world.deliver(&closed("club_1", 30)).await;
    let (status, refused) = ask("/v1/clubs/club_1").await;
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("club_not_found")));
    assert_eq!(ask("/v1/users/user_1/clubs").await.1["clubs"], json!([]));
    assert_eq!(ask("/v1/club_passes").await.1["club_passes"], json!([]));
}
