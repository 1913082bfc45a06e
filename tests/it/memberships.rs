//! Objects that are deleted with their parents, under adverse conditions: applications that keep rows, bodies with missing
//! fields, and replicas that write at the same moment.

use std::time::Duration;

use chrono::TimeDelta;
use clerk_sync::{
    entity::{ORGANIZATION, ORGANIZATION_MEMBERSHIP, USER},
    model::{ClerkId, DeletionPolicy, Entity, FieldSet, Outcome, Selection},
    sync::{self, Clock, Frontier, Pace, erasure, minimize::minimize},
};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::{
    application::{DEFERRED, pointing},
    promises::promises,
    world::{Event, Keeper, NOW, World, clerk_id, plain, run},
};

use Outcome::{Applied, Parked, Stale};

promises! {
    nothing_but_a_users_address_is_an_address,
    what_a_membership_says_of_somebody_goes_also_if_its_row_has_to_stay,
    whoever_joins_again_takes_the_place_of_a_row_that_has_to_stay,
    a_constraint_that_speaks_at_the_commit_leaves_nothing_alive,
    a_membership_that_nobody_wrote_down_makes_room_as_well,
    a_body_about_a_membership_of_somebody_erased_is_not_kept,
    a_membership_that_moves_counts_where_it_is,
    what_is_out_of_date_takes_nobodys_place,
    many_deletions_at_once_with_more_than_one_transaction_takes_leave_nothing,
    two_replicas_that_join_the_same_pair_leave_the_later_one,
    two_replicas_that_delete_parents_and_write_their_children_agree,
    a_deletion_that_is_held_back_takes_memberships_when_its_time_is_over,
    objects_of_the_same_id_have_nothing_to_do_with_each_other,
    a_membership_never_loses_where_it_belongs,
    what_is_no_longer_synced_of_an_organization_is_no_longer_kept,
    a_deletion_that_was_given_up_while_the_server_was_at_it_is_done_all_the_same,
    who_joins_again_need_not_say_since_when,
}

