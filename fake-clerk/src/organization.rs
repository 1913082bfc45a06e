//! The contents of a fake's initial organizations and memberships, derived from their numbers.

use serde_json::{Value, json};

use super::{id::hash, user::spread};

const NAMES: [&str; 8] =
    ["Acme", "Ψωμί & Co", "Øst", "Initech", "O’Hara’s", "株式会社", "Globex", "Ünïon 🚀"];

/// The organization with this number, created at this time.
pub(super) fn organization(id: &str, number: u32, created_at: i64) -> Value {
    json!({
        "object": "organization",
        "id": id,
        "name": format!("{} {number}", NAMES[number as usize % NAMES.len()]),
        "slug": format!("organization-{number}"),
        "image_url": format!("https://img.clerk.com/fake/{:016x}", hash(u64::from(number), 40)),
        "has_image": number.is_multiple_of(3),
        "max_allowed_memberships": if number.is_multiple_of(5) { 0 } else { 5000 },
        "admin_delete_enabled": true,
        "public_metadata": if number.is_multiple_of(2) { json!({ "tier": "gold" }) } else { json!({}) },
        "private_metadata": json!({ "account": number }),
        "created_at": created_at,
        "updated_at": updated_at(number, created_at),
    })
}

/// A membership without its organization and user.
pub(super) fn membership(id: &str, number: u32, created_at: i64) -> Value {
    let (role, role_name, permissions) = if number.is_multiple_of(4) {
        ("org:admin", "Admin", json!(["org:sys_memberships:read", "org:sys_memberships:manage"]))
    } else {
        ("org:member", "Member", json!(["org:sys_memberships:read"]))
    };
    json!({
        "object": "organization_membership",
        "id": id,
        "role": role,
        "role_name": role_name,
        "permissions": permissions,
        "public_metadata": json!({}),
        "private_metadata": if number.is_multiple_of(3) { json!({ "seat": number }) } else { json!({}) },
        "created_at": created_at,
        "updated_at": updated_at(number, created_at),
    })
}

/// Like users, they are updated within a few milliseconds of their creation.
fn updated_at(number: u32, created_at: i64) -> i64 {
    created_at + spread(hash(u64::from(number), 41), 15, 56)
}
