//! Apply a batch in one transaction; if that fails, find the delivery that causes the failure.
//!
//! The halves of a failing batch are committed in separate transactions, down to a single delivery. A single delivery
//! that fails for a transient reason is refused, so that Svix sends it again; any other is parked. Separate
//! transactions are used instead of savepoints for two reasons: they also find constraints that are checked only at the
//! commit, and they make the good deliveries durable at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use metrics::counter;
use tokio::time::{Instant, timeout_at};

use super::{
    Rules, news,
    pace::divided,
    plan::{Erasure, Plan, Stored, email_in, entry, is_news, key, parents, plan, with_known_parts},
    retry::retry_id,
};
use crate::{
    clerk::{
        event::{self, deletion_body},
        signature::Verified,
    },
    entity::{ORGANIZATION, PARTS, USER, user},
    model::{
        AuditAction, AuditEntry, Change, ClerkId, Content, DeletionPolicy, Delivery, Entity, Field, FieldSet,
        MessageType, News, Outcome, Processing, Receipt, Register, Source, SvixId, Value, Version,
    },
    store::{
        Address, Closing, ErrorKind, Mark, Opened, Outgoing, Parked, Patience, Record, Result, RowFate,
        Store, StoreError, Transaction, Waiting, Way,
    },
    telemetry::{self, Queue, Span, TraceContext},
};

/// How long a transaction is repeated after conflicts; about as long as clerk-sync waits for locks. MongoDB has no
/// locks to wait for: of several transactions that write the same object, only one succeeds at a time.
const CONFLICTS: Duration = Duration::from_millis(2_500);
const CONFLICTS_OF_MANY: Duration = Duration::from_millis(100);
/// How often a transaction is repeated because an object appeared in the meantime.
const RACES: u32 = 5;

/// After this many deliveries are refused one by one, the rest of the batch is refused too: by then the whole table is
/// probably locked, and not just one user's row.
pub(super) const HOPELESS_REFUSALS: u32 = 16;

/// How many user ids are looked for in a body that cannot be parsed.
const NAMED: usize = 100;

/// The maximum number of objects that are deleted with their parents in one transaction. The others follow in later
/// transactions.
const CASCADE: u32 = 2_000;

/// Apply deliveries in the order in which they arrived, and return the outcome of each. Deliveries that are not
/// finished at the deadline are refused as unavailable. They may still be applied; then Svix's next attempt is a
/// duplicate.
pub async fn apply(
    store: &dyn Store,
    batch: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    deliver(&Work { store, rules, now }, batch, Processing::Inline, deadline).await
}

/// Apply the usable deliveries of a batch or store them for later, in halves if that fails. Park the unusable ones.
pub(super) async fn deliver(
    work: &Work<'_>,
    batch: &[Delivery],
    processing: Processing,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    let mut results: Vec<Result<Outcome>> =
        batch.iter().map(|_| Err(StoreError::new(ErrorKind::Unavailable))).collect();
    // Unusable deliveries have no effect on others, and are parked one by one.
    let (broken, usable): (Vec<usize>, Vec<usize>) =
        (0..batch.len()).partition(|index| unusable(&batch[*index]).is_some());

    let mut parts: Vec<Range<usize>> = Vec::from([Range { start: 0, end: usable.len() }]);
    let mut patience = Patience::Normal;
    let mut refusals = 0;
    while let Some(part) = parts.pop() {
        if Instant::now() >= deadline {
            // By now the sender has stopped waiting for the answer.
            break;
        }
        let deliveries: Vec<&Delivery> = usable[part.clone()].iter().map(|index| &batch[*index]).collect();
        let attempt = async {
            match (processing, &deliveries[..]) {
                (_, []) => Ok(Vec::new()),
                (Processing::Queue, _) => work.stored(&deliveries, patience).await,
                (Processing::Inline, [delivery]) => {
                    work.single(delivery, patience).await.map(|outcome| vec![outcome])
                }
                (Processing::Inline, _) => {
                    work.settled(&deliveries, patience, Ways::of(work.rules.deletion)).await
                }
            }
        };
        let result = timeout_at(share(deadline, part.len()), attempt).await;
        match result.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Late))) {
            Ok(outcomes) => {
                for (index, outcome) in usable[part].iter().zip(outcomes) {
                    results[*index] = Ok(outcome);
                }
            }
            Err(error)
                if part.len() > 1 && error.kind != ErrorKind::Unavailable && Instant::now() < deadline =>
            {
                patience = Patience::Short;
                parts.extend(divide(part, &error).rev());
            }
            Err(mut error) => {
                refusals += 1;
                if error.kind == ErrorKind::Late {
                    // The caller cannot tell this from a database that does not answer.
                    error = StoreError::new(ErrorKind::Unavailable);
                }
                let hopeless = error.kind == ErrorKind::Unavailable
                    || refusals >= HOPELESS_REFUSALS
                    || Instant::now() >= deadline;
                let refused = if hopeless { part.start..usable.len() } else { part };
                for index in &usable[refused] {
                    results[*index] = Err(error.clone());
                }
                if hopeless {
                    break;
                }
            }
        }
    }
    for index in broken {
        let Some(error) = unusable(&batch[index]).filter(|_| Instant::now() < deadline) else { break };
        let parked = timeout_at(deadline, work.park(&batch[index], error, patience)).await;
        results[index] = parked.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable)));
    }
    results
}

/// How often one transaction has been repeated so far, and why.
pub(super) struct Repeats {
    patience: Patience,
    /// The time of the first conflict.
    conflict: Option<Instant>,
    races: u32,
}

impl Repeats {
    pub(super) fn with(patience: Patience) -> Self {
        Self { patience, conflict: None, races: 0 }
    }

    /// Whether to repeat the transaction after this error. Errors that are likely to pass are retried before any single
    /// delivery is suspected.
    pub(super) fn has_another(&mut self, error: &StoreError) -> bool {
        match error.kind {
            ErrorKind::Conflict => {
                let longest = match self.patience {
                    Patience::Normal | Patience::Long => CONFLICTS,
                    Patience::Short => CONFLICTS_OF_MANY,
                };
                self.conflict.get_or_insert_with(Instant::now).elapsed() < longest
            }
            ErrorKind::Raced => {
                self.races += 1;
                self.races <= RACES
            }
            _ => false,
        }
    }
}

/// Why a delivery can never be used in this form; `None` if it can.
pub(super) fn unusable(delivery: &Delivery) -> Option<StoreError> {
    let Content::Unusable(reason) = &delivery.content else { return None };
    Some(StoreError { place: Some(reason.clone()), ..StoreError::new(ErrorKind::BadData) })
}

