//! Which formats may be written that the version before cannot read.
//!
//! A program that is upgraded one process at a time, and perhaps taken back, must leave nothing behind that its version before cannot
//! read. So such a format is written only while every live coordinator names its capability, and only if no earlier version has ever
//! run on the metadata store, or an operator has said that the cluster will not go back. (Nodes name theirs in their handshakes.)

use witan_kernel::capability::OF_FOUNDERS;
use witan_kernel::name::NodeId;
use witan_kernel::port::{CoordinatorOnRecord, Metadata, StoreError};

/// Whether a format may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It may be.
    Yes,
    /// The configuration says that it is not.
    Off,
    /// An earlier version has created the metadata store, and the configuration does not say that the cluster will not go back to it.
    MayGoBack,
    /// This coordinator, of this version, does not name the capability.
    Lacking(NodeId, String),
}

impl Written {
    /// Yes, unless there is a coordinator that cannot read it.
    pub(crate) fn unless(lacking: Option<CoordinatorOnRecord>) -> Self {
        lacking.map_or(Self::Yes, |lacking| Self::Lacking(lacking.claim.node_id, lacking.claim.version))
    }

    /// True if it may be.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

/// Whether what goes with `capability` may be written. `wanted` is what the configuration says: `None` decides by who created the store.
///
/// # Errors
/// The metadata store did not answer: what was known before is still the best guess.
pub async fn written(metadata: &dyn Metadata, capability: &str, wanted: Option<bool>) -> Result<Written, StoreError> {
    match wanted {
        Some(false) => return Ok(Written::Off),
        Some(true) => {}
        None if metadata.founded_with().await?.iter().any(|named| OF_FOUNDERS.contains(&named.as_str())) => {}
        None => return Ok(Written::MayGoBack),
    }
    let coordinators = metadata.coordinators().await?;
    Ok(Written::unless(
        coordinators.into_iter().find(|coordinator| coordinator.is_live() && !coordinator.names(capability)),
    ))
}

#[cfg(test)]
mod tests {
    use witan_kernel::capability::NAMES;
    use witan_kernel::port::{Claim, LeaseStore};
    use witan_memory::MemoryMetadata;
    use witan_memory::contract::ManualClock;

    use super::*;

    #[tokio::test]
    async fn every_live_coordinator_must_be_able_to_read_it() {
        let clock = ManualClock::new();
        let metadata = MemoryMetadata::new(clock.clone());
        let verdict = async |wanted| written(&metadata, NAMES, wanted).await.unwrap();
        assert_eq!((verdict(None).await, verdict(Some(false)).await), (Written::Yes, Written::Off));
        let node = |name: &str| NodeId::new(name).unwrap();
        let claim = |name: &str, capabilities: &[&str]| Claim {
            node_id: node(name),
            instance: [1; 16],
            address: "here:1".to_owned(),
            version: "0.1.0".to_owned(),
            capabilities: capabilities.iter().map(|&named| named.to_owned()).collect(),
        };
        metadata.hold_lease(claim("new", &[NAMES]), 20_000).await.unwrap();
        assert_eq!(verdict(None).await, Written::Yes);
        metadata.hold_lease(claim("old", &["other"]), 10_000).await.unwrap();
        let lacking = Written::Lacking(node("old"), "0.1.0".to_owned());
        assert_eq!((verdict(None).await, verdict(Some(true)).await), (lacking.clone(), lacking));
        clock.pass_ms(10_000);
        assert_eq!(verdict(Some(true)).await, Written::Yes, "its lease has ended");
    }
}
