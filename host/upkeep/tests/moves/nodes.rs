//! Storage nodes in memory: rows, fences, and marks of what was prepared. Each of them can be away, or get another store; and the whole
//! can come to a halt at any call, before or after it had its effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use witan_kernel::burial::drops;
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::placement::Tokens;
use witan_kernel::port::{Replicas, Reply};
use witan_kernel::record::{Encoded, Fingerprint, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::scan::{Clear, Cleared, Dropped, Found, Page, Purpose, Ranges, Scan, Standing, Trust};
use witan_kernel::space::Space;

type At = (u64, Bytes, Bytes);

fn at(place: &Place) -> At {
    (place.token, place.space.bytes().clone(), place.key.bytes().clone())
}

/// A node.
#[derive(Default)]
pub(crate) struct Node {
    rows: BTreeMap<At, (Place, Option<Encoded>)>,
    fences: BTreeMap<TenantId, u64>,
    marks: BTreeMap<TenantId, u64>,
    away: bool,
    /// It answers no scan.
    refuses_scans: bool,
    /// How often it has got another store.
    store: u8,
    /// Its store is the one on record.
    other: bool,
    /// Its disk is full.
    is_full: bool,
    /// How full it is, in percent.
    pub(crate) disk: Option<f32>,
    /// Its latency at present, and usually: the 99th percentile, microseconds.
    pub(crate) p99_us: (u32, Option<u32>),
    /// Until then it answers no merge.
    hangs_until: Option<Instant>,
    /// The merges that it was sent: until when each may be stored, in microseconds since the test began, and its stamp.
    merges: Vec<(u64, Stamp)>,
}

impl Node {
    fn fence(&self, tenant: &TenantId) -> u64 {
        self.fences.get(tenant).copied().unwrap_or_default()
    }

    fn raise(&mut self, tenant: &TenantId, epoch: u64) {
        let fence = self.fences.entry(tenant.clone()).or_default();
        *fence = (*fence).max(epoch);
    }

    fn drop_rows(&mut self, space: &Space, ranges: &[Tokens]) -> u64 {
        let before = self.rows.len();
        let within = |token: u64| ranges.iter().any(|(first, last)| (*first..=*last).contains(&token));
        self.rows.retain(|_, (place, _)| place.space != *space || !within(place.token));
        (before - self.rows.len()) as u64
    }
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Node>,
    calls: usize,
    halts_at: Option<usize>,
    /// Answers that never come.
    unanswered: Vec<Reply>,
    /// What happens at a call of a kind, once, and how many come before it.
    traps: Vec<(Call, usize, Trap)>,
    /// When each node has shown each record last.
    shown: BTreeMap<(NodeId, At), Instant>,
    /// When the coordinators' clock began.
    began: Option<Instant>,
    /// The longest time from when a node has shown a record to the deadline of a merge of it.
    oldest: Duration,
    /// Records that were read whole.
    read: usize,
    /// When pages were asked for.
    scans: Vec<Instant>,
}

/// What happens at a call.
type Trap = Box<dyn FnOnce() + Send>;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Enter,
    /// The first fence of the tenant there: while the move is prepared.
    FirstFence,
    /// A later one.
    Fence,
    Scan,
    Merge,
    Leave,
}

/// The nodes.
#[derive(Clone, Default)]
pub(crate) struct Nodes {
    state: Arc<Mutex<State>>,
    halted: Arc<Notify>,
}

