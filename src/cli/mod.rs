//! Commands, one file each. Only commands read `config`; they contain no logic of their own.
#![expect(clippy::disallowed_methods, reason = "only this module knows where the time comes from")]

mod audit;
mod backfill;
mod config;
mod dev;
mod doctor;
mod ensure;
mod erase;
mod examples;
mod healthcheck;
mod manual;
mod migrate;
mod minimize;
mod notify;
mod operator;
mod outbox;
mod post;
mod prune;
mod queue;
mod reconcile;
mod sample;
mod send;
pub mod service;
mod sinks;
mod stats;
mod terminal;
mod worker;

use std::{io, net::SocketAddr, num::NonZeroU32, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use chrono::{TimeDelta, Utc};
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpStream, lookup_host},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use self::terminal::{confirm, say};
#[cfg(feature = "mongodb")]
use crate::store::mongodb;
use crate::{
    clerk::{
        api::{self, Api, ApiError},
        signature::Secret,
    },
    config::{Config, Database, Mistakes, Needs, Settings, SinkConfig, load_dotenv, mysql_options},
    entity,
    entity::USER,
    model::{ClerkId, Idle, MAX_ID_BYTES},
    store::{ErrorKind, Store, StoreError, mysql, postgres, prefix, sqlite},
    stream::StreamError,
    sync::{
        Clock, Rules,
        catch_up::{CatchUp, CatchUpError, Instance},
        instance::Pin,
        retry::Retry,
    },
    telemetry,
};

/// Mirrors Clerk into a database: verifies webhooks, and applies each exactly once and in the right order.
#[derive(Parser)]
#[command(name = "clerk-sync", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How long sending the last error reports may take.
const REPORT_TIME: Duration = Duration::from_secs(1);

/// The exit codes, for scripts.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed, or not completely done; `reconcile --dry-run`: there are differences
    2  wrong usage
   69  the database, Clerk or the service cannot be reached
   78  the configuration cannot be used, or Clerk or the server refuses it: key, password, database, tables
  130  interrupted (143: by SIGTERM)";

#[derive(Subcommand)]
enum Command {
    /// Run the service; applies pending migrations first
    Serve(service::Serve),
    /// Run everything on this machine with no set-up: embedded database, generated signing secret, readable log
    Dev(dev::Dev),
    /// Apply or list migrations, or import an existing table
    Migrate(migrate::Migrate),
    /// Import all users through Clerk's Backend API; an interrupted run resumes where it stopped
    Backfill(backfill::Backfill),
    /// Show one user or organization, fetched from Clerk if it is missing
    Ensure(ensure::Ensure),
    /// Compare with Clerk and fix the differences
    Reconcile(reconcile::Reconcile),
    /// Messages for other systems: list, show, retry, discard; pause and resume a sink
    Outbox(outbox::Outbox),
    /// Only apply the queue and notify other systems; any number of workers may run
    Worker(worker::Worker),
    /// List deliveries that are pending or dead, retry them, or discard them
    Queue(queue::Queue),
    /// Erase a user, and ensure that every copy is erased
    Erase(erase::Erase),
    /// Print what happened to a user, when, and why; or verify that the audit trail is unchanged
    Audit(audit::Audit),
    /// Clear the columns of fields that are no longer synced
    Minimize(minimize::Minimize),
    /// Delete rows that are past their retention, as `serve` does every hour
    Prune(prune::Prune),
    /// Print a sample event, or a curl command with a fresh signature
    Sample(sample::Sample),
    /// Post signed sample events
    Send(send::Send),
    /// List the systems that receive changes, or test one
    Sinks(sinks::Sinks),
    /// Check everything that can be wrong, and print how to fix it; changes nothing
    Doctor(doctor::Doctor),
    /// Print statistics: users, sign-ups by week, events, pending work
    Stats(stats::Stats),
    /// Print the effective configuration, the origin of each value, and what `serve` would refuse
    Config(config::Show),
    /// Ask the running service whether it is ready, without curl
    Healthcheck(healthcheck::Healthcheck),
    /// Print a completion script for a shell
    Completions(manual::Completions),
    /// Print the manual page, or write the pages of all commands to a folder
    Man(manual::Manual),
}

/// Run the command that the process was started with.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::complain(&format!("clerk-sync: {}", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

