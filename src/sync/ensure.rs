//! One user, now: for the page that loads before its webhook has come.
//!
//! Whoever is here is shown; whoever is not is fetched from Clerk and taken in through the rules. However many ask for one
//! user at the same time, Clerk is asked once, and whoever stops waiting cancels nothing.

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

/// What all who ask for one user hear; none as long as it is not known.
type Answer = Option<Result<Option<Row>, Arc<CatchUpError>>>;

/// Users on their way. Cheap to clone.
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

    /// The row of a user; `None` if Clerk does not know it, or it is deleted. Needs a runtime.
    ///
    /// # Errors
    /// If the user is not here, and Clerk or the database cannot say more.
    pub async fn ensure(&self, id: &ClerkId) -> Result<Option<Row>, Arc<CatchUpError>> {
        let mut flight = self.join(id);
        let answer = flight.wait_for(Option::is_some).await;
        // Nobody has answered: the task that should have has panicked.
        answer
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or_else(|| Err(Arc::new(CatchUpError::Abandoned)))
    }

    /// Wait with those who wait already, or begin.
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

/// Takes a flight off the list, also if its task panics.
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
        // Or the deletion was faster.
        Ok(store.row(id).await?.and_then(Row::standing))
    }
}
