//! How often the database is queried when there is nothing to do.

/// `IDLE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Idle {
    /// From time to time, for work that no notification announced.
    #[default]
    Normal,
    /// Only once a day, so that a serverless database can sleep.
    Quiet,
}

impl Idle {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Quiet];

    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The value with this public name.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}
