//! What an application builds around our tables: data that points to users, and rules of its own.

use crate::world::{Keeper, World};

/// Of a foreign key that is checked by the commit. MariaDB and MySQL check every key at once.
pub(crate) const DEFERRED: &str = "DEFERRABLE INITIALLY DEFERRED";

/// A table with a column that points to a table of ours, with this clause on the foreign key.
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

/// Orders that point to users, with this clause on the foreign key.
pub(crate) async fn orders(world: &World, clause: &str) {
    pointing(world, "orders", "clerk_id", "users", clause).await;
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
            &format!(
                "CREATE TRIGGER no_such_name_i BEFORE INSERT ON users FOR EACH ROW
                 IF new.first_name = '{name}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused: ada@example.com'; END IF;
                 CREATE TRIGGER no_such_name_u BEFORE UPDATE ON users FOR EACH ROW
                 IF new.first_name = '{name}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused: ada@example.com'; END IF"
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
            "DROP TRIGGER no_such_name_i; DROP TRIGGER no_such_name_u",
        )
        .await;
}
