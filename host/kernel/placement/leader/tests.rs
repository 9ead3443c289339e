use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::name::TenantId;
use crate::placement::Moving;

fn node(n: u32) -> NodeId {
    NodeId::new(format!("n{n}")).unwrap()
}

fn ring(nodes: std::ops::RangeInclusive<u32>) -> Arc<Ring> {
    let nodes: Vec<(NodeId, u32)> = nodes.map(|n| (node(n), 8)).collect();
    Arc::new(Ring::new(&nodes, 1))
}

/// Five nodes, one more, one less, and the same again under another number.
fn rings() -> Rings {
    Rings::new(vec![(0, ring(1..=5)), (1, ring(1..=6)), (2, ring(2..=6)), (3, ring(2..=6))])
}

fn placed(ring: u64, replication_factor: u8) -> Placed {
    Placed { ring, replication_factor, generation: 0 }
}

fn tenant(at: Placed, moving: Option<Moving>) -> Tenant {
    let id = TenantId::new("t").unwrap();
    let tenant = Tenant::with_defaults(id, at.replication_factor, 1);
    Tenant { ring: at.ring, moving, ..tenant }
}

/// What is next for a tenant of which nothing is left over.
fn next_of(tenant: &Tenant, target: Placed, done: Done, condition: impl Fn(&NodeId) -> NodeCondition) -> Do {
    let to = tenant.moving.map_or(target, |moving| moving.to);
    let plan = Plan::new(tenant.placed(), to, &rings());
    let at = Situation { tenant, target, plan: plan.as_ref(), left_over: &BTreeSet::new(), done };
    next(&at, condition)
}

fn usable(_: &NodeId) -> NodeCondition {
    NodeCondition::Usable
}

#[test]
fn a_move_begins_when_everybody_it_needs_is_there() {
    let (five, six) = (tenant(placed(0, 3), None), placed(1, 3));
    assert_eq!(next_of(&five, placed(0, 3), Done::default(), usable), Do::Settled);
    assert_eq!(next_of(&five, six, Done::default(), usable), Do::Publish(MoveTenant::Prepare(six)));
    for condition in [
        NodeCondition::Away,
        NodeCondition::OtherStore,
        NodeCondition::RetiredStore,
        NodeCondition::Old,
        NodeCondition::Lost,
    ] {
        let of = |id: &NodeId| if *id == node(6) { condition } else { NodeCondition::Usable };
        assert_eq!(next_of(&five, six, Done::default(), of), Do::Wait(Obstacle::Node(node(6), condition)));
    }
    // One that gets records needs room for them; it does not matter how full the others are.
    let full =
        |full: u32| move |id: &NodeId| if *id == node(full) { NodeCondition::TooFull } else { NodeCondition::Usable };
    let waits = next_of(&five, six, Done::default(), full(6));
    assert_eq!(waits, Do::Wait(Obstacle::Node(node(6), NodeCondition::TooFull)));
    assert_eq!(next_of(&five, six, Done::default(), full(1)), Do::Publish(MoveTenant::Prepare(six)));
    // A node that leaves may be away or lost, as long as the others of its ranges are there.
    let without = placed(2, 3);
    for condition in [NodeCondition::Away, NodeCondition::Lost] {
        let of = |id: &NodeId| if *id == node(1) { condition } else { NodeCondition::Usable };
        assert_eq!(next_of(&five, without, Done::default(), of), Do::Publish(MoveTenant::Prepare(without)));
    }
    // The only replica: its rows are waited for, unless they are lost.
    let one = tenant(placed(0, 1), None);
    let of = |condition| move |id: &NodeId| if *id == node(1) { condition } else { NodeCondition::Usable };
    let waits = next_of(&one, placed(2, 1), Done::default(), of(NodeCondition::Away));
    assert!(matches!(waits, Do::Wait(Obstacle::Sources { needed: 1, usable: 0, .. })), "{waits:?}");
    let goes_on = next_of(&one, placed(2, 1), Done::default(), of(NodeCondition::Lost));
    assert!(matches!(goes_on, Do::Publish(MoveTenant::Prepare(_))), "{goes_on:?}");
}

