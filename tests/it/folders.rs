//! Whose a data folder is: its permissions, the node that it belongs to, and the process that has it open. And a node at SIGHUP.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use witan_wire::v1::DescribeRequest;

use crate::harness::{Process, Version, eventually, node_client, own_address};

/// A node of this id, with its data in `data`.
fn node(version: Version, id: &str, data: &Path) -> Command {
    let mut command = version.witan();
    command.args(["node", "--id", id, "--durability", "os", "--data-dir"]).arg(data);
    command.arg("--listen").arg(SocketAddr::new(own_address(), 0).to_string());
    command
}

/// The same command in a shell that lets everybody read what it creates.
fn with_open_umask(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"umask 000 && ulimit -c unlimited; exec "$@""#, "sh"]).arg(command.get_program());
    shell.args(command.get_args());
    shell
}

async fn started(command: Command, folder: &Path) -> Process {
    let mut process = Process::start("node", command, folder);
    process.ready().await;
    process
}

/// The soft limit on open files of a process.
fn open_files(process: &Process) -> String {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("the process is there");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    line.split_whitespace().nth(3).expect("the soft one").to_owned()
}

#[tokio::test]
async fn a_process_may_open_as_many_files_as_the_system_lets_it() {
    let place = tempfile::tempdir().expect("make a folder");
    let wanted = node(Version::This, "node-1", &place.path().join("data"));
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 300 && ulimit -Hn 900 && exec "$@""#, "sh"]).arg(wanted.get_program());
    command.args(wanted.get_args());
    let process = started(command, place.path()).await;
    assert_eq!(open_files(&process), "900");
}

/// The end of a node that does not start: what it says.
async fn refused(command: Command) -> String {
    let mut command = tokio::process::Command::from(command);
    let ended = command.kill_on_drop(true).output().await.expect("run witan");
    assert!(!ended.status.success(), "it starts");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// Every file and folder below `folder`, and itself.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).expect("list a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(below(&path)) } else { found.push(path) }
    }
    found
}

/// Asserts that only the owner may use anything in `folder`, and that a crash of the process leaves no core file.
fn is_private(process: &Process, folder: &Path) {
    for path in below(folder) {
        let mode = fs::metadata(&path).expect("examine a file").mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("the process is there");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
}

#[tokio::test]
async fn data_is_its_owners_whatever_the_umask_is() {
    let folder = tempfile::tempdir().expect("make a folder");
    let data = folder.path().join("node");
    let mut process = started(with_open_umask(&node(Version::This, "node-1", &data)), folder.path()).await;
    is_private(&process, &data);
    assert!(!process.tail().contains("chmod"), "{}", process.tail());
    process.end().await;

    let dev = folder.path().join("dev");
    let free = SocketAddr::new(own_address(), 0).to_string();
    let mut command = Process::witan();
    command.args(["dev", "--node-port", "0", "--listen", &free, "--admin-listen", &free, "--data-dir"]).arg(&dev);
    let mut process = started(with_open_umask(&command), folder.path()).await;
    is_private(&process, &dev);
    process.end().await;

    // A folder of before stays as it is, and the log says once how to close it.
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("open the folder");
    let process = started(node(Version::This, "node-1", &data), folder.path()).await;
    let advice = format!("chmod 700 {}", data.display());
    assert_eq!(process.tail().matches(&advice).count(), 1, "{}", process.tail());
}

#[tokio::test]
async fn a_hangup_does_not_end_a_node() {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut process = started(node(Version::This, "node-1", &folder.path().join("data")), folder.path()).await;
    process.signal("HUP");
    eventually("the node says what a hangup means", async || process.tail().contains("SIGHUP").then_some(())).await;
    let mut client = node_client(process.address("address"));
    let described = client.describe(DescribeRequest {}).await.expect("it serves").into_inner();
    assert_eq!(described.node_id, "node-1");
    process.end().await;
}

#[tokio::test]
async fn a_folder_belongs_to_one_node_and_one_process() {
    let folder = tempfile::tempdir().expect("make a folder");
    let data = folder.path().join("data");
    let mut process = started(node(Version::This, "node-3", &data), folder.path()).await;
    let store = process.fact("store").to_owned();
    let says = refused(node(Version::This, "node-3", &data)).await;
    for part in ["is in use by process", &process.id().to_string(), "--data-dir"] {
        assert!(says.contains(part), "{part:?} is not in {says}");
    }
    process.end().await;

    let says = refused(node(Version::This, "node-9", &data)).await;
    for part in ["belongs to node \"node-3\"", "node-9", "--id node-3"] {
        assert!(says.contains(part), "{part:?} is not in {says}");
    }
    // The previous version opens the folder, and this one again after it.
    for version in [Version::Previous, Version::This] {
        let mut process = started(node(version, "node-3", &data), folder.path()).await;
        assert_eq!(process.fact("store"), store, "{version:?}");
        process.end().await;
    }
}

#[tokio::test]
async fn a_folder_of_before_becomes_that_of_the_node_that_opens_it() {
    let folder = tempfile::tempdir().expect("make a folder");
    let data = folder.path().join("data");
    for version in [Version::Previous, Version::This] {
        let mut process = started(node(version, "node-3", &data), folder.path()).await;
        process.end().await;
    }
    let says = refused(node(Version::This, "node-9", &data)).await;
    assert!(says.contains("belongs to node \"node-3\""), "{says}");
}

#[tokio::test]
async fn a_coordinators_folder_that_is_in_use_says_by_whom() {
    let folder = tempfile::tempdir().expect("make a folder");
    let free = SocketAddr::new(own_address(), 0).to_string();
    let mut command = Process::witan();
    command
        .args(["dev", "--node-port", "0", "--listen", &free, "--admin-listen", &free, "--data-dir"])
        .arg(folder.path());
    let process = started(command, folder.path()).await;
    let mut second = Process::witan();
    second
        .args(["serve", "--listen", &free, "--admin-listen", &free, "--data-dir"])
        .arg(folder.path().join("coordinator"));
    let says = refused(second).await;
    for part in ["is in use by process", &process.id().to_string(), "server.data_dir"] {
        assert!(says.contains(part), "{part:?} is not in {says}");
    }
}
