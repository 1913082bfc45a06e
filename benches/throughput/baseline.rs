//! This build beside another one, in turns on one server: near, and two milliseconds away.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    Bench, FLAT_OUT, LONGEST_PART, Run,
    database::Database,
    distance::Distance,
    events::Person,
    load::Load,
    median, print_head, print_runs,
    service::{Mode, Service},
    wanted,
};

/// There and back.
const AWAY: Duration = Duration::from_millis(2);

/// As one request after another.
const ALONE: Load = Load { connections: 1, every: None };

const EACH_MILLISECOND: Load = Load { every: Some(Duration::from_millis(1)), ..FLAT_OUT };

/// One of the two builds.
struct Build {
    name: &'static str,
    near: Service,
    far: Service,
    distance: Distance,
    flat_out: Vec<Run>,
    paced: Vec<Run>,
    alone: Vec<Run>,
    flat_out_far: Vec<Run>,
    /// Round trips of a webhook alone.
    turns: Vec<f64>,
}

impl Bench {
    /// `BENCH_BASELINE` names the other build.
    pub(crate) fn compare_builds(&mut self) -> anyhow::Result<()> {
        let Some(baseline) = std::env::var_os("BENCH_BASELINE").filter(|path| !path.is_empty()) else {
            println!("\nNo other build to compare with: BENCH_BASELINE names none.");
            return Ok(());
        };
        let population = 10_000;
        let programs = [("baseline", PathBuf::from(baseline)), ("this build", Service::program())];
        let mut builds = Vec::new();
        for (index, (name, program)) in programs.into_iter().enumerate() {
            let [near, far] = ["near", "far"].map(|place| Database::schema(&format!("{place}_{index}")));
            let place = self.database.place(Mode::GroupCommit, &near);
            let near = Service::start_program(&program, Mode::GroupCommit, &place)?;
            self.runtime
                .block_on(self.database.fill(place.schema.as_deref().unwrap_or_default(), population))?;
            let place = self.database.place(Mode::GroupCommit, &far);
            let distance = Distance::to(&place.url, AWAY)?;
            let there = distance.seen_from_here(&place)?;
            let far = Service::start_program(&program, Mode::GroupCommit, &there)?;
            self.runtime
                .block_on(self.database.fill(place.schema.as_deref().unwrap_or_default(), population))?;
            for service in [&near, &far] {
                self.over_http(service, 2_000, population)?;
            }
            let [flat_out, paced, alone, flat_out_far] = [const { Vec::new() }; 4];
            builds.push(Build {
                name,
                near,
                far,
                distance,
                flat_out,
                paced,
                alone,
                flat_out_far,
                turns: Vec::new(),
            });
        }
        let began = Instant::now();
        for round in 0..self.size.rounds {
            if round > 0 && began.elapsed() > 3 * LONGEST_PART {
                break;
            }
            for build in &mut builds {
                build.flat_out.push(self.over_http(&build.near, self.size.grouped, population)?);
                build.paced.push(
                    self.load(&build.near, self.size.paced, population, Person::Connected, EACH_MILLISECOND)?
                        .0,
                );
                let before = build.distance.turns();
                let count = self.size.paced / 20;
                build.alone.push(self.load(&build.far, count, population, Person::Connected, ALONE)?.0);
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                build.turns.push((build.distance.turns() - before) as f64 / count as f64);
                build.flat_out_far.push(self.over_http(&build.far, self.size.grouped / 3, population)?);
            }
        }
        for (what, runs) in [
            (
                "PostgreSQL on this machine, 256 connections",
                (|build| &build.flat_out) as fn(&Build) -> &Vec<Run>,
            ),
            ("the same, 1,000 events/s", |build| &build.paced),
            ("PostgreSQL 2 ms away, one request after another", |build| &build.alone),
            ("the same, 256 connections", |build| &build.flat_out_far),
        ] {
            println!("\n## {what}, {} rounds in turns\n", runs(&builds[0]).len());
            print_head();
            for build in &builds {
                print_runs(build.name, runs(build));
            }
        }
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let value = |of: &dyn Fn(&Build) -> f64| of(&builds[1]) / of(&builds[0]);
        let rate = |runs: &[Run]| median(runs, Run::rate);
        let turns = |build: &Build| {
            let mut turns = build.turns.clone();
            turns.sort_by(f64::total_cmp);
            turns[turns.len() / 2]
        };
        println!(
            "\nRound trips of a webhook alone, with what is written behind its answer: {:.1} and {:.1}.",
            turns(&builds[0]),
            turns(&builds[1])
        );
        let memory = [builds[0].near.peak_memory()?, builds[1].near.peak_memory()?];
        println!("Peak memory: {} and {} MiB.", memory[0] / 1024, memory[1] / 1024);
        let at_most = |ratio: f64, most: f64| (format!("≤ {most} ×"), ratio <= most);
        let at_least = |ratio: f64, least: f64| (format!("≥ {least} ×"), ratio >= least);
        let ratios = [
            (
                "events/s, PostgreSQL on this machine, to the baseline's",
                value(&|build| rate(&build.flat_out)),
                at_least as fn(f64, f64) -> _,
                wanted::FASTER,
            ),
            (
                "processor time of the service an event",
                value(&|build| median(&build.flat_out, |run| run.each(run.service))),
                at_most,
                wanted::CHEAPER,
            ),
            (
                "processor time of PostgreSQL an event",
                value(&|build| median(&build.flat_out, |run| run.each(run.backends))),
                at_most,
                wanted::CHEAPER_IN_DATABASE,
            ),
            (
                "p99 at 1,000 events/s",
                value(&|build| median(&build.paced, |run| milliseconds(run.p99))),
                at_most,
                wanted::P99_TO_BASELINE,
            ),
            (
                "p50 of a webhook alone, PostgreSQL 2 ms away",
                value(&|build| median(&build.alone, |run| milliseconds(run.p50))),
                at_most,
                wanted::P50_FAR,
            ),
            (
                "events/s, PostgreSQL 2 ms away",
                value(&|build| rate(&build.flat_out_far)),
                at_least,
                wanted::FASTER_FAR,
            ),
        ];
        for (what, ratio, judge, limit) in ratios {
            let (wanted, met): (String, bool) = judge(ratio, limit);
            self.verdict(what, format!("{ratio:.2} ×"), wanted, met);
        }
        Ok(())
    }
}
