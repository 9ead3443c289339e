//! A store: an engine with an identity, and the source of births, which make actors unique.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::Randomness;
use witan_kernel::record::Encoded;
use witan_kernel::siblings::Actor;
use witan_kernel::sync::lock;

use crate::engine::{Engine, EngineError};
use crate::row::{self, DamagedRow};

/// The name of the engine's note that holds the identity.
const IDENTITY: &str = "identity";
/// The version of the identity's encoding.
const CODEC: u8 = 1;

/// An open store.
pub struct Store {
    engine: Box<dyn Engine>,
    id: StoreId,
    births: Mutex<Births>,
    /// How many times rows were changed without going through the shards.
    bypassed: AtomicU64,
}

/// Births are boot << 32 | n. A boot is durable before a birth is drawn from it.
struct Births {
    boot: u64,
    drawn: u32,
}

/// Why a store cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store contains data, but its identity cannot be read. Opening it under a new one could reuse births that were lost.
    #[error(
        "the store's identity is damaged: {0}; restore the store from a backup, or wipe its folder to refill it from the other nodes"
    )]
    Identity(&'static str),
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
    /// Opens the store in an engine. An empty one gets a new id; each opening is a new boot, durably recorded. The node's id is used
    /// only by a simulated fault.
    pub fn open(engine: Box<dyn Engine>, node: &NodeId, randomness: &dyn Randomness) -> Result<Self, OpenError> {
        let (id, boot) = match engine.note(IDENTITY)? {
            Some(bytes) => decode_identity(&bytes)?,
            None if is_empty(&*engine)? => (draw_id(node, randomness), 0),
            None => return Err(OpenError::Identity("it is missing, and there are stored records")),
        };
        let boot = boot + 1;
        engine.set_note(IDENTITY, encode_identity(id, boot))?;
        Ok(Self { engine, id, births: Mutex::new(Births { boot, drawn: 0 }), bypassed: AtomicU64::new(0) })
    }

    /// Reports that rows were changed without going through the shards that own them, which makes the shards drop their caches.
    pub(crate) fn note_bypass(&self) {
        self.bypassed.fetch_add(1, Ordering::Release);
    }

    /// How many times that was reported. A shard that finds another number than before must drop its cached rows.
    pub(crate) fn bypasses(&self) -> u64 {
        self.bypassed.load(Ordering::Acquire)
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
    pub fn draw_birth(&self) -> Result<u64, EngineError> {
        let mut births = self.births();
        if births.drawn == u32::MAX {
            let boot = births.boot + 1;
            self.engine.set_note(IDENTITY, encode_identity(self.id, boot))?;
            *births = Births { boot, drawn: 0 };
        }
        births.drawn += 1;
        Ok(births.boot << 32 | u64::from(births.drawn))
    }

    /// The actor of this store under a birth.
    pub fn actor(&self, birth: u64) -> Actor {
        Actor { store: self.id, birth }
    }

    /// The content of a row: birth (0: none was drawn) and record. The record's checksum is left to the caller.
    pub fn load(&self, row: &Bytes) -> Result<Option<(u64, Encoded)>, LoadError> {
        let Some(value) = self.engine.get(row)? else { return Ok(None) };
        Ok(Some(row::open_envelope(row, &value)?))
    }

    fn births(&self) -> MutexGuard<'_, Births> {
        lock(&self.births)
    }
}

fn is_empty(engine: &dyn Engine) -> Result<bool, EngineError> {
    let past_every_row = Bytes::from_static(&[0xff; 9]);
    Ok(engine.scan(Bytes::new()..past_every_row, 1)?.is_empty())
}

fn draw_id(node: &NodeId, randomness: &dyn Randomness) -> StoreId {
    if Fault::ActorReusedAfterWipe.is_on() {
        let mut id = [0; 16];
        id.iter_mut().zip(node.as_str().bytes()).for_each(|(id, byte)| *id = byte);
        return StoreId(id);
    }
    StoreId(randomness.sixteen())
}

fn encode_identity(id: StoreId, boot: u64) -> Bytes {
    let mut bytes = vec![CODEC];
    bytes.extend_from_slice(&id.0);
    bytes.extend_from_slice(&boot.to_le_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Bytes::from(bytes)
}

fn decode_identity(bytes: &[u8]) -> Result<(StoreId, u64), OpenError> {
    let whole: &[u8; 29] = bytes.try_into().map_err(|_| OpenError::Identity("it does not have 29 bytes"))?;
    let (content, checksum) = whole.split_at(25);
    if content[0] != CODEC {
        return Err(OpenError::Identity("it has an unknown codec version"));
    }
    if crc32fast::hash(content).to_le_bytes() != checksum {
        return Err(OpenError::Identity("its checksum does not match"));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&content[1..17]);
    let mut boot = [0; 8];
    boot.copy_from_slice(&content[17..]);
    Ok((StoreId(id), u64::from_le_bytes(boot)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use witan_kernel::fault;

    use super::*;
    use crate::engine::simulated::Disk;

    #[derive(Default)]
    struct Dice(AtomicU8);

    impl Randomness for Dice {
        fn sixteen(&self) -> [u8; 16] {
            [self.0.fetch_add(1, Ordering::Relaxed); 16]
        }
    }

    fn open(disk: &Disk, dice: &Dice) -> Store {
        Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), dice).unwrap()
    }

    #[test]
    fn the_id_stays_and_births_never_repeat() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let mut births = Vec::new();
        let id = open(&disk, &dice).id();
        for _ in 0..3 {
            let store = open(&disk, &dice);
            assert_eq!(store.id(), id);
            births.extend((0..3).map(|_| store.draw_birth().unwrap()));
            disk.crash();
        }
        assert!(births.is_sorted_by(|a, b| a < b), "{births:?}");

        let store = open(&disk, &dice);
        store.births().drawn = u32::MAX;
        births.push(store.draw_birth().unwrap());
        births.push(open(&disk, &dice).draw_birth().unwrap());
        assert!(births.is_sorted_by(|a, b| a < b), "{births:?}");
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
        let actor = store.actor(store.draw_birth().unwrap());
        disk.wipe();
        let store = open(&disk, &dice);
        fault::set(None);
        assert_eq!(store.actor(store.draw_birth().unwrap()), actor);
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
