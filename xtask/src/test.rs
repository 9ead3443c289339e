//! `cargo xtask test`: every test there is, each compiled once.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{self, Steps, Tally, cargo, count_tests};
use crate::tools;

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
    let workspace = steps.step("test the workspace", || {
        count_tests(cargo(["test", "--workspace", "--no-fail-fast"]).env("WITAN_PLUGINS", &plugins))
    })?;
    let guests = steps.step("test the plugins", || count_tests(&mut crate::guests::tests(&run::root())))?;
    let python = steps.step("test the Python client", || python(&witan, &plugins))?;
    Ok(Tally {
        passed: workspace.passed + guests.passed + python.passed,
        failed: workspace.failed + guests.failed + python.failed,
        ignored: workspace.ignored + guests.ignored + python.ignored,
    })
}

/// Runs the Python client against a fresh cluster on free ports; it counts as one test.
fn python(witan: &Path, plugins: &Path) -> Result<Tally> {
    let interpreter = environment()?;
    let folder = run::root().join("target/tour");
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let log = folder.join("log");
    let cluster = Cluster::start(witan, plugins, &folder.join("data"), &log)?;
    let mut tour = Command::new(&interpreter);
    tour.arg(run::root().join("examples/python/tour.py")).arg(&cluster.address);
    tour.arg("--plugins").arg(plugins).stdin(Stdio::null());
    let passed = tour.status().context("run the Python client")?.success();
    if !passed {
        eprintln!("{}", fs::read_to_string(&log).unwrap_or_default());
    }
    Ok(Tally { passed: passed.into(), failed: (!passed).into(), ignored: 0 })
}

/// `witan dev` on free ports. Dropped, it is killed.
struct Cluster {
    process: Child,
    address: String,
    /// Open as long as it runs: it may have more to say.
    said: Option<BufReader<ChildStdout>>,
}

impl Cluster {
    /// Starts it and waits until it is ready, which is when it tells its address.
    fn start(witan: &Path, plugins: &Path, data: &Path, log: &Path) -> Result<Self> {
        let mut command = Command::new(witan);
        command.args(["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--node-port", "0"]);
        command.arg("--data-dir").arg(data).arg("--plugins").arg(plugins);
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().with_context(|| format!("run {command:?}"))?;
        let stdout = process.stdout.take().context("take the standard output")?;
        let mut cluster = Self { process, address: String::new(), said: None };
        let mut ready = String::new();
        cluster.said.insert(BufReader::new(stdout)).read_line(&mut ready).context("read the ready line")?;
        let address = ready.split_whitespace().find_map(|word| word.strip_prefix("address="));
        cluster.address = address.with_context(|| format!("expected a ready line, got {ready:?}"))?.to_owned();
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A Python with the packages that the client needs, in target/python: made once, and again when they change.
fn environment() -> Result<PathBuf> {
    let wanted = run::root().join("examples/python/requirements.txt");
    let text = fs::read_to_string(&wanted).with_context(|| format!("read {}", wanted.display()))?;
    let folder = run::root().join("target/python");
    let (stamp, interpreter) = (folder.join(".installed"), folder.join("bin/python"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) && interpreter.exists() {
        return Ok(interpreter);
    }
    if !run::is_installed("python3") {
        run::install(&["python3", "python3-venv"])?;
    }
    println!("installing {} into {}", text.split_whitespace().collect::<Vec<_>>().join(", "), folder.display());
    let make = || run::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    // Debian's Python comes without the part that makes environments.
    make().or_else(|_| run::install(&["python3-venv"]).and_then(|()| make()))?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "-r"])
        .arg(&wanted);
    if env::var_os("CI").is_some() {
        pip.arg("--no-input");
    }
    run::run(&mut pip)?;
    fs::write(&stamp, text).with_context(|| format!("write {}", stamp.display()))?;
    if !interpreter.exists() {
        bail!("{} was not made", interpreter.display());
    }
    Ok(interpreter)
}