fn run() -> Result<(), Failure> {
    // Before any thread is started, and before clap reads the environment.
    let dotenv = load_dotenv();
    let matches = command_line().try_get_matches().unwrap_or_else(|error| refuse(error));
    let Cli { command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // The first two report a mistake in `.env` with the others; the last two do not need it.
    let goes_on = matches!(
        command,
        Command::Doctor(_) | Command::Config(_) | Command::Completions(_) | Command::Man(_)
    );
    if !goes_on {
        dotenv.check()?;
    }
    let mut settings = Settings::from_arg_matches(&matches, dotenv);
    let ignored = match command {
        Command::Dev(_) => settings.ignore_database_of_environment(),
        _ => Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(serve) => serve.run(&settings).await,
            Command::Dev(dev) => dev.run(settings, &ignored).await,
            Command::Migrate(migrate) => migrate.run(&settings).await,
            Command::Backfill(backfill) => backfill.run(&settings).await,
            Command::Ensure(ensure) => ensure.run(&settings).await,
            Command::Reconcile(reconcile) => reconcile.run(&settings).await,
            Command::Outbox(outbox) => outbox.run(&settings).await,
            Command::Worker(worker) => worker.run(&settings).await,
            Command::Queue(queue) => queue.run(&settings).await,
            Command::Erase(erase) => erase.run(&settings).await,
            Command::Audit(audit) => audit.run(&settings).await,
            Command::Minimize(minimize) => minimize.run(&settings).await,
            Command::Prune(prune) => prune.run(&settings).await,
            Command::Sample(sample) => sample.run(&settings),
            Command::Send(send) => send.run(&settings).await,
            Command::Sinks(sinks) => sinks.run(&settings).await,
            Command::Doctor(doctor) => doctor.run(&settings).await,
            Command::Stats(stats) => stats.run(&settings).await,
            Command::Config(show) => show.run(&settings),
            Command::Healthcheck(healthcheck) => healthcheck.run(&settings).await,
            Command::Completions(completions) => {
                completions.run(command_line());
                Ok(())
            }
            Command::Man(manual) => manual.run(command_line()),
        }
    });
    runtime.block_on(telemetry::finish_reports(REPORT_TIME));
    // A thread that still hangs in a system call does not delay the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.and_then(|()| terminal::arrived())
}

/// Print what is wrong with the command line, and how to use the command. Clap's own usage line would list every variable that
/// is set as if it were a flag that was given.
fn refuse(mut error: clap::Error) -> ! {
    if error.get(ContextKind::Usage).is_some() {
        // An argument that is not UTF-8 is not the name of a command.
        let words: Vec<String> =
            std::env::args_os().skip(1).filter_map(|word| word.into_string().ok()).collect();
        let mut command = command_line();
        command.build();
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage(&mut command, &words)));
    }
    error.exit()
}

/// The usage of the command that these words name.
fn usage(command: &mut clap::Command, words: &[String]) -> clap::builder::StyledStr {
    for (place, word) in words.iter().enumerate() {
        if let Some(below) = command.find_subcommand_mut(word) {
            return usage(below, &words[place + 1..]);
        }
    }
    command.render_usage()
}

/// Every command with the settings, which are global.
fn command_line() -> clap::Command {
    examples::with_examples(Settings::augment_args(Cli::command()), "")
}

