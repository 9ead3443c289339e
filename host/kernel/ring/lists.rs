//! Which nodes come first from each position of a ring.

use std::cmp::Reverse;

use smallvec::SmallVec;

use crate::limit::MAX_REPLICAS;

/// For each position, the first `each` nodes clockwise from it, in rounds of which each takes at most one node of every zone. `owners` has
/// the node of each position, `zones` the zone of each node.
///
/// The ring is walked backwards with the nodes in the order in which they come next, of which each position moves one to the front: that
/// costs the same for each position, whatever the nodes' weights.
pub(super) fn lists(owners: &[u32], zones: &[u32], each: usize) -> Box<[u32]> {
    let mut ahead = Ahead::new(zones);
    // Beyond the last position comes the first one.
    owners.iter().rev().for_each(|owner| ahead.pass(*owner));
    let mut all = vec![0; owners.len() * each].into_boxed_slice();
    for (list, owner) in all.chunks_exact_mut(each.max(1)).rev().zip(owners.iter().rev()) {
        ahead.pass(*owner);
        ahead.first(list);
    }
    all
}

/// What lies clockwise from a position.
struct Ahead<'a> {
    zone_of: &'a [u32],
    /// The zones, and within each its nodes: the nearest first.
    zones: Fronts,
    nodes: Fronts,
    /// For each node, how many positions had been passed when it was passed last: more for one that is nearer.
    passed: Vec<u64>,
    count: u64,
}

impl<'a> Ahead<'a> {
    fn new(zone_of: &'a [u32]) -> Self {
        let zones = zone_of.iter().max().map_or(0, |most| *most as usize + 1);
        Self {
            zone_of,
            zones: Fronts::new(zones, 1),
            nodes: Fronts::new(zone_of.len(), zones),
            passed: vec![0; zone_of.len()],
            count: 0,
        }
    }

    /// Goes back by one position, which is this node's.
    fn pass(&mut self, node: u32) {
        let zone = self.zone_of[node as usize];
        self.zones.bring_to_front(0, zone);
        self.nodes.bring_to_front(zone, node);
        self.count += 1;
        self.passed[node as usize] = self.count;
    }

    /// Fills a list.
    fn first(&self, list: &mut [u32]) {
        let mut found: SmallVec<[_; MAX_REPLICAS * MAX_REPLICAS]> = SmallVec::new();
        // Where there are more zones than places, the nearest node of each of the nearest zones fills them.
        for zone in self.zones.list(0).take(list.len()) {
            let nodes = (0u32..).zip(self.nodes.list(zone).take(list.len()));
            found.extend(nodes.map(|(round, node)| (round, Reverse(self.passed[node as usize]), node)));
        }
        found.sort_unstable();
        for (place, (.., node)) in list.iter_mut().zip(found) {
            *place = node;
        }
    }
}

/// Lists of numbers, each number in at most one list. Any can be moved to a front in a constant time.
struct Fronts {
    /// Circles: for each number, then for each list's head. What is in no list is alone.
    next: Vec<u32>,
    previous: Vec<u32>,
    numbers: u32,
}

impl Fronts {
    fn new(numbers: usize, lists: usize) -> Self {
        let alone: Vec<u32> = (0..(numbers + lists) as u32).collect();
        Self { next: alone.clone(), previous: alone, numbers: numbers as u32 }
    }

    fn bring_to_front(&mut self, list: u32, number: u32) {
        let (before, after) = (self.previous[number as usize], self.next[number as usize]);
        self.link(before, after);
        let head = self.numbers + list;
        self.link(number, self.next[head as usize]);
        self.link(head, number);
    }

    fn link(&mut self, one: u32, next: u32) {
        self.next[one as usize] = next;
        self.previous[next as usize] = one;
    }

    fn list(&self, list: u32) -> impl Iterator<Item = u32> {
        let head = self.numbers + list;
        let mut at = head;
        std::iter::from_fn(move || {
            at = self.next[at as usize];
            (at != head).then_some(at)
        })
    }
}
