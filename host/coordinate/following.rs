//! Up to where this coordinator follows the changes of others. Every request to a replica carries the revision that its operation began
//! with; a replica whose fence is above it refuses, and the operation begins again once later changes are followed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use witan_kernel::fault::Fault;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Clock, until};
use witan_kernel::sync::lock;

use super::{Coordinator, World};

/// How often an operation begins again: once for a change that it has met, and once more for one that was made meanwhile.
pub(super) const RESTARTS: u8 = 2;

/// Longest wait for later changes, microseconds: they are announced within milliseconds and polled for twice a second. Who has not heard
/// of them by then is cut off.
const PATIENCE_MICROS: u64 = 1_000_000;

/// A revision up to which all changes were followed, held by the operations that began then.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) revision: u64,
    /// Woken when no operation holds it any longer, and a later one is followed.
    ended: Arc<Notify>,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

/// The revision up to which all changes are followed, and who waits for a later one.
pub(super) struct Following {
    /// Taken by every operation.
    now: ArcSwap<Epoch>,
    /// Earlier ones that operations may still hold: as many as changes were made within the life of an operation.
    earlier: Mutex<Vec<Weak<Epoch>>>,
    /// Tenants (`None`: every one) whose bindings have changed and are not in force here yet, each with the revision of before. Nearly
    /// always empty.
    outdated: ArcSwap<BTreeMap<Option<TenantId>, Arc<Epoch>>>,
    /// Wakes those that wait for a later one, in the order in which they came, so that a simulated play is the same each time.
    later: Notify,
    /// Woken when an operation waits for a later revision.
    behind: Notify,
    /// Woken when the last operation of an earlier epoch has ended, and when a later one is followed.
    ended: Arc<Notify>,
}

impl Default for Following {
    fn default() -> Self {
        let ended = Arc::<Notify>::default();
        let now = ArcSwap::from_pointee(Epoch { revision: 0, ended: Arc::clone(&ended) });
        let (earlier, outdated, later) = (Mutex::default(), ArcSwap::default(), Notify::default());
        Self { now, earlier, outdated, later, behind: Notify::default(), ended }
    }
}

impl Following {
    /// The epoch of an operation that begins now. As long as it is held, the operation is under way.
    pub(super) fn begins(&self) -> Arc<Epoch> {
        self.now.load_full()
    }

    /// The same, of an operation of this tenant that goes by its bindings, which are looked up afterwards.
    pub(super) fn begins_for(&self, tenant: &TenantId) -> Arc<Epoch> {
        // In this order: bindings are known to be outdated before the revision of their change is followed.
        let now = self.begins();
        let outdated = self.outdated.load();
        if outdated.is_empty() || Fault::BindingVouchedEarly.is_on() {
            return now;
        }
        let of = [outdated.get(&None), outdated.get(&Some(tenant.clone()))];
        of.into_iter().flatten().chain([&now]).min_by_key(|epoch| epoch.revision).map_or(now.clone(), Arc::clone)
    }

    fn is_outdated(&self, tenant: &TenantId) -> bool {
        let outdated = self.outdated.load();
        !outdated.is_empty() && [None, Some(tenant.clone())].iter().any(|of| outdated.contains_key(of))
    }

    /// Bindings of these tenants have changed after `revision`. An epoch of operations that begin meanwhile counts as under way.
    fn bindings_change(&self, tenants: Vec<Option<TenantId>>, revision: u64) {
        let mut outdated = BTreeMap::clone(&self.outdated.load());
        for tenant in tenants {
            outdated.entry(tenant).or_insert_with(|| {
                let epoch = Arc::new(Epoch { revision, ended: Arc::clone(&self.ended) });
                lock(&self.earlier).push(Arc::downgrade(&epoch));
                epoch
            });
        }
        self.outdated.store(Arc::new(outdated));
    }

    fn follow(&self, revision: u64) {
        // Looked for twice a second, whether there is anything new or not.
        if self.now.load().revision == revision {
            return;
        }
        let next = Arc::new(Epoch { revision, ended: Arc::clone(&self.ended) });
        let mut earlier = lock(&self.earlier);
        let before = self.now.swap(next);
        earlier.retain(|epoch| epoch.strong_count() > 0);
        earlier.push(Arc::downgrade(&before));
        drop(earlier);
        drop(before);
        self.later.notify_waiters();
        self.ended.notify_one();
    }

