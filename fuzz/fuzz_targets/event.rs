//! Any authentic body is parsed, ignored or parked. It is never lost or altered.
#![no_main]

use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verifier},
    },
    entity::USER,
    model::{ClerkId, Content, FieldSet, News, Selection},
};
use libfuzzer_sys::fuzz_target;

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

    let event = event::parse(&verified, &Selection::of(&USER, FieldSet::ALL), now);
    let delivery = &event.delivery;
    assert_eq!(&delivery.payload[..], body, "the payload must be kept byte for byte");
    assert_eq!(delivery.svix_id.as_ref(), Some(verified.svix_id()));
    assert!(delivery.event_at <= now + TimeDelta::days(1), "no event is in the far future");
    if let Some(id) = &delivery.clerk_id {
        assert!(ClerkId::new(&USER, id.as_str()).is_some(), "an invalid id");
    }
    if let Some(name) = &delivery.event_type {
        assert!((1..=255).contains(&name.len()) && !name.contains('\0'));
    }
    let latest = (now + TimeDelta::days(1)).timestamp_millis();
    match &delivery.content {
        Content::Change(change) => {
            assert_eq!(Some(&change.clerk_id), delivery.clerk_id.as_ref());
            assert!(!change.clerk_id.as_str().contains('\0'));
            assert!(change.version.version <= latest, "a version that would block the user's updates");
            assert_eq!(change.version.tie, "msg_1");
            let synced = delivery.event_type.as_deref().expect("a change has a type");
            assert!(USER.meaning(synced).is_some());
            assert_eq!(matches!(change.news, News::Delete), synced == "user.deleted");
            if matches!(change.news, News::Delete) {
                assert!(change.actor.is_none(), "a deletion stores no actor");
            }
        }
        Content::Ignored => assert!(delivery.event_type.is_some()),
        Content::Unusable(reason) => assert!(!reason.is_empty()),
    }

    // Without selected fields, no field can make an event unusable.
    let bare = event::parse(&verified, &Selection::of(&USER, FieldSet::default()), now).delivery;
    if let (Content::Unusable(_), false) = (&bare.content, matches!(delivery.content, Content::Unusable(_))) {
        panic!("an event became unusable with fewer fields");
    }
    assert_eq!(bare.clerk_id, delivery.clerk_id);
    assert_eq!(bare.event_type, delivery.event_type);
});
