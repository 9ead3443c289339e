//! Which replicas of a key an operation asks, and how many must answer, while the key's tenant moves: the table of [`crate::placement`].

use super::tally::{Quorum, Tally};
use crate::fault::Fault;
use crate::name::NodeId;
use crate::placement::Step;
use crate::ring::Preference;
use crate::tenant::Level;

/// The replicas of a key: those of the present placement first, in ring order, and behind them those of the coming one that are not among
/// them. At most ten. Where the tenant moves to rows of another generation, a node of both placements has two rows of the key: it is named
/// twice, and asked about each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    replicas: Preference,
    /// How many of `replicas` are of the present placement.
    present: u8,
    /// Bits of those of the coming placement; 0 when none is in force, even in part.
    coming: u16,
    step: Option<Step>,
    /// No row of the coming placement is one of the present placement.
    apart: bool,
}

impl Route {
    /// Replicas of a tenant that does not move.
    pub fn settled(replicas: Preference) -> Self {
        Self { present: replicas.len() as u8, replicas, coming: 0, step: None, apart: false }
    }

    /// Replicas of a tenant that moves, of the present placement and of the coming one. `apart`: to rows of another generation.
    pub fn moving(present: Preference, coming: &[NodeId], step: Step, apart: bool) -> Self {
        if step == Step::Preparing {
            return Self { step: Some(step), ..Self::settled(present) };
        }
        if Fault::MoveNewInForceEarly.is_on() && !apart {
            return Self::settled(coming.iter().cloned().collect());
        }
        let (mut replicas, mut members) = (present, 0);
        let present = replicas.len() as u8;
        for node in coming {
            let known = replicas.iter().position(|known| known == node).filter(|_| !apart);
            let index = known.unwrap_or_else(|| {
                replicas.push(node.clone());
                replicas.len() - 1
            });
            members |= 1u16 << index;
        }
        Self { replicas, present, coming: members, step: Some(step), apart }
    }

    /// All replicas that changes are sent to. An index into these names a replica in rounds and tallies.
    pub fn replicas(&self) -> &Preference {
        &self.replicas
    }

    /// Whether a replica is a row of the coming generation.
    pub fn is_coming(&self, replica: u8) -> bool {
        self.apart && replica >= self.present
    }

    /// The replication factor of the present placement, about which policies are asked.
    pub fn replication_factor(&self) -> u8 {
        self.present
    }

    /// The first of [`Self::replicas`] that may mint an event, and be asked what is stored: all of them in the last step, and before it
    /// those of the present placement.
    pub fn asked(&self) -> u8 {
        if self.needs_both() { self.replicas.len() as u8 } else { self.present }
    }

    /// Whether the answers of one placement are not enough.
    fn needs_both(&self) -> bool {
        self.step == Some(Step::Cutover)
    }

    fn present_quorum(&self, required: u8) -> Quorum {
        Quorum::first(self.present, required)
    }

    fn coming_quorum(&self, required: u8) -> Quorum {
        Quorum::of((0..Quorum::MAX_REPLICAS).filter(|replica| self.coming & 1 << replica != 0), required)
    }

    fn coming_factor(&self) -> u8 {
        self.coming.count_ones() as u8
    }

    /// The requirement in the coming placement of an operation that requires `required` answers in the present one: of the same class.
    fn required_in_coming(&self, required: u8) -> u8 {
        let (old, new) = (self.present, self.coming_factor());
        if required >= old {
            new
        } else if required >= Level::Quorum.required(old) {
            Level::Quorum.required(new)
        } else {
            required.min(new)
        }
    }

