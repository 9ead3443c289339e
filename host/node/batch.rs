//! The effects of requests on rows: a batch of requests goes in; a batch of rows to write and the answers come out.
//!
//! Everything is synchronous. A row belongs to one [`Shard`], which one thread runs, and that replaces locks on keys. The most
//! important rule is the gate: an answer is sent only when everything that it reveals is durable. An answer that reveals a row
//! with an unsynced write is returned as *gated*, with the generation whose sync it has to wait for. That applies to a read, and
//! to a merge that changed nothing, as well as to the write itself.

mod digests;
mod names;
mod rows;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use witan_kernel::digest::Row;
use witan_kernel::fault::Fault;
use witan_kernel::fence::Fences;
use witan_kernel::name::WriteId;
pub use witan_kernel::port::Durability;
use witan_kernel::record::{Absorbed, Damaged, Encoded, Record, WrongMode};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};
use witan_kernel::siblings::{Shown, Siblings, Write};

use self::rows::RowCache;
use crate::engine::{Change, EngineError};
use crate::row::{self, DamagedRow};
use crate::store::{BIRTHS, LoadError, Store};

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
}

impl Item {
    /// Its approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let ask = match &self.request.ask {
            Ask::Merge { record } => record.0.len(),
            Ask::Put(put) => put.bytes(),
            Ask::Stamp { .. } | Ask::Read | Ask::Names { .. } | Ask::Unpin { .. } => 0,
        };
        size_of::<Self>() + self.request.place.tenant.bytes().len() + self.request.place.key.bytes().len() + ask
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

