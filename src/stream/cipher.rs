//! Encryption of bodies in the stream with `QUEUE_ENCRYPTION_KEY`: AES-256-GCM.
//!
//! Each body has its own key, derived by HKDF-SHA256 from the configured key and 16 random bytes. So no nonce is used
//! twice with the same key, however many bodies there are. The id and time of the webhook are authenticated together
//! with its body, so a body cannot be moved to another webhook.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};

/// Bytes before the ciphertext. Together with the configured key they determine the body's key.
const SALT_BYTES: usize = 16;

/// The purpose of the derived keys.
const PURPOSE: &[u8] = b"clerk-sync: body of a webhook in the queue";

/// A key of 256 bits.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A key in base64, as `openssl rand -base64 32` prints it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64_STANDARD.decode(text).ok()?.try_into().ok()?))
    }

    /// Seal a body for the webhook of this name; `None` if the body is too long.
    pub(super) fn seal(&self, name: &str, body: &[u8]) -> Option<Vec<u8>> {
        let salt: [u8; SALT_BYTES] = rand::random();
        let mut ciphertext = body.to_vec();
        let key = self.of_body(&salt)?;
        key.seal_in_place_append_tag(nonce(), Aad::from(name), &mut ciphertext).ok()?;
        Some([&salt[..], &ciphertext].concat())
    }

    /// Open a body that was sealed with this key for the webhook of this name.
    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (salt, ciphertext) = sealed.split_at_checked(SALT_BYTES)?;
        let mut body = ciphertext.to_vec();
        let length = self.of_body(salt)?.open_in_place(nonce(), Aad::from(name), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }

    fn of_body(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let derived = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let key: UnboundKey = derived.expand(&[PURPOSE], &AES_256_GCM).ok()?.into();
        Some(LessSafeKey::new(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Always the same nonce: every derived key is used for only one body.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_opens_with_its_key_for_its_webhook_and_never_otherwise() {
        let [key, other] = [[1; 32], [2; 32]].map(Key);
        let sealed = key.seal("msg_1 1767225600000", b"a body").expect("sealed");
        assert_eq!(key.open("msg_1 1767225600000", &sealed).as_deref(), Some(&b"a body"[..]));
        assert_eq!(other.open("msg_1 1767225600000", &sealed), None, "another key");
        assert_eq!(key.open("msg_2 1767225600000", &sealed), None, "another webhook");
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(key.open("msg_1 1767225600000", &changed), None, "byte {place}");
            assert_eq!(key.open("msg_1 1767225600000", &sealed[..place]), None, "cut at {place}");
        }
        assert!(!sealed.windows(6).any(|bytes| bytes == b"a body"));
        assert_ne!(key.seal("msg_1 1767225600000", b"a body"), Some(sealed), "never the same twice");
    }

    #[test]
    fn a_key_is_32_bytes_in_base64() {
        let text = BASE64_STANDARD.encode([7; 32]);
        assert_eq!(Key::parse(&text).map(|key| key.0), Some([7; 32]));
        for wrong in [String::new(), BASE64_STANDARD.encode([7; 16]), "7".repeat(32), format!("{text} ")] {
            assert!(Key::parse(&wrong).is_none(), "{wrong}");
        }
    }
}
