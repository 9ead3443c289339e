use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::{Bytes, BytesMut};
use proptest::prelude::{any, prop_assert_eq, proptest};
use witan_kernel::fault;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::placement::Tokens;
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};
use witan_kernel::scan::Scan;
use witan_kernel::siblings::{VersionVector, Write};
use witan_kernel::space::Space;

use super::*;
use crate::batch::{Answers, Deliver, Durability, Group, Item, Shard};
use crate::engine::simulated::{Disk, Simulated};
use crate::engine::{Engine, Usage};
use crate::scan::{page, page_under};
use crate::store::OpenError;
use crate::testing::Dice;

static DICE: Dice = Dice(AtomicU8::new(1));

fn try_open(engine: impl Engine) -> Result<Store, OpenError> {
    Store::open(Box::new(engine), &NodeId::new("n1").unwrap(), &DICE)
}

fn open(disk: &Disk) -> Store {
    try_open(disk.open()).unwrap()
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name.to_owned()).unwrap()
}

fn space(name: &str) -> Space {
    Space::from_trusted(Bytes::copy_from_slice(name.as_bytes()))
}

fn place(token: u64, of: &str) -> Place {
    Place { token, space: space(of), key: Key::from_trusted(Bytes::from_static(b"k")) }
}

fn put(store: &Store, places: &[Place]) {
    let record = Record::Register(Register::written(Stamp(1), WriteId([1; 16]), None)).encode();
    let row = |place: &Place| {
        let mut envelope = BytesMut::new();
        row::put_envelope(&row::key(place), 0, &record, &mut envelope);
        (row::key(place), Some(envelope.freeze()))
    };
    store.write_rows(places.iter().map(row).collect()).unwrap();
    store.sync().unwrap();
}

fn tokens(store: &Store, of: &str) -> BTreeSet<u64> {
    let scan = Scan { space: Some(space(of)), ..Scan::between(0, u64::MAX) };
    page(store, Durability::Sync, &scan).unwrap().found.into_iter().map(|found| found.place.token).collect()
}

fn wanted(purpose: Purpose, epoch: u64, ranges: &[Tokens]) -> Clear {
    Clear { space: tenant("t").into(), ranges: ranges.to_vec(), epoch, purpose }
}

fn enter(store: &Store, epoch: u64, ranges: &[Tokens]) -> Clearing {
    clear(store, &wanted(Purpose::Enter, epoch, ranges)).unwrap()
}

fn leave(store: &Store, epoch: u64, ranges: &[Tokens]) -> Clearing {
    clear(store, &wanted(Purpose::Leave, epoch, ranges)).unwrap()
}

fn done(store: &Store, already: bool, records: u64) -> Clearing {
    Clearing::Done(Cleared { store: store.id(), already, records })
}

fn least(store: &Store) -> u64 {
    store.fences().least(&tenant("t"))
}

/// Ten rows of the tenant and as many of another one.
fn filled(disk: &Disk) -> Store {
    let store = open(disk);
    put(&store, &(0..10).flat_map(|token| [place(token, "t"), place(token, "u")]).collect::<Vec<_>>());
    store
}

#[test]
fn the_rows_of_the_tenant_in_the_ranges_go_and_no_others() {
    let disk = Disk::new();
    let store = filled(&disk);
    assert_eq!(enter(&store, 7, &[(1, 2), (4, 4), (8, u64::MAX)]), done(&store, false, 5));
    disk.crash();
    let store = open(&disk);
    assert_eq!(tokens(&store, "t"), BTreeSet::from([0, 3, 5, 6, 7]));
    assert_eq!(tokens(&store, "u").len(), 10);
    assert_eq!((least(&store), store.fences().least(&tenant("u"))), (7, 0));
}

