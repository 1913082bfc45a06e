//! No error reports: the program was built without the feature `sentry`.

use std::time::Duration;

use tracing_subscriber::layer::Identity;

use super::Sentry;

pub(super) fn reporter(_: &Sentry) -> Result<Identity, &'static str> {
    Err("this program was built without the feature `sentry`")
}

#[expect(clippy::unused_async, reason = "the version with the feature awaits")]
pub(super) async fn finish(_: Duration) {}
