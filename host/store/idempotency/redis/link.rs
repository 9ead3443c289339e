//! The connection: made when it is first needed, shared by concurrent callers (whose calls are pipelined), and replaced when it is
//! lost, with a growing pause between failed attempts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::retry::pauses;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::sentinel::SentinelClient;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use witan_kernel::backoff::Backoff;
use witan_kernel::sync::lock;

/// Pauses between attempts to connect. The longest bounds how late a server that is back is noticed.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Calls queued for writing on a connection. More wait for a place; the store bounds the number of all.
const WRITTEN_AHEAD: usize = 1024;

/// How long a call waits for its answer before the connection is checked: a tenth of the default time limit of a step.
const SILENCE: Duration = Duration::from_millis(100);

/// Makes connections.
pub(super) enum Connector {
    /// To one server.
    Single(Box<redis::Client>),
    /// To all masters of a cluster.
    Cluster(Box<ClusterClient>),
    /// To the master that sentinels name; they are asked for each connection.
    Sentinel(Box<dyn Fn() -> Result<SentinelClient, RedisError> + Send + Sync>),
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    Single(MultiplexedConnection),
    /// To all masters of a cluster. It reconnects on its own.
    Cluster(ClusterConnection),
}

/// A connection and its generation.
#[derive(Clone)]
pub(super) struct Connected {
    /// Increases with every connection.
    pub(super) generation: u64,
    /// The connection.
    pub(super) connection: Connection,
}

/// The outcome of an attempt to connect: none yet, the connection, or why there is none.
type Outcome = Option<Result<Connected, String>>;

/// Hands out the connection.
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Mutex<Arc<Connector>>,
    connect_timeout: Duration,
    state: Mutex<State>,
    on_connect: Box<dyn Fn(Connection) + Send + Sync>,
}

struct State {
    connected: Option<Connected>,
    /// In progress: one at a time, however many wait for it.
    attempt: Option<watch::Receiver<Outcome>>,
    generation: u64,
    /// A connection that is lost before any call on it succeeded counts as a failure, too.
    backoff: Backoff,
    /// A call on the current connection has succeeded.
    proven: bool,
}

impl Default for State {
    fn default() -> Self {
        let backoff = pauses(RETRY[0], RETRY[1]);
        Self { connected: None, attempt: None, generation: 0, backoff, proven: false }
    }
}

impl Link {
    /// Does not connect yet. `on_connect` is called with each connection.
    pub(super) fn new(
        connector: Connector,
        connect_timeout: Duration,
        on_connect: impl Fn(Connection) + Send + Sync + 'static,
    ) -> Self {
        let (connector, state) = (Mutex::new(Arc::new(connector)), Mutex::default());
        let on_connect = Box::new(on_connect);
        Self { shared: Arc::new(Shared { connector, connect_timeout, state, on_connect }) }
    }

    /// Uses `connector` from now on and drops the current connection.
    pub(super) fn replace(&self, connector: Connector) {
        *lock(&self.shared.connector) = Arc::new(connector);
        self.reset();
    }

