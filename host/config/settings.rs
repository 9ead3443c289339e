//! The configuration as types. Meaning, unit and default of each key are in [`super::keys`].

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use witan_kernel::durability::Durability;
use witan_kernel::port::SigningKey;
use witan_kernel::tenant::Level;

use super::value::{Secret, Span, TenantWeights};
use crate::access::config::Security;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// This coordinator.
    pub server: Server,
    /// The metadata store that coordinators share.
    #[serde(default)]
    pub database: Database,
    /// The idempotency store that coordinators share.
    #[serde(default)]
    pub redis: Redis,
    /// Placement of keys.
    pub hash_ring: HashRing,
    /// Defaults of requests and tenants.
    pub consistency: Consistency,
    /// The cache of tenants.
    pub cache: Cache,
    /// What one tenant may have of what all share.
    pub tenants: Tenants,
    /// What the cluster repairs by itself.
    pub healing: Healing,
    /// Changes of the nodes and of replication factors.
    pub placement: Placement,
    /// Metrics over HTTP.
    pub metrics: Metrics,
    /// Logging.
    pub logging: Logging,
    /// Storage nodes recorded at the first start.
    #[serde(default)]
    pub storage_nodes: Vec<StorageNode>,
    /// Plugins.
    #[serde(default)]
    pub plugins: Plugins,
    /// What acknowledged writes of embedded stores survive.
    #[serde(with = "durability")]
    pub durability: Durability,
    /// Traces.
    pub telemetry: Telemetry,
    /// Access control and TLS.
    #[serde(default)]
    pub security: Security,
}

/// The section `server`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub node_id: String,
    #[serde(default)]
    pub zone: Option<String>,
    pub data_dir: PathBuf,
    pub max_connections: usize,
    #[serde(default)]
    pub max_connections_per_address: Option<usize>,
    #[serde(default, with = "ranges")]
    pub trusted_addresses: Vec<IpNet>,
    pub idle_timeout: Span,
    pub max_watch_streams: usize,
    pub read_timeout: Span,
    pub write_timeout: Span,
    pub shutdown_timeout: Span,
}

/// The section `database`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Database {
    pub url: Option<Secret>,
    pub url_file: Option<PathBuf>,
    pub direct_url: Option<Secret>,
    pub direct_url_file: Option<PathBuf>,
    pub host: Option<String>,
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub ssl_mode: Option<SslMode>,
    pub ca_file: Option<PathBuf>,
    pub max_connections: u32,
    pub min_connections: u32,
    pub conn_max_lifetime: Option<Span>,
    pub connect_timeout: Option<Span>,
    pub operation_timeout: Option<Span>,
}

/// TLS mode of the connection to PostgreSQL, named as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// The name in libpq.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The section `redis`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Redis {
    pub url: Option<Secret>,
    pub url_file: Option<PathBuf>,
    pub addresses: Vec<String>,
    pub sentinel_master: Option<String>,
    pub host: Option<String>,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub db: u32,
    pub tls: bool,
    pub ca_file: Option<PathBuf>,
    pub key_prefix: String,
    pub timeout: Option<Span>,
    pub connect_timeout: Option<Span>,
    pub max_retries: u32,
    pub pool_size: u32,
    pub min_idle_conns: u32,
    #[serde(default)]
    pub small_records: Option<bool>,
}

/// The section `hash_ring`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HashRing {
    pub virtual_nodes: u32,
    pub update_interval: Span,
}

/// The section `consistency`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Consistency {
    #[serde(with = "level")]
    pub default_level: Level,
    pub write_timeout: Span,
    pub read_timeout: Span,
    pub repair_async: bool,
    #[serde(default)]
    pub ask_before_repeating: Option<bool>,
    #[serde(default)]
    pub fence_changes: Option<bool>,
}

/// The section `cache`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Cache {
    pub tenant_config_ttl: Span,
    pub max_size: usize,
}

/// The section `healing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Healing {
    pub anti_entropy: bool,
    pub compare_every: Span,
    pub scrub_every: Span,
    pub rate: u64,
    pub admit_after: Span,
    pub begin_after: Span,
    pub tombstone_grace: Span,
    pub collect_tombstones: bool,
}

/// The section `placement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Placement {
    pub copy_rate: u64,
    pub full_disk: u8,
    pub leader_lease: Span,
}

