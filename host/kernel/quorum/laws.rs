//! The laws of [`Round`], checked for every implementation with random answers, failures and waits.

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use smallvec::SmallVec;

use super::{Hedging, MergeRound, Next, PutRound, Quorum, ReadRound, Round, StampRound, Tally};
use crate::hook::Shortfall;
use crate::limit::PerReplica;
use crate::name::WriteId;
use crate::record::Encoded;
use crate::register::Stamp;
use crate::replica::{Answer, Ask, ReplicaError};
use crate::siblings::{VersionVector, Write};

/// What happens next to a round.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// One of the replicas that were asked and have not answered does what it was asked.
    Answers(usize),
    /// One of them fails.
    Fails(usize, bool),
    /// Any replica, asked or not, answered already or not, is reported once more.
    Stray(u8, bool),
    /// The moment that the round waits for comes.
    Waited,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => any::<usize>().prop_map(Event::Answers),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, certain)| Event::Fails(which, certain)),
        1 => (0u8..12, any::<bool>()).prop_map(|(replica, answers)| Event::Stray(replica, answers)),
        1 => any::<()>().prop_map(|()| Event::Waited),
    ];
    proptest::collection::vec(event, 0..30)
}

/// One set of replicas, or two that overlap or not.
fn sets() -> impl Strategy<Value = Vec<(Vec<u8>, u8)>> {
    let set = (proptest::sample::subsequence((0u8..6).collect::<Vec<_>>(), 1..=5), any::<u8>());
    let set = set.prop_map(|(members, required)| {
        let required = 1 + required % members.len() as u8;
        (members, required)
    });
    proptest::collection::vec(set, 1..=2)
}

fn shortfalls() -> impl Strategy<Value = Shortfall> {
    prop_oneof![any::<()>().prop_map(|()| Shortfall::Fail), (1u8..=3).prop_map(Shortfall::Accept)]
}

fn tally(sets: &[(Vec<u8>, u8)]) -> Tally {
    let quorum = |set: &(Vec<u8>, u8)| Quorum::of(set.0.iter().copied(), set.1);
    sets.get(1).map_or_else(|| Tally::of(quorum(&sets[0])), |second| Tally::both(quorum(&sets[0]), quorum(second)))
}

/// The answer that fits a request.
fn fitting(ask: &Ask) -> Answer {
    let record = Encoded(Bytes::from_static(b"r"));
    match ask {
        Ask::Stamp { .. } => Answer::Stamp { stands: Some(Stamp(1)), known: None },
        Ask::Put(_) => Answer::Put { record, applied_already: false },
        Ask::Merge { .. } | Ask::Unpin { .. } => Answer::Merged { superseded: false, told: Vec::new() },
        Ask::Read | Ask::Names { .. } => Answer::Record(Some(record)),
        Ask::Collect { .. } => Answer::Collected { dropped: true },
    }
}

fn error(certain: bool) -> ReplicaError {
    if certain { ReplicaError::Overloaded } else { ReplicaError::Late }
}

/// A round being played, and what an observer knows of it.
#[derive(Clone)]
struct Play<R> {
    round: R,
    now: u64,
    asked: Vec<u8>,
    answered: Vec<u8>,
    failed: Vec<u8>,
    answer: Option<Answer>,
}

impl<R: Round + Clone> Play<R> {
    fn new(round: R) -> Self {
        Self { round, now: 0, asked: Vec::new(), answered: Vec::new(), failed: Vec::new(), answer: None }
    }

    /// Takes requests until there is something else to do.
    fn next(&mut self) -> Next {
        loop {
            match self.round.next(self.now) {
                Next::Ask(replica, ask) => {
                    assert!(!self.asked.contains(&replica), "replica {replica} is asked twice");
                    self.answer = Some(fitting(&ask));
                    self.asked.push(replica);
                }
                next => return next,
            }
        }
    }

    fn unanswered(&self) -> Vec<u8> {
        let heard = |replica: &u8| self.answered.contains(replica) || self.failed.contains(replica);
        self.asked.iter().copied().filter(|replica| !heard(replica)).collect()
    }

    fn answers(&mut self, replica: u8) {
        let answer = self.answer.clone().expect("a replica was asked");
        self.round.answered(replica, answer).unwrap();
        if self.unanswered().contains(&replica) {
            self.answered.push(replica);
        }
    }

    fn fails(&mut self, replica: u8, certain: bool) {
        self.round.failed(replica, &error(certain));
        if self.unanswered().contains(&replica) {
            self.failed.push(replica);
        }
    }

    /// Fewer successes than the round waits for leave it waiting.
    fn check_wait(&self, answers: u8) {
        let unanswered = self.unanswered();
        assert!(usize::from(answers.max(1)) <= unanswered.len(), "waits for {answers} answers of {unanswered:?}");
        let mut sooner = self.clone();
        for replica in unanswered.iter().take(usize::from(answers.saturating_sub(1))) {
            sooner.answers(*replica);
            let asked = sooner.asked.len();
            assert!(matches!(sooner.next(), Next::Wait { .. }), "{answers} answers were not needed");
            assert_eq!(sooner.asked.len(), asked, "there was something to do before {answers} answers");
        }
    }
}

