//! `backfill`: imports all objects of the selected kinds, or some users, through Clerk's Backend API.

use std::{
    collections::HashSet,
    fmt::Write,
    fs,
    io::{IsTerminal, stderr},
    num::NonZeroU32,
    time::Duration,
};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use clap::Args;
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

use super::{
    Failure, catch_up, count, noun, rate, say,
    terminal::{counted, progress, progress_style, word},
    unless_stopped, user_id,
};
use crate::{
    clerk::api::PAGE,
    config::{Settings, unreadable},
    entity::{self, USER},
    model::{ClerkId, Entity, Selection},
    sync::{
        backfill::{Done, LeftBehind, Progress, Summary, Wanted, backfill, nobodys},
        catch_up::{Asked, CatchUp, Counts},
    },
};

/// How often a log line reports the progress where no terminal shows a bar.
const TELL: Duration = Duration::from_secs(5);

/// At most this many users are listed by id.
const NAMED: usize = 20;

/// Clerk did not exist before this time: 2001, in Unix seconds.
const FIRST: i64 = 978_307_200;

/// Import all objects that Clerk's Backend API lists; an interrupted run resumes where it stopped
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Backfill {
    /// Only objects of this kind [default: every kind that is synced]
    #[arg(long, value_name = "KIND", value_parser = any_kind)]
    entity: Option<&'static Entity>,

    /// Start from scratch, even if a run was interrupted or is in progress
    #[arg(long)]
    restart: bool,

    /// Only users with these e-mail addresses: a list, or @FILE with one per line (lines that begin with # are comments).
    /// If several of --email, --phone and --user-id are given, users that match any of them are imported
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    email: Vec<String>,

    /// Only users with these phone numbers: a list, or @FILE
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    phone: Vec<String>,

    /// Only these users: a list of ids, or @FILE
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    user_id: Vec<String>,

    /// Only users that match this query in Clerk's search; narrows the lists
    #[arg(long, value_name = "TEXT", value_parser = is_not_empty)]
    query: Option<String>,

    /// Only users who signed up after this time: 2026-01-31, 2026-01-31T12:00:00Z or Unix milliseconds; narrows the lists
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_after: Option<DateTime<Utc>>,

    /// Requests per second [default: 90 with a production key, else 9]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,

    /// Notify other systems of what is written; by default they are notified only of changes from Clerk's webhooks
    #[arg(long)]
    emit: bool,

    /// Allow users from another Clerk instance than before; --clerk-instance-id, if set, still applies
    #[arg(long)]
    change_instance: bool,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Backfill {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let wanted = self.wanted()?;
        let mut context = catch_up(settings, self.rate, false, self.emit).await?;
        context.instance.may_change = self.change_instance;
        let kinds = if wanted.is_narrowed() {
            vec![wanted.entity]
        } else {
            chosen(self.entity, &context.rules.selection)?
        };
        let interrupted = Done::before_interruption(&context, &kinds, TimeDelta::zero()).await?;
        let mut done = interrupted.filter(|_| !self.restart).unwrap_or_default();
        for entity in kinds {
            let wanted = Wanted { entity, ..wanted.clone() };
            if done.has(&context, &wanted) {
                tracing::info!(kind = entity.kind, "imported before the run was interrupted");
            } else {
                self.run_of(&context, &wanted, &mut done).await?;
            }
        }
        context.store.close().await;
        Ok(())
    }

    async fn run_of(&self, context: &CatchUp, wanted: &Wanted, done: &mut Done) -> Result<(), Failure> {
        let (tell, hear) = watch::channel(Progress::default());
        let began = Instant::now();
        let shown = |progress: &Progress| Shown {
            seen: progress.counts.seen,
            expected: progress.expected,
            asked: progress.asked(),
        };
        let teller = tokio::spawn(show("backfill", wanted.entity, hear.clone(), shown));
        let walk = backfill(context, wanted, done, self.restart, tell);
        let summary = unless_stopped(walk, || interrupted(&hear.borrow(), wanted.entity)).await;
        drop(hear);
        // The task ends by itself, because the sender is gone.
        let _ = teller.await;
        let summary = summary??;
        let unknown = self.unknown(wanted, context).await?;
        let asked_for = wanted.lists.iter().map(|(_, values)| values.len()).sum();
        self.report(wanted.entity, &summary, asked_for, began.elapsed());
        if let Some(left_behind) = summary.left_behind.as_ref().filter(|_| !self.json) {
            tell_of(left_behind);
        }
        if summary.counts.left_out > 0 {
            return Err(Failure::failed(left_out_text(wanted.entity, &summary.counts)));
        }
        if unknown.values.is_empty() {
            return Ok(());
        }
        let here = match &*unknown.here.join(", ") {
            "" => String::new(),
            here => {
                format!(
                    "; still here: {}; `clerk-sync reconcile` erases users that Clerk does not know",
                    word(here)
                )
            }
        };
        Err(Failure::failed(format!(
            "Clerk does not know {} of the {asked_for} requested: {}{here}",
            unknown.values.len(),
            word(&unknown.values.join(", "))
        )))
    }

    /// Ids, addresses and numbers that no user at Clerk has, unless another filter may have excluded those users.
    async fn unknown(&self, wanted: &Wanted, context: &CatchUp) -> Result<Unknown, Failure> {
        let mut unknown = Unknown::default();
        if self.query.is_some() || self.created_after.is_some() {
            return Ok(unknown);
        }
        for (filter, values) in &wanted.lists {
            let nobodys = nobodys(context, filter, values).await?;
            if *filter == "user_id" {
                let ids: Vec<ClerkId> =
                    nobodys.iter().filter_map(|id| ClerkId::new(&USER, id.as_str())).collect();
                for ids in ids.chunks(PAGE) {
                    let known = context.store.known(ids, &Selection::default()).await?;
                    let is_deleted = |id| known.registers.get(id).is_some_and(|register| register.deleted);
                    let here = ids.iter().filter(|id| known.objects.contains_key(*id) && !is_deleted(id));
                    unknown.here.extend(here.map(ToString::to_string));
                }
                unknown.values.extend(nobodys);
                continue;
            }
            // A terminal may show addresses and numbers to the person who typed them. Other output may be a log, which must not
            // contain them: there they are shown by their position.
            let at_terminal = stderr().is_terminal();
            let flag = if *filter == "phone_number" { "--phone" } else { "--email" };
            let places = values.iter().enumerate().filter(|(_, value)| nobodys.contains(value));
            unknown.values.extend(places.map(|(place, value)| {
                if at_terminal { value.clone() } else { format!("number {} of {flag}", place + 1) }
            }));
        }
        Ok(unknown)
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        let lists =
            [("email_address", &self.email), ("phone_number", &self.phone), ("user_id", &self.user_id)];
        let given = lists.into_iter().filter(|(_, values)| !values.is_empty());
        let wanted = Wanted {
            entity: self.entity.unwrap_or(&USER),
            lists: given.map(|(name, values)| Ok((name, expand(values)?))).collect::<Result<_, Failure>>()?,
            query: self.query.clone(),
            created_after: self.created_after.map(|at| at.timestamp_millis()),
        };
        if wanted.is_narrowed() && *wanted.entity != USER {
            return Err(Failure::usage(format!(
                "all objects of kind {} are imported: --email, --phone, --user-id, --query and --created-after concern users",
                wanted.entity.kind
            )));
        }
        for (_, ids) in wanted.lists.iter().filter(|(name, _)| *name == "user_id") {
            for id in ids {
                // If the file is not a list, a line may have any length.
                user_id(id).map_err(|why| Failure::usage(format!("--user-id {id:.40}: {why}")))?;
            }
        }
        Ok(wanted)
    }

    /// `asked_for`: how many ids, addresses and numbers were given. If it is not 0, the report states it.
    fn report(&self, entity: &Entity, summary: &Summary, asked_for: usize, took: Duration) {
        let Counts { seen, applied, unchanged, stale, left_out, reasons, .. } = &summary.counts;
        if self.json {
            say!(
                "{}",
                serde_json::json!({
                    "entity": entity.kind, "switched_off": summary.switched_off, "seen": seen, "applied": applied, "unchanged": unchanged, "stale": stale, "left_out": left_out,
                    "reasons": reasons, "resumed": summary.resumed, "seconds": took.as_secs_f64(),
                    "asked_for": (asked_for > 0).then_some(asked_for),
                    "left_behind": summary.left_behind.as_ref().map(|left| serde_json::json!({
                        "instance": left.instance,
                        "users": left.users.as_ref().map(Vec::len),
                        "ids": left.users.iter().flatten().take(NAMED).map(ClerkId::as_str).collect::<Vec<_>>(),
                    })),
                })
            );
            return;
        }
        if asked_for > 0 {
            say!("{asked_for:>9}  requested by id, address or number");
        }
        let went_on = if summary.resumed { ", resuming an interrupted run" } else { "" };
        if summary.switched_off {
            say!("{}", off(entity));
            return;
        }
        let (one, many) = nouns(entity);
        say!("{seen:>9}  {} at Clerk, in {:.1} s{went_on}", noun(*seen, &one, &many), took.as_secs_f64());
        for (count, what) in [
            (applied, "written"),
            (unchanged, "already up to date"),
            (stale, "newer or deleted here"),
            (left_out, "left out"),
        ] {
            if *count > 0 {
                say!("{count:>9}  {what}");
            }
        }
    }
}

