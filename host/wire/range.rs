//! Conversions of page scans, of the removal of tenants and of ranges, and of fences: from the kernel's types to protobuf, and back with
//! every field checked.

use bytes::Bytes;
use witan_kernel::limit;
use witan_kernel::name::{Key, NodeId, StoreId, TenantId};
use witan_kernel::placement::Tokens;
use witan_kernel::record::{Encoded, Fingerprint};
use witan_kernel::replica::Place;
use witan_kernel::scan::{
    CLEARED_RANGES, Clear, Cleared, Dropped, Found, PAGE_BYTES, PAGE_RECORDS, Page, Purpose, Scan,
};
use witan_kernel::space::{SPACE_BYTES, Space};

use crate::Malformed;
use crate::v1::{
    ClearPurpose, ClearRangeRequest, ClearRangeResponse, DropTenantRequest, DropTenantResponse, Position,
    RaiseFenceRequest, RaiseFenceResponse, ScanRangeRequest, ScanRangeResponse, StoredRecord,
};

/// Largest message of a page, in bytes: a page holds at least one record, and one that repair has merged may have twice
/// [`limit::RECORD_BYTES`].
pub const PAGE_MESSAGE_BYTES: usize = 2 * limit::RECORD_BYTES + (2 << 20);

/// Most tokens in a request to clear ranges: two of each.
pub const CLEARED_TOKENS: usize = 2 * CLEARED_RANGES;

fn position_to_wire(place: Place) -> Position {
    Position { token: place.token, tenant: place.space.bytes().clone(), key: place.key.bytes().clone() }
}

fn position_from_wire(field: &'static str, wire: Position) -> Result<Place, Malformed> {
    let (tenant, key) = (wire.tenant, wire.key);
    if tenant.len() > SPACE_BYTES || key.len() > limit::KEY_BYTES {
        let problem = format!("has a tenant of {} and a key of {} bytes", tenant.len(), key.len());
        return Err(Malformed::new(field, problem));
    }
    Ok(Place { token: wire.token, space: Space::from_trusted(tenant), key: Key::from_trusted(key) })
}

/// A tenant in one of its generations: the id of the tenant, and behind a colon the number of a later generation.
pub(crate) fn space_from_wire(name: String) -> Result<Space, Malformed> {
    let space = Space::from_trusted(name.into_bytes().into());
    // What is no generation is an id with a colon.
    tenant_from_wire(space.tenant().as_str().to_owned())?;
    Ok(space)
}

fn tenant_from_wire(id: String) -> Result<TenantId, Malformed> {
    TenantId::new(id).map_err(|error| Malformed::new("tenant_id", error.problem))
}

/// Encodes a request for a page of records of `node`.
pub fn scan_to_wire(node: &NodeId, scan: Scan) -> ScanRangeRequest {
    ScanRangeRequest {
        tenant_id: scan.space.map_or_else(String::new, |space| space.as_str().to_owned()),
        prefix: scan.prefix,
        from_token: scan.from,
        to_token: Some(scan.to),
        after: scan.after.map(position_to_wire),
        abridged: scan.abridged,
        page_size: scan.records,
        page_bytes: scan.bytes,
        node_id: node.as_str().to_owned(),
        epoch: scan.epoch,
        fingerprints: false,
    }
}

/// Encodes a request for a page of the fingerprints of such records.
pub fn fingerprints_to_wire(node: &NodeId, scan: Scan) -> ScanRangeRequest {
    ScanRangeRequest { fingerprints: true, ..scan_to_wire(node, scan) }
}

/// Decodes a request for a page. The size that it asks for is reduced to the largest allowed.
pub fn scan_from_wire(wire: ScanRangeRequest) -> Result<Scan, Malformed> {
    let within = |asked: u32, most: u32| if asked == 0 { most } else { asked.min(most) };
    if wire.prefix.len() > limit::KEY_BYTES {
        return Err(Malformed::new("prefix", format!("has {} bytes", wire.prefix.len())));
    }
    if wire.epoch != 0 && wire.tenant_id.is_empty() {
        let problem =
            format!("is {} without a tenant_id: fences are those of a tenant; name it, or send 0", wire.epoch);
        return Err(Malformed::new("epoch", problem));
    }
    Ok(Scan {
        space: (!wire.tenant_id.is_empty()).then(|| space_from_wire(wire.tenant_id)).transpose()?,
        prefix: wire.prefix,
        from: wire.from_token,
        to: wire.to_token.unwrap_or(u64::MAX),
        after: wire.after.map(|after| position_from_wire("after", after)).transpose()?,
        abridged: wire.abridged,
        records: within(wire.page_size, PAGE_RECORDS),
        bytes: within(wire.page_bytes, PAGE_BYTES),
        epoch: wire.epoch,
    })
}

