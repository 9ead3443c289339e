//! Projects in Rust.

use std::os::unix::fs::symlink;

use crate::Desk;

/// One after the other, with one folder for what cargo compiles, so that the third-party crates are compiled once.
#[test]
fn a_new_project_of_every_hook_builds_and_passes_its_cases() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("compiled")).expect("make a folder");
    for hook in ["conflict-resolver", "consistency-policy", "routing-hook"] {
        desk.project(hook, "rust");
        symlink(desk.path("compiled"), desk.path(&format!("{hook}/target"))).expect("link the folder");
        desk.project_keeps_its_promises(hook);
    }
}
