//! What the coordinator's service needs of the plugin service.

use std::time::Instant;

use tonic::Status;
use witan_kernel::hook::Pending;
use witan_wire::v1;

/// Plans changes of routing hooks.
pub trait PlanHook: Send + Sync + 'static {
    /// What a change would do; nothing changes.
    fn plan_hook(
        &self,
        request: v1::BindPluginRequest,
        until: Instant,
    ) -> Pending<Result<v1::PlanMigrationResponse, Status>>;
}
