//! The results of the metadata store's operations.

use super::StoreError;
use crate::hook::Pending;

/// Most rows of one page of a list: small enough that a page is read in one statement and fits one message.
pub const PAGE: u32 = 1000;

/// The result of a store's operation, as a future.
///
/// Every operation of the metadata store is atomic, durable when its future is ready, and runs to its end once it has started:
/// dropping the future does not cancel it. Any operation may fail with [`StoreError::Unavailable`] (a change then happened or
/// not), [`StoreError::Damaged`] or, where several coordinators share the store, [`StoreError::Conflict`] (nothing was changed).
/// Each method's documentation lists its other errors.
///
/// Lists are read in pages: `after` is the last entry of the previous page, and `limit` is clamped to 1..=[`PAGE`].
pub type Answer<T> = Pending<Result<T, StoreError>>;
