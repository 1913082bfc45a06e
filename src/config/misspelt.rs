//! Names that are none of ours and look like one: a typing error that would otherwise go unnoticed.
//!
//! A `.env` is often shared with the application, and an environment with everybody, so only what is close to a name of
//! ours is told, and only as long as that one is not set as well: then the other one is somebody else's.

use super::{Settings, dotenv::Dotenv};

/// Programs often want this before their names.
const PREFIX: &str = "CLERK_SYNC_";

/// What the endpoint's signing secret is called in tutorials and elsewhere.
const SIGNING_SECRETS: [&str; 5] = [
    "CLERK_WEBHOOK_SECRET",
    "WEBHOOK_SECRET",
    "SIGNING_SECRET",
    "CLERK_SIGNING_SECRET",
    "WEBHOOK_SIGNING_SECRET",
];

/// Names of others that are as close to one of ours as an error.
const THEIRS: [&str; 3] = ["CLERK_FAPI_URL", "CLERK_BAPI_URL", "DATABASE_MIN_CONNECTIONS"];

/// Where a name was found, which says how close to one of ours it has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    File,
    Environment,
}

impl Place {
    /// How many letters may be wrong: in a short name any other letter makes somebody else's.
    fn tolerance(self, name: &str) -> Option<usize> {
        match (self, name.len()) {
            (_, 16..) => Some(2),
            (Self::File, 6..) | (Self::Environment, 8..) => Some(1),
            // Only whether it is written in other letters.
            (Self::File, _) => Some(0),
            (Self::Environment, _) => None,
        }
    }
}

/// What to tell of names in the file and in the environment.
pub(super) fn warnings(dotenv: &Dotenv) -> Vec<String> {
    let ours = Settings::variables();
    let mut warnings = Vec::new();
    let of_file = dotenv.names.iter().map(|name| (Place::File, name));
    let of_environment = dotenv.environment.iter().map(|name| (Place::Environment, name));
    let is_known = |name: &String| ours.contains(name) || THEIRS.contains(&name.as_str());
    for (place, name) in of_file.chain(of_environment).filter(|(_, name)| !is_known(name)) {
        // In the environment Kubernetes sets such names, of a service that is called so.
        let unprefixed = name.strip_prefix(PREFIX).filter(|_| place == Place::File);
        let Some(meant) = meant(unprefixed.unwrap_or(name), place, &ours) else { continue };
        if unprefixed.is_none() && is_set(meant, dotenv) {
            continue;
        }
        let who = if place == Place::File { ".env" } else { "the environment" };
        let warning =
            format!("{name}: {who} sets it, and clerk-sync has no such variable; did you mean {meant}?");
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

/// Directly, or as a file.
fn is_set(variable: &str, dotenv: &Dotenv) -> bool {
    dotenv.has(variable) || dotenv.has(&format!("{variable}_FILE"))
}

/// The closest of ours, if any is close enough.
fn meant<'a>(name: &str, place: Place, ours: &'a [String]) -> Option<&'a str> {
    let name = name.to_ascii_uppercase();
    let tolerance = place.tolerance(&name)?;
    let near = ours.iter().filter(|ours| ours.len().abs_diff(name.len()) <= tolerance);
    let (distance, closest) = near.map(|ours| (distance(&name, ours), ours)).min()?;
    (distance <= tolerance).then_some(closest)
}

/// How many letters are wrong, missing, too many, or swapped with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    // Of every beginning of one to every beginning of the other.
    let mut table = vec![vec![0; other.len() + 1]; one.len() + 1];
    for row in 0..=one.len() {
        for column in 0..=other.len() {
            if row == 0 || column == 0 {
                table[row][column] = row + column;
                continue;
            }
            let (left, right) = (one[row - 1], other[column - 1]);
            let mut least = table[row - 1][column - 1] + usize::from(left != right);
            least = least.min(table[row - 1][column] + 1).min(table[row][column - 1] + 1);
            if row > 1 && column > 1 && left == other[column - 2] && right == one[row - 2] {
                least = least.min(table[row - 2][column - 2] + 1);
            }
            table[row][column] = least;
        }
    }
    table[one.len()][other.len()]
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
        // Kubernetes sets these of a service that is called so; shells set the others.
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
        for (one, other, apart) in
            [("", "ab", 2), ("ab", "ba", 1), ("kitten", "sitting", 3), ("PORT", "PORT", 0)]
        {
            assert_eq!((distance(one, other), distance(other, one)), (apart, apart), "{one} {other}");
        }
    }
}
