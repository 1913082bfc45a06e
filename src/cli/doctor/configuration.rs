//! The settings: every variable, the format of secrets, and the listen addresses.

use super::report::Finding;
use crate::{
    cli::{Failure, count},
    config::{Config, Mistake, apart},
};

/// The usable part of the configuration, and the mistakes in the rest.
pub(super) struct Given {
    pub(super) config: Config,
    pub(super) mistakes: Vec<Mistake>,
}

const CONFIGURATION: &str = "configuration";
const SECRETS: &str = "secrets";
const LISTENERS: &str = "listeners";

impl Given {
    /// Whether the configuration holds only a placeholder for this variable.
    pub(super) fn is_mistaken(&self, variable: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.is_about(variable))
    }
}

/// The check that a mistake belongs to.
fn check_of(mistake: &Mistake) -> &'static str {
    let variable = mistake.variable.as_str();
    let is_secret = ["CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_SECRET_KEY", "ADMIN_TOKEN"]
        .iter()
        .any(|secret| variable.starts_with(secret));
    let of_sink = ["signing_secret", "write_key", "regulations_token", "api_key"];
    let is_secret_of_sink = variable.rsplit_once(", ").is_some_and(|(place, key)| {
        place.contains(", sink ") && of_sink.iter().any(|secret| key.starts_with(secret))
    });
    if is_secret || is_secret_of_sink {
        SECRETS
    } else if ["HOST", "PORT", "ADMIN_HOST", "ADMIN_PORT"].contains(&variable) {
        LISTENERS
    } else {
        CONFIGURATION
    }
}

pub(super) fn check(given: &Given) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in [CONFIGURATION, SECRETS, LISTENERS] {
        let mistakes: Vec<&Mistake> =
            given.mistakes.iter().filter(|mistake| check_of(mistake) == check).collect();
        if mistakes.is_empty() {
            findings.push(Finding::ok(check, praise(check, given)));
        }
        for mistake in mistakes {
            let (found, remedy) = mistake.parts();
            let remedy = match remedy {
                _ if is_open_door(given, mistake) => {
                    "set ADMIN_TOKEN, for example to the output of `openssl rand -hex 32`, or ADMIN_HOST=127.0.0.1"
                        .to_owned()
                }
                Some(remedy) => remedy,
                None => format!("correct {}, or leave it out", mistake.variable),
            };
            findings.push(Finding::fail(check, Failure::CONFIGURATION, found, remedy));
        }
        for warning in given.config.warnings.iter().filter(|warning| check_of_warning(warning) == check) {
            let (found, remedy) = of_warning(warning);
            findings.push(Finding::warn(check, found, remedy));
        }
    }
    findings
}

fn check_of_warning(warning: &str) -> &'static str {
    let variable = warning.split(':').next().unwrap_or_default();
    check_of(&Mistake { variable: variable.to_owned(), explanation: String::new() })
}

/// The text of a warning, and its remedy.
fn of_warning(warning: &str) -> (String, String) {
    let (found, rest) = apart(warning);
    let says_what_to_do =
        |rest: &String| ["use ", "set ", "did you mean "].iter().any(|words| rest.starts_with(words));
    if let Some(remedy) = rest.filter(says_what_to_do) {
        return (found, remedy);
    }
    let variable = warning.split(':').next().unwrap_or_default();
    let remedy = match variable {
        _ if warning.contains(" is ignored") => format!("remove it from {variable}"),
        "CLERK_WEBHOOK_SIGNING_SECRET" => {
            "use a secret that Clerk generated, from its Dashboard (Webhooks, your endpoint, Signing Secret)"
                .to_owned()
        }
        _ => format!("correct {variable}"),
    };
    (warning.to_owned(), remedy)
}

/// Whether others can reach the private listener without a token.
fn is_open_door(given: &Given, mistake: &Mistake) -> bool {
    mistake.variable == "ADMIN_HOST"
        && !given.is_mistaken("ADMIN_TOKEN")
        && given.config.admin_token.is_none()
        && !given.config.admin_listen.ip().to_canonical().is_loopback()
}

/// The text for a check without a mistake.
fn praise(check: &str, given: &Given) -> String {
    let config = &given.config;
    match check {
        SECRETS => "every secret that is set is well formed".to_owned(),
        LISTENERS => {
            let token = if config.admin_token.is_some() { "" } else { ", no token" };
            format!("webhooks at {}, private at {}{token}", config.listen, config.admin_listen)
        }
        _ => {
            // Mistakes in other checks are reported there.
            let variables = if given.mistakes.is_empty() { "every variable" } else { "every other variable" };
            match config.sinks.len() {
                0 => format!("{variables} is valid"),
                sinks => format!("{variables} is valid, including {}", count(sinks as u64, "sink", "sinks")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_told_whole_unless_it_says_itself_what_to_do() {
        let (found, remedy) = of_warning("CLERK_API_URL: it goes over http; use https");
        assert_eq!((found.as_str(), remedy.as_str()), ("CLERK_API_URL: it goes over http", "use https"));
        let weak = "CLERK_WEBHOOK_SIGNING_SECRET: secret 1 of 1 can be guessed; Clerk's have 24";
        let (found, remedy) = of_warning(weak);
        assert!(found == weak && remedy.contains("Dashboard"), "{found} {remedy}");
        let (_, remedy) = of_warning("DATABASE_URL: the parameter sslaccept is ignored");
        assert_eq!(remedy, "remove it from DATABASE_URL");
    }
}
