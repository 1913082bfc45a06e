//! Events per second, latency and memory of the service in normal operation, compared with the same service with one event per
//! transaction, and with the same batches straight into SQL. One run, one server.
//!
//! Runs are interleaved and medians are shown, because machines are noisy. `docs/benchmarks.md` explains the results; run this
//! with `scripts/bench`.
#![expect(clippy::disallowed_methods, reason = "a benchmark uses the real clock")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::cast_precision_loss, reason = "counts of a few million fit a float")]

mod baseline;
mod database;
mod distance;
mod endurance;
mod events;
mod load;
mod mysql;
mod process;
mod queue;
mod service;
mod straight;
mod stream;
mod viewer;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::{Duration, Instant},
};

use chrono::Utc;
use clerk_sync::clerk::signature::Secret;
use tokio::runtime::Runtime;

use self::{
    database::Database,
    events::{Event, Events, Person, SECRET},
    load::{Load, Report, drive},
    service::{Mode, Service},
    straight::{Writer, batches},
    viewer::Viewer,
};

/// The same allocator as the program, so that its stand-in is no slower.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

const CONNECTIONS: usize = 256;

/// As fast as answers arrive.
const FLAT_OUT: Load = Load { connections: CONNECTIONS, every: None };

/// Targets for a quiet machine with two cores that also runs the database and the sender.
mod wanted {
    pub(super) const OVER_ONE_BY_ONE: f64 = 5.0;
    pub(super) const OF_STRAIGHT_SQL: f64 = 0.5;
    pub(super) const EVENTS_A_SECOND: f64 = 8_000.0;
    pub(super) const P99_MILLISECONDS: f64 = 25.0;
    pub(super) const P99_BESIDE_DASHBOARD: f64 = 1.1;
    pub(super) const COST_OF_USERS: [(u64, f64); 2] = [(1_000_000, 1.2), (5_000_000, 1.35)];
    pub(super) const ACCEPTED_OF_INLINE: f64 = 1.0;
    pub(super) const DRAINED_OF_INLINE: f64 = 0.5;
    pub(super) const STREAM_OF_DATABASE: f64 = 1.5;
    pub(super) const STREAM_P99_MILLISECONDS: f64 = 10.0;
    pub(super) const CLAIM_AMONG_MANY: f64 = 1.5;
    pub(super) const MYSQL_OF_POSTGRES: f64 = 0.6;
    pub(super) const MYSQL_COST_OF_A_MILLION: f64 = 1.5;
    pub(super) const MYSQL_OVER_ONE_BY_ONE: f64 = 4.0;
    pub(super) const OVER_HANDLER: f64 = 10.0;
    pub(super) const FASTER: f64 = 1.6;
    pub(super) const FASTER_FAR: f64 = 2.0;
    pub(super) const CHEAPER: f64 = 0.55;
    pub(super) const CHEAPER_IN_DATABASE: f64 = 0.75;
    pub(super) const P99_TO_BASELINE: f64 = 0.6;
    pub(super) const P50_FAR: f64 = 0.4;
    pub(super) const FASTER_ON_SQLITE: f64 = 1.5;
    pub(super) const LONGEST_MILLISECONDS: f64 = 50.0;
    pub(super) const BESIDE_A_SNAPSHOT: f64 = 0.8;
    pub(super) const PEAK_MIB: f64 = 64.0;
}

/// On a slow or busy machine, no new round of a part begins after this time.
const LONGEST_PART: Duration = Duration::from_mins(2);

/// The amount of work.
struct Size {
    rounds: usize,
    /// Events per run, by measurement.
    grouped: usize,
    one_by_one: usize,
    paced: usize,
    populations: Vec<u64>,
    /// The number of waiting deliveries in the test of claims.
    waiting: u64,
}

impl Size {
    fn full() -> Self {
        let populations = vec![10_000, 100_000, 1_000_000];
        Self { rounds: 5, grouped: 30_000, one_by_one: 4_000, paced: 6_000, populations, waiting: 1_000_000 }
    }

    fn quick() -> Self {
        let populations = vec![10_000, 100_000];
        Self { rounds: 2, grouped: 10_000, one_by_one: 1_500, paced: 3_000, populations, waiting: 100_000 }
    }
}