/// Requested ids, addresses and numbers that no user at Clerk has.
#[derive(Default)]
struct Unknown {
    /// As they are printed.
    values: Vec<String>,
    /// The ids among them that have a row in the database.
    here: Vec<String>,
}

/// Print which users a reconcile would erase now that users come from another instance of Clerk.
fn tell_of(left_behind: &LeftBehind) {
    let LeftBehind { instance, users } = left_behind;
    let instance = word(instance);
    let Some(users) = users else {
        say!(
            "Users of the previous instance, {instance}, may still be here: `clerk-sync reconcile --dry-run` lists the users \
             that it would erase."
        );
        return;
    };
    if users.is_empty() {
        return;
    }
    let number = users.len() as u64;
    let what = format!(
        "{} of the previous instance, {instance}, that Clerk does not have. A reconcile would erase them:",
        noun(number, "user", "users")
    );
    counted(number, &what, &users[..users.len().min(NAMED)]);
    say!(
        "It withholds these deletions until it is run with --allow-mass-delete. To transfer the rows first, see the runbook, \
         \"From a development to a production instance\"."
    );
}

/// The singular and the plural of a kind, for messages.
pub(super) fn nouns(entity: &Entity) -> (String, String) {
    (entity.kind.replace('_', " "), entity.table.replace('_', " "))
}

