//! Collapses records with many siblings into one version, the resolver's verdict.
//!
//! Operations report such records ([`WantedCollapses`]) through a bounded queue.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::mpsc;
use witan_coordinate::{Coordinator, WantedCollapses, World};
use witan_kernel::quorum::collapse;
use witan_kernel::record::Record;
use witan_kernel::replica::Place;

use super::Upkeep;
use super::runner::Kind;

/// Limit on records that are queued or being collapsed: the number that may be collapsed at a time.
const MOST: usize = Kind::Collapse.at_most();

/// Accepts reports of records to collapse: the port that a coordinator is given. Reports beyond 64 open ones, and of records
/// that are open already, are dropped; a later operation repeats them.
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
struct Open(Mutex<HashSet<Place>>);

/// Creates a queue of records to collapse. It is needed by the coordinator, which reports to it, before the upkeep that processes
/// it can be created.
pub fn reports() -> (Arc<Reports>, Reported) {
    let (open, (sender, wanted)) = (Arc::<Open>::default(), mpsc::channel(MOST));
    (Arc::new(Reports { open: Arc::clone(&open), wanted: sender }), Reported { open, wanted })
}

impl Open {
    fn places(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, place: &Place) {
        self.places().remove(place);
    }
}

impl WantedCollapses for Reports {
    fn wanted(&self, place: &Place) {
        let mut open = self.open.places();
        if open.len() >= MOST || !open.insert(place.clone()) {
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
                if let Some(_task) =
                    upkeep.runner.begin(Kind::Collapse, || format!("collapse a key of tenant {}", place.tenant))
                    && collapse_one(&upkeep.coordinator, &place).await.is_some()
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
    use witan_kernel::name::{Key, TenantId};

    use super::*;

    fn place(token: u64) -> Place {
        Place { token, tenant: TenantId::new("t").unwrap(), key: Key::new("k").unwrap() }
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
        assert_eq!(taken, (0..64).collect::<Vec<_>>());
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
        assert!(reports.open.places().is_empty());
    }
}
