//! Proof that a webhook is genuine: Svix's scheme, which is Standard Webhooks with other header names.
//!
//! HMAC-SHA256 over `{id}.{timestamp}.{raw body}`, with every byte as received. No part of the body is parsed before the proof,
//! and only a proof creates [`Verified`].
//!
//! Source: <https://docs.svix.com/receiving/verifying-payloads/how-manual>,
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use base64::{
    Engine, alphabet,
    engine::general_purpose::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::model::SvixId;

/// Svix's own tolerance in seconds, in both directions.
pub const DEFAULT_TOLERANCE_SECONDS: u32 = 300;

/// The maximum number of entries of one `svix-signature` header that are checked. Svix sends one per active secret.
const MAX_SIGNATURES: usize = 32;

/// Quotation marks around values in files, including the curly ones that chat programs insert.
pub const QUOTES: [char; 9] = ['"', '\'', '`', '“', '”', '„', '‘', '’', '«'];

/// Keys in Svix's format; the padding is optional.
const KEY: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One signing secret, `whsec_…`.
#[derive(Clone, Debug)]
pub struct Secret(SecretSlice<u8>);

/// Why a secret cannot be used. Never contains the secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("it is in quotes, which would count as part of it")]
    Quoted,
    #[error("it is an API key")]
    ApiKey,
    #[error("it is an address")]
    Address,
    #[error("it is the id of an endpoint")]
    EndpointId,
    #[error("it is a secret that was base64-encoded twice")]
    EncodedTwice,
    #[error("it repeats a single character, like a placeholder")]
    Placeholder,
    #[error("the part after `whsec_` is not base64")]
    NotBase64,
    #[error("it does not begin with `whsec_`")]
    NoPrefix,
    #[error("the part after `whsec_` is empty")]
    Empty,
}

impl Secret {
    /// Read `whsec_<base64>`; the prefix may be missing.
    ///
    /// # Errors
    /// If the part after the prefix is empty or not standard base64, or the text is clearly something else.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
        if text.starts_with(QUOTES) || text.ends_with(QUOTES) {
            return Err(SecretError::Quoted);
        } else if begins(&["sk_", "pk_", "ak_"]) {
            return Err(SecretError::ApiKey);
        } else if begins(&["http://", "https://"]) {
            return Err(SecretError::Address);
        } else if begins(&["ep_"]) {
            return Err(SecretError::EndpointId);
        }
        let (encoded, mistake) = match text.strip_prefix("whsec_") {
            Some(encoded) => (encoded, SecretError::NotBase64),
            None => (text, SecretError::NoPrefix),
        };
        let key = KEY.decode(encoded).map_err(|_| mistake)?;
        if key.is_empty() {
            return Err(SecretError::Empty);
        }
        // Also detects an encoded secret in quotes.
        if key.strip_prefix(b"\"").or(key.strip_prefix(b"'")).unwrap_or(&key).starts_with(b"whsec_") {
            return Err(SecretError::EncodedTwice);
        }
        if encoded.len() >= 16 && encoded.bytes().all(|byte| encoded.as_bytes().first() == Some(&byte)) {
            return Err(SecretError::Placeholder);
        }
        Ok(Self(key.into()))
    }

    /// Whether it is short enough to guess. Svix's secrets have 24 bytes.
    pub fn is_weak(&self) -> bool {
        self.0.expose_secret().len() < 16
    }

    /// Sign a body as Svix would: the value of the `svix-signature` header.
    pub fn sign(&self, id: &str, timestamp: DateTime<Utc>, body: &[u8]) -> String {
        let timestamp = timestamp.timestamp().to_string();
        let mac = self.mac(id.as_bytes(), timestamp.as_bytes(), body);
        format!("v1,{}", STANDARD.encode(mac))
    }

    fn mac(&self, id: &[u8], timestamp: &[u8], body: &[u8]) -> [u8; 32] {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.expose_secret()).expect("HMAC takes keys of any length");
        for part in [id, b".", timestamp, b".", body] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// The three headers of one family, as received.
#[derive(Clone, Copy, Debug)]
pub struct SignatureHeaders<'a> {
    pub id: &'a [u8],
    pub timestamp: &'a [u8],
    pub signature: &'a [u8],
}

