//! The dispatcher: messages from the outbox to the sinks, at least once, and for each user in the order of the changes.
//!
//! Every sink has workers, a breaker and a rate of its own, so that one that fails or hangs holds up nobody else. A
//! message is claimed in one short transaction, handed over outside of any, and finished in another; what a dead process
//! had claimed comes free when its lease ends, half a minute later at most. A late answer changes nothing: the lease's
//! token is a fence. What a sink makes of a message is the sink's; nothing here knows what a user looks like.
//!
//! A sink that answers quickly costs more time in the database than on the network. So a worker claims several users'
//! messages at once, as many as the sink has lately taken in a tenth of a second, hands them over one after another, and
//! finishes them together. What it has not begun by then, or when the sink fails, it gives back.

mod breaker;
pub mod ending;

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
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
    store::{Claimed, Elsewhere, ErrorKind, Lease, Store, StoreError},
    sync::{Clock, Frontier, retry::Retry},
    telemetry::{self, Queue, Span},
};

/// The longest that handing over one message may take, so that no lease lasts longer than half a minute.
const LONGEST: Duration = Duration::from_secs(25);

/// What a lease lasts longer than handing over may take: for the transactions around it, and for clocks that differ.
const MARGIN: Duration = Duration::from_secs(5);

const _: () = assert!(LONGEST.as_secs() + MARGIN.as_secs() <= 30, "nothing is held by the dead for longer");

/// No sink is believed that it wants to be left alone for longer.
const LONGEST_HOLD: Duration = Duration::from_hours(1);

/// While a sink is down attempts do not count, but for messages that are older than this: one that is itself what brings
/// the sink down must not wait in front of its user's others for ever.
const DOWN_FOR: TimeDelta = TimeDelta::days(1);

/// Transactions of all dispatchers at a time, so that they never take the connections that webhooks need.
const DESKS: usize = 2;

/// How long a worker goes on with what it has claimed at once. What a process had finished of it and not written down is
/// delivered once more if it dies.
const PORTION_TIME: Duration = Duration::from_millis(100);

/// The most messages that are claimed at once.
const LARGEST_PORTION: usize = 64;

/// Waits between attempts to write down how a delivery ended.
const PERSISTENCE: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1500)];

/// How often we look whether a sink that was left alone may be tried.
const BREAK: Duration = Duration::from_millis(500);

/// Why a deletion is not done that the sink has taken.
const ELSEWHERE: &str = "erased where the sink is now, and not where it was before under the same name: see `clerk-sync sinks moved`";

/// A sink, and how it is spoken to.
#[derive(Clone)]
pub struct Destination {
    /// What it is told.
    pub subscription: Subscription,
    pub settings: DeliverySettings,
    pub sink: Arc<dyn Sink>,
    /// Which system it is, as a hash without spaces.
    pub address: String,
}

/// How one sink is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverySettings {
    /// How long handing over one message may take; more than 25 s counts as 25 s.
    pub timeout: Duration,
    /// Messages on their way at the same time, each of another user.
    pub concurrency: usize,
    /// Messages a second.
    pub rate: Option<NonZeroU32>,
    /// After so many a message is dead; a deletion never is.
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
    /// Rung when messages were written.
    pub bell: Arc<Notify>,
    pub clock: Clock,
}

impl Outbox {
    /// Run until the shutdown, and until what is under way is finished.
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
        // What writes messages wakes one place of each sink. A place that finds work wakes the next one.
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

/// Works for one sink. A turn claims a portion of what is due, hands it over, and writes down how that ended.
pub struct Dispatcher {
    store: Arc<dyn Store>,
    destination: Destination,
    clock: Clock,
    /// Rung when there is work.
    pub bell: Arc<Notify>,
    /// When a message is tried again.
    pub retry: Retry,
    /// From where on messages are looked for.
    pub frontier: Frontier,
    breaker: Arc<Mutex<Breaker>>,
    limiter: Option<DefaultDirectRateLimiter>,
    desks: Arc<Semaphore>,
    /// How many messages the sink is likely to take within [`PORTION_TIME`].
    portion: AtomicUsize,
    /// Set when it is written down where the sink is.
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

