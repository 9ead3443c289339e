//! `cargo xtask deploy-check`: checks `deploy/` as far as is possible without containers and clusters. Its files are read by the programs
//! that will read them, and compared with the program that they start.

mod alerts;
mod chart;
mod containers;
mod live;
mod selectors;
mod system;
mod tools;
mod units;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::pages;
use crate::run::{self, Steps};
use tools::Tools;

/// Options of `cargo xtask deploy-check`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The program that is deployed [default: built from this repository]
    #[arg(long, value_name = "FILE")]
    witan: Option<PathBuf>,
}

/// Checks everything, and prints how long each part took.
pub fn run(arguments: &Arguments) -> Result<()> {
    let witan = match &arguments.witan {
        Some(witan) => witan.clone(),
        None => run::witan()?,
    };
    check(&witan)
}

/// Checks everything against the program `witan`.
pub fn check(witan: &Path) -> Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "deploy/ is checked on Linux only: its units and some of the programs are Linux's"
    );
    let root = run::root();
    let mut steps = Steps::default();
    let tools = steps.step("find the programs", || Tools::install(&root))?;
    let work = tools.folder.join("work");
    _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    let mut here = Here { deploy: root.join("deploy"), root, work, tools, found: Found::default() };

    steps.step("YAML and shell", || texts(&here))?;
    steps.step("Dockerfile", || containers::dockerfile(&mut here))?;
    steps.step("compose file", || containers::compose(&mut here))?;
    steps.step("Helm chart", || chart::check(&mut here))?;
    steps.step("units", || units::check(&mut here, witan))?;
    steps.step("alert rules and runbooks", || alerts::check(&here))?;
    steps.step("metrics of the dashboard and the rules", || live::check(&here, witan))?;
    steps.step("commands", || {
        println!("{} command lines", here.found.commands.len());
        pages::check_commands(&here.found.commands, witan)
    })?;
    steps.step("configurations", || configurations(&here, witan))?;
    steps.account();
    Ok(())
}

/// What the parts of the check share.
struct Here {
    root: PathBuf,
    deploy: PathBuf,
    /// A folder for the check's own files; empty when it starts.
    work: PathBuf,
    tools: Tools,
    found: Found,
}

/// What the parts have found and the program itself has to accept.
#[derive(Debug, Default)]
struct Found {
    /// Command lines, each beginning with `witan `.
    commands: Vec<String>,
    /// Configurations of coordinators: where they were found, and their content.
    configurations: Vec<(String, Value)>,
}

impl Found {
    /// Adds a container's command: the arguments for an image whose entry point is `witan`, or a whole command line.
    fn command(&mut self, words: &Value) {
        let words: Vec<&str> = words.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let words = words.strip_prefix(&["CMD"]).unwrap_or(&words);
        let words = words.strip_prefix(&["/usr/local/bin/witan"]).unwrap_or(words);
        self.commands.push(format!("witan {}", words.join(" ")));
    }
}

fn texts(here: &Here) -> Result<()> {
    let mut yaml = Vec::new();
    let mut shell = Vec::new();
    list(&here.deploy, &mut |path| match path.extension().and_then(|extension| extension.to_str()) {
        Some("yaml") if !path.components().any(|part| part.as_os_str() == "templates") => yaml.push(path.to_owned()),
        Some("sh") => shell.push(path.to_owned()),
        _ => {}
    })?;
    println!("{} YAML files, {} shell scripts", yaml.len(), shell.len());
    let mut lint = here.tools.program("yamllint");
    lint.arg("--strict").arg("--config-file").arg(here.deploy.join("check/yamllint.yaml")).args(&yaml);
    run::run(&mut lint)?;
    run::run(here.tools.program("shellcheck").args(&shell))
}

/// Calls `each` with every file below `folder`, without following links, except secrets.
fn list(folder: &Path, each: &mut impl FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "secrets" {
                list(&entry.path(), each)?;
            }
        } else if entry.file_type()?.is_file() {
            each(&entry.path());
        }
    }
    Ok(())
}

/// Has the program check each configuration. The files that it names do not exist on this machine, so each path is replaced: certificates
/// and keys are those made by the compose file's script.
fn configurations(here: &Here, witan: &Path) -> Result<()> {
    let secrets = here.work.join("secrets");
    for (number, (name, configuration)) in here.found.configurations.iter().enumerate() {
        let scratch = here.work.join(format!("configuration-{number}"));
        let moved = moved(configuration, "", &scratch, &secrets)?;
        let file = scratch.join("witan.yaml");
        // JSON is YAML.
        fs::write(&file, moved.to_string()).with_context(|| format!("write {}", file.display()))?;
        println!("{name}");
        run::run(Command::new(witan).args(["config", "check"]).arg(&file)).with_context(|| name.clone())?;
    }
    Ok(())
}

fn moved(value: &Value, key: &str, scratch: &Path, secrets: &Path) -> Result<Value> {
    Ok(match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| Ok((key.clone(), moved(value, key, scratch, secrets)?)));
            Value::Object(fields.collect::<Result<_>>()?)
        }
        Value::Array(values) => {
            Value::Array(values.iter().map(|value| moved(value, key, scratch, secrets)).collect::<Result<_>>()?)
        }
        Value::String(path) if path.starts_with('/') && key != "path" => {
            let place = scratch.join(path.trim_start_matches('/'));
            provide(&place, key, path, secrets)?;
            json!(place)
        }
        other => other.clone(),
    })
}

/// Puts a file or folder of the right kind at `place`.
fn provide(place: &Path, key: &str, path: &str, secrets: &Path) -> Result<()> {
    let folder = if key == "data_dir" || key == "folder" { place } else { place.parent().unwrap_or(place) };
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let from = match key {
        "cert_file" => "coordinator.pem",
        "key_file" => "coordinator.key",
        "ca_file" | "client_ca_file" => "ca.pem",
        "url_file" if path.contains("redis") => "redis_url",
        "url_file" | "direct_url_file" => "database_url",
        _ => return Ok(()),
    };
    let text = fs::read_to_string(secrets.join(from)).with_context(|| format!("read {from}"))?;
    // `sslmode` must not be in the address if the configuration sets it.
    let text = if path == "/run/secrets/database_url" { text } else { text.replace("?sslmode=disable", "") };
    fs::write(place, text).with_context(|| format!("write {}", place.display()))
}
