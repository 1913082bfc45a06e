//! `worker`: applies what waits in the queue and tells other systems, beside the processes that receive webhooks.

use clap::Args;

use super::{
    Failure,
    service::{Role, Service, init_log, wait_for_store, warn_of_hidden_rows, warn_of_origin},
    sinks::destinations,
};
use crate::{
    config::{Needs, Settings},
    sync::Limits,
};

/// Apply what waits in the queue and tell other systems, and nothing else; any number of these may run
#[derive(Args)]
pub(super) struct Worker {
    /// Do not apply migrations; /readyz says no until somebody has
    #[arg(long)]
    no_migrate: bool,
}

impl Worker {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let config = settings.resolve(Needs { sink_secrets: true, ..Needs::default() })?;
        init_log(&config)?;
        let destinations = destinations(&config)?;
        let store = wait_for_store(&config, !self.no_migrate).await?;
        warn_of_origin(&config, &*store).await;
        warn_of_hidden_rows(&*store).await;
        let service = Service::start_as(Role::Work, &config, store, Limits::default(), destinations)?;
        service.say_where(&config, service.state().await);
        service.run_until_asked_to_stop().await
    }
}
