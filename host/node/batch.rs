//! What a storage node does with requests: one batch of them in, one batch of rows to write and their answers out.
//!
//! Everything is synchronous, and a row belongs to one [`Shard`], which one thread drives: that is the lock of the key. The
//! rule of the house is the gate: an answer leaves only when all that it reveals is durable. An answer that reveals a row
//! with a write that was not synced yet is handed out as *gated*, with the generation whose sync it has to wait for; that
//! holds for a read, or for a merge that changed nothing, as well as for the write itself.

mod rows;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use witan_kernel::fault::Fault;
use witan_kernel::name::WriteId;
pub use witan_kernel::port::Durability;
use witan_kernel::record::{Damaged, Encoded, Record, WrongMode};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};
use witan_kernel::siblings::{Siblings, Write};

use self::rows::Rows;
use crate::engine::{Change, EngineError};
use crate::row::{self, DamagedRow};
use crate::store::{LoadError, Store};

/// A request that waits for its turn.
#[derive(Debug)]
pub struct Item {
    /// Repeated with the answer.
    pub tag: u64,
    /// What is asked.
    pub request: Request,
    /// Monotonic microseconds at which nobody waits any more; `u64::MAX`: never.
    pub deadline: u64,
}

impl Item {
    /// What it takes in a queue, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        let ask = match &self.request.ask {
            Ask::Merge { record } => record.0.len(),
            Ask::Put(put) => put.value.as_ref().map_or(0, Bytes::len) + (put.seen.entries.len() + put.ids.len()) * 32,
            Ask::Stamp { .. } | Ask::Read => 0,
        };
        size_of::<Self>() + self.request.place.tenant.bytes().len() + self.request.place.key.bytes().len() + ask
    }
}

/// Answers, each with the tag of its request.
pub type Answers = Vec<(u64, Outcome)>;

/// Takes answers. Called from the threads that drive shards: must not block.
pub trait Deliver: Send + Sync + 'static {
    /// Takes some answers: of all that one submission waits for, each comes once, in any order, in any number of calls.
    fn deliver(&self, answers: Answers);
}

/// Requests that were submitted together and wait for one shard. Dropped unanswered, it answers that the node has stopped.
pub struct Group {
    items: Vec<Item>,
    to: Arc<dyn Deliver>,
}

impl Group {
    /// Requests whose answers `to` takes.
    pub fn new(items: Vec<Item>, to: Arc<dyn Deliver>) -> Self {
        Self { items, to }
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True without requests.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What they take in a queue, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        self.items.iter().map(Item::bytes).sum()
    }

    /// Answers every one of them with this error.
    pub fn refuse(mut self, error: &ReplicaError) {
        self.answer_all(error);
    }

    fn answer_all(&mut self, error: &ReplicaError) {
        if !self.items.is_empty() {
            let items = std::mem::take(&mut self.items);
            self.to.deliver(items.into_iter().map(|item| (item.tag, Err(error.clone()))).collect());
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.answer_all(&ReplicaError::Broken("the node has stopped".to_owned()));
    }
}

/// Answers on their way to whoever takes them.
pub type Parcel = (Arc<dyn Deliver>, Answers);

/// What came of a batch.
#[derive(Default)]
pub struct Applied {
    /// May leave at once.
    pub ready: Vec<Parcel>,
    /// May leave when a sync has succeeded that was begun after this batch was applied.
    pub gated: Vec<Parcel>,
    /// To be told to [`Shard::synced`] after that sync.
    pub generation: u64,
}

/// Most batches whose rows are remembered apart as not synced yet.
const UNSYNCED_BATCHES: usize = 64;

/// The rows of one shard that have been written and not yet synced.
#[derive(Debug)]
pub struct Shard {
    /// Counts the batches written.
    written: u64,
    /// Rows of each batch that is not known to be synced, oldest first, with the batch's generation.
    unsynced: VecDeque<(u64, HashMap<Bytes, usize>)>,
    at_hand: Rows,
    /// What [`Store::swept`] said when `at_hand` was last in order.
    swept: u64,
}

/// The state of one row within a batch.
struct Slot {
    row: Bytes,
    birth: u64,
    /// What stands, once it was decoded.
    record: Option<Record>,
    /// Its bytes, when they are at hand.
    encoded: Option<Encoded>,
    /// False while `encoded` is as it came from the disk, unchecked.
    decoded: bool,
    /// Written before, not yet synced.
    dirty: bool,
    changed: bool,
    /// Came from the engine: not at hand yet.
    fetched: bool,
}

impl Shard {
    /// A shard with nothing written, that keeps so many bytes of rows at hand.
    pub fn new(row_cache: usize) -> Self {
        Self { written: 0, unsynced: VecDeque::new(), at_hand: Rows::new(row_cache), swept: 0 }
    }

