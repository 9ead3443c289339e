//! Weighs a message before it is decoded: one pass over its tags computes how much memory it will take, and a message that would take
//! too much is refused while nothing has been allocated for it.
//!
//! An empty item of a repeated field takes two bytes on the wire and several hundred in memory. Limits on the bytes of a message, such as
//! those of the servers and of the coordinator's intake, therefore do not bound memory. Together with [`ALLOWANCE`] and [`MULTIPLE`] they
//! do: once it is decoded, a message takes at most that multiple of the bytes that were admitted for it, and the allowance. No message
//! that a peer of this version sends comes near either.
//!
//! The pass reads with the functions of the decoder that follows it, and in the same order, so that both agree on what a message
//! contains. Where it finds damage, it stops: the decoder fails at the same place, with an error of its own, and has then allocated no
//! more than was weighed until there.

use std::any::Any;

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

use crate::v1;

/// Most operations in one batch of a session: four times as many as a session executes at a time; a larger batch would only wait longer.
pub const SESSION_REQUESTS: usize = 8192;

/// Bytes that any message may take in memory. A full batch of the smallest operations of a session weighs 4.3 MiB, of which its bytes on
/// the wire allow the rest. A page of 1,000 small entries of a list weighs up to 1 MiB.
pub const ALLOWANCE: usize = 4 << 20;

/// Bytes that a message may take in memory for each of its bytes on the wire, beyond [`ALLOWANCE`]. Lists without pages need it: a node or
/// a binding weighs five to seven bytes for each on the wire, and so do the version vectors in a batch of writes. With it, 16 MiB take at
/// most 132 MiB.
pub const MULTIPLE: usize = 8;

/// Bytes for what is shared by all fields: the count of references to the received buffer, and an error.
const BASE: usize = 256;

/// Most repeated fields in one message; the table is generated, and a compile-time check compares it with this.
const SLOTS: usize = 4;

/// What a message takes in memory, derived from its descriptor.
#[derive(Debug)]
pub struct Shape {
    name: &'static str,
    /// Size of the struct, in bytes.
    size: usize,
    /// Number of repeated fields.
    slots: usize,
    /// By field number.
    fields: &'static [Option<Field>],
}

#[derive(Debug, Clone, Copy)]
struct Field {
    content: Content,
    many: Option<Many>,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    Number(WireType),
    Text,
    Blob,
    Message(&'static Shape),
    /// A message on the heap.
    Boxed(&'static Shape),
}

/// A repeated field.
#[derive(Debug, Clone, Copy)]
struct Many {
    /// The message that it is a field of.
    message: &'static str,
    name: &'static str,
    /// Size of an item, in bytes, without what it allocates itself.
    size: usize,
    /// Which of the message's repeated fields this is.
    slot: usize,
    most: usize,
}

/// Bytes charged for an item of a vector, of which `count` have come. The first makes room for four, or for eight of one byte. After that
/// the room doubles, and while items are moved the old room and the new one both exist: three times the items, at most.
fn room(size: usize, count: usize) -> usize {
    match (count, size) {
        (1, 1) => 8,
        (1, _) => 4 * size,
        _ => 3 * size,
    }
}

/// A message of this package.
pub trait Weighed: Message + Default + 'static {
    /// What it takes in memory.
    const SHAPE: &'static Shape;
}

/// A message of any type, for tests.
pub type Decoded = Result<Box<dyn Any>, DecodeError>;

/// A message of this package, for tests that go through all of them.
pub struct MessageType {
    /// What it takes in memory.
    pub shape: &'static Shape,
    /// Decodes it without weighing it.
    pub decode: fn(Bytes) -> Decoded,
    /// Decodes it from a buffer that cannot be shared, without weighing it.
    pub decode_copied: fn(&[u8]) -> Decoded,
}

impl MessageType {
    const fn of<M: Weighed>() -> Self {
        assert!(M::SHAPE.slots <= SLOTS, "a message has more repeated fields than are counted");
        Self {
            shape: M::SHAPE,
            decode: |wire| Ok(Box::new(M::decode(wire)?)),
            decode_copied: |wire| Ok(Box::new(M::decode(wire)?)),
        }
    }
}

mod generated {
    #![allow(non_upper_case_globals)]

