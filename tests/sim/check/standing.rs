//! Checks that `siblings` keep the values that they must keep and drop those that they must drop.
//!
//! A change *covers* the tags that its context has seen. Every later read that has a replica in common with an acknowledged write shows
//! it, unless a change that may have been applied covers it and does not repeat it. No later read that has a replica in common with an
//! acknowledged change shows a tag which that change covers, unless a change that is not covered repeats it.

use crate::history::{Operation, Outcome};

/// What may be concluded from a value that is read although it was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Returns {
    /// It came back.
    OfValues,
    /// It came back, or is a part of a collapsed value of which another part is live.
    OfParts,
    /// Nothing.
    Unjudged,
}

impl Returns {
    /// Of a key whose siblings are collapsed or not.
    pub(super) fn of(collapses: bool) -> Self {
        if collapses { Self::OfParts } else { Self::OfValues }
    }
}

/// Describes a value that was lost or came back, if there is one.
pub(super) fn check(operations: &[&Operation], returns: Returns) -> Option<String> {
    let changes: Vec<&Operation> = operations.iter().copied().filter(|change| change.may_be_applied()).collect();
    for read in operations {
        let Outcome::Shown(shown) = &read.outcome else { continue };
        let lost = changes.iter().find(|change| {
            let tag = change.tag().unwrap_or_default();
            must_be_live(change, read) && !shown.contains(&tag) && !may_be_covered(change, tag, &changes, read)
        });
        if let Some(lost) = lost.filter(|_| !read.partial) {
            return Some(format!("lost: {lost:?} was acknowledged, and {read:?} does not show it"));
        }
        let collapses = returns == Returns::OfParts;
        let judged = shown.iter().filter(|_| returns != Returns::Unjudged);
        let back = judged.into_iter().find(|tag| must_be_gone(**tag, &changes, read, collapses));
        if let Some(tag) = back {
            return Some(format!("came back: {read:?} shows {tag}, which acknowledged changes have covered"));
        }
    }
    None
}

/// True if the read must show the change, provided no other change covers it.
fn must_be_live(change: &Operation, read: &Operation) -> bool {
    change.is_acknowledged() && !change.is_delete() && change.end < read.start && change.overlaps(read)
}

/// True if some change that may have been applied before the read ended covers the tag and does not repeat it.
fn may_be_covered(covered: &Operation, tag: u32, changes: &[&Operation], read: &Operation) -> bool {
    changes.iter().any(|change| {
        let covers = match &change.seen {
            Some(seen) => {
                let hidden = covered.start < change.may_cover_until;
                (seen.contains(&tag) || hidden) && !change.carries(tag)
            }
            // Without a context, a delete first reads the record.
            None => change.is_delete() && change.end > covered.start,
        };
        covers && change.start < read.end
    })
}

/// True if every change that carries the tag is covered by changes acknowledged before the read.
fn must_be_gone(tag: u32, changes: &[&Operation], read: &Operation, collapses: bool) -> bool {
    let before = |change: &&&Operation| change.start < read.end;
    if collapses {
        // A collapsed value keeps the tags of its parts until all of them are covered: only a change that has seen all others
        // removes them for certain.
        return changes.iter().any(|covering| {
            let settled = covering.is_acknowledged() && covering.overlaps(read) && covering.end < read.start;
            let others = changes.iter().filter(before).filter(|other| !std::ptr::eq(**other, *covering));
            settled && !covering.carries(tag) && others.clone().all(|other| is_covered_by(other, covering))
        });
    }
    let mut carriers = changes.iter().filter(before).filter(|change| change.carries(tag));
    carriers.all(|carrier| {
        changes.iter().any(|covering| {
            covering.is_acknowledged()
                && covering.overlaps(read)
                && covering.end < read.start
                && !std::ptr::eq(*covering, *carrier)
                && is_covered_by(carrier, covering)
        })
    })
}

fn is_covered_by(carrier: &Operation, covering: &Operation) -> bool {
    match &covering.seen {
        Some(_) => carrier.tag().is_some_and(|tag| covering.has_seen(tag)),
        None => {
            // It reads a quorum at least.
            let quorum = covering.replicas / 2 + 1;
            let finds = carrier.needs + covering.needs.max(quorum) > covering.replicas;
            covering.is_delete() && carrier.is_acknowledged() && finds && carrier.end < covering.start
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Returns, check};
    use crate::history::{Intention, Operation, Outcome};
    use crate::world::Tags;

    fn change(tag: u32, seen: &[u32], at: u64) -> Operation {
        let intention = Intention::Write { tag, carries: Tags::from([tag]) };
        let change = Operation::new(0, (0, 0), intention, 2, 3);
        let seen = Some(Tags::from_iter(seen.iter().copied()));
        Operation { seen, start: at, end: at + 1, outcome: Outcome::Done, ..change }
    }

    fn read(shown: &[u32], at: u64) -> Operation {
        let outcome = Outcome::Shown(Tags::from_iter(shown.iter().copied()));
        Operation { start: at, end: at + 1, outcome, ..Operation::new(0, (0, 0), Intention::Read, 2, 3) }
    }

    /// 1 and 2 were written, 3 has seen 1 only, 4 has seen all.
    #[test]
    fn a_collapsed_value_keeps_its_parts_until_all_are_covered() {
        let writes = [change(1, &[], 0), change(2, &[], 2), change(3, &[1], 4)];
        let with = |last: Operation| writes.clone().into_iter().chain([last]).collect::<Vec<_>>();
        let found =
            |operations: &[Operation], returns| check(&operations.iter().collect::<Vec<_>>(), returns).is_some();
        let parts = with(read(&[1, 2, 3], 6));
        assert!(found(&parts, Returns::OfValues), "1 came back");
        assert!(!found(&parts, Returns::OfParts), "1 is a part of what 2 is a part of");
        assert!(!found(&with(read(&[2, 3], 6)), Returns::OfValues));
        let mut all = with(change(4, &[1, 2, 3], 6));
        all.push(read(&[1, 4], 8));
        assert!(found(&all, Returns::OfParts), "every part was covered");
    }
}
