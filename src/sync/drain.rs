//! From the queue into the tables: claim, apply and remove deliveries in one transaction.
//!
//! Claimed deliveries are locked by the transaction. If the process dies, all claims are released at once, and a
//! delivery is applied if and only if it is removed from the queue. When a batch fails, its halves are tried in
//! separate transactions. Each of these claims its deliveries first, because other workers may have been faster. A
//! single delivery that fails is retried later or becomes a dead letter; it does not delay the others. A batch that
//! takes too long is tried in parts. Deliveries that are not reached in a turn are postponed in favour of those behind
//! them, and the next turn claims fewer.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Rules,
    apply::{
        HOPELESS_REFUSALS, Manner, Repeats, Ways, Work, Written, divide, end, fewer_fields, log_left_out,
        may_take_out, owners_of, share, unusable,
    },
    frontier::Frontier,
    pace::Pace,
    plan::email_in,
    retry::{FAR_AWAY, due_times},
};
use crate::{
    clerk::{event, signature::Verified},
    model::{ClerkId, Content, Delivery, Outcome, SvixId},
    store::{ErrorKind, Parked, Patience, QueueFilter, QueueState, Result, Store, StoreError, Transaction},
    telemetry::{Queue, Span, TraceContext},
};

/// Deliveries in one transaction.
pub const BATCH: u32 = 512;

/// Bytes of the bodies in a batch of that size; the last body may exceed this.
const BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// The minimum time for a delivery that is tried alone, however late in a turn.
const ALONE: Duration = Duration::from_millis(3500);

/// How long postponing a delivery may take, however late in a turn.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The time for a deletion that takes many other rows with it.
const LONG: Duration = Duration::from_secs(25);

/// How long the server may take to notice an abandoned attempt: its statements end after three seconds.
const GIVEN_UP: Duration = Duration::from_secs(4);

/// How many queued deliveries of one user are examined as possible causes of a taken address.
const FEW: u32 = 16;

/// The maximum number of deliveries that are applied together because they block each other.
const MOST_TOGETHER: usize = 128;

/// The result of one turn.
#[derive(Debug, Default)]
pub struct Drained {
    pub deliveries: Vec<Worked>,
    /// Why the turn ended early: the database as a whole has a problem, and not a single delivery. Deliveries that are
    /// not in the list wait as before.
    pub trouble: Option<StoreError>,
}

/// A delivery that was processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worked {
    pub svix_id: SvixId,
    pub event_type: Option<String>,
    /// The number of this attempt.
    pub attempt: u32,
    /// `parked` if it failed: it is tried again, or is a dead letter.
    pub outcome: Outcome,
}

/// Process the due deliveries, as many as one transaction takes. Signatures are not verified again: that happened when
/// the deliveries arrived.
pub async fn drain(
    store: &dyn Store,
    rules: &Rules,
    now: DateTime<Utc>,
    deadline: Instant,
    pace: &Pace,
    frontier: &Frontier,
) -> Drained {
    let draining = Draining { work: Work { store, rules, now }, due_by: now, deadline, pace, frontier };
    let mut drained = Drained::default();
    drained.trouble = draining.run(&mut drained.deliveries).await.err();
    drained
}

/// Which deliveries to claim.
#[derive(Clone, Copy)]
enum Claim<'a> {
    /// Those that are due at this time or later.
    Due(DateTime<Utc>),
    /// These, if they are due by then.
    These(&'a [SvixId], DateTime<Utc>),
}

/// A delivery that was claimed.
struct Claimed {
    svix_id: SvixId,
    delivery: Delivery,
    attempt: u32,
    /// The trace context of the request that queued it.
    trace: TraceContext,
    /// The span of the turn that claimed it.
    span: Span,
}

impl Claimed {
    fn worked(&self, outcome: Outcome) -> Worked {
        Worked {
            svix_id: self.svix_id.clone(),
            event_type: self.delivery.event_type.clone(),
            attempt: self.attempt,
            outcome,
        }
    }

    fn is_usable(&self) -> bool {
        unusable(&self.delivery).is_none()
    }
}

struct Draining<'a> {
    work: Work<'a>,
    /// The deliveries of this turn are due at this time or earlier.
    due_by: DateTime<Utc>,
    deadline: Instant,
    pace: &'a Pace,
    frontier: &'a Frontier,
}

