//! The limits that every implementation of the stores shares: what is at a bound is accepted, what is beyond it is refused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::capability::SMALL_RECORDS;
use witan_kernel::hook::{Hook, ReplicaState};
use witan_kernel::idempotency::{RESPONSE_BYTES, Step};
use witan_kernel::limit;
use witan_kernel::name::{NodeId, StoreId, TenantId, WriteId, Zone};
use witan_kernel::port::rules::{self, Granting};
use witan_kernel::port::{
    AnyClock, Artifact, Changed, Claim, Clock, Collect, Component, CoordinatorOnRecord, Digest, Met, NodeStatus,
    PLUGIN_CLASS_REASON_BYTES, Replicas, Reply, Slot, Source, StorageNode, StoreError, StoreState, StoreTime, Tenants,
    Token,
};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::scan::{Clear, Cleared, Dropped, Page, Ranges, Scan, Standing, Trust};
use witan_kernel::siblings::{Actor, Dot, Siblings, VersionVector, Write};
use witan_kernel::tenant::Tenant;

fn is_refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Refused(_)))
}

/// Bounds that pages, interfaces and the stores of earlier versions promise.
#[test]
fn bounds_are_those_that_are_promised() {
    use witan_kernel::{idempotency, port, scan};
    assert_eq!((limit::TENANT_BYTES, limit::KEY_BYTES, limit::IDEMPOTENCY_KEY_BYTES), (256, 1024, 256));
    assert_eq!((limit::VALUE_BYTES, limit::RECORD_BYTES, limit::CONTEXT_BYTES), (10_485_760, 33_554_432, 4096));
    assert_eq!((limit::SIBLINGS, limit::COLLAPSE_SIBLINGS, limit::RECENT_ENTRIES), (100, 25, 64));
    assert_eq!((limit::COMPONENT_BYTES, limit::PLUGIN_CONFIGURATION_BYTES), (33_554_432, 65_536));
    assert_eq!((limit::REPLICATION_FACTOR, limit::MAX_VIRTUAL_NODES), (1..=5, 4096));
    assert_eq!(
        (limit::CLOCK_SKEW_MICROS, limit::RECENT_MICROS, limit::PUT_RETRY_MICROS),
        (60_000_000, 30_000_000, 15_000_000)
    );
    assert_eq!((idempotency::KEPT_MS, idempotency::DOUBTED_MS, RESPONSE_BYTES), (86_400_000, 86_400_000, 65_536));
    assert_eq!(idempotency::SHORTEST_KEPT_MS, 60_000);
    assert_eq!(
        (port::LEASE_MS, port::COORDINATOR_KEPT_MS, port::BINDING_RECORD_BYTES),
        (3_600_000, 86_400_000, 2_097_152)
    );
    assert_eq!((scan::PAGE_RECORDS, scan::PAGE_BYTES, port::PAGE), (1000, 1_048_576, 1000));
    assert_eq!([0, 1, 1000, 1001].map(rules::page), [1, 1, 1000, 1000]);
}

#[test]
fn tenants_and_nodes_are_checked() {
    let tenant = |factor| Tenant::with_defaults(TenantId::new("t").unwrap(), factor, 0);
    assert!(is_refused(rules::tenant(&tenant(0))) && is_refused(rules::tenant(&tenant(6))));
    assert_eq!([1, 3, 5].map(|factor| rules::tenant(&tenant(factor))), [Ok(()), Ok(()), Ok(())]);
    let node = |host: &str, virtual_nodes| StorageNode {
        id: NodeId::new("n").unwrap(),
        host: host.to_owned(),
        port: 1,
        virtual_nodes,
        status: NodeStatus::Active,
        zone: Zone::default(),
    };
    assert_eq!((rules::node(&node("h", 1)), rules::node(&node(&"h".repeat(255), 4096))), (Ok(()), Ok(())));
    let wrong = [node("", 1), node(&"h".repeat(256), 1), node("a\0", 1), node("h", 0), node("h", 4097)];
    assert!(wrong.iter().all(|node| is_refused(rules::node(node))));
}

