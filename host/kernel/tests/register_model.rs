//! Random histories of register writes in two rounds, with clocks that disagree, retries, late messages and lost disks: an acknowledged
//! write is ordered after every write acknowledged before it, and a retry finds the stamp it had.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestRng, TestRunner};
use witan_kernel::clock::HybridClock;
use witan_kernel::fault::{self, Fault};
use witan_kernel::name::WriteId;
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp, apply_merge};

const REPLICAS: usize = 3;
const QUORUM: u32 = 2;
const START: u64 = 1_700_000_000_000_000;

/// One step of a history. Masks are bit sets of replicas.
#[derive(Debug, Clone)]
enum Step {
    /// A write or delete through one of two coordinators: which replicas report a stamp, which store it.
    Write { coordinator: usize, delete: bool, asked: u8, to: u8 },
    /// A write is tried again; only the replicas remember the first attempt.
    Retry { write: Index, coordinator: usize, asked: u8, to: u8 },
    /// A message of any age arrives (again).
    Deliver { message: Index, to: usize },
    /// A disk is lost; the empty store is used again once it has merged all others.
    Wipe { at: usize },
    /// A replica forgets what is old.
    Expire { at: usize },
    /// Time passes, milliseconds.
    Pass { millis: u64 },
}

fn histories(steps: usize, pause: u64) -> impl Strategy<Value = Vec<Step>> {
    let quorum = || prop_oneof![Just(0b011u8), Just(0b101), Just(0b110), Just(0b111)];
    let mask = || prop_oneof![2 => quorum(), 1 => 0..8u8];
    let write = (0..2usize, any::<bool>(), quorum(), mask()).prop_map(|(coordinator, delete, asked, to)| Step::Write {
        coordinator,
        delete,
        asked,
        to,
    });
    let retry = (any::<Index>(), 0..2usize, quorum(), mask()).prop_map(|(write, coordinator, asked, to)| Step::Retry {
        write,
        coordinator,
        asked,
        to,
    });
    let deliver = (any::<Index>(), 0..REPLICAS).prop_map(|(message, to)| Step::Deliver { message, to });
    let step = prop_oneof![
        8 => write,
        4 => retry,
        3 => deliver,
        1 => (0..REPLICAS).prop_map(|at| Step::Wipe { at }),
        1 => (0..REPLICAS).prop_map(|at| Step::Expire { at }),
        2 => (0..=pause).prop_map(|millis| Step::Pass { millis }),
    ];
    proptest::collection::vec(step, steps / 2..=steps)
}

#[derive(Debug)]
struct Write {
    id: WriteId,
    value: Option<Bytes>,
    /// Attempts so far.
    attempts: u32,
    /// The stamp under which a quorum has acknowledged the first attempt. If only a minority had stored it, another quorum might not know
    /// its stamp: then only the reservation keeps it.
    kept: Option<Stamp>,
}

struct World {
    replicas: Vec<Option<Register>>,
    clocks: [HybridClock; 2],
    writes: Vec<Write>,
    messages: Vec<Register>,
    /// The greatest stamp acknowledged so far.
    acknowledged: Stamp,
    now: u64,
}

fn in_mask(mask: u8) -> impl Iterator<Item = usize> {
    (0..REPLICAS).filter(move |replica| mask & (1 << replica) != 0)
}

impl World {
    fn new() -> Self {
        Self {
            replicas: vec![None; REPLICAS],
            clocks: Default::default(),
            writes: Vec::new(),
            messages: Vec::new(),
            acknowledged: Stamp(0),
            now: START,
        }
    }

