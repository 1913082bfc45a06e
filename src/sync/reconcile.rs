//! Reconcile: compare the database with Clerk, and fix the differences.
//!
//! Users that are missing, stale or different are fixed through the rules, like any other news. A user that Clerk does
//! not show is deleted only if all of these hold, so that an incomplete answer, or one from another instance, cannot
//! empty the table:
//!
//! - The scan was complete: it saw at most 1 % or 10 users fewer than Clerk counts, whichever is more.
//! - The user was not written in the meantime.
//! - Clerk, asked about this user, has confirmed that it does not know the user.
//! - At most 50 users or one in 20 would be deleted at once, whichever is more, and fewer than half of all.
//! - The stored users can only belong to one instance.
//!
//! The operator can override the last two conditions.
//!
//! A user that is erased in the database but live at Clerk is only reported, because a deletion is final. A user whose
//! erasure is delayed is only reported too: only an operator cancels that. A time that moved at Clerk alone, as it does
//! with every sign-in, is not a difference.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use metrics::gauge;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{
    apply::owners_of,
    catch_up::{Asked, CatchUp, CatchUpError, Counts, Ledger, patiently},
    erasure,
    instance::Pin,
    plan::{email_in, keeps},
    scan::{Seen, Visit},
    walk::Walked,
};
use crate::{
    clerk::{
        api::{Persistence, can_ask},
        event::Found,
    },
    entity::{USER, user},
    model::{Change, ClerkId, Content, Entity, FieldSet, News, Selection, Source, Value},
    store::{Known, Patience, Run, RunKind, Store},
    telemetry,
};

/// This many users may always be deleted in one run …
const DELETIONS: u64 = 50;

/// … or one in this many.
const DELETIONS_ONE_IN: u64 = 20;

/// How many users of each group the report names.
const NAMED: usize = 20;

/// Ids looked up at once.
const STEP: u32 = 1000;

/// Concurrent requests to Clerk about single users.
const CONFIRMATIONS: usize = 16;

/// The kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// At Clerk, but not in the database.
    Missing,
    /// Older in the database.
    Stale,
    /// As new or newer in the database, but not identical.
    Different,
    /// In the database, but not at Clerk.
    NotAtClerk,
    /// Deleted in the database, but live at Clerk.
    ErasedHere,
    /// Live at Clerk, but to be erased in the database after the grace period.
    HeldHere,
}

impl DriftKind {
    pub const ALL: [Self; 6] =
        [Self::Missing, Self::Stale, Self::Different, Self::NotAtClerk, Self::ErasedHere, Self::HeldHere];

    /// The label of the metric, and the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Different => "different",
            Self::NotAtClerk => "not_at_clerk",
            Self::ErasedHere => "erased_here",
            Self::HeldHere => "held_here",
        }
    }
}

/// The operator's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only report.
    pub dry_run: bool,
    /// Delete without a limit on the number.
    pub allow_mass_delete: bool,
    /// Do not look for objects that Clerk does not have.
    pub only_mend: bool,
}

/// Why users that seem not to be at Clerk are not deleted unless the operator allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// The instance that users come from has changed.
    InstanceChanged,
    /// Events of several instances are accepted, but the key belongs to one of them.
    SeveralInstances,
    /// None of the stored users is at Clerk.
    OtherInstance,
    /// Half or more of the stored users are not at Clerk.
    MostOfThem,
    /// More users than one run may delete.
    TooMany,
}

