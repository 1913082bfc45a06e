//! Users, organizations and memberships that are deleted together: the end state does not depend on the order of deliveries.
//!
//! The test generates a history at Clerk: users are created, join, leave, join again and are deleted. It derives Clerk's
//! webhooks from that history. If a deletion deletes other objects too, Clerk may send all of their webhooks or only the first.
//! A model that shares no code with the code under test gets the same deliveries one by one, as in
//! [`convergence`](super::convergence). The end state must also equal Clerk's end state, whatever the model says.

use std::collections::{BTreeMap, BTreeSet};

use clerk_sync::{
    entity::{ORGANIZATION, ORGANIZATION_MEMBERSHIP, USER},
    model::{AuditAction, ClerkId, Entity, FieldSet, MessageType, Outcome, Selection, Subscription},
    store::RowFilter,
};
use proptest::prelude::*;
use serde_json::json;

use crate::{
    convergence::{Receiver, always},
    world::{Event, Keeper, SIGN_UP, World, at, plain, run},
};

const KINDS: [&Entity; 3] = [&USER, &ORGANIZATION, &ORGANIZATION_MEMBERSHIP];

#[test]
fn any_shuffled_history_of_mixed_kinds_converges_on_postgres() {
    run(Keeper::Postgres, any_shuffled_history_of_mixed_kinds_converges);
}

#[test]
fn any_shuffled_history_of_mixed_kinds_converges_on_sqlite() {
    run(Keeper::Sqlite, any_shuffled_history_of_mixed_kinds_converges);
}

#[test]
fn any_shuffled_history_of_mixed_kinds_converges_on_mariadb() {
    run(Keeper::Mariadb, any_shuffled_history_of_mixed_kinds_converges);
}

#[test]
fn any_shuffled_history_of_mixed_kinds_converges_on_mysql() {
    run(Keeper::Mysql, any_shuffled_history_of_mixed_kinds_converges);
}

#[test]
fn any_shuffled_history_of_mixed_kinds_converges_on_mongodb() {
    run(Keeper::Mongodb, any_shuffled_history_of_mixed_kinds_converges);
}

async fn any_shuffled_history_of_mixed_kinds_converges(mut world: World) {
    world.rules.selection =
        KINDS.into_iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));
    world.rules.subscriptions = [
        ("crm", KINDS.into_iter().flat_map(MessageType::of).collect()),
        ("mail", vec![MessageType::updated(&USER), MessageType::updated(&ORGANIZATION_MEMBERSHIP)]),
    ]
    .into_iter()
    .map(|(sink, events)| Subscription {
        sink: sink.to_owned(),
        events,
        fields: world.rules.selection.clone(),
    })
    .collect();
    always(&histories(), &async |history| converges(&world, history).await);
}

async fn converges(world: &World, history: &History) {
    world.empty().await;
    let mut model = Model::default();
    let mut receivers = [Receiver::of_all("crm"), Receiver::new("mail")];
    let mut order = &history.order[..];
    let mut steps = history.steps.iter().cycle();
    while !order.is_empty() {
        let (size, by) = *steps.next().unwrap();
        let (batch, rest) = order.split_at(order.len().min(size));
        order = rest;
        let batch: Vec<&News> = batch.iter().map(|index| &history.news[*index]).collect();
        match by {
            By::Queue { drained } => {
                enqueue(world, &mut model, &batch).await;
                if drained {
                    drain(world, &mut model, &history.news).await;
                }
            }
            By::Hand => deliver(world, &mut model, &batch).await,
        }
        assert_eq!(two_of_a_pair(world).await, [""; 0]);
        for receiver in &mut receivers {
            receiver.hear(world, size).await;
        }
    }
    drain(world, &mut model, &history.news).await;
    check(world, &model).await;
    check_without_model(world, history).await;
    for receiver in receivers {
        receiver.hear_the_rest(world).await;
    }
}

