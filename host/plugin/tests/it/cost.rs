//! What a call costs. Not a check but a measurement: run it optimized, with `--ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use witan_kernel::hook::{Asked, Hook, Plugins, ResolverQuestion, Sibling};
use witan_kernel::name::Key;
use witan_plugin::Limits;

use crate::guest::Guest;
use crate::{World, built, question, tenant};

fn measure(what: &str, times: u32, mut run: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let began = Instant::now();
        (0..times).for_each(|_| run());
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(times));
    }
    println!("{what}: {best:.0} ns");
}

#[tokio::test]
#[ignore = "a measurement"]
async fn cost() {
    let mut limits = Limits::default();
    for budget in [&mut limits.policy, &mut limits.routing, &mut limits.resolver] {
        budget.share = 10_000;
    }
    let world = World::with(limits);
    let (a, b) = (tenant("a-tenant"), tenant("b-tenant"));
    measure("hooks(), nothing bound", 100_000, || _ = black_box(world.host.hooks(&a)));
    world.put("a-tenant", Hook::ConsistencyPolicy, &Guest::policy("pol", 2).build()).await.unwrap();
    world.put("", Hook::ConsistencyPolicy, &built("adaptive-latency")).await.unwrap();
    world.put("", Hook::RoutingHook, &built("hash-tag")).await.unwrap();
    measure("hooks(), bound", 100_000, || _ = black_box(world.host.hooks(&a)));
    let question = question(256);
    let (small, full) = (world.host.hooks(&a), world.host.hooks(&b));
    measure("a policy that does nothing", 100_000, || {
        assert!(matches!(small.policy(black_box(&question)), Asked::Answered { .. }));
    });
    measure("adaptive-latency", 100_000, || {
        assert!(matches!(full.policy(black_box(&question)), Asked::Answered { .. }));
    });
    measure("hooks() and adaptive-latency", 100_000, || {
        assert!(matches!(world.host.hooks(&b).policy(black_box(&question)), Asked::Answered { .. }));
    });
    let key = Key::new("{user1000}.following").unwrap();
    measure("hash-tag's partition key", 100_000, || {
        assert!(matches!(full.partition_key(black_box(&key)), Asked::Answered { .. }));
    });
    world.put("", Hook::ConflictResolver, &built("shopping-cart")).await.unwrap();
    let hooks = world.host.hooks(&b);
    let siblings: Vec<Sibling> = (1..=3)
        .map(|n| Sibling { value: Bytes::from(format!(r#"{{"items":{{"milk":{n},"bread-{n}":1}}}}"#)), time: n })
        .collect();
    let began = Instant::now();
    for _ in 0..5_000 {
        let question = ResolverQuestion { key: key.clone(), siblings: siblings.clone() };
        assert!(matches!(hooks.resolve(question).await, Asked::Answered { .. }));
    }
    println!("shopping-cart over the resolver threads: {} ns", began.elapsed().as_nanos() / 5_000);
}
