//! Random histories of a few replicas: no acknowledged write is dropped, no superseded one comes back, all replicas agree in the end, and
//! a write that is tried again has one effect.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::{TestCaseError, TestRng, TestRunner};
use witan_kernel::fault::{self, Fault};
use witan_kernel::record::Record;
use witan_kernel::siblings::Siblings;

#[path = "siblings_model/world.rs"]
mod world;

#[path = "siblings_model/oracle.rs"]
mod oracle;

use world::{Shape, Step, World, histories};

/// Short enough that nothing a retry needs is forgotten: fewer than 64 writes within 15 s.
const WINDOW: Shape = Shape { steps: 50, retries: true, collapses: true, asks: false, pause: 100 };
/// Long enough that `recent` overflows and expires.
const LONG: Shape = Shape { steps: 400, retries: true, collapses: true, asks: false, pause: 5000 };
/// Long enough that names overflow and expire, with repetitions that ask first: there is no window.
const ASKING: Shape = Shape { asks: true, ..LONG };
/// Names kept in histories of [`ASKING`]: few, so that they overflow often.
const FEW_NAMES: usize = 8;

/// Triples of records whose join was checked.
static TRIPLES: AtomicU64 = AtomicU64::new(0);

/// How many histories to play: `WITAN_MODEL_PERCENT` of the usual number, if it is set.
fn cases(usual: u32) -> u32 {
    let percent = std::env::var("WITAN_MODEL_PERCENT").ok().and_then(|text| text.parse::<u32>().ok());
    percent.map_or(usual, |percent| (usual * percent / 100).max(1))
}

fn run(cases: u32, shape: Shape, property: impl Fn(&[Step]) -> Result<(), String>) -> Result<(), String> {
    shrunk(20_000, cases, shape, property)
}

/// [`run`], with at most `max_shrink_iters` attempts to find a shorter history that fails: none for a failure that is expected.
fn shrunk(
    max_shrink_iters: u32,
    cases: u32,
    shape: Shape,
    property: impl Fn(&[Step]) -> Result<(), String>,
) -> Result<(), String> {
    let config = ProptestConfig { cases, max_shrink_iters, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&histories(shape), |steps| property(&steps).map_err(TestCaseError::fail))
        .map_err(|error| error.to_string())
}

fn lived(steps: &[Step], asks: bool) -> World {
    let mut world = World::new(asks);
    steps.iter().for_each(|step| world.step(step));
    world
}

fn keeps_its_promises(steps: &[Step], within_window: bool) -> Result<(), String> {
    let mut world = lived(steps, false);
    world.heal();
    world.check(within_window)
}

fn keeps_its_promises_by_asking(steps: &[Step]) -> Result<(), String> {
    fault::keep_names(FEW_NAMES);
    let mut world = lived(steps, true);
    world.heal();
    world.check(false)
}

fn joined(a: &Siblings, b: &Siblings) -> Siblings {
    let mut out = a.clone();
    let changed = out.merge(b);
    assert_eq!(changed, out != *a, "merge tells whether it changed anything");
    out
}

/// What differs, in the words of the records.
fn difference(left: &Siblings, right: &Siblings) -> String {
    let (left, right) = (format!("{left:#?}"), format!("{right:#?}"));
    let only = |of: &str, other: &str| {
        let lines: Vec<&str> = of.lines().filter(|line| !other.lines().any(|same| same == *line)).collect();
        lines.join("\n")
    };
    format!("left only:\n{}\nright only:\n{}", only(&left, &right), only(&right, &left))
}

/// Joins all kinds of messages of one history in all orders.
fn obeys_the_laws(steps: &[Step], asks: bool, picked: usize) -> Result<(), String> {
    let messages = lived(steps, asks).messages;
    let picked: Vec<&Siblings> = messages.iter().step_by(messages.len() / picked + 1).collect();
    let same = |what: &str, left: &Siblings, right: &Siblings| {
        if left == right { Ok(()) } else { Err(format!("{what}:\n{}", difference(left, right))) }
    };
    for a in &picked {
        same("idempotent", &joined(a, a), a)?;
        for b in &picked {
            let ab = joined(a, b);
            oracle::check(a, b, &ab)?;
            same("commutative", &ab, &joined(b, a))?;
            same("absorbing", &joined(&ab, b), &ab)?;
            TRIPLES.fetch_add(picked.len() as u64, Ordering::Relaxed);
            for c in &picked {
                same("associative", &joined(&ab, c), &joined(a, &joined(b, c)))?;
            }
        }
    }
    Ok(())
}

