//! Runs every check on this repository.

use std::path::Path;

use witan_tidy::ratchets::RATCHETS;
use witan_tidy::{Tree, judge, read};

#[test]
fn the_repository_is_tidy() {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let files = read(&Path::new(&folder).join("../..")).expect("reads the repository");
    let problems = judge(&Tree::of(&files), &RATCHETS);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n\n"));
}