/// The deadline for an attempt at this many deliveries. A batch gets half of the remaining time, which leaves time to
/// try its parts.
pub(super) fn share(deadline: Instant, deliveries: usize) -> Instant {
    let now = Instant::now();
    if deliveries > 1 { now + deadline.saturating_duration_since(now) / 2 } else { deadline }
}

/// The parts to try after a batch failed with this error, in their order.
pub(super) fn divide(
    batch: Range<usize>,
    error: &StoreError,
) -> impl DoubleEndedIterator<Item = Range<usize>> + use<> {
    let size = if error.took_too_long() { divided(batch.len()) } else { batch.len().div_ceil(2) };
    let parts = batch.len().div_ceil(size);
    (0..parts).map(move |part| {
        let start = batch.start + part * size;
        start..batch.end.min(start + size)
    })
}

/// The remaining ways to erase the row of a user, in the order in which they are tried. If none is left, only a
/// tombstone is written.
#[derive(Clone)]
pub(super) struct Ways {
    policy: DeletionPolicy,
    /// How many refusals there were so far; `None` if no way may be tried now.
    tried: Option<usize>,
    /// Why the last way failed.
    refusal: StoreError,
}

impl Ways {
    pub(super) fn of(policy: DeletionPolicy) -> Self {
        Self { policy, tried: Some(0), refusal: StoreError::new(ErrorKind::Refused) }
    }

    /// Whether no way is left for any kind.
    pub(super) fn is_empty(&self) -> bool {
        self.steps(&ORGANIZATION).is_empty() && self.steps(&USER).is_empty()
    }

    /// The ways that are left for this kind. Objects that are not people have nothing to anonymise; a row that cannot be
    /// deleted is marked instead. Since the error does not say which row was refused, ways for objects other than people
    /// are ruled out first.
    fn steps(&self, entity: &Entity) -> &'static [Way] {
        let is_person = entity.is_person();
        let steps: &[Way] = match self.policy {
            DeletionPolicy::Delete if is_person => &[Way::Delete],
            DeletionPolicy::Auto | DeletionPolicy::Delete => &[Way::Delete, Way::Anonymize],
            DeletionPolicy::Anonymize => &[Way::Anonymize],
        };
        let over =
            self.tried.map(|tried| if is_person { tried.saturating_sub(1) } else { tried.div_ceil(2) });
        over.and_then(|over| steps.get(over..)).unwrap_or_default()
    }

    /// The ways that are left after this refusal.
    pub(super) fn after(self, refusal: StoreError) -> Self {
        Self { tried: self.tried.map(|tried| tried + 1), refusal, ..self }
    }

    /// Rule out all ways for now: the erasure takes too long for this attempt, and a worker with more time does it.
    pub(super) fn later(self, refusal: StoreError) -> Self {
        Self { tried: None, refusal, ..self }
    }
}

/// The results of a transaction that the caller needs before the commit.
pub(super) struct Written {
    pub(super) outcomes: Vec<Outcome>,
    /// Spans for the messages to sinks. If the transaction is not committed, they end as `cancelled`.
    pub(super) told: Vec<Span>,
}

impl Written {
    /// Record that the transaction is committed.
    pub(super) fn committed(self) -> Vec<Outcome> {
        for span in self.told {
            span.done("stored");
        }
        self.outcomes
    }
}

#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) rules: &'a Rules,
    pub(super) now: DateTime<Utc>,
}

