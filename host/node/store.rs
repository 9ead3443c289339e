//! A store: an engine with an identity, the source of births, which make actors unique, and the number of commits, which shows whether
//! the disk has lost any.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

use bytes::Bytes;
use tokio::sync::Notify;
use witan_kernel::condition::Condition;
use witan_kernel::fault::Fault;
use witan_kernel::fence::Fences;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::Randomness;
use witan_kernel::record::Encoded;
use witan_kernel::siblings::Actor;
use witan_kernel::sync::lock;

pub(crate) use self::clears::Cursor;
use self::clears::{Clears, marks};
pub(crate) use self::digests::{digest, digest_stored};
use self::identity::{IDENTITY, Identity, Noted, belongs_to, draw_id};
use self::served::Served;
use crate::engine::{Change, Engine, EngineError};
use crate::row::{self, DamagedRow};

mod clears;
mod digests;
mod identity;
mod noted;
mod served;

/// The name of the engine's note that holds the fences.
const FENCES: &str = "fences";

/// An open store.
pub struct Store {
    engine: Box<dyn Engine>,
    id: StoreId,
    boot: u64,
    /// The node has learned that the metadata has another store on record.
    not_on_record: AtomicBool,
    /// The collection of tombstones has begun.
    aged: AtomicBool,
    /// What the identity on disk says of it. Held while it is written.
    noted: Mutex<Noted>,
    /// Held while a fence is raised, before `noted` and `fences`.
    raising: Mutex<()>,
    /// Read for as long as a batch is applied: a fence is raised between two batches of every shard.
    fences: RwLock<Fences>,
    /// Held while rows are dropped for a placement change, before `raising`, `noted` and `fences`.
    clears: Mutex<Clears>,
    digests: digests::Kept,
    births: Mutex<Births>,
    /// How many times rows were changed without going through the shards.
    bypassed: AtomicU64,
    /// How many batches all shards have committed durably, since the store was made.
    commit: AtomicU64,
    condition: Mutex<Condition>,
    /// Woken when the condition changes. Those that are gone are removed when another comes, so there are as many as lanes.
    watchers: Mutex<Vec<Weak<Notify>>>,
    served: Served,
}

/// Births are series << 24 | n, n from 1. A series is 40 random bits, drawn anew whenever the store is opened: whatever the disk has
/// forgotten, or a copy of it repeats, no birth is drawn twice.
struct Births {
    series: u64,
    drawn: u64,
}

/// Bits of a birth's number within its series.
const BIRTH_BITS: u32 = 24;

/// Most births of one store in one record. A record draws a new birth when it is first written after each start of its node, and each
/// birth stays in its version vector for ever (about 30 bytes). After this many it goes on counting under the last one, so that vectors
/// and contexts stay small: with five replicas, 40 entries.
pub const BIRTHS: usize = 8;

/// Why a store cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store contains data, but its identity cannot be read. Opening it under a new one could reuse births that were lost.
    #[error(
        "the store's identity is damaged: {0}; move its folder aside, start the node on an empty one, and fill it from the other nodes \
         with `witan repair`"
    )]
    Identity(&'static str),
    /// It is the store of another node: coordinators would take its records for those of this one.
    #[error(
        "the folder belongs to node {theirs:?}, and this is node {ours}: start it with --id {theirs}, or give node {ours} a folder of its \
         own (--data-dir)"
    )]
    OfAnotherNode {
        /// The node whose store it is.
        theirs: String,
        /// The node that was to open it.
        ours: NodeId,
    },
}

/// Why a row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The row is damaged.
    #[error(transparent)]
    Damaged(#[from] DamagedRow),
}

