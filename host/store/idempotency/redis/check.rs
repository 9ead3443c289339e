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
}

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
            Self::NotMaster => f.write_str("it is a replica and accepts no changes: use the master's address"),
        }
    }
}

impl RedisFacts {
    /// What to change.
    pub fn findings(&self) -> Vec<RedisFinding> {
        let mut findings = Vec::new();
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

    /// Reads the reply to `INFO`.
    fn read(info: &str) -> Self {
        let field = |name: &str| {
            let lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            lines.into_iter().find(|(field, _)| *field == name).map(|(_, value)| value.to_owned())
        };
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
            role: field("role"),
        }
    }
}

/// Queries every server that stores records.
pub(super) async fn facts(connection: &mut Connection) -> Result<Vec<RedisFacts>, redis::RedisError> {
    let infos = connection.call_all(&redis::cmd("INFO")).await?;
    let mut facts: Vec<RedisFacts> = infos.iter().map(|info| RedisFacts::read(&text(info))).collect();
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("appendfsync");
    // Some hosted servers forbid it.
    if let Ok(replies) = connection.call_all(&ask).await {
        for (facts, reply) in facts.iter_mut().zip(&replies) {
            facts.syncs = setting(reply);
        }
    }
    Ok(facts)
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
