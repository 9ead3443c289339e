//! Whoever leads a placement change is killed in each of its steps, nodes and the metadata store go away and come back: the change waits,
//! says for what, and ends as asked, and nothing that was acknowledged is missing.
//!
//! `WITAN_MOVES_ROUNDS` sets how often a leader is killed at a random moment, `WITAN_MOVES_SEED` repeats the moments.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use witan_servers::Postgres;
use witan_wire::v1;

use super::load::Load;
use super::{completed, factor, nodes, remove};
use crate::harness::{Api, Company, Version, eventually, read, write};

/// Keys with values of two KiB, so that a copy at the least rate takes seconds.
const BULK: usize = 60;
const BYTES: usize = 2048;

/// Leaders are replaced soon, but not while PostgreSQL takes its time; copies are slow, and new disks are taken soon.
fn environment() -> Vec<(&'static str, &'static str)> {
    vec![
        ("WITAN_PLACEMENT__LEADER_LEASE", "4s"),
        ("WITAN_PLACEMENT__COPY_RATE", "64KiB"),
        ("WITAN_HEALING__BEGIN_AFTER", "100ms"),
        ("WITAN_HEALING__ADMIT_AFTER", "1s"),
    ]
}

fn value(n: usize) -> Vec<u8> {
    vec![u8::try_from(n).expect("few keys"); BYTES]
}

async fn fill(api: &Api, tenant: &str, replicas: i32) {
    api.tenant(tenant, |request| request.replication_factor = replicas).await;
    for n in 0..BULK {
        api.write(write(tenant, &format!("bulk-{n}"), value(n))).await.expect("written");
    }
}

async fn is_complete(api: &Api, tenant: &str) {
    for n in 0..BULK {
        let found = api.read(read(tenant, &format!("bulk-{n}"))).await.expect("read");
        assert_eq!(found.value, value(n), "{tenant} bulk-{n}");
    }
}

async fn status(api: &Api, migration: &str) -> Option<v1::GetMigrationStatusResponse> {
    let request = v1::GetMigrationStatusRequest { migration_id: migration.to_owned() };
    Some(api.client().get_migration_status(request).await.ok()?.into_inner())
}

/// Waits until a migration that goes on is in this phase.
async fn in_phase(api: &Api, migration: &str, phase: &str) {
    eventually(&format!("it is in the phase {phase}"), async || {
        let now = status(api, migration).await?;
        assert_eq!(now.finished_at, 0, "it was faster: {now:?}");
        (now.phase == phase).then_some(())
    })
    .await;
}

/// Waits until a migration says this.
async fn says(api: &Api, migration: &str, what: &str) {
    eventually(&format!("it says {what}"), async || {
        let now = status(api, migration).await?;
        assert_eq!(now.finished_at, 0, "it has ended: {now:?}");
        now.message.contains(what).then_some(())
    })
    .await;
    // For more than a moment: somebody has to read it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let still = status(api, migration).await.expect("its status");
    assert!(still.message.contains(what), "it does not say {what} any longer: {still:?}");
}

/// Makes PostgreSQL take its time with a change of a tenant's move, or of its leftovers: `when` is a condition of the trigger.
fn slow(postgres: &Postgres, on: &str, when: &str) {
    postgres.ask(
        "CREATE OR REPLACE FUNCTION takes_its_time() RETURNS trigger AS \
         'BEGIN PERFORM pg_sleep(2); IF TG_OP = ''DELETE'' THEN RETURN OLD; END IF; RETURN NEW; END' LANGUAGE plpgsql",
    );
    postgres
        .ask(&format!("CREATE TRIGGER slow BEFORE {on} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION takes_its_time()"));
}

fn slow_no_longer(postgres: &Postgres) {
    postgres.ask("DROP TRIGGER IF EXISTS slow ON tenants; DROP TRIGGER IF EXISTS slow ON placement_leftovers");
}

/// A moment at which the leader is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// At the end of a step of the tenant's move, when the next one is about to be published.
    End(&'static str),
    /// Amid the first copy.
    Copy,
    /// When rows were dropped that a node has lost, which is about to be noted.
    Cleanup,
}

impl Moment {
    fn slow(self, postgres: &Postgres) {
        match self {
            Self::End(step) => {
                let leaves = format!("OLD.move_step = '{step}' AND NEW.move_step IS DISTINCT FROM OLD.move_step");
                slow(postgres, "UPDATE ON tenants", &leaves);
            }
            Self::Cleanup => slow(postgres, "DELETE ON placement_leftovers", "true"),
            Self::Copy => {}
        }
    }