async fn deliver(world: &World, model: &mut Model, batch: &[&News]) {
    let events: Vec<Event> = batch.iter().map(|news| news.event()).collect();
    for (news, outcome) in batch.iter().zip(world.deliver_all(&events).await) {
        assert_eq!(outcome, model.hear(news), "the answer to {news:?}");
    }
}

async fn enqueue(world: &World, model: &mut Model, batch: &[&News]) {
    let events: Vec<Event> = batch.iter().map(|news| news.event()).collect();
    for (news, outcome) in batch.iter().zip(world.enqueue(&events).await) {
        let known = model.answers.contains_key(&news.svix_id);
        assert_eq!(outcome, if known { Outcome::Duplicate } else { Outcome::Queued }, "{news:?}");
        if !known {
            model.waiting.insert(news.svix_id.clone(), news.id.clone());
        }
    }
}

/// Process the queue, and compare the outcomes with the model's, in the same order.
async fn drain(world: &World, model: &mut Model, news: &[News]) {
    let waited: BTreeSet<String> = model.waiting.keys().cloned().collect();
    let worked = world.drain().await;
    assert_eq!(worked.iter().map(|(svix_id, _)| svix_id.clone()).collect::<BTreeSet<_>>(), waited);
    assert_eq!(worked.len(), waited.len(), "each delivery is processed once");
    for (svix_id, outcome) in worked {
        let news = news.iter().find(|news| news.svix_id == svix_id).unwrap();
        assert_eq!(outcome, model.hear(news), "the outcome of {news:?}");
    }
}

/// Organizations and users with more than one live membership for the same pair.
async fn two_of_a_pair(world: &World) -> Vec<String> {
    world
        .column(
            "SELECT organization_id || ' ' || user_id AS pair FROM organization_memberships WHERE deleted_at IS NULL
             GROUP BY organization_id, user_id HAVING count(*) > 1",
        )
        .await
}

/// Every live object with its values and its version.
async fn standing(world: &World) -> BTreeMap<ClerkId, (Looks, i64)> {
    let mut standing = BTreeMap::new();
    for kind in KINDS {
        assert_eq!(
            world.count(kind.table).await,
            world.store.rows(kind, &RowFilter::default(), 1000).await.unwrap().len() as u64
        );
        for row in world.store.rows(kind, &RowFilter::default(), 1000).await.unwrap() {
            let text =
                |name| row.object.profile[kind.field(name)].text().map(ToOwned::to_owned).unwrap_or_default();
            let looks = match kind.kind {
                "user" => vec![text("first_name")],
                "organization" => vec![text("name")],
                _ => vec![text("organization_id"), text("user_id"), text("role")],
            };
            assert_eq!(row.object.synced_at, world.now);
            let since = row.object.created_at.unwrap();
            let updated = (row.object.updated_at - at(SIGN_UP)).num_milliseconds();
            standing.insert(
                row.object.clerk_id,
                (Looks { texts: looks, created: (since - at(SIGN_UP)).num_milliseconds() }, updated),
            );
        }
    }
    standing
}