/// A number of objects of a kind.
pub(super) fn objects(number: u64, entity: &Entity) -> String {
    let (one, many) = nouns(entity);
    count(number, &one, &many)
}

/// The message that a kind is not available at Clerk.
pub(super) fn off(entity: &Entity) -> String {
    format!(
        "The instance of CLERK_SECRET_KEY has no {}: this feature is switched off at Clerk.",
        nouns(entity).1
    )
}

/// The kinds to process: this one, or all synced kinds that Clerk lists.
pub(super) fn chosen(
    only: Option<&'static Entity>,
    selection: &Selection,
) -> Result<Vec<&'static Entity>, Failure> {
    match only {
        Some(entity) if !selection.has(entity) => Err(Failure::usage(format!(
            "--entity {0}: SYNC_ENTITIES does not include {0}, so it is not synced",
            entity.kind
        ))),
        Some(entity) => Ok(vec![entity]),
        None => Ok(selection.entities().filter(|entity| entity.is_listed()).collect()),
    }
}

/// A kind that Clerk's Backend API lists.
pub(super) fn any_kind(text: &str) -> Result<&'static Entity, String> {
    entity::named(text).filter(|entity| entity.is_listed()).ok_or_else(|| {
        let listed = entity::ALL.iter().filter(|entity| entity.is_listed());
        format!("allowed: {}", listed.map(|entity| entity.kind).collect::<Vec<_>>().join(", "))
    })
}

/// Why objects were left out, with some of their ids.
pub(super) fn left_out_text(entity: &Entity, counts: &Counts) -> String {
    let left_out = counts.left_out;
    let (one, many) = nouns(entity);
    let mut text = format!("{} left out:", count(left_out, &format!("{one} was"), &format!("{many} were")));
    for reason in &counts.reasons {
        let _ = write!(text, "\n  {}: {}", word(&reason.clerk_id), reason.reason);
    }
    if left_out > counts.reasons.len() as u64 {
        text.push_str("\n  …");
    }
    text
}

/// What a progress line shows.
pub(super) struct Shown {
    pub(super) seen: u64,
    /// The number of objects at Clerk, if it is known.
    pub(super) expected: Option<u64>,
    pub(super) asked: Asked,
}

