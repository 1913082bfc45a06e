//! Our verifier believes what Svix's own library and Standard Webhooks' believe, and nothing else.
//!
//! Differences, all of them meant:
//! - Ids must be 1 to 255 visible ASCII characters, because we keep them; theirs take any header text, also none.
//! - A header that is blank counts as missing, and the two families of names are never mixed.
//! - The timestamp is signed as it was received, and only plain digits are one; theirs sign the number they read, so
//!   that `+1` and `007` are other spellings of a timestamp to them.
//! - At most 32 signatures of a header are looked at.
//! - A signature header may hold bytes that are no text, as long as one entry is right; theirs refuse the request.
//! - A body that is no UTF-8 is believed, and parked; theirs refuse it.
//! - A secret may lack its padding.
//!
//! None of them lets anybody in who does not know the secret.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use clerk_sync::clerk::signature::{Rejection, Secret, SignatureHeaders, Verifier};
use proptest::prelude::*;

/// A request as it comes in.
#[derive(Clone, Debug)]
struct Request {
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

const SVIX: [&str; 3] = ["svix-id", "svix-timestamp", "svix-signature"];
const STANDARD_WEBHOOKS: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

impl Request {
    /// Correctly signed, by Svix's own library.
    fn signed(names: [&'static str; 3], secret: &str, id: &str, timestamp: i64, body: &str) -> Self {
        let signature =
            svix::webhooks::Webhook::new(secret).unwrap().sign(id, timestamp, body.as_bytes()).unwrap();
        let values = [id.to_owned(), timestamp.to_string(), signature];
        let headers = names.into_iter().zip(values.map(String::into_bytes)).collect();
        Self { headers, body: body.as_bytes().to_vec() }
    }

    fn ours(&self, secrets: &[&str], now: DateTime<Utc>) -> Result<(), Rejection> {
        let secrets = secrets.iter().map(|secret| Secret::parse(secret).unwrap()).collect();
        let find =
            |name: &str| self.headers.iter().find(|(own, _)| *own == name).map(|(_, value)| value.as_slice());
        let headers = SignatureHeaders::find(find)?;
        let verifier = Verifier::new(secrets, 300);
        verifier.expect(&headers, now)?.verify(Bytes::from(self.body.clone())).map(|_| ())
    }

    fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    fn svixs(&self, secret: &str) -> bool {
        svix::webhooks::Webhook::new(secret).unwrap().verify(&self.body, &self.map()).is_ok()
    }

    fn standards(&self, secret: &str) -> bool {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&self.body, &self.map()).is_ok()
    }

    /// Whether one entry is what Svix's library would sign.
    fn is_signed_with(&self, secret: &str) -> bool {
        let text = |which: usize| str::from_utf8(&self.headers[which].1).unwrap();
        let timestamp = text(1).parse().unwrap();
        let signature = svix::webhooks::Webhook::new(secret).unwrap().sign(text(0), timestamp, &self.body);
        // What is no text their library does not sign.
        signature.is_err() || text(2).split(' ').any(|entry| entry == signature.as_deref().unwrap())
    }

    fn value(&mut self, which: usize) -> &mut Vec<u8> {
        &mut self.headers[which].1
    }

    /// One of the differences of the head of this file, each of which makes us stricter or more patient.
    fn is_a_known_difference(&self) -> bool {
        let value = |which: usize| self.headers.get(which).map_or(&[][..], |(_, value)| value);
        let plain_digits = value(1).iter().all(u8::is_ascii_digit);
        let plain_time = plain_digits && (value(1) == b"0" || !value(1).starts_with(b"0"));
        let plain_id = (1..=255).contains(&value(0).len()) && value(0).iter().all(u8::is_ascii_graphic);
        let entries = value(2).split(|byte| *byte == b' ').count();
        let families: Vec<bool> = self.headers.iter().map(|(name, _)| name.starts_with("svix")).collect();
        !plain_id
            || !plain_time
            || entries > 32
            || value(2).trim_ascii().is_empty()
            || !value(2).iter().all(|byte| (0x20..0x7f).contains(byte))
            || families.windows(2).any(|pair| pair[0] != pair[1])
            || str::from_utf8(&self.body).is_err()
    }
}

fn secrets() -> impl Strategy<Value = String> {
    (prop::collection::vec(any::<u8>(), 1..64), any::<bool>()).prop_map(|(key, prefix)| {
        let base64 = STANDARD.encode(key);
        if prefix { format!("whsec_{base64}") } else { base64 }
    })
}

fn ids() -> impl Strategy<Value = String> {
    prop_oneof!["msg_[0-9A-Za-z]{27}", "[!-~]{1,255}"]
}

fn bodies() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just(String::new()), "\\{\"data\":\\{\"id\":\"user_[a-z]{1,9}\"\\}\\}"]
}

/// Seconds from now, well inside the tolerance or well outside it: the oracles look at the real clock.
fn offsets() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -290..290i64, 1 => 310..100_000i64, 1 => -100_000..-310i64]
}

fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Something that happens to a request on its way.
#[derive(Clone, Debug)]
enum Change {
    /// A bit of the n-th header, or of the body.
    Bit(usize, prop::sample::Index, u8),
    Insert(usize, prop::sample::Index, u8),
    Remove(usize, prop::sample::Index),
    Truncate(usize, prop::sample::Index),
    /// More entries around the signature.
    Prepend(String),
    Append(String),
    /// Another value altogether.
    Replace(usize, String),
    /// A header that never came.
    Missing(usize),
    /// A header of the other family.
    Rename(usize),
    /// Signed by somebody else.
    OtherSecret,
}

fn changes() -> impl Strategy<Value = Change> {
    let entry = || {
        prop_oneof![
            "v1a,[A-Za-z0-9+/]{43}=",
            "v1,[A-Za-z0-9+/]{43}=",
            "v1,[A-Za-z0-9+/=]{0,50}",
            "v2,[ -~]{0,20}",
            "[ -~]{0,20}",
            Just(String::new()),
        ]
    };
    let index = any::<prop::sample::Index>;
    prop_oneof![
        1 => (0..4usize, index(), 0..7u8).prop_map(|(part, at, bit)| Change::Bit(part, at, bit)),
        1 => (0..4usize, index(), 0x20..0x7fu8).prop_map(|(part, at, byte)| Change::Insert(part, at, byte)),
        1 => (0..4usize, index()).prop_map(|(part, at)| Change::Remove(part, at)),
        1 => (0..4usize, index()).prop_map(|(part, at)| Change::Truncate(part, at)),
        3 => entry().prop_map(Change::Prepend),
        3 => entry().prop_map(Change::Append),
        1 => (0..3usize, "[ -~]{0,40}").prop_map(|(part, text)| Change::Replace(part, text)),
        1 => prop_oneof!["-?[0-9]{1,20}", "[0-9]{9,11}\\.[0-9]"].prop_map(|text| Change::Replace(1, text)),
        1 => (0..3usize).prop_map(Change::Missing),
        1 => (0..3usize).prop_map(Change::Rename),
        1 => Just(Change::OtherSecret),
    ]
}

fn change(request: &mut Request, change: &Change) {
    match change {
        Change::Bit(part, at, bit) => edit(request, *part, |bytes| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        }),
        Change::Insert(part, at, byte) => {
            edit(request, *part, |bytes| bytes.insert(at.index(bytes.len() + 1), *byte));
        }
        Change::Remove(part, at) => edit(request, *part, |bytes| {
            if !bytes.is_empty() {
                bytes.remove(at.index(bytes.len()));
            }
        }),
        Change::Truncate(part, at) => edit(request, *part, |bytes| bytes.truncate(at.index(bytes.len() + 1))),
        Change::Prepend(entry) => {
            edit(request, 2, |bytes| *bytes = [entry.as_bytes(), b" ", bytes.as_slice()].concat());
        }
        Change::Append(entry) => {
            edit(request, 2, |bytes| *bytes = [bytes.as_slice(), b" ", entry.as_bytes()].concat());
        }
        Change::Replace(part, text) => edit(request, *part, |bytes| *bytes = text.as_bytes().to_vec()),
        Change::Missing(part) => {
            if *part < request.headers.len() {
                request.headers.remove(*part);
            }
        }
        Change::Rename(part) => {
            if let Some((name, _)) = request.headers.get_mut(*part) {
                let other =
                    SVIX.iter().zip(STANDARD_WEBHOOKS).find(|(svix, other)| *svix == name || other == name);
                let (svix, standard) = other.unwrap();
                *name = if *name == standard { svix } else { standard };
            }
        }
        Change::OtherSecret => {}
    }
}

/// Change one of the headers, as far as it is there and stays a header, or the body.
fn edit(request: &mut Request, part: usize, edit: impl FnOnce(&mut Vec<u8>)) {
    if part == 3 {
        edit(&mut request.body);
    } else if part < request.headers.len() {
        let before = request.value(part).clone();
        edit(request.value(part));
        if HeaderValue::from_bytes(request.value(part)).is_err() {
            *request.value(part) = before;
        }
    }
}

