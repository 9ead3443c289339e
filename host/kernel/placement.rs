//! Where a tenant's records are, and where they move: a change of the ring or of a replication factor under load.
//!
//! The unit of a change is a tenant: it is moved from one [`Placed`] to another, with its settings, in one entry of the metadata store, and
//! nodes fence it alone ([`crate::fence`]). Adding or removing a node makes a new version of the ring, to which one tenant after the other
//! is moved. Two coordinators may disagree about a tenant by one step only: each step is published, and what a later one must not meet is
//! fenced before. docs/semantics.md, "Placement changes", has the rules, and docs/decisions/0037 the reasons.
//!
//! Let O be the replicas of a key before a change and N those after it.
//!
//! | step | reads and stamps ask | changes are sent to | a change is met | a Put is minted by |
//! | --- | --- | --- | --- | --- |
//! | settled, [`Step::Preparing`] | O | O | in O | O |
//! | [`Step::DualWrite`] | O | O and N | in O | O |
//! | [`Step::Cutover`] | O and N | O and N | in O and in N | O or N |

pub mod leader;
pub mod rate;
pub mod sums;
pub mod zones;

use std::collections::BTreeMap;

use crate::name::NodeId;
use crate::ring::Ring;

/// Where records are: on which version of the ring, and on how many nodes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placed {
    /// The version of the ring. Each node that joins or leaves a cluster which holds data makes the next one.
    pub ring: u64,
    /// Replicas of each key, 1..=5.
    pub replication_factor: u8,
    /// The rows of this generation, which the partition hook of this generation has placed; 0: those of before its first swap.
    pub generation: u32,
}

/// A change of a tenant's placement that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moving {
    /// Where its records move.
    pub to: Placed,
    /// How far it is.
    pub step: Step,
    /// The revision of the metadata store that published [`Step::Preparing`]: nodes that get records have dropped, under this epoch, what
    /// they had of them before.
    pub prepared: u64,
    /// The revision that published the present step. Copies made in it carry this epoch.
    pub since: u64,
}

/// A step of a placement change. Each is published before anything is done under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Nodes that get records drop what they may have of them from before.
    Preparing,
    /// Changes go to both placements, and count in the old one. What was stored before is copied.
    DualWrite,
    /// Everything needs both placements, and what the first copy has missed is copied from fenced sources.
    Cutover,
}

impl Step {
    /// Its name in the metadata store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::DualWrite => "dual_write",
            Self::Cutover => "cutover",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Preparing, Self::DualWrite, Self::Cutover].into_iter().find(|step| step.as_str() == text)
    }
}

/// Tokens, both ends included.
pub type Tokens = (u64, u64);

/// For each node, the tokens of which it holds a replica under `to` and none under `from`, in order and without neighbours: before a change
/// from one to the other, the rows that it gets; after a change back, those that it has to lose. Each placement is a ring and a
/// replication factor.
pub fn entering(from: (&Ring, u8), to: (&Ring, u8)) -> BTreeMap<NodeId, Vec<Tokens>> {
    let mut all: BTreeMap<NodeId, Vec<Tokens>> = BTreeMap::new();
    for Both { tokens: (first, last), old, new } in both(from, to) {
        for node in new.iter().filter(|node| !old.contains(node)) {
            let of = all.entry((*node).clone()).or_default();
            match of.last_mut() {
                Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
                _ => of.push((first, last)),
            }
        }
    }
    all
}

/// A range of tokens, and its replicas under two placements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Both {
    /// The range.
    pub tokens: Tokens,
    /// The replicas before.
    pub old: Vec<NodeId>,
    /// The replicas after.
    pub new: Vec<NodeId>,
}

impl Both {
    /// Whether the same nodes hold its tokens before and after, in whichever order.
    pub fn is_same(&self) -> bool {
        self.old.len() == self.new.len() && self.old.iter().all(|node| self.new.contains(node))
    }
}

