//! A server's processes. They are known by the folder that they work in, which is the server's alone: so none is missed,
//! not even one whose parent was killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::program::User;
use crate::{PATIENCE, eventually};

/// A server that has been started.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    folder: PathBuf,
    log: PathBuf,
    /// Where in the log this run begins.
    log_from: usize,
}

/// Why a server does not answer.
#[derive(Debug)]
pub(crate) struct Silent {
    /// Why, with the server's log.
    pub(crate) why: String,
    /// Whether it found its port taken.
    pub(crate) port_taken: bool,
}

impl Process {
    /// Starts `command` in `folder`, what it says appended to `log`, as `user` or as whoever runs the test.
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
        // What a terminal sends to the tests is not for the server; the reaper ends it.
        command.process_group(0);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        // For the reaper, where there is no /proc.
        fs::write(folder.join("pid"), child.id().to_string()).expect("note the process id");
        Self { name, child, folder: folder.to_owned(), log: log.to_owned(), log_from }
    }

    /// Waits until `answers` says that the server does.
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

    /// The last of what it has said since it was started.
    pub(crate) fn log(&self) -> String {
        const TOLD: usize = 16 << 10;
        let log = fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(TOLD).max(self.log_from.min(log.len()));
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// Whether its first process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// `kill -9` of all its processes; gone when this returns.
    pub(crate) fn kill(&mut self) {
        let left = eventually(|| {
            let processes = self.processes();
            signal("KILL", &processes);
            self.child.try_wait().ok().flatten().filter(|_| processes.is_empty())
        });
        assert!(left.is_some(), "{} cannot be killed: {:?} are left", self.name, self.processes());
    }

    /// Asks its first process to end, and waits; kills what does not.
    pub(crate) fn end(&mut self, by: &str) {
        // Once it has been waited for, its id may be somebody else's.
        if let Ok(None) = self.child.try_wait() {
            signal("CONT", &self.processes());
            signal(by, &[self.child.id()]);
            let _ = eventually(|| self.child.try_wait().ok().flatten());
        }
        self.kill();
    }

    /// Stops all its processes; they stand when this returns.
    pub(crate) fn pause(&self) {
        let stands = eventually(|| {
            // The first one first: it starts the others.
            signal("STOP", &[self.child.id()]);
            let all = self.processes();
            signal("STOP", &all);
            all.iter().all(|id| is_stopped(*id)).then_some(())
        });
        assert!(stands.is_some(), "{} cannot be paused", self.name);
    }

    /// Lets all its processes go on.
    pub(crate) fn resume(&self) {
        signal("CONT", &self.processes());
    }

    /// Of this run, and of another that has been started in the same folder since.
    fn processes(&self) -> Vec<u32> {
        working_in(&self.folder).unwrap_or_else(|| family(self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What has ended may have been started again since, in the same folder.
        if !self.has_ended() {
            self.kill();
        }
    }
}

/// All processes that work in a folder, or below it; `None` where there is no /proc to tell.
pub(crate) fn working_in(folder: &Path) -> Option<Vec<u32>> {
    let all = fs::read_dir("/proc").ok()?;
    let ids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Some(ids.filter(|id| works_in(*id, folder)).collect())
}

/// A process without a folder is no more.
fn works_in(id: u32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
}

/// True, too, of a process that is gone, and where there is no /proc to tell.
fn is_stopped(id: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { return true };
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
}

/// A process and its children, where there is no /proc.
fn family(id: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat="]).output().map(|told| told.stdout);
    let listed = String::from_utf8_lossy(&listed.unwrap_or_default()).into_owned();
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let ids: (u32, u32) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((ids, words.next()?.starts_with('Z')))
    };
    let rows = listed.lines().filter_map(row);
    rows.filter(|((own, parent), dead)| !dead && (*own == id || *parent == id)).map(|((own, _), _)| own).collect()
}

/// Sends a signal, such as "STOP", through the shell's own `kill`, which is everywhere. Whoever is gone does not mind.
pub(crate) fn signal(signal: &str, ids: &[u32]) {
    if ids.is_empty() {
        return;
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let mut kill = Command::new("sh");
    kill.args(["-c", &format!("kill -{signal} {}", ids.join(" "))]).stdin(Stdio::null()).stderr(Stdio::null());
    let _ = kill.status().expect("run sh");
}
