//! `worker`: applies what waits in the queue and tells other systems, beside the processes that receive webhooks.

use clap::Args;

use super::{
    Failure,
    service::{Role, run},
};
use crate::config::{Needs, Settings};

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
        run(Role::Work, &config, !self.no_migrate).await
    }
}
