use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use witan_kernel::capability::OF_FOUNDERS;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Claim, LeaseStore, PlacementStore, StoreError, StoreFacts, TenantStore};
use witan_memory::contract::{join_all, metadata as contract, poll_once};

use super::SqliteMetadata;
use crate::metadata::{migrations, operations};
use crate::testing;

/// Patient, for a machine whose disk is busy: a hundred waiting operations are a hundred syncs.
async fn open(folder: &tempfile::TempDir) -> SqliteMetadata {
    let patience = Duration::from_secs(300);
    SqliteMetadata::open_with(folder.path().join("metadata.sqlite"), patience).await.expect("opens")
}

#[tokio::test]
async fn keeps_the_contract_and_keeps_it_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    // Without this a thousand nodes are a thousand syncs; the kill below is what tests them.
    let first = open(&folder).await;
    contract::all(&first, &contract::sleep).await;
    contract::placement_changes_are_bounded(&first).await;
    contract::duties_are_bounded(&first).await;
    let before = first.tenants(None, 1000).await.expect("tenants");
    first.close().await;
    assert!(matches!(first.nodes().await, Err(StoreError::Unavailable(_))), "closed");
    assert_eq!(open(&folder).await.tenants(None, 1000).await, Ok(before));
}

#[tokio::test]
async fn several_may_open_and_create_one_file_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = join_all((0..4).map(|_| open(&folder))).await;
    for (of, metadata) in opened.iter().enumerate() {
        metadata.create_tenant(contract::tenant(&format!("of-{of}"))).await.expect("created");
    }
    for metadata in opened {
        assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_stops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = open(&folder).await;
    for of in 0..100_u64 {
        let mut creating = metadata.create_tenant(contract::tenant(&format!("t{of}")));
        // Started and dropped at once, at any point of the exchange with the database.
        let first_look = poll_once(&mut creating).await;
        assert!(first_look.is_none());
        drop(creating);
    }
    // An operation holds a place until it is done: once all places are free, nothing is in flight.
    metadata.operations.ended().await;
    metadata.create_tenant(contract::tenant("last")).await.expect("created");
    assert_eq!(metadata.tenants(None, 1000).await.expect("tenants").len(), 101);
}

#[tokio::test]
async fn operations_in_flight_are_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = open(&folder).await;
    let many = (0..=operations::MOST).map(|_| metadata.now_ms());
    let results = join_all(many).await;
    let refused =
        results.iter().filter(|result| matches!(result, Err(StoreError::Unavailable(why)) if why.contains("too many")));
    assert_eq!(refused.count(), 1);
    assert!(metadata.now_ms().await.is_ok(), "and the places are free again");
}

#[tokio::test]
async fn what_is_no_database_and_what_is_too_new_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metadata.sqlite");
    std::fs::write(&file, "certainly no database, but long enough to look at its head".repeat(100)).expect("written");
    let result = SqliteMetadata::open(&file).await.expect_err("no database");
    assert!(matches!(result, StoreError::Damaged(_)), "{result:?}");

    let newer = folder.path().join("newer.sqlite");
    let metadata = SqliteMetadata::open(&newer).await.expect("opens");
    // A future migration that only adds is ignored; one that this program must know is not.
    for (change, fits) in [
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'from the future', 1, x'00', 1)",
            true,
        ),
        ("UPDATE cluster_state SET needs_schema = 9999", false),
    ] {
        sqlx::query(change).execute(&metadata.driver.writer).await.expect("changed");
        assert_eq!(SqliteMetadata::open(&newer).await.is_ok(), fits);
    }
    metadata.close().await;
    let result = SqliteMetadata::open(&newer).await.expect_err("too new");
    assert!(matches!(&result, StoreError::Conflict(why) if why.contains("newer version")), "{result:?}");
}

/// The statements are those that the tests on PostgreSQL put through the whole contract on such a schema.
#[tokio::test]
async fn works_on_a_schema_that_a_later_version_has_added_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = open(&folder).await;
    metadata.create_tenant(contract::tenant("before")).await.expect("created");
    let tables =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlx%'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&metadata.driver.writer).await.expect("listed");
    assert!(tables.iter().any(|table| table == "tenants"), "{tables:?}");
    for table in tables {
        let add = sqlx::AssertSqlSafe(format!("ALTER TABLE {table} ADD COLUMN later INTEGER NOT NULL DEFAULT 1"));
        sqlx::query(add).execute(&metadata.driver.writer).await.expect("added");
    }
    metadata.create_tenant(contract::tenant("after")).await.expect("created");
    assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 2);
    metadata.close().await;
    let metadata = open(&folder).await;
    metadata.create_tenant(contract::tenant("opened")).await.expect("created");
    assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 3);
}

