//! What replicas of one key lack.

use crate::fault::Fault;
use crate::limit::PerReplica;
use crate::record::{Damaged, Encoded, Record, WrongMode};

/// The merge of what all replicas hold, and the replicas that lack a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The merge.
    pub record: Encoded,
    /// The replicas to send it to.
    pub lacking: PerReplica<u8>,
}

/// Why records cannot be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmergeable {
    /// One of them is damaged.
    #[error("replica {0}: {1}")]
    Damaged(u8, Damaged),
    /// Records of both conflict modes.
    #[error(transparent)]
    WrongMode(#[from] WrongMode),
}

/// Merges what replicas hold; `None` when no replica has a record.
pub fn merged(held: &[(u8, Option<Encoded>)]) -> Result<Option<Record>, Unmergeable> {
    let mut merged: Option<Record> = None;
    let mut last: Option<&Encoded> = None;
    for (replica, encoded) in held {
        let Some(encoded) = encoded else { continue };
        if last.is_some_and(|last| last == encoded) {
            continue;
        }
        let record = encoded.decode().map_err(|damaged| Unmergeable::Damaged(*replica, damaged))?;
        merged = Some(Record::merge(merged, record)?.0);
        last = Some(encoded);
    }
    Ok(merged)
}

/// Finds the replicas that lack something that another one has. What they remember of writes counts only for replicas that are `exact`:
/// those must hold everything that the merge holds.
pub fn difference(
    held: &[(u8, Option<Encoded>)],
    exact: impl Fn(u8) -> bool,
) -> Result<Option<Difference>, Unmergeable> {
    difference_routine(held, exact, |_| false)
}

/// The same, for a comparison that is made again and again: a merge that `is_old` is not sent to replicas that have nothing, unless they
/// are `exact`. They may have [collected](crate::burial) it, and whoever has kept it would give it back to them without end.
pub fn difference_routine(
    held: &[(u8, Option<Encoded>)],
    exact: impl Fn(u8) -> bool,
    is_old: impl Fn(&Record) -> bool,
) -> Result<Option<Difference>, Unmergeable> {
    let Some((_, first)) = held.first() else { return Ok(None) };
    if held.iter().all(|(_, encoded)| encoded == first) {
        return Ok(None);
    }
    let Some(merged) = merged(held)? else { return Ok(None) };
    let stays_away = is_old(&merged) && !Fault::TombstonesBounce.is_on();
    let mut lacking = PerReplica::new();
    for (replica, encoded) in held {
        let lacks = match encoded {
            None => !stays_away || exact(*replica),
            Some(encoded) => {
                let own = encoded.decode().map_err(|damaged| Unmergeable::Damaged(*replica, damaged))?;
                !own.same_state(&merged) || exact(*replica) && own.lacks(&merged)?
            }
        };
        if lacks {
            lacking.push(*replica);
        }
    }
    Ok((!lacking.is_empty()).then(|| Difference { record: merged.encode(), lacking }))
}

