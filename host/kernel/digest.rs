//! Digests: what replicas compare instead of the records that they hold.
//!
//! For each [space](crate::space) and each [slice](crate::slice) of the tokens, a node keeps a [`Leaf`]: the number and
//! the sum of the hashes of its rows. A sum, so that a change of a row takes the old hash away and adds the new one, in any order, and so
//! that leaves are combined by adding them. Of an exclusive or alone, two equal rows too many would be nothing; the
//! count and the carries make that a difference.
//!
//! Equal leaves are taken for equal rows, for one purpose only: a comparison that would find nothing is left out. Nothing is sent, dropped
//! or believed for what a digest says. The hash is fast and not cryptographic: a tenant that sought two values of one hash could keep a
//! difference between replicas of its own records from being seen until everything is read again, and of nobody else's.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::Xxh3;

use crate::limit::PerReplica;
use crate::name::StoreId;
use crate::placement::Tokens;
use crate::record::Record;
use crate::siblings::Dot;
use crate::slice::Slice;
use crate::space::Space;

/// Most leaves on a page, but those of its last slice: 150 kB of a message.
pub const PAGE_LEAVES: usize = 4096;

/// What a digest has of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Equal for two rows exactly if they have the same place and [the same state](Record::same_state).
    pub hash: u128,
    /// If the row has no live value: the time of the newest write in it, microseconds; 0 if it has none.
    pub buried: Option<u64>,
}

impl Row {
    /// The row of a record. What it remembers of writes does not count, as little as for [`Record::same_state`].
    pub fn of(token: u64, space: &[u8], key: &[u8], record: &Record) -> Self {
        let mut hash = Content(Xxh3::new());
        hash.number(token);
        hash.bytes(space);
        hash.bytes(key);
        let newest = match record {
            Record::Register(register) => {
                hash.number(0);
                hash.number(register.stamp.0);
                hash.0.update(&register.write_id.0);
                hash.value(register.value.as_deref());
                register.stamp.0
            }
            Record::Siblings(siblings) => {
                hash.number(1);
                hash.number(siblings.seen.entries.len() as u64);
                for (actor, counter) in &siblings.seen.entries {
                    hash.0.update(&actor.store.0);
                    hash.number(actor.birth);
                    hash.number(*counter);
                }
                hash.dots(&siblings.seen.cloud);
                hash.number(siblings.versions.len() as u64);
                for version in &siblings.versions {
                    hash.dots(&version.dots);
                    version.minted_for.iter().for_each(|write| hash.number(u64::from(*write)));
                    hash.number(version.ids.len() as u64);
                    version.ids.iter().for_each(|id| hash.0.update(&id.0));
                    hash.number(version.time);
                    hash.value(version.value.as_deref());
                }
                siblings.versions.iter().map(|version| version.time).max().unwrap_or(0)
            }
        };
        Self { hash: hash.0.digest128(), buried: record.is_deleted().then_some(newest) }
    }
}

/// A hash of fields, each of a known length or after its length: no two contents are the same bytes.
struct Content(Xxh3);

impl Content {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn dots(&mut self, dots: &[Dot]) {
        self.number(dots.len() as u64);
        for dot in dots {
            self.0.update(&dot.actor.store.0);
            self.number(dot.actor.birth);
            self.number(dot.counter);
        }
    }

    fn value(&mut self, value: Option<&[u8]>) {
        self.number(u64::from(value.is_some()));
        self.bytes(value.unwrap_or_default());
    }
}

/// The digest of the rows of a tenant in a slice. Two with the same number and sum are of the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leaf {
    /// The sum of the hashes, which wraps.
    pub sum: u128,
    /// No row without a live value is older than this, microseconds, as long as there is one. It may be earlier than the oldest of them.
    pub oldest_buried: u64,
    /// Number of rows.
    pub count: u32,
    /// Number of rows without a live value.
    pub buried: u32,
}

impl Leaf {
    /// A row is there.
    pub fn add(&mut self, row: &Row) {
        self.combine(&Self {
            sum: row.hash,
            oldest_buried: row.buried.unwrap_or_default(),
            count: 1,
            buried: u32::from(row.buried.is_some()),
        });
    }

    /// A row is no longer there, or not as it was.
    pub fn subtract(&mut self, row: &Row) {
        self.sum = self.sum.wrapping_sub(row.hash);
        self.count = self.count.wrapping_sub(1);
        self.buried = self.buried.wrapping_sub(u32::from(row.buried.is_some()));
        if self.buried == 0 {
            self.oldest_buried = 0;
        }
    }

