//! Storage nodes: what outlives their processes, and how they start.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use turmoil::net::TcpListener;
use witan_kernel::name::{NodeId, StoreId, Zone};
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_kernel::record::Record;
use witan_kernel::replica::Place;
use witan_node::batch::Durability;
use witan_node::driver::{Inline, QueueLimits};
use witan_node::engine::simulated::Disk;
use witan_node::row;
use witan_node::server::{self, Guard, Limits};
use witan_node::store::Store;

use crate::oracle::{self, Content};
use crate::world::{Accepted, Dice, SimClock, lock};

const PORT: u16 = 50052;
/// Points of each node on the ring: enough to spread keys over a few nodes, and cheap to compute for each simulation.
const VIRTUAL_NODES: u32 = 16;

/// A storage node's machine: the state that outlives its process.
pub(crate) struct NodeMachine {
    pub(crate) name: String,
    pub(crate) id: NodeId,
    disk: Mutex<Disk>,
    /// A disk that the node does not have at present.
    shelf: Mutex<Disk>,
    pub(crate) clock: SimClock,
    /// The longest duration of a sync at present, milliseconds.
    slowest_sync_ms: Arc<AtomicU64>,
    store: Mutex<Option<Arc<Store>>>,
    /// The rows that were damaged and have not been found in that state again, newest last.
    flipped: Mutex<Vec<Flipped>>,
    dice: Dice,
}

/// A row with a flipped bit.
struct Flipped {
    row: Bytes,
    value: Bytes,
    bit: usize,
}

/// Requests of one lane that a node has accepted and not answered: as few as it allows, so that a permit that is never returned shows.
const LANE_REQUESTS: usize = 256;

/// The pause before a node that could not start is started again.
const STARTED_AGAIN: Duration = Duration::from_millis(100);

/// Different for each node: nobody may take a node's clock for another's, or for a coordinator's.
fn clock_began(name: &str) -> u64 {
    name.bytes().map(|byte| u64::from(byte) * 1_000_003).sum()
}

impl NodeMachine {
    pub(crate) fn new(name: String, dice: &Dice) -> Self {
        Self {
            id: NodeId::new(&name).expect("a node id"),
            disk: Mutex::default(),
            shelf: Mutex::default(),
            clock: SimClock::running_for(clock_began(&name)),
            slowest_sync_ms: Arc::new(AtomicU64::new(5)),
            store: Mutex::default(),
            flipped: Mutex::default(),
            dice: dice.clone(),
            name,
        }
    }

    /// The node, as it goes on record.
    pub(crate) fn on_record(&self) -> StorageNode {
        StorageNode {
            id: self.id.clone(),
            host: self.name.clone(),
            port: PORT,
            virtual_nodes: VIRTUAL_NODES,
            status: NodeStatus::Active,
            zone: Zone::default(),
        }
    }

    pub(crate) async fn run(self: Arc<Self>) -> turmoil::Result {
        let store = loop {
            match Store::open(Box::new(self.disk().open()), &self.id, &self.dice) {
                // It does not start until somebody replaces the disk.
                Err(_) if self.disk().is_damaged() => std::future::pending().await,
                // It ends, and is started again, until the disk can be used.
                Err(_) if self.disk().is_failing() => tokio::time::sleep(STARTED_AGAIN).await,
                store => break Arc::new(store?),
            }
        };
        *lock(&self.store) = Some(Arc::clone(&store));
        let (dice, slowest) = (self.dice.clone(), Arc::clone(&self.slowest_sync_ms));
        let disk = self.disk();
        let sync_takes = Box::new(move || {
            disk.begin_sync();
            dice.millis(1, slowest.load(Ordering::Relaxed).max(1))
        });
        let clock = self.clock.clone();
        let driver = Inline::start(store, Durability::Sync, QueueLimits::default(), clock.clone(), sync_takes);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
            Some((accepted, listener))
        });
        let id = self.id.clone();
        let (limits, guard) = (Limits { lane_requests: LANE_REQUESTS, ..Limits::default() }, Guard::default());
        server::serve(incoming, id, Arc::new(driver), clock, limits, guard, std::future::pending()).await?;
        Ok(())
    }

    /// Its process has ended.
    pub(crate) fn ended(&self) {
        *lock(&self.store) = None;
    }

    pub(crate) fn disk(&self) -> Disk {
        lock(&self.disk).clone()
    }

    /// Puts a copy of what is synced on the shelf.
    pub(crate) fn copy_disk(&self) {
        *lock(&self.shelf) = self.disk().copy();
    }

    /// Exchanges its disk for the one on the shelf. The node must be down.
    pub(crate) fn swap_disk(&self) {
        std::mem::swap(&mut *lock(&self.disk), &mut *lock(&self.shelf));
    }

    /// The id of its present store; `None` while it is down.
    pub(crate) fn store_id(&self) -> Option<StoreId> {
        lock(&self.store).as_ref().map(|store| store.id())
    }

    pub(crate) fn set_slowest_sync(&self, ms: u64) {
        self.slowest_sync_ms.store(ms, Ordering::Relaxed);
    }

    /// What is on its disk at a place, synced or not.
    pub(crate) fn content(&self, place: &Place) -> Result<Option<Content>, String> {
        let row = oracle::row(place.token, place.space.bytes(), place.key.bytes());
        self.disk().peek(&row).map(|value| oracle::read(&value)).transpose()
    }

    /// Changes the record at a place, as if it had been written so.
    pub(crate) fn rewrite(&self, place: &Place, change: impl FnOnce(&mut Record)) {
        let Some(store) = lock(&self.store).clone() else { return };
        let row = row::key(place);
        let Ok(Some((birth, encoded))) = store.load(&row) else { return };
        let Ok(mut record) = encoded.decode() else { return };
        change(&mut record);
        let mut envelope = BytesMut::new();
        row::put_envelope(&row, birth, &record.encode(), &mut envelope);
        let written = store.write_rows(vec![(row, Some(envelope.freeze()))]);
        written.and_then(|()| store.sync()).expect("the disk works");
        // The shards drop what they have cached.
        self.disk().reopen();
    }

    /// Inverts a bit of a row on its disk.
    pub(crate) fn flip(&self, place: &Place, bit: usize) {
        let row = Bytes::from(oracle::row(place.token, place.space.bytes(), place.key.bytes()));
        let disk = self.disk();
        if disk.flip(&row, bit)
            && let Some(value) = disk.peek(&row)
        {
            lock(&self.flipped).push(Flipped { row, value, bit });
        }
    }

    /// Inverts the bits again that are still inverted. A row that was written since is left alone, but a loss of power may bring its
    /// damaged state back.
    pub(crate) fn unflip(&self) {
        let (disk, mut flipped) = (self.disk(), lock(&self.flipped));
        for at in (0..flipped.len()).rev() {
            let Flipped { row, value, bit } = &flipped[at];
            if disk.peek(row).as_ref() == Some(value) {
                disk.flip(row, *bit);
                flipped.remove(at);
            }
        }
    }
}
