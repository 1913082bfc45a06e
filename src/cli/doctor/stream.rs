//! The stream of `QUEUE_URL`: whether it can be reached, keeps what it confirms, and is worked on.

use chrono::{DateTime, Utc};

use super::{configuration::Given, report::Finding};
use crate::{
    cli::{Failure, count},
    stream::{Durability, MOST, Stream},
    work::backlog::ALARM,
};

const CHECK: &str = "queue server";

/// Nothing, if there is no stream.
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
            let remedy = "docs/queue.md says what the server of QUEUE_URL needs";
            return Some(Finding::fail(CHECK, code, message, remedy));
        }
    };
    let waiting = count(depth.entries, "webhook waits", "webhooks wait");
    let is_late = depth.oldest.is_some_and(|oldest| now - oldest > ALARM.delivery);
    Some(if is_late || depth.entries > MOST / 2 {
        let remedy =
            "start `clerk-sync worker`, or more of them; if some run, their log says what is in the way";
        Finding::warn(CHECK, format!("{waiting}, the oldest for more than 5 minutes, or very many"), remedy)
    } else if durability == Durability::Trust {
        let remedy = "leave QUEUE_DURABILITY out, unless the server is durable by other means";
        Finding::warn(CHECK, format!("{waiting}; nothing proves that they are on disk"), remedy)
    } else {
        Finding::ok(CHECK, format!("it keeps what it confirms; {waiting}"))
    })
}
