//! A disk in memory, for tests and the simulation. A crash loses what was not synced, and the disk can be made full, broken or empty, or
//! fail reads or syncs only.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use witan_kernel::sync::lock;

use super::{Change, Engine, EngineError, Usage};

/// A disk. Clones are handles to the same disk: keep one across the crashes of the node that uses it.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

/// What was on a disk at some moment: rows and notes that had been synced then.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    rows: BTreeMap<Bytes, Bytes>,
    notes: BTreeMap<String, Bytes>,
}

#[derive(Debug, Default)]
struct Contents {
    rows: BTreeMap<Bytes, Bytes>,
    notes: BTreeMap<String, Bytes>,
    /// The changes that undo each unsynced batch, oldest first.
    undo: Vec<Vec<Change>>,
    /// Number of openings and crashes; an engine opened before the last of them is dead.
    incarnation: u64,
    full: bool,
    broken: Option<String>,
    failing_reads: bool,
    failing_syncs: bool,
    /// Set by a failed sync until the disk is opened again: what it holds beyond the last successful sync is unknown.
    unsound: bool,
    syncs: u64,
    writes: u64,
}

impl Contents {
    fn replace(&mut self, (row, value): Change) -> Change {
        let before = match value {
            Some(value) => self.rows.insert(row.clone(), value),
            None => self.rows.remove(&row),
        };
        (row, before)
    }

    fn undo_after(&mut self, kept: usize) {
        for batch in self.undo.split_off(kept).into_iter().rev() {
            for change in batch.into_iter().rev() {
                self.replace(change);
            }
        }
        self.undo.clear();
    }
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the engine on it. Engines opened before are dead from now on.
    pub fn open(&self) -> Simulated {
        let mut state = self.contents();
        state.incarnation += 1;
        state.unsound = false;
        Simulated { disk: self.clone(), incarnation: state.incarnation }
    }

    /// The machine loses power: every unsynced batch is lost.
    pub fn crash(&self) {
        self.crash_keeping(|_| 0);
    }

    /// The machine loses power: `survivors` gets the number of unsynced batches, and returns how many of them, the oldest first,
    /// happen to have reached the disk.
    pub fn crash_keeping(&self, survivors: impl FnOnce(usize) -> usize) {
        let mut state = self.contents();
        let kept = survivors(state.undo.len()).min(state.undo.len());
        state.undo_after(kept);
        state.incarnation += 1;
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&self) {
        let mut state = self.contents();
        let incarnation = state.incarnation + 1;
        *state = Contents { incarnation, ..Contents::default() };
    }

    /// What would be left on the disk if the machine lost power now.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.contents();
        let mut rows = state.rows.clone();
        for change in state.undo.iter().rev().flat_map(|batch| batch.iter().rev()) {
            match change {
                (row, Some(value)) => rows.insert(row.clone(), value.clone()),
                (row, None) => rows.remove(row),
            };
        }
        Snapshot { rows, notes: state.notes.clone() }
    }

    /// The disk holds what it held when the snapshot was taken, or what another one held. Engines opened before are dead from now on.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.contents();
        let (rows, notes, incarnation) = (snapshot.rows.clone(), snapshot.notes.clone(), state.incarnation + 1);
        *state = Contents { rows, notes, incarnation, ..Contents::default() };
    }

    /// Exchanges the contents of two disks, as when they are put into each other's machine. Both machines must be off: what was not
    /// synced is lost, and engines opened before are dead from now on.
    pub fn swap(&self, other: &Self) {
        let (mine, theirs) = (self.snapshot(), other.snapshot());
        self.restore(&theirs);
        other.restore(&mine);
    }

    /// The value of a row as the engine reads it, synced or not, whatever the state of the disk.
    pub fn peek(&self, row: &[u8]) -> Option<Bytes> {
        self.contents().rows.get(row).cloned()
    }

    /// Damages a row on the disk: inverts a bit of its value, counted modulo its length. Inverting it again repairs it. False if there is
    /// no such row.
    pub fn flip(&self, row: &[u8], bit: usize) -> bool {
        let mut state = self.contents();
        let Some(value) = state.rows.get_mut(row).filter(|value| !value.is_empty()) else { return false };
        let mut bytes = value.to_vec();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        *value = Bytes::from(bytes);
        true
    }

    /// Makes writes fail because the disk is full, or lets them succeed again.
    pub fn set_full(&self, full: bool) {
        self.contents().full = full;
    }

    /// Makes every call fail with this reason, or lets them succeed again.
    pub fn set_broken(&self, reason: Option<&str>) {
        self.contents().broken = reason.map(str::to_owned);
    }

    /// Makes every read of rows and notes fail, or lets reads succeed again. Writes and syncs are not affected.
    pub fn set_failing_reads(&self, failing: bool) {
        self.contents().failing_reads = failing;
    }

    /// Makes every sync fail, or lets syncs succeed again. After a failed sync, as with the engine on a real disk, writes and syncs fail
    /// until the disk is opened again, and a crash loses what was written since the last sync that succeeded.
    pub fn set_failing_syncs(&self, failing: bool) {
        self.contents().failing_syncs = failing;
    }

    /// Whether a sync fails, or has failed since the disk was opened.
    pub fn is_unsound(&self) -> bool {
        let state = self.contents();
        state.unsound || state.failing_syncs
    }

    /// How many times it was synced.
    pub fn syncs(&self) -> u64 {
        self.contents().syncs
    }

    /// How many batches were written.
    pub fn writes(&self) -> u64 {
        self.contents().writes
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        lock(&self.0)
    }
}

