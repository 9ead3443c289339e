//! Builds the WebAssembly guests: finds or fetches a tool chain for their target, compiles `plugins/`, and turns each module into a
//! component. Asks nothing, and prints what it does.

mod debian;

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

/// The guests' target: without an operating system, so that they import only what the WIT declares.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Forces one of the ways to a tool chain: `active`, `rustup` or `debian`.
const CHOICE: &str = "WITAN_GUEST_TOOLCHAIN";

/// A tool chain that compiles for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The active one.
    Active,
    /// Debian's packages, unpacked into the user's cache folder.
    Debian(debian::Unpacked),
}

/// Builds every guest of `root/plugins` into `out`, one component `<name>.wasm` per plugin, and returns their paths. Runs nothing if
/// nothing has changed since the last call.
pub fn build(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let names = guests(&root.join("plugins"))?;
    let components: Vec<PathBuf> = names.iter().map(|name| out.join(format!("{name}.wasm"))).collect();
    let stamp = out.join(".stamp");
    let fingerprint = fingerprint(&[&root.join("plugins"), &root.join("wit")])?;
    if components.iter().all(|path| path.exists()) && fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
        return Ok(components);
    }
    let toolchain = ensure_target()?;
    let target_dir = root.join("target/guests");
    compile(root, &target_dir, &names, &toolchain)?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    for (name, component) in names.iter().zip(&components) {
        let module = target_dir.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        componentize(&module, component)?;
    }
    replace(&stamp, fingerprint.as_bytes())?;
    Ok(components)
}

/// The command that runs the guests' unit tests on this machine's own target.
pub fn tests(root: &Path) -> Command {
    let mut cargo = cargo(root);
    cargo.args(["test", "--locked", "--no-fail-fast", "--target-dir"]).arg(root.join("target/guests"));
    cargo
}

/// Finds a tool chain for [`TARGET`], fetching it if necessary: the active one, then `rustup target add`, then Debian's packages,
/// unpacked into the user's cache folder (nothing is installed).
pub fn ensure_target() -> Result<Toolchain> {
    let choice = env::var(CHOICE).unwrap_or_default();
    let may = |way: &str| choice.is_empty() || choice == way;
    if may("active") && has_target()? {
        return Ok(Toolchain::Active);
    }
    let mut tried = vec![format!("the active tool chain has no {TARGET}")];
    if may("rustup") {
        say(&format!("adding {TARGET} with rustup"));
        match Command::new("rustup").args(["target", "add", TARGET]).status() {
            Ok(status) if status.success() && has_target()? => return Ok(Toolchain::Active),
            Ok(status) => tried.push(format!("`rustup target add {TARGET}` failed with {status}")),
            Err(error) => tried.push(format!("rustup cannot be run: {error}")),
        }
    }
    if may("debian") {
        match debian::unpacked() {
            Ok(unpacked) => return Ok(Toolchain::Debian(unpacked)),
            Err(error) => tried.push(format!("Debian's packages: {error:#}")),
        }
    }
    bail!("no tool chain compiles for {TARGET}: {}; install the target for the active tool chain", tried.join("; "))
}

fn has_target() -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let libdir = PathBuf::from(libdir.trim());
    Ok(fs::read_dir(libdir).is_ok_and(|mut entries| entries.next().is_some()))
}

/// The names of the packages that are plugins: those with a cdylib.
fn guests(plugins: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(plugins);
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut command)?).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let is_plugin = |package: &&serde_json::Value| {
        let kinds = package["targets"].as_array().into_iter().flatten().filter_map(|t| t["crate_types"].as_array());
        kinds.flatten().any(|kind| kind == "cdylib")
    };
    let names = packages.iter().filter(is_plugin).filter_map(|package| package["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn compile(root: &Path, target_dir: &Path, names: &[String], toolchain: &Toolchain) -> Result<()> {
    say(&format!("compiling {}", names.join(", ")));
    let mut cargo = cargo(root);
    cargo.args(["build", "--release", "--locked", "--target", TARGET]).arg("--target-dir").arg(target_dir);
    names.iter().for_each(|name| {
        cargo.args(["-p", name]);
    });
    cargo.env("RUSTFLAGS", remaps(root)?);
    if let Toolchain::Debian(unpacked) = toolchain {
        unpacked.apply(&mut cargo)?;
    }
    run(&mut cargo, "compile the plugins")
}

/// Cargo in `plugins/`, without the variables of the host's build.
fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root.join("plugins"));
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

fn componentize(module: &Path, component: &Path) -> Result<()> {
    let bytes = fs::read(module).with_context(|| format!("read {}", module.display()))?;
    let encode = || wit_component::ComponentEncoder::default().module(&bytes)?.validate(true).encode();
    let encoded = encode().with_context(|| format!("turn {} into a component", module.display()))?;
    replace(component, &encoded)?;
    say(&format!("{} ({} KiB)", component.display(), encoded.len().div_ceil(1024)));
    Ok(())
}

/// Writes another file, then renames it: whoever watches the folder never sees half a component.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("part");
    fs::write(&beside, bytes).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("rename to {}", path.display()))
}

/// A digest of every file's path and content below `folders`, build output left out.
fn fingerprint(folders: &[&Path]) -> Result<String> {
    let mut files = Vec::new();
    for folder in folders {
        list(folder, &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        hasher.write(file.as_os_str().as_encoded_bytes());
        hasher.write(&fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    hasher.write(env::var(CHOICE).unwrap_or_default().as_bytes());
    Ok(format!("{:016x}", hasher.finish()))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                list(&entry.path(), files)?;
            }
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("guests: {what}");
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{what}: {} ended with {status}", command.get_program().display());
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, errors.trim());
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {command:?}"))
}
