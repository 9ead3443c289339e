use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use witan_kernel::digest::Row;
use witan_kernel::fault::{self, Fault};
use witan_kernel::name::TenantId;
use witan_kernel::name::{Key, NodeId, WriteId};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Ask, Place, Request};
use witan_kernel::scan::{Clear, Purpose};
use witan_kernel::siblings::{VersionVector, Write};

use super::*;
use crate::batch::{Answers, Deliver, Group, Item, Shard};
use crate::clear::clear;
use crate::engine::Engine;
use crate::engine::simulated::Disk;
use crate::scan::drop_tenant;
use crate::testing::Dice;

static DICE: Dice = Dice(AtomicU8::new(1));
/// Slices with rows.
const IN_USE: [u16; 5] = [0, 1, 2, 700, u16::MAX];
/// Everything: what is on a usual page.
const ALL: Wanted = Wanted { space: None, tokens: (0, u64::MAX) };

fn open(engine: impl Engine) -> Store {
    Store::open(Box::new(engine), &NodeId::new("n1").unwrap(), &DICE).unwrap()
}

struct Nobody;

impl Deliver for Nobody {
    fn deliver(&self, _: Answers) {}
}

fn apply(store: &Store, shard: &mut Shard, asks: Vec<(Place, Ask)>) {
    let item = |(tag, (place, ask))| Item {
        tag,
        request: Request { place, epoch: u64::MAX, ask },
        deadline: u64::MAX,
        largest_answer: usize::MAX,
        is_aged: true,
    };
    let group = Group::new((0..).zip(asks).map(item).collect(), Arc::new(Nobody));
    shard.apply(store, Durability::Sync, vec![group], 1_000_000, 0);
}

fn tenant(of: u8) -> TenantId {
    TenantId::new(["t", "u", "siblings"][usize::from(of % 3)]).unwrap()
}

/// A few places in a few slices; the third tenant has siblings.
fn at(n: u8) -> Place {
    let slice = IN_USE[usize::from(n / 3 % 5)];
    let (first, last) = Slice(slice).tokens();
    let token = [first, first + 1, last][usize::from(n / 15 % 3)];
    Place { token, space: tenant(n).into(), key: Key::from_trusted(Bytes::from(vec![n / 45])) }
}

fn register(stamp: u8, live: bool) -> Ask {
    let value = live.then(|| Bytes::from(vec![stamp; 20]));
    let record = Record::Register(Register::written(Stamp(u64::from(stamp)), WriteId([stamp; 16]), value));
    Ask::Merge { record: record.encode() }
}

fn ask(place: &Place, n: u8, live: bool) -> Ask {
    if !place.space.is_of(&tenant(2)) {
        return register(n, live);
    }
    let write_id = WriteId([n; 16]);
    match n % 8 {
        0 => Ask::Names { write_id, started: 1 },
        1 => Ask::Unpin { write_id },
        _ => Ask::Put(Arc::new(Write {
            write_id,
            started: u64::from(n),
            again: false,
            asked: false,
            seen: VersionVector::default(),
            ids: Vec::new(),
            newest: 0,
            value: live.then(|| Bytes::from(vec![n])),
        })),
    }
}

/// Leaves as they are found by reading everything.
fn scanned(store: &Store) -> BTreeMap<(Slice, Space), Leaf> {
    let mut leaves: BTreeMap<(Slice, Space), Leaf> = BTreeMap::new();
    let mut add = |row: Bytes, value: Bytes| {
        let place = row::place(&row).unwrap();
        let record = row::open_envelope(&row, &value).unwrap().1.decode().unwrap();
        let row = Row::of(place.token, place.space.bytes(), place.key.bytes(), &record);
        leaves.entry((Slice::of(place.token), place.space)).or_default().add(&row);
        true
    };
    store.walk(rows(0, u64::MAX, None), &mut add).unwrap();
    leaves
}

fn answered(leaves: &[TenantLeaf]) -> BTreeMap<(Slice, Space), Leaf> {
    leaves.iter().map(|of| ((of.slice, of.space.clone()), of.leaf)).collect()
}

/// Compares everything but the bound of the oldest tombstone, which may be earlier.
fn assert_level(known: &BTreeMap<(Slice, Space), Leaf>, counted: &BTreeMap<(Slice, Space), Leaf>) {
    let plain = |of: &BTreeMap<(Slice, Space), Leaf>| -> Vec<(Slice, Space, u128, u32, u32)> {
        of.iter().map(|((slice, tenant), leaf)| (*slice, tenant.clone(), leaf.sum, leaf.count, leaf.buried)).collect()
    };
    assert_eq!(plain(known), plain(counted));
    for (place, leaf) in counted {
        assert!(known[place].oldest_buried <= leaf.oldest_buried, "{place:?}");
    }
}

