//! `cargo xtask mutants`: changes the kernel's code in small ways, one at a time, and looks whether its tests notice.

use anyhow::{Result, ensure};

use crate::run::{self, cargo, run};

/// Seconds after which a mutant's tests count as hanging: ten times what they take.
const TIMEOUT: &str = "120";

const EXAMPLES: &str = "Examples:
  cargo xtask mutants --file scan.rs     the mutants of one file, a few minutes
  cargo xtask mutants --shard 0/8        an eighth of all
  cargo xtask mutants                    all of them, some hours

The mutants that survive are in target/mutants.out/missed.txt. Each is a test that is missing, or code that changes nothing: then it is
excluded in .cargo/mutants.toml, with the reason.";

/// Options of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Only this part of all mutants, as K/N, the first one being 0/N
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Only mutants of this file below host/kernel
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
}

/// Runs the kernel's tests once for each mutant.
pub fn mutants(arguments: &Arguments) -> Result<()> {
    ensure!(
        run::is_installed("cargo-mutants"),
        "cargo-mutants is missing; install it with: cargo install cargo-mutants --locked"
    );
    let mut mutants = cargo(["mutants", "--package", "witan-kernel", "--output", "target", "--timeout", TIMEOUT]);
    if let Some(shard) = &arguments.shard {
        mutants.args(["--shard", shard]);
    }
    if let Some(file) = &arguments.file {
        mutants.arg("--file").arg(format!("host/kernel/{file}"));
    }
    // The kernel has no tests in its documentation, and looking for some takes longer than most of those that it has.
    mutants.args(["--", "--lib", "--tests"]);
    // Fewer histories than usual for each: what a mutant breaks, most of them show.
    mutants
        .env("WITAN_MODEL_PERCENT", "15")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    run(&mut mutants)
}
