//! `sample`: prints events as Clerk sends them.

use chrono::Utc;
use clap::Args;

use super::{Failure, random_id, say, signing_secret};
use crate::{
    clerk::sample,
    config::Settings,
    entity::{ORGANIZATION, USER},
    model::{ClerkId, Entity, MAX_ID_BYTES},
};

/// The URL of a service with these settings on this machine.
pub(super) fn default_url(settings: &Settings) -> String {
    let port = settings.get("PORT").unwrap_or("8080");
    format!("http://127.0.0.1:{port}/webhooks/clerk")
}

/// Print a sample event, or a curl command with a fresh signature
#[derive(Args)]
pub(super) struct Sample {
    #[command(flatten)]
    event: SampleEvent,

    /// Print a curl command, signed with the first signing secret
    #[arg(long)]
    curl: bool,

    /// Where the curl command posts to [default: /webhooks/clerk on this machine, at PORT]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// The event to create.
#[derive(Args)]
pub(super) struct SampleEvent {
    /// The type of the event
    #[arg(value_name = "TYPE", value_parser = clap::builder::PossibleValuesParser::new(sample::types()))]
    pub(super) event_type: String,

    /// The user it is about; an organization and a membership get the end of its id [default: a new id]
    #[arg(long, value_name = "ID", value_parser = |text: &str| any_id(&USER, text))]
    user_id: Option<ClerkId>,

    /// The organization it is about or belongs to, so that several users can be members of one; a membership gets the end of
    /// both ids [default: an organization with the end of the user's id]
    #[arg(long, value_name = "ID", value_parser = |text: &str| any_id(&ORGANIZATION, text))]
    organization_id: Option<ClerkId>,
}

/// Any id that clerk-sync accepts for an object of this kind, including ids that Clerk would never use.
fn any_id(entity: &'static Entity, text: &str) -> Result<ClerkId, String> {
    ClerkId::new(entity, text).ok_or_else(|| format!("expected an id of 1 to {MAX_ID_BYTES} bytes"))
}

impl SampleEvent {
    /// A body, and the id of the object that it is about.
    pub(super) fn body(&self) -> Result<(String, String), Failure> {
        let user_id = self.user_id.as_ref().map_or_else(|| random_id("user_"), ToString::to_string);
        let (event_type, now) = (&self.event_type, Utc::now());
        let body = match &self.organization_id {
            None => sample::body(event_type, &user_id, now)
                .ok_or_else(|| Failure::failed("there is no sample of this type"))?,
            Some(organization_id) => sample::body_in(organization_id.as_str(), event_type, &user_id, now)
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "--organization-id: {event_type} is about neither an organization nor something in one"
                    ))
                })?,
        };
        let event: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let id = event["data"]["id"].as_str().unwrap_or_default().to_owned();
        Ok((body, id))
    }
}

impl Sample {
    pub(super) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let (body, _) = self.event.body()?;
        if self.curl {
            let secret = signing_secret(settings)?;
            let url = self.url.unwrap_or_else(|| default_url(settings));
            say!("{}", sample::curl(&url, &random_id("msg_"), &body, &secret, Utc::now()));
        } else {
            say!("{body}");
        }
        Ok(())
    }
}
