//! The port behind which rows are stored: written in atomic batches, durable once synced.
//!
//! Everything here is synchronous: calls come from threads that may block ([`crate::driver::Threads`]) or from the
//! simulation, where nothing blocks. [`fjall`] stores rows in a log-structured merge tree on a real disk; [`simulated`] is a
//! disk in memory that loses unsynced writes in a crash. Both pass the same contract tests.

#[cfg(feature = "fjall")]
pub mod fjall;
pub mod simulated;

#[cfg(test)]
pub(crate) mod contract;

use std::ops::Range;

use bytes::Bytes;
use witan_kernel::condition::Condition;

/// A row's key and new value; `None` removes the row.
pub type Change = (Bytes, Option<Bytes>);

/// Rows, ordered by the bytes of their keys, and a few named values for the node itself (notes).
pub trait Engine: Send + Sync + 'static {
    /// The value of a row. Sees every batch written before, synced or not.
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Writes a batch atomically, after every batch written before. It is durable after the next [`Engine::sync`]. After
    /// [`EngineError::Full`] no part of it was written or will be.
    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError>;

    /// The same, with a note that is set in the same batch: either both are written or neither.
    fn write_noting(&self, batch: Vec<Change>, name: &str, value: Bytes) -> Result<(), EngineError>;

    /// Makes every batch durable whose [`Engine::write`] returned before this call. After an error it is unknown which of them are.
    fn sync(&self) -> Result<(), EngineError>;

    /// Up to `limit` rows of a range with their values, in order.
    fn scan(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// Passes the rows of a range to `each` with their values, in order, until it returns false. May include rows that are written
    /// meanwhile. `each` must not call the engine.
    fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError>;

    /// The space used by the store, and how full its file system is.
    fn usage(&self) -> Result<Usage, EngineError>;

    /// An estimate of the number of rows; cheap to compute.
    fn approximate_keys(&self) -> u64;

    /// The value of a note.
    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError>;

    /// Sets a note; durable when this returns.
    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError>;

    /// How many times the engine has been opened again while it was in use: rows whose sync had failed may be gone since.
    fn reopenings(&self) -> u64 {
        0
    }

    /// Its own view of its condition. An engine that has failed for good, or waits for room on a full disk, says so here: the error of one
    /// call does not always tell these apart. By default it has no view beyond those errors.
    fn condition(&self) -> Condition {
        Condition::Serving
    }
}

/// The disk usage of a store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// The size of the store, in bytes.
    pub bytes: u64,
    /// The used share of the file system, 0 to 100, other files included.
    pub percent: f32,
}

/// Why an engine could not carry out a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The disk is full and nothing was written. Reads still work, and writes will work once there is room again.
    #[error("the disk is full")]
    Full,
    /// The engine failed, or its data is damaged. Whether a write happened is unknown.
    #[error("{0}")]
    Broken(String),
}
