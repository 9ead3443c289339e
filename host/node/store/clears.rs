//! What a store remembers of the rows that it drops for placement changes: its marks, durably, and how far it is.

use std::collections::VecDeque;
use std::sync::{MutexGuard, PoisonError};

use witan_kernel::fence::Marks;
use witan_kernel::name::TenantId;
use witan_kernel::replica::Place;
use witan_kernel::scan::Clear;
use witan_kernel::sync::lock;

use super::{OpenError, Store};
use crate::engine::{Change, Engine, EngineError};

/// The name of the engine's note that holds the marks.
pub(super) const MARKS: &str = "marks";

/// How many unfinished clears a store remembers the progress of; one that is forgotten begins anew. A coordinator goes on with few at a
/// time, and each may have a megabyte of ranges.
const UNFINISHED: usize = 4;

/// Where a clear goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// With this one of its ranges.
    pub(crate) range: usize,
    /// After this place in it.
    pub(crate) after: Option<Place>,
}

/// What a store remembers of clears.
#[derive(Debug)]
pub(crate) struct Clears {
    marks: Marks,
    /// Clears that are not done, the newest last, and where each goes on. What is before that was dropped, durably.
    unfinished: VecDeque<(Clear, Cursor)>,
}

impl Clears {
    pub(super) fn after(marks: Marks) -> Self {
        Self { marks, unfinished: VecDeque::new() }
    }

    /// Under which epochs tenants were entered.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Where a clear goes on, which is forgotten.
    pub(crate) fn resume(&mut self, clear: &Clear) -> Cursor {
        let known = self.unfinished.iter().position(|(unfinished, _)| unfinished == clear);
        known.and_then(|at| self.unfinished.remove(at)).map(|(_, cursor)| cursor).unwrap_or_default()
    }

    /// Remembers where a clear goes on.
    pub(crate) fn suspend(&mut self, clear: &Clear, cursor: Cursor) {
        if self.unfinished.len() >= UNFINISHED {
            self.unfinished.pop_front();
        }
        self.unfinished.push_back((clear.clone(), cursor));
    }
}

impl Store {
    /// What it remembers of clears. Only one runs at a time: the guard is held from its first check until it is done, so that none drops
    /// rows which a later one has made room for.
    pub(crate) fn clears(&self) -> MutexGuard<'_, Clears> {
        lock(&self.clears)
    }

    /// Marks a tenant with the epoch under which it was entered, durably. A store has fences before it has marks, so that programs of
    /// before refuse to open it. Blocks.
    pub(crate) fn set_mark(&self, clears: &mut Clears, tenant: &TenantId, epoch: u64) -> Result<(), EngineError> {
        let mut marks = clears.marks.clone();
        if marks.set(tenant, epoch) {
            self.engine.set_note(MARKS, marks.encode()).inspect_err(|error| self.failed(error))?;
            clears.marks = marks;
        }
        Ok(())
    }

    /// Drops rows between two batches of every shard: a batch has either been written before, or finds none of them, not even cached.
    pub(crate) fn drop_rows(&self, rows: Vec<Change>) -> Result<(), EngineError> {
        let _between_batches = self.fences.write().unwrap_or_else(PoisonError::into_inner);
        let dropped = self.write_between_batches(rows);
        // Also after an error, which may have happened after rows were dropped.
        self.note_bypass();
        dropped
    }
}

/// The marks that were set.
pub(super) fn marks(engine: &dyn Engine) -> Result<Marks, OpenError> {
    let Some(bytes) = engine.note(MARKS)? else { return Ok(Marks::default()) };
    Marks::decode(&bytes).ok_or(OpenError::Identity("its marks of placement changes cannot be read"))
}