/// The engine on a [`Disk`].
#[derive(Debug)]
pub struct Simulated {
    disk: Disk,
    incarnation: u64,
}

impl Simulated {
    fn state(&self) -> Result<MutexGuard<'_, Contents>, EngineError> {
        let state = self.disk.contents();
        if state.incarnation != self.incarnation {
            return Err(EngineError::Broken("the machine has crashed".to_owned()));
        }
        match &state.broken {
            Some(reason) => Err(EngineError::Broken(reason.clone())),
            None => Ok(state),
        }
    }

    fn readable(&self) -> Result<MutexGuard<'_, Contents>, EngineError> {
        let state = self.state()?;
        if state.failing_reads { Err(failed("read")) } else { Ok(state) }
    }

    fn writable(&self) -> Result<MutexGuard<'_, Contents>, EngineError> {
        let state = self.state()?;
        if state.unsound { Err(failed("an earlier sync")) } else { Ok(state) }
    }
}

fn failed(what: &str) -> EngineError {
    EngineError::Broken(format!("{what}: Input/output error"))
}

impl Engine for Simulated {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.readable()?.rows.get(row).cloned())
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        let mut state = self.writable()?;
        if state.full {
            return Err(EngineError::Full);
        }
        let undo = batch.into_iter().map(|change| state.replace(change)).collect();
        state.undo.push(undo);
        state.writes += 1;
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut state = self.writable()?;
        if state.failing_syncs {
            state.unsound = true;
            return Err(failed("sync"));
        }
        state.undo.clear();
        state.syncs += 1;
        Ok(())
    }

    fn scan(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let state = self.readable()?;
        Ok(state.rows.range(range).take(limit).map(|(row, value)| (row.clone(), value.clone())).collect())
    }

    fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError> {
        if range.is_empty() {
            return Ok(());
        }
        let state = self.readable()?;
        let _ = state.rows.range(range).all(|(row, value)| each(row.clone(), value.clone()));
        Ok(())
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        let state = self.state()?;
        let bytes = state.rows.iter().map(|(row, value)| (row.len() + value.len()) as u64).sum();
        Ok(Usage { bytes, percent: if state.full { 100.0 } else { 0.0 } })
    }

    fn approximate_keys(&self) -> u64 {
        self.disk.contents().rows.len() as u64
    }

    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError> {
        Ok(self.readable()?.notes.get(name).cloned())
    }

    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError> {
        let mut state = self.writable()?;
        if state.failing_syncs {
            state.unsound = true;
            return Err(failed("sync"));
        }
        state.notes.insert(name.to_owned(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::contract;

    #[test]
    fn keeps_the_contract() {
        let disk = Disk::new();
        contract::check(&mut || Box::new(disk.open()));
    }

    fn row(n: u8) -> Change {
        (Bytes::from(vec![n]), Some(Bytes::from_static(b"value")))
    }

    #[test]
    fn a_crash_loses_what_was_not_synced_and_nothing_else() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1), row(2)]).unwrap();
        engine.sync().unwrap();
        engine.write(vec![(Bytes::from_static(&[1]), None)]).unwrap();
        engine.write(vec![row(3)]).unwrap();
        disk.crash();
        assert!(engine.get(&[1]).is_err(), "the crashed engine is dead");
        let engine = disk.open();
        let rows: Vec<_> =
            engine.scan(Bytes::new()..Bytes::from_static(&[9]), 9).unwrap().into_iter().map(|(row, _)| row).collect();
        assert_eq!(rows, [Bytes::from_static(&[1]), Bytes::from_static(&[2])]);
    }

    #[test]
    fn a_prefix_may_survive() {
        let disk = Disk::new();
        let engine = disk.open();
        for n in 1..=3 {
            engine.write(vec![row(n)]).unwrap();
        }
        disk.crash_keeping(|unsynced| unsynced - 1);
        let engine = disk.open();
        assert!(engine.get(&[2]).unwrap().is_some() && engine.get(&[3]).unwrap().is_none());
        disk.crash();
        assert!(disk.open().get(&[2]).unwrap().is_some(), "what survived a crash is on the disk");
    }

    #[test]
    fn a_snapshot_has_what_was_synced_and_comes_back_elsewhere() {
        let (disk, other) = (Disk::new(), Disk::new());
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        engine.sync().unwrap();
        engine.write(vec![row(2), (Bytes::from_static(&[1]), None)]).unwrap();
        let snapshot = disk.snapshot();
        engine.write(vec![row(3)]).unwrap();
        engine.sync().unwrap();
        let has = |disk: &Disk| [1, 2, 3].map(|n| disk.peek(&[n]).is_some());
        assert_eq!(has(&disk), [false, true, true]);
        disk.swap(&other);
        assert_eq!((has(&disk), has(&other)), ([false; 3], [false, true, true]));
        disk.restore(&snapshot);
        assert_eq!(has(&disk), [true, false, false]);
        assert!(engine.get(&[1]).is_err(), "engines opened before are dead");
    }

    #[test]
    fn a_flipped_bit_is_seen_until_it_is_flipped_back() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        let good = engine.get(&[1]).unwrap();
        assert!(disk.flip(&[1], 1000) && engine.get(&[1]).unwrap() != good);
        assert!(disk.flip(&[1], 1000) && engine.get(&[1]).unwrap() == good);
        assert!(!disk.flip(&[2], 0));
    }

    #[test]
    fn full_broken_and_wiped() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        disk.set_full(true);
        assert_eq!(engine.write(vec![row(2)]), Err(EngineError::Full));
        assert!(engine.get(&[1]).unwrap().is_some());
        disk.set_full(false);
        engine.write(vec![row(2)]).unwrap();
        disk.set_broken(Some("smoke"));
        assert_eq!(engine.get(&[1]), Err(EngineError::Broken("smoke".to_owned())));
        disk.wipe();
        assert_eq!(disk.open().get(&[1]), Ok(None));
    }

    #[test]
    fn reads_fail_alone() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        disk.set_failing_reads(true);
        assert!(engine.get(&[1]).is_err() && engine.note("name").is_err());
        assert!(engine.scan(Bytes::new()..Bytes::from_static(&[9]), 9).is_err());
        engine.write(vec![row(2)]).unwrap();
        engine.sync().unwrap();
        disk.set_failing_reads(false);
        assert!(engine.get(&[2]).unwrap().is_some());
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_until_it_is_opened_again() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        engine.sync().unwrap();
        engine.write(vec![row(2)]).unwrap();
        disk.set_failing_syncs(true);
        assert!(engine.sync().is_err());
        disk.set_failing_syncs(false);
        assert!(engine.sync().is_err() && engine.write(vec![row(3)]).is_err(), "an answered error is final");
        assert!(engine.get(&[1]).unwrap().is_some(), "reads go on");
        disk.crash();
        let engine = disk.open();
        engine.write(vec![row(3)]).unwrap();
        engine.sync().unwrap();
        assert!(engine.get(&[1]).unwrap().is_some() && engine.get(&[2]).unwrap().is_none());
    }
}
