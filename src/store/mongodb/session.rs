//! How commands are sent: alone, or in a transaction.
//!
//! The driver's futures must be polled to their end, so each command runs in its own task, which cannot be cancelled. A
//! transaction moves its session into the task of each command. If it is dropped before its end, it is aborted.
//!
//! A transaction never waits for a lock. A transaction that writes a document that another one has written fails with a
//! conflict at once, and begins again from scratch. A transaction also announces things outside itself: leases on
//! deliveries, and its place among the writers of audit lines. These announcements are withdrawn when it ends, and expire
//! if its process dies.
//! if its process dies.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::{
    Client, ClientSession, Database,
    bson::{Bson, Document, doc},
    options::{Acknowledgment, ReadConcern, TransactionOptions, WriteConcern},
};
use rand::RngExt as _;
use tokio::{sync::Notify, task::JoinHandle};

use super::{
    cells::Cells as _,
    error::{explain, refusal_in},
    objects::Rules,
};
use crate::{
    model::{ClerkId, Kinds},
    store::{ErrorKind, Mark, Patience, Result, RowFate, Session, StoreError, Way, prefix},
};

/// The age beyond which a transaction is not committed. A server ends transactions after 60 s, and other processes wait
/// for a dead one no longer than [`DEAD`](super::seals::DEAD).
const OLDEST: Duration = Duration::from_secs(45);

/// How often one of the backend's own transactions begins again after a conflict.
pub(super) const REPEATS: u32 = 40;

/// The shared state that every command needs.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) kinds: Kinds,
    pub(super) anonymize_columns: Vec<String>,
    pub(super) bell: Arc<Notify>,
    /// Number of transactions that pause after a conflict.
    pub(super) waiting: AtomicU32,
}

/// Sends commands.
#[async_trait]
pub(super) trait Commands: Send {
    /// Send a command and read its answer. A refused write is returned as an error.
    async fn command(&mut self, command: Document) -> Result<Document>;

    /// The documents that `find` or `aggregate` returns.
    async fn rows(&mut self, command: Document) -> Result<Vec<Document>> {
        let collection =
            command.iter().next().and_then(|(_, name)| name.as_str()).unwrap_or_default().to_owned();
        let mut answer = self.command(command).await?;
        let mut rows = Vec::new();
        loop {
            let Some(Bson::Document(mut cursor)) = answer.remove("cursor") else {
                return Err(StoreError::new(ErrorKind::Broken));
            };
            let batch = cursor.remove("firstBatch").or_else(|| cursor.remove("nextBatch"));
            if let Some(Bson::Array(batch)) = batch {
                rows.extend(batch.into_iter().filter_map(|row| match row {
                    Bson::Document(row) => Some(row),
                    _ => None,
                }));
            }
            match cursor.get_i64("id") {
                Ok(0) => return Ok(rows),
                Ok(id) => answer = self.command(doc! { "getMore": id, "collection": &collection }).await?,
                Err(_) => return Err(StoreError::new(ErrorKind::Broken)),
            }
        }
    }

    /// The documents that match a filter, in no particular order.
    async fn find(&mut self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        self.rows(doc! { "find": prefix::of_table(collection), "filter": filter }).await
    }

