//! One user per address: with `UNIQUE_EMAIL`, and with an index or constraint of the application.

use chrono::TimeDelta;
use clerk_sync::{
    entity::user,
    model::{Change, Content, Delivery, News, Outcome, Source, Version},
};

use crate::{
    promises::promises,
    world::{Event, Keeper, World, at, clerk_id, run},
};

use Outcome::{Applied, Parked, Stale, Unchanged};

promises! {
    two_who_swap_and_three_in_a_ring_end_right_in_any_order,
    two_who_swap_on_two_replicas_at_once_end_right,
    the_newest_claim_keeps_an_address_and_the_older_row_loses_it_with_a_line,
    a_claim_that_lost_is_no_news_when_it_is_shown_again,
    an_address_is_free_while_the_deletion_of_its_owner_is_held_back_or_refused,
    an_address_goes_from_somebody_deleted_to_somebody_new_in_one_batch,
    who_is_kept_comes_back_without_an_address_that_is_somebody_elses,
    switched_on_it_settles_what_is_shared_and_switched_off_it_is_gone,
    two_who_swap_under_an_index_of_the_application_go_together,
}

/// An event that gives this user this address at this time.
fn holds(id: &str, email: &str, at: i64) -> Event {
    Event::updated(id, at).email(email)
}

async fn email(world: &World, id: &str) -> String {
    world.text(id, user::EMAIL).await.unwrap_or_default()
}

/// The events in an order that depends on the number.
fn shuffled(events: &[Event], mut number: u64) -> Vec<Event> {
    let mut left = events.to_vec();
    let mut shuffled = Vec::new();
    while !left.is_empty() {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = usize::try_from(number >> 33).unwrap() % left.len();
        shuffled.push(left.remove(place));
    }
    shuffled
}

async fn two_who_swap_and_three_in_a_ring_end_right_in_any_order(mut world: World) {
    world.unique_email(true).await;
    for (round, people) in (0..24_u64).map(|round| (round, if round % 2 == 0 { 2 } else { 3 })) {
        let id = |person: usize| format!("user_{round}_{person}");
        let address = |place: usize| format!("P{}-{round}@Example.com", place % people);
        let mut events = Vec::new();
        for person in 0..people {
            let number = i64::try_from(person).unwrap();
            events.push(holds(&id(person), &address(person).to_lowercase(), number));
            events.push(holds(&id(person), &address(person + 1), 1000 + number));
        }
        let events = shuffled(&events, round);
        match round % 4 {
            0 | 1 => {
                for event in &events {
                    world.deliver(event).await;
                }
            }
            2 => _ = world.deliver_all(&events).await,
            _ => {
                world.enqueue(&events).await;
                world.drain().await;
            }
        }
        for person in 0..people {
            assert_eq!(email(&world, &id(person)).await, address(person + 1), "{round}");
        }
    }
    assert_eq!(world.count("webhook_queue").await, 0);
}

async fn two_who_swap_on_two_replicas_at_once_end_right(mut world: World) {
    world.unique_email(true).await;
    let other = world.open().await;
    for round in 0..10 {
        let (a, b) = (format!("user_a{round}"), format!("user_b{round}"));
        let (one, two) = (format!("one{round}@example.com"), format!("two{round}@example.com"));
        let to_one = [holds(&b, &two, 1), holds(&b, &one, 1000)];
        let to_two = [holds(&a, &one, 0), holds(&a, &two, 1001)];
        let batch = |events: &[Event]| events.iter().map(|event| world.delivery(event)).collect::<Vec<_>>();
        let (one_by_one, together) = (batch(&to_one), batch(&to_two));
        let (here, there) =
            tokio::join!(world.apply(&*world.store, &one_by_one), world.apply(&*other, &together));
        for outcome in here.into_iter().chain(there) {
            assert!(matches!(outcome, Ok(Applied | Parked | Stale | Unchanged)), "{outcome:?}");
        }
        assert_eq!((email(&world, &a).await, email(&world, &b).await), (two, one), "{round}");
    }
}

async fn the_newest_claim_keeps_an_address_and_the_older_row_loses_it_with_a_line(mut world: World) {
    world.unique_email(true).await;
    world.deliver(&holds("user_1", "Ada@example.com", 0)).await;
    assert_eq!(world.deliver(&holds("user_2", "ada@example.com", 1000)).await, Applied);
    assert_eq!(
        (email(&world, "user_1").await, email(&world, "user_2").await),
        (String::new(), "ada@example.com".into())
    );
    // An event older than the owner's version does not take the address back; a newer one does.
    assert_eq!(
        world.deliver(&holds("user_1", "ada@example.com", 500).set("first_name", "Late")).await,
        Applied
    );
    assert_eq!(email(&world, "user_1").await, "");
    assert_eq!(world.deliver(&holds("user_3", "ADA@example.com", 900)).await, Applied);
    assert_eq!(email(&world, "user_3").await, "");
    assert_eq!(world.deliver(&holds("user_1", "ada@example.com", 2000)).await, Applied);
    assert_eq!(
        (email(&world, "user_1").await, email(&world, "user_2").await),
        ("ada@example.com".into(), String::new())
    );
    let lost = "SELECT clerk_id FROM audit_log WHERE action = 'USER_UPDATED' ORDER BY id";
    assert_eq!(world.column(lost).await, ["user_1", "user_1", "user_1", "user_2"]);
    // The user that loses the address gets no further actor.
    let actors =
        "SELECT count(*) AS n FROM audit_actors JOIN audit_log ON id = audit_id WHERE clerk_id = 'user_2'";
    assert_eq!(world.value(actors).await, "1");
}

