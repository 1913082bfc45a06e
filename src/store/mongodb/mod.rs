//! MongoDB: documents instead of rows, with transactions, which need a replica set.
//!
//! This backend keeps the promises of all backends in its own ways. A transaction locks registers by writing to them, and
//! begins again after a conflict. Workers hold leases on deliveries (see `inbox`), and writers of audit lines register
//! themselves (see `seals`). The application's validators and unique indexes can refuse a write, as foreign keys and triggers
//! do in other databases.

mod cells;
mod error;
mod foreign;
mod inbox;
mod ledger;
mod looks;
mod notes;
mod objects;
mod outbox;
mod seals;
mod session;
mod watch;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Notify;

pub use self::objects::path;
use self::{
    cells::{Cells as _, time},
    objects::folded,
    session::{Alone, Commands as _, Server, server_time, settle_numbers, transact},
    watch::Newest,
};
use super::{
    Count, Database, ErrorKind, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Migration,
    MigrationStatus, Patience, Readiness, Result, Size, Space, Statistics, Store, StoreError, Transaction,
    migration::MONGODB, polling::Polling, prefix, schema,
};
use crate::{
    entity::{USER, user},
    model::{AuditAction, AuditEntry, ClerkId, Entity, Kinds, Register, Source},
    store::Ledger as _,
};

/// Two lanes let a batch form while another commits.
const WRITERS: usize = 2;

/// How long a command waits until a suitable server is available.
const SELECTION: Duration = Duration::from_secs(3);

/// A collection with fewer documents than this is counted.
const COUNTED: u64 = 500_000;

/// The collection of migrations.
const MIGRATIONS: &str = "_clerk_sync_migrations";

/// The index of `UNIQUE_EMAIL`.
const UNIQUE_EMAIL: &str = super::UNIQUE_EMAIL_INDEX;

/// The configuration for [`Mongo::connect`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Includes the name of the database.
    pub uri: SecretString,
    /// Fields that the application added to `users`, set to null on anonymisation.
    pub anonymize_columns: Vec<String>,
    /// The kinds of objects that it stores.
    pub kinds: Kinds,
    pub max_connections: u32,
    /// Whether [`Database::migrate`] creates the index of `UNIQUE_EMAIL`; otherwise it drops it.
    pub unique_email: bool,
    /// Whether to poll twice a second for work that other processes add.
    pub polls: bool,
}

/// A database of a MongoDB server.
pub struct Mongo {
    server: Arc<Server>,
    unique_email: bool,
    polls: bool,
    /// Set once every migration is known to be applied.
    migrated: OnceLock<()>,
}

impl fmt::Debug for Mongo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mongo")
    }
}

impl Mongo {
    /// Create the store. Nothing is sent yet, except DNS queries for `mongodb+srv`.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if the driver cannot use the URL or it names no database; [`ErrorKind::Unavailable`] if a host
    /// name cannot be resolved.
    pub async fn connect(options: Options) -> Result<Self> {
        let unusable = || StoreError::schema("DATABASE_URL: the driver cannot use this URL".to_owned());
        let mut client =
            ClientOptions::parse(options.uri.expose_secret()).await.map_err(|error| match *error.kind {
                mongodb::error::ErrorKind::DnsResolve { .. } => StoreError::new(ErrorKind::Unavailable),
                _ => unusable(),
            })?;
        client.app_name.get_or_insert_with(|| "clerk-sync".to_owned());
        client.server_selection_timeout.get_or_insert(SELECTION);
        client.connect_timeout.get_or_insert(SELECTION);
        client.max_pool_size = Some(options.max_connections.max(4));
        let client = Client::with_options(client).map_err(|_| unusable())?;
        let database = client.default_database().ok_or_else(unusable)?;
        let server = Server {
            client,
            database,
            kinds: options.kinds,
            anonymize_columns: options.anonymize_columns,
            bell: Arc::default(),
            waiting: std::sync::atomic::AtomicU32::new(0),
        };
        let Options { unique_email, polls, .. } = options;
        Ok(Self { server: Arc::new(server), unique_email, polls, migrated: OnceLock::new() })
    }

