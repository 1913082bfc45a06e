//! The end state does not depend on the order of deliveries.
//!
//! A model that shares no code with the code under test gets the same deliveries one by one. Every backend must end with the
//! model's state and answers, however the deliveries are shuffled, repeated and cut into batches. Payloads carry every
//! allow-listed field: an absent field would make the order visible, as it should.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    env,
    fmt::Debug,
};

use chrono::TimeDelta;
use clerk_sync::{
    entity::{USER, user},
    model::{
        ClerkId, Field, FieldSet, Message, MessageType, Object, Outcome, Profile, Selection, Subscription,
        Value,
    },
    store::{Claimed, Lease, Patience, RowFilter},
    sync::frontier::BEGINNING,
    work::outbox::ending::Ending,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value as Json, json};

use crate::world::{Event, Keeper, SIGN_UP, World, after, at, clerk_id, plain, run};

#[test]
fn any_shuffled_history_converges_on_postgres() {
    run(Keeper::Postgres, any_shuffled_history_converges);
}

#[test]
fn any_shuffled_history_converges_on_sqlite() {
    run(Keeper::Sqlite, any_shuffled_history_converges);
}

#[test]
fn any_shuffled_history_converges_on_mariadb() {
    run(Keeper::Mariadb, any_shuffled_history_converges);
}

#[test]
fn any_shuffled_history_converges_on_mysql() {
    run(Keeper::Mysql, any_shuffled_history_converges);
}

#[test]
fn any_shuffled_history_converges_on_mongodb() {
    run(Keeper::Mongodb, any_shuffled_history_converges);
}

#[test]
fn every_order_of_a_short_life_converges_on_postgres() {
    run(Keeper::Postgres, every_order_of_a_short_life_converges);
}

#[test]
fn every_order_of_a_short_life_converges_on_sqlite() {
    run(Keeper::Sqlite, every_order_of_a_short_life_converges);
}

#[test]
fn every_order_of_a_short_life_converges_on_mariadb() {
    run(Keeper::Mariadb, every_order_of_a_short_life_converges);
}

#[test]
fn every_order_of_a_short_life_converges_on_mysql() {
    run(Keeper::Mysql, every_order_of_a_short_life_converges);
}

#[test]
fn every_order_of_a_short_life_converges_on_mongodb() {
    run(Keeper::Mongodb, every_order_of_a_short_life_converges);
}

async fn any_shuffled_history_converges(mut world: World) {
    let names: FieldSet = [user::FIRST_NAME, user::LAST_NAME].into_iter().collect();
    let sinks = [
        ("crm", MessageType::of(&USER).to_vec(), FieldSet::ALL),
        ("mail", vec![MessageType::updated(&USER)], names),
    ];
    world.rules.subscriptions = sinks
        .into_iter()
        .map(|(sink, events, fields)| Subscription {
            sink: sink.to_owned(),
            events,
            fields: Selection::of(&USER, fields),
        })
        .collect();
    always(&histories(), &async |history| converges(&world, history).await);
}

/// Check the property for `PROPTEST_CASES` generated histories, or for 64.
pub(crate) fn always<T: Debug>(histories: &impl Strategy<Value = T>, holds: &impl AsyncFn(&T)) {
    let cases = if env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 64 };
    let config = Config { cases, failure_persistence: None, max_shrink_time: 30_000, ..Config::default() };
    let handle = tokio::runtime::Handle::current();
    let checked = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(histories, |history| {
            handle.block_on(holds(&history));
            Ok(())
        })
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}

async fn converges(world: &World, history: &History) {
    converges_inline(world, history).await;
    converges_by_the_queue(world, history).await;
}

/// The same history through the queue: stored first, and processed now and then.
async fn converges_by_the_queue(world: &World, history: &History) {
    world.empty().await;
    let mut model = Model::default();
    let mut order = &history.order[..];
    let mut sizes = history.sizes.iter().cycle();
    while !order.is_empty() {
        let size = *sizes.next().unwrap();
        let (batch, rest) = order.split_at(order.len().min(size));
        order = rest;
        let batch: Vec<&News> = batch.iter().map(|index| &history.news[*index]).collect();
        enqueue(world, &model, &batch).await;
        if size.is_multiple_of(3) || order.is_empty() {
            drain(world, &mut model, &history.news).await;
        }
    }
    check(world, &model).await;
}

