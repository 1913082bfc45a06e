//! `doctor`: everything that can be wrong, looked at in one go, each with what mends it.
//!
//! It goes on after whatever fails, and says of what it could not look at why. It writes nothing: migrations stay pending, a
//! file that is not there is not made, and the event that it sends to the service is one that nobody records. Neither a
//! secret nor anything of a person is ever told.

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
   78  the configuration cannot be used, or what it names refuses it: key, password, privileges, tables
  Of several the highest counts.";

/// Look for everything that can be wrong, and say what mends it; changes nothing
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Doctor {
    /// Where a signed event is sent to try the webhook secret [default: /webhooks/clerk on this machine, at HOST and PORT]
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
