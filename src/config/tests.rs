use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Command;
use secrecy::ExposeSecret;

use super::*;
use crate::{
    entity::{self, ORGANIZATION, ORGANIZATION_MEMBERSHIP, USER, user},
    model::{Entity, Field},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A command line that ignores the environment of the tests.
fn command() -> Command {
    let command = Command::new("test").subcommand(Command::new("dev"));
    Settings::augment_args(command).mut_args(|argument| argument.env(None))
}

fn settings(given: &[(&str, &str)]) -> Settings {
    let arguments = given.iter().map(|(variable, value)| format!("{}={value}", mistake::flag(variable)));
    let matches = command().get_matches_from(std::iter::once("test".to_owned()).chain(arguments));
    Settings::from_arg_matches(&matches, Dotenv::default())
}

fn config(given: &[(&str, &str)]) -> Config {
    settings(given).resolve(Needs::default()).expect("valid")
}

fn mistakes(given: &[(&str, &str)], needs: Needs) -> String {
    settings(given).resolve(needs).expect_err("mistakes").to_string()
}

/// The only error of this variable.
fn mistake_of(variable: &str, value: &str) -> String {
    let mistakes = settings(&[(variable, value)]).resolve(Needs::default()).expect_err(value);
    assert_eq!(mistakes.iter().count(), 1, "{mistakes}");
    assert_eq!(mistakes.iter().next().expect("one").variable, variable);
    mistakes.to_string()
}

#[test]
fn nothing_given_means_the_documented_defaults() {
    let config = config(&[]);
    assert!(matches!(&config.database, Database::Sqlite { path } if path.as_os_str() == "clerk-sync.db"));
    assert_eq!(config.database_schema, "clerk");
    assert_eq!(config.database_max_connections, 8);
    assert_eq!(config.database_wait, Duration::from_secs(30));
    assert!(config.signing_secrets.is_empty());
    assert!(config.clerk_secret_key.is_none());
    assert_eq!(config.clerk_api_url.as_str(), "https://api.clerk.com/");
    assert_eq!(config.instance_id, None);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:8081");
    assert!(config.admin_token.is_none());
    assert!(config.metrics_token.is_none());
    let fields: Vec<&str> = config.sync_fields().of(&USER).map(Field::name).collect();
    assert_eq!(fields, ["email", "first_name", "last_name", "image_url"]);
    assert_eq!(config.deletion_policy, DeletionPolicy::Auto);
    assert_eq!(config.anonymize_columns, [""; 0]);
    assert_eq!(config.webhook_tolerance_seconds, 300);
    assert_eq!(config.webhook_max_body_bytes, 1_048_576);
    assert_eq!(config.webhook_allowed_ips, AllowedAddresses::Any);
    assert_eq!(config.trusted_proxies, []);
    assert_eq!(config.processed_retention, Duration::from_hours(30 * 24));
    assert_eq!(config.processing, Processing::Inline);
    assert_eq!(config.queue_max_attempts, 15);
    assert_eq!(config.dead_retention, Duration::from_hours(30 * 24));
    assert_eq!(config.shutdown_grace, Duration::from_secs(10));
    assert_eq!(config.log_format, None);
    assert_eq!(config.log_filter, "info");
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn the_example_file_lists_every_variable_once_with_its_default() {
    let example = include_str!("../../.env.example");
    let lines = example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let listed: Vec<(&str, &str)> = lines.filter(|(name, _)| !name.contains(' ')).collect();
    let mut names: Vec<&str> = listed.iter().map(|(name, _)| *name).collect();
    let mut variables = Settings::variables();
    names.sort_unstable();
    variables.sort_unstable();
    assert_eq!(names, variables);
    let documented = settings(&listed).resolve(Needs::default()).expect("valid");
    assert_eq!(format!("{documented:?}"), format!("{:?}", config(&[])));
}

#[test]
fn every_variable_is_a_flag_of_the_same_name() {
    let command = Settings::augment_args(Command::new("test"));
    for argument in command.get_arguments() {
        let variable = argument.get_env().expect("a variable").to_string_lossy();
        assert_eq!(format!("--{}", argument.get_long().expect("a flag")), mistake::flag(&variable));
        assert!(argument.is_hide_env_values_set() && argument.is_global_set(), "{variable}");
        assert!(argument.get_help().is_some() && argument.get_help_heading().is_some(), "{variable}");
    }
    command.debug_assert();
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_variables() {
    let report = mistakes(
        &[
            ("PORT", "65536"),
            ("DATABASE_URL", "mssql://root:hunter2@db/app"),
            ("SYNC_FIELDS", "email,Shoe_size,hat"),
            ("DELETION_POLICY", "never"),
            ("ADMIN_HOST", "0.0.0.0"),
            ("LOG_FORMAT", "xml"),
        ],
        Needs { signing_secret: true, ..Needs::default() },
    );
    let expected = [
        "the configuration cannot be used:",
        "  DATABASE_URL (--database-url): found a URL that begins with mssql://; allowed: postgres://…, postgresql://…, mysql://…, mariadb://…, mongodb://…, mongodb+srv://… and sqlite://…",
        "  CLERK_WEBHOOK_SIGNING_SECRET (--clerk-webhook-signing-secret): not set, but needed to tell genuine webhooks from forged ones; copy it from Clerk's Dashboard (Webhooks, your endpoint, Signing Secret), or name a file that holds it in CLERK_WEBHOOK_SIGNING_SECRET_FILE",
        "  PORT (--port): found \"65536\"; allowed: a whole number from 0 to 65535, where 0 picks a free port",
        "  ADMIN_HOST (--admin-host): found \"0.0.0.0\", which other machines can reach, and no ADMIN_TOKEN; allowed without a token: only loopback addresses such as 127.0.0.1",
        "  SYNC_FIELDS (--sync-fields): found \"Shoe_size\", \"hat\"; allowed: email, email_verified, first_name, last_name, image_url, username, phone_number, external_id, public_metadata, unsafe_metadata, private_metadata, banned, locked, last_sign_in_at, last_active_at",
        "  DELETION_POLICY (--deletion-policy): found \"never\"; allowed: one of auto, delete, anonymize",
        "  LOG_FORMAT (--log-format): found \"xml\"; allowed: pretty or json",
    ];
    assert_eq!(report, expected.join("\n"));
}

#[test]
fn an_empty_value_counts_as_not_set() {
    let names = Settings::variables();
    for blank in ["", " "] {
        let given: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), blank)).collect();
        assert_eq!(format!("{:?}", config(&given)), format!("{:?}", config(&[])));
    }
}

