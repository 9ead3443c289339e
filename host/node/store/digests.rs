//! A store's digests of its rows, which follow every change of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use witan_kernel::digest::Row;
use witan_kernel::record::Record;
use witan_kernel::sync::lock;

use super::Store;
use crate::engine::{Change, EngineError};
use crate::leaves::{Changed, Table};
use crate::row;

/// The digests of a store.
#[derive(Default)]
pub(super) struct Kept {
    table: Mutex<Table>,
    /// False until anything is counted: then changes cost nothing.
    any: AtomicBool,
    /// Held by whoever counts: one at a time.
    counter: Mutex<()>,
}

/// What a digest has of a row, whose key is valid.
pub(crate) fn digest(row: &[u8], record: &Record) -> Option<Row> {
    let token = u64::from_be_bytes(*row.first_chunk()?);
    let length = usize::from(u16::from_be_bytes(*row.get(8..)?.first_chunk()?));
    Some(Row::of(token, row.get(10..10 + length)?, &row[10 + length..], record))
}

/// What a digest has of a stored row; `None` if it cannot be read.
pub(crate) fn digest_stored(row: &Bytes, value: &Bytes) -> Option<Row> {
    let (_, record) = row::open_envelope(row, value).ok()?;
    digest(row, &record.decode().ok()?)
}

impl Store {
    /// Whether changes have to be [noted](Self::note_changes). It does not become true while a batch is applied.
    pub(crate) fn keeps_digests(&self) -> bool {
        self.digests.any.load(Ordering::Acquire)
    }

    /// Notes what a shard has written, in the batch in which it did.
    pub(crate) fn note_changes<'a>(&self, changes: impl Iterator<Item = Changed<'a>>) {
        let mut table = self.table();
        changes.for_each(|change| table.changed(change));
    }

    /// It is not known whether these rows were changed.
    pub(crate) fn note_lost<'a>(&self, rows: impl Iterator<Item = &'a Bytes>) {
        let mut table = self.table();
        rows.for_each(|row| table.lost(row));
    }

    /// Held by whoever counts rows for digests, one at a time.
    pub(crate) fn counter(&self) -> MutexGuard<'_, ()> {
        lock(&self.digests.counter)
    }

    /// The digests that are kept, of what was written so far, synced or not.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = lock(&self.digests.table);
        table.reopened(self.engine.reopenings());
        table
    }

    /// Counts rows between two batches of every shard: nobody else changes rows or digests until this returns.
    pub(crate) fn count_between_batches<T>(&self, count: impl FnOnce(&mut Table) -> T) -> T {
        let _between_batches = self.fences.write().unwrap_or_else(PoisonError::into_inner);
        self.digests.any.store(true, Ordering::Release);
        count(&mut self.table())
    }

    /// Writes a batch of rows outside the shards, between two batches of every one, as [`Engine::write`](crate::engine::Engine::write)
    /// does, and keeps the store's condition and digests.
    pub fn write_rows(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        let _between_batches = self.fences.write().unwrap_or_else(PoisonError::into_inner);
        self.write_between_batches(batch)
    }

    /// The same for a caller that holds all shards between two batches.
    pub(super) fn write_between_batches(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        if !self.keeps_digests() {
            return self.noted(self.engine.write(batch));
        }
        let noticed: Vec<Change> = {
            let table = self.table();
            batch.iter().filter(|(row, _)| table.notices(row)).cloned().collect()
        };
        let mut changes: Vec<(Bytes, Option<Bytes>, Option<Bytes>)> = Vec::with_capacity(noticed.len());
        for (row, after) in noticed {
            let before = self.engine.get(&row).inspect_err(|error| self.failed(error))?;
            changes.push((row, before, after));
        }
        let written = self.noted(self.engine.write(batch));
        match &written {
            Ok(()) => {}
            // No part of it was written, or will be.
            Err(EngineError::Full) => return written,
            Err(EngineError::Broken(_)) => {
                self.note_lost(changes.iter().map(|(row, ..)| row));
                return written;
            }
        }
        let mut table = self.table();
        for (row, before, after) in changes {
            // What cannot be read is not known.
            let read = |value: Option<Bytes>| value.map(|value| digest_stored(&row, &value).ok_or(())).transpose();
            match (read(before), read(after)) {
                (Ok(before), Ok(after)) => table.changed(Changed { row: &row, before, after }),
                _ => table.lost(&row),
            }
        }
        written
    }
}
