//! Rows of deleted keys that are dropped.

use witan_kernel::burial::micros;
use witan_kernel::limit::{GRACE, LEAST_GRACE};
use witan_kernel::recent::Recent;
use witan_kernel::record::Fingerprint;

use super::*;

const HOUR: u64 = 3_600_000_000;
/// When the keys are deleted.
const DELETED: u64 = 100 * HOUR;
/// When they may be collected.
const LATER: u64 = DELETED + 37 * HOUR;

fn tombstone() -> Record {
    Record::Register(Register::written(Stamp(DELETED), id(1), None))
}

fn collect(record: &Record) -> Ask {
    Ask::Collect { expected: record.encode().fingerprint(), grace: micros(GRACE) }
}

const DROPPED: Outcome = Ok(Answer::Collected { dropped: true });
const KEPT: Outcome = Ok(Answer::Collected { dropped: false });
const NOTHING: Outcome = Ok(Answer::Record(None));

impl Bench {
    /// A bench with the tombstone under key 1, synced.
    fn buried() -> Self {
        let mut bench = Self::new();
        bench.wall = DELETED;
        bench.done(at(1), merge(&tombstone()));
        bench.sync();
        bench.wall = LATER;
        bench
    }

    fn stored(&self) -> usize {
        let rows = self.store.engine().scan(Bytes::new()..Bytes::from_static(&[0xff; 9]), 10).unwrap();
        rows.len()
    }
}

#[test]
fn an_old_tombstone_is_dropped_and_the_answer_waits_for_the_sync() {
    let mut bench = Bench::buried();
    assert_eq!(bench.stored(), 1);
    assert_eq!(bench.one(at(1), collect(&tombstone())), (DROPPED, true));
    assert_eq!(bench.stored(), 0);
    assert_eq!(bench.one(at(1), Ask::Read), (NOTHING, true), "that there is nothing is not durable yet");
    assert_eq!(bench.one(at(1), collect(&tombstone())), (KEPT, true), "again");
    bench.sync();
    assert_eq!(bench.one(at(1), Ask::Read), (NOTHING, false));
    bench.disk.crash();
    bench.reopen();
    assert_eq!(bench.one(at(1), Ask::Read).0, NOTHING);
}

#[test]
fn a_crash_before_the_sync_brings_it_back() {
    let mut bench = Bench::buried();
    assert_eq!(bench.one(at(1), collect(&tombstone())), (DROPPED, true));
    bench.disk.crash();
    bench.reopen();
    assert_eq!(record(&bench.one(at(1), Ask::Read).0), Some(tombstone()));
}

#[test]
fn later_requests_of_the_same_batch_see_nothing() {
    let mut bench = Bench::buried();
    let newer = Record::Register(Register::written(Stamp(LATER), id(2), Some(value(2))));
    let answers = bench.apply(vec![
        (at(1), collect(&tombstone())),
        (at(1), Ask::Read),
        (at(1), Ask::Stamp { write_id: id(3) }),
        (at(1), merge(&newer)),
        (at(1), collect(&tombstone())),
        (at(1), Ask::Read),
    ]);
    let outcomes: Vec<Outcome> = answers.iter().map(|(outcome, _)| outcome.clone()).collect();
    assert_eq!(outcomes[..2], [DROPPED, NOTHING]);
    assert_eq!(outcomes[2], Ok(Answer::Stamp { stands: None, known: None }));
    assert_eq!((&outcomes[4], record(&outcomes[5])), (&KEPT, Some(newer)));
}

#[test]
fn what_is_not_exactly_that_old_tombstone_stays() {
    let other = Record::Register(Register::written(Stamp(DELETED), id(9), None));
    let live = Record::Register(Register::written(Stamp(DELETED + 1), id(2), Some(value(1))));
    let nothing = Ask::Collect { expected: Fingerprint([0; 16]), grace: micros(GRACE) };
    let short = |grace| Ask::Collect { expected: tombstone().encode().fingerprint(), grace };
    let mut bench = Bench::buried();
    for ask in [collect(&other), nothing] {
        assert_eq!(bench.one(at(1), ask), (KEPT, false), "another one is expected");
    }
    bench.wall = DELETED + micros(GRACE);
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, KEPT, "it is too young by this node's clock");
    bench.wall = DELETED + micros(LEAST_GRACE);
    assert_eq!(bench.one(at(1), short(0)).0, KEPT, "whatever the coordinator says");
    bench.wall = DELETED - HOUR;
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, KEPT, "it is of the future");
    bench.wall = LATER;
    bench.done(at(1), merge(&live));
    let stored = bench.one(at(1), Ask::Read).0;
    let stored = record(&stored).unwrap();
    assert_eq!(bench.one(at(1), collect(&stored)).0, KEPT, "it is live");
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, KEPT, "it has become another one");
    assert_eq!(bench.one(at(2), collect(&tombstone())).0, KEPT, "there is none");
    fault::set(Some(Fault::CollectUnconditional));
    let dropped = bench.one(at(1), collect(&tombstone())).0;
    fault::set(None);
    assert_eq!(dropped, DROPPED);
}

