//! Maps the server's errors.

use sqlx::error::DatabaseError;
use witan_kernel::port::StoreError;

/// Constraints that a caller can violate are checked before; a violation here is a limit.
pub(in crate::metadata) fn failed(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => by_state(database.as_ref()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
            StoreError::Damaged(error.to_string())
        }
        sqlx::Error::Encode(_) => StoreError::Refused(error.to_string()),
        // The connection failed: whether a change happened is unknown.
        _ => StoreError::Unavailable(format!("PostgreSQL: {error}")),
    }
}

/// By SQLSTATE, whose first two characters are a class.
fn by_state(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let message = format!("PostgreSQL: {} ({code})", error.message());
    match (&code[..code.len().min(2)], code.as_ref()) {
        // The transaction was rolled back in favour of another: serialization failure, deadlock; a unique key taken.
        (_, "40001" | "40P01" | "23505") => StoreError::Conflict(format!("another change came first: {message}")),
        // Constraints, data that a column cannot hold; missing privileges.
        ("22" | "23", _) | (_, "42501") => StoreError::Refused(message),
        (_, "25006") => StoreError::Unavailable(format!("{message}; this is a standby, or set to read only")),
        (_, "53100") => StoreError::Full(format!("{message}; free some space on its disk")),
        (_, "53300") => {
            StoreError::Unavailable(format!("{message}; raise its max_connections, or use fewer connections"))
        }
        // Corrupted data or index; tables, columns or types other than the schema's.
        ("XX", "XX001" | "XX002") | ("42", "42P01" | "42703" | "42804" | "42883") => StoreError::Damaged(message),
        // Shutdown, crash, out of memory, the server's time limits, no permission: whether the change happened is unknown.
        _ => StoreError::Unavailable(message),
    }
}

/// Whether a pooler has refused a parameter of the connection's start.
pub(super) fn is_unknown_parameter(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(why) if why.contains("unsupported startup parameter") && why.ends_with("(08P01)"))
}

/// True for errors that pass while a server starts, restarts or is out of connections.
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
