//! `migrate`: the tables, and the users of a table that was there before.

use clap::{Args, Subcommand};

use super::{Failure, clock, explained, open_store, resolve, rules, say, service::init_log};
use crate::{
    config::{Config, Settings},
    store::Store,
    sync::{Tally, adopt},
};

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
        let store = match open_store(&config).await {
            Ok(store) => store,
            Err(error) => return Err(explained(&config.database, error).await),
        };
        match self.action {
            None => {
                let applied = match store.migrate().await {
                    Ok(applied) => applied,
                    Err(error) => return Err(explained(&config.database, error).await),
                };
                for migration in &applied {
                    say!("applied  {}", migration.name);
                }
                if applied.is_empty() {
                    say!("nothing to do: every migration is applied");
                }
                say!("{}", config.database.place());
            }
            Some(Action::Status) => {
                for status in store.migration_status().await? {
                    let state = if status.applied { "applied" } else { "pending" };
                    say!("{state}  {}", status.migration.name);
                }
            }
            Some(Action::Adopt(adopt)) => adopt.run(&config, &*store).await?,
        }
        store.close().await;
        Ok(())
    }
}

impl Adopt {
    async fn run(&self, config: &Config, store: &dyn Store) -> Result<(), Failure> {
        if !self.dry_run {
            store.migrate().await?;
        }
        let rules = rules(config);
        let tally = adopt(store, &self.from, &rules, &clock(), self.dry_run).await?;
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
            (tally.without_id, "rows passed over: without a Clerk id they are nobody's"),
        ] {
            if count > 0 {
                say!("{count:>9}  {what}");
            }
        }
        for (name, columns) in &tally.columns {
            for column in columns {
                say!("           {column} → {name}");
            }
        }
        say!("A column that is empty everywhere is not listed.");
        say!("Only the fields in SYNC_FIELDS are copied; {} itself is left as it is.", self.from);
    }
}
