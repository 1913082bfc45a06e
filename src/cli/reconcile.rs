//! `reconcile`: finds and fixes differences from Clerk.

use std::num::NonZeroU32;

use clap::Args;
use tokio::sync::watch;

use super::{
    Failure,
    backfill::{Shown, any_kind, chosen, left_out_text, nouns, objects, off, show},
    catch_up, count, noun, rate, say,
    terminal::counted,
    unless_stopped,
};
use crate::{
    config::Settings,
    model::Entity,
    sync::{
        catch_up::CatchUp,
        reconcile::{Compared, Comparison, DriftKind, Options, reconcile},
    },
};

/// Compare with Clerk and fix the differences
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Reconcile {
    /// Only objects of this kind [default: every kind that is synced]
    #[arg(long, value_name = "KIND", value_parser = any_kind)]
    entity: Option<&'static Entity>,

    /// Report only; exits with 1 if there are differences
    #[arg(long)]
    dry_run: bool,

    /// Delete users that Clerk does not have even if they are many (more than 50, and more than 5 %), half of all or more, or
    /// perhaps from another instance
    #[arg(long)]
    allow_mass_delete: bool,

    /// Requests per second [default: 90 with a production key, else 9]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,

    /// Notify other systems of fixed rows too; they are always notified of deletions
    #[arg(long)]
    emit: bool,

    /// Allow users from another Clerk instance than before; --clerk-instance-id, if set, still applies
    #[arg(long)]
    change_instance: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Reconcile {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut context = catch_up(settings, self.rate, self.dry_run, self.emit).await?;
        context.instance.may_change = self.change_instance;
        let mut failures = Vec::new();
        for entity in chosen(self.entity, &context.rules.selection)? {
            // An error in one kind does not stop the others.
            failures.extend(self.run_of(&context, entity).await?);
        }
        context.store.close().await;
        if failures.is_empty() { Ok(()) } else { Err(Failure::failed(failures.join("\n"))) }
    }

    /// Compare one kind. Returns the problem, if there is one.
    async fn run_of(&self, context: &CatchUp, entity: &'static Entity) -> Result<Option<String>, Failure> {
        let (one, many) = nouns(entity);
        let options =
            Options { dry_run: self.dry_run, allow_mass_delete: self.allow_mass_delete, only_mend: false };
        let (tell, hear) = watch::channel(Compared::default());
        let interrupted = || {
            let Compared { seen, asked } = *hear.borrow();
            let place = if entity.of_each.is_empty() {
                format!("at {}", objects(seen, entity))
            } else {
                format!("with {}", asked.text())
            };
            format!("interrupted {place}; fixes so far are kept, and the next run starts from the beginning")
        };
        let shown =
            |compared: &Compared| Shown { seen: compared.seen, expected: None, asked: compared.asked };
        // Other kinds take one request for hundreds of objects.
        let takes_long = !entity.of_each.is_empty();
        let teller = takes_long.then(|| tokio::spawn(show("reconcile", entity, hear.clone(), shown)));
        let report = unless_stopped(reconcile(context, entity, options, tell), interrupted).await;
        drop(hear);
        if let Some(teller) = teller {
            // The task ends by itself, because the sender is gone.
            _ = teller.await;
        }
        let report = report??;
        if self.json {
            let mut json = serde_json::to_value(&report).unwrap_or_default();
            json["entity"] = entity.kind.into();
            say!("{json}");
        } else if report.switched_off {
            say!("{}", off(entity));
        } else {
            self.show(entity, &report);
        }
        if let Some(doubt) = report.doubt {
            return Ok(Some(format!(
                "{} to be missing at Clerk, {doubt}: nothing was deleted; investigate, and if this is correct, repeat with \
                 --allow-mass-delete",
                count(report.withheld, &format!("{one} seems"), &format!("{many} seem"))
            )));
        }
        if report.left_out.left_out > 0 {
            return Ok(Some(left_out_text(entity, &report.left_out)));
        }
        if report.unmended > 0 {
            return Ok(Some(format!(
                "{} could not be fixed: the version register is newer here",
                objects(report.unmended, entity)
            )));
        }
        if self.dry_run && report.has_drift() {
            return Ok(Some("there is drift".to_owned()));
        }
        Ok(None)
    }

    fn show(&self, entity: &Entity, report: &Comparison) {
        let (one, many) = nouns(entity);
        say!("{:>9}  {} at Clerk", report.seen, noun(report.seen, &one, &many));
        for kind in DriftKind::ALL {
            let drift = report.of(kind);
            let meaning = match kind {
                DriftKind::Missing => "missing here",
                DriftKind::Stale => "older here",
                DriftKind::Different => "same version here, but different data",
                DriftKind::NotAtClerk => "here, but not at Clerk",
                DriftKind::ErasedHere => {
                    "erased here, but still at Clerk: left unchanged, because deletion is final"
                }
                DriftKind::HeldHere => {
                    "deleted here with a delayed erasure, but still at Clerk: `clerk-sync erase cancel` keeps it"
                }
            };
            counted(drift.users, meaning, &drift.ids);
        }
        if report.touched > 0 {
            say!("{:>9}  with only a newer updated_at or last_active_at, which is not drift", report.touched);
        }
        if self.dry_run {
            say!("Nothing was written: --dry-run.");
        } else {
            say!("{:>9}  fixed", report.mended);
            say!("{:>9}  deleted", report.deleted);
        }
    }
}
