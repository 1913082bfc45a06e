//! The Clerk instance that events may come from: the one that the stored users belong to.
//!
//! A Clerk application has an instance for development and one for production, and both can send to the same address.
//! Their users must not be mixed in one table: reconciling with one instance would erase the users of the other. The
//! first event, or the key of the first backfill, determines the instance. The database stores it for all replicas.
//!
//! clerk-sync asks the database at most once per [`BELIEVED`], and also whenever an event names another instance. A run
//! with `--change-instance` waits that long, so that every replica learns of the change.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::Clock;
use crate::store::{self, ErrorKind, Store, StoreError};

/// How long a process relies on the database's last answer.
pub const BELIEVED: Duration = Duration::from_secs(5);

/// How long the database has to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long to wait before asking it again.
const RETRY: Duration = Duration::from_millis(100);

/// How often refused events are noted in the database.
const NOTED: Duration = Duration::from_secs(1);

/// The instances in the examples that Clerk publishes, and that "Send Example" in its Dashboard sends. No such
/// instances exist, so these events are treated as if they named no instance.
const EXAMPLES: [&str; 2] = ["ins_123", "ins_2g7np7Hrk0SN6kj5EDMLDaKNL0S"];

/// The maximum length of an instance id, in bytes. Clerk's ids have 31.
const MAX_ID_BYTES: usize = 64;

/// `CLERK_INSTANCE_ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// Not set: the first instance seen.
    #[default]
    FirstSeen,
    Only(String),
    /// `any`: all instances, on purpose.
    Any,
}

impl Pin {
    pub fn of(setting: Option<&str>) -> Self {
        match setting {
            None => Self::FirstSeen,
            Some("any") => Self::Any,
            Some(id) => Self::Only(id.to_owned()),
        }
    }

    /// The pinned instance, if there is one.
    pub fn only(&self) -> Option<&str> {
        if let Self::Only(id) = self { Some(id) } else { None }
    }
}

/// An instance other than the one that events may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    pub instance: String,
    /// The instance that the stored users belong to.
    pub known: String,
}

/// Decides whether an event is accepted, by its instance.
pub struct Gate {
    pin: Pin,
    store: Arc<dyn Store>,
    clock: Clock,
    known: RwLock<Option<Known>>,
    /// Held by the caller that asks the database.
    asking: AsyncMutex<()>,
    noted: Mutex<Option<(String, Instant)>>,
}

/// The database's answer, and when it was asked.
#[derive(Clone)]
struct Known {
    instance: Arc<str>,
    at: Instant,
}

impl Gate {
    pub fn new(pin: Pin, store: Arc<dyn Store>, clock: Clock) -> Self {
        let (known, asking, noted) = (RwLock::default(), AsyncMutex::default(), Mutex::default());
        Self { pin, store, clock, known, asking, noted }
    }

    /// Whether an event of this instance is accepted without asking the database. `false` does not mean that it is
    /// refused.
    pub fn opens_at_once(&self, instance: Option<&str>) -> bool {
        match (&self.pin, instance) {
            (Pin::Any, _) | (_, None) => true,
            (Pin::Only(pinned), Some(instance)) => instance == pinned || EXAMPLES.contains(&instance),
            (Pin::FirstSeen, Some(instance)) => {
                !is_instance(instance)
                    || self.known().is_some_and(|known| *known.instance == *instance && known.is_believed())
            }
        }
    }

    /// Whether an event of this instance may be put into the stream. A worker checks it again, because the receiver may
    /// have no database to ask. `false` does not mean that it is refused.
    pub fn opens_for_the_stream(&self, instance: Option<&str>) -> bool {
        let is_unknown = || self.known().is_none_or(|known| instance == Some(&*known.instance));
        self.opens_at_once(instance) || (self.pin == Pin::FirstSeen && is_unknown())
    }

