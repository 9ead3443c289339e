//! What goes over the wire: the generated protobuf of `witan.v1`, its conversions to the kernel's types, and the frames of
//! a lane.
//!
//! Whatever comes in is hostile until it has passed through here: conversions name the field that is wrong and never panic,
//! and nothing is allocated in proportion to a number that a peer merely claims.
//!
//! 1. [`v1`][]: generated.
//! 2. [`replica`][]: a coordinator's requests to storage nodes and their answers.
//! 3. [`frame`][]: batches of those, checksummed, cut into pieces and joined again.
//! 4. [`range`][]: pages of what a node has stored.

pub mod frame;
pub mod range;
pub mod replica;

/// The generated messages, clients and servers of package `witan.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::doc_markdown, clippy::large_enum_variant, clippy::doc_lazy_continuation)]

    tonic::include_proto!("witan.v1");

    /// Describes every file of the package and what they import, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// A message from outside that breaks a rule: nothing of it may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// The field, as the protocol file spells it.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Malformed {
    /// A rule broken by `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}
