//! Reads columns into types. A value that no version of this program has written is an error, not a panic.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use witan_kernel::port::StoreError;

use crate::metadata::{postgres, sqlite};

/// A row of either database.
pub(in crate::metadata) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! column {
    ($row:expr, $name:expr, $type:ty) => {
        match $row {
            Row::Sqlite(row) => row.try_get::<$type, _>($name).map_err(sqlite::failed),
            Row::Postgres(row) => row.try_get::<$type, _>($name).map_err(postgres::failed),
        }
    };
}

impl Row {
    /// A non-negative integer.
    pub(in crate::metadata) fn number<T: TryFrom<i64>>(&self, name: &'static str) -> Result<T, StoreError> {
        let stored = column!(self, name, i64)?;
        stored.try_into().map_err(|_| damaged(name, &stored))
    }

    /// The same, or `None` for NULL.
    pub(super) fn maybe_number<T: TryFrom<i64>>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let stored = column!(self, name, Option<i64>)?;
        stored.map(|stored| stored.try_into().map_err(|_| damaged(name, &stored))).transpose()
    }

    pub(in crate::metadata) fn text(&self, name: &'static str) -> Result<String, StoreError> {
        column!(self, name, String)
    }

    pub(super) fn maybe_text(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        column!(self, name, Option<String>)
    }

    pub(in crate::metadata) fn flag(&self, name: &'static str) -> Result<bool, StoreError> {
        column!(self, name, bool)
    }

    pub(super) fn bytes(&self, name: &'static str) -> Result<Vec<u8>, StoreError> {
        column!(self, name, Vec<u8>)
    }

    pub(super) fn maybe_bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        column!(self, name, Option<Vec<u8>>)
    }

    /// Bytes of a fixed length.
    pub(super) fn exactly<const N: usize>(&self, name: &'static str) -> Result<[u8; N], StoreError> {
        let stored = self.bytes(name)?;
        stored.try_into().map_err(|stored: Vec<u8>| damaged(name, &format_args!("{} bytes", stored.len())))
    }

    /// A text, parsed.
    pub(super) fn spelled<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let stored = self.text(name)?;
        parse(&stored).ok_or_else(|| damaged(name, &stored))
    }
}

pub(super) fn damaged(name: &str, stored: &dyn std::fmt::Debug) -> StoreError {
    StoreError::Damaged(format!("{name} holds {stored:?}"))
}