    /// Whether an event of this instance is accepted. Remembers the first instance. If the database does not answer, it
    /// is asked again until the deadline.
    ///
    /// # Errors
    /// If the database has not answered by then. No answer is needed for an instance that was accepted before.
    pub async fn ask(&self, instance: &str, deadline: Instant) -> store::Result<Result<(), Stranger>> {
        let began = Instant::now();
        let known = loop {
            if let Some(pinned) = self.pin.only() {
                break pinned.into();
            }
            let learnt = timeout_at(deadline, self.learn(instance, began)).await;
            match learnt.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable))) {
                Ok(known) => break known,
                Err(error)
                    if matches!(error.kind, ErrorKind::Schema | ErrorKind::Broken)
                        || Instant::now() + RETRY >= deadline =>
                {
                    return Err(error);
                }
                Err(_) => sleep(RETRY).await,
            }
        };
        if *known == *instance {
            return Ok(Ok(()));
        }
        let stranger = Stranger { instance: shown(instance), known: known.as_ref().to_owned() };
        self.note(&stranger).await;
        Ok(Err(stranger))
    }

    /// The instance that the database remembers; this one if it is the first. An answer that another caller got after
    /// `since` is used too.
    async fn learn(&self, instance: &str, since: Instant) -> store::Result<Arc<str>> {
        let _one_at_a_time = self.asking.lock().await;
        let before = self.known();
        if let Some(known) = before.as_ref().filter(|known| known.at >= since) {
            return Ok(Arc::clone(&known.instance));
        }
        let at = Instant::now();
        let asked = timeout(ANSWER_WITHIN, self.store.claim_instance(instance)).await;
        let known = match (asked.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable))), before) {
            (Ok(instance), _) => Known { instance: instance.into(), at },
            // The instance was accepted before. Callers that waited meanwhile use this answer too.
            (Err(_), Some(known)) if *known.instance == *instance => Known { at: Instant::now(), ..known },
            (Err(error), _) => return Err(error),
        };
        let instance = Arc::clone(&known.instance);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(instance)
    }

    /// Note the refusal for `doctor`, and log what it means.
    async fn note(&self, stranger: &Stranger) {
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = noted.as_ref().is_some_and(|(instance, _)| *instance == stranger.instance);
            if is_known && noted.as_ref().is_some_and(|(_, at)| at.elapsed() < NOTED) {
                return;
            }
            *noted = Some((stranger.instance.clone(), Instant::now()));
            if !is_known {
                tracing::error!(
                    instance = stranger.instance,
                    known = stranger.known,
                    "events of another Clerk instance arrive and are refused: remove that instance's endpoint, or see the \
                     runbook (ClerkSyncOtherInstance) if users are to come from that instance from now on"
                );
            }
        }
        let note = self.store.note_refused(&stranger.instance, (self.clock)());
        if !matches!(timeout(ANSWER_WITHIN, note).await, Ok(Ok(()))) {
            tracing::debug!("clerk-sync could not record that it refused events");
        }
    }

    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Known {
    fn is_believed(&self) -> bool {
        self.at.elapsed() < BELIEVED
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// Whether this can be the id of a Clerk instance, and is not from an example.
fn is_instance(id: &str) -> bool {
    id.starts_with("ins_") && shown(id) == id && !EXAMPLES.contains(&id)
}

/// An instance id that is safe to show: the body of an event may contain anything in its place.
fn shown(id: &str) -> String {
    let in_ids = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if id.len() <= MAX_ID_BYTES && id.bytes().all(in_ids) { id.to_owned() } else { "(no id)".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_and_what_is_no_id_count_as_no_instance() {
        for id in ["ins_bar", "ins_2fakefakefakefakefakefakefa"] {
            assert!(is_instance(id), "{id}");
        }
        for id in EXAMPLES.into_iter().chain(["", "evt_user_1", "ins_\u{202e}", "ins_a b"]) {
            assert!(!is_instance(id), "{id}");
        }
    }
}