/// The migration finds out whether an earlier version has ever worked on the file.
#[tokio::test]
async fn a_file_of_an_earlier_version_was_founded_without_capabilities() {
    for (worked, founded) in [(false, &OF_FOUNDERS[..]), (true, &[][..])] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("metadata.sqlite");
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let earlier = SqlitePool::connect_with(options).await.expect("opens");
        let released = migrations::sqlite().iter().filter(|migration| migration.version < 5).cloned().collect();
        Migrator::with_migrations(released).run(&earlier).await.expect("migrated");
        if worked {
            sqlx::query("UPDATE cluster_state SET revision = 1").execute(&earlier).await.expect("changed");
        }
        earlier.close().await;
        let metadata = open(&folder).await;
        assert_eq!(metadata.founded_with().await.expect("answered"), founded);
    }
}

#[tokio::test]
async fn capabilities_end_when_a_program_takes_over_that_cannot_name_any() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = open(&folder).await;
    let claim = Claim {
        node_id: NodeId::new("c").expect("valid"),
        instance: [1; 16],
        address: "here:1".to_owned(),
        version: "0.1.0".to_owned(),
        capabilities: vec!["names".to_owned()],
    };
    metadata.hold_lease(claim.clone(), 1000).await.expect("granted");
    let named = async || metadata.coordinators().await.expect("coordinators").remove(0).claim.capabilities;
    assert_eq!(named().await, ["names"]);
    // The statement of the version before.
    let grant = "INSERT INTO coordinators (node_id, instance, address, version, fence, granted_at, lease_until)
         VALUES ('c', zeroblob(16), 'here:1', '0.1.0', 2, 0, 1)
         ON CONFLICT (node_id) DO UPDATE
         SET instance = excluded.instance, fence = excluded.fence";
    sqlx::query(grant).execute(&metadata.driver.writer).await.expect("granted");
    assert_eq!(named().await, [""; 0]);
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let _metadata = open(&folder).await;
    for file in std::fs::read_dir(folder.path()).expect("listed") {
        let file = file.expect("listed");
        assert_eq!(file.metadata().expect("known").mode() & 0o077, 0, "{:?}", file.path());
    }
}

#[tokio::test]
async fn damaged_rows_are_errors_and_never_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = open(&folder).await;
    metadata.create_tenant(contract::tenant("t")).await.expect("created");
    for damage in [
        "UPDATE tenants SET read_repair = 'perhaps'",
        "UPDATE tenants SET read_repair = 'async', default_level = ''",
        "UPDATE tenants SET default_level = 'one', created_at = -1",
    ] {
        sqlx::query(damage).execute(&metadata.driver.writer).await.expect("damaged");
        let result = metadata.tenant(&contract::tenant("t").id).await;
        assert!(matches!(result, Err(StoreError::Damaged(_))), "{result:?}");
    }
}

/// Killed while it works, the store has every tenant whose creation it has acknowledged.
#[test]
fn survives_being_killed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Some(folder) = testing::as_child() {
        runtime.block_on(async {
            let metadata = SqliteMetadata::open(folder.join("metadata.sqlite")).await.expect("opens");
            for batch in 0.. {
                let names: Vec<String> = (0..5).map(|of| format!("{batch}-{of}")).collect();
                let created = names.iter().map(|name| metadata.create_tenant(contract::tenant(name)));
                join_all(created).await.into_iter().for_each(|created| drop(created.expect("created")));
                names.iter().for_each(|name| println!("ack {name}"));
            }
        });
    }
    let folder = tempfile::tempdir().expect("a folder");
    for _ in 0..3 {
        let folder = folder.path().join(format!("{:?}", Instant::now()));
        let acknowledged = testing::kill_midway("metadata::sqlite::tests::survives_being_killed", &folder, 100);
        runtime.block_on(async {
            let metadata = SqliteMetadata::open(folder.join("metadata.sqlite")).await.expect("opens after the kill");
            for name in acknowledged {
                let tenant = contract::tenant(&name);
                assert_eq!(metadata.tenant(&tenant.id).await, Ok(Some(tenant)));
            }
        });
    }
}
