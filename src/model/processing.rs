//! Whether webhooks are applied at once or queued first.

/// `PROCESSING`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Processing {
    /// A webhook is applied first; the answer contains the outcome.
    #[default]
    Inline,
    /// A webhook is queued; the answer says so, and a worker applies it later.
    Queue,
}

impl Processing {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Inline, Self::Queue];

    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The value with this public name.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}
