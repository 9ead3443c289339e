//! Checks what registers promise at any mixture of levels, orderings and read repairs: a read that has a replica in common with an
//! acknowledged change shows that change, or one that may be ordered after it.
//!
//! A change is certainly ordered before another one if the other's context covers it; with `ordering: quorum`, if both were acknowledged,
//! one after the other, and some replica took part in both; with `ordering: clock`, if they were and the clocks agree.

use witan_kernel::tenant::Ordering;

use crate::history::{Operation, Outcome};

/// What orders changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) ordering: Ordering,
    pub(super) clocks_agree: bool,
}

/// Describes a read that misses a change which it must show, if there is one.
pub(super) fn check(operations: &[&Operation], rules: Rules) -> Option<String> {
    let changes: Vec<&Operation> = operations.iter().copied().filter(|change| change.may_be_applied()).collect();
    for read in operations {
        let Outcome::Shown(shown) = &read.outcome else { continue };
        let shown = shown.first().copied();
        let explains = |change: &&&Operation| change.start < read.end && result(change) == shown;
        let explaining: Vec<&Operation> = changes.iter().filter(explains).copied().collect();
        let before = changes.iter().filter(|change| change.is_acknowledged() && change.end < read.start);
        for missed in before.filter(|change| change.overlaps(read)) {
            // The change itself, or any other with the same effect that may be ordered after it, explains what was read.
            if !explaining.iter().any(|change| std::ptr::eq(*change, *missed) || !precedes(change, missed, rules)) {
                return Some(format!("{read:?} misses {missed:?}"));
            }
        }
    }
    None
}

/// What the register holds after the change.
fn result(change: &Operation) -> Option<u32> {
    if change.is_delete() { None } else { change.tag() }
}

/// True when the first is certainly ordered before the second.
fn precedes(first: &Operation, second: &Operation, rules: Rules) -> bool {
    let Some(tag) = first.tag() else { return false };
    if second.has_seen(tag) {
        return true;
    }
    let in_turn = first.is_acknowledged() && second.is_acknowledged() && first.end < second.start;
    in_turn
        && match rules.ordering {
            Ordering::Quorum => first.overlaps(second),
            Ordering::Clock => rules.clocks_agree,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Intention;
    use crate::world::Tags;

    fn write(tag: u32, needs: u8, start: u64, end: u64) -> Operation {
        let carries = Tags::from([tag]);
        Operation {
            start,
            end,
            outcome: Outcome::Done,
            ..Operation::new(0, (0, 0), Intention::Write { tag, carries }, needs, 3)
        }
    }

    fn read(tag: Option<u32>, needs: u8, start: u64) -> Operation {
        let outcome = Outcome::Shown(tag.into_iter().collect());
        Operation { start, end: start + 1, outcome, ..Operation::new(0, (0, 0), Intention::Read, needs, 3) }
    }

    fn missed(operations: &[Operation], ordering: Ordering, clocks_agree: bool) -> bool {
        check(&operations.iter().collect::<Vec<_>>(), Rules { ordering, clocks_agree }).is_some()
    }

    #[test]
    fn levels_that_overlap_promise_and_others_do_not() {
        let quorum = |operations: &[Operation]| missed(operations, Ordering::Quorum, false);
        assert!(quorum(&[write(1, 2, 1, 2), read(None, 2, 3)]));
        assert!(quorum(&[write(1, 3, 1, 2), read(None, 1, 3)]));
        assert!(!quorum(&[write(1, 1, 1, 2), read(None, 2, 3)]));
        assert!(!quorum(&[write(1, 2, 1, 9), read(None, 2, 3)]), "it has not ended");
        assert!(quorum(&[write(1, 2, 1, 2), write(2, 2, 3, 4), read(Some(1), 2, 5)]));
        assert!(!quorum(&[write(1, 2, 1, 4), write(2, 2, 3, 5), read(Some(1), 2, 6)]), "concurrent");
    }

    #[test]
    fn clocks_order_only_if_they_agree_and_contexts_always_do() {
        let one_after_the_other = [write(1, 2, 1, 2), write(2, 2, 3, 4), read(Some(1), 2, 5)];
        assert!(missed(&one_after_the_other, Ordering::Clock, true));
        assert!(!missed(&one_after_the_other, Ordering::Clock, false));
        let [first, mut second, read] = one_after_the_other;
        second.seen = Some(Tags::from([1]));
        assert!(missed(&[first, second, read], Ordering::Clock, false));
    }
}
