//! What storage nodes have answered, noted beside the coordinator: every figure in an answer to a client is compared with it.
//!
//! A failure says how many replicas have answered, of how many that had to. That is what operators look at first, and no check of
//! histories looks at it. So each request that an operation sends, and each answer, is written down here, on its way through the port to
//! the nodes. The operation's task tells whose request it is; a response is made in the same task.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tokio::task;
use witan_coordinate::{ReadAnswer, Written};
use witan_kernel::condition::Condition;
use witan_kernel::digest::{Digests, Wanted};
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Clock, Collect, Replicas, Reply};
use witan_kernel::quorum::PATIENCE_MICROS;
use witan_kernel::record::Fingerprint;
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::scan::{Clear, Cleared, Dropped, Page, Ranges, Scan, Standing};
use witan_peer::Lanes;

use crate::world::{Dial, SimClock, lock};

/// The kind of a request, in the order in which an operation sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Stamp,
    Read,
    Put,
    Names,
    Merge,
}

impl Kind {
    /// `None` for what no operation waits for.
    fn of(ask: &Ask) -> Option<Self> {
        match ask {
            Ask::Stamp { .. } => Some(Self::Stamp),
            Ask::Read => Some(Self::Read),
            Ask::Put(_) => Some(Self::Put),
            Ask::Names { .. } => Some(Self::Names),
            Ask::Merge { .. } => Some(Self::Merge),
            Ask::Unpin { .. } | Ask::Collect { .. } => None,
        }
    }
}

/// A request, and what has become of it.
#[derive(Debug, Clone)]
struct Asked {
    kind: Kind,
    node: NodeId,
    /// In the coordinator's time, as all moments.
    sent: u64,
    deadline: u64,
    incarnation: u64,
    /// `None` until it is answered; otherwise also when it was.
    answered: Option<(u64, Counts)>,
}

/// Whether an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    Yes,
    No,
    /// It cannot be read: it may be counted before that shows.
    Perhaps,
}

#[derive(Default)]
struct Noted {
    /// By the task of the operation.
    operations: HashMap<task::Id, Vec<Asked>>,
    reads: BTreeMap<NodeId, u64>,
}

