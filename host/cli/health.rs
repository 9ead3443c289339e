//! `witan health`: whether a server serves. For health probes in containers, whose image has no other program that could ask.

use std::process::ExitCode;

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Global;
use super::client::{self, Problem, within};
use super::output::{self, Output};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Asks a coordinator or a storage node once, over grpc.health.v1; no token is needed. A server that is shutting down reports \
not serving while it finishes the requests in flight.

Examples:
  witan health
  witan health --service witan.v1.CoordinatorService --timeout 2s
  witan health --endpoint https://localhost:50052 --ca-file ca.pem --client-cert-file node.pem --client-key-file node.key

Exit codes: 0 it serves, 1 it does not, or cannot be reached.";

/// Arguments of `witan health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The service to ask about [default: the whole server]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    service: String,
}

/// Asks, and prints the answer.
pub async fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let mut client = HealthClient::new(client::channel(global).await?);
    let question = within(global, HealthCheckRequest { service: args.service.clone() });
    let answer = client.check(question).await.map_err(Problem::query)?.into_inner();
    let serving = answer.status() == ServingStatus::Serving;
    match global.output {
        Output::Text => output::line(if serving { "serving" } else { "not serving" })?,
        Output::Json => output::object(&json!({ "endpoint": global.endpoint, "serving": serving }))?,
    }
    Ok(if serving { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
