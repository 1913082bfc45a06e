//! Clear the columns of fields that left the allow-list: a field that is no longer synced is no longer kept.
//!
//! Each page is cleared in its own transaction, so that other transactions do not wait for long. A second run continues
//! an interrupted one. No audit lines are written and no times are changed, because the objects themselves did not
//! change. Anonymised rows are left as they are.

use serde::Serialize;

use crate::{
    model::{Entity, FieldSet},
    store::{self, Result, Store},
};

/// Rows checked in one transaction.
const PAGE: u32 = 1000;

/// What was cleared, or would be on a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Minimized {
    /// Rows with at least one cleared value.
    pub rows: u64,
    /// Number of cleared values per column.
    pub columns: Vec<(&'static str, u64)>,
    /// Rows that could not be cleared because of a constraint or trigger of the application.
    pub refused: u64,
}

/// Clear every column of a kind whose field is not in `keep`; on a dry run only count.
///
/// # Errors
/// If the database is not available. Columns cleared until then stay cleared.
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
