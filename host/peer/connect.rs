//! How a storage node is reached.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use tonic::Status;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use witan_kernel::hook::Pending;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::StorageNode;
pub use witan_kernel::scan::Trust;
use witan_net::{Connector, SharedSecret};

/// Makes connections to storage nodes: sockets, or the simulation's network.
pub trait Connect: Clone + Send + Sync + 'static {
    /// A fresh connection to a node.
    fn connect(&self, node: &StorageNode) -> Connecting;

    /// Whether the store that a node has told in its handshake holds what the node is to hold; asked before anything is
    /// sent. An error gives the connection up, to be tried again.
    fn admit(&self, node: &NodeId, store: StoreId) -> Pending<Result<Trust, String>> {
        let _ = (node, store);
        Box::pin(std::future::ready(Ok(Trust::Whole)))
    }
}

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

/// A connection to a node, over which every call shows what the node asks coordinators for.
pub type Link = InterceptedService<Channel, Credential>;

/// What a coordinator shows with each call to a node.
#[derive(Debug, Clone, Default)]
pub struct Credential(Option<SharedSecret>);

impl Credential {
    /// A connection that shows it.
    pub fn over(self, channel: Channel) -> Link {
        InterceptedService::new(channel, self)
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(secret) = &self.0 {
            secret.show(request.metadata_mut().as_mut());
        }
        Ok(request)
    }
}

/// Why a node cannot be reached.
#[derive(Debug)]
pub enum ConnectError {
    /// No connection, or no handshake.
    Transport(tonic::transport::Error),
    /// Everybody on the way could read the secret.
    SecretInTheClear(String),
}

impl From<tonic::transport::Error> for ConnectError {
    fn from(error: tonic::transport::Error) -> Self {
        Self::Transport(error)
    }
}

impl Error for ConnectError {}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => f.write_str(&reason(error)),
            Self::SecretInTheClear(host) => write!(
                f,
                "security.nodes.shared_secret_file is given without security.nodes.tls, and everybody on the way to {host} \
                 could read the secret: add security.nodes.tls, with a ca_file, and serve the node with --tls-cert-file"
            ),
        }
    }
}

/// Why a node could not be spoken to: what TLS has against it, or what is at the end of the chain. tonic's own text, at its
/// beginning, says nothing.
pub(super) fn reason(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    witan_net::explain(error).unwrap_or_else(|| last.to_string())
}

/// Sockets, over TLS and with a secret where nodes ask for them.
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    tls: Option<Connector>,
    secret: Option<SharedSecret>,
}

impl Tcp {
    /// Connections over TLS, if `tls` is given, that show `secret`, if there is one.
    pub fn new(tls: Option<Connector>, secret: Option<SharedSecret>) -> Self {
        Self { tls, secret }
    }
}

impl Connect for Tcp {
    fn connect(&self, node: &StorageNode) -> Connecting {
        let Self { tls, secret } = self.clone();
        let (endpoint, host) = (endpoint(node), node.host.clone());
        Box::pin(async move {
            let channel = match tls {
                Some(tls) => endpoint?.connect_with_connector(tls).await?,
                None if secret.is_some() && !is_here(&host) => return Err(ConnectError::SecretInTheClear(host)),
                None => endpoint?.connect().await?,
            };
            Ok(Credential(secret).over(channel))
        })
    }
}

/// Whether what is sent to a host stays on this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The settings of every connection to a node, whatever carries it. Keepalive goes on while nothing is in flight: without
/// it, a connection that a partition has cut may never be given up.
pub fn endpoint(node: &StorageNode) -> Result<Endpoint, tonic::transport::Error> {
    let host = if node.host.contains(':') { format!("[{}]", node.host) } else { node.host.clone() };
    Ok(Endpoint::from_shared(format!("http://{host}:{}", node.port))?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        // One stream carries everything, so the stream's window is the connection's.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}
