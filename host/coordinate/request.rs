//! Requests of clients, and their results.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use witan_kernel::context::{self, Claims};
use witan_kernel::hook::{AnsweredBy, Operation, PluginFault, Sibling};
use witan_kernel::name::{Key, TenantId};
use witan_kernel::tenant::Level;

/// A write or a delete.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The key.
    pub key: Key,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
    /// The level; `None`: the tenant's default.
    pub level: Option<Level>,
    /// The client's idempotency key; `None`: one is generated.
    pub idempotency_key: Option<String>,
    /// The context that the client has read; empty: none.
    pub context: Bytes,
    /// When the request arrived, in microseconds of the coordinator's monotonic clock; `None`: now.
    pub arrived: Option<u64>,
    /// How long after its arrival the client waits; `None`: the default.
    pub timeout: Option<Duration>,
}

impl WriteRequest {
    /// Write or delete.
    pub fn operation(&self) -> Operation {
        if self.value.is_some() { Operation::Write } else { Operation::Delete }
    }
}

/// A read.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The key.
    pub key: Key,
    /// The level; `None`: the tenant's default.
    pub level: Option<Level>,
    /// When the request arrived, in microseconds of the coordinator's monotonic clock; `None`: now.
    pub arrived: Option<u64>,
    /// How long after its arrival the client waits; `None`: the default.
    pub timeout: Option<Duration>,
}

/// A causal past in a form for people: (actor, counter) pairs.
pub type Rendering = Vec<(String, u64)>;

/// The result of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The idempotency key that was sent or generated.
    pub idempotency_key: String,
    /// The context to send with the next write of this key.
    pub context: Bytes,
    /// The context in a form for people.
    pub rendering: Rendering,
    /// Replicas known to have stored it when the response was sent.
    pub replicas: u8,
    /// The level that was met.
    pub level: Level,
    /// True when an earlier request with the same idempotency key carried it out.
    pub duplicate: bool,
    /// Why the consistency policy that is bound gave way to the native rule, if it did. It is not recorded: of a duplicate, `None`.
    pub policy_fault: Option<Box<PluginFault>>,
}

/// The result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAnswer {
    /// The value; empty when there are `siblings`.
    pub value: Bytes,
    /// The live values, when no resolver has decided between them.
    pub siblings: Vec<Sibling>,
    /// The context to send with the next write of this key.
    pub context: Bytes,
    /// The context in a form for people.
    pub rendering: Rendering,
    /// The plugin that decided between siblings; `None` when none has.
    pub resolved_by: Option<AnsweredBy>,
    /// Why the resolver that is bound has not decided, if it was asked and did not answer: all siblings are kept.
    pub resolver_fault: Option<Box<PluginFault>>,
    /// Why the consistency policy that is bound gave way to the native rule, if it did.
    pub policy_fault: Option<Box<PluginFault>>,
}

impl ReadAnswer {
    /// The bytes of its values, and what goes with them.
    pub fn bytes(&self) -> usize {
        let siblings: usize = self.siblings.iter().map(|sibling| sibling.value.len() + 64).sum();
        let faults: usize =
            [&self.resolver_fault, &self.policy_fault].into_iter().flatten().map(|fault| fault.bytes()).sum();
        self.value.len() + siblings + self.context.len() + faults + 128
    }
}

const WRITTEN_V1: u8 = 1;
/// Version, replicas, level, and the context, from which the rendering follows.
const WRITTEN_V2: u8 = 2;

impl Written {
    /// The bytes for the idempotency record. `small`: in the second version, if that is able to express it.
    pub(super) fn encode(&self, small: bool) -> Bytes {
        if small && rendered(&self.context).as_ref() == Some(&self.rendering) {
            let head = [WRITTEN_V2, self.replicas, self.level as u8];
            return [&head, &self.context[..]].concat().into();
        }
        let mut out = BytesMut::with_capacity(64 + self.context.len());
        out.put_u8(WRITTEN_V1);
        out.put_u8(self.replicas);
        out.put_u8(self.level as u8);
        out.put_u32(self.context.len() as u32);
        out.put_slice(&self.context);
        out.put_u32(self.rendering.len() as u32);
        for (actor, counter) in &self.rendering {
            out.put_u16(actor.len() as u16);
            out.put_slice(actor.as_bytes());
            out.put_u64(*counter);
        }
        out.freeze()
    }

