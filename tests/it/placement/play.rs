//! A cluster's life in a few minutes, under load: it grows, gets more replicas, shrinks, swaps a routing hook, is restarted, loses a disk
//! and a node. Nothing that was acknowledged is missing, nothing that was deleted comes back, and what is moved is little more than what
//! has to be.
//!
//! `WITAN_PLAY_KEYS` sets the number of keys beside those of the load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures::stream::{self, StreamExt};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::ring::{Ring, token};
use witan_wire::v1;

use super::load::{Keys, Load, SIBLINGS};
use super::swaps::{Placed, bind, rows_are_placed};
use super::{completed, each_has_its_own, nodes, remove, resized};
use crate::harness::{Api, Company, Plugins, Version, delete, eventually, get, node_client, read, write};

const BULK: &str = "bulk";
const VALUE: [u8; 100] = [b'v'; 100];
/// Of this number of keys of the bulk, one is deleted at the beginning.
const DELETED: usize = 10;
/// Calls at a time.
const AT_A_TIME: usize = 32;

pub(super) fn keys() -> usize {
    let keys = std::env::var("WITAN_PLAY_KEYS").ok();
    keys.map_or(20_000, |keys| keys.parse().expect("a number of keys"))
}

fn bulk(n: usize) -> String {
    format!("{{bulk-{}}}.{n}", n / 10)
}

/// Does something for each key of the bulk, several at a time.
async fn each<F: Future<Output = ()>>(what: impl FnMut(usize) -> F) {
    stream::iter(0..keys()).map(what).buffer_unordered(AT_A_TIME).for_each(async |()| {}).await;
}

async fn fill(apis: &[Api]) {
    apis[0].tenant(BULK, |_| {}).await;
    each(|n| async move {
        let api = &apis[n % apis.len()];
        api.write(write(BULK, &bulk(n), &VALUE[..])).await.expect("written");
        if n.is_multiple_of(DELETED) {
            api.delete(delete(BULK, &bulk(n))).await.expect("deleted");
        }
    })
    .await;
}

async fn is_complete(apis: &[Api]) {
    each(|n| async move {
        let found = apis[n % apis.len()].read(read(BULK, &bulk(n))).await;
        match (found, n.is_multiple_of(DELETED)) {
            (Ok(found), false) => assert_eq!(found.value, &VALUE[..], "{n}"),
            (Err(refusal), true) => assert_eq!(refusal.reason, "KEY_NOT_FOUND", "{refusal:?}"),
            other => panic!("{n}: {other:?}"),
        }
    })
    .await;
}

/// The ring of the cluster's nodes.
async fn ring(api: &Api) -> Ring {
    let member = |node: v1::StorageNodeInfo| (NodeId::new(&*node.node_id).expect("an id"), node.virtual_nodes as u32);
    Ring::new(&nodes(api).await.into_iter().map(member).collect::<Vec<_>>(), 0)
}

/// How many records of the bulk nodes get that change from one ring and replication factor to others.
fn entering(old: (&Ring, u8), new: (&Ring, u8)) -> usize {
    let tenant = TenantId::new(BULK).expect("a tenant");
    let of_key = |n: usize| {
        let token = token(&tenant, bulk(n).as_bytes());
        let before = old.0.replicas(token, old.1);
        new.0.replicas(token, new.1).iter().filter(|node| !before.contains(node)).count()
    };
    (0..keys()).map(of_key).sum()
}

/// Bytes of all rows of the bulk on a node, by their name there, and their number.
async fn stored(company: &Company, node: usize, name: &str) -> (usize, usize) {
    let (mut after, mut bytes, mut records) = (None, 0, 0);
    loop {
        let request = v1::ScanRangeRequest { tenant_id: name.to_owned(), after, ..v1::ScanRangeRequest::default() };
        let page = node_client(company.nodes[node].1).scan_range(request).await.expect("scanned").into_inner();
        records += page.records.len();
        bytes += page.records.iter().filter_map(|it| it.record.as_ref()).map(bytes::Bytes::len).sum::<usize>();
        after = page.next;
        if after.is_none() {
            return (bytes, records);
        }
    }
}