/// Finds the replicas that lack something that another one has, also of what is remembered of writes, except what is too old at
/// `now_micros` (microseconds since 1970) for a replica to keep: whoever is sent that forgets it at once, and would be sent it without end.
pub fn difference_kept(held: &[(u8, Option<Encoded>)], now_micros: u64) -> Result<Option<Difference>, Unmergeable> {
    let Some((_, first)) = held.first() else { return Ok(None) };
    if held.iter().all(|(_, encoded)| encoded == first) {
        return Ok(None);
    }
    let Some(merged) = merged(held)? else { return Ok(None) };
    let mut kept = merged.clone();
    kept.expire(now_micros);
    let mut lacking = PerReplica::new();
    for (replica, encoded) in held {
        let lacks = match encoded {
            None => true,
            Some(encoded) => {
                let mut own = encoded.decode().map_err(|damaged| Unmergeable::Damaged(*replica, damaged))?;
                own.expire(now_micros);
                !own.same_state(&kept) || own.lacks(&kept)?
            }
        };
        if lacks {
            lacking.push(*replica);
        }
    }
    Ok((!lacking.is_empty()).then(|| Difference { record: merged.encode(), lacking }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::limit;
    use crate::name::WriteId;
    use crate::register::{Register, Stamp};
    use crate::siblings::{Name, Siblings};

    fn register(stamp: u64) -> Register {
        Register::written(Stamp(stamp), WriteId([stamp as u8; 16]), Some(Bytes::from_static(b"v")))
    }

    fn encoded(register: Register) -> Option<Encoded> {
        Some(Record::Register(register).encode())
    }

    fn none(_: u8) -> bool {
        false
    }

    #[test]
    fn stale_replicas_get_the_merge() {
        let held = [(0, encoded(register(5))), (1, encoded(register(7))), (2, None)];
        let found = difference(&held, none).unwrap().unwrap();
        assert_eq!(found.lacking.as_slice(), [0, 2]);
        let Record::Register(merged) = found.record.decode().unwrap() else { panic!("a register") };
        assert_eq!(merged.stamp, Stamp(7));
        assert_eq!(merged.recent.entries.len(), 2, "both writes are remembered");
    }

    #[test]
    fn nothing_and_the_same_are_no_difference() {
        assert_eq!(difference(&[], none), Ok(None));
        assert_eq!(difference(&[(0, None), (1, None)], none), Ok(None));
        let junk = || Some(Encoded(Bytes::from_static(b"junk")));
        for same in [|| encoded(register(5)), junk] {
            let held = [(0, same()), (2, same())];
            assert_eq!((difference(&held, none), difference_kept(&held, 1)), (Ok(None), Ok(None)));
        }
    }

    #[test]
    fn a_remembered_write_is_a_difference_only_for_exact_replicas() {
        let mut remembers = register(7);
        remembers.merge(&register(5));
        let held = [(0, encoded(remembers)), (1, encoded(register(7)))];
        assert_eq!(difference(&held, none), Ok(None));
        let found = difference(&held, |replica| replica == 1).unwrap().unwrap();
        assert_eq!(found.lacking.as_slice(), [1]);
        assert_eq!(difference(&held, |replica| replica == 0), Ok(None));
    }

    #[test]
    fn names_that_were_forgotten_are_no_difference_once_they_were_sent() {
        let mut records = [Siblings::default(), Siblings::default()];
        for (n, record) in (0..).zip(&mut records) {
            for id in 0..limit::RECENT_ENTRIES as u64 {
                record.names.note(Name::dead(WriteId([n; 16]), 10));
                record.names.note(Name::dead(WriteId([id as u8 + 100 * n; 16]), 1000 + 2 * id + u64::from(n)));
            }
        }
        let held = |records: &[Siblings; 2]| -> Vec<(u8, Option<Encoded>)> {
            (0..).zip(records).map(|(n, record)| (n, Some(Record::Siblings(record.clone()).encode()))).collect()
        };
        let found = difference(&held(&records), |replica| replica == 1).unwrap().unwrap();
        assert_eq!(found.lacking.as_slice(), [1]);
        let Ok(Record::Siblings(merged)) = found.record.decode() else { panic!("siblings") };
        assert!(merged.names.entries.len() > limit::RECENT_ENTRIES);
        assert!(records[1].absorb(&merged, 0));
        assert_eq!(difference(&held(&records), |replica| replica == 1), Ok(None), "it forgets the oldest, and says so");
    }

    #[test]
    fn what_a_replica_forgets_at_once_is_sent_to_it_once() {
        let day = limit::RECENT_MICROS + limit::CLOCK_SKEW_MICROS;
        for (now, is_old) in [(day, false), (day + 100, true)] {
            let mut source = register(60);
            source.merge(&register(7));
            let mut held = vec![(0, encoded(source)), (1, encoded(register(5))), (2, None)];
            let found = difference_kept(&held, now).unwrap().unwrap();
            let all = [0, 1, 2];
            assert_eq!(
                found.lacking.as_slice(),
                if is_old { &all[1..] } else { &all[..] },
                "the first lacks an old write"
            );
            let sent = found.record.decode().unwrap();
            let Record::Register(all) = &sent else { panic!("a register") };
            assert_eq!(all.recent.entries.len(), 3, "it is sent whole");
            for (_, held) in &mut held {
                let stored = held.take().map(|held| held.decode().unwrap());
                *held = Some(Record::absorb(stored, &sent, now).unwrap().0.encode());
            }
            let Some(Ok(Record::Register(first))) = held[0].1.as_ref().map(Encoded::decode) else {
                panic!("a register")
            };
            assert_eq!(first.recent.entries.is_empty(), is_old);
            assert_eq!(difference_kept(&held, now), Ok(None));
            // One that is not written to keeps what the others have forgotten.
            held[0].1 = Some(sent.encode());
            assert_eq!(difference_kept(&held, now), Ok(None));
            assert_eq!(difference(&held, |_| true).unwrap().is_some(), is_old);
        }
        assert_eq!(difference_kept(&[], 1), Ok(None));
    }

    #[test]
    fn what_cannot_be_merged_is_reported() {
        let siblings = Some(Record::Siblings(Siblings::default()).encode());
        let held = [(0, encoded(register(5))), (1, siblings)];
        assert_eq!(difference(&held, none), Err(Unmergeable::WrongMode(WrongMode)));
        let held = [(0, encoded(register(5))), (3, Some(Encoded(Bytes::from_static(b"junk"))))];
        assert!(matches!(difference(&held, none), Err(Unmergeable::Damaged(3, _))));
    }
}
