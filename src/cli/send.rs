//! `send`: post signed sample events to a running service.

use chrono::Utc;
use clap::Args;

use super::{
    Failure,
    post::Poster,
    random_id,
    sample::{DEFAULT_URL, SampleEvent},
    say, signing_secret,
};
use crate::config::Settings;

/// Post signed sample events
#[derive(Args)]
pub(super) struct Send {
    #[command(flatten)]
    event: SampleEvent,

    /// Where to
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: String,

    /// How many, each about a new user unless --user-id is given
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,
}

impl Send {
    pub(super) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let poster = Poster::new(self.url, signing_secret(settings)?)?;
        let mut refused = 0_u32;
        for _ in 0..self.count {
            let (body, user_id) = self.event.body()?;
            let svix_id = random_id("msg_");
            let answer = poster.post(&svix_id, &body, Utc::now()).await?;
            say!(
                "{}  {:<10}  {}  {svix_id}  {user_id}",
                answer.status.as_u16(),
                answer.word,
                self.event.event_type
            );
            refused += u32::from(!answer.status.is_success());
        }
        if refused > 0 {
            return Err(Failure::failed(format!("{refused} of {} were refused", self.count)));
        }
        Ok(())
    }
}
