//! Every rule about order and content, in pure code.
//!
//! A batch is folded user by user, event by event, exactly as if each event had come alone. So the outcome of an
//! event never depends on the company it came in.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::{Rules, news};
use crate::{
    model::{
        AuditAction, AuditEntry, Change, ClerkId, Delivery, Field, News, Outcome, Patch, Profile, Register,
        User, Version,
    },
    store::{Advance, Outgoing},
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
    /// What other systems are told of what is inserted and updated, of each user in the order of the changes.
    pub messages: Vec<Outgoing>,
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
        (News::Upsert { .. }, Some(register)) => {
            !register.deleted && (change.version > register.version || shows(change, register))
        }
    }
}

/// Whether this is what Clerk's Backend API shows of just the version that is known here. It can have been read before the
/// webhook about that version was sent, and so seem older, without being news or out of date.
fn shows(change: &Change, register: &Register) -> bool {
    change.version.tie.is_empty() && change.version.version == register.version.version
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
                            if rules.tells_of(delivery.source)
                                && let Some(user) = &fold.user
                            {
                                let told =
                                    news::of_row(user, action, &changed_fields, delivery, change, rules, now);
                                fold.messages.extend(told);
                            }
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
    messages: Vec<Outgoing>,
    row_is_new: bool,
    row_moved: bool,
    erased: bool,
}

/// What an upsert did.
enum Step {
    Stale,
    /// Newer, or of the same version, but no allow-listed field differs.
    Unchanged,
    Wrote(AuditAction, Vec<Field>),
}

impl Fold {
    fn new(stored: Option<Register>, user: Option<User>) -> Self {
        let register = stored.clone();
        let messages = Vec::new();
        Self { stored, register, messages, row_is_new: user.is_none(), user, row_moved: false, erased: false }
    }

    fn upsert(
        &mut self,
        change: &Change,
        patch: &Patch,
        created_at: Option<DateTime<Utc>>,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Step {
        if let Some(known) =
            self.register.as_ref().filter(|known| known.deleted || change.version <= known.version)
        {
            let differs = |user: &User| !user.profile.clone().apply(patch, rules.fields).is_empty();
            let same = !known.deleted
                && shows(change, known)
                && self.user.as_ref().is_some_and(|user| !differs(user));
            return if same { Step::Unchanged } else { Step::Stale };
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
            let stands = self.user.as_ref().is_some_and(|user| !user.is_anonymized());
            let unfinished = stands && !self.erased;
            self.erased = true;
            return unfinished;
        }
        self.register = Some(Register { version: version.clone(), deleted: true });
        self.erased = true;
        // Whoever never heard of the user need not begin now.
        self.messages.clear();
        true
    }

    fn finish(self, id: &ClerkId, plan: &mut Plan) {
        plan.messages.extend(self.messages);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Content, DeletionPolicy, FieldSet, Source, SvixId, Value};

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
        let clerk_id = ClerkId::new("user_1").expect("valid");
        Delivery {
            svix_id: SvixId::new(svix_id),
            event_type: None,
            clerk_id: Some(clerk_id.clone()),
            event_at: at(version.event_at),
            received_at: at(0),
            source: Source::Webhook,
            payload: Bytes::new(),
            content: Content::Change(Change { clerk_id, version, news, actor: None }),
        }
    }

    /// An event that names the user, at this time.
    fn named(svix_id: &str, time: i64, first_name: &str) -> Delivery {
        delivery_at(svix_id, version(time, svix_id), first_name)
    }

    fn delivery_at(svix_id: &str, version: Version, first_name: &str) -> Delivery {
        let mut patch = Patch::default();
        patch.set(Field::FirstName, Value::Text(first_name.to_owned()));
        delivery(svix_id, version, News::Upsert { patch, created_at: None })
    }

    fn deleted(svix_id: &str, time: i64) -> Delivery {
        delivery(svix_id, version(time, svix_id), News::Delete)
    }

    fn planned(deliveries: &[Delivery], stored: Stored) -> Plan {
        let change = |delivery: &Delivery| match &delivery.content {
            Content::Change(change) => change.clone(),
            other => panic!("not a change: {other:?}"),
        };
        let changes: Vec<Change> = deliveries.iter().map(change).collect();
        let pairs: Vec<_> = deliveries.iter().zip(&changes).collect();
        plan(&pairs, stored, &rules(), at(1_000_000))
    }

    fn known(register: Register, user: Option<User>) -> Stored {
        let id = ClerkId::new("user_1").expect("valid");
        Stored {
            registers: HashMap::from([(id.clone(), register)]),
            users: user.map(|user| (id, user)).into_iter().collect(),
        }
    }

    fn row(deleted_at: Option<DateTime<Utc>>) -> User {
        let mut profile = Profile::default();
        if deleted_at.is_some() {
            profile.set(Field::Email, Value::Text("deleted-1@anonymized.local".to_owned()));
        }
        User {
            clerk_id: ClerkId::new("user_1").expect("valid"),
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
        assert_eq!(actions(&plan), [AuditAction::UserCreated, AuditAction::UserUpdated]);
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
        assert_eq!(plan.inserts[0].profile[Field::FirstName].text(), Some("Two"));
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
            user.profile.set(Field::FirstName, Value::Text("Ada".to_owned()));
            known(
                Register { version: Version { version: 10, event_at: 15, tie: "msg_1".to_owned() }, deleted },
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
            assert_eq!(is_news(change, Some(register)), change.version.version == 10, "the row is needed");
        }
        assert_eq!(planned(&[read(10, 12, "Ada")], here(true)).outcomes, [Outcome::Stale]);
        // A webhook of the same time is no read.
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
        let tombstone = || Register { version: version(1, ""), deleted: true };
        let plan = planned(&[named("msg_1", 99, "Ghost"), deleted("msg_2", 100)], known(tombstone(), None));
        assert_eq!(plan.outcomes, [Outcome::Stale, Outcome::Stale]);
        assert!(plan.registers.is_empty() && plan.inserts.is_empty() && plan.erasures.is_empty());

        let anonymised = planned(&[deleted("msg_2", 100)], known(tombstone(), Some(row(Some(at(1))))));
        assert_eq!(anonymised.outcomes, [Outcome::Stale]);
    }

    #[test]
    fn a_tombstone_whose_row_still_stands_is_an_erasure_to_finish_once() {
        let tombstone = Register { version: version(1, ""), deleted: true };
        let plan = planned(&[deleted("msg_1", 2), deleted("msg_2", 3)], known(tombstone, Some(row(None))));
        assert_eq!(plan.outcomes, [Outcome::Applied, Outcome::Stale]);
        assert_eq!(plan.erasures.len(), 1);
        assert!(plan.registers.is_empty());
    }

    #[test]
    fn a_row_that_the_application_removed_is_created_again() {
        let register = Register { version: version(1, ""), deleted: false };
        let plan = planned(&[named("msg_1", 2, "Ada")], known(register, None));
        assert_eq!(actions(&plan), [AuditAction::UserCreated]);
        assert_eq!(plan.inserts.len(), 1);
        assert!(!plan.registers[0].new);
    }
}
