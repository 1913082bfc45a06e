//! `config`: the configuration as it came out, where each value came from, and what `serve` would refuse.

use clap::{ArgMatches, Args};
use serde_json::{Map, Value, json};

use super::{Failure, say};
use crate::config::{Effective, Mistake, Needs, Origin, Settings};

/// Print the configuration as it came out, without secrets, and where each value came from; exits with 78 if `serve` would
/// refuse it
#[derive(Args)]
pub(super) struct Show {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, settings: &Settings, matches: &ArgMatches) -> Result<(), Failure> {
        let (config, mistakes) = settings.diagnose(Needs::SERVE);
        let mut values = config.effective(matches, &settings.dotenv);
        // There is only a stand-in for what is mistaken.
        for of in &mut values {
            of.value =
                of.value.take().filter(|_| !mistakes.iter().any(|mistake| mistake.is_about(of.variable)));
        }
        if self.json {
            let entry = |Effective { variable, value, origin }| {
                let what = json!({ "value": value, "origin": origin.to_string() });
                (String::from(variable), what)
            };
            say!("{:#}", Value::Object(values.into_iter().map(entry).collect::<Map<_, _>>()));
        } else {
            print(&values, &mistakes);
            for warning in &config.warnings {
                say!("\nwarning: {warning}");
            }
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Err(Failure::configuration(format!(
            "`clerk-sync serve` would refuse this:\n  {}",
            mistakes.join("\n  ")
        )))
    }
}

fn print(values: &[Effective], mistakes: &[Mistake]) {
    let text = |of| text(of, mistakes);
    let names = values.iter().map(|of| of.variable.len()).max().unwrap_or(0);
    let texts = values.iter().map(|of| text(of).chars().count()).max().unwrap_or(0).min(48);
    for of in values {
        say!("{:<names$}  {:<texts$}  {}", of.variable, text(of), of.origin);
    }
}

fn text<'a>(of: &'a Effective, mistakes: &[Mistake]) -> &'a str {
    let is_mistaken = |variable| mistakes.iter().any(|mistake| mistake.is_about(variable));
    match (&of.value, of.variable) {
        (Some(value), _) => value,
        (None, _) if of.origin == Origin::Default => "(not set)",
        (None, "SENTRY_ENVIRONMENT" | "SENTRY_RELEASE")
            if !is_mistaken(of.variable) && !is_mistaken("SENTRY_DSN") =>
        {
            "(not used: SENTRY_DSN is not set)"
        }
        (None, _) => "(cannot be used)",
    }
}