    fn step(&mut self, step: &Step, within_window: bool) -> Result<(), String> {
        self.now += 1;
        match step {
            Step::Write { coordinator, delete, asked, to } => {
                let number = self.writes.len() as u16;
                let mut id = [0; 16];
                id[..2].copy_from_slice(&number.wrapping_mul(40_503).to_be_bytes());
                let value = (!delete).then(|| Bytes::copy_from_slice(&id));
                self.writes.push(Write { id: WriteId(id), value, attempts: 0, kept: None });
                return self.carry_out(self.writes.len() - 1, *coordinator, *asked, *to, within_window);
            }
            Step::Retry { write, coordinator, asked, to } if !self.writes.is_empty() => {
                return self.carry_out(write.index(self.writes.len()), *coordinator, *asked, *to, within_window);
            }
            Step::Deliver { message, to } if !self.messages.is_empty() => {
                let message = message.get(&self.messages).clone();
                self.merge(*to, &message);
            }
            Step::Retry { .. } | Step::Deliver { .. } => {}
            Step::Wipe { at } => {
                self.replicas[*at] = None;
                for other in (0..REPLICAS).filter(|other| other != at) {
                    self.repair(other, *at);
                }
            }
            Step::Expire { at } => {
                if let Some(record) = &mut self.replicas[*at] {
                    record.recent.expire(self.now);
                }
            }
            Step::Pass { millis } => self.now += millis * 1000,
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        write: usize,
        coordinator: usize,
        asked: u8,
        to: u8,
        within_window: bool,
    ) -> Result<(), String> {
        let Write { id, value, kept, attempts } = &self.writes[write];
        let first = *attempts == 0;
        let answers: Vec<&Register> = in_mask(asked).filter_map(|replica| self.replicas[replica].as_ref()).collect();
        let known = answers.iter().filter_map(|record| record.knows(id)).max();
        let greatest = answers.iter().map(|record| record.stamp).max().unwrap_or_default();
        // One coordinator's clock is 40 s behind the other's.
        let wall = self.now - 40_000_000 * coordinator as u64;
        let fresh = self.clocks[coordinator].tick(wall).max(greatest.0 + 1);
        let stamp = known.unwrap_or(Stamp(fresh));
        if kept.is_some_and(|had| within_window && had != stamp) {
            return Err(format!("{id:?} was acknowledged under {kept:?} and is stamped {stamp:?} now"));
        }
        if known.is_none() && stamp <= self.acknowledged {
            return Err(format!("{id:?} is stamped {stamp:?}, and {:?} was acknowledged before", self.acknowledged));
        }
        let message = Register::written(stamp, *id, value.clone());
        self.messages.push(message.clone());
        for replica in in_mask(to) {
            self.merge(replica, &message);
        }
        self.writes[write].attempts += 1;
        if to.count_ones() >= QUORUM {
            if first {
                self.writes[write].kept = Some(stamp);
            }
            self.acknowledged = self.acknowledged.max(stamp);
        }
        Ok(())
    }

    fn merge(&mut self, to: usize, incoming: &Register) {
        // As decoded from the wire.
        let Ok(Record::Register(incoming)) = Record::Register(incoming.clone()).encode().decode() else {
            panic!("own bytes")
        };
        let stored = self.replicas[to].take();
        self.replicas[to] = Some(apply_merge(stored, &incoming).0);
    }

    fn repair(&mut self, from: usize, to: usize) {
        if let Some(record) = self.replicas[from].clone() {
            self.merge(to, &record);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        for _ in 0..2 {
            for (from, to) in (0..REPLICAS).flat_map(|from| (0..REPLICAS).map(move |to| (from, to))) {
                self.repair(from, to);
            }
        }
        let distinct: BTreeSet<_> = self
            .replicas
            .iter()
            .map(|record| record.as_ref().map(|r| (r.stamp, r.write_id, r.value.clone())))
            .collect();
        if distinct.len() != 1 {
            return Err(format!("replicas differ: {distinct:?}"));
        }
        match &self.replicas[0] {
            Some(record) if record.stamp < self.acknowledged => {
                Err(format!("{:?} was acknowledged, and {:?} is stored", self.acknowledged, record.stamp))
            }
            None if self.acknowledged > Stamp(0) => Err("an acknowledged write is gone".to_owned()),
            _ => Ok(()),
        }
    }
}

fn run(cases: u32, steps: usize, pause: u64, within_window: bool) -> Result<(), String> {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&histories(steps, pause), |steps| {
            let mut world = World::new();
            let lived = steps.iter().try_for_each(|step| world.step(step, within_window)).and_then(|()| world.check());
            lived.map_err(TestCaseError::fail)
        })
        .map_err(|error| error.to_string())
}

#[test]
fn within_the_window_a_retry_finds_its_stamp() {
    run(4000, 60, 100, true).unwrap();
}

#[test]
fn long_histories_lose_nothing_and_converge() {
    run(300, 500, 20_000, false).unwrap();
}

#[test]
fn broken_rules_are_found() {
    for broken in [Fault::OverwriteInsteadOfMerge, Fault::WriteIdForgotten] {
        fault::set(Some(broken));
        let found = run(500, 60, 100, true);
        fault::set(None);
        assert!(found.is_err(), "{broken:?} was not found");
    }
}
