//! On a real server, which is killed, paused and cut off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use witan_kernel::name::TenantId;
use witan_kernel::port::{ChangeLog, Changed, PlacementStore, StoreError, StoreFacts, TenantStore};
use witan_kernel::tenant::Tenant;
use witan_memory::contract::{join_all, metadata as contract};
use witan_servers::Postgres;

use super::{PostgresConfig, PostgresMetadata};

mod pooler;

/// Time limit for what must happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server shared by tests that do not disturb it. Only processes are killed here, never the machine, so it need not sync.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(own_server)
}

fn own_server() -> Postgres {
    Postgres::start_with(&[("fsync", "off")])
}

/// The address of an empty database for one test.
async fn database(name: &'static str) -> String {
    tokio::task::spawn_blocking(move || server().database(name)).await.expect("a database")
}

/// Patient, for a machine whose disk is busy.
async fn connect(url: &str) -> PostgresMetadata {
    connect_with(patient(url)).await
}

fn patient(url: &str) -> PostgresConfig {
    PostgresConfig { connect: PATIENCE, operation: PATIENCE, ..PostgresConfig::new(url) }
}

async fn connect_with(config: PostgresConfig) -> PostgresMetadata {
    insist(|| PostgresMetadata::connect(config.clone())).await
}

async fn admin(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("connects")
}

