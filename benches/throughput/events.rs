//! Users and events like Clerk's: ids begin with the time, and half of the events concern new users, the other half existing
//! users.

use bytes::Bytes;
use chrono::{DateTime, TimeZone, Utc};
use clerk_sync::clerk::{sample, signature::Secret};
use serde_json::{Value, json};

/// The secret that signs every request; it has no other use.
pub(crate) const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A step through 10 k, 100 k or 1 M users that visits each user once before it repeats, scattered over the table.
const STRIDE: u64 = 611_953;

/// The sort of user in events.
#[derive(Clone, Copy)]
pub(crate) enum Person {
    /// With a mail address and a password, like the users in Clerk's documented samples.
    Plain,
    /// Also with a telephone number, a Google account and metadata, and every field that Clerk sends.
    Connected,
}

/// One unsigned event.
pub(crate) struct Event {
    pub(crate) svix_id: String,
    /// The number of its existing user; `None` if the user is new.
    pub(crate) existing: Option<u64>,
    pub(crate) body: Bytes,
}

impl Event {
    /// The request as Svix sends it, head and body.
    pub(crate) fn request(&self, secret: &Secret, at: DateTime<Utc>) -> Vec<u8> {
        let signature = secret.sign(&self.svix_id, at, &self.body);
        let mut request = format!(
            "POST /webhooks/clerk HTTP/1.1\r\nhost: clerk-sync.example\r\nuser-agent: Svix-Webhooks/1.62.0\r\n\
             accept: */*\r\ncontent-type: application/json\r\nsvix-id: {}\r\nsvix-timestamp: {}\r\n\
             svix-signature: {signature}\r\ncontent-length: {}\r\n\r\n",
            self.svix_id,
            at.timestamp(),
            self.body.len(),
        )
        .into_bytes();
        request.extend_from_slice(&self.body);
        request
    }
}

/// Creates events, each with new data.
#[derive(Default)]
pub(crate) struct Events {
    made: u64,
}

impl Events {
    /// Create `count` events for a table of `population` users.
    pub(crate) fn make(&mut self, count: usize, population: u64, person: Person) -> Vec<Event> {
        (0..count).map(|_| self.next(population, person)).collect()
    }

    /// The number of events created so far.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    fn next(&mut self, population: u64, person: Person) -> Event {
        self.made += 1;
        let number = self.made;
        let now = Utc::now();
        let existing = number.is_multiple_of(2).then(|| 1 + (number / 2).wrapping_mul(STRIDE) % population);
        let (user, created_at) = match existing {
            Some(number) => (existing_user(number), signed_up()),
            None => (id("user_", now), now),
        };
        let updated = existing.is_some();
        let body = body(person, updated, &user, &format!("Lovelace {number}"), created_at, now);
        Event { svix_id: id("msg_", now), existing, body: body.into() }
    }
}

/// The id of an initial user; [`fill`](crate::database::Database::fill) computes the same.
pub(crate) fn existing_user(number: u64) -> String {
    format!("user_1{number:08}{:018}", number * 2_654_435_761 % 4_294_967_296)
}

/// When the initial users signed up and were last changed.
pub(crate) fn signed_up() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2025, 1, 1, 0, 0, 0).single().expect("a time that there was")
}

/// An id that looks like a KSUID to an index: 27 characters, first the seconds, then random ones.
fn id(prefix: &str, at: DateTime<Utc>) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut seconds = at.timestamp().unsigned_abs();
    let mut digits = [0; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(seconds % 62).expect("small")];
        seconds /= 62;
    }
    let mut place = 0;
    sample::id(prefix, || {
        let byte = digits.get(place).map_or_else(rand::random, |digit| {
            u8::try_from(DIGITS.iter().position(|known| known == digit).expect("a digit")).expect("small")
        });
        place += 1;
        byte
    })
}

/// The body that Clerk posts.
fn body(
    person: Person,
    updated: bool,
    user: &str,
    last_name: &str,
    created_at: DateTime<Utc>,
    at: DateTime<Utc>,
) -> String {
    let (created, now) = (created_at.timestamp_millis(), at.timestamp_millis());
    let data = match person {
        Person::Plain => plain(user, last_name, created, now),
        Person::Connected => connected(user, last_name, created, now),
    };
    json!({
        "data": data,
        "event_attributes": { "http_request": {
            "client_ip": "192.0.2.1",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        }},
        "instance_id": "ins_2sample",
        "object": "event",
        "timestamp": now,
        "type": if updated { "user.updated" } else { "user.created" },
    })
    .to_string()
}

