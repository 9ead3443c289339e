//! `witan repair`: compares the replicas of every record of a tenant, or of all, and repairs those that differ.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tonic::Streaming;
use witan_wire::v1::{AdmittedStore, CoordinatorServiceRepairRequest, CoordinatorServiceRepairResponse, NodeProblem};

use super::Global;
use super::args;
use super::args::Token;
use super::client::{self, Problem};
use super::output::{self, Output, grouped};
use crate::access::token::hexadecimal;
use crate::process::signal;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Stale replicas get the merge of all replicas, including deletions. The cluster does the same by itself (healing in the configuration): \
run it when that is turned off, or takes too long at healing.rate. A node with a new store is not used until a full repair \
(no --tenant, no tokens, no --cursor) admits it, fills it, and has found enough complete replicas of every record it must hold. \
Then its old store is retired. To undo that while the repair runs, bring the old disk back.

Clients are served meanwhile; --rate bounds the load of the repair. It can safely be repeated. Ctrl-C stops it and prints a \
cursor to continue from. Exit code 1: something could not be repaired; the output says what.

Examples:
  witan repair
  witan repair --tenant demo
  witan repair --rate 2000
  witan repair --digests
  witan repair --from-token 0000000000000000 --to-token 7fffffffffffffff
  witan repair --output json | jq '{complete, repaired, restored_nodes}'";

/// Arguments of `repair`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this tenant's records
    #[arg(short, long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    pub tenant: String,
    /// The first position on the ring, in hexadecimal [default: its beginning]
    #[arg(long, value_name = "HEX", value_parser = token)]
    pub from_token: Option<u64>,
    /// The last position on the ring, in hexadecimal [default: its end]
    #[arg(long, value_name = "HEX", value_parser = token)]
    pub to_token: Option<u64>,
    /// Continue where an earlier repair stopped
    #[arg(long, value_name = "CURSOR", value_parser = Token::parse)]
    pub cursor: Option<Token>,
    /// Most records compared per second
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Let nodes with a new store answer reads even where too few complete replicas remain to restore all their records;
    /// writes that only lost replicas had are given up
    #[arg(long)]
    pub accept_loss: bool,
    /// Read only what differs by the nodes' digests: fast, but finds nothing that has rotted on a disk, and fills no new store
    #[arg(long, conflicts_with = "accept_loss")]
    pub digests: bool,
}

/// Reads a position on the ring: up to 16 hexadecimal digits.
fn token(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("{text:?} is not a position: write up to 16 hexadecimal digits"))
}

/// Runs a repair.
pub async fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    let (from, to) = (args.from_token.unwrap_or(0), args.to_token.unwrap_or(u64::MAX));
    let request = CoordinatorServiceRepairRequest {
        tenant_id: args.tenant,
        from_token: args.from_token,
        to_token: args.to_token,
        cursor: args.cursor.map(|cursor| cursor.0).unwrap_or_default(),
        records_per_second: args.rate,
        accept_loss: args.accept_loss,
        by_digests: args.digests,
    };
    let mut client = client::coordinator(global).await?;
    // A repair has no deadline: --timeout bounds the connecting only.
    let reports = client.repair(request).await.map_err(Problem::query)?.into_inner();
    let bar = Bar::new(from, to);
    let last = tokio::select! {
        last = follow(reports, &bar) => last?,
        () = signal::stopped(stop) => {
            bar.0.finish_and_clear();
            return stopped(global.output, bar.last());
        }
    };
    bar.0.finish_and_clear();
    show(global.output, &last)
}

/// Shows reports until the last one.
async fn follow(
    mut reports: Streaming<CoordinatorServiceRepairResponse>,
    bar: &Bar,
) -> anyhow::Result<CoordinatorServiceRepairResponse> {
    let mut announced = BTreeSet::new();
    while let Some(report) = reports.message().await.map_err(Problem::query)? {
        if report.phase == "done" {
            return Ok(report);
        }
        for new in &report.admitted_stores {
            if announced.insert(new.node_id.clone()) {
                bar.0.suspend(|| output::note(&announcement(new)));
            }
        }
        bar.show(report);
    }
    anyhow::bail!("the coordinator ended the repair without a result; run it again")
}

/// What filling a new store means for the one that it replaces.
fn announcement(new: &AdmittedStore) -> String {
    let records = match new.replaced_keys {
        0 => String::new(),
        keys => format!(", which last reported about {} records", grouped(keys)),
    };
    format!(
        "storage node {}: store {} will replace store {}{records}. To undo: stop this repair and start the node with its old disk",
        new.node_id,
        hexadecimal(&new.store_id),
        hexadecimal(&new.replaces_store_id),
    )
}

/// A progress bar on standard error, if that is a terminal.
struct Bar(ProgressBar, std::cell::RefCell<CoordinatorServiceRepairResponse>, (u64, u64));

