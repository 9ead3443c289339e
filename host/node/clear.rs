//! Dropping rows for a placement change: those of a tenant in some ranges, under the epoch of the change.
//!
//! The tenant's fence is raised first, so that nothing which was decided before the change is written after the drop. Then the rows go, in
//! batches between those of the shards, and the answer waits for their sync. A node that gets the rows anew marks the tenant with the epoch
//! once all are gone; after a crash before that, the call begins anew. The births in the dropped rows go with them: what is written to such
//! a row later draws a new one.

use witan_kernel::fault::Fault;
use witan_kernel::replica::Place;
use witan_kernel::scan::{Clear, Cleared, Purpose};

use crate::engine::{Change, EngineError};
use crate::row;
use crate::scan::{Examined, REMOVED_ROWS, rows};
use crate::store::{Cursor, Store};

/// Most steps of one call: about a second on a small machine.
const STEPS: usize = 32;

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearing {
    /// Everything is dropped, durably.
    Done(Cleared),
    /// What is counted here was dropped, durably, and there is more: the call is to be repeated.
    More(Cleared),
    /// A later change has begun: nothing was dropped.
    Stale,
    /// The store is not the one on record, so nothing that is concluded from its answer would hold: nothing was dropped.
    NotOnRecord,
}

/// Drops rows for a placement change. Blocks, for a bounded time.
pub fn clear(store: &Store, clear: &Clear) -> Result<Clearing, EngineError> {
    clear_within(store, clear, STEPS)
}

fn clear_within(store: &Store, clear: &Clear, steps: usize) -> Result<Clearing, EngineError> {
    if !store.is_on_record() {
        return Ok(Clearing::NotOnRecord);
    }
    let mut clears = store.clears();
    let (tenant, epoch) = (&clear.space.tenant(), clear.epoch);
    let cleared = |already, records| Cleared { store: store.id(), already, records };
    let entered_since = clears.marks().is_after(tenant, epoch);
    match clear.purpose {
        Purpose::Enter if clears.marks().is(tenant, epoch) => return Ok(Clearing::Done(cleared(true, 0))),
        Purpose::Enter => {
            let stale = entered_since || store.fences().least(tenant) > epoch;
            if stale && !Fault::StaleEnterDrops.is_on() {
                return Ok(Clearing::Stale);
            }
        }
        Purpose::Leave if entered_since && !Fault::LeaveIgnoresEntry.is_on() => return Ok(Clearing::Stale),
        Purpose::Leave => {}
    }
    store.raise_fence(Some(tenant), epoch)?;

    let reopenings = store.engine().reopenings();
    let begin = clears.resume(clear);
    let (mut records, mut next) = (0, Some(begin));
    if clear.purpose == Purpose::Enter && Fault::EnterDropsNothing.is_on() {
        next = None;
    }
    for _ in 0..steps {
        let Some(cursor) = next else { break };
        let (found, rest) = step(store, clear, &cursor)?;
        records += found.len() as u64;
        if !found.is_empty() {
            store.drop_rows(found)?;
        }
        next = rest;
    }
    // Also if nothing was found: an earlier call may have dropped what it then could not sync.
    store.sync()?;
    if store.engine().reopenings() != reopenings {
        // What was dropped before may be there again.
        return Ok(Clearing::More(cleared(false, 0)));
    }
    if let Some(cursor) = next {
        clears.suspend(clear, cursor);
        return Ok(Clearing::More(cleared(false, records)));
    }
    if clear.purpose == Purpose::Enter {
        store.set_mark(&mut clears, tenant, epoch)?;
    }
    tracing::info!(tenant = %clear.space, epoch, purpose = ?clear.purpose, records, "dropped rows for a placement change");
    Ok(Clearing::Done(cleared(false, records)))
}

/// The rows that one step finds, from the cursor on, as changes that drop them, and where the next one goes on; `None`: there are no
/// others.
fn step(store: &Store, clear: &Clear, from: &Cursor) -> Result<(Vec<Change>, Option<Cursor>), EngineError> {
    let mut found: Vec<Change> = Vec::new();
    let mut examined = Examined::default();
    let mut after = from.after.as_ref();
    for (range, (first, last)) in clear.ranges.iter().enumerate().skip(from.range) {
        let begun_enough = examined.begin();
        let mut ended: Option<Place> = None;
        store.walk(rows(*first, *last, after.take()), &mut |row, value| {
            let step_ends = examined.add(&row, &value) || begun_enough;
            let Some(place) = row::place(&row) else { return true };
            if place.space == clear.space {
                found.push((row, None));
            }
            let full = step_ends || found.len() >= REMOVED_ROWS;
            if full {
                ended = Some(place);
            }
            !full
        })?;
        if ended.is_some() {
            return Ok((found, Some(Cursor { range, after: ended })));
        }
        if begun_enough {
            let rest = (range + 1 < clear.ranges.len()).then(|| Cursor { range: range + 1, after: None });
            return Ok((found, rest));
        }
    }
    Ok((found, None))
}

#[cfg(test)]
mod tests;
