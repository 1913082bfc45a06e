//! `minimize`: clears the columns that are no longer synced.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Failure,
    backfill::{nouns, objects},
    confirm, noun, on_store, say,
};
use crate::{
    config::{Settings, fields_variable},
    entity::USER,
    model::{Entity, Selection},
    store::{Store, StoreError},
    sync::minimize::{Minimized, minimize},
};

/// Clear the columns of fields that are no longer synced
#[derive(Args)]
pub(super) struct Minimize {
    /// Only count what would be cleared
    #[arg(long)]
    dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

impl Minimize {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        on_store(settings, self.dry_run, async |config, store| self.clear(&config.selection, store).await)
            .await
    }

    async fn clear(&self, selection: &Selection, store: &dyn Store) -> Result<(), Failure> {
        if !self.dry_run && !self.yes {
            let would = each(selection, store, true).await?;
            let would: Vec<_> = would.iter().filter(|(_, would)| would.rows > 0).collect();
            if !would.is_empty() {
                let of = would.iter().map(|(entity, would)| {
                    format!(
                        "{} (not in {}: {})",
                        objects(would.rows, entity),
                        fields_variable(entity),
                        columns(would).map(|(name, _)| name).collect::<Vec<_>>().join(", ")
                    )
                });
                let of = of.collect::<Vec<_>>().join("; ");
                confirm(&format!("Permanently clear the columns that are no longer synced: {of}?"))?;
            }
        }
        let each = each(selection, store, self.dry_run).await?;
        if !self.dry_run && each.iter().any(|(_, minimized)| minimized.rows > 0) {
            // The cleared values must not stay in the database file either.
            store.compact(u64::MAX, None).await?;
        }
        if self.json {
            say!("{}", json(&each, self.dry_run));
        } else {
            let what = if self.dry_run { "would be changed" } else { "changed" };
            for (entity, minimized) in &each {
                for (name, count) in columns(minimized) {
                    say!("{count:>9}  {name}");
                }
                let (one, many) = nouns(entity);
                say!("{:>9}  {} {what}", minimized.rows, noun(minimized.rows, &one, &many));
            }
        }
        match each.iter().find(|(_, minimized)| minimized.refused > 0) {
            None => Ok(()),
            Some((entity, minimized)) => Err(Failure::failed(format!(
                "{} not changed, because a constraint or trigger of the application refuses it",
                objects(minimized.refused, entity)
            ))),
        }
    }
}

async fn each(selection: &Selection, store: &dyn Store, dry_run: bool) -> Result<Vec<Of>, StoreError> {
    let mut each = Vec::new();
    for entity in selection.entities() {
        each.push((entity, minimize(store, entity, selection.fields(entity), dry_run).await?));
    }
    Ok(each)
}

/// A kind, and the counts of its rows.
type Of = (&'static Entity, Minimized);

/// The counts of users under their original keys; those of another kind under the name of its table.
fn json(each: &[Of], dry_run: bool) -> Value {
    let mut all = json!({ "dry_run": dry_run });
    for (entity, minimized) in each {
        let columns = minimized.columns.iter().map(|(name, count)| ((*name).to_owned(), (*count).into()));
        let columns = Value::Object(columns.collect());
        if **entity == USER {
            all["users"] = minimized.rows.into();
            all["columns"] = columns;
            all["refused"] = minimized.refused.into();
        } else {
            all[entity.table] =
                json!({ "rows": minimized.rows, "columns": columns, "refused": minimized.refused });
        }
    }
    all
}

/// The columns that have values to clear, and the number of such rows.
fn columns(of: &Minimized) -> impl Iterator<Item = (&'static str, u64)> {
    of.columns.iter().copied().filter(|(_, count)| *count > 0)
}
