//! All rules about order and content, in pure code.
//!
//! A batch is folded event by event, exactly as if each event had arrived alone. So the outcome of an event never
//! depends on the other events in its batch.
//!
//! The deletion of an object also deletes its children, in the same transaction; later events about them are stale. If
//! two live objects exclude each other, such as two memberships of one person in one organization, the one that was
//! created last stays.
//!
//! With `UNIQUE_EMAIL` an address belongs to the user whose row has the newer version from Clerk; the other user's
//! `email` becomes NULL. Versions come from Clerk, so all replicas agree, whatever the order of the events.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Rules, news};
use crate::{
    entity::{USER, user},
    model::{
        AuditAction, AuditEntry, Change, ClerkId, Delivery, Entity, EraseIf, Field, News, Object, Outcome,
        Patch, Profile, Register, Source, Value, Version,
    },
    store::{Address, Advance, Outgoing},
};

/// What is stored about the objects of a batch: the changed objects, the children of deleted ones, their live rivals,
/// and the registers of their parents.
#[derive(Debug, Default)]
pub struct Stored {
    pub registers: HashMap<ClerkId, Register>,
    pub objects: HashMap<ClerkId, Object>,
    /// With unique addresses: the owners of the addresses in the changes. Registers and rows of the owners are included
    /// above.
    pub addresses: Option<Vec<Address>>,
}

/// The writes and the outcomes.
#[derive(Debug, Default)]
pub struct Plan {
    /// One per change, in the order of the changes.
    pub outcomes: Vec<Outcome>,
    pub registers: Vec<Advance>,
    /// Users whose address goes to another user in this plan. It must be cleared before the other user's row is written.
    pub released: Vec<ClerkId>,
    /// Rows that are displaced by rows of this plan. They must be marked as deleted first.
    pub displaced: Vec<(ClerkId, DateTime<Utc>)>,
    pub inserts: Vec<Object>,
    pub updates: Vec<Object>,
    /// Audit lines for inserts and updates. The lines for erasures depend on what the database allows.
    pub audit: Vec<AuditEntry>,
    /// Messages to sinks about inserts and updates; for each user in the order of the changes.
    pub messages: Vec<Outgoing>,
    /// Rows to mark as deleted at this time, because their erasure is delayed. May include rows from above.
    pub held: Vec<(ClerkId, DateTime<Utc>)>,
    /// Rows to remove that mark from.
    pub kept: Vec<(ClerkId, DateTime<Utc>)>,
    /// Written last; may include rows from above.
    pub erasures: Vec<Erasure>,
    /// Users that were to be erased again although nothing is left to erase, with the index of the change that requests
    /// it.
    pub gone: Vec<(ClerkId, usize)>,
}

impl Plan {
    /// Whether the plan writes only registers, rows and audit lines of this kind.
    pub fn is_only_rows_of(&self, entity: &'static Entity) -> bool {
        let Self { released, displaced, messages, held, kept, erasures, gone, .. } = self;
        let mut rows = self.inserts.iter().chain(&self.updates);
        released.is_empty()
            && displaced.is_empty()
            && messages.is_empty()
            && held.is_empty()
            && kept.is_empty()
            && erasures.is_empty()
            && gone.is_empty()
            && rows.all(|row| row.clerk_id.entity() == entity)
    }
}

/// An object to erase.
#[derive(Clone, Debug)]
pub struct Erasure {
    pub clerk_id: ClerkId,
    /// The index of the change that requests it.
    pub change: usize,
    /// Whether anything about the object was ever stored.
    pub known: bool,
    /// Whether an existing row is erased now, and no earlier erasure of it failed.
    pub leaves: bool,
    /// When the erasure was first requested.
    pub requested_at: DateTime<Utc>,
}

/// Whether a change can matter, so that the row of its object must be loaded.
pub fn is_news(delivery: &Delivery, change: &Change, register: Option<&Register>) -> bool {
    match (&change.news, register) {
        (News::Upsert { .. }, Some(register)) => {
            !register.deleted && (change.version > register.version || shows_state(delivery.source))
        }
        _ => true,
    }
}

/// Whether the source shows the current state of an object at Clerk, and not a past change.
fn shows_state(source: Source) -> bool {
    matches!(source, Source::Backfill | Source::Reconcile | Source::Api)
}

/// Whether the change is the Backend API's view of exactly the stored version. The API may have been read before the
/// webhook about that version was sent, so the change may look older. Then it is neither news nor out of date.
fn shows(change: &Change, register: &Register) -> bool {
    change.version.tie.is_empty() && change.version.version == register.version.version
}

/// Whether the owner of an address, with this register, keeps it when this user with this version from Clerk claims it.
pub(super) fn keeps(owner: (&ClerkId, Option<&Register>), claimer: (&ClerkId, i64)) -> bool {
    let version = owner.1.map_or(i64::MIN, |register| register.version.version);
    // Between equal versions the ids decide, so that all replicas agree.
    owner.1.is_none_or(|register| !register.deleted) && (version, owner.0) > (claimer.1, claimer.0)
}

/// The objects of a batch while the events are applied to them.
type Folds = BTreeMap<ClerkId, Fold>;

/// A change, with its index among the changes.
type Cause<'a> = (usize, &'a Delivery, &'a Change);

