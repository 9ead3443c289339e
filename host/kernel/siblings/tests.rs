use super::{
    Actor, Dot, ENTRY_BYTES, Name, Names, RECENT_BYTES, Refusal, Shown, Siblings, VERSION_BYTES, VersionVector, Write,
    collapse,
};
use crate::fault::{self, Fault};
use crate::limit;
use crate::name::{StoreId, WriteId};
use crate::record::Record;
use bytes::Bytes;

const NOW: u64 = 1_700_000_000_000_000;

fn actor(n: u8) -> Actor {
    Actor { store: StoreId([n; 16]), birth: 1 }
}

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn write(n: u8, value: &'static str, context: Option<&Siblings>) -> Write {
    let Shown { seen, ids, newest } = context.map(Siblings::context_claims).unwrap_or_default();
    let value = Some(Bytes::from_static(value.as_bytes()));
    Write { write_id: id(n), started: NOW + u64::from(n), again: false, asked: false, seen, ids, newest, value }
}

fn delete(n: u8, context: &Siblings) -> Write {
    Write { value: None, ..write(n, "", Some(context)) }
}

fn merged(a: &Siblings, b: &Siblings) -> Siblings {
    let mut out = a.clone();
    out.merge(b);
    out
}

fn values(record: &Siblings) -> Vec<Bytes> {
    record.live_values_deduplicated().into_iter().map(|sibling| sibling.value).collect()
}

#[test]
fn what_the_context_covers_goes_and_the_rest_stays() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    let read = record.clone();
    let dot = record.put(&write(2, "b", None), actor(1));
    assert_eq!(dot, Dot { actor: actor(1), counter: 2 });
    assert_eq!(values(&record), ["a", "b"]);
    record.put(&write(3, "c", Some(&read)), actor(1));
    assert_eq!(values(&record), ["b", "c"]);
    assert_eq!(record.context_claims().ids, [id(3), id(2)], "newest first");
    assert_eq!(record.knows(&id(1)), Some(NOW + 1), "superseded and still known");
    assert_eq!(record.actor_of(&StoreId([1; 16])), Some(actor(1)));
    assert_eq!(record.actor_of(&StoreId([2; 16])), None);
}

#[test]
fn a_context_of_another_replica_moves_no_counter_of_the_actor() {
    let mut there = Siblings::default();
    for n in 1..=7 {
        there.put(&write(n, "x", None), actor(2));
    }
    let mut here = Siblings::default();
    let dot = here.put(&write(8, "y", Some(&there)), actor(1));
    assert_eq!(dot.counter, 1);
    assert_eq!(values(&merged(&here, &there)), ["y"]);
}

#[test]
fn a_write_minted_twice_is_one_version_and_goes_as_one() {
    let put = write(1, "a", None);
    let (mut first, mut second) = (Siblings::default(), Siblings::default());
    first.put(&put, actor(1));
    let read_at_first = first.clone();
    second.put(&Write { again: true, ..put }, actor(2));
    let both = merged(&first, &second);
    assert_eq!((both.versions.len(), both.versions[0].dots.len()), (1, 2));
    first.put(&delete(2, &read_at_first), actor(1));
    for joined in [merged(&first, &second), merged(&second, &first), merged(&both, &first)] {
        assert!(joined.is_deleted(), "the second dot is the same write: {joined:?}");
    }
}

#[test]
fn values_win_over_tombstones_and_equal_bytes_count_once() {
    let mut record = Siblings::default();
    assert!(record.is_deleted());
    record.put(&write(1, "a", None), actor(1));
    let read = record.clone();
    record.put(&write(2, "b", None), actor(1));
    record.put(&write(3, "b", None), actor(1));
    record.put(&delete(4, &read), actor(1));
    assert_eq!(record.versions.len(), 3);
    assert_eq!(record.live().count(), 2);
    let [only] = record.live_values_deduplicated().try_into().expect("one value");
    assert_eq!((only.value, only.time), (Bytes::from_static(b"b"), NOW + 3));
    let mut emptied = read.clone();
    emptied.put(&delete(5, &read), actor(1));
    assert!(emptied.is_deleted());
    assert_eq!(emptied.live().count(), 1, "the tombstone is left");
}