    use super::{Bytes, Content, Field, Many, MessageType, Shape, Weighed, WireType, v1};

    include!(concat!(env!("OUT_DIR"), "/shapes.rs"));
}

pub use generated::{DEEPEST, MESSAGES};

/// Why a message is not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It would take too much memory.
    #[error(
        "a {message} of {wire} bytes would take more than {budget} bytes of memory, which is {ALLOWANCE} and {MULTIPLE} for each of its \
         bytes; send fewer items in one message"
    )]
    TooHeavy {
        /// Name of the message.
        message: &'static str,
        /// Its bytes on the wire.
        wire: usize,
        /// The bytes that it may take in memory.
        budget: usize,
    },
    /// A repeated field has too many items.
    #[error("more than {most} {field} in one {message}; send at most {most} in each")]
    TooMany {
        /// Name of the message.
        message: &'static str,
        /// Name of the repeated field.
        field: &'static str,
        /// The most items that it may have.
        most: usize,
    },
    /// Groups of unknown fields are nested in each other.
    #[error(
        "a {message} is nested in more than {DEEPEST} levels, which no message of this API is; remove the unknown groups"
    )]
    TooDeep {
        /// Name of the message.
        message: &'static str,
    },
}

/// Why a message could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// It was not tried.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is not valid protobuf.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// The decoder has accepted what could not be weighed to its end, so that the weight is not known.
    #[error("the message could not be weighed")]
    Unweighed,
}

impl Shape {
    /// The name of the message, without its package.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes that a message of `wire` bytes may take in memory.
    pub fn budget(wire: usize) -> usize {
        ALLOWANCE.saturating_add(wire.saturating_mul(MULTIPLE))
    }

    /// An upper bound on the bytes that the decoded message takes in memory, and on those that the decoder allocates at any moment. `None`
    /// if it is not valid protobuf, which the decoder will say, too; but not all that is invalid is noticed here.
    ///
    /// # Errors
    /// When the bound is above [`Shape::budget`], an explicit bound on items is exceeded, or groups are nested too deep.
    pub fn weigh(&'static self, wire: &[u8]) -> Result<Option<usize>, Refused> {
        self.weigh_within(wire, Self::budget(wire.len()))
    }

    /// The same with another budget, in bytes.
    ///
    /// # Errors
    /// As [`Shape::weigh`].
    pub fn weigh_within(&'static self, wire: &[u8], budget: usize) -> Result<Option<usize>, Refused> {
        let mut pass = Pass { rest: wire, charged: 0, budget };
        match pass.charge(BASE + self.size).and_then(|()| pass.message(self, 0, 1)) {
            Ok(()) => Ok(Some(pass.charged)),
            Err(Stop::Malformed) => Ok(None),
            Err(Stop::TooHeavy) => Err(Refused::TooHeavy { message: self.name, wire: wire.len(), budget }),
            Err(Stop::TooDeep) => Err(Refused::TooDeep { message: self.name }),
            Err(Stop::TooMany(Many { message, name: field, most, .. })) => {
                Err(Refused::TooMany { message, field, most: *most })
            }
        }
    }
}

/// Weighs a message, and then decodes it. Values of type `bytes` are slices of `wire`, not copies.
///
/// # Errors
/// When it is refused or not valid protobuf.
pub fn decode<M: Weighed>(wire: Bytes) -> Result<M, Undecodable> {
    let weight = M::SHAPE.weigh(&wire)?;
    let message = M::decode(wire)?;
    weight.map(|_| message).ok_or(Undecodable::Unweighed)
}

/// Why a pass ended early.
enum Stop {
    Malformed,
    TooHeavy,
    TooDeep,
    /// Of this field: a reference, so that results fit into registers.
    TooMany(&'static Many),
}

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// The pass over one message. As in the decoder, a length is compared with everything that is left of the buffer, and only at its end an
/// inner message with the one around it: a pass that compared earlier would stop weighing where the decoder still decodes.
struct Pass<'a> {
    rest: &'a [u8],
    charged: usize,
    budget: usize,
}

