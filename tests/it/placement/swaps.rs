//! Routing hooks of tenants are bound, rebound, rolled back and unbound while clients read, write and delete: nothing that was acknowledged
//! is missing, nothing that was deleted is back, and in the end each row is where its hook wants it, and no row of before is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use futures::stream::{self, StreamExt};
use tonic::Code;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::ring::{Ring, token};
use witan_wire::v1;

use super::load::{Keys, Load, SIBLINGS, TENANTS};
use super::{completed, members, nodes, tenant};
use crate::harness::{Api, Company, Guest, Plugins, Refusal, delete, eventually, node_client, read, write};

const HOOK: &str = "routing-hook";
/// A tenant of two replicas beside those of the load.
const BULK: &str = "carts";
const BULK_KEYS: usize = 5_000;
/// Of this number of keys, one is deleted at the beginning.
const DELETED: usize = 7;

/// What places the keys of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// The native rule.
    ByKey,
    /// The first-party hook `hash-tag`.
    ByTag,
    /// A hook that places all of them together.
    Together,
}

impl Placed {
    fn partition(self, key: &str) -> &str {
        match self {
            Self::ByKey => key,
            Self::ByTag => key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(key, |(tag, _)| tag),
            Self::Together => "p",
        }
    }
}

fn bulk(n: usize) -> String {
    format!("{{user-{}}}.{n}", n % 500)
}

async fn fill(apis: &[Api]) {
    apis[0].tenant(BULK, |tenant| tenant.replication_factor = 2).await;
    let one = |n: usize| async move {
        let api = &apis[n % apis.len()];
        api.write(write(BULK, &bulk(n), "v")).await.expect("written");
        if n.is_multiple_of(DELETED) {
            api.delete(delete(BULK, &bulk(n))).await.expect("deleted");
        }
    };
    stream::iter(0..BULK_KEYS).map(one).buffer_unordered(32).for_each(async |()| {}).await;
}

async fn is_complete(apis: &[Api]) {
    let one = |n: usize| async move {
        match apis[n % apis.len()].read(read(BULK, &bulk(n))).await {
            Ok(found) => assert!(!n.is_multiple_of(DELETED) && found.value == "v", "{n}: {found:?}"),
            Err(refusal) => {
                assert!(n.is_multiple_of(DELETED) && refusal.reason == "KEY_NOT_FOUND", "{n}: {refusal:?}");
            }
        }
    };
    stream::iter(0..BULK_KEYS).map(one).buffer_unordered(32).for_each(async |()| {}).await;
}

/// The keys of the bulk, and whether they have a value.
fn bulk_keys() -> BTreeMap<String, bool> {
    (0..BULK_KEYS).map(|n| (bulk(n), !n.is_multiple_of(DELETED))).collect()
}

