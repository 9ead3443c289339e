//! A disk in memory, for tests and the simulation. A crash loses what was not synced, and the disk can be made full, broken or empty, or
//! fail reads or syncs only. It can lose what was synced, too: then, as on a real disk, its store is not opened again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use witan_kernel::condition::Condition;
use witan_kernel::fault::Fault;
use witan_kernel::sync::lock;

use super::{Change, Engine, EngineError, Usage};

/// Most synced batches that a disk can lose: more than a node of the simulation writes in a second.
const LOST_BATCHES: usize = 64;

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
    /// What undoes each unsynced batch, oldest first.
    undo: Vec<Undo>,
    /// How many of them had been written when the sync began that is under way.
    syncing: Option<usize>,
    /// The same for the last synced batches.
    synced: VecDeque<Undo>,
    /// Whether synced batches were lost.
    damaged: bool,
    /// Number of openings and crashes; an engine opened before the last of them is dead.
    incarnation: u64,
    full: bool,
    broken: Option<String>,
    failing_reads: bool,
    failing_syncs: bool,
    /// Set by a failed sync until the disk is opened again: what it holds beyond the last successful sync is unknown.
    unsound: bool,
    /// How many times the engine has been opened again while it was in use.
    reopenings: u64,
    syncs: u64,
    writes: u64,
}

/// What undoes a batch.
#[derive(Debug, Clone, Default)]
struct Undo {
    rows: Vec<Change>,
    /// The note that it has set, and the note's value before.
    note: Option<(String, Option<Bytes>)>,
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
            self.undo_batch(batch);
        }
        self.syncing = None;
        self.keep_synced(kept);
    }

    fn undo_batch(&mut self, batch: Undo) {
        for change in batch.rows.into_iter().rev() {
            self.replace(change);
        }
        match batch.note {
            Some((name, Some(value))) => drop(self.notes.insert(name, value)),
            Some((name, None)) => drop(self.notes.remove(&name)),
            None => {}
        }
    }

    /// The first of the written batches are on the disk.
    fn keep_synced(&mut self, first: usize) {
        let Self { undo, synced, .. } = self;
        synced.extend(undo.drain(..first.min(undo.len())));
        synced.drain(..synced.len().saturating_sub(LOST_BATCHES));
    }
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the engine on it. Engines opened before are dead from now on. If the disk has lost what was synced, every call fails.
    pub fn open(&self) -> Simulated {
        let mut state = self.contents();
        state.incarnation += 1;
        state.unsound = false;
        let refused = state.damaged && !Fault::DamageBelieved.is_on();
        Simulated { disk: self.clone(), incarnation: state.incarnation, refused }
    }

    /// The machine loses power, and with it, synced or not, the newest batches: `lost` gets the number of synced batches that the disk
    /// can lose, and returns how many of them it loses.
    pub fn lose(&self, lost: impl FnOnce(usize) -> usize) {
        self.crash();
        let mut state = self.contents();
        let kept = state.synced.len() - lost(state.synced.len()).min(state.synced.len());
        for batch in state.synced.split_off(kept).into_iter().rev() {
            // Notes are elsewhere: only rows are lost, so that nothing else shows it.
            state.undo_batch(Undo { note: None, ..batch });
            state.damaged = true;
        }
    }

    /// Whether it has lost what was synced.
    pub fn is_damaged(&self) -> bool {
        self.contents().damaged
    }

    /// A sync begins that takes a while: it ends with [`Engine::sync`], and covers what has been written by now. One that nobody has begun
    /// covers what was written before it ends.
    pub fn begin_sync(&self) {
        let mut state = self.contents();
        state.syncing = Some(state.undo.len());
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

    /// The engine is opened again while it is in use, as after a full disk: every unsynced batch is lost.
    pub fn reopen(&self) {
        let mut state = self.contents();
        state.undo_after(0);
        (state.unsound, state.reopenings) = (false, state.reopenings + 1);
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&self) {
        let mut state = self.contents();
        let incarnation = state.incarnation + 1;
        *state = Contents { incarnation, ..Contents::default() };
    }

    /// What would be left on the disk if the machine lost power now: all that was synced, and nothing else.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.contents();
        let mut left = Contents {
            rows: state.rows.clone(),
            notes: state.notes.clone(),
            undo: state.undo.clone(),
            ..Contents::default()
        };
        left.undo_after(0);
        Snapshot { rows: left.rows, notes: left.notes }
    }

    /// Another disk, which holds what would be left on this one if the machine lost power now.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        copy.restore(&self.snapshot());
        copy
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

    /// Whether reads or syncs fail.
    pub fn is_failing(&self) -> bool {
        let state = self.contents();
        state.failing_reads || state.failing_syncs
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
    /// Whether it was not opened, because the disk is damaged.
    refused: bool,
}

