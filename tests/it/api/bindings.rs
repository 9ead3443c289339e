//! Which bindings may change, and when: a change that would hide or move stored data is refused.

use tonic::{Code, Status};
use witan_wire::v1;

use crate::harness::{Dev, Plugins, Refusal, read, write};

async fn upload(dev: &Dev, name: &str) -> String {
    Plugins::new(dev.address()).upload(name).await
}

async fn bind(dev: &Dev, tenant: &str, hook: &str, plugin: &str) -> Result<v1::BindPluginResponse, Status> {
    Plugins::new(dev.address()).bind(tenant, hook, plugin).await
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
    let rolled = Plugins::new(dev.address()).roll_back("t", hook).await;
    assert_eq!(refused(rolled), would_move);
    let found = api.read(read("t", "{user7}.name")).await.expect("still found");
    assert_eq!(&found.value[..], b"Ada");
}
