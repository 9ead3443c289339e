//! The operations: which key, read or write, which value. Seeded, so that two runs are the same.

use bytes::Bytes;
use clap::ValueEnum;
use witan_wire::v1::session_request::Operation as Wire;
use witan_wire::v1::{ReadKeyValueRequest, WriteKeyValueRequest};

use super::load::Load;

/// Distribution of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All keys equally often
    Uniform,
    /// A few keys very often, most keys rarely (Zipf, exponent 0.99, spread over the key space)
    Zipf,
    /// One key after the other
    #[value(skip)]
    Sequence,
}

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A write.
    Write,
    /// A read.
    Read,
}

/// An operation of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    /// Index of the key: 0..keys.
    pub(super) key: u64,
}

/// One thread's source of operations.
pub(super) struct Work {
    dice: Dice,
    keys: u64,
    next_in_sequence: u64,
    stride: u64,
    zipf: Option<Zipf>,
    read_share: f64,
    /// Random bytes. Values are slices of this: making them costs nothing, and consecutive ones differ.
    noise: Bytes,
    value_size: usize,
    tenant: String,
    consistency: String,
    /// By key, the context of the last response, when the load writes with contexts.
    contexts: Option<Vec<Bytes>>,
    /// Makes idempotency keys, when the load writes with them.
    names: Option<Names>,
}

/// Idempotency keys that no other run has used: a cluster remembers those of earlier runs.
struct Names {
    run: u64,
    next: u64,
}

impl Names {
    fn next(&mut self) -> String {
        self.next += 1;
        format!("{:016x}-{}", self.run, self.next)
    }
}

/// Number of different values: offsets into the random bytes.
const VALUES: usize = 16 << 10;

impl Work {
    /// The part of `load` that thread number `thread` of `threads` does.
    pub(super) fn new(load: &Load, thread: u64, threads: u64) -> Self {
        let mut dice = Dice(load.seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let noise = std::iter::repeat_with(|| dice.next().to_le_bytes()).take((VALUES + load.value_size).div_ceil(8));
        Self {
            noise: noise.flatten().collect(),
            keys: load.keys,
            next_in_sequence: thread,
            stride: match load.distribution {
                Distribution::Sequence => threads,
                Distribution::Uniform | Distribution::Zipf => 0,
            },
            zipf: (load.distribution == Distribution::Zipf).then(|| Zipf::new(load.keys)),
            read_share: load.read_share,
            value_size: load.value_size,
            tenant: load.tenant.clone(),
            consistency: load.consistency.clone(),
            contexts: load.contexts.then(|| vec![Bytes::new(); usize::try_from(load.keys).unwrap_or(0)]),
            names: load.idempotency_keys.then(|| Names { run: rand::random(), next: 0 }),
            dice,
        }
    }

    /// The next operation.
    pub(super) fn choose(&mut self) -> Operation {
        let kind = if self.read_share > 0.0 && self.dice.unit() < self.read_share { Kind::Read } else { Kind::Write };
        Operation { kind, key: self.key() }
    }

    fn key(&mut self) -> u64 {
        if self.stride > 0 {
            let key = self.next_in_sequence % self.keys;
            self.next_in_sequence += self.stride;
            return key;
        }
        match &self.zipf {
            // Without this the popular keys would be neighbours.
            Some(zipf) => mix(zipf.rank(self.dice.unit())) % self.keys,
            None => self.dice.next() % self.keys,
        }
    }

    /// The request of a write.
    pub(super) fn write(&mut self, key: u64) -> WriteKeyValueRequest {
        let at = usize::try_from(self.dice.next() % VALUES as u64).unwrap_or(0);
        WriteKeyValueRequest {
            tenant_id: self.tenant.clone(),
            key: name(key),
            value: self.noise.slice(at..at + self.value_size),
            consistency: self.consistency.clone(),
            idempotency_key: self.names.as_mut().map(Names::next).unwrap_or_default(),
            context: self.context(key).cloned().unwrap_or_default(),
        }
    }

    /// The request of a read.
    pub(super) fn read(&self, key: u64) -> ReadKeyValueRequest {
        ReadKeyValueRequest { tenant_id: self.tenant.clone(), key: name(key), consistency: self.consistency.clone() }
    }

    /// The request of an operation within a session.
    pub(super) fn wire(&mut self, operation: Operation) -> Wire {
        match operation.kind {
            Kind::Write => Wire::Write(self.write(operation.key)),
            Kind::Read => Wire::Read(self.read(operation.key)),
        }
    }

    /// Keeps the context of a response, if the load writes with contexts.
    pub(super) fn learn(&mut self, key: u64, context: Bytes) {
        let known = self.contexts.as_mut().and_then(|contexts| contexts.get_mut(usize::try_from(key).ok()?));
        if let Some(known) = known {
            *known = context;
        }
    }

    fn context(&self, key: u64) -> Option<&Bytes> {
        self.contexts.as_ref()?.get(usize::try_from(key).ok()?)
    }
}

fn name(key: u64) -> String {
    format!("key-{key:08}")
}

/// SplitMix64: eight instructions per number, and good enough for choosing keys.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0.0 inclusive to 1.0 exclusive.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Ranks 0..n with probability proportional to 1 / (rank + 1)^0.99, by the approximation of Gray et al., "Quickly
/// generating billion-record synthetic databases" (1994): a few floating-point operations per rank.
#[derive(Debug, Clone)]
struct Zipf {
    n: f64,
    zeta: f64,
    zeta_two: f64,
    eta: f64,
}

/// The exponent that load generators for key-value stores commonly use.
const THETA: f64 = 0.99;

impl Zipf {
    fn new(keys: u64) -> Self {
        let zeta = (1..=keys).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta_two = 1.0 + 0.5_f64.powf(THETA);
        let n = keys as f64;
        let eta = (1.0 - (2.0 / n).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta);
        Self { n, zeta, zeta_two, eta }
    }

