//! Bytes as what coordinators and storage nodes send each other: frames, and the messages in them.

use bytes::Bytes;
use prost::Message;
use witan_wire::frame::{BATCH_ITEMS, Joiner, PIECE_BYTES, open_answers, open_requests, seal_requests};
use witan_wire::range::{drop_from_wire, page_from_wire, page_to_wire, scan_from_wire, scan_to_wire};
use witan_wire::replica::{Arrived, answer_from_wire, answer_to_wire, request_to_wire};
use witan_wire::v1::{DropTenantRequest, Frame, ReplicaAnswer, ReplicaRequest, ScanRangeRequest, ScanRangeResponse};

use crate::Seen;

/// Starts of fields.
pub(super) const WORDS: &[&[u8]] =
    &[&[0x0a, 0x10], &[0x12, 0x01, b't'], &[0x1a, 0x01, b'k'], &[0x52, 0x00], &[1; 16], &[0xff; 16]];

/// An input is a kind of message, and its bytes.
pub(super) fn run(input: &[u8]) -> Seen {
    let Some((kind, bytes)) = input.split_first() else { return Seen(0) };
    let bytes = Bytes::copy_from_slice(bytes);
    match kind % 6 {
        0 => requests(bytes),
        1 => answers(bytes),
        2 => pieces(&bytes),
        3 => ScanRangeRequest::decode(bytes).map_or(Seen(3), scan),
        4 => ScanRangeResponse::decode(bytes).map_or(Seen(4), page),
        _ => DropTenantRequest::decode(bytes).map_or(Seen(5), |wire| {
            Seen::of((5, drop_from_wire(wire).map(|(_, after)| after.is_some()).map_err(|wrong| wrong.field)))
        }),
    }
}

fn requests(batch: Bytes) -> Seen {
    let Ok(requests) = open_requests(batch) else { return Seen(10) };
    assert!(requests.len() <= BATCH_ITEMS);
    let joined = seal_requests(requests.clone()).into_iter().fold((Joiner::new(), None), |(mut joiner, _), frame| {
        let batch = joiner.push(frame).expect("a frame that was sealed");
        (joiner, batch)
    });
    assert_eq!(open_requests(joined.1.expect("the last piece")), Ok(requests.clone()));
    Seen::of((11, requests.len().min(3), requests.into_iter().map(request).collect::<Vec<_>>().first()))
}

fn request(wire: ReplicaRequest) -> Result<std::mem::Discriminant<witan_kernel::replica::Ask>, &'static str> {
    let arrived = Arrived::try_from(wire).map_err(|wrong| wrong.field)?;
    let again = request_to_wire(arrived.id, arrived.request.clone(), arrived.deadline_ms);
    assert_eq!(Arrived::try_from(again).as_ref(), Ok(&arrived), "what is sent on is not what came");
    Ok(std::mem::discriminant(&arrived.request.ask))
}

fn answers(batch: Bytes) -> Seen {
    let Ok(answers) = open_answers(batch) else { return Seen(20) };
    assert!(answers.len() <= BATCH_ITEMS);
    Seen::of((21, answers.len().min(3), answers.into_iter().map(answer).collect::<Vec<_>>().first()))
}

fn answer(wire: ReplicaAnswer) -> Result<Option<String>, &'static str> {
    let (id, outcome) = answer_from_wire(wire).map_err(|wrong| wrong.field)?;
    assert_eq!(answer_from_wire(answer_to_wire(id, outcome.clone())), Ok((id, outcome.clone())));
    Ok(outcome.err().map(|error| format!("{error:?}").chars().take(8).collect()))
}

/// Frames of three bytes each, the last one shorter: whether it is marked as the last, and whether its checksum is right, say two bits.
fn pieces(bytes: &Bytes) -> Seen {
    let (mut joiner, mut whole) = (Joiner::new(), 0);
    for piece in bytes.chunks(3) {
        let (mark, payload) = (piece[0], Bytes::copy_from_slice(&piece[1..]));
        let checksum = crc32fast::hash(&payload) ^ u32::from(mark >> 1 & 1);
        let codec = 1 + u32::from(mark >> 2 & 1);
        let length = payload.len();
        match joiner.push(Frame { codec, checksum, payload, more: mark & 1 == 1 }) {
            Ok(Some(batch)) => {
                assert!(batch.len() >= length && batch.len() <= PIECE_BYTES);
                whole += 1;
            }
            Ok(None) => {}
            Err(why) => return Seen::of((2, whole.min(3), std::mem::discriminant(&why))),
        }
    }
    Seen::of((2, whole.min(3)))
}

fn scan(wire: ScanRangeRequest) -> Seen {
    let node = witan_kernel::name::NodeId::new("n1").expect("a node's id");
    match scan_from_wire(wire) {
        Err(wrong) => Seen::of((3, wrong.field)),
        Ok(scan) => {
            assert_eq!(scan_from_wire(scan_to_wire(&node, scan.clone())).as_ref(), Ok(&scan));
            Seen::of((3, scan.space.is_some(), scan.after.is_some(), scan.abridged))
        }
    }
}

fn page(wire: ScanRangeResponse) -> Seen {
    match page_from_wire(wire) {
        Err(wrong) => Seen::of((4, wrong.field)),
        Ok(page) => {
            assert_eq!(page_from_wire(page_to_wire(page.clone())).as_ref(), Ok(&page));
            Seen::of((4, page.found.len().min(3), page.next.is_some()))
        }
    }
}