#[test]
fn a_collapsed_version_inherits_and_mints_nothing() {
    let mut record = Siblings::default();
    for n in 1..=3 {
        record.put(&write(n, ["a", "b", "c"][usize::from(n) - 1], None), actor(1));
    }
    let collapsed = collapse(&record, Bytes::from_static(b"abc"));
    assert_eq!(collapsed.seen, record.seen);
    assert_eq!(
        (collapsed.versions[0].dots.len(), collapsed.versions[0].ids.len(), collapsed.versions[0].time),
        (3, 3, NOW + 3)
    );
    assert_eq!(merged(&record, &collapsed), collapsed);
    assert_eq!(collapse(&collapsed, Bytes::from_static(b"other")), collapsed, "nothing left to collapse");
    // A client that had read the siblings has seen all of it.
    let mut written = collapsed.clone();
    written.put(&write(4, "d", Some(&record)), actor(1));
    assert_eq!(values(&merged(&written, &collapsed)), ["d"]);
    // A client that had read a part of it has not.
    let mut part = Siblings::default();
    part.put(&write(1, "a", None), actor(1));
    let mut late = collapsed.clone();
    late.put(&write(5, "e", Some(&part)), actor(1));
    assert_eq!(values(&late), ["abc", "e"]);
    assert_eq!(late.versions[0].dots.len(), 2);
}

#[test]
fn verdicts_over_the_same_writes_agree_everywhere() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    record.put(&write(2, "b", None), actor(1));
    let (one, other) = (collapse(&record, Bytes::from_static(b"ab")), collapse(&record, Bytes::from_static(b"ba")));
    assert_eq!(merged(&one, &other), merged(&other, &one));
    assert_eq!(merged(&one, &other).versions.len(), 1);
}

#[test]
fn doubtful_and_oversized_puts_are_refused() {
    let again = |n| Write { again: true, ..write(n, "a", None) };
    let mut record = Siblings::default();
    assert_eq!(record.refuse(&again(1), NOW + 2), Ok(()));
    assert_eq!(record.refuse(&again(1), NOW + 1 + limit::PUT_RETRY_MICROS), Err(Refusal::InDoubt));
    record.names.horizon = NOW + 1;
    assert_eq!(record.refuse(&again(1), NOW + 2), Err(Refusal::InDoubt));
    assert_eq!(record.refuse(&again(2), NOW + 2), Ok(()));
    assert_eq!(record.refuse(&write(1, "a", None), NOW + 2), Ok(()), "a first attempt is in no doubt");

    for n in 0..limit::SIBLINGS as u8 {
        assert_eq!(record.refuse(&write(n, "a", None), NOW), Ok(()), "so far there are {n}");
        record.put(&write(n, "a", None), actor(1));
    }
    assert_eq!(record.refuse(&write(200, "b", None), NOW), Err(Refusal::TooLarge));
    assert_eq!(record.refuse(&write(200, "b", Some(&record)), NOW), Ok(()), "it covers them");

    let mut large = Siblings::default();
    let value = Some(Bytes::from(vec![0; limit::VALUE_BYTES]));
    for n in 1..=3 {
        let put = Write { value: value.clone(), ..write(n, "", None) };
        assert_eq!(large.refuse(&put, NOW), Ok(()));
        large.put(&put, actor(1));
    }
    let fourth = Write { value, ..write(4, "", None) };
    assert_eq!(large.refuse(&fourth, NOW), Err(Refusal::TooLarge));
}

/// The longest value with which a record accepts a write.
fn room(record: &Siblings, of: &Write) -> usize {
    let bytes = Bytes::from(vec![0; limit::RECORD_BYTES + 1]);
    let refuses = |length: usize| {
        let value = Some(bytes.slice(..length));
        record.refuse(&Write { value, ..of.clone() }, NOW) == Err(Refusal::TooLarge)
    };
    let (mut accepted, mut refused) = (0, bytes.len());
    assert!(refuses(refused) && !refuses(accepted));
    while accepted + 1 < refused {
        let middle = (accepted + refused) / 2;
        if refuses(middle) {
            refused = middle;
        } else {
            accepted = middle;
        }
    }
    accepted
}

