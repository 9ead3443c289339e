//! C: clang and the C library of zig. Its flags are the project's own, in the file that editors read too.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use witan_guests::componentize;

use super::tool::{find, run_in};
use crate::project::Project;

/// The flags, one on each line.
const FLAGS: &str = "compile_flags.txt";

/// Builds a project in C: all of `src` and `witan`.
pub(super) fn build(project: &Project) -> Result<usize> {
    let flags = project.folder.join(FLAGS);
    ensure!(flags.is_file(), "{} is missing: take it from a new project", flags.display());
    let mut zig = find("zig", "ziglang", &[&["zig"], &["python3", "-m", "ziglang"]], "version")?;
    zig.arg("cc").arg(format!("@{FLAGS}"));
    for folder in ["src", "witan"] {
        zig.args(sources(project, folder)?);
    }
    zig.arg("-o").arg(project.module());
    run_in(&project.folder, &mut zig, "compile the plugin")?;
    componentize(&project.module(), &project.component())
}

/// The source and object files of a folder, by their paths below the project's, in order.
fn sources(project: &Project, folder: &str) -> Result<Vec<PathBuf>> {
    let path = project.folder.join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
        let name = entry?.file_name();
        let name = PathBuf::from(folder).join(name);
        if name.extension().is_some_and(|kind| kind == OsStr::new("c") || kind == OsStr::new("o")) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
