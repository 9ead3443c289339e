//! `witan tenant`: tenants and their settings.

pub mod delete;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::Code;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, idempotency_retention_ms};
use witan_wire::v1::{
    CreateTenantRequest, GetTenantRequest, GetTenantResponse, ListTenantsRequest, UpdateReplicationFactorRequest,
    UpdateTenantRequest,
};

use super::choice::{self, spelling};
use super::client::{self, Problem, has_reason, within};
use super::deed::Deed;
use super::output::{self, Output, Table, inline};
use super::{Global, args, migration};
use crate::config::value::spelled;

/// Shown below the help.
pub const EXAMPLES: &str = "\
A tenant owns keys, and its settings decide how they behave: how many replicas there are, what happens to concurrent \
writes, how writes are ordered. Plugins are bound per tenant.

Examples:
  witan tenant create demo
  witan tenant create carts --conflict-mode siblings
  witan tenant list";

const CREATE_EXAMPLES: &str = "\
The conflict mode cannot be changed later: `register` keeps one value per key, totally ordered; `siblings` drops no \
concurrent write, and lets a conflict resolver merge them. Linearizable reads and writes need `--ordering quorum` (the default) \
with `--read-repair blocking` at level quorum or all.

Examples:
  witan tenant create demo
  witan tenant create ledger --read-repair blocking --minimum-level quorum
  witan tenant create carts --conflict-mode siblings --replication-factor 5
  witan tenant create metrics --ordering clock --default-level one
  witan tenant create events --idempotency-retention 10m";

const GET_EXAMPLES: &str = "Examples:
  witan tenant get demo
  witan tenant get demo --output json | jq .version";

const LIST_EXAMPLES: &str = "Examples:
  witan tenant list
  witan tenant list --output json | jq -r '.tenants[].tenant_id'";

const UPDATE_EXAMPLES: &str = "\
Only the given settings change. With --version, they change only if that is still the current version. The conflict mode \
cannot be changed. A change of the replication factor moves records in the background, by a migration whose id is printed; until that is \
completed, the tenant has the factor of before.

Examples:
  witan tenant update demo --read-repair blocking
  witan tenant update demo --minimum-level quorum --version 3
  witan migration plan factor demo 5
  witan tenant update demo --replication-factor 5 --wait";

/// Subcommands of `tenant`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a tenant
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Show a tenant's settings
    #[command(after_help = GET_EXAMPLES)]
    Get {
        /// The tenant
        tenant: String,
    },
    /// Show all tenants
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Change a tenant's settings
    #[command(after_help = UPDATE_EXAMPLES, disable_version_flag = true)]
    Update(Update),
    /// Delete a tenant and all its data
    #[command(after_help = delete::EXAMPLES, disable_version_flag = true)]
    Delete(delete::Delete),
}

/// Settings that can change while data exists.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Choices {
    /// Ordering of register writes [default: quorum]
    #[arg(long, value_parser = choice::ordering())]
    pub ordering: Option<Ordering>,
    /// When replicas that a read found stale are repaired [default: async]
    #[arg(long, value_parser = choice::read_repair())]
    pub read_repair: Option<ReadRepair>,
    /// Lowest consistency level, which no plugin may go below [default: one]
    #[arg(long, value_parser = choice::level())]
    pub minimum_level: Option<Level>,
    /// Consistency level of requests that choose none [default: quorum]
    #[arg(long, value_parser = choice::level())]
    pub default_level: Option<Level>,
    /// What happens to requests with an idempotency key while the idempotency store is down [default: reject]
    #[arg(long, value_parser = choice::idempotency_outage())]
    pub idempotency_outage: Option<IdempotencyOutage>,
    /// For how long an idempotency key has one effect, such as 10m or 6h: 1m to 24h; a change counts for keys that are used for
    /// the first time after it [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = retention)]
    pub idempotency_retention: Option<i64>,
}

/// Reads a retention as seconds, within the range that the server accepts.
fn retention(text: &str) -> Result<i64, String> {
    let time = args::duration(text).map_err(|error| error.to_string())?;
    let whole = time.subsec_nanos() == 0;
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match idempotency_retention_ms(seconds) {
        Ok(_) if whole => Ok(seconds),
        Ok(_) => Err("has a fraction of a second; use whole seconds, such as 90s".to_owned()),
        Err(_) => Err("is out of range; use 1m to 24h".to_owned()),
    }
}