/// Events, versions that stay, their writes, and names beyond those that every record may have: each takes its part of the limit, and
/// what the write supersedes takes none.
#[test]
fn all_that_a_record_would_hold_counts_towards_its_limit() {
    const ID: usize = size_of::<WriteId>();
    let first = write(1, "", None);
    let empty = room(&Siblings::default(), &first);
    assert_eq!(empty, limit::RECORD_BYTES - VERSION_BYTES - limit::RECENT_ENTRIES * RECENT_BYTES);

    let mut has_seen = VersionVector::default();
    has_seen.advance(&Dot { actor: actor(1), counter: 3 });
    has_seen.add(&Dot { actor: actor(1), counter: 5 });
    let record = Siblings { seen: has_seen.clone(), ..Siblings::default() };
    assert_eq!(room(&record, &first), empty - 2 * ENTRY_BYTES, "events of the record");
    let claims = Write { seen: has_seen, ..first.clone() };
    assert_eq!(room(&record, &claims), empty - 4 * ENTRY_BYTES, "events of the context");

    // One version of three writes and as many events.
    let mut record = Siblings::default();
    for n in 2..=4 {
        record.put(&write(n, ["five", "fives", "sevens"][usize::from(n) - 2], None), actor(n));
    }
    let collapsed = collapse(&record, Bytes::from_static(b"verdict"));
    let seen = 3 * ENTRY_BYTES;
    let version = 7 + VERSION_BYTES + 3 * ENTRY_BYTES + 3 * ID;
    assert_eq!(room(&collapsed, &first), empty - seen - version);
    let (lengths, each) = (4 + 5 + 6, VERSION_BYTES + ENTRY_BYTES + ID);
    assert_eq!(room(&record, &first), empty - seen - lengths - 3 * each);
    assert_eq!(room(&collapsed, &write(5, "", Some(&collapsed))), empty - 2 * seen, "it is superseded");

    let mut named = Siblings::default();
    for n in 0..=limit::RECENT_ENTRIES as u8 + 1 {
        assert_eq!(room(&named, &first), empty - usize::from(n.saturating_sub(64)) * RECENT_BYTES, "{n} names");
        named.names.note(Name::dead(id(n), NOW));
    }
    for record in [record, collapsed, named] {
        let estimated = limit::RECORD_BYTES - room(&record, &first);
        assert!(Record::Siblings(record).encode().0.len() <= estimated, "an estimate is never too low");
    }
}

#[test]
fn faults_break_it() {
    let (mut stored, mut sent) = (Siblings::default(), Siblings::default());
    stored.put(&write(1, "a", None), actor(1));
    sent.put(&write(2, "b", None), actor(2));
    fault::set(Some(Fault::OverwriteInsteadOfMerge));
    assert_eq!(merged(&stored, &sent), sent);
    assert!(stored.clone().merge(&sent) && !stored.clone().merge(&stored.clone()));
    fault::set(Some(Fault::WriteIdForgotten));
    assert_eq!(stored.knows(&id(1)), None);
    fault::set(None);
    assert_eq!(stored.knows(&id(1)), Some(NOW + 1));
}

#[test]
fn vectors_join_and_dominate() {
    let mut a = VersionVector::default();
    a.advance(&Dot { actor: actor(2), counter: 5 });
    a.advance(&Dot { actor: actor(1), counter: 1 });
    a.advance(&Dot { actor: actor(2), counter: 3 });
    assert_eq!((a.get(&actor(1)), a.get(&actor(2)), a.get(&actor(3))), (1, 5, 0));
    assert!(a.covers(&Dot { actor: actor(2), counter: 5 }) && !a.covers(&Dot { actor: actor(2), counter: 6 }));
    let mut b = VersionVector::default();
    b.advance(&Dot { actor: actor(3), counter: 1 });
    assert!(!a.dominates(&b) && !b.dominates(&a));
    assert!(b.join(&a) && !b.join(&a));
    assert!(b.dominates(&a) && !a.dominates(&b));
    assert!(b.entries.is_sorted());
}

