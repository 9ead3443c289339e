//! What a component says about itself, without a host: for tools.

use std::path::Path;

use witan_kernel::hook::Hook;

use crate::compile::load;
use crate::describe::describe;
use crate::digest::Digest;
use crate::error::{HostError, PluginError};
use crate::instance::Program;
use crate::limit::Limits;
use crate::{engine, spawn};

/// A component, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The component.
    pub digest: Digest,
    /// The plugin's name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// The hook that it answers.
    pub hook: Hook,
}

/// Checks a component and has it describe itself, under the default limits. It is compiled in a process that runs `compiler`, a program
/// that calls [`crate::compile_if_asked`] first. Blocks until that has ended.
///
/// # Errors
/// As when the component is staged.
pub fn inspect(compiler: &Path, component: &[u8]) -> Result<Described, PluginError> {
    let limits = Limits::default();
    let valid = crate::validate::validate(component, &limits).map_err(PluginError::refused)?;
    let (hook, of_class) = (valid.hook, limits.of(valid.needs.class));
    let image = spawn::compile(compiler, component, of_class, limits.compile_wall).map_err(PluginError::uncompiled)?;
    let engine = engine::runtime().map_err(|error| HostError::Engine(error.to_string()))?;
    let ticks = engine::start_ticking(&engine).map_err(HostError::thread("the ticker"))?;
    let loaded = load(&engine, &image).map_err(|error| HostError::Engine(error.to_string()))?;
    let program = Program::link(&engine, &loaded, hook, ticks, valid.budget);
    let manifest = describe(&program.map_err(PluginError::refused)?, hook).map_err(PluginError::refused)?;
    Ok(Described { digest: Digest::of(component), name: manifest.name, version: manifest.version, hook })
}
