//! `witan token`: API tokens.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use witan_kernel::name::TenantId;
use witan_kernel::port::{Metadata, PAGE, Token};
use witan_wire::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo};

use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output, Table};
use super::{Global, args};
use crate::access::issuance::well_formed;
use crate::access::scope::{Scope, Scopes};
use crate::access::token::{Grant, make};
use crate::config::{Flag, Inputs, Loaded};
use crate::process::config;
use crate::process::stores::{self, Shared};

/// Longest time to live: ten years. A token for longer than that should not expire at all.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Shown below the help.
pub const EXAMPLES: &str = "\
A token is shown once, when it is created, and stored as a hash. Clients send it as `authorization: Bearer TOKEN`; this \
command line reads it from --token-file or WITAN_TOKEN.

The first token is created directly in the metadata store, on a coordinator's machine and as its user: with --config, \
--database-url-file or --data-dir.

Examples:
  witan token create --scope operator --label me --config /etc/witan/config.yaml > operator.token
  witan token create --tenant acme --scope read,write --expires-in 90d --token-file operator.token
  witan token list
  witan token revoke k3jd72qpx4ma";

const CREATE_EXAMPLES: &str = "\
Scopes: read and write (keys), admin (the tenant, its plugins and tokens), operator (nodes, plugins, all tokens). A token \
without scopes is enough where any credential is: metrics, reflection.

Examples:
  witan token create --tenant acme --scope read,write --label shop --expires-in 90d
  witan token create --label prometheus
  witan token create --scope operator --label me --database-url-file /etc/witan/database-url";

const LIST_EXAMPLES: &str = "Examples:
  witan token list
  witan token list --tenant acme --output json | jq '.tokens[].token_id'";

const REVOKE_EXAMPLES: &str =
    "The coordinator that revokes it refuses it at once, the others within a second. Streams opened with it end, too.

Examples:
  witan token revoke k3jd72qpx4ma";

/// Subcommands of `token`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a token, and show it; it is not shown again
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List the tokens, without their secrets
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Revoke a token
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(Revoke),
}

/// Direct access to the metadata store, for creating the first token.
#[derive(Debug, clap::Args)]
pub struct Direct {
    /// Use the metadata store of this coordinator configuration directly, without a coordinator
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub config: Option<PathBuf>,
    /// Use the PostgreSQL database whose address is in this file directly, without a coordinator
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir", value_parser = args::path())]
    pub database_url_file: Option<PathBuf>,
    /// Use the embedded store in this coordinator folder directly, without a coordinator
    #[arg(long, value_name = "DIR", value_parser = args::path())]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `token create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// The tenant that it is valid for [default: all tenants]
    #[arg(short, long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// What it allows: read, write, admin, operator
    #[arg(long = "scope", value_name = "SCOPE,...", value_delimiter = ',')]
    pub scopes: Vec<String>,
    /// Description: who has it, and what for
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub label: String,
    /// Time to live, such as 12h or 90d [default: until it is revoked]
    #[arg(long, value_parser = life, value_name = "TIME")]
    pub expires_in: Option<Duration>,
    /// Direct access to the metadata store.
    #[command(flatten)]
    pub direct: Direct,
}

/// Arguments of `token list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only tokens of this tenant
    #[arg(short, long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Direct access to the metadata store.
    #[command(flatten)]
    pub direct: Direct,
}

/// Arguments of `token revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// The token's id, as `token list` shows it
    pub id: String,
    /// Direct access to the metadata store.
    #[command(flatten)]
    pub direct: Direct,
}

/// Reads "30m", "12h" or "90d".
fn life(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time to live: write 30m, 12h or 90d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let life = Duration::from_secs(number.saturating_mul(seconds));
    match life {
        Duration::ZERO => Err(wrong()),
        life if life > LONGEST => {
            Err("is more than ten years; leave it out for a token that does not expire".to_owned())
        }
        life => Ok(life),
    }
}

impl Direct {
    /// The metadata store, if a flag asks for direct access.
    async fn open(&self) -> anyhow::Result<Option<Arc<dyn Metadata>>> {
        let flag = |name, key, path: &Option<PathBuf>| {
            path.as_ref().map(|path| Flag { name, key, value: path.display().to_string() })
        };
        let flags = [
            flag("--data-dir", "server.data_dir", &self.data_dir),
            flag("--database-url-file", "database.url_file", &self.database_url_file),
        ];
        let flags: Vec<Flag> = flags.into_iter().flatten().collect();
        if flags.is_empty() && self.config.is_none() {
            return Ok(None);
        }
        let settings = Loaded::read(Inputs::of_process(self.config.clone(), flags))?.settings;
        let shared = Shared { postgres: config::postgres(&settings.database)?, redis: None };
        let folder = &settings.server.data_dir;
        if shared.postgres.is_none() && !folder.join("metadata.db").exists() {
            let folder = folder.display();
            output::note(&format!("note: {folder} holds no coordinator's data yet; a new store is created there"));
        }
        stores::metadata(&shared, folder).await.map(Some)
    }
}

/// Runs a subcommand of `token`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(create) => made(global, create).await,
        Command::List(list) => listed(global, list).await,
        Command::Revoke(revoke) => revoked(global, revoke).await,
    }
}

