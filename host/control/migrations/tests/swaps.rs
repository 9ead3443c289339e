//! Changes of a tenant's routing hook.

use std::sync::atomic::AtomicUsize;

use witan_kernel::hook::{Hook, Partition};
use witan_kernel::name::Key;
use witan_kernel::port::{BindingChange, BindingStore, RecordText};
use witan_kernel::ring::token;

use super::*;
use crate::{ChangeRefused, HookChange, Places, Tried};

/// Keys of each tenant, in pages of three.
const KEYS: u64 = 8;

fn key(n: u64) -> Key {
    Key::new(format!("key-{n}")).unwrap()
}

pub(super) fn page(tenant: &Tenant, from: Option<KeysFrom>) -> KeysAt {
    let (first, _) = from.unwrap_or_default();
    let end = (first + 3).min(KEYS);
    let keys = (first..end).map(|n| (token(&tenant.id, key(n).bytes()), key(n))).collect();
    KeysAt { keys, next: (end < KEYS).then_some((end, None)) }
}

/// Places the keys from this one on as they are, and the others together.
struct Split(u64, Option<u64>);

impl Places for Split {
    fn partition_key(&self, of: &Key) -> Partition {
        let number = (0..KEYS).find(|n| key(*n) == *of).expect("one of the keys");
        if self.1 == Some(number) {
            return Partition::Faulted { reason: "it trapped".to_owned(), by: "hook@1".into() };
        }
        let together = Partition::By { key: "together".into(), by: "hook@1".into() };
        if number >= self.0 { Partition::Native } else { together }
    }
}

/// A change of the plugin host, which records it in the same store.
struct Change {
    metadata: Arc<MemoryMetadata>,
    same: bool,
    faults_on: Option<u64>,
    has_generations: bool,
    at_once: Arc<AtomicUsize>,
}

impl HookChange for Change {
    type Bound = &'static str;
    type Error = String;
    type Proposed = (Tenant, Split);

    fn has_generations(&self) -> bool {
        self.has_generations
    }

    fn propose(&self, tenant: &Tenant) -> Pending<Result<Option<Self::Proposed>, String>> {
        let proposed = (!self.same).then(|| (tenant.clone(), Split(5, self.faults_on)));
        Box::pin(std::future::ready(Ok(proposed)))
    }

    fn at_once(&self) -> Pending<Result<&'static str, String>> {
        self.at_once.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok("at once")))
    }

    fn record(&self, (tenant, _): Self::Proposed, now_ms: u64) -> Pending<Result<(&'static str, Migration), String>> {
        let metadata = Arc::clone(&self.metadata);
        Box::pin(async move {
            let slot = Slot { tenant: Some(tenant.id.clone()), hook: Hook::RoutingHook };
            let stored = metadata.binding_record(&slot).await.expect("answered").map_or(0, |stored| stored.version);
            let text = Some(RecordText("a hook".to_owned()));
            let record =
                BindingChange { slot, expected: stored, record: text, puts_in_force: None, fenced: false, entry: None };
            let change = PlacementChange::Generation { tenant: tenant.id, generation: tenant.generations + 1 };
            let swapped = metadata.swap_hook(record, change, now_ms).await;
            swapped.map(|(_, migration)| ("recorded", migration)).map_err(|error| error.to_string())
        })
    }
}

impl Places for (Tenant, Split) {
    fn partition_key(&self, key: &Key) -> Partition {
        self.1.partition_key(key)
    }
}

impl Place {
    fn change(&self) -> Change {
        let metadata = Arc::clone(&self.metadata);
        Change { metadata, same: false, faults_on: None, has_generations: false, at_once: Arc::default() }
    }

    async fn swap(&self, change: Change) -> Result<(&'static str, Option<Migration>), ChangeRefused<String>> {
        self.catalog.change_routing_hook(self.turn(), &tenant("t1"), change, 7).await
    }
}

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

