//! The parts of the demonstration: what each does, checks and prints.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use witan_kernel::record::{Encoded, Record as Stored};
use witan_wire::v1::{
    CreateTenantRequest, ListStorageNodesRequest, PluginInfo, ReadKeyValueRequest, ReadKeyValueResponse, ReadRequest,
    RollbackBindingRequest,
};

use crate::client::{self, Coordinator, Node, Plugins, bind, connect, failed, shown, timed, upload};
use crate::cluster::{Cluster, NODES, node_name};
use crate::data::{self, Record};
use crate::load::{Figures, IN_FLIGHT, Load, revised};
use crate::output::Output;

/// The registry's tenant: registers, and no policy may go below a quorum.
const REGISTRY: &str = "registry";
/// The carts' tenant: concurrent writes are kept as siblings.
const CARTS: &str = "carts";
/// Carts that are written in conflict.
const CONFLICTS: usize = 60;
/// The clients that write each of them at once, without having read it.
const DEVICES: [&str; 3] = ["phone", "laptop", "tablet"];
/// Rounds in which resolver and policy are swapped under load.
const SWAPS: usize = 20;
/// Requests of the load between two steps of the story.
const STRETCH: u64 = 600;
/// The node that is killed.
const VICTIM: usize = 1;
/// Longest time until a restarted node answers again, and until it is repaired.
const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration of the latency policy under which no replica is slow or busy, on any machine, and every answer that a request asks for
/// is waited for.
const CALM: &str = "slow-us = 4294967295\nbusy = 4294967295\naccept-shortfall = false";
/// One under which every replica is slow.
const NERVOUS: &str = "slow-us = 1";

/// What a write has met.
struct Met {
    level: String,
    replicas: i32,
}

impl std::fmt::Display for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "level {}, {} replicas had answered", self.level, self.replicas)
    }
}

struct Plot<'a> {
    output: Output,
    cluster: &'a mut Cluster,
    coordinator: Coordinator,
    plugins: Plugins,
    cart: PluginInfo,
    union: PluginInfo,
    policy: PluginInfo,
}

/// Runs every part; returns the load's totals. An error is a promise broken.
pub async fn tell(cluster: &mut Cluster, components: &Path, records: Vec<Record>, output: Output) -> Result<String> {
    let records = Arc::new(records);
    let mut plot = Plot::start(cluster, components, output).await?;
    plot.load(&records).await?;
    let mut load = Load::start(&plot.cluster.address, REGISTRY, &records, CARTS).await?;
    load.go_on(STRETCH).await?;
    // The first requests open connections and fill caches.
    spotless(load.take(), "at the start of the load")?;
    load.go_on(2 * STRETCH).await?;
    let quiet = spotless(load.take(), "before anything is changed")?;
    output.summary(
        "Load",
        format_args!("{IN_FLIGHT} requests in flight from here on, every read checked: {}.", quiet.clone().line()),
    );
    output.detail(format_args!(
        "\nFrom here on a load keeps {IN_FLIGHT} requests in flight and checks what it reads. Undisturbed: {}.",
        quiet.clone().line()
    ));
    plot.conflicts().await?;
    spotless(load.take(), "while carts were resolved")?;
    plot.swaps(&mut load, quiet).await?;
    let missed = plot.node_dies(&mut load, &records).await?;
    let (requests, failed) = load.so_far();
    let ledger = load.stop().await?;
    plot.repair(&missed, &records).await?;
    plot.audit(&records, &ledger).await?;
    Ok(format!("the load made {requests} requests, and {failed} failed"))
}

