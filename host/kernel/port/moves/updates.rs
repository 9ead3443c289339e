//! A member of the ring gets another number of virtual nodes, or another zone.

use super::{OnRecord, Plan};
use crate::name::{NodeId, Zone};
use crate::port::{Migration, StorageNode, StoreError, rules};
use crate::ring::Member;

impl Member {
    /// With what is named in place of what it has.
    #[must_use]
    pub fn updated(&self, virtual_nodes: Option<u32>, zone: Option<&Zone>) -> Self {
        Self {
            node: self.node.clone(),
            virtual_nodes: virtual_nodes.unwrap_or(self.virtual_nodes),
            zone: zone.unwrap_or(&self.zone).clone(),
        }
    }
}

impl OnRecord<'_> {
    pub(super) fn plan_update(
        &self,
        plan: &mut Plan,
        id: &NodeId,
        virtual_nodes: Option<u32>,
        zone: Option<Zone>,
    ) -> Result<(), StoreError> {
        let node = self.node(id).ok_or_else(|| rules::no_node(id))?;
        let member = self.member(id).ok_or_else(|| {
            StoreError::Refused(format!(
                "storage node {id} leaves the ring, and what it is there does not change any more; cancel its removal first"
            ))
        })?;
        let updated = member.updated(virtual_nodes, zone.as_ref());
        if updated == *member {
            return Err(StoreError::Refused(format!(
                "storage node {id} has {} virtual nodes and {} already; name another number or another zone",
                member.virtual_nodes, member.zone
            )));
        }
        plan.migration.was = Some(member.clone());
        let node = as_member(node, &updated);
        rules::node(&node)?;
        self.next_ring(plan, |members| replace(members, updated));
        plan.node = Some(node);
        Ok(())
    }

    /// Takes an update of a member back: what it has changed is as it was before. No later change of nodes rests on it.
    pub(super) fn plan_no_update(&self, plan: &mut Plan, of: &Migration, virtual_nodes: bool, zone: bool) {
        let Some(was) = &of.was else { return };
        let (Some(node), Some(member)) = (self.node(&was.node), self.member(&was.node)) else { return };
        let virtual_nodes = virtual_nodes.then_some(was.virtual_nodes);
        let back = member.updated(virtual_nodes, zone.then_some(&was.zone));
        plan.node = Some(as_member(node, &back));
        self.next_ring(plan, |members| replace(members, back));
    }
}

fn as_member(node: &StorageNode, member: &Member) -> StorageNode {
    StorageNode { virtual_nodes: member.virtual_nodes, zone: member.zone.clone(), ..node.clone() }
}

fn replace(members: &mut [Member], by: Member) {
    if let Some(member) = members.iter_mut().find(|member| member.node == by.node) {
        *member = by;
    }
}