impl Pass<'_> {
    /// Weighs the fields of a message that ends when `end` bytes are left.
    fn message(&mut self, shape: &'static Shape, end: usize, level: u32) -> Result<(), Stop> {
        let mut counts = [0; SLOTS];
        while self.rest.len() > end {
            let (number, wire_type) = decode_key(&mut self.rest)?;
            let Some(Field { content, many }) = shape.fields.get(number as usize).and_then(Option::as_ref) else {
                self.unknown(number, wire_type, level)?;
                continue;
            };
            if let Some(many) = many {
                if let Content::Number(of) = *content
                    && wire_type == WireType::LengthDelimited
                {
                    self.packed(many, &mut counts, number, of)?;
                    continue;
                }
                self.item(many, &mut counts)?;
            }
            self.content(*content, number, wire_type, level)?;
        }
        if self.rest.len() == end { Ok(()) } else { Err(Stop::Malformed) }
    }

    fn content(&mut self, content: Content, number: u32, wire_type: WireType, level: u32) -> Result<(), Stop> {
        if let Content::Number(of) = content {
            return if wire_type == of { self.skip(number, wire_type) } else { Err(Stop::Malformed) };
        }
        if wire_type != WireType::LengthDelimited {
            return Err(Stop::Malformed);
        }
        let length = self.length()?;
        match content {
            // A text that comes again reuses its room, or replaces it by twice as much; the least is eight bytes.
            Content::Text => {
                self.rest.advance(length);
                self.charge(2 * length + 8)
            }
            // As if it were a copy. A slice allocates nothing, but keeps the received message in memory.
            Content::Blob => {
                self.rest.advance(length);
                self.charge(length)
            }
            Content::Message(inner) => self.message(inner, self.rest.len() - length, level + 1),
            // As if one that comes again had room of its own.
            Content::Boxed(inner) => {
                self.charge(inner.size)?;
                self.message(inner, self.rest.len() - length, level + 1)
            }
            Content::Number(_) => Ok(()),
        }
    }

    fn packed(
        &mut self,
        many: &'static Many,
        counts: &mut [usize; SLOTS],
        number: u32,
        of: WireType,
    ) -> Result<(), Stop> {
        let length = self.length()?;
        let end = self.rest.len() - length;
        while self.rest.len() > end {
            self.item(many, counts)?;
            self.skip(number, of)?;
        }
        if self.rest.len() == end { Ok(()) } else { Err(Stop::Malformed) }
    }

    fn item(&mut self, many: &'static Many, counts: &mut [usize; SLOTS]) -> Result<(), Stop> {
        counts[many.slot] += 1;
        if counts[many.slot] > many.most {
            return Err(Stop::TooMany(many));
        }
        self.charge(room(many.size, counts[many.slot]))
    }

    fn length(&mut self) -> Result<usize, Stop> {
        let length = usize::try_from(decode_varint(&mut self.rest)?).map_err(|_| Stop::Malformed)?;
        if length <= self.rest.len() { Ok(length) } else { Err(Stop::Malformed) }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Stop> {
        self.charged += bytes;
        if self.charged <= self.budget { Ok(()) } else { Err(Stop::TooHeavy) }
    }

    fn skip(&mut self, number: u32, wire_type: WireType) -> Result<(), Stop> {
        Ok(skip_field(wire_type, number, &mut self.rest, DecodeContext::default())?)
    }

    /// A field of a later version takes no memory. Only groups can be nested in it as far as the decoder looks.
    fn unknown(&mut self, number: u32, wire_type: WireType, level: u32) -> Result<(), Stop> {
        if wire_type != WireType::StartGroup {
            return self.skip(number, wire_type);
        }
        if level >= DEEPEST {
            return Err(Stop::TooDeep);
        }
        loop {
            let (inner, inner_type) = decode_key(&mut self.rest)?;
            if inner_type == WireType::EndGroup {
                return if inner == number { Ok(()) } else { Err(Stop::Malformed) };
            }
            self.unknown(inner, inner_type, level + 1)?;
        }
    }
}

#[cfg(test)]
mod tests;