/// Retries until it succeeds.
async fn insist<T, F: Future<Output = Result<T, StoreError>>>(mut what: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        match what().await {
            Ok(done) => return done,
            Err(error @ StoreError::Unavailable(_)) => assert!(start.elapsed() < PATIENCE, "{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Creates a tenant, retrying. An attempt without an answer may have created it.
async fn create(metadata: &PostgresMetadata, name: &str) {
    let tenant = contract::tenant(name);
    let created = || async {
        match metadata.create_tenant(tenant.clone()).await {
            Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    };
    insist(created).await;
}

async fn has_all(metadata: &PostgresMetadata, acknowledged: &[String]) {
    for name in acknowledged {
        let id = contract::tenant(name).id;
        assert!(insist(|| metadata.tenant(&id)).await.is_some(), "{name} was acknowledged");
    }
}

#[tokio::test]
async fn keeps_the_contract_and_keeps_it_for_the_next() {
    let url = database("contract").await;
    let first = connect(&url).await;
    contract::all(&first, &contract::sleep).await;
    contract::placement_changes_are_bounded(&first).await;
    let before = first.tenants(None, 1000).await.expect("tenants");
    first.close().await;
    assert!(matches!(first.nodes().await, Err(StoreError::Unavailable(_))), "closed");
    assert_eq!(connect(&url).await.tenants(None, 1000).await, Ok(before));
}

/// What a later version's migration may do: add to every existing table.
const ADDITIONS: &str = "DO $$
    DECLARE name text;
    BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations' LOOP
            EXECUTE format('ALTER TABLE %I ADD COLUMN later BIGINT NOT NULL DEFAULT 1', name);
        END LOOP;
    END $$";

#[tokio::test]
async fn works_on_a_schema_that_a_later_version_has_added_to() {
    let url = database("additions").await;
    let metadata = connect(&url).await;
    // Prepares statements for the tables as they are now.
    create(&metadata, "before").await;
    assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 1);
    assert_eq!(metadata.nodes().await, Ok(Vec::new()));
    let mut admin = admin(&url).await;
    sqlx::raw_sql(ADDITIONS).execute(&mut admin).await.expect("added");
    create(&metadata, "after").await;
    assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 2);
    assert_eq!(metadata.nodes().await, Ok(Vec::new()));
    metadata.close().await;

    let applied = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                   VALUES (9999, 'later', true, '', 1)";
    sqlx::raw_sql(applied).execute(&mut admin).await.expect("added");
    let metadata = connect(&url).await;
    assert_eq!(metadata.schema_version().await, Ok(9999));
    metadata.close().await;
    // As the contract requires: no tenants, and the schema of the version that it knows.
    let emptied = "DELETE FROM _sqlx_migrations WHERE version = 9999; DELETE FROM tenants";
    sqlx::raw_sql(emptied).execute(&mut admin).await.expect("removed");
    contract::all(&connect(&url).await, &contract::sleep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_may_connect_and_migrate_at_once() {
    let url = database("migrations").await;
    let opened = join_all((0..5).map(|_| connect(&url))).await;
    for (of, metadata) in opened.iter().enumerate() {
        metadata.create_tenant(contract::tenant(&format!("of-{of}"))).await.expect("created");
    }
    for metadata in opened {
        assert_eq!(metadata.tenants(None, 10).await.expect("tenants").len(), 5);
    }
}

/// Creates tenants without pause until `stop`; returns those that were acknowledged.
fn busy(metadata: &PostgresMetadata, of: usize, acknowledged: &Arc<AtomicU64>, stop: &watch::Sender<bool>) -> Busy {
    let (metadata, count, stop) = (metadata.clone(), acknowledged.clone(), stop.subscribe());
    Box::pin(async move {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            if *stop.borrow() {
                break;
            }
            let name = format!("{of}-{number}");
            match metadata.create_tenant(contract::tenant(&name)).await {
                Ok(_) => {
                    acknowledged.push(name);
                    count.fetch_add(1, Ordering::SeqCst);
                }
                Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
        acknowledged
    })
}

type Busy = std::pin::Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// Keeps several clients busy during `disturb` and until `more` changes were acknowledged after it, then looks for all of them.
async fn nothing_is_lost<F: Future<Output = ()>>(metadata: &PostgresMetadata, disturb: F, more: u64) {
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(false));
    let mut all = JoinSet::new();
    for of in 0..4 {
        all.spawn(busy(metadata, of, &acknowledged, &stop));
    }
    let reached = |least: u64| {
        let acknowledged = &acknowledged;
        timeout(PATIENCE, async move {
            while acknowledged.load(Ordering::SeqCst) < least {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    reached(20).await.expect("works");
    disturb.await;
    let so_far = acknowledged.load(Ordering::SeqCst);
    reached(so_far + more).await.expect("recovers on its own");
    stop.send_replace(true);
    while let Some(names) = all.join_next().await {
        has_all(metadata, &names.expect("ended")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_needs_no_help() {
    let server = Arc::new(tokio::task::spawn_blocking(own_server).await.expect("a server"));
    let metadata = connect(&server.url()).await;
    let kill = async {
        let server = server.clone();
        tokio::task::spawn_blocking(move || {
            server.kill();
            server.start_again();
        })
        .await
        .expect("killed and started");
    };
    nothing_is_lost(&metadata, kill, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_fails_operations_in_time_and_is_used_again() {
    let server = Arc::new(tokio::task::spawn_blocking(own_server).await.expect("a server"));
    let operation = Duration::from_secs(2);
    let config = PostgresConfig { operation, connect: Duration::from_secs(1), ..PostgresConfig::new(server.url()) };
    let metadata = connect_with(config).await;
    create(&metadata, "first").await;
    let pause = async {
        server.pause();
        let many = (0..200).map(|of| metadata.create_tenant(contract::tenant(&format!("paused-{of}"))));
        let start = Instant::now();
        let results = join_all(many).await;
        assert!(results.iter().all(|result| matches!(result, Err(StoreError::Unavailable(_)))), "{results:?}");
        // Concurrently: one after the other they would take minutes.
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        server.resume();
    };
    nothing_is_lost(&metadata, pause, 20).await;
    has_all(&metadata, &["first".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_cost_nothing_acknowledged() {
    let url = database("terminated").await;
    let metadata = connect(&url).await;
    let mut admin = admin(&url).await;
    let terminate = async {
        for _ in 0..10 {
            sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .execute(&mut admin)
            .await
            .expect("terminated");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    nothing_is_lost(&metadata, terminate, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_leave_no_transaction_and_lose_nothing() {
    let url = database("callers").await;
    let metadata = connect(&url).await;
    let mut acknowledged = Vec::new();
    let mut waits = 0..;
    for round in 0..40 {
        let callers = (0..20).map(|of| {
            let name = format!("{round}-{of}");
            let creating = metadata.create_tenant(contract::tenant(&name));
            // Dropped at a later point of the exchange each time, up to its end.
            let patience = Duration::from_micros(waits.next().unwrap_or(0) * 37 % 20_000);
            async move { matches!(timeout(patience, creating).await, Ok(Ok(_))).then_some(name) }
        });
        acknowledged.extend(join_all(callers).await.into_iter().flatten());
        acknowledged.push(format!("last-{round}"));
        metadata.create_tenant(contract::tenant(&format!("last-{round}"))).await.expect("created");
    }
    metadata.operations.ended().await;
    let in_transaction: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM pg_stat_activity
         WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(&mut admin(&url).await)
    .await
    .expect("counted");
    assert_eq!(in_transaction, 0);
    has_all(&metadata, &acknowledged).await;
}

#[tokio::test]
async fn a_connection_in_a_transaction_is_not_lent() {
    let url = database("lent").await;
    let metadata = connect(&url).await;
    let pool = &metadata.driver.connections;
    let mut left_open = pool.lend().await.expect("a connection");
    sqlx::raw_sql("BEGIN").execute(&mut *left_open).await.expect("begun");
    left_open.give_back();
    drop(left_open);
    metadata.create_tenant(contract::tenant("t")).await.expect("created");
    assert!(connect(&url).await.tenant(&contract::tenant("t").id).await.expect("read").is_some(), "and committed");

    let mut used = pool.lend().await.expect("a connection");
    let of_used = pid(&mut used).await;
    used.give_back();
    drop(used);
    let mut dropped = pool.lend().await.expect("a connection");
    let of_dropped = pid(&mut dropped).await;
    assert_eq!(of_dropped, of_used, "one that was given back is lent again");
    drop(dropped);
    assert_ne!(pid(&mut pool.lend().await.expect("a connection")).await, of_dropped, "closed, not lent again");
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_coordinators_that_race_one_wins_and_one_conflicts() {
    let url = database("races").await;
    let (one, other) = (connect(&url).await, connect(&url).await);
    let mut tenant = one.create_tenant(contract::tenant("t")).await.expect("created");
    for round in 0..50_u64 {
        let change = |updated_at_ms| Tenant { updated_at_ms, ..tenant.clone() };
        let (a, b) =
            tokio::join!(one.update_tenant(change(round), false), other.update_tenant(change(round + 1000), false));
        tenant = match (a, b) {
            (Ok(won), Err(StoreError::Conflict(_))) | (Err(StoreError::Conflict(_)), Ok(won)) => won,
            neither => panic!("{neither:?}"),
        };
        assert_eq!(one.tenant(&tenant.id).await, Ok(Some(tenant.clone())));
    }
}

/// The id of each tenant whose change was listed since `after`, up to `last`.
async fn follow(metadata: &PostgresMetadata, mut after: u64, last: &TenantId) -> Vec<TenantId> {
    let mut hint = metadata.hint();
    let mut listed = Vec::new();
    loop {
        let changes = metadata.changes(after).await.expect("changes");
        assert!(changes.complete);
        after = changes.revision;
        listed.extend(changes.changed.into_iter().filter_map(|changed| match changed {
            Changed::Tenant(id) => Some(id),
            _ => None,
        }));
        if listed.last() == Some(last) {
            return listed;
        }
        timeout(PATIENCE, hint.given()).await.expect("hinted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_hinted_to_others_even_after_listening_was_cut() {
    let url = database("listening").await;
    let (one, other) = (connect(&url).await, connect(&url).await);
    let start = other.changes(u64::MAX).await.expect("the revision").revision;
    let mut admin = admin(&url).await;
    let listeners = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let mut expected = Vec::new();
    for round in 0..5 {
        // Both listen: what follows is found through hints, not by polling at the right moment.
        timeout(PATIENCE, async {
            while sqlx::query_scalar::<_, i64>(listeners).fetch_one(&mut admin).await.expect("counted") < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("listening");
        let name = format!("t-{round}");
        let last = contract::tenant(&name).id;
        expected.push(last.clone());
        let (listed, created) = tokio::join!(follow(&other, start, &last), one.create_tenant(contract::tenant(&name)));
        created.expect("created");
        assert_eq!(listed, expected);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        sqlx::query(cut).execute(&mut admin).await.expect("cut");
        // While neither listens. The hint after the reconnection leads to it.
        let unheard = contract::tenant(&format!("unheard-{round}"));
        expected.push(unheard.id.clone());
        let (listed, created) = tokio::join!(follow(&other, start, &unheard.id), one.create_tenant(unheard.clone()));
        created.expect("created");
        assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn a_coordinator_that_has_missed_too_much_reads_everything() {
    let url = database("forgotten").await;
    let metadata = connect(&url).await;
    let start = metadata.changes(u64::MAX).await.expect("the revision").revision;
    metadata.create_tenant(contract::tenant("t")).await.expect("created");
    // As if this many changes had been made.
    let moved = "UPDATE cluster_state SET revision = revision + 10000";
    sqlx::query(moved).execute(&mut admin(&url).await).await.expect("moved");
    let changes = metadata.changes(start).await.expect("changes");
    assert!(!changes.complete && changes.changed.is_empty() && changes.revision == start + 10_001);
    metadata.create_tenant(contract::tenant("u")).await.expect("created");
    assert!(!metadata.changes(start + 1).await.expect("changes").complete);
    let changes = metadata.changes(start + 2).await.expect("changes");
    assert_eq!((changes.complete, changes.changed), (true, vec![Changed::Tenant(contract::tenant("u").id)]));
    let kept: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM changes").fetch_one(&mut admin(&url).await).await.expect("counted");
    assert_eq!(kept, 1, "the others are forgotten");
}

#[tokio::test]
async fn a_lock_that_is_held_too_long_fails_the_change_and_nothing_else() {
    let url = database("locked").await;
    let operation = Duration::from_secs(1);
    let metadata = connect_with(PostgresConfig { operation, ..PostgresConfig::new(&url) }).await;
    let mut admin = admin(&url).await;
    sqlx::raw_sql("BEGIN; SELECT revision FROM cluster_state FOR UPDATE").execute(&mut admin).await.expect("locked");
    let result = metadata.create_tenant(contract::tenant("t")).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    insist(|| metadata.tenant(&contract::tenant("t").id)).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut admin).await.expect("unlocked");
    create(&metadata, "t").await;
}

#[tokio::test]
async fn what_is_no_such_database_is_refused_without_its_password() {
    let refused = |url: &str| PostgresMetadata::connect(patient(url));
    let result = refused("postgres://me:hush@[::1").await.expect_err("no address");
    assert!(matches!(&result, StoreError::Refused(why) if !why.contains("hush")), "{result:?}");
    let config = PostgresConfig { connections: 0, ..PostgresConfig::new("postgres://me:hush@localhost/db") };
    assert!(!format!("{config:?}").contains("hush"));
    assert!(matches!(PostgresMetadata::connect(config).await, Err(StoreError::Refused(_))));

    let url = database("fit").await;
    let result = refused(&url.replace("/fit", "/nowhere")).await.expect_err("no database");
    assert!(matches!(&result, StoreError::Unavailable(why) if why.contains("nowhere")), "{result:?}");
    let mut admin = admin(&url).await;
    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'";
    sqlx::query(latin).execute(&mut admin).await.expect("created");
    let result = refused(&url.replace("/fit", "/latin")).await.expect_err("another encoding");
    assert!(matches!(&result, StoreError::Refused(why) if why.contains("LATIN1")), "{result:?}");

    drop(connect(&url).await);
    sqlx::query("UPDATE cluster_state SET needs_schema = 9999").execute(&mut admin).await.expect("changed");
    let result = refused(&url).await.expect_err("too new");
    assert!(matches!(&result, StoreError::Conflict(why) if why.contains("newer version")), "{result:?}");
}

#[tokio::test]
async fn its_durability_and_damage_are_reported() {
    let url = database("durability").await;
    let metadata = connect(&url).await;
    let durability = metadata.durability().await.expect("an answer");
    assert_eq!(
        (durability.synchronous_commit.as_str(), durability.fsync, durability.in_recovery),
        ("on", false, false)
    );
    assert!(!durability.server_version.is_empty());
    metadata.create_tenant(contract::tenant("t")).await.expect("created");
    let mut admin = admin(&url).await;
    for damage in
        ["UPDATE tenants SET read_repair = 'perhaps'", "UPDATE tenants SET created_at = -1", "DROP TABLE tenants"]
    {
        sqlx::query(damage).execute(&mut admin).await.expect("damaged");
        let result = metadata.tenant(&contract::tenant("t").id).await;
        assert!(matches!(result, Err(StoreError::Damaged(_))), "{result:?}");
    }
}