impl Store {
    /// Opens the store in an engine. An empty one gets a new id; each opening is a new boot, durably recorded. A store knows its node, and
    /// is opened for no other.
    pub fn open(engine: Box<dyn Engine>, node: &NodeId, randomness: &dyn Randomness) -> Result<Self, OpenError> {
        let identity = match engine.note(IDENTITY)? {
            Some(bytes) => Identity::decode(&bytes)?,
            None if is_empty(&*engine)? => Identity { id: draw_id(node, randomness), boot: 0, noted: Noted::NOTHING },
            None => return Err(OpenError::Identity("it is missing, and there are stored records")),
        };
        belongs_to(&*engine, node)?;
        let identity = Identity { boot: identity.boot.saturating_add(1), ..identity };
        engine.set_note(IDENTITY, identity.encode())?;
        let Identity { id, boot, noted } = identity;
        let fences = fences(&*engine)?;
        let clears = Mutex::new(Clears::after(marks(&*engine)?));
        let series = if Fault::ActorReusedAfterWipe.is_on() { boot } else { draw_series(randomness) };
        let mut commit: u64 = 0;
        for shard in 0..SHARDS {
            commit = commit.saturating_add(shard_commits(&*engine, shard)?);
        }
        let (births, condition) = (Mutex::new(Births { series, drawn: 0 }), Mutex::new(Condition::Serving));
        let (commit, watchers) = (AtomicU64::new(commit), Mutex::default());
        Ok(Self {
            engine,
            id,
            boot,
            not_on_record: AtomicBool::new(!noted.on_record),
            aged: AtomicBool::new(noted.aged),
            noted: Mutex::new(noted),
            raising: Mutex::default(),
            fences: RwLock::new(fences),
            clears,
            digests: digests::Kept::default(),
            births,
            bypassed: AtomicU64::new(0),
            commit,
            condition,
            watchers,
            served: Served::default(),
        })
    }

    /// What coordinators have asked of it.
    pub fn served(&self) -> &Served {
        &self.served
    }

    /// Raises the fence of a tenant, or of all tenants, to `epoch`: when this returns, it is durable, and no request that was not applied
    /// before is applied under an earlier epoch. Blocks. On an error it may be raised or not.
    pub fn raise_fence(&self, tenant: Option<&TenantId>, epoch: u64) -> Result<(), EngineError> {
        let _one_at_a_time = lock(&self.raising);
        let mut raised = self.fences().clone();
        if !raised.raise(tenant, epoch) {
            return Ok(());
        }
        // First, so that a program of before never opens a store whose fences it would ignore.
        self.note(&mut lock(&self.noted), |noted| Noted { fenced: true, ..noted })?;
        if !Fault::FenceVolatile.is_on() {
            self.engine.set_note(FENCES, raised.encode()).inspect_err(|error| self.failed(error))?;
        }
        *self.fences.write().unwrap_or_else(PoisonError::into_inner) = raised;
        Ok(())
    }

    /// The fences. As long as the guard is kept, none is raised.
    pub fn fences(&self) -> RwLockReadGuard<'_, Fences> {
        self.fences.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many batches the store has committed durably: a number that decreases only if the disk loses what was synced, or is replaced
    /// by an earlier copy.
    pub fn commit(&self) -> u64 {
        self.commit.load(Ordering::Acquire)
    }

    /// This many further batches have become durable.
    pub(crate) fn committed(&self, batches: u64) {
        self.commit.fetch_add(batches, Ordering::AcqRel);
    }

    /// The number of batches that a shard has committed before.
    pub(crate) fn shard_commits(&self, shard: usize) -> Result<u64, EngineError> {
        shard_commits(&*self.engine, shard)
    }

    /// The store's condition.
    pub fn condition(&self) -> Condition {
        lock(&self.condition).clone()
    }

