//! Whether webhooks are applied at once, or stored first.

/// `PROCESSING`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Processing {
    /// The answer to a webhook says what became of it.
    #[default]
    Inline,
    /// The answer says that it is stored; what becomes of it is seen to afterwards.
    Queue,
}

impl Processing {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inline, Self::Queue];

    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The one of this public name.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}
