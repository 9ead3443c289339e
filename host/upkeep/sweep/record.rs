//! What replicas have of one key, compared.

use std::sync::Arc;

use witan_coordinate::World;
use witan_kernel::burial::{is_due, micros};
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::limit::PerReplica;
use witan_kernel::name::TenantId;
use witan_kernel::placement::Step;
use witan_kernel::port::Clock;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::Place;
use witan_kernel::scan::{Held, Joined, difference_routine};
use witan_kernel::tenant::Tenant;

use super::merges::Sources;
use super::walk::Walking;
use super::{Stopped, Sweeping};

impl<W: World> Sweeping<'_, W> {
    /// Compares the replicas' versions of one key, and sends the merge to those that lack it.
    pub(super) async fn record(&mut self, walking: &mut Walking<'_, W>, joined: Joined) -> Result<(), Stopped> {
        let Joined { place, held } = joined;
        match self.tenant(&place.tenant()).await? {
            None => self.swept.skipped += 1,
            // Its records are compared where it is.
            Some(tenant) if tenant.ring != walking.version || tenant.generation != place.space.generation() => {}
            Some(tenant) => {
                self.swept.scanned += 1;
                self.metrics.swept_records.inc();
                self.merge(walking, &place, held, &tenant).await;
            }
        }
        self.swept.token = place.token;
        self.at = Some(place);
        Ok(())
    }

    async fn merge(
        &mut self,
        walking: &mut Walking<'_, W>,
        place: &Place,
        held: PerReplica<(u8, Held)>,
        tenant: &Tenant,
    ) {
        let placed = tenant.placed();
        let members = self.members(walking, place, placed.replication_factor);
        let mut have: PerReplica<(u8, Option<Encoded>)> = PerReplica::new();
        for (replica, held) in held.into_iter().filter(|(replica, _)| members.contains(replica)) {
            match held {
                Held::Nothing if Fault::AbsentNotSwept.is_on() => {}
                Held::Nothing => have.push((replica, None)),
                Held::Record(record) => have.push((replica, Some(record))),
                Held::Damaged => {
                    self.swept.failed += 1;
                    walking.failed = true;
                }
            }
        }
        let is_new =
            |replica: u8| self.met.get(&walking.replicas[usize::from(replica)]).is_some_and(|met| !met.is_whole());
        let now = self.coordinator.ports().clock.wall_micros();
        let grace = self.sweep.routine.map(|routine| micros(routine.grace));
        let is_old = |record: &Record| {
            grace.is_some_and(|grace| record.buried_since().is_some_and(|since| is_due(since, grace, now)))
        };
        match difference_routine(&have, is_new, is_old) {
            Ok(None) => self.may_collect(walking, place, &have, tenant, now).await,
            Ok(Some(mut found)) => {
                self.not_level(&found.record, now);
                if let Some(first) =
                    have.iter().find_map(|(_, held)| held.clone()).filter(|_| Fault::SweepSendsFirst.is_on())
                {
                    found.record = first;
                }
                for replica in found.lacking {
                    let node = &walking.replicas[usize::from(replica)];
                    let sources = Sources { read: walking.oldest(), before: self.at.clone(), placed };
                    walking.merges.send(replica, node, place, &found.record, sources).await;
                }
            }
            Err(error) => {
                tracing::error!(tenant = %place.space, key = %place.key, %error, "a record cannot be repaired");
                self.swept.failed += 1;
                walking.failed = true;
            }
        }
    }

    /// The indices of the replicas that hold the key, for a tenant with this factor.
    fn members(&self, walking: &Walking<'_, W>, place: &Place, factor: u8) -> PerReplica<u8> {
        let replicas = walking.replicas;
        if Fault::LastReplicaNotSwept.is_on() {
            return (0..factor.min(replicas.len() as u8).saturating_sub(1)).collect();
        }
        if usize::from(factor) >= replicas.len() || self.sweep.factors.contains(&factor) {
            return (0..factor.min(replicas.len() as u8)).collect();
        }
        // The tenant was created after the sweep began.
        let own =
            self.rings.version(walking.version).map(|ring| ring.replicas(place.token, factor)).unwrap_or_default();
        (0..).zip(replicas).filter(|(_, node)| own.contains(node)).map(|(index, _)| index).collect()
    }

    /// A tenant; `None` when it is deleted or unknown.
    pub(super) async fn tenant(&mut self, tenant: &TenantId) -> Result<Option<Arc<Tenant>>, Failure> {
        match self.coordinator.tenant(tenant).await {
            Ok(tenant) => {
                // A change must be at the replicas of both placements then, and the sweep compares those of one.
                self.swept.unsettled += u64::from(tenant.moving.is_some_and(|moving| moving.step == Step::Cutover));
                Ok(Some(tenant))
            }
            Err(Failure::TenantNotFound(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}