impl Work<'_> {
    /// Apply a single delivery. If that fails, the delivery itself is the cause.
    async fn single(&self, delivery: &Delivery, patience: Patience) -> Result<Outcome> {
        let mut ways = Ways::of(self.rules.deletion);
        loop {
            let error = match self.settled(&[delivery], patience, ways.clone()).await {
                Ok(outcomes) => {
                    return outcomes.first().copied().ok_or_else(|| StoreError::new(ErrorKind::Broken));
                }
                Err(error) => error,
            };
            match error.kind {
                // The constraint failed only at the commit: try the next way, and finally only the tombstone.
                _ if error.is_about_the_data() && may_take_out(delivery) && !ways.is_empty() => {
                    ways = ways.after(error);
                }
                ErrorKind::Raced => return self.park(delivery, error.after_races(), patience).await,
                ErrorKind::BadData => {
                    return match self.without_what_spoils_it(delivery, patience).await {
                        Some(outcome) => Ok(outcome),
                        None => self.park(delivery, error, patience).await,
                    };
                }
                ErrorKind::Refused => return self.park(delivery, error, patience).await,
                _ => return Err(error),
            }
        }
    }

    /// Apply a delivery without the field that the database cannot store, such as a text that is too long for one of
    /// the application's indexes. Clients can write some fields freely, and must not be able to block all updates of a
    /// user that way.
    async fn without_what_spoils_it(&self, delivery: &Delivery, patience: Patience) -> Option<Outcome> {
        for (left_out, rules) in fewer_fields(self.rules, delivery) {
            let work = Work { store: self.store, rules: &rules, now: self.now };
            let ways = Ways::of(rules.deletion);
            if let Ok(outcomes) = work.settled(&[delivery], patience, ways).await {
                log_left_out(delivery, left_out);
                return outcomes.first().copied();
            }
        }
        None
    }

    /// Attempt a batch, and repeat it after a conflict that is likely to pass. If a batch with a deletion takes too long,
    /// write only the tombstone first and leave the rest for later. That second attempt may use all the remaining time,
    /// because one statement marks everything that belongs to a large organization.
    async fn settled(&self, batch: &[&Delivery], patience: Patience, ways: Ways) -> Result<Vec<Outcome>> {
        let (mut repeats, mut ways, mut patience) = (Repeats::with(patience), ways, patience);
        // A part of a divided batch has failed before.
        let mut manner = if patience == Patience::Normal { self.manner(batch) } else { Manner::StepByStep };
        loop {
            let attempt = self.attempt(batch, patience, &ways, manner).await;
            manner = Manner::StepByStep;
            match attempt {
                Err(error)
                    if error.took_too_long()
                        && !ways.is_empty()
                        && batch.iter().any(|delivery| is_deletion(delivery)) =>
                {
                    ways = ways.later(error);
                    patience = Patience::Long;
                }
                Err(error) if repeats.has_another(&error) => {}
                result => return result.map_err(StoreError::after_conflicts),
            }
        }
    }

    async fn attempt(
        &self,
        batch: &[&Delivery],
        patience: Patience,
        ways: &Ways,
        manner: Manner,
    ) -> Result<Vec<Outcome>> {
        let mut transaction = match manner {
            Manner::AtOnce(_) => self.store.begin_at_once().await?,
            Manner::StepByStep => self.store.begin(patience).await?,
        };
        let written = self.write(&mut *transaction, batch, ways, manner).await;
        // The last statement may have been sent together with the commit.
        let ended = end(transaction, written).await.map_err(|error| manner.understood(error));
        let outcomes = ended?.committed();
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Applied | Outcome::Parked)) {
            self.rules.bell.notify_one();
        }
        Ok(outcomes)
    }

    /// The five steps: record, lock and read, load, plan, write.
    pub(super) async fn write(
        &self,
        transaction: &mut dyn Transaction,
        batch: &[&Delivery],
        ways: &Ways,
        manner: Manner,
    ) -> Result<Written> {
        let written = self.steps(transaction, batch, ways, manner).await;
        written.map_err(|error| manner.understood(error))
    }

    async fn steps(
        &self,
        transaction: &mut dyn Transaction,
        batch: &[&Delivery],
        ways: &Ways,
        manner: Manner,
    ) -> Result<Written> {
        let (records, places) = self.records(batch);
        let opened = match manner {
            Manner::AtOnce(entity) => {
                let about = newest(batch);
                let opened = transaction.open(&records, entity, &about, &self.rules.selection).await?;
                opened.map(|opened| (entity, opened))
            }
            Manner::StepByStep => None,
        };
        let mut waiting = HashMap::new();
        let fresh = if let Some((_, opened)) = &opened {
            places.fresh(&opened.recorded)
        } else {
            // Read them before `record` removes them from the queue.
            waiting = transaction.waiting(&deletions(batch)).await?;
            places.fresh(&transaction.record(&records).await?)
        };

        let mut outcomes = vec![Outcome::Duplicate; batch.len()];
        let mut found: Vec<(usize, &Delivery, &Change)> = Vec::new();
        for (index, delivery) in batch.iter().enumerate().filter(|(index, _)| fresh.contains(index)) {
            if let Content::Change(change) = &delivery.content {
                found.push((index, delivery, change));
            } else {
                outcomes[index] = Outcome::Ignored;
            }
        }
        let shown = found.iter().map(|(_, delivery, _)| *delivery);
        let locked = if opened.is_none() && matches!(self.manner(batch), Manner::AtOnce(_)) {
            locked_owners(transaction, shown.clone()).await?
        } else {
            // The other objects of the batch must be locked before their owners or together with them.
            HashMap::new()
        };
        let known_parts =
            with_known_parts(shown, opened.as_ref().map_or(&locked, |(_, opened)| &opened.registers));
        let shows_known_parts =
            |delivery: &Delivery| delivery.clerk_id.as_ref().is_some_and(|id| known_parts.contains(id));
        let (mut changes, mut indexes) = (Vec::new(), Vec::new());
        for (index, delivery, change) in found {
            let nested: &[Change] = if shows_known_parts(delivery) { &[] } else { &delivery.nested };
            for change in [change].into_iter().chain(nested) {
                changes.push((delivery, change));
                indexes.push(index);
            }
        }
        let is_alone = |(delivery, change): &(&Delivery, &Change), entity: &Entity| {
            change.clerk_id.entity() == entity && (delivery.whole.is_empty() || shows_known_parts(delivery))
        };
        let opened = opened.filter(|(entity, _)| changes.iter().all(|change| is_alone(change, entity)));
        let mut steps =
            Steps { work: self, transaction, changes, known_parts, locked, ways, waiting, told: Vec::new() };
        let (at_once, stored, cascade) = if let Some((entity, opened)) = opened {
            let Opened { registers, objects, .. } = opened;
            (Some(entity), Stored { registers, objects, addresses: None }, Cascade::default())
        } else {
            let Locked { registers, kin, claimed, cascade } = steps.lock().await?;
            (None, steps.load(registers, &kin, claimed).await?, cascade)
        };
        let mut plan = plan(&steps.changes, stored, self.rules, self.now);
        match at_once {
            Some(entity) if plan.is_only_rows_of(entity) => steps.close(entity, &plan).await?,
            _ => {
                steps.write(&mut plan).await?;
                steps.take_out(&mut plan, &cascade).await?;
                steps.finish(&plan).await?;
            }
        }

        for (index, outcome) in indexes.into_iter().zip(plan.outcomes) {
            outcomes[index] = of_both(outcomes[index], outcome);
        }
        share_with_repeats(batch, &mut outcomes);
        Ok(Written { outcomes, told: steps.told })
    }

    /// How to apply a batch that has not failed before. It is applied at once if all its webhooks show the current
    /// state of objects of one kind, and these objects have no parents and cannot displace each other. Parts that are not
    /// stored as shown need further steps.
    pub(super) fn manner(&self, batch: &[&Delivery]) -> Manner {
        let mut kind = None;
        for delivery in batch {
            let Content::Change(change) = &delivery.content else { continue };
            let entity = change.clerk_id.entity();
            // Parts are read only if they are needed.
            let has_only_parts =
                entity.nested.iter().all(|nested| nested.is_whole) || delivery.nested.is_empty();
            let stands_alone = has_only_parts && !entity.has_parents() && entity.unique.is_empty();
            let is_webhook = matches!(delivery.source, Source::Webhook);
            let is_shown = matches!(change.news, News::Upsert { .. }) && is_webhook;
            if !stands_alone
                || !is_shown
                || kind.is_some_and(|kind| kind != entity)
                || self.rules.unique_email
            {
                return Manner::StepByStep;
            }
            kind = Some(entity);
        }
        kind.map_or(Manner::StepByStep, Manner::AtOnce)
    }

    /// Record each id once; returns the places of the deliveries that are new.
    pub(super) async fn record(
        &self,
        transaction: &mut dyn Transaction,
        batch: &[&Delivery],
    ) -> Result<HashSet<usize>> {
        let (records, places) = self.records(batch);
        Ok(places.fresh(&transaction.record(&records).await?))
    }

    /// The records for a batch, each id once.
    fn records<'b>(&self, batch: &[&'b Delivery]) -> (Vec<Record<'b>>, Places<'b>) {
        let mut places = Places::default();
        for (index, delivery) in batch.iter().enumerate() {
            if let Some(id) = &delivery.svix_id {
                places.first.entry(id).or_insert(index);
            } else {
                places.without_id.push(index);
            }
        }
        let record = |(id, index): (&&'b SvixId, &usize)| {
            record(id, batch[*index], provisional(batch[*index]), self.now)
        };
        (places.first.iter().map(record).collect(), places)
    }

    /// Park a delivery that cannot be applied. Nothing is kept for a deleted user. A delivery without an id to park it
    /// under, because it is not a webhook, returns the error.
    async fn park(&self, delivery: &Delivery, error: StoreError, patience: Patience) -> Result<Outcome> {
        // A deletion without a webhook can fail too: the database may even refuse to mark the user's row as deleted.
        let made = delivery.clerk_id.as_ref().filter(|_| is_deletion(delivery)).map(retry_id);
        let Some(svix_id) = delivery.svix_id.as_ref().or(made.as_ref()) else { return Err(error) };
        let span =
            Span::send(Queue::Webhooks, svix_id.as_str(), delivery.event_type.as_deref(), &delivery.trace);
        let mut transaction = self.store.begin(patience).await?;
        let kept = self.park_in(&mut *transaction, delivery, span.context(), svix_id, &error).await;
        let outcome = end(transaction, kept).await?.told(svix_id, delivery);
        span.done(outcome.name());
        Ok(outcome)
    }

    /// Park a delivery within a transaction. Data that the database can never store becomes a dead letter; the rest is
    /// retried.
    pub(super) async fn park_in(
        &self,
        transaction: &mut dyn Transaction,
        delivery: &Delivery,
        trace: TraceContext,
        svix_id: &SvixId,
        error: &StoreError,
    ) -> Result<Kept> {
        let waiting = transaction.waiting(std::slice::from_ref(svix_id)).await?;
        let (attempts, received_at) = next_attempt(waiting.get(svix_id), delivery);
        // Locks are taken in the same order as for a batch: first the record, then the register.
        let recorded = transaction.record(&[record(svix_id, delivery, Outcome::Stale, self.now)]).await?;
        if recorded.is_empty() {
            return Ok(Kept::Not(Outcome::Duplicate));
        }
        if let Some(id) = &delivery.clerk_id {
            // Lock the parents too, so that parking this delivery and erasing a parent cannot miss each other.
            let parents: Vec<ClerkId> = match &delivery.content {
                Content::Change(change) => parents(change).collect(),
                _ => Vec::new(),
            };
            let held = transaction.hold(&sorted(parents.iter().chain([id]))).await?;
            if held.values().any(|register| register.deleted) {
                return Ok(Kept::Not(Outcome::Stale));
            }
        }
        let is_unread = !matches!(delivery.content, Content::Change(_));
        if delivery.clerk_id.as_ref().is_none_or(|id| is_unread && id.entity().has_parents()) {
            // The delivery cannot be attributed to a user. If it names an erased user, it is discarded, so that the
            // user's data does not return with it.
            let named = ClerkId::candidates_in(&USER, &delivery.payload, NAMED);
            if transaction.registers(&named).await?.values().any(|register| register.deleted) {
                return Ok(Kept::Not(Outcome::Stale));
            }
        }
        let (retry, id) = (self.rules.retry, svix_id.as_str());
        let next_attempt_at = match error.kind {
            _ if is_deletion(delivery) => Some(retry.always_after(attempts, id, self.now)),
            ErrorKind::BadData => None,
            _ => retry.after(attempts, id, self.now),
        };
        let reason = match &delivery.content {
            Content::Unusable(reason) => reason.clone(),
            _ => error.to_string(),
        };
        let parked = Parked {
            attempts,
            next_attempt_at,
            received_at,
            dead_at: next_attempt_at.is_none().then_some(self.now),
            last_error: reason.clone(),
            trace,
            ..waiting_as(svix_id.clone(), delivery, self.now)
        };
        transaction.park(&[parked]).await?;
        Ok(Kept::Parked { attempts, again: next_attempt_at.is_some(), reason })
    }
}

