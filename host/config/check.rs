//! Checks between values, and of single values beyond their type.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tracing_subscriber::EnvFilter;
use witan_kernel::limit;
use witan_kernel::name::{NodeId, Zone};

use super::keys::{self, KEYS, Kind};
use super::layers::{Layers, Source};
use super::problem::{KeyError, Problem};
use super::read_secret;
use super::settings::Settings;
use crate::access::config::may_listen;
use witan_kernel::limit::{LEAST_GRACE, LONGEST_DEADLINE};

/// The rates of healing: at the least, a million small records take an hour, at the most, a fast disk is all that is left.
const HEALING_RATE: RangeInclusive<u64> = 64 << 10..=1 << 30;

/// The rates of copies: at the least, a gigabyte takes half a day, at the most, a fast network is all that is left.
const COPY_RATE: RangeInclusive<u64> = 64 << 10..=16 << 30;
/// Range of the lease of whoever leads placement changes: a third of it must suffice for a renewal, and a change that waits longer for
/// another leader looks stuck.
const LEADER_LEASE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);

/// The findings.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<Problem>,
}

struct Check<'a> {
    settings: &'a Settings,
    layers: &'a Layers,
    found: Checked,
}

/// Runs every check that needs no server.
pub(super) fn check(settings: &Settings, layers: &Layers, file: Option<&Path>) -> Checked {
    let mut check = Check { settings, layers, found: Checked::default() };
    check.listeners();
    check.deadlines();
    check.healing();
    check.placement();
    check.logging();
    check.stores();
    check.nodes();
    check.telemetry();
    check.files();
    check.idle();
    if let Some(file) = file {
        check.readers(file);
    }
    check.found
}

