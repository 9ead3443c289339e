//! Tenants and nodes: what can be changed, what cannot, and the message of each refusal.

use tonic::{Code, Status};
use witan_wire::v1;
use witan_wire::v1::plan_migration_request::Change;

use crate::harness::{Api, Cluster, Dev, Refusal, Setup, eventually, write};

fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> Refusal {
    result.expect_err("refused").into()
}

async fn create(api: &Api, change: impl FnOnce(&mut v1::CreateTenantRequest)) -> Refusal {
    let mut request = v1::CreateTenantRequest { tenant_id: "new".to_owned(), ..v1::CreateTenantRequest::default() };
    change(&mut request);
    refusal(api.client().create_tenant(request).await)
}

#[tokio::test]
async fn tenants_are_created_once_and_within_bounds() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let exists = create(&api, |request| request.tenant_id = "t".to_owned()).await;
    assert_eq!(exists.summary(), (Code::AlreadyExists, "TENANT_EXISTS", "not-applied", ""));
    let too_many = create(&api, |request| request.replication_factor = 4).await;
    assert_eq!(too_many.summary(), (Code::FailedPrecondition, "INVALID_REPLICATION_FACTOR", "not-applied", ""));
    let bad = |field| (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", field);
    for factor in [-1, 6] {
        let out_of_range = create(&api, |request| request.replication_factor = factor).await;
        let reason = "INVALID_REPLICATION_FACTOR";
        assert_eq!(out_of_range.summary(), (Code::InvalidArgument, reason, "not-applied", "replication_factor"));
    }
    let odd = || "odd".to_owned();
    assert_eq!(create(&api, |request| request.tenant_id = "a:b".to_owned()).await.summary(), bad("tenant_id"));
    assert_eq!(create(&api, |request| request.conflict_mode = odd()).await.summary(), bad("conflict_mode"));
    assert_eq!(create(&api, |request| request.ordering = odd()).await.summary(), bad("ordering"));
    assert_eq!(create(&api, |request| request.read_repair = odd()).await.summary(), bad("read_repair"));
    assert_eq!(create(&api, |request| request.minimum_level = odd()).await.summary(), bad("minimum_level"));
    assert_eq!(create(&api, |request| request.default_level = odd()).await.summary(), bad("default_level"));
    assert_eq!(create(&api, |request| request.idempotency_outage = odd()).await.summary(), bad("idempotency_outage"));
    for seconds in [-1, 59, 86_401] {
        let refused = create(&api, |request| request.idempotency_retention_seconds = seconds).await;
        assert_eq!(refused.summary(), bad("idempotency_retention_seconds"), "{seconds}");
    }
    let missing = refusal(api.client().get_tenant(v1::GetTenantRequest { tenant_id: "new".to_owned() }).await);
    assert_eq!((missing.code, missing.reason.as_str()), (Code::NotFound, "TENANT_NOT_FOUND"), "none was created");
}

