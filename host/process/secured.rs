//! TLS and the shared secret of a coordinator's listeners and of its connections to nodes.

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use witan_net::{
    Bounds, ClientSide, Connector, Fields, FileError, Incoming, Protocol, ServerSide, SharedSecret, metrics,
};

use crate::access::config::Security;
use crate::console::AdminIncoming;
use witan_peer::Tcp;

/// Certificates, keys and the shared secret of a coordinator's connections, read from files and reloaded when these change.
#[derive(Debug)]
pub struct Secured {
    grpc: Option<ServerSide>,
    http: Option<ServerSide>,
    nodes: Option<ClientSide>,
    secret: Option<SharedSecret>,
}

impl Secured {
    /// Reads every configured file. Blocking: for use while a process starts.
    ///
    /// # Errors
    /// The first file that cannot be used, and the remedy.
    pub fn open(security: &Security) -> Result<Self, FileError> {
        let listener = |protocol| {
            let tls = security.tls.as_ref();
            tls.map(|tls| ServerSide::open(tls, Fields::LISTENERS, protocol)).transpose()
        };
        let nodes = security.nodes.tls.as_ref().map(|tls| ClientSide::open(tls, Fields::NODES)).transpose()?;
        let secret = security.nodes.shared_secret_file.as_ref();
        let secret = secret.map(|path| SharedSecret::open(path, "security.nodes.shared_secret_file")).transpose()?;
        Ok(Self { grpc: listener(Protocol::Grpc)?, http: listener(Protocol::Http)?, nodes, secret })
    }

    /// The connector to storage nodes.
    pub fn to_nodes(&self) -> Tcp {
        Tcp::new(self.nodes.clone().map(Connector::new), self.secret.clone())
    }

    /// The connections of both listeners, each with its bounds.
    pub fn listen(
        self,
        (grpc, grpc_bounds): (TcpListener, Bounds),
        (http, http_bounds): (TcpListener, Bounds),
        registry: &mut Registry,
    ) -> (Incoming, AdminIncoming) {
        let listeners = [&self.grpc, &self.http].map(|side| side.as_ref().map(ServerSide::watched));
        let nodes = [self.nodes.as_ref().map(ClientSide::watched), self.secret.as_ref().map(SharedSecret::watched)];
        let watched = listeners.into_iter().chain(nodes).flatten().collect();
        let asks = self.http.as_ref().is_some_and(ServerSide::knows_clients);
        let grpc = Incoming::new(grpc, self.grpc, Protocol::Grpc, grpc_bounds);
        let http = Incoming::new(http, self.http, Protocol::Http, http_bounds);
        metrics::register(registry, watched, vec![("grpc", grpc.traffic()), ("http", http.traffic())]);
        (grpc, AdminIncoming::new(http, asks))
    }
}
