//! The component that a command is about: a file that is named, or what the project in the working folder has built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use witan_kernel::limit::{COMPONENT_BYTES, PLUGIN_CONFIGURATION_BYTES};
use witan_plugin::Limits;
use witan_plugin::trial::Trial;

use crate::project::Project;

/// Arguments that name a component.
#[derive(Debug, Clone, clap::Args)]
pub struct Named {
    /// A component [default: what the project has built]
    pub file: Option<PathBuf>,
    /// The project's folder
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub project: PathBuf,
}

impl Named {
    /// The folder with the cases: the one that is given, or the project's.
    pub fn cases(&self, given: Option<&Path>) -> PathBuf {
        given.map_or_else(|| self.project.join("cases"), Path::to_path_buf)
    }
}

/// A component that has been read.
#[derive(Debug)]
pub struct Subject {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Subject {
    /// Reads the component that `args` name.
    pub fn read(args: &Named) -> Result<Self> {
        let path = match &args.file {
            Some(file) => file.clone(),
            None => {
                let built = Project::open(&args.project)?.component();
                ensure!(built.exists(), "{} does not exist: build it with `witan plugin build`", built.display());
                built
            }
        };
        let bytes =
            witan_file::read(&path, COMPONENT_BYTES as u64).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { path, bytes })
    }

    /// Compiles it, under the limits of a coordinator.
    pub fn prepare(&self) -> Result<Trial> {
        let program = std::env::current_exe().context("find this program, which compiles components")?;
        Trial::prepare(&self.bytes, &Limits::default(), &program).with_context(|| self.path.display().to_string())
    }
}

/// A configuration as it is given on the command line: text, or a file's content if it begins with `@`.
pub fn configuration(given: &str) -> Result<Vec<u8>> {
    let bytes = match given.strip_prefix('@') {
        Some(file) => witan_file::read(file.as_ref(), PLUGIN_CONFIGURATION_BYTES as u64)
            .with_context(|| format!("--configuration: read {file}"))?,
        None => given.as_bytes().to_vec(),
    };
    let most = PLUGIN_CONFIGURATION_BYTES;
    ensure!(bytes.len() <= most, "--configuration has {} bytes; at most {most} are allowed", bytes.len());
    Ok(bytes)
}
