//! Checks that the declarations cover everything that Clerk's own description of its events and Backend API contains. The check
//! needs a copy of <https://github.com/clerk/openapi-specs>: `CLERK_OPENAPI` is a folder with `webhooks*.yml` and `bapi*.yml`.

use std::{collections::BTreeSet, env, fs};

use clerk_sync::{
    clerk::event::KNOWN_TYPES,
    entity,
    model::{Entity, Meaning, Place},
};
use serde_json::Value;

/// Fields that every object has, but that are not declared as columns.
const OF_ALL: [&str; 4] = ["id", "object", "created_at", "updated_at"];

/// Known fields that are deliberately not synced, by kind.
const LEFT_OUT: &[(&str, &[&str])] = &[
    (
        "user",
        &[
            "backup_code_enabled",
            "bypass_client_trust",
            "create_organization_enabled",
            "create_organizations_limit",
            "delete_self_enabled",
            "deprovisioned",
            "enterprise_accounts",
            "has_image",
            "legal_accepted_at",
            "locale",
            "lockout_expires_in_seconds",
            "mfa_disabled_at",
            "mfa_enabled_at",
            "organization_memberships",
            "passkeys",
            "password_enabled",
            "password_last_updated_at",
            "primary_web3_wallet_id",
            "profile_image_url",
            "saml_accounts",
            "scim",
            "totp_enabled",
            "two_factor_enabled",
            "verification_attempts_remaining",
        ],
    ),
    (
        "organization",
        &[
            "has_image",
            "last_active_at",
            "members_count",
            "missing_member_with_elevated_permissions",
            "pending_invitations_count",
            "role_set_key",
        ],
    ),
    ("organization_domain", &["total_pending_invitations", "total_pending_suggestions"]),
    // The description nests the object in itself here.
    ("organization_invitation", &["data"]),
    ("role_set", &["role_set_migration"]),
    ("plan", &["avatar_url", "unit_prices"]),
    ("session", &["tasks"]),
    ("subscription", &["eligible_for_free_trial", "instance_id", "next_payment"]),
    (
        "subscription_item",
        &[
            "credit",
            "credits",
            "instance_id",
            "lifetime_paid",
            "next_payment",
            "payment_method",
            "price_id",
            "proration_date",
            "totals",
        ],
    ),
    (
        "payment_attempt",
        &[
            "gateway_external_id",
            "gateway_external_url",
            "instance_id",
            "payee",
            "payee_id",
            "payment_method_id",
            "subscription_item_id",
        ],
    ),
    ("enterprise_connection", &["custom_attributes", "logo_public_url"]),
];

