//! Components that are small and would take all memory, or all of a processor, to compile.

use std::fs;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::friend::Friend;
use super::{Target, peak_mib};
use crate::harness::{Dev, Plugins, eventually};

/// A component that looks like a policy until it is linked, with `count` functions of this number of loops, each of which has as many
/// parameters. Each name makes another one.
fn loops(name: &str, count: usize, loops: usize, parameters: usize) -> Vec<u8> {
    let types = "i64 ".repeat(parameters);
    let (push, drop) = ("i64.const 7 ".repeat(parameters), "drop ".repeat(parameters));
    let function = format!("(func {push} {} {drop})", "loop (type $through) end ".repeat(loops));
    let module = format!("(type $through (func (param {types}) (result {types}))) {}", function.repeat(count));
    let text = format!(
        r#"(component (core module ${name} {module}) (instance $none)
             (export "witan:plugin/policy@0.1.0" (instance $none)) (export "witan:plugin/plugin@0.1.0" (instance $none)))"#
    );
    wat::parse_str(text).expect("valid text")
}

/// Refused once it has taken the memory that it may take: a component of 8 KB.
fn hungry(name: &str) -> Vec<u8> {
    loops(name, 1, 1000, 200)
}

/// Compiled in seconds: a component of 50 KB.
pub(super) fn busy(name: &str) -> Vec<u8> {
    loops(name, 50, 100, 200)
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// What a component is refused with.
async fn refused(plugins: &Plugins, component: Vec<u8>) -> Status {
    let status = plugins.send(component).await.expect_err("it is refused");
    assert_eq!((status.code(), &*reason(&status)), (Code::FailedPrecondition, "PLUGIN_REFUSED"), "{status}");
    status
}

/// The processes in which this one compiles.
fn compiling(process: u32) -> Vec<PathBuf> {
    let is_child = |folder: &PathBuf| {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let is_of = read("status")
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == process.to_string()));
        is_of && read("cmdline").contains("compile-plugin")
    };
    let processes = fs::read_dir("/proc").expect("list the processes").flatten().map(|entry| entry.path());
    processes.filter(is_child).collect()
}

pub(super) async fn one_compiling(process: u32) -> PathBuf {
    eventually("a component is being compiled", async || compiling(process).pop()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn components_that_take_all_memory() {
    let target = Target::start().await;
    let plugins = Plugins::new(target.address());
    let certainly = refused(&plugins, loops("certainly", 1, 2000, 200)).await;
    assert!(certainly.message().contains("block parameters"), "{certainly}");
    let names = ["a", "b", "c", "d", "e", "f"];
    for status in join_all(names.map(|name| refused(&plugins, hungry(name)))).await {
        assert!(status.message().contains("512 MiB of memory"), "{status}");
    }
    target.friend.served(20).await;
    // The next one compiles.
    plugins.upload("set-union").await;
    target.withstands("components that take all memory", 100, ()).await;
}

/// Limits on it, what it was given, and its end with the coordinator.
#[tokio::test(flavor = "multi_thread")]
async fn a_compiling_process_has_limits_and_nothing_else_and_ends_with_its_coordinator() {
    let mut target = Target::start().await;
    let uploads = ["a", "b", "c", "d"].map(|name| {
        let plugins = Plugins::new(target.address());
        // Nobody waits for the answers.
        tokio::spawn(async move { plugins.send(busy(name)).await })
    });
    let process = target.cluster.coordinator().id();
    let checked = async || {
        let child = one_compiling(process).await;
        let limits = fs::read_to_string(child.join("limits")).ok()?;
        let limit = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let memory = limit("Max data size")?;
        // It may not have come to that yet.
        memory.contains("536870912").then_some(())?;
        assert!(limit("Max cpu time").expect("a limit").trim_start().starts_with("20 "), "{limits}");
        assert!(limit("Max core file size").expect("a limit").trim_start().starts_with("0 "), "{limits}");
        let environment = fs::read(child.join("environ")).ok()?;
        let files: Vec<_> = fs::read_dir(child.join("fd")).ok()?.flatten().map(|entry| entry.file_name()).collect();
        // It may have ended since.
        (!compiling(process).is_empty() && !files.is_empty()).then_some((environment, files))
    };
    let (environment, mut files) = eventually("a compiling process is looked at", checked).await;
    assert_eq!(String::from_utf8_lossy(&environment), "MIMALLOC_ARENA_EAGER_COMMIT=0\0");
    files.sort();
    assert_eq!(files, ["0", "1", "2"]);
    assert!(compiling(process).len() <= 2);
    target.friend.served(20).await;
    target.friend.end().await;

    let child = one_compiling(process).await;
    target.cluster.coordinator().signal("KILL");
    target.cluster.coordinator().ended().await;
    eventually("it has ended", async || (!child.exists() || is_zombie(&child)).then_some(())).await;
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Whether a process has ended, and nobody has asked for its result: in a container there may be nobody who does.
fn is_zombie(process: &Path) -> bool {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && line.contains('Z'))
}

/// It would be a crash loop before the coordinator serves.
#[tokio::test(flavor = "multi_thread")]
async fn components_in_the_watched_folder() {
    let folder = tempfile::tempdir().expect("make a folder");
    let watched = folder.path().join("plugins");
    fs::create_dir(&watched).expect("make a folder");
    fs::write(watched.join("hungry.wasm"), hungry("h")).expect("write a file");
    fs::write(watched.join("busy.wasm"), busy("b")).expect("write a file");
    fs::write(watched.join("good.wasm"), Plugins::component("set-union")).expect("write a file");
    let watched = watched.to_str().expect("a path in UTF-8");
    let mut compiled = Vec::new();
    for start in ["first", "second"] {
        // Ready whatever is in the folder.
        let mut dev = Dev::start_with(folder.path(), &["--plugins", watched]).await;
        if start == "first" {
            dev.api().tenant("t", |_| {}).await;
            dev.api().tenant("carts", |tenant| tenant.conflict_mode = "siblings".to_owned()).await;
        }
        let friend = Friend::start(dev.address());
        friend.served(20).await;
        let plugins = Plugins::new(dev.address());
        // A name waits for the scan.
        plugins.bind("carts", "conflict-resolver", "set-union").await.expect("it is in the folder");
        let why = eventually("the hungry one is refused", async || {
            let log = fs::read_to_string(folder.path().join("dev.log")).expect("a log");
            let refusals = log.lines().filter(|line| line.contains("plugin refused") && line.contains("hungry.wasm"));
            refusals.map(str::to_owned).nth(compiled.len())
        })
        .await;
        assert!(why.contains("512 MiB of memory"), "{why}");
        assert_eq!(why.contains("remembered"), start == "second", "{why}");
        compiled.push(why);
        friend.served(20).await;
        friend.end().await;
        let peak = peak_mib(dev.id());
        println!("{start} start: {peak} MiB at most");
        assert!(peak < 400, "{peak} MiB");
        dev.process().end().await;
    }
}
