//! No tracing and no export: the program was built without the feature `otel`.

use std::time::Duration;

pub(super) fn begin(endpoint: &str) -> Result<Option<String>, String> {
    Err(format!("{endpoint} is set, but this program was built without the feature `otel`"))
}

#[expect(clippy::unused_async, reason = "the version with the feature awaits")]
pub(super) async fn finish(_: Duration) {}
