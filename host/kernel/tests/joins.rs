//! Records may be joined in any order, also where contexts were cut: then a writer has seen events of writes whose names it never learned.
//!
//! The histories of `siblings_model.rs` keep what real replicas and coordinators keep, and seldom come to this. Here nothing is kept but
//! the rules of a put: whoever has the write already does not mint it, and a context covers events, with or without names.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};
use witan_kernel::fault::{self, Fault};
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::siblings::{Actor, Shown, Siblings, Write};

/// Replicas, and writes.
const REPLICAS: usize = 4;
const WRITES: u8 = 4;
/// The longest history: enough for a write that is minted twice, and a writer that has seen one of its events.
const STEPS: usize = 12;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A replica mints a write, perhaps again, whose writer has seen what another replica has.
    Put { at: usize, write: u8, seen: Option<usize>, cut: bool },
    /// A replica merges what another one has.
    Merge { at: usize, from: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0..REPLICAS, 0..WRITES, prop::option::weighted(0.6, 0..REPLICAS), any::<bool>());
    prop_oneof![
        2 => put.prop_map(|(at, write, seen, cut)| Step::Put { at, write, seen, cut }),
        1 => (0..REPLICAS, 0..REPLICAS).prop_map(|(at, from)| Step::Merge { at, from }),
    ]
}

fn lived(steps: &[Step]) -> [Siblings; REPLICAS] {
    let mut replicas: [Siblings; REPLICAS] = std::array::from_fn(|_| Siblings::default());
    // A repetition is the same write: it claims what the first attempt has claimed.
    let mut claims: [Option<Shown>; WRITES as usize] = std::array::from_fn(|_| None);
    for step in steps {
        match *step {
            Step::Merge { at, from } => {
                let sent = replicas[from].clone();
                replicas[at].merge(&sent);
            }
            Step::Put { at, write, seen, cut } => {
                let mut shown = seen.map(|seen| replicas[seen].context_claims()).unwrap_or_default();
                if cut {
                    shown.ids.clear();
                }
                let id = WriteId([write + 1; 16]);
                let Shown { seen, ids, newest } = claims[usize::from(write)].get_or_insert(shown).clone();
                if replicas[at].knows(&id).is_some() {
                    continue;
                }
                let value = Some(Bytes::copy_from_slice(&[write]));
                let (started, again, asked) = (u64::from(write) + 1, true, false);
                let write = Write { write_id: id, started, again, asked, seen, ids, newest, value };
                replicas[at].put(&write, Actor { store: StoreId([at as u8 + 1; 16]), birth: 1 });
            }
        }
    }
    replicas
}

fn joined(a: &Siblings, b: &Siblings) -> Siblings {
    let mut out = a.clone();
    out.merge(b);
    out
}

/// Three records come to the same in any order, and once they have met nothing changes them any more: one round of repair is enough.
fn are_joined_in_any_order(steps: &[Step]) -> Result<(), String> {
    let replicas = lived(steps);
    for a in &replicas {
        for b in &replicas {
            for c in &replicas {
                let (left, right) = (joined(&joined(a, b), c), joined(a, &joined(b, c)));
                if left != right {
                    return Err(format!("(a + b) + c is {left:#?}, a + (b + c) is {right:#?}"));
                }
                if [a, b, c].iter().any(|one| joined(one, &left) != left) {
                    return Err(format!("one of them is not level after {left:#?}"));
                }
            }
        }
    }
    Ok(())
}

fn run(cases: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&prop::collection::vec(step(), 2..=STEPS), |steps| {
            are_joined_in_any_order(&steps).map_err(TestCaseError::fail)
        })
        .map_err(|error| error.to_string())
}

#[test]
fn records_are_joined_in_any_order_whatever_contexts_have_lost() {
    let percent = std::env::var("WITAN_MODEL_PERCENT").ok().and_then(|text| text.parse::<u32>().ok());
    run(30 * percent.unwrap_or(100)).unwrap();
}

/// As it was before a superseded event superseded the whole write, which only its name did.
#[test]
fn a_join_that_depends_on_the_order_is_found() {
    fault::set(Some(Fault::EventsGoAlone));
    let found = run(1000);
    fault::set(None);
    assert!(found.is_err(), "it was not found");
}
