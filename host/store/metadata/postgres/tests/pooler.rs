//! Through PgBouncer in transaction mode, with fewer connections to the server than the store has to the pooler.

use witan_kernel::name::NodeId;
use witan_kernel::port::{Claim, LeaseStore};
use witan_servers::PgBouncer;

use super::*;

/// A pooler with two connections to the server, the address of a new database behind it, and that of the database itself.
async fn behind_a_pooler(name: &'static str) -> (PgBouncer, String, String) {
    let direct = database(name).await;
    let started = tokio::task::spawn_blocking(|| PgBouncer::start(server(), 2)).await;
    let pooler = started.expect("the pooler starts");
    let url = pooler.url_of(name);
    (pooler, url, direct)
}

fn with_direct(url: &str, direct: &str) -> PostgresConfig {
    PostgresConfig { direct: Some(direct.to_owned()), ..patient(url) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_through_a_pooler() {
    let (_pooler, url, direct) = behind_a_pooler("pooled").await;
    let metadata = connect_with(with_direct(&url, &direct)).await;
    contract::all(&metadata, &contract::sleep).await;
    // Many at once, more than there are connections: statements of one operation must not reach another's connection.
    let both = (0..200).map(|of| {
        let (metadata, tenant) = (metadata.clone(), contract::tenant(&format!("many-{of}")));
        async move {
            let created = metadata.create_tenant(tenant.clone()).await.expect("created");
            let (found, listed, nodes) =
                tokio::join!(metadata.tenant(&tenant.id), metadata.tenants(None, 5), metadata.nodes());
            assert_eq!(found, Ok(Some(created)));
            assert_eq!(listed.map(|listed| listed.len()), Ok(5));
            nodes.expect("nodes");
        }
    });
    join_all(both).await;
    // Leases are renewed meanwhile: each renewal is one statement, and is carried out on one connection all the same.
    let renewed = (0..8).map(|of| {
        let metadata = metadata.clone();
        async move {
            let claim = Claim {
                node_id: NodeId::new(format!("renews-{of}")).expect("valid"),
                instance: [of; 16],
                address: "here:1".to_owned(),
                version: "0.1.0".to_owned(),
                capabilities: Vec::new(),
            };
            for round in 0..50 {
                let lease = metadata.hold_lease(claim.clone(), 60_000).await;
                lease.unwrap_or_else(|error| panic!("renewal {round}: {error}"));
            }
        }
    });
    join_all(renewed).await;
    // Nothing of this is left in a session that the pooler will lend to others.
    let mut left = admin(&direct).await;
    let named: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SET statement_timeout%'")
            .fetch_one(&mut left)
            .await
            .expect("counted");
    assert_eq!(named, 0, "no settings of a session were sent through the pooler");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_alone_serves_what_is_migrated_and_says_what_it_needs_otherwise() {
    let (_pooler, url, direct) = behind_a_pooler("alone").await;
    match PostgresMetadata::connect(patient(&url)).await {
        Err(StoreError::Refused(why)) => {
            for part in ["has no schema yet", "database.direct_url", "pooler"] {
                assert!(why.contains(part), "{part} is not in {why}");
            }
        }
        other => panic!("{other:?}"),
    }
    match PostgresMetadata::connect(with_direct(&url, &url)).await {
        Err(StoreError::Refused(why)) => assert!(why.contains("database.direct_url leads to a pooler"), "{why}"),
        other => panic!("{other:?}"),
    }
    connect(&direct).await.close().await;
    let metadata = connect(&url).await;
    create(&metadata, "t").await;
    assert!(metadata.tenant(&contract::tenant("t").id).await.expect("found").is_some());
    let facts = super::super::examine(&patient(&url)).await.expect("examined");
    assert!(facts.pooled && !facts.has_direct && facts.schema == Some(facts.known_schema), "{facts:?}");
    assert!(!super::super::examine(&patient(&direct)).await.expect("examined").pooled);
}

/// With the server's own address, a change of another coordinator is announced; without it, no announcement comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_announced_over_the_direct_way() {
    let (_pooler, url, direct) = behind_a_pooler("announced").await;
    let (hearing, changing) = (connect_with(with_direct(&url, &direct)).await, connect(&url).await);
    let mut hints = hearing.hints.subscribe();
    // The first says that it listens; it may have come already.
    let first = *timeout(PATIENCE, hints.wait_for(|hints| *hints > 0)).await.expect("it listens").expect("open");
    create(&changing, "t").await;
    timeout(PATIENCE, hints.wait_for(|hints| *hints > first)).await.expect("announced").expect("open");
}