#[test]
fn a_node_that_has_rows_to_drop_does_not_get_others() {
    let five = tenant(placed(0, 3), None);
    let plan = Plan::new(five.placed(), placed(1, 3), &rings()).unwrap();
    let of = |nodes: &BTreeSet<NodeId>| {
        let at = Situation {
            tenant: &five,
            target: placed(1, 3),
            plan: Some(&plan),
            left_over: nodes,
            done: Done::default(),
        };
        next(&at, usable)
    };
    assert_eq!(of(&BTreeSet::from([node(6)])), Do::Wait(Obstacle::Leftover(node(6))));
    assert!(matches!(of(&BTreeSet::from([node(1)])), Do::Publish(MoveTenant::Prepare(_))), "it gets none");
}

#[test]
fn a_move_that_is_not_wanted_any_longer_is_given_up_unless_it_is_nearly_done() {
    let to = placed(1, 3);
    let at = |step| tenant(placed(0, 3), Some(Moving { to, step, prepared: 5, since: 7 }));
    let back = |step| next_of(&at(step), placed(0, 3), Done::default(), usable);
    assert_eq!(back(Step::Preparing), Do::Publish(MoveTenant::GiveUp(vec![])), "nobody has sent it anything");
    assert_eq!(back(Step::DualWrite), Do::Publish(MoveTenant::GiveUp(vec![node(6)])));
    assert_eq!(back(Step::Cutover), Do::Drain(7));
    let failed = Done { failed: true, ..Done::under(7) };
    let gives_up = next_of(&at(Step::Cutover), to, failed, usable);
    assert_eq!(gives_up, Do::Publish(MoveTenant::GiveUp(vec![node(6)])));
    let of_before = Done { failed: true, ..Done::under(6) };
    assert_eq!(next_of(&at(Step::Cutover), to, of_before, usable), Do::Drain(7), "of another step");
}

/// To another generation, on the same nodes: every row of each is another one.
#[test]
fn a_swap_moves_everything_of_the_same_nodes() {
    let five = tenant(placed(0, 3), None);
    let to = Placed { generation: 1, ..placed(0, 3) };
    let plan = Plan::new(five.placed(), to, &rings()).unwrap();
    let all: BTreeSet<NodeId> = (1..=5).map(node).collect();
    assert!(plan.is_swap() && !plan.moves_nothing());
    assert_eq!((plan.old_nodes(), plan.new_nodes()), (all.clone(), all.clone()));
    for of in [&plan.entering, &plan.leaving] {
        assert!(of.values().all(|tokens| *tokens == [(0, u64::MAX)]) && of.keys().eq(&all));
    }
    assert_eq!((plan.ranges[0].tokens.0, plan.ranges.last().unwrap().tokens.1), (0, u64::MAX));
    assert!(plan.ranges.iter().all(|range| range.old.len() == 3 && range.new.is_empty()));
    // It waits for whatever is left anywhere, and every node has to have room.
    let left_over = BTreeSet::from([node(2)]);
    let at = Situation { tenant: &five, target: to, plan: Some(&plan), left_over: &left_over, done: Done::default() };
    assert_eq!(next(&at, usable), Do::Wait(Obstacle::Leftover(node(2))));
    let full = |id: &NodeId| if *id == node(4) { NodeCondition::TooFull } else { NodeCondition::Usable };
    assert!(matches!(next_of(&five, to, Done::default(), full), Do::Wait(Obstacle::Node(_, NodeCondition::TooFull))));
    assert_eq!(next_of(&five, to, Done::default(), usable), Do::Publish(MoveTenant::Prepare(to)));
}

