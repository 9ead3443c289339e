//! The client side of TLS, and a connector for tonic that uses it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ClientTls;
use crate::certificate::{Expiry, authorities, pair, provider, system_authorities, system_bundle};
use crate::file::{Fields, FileError, Named};
use crate::reload::{Made, Reloaded, Watched};
use crate::watch::Snapshot;

/// A client's trusted authorities and its own certificate, reloaded when their files change.
#[derive(Debug, Clone)]
pub struct ClientSide {
    files: Arc<Reloaded<Arc<ClientConfig>>>,
    server_name: Option<ServerName<'static>>,
}

/// The files that a [`ClientSide`] is made from.
struct Sources {
    authorities: Named,
    /// Whether the authorities are the operating system's.
    system: bool,
    own: Option<(Named, Named)>,
}

impl ClientSide {
    /// Reads the files and starts watching them. Blocks: for the start of a process.
    pub fn open(tls: &ClientTls, fields: Fields) -> Result<Self, FileError> {
        let sources = Sources::of(tls, fields)?;
        let server_name = tls.server_name.as_deref().map(|name| {
            let named = ServerName::try_from(name.to_owned());
            named.map_err(|error| FileError::Unusable {
                file: Named::new(fields.ca, PathBuf::new()),
                why: format!("the server's name {name:?}: {error}"),
            })
        });
        let server_name = server_name.transpose()?;
        let own = sources.own.iter().flat_map(|(cert, key)| [cert, key]);
        let paths = std::iter::once(&sources.authorities).chain(own).map(|file| file.path.clone()).collect();
        let make = move |snapshot: &Snapshot| client_config(snapshot, &sources);
        let files = Reloaded::open("certificates of a client", paths, make)?;
        Ok(Self { files, server_name })
    }

    /// The TLS configuration for a new connection.
    pub fn current(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.files.current().value)
    }

    /// For metrics.
    pub fn watched(&self) -> Arc<dyn Watched> {
        Arc::clone(&self.files) as Arc<dyn Watched>
    }

    /// Performs the TLS handshake with `host` over a connection to it.
    pub async fn secure(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        TlsConnector::from(self.current()).connect(name, tcp).await
    }
}

impl Sources {
    fn of(tls: &ClientTls, fields: Fields) -> Result<Self, FileError> {
        let own = match (&tls.cert_file, &tls.key_file) {
            (Some(cert), Some(key)) => Some((Named::new(fields.cert, cert), Named::new(fields.key, key))),
            (Some(_), None) => return Err(FileError::Alone { given: fields.cert, missing: fields.key }),
            (None, Some(_)) => return Err(FileError::Alone { given: fields.key, missing: fields.cert }),
            (None, None) => None,
        };
        let system = tls.ca_file.is_none();
        let path = tls.ca_file.clone().or_else(system_bundle).ok_or_else(|| FileError::Unusable {
            file: Named::new(fields.ca, PathBuf::new()),
            why: "is not set, and no file with the operating system's certificate authorities was found; set it"
                .to_owned(),
        })?;
        Ok(Self { authorities: Named::new(fields.ca, path), system, own })
    }
}

fn client_config(snapshot: &Snapshot, sources: &Sources) -> Result<Made<Arc<ClientConfig>>, FileError> {
    let file = &sources.authorities;
    let roots = match sources.system {
        true => system_authorities(snapshot, file)?,
        false => authorities(snapshot, file)?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| FileError::Unusable { file: file.clone(), why: error.to_string() })?
        .with_root_certificates(roots);
    let mut expiries: Vec<Expiry> = Vec::new();
    let mut config = match &sources.own {
        Some((cert, key)) => {
            let (certified, expiry) = pair(snapshot, cert, key)?;
            expiries.push(expiry);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Made { value: Arc::new(config), expiries })
}

/// Makes TLS connections, for tonic's `Endpoint::connect_with_connector`. Dials the endpoint's address and ignores its scheme.
#[derive(Debug, Clone)]
pub struct Connector(ClientSide);

impl Connector {
    /// A connector that uses this client side.
    pub fn new(side: ClientSide) -> Self {
        Self(side)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let side = self.0.clone();
        Box::pin(async move { dial(&side, &uri).await.map(TokioIo::new) })
    }
}

async fn dial(side: &ClientSide, uri: &Uri) -> io::Result<TlsStream<TcpStream>> {
    let host = uri.host().ok_or_else(|| io::Error::other(format!("{uri} names no host")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    tcp.set_nodelay(true)?;
    side.secure(host, tcp).await.map_err(|error| explained(host, error))
}

/// A failed handshake, with a remedy.
fn explained(host: &str, error: io::Error) -> io::Error {
    match explain(&error) {
        Some(why) => io::Error::new(error.kind(), format!("TLS with {host}: {why}")),
        None => error,
    }
}

/// The cause and the remedy, if an error was caused by TLS. In TLS 1.3 a client learns that the server refused its certificate only
/// from the first response, as a nested source of that response's error.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref::<rustls::Error>();
        if let Some(tls) = tls.or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>())) {
            return Some(remedy(tls));
        }
        // h2 keeps only the text of a connection error.
        if let Some(alert) = error.to_string().strip_prefix(ALERT) {
            return Some(refused(alert));
        }
        next = error.source();
    }
    None
}

/// How rustls starts the text of an alert that the peer sent.
const ALERT: &str = "received fatal alert: ";

fn refused(alert: &str) -> String {
    format!("it refuses this side's certificate, or requires one, or no protocol version is in common ({alert})")
}

fn remedy(error: &rustls::Error) -> String {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer};
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    let text = match error {
        InvalidCertificate(UnknownIssuer) => {
            "its certificate is signed by an authority that is not trusted here; set the file of its authority"
        }
        InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another name; connect to that name, or set it as the server name"
        }
        InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "its certificate has expired; renew it (and check this machine's clock)"
        }
        InvalidMessage(_) => "the server does not speak TLS; is it served without TLS?",
        AlertReceived(alert) => return refused(&format!("{alert:?}")),
        other => return other.to_string(),
    };
    text.to_owned()
}