/// One row while a batch is applied.
struct BatchRow {
    key: Bytes,
    birth: u64,
    /// The record, once it was decoded.
    record: Option<Record>,
    /// The encoded record, unless it has changed since.
    encoded: Option<Encoded>,
    /// Whether `record` is set from `encoded`. If not, `encoded` is as stored, unverified.
    decoded: bool,
    /// It was written before, and is not synced yet.
    dirty: bool,
    changed: bool,
    /// It was read from the engine, and is not cached yet.
    fetched: bool,
    /// What a digest had of it before it was changed, if digests are kept; the inner `None`: there was no record.
    before: Option<Option<Row>>,
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
        if item.request.epoch < fences.least(&item.request.place.tenant) && !Fault::FenceIgnored.is_on() {
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
        self.rows.push(BatchRow::load(key.clone(), self.shard, self.store)?);
        self.index.insert(key, self.rows.len() - 1);
        Ok(self.rows.len() - 1)
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
            let Some(encoded) = &row.encoded else { continue };
            row::put_envelope(&row.key, row.birth, encoded, &mut values);
            batch.push((row.key.clone(), Some(values.split().freeze())));
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
                Ask::Put(_) | Ask::Merge { .. } | Ask::Names { .. } | Ask::Unpin { .. } => Err(refusal(error)),
                ask @ (Ask::Stamp { .. } | Ask::Read) => {
                    let key = self.rows[at].key.clone();
                    match BatchRow::load(key, self.shard, self.store) {
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

impl BatchRow {
    fn load(key: Bytes, shard: &mut Shard, store: &Store) -> Result<Self, ReplicaError> {
        let cached = shard.cache.get(&key);
        let fetched = cached.is_none();
        let stored = match cached {
            Some(stored) => stored,
            None => store.load(&key).map_err(|error| match error {
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
            dirty: shard.is_dirty(&key),
            changed: false,
            fetched,
            before: None,
            key,
        })
    }

    fn decode(&mut self) -> Result<(), ReplicaError> {
        if !self.decoded {
            match self.encoded.as_ref().map(Encoded::decode).transpose() {
                Ok(record) => self.record = record,
                Err(error) => return Err(self.damaged(error)),
            }
            self.decoded = true;
        }
        Ok(())
    }

    /// A row that cannot be read is not cached: whatever damaged it on its way from the disk may not do so again.
    fn damaged(&mut self, error: Damaged) -> ReplicaError {
        self.fetched = false;
        report(&row::damaged(&self.key, error.to_string()))
    }

    fn read(&mut self) -> Outcome {
        if !self.decoded
            && let Some(Err(error)) = self.encoded.as_ref().map(Encoded::check)
        {
            return Err(self.damaged(error));
        }
        Ok(Answer::Record(self.encoded()))
    }

    /// The most bytes that the record in the answer may have, before the request is carried out.
    fn answer_bytes(&mut self, ask: &Ask) -> usize {
        let asked = match ask {
            Ask::Put(put) => put.bytes(),
            Ask::Read | Ask::Names { .. } => 0,
            Ask::Stamp { .. } | Ask::Merge { .. } | Ask::Unpin { .. } => return 0,
        };
        self.encoded().map_or(0, |record| record.0.len()) + asked
    }

    fn reveals_unsynced(&self) -> bool {
        self.dirty || self.changed
    }

    /// The encoded record; `None` if there is none.
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
                let stands =
                    Some(register.stamp).filter(|_| register.value.is_some() || !Fault::TombstoneHasNoStamp.is_on());
                let known = register.knows(write_id).filter(|_| !Fault::StampNotRemembered.is_on());
                Ok(Answer::Stamp { stands, known })
            }
            Some(Record::Siblings(_)) => Err(ReplicaError::WrongMode),
        }
    }

    fn merge(&mut self, encoded: &Encoded, wall: u64) -> Outcome {
        self.decode()?;
        let incoming = encoded
            .decode()
            .map_err(|error| ReplicaError::Broken(format!("the record to merge is invalid: {error}")))?;
        if self.is_register().is_some_and(|register| register != matches!(incoming, Record::Register(_))) {
            return Err(ReplicaError::WrongMode);
        }
        let open_before = match &self.record {
            Some(Record::Siblings(siblings)) => siblings.open_pins(),
            _ => Vec::new(),
        };
        let (record, absorbed) =
            Record::absorb(self.record.take(), &incoming, wall).map_err(|WrongMode| ReplicaError::WrongMode)?;
        let told = match (&record, &incoming) {
            (Record::Siblings(stored), Record::Siblings(sent)) => stored.lacking_in(sent, &open_before),
            _ => Vec::new(),
        };
        match absorbed {
            Absorbed::Nothing => self.record = Some(record),
            Absorbed::AsSent => self.set(record, Some(encoded.clone())),
            Absorbed::Changed => self.set(record, None),
        }
        Ok(Answer::Merged { superseded: absorbed == Absorbed::Nothing, told })
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
        let broken = broken_context(put, &siblings);
        let put = broken.as_ref().unwrap_or(put);
        if self.birth == 0 || (store.is_outlived(self.birth) && siblings.births_of(&store.id()) < BIRTHS) {
            self.birth = store.draw_birth();
        }
        // Before the write and not after it: the answer names everything that this write supersedes, and is what is stored, encoded once.
        siblings.names.trim(wall);
        siblings.put(put, store.actor(self.birth));
        if Fault::AnswerTrimmed.is_on() {
            siblings.names.trim(wall);
        }
        self.set(Record::Siblings(siblings), None);
        Ok(self.put_answer(false))
    }

    fn put_answer(&mut self, applied_already: bool) -> Answer {
        let record = self.encoded().unwrap_or_else(|| Record::Siblings(Siblings::default()).encode());
        Answer::Put { record, applied_already }
    }
}

/// [`Fault::PutForgetsContext`] and [`Fault::PutDropsAll`]: the put with another context than the client's.
fn broken_context(put: &Write, stored: &Siblings) -> Option<Write> {
    if Fault::PutForgetsContext.is_on() {
        return Some(Write { seen: Default::default(), ids: Vec::new(), ..put.clone() });
    }
    Fault::PutDropsAll.is_on().then(|| {
        let Shown { seen, ids, newest } = stored.context_claims();
        Write { seen, ids, newest, ..put.clone() }
    })
}

/// Logs a damaged row for the operator, and returns the error for the coordinator.
fn report(damaged: &DamagedRow) -> ReplicaError {
    tracing::error!(%damaged, "a stored row cannot be read: restore it from the other replicas");
    ReplicaError::Broken(damaged.to_string())
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