impl Choices {
    fn is_empty(&self) -> bool {
        self.ordering.is_none()
            && self.read_repair.is_none()
            && self.minimum_level.is_none()
            && self.default_level.is_none()
            && self.idempotency_outage.is_none()
            && self.idempotency_retention.is_none()
    }
}

/// Arguments of `tenant create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// The tenant: 1 to 256 bytes without ':' and control characters
    pub tenant: String,
    /// Replicas of every key, 1 to 5 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
    pub replication_factor: Option<i32>,
    /// What happens to concurrent writes [default: register]
    #[arg(long, value_parser = choice::conflict_mode())]
    pub conflict_mode: Option<ConflictMode>,
    /// Settings that can change later.
    #[command(flatten)]
    pub choices: Choices,
    /// Succeed if the tenant already exists, whatever its settings
    #[arg(long)]
    pub if_missing: bool,
}

/// Arguments of `tenant update`.
#[derive(Debug, clap::Args)]
pub struct Update {
    /// The tenant
    pub tenant: String,
    /// What to change.
    #[command(flatten)]
    pub choices: Choices,
    /// Change it only if this is still its version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub version: Option<i64>,
    /// Replicas of every key, 1 to 5; not together with other settings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5), conflicts_with_all = ["version", "Choices"])]
    pub replication_factor: Option<i32>,
    /// Follow the migration until it has ended
    #[arg(long, requires = "replication_factor")]
    pub wait: bool,
}

/// Runs a subcommand of `tenant`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(create) => {
            let if_missing = create.if_missing;
            let tenant = create.tenant.clone();
            let created = ensure(global, request(create), if_missing).await?;
            let verb = if created { "created" } else { "kept" };
            show(global.output, verb, &get(global, tenant).await?)
        }
        Command::Get { tenant } => show(global.output, "", &get(global, tenant).await?),
        Command::List => list(global).await,
        Command::Update(update) => change(global, update).await,
        Command::Delete(delete) => delete::run(global, delete).await,
    }
}

fn request(create: Create) -> CreateTenantRequest {
    let Create { tenant, replication_factor, conflict_mode, choices, if_missing: _ } = create;
    CreateTenantRequest {
        tenant_id: tenant,
        replication_factor: replication_factor.unwrap_or(0),
        conflict_mode: spelling(conflict_mode),
        ordering: spelling(choices.ordering),
        read_repair: spelling(choices.read_repair),
        minimum_level: spelling(choices.minimum_level),
        default_level: spelling(choices.default_level),
        idempotency_outage: spelling(choices.idempotency_outage),
        idempotency_retention_seconds: choices.idempotency_retention.unwrap_or_default(),
    }
}

/// Creates a tenant. False: it existed, and `if_missing` allows that.
pub async fn ensure(global: &Global, request: CreateTenantRequest, if_missing: bool) -> Result<bool, Problem> {
    match client::coordinator(global).await?.create_tenant(within(global, request)).await {
        Ok(_) => Ok(true),
        Err(status) if if_missing && (status.code() == Code::AlreadyExists || has_reason(&status, "TENANT_EXISTS")) => {
            Ok(false)
        }
        Err(status) => Err(Problem::of(Deed::Tenant)(status)),
    }
}

/// Reads a tenant.
pub async fn get(global: &Global, tenant: String) -> Result<GetTenantResponse, Problem> {
    let request = within(global, GetTenantRequest { tenant_id: tenant });
    let answer = client::coordinator(global).await?.get_tenant(request).await;
    Ok(answer.map_err(Problem::query)?.into_inner())
}