#[tokio::test]
async fn tenants_change_by_version_and_list_by_pages() {
    let dev = Dev::start().await;
    let api = dev.api();
    for index in 0..5 {
        api.tenant(&format!("t{index}"), |_| {}).await;
    }
    let get = v1::GetTenantRequest { tenant_id: "t1".to_owned() };
    let before = api.client().get_tenant(get.clone()).await.expect("get").into_inner();
    assert_eq!((before.replication_factor, before.conflict_mode.as_str()), (3, "register"));
    let update = v1::UpdateTenantRequest {
        tenant_id: "t1".to_owned(),
        version: before.version,
        read_repair: "blocking".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    let after = api.client().update_tenant(update.clone()).await.expect("update").into_inner();
    assert!(after.version > before.version);
    assert_eq!((after.read_repair.as_str(), after.ordering.as_str()), ("blocking", "quorum"));
    let stale = refusal(api.client().update_tenant(update.clone()).await);
    assert_eq!(stale.summary(), (Code::Aborted, "VERSION_CONFLICT", "not-applied", ""));
    let whatever_stands = v1::UpdateTenantRequest { version: 0, ..update };
    api.client().update_tenant(whatever_stands).await.expect("update without a version");

    let mut listed = Vec::new();
    let mut request = v1::ListTenantsRequest { page_size: 2, page_token: String::new() };
    loop {
        let page = api.client().list_tenants(request.clone()).await.expect("list").into_inner();
        assert!(page.tenants.len() <= 2);
        listed.extend(page.tenants.into_iter().map(|tenant| tenant.tenant_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, ["t0", "t1", "t2", "t3", "t4"]);
    let page_size = refusal(api.client().list_tenants(v1::ListTenantsRequest { page_size: 1001, ..request }).await);
    assert_eq!((page_size.code, page_size.fields[0].as_str()), (Code::InvalidArgument, "page_size"));
}

/// Where changes are not fenced, records cannot be moved.
#[tokio::test]
async fn what_would_move_data_is_refused_and_why() {
    let settings = vec![("WITAN_CONSISTENCY__FENCE_CHANGES", "false".to_owned())];
    let cluster = Cluster::with(Setup { settings, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |request| request.replication_factor = 1).await;
    let factor =
        |wanted| v1::UpdateReplicationFactorRequest { tenant_id: "t".to_owned(), new_replication_factor: wanted };
    let changed = api.client().update_replication_factor(factor(2)).await.expect("no data yet").into_inner();
    assert_eq!((changed.old_replication_factor, changed.new_replication_factor), (1, 2));
    let too_many = refusal(api.client().update_replication_factor(factor(4)).await);
    assert_eq!(too_many.summary(), (Code::FailedPrecondition, "INVALID_REPLICATION_FACTOR", "not-applied", ""));
    let out_of_range = refusal(api.client().update_replication_factor(factor(0)).await);
    let reason = "INVALID_REPLICATION_FACTOR";
    assert_eq!(out_of_range.summary(), (Code::InvalidArgument, reason, "not-applied", "new_replication_factor"));

    let request = v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..write("t", "k", "v") };
    api.write(request).await.expect("write");
    let not_yet = (Code::Unimplemented, "INVALID_REQUEST", "not-applied", "");
    assert_eq!(refusal(api.client().update_replication_factor(factor(3)).await).summary(), not_yet);
    let node = v1::AddStorageNodeRequest {
        node_id: "node-4".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 9,
        virtual_nodes: 0,
        zone: String::new(),
    };
    let refused = refusal(api.client().add_storage_node(node.clone()).await);
    assert_eq!(refused.summary(), not_yet);
    assert!(refused.message.contains("data"), "it says why: {}", refused.message);
    let remove = |force| v1::RemoveStorageNodeRequest { node_id: "node-3".to_owned(), force, accept_loss: false };
    assert_eq!(refusal(api.client().remove_storage_node(remove(false)).await).summary(), not_yet);
    assert_eq!(refusal(api.client().remove_storage_node(remove(true)).await).summary(), not_yet);
    let bad_port = v1::AddStorageNodeRequest { port: 70_000, ..node };
    assert_eq!(refusal(api.client().add_storage_node(bad_port).await).summary().3, "port");
    // The state and the content of nodes are requested each time; a slow node is shown without them.
    let nodes = eventually("every node is reachable, and some say what they hold", async || {
        let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("list").into_inner();
        let keys: i64 = listed.nodes.iter().map(|node| node.keys_count).sum();
        (keys > 0 && listed.nodes.iter().all(|node| node.reachable)).then_some(listed.nodes)
    })
    .await;
    assert_eq!(nodes.len(), 3);
    assert!(nodes.iter().all(|node| node.virtual_nodes == 150), "{nodes:?}");
    // And the data has not moved.
    assert_eq!(api.read(crate::harness::read("t", "k")).await.expect("read").value, "v");
}

/// Where nothing moves, and wherever records can be moved.
#[tokio::test]
async fn migrations_are_looked_up_by_name_and_planned_without_a_change() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |request| request.replication_factor = 2).await;
    for id in ["", "17", "m-0", "m-07", "m-99999999999999999999", "m-1\u{1b}[2J"] {
        let get = v1::GetMigrationStatusRequest { migration_id: id.to_owned() };
        let missing = refusal(api.client().get_migration_status(get).await);
        assert_eq!((missing.code, missing.reason.as_str()), (Code::NotFound, "MIGRATION_NOT_FOUND"), "{id}");
        let cancel = v1::CancelMigrationRequest { migration_id: id.to_owned(), confirm_undo: true };
        let missing = refusal(api.client().cancel_migration(cancel).await);
        assert_eq!(missing.summary(), (Code::NotFound, "MIGRATION_NOT_FOUND", "not-applied", ""), "{id}");
    }
    let field = |refused: Refusal| refused.fields.into_iter().next().unwrap_or_default();
    let size = v1::ListMigrationsRequest { page_size: 1001, page_token: String::new() };
    assert_eq!(field(refusal(api.client().list_migrations(size).await)), "page_size");
    let token = v1::ListMigrationsRequest { page_size: 1, page_token: "t1".to_owned() };
    assert_eq!(field(refusal(api.client().list_migrations(token).await)), "page_token");
    let listed = api.client().list_migrations(v1::ListMigrationsRequest::default()).await.expect("listed").into_inner();
    assert!(listed.migrations.is_empty() && listed.next_page_token.is_empty(), "{listed:?}");
    let list = async |request| api.client().list_leftovers(request).await;
    let default = v1::ListLeftoversRequest::default;
    for (token, node, tenant, wrong) in
        [("t", "", "", "page_token"), ("", "n 1", "", "node_id"), ("", "", "t:1", "tenant_id")]
    {
        let (page_token, node_id, tenant_id) = (token.to_owned(), node.to_owned(), tenant.to_owned());
        let request = v1::ListLeftoversRequest { page_token, node_id, tenant_id, page_size: 0 };
        assert_eq!(field(refusal(list(request).await)), wrong);
    }
    assert_eq!(field(refusal(list(v1::ListLeftoversRequest { page_size: 1001, ..default() }).await)), "page_size");
    let listed = list(default()).await.expect("listed").into_inner();
    assert!(listed.leftovers.is_empty() && listed.next_page_token.is_empty(), "{listed:?}");
    let dropped = api.client().drop_leftovers(v1::DropLeftoversRequest::default()).await;
    assert_eq!(field(refusal(dropped)), "node_id", "nobody drops those of all nodes at once");

    let plan = async |change| api.client().plan_migration(v1::PlanMigrationRequest { change }).await;
    assert_eq!(field(refusal(plan(None).await)), "change");
    let add = v1::AddStorageNodeRequest {
        node_id: "node-4".to_owned(),
        host: "there".to_owned(),
        port: 9,
        virtual_nodes: 0,
        zone: String::new(),
    };
    let planned = plan(Some(Change::Add(add))).await.expect("a plan").into_inner();
    let shares: Vec<f64> = planned.nodes.iter().map(|node| node.share_after).collect();
    assert_eq!(
        planned.nodes.iter().map(|node| &*node.node_id).collect::<Vec<_>>(),
        ["node-1", "node-2", "node-3", "node-4"]
    );
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 && shares[3] > 0.1, "{planned:?}");
    assert!((planned.moved_share - planned.least_share).abs() < 0.1 && planned.tenants == 1, "{planned:?}");
    let remove = v1::RemoveStorageNodeRequest { node_id: "node-9".to_owned(), force: false, accept_loss: false };
    let planned = plan(Some(Change::Remove(remove))).await.expect("a plan").into_inner();
    assert!(planned.problems.iter().any(|problem| problem.contains("node-9 is not part of the ring")), "{planned:?}");
    let factor = v1::UpdateReplicationFactorRequest { tenant_id: "t".to_owned(), new_replication_factor: 4 };
    let planned = plan(Some(Change::Factor(factor))).await.expect("a plan").into_inner();
    assert!(planned.problems.iter().any(|problem| problem.contains("4 replicas need 4 storage nodes")), "{planned:?}");
    let tenant = v1::GetTenantRequest { tenant_id: "t".to_owned() };
    let tenant = api.client().get_tenant(tenant).await.expect("get").into_inner();
    assert_eq!(
        (tenant.replication_factor, tenant.version, &*tenant.pending_migration_id),
        (2, 1, ""),
        "nothing has changed"
    );
}

