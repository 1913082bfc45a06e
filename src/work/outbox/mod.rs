//! The dispatcher: delivers messages from the outbox to the sinks, at least once, and for each user in the order of the changes.
//!
//! Every sink has its own workers, breaker and rate limit, so that a failing or hanging sink does not delay the others. A worker
//! claims a message in one short transaction, hands it over outside any transaction, and records the result in another. The
//! claims of a dead process become free when its lease ends, at most half a minute later. A late result changes nothing: the
//! lease's token is a fence. Each sink decides how it uses a message; nothing here knows the contents of a user.
//!
//! For a sink that answers quickly, the database costs more time than the network. So a worker claims messages of several users
//! at once, as many as the sink has recently taken in a tenth of a second. It hands them over one after another and records the
//! results together. Messages that it has not started by then, or when the sink fails, become free again.

mod breaker;
pub mod ending;

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    ops::RangeInclusive,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock as _};
use metrics::{counter, histogram};
use tokio::{
    sync::{Notify, OnceCell, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    breaker::{Breaker, Pass},
    ending::Ending,
};
use super::{
    patient,
    sinks::{Again, Recipient, Refusal, Sink},
    time_between,
    worker::{Task, Turn, Worker},
};
use crate::{
    model::{Message, Subscription},
    store::{Claimed, Elsewhere, ErrorKind, Lease, Store, StoreError, token},
    sync::{
        Clock, Frontier,
        retry::{Retry, due_at, due_times},
    },
    telemetry::{self, Queue, Span},
};

/// The longest time for handing over one message, so that a lease lasts at most half a minute.
const LONGEST: Duration = Duration::from_secs(25);

/// How much longer the lease lasts than the hand-over may take, to allow for the transactions around it and for clock
/// differences.
const MARGIN: Duration = Duration::from_secs(5);

const _: () =
    assert!(LONGEST.as_secs() + MARGIN.as_secs() <= 30, "the claims of a dead process must end within 30 s");

/// The longest pause that a sink can ask for.
const LONGEST_HOLD: Duration = Duration::from_hours(1);

/// While a sink is down, attempts do not count, except for messages older than this. A message that itself brings the
/// sink down must not block its user's other messages permanently.
const DOWN_FOR: TimeDelta = TimeDelta::days(1);

/// The maximum number of concurrent transactions of all dispatchers, so that webhooks always have connections left.
const DESKS: usize = 2;

/// How long a worker continues with one portion. If the process dies, the portion's deliveries without a recorded result are
/// repeated.
const PORTION_TIME: Duration = Duration::from_millis(100);

/// The maximum number of messages that a worker claims at once.
const LARGEST_PORTION: usize = 64;

/// Waits between attempts to record how a delivery ended.
const PERSISTENCE: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1500)];

/// How often we check whether an open breaker lets a probe pass.
const BREAK: Duration = Duration::from_millis(500);

/// Why a deletion stays open although the sink has taken it.
const ELSEWHERE: &str =
    "erased at the sink's current address, but not at its previous one: see `clerk-sync sinks moved`";

/// A sink, and how messages are delivered to it.
#[derive(Clone)]
pub struct Destination {
    /// The messages that it receives.
    pub subscription: Subscription,
    pub settings: DeliverySettings,
    pub sink: Arc<dyn Sink>,
    /// The identity of the system, as a hash without spaces.
    pub address: String,
}

/// How messages are delivered to one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverySettings {
    /// The time limit for handing over one message; more than 25 s counts as 25 s.
    pub timeout: Duration,
    /// Concurrent deliveries, each for a different user.
    pub concurrency: usize,
    /// Messages per second.
    pub rate: Option<NonZeroU32>,
    /// The number of attempts after which a message is dead; a deletion never dies.
    pub attempts: u32,
}

impl Default for DeliverySettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), concurrency: 4, rate: None, attempts: 15 }
    }
}

/// The dispatchers of all sinks.
pub struct Outbox {
    pub store: Arc<dyn Store>,
    pub destinations: Vec<Destination>,
    /// Notified when messages were written.
    pub bell: Arc<Notify>,
    pub clock: Clock,
}

