//! `erase`: erases users everywhere, and reports on each erasure.

use std::{
    fs,
    io::{Write, read_to_string, stdin},
};

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure,
    backfill::any_time,
    clock, confirm, count, never_heard_of, on_store, open_api, rules, say,
    terminal::{plain, table},
    user_id,
};
use crate::{
    clerk::{api::Persistence, event::Reading},
    config::{Config, Settings, unreadable},
    entity::USER,
    model::{ClerkId, Receipt, Selection, Source, rfc3339},
    store::Store,
    sync::erasure::{self, Fate},
};

/// Receipts read per query.
const PAGE: u32 = 1000;

/// Erase a user, and ensure that every copy is erased
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Erase {
    #[command(subcommand)]
    action: Option<Action>,

    /// Clerk's id of the user
    #[arg(value_name = "USER_ID", value_parser = user_id, required = true)]
    user_id: Option<ClerkId>,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Show each destination of a user's erasure and its state; exits with 1 if the user is unknown
    Status {
        /// Clerk's id of the user
        #[arg(value_name = "USER_ID", value_parser = user_id)]
        user_id: ClerkId,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the erasures that are not confirmed everywhere
    Report {
        /// Only erasures requested more than --days ago; exits with 1 if there are any
        #[arg(long)]
        overdue: bool,

        /// How long an erasure may take, in days
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=3650))]
        days: u32,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Carry out a delayed erasure now
    Now {
        /// Clerk's id of the user
        #[arg(value_name = "USER_ID", value_parser = user_id)]
        user_id: ClerkId,

        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Cancel a deletion whose erasure is delayed
    Cancel {
        /// Clerk's id of the user
        #[arg(value_name = "USER_ID", value_parser = user_id)]
        user_id: ClerkId,

        /// Without a key for Clerk's API: assume that Clerk still knows the user
        #[arg(long)]
        force: bool,
    },
    /// Print the list of erased users, to be stored apart from the backups
    Export {
        /// Only users erased here at or after this time, whenever Clerk deleted them: 2026-01-31, 2026-01-31T12:00:00Z or Unix
        /// milliseconds
        #[arg(long, value_name = "TIME", value_parser = any_time)]
        since: Option<DateTime<Utc>>,
    },
    /// Erase all users on such a list again after a backup was restored
    Replay {
        /// The list; - is standard input
        #[arg(value_name = "FILE")]
        file: String,

        /// Print the summary as JSON
        #[arg(long)]
        json: bool,
    },
}

impl Erase {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        match (self.action, self.user_id) {
            (Some(Action::Status { user_id, json }), _) => {
                on_store(settings, true, async |_, store| status(store, &user_id, json).await).await
            }
            (Some(Action::Report { overdue, days, json }), _) => {
                on_store(settings, true, async |_, store| report(store, overdue, days, json).await).await
            }
            (Some(Action::Now { user_id, yes }), _) => erase(settings, &user_id, yes, true).await,
            (Some(Action::Cancel { user_id, force }), _) => {
                let cancelling =
                    async |config: &Config, store: &dyn Store| cancel(config, store, &user_id, force).await;
                on_store(settings, false, cancelling).await
            }
            (Some(Action::Export { since }), _) => {
                let since = since.unwrap_or(DateTime::<Utc>::MIN_UTC);
                on_store(settings, true, async |_, store| export(store, since).await).await
            }
            (Some(Action::Replay { file, json }), _) => replay(settings, &file, json).await,
            (None, Some(id)) => erase(settings, &id, self.yes, false).await,
            (None, None) => Err(Failure::usage("no user given: name the user's id, or see --help")),
        }
    }
}

/// `now`: erase a user whose erasure is delayed.
async fn erase(settings: &Settings, id: &ClerkId, yes: bool, now: bool) -> Result<(), Failure> {
    // A mistyped subcommand must not create a tombstone and look like an erasure.
    if !now && !id.as_str().starts_with("user_") {
        return Err(Failure::usage(format!(
            "{id} is not the id of a user: Clerk's user ids begin with user_"
        )));
    }
    if !yes {
        confirm(&format!("Erase {id} permanently{}?", if now { ", now" } else { "" }))?;
    }
    on_store(settings, false, async |config, store| {
        let (rules, clock) = (rules(config), clock());
        let fate = if now {
            erasure::erase_now(store, id, &rules, &clock).await?
        } else {
            erasure::erase(store, id, &rules, &clock).await?
        };
        finish(store, id, fate).await
    })
    .await
}

