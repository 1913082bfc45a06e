//! MariaDB or MySQL compared with PostgreSQL, and with the webhook handler from tutorials.

use std::{
    env,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use sqlx::{AssertSqlSafe, MySqlPool, Row, mysql::MySqlPoolOptions};
use url::Url;

use crate::{
    Bench, FLAT_OUT, LONGEST_PART, Run,
    database::Database,
    events::{self, Person, SECRET},
    load::drive,
    median,
    service::{self, Mode, Place, Service},
    wanted,
};

const DEFAULT_URL: &str = "mysql://root@127.0.0.1:3306/";

/// The benchmark creates and drops only databases with this prefix.
const PREFIX: &str = "clerk_bench_";

/// The number of initial users is below this.
const MOST: u64 = 10_000_000;

/// Ids of the initial users, as [`events::existing_user`] computes them.
const ID: &str = "concat('user_1', lpad(n, 8, '0'), lpad(n * 2654435761 % 4294967296, 18, '0'))";

/// A server on which the user may create databases.
pub(crate) struct Mysql {
    pool: MySqlPool,
    url: Url,
}

impl Mysql {
    /// Connect to the server of `BENCH_MYSQL_URL`.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let url = env::var("BENCH_MYSQL_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned());
        let url = Url::parse(&url).context("BENCH_MYSQL_URL is not a URL")?;
        let pool = MySqlPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .connect(url.as_str())
            .await
            .context("no MariaDB or MySQL there: start one, or set BENCH_MYSQL_URL to another")?;
        Ok(Self { pool, url })
    }

    async fn run(&self, text: impl Into<String>) -> anyhow::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(text.into())).execute(&self.pool).await?;
        Ok(())
    }

    async fn number(&self, text: String) -> anyhow::Result<i64> {
        Ok(sqlx::query(AssertSqlSafe(text)).fetch_one(&self.pool).await?.get(0))
    }

    /// The version, and the settings that decide when a commit is on disk.
    async fn settings(&self) -> anyhow::Result<String> {
        let text = "SELECT version(), @@innodb_flush_log_at_trx_commit, @@log_bin, @@innodb_buffer_pool_size DIV 1048576";
        let row = sqlx::query(text).fetch_one(&self.pool).await?;
        Ok(format!(
            "{}, innodb_flush_log_at_trx_commit = {}, log_bin = {}, innodb_buffer_pool_size = {} MiB",
            row.get::<String, _>(0),
            row.get::<u64, _>(1),
            row.get::<i64, _>(2),
            row.get::<u64, _>(3)
        ))
    }

    /// Create an empty database.
    async fn fresh(&self, name: &str) -> anyhow::Result<Place> {
        self.run(format!(
            "DROP DATABASE IF EXISTS {PREFIX}{name}; CREATE DATABASE {PREFIX}{name} CHARACTER SET utf8mb4"
        ))
        .await?;
        let mut url = self.url.clone();
        url.set_path(&format!("{PREFIX}{name}"));
        Ok(Place { url: url.into(), schema: None })
    }

    async fn drop(&self, name: &str) -> anyhow::Result<()> {
        self.run(format!("DROP DATABASE IF EXISTS {PREFIX}{name}")).await
    }

    /// Fill migrated tables with users as a backfill would leave them.
    async fn fill(&self, name: &str, users: u64) -> anyhow::Result<()> {
        ensure!(users < MOST, "too many users");
        let at = events::signed_up();
        let (milliseconds, at) = (at.timestamp_millis(), at.format("%Y-%m-%d %H:%M:%S"));
        let digits = "(SELECT 0 AS d UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5
                       UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)";
        let step = users.min(50_000);
        for from in (0..users).step_by(usize::try_from(step)?) {
            let numbers = format!(
                "(SELECT 1 + {from} + a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d AS n
                  FROM {digits} AS a, {digits} AS b, {digits} AS c, {digits} AS e, {digits} AS f) AS numbers
                 WHERE n <= least({users}, {from} + {step})"
            );
            self.run(format!(
                "USE {PREFIX}{name};
                 INSERT INTO users (clerk_id, email, first_name, last_name, image_url, created_at, updated_at, synced_at)
                 SELECT {ID}, concat(substr({ID}, 6), '@example.com'), 'Ada', 'Byron', 'https://img.clerk.com/sample', '{at}', '{at}',
                        '{at}' FROM {numbers};
                 INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
                 SELECT 'user', {ID}, {milliseconds}, {milliseconds}, concat('msg_1', lpad(n, 26, '0')), false FROM {numbers};
                 INSERT INTO processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at)
                 SELECT concat('msg_1', lpad(n, 26, '0')), 'user.created', 'applied', {ID}, '{at}', utc_timestamp(3) FROM {numbers};
                 INSERT INTO audit_log (at, action, clerk_id, svix_id, source, changed_fields, event_at)
                 SELECT '{at}', 'USER_CREATED', {ID}, concat('msg_1', lpad(n, 26, '0')), 'webhook', '[\"email\"]', '{at}'
                 FROM {numbers};"
            ))
            .await?;
        }
        self.run(format!("ANALYZE TABLE {PREFIX}{name}.users, {PREFIX}{name}.entity_versions, {PREFIX}{name}.processed_webhooks"))
            .await
    }

    /// The number of recorded events and stored users.
    async fn counts(&self, name: &str) -> anyhow::Result<[i64; 2]> {
        let count = |table: &str| self.number(format!("SELECT count(*) FROM {PREFIX}{name}.{table}"));
        Ok([count("processed_webhooks").await?, count("users").await?])
    }
}

