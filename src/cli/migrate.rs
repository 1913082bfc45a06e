//! `migrate`: the tables, and the users of a table that was there before.

use chrono_tz::Tz;
use clap::{Args, Subcommand};

use super::{Failure, ask, clock, open_store, resolve, rules, say, service::init_log, terminal::counted};
use crate::{
    config::{Config, Settings},
    entity,
    model::Entity,
    store::{
        Store,
        sql::{Dialect, ddl},
    },
    sync::adopt::{Named, Tally, Wish, adopt},
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
    /// Take over the users of an existing table, such as one made with Prisma ("User") or Drizzle (users)
    Adopt(Adopt),
    /// For developers: print the next migration, which makes the table of a kind or adds a column to it
    #[command(hide = true)]
    Render {
        /// The kind, as its declaration has it
        #[arg(value_name = "KIND", value_parser = declared)]
        kind: &'static Entity,
        /// Only this column
        #[arg(long, value_name = "NAME")]
        column: Option<String>,
    },
}

fn declared(text: &str) -> Result<&'static Entity, &'static str> {
    entity::named(text).ok_or("no declaration has this kind")
}

/// The next migration of every database.
fn render(entity: &'static Entity, column: Option<&str>) -> Result<(), Failure> {
    // MariaDB and MySQL share theirs.
    for dialect in Dialect::ALL.into_iter().filter(|dialect| dialect.name() == dialect.family()) {
        let sql = match column {
            Some(name) => ddl::add_column(entity, name, dialect),
            None => Some(ddl::create(entity, dialect)),
        };
        let sql = sql.ok_or_else(|| Failure::usage("the declaration has no such column"))?;
        let name = column.map_or_else(String::new, |column| format!("_{column}"));
        say!(
            "-- migrations/{}/{:04}_{}{name}.sql\n{}",
            dialect.family(),
            ddl::next_migration(),
            entity.table,
            ddl::in_a_migration(&sql, dialect)
        );
    }
    Ok(())
}

#[derive(Args)]
struct Adopt {
    /// The table, as in SQL: public."User", or users
    #[arg(long, value_name = "TABLE")]
    from: String,

    /// The column with Clerk's ids; else it is found by what is in it (user_…)
    #[arg(long, value_name = "COLUMN")]
    id_column: Option<String>,

    /// A column of ours, and the table's column that fills it; can be given several times
    #[arg(long = "column", value_name = "OURS=THEIRS", value_parser = pair)]
    columns: Vec<(String, String)>,

    /// Who is deleted, as a condition in SQL: "status = 'gone'"
    #[arg(long, value_name = "SQL")]
    deleted_when: Option<String>,

    /// The column with Clerk's own `updated_at`, if the table has it: events that are not newer are out of date then
    #[arg(long, value_name = "COLUMN")]
    clerk_updated_at: Option<String>,

    /// The zone of times that have none, such as Europe/Berlin; else that of the database
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    time_zone: Option<Tz>,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => {
            Ok((ours.trim().to_owned(), theirs.trim().to_owned()))
        }
        _ => Err("write our column, =, and the table's column: phone_number=phone".to_owned()),
    }
}

fn zone(text: &str) -> Result<Tz, String> {
    text.parse()
        .map_err(|_| "there is no such zone in the IANA database: write Europe/Berlin or UTC".to_owned())
}

impl Migrate {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let action = match self.action {
            Some(Action::Render { kind, column }) => return render(kind, column.as_deref()),
            other => other,
        };
        let config = resolve(settings)?;
        init_log(&config)?;
        let store = ask(&config.database, open_store(&config, false)).await?;
        match action {
            None => {
                let applied = ask(&config.database, store.migrate()).await?;
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
            // It needed no database.
            Some(Action::Render { .. }) => {}
        }
        store.close().await;
        Ok(())
    }
}

impl Adopt {
    async fn run(self, config: &Config, store: &dyn Store) -> Result<(), Failure> {
        if !self.dry_run {
            store.migrate().await?;
        }
        let wish = Wish {
            table: self.from,
            id_column: self.id_column,
            columns: self.columns,
            deleted_when: self.deleted_when,
            clerk_updated_at: self.clerk_updated_at,
            time_zone: self.time_zone,
            dry_run: self.dry_run,
        };
        let tally = adopt(store, &wish, &rules(config), &clock()).await?;
        report(&tally, &wish);
        if tally.refused.users > 0 {
            return Err(Failure::failed("not every user could be taken over"));
        }
        Ok(())
    }
}

fn report(tally: &Tally, wish: &Wish) {
    let (copied, buried) = if wish.dry_run {
        ("would be copied", "deleted by the table: would get a tombstone, and never come back")
    } else {
        ("copied", "deleted by the table: got a tombstone, and never come back")
    };
    say!("{:>9}  {copied}", tally.copied);
    say!("{:>9}  already here, and left as they are", tally.already_here);
    people(&tally.buried, buried);
    people(&tally.standing, "deleted by the table, but known here and not deleted: left as they are");
    for (reason, named) in &tally.left_out {
        people(named, &format!("left out: {reason}"));
    }
    people(&tally.refused, "left out: the database refuses their data");
    for (count, what) in [
        (tally.further_rows, "rows passed over: further ones of somebody who has one"),
        (tally.without_id, "rows passed over: without a Clerk id they are nobody's"),
    ] {
        if count > 0 {
            say!("{count:>9}  {what}");
        }
    }
    say!("Read:");
    say!("           {} → clerk_id", tally.id_column);
    for (column, ours) in &tally.read {
        say!("           {column} → {ours}");
    }
    for column in &tally.marks {
        say!("           {column}: who is deleted");
    }
    if let Some((columns, zone)) = &tally.zoneless {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        say!(
            "The times in {} have no zone: read as {zone}. If they are of another: --time-zone.",
            columns.join(", ")
        );
    }
    if !tally.unread.is_empty() {
        say!("Not read:");
    }
    for (column, why) in &tally.unread {
        say!("           {column}: {why}");
    }
    if !tally.empty.is_empty() {
        say!("Empty in every row, and so not read: {}", tally.empty.join(", "));
    }
    if tally.hides_rows {
        say!(
            "A policy of the database (row level security) may hide rows of {} from this database user.",
            wish.table
        );
    }
    say!("Only the fields in SYNC_FIELDS are copied; {} itself is left as it is.", wish.table);
    if !wish.dry_run {
        say!(
            "Run `clerk-sync backfill` now: it brings what Clerk knows better, and whom the table did not have."
        );
    }
}

/// How many, and the first of them by name.
fn people(named: &Named, what: &str) {
    if named.users > 0 {
        counted(named.users, what, &named.ids);
    }
}
