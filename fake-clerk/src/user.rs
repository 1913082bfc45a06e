//! The contents of the fake's users, and the events that Clerk would send about them.
//!
//! Everything follows from a [`Seed`]: the same seed always gives the same user, and the fake stores nothing else. The people are
//! invented; their addresses and numbers are from reserved ranges.

use serde::Serialize;
use serde_json::{Value, json};

use super::id::{hash, id, scattered};

/// The most users: their numbers must fit into telephone numbers.
pub(super) const MAX_NUMBER: u32 = 9_999_999;

const DAY: i64 = 86_400_000;

const FIRST_NAMES: [&str; 12] = [
    "Ada",
    "Grace",
    "Zoë",
    "José",
    "Ναταλία",
    "Søren",
    "李",
    "Mary-Jane",
    "Олег",
    "Nguyễn",
    "عمر",
    "O'Brien",
];
const LAST_NAMES: [&str; 13] = [
    "Lovelace",
    "Hopper",
    "Müller",
    "Ødegård",
    "Παπαδοπούλου",
    "明",
    "da Silva",
    "D'Angelo",
    "Иванов",
    "van der Berg",
    "O’Neill",
    "الخطيب",
    "Smith 🎈",
];
const LOCALES: [Option<&str>; 4] = [Some("en-GB"), Some("pt-BR"), Some("el"), None];

/// The data from which a user is derived. Times are in Unix milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Seed {
    pub(super) number: u32,
    /// Grows with every update.
    pub(super) version: u32,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
}

/// The sorts of users.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Email,
    /// The second address is the primary one.
    TwoEmails,
    /// The address is not verified.
    Unverified,
    /// The address belongs to another user, and is not verified.
    Shared,
    /// The primary address has an id, but the list of addresses is empty.
    Dangling,
    Phone,
    Username,
    Web3,
}

impl Seed {
    /// A new user: Clerk updates a new user within a few milliseconds.
    pub(super) fn new(number: u32, created_at: i64) -> Self {
        let later = spread(hash(u64::from(number), 1), 15, 56);
        Self { number, version: 1, created_at, updated_at: created_at + later }
    }

    /// Clerk's id.
    pub(super) fn id(&self) -> String {
        id("user_", self.created_at, self.number, 0)
    }

    /// Orders users by creation; users created in the same millisecond are ordered by id.
    pub(super) fn creation(&self) -> (i64, u64) {
        (self.created_at, scattered(self.number))
    }

    /// Orders users by their last update.
    pub(super) fn update(&self) -> (i64, u64) {
        (self.updated_at, scattered(self.number))
    }

    pub(super) fn last_sign_in_at(&self) -> Option<i64> {
        let never = self.bits(2).is_multiple_of(10);
        (!never).then(|| (self.updated_at - spread(self.bits(3), 0, DAY / 24)).max(self.created_at))
    }

    /// With the precision of a day, as at Clerk.
    pub(super) fn last_active_at(&self) -> Option<i64> {
        self.last_sign_in_at().map(|_| self.updated_at - self.updated_at.rem_euclid(DAY))
    }

    pub(super) fn is_banned(&self) -> bool {
        self.bits(4).is_multiple_of(50)
    }

    /// A fixed pseudo-random place from 0 to 1, independent of all other values.
    pub(super) fn place(&self) -> f64 {
        fraction(self.bits(5))
    }

    /// An event about this user, as Clerk would send it.
    pub(super) fn event(&self, event_type: &str, instance: &str) -> String {
        self.envelope(event_type, &User::from(self), self.updated_at, instance)
    }

    /// The event that deletes this user. It has no `updated_at`.
    pub(super) fn deletion(&self, at: i64, instance: &str) -> String {
        let user = User::from(self);
        let mut data = json!({ "deleted": true, "id": user.id, "object": "user" });
        if let Some(external_id) = user.external_id {
            data["external_id"] = external_id.into();
        }
        self.envelope("user.deleted", &data, at, instance)
    }

