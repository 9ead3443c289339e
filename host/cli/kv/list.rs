//! `witan kv list`: the keys of a tenant that have a value.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_wire::v1::ListKeysRequest;

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::output::{self, Output};

/// Keys per request: the API's limit.
const PAGE: i32 = 1000;

/// Shown below the help.
pub const EXAMPLES: &str = "\
One key per line; line ends, tabs and backslashes in keys are written as \\n, \\t and \\\\, and on a terminal so is \
everything that it would obey. Scripts use --null or --output json. Keys are listed in an order that is stable but has no \
meaning. Reads a quorum of replicas; deleted keys are left out. Keys that are written or deleted meanwhile may or may not be listed.

Examples:
  witan kv list -t demo
  witan kv list -t demo --prefix user: --limit 100
  witan kv list -t demo --null | xargs -0 -n 1 witan kv get -t demo
  witan kv list -t carts --output json | jq -r '.keys[] | select(.siblings) | .key'";

/// Arguments of `kv list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// The tenant
    #[arg(short, long, env = "WITAN_TENANT", value_name = "TENANT")]
    pub tenant: String,
    /// Only keys that begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Most keys to list [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Continue after an earlier list: its next_page_token from --output json
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    pub page_token: String,
    /// End each key with a zero byte instead of a line end, and print it as it is, for `xargs -0`
    #[arg(short = '0', long)]
    pub null: bool,
}

/// Lists keys.
pub async fn run(global: &Global, list: List) -> anyhow::Result<ExitCode> {
    let mut client = client::coordinator(global).await?;
    let mut left = list.limit.unwrap_or(u64::MAX);
    let mut page_token = list.page_token;
    let mut keys: Vec<Value> = Vec::new();
    loop {
        let request = ListKeysRequest {
            tenant_id: list.tenant.clone(),
            page_size: i32::try_from(left).map_or(PAGE, |left| left.min(PAGE)),
            page_token,
            prefix: list.prefix.clone(),
        };
        let page = client.list_keys(within(global, request)).await.map_err(Problem::query)?.into_inner();
        left = left.saturating_sub(page.keys.len() as u64);
        match global.output {
            Output::Text => output::names(page.keys.iter().map(|key| key.key.as_str()), list.null)?,
            Output::Json => {
                keys.extend(page.keys.iter().map(|key| json!({ "key": key.key, "siblings": key.siblings })))
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || left == 0 {
            break;
        }
    }
    if global.output == Output::Json {
        output::object(&json!({ "keys": keys, "next_page_token": page_token }))?;
    }
    Ok(ExitCode::SUCCESS)
}
