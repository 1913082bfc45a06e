//! `healthcheck`: asks the service on this machine for its state, where there is no shell and no curl.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use reqwest::{Client, Response};
use serde_json::Value;

use super::{Failure, post::LONGEST_ANSWER, resolve, say};
use crate::{clerk::api, config::Settings, http_client};

/// Shorter than the time-out of container engines.
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
            return Err(Failure::usage("ADMIN_PORT is 0: set the port that the service listens on"));
        }
        let listener = Listener::new(listener)?;
        let path = if self.live { "livez" } else { "readyz" };
        let mut answer = listener.ask(path).await.map_err(|_| {
            Failure::unreachable(format!("no answer from {}: is clerk-sync running there?", listener.address))
        })?;
        if answer.status().is_success() {
            say!("{}", if self.live { "alive" } else { "ready" });
            return Ok(());
        }
        let status = answer.status().as_u16();
        let body = api::body(&mut answer, LONGEST_ANSWER).await.ok().flatten();
        let body: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let why = body["error"]["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(Failure::failed(format!("not ready: {why}")))
    }
}

/// The private listener of a service on this machine, as a health probe sees it.
pub(super) struct Listener {
    address: SocketAddr,
    client: Client,
}

impl Listener {
    /// The listener at this address.
    pub(super) fn new(listener: SocketAddr) -> Result<Self, Failure> {
        // Each request uses a connection of its own, so the check also covers whether connections are accepted.
        let client = http_client::builder().timeout(PATIENCE).no_proxy().pool_max_idle_per_host(0).build();
        Ok(Self {
            address: SocketAddr::new(reachable(listener.ip()), listener.port()),
            client: client.context("the HTTP client could not be created")?,
        })
    }

    /// Whether it answers this path in time and with success.
    pub(super) async fn says_yes(&self, path: &str) -> bool {
        self.ask(path).await.is_ok_and(|answer| answer.status().is_success())
    }

    async fn ask(&self, path: &str) -> reqwest::Result<Response> {
        self.client.get(format!("http://{}/{path}", self.address)).send().await
    }
}

/// The address at which this machine can reach a listener.
pub(super) fn reachable(listener: IpAddr) -> IpAddr {
    match listener {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}
