//! `worker`: applies the queue and notifies other systems, alongside the processes that receive webhooks.

use clap::Args;

use super::{
    Failure,
    service::{Role, run},
};
use crate::config::{Needs, Settings};

/// Only apply the queue and notify other systems; any number of workers may run
#[derive(Args)]
pub(super) struct Worker {
    /// Do not apply migrations; /readyz answers 503 until they are applied
    #[arg(long)]
    no_migrate: bool,
}

impl Worker {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let config = settings.resolve(Needs { sink_secrets: true, ..Needs::default() })?;
        run(Role::Work, &config, !self.no_migrate).await
    }
}
