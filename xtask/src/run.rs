//! Carries out the steps of a command: programs with their output passed on, each step timed, an account at the end.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The repository's root.
pub fn root() -> PathBuf {
    let here =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// A command's steps.
#[derive(Debug, Default)]
pub struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Carries out one step under its title, and tells how long it took.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {title}");
        let started = Instant::now();
        let result = work();
        let took = started.elapsed();
        let end = if result.is_ok() { "done" } else { "FAILED" };
        println!("<== {title}: {end} in {}", seconds(took));
        self.done.push((title.to_owned(), took));
        result.with_context(|| title.to_owned())
    }

    /// Prints every step with its duration, and the sum.
    pub fn account(&self) {
        println!();
        for (title, took) in &self.done {
            println!("{:>9}  {title}", seconds(*took));
        }
        println!("{:>9}  altogether", seconds(self.done.iter().map(|(_, took)| *took).sum()));
    }
}

/// A duration for people.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Cargo at the repository's root. Flags that would compile everything again are never set: one profile serves all.
pub fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments).stdin(Stdio::null());
    // What `cargo run` tells this program about itself would make build scripts of others run again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a program to its end, its output passed on.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs a program to its end and answers with what it has printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}\n{}", output.status, errors.trim());
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {command:?}"))
}

/// Becomes a program; comes back only if that fails.
pub fn become_it(command: &mut Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("run {command:?}"))
}

/// Runs a program to its end, hands each line of its standard output to `each`, and answers whether it succeeded.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {command:?}"))?;
    let stdout = child.stdout.take().context("take the standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        each(&String::from_utf8_lossy(&line.context("read the standard output")?));
    }
    Ok(child.wait().context("wait for the end")?.success())
}

/// What ran, as the test runners' own summaries tell.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were left out.
    pub ignored: u64,
}

impl Tally {
    /// Adds what one line says, if it is a summary of Rust's test runner.
    fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs tests with Rust's runner, its output passed on, and adds up its summaries. An end without success in which no
/// test failed (one did not compile, say) is an error.
pub fn count_tests(command: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let succeeded = lines(command, |line| {
        tally.read(line);
        println!("{line}");
    })?;
    ensure!(succeeded || tally.failed > 0, "{command:?} did not succeed");
    Ok(tally)
}

/// Programs of the workspace.
#[derive(Debug)]
pub struct Programs {
    /// The coordinator, the nodes, the client: everything.
    pub witan: PathBuf,
    /// What `cargo xtask demo` shows.
    pub demo: PathBuf,
}

/// Builds every program. The selection has tests' dependencies in it (`--examples` sees to that), so that tests, built
/// later, find everything compiled with the very features they need.
pub fn programs() -> Result<Programs> {
    build(&["build", "--workspace", "--bins", "--examples"])
}

/// Builds every program and every test.
pub fn tests() -> Result<Programs> {
    build(&["test", "--workspace", "--no-run"])
}

fn build(arguments: &[&str]) -> Result<Programs> {
    let mut cargo = cargo(arguments);
    cargo.arg("--message-format=json-render-diagnostics");
    let (mut witan, mut demo) = (None, None);
    let succeeded = lines(&mut cargo, |line| {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return };
        let path = message["executable"].as_str().filter(|_| message["profile"]["test"] == false).map(PathBuf::from);
        let target = &message["target"];
        match (target["kind"][0].as_str(), target["name"].as_str()) {
            (Some("bin"), Some("witan")) => witan = path.or(witan.take()),
            (Some("example"), Some("demo")) => demo = path.or(demo.take()),
            _ => {}
        }
    })?;
    ensure!(succeeded, "{cargo:?} did not succeed");
    let (witan, demo) = witan.zip(demo).context("cargo has not told where it has built witan and its demo")?;
    Ok(Programs { witan, demo })
}

/// Builds the plugins; answers with the folder of the components.
pub fn guests() -> Result<PathBuf> {
    let out = root().join("target/plugins");
    let components = crate::guests::build(&root(), &out)?;
    println!("{} plugins in {}", components.len(), out.display());
    Ok(out)
}

/// Whether a program of this name is in the search path.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Installs Debian packages, and says so. Elsewhere, or without the right to, says what to install.
pub fn install(packages: &[&str]) -> Result<()> {
    let named = packages.join(" ");
    if !is_installed("apt-get") {
        bail!("{named} missing, and there is no apt-get here; install it with this system's package manager");
    }
    println!("installing {named} with apt-get");
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect();
    // A machine that was never updated knows no packages at all.
    apt(&install)
        .or_else(|_| apt(&["update"]).and_then(|()| apt(&install)))
        .with_context(|| format!("install {named}; try: sudo apt-get install {named}"))
}

/// Runs apt-get as root.
pub fn apt(arguments: &[&str]) -> Result<()> {
    let root = is_root();
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.args(["-n", "apt-get"]);
    }
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    run(&mut command)
}

/// Whether this process is root's: /proc/self belongs to who runs it.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        tally.read("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.10s");
        tally.read("test model::result ... ok");
        assert_eq!(tally, Tally { passed: 14, failed: 1, ignored: 1 });
    }
}
