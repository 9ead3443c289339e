mod collect;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use witan_kernel::fault::{self, Fault};
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::Place;
use witan_kernel::siblings::{Name, Siblings, VersionVector, Write};

use super::*;
use crate::engine::simulated::Disk;
use crate::store::BIRTHS;
use crate::testing::Dice;

/// Shared by all: a store that is opened again draws other numbers.
static DICE: Dice = Dice(AtomicU8::new(1));

fn open(disk: &Disk) -> Store {
    Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), &DICE).unwrap()
}

#[derive(Default)]
struct Heard(Mutex<Answers>);

impl Deliver for Heard {
    fn deliver(&self, answers: Answers) {
        self.0.lock().unwrap().extend(answers);
    }
}

/// An arbitrary time, at which everything is recent and nothing is late.
const WALL: u64 = 1_000_000;

/// A shard over a simulated disk. Its methods return the answers of a batch as (outcome, whether it waits for the sync).
struct Bench {
    disk: Disk,
    store: Store,
    shard: Shard,
    wall: u64,
    epoch: u64,
}

impl Bench {
    fn new() -> Self {
        let disk = Disk::new();
        Self { store: open(&disk), disk, shard: Shard::new(0, 64 << 10), wall: WALL, epoch: 0 }
    }

    fn apply_at(&mut self, requests: Vec<(Place, Ask, u64)>, monotonic: u64) -> Vec<(Outcome, bool)> {
        let heard = Arc::new(Heard::default());
        let epoch = self.epoch;
        let item = |(tag, (place, ask, deadline))| Item {
            tag,
            request: Request { place, epoch, ask },
            deadline,
            largest_answer: usize::MAX,
            is_aged: true,
        };
        let group = Group::new((0..).zip(requests).map(item).collect(), heard);
        let applied = self.shard.apply(&self.store, Durability::Sync, vec![group], self.wall, monotonic);
        let mut answers = Vec::new();
        for (parcels, gated) in [(applied.ready, false), (applied.gated, true)] {
            for (_, parcel) in parcels {
                answers.extend(parcel.into_iter().map(|(tag, outcome)| (tag, (outcome, gated))));
            }
        }
        answers.sort_by_key(|(tag, _)| *tag);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn apply(&mut self, requests: Vec<(Place, Ask)>) -> Vec<(Outcome, bool)> {
        self.apply_at(requests.into_iter().map(|(place, ask)| (place, ask, u64::MAX)).collect(), 0)
    }

    fn one(&mut self, place: Place, ask: Ask) -> (Outcome, bool) {
        self.apply(vec![(place, ask)]).remove(0)
    }

    fn done(&mut self, place: Place, ask: Ask) {
        self.one(place, ask).0.unwrap();
    }

    fn sync(&mut self) {
        self.store.engine().sync().unwrap();
        self.shard.synced(self.shard.written);
    }

    fn reopen(&mut self) {
        self.store = open(&self.disk);
        self.shard = Shard::new(0, 64 << 10);
    }
}

fn at(key: u8) -> Place {
    let tenant = TenantId::from_trusted(Bytes::from_static(b"t"));
    Place { token: u64::from(key % 3), space: tenant.into(), key: Key::from_trusted(Bytes::from(vec![key])) }
}

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn value(n: u8) -> Bytes {
    Bytes::from(vec![n; 20])
}

fn register(stamp: u64, n: u8, live: bool) -> Record {
    Record::Register(Register::written(Stamp(WALL + stamp), id(n), live.then(|| value(n))))
}

fn merge(record: &Record) -> Ask {
    Ask::Merge { record: record.encode() }
}

fn put(n: u8) -> Write {
    Write {
        write_id: id(n),
        started: WALL,
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: Some(value(n)),
    }
}

fn record(outcome: &Outcome) -> Option<Record> {
    match outcome {
        Ok(Answer::Record(record)) => record.as_ref().map(|record| record.decode().unwrap()),
        Ok(Answer::Put { record, .. }) => Some(record.decode().unwrap()),
        other => panic!("no record in {other:?}"),
    }
}

#[test]
fn a_row_whose_sync_failed_is_not_at_hand_once_the_engine_was_opened_again() {
    let mut bench = Bench::new();
    bench.done(at(1), merge(&register(1, 1, true)));
    bench.disk.set_failing_syncs(true);
    bench.store.sync().unwrap_err();
    bench.disk.set_failing_syncs(false);
    bench.disk.reopen();
    bench.done(at(1), merge(&register(1, 1, true)));
    bench.sync();
    bench.disk.crash();
    bench.reopen();
    assert!(matches!(bench.one(at(1), Ask::Read).0, Ok(Answer::Record(Some(_)))), "it was acknowledged");
}

#[test]
fn a_row_removed_past_its_shard_is_not_at_hand() {
    let mut bench = Bench::new();
    let written = Record::Register(Register::written(Stamp(1), id(1), Some(value(1)))).encode();
    bench.done(at(1), Ask::Merge { record: written });
    assert!(matches!(bench.one(at(1), Ask::Read).0, Ok(Answer::Record(Some(_)))));
    crate::scan::drop_tenant(&bench.store, &at(1).tenant(), None).unwrap();
    assert!(matches!(bench.one(at(1), Ask::Read).0, Ok(Answer::Record(None))));
}

#[test]
fn requests_of_one_batch_see_each_other_and_make_one_write() {
    let mut bench = Bench::new();
    let answers = bench.apply(vec![
        (at(1), Ask::Read),
        (at(1), merge(&register(2, 2, true))),
        (at(1), merge(&register(1, 1, true))),
        (at(1), Ask::Stamp { write_id: id(1) }),
        (at(1), Ask::Read),
        (at(2), merge(&register(1, 1, false))),
    ]);
    assert_eq!(answers[0].0, Ok(Answer::Record(None)));
    assert_eq!(answers[1].0, Ok(Answer::Merged { superseded: false, told: Vec::new() }));
    assert_eq!(
        answers[2].0,
        Ok(Answer::Merged { superseded: false, told: Vec::new() }),
        "the write id is new and has to be stored"
    );
    let known = Answer::Stamp { stands: Some(Stamp(WALL + 2)), known: Some(Stamp(WALL + 1)) };
    assert_eq!(answers[3], (Ok(known), false), "stamps do not wait");
    let Some(Record::Register(stored)) = record(&answers[4].0) else { panic!("a register") };
    assert_eq!((stored.stamp, stored.value), (Stamp(WALL + 2), Some(value(2))));
    assert_eq!(bench.disk.writes(), 1);
}

#[test]
fn the_gate_holds_whatever_reveals_an_unsynced_row() {
    let mut bench = Bench::new();
    let gated = |answers: Vec<(Outcome, bool)>| answers.into_iter().map(|(_, gated)| gated).collect::<Vec<_>>();
    assert_eq!(gated(bench.apply(vec![(at(1), merge(&register(1, 1, true))), (at(2), Ask::Read)])), [true, false]);
    let again = vec![(at(1), Ask::Read), (at(1), merge(&register(1, 1, true))), (at(2), Ask::Read)];
    assert_eq!(gated(bench.apply(again.clone())), [true, true, false], "a superseded merge waits too");
    bench.sync();
    assert_eq!(gated(bench.apply(again)), [false, false, false]);

    fault::set(Some(Fault::AcknowledgeBeforeSync));
    let hasty = gated(bench.apply(vec![(at(1), merge(&register(2, 2, true)))]));
    fault::set(None);
    assert_eq!(hasty, [false]);
}

#[test]
fn rows_stay_gated_however_many_batches_are_not_synced() {
    let mut bench = Bench::new();
    for n in 0..=UNSYNCED_BATCHES as u8 + 10 {
        bench.done(at(n), merge(&register(1, 1, true)));
    }
    let last = bench.shard.written;
    bench.shard.synced(last - 1);
    assert!(bench.one(at(UNSYNCED_BATCHES as u8 + 10), Ask::Read).1);
    assert!(!bench.one(at(0), Ask::Read).1);
    bench.shard.synced(last);
    assert!(!bench.one(at(UNSYNCED_BATCHES as u8 + 10), Ask::Read).1);
}

#[test]
fn a_put_is_minted_once_under_an_actor_of_this_store() {
    let mut bench = Bench::new();
    let (first, _) = bench.one(at(1), Ask::Put(Arc::new(put(1))));
    let (second, _) = bench.one(at(1), Ask::Put(Arc::new(put(2))));
    let Some(Record::Siblings(siblings)) = record(&second) else { panic!("siblings") };
    assert_eq!(siblings.versions.len(), 2, "written without a context: concurrent");
    let actors: BTreeSet<_> = siblings.seen.entries.iter().map(|(actor, _)| *actor).collect();
    assert_eq!(actors.len(), 1, "one birth per record");
    assert!(actors.iter().all(|actor| actor.store == bench.store.id() && actor.birth > 0));
    assert!(matches!(first, Ok(Answer::Put { applied_already: false, .. })));
    bench.sync();

    let (again, gated) = bench.one(at(1), Ask::Put(Arc::new(Write { again: true, ..put(1) })));
    assert!(matches!(&again, Ok(Answer::Put { applied_already: true, .. })) && !gated);
    assert_eq!(record(&again), record(&second));

    bench.reopen();
    let births = |answer: &Outcome| match record(answer) {
        Some(Record::Siblings(siblings)) => siblings.births_of(&siblings.seen.entries[0].0.store),
        other => panic!("{other:?}"),
    };
    let (third, _) = bench.one(at(1), Ask::Put(Arc::new(put(3))));
    let (fourth, _) = bench.one(at(1), Ask::Put(Arc::new(put(4))));
    assert_eq!(
        (births(&third), births(&fourth)),
        (2, 2),
        "one birth for each start of the node, stored with the record"
    );
    bench.done(at(2), Ask::Put(Arc::new(put(1))));
    assert_ne!(
        bench.store.load(&row::key(&at(1))).unwrap().unwrap().0,
        bench.store.load(&row::key(&at(2))).unwrap().unwrap().0
    );
}

#[test]
fn a_record_has_a_bounded_number_of_births_however_often_its_node_starts() {
    let mut bench = Bench::new();
    for n in 1..=3 * BIRTHS as u8 {
        let (answer, _) = bench.one(at(1), Ask::Put(Arc::new(put(n))));
        let Some(Record::Siblings(siblings)) = record(&answer) else { panic!("siblings") };
        assert_eq!(siblings.births_of(&bench.store.id()), usize::from(n).min(BIRTHS));
        bench.sync();
        bench.reopen();
    }
}

#[test]
fn two_time_lines_of_a_copied_disk_mint_different_events() {
    let mut bench = Bench::new();
    bench.done(at(1), Ask::Put(Arc::new(put(1))));
    bench.sync();
    let copy = bench.disk.copy();
    let dots = |answer: &Outcome| match record(answer) {
        Some(Record::Siblings(siblings)) => {
            siblings.versions.iter().flat_map(|v| v.dots.to_vec()).collect::<HashSet<_>>()
        }
        other => panic!("{other:?}"),
    };
    let (one, _) = bench.one(at(1), Ask::Put(Arc::new(put(2))));
    bench.disk = copy;
    bench.reopen();
    let (other, _) = bench.one(at(1), Ask::Put(Arc::new(put(3))));
    assert_eq!(dots(&one).intersection(&dots(&other)).count(), 1, "only the event that both copies had");
}

#[test]
fn a_record_that_came_by_merge_has_no_birth_until_a_put() {
    let (mut here, mut there) = (Bench::new(), Bench::new());
    let (answer, _) = there.one(at(1), Ask::Put(Arc::new(put(1))));
    let sent = record(&answer).unwrap();
    here.done(at(1), merge(&sent));
    assert_eq!(here.store.load(&row::key(&at(1))).unwrap().unwrap().0, 0);
    here.done(at(1), Ask::Put(Arc::new(put(2))));
    assert_ne!(here.store.load(&row::key(&at(1))).unwrap().unwrap().0, 0);
    here.done(at(1), merge(&sent));
    assert_ne!(here.store.load(&row::key(&at(1))).unwrap().unwrap().0, 0, "merges keep it");
}

#[test]
fn what_may_not_be_is_refused() {
    let mut bench = Bench::new();
    bench.apply(vec![(at(1), merge(&register(1, 1, true))), (at(2), Ask::Put(Arc::new(put(1))))]);
    let wrong = Err(ReplicaError::WrongMode);
    assert_eq!(bench.one(at(1), Ask::Put(Arc::new(put(2)))).0, wrong);
    assert_eq!(bench.one(at(2), Ask::Stamp { write_id: id(1) }).0, wrong);
    assert_eq!(bench.one(at(2), merge(&register(9, 1, true))).0, wrong);
    assert!(record(&bench.one(at(2), Ask::Read).0).is_some());

    let doubtful = Write { again: true, started: 0, ..put(3) };
    let mut bench = Bench::new();
    let old = WALL + witan_kernel::limit::PUT_RETRY_MICROS;
    let heard = Arc::new(Heard::default());
    let request = Request { place: at(1), epoch: 0, ask: Ask::Put(Arc::new(doubtful)) };
    let group = Group::new(
        vec![Item { tag: 0, request, deadline: u64::MAX, largest_answer: usize::MAX, is_aged: true }],
        heard,
    );
    let applied = bench.shard.apply(&bench.store, Durability::Sync, vec![group], old, 0);
    assert_eq!(applied.ready[0].1, [(0, Err(ReplicaError::InDoubt))]);
    assert_eq!(bench.disk.writes(), 0);

    let broken = Ask::Merge { record: Encoded(Bytes::from_static(b"garbage")) };
    assert!(matches!(bench.one(at(1), broken).0, Err(ReplicaError::Broken(_))));
}

#[test]
fn late_requests_are_not_begun() {
    let mut bench = Bench::new();
    let requests = vec![(at(1), merge(&register(1, 1, true)), 5), (at(2), merge(&register(1, 1, true)), 6)];
    let answers = bench.apply_at(requests, 5);
    assert_eq!(answers[0].0, Err(ReplicaError::Late));
    assert_eq!(answers[1].0, Ok(Answer::Merged { superseded: false, told: Vec::new() }));
    assert_eq!(bench.one(at(1), Ask::Read).0, Ok(Answer::Record(None)));
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let mut bench = Bench::new();
    bench.done(at(1), merge(&register(1, 1, true)));
    bench.sync();
    bench.disk.set_full(true);
    let answers = bench.apply(vec![
        (at(1), merge(&register(2, 2, true))),
        (at(1), Ask::Read),
        (at(1), Ask::Stamp { write_id: id(2) }),
        (at(2), Ask::Read),
        (at(2), Ask::Put(Arc::new(put(1)))),
    ]);
    assert_eq!(answers[0].0, Err(ReplicaError::StorageFull));
    let Some(Record::Register(stored)) = record(&answers[1].0) else { panic!("a register") };
    assert_eq!(stored.stamp, Stamp(WALL + 1), "a write that failed is not shown");
    assert_eq!(answers[2].0, Ok(Answer::Stamp { stands: Some(Stamp(WALL + 1)), known: None }));
    assert_eq!(answers[3].0, Ok(Answer::Record(None)));
    assert_eq!(answers[4].0, Err(ReplicaError::StorageFull));
    bench.disk.set_full(false);
    assert_eq!(
        bench.one(at(1), merge(&register(2, 2, true))).0,
        Ok(Answer::Merged { superseded: false, told: Vec::new() })
    );
}

#[test]
fn a_damaged_row_is_an_error_that_names_it() {
    let mut bench = Bench::new();
    bench.done(at(7), merge(&register(1, 1, true)));
    let row = row::key(&at(7));
    let good = bench.store.engine().get(&row).unwrap().unwrap();
    for byte in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[byte] ^= 4;
        bench.store.engine().write(vec![(row.clone(), Some(Bytes::from(bytes)))]).unwrap();
        bench.shard = Shard::new(0, 64 << 10);
        for ask in [Ask::Read, Ask::Stamp { write_id: id(1) }, merge(&register(9, 9, true))] {
            let Err(ReplicaError::Broken(reason)) = bench.one(at(7), ask).0 else {
                panic!("byte {byte} went unnoticed")
            };
            assert!(reason.contains("token 0000000000000001") && reason.contains("damaged"), "{reason}");
        }
    }
}

