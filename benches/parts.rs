//! What one event costs in the steps that need no database: verification, parsing, planning, comparing JSON.
#![expect(clippy::disallowed_methods, reason = "a benchmark uses the real clock")]

#[path = "throughput/events.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses all of it")]
mod events;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verified, Verifier},
    },
    entity::{USER, user},
    model::{
        Change, ClerkId, Content, DeletionPolicy, Delivery, FieldSet, Object, Profile, Register, Selection,
        Value, Version,
    },
    sync::{
        Rules,
        plan::{Stored, plan},
    },
};
use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};

use events::{Event, Events, Person, SECRET, signed_up};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

const BATCH: usize = 512;

/// The sizes of bodies: a typical one, and one with more metadata than Clerk allows.
const SIZES: [usize; 2] = [2_500, 350_000];

/// A signed request.
struct Signed {
    id: String,
    timestamp: String,
    signature: String,
    body: Bytes,
    at: DateTime<Utc>,
}

impl Signed {
    fn new(event: Event) -> Self {
        let at = Utc::now();
        let signature = secret().sign(&event.svix_id, at, &event.body);
        Self { id: event.svix_id, timestamp: at.timestamp().to_string(), signature, body: event.body, at }
    }

    /// A request with a body of about this many bytes.
    fn of(bytes: usize) -> Self {
        let mut event = Events::default().make(1, 10_000, Person::Connected).remove(0);
        let missing = bytes.saturating_sub(event.body.len());
        if missing > 1_000 {
            let items: Vec<String> =
                (0..missing / 40).map(|n| format!("{{\"key\":{n:06},\"text\":\"Ada é Byron\"}}")).collect();
            let body = String::from_utf8(event.body.to_vec()).expect("UTF-8");
            event.body =
                body.replace("\"newsletter\":true", &format!("\"items\":[{}]", items.join(","))).into();
        }
        Self::new(event)
    }

    fn verify(&self, verifier: &Verifier) -> Verified {
        let headers = SignatureHeaders {
            id: self.id.as_bytes(),
            timestamp: self.timestamp.as_bytes(),
            signature: self.signature.as_bytes(),
        };
        let expected = verifier.expect(&headers, self.at).expect("in time");
        expected.verify(Bytes::clone(&self.body)).expect("genuine")
    }
}

fn secret() -> Secret {
    Secret::parse(SECRET).expect("a secret")
}

fn verifier() -> Verifier {
    Verifier::new(vec![secret()], 300)
}

fn default_fields() -> FieldSet {
    [user::EMAIL, user::FIRST_NAME, user::LAST_NAME, user::IMAGE_URL].into_iter().collect()
}

#[divan::bench(args = SIZES)]
fn verify(bencher: Bencher<'_, '_>, bytes: usize) {
    let (signed, verifier) = (Signed::of(bytes), verifier());
    bencher.counter(BytesCount::new(signed.body.len())).bench(|| black_box(&signed).verify(&verifier));
}

#[divan::bench(args = SIZES)]
fn parse(bencher: Bencher<'_, '_>, bytes: usize) {
    let signed = Signed::of(bytes);
    let verified = signed.verify(&verifier());
    bencher
        .counter(BytesCount::new(signed.body.len()))
        .bench(|| event::parse(black_box(&verified), &Selection::of(&USER, default_fields()), signed.at));
}

#[divan::bench(args = SIZES)]
fn parse_all_fields(bencher: Bencher<'_, '_>, bytes: usize) {
    let signed = Signed::of(bytes);
    let verified = signed.verify(&verifier());
    bencher
        .counter(BytesCount::new(signed.body.len()))
        .bench(|| event::parse(black_box(&verified), &Selection::of(&USER, FieldSet::ALL), signed.at));
}

/// Half new users, half updates that change a name.
#[divan::bench]
fn plan_a_batch_of_512(bencher: Bencher<'_, '_>) {
    let verifier = verifier();
    let now = Utc::now();
    let events = Events::default().make(BATCH, 10_000, Person::Connected);
    let existing: Vec<bool> = events.iter().map(|event| event.existing.is_some()).collect();
    let deliveries: Vec<Delivery> = events
        .into_iter()
        .map(|event| {
            event::parse(&Signed::new(event).verify(&verifier), &Selection::of(&USER, default_fields()), now)
                .delivery
        })
        .collect();
    let changes: Vec<(&Delivery, &Change)> = deliveries
        .iter()
        .filter_map(|delivery| match &delivery.content {
            Content::Change(change) => Some((delivery, change)),
            _ => None,
        })
        .collect();
    let rules = Rules::new(default_fields(), DeletionPolicy::Auto);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            let known = changes.iter().zip(&existing).filter(|(_, existing)| **existing);
            let ids = known.map(|((_, change), _)| change.clerk_id.clone());
            let (registers, users) = ids.map(|id| ((id.clone(), register()), (id.clone(), user(id)))).unzip();
            Stored { registers, objects: users, addresses: None }
        })
        .bench_values(|stored| plan(black_box(&changes), stored, &rules, now));
}

fn register() -> Register {
    let at = signed_up().timestamp_millis();
    Register::at(Version { version: at, event_at: at, tie: "msg_1".to_owned() })
}

fn user(clerk_id: ClerkId) -> Object {
    let at = signed_up();
    let mut profile = Profile::default();
    profile.set(user::FIRST_NAME, Value::Text("Ada".to_owned()));
    profile.set(user::LAST_NAME, Value::Text("Byron".to_owned()));
    Object { clerk_id, profile, created_at: Some(at), updated_at: at, synced_at: at, deleted_at: None }
}

/// The same metadata in another order and notation: the costly case of an unchanged value.
#[divan::bench(args = [10, 1_000])]
fn json_that_means_the_same(bencher: Bencher<'_, '_>, keys: usize) {
    let text = |keys: &mut dyn Iterator<Item = usize>, one: &str| {
        let pairs: Vec<String> =
            keys.map(|n| format!("\"key{n}\": [{one}, \"text\", {{\"a\": null}}]")).collect();
        Value::Json(format!("{{{}}}", pairs.join(",")))
    };
    let (ours, theirs) = (text(&mut (0..keys), "1"), text(&mut (0..keys).rev(), "1.0"));
    bencher.counter(ItemsCount::new(keys)).bench(|| assert!(black_box(&ours) == black_box(&theirs)));
}
