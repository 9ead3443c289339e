//! Where a key is: on which nodes, and what each of them has. For people, who want to know why a read answers as it does.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use witan_coordinate::{Coordinator, PartitionKey, Places, World};
use witan_kernel::digest::Row;
use witan_kernel::failure::Failure;
use witan_kernel::limit::PerReplica;
use witan_kernel::name::{Key, NodeId, TenantId};
use witan_kernel::placement::Placed;
use witan_kernel::port::Clock;
use witan_kernel::quorum::reconcile;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Answer, Ask, Place, Request};
use witan_kernel::ring::Preference;
use witan_kernel::tenant::Tenant;

use super::Upkeep;
use super::ask::ask;

/// How long a replica may take to answer: shorter than a person's patience, and longer than a slow disk.
const WITHIN: Duration = Duration::from_secs(3);

/// Where a key is.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    /// Its position on the ring.
    pub token: u64,
    /// What a routing hook has mapped it to, if there is one.
    pub partition: Option<PartitionKey>,
    /// Its replicas, those of the present placement first.
    pub replicas: Vec<Replica>,
}

/// A replica of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// The node.
    pub node: NodeId,
    /// It is one under the present placement.
    pub present: bool,
    /// It is one under the placement that the tenant moves to.
    pub coming: bool,
    /// What it has, or why it does not say so.
    pub has: Result<Has, String>,
    /// It is known to have the same as all that have answered have together.
    pub level: bool,
}

/// What a replica has of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// Nothing.
    Nothing,
    /// A record.
    Record {
        /// There is no live value in it: the key was deleted.
        deleted: bool,
        /// Its size as stored.
        bytes: usize,
        /// Of a register, the stamp of its value.
        stamp: Option<u64>,
        /// Of a record with siblings, how many versions it has.
        versions: Option<usize>,
        /// The same on replicas that have the same.
        hash: u128,
    },
    /// No record that any replica can have written.
    Damaged(String),
}

impl<W: World> Upkeep<W> {
    /// Finds out where a key is, and asks every replica, those of a coming placement included, what it has.
    ///
    /// # Errors
    /// There is no such tenant, its routing hook fails, or the ring that it is on is not known here.
    pub async fn locate(&self, tenant: &TenantId, key: &Key) -> Result<Located, Failure> {
        let coordinator = &self.coordinator;
        // Before anything else is looked up, as by an operation.
        let epoch = coordinator.followed();
        let Places { tenant, present: place, partition, coming: elsewhere } =
            coordinator.places_of(tenant, key).await?;
        let present = self.replicas_of(tenant.placed(), place.token)?;
        // Rows of another generation are others, also on a node that has the present ones.
        let swaps = tenant.moving.is_some_and(|moving| moving.to.generation != tenant.generation);
        let coming = match (tenant.moving, &elsewhere) {
            (Some(moving), Some(elsewhere)) => self.replicas_of(moving.to, elsewhere.token)?,
            (Some(moving), None) if !swaps => self.replicas_of(moving.to, place.token)?,
            (_, _) => Preference::new(),
        };
        let new = coming.iter().filter(|node| swaps || !present.contains(node));
        let nodes: Vec<NodeId> = present.iter().chain(new).cloned().collect();
        let place_of = |index: usize| elsewhere.as_ref().filter(|_| index >= present.len()).unwrap_or(&place);
        let asked = nodes.iter().enumerate().map(|(index, node)| what_is_at(coordinator, node, place_of(index), epoch));
        let answers: Vec<Result<Option<Encoded>, String>> = join_all(asked).await;
        let level = level(&answers);
        let each = nodes.into_iter().zip(answers).zip(level).enumerate();
        let replicas = each.map(|(index, ((node, answer), level))| Replica {
            present: index < present.len(),
            coming: coming.contains(&node) && (index >= present.len() || !swaps),
            has: answer.map(|record| has(place_of(index), record.as_ref())),
            level,
            node,
        });
        let (token, replicas) = (place.token, replicas.collect());
        Ok(Located { tenant, token, partition, replicas })
    }

