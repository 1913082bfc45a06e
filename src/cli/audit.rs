//! `audit`: what happened to one user, when, and why. There are no values in it, and so nothing of the person.

use clap::Args;
use serde_json::{Value, json};

use super::{Failure, open, say, user_id};
use crate::{
    config::Settings,
    model::{ClerkId, rfc3339},
    store::AuditLine,
};

/// Lines read at once.
const PAGE: u32 = 500;

/// Print what happened to a user, the oldest first; exits with 1 if nothing is known of them
#[derive(Args)]
#[command(override_usage = "clerk-sync audit [OPTIONS] <USER_ID>")]
pub(super) struct Audit {
    /// Clerk's id of the user
    #[arg(value_parser = user_id)]
    user_id: ClerkId,

    /// Print a line of JSON each
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let (_, store) = open(settings, true).await?;
        let mut after = None;
        loop {
            let page = store.audit_trail(&self.user_id, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for line in &page {
                if self.json { say!("{}", as_json(line)) } else { print(line) }
            }
        }
        store.close().await;
        if after.is_none() {
            return Err(Failure::failed(format!("nothing ever happened here to {}", self.user_id)));
        }
        Ok(())
    }
}

fn print(line: &AuditLine) {
    let AuditLine { at, action, svix_id, source, changed_fields, .. } = line;
    let what = changed_fields.join(", ");
    let why = svix_id.as_deref().unwrap_or("-");
    say!("{}  {action:<23}  {source:<9}  {why:<32}  {what}", rfc3339(*at));
}

fn as_json(line: &AuditLine) -> Value {
    let AuditLine { id, at, action, svix_id, source, changed_fields, event_at } = line;
    json!({
        "id": id, "at": rfc3339(*at), "action": action, "svix_id": svix_id, "source": source,
        "changed_fields": changed_fields, "event_at": rfc3339(*event_at),
    })
}
