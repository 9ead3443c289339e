//! The scenario of a seed: the cluster, its tenants, and the acts of the play.
//!
//! A play has a name and a number, as in `links:3`. What it does depends on these two only, so it stays the same when other scenarios are
//! added. Seeds count through all scenarios in turn, so that a few seeds play each of them.

mod moving;
mod shapes;
mod stores;
mod wide;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use witan_kernel::limit;
use witan_kernel::name::TenantId;
use witan_kernel::placement::Step;
use witan_kernel::tenant::{ConflictMode, Level, Ordering, ReadRepair, Tenant};
use witan_upkeep::HealingConfig;

use crate::nemesis::{Action, Machines, Storm, Weather, storm};
use crate::plugins::Resolver;

/// A tenant and its workload.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    pub(crate) tenant: Tenant,
    /// Number of keys in use.
    pub(crate) keys: usize,
    /// Values are sets whose union the resolver returns; otherwise each write has a value of its own.
    pub(crate) sets: bool,
    /// The tenant is created during the play.
    pub(crate) comes_later: bool,
    /// More siblings than a record may have: some writes are refused.
    pub(crate) crowded: bool,
    /// More changes than a record remembers, some of them minted twice: where a write is not asked about before it is repeated, a replaced
    /// value may come back, and reads are not judged by that.
    pub(crate) forgets_names: bool,
    /// What its resolver decides.
    pub(crate) resolver: Resolver,
    /// Whether it has a consistency policy, which may answer anything.
    pub(crate) policy: bool,
    /// Share of operations whose level is drawn, per mille.
    pub(crate) mixed: u64,
}

impl Cast {
    pub(crate) fn is_register(&self) -> bool {
        self.tenant.conflict_mode == ConflictMode::Register
    }

    /// True for a register whose operations at quorum or above are promised to be linearizable.
    pub(crate) fn is_linearizable(&self) -> bool {
        let tenant = &self.tenant;
        let levels = self.mixed == 0 && (!self.policy || tenant.minimum_level >= Level::Quorum);
        tenant.ordering == Ordering::Quorum && tenant.read_repair == ReadRepair::Blocking && levels
    }
}

/// A phase of the play.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Every client performs this many operations without faults: all must succeed.
    Calm { operations: usize },
    /// Every client performs this many operations during the storm.
    Storm { operations: usize, storm: Storm },
    /// All faults end: everything must work again, and all replicas must converge.
    Settle,
    /// The node that is the first choice for minting dots of the last tenant's first key comes back with an empty disk.
    Wipe,
    /// The same for the node that is the second choice.
    WipeNext,
    /// Both of these come back with empty disks, one just after the other.
    WipeBoth,
    /// All disks are full, and nothing else is wrong: every client's write must be refused at once, and not at its deadline.
    NoRoom,
    /// A repair is asked for once, and may fail.
    TryRepair,
    /// The same, while no disk has room for what the repair sends.
    TryRepairOnFullDisks,
    /// Every client reads every key and writes it with the context that it was given.
    TidyUp,
    /// A tenant is changed while one coordinator is cut off from the metadata store.
    Fence,
    /// A consistency policy that is content with one answer is unbound, and a coordinator does not know of it.
    Rebind,
    /// The node that is the first choice loses power, and its disk the last of what it has acknowledged.
    Damage,
    /// A node comes back with another disk, or with an earlier copy of its own.
    Disks(Scene),
    /// All faults end, and repairs run until every node is believed.
    Repair,
    /// A node comes back with an empty disk, which an operator asks to fill, while clients work in a storm.
    Replace {
        /// Of each client.
        operations: usize,
        /// What else happens.
        storm: Storm,
        /// It gets its own disk back this many milliseconds later.
        back_after_ms: Option<u64>,
    },
    /// Nothing happens for `ms` milliseconds.
    Idle { ms: u64 },
    /// Clients retry changes whose outcome they do not know, and some that were acknowledged.
    Retry,
    /// Every client writes this many times to the last tenant's first key, without having read.
    Burst { writes: usize },
    /// A repair has read the list of tenants, and pauses. Meanwhile the last tenant is created, with more replicas than any other;
    /// three of its five replicas acknowledge a write, and one of these three comes back with an empty disk. Then the repair
    /// continues. After it, the two replicas that have the write cannot be reached.
    Grow,
    /// A node is cut off from all coordinators, or from one of them, while clients work, and comes back.
    Away {
        /// From all.
        from_all: bool,
    },
    /// A node misses changes while clients work, and may refuse at first what is sent to it afterwards.
    Miss { why: Why, relapses: bool },
    /// Clients work, in a storm, while placement changes are asked for, each this many milliseconds after the one before.
    Move { operations: usize, storm: Storm, changes: Vec<(u64, Change)>, unaware: Option<Unaware> },
    /// All faults end, and so must all placement changes: every record is where it belongs, and nowhere else.
    Moved,
    /// All faults end, and nobody reads or repairs: every node must be believed, and all replicas must become level by themselves.
    Level,
    /// All operations end, and this many hours pass, in which nothing happens.
    Pass { hours: u64 },
    /// All faults end, and a client deletes every key.
    DeleteAll,
    /// All faults end, and nobody reads: no row may be left of a key that was deleted long ago.
    Gone,
}

