//! The plugin platform as an API: the edge that knows the plugin host. It decodes, calls and encodes with the means of `grpc`.

mod candidates;
mod classes;
mod dry_run;
mod keys;
mod library;
mod logs;
mod pushes;
mod swap;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};
use witan_kernel::hook::Hook;
use witan_kernel::name::{Invalid, TenantId, shown};
use witan_plugin::event::Event;
use witan_plugin::registry::{Binding, RoutingChange};
use witan_plugin::{BindRequest, OnFault, PluginError, PluginHost, Push, Reference, TryRequest, Upload, signature};
use witan_wire::v1;
use witan_wire::v1::plugin_service_server::PluginService;

use crate::access::caller::Caller;
use crate::grpc::convert::timeout;
use crate::grpc::guard::{caller, denied, while_good};
use crate::grpc::kept::{Admit, Kept, listed, usage};
use crate::grpc::questions::Ask;
use crate::grpc::status::{invalid, refused, store_report};
use crate::grpc::tenants;
use candidates::How;
use witan_control::{Catalog, ChangeRefused, Turn, TurnLimits, Turns, Unfenced};

/// How long a list of bindings waits for the metadata store: the bindings are known without it.
const UNFENCED_WITHIN: Duration = Duration::from_secs(1);

/// The plugin service.
#[derive(Clone)]
pub struct PluginApi {
    host: PluginHost,
    catalog: Arc<Catalog>,
    answers: Arc<dyn Admit>,
    questions: Arc<dyn Ask>,
    /// Turns of uploads.
    uploads: Turns,
    dry_runs: Turns,
    now_ms: fn() -> u64,
}

impl PluginApi {
    /// A service over `host` for the tenants of `catalog`, whose answers have room in `coordinator`, and whose keys are there.
    /// `now_ms`: Unix time.
    pub fn new<C: Admit + Ask>(
        host: PluginHost,
        catalog: Arc<Catalog>,
        coordinator: Arc<C>,
        now_ms: fn() -> u64,
    ) -> Self {
        let (uploads, dry_runs) = (Turns::new(TurnLimits::UPLOADS), Turns::new(TurnLimits::DRY_RUNS));
        Self { host, catalog, answers: coordinator.clone(), questions: coordinator, uploads, dry_runs, now_ms }
    }

    /// A turn for a change of a binding; those for all tenants (`None`) are for operators.
    fn change(&self, caller: &Caller, tenant: Option<&TenantId>) -> Result<Turn, Status> {
        let taken = self.catalog.changes().take(tenant.and_then(|tenant| caller.on_behalf_of(tenant)));
        taken.map_err(|refused| tenants::status(&refused))
    }

    /// The nodes that have not confirmed changes of bindings, or why they are not known: what is bound can be seen all the same.
    async fn unfenced(&self, caller: &Caller, tenant: Option<TenantId>) -> (Vec<v1::UnfencedBindings>, String) {
        let on_behalf_of = tenant.as_ref().and_then(|tenant| caller.on_behalf_of(tenant));
        let _turn = match self.catalog.lookups().take(on_behalf_of) {
            Ok(turn) => turn,
            Err(refused) => return (Vec::new(), refused.to_string()),
        };
        let unfenced = match tokio::time::timeout(UNFENCED_WITHIN, self.catalog.unfenced(tenant.as_ref())).await {
            Ok(Ok(unfenced)) => unfenced,
            Ok(Err(error)) => return (Vec::new(), error.to_string()),
            Err(_) => return (Vec::new(), "the metadata store did not answer in time".to_owned()),
        };
        let shown = |unfenced: Unfenced| v1::UnfencedBindings {
            tenant_id: unfenced.tenant.map_or_else(String::new, |tenant| tenant.to_string()),
            node_ids: unfenced.nodes.iter().map(ToString::to_string).collect(),
            enough: unfenced.enough,
        };
        (unfenced.into_iter().map(shown).collect(), String::new())
    }
}

#[tonic::async_trait]
impl PluginService for PluginApi {
    async fn upload_plugin(
        &self,
        request: Request<Streaming<v1::UploadPluginRequest>>,
    ) -> Result<Response<v1::UploadPluginResponse>, Status> {
        self.upload(request).await
    }

    async fn list_plugins(
        &self,
        request: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        self.list(request).await
    }