    /// An empty tally of replicas that are asked what is stored, or for their stamp, and of which `required` of the present placement must
    /// answer. Where fewer than a quorum are enough, those of the coming placement are not asked: they may lack what is old.
    pub fn asking(&self, required: u8) -> Tally {
        if self.needs_both() && required >= Level::Quorum.required(self.present) {
            let (old, new) = (self.present_quorum(required), self.coming_quorum(self.required_in_coming(required)));
            if Fault::MoveReadsNewOnly.is_on() {
                return Tally::of(new);
            }
            if Fault::MoveReadsOldOnly.is_on() {
                return Tally::of(old);
            }
            self.in_both(old, new)
        } else {
            Tally::of(self.present_quorum(required))
        }
    }

    /// An empty tally of replicas that a change is sent to, and that `required` of the present placement must acknowledge.
    pub fn changing(&self, required: u8) -> Tally {
        if !self.needs_both() || Fault::MoveWritesOldOnly.is_on() {
            return Tally::both(self.present_quorum(required), self.coming_quorum(0));
        }
        let new = self.coming_quorum(self.required_in_coming(required));
        if Fault::MoveWritesNewOnly.is_on() {
            return Tally::both(self.present_quorum(0), new);
        }
        self.in_both(self.present_quorum(required), new)
    }

    fn in_both(&self, old: Quorum, new: Quorum) -> Tally {
        if Fault::MoveCountsUnion.is_on() {
            let all = self.replicas.len() as u8;
            return Tally::of(Quorum::first(all, Level::Quorum.required(all)));
        }
        Tally::both(old, new)
    }

    /// An empty tally of a question to a quorum of each placement that counts.
    pub fn quorum(&self) -> Tally {
        self.asking(Level::Quorum.required(self.present))
    }

    /// Acknowledgements of the placement that counts and has the fewest, and the level that all placements that count meet.
    pub fn met(&self, tally: &Tally) -> (u8, Level) {
        let acks = |members: Quorum| tally.acks_of(members);
        let old = acks(self.present_quorum(0));
        let level = Level::met(old, self.present);
        if !self.needs_both() {
            return (old, level);
        }
        let new = acks(self.coming_quorum(0));
        (old.min(new), level.min(Level::met(new, self.coming_factor())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::Shortfall;
    use crate::quorum::Progress;

    fn nodes(named: &[u32]) -> Preference {
        named.iter().map(|n| NodeId::new(format!("n{n}")).unwrap()).collect()
    }

    fn acked(mut tally: Tally, replicas: &[u8]) -> Tally {
        replicas.iter().for_each(|replica| tally.ack(*replica));
        tally
    }

    #[test]
    fn replicas_of_both_are_asked_once() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[3, 4, 1]), Step::Cutover, false);
        assert_eq!(route.replicas(), &nodes(&[1, 2, 3, 4]));
        assert_eq!((route.replication_factor(), route.asked()), (3, 4));
    }