    /// Begin at zero: a counter that appears with its first failure has no rate to alert on.
    fn begin_to_count(&self) {
        for outcome in telemetry::DELIVERY_OUTCOMES {
            counter!(telemetry::DELIVERIES, "sink" => self.name().to_owned(), "outcome" => outcome)
                .absolute(0);
        }
        locked(&self.breaker).show(true);
    }

    /// A call of the store, when there is a desk free.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let _desk = self.desks.acquire().await;
        patient(call).await
    }

    /// The time after which the sink counts as not answering.
    fn patience(&self) -> Duration {
        self.destination.settings.timeout.min(LONGEST)
    }

    /// When the first message that waits is due.
    async fn first_due(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.ask(async {
            let look = self.frontier.look((self.clock)(), Instant::now());
            let first = self.store.first_message_due(self.name(), look.since).await;
            self.frontier.learn(look, first, Instant::now())
        })
        .await
    }

    /// What was claimed of what is due since this time, and when the last of it must be over.
    async fn claim(&self, since: DateTime<Utc>, limit: usize) -> Result<(Vec<Claimed>, Instant), StoreError> {
        self.ask(async {
            // Only now: waiting for a desk is not for the sink to answer for.
            let lasting = TimeDelta::from_std(self.patience() + MARGIN).unwrap_or_default();
            let (now, deadline) = ((self.clock)(), Instant::now() + self.patience() + MARGIN / 2);
            let token = format!("{:032x}", rand::random::<u128>());
            let address = self.destination.address.clone();
            let lease = Lease { token, now, until: now + lasting, address };
            let limit = u32::try_from(limit).unwrap_or(1);
            Ok((self.store.claim_messages(self.name(), since, &lease, limit).await?, deadline))
        })
        .await
    }

    /// Write down where the sink is before it is told anything, and say so if it was elsewhere.
    async fn point(&self) -> Result<(), StoreError> {
        let address = &self.destination.address;
        let pointing = async || {
            self.ask(self.store.point_sink(self.name(), address, false, (self.clock)())).await?;
            match patient(self.store.told_elsewhere(self.name(), address)).await {
                Ok(Elsewhere { users: 0, .. }) => {}
                Ok(Elsewhere { users, .. }) => tracing::warn!(
                    sink = self.name(),
                    users,
                    "this sink is pointed at another address than before: the users whom it was told of there are not known \
                     to be erased there when they are erased; point it back and give the new system a name of its own, or say \
                     `clerk-sync sinks moved` if it is the same system"
                ),
                Err(error) => {
                    tracing::warn!(sink = self.name(), %error, "where it was told of users is not known");
                }
            }
            Ok(())
        };
        self.pointed.get_or_try_init(pointing).await.copied()
    }

