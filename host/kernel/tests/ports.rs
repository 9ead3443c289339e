//! What nodes and stores say of themselves where nobody asks them otherwise, and the limits of what is kept about bindings and keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use witan_kernel::capability::{CANDIDATES, CLASSES, GENERATIONS, MAINTENANCE, MOVES, OWNERS, SMALL_RECORDS, ZONES};
use witan_kernel::class::Class;
use witan_kernel::fence::{Fences, of_binding};
use witan_kernel::hook::{Hook, Operation, PolicyQuestion, ReplicaState};
use witan_kernel::name::{NodeId, StoreId, TenantId, Zone};
use witan_kernel::port::rules;
use witan_kernel::port::{
    BindingChange, CandidateReport, HISTORY_ENTRY_BYTES, NodeOnRecord, NodeStatus, Placement, REPORT_BYTES, RecordText,
    Replicas, Reply, SIGNING_KEY_ID_BYTES, SigningKey, Slot, StorageNode, StoreError,
};
use witan_kernel::record::Fingerprint;
use witan_kernel::replica::{Answer, Place, ReplicaError, Request};
use witan_kernel::scan::{Clear, Cleared, Dropped, Page, Ranges, Scan, Standing};
use witan_kernel::space::Space;
use witan_kernel::tenant::{Level, Tenant};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

fn is_refused<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Refused(_)))
}

const STATE: ReplicaState = ReplicaState { reachable: true, latency_p50_us: 1, latency_p99_us: 2, in_flight: 3 };

/// A node about which only what must be said is said.
struct Plain;

impl Replicas for Plain {
    fn send(&self, _: &NodeId, _: Request, _: u64, reply: Reply) {
        reply.answer(Ok(Answer::Record(None)));
    }

    fn state(&self, _: &NodeId) -> ReplicaState {
        STATE
    }

    fn incarnation(&self, _: &NodeId) -> u64 {
        1
    }

    fn recent_state(&self, _: &NodeId) -> ReplicaState {
        STATE
    }

    fn has_names(&self, _: &NodeId) -> bool {
        true
    }
}

/// A node of before, of which everything else is known.
struct Old;

impl Replicas for Old {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        Plain.send(node, request, deadline, reply);
    }

    fn state(&self, _: &NodeId) -> ReplicaState {
        STATE
    }

    fn incarnation(&self, _: &NodeId) -> u64 {
        1
    }

    fn recent_state(&self, _: &NodeId) -> ReplicaState {
        STATE
    }

    fn is_asked_last(&self, _: &NodeId) -> bool {
        true
    }

    fn zone(&self, _: &NodeId) -> Option<Zone> {
        Zone::new("z").ok()
    }

    fn has_names(&self, _: &NodeId) -> bool {
        false
    }

    fn outages(&self, _: &NodeId) -> u64 {
        5
    }

    fn unsynced_boot(&self, _: &NodeId) -> u64 {
        6
    }

    fn has_fences(&self, _: &NodeId) -> bool {
        false
    }

    fn has_moves(&self, _: &NodeId) -> bool {
        false
    }

    fn usual_p99_us(&self, _: &NodeId) -> Option<u32> {
        Some(7)
    }

    fn disk_percent(&self, _: &NodeId) -> Option<f32> {
        Some(8.0)
    }

    fn has_collect(&self, _: &NodeId) -> bool {
        false
    }

    fn has_ages(&self, _: &NodeId) -> bool {
        false
    }

    fn has_generations(&self, _: &NodeId) -> bool {
        false
    }
}

impl Ranges for Old {
    fn standing(&self, _: &NodeId) -> Option<Standing> {
        None
    }

    async fn scan(&self, _: &NodeId, _: Scan) -> Result<Page, ReplicaError> {
        Err(ReplicaError::Late)
    }

    fn has_digests(&self, _: &NodeId) -> bool {
        true
    }

    async fn stores_changed(&self) {}

    async fn drop_tenant(&self, _: &NodeId, _: TenantId, _: Option<Place>) -> Result<Dropped, ReplicaError> {
        Err(ReplicaError::Late)
    }

    async fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Result<StoreId, ReplicaError> {
        Err(ReplicaError::Late)
    }

    async fn clear(&self, _: &NodeId, _: Clear) -> Result<Cleared, ReplicaError> {
        Err(ReplicaError::Late)
    }
}

/// What is known of a node besides its state, and what it can do.
#[derive(Debug, PartialEq)]
struct Said {
    asked_last: bool,
    zone: Option<Zone>,
    outages: u64,
    unsynced_boot: u64,
    usual_p99_us: Option<u32>,
    disk_percent: Option<f32>,
    /// Fences, moves, collecting, ages, generations.
    can: [bool; 5],
}

fn said(of: &impl Replicas) -> Said {
    let n = node("n");
    Said {
        asked_last: of.is_asked_last(&n),
        zone: of.zone(&n),
        outages: of.outages(&n),
        unsynced_boot: of.unsynced_boot(&n),
        usual_p99_us: of.usual_p99_us(&n),
        disk_percent: of.disk_percent(&n),
        can: [of.has_fences(&n), of.has_moves(&n), of.has_collect(&n), of.has_ages(&n), of.has_generations(&n)],
    }
}

#[test]
fn a_node_behind_a_pointer_says_what_it_says_itself() {
    let plain = Said {
        asked_last: false,
        zone: None,
        outages: 0,
        unsynced_boot: 0,
        usual_p99_us: None,
        disk_percent: None,
        can: [true; 5],
    };
    assert_eq!((said(&Plain), said(&Arc::new(Plain))), (plain, said(&Plain)), "it is taken for one of this version");
    let old = Said {
        asked_last: true,
        zone: Zone::new("z").ok(),
        outages: 5,
        unsynced_boot: 6,
        usual_p99_us: Some(7),
        disk_percent: Some(8.0),
        can: [false; 5],
    };
    assert_eq!((said(&Arc::new(Old)), said(&Old)), (said(&Old), old));
    assert!(Ranges::has_digests(&Arc::new(Old), &node("n")));
}