/// Each generation of a tenant goes alone; its fence and its mark are those of the tenant, and a deletion takes all of them.
#[test]
fn rows_of_other_generations_stay_and_are_fenced_together() {
    let disk = Disk::new();
    let store = filled(&disk);
    put(&store, &[place(1, "t:1"), place(2, "t:1"), place(2, "t:12"), place(2, "u:1")]);
    let of = |name: &str, purpose, epoch| Clear { space: space(name), ..wanted(purpose, epoch, &[(0, u64::MAX)]) };
    assert_eq!(clear(&store, &of("t:1", Purpose::Enter, 7)).unwrap(), done(&store, false, 2));
    assert_eq!(["t", "t:1", "t:12", "u:1"].map(|name| tokens(&store, name).len()), [10, 0, 1, 1]);
    assert_eq!(least(&store), 7);
    put(&store, &[place(5, "t:1")]);
    assert_eq!(clear(&store, &of("t:1", Purpose::Enter, 7)).unwrap(), done(&store, true, 0));
    let scan = |name: &str, epoch| Scan { space: Some(space(name)), epoch, ..Scan::between(0, u64::MAX) };
    for name in ["t", "t:1"] {
        assert_eq!(page_under(&store, Durability::Sync, &scan(name, 6)).unwrap(), None, "{name}");
    }
    assert_eq!(clear(&store, &of("t", Purpose::Leave, 9)).unwrap(), done(&store, false, 10));
    assert_eq!(["t", "t:1", "t:12"].map(|name| tokens(&store, name).len()), [0, 1, 1]);
    put(&store, &[place(0, "t")]);
    assert_eq!(crate::scan::drop_tenant(&store, &tenant("t"), None).unwrap().records, 3);
    assert_eq!(["t", "t:1", "t:12", "u", "u:1"].map(|name| tokens(&store, name).len()), [0, 0, 0, 10, 1]);
}

#[test]
fn entered_again_under_its_epoch_nothing_is_dropped_also_after_a_start() {
    let disk = Disk::new();
    let store = filled(&disk);
    assert_eq!(enter(&store, 7, &[(0, 4)]), done(&store, false, 5));
    put(&store, &[place(1, "t")]);
    assert_eq!(enter(&store, 7, &[(0, 4)]), done(&store, true, 0));
    // A later fence of the tenant changes nothing about that.
    store.raise_fence(Some(&tenant("t")), 9).unwrap();
    disk.crash();
    let store = open(&disk);
    assert_eq!(enter(&store, 7, &[(0, 4)]), done(&store, true, 0));
    assert_eq!(tokens(&store, "t"), BTreeSet::from([1, 5, 6, 7, 8, 9]));
}

#[test]
fn what_a_later_change_has_overtaken_drops_nothing() {
    let disk = Disk::new();
    let store = filled(&disk);
    store.raise_fence(Some(&tenant("t")), 8).unwrap();
    assert_eq!(enter(&store, 7, &[(0, 9)]), Clearing::Stale, "fenced");
    assert_eq!(
        enter(&store, 8, &[(0, 0)]),
        done(&store, false, 1),
        "a fence of the change itself, or one of before a crash"
    );
    assert_eq!(enter(&store, 12, &[(1, 1)]), done(&store, false, 1));
    assert_eq!(leave(&store, 11, &[(0, 9)]), Clearing::Stale, "it has entered since");
    assert_eq!(enter(&store, 8, &[(0, 9)]), Clearing::Stale, "marked by now with a later epoch");
    disk.crash();
    let store = open(&disk);
    assert_eq!(leave(&store, 11, &[(0, 9)]), Clearing::Stale, "which is remembered");
    assert_eq!(tokens(&store, "t").len(), 8);
    // A fence above the epoch is no reason: settings may have changed.
    store.raise_fence(None, 20).unwrap();
    assert_eq!(leave(&store, 13, &[(2, 3)]), done(&store, false, 2));
    assert_eq!(leave(&store, 13, &[(2, 3)]), done(&store, false, 0));
    assert_eq!((tokens(&store, "t").len(), least(&store)), (6, 20));
    assert_eq!(leave(&store, 21, &[]), done(&store, false, 0));
    assert_eq!(least(&store), 21, "also with nothing to drop");
}

