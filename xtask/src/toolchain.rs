//! The tool chain: reported before each command, and refused if it is older than the workspace's `rust-version`.
//!
//! There is no rust-toolchain.toml: it would make rustup look for a channel of exactly that name, and so fail without a network on a
//! machine that has a good tool chain under another one. Cargo's own refusal names every package but no command; the alias in
//! .cargo/config.toml passes `--ignore-rust-version`, so that this program gets the chance to name one.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// The workspace's `rust-version`.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Prints the version of the active tool chain; fails if it is too old.
pub fn check() -> Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let found = run::output(Command::new(rustc).arg("--version"))?;
    let found = found.trim();
    eprintln!("tool chain: {found} (this repository needs {OLDEST} or newer)");
    let version = found.split_whitespace().nth(1).and_then(version);
    let version = version.with_context(|| format!("find the version in {found:?}"))?;
    if version < version_of(OLDEST)? {
        bail!("{found} is too old: this repository needs Rust {OLDEST} or newer\n{}", advice());
    }
    Ok(())
}

/// The command that provides a newer tool chain.
fn advice() -> String {
    if !run::is_installed("rustup") {
        return "install it from https://rustup.rs, or with this system's package manager".to_owned();
    }
    // Set by rustup's proxies, also when nobody asked for a particular tool chain.
    match env::var("RUSTUP_TOOLCHAIN") {
        Ok(chosen) if !chosen.starts_with("stable") => {
            format!(
                "the active tool chain is {chosen}; run: rustup toolchain install stable && cargo +stable xtask ..."
            )
        }
        _ => "run: rustup update stable".to_owned(),
    }
}

fn version_of(text: &str) -> Result<[u32; 3]> {
    version(text).with_context(|| format!("read the version {text:?}"))
}

/// The numbers of a version such as `1.95`, `1.95.0` or `1.96.0-nightly`.
fn version(text: &str) -> Option<[u32; 3]> {
    let release = text.split('-').next()?;
    let mut numbers = [0; 3];
    let mut parts = release.split('.');
    for number in &mut numbers {
        match parts.next() {
            Some(part) => *number = part.parse().ok()?,
            None => break,
        }
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("1.95"), Some([1, 95, 0]));
        assert_eq!(version("1.100.1-nightly"), Some([1, 100, 1]));
        assert!(version("1.100.0") > version("1.95.2"));
        for other in ["", "x.1", "1.2.3.4"] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn the_oldest_version_is_readable() {
        assert!(version_of(OLDEST).is_ok());
    }
}
