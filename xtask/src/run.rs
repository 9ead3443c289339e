//! Runs the steps of a command: programs whose output is passed on, each step timed, a table of all at the end.

use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::OsStr;
use std::fmt;
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
    /// Runs one step under its title and prints how long it took.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {title}");
        let started = Instant::now();
        let result = work();
        let took = started.elapsed();
        let end = if result.is_ok() { "done" } else { "FAILED" };
        println!("<== {title}: {end} in {}", minutes(took));
        self.done.push((title.to_owned(), took));
        result.with_context(|| title.to_owned())
    }

    /// Prints a table: the minutes of each step and of all.
    pub fn account(&self) {
        println!("\n{:>8}  step", "min:s");
        for (title, took) in &self.done {
            println!("{:>8}  {title}", minutes(*took));
        }
        println!("{:>8}  in all", minutes(self.done.iter().map(|(_, took)| *took).sum()));
    }
}

/// A duration for people: minutes and seconds.
pub fn minutes(duration: Duration) -> String {
    let seconds = (duration.as_millis() + 500) / 1000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Cargo at the repository's root. Never with flags that would compile everything again: one profile serves all.
pub fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments).stdin(Stdio::null());
    // Variables that `cargo run` has set for this program would make build scripts of other packages run again.
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

/// Runs a program to its end and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}\n{}", output.status, errors.trim());
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {command:?}"))
}

/// Replaces this process by a program; returns only if that fails.
pub fn become_it(command: &mut Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("run {command:?}"))
}

/// Runs a program to its end, calls `each` with every line of its standard output, and returns whether it succeeded.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {command:?}"))?;
    let stdout = child.stdout.take().context("take the standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        each(&String::from_utf8_lossy(&line.context("read the standard output")?));
    }
    Ok(child.wait().context("wait for the end")?.success())
}

/// How many tests ran, according to the test runners' summaries.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were skipped.
    pub ignored: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