/// The keys of a generation of a tenant of which a node has rows, each with its token.
async fn rows(node: SocketAddr, tenant: &str, generation: u32) -> BTreeMap<String, u64> {
    let name = if generation == 0 { tenant.to_owned() } else { format!("{tenant}:{generation}") };
    let (mut all, mut after) = (BTreeMap::new(), None);
    loop {
        let tenant_id = name.clone();
        let request = v1::ScanRangeRequest { tenant_id, abridged: true, after, ..v1::ScanRangeRequest::default() };
        let page = node_client(node).scan_range(request).await.expect("scanned").into_inner();
        for record in page.records {
            let position = record.position.expect("a position");
            all.insert(String::from_utf8(position.key.to_vec()).expect("a key of the test"), position.token);
        }
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Waits until the rows of a generation are on the replicas that its hook gives their keys and nowhere else, and until there are no rows of
/// other generations.
pub(super) async fn rows_are_placed(api: &Api, name: &str, keys: &BTreeMap<String, bool>, at: (u32, Placed)) {
    let (generation, placed) = at;
    let (nodes, of) = (nodes(api).await, TenantId::new(name).expect("a tenant"));
    let ring = Ring::of(&members(&nodes), 0);
    let replicas = u8::try_from(tenant(api, name).await.replication_factor).expect("a factor");
    for node in &nodes {
        let id = NodeId::new(&*node.node_id).expect("an id");
        let address = SocketAddr::new(node.host.parse().expect("an address"), node.port as u16);
        let place = |key: &str| token(&of, placed.partition(key).as_bytes());
        eventually(&format!("{id} has the rows of generation {generation} of {name} and no others"), async || {
            let here = rows(address, name, generation).await;
            let is_own = |key: &str| ring.replicas(place(key), replicas).contains(&id);
            let all = keys.iter().all(|(key, has_a_value)| !has_a_value || !is_own(key) || here.contains_key(key));
            let right = here.iter().all(|(key, token)| is_own(key) && *token == place(key));
            let mut others = 0;
            for other in (0..generation + 3).filter(|other| *other != generation) {
                others += rows(address, name, other).await.len();
            }
            (all && right && others == 0).then_some(())
        })
        .await;
    }
}

/// Binds a hook to a tenant, or unbinds it (`""`). Returns the migration.
pub(super) async fn bind(plugins: &Plugins, tenant: &str, plugin: &str) -> String {
    let bound = plugins.bind(tenant, HOOK, plugin).await.expect("bound");
    assert_eq!(bound.binding.is_some(), !plugin.is_empty());
    assert!(bound.migration_id.starts_with("m-"), "records move: {bound:?}");
    bound.migration_id
}

async fn roll_back(plugins: &Plugins, tenant: &str) -> String {
    plugins.roll_back(tenant, HOOK).await.expect("rolled back").migration_id
}

async fn all_completed(api: &Api, migrations: Vec<String>) {
    for migration in migrations {
        let ended = completed(api, &migration).await;
        assert_eq!((&*ended.r#type, &*ended.error_message), ("routing_hook", ""), "{ended:?}");
    }
}

fn apis(company: &Company) -> Vec<Api> {
    (0..company.coordinators.len()).map(|index| company.api(index)).collect()
}

fn plugins(company: &Company, index: usize) -> Plugins {
    Plugins::new(company.coordinators[index].address)
}

async fn company() -> Company {
    Company::with_environment(3, vec![("WITAN_PLACEMENT__LEADER_LEASE", "2s")]).await
}

/// A hook that places all keys together, and faults on those of three bytes.
async fn together(plugins: &Plugins) -> String {
    let guest = Guest::routing("together").when_triggered("unreachable").build();
    plugins.send(guest).await.expect("uploaded").digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_are_swapped_under_load() {
    let company = company().await;
    let apis = apis(&company);
    let api = &apis[0];
    fill(&apis).await;
    Load::tenants(api).await;
    let load = Load::of(0, &apis, true);
    load.goes_on().await;
    let tenants: Vec<&str> = TENANTS.iter().map(|(name, _)| *name).chain([SIBLINGS, BULK]).collect();
    let hash_tag = plugins(&company, 0).upload("hash-tag").await;
    let together = together(&plugins(&company, 1)).await;
    let steps = [
        (Placed::ByTag, hash_tag.as_str()),
        (Placed::Together, &together),
        (Placed::ByTag, "back"),
        (Placed::ByKey, ""),
    ];
    for (n, (placed, plugin)) in steps.into_iter().enumerate() {
        let plugins = plugins(&company, n % 3);
        let mut migrations = Vec::new();
        for name in &tenants {
            migrations.push(match plugin {
                "back" => roll_back(&plugins, name).await,
                plugin => bind(&plugins, name, plugin).await,
            });
        }
        all_completed(api, migrations).await;
        is_complete(&apis).await;
        rows_are_placed(api, BULK, &bulk_keys(), (n as u32 + 1, placed)).await;
        load.goes_on().await;
    }
    let (mut keys, refusals): (Keys, _) = load.end().await;
    assert!(refusals.is_empty(), "{} operations failed: {refusals:#?}", refusals.len());
    keys.all_read(&apis).await;
    for name in keys.tenants() {
        let own = keys.of(name).into_iter().map(|(key, has_a_value)| (key.to_owned(), has_a_value)).collect();
        rows_are_placed(api, name, &own, (4, Placed::ByKey)).await;
    }
    // The components of before place nothing any longer.
    eventually("the hook is removed", async || {
        let request = v1::RemovePluginRequest { plugin: together.clone(), ..Default::default() };
        plugins(&company, 0).client().remove_plugin(request).await.ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_faults_on_a_key_is_refused() {
    let company = company().await;
    let apis = apis(&company);
    fill(&apis).await;
    apis[0].write(write(BULK, "abc", "v")).await.expect("written");
    let plugins = plugins(&company, 0);
    let together = together(&plugins).await;
    let refused = Refusal::from(plugins.bind(BULK, HOOK, &together).await.expect_err("it faults on abc"));
    assert_eq!((refused.code, &*refused.reason), (Code::FailedPrecondition, "PLUGIN_FAULT"), "{refused:?}");
    assert!(refused.message.contains("hook faults on key \"abc\""), "{}", refused.message);
    let listed = plugins.client().list_bindings(v1::ListBindingsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(listed.bindings, [], "nothing has changed");
    assert_eq!(tenant(&apis[0], BULK).await.pending_migration_id, "");
    apis[0].delete(delete(BULK, "abc")).await.expect("deleted");
    is_complete(&apis).await;
}

/// A key that is deleted is not listed, and its tombstone is copied: the change is given up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_finds_a_fault_later_fails_and_leaves_everything_as_it_was() {
    let company = company().await;
    let apis = apis(&company);
    fill(&apis).await;
    apis[0].write(write(BULK, "abc", "v")).await.expect("written");
    apis[0].delete(delete(BULK, "abc")).await.expect("deleted");
    let plugins = plugins(&company, 0);
    let together = together(&plugins).await;
    let migration = bind(&plugins, BULK, &together).await;
    let get = v1::GetMigrationStatusRequest { migration_id: migration };
    let failed = eventually("it fails", async || {
        let now = apis[0].client().get_migration_status(get.clone()).await.ok()?.into_inner();
        (now.status == "failed").then_some(now)
    })
    .await;
    assert!(failed.error_message.contains("hook faults on key \"abc\""), "{failed:?}");
    eventually("nothing is bound", async || {
        let listed = plugins.client().list_bindings(v1::ListBindingsRequest::default()).await.ok()?.into_inner();
        listed.bindings.is_empty().then_some(())
    })
    .await;
    is_complete(&apis).await;
    let mut keys = bulk_keys();
    keys.insert("abc".to_owned(), false);
    rows_are_placed(&apis[0], BULK, &keys, (0, Placed::ByKey)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_goes_on_when_its_leader_is_killed_and_is_cancelled_in_the_middle() {
    let mut company = company().await;
    let everyone = apis(&company);
    fill(&everyone).await;
    Load::tenants(&everyone[0]).await;
    let hash_tag = plugins(&company, 0).upload("hash-tag").await;
    let migration = bind(&plugins(&company, 0), BULK, &hash_tag).await;
    let leader = company.leader().await;
    company.kill_coordinator(leader);
    company.start_unready(leader).await;
    let api = company.api(leader);
    all_completed(&api, vec![migration]).await;
    let apis = apis(&company);
    is_complete(&apis).await;
    rows_are_placed(&api, BULK, &bulk_keys(), (1, Placed::ByTag)).await;

    // Its present hook is there before the tenant is served by a coordinator that starts.
    company.kill_coordinator(leader);
    company.start_unready(leader).await;
    is_complete(&[company.api(leader)]).await;

    let migration = bind(&plugins(&company, leader), BULK, "").await;
    let api = company.api(leader);
    let cancel = v1::CancelMigrationRequest { migration_id: migration.clone(), confirm_undo: false };
    let given_up = api.client().cancel_migration(cancel).await;
    let get = v1::GetMigrationStatusRequest { migration_id: migration };
    let ended = eventually("it has ended", async || {
        let now = api.client().get_migration_status(get.clone()).await.ok()?.into_inner();
        matches!(&*now.status, "completed" | "cancelled").then_some(now)
    })
    .await;
    let listed = plugins(&company, leader).client().list_bindings(v1::ListBindingsRequest::default()).await;
    let bound: BTreeSet<String> = listed.expect("listed").into_inner().bindings.into_iter().map(|it| it.name).collect();
    let (is, generation) = match given_up {
        Ok(_) => ("cancelled", (1, Placed::ByTag)),
        // The records had moved before.
        Err(_) => ("completed", (2, Placed::ByKey)),
    };
    assert_eq!((&*ended.status, bound.contains("hash-tag")), (is, is == "cancelled"), "{ended:?}");
    is_complete(&[company.api(leader)]).await;
    rows_are_placed(&company.api(leader), BULK, &bulk_keys(), generation).await;
}
