//! `cargo xtask demo`: builds everything and runs `examples/demo`.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::run;

/// Flags of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Keep the temporary folder with the stores and logs, and say where it is
    #[arg(long)]
    keep: bool,
}

/// Builds, then becomes the demonstration, so that signals reach it directly.
pub fn demo(arguments: &Arguments) -> Result<()> {
    println!("Building the plugins and the program; the first time this takes minutes.");
    let plugins = run::guests()?;
    let programs = run::programs()?;
    let mut demo = Command::new(&programs.demo);
    demo.arg("--witan").arg(&programs.witan).arg("--plugins").arg(plugins).stdin(Stdio::null());
    demo.arg("--data").arg(run::root().join("examples/data/language-subtags.jsonl"));
    if arguments.keep {
        demo.arg("--keep");
    }
    run::become_it(&mut demo)
}
