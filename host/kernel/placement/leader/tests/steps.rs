//! Each step by itself, and each obstacle.

use super::*;

fn nodes(all: &[u32]) -> Vec<NodeId> {
    all.iter().map(|n| node(*n)).collect()
}

fn range(old: &[u32], new: &[u32]) -> Both {
    Both { tokens: (0, u64::MAX), old: nodes(old), new: nodes(new) }
}

/// A plan for all tokens at once.
fn plan(old: &[u32], new: &[u32]) -> Plan {
    let rows = |of: &[u32], not: &[u32]| {
        of.iter().filter(|n| !not.contains(n)).map(|n| (node(*n), vec![(0, u64::MAX)])).collect()
    };
    let (from, to) = (placed(0, old.len() as u8), placed(1, new.len() as u8));
    Plan { from, to, ranges: vec![range(old, new)], entering: rows(new, old), leaving: rows(old, new) }
}

#[test]
fn a_move_goes_through_its_steps_in_order() {
    let to = placed(1, 3);
    let at = |step| tenant(placed(0, 3), Some(Moving { to, step, prepared: 5, since: 7 }));
    let none = Done::under(7);
    let of = |step, done| next_of(&at(step), to, done, usable);
    assert_eq!(of(Step::Preparing, none), Do::Drain(7));
    let drained = Done { drained: true, ..none };
    assert_eq!(of(Step::Preparing, drained), Do::Prepare(5));
    let prepared = Done { prepared: true, ..drained };
    assert_eq!(of(Step::Preparing, prepared), Do::Publish(MoveTenant::DualWrite));
    assert_eq!(of(Step::Preparing, Done { stale: true, ..prepared }), Do::Publish(MoveTenant::Prepare(to)));
    assert_eq!(of(Step::Preparing, Done { failed: true, ..prepared }), Do::Publish(MoveTenant::GiveUp(vec![])));
    assert_eq!(of(Step::DualWrite, none), Do::Copy);
    assert_eq!(of(Step::DualWrite, Done { copied: true, ..none }), Do::Publish(MoveTenant::Cutover));
    assert_eq!(of(Step::Cutover, none), Do::Drain(7));
    assert_eq!(of(Step::Cutover, drained), Do::Complete(7));
    let completed = Done { completed: true, ..drained };
    assert_eq!(of(Step::Cutover, completed), Do::Verify(5));
    let leaving = Plan::new(placed(0, 3), to, &rings()).unwrap().leaving.into_keys().collect();
    let verified = Done { verified: true, ..completed };
    assert_eq!(of(Step::Cutover, verified), Do::Publish(MoveTenant::Finish(leaving)));
    // Before it needs its coming replicas, they have to be there.
    let away = |id: &NodeId| if *id == node(6) { NodeCondition::Away } else { NodeCondition::Usable };
    let waits = next_of(&at(Step::DualWrite), to, Done { copied: true, ..none }, away);
    assert_eq!(waits, Do::Wait(Obstacle::Node(node(6), NodeCondition::Away)));
}

#[test]
fn nothing_is_done_for_a_tenant_that_was_deleted() {
    let (to, begins) = (placed(1, 3), tenant(placed(0, 3), None));
    let moving = tenant(placed(0, 3), Some(Moving { to, step: Step::DualWrite, prepared: 5, since: 7 }));
    for of in [begins, moving] {
        assert_ne!(next_of(&of, to, Done::default(), usable), Do::Settled);
        let deleted = Tenant { deleted_at_ms: Some(9), ..of };
        assert_eq!(next_of(&deleted, to, Done::default(), usable), Do::Settled);
    }
}

#[test]
fn a_ring_that_is_not_on_record_is_waited_for() {
    let to = placed(9, 3);
    assert_eq!(next_of(&tenant(placed(0, 3), None), to, Done::default(), usable), Do::Wait(Obstacle::UnknownRing));
    let at = |step| tenant(placed(0, 3), Some(Moving { to, step, prepared: 5, since: 7 }));
    for step in [Step::Preparing, Step::DualWrite, Step::Cutover] {
        assert_eq!(next_of(&at(step), to, Done::default(), usable), Do::Wait(Obstacle::UnknownRing), "{step:?}");
    }
    let given_up = next_of(&at(Step::Preparing), placed(0, 3), Done::default(), usable);
    assert_eq!(given_up, Do::Publish(MoveTenant::GiveUp(vec![])), "nobody has sent them anything");
}

