//! Removing rows and setting marks of deletion, each if the application allows it: all in one round trip.
//!
//! A PL/pgSQL block first tries all rows at once. If the application refuses any of them, the block handles them one by one,
//! each in a subtransaction, so that hundreds of refusals cost a single round trip. Then it checks which rows are left, because
//! a trigger can silently keep a row or its values. A block takes no parameters. The ids are therefore written into its text as
//! hexadecimal digits, and the results are returned in a setting that ends with the transaction. It is not a function in
//! clerk-sync's schema, because it depends on `ANONYMIZE_COLUMNS` and because calling it needs no privilege.

use std::{collections::HashMap, fmt::Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;

use super::{Session, error, get};
use crate::{
    entity::USER,
    model::{Anonymized, ClerkId, Entity, Field, FieldSet, Kinds},
    store::{ErrorKind, Mark, Result, RowFate, StoreError, Way, schema::quoted, sql::objects},
};

/// The SQLSTATE that the block raises if a trigger restores old values or changes the row's `clerk_id`.
const UNMOVED: &str = "CS001";

/// The condition for errors that are never about a single row: conflicts, lack of resources, operator intervention, and a lock
/// that another session holds. It excludes errors that a function raises.
const PASSING: &str = "(left(state, 2) IN ('40', '53', '57') OR state = '55P03') AND split_part(place, chr(10), 1) NOT LIKE '%RAISE'";

/// The condition for errors that are the fault of clerk-sync or the server if clerk-sync's own statement raises them, and
/// the application's fault if its code raises them.
const OURS: &str = "left(state, 2) IN ('08', '25', '28', '42', '58', 'F0', 'XX')";

/// Whether row `u` holds the anonymised values in these fields: conditions that each begin with `AND`.
fn holds(fields: impl Iterator<Item = Field>) -> String {
    let holds = |field: Field| match field.anonymized {
        Anonymized::Kept => String::new(),
        Anonymized::Null => format!(" AND u.{} IS NULL", objects::column(field)),
        Anonymized::Text(_) => format!(" AND u.{} = {}", objects::column(field), objects::anonymous(field)),
        // With any number, as `is_anonymized` accepts it.
        Anonymized::Address => {
            format!(" AND u.{} ~ '^deleted-[0-9]*@anonymized[.]local$'", objects::column(field))
        }
    };
    fields.map(holds).collect()
}

/// Whether row `u` no longer identifies anyone, by the same rule as
/// [`Object::is_anonymized`](crate::model::Object::is_anonymized).
fn anonymous(entity: &'static Entity) -> String {
    let telling = holds(entity.telling());
    format!("coalesce(u.deleted_at IS NOT NULL{telling}, false)")
}

/// The statements for every kind.
pub(super) struct Removal(HashMap<&'static str, Statements>);

impl Removal {
    pub(super) fn new(kinds: Kinds, anonymize_columns: &[String]) -> Self {
        let statements = |entity: &'static Entity| {
            let theirs = if *entity == USER { anonymize_columns } else { &[] };
            (entity.kind, Statements::new(entity, theirs))
        };
        Self(kinds.iter().map(|entity| statements(entity)).collect())
    }
}

/// The statements for deletion and anonymisation. They are assembled, because the application's columns have arbitrary names.
struct Statements {
    delete: String,
    anonymize: String,
}

impl Statements {
    fn new(entity: &'static Entity, anonymize_columns: &[String]) -> Self {
        let table = entity.table;
        let theirs: Vec<String> = anonymize_columns.iter().map(|name| quoted(name)).collect();
        let telling: FieldSet = entity.telling().collect();
        let emptied = theirs.iter().fold(String::new(), |list, name| list + ", " + name + " = NULL");
        let left = match &theirs[..] {
            [] => String::new(),
            theirs => format!(" AND num_nonnulls(u.{}) = 0", theirs.join(", u.")),
        };
        Self {
            delete: format!(
                "DELETE FROM {table} AS u USING unnest({{rows}}) AS n (clerk_id)
                 WHERE u.clerk_id = n.clerk_id
                 RETURNING u.clerk_id, true AS done"
            ),
            anonymize: format!(
                "UPDATE {table} AS u
                 SET {fields}deleted_at = coalesce(u.deleted_at, moment){preferences}{emptied}
                 FROM unnest({{rows}}) AS n (clerk_id)
                 WHERE u.clerk_id = n.clerk_id
                 RETURNING u.clerk_id, {anonymous}{others}{left} AS done",
                fields = objects::anonymizing(entity).map(|field| field + ", ").collect::<String>(),
                preferences = if entity.has_preferences { ", preferences = '{}'" } else { "" },
                anonymous = anonymous(entity),
                others = holds(entity.fields().filter(|field| !telling.contains(*field))),
            ),
        }
    }

    fn of(&self, way: Way) -> &str {
        match way {
            Way::Delete => &self.delete,
            Way::Anonymize => &self.anonymize,
        }
    }
}

/// The result that the block returns.
#[derive(Deserialize)]
struct Told {
    deleted: Vec<String>,
    anonymized: Vec<String>,
    standing: Vec<String>,
    refused: HashMap<String, Refusal>,
}

/// The SQLSTATE, the names of table, column and constraint, and the call trace.
#[derive(Deserialize)]
struct Refusal(String, String, String, String, String);

impl Refusal {
    fn error(self) -> StoreError {
        let Self(code, table, column, constraint, trace) = self;
        if code == UNMOVED {
            return StoreError::unmoved();
        }
        let names = [("table", table), ("column", column), ("constraint", constraint)];
        let names =
            names.iter().map(|(what, name)| (*what, name.as_str())).filter(|(_, name)| !name.is_empty());
        let names = names.chain(error::functions(&trace).into_iter().map(|name| ("function", name)));
        let place: Vec<String> = names.map(|(what, name)| format!("{what} {name}")).collect();
        // Whatever the code is, the application raised it.
        StoreError {
            kind: ErrorKind::Refused,
            code: Some(code),
            place: (!place.is_empty()).then(|| place.join(", ")),
        }
    }
}

impl Removal {
    /// See [`Session::erase`](crate::store::Session::erase).
    pub(super) async fn erase(
        &self,
        session: &mut Session,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let Some(entity) = ids.first().map(ClerkId::entity) else { return Ok(HashMap::new()) };
        let Some(statements) = self.0.get(entity.kind) else { return Ok(HashMap::new()) };
        let table = entity.table;
        let look = format!(
            "standing := ARRAY(
                 SELECT u.clerk_id FROM unnest(ids) AS n (clerk_id)
                 CROSS JOIN LATERAL (SELECT * FROM {table} WHERE clerk_id = n.clerk_id) AS u
                 WHERE NOT {}
             );",
            anonymous(entity)
        );
        let mut steps = "standing := ids;".to_owned();
        for way in ways {
            let into = match way {
                Way::Delete => "deleted",
                Way::Anonymize => "anonymized",
            };
            let _ = write!(steps, "{} {into} := {into} || hits; {look}", each(statements.of(*way)));
        }
        if ways.is_empty() {
            steps.push_str(&look);
        }
        // The mark does not decide whether a row counts as deleted, so a refusal by the application does not matter.
        steps.push_str("reasons := refused; whys := why;");
        steps.push_str(&each(&format!(
            "UPDATE {table} AS u SET deleted_at = moment FROM unnest({{rows}}) AS n (clerk_id)
             WHERE u.clerk_id = n.clerk_id AND u.deleted_at IS NULL
             RETURNING u.clerk_id, u.clerk_id = n.clerk_id AS done",
        )));
        let block = block(ids, at, &steps);
        let text =
            format!("SET CONSTRAINTS ALL IMMEDIATE; {block}; SELECT current_setting('clerk_sync.fates')");
        let rows = session.raw_rows(&text).await?;
        let told: String = get(rows.last().ok_or_else(|| StoreError::new(ErrorKind::Broken))?, 0)?;
        let Told { deleted, anonymized, standing, mut refused } =
            serde_json::from_str(&told).map_err(|_| StoreError::new(ErrorKind::Broken))?;
        let anonymized = anonymized.into_iter().map(|id| (id, RowFate::Anonymized));
        let deleted = deleted.into_iter().map(|id| (id, RowFate::Deleted));
        let mut fates: HashMap<String, RowFate> = anonymized.chain(deleted).collect();
        for id in standing {
            let reason = refused.remove(&id).map_or_else(StoreError::unmoved, Refusal::error);
            fates.insert(id, RowFate::Stands(reason));
        }
        let known = |(id, fate)| Some((ClerkId::new(entity, id)?, fate));
        Ok(fates.into_iter().filter_map(known).collect())
    }
}