#[test]
fn tokens_are_checked() {
    let token = |id: &str, label: &str| Token {
        id: id.to_owned(),
        hash: [0; 32],
        tenant: None,
        scopes: 0,
        label: label.to_owned(),
        created_at_ms: 0,
        expires_at_ms: None,
    };
    let (id, label) = ("a".repeat(64), "l".repeat(128));
    assert_eq!([rules::token(&token("a-1", "")), rules::token(&token(&id, &label))], [Ok(()), Ok(())]);
    for (id, label) in [("", ""), (&format!("{id}a"), ""), ("A", ""), ("a_b", ""), ("a", &format!("{label}l"))] {
        assert!(is_refused(rules::token(&token(id, label))), "{id} {label}");
    }
}

#[test]
fn components_and_bindings_are_checked() {
    let made = |name: &str, version: &str, source: Source, bytes: usize| {
        let bytes = Bytes::from(vec![0; bytes]);
        let artifact = Artifact {
            digest: Digest::of(&bytes),
            name: name.to_owned(),
            version: version.to_owned(),
            hook: Hook::RoutingHook,
            deterministic: true,
            size: bytes.len() as u64,
            owner: None,
            staged_at_ms: 0,
            source,
            signed_by: None,
            class: witan_kernel::class::Class::Standard,
            class_reason: String::new(),
        };
        Component { artifact, bytes }
    };
    let component = |name: &str, version: &str, source, bytes| rules::component(&made(name, version, source, bytes));
    let with_reason = |bytes: usize| {
        let mut component = made("n", "1", Source::Upload, 1);
        component.artifact.class_reason = "r".repeat(bytes);
        rules::component(&component)
    };
    assert_eq!([0, 1, PLUGIN_CLASS_REASON_BYTES].map(with_reason), [Ok(()), Ok(()), Ok(())]);
    assert!(is_refused(with_reason(PLUGIN_CLASS_REASON_BYTES + 1)));
    let (name, version, file) = ("n".repeat(128), "1".repeat(64), "f".repeat(255));
    let named = |file: &str| Source::File(file.to_owned());
    assert_eq!(component("n", "1", Source::Upload, 1), Ok(()));
    assert_eq!(component(&name, &version, named(&file), limit::COMPONENT_BYTES), Ok(()));
    for (name, version, source, bytes) in [
        ("", "1", Source::Upload, 1),
        (&*format!("{name}n"), "1", Source::Upload, 1),
        ("n", &*format!("{version}1"), Source::Upload, 1),
        ("n", "1", named(""), 1),
        ("n", "1", named(&format!("{file}f")), 1),
        ("n", "1", Source::Upload, 0),
        ("n", "1", Source::Upload, limit::COMPONENT_BYTES + 1),
    ] {
        assert!(is_refused(component(name, version, source, bytes)), "{name} {version} {bytes}");
    }
    let most = "r".repeat(2 << 20);
    assert_eq!([rules::binding_record("r"), rules::binding_record(&most)], [Ok(()), Ok(())]);
    assert!(is_refused(rules::binding_record("")) && is_refused(rules::binding_record(&(most + "r"))));
}

/// Whoever changes a binding that another coordinator has changed reads which version is stored, or that none is.
#[test]
fn a_lost_change_says_what_is_stored() {
    let slot = Slot { tenant: None, hook: Hook::RoutingHook };
    let says = |expected, stored| rules::other_record(&slot, expected, stored).to_string();
    assert!(says(0, 3).contains("(version 3 is stored, none was expected)"), "{}", says(0, 3));
    assert!(says(3, 0).contains("(none is stored, version 3 was expected)"), "{}", says(3, 0));
}

#[test]
fn a_coordinator_is_live_until_its_lease_has_no_time_left() {
    let left =
        |left_ms| CoordinatorOnRecord { claim: claim(1), fence: 7, granted_at_ms: 0, until_ms: 0, left_ms, drained: 0 };
    assert_eq!([0, 1, 100].map(|ms| left(ms).is_live()), [false, true, true]);
}

fn claim(instance: u8) -> Claim {
    let node_id = NodeId::new("c").unwrap();
    let capabilities = vec!["names".to_owned()];
    Claim { node_id, instance: [instance; 16], address: "host:1".to_owned(), version: "1".to_owned(), capabilities }
}

