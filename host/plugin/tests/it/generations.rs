//! Swaps of a tenant's routing hook: each generation of its rows is placed by its own hook, here and after a restart.

use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::hook::{Hook, Hooks, Partition};
use witan_kernel::name::Key;
use witan_kernel::port::PlacementChange;
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::registry::{Binding, Named, Proposal, Proposed, RoutingChange};
use witan_plugin::{BindRequest, OnFault, PluginError, Reference};

use super::guest::Guest;
use super::{World, place, tenant, wait_for_kind};

const SETTLED: Named = Named { present: 0, coming: None, wanted: None, highest: 0 };

/// A hook that places all keys in one partition, which is named by one byte.
fn all_in(partition: u8) -> Vec<u8> {
    let guest =
        Guest::routing("tags").with(|guest| guest.fields = guest.fields.replace("\\70", &format!("\\{partition:02x}")));
    guest.build()
}

fn partition(hooks: &Arc<dyn Hooks>, generation: u32) -> Result<Bytes, Partition> {
    let key = Key::new("some key").unwrap();
    match hooks.partition_key(generation, &key) {
        Partition::By { key, .. } => Ok(key),
        other => Err(other),
    }
}

impl World {
    fn places(&self, generation: u32) -> Result<Bytes, Partition> {
        partition(&self.hooks("a"), generation)
    }

    async fn bind_request(&self, component: &[u8]) -> RoutingChange {
        let plugin = Reference::Digest(self.stage(component).await.unwrap());
        let (tenant, hook, configuration) = (Some(tenant("a")), Hook::RoutingHook, Bytes::new());
        RoutingChange::Bind(BindRequest {
            tenant,
            hook,
            plugin,
            configuration,
            on_fault: OnFault::Native,
            author: Author::default(),
        })
    }

    async fn proposed(&self, change: RoutingChange, named: Named) -> Proposed {
        match self.host.propose(change, named).await.unwrap() {
            Proposal::Swap(proposed) => *proposed,
            Proposal::SamePlaces => panic!("another hook places keys elsewhere"),
        }
    }

    /// Begins a swap.
    async fn swap(&self, change: RoutingChange, named: Named) -> Option<Binding> {
        let proposed = self.proposed(change, named).await;
        let (bound, migration) = self.host.record(proposed, 5).await.unwrap();
        let change = PlacementChange::Generation { tenant: tenant("a"), generation: named.highest + 1 };
        assert_eq!((migration.change, migration.created_at_ms), (change, 5));
        bound
    }

    async fn settle(&self, named: Named) -> bool {
        let mut of = Tenant::with_defaults(tenant("a"), 3, 0);
        (of.generation, of.generations, of.wanted_generation) = (named.present, named.highest, named.wanted);
        self.host.settle(tenant("a"), move || Ok(Some(of.clone()))).await.unwrap()
    }

    fn bound(&self) -> Option<u64> {
        self.host.bindings().first().map(|bound| bound.record.current.number)
    }
}

fn in_partition(byte: u8) -> Result<Bytes, Partition> {
    Ok(Bytes::copy_from_slice(&[byte]))
}