/// Why a command failed, and its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    const FAILED: u8 = 1;
    const USAGE: u8 = 2;
    const UNREACHABLE: u8 = 69;
    const CONFIGURATION: u8 = 78;

    fn failed(message: impl Into<String>) -> Self {
        Self { code: Self::FAILED, message: message.into() }
    }

    fn unreachable(message: impl Into<String>) -> Self {
        Self { code: Self::UNREACHABLE, message: message.into() }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { code: Self::USAGE, message: message.into() }
    }

    fn configuration(message: impl Into<String>) -> Self {
        Self { code: Self::CONFIGURATION, message: message.into() }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::configuration(mistakes.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error.kind {
            _ if error.is_closed_door() => Self::CONFIGURATION,
            ErrorKind::Unavailable => Self::UNREACHABLE,
            ErrorKind::Schema => Self::CONFIGURATION,
            _ => Self::FAILED,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        let code = match error {
            _ if error.may_pass() => Self::UNREACHABLE,
            StreamError::Full => Self::FAILED,
            _ => Self::CONFIGURATION,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<&ApiError> for Failure {
    fn from(error: &ApiError) -> Self {
        let code = match error {
            ApiError::Unreachable { .. } => Self::UNREACHABLE,
            ApiError::KeyRefused { .. } => Self::CONFIGURATION,
            _ => Self::FAILED,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<&CatchUpError> for Failure {
    fn from(trouble: &CatchUpError) -> Self {
        match trouble {
            CatchUpError::Api(error) => error.into(),
            CatchUpError::Store(error) => error.clone().into(),
            CatchUpError::NotThePinnedInstance { .. } | CatchUpError::OtherInstance { .. } => {
                Self::configuration(trouble.to_string())
            }
            trouble => Self::failed(trouble.to_string()),
        }
    }
}

impl From<CatchUpError> for Failure {
    fn from(trouble: CatchUpError) -> Self {
        Self::from(&trouble)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// The signals that ask the process to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        Ok(Self {
            interrupt: interrupt.context("cannot listen for SIGINT")?,
            terminate: terminate.context("cannot listen for SIGTERM")?,
        })
    }

    /// The name of the next signal, and its exit code.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.interrupt.recv() => ("SIGINT", 130),
            _ = self.terminate.recv() => ("SIGTERM", 143),
        }
    }
}

/// Run `work`, unless a signal arrives first: then `message` is the error, and the exit code names the signal.
async fn unless_stopped<T>(
    work: impl Future<Output = T>,
    message: impl FnOnce() -> String,
) -> Result<T, Failure> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        done = work => Ok(done),
        (_, code) = signals.next() => Err(Failure { code, message: message() }),
    }
}

fn clock() -> Clock {
    Arc::new(Utc::now)
}

/// Open the store that the configuration names. With `to_look`, no SQLite file is created or changed.
async fn open_store(config: &Config, to_look: bool) -> Result<Arc<dyn Store>, StoreError> {
    prefix::set(&config.table_prefix);
    match &config.database {
        Database::Postgres { url } => {
            let connect = url
                .expose_secret()
                .parse()
                .map_err(|_| StoreError::schema("DATABASE_URL: the driver cannot use this URL".to_owned()))?;
            let store = postgres::Postgres::new(postgres::Options {
                connect,
                schema: config.database_schema.clone(),
                max_connections: config.database_max_connections,
                anonymize_columns: config.anonymize_columns.clone(),
                kinds: entity::ALL,
                unique_email: config.unique_email,
            });
            Ok(Arc::new(if config.idle == Idle::Quiet { store.keep_no_idle_connections() } else { store }))
        }
        Database::Mysql { url } => {
            let connect = mysql_options(url).map_err(|why| StoreError::schema(why.to_owned()))?;
            Ok(Arc::new(mysql::Mysql::new(mysql::Options {
                connect,
                max_connections: config.database_max_connections,
                anonymize_columns: config.anonymize_columns.clone(),
                kinds: entity::ALL,
                unique_email: config.unique_email,
                polls: config.idle == Idle::Normal,
            })))
        }
        #[cfg(feature = "mongodb")]
        Database::Mongodb { url } => {
            let options = mongodb::Options {
                uri: url.clone(),
                max_connections: config.database_max_connections,
                anonymize_columns: config.anonymize_columns.clone(),
                kinds: entity::ALL,
                unique_email: config.unique_email,
                polls: config.idle == Idle::Normal,
            };
            Ok(Arc::new(mongodb::Mongo::connect(options).await?))
        }
        #[cfg(not(feature = "mongodb"))]
        Database::Mongodb { .. } => {
            Err(StoreError::schema("this program was built without the mongodb feature".to_owned()))
        }
        Database::Sqlite { path } => {
            let options = sqlite::Options {
                path: path.clone(),
                max_connections: config.database_max_connections,
                anonymize_columns: config.anonymize_columns.clone(),
                kinds: entity::ALL,
                unique_email: config.unique_email,
            };
            let store =
                if to_look { sqlite::Sqlite::look(options) } else { sqlite::Sqlite::open(options).await };
            Ok(Arc::new(store?))
        }
    }
}

/// Why a command cannot use its database, with the result of a test connection if the server is unreachable.
async fn explained(database: &Database, error: StoreError) -> Failure {
    let mut failure = Failure::from(error);
    if failure.code == Failure::UNREACHABLE
        && let Some(why) = diagnosis(database).await
    {
        failure.message = format!("{}: {why}", failure.message);
    }
    failure
}

/// The database's answer; else why the command cannot use the database.
async fn ask<T>(
    database: &Database,
    question: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Failure> {
    match question.await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(explained(database, error).await),
    }
}

/// Why a server cannot be reached, without its user, its password or the driver's message.
async fn diagnosis(database: &Database) -> Option<String> {
    let (host, port) = database.address()?;
    why_no_connection(&host, port).await
}

/// Why a connection fails; `None` if it succeeds.
async fn why_no_connection(host: &str, port: u16) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let look_up = timeout(PATIENCE, lookup_host((host, port))).await;
    let Ok(Ok(addresses)) = look_up else { return Some(format!("there is no host {host}")) };
    let addresses: Vec<SocketAddr> = addresses.collect();
    let only_6 = addresses.iter().all(SocketAddr::is_ipv6);
    match timeout(PATIENCE, TcpStream::connect(&*addresses)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Some(format!("connection refused by {host}, port {port}"))
        }
        _ if only_6 => Some(format!(
            "no answer from {host}, port {port}, which has only IPv6 addresses: a network without IPv6, as in many \
             containers, has no route there; name a host or a pooler with IPv4"
        )),
        Ok(Err(error))
            if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) =>
        {
            Some(format!("there is no route to {host}, port {port}"))
        }
        _ => Some(format!("no answer from {host}, port {port}")),
    }
}

