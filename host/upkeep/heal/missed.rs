//! What nodes have missed of this coordinator's changes: for each node, the slices in which an operation was not acknowledged by it.
//!
//! 16 KiB a node at most, whatever happens: no caps, no ages, and nothing to replay. What a node lacks in these slices is read from the
//! replicas when it is sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use witan_coordinate::MissedChanges;
use witan_kernel::name::NodeId;
use witan_kernel::slice::{SLICES, Slice, Slices};
use witan_kernel::sync::lock;

/// What nodes have missed.
#[derive(Debug, Default)]
pub struct Missed {
    nodes: ArcSwap<BTreeMap<NodeId, Arc<OfNode>>>,
}

#[derive(Debug)]
struct OfNode {
    /// Slices that were noted and not taken yet.
    noted: Box<[AtomicU64]>,
    /// False if none is.
    any: AtomicBool,
    /// Slices that are being made good.
    taken: Mutex<Slices>,
}

impl OfNode {
    fn new() -> Self {
        let words = SLICES / u64::BITS as usize;
        let noted = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { noted, any: AtomicBool::new(false), taken: Mutex::default() }
    }

    fn note(&self, word: usize, bits: u64) {
        // While a node is away, most slices have been noted already: then nothing is written.
        if self.noted[word].load(Ordering::Acquire) & bits != bits {
            self.noted[word].fetch_or(bits, Ordering::AcqRel);
        }
        // Afterwards, so that whoever finds it set finds the slice, too.
        if !self.any.load(Ordering::Acquire) {
            self.any.store(true, Ordering::Release);
        }
    }

    fn noted(&self) -> Slices {
        Slices::of_words(self.noted.iter().map(|word| word.load(Ordering::Acquire)))
    }
}

impl MissedChanges for Missed {
    fn missed(&self, node: &NodeId, slice: Slice) {
        let (word, bit) = slice.bit();
        match self.nodes.load().get(node) {
            Some(known) => known.note(word, bit),
            None => self.of(node).note(word, bit),
        }
    }
}

impl Missed {
    /// The sets of a node, which are made if there are none.
    fn of(&self, node: &NodeId) -> Arc<OfNode> {
        if let Some(known) = self.nodes.load().get(node) {
            return Arc::clone(known);
        }
        let new = Arc::new(OfNode::new());
        let before = self.nodes.rcu(|nodes| {
            let mut nodes = BTreeMap::clone(nodes);
            nodes.entry(node.clone()).or_insert_with(|| Arc::clone(&new));
            nodes
        });
        // Somebody may have been faster.
        before.get(node).map_or(new, Arc::clone)
    }

    /// Adds slices to what a node has missed.
    pub(super) fn add(&self, node: &NodeId, slices: &Slices) {
        let of = self.of(node);
        for (word, bits) in slices.words().iter().enumerate().filter(|(_, bits)| **bits != 0) {
            of.note(word, *bits);
        }
    }

    /// True if something was noted that is not taken yet.
    pub(super) fn is_noted(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|of| of.any.load(Ordering::Acquire))
    }

    /// Takes what was noted until now, to be made good, and returns it with what was taken before.
    pub(super) fn take(&self, node: &NodeId) -> Slices {
        let of = self.of(node);
        let mut taken = lock(&of.taken);
        // Before the words: what is noted meanwhile sets it again.
        of.any.store(false, Ordering::Release);
        taken.union(&Slices::of_words(of.noted.iter().map(|word| word.swap(0, Ordering::AcqRel))));
        taken.clone()
    }

    /// Some of what was taken was made good.
    pub(super) fn made_good(&self, node: &NodeId, done: &Slices) {
        lock(&self.of(node).taken).remove(done);
    }

    /// What was taken is to be made good later.
    pub(super) fn put_back(&self, node: &NodeId) {
        let of = self.of(node);
        let taken = std::mem::take(&mut *lock(&of.taken));
        self.add(node, &taken);
    }

    /// What is being made good.
    pub(super) fn taken(&self, node: &NodeId) -> Slices {
        self.nodes.load().get(node).map_or_else(Slices::default, |of| lock(&of.taken).clone())
    }

    /// What a node has missed, whether it is being made good or not.
    pub fn of_node(&self, node: &NodeId) -> Slices {
        let nodes = self.nodes.load();
        let Some(of) = nodes.get(node) else { return Slices::default() };
        let mut all = lock(&of.taken).clone();
        all.union(&of.noted());
        all
    }

    /// Forgets nodes that are no longer there.
    pub(super) fn retain(&self, on_record: &[NodeId]) {
        if self.nodes.load().keys().all(|node| on_record.contains(node)) {
            return;
        }
        self.nodes.rcu(|nodes| {
            let kept = nodes.iter().filter(|(node, _)| on_record.contains(node));
            kept.map(|(node, of)| (node.clone(), Arc::clone(of))).collect::<BTreeMap<_, _>>()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn slices(numbers: &[u16]) -> Slices {
        let mut slices = Slices::default();
        numbers.iter().for_each(|number| slices.insert(Slice(*number)));
        slices
    }

    #[test]
    fn what_is_noted_is_taken_once_and_put_back_together() {
        let (missed, n1) = (Missed::default(), node("n1"));
        assert!(!missed.is_noted(&n1) && missed.take(&n1).is_empty());
        [3, 70, 3].into_iter().for_each(|slice| missed.missed(&n1, Slice(slice)));
        assert!(missed.is_noted(&n1) && !missed.is_noted(&node("n2")));
        assert_eq!(missed.take(&n1), slices(&[3, 70]));
        assert!(!missed.is_noted(&n1));
        assert_eq!(missed.of_node(&n1), slices(&[3, 70]), "it is not made good yet");
        missed.missed(&n1, Slice(9));
        missed.made_good(&n1, &slices(&[3]));
        assert_eq!((missed.of_node(&n1), missed.taken(&n1)), (slices(&[9, 70]), slices(&[70])));
        missed.put_back(&n1);
        assert_eq!((missed.of_node(&n1), missed.taken(&n1)), (slices(&[9, 70]), Slices::default()));
        assert_eq!(missed.take(&n1), slices(&[9, 70]));
        missed.made_good(&n1, &slices(&[9, 70]));
        assert!(!missed.is_noted(&n1) && missed.of_node(&n1).is_empty());
        missed.add(&n1, &Slices::all());
        missed.retain(&[node("n2")]);
        assert!(!missed.is_noted(&n1), "the node is gone");
    }

    #[test]
    fn nothing_is_lost_that_is_noted_while_it_is_taken() {
        let (missed, n1) = (Arc::new(Missed::default()), node("n1"));
        let noting = std::thread::spawn({
            let (missed, n1) = (Arc::clone(&missed), n1.clone());
            move || (0..=u16::MAX).for_each(|slice| missed.missed(&n1, Slice(slice)))
        });
        let mut all = Slices::default();
        while !noting.is_finished() {
            let taken = missed.take(&n1);
            missed.made_good(&n1, &taken);
            all.union(&taken);
        }
        noting.join().unwrap();
        assert!(all.count() == SLICES || missed.is_noted(&n1));
        all.union(&missed.take(&n1));
        assert_eq!(all, Slices::all());
    }
}
