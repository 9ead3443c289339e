//! Replicas lie in different zones, as far as there are zones: the ring against a naive walk, and what must hold of every ring with zones.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use witan_kernel::limit::MAX_REPLICAS;
use witan_kernel::name::{NodeId, TenantId, Zone};
use witan_kernel::placement::entering;
use witan_kernel::ring::{Member, Ring, position, token};

fn member(id: impl AsRef<str>, virtual_nodes: u32, zone: &str) -> Member {
    let node = NodeId::new(id).expect("a node id");
    Member { node, virtual_nodes, zone: Zone::new(zone).expect("a zone") }
}

/// The distinct nodes clockwise from a token, each with its zone.
fn clockwise(members: &[Member], token: u64) -> Vec<(NodeId, Zone)> {
    let of = |member: &Member| {
        let node = member.clone();
        (0..member.virtual_nodes).map(move |index| (position(&node.node, index), node.node.clone(), node.zone.clone()))
    };
    let mut points: Vec<_> = members.iter().flat_map(of).collect();
    points.sort();
    let start = points.iter().position(|(at, ..)| *at >= token).unwrap_or(0);
    points.rotate_left(start);
    let mut found: Vec<(NodeId, Zone)> = Vec::new();
    for (_, node, zone) in points {
        if !found.iter().any(|(known, _)| *known == node) {
            found.push((node, zone));
        }
    }
    found
}

/// The rule as it is written down: a walk in rounds, each of which takes at most one node of each zone, until all are listed.
fn in_rounds(mut left: Vec<(NodeId, Zone)>) -> Vec<(NodeId, Zone)> {
    let mut listed = Vec::new();
    while !left.is_empty() {
        let mut taken = BTreeSet::new();
        let (now, later) = left.into_iter().partition(|(_, zone)| taken.insert(zone.clone()));
        listed.extend::<Vec<_>>(now);
        left = later;
    }
    listed
}

fn nodes(of: &[(NodeId, Zone)]) -> Vec<NodeId> {
    of.iter().map(|(node, _)| node.clone()).collect()
}

fn clusters() -> impl Strategy<Value = Vec<Member>> {
    let zone = prop_oneof![3 => (0..6u32).prop_map(|zone| format!("z{zone}")), 1 => Just(String::new())];
    let weight = prop_oneof![Just(0u32), Just(1), 1..30u32];
    proptest::collection::btree_map(0..40u32, (weight, zone), 1..14).prop_map(|nodes| {
        nodes.into_iter().map(|(id, (weight, zone))| member(format!("n{id}"), weight, &zone)).collect()
    })
}

proptest! {
    #[test]
    fn the_ring_lists_what_a_walk_in_rounds_finds(members in clusters(), tokens in proptest::collection::vec(any::<u64>(), 20)) {
        let ring = Ring::of(&members, 1);
        let positions = members.iter().flat_map(|member| (0..member.virtual_nodes).map(|index| position(&member.node, index)));
        let tokens = tokens.into_iter().chain(positions.take(20)).chain([0, u64::MAX]);
        for token in tokens {
            let expected = nodes(&in_rounds(clockwise(&members, token)));
            for rf in 0..=MAX_REPLICAS {
                // Each list is the beginning of the next one.
                prop_assert_eq!(&ring.replicas(token, rf as u8)[..], &expected[..rf.min(expected.len())]);
            }
        }
    }

    #[test]
    fn replicas_are_in_as_many_zones_as_there_are_and_evenly(members in clusters(), token: u64, rf in 1..=5u8) {
        let ring = Ring::of(&members, 1);
        let all: Vec<&Member> = members.iter().filter(|member| member.virtual_nodes > 0).collect();
        let zone_of = |node: &NodeId| all.iter().find(|member| member.node == *node).map(|member| &member.zone);
        let has: BTreeMap<&Zone, usize> =
            all.iter().fold(BTreeMap::new(), |mut has, member| { *has.entry(&member.zone).or_default() += 1; has });
        let replicas = ring.replicas(token, rf);
        let mut taken: BTreeMap<&Zone, usize> = has.keys().map(|zone| (*zone, 0)).collect();
        replicas.iter().for_each(|node| *taken.entry(zone_of(node).unwrap()).or_default() += 1);
        let first: BTreeSet<_> = replicas.iter().take(has.len()).map(|node| zone_of(node).unwrap()).collect();
        prop_assert_eq!(first.len(), usize::from(rf).min(has.len()), "the first are in different zones");
        for (one, of_one) in &taken {
            for (other, of_other) in taken.iter().filter(|(zone, count)| **count < has[*zone]) {
                prop_assert!(*of_one < of_other + 2, "{} has {}, and {} has {} of {}", one, of_one, other, of_other, has[other]);
            }
        }
    }

    /// Golden vectors of rings without zones are in ring.rs.
    #[test]
    fn one_zone_is_as_good_as_none(members in clusters(), token: u64, rf in 1..=5u8) {
        let without: Vec<(NodeId, u32)> = members.iter().map(|member| (member.node.clone(), member.virtual_nodes)).collect();
        let one: Vec<Member> = members.iter().map(|of| Member { zone: Zone::new("only").unwrap(), ..of.clone() }).collect();
        let ring = Ring::new(&without, 1);
        prop_assert_eq!(&ring, &Ring::of(&one, 1));
        let expected = nodes(&clockwise(&members, token));
        prop_assert_eq!(&ring.replicas(token, rf)[..], &expected[..expected.len().min(rf.into())]);
    }
}