impl Doubt {
    /// The doubt, if any, about deleting this many of the users that were stored before.
    fn about(strangers: u64, before: u64, changed: bool, pin: &Pin) -> Option<Self> {
        if strangers == 0 {
            None
        } else if changed {
            Some(Self::InstanceChanged)
        } else if *pin == Pin::Any {
            Some(Self::SeveralInstances)
        } else if strangers >= before {
            Some(Self::OtherInstance)
        } else if strangers.saturating_mul(2) >= before {
            Some(Self::MostOfThem)
        } else {
            (strangers > DELETIONS.max(before / DELETIONS_ONE_IN)).then_some(Self::TooMany)
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InstanceChanged => "and since --change-instance users come from another Clerk instance",
            Self::SeveralInstances => {
                "and with CLERK_INSTANCE_ID=any they may belong to another instance than CLERK_SECRET_KEY"
            }
            Self::OtherInstance => "all that are here: CLERK_SECRET_KEY probably belongs to another instance",
            Self::MostOfThem => {
                "half or more of all that are here: CLERK_SECRET_KEY may belong to another instance"
            }
            Self::TooMany => "more than a single run may delete",
        })
    }
}

/// A group of users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub users: u64,
    /// Ids of some of them.
    pub ids: Vec<String>,
}

/// The result of a complete comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Users at Clerk.
    pub seen: u64,
    #[serde(flatten)]
    drift: DriftByKind,
    /// Users whose `updated_at` or `last_active_at` moved at Clerk, and no other synced field. This is not drift: the
    /// times are written, but no messages are sent.
    pub touched: u64,
    /// Missing, stale and different users that were fixed.
    pub mended: u64,
    /// Users that differ, but whose register is newer, so that no rule accepts the API's older state.
    pub unmended: u64,
    /// Users not at Clerk that were deleted.
    pub deleted: u64,
    /// Users that seem not to be at Clerk, but were not deleted because of a doubt.
    pub withheld: u64,
    pub doubt: Option<Doubt>,
    /// Users at Clerk that cannot be used or stored.
    pub left_out: Counts,
    /// Whether the feature is switched off at Clerk, so that there was nothing to compare with.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub switched_off: bool,
}

/// Every kind has an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct DriftByKind(BTreeMap<&'static str, Drift>);

impl Default for DriftByKind {
    fn default() -> Self {
        Self(DriftKind::ALL.map(|kind| (kind.name(), Drift::default())).into())
    }
}

impl Comparison {
    /// The users with this kind of difference.
    pub fn of(&self, kind: DriftKind) -> &Drift {
        &self.drift.0[kind.name()]
    }

    /// Whether there is any difference.
    pub fn has_drift(&self) -> bool {
        self.drift.0.values().any(|drift| drift.users > 0)
    }

    fn add(&mut self, kind: DriftKind, id: &ClerkId) {
        let drift = self.drift.0.entry(kind.name()).or_default();
        drift.users += 1;
        if drift.ids.len() < NAMED {
            drift.ids.push(id.to_string());
        }
    }
}

/// What is stored about a reconcile run, in `sync_runs.progress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Users at Clerk.
    pub seen: u64,
    /// Users that differed, by kind of difference; kinds without any are left out.
    pub drift: BTreeMap<String, u64>,
    /// How many of those no longer differ.
    pub mended: u64,
}

impl Summary {
    /// The summary of this run, if it was completed.
    pub fn of(run: &Run) -> Option<Self> {
        run.finished_at?;
        serde_json::from_str(&run.progress).ok()
    }

    /// Number of users that differed.
    pub fn differed(&self) -> u64 {
        self.drift.values().sum()
    }
}

impl From<&Comparison> for Summary {
    fn from(report: &Comparison) -> Self {
        let drift = DriftKind::ALL.into_iter().map(|kind| (kind.name().to_owned(), report.of(kind).users));
        Self {
            seen: report.seen,
            drift: drift.filter(|(_, users)| *users > 0).collect(),
            mended: report.mended + report.deleted,
        }
    }
}

/// Distinguishes the runs for one kind of object from those for others.
pub fn parameters(entity: &Entity) -> &'static str {
    // Runs over users keep the form from before there were other kinds, so that older runs can continue.
    if *entity == USER { "" } else { entity.kind }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Objects at Clerk that were compared.
    pub seen: u64,
    /// Of a kind that Clerk does not list: the owners who were asked for their objects.
    pub asked: Asked,
}

