//! Removing rows and setting marks of deletion: the statements, built once from the declarations. They do not return what they
//! wrote, because neither server can do so for an update. The rows are read afterwards instead.

use std::collections::HashMap;

use crate::{
    entity::USER,
    model::{Anonymized, Entity, Field, Kinds},
    store::{
        schema::quoted,
        sql::{Statement, objects},
    },
};

/// The statements for every kind.
pub(super) struct Removal(HashMap<&'static str, Statements>);

/// The statements for one kind. Each takes a batch of ids. A statement with a time takes it as the second value.
pub(super) struct Statements {
    pub(super) delete: Statement,
    pub(super) anonymize: Statement,
    /// Locks the rows and returns their numbers, because a trigger of the application can change the ids.
    pub(super) numbers: Statement,
    /// Takes a batch of such numbers: whether a row still holds values that were to be anonymised. A trigger can restore them.
    pub(super) kept: Statement,
    pub(super) mark: Statement,
    pub(super) unmark: Statement,
}

impl Removal {
    /// Only the operator knows the names of the application's columns, and a name cannot be a parameter, so it is quoted.
    pub(super) fn new(kinds: Kinds, anonymize_columns: &[String]) -> Self {
        let theirs = |entity: &Entity| {
            let theirs = anonymize_columns.iter().filter(|_| *entity == USER);
            theirs.map(|column| format!(", u.{} = NULL", quoted(column))).collect::<Vec<_>>().concat()
        };
        let statements = |entity: &'static Entity| (entity.kind, Statements::new(entity, &theirs(entity)));
        Self(kinds.iter().map(|entity| statements(entity)).collect())
    }

    /// The statements for a kind that is stored.
    pub(super) fn of(&self, entity: &Entity) -> &Statements {
        &self.0[entity.kind]
    }
}

impl Statements {
    fn new(entity: &'static Entity, theirs: &str) -> Self {
        let table = entity.table;
        // In the order of the batch, so that all transactions remove rows in one order.
        let these =
            format!("{{batch $1 AS n: clerk_id text}} STRAIGHT_JOIN {table} AS u ON u.clerk_id = n.clerk_id");
        let preferences = if entity.has_preferences { ", u.preferences = json_object()" } else { "" };
        let fields =
            objects::anonymizing(entity).map(|field| format!("u.{field}, ")).collect::<Vec<_>>().concat();
        let emptied = entity.telling().filter(|field| field.anonymized != Anonymized::Kept);
        let kept = |field: Field| {
            format!(" OR NOT (u.{} <=> {})", objects::column(field), objects::anonymous(field))
        };
        let kept = emptied.map(kept).collect::<Vec<_>>().concat();
        Self {
            delete: Statement::made(format!("DELETE u FROM {these}")),
            anonymize: Statement::made(format!(
                "UPDATE {these} SET {fields}u.deleted_at = coalesce(u.deleted_at, $2){preferences}{theirs}"
            )),
            numbers: Statement::made(format!("SELECT u.id FROM {these} FOR UPDATE")),
            kept: Statement::made(format!(
                "SELECT 1 FROM {{batch $1 AS n: id bigint}} STRAIGHT_JOIN {table} AS u ON u.id = n.id
                 WHERE u.deleted_at IS NULL{kept}
                 LIMIT 1"
            )),
            mark: Statement::made(format!("UPDATE {these} SET u.deleted_at = $2 WHERE u.deleted_at IS NULL")),
            unmark: Statement::made(format!(
                "UPDATE {these} SET u.deleted_at = NULL WHERE u.deleted_at = $2"
            )),
        }
    }
}
