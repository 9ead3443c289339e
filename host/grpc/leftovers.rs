//! Calls about what moves have left on nodes.

use tonic::Status;
use witan_control::{Dropping, Leftovers};
use witan_coordinate::World;
use witan_kernel::name::{Invalid, NodeId, TenantId, shown};
use witan_kernel::port::{Leftover, Owing};
use witan_wire::v1;

use super::CoordinatorApi;
use super::guard::denied;
use super::status::invalid;
use super::tenants::{page_size, seconds, status};
use crate::access::caller::Caller;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn list_leftovers(
        &self,
        request: v1::ListLeftoversRequest,
    ) -> Result<v1::ListLeftoversResponse, Status> {
        let v1::ListLeftoversRequest { page_size: size, page_token, tenant_id, node_id } = request;
        let limit = page_size(size).map_err(|error| invalid(&error))?;
        let after = after(&page_token).map_err(|error| invalid(&error))?;
        let tenant = given(tenant_id, TenantId::new).map_err(|error| invalid(&error))?;
        let node = given(node_id, NodeId::new).map_err(|error| invalid(&error))?;
        let _turn = self.catalog.lookups().take(None).map_err(|error| status(&error))?;
        let found = self.catalog.leftovers(tenant.as_ref(), node.as_ref(), after, limit).await;
        let Leftovers { page, next } = found.map_err(|error| status(&error))?;
        Ok(v1::ListLeftoversResponse {
            leftovers: page.iter().map(|left| self.leftover(left)).collect(),
            next_page_token: next.map(|(tenant, node)| format!("{tenant}{SEPARATOR}{node}")).unwrap_or_default(),
        })
    }

    pub(super) async fn drop_leftovers(
        &self,
        caller: Caller,
        request: v1::DropLeftoversRequest,
    ) -> Result<v1::DropLeftoversResponse, Status> {
        let v1::DropLeftoversRequest { node_id, tenant_id, accept_loss } = request;
        let node = NodeId::new(node_id).map_err(|error| invalid(&error))?;
        let tenant = given(tenant_id, TenantId::new).map_err(|error| invalid(&error))?;
        if let Some(tenant) = &tenant {
            // The audit log names it.
            caller.may(tenant).map_err(|refused| denied(&caller, &refused))?;
        }
        let turn = self.operators_change()?;
        let dropped = self.catalog.drop_leftovers(turn, Dropping { node, tenant, accept_loss }).await;
        let dropped = dropped.map_err(|error| status(&error))?;
        Ok(v1::DropLeftoversResponse { success: true, dropped: i64::try_from(dropped).unwrap_or(i64::MAX) })
    }

    fn leftover(&self, left: &Leftover) -> v1::Leftover {
        v1::Leftover {
            tenant_id: left.tenant.to_string(),
            node_id: left.node.to_string(),
            only_copies: left.hand_over,
            node_reachable: self.catalog.answers(&left.node),
            created_at: seconds(left.created_at_ms),
        }
    }
}

/// Between a tenant's and a node's id in a page token: neither has it.
const SEPARATOR: char = ':';

fn after(token: &str) -> Result<Option<Owing>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = |(tenant, node)| Some((TenantId::new(tenant).ok()?, NodeId::new(node).ok()?));
    token.split_once(SEPARATOR).and_then(read).map(Some).ok_or_else(|| {
        let problem = format!("{} does not belong to this listing", shown(token));
        Invalid::new("page_token", problem, "send the next_page_token of the previous page")
    })
}

/// A name, unless it is empty.
fn given<T>(name: String, read: impl FnOnce(String) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
    if name.is_empty() { Ok(None) } else { read(name).map(Some) }
}