/// The storage nodes of a coordinator, with a note of what they are asked and answer.
pub(crate) struct Heard {
    lanes: Arc<Lanes<SimClock, Dial>>,
    clock: SimClock,
    /// Whether two placements may count, or acknowledgements of nodes that do not.
    moves: bool,
    noted: Arc<Mutex<Noted>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Heard {
    /// `wrong` takes what is found.
    pub(crate) fn new(
        lanes: Arc<Lanes<SimClock, Dial>>,
        clock: SimClock,
        moves: bool,
        wrong: Arc<Mutex<Vec<String>>>,
    ) -> Self {
        Self { lanes, clock, moves, noted: Arc::default(), wrong }
    }

    /// The condition of a node's store, as health and `nodes list` show it.
    pub(crate) fn condition(&self, node: &NodeId) -> Option<Condition> {
        self.lanes.condition(node)
    }

    /// How often a node was asked for a record.
    pub(crate) fn reads(&self, node: &NodeId) -> u64 {
        lock(&self.noted).reads.get(node).copied().unwrap_or(0)
    }

    /// Compares the figures of an answer to a client with what nodes have answered. To be called in the task of the operation.
    pub(crate) fn judge<T: Figures>(&self, result: &Result<T, Failed>) {
        let Some(task) = task::try_id() else { return };
        let Some(asked) = lock(&self.noted).operations.remove(&task) else { return };
        let wrong = match result {
            Ok(answer) => answer.replicas().and_then(|replicas| self.acknowledged(&asked, replicas)),
            Err(Failed { failure, .. }) => self.failed(&asked, failure),
        };
        if let Some(wrong) = wrong {
            lock(&self.wrong).push(format!("figures: {wrong}: {asked:?}"));
        }
    }

    fn acknowledged(&self, asked: &[Asked], replicas: u8) -> Option<String> {
        let (_, most) = self.answers(asked, &[Kind::Put, Kind::Merge], |_, _| true);
        (replicas > most).then(|| format!("acknowledged by {replicas} replicas, and {most} have answered"))
    }

    fn failed(&self, asked: &[Asked], failure: &Failure) -> Option<String> {
        let (received, waits) = match *failure {
            Failure::QuorumNotReached { received, .. } | Failure::StorageFull { received, .. } => (received, true),
            Failure::Deadline { received, .. } => (received, false),
            _ => return None,
        };
        // What was asked last decides: it is what the failure speaks of.
        let last = match (asked.last()?.kind, failure) {
            // It speaks of what was stored, and not of what was answered about the write.
            (Kind::Names, Failure::StorageFull { .. }) => Kind::Put,
            (last, _) => last,
        };
        // A replica that has stored the write has minted it, or has the record already that a read's repair sends.
        let kinds: &[Kind] = match last {
            Kind::Merge => &[Kind::Put, Kind::Read, Kind::Merge],
            Kind::Stamp => &[Kind::Stamp],
            Kind::Read => &[Kind::Read],
            Kind::Put => &[Kind::Put],
            Kind::Names => &[Kind::Names],
        };
        // A failure may be answered later than it was found, while its idempotency record is settled: what has come meanwhile may be
        // counted, and need not be.
        let in_time = |asked: &Asked, at: u64| at < asked.deadline && (!waits || at < asked.sent + PATIENCE_MICROS);
        let (least, most) = self.answers(asked, kinds, in_time);
        let repairs = last == Kind::Merge && asked.iter().any(|asked| asked.kind == Kind::Read);
        // A round that goes on after another one knows which of its answers count.
        let least = if self.moves || repairs || asked_twice(asked, last) { 0 } else { least };
        if received < least || received > most {
            let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
            return Some(format!("\"{failure}\", and {range} have answered ({last:?})"));
        }
        let now = self.clock.monotonic_micros();
        let unheard = |asked: &&Asked| asked.kind == last && asked.answered.is_none() && in_time(asked, now);
        let early = asked.iter().find(unheard).filter(|_| waits)?;
        Some(format!("\"{failure}\", and {} was not given the time to answer ({last:?})", early.node))
    }

    /// The replicas whose answers to these count, at least (those that came `in_time`) and at most.
    fn answers(&self, asked: &[Asked], kinds: &[Kind], in_time: impl Fn(&Asked, u64) -> bool) -> (u8, u8) {
        let of = |sure: bool| {
            let counts = |asked: &&Asked| {
                let same_store = self.lanes.incarnation(&asked.node) == asked.incarnation;
                match asked.answered {
                    Some((at, Counts::Yes)) => !sure || same_store && in_time(asked, at),
                    Some((_, Counts::Perhaps)) => !sure,
                    Some((_, Counts::No)) | None => false,
                }
            };
            let nodes = asked.iter().filter(|asked| kinds.contains(&asked.kind)).filter(counts);
            let mut nodes: Vec<&NodeId> = nodes.map(|asked| &asked.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes.len() as u8
        };
        (of(true), of(false))
    }
}

/// Whether some replica was asked this twice: the operation has begun again, or its round has. A replica that has minted and is then sent
/// what another one had besides counts anew as well.
fn asked_twice(asked: &[Asked], kind: Kind) -> bool {
    let is_of = |of: Kind| of == kind || kind == Kind::Merge && of == Kind::Put;
    let nodes: Vec<&NodeId> = asked.iter().filter(|asked| is_of(asked.kind)).map(|asked| &asked.node).collect();
    nodes.iter().enumerate().any(|(at, node)| nodes[..at].contains(node))
}

/// An answer to a client, with the figures in it.
pub(crate) trait Figures {
    /// The replicas that have acknowledged, if it says how many.
    fn replicas(&self) -> Option<u8>;
}

impl Figures for Written {
    fn replicas(&self) -> Option<u8> {
        (!self.duplicate).then_some(self.replicas)
    }
}

impl Figures for ReadAnswer {
    fn replicas(&self) -> Option<u8> {
        None
    }
}

/// Takes note of an answer, and passes it on.
struct Noting {
    reply: Mutex<Option<Reply>>,
    noted: Arc<Mutex<Noted>>,
    clock: SimClock,
    of: Option<(task::Id, usize)>,
}

impl Collect for Noting {
    fn collect(&self, _: u32, outcome: Outcome) {
        if let Some((task, at)) = self.of
            && let Some(asked) = lock(&self.noted).operations.get_mut(&task).and_then(|asked| asked.get_mut(at))
        {
            asked.answered = Some((self.clock.monotonic_micros(), counts(&outcome)));
        }
        if let Some(reply) = lock(&self.reply).take() {
            reply.answer(outcome);
        }
    }
}

fn counts(outcome: &Outcome) -> Counts {
    match outcome {
        Err(_) => Counts::No,
        Ok(Answer::Record(Some(record))) if record.decode().is_err() => Counts::Perhaps,
        Ok(_) => Counts::Yes,
    }
}

impl Replicas for Heard {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        let mut of = None;
        let kind = Kind::of(&request.ask);
        if let Some((kind, task)) = kind.zip(task::try_id()) {
            let mut noted = lock(&self.noted);
            if kind == Kind::Read {
                *noted.reads.entry(node.clone()).or_default() += 1;
            }
            let asked = noted.operations.entry(task).or_default();
            of = Some((task, asked.len()));
            let (sent, incarnation) = (self.clock.monotonic_micros(), self.lanes.incarnation(node));
            asked.push(Asked { kind, node: node.clone(), sent, deadline, incarnation, answered: None });
        }
        let (reply, noted) = (Mutex::new(Some(reply)), Arc::clone(&self.noted));
        let noting = Noting { reply, noted, clock: self.clock.clone(), of };
        self.lanes.send(node, request, deadline, Reply::new(Arc::new(noting), 0, node.clone()));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        self.lanes.state(node)
    }

    fn incarnation(&self, node: &NodeId) -> u64 {
        self.lanes.incarnation(node)
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        self.lanes.recent_state(node)
    }

    fn has_names(&self, node: &NodeId) -> bool {
        self.lanes.has_names(node)
    }

    fn outages(&self, node: &NodeId) -> u64 {
        self.lanes.outages(node)
    }

    fn unsynced_boot(&self, node: &NodeId) -> u64 {
        self.lanes.unsynced_boot(node)
    }

    fn has_fences(&self, node: &NodeId) -> bool {
        self.lanes.has_fences(node)
    }

    fn has_moves(&self, node: &NodeId) -> bool {
        self.lanes.has_moves(node)
    }

    fn usual_p99_us(&self, node: &NodeId) -> Option<u32> {
        self.lanes.usual_p99_us(node)
    }

    fn disk_percent(&self, node: &NodeId) -> Option<f32> {
        self.lanes.disk_percent(node)
    }

    fn has_collect(&self, node: &NodeId) -> bool {
        self.lanes.has_collect(node)
    }

    fn has_ages(&self, node: &NodeId) -> bool {
        self.lanes.has_ages(node)
    }
}

impl Ranges for Heard {
    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.lanes.standing(node)
    }

    async fn scan(&self, node: &NodeId, scan: Scan) -> Result<Page, ReplicaError> {
        self.lanes.scan(node, scan).await
    }

    async fn fingerprints(&self, node: &NodeId, scan: Scan) -> Result<Page<Fingerprint>, ReplicaError> {
        self.lanes.fingerprints(node, scan).await
    }

    fn has_digests(&self, node: &NodeId) -> bool {
        self.lanes.has_digests(node)
    }

    async fn digests(&self, node: &NodeId, wanted: Wanted) -> Result<Digests, ReplicaError> {
        self.lanes.digests(node, wanted).await
    }

    async fn stores_changed(&self) {
        self.lanes.stores_changed().await;
    }

    async fn drop_tenant(
        &self,
        node: &NodeId,
        tenant: TenantId,
        after: Option<Place>,
    ) -> Result<Dropped, ReplicaError> {
        self.lanes.drop_tenant(node, tenant, after).await
    }

    async fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Result<StoreId, ReplicaError> {
        self.lanes.raise_fence(node, tenant, epoch).await
    }

    async fn clear(&self, node: &NodeId, clear: Clear) -> Result<Cleared, ReplicaError> {
        self.lanes.clear(node, clear).await
    }
}