/// Not wanted any longer, it is given up in its last step too: no number is used again, so there would be no way back.
#[test]
fn a_swap_that_is_taken_back_is_given_up_in_each_step() {
    let to = Placed { generation: 1, ..placed(0, 3) };
    let at = |step| tenant(placed(0, 3), Some(Moving { to, step, prepared: 5, since: 7 }));
    for step in [Step::DualWrite, Step::Cutover] {
        let given_up = next_of(&at(step), placed(0, 3), Done::default(), usable);
        assert_eq!(given_up, Do::Publish(MoveTenant::GiveUp((1..=5).map(node).collect())), "{step:?}");
    }
    // Another ring meanwhile is no reason.
    let elsewhere = Placed { generation: 1, ..placed(1, 3) };
    assert_eq!(next_of(&at(Step::Cutover), elsewhere, Done::default(), usable), Do::Drain(7));
    let copied = Done { drained: true, completed: true, verified: true, ..Done::under(7) };
    let finished = next_of(&at(Step::Cutover), to, copied, usable);
    assert_eq!(finished, Do::Publish(MoveTenant::Finish((1..=5).map(node).collect())));
}

#[test]
fn what_changes_no_replicas_copies_nothing() {
    let to = placed(3, 3);
    let of = |moving| next_of(&tenant(placed(2, 3), moving), to, Done::default(), |_| NodeCondition::Away);
    let at = |step| of(Some(Moving { to, step, prepared: 5, since: 7 }));
    assert_eq!(of(None), Do::Publish(MoveTenant::Prepare(to)));
    assert_eq!(at(Step::Preparing), Do::Publish(MoveTenant::DualWrite));
    assert_eq!(at(Step::DualWrite), Do::Publish(MoveTenant::Cutover));
    assert_eq!(at(Step::Cutover), Do::Publish(MoveTenant::Finish(vec![])));
}

#[test]
fn a_record_is_copied_when_all_that_enter_and_a_quorum_have_it() {
    let nodes = |all: &[u32]| all.iter().map(|n| node(*n)).collect::<Vec<_>>();
    let is = |old: &[u32], new: &[u32], has: &[u32]| {
        let range = Both { tokens: (0, 1), old: nodes(old), new: nodes(new) };
        is_copied(&range, |node| nodes(has).contains(node))
    };
    assert!(is(&[1, 2, 3], &[2, 3, 4], &[4, 2]) && !is(&[1, 2, 3], &[2, 3, 4], &[2, 3]) && !is(&[1], &[1, 2, 3], &[2]));
    assert!(is(&[1], &[1, 2, 3], &[2, 3]) && is(&[1, 2, 3, 4, 5], &[1, 2, 3], &[1, 3]));
    assert!(!is(&[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5, 1]));
    assert_eq!((1..=5).map(|n| sources_wanted(&nodes(&[1, 2, 3, 4, 5][..n]), |_| false)).sum::<usize>(), 9);
    assert_eq!(sources_wanted(&nodes(&[1, 2, 3]), |id| *id != node(2)), 1, "what only the others had is lost");
    assert_eq!(sources_wanted(&nodes(&[1]), |_| true), 0);
}

#[test]
fn lost_rows_are_cut_by_their_present_replicas() {
    let (five, six) = (ring(1..=5), ring(1..=6));
    let lost = entering((&six, 3), (&five, 3)).remove(&node(2)).unwrap();
    let ranges = lost_rows(&node(2), &lost, (&six, 3));
    let tokens = |ranges: &[Tokens]| ranges.iter().map(|(a, b)| u128::from(b - a) + 1).sum::<u128>();
    assert_eq!(tokens(&ranges.iter().map(|range| range.tokens).collect::<Vec<_>>()), tokens(&lost));
    for Both { tokens: (first, last), old, new } in ranges {
        assert_eq!(old, [node(2)]);
        for token in [first, last] {
            assert!(lost.iter().any(|(a, b)| (*a..=*b).contains(&token)));
            let own: BTreeSet<NodeId> = six.replicas(token, 3).into_iter().collect();
            assert_eq!(new.iter().cloned().collect::<BTreeSet<_>>(), own);
        }
    }
}

