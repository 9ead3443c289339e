//! In-memory implementations of the kernel's ports, for the simulation and for tests: no threads, no disk, the same rules.
//!
//! 1. [`MemoryMetadata`]: the metadata store.
//! 2. [`MemoryIdempotency`]: the idempotency store.
//! 3. [`MemoryPlugins`]: the plugin host's store.
//! 4. `contract`: what every implementation of these ports must do, behind the feature `contract`.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod idempotency;
mod metadata;
mod plugins;
mod slot;

#[cfg(any(test, feature = "contract"))]
pub mod contract;

pub use idempotency::{IdempotencyRecords, MemoryIdempotency};
pub use metadata::MemoryMetadata;
pub use plugins::MemoryPlugins;
