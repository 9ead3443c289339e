//! `new`: a project in a folder that does not exist yet, or is empty.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use witan_kernel::hook::Hook;

use crate::language::Language;
use crate::template::{self, Wanted};
use crate::{output, project};

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The hook that the plugin implements
    #[arg(long, value_parser = hook)]
    pub hook: Hook,
    /// The language that it is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    pub language: Language,
    /// Its name, and that of the folder, which must not exist or be empty
    pub name: String,
}

/// Reads a hook.
fn hook(text: &str) -> Result<Hook, String> {
    Hook::parse(text).ok_or_else(|| format!("it is one of {}", Hook::ALL.map(Hook::as_str).join(", ")))
}

/// Makes a project below the working folder.
pub fn run(args: &Args) -> Result<()> {
    project::check_name(&args.name)?;
    check_hook(args.hook, args.language)?;
    let folder = PathBuf::from(&args.name);
    check_room(&folder)?;
    let wanted = Wanted { name: args.name.clone(), hook: args.hook, language: args.language };
    for (path, content) in template::files(&wanted)? {
        write(&folder.join(path), &content)?;
    }
    output::line(&format!("{}: a {} in {}; next:", folder.display(), args.hook, args.language))?;
    for command in ["build", "test", "check"] {
        output::line(&format!("  cd {} && witan plugin {command}", folder.display()))?;
    }
    Ok(())
}

/// Checks that coordinators take plugins of this hook in this language.
fn check_hook(hook: Hook, language: Language) -> Result<()> {
    if language.hooks().contains(&hook) {
        return Ok(());
    }
    let fast = Language::ALL.into_iter().filter(|other| other.hooks().contains(&hook));
    let fast: Vec<&str> = fast.map(Language::as_str).collect();
    bail!(
        "--language {language}: a {hook} is asked with every operation, which is too often for it; use one of {}",
        fast.join(", ")
    )
}

/// Checks that nothing would be overwritten.
fn check_room(folder: &Path) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            Some(_) => bail!("{} is not empty: choose another name, or remove it", folder.display()),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look into {}", folder.display())),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        check_room(&dir.path().join("new")).unwrap();
        check_room(dir.path()).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(check_room(dir.path()).unwrap_err().to_string().contains("not empty"));
        assert!(check_room(&dir.path().join("file")).is_err(), "a file is no folder");
    }
}
