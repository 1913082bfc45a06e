//! Clerk's Backend API: its clock, and the instance of the key.

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

/// Older refusals are not reported.
const REFUSED_LATELY: TimeDelta = TimeDelta::days(1);

const PATIENCE: Duration = Duration::from_secs(5);

/// Clerk's time; `None` if the address of Clerk's API is not known.
pub(super) async fn ask_hour(given: &Given) -> Option<Result<ClockReading, ApiError>> {
    if given.is_mistaken("CLERK_API_URL") {
        return None;
    }
    Some(read_clock(&given.config.clerk_api_url, &cli::clock(), PATIENCE).await)
}

pub(super) fn judge_hour(given: &Given, answer: Option<Result<ClockReading, ApiError>>) -> Finding {
    match answer {
        None => Finding::skip(CLOCK, "the configuration does not say where Clerk's API is"),
        // With a key, the next check reports this as a failure.
        Some(Err(error)) => Finding::skip(CLOCK, error.to_string()),
        Some(Ok(ClockReading { theirs: None, .. })) => {
            Finding::skip(CLOCK, "the answer of Clerk's API has no Date header")
        }
        Some(Ok(ClockReading { asked_at, theirs: Some(theirs), answered_at })) => {
            let ours = Span { from: asked_at, until: answered_at };
            clock::judge(CLOCK, "Clerk", ours, Span::second(theirs), given.config.webhook_tolerance_seconds)
        }
    }
}

/// The instance of the key; `None` if there is no usable key.
pub(super) async fn ask_instance(given: &Given) -> Option<Result<String, ApiError>> {
    if given.is_mistaken("CLERK_API_URL") || given.is_mistaken("CLERK_SECRET_KEY") {
        return None;
    }
    let api = open_api(&given.config, None).ok()??;
    Some(api.instance(Persistence::INTERACTIVE).await.map(str::to_owned))
}

/// Whether events come from the same instance as the users in the database.
pub(super) fn judge_origin(given: &Given, origin: Option<&Origin>, now: DateTime<Utc>) -> Vec<Finding> {
    let pin = Pin::of(given.config.instance_id.as_deref());
    if pin == Pin::Any {
        let found = "CLERK_INSTANCE_ID=any: events of every instance are applied, and reconcile never erases users automatically";
        return vec![Finding::ok(INSTANCE, found)];
    }
    let Some(Origin { instance, previous, refused, .. }) = origin else {
        let unknown = "not known yet: the first event or the first backfill decides".to_owned();
        let found = pin.only().map_or(unknown, |pinned| format!("{pinned}, set by CLERK_INSTANCE_ID"));
        return vec![Finding::ok(INSTANCE, found)];
    };
    let mut findings = Vec::new();
    if let Some((other, at)) = refused.as_ref().filter(|(_, at)| now - *at < REFUSED_LATELY) {
        findings.push(Finding::fail(
            INSTANCE,
            Failure::FAILED,
            format!(
                "events of instance {other} are refused (403 wrong_instance), last at {}: the users here belong to {instance}",
                at.format("%Y-%m-%d %H:%M:%S UTC")
            ),
            format!(
                "remove the endpoint of {other} in Clerk's Dashboard, or use another database for it; if users should come \
                 from {other} from now on, run `clerk-sync backfill --change-instance` with a key of it; see the runbook, \
                 ClerkSyncOtherInstance"
            ),
        ));
    }
    if let Some(pinned) = pin.only().filter(|pinned| pinned != instance) {
        findings.push(Finding::warn(
            INSTANCE,
            format!("CLERK_INSTANCE_ID is {pinned}, and the users of this database came from {instance}"),
            format!(
                "set CLERK_INSTANCE_ID={instance}, or allow users from {pinned} with \
                 `clerk-sync backfill --change-instance`"
            ),
        ));
    }
    if let Some(previous) = previous {
        findings.push(Finding::warn(
            INSTANCE,
            format!("{instance}, since a change: users of the previous instance, {previous}, may still be here"),
            "`clerk-sync reconcile --dry-run` lists them; `clerk-sync reconcile --allow-mass-delete` erases them",
        ));
    }
    or_ok(findings, INSTANCE, format!("{instance}, the same as the users here"))
}

/// `origin` names the instance of the users in the database.
pub(super) fn judge_instance(
    given: &Given,
    answer: Option<Result<String, ApiError>>,
    origin: Option<&Origin>,
) -> Vec<Finding> {
    let Some(answer) = answer else {
        return vec![if given.is_mistaken("CLERK_SECRET_KEY") || given.is_mistaken("CLERK_API_URL") {
            Finding::skip(KEY, "without a valid configuration Clerk cannot be asked")
        } else {
            Finding::ok(KEY, "CLERK_SECRET_KEY is not set: only webhooks work, not backfill and reconcile")
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
            format!("CLERK_SECRET_KEY belongs to instance {of_key}, and CLERK_INSTANCE_ID is {pinned}"),
            format!(
                "use a key of {pinned} from Clerk's Dashboard (API keys), or set CLERK_INSTANCE_ID={of_key}"
            ),
        );
    }
    let known = origin.map(|origin| &origin.instance).filter(|known| **known != of_key);
    if let Some(known) = known.filter(|_| pin != Pin::Any) {
        fail(
            format!(
                "CLERK_SECRET_KEY belongs to instance {of_key}, and the users of this database came from {known}"
            ),
            format!(
                "use a key of {known} from Clerk's Dashboard (API keys); if users should come from {of_key} from now on, \
                 run `clerk-sync backfill --change-instance`"
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
            let remedy = "allow HTTPS from this machine to that address, or correct CLERK_API_URL; webhooks work without it";
            Finding::fail(KEY, code, text, remedy)
        }
        // For example, a proxy may pass only requests about users.
        ApiError::Refused { .. } | ApiError::Unintelligible { .. } | ApiError::TooLong { .. } => {
            let remedy = "check that CLERK_API_URL names Clerk, or a proxy that allows GET /v1/instance";
            Finding::warn(KEY, format!("the instance of the key is unknown: {text}"), remedy)
        }
    }
}