#[tokio::test]
async fn each_generation_is_placed_by_its_own_hook() {
    let mut world = World::new();
    let native = Err(Partition::Native);
    assert_eq!((world.places(0), world.places(1)), (native.clone(), Err(Partition::Unknown)), "nothing is bound");
    let change = world.bind_request(&all_in(b'x')).await;
    let proposed = world.proposed(change.clone(), SETTLED).await;
    let asked = proposed.partition_key(&Key::new("some key").unwrap());
    assert!(matches!(asked, Partition::By { key, .. } if key[..] == *b"x"), "it can be tried first");
    assert_eq!((world.places(0), world.bound()), (native.clone(), None), "nothing has changed");
    world.swap(change, SETTLED).await.expect("bound");
    for _ in 0..2 {
        assert_eq!((world.places(0), world.places(1)), (native.clone(), in_partition(b'x')));
        assert_eq!((world.places(2), world.bound()), (Err(Partition::Unknown), Some(1)));
        world = world.restart();
    }
    assert_eq!(world.host.unsettled(), [tenant("a")]);
    // The rows have moved.
    let first = Named { present: 1, highest: 1, ..SETTLED };
    assert!(world.settle(first).await && !world.settle(first).await);
    assert_eq!(
        (world.host.unsettled(), world.places(0), world.places(1)),
        (vec![], Err(Partition::Unknown), in_partition(b'x'))
    );
    let change = world.bind_request(&all_in(b'y')).await;
    world.swap(change, first).await.expect("bound");
    let second = Named { present: 2, highest: 2, ..SETTLED };
    for _ in 0..2 {
        assert_eq!(
            (world.places(1), world.places(2), world.bound()),
            (in_partition(b'x'), in_partition(b'y'), Some(2))
        );
        world = world.restart();
    }
    world.settle(second).await;
    // Back to the first, which is a generation of its own.
    world.swap(RoutingChange::Rollback(tenant("a"), Author::default()), second).await.expect("bound");
    let third = Named { present: 3, highest: 3, ..SETTLED };
    assert_eq!((world.places(2), world.places(3), world.bound()), (in_partition(b'y'), in_partition(b'x'), Some(3)));
    world.settle(third).await;
    assert_eq!(world.swap(RoutingChange::Unbind(tenant("a"), Author::default()), third).await, None);
    for _ in 0..2 {
        assert_eq!((world.places(3), world.places(4), world.bound()), (in_partition(b'x'), native.clone(), None));
        world = world.restart();
    }
    world.settle(Named { present: 4, highest: 4, ..SETTLED }).await;
    assert_eq!((world.places(3), world.places(4)), (Err(Partition::Unknown), native));
    assert!(world.host.unsettled().is_empty() && world.host.has_generations(&tenant("a")));
}

#[tokio::test]
async fn a_swap_that_is_given_up_leaves_the_binding_of_before() {
    let world = World::new();
    world.put("a", Hook::RoutingHook, &all_in(b'x')).await.unwrap();
    let before = world.host.bindings();
    world.swap(world.bind_request(&all_in(b'y')).await, SETTLED).await.expect("bound");
    assert_eq!((world.places(0), world.places(1), world.bound()), (in_partition(b'x'), in_partition(b'y'), Some(2)));
    let wanted = Named { wanted: Some(1), highest: 1, ..SETTLED };
    assert!(!world.settle(wanted).await, "it is under way");
    let given_up = Named { highest: 1, ..SETTLED };
    assert!(world.settle(given_up).await);
    assert_eq!(
        (world.places(0), world.places(1), world.bound()),
        (in_partition(b'x'), Err(Partition::Unknown), Some(3))
    );
    let (now, before) = (&world.host.bindings()[0].record, &before[0].record);
    assert_eq!((now.current.digest, now.previous.len()), (before.current.digest, before.previous.len()));
    // The same once more, which has the next number; and one that removes the binding.
    world.swap(world.bind_request(&all_in(b'y')).await, given_up).await.expect("bound");
    assert_eq!(world.places(2), in_partition(b'y'));
    world.settle(Named { highest: 2, ..SETTLED }).await;
    world.swap(RoutingChange::Unbind(tenant("a"), Author::default()), Named { highest: 2, ..SETTLED }).await;
    assert_eq!(world.bound(), None);
    world.settle(Named { highest: 3, ..SETTLED }).await;
    assert_eq!((world.places(0), world.bound()), (in_partition(b'x'), Some(1)), "it is bound again");
}

#[tokio::test]
async fn what_places_keys_alike_is_no_swap() {
    let world = World::new();
    let change = world.bind_request(&all_in(b'x')).await;
    world.swap(change.clone(), SETTLED).await.expect("bound");
    let first = Named { present: 1, highest: 1, ..SETTLED };
    for named in [Named { wanted: Some(1), highest: 1, ..SETTLED }, first] {
        let same = world.host.propose(change.clone(), named).await.unwrap();
        assert!(matches!(same, Proposal::SamePlaces), "{named:?}");
    }
    world.settle(first).await;
    // It may be bound by its name from now on.
    world.bind("a", Hook::RoutingHook, super::name("tags")).await.unwrap();
    assert_eq!((world.places(1), world.bound()), (in_partition(b'x'), Some(2)), "the places stay on record");
    let nothing = world.host.propose(RoutingChange::Unbind(tenant("b"), Author::default()), SETTLED).await;
    assert!(matches!(nothing, Err(PluginError::NotFound(_))), "{nothing:?}");
}

