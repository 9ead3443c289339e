//! The bytes that a node sent over its sockets: HTTP/2 frames, in them gRPC messages, in them batches of answers.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use witan_wire::frame::Joiner;
use witan_wire::v1::ExchangeResponse;

use super::lane;
use super::strace::Trace;

/// Bytes before the payload of an HTTP/2 frame.
const FRAME_HEAD: usize = 9;
/// Bytes before a gRPC message.
const MESSAGE_HEAD: usize = 5;
/// The type of frames that carry messages.
const DATA: u8 = 0;

/// Bytes of one direction of a connection or stream, and the line of the trace in which the sending of each began.
#[derive(Default)]
struct Flow {
    bytes: BytesMut,
    lines: std::collections::VecDeque<usize>,
}

impl Flow {
    fn push(&mut self, bytes: &[u8], line: usize) {
        self.bytes.extend_from_slice(bytes);
        self.lines.extend(std::iter::repeat_n(line, bytes.len()));
    }

    /// Removes bytes; returns them with the line in which the first of them was sent.
    fn take(&mut self, count: usize) -> (Bytes, usize) {
        let line = self.lines.front().copied().unwrap_or(usize::MAX);
        self.lines.drain(..count);
        (self.bytes.split_to(count).freeze(), line)
    }
}

/// One connection.
#[derive(Default)]
struct Connection {
    frames: Flow,
    streams: HashMap<u32, (Flow, Joiner)>,
}

/// Every write that was acknowledged, with the line in which the first byte of its acknowledgement was sent.
pub(super) fn acknowledgements(trace: &Trace) -> Vec<(u64, usize)> {
    let mut connections: HashMap<&str, Connection> = HashMap::new();
    let mut acknowledged = Vec::new();
    for chunk in trace.chunks.iter().filter(|chunk| chunk.to.starts_with("TCP:[")) {
        let connection = connections.entry(&chunk.to).or_default();
        connection.frames.push(&chunk.bytes, chunk.began);
        connection.read(&mut acknowledged);
    }
    acknowledged
}

impl Connection {
    fn read(&mut self, acknowledged: &mut Vec<(u64, usize)>) {
        while let Some(head) = self.frames.bytes.get(..FRAME_HEAD) {
            let length = (&head[..3]).get_uint(3) as usize;
            let (kind, stream) = (head[3], (&head[5..9]).get_u32() & 0x7fff_ffff);
            if self.frames.bytes.len() < FRAME_HEAD + length {
                return;
            }
            let (frame, line) = self.frames.take(FRAME_HEAD + length);
            if kind == DATA {
                let (flow, joiner) = self.streams.entry(stream).or_default();
                flow.push(&frame[FRAME_HEAD..], line);
                messages(flow, joiner, acknowledged);
            }
        }
    }
}

fn messages(flow: &mut Flow, joiner: &mut Joiner, acknowledged: &mut Vec<(u64, usize)>) {
    while let Some(head) = flow.bytes.get(..MESSAGE_HEAD) {
        assert_eq!(head[0], 0, "messages are not compressed");
        let length = (&head[1..]).get_u32() as usize;
        if flow.bytes.len() < MESSAGE_HEAD + length {
            return;
        }
        let (message, line) = flow.take(MESSAGE_HEAD + length);
        let answer = ExchangeResponse::decode(&message[MESSAGE_HEAD..]).expect("a node's answer");
        acknowledged.extend(lane::acknowledged(joiner, answer).into_iter().map(|number| (number, line)));
    }
}