/// Store a batch: processed deliveries are duplicates, and all others are queued.
async fn enqueue(world: &World, model: &Model, batch: &[&News]) {
    let events: Vec<Event> = batch.iter().map(|news| news.event()).collect();
    for (news, outcome) in batch.iter().zip(world.enqueue(&events).await) {
        let known = model.answers.contains_key(&news.svix_id);
        assert_eq!(outcome, if known { Outcome::Duplicate } else { Outcome::Queued }, "{news:?}");
    }
}

/// Process the queue, and compare the outcomes with the model's, in the same order.
async fn drain(world: &World, model: &mut Model, news: &[News]) {
    for (svix_id, outcome) in world.drain().await {
        let news = news.iter().find(|news| news.svix_id == svix_id).unwrap();
        assert_eq!(outcome, model.hear(news), "the outcome of {news:?}");
    }
}

async fn converges_inline(world: &World, history: &History) {
    world.empty().await;
    let mut model = Model::default();
    let mut order = &history.order[..];
    let mut sizes = history.sizes.iter().cycle();
    let mut receivers = [Receiver::of_all("crm"), Receiver::new("mail")];
    while !order.is_empty() {
        let size = *sizes.next().unwrap();
        let (batch, rest) = order.split_at(order.len().min(size));
        order = rest;
        let batch: Vec<&News> = batch.iter().map(|index| &history.news[*index]).collect();
        deliver(world, &mut model, &batch).await;
        for receiver in &mut receivers {
            receiver.hear(world, size).await;
        }
    }
    check(world, &model).await;
    for receiver in receivers {
        receiver.hear_the_rest(world).await;
    }

    // Without the model: a user that was not deleted has the values of the newest event.
    for (id, known) in model.people {
        let of_user = || history.news.iter().filter(|news| news.user == id);
        let newest = of_user().max_by_key(|news| news.version());
        if let (false, Some(News { says: Says::Looks(looks), .. })) = (known.gone, newest) {
            assert_eq!(world.user(&id).await.unwrap().profile, profile(looks));
        }
        assert_eq!(known.gone, of_user().any(|news| matches!(news.says, Says::Gone)));
    }
}

/// A receiver of messages, which drops repeats.
pub(crate) struct Receiver {
    sink: &'static str,
    /// Whether the sink receives every change.
    of_all: bool,
    seen: HashSet<String>,
    knows: BTreeMap<ClerkId, Json>,
    erased: HashSet<ClerkId>,
    /// Claimed, but not answered yet.
    under_way: Option<Claimed>,
}

impl Receiver {
    pub(crate) fn new(sink: &'static str) -> Self {
        Self {
            sink,
            of_all: false,
            seen: HashSet::new(),
            knows: BTreeMap::new(),
            erased: HashSet::new(),
            under_way: None,
        }
    }

    pub(crate) fn of_all(sink: &'static str) -> Self {
        Self { of_all: true, ..Self::new(sink) }
    }

    /// Receive a few messages: some answers get lost, and one message is still under way at the end.
    pub(crate) async fn hear(&mut self, world: &World, messages: usize) {
        if let Some(claimed) = self.under_way.take() {
            self.take(world, &claimed).await;
        }
        for number in 0..messages {
            let Some(claimed) = self.claim(world, if number % 3 == 1 { 0 } else { 30 }).await else { return };
            if number % 3 == 1 {
                self.learn(&claimed);
            } else if number + 1 == messages {
                self.under_way = Some(claimed);
            } else {
                self.take(world, &claimed).await;
            }
        }
    }

    async fn claim(&self, world: &World, seconds: i64) -> Option<Claimed> {
        let token = format!("{:032x}", rand::random::<u128>());
        let lease = Lease {
            token,
            now: world.now,
            until: world.now + TimeDelta::seconds(seconds),
            address: String::new(),
        };
        world.store.claim_messages(self.sink, BEGINNING..=lease.now, &lease, 1).await.unwrap().pop()
    }

