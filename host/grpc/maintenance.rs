//! Maintenance: key listings, repair, and deletion of tenants.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Code, Status};
use witan_kernel::name::{Invalid, NodeId, TenantId, shown};
use witan_kernel::port::StoreError;
use witan_kernel::scan::{from_cursor, to_cursor};
use witan_wire::v1;
use witan_wire::v1::CoordinatorServiceRepairResponse as Progress;

use super::CoordinatorApi;
use super::guard::{arrival, denied, while_good};
use super::page_token;
use super::status::{busy, invalid, refused, report};
use super::tenants::{page_size, seconds, status};
use crate::access::caller::Caller;
use witan_control::Refused;
use witan_coordinate::{KeysRequest, Resume, World};
use witan_upkeep::{Admitted, NotBegun, Repair, Repaired, Stopped, Sweep, Swept};

/// Default rate of a repair, records per second: a small fraction of what nodes can serve.
const RECORDS_PER_SECOND: u32 = 20_000;
/// How long the removal of a tenant's records may take when the call has no deadline.
const REMOVAL: Duration = Duration::from_secs(60);
/// Progress reports queued for a slow client; when the queue is full, the repair waits.
const REPORTS: usize = 4;

/// The stream of a repair's progress reports.
pub(super) type Reports = Pin<Box<dyn Stream<Item = Result<Progress, Status>> + Send>>;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn keys(
        &self,
        caller: Caller,
        request: v1::ListKeysRequest,
        timeout: Option<Duration>,
    ) -> Result<v1::ListKeysResponse, Status> {
        let mut request = keys_request(request, timeout).map_err(|error| invalid(&error))?;
        request.arrived = Some(arrival(&self.coordinator, &caller));
        caller.may(&request.tenant).map_err(|refused| denied(&caller, &refused))?;
        let (tenant, prefix) = (request.tenant.clone(), request.prefix.clone());
        let page = self.coordinator.list_keys(request).await.map_err(|failure| report(failure.of_read()).status())?;
        let key = |listed: witan_coordinate::ListedKey| v1::KeyInfo {
            key: String::from_utf8_lossy(listed.key.bytes()).into_owned(),
            siblings: listed.siblings,
        };
        Ok(v1::ListKeysResponse {
            keys: page.keys.into_iter().map(key).collect(),
            next_page_token: page.next.map(|next| page_token::write(&tenant, &prefix, &next)).unwrap_or_default(),
        })
    }

    pub(super) async fn end_tenant(
        &self,
        caller: Caller,
        request: v1::DeleteTenantRequest,
        timeout: Option<Duration>,
    ) -> Result<v1::DeleteTenantResponse, Status> {
        let until = Instant::now() + timeout.unwrap_or(REMOVAL).saturating_sub(caller.waited());
        let (id, version) = deletion(&request).map_err(|error| invalid(&error))?;
        caller.may(&id).map_err(|refused| denied(&caller, &refused))?;
        let now_ms = self.now_ms();
        let turn = self.change(&caller, &id)?;
        let ended = self.catalog.end_tenant(turn, &id, version, now_ms, until).await.map_err(|error| status(&error))?;
        Ok(v1::DeleteTenantResponse {
            success: true,
            tenant_id: ended.tenant.id.to_string(),
            deleted_at: seconds(ended.tenant.deleted_at_ms.unwrap_or(now_ms)),
            records_removed: i64::try_from(ended.removed.records).unwrap_or(i64::MAX),
            incomplete_nodes: problems(ended.removed.incomplete),
        })
    }

    pub(super) async fn start_repair(
        &self,
        caller: Caller,
        request: v1::CoordinatorServiceRepairRequest,
    ) -> Result<Reports, Status> {
        let mut sweep = sweep(request).map_err(|error| invalid(&error))?;
        let allowed = sweep.tenant.as_ref().map_or_else(|| caller.may_all(), |tenant| caller.may(tenant));
        allowed.map_err(|refused| denied(&caller, &refused))?;
        sweep.by_administrator = !caller.is_operator();
        let repair = self.upkeep.begin_repair(sweep).await.map_err(not_begun)?;
        let (reports, reported) = mpsc::channel(REPORTS);
        tokio::spawn(report_on(repair, reports));
        // A repair whose caller loses its permission stops like one whose client has disconnected.
        Ok(while_good(caller, tokio_stream::wrappers::ReceiverStream::new(reported)))
    }
}

fn not_begun(error: NotBegun) -> Status {
    match error {
        NotBegun::Busy => refused(Code::ResourceExhausted, "OVERLOADED", error.to_string()),
        NotBegun::TenantNotFound(id) => status(&Refused::Store(StoreError::Missing(format!("tenant {id}")))),
        NotBegun::Store(error) => status(&Refused::Store(error)),
    }
}