fn main() -> anyhow::Result<()> {
    if service::is_stand_in() {
        return service::stand_in();
    }
    let quick = env::var_os("BENCH_QUICK").is_some_and(|value| !value.is_empty());
    let url = env::var("BENCH_POSTGRES_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let database = runtime.block_on(Database::connect(&url))?;
    let mut size = if quick { Size::quick() } else { Size::full() };
    if let Ok(users) = env::var("BENCH_USERS") {
        size.populations = users.split(',').map(str::parse).collect::<Result<_, _>>()?;
        size.populations.sort_unstable();
    }
    let mut bench = Bench {
        size,
        secret: Secret::parse(SECRET)?,
        events: Events::default(),
        verdicts: Vec::new(),
        peak: 0,
        database,
        runtime,
    };
    let began = Instant::now();
    let result = bench.run();
    bench.runtime.block_on(bench.database.clear())?;
    result?;
    println!("\n## Verdict{}\n", if quick { " (quick run, too short for conclusions)" } else { "" });
    println!("| | measured | wanted | |\n|---|--:|--:|---|");
    for Verdict { what, measured, wanted, met } in &bench.verdicts {
        println!("| {what} | {measured} | {wanted} | {} |", if *met { "met" } else { "**missed**" });
    }
    println!("\n{} s in all.", began.elapsed().as_secs());
    Ok(())
}

struct Bench {
    size: Size,
    secret: Secret,
    events: Events,
    database: Database,
    runtime: Runtime,
    verdicts: Vec<Verdict>,
    /// The peak memory of the service, in KiB.
    peak: u64,
}

struct Verdict {
    what: String,
    measured: String,
    wanted: String,
    met: bool,
}

/// The result of one run.
#[derive(Clone, Copy)]
struct Run {
    events: usize,
    elapsed: Duration,
    /// Processor time by user.
    service: Duration,
    backends: Duration,
    sender: Duration,
    batch: f64,
    p50: Duration,
    p99: Duration,
}

impl Run {
    fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds per event.
    fn each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.events as f64
    }
}

/// One part of the benchmark, which can run alone.
type Part = fn(&mut Bench) -> anyhow::Result<()>;

