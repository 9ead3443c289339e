//! `cargo xtask demo`: builds what is needed and runs `examples/demo`.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::run;

/// What is passed on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Arguments of the demo, such as --keep; `cargo xtask demo -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds, then replaces this process by the demonstration, so that signals reach it directly.
pub fn demo(arguments: &Arguments) -> Result<()> {
    println!("Building the plugins and the programs; the first time this takes minutes.");
    let plugins = run::guests()?;
    let programs = run::programs()?;
    let mut demo = Command::new(&programs.demo);
    demo.arg("--witan").arg(&programs.witan).arg("--plugins").arg(plugins).stdin(Stdio::null());
    demo.arg("--data").arg(run::root().join("examples/data/language-subtags.jsonl"));
    demo.args(&arguments.rest);
    run::become_it(&mut demo)
}