#[test]
fn single_events_are_kept_while_they_neither_follow_nor_are_covered() {
    let dot = |counter| Dot { actor: actor(1), counter };
    let seen_after = |advanced: u64| {
        let mut seen = VersionVector::default();
        assert!(seen.add(&dot(5)) && seen.add(&dot(8)));
        seen.advance(&dot(advanced));
        (seen.get(&actor(1)), seen.cloud.to_vec())
    };
    assert_eq!(seen_after(3), (3, vec![dot(5), dot(8)]));
    assert_eq!(seen_after(4), (5, vec![dot(8)]), "5 follows on 4");
    assert_eq!(seen_after(5), (5, vec![dot(8)]), "5 is covered by 5");
    assert_eq!(seen_after(6), (6, vec![dot(8)]));
    assert_eq!(seen_after(7), (8, vec![]));
    assert_eq!(seen_after(9), (9, vec![]));
    let mut seen = VersionVector::default();
    seen.advance(&dot(3));
    assert!(!seen.add(&dot(3)) && seen.add(&dot(4)), "4 is new");
    assert_eq!((seen.get(&actor(1)), seen.cloud.len()), (4, 0));
    let mut single = VersionVector::default();
    single.add(&dot(9));
    assert!(seen.join(&single) && !seen.join(&single) && seen.covers(&dot(9)));
}

fn released(n: u8, time: u64) -> Name {
    Name { dead: false, pinned: false, released: true, ..Name::dead(id(n), time) }
}

fn named(horizon: u64, names: &[Name]) -> Names {
    let mut out = Names { horizon, ..Names::default() };
    for name in names {
        out.note(*name);
    }
    out
}

/// Names of two writes at most, with every mark, and horizons before, at and after their times.
fn small_names() -> Vec<Names> {
    let lists = [
        vec![],
        vec![Name::dead(id(1), 5)],
        vec![Name::dead(id(1), 7)],
        vec![Name::pinned(id(1), 5)],
        vec![released(1, 5)],
        vec![Name { dead: true, ..released(1, 5) }],
        vec![Name { dead: true, ..Name::pinned(id(1), 5) }],
        vec![Name::dead(id(2), 5)],
        vec![Name::dead(id(1), 5), Name::dead(id(2), 5)],
        vec![Name::dead(id(1), 5), Name::pinned(id(2), 7)],
    ];
    let horizons = [0, 5, 6];
    horizons.iter().flat_map(|horizon| lists.iter().map(|names| named(*horizon, names))).collect()
}

#[test]
fn a_name_is_there_once_newest_first_and_loses_no_mark() {
    let mut names = Names::default();
    assert!(names.note(Name::dead(id(1), 5)) && !names.note(Name::dead(id(1), 5)) && !names.note(Name::dead(id(1), 4)));
    assert!(names.note(Name::dead(id(3), 5)) && names.note(Name::dead(id(2), 5)) && names.note(Name::pinned(id(4), 9)));
    let order = |names: &Names| names.entries.iter().map(|name| (name.id.0[0], name.time)).collect::<Vec<_>>();
    assert_eq!(order(&names), [(4, 9), (3, 5), (2, 5), (1, 5)], "equal times: the greater write first");
    assert!(names.note(Name::dead(id(2), 8)) && names.note(Name::pinned(id(3), 1)));
    assert_eq!(order(&names), [(4, 9), (2, 8), (3, 5), (1, 5)]);
    assert_eq!(names.get(&id(3)), Some(&Name { pinned: true, ..Name::dead(id(3), 5) }), "dead, and pinned besides");
    assert_eq!((names.pins(), names.get(&id(9))), (2, None));
    assert!(names.note(released(3, 2)) && !names.note(Name::pinned(id(3), 5)), "once released, never pinned again");
    assert_eq!(names.get(&id(3)), Some(&Name { released: true, ..Name::dead(id(3), 5) }));
    assert!(names.is_dead(&id(3)) && !names.is_dead(&id(4)) && names.is_pinned(&id(4)) && !names.is_pinned(&id(3)));
}

