//! Certificates from files, over real sockets: what is refused and how, what is accepted, and what happens when files change
//! or clients send nothing.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use witan_net::{Bounds, ClientSide, ClientTls, Fields, Incoming, ListenerTls, Protocol, ServerSide, explain, metrics};
use witan_servers::{Authority, Pair};

/// Longest wait for anything that must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

const GREETING: &[u8] = b"GET / HTTP/1.1\r\n";

fn listener(pair: &Pair, clients: Option<&Authority>) -> ListenerTls {
    ListenerTls {
        cert_file: pair.cert.clone(),
        key_file: pair.key.clone(),
        client_ca_file: clients.map(Authority::file),
    }
}

fn client(server: &Authority, own: Option<&Pair>) -> ClientTls {
    ClientTls {
        ca_file: Some(server.file()),
        cert_file: own.map(|pair| pair.cert.clone()),
        key_file: own.map(|pair| pair.key.clone()),
        server_name: None,
    }
}

fn open(tls: &ListenerTls) -> Result<ServerSide, String> {
    ServerSide::open(tls, Fields::LISTENERS, Protocol::Grpc).map_err(|error| error.to_string())
}

/// A server that echoes each connection, preceded by the names in the client's certificate.
struct Echo {
    address: SocketAddr,
    registry: Registry,
    serving: JoinHandle<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Echo {
    async fn start(tls: Option<ServerSide>, bounds: Bounds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let watched = tls.iter().map(ServerSide::watched).collect();
        let mut incoming = Incoming::new(listener, tls, Protocol::Http, bounds);
        let mut registry = Registry::default();
        metrics::register(&mut registry, watched, vec![("here", incoming.traffic())]);
        let serving = tokio::spawn(async move {
            loop {
                let mut connection = incoming.next().await;
                tokio::spawn(async move {
                    let names = connection.peer().identity.as_ref().map(|who| who.names.join(",")).unwrap_or_default();
                    let (mut words, mut first) = ([0; 64], true);
                    while let Ok(count @ 1..) = connection.read(&mut words).await {
                        if std::mem::take(&mut first) {
                            connection.write_all(names.as_bytes()).await.unwrap();
                        }
                        connection.write_all(&words[..count]).await.unwrap();
                        connection.flush().await.unwrap();
                    }
                });
            }
        });
        Self { address, registry, serving }
    }

    async fn secure(tls: &ListenerTls) -> Self {
        Self::start(Some(open(tls).unwrap()), Bounds::default()).await
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Waits until the metrics hold a line.
    async fn shows(&self, line: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.metrics().lines().any(|found| found == line) {
            assert!(Instant::now() < until, "{line} is not in\n{}", self.metrics());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn dial(address: SocketAddr, side: &ClientSide) -> io::Result<TlsStream<TcpStream>> {
    side.secure("127.0.0.1", TcpStream::connect(address).await?).await
}

/// What comes back to a greeting, as much as is expected or until the end.
async fn greet(stream: &mut TlsStream<TcpStream>, names: &str) -> io::Result<String> {
    stream.write_all(GREETING).await?;
    stream.flush().await?;
    let mut words = vec![0; names.len() + GREETING.len()];
    stream.read_exact(&mut words).await?;
    Ok(String::from_utf8(words).unwrap())
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(path: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

#[test]
fn files_that_cannot_be_used_are_refused_with_setting_file_and_remedy() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let (good, other) = (authority.issue("good", &["localhost"]), authority.issue("other", &["localhost"]));
    let expired = authority.issue_until("expired", &["localhost"], 2020);
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (text, cut_off) = (file("text", "hello"), file("cut-off", "-----BEGIN CERTIFICATE-----\nMII\n"));
    let large = file("large", &"x".repeat(2 << 20));
    let missing = folder.path().join("missing");
    let with = |cert: &PathBuf, key: &PathBuf, ca: Option<&PathBuf>| {
        let tls = ListenerTls { cert_file: cert.clone(), key_file: key.clone(), client_ca_file: ca.cloned() };
        open(&tls).unwrap_err()
    };
    let folder_path = folder.path().to_path_buf();
    let (cert, key, ca) = (Fields::LISTENERS.cert, Fields::LISTENERS.key, Fields::LISTENERS.ca);
    let cases: [(String, [&str; 3]); 12] = [
        (with(&missing, &good.key, None), [cert, "missing", "set the path of a file that exists"]),
        (with(&good.cert, &missing, None), [key, "missing", "set the path of a file that exists"]),
        (with(&good.cert, &good.key, Some(&missing)), [ca, "missing", "set the path of a file that exists"]),
        (with(&folder_path, &good.key, None), [cert, "is a folder", "set the path of a file"]),
        (with(&large, &good.key, None), [cert, "large", "is larger than"]),
        (with(&text, &good.key, None), [cert, "text", "-----BEGIN CERTIFICATE-----"]),
        (with(&cut_off, &good.key, None), [cert, "cut-off", "damaged"]),
        (with(&good.key, &good.key, None), [cert, "good.key", "-----BEGIN CERTIFICATE-----"]),
        (with(&good.cert, &good.cert, None), [key, "good.pem", "-----BEGIN PRIVATE KEY-----"]),
        (with(&good.cert, &other.key, None), [key, "other.key", cert]),
        (with(&expired.cert, &expired.key, None), [cert, "expired", "days ago; renew it"]),
        (with(&good.cert, &good.key, Some(&text)), [ca, "text", "-----BEGIN CERTIFICATE-----"]),
    ];
    for (refused, parts) in cases {
        for part in parts {
            assert!(refused.contains(part), "{part:?} is not in: {refused}");
        }
        assert!(!refused.contains("MIG") && !refused.contains("PRIVATE KEY-----\n"), "a key is shown: {refused}");
    }
    let half = ClientTls { cert_file: Some(good.cert), ..client(&authority, None) };
    let refused = ClientSide::open(&half, Fields::CLIENT_FLAGS).unwrap_err().to_string();
    assert!(refused.contains("--client-cert-file") && refused.contains("--client-key-file"), "{refused}");
}

#[tokio::test]
async fn each_side_knows_the_other() {
    let folder = TempDir::new().unwrap();
    let (ours, others) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "others"));
    let server = ours.issue("server", &["127.0.0.1", "localhost"]);
    let echo = Echo::secure(&listener(&server, None)).await;
    let plain = ClientSide::open(&client(&ours, None), Fields::CLIENT_FLAGS).unwrap();
    assert_eq!(greet(&mut dial(echo.address, &plain).await.unwrap(), "").await.unwrap().as_bytes(), GREETING);

    // A server whose certificate is not trusted, or is for another name.
    let distrustful = ClientSide::open(&client(&others, None), Fields::CLIENT_FLAGS).unwrap();
    let refused = dial(echo.address, &distrustful).await.unwrap_err().to_string();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let elsewhere = ClientTls { server_name: Some("elsewhere".to_owned()), ..client(&ours, None) };
    let elsewhere = ClientSide::open(&elsewhere, Fields::CLIENT_FLAGS).unwrap();
    assert!(dial(echo.address, &elsewhere).await.is_err());
    let named = ClientTls { server_name: Some("localhost".to_owned()), ..client(&ours, None) };
    dial(echo.address, &ClientSide::open(&named, Fields::CLIENT_FLAGS).unwrap()).await.unwrap();
}

/// A file of `tests/files`, which the library for certificates cannot make.
fn made_elsewhere(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name)
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let good = authority.issue("good", &["localhost"]);
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (pem, key, ca) =
        (fs::read(&good.cert).unwrap(), fs::read(&good.key).unwrap(), fs::read(authority.file()).unwrap());
    let with = |cert: &Path, key: &Path| {
        let tls = ListenerTls { cert_file: cert.to_owned(), key_file: key.to_owned(), client_ca_file: None };
        open(&tls).err().unwrap_or_default()
    };
    let mark = b"\xef\xbb\xbf";
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(pem.iter().flat_map(|byte| [*byte, 0])).collect();
    let marked_chain = file("marked-chain", &[&mark[..], &pem, &ca].concat());
    let turned = file("turned", &[&ca[..], &pem].concat());
    let (p521, p521_key) = (made_elsewhere("p521.pem"), made_elsewhere("p521.key"));
    let (old, new) = (made_elsewhere("encrypted-old.key"), made_elsewhere("encrypted.key"));
    for (refused, part) in [
        (with(&file("marked", &[&mark[..], &pem].concat()), &good.key), "byte order mark"),
        // The first certificate would be skipped, and the key would not fit the second.
        (with(&marked_chain, &good.key), "byte order mark"),
        (with(&good.cert, &file("marked-key", &[&mark[..], &key].concat())), "byte order mark"),
        (with(&file("wide", &wide), &good.key), "UTF-16"),
        (with(&file("binary", &der(&good.cert)), &good.key), "-inform DER"),
        (with(&turned, &good.key), "belongs to certificate 2 of this file: put that one first"),
        (with(&p521, &p521_key), "P-521, which is not supported; use a key on P-256"),
        (with(&good.cert, &old), "it is encrypted"),
        (with(&good.cert, &new), "openssl pkey"),
    ] {
        assert!(refused.contains(part), "{part:?} is not in: {refused}");
    }
    let trusts =
        |ca: PathBuf| ClientSide::open(&ClientTls { ca_file: Some(ca), ..ClientTls::default() }, Fields::NODES);
    let refused = trusts(p521.clone()).unwrap_err().to_string();
    assert!(refused.contains("P-521"), "{refused}");
    let both = file("both", &[&ca[..], &fs::read(p521).unwrap()].concat());
    trusts(both).expect("the other authority can be used");
    // A chain in order, and one that clients can put in order themselves.
    assert_eq!(with(&file("chain", &[&pem[..], &ca].concat()), &good.key), "");
    let other = Authority::new(folder.path(), "other");
    assert_eq!(with(&file("gap", &[&pem[..], &fs::read(other.file()).unwrap()].concat()), &good.key), "");
}

/// A client that sends an expired certificate; ours would refuse to start with one.
async fn shameless(address: SocketAddr, server: &Authority, own: &Pair) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.file()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&own.cert).unwrap()],
            PrivateKeyDer::from_pem_file(&own.key).unwrap(),
        )
        .unwrap();
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    greet(&mut TlsConnector::from(Arc::new(config)).connect(name, tcp).await?, "shameless").await
}

