//! `ensure`: one object, fetched from Clerk if it is missing.

use clap::Args;

use super::{Failure, catch_up, say, user_id};
use crate::{config::Settings, entity, http, model::ClerkId, sync::ensure::Ensure as Ensuring};

/// Show one user or organization, fetched from Clerk if it is missing
#[derive(Args)]
pub(super) struct Ensure {
    /// Clerk's id: user_… or org_…
    #[arg(value_name = "ID", value_parser = any_id)]
    id: ClerkId,
}

/// An id of the kind that its prefix names, if Clerk's API can return a single object of that kind.
fn any_id(text: &str) -> Result<ClerkId, String> {
    let id = user_id(text)?;
    let named = entity::ALL
        .iter()
        .filter(|entity| !entity.id_prefix.is_empty() && text.starts_with(entity.id_prefix));
    // Some prefixes begin with another kind's prefix.
    let Some(kind) = named.max_by_key(|entity| entity.id_prefix.len()) else {
        return Ok(id);
    };
    if !kind.has_one {
        return Err(format!(
            "Clerk's API does not return a single {}: use `clerk-sync reconcile --entity {}`",
            kind.kind.replace('_', " "),
            kind.kind
        ));
    }
    Ok(ClerkId::new(kind, text).unwrap_or(id))
}

impl Ensure {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let context = catch_up(settings, None, false, false).await?;
        let (id, kind) = (&self.id, self.id.entity().kind);
        if !context.rules.selection.has(id.entity()) {
            return Err(Failure::usage(format!(
                "{id}: SYNC_ENTITIES does not include {kind}, so it is not synced"
            )));
        }
        let store = context.store.clone();
        let row = Ensuring::new(context).ensure(id).await;
        store.close().await;
        match row {
            Ok(Some(row)) => {
                say!("{}", http::row_as_json(&row));
                Ok(())
            }
            Ok(None) => {
                Err(Failure::failed(format!("Clerk does not know {kind} {id}, or it is deleted here")))
            }
            Err(trouble) => Err(Failure::from(&*trouble)),
        }
    }
}
