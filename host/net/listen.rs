//! The server side of TLS.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;

use crate::ListenerTls;
use crate::certificate::{authorities, pair, provider};
use crate::file::{Fields, FileError, Named};
use crate::reload::{Made, Reloaded, Watched};
use crate::watch::Snapshot;

/// The protocol spoken over a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, which is HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http,
}

impl Protocol {
    /// Its name in TLS's protocol negotiation (ALPN).
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Grpc => vec![b"h2".to_vec()],
            Self::Http => vec![b"http/1.1".to_vec()],
        }
    }
}

/// A listener's certificate and the authorities of its clients, reloaded when their files change.
#[derive(Debug, Clone)]
pub struct ServerSide {
    files: Arc<Reloaded<Arc<ServerConfig>>>,
    knows_clients: bool,
}

impl ServerSide {
    /// Reads the files and starts watching them. Blocks: for the start of a process.
    ///
    /// If authorities for clients are set, a gRPC client without a certificate signed by one of them is refused. An HTTP client
    /// is accepted without a certificate, because probes have none; the server decides what it serves to such clients.
    pub fn open(tls: &ListenerTls, fields: Fields, protocol: Protocol) -> Result<Self, FileError> {
        let cert = Named::new(fields.cert, &tls.cert_file);
        let key = Named::new(fields.key, &tls.key_file);
        let clients = tls.client_ca_file.as_ref().map(|path| Named::new(fields.ca, path));
        let files = [Some(&cert), Some(&key), clients.as_ref()];
        let paths = files.into_iter().flatten().map(|file| file.path.clone()).collect();
        let make = move |snapshot: &Snapshot| server_config(snapshot, &cert, &key, clients.as_ref(), protocol);
        let files = Reloaded::open("certificates of a listener", paths, make)?;
        Ok(Self { files, knows_clients: tls.client_ca_file.is_some() })
    }

    /// The TLS configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.current().value)
    }

    /// Whether clients are asked for a certificate in the handshake.
    pub fn knows_clients(&self) -> bool {
        self.knows_clients
    }

    /// For metrics.
    pub fn watched(&self) -> Arc<dyn Watched> {
        Arc::clone(&self.files) as Arc<dyn Watched>
    }
}

fn server_config(
    snapshot: &Snapshot,
    cert: &Named,
    key: &Named,
    clients: Option<&Named>,
    protocol: Protocol,
) -> Result<Made<Arc<ServerConfig>>, FileError> {
    let (certified, expiry) = pair(snapshot, cert, key)?;
    let unusable = |file: &Named, why: String| FileError::Unusable { file: file.clone(), why };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(cert, error.to_string()))?;
    let builder = match clients {
        Some(file) => {
            let roots = Arc::new(authorities(snapshot, file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match protocol {
                Protocol::Grpc => verifier,
                Protocol::Http => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(file, error.to_string()))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = protocol.alpn();
    Ok(Made { value: Arc::new(config), expiries: vec![expiry] })
}
