//! Where the records of idempotency keys are kept. What a step does is decided by [`witan_kernel::idempotency::apply`];
//! a store makes it atomic and durable, and brings the time.

use witan_kernel::idempotency::{RESPONSE_BYTES, Step};
use witan_kernel::port::{Clock, StoreError};

use crate::clock::AnyClock;

mod embedded;
mod memory;
mod redis;

#[cfg(test)]
mod contract;

pub use self::redis::{
    RedisConfig, RedisCredentials, RedisFacts, RedisFinding, RedisIdempotency, RedisServers, RedisTls,
};
pub use embedded::EmbeddedIdempotency;
pub use memory::MemoryIdempotency;

/// A store's time: the wall clock's at the start, and from then on as much later as the monotonic clock says, so that no
/// jump of the wall clock stretches a lease or ends one.
struct StoreTime {
    clock: AnyClock,
    wall_at_start: u64,
    monotonic_at_start: u64,
}

impl StoreTime {
    fn starting_now(clock: impl Clock) -> Self {
        let clock = AnyClock::new(clock);
        let (wall_at_start, monotonic_at_start) = (clock.wall_micros(), clock.monotonic_micros());
        Self { clock, wall_at_start, monotonic_at_start }
    }

    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64 {
        let passed = self.clock.monotonic_micros().saturating_sub(self.monotonic_at_start);
        self.wall_at_start.saturating_add(passed) / 1000
    }
}

/// Bytes of a response that a step carries, if a store takes so many.
fn checked_bytes(step: &Step) -> Result<usize, StoreError> {
    match step {
        Step::Done { response, .. } if response.len() > RESPONSE_BYTES => Err(StoreError::Refused(format!(
            "a response to record has {} bytes; at most {RESPONSE_BYTES} are recorded",
            response.len()
        ))),
        Step::Done { response, .. } => Ok(response.len()),
        Step::Reserve { .. } | Step::Stamp { .. } | Step::Release { .. } | Step::Abandon { .. } => Ok(0),
    }
}