/// Which disk the node comes back with, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scene {
    /// It runs on an empty disk, and gets its own back.
    Unmounted,
    /// It gets its own disk back while a repair is filling the empty one.
    BackWhileFilling,
    /// It gets its own disk back after a repair has filled the other one, and then that one again.
    BackAfterRepair,
    /// It gets an earlier copy of its disk.
    SetBack {
        /// Coordinators restart at the same time, and remember nothing.
        coordinators_too: bool,
    },
    /// All nodes get earlier copies of their disks at once. Either an operator declares it, or the metadata were restored with them and
    /// nobody notices.
    AllRestored {
        /// The metadata were restored, too.
        metadata_too: bool,
    },
}

/// What an operator asks for. Nodes and tenants are given by index.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Add(usize),
    Remove(usize),
    /// A tenant is to have another replication factor.
    Factor(usize, u8),
    /// A node is to be in another zone; 0 is none.
    Zone(usize, u8),
    /// A node is to have another number of virtual nodes.
    Weight(usize, u32),
    /// A tenant is to have another partition hook, and rows of another generation.
    Swap(usize),
    /// The last change that was accepted is given up.
    TakeBack,
}

/// Why a node misses changes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Why {
    /// It cannot be reached by anybody.
    Away,
    /// One coordinator cannot reach it.
    FromOne,
    /// It refuses them.
    Full,
    /// It is slow, and acknowledges most of them too late.
    Slow,
    /// It cannot be reached, and the coordinator that knows what it has missed crashes.
    Dies,
}

impl Why {
    pub(crate) const ALL: [Self; 5] = [Self::Away, Self::FromOne, Self::Full, Self::Slow, Self::Dies];
}

/// What happens once a tenant has come to a step, this many milliseconds later.
#[derive(Debug, Clone)]
pub(crate) struct Unaware {
    pub(crate) step: Step,
    pub(crate) after_ms: u64,
    pub(crate) actions: Vec<Action>,
}

/// The behaviour of clients. Shares are per mille.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Share of changes with an idempotency key.
    pub(crate) named: u64,
    /// Share of requests, and also of responses, that are lost in a storm.
    pub(crate) lost: u64,
    /// Share of requests that are cancelled soon after they were sent, in a storm.
    pub(crate) cancelled: u64,
    /// Share of operations at level one.
    pub(crate) weak: u64,
    /// Share of deletes among changes.
    pub(crate) deletes: u64,
    /// Share of changes without a context, of those that could have one.
    pub(crate) blind: u64,
    /// Share of writes with long values, some of which take the lane for large requests.
    pub(crate) large: u64,
    /// Share of reads among operations.
    pub(crate) reads: u64,
    /// Limit on attempts per change.
    pub(crate) attempts: u64,
    /// Longest deadline of a request in a storm, milliseconds.
    pub(crate) patience_ms: u64,
    /// Longest pause between two operations, milliseconds.
    pub(crate) pause_ms: u64,
}

