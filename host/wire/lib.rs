//! The wire format: the generated protobuf of `witan.v1`, its conversions to the kernel's types, and the frames of a lane.
//!
//! Incoming messages are hostile until they have been converted here: conversions name the invalid field and never panic, and
//! nothing is allocated in proportion to a size that a peer merely claims.
//!
//! 1. [`v1`][]: generated.
//! 2. [`weigh`][]: how much memory a message will take, before it is decoded.
//! 3. [`codec`][]: the codec of all clients and servers, which weighs first.
//! 4. [`replica`][]: a coordinator's requests to storage nodes, and their answers.
//! 5. [`frame`][]: batches of those, with checksums, split into pieces and joined again.
//! 6. [`range`][]: pages of the records on a node.
//! 7. [`digest`][]: digests of them.
//! 8. [`condition`][]: the condition of a node's store.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

/// Capability of a storage node: it counts the commits of its store, and reports their number.
pub const COMMITS: &str = "commits";

pub mod codec;
pub mod condition;
pub mod digest;
pub mod frame;
pub mod range;
pub mod replica;
pub mod weigh;

/// The generated messages, clients and servers of package `witan.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::doc_markdown, clippy::large_enum_variant, clippy::doc_lazy_continuation)]

    tonic::include_proto!("witan.v1");

    /// Descriptors of every file of the package and its imports, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// An invalid message from a peer. No part of it may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// The invalid field, as spelled in the proto file.
    pub field: &'static str,
    /// Why it is invalid.
    pub problem: String,
}

impl Malformed {
    /// `field` is invalid.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}