impl Bench {
    fn run(&mut self) -> anyhow::Result<()> {
        self.introduce()?;
        let parts: [(&str, Part); 9] = [
            ("throughput", Self::compare),
            ("queue", Self::queue),
            ("stream", Self::stream),
            ("growth", Self::grow),
            ("databases", Self::compare_databases),
            ("baseline", Self::compare_builds),
            ("sqlite", Self::compare_builds_on_sqlite),
            ("steady", Self::steady),
            ("snapshot", Self::beside_an_old_snapshot),
        ];
        let only = env::var("BENCH_ONLY").ok().filter(|name| !name.is_empty());
        anyhow::ensure!(
            only.as_ref().is_none_or(|only| parts.iter().any(|(name, _)| name == only)),
            "BENCH_ONLY must be one of {}",
            parts.map(|(name, _)| name).join(", ")
        );
        for (_, part) in parts.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name == only)) {
            part(self)?;
        }
        let mib = self.peak as f64 / 1024.0;
        self.verdict(
            "peak memory of the service over all parts (VmHWM)",
            format!("{mib:.0} MiB"),
            format!("≤ {:.0} MiB", wanted::PEAK_MIB),
            mib <= wanted::PEAK_MIB,
        );
        Ok(())
    }

    fn verdict(&mut self, what: impl Into<String>, measured: String, wanted: String, met: bool) {
        self.verdicts.push(Verdict { what: what.into(), measured, wanted, met });
    }

    fn introduce(&mut self) -> anyhow::Result<()> {
        println!("# clerk-sync {}, {}\n", env!("CARGO_PKG_VERSION"), Utc::now().format("%Y-%m-%d %H:%M UTC"));
        println!("{}", process::machine());
        let settings = self.runtime.block_on(self.database.settings())?;
        let settings: Vec<String> =
            settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        println!("PostgreSQL: {}", settings.join(", "));
        let [plain, connected] = [Person::Plain, Person::Connected].map(|person| {
            self.events.make(2, 10_000, person).iter().map(|event| event.body.len()).sum::<usize>() / 2
        });
        println!(
            "{CONNECTIONS} connections kept alive; bodies of {connected} bytes, small bodies of {plain} bytes; \
             half new users, half updates; every event is applied, audited and answered after its commit"
        );
        Ok(())
    }

    /// Group commit, one event per transaction, and straight SQL, in turns, with 10 k users.
    fn compare(&mut self) -> anyhow::Result<()> {
        let population = 10_000;
        let schema = Database::schema("compare");
        let grouped = Service::start(Mode::GroupCommit, &self.database.place(Mode::GroupCommit, &schema))?;
        self.runtime.block_on(self.database.fill(&schema, population))?;
        let one_by_one = Service::start(Mode::OneByOne, &self.database.place(Mode::OneByOne, &schema))?;
        let writer = self.runtime.block_on(Writer::connect(&self.database, &schema))?;
        let before = self.runtime.block_on(self.database.counts(&schema))?;
        let made = self.events.made();
        // Warm up connections, caches and allocators.
        self.over_http(&grouped, 2_000, population)?;
        self.over_http(&one_by_one, 500, population)?;

        let watch = self.runtime.block_on(async { self.database.watch() });
        let [mut group, mut small, mut straight, mut single] = [const { Vec::new() }; 4];
        let began = Instant::now();
        while group.len() < self.size.rounds && began.elapsed() < LONGEST_PART {
            group.push(self.over_http(&grouped, self.size.grouped, population)?);
            let batch = group.last().map_or(1.0, |run| run.batch);
            small.push(self.load(&grouped, self.size.grouped, population, Person::Plain, FLAT_OUT)?.0);
            straight.push(self.straight(&writer, self.size.grouped, population, batch)?);
            single.push(self.over_http(&one_by_one, self.size.one_by_one, population)?);
        }
        let seen = self.runtime.block_on(async { watch.finish() });

        println!("\n## Throughput at {population} users, medians of {} rounds in turns\n", group.len());
        print_head();
        print_runs("over HTTP, group commit", &group);
        print_runs("over HTTP, group commit, small bodies", &small);
        print_runs("over HTTP, one event per transaction", &single);
        print_runs("the same batches straight into SQL", &straight);
        tell_statements(&seen);

        let [group, small, single, straight] =
            [&group, &small, &single, &straight].map(|runs| median(runs, Run::rate));
        self.verdict(
            "events/s over HTTP, 256 connections, small bodies",
            format!("{small:.0}"),
            format!("≥ {:.0}", wanted::EVENTS_A_SECOND),
            small >= wanted::EVENTS_A_SECOND,
        );
        self.verdict(
            "group commit relative to one event per transaction",
            format!("{:.1} ×", group / single),
            format!("≥ {} ×", wanted::OVER_ONE_BY_ONE),
            group / single >= wanted::OVER_ONE_BY_ONE,
        );
        self.verdict(
            "group commit relative to straight SQL",
            format!("{:.2}", group / straight),
            format!("≥ {}", wanted::OF_STRAIGHT_SQL),
            group / straight >= wanted::OF_STRAIGHT_SQL,
        );
        drop(one_by_one);
        self.pace(&grouped, population)?;
        self.remember(&grouped)?;

        // Check that every measured event took effect.
        let after = self.runtime.block_on(self.database.counts(&schema))?;
        let made = i64::try_from(self.events.made() - made)?;
        anyhow::ensure!(
            [after[0] - before[0], 2 * (after[1] - before[1]), after[2] - before[2]] == [made; 3],
            "{made} events were sent, but the tables grew from {before:?} to {after:?}"
        );
        println!(
            "\nChecked afterwards: {made} events added exactly as many ids and audit lines, and half as many users."
        );
        drop(grouped);
        self.runtime.block_on(async {
            writer.close().await;
            self.database.drop(&schema).await
        })
    }

    /// Latency at a steady rate of events, alone and while a viewer uses the dashboard, in turns.
    fn pace(&mut self, service: &Service, population: u64) -> anyhow::Result<()> {
        let load = Load { every: Some(Duration::from_millis(1)), ..FLAT_OUT };
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        println!("\n## Latency at 1,000 events/s and {population} users, rounds in turns\n");
        println!(
            "| | over | p50 | p90 | p99 | p99.9 | longest | events per transaction |\n|---|--:|--:|--:|--:|--:|--:|--:|"
        );
        let [mut alone, mut beside] = [const { Vec::new() }; 2];
        let (mut pages, began) = (0, Instant::now());
        // More and shorter rounds than elsewhere: a tail is noisy, and a disturbance on the machine then affects one of many
        // rounds.
        while alone.len() < 2 * self.size.rounds && began.elapsed() < LONGEST_PART {
            let first = alone.len() % 2 == 1;
            for looked_at in [first, !first] {
                let viewer = looked_at.then(|| Viewer::open(service.private, pages)).transpose()?;
                let (run, report) =
                    self.load(service, self.size.paced, population, Person::Connected, load)?;
                pages += viewer.map_or(Ok(0), Viewer::close)?;
                let [p50, p90, p99, p999, longest] =
                    [0.5, 0.9, 0.99, 0.999, 1.0].map(|part| milliseconds(report.percentile(part)));
                println!(
                    "| {} | {:.0} s | {p50:.1} ms | {p90:.1} ms | {p99:.1} ms | {p999:.1} ms | {longest:.1} ms | {:.1} |",
                    if looked_at { "with the dashboard" } else { "alone" },
                    run.elapsed.as_secs_f64(),
                    run.batch,
                );
                if looked_at { &mut beside } else { &mut alone }.push(run);
            }
        }
        println!("\n{pages} pages of the dashboard were viewed.");
        let [p99, p99_beside] = [&alone, &beside].map(|runs| median(runs, |run| milliseconds(run.p99)));
        self.verdict(
            "p99 at 1,000 events/s",
            format!("{p99:.1} ms"),
            format!("≤ {} ms", wanted::P99_MILLISECONDS),
            p99 <= wanted::P99_MILLISECONDS,
        );
        let ratio = p99_beside / p99;
        self.verdict(
            "p99 while a viewer uses the dashboard, relative to alone",
            format!("{ratio:.2} ×"),
            format!("≤ {} ×", wanted::P99_BESIDE_DASHBOARD),
            ratio <= wanted::P99_BESIDE_DASHBOARD,
        );
        Ok(())
    }

    /// The cost per event as the table grows.
    fn grow(&mut self) -> anyhow::Result<()> {
        let mut runs: BTreeMap<u64, [Vec<Run>; 2]> = BTreeMap::new();
        let populations = self.size.populations.clone();
        let mut filled = BTreeSet::new();
        let (mut began, mut rounds) = (Instant::now(), 0);
        while rounds < self.size.rounds && (rounds <= 1 || began.elapsed() < LONGEST_PART) {
            for &population in &populations {
                let schema = Database::schema(&format!("users_{population}"));
                // Measurements add users. A large table is hardly affected; a small one is filled again each round.
                let begins_afresh = population < 1_000_000 || filled.insert(population);
                if begins_afresh {
                    self.runtime.block_on(self.database.drop(&schema))?;
                }
                let service =
                    Service::start(Mode::GroupCommit, &self.database.place(Mode::GroupCommit, &schema))?;
                if begins_afresh {
                    self.runtime.block_on(self.database.fill(&schema, population))?;
                }
                let writer = self.runtime.block_on(Writer::connect(&self.database, &schema))?;
                self.over_http(&service, 2_000, population)?;
                let count = self.size.grouped.min(16_000);
                let http = self.over_http(&service, count, population)?;
                let straight = self.straight(&writer, count, population, http.batch)?;
                let [over_http, in_sql] = runs.entry(population).or_default();
                over_http.push(http);
                in_sql.push(straight);
                self.remember(&service)?;
                self.runtime.block_on(writer.close());
            }
            // The first round filled the tables and had cold caches.
            rounds += 1;
            if rounds == 1 {
                began = Instant::now();
            }
        }

        println!("\n## Cost per event by number of existing users, medians of {rounds} rounds in turns\n");
        println!(
            "| users | events/s over HTTP | µs per event | relative to the fewest | processor µs per event: service | PostgreSQL \
             | straight SQL: µs per event | relative to the fewest |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
        );
        let cost = |runs: &[Run]| median(runs, |run| run.each(run.elapsed));
        let first = runs.first_key_value().map(|(_, [http, sql])| (cost(http), cost(sql)));
        let (first_http, first_sql) = first.expect("there are sizes");
        for (population, [http, sql]) in &runs {
            println!(
                "| {population} | {:.0} | {:.1} | {:.2} × | {:.1} | {:.1} | {:.1} | {:.2} × |",
                median(http, Run::rate),
                cost(http),
                cost(http) / first_http,
                median(http, |run| run.each(run.service)),
                median(http, |run| run.each(run.backends)),
                cost(sql),
                cost(sql) / first_sql,
            );
        }
        for (population, most) in wanted::COST_OF_USERS {
            let Some([many, _]) = runs.get(&population) else { continue };
            let ratio = cost(many) / first_http;
            let what = if population == 1_000_000 { "1 M" } else { "5 M" };
            self.verdict(
                format!("cost per event at {what} users, relative to the fewest"),
                format!("{ratio:.2} ×"),
                format!("≤ {most} ×"),
                ratio <= most,
            );
        }
        Ok(())
    }

    fn remember(&mut self, service: &Service) -> anyhow::Result<()> {
        self.peak = self.peak.max(service.peak_memory()?);
        Ok(())
    }

    /// As fast as possible.
    fn over_http(&mut self, service: &Service, count: usize, population: u64) -> anyhow::Result<Run> {
        Ok(self.load(service, count, population, Person::Connected, FLAT_OUT)?.0)
    }

    fn load(
        &mut self,
        service: &Service,
        count: usize,
        population: u64,
        person: Person,
        load: Load,
    ) -> anyhow::Result<(Run, Report)> {
        let events = self.events.make(count, population, person);
        let requests = self.signed(&events);
        drop(events);
        let backends = || self.backends(service.mode().client());
        let (batches, cpu, in_database) = (service.batches()?, service.cpu(), backends()?);
        let sender = process::own_cpu();
        let report = drive(service.address, requests, load)?;
        report.all_answered(service.mode().answer())?;
        let done = service.batches()?;
        let run = Run {
            events: count,
            elapsed: report.elapsed,
            service: service.cpu().saturating_sub(cpu),
            backends: backends()?.saturating_sub(in_database),
            sender: process::own_cpu().saturating_sub(sender),
            batch: (done.0 - batches.0) / (done.1 - batches.1),
            p50: report.percentile(0.5),
            p99: report.percentile(0.99),
        };
        Ok((run, report))
    }

    fn straight(
        &mut self,
        writer: &Writer,
        count: usize,
        population: u64,
        batch: f64,
    ) -> anyhow::Result<Run> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 512")]
        let size = batch.round().clamp(1.0, 512.0) as usize;
        let events = self.events.make(count, population, Person::Connected);
        let batches = batches(&events, size);
        drop(events);
        let in_database = self.backends(straight::CLIENT)?;
        let cpu = process::own_cpu();
        let elapsed = self.runtime.block_on(writer.write(batches))?;
        Ok(Run {
            events: count,
            elapsed,
            service: Duration::ZERO,
            backends: self.backends(straight::CLIENT)?.saturating_sub(in_database),
            sender: process::own_cpu().saturating_sub(cpu),
            batch: size as f64,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
        })
    }

    fn backends(&self, client: &str) -> anyhow::Result<Duration> {
        Ok(self.runtime.block_on(self.database.backends_cpu(client))?.unwrap_or_default())
    }

    fn signed(&self, events: &[Event]) -> Vec<Vec<u8>> {
        let now = Utc::now();
        events.iter().map(|event| event.request(&self.secret, now)).collect()
    }
}