    /// Notified after each change of the store's condition, as long as it is kept. For one waiter.
    pub fn watch(&self) -> Arc<Notify> {
        let watcher = Arc::new(Notify::new());
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(&watcher));
        watcher
    }

    /// Writes a shard's batch with the shard's number of commits, and keeps the store's condition.
    pub(crate) fn write(&self, batch: Vec<Change>, shard: usize, commits: u64) -> Result<(), EngineError> {
        let commits = Bytes::copy_from_slice(&commits.to_le_bytes());
        self.noted(self.engine.write_noting(batch, &commits_note(shard), commits))
    }

    fn noted(&self, written: Result<(), EngineError>) -> Result<(), EngineError> {
        match &written {
            // The usual case costs a look at what is known.
            Ok(()) if *lock(&self.condition) == Condition::Serving => {}
            Ok(()) => self.found(Condition::Serving),
            Err(error) => self.failed(error),
        }
        written
    }

    /// Makes every batch durable, as [`Engine::sync`] does, and keeps the store's condition.
    pub fn sync(&self) -> Result<(), EngineError> {
        // That a sync succeeds says nothing of the room on the disk.
        self.engine.sync().inspect_err(|error| self.failed(error))
    }

    /// Passes rows to `each`, as [`Engine::walk`] does, and keeps the store's condition.
    pub fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError> {
        self.engine.walk(range, each).inspect_err(|error| self.failed(error))
    }

    /// Looks whether a full disk has room again, although nobody writes. Blocks for a short time.
    pub fn look_for_room(&self) {
        if self.condition() == Condition::Full {
            // The error is kept in the condition.
            let _ = self.noted(self.engine.write(Vec::new()));
        }
    }

    /// Keeps what an error of the engine says about the store's condition.
    fn failed(&self, error: &EngineError) {
        self.found(match (self.engine.condition(), error) {
            (Condition::Serving, EngineError::Full) => Condition::Full,
            (Condition::Serving, EngineError::Broken(reason)) => Condition::Failed(reason.clone()),
            (known, _) => known,
        });
    }

    fn found(&self, condition: Condition) {
        let mut kept = lock(&self.condition);
        if condition.is_failed() && Fault::FailureUnreported.is_on() {
            return;
        }
        let next = kept.clone().then(condition);
        if next != *kept {
            report(&next);
            *kept = next;
            drop(kept);
            self.changed();
        }
    }

    /// Wakes the watchers one after the other, in the order in which they came: a simulation runs the same each time.
    fn changed(&self) {
        lock(&self.watchers).retain(|watcher| watcher.upgrade().inspect(|watcher| watcher.notify_one()).is_some());
    }

    /// Reports that rows were changed without going through the shards that own them, which makes the shards drop their caches.
    pub(crate) fn note_bypass(&self) {
        self.bypassed.fetch_add(1, Ordering::Release);
    }

    /// How many times that was reported, or the engine was opened again. A shard that finds another number than before must drop its
    /// cached rows.
    pub(crate) fn bypasses(&self) -> u64 {
        self.bypassed.load(Ordering::Acquire) + self.engine.reopenings()
    }

    /// How often it was opened, this time included.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// The id, drawn when the empty store was first opened.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// The engine that holds the rows.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// A birth that this store has never drawn before and never will again.
    pub fn draw_birth(&self) -> u64 {
        let mut births = self.births();
        births.drawn += 1;
        // A series that is used up ends in the next one: neighbours of 40 random bits are as unlikely to meet as any others.
        if births.drawn >= 1 << BIRTH_BITS {
            *births = Births { series: (births.series + 1) & SERIES, drawn: 1 };
        }
        births.series << BIRTH_BITS | births.drawn
    }

    /// Whether a record that has minted under `birth` should draw a new one for its next event: an event that this process has not seen
    /// may have been minted under it, on another copy of the disk.
    pub fn is_outlived(&self, birth: u64) -> bool {
        birth >> BIRTH_BITS != self.births().series && !Fault::BirthOutlivesBoot.is_on()
    }

    /// The actor of this store under a birth.
    pub fn actor(&self, birth: u64) -> Actor {
        Actor { store: self.id, birth }
    }

    /// The content of a row: birth (0: none was drawn) and record. The record's checksum is left to the caller.
    pub fn load(&self, row: &Bytes) -> Result<Option<(u64, Encoded)>, LoadError> {
        let stored = self.engine.get(row).inspect_err(|error| self.failed(error))?;
        let Some(value) = stored else { return Ok(None) };
        Ok(Some(row::open_envelope(row, &value)?))
    }

    fn births(&self) -> MutexGuard<'_, Births> {
        lock(&self.births)
    }
}

