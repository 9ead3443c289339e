//! From a configuration to what a coordinator is put together from.

use std::path::Path;

use anyhow::Context;
use tokio::sync::watch;
use witan_kernel::name::NodeId;
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_kernel::tenant::ReadRepair;
use witan_store::idempotency::{RedisConfig, RedisCredentials, RedisServers, RedisTls};
use witan_store::metadata::PostgresConfig;
use witan_store::tenants::TenantCacheConfig;

use super::compose::{Config, Live};
use super::reload::Reloads;
use super::stores::Shared;
use super::telemetry;
use crate::config::database::Wrong;
use crate::config::redis::Servers;
use crate::config::settings::{Database, Redis, Settings};
use crate::config::value::Secret;
use crate::config::{address, plain_host};
use crate::coordinate::{Defaults, Timeouts};
use crate::grpc::Fallbacks;

/// What a coordinator is put together from.
pub(super) fn config(settings: &Settings, live: watch::Receiver<Live>, reloads: Reloads) -> anyhow::Result<Config> {
    let Settings { server, metrics, consistency, cache, plugins, security, durability, .. } = settings;
    let wrong = |what: String| anyhow::anyhow!(what);
    Ok(Config {
        node_id: server.node_id.clone(),
        shared: Shared { postgres: postgres(&settings.database)?, redis: redis(&settings.redis)? },
        data_dir: server.data_dir.clone(),
        listen: address(&server.host, server.port).map_err(wrong).context("server.host")?,
        admin_listen: address(&metrics.host, metrics.port).map_err(wrong).context("metrics.host")?,
        durability: (*durability).into(),
        plugins: plugins.folder.clone(),
        nodes: nodes(settings)?,
        security: security.clone(),
        defaults: Defaults {
            write_timeout: consistency.write_timeout.0,
            read_timeout: consistency.read_timeout.0,
            ..Defaults::default()
        },
        tenant_cache: TenantCacheConfig {
            capacity: cache.max_size,
            fresh: cache.tenant_config_ttl.0,
            ..TenantCacheConfig::default()
        },
        connections: server.max_connections,
        metrics_path: metrics.enabled.then(|| metrics.path.clone()),
        drain: server.shutdown_timeout.0,
        sampling: telemetry::sampling(&settings.telemetry),
        live,
        reloads,
    })
}

/// What of it may change meanwhile.
pub(super) fn live(settings: &Settings) -> Live {
    let Settings { consistency, security, hash_ring, .. } = settings;
    Live {
        timeouts: Timeouts { read: consistency.read_timeout.0, write: consistency.write_timeout.0 },
        fallbacks: Fallbacks {
            default_level: consistency.default_level.into(),
            read_repair: if consistency.repair_async { ReadRepair::Async } else { ReadRepair::Blocking },
            virtual_nodes: hash_ring.virtual_nodes,
        },
        rate_limits: security.rate_limits.clone(),
    }
}

fn told<T>(result: Result<T, Wrong>) -> anyhow::Result<T> {
    result.map_err(|(key, what)| anyhow::anyhow!("{key}: {what}"))
}

/// How the metadata database is reached, if there is one.
pub(super) fn postgres(database: &Database) -> anyhow::Result<Option<PostgresConfig>> {
    let Some(address) = told(database.address())? else { return Ok(None) };
    let mut config = PostgresConfig::new(address.reveal());
    config.connections = database.max_connections;
    if let Some(connect) = database.connect_timeout {
        config.connect = connect.0;
    }
    if let Some(operation) = database.operation_timeout {
        config.operation = operation.0;
    }
    Ok(Some(config))
}

/// How the idempotency store is reached, if it is shared.
pub(super) fn redis(redis: &Redis) -> anyhow::Result<Option<RedisConfig>> {
    let Some(servers) = told(redis.servers())? else { return Ok(None) };
    let plain = |secrets: Vec<Secret>| secrets.iter().map(|secret| secret.reveal().to_owned()).collect();
    let servers = match servers {
        Servers::Single(address) => RedisServers::Single(address.reveal().to_owned()),
        Servers::Cluster(addresses) => RedisServers::Cluster(plain(addresses)),
        Servers::Sentinel { sentinels, master, database, tls } => {
            RedisServers::Sentinel { sentinels: plain(sentinels), master, database, tls }
        }
    };
    let mut config = RedisConfig::new(servers);
    let password = told(redis.told_password())?;
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
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

fn nodes(settings: &Settings) -> anyhow::Result<Vec<StorageNode>> {
    let node = |node: &crate::config::settings::StorageNode| {
        Ok(StorageNode {
            id: NodeId::new(node.id.as_str())?,
            host: plain_host(&node.host).to_owned(),
            port: node.port,
            virtual_nodes: node.virtual_nodes.unwrap_or(settings.hash_ring.virtual_nodes),
            status: NodeStatus::Active,
        })
    };
    settings.storage_nodes.iter().map(node).collect()
}