#[test]
fn a_store_that_is_not_on_record_neither_enters_nor_leaves() {
    let store = filled(&Disk::new());
    assert!(store.set_on_record(false));
    for purpose in [Purpose::Enter, Purpose::Leave] {
        assert_eq!(clear(&store, &wanted(purpose, 7, &[(0, 9)])), Ok(Clearing::NotOnRecord));
    }
    assert_eq!((tokens(&store, "t").len(), least(&store)), (10, 0));
    assert!(store.set_on_record(true));
    assert_eq!(enter(&store, 7, &[(0, 9)]), done(&store, false, 10));
}

#[test]
fn a_store_that_has_marks_is_refused_by_programs_of_before_and_so_are_damaged_marks() {
    let disk = Disk::new();
    enter(&open(&disk), 7, &[]);
    assert_eq!(disk.open().note("identity").unwrap().unwrap()[0], 3, "a codec that they do not know");
    assert!(disk.open().note("marks").unwrap().is_some());
    disk.open().set_note("marks", Bytes::from_static(b"damaged")).unwrap();
    let error = try_open(disk.open()).err().unwrap();
    assert!(matches!(error, OpenError::Identity(_)) && error.to_string().contains("marks"), "{error}");
}

#[test]
fn a_call_ends_after_its_steps_and_the_next_goes_on() {
    let store = open(&Disk::new());
    let count = 3 * REMOVED_ROWS as u64 + 5;
    for of in ["t", "u"] {
        put(&store, &(0..count).map(|token| place(token, of)).collect::<Vec<_>>());
    }
    let (all, within) = (wanted(Purpose::Enter, 7, &[(0, u64::MAX)]), 1);
    let (mut calls, mut records) = (1, 0);
    while let Clearing::More(cleared) = clear_within(&store, &all, within).unwrap() {
        assert!(!store.clears().marks().is(&tenant("t"), 7));
        (calls, records) = (calls + 1, records + cleared.records);
        // Another one in between does not make it begin anew.
        assert!(matches!(leave(&store, 7, &[(count, count)]), Clearing::Done(_)));
    }
    assert_eq!((calls, records), (4, 3 * REMOVED_ROWS as u64), "and the rest in the last one");
    assert!(store.clears().marks().is(&tenant("t"), 7));
    assert_eq!(tokens(&store, "t"), BTreeSet::new());
}

#[test]
fn many_ranges_without_rows_take_several_steps() {
    let store = filled(&Disk::new());
    let ranges: Vec<Tokens> = (100..5000).map(|token| (2 * token, 2 * token)).collect();
    let many = wanted(Purpose::Leave, 7, &ranges);
    let calls = (1..).find(|_| matches!(clear_within(&store, &many, 1), Ok(Clearing::Done(_)))).unwrap();
    assert!((5..50).contains(&calls), "{calls}");
}

#[test]
fn a_dropped_row_is_forgotten_by_the_cache_and_its_birth_with_it() {
    let store = open(&Disk::new());
    let mut shard = Shard::new(0, 64 << 10);
    let birth = |outcome: Outcome| {
        let Ok(Answer::Put { record, .. }) = outcome else { panic!("{outcome:?}") };
        let Record::Siblings(siblings) = record.decode().unwrap() else { panic!("siblings") };
        siblings.seen.entries.iter().map(|(actor, counter)| (actor.birth, *counter)).collect::<Vec<_>>()
    };
    let first = birth(apply(&store, &mut shard, 7, put_ask(1)));
    assert_eq!(birth(apply(&store, &mut shard, 7, put_ask(2))), [(first[0].0, 2)], "it goes on counting");
    assert_eq!(enter(&store, 7, &[(1, 1)]), done(&store, false, 1));
    assert_eq!(apply(&store, &mut shard, 7, Ask::Read), Ok(Answer::Record(None)));
    let second = birth(apply(&store, &mut shard, 7, put_ask(3)));
    assert_eq!((second.len(), second[0].1), (1, 1), "as if nothing had been there");
    assert_ne!(first[0].0, second[0].0, "what was minted before is not minted again");
}

