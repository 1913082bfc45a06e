//! A handle to the users of a fake: changes them while it serves, and returns the events that Clerk would send.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Clock,
    directory::Directory,
    state::Shared,
    user::{Seed, User},
};

/// The users of a fake. Clones share the same users.
#[derive(Clone)]
pub struct Users {
    state: Shared,
    /// The id of the users' instance.
    instance: Arc<str>,
    clock: Clock,
}

/// The event that Clerk would post to a webhook.
#[derive(Clone, Debug)]
pub struct Event {
    /// The id of the event's user.
    pub user_id: String,
    /// JSON with its envelope. The times match the Backend API's.
    pub body: String,
}

impl Users {
    pub(super) fn new(state: Shared, instance: Arc<str>, clock: Clock) -> Self {
        Self { state, instance, clock }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// A new user signs up now: `user.created`.
    ///
    /// # Panics
    ///
    /// If ten million users have signed up before.
    pub fn create(&self) -> Event {
        let seed = self.with(Directory::create).expect("numbers are left");
        Event { user_id: seed.id(), body: seed.event("user.created", &self.instance) }
    }

    /// Change this user now: `user.updated`. `None` if there is no such user.
    pub fn update(&self, id: &str) -> Option<Event> {
        let seed = self.with(|everybody, now| everybody.update(id, now))?;
        Some(Event { user_id: seed.id(), body: seed.event("user.updated", &self.instance) })
    }

    /// Delete the user permanently now, including its memberships: `user.deleted`. `None` if there is no such user.
    pub fn delete(&self, id: &str) -> Option<Event> {
        let seed = self.state.lock().delete_user(id)?;
        let at = self.now().max(seed.updated_at);
        Some(Event { user_id: seed.id(), body: seed.deletion(at, &self.instance) })
    }

    /// The user as the Backend API shows it.
    pub fn get(&self, id: &str) -> Option<Value> {
        let seed = self.with(|everybody, _| everybody.get(id))?;
        serde_json::to_value(User::from(&seed)).ok()
    }

    /// All users' ids in order of creation.
    pub fn ids(&self) -> Vec<String> {
        let seeds: Vec<Seed> = self.with(|everybody, _| everybody.all().collect());
        seeds.iter().map(Seed::id).collect()
    }

    /// The number of users.
    pub fn len(&self) -> usize {
        self.with(|everybody, _| everybody.len())
    }

    /// Whether there are no users.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Read or change users at this time in Unix milliseconds.
    pub(super) fn with<T>(&self, what: impl FnOnce(&mut Directory, i64) -> T) -> T {
        let mut state = self.state.lock();
        what(&mut state.users, self.now())
    }

    fn now(&self) -> i64 {
        (self.clock)().timestamp_millis()
    }
}
