//! A store's identity: its id, how often it was opened, and what it knows of its place among the stores of its node.

use bytes::Bytes;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::Randomness;

use super::OpenError;
use crate::engine::Engine;

/// The name of the engine's note that holds the identity.
pub(super) const IDENTITY: &str = "identity";
/// The name of the engine's note that holds the id of the node whose store this is. Folders of before get it when they are next opened, and
/// programs of before do not look at it.
pub(super) const NODE: &str = "node";
/// The first version of the identity's encoding. There are eight, one for each combination of what is [noted](Noted): programs of before
/// refuse to open a store of which they would ignore what is noted.
const CODEC: u8 = 1;

/// What the identity on disk says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// False if the metadata has another store on record: a program of before would serve every coordinator, also one that counts what the
    /// store acknowledges.
    pub(super) on_record: bool,
    /// There are fences.
    pub(super) fenced: bool,
    /// The collection of tombstones has begun: a program of before would store what is of any age.
    pub(super) aged: bool,
}

impl Noted {
    /// What a new store notes.
    pub(super) const NOTHING: Self = Self { on_record: true, fenced: false, aged: false };

    /// The version of the identity's encoding that says so.
    fn codec(self) -> u8 {
        CODEC + u8::from(!self.on_record) + 2 * u8::from(self.fenced) + 4 * u8::from(self.aged)
    }

    fn of(codec: u8) -> Option<Self> {
        let bits = codec.checked_sub(CODEC).filter(|bits| *bits < 8)?;
        Some(Self { on_record: bits & 1 == 0, fenced: bits & 2 != 0, aged: bits & 4 != 0 })
    }
}

/// What a store knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: StoreId,
    /// How many times it was opened.
    pub(super) boot: u64,
    pub(super) noted: Noted,
}

impl Identity {
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = vec![self.noted.codec()];
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.boot.to_le_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Bytes::from(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        let whole: &[u8; 29] = bytes.try_into().map_err(|_| OpenError::Identity("it does not have 29 bytes"))?;
        let (content, checksum) = whole.split_at(25);
        let noted = Noted::of(content[0]).ok_or(OpenError::Identity("it has an unknown codec version"))?;
        if crc32fast::hash(content).to_le_bytes() != checksum {
            return Err(OpenError::Identity("its checksum does not match"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&content[1..17]);
        let mut boot = [0; 8];
        boot.copy_from_slice(&content[17..]);
        Ok(Self { id: StoreId(id), boot: u64::from_le_bytes(boot), noted })
    }
}

/// Checks that this is the store of `node`, and notes it if nobody has yet.
pub(super) fn belongs_to(engine: &dyn Engine, node: &NodeId) -> Result<(), OpenError> {
    match engine.note(NODE)? {
        Some(noted) if noted == node.as_str().as_bytes() => Ok(()),
        Some(noted) => {
            Err(OpenError::OfAnotherNode { theirs: String::from_utf8_lossy(&noted).into_owned(), ours: node.clone() })
        }
        None => Ok(engine.set_note(NODE, Bytes::copy_from_slice(node.as_str().as_bytes()))?),
    }
}

pub(super) fn draw_id(node: &NodeId, randomness: &dyn Randomness) -> StoreId {
    if Fault::ActorReusedAfterWipe.is_on() {
        let mut id = [0; 16];
        id.iter_mut().zip(node.as_str().bytes()).for_each(|(id, byte)| *id = byte);
        return StoreId(id);
    }
    StoreId(randomness.sixteen())
}
