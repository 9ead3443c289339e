//! Projects in Rust.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::Desk;

/// One after the other, with one folder for what cargo compiles, so that the third-party crates are compiled once, and not again in the
/// next run of the tests.
#[test]
fn a_new_project_of_every_hook_builds_and_passes_its_cases() {
    let desk = Desk::new();
    let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rust-projects");
    std::fs::create_dir_all(&compiled).expect("make a folder");
    for hook in ["conflict-resolver", "consistency-policy", "routing-hook"] {
        desk.project(hook, "rust");
        symlink(&compiled, desk.path(&format!("{hook}/target"))).expect("link the folder");
        desk.project_keeps_its_promises(hook);
    }
}