    /// The first documents that match a filter, in this order.
    async fn page(
        &mut self,
        collection: &str,
        filter: Document,
        sort: Document,
        limit: u32,
    ) -> Result<Vec<Document>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let limit = i64::from(limit);
        let find =
            doc! { "find": prefix::of_table(collection), "filter": filter, "sort": sort, "limit": limit };
        self.rows(find).await
    }

    /// The number of documents that match a filter.
    async fn count(&mut self, collection: &str, filter: Document) -> Result<u64> {
        let pipeline =
            vec![doc! { "$match": filter }, doc! { "$group": { "_id": null, "n": { "$sum": 1 } } }];
        let rows = self.aggregate(collection, pipeline).await?;
        Ok(rows.first().and_then(|row| row.maybe("n")).unwrap_or(0))
    }

    /// The result of a pipeline.
    async fn aggregate(&mut self, collection: &str, pipeline: Vec<Document>) -> Result<Vec<Document>> {
        let name = prefix::of_table(collection);
        self.rows(doc! { "aggregate": name, "pipeline": pipeline, "cursor": {} }).await
    }

    /// Insert documents.
    async fn put(&mut self, collection: &str, documents: Vec<Document>) -> Result<()> {
        if !documents.is_empty() {
            self.command(doc! { "insert": prefix::of_table(collection), "documents": documents }).await?;
        }
        Ok(())
    }

    /// Run updates, each in the form of the command; returns how many documents they matched.
    async fn amend(&mut self, collection: &str, updates: Vec<Document>) -> Result<u64> {
        if updates.is_empty() {
            return Ok(0);
        }
        let answer =
            self.command(doc! { "update": prefix::of_table(collection), "updates": updates }).await?;
        answer.need("n")
    }

    /// Apply one update to all documents that match a filter.
    async fn change(&mut self, collection: &str, filter: Document, update: Document) -> Result<u64> {
        self.amend(collection, vec![doc! { "q": filter, "u": update, "multi": true }]).await
    }

    /// Delete all documents that match a filter; returns how many.
    async fn delete(&mut self, collection: &str, filter: Document) -> Result<u64> {
        let deletes = vec![doc! { "q": filter, "limit": 0 }];
        let answer =
            self.command(doc! { "delete": prefix::of_table(collection), "deletes": deletes }).await?;
        answer.need("n")
    }
}

/// A command outside a transaction. It reads what a majority has, and writes with acknowledgement from the disks of a majority.
pub(super) struct Alone<'s>(pub(super) &'s Arc<Server>);

#[async_trait]
impl Commands for Alone<'_> {
    async fn command(&mut self, mut command: Document) -> Result<Document> {
        let verb = command.keys().next().map(String::as_str).unwrap_or_default();
        match verb {
            "find" | "aggregate" => _ = command.insert("readConcern", doc! { "level": "majority" }),
            "insert" | "update" | "delete" | "findAndModify" | "create" | "createIndexes" | "dropIndexes" => {
                command.insert("writeConcern", doc! { "w": "majority", "j": true });
            }
            _ => {}
        }
        let database = self.0.database.clone();
        let sent = tokio::spawn(async move { database.run_command(command).await });
        refused(joined(sent).await?.map_err(|error| explain(&error))?)
    }
}

/// The answer, unless it reports a failed write.
fn refused(answer: Document) -> Result<Document> {
    refusal_in(&answer).map_or(Ok(answer), Err)
}

async fn joined<T>(task: JoinHandle<T>) -> Result<T> {
    task.await.map_err(|_| StoreError::new(ErrorKind::Unavailable))
}

/// Reserve this many consecutive unique numbers; returns the first.
pub(super) async fn numbers(server: &Arc<Server>, of: &str, many: usize) -> Result<i64> {
    let many = i64::try_from(many).unwrap_or(i64::MAX);
    let command = doc! {
        "findAndModify": prefix::of_table("counters"), "query": { "_id": of }, "upsert": true, "new": true,
        "update": { "$inc": { "next": many } },
    };
    let answer = Alone(server).command(command).await?;
    let counter = answer.get_document("value").map_err(|_| StoreError::new(ErrorKind::Broken))?;
    // The first number of all is 1.
    Ok(counter.need::<i64>("next")? - many + 1)
}

/// Create the counters, and move each one past the numbers that rows have: a restore may leave it behind.
pub(super) async fn settle_numbers(server: &Arc<Server>) -> Result<()> {
    let mut alone = Alone(server);
    let objects = crate::entity::ALL.iter().map(|entity| (entity.table, "number"));
    let mut counters = Vec::new();
    for (name, field) in objects.chain([("outbox", "_id"), ("audit_log", "_id")]) {
        let last = alone.page(name, doc! {}, doc! { field: -1 }, 1).await?;
        let last: i64 = last.first().and_then(|row| row.maybe(field)).unwrap_or_default();
        // The counter of the audit trail holds the next number, the others hold the last one.
        let next = last + i64::from(name == "audit_log");
        counters.push(doc! { "q": { "_id": name }, "u": { "$max": { "next": next } }, "upsert": true });
    }
    alone.amend("counters", counters).await.map(drop)
}