impl<'a> SignatureHeaders<'a> {
    /// Select the headers by name: all three `svix-*`, otherwise all three `webhook-*`. The families are never mixed, and a blank
    /// header counts as missing.
    ///
    /// # Errors
    /// [`Rejection::MissingHeaders`] if neither family is complete.
    pub fn find(header: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, Rejection> {
        let present = |name: &str| header(name).filter(|value| !value.trim_ascii().is_empty());
        let family = |id, timestamp, signature| {
            Some(Self { id: present(id)?, timestamp: present(timestamp)?, signature: present(signature)? })
        };
        family("svix-id", "svix-timestamp", "svix-signature")
            .or_else(|| family("webhook-id", "webhook-timestamp", "webhook-signature"))
            .ok_or(Rejection::MissingHeaders)
    }
}

/// Why a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Rejection {
    #[error(
        "the headers svix-id, svix-timestamp and svix-signature (or all three as webhook-*) are required, and the id is at most 255 visible ASCII characters"
    )]
    MissingHeaders,
    #[error("the timestamp header is not a whole number of seconds")]
    InvalidTimestamp,
    #[error("the timestamp header is too far from this server's clock")]
    TimestampOutOfTolerance,
    #[error(
        "no signature matches the body: check the endpoint's signing secret, and that nothing rewrites the body"
    )]
    InvalidSignature,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Self; 4] =
        [Self::MissingHeaders, Self::InvalidTimestamp, Self::TimestampOutOfTolerance, Self::InvalidSignature];

    /// The public code.
    pub fn code(self) -> &'static str {
        self.into()
    }
}

/// A body whose sender knows one of the configured secrets.
#[derive(Debug)]
pub struct Verified {
    svix_id: SvixId,
    attempted_at: DateTime<Utc>,
    body: Bytes,
}

impl Verified {
    /// A body that was verified on arrival, and that clerk-sync has stored since. Do not use it for any other body.
    pub(crate) fn kept(svix_id: SvixId, attempted_at: DateTime<Utc>, body: Bytes) -> Self {
        Self { svix_id, attempted_at, body }
    }

    /// Svix's id of the message.
    pub fn svix_id(&self) -> &SvixId {
        &self.svix_id
    }

    /// When Svix made this attempt, which is not when the event happened.
    pub fn attempted_at(&self) -> DateTime<Utc> {
        self.attempted_at
    }

    /// The raw body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// Checks signatures against several secrets, within a tolerance.
#[derive(Clone, Debug)]
pub struct Verifier {
    secrets: Vec<Secret>,
    tolerance: TimeDelta,
}

impl Verifier {
    /// Accept bodies that any of `secrets` signed within `tolerance_seconds` before or after the current time.
    pub fn new(secrets: Vec<Secret>, tolerance_seconds: u32) -> Self {
        Self { secrets, tolerance: TimeDelta::seconds(tolerance_seconds.into()) }
    }

    /// Check the headers before the body arrives.
    ///
    /// # Errors
    /// The first [`Rejection`] in this order: headers, format of the timestamp, distance of the timestamp.
    pub fn expect<'a>(
        &'a self,
        headers: &SignatureHeaders<'a>,
        now: DateTime<Utc>,
    ) -> Result<Expected<'a>, Rejection> {
        let svix_id =
            str::from_utf8(headers.id).ok().and_then(SvixId::new).ok_or(Rejection::MissingHeaders)?;
        let attempted_at = parse_timestamp(headers.timestamp).ok_or(Rejection::InvalidTimestamp)?;
        // Whole seconds, as Svix's libraries compare them: exactly the tolerance is still accepted.
        let distance = (now.timestamp() - attempted_at.timestamp()).abs();
        if distance > self.tolerance.num_seconds() {
            return Err(Rejection::TimestampOutOfTolerance);
        }
        Ok(Expected { verifier: self, headers: *headers, svix_id, attempted_at })
    }

    fn any_signature_matches(&self, headers: &SignatureHeaders<'_>, body: &[u8]) -> bool {
        let given: Vec<[u8; 32]> = headers
            .signature
            .split(|byte| *byte == b' ')
            .take(MAX_SIGNATURES)
            .filter_map(|entry| entry.strip_prefix(b"v1,"))
            .filter_map(|base64| STANDARD.decode(base64).ok()?.try_into().ok())
            .collect();
        if given.is_empty() {
            return false;
        }
        let mut matches = Choice::from(0);
        for secret in &self.secrets {
            let expected = secret.mac(headers.id, headers.timestamp, body);
            for mac in &given {
                matches |= expected.ct_eq(mac);
            }
        }
        matches.into()
    }
}

