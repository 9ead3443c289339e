//! When a node's new store may be believed: in every range that the node is a replica of, it has been sent everything that enough
//! whole replicas have.
//!
//! A write that was acknowledged before the old store was lost is on a quorum of replicas, less that store. So the sweep must have
//! read enough other replicas to the end to share a node with every such remainder ([`whole_needed`]). A write that was
//! acknowledged later is on a quorum of present stores, whether or not that includes the new one.

use std::collections::BTreeMap;

use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::scan::whole_needed;

/// New stores, each with the reason why it may not be believed, if one has been found so far.
#[derive(Default)]
pub(super) struct Sound {
    expected: BTreeMap<NodeId, (StoreId, Option<String>)>,
}

impl Sound {
    /// Adds a node with a new store.
    pub(super) fn expect(&mut self, node: NodeId, store: StoreId) {
        self.expected.insert(node, (store, None));
    }

    /// True when there are no new stores.
    pub(super) fn expects_none(&self) -> bool {
        self.expected.is_empty()
    }

    /// A range has been swept. `replicas`: its replicas in order; `repaired`: those that lack nothing any longer; `whole`: those
    /// with a whole store that were read to the end; `failed`: some record could not be read or merged.
    pub(super) fn range(
        &mut self,
        replicas: &[NodeId],
        factors: &[u8],
        repaired: &[&NodeId],
        whole: &[&NodeId],
        failed: bool,
    ) {
        for (node, (_, why)) in &mut self.expected {
            let Some(place) = replicas.iter().position(|replica| replica == node) else { continue };
            if why.is_some() {
                continue;
            }
            if !repaired.contains(&node) {
                *why = Some("it did not take part in every range".to_owned());
            } else if failed {
                *why = Some("records could not be read or merged".to_owned());
            } else {
                *why = factors.iter().find_map(|factor| too_few(replicas, place, *factor, whole));
            }
        }
    }

    /// As [`Self::range`], but accepts the loss of whatever the other replicas lack.
    pub(super) fn range_with_loss(&mut self, replicas: &[NodeId], repaired: &[&NodeId]) {
        for (node, (_, why)) in &mut self.expected {
            if replicas.contains(node) && !repaired.contains(&node) {
                *why = Some("it did not take part in every range".to_owned());
            }
        }
    }

    /// Believes no store, for this reason.
    pub(super) fn spoil(&mut self, reason: &str) {
        self.expected.values_mut().for_each(|(_, why)| *why = Some(reason.to_owned()));
    }

    /// Returns the stores that may be believed, and those that may not, with the reason.
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

/// Why the replica at index `place` may lack keys with this replication factor; `None` if it cannot.
fn too_few(replicas: &[NodeId], place: usize, factor: u8, whole: &[&NodeId]) -> Option<String> {
    let members = &replicas[..replicas.len().min(usize::from(factor))];
    if place >= members.len() {
        return None;
    }
    let others = members.iter().enumerate().filter(|(index, node)| *index != place && whole.contains(node)).count();
    let needed = usize::from(whole_needed(factor));
    (others < needed && !Fault::TooFewBelieved.is_on()).then(|| {
        format!("keys with {factor} replicas need {needed} other whole replicas in every range, and {others} took part")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::new(name).unwrap()).collect()
    }

    /// Whether "c", the third of five replicas, may be believed.
    fn believed(factors: &[u8], repaired: &[&str], whole: &[&str], failed: bool) -> bool {
        let replicas = nodes(&["a", "b", "c", "d", "e"]);
        let mut sound = Sound::default();
        sound.expect(NodeId::new("c").unwrap(), StoreId([1; 16]));
        let (repaired, whole) = (nodes(repaired), nodes(whole));
        let (repaired, whole) = (repaired.iter().collect::<Vec<_>>(), whole.iter().collect::<Vec<_>>());
        sound.range(&replicas, factors, &repaired, &whole, failed);
        sound.close().1.is_empty()
    }

    #[test]
    fn enough_other_whole_replicas_must_have_taken_part() {
        assert!(believed(&[3], &["c"], &["a", "b"], false));
        assert!(!believed(&[3], &["c"], &["a", "d", "e"], false), "d and e are not replicas at factor 3");
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
