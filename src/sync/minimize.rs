//! Clearing columns whose fields left the allow-list: a field that is no longer synced is no longer kept.
//!
//! Page by page, each in a transaction of its own, so that nobody waits for it; asking again goes on. It writes no audit
//! line and moves no time: nothing happened to the objects. Rows that are anonymised are left as they are.

use serde::Serialize;

use crate::{
    model::{Entity, FieldSet},
    store::{self, Result, Store},
};

/// Rows looked at in one transaction.
const PAGE: u32 = 1000;

/// What was cleared, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Minimized {
    /// Rows of which something was cleared.
    pub rows: u64,
    /// How many values, column by column.
    pub columns: Vec<(&'static str, u64)>,
    /// Rows of which the application's own constraint or trigger keeps us from clearing anything.
    pub refused: u64,
}

/// Clear every column of a kind that is not among the fields to keep; on a dry run only count.
///
/// # Errors
/// If the database is not available. What was cleared stays cleared.
pub async fn minimize(
    store: &dyn Store,
    entity: &'static Entity,
    keep: FieldSet,
    dry_run: bool,
) -> Result<Minimized> {
    let gone = entity.fields().filter(|field| !keep.contains(*field));
    let mut minimized =
        Minimized { columns: gone.map(|field| (field.name(), 0)).collect(), ..Minimized::default() };
    let mut after = i64::MIN;
    let mut limit = PAGE;
    loop {
        let cleared = match store.minimize(entity, keep, after, limit, dry_run).await {
            Err(error) if error.is_about_the_data() && limit > 1 => {
                limit /= 2;
                continue;
            }
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "the columns of a row could not be cleared");
                minimized.refused += 1;
                store.minimize(entity, keep, after, 1, true).await?.map(store::Minimized::skipped)
            }
            page => page?,
        };
        let Some(page) = cleared else { break };
        after = page.last;
        limit = (2 * limit).min(PAGE);
        minimized.rows += page.rows;
        for ((_, count), more) in minimized.columns.iter_mut().zip(page.columns) {
            *count += more;
        }
    }
    Ok(minimized)
}