#[test]
fn a_join_of_names_is_each_of_them_noted_and_says_whether_that_was_news() {
    for a in small_names() {
        for b in small_names() {
            let mut joined = a.clone();
            let news = joined.join(&b);
            assert_eq!(joined.entries, named(0, &[&a.entries[..], &b.entries[..]].concat()).entries);
            assert_eq!((joined.horizon, news), (a.horizon.max(b.horizon), joined != a), "{a:?} {b:?}");
        }
    }
}

/// What a join would add is lacking, except superseded writes that may have been forgotten on purpose, and pins that were released.
#[test]
fn names_that_may_have_been_forgotten_are_not_lacking() {
    for a in small_names() {
        for b in small_names() {
            let mut told = b.clone();
            told.entries.retain(|name| {
                let forgotten = if name.dead { name.time <= a.horizon } else { true };
                a.get(&name.id).is_some() || name.pinned || !forgotten
            });
            assert_eq!(a.lack(&b), a.clone().join(&told), "{a:?} {b:?}");
        }
    }
}

#[test]
fn pinned_names_take_no_room_and_only_superseded_ones_raise_the_horizon() {
    let old = limit::CLOCK_SKEW_MICROS + limit::RECENT_MICROS;
    let mut names = named(0, &[Name::pinned(id(200), 1), Name::pinned(id(201), 2), released(202, 4)]);
    for n in 0..limit::RECENT_ENTRIES as u8 {
        names.note(Name::dead(id(n), 100 + u64::from(n)));
    }
    let mut by_number = names.clone();
    assert!(by_number.trim(0), "65 are not pinned");
    assert_eq!((by_number.entries.len(), by_number.horizon), (66, 0), "the released one is no superseded write");
    assert!(!by_number.trim(0));
    assert!(names.trim(old + 110));
    assert_eq!((names.entries.len(), names.horizon, names.pins()), (2 + 54, 109, 2));
    assert!(!names.trim(old + 110) && !names.trim(0));
}

#[test]
fn a_simulation_may_let_a_record_keep_fewer_names() {
    let mut names = named(0, &[1, 2, 3, 4].map(|n| Name::dead(id(n), u64::from(n))));
    assert!(!names.trim(0), "64 as a rule");
    fault::keep_names(3);
    assert!(names.trim(0) && !names.trim(0));
    fault::keep_names(limit::RECENT_ENTRIES);
    assert_eq!((names.entries.len(), names.horizon), (3, 1));
}

/// Without this the time of a name would depend on whether a write was found superseded before or after it was collapsed.
#[test]
fn a_superseded_write_is_remembered_as_no_older_than_a_value_made_of_it() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    record.put(&write(2, "b", None), actor(2));
    let collapsed = collapse(&record, Bytes::from_static(b"ab"));
    let name = Name::dead(id(1), NOW + 1);
    let elsewhere = Siblings { names: named(0, &[name]), ..Siblings::default() };
    let mut learned = collapsed.clone();
    assert!(learned.learn(&[name]));
    for record in [merged(&elsewhere, &collapsed), merged(&collapsed, &elsewhere), learned] {
        assert_eq!(record.names.get(&id(1)), Some(&Name::dead(id(1), NOW + 2)));
    }
}

#[test]
fn what_changes_nothing_is_no_change() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    let stored = record.clone();
    assert!(!record.merge(&stored) && !record.merge(&Siblings::default()) && !record.absorb(&stored, NOW));
    assert!(
        !record.learn(&[]) && record.learn(&[Name::pinned(id(1), NOW)]) && !record.learn(&[Name::pinned(id(1), 0)])
    );
    assert_eq!((record.open_pins(), record.versions.len()), (vec![id(1)], 1));
    assert!(record.learn(&[Name::pinned(id(8), NOW), Name::dead(id(1), NOW)]), "one of them is news");
    assert_eq!((record.open_pins(), record.versions.len()), (vec![id(8)], 0));
    let mut overwritten = stored.clone();
    overwritten.put(&write(2, "b", Some(&stored)), actor(1));
    overwritten.names = Names::default();
    assert!(overwritten.merge(&stored) && !overwritten.merge(&stored), "a forgotten name is remembered again");
    assert_eq!((overwritten.knows(&id(1)), overwritten.versions.len()), (Some(NOW + 1), 1));
    let seen_only = Siblings { seen: stored.seen.clone(), ..Siblings::default() };
    let mut nothing = Siblings::default();
    assert!(nothing.merge(&seen_only) && !nothing.merge(&seen_only) && nothing == seen_only);
    let mut behind = stored.clone();
    assert!(behind.merge(&record) && !behind.merge(&record) && behind == record);
    let mut horizon = stored.clone();
    horizon.names.horizon = 5;
    let mut told = stored.clone();
    assert!(told.merge(&horizon) && !told.merge(&horizon), "a horizon alone is a change");
    assert!(!horizon.merge(&stored));
}