async fn cancel(config: &Config, store: &dyn Store, id: &ClerkId, force: bool) -> Result<(), Failure> {
    let known = store.known(std::slice::from_ref(id), &Selection::default()).await?;
    // Clerk is asked only about users that can still be kept.
    if known.registers.get(id).is_some_and(|register| register.held_until.is_some()) {
        ask_clerk(config, id, force).await?;
    }
    let fate = erasure::cancel(store, id, &rules(config), &clock()).await?;
    if fate == Fate::Gone {
        return Err(Failure::failed(format!("{id} is erased: this cannot be undone")));
    }
    finish(store, id, fate).await
}

/// Refuse to keep a user that Clerk no longer knows: that user would stay in the database permanently.
async fn ask_clerk(config: &Config, id: &ClerkId, force: bool) -> Result<(), Failure> {
    let Some(api) = open_api(config, None)? else {
        if force {
            return Ok(());
        }
        return Err(Failure::failed(format!(
            "only Clerk can tell whether {id} still exists there: set CLERK_SECRET_KEY, so that clerk-sync can ask, or pass \
             --force if you are sure"
        )));
    };
    let reading = Reading {
        source: Source::Cli,
        entity: &USER,
        fields: config.sync_fields(),
        inside: Selection::default(),
    };
    let found = api.one(id, &reading, Persistence::INTERACTIVE).await;
    if found.map_err(|error| Failure::from(&error))?.is_none() {
        return Err(Failure::failed(format!(
            "Clerk no longer knows {id}: nothing was changed, and the erasure remains due"
        )));
    }
    Ok(())
}

/// Print the result for a user; the exit code is 0 if it is the requested one.
async fn finish(store: &dyn Store, id: &ClerkId, fate: Fate) -> Result<(), Failure> {
    let receipts = store.receipts_of(id).await?;
    let open = receipts.iter().filter(|receipt| receipt.completed_at.is_none()).count() as u64;
    match fate {
        Fate::Erased => say!("{id} is erased here."),
        Fate::Held(until) => say!(
            "{id} is marked as deleted, and will be erased at {}; `clerk-sync erase now` erases it at once, `clerk-sync erase \
             cancel` cancels the deletion.",
            rfc3339(until)
        ),
        Fate::Unknown => say!(
            "{id} was not here, so there was nothing to erase. A tombstone was created, so this user cannot be added later."
        ),
        Fate::Gone => say!("{id} was already erased."),
        Fate::Kept => say!("{id} is kept: the deletion is cancelled."),
        Fate::Resists => {
            let of_the_row = receipts.iter().find(|receipt| receipt.destination == Receipt::DATABASE);
            let why =
                of_the_row.and_then(|receipt| receipt.last_error.as_deref()).map(|why| format!(" ({why})"));
            return Err(Failure::failed(format!(
                "the row of {id} is not known to be deleted{}; everything else is erased, and `serve` retries until it succeeds: \
                 see `clerk-sync erase status {id}`",
                why.unwrap_or_default()
            )));
        }
        Fate::NotHeld => {
            return Err(Failure::failed(format!("no erasure of {id} is delayed: nothing was changed")));
        }
    }
    if open > 0 {
        let have_not = count(open, "destination has not", "destinations have not");
        say!("{have_not} confirmed the erasure yet: see `clerk-sync erase status {id}`.");
    }
    Ok(())
}

async fn status(store: &dyn Store, id: &ClerkId, json: bool) -> Result<(), Failure> {
    let receipts = store.receipts_of(id).await?;
    let known = store.known(std::slice::from_ref(id), &Selection::default()).await?;
    let register = known.registers.get(id);
    let held_until = register.and_then(|register| register.held_until);
    let is_deleted = register.is_some_and(|register| register.deleted);
    let open: Vec<&Receipt> = receipts.iter().filter(|receipt| receipt.completed_at.is_none()).collect();
    let state = match held_until {
        _ if is_deleted && !open.is_empty() => "erasing",
        _ if is_deleted => "erased",
        Some(_) => "held",
        None if known.has(id) => "here",
        None => "unknown",
    };
    if json {
        let receipts: Vec<_> = receipts.iter().map(as_json).collect();
        say!(
            "{}",
            json!({ "clerk_id": id.as_str(), "state": state, "held_until": held_until, "receipts": receipts })
        );
    } else {
        let is_stuck = open.iter().any(|receipt| receipt.destination == Receipt::DATABASE);
        match (state, held_until) {
            ("unknown", _) => {}
            (_, Some(until)) => say!("{id}: deleted, the erasure is delayed until {}", rfc3339(until)),
            ("erasing", _) if is_stuck => say!("{id}: to be erased, but the row is not known to be deleted"),
            ("erasing", _) => say!("{id}: erased here, not confirmed everywhere"),
            ("here", _) => say!("{id}: not deleted"),
            (state, _) => say!("{id}: {state}"),
        }
        if !receipts.is_empty() {
            show(&receipts);
        }
    }
    if state == "unknown" { Err(never_heard_of(id)) } else { Ok(()) }
}