/// Decide about changes that were never seen before, in the order in which they arrived.
pub fn plan(changes: &[(&Delivery, &Change)], mut stored: Stored, rules: &Rules, now: DateTime<Utc>) -> Plan {
    let mut plan = Plan { outcomes: vec![Outcome::Stale; changes.len()], ..Plan::default() };
    let mut addresses = Addresses::new(&mut stored);
    let mut folds = folds_of(changes, &addresses, &mut stored);
    // The remaining registers are those of parents without a change.
    let parents = stored.registers;
    let mut places = Places::new(&folds);
    let goes_with_others = |id: &&ClerkId| id.entity().has_parents() || id.entity().address().is_some();
    let kin: Vec<ClerkId> = folds.keys().filter(goes_with_others).cloned().collect();
    let parts = Parts::new(changes, &folds);
    let known = if kin.is_empty() { HashMap::new() } else { known_addresses(&folds) };
    // Whether a newer event has shown all parts of the object. The changes of nested objects directly follow its change.
    let mut is_outdated = false;
    let mut shown = Vec::new();
    for (index, (delivery, change)) in changes.iter().copied().enumerate() {
        let id = &change.clerk_id;
        let cause = (index, delivery, change);
        if is_outdated && delivery.shows_part(change) {
            continue;
        }
        if has_no_parent(change, &folds, &parents) {
            // A row that was stored before it named its parent.
            if folds.get(id).is_some_and(|fold| fold.user.is_some()) {
                plan.erasures.extend(bury(&mut folds, id, cause, now));
            }
            continue;
        }
        if let Some(loser) = places.loser(delivery, change, &folds) {
            plan.erasures.extend(bury(&mut folds, &loser, cause, now));
            if loser == *id {
                continue;
            }
        }
        let lost = addresses.claim(&folds, delivery, change, rules);
        let Some(fold) = folds.get_mut(id) else { continue };
        plan.outcomes[index] = match &change.news {
            News::Adopt { .. } if !fold.is_blank() => Outcome::Stale,
            News::Upsert { patch, created_at } | News::Adopt { patch, created_at } => {
                let mut patch = Cow::Borrowed(patch);
                if lost.as_ref().is_some_and(|owner| owner == id) {
                    patch.to_mut().set(user::EMAIL, Value::Null);
                }
                match fold.upsert((delivery, change), &patch, *created_at, rules, now) {
                    Step::Stale => Outcome::Stale,
                    Step::Unchanged => Outcome::Unchanged,
                    Step::Wrote(action, changed_fields) => {
                        fold.tell(action, &changed_fields, (delivery, change), rules, now);
                        places.take(fold.user.as_ref());
                        plan.audit.push(entry(delivery, change, action, changed_fields, now));
                        Outcome::Applied
                    }
                }
            }
            News::Keep if fold.keep() => {
                plan.audit.push(entry(delivery, change, AuditAction::DeletionCancelled, Vec::new(), now));
                Outcome::Applied
            }
            News::Keep => Outcome::Stale,
            News::Delete if fold.hold(rules, now) => {
                let line = entry(delivery, change, AuditAction::DeletionHeld, Vec::new(), now);
                plan.audit.push(AuditEntry { actor: None, ..line });
                Outcome::Applied
            }
            News::Delete | News::Erase(_) => {
                let erased = fold.take_out(id, &change.news, cause, now);
                let goes = if fold.is_deleted() { children(id, &kin, &folds, &known) } else { Vec::new() };
                let outcome = if erased.is_some() { Outcome::Applied } else { Outcome::Stale };
                plan.erasures.extend(erased);
                plan.erasures.extend(goes.iter().filter_map(|child| bury(&mut folds, child, cause, now)));
                outcome
            }
        };
        if delivery.clerk_id.as_ref() == Some(id) {
            is_outdated = plan.outcomes[index] == Outcome::Stale && !is_shown_as_stored(change, &folds);
            shown.extend((!is_outdated && !delivery.whole.is_empty()).then_some(index));
        }
        if matches!(plan.outcomes[index], Outcome::Applied | Outcome::Unchanged) && !delivery.whole.is_empty()
        {
            let gone = parts.gone((delivery, change), &folds);
            let before = plan.erasures.len();
            plan.erasures.extend(gone.iter().filter_map(|part| bury(&mut folds, part, cause, now)));
            if plan.erasures.len() > before {
                plan.outcomes[index] = Outcome::Applied;
            }
        }
        addresses.move_to(id, folds.get(id).and_then(Fold::live_email));
        // An upserted user has already lost the address.
        if let Some(loser) = lost.filter(|loser| !(change.patch().is_some() && loser == id)) {
            take_address(&mut folds, loser, cause, &mut plan, rules, now);
        }
    }
    digest_parts(&shown, changes, &plan.outcomes, &mut folds);
    plan.erasures.sort_by(|one, other| one.clerk_id.cmp(&other.clerk_id));
    if rules.fields(&USER).contains(user::EMAIL) {
        plan.released = addresses.released(&mut folds);
    }
    places.clear(&mut folds, &mut plan.displaced, now);
    for (id, fold) in folds {
        fold.finish(&id, &mut plan);
    }
    plan
}

/// Take the address from a user who is not the one that this change is about.
fn take_address(
    folds: &mut Folds,
    loser: ClerkId,
    (_, delivery, change): Cause<'_>,
    plan: &mut Plan,
    rules: &Rules,
    now: DateTime<Utc>,
) {
    let Some(fold) = folds.get_mut(&loser) else { return };
    fold.give_up_address();
    let (action, fields) = (AuditAction::Updated, vec![user::EMAIL]);
    fold.tell(action, &fields, (delivery, change), rules, now);
    let line = entry(delivery, change, action, fields, now);
    plan.audit.push(AuditEntry { clerk_id: loser, actor: None, ..line });
}

/// One fold for each object that is changed, stored, or the owner of an address.
fn folds_of(changes: &[(&Delivery, &Change)], addresses: &Addresses, stored: &mut Stored) -> Folds {
    let mut ids: BTreeSet<ClerkId> = changes.iter().map(|(_, change)| change.clerk_id.clone()).collect();
    ids.extend(addresses.owners.values().chain(stored.objects.keys()).cloned());
    let mut folds = Folds::new();
    for id in ids {
        let fold = Fold::new(stored.registers.remove(&id), stored.objects.remove(&id));
        folds.insert(id, fold);
    }
    folds
}

/// The users' addresses before the batch, because an erased row loses its address.
fn known_addresses(folds: &Folds) -> HashMap<ClerkId, String> {
    let people = folds.iter().filter(|(id, _)| id.entity() == &USER);
    let known_by =
        |(id, fold): (&ClerkId, &Fold)| Some((id.clone(), address(fold.user.as_ref()?, user::EMAIL)?));
    people.filter_map(known_by).collect()
}

/// Erase an object that no change deletes, because after this change it can no longer exist.
fn bury(folds: &mut Folds, id: &ClerkId, cause: Cause<'_>, now: DateTime<Utc>) -> Option<Erasure> {
    let fold = folds.get_mut(id).filter(|fold| !fold.is_deleted())?;
    fold.take_out(id, &News::Erase(EraseIf::Always), cause, now)
}

/// Whether the change is the Backend API's view of the stored version of its object.
fn is_shown_as_stored(change: &Change, folds: &Folds) -> bool {
    let known = folds.get(&change.clerk_id).and_then(|fold| fold.register.as_ref());
    known.is_some_and(|known| shows(change, known))
}

/// Write to the registers which parts are stored after the batch, for the changes that have shown all parts of their objects.
fn digest_parts(shown: &[usize], changes: &[(&Delivery, &Change)], outcomes: &[Outcome], folds: &mut Folds) {
    for index in shown.iter().copied() {
        let (delivery, change) = changes[index];
        let register = folds.get_mut(&change.clerk_id).and_then(|fold| fold.register.as_mut());
        let Some(register) = register.filter(|register| !register.deleted) else { continue };
        let mut with_parts =
            (index..changes.len()).take_while(|other| std::ptr::eq(changes[*other].0, delivery));
        let is_stored = |index: usize| matches!(outcomes[index], Outcome::Applied | Outcome::Unchanged);
        let is_all = with_parts.all(is_stored);
        register.parts_digest = delivery.parts_digest.clone().filter(|_| is_all);
    }
}

