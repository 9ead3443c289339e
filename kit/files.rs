//! The files that this program contains: templates, the SDK, the WIT, and the manifest and lock file of this repository's own plugins.

use anyhow::{Context, Result};

/// Every file by its name: `templates/...`, `sdk/...`, `wit/VERSION/...`, `plugins/Cargo.toml`, `plugins/Cargo.lock`.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// A file of a project: its path below the project's folder, and its content.
pub type File = (String, Vec<u8>);

/// The files whose names begin with `prefix`, by the rest of their names.
pub fn below(prefix: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().filter_map(move |(name, text)| Some((name.strip_prefix(prefix)?, *text)))
}

/// The file of this name.
pub fn text(name: &str) -> Result<&'static str> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text).with_context(|| format!("find {name} in this program, which is a defect of it"))
}