/// The time of the server's clock.
pub(super) async fn server_time(server: &Arc<Server>) -> Result<DateTime<Utc>> {
    Alone(server).command(doc! { "hello": 1 }).await?.need("localTime")
}

/// A transaction.
pub(super) struct MongoSession {
    pub(super) server: Arc<Server>,
    /// `None` while a command runs, and after the end.
    session: Option<ClientSession>,
    /// The error that ended the transaction: every error ends it on the server.
    over: Option<StoreError>,
    began: Instant,
    pub(super) patience: Patience,
    pub(super) beside: Beside,
    leaves_work: bool,
}

/// What a transaction has announced outside itself.
#[derive(Default)]
pub(super) struct Beside {
    /// Identifies the deliveries that it has claimed.
    pub(super) lease: Option<String>,
    /// Its place among the writers of audit lines.
    pub(super) writer: Option<String>,
}

impl MongoSession {
    pub(super) async fn begin(server: &Arc<Server>, patience: Patience) -> Result<Self> {
        let client = server.client.clone();
        let started = tokio::spawn(async move {
            let mut session = client.start_session().await?;
            let majority = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
            let options =
                TransactionOptions::builder().read_concern(ReadConcern::snapshot()).write_concern(majority);
            session.start_transaction().with_options(options.build()).await?;
            Ok(session)
        });
        Ok(Self {
            server: Arc::clone(server),
            session: Some(joined(started).await?.map_err(|error| explain(&error))?),
            over: None,
            began: Instant::now(),
            patience,
            beside: Beside::default(),
            leaves_work: false,
        })
    }

    /// Run commands outside the transaction.
    pub(super) fn alone(&self) -> Alone<'_> {
        Alone(&self.server)
    }

    /// Mark the transaction as failed for this reason.
    pub(super) fn fail(&mut self, reason: StoreError) -> StoreError {
        self.over.get_or_insert_with(|| reason.clone());
        reason
    }

    /// Insert documents with numbers. If a number is taken, the counters are behind, and the transaction begins again.
    pub(super) async fn put_numbered(
        &mut self,
        collection: &'static str,
        documents: Vec<Document>,
    ) -> Result<()> {
        let Err(error) = self.put(collection, documents).await else { return Ok(()) };
        if !error.is_taken() || !matches!(error.place.as_deref(), Some("index on number" | "index on _id")) {
            return Err(error);
        }
        settle_numbers(&self.server).await?;
        Err(StoreError { code: error.code, ..StoreError::new(ErrorKind::Conflict) })
    }

    pub(super) fn leaves_work(&mut self) {
        self.leaves_work = true;
    }
}

#[async_trait]
impl Commands for MongoSession {
    async fn command(&mut self, command: Document) -> Result<Document> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let mut session = self.session.take().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
        let database = self.server.database.clone();
        let sent = tokio::spawn(async move {
            let answer = database.run_command(command).session(&mut session).await;
            (session, answer)
        });
        let (session, answer) = joined(sent).await?;
        self.session = Some(session);
        match answer.map_err(|error| explain(&error)).and_then(refused) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if error.kind == ErrorKind::Conflict {
                    // The first writer may soon be done. The pause grows with the number of waiting transactions.
                    let others = self.server.waiting.fetch_add(1, Ordering::Relaxed);
                    pause(6 * (others + 1)).await;
                    self.server.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                Err(self.fail(error))
            }
        }
    }
}

impl Beside {
    fn is_empty(&self) -> bool {
        self.lease.is_none() && self.writer.is_none()
    }

