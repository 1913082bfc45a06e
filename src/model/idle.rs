//! What is asked of the database while nothing happens.

/// `IDLE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Idle {
    /// From time to time, for what nobody told us of.
    #[default]
    Normal,
    /// Nothing, so that a database that sleeps when nobody asks it can sleep.
    Quiet,
}

impl Idle {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Quiet];

    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The one of this public name.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}
