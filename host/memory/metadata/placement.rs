//! Storage nodes and their stores.

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{
    Answer, Changed, NODES, NodeOnRecord, Placement, PlacementStore, StorageNode, StoreError, rules,
};

use super::{MemoryMetadata, State};

impl State {
    fn add_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        if self.nodes.contains_key(&node.id) {
            return Err(rules::node_exists(&node.id));
        }
        self.put_node(node, now_ms)
    }

    fn put_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        rules::node(&node)?;
        let known = self.nodes.get(&node.id);
        if known.is_none() && self.nodes.len() >= NODES {
            return Err(rules::too_many_nodes());
        }
        let record = NodeOnRecord {
            store_id: known.and_then(|known| known.store_id),
            created_at_ms: known.map_or(now_ms, |known| known.created_at_ms),
            updated_at_ms: now_ms,
            node,
        };
        self.nodes.insert(record.node.id.clone(), record);
        self.placement_epoch = self.changed(Changed::Nodes);
        Ok(())
    }
}

impl PlacementStore for MemoryMetadata {
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()> {
        self.answer(move |state| {
            if !state.nodes.is_empty() {
                return Ok(());
            }
            let stored = nodes.into_iter().try_for_each(|node| state.add_node(node, now_ms));
            if stored.is_err() {
                state.nodes.clear();
            }
            stored
        })
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| state.add_node(node, now_ms))
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| state.put_node(node, now_ms))
    }

    fn placement(&self) -> Answer<Placement> {
        self.answer(|state| {
            Ok(Placement { epoch: state.placement_epoch.max(1), nodes: state.nodes.values().cloned().collect() })
        })
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            state.nodes.remove(&id).ok_or_else(|| rules::no_node(&id))?;
            state.placement_epoch = state.changed(Changed::Nodes);
            Ok(())
        })
    }

    fn record_store_id(&self, id: &NodeId, reported: StoreId) -> Answer<StoreId> {
        let id = id.clone();
        self.answer(move |state| {
            let record = state.nodes.get_mut(&id).ok_or_else(|| rules::no_node(&id))?;
            if let Some(on_record) = record.store_id {
                return Ok(on_record);
            }
            record.store_id = Some(reported);
            state.changed(Changed::Nodes);
            Ok(reported)
        })
    }

    fn replace_store_id(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            let on_record = state.nodes.get(&id).ok_or_else(|| rules::no_node(&id))?.store_id;
            let others = state.nodes.values().filter(|other| other.node.id != id).filter_map(|other| other.store_id);
            if rules::replaces_store(&id, on_record, from, to, others)?
                && let Some(record) = state.nodes.get_mut(&id)
            {
                record.store_id = Some(to);
                state.changed(Changed::Nodes);
            }
            Ok(())
        })
    }
}
