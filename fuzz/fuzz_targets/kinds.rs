//! With every kind of object synced, an authentic body names complete objects, and no secret of its kind is kept.
#![no_main]

use std::{collections::HashSet, fmt};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verifier},
    },
    entity,
    model::{Change, ClerkId, Content, FieldSet, News, Selection},
};
use libfuzzer_sys::fuzz_target;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NOW: i64 = 1_716_883_200;

fuzz_target!(|body: &[u8]| {
    let secret = Secret::parse(SECRET).expect("a secret");
    let now = DateTime::from_timestamp(NOW, 0).expect("in range");
    let signature = secret.sign("msg_1", now, body);
    let seconds = NOW.to_string();
    let headers =
        SignatureHeaders { id: b"msg_1", timestamp: seconds.as_bytes(), signature: signature.as_bytes() };
    let verified = Verifier::new(vec![secret], 300)
        .expect(&headers, now)
        .and_then(|expected| expected.verify(Bytes::copy_from_slice(body)))
        .expect("a signature of ours is valid");
    let selection = entity::ALL.iter().fold(Selection::default(), |all, kind| all.with(kind, FieldSet::ALL));

    let delivery = event::parse(&verified, &selection, now).delivery;
    let Content::Change(change) = &delivery.content else {
        assert!(delivery.nested.is_empty() && delivery.whole.is_empty());
        return;
    };
    let kind = change.clerk_id.entity();
    assert_eq!(delivery.clerk_id.as_ref(), Some(&change.clerk_id));
    check(change, now);

    let mut seen = HashSet::new();
    for part in delivery.nested.iter() {
        check(part, now);
        assert!(seen.insert(&part.clerk_id), "an object is nested twice");
        assert!(kind.nested.iter().any(|nested| nested.entity == part.clerk_id.entity()));
        assert!(matches!(part.news, News::Upsert { .. }));
    }
    for whole in &delivery.whole {
        assert!(kind.nested.iter().any(|nested| nested.is_whole && nested.entity == *whole));
    }

    if kind.secrets.is_empty() {
        assert_eq!(&delivery.payload[..], body, "the payload must be kept byte for byte");
    } else if let Ok(kept) = str::from_utf8(&delivery.payload) {
        for path in kind.secrets {
            assert!(!has(kept, &[&["data"], *path].concat()), "{path:?} is kept");
        }
    }
});

/// A change has the ids of all its parents, and no time that would block later events.
fn check(change: &Change, now: DateTime<Utc>) {
    let kind = change.clerk_id.entity();
    assert!(ClerkId::new(kind, change.clerk_id.as_str()).is_some(), "an invalid id");
    assert!(change.version.version <= (now + TimeDelta::days(1)).timestamp_millis());
    assert_eq!(change.version.tie, "msg_1");
    let Some(patch) = change.patch() else { return };
    for (field, parent) in kind.parents() {
        match patch.get(field).map(|value| value.text()) {
            Some(Some(id)) => assert!(ClerkId::new(parent, id).is_some(), "an invalid parent"),
            Some(None) | None => assert!(field.is_optional, "{field:?} is missing"),
        }
    }
}

/// Whether JSON has a member at this path, also if a key is repeated.
fn has(json: &str, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    let Members(members) = serde_json::from_str(json).unwrap_or_default();
    members.iter().any(|(name, value)| name == first && has(value.get(), rest))
}

/// The members of an object, with all values of a repeated key.
#[derive(Default)]
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}