    /// Of a deletion that was taken here, whether the sink was told of the user elsewhere as well: then it is not done.
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
                tracing::warn!(sink = self.name(), %error, "a deletion was not written down, and is repeated");
            }
        }
        true
    }

    /// At which other addresses the sink was told of the user, behind a `-` if the user was erased there: see
    /// [`Claimed::addresses`].
    fn other_places<'a>(&self, claimed: &'a Claimed) -> BTreeSet<&'a str> {
        let places = claimed.addresses.split_whitespace();
        places.filter(|place| place.trim_start_matches('-') != self.destination.address).collect()
    }

    /// Hand a message over, as a span of the trace that it belongs to, unless it is a deletion that was taken here before.
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

    /// Call the sink. In a task of its own: a panic is a refusal like another.
    async fn call(&self, claimed: &Claimed, span: &Span) -> Result<(), Refusal> {
        let unreadable = |_| Refusal::never("what is stored is no message");
        let mut message = Message::read(claimed.kind, &claimed.payload).map_err(unreadable)?;
        let mut body = claimed.payload.clone();
        // A field may have been taken from the sink since the message was written.
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

    /// What becomes of the message.
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

    /// Write down how they ended; what cannot be written down is delivered once more when the lease has ended.
    async fn finish(&self, ended: &[(Claimed, Ending)]) -> Result<(), StoreError> {
        match self.write(ended).await {
            // Somebody holds one of the users, and the others do not wait for that.
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
                        tracing::debug!(sink = self.name(), late, "answers came too late");
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

    /// Whether another message may go now. `None`: the sink is to be left alone, or has had as many as its rate allows.
    fn next_pass(&self, began: Instant) -> Option<Pass> {
        if began.elapsed() > PORTION_TIME {
            return None;
        }
        let pass = Breaker::enter(&self.breaker, Instant::now())?;
        let is_allowed = self.limiter.as_ref().is_none_or(|limiter| limiter.check().is_ok());
        (is_allowed && !pass.is_probe()).then_some(pass)
    }

    /// Hand over what was claimed, one after another, and write down how that ended. The last one is over by the deadline.
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
                // The database took too much of the lease, which the sink could not know.
                ended.push((message, Ending::Untried));
                break;
            }
            let result = {
                let mut handing = pin!(self.deliver(&message));
                if let Ok(result) = timeout(PORTION_TIME.saturating_sub(began.elapsed()), &mut handing).await
                {
                    result
                } else {
                    // The others do not wait for this one.
                    ended.extend(waiting.by_ref().map(|message| (message, Ending::Untried)));
                    let (result, written) = tokio::join!(handing, self.finish(&ended));
                    ended.clear();
                    if let Err(error) = written {
                        tracing::warn!(sink = self.name(), %error, "deliveries were not written down, and are repeated");
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
                // Only an operator changes that, and then it is due at once.
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
        // A probe is over before its answer is written down.
        drop(pass);
        ended.extend(waiting.map(|message| (message, Ending::Untried)));
        self.adapt(all, handed_over, failed, began.elapsed());
        self.finish(&ended).await
    }

    /// Learn from a portion how large the next one may be.
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
                tracing::info!(sink, id, %clerk_id, %kind, attempts, error, "a message was not taken: tried again");
                "again"
            }
            Ending::Dead { attempts, error } => {
                tracing::warn!(sink, id, %clerk_id, %kind, attempts, error, "a message was not taken: it is dead");
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
            // Never for long: a shutdown waits for this.
            sleep(wait.min(Duration::from_secs(1))).await;
            return Ok(Turn::More);
        }
        self.point().await?;
        // A probe risks one message.
        let limit = if pass.is_probe() { 1 } else { self.portion.load(Ordering::Relaxed) };
        let first = self.first_due().await?.filter(|first| *first <= (self.clock)());
        let Some(first) = first else { return Ok(Turn::Idle) };
        let (claimed, deadline) = self.claim(first, limit).await?;
        if claimed.is_empty() {
            return Ok(Turn::Idle);
        }
        // Perhaps there is something for the next place too.
        self.bell.notify_one();
        self.work_through(claimed, pass, deadline).await?;
        Ok(Turn::More)
    }

    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        if Breaker::enter(&self.breaker, Instant::now()).is_none() {
            // Whether the sink may be tried is asked of nobody else.
            return Ok(Some(BREAK));
        }
        let since = self.frontier.since((self.clock)());
        let due = self.ask(self.store.first_message_due(self.name(), since)).await?;
        let left = due.map(|at| time_between((self.clock)(), at));
        Ok([left, self.frontier.owed(Instant::now())].into_iter().flatten().min())
    }
}

/// A panic under this lock leaves nothing half done.
fn locked(breaker: &Mutex<Breaker>) -> std::sync::MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}