    fn envelope(&self, event_type: &str, data: &impl Serialize, at: i64, instance: &str) -> String {
        let [.., a, b] = self.number.to_be_bytes();
        json!({
            "data": data,
            "event_attributes": { "http_request": {
                "client_ip": format!("198.18.{a}.{b}"),
                "user_agent": "Mozilla/5.0 (a fake user)",
            } },
            "instance_id": instance,
            "object": "event",
            "timestamp": at + spread(self.bits(6) ^ u64::from(self.version), 17, 58),
            "type": event_type,
        })
        .to_string()
    }

    fn kind(&self) -> Kind {
        match self.number % 40 {
            7 | 27 => Kind::Phone,
            11 | 31 => Kind::Username,
            15 => Kind::Web3,
            17 => Kind::Dangling,
            // The neighbouring user, 19, has an address.
            20 => Kind::Shared,
            23 => Kind::Unverified,
            number if number.is_multiple_of(3) => Kind::TwoEmails,
            _ => Kind::Email,
        }
    }

    /// Pseudo-random bits of this user, the same for all its versions.
    fn bits(&self, salt: u64) -> u64 {
        hash(u64::from(self.number), salt)
    }
}

/// Clerk's complete user, with every field of its Backend API and its events.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "Clerk's user has as many")]
pub(super) struct User {
    pub(super) id: String,
    object: &'static str,
    pub(super) external_id: Option<String>,
    pub(super) username: Option<String>,
    pub(super) first_name: Option<&'static str>,
    pub(super) last_name: Option<&'static str>,
    locale: Option<&'static str>,
    image_url: String,
    profile_image_url: String,
    has_image: bool,
    primary_email_address_id: Option<String>,
    primary_phone_number_id: Option<String>,
    primary_web3_wallet_id: Option<String>,
    pub(super) email_addresses: Vec<EmailAddress>,
    pub(super) phone_numbers: Vec<PhoneNumber>,
    pub(super) web3_wallets: Vec<Web3Wallet>,
    passkeys: Nothing,
    external_accounts: Nothing,
    saml_accounts: Nothing,
    enterprise_accounts: Nothing,
    organization_memberships: Nothing,
    public_metadata: PublicMetadata,
    private_metadata: Option<PrivateMetadata>,
    unsafe_metadata: UnsafeMetadata,
    password_enabled: bool,
    two_factor_enabled: bool,
    totp_enabled: bool,
    backup_code_enabled: bool,
    banned: bool,
    locked: bool,
    deprovisioned: bool,
    delete_self_enabled: bool,
    create_organization_enabled: bool,
    create_organizations_limit: Option<u32>,
    lockout_expires_in_seconds: Option<u32>,
    verification_attempts_remaining: Option<u32>,
    last_sign_in_at: Option<i64>,
    last_active_at: Option<i64>,
    legal_accepted_at: Option<i64>,
    mfa_enabled_at: Option<i64>,
    mfa_disabled_at: Option<i64>,
    password_last_updated_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

/// `[]`
type Nothing = [(); 0];

#[derive(Serialize)]
pub(super) struct EmailAddress {
    id: String,
    object: &'static str,
    #[serde(rename = "email_address")]
    pub(super) address: String,
    reserved: bool,
    verification: Verification,
    linked_to: Nothing,
    created_at: i64,
    updated_at: i64,
}

#[derive(Serialize)]
pub(super) struct PhoneNumber {
    id: String,
    object: &'static str,
    #[serde(rename = "phone_number")]
    pub(super) number: String,
    reserved_for_second_factor: bool,
    default_second_factor: bool,
    reserved: bool,
    verification: Verification,
    linked_to: Nothing,
    created_at: i64,
    updated_at: i64,
}

#[derive(Serialize)]
pub(super) struct Web3Wallet {
    id: String,
    object: &'static str,
    #[serde(rename = "web3_wallet")]
    pub(super) address: String,
    verification: Web3Verification,
    created_at: i64,
    updated_at: i64,
}

/// Clerk uses a separate type for wallets, which readers distinguish by `object`.
#[derive(Serialize)]
struct Web3Verification {
    object: &'static str,
    status: &'static str,
    strategy: &'static str,
    nonce: Option<&'static str>,
    attempts: Option<u32>,
    expire_at: Option<i64>,
}

#[derive(Serialize)]
struct Verification {
    object: &'static str,
    status: &'static str,
    strategy: &'static str,
    attempts: Option<u32>,
    expire_at: Option<i64>,
}

#[derive(Serialize)]
struct PublicMetadata {
    plan: &'static str,
    /// The version, so that every update changes a field.
    revision: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    greeting: Option<&'static str>,
}

#[derive(Serialize)]
struct PrivateMetadata {
    customer: u32,
}

#[derive(Serialize)]
struct UnsafeMetadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    theme: Option<&'static str>,
    /// Clients can write text here that no database accepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

impl User {
    /// The user data in a membership.
    pub(super) fn public_data(&self) -> Value {
        let email = self.email_addresses.last().map(|email| &email.address);
        let phone = self.phone_numbers.first().map(|phone| &phone.number);
        let wallet = self.web3_wallets.first().map(|wallet| &wallet.address);
        json!({
            "user_id": self.id,
            "first_name": self.first_name,
            "last_name": self.last_name,
            "profile_image_url": self.profile_image_url,
            "image_url": self.image_url,
            "has_image": self.has_image,
            "identifier": email.or(phone).or(self.username.as_ref()).or(wallet),
            "username": self.username,
            "banned": self.banned,
            "deprovisioned": self.deprovisioned,
        })
    }
}

impl From<&Seed> for User {
    fn from(seed: &Seed) -> Self {
        let Seed { number, version, created_at, updated_at } = *seed;
        let kind = seed.kind();
        let named = number % 7 != 3;
        let image = format!("https://img.clerk.com/fake/{:016x}", seed.bits(7));
        let emails = emails(seed, kind);
        let phones: Vec<_> =
            (kind == Kind::Phone || number % 6 == 1).then(|| phone(seed)).into_iter().collect();
        let wallets: Vec<_> = (kind == Kind::Web3).then(|| wallet(seed)).into_iter().collect();
        let two_factor = !phones.is_empty() && number % 4 == 3;
        Self {
            id: seed.id(),
            object: "user",
            external_id: (number.is_multiple_of(4)).then(|| format!("external-{number}")),
            username: (kind == Kind::Username || number % 10 == 2).then(|| format!("someone_{number}")),
            first_name: named.then(|| pick(&FIRST_NAMES, seed.bits(8))),
            last_name: named.then(|| pick(&LAST_NAMES, (seed.bits(9) >> 8) + u64::from(version))),
            locale: pick(&LOCALES, seed.bits(10)),
            profile_image_url: image.clone(),
            image_url: image,
            has_image: number.is_multiple_of(3),
            primary_email_address_id: match kind {
                Kind::Dangling => Some(email_id(seed, 0)),
                _ => emails.last().map(|email| email.id.clone()),
            },
            primary_phone_number_id: phones.first().map(|phone| phone.id.clone()),
            primary_web3_wallet_id: wallets.first().map(|wallet| wallet.id.clone()),
            email_addresses: emails,
            phone_numbers: phones,
            web3_wallets: wallets,
            passkeys: [],
            external_accounts: [],
            saml_accounts: [],
            enterprise_accounts: [],
            organization_memberships: [],
            public_metadata: PublicMetadata {
                plan: if number.is_multiple_of(5) { "pro" } else { "free" },
                revision: version,
                greeting: (number.is_multiple_of(5)).then_some("Καλημέρα, שלום, 你好 👋🏽"),
            },
            private_metadata: (!number.is_multiple_of(31)).then_some(PrivateMetadata { customer: number }),
            unsafe_metadata: UnsafeMetadata {
                theme: (number.is_multiple_of(2)).then_some("dark"),
                note: (number.is_multiple_of(97)).then_some("a\0b"),
            },
            password_enabled: kind != Kind::Web3,
            two_factor_enabled: two_factor,
            totp_enabled: false,
            backup_code_enabled: false,
            banned: seed.is_banned(),
            locked: (seed.bits(11) >> 1).wrapping_add(u64::from(version)).is_multiple_of(60),
            deprovisioned: false,
            delete_self_enabled: true,
            create_organization_enabled: true,
            create_organizations_limit: None,
            lockout_expires_in_seconds: None,
            verification_attempts_remaining: Some(100),
            last_sign_in_at: seed.last_sign_in_at(),
            last_active_at: seed.last_active_at(),
            legal_accepted_at: (number.is_multiple_of(2)).then_some(created_at),
            mfa_enabled_at: two_factor.then_some(updated_at),
            mfa_disabled_at: None,
            password_last_updated_at: (kind != Kind::Web3).then_some(created_at),
            created_at,
            updated_at,
        }
    }
}

/// Every identifier ends in the number of its user, before the domain of an address. One kind of address, however, belongs to two
/// users: see [`numbers_named`].
fn emails(seed: &Seed, kind: Kind) -> Vec<EmailAddress> {
    let number = seed.number;
    let address = |which: u64, address: String, verified: bool| EmailAddress {
        id: email_id(seed, which),
        object: "email_address",
        address,
        reserved: false,
        verification: verification(if verified { "verified" } else { "unverified" }, "email_code"),
        linked_to: [],
        created_at: seed.created_at,
        updated_at: seed.created_at,
    };
    let primary = format!("someone.{number}@example.com");
    match kind {
        Kind::Email => vec![address(0, primary, true)],
        Kind::TwoEmails => {
            vec![
                address(1, format!("old.{number}@example.org"), number.is_multiple_of(2)),
                address(0, primary, true),
            ]
        }
        Kind::Unverified => vec![address(0, primary, false)],
        Kind::Shared => vec![address(0, format!("someone.{}@example.com", number - 1), false)],
        Kind::Dangling | Kind::Phone | Kind::Username | Kind::Web3 => Vec::new(),
    }
}

fn email_id(seed: &Seed, which: u64) -> String {
    id("idn_", seed.created_at, seed.number, which)
}

fn phone(seed: &Seed) -> PhoneNumber {
    PhoneNumber {
        id: id("idn_", seed.created_at, seed.number, 2),
        object: "phone_number",
        number: format!("+1555{:07}", seed.number),
        reserved_for_second_factor: false,
        default_second_factor: false,
        reserved: false,
        verification: verification("verified", "phone_code"),
        linked_to: [],
        created_at: seed.created_at,
        updated_at: seed.created_at,
    }
}

fn wallet(seed: &Seed) -> Web3Wallet {
    Web3Wallet {
        id: id("idn_", seed.created_at, seed.number, 3),
        object: "web3_wallet",
        address: format!("0x{:016x}{:016x}{:08}", seed.bits(12), seed.bits(13), seed.number),
        verification: Web3Verification {
            object: "verification_web3",
            status: "verified",
            strategy: "web3_metamask_signature",
            nonce: None,
            attempts: Some(1),
            expire_at: None,
        },
        created_at: seed.created_at,
        updated_at: seed.created_at,
    }
}

fn verification(status: &'static str, strategy: &'static str) -> Verification {
    let attempts = (status == "verified").then_some(1);
    Verification { object: "verification_otp", status, strategy, attempts, expire_at: None }
}

/// The users that may have an identifier, by its last digits: much quicker than checking all users.
pub(super) fn numbers_named(identifier: &str) -> Option<[u32; 2]> {
    let end = identifier.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = identifier[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |before| before + 1);
    let digits = identifier.get(start.max(end.saturating_sub(7))..end)?;
    let number = digits.parse::<u32>().ok()?;
    Some([number, number + 1])
}

/// A place from 0 to 1.
pub(super) fn fraction(bits: u64) -> f64 {
    let [a, b, ..] = bits.to_be_bytes();
    f64::from(u16::from_be_bytes([a, b])) / 65_536.0
}

/// A number from `low` to `high`.
pub(super) fn spread(bits: u64, low: i64, high: i64) -> i64 {
    low + (bits % (high - low + 1).cast_unsigned()).cast_signed()
}

fn pick<T: Copy>(choices: &[T], bits: u64) -> T {
    choices[usize::try_from(bits % choices.len() as u64).unwrap_or_default()]
}
