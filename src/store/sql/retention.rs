//! What goes after its time, and columns that are no longer kept.

use chrono::{DateTime, Utc};

use super::{Database, Purpose, Statement, objects, only, statements, values};
use crate::{
    model::{Anonymized, Entity, Field, FieldSet},
    store::{Minimized, Old, Result},
};

macro_rules! prune {
    ($table:literal, $old:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE {postgres ctid}{sqlite rowid} {in SELECT {postgres ctid}{sqlite rowid} FROM ",
            $table,
            " WHERE ",
            $old,
            " LIMIT $2{postgres  FOR UPDATE SKIP LOCKED}}"
        )
    };
}

statements! {
    COUNT_PROCESSED = "SELECT count(*) FROM processed_webhooks WHERE processed_at < $1";
    PRUNE_PROCESSED = prune!("processed_webhooks", "processed_at < $1 ORDER BY processed_at");

    COUNT_DEAD = "SELECT count(*) FROM webhook_queue WHERE state = 'dead' AND coalesce(dead_at, received_at) < $1";
    PRUNE_DEAD = prune!(
        "webhook_queue",
        "state = 'dead' AND coalesce(dead_at, received_at) < $1 ORDER BY coalesce(dead_at, received_at)"
    );

    COUNT_TOLD = "SELECT count(*) FROM outbox WHERE state <> 'pending' AND finished_at < $1 AND state <> 'dead'";
    PRUNE_TOLD = prune!("outbox", "state <> 'pending' AND finished_at < $1 AND state <> 'dead'");

    COUNT_UNTOLD = "SELECT count(*) FROM outbox WHERE state <> 'pending' AND finished_at < $1 AND state = 'dead'";
    PRUNE_UNTOLD = prune!("outbox", "state <> 'pending' AND finished_at < $1 AND state = 'dead'");

    COUNT_ACTIVITY = "SELECT count(*) FROM activity WHERE at < $1";
    PRUNE_ACTIVITY = prune!("activity", "at < $1 ORDER BY at");
}

/// How rows of a kind are counted and forgotten, and whether they say anything of a person.
fn statements(kind: Old) -> (&'static Statement, &'static Statement, bool) {
    match kind {
        Old::Processed => (&COUNT_PROCESSED, &PRUNE_PROCESSED, false),
        Old::Dead => (&COUNT_DEAD, &PRUNE_DEAD, true),
        Old::Told => (&COUNT_TOLD, &PRUNE_TOLD, true),
        Old::Untold => (&COUNT_UNTOLD, &PRUNE_UNTOLD, true),
        Old::Activity => (&COUNT_ACTIVITY, &PRUNE_ACTIVITY, false),
    }
}

pub(super) async fn count(store: &dyn Database, kind: Old, before: DateTime<Utc>) -> Result<u64> {
    let (statement, ..) = statements(kind);
    // Counting takes longer than a webhook may.
    let rows = store.fetch(Purpose::Scan, statement, values![before]).await?;
    only(&rows)?.get(0)
}

pub(super) async fn prune(store: &dyn Database, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64> {
    let (_, statement, is_personal) = statements(kind);
    let mut session = store.session(Purpose::WRITE).await?;
    let pruned = session.execute(statement, values![before, limit]).await?;
    if pruned > 0 && is_personal {
        session.removed_personal_data();
    }
    session.commit().await?;
    Ok(pruned)
}

/// See [`Erasures::minimize`](crate::store::Erasures::minimize).
pub(super) async fn minimize(
    store: &dyn Database,
    entity: &'static Entity,
    keep: FieldSet,
    after: i64,
    limit: u32,
    dry_run: bool,
) -> Result<Option<Minimized>> {
    let gone: Vec<&str> = entity.fields().filter(|field| !keep.contains(*field)).map(Field::name).collect();
    let [count, clear] = minimizing(entity, &gone);
    let mut session = store.session(if dry_run { Purpose::Page } else { Purpose::WRITE }).await?;
    let rows = session.rows(&count, values![after, limit]).await?;
    let row = only(&rows)?;
    let Some(last) = row.maybe(0)? else {
        session.commit().await?;
        return Ok(None);
    };
    let columns = (0..gone.len()).map(|column| row.get(column + 2)).collect::<Result<_>>()?;
    let page = Minimized { last, rows: row.get(1)?, columns };
    if page.rows > 0 && !dry_run {
        session.write_objects(entity.table, &clear, values![after, last]).await?;
        session.removed_personal_data();
    }
    session.commit().await?;
    Ok(Some(page))
}

/// The statements that count what these columns hold in the next rows, and clear it. Of an anonymised row everything is
/// cleared already that tells who it was.
fn minimizing(entity: &'static Entity, gone: &[&str]) -> [Statement; 2] {
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
        // Looked at again: somebody may have been anonymised since.
        Statement::made(format!("UPDATE {table} AS u SET {cleared} WHERE id > $1 AND id <= $2 AND {left_over}")),
    ]
}
