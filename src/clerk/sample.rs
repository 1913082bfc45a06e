//! Sample events in Clerk's format, for experiments. The people in them are invented.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::signature::Secret;
use crate::{
    entity::{self, ORGANIZATION, USER},
    model::{Entity, Meaning, Place},
};

/// Event types that have a sample: those of every kind that can be synced, and one that never is.
pub fn types() -> Vec<&'static str> {
    let synced = entity::ALL.iter().flat_map(|entity| entity.event_types());
    synced.chain(["email.created"]).collect()
}

/// The instance of invented users; Clerk has no such instance. A database pinned to it contains invented users.
pub const INSTANCE: &str = "ins_sample";

/// The characters in ids of Clerk and Svix.
const ID_CHARACTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An id such as `user_29w83sxmDNGwOuEthce5gg56FcC`: the prefix and 27 random characters.
pub fn id(prefix: &str, mut random: impl FnMut() -> u8) -> String {
    let mut id = String::from(prefix);
    id.extend((0..27).map(|_| char::from(ID_CHARACTERS[usize::from(random()) % ID_CHARACTERS.len()])));
    id
}

/// The body of an event about this user; `None` if the type has no sample. Like old deliveries, it names no instance. So any
/// service with the secret accepts it, and it does not affect events from Clerk.
pub fn body(event_type: &str, user_id: &str, at: DateTime<Utc>) -> Option<String> {
    event(event_type, &Owners { user_id, organization_id: None }, at)
}

/// The same for an event about this organization or about an object in it; `None` if the type is about neither.
pub fn body_in(organization_id: &str, event_type: &str, user_id: &str, at: DateTime<Utc>) -> Option<String> {
    entity::of_event(event_type).filter(|entity| **entity == ORGANIZATION || is_in_organization(entity))?;
    event(event_type, &Owners { user_id, organization_id: Some(organization_id) }, at)
}

/// The user and the organization that an object belongs to.
struct Owners<'a> {
    user_id: &'a str,
    /// `None`: its id is derived from the user's.
    organization_id: Option<&'a str>,
}

impl Owners<'_> {
    /// The id of their object of this kind.
    fn id(&self, entity: &Entity) -> String {
        let of_user = self.user_id.replacen(USER.id_prefix, entity.id_prefix, 1);
        match self.organization_id {
            Some(organization_id) if *entity == ORGANIZATION => organization_id.to_owned(),
            // A user can be in several organizations.
            Some(organization_id) if is_in_organization(entity) => {
                let end = organization_id.strip_prefix(ORGANIZATION.id_prefix).unwrap_or(organization_id);
                format!("{of_user}_{end}")
            }
            _ => of_user,
        }
    }
}

/// Whether objects of this kind can belong to an organization.
fn is_in_organization(entity: &Entity) -> bool {
    entity.columns.iter().any(|column| column.parent == Some(&ORGANIZATION))
}

fn event(event_type: &str, owners: &Owners<'_>, at: DateTime<Utc>) -> Option<String> {
    let user_id = owners.user_id;
    let data = match event_type {
        "user.created" => user(user_id, "Byron", at, at),
        "user.updated" => user(user_id, "Lovelace", at - TimeDelta::minutes(1), at),
        "email.created" => json!({
            "id": user_id.replacen("user_", "ema_", 1), "object": "email", "user_id": user_id, "slug": "verification_code",
            "subject": "A sample", "to_email_address": address(user_id), "status": "queued",
        }),
        _ => object(entity::of_event(event_type)?, event_type, owners, at),
    };
    let event = json!({
        "data": data,
        "event_attributes": { "http_request": { "client_ip": "192.0.2.1", "user_agent": "clerk-sync sample" } },
        "object": "event",
        "timestamp": milliseconds(at),
        "type": event_type,
    });
    Some(event.to_string())
}

