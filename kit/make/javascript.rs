//! JavaScript: componentize-js, which puts a JavaScript engine and the project's module into a component.

use anyhow::Result;

use super::tool::{find, run_in, take};
use crate::bindings;
use crate::project::Project;

/// What the engine can do with an operating system: without all of it, it needs none.
const FEATURES: [&str; 5] = ["stdio", "random", "clocks", "http", "fetch-event"];

/// Builds a project in JavaScript: the module `src/plugin.js`.
pub(super) fn build(project: &Project) -> Result<usize> {
    // npm installs it below the project, unless it is asked for another place.
    let local = project.folder.join("node_modules/.bin/componentize-js");
    let local = local.to_string_lossy();
    let package = "@bytecodealliance/componentize-js";
    let mut tool = find("componentize-js", package, &[&[&*local], &["componentize-js"]], "--version")?;
    let (wit, made) = (format!("wit/{}", bindings::VERSION), project.made());
    tool.args(["src/plugin.js", "--wit", &wit, "--world-name", project.hook.as_str(), "--out"]).arg(&made);
    tool.arg("--disable").args(FEATURES);
    run_in(&project.folder, &mut tool, "make a component of the plugin")?;
    take(&made, &project.component())
}
