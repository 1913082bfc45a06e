//! `backfill`: all objects of the selected kinds, or some users, through Clerk's Backend API.

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
        catch_up::{CatchUp, Counts},
    },
};

/// How often a line tells how far it is, where no terminal shows a bar.
const TELL: Duration = Duration::from_secs(5);

/// Users who are told by name.
const NAMED: usize = 20;

/// Before this there was no Clerk, by far: 2001, in unix seconds.
const FIRST: i64 = 978_307_200;

/// Take in all that Clerk's Backend API shows; an interrupted run goes on where it was
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Backfill {
    /// Only objects of this kind [default: every kind that is synced]
    #[arg(long, value_name = "KIND", value_parser = any_kind)]
    entity: Option<&'static Entity>,

    /// Begin anew, even if a run was interrupted or is under way
    #[arg(long)]
    restart: bool,

    /// Only users with these e-mail addresses: a list, or @FILE with one a line (a line that begins with # is a comment).
    /// Of several of --email, --phone and --user-id, everybody whom any of them names
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    email: Vec<String>,

    /// Only users with these phone numbers: a list, or @FILE
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    phone: Vec<String>,

    /// Only these users: a list of ids, or @FILE
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = is_not_empty)]
    user_id: Vec<String>,

    /// Only users that Clerk's search finds; narrows the lists
    #[arg(long, value_name = "TEXT", value_parser = is_not_empty)]
    query: Option<String>,

    /// Only users who signed up after this: 2026-01-31, a time such as 2026-01-31T12:00:00Z, or unix milliseconds; narrows
    /// the lists
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_after: Option<DateTime<Utc>>,

    /// Requests a second [default: 90 with a key of production, else 9]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,

    /// Tell other systems of what is written; else they hear only of what Clerk's webhooks say
    #[arg(long)]
    emit: bool,

    /// Let users come from another instance of Clerk than so far; --clerk-instance-id, if it is set, still counts
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
                tracing::info!(kind = entity.kind, "taken in before the run was interrupted");
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
        let teller = tokio::spawn(show(hear.clone(), wanted.entity));
        let walk = backfill(context, wanted, done, self.restart, tell);
        let summary = unless_stopped(walk, || interrupted(&hear.borrow(), wanted.entity)).await;
        drop(hear);
        // Ends by itself: nobody tells it any more.
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
            "Clerk does not know {} of the {asked_for} asked for: {}{here}",
            unknown.values.len(),
            word(&unknown.values.join(", "))
        )))
    }

    /// Ids, addresses and numbers that nobody at Clerk has, unless something else may have kept them out.
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
            // Whoever asked at a terminal may read them there. Anywhere else may be a log, where nobody's address or number
            // belongs: they are told by their place.
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
                "of kind {} all are taken in: --email, --phone, --user-id, --query and --created-after are about users",
                wanted.entity.kind
            )));
        }
        for (_, ids) in wanted.lists.iter().filter(|(name, _)| *name == "user_id") {
            for id in ids {
                // Of a file that is no list a line may be of any length.
                user_id(id).map_err(|why| Failure::usage(format!("--user-id {id:.40}: {why}")))?;
            }
        }
        Ok(wanted)
    }

    /// `asked_for`: how many ids, addresses and numbers were given, which says whether each of them has a user at Clerk.
    fn report(&self, entity: &Entity, summary: &Summary, asked_for: usize, took: Duration) {
        let Counts { seen, applied, unchanged, stale, left_out, reasons } = &summary.counts;
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
            say!("{asked_for:>9}  asked for by id, address or number");
        }
        let went_on = if summary.resumed { ", going on with an interrupted run" } else { "" };
        if summary.switched_off {
            say!("{}", off(entity));
            return;
        }
        let (one, many) = nouns(entity);
        say!("{seen:>9}  {} at Clerk, in {:.1} s{went_on}", noun(*seen, &one, &many), took.as_secs_f64());
        for (count, what) in [
            (applied, "written"),
            (unchanged, "the same already"),
            (stale, "newer here, or deleted here"),
            (left_out, "left out"),
        ] {
            if *count > 0 {
                say!("{count:>9}  {what}");
            }
        }
    }
}

/// What was asked for and is nobody's at Clerk.
#[derive(Default)]
struct Unknown {
    /// As they are told.
    values: Vec<String>,
    /// Ids of those among them who have a row here.
    here: Vec<String>,
}