impl Outbox {
    /// Run until shutdown, and until deliveries in progress end.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { store, destinations, bell, clock } = self;
        let desks = Arc::new(Semaphore::new(DESKS));
        let mut bells = Vec::new();
        let mut work = JoinSet::new();
        for destination in destinations {
            let places = destination.settings.concurrency.max(1);
            let mut dispatcher = Dispatcher::new(Arc::clone(&store), destination, Arc::clone(&clock));
            dispatcher.desks = Arc::clone(&desks);
            dispatcher.begin_to_count();
            let bell = Arc::clone(&dispatcher.bell);
            bells.push(Arc::clone(&bell));
            work.spawn(Worker::new(dispatcher, places, &bell).run(shutdown.clone()));
        }
        // New messages wake one place per sink. A place that finds work wakes the next one.
        let waking = async {
            loop {
                bell.notified().await;
                for bell in &bells {
                    bell.notify_one();
                }
            }
        };
        tokio::join!(shutdown.run_until_cancelled(waking), work.join_all());
    }
}

/// Delivers to one sink. A turn claims a portion of due messages, hands them over, and records the results.
pub struct Dispatcher {
    store: Arc<dyn Store>,
    destination: Destination,
    clock: Clock,
    /// Notified when there is work.
    pub bell: Arc<Notify>,
    /// The retry policy of messages.
    pub retry: Retry,
    /// The time from which messages are searched.
    pub frontier: Frontier,
    breaker: Arc<Mutex<Breaker>>,
    limiter: Option<DefaultDirectRateLimiter>,
    desks: Arc<Semaphore>,
    /// How many messages the sink will probably take within [`PORTION_TIME`].
    portion: AtomicUsize,
    /// Set once the sink's address is recorded.
    pointed: OnceCell<()>,
}

impl Dispatcher {
    pub fn new(store: Arc<dyn Store>, destination: Destination, clock: Clock) -> Self {
        let DeliverySettings { rate, attempts, .. } = destination.settings;
        Self {
            store,
            clock,
            bell: Arc::default(),
            retry: Retry { max_attempts: attempts, ..Retry::default() },
            frontier: Frontier::default(),
            breaker: Arc::new(Mutex::new(Breaker::new(&destination.subscription.sink))),
            limiter: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
            desks: Arc::new(Semaphore::new(DESKS)),
            portion: AtomicUsize::new(1),
            pointed: OnceCell::new(),
            destination,
        }
    }

    fn name(&self) -> &str {
        &self.destination.subscription.sink
    }

    /// Start at zero: a counter that only appears at its first failure has no rate to alert on.
    fn begin_to_count(&self) {
        for outcome in telemetry::DELIVERY_OUTCOMES {
            counter!(telemetry::DELIVERIES, "sink" => self.name().to_owned(), "outcome" => outcome)
                .absolute(0);
        }
        locked(&self.breaker).show(true);
    }

