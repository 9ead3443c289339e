//! The connection: made when it is first needed, shared by all who call at once (their calls are pipelined on it), made anew
//! when it is lost, ever more slowly while that fails.

use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// Pauses between attempts to connect. The longest bounds how late a server that is back is found.
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// Calls that wait to be written to a connection. More wait before it; the number of all is bounded by the store.
const WRITTEN_AHEAD: usize = 1024;

/// Makes connections.
pub(super) enum Connector {
    /// To one server.
    Single(Box<redis::Client>),
    /// To all masters of a cluster.
    Cluster(Box<ClusterClient>),
    /// To the master that sentinels name; they are asked anew each time.
    Sentinel(Box<dyn Fn() -> Result<SentinelClient, RedisError> + Send + Sync>),
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    Single(MultiplexedConnection),
    /// To all masters of a cluster. It heals itself.
    Cluster(ClusterConnection),
}

/// A connection that was made, and which one it was.
#[derive(Clone)]
pub(super) struct Connected {
    /// Counts connections.
    pub(super) generation: u64,
    /// The connection.
    pub(super) connection: Connection,
}

/// What is told of an attempt: nothing yet, the connection, or why there is none.
type Told = Option<Result<Connected, String>>;

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
    /// Under way: one at a time, however many wait for it.
    attempt: Option<watch::Receiver<Told>>,
    generation: u64,
    /// A connection that is lost before it was of any use counts as a failure, too.
    backoff: Backoff,
    /// The present connection has been of use.
    proven: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { connected: None, attempt: None, generation: 0, backoff: RETRY, proven: false }
    }
}

impl Link {
    /// No connection is made yet. Each that is made is shown to `on_connect`.
    pub(super) fn new(
        connector: Connector,
        connect_timeout: Duration,
        on_connect: impl Fn(Connection) + Send + Sync + 'static,
    ) -> Self {
        let (connector, state) = (Mutex::new(Arc::new(connector)), Mutex::default());
        let on_connect = Box::new(on_connect);
        Self { shared: Arc::new(Shared { connector, connect_timeout, state, on_connect }) }
    }

    /// Connections are made with this from now on; the present one is given up.
    pub(super) fn replace(&self, connector: Connector) {
        *lock(&self.shared.connector) = Arc::new(connector);
        self.reset();
    }

    /// The connection, or the one that is being made. Wait no longer than makes sense: it may be a while.
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
            Ok(Some(told)) => told.clone(),
            // The attempt has gone without a word: the runtime that carried it ends.
            Ok(None) | Err(_) => {
                lock(&self.shared.state).attempt = None;
                Err("the attempt to connect was given up".to_owned())
            }
        }
    }

    fn begin(&self, state: &mut State) -> watch::Receiver<Told> {
        let (tell, told) = watch::channel(None);
        state.attempt = Some(told.clone());
        let (shared, pause) = (self.shared.clone(), state.backoff.pause());
        // A task of its own, since whoever has asked for it may stop waiting.
        tokio::spawn(async move {
            sleep(pause).await;
            let made = shared.connect().await;
            tell.send_replace(Some(shared.note(made)));
        });
        told
    }

    /// This connection has been of use.
    pub(super) fn proven(&self, generation: u64) {
        let mut state = lock(&self.shared.state);
        if state.generation == generation && !state.proven {
            state.proven = true;
            state.backoff.succeeded();
        }
    }

    /// This connection is of no use any more; the next caller has another made.
    pub(super) fn lost(&self, generation: u64) {
        let mut state = lock(&self.shared.state);
        if state.connected.as_ref().is_some_and(|connected| connected.generation == generation) {
            state.connected = None;
            if !state.proven {
                state.backoff.failed();
            }
        }
    }

    /// Whatever connection there is, is given up.
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
        // Answers are waited for by the store, which knows how long its callers wait.
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
        let told = match self {
            Self::Single(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        told.and_then(Value::extract_error)
    }

    /// One call to every server that stores.
    pub(super) async fn call_all(&mut self, command: &Cmd) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::Single(_) => self.call(command).await.map(|told| vec![told]),
            Self::Cluster(connection) => {
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match connection.route_command(command.clone(), masters).await?.extract_error()? {
                    Value::Map(each) => Ok(each.into_iter().map(|(_, told)| told).collect()),
                    other => Ok(vec![other]),
                }
            }
        }
    }

    /// True when after this error another connection may do better, at once.
    pub(super) fn is_lost_by(&self, error: &RedisError) -> bool {
        match self {
            // It finds other servers, and has tried again, by itself.
            Self::Cluster(_) => false,
            // A master that has become a replica: sentinels know another one, and a name may lead to it.
            Self::Single(_) if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) => true,
            Self::Single(_) => error.is_unrecoverable_error() || error.is_io_error(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RETRY;
    use std::time::Duration;

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = RETRY;
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<Duration> = (1..8).map(|_| backoff.failed()).collect();
        assert!(pauses.is_sorted());
        assert_eq!(backoff.pause(), Duration::from_secs(1));
        (0..100).for_each(|_| _ = backoff.failed());
        assert_eq!(backoff.pause(), Duration::from_secs(1));
    }
}