/// The id of an object that belongs to this user.
fn own(user: &str, prefix: &str) -> String {
    user.replacen("user_", prefix, 1)
}

fn plain(user: &str, last_name: &str, created: i64, now: i64) -> Value {
    let email = own(user, "idn_");
    let image = "https://img.clerk.com/2sample";
    json!({
        "id": user, "object": "user", "external_id": null, "username": null, "first_name": "Ada",
        "last_name": last_name, "birthday": "", "gender": "", "image_url": image, "profile_image_url": image,
        "primary_email_address_id": email, "primary_phone_number_id": null, "primary_web3_wallet_id": null,
        "email_addresses": [{
            "id": email, "object": "email_address", "email_address": format!("{}@example.com", own(user, "")),
            "reserved": false, "linked_to": [],
            "verification": { "status": "verified", "strategy": "admin", "attempts": null, "expire_at": null },
        }],
        "phone_numbers": [], "web3_wallets": [], "external_accounts": [],
        "public_metadata": {}, "private_metadata": {}, "unsafe_metadata": {},
        "password_enabled": true, "two_factor_enabled": false, "last_sign_in_at": null,
        "created_at": created, "updated_at": now,
    })
}

fn connected(user: &str, last_name: &str, created: i64, now: i64) -> Value {
    let (email, phone, google) = (own(user, "idn_e"), own(user, "idn_p"), own(user, "eac_"));
    let address = format!("{}@example.com", own(user, ""));
    let image = "https://img.clerk.com/eyJ0eXBlIjoicHJveHkiLCJzcmMiOiJodHRwczovL2ltYWdlcy5jbGVyay5kZXYvb2F1dGhfZ29vZ2xlL2ltZ18ifQ";
    let verified = |strategy: &str| {
        json!({ "object": "verification_from_oauth", "status": "verified", "strategy": strategy, "attempts": null,
                "expire_at": null, "verified_at_client": "client_2sample" })
    };
    json!({
        "id": user, "object": "user", "external_id": null, "username": null, "first_name": "Ada",
        "last_name": last_name, "locale": "en-GB", "image_url": image, "profile_image_url": image, "has_image": true,
        "primary_email_address_id": email, "primary_phone_number_id": phone, "primary_web3_wallet_id": null,
        "email_addresses": [{
            "id": email, "object": "email_address", "email_address": address, "reserved": false,
            "matches_sso_connection": false,
            "linked_to": [{ "id": google, "type": "oauth_google" }],
            "verification": verified("from_oauth_google"), "created_at": created, "updated_at": now,
        }],
        "phone_numbers": [{
            "id": phone, "object": "phone_number", "phone_number": "+15555550100", "reserved_for_second_factor": false,
            "default_second_factor": false, "reserved": false, "linked_to": [], "backup_codes": null,
            "verification": verified("phone_code"), "created_at": created, "updated_at": now,
        }],
        "web3_wallets": [], "passkeys": [], "saml_accounts": [], "enterprise_accounts": [],
        "external_accounts": [{
            "id": google, "object": "external_account", "provider": "oauth_google", "identification_id": email,
            "provider_user_id": "103456789012345678901", "approved_scopes": "email openid profile",
            "email_address": address, "first_name": "Ada", "last_name": last_name, "avatar_url": image,
            "image_url": image, "username": null, "public_metadata": {}, "label": null,
            "verification": verified("oauth_google"), "created_at": created, "updated_at": now,
        }],
        "public_metadata": { "plan": "pro", "seats": 5, "onboarded": true, "theme": "dark" },
        "private_metadata": { "stripe_customer": "cus_9s6XKzkNRiz8i3" },
        "unsafe_metadata": { "newsletter": true, "referrer": "friend" },
        "password_enabled": true, "two_factor_enabled": false, "totp_enabled": false, "backup_code_enabled": false,
        "mfa_enabled_at": null, "mfa_disabled_at": null, "banned": false, "locked": false,
        "lockout_expires_in_seconds": null, "verification_attempts_remaining": 100, "delete_self_enabled": true,
        "create_organization_enabled": true, "legal_accepted_at": null, "last_sign_in_at": now,
        "last_active_at": now, "created_at": created, "updated_at": now,
    })
}
