//! Nodes join and leave, and replication factors change, while clients read, write and delete: nothing that was acknowledged is missing,
//! and in the end each node has records of its own keys only.

mod failing;
mod load;
mod maintenance;
mod play;
mod swaps;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::Code;
use witan_kernel::name::{NodeId, TenantId, Zone};
use witan_kernel::ring::{Member, Ring, token};
use witan_wire::v1;

use crate::harness::{
    Api, Cluster, Company, Process, Refusal, Version, delete, eventually, node_client, own_address, read, write,
};
use load::{KEYS, Keys, Load, SIBLINGS, TENANTS};

/// How long a migration may take on a machine that is busy with other tests. Many more keys take more.
fn patience() -> Duration {
    Duration::from_secs(300) + Duration::from_millis(play::keys() as u64)
}

/// Waits until a migration has ended, which must be as completed.
async fn completed(api: &Api, migration: &str) -> v1::GetMigrationStatusResponse {
    assert!(migration.starts_with("m-"), "records have to move: {migration:?}");
    let (until, mut least) = (Instant::now() + patience(), (0, 0.0));
    loop {
        let request = v1::GetMigrationStatusRequest { migration_id: migration.to_owned() };
        let now = match api.client().get_migration_status(request).await {
            Ok(now) => now.into_inner(),
            // The metadata store is slower than its deadline on a machine that is busy with other tests.
            Err(status) if status.code() == Code::Unavailable && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(status) => panic!("its status: {status}"),
        };
        let progress = now.progress.expect("its progress");
        let is = (progress.keys_migrated, progress.percentage);
        assert!(is.0 >= least.0 && is.1 >= least.1, "its progress falls: {now:?} after {least:?}");
        least = is;
        match now.status.as_str() {
            "completed" => return now,
            "pending" | "in_progress" => {}
            _ => panic!("it has ended otherwise: {now:?}"),
        }
        assert!(Instant::now() < until, "it does not end: {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn factor(api: &Api, tenant: &str, to: i32) -> Result<v1::UpdateReplicationFactorResponse, Refusal> {
    let request = v1::UpdateReplicationFactorRequest { tenant_id: tenant.to_owned(), new_replication_factor: to };
    Ok(api.client().update_replication_factor(request).await?.into_inner())
}

async fn tenant(api: &Api, id: &str) -> v1::GetTenantResponse {
    let request = v1::GetTenantRequest { tenant_id: id.to_owned() };
    api.client().get_tenant(request).await.expect("get").into_inner()
}

async fn nodes(api: &Api) -> Vec<v1::StorageNodeInfo> {
    let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await;
    listed.expect("listed").into_inner().nodes
}

/// The keys of a tenant of which a node has records.
async fn keys_on(node: SocketAddr, tenant: &str) -> BTreeSet<String> {
    let (mut keys, mut after) = (BTreeSet::new(), None);
    loop {
        let tenant_id = tenant.to_owned();
        let request = v1::ScanRangeRequest { tenant_id, abridged: true, after, ..v1::ScanRangeRequest::default() };
        let page = node_client(node).scan_range(request).await.expect("scanned").into_inner();
        let key = |record: v1::StoredRecord| String::from_utf8(record.position.expect("a position").key.to_vec());
        keys.extend(page.records.into_iter().map(|record| key(record).expect("a key of the load")));
        after = page.next;
        if after.is_none() {
            return keys;
        }
    }
}

/// The nodes, as members of a ring.
fn members(nodes: &[v1::StorageNodeInfo]) -> Vec<Member> {
    let member = |node: &v1::StorageNodeInfo| Member {
        node: NodeId::new(&*node.node_id).expect("an id"),
        virtual_nodes: node.virtual_nodes as u32,
        zone: Zone::new(&*node.zone).expect("a zone"),
    };
    nodes.iter().map(member).collect()
}

/// Waits until each node has records of all keys with a value of which it is a replica, and none of which it is not.
async fn each_has_its_own(api: &Api, keys: &Keys) {
    let nodes = nodes(api).await;
    assert!(nodes.iter().all(|node| node.status == "active"), "{nodes:?}");
    let id = |node: &v1::StorageNodeInfo| NodeId::new(&*node.node_id).expect("an id");
    let ring = Ring::of(&members(&nodes), 0);
    for name in keys.tenants() {
        let replicas = u8::try_from(tenant(api, name).await.replication_factor).expect("a factor");
        let of = TenantId::new(name).expect("a tenant");
        for node in &nodes {
            let own = |key: &str| ring.replicas(token(&of, key.as_bytes()), replicas).contains(&id(node));
            let own: BTreeMap<&str, bool> = keys.of(name).into_iter().filter(|(key, _)| own(key)).collect();
            let address = SocketAddr::new(node.host.parse().expect("an address"), node.port as u16);
            eventually(&format!("{} has its keys of {name} and no others", node.node_id), async || {
                let here = keys_on(address, name).await;
                let all = own.iter().all(|(key, has_a_value)| !has_a_value || here.contains(*key));
                let others = here.iter().any(|key| !own.contains_key(key.as_str()));
                (all && !others).then_some(())
            })
            .await;
        }
    }
}

/// The play: three nodes become five, replicas become more and fewer, a node leaves. No operation fails.
async fn play(apis: &[Api], joining: Vec<v1::AddStorageNodeRequest>) {
    let api = &apis[0];
    Load::tenants(api).await;
    let load = Load::start(apis, true);
    load.goes_on().await;

    for node in joining {
        let added = api.client().add_storage_node(node.clone()).await.expect("recorded").into_inner();
        let again = apis[apis.len() - 1].client().add_storage_node(node.clone()).await.expect("the same").into_inner();
        assert_eq!(again.migration_id, added.migration_id);
        let ended = completed(api, &added.migration_id).await;
        assert_eq!((&*ended.r#type, &*ended.node_id, ended.tenants_done), ("add_node", &*node.node_id, 3), "{ended:?}");
        load.goes_on().await;
    }

    let refused = factor(api, "three", 6).await.expect_err("at most five");
    assert_eq!((refused.code, &*refused.reason), (Code::InvalidArgument, "INVALID_REPLICATION_FACTOR"));
    for (name, from, to) in [("three", 3, 5), (SIBLINGS, 3, 4), ("two", 2, 3)] {
        resized(api, name, from, to).await;
        load.goes_on().await;
    }
    let refused = remove(api, "node-2").await.expect_err("four would remain");
    assert_eq!(refused.summary(), (Code::FailedPrecondition, "NODE_IN_USE", "not-applied", ""), "{refused:?}");
    resized(api, "three", 5, 3).await;
    load.goes_on().await;

    let removed = remove(api, "node-1").await.expect("recorded");
    completed(api, &removed.migration_id).await;
    eventually("the node is no longer listed", async || (nodes(api).await.len() == 4).then_some(())).await;
    load.goes_on().await;

    let (mut keys, refusals) = load.end().await;
    assert!(refusals.is_empty(), "{} operations failed: {refusals:#?}", refusals.len());
    keys.all_read(apis).await;
    each_has_its_own(api, &keys).await;
    let listed = api.client().list_migrations(v1::ListMigrationsRequest::default()).await.expect("listed").into_inner();
    let states: Vec<(&str, &str)> = listed.migrations.iter().map(|it| (&*it.r#type, &*it.status)).collect();
    let types = ["remove_node"].into_iter().chain(["replication_factor"; 4]).chain(["add_node"; 2]);
    assert_eq!(states, types.map(|it| (it, "completed")).collect::<Vec<_>>(), "the newest first");
}

/// Changes a replication factor, and waits until it is there.
async fn resized(api: &Api, name: &str, from: i32, to: i32) {
    let resized = factor(api, name, to).await.expect("recorded");
    assert_eq!((resized.old_replication_factor, resized.new_replication_factor), (from, to));
    completed(api, &resized.migration_id).await;
    let now = tenant(api, name).await;
    assert_eq!((now.replication_factor, &*now.pending_migration_id), (to, ""));
}

async fn remove(api: &Api, id: &str) -> Result<v1::StorageNodeChangeResponse, Refusal> {
    let request = v1::RemoveStorageNodeRequest { node_id: id.to_owned(), ..v1::RemoveStorageNodeRequest::default() };
    Ok(api.client().remove_storage_node(request).await?.into_inner())
}

/// A storage node that is no part of any cluster yet.
async fn another(id: &str, folder: &TempDir) -> (Process, v1::AddStorageNodeRequest) {
    let mut command = Process::witan();
    command.args(["node", "--id", id, "--durability", "os"]).arg("--data-dir").arg(folder.path().join(id));
    command.args(["--listen", &SocketAddr::new(own_address(), 0).to_string()]);
    let mut process = Process::start(id, command, folder.path());
    process.ready().await;
    let address = process.address("address");
    let (host, port) = (address.ip().to_string(), address.port().into());
    (process, v1::AddStorageNodeRequest { node_id: id.to_owned(), host, port, virtual_nodes: 0, zone: String::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_coordinator_moves_records_under_load() {
    let cluster = Cluster::start().await;
    let folder = tempfile::tempdir().expect("make a folder");
    let (_fourth, fourth) = another("node-4", &folder).await;
    let (_fifth, fifth) = another("node-5", &folder).await;
    play(&[cluster.api()], vec![fourth, fifth]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_that_share_a_database_move_records_under_load() {
    let mut company = Company::of(2).await;
    let joining = vec![company.another_node().await, company.another_node().await];
    play(&[company.api(0), company.api(1)], joining).await;
}

/// Whichever coordinator carries it out: another one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_completed_although_coordinators_die() {
    let mut company = Company::of(2).await;
    let fourth = company.another_node().await;
    let api = company.api(0);
    for (name, replicas) in TENANTS {
        api.tenant(name, |tenant| tenant.replication_factor = replicas).await;
        for n in 0..KEYS {
            api.write(write(name, &format!("key-{n}"), "v")).await.expect("written");
        }
    }
    let address = SocketAddr::new(fourth.host.parse().expect("an address"), fourth.port as u16);
    let added = api.client().add_storage_node(fourth).await.expect("recorded").into_inner();
    company.nodes.push(("node-4".to_owned(), address));
    for coordinator in [0, 1] {
        company.coordinators[coordinator].process = None;
        company.start_unready(coordinator).await;
    }
    completed(&company.api(1), &added.migration_id).await;
    for (name, _) in TENANTS {
        for n in 0..KEYS {
            let found = company.api(0).read(read(name, &format!("key-{n}"))).await.expect("read");
            assert_eq!(&found.value[..], b"v");
        }
    }
}

/// A node that joins is given up: it has nothing left, and the others have everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_waits_for_a_node_is_cancelled() {
    let cluster = Cluster::start().await;
    let api = cluster.api();
    api.tenant("three", |_| {}).await;
    for n in 0..KEYS {
        api.write(write("three", &format!("key-{n}"), "v")).await.expect("written");
    }
    let absent = v1::AddStorageNodeRequest {
        node_id: "node-4".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 9,
        virtual_nodes: 0,
        zone: String::new(),
    };
    let added = api.client().add_storage_node(absent).await.expect("recorded").into_inner();
    assert!(added.message.contains("waits"), "{}", added.message);
    let get = v1::GetMigrationStatusRequest { migration_id: added.migration_id.clone() };
    eventually("it says for what it waits", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        now.message.contains("node-4").then_some(())
    })
    .await;
    let cancel = v1::CancelMigrationRequest { migration_id: added.migration_id, confirm_undo: false };
    api.client().cancel_migration(cancel).await.expect("given up");
    eventually("it is given up", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        (now.status == "cancelled").then_some(())
    })
    .await;
    eventually("the node is no longer listed", async || (nodes(&api).await.len() == 3).then_some(())).await;
    for n in 0..KEYS {
        assert_eq!(&api.read(read("three", &format!("key-{n}"))).await.expect("read").value[..], b"v");
    }
}

/// Its records are copied from their other replicas, and what only it has is given up only by somebody who says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_is_removed_by_force() {
    let mut company = Company::with(4, 1).await;
    let api = company.api(0);
    for (name, replicas) in [("three", 3), ("one", 1)] {
        api.tenant(name, |tenant| tenant.replication_factor = replicas).await;
        for n in 0..KEYS {
            api.write(write(name, &format!("key-{n}"), "v")).await.expect("written");
        }
    }
    company.end_node(3).await;
    eventually("the coordinator has noticed", async || (!company.node_at(0, 3).await.reachable).then_some(())).await;
    let remove = async |accept_loss| {
        let node_id = "node-4".to_owned();
        let request = v1::RemoveStorageNodeRequest { node_id, force: true, accept_loss };
        api.client().remove_storage_node(request).await
    };
    let refused: Refusal = remove(false).await.expect_err("tenant one has one replica").into();
    assert_eq!(refused.summary(), (Code::FailedPrecondition, "SOURCES_UNREACHABLE", "not-applied", ""), "{refused:?}");
    assert!(refused.message.contains("tenant one"), "{}", refused.message);
    let removed = remove(true).await.expect("recorded").into_inner();
    assert!(completed(&api, &removed.migration_id).await.force);
    eventually("the node is no longer listed", async || (nodes(&api).await.len() == 3).then_some(())).await;
    let mut lost = 0;
    for n in 0..KEYS {
        let key = format!("key-{n}");
        assert_eq!(&api.read(read("three", &key)).await.expect("two replicas had it").value[..], b"v");
        match api.read(read("one", &key)).await {
            Ok(found) => assert_eq!(&found.value[..], b"v"),
            Err(refusal) => {
                assert_eq!(refusal.reason, "KEY_NOT_FOUND", "{refusal:?}");
                lost += 1;
            }
        }
    }
    assert!((1..KEYS).contains(&lost), "about a fourth was on that node: {lost}");
}

async fn leftovers(api: &Api, request: v1::ListLeftoversRequest) -> v1::ListLeftoversResponse {
    api.client().list_leftovers(request).await.expect("listed").into_inner()
}

/// Asks a node to leave that cannot be reached, and waits until only what it has left over is waited for.
async fn leaves_while_away(company: &Company, api: &Api) -> String {
    eventually("the coordinator has noticed", async || (!company.node_at(0, 3).await.reachable).then_some(())).await;
    let remove = v1::RemoveStorageNodeRequest { node_id: "node-4".to_owned(), ..Default::default() };
    let removed = api.client().remove_storage_node(remove).await.expect("recorded").into_inner();
    let get = v1::GetMigrationStatusRequest { migration_id: removed.migration_id.clone() };
    let waits = eventually("only what is left over is waited for, and that is said", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        let listed = leftovers(api, v1::ListLeftoversRequest::default()).await.leftovers;
        let all: Vec<(&str, &str)> = listed.iter().map(|left| (&*left.tenant_id, &*left.node_id)).collect();
        let is_said = now.message.contains("node-4") && now.message.contains("it cannot be reached (and 1 more");
        (is_said && all == [("other", "node-4"), ("three", "node-4")]).then_some(now)
    })
    .await;
    assert_eq!((&*waits.status, &*waits.phase, waits.tenants_done), ("in_progress", "cleanup", 2), "{waits:?}");
    removed.migration_id
}

/// Reads all keys from all replicas.
async fn each_is_as_it_was(api: &Api, keys: &Keys) {
    for ((tenant, key), possible) in &keys.registers {
        let all = v1::ReadKeyValueRequest { consistency: "all".to_owned(), ..read(tenant, key) };
        let found = match api.read(all).await {
            Ok(found) => Some(String::from_utf8(found.value.to_vec()).expect("a value of the test")),
            Err(refusal) => {
                assert_eq!(refusal.reason, "KEY_NOT_FOUND", "{refusal:?}");
                None
            }
        };
        assert!(possible.contains(&found), "{tenant} {key} has {found:?}, and may have {possible:?}");
    }
}

/// A node that is away when its tenants have moved is waited for until somebody gives up what it has left. That is never read again, also
/// when the node is back and its tenants, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_a_node_that_is_away_are_given_up_and_stay_gone() {
    let mut company = Company::with(4, 1).await;
    let (api, mut keys) = (company.api(0), Keys::default());
    for name in ["other", "three"] {
        api.tenant(name, |_| {}).await;
        for n in 0..KEYS {
            api.write(write(name, &format!("key-{n}"), "v")).await.expect("written");
        }
    }
    company.end_node(3).await;
    for name in ["other", "three"] {
        for (n, key) in (0..KEYS).map(|n| (n, format!("key-{n}"))) {
            let value = (n % 2 == 1).then_some("w");
            match value {
                Some(value) => api.write(write(name, &key, value)).await.map(drop).expect("written"),
                None => api.delete(delete(name, &key)).await.map(drop).expect("deleted"),
            }
            keys.registers.insert((name, key), [value.map(str::to_owned)].into());
        }
    }
    let asked = leaves_while_away(&company, &api).await;
    let first = leftovers(&api, v1::ListLeftoversRequest { page_size: 1, ..Default::default() }).await;
    let [left] = &first.leftovers[..] else { panic!("a page of one: {first:?}") };
    assert!(left.only_copies && !left.node_reachable && left.created_at > 0, "{left:?}");
    let page_token = first.next_page_token.clone();
    let second = leftovers(&api, v1::ListLeftoversRequest { page_size: 1, page_token, ..Default::default() }).await;
    assert_eq!((&*second.leftovers[0].tenant_id, &*second.next_page_token), ("three", ""));
    let of_node = v1::ListLeftoversRequest { node_id: "node-1".to_owned(), ..Default::default() };
    assert!(leftovers(&api, of_node).await.leftovers.is_empty());
    let all = v1::DropLeftoversRequest { node_id: "node-4".to_owned(), ..Default::default() };
    let refused: Refusal = api.client().drop_leftovers(all.clone()).await.expect_err("its may be the only ones").into();
    assert_eq!((refused.code, &refused.fields[..]), (Code::InvalidArgument, &["accept_loss".to_owned()][..]));
    let all = v1::DropLeftoversRequest { accept_loss: true, ..all };
    let one = v1::DropLeftoversRequest { tenant_id: "three".to_owned(), ..all.clone() };
    for expected in [1, 0] {
        let dropped = api.client().drop_leftovers(one.clone()).await.expect("accepted").into_inner().dropped;
        assert_eq!(dropped, expected, "once");
    }

    // It stays after all, and comes back: with rows that were given up, and with others that it hands over.
    let cancel = v1::CancelMigrationRequest { migration_id: asked.clone(), confirm_undo: true };
    api.client().cancel_migration(cancel).await.expect("given up");
    company.start_node_alone(3, Version::This).await;
    let get = v1::GetMigrationStatusRequest { migration_id: asked };
    eventually("everything is back", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        (now.status == "cancelled").then_some(())
    })
    .await;
    each_is_as_it_was(&api, &keys).await;
    each_has_its_own(&api, &keys).await;

    company.end_node(3).await;
    let asked = leaves_while_away(&company, &api).await;
    assert_eq!(api.client().drop_leftovers(all).await.expect("accepted").into_inner().dropped, 2);
    completed(&api, &asked).await;
    eventually("the node is no longer listed", async || (nodes(&api).await.len() == 3).then_some(())).await;
    each_is_as_it_was(&api, &keys).await;
}