/// Whatever is kept is what is stored.
fn check_kept(store: &Store, counted: &BTreeMap<(Slice, Space), Leaf>) {
    let table = store.table();
    let kept: Vec<TenantLeaf> = IN_USE.iter().filter_map(|slice| table.leaves(Slice(*slice))).flatten().collect();
    let of_kept = counted.iter().filter(|((slice, _), _)| table.keeps(*slice));
    assert_level(&answered(&kept), &of_kept.map(|(place, leaf)| (place.clone(), *leaf)).collect());
}

/// Every answer from memory, and every other one, is what is stored.
fn check(store: &Store) {
    let counted = scanned(store);
    check_kept(store, &counted);
    let answer = digests(store, Durability::Sync, &ALL, &|_| ()).unwrap();
    assert_eq!((answer.to, answer.unknown.as_slice()), (u64::MAX, &[][..]));
    assert_level(&answered(&answer.leaves), &counted);
}

#[derive(Debug, Clone)]
enum Op {
    /// Requests on these rows, in one batch.
    Batch(Vec<(u8, u8, bool)>),
    /// An answer for a part of the ring, which reads at most this many rows, in steps of few.
    Ask(u8, u8, u64, u64),
    Clear(u8, u8, u8),
    DropTenant(u8),
    /// A batch while the disk is full, broken, or cannot be read.
    Full(u8, u8),
    Broken(u8, u8),
    Unreadable(u8, u8),
    /// The engine is opened again, and has lost what was not synced.
    Reopen,
    Crash,
    Sync,
}

fn ops() -> impl Strategy<Value = Op> {
    let batch = prop::collection::vec((any::<u8>(), any::<u8>(), any::<bool>()), 1..6).prop_map(Op::Batch);
    prop_oneof![
        8 => batch,
        4 => (any::<u8>(), any::<u8>(), 1..40u64, 1..4u64).prop_map(|(from, to, most, step)| Op::Ask(from, to, most, step)),
        1 => (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(of, from, to)| Op::Clear(of, from, to)),
        1 => any::<u8>().prop_map(Op::DropTenant),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(n, stamp)| Op::Full(n, stamp)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(n, stamp)| Op::Broken(n, stamp)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(n, stamp)| Op::Unreadable(n, stamp)),
        1 => proptest::prelude::Just(Op::Reopen),
        1 => proptest::prelude::Just(Op::Crash),
        1 => proptest::prelude::Just(Op::Sync),
    ]
}

fn between(from: u8, to: u8) -> Tokens {
    let (a, b) = (at(from).token, at(to).token);
    (a.min(b), a.max(b))
}

fn play(disk: &Disk, ops: Vec<Op>) {
    let (mut store, mut shard) = (open(disk.open()), Shard::new(0, 4 << 10));
    let mut epoch = 1;
    for op in ops {
        let one = |n: u8, stamp: u8| vec![(at(n), ask(&at(n), stamp, true))];
        match op {
            Op::Batch(asks) => {
                let asks = asks.into_iter().map(|(n, stamp, live)| (at(n), ask(&at(n), stamp, live)));
                apply(&store, &mut shard, asks.collect());
            }
            Op::Ask(from, to, most, step) => {
                let (most, step) = (Read { rows: most, bytes: 1 << 20 }, Read { rows: step, bytes: 1 << 20 });
                let wanted = Wanted { space: None, tokens: between(from, to) };
                let answer = digests_within(&store, Durability::Sync, &wanted, &|_| (), &step, &most).unwrap();
                assert!(answer.to >= wanted.tokens.0 && answer.to <= wanted.tokens.1);
            }
            Op::Clear(of, from, to) => {
                epoch += 1;
                let (space, ranges) = (tenant(of).into(), vec![between(from, to)]);
                let purpose = if of % 2 == 0 { Purpose::Enter } else { Purpose::Leave };
                clear(&store, &Clear { space, ranges, epoch, purpose }).unwrap();
            }
            Op::DropTenant(of) => {
                drop_tenant(&store, &tenant(of), None).unwrap();
            }
            Op::Full(n, stamp) => {
                disk.set_full(true);
                apply(&store, &mut shard, one(n, stamp));
                disk.set_full(false);
            }
            Op::Broken(n, stamp) => {
                disk.set_broken(Some("test"));
                apply(&store, &mut shard, one(n, stamp));
                assert!(digests(&store, Durability::Sync, &ALL, &|_| ()).is_err());
                disk.set_broken(None);
            }
            Op::Unreadable(n, stamp) => {
                disk.set_failing_reads(true);
                apply(&store, &mut shard, one(n, stamp));
                let _ = digests(&store, Durability::Sync, &ALL, &|_| ());
                disk.set_failing_reads(false);
            }
            Op::Reopen => disk.reopen(),
            Op::Crash => {
                disk.crash();
                (store, shard) = (open(disk.open()), Shard::new(0, 4 << 10));
            }
            Op::Sync => store.sync().unwrap(),
        }
        if store.keeps_digests() {
            check_kept(&store, &scanned(&store));
        }
    }
    check(&store);
}

