//! Every kind that Clerk tells about, with everything switched on.

use chrono::TimeDelta;
use clerk_sync::{
    clerk::sample,
    entity,
    model::{FieldSet, Outcome, Selection},
};
use serde_json::{Value as Json, json};

use crate::{
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
    an_item_comes_back_to_life,
    an_invitation_that_has_run_out_is_no_current_one,
}

fn with_everything(world: &mut World) {
    world.rules.selection =
        entity::ALL.iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
}

/// An event whose object was changed so long after now.
fn about(event_type: &str, mut data: Json, after: i64) -> Event {
    data["created_at"] = NOW.into();
    data["updated_at"] = (NOW + after).into();
    Event::about(event_type, data, NOW + after)
}

async fn every_event_is_applied_and_nothing_is_parked(mut world: World) {
    with_everything(&mut world);
    for event_type in sample::types() {
        let Some(kind) = entity::of_event(event_type) else { continue };
        // Each type has objects of its own: whoever is deleted stays so.
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
    // As it waits in the queue, and as it is applied.
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
    // Beside news of what has nothing to do with it.
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
