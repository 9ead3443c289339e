//! What moves have left on nodes that hold no replica of it any longer: listed, and given up where a node does not come back.

use std::sync::Arc;

use witan_kernel::name::{Invalid, NodeId, TenantId};
use witan_kernel::port::{Leftover, Owing};

use super::{Catalog, Refused, Turn, to_its_end};

/// A page of leftovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    /// By tenant, node and epoch.
    pub page: Vec<Leftover>,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<Owing>,
}

/// Leftovers of a node that are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    /// The node.
    pub node: NodeId,
    /// Those of this tenant only.
    pub tenant: Option<TenantId>,
    /// Also those that may be the only copies of what was acknowledged.
    pub accept_loss: bool,
}

impl Catalog {
    /// Leftovers of one tenant, or of all, on one node, or on all, after this tenant and node; about `limit`: all of a tenant on a node are
    /// on one page, which may be longer for that.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn leftovers(
        &self,
        tenant: Option<&TenantId>,
        node: Option<&NodeId>,
        mut after: Option<Owing>,
        limit: u32,
    ) -> Result<Leftovers, Refused> {
        let (limit, mut page) = (limit as usize, Vec::<Leftover>::new());
        loop {
            let read = self.metadata.leftovers(tenant, after).await?;
            let Some(last) = read.last().map(of) else { return Ok(Leftovers { page, next: None }) };
            for left in read.into_iter().filter(|left| node.is_none_or(|node| left.node == *node)) {
                let before = page.last().map(of).filter(|before| *before != of(&left));
                if page.len() >= limit && before.is_some() {
                    return Ok(Leftovers { page, next: before });
                }
                page.push(left);
            }
            after = Some(last);
        }
    }

    /// Whether a node that has leftovers answers, so that it will have dropped them soon.
    pub fn answers(&self, node: &NodeId) -> bool {
        self.cluster.state(node).reachable
    }

    /// Forgets leftovers of a node, so that nothing waits for the node any longer, and returns how many there were. Runs to completion even
    /// if the caller is dropped.
    ///
    /// The rows stay on the node for as long as it keeps its store, and nobody reads them: a request for a record goes to the nodes where
    /// the tenant is or moves to, and before a node becomes one of these, it drops what it has of the ranges that it enters.
    ///
    /// # Errors
    /// [`Refused::Invalid`] if they may be the only copies of what was acknowledged and `accept_loss` is not set; then nothing is
    /// forgotten. Else the error of the store.
    pub async fn drop_leftovers(self: &Arc<Self>, turn: Turn, dropping: Dropping) -> Result<u64, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move { catalog.forget_leftovers(&dropping).await }).await
    }

    async fn forget_leftovers(&self, dropping: &Dropping) -> Result<u64, Refused> {
        let Dropping { node, tenant, accept_loss } = dropping;
        // All of them, and before any is forgotten: a refusal has changed nothing.
        let all = self.leftovers(tenant.as_ref(), Some(node), None, u32::MAX).await?.page;
        if let Some(only) = all.iter().find(|left| left.hand_over && !accept_loss) {
            let tenant = &only.tenant;
            let problem = format!(
                "is not set, and node {node} may have the only copies of what was acknowledged at level one in tenant {tenant}"
            );
            let remedy = "bring the node back, which hands them over, or set it to give them up";
            return Err(Invalid::new("accept_loss", problem, remedy).into());
        }
        for Leftover { tenant, node, epoch, hand_over, .. } in &all {
            self.metadata.leftover_cleaned(tenant, node, *epoch).await?;
            tracing::warn!(%tenant, %node, epoch, hand_over, "what a move has left on a node was given up");
        }
        Ok(all.len() as u64)
    }
}

fn of(left: &Leftover) -> Owing {
    (left.tenant.clone(), left.node.clone())
}