    async fn take(&mut self, world: &World, claimed: &Claimed) {
        self.learn(claimed);
        let ended = [(claimed.clone(), Ending::Delivered)];
        world.finish(&ended).await.unwrap();
    }

    fn learn(&mut self, claimed: &Claimed) {
        let message = Message::read(claimed.kind, &claimed.payload).unwrap();
        if !self.seen.insert(message.id.clone()) {
            return;
        }
        let id = claimed.clerk_id.clone();
        assert!(!self.erased.contains(&id), "{} receives a message about {id} after its deletion", self.sink);
        if message.kind == MessageType::deleted(id.entity()) {
            self.knows.remove(&id);
            self.erased.insert(id);
        } else {
            self.knows.insert(id, Json::Object(message.data));
        }
    }

    /// Receive the remaining messages. The receiver must then know what the rows contain, for the users it received.
    pub(crate) async fn hear_the_rest(mut self, world: &World) {
        if let Some(claimed) = self.under_way.take() {
            self.take(world, &claimed).await;
        }
        while let Some(claimed) = self.claim(world, 30).await {
            self.take(world, &claimed).await;
        }
        let unfinished =
            format!("SELECT * FROM outbox WHERE state <> 'delivered' AND sink = '{}'", self.sink);
        let unfinished = world.rows(&unfinished).await;
        assert!(unfinished.is_empty(), "{unfinished:?}");
        let mut rows = BTreeMap::new();
        for entity in world.rules.selection.entities() {
            let found = world.store.rows(entity, &RowFilter::default(), 1000).await.unwrap();
            rows.extend(found.into_iter().map(|row| (row.object.clerk_id.clone(), row.object)));
        }
        if self.of_all {
            assert!(rows.keys().eq(self.knows.keys()), "{:?} {:?}", rows.keys(), self.knows.keys());
        }
        for (id, known) in self.knows {
            let row = rows.get(&id).expect("a known object has a row");
            for field in id.entity().fields() {
                if let Some(known) = known.get(field.name()) {
                    assert_eq!(Some(known.clone()), row.profile[field].to_json(), "{field:?} of {id}");
                }
            }
        }
    }
}

/// Deliver a batch to the store and the model, and compare the answers.
async fn deliver(world: &World, model: &mut Model, batch: &[&News]) {
    let events: Vec<Event> = batch.iter().map(|news| news.event()).collect();
    let outcomes = world.deliver_all(&events).await;
    for (news, outcome) in batch.iter().zip(outcomes) {
        assert_eq!(outcome, model.hear(news), "the answer to {news:?}");
    }
}

