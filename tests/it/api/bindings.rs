//! Which bindings may change, and when: what would hide or move stored data is refused.

use std::path::{Path, PathBuf};

use tonic::{Code, Status};
use witan_wire::v1;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::upload_plugin_request::Part;

use crate::harness::{Dev, Refusal, channel, read, write};

/// A first-party plugin, as `cargo xtask plugins` has built it.
fn component(name: &str) -> Vec<u8> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plugins");
    let folder = std::env::var_os("WITAN_PLUGINS").map_or(built, PathBuf::from);
    let file = folder.join(format!("{name}.wasm"));
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask plugins`", file.display()))
}

async fn upload(dev: &Dev, name: &str) -> String {
    let part = |part| v1::UploadPluginRequest { part: Some(part) };
    let manifest = part(Part::Manifest(v1::UploadPluginManifest::default()));
    let parts = tokio_stream::iter([manifest, part(Part::Chunk(component(name).into()))]);
    let uploaded = plugins(dev).upload_plugin(parts).await.expect("upload").into_inner();
    uploaded.plugin.expect("told").digest
}

fn plugins(dev: &Dev) -> PluginServiceClient<tonic::transport::Channel> {
    PluginServiceClient::new(channel(dev.address()))
}

async fn bind(dev: &Dev, tenant: &str, hook: &str, plugin: &str) -> Result<v1::BindPluginResponse, Status> {
    let request = v1::BindPluginRequest {
        tenant_id: tenant.to_owned(),
        hook: hook.to_owned(),
        plugin: plugin.to_owned(),
        ..v1::BindPluginRequest::default()
    };
    plugins(dev).bind_plugin(request).await.map(tonic::Response::into_inner)
}

fn refused(result: Result<v1::BindPluginResponse, Status>) -> (Code, String) {
    let refusal = Refusal::from(result.expect_err("refused"));
    (refusal.code, refusal.reason)
}

#[tokio::test]
async fn a_resolver_decides_only_where_there_are_siblings() {
    let dev = Dev::start().await;
    dev.api().tenant("one", |_| {}).await;
    dev.api().siblings_tenant("many").await;
    let digest = upload(&dev, "shopping-cart").await;
    let hook = "conflict-resolver";
    let on_register = refused(bind(&dev, "one", hook, &digest).await);
    assert_eq!(on_register, (Code::FailedPrecondition, "INVALID_REQUEST".to_owned()));
    let nobody = refused(bind(&dev, "nobody", hook, &digest).await);
    assert_eq!(nobody, (Code::NotFound, "TENANT_NOT_FOUND".to_owned()));
    bind(&dev, "many", hook, &digest).await.expect("bound");
}

#[tokio::test]
async fn a_routing_hook_changes_only_while_nothing_is_stored() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let digest = upload(&dev, "hash-tag").await;
    let hook = "routing-hook";
    bind(&dev, "t", hook, &digest).await.expect("bound while empty");
    bind(&dev, "t", hook, "").await.expect("unbound while empty");
    bind(&dev, "t", hook, &digest).await.expect("bound again");
    let mut everywhere = write("t", "{user7}.name", "Ada");
    everywhere.consistency = "all".to_owned();
    api.write(everywhere).await.expect("written");

    let would_move = (Code::Unimplemented, "INVALID_REQUEST".to_owned());
    assert_eq!(refused(bind(&dev, "t", hook, "").await), would_move);
    assert_eq!(refused(bind(&dev, "", hook, &digest).await), would_move);
    let back = v1::RollbackBindingRequest { tenant_id: "t".to_owned(), hook: hook.to_owned() };
    let rolled = plugins(&dev).rollback_binding(back).await.map(tonic::Response::into_inner);
    assert_eq!(refused(rolled), would_move);
    let found = api.read(read("t", "{user7}.name")).await.expect("still found");
    assert_eq!(&found.value[..], b"Ada");
}
