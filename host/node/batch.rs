//! The effects of requests on rows: a batch of requests goes in; a batch of rows to write and the answers come out.
//!
//! Everything is synchronous. A row belongs to one [`Shard`], which one thread runs, and that replaces locks on keys. The most
//! important rule is the gate: an answer is sent only when everything that it reveals is durable. An answer that reveals a row
//! with an unsynced write is returned as *gated*, with the generation whose sync it has to wait for. That applies to a read, and
//! to a merge that changed nothing, as well as to the write itself.

mod digests;
mod one;
mod rows;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use witan_kernel::fault::Fault;
use witan_kernel::fence::Fences;
pub use witan_kernel::port::Durability;
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};

use self::one::BatchRow;
use self::rows::RowCache;
use crate::engine::{Change, EngineError};
use crate::row;
use crate::store::Store;

/// A queued request.
#[derive(Debug)]
pub struct Item {
    /// Returned with the answer.
    pub tag: u64,
    /// The request itself.
    pub request: Request,
    /// When the caller stops waiting, in monotonic microseconds; `u64::MAX`: never.
    pub deadline: u64,
    /// Most bytes of a record that the answer may carry; `usize::MAX`: any number.
    pub largest_answer: usize,
    /// The deadline counts from when it was sent, and not from when it has arrived; or a person sends it, who answers for it.
    pub is_aged: bool,
}

impl Item {
    /// Its approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let ask = match &self.request.ask {
            Ask::Merge { record } => record.0.len(),
            Ask::Put(put) => put.bytes(),
            Ask::Stamp { .. } | Ask::Read | Ask::Names { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => 0,
        };
        size_of::<Self>() + self.request.place.space.bytes().len() + self.request.place.key.bytes().len() + ask
    }
}

/// Answers, each with the tag of its request.
pub type Answers = Vec<(u64, Outcome)>;

/// Receives answers. Called from the threads that run shards, so it must not block.
pub trait Deliver: Send + Sync + 'static {
    /// Receives answers. Each answer of a submission is delivered once, in any order and in any number of calls.
    fn deliver(&self, answers: Answers);
}

/// Requests for one shard that were submitted together. If dropped unanswered, they are answered with an error.
pub struct Group {
    items: Vec<Item>,
    to: Arc<dyn Deliver>,
}

impl Group {
    /// Requests whose answers are delivered to `to`.
    pub fn new(items: Vec<Item>, to: Arc<dyn Deliver>) -> Self {
        Self { items, to }
    }

    /// The number of requests.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Their approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.items.iter().map(Item::bytes).sum()
    }

    /// Answers all of them with this error.
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

/// Answers and where to deliver them.
pub type Parcel = (Arc<dyn Deliver>, Answers);

/// The answers to a batch.
#[derive(Default)]
pub struct Applied {
    /// May be delivered at once.
    pub ready: Vec<Parcel>,
    /// May leave when a sync has succeeded that was begun after this batch was applied.
    pub gated: Vec<Parcel>,
    /// To be passed to [`Shard::synced`] after that sync.
    pub generation: u64,
}

/// Most unsynced batches whose rows are tracked separately.
const UNSYNCED_BATCHES: usize = 64;

/// A shard: its cached rows, and which of its rows were written and are not synced yet.
#[derive(Debug)]
pub struct Shard {
    /// Its number among the shards of its store.
    number: usize,
    /// The number of batches that it has committed since the store was made; `None` until it has written one.
    commits: Option<u64>,
    /// The number of batches written, which is the generation of the last one.
    written: u64,
    /// The generation and the rows of each batch that is not known to be synced, oldest first.
    unsynced: VecDeque<(u64, HashMap<Bytes, usize>)>,
    cache: RowCache,
    /// The value of [`Store::bypasses`] when `cache` was last known to be valid.
    bypasses: u64,
}

impl Shard {
    /// The shard of this number, with nothing written, and a cache of `row_cache` bytes.
    pub fn new(number: usize, row_cache: usize) -> Self {
        Self {
            number,
            commits: None,
            written: 0,
            unsynced: VecDeque::new(),
            cache: RowCache::new(row_cache),
            bypasses: 0,
        }
    }

    /// Every batch up to this generation is durable.
    pub fn synced(&mut self, generation: u64) {
        let generation = if Fault::SyncCoversLater.is_on() { u64::MAX } else { generation };
        while self.unsynced.front().is_some_and(|(written, _)| *written <= generation) {
            self.unsynced.pop_front();
        }
    }

    fn is_dirty(&self, key: &Bytes) -> bool {
        self.unsynced.iter().any(|(_, rows)| rows.contains_key(key))
    }