    async fn hello(&self) -> Result<Document> {
        Alone(&self.server).command(doc! { "hello": 1 }).await
    }

    async fn applied(&self) -> Result<Vec<(i64, String)>> {
        let rows = Alone(&self.server).page(MIGRATIONS, doc! {}, doc! { "_id": 1 }, u32::MAX).await?;
        rows.iter().map(|row| Ok((row.need("_id")?, row.need("checksum")?))).collect()
    }

    /// Check that every migration is applied. Without its indexes, the database would accept an id twice.
    async fn is_migrated(&self) -> Result<()> {
        if self.migrated.get().is_none() {
            if self.migration_status().await?.iter().any(|status| !status.applied) {
                return Err(StoreError::schema("migrations are pending: run clerk-sync migrate".to_owned()));
            }
            _ = self.migrated.set(());
        }
        Ok(())
    }

    /// Run the commands of a migration. Each of them can be repeated.
    async fn apply(&self, migration: &Migration) -> Result<bool> {
        let mut alone = Alone(&self.server);
        let broken = |_| StoreError::schema(format!("migration {} cannot be read", migration.version));
        let commands: Vec<Document> = serde_json::from_str(migration.sql).map_err(broken)?;
        for mut command in commands {
            if let Some((_, name)) = command.iter_mut().next() {
                *name = prefix::of_table(name.as_str().unwrap_or_default()).into();
            }
            alone.command(command).await?;
        }
        let applied = doc! {
            "_id": migration.version, "name": migration.name, "checksum": migration.checksum(),
            "applied_at": time(server_time(&self.server).await?),
        };
        match alone.put(MIGRATIONS, vec![applied]).await {
            // Another process applied it at the same time.
            Err(error) if error.is_taken() => Ok(false),
            done => done.map(|()| true),
        }
    }

    async fn has_unique_email(&self) -> Result<bool> {
        let command = doc! { "listIndexes": prefix::of_table(USER.table), "cursor": {} };
        let indexes = Alone(&self.server).rows(command).await?;
        Ok(indexes.iter().any(|index| index.get_str("name").is_ok_and(|name| name == UNIQUE_EMAIL)))
    }

    /// Create or drop the index of `UNIQUE_EMAIL`. If several users have one address, the newest claim keeps it.
    async fn settle_unique_email(&self) -> Result<()> {
        let name = prefix::of_table(USER.table);
        if self.has_unique_email().await? == self.unique_email {
            return Ok(());
        }
        let mut alone = Alone(&self.server);
        if !self.unique_email {
            return alone.command(doc! { "dropIndexes": name, "index": UNIQUE_EMAIL }).await.map(drop);
        }
        let lost = self.give_up_addresses().await?;
        if lost > 0 {
            tracing::warn!(
                users = lost,
                "UNIQUE_EMAIL: users lost an address that another user has claimed later"
            );
        }
        let address = folded(user::EMAIL);
        // A row that the application has marked as deleted also frees its address.
        let live = doc! { &address: { "$type": "string" }, "deletedAt": { "$type": "null" } };
        let index = doc! {
            "name": UNIQUE_EMAIL, "key": { address: 1 }, "unique": true, "partialFilterExpression": live,
        };
        alone.command(doc! { "createIndexes": name, "indexes": [index] }).await.map(drop)
    }

    async fn give_up_addresses(&self) -> Result<usize> {
        let address = folded(user::EMAIL);
        let now = server_time(&self.server).await?;
        transact!(&self.server, session => {
            let live = doc! { &address: { "$type": "string" }, "deletedAt": null };
            let mut holders: std::collections::BTreeMap<String, Vec<ClerkId>> = std::collections::BTreeMap::new();
            for row in session.find(USER.table, live).await? {
                holders.entry(row.need(&address)?).or_default().push(row.id_of(&USER, "clerkId")?);
            }
            let mut lost = Vec::new();
            for mut ids in holders.into_values().filter(|ids| ids.len() > 1) {
                ids.sort();
                let registers = session.registers(&ids).await?;
                let claim = |id: &ClerkId| {
                    let register: Option<&Register> = registers.get(id);
                    let is_gone = register.is_some_and(|register| register.deleted);
                    (!is_gone, register.map(|register| register.version.version), id.clone())
                };
                ids.sort_by_key(claim);
                ids.pop();
                lost.extend(ids);
            }
            lost.sort();
            let entry = |clerk_id: &ClerkId| AuditEntry {
                at: now,
                action: AuditAction::Updated,
                clerk_id: clerk_id.clone(),
                svix_id: None,
                source: Source::Cli,
                changed_fields: vec![user::EMAIL],
                event_at: now,
                actor: None,
            };
            session.release_addresses(&lost).await?;
            session.audit(&lost.iter().map(entry).collect::<Vec<_>>()).await?;
            Ok(lost.len())
        })
    }

