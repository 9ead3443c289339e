//! The ring against vectors computed without it (golden/ring.py), and what must hold of every ring.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use sha2::{Digest, Sha256};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::ring::{Ring, position, token};

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).expect("a tenant id")
}

fn node(id: impl AsRef<str>) -> NodeId {
    NodeId::new(id).expect("a node id")
}

fn named(ids: impl IntoIterator<Item = u32>) -> Vec<(NodeId, u32)> {
    ids.into_iter().map(|id| (node(format!("node-{id}")), 150)).collect()
}

fn replicas(ring: &Ring, token: u64, rf: u8) -> String {
    ring.replicas(token, rf).iter().map(NodeId::as_str).collect::<Vec<_>>().join(",")
}

#[test]
fn tokens_and_positions_are_pinned() {
    assert_eq!(token(&tenant("acme"), b"user:1"), 0x6280_bdc3_89ef_943b);
    assert_eq!(token(&tenant("acme"), b""), 0x775e_497b_fac5_ee4a);
    assert_eq!(token(&tenant("käse"), b"\x00\xff"), 0xd744_4423_5740_f260);
    assert_eq!(token(&tenant("a"), b"b:c"), 0xb0ee_04f8_80c4_ff42);
    assert_eq!(token(&tenant("carts"), b"cart-42"), 0x6684_b28b_954f_5e4d);
    assert_eq!(position(&node("node-1"), 0), 0xc6c1_ce78_abb8_c875);
    assert_eq!(position(&node("node-1"), 149), 0x1bec_5192_03c3_1bac);
    assert_eq!(position(&node("storage-node-3"), 7), 0x8556_6b4b_f61c_666d);
    assert_eq!(position(&node("a"), 0), 0x10ea_52a0_d704_9ffc);
}

#[test]
fn three_nodes_are_pinned() {
    let ring = Ring::new(&named([3, 1, 2]), 9);
    assert_eq!((ring.len(), ring.epoch(), ring.nodes()[0].as_str()), (3, 9, "node-1"));
    let of = |key: &str| replicas(&ring, token(&tenant("acme"), key.as_bytes()), 3);
    assert_eq!(of("user:1"), "node-2,node-1,node-3");
    assert_eq!(of("cart-42"), "node-2,node-1,node-3");
    assert_eq!(of("x"), "node-1,node-2,node-3");
    assert_eq!(of("y"), "node-3,node-1,node-2");
    // Both ends, and the positions themselves: a key at a position belongs to it, one after the last wraps.
    let (first, last) = (0x0047_dc31_6e50_5485, 0xfff6_19a6_2c28_6df1);
    for at in [0, first, last + 1, u64::MAX] {
        assert_eq!(replicas(&ring, at, 3), "node-3,node-1,node-2");
    }
    assert_eq!(replicas(&ring, last, 1), replicas(&ring, last - 1, 1));
}

#[test]
fn a_thousand_nodes_are_pinned() {
    let ring = Ring::new(&named(0..1000), 1);
    let mut lists = Sha256::new();
    for n in 0..2000 {
        let at = token(&tenant("acme"), format!("key-{n}").as_bytes());
        lists.update(replicas(&ring, at, 3));
        lists.update("\n");
    }
    let hex: String = lists.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "f657bacdb69c83d861b7dd932cdaa8847ee8c874bf426cf19e27ec66f6dd2bbb");
    let of = |key: &str| replicas(&ring, token(&tenant("acme"), key.as_bytes()), 5);
    assert_eq!(of("key-0"), "node-480,node-283,node-734,node-441,node-122");
    assert_eq!(of("key-1"), "node-459,node-855,node-59,node-954,node-989");
    assert_eq!(of("key-2"), "node-992,node-631,node-329,node-916,node-579");
}

#[test]
fn every_node_has_its_share() {
    let ring = Ring::new(&named(0..20), 1);
    let mut shares: BTreeMap<NodeId, u32> = BTreeMap::new();
    for n in 0..20_000 {
        for replica in ring.replicas(token(&tenant("t"), format!("{n}").as_bytes()), 3) {
            *shares.entry(replica).or_default() += 1;
        }
    }
    let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
    assert_eq!(shares.len(), 20);
    assert!(least > Some(3000 * 3 / 4) && most < Some(3000 * 5 / 4), "{least:?} to {most:?} of 3000");
}