/// Plays `events` to their end, and then lets every replica that was asked answer. `met` says whether a round may be met by the
/// replicas that have answered; the second argument: whether some that were asked have not.
fn obeys<R: Round + Clone>(round: R, events: &[Event], met: impl Fn(&[u8], bool) -> bool) {
    let mut play = Play::new(round);
    let mut events = events.iter();
    let mut end: Option<Next> = None;
    loop {
        let next = play.next();
        if let Some(end) = &end {
            assert_eq!(*end, next, "what has been decided is final");
        }
        match next {
            Next::Wait { answers, .. } => play.check_wait(answers),
            Next::Met => {
                assert!(
                    end.is_some() || met(&play.answered, !play.unanswered().is_empty()),
                    "met by {:?}",
                    play.answered
                );
                end = Some(Next::Met);
            }
            next => end = Some(next),
        }
        let unanswered = play.unanswered();
        let pick = |which: usize| unanswered.get(which % unanswered.len().max(1)).copied();
        match (events.next(), end.is_some()) {
            (Some(Event::Answers(which)), _) => pick(*which).into_iter().for_each(|replica| play.answers(replica)),
            (Some(Event::Fails(which, certain)), _) => {
                pick(*which).into_iter().for_each(|replica| play.fails(replica, *certain));
            }
            // A replica that was not asked does not answer: only those that have are reported again.
            (Some(Event::Stray(replica, answers)), _)
                if play.asked.contains(replica) && !unanswered.contains(replica) =>
            {
                if *answers {
                    play.answers(*replica)
                } else {
                    play.fails(*replica, true)
                }
            }
            (Some(Event::Stray(..)), _) => {}
            (Some(Event::Waited), false) => {
                play.now += 200_000;
                let now = play.now;
                play.round.waited(now);
            }
            (Some(Event::Waited), true) => {}
            (None, true) => return,
            (None, false) => play.fails(unanswered[0], true),
        }
    }
}

/// Whether `answered` meets the sets, or as much of them as `shortfall` accepts once no replica is waited for.
fn is_met(sets: &[(Vec<u8>, u8)], shortfall: Shortfall, answered: &[u8], waiting: bool) -> bool {
    let acks = |members: &[u8]| members.iter().filter(|replica| answered.contains(replica)).count();
    let accepted = match shortfall {
        Shortfall::Accept(least) if !waiting => usize::from(least),
        Shortfall::Accept(_) | Shortfall::Fail => usize::MAX,
    };
    sets.iter().all(|(members, required)| acks(members) >= usize::from(*required))
        || sets.iter().all(|(members, _)| acks(members) >= accepted)
}

fn write() -> Write {
    let (seen, ids) = (VersionVector::default(), Vec::new());
    Write { write_id: WriteId([1; 16]), started: 1, again: false, asked: false, seen, ids, newest: 0, value: None }
}

proptest! {
    #[test]
    fn merge_rounds_obey(sets in sets(), shortfall in shortfalls(), events in events()) {
        let round = MergeRound::new(Encoded(Bytes::new()), tally(&sets), shortfall);
        obeys(round, &events, |answered, waiting| is_met(&sets, shortfall, answered, waiting));
    }

    #[test]
    fn every_answer_obeys(sets in sets(), events in events()) {
        let round = MergeRound::new(Encoded(Bytes::new()), tally(&sets), Shortfall::Fail).every_answer();
        obeys(round, &events, |_, waiting| !waiting);
    }

    #[test]
    fn stamp_rounds_obey(sets in sets(), events in events()) {
        let round = StampRound::new(WriteId([1; 16]), tally(&sets));
        obeys(round, &events, |answered, waiting| is_met(&sets, Shortfall::Fail, answered, waiting));
    }

    #[test]
    fn read_rounds_obey(
        sets in sets(),
        order in proptest::strategy::Just((0u8..6).collect::<Vec<_>>()).prop_shuffle(),
        shortfall in shortfalls(),
        hedges in any::<bool>(),
        events in events(),
    ) {
        let member = |replica: &u8| sets.iter().any(|(members, _)| members.contains(replica));
        let order: PerReplica<u8> = order.into_iter().filter(member).collect();
        let hedging = Hedging { started: 0, budget: move || hedges };
        let mut round = ReadRound::new(order, tally(&sets), shortfall, hedging);
        round.hedge_after(1000);
        obeys(round, &events, |answered, waiting| is_met(&sets, shortfall, answered, waiting));
    }

    #[test]
    fn put_rounds_obey(replicas in 1u8..=5, reachable in any::<u8>(), earlier in any::<bool>(), events in events()) {
        let round = PutRound::new(write(), replicas, |replica| reachable & (1 << replica) != 0, earlier, None);
        obeys(round, &events, |answered, _| answered.len() == 1);
    }
}

#[test]
fn no_round_of_a_usual_size_allocates_for_its_replicas() {
    let hedging = Hedging { started: 0, budget: || true };
    let order: PerReplica<u8> = SmallVec::from_slice(&[0, 1, 2, 3, 4]);
    assert!(!order.spilled());
    let mut round = ReadRound::new(order, Tally::new(5, 5), Shortfall::Fail, hedging);
    for replica in 0..5 {
        while let Next::Ask(..) = round.next(0) {}
        round.answered(replica, Answer::Record(None)).unwrap();
    }
    assert!(!round.records().spilled());
}