/// Encodes a page.
pub fn page_to_wire(page: Page) -> ScanRangeResponse {
    to_wire(page, |record, stored| stored.record = Some(record.0))
}

/// Encodes a page of fingerprints.
pub fn fingerprint_page_to_wire(page: Page<Fingerprint>) -> ScanRangeResponse {
    to_wire(page, |fingerprint, stored| stored.fingerprint = Some(Bytes::copy_from_slice(&fingerprint.0)))
}

fn to_wire<T>(page: Page<T>, set: impl Fn(T, &mut StoredRecord)) -> ScanRangeResponse {
    let record = |found: Found<T>| {
        let mut stored = StoredRecord { position: Some(position_to_wire(found.place)), ..StoredRecord::default() };
        if let Some(record) = found.record {
            set(record, &mut stored);
        }
        stored
    };
    ScanRangeResponse {
        store_id: Bytes::copy_from_slice(&page.store.0),
        records: page.found.into_iter().map(record).collect(),
        next: page.next.map(position_to_wire),
    }
}

/// Decodes a page. Records are not verified; decoding them does that.
pub fn page_from_wire(wire: ScanRangeResponse) -> Result<Page, Malformed> {
    from_wire(wire, |record, _| Ok(record.map(Encoded)))
}

/// Decodes a page of fingerprints. Of records, which nodes send that do not know fingerprints, they are computed.
pub fn fingerprint_page_from_wire(wire: ScanRangeResponse) -> Result<Page<Fingerprint>, Malformed> {
    from_wire(wire, |record, fingerprint| match fingerprint {
        Some(bytes) => Fingerprint::from_slice(&bytes)
            .map(Some)
            .ok_or_else(|| Malformed::new("records.fingerprint", format!("has {} bytes instead of 16", bytes.len()))),
        None => Ok(record.map(|record| Encoded(record).fingerprint())),
    })
}

fn from_wire<T>(
    wire: ScanRangeResponse,
    get: impl Fn(Option<Bytes>, Option<Bytes>) -> Result<Option<T>, Malformed>,
) -> Result<Page<T>, Malformed> {
    let found = |stored: StoredRecord| {
        let position = stored.position.ok_or_else(|| Malformed::new("records.position", "is missing"))?;
        let place = position_from_wire("records.position", position)?;
        Ok(Found { place, record: get(stored.record, stored.fingerprint)? })
    };
    Ok(Page {
        store: StoreId::from_slice(&wire.store_id)
            .ok_or_else(|| Malformed::new("store_id", "does not have 16 bytes"))?,
        found: wire.records.into_iter().map(found).collect::<Result<_, Malformed>>()?,
        next: wire.next.map(|next| position_from_wire("next", next)).transpose()?,
    })
}

/// Encodes a request to remove a batch of a tenant's records from `node`.
pub fn drop_to_wire(node: &NodeId, tenant: &TenantId, after: Option<Place>) -> DropTenantRequest {
    DropTenantRequest {
        tenant_id: tenant.as_str().to_owned(),
        after: after.map(position_to_wire),
        node_id: node.as_str().to_owned(),
    }
}

/// Decodes a request to remove a batch of a tenant's records: the tenant, and the place after which to continue.
pub fn drop_from_wire(wire: DropTenantRequest) -> Result<(TenantId, Option<Place>), Malformed> {
    let after = wire.after.map(|after| position_from_wire("after", after)).transpose()?;
    Ok((tenant_from_wire(wire.tenant_id)?, after))
}

/// Encodes the result of a removal.
pub fn dropped_to_wire(dropped: Dropped) -> DropTenantResponse {
    DropTenantResponse { records: dropped.records, next: dropped.next.map(position_to_wire) }
}

/// Decodes the result of a removal.
pub fn dropped_from_wire(wire: DropTenantResponse) -> Result<Dropped, Malformed> {
    let next = wire.next.map(|next| position_from_wire("next", next)).transpose()?;
    Ok(Dropped { records: wire.records, next })
}

