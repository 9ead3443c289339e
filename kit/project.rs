//! A project that `new` has made, found again by its file `plugin.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use witan_kernel::hook::Hook;

use crate::language::Language;

/// The file that describes a project, in its folder.
pub const FILE: &str = "plugin.json";
/// Largest file of that name that is read, in bytes: it has three short fields.
const FILE_BYTES: u64 = 64 << 10;

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its folder, as an absolute path.
    pub folder: PathBuf,
    /// Its name.
    pub name: String,
    /// The hook that it implements.
    pub hook: Hook,
    /// What it is written in.
    pub language: Language,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    hook: String,
    language: Language,
}

impl Project {
    /// The project in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("find the folder {}", folder.display()))?;
        let path = folder.join(FILE);
        if !path.exists() {
            bail!(
                "{} has no {FILE}: run this in the folder of a plugin, name it with --project, or make one with `witan plugin new`",
                folder.display()
            );
        }
        let bytes = witan_file::read(&path, FILE_BYTES).with_context(|| format!("read {}", path.display()))?;
        let described: Described =
            serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))?;
        let Described { name, hook, language } = described;
        check_name(&name).with_context(|| format!("name in {}", path.display()))?;
        let hooks = Hook::ALL.map(Hook::as_str).join(", ");
        let hook = Hook::parse(&hook)
            .with_context(|| format!("hook in {}: {hook:?} is not one of {hooks}", path.display()))?;
        Ok(Self { folder, name, hook, language })
    }

    /// The component that `build` makes.
    pub fn component(&self) -> PathBuf {
        self.folder.join("build").join(format!("{}.wasm", self.name))
    }

    /// The core module of which it is made, where a compiler does not choose the place itself.
    pub fn module(&self) -> PathBuf {
        self.folder.join("build").join(format!("{}.core.wasm", self.name))
    }

    /// Where a tool that makes components puts one, which then takes the place of [`Self::component`].
    pub fn made(&self) -> PathBuf {
        self.folder.join("build").join(format!("{}.made.wasm", self.name))
    }
}

/// Checks that a plugin may have this name, which is also a package's and a file's.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain) && !name.ends_with('-'),
        "{name:?} is no name of a plugin: use a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
    );
    let most = witan_plugin::limit::NAME_BYTES;
    ensure!(name.len() <= most, "{name:?} has {} bytes; at most {most} are allowed", name.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_packages_files_and_plugins() {
        for good in ["a", "text-lines", "v2", &"a".repeat(64)] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "a-", "A", "1a", "a b", "a/b", "..", "a\u{1b}", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_project_is_said_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(dir.path().join(FILE), text).unwrap();
            }
            format!("{:#}", Project::open(dir.path()).unwrap_err())
        };
        assert!(said(None).contains("witan plugin new"));
        for (text, part) in [
            ("{", "understand"),
            (r#"{"name":"a","hook":"x","language":"rust"}"#, "conflict-resolver"),
            (r#"{"name":"a","hook":"routing-hook","language":"cobol"}"#, "cobol"),
            (r#"{"name":"../a","hook":"routing-hook","language":"rust"}"#, "is no name"),
            (r#"{"name":"a","hook":"routing-hook","language":"rust","more":1}"#, "more"),
        ] {
            let error = said(Some(text));
            assert!(error.contains(part) && error.contains(FILE), "{text}: {error}");
        }
    }
}