#[tokio::test]
async fn clients_are_known_by_their_certificates_or_refused() {
    let folder = TempDir::new().unwrap();
    let (ours, others) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "others"));
    let server = ours.issue("server", &["127.0.0.1"]);
    // As with gRPC, a certificate is required.
    let echo = Echo::secure(&listener(&server, Some(&ours))).await;
    let coordinator = ours.issue("coordinator", &["coordinator-1.example", "10.0.0.1"]);
    let side = ClientSide::open(&client(&ours, Some(&coordinator)), Fields::NODES).unwrap();
    let echoed = greet(&mut dial(echo.address, &side).await.unwrap(), "coordinator-1.example").await.unwrap();
    assert!(echoed.starts_with("coordinator-1.example"), "{echoed}");
    let nameless = ours.issue("nameless", &["10.0.0.1"]);
    let side = ClientSide::open(&client(&ours, Some(&nameless)), Fields::NODES).unwrap();
    let echoed = greet(&mut dial(echo.address, &side).await.unwrap(), "nameless").await.unwrap();
    assert!(echoed.starts_with("nameless"), "the common name: {echoed}");

    // In TLS 1.3 the client finishes its handshake before the server has checked its certificate; the first read fails then.
    let without = ClientSide::open(&client(&ours, None), Fields::NODES).unwrap();
    let refused = async |side: ClientSide| match dial(echo.address, &side).await {
        Ok(mut stream) => greet(&mut stream, "").await.unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(refused(without).await.contains("CertificateRequired"));
    // The cause is found in nested errors, and also where only its text is kept.
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
    for error in [io::Error::other(alert.to_string()), io::Error::other(alert)] {
        let why = explain(&tonic::Status::from_error(Box::new(error))).expect("explained");
        assert!(why.contains("refuses this side's certificate") && why.contains("UnknownCA"), "{why}");
    }
    assert_eq!(explain(&io::Error::other("something else")), None);
    let stranger = others.issue("stranger", &["coordinator-1.example"]);
    let stranger = ClientSide::open(&client(&ours, Some(&stranger)), Fields::NODES).unwrap();
    assert!(!refused(stranger).await.is_empty());
    let late = ours.issue_until("late", &["coordinator-1.example"], 2020);
    let refused = shameless(echo.address, &ours, &late).await.unwrap_err().to_string();
    assert!(refused.contains("CertificateExpired"), "{refused}");
    echo.shows(r#"witan_connections_closed_total{listener="here",reason="handshake"} 3"#).await;
}

#[tokio::test]
async fn new_certificates_are_shown_and_broken_ones_are_not() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let first = authority.issue("server", &["127.0.0.1"]);
    let first_der = der(&first.cert);
    let echo = Echo::secure(&listener(&first, None)).await;
    let side = ClientSide::open(&client(&authority, None), Fields::CLIENT_FLAGS).unwrap();
    let mut before = dial(echo.address, &side).await.unwrap();
    greet(&mut before, "").await.unwrap();
    assert_eq!(shown(&before), first_der);

    let second = der(&authority.issue("server", &["127.0.0.1"]).cert);
    echo.shows(r#"witan_certificate_reloads_total{result="ok"} 1"#).await;
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), second);
    greet(&mut before, "").await.expect("an open connection stays open");

    fs::write(&first.key, "no key at all").unwrap();
    echo.shows(r#"witan_certificate_reloads_total{result="failed"} 1"#).await;
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), second);
    fs::remove_file(&first.cert).unwrap();
    echo.shows(r#"witan_certificate_reloads_total{result="failed"} 2"#).await;
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), second);

    let third = der(&authority.issue("server", &["127.0.0.1"]).cert);
    echo.shows(r#"witan_certificate_reloads_total{result="ok"} 2"#).await;
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), third);
    let expiry = format!("witan_certificate_expiry_seconds{{file=\"{}\"}} ", first.cert.display());
    let metrics = echo.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&expiry)).expect("the certificate's expiry");
    assert!(line.parse::<i64>().unwrap() > 365 * 86_400, "{line}");
}

