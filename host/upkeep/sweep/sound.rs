//! What it takes to believe a node's new store: in every range that the node is a replica of, it has been sent all that
//! enough whole replicas have.
//!
//! A write that was acknowledged before the old store was lost stands on a quorum less one of the others. So as many of
//! them as share a node with every such rest ([`whole_needed`]) must have been walked to the end. A write that was
//! acknowledged later stands on a quorum, the new store among them or not.

use std::collections::BTreeMap;

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::scan::whole_needed;

/// New stores, and whether they may be believed so far.
#[derive(Default)]
pub(super) struct Sound {
    expected: BTreeMap<NodeId, (StoreId, Option<String>)>,
}

impl Sound {
    /// A node with a new store.
    pub(super) fn expect(&mut self, node: NodeId, store: StoreId) {
        self.expected.insert(node, (store, None));
    }

    /// True when there are no new stores.
    pub(super) fn expects_none(&self) -> bool {
        self.expected.is_empty()
    }

    /// A range has been swept: its replicas in order, those that are mended, and the whole ones that have told all they have.
    /// `failed`: somebody could not tell or store some record.
    pub(super) fn range(
        &mut self,
        replicas: &[NodeId],
        factors: &[u8],
        mended: &[&NodeId],
        told: &[&NodeId],
        failed: bool,
    ) {
        for (node, (_, why)) in &mut self.expected {
            let Some(place) = replicas.iter().position(|replica| replica == node) else { continue };
            if why.is_some() {
                continue;
            }
            if !mended.contains(&node) {
                *why = Some("it did not take part everywhere".to_owned());
            } else if failed {
                *why = Some("records could not be read or merged".to_owned());
            } else {
                *why = factors.iter().find_map(|factor| too_few(replicas, place, *factor, told));
            }
        }
    }

    /// As [`Self::range`], where what others do not have is given up.
    pub(super) fn range_with_loss(&mut self, replicas: &[NodeId], mended: &[&NodeId]) {
        for (node, (_, why)) in &mut self.expected {
            if replicas.contains(node) && !mended.contains(&node) {
                *why = Some("it did not take part everywhere".to_owned());
            }
        }
    }

    /// Believes none.
    pub(super) fn spoil(&mut self, reason: &str) {
        self.expected.values_mut().for_each(|(_, why)| *why = Some(reason.to_owned()));
    }

    /// Stores that may be believed, and those that may not, with the reason.
    pub(super) fn close(self) -> (Vec<(NodeId, StoreId)>, BTreeMap<NodeId, String>) {
        let (mut filled, mut unfilled) = (Vec::new(), BTreeMap::new());
        for (node, (store, why)) in self.expected {
            match why {
                None => filled.push((node, store)),
                Some(why) => drop(unfilled.insert(node, why)),
            }
        }
        (filled, unfilled)
    }
}

/// Why keys with this replication factor may have been missed at the replica at `place`, if they may.
fn too_few(replicas: &[NodeId], place: usize, factor: u8, told: &[&NodeId]) -> Option<String> {
    let members = &replicas[..replicas.len().min(usize::from(factor))];
    if place >= members.len() {
        return None;
    }
    let others = members.iter().enumerate().filter(|(index, node)| *index != place && told.contains(node)).count();
    let needed = usize::from(whole_needed(factor));
    (others < needed).then(|| {
        format!(
            "of keys with {factor} replicas, {others} other whole replicas took part everywhere, and {needed} have to"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::new(name).unwrap()).collect()
    }

    /// Whether "c", at the third place of five, may be believed.
    fn believed(factors: &[u8], mended: &[&str], told: &[&str], failed: bool) -> bool {
        let replicas = nodes(&["a", "b", "c", "d", "e"]);
        let mut sound = Sound::default();
        sound.expect(NodeId::new("c").unwrap(), StoreId([1; 16]));
        let (mended, told) = (nodes(mended), nodes(told));
        sound.range(&replicas, factors, &mended.iter().collect::<Vec<_>>(), &told.iter().collect::<Vec<_>>(), failed);
        sound.close().1.is_empty()
    }

    #[test]
    fn enough_others_must_have_told_all() {
        assert!(believed(&[3], &["c"], &["a", "b"], false));
        assert!(!believed(&[3], &["c"], &["a", "d", "e"], false), "d and e are no replicas at factor 3");
        assert!(!believed(&[3], &["c"], &["a"], false));
        assert!(believed(&[5], &["c"], &["a", "d", "e"], false));
        assert!(!believed(&[3, 5], &["c"], &["a", "d", "e"], false));
        assert!(believed(&[4], &["c"], &["b", "d"], false));
        assert!(believed(&[1, 2], &["c"], &[], false), "c holds nothing here at these factors");
        assert!(!believed(&[3], &["a", "b"], &["a", "b"], false), "it did not take part itself");
        assert!(!believed(&[3], &["c"], &["a", "b"], true));
    }

    #[test]
    fn one_replica_alone_cannot_be_filled_except_with_loss() {
        let replicas = nodes(&["a"]);
        let mut sound = Sound::default();
        assert!(sound.expects_none());
        sound.expect(replicas[0].clone(), StoreId([1; 16]));
        sound.range(&replicas, &[1], &[&replicas[0]], &[], false);
        let (filled, unfilled) = sound.close();
        assert!(filled.is_empty() && unfilled[&replicas[0]].contains("1 replicas"));

        let mut sound = Sound::default();
        sound.expect(replicas[0].clone(), StoreId([1; 16]));
        sound.range_with_loss(&replicas, &[&replicas[0]]);
        assert_eq!(sound.close().0, [(replicas[0].clone(), StoreId([1; 16]))]);

        let mut sound = Sound::default();
        sound.expect(replicas[0].clone(), StoreId([1; 16]));
        sound.spoil("the ring changed");
        assert_eq!(sound.close().1[&replicas[0]], "the ring changed");
    }
}
