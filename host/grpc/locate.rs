//! Where a key is.

use tonic::Status;
use witan_kernel::name::{Key, TenantId};
use witan_upkeep::{Has, Located, Replica};
use witan_wire::v1;

use super::CoordinatorApi;
use super::guard::denied;
use super::status::{invalid, report};
use super::tenants::status;
use crate::access::caller::Caller;
use witan_coordinate::World;

/// Hexadecimal digits of a hash that are shown: enough to tell the records of one key apart, and few enough to compare by eye.
const DIGITS: usize = 12;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn locate(
        &self,
        caller: Caller,
        request: v1::LocateKeyRequest,
    ) -> Result<v1::LocateKeyResponse, Status> {
        let tenant = TenantId::new(request.tenant_id).map_err(|error| invalid(&error))?;
        let key = Key::new(request.key).map_err(|error| invalid(&error))?;
        caller.may(&tenant).map_err(|refused| denied(&caller, &refused))?;
        let _turn = self.catalog.lookups().take(Some(&tenant)).map_err(|error| status(&error))?;
        let located = self.upkeep.locate(&tenant, &key).await.map_err(|failure| report(failure.of_read()).status())?;
        // Without the metadata store, zones are not known, and all else is.
        let nodes = self.catalog.nodes().await.unwrap_or_default();
        let zone_of =
            |replica: &Replica| nodes.iter().find(|node| node.id == replica.node).map(|node| node.zone.as_str());
        let replicas = located.replicas.iter().map(|replica| v1::LocatedReplica {
            zone: zone_of(replica).unwrap_or_default().to_owned(),
            reachable: self.catalog.state(&replica.node).reachable,
            draining: self.catalog.is_drained(&replica.node),
            ..shown(replica)
        });
        Ok(v1::LocateKeyResponse { replicas: replicas.collect(), ..placed(&located) })
    }
}

fn placed(located: &Located) -> v1::LocateKeyResponse {
    let Located { tenant, token, partition, .. } = located;
    let (partition_key, by) = partition.clone().unzip();
    v1::LocateKeyResponse {
        token: *token,
        partition_key: partition_key.unwrap_or_default(),
        partition_key_by: by.map(|by| by.to_string()).unwrap_or_default(),
        ring_version: tenant.ring,
        replication_factor: i32::from(tenant.replication_factor),
        step: tenant.moving.map_or("", |moving| moving.step.as_str()).to_owned(),
        coming_ring_version: tenant.moving.map_or(0, |moving| moving.to.ring),
        coming_replication_factor: tenant.moving.map_or(0, |moving| i32::from(moving.to.replication_factor)),
        replicas: Vec::new(),
    }
}

/// What it has.
fn shown(replica: &Replica) -> v1::LocatedReplica {
    let named = v1::LocatedReplica {
        node_id: replica.node.to_string(),
        present: replica.present,
        coming: replica.coming,
        level: replica.level,
        ..Default::default()
    };
    match &replica.has {
        Err(why) => v1::LocatedReplica { problem: why.clone(), ..named },
        Ok(Has::Nothing) => v1::LocatedReplica { state: "nothing".to_owned(), ..named },
        Ok(Has::Damaged(why)) => v1::LocatedReplica { state: "damaged".to_owned(), problem: why.clone(), ..named },
        Ok(Has::Record { deleted, bytes, stamp, versions, hash }) => v1::LocatedReplica {
            state: if *deleted { "tombstone" } else { "live" }.to_owned(),
            bytes: i64::try_from(*bytes).unwrap_or(i64::MAX),
            stamp: stamp.unwrap_or(0),
            versions: versions.map_or(0, |versions| i32::try_from(versions).unwrap_or(i32::MAX)),
            hash: format!("{hash:032x}")[..DIGITS].to_owned(),
            ..named
        },
    }
}
