//! Bindings of languages other than Rust, generated from the WIT when a project is made.

use anyhow::{Context, Result};
use wit_bindgen_core::{Files, WorldGenerator};
use wit_parser::{Resolve, WorldId};
use witan_kernel::hook::Hook;

use crate::files::{self, File};

/// The version of the WIT that new projects in these languages use.
const VERSION: &str = "0.1.0";

/// A header, a source file and an object file that holds the description of the world, below `witan/`.
pub fn c(hook: Hook) -> Result<Vec<File>> {
    generate(hook, wit_bindgen_c::Opts::default().build(), "witan/")
}

/// Generates bindings of a hook's world, below `folder`.
fn generate(hook: Hook, mut generator: Box<dyn WorldGenerator>, folder: &str) -> Result<Vec<File>> {
    let (mut resolve, world) = world(hook)?;
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files).with_context(|| format!("generate bindings of {hook}"))?;
    Ok(files.iter().map(|(name, content)| (format!("{folder}{name}"), content.to_vec())).collect())
}

/// A hook's world.
fn world(hook: Hook) -> Result<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    let mut sources = wit_parser::SourceMap::default();
    files::below(&format!("wit/{VERSION}/")).for_each(|(path, text)| sources.push_str(path, text));
    let parsed = sources.parse().map_err(|(_, error)| error).context("parse the WIT")?;
    let package = resolve.push_group(parsed).context("resolve the WIT")?;
    let world = resolve.select_world(&[package], Some(hook.as_str()));
    let world = world.with_context(|| format!("find the world {hook}"))?;
    Ok((resolve, world))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bindings_of_every_hook_can_be_generated() {
        for hook in Hook::ALL {
            let files = c(hook).unwrap();
            let name = hook.as_str().replace('-', "_");
            for file in [format!("witan/{name}.h"), format!("witan/{name}.c")] {
                assert!(files.iter().any(|(path, _)| *path == file), "{file}");
            }
        }
    }
}
