//! Rust: cargo, for the target without an operating system.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use witan_guests::{TARGET, Toolchain, componentize};

use super::tool::run_in;
use crate::project::Project;

/// Builds a project in Rust.
pub(super) fn build(project: &Project) -> Result<usize> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let runs = Command::new(&cargo).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(runs.is_ok_and(|status| status.success()), "cargo is missing; install Rust: https://rustup.rs");
    let mut cargo = Toolchain::find()?.build(&project.folder, &project.folder)?;
    run_in(&project.folder, &mut cargo, "compile the plugin")?;
    let module = format!("{}.wasm", project.name.replace('-', "_"));
    let module = project.folder.join("target").join(TARGET).join("release").join(module);
    componentize(&module, &project.component())
        .with_context(|| format!("find what cargo has built (is {:?} the package's name in Cargo.toml?)", project.name))
}