impl Bench {
    /// The service on both databases, with one event per transaction, and the handler, in turns.
    pub(crate) fn compare_databases(&mut self) -> anyhow::Result<()> {
        let population = 10_000;
        let mysql = self.runtime.block_on(Mysql::connect())?;
        println!("\n## MariaDB or MySQL compared with PostgreSQL at {population} users\n");
        println!("{}\n", self.runtime.block_on(mysql.settings())?);
        let schema = Database::schema("beside");
        let on_postgres =
            Service::start(Mode::GroupCommit, &self.database.place(Mode::GroupCommit, &schema))?;
        self.runtime.block_on(self.database.fill(&schema, population))?;
        let place = self.runtime.block_on(mysql.fresh("beside"))?;
        let on_mysql = Service::start(Mode::GroupCommit, &place)?;
        self.runtime.block_on(mysql.fill("beside", population))?;
        let one_by_one = Service::start(Mode::OneByOne, &place)?;
        let handler = Handler::start(&self.runtime.block_on(mysql.fresh("handler"))?)?;
        let before = self.runtime.block_on(mysql.counts("beside"))?;

        let mut made = 0;
        let [mut postgres, mut grouped, mut single] = [const { Vec::new() }; 3];
        let mut tutorial = Vec::new();
        let began = Instant::now();
        while grouped.len() < self.size.rounds && began.elapsed() < LONGEST_PART {
            postgres.push(self.over_http(&on_postgres, self.size.grouped, population)?);
            grouped.push(self.over_http(&on_mysql, self.size.grouped, population)?);
            single.push(self.over_http(&one_by_one, self.size.one_by_one, population)?);
            made += i64::try_from(self.size.grouped + self.size.one_by_one)?;
            tutorial.push(self.handled(&handler, self.size.one_by_one, population)?);
        }
        crate::print_head();
        crate::print_runs("clerk-sync on PostgreSQL", &postgres);
        crate::print_runs("clerk-sync on MariaDB or MySQL", &grouped);
        crate::print_runs("the same, one event per transaction", &single);
        tutorial.sort_by(f64::total_cmp);
        let tutorial = tutorial[tutorial.len() / 2];
        println!("| Express, svix and Drizzle on the same MariaDB or MySQL | {tutorial:.0} | | | | | | | |");

        let after = self.runtime.block_on(mysql.counts("beside"))?;
        ensure!(
            [after[0] - before[0], 2 * (after[1] - before[1])] == [made; 2],
            "{made} events were sent, but the tables grew from {before:?} to {after:?}"
        );
        let [postgres, grouped, single] = [&postgres, &grouped, &single].map(|runs| median(runs, Run::rate));
        for (what, ratio, wanted) in [
            (
                "events/s on MariaDB or MySQL, relative to PostgreSQL",
                grouped / postgres,
                wanted::MYSQL_OF_POSTGRES,
            ),
            (
                "the same, relative to one event per transaction",
                grouped / single,
                wanted::MYSQL_OVER_ONE_BY_ONE,
            ),
            ("the same, relative to the tutorial handler", grouped / tutorial, wanted::OVER_HANDLER),
        ] {
            self.verdict(what, format!("{ratio:.2} ×"), format!("≥ {wanted} ×"), ratio >= wanted);
        }
        drop((on_postgres, on_mysql, one_by_one, handler));
        self.runtime.block_on(async {
            mysql.drop("beside").await?;
            mysql.drop("handler").await?;
            self.database.drop(&schema).await
        })?;
        self.grow_mysql(&mysql)
    }

