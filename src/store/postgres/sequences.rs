//! Identity sequences that are behind the rows that they number, as some ways of restoring a backup leave them.
//!
//! Each new row then gets a number that is taken, and the primary key refuses it. Neither the application nor the delivery is
//! at fault. If clerk-sync may advance the sequence, it does so and begins again. If not, it reports the statement that fixes
//! it.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use super::{Session, facts::facts, sql};
use crate::{
    entity,
    model::Entity,
    store::{BehindSequence, ErrorKind, Result, StoreError},
};

/// An arbitrary number that no other program is likely to use. The lock keeps two processes from advancing a sequence at once.
const LOCK: i64 = 0x63_6c65_726b_7365;

/// Checks and advances the sequences of one schema.
pub(super) struct Sequences {
    pub(super) schema: String,
    /// The text that opens a transaction.
    pub(super) begin: String,
    /// Tables that were already logged because clerk-sync may not advance their sequences.
    told: Mutex<HashSet<String>>,
}

impl Sequences {
    pub(super) fn new(schema: String, begin: String) -> Self {
        Self { schema, begin, told: Mutex::default() }
    }

    /// The result of an insertion. If a new row's number was taken, this ends the transaction and opens another one. The error
    /// then says to begin again, or how to fix the sequence.
    pub(super) async fn checked<T>(&self, session: &mut Session, inserted: Result<T>) -> Result<T> {
        let Err(error) = inserted else { return inserted };
        let mut numbered = entity::ALL.iter().map(|entity| entity.table).chain(["audit_log", "outbox"]);
        match numbered.find(|table| is_taken_number(&error, table)) {
            Some(table) => {
                // The failed statement is undone, but sequences are not transactional.
                session.run("ROLLBACK").await?;
                session.run(&self.begin).await?;
                let left = self.set_forward(session, Some(table)).await?;
                session.run("COMMIT").await?;
                session.run(&self.begin).await?;
                Err(match left.into_iter().find(|left| left.table == table) {
                    // The sequence was advanced, now or shortly before.
                    None => StoreError::new(ErrorKind::Raced),
                    Some(left) => {
                        StoreError { place: Some(format!("{}: {}", left.found(), left.remedy())), ..error }
                    }
                })
            }
            None => Err(error),
        }
    }

    /// Advance the sequences that are behind; returns those that clerk-sync may not advance. A sequence that it may not read
    /// counts as behind only if a number of its table was `taken`.
    pub(super) async fn set_forward(
        &self,
        session: &mut Session,
        taken: Option<&str>,
    ) -> Result<Vec<BehindSequence>> {
        session.rows(sql("SELECT pg_advisory_xact_lock($1)::text").bind(LOCK)).await?;
        let mut left = Vec::new();
        for behind in behind(session, &self.schema).await? {
            if behind.next.is_none() && taken != Some(&*behind.table) {
                continue;
            }
            if behind.next.is_some() && behind.ours_to_set {
                let statement = sql("SELECT setval($1::regclass, $2)::text");
                session.rows(statement.bind(behind.sequence.clone()).bind(behind.highest)).await?;
                tracing::warn!(
                    table = &*behind.table,
                    next = behind.next,
                    highest = behind.highest,
                    "an identity sequence was behind the rows of its table, as can happen after a restore: clerk-sync advanced it"
                );
                continue;
            }
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(behind.table.clone()) {
                tracing::error!(table = &*behind.table, remedy = behind.remedy(), "{}", behind.found());
            }
            left.push(behind);
        }
        Ok(left)
    }
}

/// Whether an identity column generated a number that another row already has.
fn is_taken_number(error: &StoreError, table: &str) -> bool {
    error.code.as_deref() == Some("23505")
        && error.place.as_deref() == Some(format!("table {table}, constraint {table}_pkey").as_str())
}

/// Every sequence whose next number is not above the highest one in use, and those that clerk-sync may not read.
pub(super) async fn behind(session: &mut Session, schema: &str) -> Result<Vec<BehindSequence>> {
    let of_kind =
        |entity: &&Entity| format!("SELECT '{0}' AS name, max(id) AS highest FROM {0}", entity.table);
    let objects = entity::ALL.iter().map(of_kind).collect::<Vec<_>>().join(" UNION ALL ");
    let query = format!(
        "SELECT n.name AS table, s.name AS sequence, n.highest, next.number AS next,
                has_sequence_privilege(q.seqrelid, 'UPDATE') AS ours_to_set
         FROM (
             {objects}
             UNION ALL
             -- A number that a seal covers must not be used again, even if its line is gone.
             SELECT 'audit_log', greatest(max(id), (SELECT max(last_id) FROM (
                 SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1
             ) AS newest)) FROM audit_log
             UNION ALL
             SELECT 'outbox', max(id) FROM outbox
         ) AS n
         CROSS JOIN LATERAL (SELECT pg_get_serial_sequence(quote_ident($1) || '.' || n.name, 'id') AS name) AS s
         JOIN pg_sequence AS q ON q.seqrelid = s.name::regclass
         CROSS JOIN LATERAL (
             SELECT CASE WHEN has_sequence_privilege(q.seqrelid, 'SELECT, USAGE')
                         THEN coalesce(pg_sequence_last_value(q.seqrelid) + q.seqincrement, q.seqstart) END
                    AS number
         ) AS next
         WHERE q.seqincrement > 0 AND n.highest IS NOT NULL AND coalesce(next.number <= n.highest, true)
         ORDER BY n.name"
    );
    facts(session, schema, query).await
}
