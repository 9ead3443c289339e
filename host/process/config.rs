//! The configuration that a coordinator is assembled from, derived from its settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use witan_control::TenantCacheConfig;
use witan_coordinate::{Defaults, Limits, Timeouts};
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::port::{Durability, NodeStatus, StorageNode};
use witan_kernel::tenant::ReadRepair;
use witan_kernel::weight::Weights;
use witan_net::Bounds;
use witan_plugin::signature::{self, Signatures};
use witan_store::idempotency::{RedisConfig, RedisCredentials, RedisServers, RedisTls};
use witan_store::metadata::PostgresConfig;
use witan_upkeep::{HealingConfig, MovesConfig};

use super::stores::Shared;
use super::telemetry;
use crate::access::config::{RateLimits, Security};
use crate::config::redis::Servers;
use crate::config::settings::{self, Database, Redis, Settings, SignaturesMode};
use crate::config::value::Secret;
use crate::config::{FILE_BYTES, address, plain_host};
use crate::grpc::origin::Sampling;
use witan_control::defaults::Fallbacks;

/// Settings that may change while a coordinator serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Deadlines of operations whose client sets none.
    pub timeouts: Timeouts,
    /// Defaults of new tenants and nodes, for settings that their request leaves out.
    pub fallbacks: Fallbacks,
    /// Request rate limits per tenant.
    pub rate_limits: RateLimits,
    /// Weights of tenants.
    pub weights: Weights,
    /// What is healed, and how fast.
    pub healing: HealingConfig,
    /// How fast migrations copy, and how long the lead of them lasts.
    pub moves: MovesConfig,
}

impl Default for Live {
    fn default() -> Self {
        let Defaults { write_timeout: write, read_timeout: read, .. } = Defaults::default();
        let timeouts = Timeouts { read, write };
        let (rate_limits, healing) = (RateLimits::default(), HealingConfig::default());
        let (weights, moves) = (Weights::default(), MovesConfig::default());
        Self { timeouts, fallbacks: Fallbacks::default(), rate_limits, weights, healing, moves }
    }
}

/// The configuration that a coordinator is assembled from.
#[derive(Debug, Clone)]
pub struct Config {
    /// The coordinator's id, sent to storage nodes.
    pub node_id: String,
    /// Folder of the embedded stores.
    pub data_dir: PathBuf,
    /// Stores shared with other coordinators.
    pub shared: Shared,
    /// Address on which gRPC is served; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// Address on which HTTP is served; port 0 chooses a free one.
    pub admin_listen: SocketAddr,
    /// Whether the embedded stores sync to disk before they acknowledge.
    pub durability: Durability,
    /// The folder watched for plugins.
    pub plugins: Option<PathBuf>,
    /// Whether plugins must be signed, and with which keys.
    pub signatures: Signatures,
    /// The limits of plugins.
    pub plugin_limits: witan_plugin::Limits,
    /// Storage nodes named in the configuration.
    pub nodes: Vec<StorageNode>,
    /// Authorization, and security of connections.
    pub security: Security,
    /// Defaults of operations.
    pub defaults: Defaults,
    /// Whether what goes with [`witan_kernel::capability::NAMES`] may be written; `None`: if no earlier version has run on the metadata.
    pub names: Option<bool>,
    /// Whether idempotency records in Redis are written in their smaller form; `None`: if no earlier version has run on the metadata.
    pub small_records: Option<bool>,
    /// Whether changes are fenced at the storage nodes; `None`: if no earlier version has run on the metadata.
    pub fences: Option<bool>,
    /// Size and lifetime of the tenant cache.
    pub tenant_cache: TenantCacheConfig,
    /// What one tenant may have of what all share.
    pub tenants: settings::Tenants,
    /// How long after its start it begins to heal.
    pub healing_begins: Duration,
    /// Bounds of the listener for gRPC.
    pub grpc: Bounds,
    /// Bounds of the listener for HTTP.
    pub http: Bounds,
    /// HTTP path of the metrics; `None`: not served.
    pub metrics_path: Option<String>,
    /// How long a shutdown waits for operations in flight.
    pub drain: Duration,
    /// Which calls are traced.
    pub sampling: Sampling,
}