    async fn get_plugin(
        &self,
        request: Request<v1::GetPluginRequest>,
    ) -> Result<Response<v1::GetPluginResponse>, Status> {
        self.get(request).await
    }

    async fn remove_plugin(
        &self,
        request: Request<v1::RemovePluginRequest>,
    ) -> Result<Response<v1::RemovePluginResponse>, Status> {
        self.remove(request).await
    }

    async fn bind_plugin(
        &self,
        mut request: Request<v1::BindPluginRequest>,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let (caller, deadline, usage) = (caller(&mut request)?, deadline(&request), usage(&request));
        let request = request.into_inner();
        let (tenant, hook) = own_slot(&caller, &request.tenant_id, &request.hook)?;
        let kept = Kept::of_bindings(&*self.answers, &usage, caller.credential().tenant())?;
        let on_fault = OnFault::parse(&request.on_fault).ok_or_else(|| {
            let problem = format!("{} is not known", shown(&request.on_fault));
            invalid(&Invalid::new("on_fault", problem, "use \"native\" or \"fail\""))
        })?;
        let how = candidates::how(&request)?;
        let author = candidates::author(&caller, &request.reason);
        let own_hook = tenant.clone().filter(|_| hook == Hook::RoutingHook);
        let (host, slot) = (self.host.clone(), tenant.clone());
        if request.plugin.is_empty() {
            if let Some(tenant) = own_hook {
                return self.swap(&caller, kept, tenant.clone(), RoutingChange::Unbind(tenant, author)).await;
            }
            let unbind = async move {
                let previous = in_force(&host, slot.as_ref(), hook);
                host.unbind(slot, hook, author).await.map(|_| previous).map_err(status)
            };
            let turn = self.change(&caller, tenant.as_ref())?;
            let previous =
                self.catalog.change_binding(turn, tenant.as_ref(), hook, unbind).await.map_err(not_changed)?;
            return Ok(kept.with(v1::BindPluginResponse { previous, ..Default::default() }));
        }
        // Before the change begins, which may block operations.
        let on_behalf_of = tenant.as_ref().and_then(|tenant| caller.on_behalf_of(tenant));
        self.staged(tenant.as_ref(), &request.plugin, deadline, on_behalf_of).await?;
        let plugin = self.reference(tenant.as_ref(), &request.plugin, deadline).await?;
        let configuration = request.configuration;
        let bind = BindRequest { tenant: slot.clone(), hook, plugin, configuration, on_fault, author };
        if let How::Tried { mode, percent, bounds, promote_after_s } = how {
            let request = TryRequest { bind, mode, percent, bounds, promote_after_s };
            let begin = async move { host.try_beside(request).await.map_err(status) };
            let turn = self.change(&caller, tenant.as_ref())?;
            let bound = self.catalog.change_candidate(turn, tenant.as_ref(), hook, begin).await.map_err(not_changed)?;
            return Ok(kept.with(v1::BindPluginResponse { binding: Some(binding(&bound)), ..Default::default() }));
        }
        if let Some(tenant) = own_hook {
            return self.swap(&caller, kept, tenant, RoutingChange::Bind(bind)).await;
        }
        let bind = async move {
            let previous = in_force(&host, slot.as_ref(), hook);
            Ok((host.bind(bind).await.map_err(status)?, previous))
        };
        self.changed(&caller, kept, tenant.as_ref(), hook, bind).await
    }

    async fn rollback_binding(
        &self,
        mut request: Request<v1::RollbackBindingRequest>,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let (tenant, hook) = own_slot(&caller, &request.get_ref().tenant_id, &request.get_ref().hook)?;
        let author = candidates::author(&caller, &request.get_ref().reason);
        let kept = Kept::of_bindings(&*self.answers, &usage, caller.credential().tenant())?;
        if let Some(tenant) = tenant.clone().filter(|_| hook == Hook::RoutingHook) {
            return self.swap(&caller, kept, tenant.clone(), RoutingChange::Rollback(tenant, author)).await;
        }
        let (host, slot) = (self.host.clone(), tenant.clone());
        let roll_back = async move {
            let previous = in_force(&host, slot.as_ref(), hook);
            Ok((host.rollback(slot, hook, author).await.map_err(status)?, previous))
        };
        self.changed(&caller, kept, tenant.as_ref(), hook, roll_back).await
    }

