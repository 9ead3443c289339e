//! What compiling a component may take, and what becomes of one that takes more.

use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::{Compilations, Digest, Limits, PluginError, Reference};

use crate::guest::Guest;
use crate::{COMPILER, World, ample, name, place, question, required, start_with, tenant, wait_for};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(name: &str) -> Vec<u8> {
    Guest::policy(name, 1).build()
}

fn with(fields: &str) -> Vec<u8> {
    Guest::policy("heavy", 1).with(|guest| guest.fields += fields).build()
}

/// `count` functions, each with loops that have parameters.
fn loops(count: usize, loops: usize, parameters: usize) -> Vec<u8> {
    let types = "i64 ".repeat(parameters);
    let (push, drop) = ("i64.const 7 ".repeat(parameters), "drop ".repeat(parameters));
    let each = "loop (type $through) end ".repeat(loops);
    let function = format!("(func {push} {each} {drop})");
    with(&format!("(type $through (func (param {types}) (result {types}))) {}", function.repeat(count)))
}

/// Fewer values than are counted before compiling, and more memory than compiling may take: a component of 10 KB.
fn hungry() -> Vec<u8> {
    loops(1, 1000, 200)
}

async fn refused(world: &World, component: &[u8]) -> String {
    match world.stage(component).await.unwrap_err() {
        PluginError::Refused(why) => why.to_string(),
        other => panic!("not a refusal: {other}"),
    }
}

/// Compilations that ended in each way, since the host was started.
fn counts(world: &World) -> (u64, u64, u64) {
    let Compilations { compiled, refused, not_now, .. } = world.host.compilations();
    (compiled, refused, not_now)
}

#[tokio::test]
async fn what_is_certainly_too_much_is_refused_before_it_is_compiled() {
    let world = World::new();
    let why = refused(&world, &loops(1, 2000, 200)).await;
    assert!(why.contains("values, block parameters"), "{why}");
    assert_eq!(counts(&world), (0, 0, 0), "no process was started");
}

#[tokio::test]
async fn what_takes_too_much_memory_is_refused_for_good_and_others_are_served_meanwhile() {
    let world = World::new();
    world.put("a", POLICY, &policy("neighbour")).await.unwrap();
    let why = refused(&world, &hungry()).await;
    assert!(why.contains("took more than 512 MiB of memory"), "{why}");
    let (events, _) = world.host.watch();
    assert!(events.iter().any(|event| event.kind == EventKind::Refused && event.detail.contains("512 MiB")));
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    world.stage(&policy("other")).await.unwrap();
    assert_eq!(counts(&world), (2, 1, 0));
    // In the folder, too, and after a restart.
    let (_, mut events) = world.host.watch();
    place(&world.folder().join("hungry.wasm"), &hungry());
    wait_for(&mut events, |event| event.kind == EventKind::Refused).await;
    let world = world.restart();
    world.scanned().await;
    let (events, _) = world.host.watch();
    let refused = events.iter().find(|event| event.kind == EventKind::Refused).expect("it is in the folder");
    assert!(refused.detail.contains("512 MiB") && refused.detail.contains("remembered"), "{}", refused.detail);
    assert_eq!(counts(&world), (0, 0, 0), "it was not compiled again");
    // Under other limits it may be compiled, and so it is tried.
    let World { dir, store, host } = world;
    drop(host);
    let mut limits = ample();
    limits.standard.compile_memory = 256 << 20;
    let host = start_with(&dir, &store, limits, COMPILER);
    let world = World { dir, store, host };
    world.scanned().await;
    assert_eq!(counts(&world), (0, 1, 0));
}

#[tokio::test]
async fn what_takes_too_much_cpu_time_is_refused_for_good() {
    let mut limits = ample();
    // Functions that take half a minute together, if they have the memory.
    (limits.standard.compile, limits.standard.compile_memory) = (Duration::from_secs(1), 8 << 30);
    limits.standard.policy.component = 16 << 20;
    let world = World::with(limits);
    let why = refused(&world, &loops(400, 100, 200)).await;
    assert!(why.contains("took longer than 1 s of CPU time"), "{why}");
    let again = refused(&world, &loops(400, 100, 200)).await;
    assert!(again.contains("1 s of CPU time") && again.contains("remembered"), "{again}");
    assert_eq!(counts(&world), (0, 1, 0));
}

