//! `cargo xtask dev`: builds what is needed and runs `witan dev`.

use std::process::Command;

use anyhow::Result;

use crate::run;

/// What is passed on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Arguments of `witan dev`; `cargo xtask dev -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds, then replaces this process by the cluster, so that Ctrl-C and other signals reach it directly.
pub fn dev(arguments: &Arguments) -> Result<()> {
    let plugins = run::guests()?;
    let mut command = Command::new(run::witan()?);
    command.current_dir(run::root()).arg("dev");
    let given = |flag: &str| arguments.rest.iter().any(|a| a == flag || a.starts_with(&format!("{flag}=")));
    if !given("--data-dir") {
        command.args(["--data-dir", ".witan"]);
    }
    if !given("--plugins") {
        command.arg("--plugins").arg(plugins);
    }
    command.args(&arguments.rest);
    run::become_it(&mut command)
}
