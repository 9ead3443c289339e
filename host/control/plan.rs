//! What a change of the placement would move, and what would stand in its way: for people, before they ask for it.

use std::collections::BTreeMap;

use futures::future::join_all;
use witan_kernel::name::NodeId;
use witan_kernel::placement::{Tokens, entering};
use witan_kernel::port::{Placement, PlacementChange, StorageNode};
use witan_kernel::ring::Ring;
use witan_kernel::scan::Fullness;

use super::migrations::members;
use super::{Catalog, Refused};

/// From here on, a disk is reported as a problem: a log-structured store needs room to rewrite what it has.
const FULL_PERCENT: f32 = 85.0;

/// What a change would do. Estimates: tenants are taken to have about the same number of keys, and disks to hold nothing but records.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Every node, by id.
    pub nodes: Vec<PlannedNode>,
    /// Copies of records that would be made, as a share of all that there are afterwards.
    pub moved_share: f64,
    /// The least share that any placement would have to move.
    pub least_share: f64,
    /// Tenants that it concerns.
    pub tenants: u64,
    /// Why it would be refused or would wait, for people.
    pub problems: Vec<String>,
}

/// A node's part of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedNode {
    /// The node.
    pub node: NodeId,
    /// Copies of records that it would receive.
    pub received: u64,
    /// Copies of records that it would drop.
    pub dropped: u64,
    /// Its share of all copies before.
    pub share_before: f64,
    /// Its share of all copies afterwards.
    pub share_after: f64,
    /// The use of its disk; 0: not known.
    pub disk_percent: f32,
    /// The use of its disk afterwards; 0: not known.
    pub disk_percent_after: f32,
}

/// Shares of the ring by node: 1 is a replica of every key.
type Shares = BTreeMap<NodeId, f64>;

/// One step of the replication factors that a change makes, and how many tenants make it.
struct Class {
    from: u8,
    to: u8,
    tenants: u64,
}

impl Catalog {
    /// Plans a change, and makes none.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn plan(&self, change: &PlacementChange) -> Result<Plan, Refused> {
        let placement = self.metadata.placement().await?;
        let nodes: Vec<StorageNode> = placement.nodes.iter().map(|on_record| on_record.node.clone()).collect();
        let asked = nodes.iter().map(|node| async { (node.id.clone(), self.cluster.fullness(&node.id).await) });
        let full: BTreeMap<NodeId, Option<Fullness>> = join_all(asked).await.into_iter().collect();
        let (before, after) = (members(&placement).to_vec(), after(change, members(&placement)));
        let classes = self.classes(change, after.len()).await?;
        let mut problems = self.problems(change, &placement).await?;
        let copies: u64 = full.values().flatten().map(|full| full.keys).sum();
        let made = Made::of(change, &classes, &Ring::new(&before, 0), &Ring::new(&after, 0));
        // Copies of the tenants that it concerns, of which all others have as many each.
        let keys = copies as f64 / self.weight().await?.max(1.0);
        let mut planned = Vec::new();
        for node in all(&nodes, &after) {
            let full = full.get(&node).copied().flatten();
            let count = |shares: &Shares| shares.get(&node).copied().unwrap_or(0.0) * keys;
            let (received, dropped) = (count(&made.received), count(&made.dropped));
            let disk_percent = full.map_or(0.0, |full| full.disk_usage_percent);
            let disk_percent_after = match full {
                Some(full) if full.keys > 0 => {
                    let factor = (full.keys as f64 + received - dropped).max(0.0) / full.keys as f64;
                    (f64::from(disk_percent) * factor) as f32
                }
                _ => 0.0,
            };
            if disk_percent_after > FULL_PERCENT && received > dropped {
                problems.push(format!("the disk of node {node} would become about {disk_percent_after:.0} % full"));
            }
            planned.push(PlannedNode {
                share_before: share(&made.before, &node),
                share_after: share(&made.after, &node),
                received: received.round() as u64,
                dropped: dropped.round() as u64,
                node,
                disk_percent,
                disk_percent_after,
            });
        }
        let total: f64 = made.after.values().sum();
        let moved_share = if total > 0.0 { made.received.values().sum::<f64>() / total } else { 0.0 };
        let tenants = classes.iter().map(|class| class.tenants).sum();
        Ok(Plan { nodes: planned, moved_share, least_share: least(change, &before, &made), tenants, problems })
    }

    /// The tenants that a change concerns, by what it does to their factor. `nodes`: how many there are afterwards.
    async fn classes(&self, change: &PlacementChange, nodes: usize) -> Result<Vec<Class>, Refused> {
        let room = |factor: u8| factor.min(u8::try_from(nodes).unwrap_or(u8::MAX));
        if let PlacementChange::ReplicationFactor { tenant, to } = change {
            let from = self.tenant(tenant).await?.replication_factor;
            return Ok(vec![Class { from, to: room(*to), tenants: 1 }]);
        }
        let mut by_factor: BTreeMap<u8, u64> = BTreeMap::new();
        for tenant in self.every_tenant().await? {
            *by_factor.entry(tenant.wanted_factor.unwrap_or(tenant.replication_factor)).or_default() += 1;
        }
        Ok(by_factor.into_iter().map(|(from, tenants)| Class { from, to: room(from), tenants }).collect())
    }

    /// How many copies there are of one key of each tenant, all together.
    async fn weight(&self) -> Result<f64, Refused> {
        Ok(self.every_tenant().await?.iter().map(|tenant| f64::from(tenant.replication_factor)).sum())
    }

    /// Why a change would be refused or would wait.
    async fn problems(&self, change: &PlacementChange, placement: &Placement) -> Result<Vec<String>, Refused> {
        let mut all: Vec<String> =
            self.too_old().await?.into_iter().map(|who| format!("{who} cannot move records: upgrade it")).collect();
        if all.is_empty() && !self.cluster.moves() {
            all.push("records cannot be moved here: changes are not fenced (consistency.fence_changes)".to_owned());
        }
        let on_record = |id: &NodeId| placement.nodes.iter().any(|on_record| on_record.node.id == *id);
        let now = members(placement);
        let mut lost = None;
        let checked = match change {
            PlacementChange::AddNode(node) if on_record(&node.id) => {
                all.push(format!("node {} is on record already", node.id));
                Ok(())
            }
            PlacementChange::AddNode(node) => self.address_is_free(node).await,
            PlacementChange::RemoveNode { node, .. } if !now.iter().any(|(member, _)| member == node) => {
                all.push(format!("node {node} is not part of the ring"));
                Ok(())
            }
            PlacementChange::RemoveNode { node, force } => {
                if *force {
                    lost = Some(node);
                    all.extend(self.loss_with(node, placement).await?);
                }
                self.may_go(node, now.len() - 1).await
            }
            PlacementChange::ReplicationFactor { to, .. } => self.enough_nodes(*to).await,
        };
        match checked {
            Ok(()) => {}
            Err(Refused::Store(error)) => return Err(error.into()),
            Err(refused) => all.push(refused.to_string()),
        }
        let ids = placement.nodes.iter().map(|on_record| &on_record.node.id).filter(|node| lost != Some(*node));
        let away = ids.filter(|node| !self.cluster.state(node).reachable);
        all.extend(away.map(|node| format!("node {node} cannot be reached: the change may wait for it")));
        if self.cluster.moves() {
            let before = self.unended().await?;
            all.extend(
                before.iter().map(|it| format!("migration m-{} has not ended: this one may wait for it", it.number)),
            );
        }
        Ok(all)
    }
}

