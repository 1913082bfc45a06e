//! Warns about misspelt variables, which would otherwise go unnoticed.
//!
//! The application often shares the `.env` file, and many programs share the environment. So clerk-sync warns only about
//! a name that is close to one of its own, and only while that one is not set. Otherwise the other name belongs to
//! another program. Names that begin with `SYNC_` are always meant for clerk-sync, so they always cause a warning.

use std::cmp::Reverse;

use super::{Settings, dotenv::Dotenv};

/// Many programs use such a prefix for their variables.
const PREFIX: &str = "CLERK_SYNC_";

/// The prefix that only clerk-sync's variables have.
const OWN_PREFIX: &str = "SYNC_";

/// Variables that Kubernetes sets for a service named `sync`.
const OF_KUBERNETES: [&str; 2] = ["SYNC_SERVICE_", "SYNC_PORT"];

/// Other names of the endpoint's signing secret, for example in tutorials.
const SIGNING_SECRETS: [&str; 5] = [
    "CLERK_WEBHOOK_SECRET",
    "WEBHOOK_SECRET",
    "SIGNING_SECRET",
    "CLERK_SIGNING_SECRET",
    "WEBHOOK_SIGNING_SECRET",
];

/// Names of other programs that look like a misspelling of one of clerk-sync's names.
const THEIRS: [&str; 3] = ["CLERK_FAPI_URL", "CLERK_BAPI_URL", "DATABASE_MIN_CONNECTIONS"];

/// The warnings about names in the file and in the environment.
pub(super) fn warnings(dotenv: &Dotenv) -> Vec<String> {
    let ours = Settings::variables();
    let mut warnings = Vec::new();
    let of_file = dotenv.names.iter().map(|name| (true, name));
    let of_environment = dotenv.environment.iter().map(|name| (false, name));
    let is_known = |name: &String| ours.contains(name) || THEIRS.contains(&name.as_str());
    for (in_file, name) in of_file.chain(of_environment).filter(|(_, name)| !is_known(name)) {
        // Kubernetes sets such names in the environment, for a service named `clerk-sync`.
        let unprefixed = name.strip_prefix(PREFIX).filter(|_| in_file);
        let is_ours = name.starts_with(OWN_PREFIX)
            && (in_file || !OF_KUBERNETES.iter().any(|theirs| name.starts_with(theirs)));
        let meant = meant(unprefixed.unwrap_or(name), in_file, &ours)
            .filter(|meant| {
                unprefixed.is_some() || !dotenv.has(meant) && !dotenv.has(&format!("{meant}_FILE"))
            })
            .or_else(|| if is_ours { nearest(name, &ours) } else { None });
        if meant.is_none() && !is_ours {
            continue;
        }
        let place = if in_file { ".env" } else { "the environment" };
        let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        let warning = format!("{name}: {place} sets it, and clerk-sync has no such variable{hint}");
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

/// A name under which the signing secret may have been set by mistake.
pub(super) fn signing_secret(dotenv: &Dotenv) -> Option<&'static str> {
    SIGNING_SECRETS.into_iter().find(|name| dotenv.has(name))
}

/// The closest of clerk-sync's names, if any is close enough.
fn meant<'a>(name: &str, in_file: bool, ours: &'a [String]) -> Option<&'a str> {
    // How many letters may differ. A short name with one other letter probably belongs to another program.
    let tolerance = match (in_file, name.len()) {
        (_, 16..) => 2,
        (true, 6..) | (false, 8..) => 1,
        // Only the case may differ.
        (true, _) => 0,
        (false, _) => return None,
    };
    let name = name.to_ascii_uppercase();
    let distances = ours.iter().map(|ours| (strsim::osa_distance(&name, ours), ours));
    let (_, closest) = distances.filter(|(distance, _)| *distance <= tolerance).min()?;
    Some(closest)
}

