//! A handle to the organizations of a fake and to their memberships: what happens to them while it serves.

use serde_json::Value;

use super::state::Shared;

/// The organizations of a fake, and the memberships in them. Clones are the same organizations.
#[derive(Clone)]
pub struct Organizations(pub(super) Shared);

impl Organizations {
    /// Add an organization, or replace the one with its id. It is shown as it is given; what has no `created_at` in
    /// unix milliseconds is the oldest.
    ///
    /// # Panics
    ///
    /// If it has no `id`.
    pub fn put(&self, organization: Value) {
        self.0.lock().put_organization(organization);
    }

    /// The organization goes, and all memberships in it with it. Gives what went, or `None` if there is no such one.
    pub fn remove(&self, id: &str) -> Option<Value> {
        self.0.lock().remove_organization(id)
    }

    /// As the Backend API shows the organization.
    pub fn get(&self, id: &str) -> Option<Value> {
        self.0.lock().find_organization(id)
    }

    /// The ids of all organizations, in the order of creation.
    pub fn ids(&self) -> Vec<String> {
        self.0.lock().organizations.ids()
    }

    /// Add a membership, or replace the one with its id. Whose it is says `public_user_data.user_id`, and in what
    /// `organization.id`; it is shown with that user and that organization as they are then, or as it is given where
    /// there are none. Two of one user in one organization are kept, which Clerk would not do.
    ///
    /// # Panics
    ///
    /// If it has no `id`.
    pub fn put_membership(&self, membership: Value) {
        self.0.lock().put_membership(membership);
    }

    /// The membership goes. Gives what went, or `None` if there is no such one.
    pub fn remove_membership(&self, id: &str) -> Option<Value> {
        self.0.lock().remove_membership(id)
    }

    /// As the Backend API shows the membership.
    pub fn membership(&self, id: &str) -> Option<Value> {
        self.0.lock().find_membership(id)
    }

    /// The ids of all memberships, in the order of creation.
    pub fn membership_ids(&self) -> Vec<String> {
        self.0.lock().memberships.ids()
    }
}