#[test]
fn a_row_that_could_not_be_read_is_read_from_the_disk_again() {
    let mut bench = Bench::new();
    bench.done(at(7), merge(&register(1, 1, true)));
    let (row, bit) = (row::key(&at(7)), 200);
    for ask in [Ask::Read, merge(&register(9, 9, true))] {
        bench.shard = Shard::new(0, 64 << 10);
        assert!(bench.disk.flip(&row, bit));
        assert!(matches!(bench.one(at(7), ask.clone()).0, Err(ReplicaError::Broken(_))));
        assert!(bench.disk.flip(&row, bit));
        assert!(bench.one(at(7), ask).0.is_ok(), "the damage was on the way, and is over");
    }
}

#[test]
fn a_group_that_is_dropped_answers() {
    let heard = Arc::new(Heard::default());
    let request = Request { place: at(1), epoch: 0, ask: Ask::Read };
    drop(Group::new(
        vec![Item { tag: 7, request, deadline: 0, largest_answer: usize::MAX, is_aged: true }],
        heard.clone(),
    ));
    assert!(matches!(heard.0.lock().unwrap()[..], [(7, Err(ReplicaError::Broken(_)))]));
}

#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<(u8, Op)>),
    Sync,
    /// The power fails; this many of 256 of the unsynced batches survive.
    Crash(u8),
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u8, bool),
    Read,
    Stamp(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = prop_oneof![
        3 => (0_u64..20, 0_u8..8, any::<bool>()).prop_map(|(stamp, n, live)| Op::Write(stamp, n, live)),
        2 => Just(Op::Read),
        1 => (0_u8..8).prop_map(Op::Stamp),
    ];
    let step = prop_oneof![
        5 => proptest::collection::vec((0_u8..5, op), 1..12).prop_map(Step::Batch),
        2 => Just(Step::Sync),
        1 => any::<u8>().prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    /// The store behaves like a map of registers that are merged one by one, and whatever an ungated answer has shown survives a crash.
    #[test]
    fn behaves_like_a_map_and_what_it_tells_survives(steps in steps()) {
        let mut bench = Bench::new();
        let mut model: BTreeMap<u8, Record> = BTreeMap::new();
        // The records that delivered answers have shown.
        let mut shown: BTreeMap<u8, Record> = BTreeMap::new();
        let mut held: BTreeMap<u8, Record> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Batch(ops) => {
                    let request = |(key, op): &(u8, Op)| (at(*key), match op {
                        Op::Write(stamp, n, live) => merge(&register(*stamp, *n, *live)),
                        Op::Read => Ask::Read,
                        Op::Stamp(n) => Ask::Stamp { write_id: id(*n) },
                    });
                    let answers = bench.apply(ops.iter().map(request).collect());
                    for ((key, op), (outcome, gated)) in ops.into_iter().zip(answers) {
                        match op {
                            Op::Write(stamp, n, live) => {
                                let (merged, changed) =
                                    Record::merge(model.remove(&key), register(stamp, n, live)).unwrap();
                                model.insert(key, merged);
                                prop_assert_eq!(outcome, Ok(Answer::Merged { superseded: !changed, told: Vec::new() }));
                            }
                            Op::Read => prop_assert_eq!(record(&outcome), model.get(&key).cloned()),
                            Op::Stamp(n) => {
                                let (stands, known) = match model.get(&key) {
                                    Some(Record::Register(register)) => (Some(register.stamp), register.knows(&id(n))),
                                    _ => (None, None),
                                };
                                prop_assert_eq!(outcome, Ok(Answer::Stamp { stands, known }));
                                continue;
                            }
                        }
                        if let Some(record) = model.get(&key) {
                            if gated { &mut held } else { &mut shown }.insert(key, record.clone());
                        }
                    }
                }
                Step::Sync => {
                    bench.sync();
                    shown.append(&mut held);
                }
                Step::Crash(share) => {
                    bench.disk.crash_keeping(|unsynced| unsynced * usize::from(share) / 256);
                    bench.reopen();
                    held.clear();
                    model.clear();
                    for key in 0..5 {
                        if let Some(record) = record(&bench.one(at(key), Ask::Read).0) {
                            model.insert(key, record);
                        }
                    }
                    for (key, record) in &shown {
                        let (_, changed) = Record::merge(model.get(key).cloned(), record.clone()).unwrap();
                        prop_assert!(!changed, "key {} lost something that was shown", key);
                    }
                }
            }
        }
    }
}