/// Who would be erased now that users come from another instance of Clerk.
fn tell_of(left_behind: &LeftBehind) {
    let LeftBehind { instance, users } = left_behind;
    let instance = word(instance);
    let Some(users) = users else {
        say!(
            "Users of {instance}, the instance before, may still be here: `clerk-sync reconcile --dry-run` says whom it would \
             erase."
        );
        return;
    };
    if users.is_empty() {
        return;
    }
    let number = users.len() as u64;
    let what = format!(
        "{} of {instance}, the instance before, not at Clerk now. A reconcile would erase them:",
        noun(number, "user", "users")
    );
    counted(number, &what, &users[..users.len().min(NAMED)]);
    say!(
        "It withholds that until it is run with --allow-mass-delete. To carry rows over first: the runbook, \
         \"From a development to a production instance\"."
    );
}

/// What one object of a kind is called, and several.
pub(super) fn nouns(entity: &Entity) -> (String, String) {
    (entity.kind.replace('_', " "), entity.table.replace('_', " "))
}

/// So many objects of a kind.
pub(super) fn objects(number: u64, entity: &Entity) -> String {
    let (one, many) = nouns(entity);
    count(number, &one, &many)
}

/// That a kind is not to be had.
pub(super) fn off(entity: &Entity) -> String {
    format!("The instance of CLERK_SECRET_KEY has no {}: that is switched off at Clerk.", nouns(entity).1)
}

/// The kinds that are gone through: this one, or all that are synced and have a list.
pub(super) fn chosen(
    only: Option<&'static Entity>,
    selection: &Selection,
) -> Result<Vec<&'static Entity>, Failure> {
    match only {
        Some(entity) if !selection.has(entity) => Err(Failure::usage(format!(
            "--entity {0}: SYNC_ENTITIES does not name {0}, so that nothing of it is kept",
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
        format!("allowed are {}", listed.map(|entity| entity.kind).collect::<Vec<_>>().join(", "))
    })
}

/// Why objects were left out, some of them by name.
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

/// Tell how far it is: a bar on a terminal, else a line in the log every few seconds.
async fn show(mut hear: watch::Receiver<Progress>, entity: &'static Entity) {
    let (_, many) = nouns(entity);
    let bar = progress(&format!("{{pos}} {many}, {{rate}}"));
    let began = Instant::now();
    let mut every = interval(TELL);
    every.tick().await;
    loop {
        tokio::select! {
            changed = hear.changed() => {
                if changed.is_err() {
                    break;
                }
                let progress = hear.borrow_and_update().clone();
                // Of a list of users nobody says beforehand how many there are.
                if let Some(expected) = progress.expected.filter(|expected| bar.length() != Some(*expected)) {
                    bar.set_length(expected);
                    let all = format!("{{bar:40}} {{pos}}/{{len}} {many}, {{rate}}, {{eta}} left");
                    bar.set_style(progress_style(&all));
                }
                bar.set_position(progress.counts.seen);
            }
            _ = every.tick(), if bar.is_hidden() => {
                let Progress { counts, expected, .. } = hear.borrow().clone();
                let a_second = counts.seen / began.elapsed().as_secs().max(1);
                tracing::info!(kind = entity.kind, seen = counts.seen, of = expected, a_second, "backfill");
            }
        }
    }
    bar.finish_and_clear();
}

/// Values of a list; those of a file for each `@FILE`.
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
        return Err(Failure::usage("a list of users names nobody"));
    }
    Ok(all)
}

fn is_not_empty(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("an empty value") } else { Ok(text.to_owned()) }
}

/// What is said at Ctrl-C.
fn interrupted(progress: &Progress, entity: &Entity) -> String {
    let seen = progress.counts.seen;
    let seen = match progress.expected {
        Some(expected) => format!("{seen} of {}", objects(expected, entity)),
        None => objects(seen, entity),
    };
    format!("interrupted at {seen}; run it again to go on")
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
    let hint = if are_seconds { format!("; if these are seconds, write {text}000") } else { String::new() };
    Err(format!("that is {}, when nobody can have signed up at Clerk{hint}", at.format("%Y-%m-%d")))
}

/// A day, a time, or unix milliseconds.
pub(super) fn any_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    let day =
        || text.parse::<NaiveDate>().ok().and_then(|day| day.and_hms_opt(0, 0, 0)).map(|at| at.and_utc());
    let instant = || DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    let milliseconds = || text.parse().ok().and_then(DateTime::from_timestamp_millis);
    day()
        .or_else(instant)
        .or_else(milliseconds)
        .ok_or("a day, a time in RFC 3339 or unix milliseconds are allowed")
}
