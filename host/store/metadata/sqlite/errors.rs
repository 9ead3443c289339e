//! Maps SQLite's errors.

use witan_kernel::port::StoreError;

/// Primary result codes of SQLite: the low byte of the extended ones.
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_NOTADB: i32 = 26;

/// Maps the database's errors. Constraints that a caller can violate are checked before; a violation here is a limit.
pub(in crate::metadata) fn failed(error: sqlx::Error) -> StoreError {
    let code = |error: &dyn sqlx::error::DatabaseError| error.code().and_then(|code| code.parse::<i32>().ok());
    match &error {
        sqlx::Error::Database(database) => match code(database.as_ref()).map(|code| code & 0xff) {
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Damaged(database.to_string()),
            Some(SQLITE_CONSTRAINT) => StoreError::Refused(database.to_string()),
            Some(SQLITE_FULL) => StoreError::Full("the disk under the metadata has no space left; free some".into()),
            _ => StoreError::Unavailable(database.to_string()),
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
            StoreError::Damaged(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}