/// What commands need that ask Clerk: the API, and the store with its tables. With `read_only`, no table is created.
async fn catch_up(
    settings: &Settings,
    rate: Option<NonZeroU32>,
    read_only: bool,
    emit: bool,
) -> Result<CatchUp, Failure> {
    let config = settings.resolve(Needs { secret_key: true, ..Needs::default() })?;
    service::init_log(&config)?;
    let store = if read_only { existing(&config, true).await? } else { migrated(&config).await? };
    let rules = Rules { emit, ..rules(&config) };
    Ok(catching_up(&config, &store, rules, rate)?.context("CLERK_SECRET_KEY is not set")?)
}

/// The parts that ask Clerk, if there is a key for its API.
fn catching_up(
    config: &Config,
    store: &Arc<dyn Store>,
    rules: Rules,
    rate: Option<NonZeroU32>,
) -> Result<Option<CatchUp>, Failure> {
    let Some(api) = open_api(config, rate)? else { return Ok(None) };
    let instance = Instance { pin: Pin::of(config.instance_id.as_deref()), may_change: false };
    Ok(Some(CatchUp { store: Arc::clone(store), api, rules, clock: clock(), instance }))
}

/// The store with its tables, for commands that read or remove rows.
async fn open(settings: &Settings, read_only: bool) -> Result<(Config, Arc<dyn Store>), Failure> {
    let config = resolve(settings)?;
    service::init_log(&config)?;
    let store = existing(&config, read_only).await?;
    Ok((config, store))
}

/// Run a command on the existing store, and always close the store.
async fn on_store(
    settings: &Settings,
    read_only: bool,
    run: impl AsyncFnOnce(&Config, &dyn Store) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (config, store) = open(settings, read_only).await?;
    let result = run(&config, &*store).await;
    store.close().await;
    result
}

/// The store, with all migrations applied.
async fn migrated(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    let store = ask(&config.database, open_store(config, false)).await?;
    ask(&config.database, store.migrate()).await?;
    service::warn_of_hidden_rows(&*store).await;
    Ok(store)
}