#[test]
fn versions_are_in_the_order_of_their_events() {
    let mut record = Siblings::default();
    for n in [3, 1, 2] {
        record.put(&write(n, "a", None), actor(n));
    }
    let minters: Vec<Actor> = record.versions.iter().map(|version| version.dots[0].actor).collect();
    assert_eq!(minters, [actor(1), actor(2), actor(3)]);
}

#[test]
fn a_repetition_is_pinned_where_it_is_minted() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    assert!(!record.names.is_pinned(&id(1)), "a first try has one event");
    record.put(&Write { again: true, asked: true, ..write(2, "b", None) }, actor(1));
    assert_eq!((record.names.is_pinned(&id(2)), record.knows(&id(2))), (true, Some(NOW + 2)));
}

/// A version goes only with a context that has seen each of its writes, by its id or by one of its events.
#[test]
fn a_write_makes_room_by_what_its_context_has_seen() {
    let mut full = Siblings::default();
    for n in 0..limit::SIBLINGS as u8 {
        full.put(&write(n, "a", None), actor(1));
    }
    let covers = |record: &Siblings, seen: &VersionVector, ids: &[u8]| {
        let ids = ids.iter().map(|n| id(*n)).collect();
        let mut there = record.clone();
        there.versions.extend(full.versions.iter().take(limit::SIBLINGS - record.versions.len()).cloned());
        there.refuse(&Write { seen: seen.clone(), ids, ..write(200, "b", None) }, NOW) == Ok(())
    };
    let nothing = VersionVector::default();
    assert!(!covers(&full, &nothing, &[]) && covers(&full, &full.seen, &[]) && covers(&full, &nothing, &[7]));
    let mut two = Siblings::default();
    let first = two.put(&write(201, "a", None), actor(2));
    two.put(&write(202, "b", None), actor(3));
    let collapsed = collapse(&two, Bytes::from_static(b"ab"));
    let mut part = VersionVector::default();
    part.advance(&first);
    assert!(!covers(&collapsed, &part, &[]) && !covers(&collapsed, &nothing, &[202]), "one of its two writes");
    assert!(covers(&collapsed, &part, &[202]) && covers(&collapsed, &two.seen, &[]));
    assert!(covers(&collapsed, &nothing, &[201, 202]) && !covers(&collapsed, &part, &[201]));
}

/// What a replica tells of pinned names: those that the record it was sent supersedes, and that are not there as pinned and superseded.
#[test]
fn only_pinned_names_that_what_was_sent_supersedes_are_passed_on() {
    let dead = Name::dead(id(1), NOW);
    let pinned = Name::pinned(id(1), NOW);
    let both = Name { pinned: true, ..dead };
    let lacking = |here: &[Name], sent: &[Name], open_before: bool| {
        let record = |names| Siblings { names: named(0, names), ..Siblings::default() };
        let open: &[WriteId] = if open_before { &[id(1)] } else { &[] };
        record(here).lacking_in(&record(sent), open) == here && !here.is_empty()
    };
    for (sent, open_before, told) in [
        (&[][..], true, true),
        (&[], false, false),
        (&[pinned], true, true),
        (&[pinned], false, false),
        (&[dead], true, true),
        (&[dead], false, true),
        (&[both], true, false),
        (&[both], false, false),
    ] {
        assert_eq!(lacking(&[both], sent, open_before), told, "{sent:?} {open_before}");
        assert!(!lacking(&[pinned], sent, open_before) && !lacking(&[dead], sent, open_before), "{sent:?}");
    }
}