/// An object that belongs to these owners. Its id and its parents' ids are derived from theirs.
fn object(entity: &'static Entity, event_type: &str, owners: &Owners<'_>, at: DateTime<Utc>) -> Value {
    let id = |entity: &Entity| owners.id(entity);
    let is_new = event_type == entity.events[0];
    let created = if is_new { at } else { at - TimeDelta::minutes(1) };
    let mut data = json!({ "id": id(entity), "object": entity.kind });
    // The deletion event of a child shows the whole object.
    if entity.meaning(event_type) == Some(Meaning::Delete) && !entity.has_parents() {
        data["deleted"] = true.into();
        return data;
    }
    // Of several possible owners, the object belongs to the organization that was named, or to the first.
    let mut has_owner = false;
    let is_owner = |parent: &Entity| owners.organization_id.is_none() || *parent == ORGANIZATION;
    for field in entity.selectable() {
        let said = field.samples[usize::from(!is_new)];
        let value = match field.parent {
            Some(parent) if field.is_optional && (has_owner || !is_owner(parent)) => Value::Null,
            Some(parent) => id(parent).into(),
            None => match entity.follows.iter().find(|other| field.name() == format!("{}_id", other.kind)) {
                Some(other) => id(other).into(),
                None => serde_json::from_str(said).unwrap_or_default(),
            },
        };
        has_owner |= field.is_optional && !value.is_null();
        let path = match field.place {
            Place::Path(path) | Place::AnyOf(&[path, ..]) => path,
            _ => &[field.name()],
        };
        let place = path.iter().fold(&mut data, |inside, name| &mut inside[*name]);
        // A member inside it may exist already.
        if place.is_null() {
            *place = value;
        }
    }
    if entity.named("status").is_some()
        && let Some(status) = status_in(event_type)
    {
        data["status"] = status.into();
    }
    data["created_at"] = milliseconds(created).into();
    data["updated_at"] = milliseconds(at).into();
    data
}

/// The status that a type names, in the form of the objects: `past_due` for `subscriptionItem.pastDue`.
fn status_in(event_type: &str) -> Option<String> {
    let (_, verb) = event_type.split_once('.')?;
    if matches!(verb, "created" | "updated" | "deleted" | "freeTrialEnding") {
        return None;
    }
    let lower = |letter: char| {
        let before = letter.is_ascii_uppercase().then_some('_');
        before.into_iter().chain([letter.to_ascii_lowercase()])
    };
    Some(verb.chars().flat_map(lower).collect())
}

/// A shell command that posts a body with a fresh signature.
pub fn curl(url: &str, svix_id: &str, body: &str, secret: &Secret, at: DateTime<Utc>) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let header = |name: &str, value: &str| format!("  -H {} \\\n", quoted(&format!("{name}: {value}")));
    format!(
        "curl -sS {} \\\n{}{}{}{}  --data-raw {}",
        quoted(url),
        header("content-type", "application/json"),
        header("svix-id", svix_id),
        header("svix-timestamp", &at.timestamp().to_string()),
        header("svix-signature", &secret.sign(svix_id, at, body.as_bytes())),
        quoted(body),
    )
}

fn user(id: &str, last_name: &str, created: DateTime<Utc>, updated: DateTime<Utc>) -> Value {
    let email_id = id.replacen("user_", "idn_", 1);
    json!({
        "id": id,
        "object": "user",
        "external_id": null,
        "username": null,
        "first_name": "Ada",
        "last_name": last_name,
        "locale": "en-GB",
        "image_url": "https://img.clerk.com/sample",
        "profile_image_url": "https://img.clerk.com/sample",
        "has_image": true,
        "primary_email_address_id": email_id,
        "primary_phone_number_id": null,
        "primary_web3_wallet_id": null,
        "email_addresses": [{
            "id": email_id,
            "object": "email_address",
            "email_address": address(id),
            "reserved": false,
            "linked_to": [],
            "verification": { "status": "verified", "strategy": "email_code", "attempts": 1, "expire_at": null },
            "created_at": milliseconds(created),
            "updated_at": milliseconds(created),
        }],
        "phone_numbers": [],
        "web3_wallets": [],
        "passkeys": [],
        "external_accounts": [],
        "enterprise_accounts": [],
        "public_metadata": { "plan": "free" },
        "private_metadata": {},
        "unsafe_metadata": {},
        "password_enabled": true,
        "two_factor_enabled": false,
        "totp_enabled": false,
        "backup_code_enabled": false,
        "banned": false,
        "locked": false,
        "delete_self_enabled": true,
        "create_organization_enabled": true,
        "last_sign_in_at": null,
        "last_active_at": milliseconds(updated),
        "created_at": milliseconds(created),
        "updated_at": milliseconds(updated),
    })
}

