//! Python: componentize-py, which puts CPython and the project's modules into a component, and stubs in place of an operating system.

use anyhow::Result;

use super::tool::{find, run_in, take};
use crate::bindings;
use crate::project::Project;

/// The folder of the bindings, below the project's.
const BINDINGS: &str = "build/bindings";

/// Builds a project in Python: the module `plugin` in `src`.
pub(super) fn build(project: &Project) -> Result<usize> {
    let tool = || find("componentize-py", "componentize-py", &[&["componentize-py"]], "--version");
    let wit = format!("wit/{}", bindings::VERSION);
    let options = ["--quiet", "--wit-path", &wit, "--world", project.hook.as_str()];
    // For editors and type checkers alone: the component has its own.
    if !project.folder.join(BINDINGS).exists() {
        let mut bindings = tool()?;
        bindings.args(options).args(["bindings", BINDINGS]);
        run_in(&project.folder, &mut bindings, "generate bindings")?;
    }
    let made = project.made();
    let mut componentize = tool()?;
    componentize.args(options).args(["componentize", "--stub-wasi", "--python-path", "src", "plugin", "--output"]);
    run_in(&project.folder, componentize.arg(&made), "make a component of the plugin")?;
    take(&made, &project.component())
}