    /// The cost per event as the table grows.
    fn grow_mysql(&mut self, mysql: &Mysql) -> anyhow::Result<()> {
        let populations = [self.size.populations[0], *self.size.populations.last().expect("there are sizes")];
        let mut services = Vec::new();
        for population in populations {
            let name = format!("users_{population}");
            let service = Service::start(Mode::GroupCommit, &self.runtime.block_on(mysql.fresh(&name))?)?;
            self.runtime.block_on(mysql.fill(&name, population))?;
            self.over_http(&service, 2_000, population)?;
            services.push((population, service, Vec::new()));
        }
        let began = Instant::now();
        for round in 0..self.size.rounds {
            if round > 0 && began.elapsed() > LONGEST_PART {
                break;
            }
            for (population, service, runs) in &mut services {
                runs.push(self.over_http(service, self.size.grouped.min(16_000), *population)?);
            }
        }
        println!("\n## Cost per event by number of existing users on MariaDB or MySQL, in turns\n");
        println!("| users | events/s over HTTP | processor µs per event: service |\n|--:|--:|--:|");
        let mut costs = Vec::new();
        for (population, _, runs) in &services {
            let rate = median(runs, Run::rate);
            println!("| {population} | {rate:.0} | {:.1} |", median(runs, |run| run.each(run.service)));
            costs.push(1.0 / rate);
        }
        let ratio = costs[1] / costs[0];
        let most = wanted::MYSQL_COST_OF_A_MILLION;
        self.verdict(
            "cost per event at the most users relative to the fewest, on MariaDB or MySQL",
            format!("{ratio:.2} ×"),
            format!("≤ {most} ×"),
            ratio <= most,
        );
        drop(services);
        for population in populations {
            self.runtime.block_on(mysql.drop(&format!("users_{population}")))?;
        }
        Ok(())
    }

    /// The handler's events per second.
    fn handled(&mut self, handler: &Handler, count: usize, population: u64) -> anyhow::Result<f64> {
        let events = self.events.make(count, population, Person::Connected);
        let requests = self.signed(&events);
        let report = drive(handler.address, requests, FLAT_OUT)?;
        report.all_answered("applied")?;
        Ok(count as f64 / report.elapsed.as_secs_f64())
    }
}

/// `benches/handler` as a separate process.
struct Handler {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Handler {
    /// Install its dependencies, start it, and wait until it listens.
    fn start(place: &Place) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/handler");
        for file in ["package.json", "handler.mjs"] {
            std::fs::copy(source.join(file), folder.path().join(file))?;
        }
        let installed = Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"])
            .current_dir(&folder)
            .status()
            .context("npm cannot be started: the handler needs Node.js")?;
        ensure!(installed.success(), "npm could not install the handler's dependencies");
        let address = service::free_address()?;
        let mut child = Command::new("node")
            .arg("handler.mjs")
            .current_dir(&folder)
            .env("NODE_ENV", "production")
            .env("DATABASE_URL", &place.url)
            .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
            .env("PORT", address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("node cannot be started")?;
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("the handler ended with {status}");
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "the handler does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { child, address, _folder: folder })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
