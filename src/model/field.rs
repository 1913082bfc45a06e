//! The allow-list: which of Clerk's fields may exist in our database at all.

/// A field of a Clerk user that can be synced. Its name is the column's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Field {
    Email,
    EmailVerified,
    FirstName,
    LastName,
    ImageUrl,
    Username,
    PhoneNumber,
    ExternalId,
    PublicMetadata,
    UnsafeMetadata,
    PrivateMetadata,
    Banned,
    Locked,
    LastSignInAt,
    LastActiveAt,
}

impl Field {
    /// Every field, in the order of the columns.
    pub const ALL: [Self; 15] = [
        Self::Email,
        Self::EmailVerified,
        Self::FirstName,
        Self::LastName,
        Self::ImageUrl,
        Self::Username,
        Self::PhoneNumber,
        Self::ExternalId,
        Self::PublicMetadata,
        Self::UnsafeMetadata,
        Self::PrivateMetadata,
        Self::Banned,
        Self::Locked,
        Self::LastSignInAt,
        Self::LastActiveAt,
    ];

    /// The public name: in `SYNC_FIELDS`, as a column, in `audit_log.changed_fields`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::EmailVerified => "email_verified",
            Self::FirstName => "first_name",
            Self::LastName => "last_name",
            Self::ImageUrl => "image_url",
            Self::Username => "username",
            Self::PhoneNumber => "phone_number",
            Self::ExternalId => "external_id",
            Self::PublicMetadata => "public_metadata",
            Self::UnsafeMetadata => "unsafe_metadata",
            Self::PrivateMetadata => "private_metadata",
            Self::Banned => "banned",
            Self::Locked => "locked",
            Self::LastSignInAt => "last_sign_in_at",
            Self::LastActiveAt => "last_active_at",
        }
    }

    /// Whether it moves at Clerk without an event, only because somebody is there.
    pub fn moves_by_itself(self) -> bool {
        self == Self::LastActiveAt
    }

    /// The field of this public name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// A set of fields: the allow-list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSet([bool; Field::ALL.len()]);

impl FieldSet {
    /// Every field there is.
    pub const ALL: Self = Self([true; Field::ALL.len()]);

    /// Whether `field` may be synced.
    pub fn contains(&self, field: Field) -> bool {
        self.0[field as usize]
    }

    /// The fields of the set, in the order of the columns.
    pub fn iter(&self) -> impl Iterator<Item = Field> + '_ {
        Field::ALL.into_iter().filter(|field| self.contains(*field))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        let mut set = [false; Field::ALL.len()];
        for field in fields {
            set[field as usize] = true;
        }
        Self(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_stands_at_its_own_place_and_answers_to_its_name() {
        for (place, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!(field as usize, place);
            assert_eq!(Field::named(field.name()), Some(field));
        }
        assert_eq!(Field::named("Email"), None);
    }
}
