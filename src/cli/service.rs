//! `serve`: the service, from its configuration to its last answer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use chrono::TimeDelta;
use clap::Args;
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::{Instant, error::Elapsed, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Failure, Signals, catching_up, clock, diagnosis, migrate, notify, open_store, rules, sinks};
use crate::{
    clerk::{addresses, sample, signature::Verifier},
    config::{AllowedAddresses, Config, Needs, Settings},
    entity,
    http::{self, Addresses, Api, App, Bodies, ConnectionLimits, Dashboard, Probe},
    model::{Idle, Processing},
    store::{ErrorKind, Missing, Readiness, Store, StoreError},
    stream::{Durability, Stream},
    sync::{
        Committer, Frontier, Lanes, Limits, Pace, Rules,
        drain::BATCH,
        ensure::Ensure,
        instance::{Gate, Pin},
        stream::Intake,
    },
    telemetry,
    work::{
        CatchUpLoop, CatchUpSettings, Gauges, Lookout, Queue, Retention, Sealing, Streaming,
        activity::{Answers, Recorder},
        outbox::{Destination, Outbox},
        retention::{Keep, PRUNE, PRUNE_QUIETLY},
        worker::Worker,
    },
};

/// How often the database is tried at the start until it answers.
const RETRY: Duration = Duration::from_millis(500);

/// The minimum time that a server gets to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// File descriptors to ask for: connections, plus some for the database and the log.
const DESCRIPTORS: u64 = 65_536;

/// Connections that the kernel queues until they are accepted. A burst of senders overflows tokio's default of 128: clients
/// then wait for seconds, or believe that they are connected and never are.
const BACKLOG: u32 = 4096;

/// How long sending the last spans may take: at least the first, even if shutdown is late, and at most the second.
const TRACE_TIME: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// How long giving back a lease may take.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// Run the service; applies pending migrations first
#[derive(Args)]
pub(super) struct Serve {
    /// Do not apply migrations; /readyz answers 503 until they are applied
    #[arg(long)]
    no_migrate: bool,

    /// Only receive webhooks: other processes apply the queue
    #[arg(long)]
    no_worker: bool,
}

impl Serve {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let role = if self.no_worker { Role::Receive } else { Role::Both };
        run(role, &settings.resolve(Needs::SERVE)?, !self.no_migrate).await
    }
}

/// Run the service in this role until a signal arrives.
pub(super) async fn run(role: Role, config: &Config, migrate: bool) -> Result<(), Failure> {
    init_log(config)?;
    let destinations = sinks::destinations(config)?;
    let stream = wait_for_stream(config).await?;
    // With a stream, webhooks are received without a database.
    let first = match &stream {
        Some(_) if role != Role::Work => prepare(config, migrate, PATIENCE).await,
        _ => Ok(wait_for_store(config, migrate).await?),
    };
    let (store, unprepared) = match first {
        Ok(store) => {
            warn_of_origin(config, &*store).await;
            warn_of_hidden_rows(&*store).await;
            (store, None)
        }
        Err(error) if may_pass(&error) => {
            tracing::warn!(
                %error,
                "the database cannot be used yet: webhooks are received, and applied once it is available"
            );
            let (store, prepared) = (open_store(config, false).await?, CancellationToken::new());
            tokio::spawn(prepare_later(config.clone(), Arc::clone(&store), migrate, prepared.clone()));
            (store, Some(prepared))
        }
        Err(error) => return Err(error.into()),
    };
    let limits = Limits::default();
    let service = Service::start(role, config, store, stream, unprepared.as_ref(), limits, destinations)?;
    service.announce(config).await;
    service.run_until_asked_to_stop().await
}

/// The stream, once its server has proved that it keeps confirmed entries.
async fn wait_for_stream(config: &Config) -> Result<Option<Stream>, Failure> {
    let Some(options) = config.stream.clone() else { return Ok(None) };
    if options.durability == Durability::Trust {
        tracing::warn!(
            "QUEUE_DURABILITY=trust: webhooks are answered before they are known to be on disk; if the server of QUEUE_URL loses \
             entries, those webhooks are lost"
        );
    }
    let stream = Stream::new(options)?;
    let began = Instant::now();
    let mut told = false;
    loop {
        let error = match stream.check().await {
            Ok(()) => return Ok(Some(stream)),
            Err(error) => error,
        };
        if !error.may_pass() || began.elapsed() >= config.database_wait {
            return Err(Failure::from(error));
        }
        if !told {
            told = true;
            tracing::warn!(%error, "waiting for the server of QUEUE_URL");
        }
        sleep(RETRY).await;
    }
}

