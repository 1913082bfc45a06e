//! `reconcile`: what differs from Clerk, and the mending of it.

use std::num::NonZeroU32;

use clap::Args;
use tokio::sync::watch;

use super::{
    Failure,
    backfill::{any_kind, chosen, left_out_text, nouns, objects, off},
    catch_up, count, noun, rate, say,
    terminal::counted,
    unless_stopped,
};
use crate::{
    config::Settings,
    model::Entity,
    sync::{
        catch_up::CatchUp,
        reconcile::{Comparison, DriftKind, Options, reconcile},
    },
};

/// Compare with Clerk and mend what differs
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Reconcile {
    /// Only objects of this kind [default: every kind that is synced]
    #[arg(long, value_name = "KIND", value_parser = any_kind)]
    entity: Option<&'static Entity>,

    /// Report only; exits with 1 if anything differs
    #[arg(long)]
    dry_run: bool,

    /// Delete users that are not at Clerk even if they are many (more than 50, and more than 5 %), half of all or more, or
    /// perhaps of another instance
    #[arg(long)]
    allow_mass_delete: bool,

    /// Requests a second [default: 90 with a key of production, else 9]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,

    /// Tell other systems of what is mended; of deletions they always hear
    #[arg(long)]
    emit: bool,

    /// Let users come from another instance of Clerk than so far; --clerk-instance-id, if it is set, still counts
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
            // What is wrong with one kind keeps nobody from the others.
            failures.extend(self.run_of(&context, entity).await?);
        }
        context.store.close().await;
        if failures.is_empty() { Ok(()) } else { Err(Failure::failed(failures.join("\n"))) }
    }

    /// Compare one kind; what is wrong, if anything is.
    async fn run_of(&self, context: &CatchUp, entity: &'static Entity) -> Result<Option<String>, Failure> {
        let (one, many) = nouns(entity);
        let options =
            Options { dry_run: self.dry_run, allow_mass_delete: self.allow_mass_delete, only_mend: false };
        let (tell, hear) = watch::channel(0);
        let interrupted = || {
            let seen = objects(*hear.borrow(), entity);
            format!("interrupted at {seen}; what was mended stays, and another run begins anew")
        };
        let report = unless_stopped(reconcile(context, entity, options, tell), interrupted).await??;
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
                "{} not to be at Clerk, {doubt}: nothing was deleted; look into it, and if it is right, repeat with \
                 --allow-mass-delete",
                count(report.withheld, &format!("{one} seems"), &format!("{many} seem"))
            )));
        }
        if report.left_out.left_out > 0 {
            return Ok(Some(left_out_text(entity, &report.left_out)));
        }
        if report.unmended > 0 {
            return Ok(Some(format!(
                "{} could not be mended: newer here by the register",
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
                DriftKind::Different => "as new here, but different",
                DriftKind::NotAtClerk => "here, but not at Clerk",
                DriftKind::ErasedHere => "erased here, but alive at Clerk: left alone, for deletion is final",
                DriftKind::HeldHere => {
                    "about to be erased here, but alive at Clerk: `clerk-sync erase cancel` takes that back"
                }
            };
            counted(drift.users, meaning, &drift.ids);
        }
        if report.touched > 0 {
            say!(
                "{:>9}  with a newer updated_at or last_active_at and nothing else that differs, which is no drift",
                report.touched
            );
        }
        if self.dry_run {
            say!("Nothing was written: --dry-run.");
        } else {
            say!("{:>9}  mended", report.mended);
            say!("{:>9}  deleted", report.deleted);
        }
    }
}
