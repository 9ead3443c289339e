//! The author's kit as authors use it: the program itself, in empty folders outside of this repository, with real compilers.

mod c;
mod commands;
mod rust;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder that the kit is run in.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("make a folder") }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Runs the kit in a folder below this one.
    fn run_in(&self, folder: &str, arguments: &[&str]) -> Ran {
        Ran(self.command(folder, arguments).output().expect("run the kit"))
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_in("", arguments)
    }

    fn command(&self, folder: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_witan-plugin"));
        command.current_dir(self.dir.path().join(folder)).args(arguments).env("PATH", search_path());
        command
    }

    /// Makes a project named after its hook.
    fn project(&self, hook: &str, language: &str) {
        self.run(&["new", "--hook", hook, "--language", language, hook]).succeeded();
    }

    /// Replaces a text in a file, which must have it.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.path(file);
        let text = fs::read_to_string(&path).expect("read a file");
        assert!(text.contains(from), "{file} has no {from:?}");
        fs::write(path, text.replace(from, to)).expect("write a file");
    }

    /// Builds the project of a hook, and checks that everything that its author is promised of it is so.
    fn project_keeps_its_promises(&self, hook: &str) {
        let built = self.run_in(hook, &["build"]);
        assert!(built.succeeded().contains(&format!("{hook}.wasm")), "{built:?}");
        let tested = self.run_in(hook, &["test", "--output", "json"]);
        let tested: serde_json::Value = serde_json::from_str(&tested.succeeded()).expect("JSON");
        assert_eq!((&tested["name"], &tested["hook"]), (&hook.into(), &hook.into()), "{tested}");
        let files = fs::read_dir(self.path(&format!("{hook}/cases"))).expect("list the cases").count() as u64;
        // A probe for each configuration that the cases use.
        assert!(tested["failed"] == 0 && tested["passed"].as_u64() > Some(files), "{tested}");
        let checked = self.run_in(hook, &["check", "--output", "json"]);
        let checked: serde_json::Value = serde_json::from_str(&checked.succeeded()).expect("JSON");
        assert_eq!((&checked["accepted"], &checked["class"]), (&true.into(), &"standard".into()), "{checked}");
        assert_eq!(checked["world"], hook);
    }
}

/// What a run of the kit has printed.
#[derive(Debug)]
struct Ran(Output);

impl Ran {
    /// The standard output of a run that succeeded.
    fn succeeded(&self) -> String {
        assert!(self.0.status.success(), "{}\n{}", self.0.status, self.all());
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// Everything that a run with this exit code has printed.
    fn failed(&self, code: i32) -> String {
        assert_eq!(self.0.status.code(), Some(code), "{}", self.all());
        self.all()
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&[&self.0.stdout[..], &self.0.stderr].concat()).into_owned()
    }
}

/// The search path, with the compilers that `cargo xtask setup` has installed.
fn search_path() -> OsString {
    let compilers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/authors/python/bin");
    assert!(compilers.is_dir(), "{} is missing; run `cargo xtask setup`", compilers.display());
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(compilers).chain(std::env::split_paths(&path))).expect("join the search path")
}
