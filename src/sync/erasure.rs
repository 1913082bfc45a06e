//! Erasures that do not come as a webhook: asked for by hand, due because the time is over for which they were held back,
//! or done once already and lost with a backup that was restored.
//!
//! All of them are deliveries like any other and go through [`apply`](mod@super::apply), which alone decides, under the
//! register's lock. Asking twice does no harm.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Clock, Rules, apply};
use crate::{
    entity::USER,
    model::{Change, ClerkId, Content, Delivery, EraseIf, News, Outcome, Selection, Source, Version},
    store::{ErrorKind, Result, Store, StoreError, Tombstone},
};

/// Users erased in one transaction.
const PAGE: u32 = 500;

/// How long one page may take.
const PAGE_TIME: Duration = Duration::from_mins(1);

/// What became of a user whose erasure was asked for, or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing is left here.
    Erased,
    /// The row is marked as deleted, and erased then.
    Held(DateTime<Utc>),
    /// Erased, but for the row: the database refuses every way, and is asked again without end.
    Resists,
    /// There was nobody; a tombstone keeps them out from now on.
    Unknown,
    /// Done before.
    Gone,
    /// The deletion that was held back is taken back.
    Kept,
    /// No deletion is held back.
    NotHeld,
}

/// News of a user that did not come as a webhook.
pub(super) fn delivery(
    clerk_id: ClerkId,
    news: News,
    source: Source,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Delivery {
    let milliseconds = at.timestamp_millis();
    let content = Content::Change(Change {
        clerk_id: clerk_id.clone(),
        version: Version { version: milliseconds, event_at: milliseconds, tie: String::new() },
        news,
        actor: None,
    });
    Delivery::without_webhook(clerk_id, source, at, now, content)
}

/// Erase a user, or hold the erasure back if that is wanted, as if Clerk had deleted them now.
///
/// # Errors
/// If the database is not available.
pub async fn erase(store: &dyn Store, id: &ClerkId, rules: &Rules, clock: &Clock) -> Result<Fate> {
    ask(store, id, News::Delete, rules, clock).await
}

/// Erase a user whose erasure is held back.
///
/// # Errors
/// If the database is not available.
pub async fn erase_now(store: &dyn Store, id: &ClerkId, rules: &Rules, clock: &Clock) -> Result<Fate> {
    ask(store, id, News::Erase(EraseIf::Held), rules, clock).await
}

/// Take back a deletion that is held back. Whether Clerk still knows the user is for the caller to ask.
///
/// # Errors
/// If the database is not available.
pub async fn cancel(store: &dyn Store, id: &ClerkId, rules: &Rules, clock: &Clock) -> Result<Fate> {
    ask(store, id, News::Keep, rules, clock).await
}

async fn ask(store: &dyn Store, id: &ClerkId, news: News, rules: &Rules, clock: &Clock) -> Result<Fate> {
    let now = clock();
    let wanted = news.clone();
    let before = store.known(std::slice::from_ref(id), &Selection::default()).await?;
    let delivery = delivery(id.clone(), news, Source::Cli, now, now);
    let outcome = apply_all(store, std::slice::from_ref(&delivery), rules, now).await.pop();
    let outcome = outcome.unwrap_or_else(|| Err(StoreError::new(ErrorKind::Broken)))?;
    let after = store.known(std::slice::from_ref(id), &Selection::default()).await?;
    let held = after.registers.get(id).and_then(|register| register.held_until);
    let was_known = before.registers.contains_key(id) || before.objects.contains_key(id);
    let is_deleted = after.registers.get(id).is_some_and(|register| register.deleted);
    Ok(match (outcome, held) {
        (Outcome::Parked, _) => Fate::Resists,
        (Outcome::Applied, _) if matches!(wanted, News::Keep) => Fate::Kept,
        (_, Some(until)) => Fate::Held(until),
        (Outcome::Applied, None) if was_known => Fate::Erased,
        (Outcome::Applied, None) => Fate::Unknown,
        (_, None) if is_deleted => Fate::Gone,
        (_, None) => Fate::NotHeld,
    })
}

/// Erase everybody whose time is over, and whoever cannot be erased now does not hold up the others; returns how many.
///
/// # Errors
/// If anybody could not be erased, or the database is not available. What is left is due at the next turn.
pub async fn release_due(store: &dyn Store, rules: &Rules, clock: &Clock) -> Result<u64> {
    let (mut released, mut trouble) = (0, None);
    let mut after: Option<ClerkId> = None;
    loop {
        let now = clock();
        let due = store.held_due(now, after.as_ref(), PAGE).await?;
        let Some(last) = due.last() else { return trouble.map_or(Ok(released), Err) };
        after = Some(last.clone());
        let deliveries: Vec<Delivery> = due
            .into_iter()
            .map(|id| delivery(id, News::Erase(EraseIf::TimeIsOver), Source::Retention, now, now))
            .collect();
        for result in apply_all(store, &deliveries, rules, now).await {
            match result {
                Ok(Outcome::Applied | Outcome::Parked) => released += 1,
                Ok(_) => {}
                Err(error) => trouble = Some(error),
            }
        }
    }
}

/// A line of the list of erased users, which is kept apart from the backups.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    clerk_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erased_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_until: Option<DateTime<Utc>>,
}

