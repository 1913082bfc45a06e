//! Reports errors to Sentry: the log's lines at level ERROR, including panics.
//!
//! A report contains clerk-sync's own message, those of its fields that are listed here, and the tags `event_type` and `svix_id`
//! if it concerns a delivery. It never contains bodies, headers, addresses, local variables, the name of the machine or personal
//! data, whatever the log may contain. Reports are limited per minute; any further errors are only logged. A separate task sends
//! them. Only the end of the process waits for it, and only briefly.

use std::{
    borrow::Cow,
    fmt::Debug,
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use reqwest::{StatusCode, header};
use secrecy::ExposeSecret;
use sentry_core::{
    Client, ClientOptions, Envelope, Level as Severity, Transport,
    protocol::{Event, Value},
    types::Dsn,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{Sentry, is_ours};
use crate::http_client;

const OUR_RELEASE: &str = concat!("clerk-sync@", env!("CARGO_PKG_VERSION"));

/// The maximum number of reports per minute.
const A_MINUTE: NonZeroU32 = NonZeroU32::new(60).expect("more than none");

/// The maximum number of reports that wait to be sent. Any more are dropped.
const WAITING: usize = 64;

const SEND_WITHIN: Duration = Duration::from_secs(5);

/// How long we pause if Sentry asks for a pause without a duration.
const REST: Duration = Duration::from_mins(1);

const LONGEST_REST: Duration = Duration::from_hours(1);

/// Fields that become tags, which are searchable.
const TAGS: [(&str, &str); 2] = [("event", "event_type"), ("svix_id", "svix_id")];

/// Fields that are sent with the message: they contain only clerk-sync's words, names of routes and tables, and numbers.
const FIELDS: [&str; 11] = [
    "error",
    "reason",
    "outcome",
    "place",
    "route",
    "thread",
    "work",
    "deliveries",
    "attempts",
    "duration_ms",
    "users",
];

static QUEUE: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

enum Job {
    /// An envelope, ready to be sent.
    Send(Vec<u8>),
    /// Notify when all earlier jobs are done.
    Finish(oneshot::Sender<()>),
}

/// Creates the layer that turns logged errors into reports. Call it inside a runtime.
pub(super) fn reporter(sentry: &Sentry) -> Result<Reporter, &'static str> {
    let dsn: Dsn = sentry.dsn.expose_secret().parse().map_err(|_| "SENTRY_DSN is not a valid DSN")?;
    let client = http_client::builder()
        .timeout(SEND_WITHIN)
        .build()
        .map_err(|_| "the HTTP client cannot be created")?;
    let (queue, jobs) = mpsc::channel(WAITING);
    tokio::spawn(send_all(jobs, client, dsn.clone()));
    let _ = QUEUE.set(queue.clone());
    let release = sentry.release.clone().map_or(Cow::Borrowed(OUR_RELEASE), Cow::Owned);
    let mut options = ClientOptions::new()
        .release(release)
        .default_integrations(false)
        .max_breadcrumbs(0)
        .before_send(|event| Some(only_what_is_listed(event)))
        .transport(Arc::new(Way(queue)));
    options.dsn = Some(dsn);
    options.environment = sentry.environment.clone().map(Cow::Owned);
    let client = Client::with_options(options);
    Ok(Reporter { client, limiter: RateLimiter::direct(Quota::per_minute(A_MINUTE)) })
}

/// Send the waiting reports within this time.
pub(super) async fn finish(within: Duration) {
    if let Some(queue) = QUEUE.get() {
        let (done, finished) = oneshot::channel();
        let finishing = async {
            if queue.send(Job::Finish(done)).await.is_ok() {
                let _ = finished.await;
            }
        };
        let _ = timeout(within, finishing).await;
    }
}

/// The layer of the log that reports errors.
pub(super) struct Reporter {
    client: Client,
    limiter: DefaultDirectRateLimiter,
}

impl<S: Subscriber> Layer<S> for Reporter {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() != Level::ERROR || !is_ours(metadata.target()) || self.limiter.check().is_err() {
            return;
        }
        let logger = Some(metadata.target().to_owned());
        let mut report = Report(Event { level: Severity::Error, logger, ..Event::default() });
        event.record(&mut report);
        self.client.capture_event(report.0, None);
    }
}

/// The report of one error.
struct Report(Event<'static>);

impl Report {
    fn note(&mut self, name: &str, value: Value) {
        let text = || value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        if name == "message" {
            self.0.message = Some(text());
        } else if let Some((_, tag)) = TAGS.iter().find(|(field, _)| *field == name) {
            self.0.tags.insert((*tag).to_owned(), text());
        } else {
            self.0.extra.insert(name.to_owned(), value);
        }
    }
}

impl Visit for Report {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.note(field.name(), format!("{value:?}").into());
    }
}

/// A new report with only the listed parts, whatever the log or the library added.
fn only_what_is_listed(event: Event<'static>) -> Event<'static> {
    let is_tag = |name: &str| TAGS.iter().any(|(_, tag)| *tag == name);
    Event {
        event_id: event.event_id,
        timestamp: event.timestamp,
        level: event.level,
        logger: event.logger,
        message: event.message,
        release: event.release,
        environment: event.environment,
        sdk: event.sdk,
        tags: event.tags.into_iter().filter(|(name, _)| is_tag(name)).collect(),
        extra: event.extra.into_iter().filter(|(name, _)| FIELDS.contains(&name.as_str())).collect(),
        ..Event::default()
    }
}

/// Puts reports into the queue without waiting.
struct Way(mpsc::Sender<Job>);

impl Transport for Way {
    fn send_envelope(&self, envelope: Envelope) {
        let mut bytes = Vec::new();
        if envelope.to_writer(&mut bytes).is_ok() {
            let _ = self.0.try_send(Job::Send(bytes));
        }
    }
}

/// Send reports one after another. Reports that Sentry refuses now are dropped.
async fn send_all(mut jobs: mpsc::Receiver<Job>, client: reqwest::Client, dsn: Dsn) {
    let agent = concat!("clerk-sync/", env!("CARGO_PKG_VERSION"));
    let mut not_before = Instant::now();
    let mut is_blocked = false;
    while let Some(job) = jobs.recv().await {
        let envelope = match job {
            Job::Send(envelope) => envelope,
            Job::Finish(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if Instant::now() < not_before {
            continue;
        }
        let answer = client
            .post(dsn.envelope_api_url())
            .header("x-sentry-auth", dsn.to_auth(Some(agent)).to_string())
            .header(header::USER_AGENT, agent)
            .header(header::CONTENT_TYPE, "application/x-sentry-envelope")
            .body(envelope)
            .send()
            .await;
        let is_taken = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        if let Ok(answer) = &answer
            && answer.status() == StatusCode::TOO_MANY_REQUESTS
        {
            let asked = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let seconds = asked.and_then(|text| text.trim().parse().ok());
            not_before = Instant::now() + seconds.map_or(REST, Duration::from_secs).min(LONGEST_REST);
        }
        if !is_taken && !is_blocked {
            // A warning, because an error would be reported again.
            tracing::warn!("Sentry does not accept reports; errors are only logged until it does");
        }
        is_blocked = !is_taken;
    }
}
