//! The queries that a backend writes by hand: about its catalogue, and about the migrations that are applied.

use async_trait::async_trait;

use super::{Dialect, Row, Statement, Value, values};
use crate::store::{ErrorKind, Migration, MigrationStatus, Result, StoreError, prefix};

static REMEMBERS: Statement = Statement::new(
    "SELECT 1 FROM {mysql information_schema.tables WHERE table_schema = database() AND table_name}{sqlite sqlite_schema
     WHERE type = 'table' AND name} = '_clerk_sync_migrations'",
);

static APPLIED: Statement =
    Statement::new("SELECT version, checksum FROM _clerk_sync_migrations ORDER BY version");

static REMEMBER: Statement = Statement::new(
    "INSERT INTO _clerk_sync_migrations (version, name, checksum, applied_at) VALUES ($1, $2, $3, {now})",
);

/// A connection that runs a backend's own queries and texts.
#[async_trait]
pub(in crate::store) trait Ask: Send {
    const DIALECT: Dialect;

    /// Every known migration.
    const MIGRATIONS: &'static [Migration];

    /// The rows of a query, which is sent as it is.
    async fn verbatim(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>>;

    /// Run clerk-sync's own text, perhaps of several statements, without preparing it. Returns the rows of all of them.
    async fn run(&mut self, text: &str) -> Result<Vec<Row>>;

    /// The rows of clerk-sync's own query.
    async fn ask(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        self.verbatim(&prefix::in_text(sql, Self::DIALECT), values).await
    }

    /// The row of a query that always returns one.
    async fn one(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Row> {
        let rows = self.ask(sql, values).await?;
        rows.into_iter().next().ok_or_else(|| StoreError::new(ErrorKind::Broken))
    }

    /// Versions and checksums of the applied migrations.
    async fn applied(&mut self) -> Result<Vec<(i64, String)>> {
        if self.verbatim(&REMEMBERS.sql(Self::DIALECT), values![]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.verbatim(&APPLIED.sql(Self::DIALECT), values![]).await?;
        rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
    }

    /// The migrations that are not applied yet.
    async fn pending(&mut self) -> Result<Vec<Migration>> {
        Migration::pending(Self::MIGRATIONS, &self.applied().await?)
    }

    /// Every known migration, and whether it is applied.
    async fn status(&mut self) -> Result<Vec<MigrationStatus>> {
        Ok(Migration::status(Self::MIGRATIONS, &self.applied().await?))
    }

    /// As [`status`](Self::status), after checking what was applied.
    async fn checked(&mut self) -> Result<Vec<MigrationStatus>> {
        Migration::checked(Self::MIGRATIONS, &self.applied().await?)
    }

    /// Record that a migration is applied.
    async fn remember(&mut self, migration: &Migration) -> Result<()> {
        let checksum = migration.checksum();
        let values = values![migration.version, migration.name, &checksum];
        self.verbatim(&REMEMBER.sql(Self::DIALECT), values).await.map(drop)
    }
}