/// Waits until each node has all records of the bulk of which it is a replica by the routing hook, those of deleted keys apart, and no
/// others.
async fn bulk_is_in_its_place(company: &Company, api: &Api, replicas: u8) {
    let (ring, tenant) = (ring(api).await, TenantId::new(BULK).expect("a tenant"));
    let mut own: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for n in 0..keys() {
        let partition = format!("bulk-{}", n / 10);
        for node in ring.replicas(token(&tenant, partition.as_bytes()), replicas) {
            let id = company.nodes.iter().map(|(id, _)| id.as_str()).find(|id| *id == node.as_str());
            let (live, all) = own.entry(id.expect("a node of the company")).or_default();
            *live += usize::from(!n.is_multiple_of(DELETED));
            *all += 1;
        }
    }
    for (index, (id, _)) in company.nodes.iter().enumerate() {
        let (live, all) = own[id.as_str()];
        eventually(&format!("{id} has between {live} and {all} records"), async || {
            let before = stored(company, index, BULK).await.1;
            let now = stored(company, index, &format!("{BULK}:1")).await.1;
            ((live..=all).contains(&now) && before == 0).then_some(())
        })
        .await;
    }
}

struct Play {
    company: Company,
    /// What earlier loads have written.
    keys: Keys,
    loads: usize,
    begun: Instant,
}

impl Play {
    fn apis(&self) -> Vec<Api> {
        (0..self.company.coordinators.len()).map(|index| self.company.api(index)).collect()
    }

    fn load(&mut self, in_sessions: bool) -> Load {
        self.loads += 1;
        Load::of(self.loads - 1, &self.apis(), in_sessions)
    }

    /// Ends a load of which nothing may have failed, unless `may_fail` says so.
    async fn ends(&mut self, load: Load, may_fail: impl Fn(&str) -> bool) {
        load.goes_on().await;
        let (keys, refusals) = load.end().await;
        let failed: Vec<&String> = refusals.iter().filter(|refusal| !may_fail(refusal)).collect();
        assert!(failed.is_empty(), "{} operations failed: {failed:#?}", failed.len());
        self.keys.registers.extend(keys.registers);
        self.keys.siblings.extend(keys.siblings);
    }

