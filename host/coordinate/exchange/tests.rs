//! The loop that waits for answers, over replicas that the test answers for, in paused time.

use std::pin::pin;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failed;
use witan_kernel::hook::{Native, Plugins, ReplicaState, Shortfall};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::{Era, Key, StoreId, TenantId, WriteId};
use witan_kernel::port::{IdempotencyStore, Randomness, StoreError, Tenants};
use witan_kernel::quorum::{MergeRound, PATIENCE_MICROS, PutRound, StampRound, Tally};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Place};
use witan_kernel::ring::{Ring, Rings};
use witan_kernel::scan::{Clear, Cleared, Dropped, Page, Ranges, Scan, Standing};
use witan_kernel::siblings::{VersionVector, Write};
use witan_kernel::tenant::Tenant;

use super::*;
use crate::{
    Defaults, MissedChanges, NoCollapses, NothingNoted, Ports, ReadAnswer, ReadRequest, WriteRequest, Written,
};

#[derive(Clone)]
struct Paused(Instant);

impl Clock for Paused {
    fn wall_micros(&self) -> u64 {
        1_000_000 + self.monotonic_micros()
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

struct Sixteen;

impl Randomness for Sixteen {
    fn sixteen(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// Three nodes that keep what they are asked until the test answers, and the deadlines of all that.
#[derive(Default)]
struct Nodes(Mutex<Vec<(Ask, Reply)>>, Mutex<Vec<u64>>);

impl Nodes {
    fn open(&self) -> MutexGuard<'_, Vec<(Ask, Reply)>> {
        self.0.lock().unwrap()
    }

    /// What is asked of whom and not answered yet.
    fn asked(&self) -> Vec<(String, Ask)> {
        self.open().iter().map(|(ask, reply)| (reply.node().to_string(), ask.clone())).collect()
    }

    /// Answers the oldest open request.
    fn answer(&self, outcome: Outcome) {
        let (_, reply) = self.open().remove(0);
        reply.answer(outcome);
    }
}

impl Replicas for Nodes {
    fn send(&self, _: &NodeId, request: Request, deadline: u64, reply: Reply) {
        self.1.lock().unwrap().push(deadline);
        self.open().push((request.ask, reply));
    }

    fn state(&self, _: &NodeId) -> ReplicaState {
        ReplicaState { reachable: true, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
    }

    fn incarnation(&self, _: &NodeId) -> u64 {
        1
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        self.state(node)
    }

    fn has_names(&self, _: &NodeId) -> bool {
        true
    }
}

impl Ranges for Nodes {
    async fn stores_changed(&self) {}

    fn standing(&self, _: &NodeId) -> Option<Standing> {
        None
    }

    async fn scan(&self, _: &NodeId, _: Scan) -> Result<Page, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn drop_tenant(&self, _: &NodeId, _: TenantId, _: Option<Place>) -> Result<Dropped, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Result<StoreId, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn clear(&self, _: &NodeId, _: Clear) -> Result<Cleared, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }
}

struct NoStore;

impl IdempotencyStore for NoStore {
    async fn step(&self, _: Name, _: Step) -> Result<Stepped, StoreError> {
        Err(StoreError::Unavailable("none".to_owned()))
    }
}

struct Anyone;

impl Tenants for Anyone {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        Some(Arc::new(Tenant::with_defaults(id.clone(), 3, 1)))
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(self.cached(id))
    }
}

struct NoPlugins;

impl Plugins for NoPlugins {
    fn hooks(&self, _: &TenantId) -> Arc<dyn witan_kernel::hook::Hooks> {
        Arc::new(Native)
    }
}

struct InMemory;

impl World for InMemory {
    type Clock = Paused;
    type Randomness = Sixteen;
    type Replicas = Arc<Nodes>;
    type Idempotency = NoStore;
    type Tenants = Anyone;
}

fn coordinator() -> (Arc<Coordinator<InMemory>>, Arc<Nodes>) {
    coordinator_noting(Arc::new(NothingNoted))
}

fn coordinator_noting(missed: Arc<dyn MissedChanges>) -> (Arc<Coordinator<InMemory>>, Arc<Nodes>) {
    let nodes = Arc::new(Nodes::default());
    let ports = Ports {
        clock: Paused(Instant::now()),
        randomness: Sixteen,
        replicas: Arc::clone(&nodes),
        idempotency: NoStore,
        tenants: Anyone,
        plugins: Arc::new(NoPlugins),
        collapses: Arc::new(NoCollapses),
        missed,
    };
    let placed = ["a", "b", "c"].map(|node| (NodeId::new(node).unwrap(), 4));
    let keys = ContextKeys::new(Era::default(), &[(1, [1; 32])]).unwrap();
    (Coordinator::new(ports, Rings::one(Ring::new(&placed, 1)), keys, Defaults::default()), nodes)
}

fn tenant() -> TenantId {
    TenantId::new("t").unwrap()
}

fn key() -> Key {
    Key::new("k").unwrap()
}

async fn exchange() -> (Exchange<InMemory>, Arc<Nodes>) {
    let (coordinator, nodes) = coordinator();
    let asks = crate::plan::Asks {
        operation: witan_kernel::hook::Operation::Write,
        tenant: &tenant(),
        key: &key(),
        level: None,
        value_bytes: 1,
        arrived: coordinator.arrival(None),
        timeout: Some(Duration::from_secs(1)),
    };
    let plan = coordinator.plan(asks).await.unwrap();
    (Exchange::new(coordinator, plan), nodes)
}

fn read(coordinator: &Arc<Coordinator<InMemory>>) -> oneshot::Receiver<Result<ReadAnswer, Failed>> {
    let (sender, receiver) = oneshot::channel();
    let request = ReadRequest { tenant: tenant(), key: key(), level: None, arrived: None, timeout: None };
    coordinator.read(request, Box::new(|result| drop(sender.send(result))));
    receiver
}

fn stored(stamp: u64, value: &'static str) -> Encoded {
    let value = Some(Bytes::from_static(value.as_bytes()));
    Record::Register(Register::written(Stamp(stamp), WriteId([stamp as u8; 16]), value)).encode()
}

fn merge_of_two() -> MergeRound {
    MergeRound::new(stored(1, "v"), Tally::new(3, 2), Shortfall::Fail)
}

fn merged() -> Outcome {
    Ok(Answer::Merged { superseded: false, told: Vec::new() })
}

/// Counts how often a future is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_woken_once_for_the_answers_it_needs() {
    let (mut exchange, nodes) = exchange().await;
    let mut round = merge_of_two();
    let wakes = Arc::new(Wakes::default());
    let waker = Arc::clone(&wakes).into();
    let mut cx = Context::from_waker(&waker);
    {
        let mut driven = pin!(exchange.drive(Phase::Merge, &mut round));
        assert!(driven.as_mut().poll(&mut cx).is_pending());
        assert_eq!(nodes.asked().len(), 3);
        nodes.answer(merged());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "one of two");
        nodes.answer(merged());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(matches!(driven.as_mut().poll(&mut cx), Poll::Ready(Ended::Met)));
    }
    let mut rest = round.every_answer();
    let mut driven = pin!(exchange.drive(Phase::Merge, &mut rest));
    assert!(driven.as_mut().poll(&mut cx).is_pending());
    nodes.answer(Err(ReplicaError::Late));
    assert!(matches!(driven.as_mut().poll(&mut cx), Poll::Ready(Ended::Met)));
    assert!(nodes.asked().is_empty(), "no replica is asked twice");
}

