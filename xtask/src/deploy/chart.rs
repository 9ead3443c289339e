//! The Helm chart: some sets of values must render, others must be refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Here;
use crate::run;

/// The oldest version of Kubernetes that Chart.yaml allows, and the newest one with schemas.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];

/// Values that must be refused, and what the refusal must mention.
const REFUSED: [(&str, &str); 6] = [
    ("node.replcas=3", "replcas"),
    ("node.replicas=2", "node.replicas"),
    ("database.existingSecret=", "database.existingSecret"),
    ("tls.node.secret=", "tls.node.secret"),
    ("tls.enabled=false", "security.allowAnonymous"),
    ("security.tokens=false", "security.tokens"),
];

/// Renders and checks the chart.
pub fn check(here: &mut Here) -> Result<()> {
    let chart = here.deploy.join("helm/witan");
    let mut values: Vec<_> =
        fs::read_dir(chart.join("ci")).context("list ci/")?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    values.sort();
    for values in &values {
        with(here, &chart, values).with_context(|| format!("with {}", values.display()))?;
    }
    for (set, reason) in REFUSED {
        let mut helm = helm(here, "template", &chart, &chart.join("ci/usual.yaml"));
        let output = helm.args(["--set", set]).output().context("run Helm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{set} was not refused");
        ensure!(said.contains(reason), "{set} was refused without mentioning {reason}: {said}");
    }
    println!("{} sets of values, {} refused", values.len(), REFUSED.len());
    Ok(())
}

fn helm(here: &Here, command: &str, chart: &Path, values: &Path) -> Command {
    let mut helm = here.tools.program("helm");
    // Without the user's plugins, repositories and cluster.
    let home = here.work.join("helm");
    for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
    {
        helm.env(variable, home.join(folder));
    }
    helm.env("KUBECONFIG", home.join("no-cluster")).arg(command);
    if command == "template" {
        helm.arg("w");
    }
    helm.arg(chart).arg("--values").arg(values).args(["--namespace", "kv"]);
    helm
}

fn with(here: &mut Here, chart: &Path, values: &Path) -> Result<()> {
    run::output(helm(here, "lint", chart, values).arg("--strict"))?;
    let rendered = run::output(&mut helm(here, "template", chart, values))?;
    let file = here.work.join(values.file_name().unwrap_or_default());
    fs::write(&file, rendered).with_context(|| format!("write {}", file.display()))?;
    for version in KUBERNETES {
        run::run(here.tools.script("kubernetes").arg(&file).arg(version))?;
    }
    let objects = here.tools.yaml(&file)?;
    for object in &objects {
        let name = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        if let Some(pod) = pod_of(object) {
            self::pod(pod, object).with_context(|| name.clone())?;
            for container in pod["containers"].as_array().into_iter().flatten() {
                commands(here, container);
            }
        }
        if object["kind"] == "StatefulSet" {
            has_budget(object, &objects).with_context(|| name)?;
        }
        if let Some(configuration) = object["data"]["witan.yaml"].as_str() {
            let beside = here.work.join("witan.yaml");
            fs::write(&beside, configuration).with_context(|| format!("write {}", beside.display()))?;
            let read = here.tools.yaml(&beside)?.into_iter().next().unwrap_or_default();
            here.found.configurations.push((format!("the chart with {}", values.display()), read));
        }
        if object["kind"] == "PrometheusRule" {
            let rules = here.work.join("rules.json");
            fs::write(&rules, object["spec"].to_string()).with_context(|| format!("write {}", rules.display()))?;
            run::output(here.tools.promtool().args(["check", "rules"]).arg(&rules))?;
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The description of an object's pods.
fn pod_of(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(&object["spec"]),
        "StatefulSet" | "Deployment" | "Job" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

/// Requires Kubernetes' `restricted` pod security standard, a memory limit, and a volume for every mount.
fn pod(pod: &Value, object: &Value) -> Result<()> {
    let security = &pod["securityContext"];
    ensure!(security["runAsNonRoot"] == true, "may run as root");
    ensure!(security["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile");
    ensure!(pod["automountServiceAccountToken"] == false, "mounts a token for the Kubernetes API");
    let volumes = pod["volumes"].as_array().into_iter().flatten().map(|volume| &volume["name"]);
    let claims = object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
    let names: Vec<&Value> = volumes.chain(claims.map(|claim| &claim["metadata"]["name"])).collect();
    for container in pod["containers"].as_array().context("no containers")? {
        let security = &container["securityContext"];
        ensure!(security["allowPrivilegeEscalation"] == false, "may gain privileges");
        ensure!(security["readOnlyRootFilesystem"] == true, "may write into its root");
        ensure!(security["capabilities"]["drop"] == serde_json::json!(["ALL"]), "keeps capabilities");
        ensure!(!container["resources"]["limits"]["memory"].is_null(), "has no memory limit");
        ensure!(!text(&container["image"]).ends_with(":latest"), "does not name its image's version");
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            ensure!(names.contains(&&mount["name"]), "mounts {}, which is not a volume", mount["name"]);
        }
    }
    Ok(())
}

/// Collects the commands of a container and its probes.
fn commands(here: &mut Here, container: &Value) {
    for place in [
        "/args",
        "/command",
        "/startupProbe/exec/command",
        "/readinessProbe/exec/command",
        "/livenessProbe/exec/command",
    ] {
        if let Some(command) = container.pointer(place) {
            here.found.command(command);
        }
    }
}

fn has_budget(set: &Value, objects: &[Value]) -> Result<()> {
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let selects = |budget: &Value| {
        let wanted = budget["spec"]["selector"]["matchLabels"].as_object();
        wanted.is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
    };
    let found = objects.iter().filter(|object| object["kind"] == "PodDisruptionBudget").any(selects);
    ensure!(found, "has no PodDisruptionBudget");
    Ok(())
}