    fn drained(&self) -> u64 {
        let mut earlier = lock(&self.earlier);
        earlier.retain(|epoch| epoch.strong_count() > 0);
        let held = earlier.iter().filter_map(|epoch| epoch.upgrade().map(|epoch| epoch.revision)).min();
        held.unwrap_or_else(|| self.now.load().revision)
    }
}

impl<W: World> Coordinator<W> {
    /// All changes up to this revision of the metadata store are followed: operations that begin from now on know of them.
    pub fn set_followed(&self, revision: u64) {
        self.following.follow(revision);
    }

    /// Bindings of these tenants (`None`: of all) have changed after `revision`, and are not in force here yet: operations do not say that
    /// they know of later changes until [`Self::bindings_followed`]. To be called before [`Self::set_followed`], by one caller.
    pub fn bindings_change(&self, tenants: Vec<Option<TenantId>>, revision: u64) {
        self.following.bindings_change(tenants, revision);
    }

    /// All bindings are in force here as of the revision that is followed.
    pub fn bindings_followed(&self) {
        if !self.following.outdated.load().is_empty() {
            self.following.outdated.store(Arc::default());
            self.following.later.notify_waiters();
        }
    }

    /// The revision up to which all changes are followed. Whoever takes it before anything else knows of all changes up to it.
    pub fn followed(&self) -> u64 {
        self.following.now.load().revision
    }

    /// The revision up to which all changes are followed by every operation that is under way: none holds a plan of before.
    pub fn drained_revision(&self) -> u64 {
        self.following.drained()
    }

    /// Ready when [`Self::drained_revision`] may have risen. For one waiter.
    pub async fn drains(&self) {
        self.following.ended.notified().await;
    }

    /// Ready when an operation was refused because later changes have to be followed first. For one waiter.
    pub async fn behind(&self) {
        self.following.behind.notified().await;
    }

    /// Waits until changes after `revision` are followed, and if `tenant` is one, until its bindings are in force as of then, or until
    /// `deadline` (monotonic microseconds). False if they are not.
    pub(super) async fn follows_beyond(&self, tenant: Option<&TenantId>, revision: u64, deadline: u64) -> bool {
        self.following.behind.notify_one();
        let now = self.ports.clock.monotonic_micros();
        let time = until(deadline.min(now + PATIENCE_MICROS), now);
        let following = &self.following;
        let beyond = async {
            loop {
                let later = following.later.notified();
                tokio::pin!(later);
                later.as_mut().enable();
                if following.now.load().revision > revision && tenant.is_none_or(|of| !following.is_outdated(of)) {
                    return;
                }
                later.await;
            }
        };
        tokio::time::timeout(time, beyond).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_revision_is_drained_when_no_operation_of_before_is_under_way() {
        let following = Following::default();
        following.follow(3);
        let (first, second) = (following.begins(), following.begins());
        assert_eq!((first.revision, following.drained()), (3, 3));
        following.follow(5);
        let third = following.begins();
        following.follow(5);
        following.follow(8);
        assert_eq!((third.revision, following.drained()), (5, 3));
        drop(first);
        assert_eq!(following.drained(), 3, "another one of then is under way");
        drop(second);
        assert_eq!(following.drained(), 5);
        following.ended.notified().await;
        drop(third);
        following.ended.notified().await;
        assert_eq!((following.drained(), following.now.load().revision), (8, 8));
        assert!(lock(&following.earlier).is_empty());
    }

    #[tokio::test]
    async fn nobody_vouches_for_bindings_that_are_not_in_force_yet() {
        let following = Following::default();
        let tenant = |id: &str| TenantId::new(id).unwrap();
        following.follow(3);
        let revision = |id| following.begins_for(&tenant(id)).revision;
        following.bindings_change(vec![Some(tenant("bound"))], 3);
        following.follow(5);
        assert_eq!((revision("bound"), revision("other"), following.drained()), (3, 5, 3));
        // A second change, before the first is in force.
        following.bindings_change(vec![Some(tenant("bound")), None], 5);
        following.follow(8);
        assert_eq!((revision("bound"), revision("other"), following.drained()), (3, 5, 3));
        let under_way = following.begins_for(&tenant("bound"));
        following.outdated.store(Arc::default());
        assert_eq!((revision("bound"), revision("other"), following.drained()), (8, 8, 3));
        drop(under_way);
        assert_eq!(following.drained(), 8);
        following.ended.notified().await;
    }
}