/// The configuration that follows from `settings`.
pub(crate) fn config(settings: &Settings) -> anyhow::Result<Config> {
    let Settings { server, metrics, consistency, cache, tenants, plugins, security, durability, .. } = settings;
    Ok(Config {
        node_id: server.node_id.clone(),
        shared: Shared { postgres: postgres(&settings.database)?, redis: redis(&settings.redis)? },
        data_dir: server.data_dir.clone(),
        listen: address(&server.host, server.port).context("server.host")?,
        admin_listen: address(&metrics.host, metrics.port).context("metrics.host")?,
        durability: *durability,
        plugins: plugins.folder.clone(),
        signatures: signatures(plugins),
        plugin_limits: plugin_limits(plugins),
        nodes: nodes(settings)?,
        security: security.clone(),
        defaults: Defaults {
            write_timeout: consistency.write_timeout.0,
            read_timeout: consistency.read_timeout.0,
            zone: zone(server.zone.as_deref())?,
            limits: Limits { scans_per_tenant: tenants.max_scans, ..Limits::default() },
            ..Defaults::default()
        },
        names: consistency.ask_before_repeating,
        small_records: settings.redis.small_records,
        fences: consistency.fence_changes,
        tenant_cache: TenantCacheConfig {
            capacity: cache.max_size,
            fresh: cache.tenant_config_ttl.0,
            ..TenantCacheConfig::default()
        },
        tenants: tenants.clone(),
        healing_begins: settings.healing.begin_after.0,
        grpc: grpc_bounds(server),
        http: http_bounds(server, metrics),
        metrics_path: metrics.enabled.then(|| metrics.path.clone()),
        drain: server.shutdown_timeout.0,
        sampling: telemetry::sampling(&settings.telemetry),
    })
}

/// The zone of this coordinator; an empty name is none.
fn zone(name: Option<&str>) -> anyhow::Result<Option<Zone>> {
    let zone = name.map(Zone::new).transpose().context("server.zone")?;
    Ok(zone.filter(|zone| !zone.is_none()))
}

fn signatures(plugins: &settings::Plugins) -> Signatures {
    let mode = match plugins.signatures {
        SignaturesMode::Off => signature::Mode::Off,
        SignaturesMode::Warn => signature::Mode::Warn,
        SignaturesMode::Required => signature::Mode::Required,
    };
    Signatures { mode, keys: plugins.signing_keys.clone() }
}

fn plugin_limits(plugins: &settings::Plugins) -> witan_plugin::Limits {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (warm, warm_tenant) = (bytes(plugins.warm_bytes), bytes(plugins.warm_bytes_per_tenant));
    witan_plugin::Limits { warm, warm_tenant, ..witan_plugin::Limits::default() }
}

fn grpc_bounds(server: &settings::Server) -> Bounds {
    let bounds = Bounds {
        trusted: server.trusted_addresses.clone(),
        idle: server.idle_timeout.0,
        watches: server.max_watch_streams,
        ..Bounds::of(server.max_connections)
    };
    Bounds { of_address: server.max_connections_per_address.unwrap_or(bounds.of_address), ..bounds }
}

/// Most HTTP connections, which come from probes, metrics scrapers and people.
const HTTP_CONNECTIONS: usize = 256;

fn http_bounds(server: &settings::Server, metrics: &settings::Metrics) -> Bounds {
    Bounds {
        trusted: server.trusted_addresses.clone(),
        idle: server.idle_timeout.0,
        greeting: metrics.header_timeout.0,
        reserved: metrics.reserved_connections,
        ..http_defaults()
    }
}

/// The bounds of the listener for HTTP where nothing is configured.
pub(crate) fn http_defaults() -> Bounds {
    Bounds { greeting: Duration::from_secs(5), reserved: 16, ..Bounds::of(HTTP_CONNECTIONS) }
}

