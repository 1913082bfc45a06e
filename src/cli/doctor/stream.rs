//! The stream of `QUEUE_URL`: whether it can be reached, keeps confirmed entries, and is being processed.

use chrono::{DateTime, Utc};

use super::{configuration::Given, report::Finding};
use crate::{
    cli::{Failure, count},
    stream::{Durability, MOST, Stream},
    work::backlog::ALARM,
};

const CHECK: &str = "queue server";

/// `None` if there is no stream.
pub(super) async fn check(given: &Given, now: DateTime<Utc>) -> Option<Finding> {
    let options = given.config.stream.clone().filter(|_| !given.is_mistaken("QUEUE_URL"))?;
    let durability = options.durability;
    let looked = async {
        let stream = Stream::new(options)?;
        stream.check().await?;
        stream.depth().await
    };
    let depth = match looked.await {
        Ok(depth) => depth,
        Err(error) => {
            let Failure { code, message } = error.into();
            let remedy = "docs/queue.md lists the requirements for the server of QUEUE_URL";
            return Some(Finding::fail(CHECK, code, message, remedy));
        }
    };
    let waiting = count(depth.entries, "waiting webhook", "waiting webhooks");
    let is_late = depth.oldest.is_some_and(|oldest| now - oldest > ALARM.delivery);
    Some(if is_late || depth.entries > MOST / 2 {
        let remedy =
            "start `clerk-sync worker`, or more workers; if some are running, their log shows the cause";
        Finding::warn(CHECK, format!("{waiting}: too many, or the oldest for more than 5 minutes"), remedy)
    } else if durability == Durability::Trust {
        let remedy = "remove QUEUE_DURABILITY, unless the server is durable by other means";
        Finding::warn(CHECK, format!("{waiting}, not known to be on disk"), remedy)
    } else {
        Finding::ok(CHECK, format!("confirmed entries are on disk; {waiting}"))
    })
}
