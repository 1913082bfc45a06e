//! The same batches straight into SQL: the store's operations, called from two tasks. Events are parsed and planned in advance,
//! so that only the database and its driver are measured.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verifier},
    },
    entity::{USER, user},
    model::{
        Change, ClerkId, Content, DeletionPolicy, Delivery, FieldSet, Object, Outcome, Profile, Register,
        Selection, Value, Version,
    },
    store::{Database as _, Patience, Record, Store, postgres},
    sync::{
        Rules,
        plan::{Plan, Stored, plan},
    },
};

use crate::{
    database::Database,
    events::{self, Event, SECRET},
};

/// The name of its backends.
pub(crate) const CLIENT: &str = "bench: straight SQL";

/// The number of the service's lanes.
const TASKS: usize = 2;

/// The fields that the service syncs by default.
pub(crate) fn fields() -> FieldSet {
    [user::EMAIL, user::FIRST_NAME, user::LAST_NAME, user::IMAGE_URL].into_iter().collect()
}

/// A planned batch.
pub(crate) struct Batch {
    deliveries: Vec<Delivery>,
    ids: Vec<ClerkId>,
    plan: Plan,
    now: DateTime<Utc>,
}

/// Parse and plan events, as the service does while it runs.
pub(crate) fn batches(events: &[Event], size: usize) -> Vec<Batch> {
    let now = Utc::now();
    events.chunks(size).map(|chunk| batch(chunk, now)).collect()
}

fn batch(events: &[Event], now: DateTime<Utc>) -> Batch {
    let deliveries: Vec<Delivery> =
        events.iter().map(|event| delivery(&event.svix_id, &event.body, now)).collect();
    let changes = changes(&deliveries);
    let ids: Vec<ClerkId> = changes
        .iter()
        .map(|(_, change)| change.clerk_id.clone())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut stored = Stored::default();
    for ((_, change), event) in changes.iter().zip(events) {
        if event.existing.is_some() {
            let id = &change.clerk_id;
            stored.registers.insert(id.clone(), register());
            stored.objects.insert(id.clone(), user(id));
        }
    }
    let rules = Rules::new(fields(), DeletionPolicy::Auto);
    let plan = plan(&changes, stored, &rules, now);
    assert!(plan.outcomes.iter().all(|outcome| *outcome == Outcome::Applied), "every event is applied");
    Batch { deliveries, ids, plan, now }
}

/// Sign, verify and parse a body.
pub(crate) fn delivery(svix_id: &str, body: &Bytes, now: DateTime<Utc>) -> Delivery {
    let secret = Secret::parse(SECRET).expect("a valid secret");
    let signature = secret.sign(svix_id, now, body);
    let timestamp = now.timestamp().to_string();
    let headers = SignatureHeaders {
        id: svix_id.as_bytes(),
        timestamp: timestamp.as_bytes(),
        signature: signature.as_bytes(),
    };
    let verified = Verifier::new(vec![secret], 300)
        .expect(&headers, now)
        .and_then(|expected| expected.verify(Bytes::clone(body)))
        .expect("a valid signature");
    event::parse(&verified, &Selection::of(&USER, fields()), now).delivery
}

pub(crate) fn changes(deliveries: &[Delivery]) -> Vec<(&Delivery, &Change)> {
    let change = |delivery: &Delivery| match &delivery.content {
        Content::Change(_) => true,
        Content::Ignored | Content::Unusable(_) => false,
    };
    assert!(deliveries.iter().all(change), "every event changes a user");
    deliveries
        .iter()
        .filter_map(|delivery| match &delivery.content {
            Content::Change(change) => Some((delivery, change)),
            _ => None,
        })
        .collect()
}

fn register() -> Register {
    let at = events::signed_up().timestamp_millis();
    Register::at(Version { version: at, event_at: at, tie: "msg_1".to_owned() })
}

fn user(id: &ClerkId) -> Object {
    let mut profile = Profile::default();
    profile.set(user::EMAIL, Value::Text("ada.1@example.com".to_owned()));
    profile.set(user::FIRST_NAME, Value::Text("Ada".to_owned()));
    profile.set(user::LAST_NAME, Value::Text("Byron".to_owned()));
    profile.set(user::IMAGE_URL, Value::Text("https://img.clerk.com/sample".to_owned()));
    let at = events::signed_up();
    Object {
        clerk_id: id.clone(),
        profile,
        created_at: Some(at),
        updated_at: at,
        synced_at: at,
        deleted_at: None,
    }
}

/// Writes batches.
pub(crate) struct Writer {
    store: std::sync::Arc<postgres::Postgres>,
}

impl Writer {
    pub(crate) async fn connect(database: &Database, schema: &str) -> anyhow::Result<Self> {
        let store = postgres::Postgres::new(postgres::Options {
            connect: database.url(CLIENT).parse()?,
            schema: schema.to_owned(),
            max_connections: u32::try_from(TASKS)?,
            anonymize_columns: Vec::new(),
            kinds: clerk_sync::entity::ALL,
            unique_email: false,
        });
        // Connect before the measurement.
        let (one, two) = (store.begin(Patience::Normal).await?, store.begin(Patience::Normal).await?);
        one.commit().await?;
        two.commit().await?;
        Ok(Self { store: std::sync::Arc::new(store) })
    }

    /// Write all batches; returns how long that took.
    pub(crate) async fn write(&self, batches: Vec<Batch>) -> anyhow::Result<Duration> {
        let mut shares: Vec<Vec<Batch>> = (0..TASKS).map(|_| Vec::new()).collect();
        for (index, batch) in batches.into_iter().enumerate() {
            shares[index % TASKS].push(batch);
        }
        let began = Instant::now();
        let tasks: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let store = std::sync::Arc::clone(&self.store);
                tokio::spawn(async move {
                    for batch in &share {
                        write(&*store, batch).await?;
                    }
                    anyhow::Ok(share)
                })
            })
            .collect();
        let mut done = Vec::new();
        for task in tasks {
            done.push(task.await??);
        }
        let elapsed = began.elapsed();
        // Freed after the measurement.
        drop(done);
        Ok(elapsed)
    }

    pub(crate) async fn close(self) {
        self.store.close().await;
    }
}

/// One transaction: the statements of `sync::apply` without its decisions.
async fn write(store: &dyn Store, batch: &Batch) -> clerk_sync::store::Result<()> {
    let mut records: Vec<Record<'_>> = batch
        .deliveries
        .iter()
        .filter_map(|delivery| {
            Some(Record {
                svix_id: delivery.svix_id.as_ref()?,
                event_type: delivery.event_type.as_deref(),
                outcome: Outcome::Applied,
                clerk_id: delivery.clerk_id.as_ref(),
                event_at: delivery.event_at,
                processed_at: batch.now,
            })
        })
        .collect();
    records.sort_by_key(|record| record.svix_id);
    let selection = Selection::of(&USER, fields());
    let mut transaction = store.begin(Patience::Normal).await?;
    let fresh = transaction.record(&records).await?;
    assert_eq!(fresh.len(), records.len(), "every event is new");
    let _: HashMap<ClerkId, Register> = transaction.registers(&batch.ids).await?;
    let _: HashMap<ClerkId, Object> = transaction.load(&batch.ids, &selection).await?;
    transaction.advance(&batch.plan.registers).await?;
    transaction.insert(&batch.plan.inserts, &selection).await?;
    transaction.update(&batch.plan.updates, &selection).await?;
    transaction.audit(&batch.plan.audit).await?;
    transaction.commit().await
}
