//! A coordinator that is cut off from the metadata store, while others change what its operations rest on: the storage nodes refuse it.

use std::net::SocketAddr;

use tonic::Code;
use witan_wire::v1;

use crate::harness::{
    Api, Company, Link, Plugins, Process, Refusal, Version, eventually, get, own_address, read, write,
};

/// Two coordinators, of which the second reaches PostgreSQL over a link that can be cut.
async fn company() -> (Company, Link) {
    let mut company = Company::of(1).await;
    let link = company.link_to_postgres().await;
    company.join_over(&link).await;
    (company, link)
}

fn update(tenant: &str) -> v1::UpdateTenantRequest {
    v1::UpdateTenantRequest { tenant_id: tenant.to_owned(), ..v1::UpdateTenantRequest::default() }
}

fn delete(tenant: &str) -> v1::DeleteTenantRequest {
    let tenant = tenant.to_owned();
    v1::DeleteTenantRequest { tenant_id: tenant.clone(), confirm: tenant, ..v1::DeleteTenantRequest::default() }
}

/// Waits until a migration is completed.
async fn completed(api: &Api, migration_id: String) {
    let request = v1::GetMigrationStatusRequest { migration_id };
    eventually("the migration is completed", async || {
        let now = api.client().get_migration_status(request.clone()).await.ok()?.into_inner();
        (now.status == "completed").then_some(())
    })
    .await;
}

