//! The languages that plugins can be written in.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A language that there is a template for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// Rust, with the SDK: cargo
    Rust,
    /// C, with generated bindings: zig cc
    C,
}

impl Language {
    /// Every language that there are templates for, in kit/templates.
    pub const ALL: [Self; 2] = [Self::Rust, Self::C];

    /// The spelling in flags, in `plugin.json` and in the names of templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
        }
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
