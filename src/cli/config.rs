//! `config`: the configuration as it came out, and where each value came from.

use clap::{ArgMatches, Args};
use serde_json::{Map, Value, json};

use super::{Failure, resolve, say};
use crate::config::{Effective, Settings};

/// Print the configuration as it came out, without secrets, and where each value came from
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
        let config = resolve(settings)?;
        let values = config.effective(matches, dotenv);
        if self.json {
            let entry = |Effective { variable, value, origin }| {
                let what = json!({ "value": value, "origin": origin.to_string() });
                (String::from(variable), what)
            };
            say!("{:#}", Value::Object(values.into_iter().map(entry).collect::<Map<_, _>>()));
            return Ok(());
        }
        let width = |text: fn(&Effective) -> usize| values.iter().map(text).max().unwrap_or(0);
        let (names, texts) = (width(|of| of.variable.len()), width(|of| text(of).chars().count()).min(48));
        for of in &values {
            say!("{:<names$}  {:<texts$}  {}", of.variable, text(of), of.origin);
        }
        for warning in &config.warnings {
            say!("\nwarning: {warning}");
        }
        Ok(())
    }
}

fn text(of: &Effective) -> &str {
    of.value.as_deref().unwrap_or("(not set)")
}
