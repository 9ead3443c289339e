//! A pass that copies records to rows of another generation: each to the replicas of the token that the partition hook of that generation
//! gives its key. Nothing of them is read: what they have acknowledged before is remembered, and not sent again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::hook::{Hooks, Partition};
use witan_kernel::name::{Key, NodeId, TenantId, shown};
use witan_kernel::placement::sums::Sums;
use witan_kernel::placement::{Both, Placed};
use witan_kernel::port::HOOK_FAULTS;
use witan_kernel::replica::Place;
use witan_kernel::ring::{Ring, token};
use witan_kernel::space::Space;
use witan_kernel::sync::lock;

use super::{Copied, Pass, Stale};
use crate::sweep::within;

/// How often a hook is asked that faults: it may have had too little time.
const TRIES: u32 = 3;
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Where rows of another generation are.
pub(in crate::moves) struct Swap<'a> {
    pub(in crate::moves) to: Placed,
    pub(in crate::moves) ring: &'a Ring,
    /// The hooks of the tenant.
    pub(in crate::moves) hooks: Arc<dyn Hooks>,
    /// What the coming replicas have acknowledged, by tokens of before.
    pub(in crate::moves) known: Mutex<Sums>,
    /// What was read, by whoever only looks.
    pub(in crate::moves) read: Mutex<Sums>,
}

/// Where a key goes.
pub(super) enum Goes {
    /// To these nodes.
    To(Place, Vec<NodeId>),
    /// It is not known here yet.
    Unknown,
    /// The hook faults on it.
    Fault(String),
}

impl<'a> Swap<'a> {
    pub(in crate::moves) fn new(to: Placed, ring: &'a Ring, hooks: Arc<dyn Hooks>, known: Sums) -> Self {
        Self { to, ring, hooks, known: Mutex::new(known), read: Mutex::default() }
    }

    /// What the coming replicas have acknowledged.
    pub(in crate::moves) fn into_known(self) -> Sums {
        self.known.into_inner().unwrap_or_default()
    }

    pub(super) async fn goes(&self, tenant: &TenantId, key: &Key) -> Goes {
        let mut tries = 0;
        loop {
            let at = match self.hooks.partition_key_apart(self.to.generation, key) {
                Partition::Native => token(tenant, key.bytes()),
                Partition::By { key, .. } => token(tenant, &key),
                Partition::Unknown => return Goes::Unknown,
                Partition::Faulted { reason, by } => {
                    tries += 1;
                    if tries >= TRIES {
                        return Goes::Fault(format!("{HOOK_FAULTS}{}: {reason} ({by})", shown(&key.to_string())));
                    }
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let place = Place { token: at, space: Space::new(tenant, self.to.generation), key: key.clone() };
            return Goes::To(place, self.ring.replicas(at, self.to.replication_factor).to_vec());
        }
    }
}

impl<W: World> Pass<'_, W> {
    /// Looks first which slices have something that was not acknowledged, if anything was, and copies those.
    pub(super) async fn run_swap(&self, swap: &Swap<'_>) -> Result<Copied, Stale> {
        if lock(&swap.known).is_empty() {
            return self.walk(self.ranges, false).await;
        }
        *lock(&swap.read) = Sums::default();
        let looked = self.walk(self.ranges, true).await?;
        if looked.lacking.is_some() || looked.fault.is_some() {
            return Ok(looked);
        }
        let mut differ = lock(&swap.known).differing(&lock(&swap.read));
        if Fault::SwapDeltaSkipped.is_on() {
            differ = differ.first(0);
        }
        lock(&swap.known).forget(&differ);
        let tokens = differ.tokens();
        let part = |range: &Both| {
            let (old, new) = (range.old.clone(), range.new.clone());
            let parts = within(range.tokens, &tokens).into_iter();
            parts.map(move |tokens| Both { tokens, old: old.clone(), new: new.clone() }).collect::<Vec<_>>()
        };
        let ranges: Vec<Both> = self.ranges.iter().flat_map(part).collect();
        self.walk(&ranges, false).await
    }
}
