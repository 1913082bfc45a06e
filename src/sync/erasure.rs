//! Erasures without a webhook: requested by an operator, due because their grace period is over, or repeated because
//! the restored backup still contained the users.
//!
//! All of them are ordinary deliveries and go through [`apply`](mod@super::apply), which alone decides, under the lock
//! of the register. Requesting an erasure twice does no harm.

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

/// What happened to a user whose erasure was requested or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The database holds no data about the user any more.
    Erased,
    /// The row is marked as deleted, and will be erased at this time.
    Held(DateTime<Utc>),
    /// Erased, except for the row: the database refuses every way to erase it, and the erasure is retried until it
    /// succeeds.
    Resists,
    /// The user was not known; a tombstone keeps them out from now on.
    Unknown,
    /// Erased before.
    Gone,
    /// The delayed deletion was cancelled.
    Kept,
    /// No deletion was delayed.
    NotHeld,
}

/// A delivery that did not arrive as a webhook, with this change of a user.
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

/// Erase a user as if Clerk had deleted them now. The erasure is delayed if there is a grace period.
///
/// # Errors
/// If the database is not available.
pub async fn erase(store: &dyn Store, id: &ClerkId, rules: &Rules, clock: &Clock) -> Result<Fate> {
    ask(store, id, News::Delete, rules, clock).await
}

/// Erase a user whose erasure is delayed.
///
/// # Errors
/// If the database is not available.
pub async fn erase_now(store: &dyn Store, id: &ClerkId, rules: &Rules, clock: &Clock) -> Result<Fate> {
    ask(store, id, News::Erase(EraseIf::Held), rules, clock).await
}

/// Cancel a delayed deletion. The caller has to check that Clerk still knows the user.
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

/// Erase all users whose grace period is over, and return their number. A user that cannot be erased now does not delay
/// the others.
///
/// # Errors
/// If a user could not be erased, or the database is not available. The remaining users are due again at the next turn.
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

/// A line of the list of erased users. The list is kept apart from the backups.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    clerk_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erased_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_until: Option<DateTime<Utc>>,
}

/// The last line of such a list. A list without it was cut off.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// Number of users in the lines before it.
    users: u64,
}

/// Call `write` with a line for every user who was erased since that time or whose erasure is delayed, and finally with
/// a line that states their number.
///
/// # Errors
/// If the database is not available, or `write` fails.
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
    #[error("line {0} is not a line of `clerk-sync erase export`")]
    Line(usize),
    #[error("it is cut off: it does not end with the number of users that it lists")]
    CutOff,
}

/// Read one list, or several that were concatenated.
///
/// # Errors
/// If a line does not belong to such a list, or lines are missing.
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

/// The result of replaying a list of erased users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Users that the restore brought back, and that are erased again.
    pub erased: u64,
    /// Users that the restore brought back, and whose erasure is delayed again.
    pub held: u64,
    /// Users who were not known; a tombstone keeps them out.
    pub kept_out: u64,
    /// Users who were already erased, so that nothing had to be done.
    pub done_before: u64,
    /// Users whose row could not be erased; it is retried until it succeeds.
    pub resisting: u64,
}

/// Repeat the erasure of users who were erased before.
///
/// # Errors
/// If the database is not available. Erasures completed until then stay, and the replay can be repeated.
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
            // The end of the grace period that was promised at the time, whatever the configuration says now.
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
