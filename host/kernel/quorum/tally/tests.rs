//! Tests of the tally: one set against a plain count, two sets against two tallies.

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::*;

#[test]
fn nothing_counts_twice() {
    let mut tally = Tally::new(3, 2);
    tally.ack(0);
    tally.ack(0);
    tally.fail(0, true);
    assert_eq!((tally.acks(), tally.open(), tally.progress()), (1, 2, Progress::Open));
    tally.fail(1, true);
    tally.fail(2, false);
    assert_eq!(tally.progress(), Progress::Short);
    assert!(!tally.certainly_nothing_done());
}

#[test]
fn a_failed_replica_is_not_waited_for() {
    let mut tally = Tally::new(3, 3);
    assert_eq!(tally.missing(), 3);
    tally.fail(1, false);
    assert_eq!(tally.missing(), 2, "more will never come");
    tally.ack(0);
    assert_eq!(tally.missing(), 1);
    tally.ack(2);
    assert_eq!(tally.missing(), 0);
}

#[test]
fn an_unknown_replica_changes_nothing() {
    let mut tally = Tally::new(3, 2);
    tally.ack(3);
    tally.ack(200);
    assert_eq!(tally.acks(), 0);
}

#[test]
fn both_sets_of_a_placement_change_must_be_met() {
    let mut tally = Tally::both(Quorum::of([0, 1, 2], 2), Quorum::of([2, 3, 4], 2));
    assert_eq!((tally.open(), tally.missing()), (5, 2));
    tally.ack(0);
    tally.ack(2);
    assert_eq!(tally.progress(), Progress::Open, "the new set has one of two");
    assert_eq!((tally.missing(), tally.received(), tally.required(), tally.acks()), (1, 1, 2, 2));
    assert!(tally.can_be_met_by(&[0, 2, 4]) && !tally.can_be_met_by(&[0, 1, 2]));
    let mut met = tally;
    met.ack(3);
    assert_eq!(met.progress(), Progress::Met);
    tally.fail(3, true);
    assert_eq!(tally.progress(), Progress::Open);
    tally.fail(4, true);
    assert_eq!(tally.progress(), Progress::Short, "one set out of reach is enough");
    assert!(tally.accepts(Shortfall::Accept(1)) && !tally.accepts(Shortfall::Accept(2)));
}

#[test]
fn no_shortfall_accepts_that_nobody_answered() {
    let mut tally = Tally::new(3, 2);
    assert_eq!([0, 1].map(|least| tally.accepts(Shortfall::Accept(least))), [false, false]);
    tally.ack(1);
    assert_eq!([0, 1, 2].map(|least| tally.accepts(Shortfall::Accept(least))), [false, true, false]);
    assert!(!tally.accepts(Shortfall::Fail));
}

#[test]
fn a_replica_that_is_named_twice_is_one() {
    assert_eq!(Quorum::of([0, 1, 0], 2), Quorum::of([0, 1], 2));
    let tally = Tally::new(3, 2);
    assert!(tally.can_be_met_by(&[0, 0, 2]) && !tally.can_be_met_by(&[0, 0]));
}

/// Replica, whether it acknowledged, whether a failure is certain.
type Event = (u8, bool, bool);

fn events() -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec((0u8..11, any::<bool>(), any::<bool>()), 0..24)
}

fn apply(tally: &mut Tally, (replica, acked, certain): Event) {
    if acked { tally.ack(replica) } else { tally.fail(replica, certain) }
}

/// What a tally of one set counts, written out without masks: each replica's first answer.
struct Plain {
    replicas: u8,
    required: u8,
    first: Vec<Event>,
}

impl Plain {
    fn apply(&mut self, event: Event) {
        if event.0 < self.replicas && self.first.iter().all(|(replica, ..)| *replica != event.0) {
            self.first.push(event);
        }
    }

    fn acks(&self) -> u8 {
        self.first.iter().filter(|(_, acked, _)| *acked).count() as u8
    }

