//! PostgreSQL and Redis: reachable, of a supported version, and configured so that acknowledged changes survive.

use std::path::Path;

use witan_store::idempotency::{RedisFinding, RedisIdempotency};
use witan_store::metadata::{PostgresFacts, examine as look};

use super::Findings;
use crate::cli::client::chain;
use crate::config::settings::Settings;
use crate::process::config;
use crate::process::room::{DISK_FILLING, used_share};

/// Oldest PostgreSQL that is tested.
const OLDEST_POSTGRES: u32 = 130_000;
/// Connections that PostgreSQL reserves for superusers.
const RESERVED: u32 = 3;
/// Clock difference at which a coordinator is not ready, and the one at which an operator should check.
const CLOCKS_MS: (u64, u64) = (60_000, 5_000);

/// Share of the file system of the embedded stores at which it counts as full.
const FULL: f64 = 0.98;

/// Checks both. Returns the recorded storage nodes.
pub(super) async fn examine(settings: &Settings, findings: &mut Findings) -> Vec<(String, String, u16)> {
    redis(settings, findings).await;
    let about = "postgresql";
    match config::postgres(&settings.database) {
        Ok(None) => findings.note(about, "none is configured: metadata are embedded, for one coordinator"),
        Err(error) => findings.error(about, chain(&error)),
        Ok(Some(config)) => match look(&config).await {
            Err(error) => findings.error(
                about,
                format!("{error}; check that it runs, database.host, the network, and the user and password"),
            ),
            Ok(facts) => {
                postgres(&facts, config.connections, findings);
                return facts.nodes;
            }
        },
    }
    Vec::new()
}

fn postgres(facts: &PostgresFacts, connections: u32, findings: &mut Findings) {
    let about = "postgresql";
    let encrypted = if facts.encrypted { "encrypted" } else { "not encrypted" };
    findings.ok(about, format!("{} answers; the connection is {encrypted}", facts.server_version));
    if facts.server_version_number < OLDEST_POSTGRES {
        findings.error(about, "is too old: use 13 or newer");
    }
    if facts.encoding != "UTF8" {
        findings
            .error(about, format!("the database's encoding is {}: create one with ENCODING 'UTF8'", facts.encoding));
    }
    if facts.in_recovery {
        findings.error(about, "is a standby and refuses changes: point database.host at the primary");
    }
    durability(facts, findings);
    schema(facts, findings);
    pooler(facts, findings);
    let free = facts.max_connections.saturating_sub(RESERVED);
    let ours = connections + 1;
    if free < ours {
        let what = format!(
            "max_connections is {}, but this coordinator alone uses {ours}: raise it, or lower database.max_connections",
            facts.max_connections
        );
        findings.error(about, what);
    } else if free / ours < 3 {
        let what = format!(
            "max_connections is {}, which is enough for {} coordinators with {ours} connections each: raise it, or lower \
             database.max_connections, before you add more",
            facts.max_connections,
            free / ours
        );
        findings.warning(about, what);
    }
    clocks(facts.clock_ahead_ms, findings);
}

fn durability(facts: &PostgresFacts, findings: &mut Findings) {
    let about = "postgresql";
    if facts.synchronous_commit == "off" {
        let what = "synchronous_commit is off, so that a crash loses changes that were acknowledged: ALTER SYSTEM SET \
                    synchronous_commit = on; SELECT pg_reload_conf()";
        findings.error(about, what);
    }
    if !facts.fsync {
        findings.error(about, "fsync is off, so that a power failure can destroy the database: set it to on");
    }
    if !facts.full_page_writes {
        let what = "full_page_writes is off: set it to on, unless the file system is known to write pages whole";
        findings.warning(about, what);
    }
}

fn schema(facts: &PostgresFacts, findings: &mut Findings) {
    let about = "postgresql";
    let known = facts.known_schema;
    match facts.schema {
        None => findings.note(about, "has no schema yet: the first coordinator that starts creates it"),
        Some(newest) if newest < known => findings.note(
            about,
            format!("its schema has version {newest}: the next coordinator of this version that starts upgrades it to {known}"),
        ),
        Some(newest) if newest > known => findings.warning(
            about,
            format!("its schema has version {newest}, newer than this program's {known}: upgrade this program"),
        ),
        Some(newest) => findings.ok(about, format!("its schema is up to date: version {newest}")),
    }
}

fn pooler(facts: &PostgresFacts, findings: &mut Findings) {
    let about = "postgresql";
    if !facts.pooled {
        return;
    }
    let behind = facts.schema.is_none_or(|schema| schema < facts.known_schema);
    match (facts.has_direct, behind) {
        (true, _) => findings.ok(about, "is behind a pooler; migrations and notifications use database.direct_url"),
        (false, true) => findings.error(
            about,
            "is behind a pooler, through which its schema cannot be migrated: set database.direct_url to the server's own address",
        ),
        (false, false) => findings.note(
            about,
            "is behind a pooler: changes by other coordinators are seen within half a second; with database.direct_url, at once",
        ),
    }
}