impl<'a> Plot<'a> {
    /// Uploads the plugins to a running cluster.
    async fn start(cluster: &'a mut Cluster, components: &Path, output: Output) -> Result<Self> {
        let channel = connect(&cluster.address).await?;
        let mut plugins = Plugins::new(channel.clone());
        let component = |name: &str| components.join(format!("{name}.wasm"));
        output.title("The cluster");
        let ids = cluster.ids();
        output.detail(format_args!(
            "One coordinator (process {}) at {} and {NODES} storage nodes (processes {}) run.",
            ids[0],
            cluster.address,
            ids[1..].iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
        ));
        let (cart, union, policy) = (
            upload(&mut plugins, &component("shopping-cart")).await?,
            upload(&mut plugins, &component("set-union")).await?,
            upload(&mut plugins, &component("adaptive-latency")).await?,
        );
        let uploaded: Vec<String> = [&cart, &union, &policy].map(named).into();
        output.detail(format_args!("Uploaded, compiled and probed: {}.", uploaded.join(", ")));
        output.summary(
            "Cluster",
            format_args!("one coordinator and {NODES} storage nodes, each a process; 3 WebAssembly plugins uploaded."),
        );
        Ok(Self { output, cluster, coordinator: Coordinator::new(channel), plugins, cart, union, policy })
    }

    async fn load(&mut self, records: &[Record]) -> Result<()> {
        self.output.title("The data");
        self.create(CreateTenantRequest {
            tenant_id: REGISTRY.into(),
            minimum_level: "quorum".into(),
            ..Default::default()
        })
        .await?;
        self.create(CreateTenantRequest {
            tenant_id: CARTS.into(),
            conflict_mode: "siblings".into(),
            ..Default::default()
        })
        .await?;
        let bar = ProgressBar::new(records.len() as u64);
        let style = "{bar:40} {pos}/{len} records, {per_sec}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let started = Instant::now();
        data::load(&self.coordinator, REGISTRY, records, || bar.inc(1)).await?;
        bar.finish_and_clear();
        let took = started.elapsed();
        let (count, rate) = (records.len(), records.len() as f64 / took.as_secs_f64());
        self.output.detail(format_args!(
            "The IANA language subtag registry, {count} records, is stored on a quorum of nodes each, \
             synced to disk, in {} ({rate:.0} records/s).",
            seconds(took)
        ));
        self.output.summary(
            "Data",
            format_args!("{count} real records, each on a quorum of nodes and synced to disk: {rate:.0} records/s."),
        );
        Ok(())
    }

    async fn create(&mut self, tenant: CreateTenantRequest) -> Result<()> {
        let what = format!("create tenant {}", tenant.tenant_id);
        self.coordinator.create_tenant(timed(tenant)).await.map_err(|status| failed(&what, &status))?;
        Ok(())
    }