    /// The connection, waiting for one if need be. May take long: the caller sets the time limit.
    pub(super) async fn connected(&self) -> Result<Connected, String> {
        let mut attempt = {
            let mut state = lock(&self.shared.state);
            if let Some(connected) = &state.connected {
                return Ok(connected.clone());
            }
            match &state.attempt {
                Some(attempt) => attempt.clone(),
                None => self.begin(&mut state),
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // The attempt was dropped: its runtime is shutting down.
            Ok(None) | Err(_) => {
                lock(&self.shared.state).attempt = None;
                Err("the attempt to connect was given up".to_owned())
            }
        }
    }

    fn begin(&self, state: &mut State) -> watch::Receiver<Outcome> {
        let (done, outcome) = watch::channel(None);
        state.attempt = Some(outcome.clone());
        let (shared, pause) = (self.shared.clone(), state.backoff.pause());
        // In a separate task, since the caller may stop waiting.
        tokio::spawn(async move {
            sleep(pause).await;
            let made = shared.connect().await;
            done.send_replace(Some(shared.note(made)));
        });
        outcome
    }

    /// Notes that a call on this connection has succeeded.
    pub(super) fn proven(&self, generation: u64) {
        let mut state = lock(&self.shared.state);
        if state.generation == generation && !state.proven {
            state.proven = true;
            state.backoff.succeeded();
        }
    }

    /// Notes that this connection is lost; the next caller starts another.
    pub(super) fn lost(&self, generation: u64) {
        let mut state = lock(&self.shared.state);
        if state.connected.as_ref().is_some_and(|connected| connected.generation == generation) {
            state.connected = None;
            if !state.proven {
                state.backoff.failed();
            }
        }
    }

    /// Drops the current connection, if any.
    pub(super) fn reset(&self) {
        lock(&self.shared.state).connected = None;
    }
}

impl Shared {
    async fn connect(&self) -> Result<Connection, String> {
        let connector = lock(&self.connector).clone();
        match timeout(self.connect_timeout, connector.connect(self.connect_timeout)).await {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {:?}", self.connect_timeout)),
        }
    }

    fn note(&self, made: Result<Connection, String>) -> Result<Connected, String> {
        let noted = {
            let mut state = lock(&self.state);
            state.attempt = None;
            match made {
                Ok(connection) => {
                    state.generation += 1;
                    state.proven = false;
                    let connected = Connected { generation: state.generation, connection };
                    state.connected = Some(connected.clone());
                    Ok(connected)
                }
                Err(why) => {
                    state.backoff.failed();
                    Err(why)
                }
            }
        };
        if let Ok(connected) = &noted {
            (self.on_connect)(connected.connection.clone());
        }
        noted
    }
}

impl Connector {
    async fn connect(&self, within: Duration) -> Result<Connection, RedisError> {
        // No time limit here: the store sets the one that its callers expect.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WRITTEN_AHEAD);
        match self {
            Self::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&settings).await.map(Connection::Single)
            }
            Self::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
            Self::Sentinel(client) => {
                client()?.get_async_connection_with_config(&settings).await.map(Connection::Single)
            }
        }
    }
}

impl Connection {
    /// One call, pipelined with others.
    pub(super) async fn call(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        let reply = match self {
            Self::Single(connection) => watched(connection, command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        reply.and_then(Value::extract_error)
    }

    /// One call to every server that stores records.
    pub(super) async fn call_all(&mut self, command: &Cmd) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::Single(_) => self.call(command).await.map(|reply| vec![reply]),
            Self::Cluster(connection) => {
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match connection.route_command(command.clone(), masters).await?.extract_error()? {
                    Value::Map(each) => Ok(each.into_iter().map(|(_, reply)| reply).collect()),
                    other => Ok(vec![other]),
                }
            }
        }
    }

    /// True when another connection may succeed at once after this error.
    pub(super) fn is_lost_by(&self, error: &RedisError) -> bool {
        match self {
            // The client has looked for other servers and retried already.
            Self::Cluster(_) => false,
            // The master has become a replica: sentinels, or a host name, may lead to the new one.
            Self::Single(_) if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) => true,
            Self::Single(_) => error.is_unrecoverable_error() || error.is_io_error(),
        }
    }
}

/// One call to a single server, which fails when the connection is lost. The client does not always notice that by itself: a call that
/// is queued in the very moment in which the connection ends is neither sent nor dropped, because the caller's own handle keeps the
/// queue. So while a call has no answer, others on the same connection ask whether it is still there.
async fn watched(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let mut probing = connection.clone();
    let reply = connection.req_packed_command(command);
    tokio::pin!(reply);
    loop {
        tokio::select! {
            reply = &mut reply => return reply,
            () = sleep(SILENCE) => {}
        }
        let ping = redis::cmd("PING");
        tokio::select! {
            biased;
            reply = &mut reply => return reply,
            there = probing.req_packed_command(&ping) => match there {
                Err(error) if error.is_unrecoverable_error() || error.is_io_error() => return Err(error),
                _ => {}
            },
        }
    }
}