fn clocks(ahead_ms: i64, findings: &mut Findings) {
    let about = "clocks";
    let apart = ahead_ms.unsigned_abs();
    let what = format!("this machine's clock is {apart} ms off PostgreSQL's");
    let (most, much) = CLOCKS_MS;
    if apart > most {
        findings.error(
            about,
            format!("{what}; a coordinator here would not be ready: set it right (chrony, systemd-timesyncd)"),
        );
    } else if apart > much {
        findings.warning(about, format!("{what}: check its time service (chrony, systemd-timesyncd)"));
    } else {
        findings.ok(about, what);
    }
}

async fn redis(settings: &Settings, findings: &mut Findings) {
    let about = "redis";
    let config = match config::redis(&settings.redis) {
        Ok(Some(config)) => config,
        Ok(None) => {
            findings.note(about, "none is configured: idempotency keys are embedded, for one coordinator");
            return embedded(&settings.server.data_dir, findings);
        }
        Err(error) => return findings.error(about, chain(&error)),
    };
    let shown = config.servers.to_string();
    let store = match RedisIdempotency::new(config) {
        Ok(store) => store,
        Err(error) => return findings.error(about, error.to_string()),
    };
    match store.check().await {
        Err(error) => findings
            .error(about, format!("{shown}: {error}; check that it runs, redis.host, the network, and the password")),
        Ok(servers) => {
            for server in &servers {
                findings.ok(about, format!("{} answers", server.product));
                server.findings().iter().for_each(|finding| weakness(finding, findings));
            }
        }
    }
}

/// Whether the embedded stores have room.
fn embedded(folder: &Path, findings: &mut Findings) {
    let Some(share) = used_share(folder) else { return };
    let what = format!("{:.0}% of the file system of server.data_dir ({}) is used", share * 100.0, folder.display());
    let why = "when it is full, changes of metadata and requests with idempotency keys are refused: make room";
    match () {
        () if share >= FULL => findings.error("disk", format!("{what}; {why}")),
        () if share >= DISK_FILLING => findings.warning("disk", format!("{what}; {why}")),
        () => findings.ok("disk", what),
    }
}

fn weakness(finding: &RedisFinding, findings: &mut Findings) {
    match finding {
        RedisFinding::Unseen { .. } => findings.note("redis", finding.to_string()),
        RedisFinding::SyncsLate { .. } | RedisFinding::Filling { .. } => {
            findings.warning("redis", finding.to_string());
        }
        RedisFinding::TooOld { .. }
        | RedisFinding::Evicts { .. }
        | RedisFinding::NotLogged
        | RedisFinding::Full { .. }
        | RedisFinding::NotMaster => findings.error("redis", finding.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Gravity;

    fn fit() -> PostgresFacts {
        PostgresFacts {
            server_version: "15.1".into(),
            server_version_number: 150_001,
            encoding: "UTF8".into(),
            synchronous_commit: "on".into(),
            fsync: true,
            full_page_writes: true,
            in_recovery: false,
            max_connections: 100,
            encrypted: true,
            clock_ahead_ms: 12,
            schema: Some(4),
            known_schema: 4,
            pooled: false,
            has_direct: false,
            nodes: Vec::new(),
        }
    }

    fn worst(facts: &PostgresFacts) -> Gravity {
        let mut findings = Findings::default();
        postgres(facts, 8, &mut findings);
        findings.0.iter().map(|finding| finding.level).max().unwrap()
    }

    #[test]
    fn each_weakness_of_a_database_is_told_as_grave_as_it_is() {
        assert_eq!(worst(&fit()), Gravity::Ok);
        assert_eq!(worst(&PostgresFacts { schema: None, ..fit() }), Gravity::Note);
        assert_eq!(worst(&PostgresFacts { schema: Some(5), ..fit() }), Gravity::Warning);
        assert_eq!(worst(&PostgresFacts { pooled: true, ..fit() }), Gravity::Note);
        assert_eq!(worst(&PostgresFacts { pooled: true, has_direct: true, ..fit() }), Gravity::Ok);
        assert_eq!(worst(&PostgresFacts { max_connections: 20, ..fit() }), Gravity::Warning);
        assert_eq!(worst(&PostgresFacts { clock_ahead_ms: -6_000, ..fit() }), Gravity::Warning);
        for broken in [
            PostgresFacts { synchronous_commit: "off".into(), ..fit() },
            PostgresFacts { fsync: false, ..fit() },
            PostgresFacts { in_recovery: true, ..fit() },
            PostgresFacts { encoding: "SQL_ASCII".into(), ..fit() },
            PostgresFacts { max_connections: 10, ..fit() },
            PostgresFacts { clock_ahead_ms: i64::MIN, ..fit() },
            PostgresFacts { server_version_number: 120_000, ..fit() },
            PostgresFacts { pooled: true, schema: None, ..fit() },
        ] {
            assert_eq!(worst(&broken), Gravity::Error, "{broken:?}");
        }
    }
}
