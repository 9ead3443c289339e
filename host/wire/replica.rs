//! Conversions of requests to storage nodes and their answers: from the kernel's types to protobuf, and back with every field checked.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use witan_kernel::limit;
use witan_kernel::name::{Key, StoreId, WriteId};
use witan_kernel::quorum::Quorum;
use witan_kernel::record::{Encoded, Fingerprint};
use witan_kernel::register::Stamp;
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::siblings::{Actor, Dot, Name, VersionVector, Write};
use witan_kernel::space::{SPACE_BYTES, Space};

use crate::Malformed;
use crate::v1::replica_answer::Answer as WireAnswer;
use crate::v1::replica_request::Ask as WireAsk;
use crate::v1::{
    CollectAsk, CollectedAnswer, MergeAsk, MergedAnswer, NamesAsk, PinnedName, PutAnswer, PutAsk, ReadAsk,
    RecordAnswer, RefusalReason, ReplicaAnswer, ReplicaRefusal, ReplicaRequest, StampAnswer, StampAsk, UnpinAsk,
    VersionVectorEntry,
};

/// Most entries of the version vector, and most write ids, in one Put: far more than fit into a context of 4 KiB.
const PUT_ENTRIES: usize = 1024;
/// Most names in the answer to a merge. Each replica pins up to [`limit::PINNED_NAMES`], and a record may have those of all.
const TOLD: usize = Quorum::MAX_REPLICAS as usize * limit::PINNED_NAMES;

/// A request that has arrived at a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    /// Chosen by the coordinator; the answer carries it, too.
    pub id: u64,
    /// Milliseconds after it was sent at which the coordinator stops waiting; 0: no deadline.
    pub deadline_ms: u32,
    /// The request itself.
    pub request: Request,
}

/// Encodes a request without copying values.
pub fn request_to_wire(id: u64, request: Request, deadline_ms: u32) -> ReplicaRequest {
    let ask = match request.ask {
        Ask::Stamp { write_id } => WireAsk::Stamp(StampAsk { write_id: id_to_wire(write_id) }),
        Ask::Put(put) => WireAsk::Put(put_to_wire(&put)),
        Ask::Merge { record } => WireAsk::Merge(MergeAsk { record: record.0 }),
        Ask::Read => WireAsk::Read(ReadAsk {}),
        Ask::Names { write_id, started } => WireAsk::Names(NamesAsk { write_id: id_to_wire(write_id), started }),
        Ask::Unpin { write_id } => WireAsk::Unpin(UnpinAsk { write_id: id_to_wire(write_id) }),
        Ask::Collect { expected, grace } => {
            WireAsk::Collect(CollectAsk { expected: Bytes::copy_from_slice(&expected.0), grace })
        }
    };
    ReplicaRequest {
        id,
        token: request.place.token,
        tenant: request.place.space.bytes().clone(),
        key: request.place.key.bytes().clone(),
        epoch: request.epoch,
        deadline_ms,
        ask: Some(ask),
        traced: false,
    }
}

