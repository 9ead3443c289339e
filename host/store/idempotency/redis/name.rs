//! The names of a record: a long one, which is the only one that the version before knows, and a short one.
//!
//! Both are in one slot of a cluster, so that one call of a script may use both. The slot is that of what is in braces: 64 digits in a
//! long name, and two bytes in a short one that were found to have the same slot.

use std::fmt::Write;
use std::sync::LazyLock;

use crc16::{State, XMODEM};
use witan_kernel::idempotency::Name;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Bytes of a [`Name`], which is a SHA-256, in a short name. With 128 bits, two of 10^12 records have one name with a probability of
/// 10^-15; and with the default prefix a short name has 26 bytes, of which a server keeps up to 30 in an allocation of 32.
const HASH: usize = 16;

/// Of each slot, two bytes that are in it.
static TAGS: LazyLock<Vec<[u8; 2]>> = LazyLock::new(|| {
    let mut tags = vec![[0; 2]; usize::from(SLOTS)];
    // Each slot has four such pairs, so that one without the brace that would end it is among them.
    for tag in (0..=u16::MAX).map(u16::to_be_bytes).filter(|tag| !tag.contains(&b'}')) {
        tags[usize::from(slot(&tag))] = tag;
    }
    tags
});

/// The slot of what is in braces.
fn slot(tag: &[u8]) -> u16 {
    State::<XMODEM>::calculate(tag) % SLOTS
}

/// The short and the long name of a record.
pub(super) fn both(prefix: &str, name: &Name) -> (Vec<u8>, Vec<u8>) {
    let mut digits = String::with_capacity(2 * name.0.len());
    for byte in name.0 {
        _ = write!(digits, "{byte:02x}");
    }
    let tag = TAGS[usize::from(slot(digits.as_bytes()))];
    let short = [prefix.as_bytes(), b":{", &tag, b"}", &name.0[..HASH]].concat();
    (short, format!("{prefix}:idempotency:{{{digits}}}").into_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The slot of a key as the Redis Cluster specification computes it: bit by bit, and from the braces on its own.
    fn slot_of_key(key: &[u8]) -> u16 {
        let open = key.iter().position(|byte| *byte == b'{');
        let tagged = open.and_then(|open| {
            let close = key[open + 1..].iter().position(|byte| *byte == b'}')?;
            (close > 0).then(|| &key[open + 1..open + 1 + close])
        });
        let mut crc = 0_u16;
        for byte in tagged.unwrap_or(key) {
            crc ^= u16::from(*byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            }
        }
        crc & 0x3fff
    }

    /// Names as a hash makes them.
    fn names(many: u32) -> impl Iterator<Item = Name> {
        use witan_kernel::name::{Era, Key, TenantId};
        let (tenant, key) = (TenantId::new("t").expect("valid"), Key::new("k").expect("valid"));
        (0..many).map(move |of| Name::new(Era::default(), &tenant, &key, &of.to_be_bytes()))
    }

    #[test]
    fn the_slot_is_that_of_the_specification() {
        assert_eq!(slot_of_key(b"123456789"), 0x31c3, "its own example");
        assert_eq!((slot_of_key(b"{}x"), slot_of_key(b"a{b}{c}")), (slot_of_key(b"{}x"), slot_of_key(b"b")));
        assert_eq!(slot(b"123456789"), 0x31c3);
    }

    #[test]
    fn both_names_are_in_one_slot() {
        for prefix in ["witan", "x", &"p".repeat(64)] {
            for name in names(60_000) {
                let (short, long) = both(prefix, &name);
                assert_eq!(slot_of_key(&long), slot_of_key(&short), "{name:?}");
                assert_eq!(short.len(), prefix.len() + 21);
            }
        }
    }

    #[test]
    fn every_slot_has_a_tag() {
        let tags: HashSet<[u8; 2]> = TAGS.iter().copied().collect();
        assert_eq!(tags.len(), usize::from(SLOTS), "no two slots share one");
        for (of, tag) in TAGS.iter().enumerate() {
            assert_eq!(usize::from(slot(tag)), of);
            assert!(!tag.contains(&b'}'), "it would end there: {tag:?}");
        }
    }

    #[test]
    fn no_two_records_share_a_short_name() {
        let short: HashSet<Vec<u8>> = names(60_000).map(|name| both("witan", &name).0).collect();
        assert_eq!(short.len(), 60_000);
    }
}
