//! Builds the WebAssembly guests of this repository: compiles `plugins/` and turns each module into a component. Asks nothing, and prints
//! what it does.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use witan_guests::{CHOICE, TARGET, Toolchain, componentize, output, replace, run, say};

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
    let toolchain = Toolchain::find()?;
    let target_dir = root.join("target/guests");
    compile(root, &target_dir, &names, &toolchain)?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    for (name, component) in names.iter().zip(&components) {
        let module = target_dir.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        let bytes = componentize(&module, component)?;
        say(&format!("{} ({} KiB)", component.display(), bytes.div_ceil(1024)));
    }
    replace(&stamp, fingerprint.as_bytes())?;
    Ok(components)
}

/// The command that runs the guests' unit tests on this machine's own target.
pub fn tests(root: &Path) -> Command {
    let mut cargo = witan_guests::cargo(&root.join("plugins"));
    cargo.args(["test", "--locked", "--no-fail-fast", "--target-dir"]).arg(root.join("target/guests"));
    cargo
}

/// The names of the packages that are plugins: those with a cdylib.
fn guests(plugins: &Path) -> Result<Vec<String>> {
    let mut command = witan_guests::cargo(plugins);
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
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
    let mut cargo = toolchain.build(&root.join("plugins"), root)?;
    cargo.arg("--locked").arg("--target-dir").arg(target_dir);
    names.iter().for_each(|name| {
        cargo.args(["-p", name]);
    });
    run(&mut cargo, "compile the plugins")
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
