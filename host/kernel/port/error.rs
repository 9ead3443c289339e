//! Why a store could not do what it was asked.

/// Why a store's operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store is unreachable; the change was made or not.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// The store has no room; the change was made or not.
    #[error("the store is full: {0}")]
    Full(String),
    /// A concurrent change came first; nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// It exists already; nothing was changed.
    #[error("{0} exists already")]
    Exists(String),
    /// It does not exist; nothing was changed.
    #[error("{0} does not exist")]
    Missing(String),
    /// It breaks a limit or a rule of the store; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Stored data cannot be read.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}