#[test]
fn declarations_know_all_that_clerk_describes() {
    let Ok(folder) = env::var("CLERK_OPENAPI") else { return };
    let (events, api) = (description(&folder, "webhooks"), description(&folder, "bapi"));
    let webhooks = events["x-webhooks"].as_object().expect("events");
    let mut unknown: Vec<String> = webhooks
        .keys()
        .filter(|name| !KNOWN_TYPES.contains(name))
        .map(|name| format!("event {name}"))
        .collect();
    for entity in entity::ALL {
        let mut described = BTreeSet::new();
        for event_type in entity.event_types().filter(|name| entity.meaning(name) == Some(Meaning::Upsert)) {
            let body = &webhooks.get(event_type).unwrap_or(&Value::Null)["post"]["requestBody"];
            let event = schema(body);
            described.extend(members(&events, &parts(&events, event, "data")));
        }
        let paths = entity.path.into_iter().chain(entity.of_each.iter().map(|of| of.path));
        for path in paths {
            let answer = &api["paths"][as_described(path)]["get"]["responses"]["200"];
            let answer = resolved(&api, answer);
            assert!(!schema(answer).is_null(), "Clerk does not describe {path}");
            let mut entries = entries(&api, schema(answer));
            for member in entity.within.iter().flat_map(|within| within.members) {
                entries = entries.iter().flat_map(|entry| parts(&api, entry, member)).collect();
                entries = entries.iter().flat_map(|list| items(&api, list)).collect();
            }
            described.extend(members(&api, &entries));
        }
        if described.is_empty() {
            // The kind is only a part of another object.
            continue;
        }
        let known = known_of(entity);
        unknown.extend(described.difference(&known).map(|member| format!("{} of {}", member, entity.kind)));
        let columns = entity.selectable().filter(|field| {
            !members_of(field.place, field.name()).iter().any(|member| described.contains(*member))
        });
        unknown.extend(columns.map(|field| {
            format!("column {} of {}, which Clerk does not describe", field.name(), entity.kind)
        }));
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

/// The fields of the object that a column is read from.
fn members_of(place: Place, name: &'static str) -> Vec<&'static str> {
    match place {
        Place::Member => vec![name],
        Place::Object => Vec::new(),
        Place::Path(path) => path.first().copied().into_iter().collect(),
        Place::AnyOf(paths) => paths.iter().filter_map(|path| path.first().copied()).collect(),
        Place::Primary { id, list, .. } | Place::PrimaryIsVerified { id, list, .. } => vec![id, list],
    }
}

fn known_of(entity: &'static Entity) -> BTreeSet<String> {
    let columns = entity.fields().flat_map(|field| members_of(field.place, field.name()));
    let nested = entity.nested.iter().map(|nested| nested.member);
    let secrets = entity.secrets.iter().filter_map(|path| path.first().copied());
    let left_out =
        LEFT_OUT.iter().filter(|(kind, _)| *kind == entity.kind).flat_map(|(_, names)| names.iter().copied());
    columns.chain(nested).chain(secrets).chain(left_out).chain(OF_ALL).map(ToOwned::to_owned).collect()
}

/// The newest file whose name begins with this prefix.
fn description(folder: &str, name: &str) -> Value {
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    let mut files: Vec<_> = files
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
        .collect();
    files.sort();
    let file = files.pop().unwrap_or_else(|| panic!("{folder} has no {name}*.yml"));
    serde_yaml_ng::from_str(&fs::read_to_string(file).expect("read")).expect("YAML")
}

fn schema(body: &Value) -> &Value {
    &body["content"]["application/json"]["schema"]
}

/// Follow a reference.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let place = value["$ref"].as_str().map(|place| place.trim_start_matches('#'));
    place.map_or(value, |place| document.pointer(place).unwrap_or(&Value::Null))
}

/// Convert one of our paths to the form in the description.
fn as_described(path: &str) -> String {
    let owner = if path.starts_with("organizations") { "{organization_id}" } else { "{user_id}" };
    format!("/{}", path.replace("{}", owner))
}

/// A schema, and the schemas that it combines.
fn all_of(document: &Value, schema: &Value) -> Vec<Value> {
    let schema = resolved(document, schema);
    let parts = ["allOf", "oneOf", "anyOf"].iter().filter_map(|word| schema[*word].as_array()).flatten();
    let mut all: Vec<Value> = parts.flat_map(|part| all_of(document, part)).collect();
    all.push(schema.clone());
    all
}

/// The schemas of this field.
fn parts(document: &Value, schema: &Value, member: &str) -> Vec<Value> {
    let all = all_of(document, schema);
    all.iter().map(|schema| schema["properties"][member].clone()).filter(|part| !part.is_null()).collect()
}

/// The schemas of a list's items.
fn items(document: &Value, schema: &Value) -> Vec<Value> {
    let all = all_of(document, schema);
    all.iter().map(|schema| schema["items"].clone()).filter(|items| !items.is_null()).collect()
}

/// The schemas of an answer's objects: of a list, of a page with a list, or of a single object.
fn entries(document: &Value, schema: &Value) -> Vec<Value> {
    let mut lists = items(document, schema);
    for page in parts(document, schema, "data") {
        lists.extend(items(document, &page));
    }
    if lists.is_empty() { vec![schema.clone()] } else { lists }
}

fn members(document: &Value, schemas: &[Value]) -> BTreeSet<String> {
    let all = schemas.iter().flat_map(|schema| all_of(document, schema));
    let mut members = BTreeSet::new();
    for schema in all {
        members.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
        // Some fields are listed only as required.
        let required = schema["required"].as_array().into_iter().flatten();
        members.extend(required.filter_map(|name| name.as_str().map(ToOwned::to_owned)));
    }
    members
}