#[test]
fn no_secret_is_ever_shown() {
    let secrets = [
        ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy"),
        ("CLERK_SECRET_KEY", "sk_test_hunter2"),
        ("ADMIN_TOKEN", "hunter2"),
        ("METRICS_TOKEN", "hunter2"),
        ("DATABASE_URL", "postgres://app:hunter2@db/app"),
        ("SENTRY_DSN", "https://hunter2@sentry.example.com/42"),
    ];
    let shows = |text: &str| text.contains("hunter2") || text.contains("aHVudGVyMg");
    assert!(!shows(&format!("{:?}", settings(&secrets))));
    assert!(!shows(&format!("{:?}", config(&secrets))));

    for (variable, value) in [
        ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_hunter2!"),
        ("CLERK_WEBHOOK_SIGNING_SECRET", "sk_live_hunter2"),
        ("CLERK_WEBHOOK_SIGNING_SECRET_FILE", "hunter2"),
        ("CLERK_SECRET_KEY", "pk_test_hunter2"),
        ("CLERK_SECRET_KEY", "sk_test_hun ter2 hunter2"),
        ("ADMIN_TOKEN", "hunter2 hunter2"),
        ("METRICS_TOKEN", "hunter2 hunter2"),
        ("DATABASE_URL", "postgres://app:hunter2/hunter2@db/app"),
        // A secret in the wrong variable.
        ("HOST", "postgres://app:hunter2@db/app"),
        ("CLERK_API_URL", "https://user:hunter2@api.clerk.com"),
        ("SYNC_FIELDS", "whsec_hunter2"),
        ("RUST_LOG", "a=sk_live_hunter2"),
        ("SENTRY_ENVIRONMENT", "https://hunter2@sentry.example.com/42"),
    ] {
        let mistake = mistake_of(variable, value);
        assert!(!shows(&mistake), "{mistake}");
    }
}

