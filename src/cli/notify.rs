//! Notifications to a service manager that asks for them, as systemd does with `Type=notify` and `WatchdogSec=`: the service
//! is ready, is alive, is stopping.
//!
//! The notifications match what a probe sees. Ready means that `/readyz` says so, and alive means that the private
//! listener answers, so a hanging runtime or accept loop is noticed too. Without `NOTIFY_SOCKET` this module does
//! nothing. If the manager cannot be notified, the service keeps running.

use std::{env, net::SocketAddr, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;

use super::healthcheck::Listener;

/// How soon a service that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Notify the manager when the service with this private listener is ready, and then, at the watchdog's interval, that it is
/// alive. The caller drops this future when the service stops.
pub(super) async fn keep_informed(private: SocketAddr) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let service = match Listener::new(private) {
        Ok(service) => service,
        Err(failure) => {
            return tracing::warn!(%failure, "the service manager cannot be notified that clerk-sync is ready");
        }
    };
    while !service.says_yes("readyz").await {
        sleep(AGAIN).await;
    }
    tell(NotifyState::Ready);
    // The manager expects a notification within this time.
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    loop {
        let mut told = false;
        while !service.says_yes("livez").await {
            if !told {
                tracing::warn!(
                    "the private listener does not answer; if this continues, the service manager restarts clerk-sync"
                );
            }
            told = true;
            sleep(AGAIN).await;
        }
        tell(NotifyState::Watchdog);
        sleep(patience / 2).await;
    }
}

/// Notify the manager that the service is stopping.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(kind = ?error.kind(), "the service manager cannot be notified of the state of clerk-sync");
    }
}
