//! Effects that show only after minutes: the longest wait at a steady load, and the effect of a transaction that holds an old
//! snapshot. Measured only if `BENCH_MINUTES` sets the number of minutes.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use chrono::Utc;

use crate::{
    Bench, FLAT_OUT, Run,
    database::Database,
    events::Person,
    load::Load,
    median,
    service::{Mode, Service},
    wanted,
};

/// The number of rounds alongside an old snapshot, spread over the time.
const ROUNDS: u32 = 30;

/// Events per round.
const EVENTS: usize = 20_000;

const POPULATION: u64 = 10_000;

impl Bench {
    /// A steady load of 1,000 events/s.
    pub(crate) fn steady(&mut self) -> anyhow::Result<()> {
        let Some(minutes) = minutes()? else { return Ok(()) };
        let schema = Database::schema("steady");
        let service = Service::start(Mode::GroupCommit, &self.database.place(Mode::GroupCommit, &schema))?;
        self.runtime.block_on(self.database.fill(&schema, POPULATION))?;
        self.over_http(&service, 2_000, POPULATION)?;
        let load = Load { every: Some(Duration::from_millis(1)), ..FLAT_OUT };
        println!("\n## 1,000 events/s without a pause\n");
        println!("| | p50 | p99 | p99.9 | longest | longer than {} ms |", wanted::LONGEST_MILLISECONDS);
        println!("|---|--:|--:|--:|--:|--:|");
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let mut longest = 0.0;
        for minute in 1..=minutes {
            let (_, report) = self.load(&service, 60_000, POPULATION, Person::Connected, load)?;
            let [p50, p99, p999, worst] =
                [0.5, 0.99, 0.999, 1.0].map(|part| milliseconds(report.percentile(part)));
            let late =
                report.latencies.iter().filter(|time| milliseconds(**time) > wanted::LONGEST_MILLISECONDS);
            println!(
                "| minute {minute} | {p50:.1} ms | {p99:.1} ms | {p999:.1} ms | {worst:.1} ms | {} |",
                late.count()
            );
            longest = f64::max(longest, worst);
        }
        self.verdict(
            "longest wait at 1,000 events/s",
            format!("{longest:.0} ms"),
            format!("≤ {} ms", wanted::LONGEST_MILLISECONDS),
            longest <= wanted::LONGEST_MILLISECONDS,
        );
        self.remember(&service)?;
        drop(service);
        self.runtime.block_on(self.database.drop(&schema))
    }

    /// The same rounds without such a transaction and alongside one, inline and through the queue.
    pub(crate) fn beside_an_old_snapshot(&mut self) -> anyhow::Result<()> {
        let Some(minutes) = minutes()? else { return Ok(()) };
        println!(
            "\n## Alongside a transaction that holds an old snapshot, {ROUNDS} rounds of {EVENTS} events\n"
        );
        println!(
            "| | events/s: first third | last third | rows alive | dead | MiB |\n|---|--:|--:|--:|--:|--:|"
        );
        for (mode, name) in [(Mode::GroupCommit, "inline"), (Mode::Queued, "through the queue")] {
            let without = self.rounds(mode, name, None)?;
            let beside = self.rounds(mode, name, Some(Duration::from_secs(60 * minutes)))?;
            let ratio = beside / without;
            self.verdict(
                format!("events/s alongside an old snapshot, {name}"),
                format!("{ratio:.2} ×"),
                format!("≥ {} ×", wanted::BESIDE_A_SNAPSHOT),
                ratio >= wanted::BESIDE_A_SNAPSHOT,
            );
        }
        Ok(())
    }

    /// Events per second in the last third of the rounds. The rounds follow each other directly, or are spread over the time for
    /// which a snapshot is held.
    fn rounds(&mut self, mode: Mode, name: &str, held: Option<Duration>) -> anyhow::Result<f64> {
        let schema = Database::schema("snapshot");
        let service = Service::start(mode, &self.database.place(mode, &schema))?;
        self.runtime.block_on(self.database.fill(&schema, POPULATION))?;
        self.over_http(&service, 2_000, POPULATION)?;
        let pause = held.unwrap_or_default() / ROUNDS;
        let snapshot =
            held.map(|_| self.runtime.block_on(self.database.old_snapshot(&schema))).transpose()?;
        let (began, mut runs) = (Instant::now(), Vec::new());
        for round in 1..=ROUNDS {
            let since = Utc::now();
            let mut run = self.over_http(&service, EVENTS, POPULATION)?;
            let answered = Instant::now();
            while self.runtime.block_on(self.database.is_waiting(&schema, since))? {
                thread::sleep(Duration::from_millis(5));
            }
            run.elapsed += answered.elapsed();
            runs.push(run);
            thread::sleep((pause * round).saturating_sub(began.elapsed()));
        }
        let waiting = self.runtime.block_on(self.database.waiting(&schema))?;
        anyhow::ensure!(waiting == 0, "{waiting} deliveries wait after all rounds");
        let [alive, dead, size] = self.runtime.block_on(self.database.rows(&schema))?;
        let third = runs.len() / 3;
        let [first, last] = [&runs[..third], &runs[2 * third..]].map(|runs| median(runs, Run::rate));
        let beside = if held.is_some() { "alongside it" } else { "without" };
        println!("| {name}, {beside} | {first:.0} | {last:.0} | {alive} | {dead} | {size} |");
        self.remember(&service)?;
        drop(service);
        self.runtime.block_on(async {
            if let Some(snapshot) = snapshot {
                snapshot.rollback().await?;
            }
            self.database.drop(&schema).await
        })?;
        Ok(last)
    }
}

fn minutes() -> anyhow::Result<Option<u64>> {
    Ok(env::var("BENCH_MINUTES").ok().map(|minutes| minutes.parse()).transpose()?)
}
