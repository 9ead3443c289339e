//! `cargo xtask test`: every test, each compiled once.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{self, Steps, Tally, cargo, count_tests};
use crate::server::Server;
use crate::{authors, previous, python, tools};

/// Runs everything; fails if a test does.
pub fn test() -> Result<()> {
    let mut steps = Steps::default();
    let Tested { tally, .. } = all(&mut steps)?;
    steps.account();
    println!("\n{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// The outcome of all tests, and what was built for them.
pub struct Tested {
    /// The sum of all runners.
    pub tally: Tally,
    /// The program that was tested.
    pub witan: PathBuf,
    /// The folder of the plugins.
    pub plugins: PathBuf,
    /// The runner of fuzz targets.
    pub fuzz: PathBuf,
}

/// Runs everything, as steps of `steps`.
pub fn all(steps: &mut Steps) -> Result<Tested> {
    let plugins = steps.step("build the plugins", run::guests)?;
    steps.step("find the programs that tests run", tools::install)?;
    steps.step("find the compilers of plugins", authors::compilers)?;
    let run::Tested { witan, fuzz, dependencies } = steps.step("compile", run::tests)?;
    steps.step("single packages reuse what is compiled", || {
        SINGLE.iter().try_for_each(|package| reuse(package, &dependencies))
    })?;
    let previous = steps.step("build the previous version", previous::program)?;
    let workspace = steps.step("test the workspace", || workspace(&plugins, previous.as_deref()))?;
    let guests = steps.step("test the plugins", || count_tests(&mut crate::guests::tests(&run::root())))?;
    let python = steps.step("test the Python client", || python_client(&witan, &plugins))?;
    let tally = Tally {
        passed: workspace.passed + guests.passed + python.passed,
        failed: workspace.failed + guests.failed + python.failed,
        ignored: workspace.ignored + guests.ignored + python.ignored,
    };
    Ok(Tested { tally, witan, plugins, fuzz })
}

/// Packages that people test alone while they change them.
const SINGLE: [&str; 6] =
    ["witan-kernel", "witan-memory", "witan-coordinate", "witan-upkeep", "witan-control", "witan-sim"];

/// Compiles one package's tests, and fails if they use another build of a dependency than the workspace's tests, whose files of
/// dependencies are given. Its features are then to be declared in tests/features/Cargo.toml. What counts is which files are used, not
/// what is compiled: the other build may be there from before.
fn reuse(package: &str, dependencies: &HashSet<PathBuf>) -> Result<()> {
    let mut others = BTreeSet::new();
    run::messages(&mut cargo(["test", "--no-run", "-p", package]), |message| {
        let files = run::third_party(message).filter(|(_, file)| !dependencies.contains(file));
        others.extend(files.map(|(name, _)| name.to_owned()));
    })?;
    let others: Vec<String> = others.into_iter().collect();
    ensure!(
        others.is_empty(),
        "{package} compiles with other features: {}; see tests/features/Cargo.toml",
        others.join(", ")
    );
    println!("{package}: every dependency was reused");
    Ok(())
}

/// Runs the workspace's tests. Without the previous version's program, the tests that need it count as one ignored test.
fn workspace(plugins: &Path, previous: Option<&Path>) -> Result<Tally> {
    let mut tests = cargo(["test", "--no-fail-fast"].iter().chain(&run::EVERYTHING));
    tests.env("WITAN_PLUGINS", plugins);
    let Some(previous) = previous else {
        println!("skipped, because there is no previous version: the tests that run both versions together");
        let tally = count_tests(tests.args(["--", "--skip", "previous::"]))?;
        return Ok(Tally { ignored: tally.ignored + 1, ..tally });
    };
    count_tests(tests.env("WITAN_PREVIOUS", previous))
}

/// Runs the Python client against a new cluster on free ports; it counts as one test.
fn python_client(witan: &Path, plugins: &Path) -> Result<Tally> {
    let wanted = run::root().join("examples/python/requirements.txt");
    let interpreter = python::environment(&wanted, &run::root().join("target/python"), &[])?;
    let folder = run::root().join("target/tour");
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let log = folder.join("log");
    let cluster = cluster(witan, plugins, &folder.join("data"), &log)?;
    let mut tour = Command::new(&interpreter);
    tour.arg(run::root().join("examples/python/tour.py")).arg(cluster.ready("address")?);
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
