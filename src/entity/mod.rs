//! Every kind of Clerk object that can be synced. Each has one file with one declaration.
//!
//! The code that all kinds share is elsewhere. A declaration contains no logic.

pub mod enterprise_connection;
pub mod invitation;
pub mod organization;
pub mod organization_domain;
pub mod organization_invitation;
pub mod organization_membership;
pub mod payment_attempt;
pub mod permission;
pub mod plan;
pub mod role;
pub mod role_set;
pub mod session;
pub mod subscription;
pub mod subscription_item;
pub mod user;
pub mod user_email_address;
pub mod user_external_account;
pub mod user_phone_number;
pub mod user_web3_wallet;
pub mod waitlist_entry;

pub use enterprise_connection::ENTERPRISE_CONNECTION;
pub use invitation::INVITATION;
pub use organization::ORGANIZATION;
pub use organization_domain::ORGANIZATION_DOMAIN;
pub use organization_invitation::ORGANIZATION_INVITATION;
pub use organization_membership::ORGANIZATION_MEMBERSHIP;
pub use payment_attempt::PAYMENT_ATTEMPT;
pub use permission::PERMISSION;
pub use plan::PLAN;
pub use role::ROLE;
pub use role_set::ROLE_SET;
pub use session::SESSION;
pub use subscription::SUBSCRIPTION;
pub use subscription_item::SUBSCRIPTION_ITEM;
pub use user::USER;
pub use user_email_address::USER_EMAIL_ADDRESS;
pub use user_external_account::USER_EXTERNAL_ACCOUNT;
pub use user_phone_number::USER_PHONE_NUMBER;
pub use user_web3_wallet::USER_WEB3_WALLET;
pub use waitlist_entry::WAITLIST_ENTRY;

use crate::model::Entity;

/// Every kind.
pub static ALL: &[&Entity] = &[
    &USER,
    &ORGANIZATION,
    &ORGANIZATION_MEMBERSHIP,
    &PERMISSION,
    &ROLE,
    &ROLE_SET,
    &ORGANIZATION_DOMAIN,
    &ORGANIZATION_INVITATION,
    &PLAN,
    &SUBSCRIPTION,
    &SUBSCRIPTION_ITEM,
    &PAYMENT_ATTEMPT,
    &SESSION,
    &INVITATION,
    &WAITLIST_ENTRY,
    &ENTERPRISE_CONNECTION,
    &USER_EMAIL_ADDRESS,
    &USER_PHONE_NUMBER,
    &USER_EXTERNAL_ACCOUNT,
    &USER_WEB3_WALLET,
];

/// The kinds that are part of a user. Clerk always lists all of a user's parts with the user.
pub static PARTS: &[&Entity] =
    &[&USER_EMAIL_ADDRESS, &USER_PHONE_NUMBER, &USER_EXTERNAL_ACCOUNT, &USER_WEB3_WALLET];

/// The query of lists that support sorting.
const BY_CREATION: &[(&str, &str)] = &[("order_by", "+created_at")];

/// The declaration of the kind with this name.
pub fn named(kind: &str) -> Option<&'static Entity> {
    ALL.iter().copied().find(|entity| entity.kind == kind)
}

/// The kind that this event is about.
pub fn of_event(event_type: &str) -> Option<&'static Entity> {
    ALL.iter().copied().find(|entity| entity.meaning(event_type).is_some())
}