async fn updates_that_cannot_be(api: &Api) {
    let update = async |id: &str, virtual_nodes: Option<i32>, zone: Option<&str>| {
        let (node_id, zone) = (id.to_owned(), zone.map(str::to_owned));
        let request = v1::UpdateStorageNodeRequest { node_id, virtual_nodes, zone };
        refusal(api.client().update_storage_node(request).await)
    };
    for (virtual_nodes, zone, wrong) in [
        (None, None, "virtual_nodes"),
        (Some(0), None, "virtual_nodes"),
        (Some(4097), Some("a"), "virtual_nodes"),
        (Some(i32::MIN), None, "virtual_nodes"),
        (None, Some("rack 1"), "zone"),
        (None, Some(&*"z".repeat(65)), "zone"),
        (None, Some("a\u{1b}[2J"), "zone"),
    ] {
        let refused = update("node-1", virtual_nodes, zone).await;
        assert_eq!(refused.summary(), (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", wrong), "{refused:?}");
    }
    assert_eq!(update("", Some(1), None).await.summary().3, "node_id");
    let unknown = update("node-9", Some(1), None).await;
    assert_eq!(unknown.summary(), (Code::NotFound, "NODE_NOT_FOUND", "not-applied", ""), "{unknown:?}");
}

/// Each says what is wrong, and changes nothing.
#[tokio::test]
async fn changes_of_placements_that_cannot_be_are_refused() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    api.write(write("t", "k", "v")).await.expect("write");
    let factor = async |wanted| {
        let request = v1::UpdateReplicationFactorRequest { tenant_id: "t".to_owned(), new_replication_factor: wanted };
        refusal(api.client().update_replication_factor(request).await)
    };
    let reason = "INVALID_REPLICATION_FACTOR";
    for wanted in [i32::MIN, -1, 0, 6, i32::MAX] {
        let summary = (Code::InvalidArgument, reason, "not-applied", "new_replication_factor");
        assert_eq!(factor(wanted).await.summary(), summary, "{wanted}");
    }
    let too_many = factor(4).await;
    assert_eq!(too_many.summary(), (Code::FailedPrecondition, reason, "not-applied", ""), "{too_many:?}");
    let remove = async |id: &str, force| {
        let request = v1::RemoveStorageNodeRequest { node_id: id.to_owned(), force, accept_loss: force };
        refusal(api.client().remove_storage_node(request).await)
    };
    for force in [false, true] {
        let unknown = remove("node-9", force).await;
        assert_eq!(unknown.summary(), (Code::NotFound, "NODE_NOT_FOUND", "not-applied", ""), "{unknown:?}");
        assert_eq!(remove("", force).await.summary().3, "node_id");
        let needed = remove("node-1", force).await;
        assert_eq!(needed.summary(), (Code::FailedPrecondition, "NODE_IN_USE", "not-applied", ""), "{needed:?}");
    }

    let first = dev.nodes()[0];
    let add = |id: &str, host: &str, port| v1::AddStorageNodeRequest {
        node_id: id.to_owned(),
        host: host.to_owned(),
        port,
        virtual_nodes: 0,
        zone: String::new(),
    };
    let taken = add("node-4", &first.ip().to_string(), first.port().into());
    let taken = refusal(api.client().add_storage_node(taken).await);
    assert_eq!(taken.summary(), (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", "host"), "{taken:?}");
    assert!(taken.message.contains("is the address of node node-1"), "{taken:?}");
    let exists = refusal(api.client().add_storage_node(add("node-1", "192.0.2.1", 9)).await);
    assert_eq!(exists.summary(), (Code::AlreadyExists, "NODE_EXISTS", "not-applied", ""), "{exists:?}");
    updates_that_cannot_be(&api).await;
    let odd = v1::AddStorageNodeRequest { zone: "rack/1".to_owned(), ..add("node-4", "127.0.0.1", 9) };
    assert_eq!(refusal(api.client().add_storage_node(odd).await).summary().3, "zone");
    let listed = api.client().list_migrations(v1::ListMigrationsRequest::default()).await.expect("listed").into_inner();
    assert!(listed.migrations.is_empty(), "{listed:?}");

    // The same again is the same change; the same node elsewhere, while it joins, is another one.
    let joins = add("node-4", "127.0.0.1", 9);
    let added = api.client().add_storage_node(joins.clone()).await.expect("recorded").into_inner();
    let again = api.client().add_storage_node(joins).await.expect("the same").into_inner();
    assert!(added.migration_id.starts_with("m-") && again.migration_id == added.migration_id, "{again:?}");
    let elsewhere = refusal(api.client().add_storage_node(add("node-4", "127.0.0.1", 10)).await);
    assert_eq!(elsewhere.summary(), (Code::AlreadyExists, "NODE_EXISTS", "not-applied", ""), "{elsewhere:?}");
    let cancel = v1::CancelMigrationRequest { migration_id: added.migration_id.clone(), confirm_undo: false };
    api.client().cancel_migration(cancel.clone()).await.expect("given up");
    let get = v1::GetMigrationStatusRequest { migration_id: added.migration_id };
    let ended = eventually("it is given up", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        (now.status == "cancelled").then_some(now)
    })
    .await;
    // One that has ended stays as it is.
    let again = api.client().cancel_migration(cancel).await.expect("as it is").into_inner();
    assert_eq!((&*again.status, again.finished_at), ("cancelled", ended.finished_at));
    assert_eq!(api.read(crate::harness::read("t", "k")).await.expect("read").value, "v");
}
