//! What an answer takes until its client has read it, and a request until it begins: bytes of the coordinator's and of the tenant's share,
//! and of the connection's.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Request, Response, Status};
use witan_coordinate::{Coordinator, RoomPermit, World};
use witan_kernel::name::TenantId;
use witan_net::{Peer, Untaken, UntilSent, Usage, Waits};

use super::status::Report;

/// Bytes of a binding's configuration, twice, since an answer has what is bound and what was, with its names.
const BINDINGS_BYTES: usize = 132 << 10;

/// Room for answers until their clients have taken them.
pub trait Admit: Send + Sync {
    /// Room for an answer of this size; `None` if too many bytes of answers wait already.
    fn admit(&self, tenant: &TenantId, bytes: usize) -> Option<RoomPermit>;
}

impl<W: World> Admit for Coordinator<W> {
    fn admit(&self, tenant: &TenantId, bytes: usize) -> Option<RoomPermit> {
        self.admit_answer(tenant, bytes)
    }
}

/// Kept until the answer has been sent.
#[derive(Debug)]
pub(crate) struct Kept {
    _answer: Option<RoomPermit>,
    _untaken: Untaken,
}

impl Kept {
    /// Room for an answer of `bytes` bytes.
    ///
    /// # Errors
    /// What to answer instead: too many bytes of answers wait for their clients.
    pub(super) fn of(answers: &dyn Admit, usage: &Usage, tenant: &TenantId, bytes: usize) -> Result<Self, Report> {
        Self::of_tenant(answers, usage, Some(tenant), bytes)
    }

    /// The same; what operators ask for counts for their connection alone.
    fn of_tenant(answers: &dyn Admit, usage: &Usage, tenant: Option<&TenantId>, bytes: usize) -> Result<Self, Report> {
        let untaken = usage.answer(bytes);
        let untaken = untaken.ok_or_else(|| {
            overloaded("64 MiB of answers wait to be read on this connection: read them, or ask for less at a time")
        })?;
        let full = || {
            overloaded(
                "too many bytes of answers wait to be read by their clients; try again, and ask for less at a time",
            )
        };
        let answer = tenant.map(|tenant| answers.admit(tenant, bytes).ok_or_else(full)).transpose()?;
        Ok(Self { _answer: answer, _untaken: untaken })
    }

    /// Room for the answer to a change of a binding, before it is made: afterwards it cannot be refused any more.
    pub(crate) fn of_bindings(answers: &dyn Admit, usage: &Usage, tenant: Option<&TenantId>) -> Result<Self, Status> {
        Self::of_tenant(answers, usage, tenant, BINDINGS_BYTES).map_err(|report| report.not_applied().status())
    }

    /// The answer, for which there is room until it has been sent.
    pub(crate) fn with<T>(self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        response.extensions_mut().insert(UntilSent(Arc::new(self)));
        response
    }
}

/// The answer to a call that lists something, for which there is room until it has been sent.
pub(crate) fn listed<T: Message>(
    answers: &dyn Admit,
    usage: &Usage,
    tenant: Option<&TenantId>,
    answer: T,
) -> Result<Response<T>, Status> {
    let kept = Kept::of_tenant(answers, usage, tenant, answer.encoded_len()).map_err(Report::status)?;
    Ok(kept.with(answer))
}

/// The use that is made of the connection of a call.
pub(crate) fn usage<T>(request: &Request<T>) -> Usage {
    request.extensions().get::<Peer>().map(|peer| peer.usage.clone()).unwrap_or_default()
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