    fn open(&self) -> u8 {
        self.replicas - self.first.len() as u8
    }

    fn progress(&self) -> Progress {
        if self.acks() >= self.required {
            Progress::Met
        } else if self.acks() + self.open() < self.required {
            Progress::Short
        } else {
            Progress::Open
        }
    }

    fn certainly_nothing_done(&self) -> bool {
        self.open() == 0 && self.first.iter().all(|(_, acked, certain)| !acked && *certain)
    }
}

proptest! {
    #[test]
    fn progress_is_final_once_every_replica_answered(events in events(), required in 1u8..=5) {
        let mut tally = Tally::new(5, required);
        let mut met = false;
        for event in events {
            apply(&mut tally, event);
            prop_assert!(!met || tally.progress() == Progress::Met, "met stays met");
            met = tally.progress() == Progress::Met;
        }
        for replica in 0..5 { tally.fail(replica, true) }
        prop_assert_eq!(tally.open(), 0);
        prop_assert!(tally.progress() != Progress::Open);
        prop_assert_eq!(tally.progress() == Progress::Met, tally.acks() >= required);
    }

    #[test]
    fn a_set_alone_is_a_plain_count(events in events(), replicas in 1u8..=8, required in 0u8..=9, least in 0u8..=5) {
        let mut tally = Tally::new(replicas, required);
        let mut plain = Plain { replicas, required, first: Vec::new() };
        for event in events {
            apply(&mut tally, event);
            plain.apply(event);
            let missing = required.saturating_sub(plain.acks()).min(plain.open());
            prop_assert_eq!((tally.progress(), tally.acks(), tally.open()), (plain.progress(), plain.acks(), plain.open()));
            prop_assert_eq!((tally.missing(), tally.required(), tally.received()), (missing, required, plain.acks()));
            prop_assert_eq!(tally.certainly_nothing_done(), plain.certainly_nothing_done());
            prop_assert_eq!(tally.accepts(Shortfall::Accept(least)), least > 0 && plain.acks() >= least);
            for replica in 0..12 {
                let answered = plain.first.iter().find(|(first, ..)| *first == replica);
                prop_assert_eq!(tally.is_open(replica), replica < replicas && answered.is_none());
                prop_assert_eq!(tally.has_acked(replica), answered.is_some_and(|(_, acked, _)| *acked));
            }
        }
    }

    #[test]
    fn two_sets_are_the_conjunction_of_two_tallies(
        events in events(),
        old in proptest::collection::btree_set(0u8..10, 1..=5),
        new in proptest::collection::btree_set(0u8..10, 1..=5),
        required in (1u8..=5, 1u8..=5),
        least in 1u8..=5,
    ) {
        let (old, new) = (Quorum::of(old, required.0), Quorum::of(new, required.1));
        let (mut both, mut a, mut b) = (Tally::both(old, new), Tally::of(old), Tally::of(new));
        for event in events {
            apply(&mut both, event);
            apply(&mut a, event);
            apply(&mut b, event);
            let expected = match (a.progress(), b.progress()) {
                (Progress::Met, Progress::Met) => Progress::Met,
                (Progress::Short, _) | (_, Progress::Short) => Progress::Short,
                _ => Progress::Open,
            };
            prop_assert_eq!(both.progress(), expected);
            prop_assert_eq!(both.missing(), a.missing().max(b.missing()));
            prop_assert_eq!(both.certainly_nothing_done(), a.certainly_nothing_done() && b.certainly_nothing_done());
            let accept = Shortfall::Accept(least);
            prop_assert_eq!(both.accepts(accept), a.accepts(accept) && b.accepts(accept));
            for replica in 0..12 {
                prop_assert_eq!(both.is_open(replica), a.is_open(replica) || b.is_open(replica));
                prop_assert_eq!(both.has_acked(replica), a.has_acked(replica) || b.has_acked(replica));
            }
            prop_assert_eq!(both.open() as usize, (0..12).filter(|replica| both.is_open(*replica)).count());
        }
    }
}
