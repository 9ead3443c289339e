//! The systemd units.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Here;
use crate::run;

/// The units: file, instance, and the highest exposure level allowed, in tenths of what `systemd-analyze security` prints. Network access
/// accounts for what remains.
const UNITS: [(&str, &str, &str); 2] = [
    ("witan-coordinator.service", "witan-coordinator.service", "14"),
    ("witan-node@.service", "witan-node@node-1.service", "13"),
];

/// Has systemd verify them and rate their exposure.
pub fn check(here: &mut Here, witan: &Path) -> Result<()> {
    let folder = here.deploy.join("systemd");
    let beside = here.work.join("units");
    fs::create_dir_all(&beside).with_context(|| format!("make {}", beside.display()))?;
    for (file, instance, bound) in UNITS {
        let text = fs::read_to_string(folder.join(file)).with_context(|| format!("read {file}"))?;
        let commands = text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/bin/"));
        here.found.commands.extend(commands.map(str::to_owned));
        // systemd requires that the program exists.
        let unit = beside.join(instance);
        fs::write(&unit, text.replace("/usr/bin/witan", &witan.display().to_string()))
            .with_context(|| format!("write {}", unit.display()))?;
        verify(&unit)?;
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=yes", "--no-pager"]).arg(format!("--threshold={bound}")).arg(&unit);
        let said = run::output(&mut security)?;
        println!("{}", said.lines().rfind(|line| line.contains("exposure")).unwrap_or_default());
    }
    let configuration = here.tools.yaml(&folder.join("witan.yaml"))?.into_iter().next().unwrap_or_default();
    here.found.configurations.push(("deploy/systemd/witan.yaml".to_owned(), configuration));
    accounts(here, &folder)
}

/// Treats systemd's warnings as errors.
fn verify(unit: &Path) -> Result<()> {
    let mut verify = Command::new("systemd-analyze");
    let output = verify.arg("verify").arg(unit).output().with_context(|| format!("run {verify:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let name = unit.file_name().unwrap_or_default().to_string_lossy();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains(name.as_ref())).collect();
    ensure!(output.status.success() && ours.is_empty(), "{}", said.trim());
    Ok(())
}

/// Creates the user and the folders below a folder of the check's own. Only root may change the folders' owners.
fn accounts(here: &Here, folder: &Path) -> Result<()> {
    let root = here.work.join("root");
    fs::create_dir_all(root.join("etc")).with_context(|| format!("make {}", root.display()))?;
    let mut sysusers = Command::new("systemd-sysusers");
    sysusers.arg(format!("--root={}", root.display())).arg(folder.join("witan.sysusers.conf"));
    if !run::is_root() {
        run::output(sysusers.arg("--dry-run"))?;
        println!("not run as root: the folders' owners are not checked");
        return Ok(());
    }
    run::output(&mut sysusers)?;
    let mut tmpfiles = Command::new("systemd-tmpfiles");
    tmpfiles.arg("--create").arg(format!("--root={}", root.display())).arg(folder.join("witan.tmpfiles.conf"));
    run::output(&mut tmpfiles)?;
    let made = root.join("etc/witan/secrets");
    ensure!(made.is_dir(), "{} was not made", made.display());
    Ok(())
}
