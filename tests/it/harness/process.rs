//! A process under test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{PATIENCE, eventually};

/// Lines of a process's log that a failing test shows.
const SHOWN_LINES: usize = 40;

/// The version of the program that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The one under test.
    This,
    /// The previous one.
    Previous,
}

impl Version {
    /// The program.
    ///
    /// # Panics
    /// When the previous version has not been built: these tests must not be skipped silently.
    pub(crate) fn program(self) -> PathBuf {
        if self == Self::This {
            return PathBuf::from(env!("CARGO_BIN_EXE_witan"));
        }
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/previous/witan");
        let program = std::env::var_os("WITAN_PREVIOUS").map_or(built, PathBuf::from);
        assert!(
            program.is_file(),
            "{}: there is no program of the previous version; run `cargo xtask previous`",
            program.display()
        );
        program
    }

    /// A command that runs the program, without arguments yet.
    pub(crate) fn witan(self) -> Command {
        Command::new(self.program())
    }
}

/// Memory that any coordinator under test may write to (RLIMIT_DATA), in KiB: one GiB. Address space is not what is limited: the plugin
/// engine reserves a lot of it, and uses little.
const COORDINATOR_KIB: u32 = 1 << 20;

/// Whether a command runs a coordinator of the version under test, directly or through another program.
fn is_coordinator(command: &Command) -> bool {
    let mut words = std::iter::once(command.get_program()).chain(command.get_args());
    words.any(|word| word == env!("CARGO_BIN_EXE_witan"))
        && words.next().is_some_and(|word| word == "serve" || word == "dev")
}

/// The same command, run by a shell that first sets this limit of its own.
fn limited(command: &Command, what: &str, most: u32) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit "$1" "$2" && shift 2 && exec "$@""#, "sh", what, &most.to_string()]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

/// A started process; killed when dropped, so that it does not outlive a test that panics.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ready: Option<oneshot::Receiver<String>>,
    facts: HashMap<String, String>,
}

impl Process {
    /// The binary under test.
    pub(crate) fn witan() -> Command {
        Version::This.witan()
    }

    /// The same command, run with this limit on open files.
    ///
    /// # Panics
    /// When it is started, if this machine does not allow that many.
    pub(crate) fn with_files(command: &Command, files: u32) -> Command {
        limited(command, "-n", files)
    }

    /// Starts `command`, with its log in `folder`. It serves once [`Process::ready`] returns. A coordinator has at most
    /// [`COORDINATOR_KIB`] of memory.
    pub(crate) fn start(name: &str, command: Command, folder: &Path) -> Self {
        let stderr = File::options().create(true).append(true).open(folder.join(format!("{name}.log")));
        Self::start_logging_to(stderr.expect("open a log").into(), name, command, folder)
    }

    /// The same, with its log in `stderr`.
    pub(crate) fn start_logging_to(stderr: Stdio, name: &str, mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        if is_coordinator(&command) {
            command = limited(&command, "-d", COORDINATOR_KIB);
            // Its allocator would reserve a gigabyte at its start, before anything needs it.
            command.env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
            // Nobody knows how full the disk of a machine is on which tests run.
            command.env("WITAN_PLACEMENT__FULL_DISK", "100");
        }
        command.env("RUST_LOG", "info,h2=warn,hyper=warn,fjall=warn,lsm_tree=warn");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, ready) = oneshot::channel();
        std::thread::spawn(move || {
            let mut sender = Some(sender);
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready")
                    && let Some(sender) = sender.take()
                {
                    // The receiver may be gone.
                    let _ = sender.send(line);
                }
            }
        });
        Self { name: name.to_owned(), child, log, ready: Some(ready), facts: HashMap::new() }
    }

    /// Waits for the `ready` line and keeps its values.
    pub(crate) async fn ready(&mut self) {
        let Some(ready) = self.ready.take() else { return };
        let line = match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(line)) => line,
            Ok(Err(_)) => panic!("{} ended before it was ready\n{}", self.name, self.tail()),
            Err(_) => panic!("{} was not ready in time\n{}", self.name, self.tail()),
        };
        let facts = line.split_whitespace().filter_map(|word| word.split_once('='));
        self.facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    }

    /// The value of `name` in the `ready` line.
    pub(crate) fn fact(&self, name: &str) -> &str {
        self.facts.get(name).unwrap_or_else(|| panic!("the ready line of {} has no {name}", self.name))
    }

    /// The address of this name in the `ready` line.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.fact(name).parse().unwrap_or_else(|error| panic!("{name} of {}: {error}", self.name))
    }

    /// Sends a signal, such as "TERM", with the shell's built-in `kill`, which exists everywhere.
    pub(crate) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().expect("run sh");
        assert!(sent.success(), "{kill} failed for {}", self.name);
    }

    /// Sends SIGSTOP, and waits until none of its threads is running, which on a busy machine takes a while.
    pub(crate) async fn stop(&self) {
        self.signal("STOP");
        eventually("every thread has stopped", async || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the process is there");
            let mut states = threads.map(|thread| {
                let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
                // After the name, which is in parentheses and may contain any character.
                stat.rsplit(')').next()?.trim_start().chars().next()
            });
            states.all(|state| state == Some('T')).then_some(())
        })
        .await;
    }

    /// The process' number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the processes that it has started, for wrappers such as strace.
    pub(crate) fn signal_children(&self, signal: &str) {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        if !children.trim().is_empty() {
            let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {children}")]).status();
            assert!(sent.is_ok(), "run sh");
        }
    }

    /// `kill -9`; the process has ended when this returns.
    pub(crate) fn kill(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal_children("KILL");
        }
        // It may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM, as an operator does, and waits for its end.
    pub(crate) async fn end(&mut self) {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status}\n{}", self.name, self.tail());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended after [`PATIENCE`].
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for a process") {
                return status;
            }
            assert!(Instant::now() < until, "{} did not end within {PATIENCE:?}\n{}", self.name, self.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines of its log.
    pub(crate) fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the end of what {} logged\n{}", self.name, self.tail());
        }
    }
}
