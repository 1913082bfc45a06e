//! `dev`: everything on one machine with no set-up, and a story to begin with.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use fake_clerk::{Fake, Options};
use secrecy::SecretString;
use tokio::{sync::watch, time::Instant};

use super::{
    Failure,
    backfill::nouns,
    clock, count, open_api,
    post::{Answer, Poster},
    random_id, rules, say,
    service::{Service, init_log, wait_for_store},
    sinks::destinations,
    terminal::{has_colours, plain, print_styled},
};
use crate::{
    clerk::{sample, signature::Secret},
    config::{Config, Database, Needs, Settings},
    entity::USER,
    model::{ClerkId, Field, FieldSet, User, Value},
    store::{History, Store},
    sync::{
        Limits,
        backfill::{Progress, Wanted, backfill},
        catch_up::{CatchUp, Instance},
    },
    telemetry::LogFormat,
};

/// How wide the names of fields are in the story.
const NAME_WIDTH: usize = 12;

/// As of when the users of the fake are made, so that they are the same in every run: 2026, in unix seconds.
const FAKE_BEGAN: i64 = 1_767_225_600;

/// Everything on this machine with no set-up: embedded database, generated secrets, readable log
///
/// So that no sample ever reaches a real database, DATABASE_URL, DATABASE_URL_FILE and CONFIG_FILE count only as flags
/// here: the environment's and those of .env are ignored, as is a clerk-sync.toml.
#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "the comment is the text of --help, where backticks would be noise")]
pub(super) struct Dev {
    /// Send signed sample events and tell what becomes of them
    #[arg(long)]
    sample: bool,

    /// Start a fake of Clerk's Backend API with this many users, always the same ones, and take them in
    #[arg(long, value_name = "N")]
    fake_clerk: Option<usize>,

    /// Use free ports, and exit after the samples
    #[arg(long)]
    once: bool,
}

impl Dev {
    pub(super) async fn run(self, mut settings: Settings, ignored: &[&str]) -> Result<(), Failure> {
        // Samples are of no real instance, come from this machine, and meet tables without anybody's own columns.
        settings.set("CLERK_INSTANCE_ID", "any");
        settings.unset("WEBHOOK_ALLOWED_IPS");
        settings.unset("ANONYMIZE_COLUMNS");
        // Nor is anything here compared with the real users of a key in `.env`.
        settings.unset("RECONCILE_INTERVAL");
        settings.set("CATCH_UP_AFTER", "off");
        settings.unset("CATCH_UP_ON_EMPTY");
        // The rows are shown as soon as an event is answered.
        settings.unset("PROCESSING");
        let generated = generate_secret_if_missing(&mut settings)?;
        let fake = self.start_fake(&mut settings).await?;
        let mut config = settings.resolve(Needs::SERVE)?;
        let token = generate_token_if_missing(&mut config);
        config.log_format = config.log_format.or(Some(LogFormat::Pretty));
        if self.once {
            config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            config.admin_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        }
        // While a story is told the log would only repeat it, so it begins afterwards.
        if !self.sample {
            init_log(&config)?;
        }
        let destinations = destinations(&config)?;
        let store = wait_for_store(&config, true).await?;
        if self.sample {
            mark_as_made_up(&config, &*store).await?;
        }
        let service = Service::start(&config, Arc::clone(&store), Limits::default(), destinations)?;
        let public = service.public.context("webhooks are not received")?;
        let url = format!("http://{public}/webhooks/clerk");
        introduce(&config, &service, &url, generated.as_deref(), token.as_deref());
        if !ignored.is_empty() {
            say!(
                "  {} of the environment or .env: ignored by dev. A flag names another database than this one.",
                ignored.join(", ")
            );
            say!();
        }
        if fake.is_some() && matches!(config.database, Database::Postgres { .. }) {
            say!("  Mind that made-up users of the fake go into this PostgreSQL, and stay there.");
            say!();
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
            Story { poster, store: &*store, fields: config.sync_fields(), surprises: Vec::new() }
                .tell()
                .await?;
        }
        if self.once {
            service.stop().await;
            say!(
                "  That was --once. Without it the service stays, and prints a signed curl command to try.\n"
            );
            return Ok(());
        }
        invite(&url, &secret, generated.as_deref());
        invite_to_read(&service, token.as_deref());
        if self.sample {
            init_log(&config)?;
        }
        service.run_until_asked_to_stop().await
    }
}