    /// Applies the requests of some groups in order. All changes are written as one batch, and requests to the same key see each
    /// other's effects. `wall` is the time in microseconds since 1970, `monotonic` the time that deadlines refer to.
    pub fn apply(
        &mut self,
        store: &Store,
        durability: Durability,
        groups: Vec<Group>,
        wall: u64,
        monotonic: u64,
    ) -> Applied {
        // Until the batch is written: whatever is raised or dropped later holds for the next one.
        let fences = store.fences();
        let bypasses = store.bypasses();
        if std::mem::replace(&mut self.bypasses, bypasses) != bypasses {
            self.cache.clear();
        }
        let mut batch = Batch::new(self, store, wall, groups.iter().map(Group::len).sum());
        let mut answered: Vec<(Group, Vec<Answered>)> = Vec::with_capacity(groups.len());
        for group in groups {
            let outcomes = group.items.iter().map(|item| batch.answer(item, monotonic, &fences)).collect();
            answered.push((group, outcomes));
        }
        let failed = batch.write().err();
        drop(fences);
        if let Some(error) = failed.as_ref().filter(|_| !Fault::FailedWriteAnswered.is_on()) {
            batch.shard.cache.clear();
            for (group, outcomes) in &mut answered {
                batch.roll_back(&group.items, outcomes, error);
            }
        }
        let gate = durability == Durability::Sync && !Fault::AcknowledgeBeforeSync.is_on();
        let mut applied = Applied::default();
        for (group, outcomes) in answered {
            batch.gate(group, outcomes, gate, &mut applied);
        }
        let Batch { index, rows, .. } = batch;
        if failed.is_none() {
            for row in rows.iter().filter(|row| row.changed || row.fetched) {
                self.cache.keep(&row.key, row.birth, row.encoded.as_ref());
            }
            if durability == Durability::Sync {
                self.track_unsynced(index, &rows);
            }
        }
        applied.generation = self.written;
        applied
    }

    #[expect(clippy::disallowed_methods, reason = "which rows are kept does not depend on the order")]
    fn track_unsynced(&mut self, mut index: HashMap<Bytes, usize>, rows: &[BatchRow]) {
        index.retain(|_, at| rows[*at].changed);
        if index.is_empty() {
            return;
        }
        self.written += 1;
        if self.unsynced.len() >= UNSYNCED_BATCHES
            && let Some((generation, newest)) = self.unsynced.back_mut()
        {
            // Syncs are slow or failing: the rows of the newest batch are tracked as unsynced for longer than necessary.
            newest.extend(index);
            *generation = self.written;
            return;
        }
        self.unsynced.push_back((self.written, index));
    }
}

/// An outcome, and the position in [`Batch::rows`] of the row that it reveals.
type Answered = (Outcome, Option<usize>);

/// A batch that is being applied.
struct Batch<'a> {
    shard: &'a mut Shard,
    store: &'a Store,
    wall: u64,
    /// Positions in `rows` by row key.
    index: HashMap<Bytes, usize>,
    rows: Vec<BatchRow>,
    /// Row keys are slices of this buffer, which saves allocations.
    keys: BytesMut,
    /// The store keeps digests of its rows.
    digests: bool,
}

impl<'a> Batch<'a> {
    fn new(shard: &'a mut Shard, store: &'a Store, wall: u64, requests: usize) -> Self {
        // 48 bytes: token, length, and a tenant and a key of usual length.
        let keys = BytesMut::with_capacity(requests * 48);
        let digests = store.keeps_digests();
        let (index, rows) = (HashMap::with_capacity(requests), Vec::with_capacity(requests));
        Self { shard, store, wall, index, rows, keys, digests }
    }

    fn answer(&mut self, item: &Item, monotonic: u64, fences: &Fences) -> Answered {
        if item.deadline <= monotonic {
            return (Err(ReplicaError::Late), None);
        }
        if !item.is_aged && self.store.requires_ages() {
            // To a coordinator of before this means that nothing was done.
            return (Err(ReplicaError::StaleEpoch), None);
        }
        if item.request.epoch < fences.least_of(&item.request.place.space) && !Fault::FenceIgnored.is_on() {
            return (Err(ReplicaError::StaleEpoch), None);
        }
        let at = match self.load(&item.request) {
            Ok(at) => at,
            Err(error) => return (Err(error), None),
        };
        if item.largest_answer != usize::MAX && self.rows[at].answer_bytes(&item.request.ask) > item.largest_answer {
            return (Err(ReplicaError::Large), None);
        }
        // A stamp is only a hint about the stamps of other writes: nothing depends on the durability of what it reveals.
        let revealed = (!matches!(item.request.ask, Ask::Stamp { .. })).then_some(at);
        (self.answer_from(at, &item.request.ask), revealed)
    }

