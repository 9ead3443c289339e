//! More than one server: a cluster, and a master that sentinels name.

use std::time::{Duration, Instant};

use witan_kernel::idempotency::Stepped;
use witan_kernel::port::{IdempotencyStore, SmallRecords};
use witan_memory::contract::join_all;
use witan_servers::{PATIENCE, RedisCluster, RedisSentinel};

use super::{RedisConfig, RedisIdempotency, RedisServers, contract, eventually, patient, reserve, reserve_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_shares_the_records_out() {
    let cluster = RedisCluster::start();
    // One of the addresses is enough.
    let servers = RedisServers::Cluster(cluster.urls()[..1].to_vec());
    let store = RedisIdempotency::new(patient(servers)).expect("opens");
    reserve_all(&store, 0..150).await;
    // Each step uses both names of a record, which a cluster only lets it do if they are in one slot.
    store.write_small(true);
    reserve_all(&store, 150..300).await;
    for of in 0..300 {
        contract::finds_one(&store, of).await;
    }
    let records = |node: &witan_servers::Redis| node.ask("DBSIZE").parse::<u32>().expect("a number");
    let each: Vec<u32> = cluster.nodes().iter().map(records).collect();
    assert_eq!(each.iter().sum::<u32>(), 300);
    assert!(each.iter().all(|records| *records > 50), "{each:?}");
    let facts = store.check().await.expect("they answer");
    assert_eq!(facts.len(), 3);
    assert!(facts.iter().all(|facts| facts.findings().is_empty()), "{facts:?}");
    for node in cluster.nodes() {
        node.ask("SCRIPT FLUSH");
    }
    let many = join_all((0..100).map(|of| store.step(contract::name(of), reserve(1, 2))));
    assert!(many.await.iter().all(|stepped| *stepped == Ok(Stepped::Conflict)));
    // One of its servers is away for a while.
    cluster.nodes()[1].kill();
    cluster.nodes()[1].start_again();
    for of in 0..100 {
        let stepped = eventually(&store, contract::name(of), reserve(2, 2)).await;
        assert_eq!(stepped, Stepped::Conflict);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_that_sentinels_name_is_followed() {
    let sentinel = RedisSentinel::start();
    let servers = RedisServers::Sentinel {
        sentinels: vec![sentinel.url()],
        master: sentinel.master_name().to_owned(),
        database: 0,
        tls: false,
    };
    let soon = Duration::from_secs(2);
    let config = RedisConfig { timeout: soon, connect_timeout: soon, ..RedisConfig::new(servers) };
    let store = RedisIdempotency::new(config).expect("opens");
    eventually(&store, contract::name(1), reserve(1, 1)).await;
    // Before the master is gone, the replica has what it will be asked about.
    let until = Instant::now() + PATIENCE;
    while sentinel.second().ask("DBSIZE") != "1" {
        assert!(Instant::now() < until, "nothing reaches the replica");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sentinel.kill_master();
    let stepped = eventually(&store, contract::name(1), reserve(2, 2)).await;
    assert_eq!(stepped, Stepped::Conflict, "what had reached the replica is there");
    let stepped = eventually(&store, contract::name(2), reserve(1, 1)).await;
    assert!(matches!(stepped, Stepped::Reserved { .. }));
    assert_eq!(sentinel.master(), Some(sentinel.second().address()));
}