    async fn size(&self) -> Result<(u64, Option<u64>)> {
        let stats = Alone(&self.server).command(doc! { "dbStats": 1 }).await?;
        let number = |name: &str| stats.maybe::<u64>(name);
        let taken = number("totalSize").or_else(|| Some(number("storageSize")? + number("indexSize")?));
        let free =
            number("fsTotalSize").zip(number("fsUsedSize")).map(|(all, used)| all.saturating_sub(used));
        Ok((taken.unwrap_or_default(), free))
    }
}

/// The command that creates the indexes of a kind.
fn indexes_of(entity: &'static Entity) -> Document {
    let mut indexes = vec![
        doc! { "name": "clerk_id", "key": { "clerkId": 1 }, "unique": true },
        doc! { "name": "number", "key": { "number": 1 }, "unique": true },
    ];
    for (field, _) in entity.parents() {
        indexes.push(doc! { "name": field.name(), "key": { path(field): 1, "number": 1 } });
    }
    let address = entity
        .fields()
        .filter(|field| field.anonymized == crate::model::Anonymized::Address || field.is_address);
    for field in address {
        indexes.push(doc! { "name": format!("{}_folded", field.name()), "key": { folded(field): 1 } });
    }
    if *entity == USER {
        indexes.push(doc! { "name": "created_at", "key": { "createdAt": 1 } });
    }
    doc! { "createIndexes": prefix::of_table(entity.table), "indexes": indexes }
}

/// The error if the indexes of a kind cannot be created.
fn not_ours(error: StoreError, entity: &Entity) -> StoreError {
    if !error.is_taken() && error.kind != ErrorKind::Broken {
        return error;
    }
    StoreError::schema(format!(
        "collection {} contains documents or indexes that clerk-sync did not create ({}). Nothing in it was changed. Set \
         TABLE_PREFIX, or name another database in DATABASE_URL",
        prefix::of_table(entity.table),
        error.code_or_kind()
    ))
}

#[async_trait]
impl Store for Mongo {
    async fn begin(&self, patience: Patience) -> Result<Box<dyn Transaction>> {
        self.is_migrated().await?;
        Ok(Box::new(session::MongoSession::begin(&self.server, patience).await?))
    }

    async fn begin_at_once(&self) -> Result<Box<dyn Transaction>> {
        self.begin(Patience::Normal).await
    }
}

