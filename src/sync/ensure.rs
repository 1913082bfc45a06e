//! Fetch one user now, for a page that loads before the user's webhook has arrived.
//!
//! A stored user is returned; any other is fetched from Clerk and imported through the rules. Concurrent requests
//! for the same user cause one request to Clerk. A caller that stops waiting does not cancel it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Semaphore, watch};

use super::catch_up::{CatchUp, CatchUpError};
use crate::{
    clerk::api::Persistence,
    model::{ClerkId, Selection, Source},
    store::Row,
    telemetry::Request,
};

/// The answer for all callers that ask for one user; `None` until it is known.
type Answer = Option<Result<Option<Row>, Arc<CatchUpError>>>;

/// The lookups in progress. Cheap to clone.
#[derive(Clone)]
pub struct Ensure(Arc<Inner>);

struct Inner {
    context: CatchUp,
    writers: Semaphore,
    flights: Mutex<HashMap<ClerkId, watch::Receiver<Answer>>>,
}

impl Ensure {
    pub fn new(context: CatchUp) -> Self {
        let writers = Semaphore::new(context.store.writers());
        Self(Arc::new(Inner { context, writers, flights: Mutex::default() }))
    }

    /// The row of a user; `None` if Clerk does not know the user, or the user is deleted. Needs a runtime.
    ///
    /// # Errors
    /// If the user is not stored, and Clerk or the database cannot answer.
    pub async fn ensure(&self, id: &ClerkId) -> Result<Option<Row>, Arc<CatchUpError>> {
        let mut flight = self.join(id);
        let answer = flight.wait_for(Option::is_some).await;
        // No answer: the task that should have sent it has panicked.
        answer
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or_else(|| Err(Arc::new(CatchUpError::Abandoned)))
    }

    /// Join a lookup in progress, or start one.
    fn join(&self, id: &ClerkId) -> watch::Receiver<Answer> {
        let mut flights = self.0.flights();
        if let Some(flight) = flights.get(id) {
            return flight.clone();
        }
        let (land, flight) = watch::channel(None);
        flights.insert(id.clone(), flight.clone());
        let (inner, id) = (Arc::clone(&self.0), id.clone());
        tokio::spawn(Request::inherit(async move {
            let _landing = Landing { inner: &inner, id: &id };
            let answer = inner.find(&id).await.map_err(Arc::new);
            land.send_replace(Some(answer));
        }));
        flight
    }
}

/// Removes a lookup from the list, even if its task panics.
struct Landing<'a> {
    inner: &'a Inner,
    id: &'a ClerkId,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.inner.flights().remove(self.id);
    }
}

impl Inner {
    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<ClerkId, watch::Receiver<Answer>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, id: &ClerkId) -> Result<Option<Row>, CatchUpError> {
        let store = &self.context.store;
        if let Some(row) = store.row(id).await? {
            return Ok(row.standing());
        }
        let known = store.known(std::slice::from_ref(id), &Selection::default()).await?;
        if known.registers.get(id).is_some_and(|register| register.deleted) {
            return Ok(None);
        }
        self.context.check_instance(Persistence::INTERACTIVE, false).await?;
        let reading = self.context.reading(Source::Api, id.entity());
        let Some(found) = self.context.api.one(id, &reading, Persistence::INTERACTIVE).await? else {
            return Ok(None);
        };
        let counts = self.context.take_in(vec![found], &self.writers).await?;
        if let Some(left_out) = counts.reasons.into_iter().next() {
            return Err(self.context.api.unintelligible(&left_out.reason).into());
        }
        // `None` if a deletion came first.
        Ok(store.row(id).await?.and_then(Row::standing))
    }
}
