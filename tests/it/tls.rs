//! TLS on every connection, as operators set it up: coordinators by configuration file, nodes by flags, clients on the command line.
//! Certificates are rotated under load, and unauthorized peers are refused with a reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use witan_net::{ClientSide, ClientTls, Connector, Fields};
use witan_servers::{Authority, Pair};
use witan_wire::v1;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;

use crate::harness::{PATIENCE, Process, eventually, own_address, read, write};

const NODES: usize = 3;
/// The name in every server certificate; addresses vary.
const NAME: &str = "witan.test";

/// How nodes authenticate coordinators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    ByCertificate,
    BySecret,
}

/// A cluster with TLS on all connections.
struct Company {
    // Dropped first, so that no process outlives its folder.
    coordinator: Option<Process>,
    nodes: Vec<Process>,
    servers: Authority,
    coordinators: Authority,
    folder: TempDir,
    known: Known,
}

impl Company {
    async fn start(known: Known) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        // Clients and nodes trust different authorities: a client's certificate is refused by nodes.
        let servers = Authority::new(folder.path(), "servers");
        let coordinators = Authority::new(folder.path(), "coordinators");
        servers.issue("coordinator", &[NAME]);
        servers.issue("node", &[NAME]);
        coordinators.issue("as-coordinator", &["coordinator-1"]);
        std::fs::write(folder.path().join("secret"), "the secret of these tests\n".replace(' ', "-")).expect("write");
        let mut company = Self { coordinator: None, nodes: Vec::new(), servers, coordinators, folder, known };
        for number in 1..=NODES {
            company.start_node(number).await;
        }
        company.start_coordinator("coordinator-1", "as-coordinator", "secret").await;
        company
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn start_node(&mut self, number: usize) {
        let id = format!("node-{number}");
        let mut command = Process::witan();
        command.args(["node", "--id", &id, "--durability", "os", "--listen"]);
        command.arg(SocketAddr::new(own_address(), 0).to_string()).arg("--data-dir").arg(self.path(&id));
        command.arg("--tls-cert-file").arg(self.path("node.pem")).arg("--tls-key-file").arg(self.path("node.key"));
        match self.known {
            Known::ByCertificate => command.arg("--tls-client-ca-file").arg(self.coordinators.file()),
            Known::BySecret => command.arg("--shared-secret-file").arg(self.path("secret")),
        };
        let mut process = Process::start(&id, command, self.folder.path());
        process.ready().await;
        self.nodes.push(process);
    }

    /// Starts a coordinator with this certificate and this secret for nodes. It serves when this returns, whether it reaches them or
    /// not.
    async fn start_coordinator(&mut self, id: &str, certificate: &str, secret: &str) {
        let file = |name: &str| self.path(name).display().to_string();
        let own = match self.known {
            Known::ByCertificate => {
                let (cert, key) = (file(&format!("{certificate}.pem")), file(&format!("{certificate}.key")));
                format!("      cert_file: {cert}\n      key_file: {key}\n")
            }
            Known::BySecret => format!("    shared_secret_file: {}\n", file(secret)),
        };
        let config = format!(
            "security:\n  tls:\n    cert_file: {}\n    key_file: {}\n  nodes:\n    tls:\n      ca_file: {}\n      \
             server_name: {NAME}\n{own}",
            file("coordinator.pem"),
            file("coordinator.key"),
            self.servers.file().display(),
        );
        std::fs::write(self.path(&format!("{id}.yaml")), config).expect("write a configuration");
        let free = SocketAddr::new(own_address(), 0).to_string();
        let mut command = Process::witan();
        command.arg("serve").arg("--config").arg(self.path(&format!("{id}.yaml"))).arg("--data-dir").arg(self.path(id));
        command.args(["--node-id", id, "--durability", "os", "--listen", &free, "--admin-listen", &free]);
        for node in &self.nodes {
            command.arg("--node").arg(format!("{}={}", node.fact("node"), node.address("address")));
        }
        let mut process = Process::start(id, command, self.folder.path());
        process.ready().await;
        self.coordinator = Some(process);
    }

