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

/// What writes idempotency records and has a smaller form for them, which the version before neither finds nor reads. Records of both forms
/// are found, whichever is written.
pub trait SmallRecords: Send + Sync {
    /// True once a key has been claimed here: before, it does not matter which form is written.
    fn claims(&self) -> bool;

    /// Whether a first claim is written in the smaller form from now on.
    fn write_small(&self, small: bool);
}