/// Everything that a simulation is made from.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) name: &'static str,
    pub(crate) nodes: usize,
    pub(crate) coordinators: usize,
    pub(crate) clients: usize,
    pub(crate) latency_ms: u64,
    /// Whether a node that comes back with a new store is believed only once a repair has filled it.
    pub(crate) strict: bool,
    /// Whether a write is asked about before it is repeated: `consistency.ask_before_repeating`.
    pub(crate) asks: bool,
    /// Index of the replica that loses its disk first.
    pub(crate) first_wiped: usize,
    /// Whether the idempotency store loses acknowledged steps: repetitions need not be recognized.
    pub(crate) forgetful: bool,
    /// Whether coordinators are stopped and continue, and may then carry out what their clients have given up.
    pub(crate) stops: bool,
    /// Whether all clocks show the same time throughout.
    pub(crate) clocks_agree: bool,
    /// Whether more was lost than the cluster can restore: the play ends without a last settlement.
    pub(crate) torn: bool,
    /// Nodes that are not on record at first.
    pub(crate) spare: usize,
    /// Whether coordinators follow changes of tenants and of the ring, and lead placement changes.
    pub(crate) moves: bool,
    /// Longest time until a coordinator that follows changes has read what it has heard of, milliseconds.
    pub(crate) late_ms: u64,
    /// Bytes per second that leaders read for the first copies of moves; 0: unlimited.
    pub(crate) copy_rate: u64,
    /// What coordinators heal by themselves; `None`: nothing.
    pub(crate) heals: Option<HealingConfig>,
    pub(crate) casts: Vec<Cast>,
    pub(crate) manner: Manner,
    pub(crate) acts: Vec<Act>,
}

/// A scenario: its name, and what it makes of one that has only the usual values.
type Shape = (&'static str, fn(&mut StdRng, Scenario) -> Scenario);

/// The scenarios.
pub(crate) const SHAPES: [Shape; 40] = [
    ("links", shapes::links),
    ("crashes", shapes::crashes),
    ("clocks", shapes::clocks),
    ("outages", shapes::outages),
    ("late", shapes::late),
    ("wiped", shapes::wiped),
    ("piled", shapes::piled),
    ("mixed", shapes::mixed),
    ("unsynced", shapes::unsynced),
    ("races", shapes::races),
    ("replaced", shapes::replaced),
    ("grown", shapes::grown),
    ("lone", wide::lone),
    ("levels", wide::levels),
    ("wallclock", wide::wallclock),
    ("policies", wide::policies),
    ("verdicts", wide::verdicts),
    ("crowded", wide::crowded),
    ("large", wide::large),
    ("hot", wide::hot),
    ("stopped", wide::stopped),
    ("disks", wide::disks),
    ("views", wide::views),
    ("forgetful", wide::forgetful),
    ("drifting", wide::drifting),
    ("twice", wide::twice),
    ("busy", wide::busy),
    ("flicker", wide::flicker),
    ("swapped", stores::swapped),
    ("copied", stores::copied),
    ("restored", stores::restored),
    ("damaged", stores::damaged),
    ("fenced", stores::fenced),
    ("healing", stores::healing),
    ("buried", stores::buried),
    ("missed", stores::missed),
    ("refilled", stores::refilled),
    ("moves", moving::moves),
    ("split", moving::split),
    ("swaps", moving::swaps),
];

/// A play: the index of its scenario in [`SHAPES`], and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Play {
    shape: usize,
    number: u64,
}

impl Play {
    /// The play of a seed: seeds count through the scenarios in turn.
    pub(crate) fn of(seed: u64) -> Self {
        let shapes = SHAPES.len() as u64;
        Self { shape: (seed % shapes) as usize, number: seed / shapes }
    }

