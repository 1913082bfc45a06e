//! `config`: the configuration as it came out, where each value came from, and what `serve` would refuse.

use clap::{ArgMatches, Args};
use serde_json::{Map, Value, json};

use super::{Failure, say};
use crate::config::{Effective, Needs, Origin, Settings};

/// Print the configuration as it came out, without secrets, and where each value came from; exits with 78 if `serve` would
/// refuse it
#[derive(Args)]
pub(super) struct Show {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(
        self,
        settings: &Settings,
        matches: &ArgMatches,
        dotenv: &[String],
    ) -> Result<(), Failure> {
        let (config, mistakes) = settings.diagnose(Needs::SERVE);
        let mut values = config.effective(matches, dotenv);
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
            print(&values);
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

fn print(values: &[Effective]) {
    let width = |text: fn(&Effective) -> usize| values.iter().map(text).max().unwrap_or(0);
    let (names, texts) = (width(|of| of.variable.len()), width(|of| text(of).chars().count()).min(48));
    for of in values {
        say!("{:<names$}  {:<texts$}  {}", of.variable, text(of), of.origin);
    }
}

fn text(of: &Effective) -> &str {
    match &of.value {
        Some(value) => value,
        None if of.origin == Origin::Default => "(not set)",
        None => "(cannot be used)",
    }
}