/// Most shards of a store, now or earlier.
pub(crate) const SHARDS: usize = 256;
/// 40 bits.
const SERIES: u64 = (1 << 40) - 1;

fn draw_series(randomness: &dyn Randomness) -> u64 {
    let bytes = randomness.sixteen();
    bytes[..5].iter().fold(0, |series, byte| series << 8 | u64::from(*byte))
}

/// The fences that were raised.
fn fences(engine: &dyn Engine) -> Result<Fences, OpenError> {
    let Some(bytes) = engine.note(FENCES)? else { return Ok(Fences::default()) };
    Fences::decode(&bytes).ok_or(OpenError::Identity("its fences cannot be read"))
}

/// The name of the note that counts a shard's commits. Each shard has one of its own, since only a shard's own batches are ordered.
fn commits_note(shard: usize) -> String {
    format!("commits-{shard}")
}

fn shard_commits(engine: &dyn Engine, shard: usize) -> Result<u64, EngineError> {
    let Some(bytes) = engine.note(&commits_note(shard))? else { return Ok(0) };
    let bytes: [u8; 8] =
        bytes[..].try_into().map_err(|_| EngineError::Broken("the count of commits is damaged".into()))?;
    Ok(u64::from_le_bytes(bytes))
}

fn report(condition: &Condition) {
    match condition {
        Condition::Serving => tracing::info!("the store accepts writes again"),
        Condition::Full => tracing::error!("the disk is full: writes are refused until there is room"),
        Condition::Failed(reason) => {
            tracing::error!(%reason, "the store has failed: check the disk, then restart the node");
        }
    }
}