    fn replicas_of(&self, placed: Placed, token: u64) -> Result<Preference, Failure> {
        let rings = self.coordinator.rings();
        let ring = rings.version(placed.ring).ok_or(Failure::StaleEpoch)?;
        Ok(ring.replicas(token, placed.replication_factor))
    }
}

async fn what_is_at<W: World>(
    coordinator: &Coordinator<W>,
    node: &NodeId,
    place: &Place,
    epoch: u64,
) -> Result<Option<Encoded>, String> {
    let ports = coordinator.ports();
    let deadline = ports.clock.monotonic_micros() + WITHIN.as_micros() as u64;
    match ask(coordinator, node, Request { place: place.clone(), epoch, ask: Ask::Read }, deadline).await {
        Ok(Answer::Record(record)) => Ok(record),
        Ok(_) => Err("its answer does not fit the question".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn has(place: &Place, record: Option<&Encoded>) -> Has {
    let Some(encoded) = record else { return Has::Nothing };
    let decoded = match encoded.decode() {
        Ok(decoded) => decoded,
        Err(damaged) => return Has::Damaged(damaged.to_string()),
    };
    let (stamp, versions) = match &decoded {
        Record::Register(register) => (Some(register.stamp.0), None),
        Record::Siblings(siblings) => (None, Some(siblings.versions.len())),
    };
    let hash = Row::of(place.token, place.space.bytes(), place.key.bytes(), &decoded).hash;
    Has::Record { deleted: decoded.is_deleted(), bytes: encoded.0.len(), stamp, versions, hash }
}

/// Which of the replicas have what all that have answered have together.
fn level(answers: &[Result<Option<Encoded>, String>]) -> Vec<bool> {
    let mut known: PerReplica<(u8, Option<Record>)> = PerReplica::new();
    for (replica, answer) in (0..).zip(answers) {
        let decoded = answer.as_ref().map(|record| record.as_ref().map(Encoded::decode).transpose());
        if let Ok(Ok(record)) = decoded {
            known.push((replica, record));
        }
    }
    let reconciled = reconcile(&known);
    let is_level = |replica: u8| {
        let answered = known.iter().any(|(known, _)| *known == replica);
        answered && reconciled.as_ref().is_some_and(|it| !it.stale.contains(&replica))
    };
    (0..).zip(answers).map(|(replica, _)| is_level(replica)).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use witan_kernel::name::WriteId;
    use witan_kernel::register::{Register, Stamp};

    use super::*;

    fn place() -> Place {
        Place { token: 7, space: TenantId::new("t").unwrap().into(), key: Key::new("k").unwrap() }
    }

    fn written(stamp: u64, value: Option<&'static [u8]>) -> Encoded {
        let written = Register::written(Stamp(stamp), WriteId([1; 16]), value.map(Bytes::from_static));
        Record::Register(written).encode()
    }

    #[test]
    fn replicas_are_level_that_have_what_all_have_together() {
        let (old, new) = (written(5, Some(b"a")), written(6, None));
        let away = || Err("it is away".to_owned());
        assert_eq!(
            level(&[Ok(Some(old.clone())), Ok(Some(new.clone())), Ok(None), away()]),
            [false, true, false, false]
        );
        assert_eq!(level(&[Ok(None), away(), Ok(None)]), [true, false, true], "none has anything");
        assert_eq!(level(&[Ok(Some(Encoded(Bytes::from_static(b"x")))), Ok(Some(old))]), [false, true]);
    }

    #[test]
    fn what_a_replica_has_is_said_in_a_few_words() {
        let of = |record: &Encoded| has(&place(), Some(record));
        let (live, deleted) = (written(5, Some(b"a")), written(6, None));
        let Has::Record { deleted: false, stamp: Some(5), versions: None, hash, bytes } = of(&live) else {
            panic!("a register")
        };
        assert_eq!(bytes, live.0.len());
        let Has::Record { deleted: true, stamp: Some(6), hash: other, .. } = of(&deleted) else {
            panic!("a tombstone")
        };
        assert_ne!(hash, other);
        assert_eq!(of(&live), of(&live.clone()));
        assert_eq!(has(&place(), None), Has::Nothing);
        assert!(matches!(of(&Encoded(Bytes::from_static(b"x"))), Has::Damaged(_)));
    }
}
