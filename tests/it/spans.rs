//! Traces: a request that its client traces can be followed from the client to the nodes; other requests cost nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use witan_wire::v1;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::upload_plugin_request::Part;

use crate::harness::{Api, Process, channel, eventually, own_address, write};

/// A collector that keeps the spans it receives.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.spans.lock().expect("not poisoned").extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind(SocketAddr::new(own_address(), 0)).await.expect("listen");
        let address = listener.local_addr().expect("an address");
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("not poisoned").clone()
    }
}

/// Binds a policy of this repository, built by `cargo xtask plugins`, for all tenants; returns its name.
async fn bind_policy(coordinator: SocketAddr) -> String {
    let name = "adaptive-latency";
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plugins");
    let folder = std::env::var_os("WITAN_PLUGINS").map_or(built, PathBuf::from);
    let component = std::fs::read(folder.join(format!("{name}.wasm"))).expect("run `cargo xtask plugins`");
    let part = |part| v1::UploadPluginRequest { part: Some(part) };
    let manifest = part(Part::Manifest(v1::UploadPluginManifest::default()));
    let parts = tokio_stream::iter([manifest, part(Part::Chunk(component.into()))]);
    let mut plugins = PluginServiceClient::new(channel(coordinator));
    let uploaded = plugins.upload_plugin(parts).await.expect("upload").into_inner();
    let digest = uploaded.plugin.expect("a response").digest;
    let hook = "consistency-policy".to_owned();
    let request = v1::BindPluginRequest { hook, plugin: digest, ..v1::BindPluginRequest::default() };
    plugins.bind_plugin(request).await.expect("bound");
    name.to_owned()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn a_traced_request_is_seen_from_the_client_to_the_nodes() {
    let (collector, address) = Collector::start().await;
    let folder = tempfile::tempdir().expect("make a folder");
    let free = SocketAddr::new(own_address(), 0).to_string();
    let mut command = Process::witan();
    command.args(["node", "--id", "node-1", "--durability", "os", "--listen", &free]);
    command.arg("--data-dir").arg(folder.path().join("node"));
    let mut node = Process::start("node-1", command, folder.path());
    node.ready().await;
    let mut command = Process::witan();
    command.args(["serve", "--listen", &free, "--admin-listen", &free, "--durability", "os"]);
    command.args(["--node", &format!("node-1={}", node.address("address"))]);
    command.arg("--data-dir").arg(folder.path().join("coordinator"));
    command
        .env("WITAN_TELEMETRY__OTLP_ENDPOINT", format!("http://{address}"))
        .env("WITAN_TELEMETRY__SAMPLE_RATIO", "0");
    let mut coordinator = Process::start("coordinator", command, folder.path());
    coordinator.ready().await;

    let api = Api::new(coordinator.address("address"));
    api.tenant("t", |request| request.replication_factor = 1).await;
    eventually("the node is reached", async || api.write(write("t", "untraced", "v")).await.ok()).await;
    let plugin = bind_policy(coordinator.address("address")).await;
    let mut traced = Request::new(write("t", "traced", "v"));
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    traced.metadata_mut().insert("traceparent", parent.parse().expect("ASCII"));
    traced.metadata_mut().insert("x-request-id", "seen-7".parse().expect("ASCII"));
    api.write(traced).await.expect("write");
    // The remaining spans are sent at the end.
    coordinator.signal("TERM");
    assert!(coordinator.ended().await.success());

    let spans = collector.spans();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "only what the client traces: {spans:#?}");
    let named = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>()))
    };
    let call = named("witan.v1.CoordinatorService/WriteKeyValue");
    assert_eq!(hex(&call.parent_span_id), "b7ad6b7169203331");
    let id = call.attributes.iter().find(|attribute| attribute.key == "request.id").expect("the request's id");
    assert!(format!("{:?}", id.value).contains("seen-7"));
    let write = named("write");
    assert_eq!(write.parent_span_id, call.span_id);
    let asked = named("plugin consistency policy");
    assert_eq!(asked.parent_span_id, write.span_id);
    assert!(format!("{:?}", asked.attributes).contains(&plugin), "{asked:?} names {plugin}");
    for phase in ["node stamp", "node merge"] {
        let asked = named(phase);
        assert_eq!(asked.parent_span_id, write.span_id, "{phase}");
        assert!(asked.attributes.iter().any(|attribute| attribute.key == "node"));
        // The part of it spent in the node.
        let took = spans.iter().find(|span| span.name == "storage node" && span.parent_span_id == asked.span_id);
        let took = took.unwrap_or_else(|| panic!("the node reports no {phase}: {spans:#?}"));
        assert!(took.start_time_unix_nano < took.end_time_unix_nano);
    }
}
