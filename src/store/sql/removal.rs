//! Removing rows and setting marks of deletion, each if the application allows it, in databases where this takes several
//! statements. These are built once from the declarations.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{
    Row, Statement,
    attempt::{self, Attempts, Extent},
    batch, objects, telling, values,
};
use crate::{
    entity::USER,
    model::{Anonymized, ClerkId, Entity, Field, Kinds},
    store::{Mark, Result, RowFate, StoreError, Way, schema::quoted},
};

/// A change of rows that the application may refuse.
#[derive(Clone, Copy)]
enum Step {
    Take(Way),
    Mark(Mark),
}

/// The statements for every kind.
pub(in crate::store) struct Removal(HashMap<&'static str, Statements>);

/// The statements for one kind. Each takes a batch of ids, and a time as the second value.
struct Statements {
    /// Locks the rows and returns what a statement that writes them cannot return. Empty on SQLite.
    found: Statement,
    delete: Statement,
    anonymize: Statement,
    /// Takes a batch of row numbers: whether a row still holds values that were to be anonymised. A trigger can restore them.
    kept: Statement,
    mark: Statement,
    unmark: Statement,
}

impl Removal {
    /// Only the operator knows the names of the application's columns, and a name cannot be a parameter, so it is quoted.
    pub(in crate::store) fn new(kinds: Kinds, anonymize_columns: &[String]) -> Self {
        let theirs = |entity: &Entity| {
            let theirs = anonymize_columns.iter().filter(|_| *entity == USER);
            theirs.map(|column| format!(", {} = NULL", quoted(column))).collect::<Vec<_>>().concat()
        };
        let statements = |entity: &'static Entity| (entity.kind, Statements::new(entity, &theirs(entity)));
        Self(kinds.iter().map(|entity| statements(entity)).collect())
    }

    /// The statement that locks rows of this table.
    pub(in crate::store) fn locking(&self, table: &str, kinds: Kinds) -> Option<&Statement> {
        let entity = kinds.iter().find(|entity| entity.table == table)?;
        self.0.get(entity.kind).map(|statements| &statements.found)
    }

    /// See [`Session::erase`](crate::store::Session::erase).
    pub(in crate::store) async fn erase(
        &self,
        session: &mut impl Attempts,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let (mut fates, mut refusals) = (HashMap::new(), HashMap::new());
        let mut standing = ids.to_vec();
        for way in ways {
            let (done, refused) = self.each(session, Step::Take(*way), &standing, at).await?;
            if !done.is_empty() {
                session.removed_personal_data();
            }
            let fate = match way {
                Way::Delete => RowFate::Deleted,
                Way::Anonymize => RowFate::Anonymized,
            };
            fates.extend(done.into_iter().map(|id| (id, fate.clone())));
            refusals.extend(refused);
            // A trigger can also keep a row silently.
            standing = telling(session, &standing).await?;
        }
        if ways.is_empty() {
            standing = telling(session, &standing).await?;
        }
        // The mark does not decide whether a row counts as deleted, so a refusal by the application does not matter.
        self.each(session, Step::Mark(Mark::Set), &standing, at).await?;
        for id in standing {
            let reason = refusals.remove(&id).unwrap_or_else(StoreError::unmoved);
            fates.insert(id, RowFate::Stands(reason));
        }
        Ok(fates)
    }

    /// See [`Session::mark`](crate::store::Session::mark).
    pub(in crate::store) async fn mark(
        &self,
        session: &mut impl Attempts,
        marks: &[(ClerkId, DateTime<Utc>)],
        mark: Mark,
    ) -> Result<()> {
        for (id, at) in marks {
            self.each(session, Step::Mark(mark), std::slice::from_ref(id), *at).await?;
        }
        Ok(())
    }

    /// Apply a step to all of these rows of one kind together or, if the application refuses, to each alone. Returns the ids
    /// for which it succeeded, and the refusals.
    async fn each(
        &self,
        session: &mut impl Attempts,
        step: Step,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<(Vec<ClerkId>, HashMap<ClerkId, StoreError>)> {
        let extent = match step {
            Step::Take(Way::Delete) => Extent::OneStatement,
            Step::Take(Way::Anonymize) | Step::Mark(_) => Extent::SeveralStatements,
        };
        let (mut done, mut refused) = (Vec::new(), HashMap::new());
        let mut parts = vec![ids];
        while let Some(part) = parts.pop() {
            let Some(entity) = part.first().map(ClerkId::entity) else { continue };
            attempt::begin(session, extent).await?;
            let tried = self.tried(session, step, entity, part, at).await;
            match attempt::end(session, extent, tried).await? {
                Ok(ids) => done.extend(ids),
                Err(_) if part.len() > 1 => parts.extend(part.chunks(1).rev()),
                Err(error) => _ = refused.insert(part[0].clone(), error),
            }
        }
        Ok((done, refused))
    }

    /// Apply a step to rows of this kind; returns the ids for which it succeeded. [`StoreError::unmoved`] if a trigger restored
    /// the old values of a row, or changed the id of a marked row.
    async fn tried(
        &self,
        session: &mut impl Attempts,
        step: Step,
        entity: &'static Entity,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<Vec<ClerkId>> {
        let Some(statements) = self.0.get(entity.kind) else { return Ok(Vec::new()) };
        let statement = match step {
            Step::Take(Way::Delete) => &statements.delete,
            Step::Take(Way::Anonymize) => &statements.anonymize,
            Step::Mark(Mark::Set) => &statements.mark,
            Step::Mark(Mark::Unset) => &statements.unmark,
        };
        let values = values![batch(ids).text(ClerkId::as_str), at];
        let mut rows = session.rows(&statements.found, values).await?;
        let found = rows.len();
        rows.extend(attempt::written(session, entity.table, statement, values).await?);
        let is_done = match step {
            Step::Take(Way::Delete) => true,
            Step::Take(Way::Anonymize) => {
                // By row number, because a trigger can also change the id. RETURNING shows the values before the trigger.
                let numbers: Vec<i64> = rows.iter().map(|row| row.get(1)).collect::<Result<_>>()?;
                session
                    .rows(&statements.kept, values![batch(&numbers).int(|number| *number)])
                    .await?
                    .is_empty()
            }
            Step::Mark(_) => session.rows(&statements.found, values).await?.len() == found,
        };
        if !is_done {
            return Err(StoreError::unmoved());
        }
        rows.iter().map(|row: &Row| row.id_of(entity, 0)).collect()
    }
}

impl Statements {
    fn new(entity: &'static Entity, theirs: &str) -> Self {
        let table = entity.table;
        // In the order of the batch, so that all transactions remove rows in one order.
        let these = "u.clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}}";
        let preferences = if entity.has_preferences { ", preferences = json_object()" } else { "" };
        let fields = objects::anonymizing(entity).map(|field| field + ", ").collect::<String>();
        let emptied = entity.telling().filter(|field| field.anonymized != Anonymized::Kept);
        let kept = |field: Field| {
            let (column, anonymous) = (objects::column(field), objects::anonymous(field));
            format!(" OR NOT (u.{column} {{sqlite IS}}{{mysql <=>}} {anonymous})")
        };
        let kept = emptied.map(kept).collect::<Vec<_>>().concat();
        let written = |sql: &str| Statement::made(format!("{sql}\n {{returning clerk_id, id}}"));
        let update = |set: &str| written(&format!("UPDATE {table} AS u SET {set}"));
        Self {
            found: Statement::made(format!(
                "{{mysql SELECT u.clerk_id, u.id FROM {{batch $1 AS n: clerk_id text}}
                 {{lock {table} AS u WHERE u.clerk_id = n.clerk_id}}}}"
            )),
            // `DELETE IGNORE` would skip rows that a foreign key protects, but MySQL 9.7 then keeps the completed part of a cascade.
            delete: written(&format!("DELETE FROM {table} AS u WHERE {these}")),
            anonymize: update(&format!(
                "{fields}deleted_at = coalesce(deleted_at, $2){preferences}{theirs} WHERE {these}"
            )),
            kept: Statement::made(format!(
                "SELECT 1 FROM {{batch $1 AS n: id bigint}} {{lookup {table} AS u WHERE u.id = n.id}}
                 WHERE u.deleted_at IS NULL{kept}
                 LIMIT 1"
            )),
            mark: update(&format!("deleted_at = $2 WHERE {these} AND deleted_at IS NULL")),
            unmark: update(&format!("deleted_at = NULL WHERE {these} AND deleted_at = $2")),
        }
    }
}
