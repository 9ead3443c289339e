//! The history of a slot: what was changed when, by whom and why. It outlives the binding, and holds no configurations and no values.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use witan_kernel::port::HistoryEntry;

use crate::binding::BindingVersion;
use crate::fault::shorten;

/// Who changes a binding, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// The name of the caller's credential, or of the coordinator for what it does by itself. May be empty.
    pub who: String,
    /// What the caller says; may be empty. At most 512 bytes are kept.
    pub reason: String,
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// A version was put in force.
    Bound,
    /// The version of before was put in force again.
    RolledBack,
    /// Nothing is bound any longer.
    Unbound,
    /// A binding by name followed the watched folder.
    Followed,
    /// A swap of a routing hook was given up, and the version of before is in force again.
    GivenUp,
    /// A candidate is tried.
    Tried,
    /// A canary answers for more keys.
    Stepped,
    /// A candidate was put in force.
    Promoted,
    /// A candidate was discarded by somebody.
    Discarded,
    /// A candidate was taken back because it exceeded its bounds.
    TakenBack,
}

impl What {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::RolledBack => "rolled_back",
            Self::Unbound => "unbound",
            Self::Followed => "followed",
            Self::GivenUp => "given_up",
            Self::Tried => "tried",
            Self::Stepped => "stepped",
            Self::Promoted => "promoted",
            Self::Discarded => "discarded",
            Self::TakenBack => "taken_back",
        }
    }
}

/// An entry of a slot's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Increases with every change of the slot.
    #[serde(skip)]
    pub number: u64,
    /// When: Unix time, milliseconds.
    pub at_ms: u64,
    /// Whose credential; empty without authentication. A coordinator's name for what it did by itself.
    pub who: String,
    /// The spelling of a [`What`].
    pub what: String,
    /// The component's digest.
    pub digest: String,
    /// The plugin's name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// "active", "shadow" or "canary".
    pub mode: String,
    /// Why, as the caller said, or what was found.
    pub reason: String,
    /// What is the case since then, in words.
    pub outcome: String,
}

impl Entry {
    /// An entry about a version.
    pub(crate) fn new(what: What, version: &BindingVersion, author: &Author) -> Self {
        let (name, number) = version.name_and_version();
        Self {
            number: 0,
            at_ms: now_ms(),
            who: shorten(&author.who),
            what: what.as_str().to_owned(),
            digest: version.digest.to_string(),
            name: name.to_owned(),
            version: number.to_owned(),
            mode: "active".to_owned(),
            reason: shorten(&author.reason),
            outcome: format!("{} answers", version.plugin),
        }
    }

    pub(crate) fn mode(self, mode: &str) -> Self {
        Self { mode: mode.to_owned(), ..self }
    }

    pub(crate) fn outcome(self, outcome: impl Into<String>) -> Self {
        Self { outcome: outcome.into(), ..self }
    }

    pub(crate) fn encode(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// An entry as it is stored. What cannot be read was written by a newer program; its number is shown all the same.
    pub(crate) fn read(stored: &HistoryEntry) -> Self {
        let read: Self = serde_json::from_str(&stored.text).unwrap_or_default();
        Self { number: stored.number, ..read }
    }
}

/// Unix time, milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
