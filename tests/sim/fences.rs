//! Changes of a tenant while a coordinator is cut off from the metadata store: what was allowed before must not be acknowledged once the
//! change is answered, by whoever does not know of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;
use witan_control::{Catalog, Cluster, Held, Refused, TurnLimits};
use witan_coordinate::{Coordinator, ReadRequest, WriteRequest};
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::hook::{Hook, Pending, ReplicaState};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{BindingStore, ChangeLog, Metadata, Placement, Slot, StoreError};
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::Ring;
use witan_kernel::scan::{Fullness, Ranges, Removed, Standing, Trust};
use witan_kernel::tenant::{Level, Tenant};
use witan_memory::MemoryMetadata;

use crate::cluster::Call;
use crate::nemesis::{Action, Link};
use crate::repairs::{NOTICED, holder};
use crate::simulated::Simulated;
use crate::stage::{Command, Stage};
use crate::stores::Known;
use crate::world::to_value;

/// The coordinator that changes the tenant.
const KNOWS: usize = 0;
/// The coordinator that is cut off from the metadata store.
const CUT_OFF: usize = 1;
/// Operations of the coordinator that is cut off, at each step.
const OPERATIONS: u32 = 6;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// Changes the first tenant, which one replica was enough for, into one that needs a quorum.
pub(crate) async fn play(stage: &Stage) {
    let cluster = &stage.cluster;
    let metadata = cluster.metadata();
    let tenant = cluster.tenants[0].id.clone();
    follow(stage, &metadata, &[KNOWS, CUT_OFF]).await;
    cluster.coordinators[CUT_OFF].view.freeze();
    let Some(doors) = cluster.coordinators[KNOWS].doors() else { return };
    let local = Local { coordinator: doors.coordinator(), known: cluster.known(), loads: None };
    let store: Arc<dyn Metadata> = Arc::new(metadata.clone());
    let catalog = Arc::new(Catalog::new(store, Arc::new(local), Some([1; 16]), TurnLimits::CHANGES));

    // One replica cannot be reached by whom the change is made through, but by the other one it can.
    let away = holder(stage, 2);
    let link = |becomes| Command::Do(Action::Link { coordinator: KNOWS, node: away, becomes });
    stage.command(link(Link::Cut));
    tokio::time::sleep(NOTICED).await;
    let answered = change(&catalog, &tenant).await;
    stage.note(|| format!("the change is answered: {answered:?}"));
    if answered.is_ok() {
        operate(stage, "a node had not confirmed the change", None).await;
    }
    stage.command(link(Link::Up));
    tokio::time::sleep(NOTICED).await;
    let mut answered = change(&catalog, &tenant).await;
    for _ in 0..5 {
        if answered.is_ok() {
            break;
        }
        answered = change(&catalog, &tenant).await;
    }
    if let Err(error) = answered {
        return stage.violated(format!("fence: all nodes are there, and the change is not answered: {error}"));
    }
    operate(stage, "the change was answered", None).await;
    for node in 0..cluster.nodes.len() {
        stage.command(Command::Do(Action::CrashNode { node, survives: 1000 }));
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.command(Command::Do(Action::RestartNode { node }));
    }
    tokio::time::sleep(NOTICED).await;
    operate(stage, "the nodes were started again", None).await;
    // It hears of the change while operations are under way.
    let hears = async {
        tokio::time::sleep(Duration::from_millis(4)).await;
        cluster.coordinators[CUT_OFF].view.thaw();
        follow(stage, &metadata, &[KNOWS, CUT_OFF]).await;
    };
    let quorum = Level::Quorum.required(cluster.tenants[0].replication_factor);
    futures::future::join(operate(stage, "it hears of the change", Some(quorum)), hears).await;
}

/// The coordinators have followed all changes.
async fn follow(stage: &Stage, metadata: &MemoryMetadata, coordinators: &[usize]) {
    let Ok(changes) = metadata.changes(u64::MAX).await else { return };
    for coordinator in coordinators {
        if let Some(doors) = stage.cluster.coordinators[*coordinator].doors() {
            doors.coordinator().set_followed(changes.revision);
        }
    }
}

async fn change(catalog: &Arc<Catalog>, tenant: &TenantId) -> Result<Tenant, Refused> {
    let turn = catalog.changes().take(None)?;
    catalog.update_tenant(turn, tenant, 0, |tenant| tenant.minimum_level = Level::Quorum).await
}

