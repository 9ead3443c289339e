//! What operators do to a single node while clients read, write and delete: its disk is replaced, it is drained, another one takes its
//! place; and where a key is.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value;
use witan_wire::v1;

use super::load::{Load, SIBLINGS};
use super::{completed, each_has_its_own, nodes};
use crate::harness::{Api, Company, Process, Refusal, Setup, Version, delete, eventually, read, write};

/// Coordinators that fill a new store only if they are asked to.
fn by_request() -> Vec<(&'static str, &'static str)> {
    vec![
        ("WITAN_PLACEMENT__LEADER_LEASE", "2s"),
        ("WITAN_HEALING__BEGIN_AFTER", "100ms"),
        ("WITAN_HEALING__ADMIT_AFTER", "0"),
    ]
}

/// The tenants of a load, each of which goes on with any two of three nodes.
async fn tenants(api: &Api) {
    for name in ["three", "two"] {
        api.tenant(name, |_| {}).await;
    }
    api.siblings_tenant(SIBLINGS).await;
}

async fn replace(api: &Api, node: &str, accept_loss: bool) -> Result<v1::StorageNodeChangeResponse, Refusal> {
    let request = v1::ReplaceStorageNodeRequest { node_id: node.to_owned(), accept_loss };
    Ok(api.client().replace_storage_node(request).await?.into_inner())
}

async fn drain(api: &Api, node: &str, undrain: bool) -> String {
    let request = v1::DrainStorageNodeRequest { node_id: node.to_owned(), undrain };
    let done = api.client().drain_storage_node(request).await.expect("drained").into_inner();
    assert_eq!(done.migration_id, "", "nothing moves");
    done.message
}

