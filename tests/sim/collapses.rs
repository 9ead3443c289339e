//! Which records coordinators have asked a resolver to collapse.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use witan_coordinate::WantedCollapses;
use witan_kernel::name::{Key, TenantId};
use witan_kernel::replica::Place;

use crate::world::lock;

/// The records that may have been collapsed, of all coordinators and over the whole play. A key that nobody expected to be collapsed may
/// collect that many siblings while its replicas cannot be reached.
#[derive(Clone, Default)]
pub(crate) struct Collapsed(Arc<Mutex<BTreeSet<(TenantId, Key)>>>);

impl Collapsed {
    pub(crate) fn contains(&self, place: &Place) -> bool {
        lock(&self.0).contains(&(place.tenant(), place.key.clone()))
    }

    /// Passes reports on to `reports`, and notes their records.
    pub(crate) fn noting(&self, reports: Arc<dyn WantedCollapses>) -> Arc<dyn WantedCollapses> {
        Arc::new(Noting { collapsed: self.clone(), reports })
    }
}

struct Noting {
    collapsed: Collapsed,
    reports: Arc<dyn WantedCollapses>,
}

impl WantedCollapses for Noting {
    fn wanted(&self, place: &Place) {
        lock(&self.collapsed.0).insert((place.tenant(), place.key.clone()));
        self.reports.wanted(place);
    }
}
