//! A batch in one transaction; and when that fails, the search for whoever spoils it.
//!
//! Halves of a failing batch are committed in transactions of their own, down to the single delivery, which is then
//! answered by the kind of its trouble: transient trouble is refused so that Svix brings it back, the rest is
//! parked. Real transactions rather than savepoints, so that a constraint that speaks only at the commit is found
//! the same way, and so that what is good is durable at once.

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
    plan::{Erasure, Plan, Stored, email_in, entry, is_news, key, parents, plan},
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

/// How long a transaction begins again after conflicts, about as long as locks are waited for. MongoDB has no locks to wait for: of
/// several who write to one object one succeeds at a time.
const CONFLICTS: Duration = Duration::from_millis(2_500);
const CONFLICTS_OF_MANY: Duration = Duration::from_millis(100);
/// How often it begins again because an entity appeared meanwhile.
const RACES: u32 = 5;

/// Deliveries refused one by one before the rest of the batch is refused with them: then it is not one user's row
/// that somebody locks, but the table.
pub(super) const HOPELESS_REFUSALS: u32 = 16;

/// So many users are looked for in a body that nobody can read.
const NAMED: usize = 100;

/// So many objects that go with those that are deleted go in one transaction. The others follow in transactions of their own.
const CASCADE: u32 = 2_000;

/// Apply deliveries in the order in which they came, and tell what became of each. What is not done at the deadline
/// is refused as unavailable; it may be done all the same, which makes its re-delivery a duplicate.
pub async fn apply(
    store: &dyn Store,
    batch: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    deliver(&Work { store, rules, now }, batch, Processing::Inline, deadline).await
}