    /// Withdraw the announcements. If that fails twice, as it does while the server is unreachable, they expire.
    async fn end(self, server: &Arc<Server>) {
        if let Some(lease) = self.lease {
            let free = doc! { "$unset": { "lease": "", "leased_until": "" } };
            take_back(server, "webhook_queue", doc! { "lease": lease }, free).await;
        }
        if let Some(writer) = self.writer {
            let gone = doc! { "$unset": { format!("writing.{writer}"): "" } };
            take_back(server, "counters", doc! { "_id": "audit_log" }, gone).await;
        }
    }
}

/// Make an update, and try it once more if it fails: the driver does not retry updates of several documents.
async fn take_back(server: &Arc<Server>, collection: &str, these: Document, update: Document) {
    if Alone(server).change(collection, these.clone(), update.clone()).await.is_err() {
        _ = Alone(server).change(collection, these, update).await;
    }
}

impl Drop for MongoSession {
    fn drop(&mut self) {
        let beside = std::mem::take(&mut self.beside);
        if (self.session.is_none() && beside.is_empty()) || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (session, server) = (self.session.take(), Arc::clone(&self.server));
        tokio::spawn(async move { ended(session, &server, beside).await });
    }
}

/// Abort a transaction, and withdraw its announcements.
async fn ended(session: Option<ClientSession>, server: &Arc<Server>, beside: Beside) {
    if let Some(mut session) = session {
        _ = session.abort_transaction().await;
    }
    beside.end(server).await;
}

#[async_trait]
impl Session for MongoSession {
    fn kinds(&self) -> Kinds {
        self.server.kinds
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        self.take_out(ids, ways, at).await
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        let rules = &mut Rules::default();
        for (id, at) in marks {
            self.mark_rows(rules, id.entity(), doc! { "clerkId": id.as_str() }, *at, mark).await?;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        let session = self.session.take();
        let is_late = self.began.elapsed() > OLDEST;
        let (Some(mut session), None, false) = (session, self.over.take(), is_late) else {
            let error = self.over.clone().unwrap_or_else(|| StoreError::new(ErrorKind::Late));
            self.rollback().await;
            return Err(error);
        };
        let (server, beside) = (Arc::clone(&self.server), std::mem::take(&mut self.beside));
        let rings = self.leaves_work;
        let ending = tokio::spawn(async move {
            let committed = session.commit_transaction().await.map_err(|error| explain(&error));
            if committed.is_err() {
                _ = session.abort_transaction().await;
            }
            beside.end(&server).await;
            if committed.is_ok() && rings {
                server.bell.notify_one();
            }
            committed
        });
        joined(ending).await?
    }

    async fn rollback(mut self: Box<Self>) {
        let (session, beside) = (self.session.take(), std::mem::take(&mut self.beside));
        let server = Arc::clone(&self.server);
        _ = tokio::spawn(async move { ended(session, &server, beside).await }).await;
    }
}

/// Run work in its own transaction, which begins again after a conflict.
macro_rules! transact {
    ($server:expr, $session:ident => $work:expr) => {{
        let mut tries = 0;
        loop {
            let mut $session = $crate::store::mongodb::session::MongoSession::begin(
                $server,
                $crate::store::Patience::Normal,
            )
            .await?;
            let done: $crate::store::Result<_> = async { $work }.await;
            match $crate::store::mongodb::session::concluded($session, done).await {
                Err(error)
                    if error.kind == $crate::store::ErrorKind::Conflict
                        && tries < $crate::store::mongodb::session::REPEATS =>
                {
                    tries += 1;
                    $crate::store::mongodb::session::pause(tries).await;
                }
                done => break done,
            }
        }
    }};
}
pub(super) use transact;

/// Commit if the work succeeded; otherwise roll back.
pub(super) async fn concluded<T>(session: MongoSession, done: Result<T>) -> Result<T> {
    let session = Box::new(session);
    match done {
        Ok(done) => session.commit().await.map(|()| done),
        Err(error) => {
            session.rollback().await;
            Err(error)
        }
    }
}

/// Pause for a short random time, which grows with the number of attempts.
pub(super) async fn pause(tries: u32) {
    let most = 4 * u64::from(tries.min(100));
    let milliseconds = rand::rng().random_range(1..=most);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
