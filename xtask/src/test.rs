//! `cargo xtask test`: every test there is, each compiled once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Process, free_ports, log, tail};
use crate::run::{self, Steps, Tally, cargo, count_tests};

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
    steps.step("find what the tests need", || {
        if run::is_installed("strace") { Ok(()) } else { run::install(&["strace"]) }
    })?;
    let witan = steps.step("compile", || run::build(&["test", "--workspace", "--no-run"]))?;
    let workspace = steps.step("test the workspace", || {
        count_tests(cargo(["test", "--workspace", "--no-fail-fast"]).env("WITAN_TEST_PLUGINS", &plugins))
    })?;
    let guests = steps.step("test the plugins", || count_tests(&mut crate::guests::tests(&run::root())))?;
    let python = steps.step("test the Python client", || python(&witan, &plugins))?;
    Ok(Tally {
        passed: workspace.passed + guests.passed + python.passed,
        failed: workspace.failed + guests.failed + python.failed,
        ignored: workspace.ignored + guests.ignored + python.ignored,
    })
}

/// Runs the Python client against a fresh cluster; it counts as one test.
fn python(witan: &Path, plugins: &Path) -> Result<Tally> {
    let interpreter = environment()?;
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let passed = runtime.block_on(async {
        let (listen, admin, nodes) = (free_ports(1)?, free_ports(1)?, free_ports(3)?);
        let mut command = tokio::process::Command::new(witan);
        command.args(["dev", "--nodes", "3"]).arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--listen", &format!("127.0.0.1:{listen}"), "--admin-listen", &format!("127.0.0.1:{admin}")]);
        command.args(["--node-port", &nodes.to_string()]).arg("--plugins").arg(plugins);
        let log = log(folder.path(), "dev");
        let cluster = Process::start("witan dev", &mut command, &log).await?;
        let mut tour = tokio::process::Command::new(&interpreter);
        tour.arg(run::root().join("examples/python/tour.py")).arg(format!("127.0.0.1:{listen}"));
        tour.arg("--plugins").arg(plugins).kill_on_drop(true);
        let status = tokio::time::timeout(Duration::from_secs(180), tour.status()).await;
        let status = status.context("the Python client did not end within 180 s")?.context("run the Python client")?;
        if !status.success() {
            eprintln!("the Python client ended with {status}{}", tail(&log));
        }
        cluster.stop().await?;
        anyhow::Ok(status.success())
    })?;
    Ok(Tally { passed: passed.into(), failed: (!passed).into(), ignored: 0 })
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
