//! The stream in Redis or Valkey compared with the queue in the database: how fast each accepts events, and how long an answer
//! takes. Measured only if `BENCH_QUEUE_URL` names a server, which should run with `appendfsync always`.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Bench, FLAT_OUT, LONGEST_PART,
    database::Database,
    events::Person,
    load::Load,
    service::{Mode, Service},
    wanted,
};

const POPULATION: u64 = 10_000;

impl Bench {
    /// Accept events into the database and into the stream in turns; then measure the latency of the stream at 1,000 events/s.
    pub(crate) fn stream(&mut self) -> anyhow::Result<()> {
        let Ok(url) = env::var("BENCH_QUEUE_URL") else { return Ok(()) };
        let (queued, streamed) = (Database::schema("queued"), Database::schema("streamed"));
        let database = Service::start(Mode::Accepting, &self.database.place(Mode::Accepting, &queued))?;
        let stream = Service::start(Mode::Streaming, &self.database.place(Mode::Streaming, &streamed))?;
        for service in [&database, &stream] {
            self.over_http(service, 2_000, POPULATION)?;
        }
        self.stream_drained(&url, &streamed)?;

        let (mut runs, began) = ([const { Vec::new() }; 2], Instant::now());
        let mut drained = Vec::new();
        while runs[0].len() < self.size.rounds && began.elapsed() < LONGEST_PART {
            let count = self.size.grouped;
            runs[0].push(self.over_http(&database, count, POPULATION)?.rate());
            runs[1].push(self.over_http(&stream, count, POPULATION)?.rate());
            drained.push(count as f64 / self.stream_drained(&url, &streamed)?.as_secs_f64());
        }
        println!(
            "\n## Accepted into the database and into the stream, medians of {} rounds in turns\n",
            drained.len()
        );
        println!("| | events/s | (lowest–highest) |\n|---|--:|--:|");
        let [one, other] = runs;
        let mut medians = Vec::new();
        for (what, mut rates) in [
            ("into the database", one),
            ("into the stream", other),
            ("drained from the stream by one worker", drained),
        ] {
            rates.sort_by(f64::total_cmp);
            medians.push(rates[rates.len() / 2]);
            println!(
                "| {what} | {:.0} | {:.0}–{:.0} |",
                rates[rates.len() / 2],
                rates[0],
                rates[rates.len() - 1]
            );
        }
        let ratio = medians[1] / medians[0];
        self.verdict(
            "events/s accepted into the stream, relative to the database",
            format!("{ratio:.2} ×"),
            format!("≥ {} ×", wanted::STREAM_OF_DATABASE),
            ratio >= wanted::STREAM_OF_DATABASE,
        );

        let load = Load { every: Some(Duration::from_millis(1)), ..FLAT_OUT };
        let (_, report) = self.load(&stream, 2 * self.size.paced, POPULATION, Person::Connected, load)?;
        let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|part| report.percentile(part).as_secs_f64() * 1e3);
        println!(
            "\nAt 1,000 events/s into the stream: p50 {p50:.1} ms, p99 {p99:.1} ms, longest {worst:.1} ms."
        );
        self.verdict(
            "p99 at 1,000 events/s into the stream",
            format!("{p99:.1} ms"),
            format!("≤ {} ms", wanted::STREAM_P99_MILLISECONDS),
            p99 <= wanted::STREAM_P99_MILLISECONDS,
        );
        self.stream_drained(&url, &streamed)?;
        self.remember(&stream)?;
        drop((database, stream));
        for schema in [&queued, &streamed] {
            self.runtime.block_on(self.database.drop(schema))?;
        }
        Ok(())
    }

    /// Let one worker apply all webhooks in the stream; returns how long that took, including its start.
    fn stream_drained(&mut self, url: &str, schema: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let worker =
            Service::start(Mode::StreamDraining, &self.database.place(Mode::StreamDraining, schema))?;
        while waiting(url)? > 0 {
            thread::sleep(Duration::from_millis(20));
        }
        let elapsed = began.elapsed();
        self.remember(&worker)?;
        Ok(elapsed)
    }
}

/// The number of webhooks in the stream, according to its server.
fn waiting(url: &str) -> anyhow::Result<u64> {
    let place = url::Url::parse(url)?;
    let mut stream =
        TcpStream::connect((place.host_str().unwrap_or("127.0.0.1"), place.port().unwrap_or(6379)))?;
    stream.write_all(b"XLEN clerk-sync:{webhooks}\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().trim_start_matches(':').parse()?)
}