#[test]
fn a_secret_may_stand_in_a_file_but_not_in_both_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let (token, url) = (file("token", "t0ken\n"), file("url", "postgres://db/app\r\n"));
    let dsn = file("dsn", "https://k3y@sentry.example.com/42\n");
    let (secret, key) = (file("secret", &format!("{SECRET}\n{SECRET}\n")), file("key", "sk_live_x\n"));
    let config = config(&[
        ("ADMIN_TOKEN_FILE", &token),
        ("METRICS_TOKEN_FILE", &token),
        ("DATABASE_URL_FILE", &url),
        ("CLERK_WEBHOOK_SIGNING_SECRET_FILE", &secret),
        ("CLERK_SECRET_KEY_FILE", &key),
        ("SENTRY_DSN_FILE", &dsn),
    ]);
    assert_eq!(config.admin_token.expect("a token").expose_secret(), "t0ken");
    assert_eq!(config.metrics_token.expect("a token").expose_secret(), "t0ken");
    assert_eq!(config.clerk_secret_key.expect("a key").expose_secret(), "sk_live_x");
    assert_eq!(config.signing_secrets.len(), 2);
    let sentry = config.sentry.expect("a place to report to");
    assert_eq!(sentry.dsn.expose_secret(), "https://k3y@sentry.example.com/42");
    let Database::Postgres { url } = config.database else { panic!("a file") };
    assert_eq!(url.expose_secret(), "postgres://db/app");

    let both = mistakes(&[("ADMIN_TOKEN", "x"), ("ADMIN_TOKEN_FILE", &token)], Needs::default());
    assert!(both.contains("ADMIN_TOKEN_FILE (--admin-token-file): ADMIN_TOKEN is set too"), "{both}");
    let missing = mistake_of("ADMIN_TOKEN_FILE", "/nowhere/token");
    assert!(missing.contains("the file \"/nowhere/token\" cannot be read: no such file"), "{missing}");
    assert!(mistake_of("ADMIN_TOKEN_FILE", &file("empty", "\n")).contains("is empty"));
}

#[test]
fn several_signing_secrets_are_separated_by_commas_or_spaces() {
    let given = format!("{SECRET},{SECRET} {SECRET}\n{SECRET},");
    assert_eq!(config(&[("CLERK_WEBHOOK_SIGNING_SECRET", &given)]).signing_secrets.len(), 4);
    assert!(mistake_of("CLERK_WEBHOOK_SIGNING_SECRET", "my-secret").contains("does not begin with `whsec_`"));
    let second = mistake_of("CLERK_WEBHOOK_SIGNING_SECRET", &format!("{SECRET}, whsec_?"));
    assert!(second.contains("secret 2 of 2 cannot be used"), "{second}");
    assert_eq!(
        mistakes(
            &[("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_")],
            Needs { signing_secret: true, ..Needs::default() }
        )
        .lines()
        .count(),
        2
    );
}

