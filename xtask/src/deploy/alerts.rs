//! The alert rules, and the runbook of each.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Here;
use crate::run;

/// The headings of every runbook.
const HEADINGS: [&str; 4] = ["## What it means", "## How to see it", "## What to do", "## What not to do"];

/// Has promtool check and test the rules, and checks the runbooks.
pub fn check(here: &Here) -> Result<()> {
    let folder = here.deploy.join("prometheus");
    run::run(
        here.tools.promtool().args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(folder.join("alerts.yaml")),
    )?;
    run::run(here.tools.promtool().args(["test", "rules", "alerts.test.yaml"]).current_dir(&folder))?;
    let tests = fs::read_to_string(folder.join("alerts.test.yaml")).context("read alerts.test.yaml")?;
    let runbooks = here.root.join("docs/runbooks");
    let index = fs::read_to_string(runbooks.join("README.md")).context("read docs/runbooks/README.md")?;
    let mut names = BTreeSet::new();
    for rule in rules(here)? {
        let Some(name) = rule["alert"].as_str() else { continue };
        runbook(here, &rule, name).with_context(|| format!("docs/runbooks/{name}.md"))?;
        ensure!(tests.contains(name), "alerts.test.yaml does not show when {name} fires");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        let row = format!("| [{name}]({name}.md) | {severity} |");
        ensure!(index.contains(&row), "docs/runbooks/README.md has no row {row}");
        names.insert(format!("{name}.md"));
    }
    for entry in fs::read_dir(&runbooks).context("list docs/runbooks")? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        ensure!(file == "README.md" || names.contains(&file), "docs/runbooks/{file} belongs to no alert");
    }
    println!("{} alerts, each with a runbook", names.len());
    Ok(())
}

/// The rules of all groups.
pub fn rules(here: &Here) -> Result<Vec<Value>> {
    let documents = here.tools.yaml(&here.deploy.join("prometheus/alerts.yaml"))?;
    let groups = documents.iter().filter_map(|document| document["groups"].as_array()).flatten();
    Ok(groups.filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
}

fn runbook(here: &Here, rule: &Value, name: &str) -> Result<()> {
    let path = format!("docs/runbooks/{name}.md");
    ensure!(rule["annotations"]["runbook_url"] == path.as_str(), "the rule's runbook_url is not {path}");
    ensure!(
        rule["annotations"]["summary"].is_string() && rule["annotations"]["description"].is_string(),
        "the rule lacks a summary or a description"
    );
    let text = fs::read_to_string(here.root.join(&path)).context("read it")?;
    let severity = rule["labels"]["severity"].as_str().context("the rule has no severity")?;
    ensure!(["page", "ticket"].contains(&severity), "the severity is neither page nor ticket");
    ensure!(
        text.starts_with(&format!("# {name}\n\nSeverity: {severity}")),
        "it does not begin with the alert's name and severity"
    );
    for heading in HEADINGS {
        ensure!(text.lines().any(|line| line == heading), "it has no heading {heading:?}");
    }
    Ok(())
}