/// The objects whose parts are stored as all these webhooks show them, according to the registers. Nothing about these parts
/// has to be read or written.
pub(super) fn with_known_parts<'a>(
    deliveries: impl Iterator<Item = &'a Delivery>,
    registers: &HashMap<ClerkId, Register>,
) -> HashSet<&'a ClerkId> {
    let mut owners: HashMap<&ClerkId, bool> = HashMap::new();
    for delivery in deliveries.filter(|delivery| !delivery.whole.is_empty()) {
        let Some(id) = &delivery.clerk_id else { continue };
        let stored = registers.get(id).and_then(|register| register.parts_digest.as_ref());
        // What the Backend API shows is also compared with the rows: the application may have changed them.
        let is_webhook = matches!(delivery.source, Source::Webhook);
        *owners.entry(id).or_insert(true) &=
            is_webhook && stored.is_some() && delivery.parts_digest.as_ref() == stored;
    }
    owners.into_iter().filter(|(_, are_known)| *are_known).map(|(id, _)| id).collect()
}

/// The parents' ids that a change names.
pub(super) fn parents(change: &Change) -> impl Iterator<Item = ClerkId> + '_ {
    let named = change.clerk_id.entity().parents();
    named.filter_map(|(field, parent)| ClerkId::new(parent, change.patch()?.get(field)?.text()?))
}

/// Whether a change shows an object whose parent is deleted.
fn has_no_parent(change: &Change, folds: &Folds, registers: &HashMap<ClerkId, Register>) -> bool {
    parents(change).any(|parent| match folds.get(&parent) {
        Some(fold) => fold.is_deleted(),
        None => registers.get(&parent).is_some_and(|register| register.deleted),
    })
}

/// Those of `kin` that are deleted with an object: they refer to its id, or to the address that this user was known by.
fn children(
    parent: &ClerkId,
    kin: &[ClerkId],
    folds: &Folds,
    known: &HashMap<ClerkId, String>,
) -> Vec<ClerkId> {
    let belongs = |(field, entity): (Field, &Entity), row: &Object| {
        entity == parent.entity() && row.profile[field].text() == Some(parent.as_str())
    };
    let is_meant = |field: Field, row: &Object| {
        known.get(parent).is_some_and(|known| address(row, field).as_ref() == Some(known))
    };
    let is_child = |id: &&ClerkId| {
        let (row, entity) = (folds.get(*id).and_then(|fold| fold.user.as_ref()), id.entity());
        row.is_some_and(|row| {
            entity.parents().any(|column| belongs(column, row))
                || entity.address().is_some_and(|field| is_meant(field, row))
        })
    };
    kin.iter().filter(is_child).cloned().collect()
}

/// The parts of each object that a change shows with all of its parts: those stored before the batch, and those added
/// by it.
struct Parts(HashMap<ClerkId, BTreeSet<ClerkId>>);

impl Parts {
    fn new(changes: &[(&Delivery, &Change)], folds: &Folds) -> Self {
        let mut parts: HashMap<ClerkId, BTreeSet<ClerkId>> = HashMap::new();
        let shown = changes.iter().filter(|(delivery, _)| !delivery.whole.is_empty());
        for (delivery, _) in shown {
            if let Some(id) = &delivery.clerk_id {
                parts.entry(id.clone()).or_default();
            }
        }
        if parts.is_empty() {
            return Self(parts);
        }
        let here = folds.values().filter_map(|fold| fold.user.as_ref());
        let here = here.flat_map(|row| {
            let named = row.clerk_id.entity().parents();
            let named = named.filter_map(|(field, parent)| ClerkId::new(parent, row.profile[field].text()?));
            named.map(|parent| (parent, &row.clerk_id))
        });
        let coming =
            changes.iter().flat_map(|(_, change)| parents(change).map(|parent| (parent, &change.clerk_id)));
        for (parent, part) in here.chain(coming) {
            if let Some(parts) = parts.get_mut(&parent) {
                parts.insert(part.clone());
            }
        }
        Self(parts)
    }

    /// Former parts of an object that are not among the parts it is now shown with.
    fn gone(&self, (delivery, change): (&Delivery, &Change), folds: &Folds) -> Vec<ClerkId> {
        let is_shown = |part: &ClerkId| delivery.nested.iter().any(|shown| shown.clerk_id == *part);
        let parts = self.0.get(&change.clerk_id).into_iter().flatten();
        let gone: Vec<ClerkId> = parts
            .filter(|part| delivery.whole.contains(&part.entity()) && !is_shown(part))
            .cloned()
            .collect();
        children(&change.clerk_id, &gone, folds, &HashMap::new())
    }
}

/// An e-mail address in the form used for comparing.
fn address(row: &Object, field: Field) -> Option<String> {
    Some(row.profile[field].text()?.to_lowercase())
}

/// The values of a row in the columns that must be unique among live rows.
pub(super) fn key<'a>(
    entity: &'static Entity,
    value: impl Fn(Field) -> Option<&'a Value>,
) -> Option<Vec<String>> {
    let names = entity.unique.iter().map(|name| Some(value(entity.named(name)?)?.text()?.to_owned()));
    names.collect::<Option<Vec<_>>>().filter(|key| !key.is_empty())
}

