//! The digests that a node keeps, in memory: for each slice that was counted, the leaf of each space that has rows there.
//!
//! A slice is counted in steps, between batches of the shards. Meanwhile, what is written to rows that were counted already changes its
//! leaves, and what is written to the others is found by a later step. From then on every change of a row changes its leaf. What is not
//! certain is forgotten, and counted again when somebody asks.

use std::collections::HashMap;

use bytes::Bytes;
use witan_kernel::digest::{Leaf, Row, TenantLeaf};
use witan_kernel::slice::{SLICES, Slice};
use witan_kernel::space::Space;

/// Most leaves that are kept: about 64 MiB. A tenant has at most one for each of its rows, and 65,536. Slices beyond that are counted
/// anew for every answer.
const LEAVES: usize = 1 << 20;
/// Most tenants whose names are kept, also of those that are deleted: about 40 MiB. Then all is counted anew.
const TENANTS: usize = 1 << 18;

/// The leaves of a slice, by the numbers of their tenants.
type Leaves = Vec<(u32, Leaf)>;

/// What is known of all slices.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By number; `None`: not counted. Empty until something is counted.
    slices: Vec<Option<Leaves>>,
    /// Leaves in `slices`.
    kept: usize,
    counting: Option<Counting>,
    names: Vec<Space>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// How often the engine had been opened again when the first of this was counted.
    reopenings: u64,
}

/// A slice that is being counted.
#[derive(Debug)]
struct Counting {
    slice: Slice,
    /// The key of the last row that was counted.
    reached: Bytes,
    leaves: Leaves,
    /// It cannot be known what its leaves are.
    spoilt: bool,
}

/// A change of a row: what it was, and what it is; `None`: there was or is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changed<'a> {
    /// The row's key.
    pub(crate) row: &'a [u8],
    /// What it was.
    pub(crate) before: Option<Row>,
    /// What it is.
    pub(crate) after: Option<Row>,
}

/// The slice and the tenant in a row's key; `None` if it is none.
fn parts(row: &[u8]) -> Option<(Slice, &[u8])> {
    let token = u64::from_be_bytes(*row.first_chunk()?);
    let length = usize::from(u16::from_be_bytes(*row.get(8..)?.first_chunk()?));
    Some((Slice::of(token), row.get(10..10 + length)?))
}

impl Table {
    /// The engine has been opened again so often. If that is news, everything is forgotten: rows may be gone.
    pub(crate) fn reopened(&mut self, reopenings: u64) {
        if self.reopenings != reopenings {
            self.forget_all();
            self.reopenings = reopenings;
        }
    }

    fn forget_all(&mut self) {
        if let Some(counting) = &mut self.counting {
            counting.spoilt = true;
        }
        self.slices = Vec::new();
        self.kept = 0;
        // Those that are being counted refer to tenants by their numbers, and are spoilt.
        self.names = Vec::new();
        self.numbers = HashMap::new();
    }

    /// Whether anything would be noticed of a change of this row.
    pub(crate) fn notices(&self, row: &[u8]) -> bool {
        let Some((slice, _)) = parts(row) else { return false };
        self.slices.get(usize::from(slice.0)).is_some_and(Option::is_some)
            || self.counting.as_ref().is_some_and(|counting| counting.slice == slice)
    }

    /// A row has been changed.
    pub(crate) fn changed(&mut self, change: Changed<'_>) {
        let Changed { row, before, after } = change;
        let Some((slice, tenant)) = parts(row) else { return };
        let counted = self.counting.as_ref().is_some_and(|now| now.slice == slice && row <= &now.reached[..]);
        let kept = self.slices.get(usize::from(slice.0)).is_some_and(Option::is_some);
        if !counted && !kept {
            return;
        }
        let Some(tenant) = self.number(tenant) else { return };
        let leaves = match (&mut self.counting, counted) {
            (Some(counting), true) => &mut counting.leaves,
            _ => match self.slices.get_mut(usize::from(slice.0)) {
                Some(Some(leaves)) => leaves,
                // All was forgotten.
                _ => return,
            },
        };
        let had = leaves.len();
        let leaf = leaf_of(leaves, tenant);
        if let Some(before) = before {
            leaf.subtract(&before);
        }
        if let Some(after) = after {
            leaf.add(&after);
        }
        if leaf.is_empty() {
            leaves.retain(|(_, leaf)| !leaf.is_empty());
        }
        let has = leaves.len();
        if !counted {
            self.kept = self.kept + has - had;
            if self.kept > LEAVES {
                self.forget(slice);
            }
        }
    }