proptest! {
    #[test]
    fn whatever_happens_digests_are_those_of_what_is_stored(ops in prop::collection::vec(ops(), 1..40)) {
        play(&Disk::new(), ops);
    }

    #[test]
    fn pages_of_any_size_say_everything_once(
        keys in prop::collection::btree_set(any::<u8>(), 0..60),
        from: u8,
        to: u8,
        most in 1..40u64,
        of in prop::option::of(any::<u8>()),
    ) {
        let store = open(Disk::new().open());
        let asks = keys.iter().map(|n| (at(*n), ask(&at(*n), 9, n % 2 == 0))).collect();
        apply(&store, &mut Shard::new(0, 0), asks);
        let (mut leaves, mut unknown) = (Vec::new(), Vec::new());
        let tokens = between(from, to);
        let mut next = tokens.0;
        loop {
            let wanted = Wanted { space: of.map(|of| tenant(of).into()), tokens: (next, tokens.1) };
            let (step, most) = (Read { rows: 3, bytes: 1 << 20 }, Read { rows: most + BEGUN_ROWS, bytes: 1 << 20 });
            let answer = digests_within(&store, Durability::Sync, &wanted, &|_| (), &step, &most).unwrap();
            leaves.extend(answer.leaves);
            unknown.extend(answer.unknown);
            if answer.to == tokens.1 {
                break;
            }
            next = answer.to + 1;
        }
        let mut expected: BTreeMap<(Slice, Space), Leaf> = BTreeMap::new();
        let mut add = |row: Bytes, value: Bytes| {
            let place = row::place(&row).unwrap();
            if of.is_none_or(|of| place.space.is_of(&tenant(of))) && !unknown.contains(&Slice::of(place.token)) {
                let leaf = expected.entry((Slice::of(place.token), place.space)).or_default();
                leaf.add(&digest_stored(&row, &value).unwrap());
            }
            true
        };
        store.walk(rows(tokens.0, tokens.1, None), &mut add).unwrap();
        prop_assert_eq!(answered(&leaves), expected);
        prop_assert_eq!(leaves.len(), answered(&leaves).len());
        let mut sorted = unknown.clone();
        sorted.dedup();
        prop_assert_eq!(sorted, unknown);
    }
}

/// Shards write on threads of their own while slices are counted row by row.
#[test]
fn what_is_written_while_a_slice_is_counted_counts_once() {
    let store = open(Disk::new().open());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let write = |thread: u8| {
            let mut shard = Shard::new(usize::from(thread), 4 << 10);
            for round in 0..6000u32 {
                // Each thread has rows of its own, as shards do.
                let n = (round.wrapping_mul(2_654_435_761) >> 24) as u8 / 2 * 2 + thread;
                let place = Place { key: Key::from_trusted(Bytes::from(vec![n])), ..at(n) };
                let stamp = (round / 25) as u8;
                apply(&store, &mut shard, vec![(place.clone(), ask(&place, stamp, round % 3 > 0))]);
                if round % 500 == 0 {
                    store
                        .write_rows(vec![(
                            row::key(&Place { key: Key::from_trusted(Bytes::from(vec![n, 1])), ..place }),
                            None,
                        )])
                        .unwrap();
                }
            }
        };
        let threads = [scope.spawn(move || write(0)), scope.spawn(move || write(1))];
        let (store, done) = (&store, &done);
        let asking = scope.spawn(move || {
            let (step, most) = (Read { rows: 1, bytes: 1 << 20 }, MOST);
            while !done.load(Ordering::Acquire) {
                digests_within(store, Durability::Os, &ALL, &|_| (), &step, &most).unwrap();
                // It is counted again while they write on.
                (0..=2).for_each(|slice| {
                    store
                        .table()
                        .lost(&Slice(slice).tokens().0.to_be_bytes().iter().chain(&[0, 0]).copied().collect::<Vec<_>>())
                });
            }
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Release);
        asking.join().unwrap();
    });
    check(&store);
}