#[test]
fn a_tombstone_that_remembers_a_young_write_stays() {
    let mut bench = Bench::buried();
    let late = Record::Register(Register::written(Stamp(DELETED - HOUR), id(2), None));
    bench.done(at(1), merge(&late));
    let old = record(&bench.one(at(1), Ask::Read).0).unwrap();
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, KEPT, "it remembers more than before");
    let recent = Recent { horizon: LATER - HOUR, ..Recent::default() };
    let young = Record::Register(Register { recent, ..Register::written(Stamp(DELETED), id(1), None) });
    bench.done(at(2), merge(&young));
    let young = record(&bench.one(at(2), Ask::Read).0).unwrap();
    assert_eq!(bench.one(at(2), collect(&young)).0, KEPT);
    assert_eq!(bench.one(at(1), collect(&old)).0, DROPPED);
}

#[test]
fn nothing_is_dropped_below_the_fence_or_in_a_store_that_is_not_on_record() {
    let mut bench = Bench::buried();
    assert!(bench.store.set_on_record(false));
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, KEPT);
    bench.store.set_on_record(true);
    bench.store.raise_fence(Some(&at(1).tenant()), 1).unwrap();
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, Err(ReplicaError::StaleEpoch));
    bench.epoch = 1;
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, DROPPED);
}

#[test]
fn what_cannot_be_dropped_is_there_still() {
    let mut bench = Bench::buried();
    bench.disk.set_full(true);
    let answers = bench.apply(vec![(at(1), collect(&tombstone())), (at(1), Ask::Read)]);
    assert_eq!(answers[0].0, Err(ReplicaError::StorageFull));
    assert_eq!(record(&answers[1].0), Some(tombstone()));
    bench.disk.set_full(false);
    assert_eq!(record(&bench.one(at(1), Ask::Read).0), Some(tombstone()));
    assert_eq!(bench.one(at(1), collect(&tombstone())).0, DROPPED);
}

#[test]
fn whoever_is_asked_requires_ages_from_then_on() {
    let mut bench = Bench::buried();
    assert!(!bench.store.requires_ages());
    let nothing = Ask::Collect { expected: Fingerprint([0; 16]), grace: 0 };
    assert_eq!(bench.one(at(2), nothing).0, KEPT, "also if there is nothing to drop");
    assert!(bench.store.requires_ages());
    bench.disk.crash();
    bench.reopen();
    assert!(bench.store.requires_ages());
}

#[test]
fn what_is_written_later_draws_another_birth() {
    let mut bench = Bench::new();
    let delete = Write { started: DELETED, value: None, ..put(1) };
    bench.wall = DELETED;
    let deleted = bench.one(at(1), Ask::Put(Arc::new(delete))).0;
    let Some(Record::Siblings(deleted)) = record(&deleted) else { panic!("siblings") };
    bench.sync();
    bench.wall = LATER;
    let before = Record::Siblings(deleted.clone());
    let answers =
        bench.apply(vec![(at(1), collect(&before)), (at(1), Ask::Put(Arc::new(Write { started: LATER, ..put(2) })))]);
    assert_eq!(answers[0].0, DROPPED);
    let Some(Record::Siblings(written)) = record(&answers[1].0) else { panic!("siblings") };
    assert_eq!((deleted.seen.entries.len(), written.seen.entries.len()), (1, 1), "the event of before is forgotten");
    let store = bench.store.id();
    assert_ne!(deleted.actor_of(&store), written.actor_of(&store));
    bench.sync();
    bench.reopen();
    assert_eq!(record(&bench.one(at(1), Ask::Read).0), Some(Record::Siblings(written)));
}