/// A request whose headers are valid; only the signature remains to be checked, which needs the body.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    verifier: &'a Verifier,
    headers: SignatureHeaders<'a>,
    svix_id: SvixId,
    attempted_at: DateTime<Utc>,
}

impl Expected<'_> {
    /// Check the signature of the body.
    ///
    /// # Errors
    /// [`Rejection::InvalidSignature`].
    pub fn verify(self, body: Bytes) -> Result<Verified, Rejection> {
        if !self.verifier.any_signature_matches(&self.headers, &body) {
            return Err(Rejection::InvalidSignature);
        }
        Ok(Verified { svix_id: self.svix_id, attempted_at: self.attempted_at, body })
    }
}

/// Plain decimal digits only: no sign, no fraction, no white space.
fn parse_timestamp(text: &[u8]) -> Option<DateTime<Utc>> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = str::from_utf8(text).ok()?.parse().ok()?;
    DateTime::from_timestamp(seconds, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// secret, id, timestamp, body, signature
    type Vector = (&'static str, &'static str, i64, String, &'static str);

    /// Published by Svix and Standard Webhooks in their docs and library tests.
    fn vectors() -> Vec<Vector> {
        vec![
            (
                "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                r#"{"email":"test@example.com","username":"test_user"}"#.to_owned(),
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#.to_owned(),
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "whsec_plJ3nmyCDGBKInavdOK15jsl",
                "msg_loFOjxBNrRLzqYUf",
                1_731_705_121,
                r#"{"event_type":"ping","data":{"success":true}}"#.to_owned(),
                "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
            ),
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                "a".repeat(1_048_576),
                "v1,txpEUxqWZJ5nteTnymUVa+7C4NHpBeXJ6CsBAW0c3/A=",
            ),
        ]
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("in range")
    }

    fn verify(
        secrets: &[&str],
        id: &str,
        timestamp: &str,
        signature: &str,
        body: &str,
        now: i64,
    ) -> Result<(), Rejection> {
        let secrets = secrets.iter().map(|secret| Secret::parse(secret).expect("secret")).collect();
        let headers = SignatureHeaders {
            id: id.as_bytes(),
            timestamp: timestamp.as_bytes(),
            signature: signature.as_bytes(),
        };
        Verifier::new(secrets, DEFAULT_TOLERANCE_SECONDS)
            .expect(&headers, at(now))
            .and_then(|expected| expected.verify(Bytes::from(body.to_owned())))
            .map(|_| ())
    }

    #[test]
    fn published_vectors_verify_and_are_signed_the_same() {
        for (secret, id, timestamp, body, signature) in vectors() {
            assert_eq!(verify(&[secret], id, &timestamp.to_string(), signature, &body, timestamp), Ok(()));
            assert_eq!(
                Secret::parse(secret).expect("secret").sign(id, at(timestamp), body.as_bytes()),
                signature
            );
        }
    }

    #[test]
    fn the_tolerance_is_exact_on_both_sides() {
        let (secret, id, timestamp, body, signature) = vectors().swap_remove(1);
        for (distance, expected) in [
            (-301, Err(Rejection::TimestampOutOfTolerance)),
            (-300, Ok(())),
            (300, Ok(())),
            (301, Err(Rejection::TimestampOutOfTolerance)),
        ] {
            let result =
                verify(&[secret], id, &timestamp.to_string(), signature, &body, timestamp + distance);
            assert_eq!(result, expected, "at {distance} s");
        }
    }

    #[test]
    fn only_plain_whole_seconds_are_timestamps() {
        let (secret, id, timestamp, body, signature) = vectors().swap_remove(1);
        for text in
            ["1614265330.5", "+1614265330", "-1614265330", "1e9", "0x10", "now", "99999999999999999999", "１"]
        {
            let result = verify(&[secret], id, text, signature, &body, timestamp);
            assert_eq!(result, Err(Rejection::InvalidTimestamp), "{text}");
        }
        // Another spelling of the same second changes the signed text.
        let padded = format!("0{timestamp}");
        assert_eq!(
            verify(&[secret], id, &padded, signature, &body, timestamp),
            Err(Rejection::InvalidSignature)
        );
    }

    #[test]
    fn any_v1_entry_and_any_secret_will_do_and_odd_entries_are_skipped() {
        let (secret, id, timestamp, body, signature) = vectors().swap_remove(1);
        let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let timestamp_text = timestamp.to_string();
        let accepted = [
            format!("v1a,AAAA {signature}"),
            format!("v1,!!! v1 , v2,x {signature} v1,AAAA"),
            format!(" {signature} "),
            format!("{} {signature}", "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="),
        ];
        for header in accepted {
            assert_eq!(
                verify(&[other, secret], id, &timestamp_text, &header, &body, timestamp),
                Ok(()),
                "{header}"
            );
        }
        let mac = signature.strip_prefix("v1,").expect("v1");
        let refused = [
            format!("v2,{mac}"),
            format!("V1,{mac}"),
            mac.to_owned(),
            format!("v1,{}", mac.trim_end_matches('=')),
            format!("v1,{}", &mac[..20]),
            format!("v1,,{mac}"),
            signature.replace(',', ", "),
        ];
        for header in refused {
            let result = verify(&[other, secret], id, &timestamp_text, &header, &body, timestamp);
            assert_eq!(result, Err(Rejection::InvalidSignature), "{header}");
        }
        assert_eq!(
            verify(&[other], id, &timestamp_text, signature, &body, timestamp),
            Err(Rejection::InvalidSignature)
        );
    }

    #[test]
    fn header_families_are_never_mixed_and_blank_is_missing() {
        let find = |names: &[(&'static str, &'static str)]| {
            let names = names.to_vec();
            SignatureHeaders::find(move |name| {
                names.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
            })
            .map(|headers| headers.id.to_vec())
        };
        let svix = [("svix-id", "a"), ("svix-timestamp", "1"), ("svix-signature", "v1,x")];
        let standard = [("webhook-id", "b"), ("webhook-timestamp", "1"), ("webhook-signature", "v1,x")];
        assert_eq!(find(&svix), Ok(b"a".to_vec()));
        assert_eq!(find(&standard), Ok(b"b".to_vec()));
        assert_eq!(find(&[svix[0], svix[1], standard[2]]), Err(Rejection::MissingHeaders));
        assert_eq!(find(&[svix[0], svix[1], ("svix-signature", " ")]), Err(Rejection::MissingHeaders));
        assert_eq!(find(&[svix[0], standard[0], standard[1], standard[2]]), Ok(b"b".to_vec()));
    }

    #[test]
    fn secrets_are_base64_with_or_without_prefix_and_never_shown() {
        assert!(Secret::parse("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
        assert_eq!(Secret::parse("whsec_").unwrap_err(), SecretError::Empty);
        assert_eq!(Secret::parse("whsec_???").unwrap_err(), SecretError::NotBase64);
        assert_eq!(Secret::parse("my-secret").unwrap_err(), SecretError::NoPrefix);
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let encoded = |text: &str| STANDARD.encode(text);
        for (text, why) in [
            (format!("\"{secret}\""), SecretError::Quoted),
            (format!("'{secret}"), SecretError::Quoted),
            (format!("“{secret}”"), SecretError::Quoted),
            ("sk_test_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SecretError::ApiKey),
            ("https://dashboard.clerk.com/apps/app_1/webhooks".to_owned(), SecretError::Address),
            ("ep_2abcMfKQ9r8GKYqrTwjUPD8ILPZ".to_owned(), SecretError::EndpointId),
            (encoded(secret), SecretError::EncodedTwice),
            (encoded(&format!("{secret}\n")), SecretError::EncodedTwice),
            (encoded(&format!("\"{secret}\"")), SecretError::EncodedTwice),
            (format!("whsec_{}", encoded(secret)), SecretError::EncodedTwice),
            (format!("whsec_{}", "x".repeat(32)), SecretError::Placeholder),
        ] {
            assert_eq!(Secret::parse(&text).unwrap_err(), why, "{text}");
        }
        let weak =
            |bytes: usize| Secret::parse(&STANDARD.encode(vec![7; bytes])).expect("a secret").is_weak();
        assert!(weak(3) && weak(15) && !weak(16) && !weak(24));
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("secret");
        assert!(!format!("{secret:?}").contains("MfKQ"));
    }
}
