//! Collapses records with many siblings into one version, the resolver's verdict.
//!
//! Operations report such records ([`WantedCollapses`]) through a bounded queue.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::mpsc;
use witan_coordinate::{Coordinator, WantedCollapses, World};
use witan_kernel::name::TenantId;
use witan_kernel::quorum::collapse;
use witan_kernel::record::Record;
use witan_kernel::replica::Place;

use super::Upkeep;
use super::runner::Kind;

/// Limit on records that are queued or being collapsed: the number that may be collapsed at a time.
const MOST: usize = Kind::Collapse.at_most();

/// Accepts reports of records to collapse: the port that a coordinator is given. Reports beyond 64 open ones, or 48 of
/// one tenant, and of records that are open already, are dropped; a later operation repeats them.
pub struct Reports {
    open: Arc<Open>,
    wanted: mpsc::Sender<Place>,
}

/// The reported records, for [`Upkeep::collapse_reported`].
pub struct Reported {
    open: Arc<Open>,
    wanted: mpsc::Receiver<Place>,
}

/// Records that are queued or being collapsed.
#[derive(Default)]
struct Open(Mutex<Places>);

#[derive(Default)]
struct Places {
    all: HashSet<Place>,
    /// Their number by tenant, of tenants that have some.
    by_tenant: BTreeMap<TenantId, usize>,
}

impl Places {
    /// Adds a place, unless it is there, or the limit of all or of its tenant is reached.
    fn add(&mut self, place: &Place) -> bool {
        let own = self.by_tenant.get(&place.tenant()).copied().unwrap_or(0);
        if self.all.len() >= MOST || own >= Kind::Collapse.of_tenant() || !self.all.insert(place.clone()) {
            return false;
        }
        self.by_tenant.insert(place.tenant(), own + 1);
        true
    }

    fn remove(&mut self, place: &Place) {
        if !self.all.remove(place) {
            return;
        }
        match self.by_tenant.get_mut(&place.tenant()) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(self.by_tenant.remove(&place.tenant())),
        }
    }
}

/// Creates a queue of records to collapse. It is needed by the coordinator, which reports to it, before the upkeep that processes
/// it can be created.
pub fn reports() -> (Arc<Reports>, Reported) {
    let (open, (sender, wanted)) = (Arc::<Open>::default(), mpsc::channel(MOST));
    (Arc::new(Reports { open: Arc::clone(&open), wanted: sender }), Reported { open, wanted })
}

impl Open {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, place: &Place) {
        self.places().remove(place);
    }
}

impl WantedCollapses for Reports {
    fn wanted(&self, place: &Place) {
        let mut open = self.open.places();
        if !open.add(place) {
            return;
        }
        // The queue has room for every open record: sending fails only when the receiver is gone.
        if self.wanted.try_send(place.clone()).is_err() {
            open.remove(place);
        }
    }
}

impl<W: World> Upkeep<W> {
    /// Collapses records as they are reported, each in its own task, until `upkeep` or the reporting coordinator is dropped.
    pub async fn collapse_reported(upkeep: Weak<Self>, mut reported: Reported) {
        while let Some(place) = reported.wanted.recv().await {
            let Some(upkeep) = upkeep.upgrade() else { return };
            let open = Arc::clone(&reported.open);
            tokio::spawn(async move {
                if let Some(_task) = upkeep.runner.begin(Kind::Collapse, Some(&place.tenant()), || {
                    format!("collapse a key of tenant {}", place.tenant())
                }) && collapse_one(&upkeep.coordinator, &place).await.is_some()
                {
                    upkeep.metrics.collapses.inc();
                }
                open.close(&place);
            });
        }
    }
}

/// Merges a quorum's records, calls the resolver, and stores its verdict in place of the siblings. On any failure nothing is lost:
/// the siblings stay as they were.
async fn collapse_one<W: World>(coordinator: &Arc<Coordinator<W>>, place: &Place) -> Option<()> {
    let merged = coordinator.read_merged(place).await.ok()?;
    let Some(Record::Siblings(record)) = merged.record().cloned() else { return None };
    let (values, verdict) = merged.resolve().await?;
    let collapsed = collapse(&record, &values, &verdict)?;
    merged.merge_everywhere(&Record::Siblings(collapsed)).await;
    Some(())
}

#[cfg(test)]
mod tests {
    use witan_kernel::name::Key;

    use super::*;

    fn place_of(tenant: &str, token: u64) -> Place {
        Place { token, space: TenantId::new(tenant).unwrap().into(), key: Key::new("k").unwrap() }
    }

    fn place(token: u64) -> Place {
        place_of("t", token)
    }

    #[test]
    fn a_record_is_open_once_and_open_records_are_bounded() {
        let (reports, mut reported) = reports();
        for token in 0..100 {
            reports.wanted(&place(token));
            reports.wanted(&place(token));
        }
        let mut taken = Vec::new();
        while let Ok(place) = reported.wanted.try_recv() {
            taken.push(place.token);
        }
        assert_eq!(taken, (0..48).collect::<Vec<_>>());
        for token in 100..200 {
            reports.wanted(&place_of("other", token));
        }
        let others = std::iter::from_fn(|| reported.wanted.try_recv().ok()).count();
        assert_eq!(others, 16, "there is room for another tenant, and 64 in all");
        reports.wanted(&place(70));
        assert!(reported.wanted.try_recv().is_err(), "taken, but not done");
        reports.open.close(&place(3));
        reports.wanted(&place(3));
        assert_eq!(reported.wanted.try_recv().map(|place| place.token), Ok(3));
    }

    #[test]
    fn nothing_stays_open_when_the_receiver_is_gone() {
        let (reports, reported) = reports();
        drop(reported);
        reports.wanted(&place(1));
        assert!(reports.open.places().all.is_empty() && reports.open.places().by_tenant.is_empty());
    }
}
