//! `outbox_recipients.reference`: what a sink remembers of a user.

use super::{Postgres, get, sql};
use crate::{model::ClerkId, store::Result};

pub(super) async fn reference(store: &Postgres, sink: &str, id: &ClerkId) -> Result<Option<String>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT reference FROM outbox_recipients WHERE clerk_id = $1 AND sink = $2")
                .bind(id.as_str())
                .bind(sink),
        )
        .await?;
    session.commit().await?;
    rows.first().map_or(Ok(None), |row| get(row, 0))
}

pub(super) async fn keep_reference(
    store: &Postgres,
    sink: &str,
    id: &ClerkId,
    reference: &str,
) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    let kept = session
        .execute(
            // Never inserted: whoever is no recipient any more has been erased there.
            sql("UPDATE outbox_recipients SET reference = $3 WHERE clerk_id = $1 AND sink = $2")
                .bind(id.as_str())
                .bind(sink)
                .bind(reference),
        )
        .await?;
    session.commit().await?;
    Ok(kept == 1)
}
