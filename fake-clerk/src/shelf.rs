//! Many things of one kind, each with an id, in the order of their creation.
//!
//! Small and quick on purpose, so that there can be a million: what was made is a number from which the rest follows,
//! only what was given is kept as it is; and a page is a slice of numbers that are in order already.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    mem,
};

use serde_json::Value;

use super::id::{id, number_in};

pub(super) struct Shelf {
    /// Of the ids that it makes.
    prefix: &'static str,
    /// By number; `None` is what has gone, or was only named.
    entries: Vec<Option<Entry>>,
    /// Of ids that were given.
    numbers: HashMap<String, u32>,
    /// By creation, and in the same millisecond by id.
    orders: HashMap<Scope, Vec<u32>>,
}

pub(super) struct Entry {
    /// In unix milliseconds.
    pub(super) created_at: i64,
    /// The number of the organization that it belongs to.
    pub(super) organization: Option<u32>,
    /// The number of the user whom it belongs to.
    pub(super) user: Option<u32>,
    /// What it is, unless it was made.
    pub(super) given: Option<Box<Value>>,
}

/// What a list is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    All,
    Organization(u32),
    User(u32),
}

impl Shelf {
    /// With these, whose numbers begin with 0.
    pub(super) fn made(prefix: &'static str, entries: impl Iterator<Item = Entry>) -> Self {
        let entries = entries.map(Some).collect();
        let mut shelf = Self { prefix, entries, numbers: HashMap::new(), orders: HashMap::new() };
        let mut orders: HashMap<Scope, Vec<u32>> = HashMap::new();
        for (number, entry) in (0..).zip(&shelf.entries) {
            for scope in entry.iter().flat_map(Entry::scopes) {
                orders.entry(scope).or_default().push(number);
            }
        }
        for order in orders.values_mut() {
            order.sort_by(|one, other| shelf.compare(*one, *other));
        }
        shelf.orders = orders;
        shelf
    }

    pub(super) fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)?.as_ref()
    }

    /// The number of what is here under this id.
    pub(super) fn number(&self, id: &str) -> Option<u32> {
        self.known(id).filter(|number| self.get(*number).is_some())
    }

    pub(super) fn id(&self, number: u32) -> Option<String> {
        let entry = self.get(number)?;
        match &entry.given {
            Some(given) => given["id"].as_str().map(ToOwned::to_owned),
            None => Some(id(self.prefix, entry.created_at, number, 0)),
        }
    }

    /// The numbers of what is here, in order.
    pub(super) fn all(&self, scope: Scope) -> &[u32] {
        self.orders.get(&scope).map_or(&[], Vec::as_slice)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.all(Scope::All).iter().filter_map(|number| self.id(*number)).collect()
    }

    /// The number of this id from now on, whether or not there is anything under it yet.
    pub(super) fn name(&mut self, id: &str) -> u32 {
        if let Some(number) = self.known(id) {
            return number;
        }
        let number = u32::try_from(self.entries.len()).expect("memory runs out before numbers do");
        self.entries.push(None);
        self.numbers.insert(id.to_owned(), number);
        number
    }

    /// Add, or replace what is here under this id.
    pub(super) fn put(&mut self, id: &str, entry: Entry) {
        let number = self.name(id);
        self.remove(&[number]);
        let scopes: Vec<Scope> = entry.scopes().collect();
        self.entries[number as usize] = Some(entry);
        for scope in scopes {
            let mut order = mem::take(self.orders.entry(scope).or_default());
            let place = order.partition_point(|other| self.compare(*other, number).is_lt());
            order.insert(place, number);
            self.orders.insert(scope, order);
        }
    }

    pub(super) fn remove(&mut self, numbers: &[u32]) {
        let mut scopes = HashSet::new();
        for number in numbers {
            let gone = self.entries.get_mut(*number as usize).and_then(Option::take);
            scopes.extend(gone.iter().flat_map(Entry::scopes));
        }
        for scope in scopes {
            if let Some(order) = self.orders.get_mut(&scope) {
                order.retain(|number| self.entries[*number as usize].is_some());
            }
        }
    }

    fn known(&self, id: &str) -> Option<u32> {
        number_in(self.prefix, id)
            .filter(|number| self.id(*number).is_some_and(|made| made == id))
            .or_else(|| self.numbers.get(id).copied())
    }

    /// Ids of what was made take a while to make, and hardly ever decide.
    fn compare(&self, one: u32, other: u32) -> Ordering {
        let created_at = |number| self.get(number).map(|entry| entry.created_at);
        created_at(one).cmp(&created_at(other)).then_with(|| self.id(one).cmp(&self.id(other)))
    }
}

impl Entry {
    fn scopes(&self) -> impl Iterator<Item = Scope> + use<> {
        let (organization, user) = (self.organization, self.user);
        [Some(Scope::All), organization.map(Scope::Organization), user.map(Scope::User)].into_iter().flatten()
    }
}