/// The `SYNC_` variable that differs by only a few letters. Otherwise the one that shares the most words with this name and has
/// the fewest others.
fn nearest<'a>(name: &str, ours: &'a [String]) -> Option<&'a str> {
    let rate = |ours: &'a String| {
        let is_one_of_ours = |word: &&str| {
            !word.is_empty() && ours.split('_').any(|own| own.starts_with(*word) || word.starts_with(own))
        };
        let in_common = name.split('_').filter(is_one_of_ours).count();
        let others = ours.split('_').count().saturating_sub(in_common);
        let distance = strsim::osa_distance(name, ours);
        (distance > 2, Reverse(in_common.saturating_sub(others)), Reverse(in_common), distance, ours)
    };
    let candidates = ours.iter().filter(|ours| ours.starts_with(OWN_PREFIX));
    let (.., Reverse(words), distance, nearest) = candidates.map(rate).min()?;
    (words > 1 || distance <= 3).then_some(nearest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(file: &[&str], environment: &[&str]) -> Vec<String> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        warnings(&Dotenv { names: names(file), environment: names(environment), ..Dotenv::default() })
    }

    #[test]
    fn a_misspelt_name_is_told_with_the_one_that_is_meant() {
        for (name, meant) in [
            ("DATABSE_URL", "DATABASE_URL"),
            ("DATABASE_ULR", "DATABASE_URL"),
            ("SYNC_FIELD", "SYNC_FIELDS"),
            ("CLERK_WEBHOOK_SIGNIN_SECRETS", "CLERK_WEBHOOK_SIGNING_SECRET"),
            ("ADMIN_TOKEN_FILES", "ADMIN_TOKEN_FILE"),
            ("CLERK_SYNC_PORT", "PORT"),
            ("CLERK_SYNC_DATABSE_URL", "DATABASE_URL"),
            ("port", "PORT"),
            ("database_url", "DATABASE_URL"),
        ] {
            let expected =
                format!("{name}: .env sets it, and clerk-sync has no such variable; did you mean {meant}?");
            assert_eq!(told(&[name, name], &[]), [expected]);
        }
        let in_environment = told(&[], &["DATABSE_URL", "CLERK_WEBHOOK_SIGNIN_SECRETS"]);
        assert!(in_environment.iter().all(|warning| warning.contains("the environment sets it")));
        assert_eq!(in_environment.len(), 2, "{in_environment:?}");
    }

    #[test]
    fn what_begins_with_sync_is_told_in_any_case() {
        for (name, meant) in [
            ("SYNC_FIELDS_USER", Some("SYNC_FIELDS")),
            ("SYNC_ENTITY", Some("SYNC_ENTITIES")),
            ("SYNC_ENTITES", Some("SYNC_ENTITIES")),
            ("SYNC_FIELDS_ORG", Some("SYNC_FIELDS_ORGANIZATION")),
            ("SYNC_FIELDS_ORGANISATION", Some("SYNC_FIELDS_ORGANIZATION")),
            ("SYNC_FIELDS_MEMBERSHIP", Some("SYNC_FIELDS_ORGANIZATION_MEMBERSHIP")),
            ("SYNC_FIELDS_MEMBERSHIPS", Some("SYNC_FIELDS_ORGANIZATION_MEMBERSHIP")),
            ("SYNC_INTERVAL", None),
        ] {
            let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            let expected =
                format!("{name}: the environment sets it, and clerk-sync has no such variable{hint}");
            let [warning] = &told(&["SYNC_FIELDS", "SYNC_ENTITIES"], &[name])[..] else { panic!("{name}") };
            assert_eq!(*warning, expected);
        }
        let of_kubernetes = ["SYNC_SERVICE_HOST", "SYNC_PORT", "SYNC_PORT_8080_TCP_ADDR"];
        assert_eq!(told(&[], &of_kubernetes), [""; 0]);
    }

    #[test]
    fn what_is_somebody_elses_is_not_mentioned() {
        let theirs = [
            "CLERK_WEBHOOK_SECRET",
            "WEBHOOK_SECRET",
            "NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY",
            "CLERK_PUBLISHABLE_KEY",
            "CLERK_API_KEY",
            "TEST_DATABASE_URL",
            "DIRECT_URL",
            "REDIS_URL",
            "HOSTS",
            "POST",
            "SORT",
            "ADMIN_EMAIL",
            "ADMIN_ROOT",
            "LOG_LEVEL",
            "SENTRY_ORG",
            "SENTRY_AUTH_TOKEN",
            "RUSTFLAGS",
            "CRM_SECRET",
            "CLERK_SYNC_CRM_SECRET",
            "CLERK_FAPI_URL",
            "DATABASE_MIN_CONNECTIONS",
            "DATABASE_SSL",
            "DATABASE_URL_2",
            "DATABASE_URL_UNPOOLED",
        ];
        assert_eq!(told(&theirs, &theirs), [""; 0]);
        // Kubernetes sets the first two for a service named `clerk-sync`; shells set the others.
        let of_environment = ["CLERK_SYNC_PORT", "CLERK_SYNC_SERVICE_HOST", "HOSTNAME", "host", "GHOST"];
        assert_eq!(told(&[], &of_environment), [""; 0]);
    }

    #[test]
    fn next_to_the_one_that_is_meant_another_name_is_no_mistake() {
        assert_eq!(told(&["DATABASE_URI", "DATABASE_URL"], &[]), [""; 0]);
        assert_eq!(told(&["DATABASE_URI"], &["DATABASE_URL_FILE"]), [""; 0]);
        assert_eq!(told(&["DATABASE_URI"], &[]).len(), 1);
    }

    #[test]
    fn letters_that_are_swapped_are_one_mistake() {
        assert_eq!(told(&["DATABASE_ULR", "METRCIS_TOKEN"], &[]).len(), 2);
        assert_eq!(told(&["DATABASE_LRU"], &[]), [""; 0], "two mistakes");
    }
}
