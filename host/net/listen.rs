//! A listener's side of TLS.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;

use crate::ListenerTls;
use crate::certificate::{authorities, pair, provider};
use crate::file::{Fields, FileError, Named};
use crate::reload::{Made, Reloaded, Watched};
use crate::watch::Snapshot;

/// What is spoken over a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, which is HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http,
}

impl Protocol {
    /// As TLS negotiates it.
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Grpc => vec![b"h2".to_vec()],
            Self::Http => vec![b"http/1.1".to_vec()],
        }
    }
}

/// The certificate that a listener shows and the authorities whose clients it takes, kept up with their files.
#[derive(Debug, Clone)]
pub struct ServerSide {
    files: Arc<Reloaded<Arc<ServerConfig>>>,
    knows_clients: bool,
}

impl ServerSide {
    /// Reads the files, and watches them from now on. Blocks: for the start of a process.
    ///
    /// With authorities for clients, a client of gRPC without a certificate of theirs is refused. One of HTTP may come
    /// without, and it is for the server to say what it shows to it: probes have no certificate to show.
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

    /// What a new connection is greeted with.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.current().value)
    }

    /// Whether clients are asked for a certificate.
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
