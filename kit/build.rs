//! Lists the files that new projects are made of: the templates, the SDK, the WIT, and the manifest and lock file of this repository's own
//! plugins. They are compiled into the program, so that it needs nothing but itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What is listed: a name, and the folder or file below the repository's root.
const TREES: [(&str, &str); 5] = [
    ("templates", "kit/templates"),
    ("sdk", "plugins/sdk"),
    ("wit", "wit"),
    ("plugins/Cargo.toml", "plugins/Cargo.toml"),
    ("plugins/Cargo.lock", "plugins/Cargo.lock"),
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's folder"));
    let root = root.parent().expect("the package is in the repository").to_owned();
    let mut files = Vec::new();
    for (name, path) in TREES {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
        list(&root.join(path), name, &mut files);
    }
    files.sort();
    let mut table = String::from("&[\n");
    for (name, path) in &files {
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("a string takes everything");
    }
    table.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output's folder"));
    fs::write(out.join("files.rs"), table).expect("write the table");
}

fn list(path: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) {
    if path.is_file() {
        files.push((name.to_owned(), path.to_owned()));
        return;
    }
    for entry in fs::read_dir(path).expect("list a folder of the repository") {
        let entry = entry.expect("list a folder of the repository");
        let file = entry.file_name().into_string().expect("names are UTF-8");
        if file != "target" {
            list(&entry.path(), &format!("{name}/{file}"), files);
        }
    }
}
