//! What a change of the placement would move, and what would stand in its way: for people, before they ask for it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::placement::zones::lost_with_each;
use witan_kernel::placement::{Tokens, entering};
use witan_kernel::port::{Placement, PlacementChange, StorageNode};
use witan_kernel::ring::{Member, Ring};
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
    /// What the loss of a zone would mean; empty where no node has one.
    pub zones: Vec<PlannedZone>,
    /// Of a store that is replaced: how it is filled.
    pub fill: Option<PlannedFill>,
}

/// How a new store would be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFill {
    /// The records that the store on record has reported last.
    pub keys: u64,
    /// Bytes of a record, as nodes report them; 0: not known.
    pub bytes_per_key: u64,
    /// The other replicas of its records, by id.
    pub sources: Vec<PlannedSource>,
}

/// A node that a new store is filled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSource {
    /// The node.
    pub node: NodeId,
    /// Records that are read from it.
    pub keys: u64,
    /// Whether that is possible at present.
    pub reachable: bool,
}

/// The share of keys of which no quorum would be left without a zone.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedZone {
    /// The zone.
    pub zone: Zone,
    /// For tenants with as many replicas.
    pub replication_factor: u8,
    /// Before the change.
    pub lost_before: f64,
    /// Afterwards.
    pub lost_after: f64,
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
pub(super) type Shares = BTreeMap<NodeId, f64>;

/// One step of the replication factors that a change makes, and how many tenants make it.
#[derive(Clone)]
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
        let made =
            Made::of(change, shown(&classes, &before, &after).as_ref(), &Ring::of(&before, 0), &Ring::of(&after, 0));
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
        let least_share = least(change, (&before, &after), &classes, &made);
        let zones = zones(&before, &after, &shown(&classes, &before, &after));
        Ok(Plan { nodes: planned, moved_share, least_share, tenants, problems, zones, fill: None })
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
        if let PlacementChange::ReplaceStore { node, accept_loss, .. } = change {
            return self.replacement_problems(node, *accept_loss, placement).await;
        }
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
            PlacementChange::RemoveNode { node, .. } if !now.iter().any(|member| member.node == *node) => {
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
            PlacementChange::UpdateNode { node, .. } if !on_record(node) => {
                all.push(format!("node {node} is not on record"));
                Ok(())
            }
            PlacementChange::UpdateNode { node, virtual_nodes, zone } => self.member(node, placement).map(|member| {
                let Member { virtual_nodes: count, zone: is_in, .. } = &member;
                if member.updated(*virtual_nodes, zone.as_ref()) == member {
                    all.push(format!("node {node} has {count} virtual nodes and {is_in} already"));
                }
            }),
            PlacementChange::ReplicationFactor { to, .. } => self.enough_nodes(*to).await,
            PlacementChange::ReplaceStore { .. } | PlacementChange::Generation { .. } => Ok(()),
        };
        if needs_zones(change) {
            let old = self.without_zones().await?;
            all.extend(old.into_iter().map(|who| format!("{who} does not know zones: upgrade it")));
        }
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
        for class in classes {
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
fn least(change: &PlacementChange, (before, after): (&[Member], &[Member]), classes: &[Class], made: &Made) -> f64 {
    match change {
        PlacementChange::AddNode(node) => weight_of(&node.id, after),
        // What it is to have more, or less; or what its zone forces.
        PlacementChange::UpdateNode { node, .. } => {
            let weight = (weight_of(node, after) - weight_of(node, before)).abs();
            weight.max(forced(before, after, classes))
        }
        // Each of its copies has to be made again.
        PlacementChange::RemoveNode { node, .. } => share(&made.before, node),
        // Each of the records is still elsewhere.
        PlacementChange::ReplaceStore { .. } | PlacementChange::Generation { .. } => 0.0,
        PlacementChange::ReplicationFactor { .. } => {
            let (old, new): (f64, f64) = (made.before.values().sum(), made.after.values().sum());
            if new > 0.0 { ((new - old) / new).max(0.0) } else { 0.0 }
        }
    }
}

/// Without tenants, what it would be for one with three replicas shows at least the shares.
fn shown<'a>(classes: &'a [Class], before: &[Member], after: &[Member]) -> Cow<'a, [Class]> {
    if !classes.is_empty() {
        return Cow::Borrowed(classes);
    }
    let most = u8::try_from(before.len().min(after.len())).unwrap_or(u8::MAX).min(3);
    Cow::Owned(vec![Class { from: most, to: most, tenants: 1 }])
}

