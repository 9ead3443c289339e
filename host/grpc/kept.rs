//! What an answer takes until its client has read it, and a request until it begins: bytes of the coordinator's and of the tenant's share,
//! and of the connection's.

use std::time::Duration;

use tonic::Code;
use witan_coordinate::{Coordinator, RoomPermit, World};
use witan_kernel::name::TenantId;
use witan_net::{Untaken, Usage, Waits};

use super::status::Report;

/// Kept until the answer has been sent.
#[derive(Debug)]
pub(super) struct Kept {
    _answer: RoomPermit,
    _untaken: Untaken,
}

impl Kept {
    /// Room for an answer of `bytes` bytes.
    ///
    /// # Errors
    /// What to answer instead: too many bytes of answers wait for their clients.
    pub(super) fn of<W: World>(
        coordinator: &Coordinator<W>,
        usage: &Usage,
        tenant: &TenantId,
        bytes: usize,
    ) -> Result<Self, Report> {
        let untaken = usage.answer(bytes);
        let untaken = untaken.ok_or_else(|| {
            overloaded("64 MiB of answers wait to be read on this connection: read them, or ask for less at a time")
        })?;
        let answer = coordinator.admit_answer(tenant, bytes);
        let answer = answer.ok_or_else(|| {
            overloaded(
                "too many bytes of answers wait to be read by their clients; try again, and ask for less at a time",
            )
        })?;
        Ok(Self { _answer: answer, _untaken: untaken })
    }
}

/// Kept until a request begins that has to wait for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    _waits: Waits,
    _room: RoomPermit,
}

impl Waiting {
    /// Room for a request of `bytes` bytes; `None`: too many bytes of requests wait, and this one is refused with
    /// [`too_many_waiting`].
    pub(super) fn of<W: World>(
        coordinator: &Coordinator<W>,
        usage: &Usage,
        tenant: &TenantId,
        bytes: usize,
    ) -> Option<Self> {
        Some(Self { _waits: usage.waiting(bytes)?, _room: coordinator.admit_waiting(tenant, bytes)? })
    }
}

/// The report of a request for which there was no room while it waited.
pub(super) fn too_many_waiting(changes: bool) -> Report {
    let why = "too many bytes of requests wait for their turn, 64 MiB of this connection or its share of those of all; wait for answers \
               before you send more on the same keys";
    let report = overloaded(why);
    if changes { report.not_applied() } else { report }
}

fn overloaded(why: &str) -> Report {
    Report::new(Code::ResourceExhausted, "OVERLOADED", why).retry_after(Duration::from_millis(100))
}
