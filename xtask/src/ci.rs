//! `cargo xtask ci`: what has to hold before a change is merged.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::run::{self, Steps, cargo, run};
use crate::{deploy, first_week, pages, test};

/// Checks everything, in the order in which a mistake is cheapest to find, and stops at the first that does not hold.
/// `commands` are this program's own, against which the documentation is checked.
pub fn ci(commands: &clap::Command) -> Result<()> {
    let mut steps = Steps::default();
    let result = all(&mut steps, commands);
    steps.account();
    result
}

fn all(steps: &mut Steps, commands: &clap::Command) -> Result<()> {
    let root = run::root();
    let guests = root.join("plugins");
    steps.step("format", || {
        run(&mut cargo(["fmt", "--all", "--check"]))?;
        run(within(&mut cargo(["fmt", "--all", "--check"]), &guests))
    })?;
    steps.step("lints", || {
        run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        let mut clippy = cargo(["clippy", "--workspace", "--all-targets", "--target-dir"]);
        clippy.arg(root.join("target/guests")).args(["--", "-D", "warnings"]);
        run(within(&mut clippy, &guests))
    })?;
    steps.step("reference documentation", || {
        // With examples, so that dependencies are needed with the very features that the lints have checked them with.
        let selection = ["doc", "--workspace", "--no-deps", "--lib", "--bins", "--examples"];
        run(cargo(selection).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    let tally = test::all(steps)?;
    println!("\n{} passed, {} failed, {} ignored", tally.passed, tally.failed, tally.ignored);
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    let witan = run::programs()?.witan;
    steps.step("deployment: image, chart, units, alerts hold", || deploy::check(&witan))?;
    steps.step("a new operator's first week, as its page says", || first_week::check(&witan, &run::guests()?))?;
    steps.step("pages: links lead somewhere, commands exist", || pages::check(&root, commands, &witan))
}

fn within<'a>(command: &'a mut std::process::Command, folder: &Path) -> &'a mut std::process::Command {
    command.current_dir(folder)
}
