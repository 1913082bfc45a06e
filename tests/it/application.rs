//! What an application builds around our tables: data that points to users, and rules of its own.

use crate::world::World;

/// Orders that point to users, with this clause on the foreign key.
pub(crate) async fn orders(world: &World, clause: &str) {
    world
        .sql(&format!(
            "CREATE TABLE orders (
                 id INTEGER PRIMARY KEY, clerk_id TEXT NOT NULL REFERENCES users (clerk_id) {clause}
             )"
        ))
        .await;
}

/// An order of this user.
pub(crate) async fn order(world: &World, number: u32, id: &str) {
    world.sql(&format!("INSERT INTO orders (id, clerk_id) VALUES ({number}, '{id}')")).await;
}

/// Refuse every user of this first name.
pub(crate) async fn refuse_name(world: &World, name: &str) {
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
        )
        .await;
}

/// Think better of it.
pub(crate) async fn allow_names(world: &World) {
    world
        .sql_of(
            "ALTER TABLE users DROP CONSTRAINT no_such_name",
            "DROP TRIGGER no_such_name_i; DROP TRIGGER no_such_name_u",
        )
        .await;
}