/// The answer to one request about a row of the tenant, sent under `epoch`.
fn apply(store: &Store, shard: &mut Shard, epoch: u64, ask: Ask) -> Outcome {
    let heard = Arc::new(Heard::default());
    let request = Request { place: place(1, "t"), epoch, ask };
    let item = Item { tag: 0, request, deadline: u64::MAX, largest_answer: usize::MAX, is_aged: true };
    let applied = shard.apply(store, Durability::Sync, vec![Group::new(vec![item], heard)], 1_000_000, 0);
    let mut answers = applied.ready.into_iter().chain(applied.gated).flat_map(|(_, answers)| answers);
    answers.next().unwrap().1
}

fn put_ask(n: u8) -> Ask {
    Ask::Put(Arc::new(Write {
        write_id: WriteId([n; 16]),
        started: 1_000_000,
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: Some(Bytes::from_static(b"value")),
    }))
}

fn merge_ask() -> Ask {
    let register = Register::written(Stamp(1), WriteId([1; 16]), Some(Bytes::from_static(b"value")));
    Ask::Merge { record: Record::Register(register).encode() }
}

#[derive(Default)]
struct Heard(Mutex<Answers>);

impl Deliver for Heard {
    fn deliver(&self, answers: Answers) {
        self.0.lock().unwrap().extend(answers);
    }
}

/// A call of the engine that changes something, or walks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Write,
    Batch,
    Sync,
    Note(String),
    Walk,
}

/// An engine that reports each call before it is carried out.
struct Watched<F>(Simulated, F);

impl<F: Fn(Call) + Send + Sync + 'static> Engine for Watched<F> {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(row)
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        (self.1)(Call::Write);
        self.0.write(batch)
    }

    fn write_noting(&self, batch: Vec<Change>, name: &str, value: Bytes) -> Result<(), EngineError> {
        (self.1)(Call::Batch);
        self.0.write_noting(batch, name, value)
    }

    fn sync(&self) -> Result<(), EngineError> {
        (self.1)(Call::Sync);
        self.0.sync()
    }

    fn scan(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.0.scan(range, limit)
    }

    fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError> {
        (self.1)(Call::Walk);
        self.0.walk(range, each)
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        self.0.usage()
    }

    fn approximate_keys(&self) -> u64 {
        self.0.approximate_keys()
    }

    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError> {
        self.0.note(name)
    }

    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError> {
        (self.1)(Call::Note(name.to_owned()));
        self.0.set_note(name, value)
    }

    fn reopenings(&self) -> u64 {
        self.0.reopenings()
    }
}

/// Power is lost before each call of the engine in turn: the node is entered either as a whole, or not yet, and what is repeated goes on.
#[test]
fn a_crash_at_any_moment_leaves_no_mark_without_its_drop() {
    let mut crashed = 0;
    for at in 0.. {
        let disk = Disk::new();
        drop(filled(&disk));
        let (calls, power) = (Arc::new(Mutex::new(Vec::new())), disk.clone());
        let store = try_open(Watched(disk.open(), {
            let calls = Arc::clone(&calls);
            move |call| {
                let mut calls = calls.lock().unwrap();
                // The first one is the boot of the opening.
                if calls.len() == at + 1 {
                    power.crash();
                }
                calls.push(call);
            }
        }))
        .unwrap();
        let entered = clear(&store, &wanted(Purpose::Enter, 7, &[(2, 5)]));
        let store = open(&disk);
        let before = tokens(&store, "t");
        let marked = store.clears().marks().is(&tenant("t"), 7);
        assert!(!marked || before.len() == 6, "marked, and there are rows: {:?}", calls.lock().unwrap());
        assert!(before.len() == 10 || least(&store) == 7, "rows are gone without a fence: {:?}", calls.lock().unwrap());
        if entered.is_ok() {
            assert!(marked);
            let name = |note: &str| Call::Note(note.to_owned());
            let order = [
                name("identity"),
                name("identity"),
                name("fences"),
                Call::Walk,
                Call::Write,
                Call::Sync,
                name("marks"),
            ];
            assert_eq!(*calls.lock().unwrap(), order);
            break;
        }
        crashed += 1;
        assert_eq!(enter(&store, 7, &[(2, 5)]), done(&store, marked, (before.len() as u64).saturating_sub(6)));
        assert_eq!((tokens(&store, "t").len(), tokens(&store, "u").len()), (6, 10));
    }
    assert_eq!(crashed, 6, "before each call after the boot");
}

