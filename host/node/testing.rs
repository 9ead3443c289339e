//! What tests of several modules need.

use std::sync::atomic::{AtomicU8, Ordering};

use witan_kernel::name::NodeId;
use witan_kernel::port::Randomness;

use crate::engine::simulated::Disk;
use crate::store::Store;

/// Random bytes that differ each time, up to 256 times: every start of a store draws other births.
#[derive(Default)]
pub(crate) struct Dice(pub(crate) AtomicU8);

impl Randomness for Dice {
    fn sixteen(&self) -> [u8; 16] {
        [self.0.fetch_add(1, Ordering::Relaxed); 16]
    }
}

/// Opens the store of node n1.
pub(crate) fn open(disk: &Disk, dice: &Dice) -> Store {
    Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), dice).unwrap()
}
