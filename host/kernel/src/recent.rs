//! `recent`: the writes that a record remembers by name, so that a retry has no second effect.

use smallvec::SmallVec;

use crate::name::WriteId;

/// Names of recent writes with a hybrid time each (of a register: the stamp), newest first: at most
/// [`crate::limit::RECENT_ENTRIES`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    /// Newest first; equal times: greater write id first.
    pub entries: SmallVec<[(WriteId, u64); 2]>,
    /// The greatest time of an entry that was dropped, for its age or for want of room; 0 when none was. Whoever looks for
    /// a write that is not here and may be as old as this cannot tell whether it was applied.
    pub horizon: u64,
}
