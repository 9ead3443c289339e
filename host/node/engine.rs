//! The port behind which rows lie on a disk: written in atomic batches, durable once synced.
//!
//! Everything here is synchronous: calls come from threads that may block ([`crate::driver::Threads`]) or from the
//! simulation, where nothing blocks. [`fjall`] keeps rows in a log-structured merge tree on a real disk; [`simulated`] is a
//! disk in memory that loses what was not synced. Both pass the same contract tests.

#[cfg(feature = "fjall")]
pub mod fjall;
pub mod simulated;

#[cfg(test)]
pub(crate) mod contract;

use std::ops::Range;

use bytes::Bytes;

/// One row's new content; `None` removes the row.
pub type Change = (Bytes, Option<Bytes>);

/// Rows, ordered by their bytes, and a few named values of the node's own.
pub trait Engine: Send + Sync + 'static {
    /// What a row holds. Sees every batch written before, synced or not.
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Writes a batch: all of it or nothing, after every batch written before. Not durable before the next
    /// [`Engine::sync`]. After [`EngineError::Full`] nothing of it was written, and nothing will be.
    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError>;

    /// Makes every batch durable whose [`Engine::write`] has returned before this was called. After an error nobody knows
    /// which of them are.
    fn sync(&self) -> Result<(), EngineError>;

    /// Up to `limit` rows of a range, in order, with what they hold.
    fn scan(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// Hands the rows of a range to `each`, in order, with what they hold, until it answers false. Rows that are written
    /// meanwhile may be among them. `each` must not call the engine.
    fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError>;

    /// What the store takes on its disk, and how full that is.
    fn usage(&self) -> Result<Usage, EngineError>;

    /// An estimate of the number of rows. Cheap.
    fn approximate_keys(&self) -> u64;

    /// A named value of the node's own, apart from the rows.
    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError>;

    /// Sets a named value; durable when this returns.
    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError>;
}

/// What a store takes on its disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Bytes that the store takes.
    pub bytes: u64,
    /// How full the file system is, 0..=100, whoever filled it.
    pub percent: f32,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The disk has no room left: nothing was written. Reads still work, and writes will once there is room again.
    #[error("the disk is full")]
    Full,
    /// The engine failed, or what it has stored is damaged. Whether a write happened is not known.
    #[error("{0}")]
    Broken(String),
}
