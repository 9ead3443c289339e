//! `build`: compiles a project with its language's own tools, and makes a component of what they compile.

mod c;
mod go;
mod javascript;
mod python;
mod rust;
mod tool;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::language::Language;
use crate::output;
use crate::project::Project;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project's folder
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub project: PathBuf,
}

/// Builds a project and prints what came of it.
pub fn run(args: &Args) -> Result<()> {
    let project = Project::open(&args.project)?;
    let bytes = build(&project)?;
    output::line(&format!("{}: {} bytes", project.component().display(), output::grouped(bytes as u64)))?;
    Ok(())
}

/// Builds a project's component; returns its size in bytes.
pub fn build(project: &Project) -> Result<usize> {
    let folder = project.folder.join("build");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    match project.language {
        Language::Rust => rust::build(project),
        Language::C => c::build(project),
        Language::Go => go::build(project),
        Language::Python => python::build(project),
        Language::JavaScript => javascript::build(project),
    }
}