/// Runs a repair, and sends its reports until the receiver is dropped.
async fn report_on<W: World>(repair: Repair<W>, reports: mpsc::Sender<Result<Progress, Status>>) {
    let (progressed, mut progresses) = mpsc::channel(1);
    let handed_on = repair.handed_on();
    let repairing = repair.run(progressed);
    tokio::pin!(handed_on, repairing);
    let mut is_handed_on = false;
    let ended = loop {
        tokio::select! {
            // The repair notices that its reports have no receiver any longer, and stops after the work in flight.
            () = reports.closed(), if !progresses.is_closed() => progresses.close(),
            () = &mut handed_on, if !is_handed_on => {
                is_handed_on = true;
                progresses.close();
            }
            ended = &mut repairing => break ended,
            // A report is taken from the repair once there is room for it, so that a slow client delays nothing but its repair.
            Some(swept) = next(&mut progresses, &reports) => {
                let phase = if swept.waiting { "waiting" } else { "scanning" };
                if reports.try_send(Ok(progress(swept, phase))).is_err() {
                    progresses.close();
                }
            }
        }
    };
    let last = match ended {
        Ok(Repaired { swept, restored }) => Ok(Progress {
            restored_nodes: restored.iter().map(ToString::to_string).collect(),
            complete: swept.is_complete(),
            ..progress(swept, "done")
        }),
        Err(Stopped::Failed(failure)) => Err(report(failure.of_read()).status()),
        Err(Stopped::Abandoned) if is_handed_on => Err(busy(
            "another tenant wants to repair, and this repair has had its turn: go on with the cursor of its last report, once that is done",
        )),
        Err(Stopped::Abandoned) => return tracing::info!("a repair was cancelled"),
    };
    // A client that has disconnected gets no last report; what was repaired stays repaired.
    let _ = reports.send(last).await;
}

/// The next report, once there is room for it in `reports`.
async fn next<T>(progresses: &mut mpsc::Receiver<Swept>, reports: &mpsc::Sender<T>) -> Option<Swept> {
    // Only this task sends: what is free now is free when it sends.
    drop(reports.reserve().await);
    progresses.recv().await
}

fn progress(swept: Swept, phase: &str) -> Progress {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Progress {
        phase: phase.to_owned(),
        scanned: swept.scanned,
        repaired: swept.repaired,
        bytes: swept.bytes,
        failed: swept.failed,
        skipped: swept.skipped,
        ranges_done: count(swept.ranges_done),
        ranges_total: count(swept.ranges_total),
        ranges_incomplete: count(swept.ranges_incomplete),
        token: swept.token,
        cursor: swept.after.map(|after| to_cursor(&after)).unwrap_or_default(),
        unreachable_nodes: problems(swept.missing),
        restored_nodes: Vec::new(),
        write_only_nodes: problems(swept.unfilled),
        complete: false,
        admitted_stores: swept.admitted.into_iter().map(admitted).collect(),
    }
}

fn admitted(new: Admitted) -> v1::AdmittedStore {
    v1::AdmittedStore {
        node_id: new.node.to_string(),
        store_id: new.store.0.to_vec().into(),
        replaces_store_id: new.replaces.0.to_vec().into(),
        replaced_keys: new.keys,
    }
}

fn problems(nodes: BTreeMap<NodeId, String>) -> Vec<v1::NodeProblem> {
    nodes.into_iter().map(|(node, reason)| v1::NodeProblem { node_id: node.to_string(), reason }).collect()
}

fn keys_request(request: v1::ListKeysRequest, timeout: Option<Duration>) -> Result<KeysRequest, Invalid> {
    let tenant = TenantId::new(request.tenant_id)?;
    let prefix = bytes::Bytes::from(request.prefix);
    if prefix.len() > witan_kernel::limit::KEY_BYTES {
        let remedy = format!("use at most {} bytes", witan_kernel::limit::KEY_BYTES);
        return Err(Invalid::new("prefix", format!("has {} bytes", prefix.len()), remedy));
    }
    let from = match request.page_token.as_str() {
        "" => Resume::default(),
        token => page_token::read(&tenant, &prefix, token)?,
    };
    Ok(KeysRequest { limit: page_size(request.page_size)?, tenant, prefix, from, arrived: None, timeout })
}

fn deletion(request: &v1::DeleteTenantRequest) -> Result<(TenantId, u64), Invalid> {
    let id = TenantId::new(&request.tenant_id)?;
    if request.confirm != request.tenant_id {
        let problem = format!("is {}", shown(&request.confirm));
        return Err(Invalid::new(
            "confirm",
            problem,
            "repeat tenant_id: the data of a deleted tenant cannot be restored",
        ));
    }
    let version = u64::try_from(request.version)
        .map_err(|_| Invalid::new("version", "is negative", "send the version returned by GetTenant, or 0"))?;
    Ok((id, version))
}

fn sweep(request: v1::CoordinatorServiceRepairRequest) -> Result<Sweep, Invalid> {
    let tenant = match request.tenant_id.as_str() {
        "" => None,
        id => Some(TenantId::new(id)?),
    };
    let (from, to) = (request.from_token.unwrap_or(0), request.to_token.unwrap_or(u64::MAX));
    if from > to {
        let problem = format!("{to} is before from_token, {from}");
        return Err(Invalid::new("to_token", problem, "send two ranges instead of one that wraps past the end"));
    }
    let after = match request.cursor {
        cursor if cursor.is_empty() => None,
        cursor => Some(from_cursor(&cursor).ok_or_else(|| {
            Invalid::new("cursor", "is not valid", "send the cursor of an earlier Repair response, unchanged")
        })?),
    };
    let records_per_second =
        if request.records_per_second == 0 { RECORDS_PER_SECOND } else { request.records_per_second };
    let by_digests = request.by_digests;
    let sweep = Sweep { tenant, from, to, after, records_per_second, by_digests, ..Sweep::everything() };
    if request.accept_loss && !sweep.is_everything() {
        let problem = "is set for a partial repair, or one by digests";
        let remedy = "leave out tenant_id, tokens, cursor and by_digests, or accept_loss";
        return Err(Invalid::new("accept_loss", problem, remedy));
    }
    Ok(Sweep { accept_loss: request.accept_loss, ..sweep })
}
