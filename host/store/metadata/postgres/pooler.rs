//! Whether there is a pooler (PgBouncer and its like) between this program and the server, and what may then be sent.
//!
//! A pooler in transaction mode lends a connection to the server for each transaction. What belongs to a session is then lost, or reaches
//! somebody else: prepared statements with names, settings, advisory locks, LISTEN. So through a pooler every operation is a transaction
//! with its own time limits (`SET LOCAL`), statements have no names, and migrations and LISTEN go to the server directly or not at all.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, Row};
use witan_kernel::port::StoreError;

use super::connections::{self, Way};
use super::errors::{failed, is_unknown_parameter};

/// A setting that nobody else has: the server keeps it for the session, and a pooler refuses or drops it.
const MARK: (&str, &str) = ("witan.direct", "1");
const IS_MARKED: &str = "SELECT current_setting('witan.direct', true) IS NOT DISTINCT FROM '1'";

/// Finds out whether `options` lead to a pooler. Returns the connection that showed it.
pub(super) async fn find(options: &PgConnectOptions, patience: Duration) -> Result<(Way, PgConnection), StoreError> {
    match connections::open(&options.clone().options([MARK]), patience).await {
        Ok(mut connection) => {
            let marked = sqlx::raw_sql(IS_MARKED).fetch_one(&mut connection).await.and_then(|row| row.try_get(0));
            if marked.map_err(failed)? {
                return Ok((Way { options: options.clone(), pooled: false }, connection));
            }
            connections::close(connection).await;
        }
        Err(error) if is_unknown_parameter(&error) => {}
        Err(error) => return Err(error),
    }
    // Poolers know few parameters of a connection's start.
    let options = options.clone().extra_float_digits(None).statement_cache_capacity(0);
    let connection = connections::open(&options, patience).await?;
    Ok((Way { options, pooled: true }, connection))
}
