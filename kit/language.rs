//! The languages that plugins can be written in.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use witan_kernel::hook::Hook;

/// A language that there is a template for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Language {
    /// Rust, with the SDK: cargo
    Rust,
    /// C, with generated bindings: zig cc
    C,
    /// Go, with generated bindings: go
    Go,
    /// Python, whose interpreter is in the component: componentize-py
    Python,
    /// JavaScript, whose engine is in the component: componentize-js
    JavaScript,
}

impl Language {
    /// Every language that there are templates for, in kit/templates.
    pub const ALL: [Self; 5] = [Self::Rust, Self::C, Self::Go, Self::Python, Self::JavaScript];

    /// The hooks that plugins in this language are for. What is asked with every operation has no time for an interpreter, and what places
    /// keys none for a runtime: no class of limits takes such components for these hooks.
    pub fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Rust | Self::C => &Hook::ALL,
            Self::Go => &[Hook::ConflictResolver, Hook::ConsistencyPolicy],
            Self::Python | Self::JavaScript => &[Hook::ConflictResolver],
        }
    }

    /// The spelling in flags, in `plugin.json` and in the names of templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Go => "go",
            Self::Python => "python",
            Self::JavaScript => "javascript",
        }
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
