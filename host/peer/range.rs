//! Scans of the records of nodes, the removal of tenants and of ranges, and fences, on a separate connection: no client's request waits
//! behind a page.

use std::sync::Mutex;
use std::time::Duration;

use tonic::{Code, Status};
use witan_kernel::digest::{Digests, Wanted};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::Replicas;
use witan_kernel::port::{Clock, StorageNode};
use witan_kernel::record::Fingerprint;
use witan_kernel::replica::{Place, ReplicaError};
use witan_kernel::scan::{Clear, Cleared, Dropped, Page, Ranges, Scan, Standing};
use witan_kernel::space::Space;
use witan_kernel::sync::lock;
use witan_wire::Malformed;
use witan_wire::digest::{digested_from_wire, digests_to_wire};
use witan_wire::range::{
    PAGE_MESSAGE_BYTES, clear_to_wire, cleared_from_wire, drop_to_wire, dropped_from_wire, fence_to_wire,
    fenced_from_wire, fingerprint_page_from_wire, fingerprints_to_wire, page_from_wire, scan_to_wire,
};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;

use super::{Connect, Lanes, Link, Node};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a page may take: it may wait five seconds for its turn on the node, and then a busy disk may be slow.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) type Client = StorageNodeServiceClient<Link>;

/// A node's connection for scans, made when it is first needed and dropped after a call over it has failed.
#[derive(Default)]
pub(super) struct ScanClient(Mutex<Option<Client>>);

impl ScanClient {
    fn kept(&self) -> Option<Client> {
        lock(&self.0).clone()
    }

    fn keep(&self, client: Option<Client>) {
        *lock(&self.0) = client;
    }

    async fn client<N: Connect>(&self, connect: &N, node: &StorageNode) -> Result<Client, ReplicaError> {
        if let Some(client) = self.kept() {
            return Ok(client);
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect.connect(node)).await;
        let Ok(Ok(link)) = connected else { return Err(ReplicaError::NotSent(node.id.clone())) };
        let client = Client::new(link).max_decoding_message_size(PAGE_MESSAGE_BYTES);
        self.keep(Some(client.clone()));
        Ok(client)
    }
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// A call to a node over its connection for scans.
    pub(super) async fn scan_call<T, F: Future<Output = Result<T, Status>>>(
        &self,
        node: &NodeId,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, ReplicaError> {
        let nodes = self.nodes.load_full();
        let known: &Node = nodes.get(node).ok_or_else(|| ReplicaError::NotSent(node.clone()))?;
        if !known.vitals.is_connected() {
            return Err(ReplicaError::NotSent(node.clone()));
        }
        let client = known.scans.client(&self.connect, &known.at).await?;
        let failed = match tokio::time::timeout(PAGE_TIMEOUT, call(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => error(node, &status),
            Err(_) => ReplicaError::Late,
        };
        // Refusals show that the connection works.
        if !matches!(failed, ReplicaError::Overloaded | ReplicaError::StaleEpoch) {
            known.scans.keep(None);
        }
        Err(failed)
    }
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Whether a node may be asked about a space: nodes of before there were generations know the first one only.
    fn knows(&self, node: &NodeId, space: Option<&Space>) -> Result<(), ReplicaError> {
        if space.is_none_or(|space| space.generation() == 0) || self.has_generations(node) {
            return Ok(());
        }
        Err(ReplicaError::Broken("its version does not know generations of rows; upgrade it".to_owned()))
    }
}

impl<C: Clock, N: Connect> Ranges for Lanes<C, N> {
    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.nodes.load().get(node).and_then(|node| node.vitals.standing())
    }

    async fn scan(&self, node: &NodeId, scan: Scan) -> Result<Page, ReplicaError> {
        self.knows(node, scan.space.as_ref())?;
        let request = scan_to_wire(node, scan);
        let page = self.scan_call(node, async |mut client: Client| client.scan_range(request).await).await?;
        page_from_wire(page.into_inner()).map_err(|error| malformed(&error))
    }

    async fn fingerprints(&self, node: &NodeId, scan: Scan) -> Result<Page<Fingerprint>, ReplicaError> {
        self.knows(node, scan.space.as_ref())?;
        let request = fingerprints_to_wire(node, scan);
        let page = self.scan_call(node, async |mut client: Client| client.scan_range(request).await).await?;
        fingerprint_page_from_wire(page.into_inner()).map_err(|error| malformed(&error))
    }

    fn has_digests(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|node| node.vitals.has_digests())
    }

