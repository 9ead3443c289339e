//! Checks that keep the repository as it is meant to be: directions between rooms, no circles, bounds on sizes, documented
//! constants, plain wording.
//!
//! Each check takes a [`Tree`] of files, wherever they come from, so that its tests use made-up ones; `repository.rs` runs all of them on
//! this repository. How many findings of each are tolerated is in [`ratchets`], whose numbers only go down.
//!
//! Reading order: [`rooms`] (the table), [`lex`] and [`source`] (one file), [`tree`] (all files, paths resolved), then the checks:
//! [`chance`], [`directions`], [`circles`], [`size`], [`items`], [`dialect`].

pub mod chance;
pub mod circles;
pub mod dialect;
pub mod directions;
pub mod items;
pub mod lex;
pub mod manifest;
pub mod ratchets;
pub mod rooms;
pub mod size;
pub mod source;
pub mod tree;

use std::collections::HashMap;
use std::path::Path;
use std::{fmt, fs, io};

pub use tree::Tree;

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path below the root, with `/`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Something that should be otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A check: it looks at a tree and says what should be otherwise.
pub type Check = fn(&Tree<'_>) -> Vec<Finding>;

/// Every check, with its name among the ratchets.
pub const CHECKS: [(&str, Check); 11] = [
    ("chance", chance::check),
    ("directions", directions::check),
    ("circles between rooms", circles::rooms),
    ("circles within rooms", circles::files),
    ("long files", size::files),
    ("long functions", size::functions),
    ("long lines", size::lines),
    ("strings as errors", items::strings_as_errors),
    ("sentences said twice", items::sentences_said_twice),
    ("constants without a reason", items::constants),
    ("dialect", dialect::check),
];

/// Runs every check and compares the number of its findings with its ratchet. Returns one message per check whose number differs.
pub fn judge(tree: &Tree<'_>, ratchets: &[(&str, usize)]) -> Vec<String> {
    let tolerated: HashMap<&str, usize> = ratchets.iter().copied().collect();
    let judged = CHECKS.iter().filter_map(|(name, check)| {
        let mut findings = check(tree);
        findings.sort();
        verdict(name, &findings, tolerated.get(name).copied().unwrap_or_default())
    });
    judged.collect()
}

fn verdict(name: &str, findings: &[Finding], tolerated: usize) -> Option<String> {
    let found = findings.len();
    if found < tolerated {
        return Some(format!(
            "{name}: {found} findings, {tolerated} tolerated. Set `{name}` to {found} in tests/tidy/ratchets.rs, so that \
             it stays so."
        ));
    }
    let listed: String = findings.iter().map(|finding| format!("\n  {finding}")).collect();
    (found > tolerated).then(|| {
        format!("{name}: {found} findings, {tolerated} tolerated. Resolve those that you have added; the number is never raised.{listed}")
    })
}

/// Kinds of files that are checked.
const KINDS: [&str; 9] = ["md", "proto", "py", "rs", "service", "sh", "toml", "wit", "yaml"];
/// Folders whose files are not the repository's.
const SKIPPED: [&str; 5] = [".git", ".venv", ".witan", "node_modules", "target"];

/// Reads the files of the repository at `root`.
pub fn read(root: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    list(root, "", &mut files)?;
    files.sort_by(|one: &File, other| one.path.cmp(&other.path));
    Ok(files)
}

fn list(folder: &Path, prefix: &str, files: &mut Vec<File>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                list(&entry.path(), &format!("{path}/"), files)?;
            }
        } else if name.rsplit_once('.').is_some_and(|(_, kind)| KINDS.contains(&kind)) {
            files.push(File { path, text: fs::read_to_string(entry.path())? });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