    /// Several clients fill the same carts at once, none having read them.
    async fn conflicts(&mut self) -> Result<()> {
        self.output.title("Conflicting writes");
        let mut writes = JoinSet::new();
        for cart in 0..CONFLICTS {
            for (number, device) in DEVICES.iter().enumerate() {
                let mut coordinator = self.coordinator.clone();
                let value =
                    format!(r#"{{"items":{{"{device}-case":{{"{device}":1}},"milk":{{"{device}":{}}}}}}}"#, number + 1);
                let write = client::write(CARTS, &cart_key(cart), value);
                writes.spawn(async move { coordinator.write_key_value(timed(write)).await.map(drop) });
            }
        }
        while let Some(written) = writes.join_next().await {
            written?.map_err(|status| failed("write a cart", &status))?;
        }
        let before = self.cart(0).await?;
        ensure!(before.siblings.len() == DEVICES.len(), "expected {} siblings, got {before:?}", DEVICES.len());
        self.output.detail(format_args!(
            "{} clients wrote to each of {CONFLICTS} carts at once, without having read them. Without a resolver a read\n\
             returns what it found, {} siblings and no verdict:",
            DEVICES.len(),
            before.siblings.len()
        ));
        for sibling in &before.siblings {
            self.output.detail(format_args!("    {}", String::from_utf8_lossy(&sibling.value)));
        }
        let binding = bind(&mut self.plugins, CARTS, &self.cart.clone(), "").await?;
        let after = self.cart(0).await?;
        self.output.detail(format_args!(
            "With {} bound (binding {}) the same read returns one cart:\n    {}\n    resolved by {}",
            named(&self.cart),
            binding.number,
            String::from_utf8_lossy(&after.value),
            short(&after.resolved_by)
        ));
        let (resolved, kept) = self.count_items().await?;
        let written = CONFLICTS * DEVICES.len() * 2;
        self.output.detail(format_args!(
            "{resolved} of {CONFLICTS} carts resolved; {kept} of {written} items written are in them."
        ));
        self.output.summary(
            "Conflicts",
            format_args!(
                "{} clients wrote each of {CONFLICTS} carts at once; without a plugin a read returns {} siblings.",
                DEVICES.len(),
                before.siblings.len()
            ),
        );
        self.output.summary(
            "Resolver",
            format_args!(
                "with shopping-cart bound, a read returns one merged cart: {kept} of {written} items are there."
            ),
        );
        ensure!(resolved == CONFLICTS && kept == written, "carts or items are missing");
        self.settle(after).await
    }

    /// A write with the context of the read replaces all siblings.
    async fn settle(&mut self, read: ReadKeyValueResponse) -> Result<()> {
        let mut write = client::write(CARTS, &cart_key(0), read.value.clone());
        write.context = read.context;
        self.coordinator.write_key_value(timed(write)).await.map_err(|status| failed("write a cart back", &status))?;
        let settled = self.cart(0).await?;
        ensure!(settled.value == read.value && settled.siblings.is_empty(), "the cart is not settled: {settled:?}");
        self.output
            .detail("A client that writes that cart back with the context of its read settles it: no siblings remain.");
        Ok(())
    }

    async fn cart(&mut self, number: usize) -> Result<ReadKeyValueResponse> {
        let request = ReadKeyValueRequest { tenant_id: CARTS.into(), key: cart_key(number), ..Default::default() };
        let read = self.coordinator.read_key_value(timed(request)).await;
        Ok(read.map_err(|status| failed("read a cart", &status))?.into_inner())
    }

    /// Carts that a resolver has merged, and the (item, writer) pairs in all carts.
    async fn count_items(&mut self) -> Result<(usize, usize)> {
        let (mut resolved, mut items) = (0, 0);
        for number in 0..CONFLICTS {
            let read = self.cart(number).await?;
            resolved += usize::from(read.siblings.is_empty() && read.resolved_by.starts_with("shopping-cart@"));
            let cart: serde_json::Value = serde_json::from_slice(&read.value).unwrap_or_default();
            let writers =
                cart["items"].as_object().into_iter().flatten().filter_map(|(_, writers)| writers.as_object());
            items += writers.map(serde_json::Map::len).sum::<usize>();
        }
        Ok((resolved, items))
    }

    /// Resolver and policy change again and again while the load goes on.
    async fn swaps(&mut self, load: &mut Load, mut quiet: Figures) -> Result<()> {
        self.output.title("Swapping plugins under load");
        let (cart, union, policy) = (self.cart.clone(), self.union.clone(), self.policy.clone());
        let started = Instant::now();
        let mut swaps = 0;
        let (mut kept_all, mut merged) = (0, 0);
        for round in 0..SWAPS {
            bind(&mut self.plugins, CARTS, &union, "").await?;
            // The carts are objects, not sets, so set-union keeps all siblings; shopping-cart merges them.
            kept_all += usize::from(self.cart(1).await?.siblings.len() == DEVICES.len());
            bind(&mut self.plugins, REGISTRY, &policy, if round % 2 == 0 { CALM } else { NERVOUS }).await?;
            load.go_on(20).await?;
            bind(&mut self.plugins, CARTS, &cart, "").await?;
            merged += usize::from(self.cart(1).await?.siblings.is_empty());
            swaps += 3;
            load.go_on(20).await?;
        }
        let took = started.elapsed();
        let mut during = spotless(load.take(), "during the swaps")?;
        self.output.detail(format_args!(
            "{swaps} swaps in {}: shopping-cart for set-union and back, and adaptive-latency between two\n\
             configurations. The next read of the same cart always followed the new resolver: {kept_all} of {SWAPS} times set-union kept\n\
             all siblings (an object is not a set), {merged} of {SWAPS} times shopping-cart merged them.",
            seconds(took)
        ));
        ensure!(kept_all == SWAPS && merged == SWAPS, "a read did not follow the resolver in force");
        self.output.detail(format_args!("    undisturbed:      {}", quiet.line()));
        self.output.detail(format_args!("    during the swaps: {}", during.line()));
        self.output.summary(
            "Swaps",
            format_args!(
                "{swaps} plugin swaps under load in {}, each in force for the next read: {:.0} requests/s, {} failed.",
                seconds(took),
                during.rate(),
                during.failed
            ),
        );
        self.policies().await?;
        self.roll_back().await
    }

    /// The same request under each configuration of the policy. Under the second one a node is stopped, so that its answer cannot come,
    /// however fast or slow the machine is: the request does not wait for it.
    async fn policies(&mut self) -> Result<()> {
        let policy = self.policy.clone();
        bind(&mut self.plugins, REGISTRY, &policy, CALM).await?;
        let calm = self.write_at_all("policy").await.map_err(|status| failed("write at level all", &status))?;
        bind(&mut self.plugins, REGISTRY, &policy, NERVOUS).await?;
        self.cluster.pause_node(VICTIM).await?;
        let nervous = self.write_at_all("policy").await;
        self.cluster.resume_node(VICTIM).await?;
        let nervous = nervous.map_err(|status| failed("write at level all", &status))?;
        for (configuration, says, met) in
            [(CALM, "calm", &calm), (NERVOUS, "finds every replica slow, and one is stopped", &nervous)]
        {
            self.output
                .detail(format_args!("A write that asks for level all, policy {configuration:?} ({says}): met {met}."));
        }
        self.output.detail("(The tenant's minimum is a quorum: no policy goes below.)");
        ensure!(calm.level == "all" && nervous.level == "quorum", "the policy does not decide: {calm}, then {nervous}");
        Ok(())
    }

    async fn write_at_all(&mut self, key: &str) -> std::result::Result<Met, tonic::Status> {
        let mut write = client::write(REGISTRY, &format!("probe/{key}"), "probe");
        write.consistency = "all".into();
        let written = self.coordinator.write_key_value(timed(write)).await?.into_inner();
        Ok(Met { level: written.consistency, replicas: written.replica_count })
    }

    async fn roll_back(&mut self) -> Result<()> {
        let request =
            RollbackBindingRequest { tenant_id: CARTS.into(), hook: self.cart.hook.clone(), ..Default::default() };
        let rolled = self.plugins.rollback_binding(timed(request)).await;
        let rolled = rolled.map_err(|status| failed("roll back", &status))?.into_inner();
        let (now, before) = (rolled.binding.context("no binding")?, rolled.previous.context("nothing before")?);
        let kept = self.cart(1).await?.siblings.len();
        self.output.detail(format_args!(
            "Rolled back from {} to {}: the cart has {kept} siblings again.",
            before.name, now.name
        ));
        ensure!(now.name == self.union.name && kept == DEVICES.len(), "the rollback did not take effect");
        let request =
            RollbackBindingRequest { tenant_id: REGISTRY.into(), hook: self.policy.hook.clone(), ..Default::default() };
        self.plugins.rollback_binding(timed(request)).await.map_err(|status| failed("roll back", &status))?;
        bind(&mut self.plugins, CARTS, &self.cart.clone(), "").await?;
        Ok(())
    }

    /// A node is killed, the load goes on, the node is restarted. Returns the records written while it was down.
    async fn node_dies(&mut self, load: &mut Load, records: &[Record]) -> Result<BTreeSet<usize>> {
        self.output.title("A node dies");
        let name = node_name(VICTIM);
        spotless(load.take(), "before the node was killed")?;
        let id = self.cluster.kill_node(VICTIM).await?;
        self.output.detail(format_args!(
            "{name} (process {id}) is killed with SIGKILL. The load goes on with two of three nodes:"
        ));
        load.go_on(2 * STRETCH).await?;
        let mut without = load.take();
        self.output.detail(format_args!("    without it:       {}", without.line()));
        let without = spotless(without, "while a node was down")?;
        self.output.summary(
            "Failure",
            format_args!(
                "{name} killed with SIGKILL; the other two served {} requests ({:.0}/s), {} failed.",
                without.requests,
                without.rate(),
                without.failed
            ),
        );
        self.all_without_a_node().await?;
        self.cluster.start_node(VICTIM).await?;
        self.wait_for(VICTIM).await?;
        let stale = self.stale(&without.written, records).await?;
        load.go_on(STRETCH).await?;
        let mut after = load.take();
        self.output.detail(format_args!(
            "{name} is started again. Of {} records written meanwhile, asked directly, it is behind on {stale}.",
            distinct(&without)
        ));
        self.output.detail(format_args!("    with it again:    {}", after.line()));
        spotless(after, "while a node was restarted")?;
        self.output
            .summary("Restart", format_args!("{name} is back, and has missed the last write of {stale} records."));
        Ok(without.written.into_iter().collect())
    }

    /// Without one of three nodes, level all cannot be met: without a policy such a write fails; the policy accepts a quorum.
    async fn all_without_a_node(&mut self) -> Result<()> {
        let policy = self.policy.clone();
        bind(&mut self.plugins, REGISTRY, &policy, "accept-shortfall = true").await?;
        let met = self.write_at_all("node").await.map_err(|status| failed("write at level all", &status))?;
        let unbind = witan_wire::v1::BindPluginRequest {
            tenant_id: REGISTRY.into(),
            hook: policy.hook.clone(),
            ..Default::default()
        };
        self.plugins.bind_plugin(timed(unbind)).await.map_err(|status| failed("unbind the policy", &status))?;
        let native = self.write_at_all("node").await;
        let failure = match native {
            Ok(met) => bail!("with a node dead, level all was met without a policy: {met}"),
            Err(status) => status,
        };
        self.output.detail(format_args!(
            "A write at level all (these two are not the load's):\n    adaptive-latency: {met}\n    without a policy: {}",
            shown(&failure)
        ));
        self.output.summary(
            "Policy",
            "meanwhile a write at level all fails; with adaptive-latency bound it is met at a quorum.",
        );
        Ok(())
    }

    async fn wait_for(&mut self, index: usize) -> Result<()> {
        let name = node_name(index);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let nodes = self.coordinator.list_storage_nodes(timed(ListStorageNodesRequest {})).await;
            let nodes = nodes.map_err(|status| failed("list the nodes", &status))?.into_inner().nodes;
            if nodes.iter().any(|node| node.node_id == name && node.reachable) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the coordinator has not reached {name} within {PATIENCE:?}")
    }

    /// The number of these records on which the killed node and another one differ.
    async fn stale(&mut self, indexes: &[usize], records: &[Record]) -> Result<usize> {
        let mut victim = Node::new(connect(&self.cluster.node_address(VICTIM)).await?);
        let mut other = Node::new(connect(&self.cluster.node_address((VICTIM + 1) % NODES)).await?);
        let mut stale = 0;
        for index in indexes.iter().collect::<BTreeSet<_>>() {
            let key = &records[*index].key;
            let (theirs, ours) = (stored(&mut victim, key).await?, stored(&mut other, key).await?);
            stale += usize::from(match (theirs, ours) {
                (Some(theirs), Some(ours)) => !theirs.same_state(&ours),
                (None, None) => false,
                _ => true,
            });
        }
        Ok(stale)
    }

    /// Reads at level all find what the node has missed, and repair it.
    async fn repair(&mut self, missed: &BTreeSet<usize>, records: &[Record]) -> Result<()> {
        self.output.title("Repair");
        let indexes: Vec<usize> = missed.iter().copied().collect();
        let behind = self.stale(&indexes, records).await?;
        let before = self.cluster.counter("coordinator_repairs_triggered").await?;
        let keys: Vec<&str> = indexes.iter().map(|index| records[*index].key.as_str()).collect();
        let started = Instant::now();
        data::fetch(&self.coordinator, REGISTRY, &keys, "all").await?;
        let mut left = self.stale(&indexes, records).await?;
        while left > 0 && started.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = self.stale(&indexes, records).await?;
        }
        let repairs = self.cluster.counter("coordinator_repairs_triggered").await? - before;
        let (name, count, took) = (node_name(VICTIM), indexes.len(), seconds(started.elapsed()));
        self.output.detail(format_args!(
            "{name} is behind on {behind} of {count} records. Reading them at level all started {repairs} repairs; {took} \
             later it is behind on {left}."
        ));
        self.output.detail(format_args!("The coordinator has repaired {} records since the start.", before + repairs));
        self.output.summary(
            "Repair",
            format_args!("reading them at level all brought {name} up to date: behind on {left} after {took}."),
        );
        ensure!(left == 0, "{left} records were not repaired within {PATIENCE:?}");
        ensure!(before + repairs > 0, "nothing was repaired");
        Ok(())
    }

