//! Which replicas have missed a change: noted when its operation ends, however it ends, so that upkeep brings it to them.
//!
//! [`Reached`] follows what becomes of a change at each of its replicas. When the operation's exchange is dropped, every replica that may
//! lack something which another one may have is reported through [`MissedChanges`]. That is so after the last answer, when the deadline
//! has passed, when the operation is given up, and when its task panics.

use witan_kernel::fault::Fault;
use witan_kernel::name::NodeId;
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError};
use witan_kernel::slice::Slice;

/// Takes reports of changes that replicas have missed.
pub trait MissedChanges: Send + Sync + 'static {
    /// The node may lack a change of a key in this slice that another replica has. Called from serving threads, for each operation while a
    /// node is away: must be cheap and must not block.
    fn missed(&self, node: &NodeId, slice: Slice);
}

/// Nobody makes good what replicas have missed: every report is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingNoted;

impl MissedChanges for NothingNoted {
    fn missed(&self, _: &NodeId, _: Slice) {}
}

/// What is known of a change at its replicas. Each set has a bit for each of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// Those that have stored what is sent now.
    stored: u16,
    /// Those that may have minted an event, except [`Self::source`].
    minted: u16,
    /// Those that may have merged what is sent now.
    merging: u16,
    /// The replica whose record is sent to the others.
    source: u16,
    /// Those that could not be reached.
    unreached: u16,
    /// Some replica has something of the change, whatever becomes of the rest.
    somewhere: bool,
    /// Replicas were asked about the write, which leaves a name with each of them.
    asked: bool,
}

impl Reached {
    /// A request was sent.
    pub(super) fn sent(&mut self, replica: u8, ask: &Ask) {
        match ask {
            Ask::Put(_) => self.minted |= bit(replica),
            Ask::Merge { .. } => self.merging |= bit(replica),
            Ask::Names { .. } => self.asked = true,
            Ask::Stamp { .. } | Ask::Read | Ask::Unpin { .. } | Ask::Collect { .. } => {}
        }
    }

    /// A replica has answered a request to put or to merge what is sent now.
    pub(super) fn answered(&mut self, is_put: bool, replica: u8, outcome: &Outcome) {
        let bit = bit(replica);
        match outcome {
            Ok(Answer::Put { applied_already: true, .. }) => self.minted &= !bit,
            Ok(Answer::Merged { .. }) => self.stored |= bit,
            // What it was sent is in its store, which is being filled with all the rest.
            Err(ReplicaError::Filling(_)) if !is_put => self.stored |= bit,
            Err(error) if error.certainly_not_done() => {
                if matches!(error, ReplicaError::NotSent(_)) {
                    self.unreached |= bit;
                }
                if is_put { self.minted &= !bit } else { self.merging &= !bit }
            }
            Ok(Answer::Put { .. } | Answer::Record(_) | Answer::Stamp { .. } | Answer::Collected { .. }) | Err(_) => {}
        }
    }

    /// From now on, what this replica has stored is sent to the others.
    pub(super) fn source(&mut self, replica: Option<u8>) {
        self.somewhere = true;
        self.source = replica.map_or(0, bit);
        self.stored |= self.source;
    }

    /// From now on more is sent than before, which of those that have something only `holders` have.
    pub(super) fn more(&mut self, holders: &[u8]) {
        self.stored = holders.iter().map(|replica| bit(*replica)).fold(0, |all, bit| all | bit);
        self.somewhere = true;
    }

    /// What the store of this replica has acknowledged is not in the one that it has now.
    pub(super) fn revoked(&mut self, replica: u8) {
        self.stored &= !bit(replica);
    }

    /// Whether a replica, one of the first `asked`, may lack something which another one of them may have.
    pub(super) fn is_missed_by(&self, replica: u8, asked: u8) -> bool {
        self.missing(bit(asked) - 1) & bit(replica) != 0
    }

    /// Those of `all` that may lack something which another one may have.
    fn missing(&self, all: u16) -> u16 {
        let minted_elsewhere = self.minted & !self.source;
        if minted_elsewhere != 0 || self.asked {
            return all;
        }
        if !self.somewhere && self.stored | self.merging == 0 {
            return 0;
        }
        let missing = all & !self.stored;
        if Fault::MissForgotten.is_on() { missing & self.unreached } else { missing }
    }
}