/// What is stored later could bring back what has been deleted, and collected, since it was read.
#[tokio::test(start_paused = true)]
async fn no_repair_has_a_deadline_beyond_ten_seconds_after_its_operation_has_arrived() {
    let (mut exchange, nodes) = exchange().await;
    let arrived = exchange.plan.arrived;
    for (passes, seconds) in [(0, 5), (7, 10), (5, 10)] {
        tokio::time::advance(Duration::from_secs(passes)).await;
        let record = stored(1, "v");
        assert!(futures::poll!(pin!(exchange.repair_behind(&record, &[0]))).is_pending() || passes == 5);
        assert_eq!(nodes.1.lock().unwrap().pop(), Some(arrived + seconds * 1_000_000), "after {passes} s");
    }
    exchange.send(Phase::Unpin, 0, Ask::Unpin { write_id: WriteId([1; 16]) });
    assert_eq!(nodes.1.lock().unwrap().pop(), Some(arrived + 10_000_000));
}

#[tokio::test(start_paused = true)]
async fn failures_are_looked_at_at_once_and_named() {
    let (mut exchange, nodes) = exchange().await;
    let mut round = merge_of_two();
    let mut driven = pin!(exchange.drive(Phase::Merge, &mut round));
    assert!(futures::poll!(driven.as_mut()).is_pending());
    nodes.answer(Err(ReplicaError::Overloaded));
    assert!(futures::poll!(driven.as_mut()).is_pending());
    nodes.answer(Ok(Answer::Record(None)));
    let Ended::Short(causes) = driven.await else { panic!("two of three have failed") };
    let overload = Failure::Overloaded { retry_after: crate::RETRY_AFTER };
    assert_eq!(causes.clone().quorum_not_reached(2, 1, true), overload, "one replica more would have been enough");
    assert!(matches!(causes.clone().quorum_not_reached(2, 1, false), Failure::QuorumNotReached { .. }), "in doubt");
    let Failure::QuorumNotReached { causes, .. } = causes.quorum_not_reached(2, 0, true) else { panic!("two more") };
    assert_eq!(causes, [ReplicaError::Overloaded.to_string(), ReplicaError::misfit().to_string()]);
}