impl Nodes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn with<T>(&self, node: &NodeId, look: impl FnOnce(&mut Node) -> T) -> T {
        look(self.state().nodes.entry(node.clone()).or_default())
    }

    fn page(&self, node: &NodeId, scan: &Scan) -> Result<Page, ReplicaError> {
        self.state().scans.push(Instant::now());
        self.with(node, |own| {
            let space = scan.space.clone().expect("of one tenant");
            if own.refuses_scans {
                return Err(ReplicaError::Overloaded);
            }
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            if scan.epoch > 0 && scan.epoch < own.fence(&space.tenant()) {
                return Err(ReplicaError::StaleEpoch);
            }
            let after = scan.after.as_ref().map(at);
            let within = own.rows.iter().filter(|(key, (place, _))| {
                (scan.from..=scan.to).contains(&key.0)
                    && place.space == space
                    && after.as_ref().is_none_or(|after| *key > after)
            });
            // Pages of a few records, so that there are some.
            let mut found: Vec<Found> =
                within.take(9).map(|(_, (place, row))| Found { place: place.clone(), record: row.clone() }).collect();
            let next = (found.len() == 9).then(|| {
                found.truncate(8);
                found[7].place.clone()
            });
            Ok(Page { store: store(node, own.store), found, next })
        })
    }

    /// When pages were asked for, of all nodes, in order.
    pub(crate) fn scans(&self) -> Vec<Instant> {
        self.state().scans.clone()
    }

    /// Records that were read whole, of all nodes.
    pub(crate) fn read(&self) -> usize {
        self.state().read
    }

    pub(crate) fn set_away(&self, node: &NodeId, away: bool) {
        self.with(node, |node| node.away = away);
    }

    pub(crate) fn refuse_scans(&self, node: &NodeId, refuses: bool) {
        self.with(node, |node| node.refuses_scans = refuses);
    }

    pub(crate) fn set_full(&self, node: &NodeId) {
        self.with(node, |node| node.is_full = true);
    }

    /// The node answers no merge for this long.
    pub(crate) fn hang_for(&self, node: &NodeId, long: Duration) {
        self.with(node, |node| node.hangs_until = Some(Instant::now() + long));
    }

    /// The merges that a node was sent: until when each may be stored, in microseconds since the test began, and its stamp.
    pub(crate) fn merges(&self, node: &NodeId) -> Vec<(u64, Stamp)> {
        self.with(node, |node| node.merges.clone())
    }

    /// The node has another store, which is empty, in place of its own; `is_whole`: it is on record already.
    pub(crate) fn replace_store(&self, node: &NodeId, is_whole: bool) {
        self.with(node, |node| {
            *node = Node { store: node.store + 1, other: !is_whole, ..Node::default() };
        });
    }

    /// The call at which everything comes to a halt: calls are counted from 0, each twice, before its effect and after it.
    pub(crate) fn halt_at(&self, call: Option<usize>) {
        let mut state = self.state();
        (state.calls, state.halts_at) = (0, call);
    }

    /// Calls that were counted since.
    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    /// Ready when everything has come to a halt.
    pub(crate) async fn halted(&self) {
        self.halted.notified().await;
    }

    /// At the next call of this kind, this happens first.
    pub(crate) fn at_next(&self, call: Call, trap: impl FnOnce() + Send + 'static) {
        self.after(call, 0, trap);
    }

    /// The same, after some more calls of this kind.
    pub(crate) fn after(&self, call: Call, others: usize, trap: impl FnOnce() + Send + 'static) {
        self.state().traps.push((call, others, Box::new(trap)));
    }

    fn spring(&self, call: Call) {
        let mut state = self.state();
        let Some(index) = state.traps.iter().position(|(of, ..)| *of == call) else { return };
        if let Some(others) = state.traps[index].1.checked_sub(1) {
            state.traps[index].1 = others;
            return;
        }
        let (.., trap) = state.traps.remove(index);
        drop(state);
        trap();
    }

    /// Counts a call. True when it must not go on.
    fn halts(&self) -> bool {
        let mut state = self.state();
        state.calls += 1;
        let halts = state.halts_at.is_some_and(|at| state.calls > at);
        if halts {
            self.halted.notify_one();
        }
        halts
    }

    async fn call<T>(&self, call: Call, effect: impl FnOnce() -> T + Send) -> T {
        self.spring(call);
        if self.halts() {
            std::future::pending::<()>().await;
        }
        let answer = effect();
        if self.halts() {
            std::future::pending::<()>().await;
        }
        answer
    }

    /// What a node has of a key.
    pub(crate) fn row(&self, node: &NodeId, place: &Place) -> Option<Record> {
        self.with(node, |node| node.rows.get(&at(place)).and_then(|(_, row)| row.as_ref()?.decode().ok()))
    }

    pub(crate) fn places(&self, node: &NodeId, tenant: &TenantId) -> Vec<Place> {
        self.with(node, |node| {
            let of = node.rows.values().filter(|(place, _)| place.space.is_of(tenant));
            of.map(|(place, _)| place.clone()).collect()
        })
    }

    /// The node has a record as it was written: it remembers the write.
    pub(crate) fn remember(&self, node: &NodeId, place: &Place) {
        self.with(node, |node| {
            let Some((_, Some(row))) = node.rows.get_mut(&at(place)) else { panic!("it has none") };
            let Ok(Record::Register(register)) = row.decode() else { panic!("a register") };
            let written = Register::written(register.stamp, register.write_id, register.value);
            *row = Record::Register(written).encode();
        });
    }

    /// The node has lost a record.
    pub(crate) fn lose(&self, node: &NodeId, place: &Place) {
        self.with(node, |node| node.rows.remove(&at(place)));
    }

    /// When the clock of coordinators began.
    pub(crate) fn set_began(&self, began: Instant) {
        self.state().began = Some(began);
    }

    /// The longest time from when any node has shown a record last to the deadline of a merge of it.
    pub(crate) fn oldest_merge(&self) -> Duration {
        self.state().oldest
    }

    fn note_age(&self, place: &Place, deadline: u64) {
        let mut state = self.state();
        let Some(began) = state.began else { return };
        let deadline = began + Duration::from_micros(deadline);
        let shown = state.shown.iter().filter(|((_, shown), _)| *shown == at(place)).map(|(_, shown)| *shown).min();
        state.oldest = shown.map_or(state.oldest, |shown| state.oldest.max(deadline - shown));
    }

    pub(crate) fn spoil(&self, node: &NodeId, place: &Place) {
        self.with(node, |node| node.rows.insert(at(place), (place.clone(), None)));
    }

    /// Merges a record into what a node has, as operations do.
    pub(crate) fn merge(&self, node: &NodeId, place: &Place, record: &Record, epoch: u64) -> Result<(), ReplicaError> {
        self.with(node, |own| {
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            if epoch < own.fence(&place.tenant()) {
                return Err(ReplicaError::StaleEpoch);
            }
            if own.is_full {
                return Err(ReplicaError::StorageFull);
            }
            let stored = own.rows.get(&at(place)).and_then(|(_, row)| row.as_ref()?.decode().ok());
            // Every write of these tests is of long ago, so that nodes forget its name at once.
            let merged = Record::absorb(stored, record, 1_800_000_000_000_000).expect("the same mode").0;
            own.rows.insert(at(place), (place.clone(), Some(merged.encode())));
            if own.other { Err(ReplicaError::Filling(node.clone())) } else { Ok(()) }
        })
    }

    /// What a node answers that is looked at, or asked to drop a row.
    fn collect(&self, node: &NodeId, place: &Place, ask: &Ask, epoch: u64) -> Outcome {
        self.with(node, |own| {
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            if epoch < own.fence(&place.tenant()) {
                return Err(ReplicaError::StaleEpoch);
            }
            let stored = own.rows.get(&at(place)).and_then(|(_, row)| row.clone());
            match ask {
                Ask::Read => Ok(Answer::Record(stored)),
                Ask::Collect { expected, grace } => {
                    let drops = |stored: &Encoded| {
                        let record = stored.decode().expect("a record");
                        drops(stored, &record, *expected, *grace, 1_800_000_000_000_000)
                    };
                    let dropped = stored.as_ref().is_some_and(drops);
                    if dropped {
                        own.rows.remove(&at(place));
                    }
                    Ok(Answer::Collected { dropped })
                }
                other => panic!("nothing else is sent: {other:?}"),
            }
        })
    }

    fn standing_of(node: &NodeId, own: &Node) -> Standing {
        let trust = if own.other { Trust::Filling } else { Trust::Whole };
        Standing { store: store(node, own.store), trust }
    }
}