    /// Waits until it has come.
    async fn comes(self, company: &Company, api: &Api, migration: &str) {
        match self {
            Self::Copy => in_phase(api, migration, "data_copy").await,
            Self::End(_) | Self::Cleanup => {
                let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
                eventually("the moment has come", async || (company.postgres.ask(waits) == "t").then_some(())).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_its_leader_is_killed_another_one_ends_the_change() {
    let mut company = Company::with_environment(2, environment()).await;
    let apis = [company.api(0), company.api(1)];
    Load::tenants(&apis[0]).await;
    fill(&apis[0], "bulk", 2).await;
    let load = Load::start(&apis, false);
    let moments = [
        (3, Moment::End("preparing")),
        (2, Moment::End("dual_write")),
        (3, Moment::End("cutover")),
        (2, Moment::Cleanup),
        (3, Moment::Copy),
    ];
    for (to, moment) in moments {
        let began = Instant::now();
        let leader = company.leader().await;
        let other = &apis[1 - leader];
        moment.slow(&company.postgres);
        let resized = factor(other, "bulk", to).await.expect("recorded");
        moment.comes(&company, other, &resized.migration_id).await;
        company.kill_coordinator(leader);
        slow_no_longer(&company.postgres);
        completed(other, &resized.migration_id).await;
        assert_ne!(company.leader().await, leader, "another one has gone on");
        println!("{moment:?}, {to} replicas: completed after {:?}", began.elapsed());
        is_complete(other, "bulk").await;
        company.start(leader).await;
        load.goes_on().await;
    }
    let (mut keys, _) = load.end().await;
    keys.all_read(&apis).await;
}

/// Rounds of [`a_leader_that_is_killed_at_a_random_moment_is_replaced`]; more with WITAN_MOVES_ROUNDS.
const ROUNDS: u64 = 2;
/// Longest time after which the leader is killed: most changes have ended by then.
const LONGEST_MS: u64 = 5000;

/// The number in a variable of the environment.
fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Replicas become more and fewer, and a node comes and goes, while leaders are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_at_a_random_moment_is_replaced() {
    let seed = from_environment("WITAN_MOVES_SEED").unwrap_or_else(rand::random);
    let rounds = from_environment("WITAN_MOVES_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("WITAN_MOVES_SEED={seed} WITAN_MOVES_ROUNDS={rounds}");
    let (mut dice, began) = (StdRng::seed_from_u64(seed), Instant::now());
    let mut environment = environment();
    environment.retain(|(name, _)| *name != "WITAN_PLACEMENT__COPY_RATE");
    environment.push(("WITAN_PLACEMENT__COPY_RATE", "256KiB"));
    let mut company = Company::with_environment(3, environment).await;
    let apis = [company.api(0), company.api(1), company.api(2)];
    Load::tenants(&apis[0]).await;
    fill(&apis[0], "bulk", 2).await;
    let fourth = company.another_node().await;
    let address = format!("{}:{}", fourth.host, fourth.port).parse().expect("an address");
    let load = Load::start(&apis, false);
    let (mut amid, mut factors) = (0, [3, 1, 3, 2].into_iter().cycle());
    for round in 0..rounds {
        let leader = company.leader().await;
        let other = &apis[(leader + 1) % apis.len()];
        let migration = match round % 4 {
            1 => other.client().add_storage_node(fourth.clone()).await.expect("recorded").into_inner().migration_id,
            3 => remove(other, "node-4").await.expect("recorded").migration_id,
            _ => factor(other, "bulk", factors.next().expect("endless")).await.expect("recorded").migration_id,
        };
        if round % 4 == 1 {
            company.nodes.push(("node-4".to_owned(), address));
        }
        let after = Duration::from_millis(dice.random_range(0..LONGEST_MS));
        tokio::time::sleep(after).await;
        let was = eventually("its status", async || status(other, &migration).await).await;
        amid += u32::from(was.finished_at == 0);
        company.kill_coordinator(leader);
        completed(other, &migration).await;
        println!("round {round}: killed after {after:.1?} in {} {}; {:.1?}", was.status, was.phase, began.elapsed());
        is_complete(other, "bulk").await;
        if round % 4 == 3 {
            eventually("the node is no longer listed", async || (nodes(other).await.len() == 3).then_some(())).await;
            // Its old store is never used again.
            company.end_node(3).await;
            std::fs::remove_dir_all(company.node_folder(3)).expect("remove a folder");
            company.start_node_alone(3, Version::This).await;
            company.nodes.pop();
        }
        company.start(leader).await;
        load.goes_on().await;
    }
    let (mut keys, _) = load.end().await;
    keys.all_read(&apis).await;
    println!("{rounds} rounds, {amid} of them amid a change, in {:.1?}", began.elapsed());
}

/// A node that joins.
async fn with_a_fourth() -> (Company, Api, String) {
    let mut company = Company::with_environment(2, environment()).await;
    let api = company.api(0);
    fill(&api, "bulk", 3).await;
    let fourth = company.another_node().await;
    let address = format!("{}:{}", fourth.host, fourth.port).parse().expect("an address");
    let added = api.client().add_storage_node(fourth).await.expect("recorded").into_inner();
    company.nodes.push(("node-4".to_owned(), address));
    (company, api, added.migration_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_gets_its_records_is_waited_for() {
    let (mut company, api, migration) = with_a_fourth().await;
    in_phase(&api, &migration, "data_copy").await;
    company.kill_node(3);
    says(&api, &migration, "waits for node node-4: it cannot be reached").await;
    is_complete(&api, "bulk").await;
    company.start_node_alone(3, Version::This).await;
    completed(&api, &migration).await;
    is_complete(&api, "bulk").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loses_its_disk_while_it_gets_its_records_gets_them_anew() {
    let (mut company, api, migration) = with_a_fourth().await;
    in_phase(&api, &migration, "data_copy").await;
    company.kill_node(3);
    std::fs::remove_dir_all(company.node_folder(3)).expect("remove a folder");
    company.start_node_alone(3, Version::This).await;
    completed(&api, &migration).await;
    // Where the replicas are that count now, all of them have everything: each node can be missing.
    for missing in 0..4 {
        company.kill_node(missing);
        eventually("a quorum reads everything", async || {
            for n in 0..BULK {
                let found = api.read(read("bulk", &format!("bulk-{n}"))).await.ok()?;
                assert_eq!(found.value, value(n), "bulk-{n}");
            }
            Some(())
        })
        .await;
        company.start_node(missing, Version::This).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_has_the_only_replicas_is_waited_for() {
    let mut company = Company::with_environment(2, environment()).await;
    let api = company.api(0);
    fill(&api, "single", 1).await;
    slow(&company.postgres, "UPDATE ON tenants", "NEW.move_step = 'cutover' AND OLD.move_step = 'dual_write'");
    let resized = factor(&api, "single", 3).await.expect("recorded");
    let moment = Moment::End("dual_write");
    moment.comes(&company, &api, &resized.migration_id).await;
    company.kill_node(0);
    slow_no_longer(&company.postgres);
    // Because it cannot be read in the cutover, or before it if the leader has changed.
    says(&api, &resized.migration_id, "node-1").await;
    company.start_node_alone(0, Version::This).await;
    completed(&api, &resized.migration_id).await;
    is_complete(&api, "single").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_goes_on_when_the_metadata_store_is_back() {
    let (company, api, migration) = with_a_fourth().await;
    in_phase(&api, &migration, "data_copy").await;
    company.postgres.stop();
    for n in 0..BULK {
        // Tenants that are known are served without it.
        api.write(write("bulk", &format!("meanwhile-{n}"), value(n))).await.expect("written");
    }
    company.postgres.start_again();
    eventually("its status is known", async || status(&api, &migration).await).await;
    completed(&api, &migration).await;
    is_complete(&company.api(1), "bulk").await;
    for n in 0..BULK {
        let found = api.read(read("bulk", &format!("meanwhile-{n}"))).await.expect("read");
        assert_eq!(found.value, value(n), "meanwhile-{n}");
    }
}

/// What it has is of before: whoever believed it would read what was deleted, and miss what was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_comes_back_only_without_its_old_records() {
    let mut company = Company::with(4, 1).await;
    let api = company.api(0);
    fill(&api, "bulk", 3).await;
    let removed = remove(&api, "node-4").await.expect("recorded");
    completed(&api, &removed.migration_id).await;
    eventually("the node is no longer listed", async || (nodes(&api).await.len() == 3).then_some(())).await;

    let (host, port) = (company.nodes[3].1.ip().to_string(), company.nodes[3].1.port().into());
    let again =
        v1::AddStorageNodeRequest { node_id: "node-4".to_owned(), host, port, virtual_nodes: 0, zone: String::new() };
    let added = api.client().add_storage_node(again).await.expect("recorded").into_inner();
    says(&api, &added.migration_id, "was retired").await;
    says(&api, &added.migration_id, "start it with an empty one").await;
    let listed = company.node_at(0, 3).await;
    assert_eq!(listed.store_use, "unadmitted", "{listed:?}");
    is_complete(&api, "bulk").await;

    company.end_node(3).await;
    std::fs::remove_dir_all(company.node_folder(3)).expect("remove a folder");
    company.start_node_alone(3, Version::This).await;
    completed(&api, &added.migration_id).await;
    is_complete(&api, "bulk").await;
    let listed = company.node_at(0, 3).await;
    assert_eq!(listed.store_use, "whole", "{listed:?}");
}
