//! Numbers of JSON, compared exactly. Floating-point numbers would not do: what is equal to the same rounded number need not be equal, and
//! an order that is not transitive makes verdicts depend on the order in which siblings are compared.

use std::cmp::Ordering;

/// A number: its sign, and if it is not 0 the position of its first digit that is not 0, and the digits from there on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decimal {
    sign: Sign,
    /// The power of ten of the first digit. Powers beyond 64 bits all count as the least or the greatest.
    magnitude: i64,
    /// ASCII digits, without zeros at the beginning and the end.
    digits: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sign {
    Negative,
    Zero,
    Positive,
}

impl Decimal {
    /// Reads a number that is valid JSON.
    pub(crate) fn read(text: &[u8]) -> Self {
        let (is_negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = split_at(text, |byte| matches!(byte, b'e' | b'E'));
        let (whole, fraction) = split_at(mantissa, |byte| byte == b'.');
        let digits = [whole, fraction].concat();
        let Some(first) = digits.iter().position(|digit| *digit != b'0') else {
            return Self { sign: Sign::Zero, magnitude: 0, digits: Vec::new() };
        };
        let last = digits.iter().rposition(|digit| *digit != b'0').unwrap_or(first);
        // Both are lengths of texts in memory.
        let magnitude = (whole.len() as i64 - 1 - first as i64).saturating_add(power(exponent));
        let sign = if is_negative { Sign::Negative } else { Sign::Positive };
        Self { sign, magnitude, digits: digits[first..=last].to_vec() }
    }
}

/// What comes before the first byte of a kind, and what comes after it.
fn split_at(text: &[u8], is: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| is(*byte)) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

/// An exponent of JSON, which may have a sign and any number of digits; none is 0.
fn power(text: &[u8]) -> i64 {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let add = |power: i64, digit: &u8| power.saturating_mul(10).saturating_add(i64::from(digit.wrapping_sub(b'0')));
    let power = digits.iter().fold(0, add);
    if is_negative { -power } else { power }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_size = || (self.magnitude, &self.digits).cmp(&(other.magnitude, &other.digits));
        self.sign.cmp(&other.sign).then_with(|| match self.sign {
            Sign::Negative => by_size().reverse(),
            Sign::Zero => Ordering::Equal,
            Sign::Positive => by_size(),
        })
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Decimal {
        Decimal::read(text.as_bytes())
    }

    #[test]
    fn numbers_are_in_order() {
        let ascending = [
            "-1e99999999999999999999999",
            "-12",
            "-1.5",
            "-0.001",
            "0",
            "1e-99999999999999999999999",
            "0.001",
            "0.01",
            "1",
            "1.05",
            "1.5",
            "9007199254740992",
            "9007199254740993",
            "123456789012345678901234567890",
            "123456789012345678901234567891",
            "1e400",
            "2e400",
        ];
        for pair in ascending.windows(2) {
            assert!(read(pair[0]) < read(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn one_number_has_many_texts() {
        for texts in [&["0", "-0", "0.00", "0e7"][..], &["1200", "1.2e3", "12E+2", "1200.0", "0.0012e6", "120000e-2"]] {
            for text in texts {
                assert_eq!(read(text), read(texts[0]), "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_and_their_quotients_are_in_order(a in any::<i32>(), b in any::<i32>(), shift in 0_u32..30) {
            let quotient = |number: i32| read(&format!("{number}e-{shift}"));
            prop_assert_eq!(quotient(a).cmp(&quotient(b)), a.cmp(&b));
            prop_assert_eq!(read(&format!("{a}{}", "0".repeat(shift as usize))), read(&format!("{a}e{shift}")));
        }
    }
}
