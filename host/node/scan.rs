//! Scans of stored records outside the shards: pages of records, and the removal of a tenant.
//!
//! Both read the engine directly, in steps that are bounded in the rows and bytes examined, whatever they find. Their answers wait for
//! a sync, as every answer of a node does: a record that was shown and then lost in a power failure could return from another node
//! with a dot that the store has issued a second time meanwhile.

use bytes::Bytes;
use witan_kernel::fault::Fault;
use witan_kernel::name::TenantId;
use witan_kernel::replica::Place;
use witan_kernel::scan::{Dropped, Found, Page, Scan};

use crate::batch::Durability;
use crate::engine::{Change, EngineError};
use crate::row;
use crate::store::Store;

/// Most rows that one step examines: some tens of milliseconds.
const EXAMINED_ROWS: usize = 8192;
/// Bytes of examined rows after which a step ends: as many as a small machine reads in that time.
const EXAMINED_BYTES: usize = 8 << 20;
/// Most rows removed in one batch, which bounds how long a shard's own batch waits for it.
pub(crate) const REMOVED_ROWS: usize = 512;
/// As how many rows it counts to begin a walk: it has to find the place in every table of the engine.
const BEGUN_ROWS: usize = 16;

/// How much one step has examined.
#[derive(Default)]
pub(crate) struct Examined {
    rows: usize,
    bytes: usize,
}

impl Examined {
    /// Counts a row. Returns true if the step should end with it.
    pub(crate) fn add(&mut self, row: &Bytes, value: &Bytes) -> bool {
        self.rows += 1;
        self.bytes += row.len() + value.len();
        self.is_enough()
    }

    /// Counts a walk that has begun. Returns true if the step should end with it.
    pub(crate) fn begin(&mut self) -> bool {
        self.rows += BEGUN_ROWS;
        self.is_enough()
    }

    fn is_enough(&self) -> bool {
        self.rows >= EXAMINED_ROWS || self.bytes >= EXAMINED_BYTES
    }
}

/// The range of rows with tokens `from..=to`, after a place if one is given.
pub(crate) fn rows(from: u64, to: u64, after: Option<&Place>) -> std::ops::Range<Bytes> {
    let start = match after {
        // The next possible key.
        Some(after) => Bytes::from([&row::key(after)[..], &[0]].concat()),
        None => Bytes::copy_from_slice(&from.to_be_bytes()),
    };
    let end = match to.checked_add(1) {
        Some(end) => Bytes::copy_from_slice(&end.to_be_bytes()),
        // Larger than every row's key: no tenant's length starts with this byte.
        None => Bytes::from_static(&[0xff; 9]),
    };
    start.max(Bytes::copy_from_slice(&from.to_be_bytes()))..end
}

/// A page of records. With [`Durability::Sync`] they are durable when this returns.
pub fn page(store: &Store, durability: Durability, scan: &Scan) -> Result<Page, EngineError> {
    let mut found: Vec<Found> = Vec::new();
    let mut next = None;
    let (mut examined, mut bytes) = (Examined::default(), 0);
    let (most, most_bytes) = (scan.records.max(1) as usize, scan.bytes as usize);
    store.walk(rows(scan.from, scan.to, scan.after.as_ref()), &mut |row, value| {
        let step_ends = examined.add(&row, &value);
        // A row without a place cannot be the end of a page, and is nobody's record, whatever wrote it.
        let Some(place) = row::place(&row) else { return true };
        if wanted(scan, &place) {
            let record = record(&row, &value, scan.abridged);
            bytes += row.len() + record.as_ref().map_or(0, |record| record.0.len());
            found.push(Found { place: place.clone(), record });
        }
        let full = step_ends || found.len() >= most || bytes >= most_bytes;
        if full {
            next = Some(place);
        }
        !full
    })?;
    if durability == Durability::Sync && !found.is_empty() {
        store.sync()?;
    }
    Ok(Page { store: store.id(), found, next })
}

/// The same for a page that was asked for under an epoch; `None` when the tenant's fence is above it. Whatever may drop rows of the page
/// raises the fence first, so one that is still low after the page was read shows that nothing was missing from it.
pub fn page_under(store: &Store, durability: Durability, scan: &Scan) -> Result<Option<Page>, EngineError> {
    let is_stale = || {
        let fenced = |space| scan.epoch != 0 && scan.epoch < store.fences().least_of(space);
        scan.space.as_ref().is_some_and(fenced) && !Fault::FenceIgnored.is_on()
    };
    if is_stale() {
        return Ok(None);
    }
    let page = page(store, durability, scan)?;
    Ok(Some(page).filter(|_| !is_stale()))
}

fn wanted(scan: &Scan, place: &Place) -> bool {
    scan.space.as_ref().is_none_or(|space| *space == place.space) && place.key.bytes().starts_with(&scan.prefix)
}

