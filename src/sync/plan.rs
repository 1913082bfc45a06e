//! Every rule about order and content, in pure code.
//!
//! A batch is folded user by user, event by event, exactly as if each event had come alone. So the outcome of an
//! event never depends on the company it came in.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::Rules;
use crate::{
    model::{
        AuditAction, AuditEntry, Change, ClerkId, Delivery, News, Outcome, Profile, Register, User, Version,
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
                    let Some(step) = fold.upsert(change, patch, *created_at, rules, now) else { continue };
                    if let Some((action, changed_fields)) = step {
                        audit.push((index, entry(delivery, change, action, changed_fields, now)));
                        Outcome::Applied
                    } else {
                        Outcome::Unchanged
                    }
                }
                News::Delete => {
                    if !fold.delete(&change.version) {
                        continue;
                    }
                    plan.erasures.push(Erasure { clerk_id: id.clone(), change: index });
                    Outcome::Applied
                }
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
    changed_fields: Vec<crate::model::Field>,
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
    register: Option<Register>,
    register_is_new: bool,
    register_moved: bool,
    user: Option<User>,
    row_is_new: bool,
    row_moved: bool,
    erased: bool,
}

impl Fold {
    fn new(register: Option<Register>, user: Option<User>) -> Self {
        Self {
            register_is_new: register.is_none(),
            register,
            register_moved: false,
            row_is_new: user.is_none(),
            user,
            row_moved: false,
            erased: false,
        }
    }

    /// `None` if it is not news. Else the line to write, if any allow-listed field differs.
    fn upsert(
        &mut self,
        change: &Change,
        patch: &crate::model::Patch,
        created_at: Option<DateTime<Utc>>,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Option<Option<(AuditAction, Vec<crate::model::Field>)>> {
        if self.register.as_ref().is_some_and(|known| known.deleted || change.version <= known.version) {
            return None;
        }
        self.advance(change.version.clone(), false);
        self.row_moved = true;
        let updated_at = DateTime::from_timestamp_millis(change.version.version).unwrap_or(now);
        let Some(user) = &mut self.user else {
            let mut profile = Profile::default();
            let changed = profile.apply(patch, rules.fields);
            let user = User {
                clerk_id: change.clerk_id.clone(),
                profile,
                created_at,
                updated_at,
                synced_at: now,
                deleted_at: None,
            };
            self.user = Some(user);
            return Some(Some((AuditAction::UserCreated, changed)));
        };
        let changed = user.profile.apply(patch, rules.fields);
        user.created_at = created_at.or(user.created_at);
        user.updated_at = updated_at;
        user.synced_at = now;
        Some((!changed.is_empty()).then_some((AuditAction::UserUpdated, changed)))
    }

    /// Whether there is anything to erase: deletion is terminal, so a second one finds nothing to do, unless the
    /// row still stands because the application's constraints refused before.
    fn delete(&mut self, version: &Version) -> bool {
        let stands = || self.user.as_ref().is_some_and(|user| user.deleted_at.is_none());
        if self.register.as_ref().is_some_and(|known| known.deleted) {
            let unfinished = !self.erased && stands();
            self.erased = true;
            return unfinished;
        }
        self.advance(version.clone(), true);
        self.erased = true;
        true
    }

    fn advance(&mut self, version: Version, deleted: bool) {
        self.register = Some(Register { version, deleted });
        self.register_moved = true;
    }

    fn finish(self, id: &ClerkId, plan: &mut Plan) {
        if self.register_moved
            && let Some(register) = self.register
        {
            plan.registers.push(Advance { clerk_id: id.clone(), register, new: self.register_is_new });
        }
        if self.row_moved
            && let Some(user) = self.user
        {
            if self.row_is_new { plan.inserts.push(user) } else { plan.updates.push(user) }
        }
    }
}
