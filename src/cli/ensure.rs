//! `ensure`: one user, fetched from Clerk if need be.

use clap::Args;

use super::{Failure, catch_up, say, user_id};
use crate::{config::Settings, http, model::ClerkId, sync::ensure::Ensure as Ensuring};

/// Show one user, fetched from Clerk if it is not here
#[derive(Args)]
pub(super) struct Ensure {
    /// Clerk's id of the user
    #[arg(value_name = "USER_ID", value_parser = user_id)]
    user_id: ClerkId,
}

impl Ensure {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let context = catch_up(settings, None, false, false).await?;
        let store = context.store.clone();
        let row = Ensuring::new(context).ensure(&self.user_id).await;
        store.close().await;
        match row {
            Ok(Some(row)) => {
                say!("{}", http::row_as_json(&row));
                Ok(())
            }
            Ok(None) => {
                Err(Failure::failed(format!("Clerk does not know user {}, or it was deleted", self.user_id)))
            }
            Err(trouble) => Err(Failure::from(&*trouble)),
        }
    }
}
