//! `cargo xtask ci`: everything that must pass before a change is merged.

use anyhow::{Result, ensure};

use crate::run::{self, Steps, cargo, run};
use crate::{authors, check, deploy, first_week, fuzz, pages, test};

/// Checks everything, in the order in which a mistake is found soonest, and stops at the first step that fails. Prints the minutes of
/// each step. `commands` are this program's own: the documentation is checked against them.
pub fn ci(commands: &clap::Command) -> Result<()> {
    let mut steps = Steps::default();
    let result = all(&mut steps, commands);
    steps.account();
    result
}

fn all(steps: &mut Steps, commands: &clap::Command) -> Result<()> {
    let root = run::root();
    let guests = root.join("plugins");
    steps.step("format", || check::format_of_both(&root))?;
    steps.step("tidy", || run(&mut cargo(["test", "-p", "witan-tidy"])))?;
    steps.step("lints", || {
        run(cargo(["clippy", "--all-targets"].iter().chain(&run::EVERYTHING)).args(["--", "-D", "warnings"]))?;
        let mut clippy = cargo(["clippy", "--workspace", "--all-targets", "--target-dir"]);
        clippy.arg(root.join("target/guests")).args(["--", "-D", "warnings"]);
        run(clippy.current_dir(&guests))
    })?;
    steps.step("reference documentation", || {
        // With examples, so that dependencies are needed with the features with which the lints have checked them.
        let selection = ["doc", "--workspace", "--no-deps", "--lib", "--bins", "--examples"];
        run(cargo(selection).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    let test::Tested { tally, witan, plugins, fuzz } = test::all(steps)?;
    println!("\n{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    steps.step("fuzz targets: corpora, and a minute of each", || fuzz::every_target(&fuzz))?;
    steps.step("deployment: image, chart, units, alerts", || deploy::check(&witan))?;
    steps.step("docs/first-week.md as a script", || first_week::check(&witan, &plugins))?;
    steps.step("docs/authors as scripts", || authors::check(&witan, &authors::IN_CI))?;
    steps.step("pages: links and commands", || pages::check(&root, commands, &witan))
}