    /// What a row is, is not known any longer.
    pub(crate) fn lost(&mut self, row: &[u8]) {
        if let Some((slice, _)) = parts(row) {
            self.forget(slice);
        }
    }

    fn forget(&mut self, slice: Slice) {
        if let Some(counting) = self.counting.as_mut().filter(|counting| counting.slice == slice) {
            counting.spoilt = true;
        }
        if let Some(leaves) = self.slices.get_mut(usize::from(slice.0)).and_then(Option::take) {
            self.kept -= leaves.len();
        }
    }

    /// The number of a tenant; `None` if there were too many, and everything has been forgotten.
    fn number(&mut self, tenant: &[u8]) -> Option<u32> {
        if let Some(number) = self.numbers.get(tenant) {
            return Some(*number);
        }
        if self.names.len() >= TENANTS {
            self.forget_all();
            return None;
        }
        let number = self.names.len() as u32;
        self.names.push(Space::from_trusted(Bytes::copy_from_slice(tenant)));
        self.numbers.insert(tenant.into(), number);
        Some(number)
    }

    /// Begins to count a slice. Another that is being counted is given up.
    pub(crate) fn begin(&mut self, slice: Slice) {
        self.counting = Some(Counting { slice, reached: Bytes::new(), leaves: Leaves::new(), spoilt: false });
    }

    /// Counts the next row of the slice that is being counted; `None`: it cannot be read.
    pub(crate) fn count(&mut self, row: Bytes, read: Option<Row>) {
        let number = parts(&row).and_then(|(_, tenant)| self.number(tenant));
        let Some(counting) = &mut self.counting else { return };
        match (number, read) {
            (Some(number), Some(read)) => leaf_of(&mut counting.leaves, number).add(&read),
            _ => counting.spoilt = true,
        }
        counting.reached = row;
    }

    /// The slice that is being counted has no further rows: it is kept if there is room. Returns its leaves; `None` if they cannot be
    /// known.
    pub(crate) fn end(&mut self) -> Option<Vec<TenantLeaf>> {
        let Counting { slice, mut leaves, .. } = self.counting.take().filter(|counting| !counting.spoilt)?;
        let named = self.named(slice, &leaves);
        if self.slices.is_empty() {
            self.slices.resize_with(SLICES, || None);
        }
        self.forget(slice);
        if self.kept + leaves.len() <= LEAVES {
            leaves.shrink_to_fit();
            self.kept += leaves.len();
            self.slices[usize::from(slice.0)] = Some(leaves);
        }
        Some(named)
    }

    /// The slice that is being counted is given up.
    pub(crate) fn give_up(&mut self) {
        self.counting = None;
    }

    /// The leaves of a slice; `None` if it is not kept.
    pub(crate) fn leaves(&self, slice: Slice) -> Option<Vec<TenantLeaf>> {
        let leaves = self.slices.get(usize::from(slice.0))?.as_ref()?;
        Some(self.named(slice, leaves))
    }

    /// Whether a slice is kept.
    pub(crate) fn keeps(&self, slice: Slice) -> bool {
        self.slices.get(usize::from(slice.0)).is_some_and(Option::is_some)
    }

    fn named(&self, slice: Slice, leaves: &Leaves) -> Vec<TenantLeaf> {
        let named = |(tenant, leaf): &(u32, Leaf)| {
            Some(TenantLeaf { slice, space: self.names.get(*tenant as usize)?.clone(), leaf: *leaf })
        };
        leaves.iter().filter_map(named).collect()
    }
}

/// The leaf of a tenant among those of a slice.
fn leaf_of(leaves: &mut Leaves, tenant: u32) -> &mut Leaf {
    let at = leaves.binary_search_by_key(&tenant, |(tenant, _)| *tenant).unwrap_or_else(|at| {
        // Most slices have few, and there are many slices.
        leaves.reserve_exact(1);
        leaves.insert(at, (tenant, Leaf::default()));
        at
    });
    &mut leaves[at].1
}
