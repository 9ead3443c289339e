//! A write that is minted twice: its name must cover every dot of it, on however hot a key, and in whatever order records meet.

use bytes::Bytes;
use witan_kernel::fault::{self, Fault};
use witan_kernel::limit;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::siblings::{Actor, Dot, Refusal, Shown, Siblings, VersionVector, Write};

const NOW: u64 = 1_700_000_000_000_000;

fn actor(n: u8) -> Actor {
    Actor { store: StoreId([n; 16]), birth: 1 }
}

fn id(n: u32) -> WriteId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
    id[4..8].copy_from_slice(&n.to_be_bytes());
    WriteId(id)
}

fn write(n: u32, started: u64, again: bool, context: Option<&Siblings>) -> Write {
    let Shown { seen, ids, newest } = context.map(Siblings::context_claims).unwrap_or_default();
    Write {
        write_id: id(n),
        started,
        again,
        asked: false,
        seen,
        ids,
        newest,
        value: Some(Bytes::copy_from_slice(&n.to_be_bytes())),
    }
}

fn joined(a: &Siblings, b: &Siblings) -> Siblings {
    let mut out = a.clone();
    out.merge(b);
    out
}

fn standing(record: &Siblings) -> Vec<WriteId> {
    record.versions.iter().flat_map(|version| version.ids.iter().copied()).collect()
}

/// W is live at r2; X is written over it, then `more` writes; then an attempt of W reaches r1, which knows none of this. A repetition has
/// asked r1 and r3 about W, and r2 was sent what X's other replica says of pinned names.
fn back_on_a_hot_key(more: u32, attempt: Attempt) -> bool {
    let (mut r1, mut r2, mut now) = (Siblings::default(), Siblings::default(), NOW);
    r2.put(&write(0, now, false, None), actor(2));
    if attempt == Attempt::Asked {
        r1.pin(&id(0), NOW).expect("room for a pin");
        r2.pin(&id(0), NOW).expect("room for a pin");
    }
    for n in 1..=more + 1 {
        now += 3000;
        let over = r2.clone();
        r2.put(&write(n, now, false, Some(&over)), actor(2));
        r2.names.trim(now);
    }
    let asked = attempt == Attempt::Asked;
    let late = Write { asked, ..write(0, NOW, asked, None) };
    assert_eq!(r1.refuse(&late, now), Ok(()));
    r1.put(&late, actor(1));
    standing(&joined(&r1, &r2)).contains(&id(0))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// One that was late, of a write that nobody has repeated.
    First,
    /// A repetition, after a quorum was asked.
    Asked,
}

#[test]
fn a_superseded_write_does_not_come_back_on_a_hot_key() {
    for more in [62, 63, 64, 500] {
        assert!(!back_on_a_hot_key(more, Attempt::Asked), "{more} writes");
    }
    // This is why a write is asked about before it is repeated: a name that is not pinned is forgotten after 64 others.
    assert!(!back_on_a_hot_key(63, Attempt::First) && back_on_a_hot_key(64, Attempt::First));
}

