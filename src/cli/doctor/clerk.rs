//! Clerk's Backend API: what time it is there, and whose key we have.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    clock::{self, Span},
    configuration::Given,
    report::{Finding, or_ok},
};
use crate::{
    clerk::api::{ApiError, ClockReading, Persistence, read_clock},
    cli::{self, Failure, open_api},
    store::Origin,
    sync::instance::Pin,
};

const CLOCK: &str = "clerk clock";
const KEY: &str = "clerk key";
const INSTANCE: &str = "clerk instance";

/// Refusals that are older than this are over.
const REFUSED_LATELY: TimeDelta = TimeDelta::days(1);

const PATIENCE: Duration = Duration::from_secs(5);

/// What time it is at Clerk; `None` if it is not known where to ask.
pub(super) async fn ask_hour(given: &Given) -> Option<Result<ClockReading, ApiError>> {
    if given.is_mistaken("CLERK_API_URL") {
        return None;
    }
    Some(read_clock(&given.config.clerk_api_url, &cli::clock(), PATIENCE).await)
}

pub(super) fn judge_hour(given: &Given, answer: Option<Result<ClockReading, ApiError>>) -> Finding {
    match answer {
        None => Finding::skip(CLOCK, "the configuration does not say where Clerk's API is"),
        // With a key this is a failure of the next check.
        Some(Err(error)) => Finding::skip(CLOCK, error.to_string()),
        Some(Ok(ClockReading { theirs: None, .. })) => {
            Finding::skip(CLOCK, "the answer of Clerk's API has no Date")
        }
        Some(Ok(ClockReading { asked_at, theirs: Some(theirs), answered_at })) => {
            let ours = Span { from: asked_at, until: answered_at };
            clock::judge(CLOCK, "Clerk", ours, Span::second(theirs), given.config.webhook_tolerance_seconds)
        }
    }
}

/// Of which instance the key is; `None` if there is none that can be used.
pub(super) async fn ask_instance(given: &Given) -> Option<Result<String, ApiError>> {
    if given.is_mistaken("CLERK_API_URL") || given.is_mistaken("CLERK_SECRET_KEY") {
        return None;
    }
    let api = open_api(&given.config, None).ok()??;
    Some(api.instance(Persistence::INTERACTIVE).await.map(str::to_owned))
}

/// Whether events come from the one instance that the users of the database are of.
pub(super) fn judge_origin(given: &Given, origin: Option<&Origin>, now: DateTime<Utc>) -> Vec<Finding> {
    let pin = Pin::of(given.config.instance_id.as_deref());
    if pin == Pin::Any {
        let found = "CLERK_INSTANCE_ID=any: events of every instance are taken in, and reconcile erases nobody by itself";
        return vec![Finding::ok(INSTANCE, found)];
    }
    let Some(Origin { instance, previous, refused, .. }) = origin else {
        let unknown = "not known yet: the first event or the first backfill decides".to_owned();
        let found = pin.only().map_or(unknown, |pinned| format!("{pinned}, by CLERK_INSTANCE_ID"));
        return vec![Finding::ok(INSTANCE, found)];
    };
    let mut findings = Vec::new();
    if let Some((other, at)) = refused.as_ref().filter(|(_, at)| now - *at < REFUSED_LATELY) {
        findings.push(Finding::fail(
            INSTANCE,
            Failure::FAILED,
            format!(
                "events of instance {other} are refused (403 wrong_instance), the last at {}: the users here are of {instance}",
                at.format("%Y-%m-%d %H:%M:%S UTC")
            ),
            format!(
                "remove the endpoint of {other} in Clerk's Dashboard, or give it a database of its own; if users are to come \
                 from {other} from now on, `clerk-sync backfill --change-instance` with a key of it; see the runbook, \
                 ClerkSyncOtherInstance"
            ),
        ));
    }
    if let Some(pinned) = pin.only().filter(|pinned| pinned != instance) {
        findings.push(Finding::warn(
            INSTANCE,
            format!("CLERK_INSTANCE_ID is {pinned}, and the users of this database came from {instance}"),
            format!(
                "set CLERK_INSTANCE_ID={instance}, or let users come from {pinned} with \
                 `clerk-sync backfill --change-instance`"
            ),
        ));
    }
    if let Some(previous) = previous {
        findings.push(Finding::warn(
            INSTANCE,
            format!("{instance}, since a change: users of {previous}, the one before, may still be here"),
            "`clerk-sync reconcile --dry-run` names them; `clerk-sync reconcile --allow-mass-delete` erases them",
        ));
    }
    or_ok(findings, INSTANCE, format!("{instance}, like the users here"))
}

/// `origin` says of which instance the users of the database are.
pub(super) fn judge_instance(
    given: &Given,
    answer: Option<Result<String, ApiError>>,
    origin: Option<&Origin>,
) -> Vec<Finding> {
    let Some(answer) = answer else {
        return vec![if given.is_mistaken("CLERK_SECRET_KEY") || given.is_mistaken("CLERK_API_URL") {
            Finding::skip(KEY, "the configuration cannot be used to ask Clerk")
        } else {
            Finding::ok(KEY, "CLERK_SECRET_KEY is not set: webhooks only, no backfill and no reconcile")
        }];
    };
    let of_key = match answer {
        Ok(of_key) => of_key,
        Err(error) => return vec![refused(&error)],
    };
    let mut findings = Vec::new();
    let mut fail = |found: String, remedy: String| {
        findings.push(Finding::fail(KEY, Failure::CONFIGURATION, found, remedy));
    };
    let pin = Pin::of(given.config.instance_id.as_deref());
    if let Some(pinned) = pin.only().filter(|pinned| *pinned != of_key) {
        fail(
            format!("CLERK_SECRET_KEY is of instance {of_key}, and CLERK_INSTANCE_ID is {pinned}"),
            format!(
                "take a key of {pinned} from Clerk's Dashboard (API keys), or set CLERK_INSTANCE_ID={of_key}"
            ),
        );
    }
    let known = origin.map(|origin| &origin.instance).filter(|known| **known != of_key);
    if let Some(known) = known.filter(|_| pin != Pin::Any) {
        fail(
            format!(
                "CLERK_SECRET_KEY is of instance {of_key}, and the users of this database came from {known}"
            ),
            format!(
                "take a key of {known} from Clerk's Dashboard (API keys); if users are to come from {of_key} from now \
                 on, `clerk-sync backfill --change-instance`"
            ),
        );
    }
    or_ok(findings, KEY, format!("valid, of instance {of_key}"))
}

fn refused(error: &ApiError) -> Finding {
    let text = error.to_string();
    let code = Failure::from(error).code;
    match error {
        ApiError::KeyRefused { .. } => {
            let found = text.split("; take ").next().unwrap_or_default();
            let remedy = "set CLERK_SECRET_KEY to a valid key from Clerk's Dashboard (API keys, Secret keys)";
            Finding::fail(KEY, code, found, remedy)
        }
        ApiError::Unreachable { .. } => {
            let remedy = "let this machine reach that address over HTTPS, or correct CLERK_API_URL; webhooks work without";
            Finding::fail(KEY, code, text, remedy)
        }
        // Such as a proxy that lets only questions about users through.
        ApiError::Refused { .. } | ApiError::Unintelligible { .. } | ApiError::TooLong { .. } => {
            let remedy =
                "see that CLERK_API_URL is that of Clerk, or of a proxy that lets GET /v1/instance through";
            Finding::warn(KEY, format!("of which instance the key is cannot be told: {text}"), remedy)
        }
    }
}
