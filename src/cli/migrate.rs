//! `migrate`: the tables, and the users of a table that was there before.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use tokio::time::Instant;

use super::{Failure, clock, open_store, resolve, say, service::init_log};
use crate::{
    config::{Config, Settings},
    model::{Change, ClerkId, Content, Delivery, News, Outcome, Patch, Source, Version},
    store::{ForeignUser, Patience, Readiness, Store},
    sync::{Rules, apply},
};

/// Users taken over in one transaction.
const PAGE: u32 = 500;

/// How long one page may take.
const PAGE_TIME: Duration = Duration::from_mins(1);

/// Apply or list migrations, or take over an existing table
#[derive(Args)]
pub(super) struct Migrate {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// List every migration and whether it is applied
    Status,
    /// Copy the users of an existing table, made with Prisma ("User") or Drizzle (users)
    Adopt(Adopt),
}

#[derive(Args)]
struct Adopt {
    /// The table, as in SQL: public."User", or users
    #[arg(long, value_name = "TABLE")]
    from: String,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Migrate {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let config = resolve(settings)?;
        init_log(&config)?;
        let store = open_store(&config).await?;
        match self.action {
            None => {
                let applied = store.migrate().await?;
                for migration in &applied {
                    say!("applied  {:04}  {}", migration.version, migration.name);
                }
                if applied.is_empty() {
                    say!("nothing to do: every migration is applied");
                }
            }
            Some(Action::Status) => {
                for status in store.migration_status().await? {
                    let state = if status.applied { "applied" } else { "pending" };
                    say!("{state}  {:04}  {}", status.migration.version, status.migration.name);
                }
            }
            Some(Action::Adopt(adopt)) => adopt.run(&config, &*store).await?,
        }
        store.close().await;
        Ok(())
    }
}

/// What became of the users of the table.
#[derive(Default)]
struct Tally {
    copied: u64,
    already_here: u64,
    marked_deleted: u64,
    unusable: u64,
    refused: u64,
}

impl Adopt {
    async fn run(&self, config: &Config, store: &dyn Store) -> Result<(), Failure> {
        if !self.dry_run {
            store.migrate().await?;
        }
        let rules = Rules { fields: config.sync_fields, deletion: config.deletion_policy };
        let mut tally = Tally::default();
        let mut after: Option<String> = None;
        loop {
            let page = store.foreign_users(&self.from, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.clerk_id.clone());
            let deliveries: Vec<Delivery> =
                page.into_iter().filter_map(|user| delivery(user, &rules, &mut tally)).collect();
            if self.dry_run {
                count_only(store, &deliveries, &rules, &mut tally).await?;
            } else {
                copy(store, &deliveries, &rules, &mut tally).await?;
            }
        }
        self.report(&tally);
        if tally.unusable + tally.refused > 0 {
            return Err(Failure::failed("not every user could be taken over"));
        }
        Ok(())
    }

    fn report(&self, tally: &Tally) {
        let copied = if self.dry_run { "would be copied" } else { "copied" };
        say!("{:>9}  {copied}", tally.copied);
        say!("{:>9}  already here, at least as new", tally.already_here);
        for (count, what) in [
            (tally.marked_deleted, "left out: marked as deleted in the table"),
            (tally.unusable, "left out: their Clerk id is empty or longer than 255 bytes"),
            (tally.refused, "left out: the database refuses their data"),
        ] {
            if count > 0 {
                say!("{count:>9}  {what}");
            }
        }
        say!("Only the fields in SYNC_FIELDS are copied; {} itself is left as it is.", self.from);
    }
}

/// A row of the table as a change like any other, versioned by its update time.
fn delivery(user: ForeignUser, rules: &Rules, tally: &mut Tally) -> Option<Delivery> {
    if user.deleted {
        tally.marked_deleted += 1;
        return None;
    }
    let Some(clerk_id) = ClerkId::new(user.clerk_id) else {
        tally.unusable += 1;
        return None;
    };
    let updated_at = user.updated_at.unwrap_or(DateTime::UNIX_EPOCH);
    let mut patch = Patch::default();
    for field in rules.fields.iter() {
        patch.set(field, user.profile[field].clone());
    }
    let milliseconds = updated_at.timestamp_millis();
    Some(Delivery {
        svix_id: None,
        event_type: None,
        clerk_id: Some(clerk_id.clone()),
        event_at: updated_at,
        received_at: Utc::now(),
        source: Source::Cli,
        payload: bytes::Bytes::new(),
        content: Content::Change(Change {
            clerk_id,
            version: Version { version: milliseconds, event_at: milliseconds, tie: String::new() },
            news: News::Upsert { patch, created_at: user.created_at },
            actor: None,
        }),
    })
}

async fn copy(store: &dyn Store, page: &[Delivery], rules: &Rules, tally: &mut Tally) -> Result<(), Failure> {
    for result in apply(store, page, rules, (clock())(), Instant::now() + PAGE_TIME).await {
        match result {
            Ok(Outcome::Applied | Outcome::Unchanged) => tally.copied += 1,
            Ok(_) => tally.already_here += 1,
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "a user could not be taken over");
                tally.refused += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn count_only(
    store: &dyn Store,
    page: &[Delivery],
    rules: &Rules,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut ids: Vec<ClerkId> = page.iter().filter_map(|delivery| delivery.clerk_id.clone()).collect();
    ids.sort();
    ids.dedup();
    let mut here = 0;
    if store.ready().await? == Readiness::Ready {
        let mut transaction = store.begin(Patience::Normal).await?;
        here = transaction.users(&ids, rules.fields).await?.len();
        transaction.rollback().await;
    }
    tally.already_here += here as u64;
    tally.copied += (page.len() - here) as u64;
    Ok(())
}
