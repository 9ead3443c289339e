//! A rolling upgrade under load, and the downgrade: each process is shut down and restarted with the other version's program, at the same
//! address and on the same data, while writers keep track of acknowledged changes.

use witan_wire::v1;

use crate::crash::{Load, Writers, seed};
use crate::harness::Version::{Previous, This};
use crate::harness::{Api, Company, Version, read, write};

const NODES: usize = 3;
const COORDINATORS: usize = 2;

/// A migration as a later version may have it, which only adds: a column to every table, a new table, and a change of an unknown kind.
/// The table whose row all changes lock comes first.
const ADDITIONS: &str = "
    DO $$
    DECLARE name text;
    BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'
            ORDER BY tablename <> 'cluster_state', tablename
        LOOP
            EXECUTE format('ALTER TABLE %I ADD COLUMN later BIGINT NOT NULL DEFAULT 1', name);
        END LOOP;
    END $$;
    CREATE TABLE later (only_row BIGINT NOT NULL PRIMARY KEY);
    UPDATE cluster_state SET revision = revision + 1;
    INSERT INTO changes (revision, topic, subject) SELECT revision, 'later', 'x' FROM cluster_state;
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'later', true, '', 1);
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_and_the_way_back_lose_nothing_and_refuse_nothing() {
    let seed = seed();
    let mut company = Company::of_versions(&[Previous; NODES], &[Previous; COORDINATORS]).await;
    // Without client deadlines, like ordinary clients: a change without a response is retried, at the other coordinator.
    let doors = (0..COORDINATORS).map(|index| company.api(index).without_deadline()).collect();
    let nodes = company.nodes.iter().map(|(_, address)| *address).collect();
    let load = Load::start(doors, nodes, Writers::of_each(2), seed).await;
    load.got_on().await;

    nodes_become(&mut company, &load, This).await;
    coordinator_becomes(&mut company, &load, 0, This).await;
    // Running older coordinators must cope with what the start of a newer one does to the database.
    company.postgres.ask(ADDITIONS);
    metadata_goes_on(&company, "with additions").await;
    coordinator_becomes(&mut company, &load, 1, This).await;

    coordinator_becomes(&mut company, &load, 0, Previous).await;
    coordinator_becomes(&mut company, &load, 1, Previous).await;
    nodes_become(&mut company, &load, Previous).await;

    let report = load.end().await;
    report.judge(seed);
    assert_eq!(
        report.given_up, 0,
        "of {} changes, some were refused however often they were sent",
        report.acknowledged
    );
}

/// Restarts the nodes one by one, each until every coordinator reaches it.
async fn nodes_become(company: &mut Company, load: &Load, version: Version) {
    for node in 0..NODES {
        company.end_node(node).await;
        load.got_on().await;
        company.start_node(node, version).await;
        load.got_on().await;
    }
}

/// Restarts a coordinator, and waits until it is ready.
async fn coordinator_becomes(company: &mut Company, load: &Load, coordinator: usize, version: Version) {
    company.change_coordinator(coordinator, version).await;
    load.got_on().await;
    metadata_goes_on(company, &format!("{coordinator} is {version:?}")).await;
}

/// Creates, changes and uses a tenant through all coordinators in turn.
async fn metadata_goes_on(company: &Company, name: &str) {
    let [first, second]: [Api; COORDINATORS] = std::array::from_fn(|index| company.api(index));
    first.tenant(name, |_| {}).await;
    second.write(write(name, "k", "v")).await.expect("known there at once");
    let update = v1::UpdateTenantRequest {
        tenant_id: name.to_owned(),
        default_level: "all".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    second.client().update_tenant(update).await.expect("updated");
    let found = first.read(read(name, "k")).await.expect("read");
    assert_eq!(&found.value[..], b"v");
}