/// Show the progress of a run: a bar on a terminal, else a log line every few seconds.
pub(super) async fn show<P>(
    run: &'static str,
    entity: &'static Entity,
    mut hear: watch::Receiver<P>,
    shown: impl Fn(&P) -> Shown,
) {
    let (_, many) = nouns(entity);
    let asks_owners = !entity.of_each.is_empty();
    let what = if asks_owners { "owners asked" } else { &*many };
    let bar = progress(&format!("{{pos}} {what}, {{rate}}"));
    let began = Instant::now();
    let mut every = interval(TELL);
    every.tick().await;
    loop {
        tokio::select! {
            changed = hear.changed() => {
                if changed.is_err() {
                    break;
                }
                let Shown { seen, expected, asked } = shown(&hear.borrow_and_update());
                let (done, of) = if asks_owners { (asked.owners, asked.of) } else { (seen, expected) };
                // The total is not known in advance.
                if let Some(of) = of.filter(|of| bar.length() != Some(*of)) {
                    bar.set_length(of);
                    let all = format!("{{bar:40}} {{pos}} of {{len}} {what}{{msg}}, {{rate}}, {{eta}} left");
                    bar.set_style(progress_style(&all));
                }
                if asks_owners {
                    bar.set_message(format!(", {seen} {many}"));
                }
                bar.set_position(done);
            }
            _ = every.tick(), if bar.is_hidden() => {
                let Shown { seen, expected, asked } = shown(&hear.borrow());
                let seconds = began.elapsed().as_secs().max(1);
                if asks_owners {
                    let a_second = asked.owners / seconds;
                    tracing::info!(kind = entity.kind, seen, a_second, "{run}: {}", asked.text());
                } else {
                    tracing::info!(kind = entity.kind, seen, of = expected, a_second = seen / seconds, "{run}");
                }
            }
        }
    }
    bar.finish_and_clear();
}

/// The values of a list, with each `@FILE` replaced by the file's values.
fn expand(values: &[String]) -> Result<Vec<String>, Failure> {
    let mut all: Vec<String> = Vec::new();
    for value in values {
        match value.strip_prefix('@') {
            None => all.push(value.trim().to_owned()),
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| {
                    Failure::usage(format!("the file {path} cannot be read: {}", unreadable(&error)))
                })?;
                let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
                let values =
                    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|value| !value.is_empty());
                all.extend(values.map(ToOwned::to_owned));
            }
        }
    }
    let mut seen = HashSet::new();
    all.retain(|value| seen.insert(value.clone()));
    if all.is_empty() {
        return Err(Failure::usage("a list of users is empty"));
    }
    Ok(all)
}

fn is_not_empty(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("the value is empty") } else { Ok(text.to_owned()) }
}

/// The message after Ctrl-C.
fn interrupted(progress: &Progress, entity: &Entity) -> String {
    if !entity.of_each.is_empty() {
        return format!("interrupted with {}; run the command again to resume", progress.asked().text());
    }
    let seen = progress.counts.seen;
    let seen = match progress.expected {
        Some(expected) => format!("{seen} of {}", objects(expected, entity)),
        None => objects(seen, entity),
    };
    format!("interrupted at {seen}; run the command again to resume")
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let at = any_time(text)?;
    let latest = Utc::now() + TimeDelta::days(1);
    let may_be = |at: &DateTime<Utc>| at.timestamp() >= FIRST && *at <= latest;
    if may_be(&at) {
        return Ok(at);
    }
    let seconds = text.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let are_seconds = seconds.is_some_and(|at| may_be(&at));
    let hint = if are_seconds { format!("; if this is in seconds, write {text}000") } else { String::new() };
    Err(format!("that is {}, and no user can have signed up at Clerk then{hint}", at.format("%Y-%m-%d")))
}

/// A day, a time, or Unix milliseconds.
pub(super) fn any_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    let day =
        || text.parse::<NaiveDate>().ok().and_then(|day| day.and_hms_opt(0, 0, 0)).map(|at| at.and_utc());
    let instant = || DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    let milliseconds = || text.parse().ok().and_then(DateTime::from_timestamp_millis);
    day()
        .or_else(instant)
        .or_else(milliseconds)
        .ok_or("expected a day, a time in RFC 3339, or Unix milliseconds")
}
