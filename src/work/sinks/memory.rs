//! What a sink has to remember of a user to find them again in the other system: one short text, and nothing of the
//! person in it beyond what that system needs.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{super::patient, Refusal};
use crate::{
    entity::{USER, user},
    model::{ClerkId, Selection},
    store::{RowFilter, Store, StoreError},
};

/// More users than ever have one address.
const MOST_HOLDERS: u32 = 16;

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

    /// The ids of the users who have this address here now, in any case of its letters, and are not about to be erased.
    ///
    /// # Errors
    /// If nobody knows.
    async fn holders(&self, address: &str) -> Result<Vec<String>, Refusal>;
}

/// The memory that lasts: `outbox_recipients.reference`. What was kept while the sink was at another address is another
/// system's: it stands beside, each behind the address that it is of, until the sink is there again.
pub struct Recipient {
    pub store: Arc<dyn Store>,
    /// Transactions at a time, of all who ask.
    pub desks: Arc<Semaphore>,
    pub sink: String,
    pub clerk_id: ClerkId,
    /// Where the sink is, as a hash.
    pub address: String,
    /// Whether it was told of the user at another address as well.
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
        if kept { Ok(()) } else { Err(Refusal::later("the user is no recipient of this sink")) }
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

    /// Whether what was kept at this address is of the system that is told now.
    fn is_here(&self, address: &str) -> bool {
        !self.is_elsewhere || address.is_empty() || address == self.address
    }

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

/// What was kept, by address; the first version named none.
fn sections(kept: &str) -> impl Iterator<Item = (&str, &str)> {
    kept.split('|').map(|section| section.split_once('/').unwrap_or(("", section)))
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

    async fn holders(&self, _: &str) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}
