//! `config`: the effective configuration, the origin of each value, and what `serve` would refuse.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Failure, say};
use crate::config::{Diagnosis, Effective, Needs, Origin, Settings};

/// Print the effective configuration without secrets, and the origin of each value; exits with 78 if `serve` would
/// refuse it
#[derive(Args)]
pub(super) struct Show {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let diagnosis = settings.diagnose(Needs::SERVE);
        if self.json {
            let entries = diagnosis.effective.iter().map(|Effective { variable, value, origin }| {
                (variable.clone(), json!({ "value": value, "origin": origin.to_string() }))
            });
            say!("{:#}", Value::Object(entries.collect::<Map<_, _>>()));
        } else {
            print(&diagnosis);
        }
        if diagnosis.mistakes.is_empty() {
            return Ok(());
        }
        let mistakes: Vec<String> = diagnosis.mistakes.iter().map(ToString::to_string).collect();
        Err(Failure::configuration(format!(
            "`clerk-sync serve` would refuse this:\n  {}",
            mistakes.join("\n  ")
        )))
    }
}

fn print(diagnosis: &Diagnosis) {
    let values = &diagnosis.effective;
    let names = values.iter().map(|of| of.variable.len()).max().unwrap_or(0);
    let texts = values.iter().map(|of| text(of, diagnosis).chars().count()).max().unwrap_or(0).min(48);
    for of in values {
        say!("{:<names$}  {:<texts$}  {}", of.variable, text(of, diagnosis), of.origin);
    }
    for warning in &diagnosis.config.warnings {
        say!("\nwarning: {warning}");
    }
}

fn text<'a>(of: &'a Effective, diagnosis: &Diagnosis) -> &'a str {
    let is_mistaken = |variable: &str| diagnosis.mistakes.iter().any(|mistake| mistake.is_about(variable));
    match &of.value {
        Some(value) => value,
        None if of.origin == Origin::Default => "(not set)",
        None if of.variable.starts_with("SENTRY_")
            && ![&of.variable, "SENTRY_DSN"].into_iter().any(is_mistaken) =>
        {
            "(not used: SENTRY_DSN is not set)"
        }
        None => "(cannot be used)",
    }
}
