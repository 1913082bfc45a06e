//! `dev`: everything on one machine with no set-up, and a scenario of sample events.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use fake_clerk::{Behaviour, Fake, Options};
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::{sync::watch, time::Instant};

use super::{
    Failure,
    backfill::{nouns, objects},
    catching_up, clock,
    post::Poster,
    random_id, rules, say,
    service::{Role, Service, init_log, wait_for_store},
    sinks::destinations,
    terminal::{has_colours, print_styled},
};
use crate::{
    clerk::{sample, signature::Secret},
    config::{Config, Database, Needs, Settings},
    entity::USER,
    http::row_as_json,
    model::{ClerkId, Field},
    store::{History, Store},
    sync::{
        Limits,
        backfill::{Done, Progress, Wanted, backfill},
        catch_up::{CatchUp, Instance},
    },
    telemetry::LogFormat,
};

/// What is logged unless `RUST_LOG` says otherwise: not the migrations and the seals of the audit trail, so that the first lines
/// are the commands to try, and then the events.
const LOG: &str = "info,clerk_sync::cli::migrate=warn,clerk_sync::work::sealing=warn";

/// A signature that matches no secret.
const FORGED: &str = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The creation time of the fake's users, fixed so that they are the same in every run: 2026, in Unix seconds.
const FAKE_BEGAN: i64 = 1_767_225_600;

/// Run everything on this machine with no set-up: embedded database, generated secrets, readable log
///
/// So that no sample ever reaches a real database, this command accepts DATABASE_URL, DATABASE_URL_FILE and CONFIG_FILE
/// only as flags. It ignores these variables in the environment and in .env, and ignores a clerk-sync.toml.
#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "the comment is the text of --help, where backticks would be noise")]
pub(super) struct Dev {
    /// Send signed sample events and print the result of each
    #[arg(long)]
    sample: bool,

    /// Start a fake of Clerk's Backend API with this many users, the same in every run, and import them
    #[arg(long, value_name = "N")]
    fake_clerk: Option<usize>,

    /// Use free ports, and exit after the samples
    #[arg(long)]
    once: bool,
}

impl Dev {
    pub(super) async fn run(self, mut settings: Settings, ignored: &[&str]) -> Result<(), Failure> {
        // Samples belong to no real instance, come from this machine, and go into tables without columns of the application.
        settings.set("CLERK_INSTANCE_ID", "any");
        settings.unset("WEBHOOK_ALLOWED_IPS");
        settings.unset("ANONYMIZE_COLUMNS");
        // The users that a key in `.env` gives access to are not compared with this database either.
        settings.unset("RECONCILE_INTERVAL");
        settings.set("CATCH_UP_AFTER", "off");
        settings.unset("CATCH_UP_ON_EMPTY");
        // The rows are shown as soon as an event is answered.
        settings.unset("PROCESSING");
        settings.unset("QUEUE_URL");
        settings.unset("QUEUE_URL_FILE");
        if settings.get("RUST_LOG").is_none() {
            settings.set("RUST_LOG", LOG);
        }
        let generated = generate_secret_if_missing(&mut settings)?;
        let fake = self.start_fake(&mut settings).await?;
        let mut config = settings.resolve(Needs::SERVE)?;
        let token = generate_token_if_missing(&mut config);
        config.log_format = config.log_format.or(Some(LogFormat::Pretty));
        if self.once {
            config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            config.admin_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        }
        // During the scenario the log would only repeat the output, so logging starts afterwards.
        if !self.sample {
            init_log(&config)?;
        }
        let destinations = destinations(&config)?;
        let store = wait_for_store(&config, true).await?;
        if self.sample {
            mark_as_made_up(&config, &*store).await?;
        }
        let limits = Limits::default();
        let service =
            Service::start(Role::Both, &config, Arc::clone(&store), None, None, limits, destinations)?;
        let public = service.public.context("webhooks are not received")?;
        let url = format!("http://{public}/webhooks/clerk");
        introduce(&config, &service, &url, generated.as_deref(), token.as_deref());
        if !ignored.is_empty() {
            say!(
                "  {} of the environment or .env: ignored by dev. To use another database, pass --database-url.\n",
                ignored.join(", ")
            );
        }
        if fake.is_some() && !matches!(config.database, Database::Sqlite { .. }) {
            say!("  Note: made-up users of the fake are written to this database, and stay there.\n");
        }

        if let Some(fake) = &fake {
            take_in(&config, &store).await?;
            if !self.once {
                invite_to_compare(&config, fake);
            }
        }
        let secret = config.signing_secrets.first().context("there is no signing secret")?.clone();
        if self.sample {
            let poster = Poster::new(url.clone(), secret.clone())?;
            tell_story(&poster, &*store).await?;
        }
        if self.once {
            service.stop().await;
            say!(
                "  This was --once. Without it the service keeps running, and prints a signed curl command to try.\n"
            );
            return Ok(());
        }
        invite(&service, &url, &secret, generated.as_deref(), token.as_deref())?;
        if self.sample {
            init_log(&config)?;
        }
        service.run_until_asked_to_stop().await
    }
}

