//! The join of two records, from sets alone: what must come of a merge, computed without the code under test.

use std::collections::BTreeSet;

use witan_kernel::name::WriteId;
use witan_kernel::siblings::{Actor, Siblings};

type Event = (Actor, u64);

/// What a record knows, each a set that only grows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sets {
    seen: BTreeSet<Event>,
    mints: BTreeSet<(WriteId, Event)>,
    dead: BTreeSet<WriteId>,
    pinned: BTreeSet<WriteId>,
    /// Pins that were taken off: a set that grows, too, and leaves nothing of a pin.
    released: BTreeSet<WriteId>,
    versions: BTreeSet<BTreeSet<WriteId>>,
}

fn sets(record: &Siblings) -> Sets {
    let mut seen: BTreeSet<Event> = BTreeSet::new();
    for (actor, last) in &record.seen.entries {
        seen.extend((1..=*last).map(|counter| (*actor, counter)));
    }
    seen.extend(record.seen.cloud.iter().map(|dot| (dot.actor, dot.counter)));
    let mints = record.versions.iter().flat_map(|version| version.mints());
    let names = |of: fn(&witan_kernel::siblings::Name) -> bool| {
        record.names.entries.iter().filter(|name| of(name)).map(|name| name.id).collect()
    };
    Sets {
        seen,
        mints: mints.map(|(id, dot)| (id, (dot.actor, dot.counter))).collect(),
        dead: names(|name| name.dead),
        pinned: names(|name| name.pinned),
        released: names(|name| name.released),
        versions: record.versions.iter().map(|version| version.ids.iter().copied().collect()).collect(),
    }
}

fn joined(a: &Sets, b: &Sets) -> Sets {
    let mut dead: BTreeSet<WriteId> = a.dead.union(&b.dead).copied().collect();
    for (one, other) in [(a, b), (b, a)] {
        let gone = one.mints.iter().filter(|mint| other.seen.contains(&mint.1) && !other.mints.contains(mint));
        dead.extend(gone.map(|(id, _)| *id));
    }
    let mints: BTreeSet<_> = a.mints.union(&b.mints).filter(|(id, _)| !dead.contains(id)).copied().collect();
    let all: BTreeSet<BTreeSet<WriteId>> = a.versions.union(&b.versions).cloned().collect();
    let is_greatest = |ids: &&BTreeSet<WriteId>| !all.iter().any(|other| other != *ids && ids.is_subset(other));
    let stands = |ids: &&BTreeSet<WriteId>| mints.iter().any(|(id, _)| ids.contains(id));
    let released: BTreeSet<WriteId> = a.released.union(&b.released).copied().collect();
    Sets {
        seen: a.seen.union(&b.seen).copied().collect(),
        pinned: a.pinned.union(&b.pinned).filter(|id| !released.contains(id)).copied().collect(),
        released,
        versions: all.iter().filter(is_greatest).filter(stands).cloned().collect(),
        mints,
        dead,
    }
}

/// Compares a merge with what must come of it.
pub(crate) fn check(a: &Siblings, b: &Siblings, merged: &Siblings) -> Result<(), String> {
    let (expected, found) = (joined(&sets(a), &sets(b)), sets(merged));
    if expected == found { Ok(()) } else { Err(format!("expected {expected:#?}\nfound {found:#?}")) }
}
