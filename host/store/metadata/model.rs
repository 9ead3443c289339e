//! What is kept, as the port shows it.

use std::fmt;

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::StorageNode;

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The newest revision: ask with it the next time.
    pub revision: u64,
    /// False when not all changes since are remembered (or the store was set back to an earlier state): read everything anew.
    pub complete: bool,
    /// What has changed since, each once, in the order of its last change. Empty unless complete. Read it, then it is as new
    /// as `revision` or newer.
    pub changed: Vec<Changed>,
}

/// Something that coordinators follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Changed {
    /// This tenant.
    Tenant(TenantId),
    /// The storage nodes.
    Nodes,
    /// The cluster's secrets.
    Secrets,
    /// The plugin artifacts.
    Artifacts,
    /// This slot's binding.
    Binding(Slot),
    /// The API tokens.
    Tokens,
    /// Who coordinates: a lease was granted or released. (One that runs out changes nothing in the store.)
    Coordinators,
}

const TENANT: &str = "tenant";
const NODES: &str = "nodes";
const SECRETS: &str = "secrets";
const ARTIFACTS: &str = "artifacts";
const BINDING: &str = "binding";
const TOKENS: &str = "tokens";
const COORDINATORS: &str = "coordinators";

impl Changed {
    /// As it is stored: topic and subject.
    pub(super) fn store(&self) -> (&'static str, String) {
        match self {
            Self::Tenant(id) => (TENANT, id.as_str().to_owned()),
            Self::Nodes => (NODES, String::new()),
            Self::Secrets => (SECRETS, String::new()),
            Self::Artifacts => (ARTIFACTS, String::new()),
            // Neither a hook nor a tenant's id has a ':'.
            Self::Binding(slot) => (BINDING, format!("{}:{}", slot.hook, slot.tenant_text())),
            Self::Tokens => (TOKENS, String::new()),
            Self::Coordinators => (COORDINATORS, String::new()),
        }
    }

    /// Reads what [`Self::store`] has written. `None`: a topic of a newer version of this program, or damage.
    pub(super) fn read(topic: &str, subject: &str) -> Option<Self> {
        Some(match topic {
            TENANT => Self::Tenant(TenantId::new(subject).ok()?),
            NODES => Self::Nodes,
            SECRETS => Self::Secrets,
            ARTIFACTS => Self::Artifacts,
            BINDING => {
                let (hook, tenant) = subject.split_once(':')?;
                Self::Binding(Slot::read(tenant, hook)?)
            }
            TOKENS => Self::Tokens,
            COORDINATORS => Self::Coordinators,
            _ => return None,
        })
    }
}

/// A storage node and what the store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOnRecord {
    /// The node.
    pub node: StorageNode,
    /// The store id that it told first; `None` before its first handshake.
    pub store_id: Option<StoreId>,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// Unix time, milliseconds.
    pub updated_at_ms: u64,
}

/// Who wants to coordinate, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The id that it wants to have to itself.
    pub node_id: NodeId,
    /// Drawn by each process at its start, at random.
    pub instance: [u8; 16],
    /// Where it is reached, for people and peers: 1..=300 bytes.
    pub address: String,
    /// The program's version: 1..=64 bytes.
    pub version: String,
}

/// Where keys may be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Grows whenever which nodes there are, where, or with how many virtual nodes, changes.
    pub epoch: u64,
    /// Every storage node, by id.
    pub nodes: Vec<NodeOnRecord>,
}

/// The right to coordinate under a node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Grows with every lease that is granted in the cluster, and stays while one is renewed in time: whoever sees another one
    /// than at the last renewal has lost its lease in between.
    pub fence: u64,
    /// Until when, by the store's clock: Unix time, milliseconds.
    pub until_ms: u64,
    /// The store's clock at the grant: Unix time, milliseconds.
    pub now_ms: u64,
}

/// A coordinator, live or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorOnRecord {
    /// Who it is and where.
    pub claim: Claim,
    /// The fence of its lease.
    pub fence: u64,
    /// When the lease was granted, by the store's clock: Unix time, milliseconds.
    pub granted_at_ms: u64,
    /// Until when it holds, or held, by the store's clock: Unix time, milliseconds.
    pub until_ms: u64,
    /// How much of the lease was left when this was read, in milliseconds; 0 for one that is not live.
    pub left_ms: u64,
}

impl CoordinatorOnRecord {
    /// True while nobody else can have its node id.
    pub fn is_live(&self) -> bool {
        self.left_ms > 0
    }
}

/// An artifact's identity: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A plugin's component.
#[derive(Clone, PartialEq, Eq)]
pub struct Artifact {
    /// What is known of it; `size` is that of the bytes.
    pub entry: ArtifactEntry,
    /// The component, 1 byte to 32 MiB.
    pub bytes: Bytes,
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// An artifact without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactEntry {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// What its manifest calls it, 1..=128 bytes.
    pub name: String,
    /// Its manifest's version, 1..=64 bytes.
    pub version: String,
    /// Where it decides.
    pub hook: Hook,
    /// Whether equal questions always get equal answers, as it says.
    pub deterministic: bool,
    /// The file of a watched folder that it came from first, 1..=255 bytes; `None` for an upload.
    pub source: Option<String>,
    /// How many bytes it has.
    pub size: u64,
    /// When it came in first: Unix time, milliseconds.
    pub created_at_ms: u64,
}

/// Where a plugin is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot {
    /// For one tenant; `None` is the default for all.
    pub tenant: Option<TenantId>,
    /// Where it decides.
    pub hook: Hook,
}

impl Slot {
    /// The tenant as it is stored: '' for the default.
    pub(super) fn tenant_text(&self) -> &str {
        self.tenant.as_ref().map_or("", TenantId::as_str)
    }

    /// Reads it as it is stored.
    pub(super) fn read(tenant: &str, hook: &str) -> Option<Self> {
        let tenant = if tenant.is_empty() { None } else { Some(TenantId::new(tenant).ok()?) };
        Some(Self { tenant, hook: Hook::parse(hook)? })
    }
}

/// A slot's binding, as the plugin platform has stored it. May hold a secret of the tenant's, and is not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct BindingOnRecord {
    /// Where.
    pub slot: Slot,
    /// Greater with every change; never 0.
    pub version: u64,
    /// The platform's own text.
    pub record: String,
}

impl fmt::Debug for BindingOnRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindingOnRecord")
            .field("slot", &self.slot)
            .field("version", &self.version)
            .field("record_bytes", &self.record.len())
            .finish()
    }
}

/// A credential of the API, without what would let anybody use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public part: 1..=64 of a-z, 0-9 and '-'.
    pub id: String,
    /// The hash of its secret part.
    pub hash: [u8; 32],
    /// The tenant that it is for; `None` for all.
    pub tenant: Option<TenantId>,
    /// What it allows, as bits that are the API's to define.
    pub scopes: u32,
    /// For people; at most 128 bytes.
    pub label: String,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// When it ends to be good: Unix time, milliseconds.
    pub expires_at_ms: Option<u64>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("tenant", &self.tenant)
            .field("scopes", &self.scopes)
            .field("label", &self.label)
            .field("created_at_ms", &self.created_at_ms)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

/// A key that the coordinators of a cluster share and nobody else knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// From 1 on; none is given twice.
    pub id: u32,
    /// The key.
    pub key: [u8; 32],
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}