pub(crate) fn store(node: &NodeId, number: u8) -> StoreId {
    let mut bytes = [number; 16];
    bytes[0] = *node.as_str().as_bytes().last().expect("an id");
    StoreId(bytes)
}

impl Replicas for Nodes {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        let record = match request.ask {
            Ask::Merge { record } => record,
            ask => return reply.answer(self.collect(node, &request.place, &ask, request.epoch)),
        };
        self.note_age(&request.place, deadline);
        self.spring(Call::Merge);
        let Ok(Record::Register(sent)) = record.decode() else { panic!("a register") };
        let hangs = self.with(node, |node| {
            node.merges.push((deadline, sent.stamp));
            node.hangs_until.is_some_and(|until| Instant::now() < until)
        });
        if hangs {
            // Lanes answer at the deadline, which is five seconds after the merge was sent at most.
            tokio::spawn(async move {
                sleep(Duration::from_secs(5)).await;
                reply.answer(Err(ReplicaError::Late));
            });
            return;
        }
        if self.halts() {
            return self.state().unanswered.push(reply);
        }
        let merged = self.merge(node, &request.place, &record.decode().expect("a record"), request.epoch);
        if self.halts() {
            return self.state().unanswered.push(reply);
        }
        reply.answer(merged.map(|()| Answer::Merged { superseded: false, told: Vec::new() }));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        let (reachable, latency_p99_us) = self.with(node, |node| (!node.away, node.p99_us.0));
        ReplicaState { reachable, latency_p50_us: 0, latency_p99_us, in_flight: 0 }
    }

    fn incarnation(&self, node: &NodeId) -> u64 {
        self.with(node, |node| u64::from(node.store) + 1)
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        Replicas::state(self, node)
    }

    fn has_names(&self, _: &NodeId) -> bool {
        true
    }

    fn usual_p99_us(&self, node: &NodeId) -> Option<u32> {
        self.with(node, |node| node.p99_us.1)
    }

    fn disk_percent(&self, node: &NodeId) -> Option<f32> {
        self.with(node, |node| node.disk)
    }
}

