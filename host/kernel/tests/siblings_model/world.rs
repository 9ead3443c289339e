//! A small world of replicas, clients and late messages around the kernel's `siblings` records, and the rules that it must keep.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;
use witan_kernel::fault::Fault;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::record::Record;
use witan_kernel::siblings::{Actor, Dot, Name, Shown, Siblings, VersionVector, Write, collapse};

pub(crate) const REPLICAS: usize = 3;
const QUORUM: usize = 2;
const CLIENTS: usize = 3;
const START: u64 = 1_700_000_000_000_000;

/// One step of a history. Masks are bit sets of replicas.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A client reads the merge of some replicas and keeps the context.
    Read { client: usize, from: u8 },
    /// A client writes or deletes: minted at one replica, merged into some others. It may keep the answer's context.
    Write { client: usize, blind: bool, delete: bool, keep: bool, late: bool, at: usize, to: u8 },
    /// A first attempt that was under way arrives at its replica.
    Arrive { which: Index },
    /// A client tries one of its writes again, at any replica, and keeps the answer's context. `asked` are asked about it first.
    Retry { write: Index, asked: u8, other: bool, at: usize, to: u8 },
    /// The coordinator of a write unpins its name at some replicas, if it may.
    Unpin { write: Index, to: u8 },
    /// A message of any age arrives (again).
    Deliver { message: Index, to: usize },
    /// One replica is repaired from another.
    Repair { from: usize, to: usize },
    /// A coordinator collapses what it sees and stores the verdict.
    Collapse { from: u8, to: u8 },
    /// A disk is lost. The empty store is used again once it has merged all others.
    Wipe { at: usize },
    /// Time passes, milliseconds.
    Pass { millis: u64 },
    /// A replica forgets what is old.
    Expire { at: usize },
}

/// The kind of histories.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) steps: usize,
    pub(crate) retries: bool,
    pub(crate) collapses: bool,
    /// Repetitions ask first, as coordinators do when every replica names the capability; otherwise they do as the previous version did.
    pub(crate) asks: bool,
    /// Longest pause, milliseconds; 0 for none.
    pub(crate) pause: u64,
}

pub(crate) fn histories(shape: Shape) -> impl Strategy<Value = Vec<Step>> {
    let mask = 0..(1u8 << REPLICAS);
    let quorums = prop_oneof![Just(0b011u8), Just(0b101), Just(0b110), Just(0b111)];
    let read = (0..CLIENTS, 1..(1u8 << REPLICAS)).prop_map(|(client, from)| Step::Read { client, from });
    let late = if shape.asks && shape.retries { 5 } else { 0 };
    let write = (0..CLIENTS, any::<bool>(), 0..4u8, any::<bool>(), 0..20u8, 0..REPLICAS, mask.clone()).prop_map(
        move |(client, blind, delete, keep, under_way, at, to)| {
            let (delete, late) = (delete == 0, under_way < late);
            Step::Write { client, blind, delete, keep, late, at, to }
        },
    );
    let arrive = any::<Index>().prop_map(|which| Step::Arrive { which });
    let retry = (any::<Index>(), quorums.clone(), any::<bool>(), 0..REPLICAS, mask.clone())
        .prop_map(|(write, asked, other, at, to)| Step::Retry { write, asked, other, at, to });
    let unpin = (any::<Index>(), mask.clone()).prop_map(|(write, to)| Step::Unpin { write, to });
    let often = u32::from(late > 0);
    let retry = prop_oneof![2 => retry, often => arrive, often => unpin];
    let deliver = (any::<Index>(), 0..REPLICAS).prop_map(|(message, to)| Step::Deliver { message, to });
    let repair = (0..REPLICAS, 0..REPLICAS).prop_map(|(from, to)| Step::Repair { from, to });
    let collapse = (quorums, mask).prop_map(|(from, to)| Step::Collapse { from, to });
    let wipe = (0..REPLICAS).prop_map(|at| Step::Wipe { at });
    let pass = (0..=shape.pause).prop_map(|millis| Step::Pass { millis });
    let expire = (0..REPLICAS).prop_map(|at| Step::Expire { at });
    let step = prop_oneof![
        6 => read,
        10 => write,
        (if shape.retries { 4 + 4 * often } else { 0 }) => retry,
        4 => deliver,
        3 => repair,
        (if shape.collapses { 3 } else { 0 }) => collapse,
        1 => wipe,
        (if shape.pause > 0 { 3 } else { 0 }) => pass,
        (if shape.pause > 0 { 1 } else { 0 }) => expire,
    ];
    proptest::collection::vec(step, shape.steps / 2..=shape.steps)
}

