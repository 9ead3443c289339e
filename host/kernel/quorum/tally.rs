//! Counting answers, against the requirement of one set of replicas or of several at once.

use crate::fault::Fault;
use crate::hook::Shortfall;

/// How far a round has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Neither met nor out of reach.
    Open,
    /// Enough replicas have acknowledged.
    Met,
    /// Too many have failed: the requirement cannot be met any more.
    Short,
}

/// A set of replicas, at most [`Quorum::MAX_REPLICAS`], of which `required` must acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quorum {
    members: u16,
    required: u8,
}

impl Quorum {
    /// Replicas that one operation can address: the bits of a mask. The old and the new set of a placement change have ten at most.
    pub const MAX_REPLICAS: u8 = 16;

    /// The first `replicas` replicas, of which `required` must acknowledge.
    pub fn first(replicas: u8, required: u8) -> Self {
        Self::of(0..replicas, required)
    }

    /// These replicas, of which `required` must acknowledge. Indices from [`Quorum::MAX_REPLICAS`] on are ignored.
    pub fn of(members: impl IntoIterator<Item = u8>, required: u8) -> Self {
        let off_by_one = Fault::QuorumOffByOne.is_on() && required > 0;
        let required = if off_by_one { required.saturating_sub(1).max(1) } else { required };
        Self { members: members.into_iter().fold(0, |members, replica| members | bit(replica)), required }
    }

    fn acks(self, acked: u16) -> u8 {
        count(self.members & acked)
    }

    fn progress(self, acked: u16, failed: u16) -> Progress {
        if self.acks(acked) >= self.required {
            Progress::Met
        } else if count(self.members & !failed) < self.required {
            Progress::Short
        } else {
            Progress::Open
        }
    }

    fn missing(self, acked: u16, failed: u16) -> u8 {
        self.required.saturating_sub(self.acks(acked)).min(count(self.members & !(acked | failed)))
    }
}

/// Which replicas have acknowledged and which have failed.
///
/// It counts against one set, or against two at once: the old and the new replicas of a key whose placement changes. Then it is met
/// when both sets are, and short as soon as one of them is. A set alone is the same as that set beside an empty one. A set of which
/// nothing is required is asked, and does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    sets: [Quorum; 2],
    acked: u16,
    failed: u16,
    /// Those of `failed` that certainly have not done what they were asked, and will not.
    certain: u16,
}

impl Tally {
    /// A tally of `replicas` replicas, none answered yet; `required` acknowledgements meet it.
    pub fn new(replicas: u8, required: u8) -> Self {
        Self::of(Quorum::first(replicas, required))
    }

    /// A tally of one set, none answered yet.
    pub fn of(set: Quorum) -> Self {
        Self::both(set, Quorum::default())
    }

    /// A tally of two sets, which may overlap, none answered yet.
    pub fn both(old: Quorum, new: Quorum) -> Self {
        Self { sets: [old, new], acked: 0, failed: 0, certain: 0 }
    }

    /// The replica has done what it was asked. Only a replica's first answer counts.
    pub fn ack(&mut self, replica: u8) {
        self.acked |= self.open_bit(replica);
    }

    /// The replica has not done it; `certain` when it never will. Only a replica's first answer counts.
    pub fn fail(&mut self, replica: u8, certain: bool) {
        let bit = self.open_bit(replica);
        self.failed |= bit;
        if certain {
            self.certain |= bit;
        }
    }

    /// The replica's acknowledgement does not count any longer: it has failed, and it is unknown whether it will do what it was asked.
    /// False when it had not acknowledged.
    pub fn revoke(&mut self, replica: u8) -> bool {
        let revoked = bit(replica) & self.acked;
        self.acked &= !revoked;
        self.failed |= revoked;
        revoked != 0
    }

    /// How far the round has come.
    pub fn progress(&self) -> Progress {
        let [old, new] = self.sets.map(|set| set.progress(self.acked, self.failed));
        match (old, new) {
            (Progress::Short, _) | (_, Progress::Short) => Progress::Short,
            (Progress::Met, Progress::Met) => Progress::Met,
            (Progress::Open, _) | (_, Progress::Open) => Progress::Open,
        }
    }

    /// Replicas that have acknowledged, of all sets.
    pub fn acks(&self) -> u8 {
        count(self.acked)
    }

    /// Replicas that have not answered, of all sets.
    pub fn open(&self) -> u8 {
        count(self.members() & !(self.acked | self.failed))
    }

    /// Further acknowledgements without which nothing can be decided, unless a replica fails. Never more than can still come: where
    /// a shortfall is accepted, a round goes on after it cannot be met any more.
    pub fn missing(&self) -> u8 {
        let [old, new] = self.sets.map(|set| set.missing(self.acked, self.failed));
        old.max(new)
    }

    /// Acknowledgements required by the set that is farthest from its requirement.
    pub fn required(&self) -> u8 {
        self.farthest().required
    }

    /// Acknowledgements by that same set: "`received` of `required` replicas answered".
    pub fn received(&self) -> u8 {
        let missed = u8::from(Fault::AnswersMiscounted.is_on());
        self.farthest().acks(self.acked).saturating_sub(missed)
    }

    /// True when the replica has acknowledged.
    pub fn has_acked(&self, replica: u8) -> bool {
        self.acked & bit(replica) != 0
    }

    /// True when the replica is counted here and has not answered.
    pub fn is_open(&self, replica: u8) -> bool {
        self.open_bit(replica) != 0
    }

    /// The first replica from index `from` on that has not answered.
    pub fn next_open(&self, from: u8) -> Option<u8> {
        (from..Quorum::MAX_REPLICAS).find(|replica| self.is_open(*replica))
    }

    /// True when acknowledgements by `replicas`, except those that have failed, would meet every set.
    pub fn can_be_met_by(&self, replicas: &[u8]) -> bool {
        let able = replicas.iter().fold(0, |able, replica| able | bit(*replica)) & !self.failed;
        self.sets.iter().all(|set| set.acks(able) >= set.required)
    }

    /// True when no replica has done, or may still do, what it was asked.
    pub fn certainly_nothing_done(&self) -> bool {
        self.acked == 0 && self.certain == self.members()
    }

    /// True when `shortfall` accepts the acknowledgements that each set has of which any are required.
    pub fn accepts(&self, shortfall: Shortfall) -> bool {
        let Shortfall::Accept(least) = shortfall else { return false };
        // A set of which nothing is required does not count beside one that does.
        let any = self.sets.iter().any(|set| set.required > 0);
        let counted = |set: &&Quorum| set.members != 0 && (set.required > 0 || !any);
        least > 0 && self.sets.iter().filter(counted).all(|set| set.acks(self.acked) >= least)
    }

    /// Replicas of a set, which may be any, that have acknowledged.
    pub fn acks_of(&self, set: Quorum) -> u8 {
        set.acks(self.acked)
    }

    fn farthest(&self) -> Quorum {
        let [old, new] = self.sets;
        let missing = |set: Quorum| set.required.saturating_sub(set.acks(self.acked));
        if missing(new) > missing(old) { new } else { old }
    }

    fn members(&self) -> u16 {
        self.sets[0].members | self.sets[1].members
    }

    fn open_bit(&self, replica: u8) -> u16 {
        bit(replica) & self.members() & !(self.acked | self.failed)
    }
}

/// Zero for an index that no mask has.
fn bit(replica: u8) -> u16 {
    1u16.checked_shl(u32::from(replica)).unwrap_or(0)
}

fn count(mask: u16) -> u8 {
    mask.count_ones() as u8
}

#[cfg(test)]
mod tests;