/// A node's share of the virtual nodes.
fn weight_of(node: &NodeId, members: &[Member]) -> f64 {
    let count = |of: &Member| f64::from(of.virtual_nodes);
    let all: f64 = members.iter().map(count).sum();
    members.iter().find(|member| member.node == *node).map_or(0.0, count) / all.max(1.0)
}

/// The share of all copies that lie in a zone of another copy of the same key, and that any placement would have to make anew elsewhere.
fn forced(before: &[Member], after: &[Member], classes: &[Class]) -> f64 {
    let zones: BTreeMap<&NodeId, &Zone> = after.iter().map(|member| (&member.node, &member.zone)).collect();
    let count = zones.values().collect::<BTreeSet<_>>().len();
    let ring = Ring::of(before, 0);
    let (mut missing, mut all) = (0.0, 0.0);
    for Class { from, tenants, .. } in classes {
        for range in ring.replica_ranges(&[*from]) {
            let has = range.replicas.iter().filter_map(|node| zones.get(node)).collect::<BTreeSet<_>>().len();
            let share = width((range.from, range.to)) * *tenants as f64;
            missing += share * range.replicas.len().min(count).saturating_sub(has) as f64;
            all += share * range.replicas.len() as f64;
        }
    }
    if all > 0.0 { missing / all } else { 0.0 }
}

/// What the loss of each zone would mean, for each replication factor in use.
fn zones(before: &[Member], after: &[Member], classes: &[Class]) -> Vec<PlannedZone> {
    if before.iter().chain(after).all(|member| member.zone.is_none()) {
        return Vec::new();
    }
    let mut planned = Vec::new();
    for Class { from, to, .. } in classes {
        let (was, is) = (lost_with_each(before, *from), lost_with_each(after, *to));
        let all: BTreeSet<&Zone> = was.keys().chain(is.keys()).collect();
        let of = |lost: &BTreeMap<Zone, f64>, zone: &Zone| lost.get(zone).copied().unwrap_or(0.0);
        planned.extend(all.into_iter().map(|zone| PlannedZone {
            zone: zone.clone(),
            replication_factor: *to,
            lost_before: of(&was, zone),
            lost_after: of(&is, zone),
        }));
    }
    planned
}

/// Whether a change requires coordinators that know zones.
fn needs_zones(change: &PlacementChange) -> bool {
    match change {
        PlacementChange::AddNode(node) => !node.zone.is_none(),
        PlacementChange::UpdateNode { .. } => true,
        PlacementChange::RemoveNode { .. }
        | PlacementChange::ReplaceStore { .. }
        | PlacementChange::ReplicationFactor { .. }
        | PlacementChange::Generation { .. } => false,
    }
}

/// The members of the ring after a change.
fn after(change: &PlacementChange, before: &[Member]) -> Vec<Member> {
    let mut members = before.to_vec();
    match change {
        PlacementChange::AddNode(node) => {
            members.retain(|member| member.node != node.id);
            members.push(node.member());
        }
        PlacementChange::RemoveNode { node, .. } => members.retain(|member| member.node != *node),
        PlacementChange::UpdateNode { node, virtual_nodes, zone } => {
            for member in members.iter_mut().filter(|member| member.node == *node) {
                *member = member.updated(*virtual_nodes, zone.as_ref());
            }
        }
        PlacementChange::ReplaceStore { .. }
        | PlacementChange::ReplicationFactor { .. }
        | PlacementChange::Generation { .. } => {}
    }
    members
}

