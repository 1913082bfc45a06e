//! Mailchimp: keeps a contact in an audience for every user that has an e-mail address, and deletes it permanently when the user
//! is erased.
//!
//! Mailchimp identifies contacts by address. At an erasure we no longer know the address, nor the previous one after a
//! change. So we remember the contact's own id: `contact_id`, which survives a change of address and reveals nothing
//! about a person. Before Mailchimp creates a contact, this id does not exist yet. Until then we remember the MD5 of the
//! address, by which Mailchimp can also find the contact. A crash between Mailchimp's answer and our next write therefore
//! cannot lose the contact. The order is always: remember first, then act.
//!
//! A contact cannot move to an address that already has one. Then the user gets the contact of the new address and leaves
//! the old one. The old one is archived, which can be undone. It is not deleted permanently, because that blocks its
//! address for all users. So a user may have several contacts, and all of them are remembered for the erasure (module
//! `contacts`). A contact whose address now belongs to another user goes to that user. A contact that existed before its
//! user was added loses clerk-sync's data but stays.
//!
//! The merge field of a contact names the user that it belongs to. If it names another user, clerk-sync's own table decides: a
//! user that does not have the address there, or is about to be erased, takes no contact from another user.
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

/// The longest text in a merge field, in characters.
const LONGEST_TEXT: usize = 255;

/// The fields of a contact that we request.
const CONTACT_FIELDS: (&str, &str) = ("fields", "id,contact_id,email_address,status,merge_fields");

/// The status of an archived member; clerk-sync or the operator may have archived it.
const ARCHIVED: &str = "archived";

/// The status of a member that wants no mail.
const UNSUBSCRIBED: &str = "unsubscribed";

/// The status of a member whose address cannot receive mail.
const CLEANED: &str = "cleaned";

/// An audience.
pub struct Mailchimp {
    pub outbound: Outbound,
    /// The base URL of the Marketing API, without `/3.0`.
    pub url: Url,
    pub api_key: SecretString,
    /// The audience's id.
    pub list_id: String,
    /// The status of a new contact.
    pub status_if_new: String,
    /// Tags for users that have just signed up.
    pub tags: Vec<String>,
    /// The merge field that names the contact's user.
    pub clerk_id_merge_field: String,
    pub timeout: Duration,
}

/// A contact as Mailchimp returns it.
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

    /// Creates a contact with a random address in the domain that the audience's own mail comes from, because Mailchimp refuses
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
        // A message without the `email` field does not mean that the user has no address.
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
                // The user has left the old address, whether or not Mailchimp takes the new one.
                if refusal.again == Again::Never && person.moves {
                    person.leave(0).await?;
                }
                Err(refusal)
            }
        }
    }

    /// Find a contact by its `contact_id` or the MD5 of its address.
    async fn contact(&self, name: &str) -> Result<Option<Contact>, Refusal> {
        let contact = self.find(name).await?;
        if contact.is_none() {
            // A missing audience gives the same answer, and must not look like a missing contact.
            self.check_audience().await?;
        }
        Ok(contact)
    }

    /// Like [`contact`](Self::contact), where a missing contact leads to no conclusion.
    async fn find(&self, name: &str) -> Result<Option<Contact>, Refusal> {
        let request = self.request(Method::GET, &["members", name], &[CONTACT_FIELDS]);
        self.outbound.send(request).await?.found()?.map(|answer| answer.json()).transpose()
    }

    /// Create or update the contact of this address.
    async fn put(&self, message: &Message, address: &str, status_if_new: &str) -> Result<Contact, Refusal> {
        let body = json!({
            "email_address": address,
            "status_if_new": status_if_new,
            "merge_fields": self.merge_fields(message),
        });
        self.write(Method::PUT, &subscriber_hash(address), &body).await
    }

    /// Update a contact.
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

    /// The user that the contact's merge field names.
    fn owner<'a>(&self, contact: &'a Contact) -> Option<&'a str> {
        let owner = contact.merge_fields.get(&self.clerk_id_merge_field).and_then(Value::as_str);
        owner.map(str::trim).filter(|owner| !owner.is_empty())
    }

    /// Clear what we wrote to a contact, and set the user that it now belongs to.
    async fn hand_over(&self, contact: &Contact, message: &Message, to: &str) -> Result<(), Refusal> {
        let mut fields = Map::from_iter([(self.clerk_id_merge_field.clone(), json!(to))]);
        for name in ["FNAME", "LNAME"] {
            // A deletion message contains no names, and an erased user must leave none.
            if message.kind.is_deletion() || self.merge_fields(message).contains_key(name) {
                fields.insert(name.to_owned(), json!(""));
            }
        }
        self.patch(contact, &fields, None, None).await.map(drop)
    }

    /// Tag a user that has just signed up.
    async fn tag(&self, message: &Message, contact: &Contact) -> Result<(), Refusal> {
        if message.kind.what != Happened::Created || self.tags.is_empty() {
            return Ok(());
        }
        let tags: Vec<Value> =
            self.tags.iter().map(|name| json!({ "name": name, "status": "active" })).collect();
        let request = self.request(Method::POST, &["members", &contact.id, "tags"], &[]);
        self.outbound.send(with_json(request, &json!({ "tags": tags }))).await?.taken().map(drop)
    }

    /// Archive a contact, which can be undone.
    async fn archive(&self, contact: &Contact) -> Result<(), Refusal> {
        let request = self.request(Method::DELETE, &["members", &contact.id], &[]);
        self.outbound.send(request).await?.found().map(drop)
    }

    /// Delete permanently: Mailchimp does not accept this address from us again.
    async fn delete(&self, contact: &Contact) -> Result<(), Refusal> {
        let path = ["members", &contact.id, "actions", "delete-permanent"];
        self.outbound.send(self.request(Method::POST, &path, &[])).await?.found().map(drop)
    }

    /// Check the key, the audience, and its merge field; returns the domain that the audience's mail comes from.
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

    /// Includes names only if the message contains them, so that fields withheld from the sink stay unchanged.
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

    /// A request for the audience or a part of it.
    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = under(&self.url, &[&["3.0", "lists", &self.list_id], path].concat());
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        // Mailchimp accepts any user name.
        self.outbound
            .client()
            .request(method, url)
            .basic_auth("clerk-sync", Some(self.api_key.expose_secret()))
    }
}

/// Do not require the merge fields that the operator made mandatory for sign-up forms.
const SKIP_VALIDATION: (&str, &str) = ("skip_merge_validation", "true");

/// Mailchimp's id of a contact, derived from its address.
fn subscriber_hash(address: &str) -> String {
    hex::encode(Md5::digest(address.trim().to_lowercase()))
}

/// Like [`Answer::taken`], but explains the refusals that operators meet.
fn taken(answer: Answer) -> Result<Answer, Refusal> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let mut refusal = answer.refusal();
    if refusal.again == Again::Never {
        // Titles come from a fixed list; the details next to them contain the address.
        let explanation = match answer.json::<Value>().unwrap_or_default()["title"].as_str() {
            Some("Forgotten Email Not Subscribed") => {
                "this address was permanently deleted before, and only its owner can restore it, through a Mailchimp form"
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
        // The example from Mailchimp's documentation.
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