impl Dev {
    /// Start a fake Clerk in place of the real one.
    async fn start_fake(&self, settings: &mut Settings) -> Result<Option<Fake>, Failure> {
        let Some(users) = self.fake_clerk else { return Ok(None) };
        let options = Options {
            users,
            organizations: users / 10,
            members: users.min(5),
            instance: sample::INSTANCE.to_owned(),
            ..Options::default()
        };
        let began = DateTime::from_timestamp(FAKE_BEGAN, 0).context("no time")?;
        let fake = Fake::start_as_of(began, options, clock())
            .await
            .context("the fake Clerk could not be started")?;
        // The fake has no subscriptions. Otherwise a backfill would ask it for the subscription of every user.
        fake.behave(Behaviour { billing_off: true, ..Behaviour::default() });
        settings.set("CLERK_API_URL", fake.url());
        settings.set("CLERK_SECRET_KEY", fake.key());
        settings.unset("CLERK_SECRET_KEY_FILE");
        Ok(Some(fake))
    }
}

/// Record that this database holds only made-up users. A database with users of a real instance is refused, because samples
/// must not be mixed with them. If the instance of the users is unknown, the operator decides by naming the database.
async fn mark_as_made_up(config: &Config, store: &dyn Store) -> Result<(), Failure> {
    match store.origin().await?.map(|origin| origin.instance) {
        Some(known) if known != sample::INSTANCE => Err(Failure::configuration(format!(
            "the users of {} came from instance {known} of Clerk, and samples must not be mixed with them: name another \
             database, for example --database-url sqlite://sample.db",
            config.database.place()
        ))),
        Some(_) => Ok(()),
        None => {
            let now = clock()();
            if store.history(now, now).await? == History::Empty {
                store.claim_instance(sample::INSTANCE).await?;
            }
            Ok(())
        }
    }
}

/// Import the users of the fake.
async fn take_in(config: &Config, store: &Arc<dyn Store>) -> Result<(), Failure> {
    // The fake has no rate limit.
    let context = catching_up(config, store, rules(config), NonZeroU32::new(1000))?;
    let context = CatchUp { instance: Instance::default(), ..context.context("there is no key")? };
    heading("A fake Clerk");
    for entity in config.selection.entities() {
        let (tell, _) = watch::channel(Progress::default());
        let began = Instant::now();
        let summary = backfill(&context, &Wanted::all(entity), &mut Done::default(), true, tell).await?;
        if summary.switched_off {
            say!("  backfill   {}: switched off at Clerk", nouns(entity).1);
            continue;
        }
        let (counts, seconds) = (summary.counts, began.elapsed().as_secs_f64());
        let seen = objects(counts.seen, entity);
        say!("  backfill   {seen}, {} of them written, in {seconds:.1} s", counts.applied);
    }
    say!();
    Ok(())
}

/// Print commands to try with the fake.
fn invite_to_compare(config: &Config, fake: &Fake) {
    say!("  Compare the database with it, or fetch one of its users:\n");
    let program = program();
    let database = match &config.database {
        Database::Sqlite { path } => format!("sqlite://{}", path.display()),
        // A URL with a password is not repeated.
        Database::Postgres { .. } | Database::Mysql { .. } | Database::Mongodb { .. } => "…".to_owned(),
    };
    let some_user = fake.users().ids().into_iter().next().map(|id| format!("ensure {id}"));
    for command in some_user.into_iter().chain(["reconcile --dry-run".to_owned()]) {
        say!(
            "CLERK_API_URL={} CLERK_SECRET_KEY={} {program} {command} --database-url {database}",
            fake.url(),
            fake.key()
        );
    }
    say!();
}

fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "clerk-sync".to_owned())
}

/// Use the secret of the environment or the command line; without one, generate a secret for this run.
fn generate_secret_if_missing(settings: &mut Settings) -> Result<Option<String>, Failure> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    if !settings.signing_secrets()?.is_empty() {
        return Ok(None);
    }
    let secret = format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 24]>()));
    settings.set("CLERK_WEBHOOK_SIGNING_SECRET", secret.clone());
    Ok(Some(secret))
}

/// The same for the token of the private API.
fn generate_token_if_missing(config: &mut Config) -> Option<String> {
    if config.admin_token.is_some() {
        return None;
    }
    let token = format!("{:032x}", rand::random::<u128>());
    config.admin_token = Some(SecretString::from(token.clone()));
    Some(token)
}

fn introduce(config: &Config, service: &Service, url: &str, secret: Option<&str>, token: Option<&str>) {
    let shown = |made_up: Option<&str>, variable: &str| match made_up {
        Some(value) => format!("{value}  (made up for this run)"),
        None => format!("from {variable}"),
    };
    say!();
    heading("clerk-sync is running");
    say!(
        "
  webhooks   {url}
  private    http://{private}/metrics
  dashboard  http://{private}  (sign in with the token)
  database   {}
  fields     {}
  secret     {}
  token      {}
",
        config.database.place(),
        config.sync_fields().of(&USER).map(Field::name).collect::<Vec<_>>().join(", "),
        shown(secret, "CLERK_WEBHOOK_SIGNING_SECRET"),
        shown(token, "ADMIN_TOKEN"),
        private = service.private,
    );
}