/// Computed without the ring, by golden/ring.py.
#[test]
fn rings_with_zones_are_pinned() {
    let members: Vec<Member> = (0..9).map(|n| member(format!("node-{n}"), 150, ["a", "b", ""][n % 3])).collect();
    let ring = Ring::of(&members, 1);
    let of = |key: &str| {
        let at = token(&TenantId::new("acme").expect("a tenant id"), key.as_bytes());
        ring.replicas(at, 5).iter().map(NodeId::as_str).collect::<Vec<_>>().join(",")
    };
    assert_eq!(of("key-0"), "node-8,node-7,node-3,node-4,node-0");
    assert_eq!(of("key-1"), "node-0,node-2,node-1,node-5,node-7");
    assert_eq!(of("key-2"), "node-2,node-3,node-4,node-5,node-0");
}

/// What each node receives by a change, as a share of all copies.
fn received(before: &[Member], after: &[Member], rf: u8) -> BTreeMap<NodeId, f64> {
    let (old, new) = (Ring::of(before, 1), Ring::of(after, 2));
    let width = |(first, last): &(u64, u64)| ((last - first) as f64 + 1.0) / 2f64.powi(64);
    let all = entering((&old, rf), (&new, rf)).into_iter();
    all.map(|(node, tokens)| (node, tokens.iter().map(width).sum::<f64>() / f64::from(rf))).collect()
}

proptest! {
    #[test]
    fn a_node_that_joins_or_gets_more_weight_receives_all_that_moves(
        before in clusters(),
        index: proptest::sample::Index,
        more in 1..20u32,
        zone in 0..8u32,
        rf in 1..=5u8,
    ) {
        let joined = [before.clone(), vec![member("new", more, &format!("z{zone}"))]].concat();
        let mut heavier = before.clone();
        let grown = index.get(&before).node.clone();
        heavier.iter_mut().filter(|member| member.node == grown).for_each(|member| member.virtual_nodes += more);
        // With fewer nodes than replicas, there is nobody whose place it could take.
        for (after, node) in [(joined, NodeId::new("new").unwrap()), (heavier, grown)] {
            let others = received(&before, &after, rf).into_keys().filter(|receives| *receives != node).count();
            prop_assert_eq!(others, 0);
            // The reverse, a node that leaves or gets less weight, is the only one that loses anything.
            let (with, without) = (Ring::of(&after, 2), Ring::of(&before, 1));
            prop_assert!(entering((&without, rf), (&with, rf)).into_keys().all(|receives| receives == node));
        }
    }
}

/// What docs/operators.md says of it.
#[test]
fn a_node_that_joins_a_zone_receives_its_share_of_what_its_zone_has() {
    for (zones, each) in [(3, 1), (3, 2), (3, 4), (3, 20)] {
        let before: Vec<Member> =
            (0..zones * each).map(|n| member(format!("node-{n}"), 150, &format!("z{}", n % zones))).collect();
        let mut after = before.clone();
        after.push(member("new", 150, "z0"));
        let moved: f64 = received(&before, &after, 3).into_values().sum();
        let share = 1.0 / f64::from(zones * (each + 1));
        println!("{zones} zones of {each} nodes: {moved:.3} of all copies move, and its share is {share:.3}");
        assert!((moved - share).abs() < share / 4.0, "{zones} zones of {each} nodes: {moved:.3}, not {share:.3}");
    }
}

/// A node that changes its zone: what it loses, and what it receives.
#[test]
fn nodes_that_are_spread_over_zones_move_less_than_everything() {
    for (name, zones) in [("six nodes, three zones", 3), ("six nodes, two zones", 2)] {
        let mut members: Vec<Member> = (0..6).map(|n| member(format!("node-{n}"), 150, "")).collect();
        let none = members.clone();
        let mut steps = 0.0;
        for n in 0..6 {
            let before = members.clone();
            members[n].zone = Zone::new(format!("z{}", n % zones)).unwrap();
            steps += received(&before, &members, 3).into_values().sum::<f64>();
        }
        let once: f64 = received(&none, &members, 3).into_values().sum();
        println!("{name}: {once:.3} of all copies move if they are set at once, {steps:.3} one after the other");
        assert!(once < 0.4);
    }
}

/// A node with one virtual node that is the only one of its zone is a replica of every key. No lookup depends on how far away it is: what
/// a position's tokens have is determined when the ring is made.
#[test]
fn a_node_apart_is_a_replica_of_every_key() {
    let of = |n: u32| if n == 0 { member("apart", 1, "apart") } else { member(format!("node-{n}"), 150, "z") };
    let begun = std::time::Instant::now();
    let ring = Ring::of(&(0..1000).map(of).collect::<Vec<_>>(), 1);
    println!("{} nodes in {:?}", ring.len(), begun.elapsed());
    let apart = NodeId::new("apart").unwrap();
    assert!((0..1000).all(|n| ring.replicas(token(&TenantId::new("t").unwrap(), &[n as u8, 1]), 2).contains(&apart)));
}