    fn process(&self) -> &Process {
        self.coordinator.as_ref().expect("the coordinator runs")
    }

    /// TLS settings of a client.
    fn client_side(&self) -> ClientSide {
        let tls =
            ClientTls { ca_file: Some(self.servers.file()), server_name: Some(NAME.into()), ..ClientTls::default() };
        ClientSide::open(&tls, Fields::CLIENT_FLAGS).expect("files of a client")
    }

    /// A client with its own connection.
    async fn client(&self, side: &ClientSide) -> CoordinatorServiceClient<Channel> {
        dial(self.process().address("address"), side).await.expect("connect")
    }

    async fn all_reachable(&self, client: &mut CoordinatorServiceClient<Channel>) {
        eventually("the coordinator reaches every node", async || {
            let listed = client.list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
            (listed.nodes.len() == NODES && listed.nodes.iter().all(|node| node.reachable)).then_some(())
        })
        .await;
    }

    /// Runs `witan` as a client.
    async fn command(&self, endpoint: &str, arguments: &[&str], tls: Flags<'_>) -> Output {
        let mut command = Process::witan();
        command.args(["--endpoint", endpoint, "--timeout", "60s"]).args(arguments);
        for (flag, path) in tls {
            command.arg(flag).arg(path);
        }
        let ran = tokio::task::spawn_blocking(move || command.output().expect("run witan"));
        ran.await.expect("it ends")
    }
}

/// Flags of a client, with their values.
type Flags<'a> = &'a [(&'a str, &'a Path)];

async fn dial(
    address: SocketAddr,
    side: &ClientSide,
) -> Result<CoordinatorServiceClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(PATIENCE);
    Ok(CoordinatorServiceClient::new(endpoint.connect_with_connector(Connector::new(side.clone())).await?))
}

/// The certificate that a server presents to a new connection.
async fn shown(address: SocketAddr, side: &ClientSide) -> Vec<u8> {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let tls = side.secure(NAME, tcp).await.expect("a handshake");
    tls.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_file(&pair.cert).expect("a certificate").to_vec()
}