/// How a write is sent to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    /// As the previous version sends a repetition.
    Again,
    /// After a quorum was asked.
    Asked,
}

/// The fate of one write.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    put: Option<Write>,
    /// The client that wrote it.
    client: usize,
    /// The writes that its client had seen.
    shown: BTreeSet<WriteId>,
    /// Puts of it that have not arrived yet.
    under_way: usize,
    /// Another coordinator has repeated it.
    taken: bool,
    /// Every dot that was minted for it.
    pub(crate) dots: BTreeSet<Dot>,
    /// A quorum stores it.
    pub(crate) acknowledged: bool,
    /// Some minted write had seen it.
    pub(crate) covered: bool,
    /// Some acknowledged write had seen it and covered its dot.
    pub(crate) covered_for_good: bool,
    /// Some acknowledged write had seen it and claimed its id.
    pub(crate) named_for_good: bool,
}

/// A first attempt that is under way.
#[derive(Debug, Clone, Copy)]
struct Late {
    id: WriteId,
    at: usize,
}

#[derive(Debug, Default)]
struct Replica {
    store: StoreId,
    record: Option<Siblings>,
}

#[derive(Debug, Default, Clone)]
struct Client {
    seen: VersionVector,
    ids: Vec<WriteId>,
    newest: u64,
    /// The writes that the context covers.
    shown: BTreeSet<WriteId>,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    pub(crate) writes: BTreeMap<WriteId, Fate>,
    /// Every message that was sent.
    pub(crate) messages: Vec<Siblings>,
    late: Vec<Late>,
    asks: bool,
    now: u64,
    births: u64,
    stores: u8,
    wiped: bool,
}

/// An element of the set that a write writes.
fn element(id: &WriteId) -> [u8; 2] {
    [id.0[0], id.0[1]]
}

/// The resolver: the union of sets, sorted.
fn union(values: impl Iterator<Item = Bytes>) -> Bytes {
    let elements: BTreeSet<[u8; 2]> =
        values.flat_map(|value| value.chunks(2).map(|pair| [pair[0], pair[1]]).collect::<Vec<_>>()).collect();
    elements.into_iter().flatten().collect::<Vec<u8>>().into()
}

fn in_mask(mask: u8) -> impl Iterator<Item = usize> {
    (0..REPLICAS).filter(move |replica| mask & (1 << replica) != 0)
}

impl World {
    pub(crate) fn new(asks: bool) -> Self {
        let mut world = Self {
            replicas: Vec::new(),
            clients: vec![Client::default(); CLIENTS],
            writes: BTreeMap::new(),
            messages: Vec::new(),
            late: Vec::new(),
            asks,
            now: START,
            births: 0,
            stores: 0,
            wiped: false,
        };
        for _ in 0..REPLICAS {
            let store = world.draw_store();
            world.replicas.push(Replica { store, record: None });
        }
        world
    }

    fn draw_store(&mut self) -> StoreId {
        self.stores = self.stores.wrapping_add(1);
        // Scattered, so that actors are not sorted by age.
        StoreId([self.stores.wrapping_mul(97); 16])
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.now += 1;
        match step {
            Step::Read { client, from } => self.read(*client, *from),
            Step::Write { client, blind, delete, keep, late, at, to } => {
                let id = self.write(*client, *blind, *delete);
                if *late {
                    self.fate(&id).under_way += 1;
                    self.late.push(Late { id, at: *at });
                } else {
                    self.carry_out(id, Attempt::First, *keep, *at, *to);
                }
            }
            Step::Arrive { which } if !self.late.is_empty() => {
                let Late { id, at } = self.late.swap_remove(which.index(self.late.len()));
                self.put(&id, Attempt::First, at);
                self.fate(&id).under_way -= 1;
            }
            Step::Arrive { .. } => {}
            Step::Retry { write, asked, other, at, to } => self.retry(write, *asked, *other, *at, *to),
            Step::Unpin { write, to } => self.unpin(write, *to),
            Step::Deliver { message, to } if !self.messages.is_empty() => {
                let message = message.get(&self.messages).clone();
                self.merge(*to, &message);
            }
            Step::Deliver { .. } => {}
            Step::Repair { from, to } => self.repair(*from, *to),
            Step::Collapse { from, to } => self.collapse(*from, *to),
            Step::Wipe { at } => self.wipe(*at),
            Step::Pass { millis } => self.now += millis * 1000,
            Step::Expire { at } => {
                if let Some(record) = &mut self.replicas[*at].record {
                    record.names.trim(self.now);
                }
            }
        }
    }