    async fn list_bindings(
        &self,
        mut request: Request<v1::ListBindingsRequest>,
    ) -> Result<Response<v1::ListBindingsResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let wanted = &request.get_ref().tenant_id;
        own(&caller, named(wanted)?.as_ref())?;
        let bindings = self.host.bindings();
        let of_tenant = bindings
            .iter()
            .filter(|bound| wanted.is_empty() || bound.record.tenant.as_ref().is_some_and(|t| t.as_str() == wanted));
        let bindings = of_tenant.map(binding).collect();
        let (unfenced, unfenced_unknown) = self.unfenced(&caller, named(wanted)?).await;
        let answer = v1::ListBindingsResponse { bindings, unfenced, unfenced_unknown };
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }

    async fn promote_binding(
        &self,
        mut request: Request<v1::PromoteBindingRequest>,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let v1::PromoteBindingRequest { tenant_id, hook, reason } = request.into_inner();
        let (tenant, hook) = own_slot(&caller, &tenant_id, &hook)?;
        let author = candidates::author(&caller, &reason);
        let kept = Kept::of_bindings(&*self.answers, &usage, caller.credential().tenant())?;
        let (host, slot) = (self.host.clone(), tenant.clone());
        if hook == Hook::RoutingHook {
            let bind = host.candidate_of(slot.clone(), hook, author).await.map_err(status)?;
            if let Some(tenant) = tenant {
                return self.swap(&caller, kept, tenant, RoutingChange::Bind(bind)).await;
            }
            let bind = async move {
                let previous = in_force(&host, None, hook);
                Ok((host.bind(bind).await.map_err(status)?, previous))
            };
            return self.changed(&caller, kept, None, hook, bind).await;
        }
        let promote = async move {
            let previous = in_force(&host, slot.as_ref(), hook);
            Ok((host.promote(slot, hook, author).await.map_err(status)?, previous))
        };
        self.changed(&caller, kept, tenant.as_ref(), hook, promote).await
    }

    async fn discard_candidate(
        &self,
        mut request: Request<v1::DiscardCandidateRequest>,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let v1::DiscardCandidateRequest { tenant_id, hook, reason } = request.into_inner();
        let (tenant, hook) = own_slot(&caller, &tenant_id, &hook)?;
        let author = candidates::author(&caller, &reason);
        let kept = Kept::of_bindings(&*self.answers, &usage, caller.credential().tenant())?;
        let (host, slot) = (self.host.clone(), tenant.clone());
        let discard = async move { host.discard(slot, hook, author).await.map_err(status) };
        let turn = self.change(&caller, tenant.as_ref())?;
        let bound = self.catalog.change_candidate(turn, tenant.as_ref(), hook, discard).await.map_err(not_changed)?;
        Ok(kept.with(v1::BindPluginResponse { binding: Some(binding(&bound)), ..Default::default() }))
    }

    async fn get_binding_history(
        &self,
        mut request: Request<v1::GetBindingHistoryRequest>,
    ) -> Result<Response<v1::GetBindingHistoryResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let (tenant, hook) = own_slot(&caller, &request.get_ref().tenant_id, &request.get_ref().hook)?;
        let history = self.host.history(tenant, hook).await.map_err(status)?;
        let entries = history.into_iter().map(candidates::entry).collect();
        let answer = v1::GetBindingHistoryResponse { entries };
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }

    async fn get_binding_report(
        &self,
        mut request: Request<v1::GetBindingReportRequest>,
    ) -> Result<Response<v1::GetBindingReportResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let (tenant, hook) = own_slot(&caller, &request.get_ref().tenant_id, &request.get_ref().hook)?;
        let view = self.host.report(tenant, hook).await.map_err(status)?;
        let bound = binding(&view.binding);
        let answer = candidates::report(view, bound, candidates::may_read(&caller));
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }

    type TailPluginLogsStream = logs::Lines;

    async fn tail_plugin_logs(
        &self,
        request: Request<v1::TailPluginLogsRequest>,
    ) -> Result<Response<Self::TailPluginLogsStream>, Status> {
        self.tail(request)
    }

    async fn try_plugin(
        &self,
        request: Request<v1::TryPluginRequest>,
    ) -> Result<Response<v1::TryPluginResponse>, Status> {
        self.run_dry(request).await
    }

    async fn add_signing_key(
        &self,
        request: Request<v1::AddSigningKeyRequest>,
    ) -> Result<Response<v1::AddSigningKeyResponse>, Status> {
        self.add_key(request).await
    }

    async fn list_signing_keys(
        &self,
        request: Request<v1::ListSigningKeysRequest>,
    ) -> Result<Response<v1::ListSigningKeysResponse>, Status> {
        self.list_keys(request).await
    }

    async fn remove_signing_key(
        &self,
        request: Request<v1::RemoveSigningKeyRequest>,
    ) -> Result<Response<v1::RemoveSigningKeyResponse>, Status> {
        self.remove_key(request).await
    }

    async fn grant_plugin_class(
        &self,
        request: Request<v1::GrantPluginClassRequest>,
    ) -> Result<Response<v1::GrantPluginClassResponse>, Status> {
        self.grant_class(request).await
    }

    type WatchPluginEventsStream = Pin<Box<dyn Stream<Item = Result<v1::PluginEvent, Status>> + Send>>;

    async fn watch_plugin_events(
        &self,
        mut request: Request<v1::WatchPluginEventsRequest>,
    ) -> Result<Response<Self::WatchPluginEventsStream>, Status> {
        let caller = caller(&mut request)?;
        let tenant = named(&request.get_ref().tenant_id)?;
        own(&caller, tenant.as_ref())?;
        let (recent, next) = self.host.watch();
        let mut recent = if request.get_ref().recent { recent } else { Vec::new() };
        let is_for = move |event: &Event| tenant.is_none() || event.tenant == tenant;
        recent.retain(&is_for);
        let first = tokio_stream::iter(recent).map(|each| Ok(event(&each)));
        let following = futures::stream::unfold((next, is_for), |(mut next, is_for)| async move {
            loop {
                match next.recv().await {
                    Ok(each) if is_for(&each) => return Some((Ok(event(&each)), (next, is_for))),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        // Not how many: most may be others'.
                        let why = "events were missed: the watcher is too slow; watch again with `recent`";
                        return Some((Err(Status::data_loss(why)), (next, is_for)));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(Response::new(while_good(caller, first.chain(following))))
    }
}
impl PluginApi {
    /// Changes what is bound, and answers what is bound now and was before.
    async fn changed(
        &self,
        caller: &Caller,
        kept: Kept,
        tenant: Option<&TenantId>,
        hook: Hook,
        change: impl Future<Output = Result<(Binding, Option<v1::Binding>), Status>> + Send + 'static,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let turn = self.change(caller, tenant)?;
        let changed = self.catalog.change_binding(turn, tenant, hook, change).await;
        let (bound, previous) = changed.map_err(not_changed)?;
        Ok(kept.with(v1::BindPluginResponse { binding: Some(binding(&bound)), previous, ..Default::default() }))
    }
}

fn in_force(host: &PluginHost, tenant: Option<&TenantId>, hook: Hook) -> Option<v1::Binding> {
    let bindings = host.bindings();
    let of_slot = bindings.iter().find(|bound| bound.record.tenant.as_ref() == tenant && bound.record.hook == hook);
    of_slot.map(binding)
}

/// The status for a binding that was not changed. A failure of the plugin host has been mapped to a status already.
fn not_changed(refused: ChangeRefused<Status>) -> Status {
    match refused {
        ChangeRefused::Refused(refused) => tenants::status(&refused),
        ChangeRefused::Host(status) => status,
    }
}

/// Until when the client waits for the answer.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    timeout(request.metadata()).and_then(|within| Instant::now().checked_add(within))
}

/// The tenant that a call names; `None`: all tenants.
fn named(tenant_id: &str) -> Result<Option<TenantId>, Status> {
    match tenant_id {
        "" => Ok(None),
        id => TenantId::new(id).map(Some).map_err(|error| invalid(&error)),
    }
}

/// Checks that the caller may use bindings of the tenant. Those for all tenants (`None`) are for operators.
fn own(caller: &Caller, tenant: Option<&TenantId>) -> Result<(), Status> {
    let allowed = tenant.map_or_else(|| caller.may_all(), |tenant| caller.may(tenant));
    allowed.map_err(|refused| denied(caller, &refused))
}

/// The slot that a call names, after a check that its caller may change it.
fn own_slot(caller: &Caller, tenant_id: &str, hook: &str) -> Result<(Option<TenantId>, Hook), Status> {
    let slot = slot(tenant_id, hook)?;
    own(caller, slot.0.as_ref())?;
    Ok(slot)
}

fn slot(tenant_id: &str, hook: &str) -> Result<(Option<TenantId>, Hook), Status> {
    let tenant = named(tenant_id)?;
    let hook = Hook::parse(hook).ok_or_else(|| {
        let known = Hook::ALL.map(Hook::as_str).join(", ");
        invalid(&Invalid::new("hook", format!("{} is not a hook", shown(hook)), format!("use one of {known}")))
    })?;
    Ok((tenant, hook))
}

fn binding(bound: &Binding) -> v1::Binding {
    let current = &bound.record.current;
    let (name, version) = current.plugin.split_once('@').unwrap_or((&current.plugin, ""));
    v1::Binding {
        tenant_id: bound.record.tenant.as_ref().map_or_else(String::new, ToString::to_string),
        hook: bound.record.hook.to_string(),
        digest: current.digest.to_string(),
        name: name.to_owned(),
        version: version.to_owned(),
        configuration: current.configuration.clone(),
        on_fault: current.on_fault.as_str().to_owned(),
        mode: "active".to_owned(),
        number: current.number,
        by_name: matches!(current.reference, Reference::Name { .. }),
        calls: bound.counts.calls,
        remembered: bound.counts.remembered,
        faults: bound.counts.faults,
        candidate: bound.candidate.as_ref().map(candidates::candidate).map(Box::new),
        breaker_open: bound.breakers.tenants > 0,
        broken: bound.broken.clone().unwrap_or_default(),
        breakers_open: u32::try_from(bound.breakers.tenants).unwrap_or(u32::MAX),
        admitted_permille: bound.breakers.admitted_permille,
    }
}

fn event(event: &Event) -> v1::PluginEvent {
    v1::PluginEvent {
        at_ms: i64::try_from(event.at_ms).unwrap_or(i64::MAX),
        kind: event.kind.as_str().to_owned(),
        digest: event.digest.map_or_else(String::new, |digest| digest.to_string()),
        name: event.plugin.clone(),
        tenant_id: event.tenant.as_ref().map_or_else(String::new, ToString::to_string),
        hook: event.hook.map_or_else(String::new, |hook| hook.to_string()),
        reason: event.detail.clone(),
    }
}

fn status(error: PluginError) -> Status {
    let message = error.to_string();
    match error {
        PluginError::Invalid(_) => refused(Code::InvalidArgument, "INVALID_REQUEST", message),
        PluginError::Field(error) => invalid(&error),
        PluginError::NoCandidate(_) => candidates::no_candidate(message),
        PluginError::NotReady(_) => refused(Code::FailedPrecondition, "PLUGIN_NOT_READY", message),
        PluginError::Refused(_) => refused(Code::FailedPrecondition, "PLUGIN_REFUSED", message),
        PluginError::NotFound(_) => refused(Code::NotFound, "PLUGIN_NOT_FOUND", message),
        PluginError::InUse(_) | PluginError::Full => refused(Code::FailedPrecondition, "PLUGIN_IN_USE", message),
        PluginError::NotOwned(why) if why.is_name() => refused(Code::AlreadyExists, "PLUGIN_NAME_TAKEN", message),
        PluginError::NotOwned(_) => refused(Code::ResourceExhausted, "PLUGIN_QUOTA_EXCEEDED", message),
        PluginError::ClassNotGranted { .. } => refused(Code::FailedPrecondition, "PLUGIN_CLASS_NOT_GRANTED", message),
        PluginError::Rate { .. } => refused(Code::ResourceExhausted, "RATE_LIMIT_EXCEEDED", message),
        PluginError::Signature(_) => refused(Code::FailedPrecondition, "PLUGIN_SIGNATURE_REFUSED", message),
        PluginError::Busy => refused(Code::ResourceExhausted, "OVERLOADED", message),
        PluginError::HostBusy(_) | PluginError::Late => refused(Code::ResourceExhausted, "PLUGIN_HOST_BUSY", message),
        PluginError::Store(error) => store_report(&error, "INVALID_REQUEST", "INVALID_REQUEST").status(),
        PluginError::Host(reason) => {
            tracing::error!(%reason, "the plugin host failed");
            refused(Code::Internal, "INTERNAL_ERROR", "internal error; see the log")
        }
    }
}

#[cfg(test)]
mod tests;