/// Compare all objects of a kind, and fix the differences unless this is a dry run. `tell` receives the progress.
///
/// # Errors
/// If Clerk or the database fails for longer than the retries last. Fixes made until then stay; nothing is deleted
/// unless the scan was complete.
pub async fn reconcile(
    context: &CatchUp,
    entity: &'static Entity,
    options: Options,
    tell: watch::Sender<Compared>,
) -> Result<Comparison, CatchUpError> {
    let previous = context.check_instance(Persistence::BACKGROUND, options.dry_run).await?;
    let began = (context.clock)();
    let mut ledger = if options.dry_run {
        None
    } else {
        let (unheard, _) = watch::channel(Summary::default());
        let fresh = Summary::default();
        let parameters = (parameters(entity).to_owned(), *entity == USER);
        let open = Ledger::open(context, RunKind::Reconcile, parameters, true, fresh, unheard);
        Some(open.await?.0)
    };
    let visitor = Arc::new(Visitor {
        context: context.clone(),
        entity,
        options,
        writers: Semaphore::new(context.store.writers()),
        seen: Arc::default(),
        parts: PartsHere::default(),
        report: Mutex::default(),
        tell,
    });
    // Count before the scan adds objects.
    let before = patiently(|| context.store.count_standing(entity)).await?;
    let visit: Arc<dyn Visit> = Arc::<Visitor>::clone(&visitor);
    match visitor.walk(&visit, &visitor.seen).await? {
        Walked::Whole if entity.is_listed_whole() && !options.only_mend => {
            visitor.look_for_strangers(began, before, previous.is_some()).await?;
            visitor.look_for_extra_parts(previous.is_some()).await?;
        }
        Walked::Whole | Walked::Partly => {}
        Walked::SwitchedOff => visitor.with(|report| report.switched_off = true),
    }
    let report = visitor.with(|report| report.clone());
    if *entity == USER && previous.is_some() && report.doubt.is_none() && !options.dry_run {
        patiently(|| context.store.settle_instance()).await?;
    }
    for kind in DriftKind::ALL {
        let users = u32::try_from(report.of(kind).users).unwrap_or(u32::MAX);
        gauge!(telemetry::RECONCILE_DRIFT, "kind" => kind.name(), "entity" => entity.kind).set(users);
    }
    if *entity == USER {
        gauge!(telemetry::RECONCILE_LAST_SUCCESS)
            .set(f64::from(u32::try_from((context.clock)().timestamp()).unwrap_or(u32::MAX)));
    }
    if let Some(ledger) = &mut ledger {
        ledger.progress = Summary::from(&report);
        ledger.finish().await?;
    }
    Ok(report)
}

struct Visitor {
    context: CatchUp,
    entity: &'static Entity,
    options: Options,
    writers: Semaphore,
    /// Everything seen at Clerk.
    seen: Arc<Seen>,
    parts: PartsHere,
    report: Mutex<Comparison>,
    tell: watch::Sender<Compared>,
}

/// The stored parts of users, such as e-mail addresses. Clerk has no list of them: it shows them with their users.
#[derive(Default)]
struct PartsHere {
    /// Number of stored parts.
    count: AtomicU64,
    /// The parts that Clerk shows.
    shown: Seen,
    /// The stored parts that Clerk does not show with their users; each with its user.
    extra: Mutex<BTreeMap<ClerkId, ClerkId>>,
}

