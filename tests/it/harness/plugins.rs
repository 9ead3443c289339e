//! First-party plugins for tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tonic::transport::Channel;
use tonic::{Response, Status};
use witan_wire::v1;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::upload_plugin_request::Part;

use super::channel;

/// A coordinator's plugin service.
pub(crate) struct Plugins(PluginServiceClient<Channel>);

impl Plugins {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self(PluginServiceClient::new(channel(address)))
    }

    /// The generated client.
    pub(crate) fn client(&self) -> PluginServiceClient<Channel> {
        self.0.clone()
    }

    /// The folder into which `cargo xtask plugins` builds.
    pub(crate) fn folder() -> PathBuf {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plugins");
        std::env::var_os("WITAN_PLUGINS").map_or(built, PathBuf::from)
    }

    /// A first-party plugin, as `cargo xtask plugins` has built it.
    pub(crate) fn component(name: &str) -> Vec<u8> {
        let file = Self::folder().join(format!("{name}.wasm"));
        std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask plugins`", file.display()))
    }

    /// Uploads a first-party plugin; returns its digest.
    pub(crate) async fn upload(&self, name: &str) -> String {
        self.send(Self::component(name)).await.expect("upload").digest
    }

    /// Uploads a component.
    pub(crate) async fn send(&self, component: Vec<u8>) -> Result<v1::PluginInfo, Status> {
        let part = |part| v1::UploadPluginRequest { part: Some(part) };
        let manifest = part(Part::Manifest(v1::UploadPluginManifest::default()));
        let parts = tokio_stream::iter([manifest, part(Part::Chunk(component.into()))]);
        let uploaded = self.client().upload_plugin(parts).await?.into_inner();
        Ok(uploaded.plugin.expect("a response"))
    }

    /// Binds a plugin, or removes the binding with `""`.
    pub(crate) async fn bind(&self, tenant: &str, hook: &str, plugin: &str) -> Result<v1::BindPluginResponse, Status> {
        self.bind_with(tenant, hook, plugin, "").await
    }

    /// Binds a plugin with this configuration.
    pub(crate) async fn bind_with(
        &self,
        tenant: &str,
        hook: &str,
        plugin: &str,
        configuration: &str,
    ) -> Result<v1::BindPluginResponse, Status> {
        let request = v1::BindPluginRequest {
            tenant_id: tenant.to_owned(),
            hook: hook.to_owned(),
            plugin: plugin.to_owned(),
            configuration: configuration.to_owned().into(),
            ..v1::BindPluginRequest::default()
        };
        self.client().bind_plugin(request).await.map(Response::into_inner)
    }

    /// Rolls a binding back.
    pub(crate) async fn roll_back(&self, tenant: &str, hook: &str) -> Result<v1::BindPluginResponse, Status> {
        let back =
            v1::RollbackBindingRequest { tenant_id: tenant.to_owned(), hook: hook.to_owned(), ..Default::default() };
        self.client().rollback_binding(back).await.map(Response::into_inner)
    }
}
