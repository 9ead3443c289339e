//! Bytes as hexadecimal digits.

/// Lower-case digits, two for each byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads digits of either case. `None`: they are not an even number of them.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_written() {
        assert_eq!(encode(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!((decode("001fFF"), decode("")), (Some(vec![0, 0x1f, 0xff]), Some(Vec::new())));
        for wrong in ["0", "0g", "+1", " 1", "\u{e9}"] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }
}
