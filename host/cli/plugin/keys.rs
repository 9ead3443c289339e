//! `witan plugin keys`: the public keys with which plugins may be signed.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use witan_kernel::hexadecimal;
use witan_wire::v1::{AddSigningKeyRequest, ListSigningKeysRequest, RemoveSigningKeyRequest};

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, Table};

pub(super) const EXAMPLES: &str = "\
Keys of the operator are for plugins of all tenants, those of a tenant (--tenant) for its own. What is signed with a key that is \
removed is no longer accepted; what is in force stays.

Examples:
  witan plugin keys add release 1f0c5e7a9b3d48626f8e0d1c2b4a69788796a5b4c3d2e1f00f1e2d3c4b5a6978
  witan plugin keys list
  witan plugin keys remove release --tenant carts";

/// Subcommands of `plugin keys`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a public key
    #[command(after_help = EXAMPLES)]
    Add {
        /// Its id: 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'
        id: String,
        /// The public key: 64 hexadecimal digits, as `witan plugin sign --generate` prints them
        #[arg(value_parser = public_key)]
        key: PublicKey,
        /// The tenant whose plugins it may sign [default: the operator's]
        #[arg(short, long)]
        tenant: Option<String>,
    },
    /// Show the keys
    #[command(after_help = EXAMPLES)]
    List {
        /// Only keys of this tenant [default: all]
        #[arg(short, long)]
        tenant: Option<String>,
    },
    /// Remove a key
    #[command(after_help = EXAMPLES)]
    Remove {
        /// Its id
        id: String,
        /// The tenant whose key it is [default: the operator's]
        #[arg(short, long)]
        tenant: Option<String>,
    },
}

/// A public key, 32 bytes.
#[derive(Debug, Clone)]
pub struct PublicKey(Vec<u8>);

fn public_key(text: &str) -> Result<PublicKey, String> {
    let key = hexadecimal::decode(text).filter(|bytes| bytes.len() == 32).map(PublicKey);
    key.ok_or_else(|| {
        "a public key has 64 hexadecimal digits, as `witan plugin sign --generate` prints them".to_owned()
    })
}

pub(super) async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add { id, key, tenant } => {
            let tenant_id = tenant.unwrap_or_default();
            let request = AddSigningKeyRequest { tenant_id, key_id: id.clone(), public_key: key.0.into() };
            let answer = client::plugins(global).await?.add_signing_key(within(global, request)).await;
            answer.map_err(Problem::of(Deed::SigningKey))?;
            changed(global, "added", &id)
        }
        Command::List { tenant } => list(global, tenant).await,
        Command::Remove { id, tenant } => {
            let request = RemoveSigningKeyRequest { tenant_id: tenant.unwrap_or_default(), key_id: id.clone() };
            let answer = client::plugins(global).await?.remove_signing_key(within(global, request)).await;
            answer.map_err(Problem::of(Deed::SigningKey))?;
            changed(global, "removed", &id)
        }
    }
}

fn changed(global: &Global, outcome: &str, id: &str) -> anyhow::Result<ExitCode> {
    match global.output {
        Output::Json => output::object(&json!({ "key_id": id, "outcome": outcome }))?,
        Output::Text => output::line(&format!("{outcome} {id}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(global: &Global, tenant: Option<String>) -> anyhow::Result<ExitCode> {
    let request = within(global, ListSigningKeysRequest { tenant_id: tenant.unwrap_or_default() });
    let answer = client::plugins(global).await?.list_signing_keys(request).await;
    let keys = answer.map_err(Problem::query)?.into_inner().keys;
    if global.output == Output::Json {
        let shown = keys.iter().map(|key| {
            json!({
                "tenant_id": key.tenant_id,
                "key_id": key.key_id,
                "public_key": hexadecimal::encode(&key.public_key),
                "added_at_ms": key.added_at_ms,
                "configured": key.configured,
            })
        });
        output::object(&json!({ "keys": shown.collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TENANT", "ID", "PUBLIC KEY", "FROM"]);
    for key in keys {
        table.row([
            if key.tenant_id.is_empty() { "(operator)".to_owned() } else { key.tenant_id },
            key.key_id,
            hexadecimal::encode(&key.public_key),
            if key.configured { "configuration" } else { "API" }.to_owned(),
        ]);
    }
    table.print("no signing keys; add one: witan plugin keys add ID KEY")?;
    Ok(ExitCode::SUCCESS)
}
