//! A handle to the users of a fake: what happens to them while it serves, and what Clerk would send about it.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Clock,
    directory::Directory,
    state::Shared,
    user::{Seed, User},
};

/// The users of a fake. Clones are the same users.
#[derive(Clone)]
pub struct Users {
    state: Shared,
    /// The id of theirs.
    instance: Arc<str>,
    clock: Clock,
}

/// What Clerk would post to a webhook.
#[derive(Clone, Debug)]
pub struct Event {
    /// Whom it is about.
    pub user_id: String,
    /// JSON with the envelope around it. The times agree with what the Backend API says.
    pub body: String,
}

impl Users {
    pub(super) fn new(state: Shared, instance: Arc<str>, clock: Clock) -> Self {
        Self { state, instance, clock }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Somebody signs up now: `user.created`.
    ///
    /// # Panics
    ///
    /// If ten million have signed up before.
    pub fn create(&self) -> Event {
        let seed = self.with(Directory::create).expect("there are numbers left");
        Event { user_id: seed.id(), body: seed.event("user.created", &self.instance) }
    }

    /// Something about this user changes now: `user.updated`. `None` if there is no such user.
    pub fn update(&self, id: &str) -> Option<Event> {
        let seed = self.with(|everybody, now| everybody.update(id, now))?;
        Some(Event { user_id: seed.id(), body: seed.event("user.updated", &self.instance) })
    }

    /// The user goes now, for ever, and the user's memberships too: `user.deleted`. `None` if there is no such user.
    pub fn delete(&self, id: &str) -> Option<Event> {
        let seed = self.state.lock().delete_user(id)?;
        let at = self.now().max(seed.updated_at);
        Some(Event { user_id: seed.id(), body: seed.deletion(at, &self.instance) })
    }

    /// As the Backend API shows the user.
    pub fn get(&self, id: &str) -> Option<Value> {
        let seed = self.with(|everybody, _| everybody.get(id))?;
        serde_json::to_value(User::from(&seed)).ok()
    }

    /// Everybody's id, in the order of creation.
    pub fn ids(&self) -> Vec<String> {
        let seeds: Vec<Seed> = self.with(|everybody, _| everybody.all().collect());
        seeds.iter().map(Seed::id).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.with(|everybody, _| everybody.len())
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Look at everybody, or change somebody, at this time in unix milliseconds.
    pub(super) fn with<T>(&self, what: impl FnOnce(&mut Directory, i64) -> T) -> T {
        let mut state = self.state.lock();
        what(&mut state.users, self.now())
    }

    fn now(&self) -> i64 {
        (self.clock)().timestamp_millis()
    }
}
