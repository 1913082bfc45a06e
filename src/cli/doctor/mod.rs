//! `doctor`: checks everything that can be wrong in one go, and prints a remedy for each problem.
//!
//! The check continues after each failure, and gives a reason for each part that it skips. It writes nothing: migrations
//! stay pending, a missing file is not created, and the service does not record the event that `doctor` sends to it. The
//! output contains no secrets and no personal data.

mod backlog;
mod clerk;
mod clock;
mod configuration;
mod database;
mod disk;
mod report;
mod service;
mod sinks;
mod stream;

use clap::Args;

use self::{
    configuration::Given,
    report::{Finding, exit_code, print},
};
use super::{Failure, clock as our_clock, say};
use crate::config::{Diagnosis, Needs, Settings};

const EXIT_CODES: &str = "\
Exit codes:
    0  nothing failed; there may be warnings
    1  something failed
   69  the database, Clerk, the service of --url or a sink cannot be reached
   78  the configuration cannot be used, or Clerk or the server refuses it: key, password, privileges, tables
  If several checks fail, the highest code counts.";

/// Check everything that can be wrong, and print how to fix it; changes nothing
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Doctor {
    /// The URL for a signed event that tests the webhook secret [default: /webhooks/clerk on this machine, at HOST and PORT]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Print JSON: a list of check, status (ok, warn, fail, skip), found, remedy
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let Diagnosis { config, mistakes, .. } = settings.diagnose(Needs::SERVE);
        let given = Given { config, mistakes };
        let (database, stream, hour, instance, service, sinks) = tokio::join!(
            database::check(&given),
            stream::check(&given, our_clock()()),
            clerk::ask_hour(&given),
            clerk::ask_instance(&given),
            service::check(&given, self.url),
            sinks::check(&given),
        );
        let mut findings = configuration::check(&given);
        findings.extend(database.findings);
        findings.extend(stream);
        findings.push(clerk::judge_hour(&given, hour));
        findings.extend(clerk::judge_instance(&given, instance, database.origin.as_ref()));
        findings.extend(clerk::judge_origin(&given, database.origin.as_ref(), our_clock()()));
        findings.extend(service);
        findings.extend(sinks);
        findings.push(disk::check(&given, database.size));
        if self.json {
            let list: Vec<_> = findings.iter().map(Finding::as_json).collect();
            say!("{:#}", serde_json::Value::Array(list));
        } else {
            print(&findings);
        }
        match exit_code(&findings) {
            None => Ok(()),
            Some(code) => {
                let failed = findings.iter().filter(|finding| finding.failed()).count();
                let message = format!("{failed} of {} checks failed", findings.len());
                Err(Failure { code, message })
            }
        }
    }
}
