//! Checks that `siblings` keep the values that they must keep and drop those that they must drop.
//!
//! A change *covers* the tags that its context has seen. Every later quorum read shows an acknowledged write, unless a change that
//! may have been applied covers it and does not repeat it. No later quorum read shows a tag that an acknowledged change covers,
//! unless a change that is not covered repeats it.

use crate::history::{Operation, Outcome};

/// Describes a value that was lost or came back, if there is one.
pub(super) fn check(operations: &[&Operation], collapses: bool) -> Option<String> {
    let changes: Vec<&Operation> = operations.iter().copied().filter(|change| change.may_be_applied()).collect();
    let reads = operations.iter().filter(|read| !read.weak && matches!(read.outcome, Outcome::Shown(_)));
    for read in reads {
        let Outcome::Shown(shown) = &read.outcome else { continue };
        let lost = changes.iter().find(|change| {
            let tag = change.tag().unwrap_or_default();
            must_be_live(change, read) && !shown.contains(&tag) && !may_be_covered(change, tag, &changes, read)
        });
        if let Some(lost) = lost {
            return Some(format!("lost: {lost:?} was acknowledged, and {read:?} does not show it"));
        }
        let back = shown.iter().find(|tag| must_be_gone(**tag, &changes, read, collapses));
        if let Some(tag) = back {
            return Some(format!("came back: {read:?} shows {tag}, which acknowledged changes have covered"));
        }
    }
    None
}

/// True if the read must show the change, provided no other change covers it.
fn must_be_live(change: &Operation, read: &Operation) -> bool {
    change.is_acknowledged() && !change.is_delete() && change.end < read.start && (!change.weak || is_final(read))
}

/// Final reads are those of the inspector at level all.
fn is_final(read: &Operation) -> bool {
    read.client == usize::MAX && read.level_all
}

/// True if some change that may have been applied before the read ended covers the tag and does not repeat it.
fn may_be_covered(covered: &Operation, tag: u32, changes: &[&Operation], read: &Operation) -> bool {
    changes.iter().any(|change| {
        let covers = match &change.seen {
            Some(seen) => seen.contains(&tag) && !change.carries(tag),
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
            let settled = covering.is_acknowledged() && !covering.weak && covering.end < read.start;
            let others = changes.iter().filter(before).filter(|other| !std::ptr::eq(**other, *covering));
            settled && !covering.carries(tag) && others.clone().all(|other| is_covered_by(other, covering))
        });
    }
    let mut carriers = changes.iter().filter(before).filter(|change| change.carries(tag));
    carriers.all(|carrier| {
        changes.iter().any(|covering| {
            covering.is_acknowledged()
                && !covering.weak
                && covering.end < read.start
                && !std::ptr::eq(*covering, *carrier)
                && is_covered_by(carrier, covering)
        })
    })
}

fn is_covered_by(carrier: &Operation, covering: &Operation) -> bool {
    match &covering.seen {
        Some(_) => carrier.tag().is_some_and(|tag| covering.has_seen(tag)),
        None => covering.is_delete() && carrier.is_acknowledged() && !carrier.weak && carrier.end < covering.start,
    }
}
