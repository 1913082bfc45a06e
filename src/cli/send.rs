//! `send`: post signed sample events to a running service.

use chrono::Utc;
use clap::Args;

use super::{
    Failure, count,
    post::Poster,
    random_id,
    sample::{SampleEvent, default_url},
    say, signing_secret,
};
use crate::config::Settings;

/// Post signed sample events
#[derive(Args)]
pub(super) struct Send {
    #[command(flatten)]
    event: SampleEvent,

    /// The URL to post to [default: /webhooks/clerk on this machine, at PORT]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The number of events, each about a new user unless --user-id is given
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

impl Send {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let poster =
            Poster::new(self.url.unwrap_or_else(|| default_url(settings)), signing_secret(settings)?)?;
        let mut refused = 0_u32;
        for sent in 0..self.count {
            let (body, id) = self.event.body()?;
            let svix_id = random_id("msg_");
            let answer = poster.post(&svix_id, &body, Utc::now()).await.map_err(|failure| Failure {
                message: format!(
                    "{}; sent before: {sent} of {}, refused: {refused}",
                    failure.message, self.count
                ),
                ..failure
            })?;
            say!(
                "{}  {:<10}  {}  {svix_id}  {id}",
                answer.status.as_u16(),
                answer.word,
                self.event.event_type
            );
            if !(answer.status.is_success() && answer.is_ours) {
                refused += 1;
                say!("     {}", answer.message);
            }
        }
        if refused > 0 {
            let refused = count(refused.into(), "was", "were");
            return Err(Failure::failed(format!("{refused} not accepted out of {} sent", self.count)));
        }
        Ok(())
    }
}