/// How long an answer about a binding may take while a node is away, in a world where the metadata store answers at once.
const ANSWERED: Duration = Duration::from_millis(100);
/// How long the fences of a binding may take once every node is there: longer than they wait for a coordinator that is cut off.
const FENCED: Duration = Duration::from_secs(30);
/// How long the coordinator that was cut off takes to put in force what it has heard of.
const LOADS: Duration = Duration::from_millis(300);

/// A consistency policy that is content with one answer is unbound. The answer does not wait for nodes, and once they have confirmed the
/// change, whoever does not know of it is refused.
pub(crate) async fn rebind(stage: &Stage) {
    let cluster = &stage.cluster;
    let metadata = cluster.metadata();
    let tenant = cluster.tenants[0].id.clone();
    let lenient = |of: usize| Arc::clone(&cluster.coordinators[of].view.lenient);
    let slot = Slot { tenant: Some(tenant.clone()), hook: Hook::ConsistencyPolicy };
    let Ok(version) = metadata.save_binding_record(&slot, 0, "lenient".to_owned(), None, true).await else { return };
    [KNOWS, CUT_OFF].into_iter().for_each(|of| lenient(of).store(true, Ordering::Relaxed));
    follow(stage, &metadata, &[KNOWS, CUT_OFF]).await;
    let Ok(before) = metadata.changes(u64::MAX).await else { return };
    let Some(doors) = cluster.coordinators[KNOWS].doors() else { return };
    let local = Local { coordinator: doors.coordinator(), known: cluster.known(), loads: None };
    let store: Arc<dyn Metadata> = Arc::new(metadata.clone());
    let catalog = Arc::new(Catalog::new(store, Arc::new(local), Some([1; 16]), TurnLimits::CHANGES));
    let raising = tokio::spawn(Arc::clone(&catalog).raise_owed_fences());

    // One replica cannot be reached by whom the change is made through, but by the other one it can.
    let away = holder(stage, 2);
    let link = |becomes| Command::Do(Action::Link { coordinator: KNOWS, node: away, becomes });
    stage.command(link(Link::Cut));
    tokio::time::sleep(NOTICED).await;
    let began = Instant::now();
    let (unbind, mine) = (metadata.clone(), lenient(KNOWS));
    let change = async move {
        unbind.remove_binding_record(&slot, version, true).await?;
        mine.store(false, Ordering::Relaxed);
        Ok::<_, StoreError>(())
    };
    let Ok(turn) = catalog.changes().take(None) else { return };
    let changed = catalog.change_binding(turn, Some(&tenant), Hook::ConsistencyPolicy, change).await;
    if changed.is_err() || began.elapsed() > ANSWERED {
        stage.violated(format!("fence: a policy is unbound after {:?}: {changed:?}", began.elapsed()));
    }
    follow(stage, &metadata, &[KNOWS]).await;
    stage.command(link(Link::Up));
    while catalog.unfenced(Some(&tenant)).await.is_ok_and(|unfenced| !unfenced.is_empty()) {
        if began.elapsed() > FENCED {
            return stage.violated("fence: all nodes are there, and a change of a binding is not fenced".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    operate_at(stage, Level::Quorum, "the fence of a binding was raised", None).await;

    // It hears of the change, and takes its time to put it in force, while operations are under way.
    let Some(doors) = cluster.coordinators[CUT_OFF].doors() else { return };
    let coordinator = doors.coordinator();
    let late = Local { coordinator: Arc::clone(&coordinator), known: cluster.known(), loads: Some(lenient(CUT_OFF)) };
    let store: Arc<dyn Metadata> = Arc::new(metadata.clone());
    let following = tokio::spawn(witan_control::follow(store, Arc::new(late), before.revision));
    while coordinator.followed() <= before.revision {
        tokio::time::sleep(LOADS / 30).await;
    }
    let quorum = Level::Quorum.required(cluster.tenants[0].replication_factor);
    operate_at(stage, Level::Quorum, "a binding is loaded", Some(quorum)).await;
    tokio::time::sleep(LOADS).await;
    following.abort();
    raising.abort();
}

/// Operations at level one through the coordinator that is cut off. None may succeed with fewer replicas than `least`; `None`: none may.
async fn operate(stage: &Stage, since: &str, least: Option<u8>) {
    operate_at(stage, Level::One, since, least).await;
}

/// The same, at a level.
async fn operate_at(stage: &Stage, level: Level, since: &str, least: Option<u8>) {
    let Some(doors) = stage.cluster.coordinators[CUT_OFF].doors() else { return };
    let (tenant, key) = (stage.cluster.tenants[0].id.clone(), crate::world::key(FENCED_KEY));
    let write = |number: u32| {
        let (to, answer) = oneshot::channel();
        let request = WriteRequest {
            tenant: tenant.clone(),
            key: key.clone(),
            value: Some(to_value(&[number].into(), 0)),
            level: Some(level),
            // A name is claimed between plan and first request.
            idempotency_key: number.is_multiple_of(2).then(|| format!("{since} {number}")),
            context: Bytes::new(),
            arrived: None,
            timeout: Some(PATIENCE),
        };
        let _ = doors.calls.send(Call::Write(request, to));
        async move { answer.await.ok()?.ok().map(|written| written.replicas) }
    };
    let read = || {
        let (to, answer) = oneshot::channel();
        let (tenant, key) = (tenant.clone(), key.clone());
        let request = ReadRequest { tenant, key, level: Some(level), arrived: None, timeout: Some(PATIENCE) };
        let _ = doors.calls.send(Call::Read(request, to));
        async move {
            let answer = answer.await.ok()?;
            matches!(answer, Ok(_) | Err(Failed { failure: Failure::KeyNotFound { .. }, .. })).then_some(())
        }
    };
    for replicas in join_all((0..OPERATIONS).map(write)).await.into_iter().flatten() {
        if least.is_none_or(|least| replicas < least) {
            stage.violated(format!("fence: {since}, and a write of before succeeded on {replicas} replicas"));
        }
    }
    if least.is_none() && read().await.is_some() {
        stage.violated(format!("fence: {since}, and a read of before was answered"));
    }
}

/// A key that no client uses.
const FENCED_KEY: usize = 99;

/// The coordinator through which the change is made.
struct Local {
    coordinator: Arc<Coordinator<Simulated>>,
    known: Known,
    /// Whether the lenient policy is in force here, for a coordinator that puts in force what it hears of, but not at once.
    loads: Option<Arc<AtomicBool>>,
}

fn done<T: Send + 'static>(answer: T) -> Pending<T> {
    Box::pin(std::future::ready(answer))
}

impl Cluster for Local {
    fn tenant_changed(&self, tenant: Tenant) {
        self.known.add(tenant);
    }

    fn tenant_outdated(&self, _: &TenantId) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn plugins_outdated(&self, _: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
        let Some(lenient) = self.loads.clone() else { return done(Ok(())) };
        Box::pin(async move {
            tokio::time::sleep(LOADS).await;
            lenient.store(false, Ordering::Relaxed);
            Ok(())
        })
    }

    fn followed(&self, revision: u64) {
        self.coordinator.set_followed(revision);
    }

    fn bindings_change(&self, tenants: Vec<Option<TenantId>>, revision: u64) {
        self.coordinator.bindings_change(tenants, revision);
    }

    fn behind(&self) -> Pending<()> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { coordinator.behind().await })
    }

    fn bindings_followed(&self) {
        self.coordinator.bindings_followed();
    }

    fn drained(&self) -> u64 {
        self.coordinator.drained_revision()
    }

    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn tokens_confirmed(&self) {}

    fn fences(&self) -> bool {
        true
    }

    fn ring(&self) -> Arc<Ring> {
        self.coordinator.ring()
    }

    fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Pending<Result<(), ReplicaError>> {
        let (coordinator, node, tenant) = (Arc::clone(&self.coordinator), node.clone(), tenant.cloned());
        Box::pin(async move { coordinator.ports().replicas.raise_fence(&node, tenant.as_ref(), epoch).await.map(drop) })
    }

    fn placement_changed(&self, _: Placement) {}

    fn state(&self, _: &NodeId) -> ReplicaState {
        ReplicaState { reachable: true, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
    }

    fn fullness(&self, _: &NodeId) -> Pending<Option<Fullness>> {
        done(None)
    }

    fn standing(&self, _: &NodeId) -> Option<Standing> {
        Some(Standing { store: StoreId([1; 16]), trust: Trust::Whole })
    }

    fn stores_changed(&self) -> Pending<()> {
        done(())
    }

    fn remove_records(&self, _: &TenantId, _: Option<Vec<NodeId>>, _: Instant) -> Pending<Removed> {
        done(Removed::default())
    }

    fn hold(&self) -> Pending<Held> {
        done(Box::new(()) as Held)
    }
}
