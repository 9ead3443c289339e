//! No acknowledgement of a write leaves a node before the sync that covers it has returned, observed from the operating system: the
//! node runs under strace, and its journal writes, syncs and sends are compared, byte by byte.

mod lane;
mod strace;
mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use crate::harness::Process;
use lane::Lane;
use strace::Trace;

/// Writes of one trace, in batches that are in flight together.
const WRITES: u64 = 400;

/// The findings of a trace.
struct Shown {
    /// Acknowledgements sent.
    acknowledged: usize,
    /// Syncs of the journal.
    syncs: usize,
    /// Writes whose acknowledgement left before a sync that began after they were written had returned.
    uncovered: Vec<u64>,
}

#[tokio::test]
async fn no_acknowledgement_leaves_before_its_sync() {
    let shown = traced("sync").await;
    println!("{} acknowledgements, {} syncs, none before its own", shown.acknowledged, shown.syncs);
    assert_eq!(shown.acknowledged as u64, WRITES);
    assert_eq!(shown.uncovered, [0; 0], "acknowledged before their sync");
    assert!(shown.syncs > 1, "the trace shows syncs");
}

/// The control experiment: without waiting for syncs, the comparison finds violations.
#[tokio::test]
async fn the_comparison_notices_an_acknowledgement_without_a_sync() {
    let shown = traced("os").await;
    assert_eq!(shown.acknowledged as u64, WRITES);
    assert!(!shown.uncovered.is_empty(), "with durability os acknowledgements do not wait");
}

async fn traced(durability: &str) -> Shown {
    let folder = tempfile::tempdir().expect("make a folder");
    let output = folder.path().join("trace");
    let mut command = under_strace(&output);
    command.args(["node", "--id", "node-1", "--listen", "127.0.0.1:0", "--shards", "2", "--durability", durability]);
    command.arg("--data-dir").arg(folder.path().join("node-1"));
    let mut process = Process::start("node-1", command, folder.path());
    process.ready().await;
    let mut lane = Lane::open(process.address("address")).await;
    lane.write(WRITES).await;
    drop(lane);
    // strace ends after the process it runs, when all of the trace is written.
    process.signal_children("TERM");
    process.ended().await;
    judge(&Trace::read(&output))
}

/// The binary under test, under strace.
///
/// # Panics
/// When strace is missing: the test must not be skipped silently.
fn under_strace(output: &Path) -> Command {
    let found = Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found, "this test needs strace, which is missing: install it with `apt-get install strace`");
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--decode-fds=path,socket", "-x", "--string-limit=1000000", "--signal=none"]);
    command.args(["--seccomp-bpf", "--trace=fsync,fdatasync,write,writev,pwrite64,sendmsg,sendto"]);
    command.arg("--output").arg(output).arg(env!("CARGO_BIN_EXE_witan"));
    command
}

fn judge(trace: &Trace) -> Shown {
    let journals = trace.journals();
    let written: HashMap<u64, (&str, usize)> = journals
        .iter()
        .flat_map(|journal| lane::marks(&journal.bytes).map(move |(id, at)| (id, (journal.path, journal.line_at(at)))))
        .collect();
    let acknowledged = wire::acknowledgements(trace);
    let covered = |id: &u64, sent: usize| {
        let (journal, at) = written.get(id).unwrap_or_else(|| panic!("write {id} is not in the journal"));
        trace.syncs.iter().any(|sync| sync.path == *journal && sync.began > *at && sync.returned < sent)
    };
    let uncovered = acknowledged.iter().filter(|(id, sent)| !covered(id, *sent)).map(|(id, _)| *id).collect();
    let syncs = trace.syncs.iter().filter(|sync| sync.path.ends_with(".jnl")).count();
    Shown { acknowledged: acknowledged.len(), syncs, uncovered }
}
