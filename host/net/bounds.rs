//! The bounds of a listener.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// How long a client may take for its handshake and first bytes, counted from when it is accepted.
const GREETING: Duration = Duration::from_secs(10);

/// Bounds of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Most connections at a time.
    pub connections: usize,
    /// Most of them from one address, or from one network of 64 bits in IPv6; 0: any number.
    pub of_address: usize,
    /// This many of them only for addresses that have fewer than three; at most half.
    pub reserved: usize,
    /// Addresses that may have any number of connections. Loopback addresses always may.
    pub trusted: Vec<IpNet>,
    /// How long a client may take for its handshake and first bytes; over HTTP/1, for the headers of its first request.
    pub greeting: Duration,
    /// A connection that has been without a call for so long is closed.
    pub idle: Duration,
    /// Most streams of one connection that need no credential.
    pub watches: usize,
}

/// The default of [`Bounds::connections`]: far more than the clients of a busy cluster open.
pub const CONNECTIONS: usize = 10_000;

/// The default of [`Bounds::idle`]: clients that call again every few minutes keep their connection.
pub const IDLE: Duration = Duration::from_secs(10 * 60);
/// The default of [`Bounds::watches`]: a client needs one for each service that it watches.
pub const WATCHES: usize = 16;

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            of_address: CONNECTIONS / 2,
            reserved: 0,
            trusted: Vec::new(),
            greeting: GREETING,
            idle: IDLE,
            watches: WATCHES,
        }
    }
}

impl Bounds {
    /// `wanted` connections, or fewer if the process may not open that many files beside its own.
    pub fn of(wanted: usize) -> Self {
        let connections = match open_files() {
            Some(most) if most < wanted.saturating_add(OWN_FILES) => {
                let connections = most.saturating_sub(OWN_FILES).max(most / 2).max(1);
                tracing::warn!(
                    wanted,
                    connections,
                    most_files = most,
                    "the limit on open files is too low for the configured number of connections; raise `ulimit -n` or LimitNOFILE"
                );
                connections
            }
            _ => wanted.max(1),
        };
        Self { connections, of_address: connections.div_ceil(2), ..Self::default() }
    }

    /// Whether an address may have any number of connections.
    pub(crate) fn exempts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.trusted.iter().any(|range| range.contains(&address))
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.min(self.connections / 2)
    }
}

/// Files that a process opens besides client connections: stores, connections to nodes and databases.
const OWN_FILES: usize = 512;

/// How many files this process may have open, where the system reports it.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