#[test]
fn as_many_replicas_as_nodes_are_one_range() {
    let ring = Ring::new(&named([1, 2, 3]), 1);
    assert_eq!(ring.replica_ranges(&[3]).len(), 1);
    let pairs = ring.replica_ranges(&[2]);
    let wanted = pairs.windows(2).all(|pair| {
        let [a, b] = pair else { return false };
        !a.replicas.iter().all(|node| b.replicas.contains(node))
    });
    assert!(wanted && pairs.len() > 100 && pairs.len() < 450, "{}", pairs.len());
    assert!(ring.replica_ranges(&[1, 2, 3]).len() > pairs.len());
    assert!(Ring::new(&[], 1).replica_ranges(&[3]).is_empty() && ring.replica_ranges(&[]).is_empty());
    assert!(ring.replica_ranges(&[0]).is_empty(), "no factor");
}

#[test]
fn few_nodes_or_none() {
    assert!(Ring::new(&[], 0).replicas(7, 3).is_empty());
    assert!(Ring::new(&[], 0).is_empty());
    let idle = Ring::new(&[(node("a"), 0), (node("b"), 1), (node("b"), 9)], 0);
    assert!(!idle.is_empty());
    assert_eq!(replicas(&idle, 7, 3), "b");
    assert_eq!(replicas(&idle, 7, 0), "");
}

fn clusters() -> impl Strategy<Value = Vec<(NodeId, u32)>> {
    proptest::collection::btree_map(0..40u32, 1..40u32, 1..12)
        .prop_map(|nodes| nodes.into_iter().map(|(id, count)| (node(format!("n{id}")), count)).collect())
}

proptest! {
    #[test]
    fn replicas_are_distinct_and_as_many_as_can_be(nodes in clusters(), token: u64, rf in 1..=5u8) {
        let ring = Ring::new(&nodes, 1);
        let found = ring.replicas(token, rf);
        prop_assert_eq!(found.len(), usize::from(rf).min(nodes.len()));
        for (index, replica) in found.iter().enumerate() {
            prop_assert!(!found[..index].contains(replica));
        }
        prop_assert_eq!(&found[..1], &ring.replicas(token, 1)[..]);
    }

    #[test]
    fn a_new_node_takes_over_and_moves_nothing_else(nodes in clusters(), tokens in proptest::collection::vec(any::<u64>(), 50)) {
        let before = Ring::new(&nodes, 1);
        let mut more = nodes;
        more.push((node("new"), 20));
        let after = Ring::new(&more, 2);
        for token in tokens {
            let (old, new) = (before.replicas(token, 3), after.replicas(token, 3));
            let kept: Vec<_> = new.iter().filter(|replica| replica.as_str() != "new").collect();
            prop_assert_eq!(&kept[..], &old.iter().take(kept.len()).collect::<Vec<_>>()[..]);
        }
    }

    #[test]
    fn ranges_cover_the_ring_and_name_the_replicas_of_each_token(
        nodes in clusters(),
        factors in proptest::collection::btree_set(1..=5u8, 1..4),
        tokens in proptest::collection::vec(any::<u64>(), 50),
    ) {
        let ring = Ring::new(&nodes, 1);
        let factors: Vec<u8> = factors.into_iter().collect();
        let ranges = ring.replica_ranges(&factors);
        prop_assert_eq!((ranges[0].from, ranges[ranges.len() - 1].to), (0, u64::MAX));
        for pair in ranges.windows(2) {
            prop_assert_eq!(pair[0].to + 1, pair[1].from);
        }
        let ends = ranges.iter().flat_map(|range| [range.from, range.to]);
        for token in tokens.into_iter().chain(ends) {
            let range = ranges.iter().find(|range| (range.from..=range.to).contains(&token)).unwrap();
            for factor in &factors {
                let mut expected = ring.replicas(token, *factor);
                let mut found: Vec<NodeId> = range.replicas.iter().take(expected.len()).cloned().collect();
                expected.sort();
                found.sort();
                prop_assert_eq!(&found[..], &expected[..]);
            }
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(nodes in clusters()) {
        let mut turned = nodes.clone();
        turned.reverse();
        prop_assert_eq!(Ring::new(&nodes, 1), Ring::new(&turned, 1));
    }
}
