//! What the server's errors mean to a caller.

use sqlx::error::DatabaseError;
use witan_kernel::port::StoreError;

/// Constraints that a caller can run into are checked before; one that is left is a bound.
pub(in crate::metadata) fn failed(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => told(database.as_ref()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
            StoreError::Damaged(error.to_string())
        }
        sqlx::Error::Encode(_) => StoreError::Refused(error.to_string()),
        // The connection's: whether a change happened is not known.
        _ => StoreError::Unavailable(format!("PostgreSQL: {error}")),
    }
}

/// By SQLSTATE; the first two characters are a class.
fn told(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let said = format!("PostgreSQL: {} ({code})", error.message());
    match (&code[..code.len().min(2)], code.as_ref()) {
        // The transaction was rolled back in favour of another: serialization failure, deadlock; a unique key taken.
        (_, "40001" | "40P01" | "23505") => StoreError::Conflict(format!("another change came first: {said}")),
        // Constraints, data that a column cannot hold; something that this user may not do.
        ("22" | "23", _) | (_, "42501") => StoreError::Refused(said),
        (_, "25006") => StoreError::Unavailable(format!("{said}; this is a standby, or set to read only")),
        (_, "53100") => StoreError::Unavailable(format!("{said}; free some space on its disk")),
        (_, "53300") => StoreError::Unavailable(format!("{said}; raise its max_connections, or use fewer connections")),
        // Corrupted data or index; tables, columns or types that are not those of the schema; a plan for other ones.
        ("XX", "XX001" | "XX002") | ("42", "42P01" | "42703" | "42804" | "42883") => StoreError::Damaged(said),
        // Shutdown, crash, no memory, time limits of its own, no permission: nothing here can be said of the change.
        _ => StoreError::Unavailable(said),
    }
}

/// True for what passes by itself while a server starts, restarts or is full.
pub(super) fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            // Starting up or shutting down; too many connections for now.
            code.starts_with("57P") || code == "53300"
        }
        _ => false,
    }
}