#[test]
fn rows_whose_drop_could_not_be_synced_are_not_taken_for_dropped() {
    let disk = Disk::new();
    let store = filled(&disk);
    store.raise_fence(Some(&tenant("t")), 7).unwrap();
    disk.set_failing_syncs(true);
    assert!(clear(&store, &wanted(Purpose::Enter, 7, &[(0, 9)])).is_err());
    disk.set_failing_syncs(false);
    assert!(clear(&store, &wanted(Purpose::Enter, 7, &[(0, 9)])).is_err(), "an operator has to look at the disk");
    disk.crash();
    let store = open(&disk);
    assert_eq!(tokens(&store, "t").len(), 10);
    assert_eq!(enter(&store, 7, &[(0, 9)]), done(&store, false, 10));
}

#[test]
fn an_engine_that_is_opened_again_meanwhile_makes_the_call_begin_anew() {
    let disk = Disk::new();
    drop(filled(&disk));
    let (reopens, once) = (disk.clone(), AtomicU8::new(0));
    let store = try_open(Watched(disk.open(), move |call| {
        if call == Call::Sync && once.fetch_add(1, Ordering::Relaxed) == 0 {
            // What was written since the last sync is lost.
            reopens.reopen();
        }
    }))
    .unwrap();
    let none = Cleared { store: store.id(), already: false, records: 0 };
    assert_eq!(enter(&store, 7, &[(0, 9)]), Clearing::More(none));
    assert_eq!(tokens(&store, "t").len(), 10);
    assert_eq!(enter(&store, 7, &[(0, 9)]), done(&store, false, 10));
}

/// A merge that was let past the fence is written before the fence is raised, however long it takes, and is dropped with the other rows.
#[test]
fn a_merge_between_its_check_and_its_write_is_dropped_and_a_later_one_refused() {
    let disk = Disk::new();
    let (parked, at_write) = mpsc::channel();
    let (go_on, going) = mpsc::channel::<()>();
    let (noted, fence_noted) = mpsc::channel();
    let (going, once) = (Mutex::new(going), Mutex::new(Some(parked)));
    let store = try_open(Watched(disk.open(), move |call| match call {
        Call::Batch => {
            if let Some(parked) = once.lock().unwrap().take() {
                parked.send(()).unwrap();
                going.lock().unwrap().recv().unwrap();
            }
        }
        Call::Note(name) if name == "fences" => noted.send(()).unwrap(),
        _ => {}
    }))
    .unwrap();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| apply(&store, &mut Shard::new(0, 64 << 10), 6, merge_ask()));
        at_write.recv().unwrap();
        let entering = scope.spawn(|| enter(&store, 7, &[(0, 9)]));
        // The fence is on the disk, and cannot be raised as long as the batch is not written.
        fence_noted.recv().unwrap();
        (0..100).for_each(|_| std::thread::yield_now());
        let overtaken = entering.is_finished();
        go_on.send(()).unwrap();
        assert!(!overtaken);
        assert!(matches!(merging.join().unwrap(), Ok(Answer::Merged { .. })));
        assert_eq!(entering.join().unwrap(), done(&store, false, 1), "it was found, and dropped");
    });
    assert_eq!(tokens(&store, "t"), BTreeSet::new());
    let mut shard = Shard::new(0, 64 << 10);
    assert_eq!(apply(&store, &mut shard, 6, merge_ask()), Err(ReplicaError::StaleEpoch));
    assert!(apply(&store, &mut shard, 7, merge_ask()).is_ok());
}

#[test]
fn a_page_under_an_epoch_comes_from_no_node_that_has_gone_on() {
    let store = filled(&Disk::new());
    let of = |epoch| Scan { space: Some(tenant("t").into()), epoch, ..Scan::between(0, u64::MAX) };
    let found = |scan: &Scan| page_under(&store, Durability::Sync, scan).unwrap().map(|page| page.found.len());
    store.raise_fence(Some(&tenant("t")), 7).unwrap();
    assert_eq!((found(&of(7)), found(&of(8)), found(&of(0))), (Some(10), Some(10), Some(10)));
    assert_eq!(found(&of(6)), None);
    assert_eq!(found(&Scan { space: Some(tenant("u").into()), ..of(6) }), Some(10), "another tenant's fence");
    store.raise_fence(None, 9).unwrap();
    assert_eq!(found(&of(8)), None);
}