/// See [`Session::mark`](crate::store::Session::mark).
pub(super) async fn mark(
    session: &mut Session,
    marks: &[(ClerkId, DateTime<Utc>)],
    mark: Mark,
) -> Result<()> {
    let (set, found) = match mark {
        Mark::Set => ("n.at", "u.deleted_at IS NULL"),
        Mark::Unset => ("NULL", "u.deleted_at = n.at"),
    };
    for (entity, marks) in objects::by_kind(marks, |(id, _)| id.entity()) {
        let ids: Vec<ClerkId> = marks.iter().map(|(id, _)| id.clone()).collect();
        let times: Vec<String> = marks.iter().map(|(_, at)| time(*at)).collect();
        let steps = format!(
            "times := string_to_array('{}', ',')::timestamptz[]; standing := ids; {}",
            times.join(","),
            each(&format!(
                "UPDATE {} AS u SET deleted_at = {set} FROM unnest(ids, times) AS n (clerk_id, at)
                 WHERE n.clerk_id = ANY ({{rows}}) AND u.clerk_id = n.clerk_id AND {found}
                 RETURNING u.clerk_id, u.clerk_id = n.clerk_id AS done",
                entity.table
            ))
        );
        session.run(&block(&ids, DateTime::UNIX_EPOCH, &steps)).await?;
    }
    Ok(())
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Apply a statement to all rows of `standing` together, or to each alone. Afterwards `hits` holds the ids for which it
/// succeeded, and `refused` those that the application refused. `{rows}` in the statement stands for the ids. The statement
/// returns the row's current `clerk_id`, and whether its result is as it should be.
fn each(statement: &str) -> String {
    let (all, alone) = (statement.replace("{rows}", "standing"), statement.replace("{rows}", "ARRAY[one]"));
    // In the trace of an error in clerk-sync's own statement, nothing precedes the statement's beginning.
    let begin: String =
        statement.lines().next().unwrap_or_default().chars().take_while(|c| *c != '{').collect();
    let begin = begin.replace('\'', "''");
    let reraise = format!(
        "GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, of_table = TABLE_NAME, of_column = COLUMN_NAME,
             of_constraint = CONSTRAINT_NAME, place = PG_EXCEPTION_CONTEXT;
         IF {PASSING}
             OR {OURS} AND strpos(split_part(place, '{begin}', 1), chr(10)) = 0 THEN
             RAISE;
         END IF;"
    );
    format!(
        "hits := '{{}}';
         IF cardinality(standing) > 0 THEN
             BEGIN
                 FOR hit IN {all} LOOP
                     IF NOT hit.done OR hit.clerk_id <> ALL (standing) THEN
                         RAISE SQLSTATE '{UNMOVED}';
                     END IF;
                     hits := hits || hit.clerk_id;
                 END LOOP;
             EXCEPTION WHEN OTHERS OR assert_failure THEN
                 {reraise}
                 hits := '{{}}';
                 FOREACH one IN ARRAY standing LOOP
                     BEGIN
                         FOR hit IN {alone} LOOP
                             IF NOT hit.done THEN
                                 RAISE SQLSTATE '{UNMOVED}';
                             END IF;
                             hits := hits || one;
                         END LOOP;
                     EXCEPTION WHEN OTHERS OR assert_failure THEN
                         {reraise}
                         refused := refused || one;
                         why := why || jsonb_build_array(state, of_table, of_column, of_constraint, left(place, 2000));
                     END;
                 END LOOP;
             END;
         END IF;"
    )
}

/// The complete block: the declarations that the steps need, the steps, and the result that it returns.
fn block(ids: &[ClerkId], at: DateTime<Utc>, steps: &str) -> String {
    let ids: Vec<String> = ids.iter().map(|id| hex::encode(id.as_str())).collect();
    format!(
        "DO $clerk_sync$
         #variable_conflict use_variable
         DECLARE
             ids text[] := ARRAY(
                 SELECT convert_from(decode(n.id, 'hex'), 'UTF8')
                 FROM unnest(string_to_array('{ids}', ',')) WITH ORDINALITY AS n (id, place) ORDER BY n.place
             );
             moment timestamptz := '{moment}';
             times timestamptz[];
             standing text[];
             deleted text[] := '{{}}';
             anonymized text[] := '{{}}';
             refused text[] := '{{}}';
             why jsonb[] := '{{}}';
             reasons text[] := '{{}}';
             whys jsonb[] := '{{}}';
             hits text[];
             hit record;
             one text;
             state text; of_table text; of_column text; of_constraint text; place text;
         BEGIN
             {steps}
             PERFORM set_config('clerk_sync.fates', jsonb_build_object(
                 'deleted', deleted, 'anonymized', anonymized, 'standing', standing,
                 -- If there are several reasons, the last one counts.
                 'refused', coalesce((
                     SELECT jsonb_object_agg(n.id, n.reason ORDER BY n.place)
                     FROM unnest(reasons, whys) WITH ORDINALITY AS n (id, reason, place)
                 ), '{{}}')
             )::text, true);
         END
         $clerk_sync$",
        ids = ids.join(","),
        moment = time(at),
    )
}
