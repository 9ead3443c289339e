//! Slices: the space of tokens in 65,536 equal parts, the grain in which replicas are compared without reading all that they have.
//!
//! A slice does not depend on the ring: ranges of replicas begin and end within slices.

use crate::placement::Tokens;

/// Number of slices. With a million keys in a cluster, each has about fifteen.
pub const SLICES: usize = 1 << 16;
/// Bits of a token below the number of its slice.
const BITS: u32 = u64::BITS - 16;

/// The number of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice(pub u16);

impl Slice {
    /// The slice of a token.
    pub fn of(token: u64) -> Self {
        Self((token >> BITS) as u16)
    }

    /// Its first and last token.
    pub fn tokens(self) -> Tokens {
        let first = u64::from(self.0) << BITS;
        (first, first | ((1 << BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slices_are_all_tokens_without_gaps() {
        let mut next = 0;
        for number in 0..=u16::MAX {
            let (first, last) = Slice(number).tokens();
            assert_eq!((first, Slice::of(first), Slice::of(last)), (next, Slice(number), Slice(number)));
            next = last.wrapping_add(1);
        }
        assert_eq!((next, SLICES), (0, usize::from(u16::MAX) + 1));
    }

    proptest! {
        #[test]
        fn a_token_is_in_its_slice(token: u64) {
            let (first, last) = Slice::of(token).tokens();
            prop_assert!(first <= token && token <= last);
        }
    }
}
