//! Real servers for tests: PostgreSQL and Redis as their packages install them, each in its own folder and on its own port,
//! so that any number can run at once, from any number of test processes.
//!
//! Reading order: [`Postgres`], [`PgBouncer`] in front of it, [`Redis`], then their support: `server` (one port, start and restart),
//! `process` (a server's processes, all of them), `reaper` (nothing outlives a test, however it ends), `port`, `program`
//! (where the servers are found, and as which user they run).
//!
//! In addition: [`Authority`], for tests of TLS, and [`Workplace`], for tests that start processes.
//!
//! Every wait is for an event, and a timeout panics with the server's log. This crate is for tests, so failures are panics, not errors.

#[cfg(feature = "authority")]
mod authority;
mod pgbouncer;
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
pub use pgbouncer::PgBouncer;
pub use port::Port;
pub use postgres::Postgres;
pub use redis::{Redis, RedisCluster, RedisSentinel};
pub use workplace::Workplace;

/// Longest wait for an expected event, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Interval of polling for states that nothing announces.
const LOOK: Duration = Duration::from_millis(5);

/// Polls until there is a result, for at most [`PATIENCE`].
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
