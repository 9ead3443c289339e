//! Turns at the catalog: how many calls about it may be under way, or wait for each other, at a time. A change holds its turn until it is
//! through, also when its caller has gone, so that calls which are made and cancelled do not pile up behind a lock.
//!
//! Those of tenants' administrators are counted apart from those of operators, who therefore never find all turns taken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use prometheus_client::metrics::counter::Counter;
use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use super::Refused;

/// Limits of the calls that may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// Of one tenant's administrators.
    pub of_tenant: usize,
    /// Of the administrators of all tenants together.
    pub of_tenants: usize,
    /// Of all operators together.
    pub of_operators: usize,
}

impl TurnLimits {
    /// Changes. A change takes a few milliseconds, most of them in a transaction, and changes of the placement are made one after the
    /// other: behind 48 of them an operator's waits for a fifth of a second. It is less than the plugin host's queue holds, so that there
    /// is room for operators there, too.
    pub const CHANGES: Self = Self { of_tenant: 8, of_tenants: 48, of_operators: 256 };
    /// Uploads of plugins, each of which holds one of the plugin host's 64 places until its component is compiled: tenants leave some to
    /// operators, and one tenant leaves most of them to others.
    pub const UPLOADS: Self = Self { of_tenant: 4, of_tenants: 48, of_operators: 64 };
    /// Dry runs of plugins, each of which keeps two instances with their memories for as long as its client waits, and shares one thread
    /// with the others.
    pub const DRY_RUNS: Self = Self { of_tenant: 1, of_tenants: 4, of_operators: 4 };
    /// Look-ups, each of which reads a few rows: clients that start at the same time ask for their tenant at the same time.
    pub const LOOKUPS: Self = Self { of_tenant: 64, of_tenants: 256, of_operators: 256 };
}

/// The turns of one kind of call.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    limits: TurnLimits,
    taken: Mutex<Taken>,
    refused: Counter,
}

#[derive(Debug, Default)]
struct Taken {
    operators: usize,
    /// Of all tenants together.
    tenants: usize,
    /// What each tenant has, if it has any: not more entries than turns.
    by_tenant: BTreeMap<TenantId, usize>,
}

/// A turn; given back when it is dropped.
#[derive(Debug)]
pub struct Turn {
    of: Turns,
    tenant: Option<TenantId>,
}

impl Turns {
    /// Turns within these limits.
    pub fn new(limits: TurnLimits) -> Self {
        Self(Arc::new(Counted { limits, taken: Mutex::default(), refused: Counter::default() }))
    }

    /// A turn for a call of the administrators of `tenant`; `None`: of an operator. Nobody waits for one.
    ///
    /// # Errors
    /// [`Refused::Busy`] when there is none left.
    pub fn take(&self, tenant: Option<&TenantId>) -> Result<Turn, Refused> {
        let limits = &self.0.limits;
        let mut taken = lock(&self.0.taken);
        let free = match tenant {
            None => taken.operators < limits.of_operators,
            Some(tenant) => {
                taken.tenants < limits.of_tenants
                    && taken.by_tenant.get(tenant).is_none_or(|own| *own < limits.of_tenant)
            }
        };
        if !free {
            self.0.refused.inc();
            return Err(Refused::Busy);
        }
        match tenant {
            None => taken.operators += 1,
            Some(tenant) => {
                taken.tenants += 1;
                *taken.by_tenant.entry(tenant.clone()).or_default() += 1;
            }
        }
        Ok(Turn { of: self.clone(), tenant: tenant.cloned() })
    }

    /// Turns that are taken.
    pub fn taken(&self) -> usize {
        let taken = lock(&self.0.taken);
        taken.operators + taken.tenants
    }

    /// Calls refused so far because no turn was left.
    pub(super) fn refused(&self) -> &Counter {
        &self.0.refused
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = lock(&self.of.0.taken);
        let Some(tenant) = &self.tenant else {
            taken.operators -= 1;
            return;
        };
        taken.tenants -= 1;
        if let Some(own) = taken.by_tenant.get_mut(tenant) {
            *own -= 1;
            if *own == 0 {
                taken.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use witan_kernel::port::{Metadata, TenantStore};
    use witan_memory::MemoryMetadata;
    use witan_memory::contract::metadata as contract;

    use super::*;
    use crate::Catalog;
    use crate::follow::tests::{AtTheEpoch, FullDisk};

    #[test]
    fn a_tenant_leaves_turns_for_others_and_tenants_for_operators() {
        let turns = Turns::new(TurnLimits { of_tenant: 2, of_tenants: 3, of_operators: 2 });
        let (busy, quiet) = (TenantId::new("busy").unwrap(), TenantId::new("quiet").unwrap());
        let take =
            |tenant: Option<&TenantId>| std::iter::from_fn(|| turns.take(tenant).ok()).take(100).collect::<Vec<_>>();
        let first = take(Some(&busy));
        assert_eq!(first.len(), 2);
        let other = take(Some(&quiet));
        assert_eq!(other.len(), 1, "all tenants together have three");
        let operators = take(None);
        assert_eq!((operators.len(), turns.taken(), turns.refused().get()), (2, 5, 3));
        drop(first);
        assert_eq!(take(Some(&quiet)).len(), 1, "no more than two with the one that it has");
        drop((other, operators));
        assert_eq!(turns.taken(), 0);
        assert!(lock(&turns.0.taken).by_tenant.is_empty(), "tenants without a turn are forgotten");
    }

    /// Calls that are made and cancelled, while another change has the lock for which they wait.
    #[tokio::test]
    async fn cancelled_changes_keep_their_turns_and_so_do_not_pile_up() {
        let metadata = Arc::new(MemoryMetadata::new(AtTheEpoch));
        let tenant = metadata.create_tenant(contract::tenant("busy")).await.expect("created");
        let shared: Arc<dyn Metadata> = metadata;
        let catalog = Arc::new(Catalog::new(shared, Arc::new(FullDisk::default()), None, TurnLimits::CHANGES));
        let placing = Arc::clone(&catalog.placing).lock_owned().await;
        let mut refused = 0;
        for _ in 0..100 {
            let Ok(turn) = catalog.changes().take(Some(&tenant.id)) else {
                refused += 1;
                continue;
            };
            let mut call = Box::pin(catalog.change_replication_factor(turn, &tenant.id, tenant.replication_factor, 0));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(call.as_mut().poll(&mut cx).is_pending(), "it waits for the lock");
        }
        assert_eq!((refused, catalog.changes().taken()), (92, 8));
        catalog.changes().take(None).expect("operators have turns of their own");
        drop(placing);
        while catalog.changes().taken() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
