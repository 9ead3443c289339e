//! A server's processes. They are identified by their working folder, which only this server uses, so none is missed, not even one
//! whose parent was killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::program::User;
use crate::{PATIENCE, eventually};

/// A started server.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    folder: PathBuf,
    log: PathBuf,
    /// Position in the log at which this run begins.
    log_from: usize,
}

/// A server that does not answer.
#[derive(Debug)]
pub(crate) struct Silent {
    /// The reason, with the end of the server's log.
    pub(crate) why: String,
    /// Whether its port was taken.
    pub(crate) port_taken: bool,
}

impl Process {
    /// Starts `command` in `folder`, with its output appended to `log`, as `user` or as the user that runs the test.
    pub(crate) fn start(
        name: &'static str,
        command: &mut Command,
        folder: &Path,
        log: &Path,
        user: Option<User>,
    ) -> Self {
        let log_from = fs::metadata(log).map_or(0, |log| log.len() as usize);
        let out = File::options().create(true).append(true).open(log).expect("open the server's log");
        command.current_dir(folder).env("LC_ALL", "C").stdin(Stdio::null());
        command.stdout(out.try_clone().expect("duplicate the log")).stderr(out);
        // Signals of a terminal to the tests do not reach the server; the reaper ends it.
        command.process_group(0);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        // For the reaper, if there is no /proc.
        fs::write(folder.join("pid"), child.id().to_string()).expect("note the process id");
        Self { name, child, folder: folder.to_owned(), log: log.to_owned(), log_from }
    }

    /// Waits until `answers` returns true.
    ///
    /// # Errors
    /// [`Silent`] when it has ended.
    ///
    /// # Panics
    /// When it does not answer within [`PATIENCE`].
    pub(crate) fn await_answer(&mut self, mut answers: impl FnMut() -> bool) -> Result<(), Silent> {
        let name = self.name;
        let seen = eventually(|| {
            if answers() {
                return Some(Ok(()));
            }
            let ended = self.child.try_wait().expect("look whether it has ended")?;
            let log = self.log();
            let port_taken = log.to_ascii_lowercase().contains("address already in use");
            Some(Err(Silent { why: format!("{name} ended with {ended}; its log:\n{log}"), port_taken }))
        });
        seen.unwrap_or_else(|| panic!("{name} does not answer within {PATIENCE:?}; its log:\n{}", self.log()))
    }

    /// The end of its output since it was started.
    pub(crate) fn log(&self) -> String {
        const SHOWN: usize = 16 << 10;
        let log = fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(SHOWN).max(self.log_from.min(log.len()));
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// Whether its first process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// `kill -9` of all its processes; they have ended when this returns.
    pub(crate) fn kill(&mut self) {
        let left = eventually(|| {
            let processes = self.processes();
            signal("KILL", &processes);
            self.child.try_wait().ok().flatten().filter(|_| processes.is_empty())
        });
        assert!(left.is_some(), "{} cannot be killed: {:?} are left", self.name, self.processes());
    }

    /// Asks its first process to end, and waits; kills processes that do not end.
    pub(crate) fn end(&mut self, by: &str) {
        // Once it has been waited for, another process may get its id.
        if let Ok(None) = self.child.try_wait() {
            signal("CONT", &self.processes());
            signal(by, &[self.child.id()]);
            let _ = eventually(|| self.child.try_wait().ok().flatten());
        }
        self.kill();
    }

    /// Pauses all its processes; none is running when this returns.
    pub(crate) fn pause(&self) {
        let paused = eventually(|| {
            // The first process first, since it starts the others.
            signal("STOP", &[self.child.id()]);
            let all = self.processes();
            signal("STOP", &all);
            all.iter().all(|id| is_stopped(*id)).then_some(())
        });
        assert!(paused.is_some(), "{} cannot be paused", self.name);
    }

    /// Resumes all its processes.
    pub(crate) fn resume(&self) {
        signal("CONT", &self.processes());
    }

    /// Processes of this run, and of another one started in the same folder since.
    fn processes(&self) -> Vec<u32> {
        working_in(&self.folder).unwrap_or_else(|| family(self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A server that has ended may have been restarted in the same folder.
        if !self.has_ended() {
            self.kill();
        }
    }
}

/// All processes that work in a folder or below it; `None` without /proc.
pub(crate) fn working_in(folder: &Path) -> Option<Vec<u32>> {
    let all = fs::read_dir("/proc").ok()?;
    let ids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Some(ids.filter(|id| works_in(*id, folder)).collect())
}

/// A process without a working folder has ended.
fn works_in(id: u32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
}

/// Also true for a process that has ended, and without /proc.
fn is_stopped(id: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { return true };
    // The name, in parentheses, may contain any character.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
}

/// A process and its children, for systems without /proc.
fn family(id: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat="]).output().map(|output| output.stdout);
    let listed = String::from_utf8_lossy(&listed.unwrap_or_default()).into_owned();
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let ids: (u32, u32) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((ids, words.next()?.starts_with('Z')))
    };
    let rows = listed.lines().filter_map(row);
    rows.filter(|((own, parent), dead)| !dead && (*own == id || *parent == id)).map(|((own, _), _)| own).collect()
}

/// Sends a signal, such as "STOP", through the shell's built-in `kill`, which exists everywhere. Processes that have ended are ignored.
pub(crate) fn signal(signal: &str, ids: &[u32]) {
    if ids.is_empty() {
        return;
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let mut kill = Command::new("sh");
    kill.args(["-c", &format!("kill -{signal} {}", ids.join(" "))]).stdin(Stdio::null()).stderr(Stdio::null());
    let _ = kill.status().expect("run sh");
}