#[async_trait]
impl Database for Mongo {
    fn writers(&self) -> usize {
        WRITERS
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        if !self.hello().await?.contains_key("setName") {
            return Err(error::standalone());
        }
        let pending = Migration::pending(MONGODB, &self.applied().await?)?;
        let mut alone = Alone(&self.server);
        let found = alone.rows(doc! { "listCollections": 1, "nameOnly": true, "cursor": {} }).await?;
        let found: Vec<String> = found.iter().filter_map(|found| found.maybe("name")).collect();
        let is_new =
            |entity: &&&Entity| !pending.is_empty() || !found.contains(&prefix::of_table(entity.table));
        for entity in self.server.kinds.iter().filter(is_new) {
            alone.command(indexes_of(entity)).await.map_err(|error| not_ours(error, entity))?;
        }
        let mut applied = Vec::new();
        for migration in pending {
            if self.apply(&migration).await? {
                applied.push(migration);
            }
        }
        settle_numbers(&self.server).await?;
        self.settle_unique_email().await?;
        let ours: Vec<String> = USER.fields().map(path).collect();
        match self.server.anonymize_columns.iter().find(|name| ours.contains(name)) {
            Some(name) => Err(StoreError::schema(format!(
                "ANONYMIZE_COLUMNS: field {name} is clerk-sync's own field and always anonymised: leave it out"
            ))),
            None => Ok(applied),
        }
    }

    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        Migration::checked(MONGODB, &self.applied().await?)
    }

    async fn ready(&self) -> Result<Readiness> {
        let hello = self.hello().await?;
        if hello.maybe::<bool>("isWritablePrimary") != Some(true) {
            return Ok(Readiness::ReadOnly);
        }
        let current = self.migration_status().await?.iter().all(|status| status.applied);
        Ok(if current { Readiness::Ready } else { Readiness::SchemaNotCurrent })
    }

    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.server.bell)
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        Ok(if self.polls { Some(Polling::of(Newest(Arc::clone(&self.server))).await?) } else { None })
    }

    async fn space(&self) -> Result<Space> {
        let (taken, free) = self.size().await?;
        Ok(Space { taken, free })
    }

    async fn estimate_standing(&self) -> Result<Count> {
        let mut alone = Alone(&self.server);
        let all = alone.command(doc! { "count": prefix::of_table(USER.table) }).await?;
        let rows: u64 = all.need("n")?;
        if rows >= COUNTED {
            return Ok(Count { rows, estimated: true });
        }
        Ok(Count::exact(alone.count(USER.table, doc! { "deletedAt": null }).await?))
    }

    async fn foreign_table(&self, table: &str) -> Result<ForeignTable> {
        foreign::describe(&self.server, table).await
    }

    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>> {
        foreign::read(&self.server, reading, after, limit).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        let hello = self.hello().await?;
        let info = Alone(&self.server).command(doc! { "buildInfo": 1 }).await?;
        let version: String = info.maybe("version").unwrap_or_default();
        let is_set = hello.contains_key("setName");
        let size = self.size().await.map(|(database, _)| Size { database, ours: None });
        Ok(Inspection {
            now: hello.maybe("localTime"),
            standby: hello.maybe::<bool>("secondary") == Some(true),
            read_only: hello.maybe::<bool>("readOnly") == Some(true),
            migrations: Some(self.migration_status().await),
            tables: if is_set { Ok(()) } else { Err(error::standalone()) },
            bypass: Some(
                "MongoDB has no triggers: an account that may update or delete documents of audit_log can change the trail, and only \
                 seals reveal it",
            ),
            ..Inspection::of(format!("MongoDB {version}"), size)
        })
    }

    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics> {
        let mut alone = Alone(&self.server);
        let mut tables = Vec::new();
        for table in schema::TABLES.iter() {
            let count = alone.command(doc! { "count": prefix::of_table(table.name) }).await?;
            tables.push((table.name, Count::exact(count.need("n")?)));
        }
        let lately = doc! { "$match": { "processed_at": { "$gte": time(since) } } };
        let group = doc! { "$group": { "_id": "$outcome", "n": { "$sum": 1 } } };
        let rows = alone.aggregate("processed_webhooks", vec![lately, group]).await?;
        let outcome = |row: &Document| Ok((row.need("_id")?, row.need("n")?));
        let mut outcomes: Vec<(String, u64)> = rows.iter().map(outcome).collect::<Result<_>>()?;
        outcomes.sort_by(|(one, some), (other, more)| more.cmp(some).then_with(|| one.cmp(other)));
        let newest = doc! { "processed_at": -1 };
        let newest = alone.page("processed_webhooks", doc! {}, newest, 1).await?;
        let erased = doc! { "destination": "database", "completed_at": { "$ne": null } };
        Ok(Statistics {
            tables,
            standing: self.estimate_standing().await?,
            erased: alone.count("erasure_receipts", erased).await?,
            outcomes: Some(outcomes),
            last_event: newest.first().and_then(|row| row.maybe("processed_at")),
            bytes: self.size().await?.0,
        })
    }

    async fn close(&self) {
        let client = self.server.client.clone();
        _ = tokio::spawn(async move { client.shutdown().await }).await;
    }
}
