//! Nothing is exported, and so nothing is traced: the program was built without the feature `otel`.

use std::time::Duration;

pub(super) fn begin(endpoint: &str) -> Result<Option<String>, String> {
    Err(format!("{endpoint} is set, and this program was built without the feature `otel`"))
}

#[expect(clippy::unused_async, reason = "with the feature there is something to wait for")]
pub(super) async fn finish(_: Duration) {}