    /// Checks that every acknowledged write is there.
    async fn audit(&mut self, records: &[Record], ledger: &[Option<u32>]) -> Result<()> {
        self.output.title("Audit");
        let keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
        let values = data::fetch(&self.coordinator, REGISTRY, &keys, "all").await?;
        let known = ledger.iter().filter(|revision| revision.is_some()).count();
        let wrong: Vec<&str> = records
            .iter()
            .zip(ledger)
            .zip(&values)
            .filter(|((record, revision), value)| revision.is_some_and(|r| value.as_ref() != Some(&revised(record, r))))
            .map(|((record, _), _)| record.key.as_str())
            .collect();
        let (resolved, items) = self.count_items().await?;
        let (right, written) = (known - wrong.len(), CONFLICTS * DEVICES.len() * 2);
        self.output.detail(format_args!(
            "{known} records read at level all: {right} as acknowledged last, {} not.",
            wrong.len()
        ));
        self.output.detail(format_args!("{items} of {written} items are still in the {CONFLICTS} carts."));
        self.output.summary(
            "Audit",
            format_args!(
                "{right} of {known} records are as last acknowledged; {items} of {written} items are in the carts."
            ),
        );
        ensure!(wrong.is_empty(), "acknowledged writes are lost: {}", wrong[..wrong.len().min(5)].join(", "));
        // A client has written the first cart back, so that one has no siblings to resolve.
        ensure!(resolved == CONFLICTS - 1 && items == written, "carts or items are missing");
        Ok(())
    }
}