/// Compare everything that is stored with the model.
async fn check(world: &World, model: &Model) {
    let expected: BTreeMap<ClerkId, (Looks, i64)> =
        model.rows.iter().map(|(id, looks)| (id.clone(), (looks.clone(), model.newest[id].0.0))).collect();
    assert_eq!(standing(world).await, expected);

    let registers = world
        .rows("SELECT kind, clerk_id, version, event_at, tie, deleted FROM entity_versions")
        .await
        .into_iter()
        // A blank register only reserves a place for an object that is not known yet.
        .filter(|row| plain(&row["version"]) != i64::MIN.to_string())
        .map(|row| {
            ["kind", "clerk_id", "version", "event_at", "tie", "deleted"]
                .map(|name| plain(&row[name]))
                .join(" ")
        })
        .collect::<BTreeSet<String>>();
    let expected: BTreeSet<String> = model
        .newest
        .iter()
        .map(|(id, ((version, event_at, tie), gone))| {
            let (version, event_at) = (SIGN_UP + version, SIGN_UP + event_at);
            format!("{} {id} {version} {event_at} {tie} {}", id.entity().kind, u8::from(*gone))
        })
        .collect();
    assert_eq!(registers, expected);

    let processed = world.column("SELECT svix_id || ' ' || outcome AS line FROM processed_webhooks").await;
    let expected: BTreeSet<String> =
        model.answers.iter().map(|(svix_id, outcome)| format!("{svix_id} {outcome}")).collect();
    assert_eq!(processed.into_iter().collect::<BTreeSet<_>>(), expected);

    let mut audit =
        world.column("SELECT action || ' ' || clerk_id || ' ' || svix_id AS line FROM audit_log").await;
    audit.sort();
    let mut expected = model.audit.clone();
    expected.sort();
    assert_eq!(audit, expected);

    let of_the_gone = "SELECT l.clerk_id FROM audit_actors AS a JOIN audit_log AS l ON l.id = a.audit_id
                       JOIN entity_versions AS e ON e.kind = l.kind AND e.clerk_id = l.clerk_id WHERE e.deleted";
    assert_eq!(world.column(of_the_gone).await, [""; 0]);
    assert_eq!(world.count("webhook_queue").await, 0);
}

/// The live objects are exactly Clerk's live objects, and every object that Clerk deleted has a tombstone.
async fn check_without_model(world: &World, history: &History) {
    let here: BTreeMap<ClerkId, Looks> =
        standing(world).await.into_iter().map(|(id, (looks, _))| (id, looks)).collect();
    assert_eq!(here, history.there);
    let dead = world.rows("SELECT kind, clerk_id FROM entity_versions WHERE deleted").await;
    let dead: BTreeSet<String> =
        dead.iter().map(|row| format!("{} {}", plain(&row["kind"]), plain(&row["clerk_id"]))).collect();
    for news in &history.news {
        let id = format!("{} {}", news.id.entity().kind, news.id);
        assert!(!(dead.contains(&id) && history.there.contains_key(&news.id)), "{id} lives");
        assert!(news.looks.is_some() || dead.contains(&id), "the tombstone of {id}");
    }
    let orphans = "SELECT m.clerk_id FROM organization_memberships AS m JOIN entity_versions AS e
        ON (e.kind = 'organization' AND e.clerk_id = m.organization_id) OR (e.kind = 'user' AND e.clerk_id = m.user_id)
        WHERE e.deleted";
    assert_eq!(world.column(orphans).await, [""; 0]);
    let deletions = "SELECT clerk_id FROM audit_log WHERE action LIKE '%DELETED' GROUP BY kind, clerk_id HAVING count(*) > 1";
    assert_eq!(world.column(deletions).await, [""; 0], "nothing is deleted twice");
}

/// The values of an object; for a membership the organization, the user and the role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Looks {
    texts: Vec<String>,
    /// Milliseconds after the sign-up.
    created: i64,
}

/// One event about an object; without values, it is a deletion.
#[derive(Clone, Debug)]
struct News {
    svix_id: String,
    id: ClerkId,
    /// `updated_at` and the envelope's timestamp, in milliseconds after the sign-up.
    times: (i64, i64),
    created: bool,
    looks: Option<Looks>,
}

impl News {
    /// The deletion of a user or an organization carries no `updated_at`; a membership's deletion may.
    fn version(&self) -> (i64, i64, String) {
        (if self.looks.is_none() { self.times.1 } else { self.times.0 }, self.times.1, self.svix_id.clone())
    }

    fn parents(&self) -> Vec<ClerkId> {
        self.looks.as_ref().map(|looks| parents(&self.id, looks)).unwrap_or_default()
    }

