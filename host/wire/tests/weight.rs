//! Every message of the package, as random bytes that are valid for it: what decoding it really allocates is never more than what it
//! was weighed as.

// A global allocator cannot be written without.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use witan_wire::v1::{FILE_DESCRIPTOR_SET, SessionRequestBatch};
use witan_wire::weigh::{self, DEEPEST, MESSAGES, MessageType, Refused};

/// Counts the bytes that the current thread has allocated and not freed. The default `realloc` allocates, copies and frees, so that the
/// old room and the new one both count, as with an allocator that cannot grow in place.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees memory after its counters are gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the memory is from `alloc`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were allocated at any moment of `work`, beyond those before it.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = black_box(work());
    (result, usize::try_from(PEAK.get() - before).expect("a peak is not below its beginning"))
}

/// Random numbers from a seed (splitmix64), so that a failing case is one number.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }
}

type Messages = HashMap<String, DescriptorProto>;

/// Every message of the package, by its full name.
static ALL: LazyLock<Messages> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors").file;
    let all = files.into_iter().flat_map(|file| file.message_type);
    all.map(|message| (format!(".witan.v1.{}", message.name()), message)).collect()
});

fn number(dice: &mut Dice, of: Type, wire: &mut BytesMut) -> WireType {
    match of {
        Type::Fixed32 | Type::Sfixed32 | Type::Float => {
            wire.put_u32_le(dice.next() as u32);
            WireType::ThirtyTwoBit
        }
        Type::Fixed64 | Type::Sfixed64 | Type::Double => {
            wire.put_u64_le(dice.next());
            WireType::SixtyFourBit
        }
        _ => {
            let shift = dice.below(64);
            encode_varint(dice.next() >> shift, wire);
            WireType::Varint
        }
    }
}

fn delimited(number: u32, content: &[u8], wire: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, wire);
    encode_varint(content.len() as u64, wire);
    wire.put_slice(content);
}

/// One occurrence of a field. Repeated numbers may be packed.
fn field(dice: &mut Dice, of: &FieldDescriptorProto, size: usize, wire: &mut BytesMut) {
    let tag = u32::try_from(of.number()).expect("a field number");
    match of.r#type() {
        Type::String => delimited(tag, "x".repeat(dice.below(size)).as_bytes(), wire),
        Type::Bytes => delimited(tag, &vec![7; dice.below(size)], wire),
        Type::Message => delimited(tag, &content(dice, &ALL[of.type_name()], size / 2), wire),
        kind if of.label() == Label::Repeated && dice.below(2) == 0 => {
            let mut packed = BytesMut::new();
            for _ in 0..dice.below(size) {
                number(dice, kind, &mut packed);
            }
            delimited(tag, &packed, wire);
        }
        kind => {
            let mut value = BytesMut::new();
            let wire_type = number(dice, kind, &mut value);
            encode_key(tag, wire_type, wire);
            wire.put_slice(&value);
        }
    }
}

/// Fields that no message has: of each wire type, and a group.
fn unknown(dice: &mut Dice, wire: &mut BytesMut) {
    let tag = 1000 + u32::try_from(dice.below(3)).expect("small");
    match dice.below(3) {
        0 => delimited(tag, &vec![7; dice.below(40)], wire),
        1 => {
            encode_key(tag, WireType::SixtyFourBit, wire);
            wire.put_u64_le(dice.next());
        }
        _ => {
            encode_key(tag, WireType::StartGroup, wire);
            encode_key(1, WireType::Varint, wire);
            encode_varint(dice.next(), wire);
            encode_key(tag, WireType::EndGroup, wire);
        }
    }
}

/// Valid bytes of a message: its fields in any order and number, also those that are to come once. One field often comes many times in a
/// row, and the bytes are often those of an empty message.
fn content(dice: &mut Dice, message: &DescriptorProto, size: usize) -> BytesMut {
    let mut wire = BytesMut::new();
    for _ in 0..dice.below(size.min(12)) {
        if message.field.is_empty() || dice.below(20) == 0 {
            unknown(dice, &mut wire);
            continue;
        }
        let of = &message.field[dice.below(message.field.len())];
        let times = if dice.below(4) == 0 { 1 + dice.below(size) } else { 1 };
        for _ in 0..times {
            let size = if times > 1 && dice.below(3) > 0 { 1 } else { size };
            field(dice, of, size, &mut wire);
        }
    }
    wire
}

fn bytes_of(of: &MessageType, seed: u64, size: usize) -> BytesMut {
    content(&mut Dice(seed), &ALL[&format!(".witan.v1.{}", of.shape.name())], size)
}

/// Both ways of decoding, from a buffer that is sliced and from one that is copied, stay below the weight.
fn check(of: &MessageType, wire: Bytes) -> Result<(), proptest::test_runner::TestCaseError> {
    let (weighed, allocated) = peak(|| of.shape.weigh_within(&wire, usize::MAX));
    if let Err(Refused::TooMany { .. } | Refused::TooDeep { .. }) = weighed {
        return Ok(());
    }
    let weight = weighed.expect("no other bound").expect("valid bytes");
    prop_assert_eq!(allocated, 0, "weighing allocates");
    let (copied, allocated) = peak(|| (of.decode_copied)(&wire));
    prop_assert!(copied.is_ok(), "{copied:?}");
    prop_assert!(allocated <= weight, "{}: {allocated} bytes copied, {weight} charged", of.shape.name());
    let (sliced, allocated) = peak(|| (of.decode)(wire));
    prop_assert!(sliced.is_ok(), "{sliced:?}");
    prop_assert!(allocated <= weight, "{}: {allocated} bytes sliced, {weight} charged", of.shape.name());
    Ok(())
}

