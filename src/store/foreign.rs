//! What both keepers share of reading a table that is not ours.

use super::{ForeignReading, StoreError, Trouble};

/// The same trouble, named if it can only come from the condition that the user wrote.
pub(super) fn explained(error: StoreError, reading: &ForeignReading) -> StoreError {
    let ours = !matches!(error.trouble, Trouble::Broken | Trouble::BadData | Trouble::Refused);
    if ours || reading.condition.is_none() {
        return error;
    }
    StoreError::schema(format!(
        "--deleted-when: the database refuses this condition on {} ({}): write what may stand behind WHERE, such as \
         \"status = 'deleted'\", with a column's name in double quotes if it has capital letters",
        reading.table,
        error.kind()
    ))
}