    /// Call the store once a desk is free.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let _desk = self.desks.acquire().await;
        patient(call).await
    }

    /// How long the sink may take to answer.
    fn patience(&self) -> Duration {
        self.destination.settings.timeout.min(LONGEST)
    }

    /// When the first waiting message is due, and whether all were searched.
    async fn first_due(&self) -> Result<(Option<DateTime<Utc>>, bool), StoreError> {
        self.ask(async {
            let look = self.frontier.look((self.clock)(), Instant::now());
            let first = self.store.first_message_due(self.name(), look.since).await;
            Ok((self.frontier.learn(look, first, Instant::now())?, look.is_whole()))
        })
        .await
    }

    /// Claim messages with these due times; returns them with the deadline for the last hand-over.
    async fn claim(
        &self,
        due: RangeInclusive<DateTime<Utc>>,
        limit: usize,
    ) -> Result<(Vec<Claimed>, Instant), StoreError> {
        self.ask(async {
            // Start the lease only now: the sink must not pay for the wait for a desk.
            let lasting = TimeDelta::from_std(self.patience() + MARGIN).unwrap_or_default();
            let (now, deadline) = ((self.clock)(), Instant::now() + self.patience() + MARGIN / 2);
            let token = token();
            let address = self.destination.address.clone();
            let lease = Lease { token, now, until: now + lasting, address };
            let limit = u32::try_from(limit).unwrap_or(1);
            Ok((self.store.claim_messages(self.name(), due, &lease, limit).await?, deadline))
        })
        .await
    }

    /// Record the sink's address before the first delivery, and warn if the sink has moved.
    async fn point(&self) -> Result<(), StoreError> {
        let address = &self.destination.address;
        let pointing = async || {
            self.ask(self.store.point_sink(self.name(), address, false, (self.clock)())).await?;
            match patient(self.store.told_elsewhere(self.name(), address)).await {
                Ok(Elsewhere { users: 0, .. }) => {}
                Ok(Elsewhere { users, .. }) => tracing::warn!(
                    sink = self.name(),
                    users,
                    "this sink has a new address: the erasure of users that it received at the previous address cannot be \
                     confirmed there; restore the address and name the new system differently, or run \
                     `clerk-sync sinks moved` if it is the same system"
                ),
                Err(error) => {
                    tracing::warn!(sink = self.name(), %error, "could not determine which addresses have received users");
                }
            }
            Ok(())
        };
        self.pointed.get_or_try_init(pointing).await.copied()
    }

    /// For a deletion that the sink took at its current address: whether the sink also received the user at another
    /// address. The deletion then stays open.
    async fn is_elsewhere(&self, claimed: &Claimed) -> bool {
        let erased_here = format!("-{}", self.destination.address);
        let mut places = self.other_places(claimed);
        if !claimed.kind.is_deletion() || places.iter().all(|place| place.starts_with('-')) {
            return false;
        }
        places.insert(&erased_here);
        let addresses = places.into_iter().collect::<Vec<_>>().join(" ");
        if addresses != claimed.addresses {
            let keeping = self.store.keep_addresses(&claimed.sink, &claimed.clerk_id, &addresses);
            if let Err(error) = self.ask(keeping).await {
                tracing::warn!(sink = self.name(), %error, "the result of a deletion was not recorded; it will be repeated");
            }
        }
        true
    }

    /// Other addresses at which the sink received the user, with a `-` in front if the user was erased there: see
    /// [`Claimed::addresses`].
    fn other_places<'a>(&self, claimed: &'a Claimed) -> BTreeSet<&'a str> {
        let places = claimed.addresses.split_whitespace();
        places.filter(|place| place.trim_start_matches('-') != self.destination.address).collect()
    }

    /// Hand over a message within a span of its trace, except a deletion that the sink's current address took before.
    async fn deliver(&self, claimed: &Claimed) -> Result<(), Refusal> {
        let Claimed { message_id, kind, trace, attempts, addresses, .. } = claimed;
        let erased_here = format!("-{}", self.destination.address);
        if kind.is_deletion() && addresses.split_whitespace().any(|place| place == erased_here) {
            return Ok(());
        }
        let span =
            Span::process(Queue::Outbox(self.name()), message_id, Some(&kind.name()), trace, *attempts);
        let result = self.call(claimed, &span).await;
        match &result {
            Ok(()) => span.done("delivered"),
            Err(Refusal { again: Again::Later(_), .. }) => span.failed("not_taken_now"),
            Err(Refusal { again: Again::Never, .. }) => span.failed("refused"),
        }
        result
    }

    /// Call the sink in a separate task, so that a panic is a refusal like any other.
    async fn call(&self, claimed: &Claimed, span: &Span) -> Result<(), Refusal> {
        let unreadable = |_| Refusal::never("the stored message is unreadable");
        let mut message = Message::read(claimed.kind, &claimed.payload).map_err(unreadable)?;
        let mut body = claimed.payload.clone();
        // The operator may have removed a field from the sink since the message was written.
        if message.keep_only(self.destination.subscription.fields.fields(claimed.kind.entity)) {
            body = serde_json::to_string(&message).map_err(unreadable)?;
        }
        let sink = Arc::clone(&self.destination.sink);
        let memory = Recipient {
            store: Arc::clone(&self.store),
            desks: Arc::clone(&self.desks),
            sink: claimed.sink.clone(),
            clerk_id: claimed.clerk_id.clone(),
            address: self.destination.address.clone(),
            is_elsewhere: !self.other_places(claimed).is_empty(),
        };
        let delivering = span.around(async move { sink.deliver(&message, &body, &memory).await });
        let mut handing = tokio::spawn(delivering);
        match timeout(self.patience(), &mut handing).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Refusal::later("a bug in clerk-sync: see the log")),
            Err(_) => {
                handing.abort();
                Err(Refusal::later("no answer in time"))
            }
        }
    }

    /// Decide how the delivery ended.
    fn ending(
        &self,
        claimed: &Claimed,
        result: Result<(), Refusal>,
        pass: &Pass,
        now: DateTime<Utc>,
    ) -> Ending {
        let Err(Refusal { reason: error, again }) = result else { return Ending::Delivered };
        let is_deletion = claimed.kind.is_deletion();
        if again == Again::Never && !is_deletion {
            return Ending::Dead { attempts: claimed.attempts + 1, error };
        }
        let counts = !pass.is_probe() || now - claimed.created_at > DOWN_FOR;
        let attempts = claimed.attempts + u32::from(counts);
        let waited = attempts.max(1);
        let at = if is_deletion || !counts {
            Some(self.retry.always_after(waited, &claimed.message_id, now))
        } else {
            self.retry.after(waited, &claimed.message_id, now)
        };
        let Some(at) = at else { return Ending::Dead { attempts, error } };
        let asked = match again {
            Again::Later(Some(wait)) => wait.min(LONGEST_HOLD),
            Again::Later(None) | Again::Never => Duration::ZERO,
        };
        Ending::Again { attempts, at: at.max(now + asked), error }
    }

    /// Record how the deliveries ended; those that cannot be recorded are repeated when the lease has ended.
    async fn finish(&self, ended: &[(Claimed, Ending)]) -> Result<(), StoreError> {
        match self.write(ended).await {
            // Another transaction holds one of the users; the other users do not wait for it.
            Err(StoreError { kind: ErrorKind::Locked, .. }) if ended.len() > 1 => {
                let mut result = Ok(());
                for one in ended.chunks(1) {
                    result = self.write(one).await.and(result);
                }
                result
            }
            result => result,
        }
    }

    async fn write(&self, ended: &[(Claimed, Ending)]) -> Result<(), StoreError> {
        if ended.is_empty() {
            return Ok(());
        }
        let mut pauses = PERSISTENCE.iter();
        loop {
            let error = match self.ask(ending::finish(&*self.store, ended, (self.clock)())).await {
                Ok(written) => {
                    let late = ended.len() as u64 - written;
                    if late > 0 {
                        tracing::debug!(sink = self.name(), late, "results came after the lease ended");
                    }
                    return Ok(());
                }
                Err(error) if error.kind == ErrorKind::Locked && ended.len() > 1 => return Err(error),
                Err(error) => error,
            };
            let Some(pause) = pauses.next() else { return Err(error) };
            sleep(*pause).await;
        }
    }

    /// The pass for another message; `None` if the breaker is open, the rate is used up, or the portion has run out of time.
    fn next_pass(&self, began: Instant) -> Option<Pass> {
        if began.elapsed() > PORTION_TIME {
            return None;
        }
        let pass = Breaker::enter(&self.breaker, Instant::now())?;
        let is_allowed = self.limiter.as_ref().is_none_or(|limiter| limiter.check().is_ok());
        (is_allowed && !pass.is_probe()).then_some(pass)
    }

    /// Hand over the claimed messages one after another, and record the results. The last hand-over ends by the deadline.
    async fn work_through(
        &self,
        claimed: Vec<Claimed>,
        mut pass: Pass,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let all = claimed.len();
        let mut waiting = claimed.into_iter();
        let mut ended: Vec<(Claimed, Ending)> = Vec::with_capacity(all);
        let (mut handed_over, mut failed) = (0, false);
        while let Some(message) = waiting.next() {
            let handing_over = Instant::now();
            if handing_over + self.patience() > deadline {
                // The database used up too much of the lease, which the sink could not know.
                ended.push((message, Ending::Untried));
                break;
            }
            let result = {
                let mut handing = pin!(self.deliver(&message));
                if let Ok(result) = timeout(PORTION_TIME.saturating_sub(began.elapsed()), &mut handing).await
                {
                    result
                } else {
                    // The other messages do not wait for this one.
                    ended.extend(waiting.by_ref().map(|message| (message, Ending::Untried)));
                    let (result, written) = tokio::join!(handing, self.finish(&ended));
                    ended.clear();
                    if let Err(error) = written {
                        tracing::warn!(sink = self.name(), %error, "deliveries could not be recorded; they will be repeated");
                    }
                    result
                }
            };
            let took = handing_over.elapsed();
            match &result {
                Ok(()) | Err(Refusal { again: Again::Never, .. }) => pass.answered(),
                Err(Refusal { again: Again::Later(hold), reason }) => {
                    failed = true;
                    pass.failed(Instant::now(), hold.map(|hold| hold.min(LONGEST_HOLD)), reason);
                }
            }
            let mut ending = self.ending(&message, result, &pass, (self.clock)());
            if ending == Ending::Delivered && self.is_elsewhere(&message).await {
                let attempts = message.attempts + 1;
                // Only an operator can resolve this, which makes the message due immediately.
                let at = self.retry.always_after(attempts.max(30), &message.message_id, (self.clock)());
                ending = Ending::Again { attempts, at, error: ELSEWHERE.to_owned() };
            }
            self.tell(&message, &ending, took);
            ended.push((message, ending));
            handed_over += 1;
            if failed || waiting.len() == 0 {
                break;
            }
            let Some(next) = self.next_pass(began) else { break };
            pass = next;
        }
        // The probe ends before its result is recorded.
        drop(pass);
        ended.extend(waiting.map(|message| (message, Ending::Untried)));
        self.adapt(all, handed_over, failed, began.elapsed());
        self.finish(&ended).await
    }

    /// Learn the size of the next portion from the last one.
    fn adapt(&self, claimed: usize, handed_over: usize, failed: bool, took: Duration) {
        let portion = self.portion.load(Ordering::Relaxed);
        let next = if failed {
            1
        } else if handed_over < claimed || took > PORTION_TIME {
            handed_over.max(1)
        } else if claimed >= portion && took < PORTION_TIME / 2 {
            (portion * 2).min(LARGEST_PORTION)
        } else {
            return;
        };
        self.portion.store(next, Ordering::Relaxed);
    }

    fn tell(&self, claimed: &Claimed, ending: &Ending, took: Duration) {
        let sink = self.name().to_owned();
        let Claimed { message_id: id, clerk_id, kind, .. } = claimed;
        let outcome = match ending {
            Ending::Delivered => {
                tracing::debug!(sink, id, %clerk_id, %kind, "a message was delivered");
                "delivered"
            }
            Ending::Untried => return,
            Ending::Again { attempts, error, .. } => {
                tracing::info!(sink, id, %clerk_id, %kind, attempts, error, "a message was not accepted and will be retried");
                "again"
            }
            Ending::Dead { attempts, error } => {
                tracing::warn!(sink, id, %clerk_id, %kind, attempts, error, "a message was not accepted and is now dead");
                "dead"
            }
        };
        counter!(telemetry::DELIVERIES, "sink" => sink.clone(), "outcome" => outcome).increment(1);
        histogram!(telemetry::DELIVERY_DURATION, "sink" => sink).record(took.as_secs_f64());
    }
}

