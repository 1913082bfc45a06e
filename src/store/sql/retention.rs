//! The removal of expired rows, and of columns that are no longer kept.

use super::{Statement, objects, statements};
use crate::{
    model::{Anonymized, Entity},
    store::Old,
};

macro_rules! prune {
    ($table:literal, $old:literal) => {
        concat!(
            "{mysql DELETE FROM ",
            $table,
            " WHERE ",
            $old,
            " LIMIT $2}{postgres|sqlite DELETE FROM ",
            $table,
            " WHERE {postgres ctid}{sqlite rowid} {in SELECT {postgres ctid}{sqlite rowid} FROM ",
            $table,
            " WHERE ",
            $old,
            " LIMIT $2{postgres  FOR UPDATE SKIP LOCKED}}}"
        )
    };
}

statements! {
    COUNT_PROCESSED = "SELECT count(*) FROM processed_webhooks WHERE processed_at < $1";
    PRUNE_PROCESSED = prune!("processed_webhooks", "processed_at < $1 ORDER BY processed_at");

    COUNT_DEAD = "SELECT count(*) FROM webhook_queue
        WHERE {postgres|sqlite state = 'dead' AND coalesce(dead_at, received_at)}{mysql dead_since} < $1";
    PRUNE_DEAD = prune!(
        "webhook_queue",
        "{postgres|sqlite state = 'dead' AND coalesce(dead_at, received_at) < $1 ORDER BY coalesce(dead_at, received_at)}{mysql
         dead_since < $1 ORDER BY dead_since}"
    );

    COUNT_TOLD = "SELECT count(*) FROM outbox WHERE {postgres|sqlite state <> 'pending' AND finished_at < $1 AND state <> 'dead'}{mysql state IN ('delivered', 'discarded') AND finished_at < $1}";
    PRUNE_TOLD = prune!("outbox", "{postgres|sqlite state <> 'pending' AND finished_at < $1 AND state <> 'dead'}{mysql state IN ('delivered', 'discarded') AND finished_at < $1}");

    COUNT_UNTOLD = "SELECT count(*) FROM outbox WHERE {postgres|sqlite state <> 'pending' AND finished_at < $1 AND state = 'dead'}{mysql state = 'dead' AND finished_at < $1}";
    PRUNE_UNTOLD = prune!("outbox", "{postgres|sqlite state <> 'pending' AND finished_at < $1 AND state = 'dead'}{mysql state = 'dead' AND finished_at < $1}");

    COUNT_ACTIVITY = "SELECT count(*) FROM activity WHERE at < $1";
    PRUNE_ACTIVITY = prune!("activity", "at < $1 ORDER BY at");
}

/// The statements that count and delete rows of a kind, and whether the rows hold personal data.
pub(super) fn statements(kind: Old) -> (&'static Statement, &'static Statement, bool) {
    match kind {
        Old::Processed => (&COUNT_PROCESSED, &PRUNE_PROCESSED, false),
        Old::Dead => (&COUNT_DEAD, &PRUNE_DEAD, true),
        Old::Told => (&COUNT_TOLD, &PRUNE_TOLD, true),
        Old::Untold => (&COUNT_UNTOLD, &PRUNE_UNTOLD, true),
        Old::Activity => (&COUNT_ACTIVITY, &PRUNE_ACTIVITY, false),
    }
}

/// The statements that count the values of these columns in the next rows, and clear them. Anonymised rows are skipped, because
/// everything that identifies a person is already cleared there.
pub(super) fn minimizing(entity: &'static Entity, gone: &[&str]) -> [Statement; 2] {
    let table = entity.table;
    let each = |of: fn(&str) -> String, between: &str| {
        gone.iter().map(|name| of(name)).collect::<Vec<_>>().join(between)
    };
    let address = entity.fields().find(|field| field.anonymized == Anonymized::Address);
    let is_somebody = address.map_or_else(String::new, |address| {
        let (name, anonymous) = (address.name(), objects::anonymous(address));
        format!("NOT (u.deleted_at IS NOT NULL AND coalesce(u.{name}, '') = {anonymous}) AND ")
    });
    let left_over = format!(
        "{is_somebody}({})",
        if gone.is_empty() { "false".to_owned() } else { each(|name| format!("{name} IS NOT NULL"), " OR ") }
    );
    let counts = each(|name| format!(", count(CASE WHEN left_over THEN {name} END)"), "");
    let cleared = each(|name| format!("{name} = NULL"), ", ");
    [
        Statement::made(format!(
            "SELECT max(id), count(CASE WHEN left_over THEN 1 END){counts}
             FROM (SELECT *, {left_over} AS left_over FROM {table} AS u WHERE id > $1 ORDER BY id LIMIT $2) AS page"
        )),
        // Checked again, because a user may have been anonymised meanwhile.
        Statement::made(format!("UPDATE {table} AS u SET {cleared} WHERE id > $1 AND id <= $2 AND {left_over}")),
    ]
}
