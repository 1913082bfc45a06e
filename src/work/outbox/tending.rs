//! What an operator does with messages that were not taken: have them tried again, or give them up. Many at once go in
//! small transactions.

use chrono::{DateTime, Utc};

use crate::store::{MessageFilter, MessageState, Result, Store};

/// Messages in one transaction.
const STEP: u32 = 500;

/// Which messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    Ids(Vec<i64>),
    /// All that are dead of one sink.
    Sink(String),
    /// All that are dead.
    All,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were meant, and are there.
    pub found: u64,
    /// Those of them that could be helped.
    pub done: u64,
}

#[derive(Clone, Copy)]
enum Deed {
    Retry,
    Discard,
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
    each_step(store, selection, (!dry_run).then_some(Deed::Retry), now).await
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
    each_step(store, selection, (!dry_run).then_some(Deed::Discard), now).await
}

async fn each_step(
    store: &dyn Store,
    selection: &Selection,
    deed: Option<Deed>,
    now: DateTime<Utc>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let sink = match selection {
        Selection::Ids(ids) => {
            let mut ids = ids.clone();
            ids.sort_unstable();
            ids.dedup();
            for ids in ids.chunks(STEP as usize) {
                let mut found = Vec::with_capacity(ids.len());
                for id in ids {
                    found.extend(store.message(*id).await?.map(|(message, _)| message.id));
                }
                step(store, &found, deed, now, &mut tally).await?;
            }
            return Ok(tally);
        }
        Selection::Sink(sink) => Some(sink.clone()),
        Selection::All => None,
    };
    let mut filter = MessageFilter { sink, state: Some(MessageState::Dead), after: None };
    loop {
        let page = store.messages(&filter, STEP).await?;
        let Some(last) = page.last() else { return Ok(tally) };
        filter.after = Some(last.id);
        let ids: Vec<i64> = page.iter().map(|message| message.id).collect();
        step(store, &ids, deed, now, &mut tally).await?;
    }
}

async fn step(
    store: &dyn Store,
    ids: &[i64],
    deed: Option<Deed>,
    now: DateTime<Utc>,
    tally: &mut Tally,
) -> Result<()> {
    tally.found += ids.len() as u64;
    tally.done += match deed {
        None => 0,
        Some(Deed::Retry) => store.retry_messages(ids, now).await?,
        Some(Deed::Discard) => store.discard_messages(ids, now).await?,
    };
    Ok(())
}
