//! `witan plugin new`, `build` and so on, which become the author's kit: here a script in its place that shows what it was started with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A folder with `witan` in it, and nothing else. On the same file system as the program, which is large: it is linked, not copied.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a folder");
    fs::hard_link(env!("CARGO_BIN_EXE_witan"), folder.path().join("witan")).expect("link the program");
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut witan = Command::new(folder.join("witan"));
    witan.args(arguments).env("PATH", "").env_remove("WITAN_ENDPOINT").output().expect("run witan")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn without_the_kit_the_error_says_how_to_get_it() {
    let folder = folder();
    let missing = run(folder.path(), &["plugin", "new", "--hook", "routing-hook", "mine"]);
    assert_eq!(missing.status.code(), Some(1));
    for part in ["`witan plugin new`", "witan-plugin", "cargo build --release -p witan-kit"] {
        assert!(text(&missing.stderr).contains(part), "{}", text(&missing.stderr));
    }
    let missing = run(folder.path(), &["plugin", "check", "--output", "json"]);
    let said: serde_json::Value = serde_json::from_slice(&missing.stdout).expect("an object");
    assert!(said["error"].to_string().contains("witan-plugin"), "{said}");
}

#[test]
fn the_kit_gets_every_argument_and_its_exit_code_is_that_of_the_command() {
    let folder = folder();
    let kit = folder.path().join("witan-plugin");
    fs::write(&kit, "#!/bin/sh\nprintf '%s|' \"$@\"\nprintf '%s' \"$WITAN_ENDPOINT\"\nexit 7\n")
        .expect("write the kit");
    fs::set_permissions(&kit, fs::Permissions::from_mode(0o755)).expect("make it a program");
    for (arguments, expected) in [
        (&["plugin", "bench", "--help"][..], "bench|--help|http://127.0.0.1:50051"),
        (&["plugin", "test", "a b.wasm", "--cases", "-x"], "test|a b.wasm|--cases|-x|http://127.0.0.1:50051"),
        (&["plugin", "check", "--output", "json", "a"], "check|a|--output|json|http://127.0.0.1:50051"),
        (&["--endpoint", "http://h:1", "plugin", "dev", "--once"], "dev|--once|http://h:1"),
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!((text(&ran.stdout), ran.status.code()), (expected, Some(7)), "{}", text(&ran.stderr));
    }
}
