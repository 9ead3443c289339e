//! Storage nodes and their stores.

use std::collections::BTreeMap;

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::stores::Meeting;
use witan_kernel::port::{
    Answer, Changed, Commit, Met, NODES, NodeOnRecord, Placement, PlacementStore, RingOnRecord, StorageNode,
    StoreError, StoreOnRecord, StoreState, rules, stores,
};
use witan_kernel::ring::Member;
use witan_kernel::scan::Trust;

use super::{MemoryMetadata, State};

impl State {
    /// Forgets all commit numbers, and that stores were set back.
    pub(super) fn forget_commits(&mut self) {
        for store in self.stores.values_mut() {
            store.commit = 0;
            if store.state == StoreState::SetBack {
                store.state = StoreState::Reported;
            }
        }
        self.changed(Changed::Nodes);
    }

    fn add_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        if self.nodes.contains_key(&node.id) {
            return Err(rules::node_exists(&node.id));
        }
        self.put_node(node, now_ms)
    }

    fn put_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        rules::node(&node)?;
        let is_new = !self.nodes.contains_key(&node.id);
        if is_new && self.nodes.len() >= NODES {
            return Err(rules::too_many_nodes());
        }
        // One that leaves is no member, and does not become one by another address.
        if let Some(mut newest) = self.rings.last_entry()
            && (is_new || newest.get().contains_key(&node.id))
        {
            newest.get_mut().insert(node.id.clone(), node.member());
        }
        self.write_node(node, now_ms);
        self.placement_changed();
        Ok(())
    }

    pub(super) fn write_node(&mut self, node: StorageNode, now_ms: u64) {
        let known = self.nodes.get(&node.id);
        let record = NodeOnRecord {
            store_id: known.and_then(|known| known.store_id),
            drained: known.is_some_and(|known| known.drained),
            created_at_ms: known.map_or(now_ms, |known| known.created_at_ms),
            updated_at_ms: now_ms,
            node,
        };
        self.nodes.insert(record.node.id.clone(), record);
    }

    /// The next epoch of the placement.
    pub(super) fn placement_changed(&mut self) -> u64 {
        self.placement_epoch = self.changed(Changed::Nodes);
        self.placement_epoch
    }

    pub(super) fn placement(&self) -> Placement {
        let ring = |(version, members): (&u64, &BTreeMap<NodeId, Member>)| RingOnRecord {
            version: *version,
            members: members.values().cloned().collect(),
        };
        let mut rings: Vec<RingOnRecord> = self.rings.iter().map(ring).collect();
        if rings.is_empty() {
            let all = self.nodes.values().map(|on_record| on_record.node.member());
            rings.push(RingOnRecord { version: 0, members: all.collect() });
        }
        Placement { epoch: self.placement_epoch.max(1), nodes: self.nodes.values().cloned().collect(), rings }
    }

    /// No store that a node has reported is used again.
    pub(super) fn retire_stores(&mut self, id: &NodeId) {
        if let Some(on_record) = self.nodes.get(id).and_then(|node| node.store_id) {
            self.store(id, on_record);
        }
        let of_node = self.stores.values_mut().filter(|store| store.node == *id);
        of_node.for_each(|store| store.state = StoreState::Retired);
    }

    /// Forgets a node, and what it owes and has left over. Its stores stay as they are.
    pub(super) fn forget_node(&mut self, id: &NodeId) {
        self.nodes.remove(id);
        self.owed.retain(|(_, node), _| node != id);
        self.owed_removals.retain(|(_, node)| node != id);
        self.leftovers.retain(|(_, node, _), _| node != id);
    }
}

