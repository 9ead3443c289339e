//! `witan completions`: completion scripts for shells.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::output;

/// Shown below the help.
pub const EXAMPLES: &str = "The script goes to standard output; see the shell's documentation for where to put it.

Examples:
  witan completions bash > ~/.local/share/bash-completion/completions/witan
  witan completions fish > ~/.config/fish/completions/witan.fish
  witan completions zsh > \"${fpath[1]}/_witan\"";

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "witan", &mut script);
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
