//! `cargo xtask check`: what to run before each commit. No server, no process, no plugin: only what answers within a minute or two.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run::{self, Steps, Tally, cargo, count_tests, run};
use crate::sim;

/// Packages whose unit tests (those in the library, and in xtask's program) run: they need nothing but a temporary folder.
const TESTED: [&str; 15] = [
    "witan-kernel",
    "witan-wire",
    "witan-origin",
    "witan-net",
    "witan-memory",
    "witan-node",
    "witan-coordinate",
    "witan-upkeep",
    "witan-peer",
    "witan-control",
    "witan-guests",
    // Its tests in tests/it build plugins.
    "witan-kit",
    // Tests of components and hostile plugins, in tests/it of this package, take minutes.
    "witan-plugin",
    // Access, config, grpc, console, process, cli. Tests in tests/it of this package start processes.
    "witan",
    "xtask",
];

/// The other packages, and why their unit tests do not run with those. `cargo xtask test` runs all.
const LEFT_OUT: [(&str, &str); 7] = [
    ("witan-features", "it only declares features"),
    ("witan-fuzz", "its tests are those of the runner; the targets are a step of `ci`"),
    ("witan-store", "its tests start PostgreSQL and Redis"),
    ("witan-servers", "its tests start PostgreSQL and Redis"),
    ("witan-demo", "it has no tests"),
    ("witan-tidy", "it is a step of its own"),
    ("witan-sim", "a few seeds of it are a step of their own"),
];

/// Seeds of the simulation that are played: two of each of its 33 scenarios.
const SEEDS: u64 = 66;

/// Checks in the order in which a mistake is found soonest; stops at the first that fails.
pub fn check() -> Result<()> {
    let mut steps = Steps::default();
    let result = all(&mut steps);
    steps.account();
    result
}

fn all(steps: &mut Steps) -> Result<()> {
    let members = members()?;
    steps.step("format", || format_of_both(&run::root()))?;
    steps.step("tidy", || passed(count_tests(&mut cargo(["test", "-p", "witan-tidy"]))?))?;
    steps.step("lints", || run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])))?;
    steps.step("tests that need no server", || {
        let mut tests = cargo(["test", "--no-fail-fast", "--lib", "--bin", "xtask"]);
        TESTED.iter().filter(|name| members.contains(**name)).for_each(|name| _ = tests.args(["-p", name]));
        passed(count_tests(&mut tests)?)
    })?;
    steps.step("simulation, a few seeds", || sim::seeds(SEEDS))
}

/// Checks the format of the workspace and of the plugins, which are a workspace of their own.
pub fn format_of_both(root: &std::path::Path) -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    run(cargo(["fmt", "--all", "--check"]).current_dir(root.join("plugins")))
}

fn passed(tally: Tally) -> Result<()> {
    println!("{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// The workspace's packages. Each must be in one of the two lists above.
fn members() -> Result<BTreeSet<String>> {
    let metadata = run::output(&mut cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata lists no packages")?;
    let members: BTreeSet<String> =
        packages.iter().filter_map(|package| package["name"].as_str()).map(str::to_owned).collect();
    let known = |name: &str| TESTED.contains(&name) || LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
    let unknown: Vec<&str> = members.iter().map(String::as_str).filter(|name| !known(name)).collect();
    ensure!(
        unknown.is_empty(),
        "xtask/src/check.rs does not say whether the tests of {} need a server: add them to one of its lists",
        unknown.join(", ")
    );
    Ok(members)
}