/// The part of the settings that may change at run time.
pub(crate) fn live(settings: &Settings) -> Live {
    let Settings { consistency, security, hash_ring, healing, placement, tenants, .. } = settings;
    Live {
        timeouts: Timeouts { read: consistency.read_timeout.0, write: consistency.write_timeout.0 },
        fallbacks: Fallbacks {
            default_level: consistency.default_level,
            read_repair: if consistency.repair_async { ReadRepair::Async } else { ReadRepair::Blocking },
            virtual_nodes: hash_ring.virtual_nodes,
        },
        rate_limits: security.rate_limits.clone(),
        weights: tenants.weights.0.clone(),
        healing: HealingConfig {
            anti_entropy: healing.anti_entropy,
            compare_every: healing.compare_every.0,
            scrub_every: healing.scrub_every.0,
            bytes_per_second: healing.rate,
            admit_after: healing.admit_after.0,
            tombstone_grace: healing.tombstone_grace.0,
            collect_tombstones: healing.collect_tombstones,
        },
        moves: MovesConfig {
            bytes_per_second: placement.copy_rate,
            full_disk: placement.full_disk,
            lease: placement.leader_lease.0,
        },
    }
}

/// Connection settings of the metadata database, if one is configured.
pub(crate) fn postgres(database: &Database) -> anyhow::Result<Option<PostgresConfig>> {
    let Some(address) = database.address()? else { return Ok(None) };
    let mut config = PostgresConfig::new(address.reveal());
    config.direct = database.direct_address()?.map(|address| address.reveal().to_owned());
    config.connections = database.max_connections;
    if let Some(connect) = database.connect_timeout {
        config.connect = connect.0;
    }
    if let Some(operation) = database.operation_timeout {
        config.operation = operation.0;
    }
    Ok(Some(config))
}

/// Connection settings of the idempotency store, if it is shared.
pub(crate) fn redis(redis: &Redis) -> anyhow::Result<Option<RedisConfig>> {
    let Some(servers) = redis.servers()? else { return Ok(None) };
    let plain = |secrets: Vec<Secret>| secrets.iter().map(|secret| secret.reveal().to_owned()).collect();
    let servers = match servers {
        Servers::Single(address) => RedisServers::Single(address.reveal().to_owned()),
        Servers::Cluster(addresses) => RedisServers::Cluster(plain(addresses)),
        Servers::Sentinel { sentinels, master, database, tls } => {
            RedisServers::Sentinel { sentinels: plain(sentinels), master, database, tls }
        }
    };
    let mut config = RedisConfig::new(servers);
    let password = redis.separate_password()?;
    config.credentials =
        password.map(|password| RedisCredentials { user: redis.user.clone(), password: password.reveal().to_owned() });
    if let Some(file) = &redis.ca_file {
        config.tls = Some(RedisTls { authorities: Some(read(file)?), identity: None });
    }
    config.key_prefix.clone_from(&redis.key_prefix);
    if let Some(timeout) = redis.timeout {
        config.timeout = timeout.0;
    }
    if let Some(connect) = redis.connect_timeout {
        config.connect_timeout = connect.0;
    }
    Ok(Some(config))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    witan_file::read(file, FILE_BYTES).with_context(|| format!("read {}", file.display()))
}

fn nodes(settings: &Settings) -> anyhow::Result<Vec<StorageNode>> {
    let node = |node: &crate::config::settings::StorageNode| {
        Ok(StorageNode {
            id: NodeId::new(node.id.as_str())?,
            host: plain_host(&node.host).to_owned(),
            port: node.port,
            virtual_nodes: node.virtual_nodes.unwrap_or(settings.hash_ring.virtual_nodes),
            status: NodeStatus::Active,
            zone: Zone::new(node.zone.as_deref().unwrap_or_default())?,
        })
    };
    settings.storage_nodes.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_have_the_plugin_hosts_limits_if_nothing_else_is_configured() {
        assert_eq!(plugin_limits(&settings::Plugins::default()), witan_plugin::Limits::default());
    }
}