/// The object at each unique key, while the events are applied.
struct Places(HashMap<(&'static str, Vec<String>), ClerkId>);

impl Places {
    fn new(folds: &Folds) -> Self {
        let mut places = Self(HashMap::new());
        for fold in folds.values().filter(|fold| !fold.is_deleted()) {
            places.take(fold.user.as_ref().filter(|user| user.deleted_at.is_none()));
        }
        places
    }

    /// Record that an object is now at its place.
    fn take(&mut self, user: Option<&Object>) {
        if let Some(user) = user
            && let Some(place) = Self::of(user)
        {
            self.0.insert(place, user.clerk_id.clone());
        }
    }

    fn of(user: &Object) -> Option<(&'static str, Vec<String>)> {
        let entity = user.clerk_id.entity();
        Some((entity.kind, key(entity, |field| Some(&user.profile[field]))?))
    }

    /// If the object of a change and another object exclude each other, the id of the one that was created first: that
    /// object no longer exists at Clerk. An outdated change displaces nothing.
    fn loser(&self, delivery: &Delivery, change: &Change, folds: &Folds) -> Option<ClerkId> {
        let fold = folds.get(&change.clerk_id)?;
        if !fold.would_upsert(delivery, change) {
            return None;
        }
        let rival = self.rival(change, folds)?;
        let born = |id: &ClerkId| folds.get(id)?.user.as_ref()?.created_at;
        // An object without a creation time counts from its version.
        let heard = |id: &ClerkId| time(folds.get(id)?.register.as_ref()?.version.version);
        let said = match &change.news {
            News::Upsert { created_at, .. } | News::Adopt { created_at, .. } => *created_at,
            _ => None,
        };
        let ours = said.or_else(|| born(&change.clerk_id)).or_else(|| time(change.version.version));
        let theirs = born(&rival).or_else(|| heard(&rival));
        Some(if (ours, &change.clerk_id) < (theirs, &rival) { change.clerk_id.clone() } else { rival })
    }

    /// Another object at the place that a change claims.
    fn rival(&self, change: &Change, folds: &Folds) -> Option<ClerkId> {
        let entity = change.clerk_id.entity();
        let fold = folds.get(&change.clerk_id)?;
        let patch = change.patch()?;
        let known = |field| Some(&fold.user.as_ref()?.profile[field]);
        let place = (entity.kind, key(entity, |field| patch.get(field).or_else(|| known(field)))?);
        let rival = self.0.get(&place).filter(|rival| **rival != change.clerk_id)?;
        // The rival may have moved.
        let fold = folds.get(rival).filter(|fold| !fold.is_deleted())?;
        (Self::of(fold.user.as_ref()?)? == place).then(|| rival.clone())
    }

    /// Ensure that erased rows do not block the rows that are written before the erasure.
    fn clear(&self, folds: &mut Folds, displaced: &mut Vec<(ClerkId, DateTime<Utc>)>, now: DateTime<Utc>) {
        if self.0.is_empty() {
            return;
        }
        for (id, fold) in folds.iter_mut().filter(|(_, fold)| fold.end == Some(End::Erased)) {
            let Some(user) = &mut fold.user else { continue };
            let Some(owner) = Self::of(user).and_then(|place| self.0.get(&place)) else { continue };
            if owner != id {
                displaced.push((id.clone(), now));
                for name in id.entity().unique.iter().filter(|_| fold.row_is_new) {
                    if let Some(field) = id.entity().named(name) {
                        user.profile.set(field, Value::Null);
                    }
                }
            }
        }
    }
}

/// The owners of addresses, while the events are applied.
struct Addresses {
    /// Whether an address has one owner at a time.
    unique: bool,
    /// Each address as the database compares it, by its original spelling.
    folded: HashMap<String, String>,
    /// The current owners.
    owners: HashMap<String, ClerkId>,
    /// The owners in the database.
    before: Vec<(String, ClerkId)>,
}

impl Addresses {
    fn new(stored: &mut Stored) -> Self {
        let unique = stored.addresses.is_some();
        let mut this = Self { unique, folded: HashMap::new(), owners: HashMap::new(), before: Vec::new() };
        for Address { given, folded, owner } in stored.addresses.take().unwrap_or_default() {
            if let Some(owner) = owner {
                this.before.push((folded.clone(), owner.clone()));
                this.owners.insert(folded.clone(), owner);
            }
            this.folded.insert(given, folded);
        }
        if !unique {
            // The application may enforce unique addresses.
            let email = |user: &Object| Some((folded(email_of(user)?), user.clerk_id.clone()));
            this.before = stored.objects.values().filter_map(email).collect();
        }
        this
    }

    fn fold(&self, email: &str) -> String {
        self.folded.get(email).cloned().unwrap_or_else(|| folded(email))
    }

    /// The user who has to give up an address if a change is applied: the user of the change, or the current owner.
    fn claim(&self, folds: &Folds, delivery: &Delivery, change: &Change, rules: &Rules) -> Option<ClerkId> {
        if !self.unique {
            return None;
        }
        let id = &change.clerk_id;
        let fold = folds.get(id)?;
        let (email, version, is_made) = match &change.news {
            News::Adopt { .. } if !fold.is_blank() => return None,
            News::Upsert { patch, .. } | News::Adopt { patch, .. }
                if rules.fields(&USER).contains(user::EMAIL) && fold.is_live() =>
            {
                let email = patch.get(user::EMAIL).map_or_else(|| fold.email(), Value::text)?;
                let version = change.version.version;
                if fold.would_upsert(delivery, change) {
                    (email, version.max(fold.version()), true)
                } else {
                    // The change is only compared with the stored state.
                    fold.register.as_ref().filter(|known| shows(change, known))?;
                    (email, version, false)
                }
            }
            News::Keep if fold.held_until().is_some() => (fold.email()?, fold.version(), true),
            _ => return None,
        };
        let owner = self.owners.get(&self.fold(email)).filter(|owner| *owner != id)?;
        let register = folds.get(owner).and_then(|fold| fold.register.as_ref());
        if keeps((owner, register), (id, version)) {
            Some(id.clone())
        } else {
            is_made.then(|| owner.clone())
        }
    }

    /// Record that this user now has this address and no other.
    fn move_to(&mut self, id: &ClerkId, email: Option<&str>) {
        if !self.unique {
            return;
        }
        self.owners.retain(|_, owner| owner != id);
        if let Some(email) = email {
            self.owners.insert(self.fold(email), id.clone());
        }
    }

    /// Users whose address in the database belongs to another user after the batch. A user who is inserted and erased
    /// in this batch does not get the address.
    fn released(&self, folds: &mut Folds) -> Vec<ClerkId> {
        let wants = |fold: &Fold| {
            let email = if self.unique { fold.live_email() } else { fold.email() };
            email.filter(|_| fold.row_moved && fold.end.is_none()).map(|email| self.fold(email))
        };
        let wanted: HashMap<String, ClerkId> =
            folds.iter().filter_map(|(id, fold)| Some((wants(fold)?, id.clone()))).collect();
        let of_another = |email: &str, id: &ClerkId| wanted.get(email).is_some_and(|other| other != id);
        for (id, fold) in folds.iter_mut().filter(|(_, fold)| fold.end == Some(End::Erased) && fold.row_moved)
        {
            if fold.email().is_some_and(|email| of_another(&self.fold(email), id)) {
                fold.give_up_address();
            }
        }
        // Only rows that are written or erased: a written row gets its final address then. A row whose erasure is
        // delayed is marked as deleted and keeps its address.
        let goes = |fold: &Fold| (fold.row_moved || fold.end.is_some()) && fold.held_until().is_none();
        let released = self.before.iter().filter(|(email, id)| of_another(email, id));
        let released = released.filter(|(_, id)| folds.get(id).is_some_and(goes)).map(|(_, id)| id);
        released.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }
}

/// The address that a change shows.
pub(super) fn email_in(change: &Change) -> Option<&str> {
    change.patch()?.get(user::EMAIL)?.text()
}

/// The address of a user; `None` for objects of other kinds.
fn email_of(user: &Object) -> Option<&str> {
    user.profile[user::EMAIL].text().filter(|_| *user.clerk_id.entity() == USER)
}

fn time(unix_ms: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(unix_ms)
}

/// Approximates how databases compare addresses.
fn folded(email: impl AsRef<str>) -> String {
    email.as_ref().to_lowercase()
}

/// An audit line about the effect of a delivery.
pub(super) fn entry(
    delivery: &Delivery,
    change: &Change,
    action: AuditAction,
    changed_fields: Vec<Field>,
    now: DateTime<Utc>,
) -> AuditEntry {
    AuditEntry {
        at: now,
        action,
        clerk_id: change.clerk_id.clone(),
        svix_id: delivery.svix_id.clone(),
        source: delivery.source,
        changed_fields,
        event_at: delivery.event_at,
        actor: change.actor.clone(),
    }
}

/// One object while its events are applied.
struct Fold {
    stored: Option<Register>,
    register: Option<Register>,
    user: Option<Object>,
    messages: Vec<Outgoing>,
    row_is_new: bool,
    row_moved: bool,
    end: Option<End>,
}

/// The result of a deletion.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Erased,
    /// This change requested the erasure again, and it was already complete.
    Gone(usize),
}

/// The result of an upsert.
enum Step {
    Stale,
    /// Newer, or of the same version, but no allow-listed field differs.
    Unchanged,
    Wrote(AuditAction, Vec<Field>),
}

impl Fold {
    fn new(stored: Option<Register>, user: Option<Object>) -> Self {
        let register = stored.clone();
        let messages = Vec::new();
        Self { stored, register, messages, row_is_new: user.is_none(), user, row_moved: false, end: None }
    }

    fn email(&self) -> Option<&str> {
        email_of(self.user.as_ref()?)
    }

    /// The address of a live row.
    fn live_email(&self) -> Option<&str> {
        self.email().filter(|_| self.end.is_none() && self.is_live())
    }

    /// Whether the row is live, or would be if it were created.
    fn is_live(&self) -> bool {
        let was_held = self.stored.as_ref().is_some_and(|register| register.held_until.is_some());
        let marked = self.user.as_ref().is_some_and(|user| user.deleted_at.is_some());
        self.held_until().is_none() && (!marked || was_held)
    }

    /// The row's version from Clerk.
    fn version(&self) -> i64 {
        self.register.as_ref().map_or(i64::MIN, |register| register.version.version)
    }

    fn give_up_address(&mut self) {
        if let Some(user) = &mut self.user {
            user.profile.set(user::EMAIL, Value::Null);
            self.row_moved = true;
        }
    }

    /// The register; created blank if there is none.
    fn register_mut(&mut self) -> &mut Register {
        let blank = || Register::at(Version::BLANK);
        self.register.get_or_insert_with(blank)
    }

    /// Record a version in the register, if it is newer.
    fn advance(&mut self, version: &Version) {
        if self.register.as_ref().is_none_or(|known| *version > known.version) {
            self.register_mut().version = version.clone();
        }
    }

    /// Write the messages about the row in its current state, after a change that may be about another object.
    fn tell(
        &mut self,
        action: AuditAction,
        fields: &[Field],
        (delivery, change): (&Delivery, &Change),
        rules: &Rules,
        now: DateTime<Utc>,
    ) {
        if rules.tells_of(delivery.source)
            && let Some(user) = &self.user
        {
            self.messages.extend(news::of_row(user, action, fields, (delivery, &change.version), rules, now));
        }
    }

    /// Whether an upsert would write: it is newer, or the row is missing and the current state at Clerk restores it.
    fn would_upsert(&self, delivery: &Delivery, change: &Change) -> bool {
        let restores = shows_state(delivery.source) && self.user.is_none();
        let known = self.register.as_ref();
        known.is_none_or(|known| !known.deleted && (restores || change.version > known.version))
    }

    /// Whether there is a tombstone.
    fn is_deleted(&self) -> bool {
        self.register.as_ref().is_some_and(|register| register.deleted)
    }

    fn held_until(&self) -> Option<DateTime<Utc>> {
        self.register.as_ref().and_then(|register| register.held_until)
    }

    /// Whether anything about this object was ever stored, even if only a parked delivery.
    fn is_known(&self) -> bool {
        self.stored.is_some() || self.user.is_some()
    }

    /// Whether there is no row, and the register records no event.
    fn is_blank(&self) -> bool {
        self.user.is_none() && self.register.as_ref().is_none_or(Register::is_blank)
    }

    /// Apply an upsert.
    ///
    /// A missing row may be restored from the current state at Clerk, even if the register knows a newer version. The
    /// newer change is still to come, or was removed with the row. If the current state differs only in times that move
    /// by themselves, they are written, but there is no audit line and no message.
    fn upsert(
        &mut self,
        (delivery, change): (&Delivery, &Change),
        patch: &Patch,
        created_at: Option<DateTime<Utc>>,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Step {
        let fields = rules.fields(change.clerk_id.entity());
        let is_the_same = |user: &Object| user.profile.clone().apply(patch, fields).is_empty();
        // Every event of the object that contains this one shows it again.
        let is_inside = delivery.clerk_id.as_ref() != Some(&change.clerk_id);
        let is_part = delivery.shows_part(change);
        let has_no_time = is_part && delivery.is_timed_by(change);
        if is_inside
            && (self.version() == change.version.version || has_no_time)
            && !self.is_deleted()
            && self.user.as_ref().is_some_and(|user| user.deleted_at.is_none() && is_the_same(user))
        {
            // This makes older events about the object stale. Those about a part are stale with the object that it is
            // a part of.
            if !is_part {
                self.advance(&change.version);
            }
            return Step::Unchanged;
        }
        if !self.would_upsert(delivery, change) {
            let known = self.register.as_ref();
            let same = known.is_some_and(|known| !known.deleted && shows(change, known))
                && self.user.as_ref().is_some_and(is_the_same);
            return if same { Step::Unchanged } else { Step::Stale };
        }
        self.advance(&change.version);
        self.row_moved = true;
        let updated_at = DateTime::from_timestamp_millis(change.version.version).unwrap_or(now);
        let is_first = self.user.is_none();
        let user = self.user.get_or_insert_with(|| Object {
            clerk_id: change.clerk_id.clone(),
            profile: Profile::default(),
            created_at: None,
            updated_at,
            synced_at: now,
            deleted_at: None,
        });
        let mut changed = user.profile.apply(patch, fields);
        // The raw object is not reported: if only it differs, then only in fields that are not synced.
        changed.retain(|field| !field.is_raw());
        user.created_at = created_at.or(user.created_at);
        user.updated_at = updated_at;
        user.synced_at = now;
        let is_news = changed.iter().any(|field| !(shows_state(delivery.source) && field.moves_by_itself));
        match (is_first, is_news) {
            (true, _) => Step::Wrote(AuditAction::Created, changed),
            (false, true) => Step::Wrote(AuditAction::Updated, changed),
            (false, false) => Step::Unchanged,
        }
    }

    /// Delay a deletion, if there is a grace period and a row to keep. The version stays, because events from before
    /// the deletion may still arrive.
    fn hold(&mut self, rules: &Rules, now: DateTime<Utc>) -> bool {
        let register = self.register.as_ref();
        let is_due = register.is_some_and(|known| known.deleted || known.held_until.is_some());
        let is_person = self.user.as_ref().is_some_and(|user| user.clerk_id.entity().is_person());
        if is_due || rules.grace <= TimeDelta::zero() || !is_person {
            return false;
        }
        let register = self.register_mut();
        register.held_until = Some(now + rules.grace);
        register.held_since = Some(now);
        true
    }

    /// Cancel a delayed deletion; returns whether there was one.
    fn keep(&mut self) -> bool {
        self.register.as_mut().is_some_and(|register| {
            register.held_since = None;
            register.held_until.take().is_some()
        })
    }

    /// Whether there is anything to erase now. A deletion is final, so a second one finds nothing to do, unless the row
    /// still exists because the application's constraints refused its erasure before.
    fn erase(&mut self, index: usize, news: &News, version: &Version, now: DateTime<Utc>) -> bool {
        if self.register.as_ref().is_some_and(|known| known.deleted) {
            let stands = self.user.as_ref().is_some_and(|user| !user.is_anonymized());
            let unfinished = stands && self.end.is_none();
            self.end.get_or_insert(if stands { End::Erased } else { End::Gone(index) });
            return unfinished;
        }
        let wanted = match (news, self.held_until()) {
            (News::Erase(EraseIf::Always), _) => true,
            // A second deletion waits with the first.
            (News::Delete, held) => held.is_none(),
            (News::Erase(EraseIf::TimeIsOver), Some(until)) => until <= now,
            (News::Erase(EraseIf::Held), held) => held.is_some(),
            (News::Erase(EraseIf::Unknown), _) => !self.is_known(),
            _ => false,
        };
        if wanted {
            *self.register_mut() = Register { deleted: true, ..Register::at(version.clone()) };
            self.end = Some(End::Erased);
            // A sink that never received the user does not need these messages now.
            self.messages.clear();
        }
        wanted
    }

    /// Erase the object, for this cause, if there is anything to erase now.
    fn take_out(
        &mut self,
        id: &ClerkId,
        news: &News,
        (change, delivery, caused_by): Cause<'_>,
        now: DateTime<Utc>,
    ) -> Option<Erasure> {
        let known = self.is_known();
        // The row exists, and its erasure was not tried before.
        let leaves = !self.row_is_new && !self.stored.as_ref().is_some_and(|register| register.deleted);
        let held_since = self.register.as_ref().and_then(|register| register.held_since);
        let requested_at = held_since.unwrap_or(delivery.event_at).min(now);
        let erased = self.erase(change, news, &caused_by.version, now);
        erased.then(|| Erasure { clerk_id: id.clone(), change, known, leaves, requested_at })
    }

    fn finish(mut self, id: &ClerkId, plan: &mut Plan) {
        plan.messages.append(&mut self.messages);
        let new = self.stored.is_none();
        let was_held = self.stored.as_ref().is_some_and(|register| register.held_until.is_some());
        let since = |register: &Option<Register>| register.as_ref().and_then(|register| register.held_since);
        match (since(&self.register), since(&self.stored)) {
            // A row that is created again needs the mark as well.
            (Some(since), _) if !was_held || (self.row_is_new && self.row_moved) => {
                plan.held.push((id.clone(), since));
            }
            (None, Some(since)) if self.end.is_none() => plan.kept.push((id.clone(), since)),
            _ => {}
        }
        if let Some(End::Gone(change)) = self.end {
            plan.gone.push((id.clone(), change));
        }
        if self.register != self.stored
            && let Some(register) = self.register
        {
            plan.registers.push(Advance { clerk_id: id.clone(), register, new });
        }
        if self.row_moved
            && let Some(user) = self.user
        {
            if self.row_is_new { plan.inserts.push(user) } else { plan.updates.push(user) }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        model::{Content, DeletionPolicy, FieldSet, Inside, SvixId, Value},
        telemetry::TraceContext,
    };

    fn rules() -> Rules {
        Rules::new(FieldSet::ALL, DeletionPolicy::Auto)
    }

    fn at(milliseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(milliseconds).expect("in range")
    }

    fn version(version: i64, tie: &str) -> Version {
        Version { version, event_at: version, tie: tie.to_owned() }
    }

    fn delivery(svix_id: &str, version: Version, news: News) -> Delivery {
        let clerk_id = ClerkId::new(&USER, "user_1").expect("valid");
        Delivery {
            svix_id: SvixId::new(svix_id),
            event_type: None,
            clerk_id: Some(clerk_id.clone()),
            event_at: at(version.event_at),
            received_at: at(0),
            source: Source::Webhook,
            payload: Bytes::new(),
            content: Content::Change(Change { clerk_id, version, news, actor: None }),
            nested: Inside::default(),
            whole: Vec::new(),
            parts_digest: None,
            trace: TraceContext::default(),
        }
    }

    /// An event that sets the user's first name, at this time.
    fn named(svix_id: &str, time: i64, first_name: &str) -> Delivery {
        delivery_at(svix_id, version(time, svix_id), first_name)
    }

    fn delivery_at(svix_id: &str, version: Version, first_name: &str) -> Delivery {
        let mut patch = Patch::default();
        patch.set(user::FIRST_NAME, Value::Text(first_name.to_owned()));
        delivery(svix_id, version, News::Upsert { patch, created_at: None })
    }

    fn deleted(svix_id: &str, time: i64) -> Delivery {
        delivery(svix_id, version(time, svix_id), News::Delete)
    }

    fn planned(deliveries: &[Delivery], stored: Stored) -> Plan {
        planned_by(&rules(), deliveries, stored)
    }

    fn planned_by(rules: &Rules, deliveries: &[Delivery], stored: Stored) -> Plan {
        let change = |delivery: &Delivery| match &delivery.content {
            Content::Change(change) => change.clone(),
            other => panic!("not a change: {other:?}"),
        };
        let changes: Vec<Change> = deliveries.iter().map(change).collect();
        let pairs: Vec<_> = deliveries.iter().zip(&changes).collect();
        plan(&pairs, stored, rules, at(1_000_000))
    }

    fn known(register: Register, user: Option<Object>) -> Stored {
        let id = ClerkId::new(&USER, "user_1").expect("valid");
        Stored {
            registers: HashMap::from([(id.clone(), register)]),
            objects: user.map(|user| (id, user)).into_iter().collect(),
            addresses: None,
        }
    }

    fn row(deleted_at: Option<DateTime<Utc>>) -> Object {
        let mut profile = Profile::default();
        if deleted_at.is_some() {
            for (field, text) in [
                (user::EMAIL, "deleted-1@anonymized.local"),
                (user::FIRST_NAME, "Deleted"),
                (user::LAST_NAME, "User"),
            ] {
                profile.set(field, Value::Text(text.to_owned()));
            }
        }
        Object {
            clerk_id: ClerkId::new(&USER, "user_1").expect("valid"),
            profile,
            created_at: None,
            updated_at: at(0),
            synced_at: at(0),
            deleted_at,
        }
    }

    fn actions(plan: &Plan) -> Vec<AuditAction> {
        plan.audit.iter().map(|line| line.action).collect()
    }

    #[test]
    fn an_event_that_shows_a_part_unchanged_makes_older_ones_stale() {
        // A nested object, which claims to have version 5.
        let inside = |svix_id: &str, event_at, first_name| {
            let version = Version { version: 5, event_at, tie: svix_id.to_owned() };
            Delivery { clerk_id: ClerkId::new(&USER, "user_2"), ..delivery_at(svix_id, version, first_name) }
        };
        let plan = planned(
            &[inside("msg_1", 10, "Ada"), inside("msg_3", 30, "Ada"), inside("msg_2", 20, "Late")],
            Stored::default(),
        );
        assert_eq!(plan.outcomes, [Outcome::Applied, Outcome::Unchanged, Outcome::Stale]);
        assert_eq!(plan.registers[0].register.version.event_at, 30);
        assert_eq!(plan.inserts[0].profile[user::FIRST_NAME].text(), Some("Ada"));
    }

    #[test]
    fn a_batch_has_the_outcomes_that_its_events_would_have_alone() {
        let plan = planned(
            &[
                named("msg_1", 10, "Ada"),
                named("msg_2", 30, "Augusta"),
                named("msg_3", 20, "Late"),
                named("msg_4", 40, "Augusta"),
                deleted("msg_5", 5),
                named("msg_6", 50, "Ghost"),
                deleted("msg_7", 60),
            ],
            Stored::default(),
        );
        assert_eq!(
            plan.outcomes,
            [
                Outcome::Applied,
                Outcome::Applied,
                Outcome::Stale,
                Outcome::Unchanged,
                Outcome::Applied,
                Outcome::Stale,
                Outcome::Stale
            ]
        );
        assert_eq!(actions(&plan), [AuditAction::Created, AuditAction::Updated]);
        assert_eq!(plan.erasures.len(), 1);
        assert_eq!(plan.erasures[0].change, 4);
        assert_eq!(plan.inserts.len(), 1);
        assert!(plan.updates.is_empty());
        let [advance] = &plan.registers[..] else { panic!("one user has one register") };
        assert!(advance.new && advance.register.deleted);
    }

    #[test]
    fn events_of_one_time_are_ordered_by_their_ids() {
        let plan = planned(&[named("msg_2", 10, "Two"), named("msg_1", 10, "One")], Stored::default());
        assert_eq!(plan.outcomes, [Outcome::Applied, Outcome::Stale]);
        assert_eq!(plan.inserts[0].profile[user::FIRST_NAME].text(), Some("Two"));
    }

    #[test]
    fn what_the_api_shows_of_the_version_that_is_here_is_the_same_whenever_it_was_read() {
        let read = |version: i64, event_at: i64, first_name: &str| Delivery {
            svix_id: None,
            source: Source::Backfill,
            ..delivery_at("", Version { version, event_at, tie: String::new() }, first_name)
        };
        let here = |deleted| {
            let mut user = row(None);
            user.profile.set(user::FIRST_NAME, Value::Text("Ada".to_owned()));
            known(
                Register {
                    deleted,
                    ..Register::at(Version { version: 10, event_at: 15, tie: "msg_1".to_owned() })
                },
                Some(user),
            )
        };
        for (read, expected) in [
            // Read before the webhook was sent, and after.
            (read(10, 12, "Ada"), Outcome::Unchanged),
            (read(10, 15, "Ada"), Outcome::Unchanged),
            (read(10, 99, "Ada"), Outcome::Unchanged),
            (read(10, 12, "Augusta"), Outcome::Stale),
            (read(9, 99, "Ada"), Outcome::Stale),
        ] {
            let plan = planned(std::slice::from_ref(&read), here(false));
            assert_eq!(plan.outcomes, [expected], "{read:?}");
            assert!(plan.audit.is_empty() && plan.inserts.is_empty());
            let [Content::Change(change)] = [&read.content] else { panic!("not a change") };
            let register = &here(false).registers[&change.clerk_id];
            assert!(is_news(&read, change, Some(register)), "the row is needed");
        }
        assert_eq!(planned(&[read(10, 12, "Ada")], here(true)).outcomes, [Outcome::Stale]);
        // A webhook with the same time is not an API read.
        assert_eq!(
            planned(
                &[delivery_at(
                    "msg_0",
                    Version { version: 10, event_at: 12, tie: "msg_0".to_owned() },
                    "Ada"
                )],
                here(false)
            )
            .outcomes,
            [Outcome::Stale]
        );
    }

    #[test]
    fn a_tombstone_is_final_also_without_a_row() {
        let tombstone = || Register { deleted: true, ..Register::at(version(1, "")) };
        let plan = planned(&[named("msg_1", 99, "Ghost"), deleted("msg_2", 100)], known(tombstone(), None));
        assert_eq!(plan.outcomes, [Outcome::Stale, Outcome::Stale]);
        assert!(plan.registers.is_empty() && plan.inserts.is_empty() && plan.erasures.is_empty());

        let anonymised = planned(&[deleted("msg_2", 100)], known(tombstone(), Some(row(Some(at(1))))));
        assert_eq!(anonymised.outcomes, [Outcome::Stale]);
    }

    #[test]
    fn a_tombstone_whose_row_still_stands_is_an_erasure_to_finish_once() {
        let tombstone = Register { deleted: true, ..Register::at(version(1, "")) };
        let plan = planned(&[deleted("msg_1", 2), deleted("msg_2", 3)], known(tombstone, Some(row(None))));
        assert_eq!(plan.outcomes, [Outcome::Applied, Outcome::Stale]);
        assert_eq!(plan.erasures.len(), 1);
        assert!(plan.registers.is_empty());
    }

    /// The plan for these deliveries with a grace period of 500 s; the clock shows 1,000,000 ms.
    fn held_back(deliveries: &[Delivery], stored: Stored) -> Plan {
        planned_by(&Rules { grace: TimeDelta::seconds(500), ..rules() }, deliveries, stored)
    }

    fn register(deleted: bool, held_until: Option<i64>) -> Register {
        let held_since = held_until.map(|_| at(7));
        Register {
            version: version(10, ""),
            deleted,
            held_until: held_until.map(at),
            held_since,
            parts_digest: None,
        }
    }

    fn without_webhook(time: i64, news: News) -> Delivery {
        Delivery { svix_id: None, ..delivery("msg", version(time, ""), news) }
    }

    #[test]
    fn a_deletion_that_is_held_back_keeps_the_version_and_marks_the_row() {
        let plan = held_back(&[deleted("msg_1", 20)], known(register(false, None), Some(row(None))));
        assert_eq!(plan.outcomes, [Outcome::Applied]);
        let held = Register { held_since: Some(at(1_000_000)), ..register(false, Some(1_500_000)) };
        assert_eq!(plan.registers[0].register, held);
        assert_eq!((plan.held.len(), plan.erasures.len()), (1, 0));
        assert_eq!(plan.held[0].1, at(1_000_000));
        assert_eq!(actions(&plan), [AuditAction::DeletionHeld]);

        let late = held_back(&[named("msg_2", 15, "Ada")], known(register(false, Some(9)), Some(row(None))));
        assert_eq!(late.outcomes, [Outcome::Applied]);
        assert_eq!(late.registers[0].register.held_until, Some(at(9)));
        assert!(late.held.is_empty() && late.kept.is_empty());
    }

    #[test]
    fn nobody_is_held_back_without_a_row_or_without_the_wish() {
        let unknown = held_back(&[deleted("msg_1", 20)], Stored::default());
        assert!(unknown.registers[0].register.deleted && !unknown.erasures[0].known);
        let rowless = held_back(&[deleted("msg_1", 20)], known(register(false, None), None));
        assert!(rowless.registers[0].register.deleted && rowless.erasures[0].known);
        let at_once = planned(&[deleted("msg_1", 20)], known(register(false, None), Some(row(None))));
        assert!(at_once.registers[0].register.deleted && at_once.held.is_empty());
    }

    #[test]
    fn what_is_held_back_ends_by_time_by_hand_or_not_at_all() {
        let due = |until: i64, news: News| {
            // The application set the mark.
            let stored = known(register(false, Some(until)), Some(row(Some(at(3)))));
            held_back(&[without_webhook(30, news)], stored)
        };
        let (over, not_yet) = (1_000_000, 1_000_001);
        for (until, news, erased) in [
            (over, News::Erase(EraseIf::TimeIsOver), true),
            (not_yet, News::Erase(EraseIf::TimeIsOver), false),
            (not_yet, News::Erase(EraseIf::Held), true),
            (not_yet, News::Erase(EraseIf::Always), true),
            (over, News::Delete, false),
        ] {
            let plan = due(until, news.clone());
            assert_eq!(plan.erasures.len(), usize::from(erased), "{news:?}");
            assert_eq!(plan.outcomes, [if erased { Outcome::Applied } else { Outcome::Stale }], "{news:?}");
            assert!(plan.kept.is_empty());
            if erased {
                assert_eq!(plan.erasures[0].requested_at, at(7), "since the erasure was delayed");
                assert_eq!(plan.registers[0].register.held_until, None);
            }
        }
        let kept = due(over, News::Keep);
        assert_eq!((kept.kept[0].1, kept.outcomes[0]), (at(7), Outcome::Applied));
        assert_eq!(kept.registers[0].register, register(false, None));
        for (stored, news) in [
            (register(false, None), News::Keep),
            (register(true, None), News::Keep),
            (register(false, None), News::Erase(EraseIf::Held)),
            (register(false, None), News::Erase(EraseIf::TimeIsOver)),
        ] {
            let plan = held_back(&[without_webhook(30, news)], known(stored, Some(row(None))));
            let nothing = plan.registers.is_empty() && plan.kept.is_empty() && plan.audit.is_empty();
            assert!(nothing, "{plan:?}");
        }
    }

    #[test]
    fn a_deletion_that_finds_nobody_left_says_so() {
        let plan = planned(&[deleted("msg_1", 20)], known(register(true, None), None));
        assert_eq!((plan.gone.len(), plan.outcomes[0]), (1, Outcome::Stale));
        let standing = planned(&[deleted("msg_1", 20)], known(register(true, None), Some(row(None))));
        assert!(standing.gone.is_empty());
    }

    #[test]
    fn a_row_that_is_gone_comes_back_from_what_the_api_shows_though_it_is_older() {
        let register = |deleted| Register { deleted, ..Register::at(version(9, "msg_0")) };
        let read = |source| Delivery { source, ..named("", 2, "Ada") };
        for source in [Source::Backfill, Source::Reconcile, Source::Api] {
            let plan = planned(&[read(source)], known(register(false), None));
            assert_eq!(plan.outcomes, [Outcome::Applied], "{source:?}");
            assert_eq!(plan.inserts.len(), 1, "{source:?}");
            assert!(plan.registers.is_empty(), "the newest version stays known");
            // Not if the row exists; and a deleted user is never restored.
            let stands = planned(&[read(source)], known(register(false), Some(row(None))));
            assert_eq!(stands.outcomes, [Outcome::Stale], "{source:?}");
            assert_eq!(planned(&[read(source)], known(register(true), None)).outcomes, [Outcome::Stale]);
            let (delivery, older) = (read(source), register(false));
            let Content::Change(change) = &delivery.content else { panic!("a change") };
            assert!(is_news(&delivery, change, Some(&older)), "its row must be loaded");
        }
        // An old event says nothing about the present.
        let plan = planned(&[named("msg_1", 2, "Ada")], known(register(false), None));
        assert_eq!(plan.outcomes, [Outcome::Stale]);
    }

    #[test]
    fn a_row_that_the_application_removed_is_created_again() {
        let register = Register::at(version(1, ""));
        let plan = planned(&[named("msg_1", 2, "Ada")], known(register, None));
        assert_eq!(actions(&plan), [AuditAction::Created]);
        assert_eq!(plan.inserts.len(), 1);
        assert!(!plan.registers[0].new);
    }
}
