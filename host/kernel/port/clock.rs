//! Time and random bytes.

use std::sync::Arc;
use std::time::Duration;

/// Wall time and monotonic time.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Microseconds since 1970 by this machine's clock. May jump.
    fn wall_micros(&self) -> u64;
    /// Microseconds since some fixed moment. Never goes back.
    fn monotonic_micros(&self) -> u64;
}

/// A source of random bytes.
pub trait Randomness: Send + Sync + 'static {
    /// Sixteen fresh random bytes.
    fn sixteen(&self) -> [u8; 16];
}

/// Time from `now` until a deadline; zero once it has passed. Both are monotonic microseconds.
pub fn until(deadline: u64, now: u64) -> Duration {
    Duration::from_micros(deadline.saturating_sub(now))
}

/// A clock of any type behind a pointer, for types that should not be generic over it.
#[derive(Clone)]
pub struct AnyClock(Arc<dyn Ticks>);

/// [`Clock`] without `Clone`, so that it is object safe.
trait Ticks: Send + Sync {
    fn wall(&self) -> u64;
    fn monotonic(&self) -> u64;
}

impl<C: Clock> Ticks for C {
    fn wall(&self) -> u64 {
        self.wall_micros()
    }

    fn monotonic(&self) -> u64 {
        self.monotonic_micros()
    }
}

impl AnyClock {
    /// Wraps `clock`.
    pub fn new(clock: impl Clock) -> Self {
        Self(Arc::new(clock))
    }

    /// Milliseconds since 1970 by this machine's clock.
    pub fn wall_ms(&self) -> u64 {
        self.0.wall() / 1000
    }
}

impl Clock for AnyClock {
    fn wall_micros(&self) -> u64 {
        self.0.wall()
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.monotonic()
    }
}

impl std::fmt::Debug for AnyClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnyClock")
    }
}

/// The time of a store: wall time read once at its start, advanced by the monotonic clock since, so that a jump of the wall
/// clock neither extends a lease nor ends one.
#[derive(Debug)]
pub struct StoreTime {
    clock: AnyClock,
    wall_at_start: u64,
    monotonic_at_start: u64,
}

impl StoreTime {
    /// A store's time that starts now, by `clock`.
    pub fn starting_now(clock: impl Clock) -> Self {
        let clock = AnyClock::new(clock);
        let (wall_at_start, monotonic_at_start) = (clock.wall_micros(), clock.monotonic_micros());
        Self { clock, wall_at_start, monotonic_at_start }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        let passed = self.clock.monotonic_micros().saturating_sub(self.monotonic_at_start);
        self.wall_at_start.saturating_add(passed) / 1000
    }
}
