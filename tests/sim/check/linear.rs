//! Linearizability of a key's history as one register: the search of Wing and Gong, with Lowe's cache of visited states.

use std::collections::HashSet;

use crate::history::{Intention, Operation, Outcome};

/// What an operation writes to the register, or read from it. `None`: no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Write(Option<u32>),
    Read(Option<u32>),
}

#[derive(Debug, Clone, Copy)]
struct Step {
    does: Does,
    start: u64,
    /// `u64::MAX`: it may take effect at any time, or never.
    end: u64,
}

/// Limit on operations of one key: a set of them, as bits, is a key of the cache.
const MOST: usize = 256;
/// Limit on visited states: beyond it the workload is too hard to judge, which is a defect of the simulation.
const STATES: usize = 2_000_000;

type Set = [u64; MOST / 64];

/// Describes why a history cannot be put in order; `None` if it can.
pub(super) fn check(operations: &[&Operation]) -> Option<String> {
    let steps = steps(operations);
    if steps.len() > MOST {
        return Some(format!("{} operations are too many to judge", steps.len()));
    }
    let mut search = Search { steps: &steps, seen: HashSet::new(), furthest: (0, [0; MOST / 64], None) };
    match search.from([0; MOST / 64], None) {
        Some(true) => None,
        Some(false) => Some(search.explain()),
        None => Some("too many orders to judge".to_owned()),
    }
}

fn steps(operations: &[&Operation]) -> Vec<Step> {
    let read: HashSet<u32> = operations
        .iter()
        .filter(|operation| !operation.is_weak())
        .filter_map(|operation| match &operation.outcome {
            Outcome::Shown(tags) => tags.first().copied(),
            _ => None,
        })
        .collect();
    let mut steps: Vec<Step> = operations
        .iter()
        .filter_map(|operation| {
            let does = match (&operation.intention, &operation.outcome) {
                (Intention::Read, Outcome::Shown(tags)) if !operation.is_weak() => Does::Read(tags.first().copied()),
                (Intention::Read, _) | (_, Outcome::NotApplied) => return None,
                // In doubt and never read: that it was not applied is as good as any other explanation.
                (Intention::Write { tag, .. }, Outcome::Unknown) if !read.contains(tag) => return None,
                (Intention::Write { tag, .. }, _) => Does::Write(Some(*tag)),
                (Intention::Delete { .. }, _) => Does::Write(None),
            };
            Some(Step { does, start: operation.start, end: operation.end })
        })
        .collect();
    steps.sort_by_key(|step| step.start);
    steps
}

struct Search<'a> {
    steps: &'a [Step],
    seen: HashSet<(Set, Option<u32>)>,
    /// The largest number of operations that could be put in order, their set, and the value after them, for the explanation.
    furthest: (u32, Set, Option<u32>),
}

impl Search<'_> {
    /// Whether the rest can be put in order; `None` when that takes too long.
    fn from(&mut self, mut done: Set, value: Option<u32>) -> Option<bool> {
        loop {
            let horizon = self.horizon(&done);
            if horizon == u64::MAX {
                return Some(true);
            }
            // A read of the present value changes nothing: placing it now is never worse than later.
            let read = self.open(&done, horizon).find(|index| self.steps[*index].does == Does::Read(value));
            match read {
                Some(index) => done[index / 64] |= 1 << (index % 64),
                None => break,
            }
        }
        let count = done.iter().map(|word| word.count_ones()).sum();
        if count >= self.furthest.0 {
            self.furthest = (count, done, value);
        }
        if !self.seen.insert((done, value)) {
            return Some(false);
        }
        if self.seen.len() > STATES {
            return None;
        }
        let horizon = self.horizon(&done);
        let writes: Vec<(usize, Option<u32>)> = self
            .open(&done, horizon)
            .filter_map(|index| match self.steps[index].does {
                Does::Write(written) => Some((index, written)),
                Does::Read(_) => None,
            })
            .collect();
        for (index, written) in writes {
            let mut after = done;
            after[index / 64] |= 1 << (index % 64);
            match self.from(after, written) {
                Some(false) => {}
                settled => return settled,
            }
        }
        Some(false)
    }

    /// The earliest end among the operations that are not in order yet: one that starts after it cannot be next.
    fn horizon(&self, done: &Set) -> u64 {
        let open = self.steps.iter().enumerate().filter(|(index, _)| done[index / 64] & (1 << (index % 64)) == 0);
        open.map(|(_, step)| step.end).min().unwrap_or(u64::MAX)
    }

    /// The operations that may be next.
    fn open(&self, done: &Set, horizon: u64) -> impl Iterator<Item = usize> {
        let steps = self.steps.iter().enumerate().take_while(move |(_, step)| step.start < horizon);
        steps.filter(|(index, _)| done[index / 64] & (1 << (index % 64)) == 0).map(|(index, _)| index)
    }

    fn explain(&self) -> String {
        let (count, done, value) = &self.furthest;
        let horizon = self.horizon(done);
        let stuck: Vec<String> = self.open(done, horizon).map(|index| format!("{:?}", self.steps[index])).collect();
        format!(
            "no order explains it; {count} of {} fit, then the value is {value:?}, and next may be {stuck:?}",
            self.steps.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(steps: &[(Does, u64, u64)]) -> bool {
        let steps: Vec<Step> =
            steps.iter().map(|(does, start, end)| Step { does: *does, start: *start, end: *end }).collect();
        let mut search = Search { steps: &steps, seen: HashSet::new(), furthest: (0, [0; MOST / 64], None) };
        search.from([0; MOST / 64], None) == Some(true)
    }

    #[test]
    fn linearizable_histories_are_accepted_and_others_refused() {
        use Does::{Read, Write};
        assert!(judge(&[(Write(Some(1)), 1, 2), (Read(Some(1)), 3, 4)]));
        assert!(!judge(&[(Write(Some(1)), 1, 2), (Read(None), 3, 4)]), "a lost write");
        assert!(judge(&[(Write(Some(1)), 1, 9), (Read(None), 3, 4), (Read(Some(1)), 5, 6)]));
        assert!(!judge(&[(Write(Some(1)), 1, 9), (Read(Some(1)), 3, 4), (Read(None), 5, 6)]), "new, then old");
        assert!(judge(&[
            (Write(Some(1)), 1, 2),
            (Write(None), 3, u64::MAX),
            (Read(Some(1)), 4, 5),
            (Read(None), 8, 9)
        ]));
        assert!(!judge(&[
            (Write(Some(1)), 1, 2),
            (Write(Some(2)), 3, 4),
            (Read(Some(2)), 5, 6),
            (Read(Some(1)), 7, 8),
        ]));
    }
}