#[tokio::test]
async fn machine_code_is_bounded() {
    let world = World::new();
    // Memories that contain a byte at each end.
    let memory = |index: usize| {
        format!(
            r#"(memory 120) (data (memory {index}) (i32.const 0) "x") (data (memory {index}) (i32.const 7864319) "x")"#
        )
    };
    let fields: String = (1..=14).map(memory).collect();
    let sparse = Guest::resolver("sparse").with(|guest| guest.fields += &fields).build();
    assert!(sparse.len() < 5000, "{}", sparse.len());
    let why = refused(&world, &sparse).await;
    assert!(why.contains("bytes of machine code; at most 33554432"), "{why}");
    assert_eq!(world.host.compilations().image_bytes, 0);
}

#[tokio::test]
async fn the_images_of_bound_plugins_stay_and_others_make_room() {
    let image = {
        let world = World::new();
        world.stage(&policy("one")).await.unwrap();
        world.host.compilations().image_bytes
    };
    // Room for three.
    let world = World::with(Limits { images: 3 * image + image / 2, ..ample() });
    world.put("a", POLICY, &policy("one")).await.unwrap();
    for other in ["two", "three", "four", "five"] {
        world.stage(&policy(other)).await.unwrap();
    }
    assert!(world.host.compilations().image_bytes <= 3 * image + image / 2);
    let World { dir, store, host } = world;
    drop(host);
    // A host that can compile nothing finds it.
    let host = start_with(&dir, &store, ample(), "/nowhere/witan");
    let world = World { dir, store, host };
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
}

#[tokio::test]
async fn where_no_process_can_be_started_what_is_bound_serves_and_the_rest_may_be_tried_again() {
    let world = World::new();
    world.put("a", POLICY, &policy("bound")).await.unwrap();
    let World { dir, store, host } = world;
    drop(host);
    let host = start_with(&dir, &store, ample(), "/nowhere/witan");
    let world = World { dir, store, host };
    let error = world.stage(&policy("new")).await.unwrap_err();
    assert!(matches!(error, PluginError::HostBusy(_)), "{error}");
    assert!(error.to_string().contains("no process to compile in can be started (No such file"), "{error}");
    assert_eq!(counts(&world), (0, 0, 1));
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    world.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    let world = world.restart();
    world.stage(&policy("new")).await.unwrap();
}

#[tokio::test]
async fn a_compiling_process_gets_no_environment_and_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let (program, seen) = (dir.path().join("spy"), dir.path().join("seen"));
    let look = r#"/bin/cat /proc/$$/environ | /usr/bin/tr "\\\\0" "\\\\n"; /bin/ls -l /proc/$$/fd"#;
    let script = format!(r"#!/bin/sh\n{{ {look}; }} > {0}.part\n/bin/mv {0}.part {0}\n", seen.display());
    // Written by another process, because a file that this one has open for writing cannot be run.
    let write = format!("printf '{script}' > {0} && chmod 700 {0}", program.display());
    assert!(Command::new("/bin/sh").args(["-c", &write]).status().unwrap().success());
    let world = World::new();
    let _listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = start_with(&world.dir, &world.store, ample(), program);
    host.stage(Bytes::from(policy("any")), None).await.unwrap_err();
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok(), "these tests have an environment");
    assert!(!seen.contains("CARGO"), "{seen}");
    let files: Vec<&str> = seen.lines().filter_map(|line| line.split_once(" -> ")).map(|link| link.1).collect();
    assert!(files.iter().filter(|file| file.starts_with("pipe:")).count() >= 2, "{seen}");
    // Whatever this process was started with is still open; the real program closes that.
    let own = ["socket:", "anon_inode:", world.dir.path().to_str().unwrap()];
    assert!(!files.iter().any(|file| own.iter().any(|own| file.starts_with(own))), "{seen}");
}

#[tokio::test]
async fn the_folder_is_not_looked_into_before_it_is_to_be() {
    let world = World::new();
    let bound = world.put("a", POLICY, &policy("bound")).await.unwrap().record.current.digest;
    place(&world.folder().join("file.wasm"), &policy("file"));
    let World { dir, store, host } = world;
    drop(host);
    let settings = crate::settings(&dir, ample(), COMPILER);
    let host = witan_plugin::PluginHost::start(settings, store.clone()).unwrap();
    let world = World { dir, store, host };
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    for reference in [name("file"), name("bound"), Reference::Digest(Digest::of(&policy("file")))] {
        let early = world.host.is_known(None, &reference, Some(Instant::now())).await.unwrap_err();
        let busy = matches!(early, PluginError::HostBusy(_)) && early.to_string().contains("has not been scanned");
        assert!(busy, "{early}");
    }
    world.host.is_known(None, &Reference::Digest(bound), Some(Instant::now())).await.unwrap();
    assert!(world.host.artifacts().iter().all(|artifact| artifact.name != "file"));
    world.host.watch_folder().unwrap();
    // Which waits for it.
    world.bind("b", POLICY, name("file")).await.unwrap();
}