#[test]
fn a_row_that_cannot_be_read_is_in_no_digest() {
    let disk = Disk::new();
    let (store, mut shard) = (open(disk.open()), Shard::new(0, 0));
    apply(&store, &mut shard, vec![(at(0), register(1, true)), (at(3), register(1, true))]);
    assert!(disk.flip(&row::key(&at(0)), 77));
    let answer = digests(&store, Durability::Sync, &ALL, &|_| ()).unwrap();
    assert_eq!((answer.unknown.as_slice(), answer.leaves.len()), (&[Slice(0)][..], 1));
    assert!(disk.flip(&row::key(&at(0)), 77));
    check(&store);
    // Damage behind the back of digests is not seen by them; it is by whoever drops the row.
    assert!(disk.flip(&row::key(&at(0)), 77));
    assert!(digests(&store, Durability::Sync, &ALL, &|_| ()).unwrap().unknown.is_empty());
    store.write_rows(vec![(row::key(&at(0)), None)]).unwrap();
    check(&store);
}

#[test]
fn a_slice_with_too_many_rows_is_not_counted_and_does_not_stop_an_answer() {
    let (store, mut shard) = (open(Disk::new().open()), Shard::new(0, 0));
    let place = |slice: u16, n: u8| Place { token: Slice(slice).tokens().0, ..at(n) };
    let asks = (0..60).map(|n| place(7, n / 3 * 3 + n % 2)).chain([place(3, 0), place(9, 0)]);
    let key = |at: usize, place: Place| Place { key: Key::from_trusted(Bytes::from(vec![at as u8])), ..place };
    apply(&store, &mut shard, asks.enumerate().map(|(at, place)| (key(at, place), register(1, true))).collect());
    let (step, most) = (Read { rows: 5, bytes: 1 << 20 }, Read { rows: 60, bytes: 1 << 20 });
    let ask = |from| {
        digests_within(
            &store,
            Durability::Sync,
            &Wanted { space: None, tokens: (from, u64::MAX) },
            &|_| (),
            &step,
            &most,
        )
    };
    let (first, second) = (ask(0).unwrap(), ask(Slice(7).tokens().0).unwrap());
    assert_eq!((first.to, first.unknown.len(), first.leaves.len()), (Slice(6).tokens().1, 0, 1));
    assert_eq!((second.to, second.unknown), (Slice(7).tokens().1, vec![Slice(7)]));
    let third = ask(Slice(8).tokens().0).unwrap();
    assert_eq!((third.to, third.unknown.len(), third.leaves.len()), (u64::MAX, 0, 1));
    assert!(first.read_rows > 0 && first.read_bytes > first.read_rows);
    let part = Wanted { space: None, tokens: (Slice(7).tokens().0, Slice(7).tokens().0) };
    assert_eq!(digests_within(&store, Durability::Sync, &part, &|_| (), &step, &most).unwrap().unknown, [Slice(7)]);
}

#[test]
fn an_answer_is_durable() {
    let disk = Disk::new();
    let (store, mut shard) = (open(disk.open()), Shard::new(0, 0));
    apply(&store, &mut shard, vec![(at(0), register(1, true))]);
    let answer = digests(&store, Durability::Sync, &ALL, &|_| ()).unwrap();
    disk.crash();
    assert_level(&answered(&answer.leaves), &scanned(&open(disk.open())));
    let store = open(disk.open());
    disk.set_failing_syncs(true);
    assert!(digests(&store, Durability::Sync, &ALL, &|_| ()).is_err());
}

#[test]
fn a_digest_that_is_not_kept_up_to_date_is_another_one() {
    let (store, mut shard) = (open(Disk::new().open()), Shard::new(0, 0));
    digests(&store, Durability::Sync, &ALL, &|_| ()).unwrap();
    fault::set(Some(Fault::DigestNotUpdated));
    apply(&store, &mut shard, vec![(at(0), register(1, true))]);
    fault::set(None);
    assert!(digests(&store, Durability::Sync, &ALL, &|_| ()).unwrap().leaves.is_empty());
}

#[cfg(feature = "fjall")]
mod fjall {
    use proptest::prelude::ProptestConfig;

    use super::*;
    use crate::engine::fjall::{Fjall, Options};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn on_a_real_disk_too(
            rounds in prop::collection::vec((prop::collection::vec((any::<u8>(), any::<u8>(), any::<bool>()), 1..20), any::<u8>()), 1..12),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let open = || open(Fjall::open(folder.path(), Options::default()).unwrap());
            let (mut store, mut shard) = (open(), Shard::new(0, 4 << 10));
            for (asks, what) in rounds {
                let asks = asks.into_iter().map(|(n, stamp, live)| (at(n), ask(&at(n), stamp, live)));
                apply(&store, &mut shard, asks.collect());
                match what % 8 {
                    0 => {
                        drop(store);
                        (store, shard) = (open(), Shard::new(0, 4 << 10));
                    }
                    1 => drop(drop_tenant(&store, &tenant(what / 8), None).unwrap()),
                    2 | 3 => {
                        let tokens = between(what, what / 2);
                        digests(&store, Durability::Sync, &Wanted { space: None, tokens }, &|_| ()).unwrap();
                    }
                    _ => {}
                }
                check(&store);
            }
        }
    }
}
