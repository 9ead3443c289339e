//! Runs the queries of the dashboard and the rules in a Prometheus that scrapes a running coordinator.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::system::System;
use super::{Here, alerts, selectors};

/// Longest wait for the first scrapes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The series that exists only while an alert fires.
const OCCASIONAL: &str = "ALERTS";

/// Starts a small system and a Prometheus, and runs every query.
pub fn check(here: &Here, witan: &Path) -> Result<()> {
    let folder = here.work.join("live");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let system = System::start(here, witan, &folder)?;
    system.is_well(witan)?;
    system.use_it(witan)?;
    let prometheus = Prometheus::start(here, &folder, &system)?;
    let rules = alerts::rules(here)?;
    prometheus.wait_for("witan_operations_in_flight")?;
    prometheus.wait_for("witan_storage_node_round_trip_seconds")?;
    prometheus.wait_for("witan_storage_node_disk_usage_ratio")?;
    let mut queries: Vec<(String, String)> = Vec::new();
    for rule in &rules {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap_or_default();
        queries.push((format!("rule {name}"), rule["expr"].as_str().context("a rule has no expr")?.to_owned()));
    }
    queries.extend(dashboard(here)?);
    let recorded: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["record"].as_str()).collect();
    let mut asked = BTreeSet::new();
    let mut problems = Vec::new();
    for (place, query) in &queries {
        if let Err(error) = prometheus.ask(query) {
            problems.push(format!("{place}: {error:#}: {query}"));
        }
        for selector in selectors::of(query) {
            let name = selector.split('{').next().unwrap_or_default();
            if name == OCCASIONAL || recorded.contains(name) || !asked.insert(selector.clone()) {
                continue;
            }
            match prometheus.ask(&selector) {
                Ok(series) if series.as_array().is_some_and(|series| !series.is_empty()) => {}
                Ok(_) => problems.push(format!("{place}: the coordinator exports no {selector}")),
                Err(error) => problems.push(format!("{place}: {error:#}: {selector}")),
            }
        }
    }
    println!("{} queries, {} selectors", queries.len(), asked.len());
    ensure!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
    Ok(())
}

/// The dashboard's queries, with values for Grafana's variables.
fn dashboard(here: &Here) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(here.deploy.join("grafana/witan.json")).context("read the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).context("read the dashboard")?;
    let mut queries = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("the dashboard has no panels")? {
        let title = panel["title"].as_str().context("a panel has no title")?;
        ensure!(ids.insert(panel["id"].as_u64()), "panel {title:?} has the id of another one");
        if panel["type"] == "row" {
            continue;
        }
        ensure!(panel["description"].is_string(), "panel {title:?} does not say what it shows");
        for target in panel["targets"].as_array().with_context(|| format!("panel {title:?} has no targets"))? {
            let query =
                target["expr"].as_str().with_context(|| format!("panel {title:?} has a target without a query"))?;
            let filled = [("$__rate_interval", "1m"), ("$__interval", "1m"), ("$job", ".+"), ("$instance", ".+")];
            let query = filled.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
            queries.push((format!("panel {title:?}"), query));
        }
    }
    Ok(queries)
}

/// A Prometheus that scrapes one coordinator each second. Killed when dropped.
struct Prometheus {
    process: Child,
    address: String,
}

impl Prometheus {
    fn start(here: &Here, folder: &Path, system: &System) -> Result<Self> {
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [here.deploy.join("prometheus/alerts.yaml")],
            "scrape_configs": [{
                "job_name": "witan-coordinator",
                "scheme": "https",
                "tls_config": { "ca_file": system.authority },
                "authorization": { "credentials_file": system.token },
                "static_configs": [{ "targets": [system.metrics()?] }],
            }],
        });
        let file = folder.join("prometheus.yaml");
        fs::write(&file, config.to_string()).with_context(|| format!("write {}", file.display()))?;
        // It prints its port only in its log; a port that was free a moment ago is simpler.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .context("find a free port")?
            .to_string();
        let log = File::create(folder.join("prometheus.log")).context("create a log")?;
        let mut command = here.tools.prometheus();
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start Prometheus")?;
        Ok(Self { process, address })
    }

    /// Waits until a series of this name exists.
    fn wait_for(&self, name: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.ask(name) {
                Ok(series) if series.as_array().is_some_and(|series| !series.is_empty()) => return Ok(()),
                answer if Instant::now() > until => bail!("Prometheus has no {name} within {PATIENCE:?}: {answer:?}"),
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The result of a query.
    fn ask(&self, query: &str) -> Result<Value> {
        let mut connection = TcpStream::connect(&self.address).context("connect to Prometheus")?;
        connection.set_read_timeout(Some(Duration::from_secs(30))).context("bound the wait")?;
        let request = format!("GET /api/v1/query?query={} HTTP/1.0\r\nHost: {}\r\n\r\n", encoded(query), self.address);
        connection.write_all(request.as_bytes()).context("ask Prometheus")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).context("read Prometheus' answer")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("Prometheus' answer has no body")?;
        let body: Value = serde_json::from_str(body).with_context(|| format!("read {body:?}"))?;
        ensure!(body["status"] == "success", "{}", body["error"].as_str().unwrap_or("Prometheus refuses"));
        Ok(body["data"]["result"].clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A query, encoded for a URL.
fn encoded(query: &str) -> String {
    query
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
