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

/// Words of a set.
const WORDS: usize = SLICES / u64::BITS as usize;

/// A set of slices, in 8 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct Slices(Box<[u64]>);

impl Default for Slices {
    fn default() -> Self {
        Self(vec![0; WORDS].into_boxed_slice())
    }
}

impl std::fmt::Debug for Slices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} slices", self.count())
    }
}

impl Slice {
    /// The word of a set that it is in, and its bit there.
    pub fn bit(self) -> (usize, u64) {
        let number = usize::from(self.0);
        (number / u64::BITS as usize, 1 << (number % u64::BITS as usize))
    }
}

impl Slices {
    /// All of them.
    pub fn all() -> Self {
        Self(vec![u64::MAX; WORDS].into_boxed_slice())
    }

    /// The set with these words, each slice where [`Slice::bit`] says. Words that are missing are empty.
    pub fn of_words(words: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::default();
        set.0.iter_mut().zip(words).for_each(|(own, word)| *own = word);
        set
    }

    /// Its words.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// Adds a slice.
    pub fn insert(&mut self, slice: Slice) {
        let (word, bit) = slice.bit();
        self.0[word] |= bit;
    }

    /// Adds what `other` has.
    pub fn union(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own |= other);
    }

    /// Takes out what `other` has.
    pub fn remove(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own &= !other);
    }

    /// Its first slices, this number of them at most.
    pub fn first(&self, most: usize) -> Self {
        let (mut first, mut left) = (self.clone(), most);
        for word in &mut first.0 {
            let mut kept = 0;
            while *word != 0 && left > 0 {
                kept |= *word & word.wrapping_neg();
                *word &= *word - 1;
                left -= 1;
            }
            *word = kept;
        }
        first
    }

    /// Takes out what comes before a slice.
    pub fn remove_before(&mut self, slice: Slice) {
        let (word, bit) = slice.bit();
        self.0[..word].fill(0);
        self.0[word] &= !(bit - 1);
    }

    /// Whether it has the slice.
    pub fn contains(&self, slice: Slice) -> bool {
        let (word, bit) = slice.bit();
        self.0[word] & bit != 0
    }

    /// The number of slices in it.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Its runs of neighbours: the first and the last slice of each, in order.
    pub fn runs(&self) -> Vec<(Slice, Slice)> {
        let mut runs: Vec<(Slice, Slice)> = Vec::new();
        for (word, bits) in (0u16..).zip(&self.0) {
            let mut left = *bits;
            while left != 0 {
                let from = left.trailing_zeros();
                let length = (left >> from).trailing_ones();
                let first = word * 64 + from as u16;
                let last = first + (length - 1) as u16;
                match runs.last_mut() {
                    Some((_, end)) if end.0.checked_add(1) == Some(first) => *end = Slice(last),
                    _ => runs.push((Slice(first), Slice(last))),
                }
                left &= u64::MAX.checked_shl(from + length).unwrap_or(0);
            }
        }
        runs
    }

    /// The same as tokens: the first and the last of each run.
    pub fn tokens(&self) -> Vec<Tokens> {
        self.runs().into_iter().map(|(first, last)| (first.tokens().0, last.tokens().1)).collect()
    }

    /// Its runs in bytes: for each, how many slices lie between it and the one before, and how many slices it has beyond its first, as
    /// LEB128 numbers. Two to six bytes for each run.
    pub fn encode(&self) -> Vec<u8> {
        let (mut bytes, mut next) = (Vec::new(), 0u32);
        for (first, last) in self.runs() {
            put(&mut bytes, u32::from(first.0) - next);
            put(&mut bytes, u32::from(last.0 - first.0));
            next = u32::from(last.0) + 1;
        }
        bytes
    }

    /// Reads what [`Self::encode`] has written; `None` for anything else.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (mut set, mut next) = (Self::default(), 0u32);
        while !bytes.is_empty() {
            let first = next + take(&mut bytes)?;
            let last = first + take(&mut bytes)?;
            // Neighbours are one run.
            if last >= SLICES as u32 || next > 0 && first == next {
                return None;
            }
            (first..=last).for_each(|number| set.insert(Slice(number as u16)));
            next = last + 1;
        }
        Some(set)
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number of at most 21 bits from the front, in as few bytes as it needs.
fn take(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let is_shortest = *byte != 0 || shift == 0;
            return is_shortest.then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(numbers: &BTreeSet<u16>) -> Slices {
        let mut set = Slices::default();
        numbers.iter().for_each(|number| set.insert(Slice(*number)));
        set
    }

    /// Numbers of which many are neighbours, the ends included.
    fn numbers() -> impl Strategy<Value = BTreeSet<u16>> {
        let run = (prop_oneof![any::<u16>(), Just(0), Just(u16::MAX)], 0u16..200);
        let runs = proptest::collection::vec(run, 0..40);
        runs.prop_map(|runs| runs.into_iter().flat_map(|(first, more)| first..=first.saturating_add(more)).collect())
    }

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

        #[test]
        fn a_set_has_what_was_put_into_it(numbers in numbers(), others in numbers(), bound: u16) {
            let own = set(&numbers);
            prop_assert_eq!((own.count(), own.is_empty()), (numbers.len(), numbers.is_empty()));
            prop_assert!((0..=u16::MAX).all(|number| own.contains(Slice(number)) == numbers.contains(&number)));
            let mut both = own.clone();
            both.union(&set(&others));
            prop_assert_eq!(&both, &set(&numbers.union(&others).copied().collect()));
            let mut rest = own.clone();
            rest.remove_before(Slice(bound));
            prop_assert_eq!(&rest, &set(&numbers.range(bound..).copied().collect()));
            let mut without = own.clone();
            without.remove(&set(&others));
            prop_assert_eq!(&without, &set(&numbers.difference(&others).copied().collect()));
            let most = usize::from(bound) % 300;
            prop_assert_eq!(&own.first(most), &set(&numbers.iter().take(most).copied().collect()));
            prop_assert_eq!(&Slices::of_words(own.words().iter().copied()), &own);
        }

        #[test]
        fn runs_are_the_set_without_neighbours(numbers in numbers()) {
            let own = set(&numbers);
            let runs = own.runs();
            prop_assert!(runs.windows(2).all(|pair| u32::from(pair[0].1.0) + 1 < u32::from(pair[1].0.0)), "{:?}", runs);
            let again: BTreeSet<u16> = runs.iter().flat_map(|(first, last)| first.0..=last.0).collect();
            prop_assert_eq!(again, numbers);
            for ((first, last), tokens) in runs.into_iter().zip(own.tokens()) {
                prop_assert_eq!(tokens, (first.tokens().0, last.tokens().1));
            }
        }

        #[test]
        fn a_set_comes_back_from_its_bytes(numbers in numbers()) {
            let own = set(&numbers);
            let bytes = own.encode();
            prop_assert!(bytes.len() <= 6 * own.runs().len());
            prop_assert_eq!(Slices::decode(&bytes), Some(own));
        }

        #[test]
        fn what_is_read_is_what_would_be_written(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some(set) = Slices::decode(&bytes) {
                prop_assert_eq!(set.encode(), bytes);
            }
        }
    }

    #[test]
    fn all_slices_are_one_run() {
        let all = Slices::all();
        assert_eq!((all.count(), all.tokens()), (SLICES, vec![(0, u64::MAX)]));
        assert_eq!(Slices::decode(&all.encode()), Some(all));
        assert_eq!((Slices::default().encode().len(), Slices::default().runs().len()), (0, 0));
        assert_eq!(Slices::decode(&[0xff, 0xff, 3, 0]), Some(set(&BTreeSet::from([u16::MAX]))));
        let beyond = [&[0xff, 0xff, 3, 1][..], &[0x80, 0x80, 4, 0], &[0xff, 0xff, 0x7f, 0xff, 0xff, 0x7f]];
        let longer_than_needed = [&[0x80, 0, 0][..], &[0, 0x80, 0], &[0x80, 0x80, 0, 0], &[0x81, 0x80, 0, 0]];
        let cut_off_or_neighbours = [&[0][..], &[0x80, 0], &[0, 0, 0, 0], &[0x80; 4]];
        for wrong in beyond.into_iter().chain(longer_than_needed).chain(cut_off_or_neighbours) {
            assert_eq!(Slices::decode(wrong), None, "{wrong:?}");
        }
    }
}
