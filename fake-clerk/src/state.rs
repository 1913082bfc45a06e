//! The whole state of a fake behind one lock: users, organizations, memberships, and other lists.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};

use super::{
    Behaviour, Options,
    directory::{Directory, early_time},
    id::hash,
    lists::Shown,
    organization,
    query::{Choice, OrganizationQuery, Page},
    refusal::Refusal,
    shelf::{Entry, Scope, Shelf},
    user::{MAX_NUMBER, Seed, User, fraction},
};

/// Clones share the same state.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

pub(super) struct State {
    pub(super) users: Directory,
    pub(super) organizations: Shelf,
    pub(super) memberships: Shelf,
    pub(super) shown: Shown,
}

impl Shared {
    /// `None` if `options` asks for too many objects. `now` is in Unix milliseconds.
    pub(super) fn new(options: &Options, now: i64) -> Option<Self> {
        let number = |count| u32::try_from(count).ok();
        let users = number(options.users).filter(|users| *users <= MAX_NUMBER)?;
        let organizations = number(options.organizations)?;
        let members = number(options.members).filter(|members| *members <= users)?;
        let memberships = organizations.checked_mul(members)?;
        let entry = |created_at| Entry { created_at, organization: None, user: None, given: None };
        let organizations = Shelf::made(
            "org_",
            (0..organizations).map(|number| entry(early_time(number, organizations, now))),
        );
        let memberships = (0..memberships).map(|number| {
            let organization = number / members;
            // Consecutive users from a random start, so that no user is twice in one organization.
            let first = hash(u64::from(organization), 42) % u64::from(users);
            let user = (first + u64::from(number % members)) % u64::from(users) + 1;
            let founded = organizations.get(organization).map_or(i64::MIN, |entry| entry.created_at);
            Entry {
                organization: Some(organization),
                user: u32::try_from(user).ok(),
                ..entry(early_time(number, memberships, now).max(founded))
            }
        });
        let memberships = Shelf::made("orgmem_", memberships);
        let state =
            State { users: Directory::new(users, now), organizations, memberships, shown: Shown::default() };
        Some(Self(Arc::new(Mutex::new(state))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Also deletes all memberships of the user.
    pub(super) fn delete_user(&mut self, id: &str) -> Option<Seed> {
        let seed = self.users.delete(id)?;
        self.remove_memberships(Scope::User(seed.number));
        Some(seed)
    }

    pub(super) fn put_organization(&mut self, organization: Value) {
        let id = id_of(&organization);
        self.organizations.put(&id, entry(organization));
    }

    /// Also removes all memberships in it.
    pub(super) fn remove_organization(&mut self, id: &str) -> Option<Value> {
        let number = self.organizations.number(id)?;
        let organization = self.organization(number);
        self.organizations.remove(&[number]);
        self.remove_memberships(Scope::Organization(number));
        organization
    }

    pub(super) fn put_membership(&mut self, membership: Value) {
        let id = id_of(&membership);
        let organization = membership["organization"]["id"].as_str();
        let user = membership["public_user_data"]["user_id"].as_str();
        let organization = organization.map(|id| self.organizations.name(id));
        let user = user.and_then(|id| self.users.get(id)).map(|seed| seed.number);
        self.memberships.put(&id, Entry { organization, user, ..entry(membership) });
    }

    pub(super) fn remove_membership(&mut self, id: &str) -> Option<Value> {
        let number = self.memberships.number(id)?;
        let membership = self.membership(number);
        self.memberships.remove(&[number]);
        membership
    }

    fn remove_memberships(&mut self, of: Scope) {
        let numbers = self.memberships.all(of).to_vec();
        self.memberships.remove(&numbers);
    }

    pub(super) fn find_organization(&self, id: &str) -> Option<Value> {
        self.organization(self.organizations.number(id)?)
    }

    pub(super) fn find_membership(&self, id: &str) -> Option<Value> {
        self.membership(self.memberships.number(id)?)
    }

    fn organization(&self, number: u32) -> Option<Value> {
        shown(&self.organizations, number, organization::organization)
    }

    /// As Clerk shows it: with the current organization and user.
    fn membership(&self, number: u32) -> Option<Value> {
        let Entry { organization, user, .. } = *self.memberships.get(number)?;
        let mut membership = shown(&self.memberships, number, organization::membership)?;
        if let Some(organization) = organization.and_then(|number| self.organization(number)) {
            membership["organization"] = organization;
        }
        if let Some(seed) = user.and_then(|number| self.users.living(number)) {
            membership["public_user_data"] = User::from(&seed).public_data();
        }
        Some(membership)
    }

    pub(super) fn list_organizations(&self, query: &OrganizationQuery, behaviour: &Behaviour) -> Value {
        let chosen = self.chosen(&query.organization_id);
        list(&chosen, &query.page, behaviour, |number| self.organization(number))
    }

    pub(super) fn list_memberships(
        &self,
        of: Scope,
        query: &OrganizationQuery,
        behaviour: &Behaviour,
    ) -> Value {
        list(self.memberships.all(of), &query.page, behaviour, |number| self.membership(number))
    }

    /// The memberships in this organization.
    pub(super) fn of_organization(&self, id: &str) -> Result<Scope, Refusal> {
        let number = self.organizations.number(id).ok_or_else(|| Refusal::no_such("organization", id))?;
        Ok(Scope::Organization(number))
    }

    /// The memberships of this user.
    pub(super) fn of_user(&self, id: &str) -> Result<Scope, Refusal> {
        let seed = self.users.get(id).ok_or_else(|| Refusal::no_such("user", id))?;
        Ok(Scope::User(seed.number))
    }

    fn chosen(&self, choice: &Choice) -> Cow<'_, [u32]> {
        let all = self.organizations.all(Scope::All);
        if choice.is_any() {
            return Cow::Borrowed(all);
        }
        let numbers = |ids: &[String]| -> HashSet<u32> {
            ids.iter().filter_map(|id| self.organizations.number(id)).collect()
        };
        let (include, exclude) = (numbers(&choice.include), numbers(&choice.exclude));
        let is_chosen = |number: &u32| {
            (choice.include.is_empty() || include.contains(number)) && !exclude.contains(number)
        };
        all.iter().copied().filter(is_chosen).collect()
    }
}

/// A page in Clerk's format for all lists except users.
fn list(ascending: &[u32], page: &Page, behaviour: &Behaviour, show: impl Fn(u32) -> Option<Value>) -> Value {
    let is_listed = |share, number| fraction(hash(u64::from(number), 43)) < share;
    let listed: Cow<'_, [u32]> = match behaviour.only {
        None => Cow::Borrowed(ascending),
        Some(share) => ascending.iter().copied().filter(|number| is_listed(share, *number)).collect(),
    };
    let count = if behaviour.count_only_listed { listed.len() } else { ascending.len() };
    let data: Vec<Value> = page.of(listed.iter()).into_iter().filter_map(|number| show(*number)).collect();
    json!({ "data": data, "total_count": count })
}

/// The supplied object, or the one derived from its id, number and time of creation.
fn shown(shelf: &Shelf, number: u32, made: impl Fn(&str, u32, i64) -> Value) -> Option<Value> {
    let entry = shelf.get(number)?;
    match &entry.given {
        Some(given) => Some(Value::clone(given)),
        None => Some(made(&shelf.id(number)?, number, entry.created_at)),
    }
}

/// An object without a time of creation counts as the oldest.
fn entry(given: Value) -> Entry {
    let created_at = given["created_at"].as_i64().unwrap_or_default();
    Entry { created_at, organization: None, user: None, given: Some(Box::new(given)) }
}

fn id_of(given: &Value) -> String {
    given["id"].as_str().expect("an object with an id").to_owned()
}
