//! Records without their long values, for callers that need only know which values are live.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Record;

/// Longest value that stays in an abridged record, in bytes.
pub const ABRIDGED_BYTES: usize = 32;

impl Record {
    /// The record with each value longer than [`ABRIDGED_BYTES`] replaced by its SHA-256. Whether there are values, how many, and which of
    /// them are equal does not change, and every replica abridges alike.
    pub fn abridged(mut self) -> Self {
        match &mut self {
            Self::Register(register) => abridge(&mut register.value),
            Self::Siblings(siblings) => siblings.versions.iter_mut().for_each(|version| abridge(&mut version.value)),
        }
        self
    }
}

fn abridge(value: &mut Option<Bytes>) {
    if let Some(long) = value.as_ref().filter(|value| value.len() > ABRIDGED_BYTES) {
        *value = Some(Bytes::copy_from_slice(&Sha256::digest(long)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::WriteId;
    use crate::register::{Register, Stamp};

    #[test]
    fn long_values_become_digests_and_the_rest_stays() {
        let record = |value: Option<&'static [u8]>| {
            Record::Register(Register::written(Stamp(1), WriteId([1; 16]), value.map(Bytes::from_static)))
        };
        for short in [None, Some(&b""[..]), Some(&[7; ABRIDGED_BYTES])] {
            assert_eq!(record(short).abridged(), record(short));
        }
        let long = record(Some(&[7; 100])).abridged();
        assert_ne!(long, record(Some(&[8; 100])).abridged());
        assert!(long.encode().0.len() < record(Some(&[7; 100])).encode().0.len());
        assert_eq!(long.encode().decode().unwrap(), long);
    }
}
