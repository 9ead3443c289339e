//! `witan migration`: changes of the nodes, of replication factors and of routing hooks that move records.

pub mod leftovers;
pub mod plan;
pub mod shown;
pub mod watch;

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use witan_wire::v1::{CancelMigrationRequest, GetMigrationStatusRequest, ListMigrationsRequest};

use super::Global;
use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output, Table};
use shown::{change, json_of, moment, progress, show, status};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Adding or removing a storage node, changing a replication factor, and another routing hook of a tenant, moves records while clients \
read and write them. Such a change \
is a migration: the command that asks for it returns at once with an id such as m-17, the cluster moves one tenant after the other, and \
it goes on whichever coordinator stops. Until it has ended it can be cancelled, and what has moved moves back.

Examples:
  witan migration plan add n4 10.0.0.4:50052
  witan nodes add n4 10.0.0.4:50052 --wait
  witan migration list
  witan migration watch m-17
  witan migration cancel m-17";

const LIST_EXAMPLES: &str = "The newest first; of those that have ended, the oldest are forgotten.

Examples:
  witan migration list
  witan migration list --output json | jq -r '.migrations[] | select(.status == \"in_progress\").migration_id'";

const SHOW_EXAMPLES: &str = "\
Phases of a tenant that is moved: dual_write (changes go to both places), data_copy (what was stored before is copied), cutover (reads \
ask both places, and what the copy has missed is copied), cleanup (what is left at the old place is removed).

Examples:
  witan migration show m-17
  witan migration show m-17 --output json | jq .progress.percentage";

const CANCEL_EXAMPLES: &str = "\
A node that was to join does not, one that was to leave stays, a tenant keeps its replication factor or its routing hook. Tenants that \
have been moved already are moved back, which needs --confirm-undo. A node that was removed by force cannot be taken back: its store is \
never used again; nor can a routing hook by which the records are placed already: bind the one of before again.

Examples:
  witan migration cancel m-17
  witan migration cancel m-17 --confirm-undo --wait";

/// Subcommands of `migration`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all migrations
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Show a migration
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// Its id, such as m-17
        migration: String,
    },
    /// Follow a migration until it has ended
    #[command(after_help = watch::EXAMPLES)]
    Watch {
        /// Its id, such as m-17
        migration: String,
    },
    /// Give a migration up; what has moved moves back
    #[command(after_help = CANCEL_EXAMPLES)]
    Cancel(Cancel),
    /// Show what a change would move, without making it
    #[command(subcommand, after_help = plan::EXAMPLES)]
    Plan(plan::Command),
    /// Show what has moved away from nodes that still have it, or give it up
    #[command(after_help = leftovers::EXAMPLES)]
    Leftovers(leftovers::Arguments),
}

/// Arguments of `migration cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// Its id, such as m-17
    pub migration: String,
    /// Also if tenants have been moved already: they are moved back
    #[arg(long)]
    pub confirm_undo: bool,
    /// Follow it until it has ended
    #[arg(long)]
    pub wait: bool,
}

/// Runs a subcommand of `migration`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => list(global).await,
        Command::Show { migration } => {
            let request = within(global, GetMigrationStatusRequest { migration_id: migration });
            let answer = client::coordinator(global).await?.get_migration_status(request).await;
            show(global.output, &answer.map_err(Problem::query)?.into_inner())
        }
        Command::Watch { migration } => watch::until_completed(global, migration).await,
        Command::Cancel(Cancel { migration, confirm_undo, wait }) => {
            let request = CancelMigrationRequest { migration_id: migration.clone(), confirm_undo };
            let answer = client::coordinator(global).await?.cancel_migration(within(global, request)).await;
            let asked = answer.map_err(Problem::of(Deed::Migration))?.into_inner();
            match wait {
                true => watch::until_cancelled(global, migration).await,
                false => show(global.output, &asked),
            }
        }
        Command::Plan(command) => plan::run(global, command).await,
        Command::Leftovers(arguments) => leftovers::run(global, arguments).await,
    }
}

async fn list(global: &Global) -> anyhow::Result<ExitCode> {
    let mut client = client::coordinator(global).await?;
    let (mut migrations, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = within(global, ListMigrationsRequest { page_size: 1000, page_token });
        let page = client.list_migrations(request).await.map_err(Problem::query)?.into_inner();
        migrations.extend(page.migrations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if global.output == Output::Json {
        output::object(&json!({ "migrations": migrations.iter().map(json_of).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["MIGRATION", "CHANGE", "STATUS", "PHASE", "DONE", "TENANTS", "ASKED FOR"]);
    for it in migrations {
        table.row([
            it.migration_id.clone(),
            change(&it),
            status(&it).to_owned(),
            it.phase.clone(),
            format!("{:.1} %", progress(&it).percentage),
            format!("{} of {}", it.tenants_done, it.tenants_total),
            moment(it.created_at),
        ]);
    }
    table.print("no migrations; see: witan help migration")?;
    Ok(ExitCode::SUCCESS)
}
