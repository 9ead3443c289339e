//! Cases: what a plugin is asked, and what it has to answer, each in a JSON file of its own. `model` has what they are, `spelling` says how
//! they are written.

mod model;
mod spelling;

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use witan_kernel::hook::Hook;
use witan_kernel::limit::VALUE_BYTES;

pub use model::{Asked, Case, Decision, Expected, Expects, Outcome};
pub use spelling::parse;

/// Most cases of a plugin. They are tried one after the other, and each may take as long as a call may.
const CASES: usize = 1000;
/// Largest file of a case, in bytes: two values of the largest size in base64, and what is around them.
const CASE_BYTES: u64 = 3 * VALUE_BYTES as u64;

/// Reads all cases of a folder, in the order of their names.
pub fn read_all(folder: &Path, hook: Hook) -> Result<Vec<Case>> {
    let shown = folder.display();
    let mut names = witan_file::list(folder, CASES + 1).with_context(|| format!("list {shown}"))?;
    names.retain(|name| Path::new(name).extension().is_some_and(|kind| kind == "json"));
    ensure!(names.len() <= CASES, "{shown} has more than {CASES} files: divide them, and use --cases");
    names.sort();
    let read = |name: &OsString| {
        let path = folder.join(name);
        let text = witan_file::read(&path, CASE_BYTES).with_context(|| format!("read {}", path.display()))?;
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        parse(&stem, hook, &text).with_context(|| path.display().to_string())
    };
    names.iter().map(read).collect()
}