/// How the steps of a batch are carried out.
#[derive(Clone, Copy)]
pub(super) enum Manner {
    /// With as few statements as the database allows; all objects of the batch are of this kind.
    AtOnce(&'static Entity),
    /// One by one, so that an error shows which step failed.
    StepByStep,
}

impl Manner {
    /// Interpret an error. If several steps were done at once, the error does not show which one failed, so they are
    /// repeated one by one.
    fn understood(self, error: StoreError) -> StoreError {
        let is_certain = matches!(
            error.kind,
            ErrorKind::Unavailable | ErrorKind::Late | ErrorKind::Locked | ErrorKind::Conflict
        );
        match self {
            Self::AtOnce(_) if !is_certain => StoreError::new(ErrorKind::Raced),
            _ => error,
        }
    }
}

/// The objects of a batch, each with its newest version in the batch.
fn newest(batch: &[&Delivery]) -> Vec<(ClerkId, Version)> {
    let mut newest: BTreeMap<&ClerkId, &Version> = BTreeMap::new();
    for delivery in batch {
        if let Content::Change(change) = &delivery.content {
            let version = newest.entry(&change.clerk_id).or_insert(&change.version);
            *version = (*version).max(&change.version);
        }
    }
    newest.into_iter().map(|(id, version)| (id.clone(), version.clone())).collect()
}

/// Lock and read the registers of the objects that these deliveries show with all of their parts.
async fn locked_owners<'a>(
    transaction: &mut dyn Transaction,
    deliveries: impl Iterator<Item = &'a Delivery>,
) -> Result<HashMap<ClerkId, Register>> {
    let owners = deliveries.filter(|delivery| !delivery.whole.is_empty());
    transaction.registers(&sorted(owners.filter_map(|delivery| delivery.clerk_id.as_ref()))).await
}

/// Where each id first appears in a batch, and the places of deliveries without an id.
#[derive(Default)]
struct Places<'a> {
    first: BTreeMap<&'a SvixId, usize>,
    without_id: Vec<usize>,
}

impl Places<'_> {
    /// The places of the deliveries that are new.
    fn fresh(&self, recorded: &HashSet<SvixId>) -> HashSet<usize> {
        recorded.iter().filter_map(|id| self.first.get(id)).chain(&self.without_id).copied().collect()
    }
}

/// The steps of a batch after its ids are recorded.
struct Steps<'a> {
    work: &'a Work<'a>,
    transaction: &'a mut dyn Transaction,
    /// The changes that are new.
    changes: Vec<(&'a Delivery, &'a Change)>,
    /// The objects whose parts are stored as the batch shows them. The changes of these parts are left out.
    known_parts: HashSet<&'a ClerkId>,
    /// The registers that were locked to find these objects.
    locked: HashMap<ClerkId, Register>,
    ways: &'a Ways,
    /// Deletions in the batch that were tried before.
    waiting: HashMap<SvixId, Waiting>,
    /// Spans for the messages to sinks.
    told: Vec<Span>,
}

/// The objects that are locked.
struct Locked {
    registers: HashMap<ClerkId, Register>,
    /// Objects without a change whose rows may be written: owners of addresses, children, and rivals.
    kin: Vec<ClerkId>,
    /// The addresses that changes claim, if each address has one owner.
    claimed: Vec<String>,
    cascade: Cascade,
}