#[test]
fn a_pin_is_synced_reported_and_taken_off() {
    let mut bench = Bench::new();
    let names = || Ask::Names { write_id: id(1), started: WALL };
    let (asked, gated) = bench.one(at(1), names());
    let Some(Record::Siblings(pinned)) = record(&asked) else { panic!("siblings") };
    assert!(gated && pinned.names.is_pinned(&id(1)) && pinned.versions.is_empty());
    bench.sync();
    bench.reopen();
    assert!(!bench.one(at(1), names()).1, "it is pinned already");

    // What supersedes the write is merged: whoever sent it learns that the name is pinned here.
    let mut over = Siblings::default();
    over.names.note(Name::dead(id(1), WALL));
    let (merged, _) = bench.one(at(1), merge(&Record::Siblings(over.clone())));
    let Ok(Answer::Merged { superseded: false, told }) = merged else { panic!("{merged:?}") };
    assert_eq!(told, [Name { pinned: true, ..Name::dead(id(1), WALL) }]);
    assert!(over.learn(&told));
    let (merged, _) = bench.one(at(1), merge(&Record::Siblings(over)));
    assert_eq!(merged, Ok(Answer::Merged { superseded: true, told: Vec::new() }));
    let again = Ask::Put(Arc::new(Write { again: true, asked: true, ..put(1) }));
    assert!(matches!(bench.one(at(1), again).0, Ok(Answer::Put { applied_already: true, .. })));

    bench.done(at(1), Ask::Unpin { write_id: id(1) });
    let Some(Record::Siblings(left)) = record(&bench.one(at(1), Ask::Read).0) else { panic!("siblings") };
    assert!(!left.names.is_pinned(&id(1)) && left.names.is_dead(&id(1)));
    bench.done(at(2), merge(&register(1, 1, true)));
    for ask in [names(), Ask::Unpin { write_id: id(1) }] {
        assert_eq!(bench.one(at(2), ask).0, Err(ReplicaError::WrongMode));
    }
}

#[test]
fn a_puts_answer_forgets_nothing_and_the_next_write_does() {
    fault::keep_names(2);
    let mut bench = Bench::new();
    for n in 1..=5 {
        bench.done(at(1), Ask::Put(Arc::new(put(n))));
    }
    let over = Write { ids: (1..=5).map(id).collect(), ..put(6) };
    let answer = bench.one(at(1), Ask::Put(Arc::new(over))).0;
    let Some(Record::Siblings(answered)) = record(&answer) else { panic!("siblings") };
    bench.done(at(1), Ask::Put(Arc::new(put(7))));
    let Some(Record::Siblings(stored)) = record(&bench.one(at(1), Ask::Read).0) else { panic!("siblings") };
    fault::keep_names(witan_kernel::limit::RECENT_ENTRIES);
    assert_eq!((answered.names.entries.len(), stored.names.entries.len()), (5, 2));
    assert_eq!((answered.names.horizon, stored.names.horizon), (0, WALL));
}