/// An address in a domain reserved for examples, different for every user.
fn address(user_id: &str) -> String {
    let end = user_id.get(user_id.len().saturating_sub(6)..).unwrap_or("someone").to_lowercase();
    format!("ada.{end}@example.com")
}

fn milliseconds(at: DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_sample_that_names_it() {
        for event_type in types() {
            let body = body(event_type, "user_1", DateTime::UNIX_EPOCH).expect("a sample");
            let json: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(json["type"], event_type);
        }
        assert!(body("user.renamed", "user_1", DateTime::UNIX_EPOCH).is_none());
    }

    #[test]
    fn a_type_that_names_a_status_shows_it_and_an_item_shows_the_plan_of_the_same_user() {
        let data = |event_type: &str| -> Value {
            let body = body(event_type, "user_1", DateTime::UNIX_EPOCH).expect("a sample");
            serde_json::from_str::<Value>(&body).expect("JSON")["data"].clone()
        };
        for (event_type, status) in [
            ("subscriptionItem.pastDue", "past_due"),
            ("subscriptionItem.ended", "ended"),
            ("subscriptionItem.freeTrialEnding", "active"),
            ("organizationInvitation.revoked", "revoked"),
            ("session.removed", "removed"),
        ] {
            assert_eq!(data(event_type)["status"], status, "{event_type}");
        }
        assert_eq!(data("subscriptionItem.active")["plan_id"], "cplan_1");
    }

    #[test]
    fn users_share_an_organization_and_a_user_is_in_several() {
        let data = |event_type: &str, user_id: &str, organization_id: &str| -> Option<Value> {
            let body = body_in(organization_id, event_type, user_id, DateTime::UNIX_EPOCH)?;
            Some(serde_json::from_str::<Value>(&body).expect("JSON")["data"].clone())
        };
        let membership = |user_id: &str, organization_id: &str| {
            let data = data("organizationMembership.created", user_id, organization_id).expect("a sample");
            assert_eq!(data["organization"]["id"], organization_id);
            assert_eq!(data["public_user_data"]["user_id"], user_id);
            data["id"].as_str().expect("an id").to_owned()
        };
        assert_eq!(membership("user_1", "org_a"), "orgmem_1_a");
        assert_eq!(membership("user_2", "org_a"), "orgmem_2_a");
        assert_eq!(membership("user_1", "org_b"), "orgmem_1_b");
        assert_eq!(data("organization.deleted", "user_1", "org_a").expect("a sample")["id"], "org_a");
        let subscription = data("subscription.created", "user_1", "org_a").expect("a sample");
        assert_eq!(subscription["payer"], json!({ "user_id": null, "organization_id": "org_a" }));
        let item = data("subscriptionItem.active", "user_1", "org_a").expect("a sample");
        assert_eq!(
            (&item["payer"], &item["plan_id"]),
            (&subscription["payer"], &json!("cplan_1")),
            "the plan belongs to nobody"
        );
        for other in ["user.created", "session.created", "email.created"] {
            assert!(data(other, "user_1", "org_a").is_none(), "{other}");
        }
    }

    #[test]
    fn a_quote_in_a_body_cannot_end_the_shell_word() {
        let secret = Secret::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("secret");
        let line = curl("http://localhost", "msg_1", r#"{"a":"it's"}"#, &secret, DateTime::UNIX_EPOCH);
        assert!(line.ends_with(r#"--data-raw '{"a":"it'\''s"}'"#));
    }
}
