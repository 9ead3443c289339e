//! Access control: a coordinator that requires credentials, and clients with valid ones, invalid ones, and none.
//!
//! This file has the shared setup. [`walk`] tests every call and path; [`life`] the life cycle of tokens, and other settings of the
//! section `security`; [`plugins`] what tenants may do with plugins of theirs; [`dry_runs`] who sees what a plugin is tried on; [`shared`]
//! several coordinators.

mod calls;
mod classes;
mod dry_runs;
mod life;
mod plugins;
mod shared;
mod walk;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use witan_wire::v1::access_service_client::AccessServiceClient;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;
use witan_wire::v1::plugin_service_client::PluginServiceClient;

use crate::harness::{Process, channel, own_address};

/// A storage node, and a coordinator with embedded stores and this section `security`.
pub(crate) struct Guarded {
    // Dropped first, so that no process outlives its folder.
    pub(crate) coordinator: Process,
    _node: Process,
    pub(crate) operator: String,
    pub(crate) folder: TempDir,
}

/// Adds a credential to every call.
#[derive(Clone)]
pub(crate) struct Showing(String);

impl tonic::service::Interceptor for Showing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.parse().expect("a header"));
        Ok(request)
    }
}

pub(crate) type Link = InterceptedService<Channel, Showing>;

impl Guarded {
    /// Requires tokens, and has one for an operator. `security` is more YAML for that section, indented by two.
    pub(crate) async fn start(security: &str) -> Self {
        Self::start_with(security, "").await
    }

    /// The same, with more sections of the configuration, in which FOLDER is its folder.
    pub(crate) async fn start_with(security: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let data = folder.path().join("coordinator");
        let operator = made_beside(&data, &["--scope", "read,write,admin,operator", "--label", "operator"]);
        let operator = operator["token"].as_str().expect("a token").to_owned();
        let free = SocketAddr::new(own_address(), 0).to_string();

        let mut command = Process::witan();
        command.args(["node", "--id", "node-1", "--durability", "os", "--listen", &free]);
        command.arg("--data-dir").arg(folder.path().join("node-1"));
        let mut node = Process::start("node-1", command, folder.path());
        node.ready().await;

        let config = folder.path().join("config.yaml");
        let text = format!("security:\n{security}{more}").replace("FOLDER", &folder.path().display().to_string());
        std::fs::write(&config, text).expect("write a file");
        let mut command = Process::witan();
        command.args(["serve", "--durability", "os", "--listen", &free, "--admin-listen", &free]);
        command.arg("--config").arg(&config).arg("--data-dir").arg(&data);
        command.args(["--node", &format!("node-1={}", node.address("address"))]);
        let mut coordinator = Process::start("coordinator", command, folder.path());
        coordinator.ready().await;
        Self { coordinator, _node: node, operator, folder }
    }

    fn address(&self) -> SocketAddr {
        self.coordinator.address("address")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.coordinator.address("admin")
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("coordinator")
    }

    fn link(&self, token: &str) -> Link {
        InterceptedService::new(channel(self.address()), Showing(format!("Bearer {token}")))
    }

    /// A client with this credential.
    pub(crate) fn client(&self, token: &str) -> CoordinatorServiceClient<Link> {
        CoordinatorServiceClient::new(self.link(token))
    }

    /// A client of the token service with this credential.
    pub(crate) fn tokens(&self, token: &str) -> AccessServiceClient<Link> {
        AccessServiceClient::new(self.link(token))
    }

    /// A client of the plugin service with this credential.
    pub(crate) fn plugins(&self, token: &str) -> PluginServiceClient<Link> {
        PluginServiceClient::new(self.link(token))
    }

    /// Creates a tenant with one replica.
    pub(crate) async fn tenant(&self, id: &str) {
        let request = witan_wire::v1::CreateTenantRequest {
            tenant_id: id.to_owned(),
            replication_factor: 1,
            ..Default::default()
        };
        self.client(&self.operator).create_tenant(request).await.expect("create a tenant");
    }
}

/// Creates a token directly in a coordinator's store; returns the output of `witan token create --output json`.
pub(crate) fn made_beside(data: &Path, arguments: &[&str]) -> Value {
    let mut command = Process::witan();
    command.args(["token", "create", "--output", "json"]).args(arguments).arg("--data-dir").arg(data);
    object(&mut command)
}

/// The one object that a command prints; it must succeed.
fn object(command: &mut Command) -> Value {
    let output = command.output().expect("run witan");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("an object")
}

/// The text of a created token.
pub(crate) fn text(made: &Value) -> String {
    made["token"].as_str().expect("a token").to_owned()
}
