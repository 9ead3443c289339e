//! The image and the compose file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Here;
use crate::run;

/// Lints the Dockerfile, and checks that `.dockerignore` lets all of the workspace pass.
pub fn dockerfile(here: &mut Here) -> Result<()> {
    let file = here.deploy.join("Dockerfile");
    run::run(here.tools.program("hadolint").arg("--failure-threshold=style").arg(&file))?;
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    for line in text.lines() {
        if let Some((_, check)) = line.split_once("CMD [") {
            here.found.command(&serde_json::from_str(&format!("[{check}")).with_context(|| format!("read {line:?}"))?);
        }
    }
    // The file excludes everything that it does not name, so a new folder of the workspace must be added to it.
    let ignored = fs::read_to_string(here.root.join(".dockerignore")).context("read .dockerignore")?;
    let named: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let metadata = run::output(&mut run::cargo(["metadata", "--no-deps", "--offline", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    for target in
        metadata["packages"].as_array().into_iter().flatten().filter_map(|p| p["targets"].as_array()).flatten()
    {
        let path = Path::new(target["src_path"].as_str().unwrap_or_default());
        let within =
            path.strip_prefix(&here.root).with_context(|| format!("{} is outside the repository", path.display()))?;
        let first = within.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let first = first.unwrap_or_default();
        ensure!(
            named.contains(first.as_str()),
            "{} is not part of the image's context: add !{first} to .dockerignore",
            within.display()
        );
    }
    Ok(())
}

/// Has Compose read its file, and checks the result.
pub fn compose(here: &mut Here) -> Result<()> {
    let mut compose = here.tools.program("docker-compose");
    compose.arg("--file").arg(here.deploy.join("compose.yaml")).args([
        "--profile",
        "setup",
        "config",
        "--format",
        "json",
    ]);
    let text = run::output(&mut compose)?;
    let system: Value = serde_json::from_str(&text).context("read what Compose printed")?;
    let services = system["services"].as_object().context("there are no services")?;
    for (name, service) in services {
        self::service(name, service).with_context(|| format!("service {name}"))?;
        if service["image"].as_str().is_some_and(|image| image.starts_with("witan:")) {
            here.found.command(&service["command"]);
            if service["healthcheck"]["test"].is_array() {
                here.found.command(&service["healthcheck"]["test"]);
            }
        }
    }
    println!("{} services", services.len());
    files(here, &system)?;
    let configuration = here.tools.yaml(&here.deploy.join("compose/witan.yaml"))?;
    here.found
        .configurations
        .push(("deploy/compose/witan.yaml".to_owned(), configuration.into_iter().next().unwrap_or_default()));
    run::run(
        here.tools
            .promtool()
            .args(["check", "config", "--syntax-only"])
            .arg(here.deploy.join("compose/prometheus.yaml")),
    )
}

fn service(name: &str, service: &Value) -> Result<()> {
    let image = service["image"].as_str().context("no image")?;
    let tag = image.rsplit_once(':').map(|(_, tag)| tag);
    ensure!(tag.is_some_and(|tag| tag != "latest"), "{image}: name a version");
    for port in service["ports"].as_array().into_iter().flatten() {
        ensure!(port["host_ip"] == "127.0.0.1", "publishes {port} beyond loopback");
    }
    for (variable, value) in service["environment"].as_object().into_iter().flatten() {
        let secret = ["PASSWORD", "TOKEN", "SECRET"].iter().any(|word| variable.contains(word));
        let file =
            variable.ends_with("_FILE") || value.as_str().is_some_and(|value| value.starts_with("/run/secrets/"));
        ensure!(!secret || file, "{variable} is a secret in the environment: use a file");
    }
    let once = service["profiles"].as_array().is_some_and(|profiles| !profiles.is_empty());
    ensure!(once || !service["healthcheck"]["test"].is_null(), "has no health check");
    if image.starts_with("witan:") {
        ensure!(service["read_only"] == true, "its root file system is writable");
        ensure!(service["cap_drop"] == serde_json::json!(["ALL"]), "keeps capabilities");
        ensure!(name.starts_with("coordinator") || service["ports"].is_null(), "only coordinators are for clients");
    }
    Ok(())
}

/// Checks that every file named exists or is made by the script for secrets, and that its certificates are valid.
fn files(here: &Here, system: &Value) -> Result<()> {
    let secrets = here.work.join("secrets");
    let prepare = here.deploy.join("compose/prepare.sh");
    run::output(Command::new("sh").arg(&prepare).arg(&secrets))?;
    // A second run must keep what exists.
    let before = fs::read(secrets.join("database_url")).context("read database_url")?;
    run::output(Command::new("sh").arg(&prepare).arg(&secrets))?;
    ensure!(
        fs::read(secrets.join("database_url")).is_ok_and(|after| after == before),
        "prepare.sh has changed a password"
    );
    for kind in ["configs", "secrets"] {
        for (name, entry) in system[kind].as_object().into_iter().flatten() {
            let path = Path::new(entry["file"].as_str().with_context(|| format!("{kind}.{name} is no file"))?);
            let made = path.file_name().map(|file| secrets.join(file)).filter(|_| kind == "secrets");
            let there = made.as_deref().unwrap_or(path);
            ensure!(there.is_file(), "{kind}.{name}: {} does not exist", path.display());
        }
    }
    for certificate in ["coordinator", "node-1", "node-2", "node-3"] {
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-purpose", "sslserver"]).arg("-CAfile").arg(secrets.join("ca.pem"));
        let said = run::output(verify.arg(secrets.join(format!("{certificate}.pem"))))?;
        if !said.contains("OK") {
            bail!("{said}");
        }
    }
    Ok(())
}
