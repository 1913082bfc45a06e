//! `minimize`: what is no longer synced is no longer kept.

use clap::Args;

use super::{Failure, confirm, count, noun, open, say};
use crate::{
    config::Settings,
    sync::minimize::{Minimized, minimize},
};

/// Clear the columns of fields that are no longer synced
#[derive(Args)]
pub(super) struct Minimize {
    /// Only count what would be cleared
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

impl Minimize {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let (config, store) = open(settings, self.dry_run).await?;
        if !self.dry_run && !self.yes {
            let would = minimize(&*store, config.sync_fields(), true).await?;
            if would.users > 0 {
                confirm(&format!(
                    "Clear for good, of {}, what SYNC_FIELDS does not name: {}?",
                    count(would.users, "user", "users"),
                    columns(&would)
                ))?;
            }
        }
        let minimized = minimize(&*store, config.sync_fields(), self.dry_run).await?;
        if !self.dry_run && minimized.users > 0 {
            // What was cleared must not stay in the file either.
            store.compact(u64::MAX, None).await?;
        }
        store.close().await;
        if self.json {
            let columns: serde_json::Map<_, _> =
                minimized.columns.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            say!(
                "{}",
                serde_json::json!({
                    "dry_run": self.dry_run, "users": minimized.users, "columns": columns, "refused": minimized.refused,
                })
            );
        } else {
            for (name, count) in minimized.columns.iter().filter(|(_, count)| *count > 0) {
                say!("{count:>9}  {name}");
            }
            let what = if self.dry_run { "would lose something" } else { "lost something" };
            say!("{:>9}  {} {what}", minimized.users, noun(minimized.users, "user", "users"));
        }
        if minimized.refused > 0 {
            return Err(Failure::failed(format!(
                "{} left alone, because a constraint or trigger of the application refuses",
                count(minimized.refused, "user was", "users were")
            )));
        }
        Ok(())
    }
}

/// The names of the columns that have something to clear.
fn columns(would: &Minimized) -> String {
    let names = would.columns.iter().filter(|(_, count)| *count > 0).map(|(name, _)| *name);
    names.collect::<Vec<_>>().join(", ")
}