/// The nodes on record and those of the ring afterwards, each once, by id.
fn all(nodes: &[StorageNode], after: &[Member]) -> Vec<NodeId> {
    let both = nodes.iter().map(|node| &node.id).chain(after.iter().map(|member| &member.node));
    both.collect::<BTreeSet<_>>().into_iter().cloned().collect()
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
pub(super) fn width((from, to): Tokens) -> f64 {
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

    fn ring(nodes: u32) -> Vec<Member> {
        (1..=nodes).map(|n| Member { node: node(n), virtual_nodes: 150, zone: Zone::default() }).collect()
    }

    fn made(change: &PlacementChange, before: &[Member], classes: &[Class]) -> Made {
        Made::of(change, classes, &Ring::of(before, 0), &Ring::of(&after(change, before), 0))
    }

    fn joining(n: u32) -> PlacementChange {
        let (id, host) = (node(n), "there".to_owned());
        let (status, zone) = (NodeStatus::Active, Zone::default());
        PlacementChange::AddNode(StorageNode { id, host, port: 1, virtual_nodes: 150, status, zone })
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
        let least = least(&joining(4), (&before, &ring(4)), &classes, &made);
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
            assert!((moved - least(&change, (&before, &[]), &classes, &made)).abs() < 1e-9, "only what it had");
            assert_eq!(made.dropped.contains_key(&node(2)), !force);
        }
    }

    #[test]
    fn more_replicas_are_copies_to_be_made_and_fewer_are_none() {
        let before = ring(5);
        let change = |to| PlacementChange::ReplicationFactor { tenant: TenantId::new("t").unwrap(), to };
        let more = made(&change(5), &before, &[Class { from: 3, to: 5, tenants: 1 }]);
        assert!((least(&change(5), (&before, &before), &[], &more) - 0.4).abs() < 1e-9);
        assert!((more.received.values().sum::<f64>() - 2.0).abs() < 1e-9 && more.dropped.is_empty());
        let fewer = made(&change(2), &before, &[Class { from: 3, to: 2, tenants: 1 }]);
        assert!(fewer.received.is_empty() && (fewer.dropped.values().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(least(&change(2), (&before, &before), &[], &fewer), 0.0);
    }

    fn update(n: u32, virtual_nodes: Option<u32>, zone: Option<&str>) -> PlacementChange {
        let zone = zone.map(|zone| Zone::new(zone).unwrap());
        PlacementChange::UpdateNode { node: node(n), virtual_nodes, zone }
    }

    #[test]
    fn a_lighter_node_drops_copies_and_the_others_receive_them() {
        let (before, change) = (ring(6), update(2, Some(75), None));
        let classes = [Class { from: 3, to: 3, tenants: 1 }];
        let (made, after) = (made(&change, &before, &classes), after(&change, &before));
        assert_eq!(made.dropped.keys().collect::<Vec<_>>(), [&node(2)]);
        assert!(!made.received.contains_key(&node(2)));
        let moved = made.received.values().sum::<f64>() / 3.0;
        let least = least(&change, (&before, &after), &classes, &made);
        assert!((least - (1.0 / 6.0 - 1.0 / 11.0)).abs() < 1e-9 && (moved - least).abs() < 0.03, "{moved} {least}");
        assert_eq!(zones(&before, &after, &classes), [], "no node has one");
    }

    #[test]
    fn a_plan_says_what_the_loss_of_a_zone_would_mean() {
        let classes = [Class { from: 3, to: 3, tenants: 1 }];
        let mut before = ring(6);
        for (member, zone) in before.iter_mut().zip(["a", "b", "b", "a", "b", ""]) {
            member.zone = Zone::new(zone).unwrap();
        }
        let change = update(6, None, Some("c"));
        let after = after(&change, &before);
        let planned = zones(&before, &after, &classes);
        let shown: Vec<_> = planned.iter().map(|it| (it.zone.as_str(), it.lost_before, it.lost_after)).collect();
        assert_eq!(shown, [("", 0.0, 0.0), ("a", 0.0, 0.0), ("b", 0.0, 0.0), ("c", 0.0, 0.0)]);
        let change = update(6, None, Some("a"));
        let after = super::after(&change, &before);
        let lost: Vec<_> = zones(&before, &after, &classes).into_iter().map(|it| it.lost_after).collect();
        assert!(lost[0] == 0.0 && (lost[1] + lost[2] - 1.0).abs() < 1e-9, "two zones are too few: {lost:?}");
        assert_eq!(forced(&before, &after, &classes), 0.0, "all keys are in both still");
        let none = ring(6);
        let third = none.iter().cloned().enumerate();
        let third: Vec<Member> =
            third.map(|(n, of)| Member { zone: Zone::new(["a", "b", "c"][n % 3]).unwrap(), ..of }).collect();
        let (forced, made) =
            (forced(&none, &third, &classes), Made::of(&change, &classes, &Ring::of(&none, 0), &Ring::of(&third, 0)));
        let moved = made.received.values().sum::<f64>() / 3.0;
        assert!(forced > 0.1 && (moved - forced).abs() < 1e-9, "nothing moves that need not: {forced} of {moved}");
    }
}
