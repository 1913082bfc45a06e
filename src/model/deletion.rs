//! What happens to a user's row when Clerk deletes the user.

/// `DELETION_POLICY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum DeletionPolicy {
    /// Delete the row, or anonymise it if the application's data still references it.
    #[default]
    Auto,
    /// Delete the row, and keep retrying if the database refuses.
    Delete,
    /// Always keep the row, without anything that identifies the person.
    Anonymize,
}

impl DeletionPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Delete, Self::Anonymize];

    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The policy with this public name.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}
