//! What makes a plugin of source, wherever the source is: tool chains that compile for WebAssembly, found or fetched, and components made
//! of the modules that they compile. `cargo xtask` builds this repository's plugins with it, the author's kit everybody else's.

mod debian;
mod denied;
pub mod pins;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use wasm_encoder::{CustomSection, Section as _};

/// The target of plugins in Rust: without an operating system, so that they import only what the WIT declares.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The environment variable that forces one of the ways to a tool chain: `active`, `rustup` or `debian`.
pub const CHOICE: &str = "WITAN_GUEST_TOOLCHAIN";

/// The module of the imports by which other people's tool chains reach an operating system.
const PREVIEW_1: &str = "wasi_snapshot_preview1";

/// The custom section in which `wit-component` looks for a module's world.
const DESCRIPTION: &str = "component-type";

/// A tool chain that compiles Rust for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The active one.
    Active,
    /// Debian's packages, unpacked into the user's cache folder.
    Debian(debian::Unpacked),
}

impl Toolchain {
    /// Finds one, fetching it if necessary: the active one, then `rustup target add`, then Debian's packages, unpacked into the user's
    /// cache folder (nothing is installed). Fails with what was tried.
    pub fn find() -> Result<Self> {
        let choice = env::var(CHOICE).unwrap_or_default();
        let may = |way: &str| choice.is_empty() || choice == way;
        if may("active") && has_target()? {
            return Ok(Self::Active);
        }
        let mut tried = vec![format!("the active tool chain has no {TARGET}")];
        if may("rustup") {
            say(&format!("adding {TARGET} with rustup"));
            match Command::new("rustup").args(["target", "add", TARGET]).status() {
                Ok(status) if status.success() && has_target()? => return Ok(Self::Active),
                Ok(status) => tried.push(format!("`rustup target add {TARGET}` failed with {status}")),
                Err(error) => tried.push(format!("rustup cannot be run: {error}")),
            }
        }
        if may("debian") {
            match debian::unpacked() {
                Ok(unpacked) => return Ok(Self::Debian(unpacked)),
                Err(error) => tried.push(format!("Debian's packages: {error:#}")),
            }
        }
        bail!("no tool chain compiles for {TARGET}: {}; install the target for the active tool chain", tried.join("; "))
    }

    /// `cargo build` for [`TARGET`] in `folder`, in release mode. Paths below `root` are replaced in what it compiles.
    pub fn build(&self, folder: &Path, root: &Path) -> Result<Command> {
        let mut cargo = cargo(folder);
        cargo.args(["build", "--release", "--target", TARGET]).env("RUSTFLAGS", remaps(root)?);
        if let Self::Debian(unpacked) = self {
            unpacked.apply(&mut cargo)?;
        }
        Ok(cargo)
    }
}

/// Whether the active tool chain can compile for [`TARGET`].
pub fn has_target() -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let libdir = PathBuf::from(libdir.trim());
    Ok(fs::read_dir(libdir).is_ok_and(|mut entries| entries.next().is_some()))
}

/// Cargo in `folder`, without the variables of another build that this process may be a part of.
pub fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder);
    for name in ["CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo
}

/// Flags that keep this machine's folders out of the components, so that the same source has the same digest everywhere.
fn remaps(root: &Path) -> Result<OsString> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let home = home.context("find cargo's home folder")?;
    let mut flags = OsString::from("--remap-path-prefix=");
    flags.push(root);
    flags.push("=. --remap-path-prefix=");
    flags.push(home);
    flags.push("=cargo");
    // Cargo splits these flags at spaces, so a folder with a space in its name cannot be replaced.
    Ok(if flags.to_string_lossy().split(' ').count() == 2 { flags } else { OsString::new() })
}

/// Makes a component of the core module in the file `module`, whose custom sections describe its world, and writes it to `component`.
/// Returns its size in bytes.
pub fn componentize(module: &Path, component: &Path) -> Result<usize> {
    let bytes = fs::read(module).with_context(|| format!("read {}", module.display()))?;
    let encode = || wit_component::ComponentEncoder::default().module(&bytes)?.validate(true).encode();
    let encoded = encode().map_err(|error| match format!("{error:#}").contains(PREVIEW_1) {
        true => error.context(format!(
            "{} imports {PREVIEW_1}, but a plugin has no operating system: no files, clock, randomness, standard output or exit",
            module.display()
        )),
        false => error.context(format!("turn {} into a component", module.display())),
    })?;
    replace(component, &encoded)?;
    Ok(encoded.len())
}

/// Makes a component of the core module in the file `module`, whose tool chain knows neither components nor a world without an operating
/// system: `world` describes its world, in the encoding of `wit-component`, and what it expects of an operating system is denied. Writes
/// it to `component` and returns its size in bytes.
pub fn componentize_denied(module: &Path, world: &[u8], component: &Path) -> Result<usize> {
    let mut bytes = fs::read(module).with_context(|| format!("read {}", module.display()))?;
    CustomSection { name: DESCRIPTION.into(), data: world.into() }.append_to(&mut bytes);
    let encode = || {
        let encoder = wit_component::ComponentEncoder::default().module(&bytes)?;
        encoder.adapter(PREVIEW_1, &denied::module())?.validate(true).encode()
    };
    let encoded = encode().with_context(|| format!("turn {} into a component", module.display()))?;
    replace(component, &encoded)?;
    Ok(encoded.len())
}

/// Writes another file, then renames it: whoever watches the folder never sees half a component.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("part");
    fs::write(&beside, bytes).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("rename to {}", path.display()))
}

/// Reports a step that may take long.
pub fn say(what: &str) {
    eprintln!("guests: {what}");
}

/// Runs a program to its end, its output passed on. `what` is what it was to do.
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{what}: {} ended with {status}", command.get_program().display());
    Ok(())
}

/// Runs a program to its end and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, errors.trim());
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {command:?}"))
}
