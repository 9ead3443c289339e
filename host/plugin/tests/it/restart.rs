//! A start with many plugins bound: those of class standard are in force before it has ended, and the large ones soon after.

use std::time::Instant;

use witan_kernel::hook::{Asked, Hook, ResolverQuestion, Sibling};
use witan_kernel::name::Key;

use crate::classes::large;
use crate::guest::Guest;
use crate::{World, ample, question, required, start};

/// How many plugins are bound, a tenth of them large: so that the figure of the operators' manual, of 200, can be measured again.
fn bound() -> usize {
    std::env::var("WITAN_PLUGINS_BOUND").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// Component and machine code together have as many bytes as those of a Python plugin.
const LARGE: usize = 24 << 20;

fn conflict() -> ResolverQuestion {
    let sibling = |value: &'static [u8]| Sibling { value: value.into(), time: 1 };
    ResolverQuestion { key: Key::new("any").unwrap(), siblings: vec![sibling(b"a"), sibling(b"b")] }
}

#[tokio::test]
async fn a_start_waits_for_small_plugins_and_not_for_large_ones() {
    let (all, world) = (bound(), World::new());
    let wide = all / 10;
    for number in 0..all - wide {
        let policy = Guest::policy(&format!("small-{number}"), 1).build();
        world.put(&format!("small-{number}"), Hook::ConsistencyPolicy, &policy).await.unwrap();
    }
    for number in 0..wide {
        let tenant = format!("large-{number}");
        world.grant(&tenant, true);
        let resolver = large(Guest::resolver(&tenant), LARGE).build();
        world.put(&tenant, Hook::ConflictResolver, &resolver).await.unwrap();
    }
    let World { dir, store, host } = world;
    drop(host);
    let began = Instant::now();
    let host = start(&dir, &store, ample());
    let started = began.elapsed();
    let world = World { dir, store, host };
    assert_eq!(world.host.late().of, wide);
    for number in 0..all - wide {
        assert_eq!(required(&world.hooks(&format!("small-{number}")).policy(&question(1))), 1);
    }
    world.loaded().await;
    println!("{all} plugins bound: started after {started:?}, {wide} large ones loaded after {:?}", began.elapsed());
    for number in 0..wide {
        let asked = world.hooks(&format!("large-{number}")).resolve(conflict()).await;
        assert!(matches!(asked, Asked::Answered { .. }), "{asked:?}");
    }
    assert!(world.host.bindings().iter().all(|binding| binding.broken.is_none()));
    assert_eq!(world.host.compilations().compiled, 0, "nothing is compiled anew");
}
