//! Reads of tenants that are under way: one for each tenant, however many wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_kernel::tenant::Tenant;

use super::newer;

/// What a read has come to.
pub(super) type Outcome = Result<Option<Arc<Tenant>>, StoreError>;

/// The reads under way.
pub(super) struct Flights {
    most: usize,
    under_way: BTreeMap<TenantId, Flight>,
}

struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The newest version that was published since the read began.
    published: Option<Arc<Tenant>>,
}

/// A place among those who wait for a read.
pub(super) struct Ticket(watch::Receiver<Option<Outcome>>);

/// The duty to tell them.
pub(super) struct Landing(watch::Sender<Option<Outcome>>);

/// What boarding comes to.
pub(super) struct Boarding {
    /// To wait with.
    pub(super) ticket: Ticket,
    /// Whoever is given this starts the read.
    pub(super) start: Option<Landing>,
}

impl Flights {
    pub(super) fn new(most: usize) -> Self {
        Self { most, under_way: BTreeMap::new() }
    }

    /// Joins the read of a tenant, or has the caller start one, unless too many are under way.
    pub(super) fn board(&mut self, id: &TenantId) -> Result<Boarding, StoreError> {
        if let Some(flight) = self.under_way.get(id) {
            return Ok(Boarding { ticket: Ticket(flight.outcome.clone()), start: None });
        }
        if self.under_way.len() >= self.most {
            return Err(StoreError::Unavailable("too many tenants are being looked up".into()));
        }
        let (landing, outcome) = watch::channel(None);
        self.under_way.insert(id.clone(), Flight { outcome: outcome.clone(), published: None });
        Ok(Boarding { ticket: Ticket(outcome), start: Some(Landing(landing)) })
    }

    /// Lets a read under way know what it may have missed.
    pub(super) fn publish(&mut self, tenant: &Arc<Tenant>) {
        if let Some(flight) = self.under_way.get_mut(&tenant.id) {
            let newest = flight.published.as_ref().is_none_or(|known| !newer(known, tenant));
            if newest {
                flight.published = Some(tenant.clone());
            }
        }
    }

    /// Whether a read of this tenant is under way.
    pub(super) fn has(&self, id: &TenantId) -> bool {
        self.under_way.contains_key(id)
    }

    /// The tenants that are being read.
    pub(super) fn ids(&self) -> Vec<TenantId> {
        self.under_way.keys().cloned().collect()
    }

    /// Ends a read, and tells what was published meanwhile.
    pub(super) fn land(&mut self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.under_way.remove(id).and_then(|flight| flight.published)
    }
}

impl Landing {
    pub(super) fn announce(self, outcome: Outcome) {
        self.0.send_replace(Some(outcome));
    }
}

impl Ticket {
    pub(super) async fn outcome(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(ended())),
            Err(_) => Err(ended()),
        }
    }
}

fn ended() -> StoreError {
    StoreError::Unavailable("the look-up of a tenant ended early".into())
}
