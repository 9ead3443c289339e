//! Support for the tests of this module.

use std::sync::Arc;

use witan_kernel::port::Clock;
use witan_memory::MemoryMetadata;

/// A clock that does not advance.
#[derive(Clone)]
struct Still;

impl Clock for Still {
    fn wall_micros(&self) -> u64 {
        0
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

/// A metadata store.
pub(super) fn memory() -> Arc<MemoryMetadata> {
    Arc::new(MemoryMetadata::new(Still))
}
