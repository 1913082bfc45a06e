//! Sessions: a cookie that proves, until it expires, that its holder knew the token.
//!
//! The cookie consists of a random name, an end, and an HMAC whose key is derived from the token. So every replica with the
//! same token accepts it, nothing has to be stored, and a new token ends all sessions. This process remembers sessions that
//! were signed out. Forms carry a second HMAC over the name, which another site cannot know.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::http::{App, error::Problem};

/// The name of the cookie.
const COOKIE: &str = "clerk-sync-session";

/// How long a session lasts.
const LASTING: TimeDelta = TimeDelta::hours(8);

/// The end in eight bytes, then the random name.
const NAME_BYTES: usize = 8 + 16;

type Name = [u8; NAME_BYTES];

/// The session of an operator.
#[derive(Clone)]
pub(super) struct Session {
    name: Name,
    /// The token in its forms.
    pub(super) csrf: String,
}

/// The request data that every page of a session needs.
pub(super) struct Visit {
    pub(super) app: Arc<App>,
    pub(super) session: Session,
}

impl FromRequestParts<Arc<App>> for Visit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let session = parts.extensions.get().cloned().ok_or(Problem::Internal)?;
        Ok(Self { app: Arc::clone(app), session })
    }
}

/// Creates and verifies sessions.
pub(super) struct Sessions {
    key: [u8; 32],
    /// Sessions that were signed out, and until when they would be valid.
    ended: Mutex<HashMap<Name, DateTime<Utc>>>,
}

impl Sessions {
    pub(super) fn new(token: &str) -> Self {
        let key = mac(token.as_bytes(), &[b"clerk-sync dashboard"]);
        Self { key, ended: Mutex::default() }
    }

    /// Begin a session; returns the `Set-Cookie` value.
    pub(super) fn begin(&self, now: DateTime<Utc>) -> String {
        let mut name = [0; NAME_BYTES];
        let (end, random) = name.split_at_mut(8);
        end.copy_from_slice(&(now + LASTING).timestamp().to_be_bytes());
        random.copy_from_slice(&rand::random::<[u8; 16]>());
        let value = [&name[..], &mac(&self.key, &[b"session", &name])].concat();
        cookie(&BASE64.encode(value), LASTING)
    }

    /// The session that the request's cookie names.
    pub(super) fn find(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Option<Session> {
        // Other programs on the same host set cookies too, perhaps with the same name and invalid text.
        let pairs = headers
            .get_all(header::COOKIE)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let mut values =
            pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"="));
        values.find_map(|value| self.believe(value, now))
    }

    fn believe(&self, value: &[u8], now: DateTime<Utc>) -> Option<Session> {
        let value = BASE64.decode(value).ok()?;
        let (name, proof) = value.split_first_chunk::<NAME_BYTES>()?;
        if !bool::from(mac(&self.key, &[b"session", name]).ct_eq(proof)) {
            return None;
        }
        let (end, _) = name.split_first_chunk::<8>()?;
        let over = now.timestamp() >= i64::from_be_bytes(*end);
        if over || self.with(|ended| ended.contains_key(name)) {
            return None;
        }
        Some(Session { name: *name, csrf: BASE64.encode(mac(&self.key, &[b"form", name])) })
    }

    /// End a session; returns the `Set-Cookie` value.
    pub(super) fn end(&self, session: &Session, now: DateTime<Utc>) -> String {
        self.with(|ended| {
            ended.retain(|_, until| *until > now);
            ended.insert(session.name, now + LASTING);
        });
        cookie("", TimeDelta::zero())
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashMap<Name, DateTime<Utc>>) -> T) -> T {
        what(&mut self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Session {
    /// Whether a form was made for this session.
    pub(super) fn made(&self, csrf: &str) -> bool {
        self.csrf.as_bytes().ct_eq(csrf.as_bytes()).into()
    }
}

/// `Secure` is left out: behind a TLS proxy it would be better, but on a laptop it would prevent signing in.
fn cookie(value: &str, lasting: TimeDelta) -> String {
    format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}", lasting.num_seconds())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).expect("a time")
    }

    fn headers(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().expect("a pair");
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, format!("theme=dark; {pair}").parse().expect("a header"));
        headers
    }

    #[test]
    fn a_session_is_believed_until_its_end_by_whoever_has_the_same_token() {
        let sessions = Sessions::new("t0ken");
        let shown = headers(&sessions.begin(now()));
        let session = sessions.find(&shown, now()).expect("a session");
        assert!(session.made(&session.csrf));
        assert!(!session.made(""));
        assert!(Sessions::new("t0ken").find(&shown, now()).is_some());
        let mut crowded = HeaderMap::new();
        let own = shown[header::COOKIE].as_bytes();
        let line = [b"x=\xff; clerk-sync-session=bad; ", own].concat();
        crowded.append(header::COOKIE, axum::http::HeaderValue::from_bytes(&line).expect("a header"));
        assert!(sessions.find(&crowded, now()).is_some());
        assert!(Sessions::new("other").find(&shown, now()).is_none());
        assert!(sessions.find(&shown, now() + LASTING - TimeDelta::seconds(1)).is_some());
        assert!(sessions.find(&shown, now() + LASTING).is_none());
    }

    #[test]
    fn whoever_signed_out_is_not_believed_again() {
        let sessions = Sessions::new("t0ken");
        let [one, two] = [(); 2].map(|()| headers(&sessions.begin(now())));
        let session = sessions.find(&one, now()).expect("a session");
        assert!(sessions.end(&session, now()).contains("Max-Age=0"));
        assert!(sessions.find(&one, now()).is_none());
        assert!(sessions.find(&two, now()).is_some());
    }

    #[test]
    fn nothing_can_be_changed_in_a_cookie() {
        let sessions = Sessions::new("t0ken");
        let line = sessions.begin(now());
        let value = line.split(['=', ';']).nth(1).expect("a value").to_owned();
        let bytes = BASE64.decode(&value).expect("base64");
        for index in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[index] ^= 1;
            let forged = format!("{COOKIE}={}", BASE64.encode(forged));
            assert!(sessions.find(&headers(&forged), now()).is_none(), "byte {index}");
        }
        for short in ["", "AAAA", &value[..value.len() - 4]] {
            assert!(sessions.find(&headers(&format!("{COOKIE}={short}")), now()).is_none(), "{short}");
        }
    }
}