#[test]
fn what_cannot_be_the_signing_secret_is_refused_and_not_shown() {
    let encoded = STANDARD.encode(SECRET);
    for (given, why) in [
        (encoded.clone(), "secret 1 of 1 cannot be used: it is a secret that was base64-encoded twice"),
        (
            format!("{SECRET},{encoded}"),
            "secret 2 of 2 cannot be used: it is a secret that was base64-encoded",
        ),
        (format!("\"{SECRET}\""), "it is in quotes"),
        (format!("{SECRET} '{SECRET}'"), "secret 2 of 2 cannot be used: it is in quotes"),
        ("sk_test_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "it is an API key"),
        ("https://dashboard.clerk.com/MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "it is an address"),
        ("whsec_AAAB".to_owned(), "it has fewer than 16 bytes"),
    ] {
        let mistake = mistake_of("CLERK_WEBHOOK_SIGNING_SECRET", &given);
        assert!(mistake.contains(why), "{mistake}");
        let hidden = [&SECRET[6..], &encoded, "AAAB"];
        assert!(hidden.iter().all(|secret| !mistake.contains(secret)), "{mistake}");
        assert_eq!(mistake.lines().count(), 2, "{mistake}");
    }
    // The shortest secret that Svix has published, without its padding, and without the prefix.
    for short in ["whsec_plJ3nmyCDGBKInavdOK15jsl", "plJ3nmyCDGBKInavdOK15jsl"] {
        assert_eq!(config(&[("CLERK_WEBHOOK_SIGNING_SECRET", short)]).signing_secrets.len(), 1);
    }
}

#[test]
fn no_secret_may_stand_in_quotes() {
    let folder = tempfile::tempdir().expect("a folder");
    for (variable, value) in [
        ("ADMIN_TOKEN", "\"hunter2\""),
        ("ADMIN_TOKEN", "'hunter2'"),
        ("METRICS_TOKEN", "\"hunter2\""),
        ("CLERK_SECRET_KEY", "\"sk_test_hunter2\""),
        ("DATABASE_URL", "\"postgres://app:hunter2@db/app\""),
    ] {
        let mistake = mistake_of(variable, value);
        assert!(mistake.contains("it is in quotes, which would be part of it"), "{mistake}");
        assert!(!mistake.contains("hunter2"), "{mistake}");
        let file = folder.path().join("secret");
        std::fs::write(&file, format!("{value}\n")).expect("a file");
        let file = file.display().to_string();
        let mistake = mistakes(&[(&format!("{variable}_FILE"), &file)], Needs::default());
        assert!(mistake.contains("it is in quotes") && !mistake.contains("hunter2"), "{mistake}");
    }
    // A quote inside a value is allowed.
    assert!(config(&[("ADMIN_TOKEN", "it's")]).admin_token.is_some());
}

#[test]
fn what_cannot_be_the_id_of_an_instance_is_refused() {
    for wrong in [
        "https://dashboard.clerk.com/apps/app_2abc/instances/ins_2abc",
        "app_2abc",
        "\"ins_2abc\"",
        "ins_",
        "2abc",
        "example.com",
        "ins_2abc ins_2abd",
        "sk_test_abc",
    ] {
        let mistake = mistake_of("CLERK_INSTANCE_ID", wrong);
        assert!(mistake.contains("allowed: an id as Clerk writes it, such as ins_2abc"), "{mistake}");
        assert!(!mistake.contains("sk_test_abc"), "{mistake}");
    }
    for right in ["ins_2abcDEF", "ins_sample", "any"] {
        assert_eq!(config(&[("CLERK_INSTANCE_ID", right)]).instance_id.as_deref(), Some(right));
    }
}

#[test]
fn a_prisma_url_caps_connections_and_its_schema_does_not_decide() {
    let url = "postgresql://app@db/app?schema=public&connection_limit=3";
    let capped = config(&[("DATABASE_URL", url)]);
    assert_eq!(capped.database_max_connections, 3);
    assert_eq!(
        capped.warnings,
        ["DATABASE_URL: the parameter schema is ignored; the schema comes from DATABASE_SCHEMA and is clerk"]
    );
    let explicit =
        config(&[("DATABASE_URL", url), ("DATABASE_MAX_CONNECTIONS", "20"), ("DATABASE_SCHEMA", "public")]);
    assert_eq!(explicit.database_max_connections, 20);
    assert_eq!(explicit.warnings, [""; 0]);
    let generous = config(&[("DATABASE_URL", "postgresql://app@db/app?connection_limit=50")]);
    assert_eq!(generous.database_max_connections, 8);
}

#[test]
fn mysql_has_no_schemas() {
    let url = ("DATABASE_URL", "mysql://app@db/app");
    assert_eq!(config(&[url]).warnings, [""; 0]);
    let warnings = config(&[url, ("DATABASE_SCHEMA", "shop")]).warnings;
    assert!(warnings.len() == 1 && warnings[0].starts_with("DATABASE_SCHEMA: ignored"), "{warnings:?}");
}

#[test]
fn mongodb_has_prefixes_and_no_schemas() {
    let url = ("DATABASE_URL", "mongodb://app@a,b/app?replicaSet=rs0&maxPoolSize=3");
    let prefixed = config(&[url, ("TABLE_PREFIX", "clerk_")]);
    assert_eq!((prefixed.table_prefix.as_str(), prefixed.database_max_connections), ("clerk_", 3));
    assert_eq!(prefixed.warnings, [""; 0]);
    let warnings = config(&[url, ("DATABASE_SCHEMA", "shop")]).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("MongoDB has no schemas"), "{warnings:?}");
}

#[test]
fn the_images_own_database_comes_with_a_warning() {
    let warnings = config(&[("DATABASE_URL", "sqlite:///data/clerk-sync.db")]).warnings;
    assert!(warnings[0].contains("volume"), "{warnings:?}");
}

#[test]
fn names_that_postgres_would_cut_or_refuse_are_refused() {
    let long = "x".repeat(64);
    for name in ["pg_users", "a\"b", "a'b", "a\0b", long.as_str()] {
        mistake_of("DATABASE_SCHEMA", name);
    }
    assert_eq!(config(&[("DATABASE_SCHEMA", "Läufer")]).database_schema, "Läufer");
    let columns = config(&[("ANONYMIZE_COLUMNS", "nickname, birth_date,,nickname")]).anonymize_columns;
    assert_eq!(columns, ["nickname", "birth_date"]);
    for own in ["clerk_id", "email", "id"] {
        assert!(mistake_of("ANONYMIZE_COLUMNS", own).contains("clerk-sync's own"));
    }
}

#[test]
fn numbers_have_sane_bounds() {
    for (variable, good, bad) in [
        ("DATABASE_MAX_CONNECTIONS", "1", "0"),
        ("DATABASE_WAIT_SECONDS", "0", "-1"),
        ("PORT", "0", "http"),
        ("WEBHOOK_TOLERANCE_SECONDS", "86400", "86401"),
        ("WEBHOOK_MAX_BODY_BYTES", "1024", "1MB"),
        ("PROCESSED_RETENTION_DAYS", "3650", "0"),
        ("QUEUE_MAX_ATTEMPTS", "1", "0"),
        ("DEAD_RETENTION_DAYS", "1", "3651"),
        ("SHUTDOWN_GRACE_SECONDS", "0", "1.5"),
    ] {
        config(&[(variable, good)]);
        mistake_of(variable, bad);
    }
}

#[test]
fn the_private_listener_needs_a_token_beyond_loopback() {
    for host in ["127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1"] {
        config(&[("ADMIN_HOST", host)]);
    }
    for host in ["0.0.0.0", "::", "10.0.0.1"] {
        mistake_of("ADMIN_HOST", host);
        config(&[("ADMIN_HOST", host), ("ADMIN_TOKEN", "t0ken")]);
    }
    mistake_of("ADMIN_HOST", "example.com");
    assert!(mistake_of("ADMIN_PORT", "8080").contains("also PORT"));
    config(&[("PORT", "0"), ("ADMIN_PORT", "0")]);
}

#[test]
fn addresses_are_networks_or_svix() {
    assert_eq!(config(&[("WEBHOOK_ALLOWED_IPS", "svix")]).webhook_allowed_ips, AllowedAddresses::Svix);
    let config =
        config(&[("WEBHOOK_ALLOWED_IPS", "203.0.113.7, 2001:db8::/32"), ("TRUSTED_PROXIES", "10.1.2.3/8")]);
    let network = |text: &str| text.parse::<IpNet>().expect("a network");
    assert_eq!(
        config.webhook_allowed_ips,
        AllowedAddresses::Networks(vec![network("203.0.113.7/32"), network("2001:db8::/32")])
    );
    assert_eq!(config.trusted_proxies, [network("10.0.0.0/8")]);
    for wrong in ["svix,10.0.0.0/8", "10.0.0.0/33", "example.com", ","] {
        mistake_of("WEBHOOK_ALLOWED_IPS", wrong);
    }
    mistake_of("TRUSTED_PROXIES", "svix");
}

#[test]
fn only_fields_of_the_list_can_be_synced() {
    let fields = config(&[("SYNC_FIELDS", "banned, email,,email,")]).sync_fields();
    assert_eq!(fields.of(&USER).collect::<Vec<_>>(), [user::EMAIL, USER.field("banned")]);
    mistake_of("SYNC_FIELDS", ",");
}

#[test]
fn kinds_are_chosen_by_name_and_each_has_a_list_of_its_own() {
    let kinds = |given: &[(&str, &str)]| {
        let config = config(given);
        (config.selection.entities().map(|entity| entity.kind).collect::<Vec<_>>(), config)
    };
    assert_eq!(kinds(&[]).0, ["user"]);
    let (all, config) = kinds(&[("SYNC_ENTITIES", "all"), ("SYNC_FIELDS_ORGANIZATION", "slug")]);
    let everything: Vec<&str> = entity::ALL.iter().map(|entity| entity.kind).collect();
    assert_eq!(all, everything.into_iter().filter(|kind| *kind != "session").collect::<Vec<_>>());
    assert_eq!(config.warnings, [""; 0]);
    let names = |entity: &'static Entity| {
        config.selection.fields(entity).of(entity).map(Field::name).collect::<Vec<_>>()
    };
    assert_eq!(names(&ORGANIZATION), ["slug"]);
    assert_eq!(
        names(&ORGANIZATION_MEMBERSHIP),
        ["organization_id", "user_id", "role", "role_name", "permissions"]
    );
    let (two, config) = kinds(&[("SYNC_ENTITIES", "organization_membership, user")]);
    assert_eq!(two, ["user", "organization_membership"], "in a fixed order");
    assert!(
        config.warnings[0].contains("organization_membership but not organization"),
        "{:?}",
        config.warnings
    );
    for mistaken in ["users", "user,hat", ","] {
        mistake_of("SYNC_ENTITIES", mistaken);
    }
    mistake_of("SYNC_FIELDS_ORGANIZATION", "name,shoe_size");
}

