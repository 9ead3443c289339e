//! `witan cluster`: statements about the cluster as a whole.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use witan_wire::v1::DeclareRestoredRequest;

use super::Global;
use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  witan cluster restored --yes";

const RESTORED_EXAMPLES: &str = "\
A store that shows less than it had committed is not used: a copy of its disk was restored, or its disk has lost writes. After a copy \
of *all* storage nodes was restored, none would be used. This command says that you know: what was written after the copy was made is \
lost, and the stores are used as they are. Contexts that clients got before are refused from now on, and idempotency records of before \
are not used. Declare it also if the metadata were restored with the nodes, so that none seems to lack anything.

For a single node, never use it: move the node's folder aside, start it with an empty one, and run `witan repair`.

Examples:
  witan cluster restored --yes";

/// Subcommands of `cluster`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Declare that an earlier copy of all storage nodes was restored
    #[command(after_help = RESTORED_EXAMPLES)]
    Restored(Restored),
}

/// Arguments of `cluster restored`.
#[derive(Debug, clap::Args)]
pub struct Restored {
    /// All storage nodes were restored, and what the copy lacks may be given up
    #[arg(long, required = true)]
    pub yes: bool,
}

/// Runs a subcommand of `cluster`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    let Command::Restored(Restored { yes: _ }) = command;
    let request = DeclareRestoredRequest { confirm: "restored".to_owned() };
    let answer = client::coordinator(global).await?.declare_restored(within(global, request)).await;
    answer.map_err(Problem::of(Deed::Restore))?;
    match global.output {
        Output::Json => output::object(&json!({ "outcome": "declared" }))?,
        Output::Text => {
            output::line("declared: the storage nodes are used as they were restored; check with: witan nodes list")?
        }
    }
    Ok(ExitCode::SUCCESS)
}