#[async_trait]
impl Visit for Visitor {
    async fn visit(&self, mut users: Vec<Found>) -> Result<Counts, CatchUpError> {
        let shown: BTreeSet<&ClerkId> = users.iter().flat_map(parts_of).map(|part| &part.clerk_id).collect();
        let here = self.parts_here(&users).await?;
        let ids: BTreeSet<&ClerkId> =
            users.iter().map(|found| &found.clerk_id).chain(shown.iter().copied()).chain(&here).collect();
        let ids: Vec<ClerkId> = ids.into_iter().cloned().collect();
        let known = patiently(|| self.context.store.known(&ids, &self.context.rules.selection)).await?;
        self.parts.shown.note(shown.iter().copied());
        self.parts.note(here.iter().filter(|part| !shown.contains(part)), &users, &known);
        if self.context.rules.unique_email && *self.entity == USER {
            self.give_up_addresses(&mut users, &known).await?;
        }
        let (mut to_mend, mut with_parts, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        let mut parts_to_mend = 0;
        self.with(|report| {
            report.seen += users.len() as u64;
            self.tell.send_modify(|progress| progress.seen = report.seen);
            for found in users {
                let fields = self.context.rules.fields(self.entity);
                let own = match &found.delivery.content {
                    Content::Change(change) => difference(change, &known, fields),
                    _ => None,
                };
                if let Some(Difference::Drift { kind, can_mend }) = own {
                    report.add(kind, &found.clerk_id);
                    if can_mend {
                        to_mend.push(found);
                    } else if !matches!(kind, DriftKind::ErasedHere | DriftKind::HeldHere) {
                        report.unmended += 1;
                    }
                    continue;
                }
                // The parts of a user that differs are written with the user.
                let before = parts_to_mend;
                for part in parts_of(&found) {
                    let fields = self.context.rules.fields(part.clerk_id.entity());
                    match difference(part, &known, fields) {
                        Some(Difference::Drift { kind, can_mend: true }) => {
                            report.add(kind, &part.clerk_id);
                            parts_to_mend += 1;
                        }
                        Some(Difference::Drift { kind: DriftKind::ErasedHere, .. }) => {
                            report.add(DriftKind::ErasedHere, &part.clerk_id);
                        }
                        _ => {}
                    }
                }
                if parts_to_mend > before {
                    with_parts.push(found);
                } else if own.is_some() {
                    report.touched += 1;
                    touched.push(found);
                } else if let Content::Unusable(reason) = &found.delivery.content {
                    report.left_out.leave_out(found.clerk_id.as_str(), reason.clone());
                }
            }
        });
        let mended = self.write(to_mend).await?;
        self.with(|report| report.mended += mended.applied + mended.unchanged);
        let users = with_parts.len() as u64;
        let mended = self.write(with_parts).await?;
        if mended.applied + mended.unchanged >= users && !self.options.dry_run {
            self.with(|report| report.mended += parts_to_mend);
        }
        self.write(touched).await?;
        Ok(Counts::default())
    }

    async fn expect_owners(&self, counted: Option<u64>) -> Result<(), CatchUpError> {
        self.tell.send_modify(|Compared { asked, .. }| {
            asked.of = counted.map(|counted| asked.owners + counted);
        });
        Ok(())
    }

    async fn asked(&self) {
        self.tell.send_modify(|progress| progress.asked.owners += 1);
    }
}

impl PartsHere {
    /// Remember the parts that belong to one of these users, if that user is shown with all parts of the kind.
    fn note<'a>(&self, parts: impl Iterator<Item = &'a ClerkId>, users: &[Found], known: &Known) {
        let whole: HashMap<&str, &Found> =
            users.iter().map(|found| (found.clerk_id.as_str(), found)).collect();
        let extra = parts.filter_map(|part| {
            let row = known.objects.get(part)?;
            let mut owners = part.entity().parents().filter_map(|(field, _)| row.profile[field].text());
            let owner = owners.find_map(|owner| whole.get(owner))?;
            owner.delivery.whole.contains(&part.entity()).then(|| (part.clone(), owner.clerk_id.clone()))
        });
        let extra: Vec<_> = extra.collect();
        self.extra.lock().unwrap_or_else(PoisonError::into_inner).extend(extra);
    }
}

/// Only notes which objects exist.
struct Look;

impl Visit for Look {}

impl Visitor {
    /// Walk all objects of the kind.
    async fn walk(&self, visit: &Arc<dyn Visit>, seen: &Arc<Seen>) -> Result<Walked, CatchUpError> {
        self.context.walk((Source::Reconcile, self.entity), seen, visit).await
    }