/// Apply what is usable of a batch or store it for later, in halves where that fails; the rest is parked.
pub(super) async fn deliver(
    work: &Work<'_>,
    batch: &[Delivery],
    processing: Processing,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    let mut results: Vec<Result<Outcome>> =
        batch.iter().map(|_| Err(StoreError::new(ErrorKind::Unavailable))).collect();
    // Unusable ones have no effect on others, and are parked one by one.
    let (broken, usable): (Vec<usize>, Vec<usize>) =
        (0..batch.len()).partition(|index| unusable(&batch[*index]).is_some());

    let mut parts: Vec<Range<usize>> = Vec::from([Range { start: 0, end: usable.len() }]);
    let mut patience = Patience::Normal;
    let mut refusals = 0;
    while let Some(part) = parts.pop() {
        if Instant::now() >= deadline {
            // Nobody waits for the answer any more.
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
                    // Nobody can tell it from a database that does not answer.
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

/// Why one transaction has begun again so far.
pub(super) struct Repeats {
    patience: Patience,
    /// When the first conflict was.
    conflict: Option<Instant>,
    races: u32,
}

impl Repeats {
    pub(super) fn with(patience: Patience) -> Self {
        Self { patience, conflict: None, races: 0 }
    }

    /// Whether it begins again after this error: what is likely to be gone is tried again before anybody is suspected.
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

/// Why a delivery can never be used as it came, if that is so.
pub(super) fn unusable(delivery: &Delivery) -> Option<StoreError> {
    let Content::Unusable(reason) = &delivery.content else { return None };
    Some(StoreError { place: Some(reason.clone()), ..StoreError::new(ErrorKind::BadData) })
}

/// By when an attempt at so many must be done: so that of a batch that takes too long there is time left for its parts.
pub(super) fn share(deadline: Instant, deliveries: usize) -> Instant {
    let now = Instant::now();
    if deliveries > 1 { now + deadline.saturating_duration_since(now) / 2 } else { deadline }
}

/// The parts of a batch that failed like this, in their order.
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

/// The ways to take out a user's row, in the order in which they are tried; where none is left, only a tombstone.
#[derive(Clone)]
pub(super) struct Ways {
    policy: DeletionPolicy,
    /// How often others were left to be tried; `None` if none is.
    tried: Option<usize>,
    /// Why those did not work.
    refusal: StoreError,
}

impl Ways {
    pub(super) fn of(policy: DeletionPolicy) -> Self {
        Self { policy, tried: Some(0), refusal: StoreError::new(ErrorKind::Refused) }
    }

    /// Whether there is none for any kind.
    pub(super) fn is_empty(&self) -> bool {
        self.steps(&ORGANIZATION).is_empty() && self.steps(&USER).is_empty()
    }

    /// Those for this kind: where nobody is a person there is nothing to anonymise, and a row that cannot go is marked. What is
    /// no person gives way first: nobody knows which row it was that did not go.
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

    /// Those that are left where these did not work.
    pub(super) fn after(self, refusal: StoreError) -> Self {
        Self { tried: self.tried.map(|tried| tried + 1), refusal, ..self }
    }

    /// None for now: what takes too long is for whoever has time.
    pub(super) fn later(self, refusal: StoreError) -> Self {
        Self { tried: None, refusal, ..self }
    }
}

/// What a transaction has written, as far as anybody has to know before it is committed.
pub(super) struct Written {
    pub(super) outcomes: Vec<Outcome>,
    /// The messages to other systems. Of what is not committed they say that it was cut off.
    pub(super) told: Vec<Span>,
}

impl Written {
    /// The transaction is committed.
    pub(super) fn committed(self) -> Vec<Outcome> {
        for span in self.told {
            span.done("stored");
        }
        self.outcomes
    }
}

pub(super) struct Work<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) rules: &'a Rules,
    pub(super) now: DateTime<Utc>,
}

impl Work<'_> {
    /// One delivery alone: its trouble is its own.
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
                // The constraint spoke only at the commit: the next way out, and at last only the tombstone.
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

    /// Apply a delivery but for the field that the database cannot store, such as one that is too long for an index of the
    /// application's: a client writes some of them freely, and must not freeze a user by that.
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

    /// Attempt a batch, again after a conflict that is likely to be gone. If it takes too long and deletes somebody, perhaps
    /// with much that hangs on them, there is a tombstone first, and the rest is done later. That may take all the time that is
    /// left: what goes with an organization of many members is marked in one statement.
    async fn settled(&self, batch: &[&Delivery], patience: Patience, ways: Ways) -> Result<Vec<Outcome>> {
        let (mut repeats, mut ways, mut patience) = (Repeats::with(patience), ways, patience);
        // What is divided has failed before.
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
        // The last statement may have been sent with the commit.
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
            // Before recording takes them out of the queue.
            waiting = transaction.waiting(&deletions(batch)).await?;
            places.fresh(&transaction.record(&records).await?)
        };

        let mut outcomes = vec![Outcome::Duplicate; batch.len()];
        let (mut changes, mut indexes) = (Vec::new(), Vec::new());
        for (index, delivery) in batch.iter().enumerate().filter(|(index, _)| fresh.contains(index)) {
            if let Content::Change(change) = &delivery.content {
                for change in [change].into_iter().chain(&delivery.nested) {
                    changes.push((*delivery, change));
                    indexes.push(index);
                }
            } else {
                outcomes[index] = Outcome::Ignored;
            }
        }
        let mut steps = Steps { work: self, transaction, changes, ways, waiting, told: Vec::new() };
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

    /// How a batch is done that has not failed before: at once, if webhooks show objects of one kind as they are now, and these belong
    /// to no others and leave each other alone.
    pub(super) fn manner(&self, batch: &[&Delivery]) -> Manner {
        let mut kind = None;
        for delivery in batch {
            let Content::Change(change) = &delivery.content else { continue };
            if !delivery.nested.is_empty() || !delivery.whole.is_empty() {
                return Manner::StepByStep;
            }
            let entity = change.clerk_id.entity();
            let stands_alone = !entity.has_parents() && entity.unique.is_empty();
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

    /// Record every id once; gives the places of deliveries that are news to us.
    pub(super) async fn record(
        &self,
        transaction: &mut dyn Transaction,
        batch: &[&Delivery],
    ) -> Result<HashSet<usize>> {
        let (records, places) = self.records(batch);
        Ok(places.fresh(&transaction.record(&records).await?))
    }

    /// What is recorded of a batch, each id once.
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

    /// Keep a delivery that cannot be applied. For a deleted user nothing is kept; what has no id to be kept under, because
    /// no webhook brought it, ends with the error.
    async fn park(&self, delivery: &Delivery, error: StoreError, patience: Patience) -> Result<Outcome> {
        // A user's row may refuse even the mark of a deletion that is held back.
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

    /// The same within a transaction. Data that the database can never store is dead; the rest is tried again.
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
        // In the order in which a batch takes its locks: the record, then the register.
        let recorded = transaction.record(&[record(svix_id, delivery, Outcome::Stale, self.now)]).await?;
        if recorded.is_empty() {
            return Ok(Kept::Not(Outcome::Duplicate));
        }
        if let Some(id) = &delivery.clerk_id {
            // Those with whom it goes as well, so that keeping it and erasing them cannot pass each other.
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
            // Nobody knows whom it is about; if it names somebody who is erased, they are not to come back in it.
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

/// How the steps of a batch are done.
#[derive(Clone, Copy)]
pub(super) enum Manner {
    /// As many in one statement as the database lets us; the batch is about objects of this kind.
    AtOnce(&'static Entity),
    /// So that an error says which step it was.
    StepByStep,
}

impl Manner {
    /// An error as it is understood: of steps that were done at once nobody knows which it was, so they are done one by one.
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

/// The objects of a batch, each with its newest version there.
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

/// Where in a batch each id stands first, and the deliveries that have none.
#[derive(Default)]
struct Places<'a> {
    first: BTreeMap<&'a SvixId, usize>,
    without_id: Vec<usize>,
}

impl Places<'_> {
    /// The places of deliveries that are news to us.
    fn fresh(&self, recorded: &HashSet<SvixId>) -> HashSet<usize> {
        recorded.iter().filter_map(|id| self.first.get(id)).chain(&self.without_id).copied().collect()
    }
}

/// The steps of a batch after its ids are recorded.
struct Steps<'a> {
    work: &'a Work<'a>,
    transaction: &'a mut dyn Transaction,
    /// What is new to us.
    changes: Vec<(&'a Delivery, &'a Change)>,
    ways: &'a Ways,
    /// Deletions of the batch that were tried before.
    waiting: HashMap<SvixId, Waiting>,
    /// The messages to other systems.
    told: Vec<Span>,
}

/// What is locked.
struct Locked {
    registers: HashMap<ClerkId, Register>,
    /// Objects that no change is about, whose rows may be written: owners of addresses, children, and rivals.
    kin: Vec<ClerkId>,
    /// The addresses that changes claim, where one has one owner.
    claimed: Vec<String>,
    cascade: Cascade,
}

/// Whose deletion is asked for.
#[derive(Default)]
struct Cascade {
    deleted: Vec<ClerkId>,
    /// Those of them who were deleted before.
    gone: Vec<ClerkId>,
    /// Whether more goes with them than one transaction takes.
    more: bool,
}

impl Steps<'_> {
    /// Lock and read the registers of the objects that changes are about, and of those whom they concern besides.
    async fn lock(&mut self) -> Result<Locked> {
        let parents: BTreeSet<ClerkId> =
            self.changes.iter().flat_map(|(_, change)| parents(change)).collect();
        let deletions = self.changes.iter().filter(|(delivery, _)| is_deletion(delivery));
        let deleted = sorted(deletions.map(|(_, change)| &change.clerk_id));
        let children = self.transaction.children(&deleted, CASCADE).await?;
        let rivals = self.rivals().await?;
        // Owners are locked with the others, in one order, so that two who swap never wait for each other.
        let claimed = self.claimed();
        let owners = if claimed.is_empty() {
            Vec::new()
        } else {
            owners_of(&self.transaction.addresses(&claimed).await?)
        };
        let kin = sorted(owners.iter().chain(&children).chain(&rivals));
        let ids = self.changes.iter().map(|(_, change)| &change.clerk_id).chain(&parents).chain(&kin);
        let mut registers = self.transaction.registers(&sorted(ids)).await?;
        // A deletion of a parent that is not here yet has to wait for us.
        let unknown = sorted(parents.iter().filter(|parent| !registers.contains_key(*parent)));
        registers.extend(self.transaction.hold(&unknown).await?);

        // With their parents locked no children and rivals are added any more. Those who came meanwhile are not locked:
        // children are left for later, and rivals make us begin again.
        let more = self.has_more_children(&deleted, &children).await?;
        // One without a register cannot be locked, and makes room all the same.
        let is_new = |rival: &ClerkId| !registers.contains_key(rival) && !rivals.contains(rival);
        if self.rivals().await?.iter().any(is_new) {
            return Err(StoreError::new(ErrorKind::Raced));
        }
        // Their users are locked, so nobody adds parts to them meanwhile.
        let parts = self.parts().await?;
        let unlocked = sorted(parts.iter().filter(|part| !registers.contains_key(*part)));
        registers.extend(self.transaction.registers(&unlocked).await?);
        let kin = sorted(kin.iter().chain(&parts));
        let is_gone = |id: &&ClerkId| registers.get(*id).is_some_and(|register| register.deleted);
        let gone = deleted.iter().filter(is_gone).cloned().collect();
        Ok(Locked { registers, kin, claimed, cascade: Cascade { deleted, gone, more } })
    }

    /// Whether more goes with those that are deleted than what was found before they were locked.
    async fn has_more_children(&mut self, deleted: &[ClerkId], children: &[ClerkId]) -> Result<bool> {
        let kinds = &self.work.rules.selection;
        let is_parent = |entity: &'static Entity| {
            kinds.entities().any(|child| child.parents().any(|(_, parent)| parent == entity))
        };
        // What is not synced any more goes as well, and can be as much.
        if children.is_empty() && !deleted.iter().any(|id| is_parent(id.entity())) {
            return Ok(false);
        }
        let now = self.transaction.children(deleted, CASCADE + 1).await?;
        // Who goes with several of them counts for each: there may be more behind.
        Ok(now.len() > CASCADE as usize || now.iter().any(|child| children.binary_search(child).is_err()))
    }

    /// The parts that are known of those who are shown with all of them.
    async fn parts(&mut self) -> Result<Vec<ClerkId>> {
        let shown = self.changes.iter().filter(|(delivery, _)| !delivery.whole.is_empty());
        let shown = sorted(shown.map(|(_, change)| &change.clerk_id));
        self.transaction.parts(&shown, PARTS, u32::MAX).await
    }

    /// The live objects that cannot be beside those that changes show.
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

    /// The addresses that changes claim, where one has one owner.
    fn claimed(&self) -> Vec<String> {
        let unique = self.work.rules.unique_email;
        let emails = self.changes.iter().filter(|_| unique).filter_map(|(_, change)| email_in(change));
        emails.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Load the rows of objects with news, and of their kin.
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

    /// Whose the claimed addresses are, now that the registers are locked: somebody may have been faster. Who is kept comes
    /// back with the address of the row.
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

    /// Write registers, rows, lines of audit and outcomes of one kind in one statement.
    async fn close(&mut self, entity: &'static Entity, plan: &Plan) -> Result<()> {
        let Plan { registers, inserts, updates, audit, .. } = plan;
        let outcomes = self.corrections(plan);
        if registers.is_empty() && audit.is_empty() && outcomes.is_empty() {
            return Ok(());
        }
        let closing = Closing { registers, inserts, updates, audit, outcomes: &outcomes };
        self.transaction.close(entity, &closing, &self.work.rules.selection).await
    }

    /// Write registers, rows, and messages about them.
    async fn write(&mut self, plan: &mut Plan) -> Result<()> {
        let selection = &self.work.rules.selection;
        self.transaction.advance(&plan.registers).await?;
        if self.work.rules.unique_email {
            // Their addresses are free from now on.
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

    /// Take out the rows of those who are erased, and all else that is kept of them.
    async fn take_out(&mut self, plan: &mut Plan, cascade: &Cascade) -> Result<()> {
        // What somebody held on to when they were erased, or came since. Who is erased now is forgotten with that.
        let is_erased = |id: &ClerkId| plan.erasures.iter().any(|erasure| erasure.clerk_id == *id);
        let again: Vec<ClerkId> = cascade.gone.iter().filter(|id| !is_erased(id)).cloned().collect();
        self.forget(&again).await?;
        self.erase(plan).await?;
        if cascade.more {
            self.go_on(cascade, &plan.erasures).await?;
        }
        Ok(())
    }

    /// Take users out of everything. Whose row resists every way keeps a tombstone and a retry without end.
    async fn erase(&mut self, plan: &mut Plan) -> Result<()> {
        if plan.erasures.is_empty() && plan.gone.is_empty() {
            return Ok(());
        }
        let now = self.work.now;
        let hidden = self.transaction.hidden().await?;
        if hidden.is_some() {
            // That no row is seen does not say that there is none.
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

        // No line may keep the actor of somebody who is gone.
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
                        "the row of what is deleted is not known to be gone; it is tried again without end"
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
            // One line for all of them: an organization may have thousands.
            tracing::warn!(
                objects = others,
                %error,
                "rows that go with what is deleted are not known to be gone; each is tried again without end"
            );
        }
        self.transaction.receipts(&receipts).await?;
        self.transaction.park(&parked).await
    }

    /// If more goes with those that are deleted than one transaction takes, mark it all at once, so that nobody takes a part
    /// of it for the whole, and come back for it.
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

    /// Parked deliveries and audit actors of these users, also those whose body could not be read.
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

    /// Whether a body that is kept is about one of these. One that can be read says with whom it goes: it also names the
    /// founder of a membership's organization, with whom it does not go.
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

    /// Take back what other systems were not told yet, and ask those that ever heard of these users to erase them too.
    /// A system that subscribes to deletions is told of every row that goes.
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

    /// Write messages to other systems, each as a span of what caused it.
    async fn tell(&mut self, mut messages: Vec<Outgoing>) -> Result<()> {
        for message in &mut messages {
            let queue = Queue::Outbox(&message.sink);
            let span = Span::send(queue, &message.message_id, Some(&message.kind.name()), &message.trace);
            message.trace = span.context();
            self.told.push(span);
        }
        self.transaction.tell(&messages).await
    }

    /// Write what is known only now: which receipts are complete, the audit trail, and outcomes that were recorded too early.
    async fn finish(&mut self, plan: &Plan) -> Result<()> {
        // The application may have removed a row that resisted us.
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
                // What is inside of an object stands behind it.
                (Some((last, all)), Some(id)) if *last == id => *all = of_both(*all, *outcome),
                (_, Some(id)) => outcomes.push((id, *outcome)),
                (_, None) => {}
            }
        }
        outcomes.retain(|(_, outcome)| !matches!(outcome, Outcome::Applied | Outcome::Parked));
        outcomes.into_iter().map(|(id, outcome)| (id.clone(), outcome)).collect()
    }
}

/// What became of a delivery that was to be kept, once that is committed.
pub(super) enum Kept {
    /// There was no need to.
    Not(Outcome),
    /// After so many attempts, to be tried again or for somebody to look at.
    Parked { attempts: u32, again: bool, reason: String },
}

impl Kept {
    /// Log it, now that it is so.
    pub(super) fn told(self, svix_id: &SvixId, delivery: &Delivery) -> Outcome {
        let (attempts, again, reason) = match self {
            Self::Not(outcome) => return outcome,
            Self::Parked { attempts, again, reason } => (attempts, again, reason),
        };
        let event = delivery.event_type.as_deref();
        if again {
            tracing::warn!(%svix_id, event, attempts, again, reason, "parked: kept in webhook_queue");
        } else {
            // Until somebody acts it is lost.
            tracing::error!(%svix_id, event, attempts, again, reason, "parked: kept in webhook_queue");
        }
        Outcome::Parked
    }
}

/// The rules without one of the fields that a delivery brings, and at last without all of free length.
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
        "the database cannot store these fields: they keep what is stored, the rest is applied"
    );
}

/// Commit what went well, undo what did not.
pub(super) async fn end<T>(transaction: Box<dyn Transaction>, result: Result<T>) -> Result<T> {
    match result {
        Ok(value) => transaction.commit().await.map(|()| value),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

/// Who has one of these addresses.
pub(super) fn owners_of(addresses: &[Address]) -> Vec<ClerkId> {
    sorted(addresses.iter().filter_map(|address| address.owner.as_ref()))
}

/// Ids of the deliveries that delete somebody.
fn deletions(batch: &[&Delivery]) -> Vec<SvixId> {
    let ids =
        batch.iter().filter(|delivery| is_deletion(delivery)).filter_map(|delivery| delivery.svix_id.clone());
    ids.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn is_deletion(delivery: &Delivery) -> bool {
    deletion(delivery).is_some()
}

/// Whether it may take out a row: of what it deletes, or of what stands in the place of what it shows.
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

/// A delivery as it waits in the queue, due and not tried. Of a deletion nothing is kept but the id.
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

/// The deletion of this object as it waits in the queue, because of a delivery that may be about another.
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

/// What becomes of a delivery, by what became of two things that it says.
fn of_both(one: Outcome, other: Outcome) -> Outcome {
    let all = [Outcome::Parked, Outcome::Applied, Outcome::Unchanged, Outcome::Stale];
    all.into_iter().find(|outcome| [one, other].contains(outcome)).unwrap_or(other)
}

/// What nearly always turns out to be right, so that hardly any record has to be written twice.
fn provisional(delivery: &Delivery) -> Outcome {
    match delivery.content {
        Content::Change(_) => Outcome::Applied,
        Content::Ignored | Content::Unusable(_) => Outcome::Ignored,
    }
}

/// A repeat inside the batch is a duplicate, unless the first one was parked: then it is not processed yet.
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

/// Which attempt this one is, and when the delivery first came.
fn next_attempt(waiting: Option<&Waiting>, delivery: &Delivery) -> (u32, DateTime<Utc>) {
    waiting.map_or((1, delivery.received_at), |waiting| (waiting.attempts + 1, waiting.received_at))
}
