//! The service as a separate process: the real program, or this one as a stand-in with one event per transaction.

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clerk_sync::{
    cli::service::{Role, Service as Library},
    config::{Config, Database, Needs, Settings},
    store::{Store, mysql, postgres},
    sync::Limits,
    telemetry::{self, LogFormat},
};
use secrecy::ExposeSecret;

use crate::{events::SECRET, process};

/// The token for the dashboard.
pub(crate) const ADMIN_TOKEN: &str = "bench-bench-bench-bench";

/// Set for a child process that stands in for the service.
const STAND_IN: &str = "CLERK_SYNC_BENCH_STAND_IN";

/// How the service turns events into transactions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `clerk-sync serve` with its defaults.
    GroupCommit,
    /// The same service with one event per transaction, and as many concurrent transactions as it has connections.
    OneByOne,
    /// `PROCESSING=queue clerk-sync serve`: it stores events and applies them later.
    Queued,
    /// `PROCESSING=queue clerk-sync serve --no-worker`: it only stores.
    Accepting,
    /// `clerk-sync worker`: it only applies stored events.
    Draining,
    /// Like `Accepting`, into the stream of `BENCH_QUEUE_URL`.
    Streaming,
    /// Like `Draining`, from that stream.
    StreamDraining,
}

impl Mode {
    /// The name of its backends.
    pub(crate) fn client(self) -> &'static str {
        match self {
            Self::GroupCommit => "bench: group commit",
            Self::OneByOne => "bench: one by one",
            Self::Queued => "bench: queued",
            Self::Accepting => "bench: accepting",
            Self::Draining => "bench: draining",
            Self::Streaming => "bench: streaming",
            Self::StreamDraining => "bench: draining the stream",
        }
    }

    /// The status that it answers on success.
    pub(crate) fn answer(self) -> &'static str {
        if matches!(self, Self::Queued | Self::Accepting | Self::Streaming) { "queued" } else { "applied" }
    }
}

/// The database and schema of a service.
pub(crate) struct Place {
    pub(crate) url: String,
    /// Only for PostgreSQL.
    pub(crate) schema: Option<String>,
}

/// A running service.
pub(crate) struct Service {
    child: Child,
    mode: Mode,
    pub(crate) address: SocketAddr,
    pub(crate) private: PrivateListener,
}

/// The address of metrics and the dashboard.
#[derive(Clone, Copy)]
pub(crate) struct PrivateListener(SocketAddr);

impl PrivateListener {
    /// The whole answer to a request that makes the service close the connection.
    pub(crate) fn ask(self, request: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.0)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn get(self, path: &str) -> anyhow::Result<String> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }
}