    fn with<T>(&self, what: impl FnOnce(&mut Comparison) -> T) -> T {
        what(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stored parts of the users that are shown with all of their parts.
    async fn parts_here(&self, users: &[Found]) -> Result<Vec<ClerkId>, CatchUpError> {
        let whole = users.iter().filter(|found| !found.delivery.whole.is_empty());
        let mut owners: Vec<ClerkId> = whole.map(|found| found.clerk_id.clone()).collect();
        if owners.is_empty() {
            return Ok(Vec::new());
        }
        owners.sort();
        let here = patiently(|| self.context.store.parts_of(&owners)).await?;
        self.parts.count.fetch_add(here.len() as u64, Relaxed);
        Ok(here)
    }

    /// A user that lost an address to another user's newer claim has no address in the database, although Clerk still shows one.
    /// This is not drift.
    async fn give_up_addresses(&self, users: &mut [Found], known: &Known) -> Result<(), CatchUpError> {
        let email = |found: &Found| match &found.delivery.content {
            Content::Change(change) => email_in(change).map(str::to_owned),
            _ => None,
        };
        let lost = |found: &Found| {
            let here = known.objects.get(&found.clerk_id)?;
            email(found).filter(|_| here.profile[user::EMAIL] == Value::Null)
        };
        let claimed: BTreeSet<String> = users.iter().filter_map(lost).collect();
        let claimed: Vec<String> = claimed.into_iter().collect();
        if claimed.is_empty() {
            return Ok(());
        }
        let store = &self.context.store;
        let addresses = patiently(|| async {
            let mut transaction = store.begin(Patience::Normal).await?;
            let found = transaction.addresses(&claimed).await?;
            transaction.commit().await?;
            Ok(found)
        })
        .await?;
        let owners = owners_of(&addresses);
        let nothing_else = Selection::default();
        let theirs = patiently(|| store.known(&owners, &nothing_else)).await?;
        for found in users {
            let Some(email) = lost(found) else { continue };
            let Content::Change(Change { version, news: News::Upsert { patch, .. }, .. }) =
                &mut found.delivery.content
            else {
                continue;
            };
            let owner = addresses.iter().filter(|address| address.given == email);
            let mut owner = owner.filter_map(|address| address.owner.as_ref());
            let here = known.registers.get(&found.clerk_id).map_or(i64::MIN, |here| here.version.version);
            let claim = (&found.clerk_id, version.version.max(here));
            if owner.any(|owner| keeps((owner, theirs.registers.get(owner)), claim)) {
                patch.set(user::EMAIL, Value::Null);
            }
        }
        Ok(())
    }

    /// Import the objects unless this is a dry run, and report those that cannot be imported.
    async fn write(&self, found: Vec<Found>) -> Result<Counts, CatchUpError> {
        if found.is_empty() || self.options.dry_run {
            return Ok(Counts::default());
        }
        let counts = self.context.take_in(found, &self.writers).await?;
        let Counts { left_out, reasons, .. } = counts.clone();
        self.with(|report| report.left_out.add(Counts { left_out, reasons, ..Counts::default() }));
        Ok(counts)
    }

    /// Whether there is a doubt about deleting these strangers, given the number of objects that were stored before, and
    /// the operator has not allowed the deletion. If so, they are only reported.
    fn withholds<'a>(
        &self,
        strangers: impl ExactSizeIterator<Item = &'a ClerkId>,
        before: u64,
        changed: bool,
    ) -> bool {
        let count = strangers.len() as u64;
        let doubt = Doubt::about(count, before, changed, &self.context.instance.pin);
        if doubt.is_none() || self.options.allow_mass_delete {
            return false;
        }
        self.with(|report| {
            report.doubt = report.doubt.or(doubt);
            strangers.for_each(|id| report.add(DriftKind::NotAtClerk, id));
            report.withheld += count;
        });
        true
    }

    /// Find and delete stored users that were not seen at Clerk. `before` is the number of users stored before the run;
    /// `changed` says whether some of them may belong to another instance.
    async fn look_for_strangers(
        self: &Arc<Self>,
        began: DateTime<Utc>,
        before: u64,
        changed: bool,
    ) -> Result<(), CatchUpError> {
        let strangers = strangers(&*self.context.store, self.entity, began, &self.seen).await?;
        if self.withholds(strangers.iter(), before, changed) {
            return Ok(());
        }
        let mut strangers = self.unseen_again(strangers).await?.into_iter();
        let mut asked = JoinSet::new();
        let mut gone = Vec::new();
        loop {
            while asked.len() < CONFIRMATIONS
                && let Some(id) = strangers.next()
            {
                let visitor = Arc::clone(self);
                asked.spawn(async move { visitor.confirm(id).await });
            }
            let Some(confirmed) = asked.join_next().await else { break };
            gone.extend(confirmed.map_err(|_| CatchUpError::Abandoned)??);
        }
        // Delete only after all answers: an invalid answer ends the run, because none of that server's answers is trusted.
        for id in gone {
            let deleted = self.write(vec![self.deletion(id)]).await?.applied;
            self.with(|report| report.deleted += deleted);
        }
        Ok(())
    }

    /// Find and delete stored parts that Clerk showed with no user. Clerk is asked again about the users that these parts
    /// belong to. The parts that those users are not shown with are deleted, as with any event about these users.
    async fn look_for_extra_parts(self: &Arc<Self>, changed: bool) -> Result<(), CatchUpError> {
        let mut extra = std::mem::take(&mut *self.parts.extra.lock().unwrap_or_else(PoisonError::into_inner));
        extra.retain(|part, _| !self.parts.shown.contains(part));
        if self.withholds(extra.keys(), self.parts.count.load(Relaxed), changed) {
            return Ok(());
        }
        let mut parts: BTreeMap<ClerkId, Vec<ClerkId>> = BTreeMap::new();
        for (part, owner) in extra {
            parts.entry(owner).or_default().push(part);
        }
        let (mut owners, mut asked) = (parts.into_iter(), JoinSet::new());
        loop {
            while asked.len() < CONFIRMATIONS
                && let Some((owner, parts)) = owners.next()
            {
                let visitor = Arc::clone(self);
                asked.spawn(async move { visitor.confirm_parts(&owner, parts).await });
            }
            let Some(confirmed) = asked.join_next().await else { return Ok(()) };
            confirmed.map_err(|_| CatchUpError::Abandoned)??;
        }
    }

    /// Ask Clerk about the user that these parts belong to, and delete those that Clerk does not show.
    async fn confirm_parts(&self, owner: &ClerkId, mut parts: Vec<ClerkId>) -> Result<(), CatchUpError> {
        let reading = self.context.reading(Source::Reconcile, self.entity);
        let Some(found) = self.context.api.one(owner, &reading, Persistence::BACKGROUND).await? else {
            return Ok(());
        };
        parts.retain(|part| {
            found.delivery.whole.contains(&part.entity())
                && !parts_of(&found).any(|shown| shown.clerk_id == *part)
        });
        self.with(|report| parts.iter().for_each(|part| report.add(DriftKind::NotAtClerk, part)));
        let done = self.write(vec![found]).await?;
        if done.applied + done.unchanged > 0 {
            self.with(|report| report.deleted += parts.len() as u64);
        }
        Ok(())
    }

    /// If Clerk cannot be asked about a single object, walk all objects again. Those that are seen this time were
    /// created or restored in the meantime.
    async fn unseen_again(&self, mut strangers: Vec<ClerkId>) -> Result<Vec<ClerkId>, CatchUpError> {
        if !self.entity.has_one && !strangers.is_empty() {
            let seen: Arc<Seen> = Arc::default();
            let look: Arc<dyn Visit> = Arc::new(Look);
            if self.walk(&look, &seen).await? != Walked::Whole {
                return Ok(Vec::new());
            }
            strangers.retain(|id| !seen.contains(id));
        }
        Ok(strangers)
    }

    /// Ask Clerk about one object, if that is possible; returns its id if Clerk does not know it.
    async fn confirm(&self, id: ClerkId) -> Result<Option<ClerkId>, CatchUpError> {
        if self.entity.has_one {
            if !can_ask(&id) {
                let reason = "not seen at Clerk, which cannot be asked about such an id";
                self.with(|report| report.left_out.leave_out(id.as_str(), reason.to_owned()));
                return Ok(None);
            }
            let reading = self.context.reading(Source::Reconcile, self.entity);
            if let Some(found) = self.context.api.one(&id, &reading, Persistence::BACKGROUND).await? {
                // The scan missed it, perhaps because it was restored in the meantime.
                self.visit(vec![found]).await?;
                return Ok(None);
            }
        }
        self.with(|report| report.add(DriftKind::NotAtClerk, &id));
        Ok(Some(id))
    }

    fn deletion(&self, clerk_id: ClerkId) -> Found {
        let now = (self.context.clock)();
        let delivery = erasure::delivery(clerk_id.clone(), News::Delete, Source::Reconcile, now, now);
        Found { clerk_id, created_at: now.timestamp_millis(), delivery, unread: Vec::new() }
    }
}

/// Stored objects that were not written since `untouched_since` and were not seen at Clerk.
pub(super) async fn strangers(
    store: &dyn Store,
    entity: &'static Entity,
    untouched_since: DateTime<Utc>,
    seen: &Seen,
) -> Result<Vec<ClerkId>, CatchUpError> {
    let mut strangers = Vec::new();
    let mut after: Option<ClerkId> = None;
    loop {
        let page = patiently(|| store.standing(entity, untouched_since, after.as_ref(), STEP)).await?;
        let Some(last) = page.last() else { return Ok(strangers) };
        after = Some(last.clone());
        strangers.extend(page.into_iter().filter(|id| !seen.contains(id)));
    }
}

/// How an object at Clerk can differ from the stored one.
enum Difference {
    Drift {
        kind: DriftKind,
        /// Whether the rules accept the state at Clerk.
        can_mend: bool,
    },
    /// Only in times that change without an event.
    Touched,
}

/// The parts of an object, if Clerk shows all parts of their kind with it.
fn parts_of(found: &Found) -> impl Iterator<Item = &Change> {
    found.delivery.nested.iter().filter(|part| found.delivery.whole.contains(&part.clerk_id.entity()))
}

/// How an object at Clerk differs from the stored one.
fn difference(change: &Change, known: &Known, fields: FieldSet) -> Option<Difference> {
    let Change { clerk_id, news: News::Upsert { patch, .. }, version, .. } = change else { return None };
    let drift = |kind, can_mend| Some(Difference::Drift { kind, can_mend });
    let register = known.registers.get(clerk_id);
    if register.is_some_and(|register| register.deleted) {
        return drift(DriftKind::ErasedHere, false);
    }
    if register.is_some_and(|register| register.held_until.is_some()) {
        return drift(DriftKind::HeldHere, false);
    }
    let Some(user) = known.objects.get(clerk_id) else { return drift(DriftKind::Missing, true) };
    let is_newer = register.is_none_or(|register| *version > register.version);
    let here = register.map_or(i64::MIN, |register| register.version.version);
    let changed = user.profile.clone().apply(patch, fields);
    let differs = changed.iter().any(|field| !field.moves_by_itself);
    match version.version.cmp(&here) {
        Ordering::Greater if differs => drift(DriftKind::Stale, is_newer),
        Ordering::Equal if differs => drift(DriftKind::Different, is_newer),
        Ordering::Greater => Some(Difference::Touched),
        Ordering::Equal => (!changed.is_empty()).then_some(Difference::Touched),
        Ordering::Less => {
            // If the list was not read later, a webhook was faster than the list.
            let read_later = register.is_some_and(|register| version.event_at > register.version.event_at);
            if read_later && differs { drift(DriftKind::Different, is_newer) } else { None }
        }
    }
}
