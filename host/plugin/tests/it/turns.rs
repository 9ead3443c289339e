//! Threads that tenants share: whose question is next, and how much may wait.

use std::task::{Context, Waker};

use bytes::Bytes;
use witan_kernel::hook::{Asked, FaultKind, Hook, Pending, PolicyQuestion, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::Key;
use witan_plugin::Limits;

use crate::guest::Guest;
use crate::{World, ample, brief, question, required};

fn siblings_of(value: &Bytes, count: u64) -> ResolverQuestion {
    let siblings = (0..count).map(|time| Sibling { value: value.clone(), time }).collect();
    ResolverQuestion { key: Key::new("key of a tenant").unwrap(), siblings }
}

fn is_answered<T>(asked: &mut Pending<T>) -> bool {
    asked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Every question of a tenant runs into its limit of CPU time, and as many as may wait do. In one queue, its neighbour would wait for all.
#[tokio::test]
async fn a_neighbour_does_not_wait_behind_a_resolver_that_burns_all_it_may() {
    let world = World::with(Limits { breaker_calls: u32::MAX, ..brief() });
    let endless = Guest::resolver("bad").when_triggered("(loop $again (br $again))");
    world.put("bad", Hook::ConflictResolver, &endless.build()).await.unwrap();
    world.put("good", Hook::ConflictResolver, &Guest::resolver("good").build()).await.unwrap();
    let (bad, good) = (world.hooks("bad"), world.hooks("good"));
    let value = Bytes::from_static(b"v");
    let mut burning: Vec<Pending<Asked<Verdict>>> = (0..64).map(|_| bad.resolve(siblings_of(&value, 2))).collect();
    for _ in 0..3 {
        let asked = good.resolve(siblings_of(&value, 2)).await;
        assert!(matches!(asked, Asked::Answered { .. }), "{asked:?}");
    }
    let unanswered = burning.iter_mut().map(is_answered).filter(|answered| !answered).count();
    assert!(unanswered >= 32, "only {unanswered} of 64 still wait");
    // As many as may wait, and one that is being asked.
    let mut more: Vec<_> = (0..65).map(|_| bad.resolve(siblings_of(&value, 2))).collect();
    let full = more.iter_mut().find_map(is_full).expect("some have no room");
    let told = full.fault().expect("it was not asked");
    assert!(told.kind == FaultKind::Queue && told.reason.contains("too many questions waiting"), "{told:?}");
}

/// The refusal of a question that found no room.
fn is_full(asked: &mut Pending<Asked<Verdict>>) -> Option<Asked<Verdict>> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(asked @ Asked::Faulted { kind: FaultKind::Queue, .. }) => Some(asked),
        _ => None,
    }
}

/// Sixty-five values of a mebibyte, which are one in memory here.
#[tokio::test]
async fn bytes_that_wait_are_bounded() {
    let world = World::with(ample());
    // With memory for the largest record.
    let roomy = Guest::resolver("any").with(|guest| guest.pages = 600);
    world.put("", Hook::ConflictResolver, &roomy.build()).await.unwrap();
    let value = Bytes::from(vec![0; 1 << 20]);
    let told = world.hooks("a").resolve(siblings_of(&value, 65)).await.fault().expect("it has no room");
    assert!(told.kind == FaultKind::Queue && told.reason.contains("too many bytes"), "{told:?}");
    let asked = world.hooks("a").resolve(siblings_of(&value, 32)).await;
    assert!(matches!(asked, Asked::Answered { .. }), "the largest record: {asked:?}");
}

#[tokio::test]
async fn a_policy_that_takes_long_leaves_the_serving_threads() {
    let world = World::with(ample());
    let slow = "(local.set 0 (i32.const 5000000))
        (loop $again (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))";
    let slow = Guest::policy("slow", 2).when_triggered(slow);
    world.put("slow", Hook::ConsistencyPolicy, &slow.build()).await.unwrap();
    let hooks = world.hooks("slow");
    let ask = |deadline_ms| PolicyQuestion { deadline_ms, ..question(666) };
    assert!(hooks.policy_apart(&ask(1)).is_none(), "nothing is known of it yet");
    assert_eq!(required(&hooks.policy(&ask(1))), 2);
    assert!(hooks.policy_apart(&ask(1)).is_none(), "the answer is known");
    let apart = hooks.policy_apart(&ask(2)).expect("it takes long");
    assert_eq!(required(&apart.await), 2);
    // As soon as it is quick again, it is asked where the others are.
    let quickly = async {
        let mut deadline_ms = 1000;
        while let Some(apart) = hooks.policy_apart(&PolicyQuestion { deadline_ms, ..question(1) }) {
            assert_eq!(required(&apart.await), 2);
            deadline_ms += 1;
        }
    };
    tokio::time::timeout(crate::LONG, quickly).await.expect("it is quick");
}