fn is_empty(engine: &dyn Engine) -> Result<bool, EngineError> {
    let past_every_row = Bytes::from_static(&[0xff; 9]);
    Ok(engine.scan(Bytes::new()..past_every_row, 1)?.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use witan_kernel::fault;

    use super::identity::{NODE, Noted};
    use super::*;
    use crate::engine::simulated::Disk;
    use crate::testing::{Dice, open};

    #[test]
    fn the_id_stays_and_births_never_repeat() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let mut births = BTreeSet::new();
        let id = open(&disk, &dice).id();
        for _ in 0..3 {
            let store = open(&disk, &dice);
            assert_eq!(store.id(), id);
            for _ in 0..3 {
                let birth = store.draw_birth();
                assert!(births.insert(birth) && birth != 0);
                assert!(!store.is_outlived(birth));
            }
            let others = births.iter().filter(|birth| store.is_outlived(**birth)).count();
            assert_eq!(others, births.len() - 3, "those of earlier starts");
            disk.crash();
        }
        let store = open(&disk, &dice);
        store.births().drawn = (1 << BIRTH_BITS) - 2;
        assert!(births.insert(store.draw_birth()) && births.insert(store.draw_birth()), "beyond the end of a series");
    }

    #[test]
    fn fences_are_durable_and_programs_of_before_refuse_a_store_that_has_any() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let codec = |disk: &Disk| disk.open().note(IDENTITY).unwrap().unwrap()[0];
        let tenant = TenantId::new("t").unwrap();
        open(&disk, &dice).raise_fence(Some(&tenant), 7).unwrap();
        disk.crash();
        assert_eq!(codec(&disk), 3);
        let store = open(&disk, &dice);
        assert_eq!((store.fences().least(&tenant), store.is_on_record()), (7, true));
        assert!(store.set_on_record(false));
        store.note_standing();
        store.raise_fence(None, 9).unwrap();
        disk.crash();
        assert_eq!(codec(&disk), 4);
        let store = open(&disk, &dice);
        assert_eq!((store.fences().highest(), store.is_on_record()), (9, false));
        assert!(store.set_on_record(true));
        store.note_standing();
        disk.crash();
        assert_eq!(codec(&disk), 3);
    }

    #[test]
    fn a_store_whose_fences_are_damaged_is_not_opened() {
        let (disk, dice) = (Disk::new(), Dice::default());
        open(&disk, &dice).raise_fence(None, 7).unwrap();
        disk.open().set_note(FENCES, Bytes::from_static(b"damaged")).unwrap();
        let error = Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), &dice).err().unwrap();
        assert!(matches!(error, OpenError::Identity(_)), "{error}");
    }

    #[test]
    fn a_store_is_opened_for_its_own_node_only() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let id = open(&disk, &dice).id();
        let boot = |disk: &Disk| Identity::decode(&disk.open().note(IDENTITY).unwrap().unwrap()).unwrap().boot;
        let before = boot(&disk);
        let refused = Store::open(Box::new(disk.open()), &NodeId::new("n9").unwrap(), &dice).err().unwrap().to_string();
        for part in ["\"n1\"", "n9", "--id n1", "--data-dir"] {
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        }
        assert_eq!(boot(&disk), before, "nothing was changed");
        disk.crash();
        assert_eq!(open(&disk, &dice).id(), id);
    }

    #[test]
    fn a_store_of_before_becomes_that_of_the_node_that_opens_it() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let identity = Identity { id: StoreId([9; 16]), boot: 3, noted: Noted::NOTHING };
        disk.open().set_note(IDENTITY, identity.encode()).unwrap();
        assert_eq!(open(&disk, &dice).id(), identity.id);
        disk.crash();
        assert_eq!(disk.open().note(NODE).unwrap().unwrap(), "n1", "durably");
        assert!(Store::open(Box::new(disk.open()), &NodeId::new("n9").unwrap(), &dice).is_err());
    }

    #[test]
    fn a_copy_of_a_disk_draws_other_births() {
        let (disk, dice) = (Disk::new(), Dice::default());
        drop(open(&disk, &dice));
        let copy = disk.copy();
        let (one, other) = (open(&disk, &dice), open(&copy, &dice));
        assert_eq!(one.id(), other.id());
        assert_ne!(one.draw_birth(), other.draw_birth());
    }

    #[test]
    fn commits_are_counted_durably_for_each_shard() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let store = open(&disk, &dice);
        assert_eq!(store.commit(), 0);
        store.write(Vec::new(), 0, 1).unwrap();
        store.write(Vec::new(), 3, 7).unwrap();
        store.engine().sync().unwrap();
        store.write(Vec::new(), 0, 2).unwrap();
        disk.crash();
        let store = open(&disk, &dice);
        assert_eq!((store.commit(), store.shard_commits(0), store.shard_commits(3)), (8, Ok(1), Ok(7)));
        store.committed(2);
        assert_eq!(store.commit(), 10);
    }

    #[test]
    fn a_wiped_disk_is_another_store() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let id = open(&disk, &dice).id();
        disk.wipe();
        assert_ne!(open(&disk, &dice).id(), id);

        fault::set(Some(Fault::ActorReusedAfterWipe));
        disk.wipe();
        let store = open(&disk, &dice);
        let actor = store.actor(store.draw_birth());
        disk.wipe();
        let store = open(&disk, &dice);
        fault::set(None);
        assert_eq!(store.actor(store.draw_birth()), actor);
    }

    #[test]
    fn a_damaged_identity_is_no_new_store() {
        let (disk, dice) = (Disk::new(), Dice::default());
        drop(open(&disk, &dice));
        let good = disk.open().note(IDENTITY).unwrap().unwrap();
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1;
            disk.open().set_note(IDENTITY, Bytes::from(bytes)).unwrap();
            let node = NodeId::new("n1").unwrap();
            let error = Store::open(Box::new(disk.open()), &node, &dice).err().unwrap();
            assert!(matches!(error, OpenError::Identity(_)), "{error}");
        }
    }
}
