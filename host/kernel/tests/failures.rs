//! What failures say: every kind once, and no sentence twice.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::failure::Failure;
use witan_kernel::hook::Hook;
use witan_kernel::name::{Invalid, NodeId, TenantId};
use witan_kernel::port::StoreError;
use witan_kernel::replica::ReplicaError;

/// The next kind after one; the compiler asks for each that is added.
fn next_failure(after: Option<&Failure>) -> Option<Failure> {
    let (required, received, reason) = (2, 1, "the disk of n1 is gone".to_owned());
    Some(match after {
        None => Failure::Invalid(Invalid::new("key", "has 2,000 bytes", "use at most 1,024")),
        Some(Failure::Invalid(_)) => Failure::TenantNotFound(TenantId::new("t").unwrap()),
        Some(Failure::TenantNotFound(_)) => Failure::KeyNotFound { context: Bytes::new() },
        Some(Failure::KeyNotFound { .. }) => Failure::TooFewNodes { wanted: 3, nodes: 2 },
        Some(Failure::TooFewNodes { .. }) => Failure::QuorumNotReached { required, received, causes: all_causes() },
        Some(Failure::QuorumNotReached { .. }) => Failure::Deadline { required, received },
        Some(Failure::Deadline { .. }) => Failure::NotBegun,
        Some(Failure::NotBegun) => Failure::Overloaded { retry_after: Duration::ZERO },
        Some(Failure::Overloaded { .. }) => Failure::SiblingLimit,
        Some(Failure::SiblingLimit) => Failure::IdempotencyKeyConflict,
        Some(Failure::IdempotencyKeyConflict) => Failure::ReservationExpired,
        Some(Failure::ReservationExpired) => Failure::ContextOutdated,
        Some(Failure::ContextOutdated) => Failure::InProgress { retry_after: Duration::ZERO },
        Some(Failure::InProgress { .. }) => {
            Failure::PluginFault { hook: Hook::RoutingHook, by: "tags@1234".to_owned(), reason }
        }
        Some(Failure::PluginFault { .. }) => Failure::StorageFull { required, received },
        Some(Failure::StorageFull { .. }) => Failure::StaleEpoch,
        Some(Failure::StaleEpoch) => Failure::StoreUnavailable { what: "the metadata store", reason },
        Some(Failure::StoreUnavailable { .. }) => Failure::StoreFull("the idempotency store"),
        Some(Failure::StoreFull(_)) => Failure::Unrecorded,
        Some(Failure::Unrecorded) => Failure::Forgotten,
        Some(Failure::Forgotten) => Failure::Internal(reason),
        Some(Failure::Internal(_)) => return None,
    })
}

fn next_store_error(after: Option<&StoreError>) -> Option<StoreError> {
    let why = "tenant acme".to_owned();
    Some(match after {
        None => StoreError::Unavailable(why),
        Some(StoreError::Unavailable(_)) => StoreError::Full(why),
        Some(StoreError::Full(_)) => StoreError::Conflict(why),
        Some(StoreError::Conflict(_)) => StoreError::Exists(why),
        Some(StoreError::Exists(_)) => StoreError::Missing(why),
        Some(StoreError::Missing(_)) => StoreError::Refused(why),
        Some(StoreError::Refused(_)) => StoreError::Damaged(why),
        Some(StoreError::Damaged(_)) => return None,
    })
}

fn next_replica_error(after: Option<&ReplicaError>) -> Option<ReplicaError> {
    let node = || NodeId::new("n1").unwrap();
    Some(match after {
        None => ReplicaError::NotSent(node()),
        Some(ReplicaError::NotSent(_)) => ReplicaError::Incomplete(node()),
        Some(ReplicaError::Incomplete(_)) => ReplicaError::Filling(node()),
        Some(ReplicaError::Filling(_)) => ReplicaError::Lost(node()),
        Some(ReplicaError::Lost(_)) => ReplicaError::Late,
        Some(ReplicaError::Late) => ReplicaError::Overloaded,
        Some(ReplicaError::Overloaded) => ReplicaError::StorageFull,
        Some(ReplicaError::StorageFull) => ReplicaError::SiblingLimit,
        Some(ReplicaError::SiblingLimit) => ReplicaError::InDoubt,
        Some(ReplicaError::InDoubt) => ReplicaError::WrongMode,
        Some(ReplicaError::WrongMode) => ReplicaError::StaleEpoch,
        Some(ReplicaError::StaleEpoch) => ReplicaError::Large,
        Some(ReplicaError::Large) => ReplicaError::Broken("the sync failed".to_owned()),
        Some(ReplicaError::Broken(_)) => return None,
    })
}

fn all<T>(next: impl Fn(Option<&T>) -> Option<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(one) = next(all.last()) {
        all.push(one);
    }
    all
}

/// What replicas report, as a coordinator lists it.
fn all_causes() -> Vec<String> {
    vec![ReplicaError::Late.to_string(), ReplicaError::StorageFull.to_string()]
}

/// Three words in a row that are said more than once.
fn said_twice(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let phrases: Vec<&[&str]> = words.windows(3).collect();
    phrases.iter().enumerate().find(|(at, phrase)| phrases[..*at].contains(phrase)).map(|(_, phrase)| phrase.join(" "))
}

/// As programs print an error with its causes.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[test]
fn no_failure_says_a_sentence_twice() {
    let (failures, stores, replicas) = (all(next_failure), all(next_store_error), all(next_replica_error));
    assert_eq!((failures.len(), stores.len(), replicas.len()), (21, 7, 13));
    let errors = failures.iter().map(|error| error as &dyn Error);
    let errors = errors.chain(stores.iter().map(|error| error as &dyn Error));
    for error in errors.chain(replicas.iter().map(|error| error as &dyn Error)) {
        let text = with_causes(error);
        assert_eq!(said_twice(&text), None, "{text}");
    }
}

#[test]
fn no_failure_that_wraps_another_says_a_sentence_twice() {
    for broken in all(next_store_error) {
        let text = ReplicaError::Broken(broken.to_string()).to_string();
        assert_eq!(said_twice(&text), None, "{text}");
    }
    for cause in all(next_replica_error) {
        let text = Failure::QuorumNotReached { required: 2, received: 1, causes: vec![cause.to_string()] }.to_string();
        assert_eq!(said_twice(&text), None, "{text}");
    }
}
