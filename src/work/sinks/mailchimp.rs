//! Mailchimp: a contact in an audience for every user that has an e-mail address, and its permanent deletion when the user
//! is erased.
//!
//! Mailchimp knows people by their address, and we do not know the address any more when somebody is erased, nor the one
//! before when it has changed. So the contact's own id is remembered: `contact_id`, which stays the same when the
//! address changes and tells nothing about anybody. Before a contact is first made there is no such id yet; what is
//! remembered for that moment is the MD5 of the address, the name that Mailchimp itself will find it by, so that a
//! crash between Mailchimp's answer and our next write cannot lose a contact. The order is always: remember, then do.
//!
//! A contact cannot move to an address that has one already. Then the user takes that one, and leaves the old one: it is
//! archived, which can be undone, and never deleted for good, which burns its address for everybody. So a user may have
//! several contacts, and all of them are remembered for the erasure (module `contacts`). A contact is left to another user who
//! has its address by now, and one that was there before its user came is given back.
//!
//! Whose an address is, is told by the merge field of its contact. If that names another user, our own table decides:
//! who does not have the address there, or is about to be erased, takes no contact from anybody.
//!
//! Source: <https://mailchimp.com/developer/marketing/api/list-members/>,
//! <https://mailchimp.com/developer/marketing/docs/errors/>.

mod contacts;

use std::time::Duration;

use async_trait::async_trait;
use md5::{Digest, Md5};
use reqwest::{Method, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use self::contacts::Person;
use super::{
    Again, InMemory, Memory, Outbound, Refusal, Sink,
    outbound::{Answer, under, unintelligible, with_json, within},
};
use crate::model::{Happened, Message, MessageType};

/// The longest text that a merge field takes, in characters.
const LONGEST_TEXT: usize = 255;

/// What we want to know of a contact.
const CONTACT_FIELDS: (&str, &str) = ("fields", "id,contact_id,email_address,status,merge_fields");

/// What a member is who was archived, by us or by the operator.
const ARCHIVED: &str = "archived";

/// What a member is who wants no mail.
const UNSUBSCRIBED: &str = "unsubscribed";

/// What a member is whose address takes no mail.
const CLEANED: &str = "cleaned";

/// An audience.
pub struct Mailchimp {
    pub outbound: Outbound,
    /// Where the Marketing API is, without `/3.0`.
    pub url: Url,
    pub api_key: SecretString,
    /// The audience's id.
    pub list_id: String,
    /// What a contact becomes that was not there before.
    pub status_if_new: String,
    /// Tags for whoever signs up.
    pub tags: Vec<String>,
    /// The merge field that says whose contact it is.
    pub clerk_id_merge_field: String,
    pub timeout: Duration,
}

/// A contact as Mailchimp shows it.
#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are Mailchimp's own")]
struct Contact {
    /// The MD5 of the address.
    id: String,
    contact_id: String,
    email_address: String,
    status: String,
    #[serde(default)]
    merge_fields: Map<String, Value>,
}

#[async_trait]
impl Sink for Mailchimp {
    async fn deliver(&self, message: &Message, _: &str, memory: &dyn Memory) -> Result<(), Refusal> {
        within(self.timeout, async {
            match message.kind.what {
                Happened::Created | Happened::Updated => self.update(message, memory).await,
                Happened::Deleted => Person::recall(self, message, memory).await?.erase().await,
            }
        })
        .await
    }

    /// A contact of a random address in the domain that the audience's own mail comes from, since Mailchimp refuses
    /// invented domains. No mail is sent to it.
    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        let domain = within(self.timeout, self.check()).await?;
        let mut message = message.clone();
        let address =
            format!("clerk-sync-test-{}@{domain}", message.id.replace('_', "-").to_ascii_lowercase());
        message.data.insert("email".to_owned(), json!(address));
        let memory = InMemory::default();
        let made = within(self.timeout, async {
            memory.keep(&subscriber_hash(&address)).await?;
            let contact = self.put(&message, &address, "transactional").await?;
            memory.keep(&contact.contact_id).await?;
            self.tag(&message, &contact).await
        })
        .await;
        let deletion = Message { kind: MessageType::deleted(message.kind.entity), ..message };
        let removed = self.deliver(&deletion, body, &memory).await;
        made.and(removed)?;
        Ok(Vec::new())
    }
}

impl Mailchimp {
    async fn update(&self, message: &Message, memory: &dyn Memory) -> Result<(), Refusal> {
        // To say nothing of the address is not to say that there is none.
        if !message.data.contains_key("email") {
            return Ok(());
        }
        let mut person = Person::recall(self, message, memory).await?;
        let Some(address) = message.text("email").filter(|address| !address.is_empty()) else {
            return person.leave(0).await;
        };
        match person.settle(address).await {
            Ok(Some(contact)) => {
                person.leave(1).await?;
                self.tag(message, &contact).await
            }
            Ok(None) => Ok(()),
            Err(refusal) => {
                // They have left the old address, whether or not Mailchimp takes the new one.
                if refusal.again == Again::Never && person.moves {
                    person.leave(0).await?;
                }
                Err(refusal)
            }
        }
    }