/// Prepare a database that was unreachable at the start, however long that takes.
async fn prepare_later(config: Config, store: Arc<dyn Store>, migrate: bool, prepared: CancellationToken) {
    let mut last = None;
    loop {
        let readiness = timeout(PATIENCE, store.ready()).await.unwrap_or_else(unavailable);
        let is_ready = match readiness {
            Ok(readiness) => bring_up_to_date(&*store, readiness, migrate).await,
            Err(error) => Err(error),
        };
        match is_ready {
            Ok(()) => {
                tracing::info!("the database is available: work begins");
                warn_of_origin(&config, &*store).await;
                warn_of_hidden_rows(&*store).await;
                return prepared.cancel();
            }
            Err(error) if !may_pass(&error) && last.as_ref() != Some(&error) => {
                tracing::error!(%error, "the database cannot be used: webhooks wait in the stream");
                last = Some(error);
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// What a process does with webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Both,
    /// The process receives webhooks, and leaves the queue to others.
    Receive,
    /// The process applies the queue.
    Work,
}

/// Start logging, and log the configuration's warnings first.
pub(super) fn init_log(config: &Config) -> Result<(), Failure> {
    let filter = telemetry::filter(&config.log_filter)
        .ok_or_else(|| Failure::configuration("RUST_LOG cannot be parsed"))?;
    let format = config.log_format.unwrap_or_else(telemetry::LogFormat::of_stderr);
    telemetry::init(format, filter, config.sentry.as_ref());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Whether the error may pass without a change by the operator.
fn may_pass(error: &StoreError) -> bool {
    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Locked | ErrorKind::Conflict)
        && !error.is_closed_door()
}

/// Wait until the database answers, and apply the migrations.
pub(super) async fn wait_for_store(config: &Config, migrate: bool) -> Result<Arc<dyn Store>, Failure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let left = config.database_wait.saturating_sub(began.elapsed()).max(PATIENCE);
        let error = match prepare(config, migrate, left).await {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        if !may_pass(&error) {
            return Err(Failure::from(error));
        }
        if began.elapsed() >= config.database_wait {
            let why = diagnosis(&config.database).await.map(|why| format!(": {why}")).unwrap_or_default();
            return Err(Failure::unreachable(format!(
                "{error}{why}; waited {} s (DATABASE_WAIT_SECONDS). Is the server that DATABASE_URL names running, and is \
                 this user allowed to connect?",
                config.database_wait.as_secs()
            )));
        }
        if !told {
            told = true;
            let why = diagnosis(&config.database).await;
            tracing::warn!(%error, why, "waiting for the database");
        }
        sleep(RETRY).await;
    }
}

/// Warn if the database holds samples, which are for trials, or users of another Clerk instance than the configured one: the
/// operator has probably named the wrong database.
async fn warn_of_origin(config: &Config, store: &dyn Store) {
    let Some(origin) = store.origin().await.ok().flatten() else { return };
    if let Pin::Only(pinned) = Pin::of(config.instance_id.as_deref())
        && pinned != origin.instance
    {
        tracing::warn!(
            pinned,
            known = origin.instance,
            "CLERK_INSTANCE_ID is not the Clerk instance that the users of this database came from: events of CLERK_INSTANCE_ID \
             are applied alongside them; see the runbook (ClerkSyncOtherInstance)"
        );
    }
    if origin.instance == sample::INSTANCE {
        tracing::warn!(
            "`clerk-sync dev` has written made-up users to this database: set DATABASE_URL to another database for real users"
        );
    }
}

/// Rows that row level security hides cannot be erased, and the database gives no error.
pub(super) async fn warn_of_hidden_rows(store: &dyn Store) {
    for Missing { what, remedy } in store.hidden().await.unwrap_or_default() {
        tracing::error!(remedy, "{what}; until this is fixed, erasures stay open and /readyz answers 503");
    }
}

/// The time limit covers only reaching the server; migrations may take any time.
async fn prepare(config: &Config, migrate: bool, patience: Duration) -> Result<Arc<dyn Store>, StoreError> {
    let reach = async {
        let store = open_store(config, false).await?;
        let readiness = store.ready().await?;
        Ok((store, readiness))
    };
    let (store, readiness) = timeout(patience, reach).await.unwrap_or_else(unavailable)?;
    bring_up_to_date(&*store, readiness, migrate).await?;
    Ok(store)
}

async fn bring_up_to_date(store: &dyn Store, readiness: Readiness, migrate: bool) -> Result<(), StoreError> {
    if migrate {
        migrate::apply(store).await?;
    } else if readiness == Readiness::SchemaNotCurrent {
        tracing::warn!("migrations are pending: run `clerk-sync migrate`; until then /readyz answers 503");
    }
    Ok(())
}

fn unavailable<T>(_: Elapsed) -> Result<T, StoreError> {
    Err(StoreError::new(ErrorKind::Unavailable))
}

/// The running service.
pub struct Service {
    /// The address of the public listener, if webhooks are received.
    pub public: Option<SocketAddr>,
    /// The address of the private listener.
    pub private: SocketAddr,
    shutdown: CancellationToken,
    grace: Duration,
    listeners: JoinSet<()>,
    upkeep: JoinSet<()>,
    /// Tasks that give back their leases, or write their last counts, before they end.
    catch_up: JoinSet<()>,
    /// These tasks finish the deliveries that they have begun.
    workers: JoinSet<()>,
    /// These tasks finish the messages that are being delivered.
    outbox: JoinSet<()>,
    lanes: Lanes,
    store: Arc<dyn Store>,
}

impl Service {
    /// Start the parts of this role. Parts that need a prepared database begin once the token is cancelled.
    ///
    /// # Errors
    /// If an address cannot be bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[expect(clippy::too_many_lines, reason = "a sequence of short steps")]
    pub fn start(
        role: Role,
        config: &Config,
        store: Arc<dyn Store>,
        stream: Option<Stream>,
        unprepared: Option<&CancellationToken>,
        limits: Limits,
        destinations: Vec<Destination>,
    ) -> Result<Self, Failure> {
        // If the limit cannot be raised, accepting pauses when descriptors run out.
        let _ = rlimit::increase_nofile_limit(DESCRIPTORS);
        let receives = role != Role::Work;
        let public = receives.then(|| listen(config.listen, "HOST and PORT")).transpose()?;
        let (private, private_address) = listen(config.admin_listen, "ADMIN_HOST and ADMIN_PORT")?;
        let public_address = public.as_ref().map(|(_, address)| *address);
        let limits = if receives { limits } else { Limits { lanes: Some(0), ..limits } };

        telemetry::begin_tracing();
        let metrics = telemetry::install_metrics();
        for entity in config.selection.entities() {
            telemetry::count_events(entity.kind, entity.event_types());
        }
        let clock = clock();
        let started_at = clock();
        let shutdown = CancellationToken::new();
        let rules = rules(config);
        let catch_up_context = catching_up(config, &store, rules.clone(), None)?;
        let answers = Answers::default();
        let told: Vec<String> =
            destinations.iter().map(|destination| destination.subscription.sink.clone()).collect();
        let gauges = Gauges::new(Arc::clone(&store), Arc::clone(&clock), config.idle, &told);
        let gauges = Arc::new(gauges.with(stream.clone()));
        let (committer, lanes) = Committer::start(&store, stream.as_ref(), &rules, limits, &clock);
        let gate = Gate::new(Pin::of(config.instance_id.as_deref()), Arc::clone(&store), Arc::clone(&clock));
        let gate = Arc::new(gate);
        let admin_token = config.admin_token.as_ref().map(ExposeSecret::expose_secret);
        let app = Arc::new(App {
            verifier: Verifier::new(config.signing_secrets.clone(), config.webhook_tolerance_seconds),
            committer: committer.clone(),
            probe: Probe::new(Arc::clone(&store), config.idle),
            api: Api::new(
                Arc::clone(&store),
                entity::ALL,
                admin_token,
                catch_up_context.clone().map(Ensure::new),
            ),
            dashboard: Dashboard::new(admin_token),
            sinks: config.sinks.iter().map(|sink| sink.name.clone()).collect(),
            scrapers: http::Scrapers::new(config.metrics_token.as_ref().map(ExposeSecret::expose_secret)),
            bodies: Bodies::new(config.webhook_max_body_bytes),
            answers: answers.clone(),
            gauges: Arc::clone(&gauges),
            resends: http::Resends::default(),
            addresses: allowed_addresses(config),
            selection: rules.selection.clone(),
            gate: Arc::clone(&gate),
            stream: stream.clone().map(Probe::of_stream),
            clock: Arc::clone(&clock),
            answer_within: http::ANSWER_WITHIN,
            shutdown: shutdown.clone(),
        });
        let mut listeners = JoinSet::new();
        let mut serve = |listener, routes, limits| {
            listeners.spawn(http::serve(listener, routes, limits, shutdown.clone(), config.shutdown_grace));
        };
        if let Some((public, _)) = public {
            serve(public, http::public_routes(Arc::clone(&app)), ConnectionLimits::default());
        }
        // Proxies keep connections to the public listener open. Clients of the private one reconnect for each request.
        let at_once = ConnectionLimits { farewell: Duration::ZERO, ..ConnectionLimits::default() };
        serve(private, http::private_routes(app, metrics.clone()), at_once);
        let (mut workers, mut outbox) = (JoinSet::new(), JoinSet::new());
        let works = role != Role::Receive;
        if works {
            let dispatching = Outbox {
                store: Arc::clone(&store),
                destinations,
                bell: Arc::clone(&rules.bell),
                clock: Arc::clone(&clock),
            };
            outbox.spawn(once(unprepared, &shutdown, dispatching.run(shutdown.clone())));
            let queue = Queue {
                store: Arc::clone(&store),
                rules: rules.clone(),
                clock: Arc::clone(&clock),
                pace: Pace::new(BATCH),
                frontier: Frontier::default(),
            };
            let worker = Worker::new(queue, store.writers(), &committer.bell());
            workers.spawn(once(unprepared, &shutdown, worker.run(shutdown.clone())));
            if let Some(stream) = stream {
                let rules = Rules { processing: Processing::Inline, ..rules.clone() };
                let intake = Intake { store: Arc::clone(&store), rules, gate, bell: committer.bell() };
                let streaming = Streaming::new(stream, intake, Arc::clone(&clock));
                let worker = Worker::new(streaming, store.writers(), &Arc::default());
                workers.spawn(once(unprepared, &shutdown, worker.run(shutdown.clone())));
            }
        }
        let recorder = Recorder { store: Arc::clone(&store), answers };
        let (mut upkeep, mut catch_up) = (JoinSet::new(), JoinSet::new());
        upkeep.spawn(telemetry::upkeep(metrics, started_at));
        let lookout = Lookout {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            idle: config.idle,
            sinks: if works { told } else { Vec::new() },
            frontier: Frontier::default(),
            queue: works.then(|| committer.bell()),
            outbox: works.then(|| Arc::clone(&rules.bell)),
            seals: Arc::default(),
            erasures: Arc::default(),
            gauges: Arc::clone(&gauges),
        };
        let sealing = Sealing::new(Arc::clone(&store), Arc::clone(&clock));
        let sealing = Worker::new(sealing, 1, &lookout.seals);
        let every = match config.idle {
            Idle::Normal => PRUNE,
            Idle::Quiet => PRUNE_QUIETLY,
        };
        let retention = Retention::new(Arc::clone(&store), rules, Arc::clone(&clock), keep(config), every);
        let retention = Worker::new(retention, 1, &lookout.erasures);
        upkeep.spawn(once(unprepared, &shutdown, lookout.run(shutdown.clone())));
        // Fill the metrics before the first scrape, and log deliveries and messages that no process handles.
        upkeep.spawn(async move { gauges.refresh().await });
        catch_up.spawn(once(unprepared, &shutdown, retention.run(shutdown.clone())));
        catch_up.spawn(once(unprepared, &shutdown, sealing.run(shutdown.clone())));
        let recorder = Worker::new(recorder, 1, &Arc::default());
        catch_up.spawn(once(unprepared, &shutdown, recorder.run(shutdown.clone())));
        if let Some(context) = catch_up_context.filter(|_| receives) {
            let settings = CatchUpSettings {
                every: config.reconcile_interval,
                after: config.catch_up_after,
                on_empty: config.catch_up_on_empty,
                looks: config.idle == Idle::Normal,
                started_at,
            };
            let catching_up = CatchUpLoop::new(context, settings).run(shutdown.clone());
            catch_up.spawn(once(unprepared, &shutdown, catching_up));
        }
        Ok(Self {
            public: public_address,
            private: private_address,
            shutdown,
            grace: config.shutdown_grace,
            listeners,
            upkeep,
            catch_up,
            workers,
            outbox,
            lanes,
            store,
        })
    }

    /// Log the addresses, and whether the service is ready.
    async fn announce(&self, config: &Config) {
        let state = match timeout(PATIENCE, self.store.ready()).await.unwrap_or(Ok(Readiness::Ready)) {
            Ok(Readiness::SchemaNotCurrent) => "listening, but not ready until the migrations are applied",
            Ok(Readiness::RowsHidden) => "listening, but not ready while row level security hides rows",
            _ => "ready",
        };
        let webhooks = self.public.map(|address| format!("http://{address}/webhooks/clerk"));
        tracing::info!(
            webhooks,
            private = %format_args!("http://{}", self.private),
            database = config.database.place(),
            version = env!("CARGO_PKG_VERSION"),
            "{state}"
        );
    }

    /// Run until SIGTERM or SIGINT, then stop in good order. A second signal stops at once.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub async fn run_until_asked_to_stop(self) -> Result<(), Failure> {
        let mut signals = Signals::listen()?;
        let informing = tokio::spawn(notify::keep_informed(self.private));
        let (name, _) = signals.next().await;
        informing.abort();
        notify::stopping();
        tracing::info!(signal = name, "stopping: no new requests, requests in progress are finished");
        tokio::select! {
            () = self.stop() => {
                tracing::info!("stopped");
                Ok(())
            }
            (name, _) = signals.next() => Err(Failure::failed(format!("{name} again: stopped at once"))),
        }
    }

    /// Stop listening, answer open requests, commit pending work, close the database.
    pub async fn stop(mut self) {
        let deadline = Instant::now() + self.grace;
        self.shutdown.cancel();
        self.lanes.hold_no_longer();
        while self.listeners.join_next().await.is_some() {}
        self.upkeep.shutdown().await;
        let _ = timeout(LEASE_TIME, self.catch_up.join_all()).await;
        let left = || deadline.saturating_duration_since(Instant::now());
        let finished = async { tokio::join!(self.lanes.finish(), self.workers.join_all()) };
        if timeout(left().max(Duration::from_secs(1)), finished).await.is_err() {
            tracing::warn!(
                "the database or the queue did not finish within SHUTDOWN_GRACE_SECONDS; Svix sends unanswered deliveries \
                 again, and queued deliveries stay in the queue"
            );
        }
        if timeout(left(), self.outbox.join_all()).await.is_err() {
            tracing::warn!("a sink did not answer within SHUTDOWN_GRACE_SECONDS; its message is sent again");
        }
        telemetry::finish_tracing(left().clamp(TRACE_TIME.0, TRACE_TIME.1)).await;
        // The end of the process closes a connection that hangs.
        let _ = timeout(Duration::from_secs(1), self.store.close()).await;
    }
}

/// Do the work once the token `come` is cancelled, unless the shutdown comes first.
fn once<W: Future<Output = ()> + Send + 'static>(
    come: Option<&CancellationToken>,
    shutdown: &CancellationToken,
    work: W,
) -> impl Future<Output = ()> + Send + use<W> {
    let (come, shutdown) = (come.cloned(), shutdown.clone());
    async move {
        if let Some(come) = come
            && shutdown.run_until_cancelled(come.cancelled()).await.is_none()
        {
            return;
        }
        work.await;
    }
}

/// How long rows are kept.
pub(super) fn keep(config: &Config) -> Keep {
    let days = |kept| TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX);
    Keep { processed: days(config.processed_retention), dead: days(config.dead_retention) }
}

/// A listener, and its address.
fn listen(address: SocketAddr, variables: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of a previous process that the kernel still remembers must not prevent the start.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok::<_, io::Error>((listener, address))
    };
    bound().map_err(|error| Failure::failed(format!("cannot listen on {address} ({variables}): {error}")))
}

fn allowed_addresses(config: &Config) -> Addresses {
    let allowed = match &config.webhook_allowed_ips {
        AllowedAddresses::Any => None,
        AllowedAddresses::Svix => Some(addresses::SVIX.to_vec()),
        AllowedAddresses::Networks(networks) => Some(networks.clone()),
    };
    Addresses { allowed, trusted_proxies: config.trusted_proxies.clone() }
}
