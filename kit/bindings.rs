//! Bindings of languages other than Rust, generated from the WIT when a project is made.

mod go;
mod typescript;
mod world;

use anyhow::{Context, Result};
use wit_bindgen_core::{Files, WorldGenerator};
use wit_component::StringEncoding;
use wit_parser::{Resolve, WorldId};
use witan_kernel::hook::Hook;

use crate::files::{self, File};

/// The version of the WIT that new projects in these languages use.
pub const VERSION: &str = "0.1.0";

/// A header, a source file and an object file that holds the description of the world, below `witan/`.
pub fn c(hook: Hook) -> Result<Vec<File>> {
    generate(hook, wit_bindgen_c::Opts::default().build(), "witan/")
}

/// A package of Go, below `witan/`.
pub fn go(hook: Hook) -> Result<Vec<File>> {
    let (resolve, world) = world(hook)?;
    go::generate(&resolve, world, "witan/").with_context(|| format!("generate bindings of {hook}"))
}

/// Types of JavaScript for editors, below `witan/`.
pub fn javascript(hook: Hook) -> Result<Vec<File>> {
    let (resolve, world) = world(hook)?;
    typescript::generate(&resolve, world, "witan/").with_context(|| format!("generate types of {hook}"))
}

/// A hook's world, as `wit-component` wants it described in a core module.
pub fn description(hook: Hook) -> Result<Vec<u8>> {
    let (resolve, world) = world(hook)?;
    wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None)
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
            assert!(!description(hook).unwrap().is_empty());
            let files = go(hook).unwrap();
            let text: String = files.iter().map(|(_, text)| String::from_utf8_lossy(text)).collect();
            for part in
                ["package witan\n", "#describe\n", "#configure\n", "func Log(severity Severity, message string)"]
            {
                assert!(text.contains(part), "{hook}: {part}");
            }
            let files = javascript(hook).unwrap();
            let text: String = files.iter().map(|(_, text)| String::from_utf8_lossy(text)).collect();
            for part in [
                "export interface PluginExports {",
                "describe(): Manifest;",
                "declare module \"witan:plugin/host@0.1.0\"",
            ] {
                assert!(text.contains(part), "{hook}: {part}");
            }
        }
    }
}