    #[test]
    fn a_node_with_rows_of_two_generations_is_asked_about_each() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[3, 2, 1]), Step::Cutover, true);
        assert_eq!(route.replicas(), &nodes(&[1, 2, 3, 3, 2, 1]));
        assert_eq!((route.replication_factor(), route.asked()), (3, 6));
        assert_eq!(
            (0..6).map(|replica| route.is_coming(replica)).collect::<Vec<_>>(),
            [false, false, false, true, true, true]
        );
        let tally = route.changing(2);
        assert_eq!(
            acked(tally, &[0, 1, 2, 3]).progress(),
            Progress::Open,
            "one row of the coming generation is no quorum"
        );
        assert_eq!(acked(tally, &[3, 4, 5, 0]).progress(), Progress::Open, "nor one of the present");
        let met = acked(tally, &[0, 1, 4, 5]);
        assert_eq!((met.progress(), route.met(&met)), (Progress::Met, (2, Level::Quorum)));
        let most = Route::moving(nodes(&[1, 2, 3, 4, 5]), &nodes(&[5, 4, 3, 2, 1]), Step::Cutover, true);
        assert_eq!((most.replicas().len(), most.asked(), most.quorum().open()), (10, 10, 10));
        let one = Route::moving(nodes(&[1]), &nodes(&[1]), Step::Cutover, true);
        assert_eq!(acked(one.changing(1), &[0]).progress(), Progress::Open);
        assert_eq!(acked(one.changing(1), &[0, 1]).progress(), Progress::Met);
        let preparing = Route::moving(nodes(&[1, 2, 3]), &nodes(&[3, 2, 1]), Step::Preparing, true);
        assert_eq!((preparing.replicas().len(), preparing.is_coming(0)), (3, false));
    }

    #[test]
    fn nobody_else_is_asked_before_the_first_copy() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[4, 5, 6]), Step::Preparing, false);
        assert_eq!((route.replicas().len(), route.asked()), (3, 3));
        assert_eq!(route.changing(2).open(), 3);
    }

    #[test]
    fn a_copy_under_way_is_written_to_and_not_counted() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[4, 5, 6]), Step::DualWrite, false);
        let tally = route.changing(2);
        assert_eq!((tally.open(), tally.required(), route.asked()), (6, 2, 3));
        assert_eq!(acked(tally, &[3, 4, 5]).progress(), Progress::Open, "they count for nothing");
        let met = acked(tally, &[0, 2]);
        assert_eq!((met.progress(), route.met(&met)), (Progress::Met, (2, Level::Quorum)));
        let all = acked(tally, &[0, 1, 2, 3, 4, 5]);
        assert_eq!(route.met(&all), (3, Level::All), "as many as the replication factor at most");
        assert!(!acked(tally, &[3, 4]).accepts(Shortfall::Accept(1)));
        assert!(acked(tally, &[1]).accepts(Shortfall::Accept(1)));
        assert_eq!(route.asking(3).open(), 3, "reads ask where everything is");
    }

    #[test]
    fn in_the_last_step_both_must_have_it() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[3, 4, 5, 6, 7]), Step::Cutover, false);
        let tally = route.changing(2);
        assert_eq!(acked(tally, &[0, 1]).progress(), Progress::Open);
        assert_eq!(acked(tally, &[0, 2, 3]).progress(), Progress::Open, "a quorum of five is three");
        let met = acked(tally, &[0, 2, 3, 4]);
        assert_eq!((met.progress(), route.met(&met)), (Progress::Met, (2, Level::Quorum)));
        assert_eq!(route.met(&acked(tally, &[0, 1, 2, 3])).1, Level::One);
        assert!(!acked(tally, &[0, 1]).accepts(Shortfall::Accept(1)), "in each of them");
        assert!(acked(tally, &[2]).accepts(Shortfall::Accept(1)));
    }

    #[test]
    fn classes_of_requirements_are_kept() {
        let of = |old: u32, new: u32, required| {
            let (old, new): (Vec<u32>, Vec<u32>) = ((1..=old).collect(), (11..11 + new).collect());
            let route = Route::moving(nodes(&old), &nodes(&new), Step::Cutover, false);
            route.required_in_coming(required)
        };
        assert_eq!([of(3, 5, 1), of(3, 5, 2), of(3, 5, 3)], [1, 3, 5]);
        assert_eq!([of(5, 1, 1), of(5, 1, 2), of(5, 1, 3), of(5, 1, 5)], [1, 1, 1, 1]);
        assert_eq!([of(1, 3, 1), of(2, 3, 1), of(2, 3, 2)], [3, 1, 3], "one of one is all of them");
    }

    #[test]
    fn a_read_of_one_asks_where_everything_is() {
        let route = Route::moving(nodes(&[1, 2, 3]), &nodes(&[4, 5, 6]), Step::Cutover, false);
        assert_eq!(route.asking(1).open(), 3);
        assert_eq!((route.asking(2).open(), route.quorum().open()), (6, 6));
        assert_eq!(acked(route.quorum(), &[0, 1, 4]).progress(), Progress::Open);
        assert_eq!(acked(route.quorum(), &[0, 1, 4, 5]).progress(), Progress::Met);
    }
}
