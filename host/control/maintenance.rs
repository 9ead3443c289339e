//! What operators do to a single node without changing its place in the ring: fill its new disk at once, and take it out of service for a
//! while. See docs/decisions/0043.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use witan_kernel::capability::MAINTENANCE;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::placement::Placed;
use witan_kernel::port::moves::replaces::{fewest_others, too_few_sources};
use witan_kernel::port::{Duty, Placement, PlacementChange, StoreError, stores};
use witan_kernel::ring::Ring;
use witan_kernel::scan::{Fullness, Standing, Trust};
use witan_kernel::tenant::Level;

use super::migrations::members;
use super::plan::{Plan, PlannedFill, PlannedSource, Shares, width};
use super::{Catalog, Changed, Refused, Turn, to_its_end};

/// A node whose store is to be replaced by the one that it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The node.
    pub node: NodeId,
    /// Also if too few other replicas are left to know what it has to hold.
    pub accept_loss: bool,
}

/// The store on record, and the one that takes its place.
pub(super) struct Exchanged {
    pub(super) from: StoreId,
    pub(super) to: StoreId,
}

impl Catalog {
    /// Admits the store that a node shows in place of the one on record, and has it filled at once, by a migration that is recorded. Runs
    /// to completion even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn replace_store(
        self: &Arc<Self>,
        turn: Turn,
        replacement: Replacement,
        now_ms: u64,
    ) -> Result<Changed, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move { catalog.replace(replacement, now_ms).await }).await
    }

    async fn replace(&self, replacement: Replacement, now_ms: u64) -> Result<Changed, Refused> {
        let _placing = self.placing.lock().await;
        let placement = self.metadata.placement().await?;
        let Exchanged { from, to } = self.exchanged(&replacement.node, &placement).await?;
        if !replacement.accept_loss
            && let Some(why) = self.lacks_sources(&replacement.node, &placement).await?
        {
            return Err(Refused::SourcesUnreachable(format!(
                "{why}; bring them back, or repeat the call with accept_loss"
            )));
        }
        self.maintenance_is_known("filling a new store at once").await?;
        let Replacement { node, accept_loss } = replacement;
        let change = PlacementChange::ReplaceStore { node: node.clone(), from, to, accept_loss };
        let migration = self.metadata.change_placement(change, now_ms).await.map_err(in_the_way)?;
        // Also what has failed before is tried again at once.
        self.metadata.want_duty(&Duty::fill()).await?;
        self.cluster.stores_changed().await;
        let keys = self.keys_of(from).await?;
        let message = format!(
            "node {node}: its new store {to} is being filled in place of {from}, which had about {keys} records; until it is whole, \
             nothing rests on the node"
        );
        Ok(Changed { migration: Some(migration), message })
    }

    /// The store that a node shows and the one on record, if the one can take the place of the other.
    pub(super) async fn exchanged(&self, id: &NodeId, placement: &Placement) -> Result<Exchanged, Refused> {
        let on_record = placement.nodes.iter().find(|known| known.node.id == *id);
        let on_record = on_record.ok_or_else(|| StoreError::Missing(format!("node {id}")))?;
        if !members(placement).iter().any(|member| member.node == *id) {
            return Err(Refused::MigrationConflict(format!(
                "node {id} leaves the ring: what it has is copied from the other replicas, and its store is not filled any more"
            )));
        }
        let Some(Standing { store: to, trust }) = self.cluster.standing(id) else {
            return Err(Refused::NodeAway(format!(
                "node {id} cannot be reached; start it under the same id on the new, empty disk, and repeat the call. If the machine is \
                 lost for good, remove the node by force"
            )));
        };
        let whole = || {
            Refused::NothingToReplace(format!(
                "node {id} shows the store that is on record, {to}: there is nothing to replace. To fill an empty disk in its place, stop \
                 the node, move its folder aside, and start it again first"
            ))
        };
        // The second: another coordinator has put it on record just now.
        match on_record.store_id {
            Some(from) if from == to || trust == Trust::Whole => Err(whole()),
            None => Err(whole()),
            Some(from) => {
                let known = self.metadata.stores().await?;
                match stores::admits(id, Some(from), from, to, &known) {
                    Ok(()) => Ok(Exchanged { from, to }),
                    Err(StoreError::Refused(why)) => Err(Refused::StoreRefused(why)),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Takes a node out of service for maintenance, or puts it back into it. Runs to completion even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn drain_node(
        self: &Arc<Self>,
        turn: Turn,
        id: NodeId,
        drained: bool,
        now_ms: u64,
    ) -> Result<Changed, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move { catalog.drain(&id, drained, now_ms).await }).await
    }

    async fn drain(&self, id: &NodeId, drained: bool, now_ms: u64) -> Result<Changed, Refused> {
        let _placing = self.placing.lock().await;
        let placement = self.metadata.placement().await?;
        let known = placement.nodes.iter().find(|known| known.node.id == *id);
        let was = known.ok_or_else(|| StoreError::Missing(format!("node {id}")))?.drained;
        self.maintenance_is_known("draining a node").await?;
        self.metadata.drain_node(id, drained, now_ms).await?;
        self.publish_placement().await;
        let already = if was == drained { " already" } else { "" };
        if !drained {
            return Ok(Changed::made(&format!("node {id} is in service{already}")));
        }
        let needed = match self.needed_for_quorums(id, &placement).await? {
            None => String::new(),
            Some(why) => format!("; {why}"),
        };
        Ok(Changed::made(&format!(
            "node {id} is drained{already}: others are asked before it is, and what it misses is noted{needed}"
        )))
    }

    /// Which tenants go on asking a node although it is drained; `None`: none, as long as all others that can be reached stay so.
    async fn needed_for_quorums(&self, id: &NodeId, placement: &Placement) -> Result<Option<String>, Refused> {
        let rings: BTreeMap<u64, Ring> =
            placement.rings.iter().map(|ring| (ring.version, Ring::of(&ring.members, placement.epoch))).collect();
        let drained = placement.drained();
        let serves = |node: &NodeId| self.cluster.state(node).reachable && !drained.contains(node);
        let mut known: BTreeMap<Placed, bool> = BTreeMap::new();
        let (mut count, mut first) = (0_u64, None);
        for tenant in self.every_tenant().await? {
            let Placed { ring, replication_factor, .. } = tenant.placed();
            let needs = *known.entry(tenant.placed()).or_insert_with(|| {
                let others = rings.get(&ring).and_then(|ring| fewest_others(ring, replication_factor, id, serves));
                others.is_some_and(|others| others < usize::from(Level::Quorum.required(replication_factor)))
            });
            if needs {
                count += 1;
                first.get_or_insert_with(|| format!("{} ({replication_factor} replicas)", tenant.id));
            }
        }
        Ok(first.map(|first| {
            format!(
                "{count} tenants, such as {first}, have too few other replicas in service for a quorum of some keys: they go on asking it, \
                 and fail for these keys while it is stopped"
            )
        }))
    }

    /// Why a new store of this node cannot be filled so that nothing is lost; `None`: it can be.
    pub(super) async fn lacks_sources(&self, id: &NodeId, placement: &Placement) -> Result<Option<String>, Refused> {
        let mut factors: Vec<u8> = self.every_tenant().await?.iter().map(|tenant| tenant.replication_factor).collect();
        factors.sort_unstable();
        factors.dedup();
        let rings: Vec<Ring> = placement.rings.iter().map(|ring| Ring::of(&ring.members, placement.epoch)).collect();
        let is_source = |node: &NodeId| self.cluster.state(node).reachable;
        let found = factors.iter().find_map(|factor| {
            let worst = rings.iter().find_map(|ring| too_few_sources(ring, *factor, id, is_source))?;
            Some((*factor, worst))
        });
        Ok(found.map(|(factor, (there, needed))| {
            let away: Vec<String> = placement
                .nodes
                .iter()
                .map(|known| &known.node.id)
                .filter(|node| *node != id && !is_source(node))
                .map(ToString::to_string)
                .collect();
            let away = if away.is_empty() { String::new() } else { format!(" (not used at present: {})", away.join(", ")) };
            format!(
                "of keys with {factor} replicas, {needed} other whole replicas have to be read to know what node {id} has to hold, and \
                 there are {there} for some{away}: acknowledged writes may be gone"
            )
        }))
    }

    /// Plans a replacement, and makes none. The disk need not be replaced yet.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn plan_replacement(&self, replacement: &Replacement) -> Result<Plan, Refused> {
        let Replacement { node, accept_loss } = replacement.clone();
        // Nobody looks at the stores of a plan.
        let (from, to) = (StoreId([0; 16]), StoreId([0; 16]));
        let mut plan = self.plan(&PlacementChange::ReplaceStore { node: node.clone(), from, to, accept_loss }).await?;
        let placement = self.metadata.placement().await?;
        let on_record = placement.nodes.iter().find(|known| known.node.id == node).and_then(|known| known.store_id);
        let keys = match on_record {
            Some(store) => self.keys_of(store).await?,
            None => 0,
        };
        let shares = self.shares_of_sources(&node, &placement).await?;
        let sources = shares.into_iter().map(|(source, share)| PlannedSource {
            keys: (share * keys as f64).round() as u64,
            reachable: self.cluster.state(&source).reachable,
            node: source,
        });
        plan.fill =
            Some(PlannedFill { keys, bytes_per_key: self.bytes_per_key(&placement).await, sources: sources.collect() });
        plan.nodes.iter_mut().filter(|planned| planned.node == node).for_each(|planned| planned.received = keys);
        Ok(plan)
    }

    /// For each other node the share of a node's records of which it is a replica, too.
    async fn shares_of_sources(&self, id: &NodeId, placement: &Placement) -> Result<Shares, Refused> {
        let ring = Ring::of(members(placement), placement.epoch);
        let (mut own, mut others) = (0.0, Shares::new());
        for tenant in self.every_tenant().await? {
            let ranges = ring.replica_ranges(&[tenant.replication_factor]);
            for range in ranges.iter().filter(|range| range.replicas.contains(id)) {
                let width = width((range.from, range.to));
                own += width;
                for other in range.replicas.iter().filter(|other| *other != id) {
                    *others.entry(other.clone()).or_default() += width;
                }
            }
        }
        others.values_mut().for_each(|share| *share /= f64::max(own, f64::MIN_POSITIVE));
        Ok(others)
    }

    /// Bytes that nodes have for each of their records; 0: not known.
    async fn bytes_per_key(&self, placement: &Placement) -> u64 {
        let asked = placement.nodes.iter().map(|known| self.cluster.fullness(&known.node.id));
        let full: Vec<Fullness> = join_all(asked).await.into_iter().flatten().collect();
        let sum = |of: fn(&Fullness) -> u64| full.iter().map(of).fold(0_u64, u64::saturating_add);
        sum(|it| it.bytes).checked_div(sum(|it| it.keys)).unwrap_or(0)
    }

    /// The number of records that a store has reported last.
    pub(super) async fn keys_of(&self, store: StoreId) -> Result<u64, Refused> {
        let known = self.metadata.stores().await?;
        Ok(known.iter().find(|known| known.store == store).map_or(0, |known| known.keys))
    }

    /// Why a replacement would be refused now, for people.
    pub(super) async fn replacement_problems(
        &self,
        id: &NodeId,
        accept_loss: bool,
        placement: &Placement,
    ) -> Result<Vec<String>, Refused> {
        let mut all = match self.exchanged(id, placement).await {
            Ok(_) => Vec::new(),
            Err(Refused::Store(error)) if !matches!(error, StoreError::Missing(_)) => return Err(error.into()),
            Err(refused) => vec![refused.to_string()],
        };
        all.extend(self.lacks_sources(id, placement).await?.filter(|_| !accept_loss));
        let coordinators = self.metadata.coordinators().await?;
        let old = coordinators.iter().filter(|it| it.is_live() && !it.names(MAINTENANCE));
        all.extend(old.map(|it| {
            format!("coordinator {} (version {}) does not know it: upgrade it", it.claim.node_id, it.claim.version)
        }));
        Ok(all)
    }

    /// Checks that every coordinator knows what this version's operators do to nodes, and that none will come that does not.
    pub(super) async fn maintenance_is_known(&self, what: &'static str) -> Result<(), Refused> {
        match self.metadata.require(MAINTENANCE).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict(who)) => Err(Refused::NoMaintenance { what, who }),
            Err(error) => Err(error.into()),
        }
    }
}

fn in_the_way(error: StoreError) -> Refused {
    match error {
        StoreError::Conflict(why) => Refused::MigrationConflict(why),
        StoreError::Refused(why) => Refused::StoreRefused(why),
        error => error.into(),
    }
}