#[test]
fn what_a_live_coordinator_does_not_name_is_not_required() {
    let at = |capabilities: &[&str], left_ms| {
        let capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        let claim = Claim { capabilities, ..claim(1) };
        CoordinatorOnRecord { claim, fence: 7, granted_at_ms: 0, until_ms: 0, left_ms, drained: 0 }
    };
    let (able, unable, ended) = (at(&["names", SMALL_RECORDS], 1), at(&["names"], 1), at(&[], 0));
    assert!(able.names(SMALL_RECORDS) && able.names("names"));
    assert!(!unable.names(SMALL_RECORDS) && !ended.names("names"));
    assert_eq!(rules::all_name(SMALL_RECORDS, &[]), Ok(()));
    assert_eq!(rules::all_name(SMALL_RECORDS, &[able.clone(), ended.clone()]), Ok(()));
    let lacking = rules::all_name(SMALL_RECORDS, &[able, ended, unable]).unwrap_err();
    assert!(
        matches!(&lacking, StoreError::Conflict(why) if why == "coordinator c at host:1 (version 1) does not know small-records"),
        "{lacking:?}"
    );
    assert_eq!(rules::schema_of(SMALL_RECORDS), Ok(6), "the version before knows schema 2");
    assert!(is_refused(rules::schema_of("names")));
}

#[test]
fn a_node_id_is_held_by_one_process_until_its_lease_ends() {
    let holder =
        CoordinatorOnRecord { claim: claim(1), fence: 7, granted_at_ms: 0, until_ms: 100, left_ms: 0, drained: 0 };
    assert_eq!(rules::grant(&claim(1), None, 0), Ok(Granting::New));
    assert_eq!(rules::grant(&claim(1), Some(&holder), 99), Ok(Granting::Renewed(7)));
    assert_eq!(rules::grant(&claim(1), Some(&holder), 100), Ok(Granting::New), "others may have relied on its end");
    assert_eq!(rules::grant(&claim(2), Some(&holder), 100), Ok(Granting::New));
    let refused = rules::grant(&claim(2), Some(&holder), 60).unwrap_err();
    assert!(matches!(&refused, StoreError::Conflict(why) if why.contains("another 40 ms")), "{refused:?}");
    assert_eq!([rules::claim(&claim(1), 1), rules::claim(&claim(1), 3_600_000)], [Ok(()), Ok(())]);
    assert!(is_refused(rules::claim(&claim(1), 0)) && is_refused(rules::claim(&claim(1), 3_600_001)));
    assert!(is_refused(rules::claim(&Claim { address: "a".repeat(301), ..claim(1) }, 1)));
    assert!(is_refused(rules::claim(&Claim { version: String::new(), ..claim(1) }, 1)));
    let capable = |capabilities: &[&str]| {
        let capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        rules::claim(&Claim { capabilities, ..claim(1) }, 1)
    };
    assert_eq!((capable(&[]), capable(&["a-1", &"b".repeat(1019)])), (Ok(()), Ok(())), "1024 bytes, with the spaces");
    for wrong in ["", "two words", "Names", "a\n", &"b".repeat(1020)] {
        assert!(is_refused(capable(&["a-1", wrong])), "{wrong:?}");
    }
}

#[test]
fn responses_that_are_recorded_are_bounded() {
    let done = |bytes| Step::Done {
        owner: witan_kernel::idempotency::Owner([1; 16]),
        fence: 1,
        response: Bytes::from(vec![0; bytes]),
        kept_ms: witan_kernel::idempotency::KEPT_MS,
    };
    assert_eq!(rules::response_bytes(&done(RESPONSE_BYTES)), Ok(RESPONSE_BYTES));
    assert!(is_refused(rules::response_bytes(&done(RESPONSE_BYTES + 1))));
}

