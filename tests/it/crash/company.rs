//! Three coordinators on one PostgreSQL and one Redis, over five nodes, under load, while each of them is killed or paused,
//! connections are cut, records are lost, and clients disconnect in the middle of their requests.
//!
//! `WITAN_STORM_PAUSE_SECONDS` sets how long PostgreSQL and Redis are paused, `WITAN_STORM_CLIENTS` how many clients disconnect.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Ground, Load, Writers, appends, dice, from_environment, seed};
use crate::harness::{Api, Company, delete, eventually, get, write};

const COORDINATORS: usize = 3;
const NODES: usize = 5;
/// Writers of each kind.
const WRITERS: u64 = 3;
/// Default time for which PostgreSQL and Redis are paused, in seconds.
const PAUSE: u64 = 4;
/// Time for which a coordinator is paused: longer than its lease of 15 s on its id.
const BEYOND_LEASE: u64 = 17;
/// Default number of clients that disconnect, and how many there are at a time.
const CLIENTS: u64 = 2000;
const AT_ONCE: usize = 250;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_coordinators_share_may_fail_under_load() {
    let seed = seed();
    let pause = Duration::from_secs(from_environment("WITAN_STORM_PAUSE_SECONDS").unwrap_or(PAUSE));
    let mut company = Company::with(NODES, COORDINATORS).await;
    let doors: Vec<Api> = (0..COORDINATORS).map(|index| company.api(index).without_deadline()).collect();
    let nodes = company.nodes.iter().map(|(_, address)| *address).collect();
    let load = Load::start(doors, nodes, Writers::of_each(WRITERS), seed).await;
    let ground = &load.ground;
    ground.got_on().await;
    kills(&mut company, ground).await;
    pauses(&mut company, ground, pause).await;
    cuts(&company, ground).await;
    clients_that_go_away(&company, ground, &load.elements, dice(seed, 4, 0)).await;
    load.end().await.judge(seed);
    nothing_is_left(&company).await;
}

/// A coordinator, the database and Redis die at once, `kill -9`, and come back.
async fn kills(company: &mut Company, ground: &Ground) {
    company.coordinators[0].process = None;
    ground.got_on().await;
    let back = Instant::now();
    company.start(0).await;
    recovered(company, ground, "a coordinator was killed", back).await;

    company.postgres.kill();
    ground.got_on().await;
    let back = Instant::now();
    company.postgres.start_again();
    recovered(company, ground, "PostgreSQL was killed", back).await;

    // Changes without an idempotency key need no Redis.
    company.redis.kill();
    for coordinator in &company.coordinators {
        let api = coordinator.api();
        eventually("changes without a name go on", async || api.write(write("registers", "unnamed", "v")).await.ok())
            .await;
    }
    let back = Instant::now();
    company.redis.start_again();
    recovered(company, ground, "Redis was killed", back).await;
}

/// A coordinator, the database and Redis are paused: connections stay open, and nothing responds.
async fn pauses(company: &mut Company, ground: &Ground, pause: Duration) {
    let process = company.coordinators[1].process.as_ref().expect("it runs");
    process.stop().await;
    tokio::time::sleep(pause.max(Duration::from_secs(BEYOND_LEASE))).await;
    let back = Instant::now();
    process.signal("CONT");
    recovered(company, ground, "a coordinator stood still", back).await;

    company.postgres.pause();
    tokio::time::sleep(pause).await;
    let back = Instant::now();
    company.postgres.resume();
    recovered(company, ground, "PostgreSQL stood still", back).await;

    company.redis.pause();
    tokio::time::sleep(pause).await;
    let back = Instant::now();
    company.redis.resume();
    recovered(company, ground, "Redis stood still", back).await;
}

/// Every connection to the database is cut, and every idempotency record is lost.
async fn cuts(company: &Company, ground: &Ground) {
    let back = Instant::now();
    company.postgres.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
    recovered(company, ground, "all backends were terminated", back).await;

    let back = Instant::now();
    ground.lose_records(|| _ = company.redis.ask("FLUSHALL")).await;
    recovered(company, ground, "Redis was flushed", back).await;
}

/// Every coordinator works again: changes with an idempotency key, reads, and changes in the database.
async fn recovered(company: &Company, ground: &Ground, after: &str, since: Instant) {
    for (index, coordinator) in company.coordinators.iter().enumerate() {
        let api = coordinator.api();
        let tenant = format!("probe-{index}-{}", rand::random::<u32>());
        eventually("the database takes changes", async || {
            let request = witan_wire::v1::CreateTenantRequest { tenant_id: tenant.clone(), ..Default::default() };
            match api.client().create_tenant(request).await {
                Ok(_) => Some(()),
                // The response to an earlier attempt was lost.
                Err(status) if status.code() == tonic::Code::AlreadyExists => Some(()),
                Err(_) => None,
            }
        })
        .await;
        let mut named = write(&tenant, "k", "v");
        named.idempotency_key = "probe".to_owned();
        eventually("changes with a name are made", async || api.write(named.clone()).await.ok()).await;
        eventually("changes without one are made", async || api.delete(delete(&tenant, "k")).await.ok()).await;
    }
    println!("{after}: every coordinator did everything again {:?} after it was back", since.elapsed());
    ground.got_on().await;
}

/// Clients, each with its own connection, that send a change and disconnect before, during or after the response; then each retries
/// at another coordinator until it is acknowledged.
async fn clients_that_go_away(
    company: &Company,
    ground: &Ground,
    elements: &Arc<appends::Elements>,
    mut random: StdRng,
) {
    let clients = from_environment("WITAN_STORM_CLIENTS").unwrap_or(CLIENTS);
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut gone = JoinSet::new();
    for client in 0..clients {
        let place = Arc::clone(&at_once).acquire_owned().await.expect("open");
        let api = company.api(client as usize % COORDINATORS);
        let patience = Duration::from_micros(random.random_range(0..60_000));
        let (ground, elements) = (ground.clone(), Arc::clone(elements));
        gone.spawn(async move {
            let change = elements.next();
            // Dropped in whatever state it has reached.
            let _ = tokio::time::timeout(patience, change.send(&api)).await;
            drop(api);
            let fate = change.settled(&ground).await;
            elements.note(change, fate);
            drop(place);
        });
    }
    while let Some(client) = gone.join_next().await {
        client.expect("a client");
    }
    println!("{clients} clients went away in the middle of a change");
}

/// No operation, permit or transaction has leaked.
async fn nothing_is_left(company: &Company) {
    for coordinator in &company.coordinators {
        let admin = coordinator.admin;
        eventually("every operation has ended", async || {
            let (_, metrics) = get(admin, "/metrics").await.ok()?;
            metrics.lines().any(|line| line.trim() == "witan_operations_in_flight 0").then_some(())
        })
        .await;
    }
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' \
                AND state_change < now() - interval '1 second'";
    assert_eq!(company.postgres.ask(idle).trim(), "0", "connections are idle in a transaction");
}
