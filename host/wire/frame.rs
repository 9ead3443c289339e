//! Frames: batches of requests or answers, with a codec version and a checksum, split into pieces so that no message of a
//! stream is large, and joined again within bounds.

use bytes::{Bytes, BytesMut};
use prost::Message;
use witan_kernel::limit;

use crate::v1::{AnswerBatch, Frame, ReplicaAnswer, ReplicaRequest, RequestBatch};
use crate::weigh::{self, Refused, Undecodable, Weighed};

/// Version of the encoding of batches; a frame of any other version ends the stream.
pub const CODEC: u32 = 1;
/// Protocol versions of a lane that coordinators and nodes of this build speak.
pub const VERSIONS: [u32; 1] = [1];
/// Largest payload of one frame, in bytes: a quarter of tonic's default message limit.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest message of a lane, in bytes: a frame with its envelope, with room for fields that later versions add.
pub const FRAME_MESSAGE_BYTES: usize = 4 * PIECE_BYTES;
/// Largest batch, in bytes, all its pieces together: twice the largest record (32 MiB), so that a record which repair has merged
/// from two full ones still fits.
pub const BATCH_BYTES: usize = 2 * limit::RECORD_BYTES;
/// Most requests, or answers, in one batch: enough to share the cost of a frame among many, few enough to keep latency low.
pub const BATCH_ITEMS: usize = 256;

/// A frame or a batch that is damaged. The stream that carried it ends, because what follows cannot be attributed to a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// The frame has a codec version that this side does not know.
    #[error("frame of codec {0}; this side speaks {CODEC}")]
    Codec(u32),
    /// The checksum does not match the payload.
    #[error("the frame's checksum is {expected:#010x}, that of its payload is {found:#010x}")]
    Checksum {
        /// The checksum in the frame.
        expected: u32,
        /// The checksum of its payload.
        found: u32,
    },
    /// A frame has more than [`PIECE_BYTES`], or a batch more than [`BATCH_BYTES`].
    #[error("{bytes} bytes in one {what}; {limit} are allowed")]
    TooLarge {
        /// "frame" or "batch".
        what: &'static str,
        /// Its size, in bytes.
        bytes: usize,
        /// The largest size that is allowed, in bytes.
        limit: usize,
    },
    /// A batch has more than [`BATCH_ITEMS`] items.
    #[error("more than {BATCH_ITEMS} items in one batch")]
    TooMany,
    /// The batch would take too much memory once it is decoded.
    #[error(transparent)]
    Refused(Refused),
    /// A piece is marked as not the last one, and is empty: an endless row of them would never reach a bound.
    #[error("empty piece of a batch")]
    Empty,
    /// The batch is not valid protobuf.
    #[error("batch cannot be decoded: {0}")]
    Encoding(String),
}

/// Encodes a batch of requests into frames, in the order in which to send them; a single frame, unless the batch is large.
pub fn seal_requests(requests: Vec<ReplicaRequest>) -> Vec<Frame> {
    seal_requests_sent(requests, 0)
}

/// The same, with the least that the node's clock can show; 0: not known.
pub fn seal_requests_sent(requests: Vec<ReplicaRequest>, sent_at: u64) -> Vec<Frame> {
    seal(&RequestBatch { requests, sent_at })
}

/// Encodes a batch of answers into frames, in the order in which to send them; a single frame, unless the batch is large.
pub fn seal_answers(answers: Vec<ReplicaAnswer>) -> Vec<Frame> {
    seal(&AnswerBatch { answers })
}

fn seal(batch: &impl Message) -> Vec<Frame> {
    let mut rest = Bytes::from(batch.encode_to_vec());
    let mut frames = Vec::with_capacity(rest.len() / PIECE_BYTES + 1);
    loop {
        let payload = rest.split_to(rest.len().min(PIECE_BYTES));
        let more = !rest.is_empty();
        frames.push(Frame { codec: CODEC, checksum: crc32fast::hash(&payload), payload, more });
        if !more {
            return frames;
        }
    }
}

/// Decodes a joined batch of requests, once it has been weighed. Values are slices of `batch`, not copies.
pub fn open_requests(batch: Bytes) -> Result<Vec<ReplicaRequest>, Damaged> {
    open_requests_sent(batch).map(|(requests, _)| requests)
}

/// The same, with the least that the node's clock can have shown when it was encoded; 0: not known.
pub fn open_requests_sent(batch: Bytes) -> Result<(Vec<ReplicaRequest>, u64), Damaged> {
    open::<RequestBatch>(batch).map(|batch| (batch.requests, batch.sent_at))
}

/// Decodes a joined batch of answers, once it has been weighed. Values are slices of `batch`, not copies.
pub fn open_answers(batch: Bytes) -> Result<Vec<ReplicaAnswer>, Damaged> {
    open::<AnswerBatch>(batch).map(|batch| batch.answers)
}

