//! Bytes of answers that clients have not taken yet. An answer to a read is a few bytes to ask for and up to 40 MiB to keep, for as long as
//! the client does not read it; so it is admitted like a write, once its size is known, and counted until it has been sent.

use std::sync::Arc;

use witan_kernel::limit::SMALL_BYTES;
use witan_kernel::name::TenantId;

use super::room::{Room, RoomPermit};

/// Limits of the answers that wait for their clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Bytes of answers of up to 64 KiB. They have a limit of their own, so that large ones cannot take their room.
    pub small: usize,
    /// Bytes of larger answers.
    pub large: usize,
}

impl Default for AnswerLimits {
    /// Six of the largest answers, and two thousand of the largest small ones. One tenant may have three quarters.
    fn default() -> Self {
        Self { small: 128 << 20, large: 256 << 20 }
    }
}

/// The answers that wait for their clients.
#[derive(Debug)]
pub(super) struct Answers {
    small: Arc<Room>,
    large: Arc<Room>,
}

impl Answers {
    pub(super) fn new(limits: AnswerLimits) -> Self {
        Self { small: Room::new(limits.small), large: Room::new(limits.large) }
    }

    /// Room for an answer of this size, unless there is none left for all or for the tenant.
    pub(super) fn admit(&self, tenant: &TenantId, bytes: usize) -> Option<RoomPermit> {
        if bytes <= SMALL_BYTES { self.small.admit(tenant, bytes) } else { self.large.admit(tenant, bytes) }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.small.bytes() + self.large.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_answers_and_one_tenant_leave_room_for_others() {
        let answers = Answers::new(AnswerLimits { small: 400_000, large: 4_000_000 });
        let tenant = |id: &str| TenantId::new(id).unwrap();
        let take = |id: &str, bytes: usize| {
            std::iter::from_fn(|| answers.admit(&tenant(id), bytes)).take(100).collect::<Vec<_>>()
        };
        let large = take("busy", 1_000_000);
        assert_eq!(large.len(), 3, "three quarters");
        assert_eq!(take("quiet", 1_000_000).len(), 1);
        let small = take("busy", 50_000);
        assert_eq!((small.len(), take("quiet", 50_000).len()), (6, 2), "small answers have room of their own");
        drop((large, small));
        assert_eq!(answers.bytes(), 0);
        assert!(answers.admit(&tenant("busy"), 3_000_000).is_some());
        assert!(answers.admit(&tenant("busy"), 3_000_001).is_none());
    }
}
