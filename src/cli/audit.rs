//! `audit`: what happened to one user, when, and why; and the verification that the audit trail is unchanged. The trail
//! holds no values, and so no personal data.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure, ask, count, never_heard_of, on_store, say,
    terminal::{complain, progress},
    user_id,
};
use crate::{
    config::{Config, Settings},
    entity,
    model::{ClerkId, Mark, Selection, rfc3339},
    store::{AuditLine, Store},
    sync::chain::{self, UNSEALED_COUNTED, Verification},
};

/// Lines read per query.
const PAGE: u32 = 500;

/// Print what happened to a user, oldest first; exits with 1 if the user is unknown
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Audit {
    #[command(subcommand)]
    action: Option<Action>,

    /// Clerk's id of the user
    #[arg(value_name = "USER_ID", value_parser = user_id, required = true)]
    user_id: Option<ClerkId>,

    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Verify that no line of the audit trail was changed, removed or inserted later
    ///
    /// Exits with 1 and names the first faults if the trail was tampered with. The newest lines, which no seal covers
    /// yet, are counted. Anyone with write access to the whole database could rewrite the chain, or cut off its end.
    /// Store the newest seal that this command prints somewhere else, and pass it to --seal the next time.
    Verify {
        /// A seal that was printed earlier and kept elsewhere: it must still match; may be repeated
        #[arg(long = "seal", value_name = "NUMBER:HASH")]
        seals: Vec<Mark>,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Audit {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        match (self.action, self.user_id) {
            (Some(Action::Verify { seals, json }), _) => {
                on_store(settings, true, async |config, store| verify(config, store, &seals, json).await)
                    .await
            }
            (None, Some(id)) => {
                on_store(settings, true, async |_, store| trail(store, &id, self.json).await).await
            }
            (None, None) => Err(Failure::usage("no user given: name the user's id, or see --help")),
        }
    }
}

async fn trail(store: &dyn Store, id: &ClerkId, json: bool) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page = store.audit_trail(id, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for line in &page {
            if json { say!("{}", as_json(line)) } else { print(line) }
        }
    }
    if after.is_some() {
        return Ok(());
    }
    // The trail covers every kind that has this id.
    let mut ids: Vec<ClerkId> =
        entity::ALL.iter().filter_map(|kind| ClerkId::new(kind, id.as_str())).collect();
    ids.sort();
    let known = store.known(&ids, &Selection::default()).await?;
    if !ids.iter().any(|id| known.has(id)) {
        return Err(never_heard_of(id));
    }
    let hint = if known.has(id) {
        format!(": `clerk-sync erase status {id}` shows its state")
    } else {
        String::new()
    };
    // To standard error: a program that parses the lines must not read this one.
    complain(&format!("{id} is known here, but the audit trail has no line about it{hint}"));
    Ok(())
}

async fn verify(config: &Config, store: &dyn Store, seals: &[Mark], json: bool) -> Result<(), Failure> {
    let bar = progress("{pos} lines, {rate}");
    let verifying = chain::verify(store, seals, |lines| bar.set_position(lines));
    let report = ask(&config.database, verifying).await;
    bar.finish_and_clear();
    let report = report?;
    if json {
        say!("{}", report_as_json(&report));
    } else {
        print_report(&report);
        if let Some(bypass) = store.inspect().await.ok().and_then(|inspection| inspection.bypass) {
            say!("{bypass}");
        }
    }
    let Some(first) = report.faults.first() else { return Ok(()) };
    let more = match report.found - 1 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(Failure::failed(format!("the audit trail does not match its seals: {first}{more}")))
}

fn print_report(report: &Verification) {
    let Verification { seals, lines, newest, unsealed, faults, found } = report;
    for fault in faults {
        say!("{fault}");
    }
    if *found > faults.len() as u64 {
        say!("and {} more", found - faults.len() as u64);
    }
    let verdict = if report.is_whole() { "all match their seals" } else { "not all match their seals" };
    say!("{} under {}, {verdict}", count(*lines, "line", "lines"), count(*seals, "seal", "seals"));
    if let Some(newest) = newest {
        say!("newest seal (store it elsewhere): {newest}");
    }
    let oldest =
        unsealed.since.map(|since| format!(", the oldest from {}", rfc3339(since))).unwrap_or_default();
    let at_least = if unsealed.lines == u64::from(UNSEALED_COUNTED) { "at least " } else { "" };
    say!("not sealed yet: {at_least}{}{oldest}", count(unsealed.lines, "line", "lines"));
}

fn report_as_json(report: &Verification) -> Value {
    let Verification { seals, lines, newest, unsealed, faults, found } = report;
    json!({
        "whole": report.is_whole(), "seals": seals, "lines": lines,
        "newest_seal": newest.as_ref().map(ToString::to_string),
        "unsealed": { "lines": unsealed.lines, "since": unsealed.since.map(rfc3339) },
        "faults_found": found, "faults": faults,
    })
}

fn print(line: &AuditLine) {
    let AuditLine { at, action, svix_id, source, changed_fields, .. } = line;
    let what = changed_fields.join(", ");
    let why = svix_id.as_deref().unwrap_or("-");
    say!("{}  {action:<23}  {source:<9}  {why:<32}  {what}", rfc3339(*at));
}

fn as_json(line: &AuditLine) -> Value {
    let AuditLine { id, at, action, kind, svix_id, source, changed_fields, event_at } = line;
    json!({
        "id": id, "at": rfc3339(*at), "action": action, "kind": kind, "svix_id": svix_id, "source": source,
        "changed_fields": changed_fields, "event_at": rfc3339(*event_at),
    })
}
