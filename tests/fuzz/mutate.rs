//! Makes inputs: a few random changes of one that is known. The same seed makes the same inputs.

/// Longest input, in bytes: longer ones take time, and show the same mistakes.
pub const INPUT_BYTES: usize = 4096;
/// Most changes of one input.
const CHANGES: usize = 6;
/// Longest part that a change moves or repeats, in bytes: a few entries of a list.
const PART: usize = 64;
/// Bytes at which things turn: signs, lengths, the continuation of numbers.
const EDGES: [u8; 10] = [0, 1, 2, 16, 64, 127, 128, 129, 254, 255];

/// SplitMix64: small, and good enough to choose changes.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }
}

/// Changes an input. `other` is another one, parts of which may be taken over.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], dice: &mut Dice) {
    for _ in 0..=dice.below(CHANGES) {
        change(input, other, words, dice);
    }
    input.truncate(INPUT_BYTES);
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let part = part(input.len(), dice);
    match dice.below(11) {
        0 => alter(input, at, |byte| byte ^ 1 << (at % 8)),
        1 => {
            let edge = EDGES[dice.below(EDGES.len())];
            alter(input, at, |_| edge);
        }
        2 => alter(input, at, |byte| byte.wrapping_add(1)),
        3 => alter(input, at, |byte| byte.wrapping_sub(1)),
        4 => insert(input, at, &[EDGES[dice.below(EDGES.len())]]),
        // A number in one byte more than it needs.
        5 => {
            alter(input, at, |byte| byte | 0x80);
            insert(input, at + 1, &[0]);
        }
        6 => drop(input.drain(part)),
        // A part twice, or elsewhere: lists with an entry twice, or out of order.
        7 => {
            let copied = input[part].to_vec();
            insert(input, at, &copied);
        }
        8 => {
            let moved: Vec<u8> = input.drain(part).collect();
            insert(input, at, &moved);
        }
        9 => {
            let taken = other[self::part(other.len(), dice)].to_vec();
            insert(input, at, &taken);
        }
        _ if !words.is_empty() => insert(input, at, words[dice.below(words.len())]),
        _ => input.truncate(at),
    }
}

fn alter(input: &mut [u8], at: usize, to: impl FnOnce(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = to(*byte);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, part.iter().copied());
}

fn part(length: usize, dice: &mut Dice) -> std::ops::Range<usize> {
    let from = dice.below(length);
    // Ids have sixteen bytes: half of the parts are one.
    let long = if dice.below(2) == 0 { 16 } else { 1 + dice.below(PART) };
    from..length.min(from + long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let made = |seed| {
            let mut dice = Dice::new(seed);
            let mut input = b"a known input".to_vec();
            (0..500).for_each(|_| mutate(&mut input, b"another one", &[b"word"], &mut dice));
            input
        };
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
        assert!(made(7).len() <= INPUT_BYTES);
    }

    #[test]
    fn nothing_can_be_changed() {
        let mut dice = Dice::new(1);
        for _ in 0..1000 {
            mutate(&mut Vec::new(), &[], &[], &mut dice);
        }
    }
}
