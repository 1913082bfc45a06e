//! The server for all measurements: the benchmark's schemas, filled with users, and statistics from the server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, PgPool, Postgres, Row, Transaction,
    postgres::{PgPoolOptions, PgRow},
};
use tokio::{task::AbortHandle, time::sleep};
use url::Url;

use crate::{
    events, process,
    service::{Mode, Place},
};

/// The benchmark creates and drops only schemas with this prefix.
const PREFIX: &str = "clerk_bench_";

/// An arbitrary number that no other program is likely to use.
const ONE_BENCH_AT_A_TIME: i64 = 0x63_6c65_726b_6265;

/// How often the server's activity is sampled.
const GLANCE: Duration = Duration::from_millis(50);

/// Ids of the initial users, as [`events::existing_user`] computes them.
const ID: &str = "'user_1' || lpad(n::text, 8, '0') || lpad((n * 2654435761 % 4294967296)::text, 18, '0')";

#[derive(Clone)]
pub(crate) struct Database {
    pool: PgPool,
    url: Url,
}

impl Database {
    /// Connect, and remove the remains of an earlier run.
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let url = Url::parse(url).context("BENCH_POSTGRES_URL is not a URL")?;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .idle_timeout(None)
            .acquire_timeout(Duration::from_secs(5))
            .connect(with_name(&url, "clerk-sync bench").as_str())
            .await
            .context("no PostgreSQL there: start one, or set BENCH_POSTGRES_URL to another")?;
        let mut keeper = pool.acquire().await?.detach();
        let alone: bool = sqlx::query("SELECT pg_try_advisory_lock($1)")
            .bind(ONE_BENCH_AT_A_TIME)
            .fetch_one(&mut keeper)
            .await?
            .get(0);
        if !alone {
            bail!("another benchmark is running on this server");
        }
        // Held until the process ends.
        std::mem::forget(keeper);
        let database = Self { pool, url };
        database.clear().await?;
        Ok(database)
    }

    /// The server's URL for a client of this name; the name identifies its backends.
    pub(crate) fn url(&self, name: &str) -> String {
        with_name(&self.url, name).into()
    }

    /// A schema of the benchmark, for a service in this mode.
    pub(crate) fn place(&self, mode: Mode, schema: &str) -> Place {
        Place { url: self.url(mode.client()), schema: Some(schema.to_owned()) }
    }

    /// The full name of a schema.
    pub(crate) fn schema(name: &str) -> String {
        format!("{PREFIX}{name}")
    }

    async fn run(&self, text: impl Into<String>) -> anyhow::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(text.into())).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn drop(&self, schema: &str) -> anyhow::Result<()> {
        self.run(format!("SET client_min_messages = error; DROP SCHEMA IF EXISTS {schema} CASCADE")).await
    }

    /// Drop all schemas of the benchmark.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let left = sqlx::query("SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)")
            .bind(PREFIX)
            .fetch_all(&self.pool)
            .await?;
        for row in left {
            self.drop(&row.get::<String, _>(0)).await?;
        }
        Ok(())
    }

    /// Fill migrated tables with users as a backfill would leave them. Each has a register, the id of a processed webhook
    /// (recent, so that the service does not prune it) and an audit line. Then do the work of autovacuum.
    pub(crate) async fn fill(&self, schema: &str, users: u64) -> anyhow::Result<()> {
        let at = events::signed_up();
        let milliseconds = at.timestamp_millis();
        self.run(format!(
            "SET search_path = {schema};
             INSERT INTO users (clerk_id, email, first_name, last_name, image_url, created_at, updated_at, synced_at)
             SELECT {ID}, substr({ID}, 6) || '@example.com', 'Ada', 'Byron', 'https://img.clerk.com/sample', '{at}', '{at}',
                    '{at}'
             FROM generate_series(1, {users}::bigint) AS n;
             INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
             SELECT 'user', {ID}, {milliseconds}, {milliseconds}, 'msg_1' || lpad(n::text, 26, '0'), false
             FROM generate_series(1, {users}::bigint) AS n;
             INSERT INTO processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at)
             SELECT 'msg_1' || lpad(n::text, 26, '0'), 'user.created', 'applied', {ID}, '{at}', now()
             FROM generate_series(1, {users}::bigint) AS n;
             INSERT INTO audit_log (at, action, clerk_id, svix_id, source, changed_fields, event_at)
             SELECT '{at}', 'USER_CREATED', {ID}, 'msg_1' || lpad(n::text, 26, '0'), 'webhook',
                    '{{email,first_name,last_name,image_url}}', '{at}'
             FROM generate_series(1, {users}::bigint) AS n;"
        ))
        .await?;
        for table in ["users", "entity_versions", "processed_webhooks", "audit_log"] {
            self.run(format!("VACUUM (ANALYZE) {schema}.{table}")).await?;
        }
        // Write out the initial data now, so that the server does not do so during a measurement. Not every user may do this.
        if let Err(error) = self.run("CHECKPOINT").await {
            println!("no CHECKPOINT before measuring: {error}");
        }
        Ok(())
    }

    /// The number of recorded events, stored users and audit lines.
    pub(crate) async fn counts(&self, schema: &str) -> anyhow::Result<[i64; 3]> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT (SELECT count(*) FROM {schema}.processed_webhooks), (SELECT count(*) FROM {schema}.users),
                    (SELECT count(*) FROM {schema}.audit_log)"
        )))
        .fetch_one(&self.pool)
        .await?;
        Ok([row.get(0), row.get(1), row.get(2)])
    }

    /// Replace the contents of the queue with this many deliveries.
    pub(crate) async fn fill_queue(&self, schema: &str, deliveries: u64) -> anyhow::Result<()> {
        self.run(format!(
            "SET search_path = {schema};
             TRUNCATE webhook_queue;
             INSERT INTO webhook_queue
                 (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at)
             SELECT 'msg_1' || lpad(n::text, 26, '0'), 'user.updated', {ID}, convert_to(repeat('x', 500), 'UTF8'),
                    'pending', 0, now() - interval '1 hour' + n * interval '1 ms', now()
             FROM generate_series(1, {deliveries}::bigint) AS n;"
        ))
        .await?;
        self.run(format!("VACUUM (ANALYZE) {schema}.webhook_queue")).await
    }

    /// The number of waiting deliveries.
    pub(crate) async fn waiting(&self, schema: &str) -> anyhow::Result<i64> {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {schema}.webhook_queue"));
        Ok(sqlx::query(count).fetch_one(&self.pool).await?.get(0))
    }

    /// Whether a delivery waits that is due at this time or later. The query skips earlier index entries, which may be dead.
    pub(crate) async fn is_waiting(&self, schema: &str, since: DateTime<Utc>) -> anyhow::Result<bool> {
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql("SET LOCAL enable_seqscan = off").execute(&mut *transaction).await?;
        let first = AssertSqlSafe(format!(
            "SELECT next_attempt_at FROM {schema}.webhook_queue WHERE state = 'pending' AND next_attempt_at >= $1
             ORDER BY next_attempt_at LIMIT 1"
        ));
        let first = sqlx::query(first).bind(since).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(first.is_some())
    }

    /// A transaction with a snapshot of the current tables. Until it is dropped, the server cannot clean up rows that die
    /// meanwhile.
    pub(crate) async fn old_snapshot(&self, schema: &str) -> anyhow::Result<Transaction<'static, Postgres>> {
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *transaction).await?;
        sqlx::query(AssertSqlSafe(format!("SELECT count(*) FROM {schema}.users")))
            .fetch_one(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// The number of live rows in the schema's tables, the number of dead rows according to the server, and the size of tables
    /// and indexes in MiB.
    pub(crate) async fn rows(&self, schema: &str) -> anyhow::Result<[i64; 3]> {
        let row = sqlx::query(
            "SELECT sum(n_live_tup)::bigint, sum(n_dead_tup)::bigint, (sum(pg_total_relation_size(relid)) / 1048576)::bigint
             FROM pg_stat_user_tables WHERE schemaname = $1",
        )
        .bind(schema)
        .fetch_one(&self.pool)
        .await?;
        Ok([row.get(0), row.get(1), row.get(2)])
    }

    /// The settings of the server that matter, one per line.
    pub(crate) async fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut settings = Vec::new();
        for name in [
            "server_version",
            "synchronous_commit",
            "fsync",
            "full_page_writes",
            "wal_sync_method",
            "wal_level",
            "shared_buffers",
            "max_wal_size",
            "autovacuum",
            "shared_preload_libraries",
        ] {
            let value = sqlx::query("SELECT current_setting($1)").bind(name).fetch_one(&self.pool).await?;
            settings.push((name.to_owned(), value.get::<String, _>(0)));
        }
        let row = sqlx::query(
            "SELECT datcollate::text, coalesce((SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()), 'no')
             FROM pg_database WHERE datname = current_database()",
        )
        .fetch_one(&self.pool)
        .await?;
        settings.push(("collation".to_owned(), row.get(0)));
        settings.push(("TLS to the server".to_owned(), row.get(1)));
        Ok(settings)
    }

    /// The processor time that the backends of this client have used; `None` if they run on another machine.
    pub(crate) async fn backends_cpu(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let rows = sqlx::query("SELECT pid FROM pg_stat_activity WHERE application_name = $1")
            .bind(name)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(|row| process::cpu(row.get::<i32, _>(0).unsigned_abs())).sum())
    }

    /// Sample the statements that the benchmark's clients run.
    pub(crate) fn watch(&self) -> Watch {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let (pool, into) = (self.pool.clone(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let rows = sqlx::query(
                    "SELECT application_name, query FROM pg_stat_activity
                     WHERE starts_with(application_name, 'bench: ') AND state = 'active'",
                )
                .fetch_all(&pool)
                .await
                .unwrap_or_default();
                count(&mut into.lock().unwrap_or_else(std::sync::PoisonError::into_inner), &rows);
                sleep(GLANCE).await;
            }
        });
        Watch { seen, task: task.abort_handle() }
    }
}

/// Statement and client, and the number of samples that found it running.
type Seen = BTreeMap<(String, String), u32>;

/// Samples the server's activity.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
}

impl Watch {
    /// Stop sampling; returns the counts.
    pub(crate) fn finish(self) -> Seen {
        self.task.abort();
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

fn count(seen: &mut Seen, rows: &[PgRow]) {
    for row in rows {
        *seen.entry((plain(row.get(1)), row.get(0))).or_insert(0) += 1;
    }
}

/// A statement on one line, without comments.
fn plain(statement: &str) -> String {
    let lines = statement.lines().map(|line| line.split("--").next().unwrap_or_default());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

fn with_name(url: &Url, name: &str) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut().append_pair("application_name", name);
    url
}
