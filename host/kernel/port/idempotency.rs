//! Where idempotency records are kept.

use std::sync::Arc;

use super::StoreError;
use crate::idempotency::{Name, Step, Stepped};

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Synced to disk before it is acknowledged: survives a power failure.
    #[default]
    Sync,
    /// Handed to the operating system before it is acknowledged: survives a crash of the process, but not a power failure.
    Os,
}

/// Where idempotency records are kept. Every step is atomic, and durable when its future is ready; time is the store's. What a
/// step does is decided by [`crate::idempotency::apply`]; a store only makes it atomic. A future that is dropped leaves its step
/// done or not done, never half done.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Carries out one step on the record of `name`.
    fn step(&self, name: Name, step: Step) -> impl Future<Output = Result<Stepped, StoreError>> + Send;
}

impl<T: IdempotencyStore> IdempotencyStore for Arc<T> {
    fn step(&self, name: Name, step: Step) -> impl Future<Output = Result<Stepped, StoreError>> + Send {
        (**self).step(name, step)
    }
}