#[test]
fn the_nodes_that_are_drained_are_known() {
    let on_record = |name: &str, drained| {
        let (id, host, zone) = (node(name), "h".to_owned(), Zone::default());
        let node = StorageNode { id, host, port: 1, virtual_nodes: 8, status: NodeStatus::Active, zone };
        NodeOnRecord { node, store_id: None, drained, created_at_ms: 0, updated_at_ms: 0 }
    };
    let nodes = vec![on_record("a", true), on_record("b", false), on_record("c", true)];
    let placement = Placement { epoch: 1, nodes, rings: vec![] };
    assert_eq!(placement.drained(), BTreeSet::from([node("a"), node("c")]));
}

#[test]
fn every_capability_that_can_be_required_has_its_schema() {
    let all = [SMALL_RECORDS, MOVES, ZONES, MAINTENANCE, GENERATIONS, CANDIDATES, OWNERS, CLASSES];
    assert_eq!(all.map(rules::schema_of), [6, 9, 10, 11, 12, 13, 14, 15].map(Ok));
    assert!(is_refused(rules::schema_of("levitation")));
}

#[test]
fn a_class_that_every_tenant_has_is_not_granted() {
    assert!(is_refused(rules::granted_class(Class::Standard)));
    assert!(rules::granted_class(Class::Interpreted).is_ok());
}

#[test]
fn what_is_kept_about_bindings_and_keys_is_bounded() {
    let slot = || Slot { tenant: Some(tenant("t")), hook: Hook::RoutingHook };
    let report = |bytes: usize| {
        let (coordinator, text) = (node("c"), "r".repeat(bytes));
        rules::report(&CandidateReport { slot: slot(), number: 1, coordinator, at_ms: 1, text })
    };
    assert!(report(1).is_ok() && report(REPORT_BYTES).is_ok());
    assert!(is_refused(report(0)) && is_refused(report(REPORT_BYTES + 1)));
    let change = |record: Option<&str>, entry: Option<usize>| {
        let (record, entry) = (record.map(|text| RecordText(text.to_owned())), entry.map(|bytes| "e".repeat(bytes)));
        let (expected, puts_in_force, fenced) = (1, None, false);
        rules::binding_change(&BindingChange { slot: slot(), expected, record, puts_in_force, fenced, entry })
    };
    assert!(change(None, None).is_ok() && change(Some("r"), Some(1)).is_ok());
    assert!(change(Some("r"), Some(HISTORY_ENTRY_BYTES)).is_ok());
    assert!(is_refused(change(Some(""), None)) && is_refused(change(None, Some(0))));
    assert!(is_refused(change(None, Some(HISTORY_ENTRY_BYTES + 1))));
    let key =
        |id: &str| rules::signing_key(&SigningKey { owner: None, id: id.to_owned(), public: [1; 32], added_at_ms: 1 });
    for id in ["a", "Ci-2026_11.b", &"k".repeat(SIGNING_KEY_ID_BYTES)] {
        assert!(key(id).is_ok(), "{id}");
    }
    for id in ["", "a b", "a/b", "é", &"k".repeat(SIGNING_KEY_ID_BYTES + 1)] {
        assert!(is_refused(key(id)), "{id}");
    }
}

#[test]
fn a_change_of_what_decides_is_fenced_at_the_minimum_level() {
    let quorum = Tenant { minimum_level: Level::Quorum, ..Tenant::with_defaults(tenant("t"), 3, 0) };
    for hook in [Hook::ConsistencyPolicy, Hook::ConflictResolver] {
        assert_eq!(of_binding(hook, Some(&quorum)), Some(Level::Quorum));
        assert_eq!(of_binding(hook, None), Some(Level::One), "of any tenant");
    }
    assert_eq!(of_binding(Hook::RoutingHook, Some(&quorum)), None);
}

#[test]
fn every_generation_of_a_tenant_has_its_fence() {
    let mut fences = Fences::default();
    let space = |id, generation| Space::new(&tenant(id), generation);
    assert_eq!(fences.least_of(&space("t", 1)), 0);
    fences.raise(None, 5);
    assert_eq!(fences.least_of(&space("t", 1)), 5);
    fences.raise(Some(&tenant("t")), 9);
    assert_eq!([space("t", 0), space("t", 3), space("u", 3)].map(|of| fences.least_of(&of)), [9, 9, 5]);
    assert_eq!(space("t", 3).to_string(), "t:3");
}

#[test]
fn a_fingerprint_has_sixteen_bytes() {
    assert_eq!(Fingerprint::from_slice(&[7; 16]), Some(Fingerprint([7; 16])));
    assert_eq!([0, 15, 17].map(|bytes| Fingerprint::from_slice(&vec![7; bytes])), [None; 3]);
}

#[test]
fn a_question_that_is_kept_is_the_same_question() {
    let (zone, zones) = (Zone::new("z").unwrap(), [None, Zone::new("y").ok()]);
    let question = PolicyQuestion {
        operation: Operation::Write,
        level: Level::Quorum,
        minimum: Level::One,
        replication_factor: 2,
        deadline_ms: 3,
        value_bytes: 4,
        replicas: &[STATE, STATE],
        zones: &zones,
        zone: Some(&zone),
    };
    assert_eq!(question.kept().question(), question);
}
