//! Frames: batches of requests or answers, with a codec version and a checksum, cut into pieces so that no message of a
//! stream is large, and joined again under a bound.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::v1::{AnswerBatch, Frame, ReplicaAnswer, ReplicaRequest, RequestBatch};

/// Version of the batches' encoding.
pub const CODEC: u32 = 1;
/// Largest payload of one frame, in bytes: a quarter of tonic's default message limit.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest batch, in bytes, all its pieces together: a record of 32 MiB twice over, so that one which repair has joined from
/// two full ones still travels.
pub const BATCH_BYTES: usize = 64 << 20;
/// Most requests, or answers, in one batch.
pub const BATCH_ITEMS: usize = 256;

/// A frame, or a batch, that cannot be trusted. The stream that carried it ends: what follows cannot be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Of a codec that this side does not speak.
    #[error("frame of codec {0}; this side speaks {CODEC}")]
    Codec(u32),
    /// The checksum does not fit the payload.
    #[error("frame's checksum is {told:#010x}, its payload's {found:#010x}")]
    Checksum {
        /// In the frame.
        told: u32,
        /// Of its payload.
        found: u32,
    },
    /// More than [`PIECE_BYTES`] in a frame, or [`BATCH_BYTES`] in a batch.
    #[error("{bytes} bytes in one {what}; {limit} are allowed")]
    TooLarge {
        /// "frame" or "batch".
        what: &'static str,
        /// How many there are.
        bytes: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// More than [`BATCH_ITEMS`] in a batch.
    #[error("more than {BATCH_ITEMS} items in one batch")]
    TooMany,
    /// A piece that says that more follow, and carries nothing.
    #[error("empty piece of a batch")]
    Empty,
    /// Not the protobuf of a batch.
    #[error("batch cannot be decoded: {0}")]
    Encoding(String),
}

/// Encodes a batch of requests into frames, in the order in which they are to be sent; one, unless the batch is large.
pub fn seal_requests(requests: Vec<ReplicaRequest>) -> Vec<Frame> {
    seal(&RequestBatch { requests })
}

/// Encodes a batch of answers into frames, in the order in which they are to be sent; one, unless the batch is large.
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

/// Decodes a joined batch of requests. Values stay slices of `batch`.
pub fn open_requests(batch: Bytes) -> Result<Vec<ReplicaRequest>, Damaged> {
    open(batch)
}

/// Decodes a joined batch of answers. Values stay slices of `batch`.
pub fn open_answers(batch: Bytes) -> Result<Vec<ReplicaAnswer>, Damaged> {
    open(batch)
}

/// Decodes field 1, repeated, item by item: the generated decoder would allocate for as many items as a hostile batch
/// holds (two bytes make an empty one) before anybody could count them.
fn open<T: Message + Default>(mut batch: Bytes) -> Result<Vec<T>, Damaged> {
    let broken = |error: prost::DecodeError| Damaged::Encoding(error.to_string());
    let mut items = Vec::new();
    while batch.has_remaining() {
        let (field, wire_type) = decode_key(&mut batch).map_err(broken)?;
        if field != 1 || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, field, &mut batch, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        if items.len() == BATCH_ITEMS {
            return Err(Damaged::TooMany);
        }
        let length = decode_varint(&mut batch).map_err(broken)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= batch.len())
            .ok_or_else(|| Damaged::Encoding("an item reaches past the end of its batch".to_owned()))?;
        items.push(T::decode(batch.split_to(length)).map_err(broken)?);
    }
    Ok(items)
}

/// Joins the pieces of batches again. One per direction of a stream.
#[derive(Debug, Default)]
pub struct Joiner {
    pieces: BytesMut,
}

impl Joiner {
    /// A joiner at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame; answers with a batch when this was its last piece. A batch in one piece is not copied. After an
    /// error the joiner must not be used any more.
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
            return Err(Damaged::Checksum { told: frame.checksum, found });
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
