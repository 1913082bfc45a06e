//! The Web3 wallets of users.

use super::USER;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. Part of a user. Clerk lists all of them with the user; those no longer listed are deleted.
pub static USER_WEB3_WALLET: Entity = Entity {
    kind: "user_web3_wallet",
    table: "user_web3_wallets",
    id_prefix: "idn_",
    events: ["userWeb3Wallet.created", "userWeb3Wallet.updated", "userWeb3Wallet.deleted"],
    also: &[],
    path: None,
    query: &[],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("user_id", Holds::Text).by_default().parent(&USER),
        Column::new("web3_wallet", Holds::Text)
            .by_default()
            .sample("\"0x0000000000000000000000000000000000000000\""),
        Column::new("verification", Holds::Json).by_default().kept().sample("{\"status\":\"verified\"}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
