//! A handle to the organizations and memberships of a fake, to change them while it serves.

use serde_json::Value;

use super::state::Shared;

/// The organizations of a fake and their memberships. Clones share the same organizations.
#[derive(Clone)]
pub struct Organizations(pub(super) Shared);

impl Organizations {
    /// Add an organization, or replace the one with its id. It is shown unchanged; without `created_at` in Unix milliseconds, it
    /// counts as the oldest.
    ///
    /// # Panics
    ///
    /// If it has no `id`.
    pub fn put(&self, organization: Value) {
        self.0.lock().put_organization(organization);
    }

    /// Remove an organization and all its memberships. Returns the organization, or `None` if it does not exist.
    pub fn remove(&self, id: &str) -> Option<Value> {
        self.0.lock().remove_organization(id)
    }

    /// The organization as the Backend API shows it.
    pub fn get(&self, id: &str) -> Option<Value> {
        self.0.lock().find_organization(id)
    }

    /// The ids of all organizations in order of creation.
    pub fn ids(&self) -> Vec<String> {
        self.0.lock().organizations.ids()
    }

    /// Add a membership, or replace the one with its id. `public_user_data.user_id` names its user, and `organization.id` its
    /// organization. It is shown with the current state of both, or unchanged where they do not exist. Unlike Clerk, the fake
    /// allows two memberships of one user in one organization.
    ///
    /// # Panics
    ///
    /// If it has no `id`.
    pub fn put_membership(&self, membership: Value) {
        self.0.lock().put_membership(membership);
    }

    /// Remove a membership. Returns it, or `None` if it does not exist.
    pub fn remove_membership(&self, id: &str) -> Option<Value> {
        self.0.lock().remove_membership(id)
    }

    /// The membership as the Backend API shows it.
    pub fn membership(&self, id: &str) -> Option<Value> {
        self.0.lock().find_membership(id)
    }

    /// The ids of all memberships in order of creation.
    pub fn membership_ids(&self) -> Vec<String> {
        self.0.lock().memberships.ids()
    }
}
