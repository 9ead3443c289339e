//! Database operations: each runs in a separate task, and their number is bounded.
//!
//! A future that is dropped while it talks to a database leaves a half-done exchange behind, and with shared connections the next
//! caller runs inside it: its acknowledged change is lost with the first one's rollback. So no caller's future talks to the database:
//! it waits for a task that does, and that is never dropped.

use std::sync::Arc;

use tokio::sync::Semaphore;
use witan_kernel::port::{Answer, StoreError};

/// Most operations in flight, those waiting for a connection included. Behind a cache there are a handful; this many mean that the
/// database has stopped answering, and more of them would only wait too.
pub(super) const MOST: usize = 1024;

#[derive(Clone)]
pub(super) struct Operations {
    places: Arc<Semaphore>,
}

impl Operations {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)) }
    }

    /// Carries out `work` to its end, even if the answer's future is dropped after it was first polled.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Answer<T> {
        let places = self.places.clone();
        Box::pin(async move {
            let place = places
                .try_acquire_owned()
                .map_err(|_| StoreError::Unavailable("too many metadata operations are in flight".into()))?;
            let task = tokio::spawn(async move {
                let _place = place;
                work.await
            });
            task.await
                .unwrap_or_else(|error| Err(StoreError::Unavailable(format!("a metadata operation ended: {error}"))))
        })
    }

    /// Ready once nothing is in flight.
    #[cfg(test)]
    pub(super) async fn ended(&self) {
        let every_place = u32::try_from(MOST).expect("few");
        drop(self.places.acquire_many(every_place).await.expect("never closed"));
    }
}