#[async_trait]
impl Task for Dispatcher {
    fn name(&self) -> &'static str {
        "outbox"
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        let Some(pass) = Breaker::enter(&self.breaker, Instant::now()) else { return Ok(Turn::Idle) };
        if let Some(limiter) = &self.limiter
            && let Err(not_until) = limiter.check()
        {
            drop(pass);
            let wait = not_until.wait_time_from(limiter.clock().now());
            // Wait only briefly, because shutdown waits for this.
            sleep(wait.min(Duration::from_secs(1))).await;
            return Ok(Turn::More);
        }
        self.point().await?;
        // A probe risks one message.
        let limit = if pass.is_probe() { 1 } else { self.portion.load(Ordering::Relaxed) };
        let (first, is_whole) = self.first_due().await?;
        let first_since = async |since| self.ask(self.store.first_message_due(self.name(), since)).await;
        let Some(due) = due_times(first, is_whole, (self.clock)(), first_since).await? else {
            return Ok(Turn::Idle);
        };
        let (claimed, deadline) = self.claim(due, limit).await?;
        if claimed.is_empty() {
            return Ok(Turn::Idle);
        }
        // The next place may find work too.
        self.bell.notify_one();
        self.work_through(claimed, pass, deadline).await?;
        Ok(Turn::More)
    }

    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        if Breaker::enter(&self.breaker, Instant::now()).is_none() {
            // The breaker alone decides when the sink may be tried.
            return Ok(Some(BREAK));
        }
        let since = self.frontier.since((self.clock)());
        let due = self.ask(self.store.first_message_due(self.name(), since)).await?;
        let now = (self.clock)();
        let left = due.map(|at| time_between(now, due_at(at, now)));
        Ok([left, self.frontier.owed(Instant::now())].into_iter().flatten().min())
    }
}

/// A panic under this lock leaves no half-finished change.
fn locked(breaker: &Mutex<Breaker>) -> std::sync::MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}
