//! The stored format of a record: the key of its row, which orders rows by token, and the envelope around the record.
//!
//! A row's key is token (8 bytes, big endian), length of the space's name (2 bytes, big endian), the name, key. The envelope is
//! codec version (1 byte), CRC-32 (4 bytes, little endian) of the row's key, the codec version and the birth, then the birth
//! (8 bytes, little endian), then the record, which contains its own checksum. The envelope's checksum covers the row's key, so
//! that a value which appears under another key is detected.

use bytes::{BufMut, Bytes, BytesMut};
use witan_kernel::name::Key;
use witan_kernel::record::Encoded;
use witan_kernel::replica::Place;
use witan_kernel::space::Space;

/// Version of the envelope's encoding.
const CODEC: u8 = 1;
/// Bytes of codec version, checksum and birth.
const HEADER: usize = 13;
/// Bytes of the token and the length of the space's name.
const PREFIX: usize = 10;

/// A row that cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row} is damaged: {problem}")]
pub struct DamagedRow {
    /// The row: token, tenant and key, as far as they can be decoded.
    pub row: String,
    /// The kind of damage.
    pub problem: String,
}

/// Length of a place's row key.
pub fn key_len(place: &Place) -> usize {
    PREFIX + place.space.bytes().len() + place.key.bytes().len()
}

/// Appends a place's row key to a buffer.
pub fn put_key(place: &Place, out: &mut BytesMut) {
    let space = place.space.bytes();
    out.put_u64(place.token);
    // Names have at most 267 bytes, which is checked before a request arrives here.
    out.put_u16(u16::try_from(space.len()).unwrap_or(u16::MAX));
    out.put_slice(space);
    out.put_slice(place.key.bytes());
}

/// The key of a place's row.
pub fn key(place: &Place) -> Bytes {
    let mut out = BytesMut::with_capacity(key_len(place));
    put_key(place, &mut out);
    out.freeze()
}

/// The place whose row has this key; `None` if it is not a valid row key.
pub fn place(row: &Bytes) -> Option<Place> {
    let token = u64::from_be_bytes(*row.first_chunk()?);
    let length = u16::from_be_bytes(*row.get(8..)?.first_chunk()?);
    let end = PREFIX + usize::from(length);
    if row.len() < end {
        return None;
    }
    let space = Space::from_trusted(row.slice(PREFIX..end));
    Some(Place { token, space, key: Key::from_trusted(row.slice(end..)) })
}

/// Length of a record's envelope.
pub fn envelope_len(record: &Encoded) -> usize {
    HEADER + record.0.len()
}

/// Appends the envelope of a record to a buffer. The birth is 0 when this store has never minted a dot in the record.
pub fn put_envelope(row: &[u8], birth: u64, record: &Encoded, out: &mut BytesMut) {
    out.put_u8(CODEC);
    out.put_u32_le(checksum(row, birth));
    out.put_u64_le(birth);
    out.put_slice(&record.0);
}

/// Opens an envelope. Returns birth and record, which shares the value's bytes; the record's own checksum is not verified.
pub fn open_envelope(row: &Bytes, value: &Bytes) -> Result<(u64, Encoded), DamagedRow> {
    let damaged = |problem: &str| damaged(row, problem);
    let header: &[u8; HEADER] = value.first_chunk().ok_or_else(|| damaged("its envelope is truncated"))?;
    let [codec, c0, c1, c2, c3, birth @ ..] = *header;
    if codec != CODEC {
        return Err(damaged("its envelope has an unknown codec version"));
    }
    let birth = u64::from_le_bytes(birth);
    if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(row, birth) {
        return Err(damaged("the checksum of its envelope does not match"));
    }
    Ok((birth, Encoded(value.slice(HEADER..))))
}

fn checksum(row: &[u8], birth: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(row);
    hasher.update(&[CODEC]);
    hasher.update(&birth.to_le_bytes());
    hasher.finalize()
}

/// A damaged row, named in readable form for the log.
pub fn damaged(row: &Bytes, problem: impl Into<String>) -> DamagedRow {
    let name = match place(row) {
        Some(Place { token, space, key }) => format!("(token {token:016x}, tenant {space:?}, key {key:?})"),
        None => format!("({} bytes that are not a row key)", row.len()),
    };
    DamagedRow { row: name, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(token: u64, tenant: &'static str, key: &'static str) -> Place {
        let space = Space::from_trusted(Bytes::from_static(tenant.as_bytes()));
        Place { token, space, key: Key::from_trusted(Bytes::from_static(key.as_bytes())) }
    }

    #[test]
    fn rows_are_ordered_by_token_and_name_their_place() {
        assert!(key(&at(255, "b", "a")) < key(&at(256, "a", "a")));
        assert_ne!(key(&at(1, "ab", "c")), key(&at(1, "a", "bc")));
        for place in [at(7, "tenant", "key"), at(u64::MAX, "t", ""), at(1, "t:7", "k")] {
            assert_eq!(super::place(&key(&place)), Some(place));
        }
        for broken in [&b""[..], b"12345678", b"12345678\x00\x05abcd"] {
            assert_eq!(super::place(&Bytes::copy_from_slice(broken)), None);
        }
    }

    #[test]
    fn envelopes_survive_and_damage_is_detected() {
        let row = key(&at(7, "tenant", "key"));
        let record = Encoded(Bytes::from_static(b"record"));
        let mut out = BytesMut::new();
        put_envelope(&row, 42, &record, &mut out);
        assert_eq!(out.len(), envelope_len(&record));
        let value = out.freeze();
        assert_eq!(open_envelope(&row, &value), Ok((42, record)));

        let elsewhere = key(&at(7, "tenant", "other"));
        let error = open_envelope(&elsewhere, &value).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("checksum"), "{error}");
        for at in 0..HEADER {
            let mut flipped = value.to_vec();
            flipped[at] ^= 1;
            assert!(open_envelope(&row, &Bytes::from(flipped)).is_err(), "byte {at}");
        }
        assert!(open_envelope(&row, &value.slice(..HEADER - 1)).is_err());
    }

    /// Version 1 byte by byte: every later version must read it from existing disks.
    #[test]
    fn golden_bytes() {
        let row = key(&at(0x0102, "t", "k"));
        assert_eq!(&row[..], b"\x00\x00\x00\x00\x00\x00\x01\x02\x00\x01tk");
        let mut out = BytesMut::new();
        put_envelope(&row, 3, &Encoded(Bytes::from_static(b"R")), &mut out);
        let checksum =
            crc32fast::hash(b"\x00\x00\x00\x00\x00\x00\x01\x02\x00\x01tk\x01\x03\x00\x00\x00\x00\x00\x00\x00");
        let golden = [&[1][..], &checksum.to_le_bytes(), b"\x03\x00\x00\x00\x00\x00\x00\x00R"].concat();
        assert_eq!(&out[..], golden);
    }
}
