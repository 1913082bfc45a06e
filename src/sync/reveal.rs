//! Recording in the audit trail that personal data is shown on explicit request, before it is shown.

use chrono::{DateTime, Utc};

use super::apply::{Repeats, end};
use crate::{
    entity::USER,
    model::{AuditAction, AuditEntry, ClerkId, Source, SvixId},
    store::{ErrorKind, Parked, Patience, Result, Store, StoreError},
};

/// The id in the audit line if it is unknown whose data is shown.
const UNKNOWN: &str = "unknown";

/// Record that the content of a delivery is shown now, and where.
///
/// # Errors
/// If the database cannot be used. Then the content must not be shown.
pub async fn reveal_delivery(
    store: &dyn Store,
    parked: &Parked,
    source: Source,
    now: DateTime<Utc>,
) -> Result<()> {
    let clerk_id = parked.clerk_id.clone().or_else(|| ClerkId::new(&USER, UNKNOWN));
    let clerk_id = clerk_id.ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
    reveal(store, &clerk_id, Some(&parked.svix_id), source, now).await
}

/// Record that a user's data, or the content of a delivery or message about them, is shown now, and where.
///
/// # Errors
/// If the database cannot be used. Then the data must not be shown.
pub async fn reveal(
    store: &dyn Store,
    clerk_id: &ClerkId,
    svix_id: Option<&SvixId>,
    source: Source,
    now: DateTime<Utc>,
) -> Result<()> {
    let entry = AuditEntry {
        at: now,
        action: AuditAction::Revealed,
        clerk_id: clerk_id.clone(),
        svix_id: svix_id.cloned(),
        source,
        changed_fields: Vec::new(),
        event_at: now,
        actor: None,
    };
    let mut repeats = Repeats::with(Patience::Normal);
    loop {
        let mut transaction = store.begin(Patience::Normal).await?;
        let written = transaction.audit(std::slice::from_ref(&entry)).await;
        match end(transaction, written).await {
            Err(error) if repeats.has_another(&error) => {}
            written => return written,
        }
    }
}