/// The last line of such a list. Without it a list was cut off.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// How many users the lines before it name.
    users: u64,
}

/// Call `write` with a line for everybody who was erased since, and whose erasure is held back; and at last with one that
/// says how many they are.
///
/// # Errors
/// If the database is not available, or whatever `write` fails with.
pub async fn export<E: From<StoreError>>(
    store: &dyn Store,
    since: DateTime<Utc>,
    mut write: impl FnMut(String) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (mut after, mut users): (Option<ClerkId>, u64) = (None, 0);
    loop {
        let page = store.tombstones(since, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else {
            return write(serde_json::to_string(&End { users }).unwrap_or_default());
        };
        after = Some(last.clerk_id.clone());
        users += page.len() as u64;
        for Tombstone { clerk_id, erased_at, held_until } in page {
            let line = Line { clerk_id: clerk_id.to_string(), erased_at, held_until };
            write(serde_json::to_string(&line).unwrap_or_default())?;
        }
    }
}

/// Why a list cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListTrouble {
    #[error("line {0} is no line of `clerk-sync erase export`")]
    Line(usize),
    #[error("it is cut off: it does not end with how many users it names")]
    CutOff,
}

/// Read such a list, or several that were put together.
///
/// # Errors
/// If anything in it is not a line of such a list, or lines are missing.
pub fn read_list(text: &str) -> std::result::Result<Vec<Tombstone>, ListTrouble> {
    let read = |line: &str| {
        let Line { clerk_id, erased_at, held_until } = serde_json::from_str(line).ok()?;
        let is_one = erased_at.is_some() != held_until.is_some();
        is_one.then_some(Tombstone { clerk_id: ClerkId::new(&USER, clerk_id)?, erased_at, held_until })
    };
    let (mut list, mut open, mut ended) = (Vec::new(), 0, false);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if let Ok(End { users }) = serde_json::from_str(line) {
            ended = users == open;
            if !ended {
                return Err(ListTrouble::CutOff);
            }
            open = 0;
        } else {
            list.push(read(line).ok_or(ListTrouble::Line(number + 1))?);
            open += 1;
        }
    }
    if ended && open == 0 { Ok(list) } else { Err(ListTrouble::CutOff) }
}

/// What became of a list of users who were erased before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// They were back.
    pub erased: u64,
    /// They were back, and their erasure is held back again.
    pub held: u64,
    /// Nothing was here of them; a tombstone keeps them out.
    pub kept_out: u64,
    /// Nothing to do.
    pub done_before: u64,
    /// Their row refuses to go; it is tried again without end.
    pub resisting: u64,
}