#[test]
fn what_goes_to_clerk_is_checked() {
    assert_eq!(
        config(&[("CLERK_API_URL", "http://127.0.0.1:9")]).clerk_api_url.as_str(),
        "http://127.0.0.1:9/"
    );
    for (url, warned) in [
        ("http://127.0.0.1:9", false),
        ("http://[::1]:9", false),
        ("http://localhost", false),
        ("https://clerk.example", false),
        ("http://clerk.example", true),
    ] {
        let warnings = config(&[("CLERK_API_URL", url)]).warnings;
        assert_eq!(warnings.iter().any(|warning| warning.contains("over http")), warned, "{url}");
    }
    for url in ["api.clerk.com", "ftp://api.clerk.com", "https://api.clerk.com?x=1"] {
        mistake_of("CLERK_API_URL", url);
    }
    assert!(config(&[("CLERK_SECRET_KEY", "sk_live_abc")]).clerk_secret_key.is_some());
    mistake_of("CLERK_SECRET_KEY", "sk_live_");
    mistake_of("CLERK_INSTANCE_ID", "ins a");
}

#[test]
fn a_log_filter_that_cannot_be_understood_is_refused() {
    assert_eq!(config(&[("RUST_LOG", "warn,clerk_sync=debug")]).log_filter, "warn,clerk_sync=debug");
    mistake_of("RUST_LOG", "clerk_sync=loud");
    assert_eq!(config(&[("LOG_FORMAT", "json")]).log_format, Some(LogFormat::Json));
}

