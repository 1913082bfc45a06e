//! The index of `UNIQUE_EMAIL`.

use super::{Session, sql};
use crate::store::Result;

/// Make the index or remove it, unless it is so already. Where several users have one address, the newest claim keeps it.
pub(super) async fn set(session: &mut Session, schema: &str, wanted: bool) -> Result<()> {
    let query = sql("SELECT 1 FROM pg_indexes WHERE schemaname = $1 AND indexname = 'users_unique_email'");
    let is_there = !session.rows(query.bind(schema)).await?.is_empty();
    match (is_there, wanted) {
        (false, true) => make(session).await,
        (true, false) => session.run("DROP INDEX users_unique_email").await,
        _ => Ok(()),
    }
}

async fn make(session: &mut Session) -> Result<()> {
    // Nobody writes meanwhile.
    session.run("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE").await?;
    let lost = session.execute(give_up()).await?;
    session
        .run("CREATE UNIQUE INDEX users_unique_email ON users (lower(email)) WHERE deleted_at IS NULL")
        .await?;
    if lost > 0 {
        tracing::warn!(
            users = lost,
            "UNIQUE_EMAIL: users gave up an address that another has by a newer claim"
        );
    }
    Ok(())
}

fn give_up<'q>() -> super::Query<'q, super::Pg, super::PgArguments> {
    sql("WITH ranked AS (
             SELECT u.id, row_number() OVER (
                 PARTITION BY lower(u.email)
                 ORDER BY coalesce(e.deleted, false), e.version DESC NULLS LAST, u.clerk_id COLLATE \"C\" DESC
             ) AS place
             FROM users AS u
             LEFT JOIN entity_versions AS e ON e.kind = 'user' AND e.clerk_id = u.clerk_id
             WHERE u.email IS NOT NULL AND u.deleted_at IS NULL
         ), lost AS (
             UPDATE users AS u SET email = NULL FROM ranked AS r
             WHERE u.id = r.id AND r.place > 1
             RETURNING u.clerk_id
         )
         INSERT INTO audit_log (at, action, clerk_id, source, changed_fields, event_at)
         SELECT date_trunc('milliseconds', now()), 'USER_UPDATED', clerk_id, 'cli', ARRAY['email'],
                date_trunc('milliseconds', now())
         FROM lost ORDER BY clerk_id")
}