    /// The rank at `unit` (0.0..1.0) of the cumulative probability.
    fn rank(&self, unit: f64) -> u64 {
        let at = unit * self.zeta;
        if at < 1.0 {
            return 0;
        }
        if at < self.zeta_two {
            return 1;
        }
        let rank = self.n * (self.eta * unit - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        rank.clamp(0.0, self.n - 1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Load;
    use super::{Dice, Distribution, Kind, Work, Zipf};

    #[test]
    fn the_same_seed_is_the_same_work() {
        let load = Load { read_share: 0.5, ..Load::default() };
        let (mut a, mut b) = (Work::new(&load, 0, 1), Work::new(&load, 0, 1));
        let mut reads = 0;
        for _ in 0..1000 {
            let operation = a.choose();
            assert_eq!(operation, b.choose());
            reads += u32::from(operation.kind == Kind::Read);
            assert_eq!(a.write(operation.key), b.write(operation.key));
        }
        assert!((400..600).contains(&reads), "{reads} reads of 1000 operations");
    }

    #[test]
    fn a_sequence_over_threads_reaches_every_key_once() {
        let load = Load { keys: 10, distribution: Distribution::Sequence, ..Load::default() };
        let mut keys: Vec<u64> = (0..2)
            .flat_map(|thread| {
                let mut work = Work::new(&load, thread, 2);
                std::iter::repeat_with(move || work.choose().key).take(5)
            })
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn zipf_prefers_low_ranks_as_much_as_it_should() {
        let (zipf, mut dice) = (Zipf::new(1000), Dice(7));
        let mut counts = vec![0_u32; 1000];
        for _ in 0..100_000 {
            counts[usize::try_from(zipf.rank(dice.unit())).unwrap()] += 1;
        }
        // 1/zeta(1000, 0.99) = 13 %, then half of it, and so on.
        assert!((11_500..15_000).contains(&counts[0]), "{}", counts[0]);
        assert!((5_500..8_000).contains(&counts[1]), "{}", counts[1]);
        assert!(counts[..100].iter().sum::<u32>() > 60_000);
        assert!(counts[500..].iter().sum::<u32>() > 5_000);
    }

    #[test]
    fn every_write_has_a_name_of_its_own() {
        let load = Load { idempotency_keys: true, ..Load::default() };
        let (mut a, mut b) = (Work::new(&load, 0, 2), Work::new(&load, 1, 2));
        let names = [a.write(3), a.write(3), b.write(3), b.write(4)].map(|write| write.idempotency_key);
        assert!(names.iter().all(|name| !name.is_empty()));
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{names:?}");
        assert!(Work::new(&Load::default(), 0, 1).write(3).idempotency_key.is_empty());
    }

    #[test]
    fn contexts_are_repeated_per_key() {
        let mut work = Work::new(&Load { contexts: true, ..Load::default() }, 0, 1);
        assert!(work.write(3).context.is_empty());
        work.learn(3, b"seen"[..].into());
        assert_eq!(work.write(3).context.as_ref(), b"seen");
        assert!(work.write(4).context.is_empty());
    }
}
