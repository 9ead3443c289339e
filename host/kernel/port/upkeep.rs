//! Claims of upkeep: which coordinator carries out which part of the work that a cluster does by itself, how far it is, and when the work
//! was last done completely. All times are the store's.
//!
//! A claim keeps two coordinators from doing the same work at the same time. No promise rests on it: the work is harmless when it is done
//! twice.

use super::{Answer, StoreError};
use crate::name::NodeId;

/// Longest claim without renewal, in milliseconds: five minutes, for which the work of a coordinator that has died waits.
pub const UPKEEP_CLAIM_MS: u64 = 5 * 60 * 1000;
/// Most bytes of a cursor: a place is at most 256 + 1024 bytes, and some for lengths and flags.
pub const UPKEEP_CURSOR_BYTES: usize = 2048;
/// Longest name of a range, in bytes: a node's id.
pub const UPKEEP_RANGE_BYTES: usize = 128;
/// Most duties on record: one for each of the most nodes there can be, and a few for parts of the ring. Those of [`DutyKind::Missed`] are
/// counted apart, with the same limit: one for each coordinator of a node that misses something now. Beyond it, the node is compared in all
/// of its ranges instead.
pub const DUTIES: usize = 1200;

/// A kind of work that a cluster does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DutyKind {
    /// Compares all replicas of a part of the ring, routinely, by what their digests say.
    Compare,
    /// Compares all replicas of a part of the ring by reading all that they have: finds what has rotted on disks.
    Scrub,
    /// Compares all replicas of the ranges of a node that was unreachable.
    CatchUp,
    /// Admits and fills the new stores of nodes.
    Fill,
    /// Leads [placement changes](crate::placement): moves the records of tenants.
    Place,
    /// Sends a node what it has missed of one coordinator's changes. On record while that coordinator knows of any, and claimed by it for
    /// as long as it lives: without a live holder, the knowledge is lost, and the node is to be compared in all of its ranges.
    Missed,
}

impl DutyKind {
    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 6] = [Self::Compare, Self::Scrub, Self::CatchUp, Self::Fill, Self::Place, Self::Missed];
    /// Those that make replicas level again.
    pub const HEALING: [Self; 5] = [Self::Compare, Self::Scrub, Self::CatchUp, Self::Fill, Self::Missed];

    /// The kind's name in the metadata store, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compare => "compare",
            Self::Scrub => "scrub",
            Self::CatchUp => "catch-up",
            Self::Fill => "fill",
            Self::Place => "placement",
            Self::Missed => "missed",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// True for kinds whose duties are counted together against [`DUTIES`].
    pub fn counts_with(self, other: Self) -> bool {
        (self == Self::Missed) == (other == Self::Missed)
    }
}

/// A piece of work that one coordinator at a time carries out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duty {
    /// What is done.
    pub kind: DutyKind,
    /// Where: the number of a part of the ring, a node's id, alone or with the instance of a coordinator, or all of it; 1..=128 bytes.
    pub range: String,
}

impl Duty {
    /// Admitting and filling the new stores of all nodes: they are filled together.
    pub fn fill() -> Self {
        Self { kind: DutyKind::Fill, range: "new stores".to_owned() }
    }
}

impl std::fmt::Display for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.range)
    }
}

/// Who carries out work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The coordinator's id, for people.
    pub coordinator: NodeId,
    /// Drawn at random by each process at its start.
    pub instance: [u8; 16],
}

/// A duty on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DutyOnRecord {
    /// The duty.
    pub duty: Duty,
    /// Who has claimed it last; `None` if nobody has, or it was given back.
    pub holder: Option<Claimant>,
    /// Increases with every claim by another holder, or after one was given back or has expired.
    pub fence: u64,
    /// When the claim expires or has expired.
    pub until_ms: u64,
    /// When the pass began that is under way or was interrupted; 0 if there is none.
    pub begun_ms: u64,
    /// Where that pass goes on; empty at its beginning.
    pub cursor: Vec<u8>,
    /// When the last complete pass began: whatever was stored before has been compared; 0 if no pass has been complete.
    pub covered_ms: u64,
    /// When the last pass ended, complete or not; 0 if none has.
    pub ended_ms: u64,
    /// When it was last asked for; 0 if it never was.
    pub wanted_ms: u64,
}

/// All duties on record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Duties {
    /// The store's time.
    pub now_ms: u64,
    /// By kind and range.
    pub duties: Vec<DutyOnRecord>,
}

/// How a claim ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassEnd {
    /// Before the end of the pass, which another coordinator continues at this cursor.
    Interrupted(Vec<u8>),
    /// At the end of a pass in which something could not be done.
    Incomplete,
    /// At the end of a complete pass.
    Complete,
}