fn print_head() {
    println!(
        "| | events/s | (lowest–highest) | events per transaction | p50 | p99 | processor µs per event: service | \
         PostgreSQL | sender |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
}

fn print_runs(what: &str, runs: &[Run]) {
    let rates: Vec<f64> = runs.iter().map(Run::rate).collect();
    let (lowest, highest) =
        (rates.iter().copied().fold(f64::MAX, f64::min), rates.iter().copied().fold(0.0, f64::max));
    let milliseconds = |time: fn(&Run) -> Duration| {
        let median = median(runs, |run| time(run).as_secs_f64() * 1e3);
        if median > 0.0 { format!("{median:.1} ms") } else { "–".to_owned() }
    };
    println!(
        "| {what} | {:.0} | {lowest:.0}–{highest:.0} | {:.0} | {} | {} | {:.0} | {:.0} | {:.0} |",
        median(runs, Run::rate),
        median(runs, |run| run.batch),
        milliseconds(|run| run.p50),
        milliseconds(|run| run.p99),
        median(runs, |run| run.each(run.service)),
        median(runs, |run| run.each(run.backends)),
        median(runs, |run| run.each(run.sender)),
    );
}

/// The statements found running, and their share of all samples of busy backends.
fn tell_statements(seen: &BTreeMap<(String, String), u32>) {
    let of = |client: &str| -> BTreeMap<&str, u32> {
        let of_client = seen.iter().filter(|((_, name), _)| name == client);
        of_client.map(|((statement, _), times)| (statement.as_str(), *times)).collect()
    };
    let (service, straight) = (of(Mode::GroupCommit.client()), of(straight::CLIENT));
    let share = |of: &BTreeMap<&str, u32>, statement: &str| {
        let all: u32 = of.values().sum();
        f64::from(*of.get(statement).unwrap_or(&0)) * 100.0 / f64::from(all.max(1))
    };
    let mut statements: Vec<&str> = service.keys().chain(straight.keys()).copied().collect();
    statements.sort_unstable();
    statements.dedup();
    statements.sort_by(|a, b| share(&service, b).total_cmp(&share(&service, a)));
    println!("\n### Statements found running in `pg_stat_activity`, and their share of the time\n");
    println!("| service | straight | statement |\n|--:|--:|---|");
    for statement in statements {
        println!(
            "| {:.0} % | {:.0} % | `{statement}` |",
            share(&service, statement),
            share(&straight, statement)
        );
    }
}

fn median(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}