    /// Every batch up to this generation is durable.
    pub fn synced(&mut self, generation: u64) {
        while self.unsynced.front().is_some_and(|(written, _)| *written <= generation) {
            self.unsynced.pop_front();
        }
    }

    fn is_dirty(&self, row: &Bytes) -> bool {
        self.unsynced.iter().any(|(_, rows)| rows.contains_key(row))
    }

    /// Answers the requests of some groups in order. What they change is written as one batch; several requests to one key
    /// see each other's effect. `wall` is the node's time in microseconds since 1970, `monotonic` that of the deadlines.
    pub fn apply(
        &mut self,
        store: &Store,
        durability: Durability,
        groups: Vec<Group>,
        wall: u64,
        monotonic: u64,
    ) -> Applied {
        let swept = store.swept();
        if std::mem::replace(&mut self.swept, swept) != swept {
            self.at_hand.clear();
        }
        let mut batch = Batch::new(self, store, wall, groups.iter().map(Group::len).sum());
        let mut answered: Vec<(Group, Vec<Answered>)> = Vec::with_capacity(groups.len());
        for group in groups {
            let outcomes = group.items.iter().map(|item| batch.answer(item, monotonic)).collect();
            answered.push((group, outcomes));
        }
        let failed = batch.write().err();
        if let Some(error) = &failed {
            batch.shard.at_hand.clear();
            for (group, outcomes) in &mut answered {
                batch.take_back(&group.items, outcomes, error);
            }
        }
        let gate = durability == Durability::Sync && !Fault::AcknowledgeBeforeSync.is_on();
        let mut applied = Applied::default();
        for (group, outcomes) in answered {
            batch.hand_out(group, outcomes, gate, &mut applied);
        }
        let Batch { rows, slots, .. } = batch;
        if failed.is_none() {
            for slot in &slots {
                if slot.changed || slot.fetched {
                    self.at_hand.keep(&slot.row, slot.birth, slot.encoded.as_ref());
                }
            }
            if durability == Durability::Sync {
                self.remember(rows, &slots);
            }
        }
        applied.generation = self.written;
        applied
    }

    fn remember(&mut self, mut rows: HashMap<Bytes, usize>, slots: &[Slot]) {
        rows.retain(|_, slot| slots[*slot].changed);
        if rows.is_empty() {
            return;
        }
        self.written += 1;
        if self.unsynced.len() >= UNSYNCED_BATCHES
            && let Some((generation, newest)) = self.unsynced.back_mut()
        {
            // Syncs lag, or fail: rows stay known as not synced, a little longer than need be.
            newest.extend(rows);
            *generation = self.written;
            return;
        }
        self.unsynced.push_back((self.written, rows));
    }
}

/// An outcome, and the slot of the row that it reveals.
type Answered = (Outcome, Option<usize>);

/// One batch at work.
struct Batch<'a> {
    shard: &'a mut Shard,
    store: &'a Store,
    wall: u64,
    rows: HashMap<Bytes, usize>,
    slots: Vec<Slot>,
    /// Row keys are cut from here: one allocation for many.
    keys: BytesMut,
}

impl<'a> Batch<'a> {
    fn new(shard: &'a mut Shard, store: &'a Store, wall: u64, requests: usize) -> Self {
        // 48 bytes: token, lengths, and a tenant and a key of usual length.
        let keys = BytesMut::with_capacity(requests * 48);
        Self { shard, store, wall, rows: HashMap::with_capacity(requests), slots: Vec::with_capacity(requests), keys }
    }

    fn answer(&mut self, item: &Item, monotonic: u64) -> Answered {
        if item.deadline <= monotonic {
            return (Err(ReplicaError::Late), None);
        }
        let slot = match self.slot(&item.request) {
            Ok(slot) => slot,
            Err(error) => return (Err(error), None),
        };
        // A stamp is a hint about where other writes stand: it reveals nothing that could be missed.
        let revealed = (!matches!(item.request.ask, Ask::Stamp { .. })).then_some(slot);
        (self.answer_in(slot, &item.request.ask), revealed)
    }