impl Dev {
    /// A Clerk of our own in place of the real one.
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
        settings.set("CLERK_API_URL", fake.url());
        settings.set("CLERK_SECRET_KEY", fake.key());
        settings.unset("CLERK_SECRET_KEY_FILE");
        Ok(Some(fake))
    }
}

/// Remember that there are none but made-up people in this database. Where there are users of a real instance samples must
/// not be among them; where there is anybody and nobody knows of which, only whoever named the database does.
async fn mark_as_made_up(config: &Config, store: &dyn Store) -> Result<(), Failure> {
    match store.origin().await?.map(|origin| origin.instance) {
        Some(known) if known != sample::INSTANCE => Err(Failure::configuration(format!(
            "the users of {} came from instance {known} of Clerk, and samples must not be among them: name another database, \
             such as --database-url sqlite://sample.db",
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

/// Take in the users of the fake.
async fn take_in(config: &Config, store: &Arc<dyn Store>) -> Result<(), Failure> {
    // There is no limit that a fake would have to be protected by.
    let api = open_api(config, NonZeroU32::new(1000))?.context("there is no key")?;
    let context = CatchUp {
        store: Arc::clone(store),
        api,
        rules: rules(config),
        clock: clock(),
        instance: Instance::default(),
    };
    heading("A fake Clerk");
    for entity in config.selection.entities() {
        let (tell, _) = watch::channel(Progress::default());
        let began = Instant::now();
        let summary = backfill(&context, &Wanted::all(entity), true, tell).await;
        let counts = summary.map_err(|trouble| Failure::from(&trouble))?.counts;
        let seconds = began.elapsed().as_secs_f64();
        let (one, many) = nouns(entity);
        let seen = count(counts.seen, &one, &many);
        say!("  backfill   {seen}, {} of them written, in {seconds:.1} s", counts.applied);
    }
    say!();
    Ok(())
}

/// Say how to go on with the fake.
fn invite_to_compare(config: &Config, fake: &Fake) {
    say!("  Compare with it, or ask for one of its users:");
    say!();
    let program = program();
    let database = match &config.database {
        Database::Sqlite { path } => format!("sqlite://{}", path.display()),
        // With its password it is not repeated.
        Database::Postgres { .. } => "…".to_owned(),
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

/// A secret of the environment or the command line is used; else one is made up for this run.
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
        None => format!("yours, from {variable}"),
    };
    say!();
    heading("clerk-sync is running");
    say!();
    say!("  webhooks   {url}");
    say!("  private    http://{}/metrics", service.private);
    say!("  dashboard  http://{}  (sign in with the token)", service.private);
    say!("  database   {}", config.database.place());
    say!("  fields     {}", config.sync_fields().of(&USER).map(Field::name).collect::<Vec<_>>().join(", "));
    say!("  secret     {}", shown(secret, "CLERK_WEBHOOK_SIGNING_SECRET"));
    say!("  token      {}", shown(token, "ADMIN_TOKEN"));
    say!();
}

fn invite(url: &str, secret: &Secret, generated: Option<&str>) {
    let now = Utc::now();
    let user_id = random_id("user_");
    heading("Now you");
    say!("  Post an event yourself; the signature is good for five minutes:");
    say!();
    if let Some(body) = sample::body("user.created", &user_id, now) {
        say!("{}", sample::curl(url, &random_id("msg_"), &body, secret, now));
    }
    say!();
    let program = program();
    let setting =
        generated.map(|secret| format!("CLERK_WEBHOOK_SIGNING_SECRET='{secret}' ")).unwrap_or_default();
    say!("  Or let clerk-sync do it:");
    say!();
    say!("{setting}{program} send user.updated --user-id {user_id} --url {url}");
    say!();
}

fn invite_to_read(service: &Service, token: Option<&str>) {
    // A token of the environment is not repeated: the shell knows it, or whoever set it does.
    let header = match token {
        Some(token) => format!("'authorization: Bearer {token}'"),
        None => "\"authorization: Bearer $ADMIN_TOKEN\"".to_owned(),
    };
    say!("  And read the users back:");
    say!();
    say!("curl -H {header} http://{}/v1/users", service.private);
    say!();
    say!("  Ctrl-C stops. What arrives from now on is logged here:");
    say!();
}

/// Deliveries such as Clerk's, in the ways in which they really come.
struct Story<'a> {
    poster: Poster,
    store: &'a dyn Store,
    fields: FieldSet,
    /// What did not go as it should.
    surprises: Vec<String>,
}

/// One delivery of the story.
struct Scene<'a> {
    title: &'a str,
    svix_id: &'a str,
    body: &'a str,
    expected: &'a str,
}

impl Story<'_> {
    async fn tell(mut self) -> Result<(), Failure> {
        let user_id = random_id("user_");
        let id = ClerkId::new(&USER, user_id.clone()).context("a sample id is not an id")?;
        let now = Utc::now();
        let body = |event_type: &str, at: DateTime<Utc>| {
            sample::body(event_type, &user_id, at).context("there is no such sample")
        };
        let created = body("user.created", now - TimeDelta::seconds(90))?;
        let updated = body("user.updated", now - TimeDelta::seconds(60))?;
        let deleted = body("user.deleted", now - TimeDelta::seconds(30))?;
        let updated_last = body("user.updated", now)?;
        let messages: Vec<String> = (0..5).map(|_| random_id("msg_")).collect();

        for (title, message, body, expected) in [
            ("user.created: Ada signs up", 0, &created, "applied"),
            ("user.updated: she marries", 1, &updated, "applied"),
            ("the same delivery again, as Svix sends when in doubt", 1, &updated, "duplicate"),
            ("user.created once more under another id, out of order", 2, &created, "stale"),
            ("user.deleted: she leaves", 3, &deleted, "applied"),
            ("user.updated, newer still, but too late: deletion is final", 4, &updated_last, "stale"),
        ] {
            self.show(&id, &Scene { title, svix_id: &messages[message], body, expected }).await?;
        }
        self.show_forgery(&created, now).await?;
        if self.surprises.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!("not as expected: {}", self.surprises.join("; "))))
    }

    async fn show(&mut self, id: &ClerkId, scene: &Scene<'_>) -> Result<(), Failure> {
        let before = self.store.row(id).await?.map(|row| row.user);
        let began = Instant::now();
        let answer = self.poster.post(scene.svix_id, scene.body, Utc::now()).await?;
        let took = began.elapsed();
        let after = self.store.row(id).await?.map(|row| row.user);
        self.headline(scene.title, scene.svix_id, &answer, took, scene.expected);
        say!("{}", rows(before.as_ref(), after.as_ref(), self.fields));
        Ok(())
    }

    async fn show_forgery(&mut self, body: &str, now: DateTime<Utc>) -> Result<(), Failure> {
        let svix_id = random_id("msg_");
        let began = Instant::now();
        let signature = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let answer = self.poster.post_signed(&svix_id, body, now, signature).await?;
        self.headline("a forgery", &svix_id, &answer, began.elapsed(), "invalid_signature");
        say!("       not even read\n");
        Ok(())
    }

    fn headline(&mut self, title: &str, svix_id: &str, answer: &Answer, took: Duration, expected: &str) {
        let milliseconds = took.as_secs_f64() * 1000.0;
        heading(&format!("▸ {title}"));
        say!("    {svix_id}  →  {} {}  {milliseconds:.1} ms", answer.status.as_u16(), answer.word);
        if answer.word != expected {
            self.surprises.push(format!("{title}: {} instead of {expected}", answer.word));
        }
    }
}