/// As many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 512 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_svix_signs_is_believed_within_the_tolerance(
        secret in secrets(), other in secrets(), id in ids(), body in bodies(), offset in offsets(),
    ) {
        let now = now();
        let timestamp = now.timestamp() + offset;
        let expected = if offset.abs() <= 300 { Ok(()) } else { Err(Rejection::TimestampOutOfTolerance) };
        for names in [SVIX, STANDARD_WEBHOOKS] {
            let request = Request::signed(names, &secret, &id, timestamp, &body);
            prop_assert_eq!(request.ours(&[&secret], now), expected);
            prop_assert_eq!(request.ours(&[&other, &secret], now), expected);
            prop_assert_eq!(request.svixs(&secret), expected.is_ok());
            if names == STANDARD_WEBHOOKS {
                prop_assert_eq!(request.standards(&secret), expected.is_ok());
            }
        }
    }

    #[test]
    fn what_we_sign_is_what_they_sign(secret in secrets(), id in ids(), body in bodies(), seconds in 0..10_000_000_000i64) {
        let time = DateTime::from_timestamp(seconds, 0).unwrap();
        let ours = Secret::parse(&secret).unwrap().sign(&id, time, body.as_bytes());
        let svixs = svix::webhooks::Webhook::new(&secret).unwrap().sign(&id, seconds, body.as_bytes()).unwrap();
        let standards = standardwebhooks::Webhook::new(&secret).unwrap().sign(&id, seconds, body.as_bytes()).unwrap();
        prop_assert_eq!(&ours, &svixs);
        prop_assert_eq!(&ours, &standards);
    }

    #[test]
    fn a_request_that_was_changed_gets_the_same_verdict(
        secret in secrets(), other in secrets(), id in ids(), body in bodies(), offset in offsets(),
        svix_names in any::<bool>(), changes in prop::collection::vec(changes(), 1..4),
    ) {
        let now = now();
        let names = if svix_names { SVIX } else { STANDARD_WEBHOOKS };
        let mut request = Request::signed(names, &secret, &id, now.timestamp() + offset, &body);
        for step in &changes {
            change(&mut request, step);
        }
        let key = if changes.iter().any(|step| matches!(step, Change::OtherSecret)) { &other } else { &secret };
        let ours = request.ours(&[key], now);
        if ours.is_ok() {
            // Nobody is believed whose header has no right signature of these very bytes.
            prop_assert!(request.is_signed_with(key), "{:?}", request);
        }
        if !request.is_a_known_difference() {
            prop_assert_eq!(ours.is_ok(), request.svixs(key), "svix about {:?}, we say {:?}", request, ours);
            if !svix_names && request.headers.iter().all(|(name, _)| name.starts_with("webhook")) {
                prop_assert_eq!(ours.is_ok(), request.standards(key), "standardwebhooks about {:?}", request);
            }
        }
    }

    #[test]
    fn secrets_are_the_same_to_everybody(text in prop_oneof!["(whsec_)?[A-Za-z0-9+/]{0,12}={0,2}", "[ -~]{0,20}"]) {
        let ours = Secret::parse(&text).is_ok();
        let svixs = svix::webhooks::Webhook::new(&text).is_ok();
        // We are more patient about padding and about white space around it, and about nothing else.
        let bare = text.trim().trim_end_matches('=').to_owned();
        let padded = format!("{bare}{}", "=".repeat((4 - bare.trim_start_matches("whsec_").len() % 4) % 4));
        let patient = svix::webhooks::Webhook::new(&padded).is_ok();
        prop_assert!(!svixs || ours, "svix takes {text:?}");
        prop_assert!(!ours || patient, "only we take {text:?}");
    }
}

/// The differences one by one, so that none of them changes unnoticed.
#[test]
fn the_differences_are_these() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let now = now();
    let seconds = now.timestamp();
    let signed = |id: &str| Request::signed(SVIX, secret, id, seconds, "{}");
    let verdicts = |request: &Request| (request.ours(&[secret], now), request.svixs(secret));

    assert_eq!(verdicts(&signed("msg_1")), (Ok(()), true));
    assert_eq!(verdicts(&signed(&"x".repeat(255))), (Ok(()), true));
    for id in ["msg 1", "", " ", &"x".repeat(256)] {
        assert_eq!(verdicts(&signed(id)), (Err(Rejection::MissingHeaders), true), "{id:?}");
    }

    let mut mixed = signed("msg_1");
    mixed.headers[0].0 = "webhook-id";
    assert_eq!(verdicts(&mixed), (Err(Rejection::MissingHeaders), true));

    for (spelling, rejection) in [
        (format!("+{seconds}"), Rejection::InvalidTimestamp),
        (format!("0{seconds}"), Rejection::InvalidSignature),
    ] {
        let mut spelt = signed("msg_1");
        *spelt.value(1) = spelling.into_bytes();
        assert_eq!(verdicts(&spelt), (Err(rejection), true));
    }

    let mut crowded = signed("msg_1");
    *crowded.value(2) = [b"v1,x ".repeat(31), crowded.value(2).clone()].concat();
    assert_eq!(verdicts(&crowded), (Ok(()), true));
    *crowded.value(2) = [b"v1,x ".to_vec(), crowded.value(2).clone()].concat();
    assert_eq!(verdicts(&crowded), (Err(Rejection::InvalidSignature), true));

    let mut odd = signed("msg_1");
    odd.value(2).extend(b" v1,\xff");
    assert_eq!(verdicts(&odd), (Ok(()), false));

    // Signed by hand: their library does not sign what is no text.
    let bytes = b"\xff\xfe".to_vec();
    let signature = Secret::parse(secret).unwrap().sign("msg_1", now, &bytes);
    let mut no_text = signed("msg_1");
    *no_text.value(2) = signature.into_bytes();
    no_text.body = bytes;
    assert_eq!(verdicts(&no_text), (Ok(()), false));

    let unpadded = ("whsec_AA", "whsec_AA==");
    assert!(svix::webhooks::Webhook::new(unpadded.0).is_err() && Secret::parse(unpadded.0).is_ok());
    let request = Request::signed(SVIX, unpadded.1, "msg_1", seconds, "{}");
    assert_eq!(request.ours(&[unpadded.0], now), Ok(()));
}
