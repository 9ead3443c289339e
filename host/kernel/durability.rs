//! What an acknowledged write of an embedded store survives.

use std::fmt;

/// Whether a store syncs to disk before it acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Synced to disk before the acknowledgement: survives a power failure.
    #[default]
    Sync,
    /// Handed to the operating system: survives the end of this process, however sudden, but no power failure.
    Os,
}

impl Durability {
    /// Every choice, the default first.
    pub const ALL: [Self; 2] = [Self::Sync, Self::Os];

    /// The spelling of flags and of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Os => "os",
        }
    }

    /// Reads that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|durability| durability.as_str() == text)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