#[test]
fn followers_of_changes_learn_each_once_and_whether_they_have_missed_any() {
    let all = [Changed::Nodes, Changed::Tokens, Changed::Nodes, Changed::Secrets];
    let each = rules::each_once(all.into_iter());
    assert_eq!(each, [Changed::Tokens, Changed::Nodes, Changed::Secrets]);
    assert_eq!((rules::remembered_from(9_999), rules::remembered_from(10_001)), (0, 1));
    assert!(rules::complete(1, 10_001) && rules::complete(10_001, 10_001));
    assert!(!rules::complete(0, 10_001) && !rules::complete(10_002, 10_001));
}

#[test]
fn a_store_is_suspect_while_a_higher_commit_is_on_record_and_nothing_is_decided() {
    let met = |state| Met { trust: Trust::Unadmitted, on_record: Default::default(), state, commit: 5 };
    for state in [StoreState::Reported, StoreState::Filling] {
        assert_eq!([4, 5, 6].map(|commit| met(state).is_suspect(commit)), [true, false, false]);
    }
    for state in [StoreState::Retired, StoreState::SetBack] {
        assert!(!met(state).is_suspect(4), "that has been decided");
    }
    assert_eq!(
        [Trust::Whole, Trust::Filling, Trust::Unadmitted].map(Trust::as_str),
        ["whole", "filling", "unadmitted"]
    );
}

/// A clock that shows two different times.
#[derive(Clone)]
struct Fixed;

impl Clock for Fixed {
    fn wall_micros(&self) -> u64 {
        7_000_500
    }

    fn monotonic_micros(&self) -> u64 {
        42
    }
}

#[test]
fn a_wrapped_clock_shows_what_it_wraps() {
    let clock = AnyClock::new(Fixed);
    assert_eq!((clock.wall_micros(), clock.monotonic_micros(), clock.wall_ms()), (7_000_500, 42, 7_000));
}

/// Moves on as it is set, and its wall clock jumps besides.
#[derive(Clone)]
struct Jumping(Arc<Mutex<(u64, u64)>>);

impl Clock for Jumping {
    fn wall_micros(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

#[test]
fn a_stores_time_goes_on_from_its_start_whatever_the_wall_clock_does() {
    let clock = Jumping(Arc::new(Mutex::new((5_000_000, 40_000))));
    let time = StoreTime::starting_now(clock.clone());
    assert_eq!(time.now_ms(), 5_000);
    *clock.0.lock().unwrap() = (1, 42_999);
    assert_eq!(time.now_ms(), 5_002, "whole milliseconds that have passed");
    assert_eq!([30, 100, 101].map(|now| witan_kernel::port::until(100, now)), [70, 0, 0].map(Duration::from_micros));
}

struct Known;

impl Replicas for Known {
    fn send(&self, _: &NodeId, _: Request, _: u64, reply: Reply) {
        reply.answer(Ok(Answer::Record(None)));
    }

    fn state(&self, _: &NodeId) -> ReplicaState {
        ReplicaState { reachable: true, latency_p50_us: 1, latency_p99_us: 2, in_flight: 3 }
    }

    fn incarnation(&self, _: &NodeId) -> u64 {
        9
    }

    fn recent_state(&self, _: &NodeId) -> ReplicaState {
        ReplicaState { reachable: true, latency_p50_us: 4, latency_p99_us: 5, in_flight: 6 }
    }

    fn has_names(&self, node: &NodeId) -> bool {
        node.as_str() == "n"
    }
}

impl Tenants for Known {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        Some(Arc::new(Tenant::with_defaults(id.clone(), 3, 0)))
    }

    async fn tenant(&self, _: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(None)
    }
}

impl Ranges for Known {
    fn standing(&self, _: &NodeId) -> Option<Standing> {
        Some(Standing { store: StoreId([8; 16]), trust: Trust::Filling })
    }

    async fn scan(&self, node: &NodeId, _: Scan) -> Result<Page, ReplicaError> {
        Err(ReplicaError::NotSent(node.clone()))
    }

    async fn stores_changed(&self) {}

    async fn drop_tenant(&self, _: &NodeId, _: TenantId, _: Option<Place>) -> Result<Dropped, ReplicaError> {
        Err(ReplicaError::Late)
    }

    async fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Result<StoreId, ReplicaError> {
        Err(ReplicaError::Late)
    }