async fn a_claim_that_lost_is_no_news_when_it_is_shown_again(mut world: World) {
    world.unique_email(true).await;
    world.deliver(&holds("user_1", "ada@example.com", 0)).await;
    world.deliver(&holds("user_2", "ada@example.com", 1000)).await;
    let lines = world.count("audit_log").await;
    let shown = |id: &str, version: i64, read_at: i64| {
        let event = holds(id, "ada@example.com", version);
        let mut delivery = Delivery { svix_id: None, source: Source::Backfill, ..world.delivery(&event) };
        if let Content::Change(change) = &mut delivery.content {
            change.version.tie = String::new();
            change.version.event_at += read_at;
        }
        delivery
    };
    for read_at in [0, 5000, 6000] {
        let page = [shown("user_1", 0, read_at), shown("user_2", 1000, read_at)];
        for outcome in world.apply(&*world.store, &page).await {
            assert_eq!(outcome, Ok(Unchanged), "{read_at}");
        }
    }
    assert_eq!(world.count("audit_log").await, lines);
    // When the other user gives the address up, the first user gets it back.
    world.deliver(&holds("user_2", "other@example.com", 2000)).await;
    assert_eq!(world.apply(&*world.store, &[shown("user_1", 0, 7000)]).await, [Ok(Applied)]);
    assert_eq!(email(&world, "user_1").await, "ada@example.com");
}

async fn an_address_is_free_while_the_deletion_of_its_owner_is_held_back_or_refused(mut world: World) {
    world.unique_email(true).await;
    world.rules.grace = TimeDelta::days(1);
    world.deliver(&holds("user_1", "ada@example.com", 0)).await;
    world.deliver(&Event::deleted("user_1", 500)).await;
    assert_eq!(world.deliver(&holds("user_2", "ada@example.com", 1000)).await, Applied);
    assert_eq!(
        (email(&world, "user_1").await, email(&world, "user_2").await),
        ("ada@example.com".into(), "ada@example.com".into())
    );
    // The same in one batch.
    world.deliver(&holds("user_3", "bea@example.com", 0)).await;
    let batch = [Event::deleted("user_3", 500), holds("user_4", "bea@example.com", 1000)];
    assert_eq!(world.deliver_all(&batch).await, [Applied, Applied]);
    assert_eq!(
        (email(&world, "user_3").await, email(&world, "user_4").await),
        ("bea@example.com".into(), "bea@example.com".into())
    );
    // The same for a row that cannot be deleted yet.
    world.rules.grace = TimeDelta::zero();
    world.deliver(&holds("user_5", "cy@example.com", 0)).await;
    crate::application::resist(&mut world, &["user_5"]).await;
    assert_eq!(world.deliver(&Event::deleted("user_5", 500)).await, Parked);
    assert_eq!(world.deliver(&holds("user_6", "cy@example.com", 400)).await, Applied);
    assert_eq!(email(&world, "user_6").await, "cy@example.com");
}

async fn an_address_goes_from_somebody_deleted_to_somebody_new_in_one_batch(mut world: World) {
    world.unique_email(true).await;
    let batch = [
        holds("user_1", "ada@example.com", 0),
        Event::deleted("user_1", 500),
        holds("user_2", "ada@example.com", 1000),
    ];
    assert_eq!(world.deliver_all(&batch).await, [Applied; 3]);
    let batch = [Event::deleted("user_2", 1500), holds("user_3", "ada@example.com", 2000)];
    assert_eq!(world.deliver_all(&batch).await, [Applied; 2]);
    // The same if the event of the new user arrives first.
    assert_eq!(world.deliver(&holds("user_4", "ada@example.com", 3000)).await, Applied);
    assert_eq!(world.deliver(&Event::deleted("user_3", 2500)).await, Applied);
    assert_eq!(world.column("SELECT clerk_id FROM users").await, ["user_4"]);
    assert_eq!(email(&world, "user_4").await, "ada@example.com");
}

