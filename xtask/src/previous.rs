//! `cargo xtask previous`: the previous version's program, built from this repository's history, for the tests that run both versions
//! together (`tests/it/previous.rs`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run::{self, Steps, cargo};

/// The previous version: the commit of the last release, and until there is one, the last commit before the wire protocol, a stored
/// format or the schema changed. Moved after a release, never together with a change of what versions share: that change would be
/// tested against itself.
const COMMIT: &str = "ed75ab79e99950391b3a727cfd92f4d30cd89723";
/// Digits of the commit that the program's version shows.
const SHOWN: usize = 12;
/// The variable that names a program built elsewhere.
const GIVEN: &str = "WITAN_PREVIOUS";

/// Runs the command.
pub fn previous() -> Result<()> {
    let mut steps = Steps::default();
    let program = steps.step("build the previous version", program)?;
    let program =
        program.with_context(|| format!("there is no history to build it from; set {GIVEN} to its program"))?;
    println!("{}", program.display());
    Ok(())
}

/// The program; `None` if there is no history to build it from. Does nothing if it has been built.
pub fn program() -> Result<Option<PathBuf>> {
    if let Some(given) = env::var_os(GIVEN) {
        let given = fs::canonicalize(&given).with_context(|| format!("{GIVEN}={}", given.display()))?;
        println!("{GIVEN} names {}", given.display());
        return Ok(Some(given));
    }
    let root = run::root();
    let folder = root.join("target/previous");
    let (program, stamp) = (folder.join("witan"), folder.join("commit"));
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|built| built == COMMIT) {
        println!("found {}, built from {}", program.display(), &COMMIT[..SHOWN]);
        return Ok(Some(program));
    }
    if !root.join(".git").exists() {
        println!("this is not a git clone: without history there is no previous version");
        return Ok(None);
    }
    // What is there was built from another commit.
    _ = fs::remove_file(&stamp);
    fetch()?;
    let source = folder.join("source");
    unpack(&source)?;
    mark(&source)?;
    adopt_profiles(&source)?;
    let built = build(&source, &folder.join("built"))?;
    let beside = folder.join("witan.new");
    fs::copy(&built, &beside).with_context(|| format!("copy {}", built.display()))?;
    fs::rename(&beside, &program).with_context(|| format!("make {}", program.display()))?;
    fs::write(&stamp, COMMIT).with_context(|| format!("write {}", stamp.display()))?;
    Ok(Some(program))
}

/// Fetches the commit if this clone, which may be shallow, does not have it.
fn fetch() -> Result<()> {
    if !run::is_installed("git") {
        run::install(&["git"])?;
    }
    let ways: [&[&str]; 2] = [&["fetch", "--depth", "1", "origin", COMMIT], &["fetch", "--unshallow", "origin"]];
    let mut said = String::new();
    for way in ways {
        if is_known() {
            return Ok(());
        }
        println!("the previous version, {COMMIT}, is not in this clone; running git {}", way.join(" "));
        said = run::output(&mut git(way)).err().map_or_else(String::new, |error| format!("{error:#}"));
    }
    if !is_known() {
        bail!(
            "the previous version, {COMMIT}, is not in this clone and could not be fetched; fetch it from a clone that has it \
             (git fetch URL main), or set {GIVEN} to its program\n{said}"
        );
    }
    Ok(())
}

fn is_known() -> bool {
    let known = git(&["cat-file", "-e", &format!("{COMMIT}^{{commit}}")]).stderr(Stdio::null()).status();
    known.is_ok_and(|status| status.success())
}

fn git(arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.current_dir(run::root()).args(arguments).stdin(Stdio::null());
    git
}

/// Unpacks its sources into `source`, which is emptied first.
fn unpack(source: &Path) -> Result<()> {
    _ = fs::remove_dir_all(source);
    fs::create_dir_all(source).with_context(|| format!("make {}", source.display()))?;
    let archive = source.with_extension("tar");
    run::run(git(&["archive", "--format", "tar", "--output"]).arg(&archive).arg(COMMIT))?;
    // With the current time (-m): cargo would not recompile files that are older than what it compiled from another commit.
    run::run(Command::new("tar").arg("-x").arg("-m").arg("-f").arg(&archive).arg("-C").arg(source))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))
}

/// Adds the commit to the versions of its packages, as build metadata.
///
/// To cargo, packages of one name, one version and one path within their workspace are the same, wherever that workspace is. In one
/// build folder they would take each other's place, and the tests of one version could run the other one.
fn mark(source: &Path) -> Result<()> {
    let change = |name: &str, marked: fn(&str) -> Option<String>| {
        let path = source.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let text = marked(&text).with_context(|| format!("{} has no version to add the commit to", path.display()))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    change("Cargo.toml", marked_manifest)?;
    change("Cargo.lock", marked_lock)
}

fn marked_manifest(text: &str) -> Option<String> {
    let start = text.find("[workspace.package]")?;
    Some(format!("{}{}", &text[..start], with_mark(&text[start..])?))
}

/// The workspace's own packages are those without a source.
fn marked_lock(text: &str) -> Option<String> {
    let packages = text.split("\n\n").map(|package| {
        let ours = package.contains("[[package]]") && !package.contains("\nsource = ");
        if ours { with_mark(package) } else { Some(package.to_owned()) }
    });
    Some(packages.collect::<Option<Vec<_>>>()?.join("\n\n"))
}

/// Adds the mark to the first version in the text.
fn with_mark(text: &str) -> Option<String> {
    let (before, rest) = text.split_once("\nversion = \"")?;
    let (version, after) = rest.split_once('"')?;
    Some(format!("{before}\nversion = \"{version}+{}\"{after}", &COMMIT[..SHOWN]))
}

/// Replaces its build profiles by those of this workspace. A dependency that both versions use is compiled once only if its profile is
/// the same.
fn adopt_profiles(source: &Path) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let manifest = source.join("Cargo.toml");
    let (_, ours) = without_profiles(&read(&run::root().join("Cargo.toml"))?);
    let (theirs, _) = without_profiles(&read(&manifest)?);
    fs::write(&manifest, theirs + &ours).with_context(|| format!("write {}", manifest.display()))
}

