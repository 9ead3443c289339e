//! Digests of stored records for a coordinator that compares replicas.
//!
//! What is kept is answered from memory. A slice that is not kept, because the node has just started or could not be certain of it, is
//! counted now and kept from then on: its rows are read in steps, between batches of the shards, each as short as a large batch. Nothing is
//! counted before anybody asks. The answer waits for a sync, as every answer of a node does: what it rests on is durable.

use std::time::Duration;

use bytes::Bytes;
use witan_kernel::digest::{Digests, Leaf, PAGE_LEAVES, TenantLeaf, Wanted};
use witan_kernel::placement::Tokens;
use witan_kernel::slice::Slice;
use witan_kernel::space::Space;

use crate::batch::Durability;
use crate::engine::EngineError;
use crate::leaves::Table;
use crate::row;
use crate::scan::rows;
use crate::store::{Store, digest_stored};

/// Most rows that are counted between two batches, and bytes of rows after which that ends: some hundreds of microseconds on a small
/// machine.
const STEP: Read = Read { rows: 64, bytes: 256 << 10 };
/// Most rows and bytes that one answer reads: well below a second. A slice that has more, as those of a node with 500 million rows, is
/// never counted, and its records are compared one by one.
const MOST: Read = Read { rows: 8192, bytes: 32 << 20 };
/// As how many rows it counts to begin a walk: it has to find the place in every table of the engine.
const BEGUN_ROWS: u64 = 16;

/// How much was read.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    rows: u64,
    bytes: u64,
}

impl Read {
    /// How long to rest after a step that has read this: about four times what it takes on a small machine, so that counting has a fifth of
    /// a processor at most, and clients wait for a step, not for an answer.
    fn rest(&self) -> Duration {
        Duration::from_micros(8 * self.rows + self.bytes / 64)
    }

    fn add(&mut self, row: &Bytes, value: &Bytes) {
        self.rows += 1;
        self.bytes += (row.len() + value.len()) as u64;
    }

    fn is_at_least(&self, most: &Self) -> bool {
        self.rows >= most.rows || self.bytes >= most.bytes
    }
}

/// An answer that is being made.
struct Answering<'a> {
    store: &'a Store,
    rest: &'a dyn Fn(Duration),
    space: Option<&'a Space>,
    leaves: Vec<TenantLeaf>,
    unknown: Vec<Slice>,
    /// Everything that was read.
    read: Read,
    /// What was read, and the walks that were begun.
    cost: Read,
}

/// Digests of the rows between two tokens, as far as one answer goes. Blocks, for a bounded time: well below a second. `rest` is called
/// between two steps of counting, with how long others are to be left alone.
pub fn digests(
    store: &Store,
    durability: Durability,
    wanted: &Wanted,
    rest: &dyn Fn(Duration),
) -> Result<Digests, EngineError> {
    digests_within(store, durability, wanted, rest, &STEP, &MOST)
}

fn digests_within(
    store: &Store,
    durability: Durability,
    wanted: &Wanted,
    rest: &dyn Fn(Duration),
    step: &Read,
    most: &Read,
) -> Result<Digests, EngineError> {
    let (from, to) = wanted.tokens;
    let space = wanted.space.as_ref();
    let (leaves, unknown) = (Vec::new(), Vec::new());
    let mut answer = Answering { store, rest, space, leaves, unknown, read: Read::default(), cost: Read::default() };
    let reopenings = store.engine().reopenings();
    let counter = store.counter();
    let mut at = from;
    let reached = loop {
        let slice = Slice::of(at);
        let (first, last) = slice.tokens();
        let end = if (first, last.min(to)) == (at, last) {
            answer.whole(slice, to, step, most)?
        } else {
            let end = last.min(to);
            answer.part((at, end), most)?;
            end
        };
        if end >= to || answer.leaves.len() >= PAGE_LEAVES || answer.cost.is_at_least(most) {
            break end.min(to);
        }
        at = end + 1;
    };
    drop(counter);
    if durability == Durability::Sync {
        store.sync()?;
    }
    if store.engine().reopenings() != reopenings {
        // Rows of which this says something may be gone.
        return Err(EngineError::Broken("the store was opened again meanwhile; ask again".to_owned()));
    }
    let Answering { leaves, unknown, read, .. } = answer;
    Ok(Digests { store: store.id(), to: reached, leaves, unknown, read_rows: read.rows, read_bytes: read.bytes })
}

