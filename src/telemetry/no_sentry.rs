//! Nothing is reported: the program was built without the feature `sentry`.

use std::time::Duration;

use tracing_subscriber::layer::Identity;

use super::Sentry;

pub(super) fn reporter(_: &Sentry) -> Result<Identity, &'static str> {
    Err("this program was built without the feature `sentry`")
}

#[expect(clippy::unused_async, reason = "with the feature there is something to wait for")]
pub(super) async fn finish(_: Duration) {}
