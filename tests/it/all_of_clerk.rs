//! Every kind of object for which Clerk sends events, with every field selected.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use clerk_sync::{
    clerk::{event, sample},
    entity,
    model::{Delivery, Entity, Field, FieldSet, Holds, Outcome, Place, Selection, Source},
};
use serde_json::{Value as Json, json};

use crate::{
    convergence::permutations,
    promises::promises,
    world::{Event, Keeper, NOW, World, run},
};

use Outcome::{Applied, Stale, Unchanged};

promises! {
    every_event_is_applied_and_nothing_is_parked,
    an_older_event_changes_nothing,
    no_ticket_is_kept,
    an_erasure_takes_along_what_stands_under_the_address,
    what_somebody_pays_goes_with_them_and_with_nobody_else,
    what_stands_inside_of_an_object_reaches_its_own_table,
    what_stands_inside_of_an_object_and_is_the_same_is_not_written_again,
    the_parts_of_a_user_are_those_that_are_shown,
    the_parts_of_a_user_are_the_newest_in_every_order,
    parts_that_events_repeat_are_the_newest_in_every_order,
    parts_that_an_event_repeats_are_not_read,
    an_item_comes_back_to_life,
    an_invitation_that_has_run_out_is_no_current_one,
    what_came_is_kept_whole_where_that_is_asked_for,
    members_and_what_they_may_do_are_one_query_away,
    every_three_events_of_a_kind_end_in_every_order_as_a_model_says,
}

fn with_everything(world: &mut World) {
    world.rules.selection =
        entity::ALL.iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
}

/// An event whose object was changed this many milliseconds after `NOW`.
fn about(event_type: &str, mut data: Json, after: i64) -> Event {
    data["created_at"] = NOW.into();
    data["updated_at"] = (NOW + after).into();
    Event::about(event_type, data, NOW + after)
}

