//! What a sink has to remember of a user to find them again in the other system: one short text, and nothing of the
//! person in it beyond what that system needs.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{super::patient, Refusal};
use crate::{
    model::ClerkId,
    store::{Store, StoreError},
};

/// What one sink remembers of one user, until that user's deletion is delivered.
#[async_trait]
pub trait Memory: Send + Sync {
    /// What was kept last.
    ///
    /// # Errors
    /// If nobody knows.
    async fn recall(&self) -> Result<Option<String>, Refusal>;

    /// Keep this in place of what was kept before. When it returns it lasts, also over a crash.
    ///
    /// # Errors
    /// If it may not last.
    async fn keep(&self, reference: &str) -> Result<(), Refusal>;
}

/// The memory that lasts: `outbox_recipients.reference`.
pub struct Recipient {
    pub store: Arc<dyn Store>,
    /// Transactions at a time, of all who ask.
    pub desks: Arc<Semaphore>,
    pub sink: String,
    pub clerk_id: ClerkId,
}

#[async_trait]
impl Memory for Recipient {
    async fn recall(&self) -> Result<Option<String>, Refusal> {
        let (store, sink, clerk_id) = (Arc::clone(&self.store), self.sink.clone(), self.clerk_id.clone());
        self.finish(async move { store.reference(&sink, &clerk_id).await }).await
    }

    async fn keep(&self, reference: &str) -> Result<(), Refusal> {
        let (store, sink, clerk_id) = (Arc::clone(&self.store), self.sink.clone(), self.clerk_id.clone());
        let reference = reference.to_owned();
        let kept =
            self.finish(async move { store.keep_reference(&sink, &clerk_id, &reference).await }).await?;
        if kept { Ok(()) } else { Err(Refusal::later("the user is no recipient of this sink")) }
    }
}

impl Recipient {
    /// In a task of its own: a sink may run out of time at any moment, a transaction is not to be cut off by that.
    async fn finish<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let desks = Arc::clone(&self.desks);
        let call = async move {
            let _desk = desks.acquire().await;
            patient(call).await
        };
        match tokio::spawn(call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                Err(Refusal::later(format!("what is known of the user cannot be read: {error}")))
            }
            Err(_) => Err(Refusal::later("what is known of the user cannot be read")),
        }
    }
}

/// A memory that ends with the process, for trying things out.
#[derive(Default)]
pub struct InMemory(Mutex<Option<String>>);

#[async_trait]
impl Memory for InMemory {
    async fn recall(&self) -> Result<Option<String>, Refusal> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn keep(&self, reference: &str) -> Result<(), Refusal> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reference.to_owned());
        Ok(())
    }
}