/// Encodes a request to raise the fence of a tenant, or of all tenants, at `node`.
pub fn fence_to_wire(node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> RaiseFenceRequest {
    RaiseFenceRequest {
        tenant_id: tenant.map_or_else(String::new, |tenant| tenant.as_str().to_owned()),
        epoch,
        node_id: node.as_str().to_owned(),
    }
}

/// Decodes a request to raise a fence: the tenant (`None`: all of them) and the epoch.
pub fn fence_from_wire(wire: RaiseFenceRequest) -> Result<(Option<TenantId>, u64), Malformed> {
    Ok(((!wire.tenant_id.is_empty()).then(|| tenant_from_wire(wire.tenant_id)).transpose()?, wire.epoch))
}

/// Encodes the answer of a node whose store has the fence.
pub fn fenced_to_wire(store: StoreId) -> RaiseFenceResponse {
    RaiseFenceResponse { store_id: Bytes::copy_from_slice(&store.0) }
}

/// Decodes the answer of a node that has raised a fence: the store that has it.
pub fn fenced_from_wire(wire: &RaiseFenceResponse) -> Result<StoreId, Malformed> {
    StoreId::from_slice(&wire.store_id).ok_or_else(|| Malformed::new("store_id", "does not have 16 bytes"))
}

/// Encodes a request to clear ranges of a tenant at `node`.
pub fn clear_to_wire(node: &NodeId, clear: &Clear) -> ClearRangeRequest {
    let purpose = match clear.purpose {
        Purpose::Enter => ClearPurpose::Enter,
        Purpose::Leave => ClearPurpose::Leave,
    };
    ClearRangeRequest {
        node_id: node.as_str().to_owned(),
        tenant_id: clear.space.as_str().to_owned(),
        epoch: clear.epoch,
        purpose: purpose.into(),
        ranges: clear.ranges.iter().flat_map(|(from, to)| [*from, *to]).collect(),
    }
}

/// Decodes a request to clear ranges.
pub fn clear_from_wire(wire: ClearRangeRequest) -> Result<Clear, Malformed> {
    let purpose = match wire.purpose() {
        ClearPurpose::Enter => Purpose::Enter,
        ClearPurpose::Leave => Purpose::Leave,
        ClearPurpose::Unspecified => {
            let problem = format!("is {}; send 1 to get the records anew, or 2 to lose them", wire.purpose);
            return Err(Malformed::new("purpose", problem));
        }
    };
    if wire.epoch == 0 {
        return Err(Malformed::new("epoch", "is 0; send the revision that has published the step"));
    }
    Ok(Clear {
        space: space_from_wire(wire.tenant_id)?,
        ranges: ranges_from_wire(&wire.ranges)?,
        epoch: wire.epoch,
        purpose,
    })
}

fn ranges_from_wire(tokens: &[u64]) -> Result<Vec<Tokens>, Malformed> {
    let (ranges, rest) = tokens.as_chunks::<2>();
    if ranges.len() > CLEARED_RANGES {
        let problem = format!("has {} ranges; send at most {CLEARED_RANGES}", ranges.len());
        return Err(Malformed::new("ranges", problem));
    }
    if !rest.is_empty() {
        let problem = format!("has {} tokens; send two of each range, the first and the last one", tokens.len());
        return Err(Malformed::new("ranges", problem));
    }
    let range = |[from, to]: &[u64; 2]| format!("{from:016x}..={to:016x}");
    for (at, [from, to]) in ranges.iter().enumerate() {
        if from > to {
            let problem = format!("has {} at {at}; send the lower token of a range first", range(&[*from, *to]));
            return Err(Malformed::new("ranges", problem));
        }
        if let Some(before) = at.checked_sub(1).map(|before| &ranges[before]).filter(|[_, end]| end >= from) {
            let (before, this) = (range(before), range(&[*from, *to]));
            let problem = format!("has {this} at {at}, after {before}; send them in order and without overlaps");
            return Err(Malformed::new("ranges", problem));
        }
    }
    Ok(ranges.iter().map(|[from, to]| (*from, *to)).collect())
}

/// Encodes the answer of a node that has cleared ranges, or is about to: `done` is false when the call has to be repeated.
pub fn cleared_to_wire(cleared: Cleared, done: bool) -> ClearRangeResponse {
    ClearRangeResponse {
        store_id: Bytes::copy_from_slice(&cleared.store.0),
        already: cleared.already,
        records: cleared.records,
        done,
    }
}

/// Decodes the answer of a node that was to clear ranges; `None`: the call has to be repeated.
pub fn cleared_from_wire(wire: &ClearRangeResponse) -> Result<Option<Cleared>, Malformed> {
    let store = StoreId::from_slice(&wire.store_id);
    let store = store.ok_or_else(|| Malformed::new("store_id", "does not have 16 bytes"))?;
    Ok(wire.done.then_some(Cleared { store, already: wire.already, records: wire.records }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use prost::Message;

    use super::*;

    fn place(token: u64, tenant: &'static str, key: &'static str) -> Place {
        let space = Space::from_trusted(Bytes::from_static(tenant.as_bytes()));
        Place { token, space, key: Key::from_trusted(Bytes::from_static(key.as_bytes())) }
    }

    #[test]
    fn requests_and_pages_survive_the_wire() {
        let node = NodeId::new("n1").unwrap();
        let asked = Scan {
            space: Some(Space::new(&TenantId::new("t").unwrap(), 7)),
            prefix: Bytes::from_static(b"user:"),
            from: 7,
            to: u64::MAX - 1,
            after: Some(place(9, "t", "k")),
            abridged: true,
            records: 10,
            bytes: 1000,
            epoch: 77,
        };
        for scan in [asked, Scan::between(0, u64::MAX)] {
            let bytes = scan_to_wire(&node, scan.clone()).encode_to_vec();
            assert_eq!(scan_from_wire(ScanRangeRequest::decode(Bytes::from(bytes)).unwrap()), Ok(scan));
        }
        let page = Page {
            store: StoreId([7; 16]),
            found: vec![
                Found { place: place(1, "t", "k"), record: Some(Encoded(Bytes::from_static(b"record"))) },
                Found { place: place(2, "t", "k"), record: None },
            ],
            next: Some(place(u64::MAX, "t", "")),
        };
        let bytes = page_to_wire(page.clone()).encode_to_vec();
        assert_eq!(page_from_wire(ScanRangeResponse::decode(Bytes::from(bytes)).unwrap()), Ok(page.clone()));
        let scan = Scan::between(0, 9);
        assert_eq!(
            fingerprints_to_wire(&node, scan.clone()),
            ScanRangeRequest { fingerprints: true, ..scan_to_wire(&node, scan) }
        );
        let fingerprints = page.clone().fingerprints();
        let bytes = fingerprint_page_to_wire(fingerprints.clone()).encode_to_vec();
        let decoded = ScanRangeResponse::decode(Bytes::from(bytes)).unwrap();
        assert!(decoded.records.iter().all(|stored| stored.record.is_none()));
        assert_eq!(fingerprint_page_from_wire(decoded.clone()), Ok(fingerprints.clone()));
        assert_eq!(fingerprint_page_from_wire(page_to_wire(page)), Ok(fingerprints), "of a node of before");
        let mut short = decoded;
        short.records[0].fingerprint = Some(Bytes::from_static(b"short"));
        assert_eq!(fingerprint_page_from_wire(short).unwrap_err().field, "records.fingerprint");
        let dropped = Dropped { records: 7, next: Some(place(3, "t", "k")) };
        assert_eq!(dropped_from_wire(dropped_to_wire(dropped.clone())), Ok(dropped));
    }

    #[test]
    fn invalid_fields_are_named_and_sizes_are_bounded() {
        let request = ScanRangeRequest { page_size: u32::MAX, page_bytes: u32::MAX, ..ScanRangeRequest::default() };
        let scan = scan_from_wire(request.clone()).unwrap();
        assert_eq!((scan.records, scan.bytes, scan.to), (PAGE_RECORDS, PAGE_BYTES, u64::MAX));
        let bad = ScanRangeRequest { tenant_id: "a:b".to_owned(), ..request.clone() };
        assert_eq!(scan_from_wire(bad).unwrap_err().field, "tenant_id");
        let bad = ScanRangeRequest { prefix: vec![0; 1025].into(), ..request.clone() };
        assert_eq!(scan_from_wire(bad).unwrap_err().field, "prefix");
        let bad = ScanRangeRequest { epoch: 7, ..request.clone() };
        assert_eq!(scan_from_wire(bad).unwrap_err().field, "epoch");
        let far = Position { key: vec![0; 1025].into(), ..Position::default() };
        let bad = ScanRangeRequest { after: Some(far), ..request };
        assert_eq!(scan_from_wire(bad).unwrap_err().field, "after");
        let store_id = Bytes::from_static(&[7; 16]);
        let page = ScanRangeResponse { store_id, records: vec![StoredRecord::default()], next: None };
        assert_eq!(page_from_wire(page).unwrap_err().field, "records.position");
        assert_eq!(page_from_wire(ScanRangeResponse::default()).unwrap_err().field, "store_id");
        assert_eq!(drop_from_wire(DropTenantRequest::default()).unwrap_err().field, "tenant_id");
    }

    fn wanted() -> ClearRangeRequest {
        let ranges = vec![(3, 7), (8, 8), (10, u64::MAX)];
        let clear =
            Clear { space: Space::new(&TenantId::new("t").unwrap(), 7), ranges, epoch: 7, purpose: Purpose::Enter };
        clear_to_wire(&NodeId::new("n1").unwrap(), &clear)
    }

    #[test]
    fn what_cannot_be_cleared_is_refused_and_says_why() {
        let refused = |wire: ClearRangeRequest| clear_from_wire(wire).unwrap_err();
        for (ranges, says) in [
            (vec![1, 2, 3], "has 3 tokens"),
            (vec![2, 1], "has 0000000000000002..=0000000000000001 at 0"),
            (vec![1, 5, 5, 6], "at 1, after 0000000000000001..=0000000000000005"),
            (vec![5, 6, 1, 2], "in order"),
            (vec![1, 1, 1, 1], "overlaps"),
            ((0..=CLEARED_TOKENS as u64 + 1).collect(), "send at most 65536"),
        ] {
            let error = refused(ClearRangeRequest { ranges, ..wanted() });
            assert!(error.field == "ranges" && error.problem.contains(says), "{error} does not say {says:?}");
        }
        for purpose in [0, 3, -1] {
            assert_eq!(refused(ClearRangeRequest { purpose, ..wanted() }).field, "purpose");
        }
        assert_eq!(refused(ClearRangeRequest { epoch: 0, ..wanted() }).field, "epoch");
        assert_eq!(refused(ClearRangeRequest { tenant_id: String::new(), ..wanted() }).field, "tenant_id");
        assert_eq!(cleared_from_wire(&ClearRangeResponse::default()).unwrap_err().field, "store_id");
    }

    #[test]
    fn as_many_ranges_as_may_be_cleared_are_decoded_and_more_are_not() {
        let ranges = |count: usize| ClearRangeRequest { ranges: (0..2 * count as u64).collect(), ..wanted() };
        let decode = |wire: ClearRangeRequest| crate::weigh::decode::<ClearRangeRequest>(wire.encode_to_vec().into());
        let most = clear_from_wire(decode(ranges(CLEARED_RANGES)).unwrap()).unwrap();
        assert_eq!(most.ranges.len(), CLEARED_RANGES);
        let error = decode(ranges(CLEARED_RANGES + 1)).unwrap_err().to_string();
        assert!(error.contains("ranges in one ClearRangeRequest"), "{error}");
    }

    proptest! {
        #[test]
        fn clears_survive_the_wire(
            tokens in proptest::collection::btree_set(any::<u64>(), 0..40),
            epoch in 1..=u64::MAX,
            enters: bool,
            records: u64,
            already: bool,
        ) {
            let tokens: Vec<u64> = tokens.into_iter().collect();
            let ranges = tokens.as_chunks::<2>().0.iter().map(|[from, to]| (*from, *to)).collect();
            let purpose = if enters { Purpose::Enter } else { Purpose::Leave };
            let clear = Clear { space: Space::new(&TenantId::new("t").unwrap(), 7), ranges, epoch, purpose };
            let wire = clear_to_wire(&NodeId::new("n1").unwrap(), &clear).encode_to_vec();
            prop_assert_eq!(clear_from_wire(ClearRangeRequest::decode(Bytes::from(wire)).unwrap()), Ok(clear));
            let cleared = Cleared { store: StoreId([7; 16]), already, records };
            for (done, expected) in [(true, Some(cleared)), (false, None)] {
                let wire = cleared_to_wire(cleared, done).encode_to_vec();
                prop_assert_eq!(cleared_from_wire(&ClearRangeResponse::decode(&wire[..]).unwrap()), Ok(expected));
            }
        }

        #[test]
        fn hostile_requests_to_clear_are_errors_not_panics(tokens: Vec<u64>, purpose: i32, epoch: u64, tenant_id: String) {
            let wire = ClearRangeRequest { node_id: String::new(), tenant_id, epoch, purpose, ranges: tokens };
            if let Ok(clear) = clear_from_wire(wire) {
                let sorted = clear.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
                prop_assert_eq!((sorted, clear.ranges.iter().all(|(from, to)| from <= to)), (true, true));
            }
        }
    }
}
