//! `audit`: what happened to one user, when, and why; and the proof that nobody has changed the trail that says so. There
//! are no values in it, and so nothing of the person.

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

/// Lines read at once.
const PAGE: u32 = 500;

/// Print what happened to a user, the oldest first; exits with 1 if nothing is known of them
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Audit {
    #[command(subcommand)]
    action: Option<Action>,

    /// Clerk's id of the user
    #[arg(value_name = "USER_ID", value_parser = user_id, required = true)]
    user_id: Option<ClerkId>,

    /// Print a line of JSON each
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Prove that no line of the audit trail was changed, removed, or slipped in later
    ///
    /// Exits with 1 and names what is wrong if one was. Lines of the last moment, which no seal covers yet, are counted.
    /// Whoever may write everything in the database could write the whole chain anew, or cut off its end: keep the newest
    /// seal that this prints somewhere else, and give it to --seal the next time.
    Verify {
        /// A seal that was printed before and kept elsewhere: it must still be the same; may be repeated
        #[arg(long = "seal", value_name = "NUMBER:HASH")]
        seals: Vec<Mark>,

        /// Print it as JSON
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
            (None, None) => Err(Failure::usage("the trail of whom? Name the user's id, or see --help")),
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
    // The trail is that of whatever has this id, of every kind.
    let mut ids: Vec<ClerkId> =
        entity::ALL.iter().filter_map(|kind| ClerkId::new(kind, id.as_str())).collect();
    ids.sort();
    let known = store.known(&ids, &Selection::default()).await?;
    if !ids.iter().any(|id| known.has(id)) {
        return Err(never_heard_of(id));
    }
    let hint = if known.has(id) {
        format!(": `clerk-sync erase status {id}` says how they stand")
    } else {
        String::new()
    };
    // To standard error: a program that reads the lines finds none.
    complain(&format!("{id} is known here, and no line of the audit trail is about it{hint}"));
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
    Err(Failure::failed(format!("the audit trail is not as it was sealed: {first}{more}")))
}

fn print_report(report: &Verification) {
    let Verification { seals, lines, newest, unsealed, faults, found } = report;
    for fault in faults {
        say!("{fault}");
    }
    if *found > faults.len() as u64 {
        say!("and {} more", found - faults.len() as u64);
    }
    let verdict = if report.is_whole() { "all as they were sealed" } else { "not all as they were sealed" };
    say!("{} under {}, {verdict}", count(*lines, "line", "lines"), count(*seals, "seal", "seals"));
    if let Some(newest) = newest {
        say!("newest seal, to be kept elsewhere: {newest}");
    }
    let oldest =
        unsealed.since.map(|since| format!(", the oldest of {}", rfc3339(since))).unwrap_or_default();
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
