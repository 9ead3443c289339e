//! `cargo xtask first-week`: runs the page docs/first-week.md.
//!
//! Its code blocks are the script ([`crate::script`]): what a reader copies is what is tested.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use witan_servers::{Port, Postgres, Redis, Workplace};

use crate::script::{script, with_ports};
use crate::{python, run, tools};

/// The page, below the repository's root.
const PAGE: &str = "docs/first-week.md";
/// Every port that the page names; each is replaced by a free one.
const PORTS: [&str; 7] = ["50051", "50052", "50053", "50054", "50061", "9090", "9091"];
/// Lines of each log that are printed if a command fails.
const SHOWN: usize = 12;

/// Options of `cargo xtask first-week`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The program to use [default: built from this repository]
    #[arg(long, value_name = "FILE")]
    witan: Option<PathBuf>,
    /// The folder with the plugins [default: built from this repository]
    #[arg(long, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
}

/// Runs the page.
pub fn run(arguments: &Arguments) -> Result<()> {
    tools::install()?;
    let plugins = match &arguments.plugins {
        Some(plugins) => plugins.clone(),
        None => run::guests()?,
    };
    let witan = match &arguments.witan {
        Some(witan) => witan.clone(),
        None => run::witan()?,
    };
    check(&witan, &plugins)
}

/// Runs the page with this program and these plugins.
pub fn check(witan: &Path, plugins: &Path) -> Result<()> {
    let missing: Vec<&str> = ["bash", "openssl", "curl"].into_iter().filter(|name| !run::is_installed(name)).collect();
    if !missing.is_empty() {
        run::install(&missing)?;
    }
    let root = run::root();
    let examples = root.join("examples/python");
    let python = python::environment(&examples.join("requirements.txt"), &root.join("target/python"), &[])?;
    let text = fs::read_to_string(root.join(PAGE)).with_context(|| format!("read {PAGE}"))?;
    let ports = PORTS.map(|documented| (documented, Port::free()));
    let ports = ports.each_ref().map(|(documented, free)| (*documented, free.number()));
    let script = script(PAGE, &with_ports(&text, &ports))?;

    let started = Instant::now();
    // Dropped in reverse order: the page's processes before the servers that they use.
    let postgres = Postgres::start();
    let redis = Redis::start();
    let workplace = Workplace::new("witan-first-week-");
    let folder = workplace.path();
    // The folder holds only what the page puts there, and this.
    let bin = folder.join("bin");
    fs::create_dir(&bin).context("make a folder for the program")?;
    symlink(fs::canonicalize(witan).with_context(|| format!("find {}", witan.display()))?, bin.join("witan"))
        .context("link the program")?;
    let file = folder.join("first-week.sh");
    fs::write(&file, &script).with_context(|| format!("write {}", file.display()))?;

    let mut bash = Command::new("bash");
    bash.arg(&file).current_dir(folder).stdin(Stdio::null());
    // Variables that the user has set for `witan` must not reach the page's programs.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("WITAN_"))) {
        bash.env_remove(name);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(bin).chain(env::split_paths(&path))).context("make a search path")?;
    bash.env("PATH", path).env("PYTHON", python).env("EXAMPLES", &examples).env("PLUGINS", fs::canonicalize(plugins)?);
    bash.env("DATABASE", postgres.url() + "?sslmode=disable").env("REDIS", redis.url());
    // Nobody knows how full the disk of this machine is.
    bash.env("WITAN_PLACEMENT__FULL_DISK", "100");
    let status = bash.status().context("run bash")?;
    if !status.success() {
        show_logs(&folder.join("log"))?;
        bail!("{PAGE} does not work as written: the line that failed is named above, followed by the ends of the logs");
    }
    println!(
        "\nThe first week took {} minutes; every process that it started has ended.",
        run::minutes(started.elapsed())
    );
    Ok(())
}

/// Prints the end of every log.
fn show_logs(folder: &Path) -> Result<()> {
    // There is none if the page fails at its beginning.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    logs.sort();
    for log in logs {
        let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("\n--- {} ---", log.file_name().unwrap_or_default().to_string_lossy());
        lines[lines.len().saturating_sub(SHOWN)..].iter().for_each(|line| eprintln!("{line}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_a_script() {
        let page = fs::read_to_string(run::root().join(PAGE)).unwrap();
        let script = script(PAGE, &page).unwrap();
        assert_eq!(script.lines().count(), page.lines().count());
        for port in PORTS {
            assert!(script.contains(port), "{port}");
        }
        assert!(!script.contains("by-hand") && script.contains("cat >coordinator-1.yaml"));
    }
}
