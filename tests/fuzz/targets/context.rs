//! Bytes as a context: nothing opens that was not sealed, and what was sealed has one encoding.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use witan_kernel::context::{Claims, ContextKeys, Issue};
use witan_kernel::limit::CONTEXT_BYTES;
use witan_kernel::name::{Era, Key, TenantId};

use crate::Seen;

/// Bytes of the authenticator in a token.
const MAC: usize = 16;
/// Up to this many bytes nothing is cut from a token, whatever is in it: each entry is reckoned at its longest.
const WHOLE: usize = 1000;

/// An input is a token without its authenticator.
pub(super) fn run(input: &[u8]) -> Seen {
    let keys = ContextKeys::new(Era::default(), &[(7, [7; 32]), (300, [6; 32])]).expect("two keys");
    let (tenant, key) = (TenantId::new("t").expect("a tenant"), Key::new("k").expect("a key"));
    assert_eq!(keys.open(&tenant, &key, input).is_ok(), input.is_empty(), "opened without its authenticator");
    let sealed = [input, &authenticator(7, &tenant, &key, input)].concat();
    let older = [input, &authenticator(6, &tenant, &key, input)].concat();
    match keys.open(&tenant, &key, &sealed) {
        Err(why) => Seen::of((
            why.to_string().chars().filter(|c| !c.is_ascii_digit()).collect::<String>(),
            keys.open(&tenant, &key, &older).is_ok(),
        )),
        Ok(claims) => {
            assert!(sealed.len() <= CONTEXT_BYTES);
            assert!(keys.open(&tenant, &Key::new("other").expect("a key"), &sealed).is_err());
            if sealed.len() <= WHOLE {
                // Claims that were cut to the size of a token may have another second form, but only one first.
                let again = keys.seal(&tenant, &key, &claims, Issue::Second);
                assert_eq!(keys.open(&tenant, &key, &again).as_ref(), Ok(&claims));
                let first = keys.seal(&tenant, &key, &claims, Issue::First);
                assert!(sealed[0] != first[0] || first == sealed, "the context has another encoding");
            }
            shape(&claims)
        }
    }
}

fn shape(claims: &Claims) -> Seen {
    match claims {
        Claims::Nothing => Seen(1),
        Claims::Register { stamp } => Seen::of((2, stamp.0 == 0)),
        Claims::Siblings { seen, ids, newest } => {
            Seen::of((3, seen.entries.len().min(5), seen.cloud.len().min(3), ids.len().min(5), *newest == 0))
        }
    }
}

/// As the format's description says, not by the code under test.
fn authenticator(secret: u8, tenant: &TenantId, key: &Key, sealed: &[u8]) -> [u8; MAC] {
    let mut mac = Hmac::<Sha256>::new_from_slice(&[secret; 32]).expect("any length");
    mac.update(b"witan context v1");
    for part in [tenant.bytes(), key.bytes()] {
        mac.update(&(part.len() as u32).to_be_bytes());
        mac.update(part);
    }
    mac.update(sealed);
    let whole = mac.finalize().into_bytes();
    *whole.first_chunk().expect("32 bytes")
}