fn bit(replica: u8) -> u16 {
    1 << replica
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use witan_kernel::name::WriteId;
    use witan_kernel::record::Encoded;

    use super::*;

    const ALL: u16 = 0b111;

    fn node() -> NodeId {
        NodeId::new("n").unwrap()
    }

    fn record() -> Encoded {
        Encoded(Bytes::new())
    }

    fn merge() -> Ask {
        Ask::Merge { record: record() }
    }

    fn put() -> Ask {
        use witan_kernel::siblings::{VersionVector, Write};
        let (write_id, seen) = (WriteId([1; 16]), VersionVector::default());
        let write =
            Write { write_id, started: 1, again: false, asked: false, seen, ids: vec![], newest: 0, value: None };
        Ask::Put(std::sync::Arc::new(write))
    }

    fn merged() -> Outcome {
        Ok(Answer::Merged { superseded: false, told: Vec::new() })
    }

    fn minted(applied_already: bool) -> Outcome {
        Ok(Answer::Put { record: record(), applied_already })
    }

    /// What is missing of a record that is sent to three replicas, with these answers; `None`: there is none.
    fn after_merges(answers: [Option<Outcome>; 3]) -> u16 {
        let mut reached = Reached::default();
        (0..3).for_each(|replica| reached.sent(replica, &merge()));
        for (replica, outcome) in (0..).zip(&answers) {
            outcome.iter().for_each(|outcome| reached.answered(false, replica, outcome));
        }
        reached.missing(ALL)
    }

    #[test]
    fn whoever_has_not_acknowledged_what_another_one_may_have_has_missed_it() {
        use ReplicaError::{Broken, Filling, Incomplete, Late, Lost, NotSent, Overloaded, StaleEpoch, StorageFull};
        assert_eq!(after_merges([Some(merged()), Some(merged()), Some(merged())]), 0);
        let ways = [
            NotSent(node()),
            Incomplete(node()),
            Lost(node()),
            Late,
            Overloaded,
            StorageFull,
            StaleEpoch,
            Broken("a disk".to_owned()),
        ];
        for why in ways {
            assert_eq!(after_merges([Some(merged()), Some(merged()), Some(Err(why.clone()))]), 0b100, "{why:?}");
            assert_eq!(after_merges([Some(Err(why.clone())), Some(merged()), None]), 0b101, "{why:?}");
        }
        assert_eq!(after_merges([Some(merged()), None, None]), 0b110, "the deadline, or its task has panicked");
        assert_eq!(after_merges([Some(merged()), Some(merged()), Some(Err(Filling(node())))]), 0, "it has it");
    }

    #[test]
    fn nobody_has_missed_what_nobody_has() {
        let refused = || Some(Err(ReplicaError::StaleEpoch));
        assert_eq!(after_merges([refused(), refused(), refused()]), 0);
        assert_eq!(after_merges([refused(), refused(), None]), ALL, "the third one may have it");
        assert_eq!(after_merges([refused(), refused(), Some(Err(ReplicaError::Late))]), ALL);
        assert_eq!(Reached::default().missing(ALL), 0, "nothing was sent");
    }

    #[test]
    fn an_event_that_may_have_been_minted_elsewhere_has_been_missed_by_all() {
        // Who is sent a Put first and second, what they answer, and what is missing in the end of a record that the others merge.
        let late = || Err(ReplicaError::Late);
        let unsent = || Err(ReplicaError::NotSent(node()));
        let cases = [
            (None, Some(minted(false)), ALL, "it may be minted still"),
            (Some(late()), Some(minted(false)), ALL, "it may have been minted"),
            (Some(minted(false)), Some(minted(false)), ALL, "two events"),
            (Some(minted(true)), Some(minted(false)), 0, "it had the event"),
            (Some(unsent()), Some(minted(false)), 0, "it has minted nothing"),
        ];
        for (first, second, missing, why) in cases {
            let mut reached = Reached::default();
            for (replica, outcome) in [(0, first), (1, second)] {
                reached.sent(replica, &put());
                outcome.iter().for_each(|outcome| reached.answered(true, replica, outcome));
            }
            reached.source(Some(1));
            for replica in [0, 2] {
                reached.sent(replica, &merge());
                reached.answered(false, replica, &merged());
            }
            assert_eq!(reached.missing(ALL), missing, "{why}");
        }
        let mut reached = Reached::default();
        reached.sent(0, &put());
        assert_eq!(reached.missing(ALL), ALL, "in doubt");
        reached.answered(true, 0, &Err(ReplicaError::SiblingLimit));
        assert_eq!(reached.missing(ALL), 0, "refused");
    }

    #[test]
    fn whoever_has_only_the_first_of_two_records_has_missed_the_second() {
        let mut reached = Reached::default();
        reached.source(Some(0));
        reached.sent(1, &merge());
        reached.answered(false, 1, &merged());
        assert_eq!(reached.missing(ALL), 0b100);
        reached.more(&[0]);
        assert_eq!(reached.missing(ALL), 0b110);
        reached.sent(2, &merge());
        reached.answered(false, 2, &merged());
        assert_eq!(reached.missing(ALL), 0b010);
    }

    #[test]
    fn a_question_about_a_write_leaves_a_name_that_others_lack() {
        let mut reached = Reached::default();
        reached.sent(0, &Ask::Names { write_id: WriteId([1; 16]), started: 1 });
        assert_eq!(reached.missing(ALL), ALL);
        let mut reached = Reached::default();
        [Ask::Read, Ask::Stamp { write_id: WriteId([1; 16]) }].iter().for_each(|ask| reached.sent(0, ask));
        assert_eq!(reached.missing(ALL), 0);
    }
}