fn id_to_wire(id: WriteId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

fn put_to_wire(put: &Write) -> PutAsk {
    let entry = |actor: &Actor, counter: u64| VersionVectorEntry {
        store_id: Bytes::copy_from_slice(&actor.store.0),
        birth: actor.birth,
        counter,
    };
    PutAsk {
        write_id: id_to_wire(put.write_id),
        started: put.started,
        again: put.again,
        seen: put.seen.entries.iter().map(|(actor, counter)| entry(actor, *counter)).collect(),
        ids: put.ids.iter().copied().map(id_to_wire).collect(),
        value: put.value.clone().unwrap_or_default(),
        tombstone: put.value.is_none(),
        newest: put.newest,
        cloud: put.seen.cloud.iter().map(|dot| entry(&dot.actor, dot.counter)).collect(),
        asked: put.asked,
    }
}

impl TryFrom<ReplicaRequest> for Arrived {
    type Error = Malformed;

    /// Checks every field except the record of a Merge, which has its own checksum and is checked by the store.
    fn try_from(wire: ReplicaRequest) -> Result<Self, Malformed> {
        let space = Space::parse(within("tenant", wire.tenant, 1, SPACE_BYTES)?);
        let space = space.ok_or_else(|| Malformed::new("tenant", "is longer than an id may be"))?;
        let key = within("key", wire.key, 1, limit::KEY_BYTES)?;
        let ask = match wire.ask.ok_or_else(|| Malformed::new("ask", "is missing"))? {
            WireAsk::Stamp(ask) => Ask::Stamp { write_id: id_from_wire("stamp.write_id", &ask.write_id)? },
            WireAsk::Put(ask) => Ask::Put(Arc::new(put_from_wire(ask)?)),
            WireAsk::Merge(ask) => Ask::Merge { record: Encoded(ask.record) },
            WireAsk::Read(ReadAsk {}) => Ask::Read,
            WireAsk::Names(ask) => {
                Ask::Names { write_id: id_from_wire("names.write_id", &ask.write_id)?, started: ask.started }
            }
            WireAsk::Unpin(ask) => Ask::Unpin { write_id: id_from_wire("unpin.write_id", &ask.write_id)? },
            WireAsk::Collect(CollectAsk { expected, grace }) => {
                let problem =
                    || Malformed::new("collect.expected", format!("has {} bytes instead of 16", expected.len()));
                Ask::Collect { expected: Fingerprint::from_slice(&expected).ok_or_else(problem)?, grace }
            }
        };
        let place = Place { token: wire.token, space, key: Key::from_trusted(key) };
        Ok(Self { id: wire.id, deadline_ms: wire.deadline_ms, request: Request { place, epoch: wire.epoch, ask } })
    }
}

fn within(field: &'static str, bytes: Bytes, least: usize, most: usize) -> Result<Bytes, Malformed> {
    if (least..=most).contains(&bytes.len()) {
        return Ok(bytes);
    }
    Err(Malformed::new(field, format!("has {} bytes; {least} to {most} are allowed", bytes.len())))
}

fn id_from_wire(field: &'static str, bytes: &[u8]) -> Result<WriteId, Malformed> {
    WriteId::from_slice(bytes).ok_or_else(|| Malformed::new(field, format!("has {} bytes instead of 16", bytes.len())))
}

fn put_from_wire(ask: PutAsk) -> Result<Write, Malformed> {
    if ask.tombstone && !ask.value.is_empty() {
        return Err(Malformed::new("put.tombstone", "has a value"));
    }
    if ask.ids.len() > PUT_ENTRIES {
        return Err(Malformed::new("put.ids", format!("has {} entries; {PUT_ENTRIES} are allowed", ask.ids.len())));
    }
    let value = within("put.value", ask.value, 0, limit::VALUE_BYTES)?;
    Ok(Write {
        write_id: id_from_wire("put.write_id", &ask.write_id)?,
        started: ask.started,
        again: ask.again,
        asked: ask.asked,
        seen: vector_from_wire(&ask.seen, &ask.cloud)?,
        ids: ask.ids.iter().map(|id| id_from_wire("put.ids", id)).collect::<Result<_, _>>()?,
        newest: ask.newest,
        value: (!ask.tombstone).then_some(value),
    })
}

fn actor_from_wire(field: &'static str, entry: &VersionVectorEntry) -> Result<Actor, Malformed> {
    let store = StoreId::from_slice(&entry.store_id);
    let store = store.ok_or_else(|| Malformed::new(field, "has a store id that does not have 16 bytes"))?;
    Ok(Actor { store, birth: entry.birth })
}

fn vector_from_wire(wire: &[VersionVectorEntry], cloud: &[VersionVectorEntry]) -> Result<VersionVector, Malformed> {
    if wire.len() + cloud.len() > PUT_ENTRIES {
        return Err(Malformed::new("put.seen", format!("has {} entries; {PUT_ENTRIES} are allowed", wire.len())));
    }
    let mut entries: SmallVec<[(Actor, u64); 3]> = SmallVec::with_capacity(wire.len());
    for entry in wire {
        let actor = actor_from_wire("put.seen", entry)?;
        if entries.last().is_some_and(|(last, _)| *last >= actor) {
            return Err(Malformed::new("put.seen", "is not sorted by actor, or has an actor twice"));
        }
        if entry.counter == 0 {
            return Err(Malformed::new("put.seen.counter", "is 0: events are counted from 1"));
        }
        entries.push((actor, entry.counter));
    }
    let mut seen = VersionVector { entries, ..VersionVector::default() };
    for entry in cloud {
        seen.add(&Dot { actor: actor_from_wire("put.cloud", entry)?, counter: entry.counter });
    }
    Ok(seen)
}

fn told_to_wire(told: Vec<Name>) -> Vec<PinnedName> {
    told.into_iter().map(|name| PinnedName { write_id: id_to_wire(name.id), time: name.time }).collect()
}

fn told_from_wire(told: &[PinnedName]) -> Result<Vec<Name>, Malformed> {
    if told.len() > TOLD {
        return Err(Malformed::new("merged.told", format!("has {} names; {TOLD} are allowed", told.len())));
    }
    let name = |name: &PinnedName| {
        let id = id_from_wire("merged.told", &name.write_id)?;
        Ok(Name { pinned: true, ..Name::dead(id, name.time) })
    };
    told.iter().map(name).collect()
}

/// Encodes the answer to the request `id` without copying values.
pub fn answer_to_wire(id: u64, outcome: Outcome) -> ReplicaAnswer {
    let answer = match outcome {
        Ok(Answer::Stamp { stands, known }) => {
            WireAnswer::Stamp(StampAnswer { stands: stands.map(|stamp| stamp.0), known: known.map(|stamp| stamp.0) })
        }
        Ok(Answer::Put { record, applied_already }) => WireAnswer::Put(PutAnswer { record: record.0, applied_already }),
        Ok(Answer::Merged { superseded, told }) => {
            WireAnswer::Merged(MergedAnswer { superseded, told: told_to_wire(told) })
        }
        Ok(Answer::Record(record)) => WireAnswer::Record(RecordAnswer { record: record.map(|record| record.0) }),
        Ok(Answer::Collected { dropped }) => WireAnswer::Collected(CollectedAnswer { dropped }),
        Err(error) => WireAnswer::Refusal(refusal_to_wire(error)),
    };
    ReplicaAnswer { id, answer: Some(answer), took_us: 0 }
}

/// The answer to an invalid request.
pub fn malformed_to_wire(id: u64, error: &Malformed) -> ReplicaAnswer {
    let refusal = ReplicaRefusal { reason: RefusalReason::Invalid.into(), message: error.to_string() };
    ReplicaAnswer { id, answer: Some(WireAnswer::Refusal(refusal)), took_us: 0 }
}

fn refusal_to_wire(error: ReplicaError) -> ReplicaRefusal {
    let reason = match &error {
        ReplicaError::Late => RefusalReason::Late,
        ReplicaError::Overloaded => RefusalReason::Overloaded,
        ReplicaError::StorageFull => RefusalReason::StorageFull,
        ReplicaError::SiblingLimit => RefusalReason::SiblingLimit,
        ReplicaError::InDoubt => RefusalReason::InDoubt,
        ReplicaError::WrongMode => RefusalReason::WrongMode,
        ReplicaError::StaleEpoch => RefusalReason::StaleEpoch,
        ReplicaError::Large => RefusalReason::Large,
        // The first four arise only in a coordinator.
        ReplicaError::NotSent(_)
        | ReplicaError::Incomplete(_)
        | ReplicaError::Filling(_)
        | ReplicaError::Lost(_)
        | ReplicaError::Broken(_) => RefusalReason::Broken,
    };
    let message = match error {
        ReplicaError::Broken(message) => message,
        ReplicaError::NotSent(_) | ReplicaError::Incomplete(_) | ReplicaError::Filling(_) | ReplicaError::Lost(_) => {
            error.to_string()
        }
        // The reason is enough, and an overloaded node should not spend time on texts.
        _ => String::new(),
    };
    ReplicaRefusal { reason: reason.into(), message }
}

/// Decodes an answer. Records are not verified; decoding them does that.
pub fn answer_from_wire(wire: ReplicaAnswer) -> Result<(u64, Outcome), Malformed> {
    let outcome = match wire.answer.ok_or_else(|| Malformed::new("answer", "is missing"))? {
        WireAnswer::Stamp(answer) => {
            Ok(Answer::Stamp { stands: answer.stands.map(Stamp), known: answer.known.map(Stamp) })
        }
        WireAnswer::Put(answer) => {
            Ok(Answer::Put { record: Encoded(answer.record), applied_already: answer.applied_already })
        }
        WireAnswer::Merged(answer) => {
            Ok(Answer::Merged { superseded: answer.superseded, told: told_from_wire(&answer.told)? })
        }
        WireAnswer::Record(answer) => Ok(Answer::Record(answer.record.map(Encoded))),
        WireAnswer::Collected(answer) => Ok(Answer::Collected { dropped: answer.dropped }),
        WireAnswer::Refusal(refusal) => Err(refusal_from_wire(refusal)),
    };
    Ok((wire.id, outcome))
}

fn refusal_from_wire(refusal: ReplicaRefusal) -> ReplicaError {
    match refusal.reason() {
        RefusalReason::Late => ReplicaError::Late,
        RefusalReason::Overloaded => ReplicaError::Overloaded,
        RefusalReason::StorageFull => ReplicaError::StorageFull,
        RefusalReason::SiblingLimit => ReplicaError::SiblingLimit,
        RefusalReason::InDoubt => ReplicaError::InDoubt,
        RefusalReason::WrongMode => ReplicaError::WrongMode,
        RefusalReason::StaleEpoch => ReplicaError::StaleEpoch,
        RefusalReason::Large => ReplicaError::Large,
        // A reason that only a later version knows does not promise that nothing was done.
        RefusalReason::Unspecified | RefusalReason::Broken | RefusalReason::Invalid => {
            ReplicaError::Broken(refusal.message)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
    use prost::Message;
    use witan_kernel::name::NodeId;

    use super::*;

    fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 1..most).prop_map(Bytes::from)
    }

    fn vector() -> impl Strategy<Value = VersionVector> {
        proptest::collection::btree_map((any::<[u8; 16]>(), any::<u64>()), 1..=u64::MAX, 0..5).prop_map(|entries| {
            let entry = |((store, birth), counter)| (Actor { store: StoreId(store), birth }, counter);
            let mut seen =
                VersionVector { entries: entries.into_iter().map(entry).collect(), ..VersionVector::default() };
            seen.add(&Dot { actor: Actor { store: StoreId([1; 16]), birth: 2 }, counter: 9 });
            seen
        })
    }

    fn put() -> impl Strategy<Value = Write> {
        let ids = proptest::collection::vec(any::<[u8; 16]>().prop_map(WriteId), 0..4);
        (any::<[u8; 16]>(), any::<[u64; 2]>(), any::<[bool; 2]>(), vector(), ids, proptest::option::of(bytes(50)))
            .prop_map(|(id, [started, newest], [again, asked], seen, ids, value)| Write {
                write_id: WriteId(id),
                started,
                again,
                asked,
                seen,
                ids,
                newest,
                value,
            })
    }

    fn request() -> impl Strategy<Value = Request> {
        let ask = prop_oneof![
            any::<[u8; 16]>().prop_map(|id| Ask::Stamp { write_id: WriteId(id) }),
            put().prop_map(|put| Ask::Put(Arc::new(put))),
            bytes(100).prop_map(|record| Ask::Merge { record: Encoded(record) }),
            Just(Ask::Read),
            (any::<[u8; 16]>(), any::<u64>()).prop_map(|(id, started)| Ask::Names { write_id: WriteId(id), started }),
            any::<[u8; 16]>().prop_map(|id| Ask::Unpin { write_id: WriteId(id) }),
            (any::<[u8; 16]>(), any::<u64>())
                .prop_map(|(expected, grace)| Ask::Collect { expected: Fingerprint(expected), grace }),
        ];
        (any::<u64>(), bytes(20), bytes(40), any::<u64>(), ask).prop_map(|(token, tenant, key, epoch, ask)| {
            let place = Place { token, space: Space::from_trusted(tenant), key: Key::from_trusted(key) };
            Request { place, epoch, ask }
        })
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        let stamp = || proptest::option::of(any::<u64>().prop_map(Stamp));
        prop_oneof![
            (stamp(), stamp()).prop_map(|(stands, known)| Ok(Answer::Stamp { stands, known })),
            (bytes(50), any::<bool>())
                .prop_map(|(record, applied_already)| Ok(Answer::Put { record: Encoded(record), applied_already })),
            (any::<bool>(), proptest::collection::vec(any::<([u8; 16], u64)>(), 0..4)).prop_map(
                |(superseded, told)| {
                    let name = |(id, time)| Name { pinned: true, ..Name::dead(WriteId(id), time) };
                    Ok(Answer::Merged { superseded, told: told.into_iter().map(name).collect() })
                }
            ),
            proptest::option::of(bytes(50)).prop_map(|record| Ok(Answer::Record(record.map(Encoded)))),
            any::<bool>().prop_map(|dropped| Ok(Answer::Collected { dropped })),
            prop_oneof![
                Just(ReplicaError::Late),
                Just(ReplicaError::Overloaded),
                Just(ReplicaError::StorageFull),
                Just(ReplicaError::SiblingLimit),
                Just(ReplicaError::InDoubt),
                Just(ReplicaError::WrongMode),
                Just(ReplicaError::StaleEpoch),
                Just(ReplicaError::Large),
                Just(ReplicaError::Broken("smoke".to_owned())),
            ]
            .prop_map(Err),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(id in any::<u64>(), deadline_ms in any::<u32>(), request in request()) {
            let bytes = request_to_wire(id, request.clone(), deadline_ms).encode_to_vec();
            let arrived = Arrived::try_from(ReplicaRequest::decode(Bytes::from(bytes)).unwrap()).unwrap();
            prop_assert_eq!(arrived, Arrived { id, deadline_ms, request });
        }

        #[test]
        fn answers_survive_the_wire(id in any::<u64>(), outcome in outcome()) {
            let bytes = answer_to_wire(id, outcome.clone()).encode_to_vec();
            prop_assert_eq!(answer_from_wire(ReplicaAnswer::decode(Bytes::from(bytes)).unwrap()), Ok((id, outcome)));
        }

        #[test]
        fn hostile_requests_are_errors_not_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(wire) = ReplicaRequest::decode(Bytes::from(noise)) {
                let _ = Arrived::try_from(wire);
            }
        }
    }

    fn valid(ask: WireAsk) -> ReplicaRequest {
        let (tenant, key) = (Bytes::from_static(b"t"), Bytes::from_static(b"k"));
        ReplicaRequest { tenant, key, ask: Some(ask), ..ReplicaRequest::default() }
    }

    #[test]
    fn invalid_fields_are_named() {
        let field = |wire: ReplicaRequest| Arrived::try_from(wire).unwrap_err().field;
        let read = || WireAsk::Read(ReadAsk {});
        assert_eq!(field(ReplicaRequest { tenant: Bytes::new(), ..valid(read()) }), "tenant");
        assert_eq!(field(ReplicaRequest { key: Bytes::from(vec![0; 1025]), ..valid(read()) }), "key");
        assert_eq!(field(ReplicaRequest { ask: None, ..valid(read()) }), "ask");
        assert_eq!(field(valid(WireAsk::Stamp(StampAsk { write_id: Bytes::from_static(b"short") }))), "stamp.write_id");
        let collect = CollectAsk { expected: Bytes::from_static(b"short"), grace: 1 };
        assert_eq!(field(valid(WireAsk::Collect(collect))), "collect.expected");

        let id = Bytes::from_static(&[0; 16]);
        let put = |change: fn(&mut PutAsk)| {
            let mut ask = PutAsk { write_id: id.clone(), ..PutAsk::default() };
            change(&mut ask);
            valid(WireAsk::Put(ask))
        };
        assert_eq!(field(put(|ask| ask.value = Bytes::from(vec![0; limit::VALUE_BYTES + 1]))), "put.value");
        assert_eq!(field(put(|ask| (ask.tombstone, ask.value) = (true, Bytes::from_static(b"x")))), "put.tombstone");
        assert_eq!(field(put(|ask| ask.ids = vec![Bytes::new()])), "put.ids");
        let entry = VersionVectorEntry { store_id: id.clone(), birth: 1, counter: 1 };
        let none = VersionVectorEntry { counter: 0, ..entry.clone() };
        for (seen, wrong) in [(vec![entry.clone(), entry], "put.seen"), (vec![none], "put.seen.counter")] {
            let ask = PutAsk { write_id: id.clone(), seen, ..PutAsk::default() };
            assert_eq!(field(valid(WireAsk::Put(ask))), wrong);
        }
    }

    #[test]
    fn reasons_that_a_node_cannot_send_are_decoded_as_broken() {
        let lost = ReplicaError::Lost(NodeId::new("n1").unwrap());
        let (_, outcome) = answer_from_wire(answer_to_wire(1, Err(lost))).unwrap();
        assert!(matches!(outcome, Err(ReplicaError::Broken(_))));
        let (_, outcome) = answer_from_wire(malformed_to_wire(1, &Malformed::new("key", "is empty"))).unwrap();
        assert_eq!(outcome, Err(ReplicaError::Broken("key: is empty".to_owned())));
        let later = ReplicaRefusal { reason: 99, message: "new".to_owned() };
        let later = ReplicaAnswer { id: 1, answer: Some(WireAnswer::Refusal(later)), took_us: 0 };
        assert!(!answer_from_wire(later).unwrap().1.unwrap_err().certainly_not_done());
    }
}
