//! Plugins that were pushed and that nobody waited for: whoever asks for one learns how far it has come.

use std::time::{Duration, Instant};

use tonic::{Code, Status};
use witan_kernel::name::TenantId;
use witan_kernel::port::{Digest, PushOnRecord, PushState};
use witan_plugin::{Reference, limit};

use super::{PluginApi, status};
use crate::grpc::status::refused;
use crate::grpc::tenants;

/// How often a call that waits for a push looks at it: each look reads one row.
const LOOK: Duration = Duration::from_millis(250);

impl PluginApi {
    /// The push of a component that a reference means by its digest, if it is not a plugin that is known here. One that another coordinator
    /// has made ready is known here afterwards.
    pub(super) async fn unknown_push(
        &self,
        tenant: Option<&TenantId>,
        text: &str,
        on_behalf_of: Option<&TenantId>,
    ) -> Result<Option<PushOnRecord>, Status> {
        let Some(reference @ Reference::Digest(digest)) = Reference::parse(text) else { return Ok(None) };
        if self.host.artifact(tenant, &reference).is_some() {
            return Ok(None);
        }
        match self.push_on_record(tenant, digest, on_behalf_of).await? {
            Some(push) if push.state == PushState::Ready => {
                self.host.learn().await.map_err(status)?;
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// The tenant's own push, or else the operator's.
    async fn push_on_record(
        &self,
        tenant: Option<&TenantId>,
        digest: Digest,
        on_behalf_of: Option<&TenantId>,
    ) -> Result<Option<PushOnRecord>, Status> {
        let refused = |refused| tenants::status(&refused);
        let _turn = self.catalog.lookups().take(on_behalf_of).map_err(refused)?;
        if tenant.is_some()
            && let Some(own) = self.catalog.push_on_record(tenant, digest).await.map_err(refused)?
        {
            return Ok(Some(own));
        }
        self.catalog.push_on_record(None, digest).await.map_err(refused)
    }

    /// Waits for a plugin that is to be bound or tried and is still being staged, until `deadline`, or for [`limit::COMPILER_WAIT`] if that
    /// is shorter.
    pub(super) async fn staged(
        &self,
        tenant: Option<&TenantId>,
        text: &str,
        deadline: Option<Instant>,
        on_behalf_of: Option<&TenantId>,
    ) -> Result<(), Status> {
        let longest = Instant::now() + limit::COMPILER_WAIT;
        let until = deadline.map_or(longest, |deadline| deadline.min(longest));
        while let Some(push) = self.unknown_push(tenant, text, on_behalf_of).await? {
            // An answer that the client does not wait for is none.
            if !push.state.is_under_way() || Instant::now() + 2 * LOOK >= until {
                return Err(not_ready(&push));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn not_ready(push: &PushOnRecord) -> Status {
    let PushOnRecord { digest, state, reason, worker, .. } = push;
    if !state.is_under_way() {
        let message = format!("plugin {digest} was refused when it was pushed: {reason}");
        return refused(Code::FailedPrecondition, "PLUGIN_REFUSED", message);
    }
    let whose = push.owner.as_ref().map_or_else(String::new, |tenant| format!(" --tenant {tenant}"));
    let message = format!(
        "plugin {digest} is {state} at coordinator {worker}; bind it once it is ready, as `witan plugin show {digest}{whose}` says"
    );
    refused(Code::FailedPrecondition, "PLUGIN_NOT_READY", message)
}