impl Tally {
    /// Adds the counts of a line, if it is a summary of Rust's test runner.
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

/// Runs tests with Rust's runner, its output passed on, and adds up its summaries. A run without success in which no test failed (one
/// did not compile, for example) is an error.
pub fn count_tests(command: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let succeeded = lines(command, |line| {
        tally.read(line);
        println!("{line}");
    })?;
    ensure!(succeeded || tally.failed > 0, "{command:?} did not succeed");
    Ok(tally)
}

/// What the demonstration needs.
#[derive(Debug)]
pub struct Programs {
    /// The coordinator, the nodes and the client, all in one program.
    pub witan: PathBuf,
    /// The program that shows them at work.
    pub demo: PathBuf,
}

/// Selected with every build, so that dependencies have the features that the tests compile them with.
const FEATURES: &str = "witan-features";

/// Builds the program `witan` and nothing else.
pub fn witan() -> Result<PathBuf> {
    let built = build(&["build", "-p", "witan", "-p", FEATURES, "--bins"])?;
    program(&built, "witan")
}

/// Builds the programs `witan` and `witan-plugin`, which is beside it, and returns the former.
pub fn authoring() -> Result<PathBuf> {
    let built = build(&["build", "-p", "witan", "-p", "witan-kit", "-p", FEATURES, "--bins"])?;
    program(&built, "witan-plugin")?;
    program(&built, "witan")
}

/// Builds the programs of the demonstration, without what only tests need.
pub fn programs() -> Result<Programs> {
    let built = build(&["build", "-p", "witan", "-p", "witan-demo", "-p", FEATURES, "--bins"])?;
    Ok(Programs { witan: program(&built, "witan")?, demo: program(&built, "demo")? })
}

/// Builds the runner of fuzz targets, with those that need this feature.
pub fn fuzz(feature: Option<&str>) -> Result<PathBuf> {
    let features = feature.map(|feature| ["--features", feature]);
    let arguments = ["build", "-p", "witan-fuzz", "-p", FEATURES, "--bin", "fuzz"].into_iter();
    let built = build(&arguments.chain(features.into_iter().flatten()).collect::<Vec<_>>())?;
    program(&built, "fuzz")
}

/// What tests need of what was built.
#[derive(Debug)]
pub struct Tested {
    /// The program.
    pub witan: PathBuf,
    /// The runner of all fuzz targets.
    pub fuzz: PathBuf,
    /// The files of every third-party crate.
    pub dependencies: HashSet<PathBuf>,
}

/// Selects every package, and all fuzz targets.
pub const EVERYTHING: [&str; 3] = ["--workspace", "--features", "witan-fuzz/host"];

/// Builds every program and every test. These programs must be used for whatever comes next: building one alone selects fewer packages,
/// and so perhaps fewer features of its dependencies, which would all be compiled again.
pub fn tests() -> Result<Tested> {
    let mut dependencies = HashSet::new();
    let programs = build_and(&[&["test", "--no-run"][..], &EVERYTHING].concat(), |message| {
        dependencies.extend(third_party(message).map(|(_, file)| file));
    })?;
    Ok(Tested { witan: program(&programs, "witan")?, fuzz: program(&programs, "fuzz")?, dependencies })
}

/// Runs a build and returns the programs that it made, tests aside, by name.
fn build(arguments: &[&str]) -> Result<HashMap<String, PathBuf>> {
    build_and(arguments, |_| ())
}

/// Runs a build, shows each message of cargo's JSON output, and returns the programs that it made, tests aside, by name.
fn build_and(arguments: &[&str], mut each: impl FnMut(&Value)) -> Result<HashMap<String, PathBuf>> {
    let mut cargo = cargo(arguments);
    let mut programs = HashMap::new();
    messages(&mut cargo, |message| {
        programs.extend(built_program(message));
        each(message);
    })?;
    Ok(programs)
}

/// Runs cargo and shows each message of its JSON output. Fails if cargo does.
pub fn messages(cargo: &mut Command, mut each: impl FnMut(&Value)) -> Result<()> {
    cargo.arg("--message-format=json-render-diagnostics");
    let succeeded = lines(cargo, |line| {
        if let Ok(message) = serde_json::from_str(line) {
            each(&message);
        }
    })?;
    ensure!(succeeded, "{cargo:?} did not succeed");
    Ok(())
}

/// The name of the third-party crate that a message of cargo's JSON output is about, with each of its files.
pub fn third_party(message: &Value) -> impl Iterator<Item = (&str, PathBuf)> {
    let manifest = message["manifest_path"].as_str().filter(|manifest| !Path::new(manifest).starts_with(root()));
    let files = manifest.and_then(|_| message["filenames"].as_array()).into_iter().flatten();
    files.filter_map(|file| Some((message["target"]["name"].as_str()?, file.as_str()?.into())))
}

/// The name and path of the program that a message of cargo's JSON output reports, if it reports one.
fn built_program(message: &Value) -> Option<(String, PathBuf)> {
    let target = &message["target"];
    let is_program = target["kind"][0] == "bin" && message["profile"]["test"] == false;
    let path = message["executable"].as_str().filter(|_| is_program)?;
    Some((target["name"].as_str()?.to_owned(), path.into()))
}

fn program(built: &HashMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    built.get(name).cloned().with_context(|| format!("cargo did not report where it built the program {name}"))
}

/// Builds the plugins; returns the folder of the components.
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

/// Installs Debian packages, and says so. On other systems, or without the permission, fails with a message that says what to install.
pub fn install(packages: &[&str]) -> Result<()> {
    let named = packages.join(" ");
    if !is_installed("apt-get") {
        bail!("{named} missing, and apt-get not found; install it with this system's package manager");
    }
    println!("installing {named} with apt-get");
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect();
    // A machine without package lists knows no package.
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

/// Whether this process runs as root: /proc/self belongs to its user.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_are_found_in_the_output_of_cargo() {
        let message = |kind: &str, test: bool| {
            let target = json!({"kind": [kind], "name": "demo"});
            json!({"target": target, "profile": {"test": test}, "executable": "/t/demo"})
        };
        assert_eq!(built_program(&message("bin", false)), Some(("demo".to_owned(), PathBuf::from("/t/demo"))));
        assert_eq!(built_program(&message("bin", true)), None);
        assert_eq!(built_program(&message("example", false)), None);
        assert_eq!(built_program(&json!({"reason": "build-finished"})), None);
    }

    #[test]
    fn files_of_third_party_crates_are_found_in_the_output_of_cargo() {
        let message = |manifest: &Path| {
            let filenames = ["/t/libbytes-1.rlib", "/t/libbytes-1.rmeta"];
            json!({"target": {"name": "bytes"}, "manifest_path": manifest, "filenames": filenames})
        };
        let theirs = message(Path::new("/registry/bytes/Cargo.toml"));
        let files: Vec<_> = third_party(&theirs).collect();
        assert_eq!(
            files,
            [("bytes", PathBuf::from("/t/libbytes-1.rlib")), ("bytes", PathBuf::from("/t/libbytes-1.rmeta"))]
        );
        assert_eq!(third_party(&message(&root().join("host/kernel/Cargo.toml"))).count(), 0);
        assert_eq!(third_party(&json!({"reason": "build-finished"})).count(), 0);
    }

    #[test]
    fn durations_are_minutes_and_seconds() {
        for (ms, shown) in [(499, "0:00"), (59_500, "1:00"), (187_000, "3:07"), (3_600_000, "60:00")] {
            assert_eq!(minutes(Duration::from_millis(ms)), shown);
        }
    }

    #[test]
    fn summaries_are_added_up() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        tally.read("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.10s");
        tally.read("test model::result ... ok");
        assert_eq!(tally, Tally { passed: 14, failed: 1, ignored: 1 });
    }
}
