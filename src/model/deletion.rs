//! What becomes of the row of a deleted user.

/// `DELETION_POLICY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Delete the row; anonymise it where a constraint of the application forbids that.
    #[default]
    Auto,
    /// Delete the row, and keep trying where a constraint forbids it.
    Delete,
    /// Always anonymise.
    Anonymize,
}
