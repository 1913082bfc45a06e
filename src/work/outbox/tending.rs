//! What an operator does with messages that were not taken: have them tried again, or give them up. Many at once go in
//! small transactions.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::store::{Deed, MessageFilter, MessageState, Result, Store, StoredMessage};

/// Messages in one transaction.
const STEP: u32 = 2000;

/// Which messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    Ids(Vec<i64>),
    /// All that are dead of one sink.
    Sink(String),
    /// All that are dead.
    All,
}

impl Selection {
    /// The sink that is named, if one is.
    pub fn sink(&self) -> Option<&str> {
        match self {
            Self::Sink(sink) => Some(sink),
            Self::Ids(_) | Self::All => None,
        }
    }
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were meant, and are there.
    pub found: u64,
    /// Those of them that could be helped.
    pub done: u64,
    /// Deletions that were to be given up, and stay: whoever was told of a user has to hear that they are gone.
    pub deletions: u64,
}

/// Make dead messages due again; on a dry run only count them.
///
/// # Errors
/// If the database fails. What was done stays.
pub async fn retry(
    store: &dyn Store,
    selection: &Selection,
    dry_run: bool,
    now: DateTime<Utc>,
) -> Result<Tally> {
    each_step(store, selection, Deed::Retry, dry_run, now).await
}

/// Give up messages that are dead, or of those named also what waits; on a dry run only count them. Deletions stay.
///
/// # Errors
/// If the database fails. What was done stays.
pub async fn discard(
    store: &dyn Store,
    selection: &Selection,
    dry_run: bool,
    now: DateTime<Utc>,
) -> Result<Tally> {
    each_step(store, selection, Deed::Discard, dry_run, now).await
}

/// The names of all sinks that there are: of those that are configured, and of those that were, as long as anything waits
/// for them or they are paused. What waits is counted, which can take long.
///
/// # Errors
/// If the database fails.
pub async fn known_sinks(store: &dyn Store, configured: &[String]) -> Result<BTreeSet<String>> {
    let waited_for = store.outbox_depth().await?.into_iter().map(|depth| depth.sink);
    let paused = store.paused_sinks().await?.into_iter().map(|(sink, _)| sink);
    Ok(configured.iter().cloned().chain(waited_for).chain(paused).collect())
}

async fn each_step(
    store: &dyn Store,
    selection: &Selection,
    deed: Deed,
    dry_run: bool,
    now: DateTime<Utc>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let sink = match selection {
        Selection::Ids(ids) => {
            let mut ids = ids.clone();
            ids.sort_unstable();
            ids.dedup();
            for ids in ids.chunks(STEP as usize) {
                let these = MessageFilter { ids: Some(ids.to_vec()), ..MessageFilter::default() };
                let found = store.messages(&these, STEP).await?;
                step(store, &found, deed, dry_run, now, &mut tally).await?;
            }
            return Ok(tally);
        }
        Selection::Sink(sink) => Some(sink.clone()),
        Selection::All => None,
    };
    let mut filter = MessageFilter { sink, state: Some(MessageState::Dead), ..MessageFilter::default() };
    loop {
        let page = store.messages(&filter, STEP).await?;
        let Some(last) = page.last() else { return Ok(tally) };
        filter.after = Some(last.id);
        step(store, &page, deed, dry_run, now, &mut tally).await?;
    }
}

async fn step(
    store: &dyn Store,
    messages: &[StoredMessage],
    deed: Deed,
    dry_run: bool,
    now: DateTime<Utc>,
    tally: &mut Tally,
) -> Result<()> {
    tally.found += messages.len() as u64;
    if deed == Deed::Discard {
        tally.deletions += messages.iter().filter(|message| is_open_deletion(message)).count() as u64;
    }
    if dry_run {
        return Ok(());
    }
    let ids: Vec<i64> = messages.iter().map(|message| message.id).collect();
    tally.done += store.tend_messages(&ids, deed, now).await?;
    Ok(())
}

fn is_open_deletion(message: &StoredMessage) -> bool {
    message.kind.is_deletion() && matches!(message.state, MessageState::Pending | MessageState::Dead)
}
