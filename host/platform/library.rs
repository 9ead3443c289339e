//! Calls about plugins themselves: uploads, and what is known of them. Each names whose plugins it is about.

use std::time::{Duration, Instant};

use tonic::{Code, Request, Response, Status, Streaming};
use witan_kernel::class::Class;
use witan_kernel::name::{Invalid, TenantId, shown};
use witan_kernel::port::{Artifact, Digest, PushOnRecord};
use witan_plugin::registry::Pushed;
use witan_wire::v1;
use witan_wire::v1::upload_plugin_request::Part;

use super::signature::Signature;
use super::{PluginApi, Push, Reference, Upload, deadline, named, own, status};
use crate::access::caller::Caller;
use crate::grpc::guard::caller;
use crate::grpc::kept::{listed, usage};
use crate::grpc::status::{invalid, refused};
use crate::grpc::tenants;

impl PluginApi {
    pub(super) async fn upload(
        &self,
        mut request: Request<Streaming<v1::UploadPluginRequest>>,
    ) -> Result<Response<v1::UploadPluginResponse>, Status> {
        let (caller, deadline) = (caller(&mut request)?, deadline(&request));
        let of_tenant = caller.credential().tenant().and_then(|tenant| caller.on_behalf_of(tenant));
        let turn = self.uploads.take(of_tenant).map_err(|refused| tenants::status(&refused))?;
        // Its turn and its place are held until the component is staged.
        let mut upload = self.host.begin_upload().map_err(status)?;
        let mut parts = request.into_inner();
        let manifest = manifest(&mut parts, &upload).await?;
        let owner = self.owner(&caller, &manifest.tenant_id).await?;
        let signature = signature(&manifest)?;
        if let Some(tenant) = &owner
            && upload.may_be_large(manifest.size)
            && !self.has_class(&caller, tenant, Class::Interpreted).await?
        {
            upload.only_standard(tenant.clone());
        }
        upload.expect(manifest.size).map_err(status)?;
        component(&mut parts, &manifest, &mut upload).await?;
        let push = Push { owner, bytes: upload.take(), signature };
        let plugin = if manifest.wait == Some(false) {
            match self.host.push(push, (turn, upload)).await.map_err(status)? {
                Pushed::Ready(artifact) => info(&artifact),
                Pushed::UnderWay(push) => pushed_info(&push),
            }
        } else {
            info(&self.host.stage(push, deadline).await.map_err(status)?)
        };
        Ok(Response::new(v1::UploadPluginResponse { plugin: Some(plugin) }))
    }

    /// Whose a plugin will be, if the caller may upload it for them.
    async fn owner(&self, caller: &Caller, tenant_id: &str) -> Result<Option<TenantId>, Status> {
        let owner = named(tenant_id)?;
        own(caller, owner.as_ref())?;
        if let Some(tenant) = &owner {
            let turn = self.catalog.lookups().take(caller.on_behalf_of(tenant));
            let _turn = turn.map_err(|refused| tenants::status(&refused))?;
            self.catalog.tenant(tenant).await.map_err(|refused| tenants::status(&refused))?;
        }
        Ok(owner)
    }

    pub(super) async fn list(
        &self,
        mut request: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let tenant = seen_by(&caller, &request.get_ref().tenant_id)?;
        let is_seen = |artifact: &&Artifact| match &tenant {
            Some(tenant) => artifact.is_for(Some(tenant)),
            None => artifact.owner.as_ref().is_none_or(|owner| caller.credential().covers(owner).is_ok()),
        };
        let plugins = self.host.artifacts().iter().filter(is_seen).map(info).collect();
        let (grants, grants_unknown) = self.shown_grants(&caller, tenant.as_ref()).await;
        let answer = v1::ListPluginsResponse { plugins, grants, grants_unknown };
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }

    pub(super) async fn get(
        &self,
        mut request: Request<v1::GetPluginRequest>,
    ) -> Result<Response<v1::GetPluginResponse>, Status> {
        let (caller, deadline) = (caller(&mut request)?, deadline(&request));
        let v1::GetPluginRequest { plugin, tenant_id } = request.get_ref();
        let tenant = seen_by(&caller, tenant_id)?;
        let on_behalf_of = tenant.as_ref().and_then(|tenant| caller.on_behalf_of(tenant));
        if let Some(push) = self.unknown_push(tenant.as_ref(), plugin, on_behalf_of).await? {
            return Ok(Response::new(v1::GetPluginResponse { plugin: Some(pushed_info(&push)) }));
        }
        let reference = self.reference(tenant.as_ref(), plugin, deadline).await?;
        let found = self.host.artifact(tenant.as_ref(), &reference).ok_or_else(|| {
            refused(Code::NotFound, "PLUGIN_NOT_FOUND", format!("plugin {} does not exist", shown(plugin)))
        })?;
        Ok(Response::new(v1::GetPluginResponse { plugin: Some(info(&found)) }))
    }

    pub(super) async fn remove(
        &self,
        mut request: Request<v1::RemovePluginRequest>,
    ) -> Result<Response<v1::RemovePluginResponse>, Status> {
        let (caller, deadline) = (caller(&mut request)?, deadline(&request));
        let v1::RemovePluginRequest { plugin, tenant_id } = request.get_ref();
        let owner = named(tenant_id)?;
        own(&caller, owner.as_ref())?;
        let _turn = self.change(&caller, owner.as_ref())?;
        let reference = self.reference(owner.as_ref(), plugin, deadline).await?;
        self.host.remove(owner, reference).await.map_err(status)?;
        Ok(Response::new(v1::RemovePluginResponse {}))
    }