/// The section `tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Tenants {
    pub max_tokens: usize,
    pub max_changes: usize,
    pub max_repairs: usize,
    pub max_scans: usize,
    #[serde(default)]
    pub weights: TenantWeights,
}

impl Default for Tenants {
    fn default() -> Self {
        Self { max_tokens: 200, max_changes: 8, max_repairs: 1, max_scans: 8, weights: TenantWeights::default() }
    }
}

/// The section `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Metrics {
    pub enabled: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub header_timeout: Span,
    pub reserved_connections: usize,
}

/// The section `logging`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Logging {
    pub level: String,
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Console,
    /// One JSON object per line
    Json,
}

/// An entry of `storage_nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct StorageNode {
    pub id: String,
    pub host: String,
    pub port: u16,
    #[serde(default)]
    pub virtual_nodes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// The section `plugins`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Plugins {
    pub folder: Option<PathBuf>,
    pub signatures: SignaturesMode,
    #[serde(with = "signing_keys")]
    pub signing_keys: Vec<SigningKey>,
    pub warm_bytes: u64,
    pub warm_bytes_per_tenant: u64,
}

impl Default for Plugins {
    fn default() -> Self {
        Self {
            folder: None,
            signatures: SignaturesMode::default(),
            signing_keys: Vec::new(),
            warm_bytes: 1 << 30,
            warm_bytes_per_tenant: 256 << 20,
        }
    }
}

/// Whether plugins must be signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SignaturesMode {
    #[default]
    Off,
    Warn,
    Required,
}

/// The section `telemetry`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Telemetry {
    pub otlp_endpoint: Option<String>,
    pub sample_ratio: f64,
    pub service_name: String,
}

/// A consistency level as text.
mod level {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use witan_kernel::tenant::Level;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Level, D::Error> {
        let text = String::deserialize(from)?;
        let level = Level::parse("consistency.default_level", &text).map_err(de::Error::custom)?;
        level.ok_or_else(|| de::Error::custom("is empty: use one, quorum or all"))
    }

    pub(super) fn serialize<S: Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(level.as_str())
    }
}

/// Addresses and ranges of addresses as text.
mod ranges {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let range = |text: &String| {
            let address = text.parse::<IpAddr>().map(IpNet::from);
            address.or_else(|_| text.parse()).map_err(|_| {
                de::Error::custom(format!("{text:?} is neither an address nor a range such as 10.0.0.0/8 or fd00::/8"))
            })
        };
        texts.iter().map(range).collect()
    }

    pub(super) fn serialize<S: Serializer>(ranges: &[IpNet], to: S) -> Result<S::Ok, S::Error> {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().serialize(to)
    }
}

/// Signing keys of the operator as ID=KEY.
mod signing_keys {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
    use witan_kernel::hexadecimal;
    use witan_kernel::port::{SigningKey, rules};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SigningKey>, D::Error> {
        let mut keys: Vec<SigningKey> = Vec::new();
        for text in Vec::<String>::deserialize(from)? {
            let key = parse(&text).map_err(|why| {
                let remedy =
                    "write ID=KEY, with the 64 hexadecimal digits that `witan plugin sign --generate` has shown";
                de::Error::custom(format!("{text:?} {why}: {remedy}"))
            })?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(de::Error::custom(format!("there are two keys of the id {}: use each id once", key.id)));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn parse(text: &str) -> Result<SigningKey, String> {
        let (id, digits) = text.split_once('=').ok_or("has no =")?;
        let public = hexadecimal::decode(digits).and_then(|bytes| bytes.try_into().ok());
        let public = public.ok_or("does not have a key of 64 hexadecimal digits")?;
        let key = SigningKey { owner: None, id: id.to_owned(), public, added_at_ms: 0 };
        rules::signing_key(&key).map_err(|error| error.to_string())?;
        Ok(key)
    }

    pub(super) fn serialize<S: Serializer>(keys: &[SigningKey], to: S) -> Result<S::Ok, S::Error> {
        let shown = |key: &SigningKey| format!("{}={}", key.id, hexadecimal::encode(&key.public));
        keys.iter().map(shown).collect::<Vec<_>>().serialize(to)
    }
}

/// A durability as text.
mod durability {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use witan_kernel::durability::Durability;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Durability, D::Error> {
        let text = String::deserialize(from)?;
        Durability::parse(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not known: use sync or os")))
    }

    pub(super) fn serialize<S: Serializer>(durability: &Durability, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(durability.as_str())
    }
}
