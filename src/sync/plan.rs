//! Every rule about order and content, in pure code.
//!
//! A batch is folded user by user, event by event, exactly as if each event had come alone. So the outcome of an
//! event never depends on the company it came in.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::Rules;
use crate::{
    model::{
        AuditAction, AuditEntry, Change, ClerkId, Delivery, Field, News, Outcome, Patch, Profile, Register,
        User, Version,
    },
    store::Advance,
};

/// What is stored of the users of a batch.
#[derive(Debug, Default)]
pub struct Stored {
    pub registers: HashMap<ClerkId, Register>,
    pub users: HashMap<ClerkId, User>,
}

/// What to write, and what to answer.
#[derive(Debug, Default)]
pub struct Plan {
    /// One per change, in the order of the changes.
    pub outcomes: Vec<Outcome>,
    pub registers: Vec<Advance>,
    pub inserts: Vec<User>,
    pub updates: Vec<User>,
    /// Lines for what is inserted and updated. Those of erasures depend on what the database allows.
    pub audit: Vec<AuditEntry>,
    /// Written last: the rows above may be among them.
    pub erasures: Vec<Erasure>,
}

/// A user to take out.
#[derive(Clone, Debug)]
pub struct Erasure {
    pub clerk_id: ClerkId,
    /// Which change asks for it, as an index into the changes.
    pub change: usize,
}

/// Whether a change can matter, so that its user's row has to be loaded.
pub fn is_news(change: &Change, register: Option<&Register>) -> bool {
    match (&change.news, register) {
        (_, None) | (News::Delete, Some(_)) => true,
        (News::Upsert { .. }, Some(register)) => !register.deleted && change.version > register.version,
    }
}

/// Decide about changes that were never seen before, in the order in which they came.
pub fn plan(changes: &[(&Delivery, &Change)], mut stored: Stored, rules: &Rules, now: DateTime<Utc>) -> Plan {
    let mut plan = Plan { outcomes: vec![Outcome::Stale; changes.len()], ..Plan::default() };
    let mut by_user: BTreeMap<&ClerkId, Vec<usize>> = BTreeMap::new();
    for (index, (_, change)) in changes.iter().enumerate() {
        by_user.entry(&change.clerk_id).or_default().push(index);
    }
    let mut audit = Vec::new();
    for (id, indices) in by_user {
        let mut fold = Fold::new(stored.registers.remove(id), stored.users.remove(id));
        for index in indices {
            let (delivery, change) = changes[index];
            plan.outcomes[index] = match &change.news {
                News::Upsert { patch, created_at } => {
                    match fold.upsert(change, patch, *created_at, rules, now) {
                        Step::Stale => Outcome::Stale,
                        Step::Unchanged => Outcome::Unchanged,
                        Step::Wrote(action, changed_fields) => {
                            audit.push((index, entry(delivery, change, action, changed_fields, now)));
                            Outcome::Applied
                        }
                    }
                }
                News::Delete if fold.delete(&change.version) => {
                    plan.erasures.push(Erasure { clerk_id: id.clone(), change: index });
                    Outcome::Applied
                }
                News::Delete => Outcome::Stale,
            };
        }
        fold.finish(id, &mut plan);
    }
    audit.sort_by_key(|(index, _)| *index);
    plan.audit = audit.into_iter().map(|(_, entry)| entry).collect();
    plan
}

/// A line of the audit trail about what a delivery did.
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

/// One user on the way through their events.
struct Fold {
    stored: Option<Register>,
    register: Option<Register>,
    user: Option<User>,
    row_is_new: bool,
    row_moved: bool,
    erased: bool,
}

/// What an upsert did.
enum Step {
    Stale,
    /// Newer, but no allow-listed field differs.
    Unchanged,
    Wrote(AuditAction, Vec<Field>),
}

impl Fold {
    fn new(stored: Option<Register>, user: Option<User>) -> Self {
        let register = stored.clone();
        Self { stored, register, row_is_new: user.is_none(), user, row_moved: false, erased: false }
    }

    fn upsert(
        &mut self,
        change: &Change,
        patch: &Patch,
        created_at: Option<DateTime<Utc>>,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Step {
        if self.register.as_ref().is_some_and(|known| known.deleted || change.version <= known.version) {
            return Step::Stale;
        }
        self.register = Some(Register { version: change.version.clone(), deleted: false });
        self.row_moved = true;
        let updated_at = DateTime::from_timestamp_millis(change.version.version).unwrap_or(now);
        let is_first = self.user.is_none();
        let user = self.user.get_or_insert_with(|| User {
            clerk_id: change.clerk_id.clone(),
            profile: Profile::default(),
            created_at: None,
            updated_at,
            synced_at: now,
            deleted_at: None,
        });
        let changed = user.profile.apply(patch, rules.fields);
        user.created_at = created_at.or(user.created_at);
        user.updated_at = updated_at;
        user.synced_at = now;
        match (is_first, changed.is_empty()) {
            (true, _) => Step::Wrote(AuditAction::UserCreated, changed),
            (false, false) => Step::Wrote(AuditAction::UserUpdated, changed),
            (false, true) => Step::Unchanged,
        }
    }

    /// Whether there is anything to erase: deletion is terminal, so a second one finds nothing to do, unless the
    /// row still stands because the application's constraints refused before.
    fn delete(&mut self, version: &Version) -> bool {
        if self.register.as_ref().is_some_and(|known| known.deleted) {
            let stands = self.user.as_ref().is_some_and(|user| user.deleted_at.is_none());
            let unfinished = stands && !self.erased;
            self.erased = true;
            return unfinished;
        }
        self.register = Some(Register { version: version.clone(), deleted: true });
        self.erased = true;
        true
    }

    fn finish(self, id: &ClerkId, plan: &mut Plan) {
        let new = self.stored.is_none();
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
