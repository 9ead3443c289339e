//! Between columns and types. What a column holds that no version of this program has written is damage, not a panic.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use witan_kernel::port::StoreError;

use super::failed;

/// A column as SQLite holds it.
pub(super) fn column<'r, T>(row: &'r SqliteRow, name: &'static str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(failed)
}

/// A whole number that is not negative.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, name: &'static str) -> Result<T, StoreError> {
    let stored: i64 = column(row, name)?;
    stored.try_into().map_err(|_| damaged(name, &stored))
}

/// A text that stands for something.
pub(super) fn spelled<T>(
    row: &SqliteRow,
    name: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, StoreError> {
    let stored: &str = column(row, name)?;
    parse(stored).ok_or_else(|| damaged(name, &stored))
}

/// Bytes of a fixed length.
pub(super) fn exactly<const N: usize>(row: &SqliteRow, name: &'static str) -> Result<[u8; N], StoreError> {
    let stored: &[u8] = column(row, name)?;
    stored.try_into().map_err(|_| damaged(name, &format_args!("{} bytes", stored.len())))
}

pub(super) fn damaged(name: &str, stored: &dyn std::fmt::Debug) -> StoreError {
    StoreError::Damaged(format!("{name} holds {stored:?}"))
}

/// A number as SQLite takes it: times and versions fit for 292 million years; what does not is held at the end.
pub(super) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