async fn made(global: &Global, create: Create) -> anyhow::Result<ExitCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires_at = create.expires_in.map(|life| (now + life).as_secs());
    let (info, text) = match create.direct.open().await? {
        Some(metadata) => {
            let grant = Grant {
                tenant: create.tenant.map(TenantId::new).transpose()?,
                scopes: Scopes::parse(create.scopes.iter().map(String::as_str))?,
                label: create.label,
                expires_at_ms: expires_at.map(|seconds| seconds * 1000),
            };
            let now_ms = now.as_millis() as u64;
            let fresh = make(well_formed(grant, now_ms)?, rand::random(), rand::random(), now_ms);
            metadata.create_token(fresh.token.clone(), None).await.context("store the token")?;
            (of_stored(&fresh.token), fresh.text)
        }
        None => {
            let request = CreateTokenRequest {
                tenant_id: create.tenant.unwrap_or_default(),
                scopes: create.scopes,
                label: create.label,
                expires_at: expires_at.map_or(0, |seconds| i64::try_from(seconds).unwrap_or(i64::MAX)),
            };
            let answer = client::access(global).await?.create_token(within(global, request)).await;
            let answer = answer.map_err(Problem::of(Deed::Token))?.into_inner();
            (answer.info.unwrap_or_default(), answer.token)
        }
    };
    match global.output {
        Output::Json => output::object(&output::with(token_json(&info), json!({ "token": text })))?,
        Output::Text => {
            output::note(&format!("token {}: {}; save it now; it is not shown again", info.token_id, may(&info)));
            output::line(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn listed(global: &Global, list: List) -> anyhow::Result<ExitCode> {
    let tokens = match list.direct.open().await? {
        Some(metadata) => stored(metadata.as_ref(), list.tenant.as_deref()).await?,
        None => asked(global, list.tenant.unwrap_or_default()).await?,
    };
    if global.output == Output::Json {
        output::object(&json!({ "tokens": tokens.iter().map(token_json).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TOKEN", "TENANT", "SCOPES", "LABEL", "CREATED", "EXPIRES"]);
    for token in &tokens {
        let tenant = if token.tenant_id.is_empty() { "(all)" } else { &token.tenant_id };
        table.row([
            token.token_id.clone(),
            tenant.to_owned(),
            token.scopes.join(","),
            token.label.clone(),
            moment(token.created_at),
            if token.expires_at == 0 { "never".to_owned() } else { moment(token.expires_at) },
        ]);
    }
    table.print("no tokens; create one: witan token create --scope operator --label ME")?;
    Ok(ExitCode::SUCCESS)
}

async fn revoked(global: &Global, revoke: Revoke) -> anyhow::Result<ExitCode> {
    match revoke.direct.open().await? {
        Some(metadata) => metadata.remove_token(&revoke.id).await.context("revoke")?,
        None => {
            let request = within(global, RevokeTokenRequest { token_id: revoke.id.clone() });
            client::access(global).await?.revoke_token(request).await.map_err(Problem::of(Deed::Token))?;
        }
    }
    match global.output {
        Output::Json => output::object(&json!({ "token_id": revoke.id, "outcome": "revoked" }))?,
        Output::Text => output::line(&format!("revoked token {}", revoke.id))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// All tokens, as a coordinator lists them.
async fn asked(global: &Global, tenant_id: String) -> anyhow::Result<Vec<TokenInfo>> {
    let mut client = client::access(global).await?;
    let (mut tokens, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListTokensRequest { tenant_id: tenant_id.clone(), page_size: 1000, page_token };
        let page = client.list_tokens(within(global, request)).await.map_err(Problem::query)?.into_inner();
        tokens.extend(page.tokens);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(tokens);
        }
    }
}

/// All tokens in a store.
async fn stored(metadata: &dyn Metadata, tenant: Option<&str>) -> anyhow::Result<Vec<TokenInfo>> {
    let mut tokens: Vec<TokenInfo> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = metadata.tokens(after.as_deref(), PAGE).await.context("read the tokens")?;
        let Some(last) = page.last() else { return Ok(tokens) };
        after = Some(last.id.clone());
        tokens.extend(page.iter().map(of_stored).filter(|token| tenant.is_none_or(|id| token.tenant_id == id)));
    }
}

fn of_stored(token: &Token) -> TokenInfo {
    let seconds = |ms: u64| i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    TokenInfo {
        token_id: token.id.clone(),
        tenant_id: token.tenant.as_ref().map_or_else(String::new, ToString::to_string),
        scopes: Scopes::from_bits(token.scopes).iter().map(Scope::as_str).map(str::to_owned).collect(),
        label: token.label.clone(),
        created_at: seconds(token.created_at_ms),
        expires_at: token.expires_at_ms.map_or(0, seconds),
    }
}

fn may(token: &TokenInfo) -> String {
    let scopes = if token.scopes.is_empty() { "no scope".to_owned() } else { token.scopes.join(", ") };
    let whose =
        if token.tenant_id.is_empty() { "all tenants".to_owned() } else { format!("tenant {}", token.tenant_id) };
    format!("{scopes}, for {whose}")
}

fn moment(seconds: i64) -> String {
    output::moment(seconds.saturating_mul(1_000_000))
}

fn token_json(token: &TokenInfo) -> Value {
    json!({
        "token_id": token.token_id,
        "tenant_id": (!token.tenant_id.is_empty()).then_some(&token.tenant_id),
        "scopes": token.scopes,
        "label": token.label,
        "created_at": token.created_at,
        "expires_at": (token.expires_at != 0).then_some(token.expires_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_have_units() {
        assert_eq!(life("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(life("12h"), Ok(Duration::from_secs(43_200)));
        for wrong in ["", "d", "0d", "90", "1y", "-1d", "4000d", "99999999999999999999d", "1\u{e9}"] {
            assert!(life(wrong).is_err(), "{wrong}");
        }
    }
}
