//! Compares this build with another one, in turns: on one PostgreSQL server, near and two milliseconds away, and on SQLite.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Bench, FLAT_OUT, LONGEST_PART, Run, Size,
    database::Database,
    distance::Distance,
    events::Person,
    load::Load,
    median, print_head, print_runs,
    service::{Mode, Place, Service},
    wanted,
};

/// The round-trip time.
const AWAY: Duration = Duration::from_millis(2);

/// One request after another.
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
    /// Round trips per webhook when webhooks arrive one by one.
    turns: Vec<f64>,
}

impl Bench {
    /// Compare with the build that `BENCH_BASELINE` names.
    pub(crate) fn compare_builds(&mut self) -> anyhow::Result<()> {
        let Some(baseline) = baseline() else { return Ok(()) };
        let population = 10_000;
        let mut baseline = self.started("baseline", &baseline, population)?;
        let mut this = self.started("this build", &Service::program(), population)?;
        let began = Instant::now();
        for round in 0..self.size.rounds {
            if round > 0 && began.elapsed() > 3 * LONGEST_PART {
                break;
            }
            self.round(&mut baseline, population)?;
            self.round(&mut this, population)?;
        }
        print_builds(&baseline, &this)?;
        self.judge(&baseline, &this);
        Ok(())
    }

    /// Compare on SQLite.
    pub(crate) fn compare_builds_on_sqlite(&mut self) -> anyhow::Result<()> {
        let Some(baseline) = baseline() else { return Ok(()) };
        let folder = tempfile::tempdir()?;
        let start = |name: &str, program: &Path| {
            let url = format!("sqlite://{}", folder.path().join(name).display());
            Service::start_program(program, Mode::GroupCommit, &Place { url, schema: None })
        };
        let builds = [start("baseline.db", &baseline)?, start("this.db", &Service::program())?];
        let mut runs = [const { Vec::new() }; 2];
        for round in 0..=self.size.rounds {
            for (service, runs) in builds.iter().zip(&mut runs) {
                let run = self.over_http(service, self.size.grouped, 10_000)?;
                // The first round warms up, and writes the users that later rounds change.
                if round > 0 {
                    runs.push(run);
                }
            }
        }
        println!("\n## SQLite, 256 connections, {} rounds in turns\n", self.size.rounds);
        print_head();
        print_runs("baseline", &runs[0]);
        print_runs("this build", &runs[1]);
        let [theirs, ours] = runs.map(|runs| median(&runs, Run::rate));
        let (ratio, least) = (ours / theirs, wanted::FASTER_ON_SQLITE);
        self.verdict("events/s on SQLite", format!("{ratio:.2} ×"), format!("≥ {least} ×"), ratio >= least);
        Ok(())
    }

    fn started(&mut self, name: &'static str, program: &Path, population: u64) -> anyhow::Result<Build> {
        let schema = |place: &str| Database::schema(&format!("{place}_{}", name.replace(' ', "_")));
        let place = self.database.place(Mode::GroupCommit, &schema("near"));
        let near = Service::start_program(program, Mode::GroupCommit, &place)?;
        let place = self.database.place(Mode::GroupCommit, &schema("far"));
        let distance = Distance::to(&place.url, AWAY)?;
        let far = Service::start_program(program, Mode::GroupCommit, &distance.seen_from_here(&place)?)?;
        for place in ["near", "far"] {
            self.runtime.block_on(self.database.fill(&schema(place), population))?;
        }
        for service in [&near, &far] {
            self.over_http(service, 2_000, population)?;
        }
        let [flat_out, paced, alone, flat_out_far] = [const { Vec::new() }; 4];
        Ok(Build { name, near, far, distance, flat_out, paced, alone, flat_out_far, turns: Vec::new() })
    }

    fn round(&mut self, build: &mut Build, population: u64) -> anyhow::Result<()> {
        let Size { grouped, paced, .. } = self.size;
        let person = Person::Connected;
        build.flat_out.push(self.over_http(&build.near, grouped, population)?);
        build.paced.push(self.load(&build.near, paced, population, person, EACH_MILLISECOND)?.0);
        let (before, count) = (build.distance.turns(), paced / 20);
        build.alone.push(self.load(&build.far, count, population, person, ALONE)?.0);
        build.turns.push((build.distance.turns() - before) as f64 / count as f64);
        build.flat_out_far.push(self.over_http(&build.far, grouped / 3, population)?);
        Ok(())
    }

    fn judge(&mut self, baseline: &Build, this: &Build) {
        let each_in_service = |build: &Build| median(&build.flat_out, |run| run.each(run.service));
        let each_in_database = |build: &Build| median(&build.flat_out, |run| run.each(run.backends));
        let p99 = |build: &Build| median(&build.paced, |run| run.p99.as_secs_f64());
        let p50_far = |build: &Build| median(&build.alone, |run| run.p50.as_secs_f64());
        let rate = |build: &Build| median(&build.flat_out, Run::rate);
        let rate_far = |build: &Build| median(&build.flat_out_far, Run::rate);
        let ratio = |of: fn(&Build) -> f64| of(this) / of(baseline);
        for (what, ratio, least) in [
            ("events/s, PostgreSQL on this machine, relative to the baseline", ratio(rate), wanted::FASTER),
            ("events/s, PostgreSQL 2 ms away", ratio(rate_far), wanted::FASTER_FAR),
        ] {
            self.verdict(what, format!("{ratio:.2} ×"), format!("≥ {least} ×"), ratio >= least);
        }
        for (what, ratio, most) in [
            ("processor time of the service per event", ratio(each_in_service), wanted::CHEAPER),
            ("processor time of PostgreSQL per event", ratio(each_in_database), wanted::CHEAPER_IN_DATABASE),
            ("p99 at 1,000 events/s", ratio(p99), wanted::P99_TO_BASELINE),
            ("p50 of webhooks one by one, PostgreSQL 2 ms away", ratio(p50_far), wanted::P50_FAR),
        ] {
            self.verdict(what, format!("{ratio:.2} ×"), format!("≤ {most} ×"), ratio <= most);
        }
    }
}

/// The build that `BENCH_BASELINE` names.
fn baseline() -> Option<PathBuf> {
    let baseline = std::env::var_os("BENCH_BASELINE").filter(|path| !path.is_empty());
    if baseline.is_none() {
        println!("\nNo build to compare with: BENCH_BASELINE is not set.");
    }
    baseline.map(PathBuf::from)
}

fn print_builds(baseline: &Build, this: &Build) -> anyhow::Result<()> {
    let print = |what: &str, runs: fn(&Build) -> &[Run]| {
        println!("\n## {what}, {} rounds in turns\n", runs(this).len());
        print_head();
        for build in [baseline, this] {
            print_runs(build.name, runs(build));
        }
    };
    print("PostgreSQL on this machine, 256 connections", |build| &build.flat_out);
    print("the same, 1,000 events/s", |build| &build.paced);
    print("PostgreSQL 2 ms away, one request after another", |build| &build.alone);
    print("the same, 256 connections", |build| &build.flat_out_far);
    for build in [baseline, this] {
        let mut turns = build.turns.clone();
        turns.sort_by(f64::total_cmp);
        println!(
            "\n{}: {:.1} round trips per webhook, one by one, including writes after the answer; at most {} MiB.",
            build.name,
            turns[turns.len() / 2],
            build.near.peak_memory()? / 1024
        );
    }
    Ok(())
}
