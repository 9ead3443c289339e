//! Where idempotency records are kept.

use std::sync::Arc;

use super::StoreError;
use crate::idempotency::{Name, Step, Stepped};

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