/// The record in a row; `None`, and an error in the log, if the row is damaged.
fn record(row: &Bytes, value: &Bytes, abridged: bool) -> Option<witan_kernel::record::Encoded> {
    let (_, record) = row::open_envelope(row, value).inspect_err(report).ok()?;
    let checked = if abridged {
        record.decode().map(|record| record.abridged().encode())
    } else {
        record.check().map(|()| record)
    };
    checked.inspect_err(|error| report(&row::damaged(row, error.to_string()))).ok()
}

fn report(damaged: &row::DamagedRow) {
    tracing::error!(%damaged, "a stored row cannot be read: restore it from the other replicas");
}

/// Removes a batch of a tenant's records, of all generations, durably. Nobody may write to the tenant any longer: records written meanwhile
/// may survive.
pub fn drop_tenant(store: &Store, tenant: &TenantId, after: Option<&Place>) -> Result<Dropped, EngineError> {
    let mut batch: Vec<Change> = Vec::new();
    let mut next = None;
    let mut examined = Examined::default();
    store.walk(rows(0, u64::MAX, after), &mut |row, value| {
        let step_ends = examined.add(&row, &value);
        let Some(place) = row::place(&row) else { return true };
        if place.space.is_of(tenant) {
            batch.push((row, None));
        }
        let full = step_ends || batch.len() >= REMOVED_ROWS;
        if full {
            next = Some(place);
        }
        !full
    })?;
    let records = batch.len() as u64;
    if records > 0 {
        store.drop_rows(batch)?;
        store.sync()?;
    }
    Ok(Dropped { records, next })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use witan_kernel::name::{Key, NodeId, WriteId};
    use witan_kernel::port::Randomness;
    use witan_kernel::record::{Encoded, Record};
    use witan_kernel::register::{Register, Stamp};

    use super::*;
    use crate::engine::simulated::Disk;

    struct Sevens;

    impl Randomness for Sevens {
        fn sixteen(&self) -> [u8; 16] {
            [7; 16]
        }
    }

    fn open(disk: &Disk) -> Store {
        Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), &Sevens).unwrap()
    }

    fn place(token: u64, tenant: &str, key: &[u8]) -> Place {
        Place {
            token,
            space: TenantId::new(tenant).unwrap().into(),
            key: Key::from_trusted(Bytes::copy_from_slice(key)),
        }
    }

    fn put(store: &Store, place: &Place, value: &[u8]) -> Encoded {
        let register = Register::written(Stamp(1), WriteId([1; 16]), Some(Bytes::copy_from_slice(value)));
        let record = Record::Register(register).encode();
        let row = row::key(place);
        let mut envelope = bytes::BytesMut::new();
        row::put_envelope(&row, 0, &record, &mut envelope);
        store.engine().write(vec![(row, Some(envelope.freeze()))]).unwrap();
        record
    }

    fn all(store: &Store, mut scan: Scan) -> (Vec<Place>, usize) {
        let (mut places, mut pages) = (Vec::new(), 0);
        loop {
            let page = page(store, Durability::Sync, &scan).unwrap();
            assert!(page.found.len() <= scan.records as usize);
            places.extend(page.found.into_iter().map(|found| found.place));
            pages += 1;
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return (places, pages),
            }
        }
    }

    #[test]
    fn a_page_ends_when_it_is_full_and_the_next_continues() {
        let store = open(&Disk::new());
        let places: Vec<Place> = (0..10).map(|n| place(n / 3, "t", &[n as u8])).collect();
        places.iter().for_each(|place| drop(put(&store, place, &[7; 100])));
        let whole = Scan::between(0, u64::MAX);
        assert_eq!(all(&store, whole.clone()), (places.clone(), 1));
        assert_eq!(all(&store, Scan { records: 3, ..whole.clone() }), (places.clone(), 4));
        assert_eq!(all(&store, Scan { bytes: 1, ..whole.clone() }).1, 11, "a page holds one record at least");
        assert_eq!(all(&store, Scan::between(1, 2)).0, places[3..9]);
        let rest = Scan { after: Some(places[4].clone()), ..Scan::between(1, 2) };
        assert_eq!(all(&store, rest).0, places[5..9]);
        let behind = Scan { after: Some(places[0].clone()), ..Scan::between(1, 2) };
        assert_eq!(all(&store, behind).0, places[3..9], "a place before the range is ignored");
        assert_eq!(all(&store, Scan::between(3, 2)).0, []);
    }

    #[test]
    fn both_ends_of_the_ring_belong_to_it() {
        let store = open(&Disk::new());
        let ends = [place(0, "t", b"a"), place(u64::MAX, "t", b"z"), place(u64::MAX, &"t".repeat(256), b"z")];
        ends.iter().for_each(|place| drop(put(&store, place, b"v")));
        assert_eq!(all(&store, Scan::between(0, u64::MAX)).0, ends);
        assert_eq!(all(&store, Scan::between(u64::MAX, u64::MAX)).0, ends[1..]);
    }

    #[test]
    fn tenant_and_prefix_pick_and_long_values_can_stay_behind() {
        let store = open(&Disk::new());
        let (a, b) = (place(1, "a", b"user:1"), place(1, "b", b"user:1"));
        put(&store, &a, &[7; 100]);
        let whole = put(&store, &b, &[7; 100]);
        put(&store, &place(2, "b", b"cart:1"), b"v");
        let scan =
            Scan { space: Some(b.space.clone()), prefix: Bytes::from_static(b"user:"), ..Scan::between(0, u64::MAX) };
        assert_eq!(all(&store, scan.clone()).0, std::slice::from_ref(&b));
        let found = page(&store, Durability::Sync, &scan).unwrap().found;
        assert_eq!(found, [Found { place: b.clone(), record: Some(whole.clone()) }]);
        let found = page(&store, Durability::Sync, &Scan { abridged: true, ..scan }).unwrap().found;
        let expected = whole.decode().unwrap().abridged().encode();
        assert_eq!(found, [Found { place: b, record: Some(expected) }]);
    }

    #[test]
    fn the_records_of_a_page_are_durable() {
        let disk = Disk::new();
        let store = open(&disk);
        let at = place(1, "t", b"k");
        put(&store, &at, b"v");
        assert_eq!(page(&store, Durability::Sync, &Scan::between(0, u64::MAX)).unwrap().found.len(), 1);
        disk.crash();
        assert!(open(&disk).load(&row::key(&at)).unwrap().is_some());
    }

    #[test]
    fn a_damaged_row_is_reported_as_damaged() {
        let store = open(&Disk::new());
        let (good, bad) = (place(1, "t", b"good"), place(2, "t", b"bad"));
        put(&store, &good, b"v");
        store.engine().write(vec![(row::key(&bad), Some(Bytes::from_static(b"junk")))]).unwrap();
        store.engine().write(vec![(Bytes::from_static(b"\0\0\0\0\0\0\0\x02"), Some(Bytes::new()))]).unwrap();
        let found = page(&store, Durability::Sync, &Scan::between(0, u64::MAX)).unwrap().found;
        assert_eq!(found.len(), 2);
        assert_eq!((&found[1].place, &found[1].record), (&bad, &None));
    }

    #[test]
    fn a_tenant_goes_and_others_stay() {
        let disk = Disk::new();
        let store = open(&disk);
        let count = 3 * REMOVED_ROWS as u64 + 5;
        for n in 0..count {
            put(&store, &place(n, "gone", &n.to_be_bytes()), b"v");
            put(&store, &place(n, "kept", &n.to_be_bytes()), b"v");
        }
        store.engine().sync().unwrap();
        let gone = TenantId::new("gone").unwrap();
        let (mut removed, mut after) = (0, None);
        loop {
            let dropped = drop_tenant(&store, &gone, after.as_ref()).unwrap();
            removed += dropped.records;
            after = dropped.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(removed, count);
        disk.crash();
        let store = open(&disk);
        let (left, _) = all(&store, Scan::between(0, u64::MAX));
        assert_eq!(left.len() as u64, count);
        assert!(left.iter().all(|place| place.space.as_str() == "kept"));
        let mut again = drop_tenant(&store, &gone, None).unwrap();
        while let Some(next) = again.next {
            again = drop_tenant(&store, &gone, Some(&next)).unwrap();
            assert_eq!(again.records, 0);
        }
    }

    proptest! {
        #[test]
        fn pages_of_any_size_hold_every_record_once(
            keys in proptest::collection::btree_set((any::<u8>(), 0..3usize, any::<u8>()), 0..60),
            records in 1..20u32,
            bytes in 1..2000u32,
            from in any::<u8>(),
            to in any::<u8>(),
        ) {
            let store = open(&Disk::new());
            let tenants = ["t", "u", "long"];
            let at = |(token, tenant, key): &(u8, usize, u8)| place(u64::from(*token), tenants[*tenant], &[*key]);
            let mut expected: Vec<Place> = keys.iter().map(at).collect();
            expected.iter().for_each(|place| drop(put(&store, place, b"value")));
            expected.retain(|place| (u64::from(from)..=u64::from(to)).contains(&place.token));
            expected.sort_by(witan_kernel::scan::stored_order);
            let scan = Scan { records, bytes, ..Scan::between(u64::from(from), u64::from(to)) };
            prop_assert_eq!(all(&store, scan).0, expected);
        }
    }
}