impl Draining<'_> {
    async fn run(&self, done: &mut Vec<Worked>) -> Result<()> {
        let first_since = async |since| self.in_time(self.work.store.first_due(since)).await;
        let (first, is_whole) = self.first_due().await?;
        match due_times(first, is_whole, self.work.now, first_since).await? {
            Some(due) => Draining { due_by: *due.end(), ..*self }.run_since(*due.start(), done).await,
            None => Ok(()),
        }
    }

    /// Process the deliveries that are due at this time or later.
    async fn run_since(&self, first: DateTime<Utc>, done: &mut Vec<Worked>) -> Result<()> {
        let all = Ways::of(self.work.rules.deletion);
        let (claimed, first) = self.turn(Claim::Due(first), Patience::Normal, &all).await;
        let (usable, broken): (Vec<Claimed>, Vec<Claimed>) =
            claimed.into_iter().partition(Claimed::is_usable);
        match &first {
            Ok(_) => self.pace.faster(),
            // If the claim itself took too long, the whole portion was too large.
            Err(error) if error.took_too_long() => {
                let claimed = u32::try_from(usable.len()).unwrap_or(u32::MAX);
                self.pace.slower(if claimed == 0 { self.pace.portion() } else { claimed });
            }
            Err(_) => {}
        }
        match first {
            Ok(worked) => done.extend(worked),
            Err(error) if usable.is_empty() => return Err(error),
            Err(error) => self.isolate(&usable, error, done).await?,
        }
        // Unusable deliveries that an operator retried. They have no effect on others.
        for mut claimed in broken {
            let Some(error) = unusable(&claimed.delivery) else { continue };
            let worked = self.set_aside(&claimed, &error, Patience::Normal).await?;
            std::mem::take(&mut claimed.span).failed("unusable");
            done.extend(worked);
        }
        Ok(())
    }

    /// The time when the first waiting delivery is due, and whether all were searched.
    async fn first_due(&self) -> Result<(Option<DateTime<Utc>>, bool)> {
        let look = self.frontier.look(self.work.now, Instant::now());
        let first = self.in_time(self.work.store.first_due(look.since)).await;
        Ok((self.frontier.learn(look, first, Instant::now())?, look.is_whole()))
    }

    /// Find the deliveries that make a batch fail with this error, and apply the rest.
    async fn isolate(&self, batch: &[Claimed], error: StoreError, done: &mut Vec<Worked>) -> Result<()> {
        let all = Ways::of(self.work.rules.deletion);
        let ids: Vec<SvixId> = batch.iter().map(|claimed| claimed.svix_id.clone()).collect();
        let mut failures = 0;
        let mut first = Some(error);
        let mut parts = Vec::from([Range { start: 0, end: batch.len() }]);
        while let Some(part) = parts.pop() {
            let result = match first.take() {
                // Errors that are likely to pass are retried before any single delivery is suspected.
                Some(error) if !matches!(error.kind, ErrorKind::Conflict | ErrorKind::Raced) => Err(error),
                None if Instant::now() >= self.deadline => {
                    // The deliveries behind these must not wait for them.
                    parts.push(part);
                    let rest = parts.into_iter().flat_map(|part| ids[part].iter().cloned());
                    return self.postpone(rest.collect()).await;
                }
                _ => self.settled(&ids[part.clone()], &all).await,
            };
            let error = match result {
                Ok(worked) => {
                    done.extend(worked);
                    continue;
                }
                Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
                Err(error) => error,
            };
            if part.len() > 1 {
                parts.extend(divide(part, &error).rev());
                continue;
            }
            // A lock that blocks many users is not a problem of the database as a whole.
            let is_its_own =
                error.is_about_the_data() || matches!(error.kind, ErrorKind::Locked | ErrorKind::Late);
            done.extend(self.alone(&batch[part.start], error.clone()).await?);
            failures += u32::from(!is_its_own);
            if failures >= HOPELESS_REFUSALS {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Attempt these deliveries, and repeat the attempt after a conflict that is likely to pass.
    async fn settled(&self, ids: &[SvixId], ways: &Ways) -> Result<Vec<Worked>> {
        let mut repeats = Repeats::with(Patience::Short);
        loop {
            match self.turn(Claim::These(ids, self.due_by), Patience::Short, ways).await.1 {
                Err(error) if repeats.has_another(&error) => {}
                result => return result.map_err(StoreError::after_conflicts),
            }
        }
    }

    /// Handle a user whose new address still belongs to another user, where one of the application's indexes or
    /// constraints makes addresses unique. Two users who swap addresses block each other, and so do three in a ring.
    /// All of them are applied in one transaction, even if some are not due yet. Returns `None` if this is not the
    /// cause.
    async fn with_its_others(&self, claimed: &Claimed) -> Result<Option<Vec<Worked>>> {
        let mut together = BTreeSet::from([claimed.svix_id.clone()]);
        let mut users: HashSet<ClerkId> = claimed.delivery.clerk_id.iter().cloned().collect();
        let mut wanted: Vec<String> = address_in(&claimed.delivery).into_iter().collect();
        while !wanted.is_empty() && together.len() < MOST_TOGETHER {
            let owners = self.in_time(self.owners_of(&wanted)).await?;
            wanted.clear();
            for owner in owners {
                if !users.insert(owner.clone()) {
                    continue;
                }
                let filter = QueueFilter {
                    state: Some(QueueState::Pending),
                    clerk_id: Some(owner),
                    ..QueueFilter::default()
                };
                let store = self.work.store;
                for queued in self.in_time(store.queued(&filter, FEW)).await? {
                    if let Some(parked) = self.in_time(store.parked(&queued.svix_id)).await? {
                        wanted.extend(address_in(&self.understood(parked).delivery));
                        together.insert(queued.svix_id);
                    }
                }
            }
        }
        if together.len() == 1 {
            return Ok(None);
        }
        let ids: Vec<SvixId> = together.into_iter().collect();
        let all = Ways::of(self.work.rules.deletion);
        match self.turn(Claim::These(&ids, FAR_AWAY), Patience::Short, &all).await.1 {
            Ok(worked) => Ok((!worked.is_empty()).then_some(worked)),
            Err(error) if error.kind == ErrorKind::Unavailable => Err(error),
            // The application of all of them failed, so there is another cause.
            Err(_) => Ok(None),
        }
    }

    async fn owners_of(&self, addresses: &[String]) -> Result<Vec<ClerkId>> {
        let mut transaction = self.work.store.begin(Patience::Short).await?;
        let found = transaction.addresses(addresses).await;
        Ok(owners_of(&end(transaction, found).await?))
    }

    /// Process a delivery that has failed alone, together with those that it depends on. Returns nothing if another
    /// worker has it by now.
    async fn alone(&self, claimed: &Claimed, mut error: StoreError) -> Result<Vec<Worked>> {
        if error.is_taken()
            && let Some(worked) = self.with_its_others(claimed).await?
        {
            return Ok(worked);
        }
        if may_take_out(&claimed.delivery) {
            let this = std::slice::from_ref(&claimed.svix_id);
            let mut ways = Ways::of(self.work.rules.deletion);
            if error.took_too_long() {
                match self.in_its_time(this, &ways).await {
                    Ok(worked) => return Ok(worked),
                    Err(next) => error = next,
                }
            }
            // The constraint failed only at the commit: try the next way, and finally only the tombstone.
            while (error.is_about_the_data() || error.took_too_long()) && !ways.is_empty() {
                ways = if error.took_too_long() { ways.later(error) } else { ways.after(error) };
                match self.settled(this, &ways).await {
                    Ok(worked) => return Ok(worked),
                    Err(next) => error = next,
                }
            }
        }
        if error.kind == ErrorKind::Raced {
            error = error.after_races();
        }
        if !error.is_about_the_data() {
            // The delivery is not at fault, so it must not become a dead letter.
            if matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema) {
                let Claimed { svix_id, delivery, .. } = claimed;
                let event = delivery.event_type.as_deref();
                tracing::error!(%svix_id, event, %error, "the database refused one of clerk-sync's statements: a delivery waits");
            }
            return self.put_off(claimed, &error).await;
        }
        if error.kind == ErrorKind::BadData
            && let Some(worked) = self.without_what_spoils_it(claimed).await
        {
            return Ok(worked);
        }
        match self.set_aside(claimed, &error, Patience::Short).await {
            Err(again) if again.kind != ErrorKind::Unavailable => self.put_off(claimed, &error).await,
            set_aside => set_aside,
        }
    }

    /// Attempt a delivery with all the time that it may need. The server may still be working on the attempt that we
    /// abandoned, and keeps the delivery locked until it notices.
    async fn in_its_time(&self, this: &[SvixId], ways: &Ways) -> Result<Vec<Worked>> {
        let given_up = Instant::now();
        loop {
            let (claimed, worked) = self.turn(Claim::These(this, self.due_by), Patience::Long, ways).await;
            if !claimed.is_empty() || worked.is_err() || given_up.elapsed() > GIVEN_UP {
                return worked;
            }
            sleep(GIVEN_UP / 10).await;
        }
    }

    /// Apply a delivery without the field that the database cannot store. Returns an empty list if another worker has
    /// the delivery by now.
    async fn without_what_spoils_it(&self, claimed: &Claimed) -> Option<Vec<Worked>> {
        let this = std::slice::from_ref(&claimed.svix_id);
        for (left_out, rules) in fewer_fields(self.work.rules, &claimed.delivery) {
            let work = Work { store: self.work.store, rules: &rules, now: self.work.now };
            let draining = Draining { work, ..*self };
            if let Ok(worked) = draining.settled(this, &Ways::of(rules.deletion)).await {
                log_left_out(&claimed.delivery, left_out);
                return Some(worked);
            }
        }
        None
    }

    /// Claim, apply and remove in one transaction. The claimed deliveries are returned even if that fails.
    async fn turn(
        &self,
        claim: Claim<'_>,
        patience: Patience,
        ways: &Ways,
    ) -> (Vec<Claimed>, Result<Vec<Worked>>) {
        let mut claimed = Vec::new();
        let attempt = async {
            let mut transaction = self.work.store.begin(patience).await?;
            let written = self.work_in(&mut *transaction, claim, ways, &mut claimed).await;
            Ok(end(transaction, written).await?.committed())
        };
        let deadline = match (claim, patience) {
            (_, Patience::Long) => self.deadline.max(Instant::now() + LONG),
            (Claim::These([_], _), _) => self.deadline.max(Instant::now() + ALONE),
            (Claim::These(ids, _), _) => share(self.deadline, ids.len()),
            (Claim::Due(_), _) => share(self.deadline, usize::MAX),
        };
        let outcomes = timeout_at(deadline, attempt).await;
        let outcomes = outcomes.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Late)));
        let worked = outcomes.map(|outcomes| finished(&mut claimed, &outcomes));
        if let Err(error) = &worked {
            for claimed in &mut claimed {
                std::mem::take(&mut claimed.span).failed(error.code_or_kind());
            }
        }
        (claimed, worked)
    }

    async fn work_in(
        &self,
        transaction: &mut dyn Transaction,
        claim: Claim<'_>,
        ways: &Ways,
        claimed: &mut Vec<Claimed>,
    ) -> Result<Written> {
        let parked = match claim {
            Claim::Due(first) => {
                let portion = self.pace.portion();
                let bytes = BATCH_BYTES * u64::from(portion) / u64::from(BATCH);
                transaction.claim(first..=self.due_by, portion, bytes).await?
            }
            Claim::These(ids, due) => transaction.claim_these(ids, due).await?,
        };
        claimed.extend(parked.into_iter().map(|parked| self.understood(parked)));
        let usable: Vec<&Claimed> = claimed.iter().filter(|claimed| claimed.is_usable()).collect();
        if usable.is_empty() {
            return Ok(Written { outcomes: Vec::new(), told: Vec::new() });
        }
        let deliveries: Vec<&Delivery> = usable.iter().map(|claimed| &claimed.delivery).collect();
        // Deliveries that are claimed by id have failed before.
        let manner = match claim {
            Claim::Due(_) => self.work.manner(&deliveries),
            Claim::These(..) => Manner::StepByStep,
        };
        self.work.write(transaction, &deliveries, ways, manner).await
    }

    /// Parse a delivery as of the time it arrived: its place in the order does not depend on when it is applied.
    fn understood(&self, parked: Parked) -> Claimed {
        let attempt = parked.attempts + 1;
        let verified = Verified::kept(parked.svix_id.clone(), parked.received_at, parked.payload);
        let mut delivery = event::parse(&verified, &self.work.rules.selection, parked.received_at).delivery;
        let (id, event_type) = (parked.svix_id.as_str(), delivery.event_type.as_deref());
        let span = Span::process(Queue::Webhooks, id, event_type, &parked.trace, parked.attempts);
        delivery.trace = span.context();
        Claimed { svix_id: parked.svix_id, delivery, attempt, trace: parked.trace, span }
    }

    /// Park a delivery that failed, unless its user is deleted or another worker has it by now.
    async fn set_aside(
        &self,
        claimed: &Claimed,
        error: &StoreError,
        patience: Patience,
    ) -> Result<Vec<Worked>> {
        let Claimed { svix_id, delivery, trace, .. } = claimed;
        let attempt = async {
            let mut transaction = self.work.store.begin(patience).await?;
            let parked = async {
                let ids = std::slice::from_ref(svix_id);
                if transaction.claim_these(ids, self.due_by).await?.is_empty() {
                    return Ok(None);
                }
                let trace = trace.clone();
                let kept = self.work.park_in(&mut *transaction, delivery, trace, svix_id, error).await;
                kept.map(Some)
            };
            let parked = parked.await;
            end(transaction, parked).await
        };
        let kept = self.in_time(attempt).await?;
        Ok(kept.into_iter().map(|kept| claimed.worked(kept.told(svix_id, delivery))).collect())
    }

    /// Only record another failure. This is for errors of the database itself, and for a locked user register, without
    /// which we cannot decide whether the delivery may become a dead letter.
    async fn put_off(&self, claimed: &Claimed, error: &StoreError) -> Result<Vec<Worked>> {
        let Claimed { svix_id, attempt, .. } = claimed;
        let (retry, id) = (self.work.rules.retry, svix_id.as_str());
        let next = match error.kind {
            ErrorKind::Locked => retry.soon_after(*attempt, id, self.work.now),
            _ => retry.always_after(*attempt, id, self.work.now),
        };
        let again = async {
            let mut transaction = self.work.store.begin(Patience::Short).await?;
            let kept = async {
                let ids = std::slice::from_ref(svix_id);
                let waiting = transaction.claim_these(ids, self.due_by).await?;
                let parked: Vec<Parked> = waiting
                    .into_iter()
                    .map(|parked| Parked {
                        attempts: *attempt,
                        next_attempt_at: Some(next),
                        last_error: error.to_string(),
                        ..parked
                    })
                    .collect();
                transaction.park(&parked).await?;
                Ok(parked.iter().map(|_| claimed.worked(Outcome::Parked)).collect())
            };
            let kept = kept.await;
            end(transaction, kept).await
        };
        self.in_time(again).await
    }

    /// Postpone these deliveries a little, although they have not failed.
    async fn postpone(&self, mut ids: Vec<SvixId>) -> Result<()> {
        ids.sort();
        let now = self.work.now;
        tracing::warn!(
            deliveries = ids.len(),
            "the turn ended before all claimed deliveries were tried: the others wait for the next turn"
        );
        let until = ids.first().map_or(now, |id| self.work.rules.retry.always_after(1, id.as_str(), now));
        let postponed = async {
            let mut transaction = self.work.store.begin(Patience::Short).await?;
            let postponed = transaction.postpone(&ids, until).await;
            end(transaction, postponed).await
        };
        self.in_time(postponed).await
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let deadline = self.deadline.max(Instant::now() + LAST_WORD);
        timeout_at(deadline, call).await.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable)))
    }
}

/// The address that the delivery assigns to its user.
fn address_in(delivery: &Delivery) -> Option<String> {
    let Content::Change(change) = &delivery.content else { return None };
    email_in(change).map(str::to_owned)
}

/// Complete a successful turn, with these outcomes of the usable deliveries.
fn finished(claimed: &mut [Claimed], outcomes: &[Outcome]) -> Vec<Worked> {
    let usable = claimed.iter_mut().filter(|claimed| claimed.is_usable());
    let worked = usable.zip(outcomes).map(|(claimed, outcome)| {
        std::mem::take(&mut claimed.span).done(outcome.name());
        claimed.worked(*outcome)
    });
    worked.collect()
}