/// The row before and after, or what of it changed.
fn rows(before: Option<&User>, after: Option<&User>, fields: FieldSet) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "       {name:<NAME_WIDTH$}  {value}");
    };
    match (before, after) {
        (None, None) => line("row", "none".to_owned()),
        (None, Some(after)) => {
            line("row", "none → new".to_owned());
            line("clerk_id", after.clerk_id.to_string());
            for field in fields.of(&USER) {
                line(field.name(), shown(&after.profile[field]));
            }
        }
        (Some(_), None) => {
            line("row", "there → gone; a tombstone stays, and nothing brings her back".to_owned());
        }
        (Some(before), Some(after)) if before == after => line("row", "as it was".to_owned()),
        (Some(before), Some(after)) => {
            for field in fields.of(&USER).filter(|field| before.profile[*field] != after.profile[*field]) {
                let (old, new) = (shown(&before.profile[field]), shown(&after.profile[field]));
                line(field.name(), format!("{old} → {new}"));
            }
            line("updated_at", format!("{} → {}", time(before.updated_at), time(after.updated_at)));
        }
    }
    text
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Text(text) | Value::Json(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Time(at) => time(*at),
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%H:%M:%S%.3f").to_string()
}

fn heading(text: &str) {
    let text = plain(text);
    print_styled(&if has_colours() { format!("  \x1b[1m{text}\x1b[0m") } else { format!("  {text}") });
}
