//! What the plugin service needs of the coordinator: questions about the keys that a tenant has.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use tokio_stream::Stream;
use tonic::Status;
use witan_coordinate::{Coordinator, World};
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::question::Found;

use super::status::report;

/// What is found, one after the other, as it is wanted.
pub(crate) type Findings = Pin<Box<dyn Stream<Item = Result<Found, Status>> + Send>>;

/// Finds questions for plugins.
pub trait Ask: Send + Sync + 'static {
    /// Looks for questions to the plugins of a hook, for at most this time. Nothing is looked for that is not wanted yet.
    fn ask(self: Arc<Self>, tenant: TenantId, hook: Hook, within: Duration) -> Findings;
}

impl<W: World> Ask for Coordinator<W> {
    fn ask(self: Arc<Self>, tenant: TenantId, hook: Hook, within: Duration) -> Findings {
        let questions = Some(self.questions(tenant, hook, within));
        Box::pin(stream::unfold(questions, async |questions| {
            let mut questions = questions?;
            match questions.next().await {
                Ok(found) => found.map(|found| (Ok(found), Some(questions))),
                Err(failure) => Some((Err(report(failure.of_read()).status()), None)),
            }
        }))
    }
}
