//! The clients of the demonstration, and how failures are shown.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::upload_plugin_request::Part;
use witan_wire::v1::{
    BindPluginRequest, Binding, PluginInfo, UploadPluginManifest, UploadPluginRequest, WriteKeyValueRequest,
};

/// Deadline of one request; the coordinator allows at most 10 s.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of an upload: the component is compiled and probed before the answer.
const UPLOAD: Duration = Duration::from_secs(60);
/// Bytes of a component in one message.
const CHUNK: usize = 256 << 10;

/// Keys, values, tenants.
pub type Coordinator = CoordinatorServiceClient<Channel>;
/// Plugins and bindings.
pub type Plugins = PluginServiceClient<Channel>;
/// One storage node, asked directly.
pub type Node = StorageNodeServiceClient<Channel>;

/// Connects to `address`, HOST:PORT.
pub async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).context("read an address")?;
    let endpoint = endpoint.connect_timeout(DEADLINE).tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("connect to {address}"))
}

/// A request with the usual deadline.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// A failure in one line: code, reason, message.
pub fn shown(status: &Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    format!("{:?} {reason}: {}", status.code(), status.message())
}

/// A failure as an error that says what was attempted.
pub fn failed(what: &str, status: &Status) -> anyhow::Error {
    anyhow!("{what}: {}", shown(status))
}

/// A write without a context.
pub fn write(tenant: &str, key: &str, value: impl Into<Bytes>) -> WriteKeyValueRequest {
    WriteKeyValueRequest { tenant_id: tenant.into(), key: key.into(), value: value.into(), ..Default::default() }
}

/// Uploads a component; returns when it is compiled, probed and ready.
pub async fn upload(plugins: &mut Plugins, component: &Path) -> Result<PluginInfo> {
    let bytes = Bytes::from(std::fs::read(component).with_context(|| format!("read {}", component.display()))?);
    let manifest = UploadPluginManifest { size: bytes.len() as u64, ..Default::default() };
    let mut messages = vec![UploadPluginRequest { part: Some(Part::Manifest(manifest)) }];
    let chunks = (0..bytes.len()).step_by(CHUNK).map(|at| bytes.slice(at..bytes.len().min(at + CHUNK)));
    messages.extend(chunks.map(|chunk| UploadPluginRequest { part: Some(Part::Chunk(chunk)) }));
    let mut request = Request::new(tokio_stream::iter(messages));
    request.set_timeout(UPLOAD);
    let what = format!("upload {}", component.display());
    let response = plugins.upload_plugin(request).await.map_err(|status| failed(&what, &status))?;
    let plugin = response.into_inner().plugin.with_context(|| what.clone())?;
    anyhow::ensure!(plugin.state == "ready", "{what}: {}", plugin.state);
    Ok(plugin)
}

/// Binds a plugin to a hook of a tenant; returns the binding in force.
pub async fn bind(plugins: &mut Plugins, tenant: &str, plugin: &PluginInfo, configuration: &str) -> Result<Binding> {
    let request = BindPluginRequest {
        tenant_id: tenant.into(),
        hook: plugin.hook.clone(),
        plugin: plugin.digest.clone(),
        configuration: Bytes::copy_from_slice(configuration.as_bytes()),
        ..Default::default()
    };
    let what = format!("bind {} to {tenant}", plugin.name);
    let response = plugins.bind_plugin(timed(request)).await.map_err(|status| failed(&what, &status))?;
    response.into_inner().binding.context(what)
}
