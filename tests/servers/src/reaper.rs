//! Nothing outlives a test, however it ends. A shell started by each test process waits for the end of a pipe that only that process
//! holds; when the process has ended, even if killed, the shell kills its remaining servers and removes their folders. (A parent death
//! signal exists on Linux only, and is sent when the *thread* that started the server ends.)

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Reads folders, one per line, until the pipe ends. Then every process that works in one of them is asked to end at once (PostgreSQL
/// releases its shared memory), killed after two seconds, and the folder is removed. Without /proc, the file `pid` in the folder names
/// the process.
const SCRIPT: &str = r#"
folders=""
while IFS= read -r folder; do folders="$folders$folder
"; done
processes() {
    if [ -e /proc/self/cwd ]; then
        for process in /proc/[0-9]*; do
            case "$(readlink "$process/cwd" 2>/dev/null)" in "$1" | "$1"/*) echo "${process#/proc/}" ;; esac
        done
    else
        cat "$1/pid" 2>/dev/null
    fi
}
end() {
    [ -d "$1" ] || return
    for round in 1 2 3 4 5 6 7 8 9 10; do
        left="$(processes "$1")"
        [ -n "$left" ] || break
        kill -CONT $left 2>/dev/null
        if [ "$round" -lt 5 ]; then kill -QUIT $left 2>/dev/null; else kill -KILL $left 2>/dev/null; fi
        sleep 0.5
    done
    rm -rf "$1"
}
printf '%s' "$folders" | while IFS= read -r folder; do end "$folder" & done
wait
"#;

static REAPER: Mutex<Option<Child>> = Mutex::new(None);

/// Registers a server's folder for cleanup after the end of this process.
///
/// # Panics
/// When the shell cannot be run, or the folder's name contains a line break.
pub(crate) fn watch(folder: &Path) {
    let folder = folder.to_str().filter(|name| !name.contains('\n')).expect("a folder with an ordinary name");
    let mut reaper = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    let shell = reaper.get_or_insert_with(start);
    let line = format!("{folder}\n");
    shell.stdin.as_mut().expect("its input is a pipe").write_all(line.as_bytes()).expect("the reaper reads");
}

fn start() -> Child {
    // A separate process group, so that signals of a terminal to the tests do not reach it.
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run sh")
}
