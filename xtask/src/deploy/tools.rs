//! The programs that check `deploy/`: found, or installed into `target/deploy`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{python, run};

/// Where the programs are.
pub struct Tools {
    /// The folder of this check below `target`.
    pub folder: PathBuf,
    script: PathBuf,
    environment: PathBuf,
    /// Prometheus's two programs.
    prometheus: PathBuf,
    promtool: PathBuf,
}

impl Tools {
    /// Finds all of them, and installs what is missing.
    pub fn install(root: &Path) -> Result<Self> {
        let folder = root.join("target/deploy");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let check = root.join("deploy/check");
        let environment = folder.join("python");
        python::environment(&check.join("requirements.txt"), &environment, &["--no-deps"])?;
        if !run::is_installed("systemd-analyze") {
            run::install(&["systemd"])?;
        }
        if !run::is_installed("openssl") {
            run::install(&["openssl"])?;
        }
        let (prometheus, promtool) = prometheus(&folder)?;
        let tools = Self { folder, script: check.join("tool.py"), environment, prometheus, promtool };
        let helm = tools.environment.join("bin/helm");
        if !helm.exists() {
            println!("unpacking Helm");
            run::run(tools.script("helm").arg(&helm))?;
        }
        Ok(tools)
    }

    /// A program of the Python environment, or Helm.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.environment.join("bin").join(name));
        command.stdin(Stdio::null());
        command
    }

    /// `prometheus`.
    pub fn prometheus(&self) -> Command {
        Command::new(&self.prometheus)
    }

    /// `promtool`.
    pub fn promtool(&self) -> Command {
        let mut command = Command::new(&self.promtool);
        command.stdin(Stdio::null());
        command
    }

    /// A command of `deploy/check/tool.py`.
    pub fn script(&self, command: &str) -> Command {
        let mut python = self.program("python");
        python.arg(&self.script).arg(command);
        python
    }

    /// The documents of a YAML file.
    pub fn yaml(&self, file: &Path) -> Result<Vec<Value>> {
        let text = run::output(self.script("yaml").arg(file))?;
        let mut files: Vec<Vec<Value>> = serde_json::from_str(&text).context("read what tool.py printed")?;
        ensure!(files.len() == 1, "tool.py printed {} files instead of one", files.len());
        Ok(files.remove(0))
    }
}

/// Prometheus and promtool: from the search path, or from Debian's package, which is only unpacked: installing it would start a server.
fn prometheus(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    if run::is_installed("prometheus") && run::is_installed("promtool") {
        return Ok(("prometheus".into(), "promtool".into()));
    }
    let unpacked = folder.join("prometheus");
    let programs = unpacked.join("usr/bin");
    if !unpacked.join("complete").exists() {
        ensure!(run::is_installed("apt-get"), "neither prometheus nor apt-get found: install Prometheus");
        println!("unpacking Debian's prometheus into {}", unpacked.display());
        _ = fs::remove_dir_all(&unpacked);
        fs::create_dir_all(&unpacked).with_context(|| format!("make {}", unpacked.display()))?;
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["download", "--quiet", "prometheus"]).current_dir(&unpacked);
            run::run(apt.stdin(Stdio::null()).stdout(Stdio::null()))
        };
        // A machine without package lists knows no package.
        download().or_else(|_| run::apt(&["update"]).and_then(|()| download()))?;
        for entry in fs::read_dir(&unpacked).context("list the packages")? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                run::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
                fs::remove_file(&deb).with_context(|| format!("remove {}", deb.display()))?;
            }
        }
        fs::write(unpacked.join("complete"), "").context("mark Prometheus as complete")?;
    }
    Ok((programs.join("prometheus"), programs.join("promtool")))
}
