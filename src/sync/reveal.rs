//! Showing somebody's data to a person who asked for it in so many words: not before it is written down that it was shown.

use chrono::{DateTime, Utc};

use super::apply::end;
use crate::{
    model::{AuditAction, AuditEntry, ClerkId, Source},
    store::{Patience, Result, Store},
};

/// Write down that a user's data is shown now.
///
/// # Errors
/// If the database cannot be used. Then nothing may be shown.
pub async fn reveal(store: &dyn Store, clerk_id: &ClerkId, now: DateTime<Utc>) -> Result<()> {
    let mut transaction = store.begin(Patience::Normal).await?;
    let entry = AuditEntry {
        at: now,
        action: AuditAction::UserRevealed,
        clerk_id: clerk_id.clone(),
        svix_id: None,
        source: Source::Dashboard,
        changed_fields: Vec::new(),
        event_at: now,
        actor: None,
    };
    let written = transaction.audit(&[entry]).await;
    end(transaction, written).await
}
