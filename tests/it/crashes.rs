//! A failure at any moment does not change the end state.
//!
//! The store fails at its n-th statement, for every n, in every possible way; with MongoDB, the n-th command fails on its way.
//! Unanswered deliveries are delivered again. Every table must then hold the same rows as after a run without failures.

use std::{
    collections::{HashMap, HashSet},
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    entity::{ORGANIZATION, ORGANIZATION_MEMBERSHIP, USER},
    model::{
        ClerkId, DeletionPolicy, Delivery, Entity, FieldSet, Kinds, Message, MessageType, Outcome,
        Processing, Selection, Subscription,
    },
    store::{
        Count, Database, ErrorKind, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Mark,
        Migration, MigrationStatus, Readiness, Result, RowFate, Session, Space, Statistics, Store,
        StoreError, Way,
        sql::{Purpose, Row, SqlDatabase, SqlSession, SqlTransaction, Statement, Value},
    },
    sync::{Clock, Frontier, chain, enqueue, erasure},
    work::{
        outbox::{DeliverySettings, Destination, Dispatcher},
        sinks::{Memory, Refusal, Sink},
        worker::{Task, Turn},
    },
};
use tokio::{select, sync::Notify, time::Instant};

use crate::{
    application,
    cable::{Cable, Fate, Judge},
    secantus,
    service::load,
    world::{Event, Keeper, NOW, World, at, clerk_id, run},
};

/// How the n-th call fails.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The call is not executed.
    Refused,
    /// The call is executed, and the answer is lost.
    Lost,
    /// The caller is cancelled before the call begins.
    CutBefore,
    /// The caller is cancelled during the call.
    CutDuring,
    /// The caller is cancelled after the call, before the answer arrives.
    CutAfter,
}

