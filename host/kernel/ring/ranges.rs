//! The ring cut into ranges that the same nodes hold.

use super::{Preference, Ring};

/// Tokens that the same nodes hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRange {
    /// The first token.
    pub from: u64,
    /// The last token, included.
    pub to: u64,
    /// The nodes, for the largest replication factor that was asked for. For a smaller factor n, the first n of these are a token's
    /// replicas, in any order.
    pub replicas: Preference,
}

impl Ring {
    /// The whole ring in ranges, by their tokens, without gap or overlap. Neighbours of which the same nodes hold the tokens
    /// at each of these replication factors are one range. Empty without nodes, or without a factor.
    pub fn replica_ranges(&self, factors: &[u8]) -> Vec<ReplicaRange> {
        let Some(most) = factors.iter().copied().max().filter(|most| *most > 0) else { return Vec::new() };
        let (Some(first), Some(last)) = (self.positions.first(), self.positions.last()) else { return Vec::new() };
        let mut ranges: Vec<ReplicaRange> = Vec::new();
        let mut from = 0;
        let mut push = |to: u64, replicas: Preference| {
            match ranges.last_mut() {
                Some(range) if factors.iter().all(|factor| same_nodes(&range.replicas, &replicas, *factor)) => {
                    range.to = to;
                }
                _ => ranges.push(ReplicaRange { from, to, replicas }),
            }
            from = to.wrapping_add(1);
        };
        for (index, to) in self.positions.iter().enumerate() {
            // Where two positions collide, the first of them decides.
            if index == 0 || self.positions[index - 1] != *to {
                push(*to, self.replicas(*to, most));
            }
        }
        if *last != u64::MAX {
            push(u64::MAX, self.replicas(*first, most));
        }
        ranges
    }
}

fn same_nodes(a: &Preference, b: &Preference, factor: u8) -> bool {
    let (a, b) = (&a[..a.len().min(usize::from(factor))], &b[..b.len().min(usize::from(factor))]);
    a.len() == b.len() && a.iter().all(|node| b.contains(node))
}
