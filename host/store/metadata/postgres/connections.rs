//! A small pool of connections.
//!
//! Not sqlx's pool, since that takes back every dropped connection, checks it in a task without a time limit (a server that is paused
//! at that moment keeps the place occupied), and does not notice that a connection is in a transaction. Here a connection is taken
//! back only when its operation returns it, and lent again only after the server has confirmed, within a time limit, that it is in no
//! transaction.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::retry::pauses;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use witan_kernel::port::StoreError;
use witan_kernel::sync::lock;

use super::config::PostgresConfig;
use super::errors::{failed, passes};

/// Time limit for an idle connection to answer. One that takes longer is dead, or its server overloaded.
const CHECK: Duration = Duration::from_secs(1);
/// Age at which a connection is replaced, so that a server's new address is noticed.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Time limit for closing a connection properly; after that it is dropped.
const GOODBYE: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// Within a transaction `now()` is the time of its beginning, earlier than the statement's. Sent as a simple query: in the extended
/// protocol each message has its own time.
const IN_NO_TRANSACTION: &str = "SELECT now() = statement_timestamp()";

/// A way to a server.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// How to connect.
    pub(super) options: PgConnectOptions,
    /// Whether a pooler is on it.
    pub(super) pooled: bool,
}

/// The pool.
pub(super) struct Connections {
    options: PgConnectOptions,
    /// Settings of each connection; `None` through a pooler, where they would reach somebody else.
    session: Option<String>,
    /// Settings of each transaction, through a pooler.
    limits: Option<String>,
    connect: Duration,
    places: Arc<Semaphore>,
    /// Most recently used last. At most as many as `places`.
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: PgConnection,
    since: Instant,
}

/// A connection for one operation. Dropped before it is given back, it is closed.
pub(in crate::metadata) struct Lent {
    idle: Option<Idle>,
    done: bool,
    pool: Arc<Connections>,
    _place: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(way: Way, config: &PostgresConfig) -> Self {
        let Way { options, pooled } = way;
        Self {
            options,
            session: (!pooled).then(|| session(config.operation)),
            limits: pooled.then(|| limits(config.operation)),
            connect: config.connect,
            places: Arc::new(Semaphore::new(config.connections as usize)),
            idle: Mutex::default(),
        }
    }

    pub(super) async fn lend(self: &Arc<Self>) -> Result<Lent, StoreError> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| StoreError::Unavailable("the metadata store is closed".into()))?;
        let idle = match self.usable().await {
            Some(idle) => idle,
            None => self.fresh().await?,
        };
        Ok(Lent { idle: Some(idle), done: false, pool: self.clone(), _place: place })
    }

    /// An idle connection that answers, if there is one.
    async fn usable(&self) -> Option<Idle> {
        while let Some(mut idle) = self.next() {
            match timeout(CHECK, in_no_transaction(&mut idle.connection)).await {
                Ok(Ok(true)) => return Some(idle),
                Ok(Ok(false)) => tracing::error!("a connection to PostgreSQL was given back inside a transaction"),
                Ok(Err(error)) => tracing::debug!(%error, "a connection to PostgreSQL is gone"),
                // A server that does not answer here will not answer on the next one either.
                Err(_) => self.idle().clear(),
            }
        }
        None
    }

    fn next(&self) -> Option<Idle> {
        let mut idle = self.idle();
        idle.retain(|idle| idle.since.elapsed() < LIFETIME);
        idle.pop()
    }

    async fn fresh(&self) -> Result<Idle, StoreError> {
        let mut connection = open(&self.options, self.connect).await?;
        if let Some(session) = self.session.clone() {
            sqlx::raw_sql(sqlx::AssertSqlSafe(session)).execute(&mut connection).await.map_err(failed)?;
        }
        Ok(Idle { connection, since: Instant::now() })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        lock(&self.idle)
    }

    /// Stops lending and closes idle connections.
    pub(super) async fn close(&self) {
        self.places.close();
        loop {
            let Some(idle) = self.idle().pop() else { return };
            close(idle.connection).await;
        }
    }
}

async fn in_no_transaction(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::raw_sql(IN_NO_TRANSACTION).fetch_one(connection).await?.try_get(0)
}

/// Session settings of each connection. The server's time limits are below the operation's, so that the server ends a slow change and
/// reports it, if it can.
fn session(operation: Duration) -> String {
    let part = |tenths: u128| (operation.as_millis() * tenths / 10).max(1);
    format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = 10000; SET client_min_messages = warning",
        part(9),
        part(8),
        part(4)
    )
}

/// The time limits of an operation that is one transaction: the server ends it shortly before this program gives it up.
fn limits(operation: Duration) -> String {
    let part = |tenths: u128| (operation.as_millis() * tenths / 10).max(1);
    format!(
        "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
        part(9),
        part(8),
        part(4)
    )
}

/// Connects within `patience`, retrying: a server that is starting refuses at first.
pub(super) async fn open(options: &PgConnectOptions, patience: Duration) -> Result<PgConnection, StoreError> {
    let until = Instant::now() + patience;
    let mut backoff = pauses(RETRY[0], RETRY[1]);
    loop {
        let error = match tokio::time::timeout_at(until, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_) => {
                return Err(StoreError::Unavailable(format!("PostgreSQL: no connection within {patience:?}")));
            }
        };
        let pause = backoff.failed();
        if !passes(&error) || Instant::now() + pause >= until {
            return Err(out_of_reach(error));
        }
        sleep(pause).await;
    }
}

/// Maps an error before there is a connection: always unavailable, whatever the server says.
fn out_of_reach(error: sqlx::Error) -> StoreError {
    match failed(error) {
        StoreError::Unavailable(why) => StoreError::Unavailable(why),
        other => StoreError::Unavailable(other.to_string()),
    }
}

pub(super) async fn close(connection: PgConnection) {
    // The connection is closed either way.
    let _ = timeout(GOODBYE, connection.close()).await;
}

impl Lent {
    /// The settings with which each transaction must begin: every operation is one, and no statement may have a name. `None`: there is
    /// no pooler on the way to the server.
    pub(in crate::metadata) fn limits(&self) -> Option<&str> {
        self.pool.limits.as_deref()
    }

    /// Marks it for the next operation; it is returned when dropped.
    pub(in crate::metadata) fn give_back(&mut self) {
        self.done = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(idle) = self.idle.take()
            && self.done
            && !self.pool.places.is_closed()
        {
            self.pool.idle().push(idle);
        }
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.idle.as_ref().expect("there until it is dropped").connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.idle.as_mut().expect("there until it is dropped").connection
    }
}
