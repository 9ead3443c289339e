//! Other people's tools: found in one of the ways in which they are installed, and run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use witan_guests::pins::Pin;

/// The first of several commands that runs, which is tried with `probe`: the same tool may be installed in more than one way.
pub(super) fn find(tool: &str, pin: &str, candidates: &[&[&str]], probe: &str) -> Result<Command> {
    let command = |words: &[&str]| {
        let (program, rest) = words.split_first()?;
        let mut command = Command::new(program);
        command.args(rest);
        Some(command)
    };
    let runs = |words: &&&[&str]| {
        let tried = command(words).and_then(|mut command| command.arg(probe).output().ok());
        tried.is_some_and(|tried| tried.status.success())
    };
    if let Some(found) = candidates.iter().find(runs).and_then(|words| command(words)) {
        return Ok(found);
    }
    let Some(pin) = Pin::of(pin) else { bail!("{tool} is missing") };
    bail!("{tool} is missing; install it: {}", pin.command());
}

/// Runs a tool in the project's folder, its output passed on.
pub(super) fn run_in(folder: &Path, command: &mut Command, what: &str) -> Result<()> {
    witan_guests::run(command.current_dir(folder), what)
}

/// Puts a component that a tool has made where it belongs, by renaming it, so that whoever watches never sees half of it. Returns its size
/// in bytes.
pub(super) fn take(made: &Path, component: &Path) -> Result<usize> {
    let bytes = fs::metadata(made).with_context(|| format!("find what was made, {}", made.display()))?.len();
    fs::rename(made, component).with_context(|| format!("rename {} to {}", made.display(), component.display()))?;
    usize::try_from(bytes).context("measure the component")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_the_command_that_installs_it() {
        let error = find("zig", "ziglang", &[&["/nowhere/zig"], &["/bin/false"]], "version").unwrap_err().to_string();
        assert!(error.contains("zig is missing") && error.contains("pip install ziglang=="), "{error}");
        let found = find("true", "ziglang", &[&["/nowhere/zig"], &["/bin/true", "first"]], "version").unwrap();
        assert_eq!((found.get_program(), found.get_args().count()), ("/bin/true".as_ref(), 1));
    }
}