/// What a change does, in shares of the ring, all tenants together.
#[derive(Default)]
struct Made {
    before: Shares,
    after: Shares,
    received: Shares,
    dropped: Shares,
}

impl Made {
    fn of(change: &PlacementChange, classes: &[Class], old: &Ring, new: &Ring) -> Self {
        let mut made = Self::default();
        // Without tenants, what it would be for one with three replicas shows at least the shares.
        let most = u8::try_from(old.len().min(new.len())).unwrap_or(u8::MAX).min(3);
        let one = [Class { from: most, to: most, tenants: 1 }];
        for class in if classes.is_empty() { &one[..] } else { classes } {
            let weight = class.tenants as f64;
            add(&mut made.before, &held(old, class.from), weight);
            add(&mut made.after, &held(new, class.to), weight);
            add(&mut made.received, &widths(&entering((old, class.from), (new, class.to))), weight);
            add(&mut made.dropped, &widths(&entering((new, class.to), (old, class.from))), weight);
        }
        if let PlacementChange::RemoveNode { node, force: true } = change {
            // What a lost node has is not dropped.
            made.dropped.remove(node);
        }
        made
    }
}

/// The least share of all copies afterwards that has to be made.
fn least(change: &PlacementChange, before: &[(NodeId, u32)], made: &Made) -> f64 {
    match change {
        PlacementChange::AddNode(node) => {
            let others: u64 = before.iter().map(|(_, count)| u64::from(*count)).sum();
            let all = others + u64::from(node.virtual_nodes);
            f64::from(node.virtual_nodes) / (all as f64).max(1.0)
        }
        // Each of its copies has to be made again.
        PlacementChange::RemoveNode { node, .. } => share(&made.before, node),
        PlacementChange::ReplicationFactor { .. } => {
            let (old, new): (f64, f64) = (made.before.values().sum(), made.after.values().sum());
            if new > 0.0 { ((new - old) / new).max(0.0) } else { 0.0 }
        }
    }
}

