//! The data folder that every server starts from. `initdb` takes seconds, but copying its result does not, so it runs once per version
//! and machine: the template is kept next to the compiled tests.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::give;
use crate::program::{self, User};

/// Arguments of `initdb`; part of the template's name, so that other arguments make another template.
const ARGUMENTS: [&str; 7] = [
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--no-sync",
    "--wal-segsize=4",
    "--pgdata",
];

/// Makes `to` a fresh data folder that belongs to `user`.
pub(super) fn copy(to: &Path, user: Option<User>) {
    let from = template(user);
    copy_folder(&from, to, user);
}

/// The template, created if it does not exist. One process creates it, the others wait.
fn template(user: Option<User>) -> PathBuf {
    let initdb = program::find(&["initdb"]);
    let version = Command::new(&initdb).arg("--version").output().expect("run initdb").stdout;
    let made_by = format!("{}{ARGUMENTS:?}", String::from_utf8_lossy(&version));
    let cache = cache();
    fs::create_dir_all(&cache).expect("make a folder for the template");
    let lock = File::create(cache.join("postgres.lock")).expect("open the template's lock");
    lock.lock().expect("lock the template");
    let template = cache.join("postgres");
    let stamp = cache.join("postgres.stamp");
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == made_by) && template.exists() {
        return template;
    }
    // Existing content is of another version, or incomplete.
    let _ = fs::remove_dir_all(&template);
    // The server's user may have no access to the cache.
    let workshop = tempfile::Builder::new().prefix("witan-initdb-").tempdir().expect("make a temporary folder");
    give(workshop.path(), user);
    let fresh = workshop.path().join("data");
    initialize(&initdb, &fresh, user);
    copy_folder(&fresh, &template, None);
    fs::write(stamp, made_by).expect("mark the template as complete");
    template
}

/// Next to the compiled tests in target/debug/servers, or else among the temporary files.
fn cache() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let built = own.ancestors().find(|folder| folder.join("deps").is_dir()).map(Path::to_path_buf);
    built.unwrap_or_else(std::env::temp_dir).join("servers")
}

fn initialize(initdb: &Path, folder: &Path, user: Option<User>) {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(initdb);
    command.args(ARGUMENTS).arg(folder).current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().expect("run initdb");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {errors}", output.status);
}

fn copy_folder(from: &Path, to: &Path, user: Option<User>) {
    fs::create_dir(to).unwrap_or_else(|error| panic!("make {}: {error}", to.display()));
    give(to, user);
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("list {}: {error}", from.display())) {
        let entry = entry.expect("list a folder");
        let beside = to.join(entry.file_name());
        if entry.file_type().expect("look at a file").is_dir() {
            copy_folder(&entry.path(), &beside, user);
        } else {
            fs::copy(entry.path(), &beside).unwrap_or_else(|error| panic!("copy to {}: {error}", beside.display()));
            if let Some(user) = user {
                chown(&beside, Some(user.uid), Some(user.gid)).expect("give a file to the server's user");
            }
        }
    }
}

/// A killed server leaves a small System V shared memory segment behind, of which a machine has a limited number. The seventh line of
/// its lock file names it.
pub(super) fn release_shared_memory(data: &Path) {
    let Ok(lock_file) = fs::read_to_string(data.join("postmaster.pid")) else { return };
    let Some(id) = lock_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else { return };
    // Without ipcrm the segment stays until the machine restarts.
    let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
}