/// Compare everything that is stored with the model.
async fn check(world: &World, model: &Model) {
    let ids: Vec<ClerkId> = model.people.keys().map(|id| clerk_id(id)).collect();
    let mut transaction = world.store.begin(Patience::Normal).await.unwrap();
    let mut users: HashMap<ClerkId, Object> = transaction.load(&ids, &world.rules.selection).await.unwrap();
    transaction.rollback().await;
    for (id, known) in &model.people {
        let found = users.remove(&clerk_id(id));
        let expected = known.row.as_ref().map(|row| Object {
            clerk_id: clerk_id(id),
            profile: row.profile.clone(),
            created_at: Some(at(SIGN_UP)),
            updated_at: row.updated_at,
            synced_at: world.now,
            deleted_at: None,
        });
        assert_eq!(found, expected, "the row of {id}");
    }
    assert_eq!(
        world.count("users").await,
        model.people.values().filter(|known| known.row.is_some()).count() as u64
    );

    let registers = world
        .rows("SELECT clerk_id, version, event_at, tie, deleted FROM entity_versions WHERE kind = 'user'")
        .await;
    let registers: BTreeSet<String> = registers
        .iter()
        .map(|row| {
            ["clerk_id", "version", "event_at", "tie", "deleted"].map(|name| plain(&row[name])).join(" ")
        })
        .collect();
    let expected: BTreeSet<String> = model
        .people
        .iter()
        .map(|(id, Known { newest: (version, event_at, tie), gone, .. })| {
            format!("{id} {version} {event_at} {tie} {}", u8::from(*gone))
        })
        .collect();
    assert_eq!(registers, expected);

    let processed = world.column("SELECT svix_id || ' ' || outcome AS line FROM processed_webhooks").await;
    let expected: BTreeSet<String> =
        model.answers.iter().map(|(svix_id, outcome)| format!("{svix_id} {outcome}")).collect();
    assert_eq!(processed.into_iter().collect::<BTreeSet<_>>(), expected);

    let audit = world.rows("SELECT action, clerk_id, svix_id, changed_fields FROM audit_log").await;
    let mut audit: Vec<String> = audit
        .iter()
        .map(|row| {
            let fields = plain(&row["changed_fields"]).replace(['[', ']', '"', ' '], "");
            format!(
                "{} {} {} {fields}",
                plain(&row["action"]),
                plain(&row["clerk_id"]),
                plain(&row["svix_id"])
            )
        })
        .collect();
    audit.sort();
    let mut expected = model.audit.clone();
    expected.sort();
    assert_eq!(audit, expected);

    let actors = world
        .column("SELECT l.svix_id FROM audit_actors AS a JOIN audit_log AS l ON l.id = a.audit_id")
        .await;
    let expected: BTreeSet<String> = model
        .audit
        .iter()
        .filter_map(|line| {
            let parts: Vec<&str> = line.split(' ').collect();
            (!model.people[parts[1]].gone).then(|| parts[2].to_owned())
        })
        .collect();
    assert_eq!(actors.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(world.count("webhook_queue").await, 0);
}

/// One event about a user.
#[derive(Clone, Debug)]
struct News {
    svix_id: String,
    user: String,
    /// `updated_at` and the envelope's timestamp, in milliseconds after the sign-up.
    times: (i64, i64),
    created: bool,
    says: Says,
}

#[derive(Clone, Debug)]
enum Says {
    Looks(Looks),
    Gone,
}

/// One of three values for each field; the first value is null.
type Looks = [u8; FIELDS];

/// The column for the object as a whole does not count.
const FIELDS: usize = USER.columns.len() - 1;

impl News {
    /// A deletion carries no `updated_at`.
    fn version(&self) -> (i64, i64, String) {
        let version = if matches!(self.says, Says::Gone) { self.times.1 } else { self.times.0 };
        (SIGN_UP + version, SIGN_UP + self.times.1, self.svix_id.clone())
    }

    fn event(&self) -> Event {
        let event = match &self.says {
            Says::Gone => Event::deleted(&self.user, self.times.1),
            Says::Looks(looks) => {
                let event =
                    if self.created { Event::created(&self.user) } else { Event::updated(&self.user, 0) };
                let event = event
                    .set("updated_at", SIGN_UP + self.times.0)
                    .envelope("timestamp", SIGN_UP + self.times.1);
                payload(event, looks)
            }
        };
        event.svix(&self.svix_id)
    }
}

/// Set these values as Clerk sends them.
fn payload(mut event: Event, looks: &Looks) -> Event {
    for (field, look) in USER.selectable().zip(*looks) {
        let name = field.name();
        event = match field.name() {
            "email" if look == 0 => event.set("primary_email_address_id", json!(null)),
            "email" => {
                let status = ["unverified", "verified", "expired"]
                    [usize::from(looks[USER.field("email_verified").place()])];
                let addresses = json!([
                    { "id": "idn_1", "email_address": format!("{look}@example.com"), "verification": { "status": status } },
                ]);
                event.set("email_addresses", addresses)
            }
            "email_verified" => event,
            "phone_number" if look == 0 => event.set("phone_numbers", json!([])),
            "phone_number" => {
                event.set("phone_numbers", json!([{ "id": "idn_2", "phone_number": format!("+{look}") }]))
            }
            "public_metadata" | "unsafe_metadata" | "private_metadata" => event.set(
                name,
                [json!(null), json!({}), json!({ "b": [1, { "c": null }], "a": "x" })][usize::from(look)]
                    .clone(),
            ),
            "banned" | "locked" => {
                event.set(name, [json!(null), json!(true), json!(false)][usize::from(look)].clone())
            }
            "last_sign_in_at" | "last_active_at" => {
                event.set(name, if look == 0 { Json::Null } else { json!(SIGN_UP + i64::from(look)) })
            }
            _ => event.set(name, if look == 0 { Json::Null } else { json!(format!("{name} {look}")) }),
        };
    }
    event
}

/// These values as a row holds them.
fn profile(looks: &Looks) -> Profile {
    let mut profile = Profile::default();
    for (field, look) in USER.selectable().zip(*looks) {
        let has_email = looks[user::EMAIL.place()] != 0;
        let value = match field.name() {
            "email_verified" if has_email => Value::Bool(look == 1),
            "email_verified" => Value::Null,
            _ if look == 0 => Value::Null,
            "email" => Value::Text(format!("{look}@example.com")),
            "phone_number" => Value::Text(format!("+{look}")),
            "public_metadata" | "unsafe_metadata" | "private_metadata" => {
                Value::Json(["", "{}", r#"{"a":"x","b":[1,{"c":null}]}"#][usize::from(look)].to_owned())
            }
            "banned" | "locked" => Value::Bool(look == 1),
            "last_sign_in_at" | "last_active_at" => Value::Time(after(i64::from(look))),
            _ => Value::Text(format!("{} {look}", field.name())),
        };
        profile.set(field, value);
    }
    profile
}

/// A small in-memory model of the rules.
#[derive(Default)]
struct Model {
    answers: BTreeMap<String, Outcome>,
    people: BTreeMap<String, Known>,
    audit: Vec<String>,
}

struct Known {
    newest: (i64, i64, String),
    gone: bool,
    row: Option<Row>,
}

struct Row {
    profile: Profile,
    updated_at: chrono::DateTime<chrono::Utc>,
}

impl Model {
    fn hear(&mut self, news: &News) -> Outcome {
        if self.answers.contains_key(&news.svix_id) {
            return Outcome::Duplicate;
        }
        let outcome = self.learn(news);
        self.answers.insert(news.svix_id.clone(), outcome);
        outcome
    }

    fn learn(&mut self, news: &News) -> Outcome {
        let version = news.version();
        let known = self.people.get(&news.user);
        if known.is_some_and(|known| known.gone) {
            return Outcome::Stale;
        }
        let before = known.and_then(|known| known.row.as_ref()).map(|row| row.profile.clone());
        let Says::Looks(looks) = &news.says else {
            if before.is_some() {
                self.write("USER_HARD_DELETED", news, "");
            }
            self.people.insert(news.user.clone(), Known { newest: version, gone: true, row: None });
            return Outcome::Applied;
        };
        if known.is_some_and(|known| version <= known.newest) {
            return Outcome::Stale;
        }
        let profile = profile(looks);
        let old = before.clone().unwrap_or_default();
        let changed: Vec<&str> =
            USER.fields().filter(|field| old[*field] != profile[*field]).map(Field::name).collect();
        let outcome = match before {
            None => {
                self.write("USER_CREATED", news, &changed.join(","));
                Outcome::Applied
            }
            Some(_) if changed.is_empty() => Outcome::Unchanged,
            Some(_) => {
                self.write("USER_UPDATED", news, &changed.join(","));
                Outcome::Applied
            }
        };
        let row = Some(Row { profile, updated_at: at(version.0) });
        self.people.insert(news.user.clone(), Known { newest: version, gone: false, row });
        outcome
    }

    fn write(&mut self, action: &str, news: &News, changed: &str) {
        self.audit.push(format!("{action} {} {} {changed}", news.user, news.svix_id));
    }
}

#[derive(Clone, Debug)]
struct History {
    news: Vec<News>,
    /// Indices of `news`, some of them more than once.
    order: Vec<usize>,
    /// The sizes of the batches, repeated in a cycle.
    sizes: Vec<usize>,
}

fn histories() -> impl Strategy<Value = History> {
    let looks = prop_oneof![Just([0; FIELDS]), Just([1; FIELDS]), prop::array::uniform15(0..3u8),];
    let says = prop_oneof![8 => looks.prop_map(Says::Looks), 1 => Just(Says::Gone)];
    // Few users and few times, so that events collide.
    let one = (0..4u8, 0..6i64, 0..6i64, any::<bool>(), says);
    let news = prop::collection::vec(one, 1..30).prop_map(|news| {
        let news = news.into_iter().enumerate();
        news.map(|(index, (user, version, event_at, created, says))| News {
            // Svix-ids do not follow the order of the history.
            svix_id: format!("msg_{:03}", index * 37 % 101),
            // Two of the ids differ only in case.
            user: ["user_a", "user_A", "user_b", "user_c"][usize::from(user)].to_owned(),
            times: (version, event_at),
            created,
            says,
        })
        .collect::<Vec<News>>()
    });
    let repeats = prop::collection::vec(any::<prop::sample::Index>(), 0..10);
    let order = (news, repeats).prop_flat_map(|(news, repeats)| {
        let mut order: Vec<usize> = (0..news.len()).collect();
        order.extend(repeats.iter().map(|index| index.index(news.len())));
        (Just(news), Just(order).prop_shuffle())
    });
    (order, prop::collection::vec(1..12usize, 1..6)).prop_map(|((news, order), sizes)| History {
        news,
        order,
        sizes,
    })
}

/// Created, updated, updated, deleted, and one of them twice: in every order, at different and at equal times. Each order
/// has its own user, and all users are processed together: once step by step, once in a single batch.
async fn every_order_of_a_short_life_converges(world: World) {
    const TIMES: [[(i64, i64); 4]; 4] = [
        [(0, 0), (1, 1), (2, 2), (3, 3)],
        // First only the envelope tells the updates apart, then only the svix-id, and then all times are equal.
        [(0, 0), (1, 1), (1, 2), (3, 3)],
        [(0, 0), (1, 1), (1, 1), (1, 1)],
        [(0, 0), (0, 0), (0, 0), (0, 0)],
    ];
    let mut lives: Vec<Vec<News>> = Vec::new();
    for times in TIMES {
        for twice in 0..4 {
            for order in permutations(&[0, 1, 2, 3, twice]) {
                let user = format!("user_{:05}", lives.len());
                let news = |what: usize| News {
                    svix_id: format!("msg_{}_{what}", lives.len()),
                    user: user.clone(),
                    times: times[what],
                    created: what == 0,
                    says: match what {
                        3 => Says::Gone,
                        what => Says::Looks([u8::try_from(what).unwrap(); FIELDS]),
                    },
                };
                lives.push(order.into_iter().map(news).collect());
            }
        }
    }

    let mut model = Model::default();
    for step in 0..5 {
        for lives in lives.chunks(400) {
            let batch: Vec<&News> = lives.iter().map(|life| &life[step]).collect();
            deliver(&world, &mut model, &batch).await;
        }
    }
    check(&world, &model).await;

    world.empty().await;
    let mut model = Model::default();
    for lives in lives.chunks(100) {
        let batch: Vec<&News> = lives.iter().flatten().collect();
        deliver(&world, &mut model, &batch).await;
    }
    check(&world, &model).await;

    // Some of them through the queue: processed step by step, and all at once after the last one is stored.
    let lives: Vec<Vec<News>> = lives.into_iter().step_by(3).collect();
    let all: Vec<News> = lives.iter().flatten().cloned().collect();
    for step_by_step in [true, false] {
        world.empty().await;
        let mut model = Model::default();
        for step in 0..5 {
            for lives in lives.chunks(400) {
                let batch: Vec<&News> = lives.iter().map(|life| &life[step]).collect();
                enqueue(&world, &model, &batch).await;
            }
            if step_by_step {
                drain(&world, &mut model, &all).await;
            }
        }
        drain(&world, &mut model, &all).await;
        check(&world, &model).await;
    }
}

/// Every distinct order of these items.
pub(crate) fn permutations(items: &[usize]) -> BTreeSet<Vec<usize>> {
    let Some((first, rest)) = items.split_first() else { return BTreeSet::from([Vec::new()]) };
    let mut orders = BTreeSet::new();
    for order in permutations(rest) {
        for place in 0..=order.len() {
            let mut order = order.clone();
            order.insert(place, *first);
            orders.insert(order);
        }
    }
    orders
}