#[tokio::test]
async fn a_swap_is_recorded_and_answered_at_once() {
    let place = Place::new(3, 40, &[3]).await;
    let (bound, migration) = place.swap(place.change()).await.expect("recorded");
    let migration = migration.expect("records move");
    let swap = PlacementChange::Generation { tenant: tenant("t1"), generation: 1 };
    assert_eq!((bound, &migration.change, migration.created_at_ms), ("recorded", &swap, 7));
    let followed = place.here.followed.lock().unwrap().pop().expect("followed here");
    assert_eq!((followed.generation, followed.wanted_generation), (0, Some(1)));
    let pending = place.catalog.pending(&[followed]).await.expect("answered");
    assert_eq!(pending.get(&tenant("t1")), Some(&migration.number));

    let second = place.swap(place.change()).await;
    assert!(matches!(second, Err(ChangeRefused::Refused(Refused::MigrationConflict(_)))), "one at a time: {second:?}");
    let same = place.swap(Change { same: true, ..place.change() }).await.expect("it is being made");
    assert_eq!((same.0, same.1.map(|of| of.number)), ("at once", Some(migration.number)));

    let given_up = place.catalog.cancel_migration(place.turn(), migration.number, false, 8).await.expect("given up");
    assert!(given_up.cancel_requested);
    assert_eq!(*place.here.given_up.lock().unwrap(), [tenant("t1")], "the binding of before is bound again");
}

#[tokio::test]
async fn what_places_keys_as_before_is_changed_at_once() {
    let place = Place::new(3, 40, &[3]).await;
    let (bound, migration) = place.swap(Change { same: true, ..place.change() }).await.expect("changed");
    assert_eq!((bound, migration), ("at once", None));
    assert_eq!(place.metadata.migrations(None, 10).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_hook_that_faults_on_a_key_is_refused_with_the_key() {
    let place = Place::new(3, 40, &[3]).await;
    let refused = place.swap(Change { faults_on: Some(7), ..place.change() }).await.expect_err("it faults");
    assert!(refused.to_string().contains("hook faults on key \"key-7\": it trapped"), "{refused}");
    assert_eq!(place.metadata.migrations(None, 10).await, Ok(Vec::new()), "nothing has changed");

    let later = Instant::now() + std::time::Duration::from_secs(60);
    let planned = place.catalog.plan_hook(&tenant("t1"), &place.change(), later).await.expect("planned");
    let all = Tried { moving: 5, staying: 3, is_complete: true, ..Tried::default() };
    assert_eq!((planned.tried, planned.problems), (Some(all), Vec::new()));
    let faulty = Change { faults_on: Some(1), ..place.change() };
    let planned = place.catalog.plan_hook(&tenant("t1"), &faulty, later).await.expect("planned");
    let tried = planned.tried.expect("keys were tried");
    assert_eq!((tried.moving, tried.staying, tried.faulting), (4, 3, 1));
    assert!(planned.problems[0].contains("\"key-1\""), "{:?}", planned.problems);
}

#[tokio::test]
async fn without_generations_a_hook_changes_only_while_nothing_is_stored() {
    for keys in [0, 40] {
        let place = Place::new(3, keys, &[3]).await;
        place.here.without_generations.lock().unwrap().push(id("n2"));
        let changed = place.swap(place.change()).await;
        if keys == 0 {
            assert!(matches!(changed, Ok(("at once", None))), "{changed:?}");
        } else {
            let refused = changed.expect_err("records would have to move");
            assert!(matches!(refused, ChangeRefused::Refused(Refused::TooOld { .. })), "{refused:?}");
            assert!(refused.to_string().contains("storage node n2"), "{refused}");
        }
        // Rows that several hooks have placed cannot be kept apart.
        let later = place.swap(Change { has_generations: true, ..place.change() }).await;
        assert!(matches!(later, Err(ChangeRefused::Refused(Refused::TooOld { .. }))), "{later:?}");
    }
}