    fn answer_in(&mut self, slot: usize, ask: &Ask) -> Outcome {
        let slot = &mut self.slots[slot];
        match ask {
            Ask::Stamp { write_id } => slot.stamp(write_id),
            Ask::Put(put) => slot.put(put, self.store, self.wall),
            Ask::Merge { record } => slot.merge(record, self.wall),
            Ask::Read => slot.read(),
        }
    }

    /// Finds the row's slot, or loads it.
    fn slot(&mut self, request: &Request) -> Result<usize, ReplicaError> {
        self.keys.reserve(row::key_len(&request.place));
        row::put_key(&request.place, &mut self.keys);
        let row = self.keys.split().freeze();
        if let Some(slot) = self.rows.get(&row) {
            return Ok(*slot);
        }
        let slot = Slot::load(row.clone(), self.shard, self.store)?;
        self.slots.push(slot);
        self.rows.insert(row, self.slots.len() - 1);
        Ok(self.slots.len() - 1)
    }

    fn write(&mut self) -> Result<(), EngineError> {
        let mut bytes = 0;
        let mut changed = 0;
        for slot in self.slots.iter_mut().filter(|slot| slot.changed) {
            bytes += slot.encoded().as_ref().map_or(0, row::envelope_len);
            changed += 1;
        }
        if changed == 0 {
            return Ok(());
        }
        let mut values = BytesMut::with_capacity(bytes);
        let mut batch: Vec<Change> = Vec::with_capacity(changed);
        for slot in self.slots.iter().filter(|slot| slot.changed) {
            let Some(encoded) = &slot.encoded else { continue };
            row::put_envelope(&slot.row, slot.birth, encoded, &mut values);
            batch.push((slot.row.clone(), Some(values.split().freeze())));
        }
        self.store.engine().write(batch)
    }

    /// The batch could not be written: what would have changed a row has failed, and what only looked at one that others
    /// would have changed looks again.
    fn take_back(&mut self, items: &[Item], outcomes: &mut [Answered], error: &EngineError) {
        for (item, (outcome, _)) in items.iter().zip(outcomes) {
            let Some(slot) = self.rows.get(&row::key(&item.request.place)).copied() else { continue };
            if outcome.is_err() || !self.slots[slot].changed {
                continue;
            }
            *outcome = match &item.request.ask {
                Ask::Put(_) | Ask::Merge { .. } => Err(refusal(error)),
                ask @ (Ask::Stamp { .. } | Ask::Read) => {
                    let row = self.slots[slot].row.clone();
                    match Slot::load(row, self.shard, self.store) {
                        Ok(mut stored) => match ask {
                            Ask::Stamp { write_id } => stored.stamp(write_id),
                            _ => stored.read(),
                        },
                        Err(error) => Err(error),
                    }
                }
            };
        }
    }

    /// Sorts a group's answers into those that may leave and those that wait.
    fn hand_out(&self, mut group: Group, outcomes: Vec<Answered>, gate: bool, applied: &mut Applied) {
        let items = std::mem::take(&mut group.items);
        let waits = |slot: &Option<usize>| gate && slot.is_some_and(|slot| self.slots[slot].reveals_unsynced());
        let mut ready = Answers::with_capacity(items.len());
        let mut gated = Answers::new();
        for (item, (outcome, slot)) in items.into_iter().zip(outcomes) {
            let answers = if waits(&slot) { &mut gated } else { &mut ready };
            answers.push((item.tag, outcome));
        }
        if !ready.is_empty() {
            applied.ready.push((group.to.clone(), ready));
        }
        if !gated.is_empty() {
            applied.gated.push((group.to.clone(), gated));
        }
    }
}

impl Slot {
    fn load(row: Bytes, shard: &mut Shard, store: &Store) -> Result<Self, ReplicaError> {
        let at_hand = shard.at_hand.get(&row);
        let fetched = at_hand.is_none();
        let stored = match at_hand {
            Some(stored) => stored,
            None => store.load(&row).map_err(|error| match error {
                LoadError::Engine(error) => ReplicaError::Broken(error.to_string()),
                LoadError::Damaged(damaged) => report(&damaged),
            })?,
        };
        let (birth, encoded) = stored.map_or((0, None), |(birth, encoded)| (birth, Some(encoded)));
        Ok(Self {
            birth,
            record: None,
            encoded,
            decoded: false,
            dirty: shard.is_dirty(&row),
            changed: false,
            fetched,
            row,
        })
    }