/// Erase users again who were erased before.
///
/// # Errors
/// If the database is not available. What is done is done, and can be asked for again.
pub async fn replay(store: &dyn Store, list: &[Tombstone], rules: &Rules, clock: &Clock) -> Result<Replayed> {
    let mut replayed = Replayed::default();
    for page in list.chunks(PAGE as usize) {
        let now = clock();
        let mut ids: Vec<ClerkId> = page.iter().map(|tombstone| tombstone.clerk_id.clone()).collect();
        ids.sort();
        ids.dedup();
        let known = store.known(&ids, &Selection::default()).await?;
        let (held, erased): (Vec<&Tombstone>, Vec<&Tombstone>) =
            page.iter().partition(|tombstone| tombstone.held_until.is_some_and(|until| until > now));
        let deliveries: Vec<Delivery> = erased
            .iter()
            .map(|Tombstone { clerk_id, erased_at, .. }| {
                let at = erased_at.unwrap_or(now).min(now);
                delivery(clerk_id.clone(), News::Erase(EraseIf::Always), Source::Cli, at, now)
            })
            .collect();
        let mut results = apply_all(store, &deliveries, rules, now).await;
        for Tombstone { clerk_id, held_until, .. } in &held {
            // The time that they were promised, whatever the configuration says now.
            let grace = held_until.map_or(rules.grace, |until| until - now);
            let delivery = delivery(clerk_id.clone(), News::Delete, Source::Cli, now, now);
            results.extend(apply_all(store, &[delivery], &Rules { grace, ..rules.clone() }, now).await);
        }
        let after = store.known(&ids, &Selection::default()).await?;
        for (tombstone, result) in erased.into_iter().chain(held).zip(results) {
            let id = &tombstone.clerk_id;
            let is_held = after.registers.get(id).is_some_and(|register| register.held_until.is_some());
            let was_known = known.registers.contains_key(id) || known.objects.contains_key(id);
            match result? {
                Outcome::Parked => replayed.resisting += 1,
                Outcome::Applied if is_held => replayed.held += 1,
                Outcome::Applied if was_known => replayed.erased += 1,
                Outcome::Applied => replayed.kept_out += 1,
                _ => replayed.done_before += 1,
            }
        }
    }
    Ok(replayed)
}

async fn apply_all(
    store: &dyn Store,
    deliveries: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
) -> Vec<Result<Outcome>> {
    apply(store, deliveries, rules, now, Instant::now() + PAGE_TIME).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_or_not_at_all() {
        let list = "{\"clerk_id\":\"user_1\",\"erased_at\":\"2026-01-01T00:00:00.123Z\"}\n\n\
                    {\"clerk_id\":\"user_2\",\"held_until\":\"2026-01-02T00:00:00Z\"}\n";
        assert_eq!(read_list(list), Err(ListTrouble::CutOff), "its end is missing");
        assert_eq!(
            read_list(&format!("{list}{{\"users\":3}}")),
            Err(ListTrouble::CutOff),
            "a line is missing"
        );
        assert_eq!(read_list(""), Err(ListTrouble::CutOff));
        let list = format!("{list}{{\"users\":2}}\n");
        let twice = read_list(&format!("{list}{list}")).expect("two lists");
        assert_eq!(twice.len(), 4);
        let read = read_list(&list).expect("a list");
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].clerk_id.as_str(), "user_1");
        assert_eq!(read[0].erased_at.map(|at| at.timestamp_subsec_millis()), Some(123));
        assert!(read[1].erased_at.is_none() && read[1].held_until.is_some());
        for wrong in [
            "user_3",
            "{\"clerk_id\":\"user_3\"}",
            "{\"clerk_id\":\"\",\"erased_at\":\"2026-01-01T00:00:00Z\"}",
        ] {
            assert_eq!(read_list(&format!("{list}{wrong}")), Err(ListTrouble::Line(5)), "{wrong}");
        }
    }
}