impl Answering<'_> {
    fn add(&mut self, slice: Slice, leaves: Option<Vec<TenantLeaf>>) {
        match leaves {
            None => self.unknown.push(slice),
            Some(leaves) => {
                let space = self.space;
                self.leaves.extend(leaves.into_iter().filter(|of| space.is_none_or(|space| *space == of.space)));
            }
        }
    }

    /// Answers for a slice, and, if it is not kept, for those behind it that are not kept either and end by `to`, as far as may be read.
    /// Returns the last token that is answered for.
    fn whole(&mut self, slice: Slice, to: u64, step: &Read, most: &Read) -> Result<u64, EngineError> {
        let mut last = slice;
        {
            let table = self.store.table();
            if let Some(leaves) = table.leaves(slice) {
                self.add(slice, Some(leaves));
                return Ok(slice.tokens().1);
            }
            while let Some(next) = last.0.checked_add(1).map(Slice)
                && next.tokens().1 <= to
                && !table.keeps(next)
            {
                last = next;
            }
        }
        let counted = self.count(slice, last, step, most);
        self.store.table().give_up();
        counted.map(|last| last.tokens().1)
    }

    /// Counts the slices from `first` to `last`, and returns the last one that was counted.
    fn count(&mut self, first: Slice, last: Slice, step: &Read, most: &Read) -> Result<Slice, EngineError> {
        let store = self.store;
        let mut slice = first;
        let mut from = rows(first.tokens().0, last.tokens().1, None);
        store.table().begin(slice);
        loop {
            let (mut now, mut reached) = (Read::default(), None);
            let mut ended: Vec<(Slice, Option<Vec<TenantLeaf>>)> = Vec::new();
            store.count_between_batches(|table| {
                let mut end_before = |table: &mut Table, of: Slice| {
                    while slice < of {
                        ended.push((slice, table.end()));
                        slice = Slice(slice.0 + 1);
                        table.begin(slice);
                    }
                };
                store.walk(from.clone(), &mut |row, value| {
                    now.add(&row, &value);
                    // A row without a place is nobody's record, whatever wrote it.
                    if let Some(place) = row::place(&row) {
                        end_before(table, Slice::of(place.token));
                        table.count(row.clone(), digest_stored(&row, &value));
                    }
                    reached = now.is_at_least(step).then_some(row);
                    reached.is_none()
                })?;
                if reached.is_none() {
                    // There are no further rows, and none is written before this is noted.
                    end_before(table, last);
                    ended.push((last, table.end()));
                }
                Ok(())
            })?;
            self.count_read(now);
            (self.rest)(now.rest());
            ended.into_iter().for_each(|(slice, leaves)| self.add(slice, leaves));
            let Some(reached) = reached else { return Ok(last) };
            if self.cost.is_at_least(most) {
                if slice > first {
                    return Ok(Slice(slice.0 - 1));
                }
                self.unknown.push(slice);
                return Ok(slice);
            }
            from.start = Bytes::from([&reached[..], &[0]].concat());
        }
    }

    fn count_read(&mut self, now: Read) {
        self.read.rows += now.rows;
        self.read.bytes += now.bytes;
        self.cost.rows += now.rows + BEGUN_ROWS;
        self.cost.bytes += now.bytes;
    }

    /// Answers for a part of a slice, which is read for this answer alone: ends of ranges do not move.
    fn part(&mut self, tokens: Tokens, most: &Read) -> Result<(), EngineError> {
        let slice = Slice::of(tokens.0);
        let mut now = Read::default();
        let mut leaves: Option<Vec<TenantLeaf>> = Some(Vec::new());
        self.store.walk(rows(tokens.0, tokens.1, None), &mut |row, value| {
            now.add(&row, &value);
            let Some(place) = row::place(&row) else { return true };
            let (Some(all), Some(read), false) = (&mut leaves, digest_stored(&row, &value), now.is_at_least(most))
            else {
                leaves = None;
                return false;
            };
            match all.iter_mut().find(|of| of.space == place.space) {
                Some(of) => of.leaf.add(&read),
                None => {
                    let space = Space::from_trusted(Bytes::copy_from_slice(place.space.bytes()));
                    let mut leaf = Leaf::default();
                    leaf.add(&read);
                    all.push(TenantLeaf { slice, space, leaf });
                }
            }
            true
        })?;
        self.count_read(now);
        self.add(slice, leaves);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