fn with_organizations(world: &mut World) {
    let kinds: [&'static Entity; 3] = [&USER, &ORGANIZATION, &ORGANIZATION_MEMBERSHIP];
    world.rules.selection =
        kinds.into_iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
}

fn organization(id: &str, name: &str, at: i64) -> Event {
    let data = json!({ "id": id, "object": "organization", "name": name, "created_at": NOW, "updated_at": NOW + at });
    Event::about("organization.updated", data, NOW + at)
}

fn closed(id: &str, at: i64) -> Event {
    Event::about(
        "organization.deleted",
        json!({ "id": id, "object": "organization", "deleted": true }),
        NOW + at,
    )
}

/// An event about a membership that began at `since`, with the state at `at`.
fn member(id: &str, organization: &str, user: &str, since: i64, at: i64) -> Event {
    let data = json!({
        "id": id, "object": "organization_membership", "role": "org:member", "permissions": ["read"],
        "organization": { "id": organization, "name": "as it was", "created_by": "user_founder" },
        "public_user_data": { "user_id": user, "identifier": "ada@example.com", "first_name": "Ada" },
        "public_metadata": { "desk": "Ada's" }, "private_metadata": { "note": "likes engines" },
        "created_at": NOW + since, "updated_at": NOW + at,
    });
    Event::about("organizationMembership.updated", data, NOW + at)
}

fn left(id: &str, at: i64) -> Event {
    let data = json!({ "id": id, "object": "organization_membership", "deleted": true });
    Event::about("organizationMembership.deleted", data, NOW + at)
}

fn gone(user: &str, at: i64) -> Event {
    Event::about("user.deleted", json!({ "id": user, "object": "user", "deleted": true }), NOW + at)
}

/// The live memberships: id, organization and user.
async fn members(world: &World) -> Vec<String> {
    world
        .column(
            "SELECT clerk_id || ' ' || coalesce(organization_id, '-') || ' ' || coalesce(user_id, '-') AS line
             FROM organization_memberships WHERE deleted_at IS NULL ORDER BY clerk_id",
        )
        .await
}

async fn tombstones(world: &World) -> Vec<String> {
    world.column("SELECT clerk_id FROM entity_versions WHERE deleted ORDER BY clerk_id").await
}

/// Create seats that reference memberships, with this clause on the foreign key.
async fn seats(world: &World, clause: &str) {
    pointing(world, "seats", "clerk_id", "organization_memberships", clause).await;
}

async fn nothing_but_a_users_address_is_an_address(mut world: World) {
    with_organizations(&mut world);
    world.unique_email(true).await;
    let user = |at| Event::updated("user_1", at).email("ada@example.com");
    world
        .deliver_all(&[
            user(0),
            organization("org_1", "Acme", 10),
            organization("org_2", "Acme", 10),
            organization("org_3", "ada@example.com", 10),
            member("orgmem_1", "org_1", "user_1", 0, 10),
            member("orgmem_2", "org_1", "user_2", 0, 10),
        ])
        .await;
    // All of them again in one batch; no event may affect another object.
    let batch = [
        organization("org_1", "Acme", 20),
        organization("org_2", "Acme", 20).set("slug", "acme"),
        organization("org_3", "ada@example.com", 20).set("slug", "ada"),
        member("orgmem_1", "org_1", "user_1", 0, 20),
        member("orgmem_2", "org_1", "user_2", 0, 20),
        user(20).set("first_name", "Countess"),
        organization("org_3", "ada@example.com", 30).set("slug", "ada-2").without("name"),
    ];
    world.deliver_all(&batch).await;
    let names = world.column("SELECT coalesce(name, '-') AS name FROM organizations ORDER BY clerk_id").await;
    assert_eq!(names, ["Acme", "Acme", "ada@example.com"]);
    assert_eq!(members(&world).await, ["orgmem_1 org_1 user_1", "orgmem_2 org_1 user_2"]);
    assert_eq!(world.value("SELECT coalesce(email, '-') AS email FROM users").await, "ada@example.com");
    assert_eq!(world.count("audit_log WHERE action = 'USER_UPDATED'").await, 1);
}

async fn what_a_membership_says_of_somebody_goes_also_if_its_row_has_to_stay(mut world: World) {
    with_organizations(&mut world);
    for clause in ["", DEFERRED] {
        seats(&world, clause).await;
        for (number, policy) in
            [DeletionPolicy::Auto, DeletionPolicy::Delete, DeletionPolicy::Anonymize].into_iter().enumerate()
        {
            world.empty().await;
            world.rules.deletion = policy;
            let all = [
                Event::created("user_1"),
                organization("org_1", "Acme", 10),
                organization("org_2", "Ajax", 10),
                member("orgmem_1", "org_1", "user_1", 0, 20),
                member("orgmem_2", "org_2", "user_1", 0, 20),
                member("orgmem_3", "org_2", "user_2", 0, 20),
            ];
            world.deliver_all(&all).await;
            world.sql("INSERT INTO seats (id, clerk_id) VALUES (1, 'orgmem_1'), (2, 'orgmem_2'), (3, 'orgmem_3')").await;
            // The application marks rows as deleted too.
            world
                .sql("UPDATE organization_memberships SET deleted_at = synced_at WHERE clerk_id = 'orgmem_2'")
                .await;
            let what = format!("{clause:?} {number}");
            assert_eq!(world.deliver(&gone("user_1", 30)).await, Applied, "{what}");
            assert_eq!(members(&world).await, ["orgmem_3 org_2 user_2"], "{what}");
            let left = world
                .column(
                    "SELECT clerk_id FROM organization_memberships WHERE deleted_at IS NOT NULL
                     AND (private_metadata IS NOT NULL OR public_metadata IS NOT NULL)",
                )
                .await;
            assert_eq!(left, [""; 0], "{what}");
            assert_eq!(tombstones(&world).await, ["orgmem_1", "orgmem_2", "user_1"], "{what}");
            assert_eq!(world.count("webhook_queue").await, 0, "{what}");
            assert_eq!(world.count("erasure_receipts WHERE completed_at IS NULL").await, 0, "{what}");
            assert_eq!(world.deliver(&closed("org_2", 30)).await, Applied, "{what}");
            assert_eq!(members(&world).await, [""; 0], "{what}");
            assert_eq!(world.deliver(&member("orgmem_1", "org_1", "user_1", 0, 90)).await, Stale, "{what}");
            assert_eq!(world.deliver(&left_again("orgmem_1")).await, Stale, "{what}");
            world.sql("DELETE FROM seats").await;
        }
        world.sql("DROP TABLE seats").await;
    }
}

fn left_again(id: &str) -> Event {
    left(id, 99)
}

async fn whoever_joins_again_takes_the_place_of_a_row_that_has_to_stay(mut world: World) {
    with_organizations(&mut world);
    for clause in ["", DEFERRED] {
        world.empty().await;
        seats(&world, clause).await;
        world.deliver(&member("orgmem_1", "org_1", "user_1", 10, 20)).await;
        world.sql("INSERT INTO seats (id, clerk_id) VALUES (1, 'orgmem_1')").await;
        assert_eq!(
            world.deliver(&member("orgmem_2", "org_1", "user_1", 40, 40)).await,
            Applied,
            "{clause:?}"
        );
        assert_eq!(members(&world).await, ["orgmem_2 org_1 user_1"], "{clause:?}");
        assert_eq!(world.deliver(&left("orgmem_1", 30)).await, Stale, "{clause:?}");
        let kept = world.rows("SELECT clerk_id, private_metadata, public_metadata FROM organization_memberships WHERE deleted_at IS NOT NULL").await;
        assert_eq!(kept.len(), 1, "{clause:?}");
        assert_eq!(
            (&kept[0]["private_metadata"], &kept[0]["public_metadata"]),
            (&Json::Null, &Json::Null),
            "{clause:?}"
        );
        let lines =
            world.column("SELECT action FROM audit_log WHERE clerk_id = 'orgmem_1' ORDER BY id").await;
        assert_eq!(
            lines,
            ["ORGANIZATION_MEMBERSHIP_CREATED", "ORGANIZATION_MEMBERSHIP_DELETED"],
            "{clause:?}"
        );
        world.sql("DROP TABLE seats").await;
    }
}

async fn a_constraint_that_speaks_at_the_commit_leaves_nothing_alive(mut world: World) {
    with_organizations(&mut world);
    pointing(&world, "invoices", "org", "organizations", DEFERRED).await;
    for policy in [DeletionPolicy::Auto, DeletionPolicy::Delete, DeletionPolicy::Anonymize] {
        world.empty().await;
        world.rules.deletion = policy;
        world
            .deliver_all(&[organization("org_1", "Acme", 10), member("orgmem_1", "org_1", "user_1", 0, 20)])
            .await;
        world.sql("INSERT INTO invoices (id, org) VALUES (1, 'org_1')").await;
        assert_eq!(world.deliver(&closed("org_1", 30)).await, Applied);
        assert_eq!(members(&world).await, [""; 0]);
        assert_eq!(world.count("organizations WHERE deleted_at IS NULL").await, 0);
        assert_eq!(tombstones(&world).await, ["org_1", "orgmem_1"]);
        assert_eq!(world.count("webhook_queue").await, 0, "an organization's marked row counts as deleted");
        // The same through the queue.
        world
            .enqueue(&[organization("org_2", "Ajax", 10), member("orgmem_2", "org_2", "user_1", 0, 20)])
            .await;
        world.drain().await;
        world.sql("INSERT INTO invoices (id, org) VALUES (2, 'org_2')").await;
        world.enqueue(&[closed("org_2", 30)]).await;
        let outcomes: Vec<Outcome> = world.drain().await.into_iter().map(|(_, outcome)| outcome).collect();
        assert_eq!(outcomes, [Applied]);
        assert_eq!(members(&world).await, [""; 0]);
        world.sql("DELETE FROM invoices").await;
    }
}

async fn a_membership_that_nobody_wrote_down_makes_room_as_well(mut world: World) {
    with_organizations(&mut world);
    // A row without a version register, inserted by the application or by a restore.
    world
        .sql(
            "INSERT INTO organization_memberships (clerk_id, organization_id, user_id) VALUES ('orgmem_1', 'org_1', 'user_1')",
        )
        .await;
    assert_eq!(world.deliver(&member("orgmem_2", "org_1", "user_1", 40, 40)).await, Applied);
    assert_eq!(members(&world).await, ["orgmem_2 org_1 user_1"]);
    assert_eq!(tombstones(&world).await, ["orgmem_1"]);
}

async fn refuse_guests(world: &World) {
    if world.keeper == Keeper::Mongodb {
        let no_guest = ::mongodb::bson::doc! { "role": { "$ne": "org:guest" } };
        return world.mirror().validate("organization_memberships", no_guest).await;
    }
    let no_guests =
        "ALTER TABLE organization_memberships ADD CONSTRAINT no_guests CHECK (role <> 'org:guest')";
    world
        .sql_of(
            no_guests,
            "CREATE TRIGGER no_guests BEFORE INSERT ON organization_memberships WHEN new.role = 'org:guest'
             BEGIN SELECT RAISE(ABORT, 'no guests'); END",
            no_guests,
        )
        .await;
}

async fn a_body_about_a_membership_of_somebody_erased_is_not_kept(mut world: World) {
    with_organizations(&mut world);
    refuse_guests(&world).await;
    let guest = |id: &str, user: &str| member(id, "org_1", user, 0, 20).set("role", "org:guest");
    world.deliver_all(&[Event::created("user_1"), Event::created("user_founder")]).await;
    assert_eq!(world.deliver(&guest("orgmem_1", "user_1")).await, Parked);
    assert_eq!(world.deliver(&guest("orgmem_2", "user_2")).await, Parked);
    assert_eq!(world.deliver(&guest("orgmem_4", "user_1")).await, Parked);
    world
        .sql("UPDATE webhook_queue SET state = 'dead', next_attempt_at = NULL WHERE clerk_id = 'orgmem_4'")
        .await;
    assert_eq!(world.deliver(&gone("user_1", 30)).await, Applied);
    let kept = "SELECT clerk_id FROM webhook_queue ORDER BY clerk_id";
    assert_eq!(
        world.column(kept).await,
        ["orgmem_1", "orgmem_2"],
        "the dead letter of the erased user is gone"
    );
    world.pass(TimeDelta::hours(2));
    world.drain().await;
    assert_eq!(world.column(kept).await, ["orgmem_2"], "the retried delivery is stale");
    // A later delivery is not kept either.
    assert_eq!(world.deliver(&guest("orgmem_3", "user_1")).await, Stale);
    assert_eq!(world.column(kept).await, ["orgmem_2"]);
    // The founder of the organization is not the member.
    assert_eq!(world.deliver(&gone("user_founder", 30)).await, Applied);
    assert_eq!(world.column(kept).await, ["orgmem_2"]);
    assert_eq!(world.deliver(&guest("orgmem_5", "user_2")).await, Parked);
}

async fn a_membership_that_moves_counts_where_it_is(mut world: World) {
    with_organizations(&mut world);
    let events = [
        member("orgmem_1", "org_1", "user_1", 0, 10),
        member("orgmem_1", "org_1", "user_2", 0, 20),
        member("orgmem_2", "org_1", "user_1", 5, 30),
        gone("user_1", 40),
    ];
    for size in 1..=events.len() {
        world.empty().await;
        for batch in events.chunks(size) {
            world.deliver_all(batch).await;
        }
        assert_eq!(members(&world).await, ["orgmem_1 org_1 user_2"], "in batches of {size}");
        assert_eq!(tombstones(&world).await, ["orgmem_2", "user_1"], "in batches of {size}");
    }
}

async fn what_is_out_of_date_takes_nobodys_place(mut world: World) {
    with_organizations(&mut world);
    let events = [
        member("orgmem_2", "org_1", "user_2", 5, 20),
        member("orgmem_1", "org_1", "user_1", 0, 10),
        // An old event that was delayed on its way.
        member("orgmem_2", "org_1", "user_1", 5, 10),
    ];
    for size in 1..=events.len() {
        world.empty().await;
        for batch in events.chunks(size) {
            world.deliver_all(batch).await;
        }
        let both = ["orgmem_1 org_1 user_1", "orgmem_2 org_1 user_2"];
        assert_eq!(members(&world).await, both, "in batches of {size}");
    }
}

async fn many_deletions_at_once_with_more_than_one_transaction_takes_leave_nothing(mut world: World) {
    with_organizations(&mut world);
    // Organization 1 has 1,500 members. The first 500 are also in another organization, with 500 users who are not in the first.
    let numbers = "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 1499)";
    let rows = |organization: &str| {
        format!(
            "{numbers} INSERT INTO organization_memberships (clerk_id, organization_id, user_id)
             SELECT 'orgmem_{organization}_' || n, '{organization}', 'user_' || n FROM n"
        )
    };
    let rows = |organization: &str| match world.keeper {
        Keeper::Postgres => rows(organization),
        Keeper::Sqlite | Keeper::Mongodb => rows(organization).replacen(
            &format!("{numbers} INSERT INTO organization_memberships (clerk_id, organization_id, user_id)"),
            &format!("INSERT INTO organization_memberships (clerk_id, organization_id, user_id) {numbers}"),
            1,
        ),
        // A recursion ends at 1,000 rows there.
        Keeper::Mariadb | Keeper::Mysql => format!(
            "INSERT INTO organization_memberships (clerk_id, organization_id, user_id)
             SELECT 'orgmem_{organization}_' || n, '{organization}', 'user_' || n FROM (
                 SELECT i - 1 AS n
                 FROM JSON_TABLE('[' || repeat('0,', 1499) || '0]', '$[*]' COLUMNS (i FOR ORDINALITY)) AS j
             ) AS n"
        ),
    };
    world.sql(&rows("org_1")).await;
    world.sql(&rows("org_2")).await;
    let mut events = vec![closed("org_1", 30)];
    events.extend((0..500).map(|n| gone(&format!("user_{n}"), 30)));
    world.deliver_all(&events).await;
    world.drain().await;
    assert_eq!(world.count("organization_memberships WHERE organization_id = 'org_1'").await, 0);
    assert_eq!(world.count("organization_memberships").await, 1000);
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn two_replicas_that_join_the_same_pair_leave_the_later_one(mut world: World) {
    with_organizations(&mut world);
    let other = world.open().await;
    for round in 0..30 {
        let organization = format!("org_{}", round / 3);
        let user = format!("user_{round}");
        let id = |n: usize| format!("orgmem_{round}_{n}");
        let first = [world.delivery(&member(&id(9), &organization, &user, 10, 20))];
        let second = [
            world.delivery(&member(&id(1), &organization, &user, 40, 40)),
            world.delivery(&left(&id(9), 30)),
        ];
        let (one, two) = tokio::join!(world.apply(&*other, &first), world.apply(&*world.store, &second));
        assert!(
            one.iter().chain(&two).all(|outcome| matches!(outcome, Ok(Applied | Stale))),
            "{round} {one:?} {two:?}"
        );
        let here = world
            .column(&format!("SELECT clerk_id FROM organization_memberships WHERE user_id = '{user}'"))
            .await;
        assert_eq!(here, [id(1)], "round {round}");
    }
}

async fn two_replicas_that_delete_parents_and_write_their_children_agree(mut world: World) {
    with_organizations(&mut world);
    let other = world.open().await;
    for round in 0..30 {
        let organization_id = format!("org_{round}");
        let (user, friend) = (format!("user_{round}_a"), format!("user_{round}_b"));
        let id = |n: usize| format!("orgmem_{round}_{n}");
        if round % 2 == 0 {
            world
                .deliver_all(&[
                    organization(&organization_id, "Acme", 0),
                    member(&id(0), &organization_id, &user, 0, 0),
                ])
                .await;
        }
        let first = [
            member(&id(1), &organization_id, &friend, 0, 10),
            member(&id(2), &organization_id, &user, 5, 10),
            gone(&friend, 50),
        ];
        let second = [
            member(&id(3), &organization_id, &user, 9, 10),
            gone(&user, 50),
            closed(&organization_id, 50),
            member(&id(4), &organization_id, &friend, 9, 10),
        ];
        let first: Vec<_> = first.iter().map(|event| world.delivery(event)).collect();
        let second: Vec<_> = second.iter().map(|event| world.delivery(event)).collect();
        let (one, two) = tokio::join!(world.apply(&*other, &first), world.apply(&*world.store, &second));
        assert!(
            one.iter().chain(&two).all(|outcome| matches!(outcome, Ok(Applied | Stale))),
            "{round} {one:?} {two:?}"
        );
        assert_eq!(members(&world).await, [""; 0], "round {round}");
    }
}

async fn a_deletion_that_is_held_back_takes_memberships_when_its_time_is_over(mut world: World) {
    with_organizations(&mut world);
    world.rules.grace = TimeDelta::days(7);
    let all = [
        Event::created("user_1"),
        Event::created("user_2"),
        organization("org_1", "Acme", 10),
        member("orgmem_1", "org_1", "user_1", 0, 20),
        member("orgmem_2", "org_1", "user_2", 0, 20),
    ];
    world.deliver_all(&all).await;
    assert_eq!(world.deliver_all(&[gone("user_1", 30), gone("user_2", 30)]).await, [Applied, Applied]);
    assert_eq!(tombstones(&world).await, [""; 0]);
    // During the grace period, Clerk's deletion of a membership is applied at once.
    assert_eq!(world.deliver(&left("orgmem_2", 31)).await, Applied);
    let now = world.now;
    let clock: Clock = std::sync::Arc::new(move || now);
    let kept = erasure::cancel(&*world.store, &clerk_id("user_2"), &world.rules, &clock).await;
    assert_eq!(kept, Ok(erasure::Fate::Kept));
    world.pass(TimeDelta::days(8));
    let now = world.now;
    let clock: Clock = std::sync::Arc::new(move || now);
    assert_eq!(erasure::release_due(&*world.store, &world.rules, &clock).await, Ok(1));
    assert_eq!(members(&world).await, [""; 0]);
    assert_eq!(tombstones(&world).await, ["orgmem_1", "orgmem_2", "user_1"]);
    assert!(world.user("user_2").await.unwrap().deleted_at.is_none());
    // The same for an erasure by hand.
    world.rules.grace = TimeDelta::zero();
    world.deliver(&member("orgmem_3", "org_1", "user_2", 0, 40)).await;
    let fate = erasure::erase(&*world.store, &clerk_id("user_2"), &world.rules, &clock).await;
    assert_eq!(fate, Ok(erasure::Fate::Erased));
    assert_eq!(members(&world).await, [""; 0]);
    assert_eq!(world.count("organization_memberships").await, 0);
}

async fn objects_of_the_same_id_have_nothing_to_do_with_each_other(mut world: World) {
    with_organizations(&mut world);
    let same = "thing_1";
    world.deliver(&organization(same, "Acme", 10)).await;
    world.deliver(&member("orgmem_1", same, "user_2", 0, 20)).await;
    assert_eq!(world.deliver(&Event::created(same)).await, Applied);
    world.enqueue(&[organization(same, "Ajax", 20)]).await;
    let actors = world.count("audit_actors").await;
    assert_eq!(world.deliver(&gone(same, 30)).await, Applied);
    assert_eq!(members(&world).await, ["orgmem_1 thing_1 user_2"]);
    assert_eq!(world.count("audit_actors").await, actors - 1, "only the user's actors are deleted");
    assert_eq!(world.drain().await.len(), 1, "the organization's delivery stays in the queue");
    assert_eq!(world.value("SELECT name FROM organizations").await, "Ajax");
    let known = world.store.row(&ClerkId::new(&ORGANIZATION, same).unwrap()).await.unwrap();
    assert!(known.is_some());
    let kinds = world.rows("SELECT kind FROM entity_versions WHERE deleted").await;
    assert_eq!(kinds.iter().map(|row| plain(&row["kind"])).collect::<Vec<_>>(), ["user"]);
}

async fn a_membership_never_loses_where_it_belongs(mut world: World) {
    with_organizations(&mut world);
    world.deliver(&member("orgmem_1", "org_1", "user_1", 0, 10)).await;
    let of_none = |id: &str| member(id, "org_1", "user_1", 0, 20).set("organization", Json::Null);
    let user = json!({ "user_id": null, "first_name": "Ada" });
    // Neither an existing nor a new membership: no cascade and no erasure would find it.
    for nowhere in [
        of_none("orgmem_1"),
        of_none("orgmem_2"),
        of_none("orgmem_3").set("organization", json!({ "id": "" })),
        member("orgmem_4", "org_1", "user_1", 0, 20).set("public_user_data", Json::Null),
        member("orgmem_5", "org_1", "user_1", 0, 20).set("public_user_data", user),
        member("orgmem_6", "org_1", "user_1", 0, 20).without("public_user_data"),
    ] {
        assert_eq!(world.deliver(&nowhere).await, Parked);
    }
    assert_eq!(members(&world).await, ["orgmem_1 org_1 user_1"]);
    let reasons =
        world.column("SELECT DISTINCT last_error FROM webhook_queue WHERE state = 'dead' ORDER BY 1").await;
    let reason = |place| format!("`{place}` is not a string of 1 to 255 bytes");
    assert_eq!(reasons, [reason("organization.id"), reason("public_user_data.user_id")]);
    world.deliver(&closed("org_1", 30)).await;
    assert_eq!(tombstones(&world).await, ["org_1", "orgmem_1"]);
    // A deletion needs only the id of the membership.
    assert_eq!(world.deliver(&left("orgmem_2", 40)).await, Applied);
}

async fn who_joins_again_need_not_say_since_when(mut world: World) {
    with_organizations(&mut world);
    for timeless in [[true, false], [false, true], [true, true]] {
        let joined = |id, at, timeless| {
            let event = member(id, "org_1", "user_1", at, at);
            if timeless { event.without("created_at") } else { event }
        };
        let (first, again) = (joined("orgmem_1", 10, timeless[0]), joined("orgmem_2", 20, timeless[1]));
        for events in [[first.clone(), again.clone()], [again, first]] {
            world.empty().await;
            for event in &events {
                world.deliver(event).await;
            }
            assert_eq!(members(&world).await, ["orgmem_2 org_1 user_1"], "{timeless:?}");
        }
    }
}

async fn what_is_no_longer_synced_of_an_organization_is_no_longer_kept(mut world: World) {
    with_organizations(&mut world);
    let private = json!({ "note": "pays late" });
    world
        .deliver(&organization("org_1", "Acme", 10).set("slug", "acme").set("private_metadata", private))
        .await;
    world.deliver(&member("orgmem_1", "org_1", "user_1", 0, 10)).await;
    let before = world.dump().await;
    let keep = |entity: &'static Entity, names: &[&str]| {
        let fields: FieldSet = names.iter().map(|name| entity.field(name)).collect();
        Selection::of(entity, fields).fields(entity)
    };
    let only_name = keep(&ORGANIZATION, &["name"]);
    let counted = minimize(&*world.store, &ORGANIZATION, only_name, true).await.unwrap();
    assert_eq!(world.dump().await, before, "a dry run changes nothing");
    let of = |name| counted.columns.iter().find(|(column, _)| *column == name).map(|(_, count)| *count);
    assert_eq!((counted.rows, of("slug"), of("private_metadata"), of("name")), (1, Some(1), Some(1), None));
    assert_eq!(minimize(&*world.store, &ORGANIZATION, only_name, false).await.unwrap(), counted);
    let left = "SELECT name FROM organizations WHERE slug IS NULL AND private_metadata IS NULL";
    assert_eq!(world.value(left).await, "Acme");

    let only_where = keep(&ORGANIZATION_MEMBERSHIP, &[]);
    let counted = minimize(&*world.store, &ORGANIZATION_MEMBERSHIP, only_where, false).await.unwrap();
    assert_eq!(counted.rows, 1);
    assert_eq!(members(&world).await, ["orgmem_1 org_1 user_1"]);
    let left = "organization_memberships WHERE role IS NULL AND private_metadata IS NULL";
    assert_eq!(world.count(left).await, 1);
}

/// A slow trigger stands in for an organization with very many members, whose deletion takes this long.
async fn a_deletion_that_was_given_up_while_the_server_was_at_it_is_done_all_the_same(mut world: World) {
    with_organizations(&mut world);
    let member = member("orgmem_1", "org_1", "user_1", 0, 0);
    world.deliver_all(&[organization("org_1", "Acme", 0), member]).await;
    if world.keeper == Keeper::Postgres {
        world
            .sql(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$;
                 CREATE TRIGGER slow BEFORE DELETE ON organization_memberships EXECUTE FUNCTION slow()",
            )
            .await;
    }
    assert_eq!(world.enqueue(&[closed("org_1", 10)]).await, [Outcome::Queued]);
    // The first attempt gets half of this time: the client gives up after 1 s, and the server ends the statement after 3 s.
    let deadline = Instant::now() + Duration::from_secs(2);
    let pace = Pace::new(sync::drain::BATCH);
    let drained =
        sync::drain(&*world.store, &world.rules, world.now, deadline, &pace, &Frontier::default()).await;
    assert_eq!(drained.trouble, None);
    let outcomes: Vec<Outcome> = drained.deliveries.iter().map(|worked| worked.outcome).collect();
    assert_eq!(outcomes, [Applied]);
    for table in ["organizations", "organization_memberships", "webhook_queue"] {
        assert_eq!(world.count(table).await, 0, "{table}");
    }
}