/// Print how to post an event, and how to read the users.
fn invite(
    service: &Service,
    url: &str,
    secret: &Secret,
    generated: Option<&str>,
    token: Option<&str>,
) -> Result<(), Failure> {
    let now = Utc::now();
    let user_id = random_id("user_");
    let body = sample::body("user.created", &user_id, now).context("there is no such sample")?;
    let curl = sample::curl(url, &random_id("msg_"), &body, secret, now);
    let setting =
        generated.map(|secret| format!("CLERK_WEBHOOK_SIGNING_SECRET='{secret}' ")).unwrap_or_default();
    // A token from the environment is not printed: the operator already has it.
    let header = match token {
        Some(token) => format!("'authorization: Bearer {token}'"),
        None => "\"authorization: Bearer $ADMIN_TOKEN\"".to_owned(),
    };
    heading("Try it");
    say!(
        "  Post an event yourself; the signature is valid for five minutes:

{curl}

  Or let clerk-sync do it:

{setting}{} send user.updated --user-id {user_id} --url {url}

  Then read the users:

curl -H {header} http://{}/v1/users

  Ctrl-C stops the service. Events that arrive from now on are logged here:
",
        program(),
        service.private
    );
    Ok(())
}

/// Post deliveries in the orders in which Clerk's deliveries can arrive, and print the result of each.
async fn tell_story(poster: &Poster, store: &dyn Store) -> Result<(), Failure> {
    let user_id = random_id("user_");
    let id = ClerkId::new(&USER, user_id.clone()).context("a sample id is not an id")?;
    let now = Utc::now();
    let body = |event_type: &str, seconds_ago: i64| {
        let body = sample::body(event_type, &user_id, now - TimeDelta::seconds(seconds_ago));
        body.context("there is no such sample")
    };
    let created = body("user.created", 90)?;
    let updated = body("user.updated", 60)?;
    let deleted = body("user.deleted", 30)?;
    let updated_last = body("user.updated", 0)?;
    let messages: Vec<String> = (0..6).map(|_| random_id("msg_")).collect();
    let mut row = None;
    let mut surprises = Vec::new();
    for (title, message, body, signature, expected) in [
        ("user.created: Ada signs up", 0, &created, None, "applied"),
        ("user.updated: she marries", 1, &updated, None, "applied"),
        ("the same delivery again, as Svix may send it", 1, &updated, None, "duplicate"),
        ("user.created again, with a new svix-id, out of order", 2, &created, None, "stale"),
        ("user.deleted: she leaves", 3, &deleted, None, "applied"),
        ("user.updated, newer, but too late: deletion is final", 4, &updated_last, None, "stale"),
        ("a forgery", 5, &created, Some(FORGED), "invalid_signature"),
    ] {
        let (svix_id, began) = (&messages[message], Instant::now());
        let answer = match signature {
            Some(signature) => poster.post_signed(svix_id, body, Utc::now(), signature).await?,
            None => poster.post(svix_id, body, Utc::now()).await?,
        };
        let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
        heading(&format!("▸ {title}"));
        say!("    {svix_id}  →  {} {}  {milliseconds:.1} ms", answer.status.as_u16(), answer.word);
        if answer.word != expected {
            surprises.push(format!("{title}: {} instead of {expected}", answer.word));
        }
        let after = store.row(&id).await?.map(|row| row_as_json(&row));
        let after: Option<Map<String, Value>> = after.and_then(|row| serde_json::from_str(&row).ok());
        match (&row, &after) {
            (before, after) if before == after => say!("       nothing changed\n"),
            (before, Some(after)) => say!("{}", changes(before.as_ref(), after)),
            (_, None) => {
                say!("       the row is gone; a tombstone remains, and later events cannot restore her\n");
            }
        }
        row = after;
    }
    if surprises.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("not as expected: {}", surprises.join("; "))))
}

/// The differences between two rows: new fields, or fields with their old and new values.
fn changes(before: Option<&Map<String, Value>>, after: &Map<String, Value>) -> String {
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = String::new();
    for (name, new) in after
        .iter()
        .filter(|(name, _)| !["id", "created_at", "preferences", "synced_at"].contains(&name.as_str()))
    {
        let old = before.map(|before| &before[name]);
        if old.unwrap_or(&Value::Null) != new {
            let from = old.map_or_else(String::new, |old| shown(old) + " → ");
            let _ = writeln!(lines, "       {name:12}  {from}{}", shown(new));
        }
    }
    lines
}

fn heading(text: &str) {
    print_styled(&if has_colours() { format!("  \x1b[1m{text}\x1b[0m") } else { format!("  {text}") });
}
