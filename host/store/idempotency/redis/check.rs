//! Whether the servers' settings are safe: acknowledged records must not be evicted, nor lost in a crash.

use std::fmt;

use redis::Value;

use super::link::Connection;

/// The oldest supported version: since 7, the time is constant while a script runs.
const FIRST_VERSION: u64 = 7;

/// What one server reports about itself. What it does not report (some hosted ones do not) is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisFacts {
    /// `Redis` or `Valkey`, with the version: `Redis 7.0.15`.
    pub product: String,
    /// The major version.
    pub version: Option<u64>,
    /// Its `maxmemory-policy`: what happens to records when memory is full.
    pub eviction: Option<String>,
    /// Whether changes are logged to disk.
    pub append_only: Option<bool>,
    /// When the log is synced: `always`, `everysec` or `no`.
    pub syncs: Option<String>,
    /// Memory that counts towards its limit, in bytes.
    pub used_bytes: Option<u64>,
    /// Its `maxmemory`, in bytes; 0: no limit.
    pub limit_bytes: Option<u64>,
    /// The commands that its access rules forbid to this user, so that what they report is unknown.
    pub forbidden: Vec<&'static str>,
    /// Its role: `master`, which accepts changes, or `slave`.
    pub role: Option<String>,
}

/// Something about a server that an operator should change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisFinding {
    /// Older than 7.
    TooOld {
        /// Name and version.
        product: String,
    },
    /// Under memory pressure, records are evicted before they expire.
    Evicts {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// A restart loses every record.
    NotLogged,
    /// A crash loses records that were acknowledged just before.
    SyncsLate {
        /// Its `appendfsync`.
        syncs: String,
    },
    /// It refuses changes.
    NotMaster,
    /// It uses more of its memory than is wise.
    Filling {
        /// Percent of its limit.
        percent: u64,
        /// Its limit, in MiB.
        limit_mib: u64,
    },
    /// It has no memory left, or hardly any.
    Full {
        /// Its limit, in MiB.
        limit_mib: u64,
    },
    /// Its access rules do not let this user see what it is.
    Unseen {
        /// The commands that they forbid.
        commands: String,
    },
}

/// Share of the memory limit from which an operator should act: at a steady rate of requests, memory grows for a day (the longest life of
/// a record) and then stays as it is, so that a fifth is left for a busier day.
pub const FILLING: f64 = 0.8;
/// Share from which a server counts as full: at the limit, what is used varies a little around it.
const FULL: f64 = 0.98;

impl fmt::Display for RedisFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooOld { product } => write!(f, "{product} is too old: use Redis 7 or later, or Valkey"),
            Self::Evicts { policy } => write!(
                f,
                "maxmemory-policy is {policy}, so that idempotency records may be evicted before they expire: \
                 set it to noeviction"
            ),
            Self::NotLogged => {
                f.write_str("appendonly is off, so that a restart loses every idempotency record: set it to yes")
            }
            Self::SyncsLate { syncs } => write!(
                f,
                "appendfsync is {syncs}, so that a crash loses the newest idempotency records: set it to always"
            ),
            Self::Filling { percent, limit_mib } => write!(
                f,
                "{percent}% of its maxmemory ({limit_mib} MiB) is used; at 100% requests with idempotency keys are refused: raise \
                 maxmemory, or shorten the tenants' idempotency retention (docs/capacity.md)"
            ),
            Self::Full { limit_mib } => write!(
                f,
                "it is full: its maxmemory ({limit_mib} MiB) is used up, and requests with idempotency keys are refused: raise \
                 maxmemory, or shorten the tenants' idempotency retention (docs/capacity.md)"
            ),
            Self::Unseen { commands } => write!(
                f,
                "its access rules forbid {commands} to this user, so that its version, eviction, durability and memory could not all be \
                 checked: allow them (+info +config|get), or check them yourself (docs/deployment.md)"
            ),
            Self::NotMaster => f.write_str("it is a replica and accepts no changes: use the master's address"),
        }
    }
}

impl RedisFacts {
    /// What to change.
    pub fn findings(&self) -> Vec<RedisFinding> {
        let mut findings = Vec::new();
        let limit_mib = self.limit_bytes.unwrap_or_default() >> 20;
        match self.used_share() {
            Some(share) if share >= FULL => findings.push(RedisFinding::Full { limit_mib }),
            Some(share) if share >= FILLING => {
                findings.push(RedisFinding::Filling { percent: (share * 100.0) as u64, limit_mib });
            }
            _ => {}
        }
        if !self.forbidden.is_empty() {
            findings.push(RedisFinding::Unseen { commands: self.forbidden.join(" and ") });
        }
        if self.version.is_some_and(|version| version < FIRST_VERSION) {
            findings.push(RedisFinding::TooOld { product: self.product.clone() });
        }
        if let Some(policy) = self.eviction.as_ref().filter(|policy| *policy != "noeviction") {
            findings.push(RedisFinding::Evicts { policy: policy.clone() });
        }
        if self.append_only == Some(false) {
            findings.push(RedisFinding::NotLogged);
        } else if let Some(syncs) = self.syncs.as_ref().filter(|syncs| *syncs != "always") {
            findings.push(RedisFinding::SyncsLate { syncs: syncs.clone() });
        }
        if self.role.as_ref().is_some_and(|role| role != "master") {
            findings.push(RedisFinding::NotMaster);
        }
        findings
    }

