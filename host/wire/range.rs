//! Conversions of page scans, of the removal of tenants and of fences: from the kernel's types to protobuf, and back with every field
//! checked.

use bytes::Bytes;
use witan_kernel::limit;
use witan_kernel::name::{Key, NodeId, StoreId, TenantId};
use witan_kernel::record::Encoded;
use witan_kernel::replica::Place;
use witan_kernel::scan::{Dropped, Found, PAGE_BYTES, PAGE_RECORDS, Page, Scan};

use crate::Malformed;
use crate::v1::{
    DropTenantRequest, DropTenantResponse, Position, RaiseFenceRequest, RaiseFenceResponse, ScanRangeRequest,
    ScanRangeResponse, StoredRecord,
};

/// Largest message of a page, in bytes: a page holds at least one record, and one that repair has merged may have twice
/// [`limit::RECORD_BYTES`].
pub const PAGE_MESSAGE_BYTES: usize = 2 * limit::RECORD_BYTES + (2 << 20);

fn position_to_wire(place: Place) -> Position {
    Position { token: place.token, tenant: place.tenant.bytes().clone(), key: place.key.bytes().clone() }
}

fn position_from_wire(field: &'static str, wire: Position) -> Result<Place, Malformed> {
    let (tenant, key) = (wire.tenant, wire.key);
    if tenant.len() > limit::TENANT_BYTES || key.len() > limit::KEY_BYTES {
        let problem = format!("has a tenant of {} and a key of {} bytes", tenant.len(), key.len());
        return Err(Malformed::new(field, problem));
    }
    Ok(Place { token: wire.token, tenant: TenantId::from_trusted(tenant), key: Key::from_trusted(key) })
}

fn tenant_from_wire(id: String) -> Result<TenantId, Malformed> {
    TenantId::new(id).map_err(|error| Malformed::new("tenant_id", error.problem))
}

/// Encodes a request for a page of records of `node`.
pub fn scan_to_wire(node: &NodeId, scan: Scan) -> ScanRangeRequest {
    ScanRangeRequest {
        tenant_id: scan.tenant.map_or_else(String::new, |tenant| tenant.as_str().to_owned()),
        prefix: scan.prefix,
        from_token: scan.from,
        to_token: Some(scan.to),
        after: scan.after.map(position_to_wire),
        abridged: scan.abridged,
        page_size: scan.records,
        page_bytes: scan.bytes,
        node_id: node.as_str().to_owned(),
    }
}

/// Decodes a request for a page. The size that it asks for is reduced to the largest allowed.
pub fn scan_from_wire(wire: ScanRangeRequest) -> Result<Scan, Malformed> {
    let within = |asked: u32, most: u32| if asked == 0 { most } else { asked.min(most) };
    if wire.prefix.len() > limit::KEY_BYTES {
        return Err(Malformed::new("prefix", format!("has {} bytes", wire.prefix.len())));
    }
    Ok(Scan {
        tenant: (!wire.tenant_id.is_empty()).then(|| tenant_from_wire(wire.tenant_id)).transpose()?,
        prefix: wire.prefix,
        from: wire.from_token,
        to: wire.to_token.unwrap_or(u64::MAX),
        after: wire.after.map(|after| position_from_wire("after", after)).transpose()?,
        abridged: wire.abridged,
        records: within(wire.page_size, PAGE_RECORDS),
        bytes: within(wire.page_bytes, PAGE_BYTES),
        epoch: 0,
    })
}

/// Encodes a page.
pub fn page_to_wire(page: Page) -> ScanRangeResponse {
    let record = |found: Found| StoredRecord {
        position: Some(position_to_wire(found.place)),
        record: found.record.map(|record| record.0),
    };
    ScanRangeResponse {
        store_id: Bytes::copy_from_slice(&page.store.0),
        records: page.found.into_iter().map(record).collect(),
        next: page.next.map(position_to_wire),
    }
}

/// Decodes a page. Records are not verified; decoding them does that.
pub fn page_from_wire(wire: ScanRangeResponse) -> Result<Page, Malformed> {
    let found = |stored: StoredRecord| {
        let position = stored.position.ok_or_else(|| Malformed::new("records.position", "is missing"))?;
        Ok(Found { place: position_from_wire("records.position", position)?, record: stored.record.map(Encoded) })
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn place(token: u64, tenant: &'static str, key: &'static str) -> Place {
        let tenant = TenantId::from_trusted(Bytes::from_static(tenant.as_bytes()));
        Place { token, tenant, key: Key::from_trusted(Bytes::from_static(key.as_bytes())) }
    }

    #[test]
    fn requests_and_pages_survive_the_wire() {
        let node = NodeId::new("n1").unwrap();
        let asked = Scan {
            tenant: Some(TenantId::new("t").unwrap()),
            prefix: Bytes::from_static(b"user:"),
            from: 7,
            to: u64::MAX - 1,
            after: Some(place(9, "t", "k")),
            abridged: true,
            records: 10,
            bytes: 1000,
            epoch: 0,
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
        assert_eq!(page_from_wire(ScanRangeResponse::decode(Bytes::from(bytes)).unwrap()), Ok(page));
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
        let far = Position { key: vec![0; 1025].into(), ..Position::default() };
        let bad = ScanRangeRequest { after: Some(far), ..request };
        assert_eq!(scan_from_wire(bad).unwrap_err().field, "after");
        let store_id = Bytes::from_static(&[7; 16]);
        let page = ScanRangeResponse { store_id, records: vec![StoredRecord::default()], next: None };
        assert_eq!(page_from_wire(page).unwrap_err().field, "records.position");
        assert_eq!(page_from_wire(ScanRangeResponse::default()).unwrap_err().field, "store_id");
        assert_eq!(drop_from_wire(DropTenantRequest::default()).unwrap_err().field, "tenant_id");
    }
}
