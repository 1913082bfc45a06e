//! `healthcheck`: ask the service on this machine how it is, where there is no shell and no curl to do it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use reqwest::Client;
use serde_json::Value;

use super::{Failure, resolve, say};
use crate::config::Settings;

/// Less than what container engines wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ask the running service whether it is ready; exits with 0 if so, 1 if not, 69 if it does not answer
#[derive(Args)]
pub(super) struct Healthcheck {
    /// Ask only whether it is alive, which does not depend on the database
    #[arg(long)]
    live: bool,
}

impl Healthcheck {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        // `serve` and `worker` both have the private listener.
        let listener = resolve(settings)?.admin_listen;
        if listener.port() == 0 {
            return Err(Failure::usage(
                "ADMIN_PORT is 0, a free port that only the service knows: name a port",
            ));
        }
        let address = SocketAddr::new(reachable(listener.ip()), listener.port());
        let path = if self.live { "livez" } else { "readyz" };
        let client = Client::builder().timeout(PATIENCE).no_proxy().build();
        let client = client.context("the HTTP client could not be made")?;
        let answer = client.get(format!("http://{address}/{path}")).send().await.map_err(|_| {
            Failure::unreachable(format!("no answer from {address}: is clerk-sync running there?"))
        })?;
        if answer.status().is_success() {
            say!("{}", if self.live { "alive" } else { "ready" });
            return Ok(());
        }
        let status = answer.status().as_u16();
        let body: Value = serde_json::from_str(&answer.text().await.unwrap_or_default()).unwrap_or_default();
        let why = body["error"]["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(Failure::failed(format!("not ready: {why}")))
    }
}

/// Where a listener on this address can be asked from this machine.
pub(super) fn reachable(listener: IpAddr) -> IpAddr {
    match listener {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}