impl PlacementStore for MemoryMetadata {
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()> {
        self.answer(move |state| {
            if !state.nodes.is_empty() {
                return Ok(());
            }
            let rings = state.rings.clone();
            let stored = nodes.into_iter().try_for_each(|node| state.add_node(node, now_ms));
            if stored.is_err() {
                state.nodes.clear();
                state.rings = rings;
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

    fn readdress_node(&self, id: &NodeId, host: &str, port: u16, now_ms: u64) -> Answer<()> {
        let (id, host) = (id.clone(), host.to_owned());
        self.answer(move |state| {
            let known = state.node(&id)?.node.clone();
            state.put_node(StorageNode { host, port, ..known }, now_ms)
        })
    }

    fn drain_node(&self, id: &NodeId, drained: bool, now_ms: u64) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            let known = state.node(&id)?;
            if known.drained != drained {
                (known.drained, known.updated_at_ms) = (drained, now_ms);
                state.changed(Changed::Nodes);
            }
            Ok(())
        })
    }

    fn placement(&self) -> Answer<Placement> {
        self.answer(|state| Ok(state.placement()))
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            state.node(&id)?;
            state.forget_node(&id);
            state.stores.retain(|_, store| store.node != id);
            state.rings.values_mut().for_each(|members| members.retain(|member, _| *member != id));
            state.placement_changed();
            Ok(())
        })
    }

    fn meet_store(&self, id: &NodeId, store: StoreId, commit: u64, before: u64) -> Answer<Met> {
        let id = id.clone();
        self.answer(move |state| {
            let on_record = state.node(&id)?.store_id;
            let (met, meeting) = stores::meet(&id, on_record, store, (commit, before), &state.all_stores());
            match meeting {
                // Nothing is remembered of a store that nobody uses: a node without a disk of its own comes with a new one each time.
                Meeting::Known if met.trust == Trust::Unadmitted => return Ok(met),
                Meeting::Known => {
                    state.store(&id, store);
                    return Ok(met);
                }
                Meeting::First => {
                    state.node(&id)?.store_id = Some(store);
                    state.store(&id, store);
                }
                Meeting::Back => state.drop_admitted(&id),
                Meeting::SetBack => state.store(&id, store).state = StoreState::SetBack,
            }
            state.changed(Changed::Nodes);
            Ok(met)
        })
    }

    fn admit_store(&self, id: &NodeId, from: StoreId, store: StoreId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| state.admit_store(&id, from, store))
    }

    fn replace_store(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            let on_record = state.node(&id)?.store_id;
            if stores::replaces(&id, on_record, from, to, &state.all_stores())? {
                state.node(&id)?.store_id = Some(to);
                state.store(&id, from).state = StoreState::Retired;
                state.store(&id, to).state = StoreState::Reported;
                state.changed(Changed::Nodes);
            }
            Ok(())
        })
    }

    fn stores(&self) -> Answer<Vec<StoreOnRecord>> {
        self.answer(|state| Ok(state.all_stores()))
    }

    fn note_commits(&self, commits: Vec<Commit>) -> Answer<()> {
        self.answer(move |state| {
            for Commit { store, commit, keys } in commits {
                let Some(known) = state.stores.get_mut(&store) else { continue };
                known.commit = known.commit.max(commit);
                known.keys = keys.unwrap_or(known.keys);
            }
            Ok(())
        })
    }
}

impl State {
    fn node(&mut self, id: &NodeId) -> Result<&mut NodeOnRecord, StoreError> {
        self.nodes.get_mut(id).ok_or_else(|| rules::no_node(id))
    }

    /// The record of a store, made if there is none.
    fn store(&mut self, id: &NodeId, store: StoreId) -> &mut StoreOnRecord {
        let new = || StoreOnRecord { store, node: id.clone(), state: StoreState::Reported, commit: 0, keys: 0 };
        self.stores.entry(store).or_insert_with(new)
    }

    pub(super) fn admit_store(&mut self, id: &NodeId, from: StoreId, store: StoreId) -> Result<(), StoreError> {
        let on_record = self.node(id)?.store_id;
        stores::admits(id, on_record, from, store, &self.all_stores())?;
        self.drop_admitted(id);
        self.store(id, store).state = StoreState::Filling;
        self.changed(Changed::Nodes);
        Ok(())
    }

    pub(super) fn all_stores(&self) -> Vec<StoreOnRecord> {
        self.stores.values().cloned().collect()
    }

    /// The store that was admitted for a node, if any, is merely reported again.
    pub(super) fn drop_admitted(&mut self, id: &NodeId) {
        let of_node = self.stores.values_mut().filter(|store| store.node == *id);
        of_node.filter(|store| store.state == StoreState::Filling).for_each(|store| store.state = StoreState::Reported);
    }
}