    fn view(&self, from: u8) -> Option<Siblings> {
        let mut records = in_mask(from).filter_map(|replica| self.replicas[replica].record.as_ref());
        let first = records.next()?.clone();
        Some(records.fold(first, |mut view, record| {
            view.merge(record);
            view
        }))
    }

    fn read(&mut self, client: usize, from: u8) {
        if let Some(view) = self.view(from) {
            let Shown { seen, ids, newest } = view.context_claims();
            let is_shown =
                |(id, fate): &(&WriteId, &Fate)| ids.contains(id) || fate.dots.iter().any(|dot| seen.covers(dot));
            let shown = self.writes.iter().filter(is_shown).map(|(id, _)| *id).collect();
            self.clients[client] = Client { seen, ids, newest, shown };
        }
    }

    fn write(&mut self, client: usize, blind: bool, delete: bool) -> WriteId {
        let number = self.writes.len() as u16 + 1;
        let mut id = [0; 16];
        // Scattered, so that ids are not sorted by age.
        id[..2].copy_from_slice(&number.wrapping_mul(40_503).to_be_bytes());
        let id = WriteId(id);
        let Client { seen, ids, newest, shown } = if blind { Client::default() } else { self.clients[client].clone() };
        let value = (!delete).then(|| Bytes::copy_from_slice(&element(&id)));
        let put = Write { write_id: id, started: self.now, again: false, asked: false, seen, ids, newest, value };
        self.writes.insert(id, Fate { put: Some(put), client, shown, ..Fate::default() });
        id
    }

    fn fate(&mut self, id: &WriteId) -> &mut Fate {
        self.writes.get_mut(id).expect("a known write")
    }

    fn any_write(&self, which: &Index) -> Option<WriteId> {
        (!self.writes.is_empty())
            .then(|| *self.writes.keys().nth(which.index(self.writes.len())).expect("an index within"))
    }

    fn retry(&mut self, write: &Index, asked: u8, other: bool, at: usize, to: u8) {
        let Some(id) = self.any_write(write) else { return };
        self.fate(&id).taken |= other;
        if !self.asks {
            return self.carry_out(id, Attempt::Again, true, at, to);
        }
        let started = self.fate(&id).put.as_ref().expect("every write has its Put").started;
        let mut told: Vec<Siblings> = Vec::new();
        for replica in in_mask(asked) {
            let record = self.replicas[replica].record.get_or_insert_default();
            if record.pin(&id, started).is_ok() {
                told.push(record.clone());
            }
        }
        let joined = told.iter().fold(Siblings::default(), |mut all, record| {
            all.merge(record);
            all
        });
        if told.len() < QUORUM {
            return;
        }
        if joined.knows(&id).is_some() {
            self.spread(&id, joined, in_mask(to).collect(), true);
        } else if told.iter().all(|record| record.names.horizon < started) {
            let minter = in_mask(asked).nth(at % QUORUM).expect("a quorum was asked");
            self.carry_out(id, Attempt::Asked, true, minter, to);
        }
    }

    /// As a coordinator may: it is the only one that ever had the write, every Put was answered, and one event was minted.
    fn unpin(&mut self, write: &Index, to: u8) {
        let Some(id) = self.any_write(write) else { return };
        let early = Fault::UnpinnedEarly.is_on();
        let fate = self.fate(&id);
        if fate.acknowledged && !fate.taken && (early || fate.under_way == 0 && fate.dots.len() == 1) {
            for replica in in_mask(to) {
                if let Some(record) = &mut self.replicas[replica].record {
                    record.names.unpin(&id);
                }
            }
        }
    }

