//! Conversions of digests: from the kernel's types to protobuf, and back with every field checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use witan_kernel::digest::{Digests, Leaf, TenantLeaf, Wanted};
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::slice::Slice;
use witan_kernel::space::Space;

use crate::Malformed;
use crate::range::space_from_wire;
use crate::v1::{DigestLeaf, DigestsRequest, DigestsResponse};

/// Encodes a request for digests of `node`.
pub fn digests_to_wire(node: &NodeId, wanted: &Wanted) -> DigestsRequest {
    DigestsRequest {
        node_id: node.as_str().to_owned(),
        from_token: wanted.tokens.0,
        to_token: Some(wanted.tokens.1),
        tenant_id: wanted.space.as_ref().map_or_else(String::new, |space| space.as_str().to_owned()),
    }
}

/// Decodes a request for digests.
pub fn digests_from_wire(wire: DigestsRequest) -> Result<Wanted, Malformed> {
    let to = wire.to_token.unwrap_or(u64::MAX);
    if to < wire.from_token {
        return Err(Malformed::new("to_token", format!("is {to}, below from_token, which is {}", wire.from_token)));
    }
    let space = (!wire.tenant_id.is_empty()).then(|| space_from_wire(wire.tenant_id)).transpose()?;
    Ok(Wanted { space, tokens: (wire.from_token, to) })
}

/// Encodes digests.
pub fn digested_to_wire(digests: &Digests) -> DigestsResponse {
    let mut tenants: Vec<Bytes> = Vec::new();
    let mut numbers: BTreeMap<&Space, u32> = BTreeMap::new();
    let mut leaves = Vec::with_capacity(digests.leaves.len());
    for TenantLeaf { slice, space, leaf } in &digests.leaves {
        let number = *numbers.entry(space).or_insert_with(|| {
            tenants.push(space.bytes().clone());
            tenants.len() as u32 - 1
        });
        leaves.push(DigestLeaf {
            slice: u32::from(slice.0),
            tenant: number,
            count: leaf.count,
            sum: Bytes::copy_from_slice(&leaf.sum.to_le_bytes()),
            buried: leaf.buried,
            oldest_buried_micros: leaf.oldest_buried,
        });
    }
    DigestsResponse {
        store_id: Bytes::copy_from_slice(&digests.store.0),
        to_token: digests.to,
        tenants,
        leaves,
        unknown_slices: digests.unknown.iter().map(|slice| u32::from(slice.0)).collect(),
        read_records: digests.read_rows,
        read_bytes: digests.read_bytes,
    }
}

/// Decodes the digests that were asked for with `wanted`.
pub fn digested_from_wire(wire: DigestsResponse, wanted: &Wanted) -> Result<Digests, Malformed> {
    let tenants = wire.tenants.into_iter().map(|tenant| {
        let bytes = tenant.len();
        Space::parse(tenant).ok_or_else(|| Malformed::new("tenants", format!("one has {bytes} bytes")))
    });
    let tenants: Vec<Space> = tenants.collect::<Result<_, Malformed>>()?;
    let (from, to) = wanted.tokens;
    if !(from..=to).contains(&wire.to_token) {
        return Err(Malformed::new("to_token", format!("is {}, which was not asked about", wire.to_token)));
    }
    let (first, last) = (Slice::of(from), Slice::of(wire.to_token));
    let slice = |field: &'static str, number: u32| {
        let slice = u16::try_from(number).ok().map(Slice).filter(|slice| (first..=last).contains(slice));
        slice.ok_or_else(|| Malformed::new(field, format!("is {number}, which is not among those answered for")))
    };
    let leaf = |wire: DigestLeaf| {
        let space = tenants.get(wire.tenant as usize).cloned();
        let space = space.ok_or_else(|| Malformed::new("leaves.tenant", format!("is {}", wire.tenant)))?;
        let sum: [u8; 16] =
            wire.sum[..].try_into().map_err(|_| Malformed::new("leaves.sum", "does not have 16 bytes"))?;
        let leaf = Leaf {
            sum: u128::from_le_bytes(sum),
            oldest_buried: wire.oldest_buried_micros,
            count: wire.count,
            buried: wire.buried,
        };
        Ok(TenantLeaf { slice: slice("leaves.slice", wire.slice)?, space, leaf })
    };
    Ok(Digests {
        store: StoreId::from_slice(&wire.store_id)
            .ok_or_else(|| Malformed::new("store_id", "does not have 16 bytes"))?,
        to: wire.to_token,
        leaves: wire.leaves.into_iter().map(leaf).collect::<Result<_, Malformed>>()?,
        unknown: wire
            .unknown_slices
            .into_iter()
            .map(|number| slice("unknown_slices", number))
            .collect::<Result<_, Malformed>>()?,
        read_rows: wire.read_records,
        read_bytes: wire.read_bytes,
    })
}

#[cfg(test)]
mod tests {
    use witan_kernel::name::TenantId;

    use super::*;

    fn wanted() -> Wanted {
        Wanted { space: Some(TenantId::new("t").unwrap().into()), tokens: (5, u64::MAX / 2) }
    }

    fn digests() -> Digests {
        let leaf = |slice, tenant: &'static str, count| TenantLeaf {
            slice: Slice(slice),
            space: Space::from_trusted(Bytes::from_static(tenant.as_bytes())),
            leaf: Leaf { sum: u128::MAX - u128::from(count), oldest_buried: 7, count, buried: 1 },
        };
        Digests {
            store: StoreId([7; 16]),
            to: Slice(9).tokens().1,
            leaves: vec![leaf(0, "t", 1), leaf(0, "u", 2), leaf(8, "t", 3)],
            unknown: vec![Slice(1), Slice(9)],
            read_rows: 8,
            read_bytes: 9,
        }
    }

    #[test]
    fn requests_and_answers_come_back() {
        let node = NodeId::new("n1").unwrap();
        for wanted in [wanted(), Wanted { space: None, tokens: (0, u64::MAX) }] {
            assert_eq!(digests_from_wire(digests_to_wire(&node, &wanted)), Ok(wanted));
        }
        let wire = digested_to_wire(&digests());
        assert_eq!(wire.tenants, ["t", "u"]);
        assert_eq!(digested_from_wire(wire, &wanted()), Ok(digests()));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_named() {
        let refused = |change: fn(&mut DigestsResponse)| {
            let mut wire = digested_to_wire(&digests());
            change(&mut wire);
            digested_from_wire(wire, &wanted()).unwrap_err().field
        };
        assert_eq!(refused(|wire| wire.store_id = Bytes::from_static(b"short")), "store_id");
        assert_eq!(refused(|wire| wire.to_token = 4), "to_token");
        assert_eq!(refused(|wire| wire.to_token = u64::MAX), "to_token");
        assert_eq!(refused(|wire| wire.tenants[0] = Bytes::new()), "tenants");
        assert_eq!(refused(|wire| wire.leaves[0].tenant = 2), "leaves.tenant");
        assert_eq!(refused(|wire| wire.leaves[0].slice = 10), "leaves.slice");
        assert_eq!(refused(|wire| wire.leaves[0].sum = Bytes::new()), "leaves.sum");
        assert_eq!(refused(|wire| wire.unknown_slices[0] = 1 << 16), "unknown_slices");
        let backwards = DigestsRequest { from_token: 9, to_token: Some(8), ..DigestsRequest::default() };
        assert_eq!(digests_from_wire(backwards).unwrap_err().field, "to_token");
    }
}