/// What happens to a leader, and around it.
#[derive(Debug, Clone)]
enum Event {
    /// It does what is next, which ends so.
    Acts(End),
    /// Another one takes over.
    TakenOver,
    /// The tenant is to be somewhere else.
    Wanted(u64, u8),
    /// Something else of the tenant is changed.
    Changed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    /// It has to be repeated.
    Repeat,
    Stale,
    Fails,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let end = prop_oneof![8 => Just(End::Well), 1 => Just(End::Repeat), 1 => Just(End::Stale), 1 => Just(End::Fails)];
    let event = prop_oneof![
        16 => end.prop_map(Event::Acts),
        1 => Just(Event::TakenOver),
        1 => (0..4_u64, 1..=5_u8).prop_map(|(ring, factor)| Event::Wanted(ring, factor)),
        1 => Just(Event::Changed),
    ];
    proptest::collection::vec(event, 0..120)
}

/// A metadata store with one tenant, its leader, and what has been done in truth.
struct World {
    tenant: Tenant,
    newest: u64,
    revision: u64,
    done: Done,
    /// The epoch of the last complete preparation.
    prepared: u64,
    /// The step for which the present leader has copied everything, and has verified it.
    completed: (u64, bool),
}

impl World {
    fn plan(&self, to: Placed) -> Plan {
        Plan::new(self.tenant.placed(), to, &rings()).unwrap()
    }

    fn act(&mut self, end: End) -> Do {
        let target = target(&self.tenant, self.newest);
        let doing = next_of(&self.tenant, target, self.done, usable);
        if let Some(moving) = self.tenant.moving {
            self.done = self.done.of(moving.since);
        }
        let is_well = end == End::Well;
        match &doing {
            Do::Publish(step) => self.publish(step.clone()),
            Do::Settled | Do::Wait(_) => {}
            _ if end == End::Fails => self.done.failed = true,
            Do::Prepare(epoch) => {
                assert_eq!(self.tenant.moving.map(|moving| moving.since), Some(*epoch));
                (self.done.prepared, self.done.stale) = (is_well, end == End::Stale);
                self.prepared = if is_well { *epoch } else { self.prepared };
            }
            Do::Copy => self.done.copied = is_well,
            Do::Drain(_) => self.done.drained = is_well,
            Do::Complete(epoch) => {
                self.done.completed = is_well;
                self.completed = if is_well { (*epoch, false) } else { self.completed };
            }
            Do::Verify(prepared) => {
                assert_eq!(*prepared, self.prepared);
                self.done.verified = is_well;
                self.completed.1 = is_well;
            }
        }
        doing
    }

