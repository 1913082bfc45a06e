//! The size of the database, and columns that are no longer kept.

use crate::entity::USER;

use super::{Postgres, Session, count, get, sql};
use crate::{
    model::FieldSet,
    store::{Minimized, Result, Space, StoreError, Trouble},
};

/// How large the whole database is. Its server's disk cannot be seen from here.
pub(super) async fn space(store: &Postgres) -> Result<Space> {
    let mut session = store.session(&store.begin_long).await?;
    let rows = session.rows(sql("SELECT pg_database_size(current_database())")).await?;
    session.commit().await?;
    let taken = rows.first().map_or(Ok(0), |row| count(row, 0))?;
    Ok(Space { taken, free: None })
}

pub(super) async fn minimize(
    store: &Postgres,
    keep: FieldSet,
    after: i64,
    limit: u32,
    dry_run: bool,
) -> Result<Option<Minimized>> {
    let gone: Vec<bool> = USER.fields().map(|field| !keep.contains(field)).collect();
    let mut session = store.session(&store.begin_page).await?;
    let page = count_columns(&mut session, &gone, after, limit).await?;
    if let Some(page) = page.as_ref().filter(|page| page.users > 0 && !dry_run) {
        clear_columns(&mut session, &gone, after, page.last).await?;
    }
    session.commit().await?;
    Ok(page)
}

/// What there is to clear in the next rows.
async fn count_columns(
    session: &mut Session,
    gone: &[bool],
    after: i64,
    limit: u32,
) -> Result<Option<Minimized>> {
    let rows = session
        .rows(
            sql("SELECT max(id), count(*) FILTER (WHERE left_over),
                        count(*) FILTER (WHERE left_over AND $3[1] AND email IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[2] AND email_verified IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[3] AND first_name IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[4] AND last_name IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[5] AND image_url IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[6] AND username IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[7] AND phone_number IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[8] AND external_id IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[9] AND public_metadata IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[10] AND unsafe_metadata IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[11] AND private_metadata IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[12] AND banned IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[13] AND locked IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[14] AND last_sign_in_at IS NOT NULL),
                        count(*) FILTER (WHERE left_over AND $3[15] AND last_active_at IS NOT NULL)
                 FROM (
                     SELECT u.*,
                         -- Of an anonymised row everything is cleared that tells who it was.
                         NOT (u.deleted_at IS NOT NULL AND coalesce(u.email, '') = 'deleted-' || u.id || '@anonymized.local') AND (
                             ($3[1] AND u.email IS NOT NULL) OR
                             ($3[2] AND u.email_verified IS NOT NULL) OR
                             ($3[3] AND u.first_name IS NOT NULL) OR
                             ($3[4] AND u.last_name IS NOT NULL) OR
                             ($3[5] AND u.image_url IS NOT NULL) OR
                             ($3[6] AND u.username IS NOT NULL) OR
                             ($3[7] AND u.phone_number IS NOT NULL) OR
                             ($3[8] AND u.external_id IS NOT NULL) OR
                             ($3[9] AND u.public_metadata IS NOT NULL) OR
                             ($3[10] AND u.unsafe_metadata IS NOT NULL) OR
                             ($3[11] AND u.private_metadata IS NOT NULL) OR
                             ($3[12] AND u.banned IS NOT NULL) OR
                             ($3[13] AND u.locked IS NOT NULL) OR
                             ($3[14] AND u.last_sign_in_at IS NOT NULL) OR
                             ($3[15] AND u.last_active_at IS NOT NULL)
                         ) AS left_over
                     FROM users AS u
                     WHERE id > $1
                     ORDER BY id
                     LIMIT $2
                 ) AS page")
            .bind(after)
            .bind(i64::from(limit))
            .bind(gone),
        )
        .await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    let Some(last) = get(row, 0)? else { return Ok(None) };
    let mut columns = vec![0; USER.columns.len()];
    for (index, column) in columns.iter_mut().enumerate() {
        *column = count(row, index + 2)?;
    }
    Ok(Some(Minimized { last, users: count(row, 1)?, columns }))
}

async fn clear_columns(session: &mut Session, gone: &[bool], after: i64, last: i64) -> Result<()> {
    session
        .execute_on_users(
            sql("UPDATE users AS u
                 SET email = CASE WHEN $3[1] THEN NULL ELSE u.email END,
                     email_verified = CASE WHEN $3[2] THEN NULL ELSE u.email_verified END,
                     first_name = CASE WHEN $3[3] THEN NULL ELSE u.first_name END,
                     last_name = CASE WHEN $3[4] THEN NULL ELSE u.last_name END,
                     image_url = CASE WHEN $3[5] THEN NULL ELSE u.image_url END,
                     username = CASE WHEN $3[6] THEN NULL ELSE u.username END,
                     phone_number = CASE WHEN $3[7] THEN NULL ELSE u.phone_number END,
                     external_id = CASE WHEN $3[8] THEN NULL ELSE u.external_id END,
                     public_metadata = CASE WHEN $3[9] THEN NULL ELSE u.public_metadata END,
                     unsafe_metadata = CASE WHEN $3[10] THEN NULL ELSE u.unsafe_metadata END,
                     private_metadata = CASE WHEN $3[11] THEN NULL ELSE u.private_metadata END,
                     banned = CASE WHEN $3[12] THEN NULL ELSE u.banned END,
                     locked = CASE WHEN $3[13] THEN NULL ELSE u.locked END,
                     last_sign_in_at = CASE WHEN $3[14] THEN NULL ELSE u.last_sign_in_at END,
                     last_active_at = CASE WHEN $3[15] THEN NULL ELSE u.last_active_at END
                 WHERE u.id > $1 AND u.id <= $2
                   -- Looked at again: somebody may have been anonymised since.
                   AND NOT (u.deleted_at IS NOT NULL AND coalesce(u.email, '') = 'deleted-' || u.id || '@anonymized.local')
                   AND (
                       ($3[1] AND u.email IS NOT NULL) OR
                       ($3[2] AND u.email_verified IS NOT NULL) OR
                       ($3[3] AND u.first_name IS NOT NULL) OR
                       ($3[4] AND u.last_name IS NOT NULL) OR
                       ($3[5] AND u.image_url IS NOT NULL) OR
                       ($3[6] AND u.username IS NOT NULL) OR
                       ($3[7] AND u.phone_number IS NOT NULL) OR
                       ($3[8] AND u.external_id IS NOT NULL) OR
                       ($3[9] AND u.public_metadata IS NOT NULL) OR
                       ($3[10] AND u.unsafe_metadata IS NOT NULL) OR
                       ($3[11] AND u.private_metadata IS NOT NULL) OR
                       ($3[12] AND u.banned IS NOT NULL) OR
                       ($3[13] AND u.locked IS NOT NULL) OR
                       ($3[14] AND u.last_sign_in_at IS NOT NULL) OR
                       ($3[15] AND u.last_active_at IS NOT NULL)
                   )")
            .bind(after)
            .bind(last)
            .bind(gone),
        )
        .await?;
    Ok(())
}