/// The objects that the batch deletes.
#[derive(Default)]
struct Cascade {
    deleted: Vec<ClerkId>,
    /// Those of them that were deleted before this batch.
    gone: Vec<ClerkId>,
    /// Whether more objects are to be deleted with them than one transaction takes.
    more: bool,
}

impl Steps<'_> {
    /// Lock and read the registers of the objects with changes, and of all other objects that the changes affect.
    async fn lock(&mut self) -> Result<Locked> {
        let parents: BTreeSet<ClerkId> =
            self.changes.iter().flat_map(|(_, change)| parents(change)).collect();
        let deletions = self.changes.iter().filter(|(delivery, _)| is_deletion(delivery));
        let deleted = sorted(deletions.map(|(_, change)| &change.clerk_id));
        let children = self.transaction.children(&deleted, CASCADE).await?;
        let rivals = self.rivals().await?;
        // Owners are locked together with the others in one order, so that two users who swap addresses never deadlock.
        let claimed = self.claimed();
        let owners = if claimed.is_empty() {
            Vec::new()
        } else {
            owners_of(&self.transaction.addresses(&claimed).await?)
        };
        let kin = sorted(owners.iter().chain(&children).chain(&rivals));
        let ids = self.changes.iter().map(|(_, change)| &change.clerk_id).chain(&parents).chain(&kin);
        let mut registers = std::mem::take(&mut self.locked);
        let unlocked = sorted(ids.filter(|id| !registers.contains_key(*id)));
        registers.extend(self.transaction.registers(&unlocked).await?);
        // The deletion of a parent that is not stored yet has to wait for this transaction.
        let unknown = sorted(parents.iter().filter(|parent| !registers.contains_key(*parent)));
        registers.extend(self.transaction.hold(&unknown).await?);

        // While the parents are locked, no children or rivals can be added. Those that were added before the lock are
        // not locked themselves: such children are left for later, and such rivals cause a repeat.
        let more = self.has_more_children(&deleted, &children).await?;
        // A rival without a register cannot be locked, but it is displaced all the same.
        let is_new = |rival: &ClerkId| !registers.contains_key(rival) && !rivals.contains(rival);
        if self.rivals().await?.iter().any(is_new) {
            return Err(StoreError::new(ErrorKind::Raced));
        }
        // Their users are locked, so no other transaction can add parts.
        let parts = self.parts().await?;
        let unlocked = sorted(parts.iter().filter(|part| !registers.contains_key(*part)));
        registers.extend(self.transaction.registers(&unlocked).await?);
        let kin = sorted(kin.iter().chain(&parts));
        let is_gone = |id: &&ClerkId| registers.get(*id).is_some_and(|register| register.deleted);
        let gone = deleted.iter().filter(is_gone).cloned().collect();
        Ok(Locked { registers, kin, claimed, cascade: Cascade { deleted, gone, more } })
    }

    /// Whether more objects go with the deleted ones than were found before the locks were taken.
    async fn has_more_children(&mut self, deleted: &[ClerkId], children: &[ClerkId]) -> Result<bool> {
        let kinds = &self.work.rules.selection;
        let is_parent = |entity: &'static Entity| {
            kinds.entities().any(|child| child.parents().any(|(_, parent)| parent == entity))
        };
        // Rows of kinds that are no longer synced are deleted too, and there can be just as many.
        if children.is_empty() && !deleted.iter().any(|id| is_parent(id.entity())) {
            return Ok(false);
        }
        let now = self.transaction.children(deleted, CASCADE + 1).await?;
        // A child of several parents counts once for each, so there may be more beyond the limit.
        Ok(now.len() > CASCADE as usize || now.iter().any(|child| children.binary_search(child).is_err()))
    }

    /// The stored parts of the objects that are shown with all of their parts.
    async fn parts(&mut self) -> Result<Vec<ClerkId>> {
        let shown = self.changes.iter().filter(|(delivery, _)| !delivery.whole.is_empty());
        let shown = shown.map(|(_, change)| &change.clerk_id).filter(|id| !self.known_parts.contains(id));
        let shown = sorted(shown);
        self.transaction.parts(&shown, PARTS, u32::MAX).await
    }

    /// The live objects that cannot coexist with the objects that the changes show, because of a unique key.
    async fn rivals(&mut self) -> Result<Vec<ClerkId>> {
        let mut rivals = Vec::new();
        for entity in self.work.rules.selection.entities().filter(|entity| !entity.unique.is_empty()) {
            let of_kind = self.changes.iter().filter(|(_, change)| change.clerk_id.entity() == entity);
            let keys = of_kind.filter_map(|(_, change)| key(entity, |field| change.patch()?.get(field)));
            let keys: Vec<Vec<String>> = keys.collect::<BTreeSet<_>>().into_iter().collect();
            rivals.extend(self.transaction.rivals(entity, &keys).await?);
        }
        Ok(rivals)
    }

    /// The addresses that changes claim, if each address has one owner.
    fn claimed(&self) -> Vec<String> {
        let unique = self.work.rules.unique_email;
        let emails = self.changes.iter().filter(|_| unique).filter_map(|(_, change)| email_in(change));
        emails.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Load the rows of the objects with news, and of the objects that go with them.
    async fn load(
        &mut self,
        registers: HashMap<ClerkId, Register>,
        kin: &[ClerkId],
        claimed: Vec<String>,
    ) -> Result<Stored> {
        let has_news = |(delivery, change): &&(&Delivery, &Change)| {
            is_news(delivery, change, registers.get(&change.clerk_id))
        };
        let ids = self.changes.iter().filter(has_news).map(|(_, change)| &change.clerk_id);
        let objects = self.transaction.load(&sorted(ids.chain(kin)), &self.work.rules.selection).await?;
        let mut stored = Stored { registers, objects, addresses: None };
        if self.work.rules.unique_email {
            self.find_owners(claimed, &mut stored).await?;
        }
        Ok(stored)
    }

    /// Find the owners of the claimed addresses again, now that the registers are locked: another transaction may have
    /// been faster. A user whose deletion is cancelled claims the address in their row again.
    async fn find_owners(&mut self, mut claimed: Vec<String>, stored: &mut Stored) -> Result<()> {
        let kept = self.changes.iter().filter(|(_, change)| matches!(change.news, News::Keep));
        let email = |id: &ClerkId| stored.objects.get(id)?.profile[user::EMAIL].text().map(str::to_owned);
        claimed.extend(kept.filter_map(|(_, change)| email(&change.clerk_id)));
        claimed.sort();
        claimed.dedup();
        let addresses =
            if claimed.is_empty() { Vec::new() } else { self.transaction.addresses(&claimed).await? };
        let mut late = owners_of(&addresses);
        late.retain(|id| !stored.objects.contains_key(id));
        stored.registers.extend(self.transaction.registers(&late).await?);
        stored.objects.extend(self.transaction.load(&late, &self.work.rules.selection).await?);
        stored.addresses = Some(addresses);
        Ok(())
    }

    /// Write registers, rows, audit lines and outcomes of one kind in one statement.
    async fn close(&mut self, entity: &'static Entity, plan: &Plan) -> Result<()> {
        let Plan { registers, inserts, updates, audit, .. } = plan;
        let outcomes = self.corrections(plan);
        if registers.is_empty() && audit.is_empty() && outcomes.is_empty() {
            return Ok(());
        }
        let closing = Closing { registers, inserts, updates, audit, outcomes: &outcomes };
        self.transaction.close(entity, &closing, &self.work.rules.selection).await
    }

    /// Write registers, rows, and the messages about them.
    async fn write(&mut self, plan: &mut Plan) -> Result<()> {
        let selection = &self.work.rules.selection;
        self.transaction.advance(&plan.registers).await?;
        if self.work.rules.unique_email {
            // Marking these rows frees their addresses.
            self.transaction.mark(&plan.held, Mark::Set).await?;
        }
        self.transaction.release_addresses(&plan.released).await?;
        self.transaction.mark(&plan.displaced, Mark::Set).await?;
        self.transaction.insert(&plan.inserts, selection).await?;
        self.transaction.update(&plan.updates, selection).await?;
        self.tell(std::mem::take(&mut plan.messages)).await?;
        self.transaction.mark(&plan.held, Mark::Set).await?;
        self.transaction.mark(&plan.kept, Mark::Unset).await
    }

    /// Erase the rows of deleted objects, and everything else that is kept about them.
    async fn take_out(&mut self, plan: &mut Plan, cascade: &Cascade) -> Result<()> {
        // Forget data that was locked during an earlier erasure, or that arrived since. `erase` does the same for the
        // objects that are erased now.
        let is_erased = |id: &ClerkId| plan.erasures.iter().any(|erasure| erasure.clerk_id == *id);
        let again: Vec<ClerkId> = cascade.gone.iter().filter(|id| !is_erased(id)).cloned().collect();
        self.forget(&again).await?;
        self.erase(plan).await?;
        if cascade.more {
            self.go_on(cascade, &plan.erasures).await?;
        }
        Ok(())
    }

    /// Erase objects from all tables. If no way works for a row, the tombstone stays and the erasure is retried until it
    /// succeeds.
    async fn erase(&mut self, plan: &mut Plan) -> Result<()> {
        if plan.erasures.is_empty() && plan.gone.is_empty() {
            return Ok(());
        }
        let now = self.work.now;
        let hidden = self.transaction.hidden().await?;
        if hidden.is_some() {
            // Rows may be hidden from clerk-sync, so a row that it cannot see may still exist.
            for (clerk_id, change) in std::mem::take(&mut plan.gone) {
                let requested_at = self.changes[change].0.event_at.min(now);
                plan.erasures.push(Erasure { clerk_id, change, known: true, leaves: false, requested_at });
            }
        }
        if plan.erasures.is_empty() {
            return Ok(());
        }
        let ids = sorted(plan.erasures.iter().map(|erasure| &erasure.clerk_id));
        let mut fates = HashMap::new();
        for ids in ids.chunk_by(|one, other| one.entity() == other.entity()) {
            fates.extend(self.transaction.erase(ids, self.ways.steps(ids[0].entity()), now).await?);
        }
        self.forget(&ids).await?;
        self.tell_of_erasures(&ids, &plan.erasures).await?;

        // No audit line may keep the actor of an erased user.
        for line in &mut plan.audit {
            if ids.binary_search(&line.clerk_id).is_ok() {
                line.actor = None;
            }
        }
        let (mut others, mut last_refusal) = (0_u64, None);
        let mut parked = Vec::new();
        let mut receipts = Vec::new();
        for Erasure { clerk_id, change: index, known, requested_at, .. } in &plan.erasures {
            let (delivery, change) = self.changes[*index];
            let (action, refusal) = match fates.get(clerk_id) {
                Some(RowFate::Deleted) => (Some(AuditAction::Deleted), None),
                Some(RowFate::Anonymized) => (Some(AuditAction::Anonymized), None),
                Some(RowFate::Stands(_)) if self.ways.steps(clerk_id.entity()).is_empty() => {
                    (None, Some(&self.ways.refusal))
                }
                Some(RowFate::Stands(refusal)) => (None, Some(refusal)),
                None => (None, None),
            };
            let refusal = refusal.or(hidden.as_ref());
            if clerk_id.entity().is_person() && (*known || hidden.is_some()) {
                receipts.push(Receipt {
                    clerk_id: clerk_id.clone(),
                    destination: Receipt::DATABASE.to_owned(),
                    requested_at: *requested_at,
                    completed_at: refusal.is_none().then_some(now),
                    attempts: 1,
                    last_error: refusal.map(ToString::to_string),
                });
            }
            if let Some(action) = action {
                let line = entry(delivery, change, action, Vec::new(), now);
                plan.audit.push(AuditEntry { actor: None, clerk_id: clerk_id.clone(), ..line });
            }
            if let Some(refusal) = refusal {
                counter!(telemetry::ERASURE_FAILURES).increment(1);
                let is_asked_for = change.clerk_id == *clerk_id;
                if is_asked_for {
                    tracing::warn!(
                        clerk_id = %clerk_id,
                        error = %refusal,
                        "the row of a deleted object may still exist; its deletion is retried until it succeeds"
                    );
                    plan.outcomes[*index] = Outcome::Parked;
                } else {
                    (others, last_refusal) = (others + 1, Some(refusal));
                }
                let svix_id = delivery.svix_id.clone().filter(|_| is_asked_for);
                let svix_id = svix_id.unwrap_or_else(|| retry_id(clerk_id));
                let (attempts, received_at) = next_attempt(self.waiting.get(&svix_id), delivery);
                let next = self.work.rules.retry.always_after(attempts, svix_id.as_str(), now);
                parked.push(Parked {
                    attempts,
                    next_attempt_at: Some(next),
                    received_at,
                    last_error: refusal.to_string(),
                    ..waiting_deletion(svix_id, clerk_id, delivery, now)
                });
            }
        }
        if let Some(error) = last_refusal {
            // One log line for all of them: an organization may have thousands.
            tracing::warn!(
                objects = others,
                %error,
                "rows that are deleted together with an object may still exist; each deletion is retried until it succeeds"
            );
        }
        self.transaction.receipts(&receipts).await?;
        self.transaction.park(&parked).await
    }

    /// If more objects are to be deleted than one transaction takes, mark them all now, so that no reader sees only some
    /// of them as deleted. The rest is erased in later transactions.
    async fn go_on(&mut self, cascade: &Cascade, erasures: &[Erasure]) -> Result<()> {
        let erased: HashSet<&ClerkId> = erasures.iter().map(|erasure| &erasure.clerk_id).collect();
        let now: Vec<ClerkId> = cascade.deleted.iter().filter(|id| erased.contains(id)).cloned().collect();
        self.transaction.mark_children(&now, self.work.now).await?;
        let again = sorted(now.iter().chain(&cascade.gone));
        let change = |id: &ClerkId| self.changes.iter().find(|(_, change)| change.clerk_id == *id);
        let again: Vec<Parked> = again
            .iter()
            .filter_map(|id| Some(waiting_deletion(retry_id(id), id, change(id)?.0, self.work.now)))
            .map(|parked| Parked { received_at: self.work.now, ..parked })
            .collect();
        self.transaction.park(&again).await
    }

    /// Remove the parked deliveries and audit actors of these users, including deliveries whose body could not be
    /// parsed.
    async fn forget(&mut self, ids: &[ClerkId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let suspects: Vec<(SvixId, Bytes)> = self.transaction.unattributed(ids).await?;
        let mut theirs: Vec<SvixId> = suspects
            .into_iter()
            .filter(|(svix_id, payload)| self.is_about(svix_id, payload, ids))
            .map(|(svix_id, _)| svix_id)
            .collect();
        theirs.sort();
        self.transaction.forget(ids, &theirs).await
    }

    /// Whether a stored body is about one of these objects. If it can be parsed, only its own object and parents count:
    /// a membership also names the founder of its organization, but is not about that user.
    fn is_about(&self, svix_id: &SvixId, payload: &Bytes, ids: &[ClerkId]) -> bool {
        let Work { rules, now, .. } = self.work;
        let kept = Verified::kept(svix_id.clone(), *now, payload.clone());
        match event::parse(&kept, &rules.selection, *now).delivery.content {
            Content::Change(change) => {
                ids.contains(&change.clerk_id) || parents(&change).any(|parent| ids.contains(&parent))
            }
            _ => ids.iter().any(|id| id.is_named_in(payload)),
        }
    }

    /// Withdraw messages that were not sent yet, and ask every sink that received data about these users to erase it.
    /// Sinks that subscribe to deletions get a message for every row that is deleted.
    async fn tell_of_erasures(&mut self, ids: &[ClerkId], erasures: &[Erasure]) -> Result<()> {
        let now = self.work.now;
        let mut recipients: BTreeSet<(ClerkId, String)> =
            self.transaction.recall(ids, now).await?.into_iter().collect();
        for erasure in erasures.iter().filter(|erasure| erasure.leaves) {
            let deletion = MessageType::deleted(erasure.clerk_id.entity());
            let subscribed = self.work.rules.subscriptions.iter();
            let subscribed = subscribed.filter(|one| one.events.contains(&deletion));
            recipients.extend(subscribed.map(|one| (erasure.clerk_id.clone(), one.sink.clone())));
        }
        let asked: HashMap<&ClerkId, &Erasure> =
            erasures.iter().map(|erasure| (&erasure.clerk_id, erasure)).collect();
        let mut messages: Vec<Outgoing> = Vec::new();
        let mut receipts = Vec::new();
        for (clerk_id, destination) in recipients {
            let Some(erasure) = asked.get(&clerk_id) else { continue };
            let (delivery, change) = self.changes[erasure.change];
            messages.push(news::of_deletion(&destination, &clerk_id, delivery, change, now));
            if clerk_id.entity().is_person() {
                receipts.push(Receipt {
                    clerk_id,
                    destination,
                    requested_at: erasure.requested_at,
                    completed_at: None,
                    attempts: 0,
                    last_error: None,
                });
            }
        }
        self.tell(messages).await?;
        self.transaction.receipts(&receipts).await
    }

    /// Write messages to sinks, each with a span whose parent is the delivery that caused it.
    async fn tell(&mut self, mut messages: Vec<Outgoing>) -> Result<()> {
        for message in &mut messages {
            let queue = Queue::Outbox(&message.sink);
            let span = Span::send(queue, &message.message_id, Some(&message.kind.name()), &message.trace);
            message.trace = span.context();
            self.told.push(span);
        }
        self.transaction.tell(&messages).await
    }

    /// Write what is known only now: completed receipts, the audit trail, and corrections of outcomes that were
    /// recorded too early.
    async fn finish(&mut self, plan: &Plan) -> Result<()> {
        // The application may have removed a row that could not be erased before.
        let done = sorted(plan.gone.iter().map(|(id, _)| id));
        self.transaction.close_receipts(&done, Receipt::DATABASE, self.work.now).await?;
        self.transaction.audit(&plan.audit).await?;
        self.transaction.settle(&self.corrections(plan)).await
    }

    /// The outcomes that were recorded too early.
    fn corrections(&self, plan: &Plan) -> Vec<(SvixId, Outcome)> {
        let mut outcomes: Vec<(&SvixId, Outcome)> = Vec::new();
        for ((delivery, _), outcome) in self.changes.iter().zip(&plan.outcomes) {
            match (outcomes.last_mut(), &delivery.svix_id) {
                // Nested changes directly follow the change of the object that contains them.
                (Some((last, all)), Some(id)) if *last == id => *all = of_both(*all, *outcome),
                (_, Some(id)) => outcomes.push((id, *outcome)),
                (_, None) => {}
            }
        }
        outcomes.retain(|(_, outcome)| !matches!(outcome, Outcome::Applied | Outcome::Parked));
        outcomes.into_iter().map(|(id, outcome)| (id.clone(), outcome)).collect()
    }
}

/// The result of parking a delivery, valid once the transaction is committed.
pub(super) enum Kept {
    /// The delivery did not have to be parked.
    Not(Outcome),
    /// Parked after this many attempts, either to be retried or as a dead letter for the operator.
    Parked { attempts: u32, again: bool, reason: String },
}

impl Kept {
    /// Log the result, now that it is committed.
    pub(super) fn told(self, svix_id: &SvixId, delivery: &Delivery) -> Outcome {
        let (attempts, again, reason) = match self {
            Self::Not(outcome) => return outcome,
            Self::Parked { attempts, again, reason } => (attempts, again, reason),
        };
        let event = delivery.event_type.as_deref();
        if again {
            tracing::warn!(%svix_id, event, attempts, again, reason, "parked: kept in webhook_queue");
        } else {
            // The delivery is lost unless the operator acts.
            tracing::error!(%svix_id, event, attempts, again, reason, "parked: kept in webhook_queue");
        }
        Outcome::Parked
    }
}

/// The rules without one of the free-text fields of a delivery, for each such field; finally without all of them.
pub(super) fn fewer_fields(rules: &Rules, delivery: &Delivery) -> Vec<(FieldSet, Rules)> {
    let Content::Change(Change { news: News::Upsert { patch, .. } | News::Adopt { patch, .. }, .. }) =
        &delivery.content
    else {
        return Vec::new();
    };
    let Some(entity) = delivery.clerk_id.as_ref().map(ClerkId::entity) else { return Vec::new() };
    let keys: FieldSet = entity.keys().collect();
    let is_free = |field: &Field| {
        matches!(patch.get(*field), Some(Value::Text(_) | Value::Json(_))) && !keys.contains(*field)
    };
    let free: Vec<Field> = rules.fields(entity).of(entity).filter(is_free).collect();
    let one_by_one = free.iter().map(|field| FieldSet::from_iter([*field]));
    let left_out = one_by_one.chain((free.len() > 1).then(|| free.iter().copied().collect()));
    let without = |left_out: FieldSet| {
        let fields = rules.fields(entity).of(entity).filter(|field| !left_out.contains(*field)).collect();
        (left_out, Rules { selection: rules.selection.clone().with(entity, fields), ..rules.clone() })
    };
    left_out.map(without).collect()
}

pub(super) fn log_left_out(delivery: &Delivery, fields: FieldSet) {
    let entity = delivery.clerk_id.as_ref().map(ClerkId::entity);
    let names: Vec<&str> = entity.into_iter().flat_map(|entity| fields.of(entity)).map(Field::name).collect();
    tracing::warn!(
        svix_id = delivery.svix_id.as_ref().map(SvixId::as_str),
        event = delivery.event_type.as_deref(),
        clerk_id = delivery.clerk_id.as_ref().map(ClerkId::as_str),
        fields = names.join(","),
        "the database cannot store these fields: they keep their old values, and the rest is applied"
    );
}

/// Commit on success, roll back on an error.
pub(super) async fn end<T>(transaction: Box<dyn Transaction>, result: Result<T>) -> Result<T> {
    match result {
        Ok(value) => transaction.commit().await.map(|()| value),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

/// The users that own one of these addresses.
pub(super) fn owners_of(addresses: &[Address]) -> Vec<ClerkId> {
    sorted(addresses.iter().filter_map(|address| address.owner.as_ref()))
}

/// The ids of the deliveries that delete an object.
fn deletions(batch: &[&Delivery]) -> Vec<SvixId> {
    let ids =
        batch.iter().filter(|delivery| is_deletion(delivery)).filter_map(|delivery| delivery.svix_id.clone());
    ids.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn is_deletion(delivery: &Delivery) -> bool {
    deletion(delivery).is_some()
}

/// Whether the delivery may erase a row: the one that it deletes, or one that its object displaces.
pub(super) fn may_take_out(delivery: &Delivery) -> bool {
    let has_a_place = |id: &ClerkId| !id.entity().unique.is_empty();
    is_deletion(delivery) || delivery.clerk_id.as_ref().is_some_and(has_a_place)
}

fn deletion(delivery: &Delivery) -> Option<&Change> {
    match &delivery.content {
        Content::Change(change) if matches!(change.news, News::Delete | News::Erase(_)) => Some(change),
        _ => None,
    }
}

/// A delivery as it is stored in the queue, due and with no attempts. For a deletion only the id is kept.
pub(super) fn waiting_as(svix_id: SvixId, delivery: &Delivery, now: DateTime<Utc>) -> Parked {
    match deletion(delivery) {
        Some(change) => waiting_deletion(svix_id, &change.clerk_id, delivery, now),
        None => waiting_as_it_came(svix_id, delivery, now),
    }
}

fn waiting_as_it_came(svix_id: SvixId, delivery: &Delivery, now: DateTime<Utc>) -> Parked {
    Parked {
        svix_id,
        event_type: delivery.event_type.clone(),
        clerk_id: delivery.clerk_id.clone(),
        payload: delivery.payload.clone(),
        attempts: 0,
        next_attempt_at: Some(now),
        received_at: delivery.received_at,
        dead_at: None,
        last_error: String::new(),
        trace: delivery.trace.clone(),
    }
}

/// The deletion of this object as it is stored in the queue, caused by a delivery that may be about another object.
fn waiting_deletion(svix_id: SvixId, clerk_id: &ClerkId, delivery: &Delivery, now: DateTime<Utc>) -> Parked {
    Parked {
        event_type: Some(clerk_id.entity().deletion().to_owned()),
        clerk_id: Some(clerk_id.clone()),
        payload: deletion_body(clerk_id, delivery.event_at),
        ..waiting_as_it_came(svix_id, delivery, now)
    }
}

fn sorted<'a>(ids: impl Iterator<Item = &'a ClerkId>) -> Vec<ClerkId> {
    ids.collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

fn record<'a>(
    svix_id: &'a SvixId,
    delivery: &'a Delivery,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> Record<'a> {
    Record {
        svix_id,
        event_type: delivery.event_type.as_deref(),
        outcome,
        clerk_id: delivery.clerk_id.as_ref(),
        event_at: delivery.event_at,
        processed_at: now,
    }
}

/// The outcome of a delivery that makes two changes with these outcomes.
fn of_both(one: Outcome, other: Outcome) -> Outcome {
    let all = [Outcome::Parked, Outcome::Applied, Outcome::Unchanged, Outcome::Stale];
    all.into_iter().find(|outcome| [one, other].contains(outcome)).unwrap_or(other)
}

/// The outcome that a delivery most likely gets, so that few records have to be written twice.
fn provisional(delivery: &Delivery) -> Outcome {
    match delivery.content {
        Content::Change(_) => Outcome::Applied,
        Content::Ignored | Content::Unusable(_) => Outcome::Ignored,
    }
}

/// A repeat within the batch is a duplicate, unless the first one was parked: then the repeat counts as parked too.
fn share_with_repeats(batch: &[&Delivery], outcomes: &mut [Outcome]) {
    let parked: HashSet<&SvixId> = batch
        .iter()
        .zip(&*outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Parked)
        .filter_map(|(delivery, _)| delivery.svix_id.as_ref())
        .collect();
    for (delivery, outcome) in batch.iter().zip(outcomes) {
        if *outcome == Outcome::Duplicate && delivery.svix_id.as_ref().is_some_and(|id| parked.contains(id)) {
            *outcome = Outcome::Parked;
        }
    }
}

/// The number of this attempt, and the time when the delivery first arrived.
fn next_attempt(waiting: Option<&Waiting>, delivery: &Delivery) -> (u32, DateTime<Utc>) {
    waiting.map_or((1, delivery.received_at), |waiting| (waiting.attempts + 1, waiting.received_at))
}
