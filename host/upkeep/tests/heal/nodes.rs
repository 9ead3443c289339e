//! Storage nodes in memory, for tests in paused time: what each has, what it was sent, and how it misbehaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use witan_kernel::burial::drops;
use witan_kernel::digest::{Digests, Leaf, Row, TenantLeaf, Wanted};
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::{Key, NodeId, StoreId, TenantId, WriteId};
use witan_kernel::placement::Tokens;
use witan_kernel::port::{Clock, Replicas, Reply};
use witan_kernel::record::{Encoded, Fingerprint, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::ring::token;
use witan_kernel::scan::{Clear, Cleared, Dropped, Found, Page, Ranges, Scan, Standing, Trust};
use witan_kernel::slice::Slice;
use witan_kernel::space::Space;

/// Time that passes only while a test waits.
#[derive(Clone)]
pub(crate) struct Paused(pub(crate) Instant);

impl Clock for Paused {
    fn wall_micros(&self) -> u64 {
        1_800_000_000_000_000 + self.monotonic_micros()
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// What a node has, and what it was sent.
#[derive(Default)]
pub(crate) struct Node {
    records: BTreeMap<(u64, Bytes), (Place, Encoded)>,
    /// Until then, it answers no merge.
    hangs_until: Option<Instant>,
    away: bool,
    /// How often it has gone.
    outages: u64,
    /// How often its store was opened that acknowledges before it syncs.
    unsynced_boot: u64,
    /// It refuses merges of an earlier epoch.
    fence: u64,
    /// Those that it has refused: the epoch of each, and its place.
    refused: Vec<(u64, Place)>,
    /// The merges that it was sent: when, and the stamps in them.
    merges: Vec<(Instant, Stamp)>,
    /// The bytes of records that were read.
    read: u64,
    /// Its clock is behind by this, microseconds.
    behind: u64,
    /// Its store is not the one on record.
    is_filling: bool,
    /// It is of an earlier version.
    is_old: bool,
    /// Requests to drop a row that it refuses before it does as it is asked.
    overloaded: u32,
    /// The ranges of which pages were read.
    scans: Vec<Tokens>,
    /// It keeps digests.
    digests: bool,
    /// Records that it cannot read, although its digests have them.
    rotten: BTreeSet<(u64, Bytes)>,
}

/// What happens at a request, once.
pub(crate) type Trap = Box<dyn FnOnce(&Nodes) + Send>;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A second look.
    Look,
    /// To drop a row.
    Collect,
}

/// Three nodes.
#[derive(Clone)]
pub(crate) struct Nodes {
    pub(crate) all: Arc<Mutex<BTreeMap<NodeId, Node>>>,
    pub(crate) traps: Arc<Mutex<Vec<(Call, Trap)>>>,
    pub(crate) clock: Paused,
}

impl Nodes {
    pub(crate) fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        self.all.lock().unwrap()
    }

    /// At the next request of this kind, this happens first.
    pub(crate) fn at_next(&self, call: Call, trap: impl FnOnce(&Self) + Send + 'static) {
        self.traps.lock().unwrap().push((call, Box::new(trap)));
    }

    fn spring(&self, call: Call) {
        let mut traps = self.traps.lock().unwrap();
        let Some(index) = traps.iter().position(|(of, _)| *of == call) else { return };
        let (_, trap) = traps.remove(index);
        drop(traps);
        trap(self);
    }

    /// A node has what a write of so long ago has left.
    pub(crate) fn write(&self, node: usize, key: usize, ago: Duration, n: u8, value: Option<&'static [u8]>) {
        let stamp = Stamp(self.clock.wall_micros() - ago.as_micros() as u64);
        let written = Register::written(stamp, WriteId([n; 16]), value.map(Bytes::from_static));
        self.merge(&id(node), &place(3, key), &Record::Register(written).encode());
    }

    pub(crate) fn remove(&self, node: usize, key: usize) {
        let place = place(3, key);
        self.with(&id(node), |node| node.records.remove(&(place.token, place.key.bytes().clone())));
    }

    /// Whether something that was to happen at a request has not happened yet.
    pub(crate) fn has_trap(&self) -> bool {
        !self.traps.lock().unwrap().is_empty()
    }

    /// How often pages of a node were read that begin before the key of these tests and end behind it.
    pub(crate) fn looked_at(&self, node: usize) -> usize {
        let seventh = place(3, 7).token;
        self.with(&id(node), |node| node.scans.iter().filter(|(from, to)| (*from..=*to).contains(&seventh)).count())
    }

    /// Whether a node has a value of a key; `None` if it has nothing.
    pub(crate) fn is_live(&self, node: usize, key: usize) -> Option<bool> {
        let place = place(3, key);
        self.with(&id(node), |node| {
            let (_, record) = node.records.get(&(place.token, place.key.bytes().clone()))?;
            Some(!record.decode().expect("a record").is_deleted())
        })
    }

    pub(crate) fn set_behind(&self, node: usize, behind: Duration) {
        self.with(&id(node), |node| node.behind = behind.as_micros() as u64);
    }

    pub(crate) fn set_filling(&self, node: usize, is_filling: bool) {
        self.with(&id(node), |node| node.is_filling = is_filling);
    }

    pub(crate) fn set_old(&self, node: usize, is_old: bool) {
        self.with(&id(node), |node| node.is_old = is_old);
    }

    pub(crate) fn set_overloaded(&self, node: usize, requests: u32) {
        self.with(&id(node), |node| node.overloaded = requests);
    }

    /// Drops a row, if it is as it was expected to be.
    fn collect(&self, node: &NodeId, place: &Place, expected: Fingerprint, grace: u64) -> Outcome {
        let wall = self.clock.wall_micros();
        self.with(node, |node| {
            if expected != Fingerprint([0; 16]) && node.overloaded > 0 {
                node.overloaded -= 1;
                return Err(ReplicaError::Overloaded);
            }
            let at = (place.token, place.key.bytes().clone());
            let stored = node.records.get(&at).map(|(_, stored)| (stored.clone(), stored.decode().expect("a record")));
            let dropped =
                stored.is_some_and(|(stored, record)| drops(&stored, &record, expected, grace, wall - node.behind));
            if dropped {
                node.records.remove(&at);
            }
            Ok(Answer::Collected { dropped })
        })
    }

    pub(crate) fn with<T>(&self, node: &NodeId, look: impl FnOnce(&mut Node) -> T) -> T {
        look(self.all().entry(node.clone()).or_default())
    }

    /// Stores a record on a node.
    pub(crate) fn put(&self, node: usize, key: usize, stamp: u64) {
        self.put_at(&id(node), place(3, key), stamp);
    }

    /// Stores a record of a tenant on a node.
    pub(crate) fn put_at(&self, node: &NodeId, place: Place, stamp: u64) {
        let write = WriteId([stamp as u8; 16]);
        let register = Register::written(Stamp(stamp), write, Some(Bytes::from_static(&[7; 100])));
        let at = (place.token, place.key.bytes().clone());
        let record = Record::Register(register).encode();
        self.with(node, |node| node.records.insert(at, (place, record)));
    }

    /// From now on all nodes keep digests.
    pub(crate) fn keep_digests(&self) {
        self.all().values_mut().for_each(|node| node.digests = true);
    }

    /// A record rots on the disk of a node.
    pub(crate) fn rot(&self, node: &NodeId, place: &Place) {
        self.with(node, |node| node.rotten.insert((place.token, place.key.bytes().clone())));
    }

    /// The stamp of a register on a node.
    pub(crate) fn stamp(&self, node: &NodeId, place: &Place) -> Option<u64> {
        let at = (place.token, place.key.bytes().clone());
        let record =
            self.with(node, |node| node.records.get(&at).map(|(_, record)| record.decode().expect("a record")));
        record.map(|record| match record {
            Record::Register(register) => register.stamp.0,
            Record::Siblings(_) => panic!("a register"),
        })
    }

    /// The parts of the ring of which pages were asked for.
    pub(crate) fn scanned(&self) -> Vec<Tokens> {
        self.all().values().flat_map(|node| node.scans.clone()).collect()
    }

    pub(crate) fn hang_until(&self, node: usize, until: Instant) {
        self.with(&id(node), |node| node.hangs_until = Some(until));
    }

    pub(crate) fn set_away(&self, node: usize, away: bool) {
        self.with(&id(node), |node| {
            node.outages += u64::from(away && !node.away);
            node.away = away;
        });
    }

    /// The node was started with a store that acknowledges before it syncs, for this time.
    pub(crate) fn set_unsynced_boot(&self, node: usize, boot: u64) {
        self.with(&id(node), |node| node.unsynced_boot = boot);
    }

    pub(crate) fn set_fence(&self, node: usize, fence: u64) {
        self.with(&id(node), |node| node.fence = fence);
    }

    /// The merges that a node has refused: the epoch of each, and its place.
    pub(crate) fn refused(&self, node: usize) -> Vec<(u64, Place)> {
        self.with(&id(node), |node| node.refused.clone())
    }

    /// Whether a node has a record.
    pub(crate) fn has(&self, node: usize, place: &Place) -> bool {
        self.with(&id(node), |node| node.records.contains_key(&(place.token, place.key.bytes().clone())))
    }

    pub(crate) fn merges(&self, node: usize) -> Vec<(Instant, Stamp)> {
        self.with(&id(node), |node| node.merges.clone())
    }

    pub(crate) fn read(&self) -> u64 {
        self.all().values().map(|node| node.read).sum()
    }

    /// The ranges of which pages were read since this was last asked.
    pub(crate) fn take_scans(&self) -> Vec<Tokens> {
        self.all().values_mut().flat_map(|node| std::mem::take(&mut node.scans)).collect()
    }

    /// Whether all nodes have the same.
    pub(crate) fn are_level(&self) -> bool {
        let nodes = self.all();
        let mut all = nodes.values().map(|node| &node.records);
        let Some(first) = all.next() else { return true };
        all.all(|records| records == first)
    }

    fn merge(&self, node: &NodeId, place: &Place, record: &Encoded) {
        self.with(node, |node| {
            let at = (place.token, place.key.bytes().clone());
            let own = node.records.get(&at).map(|(_, own)| own.decode().expect("a record"));
            let merged = Record::merge(own, record.decode().expect("a record")).expect("the same mode").0;
            node.records.insert(at, (place.clone(), merged.encode()));
        });
    }
}

impl Replicas for Nodes {
    fn send(&self, node: &NodeId, request: Request, _: u64, reply: Reply) {
        if self.with(node, |node| node.away) {
            return reply.answer(Err(ReplicaError::NotSent(node.clone())));
        }
        match &request.ask {
            Ask::Read => self.spring(Call::Look),
            Ask::Collect { expected, .. } if *expected != Fingerprint([0; 16]) => self.spring(Call::Collect),
            _ => {}
        }
        let is_stale = self.with(node, |node| {
            let is_stale = request.epoch < node.fence;
            node.refused.extend(is_stale.then(|| (request.epoch, request.place.clone())));
            is_stale
        });
        if is_stale {
            return reply.answer(Err(ReplicaError::StaleEpoch));
        }
        let at = (request.place.token, request.place.key.bytes().clone());
        let record = match request.ask {
            Ask::Merge { record } => record,
            Ask::Read => {
                let stored = self.with(node, |node| node.records.get(&at).map(|(_, stored)| stored.clone()));
                return reply.answer(Ok(Answer::Record(stored)));
            }
            Ask::Collect { expected, grace } => {
                return reply.answer(self.collect(node, &request.place, expected, grace));
            }
            other => panic!("nothing else is sent: {other:?}"),
        };
        let Ok(Record::Register(register)) = record.decode() else { panic!("a register") };
        let hangs = self.with(node, |node| {
            node.merges.push((Instant::now(), register.stamp));
            node.hangs_until.is_some_and(|until| Instant::now() < until)
        });
        if hangs {
            // Lanes answer at the deadline, which is five seconds after the merge was sent.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                reply.answer(Err(ReplicaError::Late));
            });
            return;
        }
        self.merge(node, &request.place, &record);
        reply.answer(Ok(Answer::Merged { superseded: false, told: Vec::new() }));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        let reachable = self.with(node, |node| !node.away);
        ReplicaState { reachable, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
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

    fn outages(&self, node: &NodeId) -> u64 {
        self.with(node, |node| node.outages)
    }

    fn has_collect(&self, node: &NodeId) -> bool {
        self.with(node, |node| !node.is_old)
    }

    fn unsynced_boot(&self, node: &NodeId) -> u64 {
        self.with(node, |node| node.unsynced_boot)
    }
}

impl Ranges for Nodes {
    async fn stores_changed(&self) {}

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        let (away, is_filling) = self.with(node, |node| (node.away, node.is_filling));
        let trust = if is_filling { Trust::Filling } else { Trust::Whole };
        (!away).then_some(Standing { store: store(node), trust })
    }

    async fn scan(&self, node: &NodeId, scan: Scan) -> Result<Page, ReplicaError> {
        self.with(node, |own| {
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            let after = scan.after.map(|after| (after.token, after.key.bytes().clone()));
            let within = own.records.iter().filter(|(at, _)| {
                (scan.from..=scan.to).contains(&at.0) && after.as_ref().is_none_or(|after| *at > after)
            });
            let mut found = Vec::new();
            let (mut bytes, mut is_last) = (0, true);
            for (_, (place, record)) in within {
                if found.len() >= scan.records as usize || bytes >= scan.bytes as usize {
                    is_last = false;
                    break;
                }
                bytes += record.0.len();
                let rotten = own.rotten.contains(&(place.token, place.key.bytes().clone()));
                found.push(Found { place: place.clone(), record: Some(record.clone()).filter(|_| !rotten) });
            }
            own.read += bytes as u64;
            own.scans.push((scan.from, scan.to));
            let next = if is_last { None } else { found.last().map(|found: &Found| found.place.clone()) };
            Ok(Page { store: store(node), found, next })
        })
    }

    fn has_digests(&self, node: &NodeId) -> bool {
        self.with(node, |node| node.digests)
    }

    /// Two slices at a time.
    async fn digests(&self, node: &NodeId, wanted: Wanted) -> Result<Digests, ReplicaError> {
        self.with(node, |own| {
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            let (from, to) = wanted.tokens;
            let mut leaves: BTreeMap<(Slice, Space), Leaf> = BTreeMap::new();
            for (place, record) in own.records.values().filter(|(place, _)| (from..=to).contains(&place.token)) {
                let record = record.decode().expect("a record");
                let row = Row::of(place.token, place.space.bytes(), place.key.bytes(), &record);
                leaves.entry((Slice::of(place.token), place.space.clone())).or_default().add(&row);
            }
            let end = leaves.keys().map(|(slice, _)| slice.tokens().1).find(|end| *end > from).unwrap_or(to).min(to);
            leaves.retain(|(slice, _), _| slice.tokens().0 <= end);
            let leaf = |((slice, space), leaf)| TenantLeaf { slice, space, leaf };
            let leaves = leaves.into_iter().map(leaf).collect();
            Ok(Digests { store: store(node), to: end, leaves, unknown: Vec::new(), read_rows: 0, read_bytes: 0 })
        })
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

pub(crate) fn id(node: usize) -> NodeId {
    NodeId::new(format!("node-{node}")).expect("an id")
}

pub(crate) fn store(node: &NodeId) -> StoreId {
    let bytes = node.as_str().as_bytes();
    StoreId([bytes[bytes.len() - 1]; 16])
}

pub(crate) fn tenant(factor: u8) -> TenantId {
    TenantId::new(format!("tenant-{factor}")).expect("an id")
}

/// Tenants are named after their replication factors.
pub(crate) fn factor(tenant: &TenantId) -> u8 {
    tenant.as_str().strip_prefix("tenant-").and_then(|factor| factor.parse().ok()).expect("a factor")
}

/// The place of a key of the tenant with this replication factor.
pub(crate) fn place(factor: u8, key: usize) -> Place {
    let key = Key::new(format!("key-{key}")).expect("a key");
    Place { token: token(&tenant(factor), key.bytes()), space: tenant(factor).into(), key }
}