    fn event(&self) -> Event {
        let kind = self.id.entity();
        let [created, updated, deleted] = kind.events;
        let timestamp = SIGN_UP + self.times.1;
        let Some(looks) = &self.looks else {
            let data = json!({ "id": self.id.as_str(), "object": kind.kind, "deleted": true });
            return Event::about(deleted, data, timestamp).svix(&self.svix_id);
        };
        let mut data = json!({
            "id": self.id.as_str(),
            "object": kind.kind,
            "created_at": SIGN_UP + looks.created,
            "updated_at": SIGN_UP + self.times.0,
        });
        let said = match &looks.texts[..] {
            [name] if *kind == USER => json!({ "first_name": name }),
            [name] => json!({ "name": name, "created_by": "user_0" }),
            [organization, user, role] => json!({
                "organization": { "id": organization, "name": "as it was", "created_by": "user_0" },
                "public_user_data": { "user_id": user, "identifier": "ada@example.com" },
                "role": role,
            }),
            _ => unreachable!(),
        };
        for (name, value) in said.as_object().unwrap() {
            data[name] = value.clone();
        }
        Event::about(if self.created { created } else { updated }, data, timestamp).svix(&self.svix_id)
    }
}

fn parents(id: &ClerkId, looks: &Looks) -> Vec<ClerkId> {
    match &looks.texts[..] {
        [organization, user, _] if *id.entity() == ORGANIZATION_MEMBERSHIP => {
            vec![ClerkId::new(&ORGANIZATION, organization).unwrap(), ClerkId::new(&USER, user).unwrap()]
        }
        _ => Vec::new(),
    }
}

/// A small in-memory model of the rules.
#[derive(Default)]
struct Model {
    answers: BTreeMap<String, Outcome>,
    /// The deliveries in the queue, with the object of each.
    waiting: BTreeMap<String, ClerkId>,
    newest: BTreeMap<ClerkId, ((i64, i64, String), bool)>,
    rows: BTreeMap<ClerkId, Looks>,
    audit: Vec<String>,
}

impl Model {
    fn hear(&mut self, news: &News) -> Outcome {
        self.waiting.remove(&news.svix_id);
        if let Some(before) = self.answers.get(&news.svix_id) {
            assert_ne!(*before, Outcome::Parked);
            return Outcome::Duplicate;
        }
        let outcome = self.learn(news);
        self.answers.insert(news.svix_id.clone(), outcome);
        outcome
    }

    fn learn(&mut self, news: &News) -> Outcome {
        let is_gone = |id: &ClerkId| self.newest.get(id).is_some_and(|(_, gone)| *gone);
        let was_gone = is_gone(&news.id);
        let Some(looks) = &news.looks else {
            self.bury(&news.id, news);
            let children = self.rows.iter().filter(|(id, looks)| parents(id, looks).contains(&news.id));
            let children: Vec<ClerkId> = children.map(|(id, _)| id.clone()).collect();
            for child in children {
                self.bury(&child, news);
            }
            return if was_gone { Outcome::Stale } else { Outcome::Applied };
        };
        if was_gone || news.parents().iter().any(is_gone) {
            return Outcome::Stale;
        }
        if self.newest.get(&news.id).is_some_and(|(newest, _)| news.version() <= *newest) {
            return Outcome::Stale;
        }
        if let Some(rival) = self.rival(&news.id, looks) {
            let rival_since = self.rows[&rival].created;
            let loser = if looks.created < rival_since { news.id.clone() } else { rival };
            self.bury(&loser, news);
            if loser == news.id {
                return Outcome::Stale;
            }
        }
        self.newest.insert(news.id.clone(), (news.version(), false));
        let before = self.rows.insert(news.id.clone(), looks.clone());
        let action = match before {
            Some(before) if before == *looks => return Outcome::Unchanged,
            Some(_) => AuditAction::Updated,
            None => AuditAction::Created,
        };
        self.write(action, &news.id, news);
        Outcome::Applied
    }

    /// Another membership of the same user in the same organization.
    fn rival(&self, id: &ClerkId, looks: &Looks) -> Option<ClerkId> {
        let pair = parents(id, looks);
        let mut others = self.rows.iter().filter(|(other, _)| *other != id && !pair.is_empty());
        others.find(|(other, looks)| parents(other, looks) == pair).map(|(other, _)| other.clone())
    }