impl Ranges for Nodes {
    async fn stores_changed(&self) {}

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.with(node, |own| (!own.away).then(|| Self::standing_of(node, own)))
    }

    async fn scan(&self, node: &NodeId, scan: Scan) -> Result<Page, ReplicaError> {
        let show = |page: &Page| {
            let mut state = self.state();
            let shown = page.found.iter().map(|found| ((node.clone(), at(&found.place)), Instant::now()));
            state.read += page.found.len();
            state.shown.extend(shown);
        };
        self.call(Call::Scan, || self.page(node, &scan).inspect(show)).await
    }

    async fn fingerprints(&self, node: &NodeId, scan: Scan) -> Result<Page<Fingerprint>, ReplicaError> {
        self.call(Call::Scan, || self.page(node, &scan).map(Page::fingerprints)).await
    }

    async fn drop_tenant(&self, _: &NodeId, _: TenantId, _: Option<Place>) -> Result<Dropped, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Result<StoreId, ReplicaError> {
        let effect = || {
            self.with(node, |own| {
                if own.away {
                    return Err(ReplicaError::NotSent(node.clone()));
                }
                own.raise(tenant.expect("of one tenant"), epoch);
                Ok(store(node, own.store))
            })
        };
        let is_first = tenant.is_some_and(|tenant| self.with(node, |own| own.fence(tenant) == 0));
        self.call(if is_first { Call::FirstFence } else { Call::Fence }, effect).await
    }

    async fn clear(&self, node: &NodeId, clear: Clear) -> Result<Cleared, ReplicaError> {
        let Clear { space, ranges, epoch, purpose } = clear;
        let tenant = space.tenant();
        let call = if purpose == Purpose::Enter { Call::Enter } else { Call::Leave };
        let effect = || {
            self.with(node, |own| {
                if own.away {
                    return Err(ReplicaError::NotSent(node.clone()));
                }
                let (mark, store) = (own.marks.get(&tenant).copied().unwrap_or_default(), store(node, own.store));
                match purpose {
                    Purpose::Enter if mark == epoch => return Ok(Cleared { store, already: true, records: 0 }),
                    Purpose::Enter if own.fence(&tenant) > epoch => return Err(ReplicaError::StaleEpoch),
                    Purpose::Leave if mark > epoch => return Err(ReplicaError::StaleEpoch),
                    Purpose::Enter => drop(own.marks.insert(tenant.clone(), epoch)),
                    Purpose::Leave => {}
                }
                own.raise(&tenant, epoch);
                let records = own.drop_rows(&space, &ranges);
                Ok(Cleared { store, already: false, records })
            })
        };
        self.call(call, effect).await
    }
}
