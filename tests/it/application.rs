//! What an application adds around our tables: data that references users, and its own constraints.

use clerk_sync::{
    model::{DeletionPolicy, Outcome},
    sync::{Rules, apply},
};
use mongodb::bson::{Document, doc};
use tokio::time::Instant;

use crate::world::{Event, Keeper, World};

/// The clause for a foreign key that is checked at commit. MariaDB and MySQL check every key at once.
pub(crate) const DEFERRED: &str = "DEFERRABLE INITIALLY DEFERRED";

/// Create a table with a column that references one of our tables, with this clause on the foreign key.
pub(crate) async fn pointing(world: &World, table: &str, column: &str, ours: &str, clause: &str) {
    let clause = match world.keeper {
        Keeper::Mariadb | Keeper::Mysql if clause == DEFERRED => "",
        _ => clause,
    };
    world
        .sql(&format!(
            "CREATE TABLE {table} (
                 id INTEGER PRIMARY KEY, {column} {} NOT NULL, FOREIGN KEY ({column}) REFERENCES {ours} (clerk_id) {clause}
             )",
            world.id_type()
        ))
        .await;
}

/// Create orders that reference users, with this clause on the foreign key. With MongoDB the table exists only in the mirror and
/// prevents no deletion.
pub(crate) async fn orders(world: &World, clause: &str) {
    pointing(world, "orders", "clerk_id", "users", clause).await;
}

/// Insert an order of this user.
pub(crate) async fn order(world: &World, number: u32, id: &str) {
    world.sql(&format!("INSERT INTO orders (id, clerk_id) VALUES ({number}, '{id}')")).await;
}

/// Deliver the deletions of users, some of whom have an order that keeps their rows. On MongoDB nothing keeps a row, so the
/// users with orders are anonymised by policy instead.
pub(crate) async fn erase(world: &World, with_order: &[Event], others: &[Event]) {
    if world.refuses_deletions() {
        world.deliver_all(&[with_order, others].concat()).await;
        return;
    }
    let batch: Vec<_> = with_order.iter().map(|event| world.delivery(event)).collect();
    let rules = Rules { deletion: DeletionPolicy::Anonymize, ..world.rules.clone() };
    let deadline = Instant::now() + std::time::Duration::from_mins(1);
    for outcome in apply(&*world.store, &batch, &rules, world.now, deadline).await {
        assert_eq!(outcome, Ok(Outcome::Applied));
    }
    world.deliver_all(others).await;
}

/// Prevent the erasure of these users: the policy is deletion, and an order refuses it. On MongoDB nothing can refuse a deletion,
/// so the policy is anonymisation, and a validator refuses that.
pub(crate) async fn resist(world: &mut World, ids: &[&str]) {
    if world.refuses_deletions() {
        world.rules.deletion = DeletionPolicy::Delete;
        orders(world, "").await;
        for (number, id) in (1..).zip(ids) {
            order(world, number, id).await;
        }
        return;
    }
    world.rules.deletion = DeletionPolicy::Anonymize;
    let anybody_else = doc! { "clerkId": { "$nin": ids.to_vec() } };
    let not_anonymised = doc! { "profile.firstName": { "$ne": "Deleted" } };
    validate(world, doc! { "$or": [anybody_else, not_anonymised] }).await;
}

/// Remove what prevents the erasure.
pub(crate) async fn resist_no_longer(world: &World) {
    if world.refuses_deletions() {
        world.sql("DELETE FROM orders").await;
    } else {
        validate(world, doc! {}).await;
    }
}

/// MongoDB: set the validator of the users' documents.
async fn validate(world: &World, validator: Document) {
    world.mirror().validate("users", validator).await;
}

/// Refuse every user with this first name.
pub(crate) async fn refuse_name(world: &World, name: &str) {
    if world.keeper == Keeper::Mongodb {
        return validate(world, doc! { "profile.firstName": { "$ne": name } }).await;
    }
    world
        .sql_of(
            &format!(
                "ALTER TABLE users ADD CONSTRAINT no_such_name CHECK (first_name <> '{name}') NOT VALID"
            ),
            &format!(
                "CREATE TRIGGER no_such_name_i BEFORE INSERT ON users WHEN new.first_name = '{name}'
                 BEGIN SELECT RAISE(ABORT, 'refused: ada@example.com'); END;
                 CREATE TRIGGER no_such_name_u BEFORE UPDATE ON users WHEN new.first_name = '{name}'
                 BEGIN SELECT RAISE(ABORT, 'refused: ada@example.com'); END;"
            ),
            &format!(
                "CREATE TRIGGER no_such_name_i BEFORE INSERT ON users FOR EACH ROW
                 IF new.first_name = '{name}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused: ada@example.com'; END IF;
                 CREATE TRIGGER no_such_name_u BEFORE UPDATE ON users FOR EACH ROW
                 IF new.first_name = '{name}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused: ada@example.com'; END IF"
            ),
        )
        .await;
}

/// Refuse every user without a user name.
pub(crate) async fn refuse_nameless(world: &World) {
    if world.keeper == Keeper::Mongodb {
        return validate(world, doc! { "username": { "$ne": null } }).await;
    }
    world
        .sql_of(
            "ALTER TABLE users ADD CONSTRAINT needs_username CHECK (username IS NOT NULL) NOT VALID",
            "CREATE TRIGGER needs_username BEFORE UPDATE ON users WHEN new.username IS NULL
             BEGIN SELECT RAISE(ABORT, 'refused'); END",
            "ALTER TABLE users ADD CONSTRAINT needs_username CHECK (username IS NOT NULL)",
        )
        .await;
}

/// Remove the constraint of `refuse_nameless`.
pub(crate) async fn allow_nameless(world: &World) {
    if world.keeper == Keeper::Mongodb {
        return validate(world, doc! {}).await;
    }
    let unchecked = "ALTER TABLE users DROP CONSTRAINT needs_username";
    world.sql_of(unchecked, "DROP TRIGGER needs_username", unchecked).await;
}

/// Remove the constraint of `refuse_name`.
pub(crate) async fn allow_names(world: &World) {
    if world.keeper == Keeper::Mongodb {
        return validate(world, doc! {}).await;
    }
    world
        .sql_of(
            "ALTER TABLE users DROP CONSTRAINT no_such_name",
            "DROP TRIGGER no_such_name_i; DROP TRIGGER no_such_name_u",
            "DROP TRIGGER no_such_name_i; DROP TRIGGER no_such_name_u",
        )
        .await;
}
