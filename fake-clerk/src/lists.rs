//! A handle to the other lists of a fake: roles, plans, subscriptions and similar objects.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{query::Page, state::Shared};

/// The paths of all lists.
const PATHS: [&str; 13] = [
    "billing/plans",
    "billing/statements",
    "billing/subscription_items",
    "enterprise_connections",
    "invitations",
    "organization_domains",
    "organization_invitations",
    "organization_permissions",
    "organization_roles",
    "role_sets",
    "saml_connections",
    "sessions",
    "waitlist_entries",
];

/// The lists of a fake. Clones share the same lists.
#[derive(Clone)]
pub struct Lists(pub(super) Shared);

impl Lists {
    /// Add an object to the list at this path, such as `billing/plans`, or replace the object with its id. It is shown unchanged,
    /// in the order in which objects were added.
    ///
    /// # Panics
    ///
    /// If it has no `id`, or Clerk has no such list.
    pub fn put(&self, path: &str, object: Value) {
        assert!(PATHS.contains(&path), "Clerk has no list at {path}");
        self.0.lock().shown.lists.entry(path.to_owned()).or_default().put(object);
    }

    /// Remove an object from a list. Returns the object, or `None` if it does not exist.
    pub fn remove(&self, path: &str, id: &str) -> Option<Value> {
        self.0.lock().shown.lists.get_mut(path)?.remove(id)
    }

    /// Show this object at a path for a single object, such as `users/user_1/billing/subscription`; `None` removes it.
    pub fn put_one(&self, path: &str, object: Option<Value>) {
        let ones = &mut self.0.lock().shown.ones;
        match object {
            Some(object) => ones.insert(path.to_owned(), object),
            None => ones.remove(path),
        };
    }
}

/// The objects by path.
#[derive(Default)]
pub(super) struct Shown {
    lists: HashMap<String, List>,
    ones: HashMap<String, Value>,
}

impl Shown {
    /// The contents of a path: a page of a list, restricted to `owner` if given, or a single object. `None` if there are none.
    pub(super) fn at(&self, path: &str, page: &Page, owner: Option<&str>) -> Option<Value> {
        if let Some(one) = self.ones.get(path) {
            return Some(one.clone());
        }
        if !PATHS.contains(&path) {
            let (list, id) = path.rsplit_once('/')?;
            let list = self.lists.get(list)?;
            return list.objects.get(list.places.get(id)?).cloned();
        }
        let all = self.lists.get(path).into_iter().flat_map(|list| list.objects.values());
        let listed: Vec<&Value> =
            all.filter(|object| owner.is_none_or(|owner| object["user_id"] == owner)).collect();
        let data = page.of(listed.iter().copied());
        Some(json!({ "data": data, "total_count": listed.len() }))
    }
}

/// Objects in the order in which they were added.
#[derive(Default)]
struct List {
    objects: BTreeMap<u64, Value>,
    places: HashMap<String, u64>,
    /// The number of objects ever added.
    came: u64,
}

impl List {
    fn put(&mut self, object: Value) {
        let id = object["id"].as_str().expect("an object with an id").to_owned();
        let place = *self.places.entry(id).or_insert_with(|| {
            self.came += 1;
            self.came
        });
        self.objects.insert(place, object);
    }

    fn remove(&mut self, id: &str) -> Option<Value> {
        self.objects.remove(&self.places.remove(id)?)
    }
}