/// What a node has stored of a record of the registry.
async fn stored(node: &mut Node, key: &str) -> Result<Option<Stored>> {
    let request = ReadRequest { tenant_id: REGISTRY.into(), key: key.into(), ..Default::default() };
    let answer = node.read(timed(request)).await.map_err(|status| failed("ask a node", &status))?.into_inner();
    answer.record.map(|record| Encoded(record).decode()).transpose().context("read a node's record")
}

/// The figures of a stretch in which nothing may fail.
fn spotless(figures: Figures, when: &str) -> Result<Figures> {
    ensure!(figures.failed == 0, "{} requests failed {when}:\n  {}", figures.failed, figures.failures.join("\n  "));
    Ok(figures)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn distinct(figures: &Figures) -> usize {
    figures.written.iter().collect::<BTreeSet<_>>().len()
}

fn cart_key(number: usize) -> String {
    format!("cart/{number}")
}

fn named(plugin: &PluginInfo) -> String {
    format!("{} {} ({})", plugin.name, plugin.version, &plugin.digest[..plugin.digest.len().min(8)])
}

/// name@digest, the digest shortened.
fn short(resolved_by: &str) -> String {
    resolved_by.split_once('@').map_or_else(
        || resolved_by.to_owned(),
        |(name, digest)| format!("{name}@{}", digest.chars().take(8).collect::<String>()),
    )
}