/// The store, if its tables exist and belong to this version. Nothing is created: an erasure in a newly created database
/// or schema would look like a real erasure.
async fn existing(config: &Config, read_only: bool) -> Result<Arc<dyn Store>, Failure> {
    if let Database::Sqlite { path } = &config.database
        && !path.exists()
    {
        return Err(Failure::configuration(format!(
            "there is no database {}: does the service use the same DATABASE_URL? `clerk-sync migrate` or `clerk-sync serve` \
             creates it",
            path.display()
        )));
    }
    let store = ask(&config.database, open_store(config, true)).await?;
    let status = ask(&config.database, store.migration_status()).await?;
    let applied = status.iter().filter(|one| one.applied).count();
    if read_only && applied == status.len() {
        service::warn_of_hidden_rows(&*store).await;
        return Ok(store);
    }
    store.close().await;
    if applied == status.len() {
        // No migration is left: this only checks whether the tables can be written to.
        return migrated(config).await;
    }
    if applied > 0 {
        return Err(Failure::configuration("migrations are pending: run `clerk-sync migrate` first"));
    }
    let (schema, variables) = match &config.database {
        Database::Sqlite { .. } | Database::Mysql { .. } | Database::Mongodb { .. } => {
            (String::new(), "DATABASE_URL")
        }
        Database::Postgres { .. } => {
            (format!(", schema {}", config.database_schema), "DATABASE_URL and DATABASE_SCHEMA")
        }
    };
    Err(Failure::configuration(format!(
        "there are no tables of clerk-sync in {}{schema}: does the service use the same {variables}? `clerk-sync migrate` \
         creates them",
        config.database.place()
    )))
}

/// Clerk's Backend API, if there is a key for it.
fn open_api(config: &Config, rate: Option<NonZeroU32>) -> Result<Option<Arc<Api>>, Failure> {
    let Some(key) = config.clerk_secret_key.clone() else { return Ok(None) };
    let rate = rate.unwrap_or_else(|| api::usual_rate(&key));
    let api = Api::new(&config.clerk_api_url, key, rate, clock()).map_err(|error| Failure::from(&error))?;
    Ok(Some(Arc::new(api)))
}

fn rules(config: &Config) -> Rules {
    let subscriptions = config.sinks.iter().map(SinkConfig::subscription).collect();
    Rules {
        processing: config.processing,
        retry: Retry { max_attempts: config.queue_max_attempts, ..Retry::default() },
        grace: TimeDelta::from_std(config.deletion_grace).unwrap_or_default(),
        unique_email: config.unique_email,
        subscriptions,
        selection: config.selection.clone(),
        ..Rules::new(config.sync_fields(), config.deletion_policy)
    }
}

/// The first signing secret, for commands that sign.
fn signing_secret(settings: &Settings) -> Result<Secret, Failure> {
    let secrets = settings.signing_secrets()?;
    secrets.into_iter().next().ok_or_else(|| {
        Failure::configuration(
            "CLERK_WEBHOOK_SIGNING_SECRET (--clerk-webhook-signing-secret) is not set, and this command signs with it; \
             `clerk-sync dev` prints the secret that it uses",
        )
    })
}

/// The number of requests per second.
fn rate(text: &str) -> Result<NonZeroU32, &'static str> {
    text.parse().map_err(|_| "expected a whole number of at least 1")
}

/// Clerk's id of a user. A value with whitespace is refused: it is probably a list in the wrong format.
fn user_id(text: &str) -> Result<ClerkId, String> {
    if text.len() > MAX_ID_BYTES {
        return Err(format!("it has {} bytes, and an id has at most {MAX_ID_BYTES}", text.len()));
    }
    let id = ClerkId::new(&USER, text).filter(|id| !id.as_str().contains(char::is_whitespace));
    id.ok_or_else(|| format!("expected an id of 1 to {MAX_ID_BYTES} bytes without whitespace"))
}

/// The error for a user that this database has no trace of.
fn never_heard_of(id: &ClerkId) -> Failure {
    Failure::failed(format!(
        "{id} is unknown here: there is no row, no tombstone and no line in the audit trail"
    ))
}

/// A number with its noun.
fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", noun(number, one, many))
}

/// The noun for that many, where the number is printed elsewhere.
fn noun<'a>(number: u64, one: &'a str, many: &'a str) -> &'a str {
    if number == 1 { one } else { many }
}

/// A duration, in a suitable unit.
fn length(length: TimeDelta) -> String {
    match length.num_seconds() {
        ..60 => format!("{} s", length.num_seconds().max(0)),
        60..3600 => format!("{} min", length.num_minutes()),
        3600..172_800 => format!("{} h", length.num_hours()),
        _ => format!("{} days", length.num_days()),
    }
}

fn random_id(prefix: &str) -> String {
    crate::clerk::sample::id(prefix, rand::random)
}

/// The complete configuration, for commands that need no signing secret.
fn resolve(settings: &Settings) -> Result<Config, Failure> {
    Ok(settings.resolve(Needs::default())?)
}