/// W has two events. Whoever has seen one of them without its name supersedes all of it, in whatever order records meet.
#[test]
fn records_meet_in_any_order() {
    let (mut a, mut b, mut c) = (Siblings::default(), Siblings::default(), Siblings::default());
    a.put(&write(0, NOW, false, None), actor(2));
    b.put(&write(0, NOW, true, None), actor(1));
    let by_vector = Write { seen: b.seen.clone(), ..write(1, NOW + 100, false, None) };
    c.put(&by_vector, actor(3));
    let both = || (joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
    let (left, right) = both();
    assert_eq!(left, right);
    assert_eq!(standing(&left), [id(1)]);
    fault::set(Some(Fault::EventsGoAlone));
    let (left, right) = both();
    fault::set(None);
    assert_eq!(standing(&right), [id(1)]);
    assert_eq!(standing(&left), [id(0), id(1)], "it was so before a superseded event superseded the whole write");
}

/// r1 and r3 were asked about W, X is acknowledged by r2 and r3, r1 and r2 are read. True: W is back.
fn back_between_three_quorums() -> bool {
    let [mut r1, mut r2, mut r3] = std::array::from_fn(|_| Siblings::default());
    let mut now = NOW;
    r1.pin(&id(0), now).expect("room for a pin");
    r3.pin(&id(0), now).expect("room for a pin");
    r2.put(&write(0, now, false, None), actor(2));
    for n in 1..=80 {
        now += 3000;
        let over = r2.clone();
        r2.put(&write(n, now, false, Some(&over)), actor(2));
        let answer = r2.clone();
        r2.names.trim(now);
        let open_before = r3.open_pins();
        r3.absorb(&answer, now);
        if !Fault::PinsUntold.is_on() {
            r2.learn(&r3.lacking_in(&answer, &open_before));
        }
    }
    r1.put(&Write { asked: true, ..write(0, NOW, true, None) }, actor(1));
    standing(&joined(&r1, &r2)).contains(&id(0))
}

#[test]
fn what_replicas_say_of_pinned_names_is_passed_on_before_the_acknowledgement() {
    assert!(!back_between_three_quorums());
    fault::set(Some(Fault::PinsUntold));
    assert!(back_between_three_quorums());
    fault::set(None);
}

/// W is acknowledged by r2 and r3, and pinned at r1. X, which nobody acknowledges, supersedes it at r1 only. Y, written beside W, is merged
/// into r1: what r1 says must not make the others drop W, since they do not have X.
#[test]
fn a_write_is_not_dropped_for_one_that_only_another_replica_has() {
    let [mut r1, mut r2] = std::array::from_fn(|_| Siblings::default());
    r1.pin(&id(0), NOW).expect("room for a pin");
    r2.put(&write(0, NOW, false, None), actor(2));
    r1.absorb(&r2.clone(), NOW);
    let over = r1.clone();
    r1.put(&write(1, NOW + 1, false, Some(&over)), actor(1));
    assert!(r1.names.get(&id(0)).is_some_and(|name| name.pinned && name.dead), "superseded by X");

    r2.put(&write(2, NOW + 2, false, None), actor(2));
    let (sent, open_before) = (r2.clone(), r1.open_pins());
    r1.absorb(&sent, NOW + 2);
    assert_eq!(r1.lacking_in(&sent, &open_before), [], "what r2 has sent supersedes nothing");
    r2.learn(&r1.lacking_in(&sent, &open_before));
    assert_eq!(standing(&r2), [id(0), id(2)]);
    assert_eq!(standing(&joined(&r1, &r2)), [id(1), id(2)], "X comes with what it supersedes");
}

/// As above, but 70 newer names were superseded before W was, so that W's name is the first that is forgotten. True: W is back.
fn back_by_a_trimmed_answer(trimmed: bool) -> bool {
    let [mut r1, mut r2, mut r3, mut first] = std::array::from_fn(|_| Siblings::default());
    r1.pin(&id(0), NOW).expect("room for a pin");
    r3.pin(&id(0), NOW).expect("room for a pin");
    first.put(&write(0, NOW, false, None), actor(9));
    r2.merge(&first);
    let mut over = Shown::default();
    for n in 1..=70 {
        let Shown { seen, ids, newest } = over;
        let dot = r2.put(&Write { seen, ids, newest, ..write(n, NOW + 3000 * u64::from(n), false, None) }, actor(2));
        r2.names.trim(NOW);
        over = Shown { ids: vec![id(n)], newest: NOW, ..Shown::default() };
        over.seen.advance(&dot);
    }
    let claims = r2.clone();
    r2.put(&write(71, NOW + 300_000, false, Some(&claims)), actor(2));
    let mut answer = r2.clone();
    r2.names.trim(NOW);
    if trimmed {
        answer.names.trim(NOW);
    }
    let open_before = r3.open_pins();
    r3.absorb(&answer, NOW);
    r2.learn(&r3.lacking_in(&answer, &open_before));
    r1.put(&Write { asked: true, ..write(0, NOW, true, None) }, actor(1));
    standing(&joined(&r1, &r2)).contains(&id(0))
}

#[test]
fn a_puts_answer_names_everything_that_it_superseded() {
    assert!(!back_by_a_trimmed_answer(false));
    assert!(back_by_a_trimmed_answer(true));
}

/// X, by a clock that is 4 s slow, names W at a replica that has not heard of it; then 70 more writes; then a repetition of W asks there.
/// True: it would be minted.
fn minted_after_a_slow_clock() -> bool {
    let started = NOW + 4_000_000;
    let (mut r3, mut first) = (Siblings::default(), Siblings::default());
    first.put(&write(0, started, false, None), actor(9));
    r3.put(&write(1, NOW, false, Some(&first)), actor(3));
    for n in 2..=71 {
        let over = r3.clone();
        r3.put(&write(n, NOW + 1000 * u64::from(n), false, Some(&over)), actor(3));
        r3.names.trim(NOW + 100_000);
    }
    let again = Write { asked: true, ..write(0, started, true, None) };
    r3.knows(&id(0)).is_none() && r3.refuse(&again, NOW + 100_000).is_ok()
}

#[test]
fn an_unknown_name_is_remembered_under_no_earlier_time_than_its_writes_start() {
    assert!(!minted_after_a_slow_clock());
    fault::set(Some(Fault::NewestIgnored));
    assert!(minted_after_a_slow_clock());
    fault::set(None);
}

#[test]
fn the_horizon_says_that_names_were_forgotten() {
    let forgotten = |record: &Siblings| {
        record.knows(&id(0)).is_none()
            && record.refuse(&Write { asked: true, ..write(0, NOW, true, None) }, NOW).is_ok()
    };
    for (fault, minted) in [(None, false), (Some(Fault::HorizonIgnored), true)] {
        fault::set(fault);
        let mut record = Siblings::default();
        for n in 0..=65 {
            let over = record.clone();
            record.put(&write(n, NOW + u64::from(n), false, Some(&over)), actor(1));
            record.names.trim(NOW);
        }
        assert_eq!(forgotten(&record), minted);
    }
    fault::set(None);
}

#[test]
fn a_record_has_a_bounded_number_of_pins() {
    let mut record = Siblings::default();
    for n in 0..limit::PINNED_NAMES as u32 {
        assert_eq!(record.pin(&id(n), NOW), Ok(true));
    }
    assert_eq!(record.pin(&id(0), NOW), Ok(false), "it is pinned already");
    assert_eq!(record.pin(&id(9999), NOW), Err(Refusal::InDoubt));
    let asked = |n| Write { asked: true, ..write(n, NOW, true, None) };
    assert_eq!(record.refuse(&asked(9999), NOW), Err(Refusal::InDoubt), "no pin, no event");
    assert_eq!(record.refuse(&asked(0), NOW), Ok(()));
    assert!(record.names.unpin(&id(0)) && !record.names.unpin(&id(0)));
    assert_eq!(record.pin(&id(9999), NOW), Ok(true));
    assert_eq!(record.knows(&id(9999)), None, "a pin does not say that the write was applied");
}

#[test]
fn a_merge_under_way_does_not_bring_a_pin_back() {
    let mut record = Siblings::default();
    record.pin(&id(0), NOW).expect("room for a pin");
    record.put(&Write { asked: true, ..write(0, NOW, true, None) }, actor(1));
    let under_way = record.clone();
    assert!(record.names.unpin(&id(0)));
    record.merge(&under_way);
    assert!(!record.names.is_pinned(&id(0)) && record.knows(&id(0)).is_some());
    let mut elsewhere = under_way.clone();
    elsewhere.merge(&record);
    assert!(!elsewhere.names.is_pinned(&id(0)), "it is unpinned where it is merged");
    assert!(record.names.trim(NOW + 200_000_000));
    assert_eq!(
        (record.names.entries.len(), record.names.horizon),
        (0, 0),
        "and forgotten, which says nothing of any write"
    );
}

#[test]
fn a_writer_claims_its_own_event_alone_where_it_does_not_follow() {
    let mut record = Siblings::default();
    record.put(&write(1, NOW, false, None), actor(1));
    let dot = record.put(&write(2, NOW, false, None), actor(1));
    let shown = record.claims_after(Shown::default(), &id(2), NOW);
    assert!(shown.seen.covers(&dot) && shown.seen.entries.is_empty(), "and not the one before");
    assert_eq!((shown.ids, shown.newest), (vec![id(2)], NOW));
    fault::set(Some(Fault::OwnDotLeftOut));
    assert_eq!(record.claims_after(Shown::default(), &id(2), NOW).seen, VersionVector::default());
    fault::set(None);
}

#[test]
fn single_events_go_into_the_vector_once_they_follow() {
    let dot = |counter| Dot { actor: actor(1), counter };
    let mut seen = VersionVector::default();
    assert!(seen.add(&dot(3)) && seen.add(&dot(5)) && !seen.add(&dot(3)));
    assert!(seen.covers(&dot(3)) && !seen.covers(&dot(4)) && !seen.covers(&dot(1)));
    assert_eq!((seen.get(&actor(1)), seen.last(&actor(1))), (0, 5));
    let mut other = VersionVector::default();
    other.advance(&dot(2));
    let before = seen.clone();
    assert!(seen.join(&other) && !seen.join(&other) && seen.dominates(&before) && !before.dominates(&seen));
    assert_eq!((seen.entries[0].1, seen.cloud.as_slice()), (3, &[dot(5)][..]));
    assert!(seen.add(&dot(4)));
    assert_eq!((seen.entries[0].1, seen.cloud.len()), (5, 0));
}