fn open<B: Weighed>(batch: Bytes) -> Result<B, Damaged> {
    weigh::decode(batch).map_err(|undecodable| match undecodable {
        Undecodable::Refused(Refused::TooMany { .. }) => Damaged::TooMany,
        Undecodable::Refused(refused) => Damaged::Refused(refused),
        Undecodable::Malformed(_) | Undecodable::Unweighed => Damaged::Encoding(undecodable.to_string()),
    })
}

/// Joins the pieces of batches. One per direction of a stream.
#[derive(Debug, Default)]
pub struct Joiner {
    pieces: BytesMut,
}

impl Joiner {
    /// A joiner at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame, and returns a batch if this was its last piece. A batch in one piece is not copied. After an
    /// error the joiner must not be used again.
    pub fn push(&mut self, frame: Frame) -> Result<Option<Bytes>, Damaged> {
        self.check(&frame)?;
        if !frame.more && self.pieces.is_empty() {
            return Ok(Some(frame.payload));
        }
        self.pieces.extend_from_slice(&frame.payload);
        if frame.more {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.pieces).freeze()))
    }

    fn check(&self, frame: &Frame) -> Result<(), Damaged> {
        if frame.codec != CODEC {
            return Err(Damaged::Codec(frame.codec));
        }
        let bytes = frame.payload.len();
        if bytes > PIECE_BYTES {
            return Err(Damaged::TooLarge { what: "frame", bytes, limit: PIECE_BYTES });
        }
        let bytes = bytes + self.pieces.len();
        if bytes > BATCH_BYTES {
            return Err(Damaged::TooLarge { what: "batch", bytes, limit: BATCH_BYTES });
        }
        if frame.more && frame.payload.is_empty() {
            return Err(Damaged::Empty);
        }
        let found = crc32fast::hash(&frame.payload);
        if found != frame.checksum {
            return Err(Damaged::Checksum { expected: frame.checksum, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

    use super::*;

    fn request(id: u64, bytes: usize) -> ReplicaRequest {
        ReplicaRequest { id, key: Bytes::from(vec![7; bytes]), ..ReplicaRequest::default() }
    }

    fn join(frames: Vec<Frame>) -> Result<Vec<ReplicaRequest>, Damaged> {
        let mut joiner = Joiner::new();
        let mut whole = Vec::new();
        for frame in frames {
            if let Some(batch) = joiner.push(frame)? {
                whole.extend(open_requests(batch)?);
            }
        }
        Ok(whole)
    }

    proptest! {
        #[test]
        fn what_is_sealed_comes_out_again(sizes in proptest::collection::vec(0_usize..700_000, 0..8)) {
            let requests: Vec<_> = (0_u64..).zip(sizes).map(|(id, bytes)| request(id, bytes)).collect();
            prop_assert_eq!(join(seal_requests(requests.clone())).unwrap(), requests);
        }

        #[test]
        fn hostile_batches_are_errors_not_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = open_requests(Bytes::from(bytes.clone()));
            let _ = open_answers(Bytes::from(bytes));
        }

        #[test]
        fn any_flipped_bit_is_noticed(at in any::<proptest::sample::Index>(), bit in (0_u8..8).prop_map(|bit| 1 << bit)) {
            let mut frame = seal_requests(vec![request(1, 300)]).remove(0);
            let mut payload = frame.payload.to_vec();
            let at = at.index(payload.len());
            payload[at] ^= bit;
            frame.payload = Bytes::from(payload);
            let noticed = matches!(Joiner::new().push(frame), Err(Damaged::Checksum { .. }));
            prop_assert_eq!(noticed, true);
        }
    }

    #[test]
    fn an_empty_batch_is_one_frame() {
        let frames = seal_requests(Vec::new());
        assert_eq!(frames.len(), 1);
        assert_eq!(join(frames).unwrap(), []);
    }

    #[test]
    fn bounds_hold() {
        let many = (0..=BATCH_ITEMS as u64).map(|id| request(id, 0)).collect();
        assert_eq!(join(seal_requests(many)), Err(Damaged::TooMany));

        let mut joiner = Joiner::new();
        let payload = Bytes::from(vec![0; PIECE_BYTES]);
        let piece = Frame { codec: CODEC, checksum: crc32fast::hash(&payload), payload, more: true };
        for _ in 0..BATCH_BYTES / PIECE_BYTES {
            assert_eq!(joiner.push(piece.clone()), Ok(None));
        }
        assert!(matches!(joiner.push(piece.clone()), Err(Damaged::TooLarge { what: "batch", .. })));

        let empty = Frame { payload: Bytes::new(), checksum: 0, ..piece.clone() };
        assert_eq!(Joiner::new().push(empty), Err(Damaged::Empty));
        assert_eq!(Joiner::new().push(Frame { codec: 2, ..piece }), Err(Damaged::Codec(2)));
    }
}
