//! What the loss of a zone would mean for the keys of a ring.

use std::collections::BTreeMap;

use crate::name::{NodeId, Zone};
use crate::ring::{Member, Ring};
use crate::tenant::Level;

/// For each zone that has a node, the share of all keys of which no quorum of replicas would be left without it.
pub fn lost_with_each(members: &[Member], replication_factor: u8) -> BTreeMap<Zone, f64> {
    let zones: BTreeMap<&NodeId, &Zone> = members.iter().map(|member| (&member.node, &member.zone)).collect();
    let mut lost: BTreeMap<Zone, f64> = members.iter().map(|member| (member.zone.clone(), 0.0)).collect();
    for range in Ring::of(members, 0).replica_ranges(&[replication_factor]) {
        let needed = usize::from(Level::Quorum.required(range.replicas.len() as u8));
        let of: Vec<&Zone> = range.replicas.iter().map(|node| zones[node]).collect();
        for (zone, share) in &mut lost {
            let left = of.iter().filter(|of| **of != zone).count();
            if left < needed {
                *share += (range.to - range.from) as f64 / 2f64.powi(64);
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32, zone: &str) -> Member {
        let node = NodeId::new(format!("n{node}")).unwrap();
        Member { node, virtual_nodes: 50, zone: Zone::new(zone).unwrap() }
    }

    fn lost(members: &[Member], replication_factor: u8) -> Vec<(String, f64)> {
        let lost = lost_with_each(members, replication_factor).into_iter();
        lost.map(|(zone, share)| (zone.as_str().to_owned(), (share * 1000.0).round() / 1000.0)).collect()
    }

    #[test]
    fn three_zones_survive_the_loss_of_any_and_two_do_not() {
        let of = |zones: u32| (0..6).map(|n| member(n, &format!("z{}", n % zones))).collect::<Vec<_>>();
        let none = |zone: &str| (zone.to_owned(), 0.0);
        assert_eq!(lost(&of(3), 3), [none("z0"), none("z1"), none("z2")]);
        assert_eq!(lost(&of(3), 1).iter().map(|(_, share)| share).sum::<f64>().round(), 1.0, "each key is in one");
        let two = lost(&of(2), 3);
        assert!((two[0].1 + two[1].1 - 1.0).abs() < 0.01, "two of three replicas are in one of them: {two:?}");
        assert!(two.iter().all(|(_, share)| *share > 0.2), "{two:?}");
        assert_eq!(lost(&of(2), 2), [("z0".to_owned(), 1.0), ("z1".to_owned(), 1.0)]);
        assert_eq!(lost(&[], 3), []);
    }

    #[test]
    fn nodes_without_a_zone_are_one() {
        let members = [member(0, ""), member(1, ""), member(2, "a"), member(3, "b")];
        let lost = lost(&members, 3);
        assert_eq!(lost, [(String::new(), 0.0), ("a".to_owned(), 0.0), ("b".to_owned(), 0.0)]);
    }
}
