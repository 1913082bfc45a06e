//! The reference that a sink needs to find a user again in the other system: one short text, with no personal data beyond what
//! that system requires.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{super::patient, Refusal};
use crate::{
    entity::{USER, user},
    model::{ClerkId, Selection},
    store::{RowFilter, Store, StoreError},
};

/// An upper bound for the number of users that share one address.
const MOST_HOLDERS: u32 = 16;

/// The reference that one sink keeps for one user, until that user's deletion is delivered.
#[async_trait]
pub trait Memory: Send + Sync {
    /// The reference kept last.
    ///
    /// # Errors
    /// If it cannot be determined.
    async fn recall(&self) -> Result<Option<String>, Refusal>;

    /// Replace the reference. Once this returns, the reference survives a crash.
    ///
    /// # Errors
    /// If it may not survive.
    async fn keep(&self, reference: &str) -> Result<(), Refusal>;

    /// The ids of users that have this address in clerk-sync's table now, ignoring case, and are not about to be erased.
    ///
    /// # Errors
    /// If they cannot be determined.
    async fn holders(&self, address: &str) -> Result<Vec<String>, Refusal>;
}

/// The persistent memory: `outbox_recipients.reference`. References from another address of the sink belong to another system:
/// they are kept alongside, each prefixed with its address, until the sink returns there.
pub struct Recipient {
    pub store: Arc<dyn Store>,
    /// Limits concurrent transactions, shared by all callers.
    pub desks: Arc<Semaphore>,
    pub sink: String,
    pub clerk_id: ClerkId,
    /// The sink's address, as a hash.
    pub address: String,
    /// Whether the sink also received the user at another address.
    pub is_elsewhere: bool,
}

#[async_trait]
impl Memory for Recipient {
    async fn recall(&self) -> Result<Option<String>, Refusal> {
        let Some(kept) = self.kept().await? else { return Ok(None) };
        let here: Vec<&str> =
            sections(&kept).filter(|(address, _)| self.is_here(address)).map(|(_, text)| text).collect();
        Ok(Some(here.join(" ")).filter(|text| !text.is_empty()))
    }

    async fn keep(&self, reference: &str) -> Result<(), Refusal> {
        let mut reference = format!("{}/{reference}", self.address);
        if self.is_elsewhere {
            for (address, text) in sections(&self.kept().await?.unwrap_or_default()) {
                if !self.is_here(address) {
                    reference = format!("{reference}|{address}/{text}");
                }
            }
        }
        let (store, sink, clerk_id) = (Arc::clone(&self.store), self.sink.clone(), self.clerk_id.clone());
        let kept =
            self.finish(async move { store.keep_reference(&sink, &clerk_id, &reference).await }).await?;
        if kept { Ok(()) } else { Err(Refusal::later("the user is not a recipient of this sink")) }
    }

    async fn holders(&self, address: &str) -> Result<Vec<String>, Refusal> {
        let store = Arc::clone(&self.store);
        let filter = RowFilter { with: Some((user::EMAIL, address.to_owned())), after: None };
        let holders = async move {
            let ids: Vec<ClerkId> = store
                .rows(&USER, &filter, MOST_HOLDERS)
                .await?
                .into_iter()
                .map(|row| row.object.clerk_id)
                .collect();
            let known = store.known(&ids, &Selection::default()).await?;
            let stays = |id: &ClerkId| {
                known.registers.get(id).is_none_or(|known| !known.deleted && known.held_until.is_none())
            };
            Ok(ids.iter().filter(|id| stays(id)).map(|id| id.as_str().to_owned()).collect())
        };
        self.finish(holders).await
    }
}

impl Recipient {
    async fn kept(&self) -> Result<Option<String>, Refusal> {
        let (store, sink, clerk_id) = (Arc::clone(&self.store), self.sink.clone(), self.clerk_id.clone());
        self.finish(async move { store.reference(&sink, &clerk_id).await }).await
    }

    /// Whether a reference from this address belongs to the system at the sink's current address.
    fn is_here(&self, address: &str) -> bool {
        !self.is_elsewhere || address.is_empty() || address == self.address
    }

    /// Run in a separate task: a sink may time out at any moment, which must not cut off a transaction.
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
                Err(Refusal::later(format!("the user's stored data cannot be accessed: {error}")))
            }
            Err(_) => Err(Refusal::later("the user's stored data cannot be accessed")),
        }
    }
}

/// References by address; the first version stored no address.
fn sections(kept: &str) -> impl Iterator<Item = (&str, &str)> {
    kept.split('|').map(|section| section.split_once('/').unwrap_or(("", section)))
}

/// A memory that ends with the process, for tests of a sink.
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

    async fn holders(&self, _: &str) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}
