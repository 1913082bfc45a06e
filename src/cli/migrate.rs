//! `migrate`: creates the tables, and imports the users of an existing table.

use chrono_tz::Tz;
use clap::{Args, Subcommand};

use super::{Failure, ask, clock, open_store, resolve, rules, say, service::init_log, terminal::counted};
use crate::{
    config::{Config, Settings},
    entity,
    model::Entity,
    store::{
        Store, StoreError,
        sql::{Dialect, ddl},
    },
    sync::adopt::{Named, Tally, Wish, adopt},
};

/// Apply or list migrations, or import an existing table
#[derive(Args)]
pub(super) struct Migrate {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// List every migration and whether it is applied
    Status,
    /// Import the users of an existing table, for example one created by Prisma ("User") or Drizzle (users)
    Adopt(Adopt),
    /// For developers: print the next migration, which creates the table of a kind or adds a column to it
    #[command(hide = true)]
    Render {
        /// The kind, as in its declaration
        #[arg(value_name = "KIND", value_parser = declared)]
        kind: &'static Entity,
        /// Only this column
        #[arg(long, value_name = "NAME")]
        column: Option<String>,
    },
}

fn declared(text: &str) -> Result<&'static Entity, &'static str> {
    entity::named(text).ok_or("there is no such kind")
}

/// The next migration for every database.
fn render(entity: &'static Entity, column: Option<&str>) -> Result<(), Failure> {
    // MariaDB and MySQL share one dialect.
    for dialect in Dialect::ALL.into_iter().filter(|dialect| dialect.name() == dialect.family()) {
        let sql = match column {
            Some(name) => ddl::add_column(entity, name, dialect),
            None => Some(ddl::create(entity, dialect)),
        };
        let sql = sql.ok_or_else(|| Failure::usage("the kind has no such column"))?;
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

    /// The column with Clerk's ids [default: the column whose values look like user_…]
    #[arg(long, value_name = "COLUMN")]
    id_column: Option<String>,

    /// A column of clerk-sync's table, and the column of the existing table that fills it; may be repeated
    #[arg(long = "column", value_name = "OURS=THEIRS", value_parser = pair)]
    columns: Vec<(String, String)>,

    /// A condition in SQL that is true for deleted users: "status = 'gone'"
    #[arg(long, value_name = "SQL")]
    deleted_when: Option<String>,

    /// The column with Clerk's own `updated_at`, if the table has it: events that are not newer are then stale
    #[arg(long, value_name = "COLUMN")]
    clerk_updated_at: Option<String>,

    /// The time zone of times without one, for example Europe/Berlin [default: that of the database]
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    time_zone: Option<Tz>,

    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => {
            Ok((ours.trim().to_owned(), theirs.trim().to_owned()))
        }
        _ => Err("expected clerk-sync's column, =, and the table's column: phone_number=phone".to_owned()),
    }
}

fn zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| "the IANA database has no such zone: write Europe/Berlin or UTC".to_owned())
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
            // Rendering needs no database.
            Some(Action::Render { .. }) => {}
        }
        store.close().await;
        Ok(())
    }
}

/// Apply the pending migrations at the start of the service.
pub(super) async fn apply(store: &dyn Store) -> Result<(), StoreError> {
    for migration in store.migrate().await? {
        tracing::info!(version = migration.version, name = migration.name, "migration applied");
    }
    Ok(())
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
            return Err(Failure::failed("not every user could be imported"));
        }
        Ok(())
    }
}

fn report(tally: &Tally, wish: &Wish) {
    let (copied, buried) = if wish.dry_run {
        ("would be copied", "deleted according to the table: would get a tombstone, which is permanent")
    } else {
        ("copied", "deleted according to the table: got a tombstone, which is permanent")
    };
    say!("{:>9}  {copied}", tally.copied);
    say!("{:>9}  already here, left unchanged", tally.already_here);
    people(&tally.buried, buried);
    people(&tally.standing, "deleted according to the table, but not deleted here: left unchanged");
    for (reason, named) in &tally.left_out {
        people(named, &format!("left out: {reason}"));
    }
    people(&tally.refused, "left out: the database refuses their data");
    for (count, what) in [
        (tally.further_rows, "rows skipped: another row has the same Clerk id"),
        (tally.without_id, "rows skipped: they have no Clerk id"),
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
        say!("           {column}: marks deleted users");
    }
    if let Some((columns, zone)) = &tally.zoneless {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        say!(
            "The times in {} have no zone, and were read as {zone}. If that is wrong, pass --time-zone.",
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
        say!("Not read because empty in every row: {}", tally.empty.join(", "));
    }
    if tally.hides_rows {
        say!(
            "A row level security policy of the database may hide rows of {} from this database user.",
            wish.table
        );
    }
    say!("Only the fields in SYNC_FIELDS are copied; {} itself is left unchanged.", wish.table);
    if !wish.dry_run {
        say!(
            "Run `clerk-sync backfill` now: it imports newer data from Clerk, and users that the table did not have."
        );
    }
}

/// Print a number of users, and the first of their ids.
fn people(named: &Named, what: &str) {
    if named.users > 0 {
        counted(named.users, what, &named.ids);
    }
}
