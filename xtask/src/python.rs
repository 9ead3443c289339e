//! Python environments below `target/`: made once, and again when their list of packages changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::run;

/// A Python with the packages listed in the file `wanted`, in `folder`; `options` are pip's.
pub fn environment(wanted: &Path, folder: &Path, options: &[&str]) -> Result<PathBuf> {
    let text = fs::read_to_string(wanted).with_context(|| format!("read {}", wanted.display()))?;
    let (stamp, interpreter) = (folder.join(".installed"), folder.join("bin/python"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) && interpreter.exists() {
        return Ok(interpreter);
    }
    if !run::is_installed("python3") {
        run::install(&["python3", "python3-venv"])?;
    }
    let names = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect::<Vec<_>>();
    println!("installing {} into {}", names.join(", "), folder.display());
    let make = || run::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
    // Debian's Python lacks the module that makes environments.
    make().or_else(|_| run::install(&["python3-venv"]).and_then(|()| make()))?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    pip.args(options).arg("-r").arg(wanted);
    if env::var_os("CI").is_some() {
        pip.arg("--no-input");
    }
    run::run(&mut pip)?;
    fs::write(&stamp, text).with_context(|| format!("write {}", stamp.display()))?;
    ensure!(interpreter.exists(), "{} was not made", interpreter.display());
    Ok(interpreter)
}