/// The members of the ring after a change.
fn after(change: &PlacementChange, before: &[(NodeId, u32)]) -> Vec<(NodeId, u32)> {
    let mut members = before.to_vec();
    match change {
        PlacementChange::AddNode(node) => {
            members.retain(|(member, _)| *member != node.id);
            members.push((node.id.clone(), node.virtual_nodes));
        }
        PlacementChange::RemoveNode { node, .. } => members.retain(|(member, _)| member != node),
        PlacementChange::ReplicationFactor { .. } => {}
    }
    members
}

/// The nodes on record and those of the ring afterwards, each once, by id.
fn all(nodes: &[StorageNode], after: &[(NodeId, u32)]) -> Vec<NodeId> {
    let both = nodes.iter().map(|node| &node.id).chain(after.iter().map(|(node, _)| node));
    both.collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect()
}

/// How much of the ring each node has replicas of.
fn held(ring: &Ring, factor: u8) -> Shares {
    let mut shares = Shares::new();
    for range in ring.replica_ranges(&[factor]) {
        for node in &range.replicas {
            *shares.entry(node.clone()).or_default() += width((range.from, range.to));
        }
    }
    shares
}

fn widths(ranges: &BTreeMap<NodeId, Vec<Tokens>>) -> Shares {
    ranges.iter().map(|(node, of)| (node.clone(), of.iter().copied().map(width).sum())).collect()
}

/// A range's share of the ring.
fn width((from, to): Tokens) -> f64 {
    ((to - from) as f64 + 1.0) / 2f64.powi(64)
}

fn add(to: &mut Shares, more: &Shares, weight: f64) {
    for (node, share) in more {
        *to.entry(node.clone()).or_default() += share * weight;
    }
}

/// A node's share of the sum.
fn share(of: &Shares, node: &NodeId) -> f64 {
    let total: f64 = of.values().sum();
    if total > 0.0 { of.get(node).copied().unwrap_or(0.0) / total } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use witan_kernel::name::TenantId;
    use witan_kernel::port::NodeStatus;

    use super::*;

    fn node(n: u32) -> NodeId {
        NodeId::new(format!("n{n}")).unwrap()
    }

    fn ring(nodes: u32) -> Vec<(NodeId, u32)> {
        (1..=nodes).map(|n| (node(n), 150)).collect()
    }

    fn made(change: &PlacementChange, before: &[(NodeId, u32)], classes: &[Class]) -> Made {
        Made::of(change, classes, &Ring::new(before, 0), &Ring::new(&after(change, before), 0))
    }

    fn joining(n: u32) -> PlacementChange {
        let (id, host) = (node(n), "there".to_owned());
        PlacementChange::AddNode(StorageNode { id, host, port: 1, virtual_nodes: 150, status: NodeStatus::Active })
    }

    #[test]
    fn a_node_that_joins_receives_about_its_share_and_the_others_drop_as_much() {
        let before = ring(3);
        let classes = [Class { from: 3, to: 3, tenants: 2 }, Class { from: 1, to: 1, tenants: 5 }];
        let made = made(&joining(4), &before, &classes);
        let (received, dropped): (f64, f64) = (made.received.values().sum(), made.dropped.values().sum());
        assert!((received - dropped).abs() < 1e-9, "{received} {dropped}");
        assert_eq!(made.received.keys().collect::<Vec<_>>(), [&node(4)]);
        let moved = received / made.after.values().sum::<f64>();
        let least = least(&joining(4), &before, &made);
        assert!((least - 0.25).abs() < 1e-9 && (moved - least).abs() < 0.05, "{moved} {least}");
        assert!((share(&made.after, &node(4)) - moved).abs() < 1e-9);
    }

    #[test]
    fn copies_of_a_node_that_leaves_are_made_again_and_a_lost_one_drops_nothing() {
        let before = ring(4);
        let classes = [Class { from: 3, to: 3, tenants: 1 }];
        for force in [false, true] {
            let change = PlacementChange::RemoveNode { node: node(2), force };
            let made = made(&change, &before, &classes);
            let moved = made.received.values().sum::<f64>() / made.after.values().sum::<f64>();
            assert!((moved - least(&change, &before, &made)).abs() < 1e-9, "only what it had");
            assert_eq!(made.dropped.contains_key(&node(2)), !force);
        }
    }

    #[test]
    fn more_replicas_are_copies_to_be_made_and_fewer_are_none() {
        let before = ring(5);
        let change = |to| PlacementChange::ReplicationFactor { tenant: TenantId::new("t").unwrap(), to };
        let more = made(&change(5), &before, &[Class { from: 3, to: 5, tenants: 1 }]);
        assert!((least(&change(5), &before, &more) - 0.4).abs() < 1e-9);
        assert!((more.received.values().sum::<f64>() - 2.0).abs() < 1e-9 && more.dropped.is_empty());
        let fewer = made(&change(2), &before, &[Class { from: 3, to: 2, tenants: 1 }]);
        assert!(fewer.received.is_empty() && (fewer.dropped.values().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(least(&change(2), &before, &fewer), 0.0);
    }
}