async fn list(global: &Global) -> anyhow::Result<ExitCode> {
    let mut client = client::coordinator(global).await?;
    let mut tenants = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = within(global, ListTenantsRequest { page_size: 1000, page_token });
        let page = client.list_tenants(request).await.map_err(Problem::query)?.into_inner();
        tenants.extend(page.tenants);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if global.output == Output::Json {
        output::object(&json!({ "tenants": tenants.iter().map(tenant_json).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table =
        Table::new(["TENANT", "REPLICAS", "CONFLICTS", "ORDERING", "READ REPAIR", "DEFAULT", "MINIMUM", "VERSION"]);
    for tenant in tenants {
        table.row([
            tenant.tenant_id,
            tenant.replication_factor.to_string(),
            tenant.conflict_mode,
            tenant.ordering,
            tenant.read_repair,
            tenant.default_level,
            tenant.minimum_level,
            tenant.version.to_string(),
        ]);
    }
    table.print("no tenants; create one: witan tenant create TENANT")?;
    Ok(ExitCode::SUCCESS)
}

async fn change(global: &Global, update: Update) -> anyhow::Result<ExitCode> {
    let mut client = client::coordinator(global).await?;
    if let Some(factor) = update.replication_factor {
        let request =
            UpdateReplicationFactorRequest { tenant_id: update.tenant.clone(), new_replication_factor: factor };
        let answer = client.update_replication_factor(within(global, request)).await;
        let migration_id = answer.map_err(Problem::of(Deed::Tenant))?.into_inner().migration_id;
        return match migration_id.is_empty() {
            false if update.wait => migration::watch::until_completed(global, migration_id).await,
            _ => show(global.output, "updated", &get(global, update.tenant).await?),
        };
    }
    anyhow::ensure!(!update.choices.is_empty(), "nothing to change; see witan help tenant update");
    let choices = update.choices;
    let request = UpdateTenantRequest {
        tenant_id: update.tenant,
        version: update.version.unwrap_or(0),
        ordering: spelling(choices.ordering),
        read_repair: spelling(choices.read_repair),
        minimum_level: spelling(choices.minimum_level),
        default_level: spelling(choices.default_level),
        idempotency_outage: spelling(choices.idempotency_outage),
        idempotency_retention_seconds: choices.idempotency_retention,
    };
    let answer = client.update_tenant(within(global, request)).await.map_err(Problem::of(Deed::Tenant))?;
    show(global.output, "updated", &answer.into_inner())
}

fn show(output: Output, verb: &str, tenant: &GetTenantResponse) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        let outcome = if verb.is_empty() { json!({}) } else { json!({ "outcome": verb }) };
        output::object(&output::with(tenant_json(tenant), outcome))?;
        return Ok(ExitCode::SUCCESS);
    }
    let title = if verb.is_empty() {
        format!("tenant {}", inline(&tenant.tenant_id))
    } else {
        format!("{verb} tenant {}", inline(&tenant.tenant_id))
    };
    let lines = [
        title,
        format!("  replicas            {}", tenant.replication_factor),
        format!("  concurrent writes   {}", tenant.conflict_mode),
        format!("  ordering            {}", tenant.ordering),
        format!("  read repair         {}", tenant.read_repair),
        format!("  default level       {}", tenant.default_level),
        format!("  minimum level       {}", tenant.minimum_level),
        format!("  idempotency outage  {}", tenant.idempotency_outage),
        format!("  idempotency kept    {}", kept(tenant.idempotency_retention_seconds)),
        format!("  version             {}", tenant.version),
        format!("  created             {}", output::moment(tenant.created_at.saturating_mul(1_000_000))),
    ];
    output::text(&lines.join("\n"))?;
    if !tenant.pending_migration_id.is_empty() {
        let id = &tenant.pending_migration_id;
        output::note(&format!("migration {id} moves its records; to follow it: witan migration watch {id}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A retention as flags spell it; a coordinator of an earlier version sends none, and keeps records for a day.
fn kept(seconds: i64) -> String {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => spelled(Duration::from_secs(seconds)),
        _ => "24h".to_owned(),
    }
}

fn tenant_json(tenant: &GetTenantResponse) -> Value {
    json!({
        "tenant_id": tenant.tenant_id,
        "replication_factor": tenant.replication_factor,
        "conflict_mode": tenant.conflict_mode,
        "ordering": tenant.ordering,
        "read_repair": tenant.read_repair,
        "default_level": tenant.default_level,
        "minimum_level": tenant.minimum_level,
        "idempotency_outage": tenant.idempotency_outage,
        "idempotency_retention_seconds": tenant.idempotency_retention_seconds,
        "version": tenant.version,
        "created_at": tenant.created_at,
        "updated_at": tenant.updated_at,
        "pending_migration_id": tenant.pending_migration_id,
    })
}