    fn answer_from(&mut self, at: usize, ask: &Ask) -> Outcome {
        let row = &mut self.rows[at];
        if self.digests && !matches!(ask, Ask::Stamp { .. } | Ask::Read) {
            row.note_before()?;
        }
        match ask {
            Ask::Stamp { write_id } => row.stamp(write_id),
            Ask::Put(put) => row.put(put, self.store, self.wall),
            Ask::Merge { record } => row.merge(record, self.wall),
            Ask::Read => row.read(),
            Ask::Names { write_id, started } => row.names(write_id, *started),
            Ask::Unpin { write_id } => row.unpin(write_id),
            // Whoever asks takes it for the store on record, of which something is concluded.
            Ask::Collect { .. } if !self.store.is_on_record() => Ok(Answer::Collected { dropped: false }),
            Ask::Collect { expected, grace } => {
                // From now on nothing is stored here that was under way for too long, whether there is something to drop or not.
                self.store.require_ages().map_err(|error| refusal(&error))?;
                row.collect(*expected, *grace, self.wall)
            }
        }
    }

    /// The position of the request's row, which is loaded unless an earlier request of the batch has loaded it.
    fn load(&mut self, request: &Request) -> Result<usize, ReplicaError> {
        self.keys.reserve(row::key_len(&request.place));
        row::put_key(&request.place, &mut self.keys);
        let key = self.keys.split().freeze();
        if let Some(at) = self.index.get(&key) {
            return Ok(*at);
        }
        let row = self.fetch(key.clone())?;
        self.rows.push(row);
        self.index.insert(key, self.rows.len() - 1);
        Ok(self.rows.len() - 1)
    }

    /// The row as it is stored.
    fn fetch(&mut self, key: Bytes) -> Result<BatchRow, ReplicaError> {
        let (cached, dirty) = (self.shard.cache.get(&key), self.shard.is_dirty(&key));
        BatchRow::load(key, cached, dirty, self.store)
    }

    fn write(&mut self) -> Result<(), EngineError> {
        let mut bytes = 0;
        let mut changed = 0;
        for row in self.rows.iter_mut().filter(|row| row.changed) {
            bytes += row.encoded().as_ref().map_or(0, row::envelope_len);
            changed += 1;
        }
        if changed == 0 {
            return Ok(());
        }
        let mut values = BytesMut::with_capacity(bytes);
        let mut batch: Vec<Change> = Vec::with_capacity(changed);
        for row in self.rows.iter().filter(|row| row.changed) {
            // None: it was collected.
            let envelope = row.encoded.as_ref().map(|encoded| {
                row::put_envelope(&row.key, row.birth, encoded, &mut values);
                values.split().freeze()
            });
            batch.push((row.key.clone(), envelope));
        }
        let (number, before) = (self.shard.number, self.shard.commits);
        let commits = before.map_or_else(|| self.store.shard_commits(number), Ok)? + 1;
        let written = self.store.write(batch, number, commits);
        if self.digests {
            self.note_changes(written.as_ref().err());
        }
        written?;
        self.shard.commits = Some(commits);
        Ok(())
    }

    /// The batch could not be written. Requests that change a row have failed; those that only read a row which others would have
    /// changed are answered again from the stored row.
    fn roll_back(&mut self, items: &[Item], outcomes: &mut [Answered], error: &EngineError) {
        for (item, (outcome, _)) in items.iter().zip(outcomes) {
            let Some(at) = self.index.get(&row::key(&item.request.place)).copied() else { continue };
            if outcome.is_err() || !self.rows[at].changed {
                continue;
            }
            *outcome = match &item.request.ask {
                Ask::Put(_) | Ask::Merge { .. } | Ask::Names { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => {
                    Err(refusal(error))
                }
                ask @ (Ask::Stamp { .. } | Ask::Read) => {
                    let key = self.rows[at].key.clone();
                    match self.fetch(key) {
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

    /// Sorts a group's answers into those that may be delivered now and, if `gate`, those that have to wait for a sync.
    fn gate(&self, mut group: Group, outcomes: Vec<Answered>, gate: bool, applied: &mut Applied) {
        let items = std::mem::take(&mut group.items);
        let waits = |revealed: Option<usize>, outcome: &Outcome| {
            let nothing_new = matches!(outcome, Ok(Answer::Merged { superseded: true, .. }));
            gate && revealed.is_some_and(|at| self.rows[at].reveals_unsynced())
                && !(nothing_new && Fault::MergesNotGated.is_on())
                && !(matches!(outcome, Ok(Answer::Record(_))) && Fault::ReadsNotGated.is_on())
        };
        let mut ready = Answers::with_capacity(items.len());
        let mut gated = Answers::new();
        for (item, (outcome, revealed)) in items.into_iter().zip(outcomes) {
            let answers = if waits(revealed, &outcome) { &mut gated } else { &mut ready };
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

/// The error with which a coordinator is answered when the engine fails.
pub fn refusal(error: &EngineError) -> ReplicaError {
    match error {
        EngineError::Full => ReplicaError::StorageFull,
        EngineError::Broken(reason) => ReplicaError::Broken(reason.clone()),
    }
}

#[cfg(test)]
mod tests;
