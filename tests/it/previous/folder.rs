//! One data folder, opened by one version after the other: the stores of nodes, metadata and idempotency records of a coordinator,
//! and its copies of plugins.

use bytes::Bytes;
use witan_wire::v1;

use crate::harness::Version::{Previous, This};
use crate::harness::{Api, Dev, Plugins, delete, read, write};

/// The data that one version leaves for the next.
struct Left {
    name: &'static str,
    /// Context of a read, for the next write.
    context: Bytes,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_version_has_stored_the_other_finds() {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut dev = Dev::of_version(Previous, folder.path()).await;
    let api = dev.api();
    api.tenant("registers", |request| request.ordering = "clock".to_owned()).await;
    for tenant in ["siblings", "resolved", "removed"] {
        api.siblings_tenant(tenant).await;
    }
    let resolver = Plugins::new(dev.address()).upload("released-0-1").await;
    Plugins::new(dev.address()).bind("resolved", "conflict-resolver", &resolver).await.expect("bound");
    let end = v1::DeleteTenantRequest { tenant_id: "removed".to_owned(), version: 0, confirm: "removed".to_owned() };
    api.client().delete_tenant(end).await.expect("deleted");
    let mut left = vec![leave(&api, "previous").await];
    // No orderly shutdown before the next one starts.
    dev.process().kill();

    let mut dev = Dev::of_version(This, folder.path()).await;
    find(&dev.api(), &mut left).await;
    left.push(leave(&dev.api(), "this").await);
    dev.process().end().await;

    let mut dev = Dev::of_version(Previous, folder.path()).await;
    find(&dev.api(), &mut left).await;
    left.push(leave(&dev.api(), "previous again").await);
    dev.process().end().await;

    find(&Dev::of_version(This, folder.path()).await.api(), &mut left).await;
}

fn named(name: &str, tenant: &str, value: &str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { idempotency_key: format!("{name} {value}"), ..write(tenant, name, value.to_owned()) }
}

async fn leave(api: &Api, name: &'static str) -> Left {
    api.write(named(name, "registers", "value")).await.expect("written");
    for tenant in ["siblings", "resolved"] {
        for value in ["[1]", "[2]"] {
            api.write(named(name, tenant, value)).await.expect("written");
        }
    }
    for tenant in ["registers", "siblings"] {
        let key = format!("{name} deleted");
        api.write(write(tenant, &key, "gone")).await.expect("written");
        api.delete(delete(tenant, &key)).await.expect("deleted");
    }
    api.write(write("siblings", &format!("{name} replaced"), name)).await.expect("written");
    let (_, context) = api.values(read("siblings", &format!("{name} replaced"))).await.expect("read");
    Left { name, context }
}

async fn find(api: &Api, left: &mut [Left]) {
    for Left { name, context } in left {
        assert_eq!(&api.read(read("registers", name)).await.expect("read").value[..], b"value");
        assert_eq!(api.values(read("siblings", name)).await.expect("read").0, ["[1]", "[2]"]);
        let resolved = api.read(read("resolved", name)).await.expect("read");
        assert!(resolved.resolved_by.starts_with("released-0-1"), "{resolved:?}");
        for (tenant, value) in [("registers", "value"), ("siblings", "[1]"), ("resolved", "[2]")] {
            assert!(api.write(named(name, tenant, value)).await.expect("answered").is_duplicate, "{name} {tenant}");
        }
        for tenant in ["registers", "siblings"] {
            let (found, _) = api.values(read(tenant, &format!("{name} deleted"))).await.expect("read");
            assert!(found.is_empty(), "{name} of {tenant} is back: {found:?}");
        }
        let key = format!("{name} replaced");
        let replace = v1::WriteKeyValueRequest { context: context.clone(), ..write("siblings", &key, *name) };
        *context = api.write(replace).await.expect("written").context;
        assert_eq!(api.values(read("siblings", &key)).await.expect("read").0, [*name], "it replaces what it has seen");
    }
    let tenant = v1::GetTenantRequest { tenant_id: "registers".to_owned() };
    assert_eq!(api.client().get_tenant(tenant).await.expect("a response").into_inner().ordering, "clock");
    let gone = api.read(read("removed", "k")).await.expect_err("it was deleted");
    assert_eq!(gone.reason, "TENANT_NOT_FOUND");
    let again = v1::CreateTenantRequest { tenant_id: "removed".to_owned(), ..v1::CreateTenantRequest::default() };
    api.client().create_tenant(again).await.expect_err("its id is not given to another");
}