#[test]
fn only_the_command_line_names_the_database_of_dev() {
    let database = |arguments: &[&str]| {
        // A value that is not from the command line, as if the variable were set.
        let command =
            command().mut_arg("database_url", |argument| argument.default_value("postgres://production/app"));
        let matches = command.get_matches_from(arguments);
        assert_eq!(matches.subcommand_name(), Some("dev"));
        let mut settings = Settings::from_arg_matches(&matches, Dotenv::default());
        assert!(settings.get("DATABASE_URL").is_some());
        let ignored = settings.ignore_database_of_environment();
        let left = settings.get("DATABASE_URL").map(str::to_owned);
        assert_eq!(ignored.is_empty(), left.is_some(), "{ignored:?}");
        left
    };
    let given = Some("sqlite:x.db".to_owned());
    assert_eq!(database(&["test", "dev"]), None);
    assert_eq!(database(&["test", "dev", "--database-url", "sqlite:x.db"]), given);
    assert_eq!(database(&["test", "--database-url", "sqlite:x.db", "dev"]), given);
}

#[test]
fn a_length_of_time_is_written_as_the_documents_write_it() {
    let shown = |given: &[(&str, &str)]| {
        let Diagnosis { effective, .. } = settings(given).diagnose(Needs::default());
        let mut effective = effective.into_iter();
        effective.find(|one| one.variable == "CATCH_UP_AFTER").expect("a variable").value.expect("a value")
    };
    assert_eq!(shown(&[]), "24h");
    for text in ["24h", "7d", "90s", "15m", "36h", "1h", "365d", "off", "1s 500ms"] {
        assert_eq!(shown(&[("CATCH_UP_AFTER", text)]), text);
    }
}