impl Bar {
    fn new(from: u64, to: u64) -> Self {
        // Positions are 64 bits wide; a bar counts in parts of 10,000.
        let bar = ProgressBar::new(10_000);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar, std::cell::RefCell::default(), (from, to))
    }

    fn show(&self, report: CoordinatorServiceRepairResponse) {
        let (from, to) = self.2;
        let (done, all) = (u128::from(report.token.saturating_sub(from)), u128::from(to.saturating_sub(from)).max(1));
        self.0.set_position(u64::try_from(done * 10_000 / all).unwrap_or(0));
        let (scanned, repaired) = (grouped(report.scanned), grouped(report.repaired));
        let message = match report.phase.as_str() {
            "waiting" => "waiting for operations in flight".to_owned(),
            _ => format!("{scanned} records, {repaired} repaired"),
        };
        self.0.set_message(message);
        self.1.replace(report);
    }

    fn last(&self) -> CoordinatorServiceRepairResponse {
        self.1.borrow().clone()
    }
}

fn show(output: Output, report: &CoordinatorServiceRepairResponse) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => output::object(&json(report))?,
        Output::Text => {
            let (scanned, repaired) = (grouped(report.scanned), grouped(report.repaired));
            output::line(&format!("compared {scanned} records, repaired {repaired}"))?;
            for node in &report.restored_nodes {
                output::line(&format!("storage node {node} is complete again, and answers reads again"))?;
            }
            problems_for_people(report);
        }
    }
    let well = report.complete && report.write_only_nodes.is_empty();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn problems_for_people(report: &CoordinatorServiceRepairResponse) {
    for node in &report.unreachable_nodes {
        output::note(&format!("storage node {} was not repaired everywhere: {}", node.node_id, node.reason));
    }
    for node in &report.write_only_nodes {
        output::note(&format!("the new store of storage node {} is not complete: {}", node.node_id, node.reason));
    }
    if report.failed > 0 {
        output::note(&format!(
            "{} records could not be read or merged; see the coordinator's log",
            grouped(report.failed)
        ));
    }
    if !report.complete {
        let (incomplete, all) = (report.ranges_incomplete, report.ranges_total);
        output::note(&format!(
            "{incomplete} of {all} ranges are not fully repaired; run it again when all nodes answer: witan nodes list"
        ));
    }
}

fn stopped(output: Output, report: CoordinatorServiceRepairResponse) -> anyhow::Result<ExitCode> {
    let cursor = args::base64(&report.cursor);
    match output {
        Output::Json => output::object(&output::with(json(&report), json!({ "phase": "stopped" })))?,
        Output::Text if cursor.is_empty() => output::note("stopped before any progress was reported"),
        Output::Text => {
            let (scanned, repaired) = (grouped(report.scanned), grouped(report.repaired));
            output::note(&format!(
                "stopped after {scanned} records, {repaired} repaired; to continue: --cursor {cursor}"
            ));
        }
    }
    Ok(ExitCode::FAILURE)
}

fn json(report: &CoordinatorServiceRepairResponse) -> Value {
    json!({
        "phase": report.phase,
        "complete": report.complete,
        "scanned": report.scanned,
        "repaired": report.repaired,
        "failed": report.failed,
        "skipped": report.skipped,
        "bytes": report.bytes,
        "ranges_done": report.ranges_done,
        "ranges_total": report.ranges_total,
        "ranges_incomplete": report.ranges_incomplete,
        "token": format!("{:016x}", report.token),
        "cursor": args::base64(&report.cursor),
        "unreachable_nodes": problems(&report.unreachable_nodes),
        "restored_nodes": report.restored_nodes,
        "write_only_nodes": problems(&report.write_only_nodes),
        "admitted_stores": report.admitted_stores.iter().map(admitted).collect::<Vec<_>>(),
    })
}

fn admitted(new: &AdmittedStore) -> Value {
    json!({
        "node_id": new.node_id,
        "store_id": hexadecimal(&new.store_id),
        "replaces_store_id": hexadecimal(&new.replaces_store_id),
        "replaced_keys": new.replaced_keys,
    })
}

/// Nodes with their problems, as JSON.
pub fn problems(nodes: &[NodeProblem]) -> Vec<Value> {
    nodes.iter().map(|node| json!({ "node_id": node.node_id, "reason": node.reason })).collect()
}

#[cfg(test)]
mod tests {
    use super::token;

    #[test]
    fn positions_are_read_and_refused_with_a_remedy() {
        assert_eq!((token("7fff"), token("0xffffffffffffffff")), (Ok(0x7fff), Ok(u64::MAX)));
        for wrong in ["", "xyz", "11112222333344445"] {
            assert!(token(wrong).unwrap_err().contains("hexadecimal"), "{wrong}");
        }
    }
}
