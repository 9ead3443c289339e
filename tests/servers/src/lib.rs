//! Real servers for tests: PostgreSQL and Redis as their packages install them, each in a folder and on a port of its own,
//! so that any number run at once, from any number of test processes.
//!
//! Reading order: [`Postgres`], [`Redis`], then what they stand on: `server` (one port, started and started again),
//! `process` (a server's processes, all of them), `reaper` (nothing outlives a test, however it ends), `port`, `program`
//! (where the servers are found, and as whom they run).
//!
//! Beside them: [`Authority`], for tests of TLS, and [`Workplace`], for those who start processes of their own.
//!
//! Every wait is for an event and ends with a panic that holds the server's log. This crate is for tests: what cannot be
//! done is a panic, not an error.

#[cfg(feature = "authority")]
mod authority;
mod port;
mod postgres;
mod process;
mod program;
mod reaper;
mod redis;
mod server;
mod workplace;

use std::time::{Duration, Instant};

#[cfg(feature = "authority")]
pub use authority::{Authority, Pair};
pub use port::Port;
pub use postgres::Postgres;
pub use redis::{Redis, RedisCluster, RedisSentinel};
pub use workplace::Workplace;

/// Longest wait for anything that must happen, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that nothing announces.
const LOOK: Duration = Duration::from_millis(5);

/// Looks until there is something to see, for [`PATIENCE`] at most.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if seen.is_some() || Instant::now() > until {
            return seen;
        }
        std::thread::sleep(LOOK);
    }
}
