//! The contacts of one user: the one at the user's address, and the ones that the user has left.
//!
//! We remember them as a list with the present contact first. Each has a mark:
//!
//! - none: the contact is the user's own;
//! - `+status`: it existed before the user was added, and had that status;
//! - `-status`: it had that status, and must be archived;
//! - `=status`: it had that status, and has been left (archived, unless it gets no mail anyway).
//!
//! Each step can be repeated: wherever a delivery breaks off, the next one finds the remaining steps.

use super::{
    ARCHIVED, Again, CLEANED, Contact, Mailchimp, Memory, Message, Refusal, UNSUBSCRIBED, subscriber_hash,
};

/// A user as the sink remembers them.
pub(super) struct Person<'a> {
    sink: &'a Mailchimp,
    message: &'a Message,
    memory: &'a dyn Memory,
    clerk_id: &'a str,
    contacts: Vec<Known>,
    /// The list as stored.
    kept: String,
    /// Whether the user has unsubscribed, judging by the contacts.
    opted_out: bool,
    /// Whether the message moves the user to another address.
    pub(super) moves: bool,
}

/// A remembered contact.
struct Known {
    /// Its `contact_id`, or the MD5 of its address until we know the id.
    name: String,
    mark: Mark,
}

#[derive(Clone, PartialEq, Eq)]
enum Mark {
    Own,
    /// The contact existed before with this status, and belonged to no user.
    Found(String),
    /// The contact had this status, and must be archived.
    Leaving(String),
    /// The contact had this status when the user left it.
    Left(String),
}

impl<'a> Person<'a> {
    pub(super) async fn recall(
        sink: &'a Mailchimp,
        message: &'a Message,
        memory: &'a dyn Memory,
    ) -> Result<Self, Refusal> {
        let kept = memory.recall().await?.unwrap_or_default();
        let contacts = kept.split_whitespace().map(Known::parse).collect();
        let clerk_id = message.text("clerk_id").unwrap_or_default();
        Ok(Self { sink, message, memory, clerk_id, contacts, kept, opted_out: false, moves: false })
    }

    /// Store the list if it has changed.
    async fn keep(&mut self) -> Result<(), Refusal> {
        let text = self.contacts.iter().map(Known::text).collect::<Vec<_>>().join(" ");
        if text != self.kept {
            self.memory.keep(&text).await?;
            self.kept = text;
        }
        Ok(())
    }

    /// Move the user to the contact of this address; `None` if the address belongs to another user.
    pub(super) async fn settle(&mut self, address: &str) -> Result<Option<Contact>, Refusal> {
        let hash = subscriber_hash(address);
        self.opted_out = self.contacts.iter().any(|known| known.mark.status() == Some(UNSUBSCRIBED));
        let present = if self.contacts.is_empty() { None } else { self.look(0).await? };
        if let Some(contact) = &present {
            if contact.id == hash || contact.email_address.eq_ignore_ascii_case(address) {
                return self.bring(contact, None).await.map(Some);
            }
            self.moves = true;
            if !self.contacts[0].mark.is_found() {
                match self.bring(contact, Some(address)).await {
                    // A contact cannot move to an address that has one.
                    Err(Refusal { again: Again::Never, reason }) => {
                        let Some(there) = self.sink.find(&hash).await? else {
                            return Err(Refusal { again: Again::Never, reason });
                        };
                        return self.take(there, address, present.as_ref()).await;
                    }
                    result => return result.map(Some),
                }
            }
        }
        self.moves = true;
        match self.sink.find(&hash).await? {
            Some(there) => self.take(there, address, present.as_ref()).await,
            None => self.make(address, hash, present.as_ref()).await.map(Some),
        }
    }

    /// The contact at this place of the list; `None` if it is gone or belongs to another user.
    async fn look(&mut self, place: usize) -> Result<Option<Contact>, Refusal> {
        let Known { name, mark } = &self.contacts[place];
        let Some(contact) = self.sink.contact(name).await? else { return Ok(None) };
        let by_address = contact.contact_id != *name;
        let is_theirs = match self.sink.owner(&contact) {
            Some(owner) => owner == self.clerk_id,
            None => !by_address && !mark.is_found(),
        };
        // This also counts if another user has taken the contact: a user that wants no mail must not get any because of that.
        let unsubscribed = contact.status == UNSUBSCRIBED && *mark != Mark::Found(UNSUBSCRIBED.to_owned());
        self.opted_out |= place == 0 && !by_address && unsubscribed;
        if !is_theirs {
            return Ok(None);
        }
        if by_address {
            contact.contact_id.clone_into(&mut self.contacts[place].name);
            self.keep().await?;
        }
        Ok(Some(contact))
    }