#[test]
fn a_move_whose_nodes_get_too_many_ranges_does_not_begin() {
    let with = |ranges| {
        let mut plan = plan(&[1, 2, 3], &[1, 2, 4]);
        plan.entering.insert(node(4), vec![(0, 0); ranges]);
        plan.ready(usable)
    };
    assert_eq!((with(1), with(CLEARED_RANGES)), (Ok(()), Ok(())));
    for ranges in [CLEARED_RANGES + 1, CLEARED_RANGES + 2] {
        assert_eq!(with(ranges), Err(Obstacle::TooManyRanges(node(4))));
    }
}

#[test]
fn too_few_sources_are_named_with_what_they_are() {
    let plan = plan(&[1, 2, 3], &[4, 5, 6]);
    let of = |usable: &'static [u32]| {
        plan.ready(move |id| {
            let is_usable = *id == node(4) || *id == node(5) || *id == node(6) || nodes(usable).contains(id);
            if is_usable { NodeCondition::Usable } else { NodeCondition::Away }
        })
    };
    assert_eq!((of(&[1, 2]), of(&[1, 2, 3])), (Ok(()), Ok(())));
    let away = |n| (node(n), NodeCondition::Away);
    assert_eq!(of(&[2]), Err(Obstacle::Sources { needed: 2, usable: 1, nodes: vec![away(1), away(3)] }));
    // One that is only too full can be read.
    let full =
        |id: &NodeId| if nodes(&[1, 2, 3]).contains(id) { NodeCondition::TooFull } else { NodeCondition::Usable };
    assert_eq!(plan.ready(full), Ok(()));
}

#[test]
fn a_range_is_fenced_where_enough_of_its_replicas_are() {
    let is = |old: &[u32], lost: &[u32], has: &[u32]| {
        is_fenced(&range(old, &[]), |id| nodes(lost).contains(id), |id| nodes(has).contains(id))
    };
    assert!(is(&[1, 2, 3], &[], &[1, 3]) && is(&[1, 2, 3], &[], &[1, 2, 3]));
    assert!(!is(&[1, 2, 3], &[], &[2]) && !is(&[1, 2, 3], &[], &[2, 4, 5]), "others do not count");
    assert!(is(&[1, 2, 3], &[1, 2], &[3]) && !is(&[1, 2, 3], &[1, 2], &[]));
    assert!(is(&[1], &[1], &[]) && !is(&[1], &[], &[]));
}

#[test]
fn a_quorum_is_more_than_half() {
    assert_eq!((1..=5).map(quorum_of).collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
    assert_eq!((1..=5).map(|n| quorum(&nodes(&[1, 2, 3, 4, 5][..n]))).collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
}

#[test]
fn lost_rows_are_found_at_both_ends_of_a_range() {
    let six = ring(1..=6);
    for range in six.replica_ranges(&[3]) {
        let (from, to) = (range.from, range.to);
        for lost in [[(from, from)], [(to, to)], [(from, to)]] {
            let of = lost_rows(&node(9), &lost, (&six, 3));
            let expected = Both { tokens: lost[0], old: nodes(&[9]), new: range.replicas.to_vec() };
            assert_eq!(of, [expected]);
        }
        if let Some(after) = to.checked_add(1) {
            let of = lost_rows(&node(9), &[(to, after)], (&six, 3));
            assert_eq!(of.iter().map(|range| range.tokens).collect::<Vec<_>>(), [(to, to), (after, after)]);
        }
    }
    assert_eq!(lost_rows(&node(9), &[], (&six, 3)), []);
}

#[test]
fn obstacles_say_which_node_and_why() {
    let away = NodeCondition::Away;
    let sources = Obstacle::Sources { needed: 2, usable: 1, nodes: vec![(node(1), away), (node(3), away)] };
    for (obstacle, says) in [
        (Obstacle::Node(node(6), away), "waits for node n6: it cannot be reached"),
        (
            sources,
            "2 of the present replicas of each key can be read, and of some only 1 can (n1: it cannot be reached; n3: it",
        ),
        (Obstacle::Leftover(node(4)), "node n4 has handed over"),
        (Obstacle::UnknownRing, "version of the ring that it needs is on record"),
        (Obstacle::TooManyRanges(node(2)), "node n2 would get more than"),
    ] {
        let said = obstacle.to_string();
        assert!(said.contains(says), "{said}");
    }
    for (condition, says) in [
        (NodeCondition::Usable, "can be used"),
        (NodeCondition::TooFull, "placement.full_disk"),
        (NodeCondition::OtherStore, "witan nodes list"),
        (NodeCondition::RetiredStore, "was retired"),
        (NodeCondition::Old, "upgrade it"),
        (NodeCondition::Lost, "taken for lost"),
    ] {
        assert!(condition.to_string().contains(says), "{condition}");
    }
}
