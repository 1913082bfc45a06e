//! Removing rows and setting marks of deletion: the statements, built once from the declarations.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;

use super::statement::rows;
use crate::{
    entity::USER,
    model::{Anonymized, ClerkId, Entity, Field, Kinds},
    store::{
        Mark, Result, StoreError, Way,
        schema::quoted,
        sql::{Statement, batch, objects, values},
    },
};

/// A change of a row that the application may refuse.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Take(Way),
    Mark(Mark),
}

/// The statements for every kind.
pub(super) struct Removal {
    kinds: Kinds,
    statements: HashMap<&'static str, Statements>,
}

/// The statements for one kind.
struct Statements {
    delete: Statement,
    anonymize: Statement,
    /// Rows that still hold values that were to be anonymised, because a trigger can restore them.
    kept: Statement,
    mark: Statement,
    unmark: Statement,
}

impl Removal {
    /// Only the operator knows the names of the application's columns, and a name cannot be a parameter, so it is quoted.
    pub(super) fn new(kinds: Kinds, anonymize_columns: &[String]) -> Self {
        let theirs = |entity: &Entity| {
            let theirs = anonymize_columns.iter().filter(|_| *entity == USER);
            theirs.map(|column| format!(", {} = NULL", quoted(column))).collect::<Vec<_>>().concat()
        };
        let statements = |entity: &'static Entity| (entity.kind, Statements::new(entity, &theirs(entity)));
        Self { kinds, statements: kinds.iter().map(|entity| statements(entity)).collect() }
    }

    /// Apply a step to rows of this kind; returns the ids for which it succeeded. [`StoreError::unmoved`] if a trigger restored
    /// the old values of a row.
    pub(super) async fn run(
        &self,
        connection: &mut SqliteConnection,
        entity: &'static Entity,
        step: Step,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<Vec<ClerkId>> {
        let Some(statements) = self.statements.get(entity.kind) else { return Ok(Vec::new()) };
        let statement = match step {
            Step::Take(Way::Delete) => &statements.delete,
            Step::Take(Way::Anonymize) => &statements.anonymize,
            Step::Mark(Mark::Set) => &statements.mark,
            Step::Mark(Mark::Unset) => &statements.unmark,
        };
        let values = values![batch(ids).text(ClerkId::as_str), at];
        let done = rows(connection, self.kinds, statement, values).await?;
        if matches!(step, Step::Take(Way::Anonymize)) {
            // By row number, because a trigger can also change the id. RETURNING shows the values before the trigger.
            let numbers: Vec<i64> = done.iter().map(|row| row.get(1)).collect::<Result<_>>()?;
            let kept = values![batch(&numbers).int(|number| *number)];
            if !rows(connection, self.kinds, &statements.kept, kept).await?.is_empty() {
                return Err(StoreError::unmoved());
            }
        }
        done.iter().map(|row| row.id_of(entity, 0)).collect()
    }
}

impl Statements {
    fn new(entity: &'static Entity, theirs: &str) -> Self {
        let table = entity.table;
        let these = "clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}}";
        let preferences = if entity.has_preferences { ", preferences = json_object()" } else { "" };
        let fields = objects::anonymizing(entity).map(|field| field + ", ").collect::<String>();
        let emptied = entity.telling().filter(|field| field.anonymized != Anonymized::Kept);
        let kept =
            |field: Field| format!(" OR u.{} IS NOT {}", objects::column(field), objects::anonymous(field));
        let kept = emptied.map(kept).collect::<Vec<_>>().concat();
        Self {
            delete: Statement::made(format!("DELETE FROM {table} WHERE {these} RETURNING clerk_id")),
            anonymize: Statement::made(format!(
                "UPDATE {table} AS u SET {fields}deleted_at = coalesce(deleted_at, $2){preferences}{theirs}
                 WHERE {these}
                 RETURNING clerk_id, id"
            )),
            kept: Statement::made(format!(
                "SELECT 1 FROM {{batch $1 AS n: id bigint}} CROSS JOIN {table} AS u ON u.id = n.id
                 WHERE u.deleted_at IS NULL{kept}
                 LIMIT 1"
            )),
            mark: Statement::made(format!(
                "UPDATE {table} SET deleted_at = $2 WHERE {these} AND deleted_at IS NULL RETURNING clerk_id"
            )),
            unmark: Statement::made(format!(
                "UPDATE {table} SET deleted_at = NULL WHERE {these} AND deleted_at = $2 RETURNING clerk_id"
            )),
        }
    }
}

/// Number of live users.
pub(super) async fn count_standing(connection: &mut SqliteConnection) -> Result<u64> {
    static STANDING: Statement = Statement::new("SELECT count(*) FROM users WHERE deleted_at IS NULL");
    let counted = rows(connection, &[], &STANDING, &[]).await?;
    counted.first().map_or(Ok(0), |row| row.get(0))
}