async fn every_event_is_applied_and_nothing_is_parked(mut world: World) {
    with_everything(&mut world);
    for event_type in sample::types() {
        let Some(kind) = entity::of_event(event_type) else { continue };
        // Each type gets its own object, because a deleted object stays deleted.
        let user = format!("user_{}", event_type.replace('.', "_"));
        let at = world.now - TimeDelta::seconds(1);
        let event = Event::raw(sample::body(event_type, &user, at).unwrap());
        assert_eq!(world.deliver(&event).await, Applied, "{event_type}");
        if event_type != kind.deletion() {
            let rows = world.count(&format!("{} WHERE deleted_at IS NULL", kind.table)).await;
            assert!(rows > 0, "{event_type}");
        }
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn an_older_event_changes_nothing(mut world: World) {
    with_everything(&mut world);
    let role = |name: &str, after| {
        about(
            "role.updated",
            json!({ "id": "role_1", "name": name, "key": "org:a", "permissions": [] }),
            after,
        )
    };
    assert_eq!(world.deliver(&role("Billing", 20)).await, Applied);
    assert_eq!(world.deliver(&role("Old", 10)).await, Stale);
    assert_eq!(world.deliver(&role("Billing", 30)).await, Unchanged);
    let query = "SELECT name FROM roles";
    assert_eq!(world.column(query).await, ["Billing"]);
}

async fn no_ticket_is_kept(mut world: World) {
    with_everything(&mut world);
    let invitation = json!({
        "id": "orginv_1", "organization_id": "org_1", "email_address": "ada@example.com", "status": "pending",
        "url": "https://accounts.example.com/?ticket=TICKET1",
        "public_inviter_data": { "user_id": "user_2", "first_name": "TICKET2" },
    });
    let entry = json!({ "id": "wait_1", "email_address": "ada@example.com", "status": "invited",
        "invitation": { "id": "inv_1", "url": "https://accounts.example.com/?ticket=TICKET3" } });
    let session = json!({ "id": "sess_1", "user_id": "user_1", "status": "active", "user": { "id": "user_1", "first_name": "TICKET4" } });
    let email =
        json!({ "id": "ema_1", "to_email_address": "ada@example.com", "data": { "otp_code": "TICKET5" } });
    let events = [
        about("organizationInvitation.created", invitation, 10),
        about("waitlistEntry.updated", entry, 10),
        about("session.created", session, 10),
        about("email.created", email, 10),
    ];
    // Neither the queue nor the tables may contain a ticket.
    world.enqueue(&events).await;
    let holds_tickets = async || world.dump().await.iter().any(|line| line.contains("TICKET"));
    assert_eq!(world.count("webhook_queue").await, 3);
    assert!(!holds_tickets().await);
    world.drain().await;
    assert_eq!(world.count("webhook_queue").await, 0);
    assert_eq!(world.column("SELECT invitation_id FROM waitlist_entries").await, ["inv_1"]);
    assert!(!holds_tickets().await);
}

async fn an_erasure_takes_along_what_stands_under_the_address(mut world: World) {
    with_everything(&mut world);
    world.deliver(&Event::created("user_1").email("ada@example.com")).await;
    world.deliver(&Event::created("user_2").email("grace@example.com")).await;
    let invitation = |id: &str, address: &str| json!({ "id": id, "organization_id": "org_1", "email_address": address, "status": "pending" });
    for (id, address) in [("orginv_1", "Ada@Example.com"), ("orginv_2", "grace@example.com")] {
        world.deliver(&about("organizationInvitation.created", invitation(id, address), 10)).await;
    }
    let entry = json!({ "id": "wait_1", "email_address": "ada@example.com", "status": "pending" });
    world.deliver(&about("waitlistEntry.created", entry.clone(), 10)).await;
    // In one batch with an unrelated event.
    let other = about("organizationInvitation.accepted", invitation("orginv_2", "grace@example.com"), 20);
    assert_eq!(world.deliver_all(&[other, Event::deleted("user_1", 100)]).await[1], Applied);
    assert_eq!(world.column("SELECT clerk_id FROM organization_invitations").await, ["orginv_2"]);
    assert_eq!(world.count("waitlist_entries").await, 0);
    let dump = world.dump().await.join("\n").to_lowercase();
    assert!(!dump.contains("ada@example.com"), "{dump}");
    assert_eq!(world.deliver(&about("waitlistEntry.updated", entry, 200)).await, Stale);
}

async fn what_somebody_pays_goes_with_them_and_with_nobody_else(mut world: World) {
    with_everything(&mut world);
    world.deliver(&Event::created("user_1")).await;
    let payer = |user: &str, organization: &str| json!({ "id": "payer_1", "user_id": user, "organization_id": organization, "first_name": "Ada" });
    for (number, payer) in [payer("user_1", ""), payer("", "org_1")].iter().enumerate() {
        let id = |prefix: &str| format!("{prefix}{number}");
        let subscription =
            json!({ "id": id("csub_"), "status": "active", "payer_id": "payer_1", "payer": payer });
        let item = json!({ "id": id("csub_item_"), "status": "active", "payer": payer, "subscription_id": id("csub_"),
            "plan": { "id": "cplan_1", "amount": 900, "currency": "USD" }, "interval": "month" });
        let attempt = json!({ "id": id("attempt_"), "status": "paid", "payer": payer,
            "totals": { "grand_total": { "amount": 1071, "currency": "USD" } } });
        for (event_type, data) in [
            ("subscription.active", subscription),
            ("subscriptionItem.active", item),
            ("paymentAttempt.updated", attempt),
        ] {
            assert_eq!(world.deliver(&about(event_type, data, 10)).await, Applied, "{event_type}");
        }
    }
    assert_eq!(world.column("SELECT amount FROM payment_attempts").await, ["1071", "1071"]);
    world.deliver(&Event::deleted("user_1", 100)).await;
    for table in ["subscriptions", "subscription_items", "payment_attempts"] {
        let left = world.column(&format!("SELECT organization_id FROM {table}")).await;
        assert_eq!(left, ["org_1"], "{table}");
    }
}

async fn what_stands_inside_of_an_object_reaches_its_own_table(mut world: World) {
    with_everything(&mut world);
    let payer = json!({ "id": "payer_1", "user_id": "user_1", "organization_id": null });
    let item = |id: &str, status: &str, after: i64| json!({ "id": id, "status": status, "plan_id": "cplan_1", "created_at": NOW, "updated_at": NOW + after });
    let subscription = |items: Json| json!({ "id": "csub_1", "status": "active", "payer_id": "payer_1", "payer": payer, "items": items });
    let rows = async || {
        world.column("SELECT clerk_id || ' ' || status || ' ' || subscription_id || ' ' || user_id AS line FROM subscription_items ORDER BY clerk_id").await
    };
    let first = subscription(
        json!([item("csub_item_1", "active", 10), item("csub_item_2", "upcoming", 10), { "id": 7 }, null]),
    );
    let first = about("subscription.created", first, 10);
    assert_eq!(world.deliver(&first).await, Applied);
    assert_eq!(rows().await, ["csub_item_1 active csub_1 user_1", "csub_item_2 upcoming csub_1 user_1"]);
    assert_eq!(world.deliver(&first).await, Outcome::Duplicate);
    // A newer event of the item itself wins, so this update of the subscription changes nothing.
    world.deliver(&about("subscriptionItem.ended", item("csub_item_1", "ended", 30), 30)).await;
    let older = subscription(json!([item("csub_item_1", "active", 20)]));
    assert_eq!(world.deliver(&about("subscription.updated", older, 25)).await, Unchanged);
    assert_eq!(rows().await[0], "csub_item_1 ended csub_1 user_1");
    // Only the item is newer.
    let news = subscription(json!([item("csub_item_2", "active", 40)]));
    assert_eq!(world.deliver(&about("subscription.updated", news, 20)).await, Applied);
    assert_eq!(rows().await[1], "csub_item_2 active csub_1 user_1");
    let outcomes =
        "SELECT outcome FROM processed_webhooks WHERE event_type = 'subscription.updated' ORDER BY outcome";
    assert_eq!(world.column(outcomes).await, ["applied", "unchanged"]);
    let role = json!({ "id": "role_1", "key": "org:a", "permissions": [{ "id": "perm_1", "key": "org:a:read", "created_at": NOW, "updated_at": NOW }] });
    world.deliver(&about("role.created", role, 10)).await;
    assert_eq!(world.column("SELECT clerk_id FROM permissions").await, ["perm_1"]);
    assert_eq!(world.deliver(&Event::deleted("user_1", 100)).await, Applied);
    assert_eq!(rows().await, [""; 0]);
}

async fn what_stands_inside_of_an_object_and_is_the_same_is_not_written_again(mut world: World) {
    with_everything(&mut world);
    let address =
        |text: &str, after: i64| json!({ "id": "idn_1", "email_address": text, "updated_at": NOW + after });
    let user = |after: i64, addresses: Json| {
        Event::updated("user_1", after)
            .set("email_addresses", addresses)
            .set("first_name", format!("Ada {after}"))
    };
    let texts = async || world.column("SELECT email_address FROM user_email_addresses").await;
    assert_eq!(world.deliver(&user(10, json!([address("ada@example.com", 5)]))).await, Applied);
    // Mark the row; rewriting it would remove the mark.
    world.sql("UPDATE user_email_addresses SET synced_at = '2000-01-01 00:00:00'").await;
    let is_marked =
        async || world.value("SELECT synced_at FROM user_email_addresses").await.starts_with("2000");
    assert_eq!(world.deliver(&user(30, json!([address("ada@example.com", 5)]))).await, Applied);
    assert!(is_marked().await);
    // A late event is older than the stored state, even if its address has the same version.
    assert_eq!(world.deliver(&user(20, json!([address("old@example.com", 5)]))).await, Stale);
    assert!(is_marked().await);
    // An equal value with a newer version is written.
    assert_eq!(world.deliver(&user(40, json!([address("ada@example.com", 35)]))).await, Applied);
    assert!(!is_marked().await);
    assert_eq!(texts().await, ["ada@example.com"]);
    assert_eq!(world.deliver(&user(50, json!([address("new@example.com", 45)]))).await, Applied);
    assert_eq!(texts().await, ["new@example.com"]);
    assert_eq!(world.deliver(&user(60, json!([]))).await, Applied);
    assert_eq!(texts().await, [""; 0]);
}

async fn the_parts_of_a_user_are_those_that_are_shown(mut world: World) {
    with_everything(&mut world);
    let address = |id: &str, text: &str| json!({ "id": id, "email_address": text, "linked_to": [], "verification": { "status": "verified" } });
    let both = json!([address("idn_1", "ada@example.com"), address("idn_2", "lovelace@example.com")]);
    let user = |id: &str, after: i64, addresses: &Json| {
        Event::updated(id, after)
            .set("email_addresses", addresses.clone())
            .set("primary_email_address_id", "idn_1")
    };
    let rows = async || {
        world.column("SELECT clerk_id || ' ' || email_address || ' ' || user_id AS line FROM user_email_addresses ORDER BY clerk_id").await
    };
    assert_eq!(world.deliver(&user("user_1", 10, &both)).await, Applied);
    assert_eq!(rows().await, ["idn_1 ada@example.com user_1", "idn_2 lovelace@example.com user_1"]);
    let one = json!([address("idn_1", "ada@example.com")]);
    assert_eq!(world.deliver(&user("user_1", 30, &one)).await, Applied, "the user has lost one address");
    assert_eq!(world.deliver(&user("user_1", 20, &both)).await, Stale);
    assert_eq!(rows().await, ["idn_1 ada@example.com user_1"]);
    // An event without addresses changes none.
    world
        .deliver(&Event::updated("user_1", 40).without("email_addresses").set("first_name", "Augusta"))
        .await;
    assert_eq!(rows().await.len(), 1);
    let others = json!([address("idn_3", "grace@example.com")]);
    world.deliver(&user("user_2", 10, &others)).await;
    world.deliver(&Event::deleted("user_1", 100)).await;
    assert_eq!(rows().await, ["idn_3 grace@example.com user_2"]);
    let dump = world.dump().await.join("\n");
    assert!(!dump.contains("ada@example.com") && !dump.contains("lovelace@example.com"), "{dump}");
}

/// Five events about a user, in every order, each order with a user of its own: once event by event, once in one batch.
/// Parts come, change, go, and are absent from one event; they have their own times, or none.
async fn the_parts_of_a_user_are_the_newest_in_every_order(mut world: World) {
    const PARTS: [(&str, &str, &str, &str); 4] = [
        ("email_addresses", "email_address", "idn_e", "user_email_addresses"),
        ("phone_numbers", "phone_number", "idn_p", "user_phone_numbers"),
        ("external_accounts", "username", "eac_", "user_external_accounts"),
        ("web3_wallets", "web3_wallet", "idn_w", "user_web3_wallets"),
    ];
    /// The number and the text of a part, and when it changed.
    type Part = (u8, &'static str, i64);
    // For each event, its time and its parts. `None`: no lists.
    const EVENTS: [(i64, Option<&[Part]>); 5] = [
        (10, Some(&[(1, "first", 5), (2, "second", 5)])),
        (20, Some(&[(1, "first", 5)])),
        (30, Some(&[(1, "changed", 25), (3, "third", 25)])),
        (40, None),
        (50, Some(&[(1, "changed", 25), (4, "fourth", 45)])),
    ];
    with_everything(&mut world);
    let mut lives: Vec<(String, Vec<Event>)> = Vec::new();
    for order in permutations(&[0, 1, 2, 3, 4]) {
        let (number, user) = (lives.len(), format!("user_{:03}", lives.len()));
        let has_times = number % 2 == 0;
        let event = |place: usize| {
            let (time, shown) = EVENTS[place];
            let mut event = Event::updated(&user, time);
            for (member, text, prefix, _) in PARTS {
                event = match shown {
                    Some(parts) => {
                        let part = |(part, says, changed): &Part| {
                            let mut shown = json!({ "id": format!("{prefix}{number}x{part}") });
                            shown[text] = (*says).into();
                            if has_times {
                                shown["updated_at"] = (NOW + changed).into();
                            }
                            shown
                        };
                        event.set(member, parts.iter().map(part).collect::<Json>())
                    }
                    None => event.without(member),
                };
            }
            event
        };
        lives.push((user.clone(), order.into_iter().map(event).collect()));
    }
    let (one_by_one, at_once) = lives.split_at(lives.len() / 2);
    for step in 0..5 {
        let events: Vec<Event> = one_by_one.iter().map(|(_, events)| events[step].clone()).collect();
        world.deliver_all(&events).await;
    }
    let events: Vec<Event> = at_once.iter().flat_map(|(_, events)| events.clone()).collect();
    world.deliver_all(&events).await;
    for (_, text, prefix, table) in PARTS {
        let query = format!(
            "SELECT clerk_id || ' ' || \"{text}\" || ' ' || user_id AS line FROM {table} ORDER BY clerk_id"
        );
        let mut expected: Vec<String> = Vec::new();
        for (number, (user, _)) in lives.iter().enumerate() {
            expected.push(format!("{prefix}{number}x1 changed {user}"));
            expected.push(format!("{prefix}{number}x4 fourth {user}"));
        }
        expected.sort();
        let mut here = world.column(&query).await;
        here.sort();
        let differs = here.iter().zip(&expected).find(|(here, expected)| here != expected);
        assert_eq!((here.len(), differs), (expected.len(), None), "{table}");
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

/// Four events about a user that repeat what they said about a part, in every order: once event by event, once in one batch;
/// the part has a time of its own, or none.
async fn parts_that_events_repeat_are_the_newest_in_every_order(mut world: World) {
    /// For each event, the text of the part.
    const LIVES: [[&str; 4]; 3] =
        [["one", "one", "two", "one"], ["one", "two", "one", "one"], ["one", "two", "two", "two"]];
    with_everything(&mut world);
    let (mut one_by_one, mut at_once, mut expected) = (vec![Vec::new(); 4], Vec::new(), Vec::new());
    for texts in LIVES {
        for order in permutations(&[0, 1, 2, 3]) {
            for (has_time, is_batch) in [(false, false), (false, true), (true, false), (true, true)] {
                let number = expected.len();
                let after = |place: usize| 10 * i64::try_from(place + 1).unwrap();
                let event = |place: &usize| {
                    let mut account = json!({ "id": format!("eac_{number:03}"), "username": texts[*place] });
                    if has_time {
                        let same = (0..=*place).rev().take_while(|other| texts[*other] == texts[*place]);
                        account["updated_at"] = (NOW + after(same.last().unwrap())).into();
                    }
                    Event::updated(&format!("user_{number:03}"), after(*place))
                        .set("external_accounts", json!([account]))
                };
                let events: Vec<Event> = order.iter().map(event).collect();
                if is_batch {
                    at_once.extend(events);
                } else {
                    one_by_one.iter_mut().zip(events).for_each(|(step, event)| step.push(event));
                }
                expected.push(format!("eac_{number:03} {} user_{number:03}", texts[3]));
            }
        }
    }
    for step in one_by_one {
        world.deliver_all(&step).await;
    }
    world.deliver_all(&at_once).await;
    let query = "SELECT clerk_id || ' ' || username || ' ' || user_id AS line FROM user_external_accounts ORDER BY clerk_id";
    let stored = world.column(query).await;
    let differs = stored.iter().zip(&expected).find(|(stored, expected)| stored != expected);
    assert_eq!((stored.len(), differs), (expected.len(), None));
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn parts_that_an_event_repeats_are_not_read(mut world: World) {
    with_everything(&mut world);
    let wallets = |text: &str| json!([{ "id": "idn_1", "web3_wallet": text }]);
    let user = |after: i64, text: &str, name: &str| {
        Event::updated("user_1", after).set("web3_wallets", wallets(text)).set("first_name", name)
    };
    let wallet = async || world.column("SELECT web3_wallet FROM user_web3_wallets").await;
    let digest = async || {
        let query = "SELECT coalesce(parts_digest, '') AS digest FROM entity_versions WHERE kind = 'user'";
        world.value(query).await
    };
    assert_eq!(world.deliver(&user(10, "0xa", "Ada")).await, Applied);
    let first = digest().await;
    assert_eq!(first.len(), 32, "{first}");
    // A row that the application has removed shows that parts were not read.
    world.sql("DELETE FROM user_web3_wallets").await;
    assert_eq!(world.deliver(&user(20, "0xa", "Augusta")).await, Applied);
    assert_eq!(world.text("user_1", entity::user::FIRST_NAME).await.as_deref(), Some("Augusta"));
    assert_eq!((digest().await, wallet().await), (first.clone(), Vec::new()));
    // The Backend API shows what is there now, so all rows are compared.
    let read = world.delivery(&user(30, "0xa", "Augusta"));
    let read = Delivery { svix_id: None, source: Source::Reconcile, ..read };
    for result in world.apply(&*world.store, &[read]).await {
        result.unwrap();
    }
    assert_eq!((digest().await, wallet().await), (first.clone(), vec!["0xa".to_owned()]));
    // In one batch: parts that change, and change back.
    let events = [user(40, "0xb", "Ada"), user(50, "0xa", "Ada")];
    world.deliver_all(&events).await;
    assert_eq!((digest().await, wallet().await), (first.clone(), vec!["0xa".to_owned()]));
    world.deliver(&user(60, "0xc", "Ada")).await;
    assert_ne!(digest().await, first);
    assert_eq!(wallet().await, ["0xc"]);
    world.deliver(&Event::deleted("user_1", 70)).await;
    assert_eq!(digest().await, "", "a digest of personal data goes with them");
}

async fn an_item_comes_back_to_life(mut world: World) {
    with_everything(&mut world);
    let item = |status: &str| json!({ "id": "csub_item_1", "status": status, "plan_id": "cplan_free", "plan_period": "month" });
    for (after, status) in [(10, "active"), (20, "upcoming"), (30, "active"), (40, "of_tomorrow")] {
        let event = about("subscriptionItem.updated", item(status), after);
        assert_eq!(world.deliver(&event).await, Applied);
        assert_eq!(world.column("SELECT status FROM subscription_items").await, [status]);
    }
    let current = "SELECT clerk_id FROM current_subscription_items";
    assert_eq!(world.column(current).await, [""; 0]);
    world.deliver(&about("subscriptionItem.active", item("active"), 50)).await;
    assert_eq!(world.column(current).await, ["csub_item_1"]);
    // The payer keeps a canceled plan until the end of the period.
    for (after, period_end, expected) in
        [(60, json!(NOW * 2), vec!["csub_item_1"]), (70, json!(NOW - 1), vec![]), (80, Json::Null, vec![])]
    {
        let mut canceled = item("canceled");
        canceled["period_end"] = period_end;
        world.deliver(&about("subscriptionItem.canceled", canceled, after)).await;
        assert_eq!(world.column(current).await, expected, "{after}");
    }
}

async fn an_invitation_that_has_run_out_is_no_current_one(mut world: World) {
    with_everything(&mut world);
    for (id, expires_at) in [("orginv_1", json!(NOW - 86_400_000_i64 * 365)), ("orginv_2", Json::Null)] {
        let data = json!({ "id": id, "public_organization_data": { "id": "org_1" }, "status": "pending", "expires_at": expires_at });
        assert_eq!(world.deliver(&about("organizationInvitation.created", data, 10)).await, Applied);
    }
    assert_eq!(world.column("SELECT clerk_id FROM current_organization_invitations").await, ["orginv_2"]);
    assert_eq!(
        world.column("SELECT organization_id FROM organization_invitations").await,
        ["org_1", "org_1"]
    );
}

async fn what_came_is_kept_whole_where_that_is_asked_for(mut world: World) {
    let raw = entity::ROLE.raw().expect("every kind has one");
    world.rules.selection = world.rules.selection.with(&entity::ROLE, [raw].into_iter().collect());
    let of_user = entity::USER.raw().expect("every kind has one");
    world.rules.selection = world.rules.selection.with(&entity::USER, [of_user].into_iter().collect());
    let role =
        json!({ "id": "role_1", "key": "org:a", "new": { "at": ["Clerk", 1.5, 9_007_199_254_740_993_i64] } });
    assert_eq!(world.deliver(&about("role.created", role.clone(), 1)).await, Applied);
    let stored = world.column("SELECT raw FROM roles").await;
    let stored: Json = serde_json::from_str(&stored[0]).unwrap();
    assert_eq!((&stored["new"], &stored["key"]), (&role["new"], &role["key"]));
    assert_eq!(world.column("SELECT coalesce(name, 'none') FROM roles").await, ["none"]);
    let user = json!({ "id": "user_1", "first_name": "Ada", "private_metadata": { "a": "SECRET1" },
        "organization_memberships": [{ "private_metadata": "SECRET2", "role": "org:a" }] });
    assert_eq!(world.deliver(&about("user.created", user, 1)).await, Applied);
    let stored = world.column("SELECT raw FROM users").await.concat();
    assert!(stored.contains("Ada") && stored.contains("org:a") && !stored.contains("SECRET"), "{stored}");
    // Selecting the user's private metadata does not select an organization's.
    let fields = [of_user, entity::USER.named("private_metadata").expect("a field")];
    world.rules.selection = world.rules.selection.with(&entity::USER, fields.into_iter().collect());
    let user = json!({ "id": "user_1", "private_metadata": { "a": "OWN" },
        "organization_memberships": [{ "private_metadata": "SECRET2", "role": "org:a" }] });
    assert_eq!(world.deliver(&about("user.updated", user, 2)).await, Applied);
    let stored = world.column("SELECT raw FROM users").await.concat();
    assert!(stored.contains("OWN") && stored.contains("org:a") && !stored.contains("SECRET"), "{stored}");
    // The raw object is a part of the row, and is deleted with it.
    let deleted = Event::about("user.deleted", json!({ "id": "user_1", "deleted": true }), NOW + 10);
    assert_eq!(world.deliver(&deleted).await, Applied);
    assert_eq!(world.count("users").await, 0);
}

async fn members_and_what_they_may_do_are_one_query_away(mut world: World) {
    with_everything(&mut world);
    for event in [
        about("user.created", json!({ "id": "user_1", "first_name": "Ada", "last_name": "Lovelace" }), 1),
        about("organization.created", json!({ "id": "org_1", "name": "Engines" }), 1),
        about(
            "role.created",
            json!({ "id": "role_1", "key": "org:admin", "name": "Admin", "permissions": [] }),
            1,
        ),
        about(
            "organizationMembership.created",
            json!({ "id": "orgmem_1", "organization": { "id": "org_1" }, "public_user_data": { "user_id": "user_1" },
                "role": "org:admin", "permissions": ["org:pay", "org:invite"] }),
            1,
        ),
        about(
            "subscriptionItem.active",
            json!({ "id": "csub_item_1", "payer": { "user_id": "user_1" }, "plan_id": "cplan_1", "status": "active" }),
            1,
        ),
        about(
            "subscriptionItem.ended",
            json!({ "id": "csub_item_2", "payer": { "user_id": "user_1" }, "status": "ended", "plan": { "amount": 900 }, "ended_at": 1_767_225_600_000_i64 }),
            1,
        ),
    ] {
        assert_eq!(world.deliver(&event).await, Applied);
    }
    let mut members =
        world.rows("SELECT organization_name, first_name, role_name FROM organization_members").await;
    let member = members.pop().expect("a member");
    assert_eq!(
        (&member["organization_name"], &member["first_name"], &member["role_name"]),
        (&"Engines".into(), &"Ada".into(), &"Admin".into())
    );
    assert!(members.is_empty());
    let permissions =
        "SELECT permission FROM organization_member_permissions WHERE user_id = 'user_1' ORDER BY permission";
    assert_eq!(world.column(permissions).await, ["org:invite", "org:pay"]);
    assert_eq!(world.column("SELECT subscription_item_id FROM active_subscriptions").await, ["csub_item_1"]);
    let churn = "SELECT ended FROM churn_by_month WHERE month = '2026-01-01'";
    assert_eq!(world.rows(churn).await[0]["ended"], 1);
}

/// Three events of one object, each newer than the one before, in their order of delivery. One of them is delivered twice.
struct Life {
    kind: &'static Entity,
    id: String,
    events: Vec<Event>,
    says: [&'static str; 3],
    order: [usize; 4],
}

impl Life {
    /// The object with this number, with these event types in this order.
    fn of(kind: &'static Entity, says: [&'static str; 3], order: [usize; 4], number: usize) -> Self {
        // Each object has its own owner, which is never deleted.
        let owner = format!("user_of_{}_{number}", kind.kind);
        let event = |(place, event_type): (usize, &'static str)| {
            let body = sample::body(event_type, &owner, chrono::Utc::now()).expect("a sample");
            let mut data = serde_json::from_str::<Json>(&body).expect("JSON")["data"].take();
            let path = path_of(telling(kind));
            let place_of_text = path.iter().fold(&mut data, |inside, name| &mut inside[*name]);
            *place_of_text = event_type.into();
            about(event_type, data, i64::try_from(place).expect("small"))
        };
        let events: Vec<Event> = says.into_iter().enumerate().map(event).collect();
        let id = owner.replacen("user_", kind.id_prefix, 1);
        Self { kind, id, events, says, order }
    }

    fn is_deletion(&self, place: usize) -> bool {
        self.says[place] == self.kind.deletion()
    }

    /// The outcome that a model expects for the delivery with this number.
    fn outcome(&self, delivery: usize) -> Outcome {
        let (before, this) = (&self.order[..delivery], self.order[delivery]);
        if before.contains(&this) {
            Outcome::Duplicate
        } else if before.iter().any(|place| self.is_deletion(*place)) {
            Stale
        } else if self.is_deletion(this) || before.iter().all(|place| *place < this) {
            Applied
        } else {
            Stale
        }
    }

    /// The text of the row at the end; `None` if there is no row.
    fn end(&self) -> Option<&'static str> {
        let is_deleted = (0..3).any(|place| self.is_deletion(place));
        (!is_deleted).then(|| self.says[2])
    }
}

/// A text field of this kind that shows which event was applied last.
fn telling(kind: &'static Entity) -> Field {
    let is_plain = |field: &Field| {
        field.holds == Holds::Text
            && field.parent.is_none()
            && !field.is_address
            && matches!(field.place, Place::Member | Place::Path(_) | Place::AnyOf(_))
    };
    kind.selectable().find(is_plain).expect("a text")
}

fn path_of(field: Field) -> Vec<&'static str> {
    match field.place {
        Place::Path(path) | Place::AnyOf(&[path, ..]) => path.to_vec(),
        _ => vec![field.name()],
    }
}

async fn every_three_events_of_a_kind_end_in_every_order_as_a_model_says(mut world: World) {
    const ORDERS: [[usize; 4]; 6] =
        [[0, 1, 2, 0], [0, 2, 1, 0], [1, 0, 2, 1], [1, 2, 0, 1], [2, 0, 1, 2], [2, 1, 0, 2]];
    with_everything(&mut world);
    let mut lives = Vec::new();
    for kind in entity::ALL.iter().filter(|kind| !entity::PARTS.contains(kind)) {
        let types: Vec<&'static str> = kind.event_types().collect();
        for first in 0..types.len() {
            for second in first + 1..types.len() {
                for third in second + 1..types.len() {
                    let says = [types[first], types[second], types[third]];
                    lives.extend(ORDERS.map(|order| (*kind, says, order)));
                }
            }
        }
    }
    let lives: Vec<Life> = lives
        .into_iter()
        .enumerate()
        .map(|(number, (kind, says, order))| Life::of(kind, says, order, number))
        .collect();
    let told: HashSet<&str> = lives.iter().flat_map(|life| life.says).collect();
    let never = |name: &str| ["email.", "sms."].iter().any(|object| name.starts_with(object));
    assert!(event::KNOWN_TYPES.iter().all(|name| never(name) || told.contains(name.as_str())), "{told:?}");
    for delivery in 0..4 {
        for batch in lives.chunks(256) {
            let events: Vec<Event> =
                batch.iter().map(|life| life.events[life.order[delivery]].clone()).collect();
            let outcomes = world.deliver_all(&events).await;
            for (life, outcome) in batch.iter().zip(outcomes) {
                assert_eq!(outcome, life.outcome(delivery), "{:?} {:?}, {delivery}", life.says, life.order);
            }
        }
    }
    assert_eq!(world.count("webhook_queue").await, 0);
    for kind in entity::ALL.iter().filter(|kind| !entity::PARTS.contains(kind)) {
        let column = telling(kind).name();
        let query = format!("SELECT clerk_id, \"{column}\" AS said FROM {}", kind.table);
        let rows = world.rows(&query).await;
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let here: HashMap<String, String> =
            rows.iter().map(|row| (text(&row["clerk_id"]), text(&row["said"]))).collect();
        let expected: HashMap<String, String> = lives
            .iter()
            .filter(|life| life.kind == *kind)
            .filter_map(|life| Some((life.id.clone(), life.end()?.to_owned())))
            .collect();
        assert_eq!(here, expected, "{}", kind.kind);
    }
}
