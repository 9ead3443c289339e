//! How a node keeps what it remembers by tenant: a number for all, and one for each of up to [`FENCES`] tenants.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::FENCES;
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
        if tenants.len() >= FENCES {
            return None;
        }
        // Whether the name has a length that is allowed, its own rule says.
        let (name, others) = rest.split_at_checked(length)?;
        tenants.insert(TenantId::new(std::str::from_utf8(name).ok()?).ok()?, number);
        rest = others;
    }
    Some((of_all, tenants))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::TENANT_BYTES;

    /// What somebody else has written, with a checksum that is right.
    fn sealed(content: &[u8]) -> Vec<u8> {
        [content, &crc32fast::hash(content).to_le_bytes()].concat()
    }

    /// Another encoding, and none that was cut off before it was sealed: each is refused, and none of them panics.
    #[test]
    fn a_right_checksum_does_not_make_it_ours() {
        let good = |codec: u8| [&[codec][..], &7u64.to_le_bytes()].concat();
        assert_eq!(decode(&sealed(&good(CODEC))), Some((7, BTreeMap::new())));
        assert_eq!(decode(&sealed(&good(CODEC + 1))), None);
        for bytes in 0..9 {
            assert_eq!(decode(&sealed(&good(CODEC)[..bytes])), None, "{bytes} bytes");
        }
        let tenants = BTreeMap::from([(TenantId::new("t").unwrap(), 9)]);
        let one = encode(7, &tenants);
        let content = &one[..one.len() - 4];
        assert_eq!(decode(&sealed(content)), Some((7, tenants)));
        for bytes in 10..content.len() {
            assert_eq!(decode(&sealed(&content[..bytes])), None, "{bytes} bytes");
        }
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let named = |bytes: usize| {
            let name = vec![b't'; bytes];
            let length = u16::try_from(bytes).unwrap().to_le_bytes();
            decode(&sealed(&[&[CODEC][..], &[0; 8], &[1; 8], &length, &name].concat()))
        };
        assert!(named(1).is_some() && named(TENANT_BYTES).is_some());
        assert_eq!((named(0), named(TENANT_BYTES + 1)), (None, None));
        let many = |count: usize| (0..count).map(|n| (TenantId::new(format!("t{n}")).unwrap(), 1)).collect();
        let most = many(FENCES);
        assert_eq!(decode(&encode(0, &most)), Some((0, most)));
        assert_eq!(decode(&encode(0, &many(FENCES + 1))), None);
    }
}
