//! A full disk on a real file system: a small one in memory, mounted in a mount namespace that the test creates.
//!
//! The test runs itself again inside the namespace. It fails where neither root nor an unprivileged user may create one: what
//! a node does when its disk is full must have been tested.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::condition::Condition;
use witan_node::engine::fjall::{Fjall, Options};
use witan_node::engine::{Engine, EngineError};

const INSIDE: &str = "WITAN_TEST_INSIDE_NAMESPACE";
const MIB: u64 = 1 << 20;

/// Runs the test of this name inside a namespace; true if this process is inside already.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("the path of this test");
    let attempts: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let mut said = String::new();
    for flags in attempts {
        let probe = Command::new("unshare").args(flags).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
        match probe {
            Ok(output) if output.status.success() => {
                let mut run = Command::new("unshare");
                run.args(flags).arg(&this).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
                assert!(run.status().expect("unshare runs").success(), "{test} failed inside its namespace");
                return false;
            }
            Ok(output) => said.push_str(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => said.push_str(&error.to_string()),
        }
    }
    panic!("no small file system can be mounted here, neither as root nor in a user namespace: {said}");
}

fn mount(folder: &Path, bytes: u64) {
    let status =
        Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(folder).status();
    assert!(status.expect("mount runs").success());
}

fn options(min_free_bytes: u64) -> Options {
    Options { min_free_bytes, memtable_bytes: 4 * MIB, cache_bytes: MIB, workers: 1 }
}

fn row(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// A value that cannot be compressed, and that is different for each row.
fn value(n: u32) -> Bytes {
    let mut state = u64::from(n) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..64 << 10).map(next).collect()
}

/// Writes rows until one is refused. Returns the number of acknowledged rows, and the error.
fn fill(engine: &dyn Engine, from: u32) -> (u32, EngineError) {
    for n in from.. {
        if let Err(error) = engine.write(vec![(row(n), Some(value(n)))]).and_then(|()| engine.sync()) {
            return (n, error);
        }
    }
    unreachable!("no disk is endless");
}

fn check(engine: &dyn Engine, rows: &[u32]) {
    for n in rows {
        assert_eq!(engine.get(&row(*n)).expect("reads still work"), Some(value(*n)), "row {n} was acknowledged");
    }
}

/// Retries a write until it succeeds: an engine that has to reopen its database does so only from time to time.
fn write_again(engine: &dyn Engine, n: u32) {
    let start = Instant::now();
    while let Err(error) = engine.write(vec![(row(n), Some(value(n)))]).and_then(|()| engine.sync()) {
        assert!(start.elapsed() < Duration::from_secs(60), "there is room again, and still: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn writes_are_refused_before_the_disk_is_full_and_taken_again_after() {
    if !inside("writes_are_refused_before_the_disk_is_full_and_taken_again_after") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    mount(folder.path(), 100 * MIB);
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![1; 30 << 20]).unwrap();
    let engine = Fjall::open(folder.path().join("store"), options(40 * MIB)).unwrap();
    let (rows, error) = fill(&engine, 0);
    assert_eq!(error, EngineError::Full);
    assert!(rows > 50, "{rows}");
    let acknowledged: Vec<u32> = (0..rows).collect();
    check(&engine, &acknowledged);
    assert_eq!(engine.get(&row(rows)), Ok(None), "refused means not written");
    assert!(engine.usage().unwrap().percent > 50.0);

    std::fs::remove_file(&ballast).unwrap();
    engine.write(vec![(row(rows), Some(value(rows)))]).unwrap();
    engine.sync().unwrap();
    drop(engine);
    let engine = Fjall::open(folder.path().join("store"), options(0)).unwrap();
    check(&engine, &acknowledged);
    check(&engine, &[rows]);
}

#[test]
fn a_disk_that_others_fill_to_the_brim_loses_nothing_acknowledged() {
    if !inside("a_disk_that_others_fill_to_the_brim_loses_nothing_acknowledged") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    mount(folder.path(), 100 * MIB);
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![1; 60 << 20]).unwrap();
    let engine = Fjall::open(folder.path().join("store"), options(0)).unwrap();
    // The engine has no reserve: its own writes fail, in the journal, in a table or in the mark. Which it is differs between rounds.
    let mut acknowledged: Vec<u32> = Vec::new();
    let mut next = 0;
    for round in 0..6 {
        let (refused, _) = fill(&engine, next);
        acknowledged.extend(next..refused);
        // Some writes may still find room; only acknowledged ones count.
        let more = refused + 1..refused + 20;
        let put = |n: &u32| engine.write(vec![(row(*n), Some(value(*n)))]).and_then(|()| engine.sync());
        acknowledged.extend(more.filter(|n| put(n).is_ok()));
        next = refused + 20;
        assert!(next > 50, "{next}");
        check(&engine, &acknowledged);

        std::fs::remove_file(&ballast).unwrap();
        write_again(&engine, next);
        acknowledged.push(next);
        next += 1;
        check(&engine, &acknowledged);
        assert_eq!(engine.condition(), Condition::Serving, "round {round}");
        // Others take up all that is free, but for a few MiB.
        let stat = rustix::fs::statvfs(folder.path()).unwrap();
        let rest = (stat.f_bavail * stat.f_frsize).saturating_sub(3 * MIB + round * MIB / 2);
        std::fs::write(&ballast, vec![1; rest as usize]).unwrap();
    }
    std::fs::remove_file(&ballast).unwrap();
    drop(engine);
    let engine = Fjall::open(folder.path().join("store"), options(0)).unwrap();
    check(&engine, &acknowledged);
}
