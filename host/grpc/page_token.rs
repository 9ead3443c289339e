//! Page tokens of key listings: where the next page starts, bound to tenant and prefix, opaque to clients.
//!
//! A token is unpadded base64url of a version (1 byte), a digest of tenant, prefix and all that follows (8 bytes), the generation of
//! the rows (4 bytes; version 2 only), a position on the ring (8 bytes, big endian), and the key after which to continue (absent:
//! start with the first key at that position). The digest detects a token that is used with another listing; it is not a secret,
//! since a token grants no access. It covers the version as well: what follows means another position in the other version.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use witan_kernel::limit;
use witan_kernel::name::{Invalid, Key, TenantId};

use witan_coordinate::Resume;

/// Of a position in rows of generation 0.
const VERSION: u8 = 1;
/// Of a position in rows of a later generation, whose number comes first.
const LATER: u8 = 2;

/// Encodes a token.
pub fn write(tenant: &TenantId, prefix: &Bytes, at: &Resume) -> String {
    let generation = at.generation.to_be_bytes();
    let (version, generation) = if at.generation == 0 { (VERSION, &[][..]) } else { (LATER, &generation[..]) };
    let body = [generation, &at.token.to_be_bytes()[..], at.after.as_ref().map_or(&[][..], |key| key.bytes())].concat();
    URL_SAFE_NO_PAD.encode([&[version][..], &digest(tenant, prefix, version, &body), &body].concat())
}

/// Decodes a token that was issued for this tenant and prefix.
///
/// # Errors
/// When it is not the text of such a token.
pub fn read(tenant: &TenantId, prefix: &Bytes, token: &str) -> Result<Resume, Invalid> {
    let remedy = "send the next_page_token of the previous page, with the same tenant_id and prefix";
    let wrong = || Invalid::new("page_token", "does not belong to this listing", remedy);
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let [version @ (VERSION | LATER), rest @ ..] = &bytes[..] else { return Err(wrong()) };
    let (expected, body) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
    let (generation, position) = match *version {
        LATER => {
            body.split_first_chunk::<4>().map(|(number, rest)| (u32::from_be_bytes(*number), rest)).ok_or_else(wrong)?
        }
        _ => (0, body),
    };
    let (token, key) = position.split_first_chunk::<8>().ok_or_else(wrong)?;
    if (*version == LATER) != (generation > 0)
        || *expected != digest(tenant, prefix, *version, body)
        || key.len() > limit::KEY_BYTES
    {
        return Err(wrong());
    }
    let after = (!key.is_empty()).then(|| Key::from_trusted(Bytes::copy_from_slice(key)));
    Ok(Resume { generation, token: u64::from_be_bytes(*token), after })
}

/// Tokens of the first version are digested as they were before there was another one.
fn digest(tenant: &TenantId, prefix: &Bytes, version: u8, body: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    let later = [version];
    let parts = [&tenant.bytes()[..], prefix, body, &later];
    for part in &parts[..if version == VERSION { 3 } else { 4 }] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = hash.finalize().0;
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_accepted_for_their_own_listing_only() {
        let (tenant, prefix) = (TenantId::new("t").unwrap(), Bytes::from_static(b"user:"));
        let key = Key::new("user:7").unwrap();
        for at in [
            Resume { token: 7, after: Some(key.clone()), ..Resume::default() },
            Resume { token: u64::MAX, ..Resume::default() },
            Resume { generation: 7, token: 7, after: Some(key) },
            Resume::default(),
        ] {
            let token = write(&tenant, &prefix, &at);
            assert_eq!(read(&tenant, &prefix, &token), Ok(at));
            assert_eq!(read(&TenantId::new("u").unwrap(), &prefix, &token).unwrap_err().field, "page_token");
            assert!(read(&tenant, &Bytes::new(), &token).is_err());
            assert!(read(&tenant, &prefix, &token[1..]).is_err());
        }
        let later =
            write(&tenant, &prefix, &Resume { generation: 7, token: 7, after: Some(Key::new("user:7").unwrap()) });
        let mut bytes = URL_SAFE_NO_PAD.decode(&later).unwrap();
        for version in (0..=u8::MAX).filter(|version| *version != LATER) {
            bytes[0] = version;
            assert!(read(&tenant, &prefix, &URL_SAFE_NO_PAD.encode(&bytes)).is_err(), "of version {version}");
        }
        assert!(read(&tenant, &prefix, "no token").is_err());
        assert!(read(&tenant, &prefix, "").is_err());
    }
}
