//! A clock of any kind behind a pointer, so that not everything here is generic over it.

use std::sync::Arc;

use witan_kernel::port::Clock;

#[derive(Clone)]
pub(crate) struct AnyClock(Arc<dyn Ticks>);

trait Ticks: Send + Sync {
    fn wall_micros(&self) -> u64;
    fn monotonic_micros(&self) -> u64;
}

impl<C: Clock> Ticks for C {
    fn wall_micros(&self) -> u64 {
        Clock::wall_micros(self)
    }

    fn monotonic_micros(&self) -> u64 {
        Clock::monotonic_micros(self)
    }
}

impl AnyClock {
    pub(crate) fn new(clock: impl Clock) -> Self {
        Self(Arc::new(clock))
    }

    pub(crate) fn wall_micros(&self) -> u64 {
        self.0.wall_micros()
    }

    pub(crate) fn monotonic_micros(&self) -> u64 {
        self.0.monotonic_micros()
    }
}
