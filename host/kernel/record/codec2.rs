//! V2 of a `siblings` record: the body of V1, in which `recent` lists the superseded writes that were never pinned; then those that are or
//! were, newest first (id, time as in V1, marks: 1 superseded, 2 released); then single events beyond the vector, sorted (actor, counter).

use smallvec::SmallVec;

use super::Damaged;
use super::canonical::sorted;
use super::raw::{ID, Raw, put_actor, put_varint};
use crate::name::WriteId;
use crate::recent::Recent;
use crate::siblings::{Dot, Name, Names, Siblings};

pub(super) const V2: u8 = 2;

/// True when V1 has no room for a part of the record.
pub(super) fn is_needed(siblings: &Siblings) -> bool {
    !siblings.seen.cloud.is_empty() || siblings.names.entries.iter().any(is_special)
}

/// True for a name that V1 has no room for.
pub(super) fn is_special(name: &Name) -> bool {
    name.pinned || name.released
}

/// Writes what V1 has no room for.
pub(super) fn put(out: &mut Vec<u8>, siblings: &Siblings) {
    let pinned = || siblings.names.entries.iter().filter(|name| is_special(name));
    put_varint(out, pinned().count() as u64);
    put_times(out, pinned(), |out, name| out.push(u8::from(name.dead) | u8::from(name.released) << 1));
    put_varint(out, siblings.seen.cloud.len() as u64);
    for dot in &siblings.seen.cloud {
        put_actor(out, &dot.actor);
        put_varint(out, dot.counter);
    }
}

/// Writes ids with times: the first as it is, the others as what they are below the one before.
pub(super) fn put_times<'a>(
    out: &mut Vec<u8>,
    names: impl Iterator<Item = &'a Name>,
    and: impl Fn(&mut Vec<u8>, &Name),
) {
    let mut newer = None;
    for name in names {
        out.extend_from_slice(&name.id.0);
        put_varint(out, newer.map_or(name.time, |newer: u64| newer.wrapping_sub(name.time)));
        and(out, name);
        newer = Some(name.time);
    }
}

/// Reads what follows on a body of V1, whose `recent` is given. The form of a record is its only one: anything else is damaged.
pub(super) fn read(raw: &mut Raw<'_>, siblings: &mut Siblings, recent: Recent) -> Result<(), Damaged> {
    let pinned = pinned(raw)?;
    siblings.seen.cloud = cloud(raw)?;
    if !siblings.seen.is_compact() {
        return Err(Damaged("an event that belongs into the vector"));
    }
    let loose = recent.entries.into_iter().map(|(id, time)| Name::dead(id, time));
    let mut entries: SmallVec<[Name; 2]> = loose.chain(pinned).collect();
    entries.sort_unstable_by_key(|name| std::cmp::Reverse((name.time, name.id)));
    siblings.names = Names { entries, horizon: recent.horizon };
    if !is_needed(siblings) {
        return Err(Damaged("has nothing that its codec version is for"));
    }
    check_ids(siblings)
}

fn pinned(raw: &mut Raw<'_>) -> Result<Vec<Name>, Damaged> {
    let count = raw.count(ID + 2)?;
    let mut names: Vec<Name> = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, number) = (raw.write_id()?, raw.varint()?);
        let time = match names.last() {
            None => number,
            Some(newer) => newer.time.checked_sub(number).ok_or(Damaged("a time below zero"))?,
        };
        let (dead, released) = match raw.varint()? {
            marks @ 0..4 => (marks & 1 != 0, marks & 2 != 0),
            _ => return Err(Damaged("an unknown mark of a name")),
        };
        names.push(Name { id, time, dead, pinned: !released, released });
    }
    sorted(&names, |a, b| (a.time, a.id) > (b.time, b.id))?;
    Ok(names)
}

fn cloud(raw: &mut Raw<'_>) -> Result<SmallVec<[Dot; 0]>, Damaged> {
    let count = raw.count(ID + 2)?;
    let mut cloud = SmallVec::with_capacity(count);
    for _ in 0..count {
        cloud.push(Dot { actor: raw.actor()?, counter: raw.varint()? });
    }
    sorted(&cloud, |a, b| a < b)?;
    Ok(cloud)
}

/// No write has two names, and none that is superseded has an event in a version.
fn check_ids(siblings: &Siblings) -> Result<(), Damaged> {
    let mut ids: Vec<WriteId> = siblings.names.entries.iter().map(|name| name.id).collect();
    ids.sort_unstable();
    sorted(&ids, |a, b| a < b).map_err(|_| Damaged("a write has two names"))?;
    let mints = siblings.versions.iter().flat_map(|version| version.mints());
    let mut minted: Vec<WriteId> = mints.map(|(id, _)| id).collect();
    minted.sort_unstable();
    let stands = |name: &&Name| name.dead && minted.binary_search(&name.id).is_ok();
    match siblings.names.entries.iter().find(stands) {
        Some(_) => Err(Damaged("a superseded write has a version")),
        None => Ok(()),
    }
}