    fn bury(&mut self, id: &ClerkId, cause: &News) {
        self.waiting.retain(|_, waiting| waiting != id);
        if self.newest.get(id).is_some_and(|(_, gone)| *gone) {
            return;
        }
        self.newest.insert(id.clone(), (cause.version(), true));
        if self.rows.remove(id).is_some() {
            self.write(AuditAction::Deleted, id, cause);
        }
    }

    fn write(&mut self, action: AuditAction, id: &ClerkId, cause: &News) {
        self.audit.push(format!("{} {id} {}", action.name(id.entity()), cause.svix_id));
    }
}

#[derive(Clone, Debug)]
struct History {
    news: Vec<News>,
    /// The live objects at the end.
    there: BTreeMap<ClerkId, Looks>,
    /// Indices of `news`, some of them more than once.
    order: Vec<usize>,
    /// The batches: their sizes and ways of delivery, repeated in a cycle.
    steps: Vec<(usize, By)>,
}

#[derive(Clone, Copy, Debug)]
enum By {
    Hand,
    /// Stored first, and processed at once or later.
    Queue {
        drained: bool,
    },
}

/// An action at Clerk on one of a few users or organizations.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// The object is created or updated.
    User(usize),
    Organization(usize),
    /// A user joins an organization, or gets another role.
    Join(usize, usize),
    Leave(usize, usize),
    DeleteUser(usize),
    DeleteOrganization(usize),
}

/// An action with its variable parts: the new values, the delay after the action before, the extra delay in the webhook's
/// timestamp, and the deleted memberships that get their own webhook.
type Happening = (Deed, u8, i64, i64, u8);

/// A model of Clerk.
#[derive(Default)]
struct Clerk {
    clock: i64,
    there: BTreeMap<ClerkId, Looks>,
    gone: BTreeSet<ClerkId>,
    changed: BTreeMap<ClerkId, i64>,
    memberships: usize,
    news: Vec<News>,
}

impl Clerk {
    fn live(happenings: &[Happening]) -> Self {
        let mut clerk = Self::default();
        for happening in happenings {
            clerk.clock += happening.2;
            clerk.does(*happening);
        }
        clerk
    }

    fn does(&mut self, (deed, look, _, late, told): Happening) {
        let user = |number: usize| ClerkId::new(&USER, format!("user_{number}")).unwrap();
        let organization = |number: usize| ClerkId::new(&ORGANIZATION, format!("org_{number}")).unwrap();
        match deed {
            Deed::User(number) => self.shows(user(number), vec![format!("Ada {look}")], late),
            Deed::Organization(number) => {
                self.shows(organization(number), vec![format!("Acme {look}")], late);
            }
            Deed::Join(number, of) => {
                let (user, organization) = (user(number), organization(of));
                if !(self.there.contains_key(&user) && self.there.contains_key(&organization)) {
                    return;
                }
                let pair = [organization.to_string(), user.to_string()];
                let id = self.membership(&pair).unwrap_or_else(|| {
                    self.memberships += 1;
                    // Ids do not follow the order of creation.
                    let number = self.memberships * 7 % 10;
                    // A user joins again only later.
                    self.clock += 1;
                    ClerkId::new(&ORGANIZATION_MEMBERSHIP, format!("orgmem_{number}_{}", self.memberships))
                        .unwrap()
                });
                let [organization, user] = pair;
                self.shows(id, vec![organization, user, format!("role {look}")], late);
            }
            Deed::Leave(number, of) => {
                let pair = [organization(of).to_string(), user(number).to_string()];
                if let Some(id) = self.membership(&pair) {
                    self.deletes(&id, true, late);
                }
            }
            Deed::DeleteUser(number) => self.deletes_with_all(&user(number), late, told),
            Deed::DeleteOrganization(of) => self.deletes_with_all(&organization(of), late, told),
        }
    }