/// Tests of every kind of failure at every call of this scenario.
macro_rules! in_every_way {
    ($keeper:ident, $story:ident) => {
        in_every_way! {
            $keeper, $story,
            a_refused_call_changes_nothing_about_the_end: Refused,
            a_lost_answer_changes_nothing_about_the_end: Lost,
            being_cancelled_before_a_call_changes_nothing_about_the_end: CutBefore,
            being_cancelled_during_a_call_changes_nothing_about_the_end: CutDuring,
            being_cancelled_after_a_call_changes_nothing_about_the_end: CutAfter,
        }
    };
    ($keeper:ident, $story:ident, $($name:ident: $how:ident),+ $(,)?) => {
        $(#[test] fn $name() { run(Keeper::$keeper, |world| $story(world, How::$how)); })+
    };
}

macro_rules! crashes {
    ($($module:ident on $keeper:ident),+ $(,)?) => {
        $(mod $module {
            use super::*;
            in_every_way!($keeper, every_call);
            mod dispatcher {
                use super::*;
                in_every_way!($keeper, every_call_of_a_dispatcher);
            }
            mod by_the_queue {
                use super::*;
                in_every_way!($keeper, every_queued_call);
            }
            mod held_back {
                use super::*;
                in_every_way!($keeper, every_call_of_a_hold);
            }
            mod cascading {
                use super::*;
                in_every_way!($keeper, every_call_of_a_cascade);
            }
            mod sealing {
                use super::*;
                in_every_way!($keeper, every_call_of_sealing);
            }
        })+
    };
}

crashes! {
    postgres on Postgres,
    sqlite on Sqlite,
    mariadb on Mariadb,
    mysql on Mysql,
    mongodb on Mongodb,
}

async fn every_call(world: World, how: How) {
    at_every_call(world, how, Story::new(Processing::Inline)).await;
}

async fn every_queued_call(world: World, how: How) {
    at_every_call(world, how, Story::new(Processing::Queue)).await;
}

async fn every_call_of_a_cascade(mut world: World, how: How) {
    let kinds: [&'static Entity; 3] = [&USER, &ORGANIZATION, &ORGANIZATION_MEMBERSHIP];
    world.rules.selection =
        kinds.into_iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
    at_every_call(world, how, Story::of_a_cascade()).await;
}

async fn at_every_call(mut world: World, how: How, story: Story) {
    world.rules.subscriptions = subscriptions();
    if !world.refuses_deletions() {
        world.rules.deletion = DeletionPolicy::Anonymize;
    }
    application::orders(&world, "").await;
    application::refuse_name(&world, "Bad").await;
    let undisturbed = story.tell(&world, Fault::never()).await.0;
    assert!(
        undisturbed.iter().any(|line| line.contains("deleted-ID@")),
        "the scenario has an anonymised user"
    );
    let mut number = 0;
    loop {
        number += stride(&world);
        let fault = Fault::new(number, how);
        let (end, calls) = story.tell(&world, fault).await;
        assert_eq!(end, undisturbed, "after a failure at call {number}");
        if calls < number {
            break;
        }
    }
    assert!(number > 40, "the scenario has only {number} calls");
}

/// The distance between two failing calls. With MongoDB each run needs a new connection and takes a second, so only every
/// seventh call fails, or every call with `TEST_LOAD=full`.
fn stride(world: &World) -> usize {
    if world.keeper == Keeper::Mongodb { load(7, 1) } else { 1 }
}

fn subscriptions() -> Arc<[Subscription]> {
    let events = MessageType::of(&USER).to_vec();
    Arc::new([Subscription { sink: "crm".to_owned(), events, fields: Selection::of(&USER, FieldSet::ALL) }])
}

/// Fail any call of a dispatcher. The receiver drops repeated messages.
async fn every_call_of_a_dispatcher(mut world: World, how: How) {
    world.rules.subscriptions = subscriptions();
    let mut number = 0;
    loop {
        number += stride(&world);
        world.empty().await;
        let fault = Fault::new(number, how);
        let ear = Arc::new(Ear::default());
        let calls = dispatch_a_life(&world, &fault, &ear).await;
        let mut seen = HashSet::new();
        let mut heard = ear.0.lock().unwrap().clone();
        heard.retain(|(id, _)| seen.insert(id.clone()));
        let of = |user: &str| -> Vec<String> {
            heard.iter().filter_map(|(_, what)| what.strip_suffix(user)).map(ToOwned::to_owned).collect()
        };
        assert_eq!(of("user_a"), ["user.created ", "user.updated "], "after a failure at call {number}");
        assert_eq!(
            of("user_b").last().map(String::as_str),
            Some("user.deleted "),
            "after a failure at call {number}"
        );
        assert_eq!(world.value("SELECT count(*) AS n FROM outbox WHERE state <> 'delivered'").await, "0");
        assert_eq!(
            world.value("SELECT count(*) AS n FROM erasure_receipts WHERE completed_at IS NULL").await,
            "0"
        );
        if calls < number {
            break;
        }
    }
    assert!(number > 8, "the scenario has only {number} calls");
}

/// Deliver messages while a user is erased. Returns the number of calls.
async fn dispatch_a_life(world: &World, fault: &Arc<Fault>, ear: &Arc<Ear>) -> usize {
    let now = Arc::new(AtomicI64::new(world.now.timestamp_millis()));
    let clock: Clock = {
        let now = Arc::clone(&now);
        Arc::new(move || at(now.load(Ordering::SeqCst)))
    };
    let destination = Destination {
        subscription: subscriptions()[0].clone(),
        settings: DeliverySettings::default(),
        sink: Arc::clone(ear) as Arc<dyn Sink>,
        address: "here".to_owned(),
    };
    let troubled = Troubled::new(world, fault).await;
    let mut dispatcher = Dispatcher::new(Arc::clone(&troubled.store), destination, clock);
    let batches = [
        vec![
            Event::created("user_a"),
            Event::created("user_b"),
            Event::updated("user_a", 1).set("username", "b"),
        ],
        vec![Event::deleted("user_b", 1)],
    ];
    for batch in batches {
        world.deliver_all(&batch).await;
        // The writer's clock is minutes behind the dispatcher's. Only the next search from the beginning would find the new
        // messages, and the test does not wait for it.
        dispatcher.frontier = Frontier::default();
        let mut idle = 0;
        while idle < 3 {
            let turn = select! {
                turn = dispatcher.turn() => turn,
                () = fault.cut.notified() => Ok(Turn::More),
            };
            if turn != Ok(Turn::More) {
                idle += 1;
                // A claim that was cut off keeps its rows locked until the server notices.
                world.wait_until_idle().await;
                // Let all claims expire.
                now.fetch_add(31_000, Ordering::SeqCst);
            }
        }
    }
    fault.calls.load(Ordering::SeqCst)
}

/// Message ids with type and user.
#[derive(Default)]
struct Ear(Mutex<Vec<(String, String)>>);

#[async_trait]
impl Sink for Ear {
    async fn deliver(&self, message: &Message, _: &str, _: &dyn Memory) -> std::result::Result<(), Refusal> {
        let what = format!("{} {}", message.kind, message.clerk_id().unwrap());
        self.0.lock().unwrap().push((message.id.clone(), what));
        Ok(())
    }
}

/// Deletions during the grace period: some are cancelled, some are erased at once, and the rest when the period ends.
async fn every_call_of_a_hold(mut world: World, how: How) {
    application::orders(&world, "").await;
    let ids = ["user_a", "user_b", "user_c", "user_d"];
    let (created, deleted) = (ids.map(Event::created), ids.map(|id| Event::deleted(id, 1000)));
    let undisturbed = hold(&mut world, &created, &deleted, Fault::never()).await.0;
    let anonymised = world.refuses_deletions().then_some("deleted-ID@");
    for end in ["USER_DELETION_CANCELLED", "USER_HARD_DELETED", "\"retention\""].into_iter().chain(anonymised)
    {
        assert!(undisturbed.iter().any(|line| line.contains(end)), "the scenario has {end}");
    }
    let mut number = 0;
    loop {
        number += stride(&world);
        let (end, calls) = hold(&mut world, &created, &deleted, Fault::new(number, how)).await;
        assert_eq!(end, undisturbed, "after a failure at call {number}");
        if calls < number {
            break;
        }
    }
    assert!(number > 60, "the scenario has only {number} calls");
}

/// Run the scenario, and repeat unanswered calls at once. Returns the end state and the number of calls.
async fn hold(
    world: &mut World,
    created: &[Event],
    deleted: &[Event],
    fault: Arc<Fault>,
) -> (Vec<String>, usize) {
    world.sql("DELETE FROM orders").await;
    world.empty().await;
    (world.now, world.rules.grace) = (at(NOW), TimeDelta::days(7));
    world.deliver_all(created).await;
    application::order(world, 1, "user_b").await;
    let troubled = Troubled::new(world, &fault).await;
    let store = &*troubled.store;
    let (kept, hurried) = (clerk_id("user_c"), clerk_id("user_d"));

    let deliveries: Vec<Delivery> = deleted.iter().map(|event| world.delivery(event)).collect();
    let answers = fault.disturbed(async { Ok(world.apply(store, &deliveries).await) }).await;
    if !answers.is_some_and(|answers| answers.iter().all(Result::is_ok)) {
        world.wait_until_idle().await;
        world.deliver_all(deleted).await;
    }
    let (rules, now) = (world.rules.clone(), world.now);
    let clock: Clock = Arc::new(move || now);
    if fault.disturbed(erasure::cancel(store, &kept, &rules, &clock)).await.is_none() {
        world.wait_until_idle().await;
        erasure::cancel(&*world.store, &kept, &rules, &clock).await.unwrap();
    }
    if fault.disturbed(erasure::erase_now(store, &hurried, &rules, &clock)).await.is_none() {
        world.wait_until_idle().await;
        erasure::erase_now(&*world.store, &hurried, &rules, &clock).await.unwrap();
    }
    let now = now + TimeDelta::days(8);
    let clock: Clock = Arc::new(move || now);
    if fault.disturbed(erasure::release_due(store, &rules, &clock)).await.is_none() {
        world.wait_until_idle().await;
        erasure::release_due(&*world.store, &rules, &clock).await.unwrap();
    }
    world.wait_until_idle().await;
    let end = world.dump_without(&["attempts", "next_attempt_at"]).await;
    (end, fault.calls.load(Ordering::SeqCst))
}

/// Sealing dies at any call, and another process continues: one chain covers every line.
async fn every_call_of_sealing(world: World, how: How) {
    let mut number = 0;
    loop {
        number += stride(&world);
        world.empty().await;
        let fault = Fault::new(number, how);
        let troubled = Troubled::new(&world, &fault).await;
        for id in ["user_a", "user_b", "user_c"] {
            world.deliver(&Event::created(id)).await;
            fault.disturbed(chain::seal(&*troubled.store, 10, world.now)).await;
            world.wait_until_idle().await;
        }
        while chain::seal(&*world.store, 10, world.now).await.unwrap().unwrap().more {}
        let report = chain::verify(&*world.store, &[], |_| {}).await.unwrap();
        assert!(report.is_whole(), "after a failure at call {number}: {report:?}");
        assert_eq!((report.lines, report.unsealed.lines), (3, 0), "after a failure at call {number}");
        if fault.calls.load(Ordering::SeqCst) < number {
            break;
        }
    }
    assert!(number > 6, "the scenario has only {number} calls");
}

/// A scenario of batches that cover every kind of event.
struct Story {
    batches: Vec<Vec<Event>>,
    processing: Processing,
}

impl Story {
    fn new(processing: Processing) -> Self {
        let session = Event::about("session.created", serde_json::json!({ "id": "sess_1" }), 0);
        Self {
            processing,
            batches: vec![
                vec![Event::created("user_a"), Event::created("user_b"), session],
                // A user with an order, a user without one, and a new user.
                vec![
                    Event::updated("user_b", 1000),
                    Event::updated("user_a", 1000).set("first_name", "Augusta"),
                    Event::deleted("user_a", 2000),
                    Event::deleted("user_b", 2000),
                    Event::created("user_c"),
                ],
                // An event that the application refuses, an unusable event, and a normal event between them.
                vec![
                    Event::created("user_d").set("first_name", "Bad"),
                    Event::updated("user_c", 1000).set("banned", true),
                    Event::raw("unusable"),
                ],
            ],
        }
    }

    /// Two parents are deleted in one batch, one of them kept by an order; a membership belongs to both. A user joins again.
    fn of_a_cascade() -> Self {
        let organization = |id: &str| {
            let data = serde_json::json!({ "id": id, "name": "Acme", "created_at": NOW, "updated_at": NOW });
            Event::about("organization.created", data, NOW)
        };
        let member = |id: &str, organization: &str, user: &str, at: i64| {
            let data = serde_json::json!({
                "id": id, "role": "org:member", "created_at": NOW + at, "updated_at": NOW + at,
                "organization": { "id": organization }, "public_user_data": { "user_id": user },
            });
            Event::about("organizationMembership.created", data, NOW + at)
        };
        let closed = Event::about("organization.deleted", serde_json::json!({ "id": "org_1" }), NOW + 30);
        Self {
            processing: Processing::Inline,
            batches: vec![
                vec![
                    Event::created("user_a"),
                    organization("org_1"),
                    member("orgmem_1", "org_1", "user_a", 0),
                    member("orgmem_2", "org_1", "user_b", 0),
                    member("orgmem_3", "org_2", "user_a", 0),
                    member("orgmem_4", "org_2", "user_b", 0),
                ],
                vec![
                    member("orgmem_5", "org_2", "user_b", 20),
                    Event::deleted("user_a", 2000),
                    member("orgmem_6", "org_1", "user_c", 20),
                    closed,
                    member("orgmem_7", "org_1", "user_c", 40),
                ],
            ],
        }
    }

    async fn deliver(
        &self,
        world: &World,
        store: &dyn Store,
        deliveries: &[Delivery],
    ) -> Vec<Result<Outcome>> {
        let deadline = Instant::now() + Duration::from_secs(7);
        match self.processing {
            Processing::Inline => world.apply(store, deliveries).await,
            Processing::Queue => enqueue(store, deliveries, &world.rules, world.now, deadline).await,
        }
    }

    /// Run the scenario, and deliver unanswered events again at once. Returns the end state and the number of calls.
    async fn tell(&self, world: &World, fault: Arc<Fault>) -> (Vec<String>, usize) {
        world.sql("DELETE FROM orders").await;
        world.empty().await;
        let troubled = Troubled::new(world, &fault).await;
        let store = &*troubled.store;
        for (number, batch) in self.batches.iter().enumerate() {
            if number == 1 {
                application::order(world, 1, "user_a").await;
            }
            let deliveries: Vec<Delivery> = batch.iter().map(|event| world.delivery(event)).collect();
            let answers = select! {
                answers = self.deliver(world, store, &deliveries) => answers,
                () = fault.cut.notified() => deliveries.iter().map(|_| Err(unavailable())).collect(),
            };
            let unanswered: Vec<Event> = batch
                .iter()
                .zip(answers)
                .filter(|(_, answer)| answer.is_err())
                .map(|(event, _)| event.clone())
                .collect();
            match self.processing {
                Processing::Inline => _ = world.deliver_all(&unanswered).await,
                Processing::Queue => {
                    world.enqueue(&unanswered).await;
                    select! {
                        // The result does not matter: the next worker does what this one has not done.
                        _ = world.drain_once(store) => {}
                        () = fault.cut.notified() => {}
                    }
                    world.wait_until_idle().await;
                    world.drain().await;
                }
            }
        }
        world.wait_until_idle().await;
        // An attempt counts even if its answer was lost. A delivery that was delayed may become stale because a newer one
        // overtakes it, so only the outcome may differ.
        let end = match self.processing {
            Processing::Inline => world.dump_without(&["attempts", "next_attempt_at"]).await,
            Processing::Queue => world.dump_without(&["attempts", "next_attempt_at", "outcome"]).await,
        };
        (end, fault.calls.load(Ordering::SeqCst))
    }
}

fn unavailable() -> StoreError {
    StoreError::new(ErrorKind::Unavailable)
}

/// A failure at one call.
struct Fault {
    calls: AtomicUsize,
    at: usize,
    how: How,
    /// Notified to cancel the work.
    cut: Notify,
}

impl Fault {
    fn new(at: usize, how: How) -> Arc<Self> {
        Arc::new(Self { calls: AtomicUsize::new(0), at, how, cut: Notify::new() })
    }

    fn never() -> Arc<Self> {
        Self::new(usize::MAX, How::Refused)
    }

    /// The result, or `None` if the work fails or is cancelled.
    async fn disturbed<T>(&self, work: impl Future<Output = Result<T>>) -> Option<T> {
        select! {
            result = work => result.ok(),
            () = self.cut.notified() => None,
        }
    }

    async fn call<T>(&self, inner: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.is_next() {
            return inner.await;
        }
        match self.how {
            How::Refused => Err(unavailable()),
            How::Lost => inner.await.and(Err(unavailable())),
            How::CutBefore => self.never_return().await,
            How::CutDuring => {
                let mut inner = pin!(inner);
                // Begin the call, and then stop polling it.
                let begun = poll_fn(|context| Poll::Ready(inner.as_mut().poll(context))).await;
                let _kept = begun;
                self.never_return().await
            }
            How::CutAfter => {
                let _kept = inner.await;
                self.never_return().await
            }
        }
    }

    /// Count a call. Returns whether this is the one that fails.
    fn is_next(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.at
    }

    async fn never_return<T>(&self) -> T {
        self.cut.notify_one();
        pending().await
    }
}

/// A failure on the way to MongoDB. Its backend finishes every command that it has begun, even if the caller is cancelled.
impl Judge for Fault {
    fn next(&self) -> Fate {
        if !self.is_next() {
            return Fate::Passes;
        }
        match self.how {
            How::Refused => Fate::Refused,
            How::Lost => Fate::Lost,
            How::CutBefore | How::CutDuring => {
                self.cut.notify_one();
                Fate::Passes
            }
            How::CutAfter => Fate::Told,
        }
    }

    fn answered(&self) {
        self.cut.notify_one();
    }
}

/// A store that fails.
struct Troubled {
    store: Arc<dyn Store>,
    /// The proxy in front of MongoDB.
    _cable: Option<Cable>,
}

impl Troubled {
    async fn new(world: &World, fault: &Arc<Fault>) -> Self {
        let fault = Arc::clone(fault);
        if world.keeper != Keeper::Mongodb {
            let store = Arc::new(TroubledDatabase { inner: world.sql_store(), fault });
            return Self { store, _cable: None };
        }
        let cable = Cable::to(secantus::address_of(&world.keeper.server_url()), fault);
        Self { store: world.open_at(cable.address).await, _cable: Some(cable) }
    }
}

/// An SQL database that fails.
struct TroubledDatabase {
    inner: Arc<dyn SqlDatabase>,
    fault: Arc<Fault>,
}

#[async_trait]
impl Database for TroubledDatabase {
    fn writers(&self) -> usize {
        self.inner.writers()
    }
    async fn migrate(&self) -> Result<Vec<Migration>> {
        self.inner.migrate().await
    }
    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        self.inner.migration_status().await
    }
    async fn ready(&self) -> Result<Readiness> {
        self.inner.ready().await
    }
    fn bell(&self) -> Arc<Notify> {
        self.inner.bell()
    }
    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        self.inner.listen().await
    }
    async fn space(&self) -> Result<Space> {
        self.inner.space().await
    }
    async fn estimate_standing(&self) -> Result<Count> {
        self.inner.estimate_standing().await
    }
    async fn compact(&self, at_most: u64, erased_since: Option<DateTime<Utc>>) -> Result<bool> {
        self.fault.call(self.inner.compact(at_most, erased_since)).await
    }
    async fn foreign_table(&self, table: &str) -> Result<ForeignTable> {
        self.inner.foreign_table(table).await
    }
    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>> {
        self.inner.foreign_rows(reading, after, limit).await
    }
    async fn inspect(&self) -> Result<Inspection> {
        self.inner.inspect().await
    }
    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics> {
        self.inner.statistics(since).await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl SqlDatabase for TroubledDatabase {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>> {
        let inner = self.fault.call(self.inner.session(purpose)).await?;
        Ok(Box::new(TroubledTransaction { inner, fault: Arc::clone(&self.fault) }))
    }
}

/// A call is one statement, or another operation that a backend executes as a unit.
struct TroubledTransaction {
    inner: Box<dyn SqlTransaction>,
    fault: Arc<Fault>,
}

#[async_trait]
impl Session for TroubledTransaction {
    fn kinds(&self) -> Kinds {
        self.inner.kinds()
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        self.fault.call(self.inner.hidden()).await
    }
    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        self.fault.call(self.inner.erase(ids, ways, at)).await
    }
    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        self.fault.call(self.inner.mark(marks, mark)).await
    }
    async fn commit(self: Box<Self>) -> Result<()> {
        self.fault.call(self.inner.commit()).await
    }
    async fn rollback(self: Box<Self>) {
        let Self { inner, fault } = *self;
        // A rollback cannot report a failure. If it is not executed, the transaction is dropped.
        let rollback = async {
            inner.rollback().await;
            Ok(())
        };
        let _ = fault.call(rollback).await;
    }
}

#[async_trait]
impl SqlSession for TroubledTransaction {
    fn takes_steps(&self, statement: &Statement) -> bool {
        self.inner.takes_steps(statement)
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        self.fault.call(self.inner.rows(statement, values)).await
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        self.fault.call(self.inner.execute(statement, values)).await
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        self.fault.call(self.inner.write_objects(table, statement, values)).await
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        self.fault.call(self.inner.try_objects(table, statement, values)).await
    }

    fn fail(&mut self, reason: StoreError) -> StoreError {
        self.inner.fail(reason)
    }

    fn leaves_work(&mut self) {
        self.inner.leaves_work();
    }

    fn removed_personal_data(&mut self) {
        self.inner.removed_personal_data();
    }
}
