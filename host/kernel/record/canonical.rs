//! What holds of every record that puts, merges and collapses create, and that merges rely on. Whatever codec a record was read with, it
//! is refused if it breaks one of these rules: then each record has one encoding, and bytes that no replica has written are not merged.

use smallvec::SmallVec;

use super::Damaged;
use crate::fault::Fault;
use crate::limit::RECENT_ENTRIES;
use crate::name::WriteId;
use crate::recent::Recent;
use crate::siblings::{Dot, Siblings, Version};

/// Lookups and merges depend on the order of lists, and none contains anything twice.
pub(crate) fn sorted<T>(items: &[T], precedes: impl Fn(&T, &T) -> bool) -> Result<(), Damaged> {
    if items.windows(2).all(|pair| precedes(&pair[0], &pair[1])) { Ok(()) } else { Err(Damaged("out of order")) }
}

/// Newest first, each write once, and at most `most`: a merge would keep fewer of more, which ones depending on the order of merges.
pub(super) fn recent(recent: &Recent, most: usize) -> Result<(), Damaged> {
    let entries = &recent.entries;
    if entries.len() > most {
        return Err(Damaged("too many remembered writes"));
    }
    sorted(entries, |a, b| (a.1, a.0) > (b.1, b.0))?;
    if has_twice(entries) { Err(Damaged("a write is remembered twice")) } else { Ok(()) }
}

/// Comparing half of each id finds nearly every difference: whole ids are compared only where that finds none.
fn has_twice(entries: &[(WriteId, u64)]) -> bool {
    let mut halves: SmallVec<[u64; RECENT_ENTRIES]> = entries.iter().map(|(id, _)| half(id)).collect();
    if entries.len() > RECENT_ENTRIES {
        halves.sort_unstable();
        if halves.windows(2).all(|pair| pair[0] != pair[1]) {
            return false;
        }
        let mut ids: Vec<WriteId> = entries.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        return ids.windows(2).any(|pair| pair[0] == pair[1]);
    }
    entries
        .iter()
        .enumerate()
        .any(|(at, (id, _))| halves[..at].contains(&halves[at]) && entries[..at].iter().any(|(other, _)| other == id))
}

fn half(id: &WriteId) -> u64 {
    id.0.first_chunk().map_or(0, |half| u64::from_ne_bytes(*half))
}

/// Versions in order, each with events that were seen; no event has two writes, and no version contains another. What the record remembers
/// is checked by [`recent`].
pub(super) fn siblings(record: &Siblings) -> Result<(), Damaged> {
    if Fault::UncanonicalAccepted.is_on() {
        return Ok(());
    }
    let versions = &record.versions;
    for version in versions {
        alone(version)?;
        for dot in &version.dots {
            if dot.counter == 0 {
                return Err(Damaged("event 0"));
            }
            if !record.seen.covers(dot) {
                return Err(Damaged("an event that was not seen"));
            }
        }
    }
    sorted(versions, |a, b| (&a.dots, &a.ids) < (&b.dots, &b.ids))?;
    if versions.len() > 1 { beside_each_other(versions) } else { Ok(()) }
}

fn alone(version: &Version) -> Result<(), Damaged> {
    sorted(&version.dots, |a, b| a < b)?;
    sorted(&version.ids, |a, b| a < b)?;
    if version.dots.is_empty() || version.ids.is_empty() {
        return Err(Damaged("a version without events or writes"));
    }
    // A verdict is a value. Were it a deletion, the next verdict might be made of its writes, and contain it.
    if version.value.is_none() && version.ids.len() > 1 {
        return Err(Damaged("a deletion of several writes"));
    }
    Ok(())
}

/// A write and an event that was minted for it.
type Mint = (WriteId, Dot);

fn beside_each_other(versions: &[Version]) -> Result<(), Damaged> {
    let mut mints: SmallVec<[Mint; 4]> = versions.iter().flat_map(Version::mints).collect();
    mints.sort_unstable_by_key(|(_, dot)| *dot);
    if mints.windows(2).any(|pair| pair[0].1 == pair[1].1 && pair[0].0 != pair[1].0) {
        return Err(Damaged("an event of two writes"));
    }
    let places = (0..).zip(versions).flat_map(|(place, version)| version.ids.iter().map(move |id| (*id, place)));
    let mut places: SmallVec<[(WriteId, usize); 4]> = places.collect();
    places.sort_unstable();
    if places.windows(2).all(|pair| pair[0].0 != pair[1].0) {
        return Ok(());
    }
    mints.sort_unstable();
    mints.dedup();
    versions.iter().enumerate().try_for_each(|(place, version)| overlapping(place, version, versions, &places, &mints))
}

/// Coordinators that have seen different siblings collapse them into versions that have writes in common. Each carries all events of
/// its writes, and neither contains the other.
fn overlapping(
    place: usize,
    version: &Version,
    versions: &[Version],
    places: &[(WriteId, usize)],
    mints: &[Mint],
) -> Result<(), Damaged> {
    let first = &version.ids[0];
    let from = places.partition_point(|(id, _)| id < first);
    for (_, other) in places[from..].iter().take_while(|(id, _)| id == first).filter(|(_, other)| *other != place) {
        let other = &versions[*other];
        if version.ids == other.ids {
            return Err(Damaged("two versions of the same writes"));
        }
        if version.ids.iter().all(|id| other.includes(id)) {
            return Err(Damaged("a version within another one"));
        }
    }
    let minted = |id: &WriteId| {
        let from = mints.partition_point(|(write, _)| write < id);
        mints[from..].iter().take_while(|(write, _)| write == id).count()
    };
    if version.ids.iter().map(minted).sum::<usize>() != version.dots.len() {
        return Err(Damaged("a version without an event of its writes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` writes, newest first, whose ids differ in their last byte only.
    fn remembered(count: u8) -> Recent {
        let id = |n| {
            let mut id = [7; 16];
            id[15] = n;
            WriteId(id)
        };
        Recent { entries: (0..count).map(|n| (id(n), 1000 - u64::from(n))).collect(), horizon: 0 }
    }

    #[test]
    fn a_write_is_found_twice_in_short_and_in_long_lists() {
        for count in [2, 3, RECENT_ENTRIES as u8, RECENT_ENTRIES as u8 + 1, 200] {
            let mut list = remembered(count);
            assert_eq!(recent(&list, usize::MAX), Ok(()), "{count}");
            list.entries[usize::from(count) - 1].0 = list.entries[0].0;
            assert_eq!(recent(&list, usize::MAX), Err(Damaged("a write is remembered twice")), "{count}");
        }
        let mut apart = remembered(200);
        apart.entries.iter_mut().for_each(|(id, time)| id.0[..8].copy_from_slice(&time.to_ne_bytes()));
        assert_eq!(recent(&apart, usize::MAX), Ok(()));
    }

    #[test]
    fn as_many_are_remembered_as_a_merge_keeps() {
        let most = RECENT_ENTRIES;
        assert_eq!(recent(&remembered(most as u8), most), Ok(()));
        assert_eq!(recent(&remembered(most as u8 + 1), most), Err(Damaged("too many remembered writes")));
    }
}