impl Service {
    /// The measured program: this build, or the one that `BENCH_PROGRAM` names.
    pub(crate) fn program() -> PathBuf {
        env::var_os("BENCH_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_clerk-sync").into()).into()
    }

    /// Start the service and wait until it is ready; its tables are migrated then.
    pub(crate) fn start(mode: Mode, place: &Place) -> anyhow::Result<Self> {
        Self::start_program(&Self::program(), mode, place)
    }

    /// The same with this build of the program.
    pub(crate) fn start_program(program: &Path, mode: Mode, place: &Place) -> anyhow::Result<Self> {
        let (address, private) = (free_address()?, free_address()?);
        let mut command = Command::new(program);
        match mode {
            Mode::OneByOne => {
                command = Command::new(env::current_exe()?);
                command.env(STAND_IN, "1");
            }
            Mode::GroupCommit => _ = command.arg("serve"),
            Mode::Queued => _ = command.arg("serve").env("PROCESSING", "queue"),
            Mode::Accepting | Mode::Streaming => {
                command.args(["serve", "--no-worker"]).env("PROCESSING", "queue");
            }
            Mode::Draining | Mode::StreamDraining => _ = command.arg("worker"),
        }
        if matches!(mode, Mode::Streaming | Mode::StreamDraining) {
            command.env("QUEUE_URL", env::var_os("BENCH_QUEUE_URL").context("BENCH_QUEUE_URL")?);
        }
        // Logs are written as in production; BENCH_LOG shows them.
        let log = if env::var_os("BENCH_LOG").is_some() { Stdio::inherit() } else { Stdio::null() };
        let child = command
            .env_remove("RUST_LOG")
            .env("LOG_FORMAT", "json")
            .env("DATABASE_URL", &place.url)
            .envs(place.schema.as_ref().map(|schema| ("DATABASE_SCHEMA", schema)))
            .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
            .env("PORT", address.port().to_string())
            .env("ADMIN_PORT", private.port().to_string())
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the service cannot be started")?;
        let mut service = Self { child, mode, address, private: PrivateListener(private) };
        let began = Instant::now();
        while !service.private.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = service.child.try_wait()? {
                bail!("the service ended with {status}; BENCH_LOG=1 shows why");
            }
            if began.elapsed() > Duration::from_secs(30) {
                bail!("the service does not become ready; BENCH_LOG=1 shows why");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        process::cpu(self.child.id()).unwrap_or_default()
    }

    /// In KiB, since the start.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<u64> {
        process::peak_memory(self.child.id()).context("/proc does not report VmHWM")
    }

    /// The number of events committed so far, and of their batches.
    pub(crate) fn batches(&self) -> anyhow::Result<(f64, f64)> {
        let metrics = self.private.get("/metrics")?;
        let value = |name: &str| -> anyhow::Result<f64> {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.map_or(Ok(0.0), |value| value.trim().parse())?)
        };
        Ok((value("clerk_sync_commit_batch_size_sum")?, value("clerk_sync_commit_batch_size_count")?))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Whether this process must act as the service.
pub(crate) fn is_stand_in() -> bool {
    env::var_os(STAND_IN).is_some()
}

/// `serve` with one event per transaction.
pub(crate) fn stand_in() -> anyhow::Result<()> {
    let mut settings = Settings::default();
    for variable in ["DATABASE_URL", "DATABASE_SCHEMA", "CLERK_WEBHOOK_SIGNING_SECRET", "PORT", "ADMIN_PORT"]
    {
        if let Ok(text) = env::var(variable) {
            settings.set(variable, text);
        }
    }
    let config = settings.resolve(Needs { signing_secret: true, ..Needs::default() })?;
    telemetry::init(LogFormat::Json, telemetry::filter(&config.log_filter).context("a filter")?, None);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let store = open(&config)?;
        store.migrate().await?;
        // With two lanes, one event per transaction would look slower than necessary: the server flushes its log once for all
        // concurrent transactions. So the stand-in gets all connections.
        let lanes = Some(config.database_max_connections as usize);
        let limits = Limits { batch: 1, lanes, ..Limits::default() };
        let service = Library::start(Role::Both, &config, store, None, None, limits, Vec::new())
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        service.run_until_asked_to_stop().await.map_err(|failure| anyhow::anyhow!("{failure}"))
    })
}

fn open(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let (max_connections, kinds) = (config.database_max_connections, clerk_sync::entity::ALL);
    Ok(match &config.database {
        Database::Postgres { url } => Arc::new(postgres::Postgres::new(postgres::Options {
            connect: url.expose_secret().parse()?,
            schema: config.database_schema.clone(),
            max_connections,
            anonymize_columns: Vec::new(),
            kinds,
            unique_email: false,
        })),
        Database::Mysql { url } => Arc::new(mysql::Mysql::new(mysql::Options {
            connect: url.expose_secret().parse()?,
            max_connections,
            anonymize_columns: Vec::new(),
            kinds,
            unique_email: false,
            polls: false,
        })),
        Database::Mongodb { .. } | Database::Sqlite { .. } => bail!("not an SQL server"),
    })
}