    /// Update the present contact, including its address if that has changed.
    async fn bring(&mut self, contact: &Contact, address: Option<&str>) -> Result<Contact, Refusal> {
        let status = match &self.contacts[0].mark {
            _ if contact.status != ARCHIVED => None,
            Mark::Left(status) | Mark::Leaving(status) => self.back(status),
            // Archived by the operator, or by us before we recorded it.
            Mark::Own | Mark::Found(_) => {
                let has_moved = self.message.changed_fields.iter().any(|field| field == "email");
                has_moved.then(|| self.back(&self.sink.status_if_new)).flatten()
            }
        };
        let contact = self.change(contact, address, status.as_deref()).await?;
        self.is_present(&contact).await?;
        Ok(contact)
    }

    /// Take over the existing contact of the address, in place of the present one.
    async fn take(
        &mut self,
        there: Contact,
        address: &str,
        present: Option<&Contact>,
    ) -> Result<Option<Contact>, Refusal> {
        let owner = self.sink.owner(&there);
        let of_another = owner.is_some_and(|owner| owner != self.clerk_id);
        if of_another && !self.memory.holders(address).await?.iter().any(|holder| holder == self.clerk_id) {
            // The message is out of date, or its user is about to be erased.
            return Ok(None);
        }
        let names = [&there.contact_id, &there.id];
        let listed = self.contacts.iter().position(|known| names.contains(&&known.name));
        let is_new = listed.is_none_or(|place| self.contacts[place].name == there.id);
        let known = if let Some(place) = listed {
            self.contacts.remove(place)
        } else {
            // A user without a contact owns the one at their address.
            let is_free = owner.is_none() && there.status != ARCHIVED && present.is_some();
            let mark = if is_free { Mark::Found(there.status.clone()) } else { Mark::Own };
            Known { name: there.id.clone(), mark }
        };
        let status = if there.status == ARCHIVED {
            match (&known.mark, present.map(|contact| contact.status.as_str())) {
                (Mark::Left(status) | Mark::Leaving(status), _) => self.back(status),
                (_, Some(status @ ("subscribed" | "transactional"))) => self.back(status),
                _ => self.back(&self.sink.status_if_new),
            }
        } else {
            // A previous user's consent to mail does not carry over.
            let unsubscribes = owner.is_some() && is_new && self.opted_out && there.status != CLEANED;
            unsubscribes.then(|| UNSUBSCRIBED.to_owned())
        };
        self.note_status(present);
        self.contacts.insert(0, known);
        self.keep().await?;
        let contact = self.change(&there, None, status.as_deref()).await?;
        self.is_present(&contact).await?;
        Ok(Some(contact))
    }

    /// Record the status of the present contact before the user leaves it: later it is unknown.
    fn note_status(&mut self, present: Option<&Contact>) {
        let status = match present {
            _ if self.opted_out => UNSUBSCRIBED,
            Some(contact) if contact.status != ARCHIVED => &contact.status,
            _ => return,
        };
        if let Some(known) = self.contacts.first_mut().filter(|known| known.mark == Mark::Own) {
            known.mark = Mark::Leaving(status.to_owned());
        }
    }

    /// Create the contact of an address that has none.
    async fn make(
        &mut self,
        address: &str,
        hash: String,
        present: Option<&Contact>,
    ) -> Result<Contact, Refusal> {
        if self.contacts.first().is_none_or(|known| known.name != hash) {
            self.note_status(present);
            self.contacts.insert(0, Known { name: hash, mark: Mark::Own });
        }
        self.keep().await?;
        let status = if self.opted_out { UNSUBSCRIBED } else { &self.sink.status_if_new };
        let contact = self.sink.put(self.message, address, status).await?;
        self.is_present(&contact).await?;
        Ok(contact)
    }

    /// The new status of an archived contact that had this status; `None` if it stays archived.
    fn back(&self, status: &str) -> Option<String> {
        let status = if self.opted_out { UNSUBSCRIBED } else { status };
        (status != ARCHIVED).then(|| status.to_owned())
    }

    async fn change(
        &self,
        contact: &Contact,
        address: Option<&str>,
        status: Option<&str>,
    ) -> Result<Contact, Refusal> {
        let fields = self.sink.merge_fields(self.message);
        match self.sink.patch(contact, &fields, address, status).await {
            // Mailchimp does not let us resubscribe a contact that has unsubscribed through Mailchimp.
            Err(Refusal { again: Again::Never, .. }) if status.is_some() => {
                self.sink.patch(contact, &fields, address, None).await
            }
            result => result,
        }
    }