    async fn clear(&self, _: &NodeId, _: Clear) -> Result<Cleared, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }
}

/// The answers that have come, each with its tag.
#[derive(Default)]
struct Collected(Mutex<Vec<(u32, Outcome)>>);

impl Collect for Collected {
    fn collect(&self, tag: u32, outcome: Outcome) {
        self.0.lock().unwrap().push((tag, outcome));
    }
}

fn request() -> Request {
    let tenant = TenantId::new("t").unwrap();
    let place = Place { token: 1, space: tenant.into(), key: witan_kernel::name::Key::new("k").unwrap() };
    Request { place, epoch: 1, ask: Ask::Read }
}

/// What is behind a pointer answers as it would without: each trait passes all of its calls on.
#[test]
fn what_is_shared_is_what_it_is() {
    let (node, shared) = (NodeId::new("n").unwrap(), Arc::new(Known));
    assert_eq!((Replicas::state(&shared, &node).in_flight, Replicas::recent_state(&shared, &node).in_flight), (3, 6));
    assert_eq!((Replicas::incarnation(&shared, &node), Replicas::has_names(&shared, &node)), (9, true));
    assert!(!Replicas::has_names(&shared, &NodeId::new("older").unwrap()));
    let answers = Arc::new(Collected::default());
    Replicas::send(&shared, &node, request(), 5, Reply::new(answers.clone(), 77, node.clone()));
    assert_eq!(*answers.0.lock().unwrap(), [(77, Ok(Answer::Record(None)))]);
    let tenant = Tenants::cached(&shared, &TenantId::new("t").unwrap()).unwrap();
    assert_eq!(tenant.id.as_str(), "t");
    assert_eq!(Ranges::standing(&shared, &node).map(|standing| standing.store), Some(StoreId([8; 16])));
    assert!(!Ranges::has_digests(&shared, &node), "only who says so has digests");
}

#[test]
fn each_request_is_answered_once_even_if_nobody_answers() {
    let (node, answers) = (NodeId::new("n").unwrap(), Arc::new(Collected::default()));
    let reply = |tag| Reply::new(answers.clone(), tag, node.clone());
    assert_eq!(reply(1).node(), &node, "and dropped unanswered");
    reply(2).answer(Ok(Answer::Record(None)));
    let expected = [(1, Err(ReplicaError::Lost(node.clone()))), (2, Ok(Answer::Record(None)))];
    assert_eq!(*answers.0.lock().unwrap(), expected);
}

#[test]
fn only_a_store_that_may_be_used_for_everything_needs_no_advice() {
    let whole = |trust| Standing { store: StoreId([1; 16]), trust }.is_whole();
    assert_eq!([Trust::Whole, Trust::Filling, Trust::Unadmitted].map(whole), [true, false, false]);
    assert_eq!(Trust::Whole.advice(), None);
    for trust in [Trust::Filling, Trust::Unadmitted] {
        assert!(trust.advice().is_some_and(|advice| advice.contains("`witan repair`")), "{trust:?}");
    }
}

#[test]
fn births_and_sizes_of_siblings_are_counted() {
    let dot = |store, birth| Dot { actor: Actor { store: StoreId([store; 16]), birth }, counter: 1 };
    let mut seen = VersionVector::default();
    for of in [dot(1, 1), dot(1, 2), dot(2, 1)] {
        seen.advance(&of);
    }
    let siblings = Siblings { seen: seen.clone(), ..Siblings::default() };
    assert_eq!([1, 2, 3].map(|store| siblings.births_of(&StoreId([store; 16]))), [2, 1, 0]);
    let write = |ids: usize, value: &'static [u8]| Write {
        write_id: WriteId([1; 16]),
        started: 0,
        again: false,
        asked: false,
        seen: seen.clone(),
        ids: vec![WriteId([2; 16]); ids],
        newest: 0,
        value: Some(Bytes::from_static(value)),
    };
    let least = write(0, b"").bytes();
    assert!((3 * 24..3 * 64).contains(&least), "three events of a store, a birth and a number: {least}");
    assert_eq!((write(0, b"12345").bytes(), write(2, b"").bytes()), (least + 5, least + 32));
}