/// The response to a path over HTTPS, for a client with this certificate.
async fn get(address: SocketAddr, authority: &Authority, own: Option<&Pair>, path: &str) -> (u16, String) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file()).expect("an authority")).expect("of use");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match own {
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
            let chain = vec![CertificateDer::from_pem_file(&pair.cert).expect("a certificate")];
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(address).await.expect("connect");
    let name = ServerName::try_from(NAME).expect("a name");
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.expect("ask");
    let mut response = Vec::new();
    // The server may close without a TLS goodbye.
    drop(tls.read_to_end(&mut response).await);
    let response = String::from_utf8(response).expect("text");
    let status = response.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, response)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_works_over_tls_or_says_why_not() {
    let mut company = Company::start(Known::ByCertificate).await;
    let mut client = company.client(&company.client_side()).await;
    company.all_reachable(&mut client).await;
    let (ca, name) = (company.servers.file(), PathBuf::from(NAME));
    let trusting: [(&str, &Path); 2] = [("--ca-file", &ca), ("--server-name", &name)];
    let address = company.process().address("address");
    let (https, http) = (format!("https://{address}"), format!("http://{address}"));
    for arguments in [
        &["tenant", "create", "t"][..],
        &["kv", "put", "-t", "t", "k", "v"],
        &["kv", "get", "-t", "t", "k"],
        &["bench", "-t", "t", "--operations", "100", "--quiet"],
        &["bench", "-t", "t", "--operations", "100", "--quiet", "--mode", "session"],
    ] {
        let output = company.command(&https, arguments, &trusting).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    let get = ["kv", "get", "-t", "t", "k"];
    let stranger = Authority::new(company.folder.path(), "stranger").file();
    let missing = company.path("missing");
    let refused: [(&str, Flags<'_>, &str); 5] = [
        (&https, &[("--ca-file", &stranger), ("--server-name", &name)], "set the file of its authority"),
        (&https, &[("--ca-file", &ca)], "set it as the server name"),
        (&https, &[("--ca-file", &missing)], "set the path of a file that exists"),
        (&http, &[("--ca-file", &ca)], "https://"),
        (&http, &[], "error"),
    ];
    for (endpoint, tls, part) in refused {
        let output = company.command(endpoint, &get, tls).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(part), "{part:?} is not in: {errors}");
    }

    let admin = company.process().address("admin");
    for path in ["/livez", "/readyz", "/metrics"] {
        let (status, body) = self::get(admin, &company.servers, None, path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    // A coordinator whose certificate the nodes' authority has not signed reaches no node, and reports that.
    company.servers.issue("impostor", &["coordinator-1"]);
    company.start_coordinator("coordinator-2", "impostor", "secret").await;
    let mut client = company.client(&company.client_side()).await;
    let listed = client.list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("answered").into_inner();
    assert!(listed.nodes.len() == NODES && listed.nodes.iter().all(|node| !node.reachable), "{listed:?}");
    eventually("the log says why", async || {
        company.process().tail().contains("refuses this side's certificate").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_clients_with_a_certificate_where_clients_have_one() {
    let mut company = Company::start(Known::BySecret).await;
    let config = std::fs::read_to_string(company.path("coordinator-1.yaml")).expect("its configuration");
    let ca = format!("  tls:\n    client_ca_file: {}\n    cert_file", company.coordinators.file().display());
    std::fs::write(company.path("strict.yaml"), config.replacen("  tls:\n    cert_file", &ca, 1)).expect("write");
    let free = SocketAddr::new(own_address(), 0).to_string();
    let mut command = Process::witan();
    command.arg("serve").arg("--config").arg(company.path("strict.yaml")).args(["--node-id", "strict"]);
    command.arg("--data-dir").arg(company.path("strict")).args(["--listen", &free, "--admin-listen", &free]);
    let mut process = Process::start("strict", command, company.folder.path());
    process.ready().await;
    let (address, admin) = (process.address("address"), process.address("admin"));
    let own = company.coordinators.issue("person", &["somebody"]);
    assert_eq!(get(admin, &company.servers, None, "/livez").await.0, 200);
    assert_eq!(get(admin, &company.servers, None, "/metrics").await.0, 403);
    let (status, metrics) = get(admin, &company.servers, Some(&own), "/metrics").await;
    assert_eq!(status, 200);
    for metric in ["witan_certificate_expiry_seconds{file=", "witan_connections{listener=\"grpc\"}"] {
        assert!(metrics.contains(metric), "{metric} is not in {metrics}");
    }
    // gRPC requires it during the handshake.
    let list = async |tls: &ClientTls| {
        let side = ClientSide::open(tls, Fields::CLIENT_FLAGS).expect("files");
        let mut client = dial(address, &side).await.map_err(|error| format!("{error:?}"))?;
        client.list_storage_nodes(v1::ListStorageNodesRequest {}).await.map_err(|status| format!("{status:?}"))
    };
    let without =
        ClientTls { ca_file: Some(company.servers.file()), server_name: Some(NAME.into()), ..ClientTls::default() };
    list(&without).await.expect_err("no certificate");
    let with = ClientTls { cert_file: Some(own.cert.clone()), key_file: Some(own.key.clone()), ..without };
    list(&with).await.expect("a certificate");

    // Clients without one are not shown why it is not ready.
    company.nodes.clear();
    eventually("it is not ready", async || {
        (get(admin, &company.servers, Some(&own), "/readyz").await.0 == 503).then_some(())
    })
    .await;
    let (status, body) = get(admin, &company.servers, None, "/readyz").await;
    assert!(status == 503 && !body.contains("storage nodes"), "{body}");
    let (_, body) = get(admin, &company.servers, Some(&own), "/readyz").await;
    assert!(body.contains("storage nodes can be reached"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_take_the_secret_and_no_other() {
    let mut company = Company::start(Known::BySecret).await;
    let mut client = company.client(&company.client_side()).await;
    company.all_reachable(&mut client).await;
    let tenant = v1::CreateTenantRequest { tenant_id: "t".to_owned(), ..v1::CreateTenantRequest::default() };
    client.create_tenant(tenant).await.expect("a tenant");
    client.write_key_value(write("t", "k", "v")).await.expect("written");

    std::fs::write(company.path("wrong"), "not-the-secret-of-these-tests\n").expect("write");
    company.start_coordinator("coordinator-2", "as-coordinator", "wrong").await;
    let mut client = company.client(&company.client_side()).await;
    let listed = client.list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("answered").into_inner();
    assert!(listed.nodes.len() == NODES && listed.nodes.iter().all(|node| !node.reachable), "{listed:?}");
    eventually("the log says why", async || company.process().tail().contains("shared_secret_file").then_some(()))
        .await;
    // It is read again when it changes, without a restart.
    std::fs::copy(company.path("secret"), company.path("wrong")).expect("copy");
    company.all_reachable(&mut client).await;
}

#[tokio::test]
async fn a_node_beyond_loopback_knows_its_coordinators() {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut command = Process::witan();
    command.args(["node", "--id", "n", "--listen", "0.0.0.0:0"]).arg("--data-dir").arg(folder.path());
    let output = tokio::task::spawn_blocking(move || command.output().expect("run witan")).await.expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("--allow-anonymous") && errors.contains("0.0.0.0:0"),
        "{errors}"
    );
}

/// Clients that run while certificates change. None of their calls may fail.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    working: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// One client with a persistent connection, and one with a new connection for each call.
    async fn start(company: &Company, side: &ClientSide) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = company.process().address("address");
        let mut working = Vec::new();
        for stays in [true, false] {
            let (stop, calls, side) = (Arc::clone(&stop), Arc::clone(&calls), side.clone());
            let mut client = company.client(&side).await;
            working.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if !stays {
                        client = dial(address, &side).await.expect("connect");
                    }
                    let mut request = tonic::Request::new(write("t", "k", "v"));
                    request.set_timeout(PATIENCE);
                    client.write_key_value(request).await.expect("a write");
                    client.read_key_value(read("t", "k")).await.expect("a read");
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }));
        }
        Self { stop, calls, working }
    }

    async fn goes_on(&self) {
        let enough = self.calls.load(Ordering::Relaxed) + 50;
        eventually("clients go on", async || {
            assert!(self.working.iter().all(|work| !work.is_finished()), "a call failed");
            (self.calls.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for work in self.working {
            work.await.expect("no call failed");
        }
        self.calls.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_under_load() {
    let company = Company::start(Known::ByCertificate).await;
    let side = company.client_side();
    let mut client = company.client(&side).await;
    company.all_reachable(&mut client).await;
    let tenant = v1::CreateTenantRequest { tenant_id: "t".to_owned(), ..v1::CreateTenantRequest::default() };
    client.create_tenant(tenant).await.expect("a tenant");
    let load = Load::start(&company, &side).await;
    load.goes_on().await;

    // All of them: the coordinator's as a server and as a client, and the nodes'.
    let address = company.process().address("address");
    for _ in 0..3 {
        let new = der(&company.servers.issue("coordinator", &[NAME]));
        company.coordinators.issue("as-coordinator", &["coordinator-1"]);
        let node = der(&company.servers.issue("node", &[NAME]));
        eventually("the new one is shown", async || (shown(address, &side).await == new).then_some(())).await;
        for process in &company.nodes {
            let address = process.address("address");
            eventually("a node's new one is shown", async || (shown(address, &side).await == node).then_some(())).await;
        }
        load.goes_on().await;
    }
    let last = shown(address, &side).await;
    std::fs::write(company.path("coordinator.key"), "broken").expect("write");
    eventually("the log says so", async || company.process().tail().contains("last good").then_some(())).await;
    assert_eq!(shown(address, &side).await, last, "the last good one");
    load.goes_on().await;
    println!("{} rounds, none failed", load.end().await);
}