    /// The contact with this `contact_id` or MD5 of an address.
    async fn contact(&self, name: &str) -> Result<Option<Contact>, Refusal> {
        let contact = self.find(name).await?;
        if contact.is_none() {
            // An audience that is not there answers the same, and must not look like a person who is not there.
            self.check_audience().await?;
        }
        Ok(contact)
    }

    /// The same where nothing is concluded from its absence.
    async fn find(&self, name: &str) -> Result<Option<Contact>, Refusal> {
        let request = self.request(Method::GET, &["members", name], &[CONTACT_FIELDS]);
        self.outbound.send(request).await?.found()?.map(|answer| answer.json()).transpose()
    }

    /// Make the contact of this address.
    async fn put(&self, message: &Message, address: &str, status_if_new: &str) -> Result<Contact, Refusal> {
        let body = json!({
            "email_address": address,
            "status_if_new": status_if_new,
            "merge_fields": self.merge_fields(message),
        });
        self.write(Method::PUT, &subscriber_hash(address), &body).await
    }

    /// Bring a contact up to date.
    async fn patch(
        &self,
        contact: &Contact,
        merge_fields: &Map<String, Value>,
        address: Option<&str>,
        status: Option<&str>,
    ) -> Result<Contact, Refusal> {
        let mut body = json!({ "merge_fields": merge_fields });
        if let Some(address) = address {
            body["email_address"] = json!(address);
        }
        if let Some(status) = status {
            body["status"] = json!(status);
        }
        self.write(Method::PATCH, &contact.id, &body).await
    }

    async fn write(&self, method: Method, name: &str, body: &Value) -> Result<Contact, Refusal> {
        let request = self.request(method, &["members", name], &[CONTACT_FIELDS, SKIP_VALIDATION]);
        taken(self.outbound.send(with_json(request, body)).await?)?.json()
    }

    /// Whose contact it says it is.
    fn owner<'a>(&self, contact: &'a Contact) -> Option<&'a str> {
        let owner = contact.merge_fields.get(&self.clerk_id_merge_field).and_then(Value::as_str);
        owner.map(str::trim).filter(|owner| !owner.is_empty())
    }

    /// Take from a contact what we wrote, and say whose it is instead.
    async fn hand_over(&self, contact: &Contact, message: &Message, to: &str) -> Result<(), Refusal> {
        let mut fields = Map::from_iter([(self.clerk_id_merge_field.clone(), json!(to))]);
        for name in ["FNAME", "LNAME"] {
            // An erasure says nothing of names, and whoever is erased leaves none.
            if message.kind.is_deletion() || self.merge_fields(message).contains_key(name) {
                fields.insert(name.to_owned(), json!(""));
            }
        }
        self.patch(contact, &fields, None, None).await.map(drop)
    }

    /// Tag somebody who has just signed up.
    async fn tag(&self, message: &Message, contact: &Contact) -> Result<(), Refusal> {
        if message.kind.what != Happened::Created || self.tags.is_empty() {
            return Ok(());
        }
        let tags: Vec<Value> =
            self.tags.iter().map(|name| json!({ "name": name, "status": "active" })).collect();
        let request = self.request(Method::POST, &["members", &contact.id, "tags"], &[]);
        self.outbound.send(with_json(request, &json!({ "tags": tags }))).await?.taken().map(drop)
    }

    /// Out of the audience, and to be had back.
    async fn archive(&self, contact: &Contact) -> Result<(), Refusal> {
        let request = self.request(Method::DELETE, &["members", &contact.id], &[]);
        self.outbound.send(request).await?.found().map(drop)
    }

    /// For good: Mailchimp will not take this address from us again.
    async fn delete(&self, contact: &Contact) -> Result<(), Refusal> {
        let path = ["members", &contact.id, "actions", "delete-permanent"];
        self.outbound.send(self.request(Method::POST, &path, &[])).await?.found().map(drop)
    }

    /// Whether the key opens the audience, and the audience has what we need; returns the domain that its mail comes from.
    async fn check(&self) -> Result<String, Refusal> {
        let domain = self.check_audience().await?;
        let query = [("fields", "merge_fields.tag"), ("count", "1000")];
        let request = self.request(Method::GET, &["merge-fields"], &query);
        let answer: Value = self.outbound.send(request).await?.taken()?.json()?;
        let fields = answer["merge_fields"].as_array().ok_or_else(unintelligible)?;
        if !fields.iter().any(|field| field["tag"] == self.clerk_id_merge_field) {
            return Err(Refusal::never(format!(
                "the audience has no merge field {}: add one of the type text (Audience, Settings, Audience fields \
                 and *|MERGE|* tags)",
                self.clerk_id_merge_field
            )));
        }
        Ok(domain)
    }

    async fn check_audience(&self) -> Result<String, Refusal> {
        let request = self.request(Method::GET, &[], &[("fields", "campaign_defaults.from_email")]);
        let answer = self.outbound.send(request).await?.found()?;
        let answer = answer.ok_or_else(|| Refusal::later("there is no audience with this list_id"))?;
        let audience: Value = answer.json()?;
        let address = audience["campaign_defaults"]["from_email"].as_str().unwrap_or_default();
        let (_, domain) = address.rsplit_once('@').ok_or_else(unintelligible)?;
        Ok(domain.to_owned())
    }

    /// Names only as far as the message tells them, so that what the sink may not have is left alone.
    fn merge_fields(&self, message: &Message) -> Map<String, Value> {
        let mut fields = Map::new();
        for (field, name) in [("FNAME", "first_name"), ("LNAME", "last_name")] {
            if message.data.contains_key(name) {
                let text: String =
                    message.text(name).unwrap_or_default().chars().take(LONGEST_TEXT).collect();
                fields.insert(field.to_owned(), json!(text));
            }
        }
        fields.insert(self.clerk_id_merge_field.clone(), json!(message.text("clerk_id").unwrap_or_default()));
        fields
    }

    /// A request about the audience, or what is in it.
    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = under(&self.url, &[&["3.0", "lists", &self.list_id], path].concat());
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        // Mailchimp takes any user name.
        self.outbound
            .client()
            .request(method, url)
            .basic_auth("clerk-sync", Some(self.api_key.expose_secret()))
    }
}