    /// Reads the bytes of [`Written::encode`], as a duplicate; `None` when they are damaged.
    pub(super) fn decode(mut bytes: Bytes, idempotency_key: String) -> Option<Self> {
        let version = bytes.try_get_u8().ok()?;
        if version != WRITTEN_V1 && version != WRITTEN_V2 {
            return None;
        }
        let replicas = bytes.try_get_u8().ok()?;
        let level = match bytes.try_get_u8().ok()? {
            0 => Level::One,
            1 => Level::Quorum,
            2 => Level::All,
            _ => return None,
        };
        if version == WRITTEN_V2 {
            let rendering = rendered(&bytes)?;
            return Some(Self::recorded(idempotency_key, bytes, rendering, replicas, level));
        }
        let length = bytes.try_get_u32().ok()? as usize;
        let context = (bytes.len() >= length).then(|| bytes.split_to(length))?;
        let mut rendering = Rendering::new();
        for _ in 0..bytes.try_get_u32().ok()? {
            let length = usize::from(bytes.try_get_u16().ok()?);
            let actor = (bytes.len() >= length).then(|| bytes.split_to(length))?;
            rendering.push((String::from_utf8(actor.to_vec()).ok()?, bytes.try_get_u64().ok()?));
        }
        Some(Self::recorded(idempotency_key, context, rendering, replicas, level))
    }

    fn recorded(idempotency_key: String, context: Bytes, rendering: Rendering, replicas: u8, level: Level) -> Self {
        Self { idempotency_key, context, rendering, replicas, level, duplicate: true, policy_fault: None }
    }
}

/// The rendering of a context, if it can be read.
fn rendered(context: &[u8]) -> Option<Rendering> {
    context::shown(context).map(|claims| render(&claims))
}

/// Renders claims for people. A register's only actor is called "register".
pub(super) fn render(claims: &Claims) -> Rendering {
    match claims {
        Claims::Nothing => Vec::new(),
        Claims::Register { stamp } => vec![("register".to_owned(), stamp.0)],
        Claims::Siblings { seen, .. } => seen
            .entries
            .iter()
            .map(|(actor, counter)| (format!("{}/{:x}", &actor.store.to_string()[..8], actor.birth), *counter))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::context::{ContextKeys, Issue};
    use witan_kernel::name::{Era, StoreId, WriteId};
    use witan_kernel::register::Stamp;
    use witan_kernel::siblings::{Actor, Dot, VersionVector};

    use super::*;

    #[test]
    fn a_recorded_response_comes_back_as_a_duplicate() {
        let written = Written {
            idempotency_key: "k".into(),
            context: Bytes::from_static(b"context"),
            rendering: vec![("a/1".into(), 7), ("b/2".into(), u64::MAX)],
            replicas: 2,
            level: Level::Quorum,
            duplicate: false,
            policy_fault: None,
        };
        let encoded = written.encode(false);
        assert_eq!(written.encode(true), encoded, "its rendering does not follow from its context");
        let decoded = Written::decode(encoded.clone(), "k".into());
        assert_eq!(decoded, Some(Written { duplicate: true, ..written }));
        for end in 0..encoded.len() {
            assert_eq!(Written::decode(encoded.slice(..end), "k".into()), None, "cut at {end}");
        }
    }

    /// The idempotency store's test of how much memory a record takes assumes these lengths.
    #[test]
    fn a_small_response_comes_back_as_well() {
        let keys = ContextKeys::new(Era::default(), &[(1, [7; 32])]).expect("a key");
        let (tenant, key) = (TenantId::new("t").expect("valid"), Key::new("k").expect("valid"));
        let now = 1_800_000_000_000_000;
        let mut seen = VersionVector::default();
        seen.advance(&Dot { actor: Actor { store: StoreId([9; 16]), birth: 1 << 63 }, counter: 1 });
        let siblings = Claims::Siblings { seen, ids: vec![WriteId([7; 16])], newest: now };
        for (claims, first, second) in [(Claims::Register { stamp: Stamp(now) }, 56, 30), (siblings, 119, 76)] {
            let written = Written {
                idempotency_key: "k".into(),
                context: keys.seal(&tenant, &key, &claims, Issue::Second),
                rendering: render(&claims),
                replicas: 2,
                level: Level::All,
                duplicate: false,
                policy_fault: None,
            };
            let (large, small) = (written.encode(false), written.encode(true));
            assert_eq!((large.len(), small.len()), (first, second));
            for encoded in [&large, &small] {
                let decoded = Written::decode(encoded.clone(), "k".into());
                assert_eq!(decoded, Some(Written { duplicate: true, ..written.clone() }));
            }
            assert_eq!(&small[..3], [2, 2, 2]);
            for end in 0..small.len() {
                // A context may be empty.
                assert!(end == 3 || Written::decode(small.slice(..end), "k".into()).is_none(), "cut at {end}");
            }
            assert_eq!(Written::decode([&[3], &small[1..]].concat().into(), "k".into()), None);
        }
    }
}