    fn membership(&self, pair: &[String; 2]) -> Option<ClerkId> {
        let is_it = |(id, looks): &(&ClerkId, &Looks)| {
            *id.entity() == ORGANIZATION_MEMBERSHIP && looks.texts[..2] == *pair
        };
        self.there.iter().find(is_it).map(|(id, _)| id.clone())
    }

    fn shows(&mut self, id: ClerkId, texts: Vec<String>, late: i64) {
        if self.gone.contains(&id) {
            return;
        }
        let before = self.there.get(&id);
        let created = before.is_none();
        let since = before.map_or(self.clock, |looks| looks.created);
        // An object does not change twice at the same time.
        self.clock = self.clock.max(self.changed.get(&id).map_or(0, |last| last + 1));
        let looks = Looks { texts, created: if created { self.clock } else { since } };
        self.changed.insert(id.clone(), self.clock);
        self.there.insert(id.clone(), looks.clone());
        self.says(id, created, Some(looks), late);
    }

    fn deletes(&mut self, id: &ClerkId, told: bool, late: i64) {
        if self.there.remove(id).is_some() {
            self.gone.insert(id.clone());
            if told {
                self.says(id.clone(), false, None, late);
            }
        }
    }

    fn deletes_with_all(&mut self, id: &ClerkId, late: i64, told: u8) {
        let children = self.there.iter().filter(|(child, looks)| parents(child, looks).contains(id));
        let children: Vec<ClerkId> = children.map(|(child, _)| child.clone()).collect();
        if self.there.contains_key(id) {
            for (number, child) in children.iter().enumerate() {
                self.deletes(child, told >> (number % 8) & 1 == 1, late);
            }
        }
        self.deletes(id, true, late);
    }

    fn says(&mut self, id: ClerkId, created: bool, looks: Option<Looks>, late: i64) {
        self.news.push(News {
            // Svix-ids do not follow the order of the history.
            svix_id: format!("msg_{:03}", self.news.len() * 37 % 101),
            id,
            times: (self.clock, self.clock + late),
            created,
            looks,
        });
    }
}

fn histories() -> impl Strategy<Value = History> {
    // Few users and organizations, so that events collide.
    let (user, organization) = (|| 0..3usize, || 0..2usize);
    let deed = prop_oneof![
        4 => user().prop_map(Deed::User),
        3 => organization().prop_map(Deed::Organization),
        8 => (user(), organization()).prop_map(|(user, organization)| Deed::Join(user, organization)),
        4 => (user(), organization()).prop_map(|(user, organization)| Deed::Leave(user, organization)),
        1 => user().prop_map(Deed::DeleteUser),
        1 => organization().prop_map(Deed::DeleteOrganization),
    ];
    // All of them exist from the beginning: a user that does not exist cannot join.
    let everybody = (0..3).map(Deed::User).chain((0..2).map(Deed::Organization));
    let everybody: Vec<Happening> = everybody.map(|deed| (deed, 0, 1, 0, 0)).collect();
    let happenings = prop::collection::vec((deed, 0..3u8, 0..3i64, 0..3i64, any::<u8>()), 1..24);
    let clerk = happenings.prop_map(move |happenings| {
        let Clerk { news, there, .. } = Clerk::live(&[&everybody[..], &happenings].concat());
        (news, there)
    });
    let repeats = prop::collection::vec(any::<prop::sample::Index>(), 0..10);
    let order = (clerk, repeats).prop_flat_map(|((news, there), repeats)| {
        let mut order: Vec<usize> = (0..news.len()).collect();
        order.extend(repeats.iter().map(|index| index.index(news.len())));
        (Just(news), Just(there), Just(order).prop_shuffle())
    });
    let by = prop_oneof![3 => Just(By::Hand), 1 => any::<bool>().prop_map(|drained| By::Queue { drained })];
    let steps = prop::collection::vec((1..16usize, by), 1..6);
    (order, steps).prop_map(|((news, there, order), steps)| History { news, there, order, steps })
}