/// The whole ring in ranges that have the same replicas under each of two placements, in order. Empty if one of them has no nodes.
pub fn both(from: (&Ring, u8), to: (&Ring, u8)) -> Vec<Both> {
    let (old, new) = (from.0.replica_ranges(&[from.1]), to.0.replica_ranges(&[to.1]));
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    let (mut all, mut first) = (Vec::new(), 0);
    while let (Some(a), Some(b)) = (old.peek(), new.peek()) {
        let last = a.to.min(b.to);
        all.push(Both { tokens: (first, last), old: a.replicas.to_vec(), new: b.replicas.to_vec() });
        let (a_ends, b_ends) = (a.to == last, b.to == last);
        if a_ends {
            old.next();
        }
        if b_ends {
            new.next();
        }
        first = last.wrapping_add(1);
    }
    all
}

/// How many replicas of before a change must have been fenced, and read to their end, for everything that any level has acknowledged or a
/// quorum has shown to be among what was read: those that are left are too few for a quorum.
pub fn sources_needed(replication_factor: u8) -> usize {
    usize::from(replication_factor - (replication_factor / 2 + 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u32) -> NodeId {
        NodeId::new(format!("n{n}")).unwrap()
    }

    fn ring(nodes: std::ops::RangeInclusive<u32>) -> Ring {
        let nodes: Vec<(NodeId, u32)> = nodes.map(|n| (node(n), 16)).collect();
        Ring::new(&nodes, 1)
    }

    #[test]
    fn ranges_of_two_placements_cover_the_ring_and_say_what_each_says() {
        let (three, five) = (ring(1..=3), ring(2..=6));
        for (from, to) in [((&three, 3), (&five, 3)), ((&three, 1), (&five, 2)), ((&five, 5), (&three, 2))] {
            let all = both(from, to);
            assert_eq!((all[0].tokens.0, all.last().unwrap().tokens.1), (0, u64::MAX));
            for pair in all.windows(2) {
                assert_eq!(pair[0].tokens.1 + 1, pair[1].tokens.0);
            }
            for range in &all {
                for token in [range.tokens.0, range.tokens.1] {
                    let sorted = |nodes: &[NodeId]| std::collections::BTreeSet::from_iter(nodes.to_vec());
                    assert_eq!(sorted(&range.old), sorted(&from.0.replicas(token, from.1)));
                    assert_eq!(sorted(&range.new), sorted(&to.0.replicas(token, to.1)));
                }
            }
        }
    }

    #[test]
    fn who_gets_rows_is_who_had_none() {
        let (three, four) = (ring(1..=3), ring(1..=4));
        let gets = entering((&three, 2), (&four, 2));
        for n in 1..=4 {
            let of = gets.get(&node(n)).cloned().unwrap_or_default();
            for pair in of.windows(2) {
                assert!(pair[0].1 + 1 < pair[1].0, "neighbours are one range: {pair:?}");
            }
            for token in (0..4000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                let is_new = four.replicas(token, 2).contains(&node(n)) && !three.replicas(token, 2).contains(&node(n));
                assert_eq!(of.iter().any(|(from, to)| (*from..=*to).contains(&token)), is_new, "n{n} {token}");
            }
        }
        assert_eq!(entering((&four, 3), (&four, 2)), BTreeMap::new(), "nobody gets what fewer keep");
        assert_eq!(gets.len(), 1, "only the new node: {gets:?}");
    }

    #[test]
    fn replicas_are_the_same_in_any_order() {
        let is_same = |old: &[u32], new: &[u32]| {
            let nodes = |of: &[u32]| of.iter().map(|n| node(*n)).collect();
            Both { tokens: (0, 1), old: nodes(old), new: nodes(new) }.is_same()
        };
        assert!(is_same(&[1, 2, 3], &[3, 1, 2]));
        assert!(!is_same(&[1, 2, 3], &[1, 2]) && !is_same(&[1, 2], &[1, 2, 3]) && !is_same(&[1, 2, 3], &[1, 2, 4]));
    }

    #[test]
    fn what_was_not_read_is_no_quorum() {
        assert_eq!((1..=5).map(sources_needed).collect::<Vec<_>>(), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn steps_are_spelled_as_on_record() {
        for step in [Step::Preparing, Step::DualWrite, Step::Cutover] {
            assert_eq!(Step::parse(step.as_str()), Some(step));
        }
        assert_eq!(Step::parse("settled"), None);
    }
}