    /// Record that the first contact of the list is this one, and that the user is there.
    async fn is_present(&mut self, contact: &Contact) -> Result<(), Refusal> {
        let known = &mut self.contacts[0];
        contact.contact_id.clone_into(&mut known.name);
        if !known.mark.is_found() {
            known.mark = Mark::Own;
        }
        self.keep().await
    }

    /// Leave all contacts from this place of the list on that belong to the user.
    pub(super) async fn leave(&mut self, from: usize) -> Result<(), Refusal> {
        let mut place = from;
        while let Some(known) = self.contacts.get(place) {
            if matches!(known.mark, Mark::Left(_)) {
                place += 1;
                continue;
            }
            let stays = match self.look(place).await? {
                Some(contact) => self.leave_one(place, &contact).await?,
                None => false,
            };
            if stays {
                place += 1;
            } else {
                self.contacts.remove(place);
                self.keep().await?;
            }
        }
        Ok(())
    }

    /// Leave a contact; returns whether it still belongs to the user and must be remembered.
    async fn leave_one(&mut self, place: usize, contact: &Contact) -> Result<bool, Refusal> {
        if let Some(other) = self.other_holder(contact).await? {
            self.sink.hand_over(contact, self.message, &other).await?;
            return Ok(false);
        }
        let mark = &self.contacts[place].mark;
        if mark.is_found() {
            self.sink.hand_over(contact, self.message, "").await?;
            return Ok(false);
        }
        let status =
            mark.status().filter(|_| contact.status == ARCHIVED).unwrap_or(&contact.status).to_owned();
        // A contact that gets no mail need not be archived; archiving would hide that it wants none.
        if ![ARCHIVED, UNSUBSCRIBED, CLEANED].contains(&contact.status.as_str()) {
            self.contacts[place].mark = Mark::Leaving(status.clone());
            self.keep().await?;
            self.sink.archive(contact).await?;
        }
        self.contacts[place].mark = Mark::Left(status);
        self.keep().await?;
        Ok(true)
    }

    /// Remove the user's data from all contacts.
    pub(super) async fn erase(&mut self) -> Result<(), Refusal> {
        for place in 0..self.contacts.len() {
            let Some(contact) = self.look(place).await? else { continue };
            if let Some(other) = self.other_holder(&contact).await? {
                self.sink.hand_over(&contact, self.message, &other).await?;
            } else if place > 0 && self.contacts[place].mark.is_found() {
                self.sink.hand_over(&contact, self.message, "").await?;
            } else {
                self.sink.delete(&contact).await?;
            }
        }
        Ok(())
    }

    /// Another user that has this contact's address now.
    async fn other_holder(&self, contact: &Contact) -> Result<Option<String>, Refusal> {
        let holders = self.memory.holders(&contact.email_address).await?;
        Ok(holders.into_iter().find(|holder| holder != self.clerk_id))
    }
}

impl Known {
    fn parse(text: &str) -> Self {
        let (name, mark) = text.split_at(text.find(['+', '-', '=']).unwrap_or(text.len()));
        let status = || mark[1..].to_owned();
        let mark = match mark.chars().next() {
            None => Mark::Own,
            Some('-') => Mark::Leaving(status()),
            Some('=') => Mark::Left(status()),
            Some(_) => Mark::Found(status()),
        };
        Self { name: name.to_owned(), mark }
    }

    fn text(&self) -> String {
        let name = &self.name;
        match &self.mark {
            Mark::Own => name.clone(),
            Mark::Found(status) => format!("{name}+{status}"),
            Mark::Leaving(status) => format!("{name}-{status}"),
            Mark::Left(status) => format!("{name}={status}"),
        }
    }
}

impl Mark {
    fn is_found(&self) -> bool {
        matches!(self, Self::Found(_))
    }

    fn status(&self) -> Option<&str> {
        match self {
            Self::Own | Self::Found(_) => None,
            Self::Leaving(status) | Self::Left(status) => Some(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_can_be_read_again_also_as_the_first_version_wrote_it() {
        for text in
            ["c0ffee", "c0ffee+subscribed beef=subscribed", "c0ffee-transactional beef=unsubscribed f00d"]
        {
            let known: Vec<Known> = text.split_whitespace().map(Known::parse).collect();
            assert_eq!(known.iter().map(Known::text).collect::<Vec<_>>().join(" "), text);
        }
    }
}
