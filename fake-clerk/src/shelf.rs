//! Many objects of one kind, each with an id, in order of creation.
//!
//! Small and quick on purpose, so that a million fit. A derived object is a number from which the rest follows; only supplied
//! objects are stored whole. A page is a slice of numbers that are already in order.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    mem,
};

use serde_json::Value;

use super::id::{id, number_in};

pub(super) struct Shelf {
    /// The prefix of derived ids.
    prefix: &'static str,
    /// By number; `None` for an object that was removed, or whose id is only referenced.
    entries: Vec<Option<Entry>>,
    /// The numbers of supplied ids.
    numbers: HashMap<String, u32>,
    /// By time of creation, and by id within a millisecond.
    orders: HashMap<Scope, Vec<u32>>,
}

pub(super) struct Entry {
    /// In Unix milliseconds.
    pub(super) created_at: i64,
    /// The number of its organization.
    pub(super) organization: Option<u32>,
    /// The number of its user.
    pub(super) user: Option<u32>,
    /// The object itself, if it was supplied.
    pub(super) given: Option<Box<Value>>,
}

/// The owner of a list.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    All,
    Organization(u32),
    User(u32),
}

impl Shelf {
    /// With these derived objects, whose numbers begin at 0.
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

    /// The number of the object with this id.
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

    /// The numbers of all objects, in order.
    pub(super) fn all(&self, scope: Scope) -> &[u32] {
        self.orders.get(&scope).map_or(&[], Vec::as_slice)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.all(Scope::All).iter().filter_map(|number| self.id(*number)).collect()
    }

    /// Reserve a number for this id, whether or not its object exists yet.
    pub(super) fn name(&mut self, id: &str) -> u32 {
        if let Some(number) = self.known(id) {
            return number;
        }
        let number = u32::try_from(self.entries.len()).expect("memory runs out before numbers do");
        self.entries.push(None);
        self.numbers.insert(id.to_owned(), number);
        number
    }

    /// Add an object, or replace the one with this id.
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

    /// Derived ids are slow to compute and hardly ever decide the order, so they come second.
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
