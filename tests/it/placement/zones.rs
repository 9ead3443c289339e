//! Nodes get zones and other weights, while clients read, write and delete.

use witan_kernel::name::TenantId;
use witan_kernel::ring::{Member, Ring, token};
use witan_wire::v1;

use super::load::{Load, SIBLINGS, TENANTS};
use super::{completed, each_has_its_own, keys_on, members, nodes};
use crate::harness::{Api, Company, Refusal};

/// Gives a node a zone, or a weight.
pub(super) async fn update(
    api: &Api,
    node: &str,
    zone: Option<&str>,
    virtual_nodes: Option<i32>,
) -> Result<v1::StorageNodeChangeResponse, Refusal> {
    let (node_id, zone) = (node.to_owned(), zone.map(str::to_owned));
    let request = v1::UpdateStorageNodeRequest { node_id, virtual_nodes, zone };
    Ok(api.client().update_storage_node(request).await?.into_inner())
}

/// How many different zones the replicas of a key are in.
fn zones_of(members: &[Member], tenant: &str, key: &str, replicas: u8) -> usize {
    let at = token(&TenantId::new(tenant).expect("a tenant"), key.as_bytes());
    let replicas = Ring::of(members, 0).replicas(at, replicas);
    let zones = members.iter().filter(|member| replicas.contains(&member.node)).map(|member| &member.zone);
    zones.collect::<std::collections::BTreeSet<_>>().len()
}

/// Three nodes become six, in three zones; then one of them gets half of its weight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_zones_and_other_weights_under_load() {
    let mut company = Company::of(2).await;
    let joining = [company.another_node().await, company.another_node().await, company.another_node().await];
    let apis = [company.api(0), company.api(1)];
    let api = &apis[0];
    Load::tenants(api).await;
    let load = Load::start(&apis, false);
    load.goes_on().await;

    let mut begun = Vec::new();
    for node in joining {
        begun.push(api.client().add_storage_node(node).await.expect("recorded").into_inner().migration_id);
    }
    for (n, zone) in (1..).zip(["a", "b", "c", "a", "b", "c"]) {
        let node = format!("node-{n}");
        let updated = update(&apis[n % 2], &node, Some(zone), None).await.expect("recorded");
        let again = update(api, &node, Some(zone), None).await.expect("the same");
        assert_eq!(again.migration_id, updated.migration_id);
        begun.push(updated.migration_id);
    }
    for migration in &begun {
        completed(api, migration).await;
    }
    let zoned = completed(api, begun.last().expect("some")).await;
    let shown = (&*zoned.r#type, &*zoned.node_id, &*zoned.old_zone, &*zoned.new_zone, zoned.tenants_done);
    assert_eq!(shown, ("zones", "node-6", "", "c", 3));
    load.goes_on().await;

    // A tenant with as many keys before and after: those of the load come and go.
    api.tenant("still", |_| {}).await;
    for n in 0..200 {
        let request = crate::harness::write("still", &format!("key-{n}"), "v");
        api.write(v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..request }).await.expect("written");
    }
    let (id, first) = &company.nodes[0];
    let before = keys_on(*first, "still").await.len();
    let lighter = update(api, id, None, Some(75)).await.expect("recorded");
    let ended = completed(api, &lighter.migration_id).await;
    assert_eq!((&*ended.r#type, ended.old_virtual_nodes, ended.new_virtual_nodes), ("weight", 150, 75));
    load.goes_on().await;

    let (mut keys, refusals) = load.end().await;
    assert!(refusals.is_empty(), "{} operations failed: {refusals:#?}", refusals.len());
    keys.all_read(&apis).await;
    each_has_its_own(api, &keys).await;
    let after = keys_on(*first, "still").await.len();
    assert!(after < before * 4 / 5 && after > 0, "about two thirds of {before} keys: {after}");
    let members = members(&nodes(api).await);
    for (tenant, replicas) in TENANTS.into_iter().chain([(SIBLINGS, 3)]) {
        for (key, _) in keys.of(tenant) {
            assert_eq!(zones_of(&members, tenant, key, replicas as u8), replicas as usize, "{tenant} {key}");
        }
    }
}