#[test]
fn webhooks_are_processed_inline_or_from_the_queue() {
    for processing in Processing::ALL {
        assert_eq!(config(&[("PROCESSING", processing.name())]).processing, processing);
    }
    assert!(mistake_of("PROCESSING", "later").contains("inline or queue"));
}

#[test]
fn errors_are_reported_only_to_something_that_is_a_dsn() {
    const DSN: &str = "https://k3y@o1.ingest.sentry.io/42";
    assert!(config(&[("SENTRY_ENVIRONMENT", "production")]).sentry.is_none());
    let given = [("SENTRY_DSN", DSN), ("SENTRY_ENVIRONMENT", "production"), ("SENTRY_RELEASE", "users@1.2")];
    let sentry = config(&given).sentry.expect("a place to report to");
    assert_eq!(sentry.dsn.expose_secret(), DSN);
    assert_eq!(
        (sentry.environment.as_deref(), sentry.release.as_deref()),
        (Some("production"), Some("users@1.2"))
    );
    for wrong in [
        "k3y",
        "https://sentry.io/42",
        "https://k3y@sentry.io",
        "https://k3y@sentry.io/",
        "ftp://k3y@sentry.io/42",
    ] {
        assert!(!mistake_of("SENTRY_DSN", wrong).contains("k3y"), "{wrong}");
    }
    for wrong in ["a/b", "two words", &"x".repeat(65)] {
        mistake_of("SENTRY_ENVIRONMENT", wrong);
    }
}