/// The claims of upkeep. None of its changes is followed by others.
pub trait UpkeepClaims: Send + Sync + 'static {
    /// Every duty that was claimed or asked for at least once.
    fn duties(&self) -> Answer<Duties>;

    /// Claims a duty for `for_ms` (1..=[`UPKEEP_CLAIM_MS`]) from now; a claim that the same instance holds is renewed.
    /// [`StoreError::Conflict`], naming the holder, while another one holds it; [`StoreError::Refused`] outside the limits or beyond
    /// [`DUTIES`].
    fn claim_duty(&self, duty: &Duty, by: Claimant, for_ms: u64) -> Answer<DutyOnRecord>;

    /// Renews the claim that was granted with `fence`, and keeps how far the pass is. [`StoreError::Conflict`] if the duty was claimed
    /// by another one or given back since; [`StoreError::Refused`] outside the limits.
    fn keep_duty(&self, duty: &Duty, fence: u64, cursor: Vec<u8>, for_ms: u64) -> Answer<()>;

    /// Ends the claim that was granted with `fence`. [`StoreError::Conflict`] as above.
    fn give_back_duty(&self, duty: &Duty, fence: u64, end: PassEnd) -> Answer<()>;

    /// Asks for a pass that begins from now on. [`StoreError::Refused`] outside the limits or beyond [`DUTIES`].
    fn want_duty(&self, duty: &Duty) -> Answer<()>;

    /// Forgets a duty whose subject no longer exists.
    fn forget_duty(&self, duty: &Duty) -> Answer<()>;
}

impl DutyOnRecord {
    /// A duty of which nothing is known.
    pub fn new(duty: Duty) -> Self {
        Self {
            duty,
            holder: None,
            fence: 0,
            until_ms: 0,
            begun_ms: 0,
            cursor: Vec::new(),
            covered_ms: 0,
            ended_ms: 0,
            wanted_ms: 0,
        }
    }

    /// The holder of an unexpired claim.
    pub fn live_holder(&self, now_ms: u64) -> Option<&Claimant> {
        self.holder.as_ref().filter(|_| self.until_ms > now_ms)
    }

    /// The rule of [`UpkeepClaims::claim_duty`]: the record afterwards.
    ///
    /// # Errors
    /// Another instance holds it.
    pub fn claimed(mut self, by: Claimant, for_ms: u64, now_ms: u64) -> Result<Self, StoreError> {
        within(for_ms)?;
        let holder = self.live_holder(now_ms);
        if let Some(other) = holder.filter(|holder| holder.instance != by.instance) {
            let (duty, coordinator) = (&self.duty, &other.coordinator);
            return Err(StoreError::Conflict(format!("{duty} is done by coordinator {coordinator}")));
        }
        if holder.is_none() {
            self.fence += 1;
        }
        if self.begun_ms == 0 {
            self.begun_ms = now_ms;
        }
        self.holder = Some(by);
        self.until_ms = now_ms.saturating_add(for_ms);
        Ok(self)
    }

    /// The rule of [`UpkeepClaims::keep_duty`].
    ///
    /// # Errors
    /// The claim was lost, or a limit is broken.
    pub fn kept(mut self, fence: u64, cursor: Vec<u8>, for_ms: u64, now_ms: u64) -> Result<Self, StoreError> {
        within(for_ms)?;
        short(&cursor)?;
        self.held_with(fence)?;
        self.cursor = cursor;
        self.until_ms = now_ms.saturating_add(for_ms);
        Ok(self)
    }

    /// The rule of [`UpkeepClaims::give_back_duty`].
    ///
    /// # Errors
    /// The claim was lost, or a limit is broken.
    pub fn given_back(mut self, fence: u64, end: PassEnd, now_ms: u64) -> Result<Self, StoreError> {
        self.held_with(fence)?;
        match end {
            PassEnd::Interrupted(cursor) => {
                short(&cursor)?;
                self.cursor = cursor;
            }
            ended => {
                if ended == PassEnd::Complete {
                    self.covered_ms = self.begun_ms;
                }
                self.begun_ms = 0;
                self.cursor = Vec::new();
                self.ended_ms = now_ms;
            }
        }
        self.holder = None;
        self.until_ms = now_ms;
        Ok(self)
    }

    fn held_with(&self, fence: u64) -> Result<(), StoreError> {
        if self.holder.is_some() && self.fence == fence {
            return Ok(());
        }
        Err(lost_duty(&self.duty))
    }
}

/// The claim is no longer held.
pub fn lost_duty(duty: &Duty) -> StoreError {
    StoreError::Conflict(format!(
        "the claim of {duty} was lost: another coordinator has claimed it since, or it was given back"
    ))
}

/// [`DUTIES`] is reached.
pub fn too_many_duties() -> StoreError {
    StoreError::Refused(format!("there are {DUTIES} duties of upkeep, the most there can be"))
}

/// Checks the name of a duty's range.
///
/// # Errors
/// It is empty or too long.
pub fn named_duty(duty: &Duty) -> Result<(), StoreError> {
    let bytes = duty.range.len();
    if (1..=UPKEEP_RANGE_BYTES).contains(&bytes) {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the range of a duty has {bytes} bytes; use 1 to {UPKEEP_RANGE_BYTES}")))
}

fn within(for_ms: u64) -> Result<(), StoreError> {
    if (1..=UPKEEP_CLAIM_MS).contains(&for_ms) {
        return Ok(());
    }
    Err(StoreError::Refused(format!("a claim for {for_ms} ms is out of range; use 1 to {UPKEEP_CLAIM_MS} ms")))
}

fn short(cursor: &[u8]) -> Result<(), StoreError> {
    if cursor.len() <= UPKEEP_CURSOR_BYTES {
        return Ok(());
    }
    let bytes = cursor.len();
    Err(StoreError::Refused(format!("a cursor has {bytes} bytes; it may have {UPKEEP_CURSOR_BYTES}")))
}