impl Check<'_> {
    fn wrong(&mut self, key: &str, what: impl Into<String>) {
        self.found.problems.push(Problem::new(key, self.layers.source(key), what));
    }

    fn note(&mut self, key: &str, what: impl Into<String>) {
        self.found.notes.push(Problem::new(key, self.layers.source(key), what));
    }

    fn usable<T>(&mut self, result: Result<T, KeyError>) {
        if let Err(KeyError { key, what }) = result {
            self.wrong(key, what);
        }
    }

    fn listeners(&mut self) {
        let Settings { server, metrics, security, .. } = self.settings;
        if let Err(error) = NodeId::new(server.node_id.as_str()) {
            self.wrong("server.node_id", error.to_string());
        }
        if let Some(Err(error)) = server.zone.as_deref().map(Zone::new) {
            self.wrong("server.zone", error.to_string());
        }
        match address(&server.host, server.port) {
            Err(error) => self.wrong("server.host", error.to_string()),
            Ok(listen) => {
                if let Err(error) = may_listen(security, listen) {
                    self.wrong("server.host", error.to_string());
                }
            }
        }
        match address(&metrics.host, metrics.port) {
            Err(error) => self.wrong("metrics.host", error.to_string()),
            Ok(listen) => {
                if let Err(error) = may_listen(security, listen) {
                    self.wrong("metrics.host", error.to_string());
                }
            }
        }
        if server.port == metrics.port && server.port != 0 && server.host == metrics.host {
            self.wrong("metrics.port", format!("{} is also server.port; choose another one", metrics.port));
        }
        let path = metrics.path.as_str();
        let known = ["/", "/livez", "/readyz"];
        if !path.starts_with('/') || path.contains(['{', '}', '*', ' ', '?', '#']) || known.contains(&path) {
            self.wrong("metrics.path", format!("{path:?} is not a path for metrics; use one such as /metrics"));
        }
    }

    fn deadlines(&mut self) {
        let is_too_long = |time: Duration| time > LONGEST_DEADLINE;
        let consistency = &self.settings.consistency;
        let what = format!("is longer than the longest deadline, which is {LONGEST_DEADLINE:?}");
        if is_too_long(consistency.write_timeout.0) {
            self.wrong("consistency.write_timeout", what.clone());
        }
        if is_too_long(consistency.read_timeout.0) {
            self.wrong("consistency.read_timeout", what);
        }
    }

    fn healing(&mut self) {
        let healing = self.settings.healing;
        if !HEALING_RATE.contains(&healing.rate) {
            self.wrong("healing.rate", format!("{} bytes per second is out of range; use 64KiB to 1GiB", healing.rate));
        }
        if healing.compare_every.0 < Duration::from_secs(60) {
            self.wrong("healing.compare_every", "is too short: records would be compared without end; use at least 1m");
        }
        let grace = healing.tombstone_grace.0;
        if grace < LEAST_GRACE {
            let what = format!(
                "{grace:?} is too short: within a day a write may be repeated under its idempotency key, and would bring back what was \
                 deleted; use at least 25h"
            );
            self.wrong("healing.tombstone_grace", what);
        }
        if (Duration::from_nanos(1)..Duration::from_secs(60)).contains(&healing.scrub_every.0) {
            self.wrong(
                "healing.scrub_every",
                "is too short: records would be read without end; use at least 1m, or 0 for never",
            );
        }
    }

    fn placement(&mut self) {
        let rate = self.settings.placement.copy_rate;
        if rate != 0 && !COPY_RATE.contains(&rate) {
            let what = format!("{rate} bytes per second is out of range; use 64KiB to 16GiB, or 0 for no bound");
            self.wrong("placement.copy_rate", what);
        }
        let lease = self.settings.placement.leader_lease.0;
        if !LEADER_LEASE.contains(&lease) {
            let what = format!("{lease:?} is out of range; use 2s to 60s");
            self.wrong("placement.leader_lease", what);
        }
    }

    fn logging(&mut self) {
        let level = &self.settings.logging.level;
        if let Err(error) = EnvFilter::try_new(level) {
            self.wrong(
                "logging.level",
                format!("{level:?} is not a filter of log lines ({error}); use info, or module=debug,info"),
            );
        }
    }

    fn stores(&mut self) {
        let Settings { database, redis, .. } = self.settings;
        self.usable(database.address());
        self.usable(database.direct_address());
        self.usable(redis.servers());
        self.usable(redis.separate_password());
        if !database.is_proved() {
            let what = "is not verify-full, so that another server could pass for the database: use verify-full, with \
                        database.ca_file if the authority is your own";
            self.note("database.ssl_mode", what);
        }
        if redis.is_open() {
            self.note(
                "redis.tls",
                "is false, so that the password and idempotency records travel in clear text to another machine",
            );
        }
        let prefix = redis.key_prefix.as_str();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=64).contains(&prefix.len()) || !prefix.bytes().all(allowed) {
            self.wrong("redis.key_prefix", "must be 1 to 64 letters, digits and `_.-`");
        }
    }

    fn nodes(&mut self) {
        let mut seen = HashSet::new();
        for (index, node) in self.settings.storage_nodes.iter().enumerate() {
            let at = format!("storage_nodes[{index}]");
            if let Err(error) = NodeId::new(node.id.as_str()) {
                self.wrong(&format!("{at}.id"), error.to_string());
            }
            if !seen.insert(&node.id) {
                self.wrong(&format!("{at}.id"), format!("{:?} appears twice", node.id));
            }
            if node.host.is_empty() || node.port == 0 {
                self.wrong(&at, "needs a host and a port above 0");
            }
            let most = limit::MAX_VIRTUAL_NODES;
            if node.virtual_nodes.is_some_and(|given| !(1..=most).contains(&given)) {
                self.wrong(&format!("{at}.virtual_nodes"), format!("must be from 1 to {most}"));
            }
            if let Some(Err(error)) = node.zone.as_deref().map(Zone::new) {
                self.wrong(&format!("{at}.zone"), error.to_string());
            }
        }
    }

    fn telemetry(&mut self) {
        let endpoint = self.settings.telemetry.otlp_endpoint.as_deref();
        if endpoint.is_some_and(|endpoint| !endpoint.starts_with("http://")) {
            let what = "must start with http://, as in http://127.0.0.1:4317: spans are sent to a collector on this machine, \
                        which can forward them over TLS";
            self.wrong("telemetry.otlp_endpoint", what);
        }
    }

    /// Checks that named files exist and are readable for this process.
    fn files(&mut self) {
        let named = KEYS.iter().filter(|key| key.kind == Kind::Path && key.path.ends_with("_file"));
        for key in named {
            let Some(Value::String(file)) = self.layers.get(key.path).map(|given| &given.value) else { continue };
            // The files of the stores have been read above.
            let read_before = ["url_file", "password_file"].iter().any(|name| key.path.ends_with(name));
            if !read_before && let Err(what) = read_secret(Path::new(file)) {
                self.wrong(key.path, what);
            }
        }
    }

    /// Notes keys that are set but have no effect.
    fn idle(&mut self) {
        let idle: Vec<(&str, &str)> = self
            .layers
            .iter()
            .filter(|(_, given)| given.source != Source::Default)
            .filter_map(|(path, _)| Some((path, keys::find(path)?.idle?)))
            .collect();
        for (path, why) in idle {
            self.note(path, format!("has no effect: {why}"));
        }
    }

    /// Notes a configuration file that contains secrets and can be read by others.
    #[cfg(unix)]
    fn readers(&mut self, file: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let secret = self.layers.iter().find(|(path, given)| {
            let secret = keys::find(path).is_some_and(|key| key.kind == Kind::Secret);
            secret && given.source == Source::File && given.value.as_str().is_some_and(|text| !text.is_empty())
        });
        let Some((path, _)) = secret else { return };
        let path = path.to_owned();
        let open = std::fs::metadata(file).is_ok_and(|about| about.permissions().mode() & 0o004 != 0);
        if open {
            let what = "is in a file that every user of this machine can read: chmod o-r, or use a separate file";
            self.note(&path, what);
        }
    }
}

/// A host on which nothing can listen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP address; use 127.0.0.1 for this machine, or 0.0.0.0 for every address of it")]
pub struct NotAnAddress(String);

/// The socket address of a listener.
///
/// # Errors
/// When `host` is neither an IP address nor localhost.
pub fn address(host: &str, port: u16) -> Result<SocketAddr, NotAnAddress> {
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => plain_host(other).parse().map_err(|_| NotAnAddress(other.to_owned()))?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// A host without the brackets of an IPv6 address.
pub fn plain_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
