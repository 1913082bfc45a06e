//! The queue: how fast events are accepted, how fast they are applied afterwards, and the cost of a claim among many waiting
//! deliveries.

use std::{
    thread,
    time::{Duration, Instant},
};

use chrono::Utc;
use clerk_sync::{
    store::{Database as _, Patience, Store as _, postgres},
    sync::frontier::BEGINNING,
};

use crate::{
    Bench, LONGEST_PART,
    database::Database,
    service::{Mode, Service},
    wanted,
};

/// The client name of the claims.
const CLIENT: &str = "bench: claims";

/// The size of one worker transaction.
const CLAIM: u32 = 512;
const CLAIM_BYTES: u64 = 16 * 1024 * 1024;

/// The number of claims; their median counts.
const CLAIMS: usize = 51;

/// The number of waiting deliveries that counts as few.
const FEW: u64 = 1000;

impl Bench {
    /// Inline, accepting and draining in turns, with 10 k users; then claims.
    pub(crate) fn queue(&mut self) -> anyhow::Result<()> {
        let population = 10_000;
        let (inline, queued) = (Database::schema("inline"), Database::schema("queued"));
        let grouped = Service::start(Mode::GroupCommit, &self.database.place(Mode::GroupCommit, &inline))?;
        let accepting = Service::start(Mode::Accepting, &self.database.place(Mode::Accepting, &queued))?;
        for schema in [&inline, &queued] {
            self.runtime.block_on(self.database.fill(schema, population))?;
        }
        // Warm up connections, caches and allocators.
        self.over_http(&grouped, 2_000, population)?;
        self.over_http(&accepting, 2_000, population)?;
        self.drained(&queued)?;

        let (mut applied, mut accepted, mut drained) = (Vec::new(), Vec::new(), Vec::new());
        let began = Instant::now();
        while applied.len() < self.size.rounds && began.elapsed() < LONGEST_PART {
            let count = self.size.grouped;
            applied.push(self.over_http(&grouped, count, population)?.rate());
            accepted.push(self.over_http(&accepting, count, population)?.rate());
            let waiting = self.runtime.block_on(self.database.waiting(&queued))?;
            anyhow::ensure!(
                waiting == i64::try_from(count)?,
                "{waiting} deliveries wait after {count} were accepted"
            );
            drained.push(count as f64 / self.drained(&queued)?.as_secs_f64());
        }
        println!("\n## The queue at {population} users, medians of {} rounds in turns\n", applied.len());
        println!("| | events/s | (lowest–highest) |\n|---|--:|--:|");
        let mut medians = [0.0; 3];
        for (place, (what, rates)) in [
            ("inline", &mut applied),
            ("accepted with --no-worker", &mut accepted),
            ("drained by one worker", &mut drained),
        ]
        .into_iter()
        .enumerate()
        {
            rates.sort_by(f64::total_cmp);
            medians[place] = rates[rates.len() / 2];
            println!("| {what} | {:.0} | {:.0}–{:.0} |", medians[place], rates[0], rates[rates.len() - 1]);
        }
        let [inline_rate, accepted, drained] = medians;
        for (what, rate, wanted) in [
            ("events/s accepted into the queue, relative to inline", accepted, wanted::ACCEPTED_OF_INLINE),
            ("events/s drained from the queue, relative to inline", drained, wanted::DRAINED_OF_INLINE),
        ] {
            let part = rate / inline_rate;
            self.verdict(what, format!("{part:.2}"), format!("≥ {wanted}"), part >= wanted);
        }
        self.remember(&accepting)?;
        drop((grouped, accepting));

        let claims = self.claims(&queued)?;
        self.verdict(
            "claiming among all waiting deliveries, relative to 1,000",
            format!("{claims:.2} ×"),
            format!("≤ {} ×", wanted::CLAIM_AMONG_MANY),
            claims <= wanted::CLAIM_AMONG_MANY,
        );
        for schema in [&inline, &queued] {
            self.runtime.block_on(self.database.drop(schema))?;
        }
        Ok(())
    }

    /// Let one worker apply all waiting deliveries; returns how long that took, including its start.
    fn drained(&mut self, schema: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let worker = Service::start(Mode::Draining, &self.database.place(Mode::Draining, schema))?;
        while self.runtime.block_on(self.database.waiting(schema))? > 0 {
            thread::sleep(Duration::from_millis(20));
        }
        let elapsed = began.elapsed();
        self.remember(&worker)?;
        Ok(elapsed)
    }

    /// How much longer a claim takes among many than among few.
    fn claims(&mut self, schema: &str) -> anyhow::Result<f64> {
        let few = self.claim(schema, FEW)?;
        let many = self.claim(schema, self.size.waiting)?;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "\nA claim of {CLAIM} deliveries takes {:.2} ms among {FEW}, {:.2} ms among {}.",
            milliseconds(few),
            milliseconds(many),
            self.size.waiting
        );
        Ok(many.as_secs_f64() / few.as_secs_f64())
    }

    /// The median time of claims that are rolled back.
    fn claim(&mut self, schema: &str, waiting: u64) -> anyhow::Result<Duration> {
        self.runtime.block_on(async {
            self.database.fill_queue(schema, waiting).await?;
            let store = postgres::Postgres::new(postgres::Options {
                connect: self.database.url(CLIENT).parse()?,
                schema: schema.to_owned(),
                max_connections: 1,
                anonymize_columns: Vec::new(),
                kinds: clerk_sync::entity::ALL,
                unique_email: false,
            });
            let mut times = Vec::new();
            for _ in 0..CLAIMS {
                let mut transaction = store.begin(Patience::Normal).await?;
                let began = Instant::now();
                let claimed = transaction.claim(BEGINNING..=Utc::now(), CLAIM, CLAIM_BYTES).await?;
                times.push(began.elapsed());
                transaction.rollback().await;
                anyhow::ensure!(claimed.len() == CLAIM as usize, "{} deliveries were claimed", claimed.len());
            }
            store.close().await;
            times.sort_unstable();
            Ok(times[times.len() / 2])
        })
    }
}