/// A manifest without its profiles, and the profiles.
fn without_profiles(manifest: &str) -> (String, String) {
    let (mut rest, mut profiles) = (String::new(), String::new());
    let mut in_profile = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_profile = line.starts_with("[profile.");
        }
        let part = if in_profile { &mut profiles } else { &mut rest };
        part.push_str(line);
        part.push('\n');
    }
    (rest, profiles)
}

/// Builds the program in this workspace's build folder, so that dependencies that both versions share are compiled once.
fn build(source: &Path, target: &Path) -> Result<PathBuf> {
    // With its own lock file. The selection brings in tests' dependencies, whose features `run::tests` has compiled the others with.
    let mut cargo = cargo(["build", "--workspace", "--bin", "witan", "--examples", "--locked"]);
    cargo.arg("--message-format=json-render-diagnostics").arg("--manifest-path").arg(source.join("Cargo.toml"));
    // A folder of its own, so that it does not replace this version's program.
    cargo.arg("--target-dir").arg(target).env("CARGO_BUILD_BUILD_DIR", build_folder()?);
    // Its own packages are compiled as fast as possible: nobody debugs or changes them, and they serve few requests. (These variables
    // do not apply to packages that the profile names.)
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "false").env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_INCREMENTAL", "0");
    let mark = &COMMIT[..SHOWN];
    let (mut program, mut compiled, mut unmarked) = (None, 0, Vec::new());
    let succeeded = run::lines(&mut cargo, |line| {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return };
        let (Some(manifest), Some(package)) = (message["manifest_path"].as_str(), message["package_id"].as_str())
        else {
            return;
        };
        let target = &message["target"];
        if !Path::new(manifest).starts_with(source) {
            compiled += usize::from(message["fresh"] == false);
        } else if !package.ends_with(mark) {
            unmarked.push(package.to_owned());
        } else if target["kind"][0] == "bin" && target["name"] == "witan" {
            program = message["executable"].as_str().map(PathBuf::from);
        }
    })?;
    ensure!(succeeded, "{cargo:?} did not succeed");
    ensure!(unmarked.is_empty(), "packages without a mark in their version: {}", unmarked.join(", "));
    println!("{compiled} dependencies were compiled for it, the others are shared");
    program.context("cargo did not report where it built the program witan")
}

/// The folder in which cargo compiles this workspace.
fn build_folder() -> Result<PathBuf> {
    let metadata = run::output(&mut cargo(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let folder = metadata["build_directory"].as_str().or_else(|| metadata["target_directory"].as_str());
    folder.map(PathBuf::from).context("cargo's metadata has no build folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_spelt_out() {
        assert!(
            COMMIT.len() == 40 && COMMIT.chars().all(|digit| digit.is_ascii_digit() || ('a'..='f').contains(&digit))
        );
    }

    #[test]
    fn profiles_are_taken_out_of_a_manifest() {
        let manifest =
            "[package]\na = 1\n\n[profile.dev]\nb = 2\n[profile.dev.package.\"*\"]\nc = 3\n[features]\nd = 4\n";
        let profiles = "[profile.dev]\nb = 2\n[profile.dev.package.\"*\"]\nc = 3\n";
        let rest = "[package]\na = 1\n\n[features]\nd = 4\n";
        assert_eq!(without_profiles(manifest), (rest.to_owned(), profiles.to_owned()));
    }

    #[test]
    fn packages_of_the_workspace_are_marked_and_others_are_not() {
        let mark = &COMMIT[..SHOWN];
        let manifest = "[workspace]\nmembers = []\n\n[workspace.package]\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        let marked = format!(
            "[workspace]\nmembers = []\n\n[workspace.package]\nversion = \"0.1.0+{mark}\"\nedition = \"2024\"\n"
        );
        assert_eq!(marked_manifest(manifest), Some(marked));
        assert_eq!(marked_manifest("[package]\nversion = \"0.1.0\"\n"), None);

        let other = "[[package]]\nname = \"anyhow\"\nversion = \"1.0.0\"\nsource = \"registry+https://a\"";
        let ours =
            |version: &str| format!("[[package]]\nname = \"witan\"\nversion = \"{version}\"\ndependencies = []\n");
        let lock = |version: &str| format!("version = 4\n\n{other}\n\n{}", ours(version));
        assert_eq!(marked_lock(&lock("0.1.0")), Some(lock(&format!("0.1.0+{mark}"))));
    }
}