/// Merge fields that the operator requires of people who fill in a form are not required of us.
const SKIP_VALIDATION: (&str, &str) = ("skip_merge_validation", "true");

/// How Mailchimp names a contact by its address.
fn subscriber_hash(address: &str) -> String {
    hex::encode(Md5::digest(address.trim().to_lowercase()))
}

/// Like [`Answer::taken`], and says which of the refusals it was that operators meet.
fn taken(answer: Answer) -> Result<Answer, Refusal> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let mut refusal = answer.refusal();
    if refusal.again == Again::Never {
        // The titles are a fixed list; the details beside them hold the address.
        let explanation = match answer.json::<Value>().unwrap_or_default()["title"].as_str() {
            Some("Forgotten Email Not Subscribed") => {
                "this address was permanently deleted before, and only its owner can bring it back, by a form of Mailchimp's"
            }
            Some("Member In Compliance State") => {
                "this contact has unsubscribed or bounced, and keeps that status"
            }
            Some("Invalid Resource") => "Mailchimp does not accept the address or a merge field",
            _ => return Err(refusal),
        };
        refusal.reason = format!("{}: {explanation}", refusal.reason);
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;

    fn sink() -> Mailchimp {
        let time = DateTime::from_timestamp_millis(0).expect("in range");
        Mailchimp {
            outbound: Outbound::new(Arc::new(move || time)).expect("a client"),
            url: "https://us21.api.mailchimp.com".parse().expect("a URL"),
            api_key: "hunter2-us21".into(),
            list_id: "a1b2c3d4e5".to_owned(),
            status_if_new: "transactional".to_owned(),
            tags: Vec::new(),
            clerk_id_merge_field: "CLERKID".to_owned(),
            timeout: Duration::from_secs(1),
        }
    }

    fn message(data: &Value) -> Message {
        Message {
            id: "msg_1".to_owned(),
            kind: MessageType::updated(&crate::entity::USER),
            version: Message::VERSION,
            timestamp: DateTime::from_timestamp_millis(0).expect("in range"),
            data: data.as_object().expect("an object").clone(),
            changed_fields: Vec::new(),
        }
    }

    #[test]
    fn a_contact_is_named_by_the_md5_of_its_address_in_lower_case() {
        // The example of Mailchimp's own documentation.
        assert_eq!(subscriber_hash("Urist.McVankab@freddiesjokes.com"), "62eeb292278cc15f5817cb78f7790b08");
    }

    #[test]
    fn names_become_merge_fields_as_far_as_the_message_tells_them() {
        let fields = |data: Value| Value::Object(sink().merge_fields(&message(&data)));
        assert_eq!(
            fields(
                json!({ "clerk_id": "user_1", "first_name": "Ada", "last_name": null, "username": "ada" })
            ),
            json!({ "FNAME": "Ada", "LNAME": "", "CLERKID": "user_1" })
        );
        assert_eq!(fields(json!({ "clerk_id": "user_1" })), json!({ "CLERKID": "user_1" }));
        let long = "ä".repeat(300);
        let fields = fields(json!({ "clerk_id": "user_1", "first_name": long }));
        assert_eq!(fields["FNAME"].as_str().map(|text| text.chars().count()), Some(LONGEST_TEXT));
    }

    #[test]
    fn addresses_of_requests_hold_no_address_of_anybody() {
        let request =
            sink().request(Method::POST, &["members", &subscriber_hash("ada@example.com"), "tags"], &[]);
        let request = request.build().expect("a request");
        assert_eq!(
            request.url().as_str(),
            format!(
                "https://us21.api.mailchimp.com/3.0/lists/a1b2c3d4e5/members/{}/tags",
                subscriber_hash("ada@example.com")
            )
        );
    }
}