#[tokio::test]
async fn a_mounted_volume_swaps_a_link() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let mounted = folder.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    let version = |name: &str| {
        let version = mounted.join(format!("..{name}"));
        fs::create_dir(&version).unwrap();
        let pair = authority.issue(name, &["127.0.0.1"]);
        fs::copy(&pair.cert, version.join("tls.crt")).unwrap();
        fs::copy(&pair.key, version.join("tls.key")).unwrap();
        std::os::unix::fs::symlink(format!("..{name}"), mounted.join("..data_tmp")).unwrap();
        fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
        der(&pair.cert)
    };
    let first = version("one");
    let pair = Pair { cert: mounted.join("tls.crt"), key: mounted.join("tls.key") };
    std::os::unix::fs::symlink("..data/tls.crt", &pair.cert).unwrap();
    std::os::unix::fs::symlink("..data/tls.key", &pair.key).unwrap();
    let echo = Echo::secure(&listener(&pair, None)).await;
    let side = ClientSide::open(&client(&authority, None), Fields::CLIENT_FLAGS).unwrap();
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), first);
    let second = version("two");
    echo.shows(r#"witan_certificate_reloads_total{result="ok"} 1"#).await;
    assert_eq!(shown(&dial(echo.address, &side).await.unwrap()), second);
}