#[test]
fn within_the_window_every_promise_holds() {
    run(cases(2000), WINDOW, |steps| keeps_its_promises(steps, true)).unwrap();
}

#[test]
fn long_histories_lose_nothing_and_converge() {
    run(cases(150), LONG, |steps| keeps_its_promises(steps, false)).unwrap();
}

#[test]
fn merge_obeys_the_laws_with_collapses() {
    run(cases(300), Shape { retries: false, ..WINDOW }, |steps| obeys_the_laws(steps, false, 7)).unwrap();
    run(cases(10), Shape { retries: false, ..LONG }, |steps| obeys_the_laws(steps, false, 7)).unwrap();
}

#[test]
fn merge_obeys_the_laws_with_retries() {
    run(cases(300), Shape { collapses: false, ..WINDOW }, |steps| obeys_the_laws(steps, false, 7)).unwrap();
}

#[test]
fn merge_obeys_the_laws_with_both() {
    run(cases(300), WINDOW, |steps| obeys_the_laws(steps, false, 7)).unwrap();
}

#[test]
fn whoever_asks_needs_no_window() {
    run(cases(300), ASKING, keeps_its_promises_by_asking).unwrap();
    run(cases(1500), Shape { steps: 80, ..ASKING }, keeps_its_promises_by_asking).unwrap();
}

#[test]
fn merge_obeys_the_laws_with_names_that_are_forgotten() {
    fault::keep_names(FEW_NAMES);
    run(cases(8), ASKING, |steps| obeys_the_laws(steps, true, 14)).unwrap();
    run(cases(100), Shape { steps: 80, ..ASKING }, |steps| obeys_the_laws(steps, true, 10)).unwrap();
    println!("{} triples", TRIPLES.load(Ordering::Relaxed));
}

/// Those of [`ASKING`] that random histories find; `names.rs` shows others by hand.
#[test]
fn broken_rules_of_names_are_found() {
    for broken in [Fault::AskedWithoutPin, Fault::HorizonIgnored] {
        fault::set(Some(broken));
        let found = shrunk(0, 300, Shape { steps: 150, ..ASKING }, keeps_its_promises_by_asking);
        fault::set(None);
        assert!(found.is_err(), "{broken:?} was not found");
    }
}

/// What replicas and coordinators send has one encoding: the decoder refuses nothing of it, and gives it back unchanged. Some of it has a
/// write in two versions.
#[test]
fn every_message_is_canonical() {
    let shared = std::cell::Cell::new(0u32);
    let canonical = |steps: &[Step]| {
        for message in lived(steps, true).messages {
            let ids = message.versions.iter().flat_map(|version| &version.ids);
            let distinct: std::collections::BTreeSet<_> = ids.clone().collect();
            shared.set(shared.get() + u32::from(distinct.len() < ids.count()));
            let record = Record::Siblings(message);
            if record.encode().decode().as_ref() != Ok(&record) {
                return Err(format!("{:?}: {record:?}", record.encode().decode()));
            }
        }
        Ok(())
    };
    // As many whatever `WITAN_MODEL_PERCENT` says: with fewer, no message has a write in two versions.
    run(1000, WINDOW, canonical).unwrap();
    run(20, LONG, canonical).unwrap();
    assert!(shared.get() > 0, "no message had a write in two versions");
}

/// The model must find broken rules; otherwise its finding nothing would prove nothing.
#[test]
fn broken_rules_are_found() {
    for broken in [Fault::OverwriteInsteadOfMerge, Fault::WriteIdForgotten, Fault::ActorReusedAfterWipe] {
        fault::set(Some(broken));
        let found = shrunk(0, 500, Shape { collapses: false, ..WINDOW }, |steps| keeps_its_promises(steps, true));
        fault::set(None);
        assert!(found.is_err(), "{broken:?} was not found");
    }
}