#[tokio::test]
async fn a_component_that_places_rows_is_not_removed() {
    let world = World::new();
    let x = all_in(b'x');
    world.put("a", Hook::RoutingHook, &x).await.unwrap();
    world.swap(RoutingChange::Unbind(tenant("a"), Author::default()), SETTLED).await;
    let plugin = Reference::Digest(witan_plugin::Digest::of(&x));
    let refused = world.host.remove(None, plugin.clone()).await;
    assert!(matches!(refused, Err(PluginError::InUse(_))), "{refused:?}");
    world.settle(Named { present: 1, highest: 1, ..SETTLED }).await;
    world.host.remove(None, plugin).await.expect("no row is placed by it");
}

/// A hook that clients do not ask any longer, since it has failed too often, still places the keys that are copied.
#[tokio::test]
async fn what_is_copied_is_asked_apart() {
    let world = World::new();
    let faulty = Guest::routing("tags").when_triggered("unreachable").build();
    world.put("a", Hook::RoutingHook, &faulty).await.unwrap();
    let hooks = world.hooks("a");
    let (good, bad) = (Key::new("good").unwrap(), Key::new("bad").unwrap());
    for _ in 0..100 {
        assert!(matches!(hooks.partition_key(0, &bad), Partition::Faulted { .. }));
    }
    assert!(matches!(hooks.partition_key(0, &good), Partition::Faulted { .. }), "the breaker is open");
    assert!(matches!(hooks.partition_key_apart(0, &good), Partition::By { .. }));
    let Partition::Faulted { reason, .. } = hooks.partition_key_apart(0, &bad) else { panic!("it faults") };
    assert!(reason.contains("trapped"), "{reason}");
    assert_eq!(hooks.partition_key_apart(1, &good), Partition::Unknown);
}

#[tokio::test]
async fn other_hosts_follow_a_swap() {
    let store = MemoryPlugins::default();
    let (one, other) = (World::of_cluster(&store), World::of_cluster(&store));
    one.put("a", Hook::RoutingHook, &all_in(b'x')).await.unwrap();
    one.swap(one.bind_request(&all_in(b'y')).await, SETTLED).await.expect("bound");
    assert_eq!(other.places(1), Err(Partition::Unknown), "never another hook instead");
    other.host.refresh(None).await.unwrap();
    assert_eq!((other.places(0), other.places(1)), (in_partition(b'x'), in_partition(b'y')));
    // What it proposes on top of an older record is refused.
    let first = Named { present: 1, highest: 1, ..SETTLED };
    let stale = other.proposed(RoutingChange::Unbind(tenant("a"), Author::default()), first).await;
    one.settle(first).await;
    let refused = other.host.record(stale, 5).await;
    assert!(refused.is_err(), "{refused:?}");
    other.host.refresh(None).await.unwrap();
    assert_eq!((other.places(0), other.places(1)), (Err(Partition::Unknown), in_partition(b'y')));
}

#[tokio::test]
async fn a_file_of_a_routing_hook_is_announced_and_not_followed() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let file = world.folder().join("a.wasm");
    place(&file, &all_in(b'x'));
    wait_for_kind(&mut events, EventKind::Ready).await;
    world.bind("a", Hook::RoutingHook, super::name("tags")).await.unwrap();
    place(&file, &all_in(b'y'));
    let event = wait_for_kind(&mut events, EventKind::NotFollowed).await;
    let digest = witan_plugin::Digest::of(&all_in(b'y'));
    assert!(event.detail.contains(&format!("witan plugin bind routing-hook {digest} --tenant a")), "{}", event.detail);
    assert_eq!((event.digest, world.places(0)), (Some(digest), in_partition(b'x')));
}