/// Runs a command against a coordinator.
async fn witan(address: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Process::witan();
    command.args(arguments).args(["--timeout", "60s"]).env("WITAN_ENDPOINT", format!("http://{address}"));
    tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_disk_is_filled_at_once_and_until_then_nothing_rests_on_it() {
    let mut company = Company::with_environment(2, by_request()).await;
    let (api, other) = (company.api(0), company.api(1));
    tenants(&api).await;
    let load = Load::start(&[api.clone(), other.clone()], true);
    load.goes_on().await;
    let nothing = replace(&api, "node-3", true).await.expect_err("it shows the store on record");
    assert_eq!(nothing.reason, "NOTHING_TO_REPLACE", "{nothing:?}");
    eventually("the node's records are on record", async || {
        let request = v1::ReplaceStorageNodeRequest { node_id: "node-3".to_owned(), accept_loss: false };
        let change = Some(v1::plan_migration_request::Change::Replace(request));
        let plan = api.client().plan_migration(v1::PlanMigrationRequest { change }).await.ok()?.into_inner();
        let fill = plan.fill.expect("a fill");
        let from: Vec<&str> = fill.sources.iter().map(|source| source.node_id.as_str()).collect();
        assert_eq!((from, plan.problems.len()), (vec!["node-1", "node-2"], 1), "{:?}", plan.problems);
        (fill.keys > 0 && fill.bytes > 0).then_some(())
    })
    .await;

    company.kill_node(2);
    eventually("that is noticed", async || (!company.node_at(0, 2).await.reachable).then_some(())).await;
    let away = replace(&api, "node-3", true).await.expect_err("it is away");
    assert_eq!(away.reason, "NODE_UNREACHABLE", "{away:?}");
    std::fs::remove_dir_all(company.node_folder(2)).expect("remove a folder");
    company.start_node_alone(2, Version::This).await;
    for coordinator in 0..2 {
        eventually("its store is not used", async || {
            (company.node_at(coordinator, 2).await.store_use == "unadmitted").then_some(())
        })
        .await;
    }
    load.goes_on().await;
    let begun = replace(&api, "node-3", false).await.expect("begun");
    assert_eq!(replace(&other, "node-3", false).await.expect("the same").migration_id, begun.migration_id);
    let watched = eventually("it is filled, and was not asked before", async || {
        let node = company.node_at(0, 2).await;
        // A coordinator may use it before the other one says so.
        let elsewhere = company.node_at(1, 2).await;
        if node.store_use == "whole" || elsewhere.store_use == "whole" {
            return Some(node);
        }
        assert_eq!((node.reads, node.mints), (0, 0), "{node:?}");
        None
    })
    .await;
    assert!(!watched.draining);
    let ended = completed(&api, &begun.migration_id).await;
    assert_eq!((&*ended.r#type, &*ended.node_id, ended.tenants_total), ("replace_store", "node-3", 0), "{ended:?}");
    assert!(ended.progress.expect("its progress").keys_migrated > 0 && ended.finished_at > 0, "{ended:?}");
    eventually("it is asked again", async || (company.node_at(1, 2).await.reads > 0).then_some(())).await;
    load.goes_on().await;
    let (mut keys, refusals) = load.end().await;
    assert_eq!(refusals, Vec::<String>::new());
    keys.all_read(&[api.clone(), other]).await;
    each_has_its_own(&api, &keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_disk_that_is_back_ends_the_migration_and_so_does_giving_up() {
    let mut environment = by_request();
    // Slow enough for a person who finds the old disk.
    environment.push(("WITAN_HEALING__RATE", "64KiB"));
    let mut company = Company::with_environment(1, environment).await;
    let api = company.api(0);
    tenants(&api).await;
    for n in 0..200 {
        api.write(write("three", &format!("key-{n}"), vec![b'v'; 16 << 10])).await.expect("written");
    }
    let aside = company.node_folder(2).with_extension("aside");
    company.end_node(2).await;
    std::fs::rename(company.node_folder(2), &aside).expect("move a folder");
    company.start_node_alone(2, Version::This).await;
    let use_is = async |company: &Company, wanted: &str| {
        eventually(wanted, async || (company.node_at(0, 2).await.store_use == wanted).then_some(())).await;
    };
    let status = async |id: &str| {
        let request = v1::GetMigrationStatusRequest { migration_id: id.to_owned() };
        api.client().get_migration_status(request).await.expect("its status").into_inner()
    };
    let cancelled = async |id: &str| {
        eventually("it is cancelled", async || (status(id).await.status == "cancelled").then_some(())).await;
    };
    use_is(&company, "unadmitted").await;
    let first = replace(&api, "node-3", false).await.expect("begun").migration_id;
    use_is(&company, "filling").await;
    eventually("some of it is filled", async || {
        let now = status(&first).await;
        (now.status == "in_progress" && now.progress?.keys_migrated > 0 && now.phase == "data_copy").then_some(())
    })
    .await;
    let request = v1::CancelMigrationRequest { migration_id: first.clone(), confirm_undo: false };
    api.client().cancel_migration(request).await.expect("given up");
    cancelled(&first).await;
    use_is(&company, "unadmitted").await;
    eventually("it is said what to do", async || {
        company.node_at(0, 2).await.state_message.contains("filling it was given up").then_some(())
    })
    .await;

    let second = replace(&api, "node-3", false).await.expect("begun anew").migration_id;
    assert_ne!(second, first);
    use_is(&company, "filling").await;
    company.end_node(2).await;
    std::fs::remove_dir_all(company.node_folder(2)).expect("remove a folder");
    std::fs::rename(&aside, company.node_folder(2)).expect("move a folder");
    company.start_node(2, Version::This).await;
    use_is(&company, "whole").await;
    cancelled(&second).await;
    assert!(status(&second).await.message.contains("used again"), "{:?}", status(&second).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_is_not_asked_and_can_be_stopped_without_a_refusal() {
    let mut company = Company::with_environment(2, vec![("WITAN_HEALING__BEGIN_AFTER", "100ms")]).await;
    let (api, other) = (company.api(0), company.api(1));
    tenants(&api).await;
    let load = Load::start(&[api.clone(), other.clone()], true);
    load.goes_on().await;
    let asked = async |company: &Company| {
        let node = company.node_at(0, 2).await;
        (node.reads, node.mints)
    };
    let message = drain(&api, "node-3", false).await;
    assert!(!message.contains("tenants"), "two others are enough: {message}");
    for coordinator in 0..2 {
        eventually("every coordinator knows it", async || company.node_at(coordinator, 2).await.draining.then_some(()))
            .await;
    }
    // A read that waits for long asks everybody: on a busy machine, there may be some.
    eventually("it is not asked while the load goes on", async || {
        let before = asked(&company).await;
        for _ in 0..3 {
            load.goes_on().await;
        }
        (asked(&company).await == before).then_some(())
    })
    .await;
    let waited = witan(company.coordinators[1].address, &["nodes", "drain", "node-3", "--wait"]).await;
    assert!(waited.status.success(), "{}", text(&waited.stderr));
    assert!(text(&waited.stdout).contains("is asked no longer"), "{}", text(&waited.stdout));

    company.end_node(2).await;
    for _ in 0..3 {
        load.goes_on().await;
    }
    company.start_node(2, Version::This).await;
    assert!(company.node_at(0, 2).await.state_message.contains("draining"));
    eventually("what it has missed is made good while it is drained", async || {
        let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
        (!listed.healing.iter().any(|duty| duty.kind == "missed" && duty.range == "node-3")).then_some(())
    })
    .await;
    let (mut keys, refusals) = load.end().await;
    assert_eq!(refusals, Vec::<String>::new());

    // On record, and also for a coordinator that has just been started.
    company.kill_coordinator(1);
    company.start(1).await;
    let other = company.api(1);
    assert!(company.node_at(1, 2).await.draining);
    api.tenant("alone", |tenant| tenant.replication_factor = 1).await;
    let message = drain(&other, "node-3", false).await;
    assert!(message.contains("already") && message.contains("1 tenants, such as alone (1 replicas)"), "{message}");
    for n in 0..20 {
        let key = format!("key-{n}");
        api.write(write("alone", &key, "v")).await.expect("it is asked last, and not refused");
        api.read(read("alone", &key)).await.expect("the same");
    }
    drain(&other, "node-3", true).await;
    eventually("it is back in service", async || (!company.node_at(0, 2).await.draining).then_some(())).await;
    let before = asked(&company).await;
    keys.all_read(&[api.clone(), other.clone()]).await;
    eventually("it is asked again", async || {
        keys.all_read(&[api.clone(), other.clone()]).await;
        (asked(&company).await.0 > before.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_takes_the_place_of_one_by_one_command() {
    let mut company = Company::with_environment(1, vec![("WITAN_PLACEMENT__LEADER_LEASE", "2s")]).await;
    let api = company.api(0);
    tenants(&api).await;
    let load = Load::start(std::slice::from_ref(&api), true);
    load.goes_on().await;
    let new = company.another_node().await;
    let address = format!("{}:{}", new.host, new.port);
    let command = ["nodes", "replace", "node-1", "--with", &new.node_id, &address, "--wait"];
    let replaced = witan(company.coordinators[0].address, &command).await;
    assert!(replaced.status.success(), "{} {}", text(&replaced.stdout), text(&replaced.stderr));
    let (keys, refusals) = load.end().await;
    assert_eq!(refusals, Vec::<String>::new());
    let listed = api.client().list_migrations(v1::ListMigrationsRequest::default()).await.expect("listed").into_inner();
    let ended: Vec<(String, String)> = listed.migrations.into_iter().map(|it| (it.r#type, it.status)).collect();
    let is = |kind: &str| (kind.to_owned(), "completed".to_owned());
    assert_eq!(ended, [is("remove_node"), is("add_node")]);
    eventually("the old one is gone", async || (nodes(&api).await.len() == 3).then_some(())).await;
    each_has_its_own(&api, &keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_located_with_what_each_replica_has() {
    let settings = vec![("WITAN_HEALING__ANTI_ENTROPY", "false".to_owned())];
    let mut cluster = crate::harness::Cluster::with(Setup { synced: false, settings, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    let locate = async |tenant: &str| {
        let request = v1::LocateKeyRequest { tenant_id: tenant.to_owned(), key: "k".to_owned() };
        api.client().locate_key(request).await.expect("located").into_inner()
    };
    let none = locate("t").await;
    assert!(none.replicas.iter().all(|replica| replica.state == "nothing" && replica.level), "{none:?}");
    api.write(v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..write("t", "k", "v") })
        .await
        .expect("written");
    let all = locate("t").await;
    assert_eq!((all.replication_factor, all.replicas.len(), &*all.step), (3, 3, ""), "{all:?}");
    let is_same = |replica: &v1::LocatedReplica| {
        (&*replica.state, replica.level, &replica.hash) == ("live", true, &all.replicas[0].hash) && replica.bytes > 0
    };
    assert!(all.replicas.iter().all(|replica| replica.present && replica.reachable && is_same(replica)), "{all:?}");

    cluster.kill_node(2);
    eventually("that is noticed", async || (!nodes(&api).await[2].reachable).then_some(())).await;
    api.delete(delete("t", "k")).await.expect("deleted");
    for value in ["a", "b"] {
        api.write(write("s", "k", value)).await.expect("written");
    }
    let away = locate("t").await;
    let third = |located: &v1::LocateKeyResponse| {
        located.replicas.iter().find(|replica| replica.node_id == "node-3").expect("a replica").clone()
    };
    let is = third(&away);
    assert!(is.state.is_empty() && !is.reachable && !is.level && is.problem.contains("node-3"), "{is:?}");
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    let back = locate("t").await;
    assert_eq!((&*third(&back).state, third(&back).level), ("live", false), "it has missed the deletion");
    let others: Vec<_> = back.replicas.iter().filter(|replica| replica.node_id != "node-3").collect();
    assert!(others.iter().all(|replica| replica.state == "tombstone" && replica.level), "{others:?}");
    let siblings = locate("s").await;
    let versions: Vec<i32> = siblings.replicas.iter().map(|replica| replica.versions).collect();
    assert_eq!((versions.iter().sum::<i32>(), &*third(&siblings).state), (4, "nothing"), "{siblings:?}");

    let shown = witan(cluster.address(), &["locate", "t", "k"]).await;
    let lines = text(&shown.stdout);
    assert!(lines.contains(&format!("token {:016x}", back.token)) && lines.contains("tombstone"), "{lines}");
    let shown = witan(cluster.address(), &["locate", "t", "k", "--output", "json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("an object");
    assert_eq!(shown["replicas"].as_array().map(Vec::len), Some(3));
    let request = v1::LocateKeyRequest { tenant_id: "nobody".to_owned(), key: "k".to_owned() };
    let refused: Refusal = api.client().locate_key(request).await.expect_err("refused").into();
    assert_eq!(refused.reason, "TENANT_NOT_FOUND");
}