#[tokio::test]
async fn who_says_nothing_is_closed_and_nobody_waits_for_it() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let pair = authority.issue("server", &["127.0.0.1"]);
    let bounds = Bounds { greeting: Duration::from_millis(300), ..Bounds::default() };
    let side = ClientSide::open(&client(&authority, None), Fields::CLIENT_FLAGS).unwrap();
    let echo = Echo::start(Some(open(&listener(&pair, None)).unwrap()), bounds.clone()).await;
    // Silent before the handshake, during it, and after it.
    let mut silent = TcpStream::connect(echo.address).await.unwrap();
    let mut stuck = TcpStream::connect(echo.address).await.unwrap();
    stuck.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut mute = dial(echo.address, &side).await.unwrap();
    greet(&mut dial(echo.address, &side).await.unwrap(), "").await.expect("others are served meanwhile");
    let mut words = Vec::new();
    silent.read_to_end(&mut words).await.unwrap();
    stuck.read_to_end(&mut words).await.unwrap();
    // With or without a TLS close notification.
    drop(mute.read_to_end(&mut words).await);
    echo.shows(r#"witan_connections_closed_total{listener="here",reason="silent"} 1"#).await;
    echo.shows(r#"witan_connections{listener="here"} 0"#).await;

    let echo = Echo::start(None, bounds).await;
    let mut slow = TcpStream::connect(echo.address).await.unwrap();
    slow.write_all(b"GET").await.unwrap();
    words.clear();
    // A client that sends a part of a request and stops is closed as well.
    drop(slow.read_to_end(&mut words).await);
    echo.shows(r#"witan_connections_closed_total{listener="here",reason="silent"} 1"#).await;
}

#[tokio::test]
async fn there_are_only_so_many() {
    let bounds = Bounds { connections: 3, of_address: 0, greeting: PATIENCE, ..Bounds::default() };
    let echo = Echo::start(None, bounds).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(echo.address).await.unwrap();
        stream.write_all(GREETING).await.unwrap();
        stream.read_exact(&mut [0; GREETING.len()]).await.unwrap();
        open.push(stream);
    }
    let mut fourth = TcpStream::connect(echo.address).await.unwrap();
    assert!(matches!(fourth.read(&mut [0; 1]).await, Ok(0) | Err(_)), "closed at once");
    echo.shows(r#"witan_connections_closed_total{listener="here",reason="full"} 1"#).await;
    open.pop();
    echo.shows(r#"witan_connections{listener="here"} 2"#).await;
    let mut fifth = TcpStream::connect(echo.address).await.unwrap();
    fifth.write_all(GREETING).await.unwrap();
    fifth.read_exact(&mut [0; GREETING.len()]).await.unwrap();
}
