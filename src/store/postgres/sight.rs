//! Rows that row level security hides from clerk-sync. A policy reports no error: rows that it hides are not read, written or
//! deleted, as if they did not exist. So clerk-sync could not say that an erased row is gone.
//!
//! If a policy's expression uses no column, its value shows whether all rows are visible. Any other policy is assumed to hide
//! rows.

use sqlx::AssertSqlSafe;

use super::{Session, facts, get, sql};
use crate::store::{ErrorKind, Missing, Result, StoreError};

/// A clerk-sync table whose rows may be hidden. Names are quoted where SQL requires it.
pub(super) struct Hidden {
    table: String,
    role: String,
    remedy: String,
}

impl From<Hidden> for Missing {
    fn from(Hidden { table, role, remedy }: Hidden) -> Self {
        let what = format!(
            "row level security may hide rows of {table} from {role}, so that erasures may leave them in place"
        );
        Self { what, remedy }
    }
}

/// The error for a missing row that may only be hidden.
pub(super) fn explained(hidden: &[Hidden]) -> StoreError {
    let tables: Vec<&str> = hidden.iter().map(|hidden| hidden.table.as_str()).collect();
    let remedy = hidden.first().map_or("", |hidden| &hidden.remedy);
    StoreError::schema(format!(
        "row level security may hide rows of {}, so clerk-sync cannot know whether any is left: {remedy}",
        tables.join(", ")
    ))
}

/// The effect of a policy on clerk-sync's statements on a table.
struct Policy {
    name: String,
    permissive: bool,
    /// As in `pg_policy.polcmd`: `r`, `a`, `w`, `d` or `*`.
    command: String,
    /// Whether the policy makes every row visible. `check`: whether it allows writing every row.
    using: bool,
    check: bool,
}

impl Policy {
    /// Whether the policy allows all rows for this privilege; `None` if the policy does not apply to it.
    fn lets_all_through(&self, privilege: &str) -> Option<bool> {
        let (command, lets) = match privilege {
            "INSERT" => ("a", self.check),
            "UPDATE" => ("w", self.using && self.check),
            "DELETE" => ("d", self.using),
            _ => ("r", self.using),
        };
        (self.command == "*" || self.command == command).then_some(lets)
    }
}

/// The tables whose rows may be hidden from clerk-sync.
pub(super) async fn hidden(session: &mut Session) -> Result<Vec<Hidden>> {
    let rows = session
        .rows(
            sql("SELECT c.oid::bigint, c.relname::text, quote_ident(s.nspname) || '.' || quote_ident(c.relname),
                        quote_ident(current_user::text)
                 FROM unnest($1::text[]) AS n (name)
                 JOIN pg_class AS c ON c.oid = to_regclass(n.name)
                 JOIN pg_namespace AS s ON s.oid = c.relnamespace
                 WHERE c.relrowsecurity AND row_security_active(c.oid)
                 ORDER BY 3")
            .bind(facts::names().chain([facts::REMEMBERED]).collect::<Vec<_>>()),
        )
        .await?;
    let mut hidden = Vec::new();
    for row in &rows {
        let (oid, name): (i64, String) = (get(row, 0)?, get(row, 1)?);
        let policies = policies(session, oid).await?;
        let needed = facts::needed(&name);
        let restricts = |policy: &&Policy| {
            !policy.permissive
                && needed.iter().any(|privilege| policy.lets_all_through(privilege) == Some(false))
        };
        let is_open = |privilege: &&str| {
            policies
                .iter()
                .any(|policy| policy.permissive && policy.lets_all_through(privilege) == Some(true))
        };
        let (table, role): (String, String) = (get(row, 2)?, get(row, 3)?);
        let remedy = if let Some(Policy { name, .. }) = policies.iter().find(restricts) {
            // Another policy would not override it.
            format!("ALTER ROLE {role} BYPASSRLS; or drop policy {name} on {table}, which is restrictive")
        } else if !needed.iter().all(is_open) {
            format!(
                "CREATE POLICY clerk_sync ON {table} TO {role} USING (true) WITH CHECK (true); or, for every table at \
                 once, ALTER ROLE {role} BYPASSRLS;"
            )
        } else {
            continue;
        };
        hidden.push(Hidden { table, role, remedy });
    }
    Ok(hidden)
}

/// The policies of a table that apply to clerk-sync's role.
async fn policies(session: &mut Session, table: i64) -> Result<Vec<Policy>> {
    let rows = session
        .rows(
            sql("SELECT quote_ident(p.polname), p.polpermissive, p.polcmd::text,
                        -- An expression that uses a column or a subquery has no fixed value.
                        CASE WHEN p.polqual::text !~ '{(VAR|SUBLINK) ' THEN pg_get_expr(p.polqual, p.polrelid) END,
                        CASE WHEN p.polwithcheck IS NULL OR p.polwithcheck::text ~ '{(VAR|SUBLINK) ' THEN NULL
                             ELSE pg_get_expr(p.polwithcheck, p.polrelid) END,
                        p.polwithcheck IS NULL
                 FROM pg_policy AS p
                 WHERE p.polrelid = $1::oid
                   AND EXISTS (
                       SELECT FROM unnest(p.polroles) AS r (role)
                       -- Zero stands for PUBLIC.
                       WHERE r.role = 0 OR pg_has_role(r.role, 'USAGE')
                   )
                 ORDER BY p.polname")
            .bind(table),
        )
        .await?;
    let mut policies = Vec::new();
    for row in &rows {
        let (using, check): (Option<String>, Option<String>) = (get(row, 3)?, get(row, 4)?);
        let using = holds(session, using.as_deref()).await?;
        // Without a check of its own, a row that may be read may be written.
        let check = if get(row, 5)? { using } else { holds(session, check.as_deref()).await? };
        policies.push(Policy {
            name: get(row, 0)?,
            permissive: get(row, 1)?,
            command: get(row, 2)?,
            using,
            check,
        });
    }
    Ok(policies)
}

/// Whether this expression of a policy is true for clerk-sync, as it is evaluated for every statement on its table.
async fn holds(session: &mut Session, expression: Option<&str>) -> Result<bool> {
    let expression = match expression {
        None => return Ok(false),
        Some("true") => return Ok(true),
        Some(expression) => expression,
    };
    session.run("SAVEPOINT policy").await?;
    let asked =
        sqlx::query(AssertSqlSafe(format!("SELECT coalesce(({expression}), false)"))).persistent(false);
    let rows = session.rows(asked).await;
    session.run("ROLLBACK TO SAVEPOINT policy; RELEASE SAVEPOINT policy").await?;
    match rows {
        Ok(rows) => rows.first().map_or(Ok(false), |row| get(row, 0)),
        Err(error) if error.kind == ErrorKind::Unavailable => Err(error),
        Err(_) => Ok(false),
    }
}
