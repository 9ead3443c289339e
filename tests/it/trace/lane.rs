//! A minimal lane of a coordinator: sends batches of writes, receives responses.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use witan_kernel::name::{Key, TenantId, WriteId};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Place, Request};
use witan_kernel::ring;
use witan_kernel::siblings::{VersionVector, Write};
use witan_wire::frame::{Joiner, open_answers, seal_requests};
use witan_wire::replica::{answer_from_wire, request_to_wire};
use witan_wire::v1::{ExchangeRequest, ExchangeResponse, Hello};

use crate::harness::node_client;

/// Prefix of a write's number in its value, so that it can be found in a journal.
const MARK: &[u8] = b"<write number ";

/// Requests in flight together.
const TOGETHER: u64 = 20;

pub(super) struct Lane {
    requests: mpsc::Sender<ExchangeRequest>,
    answers: Streaming<ExchangeResponse>,
    joiner: Joiner,
}

impl Lane {
    pub(super) async fn open(address: SocketAddr) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let hello = Hello { versions: vec![1], coordinator_id: "test".to_owned(), ..Hello::default() };
        let first = ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() };
        requests.send(first).await.expect("send a hello");
        let answers = node_client(address).exchange(ReceiverStream::new(receiver)).await.expect("open a lane");
        Self { requests, answers: answers.into_inner(), joiner: Joiner::new() }
    }

    /// Executes writes 1 to `count` until each is acknowledged: merges and puts, in batches of several sizes, some of which are in
    /// flight together.
    pub(super) async fn write(&mut self, count: u64) {
        let (mut next, mut acknowledged) = (1, 0);
        while acknowledged < count {
            while next <= count && next - 1 - acknowledged < TOGETHER {
                let last = (next + next % 7).min(count);
                self.send(next..=last).await;
                next = last + 1;
            }
            acknowledged += self.heard().await;
        }
    }

    async fn send(&self, numbers: std::ops::RangeInclusive<u64>) {
        let requests = numbers.map(|number| request_to_wire(number, request(number), 0)).collect();
        for frame in seal_requests(requests) {
            let request = ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() };
            self.requests.send(request).await.expect("send a frame");
        }
    }

    async fn heard(&mut self) -> u64 {
        let answer = self.answers.message().await.expect("the lane works").expect("the lane goes on");
        acknowledged(&mut self.joiner, answer).len() as u64
    }
}

/// The writes that a message of a node acknowledges.
pub(super) fn acknowledged(joiner: &mut Joiner, answer: ExchangeResponse) -> Vec<u64> {
    let Some(frame) = answer.frame else { return Vec::new() };
    let Some(batch) = joiner.push(frame).expect("a sound frame") else { return Vec::new() };
    let answers = open_answers(batch).expect("a sound batch").into_iter();
    let outcomes = answers.map(|answer| answer_from_wire(answer).expect("a sound answer"));
    let acknowledged = outcomes.map(|(id, outcome)| match outcome {
        Ok(Answer::Merged { .. } | Answer::Put { .. }) => id,
        other => panic!("write {id} was answered with {other:?}"),
    });
    acknowledged.collect()
}

fn request(number: u64) -> Request {
    let tenant = TenantId::new(if number.is_multiple_of(2) { "merges" } else { "puts" }).expect("a tenant id");
    // Several puts per key, so that some share a sync. A merge has a key of its own, since one that is superseded at once is never
    // written.
    let key = if number.is_multiple_of(2) { number } else { number / 10 };
    let key = Key::new(format!("key {key}")).expect("a key");
    let token = ring::token(&tenant, key.bytes());
    let write_id = WriteId(u128::from(number).to_be_bytes());
    let value = Some(Bytes::from([MARK, number.to_string().as_bytes(), b">"].concat()));
    let ask = if number.is_multiple_of(2) {
        Ask::Merge { record: Record::Register(Register::written(Stamp(number), write_id, value)).encode() }
    } else {
        let put = Write {
            write_id,
            started: number,
            again: false,
            asked: false,
            seen: VersionVector::default(),
            ids: Vec::new(),
            newest: 0,
            value,
        };
        Ask::Put(put.into())
    };
    Request { place: Place { token, space: tenant.into(), key }, epoch: 0, ask }
}

/// The numbers of the writes in a journal's bytes, each with the end of its first occurrence. A rewritten record also contains older
/// values.
pub(super) fn marks(journal: &[u8]) -> impl Iterator<Item = (u64, usize)> {
    let mut found = std::collections::BTreeMap::new();
    for start in starts(journal) {
        let digits = &journal[start + MARK.len()..];
        let Some(length) = digits.iter().position(|byte| *byte == b'>') else { continue };
        let number = std::str::from_utf8(&digits[..length]).ok().and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            found.entry(number).or_insert(start + MARK.len() + length);
        }
    }
    found.into_iter()
}

fn starts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK).map(|(at, _)| at)
}