    fn decode(&mut self) -> Result<(), ReplicaError> {
        if !self.decoded {
            self.record =
                self.encoded.as_ref().map(Encoded::decode).transpose().map_err(|error| self.damaged(error))?;
            self.decoded = true;
        }
        Ok(())
    }

    fn damaged(&self, error: Damaged) -> ReplicaError {
        report(&row::damaged(&self.row, error.to_string()))
    }

    fn read(&mut self) -> Outcome {
        if !self.decoded
            && let Some(Err(error)) = self.encoded.as_ref().map(Encoded::check)
        {
            return Err(self.damaged(error));
        }
        Ok(Answer::Record(self.encoded()))
    }

    fn reveals_unsynced(&self) -> bool {
        self.dirty || self.changed
    }

    /// The record's bytes.
    fn encoded(&mut self) -> Option<Encoded> {
        if self.encoded.is_none() {
            self.encoded = self.record.as_ref().map(Record::encode);
        }
        self.encoded.clone()
    }

    fn is_register(&self) -> Option<bool> {
        self.record.as_ref().map(|record| matches!(record, Record::Register(_)))
    }

    fn set(&mut self, record: Record, encoded: Option<Encoded>) {
        self.record = Some(record);
        self.encoded = encoded;
        self.changed = true;
    }

    fn stamp(&mut self, write_id: &WriteId) -> Outcome {
        self.decode()?;
        match &self.record {
            None => Ok(Answer::Stamp { stands: None, known: None }),
            Some(Record::Register(register)) => {
                Ok(Answer::Stamp { stands: Some(register.stamp), known: register.knows(write_id) })
            }
            Some(Record::Siblings(_)) => Err(ReplicaError::WrongMode),
        }
    }

    fn merge(&mut self, encoded: &Encoded, wall: u64) -> Outcome {
        self.decode()?;
        let mut incoming =
            encoded.decode().map_err(|error| ReplicaError::Broken(format!("the record to merge: {error}")))?;
        if self.is_register().is_some_and(|register| register != matches!(incoming, Record::Register(_))) {
            return Err(ReplicaError::WrongMode);
        }
        // Expired on both sides, or what the one has forgotten would come back from the other for ever.
        let as_sent = !incoming.expire(wall);
        let first = self.record.is_none();
        let (mut record, changed) =
            Record::merge(self.record.take(), incoming).map_err(|WrongMode| ReplicaError::WrongMode)?;
        if !changed {
            self.record = Some(record);
            return Ok(Answer::Merged { superseded: true });
        }
        record.expire(wall);
        self.set(record, (first && as_sent).then(|| encoded.clone()));
        Ok(Answer::Merged { superseded: false })
    }

    fn put(&mut self, put: &Write, store: &Store, wall: u64) -> Outcome {
        self.decode()?;
        let mut siblings = match &self.record {
            None => Siblings::default(),
            Some(Record::Siblings(siblings)) if siblings.knows(&put.write_id).is_some() => {
                return Ok(self.put_answer(true));
            }
            Some(Record::Siblings(siblings)) => siblings.clone(),
            Some(Record::Register(_)) => return Err(ReplicaError::WrongMode),
        };
        siblings.refuse(put, wall)?;
        if self.birth == 0 {
            self.birth = store.draw_birth().map_err(|error| refusal(&error))?;
        }
        siblings.put(put, store.actor(self.birth));
        let mut record = Record::Siblings(siblings);
        record.expire(wall);
        self.set(record, None);
        Ok(self.put_answer(false))
    }

    fn put_answer(&mut self, applied_already: bool) -> Answer {
        let record = self.encoded().unwrap_or_else(|| Record::Siblings(Siblings::default()).encode());
        Answer::Put { record, applied_already }
    }
}

/// Says once, to the operator, what cannot be read; and tells it the coordinator.
fn report(damaged: &DamagedRow) -> ReplicaError {
    tracing::error!(%damaged, "a stored row cannot be read: restore it from the other replicas");
    ReplicaError::Broken(damaged.to_string())
}

/// What a coordinator is told of an engine's failure.
pub fn refusal(error: &EngineError) -> ReplicaError {
    match error {
        EngineError::Full => ReplicaError::StorageFull,
        EngineError::Broken(reason) => ReplicaError::Broken(reason.clone()),
    }
}

#[cfg(test)]
mod tests;
