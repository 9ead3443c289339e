//! Which bindings may change, and when: a change that would hide stored data is refused, and so is one that would move that of all tenants.

use tonic::{Code, Status};
use witan_wire::v1;

use crate::harness::{Dev, Plugins, Refusal, eventually, read, write};

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
async fn the_routing_hook_of_all_tenants_changes_only_while_nothing_is_stored() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let digest = upload(&dev, "hash-tag").await;
    let hook = "routing-hook";
    let bound = bind(&dev, "", hook, &digest).await.expect("bound while empty");
    assert_eq!(bound.migration_id, "", "it is in force");
    bind(&dev, "", hook, "").await.expect("unbound while empty");
    bind(&dev, "", hook, &digest).await.expect("bound again");
    let mut everywhere = write("t", "{user7}.name", "Ada");
    everywhere.consistency = "all".to_owned();
    api.write(everywhere).await.expect("written");

    let would_move = (Code::Unimplemented, "INVALID_REQUEST".to_owned());
    assert_eq!(refused(bind(&dev, "", hook, "").await), would_move);
    let rolled = Plugins::new(dev.address()).roll_back("", hook).await;
    assert_eq!(refused(rolled), would_move);
    let found = api.read(read("t", "{user7}.name")).await.expect("still found");
    assert_eq!(&found.value[..], b"Ada");
}

async fn ended(dev: &Dev, migration: &str) -> String {
    let get = v1::GetMigrationStatusRequest { migration_id: migration.to_owned() };
    eventually("the migration ends", async || {
        let now = dev.api().client().get_migration_status(get.clone()).await.ok()?.into_inner();
        (!matches!(&*now.status, "pending" | "in_progress")).then_some(now.status)
    })
    .await
}

#[tokio::test]
async fn the_routing_hook_of_a_tenant_is_swapped_whether_or_not_something_is_stored() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let digest = upload(&dev, "hash-tag").await;
    let hook = "routing-hook";
    for (plugin, value) in [(&*digest, None), ("", Some("Ada")), (&digest, Some("Ada"))] {
        let asked = bind(&dev, "t", hook, plugin).await.expect("recorded");
        assert_eq!(asked.binding.is_some(), !plugin.is_empty(), "{asked:?}");
        assert_eq!(ended(&dev, &asked.migration_id).await, "completed");
        match value {
            None => _ = api.write(write("t", "{user7}.name", "Ada")).await.expect("written"),
            Some(value) => {
                let found = api.read(read("t", "{user7}.name")).await.expect("found");
                assert_eq!(found.value, value);
            }
        }
    }
    let again = bind(&dev, "t", hook, &digest).await.expect("it is bound already");
    assert_eq!(again.migration_id, "");
    // What a plan says of a tenant of one key.
    let plan = async |plugin: &str| {
        let (tenant_id, plugin) = ("t".to_owned(), plugin.to_owned());
        let hook = v1::BindPluginRequest { tenant_id, plugin, ..v1::BindPluginRequest::default() };
        let change = Some(v1::plan_migration_request::Change::Hook(hook));
        let planned = api.client().plan_migration(v1::PlanMigrationRequest { change }).await.expect("planned");
        planned.into_inner().hook.expect("of a hook")
    };
    let (same, none) = (plan(&digest).await, plan("").await);
    assert!(same.at_once && same.complete, "{same:?}");
    assert_eq!((none.keys_moving, none.keys_staying, none.keys_faulting, none.complete), (1, 0, 0, true), "{none:?}");
    let back = Plugins::new(dev.address()).roll_back("t", hook).await;
    assert!(back.is_err(), "it was unbound before: {back:?}");
}