    /// Reads a seed, or a name and a number such as `links:3`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None => text.parse().ok().map(Self::of),
            Some((name, number)) => {
                let shape = SHAPES.iter().position(|(shape, _)| *shape == name)?;
                Some(Self { shape, number: number.parse().ok()? })
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        SHAPES[self.shape].0
    }

    /// What its random numbers come from: depends on the name and the number, and not on other scenarios.
    fn randomness(self) -> u64 {
        let hash = self
            .name()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        hash.wrapping_add(self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl std::fmt::Display for Play {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name(), self.number)
    }
}

impl Scenario {
    /// The scenario of a play.
    pub(crate) fn of(play: Play) -> Self {
        let seed = play.randomness();
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let blank = Self {
            seed,
            name: play.name(),
            nodes: *[3, 3, 4, 5].choose(&mut rng).expect("not empty"),
            coordinators: 2,
            clients: rng.random_range(3..=4),
            latency_ms: rng.random_range(4..=25),
            strict: false,
            asks: play.number % 2 == 1,
            first_wiped: 0,
            forgetful: false,
            stops: false,
            clocks_agree: false,
            torn: false,
            spare: 0,
            moves: false,
            late_ms: 0,
            copy_rate: 0,
            heals: None,
            casts: vec![register(&mut rng), siblings(&mut rng)],
            manner: Manner {
                named: 600,
                lost: 30,
                cancelled: 20,
                weak: 0,
                deletes: 150,
                blind: 350,
                large: 0,
                reads: 450,
                attempts: 3,
                patience_ms: 2500,
                pause_ms: 40,
            },
            acts: Vec::new(),
        };
        (SHAPES[play.shape].1)(&mut rng, blank)
    }

    fn machines(&self) -> Machines {
        let last = self.casts.len() - 1;
        let damaged = (last, self.casts[last].keys);
        let (nodes, coordinators) = (self.nodes, self.coordinators);
        Machines { nodes, coordinators, jump: 4_000_000, longest: 1200, damaged }
    }

    fn storm(&self, rng: &mut StdRng, weather: Weather, gap: u64) -> Act {
        let ms = rng.random_range(3000..=5000);
        let operations = rng.random_range(20..=30);
        Act::Storm { operations, storm: storm(rng, self.machines(), weather, ms, gap) }
    }
}

pub(crate) fn cast(tenant: Tenant, keys: usize) -> Cast {
    Cast {
        tenant,
        keys,
        sets: false,
        comes_later: false,
        crowded: false,
        forgets_names: false,
        resolver: Resolver::None,
        policy: false,
        mixed: 0,
    }
}

fn register(rng: &mut StdRng) -> Cast {
    let mut tenant = tenant("register");
    tenant.read_repair = ReadRepair::Blocking;
    cast(tenant, rng.random_range(1..=2))
}

fn siblings(rng: &mut StdRng) -> Cast {
    let mut tenant = tenant("siblings");
    tenant.conflict_mode = ConflictMode::Siblings;
    tenant.read_repair = if rng.random() { ReadRepair::Blocking } else { ReadRepair::Async };
    let keys = rng.random_range(1..=2);
    cast(tenant, keys).with_sets(rng.random())
}

impl Cast {
    /// With values that are sets, of which the resolver returns the union.
    fn with_sets(self, sets: bool) -> Self {
        Self { sets, resolver: if sets { Resolver::Union } else { Resolver::None }, ..self }
    }
}

fn tenant(id: &str) -> Tenant {
    Tenant::with_defaults(TenantId::new(id).expect("a tenant id"), 3, 0)
}

fn play(scenario: Scenario, acts: Vec<Act>) -> Scenario {
    Scenario { acts, ..scenario }
}

const OVERTURE: Act = Act::Calm { operations: 2 };
/// Time after which replicas have forgotten the idempotency keys of writes, whatever the clocks show. Milliseconds.
const FORGOTTEN_MS: u64 = (limit::RECENT_MICROS + limit::CLOCK_SKEW_MICROS) / 1000 + 3_000;
const FINALE: Act = Act::Calm { operations: 2 };