/// The fence is raised, and rows are dropped, while the page is read: then it may lack rows, and is not shown.
#[test]
fn a_page_that_a_fence_has_overtaken_is_not_shown() {
    let disk = Disk::new();
    drop(filled(&disk));
    let (walks, walking) = mpsc::channel();
    let (go_on, going) = mpsc::channel::<()>();
    let (going, once) = (Mutex::new(going), Mutex::new(Some(walks)));
    let store = try_open(Watched(disk.open(), move |call| {
        // Before it parks, since the call that overtakes it walks, too.
        let first = (call == Call::Walk).then(|| once.lock().unwrap().take()).flatten();
        if let Some(walks) = first {
            walks.send(()).unwrap();
            going.lock().unwrap().recv().unwrap();
        }
    }))
    .unwrap();
    let scan = Scan { space: Some(tenant("t").into()), epoch: 6, ..Scan::between(0, u64::MAX) };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| page_under(&store, Durability::Sync, &scan));
        walking.recv().unwrap();
        assert_eq!(enter(&store, 7, &[(0, 4)]), done(&store, false, 5));
        go_on.send(()).unwrap();
        assert_eq!(reading.join().unwrap(), Ok(None));
    });
}

#[test]
fn each_deliberate_fault_breaks_its_rule() {
    let with = |fault, work: &dyn Fn(&Store)| {
        let store = filled(&Disk::new());
        fault::set(Some(fault));
        work(&store);
        fault::set(None);
        tokens(&store, "t").len()
    };
    let entered = |store: &Store| assert!(matches!(enter(store, 7, &[(0, 4)]), Clearing::Done(_)));
    assert_eq!(with(Fault::EnterDropsNothing, &entered), 10);
    let late = |store: &Store| {
        entered(store);
        assert_eq!(enter(store, 6, &[(5, 9)]), done(store, false, 5));
    };
    assert_eq!(with(Fault::StaleEnterDrops, &late), 0);
    let left = |store: &Store| {
        entered(store);
        assert_eq!(leave(store, 6, &[(5, 9)]), done(store, false, 5));
    };
    assert_eq!(with(Fault::LeaveIgnoresEntry, &left), 0);
}

proptest! {
    /// Whatever the ranges and however small the steps, exactly the tenant's rows in the ranges are dropped.
    #[test]
    fn exactly_what_lies_in_the_ranges_is_dropped(
        rows in proptest::collection::btree_set((any::<u8>(), any::<bool>()), 0..80),
        bounds in proptest::collection::btree_set(any::<u8>(), 0..12),
        enters: bool,
    ) {
        let store = open(&Disk::new());
        put(&store, &rows.iter().map(|(token, ours)| place(u64::from(*token), if *ours { "t" } else { "u" })).collect::<Vec<_>>());
        let bounds: Vec<u64> = bounds.into_iter().map(u64::from).collect();
        let ranges: Vec<Tokens> = bounds.as_chunks::<2>().0.iter().map(|[from, to]| (*from, *to)).collect();
        let purpose = if enters { Purpose::Enter } else { Purpose::Leave };
        while !matches!(clear_within(&store, &wanted(purpose, 7, &ranges), 1), Ok(Clearing::Done(_))) {}
        let within = |token: &u64| ranges.iter().any(|(from, to)| (*from..=*to).contains(token));
        let of = |ours: bool| rows.iter().filter(move |row| row.1 == ours).map(|row| u64::from(row.0));
        prop_assert_eq!(tokens(&store, "t"), of(true).filter(|token| !within(token)).collect::<BTreeSet<_>>());
        prop_assert_eq!(tokens(&store, "u"), of(false).collect::<BTreeSet<_>>());
    }
}
