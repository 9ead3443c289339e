//! What people, databases and metrics call things: each spelling is read as what it was written for, and nothing else is.

use witan_kernel::condition::Condition;
use witan_kernel::durability::Durability;
use witan_kernel::failure::{Effect, Failure};
use witan_kernel::hook::{Hook, Operation};
use witan_kernel::name::{Key, NodeId, StoreId, TenantId, WriteId};
use witan_kernel::port::{Artifact, Digest, Duty, DutyKind, MigrationStatus, NodeStatus, Slot, Source, StoreState};
use witan_kernel::scan::{Standing, Trust};
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair};

#[track_caller]
fn round_trips<T: PartialEq + std::fmt::Debug + Copy, const N: usize>(
    spelled: [(T, &str); N],
    write: impl Fn(T) -> &'static str,
    read: impl Fn(&str) -> Option<T>,
) {
    for (value, spelling) in spelled {
        assert_eq!((write(value), read(spelling)), (spelling, Some(value)));
        assert_eq!(read(&spelling.to_uppercase()), None, "spellings are exact");
    }
    assert_eq!(read("another"), None);
}

#[test]
fn every_spelling_is_read_as_it_was_written() {
    round_trips([(Durability::Sync, "sync"), (Durability::Os, "os")], Durability::as_str, Durability::parse);
    let hooks = [
        (Hook::ConsistencyPolicy, "consistency-policy"),
        (Hook::ConflictResolver, "conflict-resolver"),
        (Hook::RoutingHook, "routing-hook"),
    ];
    round_trips(hooks, Hook::as_str, Hook::parse);
    let statuses =
        [(NodeStatus::Active, "active"), (NodeStatus::Draining, "draining"), (NodeStatus::Inactive, "inactive")];
    round_trips(statuses, NodeStatus::as_str, NodeStatus::parse);
    let states = [
        (StoreState::Reported, "reported"),
        (StoreState::Filling, "filling"),
        (StoreState::Retired, "retired"),
        (StoreState::SetBack, "set-back"),
    ];
    round_trips(states, StoreState::as_str, StoreState::parse);
    let migrations = [
        (MigrationStatus::Pending, "pending"),
        (MigrationStatus::InProgress, "in_progress"),
        (MigrationStatus::Completed, "completed"),
        (MigrationStatus::Cancelled, "cancelled"),
    ];
    round_trips(migrations, MigrationStatus::as_str, MigrationStatus::parse);
    let duties = [
        (DutyKind::Compare, "compare"),
        (DutyKind::Scrub, "scrub"),
        (DutyKind::CatchUp, "catch-up"),
        (DutyKind::Fill, "fill"),
        (DutyKind::Place, "placement"),
        (DutyKind::Missed, "missed"),
    ];
    round_trips(duties, DutyKind::as_str, DutyKind::parse);
    assert_eq!(Duty { kind: DutyKind::Scrub, range: "7".to_owned() }.to_string(), "scrub 7");
    assert_eq!(Durability::Os.to_string() + &Hook::RoutingHook.to_string(), "osrouting-hook");
    assert_eq!(
        [Operation::Read, Operation::Write, Operation::Delete].map(Operation::as_str),
        ["read", "write", "delete"]
    );
    let failed = Condition::Failed("sync".to_owned());
    assert_eq!([Condition::Serving, Condition::Full, failed].map(|of| of.as_str()), ["serving", "full", "failed"]);
    assert_eq!([Effect::NotApplied, Effect::InDoubt].map(Effect::as_str), ["not-applied", "in-doubt"]);
}

#[test]
fn what_a_store_may_be_used_for_has_a_word_and_advice_where_it_is_not_everything() {
    let all = [(Trust::Whole, "whole"), (Trust::Filling, "filling"), (Trust::Unadmitted, "unadmitted")];
    for (trust, word) in all {
        let standing = Standing { store: StoreId([1; 16]), trust };
        assert_eq!((trust.as_str(), standing.is_whole()), (word, trust == Trust::Whole));
        assert_eq!(trust.advice().is_none_or(|advice| !advice.contains("witan repair")), trust == Trust::Whole);
    }
}

#[test]
fn duties_of_what_was_missed_are_counted_apart() {
    for (a, b) in DutyKind::ALL.into_iter().flat_map(|a| DutyKind::ALL.map(|b| (a, b))) {
        let apart = a != b && [a, b].contains(&DutyKind::Missed);
        assert_eq!(a.counts_with(b), !apart, "{a:?} and {b:?}");
    }
}

