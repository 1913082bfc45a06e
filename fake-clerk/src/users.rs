//! A handle to the users of a fake: what happens to them while it serves, and what Clerk would send about it.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    Clock,
    directory::Directory,
    user::{Seed, User},
};

/// The users of a fake. Clones are the same users.
#[derive(Clone)]
pub struct Users {
    everybody: Arc<Mutex<Directory>>,
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
    pub(super) fn new(count: u32, began: DateTime<Utc>, instance: Arc<str>, clock: Clock) -> Self {
        let everybody = Directory::new(count, milliseconds(began));
        Self { everybody: Arc::new(Mutex::new(everybody)), instance, clock }
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

    /// The user goes now, for ever: `user.deleted`. `None` if there is no such user.
    pub fn delete(&self, id: &str) -> Option<Event> {
        let (seed, now) = self.with(|everybody, now| Some((everybody.delete(id)?, now)))?;
        Some(Event { user_id: seed.id(), body: seed.deletion(now.max(seed.updated_at), &self.instance) })
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
        let mut everybody = self.everybody.lock().unwrap_or_else(PoisonError::into_inner);
        what(&mut everybody, milliseconds((self.clock)()))
    }
}

fn milliseconds(at: DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}
