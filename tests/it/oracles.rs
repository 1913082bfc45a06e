//! Our verifier accepts the same requests as Svix's own library and the Standard Webhooks library, with these deliberate
//! differences:
//! - Ids must have 1 to 255 visible ASCII characters, because we store them. The libraries accept any header text, even an
//!   empty one.
//! - A blank header counts as missing, and headers of the two families are never mixed.
//! - The timestamp is signed as it was received, and must consist of plain digits. The libraries sign the number they read,
//!   so they accept `+1` and `007` as other spellings of a timestamp.
//! - Only the first 32 signatures of a header are checked.
//! - A signature header may contain bytes that are not text if one entry is valid. The libraries refuse such a request.
//! - A body that is not UTF-8 is accepted, and parked. The libraries refuse it.
//! - A secret may lack its padding.
//!
//! No difference admits a sender that does not know the secret.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use clerk_sync::clerk::signature::{Rejection, Secret, SignatureHeaders, Verifier};
use proptest::prelude::*;

/// A request as the service receives it.
#[derive(Clone, Debug)]
struct Request {
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

const SVIX: [&str; 3] = ["svix-id", "svix-timestamp", "svix-signature"];
const STANDARD_WEBHOOKS: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

impl Request {
    /// A request that Svix's own library has signed.
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

    /// Whether one entry is the signature that Svix's library would produce.
    fn is_signed_with(&self, secret: &str) -> bool {
        let text = |which: usize| str::from_utf8(&self.headers[which].1).unwrap();
        let timestamp = text(1).parse().unwrap();
        let signature = svix::webhooks::Webhook::new(secret).unwrap().sign(text(0), timestamp, &self.body);
        // The library cannot sign values that are not text.
        signature.is_err() || text(2).split(' ').any(|entry| entry == signature.as_deref().unwrap())
    }

    fn value(&mut self, which: usize) -> &mut Vec<u8> {
        &mut self.headers[which].1
    }

    /// Whether the request shows one of the differences listed above, each of which makes us stricter or more lenient.
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

/// Seconds from now, well inside or well outside the tolerance, because the libraries use the real clock.
fn offsets() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -290..290i64, 1 => 310..100_000i64, 1 => -100_000..-310i64]
}

fn now() -> DateTime<Utc> {
    Utc::now()
}

/// A change to a request on its way.
#[derive(Clone, Debug)]
enum Change {
    /// Flip a bit of the n-th header or of the body.
    Bit(usize, prop::sample::Index, u8),
    Insert(usize, prop::sample::Index, u8),
    Remove(usize, prop::sample::Index),
    Truncate(usize, prop::sample::Index),
    /// More entries before or after the signature.
    Prepend(String),
    Append(String),
    /// A completely different value.
    Replace(usize, String),
    /// A header that is missing.
    Missing(usize),
    /// The header name of the other family.
    Rename(usize),
    /// The verifier has another secret than the signer.
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

/// Change the body, or one of the headers if it exists and stays a valid header.
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
            // An accepted request must have a valid signature of exactly these bytes.
            prop_assert!(request.is_signed_with(key), "{:?}", request);
        }
        if !request.is_a_known_difference() {
            prop_assert_eq!(ours.is_ok(), request.svixs(key), "svix disagrees about {:?}, our verdict is {:?}", request, ours);
            if !svix_names && request.headers.iter().all(|(name, _)| name.starts_with("webhook")) {
                prop_assert_eq!(ours.is_ok(), request.standards(key), "standardwebhooks disagrees about {:?}", request);
            }
        }
    }

    #[test]
    fn secrets_are_the_same_to_everybody(text in prop_oneof!["(whsec_)?[A-Za-z0-9+/]{0,12}={0,2}", "[ -~]{0,20}"]) {
        let ours = Secret::parse(&text).is_ok();
        let svixs = svix::webhooks::Webhook::new(&text).is_ok();
        // We are more lenient about padding and the white space around it, and about nothing else.
        let bare = text.trim().trim_end_matches('=').to_owned();
        let padded = format!("{bare}{}", "=".repeat((4 - bare.trim_start_matches("whsec_").len() % 4) % 4));
        let patient = svix::webhooks::Webhook::new(&padded).is_ok();
        prop_assert!(!svixs || ours, "svix accepts {text:?}");
        prop_assert!(!ours || patient, "only clerk-sync accepts {text:?}");
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

    // Signed with our code, because the library does not sign bytes that are not text.
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
