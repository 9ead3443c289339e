//! What an answer takes until its client has read it: bytes of the coordinator's and of the tenant's share, and of the connection's.

use std::time::Duration;

use tonic::Code;
use witan_coordinate::{AnswerPermit, Coordinator, World};
use witan_kernel::name::TenantId;
use witan_net::{Untaken, Usage};

use super::status::Report;

/// Kept until the answer has been sent.
#[derive(Debug)]
pub(super) struct Kept {
    _answer: AnswerPermit,
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
        let overloaded =
            |why: &str| Report::new(Code::ResourceExhausted, "OVERLOADED", why).retry_after(Duration::from_millis(100));
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
