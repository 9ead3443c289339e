//! A connection to either database, with the operations that statements need.

use sqlx::pool::PoolConnection;
use sqlx::{Postgres, Sqlite};
use witan_kernel::port::StoreError;

use super::row::Row;
use crate::metadata::postgres::{self, Lent};
use crate::metadata::sqlite;

/// A connection for one operation. Dropped before it was [given back](Self::give_back), it is closed, since its state is unknown.
pub struct Db {
    connection: Connection,
    changed: bool,
    given_back: bool,
}

/// The database that it is connected to.
pub(in crate::metadata) enum Connection {
    /// SQLite, from sqlx's pool.
    Sqlite(PoolConnection<Sqlite>),
    /// PostgreSQL, from our own pool.
    Postgres(Lent),
}

/// A statement's argument, for `$1` and so on.
#[derive(Clone, Copy)]
pub(in crate::metadata) enum Value<'a> {
    Text(&'a str),
    MaybeText(Option<&'a str>),
    Number(u64),
    MaybeNumber(Option<u64>),
    Bytes(&'a [u8]),
    MaybeBytes(Option<&'a [u8]>),
    Flag(bool),
}

macro_rules! query {
    ($database:ty, $sql:expr, $values:expr, $named:expr) => {{
        let mut query = sqlx::query::<$database>($sql).persistent($named);
        for value in $values {
            query = match *value {
                Value::Text(text) => query.bind(text),
                Value::MaybeText(text) => query.bind(text),
                Value::Number(number) => query.bind(whole(number)),
                Value::MaybeNumber(number) => query.bind(number.map(whole)),
                Value::Bytes(bytes) => query.bind(bytes),
                Value::MaybeBytes(bytes) => query.bind(bytes),
                Value::Flag(flag) => query.bind(flag),
            };
        }
        query
    }};
}

/// A number as a database stores it: times and versions fit for 292 million years; larger ones are clamped.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Db {
    pub(in crate::metadata) fn over(connection: Connection) -> Self {
        Self { connection, changed: false, given_back: false }
    }

    /// Runs a statement, and returns the number of rows written.
    pub(super) async fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        match &mut self.connection {
            Connection::Sqlite(db) => {
                let done = query!(Sqlite, sql, values, true).execute(&mut **db).await.map_err(sqlite::failed)?;
                Ok(done.rows_affected())
            }
            Connection::Postgres(db) => {
                let done = query!(Postgres, sql, values, db.limits().is_none())
                    .execute(&mut **db)
                    .await
                    .map_err(postgres::failed)?;
                Ok(done.rows_affected())
            }
        }
    }

    pub(super) async fn rows(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        match &mut self.connection {
            Connection::Sqlite(db) => {
                let rows = query!(Sqlite, sql, values, true).fetch_all(&mut **db).await.map_err(sqlite::failed)?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Connection::Postgres(db) => {
                let rows = query!(Postgres, sql, values, db.limits().is_none())
                    .fetch_all(&mut **db)
                    .await
                    .map_err(postgres::failed)?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    pub(super) async fn row(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// The row of a statement that always returns one.
    pub(in crate::metadata) async fn one(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Row, StoreError> {
        let missing = || StoreError::Damaged("a row that is always there is missing".into());
        self.row(sql, values).await?.ok_or_else(missing)
    }

    /// The statement in this database's dialect.
    pub(super) fn dialect(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self.connection {
            Connection::Sqlite(_) => sqlite,
            Connection::Postgres(_) => postgres,
        }
    }

    pub(super) async fn now_ms(&mut self) -> Result<u64, StoreError> {
        let sql = self.dialect(
            // Not julianday(), which rounds.
            "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now",
            // Not now(), which is constant within a transaction.
            "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now",
        );
        self.one(sql, &[]).await?.number("now")
    }

    /// Begins an operation that needs no transaction, unless the connection is a pooler's: then it is one, so that all of it is carried
    /// out on one connection to the server.
    pub(super) async fn begin_reading(&mut self) -> Result<(), StoreError> {
        self.in_limits("BEGIN ISOLATION LEVEL READ COMMITTED", "").await.map(drop)
    }

    /// Ends it.
    pub(super) async fn end_reading(&mut self, succeeded: bool) -> Result<(), StoreError> {
        match &self.connection {
            Connection::Postgres(db) if db.limits().is_some() => {
                if succeeded {
                    self.commit().await
                } else {
                    self.rollback().await
                }
            }
            _ => Ok(()),
        }
    }

    /// Sends `before`, the time limits of a transaction, and `after`, in one exchange; or false if there is no pooler, and nothing is sent.
    async fn in_limits(&mut self, before: &str, after: &str) -> Result<bool, StoreError> {
        let Connection::Postgres(db) = &mut self.connection else { return Ok(false) };
        let Some(limits) = db.limits() else { return Ok(false) };
        let whole = sqlx::AssertSqlSafe(format!("{before}; {limits}; {after}"));
        sqlx::raw_sql(whole).execute(&mut **db).await.map_err(postgres::failed)?;
        Ok(true)
    }

    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        let (begin, lock) =
            ("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", "SELECT revision FROM cluster_state FOR UPDATE");
        if self.in_limits(begin, lock).await? {
            return Ok(());
        }
        self.raw(
            "BEGIN IMMEDIATE",
            // One exchange. READ COMMITTED lets each statement see what others committed before the lock was obtained.
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT revision FROM cluster_state FOR UPDATE",
        )
        .await
    }

    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        let postgres = if self.changed { postgres::COMMIT_AND_NOTIFY } else { "COMMIT" };
        self.raw("COMMIT", postgres).await
    }

    pub(super) async fn rollback(&mut self) -> Result<(), StoreError> {
        self.raw("ROLLBACK", "ROLLBACK").await
    }

    /// Without sqlx's own bookkeeping of transactions, which is wrong after the database has ended one (a full disk) or a future was
    /// dropped while one began.
    async fn raw(&mut self, sqlite: &'static str, postgres: &'static str) -> Result<(), StoreError> {
        match &mut self.connection {
            Connection::Sqlite(db) => {
                sqlx::raw_sql(sqlite).execute(&mut **db).await.map_err(sqlite::failed)?;
            }
            Connection::Postgres(db) => {
                sqlx::raw_sql(postgres).execute(&mut **db).await.map_err(postgres::failed)?;
            }
        }
        Ok(())
    }

    /// Notes that the transaction makes a change that other coordinators follow.
    pub(super) fn changes(&mut self) {
        self.changed = true;
    }

    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Returns it for the next operation. It must be in no transaction, with no reply outstanding.
    pub(super) fn give_back(mut self) {
        self.given_back = true;
        if let Connection::Postgres(db) = &mut self.connection {
            db.give_back();
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Connection::Sqlite(db) = &mut self.connection
            && !self.given_back
        {
            db.close_on_drop();
        }
    }
}