    /// How much of its memory limit it uses; `None` without a limit, or if it does not report that.
    pub fn used_share(&self) -> Option<f64> {
        let limit = self.limit_bytes.filter(|limit| *limit > 0)?;
        Some(self.used_bytes? as f64 / limit as f64)
    }

    /// Reads the reply to `INFO`.
    fn read(info: &str) -> Self {
        let field = |name: &str| {
            let lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            lines.into_iter().find(|(field, _)| *field == name).map(|(_, value)| value.to_owned())
        };
        let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
        // Buffers of the log and of replicas do not count towards the limit.
        let uncounted = number("mem_not_counted_for_evict").unwrap_or_default();
        // Valkey reports the version of Redis that it is compatible with, 7.2, as `redis_version`.
        let (name, version) = match (field("valkey_version"), field("redis_version")) {
            (Some(version), _) => ("Valkey", version),
            (None, version) => ("Redis", version.unwrap_or_default()),
        };
        Self {
            product: format!("{name} {version}"),
            version: version.split('.').next().and_then(|first| first.parse().ok()),
            eviction: field("maxmemory_policy"),
            append_only: field("aof_enabled").map(|enabled| enabled == "1"),
            syncs: None,
            used_bytes: number("used_memory").map(|used| used.saturating_sub(uncounted)),
            limit_bytes: number("maxmemory"),
            forbidden: Vec::new(),
            role: field("role"),
        }
    }
}

/// Queries every server that stores records.
pub(super) async fn facts(connection: &mut Connection) -> Result<Vec<RedisFacts>, redis::RedisError> {
    let mut facts = match connection.call_all(&redis::cmd("INFO")).await {
        Ok(infos) => infos.iter().map(|info| RedisFacts::read(&text(info))).collect(),
        // Records need none of these commands: a server with strict access rules serves like any other.
        Err(error) if is_forbidden(&error) => {
            vec![RedisFacts { product: "Redis".to_owned(), forbidden: vec!["INFO"], ..RedisFacts::default() }]
        }
        Err(error) => return Err(error),
    };
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("appendfsync");
    match connection.call_all(&ask).await {
        Ok(replies) => {
            for (facts, reply) in facts.iter_mut().zip(&replies) {
                facts.syncs = setting(reply);
            }
        }
        Err(error) if is_forbidden(&error) => facts.iter_mut().for_each(|facts| facts.forbidden.push("CONFIG GET")),
        // Some hosted servers do not have it.
        Err(_) => {}
    }
    Ok(facts)
}

/// Whether an access rule of the server forbids a command to this user.
fn is_forbidden(error: &redis::RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// The value in a reply to `CONFIG GET` of one name: a list of name and value.
fn setting(reply: &Value) -> Option<String> {
    match reply {
        Value::Array(parts) => parts.get(1).map(text),
        Value::Map(pairs) => pairs.first().map(|(_, value)| text(value)),
        _ => None,
    }
}

fn text(reply: &Value) -> String {
    match reply {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{RedisFacts, RedisFinding};

    #[test]
    fn a_safe_server_has_no_findings() {
        let info = "# Server\r\nredis_version:7.0.15\r\n# Memory\r\nmaxmemory_policy:noeviction\r\n\
                    # Persistence\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\n";
        let facts = RedisFacts { syncs: Some("always".into()), ..RedisFacts::read(info) };
        assert_eq!((facts.product.as_str(), facts.version), ("Redis 7.0.15", Some(7)));
        assert_eq!(facts.findings(), []);
    }

    #[test]
    fn valkey_is_known_by_its_own_version() {
        let info = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.1\r\n";
        let facts = RedisFacts::read(info);
        assert_eq!((facts.product.as_str(), facts.version), ("Valkey 9.0.1", Some(9)));
    }

    #[test]
    fn memory_counts_as_the_server_counts_it() {
        let facts = |used: u64| {
            RedisFacts::read(&format!("used_memory:{used}\r\nmem_not_counted_for_evict:50\r\nmaxmemory:1048576\r\n"))
        };
        assert_eq!(facts(524_338).used_share(), Some(0.5));
        assert_eq!(facts(800_000).findings(), []);
        assert_eq!(facts(900_000).findings(), [RedisFinding::Filling { percent: 85, limit_mib: 1 }]);
        assert_eq!(facts(1_040_000).findings(), [RedisFinding::Full { limit_mib: 1 }]);
        assert_eq!(RedisFacts::read("used_memory:5\r\nmaxmemory:0\r\n").used_share(), None);
    }

    #[test]
    fn each_weakness_is_found() {
        let info = "redis_version:6.2.1\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nrole:slave\r\n";
        let facts = RedisFacts::read(info);
        let found = facts.findings();
        let evicts = RedisFinding::Evicts { policy: "allkeys-lru".into() };
        let too_old = RedisFinding::TooOld { product: "Redis 6.2.1".into() };
        assert_eq!(found, [too_old, evicts, RedisFinding::NotLogged, RedisFinding::NotMaster]);
        let late = RedisFacts { append_only: Some(true), syncs: Some("everysec".into()), ..RedisFacts::default() };
        assert_eq!(late.findings(), [RedisFinding::SyncsLate { syncs: "everysec".into() }]);
        assert_eq!(RedisFacts::default().findings(), [], "what is not reported is no finding");
    }
}
