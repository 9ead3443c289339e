//! `cargo xtask dev`: builds what is needed and becomes `witan dev`.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;

/// What is handed on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Arguments of `witan dev`; `cargo xtask dev -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds, then becomes the cluster, so that Ctrl-C and every signal reach it directly.
pub fn dev(arguments: &Arguments) -> Result<()> {
    let plugins = run::guests()?;
    let witan = run::build(&["build", "--workspace", "--bins"])?;
    let mut command = Command::new(&witan);
    command.current_dir(run::root()).arg("dev");
    let given = |flag: &str| arguments.rest.iter().any(|a| a == flag || a.starts_with(&format!("{flag}=")));
    if !given("--data-dir") {
        command.args(["--data-dir", ".witan"]);
    }
    if !given("--plugins") {
        command.arg("--plugins").arg(plugins);
    }
    command.args(&arguments.rest);
    become_it(&mut command).map(|never| match never {})
}

fn become_it(command: &mut Command) -> Result<Infallible> {
    Err(command.exec()).with_context(|| format!("run {command:?}"))
}