async fn report(store: &dyn Store, overdue: bool, days: u32, json: bool) -> Result<(), Failure> {
    let before = overdue.then(|| clock()() - TimeDelta::days(days.into()));
    let mut open: Vec<Receipt> = Vec::new();
    loop {
        let page = store.open_receipts(before, open.last(), PAGE).await?;
        if page.is_empty() {
            break;
        }
        open.extend(page);
    }
    if json {
        say!("{}", Value::Array(open.iter().map(as_json).collect()));
    } else if open.is_empty() {
        say!("{}", if overdue { "No erasure is overdue." } else { "Every erasure is confirmed everywhere." });
    } else {
        show(&open);
    }
    if overdue && !open.is_empty() {
        return Err(Failure::failed(format!(
            "{} not confirmed after {}",
            count(open.len() as u64, "erasure is", "erasures are"),
            count(days.into(), "day", "days")
        )));
    }
    Ok(())
}

async fn export(store: &dyn Store, since: DateTime<Utc>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    // A truncated list must not look complete, so every failed write is an error.
    let mut write = |line: String| {
        let cut_off = |error| Failure::failed(format!("the list is incomplete: {}", unreadable(&error)));
        writeln!(out, "{}", plain(&line)).map_err(cut_off)
    };
    erasure::export(store, since, &mut write).await
}

async fn replay(settings: &Settings, file: &str, json: bool) -> Result<(), Failure> {
    let read = if file == "-" { read_to_string(stdin()) } else { fs::read_to_string(file) };
    let text = read
        .map_err(|error| Failure::usage(format!("the list {file} cannot be read: {}", unreadable(&error))))?;
    let list = erasure::read_list(&text).map_err(|trouble| {
        Failure::usage(format!("the list {file} cannot be used: {trouble}; nothing was changed"))
    })?;
    on_store(settings, false, async |config, store| {
        let replayed = erasure::replay(store, &list, &rules(config), &clock()).await?;
        if json {
            say!("{}", serde_json::to_string(&replayed).unwrap_or_default());
        } else {
            say!("{}", config.database.place());
            for (users, what) in [
                (replayed.erased, "found again, and erased"),
                (replayed.held, "found again, and waiting for their erasure"),
                (replayed.kept_out, "not here; tombstones block them"),
                (replayed.done_before, "already erased, or waiting for it"),
                (replayed.resisting, "found again, but the database refuses to delete their rows"),
            ] {
                say!("{users:>9}  {what}");
            }
        }
        if replayed.resisting > 0 {
            return Err(Failure::failed(format!(
                "{} not known to be deleted; `serve` retries until it succeeds",
                count(replayed.resisting, "row is", "rows are")
            )));
        }
        Ok(())
    })
    .await
}

fn as_json(receipt: &Receipt) -> Value {
    json!({
        "clerk_id": receipt.clerk_id.as_str(),
        "destination": receipt.destination,
        "requested_at": receipt.requested_at,
        "completed_at": receipt.completed_at,
        "attempts": receipt.attempts,
        "last_error": receipt.last_error,
    })
}

fn show(receipts: &[Receipt]) {
    let row = |receipt: &Receipt| {
        [
            receipt.clerk_id.to_string(),
            receipt.destination.clone(),
            rfc3339(receipt.requested_at),
            receipt.completed_at.map_or_else(|| "open".to_owned(), rfc3339),
            receipt.attempts.to_string(),
            receipt.last_error.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = receipts.iter().map(row).collect();
    table(["USER", "DESTINATION", "REQUESTED", "COMPLETED", "ATTEMPTS", "ERROR"], &rows);
}