fn assert_stale(refusal: &Refusal) {
    assert_eq!(refusal.summary(), (Code::Aborted, "STALE_EPOCH", "not-applied", ""), "{refusal:?}");
    assert!(refusal.message.contains("does not know of it yet"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_cut_off_does_not_go_on_under_earlier_settings() {
    let (company, link) = company().await;
    let (first, cut_off) = (company.api(0), company.api(1));
    for tenant in ["ordered", "levelled", "untouched"] {
        first.tenant(tenant, |tenant| tenant.ordering = "clock".to_owned()).await;
        cut_off.write(write(tenant, "k", "before")).await.expect("written");
    }
    link.cut();
    let ordering = v1::UpdateTenantRequest { ordering: "quorum".to_owned(), ..update("ordered") };
    let levels = v1::UpdateTenantRequest {
        minimum_level: "quorum".to_owned(),
        default_level: "quorum".to_owned(),
        ..update("levelled")
    };
    for change in [ordering, levels] {
        first.client().update_tenant(change).await.expect("the change is in force");
    }
    for tenant in ["ordered", "levelled"] {
        assert_stale(&cut_off.write(write(tenant, "k", "late")).await.expect_err("a node refuses it"));
        let mut one = read(tenant, "k");
        one.consistency = "one".to_owned();
        let refusal = cut_off.read(one).await.expect_err("a node refuses it");
        assert_eq!(refusal.reason, "STALE_EPOCH", "{refusal:?}");
        first.write(write(tenant, "k", "after")).await.expect("the coordinator that made the change goes on");
    }
    // Nothing has changed for this tenant: its promise of an outage of PostgreSQL holds.
    cut_off.write(write("untouched", "k", "during")).await.expect("a known tenant that has not changed is served");

    link.restore();
    for tenant in ["ordered", "levelled"] {
        eventually("the coordinator has followed the change", async || {
            cut_off.write(write(tenant, "k", "again")).await.ok()
        })
        .await;
        assert_eq!(&first.read(read(tenant, "k")).await.expect("read").value[..], b"again");
    }
}

const POLICY: &str = "consistency-policy";
/// With this, every replica is too slow, and the minimum level is enough.
const LENIENT: &str = "slow-us = 1";

/// The tenants (`""`: all) with changes of bindings that nodes have not confirmed, and these nodes.
async fn unfenced(plugins: &Plugins) -> Vec<(String, Vec<String>)> {
    let listed = plugins.client().list_bindings(v1::ListBindingsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(listed.unfenced_unknown, "", "the metadata store answers");
    listed.unfenced.into_iter().map(|it| (it.tenant_id, it.node_ids)).collect()
}

async fn fenced(plugins: &Plugins) {
    eventually("every node has the fences", async || unfenced(plugins).await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_cut_off_does_not_go_on_with_an_earlier_policy() {
    let mut company = Company::of(2).await;
    let link = company.link_to_postgres().await;
    company.join_over(&link).await;
    let (first, second, cut_off) = (company.api(0), company.api(1), company.api(2));
    let plugins = Plugins::new(company.coordinators[0].address);
    let policy = plugins.upload("adaptive-latency").await;
    for tenant in ["unbound", "kept", "stricter"] {
        first.tenant(tenant, |_| {}).await;
        plugins.bind_with(tenant, POLICY, &policy, LENIENT).await.expect("bound");
    }
    let there = Plugins::new(company.coordinators[2].address);
    eventually("it has heard of the bindings", async || {
        let listed = there.client().list_bindings(v1::ListBindingsRequest::default()).await.ok()?;
        (listed.into_inner().bindings.len() == 3).then_some(())
    })
    .await;
    fenced(&plugins).await;
    for tenant in ["unbound", "kept", "stricter"] {
        cut_off.write(write(tenant, "k", "before")).await.expect("written");
    }
    link.cut();
    plugins.bind("unbound", POLICY, "").await.expect("unbound");
    plugins.bind("stricter", POLICY, &policy).await.expect("bound");
    // Whoever hears of changes is not refused meanwhile.
    eventually("every node has the fences", async || {
        for tenant in ["unbound", "stricter"] {
            second.write(write(tenant, "k", "meanwhile")).await.expect("written");
        }
        unfenced(&plugins).await.is_empty().then_some(())
    })
    .await;
    (1..3).for_each(|node| company.kill_node(node));
    let to_all = |tenant| {
        let mut all = write(tenant, "k", "late");
        all.consistency = "all".to_owned();
        all
    };
    eventually("one replica is enough where nothing has changed", async || cut_off.write(to_all("kept")).await.ok())
        .await;
    for tenant in ["unbound", "stricter"] {
        let refusal = cut_off.write(to_all(tenant)).await.expect_err("one replica is not enough any longer");
        assert_eq!(refusal.reason, "STALE_EPOCH", "{refusal:?}");
    }
    let last = second.write(to_all("unbound")).await.expect_err("two replicas are away");
    assert_ne!(last.reason, "STALE_EPOCH", "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_waits_for_no_node_and_it_is_shown_which_have_not_confirmed_it() {
    let mut company = Company::of(1).await;
    let plugins = Plugins::new(company.coordinators[0].address);
    let policy = plugins.upload("adaptive-latency").await;
    for configuration in ["", LENIENT] {
        plugins.bind_with("", POLICY, &policy, configuration).await.expect("bound");
    }
    fenced(&plugins).await;
    company.stop_nodes().await;
    let back = plugins.roll_back("", POLICY).await.expect("rolled back while no node answers");
    assert_eq!(back.binding.expect("a binding").configuration, "");
    let nodes = ["node-1", "node-2", "node-3"].map(str::to_owned).to_vec();
    assert_eq!(unfenced(&plugins).await, [(String::new(), nodes.clone())]);
    company.resume_nodes();
    fenced(&plugins).await;

    company.end_node(2).await;
    plugins.bind("", POLICY, "").await.expect("unbound while a node is away");
    eventually("the nodes that are there confirm it", async || {
        (unfenced(&plugins).await == [(String::new(), nodes[2..].to_vec())]).then_some(())
    })
    .await;
    company.start_node_alone(2, Version::This).await;
    fenced(&plugins).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_cut_off_writes_nothing_to_a_deleted_tenant() {
    let (company, link) = company().await;
    let (first, cut_off) = (company.api(0), company.api(1));
    first.tenant("gone", |_| {}).await;
    cut_off.write(write("gone", "k", "before")).await.expect("written");
    link.cut();
    let deleted = first.client().delete_tenant(delete("gone")).await.expect("deleted").into_inner();
    assert_eq!(deleted.incomplete_nodes, Vec::new());
    for n in 0..3 {
        let mut late = write("gone", &format!("k{n}"), "late");
        late.consistency = "one".to_owned();
        assert_stale(&cut_off.write(late).await.expect_err("a node refuses it"));
    }
    for index in 0..3 {
        assert_eq!(company.records_of(index, "gone").await, 0, "node {index}");
    }
    link.restore();
    eventually("the coordinator knows of the deletion", async || {
        let refusal = cut_off.read(read("gone", "k")).await.err()?;
        (refusal.reason == "TENANT_NOT_FOUND").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_cut_off_does_not_go_on_under_an_earlier_placement() {
    let (mut company, link) = company().await;
    let (first, cut_off) = (company.api(0), company.api(1));
    for tenant in ["grown", "placed"] {
        first.tenant(tenant, |tenant| tenant.replication_factor = 1).await;
        let missing = cut_off.read(read(tenant, "k")).await.expect_err("nothing is stored");
        assert_eq!(missing.reason, "KEY_NOT_FOUND");
    }
    link.cut();
    let grow = v1::UpdateReplicationFactorRequest { tenant_id: "grown".to_owned(), new_replication_factor: 3 };
    let grown = first.client().update_replication_factor(grow).await.expect("recorded").into_inner();
    // Until the lease of the coordinator that is cut off has expired, the move waits for it.
    completed(&first, grown.migration_id).await;
    assert_stale(&cut_off.write(write("grown", "k", "late")).await.expect_err("a node refuses it"));
    let node = company.another_node().await;
    let added = first.client().add_storage_node(node).await.expect("recorded").into_inner();
    completed(&first, added.migration_id).await;
    assert_stale(&cut_off.write(write("placed", "k", "late")).await.expect_err("a node refuses it"));
    link.restore();
    eventually("the coordinator has followed the change", async || {
        cut_off.write(write("placed", "k", "again")).await.ok()
    })
    .await;
    for tenant in ["placed", "grown"] {
        first.write(write(tenant, "k", "after")).await.expect("written");
        assert_eq!(&cut_off.read(read(tenant, "k")).await.expect("read").value[..], b"after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deletion_has_left_is_removed_without_a_second_call() {
    let mut company = Company::of(1).await;
    let first = company.api(0);
    first.tenant("gone", |_| {}).await;
    for n in 0..20 {
        first.write(write("gone", &format!("k{n}"), "v")).await.expect("written");
    }
    eventually("every node has every record", async || (company.records_of(2, "gone").await == 20).then_some(())).await;
    company.end_node(2).await;
    let deleted = first.client().delete_tenant(delete("gone")).await.expect("deleted").into_inner();
    let left: Vec<&str> = deleted.incomplete_nodes.iter().map(|node| node.node_id.as_str()).collect();
    assert_eq!(left, ["node-3"]);
    company.start_node_alone(2, Version::This).await;
    assert_eq!(company.records_of(2, "gone").await, 20);
    eventually("its records are removed", async || (company.records_of(2, "gone").await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_not_answered_while_a_node_could_serve_who_does_not_know_of_it() {
    let (mut company, link) = company().await;
    let first = company.api(0);
    first.tenant("shop", |_| {}).await;
    first.tenant("strict", |tenant| tenant.minimum_level = "quorum".to_owned()).await;
    link.cut();
    company.end_node(2).await;
    let ordering = |tenant| v1::UpdateTenantRequest { ordering: "clock".to_owned(), ..update(tenant) };
    // Without this one, no quorum can be reached under the earlier settings, and fewer were never enough.
    first.client().update_tenant(ordering("strict")).await.expect("in force");
    // One replica was enough for this tenant, and this node may still be one for somebody.
    let pending = Refusal::from(first.client().update_tenant(ordering("shop")).await.expect_err("a node is away"));
    assert_eq!(pending.summary(), (Code::Unavailable, "CHANGE_PENDING", "in-doubt", ""), "{pending:?}");
    assert!(pending.message.contains("node-3"), "{pending:?}");
    // Nor is one that changes nothing.
    let again = Refusal::from(first.client().update_tenant(ordering("shop")).await.expect_err("a node is away"));
    assert_eq!(again.reason, "CHANGE_PENDING");
    owed(&company, 2).await;

    company.start_node_alone(2, Version::This).await;
    // Nobody has to ask again: the node gets what it owes.
    owed(&company, 0).await;
    first.client().update_tenant(ordering("shop")).await.expect("in force");
}

/// Waits until the first coordinator reports this number of fences that nodes owe.
async fn owed(company: &Company, fences: u32) {
    eventually("the fences that nodes owe are counted", async || {
        let metrics = get(company.coordinators[0].admin, "/metrics").await.ok()?.1;
        metrics.contains(&format!("\nwitan_owed_fences {fences}\n")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_id_another_process_has_taken_stops() {
    let (mut company, link) = company().await;
    link.cut();
    // The lease of the one that is cut off expires, and a process of the same id takes it.
    let free = SocketAddr::new(own_address(), 0);
    let command = company.command("coordinator-2", free, free);
    let mut taker = Process::start("taker", command, company.folder.path());
    taker.ready().await;
    link.restore();
    let loser = company.coordinators[1].process.as_mut().expect("it runs");
    assert_eq!(loser.ended().await.code(), Some(3), "{}", loser.tail());
    let said = loser.tail();
    assert!(said.contains("another one has taken its id") && said.contains("--node-id"), "{said}");
    taker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_store_that_comes_back_older_is_noticed_and_goes_on_above_the_fences() {
    let mut company = Company::of(1).await;
    let first = company.api(0);
    first.tenant("shop", |_| {}).await;
    let change = |ordering: &str| v1::UpdateTenantRequest { ordering: ordering.to_owned(), ..update("shop") };
    for ordering in ["clock", "quorum", "clock"] {
        first.client().update_tenant(change(ordering)).await.expect("in force");
    }
    // As a backup from before these changes: with a lower revision, and without their log.
    company.coordinators[0].process.as_mut().expect("it runs").end().await;
    company
        .postgres
        .ask("UPDATE cluster_state SET revision = 3, placement_epoch = 3; DELETE FROM changes WHERE revision > 3");
    company.start_unready(0).await;
    let admin = company.coordinators[0].admin;
    let (status, body) = get(admin, "/readyz").await.expect("an answer");
    assert!(status == 503 && body.contains("METADATA_BEHIND") && body.contains("witan cluster restored"), "{body}");
    let refusal = company.api(0).write(write("shop", "k", "v")).await.expect_err("nodes know of later changes");
    assert_eq!(refusal.reason, "STALE_EPOCH", "{refusal:?}");

    let api = company.api(0);
    api.client()
        .declare_restored(v1::DeclareRestoredRequest { confirm: "restored".to_owned() })
        .await
        .expect("declared");
    eventually("the coordinator is ready", async || (get(admin, "/readyz").await.ok()?.0 == 200).then_some(())).await;
    eventually("the tenant can be used", async || api.write(write("shop", "k", "v")).await.ok()).await;
    api.client().update_tenant(change("quorum")).await.expect("in force");
    api.write(write("shop", "k", "w")).await.expect("written");
}
