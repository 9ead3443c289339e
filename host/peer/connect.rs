//! Connections to storage nodes: the port behind which they are made, and its implementation on TCP.

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
use witan_kernel::port::{Met, StorageNode, StoreError};
use witan_net::{Connector, SharedSecret};

/// Makes connections to storage nodes: over sockets, or over the simulation's network.
pub trait Connect: Clone + Send + Sync + 'static {
    /// A new connection to a node.
    fn connect(&self, node: &StorageNode) -> Connecting;

    /// Decides what the store may be used for that a node has reported in its handshake, before any request is sent. `commit` is the
    /// commit number that it has shown, `before` the highest one that this coordinator knew of it before it asked. After an error the
    /// connection is closed and tried again.
    fn meet(&self, node: &NodeId, store: StoreId, commit: u64, before: u64) -> Pending<Result<Met, StoreError>>;
}

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

/// A connection to a node that adds the coordinator's credential to every call.
pub type Link = InterceptedService<Channel, Credential>;

/// The secret that a coordinator sends with each call to a node, if nodes require one.
#[derive(Debug, Clone, Default)]
pub struct Credential(Option<SharedSecret>);

impl Credential {
    /// A connection that sends it with each call.
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
    /// The connection or its TLS handshake failed.
    Transport(tonic::transport::Error),
    /// The secret would be sent to this host without TLS.
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
                "security.nodes.shared_secret_file is set without security.nodes.tls, so the secret would be sent to {host} \
                 unencrypted: add security.nodes.tls, with a ca_file, and serve the node with --tls-cert-file"
            ),
        }
    }
}

/// Why a call to a node failed: the TLS error if there is one, otherwise the last source of the error. The text of tonic's outermost
/// error says nothing.
pub(super) fn reason(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    witan_net::explain(error).unwrap_or_else(|| last.to_string())
}

/// Connections over TCP, with TLS and a shared secret if configured.
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    tls: Option<Connector>,
    secret: Option<SharedSecret>,
}

impl Tcp {
    /// Connections that use `tls`, if given, and send `secret`, if there is one.
    pub fn new(tls: Option<Connector>, secret: Option<SharedSecret>) -> Self {
        Self { tls, secret }
    }

    /// A new connection to a node.
    pub fn connect(&self, node: &StorageNode) -> Connecting {
        let Self { tls, secret } = self.clone();
        let (endpoint, host) = (endpoint(node), node.host.clone());
        Box::pin(async move {
            let channel = match tls {
                Some(tls) => endpoint?.connect_with_connector(tls).await?,
                None if secret.is_some() && !is_loopback(&host) => return Err(ConnectError::SecretInTheClear(host)),
                None => endpoint?.connect().await?,
            };
            Ok(Credential(secret).over(channel))
        })
    }
}

/// Whether data sent to a host stays on this machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The settings of every connection to a node, on any network. Keepalive continues while nothing is in flight: without it, a
/// connection that a network partition has cut might never be closed.
pub fn endpoint(node: &StorageNode) -> Result<Endpoint, tonic::transport::Error> {
    let host = if node.host.contains(':') { format!("[{}]", node.host) } else { node.host.clone() };
    Ok(Endpoint::from_shared(format!("http://{host}:{}", node.port))?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        // A single stream carries all requests, so its window is sized like the connection's.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}