async fn who_is_kept_comes_back_without_an_address_that_is_somebody_elses(mut world: World) {
    world.unique_email(true).await;
    world.rules.grace = TimeDelta::days(1);
    world.deliver(&holds("user_1", "ada@example.com", 0)).await;
    world.deliver(&Event::deleted("user_1", 500)).await;
    world.deliver(&holds("user_2", "ada@example.com", 1000)).await;
    let now = world.now;
    let keep = |id: &str| {
        let change = Change {
            clerk_id: clerk_id(id),
            version: Version { version: 600, event_at: 600, tie: String::new() },
            news: News::Keep,
            actor: None,
        };
        Delivery::without_webhook(clerk_id(id), Source::Cli, now, now, Content::Change(change))
    };
    assert_eq!(world.apply(&*world.store, &[keep("user_1")]).await, [Ok(Applied)]);
    let user = world.user("user_1").await.unwrap();
    assert_eq!((user.profile[user::EMAIL].text(), user.deleted_at), (None, None));
    assert_eq!(email(&world, "user_2").await, "ada@example.com");
}

async fn switched_on_it_settles_what_is_shared_and_switched_off_it_is_gone(mut world: World) {
    for (id, address, time) in [
        ("user_1", "ada@example.com", 2000),
        ("user_2", "ADA@example.com", 1000),
        ("user_3", "ada@example.com", 1500),
        ("user_4", "bea@example.com", 1000),
    ] {
        world.deliver(&holds(id, address, time)).await;
    }
    world.unique_email(true).await;
    world.store.migrate().await.unwrap();
    let mut emails = Vec::new();
    for id in ["user_1", "user_2", "user_3", "user_4"] {
        emails.push(email(&world, id).await);
    }
    assert_eq!(emails, ["ada@example.com", "", "", "bea@example.com"]);
    let lines = "SELECT clerk_id FROM audit_log WHERE action = 'USER_UPDATED' AND source = 'cli' ORDER BY id";
    assert_eq!(world.column(lines).await, ["user_2", "user_3"]);
    let twice = "UPDATE users SET email = 'bea@example.com' WHERE clerk_id = 'user_2'";
    assert!(world.try_sql(twice).await.is_err(), "the database enforces it");
    world.unique_email(false).await;
    world.sql(twice).await;
    assert_eq!(world.deliver(&holds("user_3", "bea@example.com", 3000)).await, Applied);
    assert_eq!(email(&world, "user_4").await, "bea@example.com");
}

async fn two_who_swap_under_an_index_of_the_application_go_together(mut world: World) {
    let forms: &[&str] = match world.keeper {
        Keeper::Postgres => &[
            "CREATE UNIQUE INDEX app_email ON users (lower(email)) WHERE deleted_at IS NULL",
            "ALTER TABLE users ADD CONSTRAINT app_email UNIQUE (email) DEFERRABLE INITIALLY IMMEDIATE",
            "ALTER TABLE users ADD CONSTRAINT app_email UNIQUE (email) DEFERRABLE INITIALLY DEFERRED",
        ],
        Keeper::Sqlite | Keeper::Mongodb => &["CREATE UNIQUE INDEX app_email ON users (lower(email))"],
        Keeper::Mariadb | Keeper::Mysql => &[
            "CREATE UNIQUE INDEX app_email ON users (live_email)",
            "ALTER TABLE users ADD CONSTRAINT app_email UNIQUE (email)",
        ],
    };
    for (round, form) in forms.iter().enumerate() {
        world.sql(form).await;
        for people in [2_usize, 3] {
            let id = |person: usize| format!("user_{round}_{people}_{person}");
            let address = |place: usize| format!("p{}-{round}-{people}@example.com", place % people);
            for person in 0..people {
                assert_eq!(world.deliver(&holds(&id(person), &address(person), 0)).await, Applied);
            }
            for person in 0..people {
                let moved = holds(&id(person), &address(person + 1), 1000);
                assert_eq!(world.deliver(&moved).await, Parked, "{form}");
            }
            // The first retry applies the others' events too.
            world.pass(TimeDelta::minutes(1));
            world.drain().await;
            for person in 0..people {
                assert_eq!(email(&world, &id(person)).await, address(person + 1), "{form}");
            }
            assert_eq!(world.count("webhook_queue").await, 0);
        }
        // In one batch, both are applied at once.
        let batch = [
            holds(&format!("user_{round}_2_0"), &format!("p0-{round}-2@example.com"), 2000),
            holds(&format!("user_{round}_2_1"), &format!("p1-{round}-2@example.com"), 2000),
        ];
        assert_eq!(world.deliver_all(&batch).await, [Applied, Applied], "{form}");
        world
            .sql_of(
                if form.starts_with("CREATE") {
                    "DROP INDEX app_email"
                } else {
                    "ALTER TABLE users DROP CONSTRAINT app_email"
                },
                "DROP INDEX app_email",
                "DROP INDEX app_email ON users",
            )
            .await;
    }
    assert!(world.now > at(0));
}