    /// Parses a reference of a tenant, and waits until it is known what it means. A unique prefix of a digest, of at least 8 digits,
    /// refers to that digest.
    pub(super) async fn reference(
        &self,
        tenant: Option<&TenantId>,
        text: &str,
        deadline: Option<Instant>,
    ) -> Result<Reference, Status> {
        self.host.is_known(tenant, &self.parse(tenant, text)?, deadline).await.map_err(status)?;
        // Again: it may be a prefix of what has become known meanwhile.
        self.parse(tenant, text)
    }

    fn parse(&self, tenant: Option<&TenantId>, text: &str) -> Result<Reference, Status> {
        let is_prefix = (8..64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if is_prefix {
            let artifacts = self.host.artifacts();
            let visible = artifacts.iter().filter(|artifact| artifact.is_for(tenant));
            let mut meant = visible.filter(|a| a.digest.to_string().starts_with(&text.to_lowercase()));
            if let (Some(artifact), None) = (meant.next(), meant.next()) {
                return Ok(Reference::Digest(artifact.digest));
            }
        }
        Reference::parse(text).ok_or_else(|| {
            let remedy = "use a digest, name@version or a name, as `witan plugin list` shows them, or operator/NAME";
            invalid(&Invalid::new("plugin", format!("{} names no plugin", shown(text)), remedy))
        })
    }
}

/// The signature of a manifest; `None`: it has none.
fn signature(manifest: &v1::UploadPluginManifest) -> Result<Option<Signature>, Status> {
    if manifest.signature.is_empty() && manifest.key_id.is_empty() {
        return Ok(None);
    }
    let signature = Signature::new(&manifest.key_id, &manifest.signature);
    signature.map(Some).map_err(|error| refused(Code::InvalidArgument, "INVALID_REQUEST", error.to_string()))
}

/// The tenant whose plugins a call looks at: the one that it names, or the only one that its credential is good for.
fn seen_by(caller: &Caller, tenant_id: &str) -> Result<Option<TenantId>, Status> {
    let Some(tenant) = named(tenant_id)? else { return Ok(caller.credential().tenant().cloned()) };
    own(caller, Some(&tenant))?;
    Ok(Some(tenant))
}

/// Receives the manifest of an upload, within the time that one has.
pub(super) async fn manifest(
    parts: &mut Streaming<v1::UploadPluginRequest>,
    upload: &Upload,
) -> Result<v1::UploadPluginManifest, Status> {
    let first = tokio::time::timeout_at(upload.until(), parts.message()).await;
    let first = first.map_err(|_| late(upload.within()))??.and_then(|first| first.part);
    let Some(Part::Manifest(manifest)) = first else {
        let remedy = "send the manifest in the first message, then the chunks";
        return Err(invalid(&Invalid::new("manifest", "is not in the first message", remedy)));
    };
    Ok(manifest)
}

/// Receives the bytes of an upload, within the time that one has.
pub(super) async fn component(
    parts: &mut Streaming<v1::UploadPluginRequest>,
    manifest: &v1::UploadPluginManifest,
    upload: &mut Upload,
) -> Result<(), Status> {
    let received = tokio::time::timeout_at(upload.until(), chunks(parts, upload)).await;
    received.map_err(|_| late(upload.within()))??;
    let bytes = upload.received();
    if manifest.size != 0 && manifest.size != bytes.len() as u64 {
        let problem = format!("is {}, but {} bytes were received", manifest.size, bytes.len());
        return Err(invalid(&Invalid::new("size", problem, "send the whole component again")));
    }
    let digest = Digest::of(bytes).to_string();
    if !manifest.digest.is_empty() && !manifest.digest.eq_ignore_ascii_case(&digest) {
        let problem = format!("does not match the digest of the received bytes, {digest}");
        return Err(invalid(&Invalid::new("digest", problem, "send the component again")));
    }
    Ok(())
}

async fn chunks(parts: &mut Streaming<v1::UploadPluginRequest>, upload: &mut Upload) -> Result<(), Status> {
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Chunk(chunk)) => upload.push(&chunk).map_err(status)?,
            Some(Part::Manifest(_)) | None => {
                return Err(invalid(&Invalid::new("part", "is not a chunk", "send chunks after the manifest")));
            }
        }
    }
    Ok(())
}

/// The status for an upload that has not arrived in time.
fn late(within: Duration) -> Status {
    let message =
        format!("the upload was not complete after {} s; send it again over a faster connection", within.as_secs());
    refused(Code::DeadlineExceeded, "DEADLINE", message)
}

pub(super) fn info(artifact: &Artifact) -> v1::PluginInfo {
    v1::PluginInfo {
        digest: artifact.digest.to_string(),
        name: artifact.name.clone(),
        version: artifact.version.clone(),
        hook: artifact.hook.to_string(),
        deterministic: artifact.deterministic,
        size: artifact.size,
        state: "ready".to_owned(),
        tenant_id: artifact.owner_text().to_owned(),
        signed_by: artifact.signed_by.clone().unwrap_or_default(),
        class: artifact.class.to_string(),
        class_reason: artifact.class_reason.clone(),
        reason: String::new(),
    }
}

/// What is known of a component that is no plugin yet, or was refused.
pub(super) fn pushed_info(push: &PushOnRecord) -> v1::PluginInfo {
    v1::PluginInfo {
        digest: push.digest.to_string(),
        size: push.size,
        state: push.state.to_string(),
        reason: push.reason.clone(),
        tenant_id: push.owner.as_ref().map_or_else(String::new, ToString::to_string),
        ..v1::PluginInfo::default()
    }
}
