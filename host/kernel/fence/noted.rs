//! How a node keeps what it remembers by tenant: a number for all, and one for each of up to [`FENCES`] tenants.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::FENCES;
use crate::limit::TENANT_BYTES;
use crate::name::TenantId;

/// The version of the encoding.
const CODEC: u8 = 1;

/// The numbers as bytes, with a checksum.
pub(super) fn encode(of_all: u64, tenants: &BTreeMap<TenantId, u64>) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + tenants.len() * 40);
    out.put_u8(CODEC);
    out.put_u64_le(of_all);
    for (tenant, number) in tenants {
        let name = tenant.bytes();
        out.put_u64_le(*number);
        // Names have 256 bytes at most.
        out.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
        out.put_slice(name);
    }
    let checksum = crc32fast::hash(&out);
    out.put_u32_le(checksum);
    out.freeze()
}

/// Reads what [`encode`] has written; `None` when it is anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<(u64, BTreeMap<TenantId, u64>)> {
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content).to_le_bytes() != *checksum || content.len() < 9 || content[0] != CODEC {
        return None;
    }
    let mut rest = &content[1..];
    let of_all = rest.get_u64_le();
    let mut tenants = BTreeMap::new();
    while rest.has_remaining() {
        let number = rest.try_get_u64_le().ok()?;
        let length = usize::from(rest.try_get_u16_le().ok()?);
        if length > TENANT_BYTES || length > rest.len() || tenants.len() >= FENCES {
            return None;
        }
        let (name, others) = rest.split_at(length);
        tenants.insert(TenantId::new(std::str::from_utf8(name).ok()?).ok()?, number);
        rest = others;
    }
    Some((of_all, tenants))
}
