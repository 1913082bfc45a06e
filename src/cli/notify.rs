//! What the service manager is told, where one asks for it, as systemd does by `Type=notify` and `WatchdogSec=`: that we
//! are ready, that we live, that we stop.
//!
//! It hears what a probe would: ready is what `/readyz` says, and alive is who answers on the private listener, so that a
//! runtime or an accept loop that hangs is noticed too. Where `NOTIFY_SOCKET` is not set nothing here does anything, and
//! a manager that cannot be told never stops the service.

use std::{env, net::SocketAddr, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;

use super::healthcheck::Listener;

/// How soon a service that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Tell when the service with this private listener is ready, and from then on, as often as the watchdog wants to hear it,
/// that it lives. To be dropped when it stops.
pub(super) async fn keep_informed(private: SocketAddr) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let service = match Listener::new(private) {
        Ok(service) => service,
        Err(failure) => {
            return tracing::warn!(%failure, "the service manager cannot be told that we are ready");
        }
    };
    while !service.says_yes("readyz").await {
        sleep(AGAIN).await;
    }
    tell(NotifyState::Ready);
    // Within so much time it wants to hear of us.
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    loop {
        let mut told = false;
        while !service.says_yes("livez").await {
            if !told {
                tracing::warn!(
                    "the private listener does not answer; if that goes on the service manager starts us anew"
                );
            }
            told = true;
            sleep(AGAIN).await;
        }
        tell(NotifyState::Watchdog);
        sleep(patience / 2).await;
    }
}

/// Tell that we are stopping.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(kind = ?error.kind(), "the service manager cannot be told how we are");
    }
}