    async fn digests(&self, node: &NodeId, wanted: Wanted) -> Result<Digests, ReplicaError> {
        self.knows(node, wanted.space.as_ref())?;
        let request = digests_to_wire(node, &wanted);
        let answer = self.scan_call(node, async |mut client: Client| client.digests(request).await).await?;
        digested_from_wire(answer.into_inner(), &wanted).map_err(|error| malformed(&error))
    }

    async fn stores_changed(&self) {
        self.meet_again(true).await;
    }

    async fn drop_tenant(
        &self,
        node: &NodeId,
        tenant: TenantId,
        after: Option<Place>,
    ) -> Result<Dropped, ReplicaError> {
        let request = drop_to_wire(node, &tenant, after);
        let dropped = self.scan_call(node, async |mut client: Client| client.drop_tenant(request).await).await?;
        dropped_from_wire(dropped.into_inner()).map_err(|error| malformed(&error))
    }

    async fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Result<StoreId, ReplicaError> {
        let request = fence_to_wire(node, tenant, epoch);
        let fenced = self.scan_call(node, async |mut client: Client| client.raise_fence(request).await).await?;
        if let Some(node) = self.nodes.load().get(node) {
            node.vitals.fenced(epoch);
        }
        fenced_from_wire(&fenced.into_inner()).map_err(|error| malformed(&error))
    }

    async fn clear(&self, node: &NodeId, clear: Clear) -> Result<Cleared, ReplicaError> {
        // Only the store on record holds what a placement change rests on. The node refuses, too, as soon as it knows.
        if self.standing(node).is_some_and(|standing| !standing.is_whole()) {
            return Err(ReplicaError::Incomplete(node.clone()));
        }
        self.knows(node, Some(&clear.space))?;
        let request = clear_to_wire(node, &clear);
        let answer = self.scan_call(node, async |mut client: Client| client.clear_range(request).await).await?;
        if let Some(node) = self.nodes.load().get(node) {
            node.vitals.fenced(clear.epoch);
        }
        let cleared = cleared_from_wire(&answer.into_inner()).map_err(|error| malformed(&error))?;
        cleared.ok_or(ReplicaError::Late)
    }
}

fn malformed(error: &Malformed) -> ReplicaError {
    ReplicaError::Broken(format!("the node's answer cannot be read: {error}"))
}

fn error(node: &NodeId, status: &Status) -> ReplicaError {
    match status.code() {
        Code::ResourceExhausted => ReplicaError::Overloaded,
        Code::DeadlineExceeded => ReplicaError::Late,
        Code::Aborted => ReplicaError::StaleEpoch,
        Code::Unimplemented => ReplicaError::Broken("its version cannot do this; upgrade it".to_owned()),
        Code::Unavailable | Code::Cancelled | Code::Unknown => ReplicaError::Lost(node.clone()),
        _ => ReplicaError::Broken(status.message().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_codes_of_their_own() {
        let node = NodeId::new("n1").unwrap();
        let as_heard = |status: Status| error(&node, &status);
        assert_eq!(as_heard(Status::aborted("stale")), ReplicaError::StaleEpoch);
        assert_eq!(as_heard(Status::resource_exhausted("busy")), ReplicaError::Overloaded);
        assert_eq!(as_heard(Status::unavailable("gone")), ReplicaError::Lost(node.clone()));
        // Of another node, and of one whose version does not know the call: neither promises anything.
        for status in [Status::failed_precondition("this is node n2"), Status::unimplemented("")] {
            assert!(matches!(as_heard(status), ReplicaError::Broken(_)));
        }
    }
}