/// Asks three replicas, of which all must answer, and one is gone: how many are required, how many were heard, and how long it took.
async fn without_one(well: usize) -> (u8, u8, Duration) {
    let (mut exchange, nodes) = exchange().await;
    let mut round = StampRound::new(WriteId([1; 16]), Tally::new(3, 3));
    let started = Instant::now();
    {
        let mut driven = pin!(exchange.drive(Phase::Stamp, &mut round));
        assert!(futures::poll!(driven.as_mut()).is_pending());
        nodes.answer(Err(ReplicaError::NotSent(NodeId::new("n").unwrap())));
        assert!(futures::poll!(driven.as_mut()).is_pending(), "two may be well");
        (0..well).for_each(|_| nodes.answer(Ok(Answer::Stamp { stands: None, known: None })));
        assert!(matches!(driven.await, Ended::Short(_)));
    }
    (round.tally().required(), round.tally().received(), started.elapsed())
}

/// A level that cannot be met because one of three replicas is gone: that the others are well is said.
#[tokio::test(start_paused = true)]
async fn a_failure_counts_the_replicas_that_are_well() {
    assert_eq!(without_one(2).await, (3, 2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_failure_does_not_wait_for_a_replica_that_hangs() {
    assert_eq!(without_one(1).await, (3, 1, Duration::from_micros(PATIENCE_MICROS)));
}

/// The same for the question that comes before a repeated Put.
#[tokio::test(start_paused = true)]
async fn a_failed_question_counts_the_replicas_that_are_well() {
    let (mut exchange, nodes) = exchange().await;
    let write = Write {
        write_id: WriteId([1; 16]),
        started: 1,
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: None,
    };
    let mut round = PutRound::new(write, 3, |_| true, true, Some(Tally::new(3, 2)));
    let started = Instant::now();
    {
        let mut driven = pin!(exchange.drive(Phase::Put, &mut round));
        assert!(futures::poll!(driven.as_mut()).is_pending());
        assert!(nodes.asked().iter().all(|(_, ask)| matches!(ask, Ask::Names { .. })));
        nodes.answer(Err(ReplicaError::Overloaded));
        nodes.answer(Err(ReplicaError::Overloaded));
        assert!(futures::poll!(driven.as_mut()).is_pending(), "one may be well");
        nodes.answer(Ok(Answer::Record(None)));
        assert!(matches!(driven.await, Ended::Short(_)));
    }
    assert_eq!((round.short_of_answers(), started.elapsed()), (Some((2, 1)), Duration::ZERO));
}

fn write_that_arrived(
    coordinator: &Arc<Coordinator<InMemory>>,
    ago: Duration,
    timeout: Duration,
) -> oneshot::Receiver<Result<Written, Failed>> {
    let (sender, written) = oneshot::channel();
    let now = coordinator.ports().clock.monotonic_micros();
    let request = WriteRequest {
        tenant: tenant(),
        key: key(),
        value: Some(Bytes::from_static(b"v")),
        level: None,
        idempotency_key: None,
        context: Bytes::new(),
        arrived: Some(now - ago.as_micros() as u64),
        timeout: Some(timeout),
    };
    coordinator.write(request, Box::new(|result| drop(sender.send(result))));
    written
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_from_the_arrival_of_the_request() {
    let (coordinator, nodes) = coordinator();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let started = Instant::now();
    let (ago, timeout) = (Duration::from_millis(200), Duration::from_millis(300));
    let failed = write_that_arrived(&coordinator, ago, timeout).await.unwrap().unwrap_err();
    assert_eq!(failed, Failure::Deadline { required: 2, received: 0 }.not_applied());
    assert_eq!(started.elapsed(), timeout - ago);
    assert_eq!(nodes.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_not_begun_at_its_deadline_does_not_begin() {
    let (coordinator, nodes) = coordinator();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let timeout = Duration::from_millis(300);
    let failed = write_that_arrived(&coordinator, timeout, timeout).await.unwrap().unwrap_err();
    assert_eq!(failed, Failure::NotBegun.not_applied());
    assert!(nodes.asked().is_empty(), "it leaves nothing behind");
}

#[tokio::test(start_paused = true)]
async fn answers_of_an_earlier_round_do_not_count() {
    let (mut exchange, nodes) = exchange().await;
    let mut stamps = StampRound::new(WriteId([1; 16]), Tally::new(3, 2));
    let stamp = || Ok(Answer::Stamp { stands: None, known: None });
    {
        let mut driven = pin!(exchange.drive(Phase::Stamp, &mut stamps));
        assert!(futures::poll!(driven.as_mut()).is_pending());
        nodes.answer(stamp());
        nodes.answer(stamp());
        assert!(matches!(driven.await, Ended::Met));
    }
    let started = Instant::now();
    let mut round = merge_of_two();
    {
        let mut driven = pin!(exchange.drive(Phase::Merge, &mut round));
        assert!(futures::poll!(driven.as_mut()).is_pending());
        nodes.answer(stamp());
        nodes.answer(merged());
        assert!(matches!(driven.await, Ended::Late), "one of two before the deadline");
    }
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    assert_eq!(round.tally().acks(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_asks_a_spare_replica_when_one_is_slow() {
    let (coordinator, nodes) = coordinator();
    let answer = read(&coordinator);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(nodes.asked().len(), 2, "as many as must answer");
    nodes.answer(Ok(Answer::Record(Some(stored(5, "old")))));
    tokio::time::sleep(coordinator.defaults.hedge_cap).await;
    assert_eq!((nodes.asked().len(), coordinator.metrics().hedges.get()), (2, 1));
    nodes.open().swap(0, 1);
    nodes.answer(Ok(Answer::Record(Some(stored(9, "new")))));
    assert_eq!(answer.await.unwrap().unwrap().value, "new");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let repairs: Vec<_> = nodes.asked().into_iter().filter(|(_, ask)| *ask != Ask::Read).collect();
    let merge = Record::merge(Some(stored(5, "old").decode().unwrap()), stored(9, "new").decode().unwrap()).unwrap().0;
    assert_eq!(repairs.iter().map(|(_, ask)| ask).collect::<Vec<_>>(), [&Ask::Merge { record: merge.encode() }]);
}

#[tokio::test(start_paused = true)]
async fn a_read_asks_all_replicas_after_its_patience_and_gives_up_at_its_deadline() {
    let (coordinator, nodes) = coordinator();
    coordinator.metrics().hedges.inc_by(1000);
    let (answer, started) = (read(&coordinator), Instant::now());
    tokio::time::sleep(Duration::from_micros(PATIENCE_MICROS - 2000)).await;
    assert_eq!(nodes.asked().len(), 2, "the budget of hedges is used up");
    tokio::time::sleep(Duration::from_millis(4)).await;
    assert_eq!(nodes.asked().len(), 3);
    nodes.answer(Ok(Answer::Record(None)));
    let failed = answer.await.unwrap().unwrap_err();
    assert_eq!(failed.failure, Failure::Deadline { required: 2, received: 1 });
    assert_eq!(started.elapsed(), coordinator.defaults.read_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_write_responds_at_its_quorum_and_waits_for_the_rest() {
    let (coordinator, nodes) = coordinator();
    let (sender, written) = oneshot::channel::<Result<Written, Failed>>();
    let request = WriteRequest {
        tenant: tenant(),
        key: key(),
        value: Some(Bytes::from_static(b"v")),
        level: None,
        idempotency_key: None,
        context: Bytes::new(),
        arrived: None,
        timeout: None,
    };
    coordinator.write(request, Box::new(|result| drop(sender.send(result))));
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..2 {
        nodes.answer(Ok(Answer::Stamp { stands: Some(Stamp(70)), known: None }));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    nodes.open().retain(|(ask, _)| matches!(ask, Ask::Merge { .. }));
    assert_eq!(nodes.asked().len(), 3);
    nodes.answer(merged());
    nodes.answer(merged());
    let written = written.await.unwrap().unwrap();
    assert_eq!((written.replicas, coordinator.in_flight()), (2, 1), "answered, and still under way");
    nodes.answer(Err(ReplicaError::Late));
    coordinator.drained().await;
    assert_eq!(coordinator.metrics().replicas_missed.get(), 1);
}

/// The nodes that have missed something.
#[derive(Default)]
struct Noted(Mutex<Vec<String>>);

impl MissedChanges for Noted {
    fn missed(&self, node: &NodeId, slice: Slice) {
        assert_eq!(slice, Slice::of(witan_kernel::ring::token(&tenant(), key().bytes())));
        self.0.lock().unwrap().push(node.to_string());
    }
}

/// Writes a register, of which two replicas acknowledge the merge, and the third has this outcome; `None`: none before the deadline.
/// Returns the nodes that are noted, and the third replica.
async fn noted_after(outcome: Option<Outcome>) -> (Vec<String>, String) {
    let noted = Arc::new(Noted::default());
    let (coordinator, nodes) = coordinator_noting(Arc::clone(&noted) as Arc<dyn MissedChanges>);
    let written = write_that_arrived(&coordinator, Duration::ZERO, Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(1)).await;
    (0..2).for_each(|_| nodes.answer(Ok(Answer::Stamp { stands: None, known: None })));
    tokio::time::sleep(Duration::from_millis(1)).await;
    nodes.open().retain(|(ask, _)| matches!(ask, Ask::Merge { .. }));
    (0..2).for_each(|_| nodes.answer(merged()));
    let third = nodes.asked()[0].0.clone();
    written.await.unwrap().unwrap();
    assert!(noted.0.lock().unwrap().is_empty(), "the third one may acknowledge it yet");
    outcome.into_iter().for_each(|outcome| nodes.answer(outcome));
    coordinator.drained().await;
    let noted = noted.0.lock().unwrap().clone();
    (noted, third)
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_not_acknowledged_a_change_is_noted_when_the_operation_ends() {
    assert_eq!(noted_after(Some(merged())).await.0, Vec::<String>::new());
    let ways = [None, Some(ReplicaError::Overloaded), Some(ReplicaError::Late)];
    for why in ways {
        let (noted, third) = noted_after(why.clone().map(Err)).await;
        assert_eq!(noted, [third], "{why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_half_done_is_noted_and_what_only_repairs_is_not() {
    let noted = Arc::new(Noted::default());
    let (coordinator, nodes) = coordinator_noting(Arc::clone(&noted) as Arc<dyn MissedChanges>);
    // As when the task is dropped or has panicked.
    let plan = coordinator
        .plan(crate::plan::Asks {
            operation: witan_kernel::hook::Operation::Write,
            tenant: &tenant(),
            key: &key(),
            level: None,
            value_bytes: 1,
            arrived: coordinator.arrival(None),
            timeout: None,
        })
        .await
        .unwrap();
    let mut exchange = Exchange::new(Arc::clone(&coordinator), plan);
    exchange.begin_change();
    let mut round = merge_of_two();
    {
        let mut driven = pin!(exchange.drive(Phase::Merge, &mut round));
        assert!(futures::poll!(driven.as_mut()).is_pending());
        nodes.answer(merged());
        assert!(futures::poll!(driven.as_mut()).is_pending());
    }
    drop(exchange);
    assert_eq!(noted.0.lock().unwrap().len(), 3, "an answer that nobody has looked at does not count");
    noted.0.lock().unwrap().clear();
    nodes.open().clear();

    let answer = read(&coordinator);
    tokio::time::sleep(Duration::from_millis(1)).await;
    nodes.answer(Ok(Answer::Record(Some(stored(5, "old")))));
    nodes.answer(Ok(Answer::Record(Some(stored(9, "new")))));
    answer.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(nodes.asked().iter().any(|(_, ask)| matches!(ask, Ask::Merge { .. })), "it repairs");
    coordinator.drained().await;
    assert!(noted.0.lock().unwrap().is_empty());
}
