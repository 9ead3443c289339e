//! `dev`: builds, uploads and binds a project whenever it changes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use notify::{RecursiveMode, Watcher};

use crate::project::Project;
use crate::{make, output};

/// How long a folder has to be quiet before it is built: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// Longest delay of a build by further changes.
const LATEST: Duration = Duration::from_secs(1);
/// Folders whose changes are what builds and editors leave behind, not what a person writes.
const IGNORED: [&str; 6] = ["target", "build", ".git", ".zig-cache", "node_modules", "__pycache__"];

/// Arguments of `dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project's folder
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub project: PathBuf,
    /// The tenant [default: all tenants without a binding]
    #[arg(short, long)]
    pub tenant: Option<String>,
    /// Configuration for the plugin: text, or @FILE
    #[arg(long, value_name = "TEXT")]
    pub configuration: Option<String>,
    /// Address of a coordinator
    #[arg(long, env = "WITAN_ENDPOINT", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    pub endpoint: String,
    /// Build, upload and bind once, and end
    #[arg(long)]
    pub once: bool,
}

/// Watches a project until this process is stopped.
pub fn run(args: &Args) -> Result<()> {
    let project = Project::open(&args.project)?;
    let (sender, changes) = mpsc::channel();
    let is_ours = {
        let folder = project.folder.clone();
        move |path: &Path| is_source(&folder, path)
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let changed = match &event {
            Ok(event) => !event.kind.is_access() && event.paths.iter().any(|path| is_ours(path)),
            // Something was missed.
            Err(_) => true,
        };
        if changed {
            // Nobody waits once the program ends.
            _ = sender.send(());
        }
    })
    .context("watch the project's folder")?;
    watcher.watch(&project.folder, RecursiveMode::Recursive).context("watch the project's folder")?;
    loop {
        let began = Instant::now();
        match swap(&project, args) {
            Ok(bound) => output::line(&format!("{bound} ({:.1} s)", began.elapsed().as_secs_f64()))?,
            Err(error) if args.once => return Err(error),
            Err(error) => output::note(&format!("error: {error:#}; what was bound before stays")),
        }
        if args.once {
            return Ok(());
        }
        wait_for_change(&changes)?;
    }
}

/// Whether a change of this path may be a change of the source.
fn is_source(folder: &Path, path: &Path) -> bool {
    let below = path.strip_prefix(folder).unwrap_or(path);
    !below.components().any(|part| IGNORED.iter().any(|ignored| part.as_os_str() == *ignored))
}

/// Waits for a change, and then until none has followed for a while.
fn wait_for_change(changes: &Receiver<()>) -> Result<()> {
    changes.recv().context("watch the project's folder")?;
    let until = Instant::now() + LATEST;
    while Instant::now() < until {
        match changes.recv_timeout(QUIET) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => bail!("the project's folder is not watched any longer"),
        }
    }
    Ok(())
}

/// Builds the project, uploads it, and binds it; returns what `witan plugin bind` says.
fn swap(project: &Project, args: &Args) -> Result<String> {
    make::build(project)?;
    let mut push = witan(args);
    push.args(["plugin", "push", "--output", "json"]).arg(project.component());
    let pushed: serde_json::Value = serde_json::from_slice(&answer(&mut push)?).context("read what was pushed")?;
    let digest = pushed["plugins"][0]["digest"].as_str().context("find the digest of what was pushed")?;
    let mut bind = witan(args);
    bind.args(["plugin", "bind", project.hook.as_str(), digest]);
    if let Some(tenant) = &args.tenant {
        bind.args(["--tenant", tenant]);
    }
    if let Some(configuration) = &args.configuration {
        bind.args(["--configuration", configuration]);
    }
    Ok(String::from_utf8_lossy(&answer(&mut bind)?).trim().to_owned())
}

/// The program `witan`: beside this one, or in the search path.
fn witan(args: &Args) -> Command {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("witan")));
    let program = beside.filter(|beside| beside.is_file()).map_or(OsString::from("witan"), PathBuf::into_os_string);
    let mut command = Command::new(program);
    command.env("WITAN_ENDPOINT", &args.endpoint).stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Runs a command to its end and returns its standard output.
fn answer(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the coordinator did not take it {}", said.trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_leave_behind_is_no_change() {
        let folder = Path::new("/p/target/lines");
        for (path, source) in [
            ("/p/target/lines/src/lib.rs", true),
            ("/p/target/lines/cases/a.json", true),
            ("/p/target/lines/target/x/y", false),
            ("/p/target/lines/build/lines.wasm", false),
            ("/p/target/lines/.git/index", false),
        ] {
            assert_eq!(is_source(folder, Path::new(path)), source, "{path}");
        }
    }

    #[test]
    fn changes_that_follow_each_other_are_one() {
        let (sender, changes) = mpsc::channel();
        (0..100).for_each(|_| sender.send(()).unwrap());
        wait_for_change(&changes).unwrap();
        assert!(changes.try_recv().is_err());
        drop(sender);
        assert!(wait_for_change(&changes).is_err());
    }
}