impl Simulated {
    fn state(&self) -> Result<MutexGuard<'_, Contents>, EngineError> {
        let state = self.disk.contents();
        if state.incarnation != self.incarnation {
            return Err(EngineError::Broken("the machine has crashed".to_owned()));
        }
        if self.refused {
            return Err(EngineError::Broken("the disk has lost acknowledged writes, and was not opened".to_owned()));
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

impl Simulated {
    fn commit(&self, batch: Vec<Change>, note: Option<(String, Bytes)>) -> Result<(), EngineError> {
        let mut state = self.writable()?;
        if state.full {
            return Err(EngineError::Full);
        }
        let rows = batch.into_iter().map(|change| state.replace(change)).collect();
        let note = note.map(|(name, value)| {
            let before = state.notes.insert(name.clone(), value);
            (name, before)
        });
        state.undo.push(Undo { rows, note });
        state.writes += 1;
        Ok(())
    }
}

impl Engine for Simulated {
    fn condition(&self) -> Condition {
        match self.writable() {
            Ok(state) if state.full => Condition::Full,
            Ok(_) => Condition::Serving,
            Err(error) => Condition::Failed(error.to_string()),
        }
    }

    fn reopenings(&self) -> u64 {
        self.disk.contents().reopenings
    }

    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.readable()?.rows.get(row).cloned())
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        self.commit(batch, None)
    }

    fn write_noting(&self, batch: Vec<Change>, name: &str, value: Bytes) -> Result<(), EngineError> {
        self.commit(batch, Some((name.to_owned(), value)))
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut state = self.writable()?;
        if state.failing_syncs {
            state.unsound = true;
            return Err(failed("sync"));
        }
        let first = state.syncing.take().unwrap_or(state.undo.len());
        state.keep_synced(first);
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
    fn a_sync_covers_what_was_written_before_it_began() {
        let disk = Disk::new();
        let engine = disk.open();
        engine.write(vec![row(1)]).unwrap();
        disk.begin_sync();
        engine.write(vec![row(2)]).unwrap();
        engine.sync().unwrap();
        disk.crash();
        let engine = disk.open();
        assert_eq!((engine.get(&[1]).unwrap().is_some(), engine.get(&[2]).unwrap()), (true, None));
        disk.begin_sync();
        engine.write(vec![row(2)]).unwrap();
        engine.sync().unwrap();
        engine.sync().unwrap();
        disk.crash();
        assert!(disk.open().get(&[2]).unwrap().is_some(), "by the next one");
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
    fn a_disk_that_lost_synced_batches_is_not_opened() {
        let disk = Disk::new();
        let engine = disk.open();
        for n in 1..=4 {
            engine.write(vec![row(n)]).unwrap();
            engine.sync().unwrap();
        }
        engine.write(vec![row(1), row(5)]).unwrap();
        disk.lose(|_| 0);
        assert!(disk.open().get(&[4]).unwrap().is_some(), "nothing was lost that had been synced");
        disk.lose(|synced| synced - 2);
        assert!(disk.is_damaged() && disk.open().get(&[1]).is_err() && disk.open().note("name").is_err());

        witan_kernel::fault::set(Some(Fault::DamageBelieved));
        let engine = disk.open();
        let rows = [1, 2, 3, 4, 5].map(|n| engine.get(&[n]).unwrap().is_some());
        witan_kernel::fault::set(None);
        assert_eq!(rows, [true, true, false, false, false]);
        disk.wipe();
        assert_eq!(disk.open().get(&[1]), Ok(None), "another disk");
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