    /// The rule of the metadata store, and what must have been done before each step.
    fn publish(&mut self, step: MoveTenant) {
        self.revision += 1;
        let since = self.revision;
        let moving = self.tenant.moving;
        match (step, moving) {
            (MoveTenant::Prepare(to), None) => {
                self.tenant.moving = Some(Moving { to, step: Step::Preparing, prepared: since, since });
            }
            (MoveTenant::Prepare(to), Some(moving)) if moving.step == Step::Preparing && moving.to == to => {
                self.tenant.moving = Some(Moving { prepared: since, since, ..moving });
            }
            (MoveTenant::DualWrite, Some(moving)) if moving.step == Step::Preparing => {
                assert!(self.prepared == moving.prepared || self.plan(moving.to).moves_nothing());
                self.tenant.moving = Some(Moving { step: Step::DualWrite, since, ..moving });
            }
            (MoveTenant::Cutover, Some(moving)) if moving.step == Step::DualWrite => {
                self.tenant.moving = Some(Moving { step: Step::Cutover, since, ..moving });
            }
            (MoveTenant::Finish(nodes), Some(moving)) if moving.step == Step::Cutover => {
                let plan = self.plan(moving.to);
                assert!(self.completed == (moving.since, true) || plan.moves_nothing());
                assert_eq!(nodes, plan.leaving.keys().cloned().collect::<Vec<_>>());
                let (before, now) = (self.tenant.replication_factor, moving.to.replication_factor);
                (self.tenant.ring, self.tenant.replication_factor) = (moving.to.ring, now);
                // A wish that was taken back meanwhile leads back.
                self.tenant.wanted_factor =
                    Some(self.tenant.wanted_factor.unwrap_or(before)).filter(|wanted| *wanted != now);
                self.tenant.moving = None;
            }
            (MoveTenant::GiveUp(nodes), Some(moving)) => {
                let entered = self.plan(moving.to).entering.into_keys().collect::<Vec<_>>();
                assert_eq!(nodes, if moving.step == Step::Preparing { vec![] } else { entered });
                self.tenant.moving = None;
            }
            (step, moving) => panic!("{step:?} does not follow from {moving:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_step_is_published_before_what_it_rests_on(events in events(), ring in 0..4_u64, factor in 1..=5_u8, goes_on: bool) {
        let mut world = World {
            tenant: tenant(placed(ring, factor), None),
            newest: ring,
            revision: 10,
            done: Done::default(),
            prepared: 0,
            completed: (0, false),
        };
        for event in events {
            match event {
                Event::Acts(end) => drop(world.act(end)),
                Event::TakenOver => (world.done, world.completed) = (Done::default(), (0, false)),
                Event::Wanted(newest, factor) => {
                    // A ring never has an earlier number.
                    world.newest = world.newest.max(newest);
                    world.tenant.wanted_factor = Some(factor).filter(|factor| *factor != world.tenant.replication_factor);
                }
                Event::Changed => world.revision += 1,
            }
        }
        if goes_on {
            world.done = Done::default();
        }
        // Nothing fails any longer: it gets there, also if a move has to be given up first, and another one to be made after it.
        let target = target(&world.tenant, world.newest);
        let settles = (0..40).any(|_| world.act(End::Well) == Do::Settled);
        prop_assert!(settles, "{:?}", world.tenant);
        prop_assert_eq!(world.tenant.placed(), target);
        prop_assert_eq!(world.tenant.moving, None);
    }

    #[test]
    fn what_is_done_is_done_under_one_step(since: u64, later: u64, copied: bool) {
        let done = Done { copied, ..Done::under(since) };
        prop_assert_eq!(done.of(later).copied, copied && since == later);
    }

    #[test]
    fn a_plan_covers_all_tokens(from in 0..4_u64, to in 0..4_u64, old in 1..=5_u8, new in 1..=5_u8, token in any::<u64>()) {
        let plan = Plan::new(placed(from, old), placed(to, new), &rings()).unwrap();
        let Some(range) = plan.ranges.iter().find(|range| (range.tokens.0..=range.tokens.1).contains(&token)) else {
            let rings = rings();
            let sorted = |placed: u64, factor| {
                rings.version(placed).unwrap().replicas(token, factor).into_iter().collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(sorted(from, old), sorted(to, new), "only what changes is left out");
            return Ok(());
        };
        for id in range.new.iter().filter(|id| !range.old.contains(id)) {
            prop_assert!(plan.entering[id].iter().any(|(a, b)| (*a..=*b).contains(&token)));
        }
        for id in range.old.iter().filter(|id| !range.new.contains(id)) {
            prop_assert!(plan.leaving[id].iter().any(|(a, b)| (*a..=*b).contains(&token)));
        }
        prop_assert_eq!(plan.moves_nothing(), plan.ranges.iter().all(|range| {
            range.old.iter().collect::<BTreeSet<_>>() == range.new.iter().collect::<BTreeSet<_>>()
        }));
    }
}

mod steps;