    /// What a replica does with a Put. Its whole record, unless it refuses.
    fn put(&mut self, id: &WriteId, attempt: Attempt, at: usize) -> Option<Siblings> {
        let fate = &self.writes[id];
        let shown = fate.shown.clone();
        let put = &Write {
            again: attempt != Attempt::First,
            asked: attempt == Attempt::Asked,
            ..fate.put.clone().expect("every write has its Put")
        };
        let store = self.replicas[at].store;
        let mut record = self.replicas[at].record.clone().unwrap_or_default();
        if record.knows(id).is_none() {
            record.refuse(put, self.now).ok()?;
            let actor = record.actor_of(&store).unwrap_or_else(|| {
                self.births += 1;
                Actor { store, birth: if Fault::ActorReusedAfterWipe.is_on() { 1 } else { self.births } }
            });
            record.names.trim(self.now);
            let dot = record.put(put, actor);
            if Fault::AnswerTrimmed.is_on() {
                record.names.trim(self.now);
            }
            self.replicas[at].record = Some(record.clone());
            for seen in &shown {
                self.fate(seen).covered = true;
            }
            self.fate(id).dots.insert(dot);
        }
        Some(record)
    }

    /// What replica, coordinator and client do with a client's write.
    fn carry_out(&mut self, id: WriteId, attempt: Attempt, keep: bool, at: usize, to: u8) {
        let Some(record) = self.put(&id, attempt, at) else { return };
        let others = in_mask(to).filter(|replica| *replica != at).collect();
        self.messages.push(record.clone());
        self.spread_from(&id, record, Some(at), others, keep);
    }

    fn spread(&mut self, id: &WriteId, record: Siblings, to: Vec<usize>, keep: bool) {
        self.messages.push(record.clone());
        self.spread_from(id, record, None, to, keep);
    }

    /// Merges a record into replicas until each of them has what the others say of pinned names.
    fn spread_from(&mut self, id: &WriteId, record: Siblings, minter: Option<usize>, to: Vec<usize>, keep: bool) {
        let mut sent = record.clone();
        let mut told = Vec::new();
        for replica in &to {
            told.extend(self.merge(*replica, &record));
        }
        let counted: Vec<usize> = minter.into_iter().chain(to).collect();
        while self.asks && !Fault::PinsUntold.is_on() && sent.learn(&told) {
            told = counted.iter().flat_map(|replica| self.merge(*replica, &sent)).collect();
            self.messages.push(sent.clone());
        }
        let put = self.writes[id].put.clone().expect("every write has its Put");
        if counted.len() >= QUORUM {
            self.fate(id).acknowledged = true;
            for (other, fate) in &mut self.writes {
                fate.named_for_good |= put.ids.contains(other);
                fate.covered_for_good |= fate.dots.iter().any(|dot| put.seen.covers(dot));
            }
        }
        if keep {
            let before = Shown { seen: put.seen.clone(), ids: put.ids.clone(), newest: put.newest };
            let Shown { seen, ids, newest } = record.claims_after(before, id, put.started);
            let Fate { client, shown, .. } = &self.writes[id];
            let (client, shown) = (*client, shown.iter().copied().chain([*id]).collect());
            self.clients[client] = Client { seen, ids, newest, shown };
        }
    }

    /// What the replica holds of pinned names that was not in what it was sent.
    fn merge(&mut self, to: usize, incoming: &Siblings) -> Vec<Name> {
        // As decoded from the wire.
        let incoming = Record::Siblings(incoming.clone()).encode().decode().expect("own bytes");
        let stored = self.replicas[to].record.take();
        let open_before = stored.as_ref().map(Siblings::open_pins).unwrap_or_default();
        let stored = stored.map(Record::Siblings);
        let Ok((Record::Siblings(merged), _)) = Record::absorb(stored, &incoming, self.now) else {
            panic!("one mode only")
        };
        let Record::Siblings(incoming) = incoming else { panic!("one mode only") };
        let told = merged.lacking_in(&incoming, &open_before);
        self.replicas[to].record = Some(merged);
        told
    }