    /// The rows of both.
    pub fn combine(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.oldest_buried = match (self.buried, other.buried) {
            (_, 0) => self.oldest_buried,
            (0, _) => other.oldest_buried,
            _ => self.oldest_buried.min(other.oldest_buried),
        };
        self.count = self.count.wrapping_add(other.count);
        self.buried = self.buried.wrapping_add(other.buried);
    }

    /// Whether two replicas have the same rows.
    pub fn is_level_with(&self, other: &Self) -> bool {
        (self.count, self.sum) == (other.count, other.sum)
    }

    /// Whether it is of no rows.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// False if no row without a live value is of before `micros`. True says little: such a row may be gone.
    pub fn may_have_tombstones_before(&self, micros: u64) -> bool {
        self.buried > 0 && self.oldest_buried < micros
    }
}

/// A request for the digests of the rows between two tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of this tenant in this generation; `None`: of all.
    pub space: Option<Space>,
    /// The first and the last token. Of a slice that reaches beyond them, what lies between them counts.
    pub tokens: Tokens,
}

/// The leaf of a space in a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantLeaf {
    /// The slice.
    pub slice: Slice,
    /// The tenant, in one of its generations.
    pub space: Space,
    /// What its rows there are.
    pub leaf: Leaf,
}

/// A part of the digests that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// The store that has answered.
    pub store: StoreId,
    /// The last token of which this says something; the next request begins after it.
    pub to: u64,
    /// Leaves, by slice. Those of no rows may be missing.
    pub leaves: Vec<TenantLeaf>,
    /// Slices of which it says nothing, by number: they have too much to be counted, or a row in them cannot be read.
    pub unknown: Vec<Slice>,
    /// How many rows the node has read for this answer.
    pub read_rows: u64,
    /// Their bytes.
    pub read_bytes: u64,
}

/// Among whom the rows of a space are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Among {
    /// Its rows here are nobody's concern: its tenant is deleted, placed elsewhere, or in another generation.
    Nobody,
    /// These replicas, as far as they have answered.
    Replicas(PerReplica<u8>),
    /// That is different for each key: they are to be read.
    Unclear,
}

/// The parts of `tokens` whose records have to be read because replicas may differ there, in order and without neighbours, and the number
/// of slices that were found level. Each replica has answered for all of `tokens`, or for more. `collected`: level slices are to be read
/// all the same if they may have tombstones of before then, in microseconds; 0: none.
pub fn differing(
    answers: &[(u8, Digests)],
    tokens: Tokens,
    collected: u64,
    mut among: impl FnMut(&Space) -> Among,
) -> (Vec<Tokens>, u64) {
    let mut unknown: BTreeSet<Slice> = BTreeSet::new();
    let mut leaves: BTreeMap<(Slice, &Space), PerReplica<(u8, Leaf)>> = BTreeMap::new();
    for (replica, answer) in answers {
        unknown.extend(&answer.unknown);
        for known in &answer.leaves {
            leaves.entry((known.slice, &known.space)).or_default().push((*replica, known.leaf));
        }
    }
    let mut differ = unknown;
    for ((slice, space), known) in &leaves {
        if differ.contains(slice) {
            continue;
        }
        let members = match among(space) {
            Among::Nobody => continue,
            Among::Unclear => {
                differ.insert(*slice);
                continue;
            }
            Among::Replicas(members) => members,
        };
        let mut answered = answers.iter().map(|(replica, _)| replica).filter(|replica| members.contains(replica));
        let of = |replica: &u8| known.iter().find(|(of, _)| of == replica).map(|(_, leaf)| *leaf).unwrap_or_default();
        let first = answered.next().map(of).unwrap_or_default();
        let has_old = members.iter().any(|replica| of(replica).may_have_tombstones_before(collected));
        if has_old || !answered.all(|replica| of(replica).is_level_with(&first)) {
            differ.insert(*slice);
        }
    }
    let (first, last) = (Slice::of(tokens.0), Slice::of(tokens.1));
    let mut spans: Vec<Tokens> = Vec::new();
    let mut read = 0;
    for slice in differ.into_iter().filter(|slice| (first..=last).contains(slice)) {
        read += 1;
        let (from, to) = slice.tokens();
        let (from, to) = (from.max(tokens.0), to.min(tokens.1));
        match spans.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(from) => *end = to,
            _ => spans.push((from, to)),
        }
    }
    (spans, u64::from(last.0) - u64::from(first.0) + 1 - read)
}

#[cfg(test)]
mod tests;