#[test]
fn levels_are_read_as_they_are_written_and_none_is_the_default() {
    for (level, spelling) in [(Level::One, "one"), (Level::Quorum, "quorum"), (Level::All, "all")] {
        assert_eq!((level.as_str(), level.to_string()), (spelling, spelling.to_owned()));
        assert_eq!(Level::parse("consistency", spelling), Ok(Some(level)));
    }
    assert_eq!(Level::parse("consistency", ""), Ok(None));
    assert!(Level::parse("consistency", "One").is_err());
}

/// People see why the replicas that are missing have not answered.
#[test]
fn a_missed_quorum_names_the_causes_that_are_known() {
    let missed = |causes: &[&str]| {
        let causes = causes.iter().map(|&cause| cause.to_owned()).collect();
        Failure::QuorumNotReached { required: 2, received: 1, causes }.to_string()
    };
    assert_eq!(missed(&[]), "1 of 2 required replicas answered");
    assert_eq!(missed(&["no answer in time", "full"]), "1 of 2 required replicas answered (no answer in time; full)");
}

#[test]
fn choices_of_a_tenant_have_a_default_and_name_what_is_known() {
    assert_eq!(ConflictMode::parse(""), Ok(ConflictMode::Register));
    assert_eq!(ConflictMode::parse("siblings").map(ConflictMode::as_str), Ok("siblings"));
    assert_eq!(Ordering::parse("clock").map(|ordering| ordering.to_string()), Ok("clock".to_owned()));
    assert_eq!(ReadRepair::parse("async").map(ReadRepair::as_str), Ok("async"));
    assert_eq!(IdempotencyOutage::parse("proceed").map(IdempotencyOutage::as_str), Ok("proceed"));
    let error = ReadRepair::parse("sometimes").unwrap_err();
    assert_eq!(error.field, "read_repair");
    assert!(error.to_string().contains("\"sometimes\"") && error.to_string().contains("\"blocking\""), "{error}");
}

#[test]
fn names_are_shown_as_they_are() {
    let (tenant, key, node) = (TenantId::new("shop").unwrap(), Key::new("cart/7").unwrap(), NodeId::new("n1").unwrap());
    assert_eq!((tenant.as_str(), tenant.to_string()), ("shop", "shop".to_owned()));
    assert_eq!((&key.bytes()[..], node.as_str(), node.to_string()), (&b"cart/7"[..], "n1", "n1".to_owned()));
    let slot = Slot::parse("shop", "routing-hook").unwrap();
    assert_eq!((slot.tenant_text(), slot.hook), ("shop", Hook::RoutingHook));
    assert_eq!(Slot::parse("", "routing-hook").unwrap().tenant_text(), "");
    assert_eq!(
        (key.to_string(), Key::new(&b"\xff/7"[..]).unwrap().to_string()),
        ("cart/7".into(), "\u{fffd}/7".into())
    );
    let mut id = [0; 16];
    (id[0], id[1], id[15]) = (0x0a, 0xf3, 0x9e);
    let digits = "0af3000000000000000000000000009e";
    assert_eq!((WriteId(id).hex(), StoreId(id).to_string()), (digits.to_owned(), digits.to_owned()));
    assert_eq!((WriteId::from_slice(&id), WriteId::from_slice(&id[1..])), (Some(WriteId(id)), None));
    let artifact = Artifact {
        digest: Digest::of(b""),
        name: "router".to_owned(),
        version: "1.2".to_owned(),
        hook: Hook::RoutingHook,
        deterministic: true,
        size: 0,
        owner: None,
        staged_at_ms: 0,
        source: Source::Upload,
        signed_by: None,
        class: witan_kernel::class::Class::Standard,
        class_reason: String::new(),
    };
    assert_eq!(artifact.plugin(), "router@1.2");
    assert_eq!((Slot::parse("shop", "no hook"), Slot::parse("a:b", "routing-hook")), (None, None));
}

#[test]
fn a_digest_is_64_digits_with_or_without_its_kind() {
    let digest = Digest::of(b"witan");
    let text = digest.to_string();
    assert_eq!((text.len(), digest.short()), (64, text[..12].to_owned()));
    assert_eq!((Digest::parse(&text), Digest::parse(&format!("sha256:{text}"))), (Some(digest), Some(digest)));
    assert_eq!(Digest::parse(&text.to_uppercase()), Some(digest));
    assert_eq!(Digest::parse(&format!("md5:{text}")), None);
    let other = format!("g{}", &text[1..]);
    assert_eq!([&text[1..], &format!("{text}0"), &other, ""].map(Digest::parse), [None; 4]);
    let digits: String = digest.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, text);
}