proptest! {
    #[test]
    fn no_message_takes_more_memory_than_it_was_weighed_as(seed in any::<u64>(), size in 2_usize..60) {
        prop_assert_eq!(ALL.len(), MESSAGES.len());
        for of in MESSAGES {
            check(of, bytes_of(of, seed, size).freeze())?;
        }
    }

    /// Bytes that are almost those of a message: whatever the decoder allocates before it finds the damage was weighed, too, and it
    /// accepts nothing that could not be weighed.
    #[test]
    fn damaged_messages_are_weighed_as_far_as_they_are_decoded(
        seed in any::<u64>(),
        size in 2_usize..60,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
    ) {
        for of in MESSAGES {
            let mut wire = bytes_of(of, seed, size);
            if !wire.is_empty() {
                for (at, with) in &damage {
                    let at = at.index(wire.len());
                    wire[at] = *with;
                }
                wire.truncate(wire.len() - cut.index(wire.len()) / 4);
            }
            hostile(of, wire.freeze())?;
        }
    }

    #[test]
    fn bytes_without_meaning_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for of in MESSAGES {
            hostile(of, Bytes::from(bytes.clone()))?;
        }
    }
}

fn hostile(of: &MessageType, wire: Bytes) -> Result<(), proptest::test_runner::TestCaseError> {
    let Ok(weighed) = of.shape.weigh_within(&wire, usize::MAX) else { return Ok(()) };
    let (decoded, allocated) = peak(|| (of.decode_copied)(&wire));
    prop_assert!(weighed.is_some() || decoded.is_err(), "{} is decoded and was not weighed", of.shape.name());
    if let Some(weight) = weighed {
        prop_assert!(allocated <= weight, "{}: {allocated} bytes, {weight} charged", of.shape.name());
    } else if let Some(least) = allocated.checked_sub(1) {
        // The pass that stops at the damage has charged at least what was allocated: it does not come that far with less.
        let less = of.shape.weigh_within(&wire, least);
        prop_assert!(matches!(less, Err(Refused::TooHeavy { .. })), "{}: {allocated} bytes, {less:?}", of.shape.name());
    }
    Ok(())
}

#[test]
fn sixteen_mebibytes_of_empty_requests_take_nothing() {
    let batch = MESSAGES.iter().find(|of| of.shape.name() == "SessionRequestBatch").expect("sessions");
    let wire = Bytes::from([0x0a, 0].repeat(8 << 20));
    let sent = wire.clone();
    let (refused, allocated) = peak(|| weigh::decode::<SessionRequestBatch>(sent));
    let refused = refused.expect_err("too many").to_string();
    assert_eq!(refused, "more than 8192 requests in one SessionRequestBatch; send at most 8192 in each");
    assert_eq!(allocated, 0);
    // What the same bytes took before: the reason for all this.
    let (decoded, allocated) = peak(|| (batch.decode)(wire.slice(..1 << 20)));
    assert!(decoded.is_ok() && allocated > 100 << 20, "{allocated} bytes for a MiB");
}

#[test]
fn a_message_with_too_much_of_anything_is_refused() {
    let mut refused = 0;
    for of in MESSAGES {
        for number in 1..32 {
            let mut item = BytesMut::new();
            encode_key(number, WireType::LengthDelimited, &mut item);
            encode_varint(0, &mut item);
            let wire = Bytes::from(item.repeat((512 << 10) / item.len()));
            let (weighed, allocated) = peak(|| of.shape.weigh(&wire));
            assert_eq!(allocated, 0);
            match weighed {
                // Not repeated, or a packed row of no numbers: an empty text is the most.
                Ok(Some(weight)) => assert!(weight <= (2 << 20) + 1024, "{}.{number}: {weight}", of.shape.name()),
                // A number.
                Ok(None) => {}
                Err(Refused::TooHeavy { .. } | Refused::TooMany { .. }) => refused += 1,
                Err(too_deep) => panic!("{}.{number}: {too_deep}", of.shape.name()),
            }
        }
    }
    let repeated = ALL.values().flat_map(|message| &message.field).filter(|field| field.label() == Label::Repeated);
    let not_packed = repeated.filter(|field| matches!(field.r#type(), Type::Message | Type::String | Type::Bytes));
    // A message that is kept on the heap is counted each time it comes.
    let boxed = 1;
    assert_eq!(refused, not_packed.count() + boxed);
}

#[test]
fn groups_nest_no_deeper_than_messages() {
    let nested = |levels: u32| {
        let mut wire = BytesMut::new();
        (0..levels).for_each(|_| encode_key(1000, WireType::StartGroup, &mut wire));
        (0..levels).for_each(|_| encode_key(1000, WireType::EndGroup, &mut wire));
        wire
    };
    for of in MESSAGES {
        assert!(of.shape.weigh(&nested(DEEPEST - 1)).is_ok());
        assert_eq!(of.shape.weigh(&nested(DEEPEST)), Err(Refused::TooDeep { message: of.shape.name() }));
        // As many as make a decoder without a limit overflow its stack.
        assert!(of.shape.weigh(&nested(1_000_000)).is_err());
    }
}
