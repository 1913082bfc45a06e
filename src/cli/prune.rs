//! `prune`: deletes rows that are past their retention.

use clap::Args;

use super::{Failure, clock, on_store, say, service::keep};
use crate::{
    config::Settings,
    work::retention::{old_rows, prune},
};

/// Delete rows that are past their retention, as `serve` does every hour
#[derive(Args)]
pub(super) struct Prune {
    /// Only count the rows that would be deleted
    #[arg(long)]
    dry_run: bool,

    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        on_store(settings, self.dry_run, async |config, store| {
            let (keep, now) = (keep(config), clock()());
            let mut trouble = None;
            let rows = if self.dry_run {
                old_rows(store, &keep, now).await?
            } else {
                let mut rows = Vec::new();
                for (kind, pruned) in prune(store, &keep, now, None).await {
                    match pruned {
                        Ok(pruned) => rows.push((kind, pruned)),
                        Err(error) => trouble = Some(error),
                    }
                }
                store.compact(u64::MAX, None).await?;
                rows
            };
            if self.json {
                let counts: serde_json::Map<_, _> =
                    rows.iter().map(|(kind, rows)| (kind.name().to_owned(), (*rows).into())).collect();
                say!("{}", serde_json::json!({ "dry_run": self.dry_run, "rows": counts }));
            } else {
                let what = if self.dry_run { "would be deleted from" } else { "deleted from" };
                for (kind, rows) in rows {
                    say!("{rows:>9}  {what} {}", kind.name());
                }
            }
            trouble.map_or(Ok(()), |error| Err(error.into()))
        })
        .await
    }
}
