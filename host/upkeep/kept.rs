//! Why keys that were deleted long ago are still there.

/// Why the rows of a deleted key are still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    /// A replica cannot be reached or read, or has another store than before.
    Unreachable,
    /// Replicas had different records, and were sent the merge.
    Unlevel,
    /// The tenant moves, or is where it was no longer.
    Moving,
    /// A node has rows of the tenant to hand over or to drop.
    Leftovers,
    /// A replica had another record at the second look or after it, or finds the tombstone too young by its clock.
    Changed,
    /// A node knows of a change that this coordinator did not follow at the first look.
    Refused,
    /// A coordinator or a node is of a version that cannot take part.
    Unable,
    /// A node or the metadata store has failed.
    Failed,
}

impl Kept {
    /// Every reason.
    pub(super) const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Unlevel,
        Self::Moving,
        Self::Leftovers,
        Self::Changed,
        Self::Refused,
        Self::Unable,
        Self::Failed,
    ];

    /// Its spelling in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unlevel => "unlevel",
            Self::Moving => "moving",
            Self::Leftovers => "leftovers",
            Self::Changed => "changed",
            Self::Refused => "refused",
            Self::Unable => "unable",
            Self::Failed => "failed",
        }
    }
}
