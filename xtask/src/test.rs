//! `cargo xtask test`: every test there is, each compiled once.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{self, Steps, Tally, cargo, count_tests};
use crate::server::Server;
use crate::{previous, python, tools};

/// Runs everything; fails when one test does.
pub fn test() -> Result<()> {
    let mut steps = Steps::default();
    let tally = all(&mut steps)?;
    steps.account();
    println!("\n{} passed, {} failed, {} ignored", tally.passed, tally.failed, tally.ignored);
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// Runs everything, as steps of `steps`.
pub fn all(steps: &mut Steps) -> Result<Tally> {
    let plugins = steps.step("build the plugins", run::guests)?;
    steps.step("find what the tests need", tools::install)?;
    let witan = steps.step("compile", run::tests)?.witan;
    let previous = steps.step("build the previous version", previous::program)?;
    let workspace = steps.step("test the workspace", || workspace(&plugins, previous.as_deref()))?;
    let guests = steps.step("test the plugins", || count_tests(&mut crate::guests::tests(&run::root())))?;
    let python = steps.step("test the Python client", || python_client(&witan, &plugins))?;
    Ok(Tally {
        passed: workspace.passed + guests.passed + python.passed,
        failed: workspace.failed + guests.failed + python.failed,
        ignored: workspace.ignored + guests.ignored + python.ignored,
    })
}

/// Runs the workspace's tests. Without a program of the previous version, what needs it counts as one test that was left out.
fn workspace(plugins: &Path, previous: Option<&Path>) -> Result<Tally> {
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast"]);
    tests.env("WITAN_PLUGINS", plugins);
    let Some(previous) = previous else {
        println!("left out, for want of a previous version: whether it works together with this one");
        let tally = count_tests(tests.args(["--", "--skip", "previous::"]))?;
        return Ok(Tally { ignored: tally.ignored + 1, ..tally });
    };
    count_tests(tests.env("WITAN_PREVIOUS", previous))
}

/// Runs the Python client against a fresh cluster on free ports; it counts as one test.
fn python_client(witan: &Path, plugins: &Path) -> Result<Tally> {
    let wanted = run::root().join("examples/python/requirements.txt");
    let interpreter = python::environment(&wanted, &run::root().join("target/python"), &[])?;
    let folder = run::root().join("target/tour");
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let log = folder.join("log");
    let cluster = cluster(witan, plugins, &folder.join("data"), &log)?;
    let mut tour = Command::new(&interpreter);
    tour.arg(run::root().join("examples/python/tour.py")).arg(cluster.told("address")?);
    tour.arg("--plugins").arg(plugins).stdin(Stdio::null());
    let passed = tour.status().context("run the Python client")?.success();
    if !passed {
        eprintln!("{}", fs::read_to_string(&log).unwrap_or_default());
    }
    Ok(Tally { passed: passed.into(), failed: (!passed).into(), ignored: 0 })
}

/// `witan dev` on free ports.
fn cluster(witan: &Path, plugins: &Path, data: &Path, log: &Path) -> Result<Server> {
    let mut command = Command::new(witan);
    command.args(["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--node-port", "0"]);
    command.arg("--data-dir").arg(data).arg("--plugins").arg(plugins);
    Server::start(&mut command, log)
}
