//! How fast a backfill imports a million users, and 100,000 organizations with a million memberships, how much memory it needs,
//! and whether it keeps within Clerk's rate limit. Runs the real program against a fake of Clerk's Backend API in this process,
//! on one PostgreSQL.
//!
//! `BENCH_QUICK=1` imports a twentieth of that, `BENCH_PROGRAM` selects another build, `BENCH_POSTGRES_URL` another server.
#![expect(clippy::disallowed_methods, reason = "a benchmark uses the real clock")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::{
    env, fs,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use chrono::Utc;
use fake_clerk::{Behaviour, Bursts, Fake, Options, Request};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::runtime::Runtime;

const KEY: &str = "sk_live_YmVuY2g";

/// Clerk's limit of requests in any ten seconds for a production instance.
const ALLOWED: usize = 1000;

/// The default rate in requests per second with such a key.
const RATE: f64 = 90.0;

/// The number of members of each organization.
const MEMBERS: usize = 10;

const SCHEMA: &str = "clerk_bench_catch_up";

fn main() -> anyhow::Result<()> {
    let quick = env::var_os("BENCH_QUICK").is_some_and(|value| !value.is_empty());
    let users: usize = if quick { 50_000 } else { 1_000_000 };
    let url = env::var("BENCH_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let runtime = Runtime::new()?;
    let organizations = users / 10;
    let options =
        Options { users, organizations, members: MEMBERS, key: KEY.to_owned(), ..Options::default() };
    let fake = runtime.block_on(Fake::start(options, Arc::new(Utc::now)))?;
    println!("# Backfill of {users} users\n");
    println!(
        "| | took | rows/s | requests | most in 10 s | waits asked for | peak memory |\n|---|--:|--:|--:|--:|--:|--:|"
    );
    let all = [("users", users)];
    run(&runtime, &url, &fake, &all, "Clerk without limits", &["--rate", "10000"])?;
    fake.behave(Behaviour {
        latency: Duration::from_millis(50),
        failures: 0.01,
        bursts_of_429: Some(Bursts {
            every: Duration::from_secs(10),
            lasting: Duration::from_millis(200),
            retry_after: 1,
        }),
        ..Behaviour::default()
    });
    let pages = users.div_ceil(500);
    run(&runtime, &url, &fake, &all, "50 ms latency, 1 % 5xx, bursts of 429", &[])?;
    let all = [("organizations", organizations), ("organization_memberships", organizations * MEMBERS)];
    let what = format!("{organizations} organizations, {MEMBERS} members each, the same way");
    run(&runtime, &url, &fake, &all, &what, &["--sync-entities", "organization,organization_membership"])?;
    println!("\n{pages} pages at {RATE} requests/s: {:.1} s.", f64::from(u32::try_from(pages)?) / RATE);
    runtime.block_on(sql(&url, &format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")))?;
    Ok(())
}

fn run(
    runtime: &Runtime,
    url: &str,
    fake: &Fake,
    expected: &[(&str, usize)],
    what: &str,
    arguments: &[&str],
) -> anyhow::Result<()> {
    runtime.block_on(sql(url, &format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")))?;
    let before = fake.requests().len();
    let program = env::var("BENCH_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_clerk-sync").to_owned());
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(["backfill", "--json"])
        .args(arguments)
        .env("DATABASE_URL", url)
        .env("DATABASE_SCHEMA", SCHEMA)
        .env("CLERK_SECRET_KEY", KEY)
        .env("CLERK_API_URL", fake.url())
        .env("RUST_LOG", "warn")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_kib(&child));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(100));
    };
    let took = began.elapsed().as_secs_f64();
    ensure!(status.success(), "the backfill failed: {status}");
    let mut rows = 0;
    for (table, expected) in expected {
        let here = runtime.block_on(count(url, table))?;
        ensure!(here == *expected, "{here} {table} of {expected}");
        rows += here;
    }
    let requests = &fake.requests()[before..];
    let (busiest, waits) = (busiest(requests), waits(requests).as_secs_f64());
    ensure!(arguments.contains(&"--rate") || busiest <= ALLOWED, "{busiest} requests in 10 s");
    println!(
        "| {what} | {took:.1} s | {:.0} | {} | {busiest} | {waits:.1} s | {} MiB |",
        f64::from(u32::try_from(rows)?) / took,
        requests.len(),
        peak / 1024,
    );
    Ok(())
}

/// `VmHWM` while the process runs.
fn peak_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The most requests in any ten seconds.
fn busiest(requests: &[Request]) -> usize {
    let mut times: Vec<Instant> = requests.iter().map(|request| request.at).collect();
    times.sort();
    let mut from = 0;
    let mut most = 0;
    for (to, at) in times.iter().enumerate() {
        while *at - times[from] >= Duration::from_secs(10) {
            from += 1;
        }
        most = most.max(to + 1 - from);
    }
    most
}

/// How long Clerk asked the client to wait; overlapping waits count once.
fn waits(requests: &[Request]) -> Duration {
    let mut refused: Vec<Instant> =
        requests.iter().filter(|request| request.status == Some(429)).map(|request| request.at).collect();
    refused.sort();
    let asked = Duration::from_secs(1);
    let overlaps = refused.windows(2).map(|pair| asked.saturating_sub(pair[1] - pair[0])).sum::<Duration>();
    (asked * u32::try_from(refused.len()).unwrap_or(u32::MAX)).saturating_sub(overlaps)
}

async fn sql(url: &str, text: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await?;
    Ok(())
}

async fn count(url: &str, table: &str) -> anyhow::Result<usize> {
    let mut connection = PgConnection::connect(url).await?;
    let text = format!("SELECT count(DISTINCT clerk_id) FROM {SCHEMA}.{table}");
    let row = sqlx::raw_sql(AssertSqlSafe(text)).fetch_one(&mut connection).await?;
    usize::try_from(row.try_get::<i64, _>(0)?).context("a count")
}