    fn repair(&mut self, from: usize, to: usize) {
        if let Some(record) = self.replicas[from].record.clone() {
            self.merge(to, &record);
        }
    }

    fn collapse(&mut self, from: u8, to: u8) {
        let Some(view) = self.view(from) else { return };
        let verdict = union(view.live_values_deduplicated().into_iter().map(|sibling| sibling.value));
        let collapsed = collapse(&view, verdict);
        self.messages.push(collapsed.clone());
        for replica in in_mask(to) {
            self.merge(replica, &collapsed);
        }
    }

    fn wipe(&mut self, at: usize) {
        self.wiped = true;
        let store = if Fault::ActorReusedAfterWipe.is_on() { self.replicas[at].store } else { self.draw_store() };
        self.replicas[at] = Replica { store, record: None };
        if Fault::ActorReusedAfterWipe.is_on() {
            return;
        }
        for other in (0..REPLICAS).filter(|other| *other != at) {
            self.repair(other, at);
        }
    }

    /// Every replica merges every other one, twice.
    pub(crate) fn heal(&mut self) {
        for _ in 0..2 {
            for from in 0..REPLICAS {
                for to in 0..REPLICAS {
                    self.repair(from, to);
                }
            }
        }
    }

    /// The rules that must hold when all replicas have merged each other. `within_window`: nothing that a retry needs has been forgotten in
    /// this history.
    pub(crate) fn check(&self, within_window: bool) -> Result<(), String> {
        let Some(record) = &self.replicas[0].record else { return Ok(()) };
        for replica in &self.replicas {
            if !replica.record.as_ref().is_some_and(|other| same_standing(other, record)) {
                return Err(format!("replicas differ: {record:?} and {:?}", replica.record));
            }
        }
        for (id, fate) in &self.writes {
            let standing: Vec<_> = record.versions.iter().filter(|version| version.includes(id)).collect();
            if fate.acknowledged && !fate.covered {
                if standing.is_empty() {
                    return Err(format!("{id:?} was acknowledged and dropped"));
                }
                let put = fate.put.as_ref().expect("every write has its Put");
                let holds = |value: &Option<Bytes>| match (value, &put.value) {
                    (Some(value), Some(_)) => value.chunks(2).any(|pair| pair == element(id)),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                if !standing.iter().any(|version| holds(&version.value)) {
                    return Err(format!("{id:?} is not in the value that includes it"));
                }
            }
            if (self.asks || within_window || fate.dots.len() <= 1)
                && standing.iter().filter(|version| version.ids.len() == 1).count() > 1
            {
                return Err(format!("{id:?} is in two versions"));
            }
        }
        for version in &record.versions {
            // Dots are remembered for good. Names are, if repetitions ask: what an acknowledged write named does not come back. An
            // event of a write with several may stay beside what covers another one without naming the write.
            let back = |id: &WriteId| {
                self.writes.get(id).is_some_and(|fate| match fate.dots.len() {
                    _ if self.asks && fate.named_for_good => true,
                    0 | 1 => fate.covered_for_good || within_window && fate.named_for_good,
                    _ if self.asks => false,
                    _ => within_window && (fate.named_for_good || fate.covered_for_good && !self.wiped),
                })
            };
            if version.ids.iter().all(back) {
                return Err(format!("superseded and back: {version:?}"));
            }
        }
        Ok(())
    }
}

/// Whether two records have seen the same events and hold the same versions, from their parts, and not by the code under test.
fn same_standing(a: &Siblings, b: &Siblings) -> bool {
    standing_of(a) == standing_of(b)
}

/// The events beyond which nothing is seen, per actor; single events; and each version's writes, mints and value.
type Standing = (BTreeMap<Actor, u64>, BTreeSet<Dot>, BTreeSet<(Vec<WriteId>, Vec<(WriteId, Dot)>, Option<Bytes>)>);

fn standing_of(record: &Siblings) -> Standing {
    let versions = record.versions.iter().map(|version| {
        let mut mints: Vec<(WriteId, Dot)> = version.mints().collect();
        mints.sort();
        (version.ids.to_vec(), mints, version.value.clone())
    });
    (record.seen.entries.iter().copied().collect(), record.seen.cloud.iter().copied().collect(), versions.collect())
}
