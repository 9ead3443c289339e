//! The lines in which operations of one session wait for earlier ones on the same key. An operation waits until its deadline at most:
//! what has not begun by then does not begin.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::vec_deque::VecDeque;

use witan_kernel::name::{Key, TenantId};

/// Identifies the line of one session's operations on one record.
pub type Line = (TenantId, Key);

/// Operations by line, each with its deadline in monotonic microseconds. A line exists as long as one of its operations is under way.
#[derive(Debug)]
pub struct Lines<J> {
    lines: BTreeMap<Line, VecDeque<(u64, J)>>,
    /// No operation that waits has a deadline before this one.
    earliest: u64,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self { lines: BTreeMap::new(), earliest: u64::MAX }
    }
}

impl<J> Lines<J> {
    /// An operation enters its line. Returned if it may begin at once; it then has to [`Self::leave`] the line in the end.
    pub fn enter(&mut self, line: &Line, deadline: u64, job: J) -> Option<J> {
        match self.lines.entry(line.clone()) {
            Entry::Occupied(mut waiting) => {
                self.earliest = self.earliest.min(deadline);
                waiting.get_mut().push_back((deadline, job));
                None
            }
            Entry::Vacant(empty) => {
                empty.insert(VecDeque::new());
                Some(job)
            }
        }
    }

    /// Whether an operation that enters this line has to wait.
    pub fn is_taken(&self, line: &Line) -> bool {
        self.lines.contains_key(line)
    }

    /// The operation under way has ended. Returns the next one, which begins now.
    pub fn leave(&mut self, line: &Line) -> Option<J> {
        let next = self.lines.get_mut(line)?.pop_front();
        if next.is_none() {
            self.lines.remove(line);
        }
        next.map(|(_, job)| job)
    }

    /// A moment before which no operation that waits has its deadline; `None` if none is known to wait. It may be the deadline of one that
    /// has begun since: [`Self::expired`] finds out.
    pub fn earliest(&self) -> Option<u64> {
        (self.earliest < u64::MAX).then_some(self.earliest)
    }

    /// Removes the operations whose deadline is not after `now`: they do not begin. Looks at every operation that waits.
    pub fn expired(&mut self, now: u64) -> Vec<J> {
        let mut expired = Vec::new();
        self.earliest = u64::MAX;
        for waiting in self.lines.values_mut().filter(|waiting| !waiting.is_empty()) {
            if waiting.iter().any(|(deadline, _)| *deadline <= now) {
                let (late, in_time) = std::mem::take(waiting).into_iter().partition(|(deadline, _)| *deadline <= now);
                *waiting = in_time;
                let late: VecDeque<(u64, J)> = late;
                expired.extend(late.into_iter().map(|(_, job)| job));
            }
            let next = waiting.iter().map(|(deadline, _)| *deadline).min();
            self.earliest = self.earliest.min(next.unwrap_or(u64::MAX));
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &'static str) -> Line {
        (TenantId::new("t").unwrap(), Key::new(key).unwrap())
    }

    #[test]
    fn operations_of_a_line_begin_one_after_the_other() {
        let mut lines = Lines::default();
        assert!(!lines.is_taken(&line("a")));
        assert_eq!(lines.enter(&line("a"), 10, 1), Some(1));
        assert!(lines.is_taken(&line("a")) && !lines.is_taken(&line("b")));
        assert_eq!(lines.enter(&line("a"), 10, 2), None);
        assert_eq!(lines.enter(&line("b"), 10, 3), Some(3), "another key waits for nobody");
        assert_eq!(lines.enter(&line("a"), 10, 4), None);
        assert_eq!(lines.leave(&line("a")), Some(2));
        assert_eq!(lines.leave(&line("a")), Some(4));
        assert_eq!(lines.leave(&line("a")), None);
        assert_eq!(lines.enter(&line("a"), 10, 5), Some(5), "the line is empty again");
    }

    #[test]
    fn what_has_not_begun_by_its_deadline_does_not_begin() {
        let mut lines = Lines::default();
        lines.enter(&line("a"), 5, 1);
        assert_eq!(lines.earliest(), None, "nobody waits");
        lines.enter(&line("a"), 20, 2);
        lines.enter(&line("a"), 10, 3);
        lines.enter(&line("a"), 30, 4);
        assert_eq!(lines.earliest(), Some(10));
        assert!(lines.expired(9).is_empty());
        assert_eq!(lines.expired(10), [3], "also from the middle of a line");
        assert_eq!(lines.earliest(), Some(20));
        assert_eq!(lines.expired(25), [2]);
        assert_eq!(lines.leave(&line("a")), Some(4), "the order of the rest is kept");
        assert!(lines.expired(40).is_empty(), "what has begun does not expire here");
        assert_eq!((lines.earliest(), lines.leave(&line("a"))), (None, None));
    }
}
