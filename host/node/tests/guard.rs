//! Which callers a node serves: every one of its calls is made by callers that are admitted and by callers that are not.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use prost_types::FileDescriptorSet;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Clock, Randomness};
use witan_net::{
    Bounds, ClientSide, ClientTls, Connector, Fields, Incoming, ListenerTls, Protocol, ServerSide, SharedSecret,
};
use witan_node::batch::Durability;
use witan_node::node::{Node, NodeConfig};
use witan_node::server::{Guard, ServeError};
use witan_servers::{Authority, Pair};
use witan_wire::v1::FILE_DESCRIPTOR_SET;

#[derive(Clone)]
struct Now;

impl Clock for Now {
    fn wall_micros(&self) -> u64 {
        1
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

struct Dice;

impl Randomness for Dice {
    fn sixteen(&self) -> [u8; 16] {
        [7; 16]
    }
}

struct Running {
    address: SocketAddr,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn run(folder: &Path, guard: Guard, tls: Option<ListenerTls>) -> Running {
    let mut config = NodeConfig::new(NodeId::new("node-1").unwrap(), folder.join("data"));
    config.durability = Durability::Os;
    config.shards = 1;
    config.engine.min_free_bytes = 0;
    config.guard = guard;
    let opened = tokio::task::spawn_blocking(|| Node::open(config, Now, &Dice)).await.unwrap();
    let node = Arc::new(opened.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = tls.map(|tls| ServerSide::open(&tls, Fields::NODE_FLAGS, Protocol::Grpc).unwrap());
    let incoming = Incoming::new(listener, tls, Protocol::Grpc, Bounds::default());
    let serving = tokio::spawn(async move { node.serve(incoming, std::future::pending()).await });
    Running { address, serving }
}

/// Every call that a node answers, as the compiled descriptors name them.
fn calls() -> Vec<String> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file;
    let services = files.iter().flat_map(|file| &file.service);
    let service = services.filter(|service| service.name() == "StorageNodeService").flat_map(|service| &service.method);
    let calls: Vec<String> = service.map(|method| format!("/witan.v1.StorageNodeService/{}", method.name())).collect();
    assert!(calls.len() >= 6, "{calls:?}");
    calls
}

const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Makes a call with an empty message, which every call accepts or refuses with its own reason.
async fn call(channel: &Channel, path: &str, secret: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let mut request = Request::new(());
    if let Some(secret) = secret {
        request.metadata_mut().insert("witan-node-secret", secret.parse().unwrap());
    }
    let path: PathAndQuery = path.parse().unwrap();
    client.unary(request, path, ProstCodec::<(), ()>::default()).await.map(drop)
}

async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A connection over TLS. In TLS 1.3 a client learns that it is refused with the first answer, or when it connects.
async fn secured(address: SocketAddr, tls: &ClientTls) -> Result<Channel, Status> {
    let connector = Connector::new(ClientSide::open(tls, Fields::NODES).unwrap());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let connected = endpoint.connect_timeout(Duration::from_secs(60)).connect_with_connector(connector).await;
    connected.map_err(|error| Status::unavailable(format!("{error:?}")))
}

#[tokio::test]
async fn without_the_secret_only_health_is_answered() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "an-old-secret-of-ours\na-new-secret-of-ours\n").unwrap();
    let secret = SharedSecret::open(&path, "--shared-secret-file").unwrap();
    let node = run(folder.path(), Guard::Secret(secret), None).await;
    let channel = channel(node.address).await;
    for path in calls().iter().map(String::as_str).chain(REFLECTION).chain(["/no.Such/Call"]) {
        for wrong in [None, Some("wrong"), Some(""), Some("an-old-secret-of-our"), Some("a-new-secret-of-ourss")] {
            let refused = call(&channel, path, wrong).await.expect_err(path);
            assert_eq!(refused.code(), Code::Unauthenticated, "{path} with {wrong:?}: {refused}");
            assert!(refused.message().contains("security.nodes.shared_secret_file"), "{refused}");
        }
        for right in ["an-old-secret-of-ours", "a-new-secret-of-ours"] {
            let answer = call(&channel, path, Some(right)).await;
            assert_ne!(answer.err().map(|status| status.code()), Some(Code::Unauthenticated), "{path}");
        }
    }
    call(&channel, HEALTH, None).await.expect("health is open");
}

#[tokio::test]
async fn with_certificates_only_coordinators_reach_any_call() {
    let folder = TempDir::new().unwrap();
    let (ours, others) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "others"));
    let Pair { cert, key } = ours.issue("node", &["127.0.0.1"]);
    let tls = ListenerTls { cert_file: cert, key_file: key, client_ca_file: Some(ours.file()) };
    let node = run(folder.path(), Guard::Connected, Some(tls)).await;
    let client = |own: Option<Pair>| {
        let (cert_file, key_file) = own.map(|pair| (pair.cert, pair.key)).unzip();
        ClientTls { ca_file: Some(ours.file()), cert_file, key_file, server_name: None }
    };
    let right = secured(node.address, &client(Some(ours.issue("coordinator", &["c"])))).await.unwrap();
    for path in calls().iter().map(String::as_str).chain(REFLECTION).chain([HEALTH]) {
        let told = call(&right, path, None).await;
        let code = told.err().map(|status| status.code());
        assert!(!matches!(code, Some(Code::Unavailable | Code::Unauthenticated | Code::Unknown)), "{path}: {code:?}");
        for wrong in [client(None), client(Some(others.issue("stranger", &["c"])))] {
            let refused = match secured(node.address, &wrong).await {
                Ok(channel) => call(&channel, path, None).await.expect_err(path),
                Err(refused) => refused,
            };
            assert!(refused.code() == Code::Unavailable || refused.code() == Code::Unknown, "{path}: {refused:?}");
        }
    }
    // Without TLS no call is answered.
    let plain = Endpoint::from_shared(format!("http://{}", node.address)).unwrap().connect_lazy();
    assert!(call(&plain, HEALTH, None).await.is_err());
}
