//! What a plugin says about itself, and whether it may.

use witan_kernel::hook::Hook;

use crate::binding::{is_name, is_version};
use crate::calls::Manifest;
use crate::fault::{Fault, shorten};
use crate::guest::Serves;
use crate::instance::Program;

/// Why a plugin's description of itself is not accepted. The sentence continues the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("does not name itself with 1 to 64 of a-z, 0-9 and '-'")]
    Name,
    #[error("does not give its version as 1 to 64 of a-z, A-Z, 0-9, '.', '-' and '+'")]
    Version,
    #[error("says that it is a {said:?} but exports what a {exported} does")]
    Hook { said: String, exported: Hook },
}

/// Has a component describe itself, in an instance used for nothing else.
pub(crate) fn describe(program: &Program, hook: Hook) -> Result<Manifest, ManifestError> {
    let manifest = program.start(Serves { by: "a plugin being staged".into(), ..Serves::default() })?.describe()?;
    if !is_name(&manifest.name) {
        return Err(ManifestError::Name);
    }
    if !is_version(&manifest.version) {
        return Err(ManifestError::Version);
    }
    if manifest.hook != hook.as_str() {
        return Err(ManifestError::Hook { said: shorten(&manifest.hook), exported: hook });
    }
    Ok(manifest)
}