    fn done(&self, what: &str) {
        println!("{:>6.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Three nodes join at once. Each record moves once.
    async fn grows(&mut self) {
        let api = self.company.api(0);
        let before = ring(&api).await;
        let (bytes, records) = stored(&self.company, 0, BULK).await;
        let mut added = Vec::new();
        for _ in 0..3 {
            let node = self.company.another_node().await;
            let address = format!("{}:{}", node.host, node.port).parse().expect("an address");
            self.company.nodes.push((node.node_id.clone(), address));
            added.push(api.client().add_storage_node(node).await.expect("recorded").into_inner().migration_id);
        }
        let mut sent = 0;
        for migration in &added {
            let ended = completed(&api, migration).await;
            sent = sent.max(ended.progress.expect("its progress").bytes_migrated);
        }
        let least = entering((&before, 3), (&ring(&api).await, 3)) * bytes / records;
        let share = sent as f64 / least as f64;
        self.done(&format!("three nodes have joined: {sent} bytes sent, {share:.3} of the least that is possible"));
        // The load writes, too, and its records are sent twice if they change meanwhile.
        assert!(share < 1.1, "{sent} bytes were sent, and {least} are needed");
    }

    /// Keys with the same tag are placed together from now on, in two of the tenants.
    async fn gets_a_hook(&mut self) {
        let plugins = Plugins::new(self.company.coordinators[1].address);
        let hash_tag = plugins.upload("hash-tag").await;
        let (bulk, three) = (bind(&plugins, BULK, &hash_tag).await, bind(&plugins, "three", &hash_tag).await);
        for migration in [bulk, three] {
            completed(&self.company.api(0), &migration).await;
        }
        self.done("two tenants have another routing hook");
    }

    /// Coordinators and nodes are restarted, one after the other. Clients of a coordinator that is not there are refused.
    async fn is_restarted(&mut self) {
        for index in 0..self.company.coordinators.len() {
            self.company.change_coordinator(index, Version::This).await;
        }
        self.done("the coordinators were restarted");
        for index in 0..self.company.nodes.len() {
            self.company.end_node(index).await;
            self.company.start_node(index, Version::This).await;
        }
        self.done("the nodes were restarted");
    }

    /// A node comes back with an empty folder, and is filled.
    async fn loses_a_disk(&mut self) {
        self.company.kill_node(1);
        std::fs::remove_dir_all(self.company.node_folder(1)).expect("remove a folder");
        self.company.start_node_alone(1, Version::This).await;
        let admins: Vec<_> = self.company.coordinators.iter().map(|coordinator| coordinator.admin).collect();
        eventually("a coordinator has filled it", async || {
            for admin in &admins {
                let (_, metrics) = get(*admin, "/metrics").await.ok()?;
                let is = |line: &str| {
                    line.starts_with("witan_healing_passes_total{kind=\"fill\",result=\"complete\"}")
                        && !line.ends_with(" 0")
                };
                if metrics.lines().any(is) {
                    return Some(());
                }
            }
            None
        })
        .await;
        self.done("a disk was replaced and filled");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_shrinks_and_loses_a_disk_and_a_node() {
    let environment = vec![
        ("WITAN_PLACEMENT__LEADER_LEASE", "2s"),
        ("WITAN_HEALING__BEGIN_AFTER", "100ms"),
        ("WITAN_HEALING__ADMIT_AFTER", "1s"),
    ];
    let company = Company::with_environment(3, environment).await;
    let mut play = Play { company, keys: Keys::default(), loads: 0, begun: Instant::now() };
    let api = play.company.api(0);
    fill(&play.apis()).await;
    Load::tenants(&api).await;
    play.done("the keys are written");
    let load = play.load(true);
    load.goes_on().await;

    play.grows().await;
    // With two replicas, a quorum needs both: a node that goes would be missed.
    resized(&api, "two", 2, 3).await;
    for name in [BULK, "three", SIBLINGS] {
        resized(&api, name, 3, 5).await;
    }
    play.done("there are five replicas");
    let removed = remove(&api, "node-6").await.expect("recorded");
    completed(&api, &removed.migration_id).await;
    play.company.end_node(5).await;
    play.company.nodes.truncate(5);
    play.done("a node has left");
    play.gets_a_hook().await;
    play.ends(load, |_| false).await;

    let load = play.load(false);
    load.goes_on().await;
    play.is_restarted().await;
    // No coordinator has answered: the connection ended, or there was none.
    play.ends(load, |refusal| refusal.contains("Unavailable") || refusal.ends_with(" ()")).await;

    let load = play.load(true);
    load.goes_on().await;
    play.loses_a_disk().await;
    for name in [BULK, "three", SIBLINGS] {
        resized(&api, name, 5, 3).await;
    }
    play.done("there are three replicas");
    play.company.kill_node(4);
    let request = v1::RemoveStorageNodeRequest { node_id: "node-5".to_owned(), force: true, accept_loss: false };
    let removed = api.client().remove_storage_node(request).await.expect("recorded").into_inner();
    completed(&api, &removed.migration_id).await;
    play.company.nodes.truncate(4);
    play.done("a node was lost");
    for name in [BULK, "three", "two", SIBLINGS] {
        resized(&api, name, 3, 2).await;
    }
    play.done("there are two replicas");
    play.ends(load, |_| false).await;

    let (apis, mut keys) = (play.apis(), std::mem::take(&mut play.keys));
    is_complete(&apis).await;
    keys.all_read(&apis).await;
    let of_three = keys.of("three").into_iter().map(|(key, has_a_value)| (key.to_owned(), has_a_value)).collect();
    rows_are_placed(&api, "three", &of_three, (1, Placed::ByTag)).await;
    keys.registers.retain(|(name, _), _| *name != "three");
    each_has_its_own(&api, &keys).await;
    bulk_is_in_its_place(&play.company, &api, 2).await;
    play.done("everything is as it was acknowledged, and where it belongs");
    let left: BTreeSet<String> = nodes(&api).await.into_iter().map(|node| node.node_id).collect();
    assert_eq!(left, ["node-1", "node-2", "node-3", "node-4"].map(str::to_owned).into());
}
